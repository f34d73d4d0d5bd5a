//! Resilver (protocol §9): bring a store that was out up to date while the host goes on.
//!
//! ```text
//! Marks --> [Presence] --> Copying <--> Flushing --> Inheriting --> Completing --> Joining
//!   any failure of the target: dropped, its session closed, begun again from what is known
//! ```

use super::copy::{Copy, CopyFor};
use super::event::{Command, Effect, Progress, Resilvered, Timer, TraceEvent};
use super::flush::FlushFor;
use super::leg::{Condemned, Session};
use super::members::{Members, Position};
use super::pace::Pace;
use super::state::{Outbox, Phase, Purpose, Replicator};
use crate::limits::{
    COPIES_BUSY_MAX, COPIES_MAX, COPY_BLOCKS_MAX, MARKS_PER_COMMAND_MAX, PRESENCE_REGIONS,
    PROGRESS_MS,
};
use shardmap::canary::{Mechanism, stands};
use shardmap::dirty::{BlockSet, RegionSet};
use shardmap::units::{BLOCK_BYTES, BlockRange, Lba, Moment, REGION_BLOCKS, RegionIndex};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResilverPhase {
    /// Asks every source, and the target, for their marks.
    Marks,
    /// Asks what the sources hold: the target is blank.
    Presence,
    Copying,
    Flushing,
    Inheriting,
    Completing,
    /// metad was asked to take the target in.
    Joining,
}

#[derive(Debug)]
pub(super) struct Resilver {
    pub(super) target: Position,
    pub(super) phase: ResilverPhase,
    /// Whose answer is missing in the phases that ask.
    awaiting: Members,
    /// Marks of the sources: the target must know what a third store still lacks. What the target
    /// was sent is taken out.
    inherited: RegionSet,
    /// The target was sent some and has not answered.
    adding_marks: bool,
    /// Marks of the target itself: it may hold what nobody else has.
    own: RegionSet,
    presence_next: RegionIndex,
    cursor: Lba,
    pub(super) blocks_missed: u64,
    pub(super) blocks_moved: u64,
    started: Moment,
    /// The configured speed limit is kept until then.
    next_copy_at: Moment,
    /// Holds copies back for the host's sake.
    pub(super) pace: Pace,
    reported_at: Moment,
}

impl Replicator {
    pub(super) fn resilver_forward(&mut self, out: &mut Outbox) {
        // What a detach waits for may need it: a minimum in sync, a member that cannot go before.
        let wanted = match self.phase {
            Phase::Serving => true,
            Phase::Detaching => self.detach.is_draining() && !self.ops.is_empty(),
            Phase::New | Phase::Attaching | Phase::Failed | Phase::Ended => false,
        };
        if !wanted {
            return;
        }
        let Some(phase) = self.resilver.as_ref().map(|r| r.phase) else {
            return self.start_resilver(out);
        };
        match phase {
            ResilverPhase::Marks => self.ask_marks(out),
            ResilverPhase::Presence => self.ask_presence(out),
            ResilverPhase::Copying => self.copy_more(out),
            ResilverPhase::Flushing | ResilverPhase::Inheriting | ResilverPhase::Completing => {
                self.back_to_copying();
            }
            ResilverPhase::Joining => {}
        }
    }

    /// A member that only failed a write which is still held is a good source: what it lacks was
    /// never acknowledged and is locked. It may even be that it cannot go before the target comes.
    fn is_source(&self, at: Position) -> bool {
        matches!(self.leg(at).condemned, None | Some(Condemned::Diverged))
    }

    /// Takes in the first store that is out and open. Suspects go first, changes are settled, and
    /// every member has a session. Model: `StartRs`.
    fn start_resilver(&mut self, out: &mut Outbox) {
        let healthy = self.pending.is_none()
            && self.usable(self.isr) == self.isr
            && self.isr.iter().all(|p| self.is_source(p))
            && self.is_stamped()
            && self.reconcile.lets_resilver();
        let outside = self.all.minus(self.isr);
        let ready = outside
            .iter()
            .find(|p| self.leg(*p).session == Session::Open);
        let Some(target) = ready.filter(|_| healthy) else {
            return;
        };
        self.abort_stable(out);
        let store = self.leg(target).store;
        self.resilver = Some(Resilver {
            target,
            phase: ResilverPhase::Marks,
            awaiting: Members::EMPTY,
            inherited: RegionSet::new(),
            adding_marks: false,
            own: RegionSet::new(),
            presence_next: RegionIndex(0),
            cursor: Lba(0),
            blocks_missed: 0,
            blocks_moved: 0,
            started: self.now,
            next_copy_at: self.now,
            pace: Pace::new(self.now),
            reported_at: self.now,
        });
        self.trace(TraceEvent::StartRs { store }, out);
        self.advance_all_ops(out);
        let sources = self.isr.with(target);
        for at in sources.iter() {
            let from = RegionIndex(0);
            self.send(at, Purpose::ResilverMarks, Command::ReadMarks { from }, out);
        }
        self.resilver_mut().awaiting = sources;
    }

    pub(super) fn resilver_mut(&mut self) -> &mut Resilver {
        self.resilver.as_mut().expect("a resilver is under way")
    }

    /// A source's session was lost meanwhile: it is asked again.
    fn ask_marks(&mut self, out: &mut Outbox) {
        let members = self.isr;
        let rs = self.resilver_mut();
        rs.awaiting = rs.awaiting.and(members.with(rs.target));
        if rs.awaiting.is_empty() {
            self.plan(out);
        }
    }

    pub(super) fn on_resilver_marks(
        &mut self,
        at: Position,
        marks: &RegionSet,
        more: Option<RegionIndex>,
        out: &mut Outbox,
    ) {
        let Some(rs) = self.resilver.as_mut() else {
            return;
        };
        if rs.phase != ResilverPhase::Marks || !rs.awaiting.has(at) {
            return;
        }
        let into = if at == rs.target {
            &mut rs.own
        } else {
            &mut rs.inherited
        };
        into.merge(marks);
        if let Some(from) = more {
            return self.send(at, Purpose::ResilverMarks, Command::ReadMarks { from }, out);
        }
        rs.awaiting.remove(at);
        self.changed = true;
    }

    /// Decides how what the target missed becomes known: from our own bitmap if we saw it leave,
    /// from marks otherwise, from everything the sources hold if it is blank.
    fn plan(&mut self, out: &mut Outbox) {
        let target = self.resilver_mut().target;
        let leg = self.leg(target);
        let (incomplete, witnessed) = (leg.facts.incomplete, leg.witnessed);
        if incomplete && leg.planned_for != leg.incarnation {
            self.resilver_mut().phase = ResilverPhase::Presence;
            return self.ask_presence(out);
        }
        if !witnessed {
            let mut regions = self.resilver_mut().inherited.clone();
            regions.merge(&self.resilver_mut().own);
            regions.retain(|r| self.homes_of_region(r).has(target));
            let size_blocks = self.map.size_blocks;
            let leg = self.leg_mut(target);
            regions
                .iter()
                .for_each(|r| leg.dirty.insert_region(r, size_blocks));
        }
        self.planned(out);
    }

    /// One window of regions at a time, from a source of its shard and from the target.
    fn ask_presence(&mut self, out: &mut Outbox) {
        let rs = self.resilver_mut();
        if !rs.awaiting.is_empty() {
            return;
        }
        let (target, turn) = (rs.target, rs.started.0);
        loop {
            let from = self.resilver_mut().presence_next;
            let Some(range) = self.region_range(from) else {
                break;
            };
            let homes = self.homes(range);
            if !homes.has(target) {
                self.resilver_mut().presence_next.0 += 1;
                continue;
            }
            let Some(source) = self.choose_reader(homes, Members::EMPTY, turn) else {
                return;
            };
            let regions = self.regions_of_one_shard(from);
            let asked = Members::one(source).with(target);
            for at in asked.iter() {
                let what = Command::ReadPresence { from, regions };
                self.send(at, Purpose::ResilverPresence(from), what, out);
            }
            self.resilver_mut().awaiting = asked;
            return;
        }
        let incarnation = self.leg(target).incarnation;
        let leg = self.leg_mut(target);
        leg.planned_for = incarnation;
        leg.dirty.optimize();
        self.planned(out);
    }

    fn regions_of_one_shard(&self, from: RegionIndex) -> u32 {
        let per_shard = self.map.shape.shard_blocks / REGION_BLOCKS;
        (per_shard - from.0 % per_shard).min(PRESENCE_REGIONS)
    }

    /// What the target holds counts too: an earlier attempt may have left blocks that the sources
    /// lost with their caches, and no longer know of.
    pub(super) fn on_presence(&mut self, at: Position, from: RegionIndex, blocks: &BlockSet) {
        let Some(rs) = self.resilver.as_mut() else {
            return;
        };
        let asked = rs.phase == ResilverPhase::Presence && rs.presence_next == from;
        if !asked || !rs.awaiting.has(at) {
            return;
        }
        rs.awaiting.remove(at);
        let (target, answered) = (rs.target, rs.awaiting.is_empty());
        self.leg_mut(target).dirty.merge(blocks);
        if answered {
            let regions = self.regions_of_one_shard(from);
            self.resilver_mut().presence_next.0 += regions;
            self.changed = true;
        }
    }

    fn planned(&mut self, out: &mut Outbox) {
        let target = self.resilver_mut().target;
        // Writes under way that the target has taken need no copy, and hold their locks.
        let writes = self.ops.values().filter(|op| !op.is_read());
        let taken = writes
            .flat_map(|op| &op.pieces)
            .filter(|p| p.done.has(target));
        let taken: Vec<_> = taken.map(|p| p.range).collect();
        let leg = self.leg_mut(target);
        if !stands(Mechanism::FineBitmap) {
            leg.dirty.clear();
        }
        taken.into_iter().for_each(|range| leg.dirty.remove(range));
        leg.witnessed = true;
        let (store, missed) = (leg.store, leg.dirty.len_blocks());
        let rs = self.resilver_mut();
        rs.blocks_missed = missed;
        rs.phase = ResilverPhase::Copying;
        let bytes_missed = missed * u64::from(BLOCK_BYTES);
        self.trace(
            TraceEvent::Planned {
                store,
                bytes_missed,
            },
            out,
        );
        self.changed = true;
    }

    fn resilver_copies(&self) -> usize {
        self.copies
            .values()
            .filter(|c| c.purpose == CopyFor::Resilver)
            .count()
    }

    /// Keeps copies in flight; once nothing is left, flushes the target. Model: `RsCopy`,
    /// `RsFlush`.
    fn copy_more(&mut self, out: &mut Outbox) {
        self.drop_outrun_copies(out);
        let waiting: Vec<_> = self.copies.keys().copied().collect();
        waiting
            .into_iter()
            .for_each(|id| self.advance_copy(id, out));
        let busy = !self.ops.is_empty();
        let window = if busy { COPIES_BUSY_MAX } else { COPIES_MAX };
        while self.resilver_copies() < window && self.usable(self.target()) == self.target() {
            let (now, rs) = (self.now, self.resilver_mut());
            let limit = Some(rs.next_copy_at).filter(|at| *at > now);
            let at = rs.pace.held_until(now, busy).max(limit);
            let Some(range) = self.next_run() else { break };
            if let Some(at) = at {
                self.resilver_mut().cursor = range.start();
                let timer = Timer::Resilver;
                out.push(Effect::Arm { timer, at });
                return;
            }
            self.start_copy(range, out);
        }
        let Some(rs) = self.resilver.as_ref() else {
            return;
        };
        let target = rs.target;
        let copied = self.leg(target).dirty.is_empty() && self.resilver_copies() == 0;
        if copied && self.pending.is_none() {
            let store = self.leg(target).store;
            self.resilver_mut().phase = ResilverPhase::Flushing;
            self.trace(TraceEvent::RsFlush { store }, out);
            if !stands(Mechanism::JoinFlush) {
                return self.on_resilver_flushed(out);
            }
            self.start_flush(FlushFor::Resilver, Members::one(target), true, out);
        }
    }

    /// A write that the target took has outrun a copy that waits for its lock. The copy must not
    /// wait for that write: the write may wait for a member's removal, that for the target.
    fn drop_outrun_copies(&mut self, out: &mut Outbox) {
        let dirty = &self.legs[self.resilver.as_ref().expect("copying").target.index()].dirty;
        let outrun = |c: &Copy| c.waits_for_writes() && !dirty.contains_all(c.range);
        let outrun: Vec<_> = self
            .copies
            .iter()
            .filter(|(_, c)| outrun(c))
            .map(|(id, _)| *id)
            .collect();
        outrun.into_iter().for_each(|id| self.end_copy(id, out));
    }

    /// The next dirty run that no copy is at work on, within one shard.
    fn next_run(&mut self) -> Option<BlockRange> {
        let shard_blocks = self.map.shape.shard_blocks;
        let none_in_flight = self.resilver_copies() == 0;
        let rs = self.resilver.as_mut().expect("copying");
        let dirty = &self.legs[rs.target.index()].dirty;
        let run = match dirty.first_run(rs.cursor, COPY_BLOCKS_MAX) {
            Some(run) => run,
            None if none_in_flight => dirty.first_run(Lba(0), COPY_BLOCKS_MAX)?,
            None => return None,
        };
        let run = run
            .split_at_multiples(shard_blocks)
            .next()
            .expect("never empty");
        rs.cursor = run.end();
        Some(run)
    }

    fn start_copy(&mut self, range: BlockRange, out: &mut Outbox) {
        let (now, limit) = (self.now, self.config.resilver_bytes_per_s_max);
        let rs = self.resilver_mut();
        if let Some(cost_ns) = (range.len_bytes() * 1_000_000_000).checked_div(limit) {
            rs.next_copy_at = Moment(rs.next_copy_at.max(now).0.saturating_add(cost_ns));
        }
        rs.pace.on_copy(now, range.len_bytes());
        let target = Members::one(rs.target);
        let id = self.new_copy(CopyFor::Resilver, range, target);
        self.try_copy(id, out);
    }

    pub(super) fn resilver_copied(&mut self, range: BlockRange, out: &mut Outbox) {
        let now = self.now;
        let rs = self.resilver.as_mut().expect("its copy ended well");
        rs.blocks_moved += u64::from(range.blocks().0);
        let leg = &mut self.legs[rs.target.index()];
        leg.dirty.remove(range);
        if now < rs.reported_at.plus_ms(PROGRESS_MS) {
            return;
        }
        rs.reported_at = now;
        let done = rs.blocks_moved * u64::from(BLOCK_BYTES);
        let elapsed_ms = (now.since_ns(rs.started) / 1_000_000).max(1);
        out.push(Effect::Progress(Progress {
            store: leg.store,
            bytes_total: done + leg.dirty.len_blocks() * u64::from(BLOCK_BYTES),
            bytes_done: done,
            bytes_per_s: done.saturating_mul(1000) / elapsed_ms,
        }));
    }

    pub(super) fn on_resilver_flushed(&mut self, out: &mut Outbox) {
        let target = self.resilver_mut().target;
        if self.back_to_copying() {
            return;
        }
        let mut regions = std::mem::take(&mut self.resilver_mut().inherited);
        regions.retain(|r| self.homes_of_region(r).has(target));
        let rs = self.resilver_mut();
        rs.inherited = regions;
        rs.phase = ResilverPhase::Inheriting;
        self.add_marks(out);
    }

    /// As many marks as one command takes; the completion once the target has all of them.
    fn add_marks(&mut self, out: &mut Outbox) {
        let rs = self.resilver_mut();
        if rs.adding_marks {
            return;
        }
        let target = rs.target;
        let some: RegionSet = rs.inherited.iter().take(MARKS_PER_COMMAND_MAX).collect();
        if some.is_empty() {
            rs.phase = ResilverPhase::Completing;
            let what = Command::CompleteSlice(self.stamp());
            return self.send(target, Purpose::ResilverComplete, what, out);
        }
        rs.inherited.retain(|r| !some.contains(r));
        rs.adding_marks = true;
        let what = Command::AddMarks(some);
        self.send(target, Purpose::ResilverAddMarks, what, out);
    }

    /// A write that failed everywhere has made the target dirty again.
    fn back_to_copying(&mut self) -> bool {
        let target = self.resilver_mut().target;
        let again = !self.leg(target).dirty.is_empty();
        if again {
            self.cancel_flush(FlushFor::Resilver);
            self.resilver_mut().phase = ResilverPhase::Copying;
            self.changed = true;
        }
        again
    }

    /// The target took the marks, or the completion. Model: `Join`.
    pub(super) fn on_resilver_step(&mut self, step: Purpose, out: &mut Outbox) {
        let Some((phase, target)) = self.resilver.as_ref().map(|r| (r.phase, r.target)) else {
            return;
        };
        if step == Purpose::ResilverAddMarks {
            self.resilver_mut().adding_marks = false;
        }
        match (step, phase) {
            (Purpose::ResilverAddMarks, ResilverPhase::Inheriting) => self.add_marks(out),
            (Purpose::ResilverComplete, ResilverPhase::Completing) => {
                self.leg_mut(target).facts.incomplete = false;
                if self.pending.is_some() {
                    // A member is being removed: flush again and ask after that is settled.
                    self.resilver_mut().phase = ResilverPhase::Copying;
                    return;
                }
                self.resilver_mut().phase = ResilverPhase::Joining;
                let isr = self.isr.with(target);
                let store = self.leg(target).store;
                self.trace(TraceEvent::Join { store, isr }, out);
                self.ask_metad(isr, out);
            }
            (_, _) => {} // of a round that went back to copying
        }
    }

    /// The target is in the in-sync set.
    pub(super) fn resilver_joined(&mut self, at: Position, out: &mut Outbox) {
        let rs = self
            .resilver
            .take()
            .expect("only a resilver makes a store join");
        let whole = self.leg(at).dirty.is_empty() || self.leg(at).suspect;
        assert!(rs.target == at && whole, "joined with blocks missing");
        out.push(Effect::Trace(TraceEvent::Resilvered(Resilvered {
            store: self.leg(at).store,
            bytes_missed: rs.blocks_missed * u64::from(BLOCK_BYTES),
            bytes_moved: rs.blocks_moved * u64::from(BLOCK_BYTES),
            duration_ms: self.now.since_ns(rs.started) / 1_000_000,
        })));
    }

    /// A session ended. Of the target: the resilver is dropped, unless metad may have taken it in
    /// already. Of a source: its marks or presence are asked for from somebody else.
    pub(super) fn resilver_session_lost(&mut self, at: Position, out: &mut Outbox) {
        let Some((phase, target)) = self.resilver.as_ref().map(|r| (r.phase, r.target)) else {
            return;
        };
        if at == target {
            if phase != ResilverPhase::Joining {
                self.drop_resilver(out);
            }
            return;
        }
        match phase {
            ResilverPhase::Marks => self.drop_resilver(out),
            ResilverPhase::Presence => {
                let rs = self.resilver_mut();
                if rs.awaiting.has(at) {
                    rs.awaiting = Members::EMPTY; // the window is asked for again
                }
            }
            ResilverPhase::Copying
            | ResilverPhase::Flushing
            | ResilverPhase::Inheriting
            | ResilverPhase::Completing
            | ResilverPhase::Joining => {}
        }
    }

    /// Gives the target up for now. Nothing half done may go on under its session. Model: `DropRs`.
    pub(super) fn drop_resilver(&mut self, out: &mut Outbox) {
        let Some(rs) = self.resilver.take() else {
            return;
        };
        assert!(
            rs.phase != ResilverPhase::Joining,
            "metad decides about a joining target"
        );
        let at = rs.target;
        let copies = self
            .copies
            .iter()
            .filter(|(_, c)| c.purpose == CopyFor::Resilver);
        let copies: Vec<_> = copies.map(|(id, _)| *id).collect();
        copies.into_iter().for_each(|id| self.end_copy(id, out));
        self.cancel_flush(FlushFor::Resilver);
        if self.leg(at).session == Session::Open {
            self.send(at, Purpose::Close, Command::CloseSlice, out);
            self.leg_mut(at).failures += 1;
        }
        self.end_session(at, out);
        self.leave_write_set(at, out);
        let store = self.leg(at).store;
        self.trace(TraceEvent::DropRs { store }, out);
    }
}

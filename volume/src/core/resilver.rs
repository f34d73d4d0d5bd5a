//! Resilver (protocol §9): bring a store that was out up to date while the host goes on.
//!
//! ```text
//! Marks --> [Presence] --> Copying <--> Flushing --> Inheriting --> Completing --> Joining
//!   any failure of the target: dropped, its session closed, begun again from what is known
//! ```

use super::catch_up::{after_window, regions_of};
use super::copy::{Copy, CopyFor};
use super::event::{Command, Effect, Progress, Resilvered, Timer, TraceEvent};
use super::flush::FlushFor;
use super::leg::{Condemned, Session};
use super::members::{Members, Position};
use super::pace::Throttle;
use super::state::{Outbox, Phase, Purpose, Replicator};
use crate::limits::{
    COPIES_BUSY_MAX, COPIES_MAX, COPY_BLOCKS_MAX, MARKS_PER_COMMAND_MAX, PRESENCE_REGIONS,
    PROGRESS_MS,
};
use shardmap::canary::{Mechanism, stands};
use shardmap::dirty::{BlockSet, RegionSet};
use shardmap::generations::SnapshotState;
use shardmap::units::{
    BLOCK_BYTES, BlockRange, Generation, Lba, Moment, REGION_BLOCKS, RegionIndex,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResilverPhase {
    /// Asks every source, and the target, for their marks.
    Marks,
    /// Asks what the sources hold: the target is blank, or there are snapshots, and what they show
    /// need not be copied again.
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
    /// What the window's answers say.
    present: BlockSet,
    /// Of what the target missed: whether it was written since the newest snapshot is being asked.
    undecided: BlockSet,
    /// The target was given what a snapshot had while that is pending; of what changes there since it
    /// is sent the writes only.
    pub(super) snapshot: Option<Generation>,
    /// Something else has changed there.
    doubtful: bool,
    cursor: Lba,
    pub(super) blocks_missed: u64,
    pub(super) blocks_moved: u64,
    started: Moment,
    pub(super) throttle: Throttle,
    reported_at: Moment,
}

impl Replicator {
    pub(super) fn resilver_forward(&mut self, out: &mut Outbox) {
        if !self.wants_resilver() {
            return;
        }
        if self.resilver.as_ref().is_some_and(|r| r.doubtful) && !self.is_joining() {
            return self.drop_resilver(out);
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

    /// What a detach waits for may need it: a minimum in sync, a member that cannot go before.
    pub(super) fn wants_resilver(&self) -> bool {
        match self.phase {
            Phase::Serving => true,
            Phase::Detaching => self.detach.is_draining() && !self.ops.is_empty(),
            Phase::New | Phase::Attaching | Phase::Failed | Phase::Ended => false,
        }
    }

    /// What a pending snapshot has has changed by other means than a write that the target gets.
    pub(super) fn doubt_target(&mut self, snapshot: Generation) {
        if let Some(rs) = self
            .resilver
            .as_mut()
            .filter(|r| r.snapshot == Some(snapshot))
        {
            rs.doubtful = true;
            self.changed = true;
        }
    }

    /// metad was asked to take the target in.
    pub(super) fn is_joining(&self) -> bool {
        let joining = |r: &Resilver| r.phase == ResilverPhase::Joining;
        self.resilver.as_ref().is_some_and(joining)
    }

    /// Suspects go first, changes are settled, and every member has a session.
    pub(super) fn may_resilver(&self) -> bool {
        self.pending.is_none()
            && self.usable(self.isr) == self.isr
            && self.isr.iter().all(|p| self.is_source(p))
            && self.is_stamped()
            && self.reconcile.lets_resilver()
            && self
                .generations
                .let_resilver(self.now, self.config.snapshot_stuck_ms)
    }

    /// A member that only failed a write which is still held is a good source: what it lacks was
    /// never acknowledged and is locked. It may even be that it cannot go before the target comes.
    fn is_source(&self, at: Position) -> bool {
        matches!(self.leg(at).condemned, None | Some(Condemned::Diverged))
    }

    /// Takes in the first store that is out, open, and has caught up. Model: `StartRs`.
    fn start_resilver(&mut self, out: &mut Outbox) {
        if self.catch_up.is_some() || !self.may_resilver() {
            return;
        }
        let outside = self.all.minus(self.isr);
        let head = self.head;
        let ready = |p: &Position| {
            let leg = self.leg(*p);
            leg.session == Session::Open && leg.generations.head == head && self.has_caught_up(*p)
        };
        let Some(target) = outside.iter().find(ready) else {
            return;
        };
        self.take_in(target, None, out);
    }

    /// The target gets all writes from here on. `snapshot`: one that is pending, which it was given.
    pub(super) fn take_in(
        &mut self,
        target: Position,
        snapshot: Option<Generation>,
        out: &mut Outbox,
    ) {
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
            present: BlockSet::new(),
            undecided: BlockSet::new(),
            snapshot,
            doubtful: false,
            cursor: Lba(0),
            blocks_missed: 0,
            blocks_moved: 0,
            started: self.now,
            throttle: Throttle::new(self.now),
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
        if self.is_blank(target) {
            self.resilver_mut().phase = ResilverPhase::Presence;
            return self.ask_presence(out);
        }
        if !self.leg(target).witnessed {
            let mut regions = self.resilver_mut().inherited.clone();
            regions.merge(&self.resilver_mut().own);
            regions.retain(|r| self.homes_of_region(r).has(target));
            let size_blocks = self.map.size_blocks;
            let leg = self.leg_mut(target);
            regions
                .iter()
                .for_each(|r| leg.dirty.insert_region(r, size_blocks));
        }
        if self.generations.newest_complete() == Generation(0) {
            return self.planned(out);
        }
        self.resilver_mut().phase = ResilverPhase::Presence;
        self.ask_presence(out);
    }

    /// The target is blank: all that is present anywhere is dirty.
    fn is_blank(&self, target: Position) -> bool {
        let leg = self.leg(target);
        leg.facts.incomplete && leg.planned_for != leg.incarnation
    }

    /// One window of regions at a time, from a source of its shard and from the target.
    fn ask_presence(&mut self, out: &mut Outbox) {
        let rs = self.resilver_mut();
        if !rs.awaiting.is_empty() {
            return;
        }
        let (target, turn) = (rs.target, rs.started.0);
        let blank = self.is_blank(target);
        loop {
            let from = self.resilver_mut().presence_next;
            let Some(window) = self.window_of(from) else {
                break;
            };
            let homes = self.homes(window);
            let rs = self.resilver.as_ref().expect("asks");
            let missed = self.leg(target).dirty.intersects(window) || !rs.undecided.is_empty();
            if !homes.has(target) || !blank && !missed {
                self.resilver_mut().presence_next = after_window(window);
                continue;
            }
            let Some(source) = self.choose_reader(homes, Members::EMPTY, turn) else {
                return;
            };
            let asked = Members::one(source).with(target);
            for at in asked.iter() {
                let what = Command::ReadPresence {
                    from,
                    regions: regions_of(window),
                    after: self.generations.newest_complete(),
                    upto: Generation(0),
                    shown: false,
                };
                self.send(at, Purpose::ResilverPresence(from), what, out);
            }
            let rs = self.resilver.as_mut().expect("asks");
            if !blank {
                // What is added from here on stays, whatever the answers say.
                rs.undecided
                    .merge(&self.legs[target.index()].dirty.take(window));
            }
            rs.present.clear();
            rs.awaiting = asked;
            return;
        }
        let incarnation = self.leg(target).incarnation;
        let leg = self.leg_mut(target);
        leg.planned_for = incarnation;
        leg.dirty.optimize();
        self.planned(out);
    }

    pub(super) fn regions_of_one_shard(&self, from: RegionIndex) -> u32 {
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
        rs.present.merge(blocks);
        if !rs.awaiting.is_empty() {
            return;
        }
        self.moves += 1;
        let rs = self.resilver_mut();
        let (target, mut present) = (rs.target, std::mem::take(&mut rs.present));
        let undecided = std::mem::take(&mut rs.undecided);
        if !self.is_blank(target) {
            present.intersect(&undecided);
        }
        self.leg_mut(target).dirty.merge(&present);
        let window = self.window_of(from).expect("was asked about");
        self.resilver_mut().presence_next = after_window(window);
        self.changed = true;
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
            let at = rs.throttle.held_until(now, busy);
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
        let (now, limit, head) = (self.now, self.config.resilver_bytes_per_s_max, self.head);
        let rs = self.resilver_mut();
        rs.throttle.on_copy(now, range.len_bytes(), limit);
        let target = Members::one(rs.target);
        let id = self.new_copy(CopyFor::Resilver, (range, head), target);
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
            return self.complete_target(out);
        }
        rs.inherited.retain(|r| !some.contains(r));
        rs.adding_marks = true;
        let what = Command::AddMarks(some);
        self.send(target, Purpose::ResilverAddMarks, what, out);
    }

    /// A snapshot that was pending when the target was taken in may be complete by now. It joins with
    /// the same, or with one that is still pending everywhere.
    fn complete_target(&mut self, out: &mut Outbox) {
        let target = self.resilver_mut().target;
        let what = if let Some(snapshot) = self.unsealed(target) {
            let what = Command::CompleteGeneration(snapshot);
            return self.send(target, Purpose::ResilverSeal(snapshot), what, out);
        } else {
            let stamp = self.stamp(); // which lacks the target: it does not vouch for its own membership
            self.leg_mut(target).stamp_with(stamp);
            Command::CompleteSlice(stamp)
        };
        self.send(target, Purpose::ResilverComplete, what, out);
    }

    /// A snapshot that is complete on the members and pending on the target.
    fn unsealed(&self, target: Position) -> Option<Generation> {
        let slice = &self.leg(target).generations.snapshots;
        let pending = |s: &Generation| slice.get(s) == Some(&SnapshotState::Pending);
        self.generations.known().complete().find(pending)
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
    pub(super) fn on_resilver_step(&mut self, at: Position, step: Purpose, out: &mut Outbox) {
        if let Purpose::ResilverSeal(snapshot) = step {
            self.on_sealed(at, snapshot);
        }
        let Some((phase, target)) = self.resilver.as_ref().map(|r| (r.phase, r.target)) else {
            return;
        };
        if step == Purpose::ResilverAddMarks {
            self.resilver_mut().adding_marks = false;
        }
        match (step, phase) {
            (Purpose::ResilverAddMarks, ResilverPhase::Inheriting) => self.add_marks(out),
            (Purpose::ResilverSeal(_), ResilverPhase::Completing) => self.complete_target(out),
            (Purpose::ResilverComplete, ResilverPhase::Completing) => {
                self.leg_mut(target).facts.incomplete = false;
                if self.unsealed(target).is_some() {
                    return self.complete_target(out);
                }
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
        self.leg_mut(at).dirty.merge(&rs.undecided);
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

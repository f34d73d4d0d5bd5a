//! A store that was out lacks the snapshots that were made meanwhile. Before it is resilvered it is given
//! them, oldest first: they never change, so it is not sent the host's writes yet and needs no locks.
//!
//! ```text
//! [Marks] --> Beginning --> ( Presence --> Copying --> Flushing --> Sealing ) for each --> resilver
//!   any failure of the store: dropped, its session closed, begun again after the last sealed one
//! ```
//!
//! A snapshot that is pending is given to it last, and only if the store may be what that snapshot waits
//! for: then it goes over into the resilver at once, which sends it the writes that are under way.
//!
//! A snapshot is complete on a store only once it is right there, and then all earlier ones are. What a
//! later one shows differs only in blocks that the store missed (its `dirty`, at the head) and that it
//! or the others wrote in between.

use super::copy::CopyFor;
use super::event::{Command, Effect, Timer, TraceEvent};
use super::flush::FlushFor;
use super::leg::Session;
use super::members::{Members, Position};
use super::pace::Throttle;
use super::state::{Outbox, Purpose, Replicator};
use crate::limits::{COPIES_BUSY_MAX, COPIES_MAX, COPY_BLOCKS_MAX};
use shardmap::canary::{Mechanism, stands};
use shardmap::dirty::{BlockSet, RegionSet};
use shardmap::generations::SnapshotState;
use shardmap::units::{BlockRange, Generation, Lba, RegionIndex};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CatchUpPhase {
    Marks,
    Beginning,
    Presence,
    Copying,
    Flushing,
    Sealing,
}

/// What a store lacks.
#[derive(Debug, Default)]
struct Lack {
    /// Generations to begin, ascending; the last is the head.
    begins: VecDeque<Generation>,
    /// Snapshots to give it, each after the one before it; zero: after nothing.
    steps: VecDeque<(Generation, Generation)>,
    /// The last of them is pending.
    pending: Option<Generation>,
}

#[derive(Debug)]
pub(super) struct CatchUp {
    pub(super) target: Position,
    phase: CatchUpPhase,
    lack: Lack,
    /// Whose answer is missing in the phases that ask.
    awaiting: Members,
    /// The first region that was not asked about.
    next: RegionIndex,
    /// What the window's answers say.
    present: BlockSet,
    /// Of the snapshot: to be copied.
    todo: BlockSet,
    cursor: Lba,
    /// A write of the pending snapshot has ended, and the store may lack it.
    outdated: bool,
    pub(super) throttle: Throttle,
}

impl Replicator {
    fn lack_of(&self, at: Position) -> Lack {
        let leg = self.leg(at);
        let (slice, known) = (&leg.generations, self.generations.known());
        let sure_up_to = match leg.caught_up {
            _ if !leg.facts.incomplete => Generation(u32::MAX),
            Some((life, snapshot)) if Some(life) == leg.incarnation => snapshot,
            Some(_) | None => Generation(0),
        };
        let has = |s: &Generation| {
            *s <= sure_up_to && slice.snapshots.get(s) == Some(&SnapshotState::Complete)
        };
        let mut after = known.complete().rfind(has).unwrap_or_default();
        let pending = self.generations.draining();
        let missing = known.complete().filter(|s| *s > after).chain(pending);
        let missing = missing.collect::<Vec<_>>();
        let steps = missing
            .into_iter()
            .map(|s| (std::mem::replace(&mut after, s), s));
        let all = known.snapshots.keys().copied().chain([known.head]);
        Lack {
            steps: steps.collect(),
            begins: all.filter(|g| *g > slice.head).collect(),
            pending,
        }
    }

    /// Whether a store that is out has every generation that it must have to be resilvered.
    pub(super) fn has_caught_up(&self, at: Position) -> bool {
        let lack = self.lack_of(at);
        lack.begins.is_empty() && lack.steps.is_empty()
    }

    pub(super) fn catch_up_forward(&mut self, out: &mut Outbox) {
        if !self.wants_resilver() {
            return;
        }
        let draining = self.generations.draining();
        let over = |c: &CatchUp| c.lack.pending.is_some() && c.lack.pending != draining;
        if self
            .catch_up
            .as_ref()
            .is_some_and(|c| c.outdated || over(c))
        {
            return self.drop_catch_up(out);
        }
        match self.catch_up.as_ref().map(|c| c.phase) {
            None => self.start_catch_up(out),
            Some(CatchUpPhase::Marks) => self.catch_up_marks_forward(out),
            Some(CatchUpPhase::Presence) => self.ask_snapshot_presence(out),
            Some(CatchUpPhase::Copying) => self.copy_snapshot(out),
            Some(CatchUpPhase::Beginning | CatchUpPhase::Flushing | CatchUpPhase::Sealing) => {}
        }
    }

    fn start_catch_up(&mut self, out: &mut Outbox) {
        if self.resilver.is_some() || !self.may_resilver() {
            return;
        }
        let outside = self.all.minus(self.isr);
        let lacks = |at: &Position| {
            let leg = self.leg(*at);
            let ours = leg.generations.head <= self.generations.known().head;
            leg.session == Session::Open && ours && !self.has_caught_up(*at)
        };
        let Some(target) = outside.iter().find(lacks) else {
            return;
        };
        let lack = self.lack_of(target);
        let leg = self.leg(target);
        let (store, snapshots) = (leg.store, u32::try_from(lack.steps.len()).expect("bounded"));
        let marks = !leg.witnessed && !leg.facts.incomplete && snapshots > 0;
        self.catch_up = Some(CatchUp {
            target,
            phase: CatchUpPhase::Marks,
            lack,
            awaiting: Members::EMPTY,
            next: RegionIndex(0),
            present: BlockSet::new(),
            todo: BlockSet::new(),
            cursor: Lba(0),
            outdated: false,
            throttle: Throttle::new(self.now),
        });
        self.trace(TraceEvent::CatchUp { store, snapshots }, out);
        if !marks {
            return self.begin_next(out);
        }
        let asked = self.isr.with(target);
        for at in asked.iter() {
            let from = RegionIndex(0);
            self.send(at, Purpose::CatchUpMarks, Command::ReadMarks { from }, out);
        }
        self.catch_up_mut().awaiting = asked;
    }

    /// Whether a store is being given the snapshot, or something on top of it.
    pub(super) fn catches_up_with(&self, snapshot: Generation) -> bool {
        let steps = self.catch_up.iter().flat_map(|c| &c.lack.steps);
        steps
            .copied()
            .any(|(after, s)| after == snapshot || s == snapshot)
    }

    /// A write of a pending snapshot has ended: a store that is being given it was not sent it.
    pub(super) fn doubt_catch_up(&mut self, snapshot: Generation) {
        let concerned = |c: &&mut CatchUp| c.lack.pending == Some(snapshot);
        if let Some(catch_up) = self.catch_up.as_mut().filter(concerned) {
            catch_up.outdated = true;
        }
    }

    fn catch_up_mut(&mut self) -> &mut CatchUp {
        self.catch_up.as_mut().expect("a store catches up")
    }

    /// What it missed is known by marks only: those of the members and its own.
    pub(super) fn on_catch_up_marks(
        &mut self,
        at: Position,
        marks: &RegionSet,
        more: Option<RegionIndex>,
        out: &mut Outbox,
    ) {
        let asked = |c: &&CatchUp| c.phase == CatchUpPhase::Marks && c.awaiting.has(at);
        let Some(target) = self.catch_up.as_ref().filter(asked).map(|c| c.target) else {
            return;
        };
        let size_blocks = self.map.size_blocks;
        for region in marks.iter() {
            if self.homes_of_region(region).has(target) {
                self.leg_mut(target)
                    .dirty
                    .insert_region(region, size_blocks);
            }
        }
        if let Some(from) = more {
            return self.send(at, Purpose::CatchUpMarks, Command::ReadMarks { from }, out);
        }
        self.catch_up_mut().awaiting.remove(at);
        self.changed = true;
    }

    fn catch_up_marks_forward(&mut self, out: &mut Outbox) {
        let members = self.isr;
        let catch_up = self.catch_up_mut();
        catch_up.awaiting = catch_up.awaiting.and(members.with(catch_up.target));
        if catch_up.awaiting.is_empty() {
            let target = catch_up.target;
            self.leg_mut(target).witnessed = true;
            self.begin_next(out);
        }
    }

    /// It begins the next generation that it lacks, or is given the next snapshot.
    fn begin_next(&mut self, out: &mut Outbox) {
        let catch_up = self.catch_up_mut();
        let target = catch_up.target;
        catch_up.phase = CatchUpPhase::Beginning;
        match catch_up.lack.begins.front().copied() {
            Some(head) => {
                let what = Command::BeginGeneration(head);
                self.send(target, Purpose::CatchUpBegin(head), what, out);
            }
            None => self.next_snapshot(),
        }
    }

    fn next_snapshot(&mut self) {
        self.changed = true;
        let catch_up = self.catch_up_mut();
        if catch_up.lack.steps.is_empty() {
            self.catch_up = None;
            return;
        }
        catch_up.phase = CatchUpPhase::Presence;
        catch_up.next = RegionIndex(0);
        catch_up.awaiting = Members::EMPTY;
        catch_up.todo.clear();
        catch_up.cursor = Lba(0);
    }

    pub(super) fn on_catch_up_begun(&mut self, at: Position, head: Generation, out: &mut Outbox) {
        self.on_begun(at, head);
        let begun = self.catch_up_mut().lack.begins.pop_front();
        assert_eq!(begun, Some(head), "position {at}");
        self.begin_next(out);
    }

    /// It has a snapshot for good.
    pub(super) fn on_catch_up_sealed(
        &mut self,
        at: Position,
        snapshot: Generation,
        out: &mut Outbox,
    ) {
        self.on_sealed(at, snapshot);
        let step = self.catch_up_mut().lack.steps.pop_front();
        assert_eq!(step.map(|(_, s)| s), Some(snapshot), "position {at}");
        let leg = self.leg_mut(at);
        leg.caught_up = leg.incarnation.map(|life| (life, snapshot));
        let store = leg.store;
        self.trace(TraceEvent::CaughtUp { store, snapshot }, out);
        self.next_snapshot();
    }

    /// One window of regions at a time, from a member and from the store itself.
    fn ask_snapshot_presence(&mut self, out: &mut Outbox) {
        let catch_up = self.catch_up_mut();
        if !catch_up.awaiting.is_empty() {
            return;
        }
        let (target, (after, upto)) = (catch_up.target, catch_up.lack.steps[0]);
        loop {
            let from = self.catch_up_mut().next;
            let Some(window) = self.window_of(from) else {
                break;
            };
            let homes = self.homes(window);
            let leg = self.leg(target);
            let missed = leg.facts.incomplete || leg.dirty.intersects(window);
            if !homes.has(target) || !missed {
                self.catch_up_mut().next = after_window(window);
                continue;
            }
            let Some(source) = self.choose_reader(homes, Members::EMPTY, u64::from(upto.0)) else {
                return;
            };
            let asked = Members::one(source).with(target);
            for at in asked.iter() {
                let what = Command::ReadPresence {
                    from,
                    regions: regions_of(window),
                    after,
                    upto,
                    shown: false,
                };
                self.send(at, Purpose::CatchUpPresence(from), what, out);
            }
            let catch_up = self.catch_up_mut();
            catch_up.present.clear();
            catch_up.awaiting = asked;
            return;
        }
        let catch_up = self.catch_up_mut();
        catch_up.todo.optimize();
        catch_up.phase = CatchUpPhase::Copying;
        self.changed = true;
    }

    pub(super) fn on_catch_up_presence(
        &mut self,
        at: Position,
        from: RegionIndex,
        blocks: &BlockSet,
    ) {
        let asked = |c: &&mut CatchUp| {
            c.phase == CatchUpPhase::Presence && c.next == from && c.awaiting.has(at)
        };
        let Some(catch_up) = self.catch_up.as_mut().filter(asked) else {
            return;
        };
        catch_up.awaiting.remove(at);
        catch_up.present.merge(blocks);
        if !catch_up.awaiting.is_empty() {
            return;
        }
        self.moves += 1;
        let catch_up = self.catch_up_mut();
        let (target, mut present) = (catch_up.target, std::mem::take(&mut catch_up.present));
        let leg = self.leg(target);
        if !leg.facts.incomplete {
            present.intersect(&leg.dirty);
        }
        if !stands(Mechanism::CatchUp) {
            present.clear();
        }
        let window = self.window_of(from).expect("was asked about");
        let catch_up = self.catch_up_mut();
        catch_up.todo.merge(&present);
        catch_up.next = after_window(window);
        self.changed = true;
    }

    fn snapshot_copies(&self) -> usize {
        let copies = self.copies.values();
        copies.filter(|c| c.purpose == CopyFor::CatchUp).count()
    }

    /// Keeps copies in flight; once nothing is left, flushes the store.
    fn copy_snapshot(&mut self, out: &mut Outbox) {
        let waiting: Vec<_> = self.copies.keys().copied().collect();
        waiting
            .into_iter()
            .for_each(|id| self.advance_copy(id, out));
        let busy = !self.ops.is_empty();
        let window = if busy { COPIES_BUSY_MAX } else { COPIES_MAX };
        while self.snapshot_copies() < window {
            let (now, none_in_flight) = (self.now, self.snapshot_copies() == 0);
            let Some(catch_up) = self.catch_up.as_mut() else {
                return;
            };
            let held = catch_up.throttle.held_until(now, busy);
            let Some(range) = catch_up.next_run(none_in_flight, self.map.shape.shard_blocks) else {
                break;
            };
            if let Some(at) = held {
                catch_up.cursor = range.start();
                let timer = Timer::Resilver;
                out.push(Effect::Arm { timer, at });
                return;
            }
            let limit = self.config.resilver_bytes_per_s_max;
            catch_up.throttle.on_copy(now, range.len_bytes(), limit);
            let target = Members::one(catch_up.target);
            let snapshot = catch_up.lack.steps[0].1;
            let id = self.new_copy(CopyFor::CatchUp, (range, snapshot), target);
            self.advance_copy(id, out);
        }
        let Some(catch_up) = self.catch_up.as_mut() else {
            return;
        };
        if catch_up.todo.is_empty() && self.snapshot_copies() == 0 {
            let catch_up = self.catch_up_mut();
            let snapshot = catch_up.lack.steps[0].1;
            if catch_up.lack.pending == Some(snapshot) {
                return self.go_over(snapshot, out);
            }
            catch_up.phase = CatchUpPhase::Flushing;
            let target = Members::one(catch_up.target);
            self.start_flush(FlushFor::CatchUp, target, true, out);
        }
    }

    /// It has a pending snapshot but for the writes under way, which it is sent now.
    fn go_over(&mut self, snapshot: Generation, out: &mut Outbox) {
        if !self.may_resilver() {
            return self.drop_catch_up(out);
        }
        let target = self.catch_up.take().expect("a store catches up").target;
        self.take_in(target, Some(snapshot), out);
    }

    pub(super) fn snapshot_copied(&mut self, range: BlockRange) {
        self.catch_up_mut().todo.remove(range);
    }

    pub(super) fn on_catch_up_flushed(&mut self, out: &mut Outbox) {
        let catch_up = self.catch_up_mut();
        catch_up.phase = CatchUpPhase::Sealing;
        let (target, (_, snapshot)) = (catch_up.target, catch_up.lack.steps[0]);
        let what = Command::CompleteGeneration(snapshot);
        self.send(target, Purpose::CatchUpSeal(snapshot), what, out);
    }

    /// A session ended: of the store that catches up, or of one that was asked.
    pub(super) fn catch_up_session_lost(&mut self, at: Position, out: &mut Outbox) {
        let Some(catch_up) = self.catch_up.as_mut() else {
            return;
        };
        let asked = catch_up.awaiting.has(at);
        if at == catch_up.target || asked && catch_up.phase == CatchUpPhase::Marks {
            self.drop_catch_up(out);
        } else if asked {
            catch_up.awaiting = Members::EMPTY; // the window is asked for again
        }
    }

    /// Gives it up for now. Nothing half done may go on under the store's session.
    pub(super) fn drop_catch_up(&mut self, out: &mut Outbox) {
        let Some(catch_up) = self.catch_up.take() else {
            return;
        };
        let copies = self.copies.iter();
        let copies = copies.filter(|(_, c)| c.purpose == CopyFor::CatchUp);
        let copies: Vec<_> = copies.map(|(id, _)| *id).collect();
        copies.into_iter().for_each(|id| self.end_copy(id, out));
        self.cancel_flush(FlushFor::CatchUp);
        let at = catch_up.target;
        if self.leg(at).session == Session::Open {
            self.send(at, Purpose::Close, Command::CloseSlice, out);
            self.leg_mut(at).failures += 1;
        }
        self.end_session(at, out);
        self.flush_leg_left(at, out);
        self.changed = true;
    }

    /// Regions of one shard that are asked about at a time.
    pub(super) fn window_of(&self, from: RegionIndex) -> Option<BlockRange> {
        let first = self.region_range(from)?;
        let last = RegionIndex(from.0 + self.regions_of_one_shard(from) - 1);
        let end = self
            .region_range(last)
            .map_or(self.map.size_blocks, |last| last.end().0);
        let blocks = u32::try_from(end - first.start().0).expect("a few regions");
        BlockRange::new(first.start(), shardmap::units::Blocks(blocks))
    }
}

pub(super) fn regions_of(window: BlockRange) -> u32 {
    u32::try_from(window.regions().count()).expect("a few")
}

pub(super) fn after_window(window: BlockRange) -> RegionIndex {
    let last = window.regions().last().expect("never empty");
    RegionIndex(last.0 + 1)
}

impl CatchUp {
    /// The next run to be copied that no copy is at work on, within one shard.
    fn next_run(&mut self, none_in_flight: bool, shard_blocks: u32) -> Option<BlockRange> {
        let run = match self.todo.first_run(self.cursor, COPY_BLOCKS_MAX) {
            Some(run) => run,
            None if none_in_flight => self.todo.first_run(Lba(0), COPY_BLOCKS_MAX)?,
            None => return None,
        };
        let run = run.split_at_multiples(shard_blocks).next();
        let run = run.expect("never empty");
        self.cursor = run.end();
        Some(run)
    }
}

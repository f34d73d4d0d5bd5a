//! Snapshots (protocol §10): a generation ends and the next one begins, without a pause.
//!
//! ```text
//! Beginning --every store that counts has begun the head--> Draining --writes of before have ended,
//!   regions are equal--> Flushing --all of it is durable--> Completing --every store that counts says
//!   so--> told
//! ```
//!
//! If snapshots of several volumes are to be of one moment (ADR 0012), writes wait in between, untagged:
//!
//! ```text
//! Beginning --everybody has begun the head--> Holding --metad: all volumes hold; or the deadline--> Draining
//! ```
//!
//! A write carries the generation that was the head when it got its lock. Locks order overlapping
//! writes, so no block sees a later generation before an earlier one; and what was answered before
//! another write began is in every snapshot that has that other write.
//!
//! After a crash in between the next attach goes on: everybody begins before anything is served, marked
//! regions are made equal in both generations, and the snapshot is completed. If one member has it
//! complete already, all members have all of it.

use super::event::{Command, Effect, FailReason, Fault, Timer, TraceEvent};
use super::flush::FlushFor;
use super::leg::{Condemned, Session};
use super::members::{Members, Position};
use super::state::{Outbox, Phase, Purpose, Replicator};
use shardmap::canary::{Mechanism, stands};
use shardmap::generations::{SnapshotState, SnapshotStep, VolumeGenerations};
use shardmap::units::{Generation, Moment};

/// How long to wait for a store to have room for another snapshot.
const NO_ROOM_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Beginning,
    Holding,
    Draining,
    Flushing,
    Completing,
}

/// A snapshot that is pending.
#[derive(Clone, Copy, Debug)]
struct Barrier {
    snapshot: Generation,
    stage: Stage,
    /// Sent the step and not answered.
    asked: Members,
    /// An earlier client's: what it had written is durable only after a flush that is not ours to spare.
    inherited: bool,
    /// When it began to drain.
    since: Moment,
    /// metad does not know yet that all volumes of its group hold their writes.
    hold: bool,
    /// Writes waited until metad knew.
    held: bool,
}

/// The volume's generations as this client knows them.
#[derive(Debug)]
pub(super) struct Generations {
    /// As metad has them, and a snapshot that we have completed is complete.
    known: VolumeGenerations,
    barrier: Option<Barrier>,
    /// What metad was told of the last one that we have completed.
    told: Option<(Generation, SnapshotStep)>,
}

impl Generations {
    pub(super) fn new(mut known: VolumeGenerations) -> Self {
        assert!(known.is_sound(), "{known:?}");
        let hold = std::mem::take(&mut known.hold);
        let barrier = known.pending().map(|snapshot| Barrier {
            snapshot,
            stage: Stage::Beginning,
            asked: Members::EMPTY,
            inherited: true,
            since: Moment::default(),
            hold,
            held: false,
        });
        Self {
            known,
            barrier,
            told: None,
        }
    }

    /// What writes carry before anything is begun.
    pub(super) fn tag(known: &VolumeGenerations) -> Generation {
        known.pending().unwrap_or(known.head)
    }

    pub(super) const fn known(&self) -> &VolumeGenerations {
        &self.known
    }

    /// The newest complete snapshot; zero: there is none.
    pub(super) fn newest_complete(&self) -> Generation {
        self.known.complete().next_back().unwrap_or_default()
    }

    /// The snapshot whose writes are under way, once new ones carry the head.
    pub(super) fn draining(&self) -> Option<Generation> {
        let draining = self.barrier.filter(|b| b.stage == Stage::Draining);
        draining.map(|b| b.snapshot)
    }

    /// Whether writes wait for other volumes.
    pub(super) fn is_holding(&self) -> bool {
        self.barrier.is_some_and(|b| b.stage == Stage::Holding)
    }

    /// Whether a snapshot is not durable everywhere.
    pub(super) fn is_unsealed(&self) -> bool {
        self.barrier.is_some_and(|b| b.stage != Stage::Completing)
    }

    /// Whether a store that is out may be brought up to date now. While a snapshot is pending only if
    /// that may be what its writes wait for: it costs such a store space.
    pub(super) fn let_resilver(&self, now: Moment, stuck_ms: u64) -> bool {
        self.barrier
            .is_none_or(|b| b.stage == Stage::Draining && now >= b.since.plus_ms(stuck_ms))
    }

    /// The commands of an ended session are not answered.
    pub(super) fn forget_asked(&mut self, at: Position) {
        if let Some(barrier) = &mut self.barrier {
            barrier.asked.remove(at);
        }
    }

    /// Whether an in-sync store can have these.
    fn fit(&self, slice: &VolumeGenerations) -> bool {
        let pending = self.barrier.map(|b| b.snapshot);
        let behind = |(snapshot, state): (&Generation, &SnapshotState)| {
            let known = self.known.snapshots.contains_key(snapshot);
            *state == SnapshotState::Pending && known && pending != Some(*snapshot)
        };
        let head = slice.head == self.known.head || pending == Some(slice.head);
        head && !slice.snapshots.iter().any(behind)
    }

    /// Whether metad can have come to this from what is known.
    fn leads_to(&self, new: &VolumeGenerations) -> bool {
        let next = new.pending() == Some(self.known.head) && self.barrier.is_none();
        new.is_sound() && (new.head == self.known.head || next)
    }
}

impl Replicator {
    /// metad has made or deleted a snapshot.
    pub(super) fn on_generations(&mut self, new: VolumeGenerations, out: &mut Outbox) {
        self.hear_of_cut(&new, out);
        // Operations that a leaving client still holds may need a store that can be given only
        // snapshots that there are.
        let live = match self.phase {
            Phase::New | Phase::Attaching | Phase::Serving => true,
            Phase::Detaching => self.detach.is_draining(),
            Phase::Failed | Phase::Ended => false,
        };
        if !live || !self.generations.leads_to(&new) {
            return;
        }
        let unfinished = self.generations.barrier.map(|b| b.snapshot);
        if unfinished.is_some_and(|s| !new.snapshots.contains_key(&s)) {
            // It was deleted, so it was complete: a successor has finished it.
            return self.fail(FailReason::Fenced, out);
        }
        let known = &mut self.generations.known.snapshots;
        let gone = known.keys().filter(|s| !new.snapshots.contains_key(s));
        let gone: Vec<_> = gone.copied().collect();
        known.retain(|s, _| !gone.contains(s));
        if gone.into_iter().any(|s| self.catches_up_with(s)) {
            self.drop_catch_up(out);
        }
        if new.head > self.generations.known.head {
            return self.begin_snapshot(new.head, new.hold, out);
        }
        let told = self.generations.told;
        if let Some((snapshot, step)) = told.filter(|(s, _)| new.pending() == Some(*s)) {
            out.push(Effect::Snapshot(snapshot, step));
        }
    }

    fn begin_snapshot(&mut self, head: Generation, hold: bool, out: &mut Outbox) {
        let snapshot = self.generations.known.head;
        self.generations.known.begin(head);
        self.generations.barrier = Some(Barrier {
            snapshot,
            stage: Stage::Beginning,
            asked: Members::EMPTY,
            inherited: false,
            since: self.now,
            hold,
            held: false,
        });
        // Begun again, it goes on from where it is. A store that catches up is given this one next.
        if !self.is_joining() {
            self.drop_resilver(out);
        }
        self.changed = true;
    }

    /// Goes on with a snapshot that is pending.
    pub(super) fn snapshot_forward(&mut self, out: &mut Outbox) {
        let live = match self.phase {
            Phase::Serving => true,
            Phase::Detaching => self.detach.is_draining(),
            Phase::New | Phase::Attaching | Phase::Failed | Phase::Ended => false,
        };
        let Some(barrier) = self.generations.barrier.filter(|_| live) else {
            return;
        };
        match barrier.stage {
            Stage::Beginning => {
                if self.have_begun(out) {
                    self.hold_or_drain(out);
                }
            }
            Stage::Holding => {}
            Stage::Draining => {
                if self.has_drained(barrier.snapshot) {
                    self.barrier_mut().stage = Stage::Flushing;
                    if !stands(Mechanism::SnapshotFlush) {
                        return self.on_snapshot_flushed(out);
                    }
                    let over = self.write_set();
                    self.start_flush(FlushFor::Snapshot, over, barrier.inherited, out);
                }
            }
            Stage::Flushing => {}
            Stage::Completing => self.complete_members(barrier.snapshot, out),
        }
    }

    fn barrier_mut(&mut self) -> &mut Barrier {
        let barrier = self.generations.barrier.as_mut();
        barrier.expect("a snapshot is pending")
    }

    /// Whether every store that counts has begun the head durably; those that have not are told to.
    /// True if no snapshot is pending.
    pub(super) fn have_begun(&mut self, out: &mut Outbox) -> bool {
        let Some(barrier) = self.generations.barrier else {
            return true;
        };
        let head = self.generations.known.head;
        let members = self.ack_set();
        let missing = members
            .iter()
            .filter(|at| self.leg(*at).generations.head < head);
        let missing: Members = missing.collect();
        let ask = self.usable(missing).minus(barrier.asked);
        self.barrier_mut().asked = barrier.asked.or(ask);
        for at in ask.iter() {
            let what = Command::BeginGeneration(head);
            self.send(at, Purpose::Begin(head), what, out);
        }
        missing.is_empty() || !stands(Mechanism::BeginAll)
    }

    /// Everybody has begun the head.
    fn hold_or_drain(&mut self, out: &mut Outbox) {
        let (now, hold_ms) = (self.now, self.config.snapshot_hold_ms);
        let barrier = self.barrier_mut();
        if !barrier.hold {
            return self.switch(Stage::Draining, out);
        }
        barrier.stage = Stage::Holding;
        let snapshot = barrier.snapshot;
        let (timer, at) = (Timer::Hold, now.plus_ms(hold_ms));
        out.push(Effect::Arm { timer, at });
        out.push(Effect::Snapshot(snapshot, SnapshotStep::Held));
    }

    /// metad knows that all volumes of the group hold their writes, or has given the group up. Also while
    /// the volume is detached: its last writes wait for this.
    fn hear_of_cut(&mut self, new: &VolumeGenerations, out: &mut Outbox) {
        let cut = |b: &&mut Barrier| b.hold && !new.hold && new.head.0 > b.snapshot.0;
        let Some(barrier) = self.generations.barrier.as_mut().filter(cut) else {
            return;
        };
        barrier.hold = false;
        if barrier.stage == Stage::Holding {
            barrier.held = true;
            self.let_writes_go(out);
        }
    }

    /// The others take too long.
    pub(super) fn on_hold_timer(&mut self, out: &mut Outbox) {
        if self.generations.is_holding() {
            self.let_writes_go(out);
        }
    }

    fn let_writes_go(&mut self, out: &mut Outbox) {
        self.switch(Stage::Draining, out);
        self.start_held_ops(out);
    }

    /// From here on writes carry the head.
    fn switch(&mut self, stage: Stage, out: &mut Outbox) {
        let head = self.generations.known.head;
        self.head = head;
        let now = self.now;
        let barrier = self.barrier_mut();
        (barrier.stage, barrier.since) = (stage, now);
        self.trace(TraceEvent::Begun { head }, out);
        let (timer, at) = (Timer::Snapshot, now.plus_ms(self.config.snapshot_stuck_ms));
        out.push(Effect::Arm { timer, at });
        self.changed = true;
    }

    /// The volume is about to serve with a snapshot that an earlier client has not completed, begun by
    /// every member.
    pub(super) fn resume_snapshot(&mut self, out: &mut Outbox) {
        let Some(barrier) = self.generations.barrier else {
            return;
        };
        let complete = |at: Position| {
            let state = self.leg(at).generations.snapshots.get(&barrier.snapshot);
            state == Some(&SnapshotState::Complete)
        };
        // It is complete anywhere only if it was durable on every member.
        let complete = self.isr.iter().any(complete);
        if complete {
            self.switch(Stage::Completing, out);
        } else {
            self.hold_or_drain(out);
        }
    }

    /// Whether nothing that carries the snapshot's number is on its way, and all members are equal in it.
    fn has_drained(&self, snapshot: Generation) -> bool {
        use super::copy::{Copy, CopyFor};
        let under_way = |op: &super::state::HostOp| {
            !op.is_read() && op.start_no > 0 && op.generation == snapshot
        };
        let repair = |c: &Copy| c.purpose == CopyFor::Repair && c.generation == snapshot;
        self.reconcile.regions.is_empty()
            && (!self.ops.values().any(under_way) || !stands(Mechanism::SnapshotDrain))
            && !self.copies.values().any(repair)
    }

    /// Whether the end of a write of that generation may let a snapshot go on.
    pub(super) fn snapshot_waits_for(&self, generation: Generation) -> bool {
        self.generations.draining() == Some(generation)
    }

    pub(super) fn on_snapshot_flushed(&mut self, out: &mut Outbox) {
        let barrier = self.barrier_mut();
        assert_eq!(barrier.stage, Stage::Flushing);
        barrier.stage = Stage::Completing;
        let snapshot = barrier.snapshot;
        self.changed = true;
        self.trace(TraceEvent::Sealed { snapshot }, out);
    }

    /// Tells every store that counts, and metad once all have it durably.
    fn complete_members(&mut self, snapshot: Generation, out: &mut Outbox) {
        // What a store has is not known while its session is opened again.
        let incomplete = |at: &Position| {
            let state = self.leg(*at).generations.snapshots.get(&snapshot);
            state != Some(&SnapshotState::Complete)
        };
        let missing: Members = self.ack_set().iter().filter(incomplete).collect();
        let barrier = self.barrier_mut();
        let asked = barrier.asked;
        let ask = self.usable(missing).minus(asked);
        self.barrier_mut().asked = asked.or(ask);
        for at in ask.iter() {
            let what = Command::CompleteGeneration(snapshot);
            self.send(at, Purpose::Seal(snapshot), what, out);
        }
        if missing.is_empty() && self.is_stamped() {
            let held = self.barrier_mut().held;
            let step = SnapshotStep::Complete { held };
            self.generations.known.set_complete(snapshot);
            self.generations.barrier = None;
            self.generations.told = Some((snapshot, step));
            self.changed = true;
            out.push(Effect::Snapshot(snapshot, step));
        }
    }

    /// A store has begun the head, durably.
    pub(super) fn on_begun(&mut self, at: Position, head: Generation) {
        self.leg_mut(at).generations.begin(head);
        self.generations.forget_asked(at);
        self.changed = true;
    }

    /// A store has completed the snapshot, durably.
    pub(super) fn on_sealed(&mut self, at: Position, snapshot: Generation) {
        self.leg_mut(at).generations.set_complete(snapshot);
        self.generations.forget_asked(at);
        self.changed = true;
    }

    /// A store has no room for another snapshot until one that was deleted is gone there; anything else
    /// that it refuses makes it useless.
    pub(super) fn on_snapshot_refused(&mut self, at: Position, fault: Fault, out: &mut Outbox) {
        if fault == Fault::NoSpace {
            let (timer, at) = (Timer::Snapshot, self.now.plus_ms(NO_ROOM_MS));
            out.push(Effect::Arm { timer, at });
        } else {
            self.condemn_or_drop(at, out);
        }
    }

    pub(super) fn on_snapshot_timer(&mut self) {
        if let Some(barrier) = &mut self.generations.barrier {
            barrier.asked = Members::EMPTY; // whoever answers twice has done it once
            self.changed = true;
        }
    }

    /// In which generation a region is to be made equal, and in which then.
    pub(super) fn generations_to_reconcile(&self) -> (Generation, Option<Generation>) {
        let pending = self.generations.draining();
        let pending = pending.filter(|_| stands(Mechanism::SnapshotReconcile));
        pending.map_or((self.head, None), |snapshot| (snapshot, Some(self.head)))
    }

    /// Only who holds the volume makes a store begin a generation: one that this client knows nothing of
    /// is a successor's.
    pub(super) fn is_succeeded_at(&self, at: Position) -> bool {
        let serving = matches!(self.phase, Phase::Serving | Phase::Detaching);
        serving && self.leg(at).generations.head > self.generations.known.head
    }

    /// A member whose generations cannot be those of a member is not trusted.
    pub(super) fn doubt_generations(&mut self, at: Position) {
        let member = self.verified && self.ack_set().has(at);
        let leg = self.leg(at);
        if member && leg.session == Session::Open && !self.generations.fit(&leg.generations) {
            let leg = self.leg_mut(at);
            leg.suspect = true;
            leg.condemned = Some(Condemned::Diverged);
        }
    }

    /// metad commits a snapshot before any store begins a generation, so a newer one means that metad
    /// has lost commits without saying so.
    pub(super) fn knows_newer_generations(&self) -> bool {
        let newer = |at: &Position| {
            let leg = self.leg(*at);
            leg.session == Session::Open && leg.generations.head > self.generations.known.head
        };
        self.all.iter().any(|at| newer(&at))
    }

    pub(super) fn check_generations(&self) {
        let known = &self.generations.known;
        assert!(known.is_sound());
        match self.generations.barrier {
            None => assert_eq!(self.head, known.head),
            Some(barrier) => {
                assert_eq!(known.pending(), Some(barrier.snapshot));
                let begun = !matches!(barrier.stage, Stage::Beginning | Stage::Holding);
                let head = if begun { known.head } else { barrier.snapshot };
                assert_eq!(self.head, head);
            }
        }
    }

    /// Head and snapshots as this client knows them.
    pub const fn known_generations(&self) -> &VolumeGenerations {
        self.generations.known()
    }
}

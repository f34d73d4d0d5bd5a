//! Copies between replicas: read one, write others, under the range lock.
//!
//! A copy goes to its targets only. It is a write to them in every respect: it counts as unflushed
//! there until a flush of that store covers it.

use super::event::{Command, CopyId, Effect, Payload};
use super::members::{Members, Position};
use super::range_lock::Holder;
use super::state::{Outbox, Purpose, Replicator};
use shardmap::units::{BlockRange, Generation};

/// What a copy is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyFor {
    Resilver,
    /// Of a snapshot, which nobody writes to: needs no lock.
    CatchUp,
    /// Durable on completion; its region's lock is held by the reconciliation.
    Reconcile,
    /// Durable on completion; queues for its lock like a write.
    Repair,
}

impl CopyFor {
    const fn is_durable(self) -> bool {
        match self {
            Self::Resilver | Self::CatchUp => false,
            Self::Reconcile | Self::Repair => true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyStage {
    /// Waits until no write is under way there.
    Locking,
    /// Waits for somebody to read from.
    Sourcing,
    Reading(Position),
    Writing,
}

#[derive(Debug)]
pub(super) struct Copy {
    pub(super) purpose: CopyFor,
    pub(super) range: BlockRange,
    pub(super) homes: Members,
    /// As which it is read and written.
    pub(super) generation: Generation,
    pub(super) stage: CopyStage,
    /// Whom to write.
    pub(super) targets: Members,
    pub(super) sent: Members,
    pub(super) done: Members,
    /// Sources that could not deliver.
    pub(super) tried: Members,
    /// The source is all zeroes: no data needs to travel or be stored.
    pub(super) zero: bool,
}

impl Copy {
    /// The end of a write may let it begin.
    pub(super) fn waits_for_writes(&self) -> bool {
        self.purpose == CopyFor::Resilver && self.stage == CopyStage::Locking
    }
}

impl Replicator {
    pub(super) fn new_copy(
        &mut self,
        purpose: CopyFor,
        (range, generation): (BlockRange, Generation),
        targets: Members,
    ) -> CopyId {
        let id = CopyId(self.next_copy);
        self.next_copy += 1;
        let stage = match purpose {
            CopyFor::Resilver | CopyFor::Repair => CopyStage::Locking,
            CopyFor::Reconcile | CopyFor::CatchUp => CopyStage::Sourcing,
        };
        let copy = Copy {
            purpose,
            range,
            homes: self.homes(range),
            generation,
            stage,
            targets,
            sent: Members::EMPTY,
            done: Members::EMPTY,
            tried: Members::EMPTY,
            zero: false,
        };
        self.copies.insert(id, copy);
        id
    }

    /// Begins if no write is under way there; otherwise tried again later.
    pub(super) fn try_copy(&mut self, id: CopyId, out: &mut Outbox) {
        let range = self.copies[&id].range;
        if self.lock.try_ahead(Holder::Copy(id), range) {
            self.on_copy_locked(id, out);
        }
    }

    fn on_copy_locked(&mut self, id: CopyId, out: &mut Outbox) {
        let copy = self.copies.get_mut(&id).expect("just locked");
        assert_eq!(copy.stage, CopyStage::Locking);
        copy.stage = CopyStage::Sourcing;
        let range = copy.range;
        let at = self.resilver.as_ref().expect("it started the copy").target;
        // Writes that came first may have brought part of it already.
        let run = self
            .leg(at)
            .dirty
            .first_run(range.start(), range.blocks().0);
        let run = run.filter(|run| run.start() < range.end());
        let Some(run) = run.map(|run| cut(run, range)) else {
            return self.end_copy(id, out);
        };
        let copy = self.copies.get_mut(&id).expect("just seen");
        copy.range = run;
        self.advance_copy(id, out);
    }

    /// Sends what can be sent for a copy, and ends it if it can end.
    pub(super) fn advance_copy(&mut self, id: CopyId, out: &mut Outbox) {
        let Some(copy) = self.copies.get(&id) else {
            return;
        };
        match copy.stage {
            CopyStage::Locking if copy.purpose == CopyFor::Resilver => self.try_copy(id, out),
            CopyStage::Locking | CopyStage::Reading(_) => {}
            CopyStage::Sourcing => self.read_source(id, out),
            CopyStage::Writing => self.write_targets(id, out),
        }
    }

    fn read_source(&mut self, id: CopyId, out: &mut Outbox) {
        let copy = &self.copies[&id];
        let (range, purpose, generation) = (copy.range, copy.purpose, copy.generation);
        let source = match purpose {
            CopyFor::Resilver | CopyFor::CatchUp | CopyFor::Repair => {
                self.choose_reader(copy.homes, copy.tried, id.0)
            }
            CopyFor::Reconcile => self.reconcile_source(),
        };
        let Some(at) = source else {
            if purpose == CopyFor::Repair {
                self.end_copy(id, out);
            }
            return;
        };
        self.copies.get_mut(&id).expect("just seen").stage = CopyStage::Reading(at);
        let what = Command::Read {
            range,
            into: Payload::Copy(id),
            generation,
        };
        self.send(at, Purpose::CopyRead(id), what, out);
    }

    pub(super) fn on_copy_read(&mut self, id: CopyId, all_zero: bool, out: &mut Outbox) {
        let Some(copy) = self.copies.get_mut(&id) else {
            return;
        };
        assert!(matches!(copy.stage, CopyStage::Reading(_)));
        copy.stage = CopyStage::Writing;
        copy.zero = all_zero;
        self.write_targets(id, out);
    }

    fn write_targets(&mut self, id: CopyId, out: &mut Outbox) {
        let copy = &self.copies[&id];
        let (range, zero, fua) = (copy.range, copy.zero, copy.purpose.is_durable());
        let generation = copy.generation;
        let targets = copy.targets.and(self.copy_set());
        let (asked, done) = (copy.sent.or(copy.done), copy.done);
        if done.covers(targets) {
            return self.copy_done(id, out);
        }
        for at in self.usable(targets).minus(asked).iter() {
            self.copies.get_mut(&id).expect("just seen").sent.insert(at);
            let what = if zero {
                Command::Zero {
                    range,
                    deallocate: true,
                    fua,
                    generation,
                }
            } else {
                let from = Payload::Copy(id);
                Command::Write {
                    range,
                    from,
                    fua,
                    generation,
                }
            };
            self.send(at, Purpose::CopyWrite(id), what, out);
        }
    }

    pub(super) fn on_copy_written(&mut self, id: CopyId, at: Position, out: &mut Outbox) {
        let Some(copy) = self.copies.get_mut(&id) else {
            return;
        };
        copy.sent.remove(at);
        copy.done.insert(at);
        let (range, durable) = (copy.range, copy.purpose.is_durable());
        self.note_written(at, range, durable);
        self.advance_copy(id, out);
    }

    fn copy_done(&mut self, id: CopyId, out: &mut Outbox) {
        self.moves += 1;
        let copy = &self.copies[&id];
        let (range, done) = (copy.range, copy.done);
        match copy.purpose {
            CopyFor::Resilver => self.resilver_copied(range, out),
            CopyFor::CatchUp => self.snapshot_copied(range),
            CopyFor::Repair => done.iter().for_each(|at| self.repaired(at, range, out)),
            CopyFor::Reconcile => {}
        }
        self.end_copy(id, out);
    }

    /// The source's answer will not come or does not count. What was to be copied still is.
    pub(super) fn abandon_copy(&mut self, id: CopyId, out: &mut Outbox) {
        let reading = |c: &Copy| matches!(c.stage, CopyStage::Reading(_));
        if !self.copies.get(&id).is_some_and(reading) {
            return;
        }
        if self.copies[&id].purpose == CopyFor::Reconcile {
            self.reconcile.hash_again();
        }
        self.end_copy(id, out);
    }

    /// The source has a medium error there: another one, or nobody.
    pub(super) fn on_copy_unreadable(&mut self, id: CopyId, at: Position, out: &mut Outbox) {
        let Some(copy) = self.copies.get_mut(&id) else {
            return;
        };
        copy.tried.insert(at);
        if copy.purpose == CopyFor::Reconcile {
            self.reconcile.distrust(at);
            return self.abandon_copy(id, out);
        }
        copy.stage = CopyStage::Sourcing;
        let (purpose, tried, homes) = (copy.purpose, copy.tried, copy.homes);
        let nobody = tried.covers(homes.and(self.read_set()));
        match purpose {
            CopyFor::Resilver if nobody => self.drop_resilver(out),
            CopyFor::CatchUp if nobody => self.drop_catch_up(out),
            CopyFor::Resilver | CopyFor::CatchUp | CopyFor::Repair | CopyFor::Reconcile => {
                self.advance_copy(id, out);
            }
        }
    }

    /// Gives back lock and buffer.
    pub(super) fn end_copy(&mut self, id: CopyId, out: &mut Outbox) {
        let copy = self.copies.remove(&id).expect("ends once");
        let locks = match copy.purpose {
            CopyFor::Resilver => copy.stage != CopyStage::Locking,
            CopyFor::Repair => true, // waiting for it counts
            CopyFor::Reconcile | CopyFor::CatchUp => false,
        };
        if locks {
            self.lock.release(Holder::Copy(id), &mut self.granted);
        }
        out.push(Effect::DropCopy(id));
        self.changed = true;
    }

    /// Copies to this store have to be sent again.
    pub(super) fn copies_session_lost(&mut self, at: Position) {
        for copy in self.copies.values_mut() {
            copy.sent.remove(at);
            copy.done.remove(at);
        }
    }
}

/// The part of `run` inside `range`.
fn cut(run: BlockRange, range: BlockRange) -> BlockRange {
    let blocks = run.end().0.min(range.end().0) - run.start().0;
    let blocks = u32::try_from(blocks).expect("inside a copy");
    BlockRange::new(run.start(), shardmap::units::Blocks(blocks)).expect("starts inside")
}

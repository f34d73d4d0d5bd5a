//! Read repair (protocol §5): what one member could not read and another could is written to the
//! first one again, durably, while nobody else writes or reads there: a store does not compare with its
//! checksum what was read beside a write, and before this one its blocks are spoiled.

use super::copy::{CopyFor, CopyStage};
use super::event::{CopyId, TraceEvent};
use super::leg::Condemned;
use super::members::{Members, Position};
use super::range_lock::Holder;
use super::state::{Outbox, Phase, Replicator};
use crate::limits::REPAIRS_MAX;
use shardmap::units::BlockRange;

impl Replicator {
    pub(super) fn repairs(&self) -> impl Iterator<Item = (CopyId, CopyStage)> {
        let all = self.copies.iter();
        all.filter(|(_, copy)| copy.purpose == CopyFor::Repair)
            .map(|(id, copy)| (*id, copy.stage))
    }

    /// Begins a repair if there are not enough already. A later read finds the fault again.
    pub(super) fn start_repair(&mut self, at: Position, range: BlockRange, out: &mut Outbox) {
        let known = |copy: &super::copy::Copy| {
            copy.purpose == CopyFor::Repair && copy.targets.has(at) && copy.range.overlaps(range)
        };
        let wanted = self.phase == Phase::Serving
            && self.usable(self.isr).has(at)
            && !self.reconcile.touches(range)
            && self.repairs().count() < REPAIRS_MAX
            && !self.copies.values().any(known);
        if !wanted {
            return;
        }
        let target = (range, self.head);
        let id = self.new_copy(CopyFor::Repair, target, Members::one(at));
        if self.lock.acquire(Holder::Copy(id), range, true) {
            self.on_repair_locked(id, out);
        }
    }

    pub(super) fn on_repair_locked(&mut self, id: CopyId, out: &mut Outbox) {
        let copy = self.copies.get_mut(&id).expect("it waited for its lock");
        assert!(copy.purpose == CopyFor::Repair && copy.stage == CopyStage::Locking);
        copy.stage = CopyStage::Sourcing;
        copy.tried = copy.targets;
        if self.reconcile.touches(copy.range) {
            return self.end_copy(id, out); // reconciliation makes it good
        }
        self.advance_copy(id, out);
    }

    /// Repairs go on. They never wait for a source or a target, because their lock holds up everybody;
    /// and a detach waits only for what is being written.
    pub(super) fn repair_forward(&mut self, out: &mut Outbox) {
        let all: Vec<_> = self.repairs().collect();
        for (id, stage) in all {
            if self.phase == Phase::Detaching && stage != CopyStage::Writing {
                self.end_copy(id, out);
            } else {
                self.advance_copy(id, out);
            }
        }
    }

    /// Its target is away, and is not read meanwhile. Later reads find the fault again.
    pub(super) fn repair_session_lost(&mut self, at: Position, out: &mut Outbox) {
        let concerned: Vec<_> = self
            .repairs()
            .map(|(id, _)| id)
            .filter(|id| self.copies[id].targets.has(at))
            .collect();
        concerned.into_iter().for_each(|id| self.end_copy(id, out));
    }

    /// The member does not take what it could not read: it is to be removed if that is safe.
    pub(super) fn repair_refused(&mut self, id: CopyId, at: Position, out: &mut Outbox) {
        self.end_copy(id, out);
        self.leg_mut(at).condemned.get_or_insert(Condemned::Refused);
    }

    pub(super) fn repaired(&self, at: Position, range: BlockRange, out: &mut Outbox) {
        let event = TraceEvent::Repaired {
            store: self.leg(at).store,
            lba: range.start(),
            blocks: range.blocks().0,
        };
        self.trace(event, out);
    }
}

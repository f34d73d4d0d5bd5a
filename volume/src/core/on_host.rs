//! Host requests: admission, order, acknowledgement.

use super::event::{Effect, HostFault, HostWhat, OpId};
use super::flush::FlushFor;
use super::members::Members;
use super::range_lock::Holder;
use super::state::{HostOp, Outbox, Phase, Piece, Replicator, Stage, copysets_of};
use crate::limits::{IO_BLOCKS_MAX, ZERO_BLOCKS_MAX};
use shardmap::units::BlockRange;
use smallvec::SmallVec;

impl Replicator {
    pub(super) fn on_host(&mut self, op: OpId, what: HostWhat, out: &mut Outbox) {
        match self.phase {
            Phase::Serving => {}
            Phase::Failed => return self.finish_host(op, Err(HostFault::Failed), out),
            Phase::New | Phase::Attaching | Phase::Detaching | Phase::Ended => {
                return self.finish_host(op, Err(HostFault::NotAttached), out);
            }
        }
        let (range, blocks_max) = match what {
            HostWhat::Flush => {
                return self.start_flush(FlushFor::Host(op), self.write_set(), false, out);
            }
            HostWhat::Read(range) | HostWhat::Write { range, .. } => (range, IO_BLOCKS_MAX),
            HostWhat::Zero { range, .. } => (range, ZERO_BLOCKS_MAX),
            HostWhat::Changes { .. } => unreachable!("asked of views only"),
        };
        if !self.map.contains(range) || range.blocks().0 > blocks_max {
            return self.finish_host(op, Err(HostFault::Range), out);
        }
        let entry = HostOp {
            what,
            range,
            stage: Stage::Locking,
            began: self.now,
            pieces: self.pieces_of(range),
            start_no: 0,
            fault: None,
            generation: self.head,
        };
        assert!(
            self.ops.insert(op, entry).is_none(),
            "{op:?} is outstanding already"
        );
        self.admit(op, out);
    }

    /// The stores have grown before; what lies in the new part was written by nobody.
    pub(super) fn on_grown(&mut self, size_blocks: u64) {
        if size_blocks > self.map.size_blocks {
            self.map.size_blocks = size_blocks;
            self.copysets = copysets_of(&self.map);
            self.changed = true;
        }
    }

    fn pieces_of(&self, range: BlockRange) -> SmallVec<[Piece; 1]> {
        let pieces = range.split_at_multiples(self.map.shape.shard_blocks);
        pieces
            .map(|piece| Piece {
                range: piece,
                homes: self.homes(piece),
                first_block: u32::try_from(piece.start().0 - range.start().0).expect("bounded"),
                sent: Members::EMPTY,
                done: Members::EMPTY,
                failed: Members::EMPTY,
                full: Members::EMPTY,
                unreadable: Members::EMPTY,
                finished: false,
                failed_everywhere: false,
            })
            .collect()
    }

    /// Waits for reconciliation first, then for the range lock: an operation that held its lock
    /// while waiting would stop the reconciliation it waits for.
    pub(super) fn admit(&mut self, id: OpId, out: &mut Outbox) {
        let op = self.ops.get_mut(&id).expect("being admitted");
        let (range, exclusive) = (op.range, !op.is_read());
        if self.reconcile.touches(range) {
            op.stage = Stage::Parked;
            self.parked.push_back(id);
            self.reconcile.wanted = range
                .regions()
                .find(|r| self.reconcile.regions.contains(*r));
            self.changed = true;
            return;
        }
        op.stage = Stage::Locking;
        if self.lock.acquire(Holder::Host(id), range, exclusive) {
            self.start_op(id, out);
        }
    }

    /// The operation has its lock.
    pub(super) fn start_op(&mut self, id: OpId, out: &mut Outbox) {
        let op = self.ops.get_mut(&id).expect("granted");
        if self.generations.is_holding() && !op.is_read() {
            op.stage = Stage::Held; // what it carries is not decided
            return;
        }
        self.next_start += 1;
        let out_of_it = self.all.minus(self.write_set());
        let op = self.ops.get_mut(&id).expect("granted");
        op.stage = Stage::Running;
        op.start_no = self.next_start;
        op.generation = self.head;
        if !op.is_read() {
            for piece in &op.pieces {
                for at in piece.homes.and(out_of_it).iter() {
                    self.legs[at.index()].dirty.insert(piece.range);
                }
            }
            self.note_write(id, out);
        }
        self.advance_op(id, out);
    }

    /// Writes need not wait for other volumes any more.
    pub(super) fn start_held_ops(&mut self, out: &mut Outbox) {
        let held = self.ops.iter().filter(|(_, op)| op.stage == Stage::Held);
        let ids: Vec<_> = held.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.start_op(id, out));
    }

    pub(super) fn advance_all_ops(&mut self, out: &mut Outbox) {
        let running = self.ops.iter().filter(|(_, op)| op.stage == Stage::Running);
        let ids: Vec<_> = running.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.advance_op(id, out));
    }

    /// Sends what can be sent for an operation that holds its lock, and ends it if it can end.
    pub(super) fn advance_op(&mut self, id: OpId, out: &mut Outbox) {
        if !matches!(self.phase, Phase::Serving | Phase::Detaching) {
            return;
        }
        let Some(mut op) = self.ops.remove(&id) else {
            return;
        };
        assert_eq!(op.stage, Stage::Running);
        for index in 0..op.pieces.len() {
            if op.is_read() {
                let fault = self.advance_read(id, &mut op, index, out);
                op.fault = op.fault.or(fault);
            } else {
                self.advance_write(id, &mut op, index, out);
            }
        }
        if op.pieces.iter().all(|p| p.finished) {
            op.stage = Stage::Finished;
            for piece in op.pieces.iter().filter(|p| p.failed_everywhere) {
                let fault = self.write_failed_everywhere(piece, op.generation);
                op.fault = op.fault.or(Some(fault));
            }
        }
        let finished = op.stage == Stage::Finished;
        self.ops.insert(id, op);
        if finished {
            self.try_ack(id, out);
        }
    }

    /// Tells the host, once every member is stamped with the membership the answer relies on.
    fn try_ack(&mut self, id: OpId, out: &mut Outbox) {
        let op = &self.ops[&id];
        if !op.is_read() && !self.is_stamped() {
            return;
        }
        let op = self.ops.remove(&id).expect("just seen");
        self.lock.release(Holder::Host(id), &mut self.granted);
        let took_ns = self.now.since_ns(op.began);
        if let Some(resilver) = &mut self.resilver {
            self.changed |= resilver.throttle.pace.on_host_done(self.now, took_ns);
        }
        if let Some(catch_up) = &mut self.catch_up {
            self.changed |= catch_up.throttle.pace.on_host_done(self.now, took_ns);
        }
        let result = op.fault.map_or(Ok(()), Err);
        out.push(Effect::Complete { op: id, result });
        self.changed |= self
            .copies
            .values()
            .any(super::copy::Copy::waits_for_writes);
        let copies = self.resilver.is_some() || self.catch_up.is_some();
        if self.ops.is_empty() && (copies || self.phase == Phase::Detaching) {
            self.changed = true; // detach goes on, the resilver may go faster
        }
        self.after_write_ended(&op);
    }

    pub(super) fn release_acks(&mut self, out: &mut Outbox) {
        let finished = self
            .ops
            .iter()
            .filter(|(_, op)| op.stage == Stage::Finished);
        let ids: Vec<_> = finished.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.try_ack(id, out));
    }

    /// Whether the shard has as many in-sync stores as the volume demands.
    pub(super) fn enough_in_sync(&self, homes: Members) -> bool {
        homes.and(self.read_set()).count() >= self.config.min_in_sync
    }

    /// The device has failed: every operation ends with an error.
    pub(super) fn fail_all_ops(&mut self, out: &mut Outbox) {
        for (op, _) in std::mem::take(&mut self.ops) {
            out.push(Effect::Complete {
                op,
                result: Err(HostFault::Failed),
            });
        }
        for ticket in std::mem::take(&mut self.flushes).into_values() {
            if let FlushFor::Host(op) = ticket.purpose {
                out.push(Effect::Complete {
                    op,
                    result: Err(HostFault::Failed),
                });
            }
        }
        let copies: Vec<_> = std::mem::take(&mut self.copies).into_keys().collect();
        copies
            .into_iter()
            .for_each(|copy| out.push(Effect::DropCopy(copy)));
        self.legs
            .iter_mut()
            .for_each(|leg| leg.flush = super::leg::LegFlush::default());
        self.parked.clear();
        self.granted.clear();
        self.lock = super::range_lock::RangeLock::default();
        self.resilver = None;
        self.catch_up = None;
        self.reconcile = super::reconcile::Reconcile::default();
    }
}

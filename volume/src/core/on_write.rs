//! Writes, discards and zeroes (protocol §4): to everybody in the write set, acknowledged when all
//! that count have answered on current sessions.

use super::event::{Command, Fault, HostFault, HostWhat, OpId, TraceEvent};
use super::leg::Condemned;
use super::members::Position;
use super::state::{HostOp, Outbox, Piece, Purpose, Replicator, Stage, host_window};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::Generation;

impl Replicator {
    pub(super) fn advance_write(
        &mut self,
        id: OpId,
        op: &mut HostOp,
        index: usize,
        out: &mut Outbox,
    ) {
        let piece = &mut op.pieces[index];
        // Until the whole operation ends, a new resilver target gets its finished parts too, and
        // those that failed everywhere: another part may wait for a removal that needs the target.
        (piece.finished, piece.failed_everywhere) = (false, false);
        let asked = piece.sent.or(piece.done).or(piece.failed);
        let missing = self.usable(piece.homes.and(self.write_set())).minus(asked);
        for at in missing.iter() {
            piece.sent.insert(at);
            let what = write_command(id, (op.what, op.generation), piece);
            self.send(
                at,
                Purpose::HostWrite {
                    op: id,
                    piece: index,
                },
                what,
                out,
            );
        }
        self.judge_write(piece);
    }

    /// Ends the piece if all that count have answered. A member that failed what others took is
    /// to be removed; if every member failed, the host will be told and the region is doubtful.
    fn judge_write(&mut self, piece: &mut Piece) {
        let need = piece.homes.and(self.ack_set());
        if !self.enough_in_sync(piece.homes) {
            return; // sent, so that nobody falls behind, and not acknowledged
        }
        let all_have_it = piece.done.covers(need)
            || !stands(Mechanism::AckAll) && !piece.done.and(need).is_empty();
        if all_have_it && piece.done.covers(piece.homes.and(self.target())) {
            piece.finished = true;
        } else if !need.is_empty() && piece.failed.covers(need) && piece.sent.is_empty() {
            (piece.finished, piece.failed_everywhere) = (true, true);
        } else if !piece.done.and(need).is_empty() && piece.done.or(piece.failed).covers(need) {
            for at in piece.failed.and(need).iter() {
                let was = self.leg_mut(at).condemned.replace(Condemned::Diverged);
                self.changed |= was != Some(Condemned::Diverged);
            }
        }
    }

    pub(super) fn write_failed_everywhere(
        &mut self,
        piece: &Piece,
        generation: Generation,
    ) -> HostFault {
        for at in piece.homes.minus(self.ack_set()).iter() {
            self.legs[at.index()].dirty.insert(piece.range);
        }
        for at in piece.homes.and(self.ack_set()).iter() {
            let leg = self.leg_mut(at);
            if !leg.suspect {
                leg.condemned = None; // it has not fallen behind anybody
            }
        }
        self.reconcile_again(piece.range);
        self.doubt_target(generation);
        if piece.full.covers(piece.failed) {
            HostFault::NoSpace
        } else {
            HostFault::Medium
        }
    }

    pub(super) fn on_write_done(&mut self, id: OpId, index: usize, at: Position, out: &mut Outbox) {
        let Some(op) = self.ops.get_mut(&id) else {
            assert!(
                !stands(Mechanism::AckAll),
                "on a current session the write is not over"
            );
            return;
        };
        let durable = match op.what {
            HostWhat::Write { fua, .. } | HostWhat::Zero { fua, .. } => fua,
            HostWhat::Read(_) | HostWhat::Flush | HostWhat::Changes { .. } => {
                unreachable!("no write")
            }
        };
        let piece = &mut op.pieces[index];
        piece.sent.remove(at);
        piece.done.insert(at);
        let (range, running) = (piece.range, op.stage == Stage::Running);
        let is_target = self.target().has(at);
        self.note_written(at, range, durable);
        let leg = &mut self.legs[at.index()];
        if is_target {
            leg.dirty.remove(range);
            self.changed |= self.copies.values().any(|c| c.range.overlaps(range));
        } else {
            leg.failures = 0;
        }
        if running {
            self.advance_op(id, out);
        }
    }

    pub(super) fn on_write_fault(
        &mut self,
        id: OpId,
        index: usize,
        at: Position,
        fault: Fault,
        out: &mut Outbox,
    ) {
        if !self.ack_set().has(at) {
            return self.condemn_or_drop(at, out);
        }
        let Some(op) = self.ops.get_mut(&id) else {
            assert!(
                !stands(Mechanism::AckAll),
                "on a current session the write is not over"
            );
            return;
        };
        let piece = &mut op.pieces[index];
        piece.sent.remove(at);
        piece.failed.insert(at);
        if fault == Fault::NoSpace {
            piece.full.insert(at);
        }
        self.advance_op(id, out);
    }

    /// A pass over the marks, or a snapshot, may go on.
    pub(super) fn after_write_ended(&mut self, op: &HostOp) {
        if op.is_read() {
            return;
        }
        self.changed |= self.stable.waits_for(op.start_no);
        if self.snapshot_waits_for(op.generation) {
            self.changed = true;
            self.doubt_catch_up(op.generation);
        }
    }

    /// For the log: a finished clean-up of marks.
    pub(super) fn trace_stable(&self, out: &mut Outbox) {
        self.trace(TraceEvent::Stable, out);
    }
}

fn write_command(id: OpId, (what, generation): (HostWhat, Generation), piece: &Piece) -> Command {
    let range = piece.range;
    let stands = stands(Mechanism::Fua);
    match what {
        HostWhat::Write { fua, .. } => {
            let from = host_window(id, piece);
            Command::Write {
                range,
                from,
                fua: fua && stands,
                generation,
            }
        }
        HostWhat::Zero {
            deallocate, fua, ..
        } => Command::Zero {
            range,
            deallocate,
            fua: fua && stands,
            generation,
        },
        HostWhat::Read(_) | HostWhat::Flush | HostWhat::Changes { .. } => {
            unreachable!("{what:?} is no write")
        }
    }
}

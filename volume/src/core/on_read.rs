//! Reads (protocol §5): from one member that is sure to hold the last write, then the next one.

use super::event::{Command, Fault, HostFault, OpId};
use super::leg::{Condemned, Session};
use super::members::{Members, Position};
use super::state::{HostOp, Outbox, Purpose, Replicator, host_window};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::Generation;

impl Replicator {
    pub(super) fn advance_read(
        &mut self,
        id: OpId,
        op: &mut HostOp,
        index: usize,
        out: &mut Outbox,
    ) -> Option<HostFault> {
        let piece = &mut op.pieces[index];
        if piece.finished || !piece.sent.is_empty() || !self.enough_in_sync(piece.homes) {
            return None;
        }
        let readable = piece.homes.and(self.read_set());
        if !readable.is_empty() && piece.failed.covers(readable) {
            piece.finished = true;
            return Some(HostFault::Medium);
        }
        let at = self.choose_reader(piece.homes, piece.failed, id.0)?;
        piece.sent.insert(at);
        let what = Command::Read {
            range: piece.range,
            into: host_window(id, piece),
            generation: Generation(0),
        };
        self.send(
            at,
            Purpose::HostRead {
                op: id,
                piece: index,
            },
            what,
            out,
        );
        None
    }

    /// The quickest member of ISR ∩ pending that is not suspect, the least busy of those that are
    /// about as quick; equals take turns. Members that are about to be removed come last.
    pub(super) fn choose_reader(
        &self,
        homes: Members,
        tried: Members,
        turn: u64,
    ) -> Option<Position> {
        let among = homes.and(self.read_set());
        let among = if stands(Mechanism::SuspectRead) {
            self.usable(among)
        } else {
            let open = |at: &Position| self.leg(*at).session == Session::Open;
            among.iter().filter(open).collect()
        };
        let among = among.minus(tried);
        let count = u64::from(among.count().max(1));
        let start = turn % count;
        let rank = |(order, at): &(u64, Position)| {
            let leg = self.leg(*at);
            (
                leg.condemned.is_some(),
                self.read_cost(*at, turn),
                leg.outstanding,
                (order + count - start) % count,
            )
        };
        (0..).zip(among.iter()).min_by_key(rank).map(|(_, at)| at)
    }

    pub(super) fn on_read_done(&mut self, id: OpId, index: usize, at: Position, out: &mut Outbox) {
        let op = self
            .ops
            .get_mut(&id)
            .expect("a read is not over while it is outstanding");
        let piece = &mut op.pieces[index];
        assert!(piece.sent.has(at) && !piece.finished);
        piece.sent.remove(at);
        piece.finished = true;
        let (range, unreadable) = (piece.range, piece.unreadable);
        self.advance_op(id, out);
        unreadable
            .iter()
            .for_each(|bad| self.start_repair(bad, range, out));
    }

    /// The read's session ended; its buffer is free. Another member is asked.
    pub(super) fn on_read_lost(&mut self, id: OpId, index: usize, at: Position, out: &mut Outbox) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.pieces[index].sent.remove(at);
        self.advance_op(id, out);
    }

    pub(super) fn on_read_fault(
        &mut self,
        id: OpId,
        index: usize,
        at: Position,
        fault: Fault,
        out: &mut Outbox,
    ) {
        match fault {
            Fault::Refused | Fault::Incomplete => {
                self.leg_mut(at).condemned.get_or_insert(Condemned::Refused);
                self.changed = true;
            }
            Fault::Medium | Fault::NoSpace => {}
            Fault::Fenced | Fault::NotOpen | Fault::Transient => unreachable!("ends the session"),
        }
        let op = self
            .ops
            .get_mut(&id)
            .expect("a read is not over while it is outstanding");
        let piece = &mut op.pieces[index];
        piece.sent.remove(at);
        piece.failed.insert(at);
        if fault == Fault::Medium {
            piece.unreadable.insert(at);
        }
        self.advance_op(id, out);
    }
}

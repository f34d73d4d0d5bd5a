//! Sessions: opening revokes what was before and waits until all it had admitted has ended on the
//! backing, so that a predecessor can change nothing any more (protocol §3).

use super::facts::StoreFault;
use super::format::entry::Entry;
use super::io::{Answer, CommandId, Effect, Outbox};
use super::slice::{Opening, Session};
use super::{Core, Waiter};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{Epoch, Nsid, VolumeId};

impl Core {
    pub(super) fn open_session(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        association: u64,
        (epoch, volume): (Epoch, VolumeId),
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self
            .slices
            .get_mut(&nsid.0)
            .filter(|s| s.removing.is_none());
        let slice = slice.ok_or(StoreFault::UnknownSlice { nsid })?;
        if slice.spec.volume != volume {
            let ours = slice.spec.volume;
            return Err(StoreFault::WrongVolume {
                nsid,
                ours,
                theirs: volume,
            });
        }
        if epoch < slice.epoch && stands(Mechanism::EpochFence) {
            return Err(StoreFault::Fenced {
                nsid,
                ours: slice.epoch,
                theirs: epoch,
            });
        }
        if let Some(older) = slice.session.take() {
            slice.revoked.insert(older.association);
        }
        if let Some(older) = slice.opening.take() {
            slice.revoked.insert(older.association);
            let result = Err(StoreFault::SessionRevoked { nsid });
            out.push(Effect::Answer {
                command: older.command,
                result,
            });
        }
        slice.revoked.remove(&association);
        let turn = slice.drain.next_turn();
        let mut ticket = None;
        if epoch > slice.epoch {
            slice.epoch = epoch;
            self.pages.touch(slice.page);
            ticket = Some(self.journal.append(&Entry::Epoch(nsid, epoch)));
        } else {
            // The same epoch again: its entry may still be on its way.
            ticket = ticket.or(self.journal.newest_pending());
        }
        slice.opening = Some(Opening {
            command: id,
            association,
            turn,
            ticket,
        });
        if let Some(ticket) = ticket {
            self.wait_for(ticket, Waiter::Open(nsid));
        }
        self.on_drained(nsid.0, out);
        Ok(())
    }

    pub(super) fn close_session(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        association: u64,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self
            .slices
            .get_mut(&nsid.0)
            .ok_or(StoreFault::UnknownSlice { nsid })?;
        if slice.session.is_none_or(|s| s.association != association) {
            return Err(StoreFault::NotOpen { nsid });
        }
        slice.session = None;
        let turn = slice.drain.next_turn();
        slice.closing.push((id, turn));
        self.on_drained(nsid.0, out);
        Ok(())
    }

    /// Its sessions end; what they had admitted goes on.
    pub(super) fn association_gone(
        &mut self,
        id: CommandId,
        association: u64,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        for (nsid, slice) in &mut self.slices {
            slice.revoked.remove(&association);
            if slice.session.is_some_and(|s| s.association == association) {
                slice.session = None;
            }
            if slice.opening.is_some_and(|o| o.association == association) {
                let command = slice.opening.take().expect("just seen").command;
                let result = Err(StoreFault::NotOpen { nsid: Nsid(*nsid) });
                out.push(Effect::Answer { command, result });
            }
        }
        out.push(Effect::Answer {
            command: id,
            result: Ok(Answer::Done),
        });
        Ok(())
    }

    /// A command of the slice ended, or something it waits for is durable: sessions may open or close.
    pub(super) fn on_drained(&mut self, nsid: u32, out: &mut Outbox) {
        let Some(slice) = self.slices.get_mut(&nsid) else {
            return;
        };
        if slice.merging.waits_for(&slice.drain) {
            self.merge.ready = true;
        }
        let waits = slice.opening.is_some() || slice.removing.is_some();
        if !waits && slice.closing.is_empty() && !slice.changes.is_completing() {
            return;
        }
        slice.answer_completing(out);
        let drain = &slice.drain;
        slice.closing.retain(|(command, turn)| {
            let over = drain.is_over(*turn);
            if over {
                out.push(Effect::Answer {
                    command: *command,
                    result: Ok(Answer::Done),
                });
            }
            !over
        });
        if let Some(opening) = slice.opening
            && (slice.drain.is_over(opening.turn) || !stands(Mechanism::OpenDrain))
            && opening.ticket.is_none_or(|t| self.journal.is_durable(t))
        {
            slice.tick += 1;
            slice.opening = None;
            slice.session = Some(Session {
                association: opening.association,
                first_tick: slice.tick,
            });
            let state = slice.state(self.sb.incarnation, self.sb.lost_at, self.was_clean);
            let result = Ok(Answer::State(state));
            out.push(Effect::Answer {
                command: opening.command,
                result,
            });
        }
        let slice = self.slices.get(&nsid).expect("still here");
        if let Some((command, turn)) = slice.removing
            && slice.drain.is_over(turn)
        {
            self.drop_slice(Nsid(nsid), command, out);
        }
    }
}

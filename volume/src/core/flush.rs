//! Flush (protocol §6): every store with completed, uncovered writes; one running, one waiting.

use super::event::{Command, Effect, OpId};
use super::members::{Members, Position};
use super::state::{Outbox, Phase, Purpose, Replicator};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::BlockRange;

/// One request to make everything completed so far durable on all that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlushId(pub(super) u64);

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushFor {
    Host(OpId),
    Reconcile,
    Resilver,
    Stable,
    Snapshot,
    CatchUp,
    Detach,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FlushTicket {
    pub(super) purpose: FlushFor,
    /// Stores asked, minus those that left since.
    pub(super) over: Members,
    /// Stores whose answer is missing.
    pub(super) needs: Members,
    pub(super) forced: bool,
}

impl Replicator {
    /// Model: `StartFlush`. `forced` flushes reach a store even if we have nothing uncovered on
    /// it: an earlier client may have.
    pub(super) fn start_flush(
        &mut self,
        purpose: FlushFor,
        over: Members,
        forced: bool,
        out: &mut Outbox,
    ) {
        let id = FlushId(self.next_flush);
        self.next_flush += 1;
        let mut needs = Members::EMPTY;
        for at in over.iter() {
            if !needs.is_empty() && !stands(Mechanism::FlushAll) {
                break;
            }
            let leg = self.leg_mut(at);
            if forced || !leg.has_all_flushed() {
                needs.insert(at);
                leg.flush.next.push(id);
                leg.flush.forced |= forced;
            }
        }
        self.flushes.insert(
            id,
            FlushTicket {
                purpose,
                over,
                needs,
                forced,
            },
        );
        needs.iter().for_each(|at| self.forward_flush(at, out));
        self.check_ticket(id, out);
    }

    pub(super) fn forward_flushes(&mut self, out: &mut Outbox) {
        self.all.iter().for_each(|at| self.forward_flush(at, out));
        let ids: Vec<_> = self.flushes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.check_ticket(id, out));
    }

    /// Sends the next flush of a store if somebody waits for it and none is running.
    fn forward_flush(&mut self, at: Position, out: &mut Outbox) {
        let leg = &mut self.legs[at.index()];
        if leg.flush.running.is_some() || leg.flush.next.is_empty() || !leg.usable() {
            return;
        }
        let waiters = std::mem::take(&mut leg.flush.next);
        if !leg.unflushed.wants_flush() && !leg.flush.forced {
            return waiters
                .into_iter()
                .for_each(|id| self.flush_answered(id, at, out));
        }
        leg.unflushed.begin_flush();
        leg.flush.waiters = waiters;
        leg.flush.forced_running = std::mem::take(&mut leg.flush.forced);
        leg.flush.running = Some(super::event::CommandId(self.next_command));
        self.send(at, Purpose::Flush, Command::Flush, out);
    }

    /// A write has ended well on a store. One that is durable covers what it overwrote, but not what a
    /// snapshot keeps of that: while one has to become durable, only flushes count.
    pub(super) fn note_written(&mut self, at: Position, range: BlockRange, durable: bool) {
        if !durable || !self.generations.is_unsealed() {
            self.leg_mut(at).unflushed.on_written(range, durable);
        }
    }

    pub(super) fn on_flushed(&mut self, at: Position, out: &mut Outbox) {
        let leg = self.leg_mut(at);
        assert!(
            leg.flush.running.take().is_some(),
            "position {at}: no flush was running"
        );
        leg.unflushed.end_flush();
        leg.flush.forced_running = false;
        let waiters = std::mem::take(&mut leg.flush.waiters);
        waiters
            .into_iter()
            .for_each(|id| self.flush_answered(id, at, out));
        self.forward_flush(at, out);
    }

    fn flush_answered(&mut self, id: FlushId, at: Position, out: &mut Outbox) {
        if let Some(ticket) = self.flushes.get_mut(&id) {
            ticket.needs.remove(at);
            self.check_ticket(id, out);
        }
    }

    /// Completes a flush once all have answered, none is suspect and the members are stamped.
    /// Model: `AckFlush`.
    fn check_ticket(&mut self, id: FlushId, out: &mut Outbox) {
        let Some(ticket) = self.flushes.get(&id).copied() else {
            return;
        };
        let serving = matches!(self.phase, Phase::Serving | Phase::Detaching);
        if !ticket.needs.is_empty() || !serving || !self.is_stamped() {
            return;
        }
        self.flushes.remove(&id);
        match ticket.purpose {
            FlushFor::Host(op) => {
                self.changed |= self.phase == Phase::Detaching; // it may be all a detach waits for
                self.finish_host(op, Ok(()), out);
            }
            FlushFor::Reconcile => self.on_reconcile_flushed(),
            FlushFor::Resilver => self.on_resilver_flushed(out),
            FlushFor::Stable => self.on_stable_flushed(out),
            FlushFor::Snapshot => self.on_snapshot_flushed(out),
            FlushFor::CatchUp => self.on_catch_up_flushed(out),
            FlushFor::Detach => self.on_detach_flushed(),
        }
    }

    /// The session ended: whoever counted on this store's answers needs new ones.
    pub(super) fn restart_flushes(&mut self, at: Position) {
        let leg = &mut self.legs[at.index()];
        if leg.flush.running.take().is_some() {
            leg.unflushed.lose_flush();
        }
        leg.flush.forced_running = false;
        leg.flush.waiters.clear();
        leg.flush.next.clear();
        leg.flush.forced = false;
        for (id, ticket) in &mut self.flushes {
            // Who has its answer from this store keeps it: what was durable then still is.
            if ticket.needs.has(at) {
                leg.flush.next.push(*id);
                leg.flush.forced |= ticket.forced;
            }
        }
    }

    /// The store does not count any more: nobody waits for it.
    pub(super) fn flush_leg_left(&mut self, at: Position, out: &mut Outbox) {
        let leg = &mut self.legs[at.index()];
        assert!(
            leg.flush.running.is_none(),
            "position {at}: left with a flush running"
        );
        leg.flush.next.clear();
        leg.flush.waiters.clear();
        leg.flush.forced = false;
        let ids: Vec<_> = self.flushes.keys().copied().collect();
        for id in ids {
            let ticket = self.flushes.get_mut(&id).expect("listed");
            ticket.over.remove(at);
            ticket.needs.remove(at);
            self.check_ticket(id, out);
        }
    }

    /// Forgets internal flushes of a purpose that is given up.
    pub(super) fn cancel_flush(&mut self, purpose: FlushFor) {
        self.flushes.retain(|_, ticket| ticket.purpose != purpose);
    }

    pub(super) fn finish_host(
        &mut self,
        op: OpId,
        result: Result<(), super::event::HostFault>,
        out: &mut Outbox,
    ) {
        out.push(Effect::Complete { op, result });
    }
}

//! Membership changes (protocol §7), witnessed by metad before anything is acknowledged under them.

use super::event::{Effect, FailReason, RequestId, Timer, TraceEvent, Verdict};
use super::leg::Session;
use super::members::{Members, Position};
use super::state::{Outbox, Pending, Phase, Purpose, Replicator};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::MembershipSeq;

impl Replicator {
    /// Asks for the in-sync set without the condemned members, as far as that leaves every shard
    /// a connected member that lost nothing and has been heard since. Model: `Propose`.
    pub(super) fn propose(&mut self, out: &mut Outbox) {
        if !self.verified {
            return;
        }
        if let Some(pending) = self.pending {
            return self.propose_again(pending, out);
        }
        if self.phase == Phase::Attaching && self.attach_due && self.config.may_shrink {
            for at in self.isr.iter() {
                let leg = self.leg_mut(at);
                if leg.session != Session::Open {
                    leg.condemned.get_or_insert(super::leg::Condemned::Grace);
                }
            }
        }
        self.note_failures();
        let (wanted, safe) = self.smaller();
        if safe != self.isr {
            self.trace(TraceEvent::Propose { isr: safe }, out);
            self.ask_metad(safe, out);
        } else if wanted != self.isr {
            self.ask_who_stays(wanted, out);
        }
    }

    /// The in-sync set without the condemned members as far as possible, and as far as is safe by
    /// now: those that stay may not have been heard.
    fn smaller(&self) -> (Members, Members) {
        // First trust nobody who failed a write that others took. If that leaves no way, keep one:
        // all it lacks was never acknowledged, and those writes will fail.
        let usable = self.usable(self.isr);
        let diverged: Members = usable.iter().filter(|at| self.is_diverged(*at)).collect();
        let mut trusted = usable.minus(diverged);
        let mut wanted = self.shrunk(trusted);
        if wanted == self.isr {
            trusted = usable;
            wanted = self.shrunk(trusted);
        }
        let heard = trusted.iter().filter(|at| self.is_heard(*at)).collect();
        (wanted, self.shrunk(heard))
    }

    /// A removal that was not answered is asked for again only if those that stay still answer. If
    /// they do not and others do, those are asked for: either may then have been recorded.
    fn propose_again(&mut self, pending: Pending, out: &mut Outbox) {
        if !pending.due {
            return;
        }
        let usable = self.usable(pending.isr);
        let heard: Members = usable.iter().filter(|at| self.is_heard(*at)).collect();
        if self.leaves_all(pending.isr, heard) {
            return self.repeat_request(out);
        }
        if self.leaves_all(pending.isr, usable) {
            return self.ask_who_stays(pending.isr, out);
        }
        self.note_failures();
        let (wanted, safe) = self.smaller();
        if safe != self.isr {
            self.trace(TraceEvent::Propose { isr: safe }, out);
            let both = pending.both.and(safe);
            self.pending = None;
            self.ask_metad(safe, out);
            self.pending.as_mut().expect("just asked").both = both;
        } else if wanted != self.isr {
            self.ask_who_stays(wanted, out);
        }
    }

    /// Whether every shard that loses somebody by the smaller set keeps one of these.
    fn leaves_all(&self, isr: Members, stay: Members) -> bool {
        let gone = self.isr.minus(isr);
        gone.iter().all(|at| self.may_shrink_to(isr, at, stay))
    }

    /// The in-sync set without as many condemned members as may go, suspects first, if these are
    /// counted on.
    fn shrunk(&self, counted_on: Members) -> Members {
        let mut isr = self.isr;
        let may_go = |p: &Position| {
            let leg = self.leg(*p);
            leg.condemned.is_some() && (self.config.may_shrink || leg.suspect)
        };
        let condemned = || self.isr.iter().filter(may_go);
        let suspects_first = condemned().filter(|p| self.leg(*p).suspect);
        for at in suspects_first.chain(condemned().filter(|p| !self.leg(*p).suspect)) {
            if self.may_shrink_to(isr.without(at), at, counted_on) {
                isr.remove(at);
            }
        }
        isr
    }

    /// Whether every shard that `gone` holds keeps somebody in `isr` that is counted on, and one of
    /// these vouches for the membership.
    fn may_shrink_to(&self, isr: Members, gone: Position, counted_on: Members) -> bool {
        let stay = isr.and(counted_on);
        let mut concerned = self.copysets.iter().filter(|homes| homes.has(gone));
        self.is_vouched(stay) && concerned.all(|homes| !homes.and(stay).is_empty())
    }

    /// Whether one of these vouches for the membership: it was a member before the last store joined,
    /// or one that was has been told of this version. A store that joins holds a stamp that lacks it,
    /// and is given the new one after an older member has it. Model: `Vouches`.
    pub(super) fn is_vouched(&self, by: Members) -> bool {
        let vouches = |at: Position| {
            let facts = &self.leg(at).facts;
            let member = facts.stamp_isr.is_empty() || facts.stamp_isr.has(at);
            !facts.incomplete && (member || facts.stamp_seq >= self.seq)
        };
        !stands(Mechanism::Vouch) || by.iter().any(vouches)
    }

    fn is_diverged(&self, at: Position) -> bool {
        self.leg(at).condemned == Some(super::leg::Condemned::Diverged)
    }

    pub(super) fn ask_metad(&mut self, isr: Members, out: &mut Outbox) {
        assert!(self.pending.is_none() && !isr.is_empty() && isr != self.isr);
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.pending = Some(Pending {
            request,
            isr,
            both: isr,
            tries: 0,
            due: false,
            found: None,
        });
        self.abort_stable(out);
        self.repeat_request(out);
        self.changed = true;
    }

    pub(super) fn repeat_request(&mut self, out: &mut Outbox) {
        let pending = self.pending.as_mut().expect("asked for");
        pending.due = false;
        let pending = *pending;
        let (request, seq, isr) = (pending.request, self.seq, pending.isr);
        out.push(match pending.found {
            None => Effect::AskMetad { request, seq, isr },
            Some(found_seq) => Effect::AskVerify {
                request,
                seq,
                found_seq,
                isr,
            },
        });
        let at = self.now.plus_ms(self.config.metad_retry_ms);
        out.push(Effect::Arm {
            timer: Timer::Metad,
            at,
        });
    }

    pub(super) fn on_metad_timer(&mut self, out: &mut Outbox) {
        let live = matches!(
            self.phase,
            Phase::Attaching | Phase::Serving | Phase::Detaching
        );
        let Some(pending) = self.pending.as_mut().filter(|_| live) else {
            return;
        };
        let removal = self.isr.covers(pending.isr) && pending.found.is_none();
        if !removal {
            return self.repeat_request(out);
        }
        pending.due = true;
        self.hear_again();
        self.changed = true;
    }

    pub(super) fn on_metad(&mut self, request: RequestId, verdict: Verdict, out: &mut Outbox) {
        let live = matches!(
            self.phase,
            Phase::Attaching | Phase::Serving | Phase::Detaching
        );
        let Some(pending) = self.pending.filter(|p| live && p.request == request) else {
            return; // an answer to an earlier sending of a request that is settled
        };
        match verdict {
            Verdict::Committed { seq, isr } if pending.found.is_some() => {
                self.on_verified(seq, isr, out);
            }
            Verdict::Committed { seq, isr } | Verdict::Stale { seq, isr }
                if pending.found.is_none() && self.was_asked_for(pending, isr) =>
            {
                self.learn(seq, isr, out);
            }
            Verdict::Stale { seq, isr }
                if pending.found.is_none() && isr == self.isr && seq > self.seq =>
            {
                self.seq = seq;
                self.pending = None;
                self.stamped = Members::EMPTY;
                self.stamping = Members::EMPTY;
                self.ask_metad(pending.isr, out);
            }
            Verdict::Committed { .. } | Verdict::Stale { .. } => {
                self.fail(FailReason::Membership, out);
            }
            Verdict::Fenced => self.fail(FailReason::Fenced, out),
            Verdict::Unknown => {
                let tries = pending.tries + 1;
                self.pending = Some(Pending { tries, ..pending });
                let at = self.now.plus_ms(self.backoff_ms(tries));
                out.push(Effect::Arm {
                    timer: Timer::Metad,
                    at,
                });
            }
        }
    }

    /// Of several requests on one version any may have been recorded, and no other party's under
    /// our epoch.
    fn was_asked_for(&self, pending: Pending, isr: Members) -> bool {
        let superseded = pending.both != pending.isr;
        let smaller = isr != self.isr && isr.covers(pending.both) && self.isr.covers(isr);
        isr == pending.isr || superseded && !isr.is_empty() && smaller
    }

    /// The change is recorded. Model: `Learn`.
    fn learn(&mut self, seq: MembershipSeq, isr: Members, out: &mut Outbox) {
        assert!(!isr.is_empty() && self.all.covers(isr) && seq >= self.seq);
        let excluded = self.isr.minus(isr);
        let joined = isr.minus(self.isr);
        self.pending = None;
        (self.seq, self.isr) = (seq, isr);
        self.stamped = Members::EMPTY;
        self.stamping = Members::EMPTY;
        self.changed = true;
        self.trace(TraceEvent::Learn { seq, isr }, out);
        excluded.iter().for_each(|at| self.exclude(at, out));
        joined.iter().for_each(|at| self.on_joined(at, out));
    }

    /// A member is out: what it lacks is noted, its session closed, its return put off if it has
    /// been in and out before.
    fn exclude(&mut self, at: Position, out: &mut Outbox) {
        let slow = self.leg(at).condemned == Some(super::leg::Condemned::Slow);
        if self.leg(at).session == Session::Open {
            self.send(at, Purpose::Close, super::event::Command::CloseSlice, out);
        }
        self.end_session(at, out);
        self.leave_write_set(at, out);
        self.note_unreconciled(at);
        let flapping = self
            .leg(at)
            .joined_at
            .is_some_and(|joined| self.now < joined.plus_ms(super::HYSTERESIS_MS));
        let leg = self.leg_mut(at);
        leg.suspect = false;
        leg.condemned = None;
        leg.failures = if flapping { leg.failures + 1 } else { 0 };
        if slow {
            self.keep_out(at);
        }
        self.retry_later(at);
    }

    /// Writes under way will not reach the store any more; flushes do not wait for it.
    pub(super) fn leave_write_set(&mut self, at: Position, out: &mut Outbox) {
        assert!(!self.write_set().has(at));
        let missed: Vec<_> = self
            .ops
            .values()
            .filter(|op| !op.is_read() && op.start_no > 0)
            .flat_map(|op| &op.pieces)
            .filter(|p| p.homes.has(at) && !p.done.has(at))
            .map(|p| p.range)
            .collect();
        for piece in self.ops.values_mut().flat_map(|op| &mut op.pieces) {
            piece.failed.remove(at); // as a resilver target it may try again
            piece.full.remove(at);
        }
        let leg = self.leg_mut(at);
        missed.into_iter().for_each(|range| leg.dirty.insert(range));
        self.flush_leg_left(at, out);
        self.changed = true;
    }

    fn on_joined(&mut self, at: Position, out: &mut Outbox) {
        let now = self.now;
        let leg = self.leg_mut(at);
        leg.joined_at = Some(now);
        leg.witnessed = true;
        leg.planned_for = None;
        self.resilver_joined(at, out);
    }
}

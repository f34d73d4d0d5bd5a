//! A member that answers, but too late (protocol §7), counts as lost; and which member is quick.
//!
//! Late is a write or flush without an answer for [`super::Config::slow_ms`], while another member of
//! each of its shards keeps up: if nobody does, the cause is not the store. An alarm is armed only
//! while there is something to wait for.

use super::event::{Effect, Timer, TraceEvent};
use super::leg::{Condemned, Session};
use super::members::{Members, Position};
use super::state::{Outbox, Outstanding, Phase, Purpose, Replicator};
use shardmap::units::Moment;

/// One read in so many goes round, whatever is known of latencies: they may have changed.
const EXPLORE_EVERY: u64 = 32;

fn is_timed(purpose: Purpose) -> bool {
    matches!(purpose, Purpose::HostWrite { .. } | Purpose::Flush)
}

impl Replicator {
    pub(super) fn arm_slow(&mut self, purpose: Purpose, out: &mut Outbox) {
        if self.slow_due.is_none() && self.config.slow_ms > 0 && is_timed(purpose) {
            self.arm_slow_at(self.now.plus_ms(self.config.slow_ms), out);
        }
    }

    fn arm_slow_at(&mut self, at: Moment, out: &mut Outbox) {
        self.slow_due = Some(at);
        let timer = Timer::Slow;
        out.push(Effect::Arm { timer, at });
    }

    pub(super) fn on_slow_timer(&mut self, out: &mut Outbox) {
        let Some(due) = self.slow_due.take() else {
            return;
        };
        let live = matches!(self.phase, Phase::Serving | Phase::Detaching);
        let mut timed = self.commands.values().filter(|c| is_timed(c.purpose));
        let Some(oldest) = timed.by_ref().map(|c| c.sent_at).min().filter(|_| live) else {
            return; // armed again by the next command
        };
        let limit_ns = self.config.slow_ms.saturating_mul(1_000_000);
        if self.now.since_ns(due) > limit_ns / 2 {
            // We were not running: answers may lie unread.
            return self.arm_slow_at(self.now.plus_ms(self.config.slow_ms), out);
        }
        let late = self.late_members(limit_ns);
        late.iter().for_each(|at| self.condemn_slow(at, late, out));
        let next = oldest.plus_ms(self.config.slow_ms);
        let soon = self.now.plus_ms((self.config.slow_ms / 4).max(1));
        self.arm_slow_at(next.max(soon), out);
    }

    fn late_members(&self, limit_ns: u64) -> Members {
        let late = |c: &&Outstanding| {
            let leg = self.leg(c.to);
            let current = leg.session == Session::Open && leg.session_no == c.session_no;
            current && is_timed(c.purpose) && self.now.since_ns(c.sent_at) >= limit_ns
        };
        self.commands.values().filter(late).map(|c| c.to).collect()
    }

    fn condemn_slow(&mut self, at: Position, late: Members, out: &mut Outbox) {
        let quick = |p: &Position| self.leg(*p).condemned.is_none();
        let quick: Members = self
            .usable(self.isr.minus(late))
            .iter()
            .filter(quick)
            .collect();
        let mut shards = self.copysets.iter().filter(|homes| homes.has(at));
        if !shards.all(|homes| !homes.and(quick).is_empty()) {
            return;
        }
        if !self.ack_set().has(at) {
            self.keep_out(at);
            self.drop_catch_up(out);
            return self.drop_resilver(out);
        }
        let leg = self.leg_mut(at);
        if leg.condemned.is_some() {
            return;
        }
        leg.condemned = Some(Condemned::Slow);
        let store = leg.store;
        self.changed = true;
        self.trace(TraceEvent::Slow { store }, out);
    }

    /// It stays out for a while, longer each time, unless it has behaved for long.
    pub(super) fn keep_out(&mut self, at: Position) {
        let (first, longest) = self.config.slow_return_ms;
        let now = self.now;
        let leg = self.leg_mut(at);
        let behaved = leg
            .joined_at
            .is_some_and(|joined| now >= joined.plus_ms(longest.saturating_mul(2)));
        leg.slow_exits = if behaved { 1 } else { leg.slow_exits + 1 };
        let pause = first.saturating_mul(1 << (leg.slow_exits - 1).min(16));
        leg.retry_at = leg.retry_at.max(now.plus_ms(pause.min(longest)));
    }

    pub(super) fn note_read_time(&mut self, at: Position, sent_at: Moment) {
        let sample = self.now.since_ns(sent_at);
        let leg = self.leg_mut(at);
        leg.read_ns = if leg.read_ns == 0 {
            sample
        } else {
            leg.read_ns - leg.read_ns / 8 + sample / 8
        };
    }

    /// How long a read would take at this store, to a factor of two; a store that was never asked
    /// comes first. Differences below that are noise: there the least busy one is better.
    pub(super) fn read_cost(&self, at: Position, turn: u64) -> u32 {
        if turn % EXPLORE_EVERY == EXPLORE_EVERY - 1 {
            return 0;
        }
        let leg = self.leg(at);
        let cost_ns = leg.read_ns.saturating_mul(u64::from(leg.outstanding) + 1);
        cost_ns.checked_ilog2().unwrap_or(0)
    }
}

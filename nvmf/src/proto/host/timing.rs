//! Time: deadlines, keep-alives, and the one timer of an association.
//!
//! The timer is lazy. It is armed no later than the earliest thing that may become due and only
//! moved when that gets earlier; when it fires, what is really due is looked up. A busy
//! association thus fires once per deadline, an idle one once per half keep-alive timeout.

use super::slots::Purpose;
use super::{Effect, Host, LostReason, Outbox, Phase, QueueId};
use crate::proto::sqe::{Sqe, admin};

impl Host {
    /// Makes sure that the timer fires no later than this.
    pub(super) fn arm_before(&mut self, at_ns: u64, out: &mut Outbox) {
        if at_ns < self.armed_ns {
            self.armed_ns = at_ns;
            out.push(Effect::Arm { at_ns });
        }
    }

    /// Sets the timer to what is really next.
    pub(super) fn arm_anew(&mut self, out: &mut Outbox) {
        let at_ns = self.next_due_ns();
        if at_ns != self.armed_ns && at_ns != u64::MAX {
            self.armed_ns = at_ns;
            out.push(Effect::Arm { at_ns });
        }
    }

    fn next_due_ns(&self) -> u64 {
        let due = self.queues[0]
            .slots
            .deadline_ns()
            .min(self.queues[1].slots.deadline_ns());
        match self.phase {
            Phase::Ready => due.min(self.keep_alive_due_ns()),
            Phase::AwaitingReady => due.min(self.poll_at_ns).min(self.connect_due_ns()),
            Phase::Lost => u64::MAX,
            Phase::Idle
            | Phase::Opening(_)
            | Phase::Greeting(_)
            | Phase::Connecting(_)
            | Phase::ReadingCapabilities
            | Phase::Enabling
            | Phase::Identifying
            | Phase::SettingQueues
            | Phase::SettingEvents => due.min(self.connect_due_ns()),
        }
    }

    pub(super) fn connect_due_ns(&self) -> u64 {
        self.started_ns
            .saturating_add(self.config.connect_timeout_ns)
    }

    fn keep_alive_due_ns(&self) -> u64 {
        match self.config.kato_ms {
            0 => u64::MAX,
            kato_ms => self
                .last_alive_ns
                .saturating_add(u64::from(kato_ms) * 1_000_000 / 2),
        }
    }

    pub(super) fn on_timer(&mut self, now_ns: u64, out: &mut Outbox) {
        self.armed_ns = u64::MAX;
        for queue in QueueId::ALL {
            if let Some(opcode) = self.queues[queue.index()].slots.overdue(now_ns) {
                return self.lose(LostReason::Deadline { queue, opcode }, None, out);
            }
        }
        if self.phase != Phase::Ready {
            if now_ns >= self.connect_due_ns() {
                let reason = LostReason::ConnectTimeout { phase: self.phase };
                return self.lose(reason, None, out);
            }
            if self.phase == Phase::AwaitingReady && now_ns >= self.poll_at_ns {
                self.ask_status(now_ns, out);
            }
        } else if now_ns >= self.keep_alive_due_ns() {
            self.keep_alive(now_ns, out);
        }
        self.arm_anew(out);
    }

    fn keep_alive(&mut self, now_ns: u64, out: &mut Outbox) {
        self.last_alive_ns = now_ns;
        if !self.queues[0].slots.contains(Purpose::KeepAlive) {
            let sqe = Sqe::new(admin::KEEP_ALIVE, 0, 0);
            self.issue_own(now_ns, Purpose::KeepAlive, sqe, 0, out);
        }
    }
}

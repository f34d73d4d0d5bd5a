//! Who stays must have been heard (protocol §7).
//!
//! A connection that looks alive proves nothing: a store may have lost power, and its medium, and
//! nobody has noticed yet. If another member that holds everything fails now and is removed, the
//! blank one is all that is left. So a removal counts only on members that have answered, on their
//! current session, a question that was asked after the failure had been noticed. Who does not
//! answer loses its path in time and is not counted on.

use super::event::{Command, CommandId, SliceFacts};
use super::members::{Members, Position};
use super::state::{Outbox, Purpose, Replicator};
use shardmap::canary::{Mechanism, stands};

/// Since when an answer counts.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// Members whose failure has been noticed.
    failed: Members,
    /// The first command that was sent after that.
    since: CommandId,
}

impl Replicator {
    /// Answers to what was asked before a failure do not count for its removal.
    pub(super) fn note_failures(&mut self) {
        let condemned = |at: &Position| self.leg(*at).condemned.is_some();
        let failed: Members = self.isr.iter().filter(condemned).collect();
        if !self.hearing.failed.covers(failed) {
            self.hear_again();
        }
        self.hearing.failed = failed;
    }

    /// Only answers to what is asked from now on count.
    pub(super) fn hear_again(&mut self) {
        self.hearing.since = CommandId(self.next_command);
    }

    /// Whether the member has answered since. Model: the guard of `Propose`.
    pub(super) fn is_heard(&self, at: Position) -> bool {
        let leg = self.leg(at);
        let heard = leg.heard >= Some(self.hearing.since) || !stands(Mechanism::Hear);
        leg.usable() && heard
    }

    /// Asks those that stay and have not been heard.
    pub(super) fn ask_who_stays(&mut self, isr: Members, out: &mut Outbox) {
        let since = Some(self.hearing.since);
        for at in self.usable(isr).iter() {
            let question = CommandId(self.next_command);
            let leg = self.leg_mut(at);
            if leg.heard < since && leg.asked < since {
                leg.asked = Some(question);
                self.send(at, Purpose::Hear, Command::SliceState, out);
            }
        }
    }

    /// It is there. If it is not what we knew, a new session will tell.
    pub(super) fn on_heard(&mut self, at: Position, facts: SliceFacts, out: &mut Outbox) {
        let leg = self.leg(at);
        let same = leg.incarnation == Some(facts.incarnation) && !facts.incomplete;
        if same {
            self.changed = true;
        } else {
            self.end_session(at, out);
        }
    }
}

//! After a disaster restore of metad (protocol §3.4): the stores know the newest membership.
//!
//! Sound because a membership is stamped on all its members before anything is acknowledged under
//! it, and follows one with which it shares a member: if every member of a membership answers and
//! none knows of a newer one, there was none. A store that has lost its disk may have held the
//! newer stamp, so it is no answer.

use super::event::{AttachFault, RequestId, TraceEvent};
use super::leg::Session;
use super::members::Members;
use super::state::{Outbox, Pending, Phase, Replicator};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::MembershipSeq;

impl Replicator {
    /// Stores that have answered with their stamps intact. Model: `O` of `Verify`.
    fn witnesses(&self) -> Members {
        let intact = |leg: &super::leg::Leg| leg.session == Session::Open && !leg.facts.incomplete;
        self.all.iter().filter(|at| intact(self.leg(*at))).collect()
    }

    /// The newest membership among metad's record and the stamps of the witnesses; `None` if two
    /// of the same version differ.
    fn newest_found(&self, witnesses: Members) -> Option<(MembershipSeq, Members)> {
        let mut newest = (self.seq, self.isr);
        if !stands(Mechanism::Stamps) {
            return Some(newest);
        }
        for at in witnesses.iter() {
            let facts = &self.leg(at).facts;
            let found = (facts.stamp_seq, facts.stamp_isr);
            let stamped = found.0 > MembershipSeq(0);
            if stamped && found.0 == newest.0 && found.1 != newest.1 {
                return None;
            }
            if stamped && found.0 > newest.0 {
                newest = found;
            }
        }
        Some(newest)
    }

    /// Asks metad to record what the stores say, once all that it names have said it. Model:
    /// `Verify`.
    pub(super) fn verify_forward(&mut self, out: &mut Outbox) {
        assert!(self.phase == Phase::Attaching && !self.verified);
        if self.pending.is_some() {
            return;
        }
        let witnesses = self.witnesses();
        let Some((found_seq, isr)) = self.newest_found(witnesses) else {
            return self.end_attach(AttachFault::Membership, out);
        };
        if isr.is_empty() || !self.all.covers(isr) {
            return self.end_attach(AttachFault::Membership, out);
        }
        if !witnesses.covers(isr) {
            if self.attach_due {
                let needed = isr.minus(witnesses);
                self.end_attach(AttachFault::StoresNeeded(needed), out);
            }
            return;
        }
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.pending = Some(Pending {
            request,
            isr,
            both: isr,
            tries: 0,
            due: false,
            found: Some(found_seq),
        });
        self.repeat_request(out);
    }

    /// The membership is recorded as the newest one; the attach goes on with it.
    pub(super) fn on_verified(&mut self, seq: MembershipSeq, isr: Members, out: &mut Outbox) {
        assert!(!self.verified && !isr.is_empty() && self.all.covers(isr));
        self.pending = None;
        self.verified = true;
        (self.seq, self.isr) = (seq, isr);
        self.stamped = Members::EMPTY;
        self.stamping = Members::EMPTY;
        for at in self.all.minus(isr).iter() {
            let leg = self.leg_mut(at);
            leg.suspect = false;
            leg.condemned = None;
        }
        self.changed = true;
        self.trace(TraceEvent::Verify { seq, isr }, out);
    }
}

//! Attach (protocol §3): open everybody, remove who does not answer, then serve.

use super::event::{AttachFault, Command, Effect, FailReason, Timer, TraceEvent};
use super::leg::Session;
use super::members::{Members, Position};
use super::state::{Outbox, Phase, Purpose, Replicator};
use shardmap::dirty::RegionSet;
use shardmap::units::{MembershipSeq, RegionIndex};

impl Replicator {
    pub(super) fn on_start(&mut self, out: &mut Outbox) {
        assert_eq!(self.phase, Phase::New, "started twice");
        self.phase = Phase::Attaching;
        self.all.iter().for_each(|at| out.push(Effect::Connect(at)));
        let at = self.now.plus_ms(self.config.attach_wait_ms);
        out.push(Effect::Arm {
            timer: Timer::Attach,
            at,
        });
    }

    pub(super) fn on_attach_marks(
        &mut self,
        at: Position,
        marks: &RegionSet,
        more: Option<RegionIndex>,
        out: &mut Outbox,
    ) {
        let leg = self.leg_mut(at);
        assert_eq!(leg.session, Session::Marks);
        leg.marks.merge(marks);
        if let Some(from) = more {
            self.send(at, Purpose::AttachMarks, Command::ReadMarks { from }, out);
        } else {
            self.session_ready(at, out);
        }
    }

    /// Serves once every in-sync member is open under our epoch or removed, and knows it. Model:
    /// `CanServe`, `Establish`.
    pub(super) fn attach_forward(&mut self, out: &mut Outbox) {
        if self.phase != Phase::Attaching {
            return;
        }
        if self.attach_due && self.pending.is_none() {
            let usable = self.usable(self.isr);
            if let Some(homes) = self.copysets.iter().find(|h| usable.and(**h).is_empty()) {
                let needed = homes.and(self.isr);
                return self.end_attach(AttachFault::StoresNeeded(needed), out);
            }
        }
        let ready = self.pending.is_none() && self.usable(self.isr) == self.isr;
        if ready && self.is_stamped() {
            self.establish(out);
        }
    }

    fn establish(&mut self, out: &mut Outbox) {
        let mut regions = RegionSet::new();
        for at in self.isr.iter() {
            let marks = std::mem::take(&mut self.leg_mut(at).marks);
            regions.merge(&marks);
        }
        regions.retain(|r| self.region_range(r).is_some());
        self.phase = Phase::Serving;
        for at in self.isr.iter() {
            self.leg_mut(at).witnessed = true;
        }
        self.trace(
            TraceEvent::Establish {
                regions: regions.len_regions(),
            },
            out,
        );
        self.begin_reconcile(regions);
        out.push(Effect::Attached);
        self.changed = true;
    }

    /// Nothing was served: gives up without a trace at metad.
    pub(super) fn end_attach(&mut self, why: AttachFault, out: &mut Outbox) {
        assert_eq!(self.phase, Phase::Attaching);
        self.phase = Phase::Ended;
        out.push(Effect::AttachFailed(why));
    }

    /// Tells the membership to every in-sync member that does not hold its stamp. Model: `Stamp`.
    pub(super) fn send_stamps(&mut self, out: &mut Outbox) {
        if self.seq == MembershipSeq(0) || self.pending.is_some() {
            return;
        }
        let missing = self
            .usable(self.isr)
            .minus(self.stamped)
            .minus(self.stamping);
        for at in missing.iter() {
            self.stamping.insert(at);
            let stamp = self.stamp();
            self.send(at, Purpose::Stamp(self.seq), Command::Stamp(stamp), out);
        }
    }

    pub(super) fn on_stamped(&mut self, at: Position, seq: MembershipSeq, out: &mut Outbox) {
        if seq != self.seq {
            return; // of a membership that is over; the newer stamp was sent too
        }
        self.stamping.remove(at);
        self.stamped.insert(at);
        self.changed = true;
        let store = self.leg(at).store;
        self.trace(TraceEvent::Stamp { store }, out);
    }

    /// The device must fail; nothing is acknowledged from here on.
    pub(super) fn fail(&mut self, why: FailReason, out: &mut Outbox) {
        if self.phase == Phase::Attaching {
            let why = match why {
                FailReason::Fenced => AttachFault::Fenced,
                FailReason::Membership => AttachFault::Membership,
                FailReason::DataLost => AttachFault::StoresNeeded(Members::EMPTY),
            };
            return self.end_attach(why, out);
        }
        if matches!(self.phase, Phase::Failed | Phase::Ended) {
            return;
        }
        let detaching = self.phase == Phase::Detaching;
        self.phase = Phase::Failed;
        out.push(Effect::Failed(why));
        self.fail_all_ops(out);
        if detaching {
            self.end(out);
        }
    }

    /// Lets go of everything: the last effect of a machine.
    pub(super) fn end(&mut self, out: &mut Outbox) {
        self.phase = Phase::Ended;
        out.push(Effect::Detached);
    }
}

//! Attach (protocol §3): open everybody, remove who does not answer, then serve.

use super::event::{AttachFault, Command, Effect, FailReason, Timer, TraceEvent};
use super::leg::Session;
use super::members::{Members, Position};
use super::state::{Outbox, Phase, Purpose, Replicator};
use shardmap::canary::{Mechanism, stands};
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
        if !self.verified {
            return self.verify_forward(out);
        }
        if self.knows_newer_stamp() || self.knows_newer_generations() {
            return self.end_attach(AttachFault::MetadBehind, out);
        }
        self.isr.iter().for_each(|at| self.doubt_generations(at));
        if self.is_lost_above() {
            return self.end_attach(AttachFault::DataLost, out);
        }
        if self.attach_due && self.pending.is_none() {
            let usable = self.usable(self.isr);
            if let Some(homes) = self.copysets.iter().find(|h| usable.and(**h).is_empty()) {
                let needed = homes.and(self.isr);
                return self.end_attach(AttachFault::StoresNeeded(needed), out);
            }
            if usable != self.isr && !self.is_vouched(usable) {
                let needed = self.isr.minus(usable);
                return self.end_attach(AttachFault::StoresNeeded(needed), out);
            }
            if !self.config.may_shrink && usable != self.isr {
                let away = self.isr.minus(usable);
                return self.end_attach(AttachFault::MembersAway(away), out);
            }
        }
        let ready = self.pending.is_none() && self.usable(self.isr) == self.isr;
        if ready && self.is_stamped() && self.have_begun(out) {
            self.establish(out);
        }
    }

    /// metad commits a membership before any store is stamped with it, so a newer stamp means that
    /// metad has lost commits without saying so.
    fn knows_newer_stamp(&self) -> bool {
        let open = |at: &Position| self.leg(*at).session == Session::Open;
        let newer = |at: Position| self.leg(at).facts.stamp_seq > self.seq;
        self.pending.is_none() && self.all.iter().filter(open).any(newer)
    }

    /// What is above us has outlived our predecessor, and some shard has no member left that is sure
    /// to hold all that was acknowledged (protocol §10).
    fn is_lost_above(&self) -> bool {
        let lost = |homes: &Members| {
            let members = homes.and(self.isr);
            !members.is_empty() && members.iter().all(|at| self.leg(at).suspect)
        };
        self.survived && self.copysets.iter().any(lost)
    }

    fn establish(&mut self, out: &mut Outbox) {
        let mut regions = RegionSet::new();
        for at in self.isr.iter() {
            let marks = std::mem::take(&mut self.leg_mut(at).marks);
            regions.merge(&marks);
        }
        regions.retain(|r| self.region_range(r).is_some());
        if !stands(Mechanism::AttachMarks) {
            regions.clear();
        }
        self.phase = Phase::Serving;
        for at in self.isr.iter() {
            self.leg_mut(at).witnessed = true;
        }
        if self.survived {
            self.inherit_unflushed(&regions);
        }
        self.trace(
            TraceEvent::Establish {
                regions: regions.len_regions(),
            },
            out,
        );
        self.resume_snapshot(out);
        self.begin_reconcile(regions);
        self.remember(out);
        out.push(Effect::Attached);
        self.changed = true;
    }

    /// What our predecessor acknowledged and no flush covered lies in marked regions: a member that
    /// restarts from now on may lose it, and a flush from above has to cover it.
    fn inherit_unflushed(&mut self, regions: &RegionSet) {
        let size_blocks = self.map.size_blocks;
        for region in regions.iter() {
            for at in self.homes_of_region(region).and(self.isr).iter() {
                self.legs[at.index()].unflushed.inherit(region, size_blocks);
            }
        }
        self.legs.iter_mut().for_each(|leg| leg.inherited = false);
    }

    /// Hands out under which incarnations members hold all that is acknowledged, if that changed. A
    /// member without a session at the moment keeps its entry: it may come back as it was.
    pub(super) fn remember(&mut self, out: &mut Outbox) {
        if !matches!(self.phase, Phase::Serving | Phase::Detaching) {
            return;
        }
        // One that metad is asked to take in has it all too: our successor may find that it is in.
        let trusted = self.ack_set();
        let trusted = trusted.iter().filter(|at| !self.leg(*at).suspect);
        let entry = |at: Position| {
            let leg = self.leg(at);
            let open = leg.session == Session::Open;
            let now = leg.incarnation.filter(|_| open);
            Some((at, now.or_else(|| self.remembered.get(&at).copied())?))
        };
        let now: std::collections::BTreeMap<_, _> = trusted.filter_map(entry).collect();
        if now != self.remembered {
            self.remembered = now;
            out.push(Effect::Remember(self.remembered.clone()));
        }
    }

    /// Nothing was served: gives up without a trace at metad.
    pub(super) fn end_attach(&mut self, why: AttachFault, out: &mut Outbox) {
        assert_eq!(self.phase, Phase::Attaching);
        self.phase = Phase::Ended;
        out.push(Effect::AttachFailed(why));
    }

    /// Tells the membership to every in-sync member that does not hold its stamp, first to those that
    /// vouch for it. Model: `Stamp`.
    pub(super) fn send_stamps(&mut self, out: &mut Outbox) {
        if self.is_stamped() || self.pending.is_some() || !self.verified {
            return; // a restored membership must not look like a newer one
        }
        let missing = self.to_be_told().minus(self.stamped).minus(self.stamping);
        let is_known = !self.stamped.and(self.isr).is_empty() || self.is_forgotten();
        for at in missing.iter() {
            if !is_known && !self.is_vouched(Members::one(at)) {
                continue;
            }
            self.stamping.insert(at);
            let stamp = self.stamp();
            self.send(at, Purpose::Stamp(self.seq), Command::Stamp(stamp), out);
        }
    }

    /// Members that are to know the membership: those that can be used. If none of them vouches, one that
    /// does is told although it is about to be removed.
    fn to_be_told(&self) -> Members {
        let usable = self.usable(self.isr);
        if self.is_vouched(usable) {
            return usable;
        }
        let whole = |at: &Position| {
            let leg = self.leg(*at);
            leg.session == Session::Open && !leg.facts.incomplete
        };
        self.isr.iter().filter(whole).collect()
    }

    /// All members have answered and none vouches: who was one before the last join has lost its medium,
    /// and its stamp, so that no restored metad can agree with it.
    fn is_forgotten(&self) -> bool {
        let open = |at: Position| self.leg(at).session == Session::Open;
        self.isr.iter().all(open) && !self.is_vouched(self.isr)
    }

    pub(super) fn on_stamped(&mut self, at: Position, seq: MembershipSeq, out: &mut Outbox) {
        if seq != self.seq {
            return; // of a membership that is over; the newer stamp was sent too
        }
        self.stamping.remove(at);
        self.stamped.insert(at);
        self.changed = true;
        let stamp = self.stamp();
        let leg = self.leg_mut(at);
        leg.stamp_with(stamp);
        let store = leg.store;
        self.trace(TraceEvent::Stamp { store }, out);
    }

    /// The device must fail; nothing is acknowledged from here on.
    pub(super) fn fail(&mut self, why: FailReason, out: &mut Outbox) {
        if self.phase == Phase::Attaching {
            let why = match why {
                FailReason::Fenced => AttachFault::Fenced,
                FailReason::Membership => AttachFault::Membership,
                FailReason::DataLost => AttachFault::DataLost,
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

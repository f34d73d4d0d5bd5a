//! What always holds between steps.

use super::leg::Session;
use super::resilver::ResilverPhase;
use super::state::{Phase, Replicator, Stage};
use shardmap::canary::{Mechanism, stands};

impl Replicator {
    /// Panics on a broken invariant. Cheap ones always; scans in debug builds.
    pub(super) fn check_invariants(&self) {
        assert!(!self.isr.is_empty() && self.all.covers(self.write_set()));
        assert!(
            self.granted.is_empty() && !self.changed,
            "a step ends with work left over"
        );
        if let Some(rs) = &self.resilver {
            assert!(!self.isr.has(rs.target), "a member is being resilvered");
            let joining = rs.phase == ResilverPhase::Joining;
            let asked = self.pending.is_some_and(|p| p.isr.has(rs.target));
            assert_eq!(joining, asked, "joining means asked for");
        }
        if let Some(catch_up) = &self.catch_up {
            let outside = !self.write_set().has(catch_up.target);
            assert!(outside && self.resilver.is_none(), "one store at a time");
        }
        self.check_generations();
        if let Some(pending) = &self.pending {
            let changes = pending.found.is_some() || pending.isr != self.isr;
            assert!(!pending.isr.is_empty() && changes);
            assert_eq!(
                pending.found.is_none(),
                self.verified,
                "verified once, first"
            );
        }
        if cfg!(debug_assertions) {
            self.scan();
        }
    }

    fn scan(&self) {
        self.lock.check();
        for at in self.all.iter() {
            let leg = self.leg(at);
            let outstanding = self.commands.values().filter(|c| c.to == at).count();
            assert_eq!(leg.outstanding as usize, outstanding, "position {at}");
            assert!(leg.path || leg.session == Session::Closed, "position {at}");
            if let Some(command) = leg.flush.running {
                assert!(
                    self.commands.contains_key(&command),
                    "position {at}: flush vanished"
                );
            }
            let live = matches!(self.phase, Phase::Serving | Phase::Detaching);
            if live && self.isr.has(at) && !leg.suspect {
                assert!(leg.dirty.is_empty(), "position {at}: in sync and dirty");
            }
        }
        for (id, op) in &self.ops {
            for piece in &op.pieces {
                assert!(piece.sent.and(piece.done).is_empty(), "{id:?}");
                assert!(piece.homes.covers(piece.sent.or(piece.done)), "{id:?}");
                assert!(
                    op.is_read()
                        || !piece.finished
                        || piece.sent.is_empty()
                        || !stands(Mechanism::AckAll),
                    "{id:?}"
                );
                assert!(
                    !op.is_read() || piece.sent.count() <= 1,
                    "{id:?} read twice at once"
                );
            }
            assert_eq!(
                op.stage == Stage::Parked,
                self.parked.contains(id),
                "{id:?}"
            );
        }
    }
}

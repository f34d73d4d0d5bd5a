//! The resilvers of one daemon, as it reports them.

use crate::api::{ResilverOutcome, ResilverReport};
use shardmap::units::{StoreId, VolumeId};

/// Running and ended resilvers that are kept for reports.
const KEPT_MAX: usize = 64;

/// What is reported of resilvers: a running one per volume and store, and the ended ones. Times are
/// those of the wall clock, in milliseconds since 1970.
#[derive(Clone, Debug, Default)]
pub struct ResilverLog {
    kept: Vec<ResilverReport>,
}

impl ResilverLog {
    /// A resilver has moved so many bytes of so many, at this rate; it begins if it did not run.
    pub fn moved(
        &mut self,
        of: (VolumeId, StoreId),
        (done_bytes, total_bytes): (u64, u64),
        bytes_per_s: u64,
        now_unix_ms: u64,
    ) {
        let report = self.running(of, now_unix_ms);
        report.done_bytes = done_bytes;
        report.total_bytes = total_bytes;
        report.bytes_per_s = bytes_per_s;
    }

    /// A resilver has ended well.
    pub fn complete(
        &mut self,
        of: (VolumeId, StoreId),
        (done_bytes, total_bytes): (u64, u64),
        now_unix_ms: u64,
    ) {
        let report = self.running(of, now_unix_ms);
        report.done_bytes = done_bytes;
        report.total_bytes = total_bytes;
        report.outcome = ResilverOutcome::Complete;
        report.ended_unix_ms = now_unix_ms;
    }

    /// Whatever runs for the volume is given up: somebody else goes on, or it begins again later.
    pub fn give_up(&mut self, volume: VolumeId, now_unix_ms: u64) {
        let running =
            |r: &&mut ResilverReport| r.volume == volume && r.outcome == ResilverOutcome::Running;
        for report in self.kept.iter_mut().filter(running) {
            report.outcome = ResilverOutcome::Failed;
            report.ended_unix_ms = now_unix_ms;
        }
    }

    /// All of them, oldest first.
    pub fn reports(&self) -> Vec<ResilverReport> {
        self.kept.clone()
    }

    /// The running resilver of a store, a new one if there is none.
    fn running(
        &mut self,
        (volume, store): (VolumeId, StoreId),
        now_unix_ms: u64,
    ) -> &mut ResilverReport {
        let running = |r: &ResilverReport| {
            r.volume == volume && r.store == store && r.outcome == ResilverOutcome::Running
        };
        let at = self.kept.iter().position(running).unwrap_or_else(|| {
            if self.kept.len() >= KEPT_MAX {
                self.kept.remove(0);
            }
            self.kept.push(ResilverReport {
                volume,
                store,
                started_unix_ms: now_unix_ms,
                done_bytes: 0,
                total_bytes: 0,
                bytes_per_s: 0,
                outcome: ResilverOutcome::Running,
                ended_unix_ms: 0,
            });
            self.kept.len() - 1
        });
        &mut self.kept[at]
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const OF: (VolumeId, StoreId) = (VolumeId([1; 16]), StoreId(2));

    #[test]
    fn a_resilver_that_is_given_up_is_another_one_when_it_begins_again() {
        let mut log = ResilverLog::default();
        log.moved(OF, (5, 9), 1, 100);
        log.moved(OF, (6, 9), 1, 110);
        log.give_up(OF.0, 120);
        log.moved(OF, (1, 3), 1, 130);
        log.complete(OF, (3, 3), 140);
        log.give_up(OF.0, 150);
        let told = log.reports().into_iter();
        let told: Vec<_> = told
            .map(|r| (r.started_unix_ms, r.done_bytes, r.outcome, r.ended_unix_ms))
            .collect();
        use ResilverOutcome::{Complete, Failed};
        assert_eq!(told, [(100, 6, Failed, 120), (130, 3, Complete, 140)]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut log = ResilverLog::default();
        for store in 0..1_000 {
            log.complete((OF.0, StoreId(store)), (1, 1), 5);
        }
        assert_eq!(log.reports().len(), KEPT_MAX);
    }
}

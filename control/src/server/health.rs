//! What daemons reported to this leader: kept in memory, gone with its term.
//!
//! Time comes in as an argument; nothing here waits or sends.

use super::{REPORT_ITEMS_MAX, REPORT_TEXT_MAX, RESILVER_HISTORY_MAX};
use crate::api::{
    Liveness, Report, ReportContents, Reporter, ResilverOutcome, ResilverReport, StoreHealth,
    StoreReport, VolumeReport,
};
use shardmap::units::{Moment, StoreId, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use uuid::Uuid;

/// One daemon.
#[derive(Debug)]
struct Heard {
    run: Uuid,
    turn: u64,
    contents: ReportContents,
    at: Moment,
    connection: u64,
    liveness: Liveness,
}

/// Something worth a line in the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// A daemon is heard of again, overdue, or given up.
    Liveness(Reporter, Liveness),
    /// A resilver began.
    ResilverBegan(ResilverReport),
    /// A resilver ended.
    ResilverEnded(ResilverReport),
}

/// The leader's memory.
#[derive(Debug)]
pub(super) struct Health {
    suspect_after_ms: u64,
    offline_after_ms: u64,
    since: Moment,
    heard: BTreeMap<Reporter, Heard>,
    history: VecDeque<ResilverReport>,
}

impl Health {
    pub(super) fn new(suspect_after_ms: u64, offline_after_ms: u64) -> Self {
        assert!(suspect_after_ms < offline_after_ms);
        Self {
            suspect_after_ms,
            offline_after_ms,
            since: Moment(0),
            heard: BTreeMap::new(),
            history: VecDeque::new(),
        }
    }

    /// A new term as leader begins with nothing.
    pub(super) fn begin(&mut self, now: Moment) {
        self.since = now;
        self.heard.clear();
        self.history.clear();
    }

    /// Why a report cannot be taken, if so.
    pub(super) fn check(report: &Report) -> Result<(), String> {
        let Some(c) = &report.contents else {
            return Ok(());
        };
        let items = c.stores.len().max(c.volumes.len()).max(c.resilvers.len());
        if items > REPORT_ITEMS_MAX {
            return Err(format!(
                "a report of {items} items; at most {REPORT_ITEMS_MAX}"
            ));
        }
        let stores = c.stores.iter().map(|s| s.note.len());
        let volumes = c.volumes.iter().map(|v| v.note.len().max(v.device.len()));
        let longest = stores.chain(volumes).max().unwrap_or(0);
        if longest > REPORT_TEXT_MAX {
            return Err(format!(
                "a text of {longest} bytes; at most {REPORT_TEXT_MAX}"
            ));
        }
        Ok(())
    }

    /// Takes a report. The first result is false if its contents are wanted.
    pub(super) fn on_report(
        &mut self,
        now: Moment,
        connection: u64,
        report: Report,
    ) -> (bool, Vec<Transition>) {
        let Report {
            from,
            run,
            turn,
            contents,
        } = report;
        let mut transitions = Vec::new();
        let Some(contents) = contents else {
            let Some(heard) = self
                .heard
                .get_mut(&from)
                .filter(|h| h.run == run && h.turn == turn)
            else {
                return (false, transitions);
            };
            heard.at = now;
            heard.connection = connection;
            if heard.liveness != Liveness::Online {
                heard.liveness = Liveness::Online;
                transitions.push(Transition::Liveness(from, Liveness::Online));
            }
            return (true, transitions);
        };
        let before = self.heard.remove(&from);
        if let Some(before) = &before {
            if before.liveness != Liveness::Online {
                transitions.push(Transition::Liveness(from, Liveness::Online));
            }
            transitions.extend(resilver_steps(&before.contents, &contents));
        }
        for ended in contents
            .resilvers
            .iter()
            .filter(|r| r.outcome != ResilverOutcome::Running)
        {
            self.remember(*ended);
        }
        let liveness = Liveness::Online;
        self.heard.insert(
            from,
            Heard {
                run,
                turn,
                contents,
                at: now,
                connection,
                liveness,
            },
        );
        (true, transitions)
    }

    fn remember(&mut self, ended: ResilverReport) {
        if self.history.iter().any(|r| same_resilver(r, &ended)) {
            return;
        }
        self.history.push_back(ended);
        while self.history.len() > RESILVER_HISTORY_MAX {
            self.history.pop_front();
        }
    }

    /// Daemons whose last word came over this connection are suspect at once.
    pub(super) fn on_connection_lost(&mut self, connection: u64) -> Vec<Transition> {
        let lost = self
            .heard
            .iter_mut()
            .filter(|(_, h)| h.connection == connection && h.liveness == Liveness::Online);
        lost.map(|(from, heard)| {
            heard.liveness = Liveness::Suspect;
            Transition::Liveness(*from, Liveness::Suspect)
        })
        .collect()
    }

    /// Reports that are overdue by now.
    pub(super) fn on_time(&mut self, now: Moment) -> Vec<Transition> {
        let mut transitions = Vec::new();
        for (from, heard) in &mut self.heard {
            let silent = now.since_ns(heard.at);
            let due = if silent >= self.offline_after_ms * 1_000_000 {
                Liveness::Offline
            } else if silent >= self.suspect_after_ms * 1_000_000 {
                Liveness::Suspect
            } else {
                continue;
            };
            if due > heard.liveness {
                heard.liveness = due;
                transitions.push(Transition::Liveness(*from, due));
            }
        }
        transitions
    }

    /// When [`Self::on_time`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Moment> {
        let due = self
            .heard
            .values()
            .filter_map(|heard| match heard.liveness {
                Liveness::Online | Liveness::Unknown => {
                    Some(heard.at.plus_ms(self.suspect_after_ms))
                }
                Liveness::Suspect => Some(heard.at.plus_ms(self.offline_after_ms)),
                Liveness::Offline => None,
            });
        due.min()
    }

    /// How alive a daemon is. One that a leader has never heard of is given time first.
    pub(super) fn liveness(&self, now: Moment, of: Reporter) -> Liveness {
        match self.heard.get(&of) {
            Some(heard) => heard.liveness,
            None if now.since_ns(self.since) >= self.offline_after_ms * 1_000_000 => {
                Liveness::Offline
            }
            None => Liveness::Unknown,
        }
    }

    /// The last report of each store.
    pub(super) fn stores(&self) -> BTreeMap<StoreId, &StoreReport> {
        let all = self.heard.values().flat_map(|h| &h.contents.stores);
        all.map(|s| (s.store, s)).collect()
    }

    /// The last report about a volume by the daemon that has it.
    pub(super) fn volume(&self, of: Reporter, volume: VolumeId) -> Option<&VolumeReport> {
        self.heard
            .get(&of)?
            .contents
            .volumes
            .iter()
            .find(|v| v.volume == volume)
    }

    /// Running resilvers.
    pub(super) fn running(&self) -> impl Iterator<Item = &ResilverReport> {
        let all = self
            .heard
            .values()
            .filter(|h| h.liveness == Liveness::Online);
        all.flat_map(|h| &h.contents.resilvers)
            .filter(|r| r.outcome == ResilverOutcome::Running)
    }

    /// Ended resilvers, oldest first.
    pub(super) fn history(&self) -> impl Iterator<Item = &ResilverReport> {
        self.history.iter()
    }

    /// Stores that should take nothing new: faulted, or used to so many percent.
    pub(super) fn unusable_stores(&self, high_water_percent: u32) -> BTreeSet<StoreId> {
        let full = |s: &StoreReport| s.used_percent() >= u64::from(high_water_percent);
        let all = self.stores().into_values();
        all.filter(|s| s.health == StoreHealth::Faulted || full(s))
            .map(|s| s.store)
            .collect()
    }
}

fn same_resilver(a: &ResilverReport, b: &ResilverReport) -> bool {
    (a.volume, a.store, a.started_unix_ms) == (b.volume, b.store, b.started_unix_ms)
}

fn resilver_steps(before: &ReportContents, after: &ReportContents) -> Vec<Transition> {
    let mut steps = Vec::new();
    for now in &after.resilvers {
        let then = before.resilvers.iter().find(|r| same_resilver(r, now));
        let running = now.outcome == ResilverOutcome::Running;
        match then {
            None => {
                steps.push(Transition::ResilverBegan(*now));
                if !running {
                    steps.push(Transition::ResilverEnded(*now));
                }
            }
            Some(then) if then.outcome == ResilverOutcome::Running && !running => {
                steps.push(Transition::ResilverEnded(*now));
            }
            Some(_) => {}
        }
    }
    steps
}

#[cfg(test)]
mod test {
    use super::*;
    use shardmap::units::ServerId;

    const A: Reporter = Reporter::Server(ServerId(1));

    fn report(turn: u64, contents: Option<ReportContents>) -> Report {
        Report {
            from: A,
            run: Uuid::from_u128(1),
            turn,
            contents,
        }
    }

    fn at_ms(ms: u64) -> Moment {
        Moment(0).plus_ms(ms)
    }

    fn resilver(outcome: ResilverOutcome) -> ReportContents {
        let r = ResilverReport {
            volume: VolumeId([1; 16]),
            store: StoreId(1),
            started_unix_ms: 5,
            done_bytes: 0,
            total_bytes: 9,
            bytes_per_s: 1,
            outcome,
            ended_unix_ms: 0,
        };
        ReportContents {
            resilvers: vec![r],
            ..ReportContents::default()
        }
    }

    #[test]
    fn silence_makes_suspect_then_offline_then_a_heartbeat_online() {
        let mut health = Health::new(10, 30);
        health.begin(at_ms(0));
        assert_eq!(health.liveness(at_ms(0), A), Liveness::Unknown);
        let first = health.on_report(at_ms(1), 7, report(1, Some(ReportContents::default())));
        assert_eq!(first, (true, vec![]));
        assert_eq!(health.next_deadline(), Some(at_ms(11)));
        assert_eq!(health.on_time(at_ms(10)), []);
        assert_eq!(
            health.on_time(at_ms(11)),
            [Transition::Liveness(A, Liveness::Suspect)]
        );
        assert_eq!(health.on_time(at_ms(12)), [], "said once");
        assert_eq!(health.next_deadline(), Some(at_ms(31)));
        assert_eq!(
            health.on_time(at_ms(31)),
            [Transition::Liveness(A, Liveness::Offline)]
        );
        assert_eq!(health.next_deadline(), None);
        let back = health.on_report(at_ms(40), 8, report(1, None));
        assert_eq!(
            back,
            (true, vec![Transition::Liveness(A, Liveness::Online)])
        );
    }

    #[test]
    fn a_heartbeat_about_unknown_contents_asks_for_them() {
        let mut health = Health::new(10, 30);
        assert!(!health.on_report(at_ms(0), 1, report(1, None)).0);
        assert!(
            health
                .on_report(at_ms(0), 1, report(1, Some(ReportContents::default())))
                .0
        );
        assert!(health.on_report(at_ms(0), 1, report(1, None)).0);
        assert!(
            !health.on_report(at_ms(0), 1, report(2, None)).0,
            "an older turn is here"
        );
    }

    #[test]
    fn a_broken_connection_makes_suspect_at_once_unless_another_came_since() {
        let mut health = Health::new(10, 30);
        health.on_report(at_ms(0), 1, report(1, Some(ReportContents::default())));
        health.on_report(at_ms(0), 2, report(1, None));
        assert_eq!(health.on_connection_lost(1), []);
        assert_eq!(
            health.on_connection_lost(2),
            [Transition::Liveness(A, Liveness::Suspect)]
        );
    }

    #[test]
    fn a_resilver_is_told_at_its_beginning_and_end_and_remembered_once() {
        let mut health = Health::new(10, 30);
        health.on_report(at_ms(0), 1, report(1, Some(ReportContents::default())));
        let (_, told) = health.on_report(
            at_ms(0),
            1,
            report(2, Some(resilver(ResilverOutcome::Running))),
        );
        assert!(matches!(told[..], [Transition::ResilverBegan(_)]));
        assert_eq!(health.running().count(), 1);
        for turn in 3..5 {
            let done = Some(resilver(ResilverOutcome::Complete));
            let (_, told) = health.on_report(at_ms(0), 1, report(turn, done));
            assert_eq!(told.len(), usize::from(turn == 3));
        }
        assert_eq!((health.running().count(), health.history().count()), (0, 1));
    }

    #[test]
    fn a_daemon_never_heard_of_is_offline_after_a_while() {
        let mut health = Health::new(10, 30);
        health.begin(at_ms(100));
        assert_eq!(health.liveness(at_ms(129), A), Liveness::Unknown);
        assert_eq!(health.liveness(at_ms(130), A), Liveness::Offline);
    }

    #[test]
    fn a_store_that_is_faulted_or_above_the_mark_is_given_nothing_new() {
        let mut health = Health::new(10, 30);
        let store = |n, used_bytes, health| StoreReport {
            store: StoreId(n),
            health,
            used_bytes,
            size_bytes: 1000,
            note: String::new(),
        };
        let stores = vec![
            store(1, 849, StoreHealth::Online),
            store(2, 850, StoreHealth::Online),
            store(3, 0, StoreHealth::Faulted),
        ];
        let contents = ReportContents {
            stores,
            ..ReportContents::default()
        };
        health.on_report(at_ms(0), 1, report(1, Some(contents)));
        let unusable = |percent| health.unusable_stores(percent);
        assert_eq!(unusable(85), BTreeSet::from([StoreId(2), StoreId(3)]));
        assert_eq!(unusable(86), BTreeSet::from([StoreId(3)]));
    }

    #[test]
    fn an_oversized_report_is_refused() {
        let contents = ReportContents {
            volumes: vec![VolumeReport {
                volume: VolumeId([0; 16]),
                health: crate::api::VolumeHealth::Online,
                device: "x".repeat(REPORT_TEXT_MAX + 1),
                note: String::new(),
            }],
            ..ReportContents::default()
        };
        assert!(Health::check(&report(1, Some(contents))).is_err());
        assert!(Health::check(&report(1, None)).is_ok());
    }
}

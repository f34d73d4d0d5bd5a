//! What a load found: numbers for programs, a table for people.

use crate::options::LoadOptions;
use crate::pattern::{Rw, Way};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tabled::builder::Builder;
use tabled::settings::Style;

/// Latencies of one direction, in microseconds: from the turn of the reactor that submitted a
/// request to the turn that saw it complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Requests.
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) engine: String,
    pub(crate) rw: Rw,
    pub(crate) bs: u32,
    pub(crate) iodepth: u32,
    pub(crate) connections: u32,
    pub(crate) seed: u64,
    /// Seconds measured.
    pub(crate) seconds: f64,
    /// Requests completed in that time.
    pub(crate) ios: u64,
    pub(crate) iops: f64,
    /// 10^6 bytes per second.
    pub(crate) mb_per_s: f64,
    pub(crate) read_us: Option<Latency>,
    pub(crate) write_us: Option<Latency>,
    /// Our processor time per million requests, in seconds.
    pub(crate) cpu_s_per_mio: f64,
    /// The same of the processes named by `--peer-pid`, together.
    pub(crate) peer_cpu_s_per_mio: Option<f64>,
    /// `io_uring_enter` calls of ours per request.
    pub(crate) enters_per_io: f64,
    /// Longest time without a completion, in milliseconds.
    pub(crate) longest_gap_ms: f64,
    /// Fewest requests on a connection divided by most.
    pub(crate) fairness: f64,
    /// Part of all processor time that neither we nor the named processes used.
    pub(crate) foreign_share: f64,
    /// Requests that failed.
    pub(crate) failed: u64,
    /// The last resilver that ended in that time.
    pub(crate) resilver: Option<ResilverOutcome>,
    /// The snapshots that were completed in that time.
    pub(crate) snapshots: Option<SnapshotsOutcome>,
}

/// Snapshots, and what they cost the load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotsOutcome {
    pub(crate) count: u64,
    /// From when the volume heard of one until every in-sync store had it.
    pub(crate) p50_ms: f64,
    pub(crate) max_ms: f64,
    /// Of requests that were completed in such a time, and at other times.
    pub(crate) p99_us_during: f64,
    pub(crate) max_us_during: f64,
    pub(crate) p99_us_beside: f64,
}

/// A resilver, and what it cost the load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ResilverOutcome {
    pub(crate) bytes_missed: u64,
    pub(crate) bytes_moved: u64,
    pub(crate) seconds: f64,
    /// Of the load while it went on, and from its end on.
    pub(crate) iops_during: f64,
    pub(crate) iops_after: f64,
    pub(crate) p99_us_during: f64,
    pub(crate) p99_us_after: f64,
}

impl Outcome {
    /// The 99th percentile, of the direction that has more.
    pub(crate) fn p99_us(&self) -> f64 {
        self.main().p99
    }

    /// The median, of the direction that has more.
    pub(crate) fn p50_us(&self) -> f64 {
        self.main().p50
    }

    fn main(&self) -> Latency {
        let (read, write) = (
            self.read_us.unwrap_or_default(),
            self.write_us.unwrap_or_default(),
        );
        if read.count >= write.count {
            read
        } else {
            write
        }
    }
}

/// Everything that is noted while requests complete.
#[derive(Debug)]
pub(crate) struct Tally {
    reads: Histogram<u64>,
    writes: Histogram<u64>,
    per_connection: Vec<u64>,
    /// When the last request completed.
    last_ns: Option<u64>,
    longest_gap_ns: u64,
    /// Requests that failed.
    pub(crate) failed: u64,
    resilver: Option<ResilverTally>,
    snapshots: SnapshotTally,
}

/// Snapshots, and latencies while one is being made and while none is.
#[derive(Debug)]
struct SnapshotTally {
    /// One that is being made.
    began_ns: Option<u64>,
    times: Histogram<u64>,
    during: Histogram<u64>,
    beside: Histogram<u64>,
}

/// Latencies during a resilver and after it.
#[derive(Debug)]
struct ResilverTally {
    began_ns: u64,
    ended: Option<ResilverEnd>,
    during: Histogram<u64>,
    after: Histogram<u64>,
}

#[derive(Clone, Copy, Debug)]
struct ResilverEnd {
    at_ns: u64,
    bytes_missed: u64,
    bytes_moved: u64,
}

/// What is read off the machine at both ends of the measured time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) at_ns: u64,
    pub(crate) own_cpu_ns: u64,
    pub(crate) peer_cpu_ns: u64,
    pub(crate) busy_ns: u64,
    pub(crate) enters: u64,
}

impl Tally {
    /// Nothing has happened.
    pub(crate) fn new(connections: u32) -> Self {
        Self {
            reads: latencies(),
            writes: latencies(),
            per_connection: vec![0; connections.max(1) as usize],
            last_ns: None,
            longest_gap_ns: 0,
            failed: 0,
            resilver: None,
            snapshots: SnapshotTally {
                began_ns: None,
                times: latencies(),
                during: latencies(),
                beside: latencies(),
            },
        }
    }

    /// The volume has heard of a snapshot, perhaps once more.
    pub(crate) fn snapshot_began(&mut self, now_ns: u64) {
        self.snapshots.began_ns.get_or_insert(now_ns);
    }

    /// It is complete. It counts if it ended in the measured time, as requests do.
    pub(crate) fn snapshot_ended(&mut self, now_ns: u64, counts: bool) {
        let began_ns = self.snapshots.began_ns.take();
        if let Some(began_ns) = began_ns.filter(|_| counts) {
            self.snapshots.times.saturating_record(now_ns - began_ns);
        }
    }

    /// A replica is being brought up to date from now on.
    pub(crate) fn resilver_began(&mut self, now_ns: u64) {
        self.resilver = Some(ResilverTally {
            began_ns: now_ns,
            ended: None,
            during: latencies(),
            after: latencies(),
        });
    }

    /// It is in sync now.
    pub(crate) fn resilver_ended(&mut self, now_ns: u64, bytes_missed: u64, bytes_moved: u64) {
        if let Some(resilver) = &mut self.resilver {
            resilver.ended = Some(ResilverEnd {
                at_ns: now_ns,
                bytes_missed,
                bytes_moved,
            });
        }
    }

    /// A request that began at `since_ns` completed now.
    pub(crate) fn note(&mut self, way: Way, since_ns: u64, now_ns: u64, connection: usize) {
        let gap_ns = self.last_ns.map_or(0, |last_ns| now_ns - last_ns);
        self.longest_gap_ns = self.longest_gap_ns.max(gap_ns);
        self.last_ns = Some(now_ns);
        let latency_ns = now_ns - since_ns;
        self.per_connection[connection] += 1;
        if let Some(resilver) = &mut self.resilver {
            let into = match resilver.ended {
                None => &mut resilver.during,
                Some(_) => &mut resilver.after,
            };
            into.saturating_record(latency_ns.max(1));
        }
        let into = match self.snapshots.began_ns {
            Some(_) => &mut self.snapshots.during,
            None => &mut self.snapshots.beside,
        };
        into.saturating_record(latency_ns.max(1));
        match way {
            Way::Read => self.reads.saturating_record(latency_ns.max(1)),
            Way::Write => self.writes.saturating_record(latency_ns.max(1)),
        }
    }

    /// Requests that completed well.
    pub(crate) fn ios(&self) -> u64 {
        self.reads.len() + self.writes.len()
    }

    /// The sum of it.
    pub(crate) fn outcome(
        &self,
        (engine, options): (&str, &LoadOptions),
        begin: Gauges,
        end: Gauges,
        processors: usize,
    ) -> Outcome {
        let seconds = float(end.at_ns - begin.at_ns) / 1e9;
        let ios = self.ios();
        let per_io = |n: u64| if ios == 0 { 0.0 } else { float(n) / float(ios) };
        // A nanosecond per request is a thousandth of a second per million.
        let per_million = |ns: u64| per_io(ns) / 1e3;
        let own_ns = end.own_cpu_ns.saturating_sub(begin.own_cpu_ns);
        let peer_ns = end.peer_cpu_ns.saturating_sub(begin.peer_cpu_ns);
        let busy_ns = end.busy_ns.saturating_sub(begin.busy_ns);
        let foreign_ns = float(busy_ns) - float(own_ns) - float(peer_ns);
        let most = self.per_connection.iter().max().copied().unwrap_or(0);
        let fewest = self.per_connection.iter().min().copied().unwrap_or(0);
        let iops = if seconds > 0.0 {
            float(ios) / seconds
        } else {
            0.0
        };
        Outcome {
            engine: engine.to_owned(),
            rw: options.rw,
            bs: options.bs,
            iodepth: options.iodepth,
            connections: u32::try_from(self.per_connection.len()).expect("few"),
            seed: options.seed,
            seconds,
            ios,
            iops,
            mb_per_s: iops * f64::from(options.bs) / 1e6,
            read_us: latency(&self.reads),
            write_us: latency(&self.writes),
            cpu_s_per_mio: per_million(own_ns),
            peer_cpu_s_per_mio: (!options.peer_pid.is_empty()).then(|| per_million(peer_ns)),
            enters_per_io: per_io(end.enters - begin.enters),
            longest_gap_ms: float(self.longest_gap_ns) / 1e6,
            fairness: if most == 0 {
                1.0
            } else {
                float(fewest) / float(most)
            },
            foreign_share: if seconds > 0.0 {
                (foreign_ns / (seconds * 1e9 * processors.max(1) as f64)).max(0.0)
            } else {
                0.0
            },
            failed: self.failed,
            resilver: self.resilver.as_ref().and_then(|r| r.outcome(end.at_ns)),
            snapshots: self.snapshots.outcome(),
        }
    }
}

impl ResilverTally {
    /// Once it has ended.
    fn outcome(&self, until_ns: u64) -> Option<ResilverOutcome> {
        let ended = self.ended?;
        let during_s = float(ended.at_ns - self.began_ns) / 1e9;
        let after_s = float(until_ns.saturating_sub(ended.at_ns)) / 1e9;
        let iops = |of: &Histogram<u64>, seconds: f64| float(of.len()) / seconds.max(1e-9);
        let p99_us = |of: &Histogram<u64>| float(of.value_at_percentile(99.0)) / 1e3;
        Some(ResilverOutcome {
            bytes_missed: ended.bytes_missed,
            bytes_moved: ended.bytes_moved,
            seconds: during_s,
            iops_during: iops(&self.during, during_s),
            iops_after: iops(&self.after, after_s),
            p99_us_during: p99_us(&self.during),
            p99_us_after: p99_us(&self.after),
        })
    }
}

impl SnapshotTally {
    /// If there were any.
    fn outcome(&self) -> Option<SnapshotsOutcome> {
        let p99_us = |of: &Histogram<u64>| float(of.value_at_percentile(99.0)) / 1e3;
        (!self.times.is_empty()).then(|| SnapshotsOutcome {
            count: self.times.len(),
            p50_ms: float(self.times.value_at_percentile(50.0)) / 1e6,
            max_ms: float(self.times.max()) / 1e6,
            p99_us_during: p99_us(&self.during),
            max_us_during: float(self.during.max()) / 1e3,
            p99_us_beside: p99_us(&self.beside),
        })
    }
}

fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("good bounds")
}

/// As a float; what is counted here stays far below 2^53.
pub(crate) fn float(n: u64) -> f64 {
    n as f64
}

fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    let us = |percentile: f64| float(histogram.value_at_percentile(percentile)) / 1e3;
    (!histogram.is_empty()).then(|| Latency {
        count: histogram.len(),
        mean: histogram.mean() / 1e3,
        p50: us(50.0),
        p90: us(90.0),
        p99: us(99.0),
        p99_9: us(99.9),
        max: float(histogram.max()) / 1e3,
    })
}

/// The table for people.
pub(crate) fn table(outcome: &Outcome) -> String {
    let mut latencies = Builder::default();
    latencies.push_record(["latency µs", "mean", "p50", "p90", "p99", "p99.9", "max"]);
    for (name, found) in [("read", outcome.read_us), ("write", outcome.write_us)] {
        let Some(l) = found else { continue };
        let numbers = [l.mean, l.p50, l.p90, l.p99, l.p99_9, l.max];
        let cells = numbers.iter().map(|us| format!("{us:.1}"));
        latencies.push_record([name.to_owned()].into_iter().chain(cells));
    }
    let peer = outcome
        .peer_cpu_s_per_mio
        .map_or_else(String::new, |s| format!(", peer {s:.2}"));
    let snapshots = outcome.snapshots.map_or_else(String::new, |s| {
        format!(
            "\n{} snapshots: p50 {:.2} ms, max {:.2} ms; p99 of requests meanwhile {:.1} µs, max {:.1} µs; \
             beside {:.1} µs",
            s.count, s.p50_ms, s.max_ms, s.p99_us_during, s.max_us_during, s.p99_us_beside
        )
    });
    format!(
        "{} {} bs={} iodepth={} connections={}: {} requests in {:.2} s, {} failed\n\
         {:.0} IOPS, {:.1} MB/s\n{}\n\
         CPU s per million: ours {:.2}{peer}; enters per IO {:.3}; foreign load {:.0} %{snapshots}",
        outcome.engine,
        outcome.rw.name(),
        outcome.bs,
        outcome.iodepth,
        outcome.connections,
        outcome.ios,
        outcome.seconds,
        outcome.failed,
        outcome.iops,
        outcome.mb_per_s,
        latencies.build().with(Style::markdown()),
        outcome.cpu_s_per_mio,
        outcome.enters_per_io,
        outcome.foreign_share * 100.0,
    )
}

#[cfg(test)]
mod test {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadOptions,
    }

    fn options(words: &[&str]) -> LoadOptions {
        Cli::parse_from([&["x"], words].concat()).load
    }

    fn sample() -> Outcome {
        let options = options(&["--rw", "randrw", "--bs", "8k", "--peer-pid", "1"]);
        let mut tally = Tally::new(2);
        for n in 1..=1000u64 {
            tally.note(Way::Read, 0, n * 1000, usize::from(n > 400));
        }
        tally.note(Way::Write, 8_995_000, 9_000_000, 0);
        let end = Gauges {
            at_ns: 2_000_000_000,
            own_cpu_ns: 1001 * 2000,
            peer_cpu_ns: 1001 * 500,
            busy_ns: 1001 * 2500 + 1_000_000_000,
            enters: 2002,
        };
        tally.outcome(("target", &options), Gauges::default(), end, 2)
    }

    #[test]
    fn rates_and_costs_are_per_request_of_the_measured_time() {
        let seen = sample();
        assert_eq!((seen.ios, seen.failed), (1001, 0));
        assert!((seen.iops - 500.5).abs() < 1e-9);
        assert!((seen.mb_per_s - 500.5 * 8192.0 / 1e6).abs() < 1e-9);
        assert!((seen.cpu_s_per_mio - 2.0).abs() < 1e-9);
        assert!((seen.peer_cpu_s_per_mio.unwrap() - 0.5).abs() < 1e-9);
        assert!((seen.enters_per_io - 2.0).abs() < 1e-9);
        assert!((seen.foreign_share - 0.25).abs() < 1e-9);
        assert!((seen.longest_gap_ms - 8.0).abs() < 1e-9);
        assert!((seen.fairness - 401.0 / 600.0).abs() < 1e-9);
    }

    #[test]
    fn percentiles_are_those_of_the_busier_direction() {
        let seen = sample();
        assert!((seen.p50_us() - 500.0).abs() < 2.0, "{}", seen.p50_us());
        assert!((seen.p99_us() - 990.0).abs() < 2.0, "{}", seen.p99_us());
        assert_eq!(seen.write_us.unwrap().count, 1);
    }

    #[test]
    fn a_resilver_is_told_from_what_comes_after_it() {
        let options = options(&["--rw", "randwrite"]);
        let mut tally = Tally::new(1);
        tally.note(Way::Write, 0, 50_000, 0);
        tally.resilver_began(1_000_000_000);
        tally.note(Way::Write, 1_000_000_000, 1_000_200_000, 0);
        let end = Gauges {
            at_ns: 4_000_000_000,
            ..Gauges::default()
        };
        let outcome =
            |tally: &Tally| tally.outcome(("volume", &options), Gauges::default(), end, 2);
        assert_eq!(outcome(&tally).resilver, None, "it has not ended");
        tally.resilver_ended(2_000_000_000, 4096, 8192);
        for _ in 0..4 {
            tally.note(Way::Write, 2_000_000_000, 2_000_100_000, 0);
        }
        let found = outcome(&tally).resilver.unwrap();
        assert_eq!((found.bytes_missed, found.bytes_moved), (4096, 8192));
        assert!((found.seconds - 1.0).abs() < 1e-9);
        assert!((found.iops_during - 1.0).abs() < 1e-9);
        assert!((found.iops_after - 2.0).abs() < 1e-9);
        assert!((found.p99_us_during / found.p99_us_after - 2.0).abs() < 0.01);
    }

    #[test]
    fn requests_beside_a_snapshot_are_told_from_those_during_it() {
        let options = options(&["--rw", "randwrite"]);
        let mut tally = Tally::new(1);
        let (begin, end) = (Gauges::default(), Gauges::default());
        let outcome = |tally: &Tally| tally.outcome(("volume", &options), begin, end, 2).snapshots;
        tally.note(Way::Write, 0, 50_000, 0);
        tally.snapshot_began(1_000_000);
        tally.note(Way::Write, 1_000_000, 1_200_000, 0);
        tally.snapshot_began(1_300_000);
        assert_eq!(outcome(&tally), None, "it has not ended");
        tally.snapshot_ended(3_000_000, true);
        tally.snapshot_ended(4_000_000, true);
        tally.note(Way::Write, 5_000_000, 5_100_000, 0);
        let found = outcome(&tally).unwrap();
        assert_eq!(found.count, 1);
        assert!((found.p50_ms - 2.0).abs() < 0.01);
        assert!((found.p99_us_during - 200.0).abs() < 1.0);
        assert!((found.p99_us_beside - 100.0).abs() < 1.0);
    }

    #[test]
    fn a_snapshot_that_ends_outside_the_measured_time_does_not_count() {
        let options = options(&["--rw", "randwrite"]);
        let mut tally = Tally::new(1);
        let (begin, end) = (Gauges::default(), Gauges::default());
        let outcome = |tally: &Tally| tally.outcome(("volume", &options), begin, end, 2).snapshots;
        tally.snapshot_began(1_000_000);
        tally.snapshot_ended(9_000_000, false);
        assert_eq!(outcome(&tally), None);
        // Requests after it are beside it all the same.
        tally.note(Way::Write, 10_000_000, 10_100_000, 0);
        tally.snapshot_began(11_000_000);
        tally.snapshot_ended(13_000_000, true);
        let found = outcome(&tally).unwrap();
        assert_eq!(found.count, 1);
        assert!((found.max_ms - 2.0).abs() < 0.01);
        assert!((found.p99_us_beside - 100.0).abs() < 1.0);
    }

    #[test]
    fn json_says_everything_and_comes_back() {
        let seen = sample();
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), seen);
        assert!(table(&seen).contains("| read "));
    }

    #[test]
    fn nothing_completed_is_no_division_by_zero() {
        let options = options(&[]);
        let end = Gauges {
            at_ns: 1,
            ..Gauges::default()
        };
        let seen = Tally::new(1).outcome(("target", &options), Gauges::default(), end, 2);
        assert!(seen.iops == 0.0 && seen.enters_per_io == 0.0 && seen.read_us.is_none());
    }
}

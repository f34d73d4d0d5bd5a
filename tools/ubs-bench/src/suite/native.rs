//! What can be measured on any machine: our target and our initiator over loopback.

use super::child::{Effort, Server, Workload};
use super::paired::{self, Pairs, Side};
use super::report::{Bound, Budget, Figures, Row, figures};
use crate::outcome::Outcome;
use crate::serve::{Backing, ServeCounters};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Why T1, T2 and T3 have no peer.
const NO_SPDK: &str = "the peer, SPDK, is not part of this repository and was not found here";
/// Bytes per second are judged here, requests per second elsewhere.
const BULK: &str = "128k";

/// The workloads of T1 and T2, with aim and floor of each.
const STORE_LOADS: [(Workload, [(f64, f64); 2]); 8] = [
    (small("randread", 1), [(1.0, 0.95), (0.40, 0.38)]),
    (small("randwrite", 1), [(1.0, 0.95), (0.40, 0.38)]),
    (small("randread", 32), [(1.1, 0.95), (0.9, 0.75)]),
    (small("randwrite", 32), [(1.1, 0.95), (0.9, 0.75)]),
    (small("randread", 128), [(1.1, 0.95), (1.0, 0.85)]),
    (small("randwrite", 128), [(1.1, 0.95), (1.0, 0.85)]),
    (bulk("read"), [(1.2, 0.95), (0.9, 0.7)]),
    (bulk("write"), [(1.2, 0.95), (0.9, 0.7)]),
];

const fn small(rw: &'static str, iodepth: u32) -> Workload {
    Workload {
        rw,
        bs: "4k",
        iodepth,
    }
}

const fn bulk(rw: &'static str) -> Workload {
    Workload {
        rw,
        bs: BULK,
        iodepth: 16,
    }
}

/// Everything measured here.
#[derive(Debug, Default)]
pub(crate) struct Native {
    pub(crate) budgets: Vec<Budget>,
    /// Foreign load during each sample.
    pub(crate) foreign: Vec<f64>,
}

/// Servers and what has been found with them.
struct Bench<'a> {
    effort: Effort,
    dir: &'a Path,
    size: u64,
    store: Server,
    ram: Server,
    found: Native,
}

/// Measures T1, T2, T3, T12 and T13.
pub(crate) fn run(effort: Effort, dir: &Path, size: u64) -> Result<Native> {
    let store = Server::start(Backing::Store, dir, size, 0)?;
    store.fill()?;
    let ram = Server::start(Backing::Ram, dir, size, 0)?;
    let found = Native::default();
    let mut bench = Bench {
        effort,
        dir,
        size,
        store,
        ram,
        found,
    };
    bench.stores()?;
    bench.digests()?;
    bench.connections()?;
    Ok(bench.found)
}

/// Enters of a server per command, between two readings.
fn enters_per_command(before: ServeCounters, after: ServeCounters) -> f64 {
    let commands = after.commands - before.commands;
    if commands == 0 {
        return 0.0;
    }
    crate::outcome::float(after.enters - before.enters) / crate::outcome::float(commands)
}

fn rate(bs: &str, samples: &[Outcome]) -> Vec<f64> {
    let of = |o: &Outcome| if bs == BULK { o.mb_per_s } else { o.iops };
    samples.iter().map(of).collect()
}

impl Bench<'_> {
    fn note(&mut self, samples: &Pairs<Outcome>) {
        let all = samples.a.iter().chain(&samples.b);
        self.found.foreign.extend(all.map(|o| o.foreign_share));
    }

    /// T1 and T2 in turns, which also gives what the store costs; T3 from the same samples.
    fn stores(&mut self) -> Result<()> {
        let (mut t1, mut t2, mut t3) = (Vec::new(), Vec::new(), Vec::new());
        for (what, [(aim1, floor1), (aim2, floor2)]) in STORE_LOADS {
            super::progress(&format!("{} on a store and on memory", what.name()));
            let before = [self.store.counters()?, self.ram.counters()?];
            let samples = paired::measure(self.effort.pairs_count, |side| match side {
                Side::A => self.store.sample(what, self.effort, &[]),
                Side::B => self.ram.sample(what, self.effort, &[]),
            })?;
            let after = [self.store.counters()?, self.ram.counters()?];
            self.note(&samples);
            let enters = [0, 1].map(|n| enters_per_command(before[n], after[n]));
            let with_enters = |samples: &[Outcome], enters: f64| {
                let mut found = figures(samples)?;
                found.insert("target_enters_per_io", enters);
                Some(found)
            };
            let on_store = with_enters(&samples.a, enters[0]);
            let on_ram = with_enters(&samples.b, enters[1]);
            if what.bs == "4k" && what.iodepth > 1 {
                t3.extend(costs(what, on_store.as_ref()));
            }
            let row = |ours, aim, floor| Row {
                ours,
                ..Row::new(what.name(), Some(aim), Some(floor))
            };
            t1.push(row(on_store, aim1, floor1));
            t2.push(row(on_ram, aim2, floor2));
        }
        self.spin(&mut t2)?;
        let absent = |what: &str| Some(format!("{NO_SPDK}; {what}"));
        self.found.budgets.extend([
            Budget {
                rows: t1,
                absent: absent("ratio and p99 against it are open"),
                ..Budget::absent(
                    "T1",
                    "storage server, file on tmpfs",
                    "SPDK in interrupt mode",
                    "",
                )
            },
            Budget {
                rows: t2,
                absent: absent("the rows of the spin compare us with ourselves"),
                ..Budget::absent("T2", "storage server, RAM", "SPDK polled", "")
            },
            Budget {
                rows: t3,
                absent: absent(
                    "enters per IO and the CPU seconds of the reference page are judged",
                ),
                ..Budget::absent("T3", "CPU per million 4k IOs", "SPDK in interrupt mode", "")
            },
        ]);
        Ok(())
    }

    /// What a bounded spin on both sides does at QD1.
    fn spin(&mut self, rows: &mut Vec<Row>) -> Result<()> {
        let what = small("randread", 1);
        super::progress("spin of 15 µs on and off");
        let spinning = Server::start(Backing::Ram, self.dir, self.size, 15)?;
        let samples = paired::measure(self.effort.pairs_count, |side| match side {
            Side::A => spinning.sample(what, self.effort, &["--spin-us", "15"]),
            Side::B => self.ram.sample(what, self.effort, &[]),
        })?;
        self.note(&samples);
        rows.push(compared(
            "randread 4k QD1, spin 15 µs vs asleep".into(),
            what,
            &samples,
            None,
        ));
        Ok(())
    }

    /// T12: both digests on against off.
    fn digests(&mut self) -> Result<()> {
        let mut rows = Vec::new();
        for what in [
            small("randread", 32),
            small("randwrite", 32),
            bulk("read"),
            bulk("write"),
        ] {
            super::progress(&format!("{} with and without digests", what.name()));
            let samples = paired::measure(self.effort.pairs_count, |side| match side {
                Side::A => self.ram.sample(what, self.effort, &["--hdgst", "--ddgst"]),
                Side::B => self.ram.sample(what, self.effort, &[]),
            })?;
            self.note(&samples);
            rows.push(compared(what.name(), what, &samples, Some((0.85, 0.75))));
        }
        let (what, against) = ("both digests on", "itself with digests off");
        self.found.budgets.push(Budget {
            rows,
            absent: None,
            ..Budget::absent("T12", what, against, "")
        });
        Ok(())
    }

    /// T13: the same load over many connections.
    fn connections(&mut self) -> Result<()> {
        let what = small("randread", 128);
        super::progress("1 and 64 connections");
        let samples = paired::measure(self.effort.pairs_count, |side| match side {
            Side::A => self.ram.sample(what, self.effort, &["--connections", "64"]),
            Side::B => self.ram.sample(what, self.effort, &[]),
        })?;
        self.note(&samples);
        let throughput = compared(
            "randread 4k, 128 in flight".into(),
            what,
            &samples,
            Some((0.7, 0.5)),
        );
        let unfair: Vec<f64> = samples
            .a
            .iter()
            .map(|o| 1.0 / o.fairness.max(1e-9))
            .collect();
        let most = paired::median(&unfair).unwrap_or_default();
        let fairness = Row {
            ours: Some(Figures::from([("value", most)])),
            judged: Some(most),
            bound: Bound::AtMost,
            ..Row::new("busiest / idlest connection", Some(1.5), None)
        };
        let rows = vec![throughput, fairness];
        let (what, against) = ("64 connections", "itself with 1");
        self.found.budgets.push(Budget {
            rows,
            absent: None,
            ..Budget::absent("T13", what, against, "")
        });
        Ok(())
    }
}

/// A row of two things of ours: A is ours, B stands for the peer.
pub(crate) fn compared(
    name: String,
    what: Workload,
    samples: &Pairs<Outcome>,
    bounds: Option<(f64, f64)>,
) -> Row {
    Row {
        ours: figures(&samples.a),
        peer: figures(&samples.b),
        ratio: paired::ratio(&rate(what.bs, &samples.a), &rate(what.bs, &samples.b)),
        ..Row::new(
            name,
            bounds.map(|(aim, _)| aim),
            bounds.map(|(_, floor)| floor),
        )
    }
}

/// The rows of T3 for one workload.
fn costs(what: Workload, found: Option<&Figures>) -> Vec<Row> {
    let Some(found) = found else {
        return Vec::new();
    };
    let cpu_aim = if what.iodepth == 32 { 2.2 } else { 1.8 };
    let wanted = BTreeMap::from([
        (
            "target_cpu_s_per_mio",
            ("target CPU s per million", Some(cpu_aim)),
        ),
        ("load_cpu_s_per_mio", ("initiator CPU s per million", None)),
        ("target_enters_per_io", ("target enters per IO", Some(0.1))),
        ("load_enters_per_io", ("initiator enters per IO", Some(0.2))),
    ]);
    let row = |(key, (label, aim)): (&&'static str, &(&str, Option<f64>))| {
        let value = *found.get(key)?;
        Some(Row {
            ours: Some(Figures::from([("value", value)])),
            judged: Some(value),
            bound: Bound::AtMost,
            ..Row::new(format!("{}: {label}", what.name()), *aim, None)
        })
    };
    wanted.iter().filter_map(row).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn enters_are_those_between_the_readings() {
        let before = ServeCounters {
            enters: 100,
            commands: 1000,
            ops: 0,
        };
        let after = ServeCounters {
            enters: 150,
            commands: 2000,
            ops: 0,
        };
        assert!((enters_per_command(before, after) - 0.05).abs() < 1e-12);
        assert!(enters_per_command(before, before) == 0.0);
    }

    #[test]
    fn a_cost_that_was_not_measured_makes_no_row() {
        let found = Figures::from([("target_enters_per_io", 0.05)]);
        let rows = costs(small("randread", 32), Some(&found));
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].name, "randread 4k QD32: target enters per IO");
        assert_eq!((rows[0].judged, rows[0].aim), (Some(0.05), Some(0.1)));
        assert!(costs(small("randread", 32), None).is_empty());
    }
}

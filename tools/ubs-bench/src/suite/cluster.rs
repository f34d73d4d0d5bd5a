//! What needs storage servers and metad, natively: replication through our volume core, without a
//! block device.

use super::child::{Effort, Workload, outcome_of, processors};
use super::native::compared;
use super::paired::{self, Pairs, Side};
use super::report::{Bound, Budget, Figures, Row};
use crate::outcome::{Outcome, SnapshotsOutcome};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Bytes of each server's store: four volumes of [`VOLUME`], of one also two snapshots, and what the store
/// itself needs.
const STORE_BYTES: u64 = 1280 << 20;
const VOLUME: &str = "128MiB";
/// The grace of a member whose connection broke, and what may come on top.
const GAP_MS: f64 = 300.0 + 50.0;
/// The deadline of a command that is not answered, the grace of its member, and the same on top.
const SILENT_GAP_MS: f64 = 5000.0 + 300.0 + 50.0;

/// The workloads of T6, with aim and floor for two and for three replicas.
const LOADS: [(Workload, [(f64, f64); 2]); 3] = [
    (load("4k", 1, "randwrite"), [(0.75, 0.6), (0.65, 0.45)]),
    (load("4k", 32, "randwrite"), [(0.60, 0.55), (0.42, 0.34)]),
    (load("128k", 16, "write"), [(0.5, 0.45), (0.35, 0.30)]),
];

const fn load(bs: &'static str, iodepth: u32, rw: &'static str) -> Workload {
    Workload { rw, bs, iodepth }
}

/// The load of T10, and how often a snapshot is made under it, in seconds.
const SNAPSHOT_LOAD: Workload = load("4k", 8, "randwrite");
const SNAPSHOT_EVERY: &str = "0.1";

/// What is started for T5, T6, T9, T10 and T14.
pub(super) const SERVERS: [&str; 5] = ["--metads", "1", "--storageds", "3", "--no-clientd"];

/// T6, T9, T10 and T14, or why not.
pub(crate) fn run(effort: Effort, scratch: &Path) -> Vec<Budget> {
    let (fan_out, killed) = ("fan-out to 2 and 3 replicas", "replica killed at QD32");
    let (itself, deadline) = ("its own 1 replica", "the configured grace");
    let healing = "resilver after scattered writes";
    let (snapshots, without) = ("snapshots under load, 3 replicas", "the same load without");
    let md = "md with a bitmap of 64 KiB, a raw copy";
    let measured = Cluster::up(&scratch.join("cluster"), &SERVERS).and_then(|cluster| {
        cluster.make_volumes()?;
        let fan_out = cluster.fan_out(effort)?;
        let snapshots = cluster.snapshots(effort);
        let lost = cluster.lose(effort);
        Ok((fan_out, snapshots, lost, cluster.heal()))
    });
    let budget = |key, what, against, found: Result<Vec<Row>>| match found {
        Ok(rows) => Budget {
            rows,
            absent: None,
            ..Budget::absent(key, what, against, "")
        },
        Err(why) => Budget::absent(key, what, against, &format!("{why:#}")),
    };
    match measured {
        Ok((t6, t10, t14, t9)) => vec![
            budget("T6", fan_out, itself, Ok(t6)),
            budget("T10", snapshots, without, t10),
            budget("T14", killed, deadline, t14),
            budget("T9", healing, md, t9),
        ],
        Err(why) => {
            let why = format!("{why:#}");
            vec![
                Budget::absent("T6", fan_out, itself, &why),
                Budget::absent("T10", snapshots, without, &why),
                Budget::absent("T14", killed, deadline, &why),
                Budget::absent("T9", healing, md, &why),
            ]
        }
    }
}

/// Daemons on the target's processor.
pub(super) struct Cluster {
    ubsctl: PathBuf,
    dir: PathBuf,
    pub(super) metad: String,
    storageds: Vec<String>,
}

impl Cluster {
    /// Starts daemons in a directory; they end with this value.
    pub(super) fn up(dir: &Path, shape: &[&str]) -> Result<Self> {
        super::progress(&format!("a cluster: {}", shape.join(" ")));
        let ubsctl = std::env::current_exe()?.with_file_name("ubsctl");
        if !ubsctl.exists() {
            bail!("{} is not built", ubsctl.display());
        }
        let mut cluster = Self {
            ubsctl,
            dir: dir.to_owned(),
            metad: String::new(),
            storageds: Vec::new(),
        };
        let size = STORE_BYTES.to_string();
        let wishes = ["--store-bytes", &size, "--timeout", "60"];
        let up = [&["dev", "up"], shape, &wishes[..]].concat();
        // Children stay where their parent was when it started them.
        crate::cpu::pinned(processors().0, || cluster.at_dir(&up))??;
        cluster.metad = members(&cluster.daemons()?, "metad", "address").join(",");
        cluster.storageds = members(&cluster.daemons()?, "storaged", "pid");
        Ok(cluster)
    }

    /// A filled volume for each number of replicas.
    fn make_volumes(&self) -> Result<()> {
        for replicas in ["1", "2", "3"] {
            self.make_volume(&format!("bench{replicas}"), replicas)?;
        }
        Ok(())
    }

    fn make_volume(&self, name: &str, replicas: &str) -> Result<()> {
        let create = ["volume", "create", name, "--size", VOLUME, "--wait"];
        self.ctl(&[&create[..], &["--replicas", replicas]].concat())?;
        let fill = ["--rw", "write", "--bs", "128k", "--iodepth", "16", "--once"];
        self.sample(name, &fill).map(|_| ())
    }

    /// Every daemon as NAME=PID.
    pub(super) fn processes(&self) -> Result<Vec<String>> {
        let status = self.daemons()?;
        let items = status["items"].as_array().map_or(&[][..], Vec::as_slice);
        items
            .iter()
            .map(|item| {
                let name = item["name"].as_str().context("a daemon without a name")?;
                let pid = item["pid"].as_u64().context("a daemon that does not run")?;
                Ok(format!("{name}={pid}"))
            })
            .collect()
    }

    pub(super) fn ctl(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.ubsctl);
        command.args(words).stdin(Stdio::null());
        if !self.metad.is_empty() {
            command.env("UBS_METAD", &self.metad);
        }
        let done = command.output().context("cannot start ubsctl")?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            bail!("ubsctl {}: {}", words.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn at_dir(&self, words: &[&str]) -> Result<String> {
        let dir = self.dir.to_str().context("an odd path")?;
        self.ctl(&[words, &["--dir", dir]].concat())
    }

    fn daemons(&self) -> Result<Value> {
        let text = self.at_dir(&["dev", "status", "-o", "json"])?;
        serde_json::from_str(&text).context("ubsctl's JSON")
    }

    fn command(&self, volume: &str, options: &[&str]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([
            "volume",
            "--metad",
            &self.metad,
            "--volume",
            volume,
            "--json",
        ]);
        command.args(["--cpu", &processors().1.to_string()]);
        command.args(options);
        Ok(command)
    }

    fn sample(&self, volume: &str, options: &[&str]) -> Result<Outcome> {
        let mut command = self.command(volume, options)?;
        for pid in &self.storageds {
            command.args(["--peer-pid", pid]);
        }
        outcome_of(&mut command)
    }

    fn fan_out(&self, effort: Effort) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (what, bounds) in LOADS {
            for (replicas, bounds) in ["2", "3"].into_iter().zip(bounds) {
                let name = format!("{}, {replicas} replicas", what.name());
                super::progress(&name);
                let options = what.options(effort);
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                let samples = paired::measure(effort.pairs_count, |side| match side {
                    Side::A => self.sample(&format!("bench{replicas}"), &options),
                    Side::B => self.sample("bench1", &options),
                })?;
                rows.push(compared(name, what, &samples, Some(bounds)));
            }
        }
        Ok(rows)
    }

    /// T10: how long snapshots take, and what a load notices of them.
    fn snapshots(&self, effort: Effort) -> Result<Vec<Row>> {
        super::progress("snapshots under load");
        self.make_volume("snapped", "3")?;
        let longer = Effort {
            runtime: effort.runtime * 4.0,
            ..effort
        };
        let options = SNAPSHOT_LOAD.options(longer);
        let plain: Vec<&str> = options.iter().map(String::as_str).collect();
        let snapped = [&plain[..], &["--snapshot-every", SNAPSHOT_EVERY]].concat();
        let samples = paired::measure(effort.pairs_count, |side| match side {
            Side::A => self.sample("snapped", &snapped),
            Side::B => self.sample("snapped", &plain),
        })?;
        snapshot_rows(&samples)
    }

    /// A load on the volume of three replicas; `meanwhile` happens after its ramp. For so many seconds.
    fn during(&self, runtime: f64, meanwhile: impl FnOnce() -> Result<()>) -> Result<Outcome> {
        let effort = Effort {
            runtime,
            ramp_time: 0.3,
            pairs_count: 1,
        };
        let options = load("4k", 32, "randwrite").options(effort);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let mut command = self.command("bench3", &options)?;
        let load = std::thread::spawn(move || outcome_of(&mut command));
        std::thread::sleep(Duration::from_secs_f64(effort.ramp_time + 1.2));
        let done = meanwhile();
        let Ok(outcome) = load.join() else {
            bail!("the load's thread panicked")
        };
        done.and(outcome)
    }

    /// T14: the longest silence when a server stops answering, and when it dies, under load. Leaves
    /// the second server dead.
    fn lose(&self, effort: Effort) -> Result<Vec<Row>> {
        let gap = |name, outcome: &Outcome, aim, floor| Row {
            ours: Some(Figures::from([("value", outcome.longest_gap_ms)])),
            judged: Some(outcome.longest_gap_ms),
            bound: Bound::AtMost,
            ..Row::new(name, Some(aim), Some(floor))
        };
        let mut rows = Vec::new();
        if effort.pairs_count > 1 {
            super::progress("a storage server falls silent");
            let third: i32 = self.storageds[2].parse().context("a process id")?;
            let third = Pid::from_raw(third).context("a process id")?;
            let silent = self.during(8.0, || Ok(kill_process(third, Signal::STOP)?));
            kill_process(third, Signal::CONT)?;
            let name = "longest gap in ms, server silent";
            rows.push(gap(name, &silent?, SILENT_GAP_MS, SILENT_GAP_MS + 450.0));
            self.settled()?;
        }
        super::progress("a storage server dies");
        let dies = || self.at_dir(&["dev", "kill", "storaged2"]).map(|_| ());
        let name = "longest gap in ms, connection reset";
        rows.push(gap(name, &self.during(3.0, dies)?, GAP_MS, 1000.0));
        Ok(rows)
    }

    /// Attaches once more, for as long as it takes until every replica is in sync.
    fn settled(&self) -> Result<()> {
        let options = ["--rw", "randread", "--runtime", "3"];
        self.sample("bench3", &options).map(|_| ())
    }

    /// T9: the server that died comes back under load.
    fn heal(&self) -> Result<Vec<Row>> {
        super::progress("the storage server comes back");
        let comes = || self.at_dir(&["dev", "start", "storaged2"]).map(|_| ());
        // Connecting anew slows down to once in 5 s.
        let outcome = self.during(12.0, comes)?;
        let Some(found) = outcome.resilver else {
            bail!("the server that came back was not in sync again in time");
        };
        let row = |name: &str, value: f64, bound, (aim, floor)| Row {
            ours: Some(Figures::from([("value", value)])),
            judged: Some(value),
            bound,
            ..Row::new(name, Some(aim), Some(floor))
        };
        Ok(vec![
            row(
                "bytes moved / bytes missed",
                ratio_of(found.bytes_moved, found.bytes_missed),
                Bound::AtMost,
                (1.1, 1.5),
            ),
            row(
                "foreground IOPS during / after",
                found.iops_during / found.iops_after,
                Bound::AtLeast,
                (0.7, 0.5),
            ),
            row(
                "foreground p99 during / after",
                found.p99_us_during / found.p99_us_after,
                Bound::AtMost,
                (2.0, 4.0),
            ),
        ])
    }
}

/// Each figure is the median of the samples.
fn snapshot_rows(samples: &Pairs<Outcome>) -> Result<Vec<Row>> {
    let found: Option<Vec<SnapshotsOutcome>> = samples.a.iter().map(|o| o.snapshots).collect();
    let found = found.context("no snapshot was completed in time")?;
    let middle = |of: &dyn Fn(&SnapshotsOutcome) -> f64| {
        paired::median(&found.iter().map(of).collect::<Vec<_>>())
    };
    let writes = |outcome: &Outcome| outcome.write_us.unwrap_or_default();
    let p99s: Vec<f64> = samples.b.iter().map(|o| writes(o).p99).collect();
    let p99_9s: Vec<f64> = samples.b.iter().map(|o| writes(o).p99_9).collect();
    let row = |name: &str, value: Option<f64>, bounds: Option<(f64, f64)>| Row {
        ours: value.map(|value| Figures::from([("value", value)])),
        judged: value.filter(|_| bounds.is_some()),
        bound: Bound::AtMost,
        ..Row::new(
            name,
            bounds.map(|(aim, _)| aim),
            bounds.map(|(_, floor)| floor),
        )
    };
    let (took, p99) = (middle(&|s| s.p50_ms), middle(&|s| s.p99_us_during));
    let stall = middle(&|s| s.max_us_during);
    let over = |us: Option<f64>, of: &[f64]| Some(us? / paired::median(of).filter(|us| *us > 0.0)?);
    let (slower, stalls) = (over(p99, &p99s), over(stall, &p99_9s));
    Ok(vec![
        row("ms until every store has it", took, Some((5.0, 20.0))),
        row("p99 in µs while one is made", p99, None),
        row("that / p99 without", slower, Some((2.0, 4.0))),
        row(
            "longest meanwhile / p99.9 without",
            stalls,
            Some((2.0, 8.0)),
        ),
    ])
}

fn ratio_of(a: u64, b: u64) -> f64 {
    crate::outcome::float(a) / crate::outcome::float(b.max(1))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(why) = self.at_dir(&["dev", "down", "--wipe"]) {
            eprintln!("ubs-bench: {why:#}");
        }
    }
}

/// A field of the daemons of a program, as text.
fn members(status: &Value, program: &str, field: &str) -> Vec<String> {
    let items = status["items"].as_array().map_or(&[][..], Vec::as_slice);
    let ours = items.iter().filter(|item| item["program"] == program);
    ours.map(|item| {
        let value = &item[field];
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    })
    .collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn daemons_are_found_by_their_program() {
        let status = serde_json::json!({"items": [
            {"name": "metad1", "program": "metad", "pid": 7, "address": "127.0.0.1:1"},
            {"name": "storaged1", "program": "storaged", "pid": 8, "address": "127.0.0.1:2"},
        ]});
        assert_eq!(members(&status, "metad", "address"), ["127.0.0.1:1"]);
        assert_eq!(members(&status, "storaged", "pid"), ["8"]);
        assert!(members(&Value::Null, "metad", "pid").is_empty());
    }
}

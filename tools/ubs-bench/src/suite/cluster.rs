//! What needs storage servers and metad, natively: replication through our volume core, without a
//! block device.

use super::child::{Effort, Workload, outcome_of, processors};
use super::native::compared;
use super::paired::{self, Side};
use super::report::{Bound, Budget, Figures, Row};
use crate::outcome::Outcome;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of each server's store: three volumes of [`VOLUME`] and what the store itself needs.
const STORE_BYTES: u64 = 768 << 20;
const VOLUME: &str = "128MiB";
/// The grace of a member whose connection broke, and what may come on top.
const GAP_MS: f64 = 300.0 + 50.0;

/// The workloads of T6, with aim and floor for two and for three replicas.
const LOADS: [(Workload, [(f64, f64); 2]); 3] = [
    (load("4k", 1, "randwrite"), [(0.75, 0.6), (0.65, 0.45)]),
    (load("4k", 32, "randwrite"), [(0.60, 0.55), (0.42, 0.34)]),
    (load("128k", 16, "write"), [(0.5, 0.45), (0.35, 0.30)]),
];

const fn load(bs: &'static str, iodepth: u32, rw: &'static str) -> Workload {
    Workload { rw, bs, iodepth }
}

/// T6 and T14, or why not.
pub(crate) fn run(effort: Effort, scratch: &Path) -> Vec<Budget> {
    let (fan_out, killed) = ("fan-out to 2 and 3 replicas", "replica killed at QD32");
    let (itself, deadline) = ("its own 1 replica", "the configured grace");
    let measured = Cluster::up(scratch).and_then(|cluster| {
        let fan_out = cluster.fan_out(effort)?;
        Ok((fan_out, cluster.kill(effort)))
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
        Ok((t6, t14)) => vec![
            budget("T6", fan_out, itself, Ok(t6)),
            budget("T14", killed, deadline, t14),
        ],
        Err(why) => {
            let why = format!("{why:#}");
            vec![
                Budget::absent("T6", fan_out, itself, &why),
                Budget::absent("T14", killed, deadline, &why),
            ]
        }
    }
}

/// One metad and three storage servers on the target's processor.
struct Cluster {
    ubsctl: PathBuf,
    dir: PathBuf,
    metad: String,
    storageds: Vec<String>,
}

impl Cluster {
    fn up(scratch: &Path) -> Result<Self> {
        super::progress("a cluster of three storage servers");
        let ubsctl = std::env::current_exe()?.with_file_name("ubsctl");
        if !ubsctl.exists() {
            bail!("{} is not built", ubsctl.display());
        }
        let mut cluster = Self {
            ubsctl,
            dir: scratch.join("cluster"),
            metad: String::new(),
            storageds: Vec::new(),
        };
        let size = STORE_BYTES.to_string();
        let shape = ["--metads", "1", "--storageds", "3", "--no-clientd"];
        let wishes = ["--store-bytes", &size, "--timeout", "60"];
        let up = [&["dev", "up"], &shape[..], &wishes[..]].concat();
        // Children stay where their parent was when it started them.
        crate::cpu::pinned(processors().0, || cluster.at_dir(&up))??;
        cluster.metad = members(&cluster.daemons()?, "metad", "address").join(",");
        cluster.storageds = members(&cluster.daemons()?, "storaged", "pid");
        for replicas in ["1", "2", "3"] {
            let name = format!("bench{replicas}");
            let create = ["volume", "create", &name, "--size", VOLUME, "--wait"];
            cluster.ctl(&[&create[..], &["--replicas", replicas]].concat())?;
            let fill = ["--rw", "write", "--bs", "128k", "--iodepth", "16", "--once"];
            cluster.sample(&name, &fill)?;
        }
        Ok(cluster)
    }

    fn ctl(&self, words: &[&str]) -> Result<String> {
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

    /// T14: the longest silence when a server dies under load. Last, for it leaves a server dead.
    fn kill(&self, effort: Effort) -> Result<Vec<Row>> {
        super::progress("a storage server dies");
        let what = load("4k", 32, "randwrite");
        let effort = Effort {
            runtime: 3.0,
            ..effort
        };
        let options = what.options(effort);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let mut command = self.command("bench3", &options)?;
        let load = std::thread::spawn(move || outcome_of(&mut command));
        std::thread::sleep(std::time::Duration::from_secs_f64(effort.ramp_time + 1.2));
        self.at_dir(&["dev", "kill", "storaged2"])?;
        let Ok(outcome) = load.join() else {
            bail!("the load's thread panicked")
        };
        let gap_ms = outcome?.longest_gap_ms;
        Ok(vec![Row {
            ours: Some(Figures::from([("value", gap_ms)])),
            judged: Some(gap_ms),
            bound: Bound::AtMost,
            ..Row::new(
                "longest gap in ms, connection reset",
                Some(GAP_MS),
                Some(1000.0),
            )
        }])
    }
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

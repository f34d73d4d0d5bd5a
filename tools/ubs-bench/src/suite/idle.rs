//! T5: what volumes cost that nobody uses.

use super::child::{Effort, processors};
use super::cluster::{Cluster, SERVERS};
use super::report::{Bound, Budget, Figures, Row};
use crate::idle::Idle;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// Touches per second that three storage servers need: one in 7.5 s each, a timer and an answer.
const KEEP_ALIVES_PER_S: f64 = 3.0 * 2.0 / 7.5;

/// T5, or why not.
pub(crate) fn run(effort: Effort, scratch: &Path) -> Budget {
    let (volumes, seconds, what) = if effort.pairs_count > 1 {
        (100, 60, "idle, 100 volumes, 60 s")
    } else {
        (10, 8, "idle, 10 volumes, 8 s")
    };
    let absent = |why: &str| Budget::absent("T5", what, "zero", why);
    match rows(volumes, seconds, &scratch.join("idle")) {
        Ok(rows) => Budget {
            rows,
            absent: None,
            ..absent("")
        },
        Err(why) => absent(&format!("{why:#}")),
    }
}

fn rows(volumes: u32, seconds: u32, dir: &Path) -> Result<Vec<Row>> {
    let cluster = Cluster::up(dir, &SERVERS)?;
    super::progress(&format!("{volumes} idle volumes"));
    let names: Vec<String> = (1..=volumes).map(|n| format!("idle{n}")).collect();
    for name in &names {
        cluster.ctl(&["volume", "create", name, "--size", "4MiB", "--wait"])?;
    }
    let found = look(&cluster, &names, seconds)?;
    let all: f64 = found.processes.values().map(|cost| cost.cpu_s).sum();
    let mut rows = vec![Row {
        bound: Bound::AtMost,
        ..valued(
            "processor time of all daemons, % of a core",
            100.0 * all / found.seconds,
            (Some(0.1), Some(0.5)),
        )
    }];
    for (name, cost) in &found.processes {
        let per_s = crate::outcome::float(cost.voluntary_switches) / found.seconds;
        let ours = name == "volumes";
        let bounds = if ours {
            (Some(KEEP_ALIVES_PER_S), Some(2.0 * KEEP_ALIVES_PER_S))
        } else {
            (None, None)
        };
        rows.push(Row {
            bound: Bound::AtMost,
            ..valued(&format!("wake-ups per second, {name}"), per_s, bounds)
        });
    }
    Ok(rows)
}

fn valued(name: &str, value: f64, (aim, floor): (Option<f64>, Option<f64>)) -> Row {
    Row {
        ours: Some(Figures::from([("value", value)])),
        judged: Some(value),
        ..Row::new(name, aim, floor)
    }
}

fn look(cluster: &Cluster, names: &[String], seconds: u32) -> Result<Idle> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["idle", "--json", "--metad", &cluster.metad]);
    command.args(["--volumes", &names.join(",")]);
    command.args(["--seconds", &seconds.to_string()]);
    command.args(["--peers", &cluster.processes()?.join(",")]);
    command.args(["--cpu", &processors().1.to_string()]);
    let done = command.stdin(Stdio::null()).output();
    let done = done.context("cannot start the holder of the volumes")?;
    if !done.status.success() {
        bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
    }
    serde_json::from_slice(&done.stdout).context("the holder of the volumes printed no report")
}

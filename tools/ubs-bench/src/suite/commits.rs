//! T11: how fast three members of metad commit, beside what their disk can make durable.

use super::child::{Effort, processors};
use super::cluster::Cluster;
use super::paired::{self, Side, median};
use super::report::{Budget, Figures, Row};
use crate::commits::Commits;
use anyhow::{Context, Result, bail};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MEMBERS: [&str; 5] = ["--metads", "3", "--storageds", "1", "--no-clientd"];
/// Clients, with aim and floor of their commits per fdatasync.
const LOADS: [(&str, f64, f64); 2] = [("1", 0.4, 0.25), ("64", 5.0, 3.0)];

/// T11, in a directory on the disk to be measured, or why not.
pub(crate) fn run(effort: Effort, dir: &Path) -> Budget {
    let absent = |why: &str| {
        let (what, against) = ("metad, 3 members on one disk", "that disk's fdatasync rate");
        Budget::absent("T11", what, against, why)
    };
    match rows(effort, dir) {
        Ok(rows) => Budget {
            rows,
            absent: None,
            ..absent("")
        },
        Err(why) => absent(&format!("{why:#}")),
    }
}

fn rows(effort: Effort, dir: &Path) -> Result<Vec<Row>> {
    let cluster = Cluster::up(&dir.join("metads"), &MEMBERS)?;
    let mut rows = Vec::new();
    for (clients, aim, floor) in LOADS {
        super::progress(&format!("metad, {clients} clients"));
        let mut latencies_us = Vec::new();
        let samples = paired::measure(effort.pairs_count, |side| match side {
            Side::A => {
                let found = commits(&cluster, clients, effort)?;
                latencies_us.push((found.p50_us, found.p99_us));
                Ok(found.commits_per_s)
            }
            Side::B => syncs_per_s(dir, effort),
        })?;
        let middle = |of: &[f64]| median(of).unwrap_or_default();
        let (p50, p99): (Vec<f64>, Vec<f64>) = latencies_us.into_iter().unzip();
        let ours = [
            ("iops", middle(&samples.a)),
            ("p50_us", middle(&p50)),
            ("p99_us", middle(&p99)),
        ];
        rows.push(Row {
            ours: Some(Figures::from(ours)),
            peer: Some(Figures::from([("iops", middle(&samples.b))])),
            ratio: paired::ratio(&samples.a, &samples.b),
            ..Row::new(
                format!("commits/s, {clients} clients"),
                Some(aim),
                Some(floor),
            )
        });
    }
    Ok(rows)
}

fn commits(cluster: &Cluster, clients: &str, effort: Effort) -> Result<Commits> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "metad",
        "--json",
        "--clients",
        clients,
        "--metad",
        &cluster.metad,
    ]);
    command.args(["--runtime", &effort.runtime.to_string()]);
    let run = || command.stdin(Stdio::null()).output();
    let done = crate::cpu::pinned(processors().1, run)?.context("cannot start the load")?;
    if !done.status.success() {
        bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
    }
    serde_json::from_slice(&done.stdout).context("the load printed no report")
}

/// Overwrites of 4 KiB, each made durable before the next.
fn syncs_per_s(dir: &Path, effort: Effort) -> Result<f64> {
    let path = dir.join("fdatasync");
    let mut file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    let mut sync = || -> std::io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()
    };
    sync()?;
    let begin = Instant::now();
    let mut count = 0u32;
    while begin.elapsed() < Duration::from_secs_f64(effort.runtime) {
        sync()?;
        count += 1;
    }
    let rate = f64::from(count) / begin.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}

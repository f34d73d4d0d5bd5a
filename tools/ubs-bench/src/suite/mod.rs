//! `ubs-bench suite`: the budgets of docs/ARCHITECTURE.md, measured as far as this machine can.

mod child;
mod cluster;
mod commits;
mod guest;
mod idle;
mod native;
mod paired;
mod report;
mod store;

use anyhow::{Context, Result};
use child::Effort;
use clap::Args;
use report::Budget;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
pub(crate) use store::{OpenOptions, StoreOptions, open as open_store, run as run_store};

/// Options of the suite.
#[derive(Clone, Debug, Args)]
pub(crate) struct SuiteOptions {
    /// Fewer and shorter samples: under two minutes
    #[arg(long)]
    quick: bool,
    /// Where the report goes
    #[arg(long, default_value = "target/bench/report.json")]
    output: PathBuf,
    /// Leave out what needs a VM
    #[arg(long)]
    no_vm: bool,
    /// Where temporary files go; memory, so that no disk is measured
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
}

/// A folder that goes away with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(why) = std::fs::remove_dir_all(&self.0) {
            eprintln!("ubs-bench: {}: {why}", self.0.display());
        }
    }
}

/// Measures, writes the report and prints the table.
pub(crate) fn run(options: &SuiteOptions) -> Result<()> {
    let began = std::time::Instant::now();
    let effort = if options.quick {
        Effort {
            pairs_count: 1,
            runtime: 0.5,
            ramp_time: 0.2,
        }
    } else {
        Effort {
            pairs_count: 3,
            runtime: 1.0,
            ramp_time: 0.3,
        }
    };
    let into = options.output.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(into).with_context(|| into.display().to_string())?;
    let dir = options
        .scratch
        .join(format!("ubs-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let scratch = Scratch(dir);
    let size = if options.quick { 128 << 20 } else { 512 << 20 };
    let found = native::run(effort, &scratch.0, size)?;
    let mut budgets = found.budgets;
    budgets.extend(cluster::run(effort, &scratch.0));
    budgets.push(idle::run(effort, &scratch.0));
    budgets.push(commits::run(effort, into));
    budgets.extend(in_guest(options, into));
    budgets.sort_by_key(|budget| budget.key[1..].parse::<u32>().unwrap_or(u32::MAX));
    let about = about(
        options,
        effort,
        &found.foreign,
        began.elapsed().as_secs_f64(),
    );
    let document = report::document(&budgets, about.clone());
    let text = serde_json::to_string_pretty(&document)?;
    std::fs::write(&options.output, text + "\n")
        .with_context(|| options.output.display().to_string())?;
    println!("{}", report::markdown(&budgets));
    println!("{}\n{}", machine_line(&about), options.output.display());
    Ok(())
}

/// Says on standard error what is being measured.
fn progress(what: &str) {
    eprintln!("bench: {what}");
}

fn in_guest(options: &SuiteOptions, into: &Path) -> Vec<Budget> {
    let absent = |why: &str| {
        let against = "md-raid1 over 3 nvme-tcp legs";
        vec![
            Budget::absent("T7", "/dev/ublkb0, 3 replicas, in the VM", against, why),
            Budget::absent("T8", "dirty tracking", "itself without", why),
        ]
    };
    if options.no_vm {
        return absent("left out by --no-vm");
    }
    progress("block devices in the VM");
    let (rounds, seconds) = if options.quick { (1, 1) } else { (3, 2) };
    let header = format!("rounds={rounds} seconds={seconds}");
    let script = |name: &str| Path::new("tests/vm/bench").join(name);
    let whole = guest::run(&script("cluster.sh"), into, &header);
    let (output, why_not_ours) = match whole {
        Ok(output) => (output, None),
        Err(why) => {
            let why = format!("no device of ours: {why:#}");
            progress(&why);
            match guest::run(&script("peers.sh"), into, &header) {
                Ok(output) => (output, Some(why)),
                Err(why) => return absent(&format!("{why:#}")),
            }
        }
    };
    guest::budgets(&guest::parse(&output), why_not_ours.as_deref())
}

fn about(options: &SuiteOptions, effort: Effort, foreign: &[f64], seconds: f64) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let (target, load) = child::processors();
    json!({
        "unix_s": std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        "quick": options.quick,
        "seconds": seconds,
        "pairs": effort.pairs_count,
        "sample_s": effort.runtime,
        "cpu": model.map(|rest| rest.trim_start_matches(['\t', ' ', ':'])),
        "processors": crate::cpu::processors().unwrap_or(0),
        "target_on": target,
        "load_on": load,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "loadavg": read("/proc/loadavg").trim(),
        "foreign_share": {
            "median": paired::median(foreign),
            "max": foreign.iter().copied().fold(0.0, f64::max),
        },
    })
}

fn machine_line(about: &Value) -> String {
    let percent = |key: &str| about["foreign_share"][key].as_f64().unwrap_or_default() * 100.0;
    format!(
        "Measured in {:.0} s on {} processors ({}), kernel {}. Foreign load: median {:.0} %, at most {:.0} % of \
         the machine{}",
        about["seconds"].as_f64().unwrap_or_default(),
        about["processors"],
        about["cpu"].as_str().unwrap_or("unknown"),
        about["kernel"].as_str().unwrap_or("unknown"),
        percent("median"),
        percent("max"),
        if percent("median") > report::FOREIGN_SHARE_MAX * 100.0 {
            ": figures are indicative only."
        } else {
            "."
        },
    )
}

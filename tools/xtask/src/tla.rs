//! `cargo xtask tla`: model-checks `tla/`, several configurations at a time.
//!
//! A configuration is a line of `tla/checks.txt`: the module's own `.cfg` with some of its lines
//! replaced. It passes if TLC finds what the line expects: nothing, or exactly the named invariant
//! broken. A must-fail configuration in which TLC finds nothing fails.

mod checker;
mod checks;
mod maker;
mod outcome;
pub(crate) mod trace;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use checker::{Checker, Job};
use checks::{Check, Expected, Set};
use outcome::Report;

/// Java's heap for one configuration of a set, and how long it may take.
const SMALL_HEAP_MB: u64 = 1_500;
const LONG_HEAP_MB: u64 = 5_000;
const SMALL_LIMIT_S: u64 = 600;
const LONG_LIMIT_S: u64 = 3_600;
/// Left to everybody else.
const MEMORY_KEPT_MB: u64 = 1_024;
const JOBS_MAX: usize = 2;

#[derive(Debug, Args)]
pub(crate) struct TlaArgs {
    /// The larger configurations instead of the small ones.
    #[arg(long)]
    long: bool,
    /// Only configurations whose module or name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Configurations at a time; each takes one core.
    #[arg(long, value_name = "N", default_value_t = JOBS_MAX)]
    jobs: usize,
    /// Seconds one configuration may take.
    #[arg(long, value_name = "S")]
    limit_s: Option<u64>,
}

/// Runs a set; true if every configuration did as expected.
pub(crate) fn run(root: &Path, args: &TlaArgs) -> Result<bool> {
    let set = if args.long { Set::Long } else { Set::Small };
    let text = std::fs::read_to_string(root.join("tla/checks.txt")).context("tla/checks.txt")?;
    let mut checks = checks::parse(&text)?;
    checks.retain(|c| c.set == set);
    if let Some(only) = &args.only {
        checks.retain(|c| {
            [&c.module, &c.name]
                .iter()
                .any(|n| n.contains(only.as_str()))
        });
    }
    ensure!(
        !checks.is_empty(),
        "no configuration of that name in tla/checks.txt"
    );
    let (heap_mb, limit_s) = match set {
        Set::Small => (SMALL_HEAP_MB, args.limit_s.unwrap_or(SMALL_LIMIT_S)),
        Set::Long => (LONG_HEAP_MB, args.limit_s.unwrap_or(LONG_LIMIT_S)),
    };
    let jobs = jobs_in_memory(args.jobs, heap_mb)?;
    let checker = Checker::find(root, heap_mb, Duration::from_secs(limit_s))?;
    println!("{}", Report::HEADING);
    let reports = run_all(root, &checker, &checks, jobs)?;
    let failed: Vec<_> = reports.iter().filter(|r| !r.as_expected()).collect();
    for report in &failed {
        report.explain();
    }
    println!(
        "{} passed, {} failed",
        reports.len() - failed.len(),
        failed.len()
    );
    Ok(failed.is_empty())
}

fn run_all(root: &Path, checker: &Checker, checks: &[Check], jobs: usize) -> Result<Vec<Report>> {
    at_once(jobs, checks, |check| {
        let report = run_one(root, checker, check)?;
        println!("{report}");
        Ok(report)
    })
}

/// Does the work for all items in their order, several at a time; results in the order in which they came.
fn at_once<T: Sync, R: Send>(
    jobs: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let one_job = || -> Result<()> {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = work(item)?;
                results.lock().expect("nobody panics with it").push(result);
            }
            Ok(())
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(one_job)).collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().expect("a worker does not panic"))
    })?;
    Ok(results.into_inner().expect("nobody panics with it"))
}

fn run_one(root: &Path, checker: &Checker, check: &Check) -> Result<Report> {
    let dir = fresh_dir(root, &format!("{}-{}", check.module, check.name))?;
    let base = root.join("tla").join(format!("{}.cfg", check.module));
    let base = std::fs::read_to_string(&base).with_context(|| base.display().to_string())?;
    let config = check.config(&base)?;
    std::fs::write(dir.join(format!("{}.cfg", check.module)), config)?;
    let done = checker.run(&Job {
        dir: dir.clone(),
        module: check.module.clone(),
        keep_going: false,
        // What breaks does so within the small sizes' first states.
        short: check.set == Set::Small && check.expected != Expected::Pass,
    })?;
    Ok(Report::new(check, &dir, &done))
}

/// An empty folder under `target/tla` with all modules in it.
fn fresh_dir(root: &Path, name: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root.join("target"), PathBuf::from);
    let dir = target.join("tla").join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    for entry in std::fs::read_dir(root.join("tla"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "tla") {
            let name = path.file_name().expect("has an extension");
            std::fs::copy(&path, dir.join(name))?;
        }
    }
    Ok(dir)
}

fn jobs_in_memory(wanted: usize, heap_mb: u64) -> Result<usize> {
    let cores = std::thread::available_parallelism()?.get();
    let info = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let available = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let free_mb = kib.context("no MemAvailable in /proc/meminfo")? / 1_024;
    let fit = free_mb.saturating_sub(MEMORY_KEPT_MB) / heap_mb;
    let fit = usize::try_from(fit).unwrap_or(usize::MAX);
    Ok(wanted.min(cores).min(fit).max(1))
}

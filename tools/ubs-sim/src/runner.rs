//! Runs seeds on all cores and says what came of them.

use crate::rare::{Counts, Rare};
use crate::run::{Outcome, run};
use crate::{Many, Record};
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// From so many seeds on, a rare path that no seed took is a failure.
const SEEDS_FOR_COVERAGE: u64 = 200;

thread_local! {
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics of simulated processes are findings, reported with their seed.
pub(crate) fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        PANIC_PLACE.with_borrow_mut(|kept| *kept = place.unwrap_or_default());
    }));
}

/// Where this thread panicked last.
pub(crate) fn take_panic_place() -> String {
    PANIC_PLACE.with_borrow_mut(std::mem::take)
}

/// Runs one seed and reports; true if nothing was found.
pub(crate) fn run_one(seed: u64, trace: bool) -> bool {
    let began = Instant::now();
    let outcome = run(seed, trace);
    let verdict = match &outcome.found {
        None => "nothing found".to_owned(),
        Some(what) => format!("FAILED, {:?}: {what}", outcome.kind),
    };
    println!(
        "seed {seed}: {verdict}; {} faults, {} ops, {:.0} virtual s, digest {:016x}, {:.2} s",
        outcome.faults,
        outcome.ops,
        seconds(outcome.virtual_ns),
        outcome.digest,
        began.elapsed().as_secs_f64()
    );
    if !trace {
        outcome.tail.iter().for_each(|line| println!("    {line}"));
    }
    outcome.found.is_none()
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Prints a record a line and an empty line after each run; what is known about it goes to the error
/// stream. True if nothing was found.
pub(crate) fn run_recorded(record: &Record) -> Result<bool> {
    let mut fine = true;
    for seed in &record.seeds {
        match crate::run::record(*seed, record.events) {
            Ok((lines, why)) => {
                eprintln!("seed {seed}: {} events: {why}", lines.len());
                lines.iter().for_each(|line| println!("{line}"));
                println!();
            }
            Err(found) => {
                eprintln!("seed {seed}: {found}");
                fine = false;
            }
        }
    }
    Ok(fine)
}

/// What many seeds came to.
#[derive(Debug, Default)]
struct Summary {
    seeds: u64,
    virtual_ns: u64,
    faults: u64,
    ops: u64,
    rare: Counts,
    failed: Vec<(u64, String)>,
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.virtual_ns += outcome.virtual_ns;
        self.faults += outcome.faults;
        self.ops += outcome.ops;
        self.rare.merge(&outcome.rare);
        if let Some(found) = &outcome.found {
            self.failed.push((outcome.seed, found.clone()));
        }
    }
}

/// Runs many seeds and reports; true if nothing was found and every rare path was taken.
pub(crate) fn run_many(many: &Many) -> Result<bool> {
    let mut seeds = match &many.file {
        Some(path) => seeds_of(path)?,
        None => Vec::new(),
    };
    seeds.extend(many.first..many.first + many.seeds);
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let summary = Mutex::new(Summary::default());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = many.jobs.unwrap_or(cores).clamp(1, seeds.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while many
                    .seconds
                    .is_none_or(|most| began.elapsed().as_secs() < most)
                    && let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let outcome = run(*seed, false);
                    if let Some(found) = &outcome.found {
                        eprintln!(
                            "seed {seed}: {found}\n    replay: ubs-sim --seed {seed} --trace"
                        );
                    }
                    summary.lock().expect("nobody panics with it").add(&outcome);
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("nobody panics with it");
    summary.failed.sort();
    let elapsed_s = began.elapsed().as_secs_f64();
    let missing = if summary.seeds >= SEEDS_FOR_COVERAGE {
        summary.rare.missing()
    } else {
        Vec::new()
    };
    if many.json {
        print_json(&summary, &missing, elapsed_s);
    } else {
        print_text(&summary, &missing, elapsed_s);
    }
    Ok(summary.failed.is_empty() && missing.is_empty())
}

fn seeds_of(path: &std::path::Path) -> Result<Vec<u64>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim);
    let seeds = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    seeds
        .map(|line| {
            let number = line.split_whitespace().next().unwrap_or_default();
            let seed = number.parse();
            seed.with_context(|| format!("{}: {number:?} is no seed", path.display()))
        })
        .collect()
}

fn print_text(summary: &Summary, missing: &[&str], elapsed_s: f64) {
    for what in Rare::ALL {
        println!("{:>9}  {}", summary.rare.of(*what), what.name());
    }
    for what in missing {
        println!("NEVER: {what}");
    }
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let rate = summary.seeds as f64 / elapsed_s;
    println!(
        "{} seeds, {:.1} simulated hours, {} faults, {} ops, {rate:.2} seeds/s, {} failed",
        summary.seeds,
        seconds(summary.virtual_ns) / 3600.0,
        summary.faults,
        summary.ops,
        summary.failed.len()
    );
}

fn print_json(summary: &Summary, missing: &[&str], elapsed_s: f64) {
    let rare = Rare::ALL
        .iter()
        .map(|what| (what.name().to_owned(), summary.rare.of(*what).into()));
    let failed = summary.failed.iter().map(|(seed, found)| {
        serde_json::json!({ "seed": seed, "found": found, "replay": format!("ubs-sim --seed {seed} --trace") })
    });
    let json = serde_json::json!({
        "seeds": summary.seeds,
        "simulated_s": seconds(summary.virtual_ns),
        "elapsed_s": elapsed_s,
        "faults": summary.faults,
        "ops": summary.ops,
        "rare": serde_json::Map::from_iter(rare),
        "never": missing,
        "failed": failed.collect::<Vec<_>>(),
    });
    println!("{json:#}");
}

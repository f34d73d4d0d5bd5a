//! Canaries: clusters whose cores lack one mechanism. Each must be caught, or the simulator is too
//! kind: by a promise that is broken. What only hangs or panics does not count, because it would
//! also be found by somebody who knows nothing of promises.

use crate::run::{Finding, run};
use crate::runner::run_one;
use anyhow::{Context, Result, bail};
use clap::Args;
use shardmap::canary::{Mechanism, switch_off};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Which canaries, and how long to look.
#[derive(Clone, Debug, Args)]
pub(crate) struct Canary {
    /// The mechanism to switch off; without a name and without --all: list them
    name: Option<String>,
    /// All of them
    #[arg(long, conflicts_with_all = ["name", "seed"])]
    all: bool,
    /// Seeds that each may take
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Run this one seed only
    #[arg(long, requires = "name")]
    seed: Option<u64>,
    /// Print its timeline in virtual time
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Seeds of these that are known to catch one, tried first: its name and they, one canary a line
    #[arg(long)]
    known: Option<std::path::PathBuf>,
    /// Threads [default: one per core]
    #[arg(long)]
    jobs: Option<usize>,
}

/// Runs canaries; true if each was caught.
pub(crate) fn run_canaries(canary: &Canary) -> Result<bool> {
    let named = |m: &&Mechanism| Some(m.name()) == canary.name.as_deref();
    let seeds = canary.first..canary.first + canary.seeds;
    let known = match &canary.known {
        Some(path) => known_of(path, &seeds)?,
        None => BTreeMap::new(),
    };
    let chosen: Vec<Mechanism> = if canary.all {
        Mechanism::ALL.to_vec()
    } else {
        Mechanism::ALL.iter().filter(named).copied().collect()
    };
    if chosen.is_empty() {
        let names: Vec<_> = Mechanism::ALL.iter().map(|m| m.name()).collect();
        bail!("name one of: {}; or give --all", names.join(", "));
    }
    if let (Some(seed), [one]) = (canary.seed, &chosen[..]) {
        switch_off(Some(*one));
        return Ok(!run_one(seed, canary.trace));
    }
    let mut caught = 0;
    for mechanism in &chosen {
        let of_it = known.get(mechanism.name()).map_or(&[][..], Vec::as_slice);
        let others = seeds.clone().filter(|seed| !of_it.contains(seed));
        let order: Vec<u64> = of_it.iter().copied().chain(others).collect();
        caught += usize::from(is_caught(*mechanism, &order, canary.jobs));
    }
    println!("{caught} of {} canaries caught", chosen.len());
    Ok(caught == chosen.len())
}

/// The seeds that are known to catch each canary. They count as any other, so they must be among `seeds`.
fn known_of(path: &std::path::Path, seeds: &Range<u64>) -> Result<BTreeMap<String, Vec<u64>>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            if !Mechanism::ALL.iter().any(|m| m.name() == name) {
                bail!("{}: {name:?} is no canary", path.display());
            }
            let seed = |word: &str| {
                let number = word.parse();
                let number = number.with_context(|| format!("{}: {word:?} is no seed", path.display()));
                let seed: u64 = number?;
                if !seeds.contains(&seed) {
                    bail!(
                        "{}: {name}: seed {seed} is none of the {} from {} on that each may take; name one that is",
                        path.display(),
                        seeds.end - seeds.start,
                        seeds.start
                    );
                }
                Ok(seed)
            };
            Ok((name.to_owned(), words.map(seed).collect::<Result<_>>()?))
        })
        .collect()
}

/// Runs seeds in this order until one finds a broken promise.
fn is_caught(mechanism: Mechanism, seeds: &[u64], jobs: Option<usize>) -> bool {
    switch_off(Some(mechanism));
    let name = mechanism.name();
    let (next, others) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let caught: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..jobs.unwrap_or(cores).max(1) {
            scope.spawn(|| {
                while caught.lock().expect("nobody panics with it").is_none()
                    && let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let outcome = run(*seed, false);
                    let Some(found) = outcome.found else {
                        continue;
                    };
                    if outcome.kind == Finding::Broken {
                        let mut caught = caught.lock().expect("nobody panics with it");
                        caught.get_or_insert((*seed, found));
                    } else {
                        others.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    switch_off(None);
    match caught.into_inner().expect("nobody panics with it") {
        Some((seed, found)) => {
            let found = found.lines().next().unwrap_or_default();
            println!("caught     {name:16} seed {seed}: {found}");
            true
        }
        None => {
            let others = others.into_inner();
            println!(
                "NOT CAUGHT {name:16} within {} seeds; {others} hung or panicked",
                seeds.len()
            );
            false
        }
    }
}

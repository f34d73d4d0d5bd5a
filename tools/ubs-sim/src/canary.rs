//! Canaries: clusters whose cores lack one mechanism. Each must be caught, or the simulator is too
//! kind: by a promise that is broken. What only hangs or panics does not count, because it would
//! also be found by somebody who knows nothing of promises.

use crate::run::{Finding, run};
use crate::runner::run_one;
use anyhow::{Context, Result, bail};
use clap::Args;
use shardmap::canary::{Mechanism, switch_off};
use std::collections::BTreeMap;
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
    /// Seeds that are known to catch one, tried first: its name and they, one canary a line
    #[arg(long)]
    known: Option<std::path::PathBuf>,
    /// All that have known seeds
    #[arg(long, requires = "known", conflicts_with_all = ["name", "all", "seed"])]
    listed: bool,
    /// Threads [default: one per core]
    #[arg(long)]
    jobs: Option<usize>,
}

/// Runs canaries; true if each was caught.
pub(crate) fn run_canaries(canary: &Canary) -> Result<bool> {
    let named = |m: &&Mechanism| Some(m.name()) == canary.name.as_deref();
    let known = match &canary.known {
        Some(path) => known_of(path)?,
        None => BTreeMap::new(),
    };
    let listed = |m: &&Mechanism| known.contains_key(m.name());
    let chosen: Vec<Mechanism> = if canary.listed {
        Mechanism::ALL.iter().filter(listed).copied().collect()
    } else if canary.all {
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
        let known = known.get(mechanism.name());
        caught += usize::from(is_caught(
            *mechanism,
            canary,
            known.map_or(&[], Vec::as_slice),
        ));
    }
    println!("{caught} of {} canaries caught", chosen.len());
    Ok(caught == chosen.len())
}

fn known_of(path: &std::path::Path) -> Result<BTreeMap<String, Vec<u64>>> {
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
                let seed = word.parse();
                seed.with_context(|| format!("{}: {word:?} is no seed", path.display()))
            };
            Ok((name.to_owned(), words.map(seed).collect::<Result<_>>()?))
        })
        .collect()
}

/// Runs seeds until one finds a broken promise: the known ones, then others.
fn is_caught(mechanism: Mechanism, canary: &Canary, known: &[u64]) -> bool {
    switch_off(Some(mechanism));
    let name = mechanism.name();
    let mut seeds = known.to_vec();
    seeds.extend(canary.first..canary.first + canary.seeds);
    let (next, others) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let caught: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..canary.jobs.unwrap_or(cores).max(1) {
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

//! Canaries: clusters whose cores lack one mechanism. Each must be caught, or the simulator is too
//! kind.

use crate::run::run;
use crate::runner::run_one;
use anyhow::{Result, bail};
use clap::Args;
use shardmap::canary::{Mechanism, switch_off};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Threads [default: one per core]
    #[arg(long)]
    jobs: Option<usize>,
}

/// Runs canaries; true if each was caught.
pub(crate) fn run_canaries(canary: &Canary) -> Result<bool> {
    let named = |m: &&Mechanism| Some(m.name()) == canary.name.as_deref();
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
        caught += usize::from(is_caught(*mechanism, canary));
    }
    println!("{caught} of {} canaries caught", chosen.len());
    Ok(caught == chosen.len())
}

/// Runs seeds until one finds something. The first seed counts, whichever thread is faster.
fn is_caught(mechanism: Mechanism, canary: &Canary) -> bool {
    switch_off(Some(mechanism));
    let name = mechanism.name();
    let next = AtomicU64::new(canary.first);
    let end = AtomicU64::new(canary.first + canary.seeds);
    let caught: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..canary.jobs.unwrap_or(cores).max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    let Some(found) = run(seed, false).found else {
                        continue;
                    };
                    end.fetch_min(seed, Ordering::Relaxed);
                    let mut caught = caught.lock().expect("nobody panics with it");
                    if caught.as_ref().is_none_or(|(other, _)| seed < *other) {
                        *caught = Some((seed, found));
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
            println!("NOT CAUGHT {name:16} within {} seeds", canary.seeds);
            false
        }
    }
}

//! ubs-sim: a whole cluster in one thread, under virtual time, from a seed.
//!
//! The real storaged (target, stores) and the real volume shell run on simulated machines, networks
//! and disks (`reactor::sim`); metad is its real state machine behind messages that get delayed and
//! lost. A fault plan hurts all of them for ten virtual minutes; an oracle keeps per block what may
//! be read and what must be durable; afterwards everything must heal.
#![forbid(unsafe_code)]

#[cfg(feature = "canary")]
mod canary;
mod clones;
mod device;
mod faults;
mod growth;
mod host;
mod log;
mod metad;
mod plan;
mod rare;
mod recorder;
mod restore;
mod rollbacks;
mod rotting;
mod run;
mod runner;
mod scripts;
mod server;
mod sim;
mod snapshots;
mod stamp;
mod timeline;
mod upkeep;
mod workload;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Simulates whole clusters under faults, from seeds.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    one: One,
}

#[derive(Debug, Args)]
struct One {
    /// Run this one seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print its timeline in virtual time
    #[arg(long, requires = "seed")]
    trace: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run many seeds
    Run(Many),
    /// Print what happened to one block of each seed's volume, for `cargo xtask trace`
    Record(Record),
    /// Switch a mechanism of the cores off and see that it is missed
    #[cfg(feature = "canary")]
    Canary(canary::Canary),
}

/// Many seeds.
#[derive(Clone, Debug, Args)]
pub(crate) struct Many {
    /// How many
    #[arg(long, default_value_t = 200)]
    pub(crate) seeds: u64,
    /// The first one; the others follow it
    #[arg(long, default_value_t = 1)]
    pub(crate) first: u64,
    /// Run the seeds of this file too, one a line; what follows the number is a remark
    #[arg(long)]
    pub(crate) file: Option<std::path::PathBuf>,
    /// Begin no further seed after so many seconds
    #[arg(long)]
    pub(crate) seconds: Option<u64>,
    /// Threads [default: one per core]
    #[arg(long)]
    pub(crate) jobs: Option<usize>,
    /// Print the summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs for the models.
#[derive(Clone, Debug, Args)]
pub(crate) struct Record {
    /// Seeds
    #[arg(required = true)]
    pub(crate) seeds: Vec<u64>,
    /// Events of each, at most
    #[arg(long, default_value_t = 300)]
    pub(crate) events: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    runner::keep_panics_quiet();
    let ended = match (cli.verb, cli.one.seed) {
        (Some(Verb::Run(many)), _) => runner::run_many(&many),
        (Some(Verb::Record(record)), _) => runner::run_recorded(&record),
        #[cfg(feature = "canary")]
        (Some(Verb::Canary(canary)), _) => canary::run_canaries(&canary),
        (None, Some(seed)) => Ok(runner::run_one(seed, cli.one.trace)),
        (None, None) => Err(anyhow::anyhow!(
            "nothing to do; try `ubs-sim run --seeds 100` or `ubs-sim --seed 1 --trace`"
        )),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ubs-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

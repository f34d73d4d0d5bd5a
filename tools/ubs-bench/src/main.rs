//! `ubs-bench`: closed-loop load on an NVMe/TCP namespace or on a volume, and the measured budgets.
#![forbid(unsafe_code)]

mod commits;
mod cpu;
mod engine;
mod idle;
mod load;
mod metad;
mod options;
mod outcome;
mod pattern;
mod serve;
mod suite;

use anyhow::Result;
use clap::{Parser, Subcommand};
use commits::CommitOptions;
use engine::{TargetEngine, TargetOptions, VolumeEngine, VolumeOptions};
use idle::IdleOptions;
use options::LoadOptions;
use serde::Serialize;
use serve::ServeOptions;
use std::process::ExitCode;
use suite::{OpenOptions, StoreOptions, SuiteOptions};

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Load generator for NVMe/TCP namespaces and ublkstor volumes"
)]
struct Cli {
    /// What to log to standard error
    #[arg(long, global = true, default_value = "warn", env = "UBS_LOG")]
    log: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Load on a namespace of an NVMe/TCP target, with our initiator. Writes overwrite it
    Target {
        #[command(flatten)]
        at: TargetOptions,
        #[command(flatten)]
        load: LoadOptions,
    },
    /// Load on a volume, with our volume core instead of a block device. Writes overwrite it
    Volume {
        #[command(flatten)]
        at: VolumeOptions,
        #[command(flatten)]
        load: LoadOptions,
    },
    /// Load on metad: clients that commit one command after another
    Metad(CommitOptions),
    /// Hold volumes without using them, and say what that costs
    Idle(IdleOptions),
    /// Serve a namespace for such loads until standard input ends
    Serve(ServeOptions),
    /// Measure snapshots, generations and opening of one store, and write the report
    Store(StoreOptions),
    #[command(hide = true)]
    OpenStore(OpenOptions),
    /// Measure the budgets of the architecture and write the report
    Suite(SuiteOptions),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = init_logging(&cli.log).and_then(|()| run(cli.verb));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ubs-bench: {why:#}");
            ExitCode::from(1)
        }
    }
}

fn init_logging(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false);
    builder.with_writer(std::io::stderr).init();
    Ok(())
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Target { at, load } => {
            let iodepth = load.iodepth;
            let json = load.json;
            let outcome = load::run(load, |_| Ok(TargetEngine::new(at, iodepth)))?;
            print(&outcome, json, outcome::table)
        }
        Verb::Volume { at, load } => {
            let json = load.json;
            let outcome = load::run(load, |driver| VolumeEngine::new(&at, driver))?;
            print(&outcome, json, outcome::table)
        }
        Verb::Metad(options) => print(&commits::run(&options)?, options.json, commits::line),
        Verb::Idle(options) => print(&idle::run(&options)?, options.json, idle::table),
        Verb::Serve(options) => serve::run(options),
        Verb::Store(options) => suite::run_store(&options),
        Verb::OpenStore(options) => suite::open_store(&options),
        Verb::Suite(options) => suite::run(&options),
    }
}

fn print<T: Serialize>(found: &T, json: bool, text: impl FnOnce(&T) -> String) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(found)?);
    } else {
        println!("{}", text(found));
    }
    Ok(())
}

//! `ubs-verify`: load that knows what it wrote, and the judgement on what is read.
#![forbid(unsafe_code)]

mod device;
mod engine;
mod options;
mod pattern;
mod replicas;
mod report;
mod sink;

use anyhow::{Context, Result, bail};
use clap::Parser;
use device::Device;
use engine::Bounds;
use options::{Check, Cli, Load, On, Output, Verb, Where};
use pattern::{Mix, Pattern};
use report::Report;
use signal_hook::consts::{SIGINT, SIGTERM};
use sink::{Beginning, Saved};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Blocks read at once by a check.
const CHECK_BLOCKS: u32 = 32;

fn main() -> ExitCode {
    let cli = Cli::parse();
    run(cli).unwrap_or_else(|why| {
        eprintln!("ubs-verify: {why:#}");
        ExitCode::from(2)
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot catch signals")?;
    }
    match cli.verb {
        Verb::Write(load) => write(&load, false, cli.output, &stop),
        Verb::Run(load) => write(&load, true, cli.output, &stop),
        Verb::Check(check) => self::check(&check, cli.output, &stop),
        Verb::Compare(compare) => replicas::compare(&compare, cli.output),
    }
}

/// Reads as well, and reads everything in the end, if `read` says so.
fn write(load: &Load, read: bool, output: Output, stop: &Arc<AtomicBool>) -> Result<ExitCode> {
    let device = Device::open(&load.on.device, true)?;
    let size_blocks = match load.blocks {
        0 => device.size_blocks,
        some if some <= device.size_blocks => some,
        some => bail!(
            "--blocks {some}: {} has {} blocks only",
            load.on.device.display(),
            device.size_blocks
        ),
    };
    if size_blocks == 0 {
        bail!(
            "{} has no room for a block of 4 KiB",
            load.on.device.display()
        );
    }
    let how = beginning(&load.on, &device, load.fresh);
    let saved = Saved::open(&load.on.journal, how, false)?;
    let mix = Mix {
        read_percent: if read { load.read_percent } else { 0 },
        zero_percent: load.zero_percent,
        fua_percent: load.fua_percent,
        flush_every: load.flush_every,
    };
    let pattern = Pattern::new(load.pattern, mix, size_blocks, load.io_blocks, load.seed);
    let some = |n: u64| (n > 0).then_some(n);
    let bounds = Bounds {
        depth: load.on.depth,
        io_blocks: load.io_blocks,
        ops_max: some(load.ops),
        duration_max: some(load.seconds).map(Duration::from_secs),
        interval: Duration::from_secs(1)
            .checked_div(load.rate)
            .unwrap_or_default(),
        errors_max: load.on.errors_max,
        stop_at_wrong: true,
    };
    let obeyed = saved.obeyed.clone();
    let (saved, mut report) = engine::work(&device, saved, pattern, bounds, stop)?;
    report.obeyed = obeyed;
    report.show(output);
    if !read || report.wrong_blocks() > 0 || report.io_errors > 0 {
        return Ok(report.exit_code());
    }
    let report = read_all(&device, saved, &load.on, &Arc::default())?;
    report.show(output);
    Ok(report.exit_code())
}

fn check(check: &Check, output: Output, stop: &Arc<AtomicBool>) -> Result<ExitCode> {
    let device = Device::open(&check.on.device, false)?;
    let how = beginning(&check.on, &device, false);
    let saved = Saved::open(&check.on.journal, how, true)?;
    let obeyed = saved.obeyed.clone();
    let mut report = read_all(&device, saved, &check.on, stop)?;
    report.obeyed = obeyed;
    report.show(output);
    Ok(report.exit_code())
}

fn beginning(on: &On, device: &Device, fresh: bool) -> Beginning {
    Beginning {
        size_blocks: device.size_blocks,
        fresh,
        handover: on.since.into(),
    }
}

/// Reads every block of the journal's subject once.
fn read_all(device: &Device, saved: Saved, on: &On, stop: &Arc<AtomicBool>) -> Result<Report> {
    let mix = Mix {
        read_percent: 100,
        zero_percent: 0,
        fua_percent: 0,
        flush_every: 0,
    };
    let size_blocks = saved.journal.history().subject().size_blocks;
    let pattern = Pattern::new(Where::Sequential, mix, size_blocks, CHECK_BLOCKS, 0);
    let bounds = Bounds {
        depth: on.depth,
        io_blocks: CHECK_BLOCKS,
        ops_max: Some(size_blocks.div_ceil(CHECK_BLOCKS.into())),
        duration_max: None,
        interval: Duration::ZERO,
        errors_max: on.errors_max,
        stop_at_wrong: false,
    };
    let (_, report) = engine::work(device, saved, pattern, bounds, stop)?;
    Ok(report)
}

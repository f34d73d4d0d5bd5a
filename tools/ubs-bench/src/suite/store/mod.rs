//! `ubs-bench store`: what generations, opening and memory cost in one store, without a network.

mod lab;

use super::paired::{self, Side, median};
use super::report::{self, Bound, Budget, Figures, Row};
use super::{Scratch, progress};
use anyhow::{Context, Result, bail};
use clap::Args;
use lab::{Access, Lab};
use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
const BLOCK: u64 = 4096;
const EXTENT_BLOCKS: u64 = 16;
/// Written before its data is thrown away.
const CHUNK: u64 = GIB / 2;
/// The slice that is read and snapshotted.
const SLICE: u32 = 1;
/// Blocks of it.
const SLICE_BLOCKS: u64 = GIB / 4 / BLOCK;
/// Snapshots taken before it is read.
const SNAPSHOTS: u32 = 1000;
/// Blocks written between two of them, scattered.
const WRITES_BETWEEN: u64 = 64;

/// Options of the suite.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreOptions {
    /// Smaller and shorter
    #[arg(long)]
    quick: bool,
    /// Where the report goes
    #[arg(long, default_value = "target/bench/store.json")]
    output: PathBuf,
    /// Where the stores lie; memory, so that no disk is measured
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
}

/// Measures, writes the report and prints the table.
pub(crate) fn run(options: &StoreOptions) -> Result<()> {
    let dir = options
        .scratch
        .join(format!("ubs-bench-store-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let scratch = Scratch(dir);
    let budgets = [
        snapshots(&scratch.0)?,
        overwrites(&scratch.0)?,
        generations(&scratch.0, options.quick)?,
        opening(&scratch.0, options.quick)?,
        checksums(&scratch.0, options.quick)?,
        recycling(&scratch.0, options.quick)?,
    ];
    let about = serde_json::json!({
        "quick": options.quick,
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    });
    let text = serde_json::to_string_pretty(&report::document(&budgets, about))?;
    if let Some(into) = options.output.parent() {
        std::fs::create_dir_all(into).with_context(|| into.display().to_string())?;
    }
    std::fs::write(&options.output, text + "\n")
        .with_context(|| options.output.display().to_string())?;
    println!("{}", report::markdown(&budgets));
    println!("{}", options.output.display());
    Ok(())
}

fn value(value: f64) -> Option<Figures> {
    Some(Figures::from([("value", value)]))
}

/// Numbers that look random and are the same in every run.
struct Places(u64);

impl Places {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (self.0 >> 33) % below
    }
}

/// A snapshot of a small and of a huge slice, with as much written in both.
fn snapshots(dir: &Path) -> Result<Budget> {
    progress("snapshots of a small and of a huge slice");
    const ROUNDS: u32 = 40;
    let path = dir.join("snapshots");
    lab::prepare(&path, 2 * GIB)?;
    let (mut lab, _) = Lab::open(&path)?;
    let sizes = [(1, GIB), (2, 100 << 40)];
    for (slice, bytes) in sizes {
        lab.create(slice, bytes / BLOCK)?;
        lab.write(slice, (0..256).map(|i| i * EXTENT_BLOCKS), 1)?;
    }
    let mut journal_bytes = Vec::new();
    let mut places = Places(7);
    let mut heads = [1, 1];
    let found = paired::measure(ROUNDS as usize, |side| {
        let slice = if side == Side::A { 2 } else { 1 };
        let head = &mut heads[slice as usize - 1];
        *head += 1;
        let some = (0..16).map(|_| places.next(256) * EXTENT_BLOCKS);
        lab.write(slice, some.collect::<Vec<_>>().into_iter(), 1)?;
        let before = lab.store().usage().journal_used_bytes;
        let began = Instant::now();
        lab.snapshot(slice, *head)?;
        let took_us = began.elapsed().as_secs_f64() * 1e6;
        let used = lab.store().usage().journal_used_bytes;
        // A checkpoint in between gives space back.
        journal_bytes.extend(used.checked_sub(before).map(crate::outcome::float));
        Ok::<f64, anyhow::Error>(took_us)
    })?;
    lab.stop()?;
    std::fs::remove_file(&path)?;
    let figures = |of: &[f64]| Some(Figures::from([("p50_us", median(of).unwrap_or_default())]));
    Ok(budget(
        "S1",
        "snapshot of a slice",
        "the same of a slice of 1 GiB",
        vec![
            Row {
                ours: figures(&found.a),
                peer: figures(&found.b),
                ratio: paired::ratio(&found.a, &found.b),
                bound: Bound::AtMost,
                ..Row::new("time, 100 TiB thin", Some(1.2), Some(2.0))
            },
            Row {
                ours: value(median(&journal_bytes).unwrap_or_default()),
                ..Row::new("metadata bytes per snapshot", None, None)
            },
        ],
    ))
}

fn budget(key: &'static str, what: &'static str, against: &'static str, rows: Vec<Row>) -> Budget {
    Budget {
        rows,
        absent: None,
        ..Budget::absent(key, what, against, "")
    }
}

/// Writes over what is there must not touch the journal.
fn overwrites(dir: &Path) -> Result<Budget> {
    progress("overwrites");
    let path = dir.join("overwrites");
    lab::prepare(&path, GIB)?;
    let (mut lab, _) = Lab::open(&path)?;
    lab.create(SLICE, SLICE_BLOCKS)?;
    lab.write(SLICE, (0..4096 / 32).map(|i| i * 32), 32)?;
    let before = lab.store().counters().core.journal_commits;
    let mut places = Places(3);
    let some: Vec<u64> = (0..20_000).map(|_| places.next(4096)).collect();
    lab.write(SLICE, some.into_iter(), 1)?;
    let commits = lab.store().counters().core.journal_commits - before;
    lab.stop()?;
    std::fs::remove_file(&path)?;
    let commits = crate::outcome::float(commits);
    Ok(budget(
        "S2",
        "steady overwrites",
        "zero",
        vec![Row {
            ours: value(commits),
            judged: Some(commits),
            bound: Bound::AtMost,
            ..Row::new(
                "journal commits in 20 000 overwrites and a flush",
                Some(0.0),
                Some(0.0),
            )
        }],
    ))
}

/// Reads of a slice with many snapshots, beside one that has the same data in one generation.
fn generations(dir: &Path, quick: bool) -> Result<Budget> {
    let (snapshots, pairs, time) = if quick {
        (SNAPSHOTS / 10, 2, Duration::from_millis(300))
    } else {
        (SNAPSHOTS, 5, Duration::from_secs(1))
    };
    progress(&format!("reads after {snapshots} snapshots"));
    let mut labs = Vec::new();
    for (name, is_many) in [("many", true), ("one", false)] {
        let path = dir.join(name);
        lab::prepare(&path, 8 * GIB)?;
        let (mut lab, _) = Lab::open(&path)?;
        lab.create(SLICE, SLICE_BLOCKS)?;
        lab.write(SLICE, (0..SLICE_BLOCKS / 32).map(|i| i * 32), 32)?;
        let mut places = Places(11);
        for head in 2..snapshots + 2 {
            if is_many {
                lab.snapshot(SLICE, head)?;
            }
            let some: Vec<u64> = (0..WRITES_BETWEEN)
                .map(|_| places.next(SLICE_BLOCKS))
                .collect();
            lab.write(SLICE, some.into_iter(), 1)?;
        }
        labs.push(lab);
    }
    let mut rows = Vec::new();
    for depth in [1, 32] {
        let mut places = Places(13);
        let found = paired::measure(pairs, |side| {
            let lab = &mut labs[usize::from(side == Side::B)];
            lab.iops(SLICE, (Access::Read, depth), time, || {
                places.next(SLICE_BLOCKS)
            })
        })?;
        let iops = |of: &[f64]| Some(Figures::from([("iops", median(of).unwrap_or_default())]));
        rows.push(Row {
            ours: iops(&found.a),
            peer: iops(&found.b),
            ratio: paired::ratio(&found.a, &found.b),
            ..Row::new(
                format!("randread 4k QD{depth}, {snapshots} snapshots"),
                Some(0.95),
                Some(0.9),
            )
        });
    }
    for (lab, name) in labs.into_iter().zip(["many", "one"]) {
        lab.stop()?;
        std::fs::remove_file(dir.join(name))?;
    }
    let against = "the same data in one generation";
    Ok(budget("S3", "reads after snapshots", against, rows))
}

/// What verifying every read and keeping a checksum of every write costs.
fn checksums(dir: &Path, quick: bool) -> Result<Budget> {
    progress("with and without checksums");
    let (pairs, time) = if quick { (4, 300) } else { (10, 1000) };
    let time = Duration::from_millis(time);
    let mut labs = Vec::new();
    for (name, on) in [("on", true), ("off", false)] {
        let path = dir.join(name);
        lab::prepare_with(&path, 2 * GIB, on)?;
        let (mut lab, _) = Lab::open(&path)?;
        lab.create(SLICE, SLICE_BLOCKS)?;
        lab.write(SLICE, (0..SLICE_BLOCKS / 32).map(|i| i * 32), 32)?;
        labs.push(lab);
    }
    let mut rows = Vec::new();
    for (access, depth) in [
        (Access::Read, 1),
        (Access::Read, 32),
        (Access::Overwrite, 1),
        (Access::Overwrite, 32),
    ] {
        let mut places = Places(17);
        let found = paired::measure(pairs, |side| {
            let lab = &mut labs[usize::from(side == Side::B)];
            lab.iops(SLICE, (access, depth), time, || places.next(SLICE_BLOCKS))
        })?;
        let iops = |of: &[f64]| Some(Figures::from([("iops", median(of).unwrap_or_default())]));
        let what = match access {
            Access::Read => "randread",
            Access::Overwrite => "overwrites",
        };
        rows.push(Row {
            ours: iops(&found.a),
            peer: iops(&found.b),
            ratio: paired::ratio(&found.a, &found.b),
            ..Row::new(format!("{what} 4k QD{depth}"), Some(0.95), Some(0.85))
        });
    }
    let verified = labs[0].store().counters().core.blocks_verified;
    if verified == 0 {
        bail!("nothing was verified");
    }
    for (lab, name) in labs.into_iter().zip(["on", "off"]) {
        lab.stop()?;
        std::fs::remove_file(dir.join(name))?;
    }
    let against = "the same without checksums";
    Ok(budget("S5", "checksums of blocks", against, rows))
}

/// A snapshot a day, of which a week's are kept: how many of the extents that new layers take are those
/// that deleted snapshots gave back.
fn recycling(dir: &Path, quick: bool) -> Result<Budget> {
    const KEPT: u32 = 7;
    /// When what is kept no longer grows.
    const STEADY: u32 = 30;
    let days = if quick { 45 } else { 90 };
    progress(&format!("{days} daily snapshots"));
    let path = dir.join("daily");
    lab::prepare(&path, 2 * GIB)?;
    let (mut lab, _) = Lab::open(&path)?;
    lab.create(SLICE, SLICE_BLOCKS)?;
    lab.write(SLICE, (0..SLICE_BLOCKS / 32).map(|i| i * 32), 32)?;
    let mut places = Places(19);
    let mut steady = (0, 0);
    for day in 1..=days {
        lab.snapshot(SLICE, day + 1)?;
        // A fiftieth of the blocks changes: most of it scattered, some of it in runs.
        let scattered: Vec<u64> = (0..SLICE_BLOCKS / 80)
            .map(|_| places.next(SLICE_BLOCKS))
            .collect();
        lab.write(SLICE, scattered.into_iter(), 1)?;
        let runs: Vec<u64> = (0..16)
            .map(|_| places.next(SLICE_BLOCKS / 32) * 32)
            .collect();
        lab.write(SLICE, runs.into_iter(), 32)?;
        if let Some(oldest) = day.checked_sub(KEPT).filter(|day| *day > 0) {
            lab.drop_snapshot(SLICE, oldest)?;
        }
        if day == STEADY {
            let counts = &lab.store().counters().core;
            steady = (counts.extents_allocated, counts.extents_recycled);
        }
    }
    let counts = &lab.store().counters().core;
    let allocated = crate::outcome::float(counts.extents_allocated - steady.0);
    let recycled = crate::outcome::float(counts.extents_recycled - steady.1);
    lab.stop()?;
    std::fs::remove_file(&path)?;
    let share = recycled / allocated;
    Ok(budget(
        "S6",
        "extents used again in a cycle of daily snapshots",
        "all that are allocated",
        vec![Row {
            ours: value(share),
            judged: Some(share),
            ..Row::new(
                format!("share, days {STEADY} to {days}, {KEPT} kept"),
                Some(0.9),
                Some(0.7),
            )
        }],
    ))
}

/// How long a full map takes to open, and how much memory it takes; per terabyte of extents.
fn opening(dir: &Path, quick: bool) -> Result<Budget> {
    let size = if quick { 4 * GIB } else { 16 * GIB };
    progress(&format!("opening {} GiB of extents", size / GIB));
    let path = dir.join("opening");
    lab::prepare(&path, size + size / 16 + GIB)?;
    let (mut lab, _) = Lab::open(&path)?;
    lab.create(SLICE, size / BLOCK)?;
    let capacity = lab.store().usage().capacity_bytes;
    for from in (0..size).step_by(usize::try_from(CHUNK)?) {
        let places = (from / BLOCK..(from + CHUNK) / BLOCK).step_by(32);
        lab.write(SLICE, places, 32)?;
        // The map is of interest, the data would fill the machine's memory. They lie at the end.
        let file = std::fs::File::options().write(true).open(&path)?;
        let first = file.metadata()?.len() - capacity;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, first, capacity)?;
    }
    lab.stop()?;
    let full = opened(&path)?;
    let blank = dir.join("blank");
    lab::prepare(&blank, size + size / 16 + GIB)?;
    let empty = opened(&blank)?;
    let per_tb = 1e12 / crate::outcome::float(size);
    let map_bytes = full.resident_bytes.saturating_sub(empty.resident_bytes);
    let map_mb = crate::outcome::float(map_bytes) / 1e6 * per_tb;
    let open_s = (full.seconds - empty.seconds).max(0.0) * per_tb * 10.0;
    let row = |name, found: f64, aim| Row {
        ours: value(found),
        judged: Some(found),
        bound: Bound::AtMost,
        ..Row::new(name, Some(aim), Some(aim))
    };
    Ok(budget(
        "S4",
        "a full store",
        "the budgets",
        vec![
            row("memory of the map, MB per TB", map_mb, 80.0),
            row("time to open, s per 10 TB (clean)", open_s, 5.0),
        ],
    ))
}

/// What a process of its own that opened a store saw.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    seconds: f64,
    resident_bytes: u64,
}

/// Opens a store in a process of its own: memory that was used before would hide what it takes.
fn opened(path: &Path) -> Result<Opened> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("open-store").arg(path).stdin(Stdio::null());
    let done = command.output().context("cannot start ourselves")?;
    if !done.status.success() {
        bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
    }
    serde_json::from_slice(&done.stdout).context("no report")
}

/// Options of that process.
#[derive(Clone, Debug, Args)]
pub(crate) struct OpenOptions {
    path: PathBuf,
}

/// That process: opens the store and says what it took.
pub(crate) fn open(options: &OpenOptions) -> Result<()> {
    let (lab, took) = Lab::open(&options.path)?;
    let found = Opened {
        seconds: took.as_secs_f64(),
        resident_bytes: resident_bytes()?,
    };
    println!("{}", serde_json::to_string(&found)?);
    lab.stop()
}

fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("status is not as expected")?.parse()?;
    Ok(kib * 1024)
}

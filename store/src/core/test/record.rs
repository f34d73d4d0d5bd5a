#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the model knows few commands"
)]
//! What a store did to one extent of a slice, for `tla/TraceMerge.tla`: two blocks, every generation.

use super::device::{BLOCK, Coin};
use super::world::{Outstanding, World, range, write, zero};
use crate::core::format::geometry::JOURNAL_OFFSET;
use crate::core::io::Command;
use crate::core::leaf::Cell;
use shardmap::units::{BlockRange, EXTENT_BLOCKS, Generation};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The slice that is followed.
const NSID: u32 = 1;
/// Blocks of its first extent that are.
const BLOCKS: u64 = 2;
/// Runs that are told, and what a client tries in each.
const RUNS: u64 = 4;
const STEPS: u64 = 75;
/// Records of the journal before that.
const RECORDS_BEFORE: u64 = 110;
/// Generations a run may have.
const GENERATIONS: u32 = 6;

/// A device operation that the model knows.
#[derive(Clone, Copy, Debug)]
enum Running {
    Write { block: u64, number: usize },
    Flush,
    Record,
}

/// A run, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    lines: Vec<String>,
    seen: String,
    in_checkpoint: bool,
    /// Numbers of writes and zeroes by version, in the order in which they began.
    numbers: BTreeMap<u64, usize>,
    /// Device operations under way, and what is to be told when they have ended.
    running: BTreeMap<u32, Running>,
    /// A store is being opened.
    opening: bool,
    /// Those of the device that the core has counted.
    flushes: u64,
    /// Of each block the last one that has ended.
    ended: [usize; 2],
    /// What had ended when the flush that is under way was sent.
    flush: Option<[usize; 2]>,
    /// Physical extents in the order in which they appeared.
    extents: Vec<u32>,
    /// Writes and zeroes by version: the head when they were sent.
    heads: BTreeMap<u64, u32>,
    /// Something happened that the model does not have.
    spoiled: bool,
}

impl Recorder {
    fn log(&mut self, action: &str, fields: &str) {
        self.lines.push(format!("[a |-> \"{action}\", {fields}]"));
    }

    fn begins(&mut self, version: u64) -> usize {
        let next = self.numbers.len() + 1;
        *self.numbers.entry(version).or_insert(next)
    }

    fn extent(&mut self, physical: u32) -> usize {
        let at = self.extents.iter().position(|e| *e == physical);
        at.map_or_else(
            || {
                self.extents.push(physical);
                self.extents.len()
            },
            |at| at + 1,
        )
    }

    /// The number of the write that left this in a block; zero: zeroes.
    fn number(&self, content: &[u8]) -> usize {
        let version = content.get(12..20);
        let version = version.map(|v| u64::from_le_bytes(v.try_into().expect("eight bytes")));
        version.map_or(0, |v| self.numbers[&v])
    }
}

fn block_of(range: &BlockRange) -> u64 {
    range.start().0 + 1
}

impl World {
    pub(super) fn record_submitted(&mut self, nsid: u32, command: &Command, version: u64) {
        let head = self.model.head(nsid);
        let Some(recorder) = self.recorder.as_mut().filter(|_| nsid == NSID) else {
            return;
        };
        match command {
            Command::Write { .. } | Command::Zero { .. } => {
                recorder.heads.insert(version, head);
            }
            Command::Flush => recorder.flush = Some(recorder.ended),
            Command::BeginGeneration(g) => recorder.log("begin", &format!("g |-> {}", g.0)),
            Command::DropGeneration(g) => {
                recorder.flush = None; // nothing is said about what an heir has
                recorder.log("drop", &format!("g |-> {}", g.0));
            }
            _ => {}
        }
    }

    pub(super) fn record_write(&mut self, io: u32, out: &Outstanding, offset_bytes: u64) {
        let head = self.model.head(NSID);
        let physical = self.core.sb.geometry.data_block(offset_bytes) / u64::from(EXTENT_BLOCKS);
        let (Some(recorder), Command::Write { range, .. }) = (&mut self.recorder, &out.command)
        else {
            return;
        };
        recorder.spoiled |= recorder.heads.get(&out.version) != Some(&head);
        let extent = recorder.extent(u32::try_from(physical).expect("small"));
        let (block, number) = (block_of(range), recorder.begins(out.version));
        recorder
            .running
            .insert(io, Running::Write { block, number });
        recorder.log(
            "write",
            &format!("t |-> {block}, n |-> {number}, x |-> {extent}"),
        );
    }

    /// A device operation has ended; the core does not know yet.
    pub(super) fn record_ended(&mut self, io: u32) {
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        match recorder.running.remove(&io) {
            Some(Running::Write { block, number }) => {
                recorder.ended[usize::from(block == 2)] = number;
                recorder.log("land", &format!("t |-> {block}, n |-> {number}"));
            }
            Some(Running::Flush) => recorder.log("durable", "n |-> 0"),
            Some(Running::Record) => recorder.log("recorded", "n |-> 0"),
            None => {}
        }
    }

    /// The device is to be flushed, for a flush and not for a checkpoint or an open.
    pub(super) fn record_flush(&mut self, io: u32) {
        let flushes = self.core.counts.flushes;
        if let Some(recorder) = self.recorder.as_mut().filter(|r| !r.opening)
            && std::mem::replace(&mut recorder.flushes, flushes) != flushes
        {
            recorder.running.insert(io, Running::Flush);
            recorder.log("flush", "n |-> 0");
        }
    }

    /// Metadata is written; records of the journal count.
    pub(super) fn record_meta(&mut self, io: u32, offset_bytes: u64) {
        let journal = JOURNAL_OFFSET..self.core.sb.geometry.first().directory_offset;
        if let Some(recorder) = self.recorder.as_mut().filter(|r| !r.opening)
            && journal.contains(&offset_bytes)
        {
            recorder.running.insert(io, Running::Record);
            recorder.log("record", "n |-> 0");
        }
    }

    pub(super) fn record_starting(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.opening = true;
            recorder.flushes = 0;
            recorder.running.clear();
        }
    }

    pub(super) fn record_answer(&mut self, out: &Outstanding) {
        let head = self.model.head(NSID);
        let Some(recorder) = self.recorder.as_mut().filter(|_| out.nsid == NSID) else {
            return;
        };
        match &out.command {
            Command::Zero { range, .. } => {
                recorder.spoiled |= recorder.heads.get(&out.version) != Some(&head);
                let (block, number) = (block_of(range), recorder.begins(out.version));
                recorder.ended[usize::from(block == 2)] = number;
                recorder.log("zero", &format!("t |-> {block}, n |-> {number}"));
            }
            Command::Read { range, generation } => {
                let value = recorder.number(&out.buffer[0]);
                let (block, g) = (block_of(range), generation.0);
                recorder.log("read", &format!("t |-> {block}, g |-> {g}, v |-> {value}"));
            }
            Command::Flush => {
                if let Some([one, two]) = recorder.flush.take() {
                    recorder.log("flushed", &format!("m |-> <<{one}, {two}>>"));
                }
            }
            _ => {}
        }
    }

    fn cells(&self) -> Vec<Cell> {
        let leaf = self.core.slices.get(&NSID).and_then(|s| s.leaves.get(&0));
        let cell = |g| leaf.map_or_else(Cell::default, |leaf| leaf.get((0, g)));
        (1..=GENERATIONS).map(cell).collect()
    }

    /// After every step of the core: the map, if it has changed.
    pub(super) fn record_seen(&mut self) {
        let telling = self.recorder.as_ref().is_some_and(|r| !r.opening);
        if !telling || !self.core.slices.contains_key(&NSID) {
            return;
        }
        let (cells, checkpoint) = (self.cells(), self.core.in_checkpoint());
        let generations = &self.core.slices[&NSID].generations;
        let snapshots: Vec<_> = generations.snapshots().keys().map(u32::to_string).collect();
        let mut seen = format!(
            "g |-> {}, m |-> {{{}}}, c |-> <<",
            generations.head(),
            snapshots.join(", ")
        );
        let recorder = self.recorder.as_mut().expect("just seen");
        let state = |cell: Cell, b: u32| ["a", "p", "z"][(cell.states >> (2 * b) & 3) as usize];
        let texts: Vec<_> = cells
            .into_iter()
            .map(|cell| {
                let physical = cell.physical.map_or(0, |e| recorder.extent(e));
                format!(
                    "<<{physical}, \"{}\", \"{}\">>",
                    state(cell, 0),
                    state(cell, 1)
                )
            })
            .collect();
        write!(seen, "{}>>", texts.join(", ")).expect("a string takes all");
        if std::mem::replace(&mut recorder.in_checkpoint, checkpoint) != checkpoint {
            recorder.log(if checkpoint { "checkpoint" } else { "switch" }, "n |-> 0");
        }
        if recorder.seen != seen {
            recorder.log("seen", &seen);
            recorder.seen = seen;
        }
    }

    /// A store has opened after a crash: what each generation has of each block.
    pub(super) fn record_opened(&mut self) {
        if self.recorder.is_none() || !self.core.slices.contains_key(&NSID) {
            return;
        }
        let cells = self.cells();
        let generations = &self.core.slices[&NSID].generations;
        let all = generations.snapshots().keys().copied();
        let mut values = Vec::new();
        for generation in all.chain([generations.head()]) {
            for b in 0..BLOCKS {
                let of = cells[..generation as usize].iter().rev();
                let newest = of
                    .map(|c| (c, c.states >> (2 * b) & 3))
                    .find(|(_, s)| *s != 0);
                let place = newest.filter(|(_, s)| *s == 1).map(|(cell, _)| {
                    let extent = cell.physical.expect("has data");
                    self.core.sb.geometry.extent_offset(extent) / BLOCK + b
                });
                let content = place.map(|block| self.device.read(block));
                let recorder = self.recorder.as_ref().expect("just seen");
                let number = content.map_or(0, |c| recorder.number(&c));
                values.push(format!("<<{generation}, {}, {number}>>", b + 1));
            }
        }
        let recorder = self.recorder.as_mut().expect("just seen");
        recorder.in_checkpoint = false;
        recorder.opening = false;
        recorder.flush = None;
        recorder.seen.clear();
        recorder.log("crash", &format!("m |-> {{{}}}", values.join(", ")));
    }
}

/// One thing that a client may do now, or that the device does.
fn act(world: &mut World, coin: &mut Coin) {
    let mut draw = |n: u64| (coin.next() >> 24) % n;
    let block = draw(BLOCKS);
    let locked = world.is_locked(NSID, range(block, 1));
    let changing = world.outstanding.values().any(|o| {
        matches!(
            o.command,
            Command::BeginGeneration(_)
                | Command::CompleteGeneration(_)
                | Command::DropGeneration(_)
        )
    });
    let flushing = world
        .outstanding
        .values()
        .any(|o| o.command == Command::Flush);
    let head = world.model.head(NSID);
    let snapshots = world.model.snapshots(NSID);
    let pending = world.model.pending(NSID);
    let command = match draw(16) {
        0..=4 if !locked => write(block, 1, false),
        5 | 6 if !locked => zero(block, 1, false),
        7 if !locked => {
            let all: Vec<u32> = world.model.generations(NSID).into_keys().collect();
            let nth = usize::try_from(draw(all.len() as u64)).expect("few");
            Command::Read {
                range: range(block, 1),
                generation: Generation(all[nth]),
            }
        }
        8 | 9 if !flushing => Command::Flush,
        10 | 11 if !changing && head < GENERATIONS => {
            Command::BeginGeneration(Generation(head + 1))
        }
        12 | 13 if !changing && !snapshots.is_empty() => {
            let nth = usize::try_from(draw(snapshots.len() as u64)).expect("few");
            Command::DropGeneration(Generation(snapshots[nth]))
        }
        14 if !changing && pending.is_some() => {
            Command::CompleteGeneration(Generation(pending.expect("just seen")))
        }
        _ => return,
    };
    world.submit(NSID, command);
}

/// `None`: something happened that the model does not have.
fn run(seed: u64) -> Option<Vec<String>> {
    let mut coin = Coin(seed * 2 + 1);
    let mut world = World::new(32 << 20, 64);
    // The region's mark is durable, so writes begin when they are sent; and the journal is nearly half
    // full, so a checkpoint comes in the middle of the run.
    for _ in 0..RECORDS_BEFORE / 2 {
        world.ok(NSID, write(40, 1, true));
        world.ok(NSID, zero(40, 1, true));
    }
    world.recorder = Some(Recorder {
        flushes: world.core.counts.flushes,
        ..Recorder::default()
    });
    for _ in 0..STEPS {
        act(&mut world, &mut coin);
        for _ in 0..(coin.next() >> 30) % 4 {
            world.complete(usize::try_from(coin.next() >> 40).expect("24 bits"));
        }
        if (coin.next() >> 30).is_multiple_of(50) {
            world.crash(coin.flip(), coin.next());
        }
    }
    world.settle();
    let recorder = world.recorder.expect("recording");
    (!recorder.spoiled).then_some(recorder.lines)
}

#[test]
fn runs_of_one_extent_are_recorded() {
    let mut text = String::new();
    for lines in (1..=RUNS).filter_map(run) {
        lines.iter().for_each(|line| text += &format!("{line}\n"));
        text += "\n";
    }
    print!("\n{text}");
    for event in [
        "write",
        "land",
        "zero",
        "read",
        "flushed",
        "begin",
        "drop",
        "seen",
        "checkpoint",
        "switch",
        "crash",
    ] {
        assert!(text.contains(&format!("[a |-> \"{event}\"")), "no {event}");
    }
}

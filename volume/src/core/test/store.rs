//! A store as the protocol sees it: volatile and durable values, sessions, marks, incarnation.

use crate::core::{Answer, Command, Fault, Members, SliceFacts};
use shardmap::dirty::{BlockSet, RegionSet};
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::units::{
    BlockRange, Blocks, Epoch, Generation, Incarnation, Lba, MembershipSeq, REGION_BLOCKS,
    RegionIndex, WriteTick,
};
use std::collections::BTreeMap;

/// A small, good enough generator; one seed is one run.
#[derive(Clone, Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A command with its payload, as it travels.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) what: Command,
    pub(super) data: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct FakeStore {
    pub(super) up: bool,
    /// Counts restarts; messages to an earlier life are lost.
    pub(super) life: u64,
    pub(super) incarnation: u64,
    pub(super) incomplete: bool,
    epoch: Epoch,
    session: Option<u64>,
    /// By block and generation.
    durable: BTreeMap<(u64, u32), u64>,
    /// Values since the last flush, oldest first.
    volatile: BTreeMap<(u64, u32), Vec<u64>>,
    pub(super) generations: VolumeGenerations,
    pub(super) marks: BTreeMap<u32, u64>,
    tick: u64,
    stamp: (u64, Members),
}

impl FakeStore {
    pub(super) fn new() -> Self {
        Self {
            up: true,
            life: 0,
            incarnation: 1,
            incomplete: false,
            epoch: Epoch(0),
            session: None,
            durable: BTreeMap::new(),
            volatile: BTreeMap::new(),
            generations: VolumeGenerations::default(),
            marks: BTreeMap::new(),
            tick: 1,
            stamp: (0, Members::EMPTY),
        }
    }

    pub(super) fn value(&self, block: u64) -> u64 {
        self.value_in(block, self.generations.head)
    }

    /// What a generation shows: the newest cell that is not younger.
    pub(super) fn value_in(&self, block: u64, generation: Generation) -> u64 {
        let cell = |g: u32| {
            let newest = self.volatile.get(&(block, g)).and_then(|v| v.last());
            newest.or_else(|| self.durable.get(&(block, g))).copied()
        };
        (1..=generation.0).rev().find_map(cell).unwrap_or(0)
    }

    /// Every value that a generation may show in the block after a power cut.
    pub(super) fn survivors(&self, block: u64, generation: Generation) -> Vec<u64> {
        let mut all = Vec::new();
        for g in (1..=generation.0).rev() {
            all.extend(self.volatile.get(&(block, g)).into_iter().flatten());
            if let Some(durable) = self.durable.get(&(block, g)) {
                all.push(*durable);
                return all;
            }
        }
        all.push(0);
        all
    }

    /// What metad has deleted goes here too.
    pub(super) fn drop_deleted(&mut self, wanted: &VolumeGenerations) {
        let gone = |s: &Generation| *s < wanted.head && !wanted.snapshots.contains_key(s);
        self.generations.snapshots.retain(|s, _| !gone(s));
    }

    fn readable(&self, generation: Generation) -> Result<Generation, Fault> {
        let head = self.generations.head;
        let known = generation == head || self.generations.snapshots.contains_key(&generation);
        match generation.0 {
            0 => Ok(head),
            _ if known => Ok(generation),
            _ => Err(Fault::Refused),
        }
    }

    /// As which cells a generation's writes are kept: its own, or older ones that it has inherited.
    fn cell_of(&self, block: u64, generation: Generation) -> Result<(u64, u32), Fault> {
        let head = self.generations.head;
        let generation = if generation.0 == 0 { head } else { generation };
        let pending = match self.generations.snapshots.get(&generation) {
            Some(state) => *state == SnapshotState::Pending || self.incomplete,
            None => generation == head,
        };
        if !pending {
            return Err(Fault::Refused);
        }
        let before = self.generations.snapshots.range(..generation).next_back();
        let first = before.map_or(1, |(before, _)| before.0 + 1);
        let has = |g: &u32| {
            let key = (block, *g);
            self.durable.contains_key(&key) || self.volatile.contains_key(&key)
        };
        let cell = (first..=generation.0).rev().find(has);
        Ok((block, cell.unwrap_or(generation.0)))
    }

    /// Power cut: of each block any value since the last flush survives.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        for (block, values) in std::mem::take(&mut self.volatile) {
            let pick = rng.below(values.len() as u64 + 1);
            if let Some(kept) = pick.checked_sub(1) {
                self.durable
                    .insert(block, values[usize::try_from(kept).unwrap()]);
            }
        }
        self.incarnation += 1;
        self.stop();
    }

    /// An orderly stop: everything is flushed and the incarnation kept.
    pub(super) fn clean_stop(&mut self) {
        self.flush();
        self.stop();
    }

    /// The disk was swapped: a blank slice.
    pub(super) fn swap_disk(&mut self) {
        self.durable.clear();
        self.volatile.clear();
        self.marks.clear();
        self.stamp = (0, Members::EMPTY);
        self.generations = VolumeGenerations::default();
        self.incomplete = true;
        self.incarnation += 1;
        self.stop();
    }

    fn stop(&mut self) {
        self.up = false;
        self.life += 1;
        self.session = None;
    }

    fn flush(&mut self) {
        for (block, values) in std::mem::take(&mut self.volatile) {
            self.durable.insert(block, *values.last().unwrap());
        }
    }

    /// Does a command, or refuses it.
    pub(super) fn perform(
        &mut self,
        association: u64,
        message: &Message,
    ) -> Result<(Answer, Vec<u64>), Fault> {
        if let Command::OpenSlice { epoch } = message.what {
            if epoch < self.epoch {
                return Err(Fault::Fenced);
            }
            self.epoch = epoch;
            self.session = Some(association);
            return Ok((Answer::Opened(Incarnation(self.incarnation)), Vec::new()));
        }
        if self.session != Some(association) {
            return Err(Fault::NotOpen);
        }
        let mut data = Vec::new();
        let answer = match &message.what {
            Command::Read {
                range,
                into,
                generation,
            } => {
                let generation = self.readable(*generation)?;
                data.extend(blocks(*range).map(|b| self.value_in(b, generation)));
                match into {
                    crate::core::Payload::Host { .. } => Answer::Done,
                    crate::core::Payload::Copy(_) => Answer::Copied {
                        all_zero: data.iter().all(|v| *v == 0),
                    },
                }
            }
            Command::Write {
                range,
                fua,
                generation,
                ..
            } => self.write((*range, *generation), &message.data, *fua)?,
            Command::Zero {
                range,
                fua,
                generation,
                ..
            } => self.write((*range, *generation), &[], *fua)?,
            Command::Flush => {
                self.flush();
                Answer::Done
            }
            Command::CloseSlice => {
                self.session = None;
                Answer::Done
            }
            Command::OpenSlice { .. } => unreachable!("above"),
            Command::SliceState
            | Command::Stamp(_)
            | Command::CompleteSlice(_)
            | Command::Tick
            | Command::Stable { .. }
            | Command::ReadMarks { .. }
            | Command::AddMarks(_)
            | Command::ReadPresence { .. }
            | Command::ReadGenerations
            | Command::BeginGeneration(_)
            | Command::CompleteGeneration(_)
            | Command::Hash(..) => self.administer(&message.what)?,
        };
        Ok((answer, data))
    }

    fn write(
        &mut self,
        (range, generation): (BlockRange, Generation),
        data: &[u64],
        fua: bool,
    ) -> Result<Answer, Fault> {
        self.cell_of(range.start().0, generation)?;
        for region in range.regions() {
            self.marks.insert(region.0, self.tick);
        }
        for (index, block) in blocks(range).enumerate() {
            let value = data.get(index).copied().unwrap_or(0);
            let cell = self.cell_of(block, generation)?;
            // A zero where nothing is to be seen leaves nothing: older data that comes later is seen.
            let shown = if generation.0 == 0 {
                self.generations.head
            } else {
                generation
            };
            let nothing = |v: &u64| *v == 0;
            if data.is_empty() && shown.0 > 1 && self.survivors(block, shown).iter().all(nothing) {
                continue;
            }
            if fua {
                self.durable.insert(cell, value);
                self.volatile.remove(&cell);
            } else {
                self.volatile.entry(cell).or_default().push(value);
            }
        }
        Ok(Answer::Done)
    }

    fn administer(&mut self, what: &Command) -> Result<Answer, Fault> {
        Ok(match what {
            Command::SliceState => Answer::Facts(SliceFacts {
                incarnation: Incarnation(self.incarnation),
                incomplete: self.incomplete,
                stamp_seq: MembershipSeq(self.stamp.0),
                stamp_isr: self.stamp.1,
                mark_count: u32::try_from(self.marks.len()).unwrap(),
                head: self.generations.head,
                snapshot_count: u32::try_from(self.generations.snapshots.len()).unwrap(),
            }),
            Command::Stamp(stamp) => {
                self.stamp = (stamp.seq.0, stamp.isr);
                Answer::Done
            }
            Command::CompleteSlice(stamp) => {
                self.stamp = (stamp.seq.0, stamp.isr);
                self.incomplete = false;
                Answer::Done
            }
            Command::Tick => {
                self.tick += 1;
                Answer::Tick(WriteTick(self.tick))
            }
            Command::Stable {
                tick, idle_ticks, ..
            } => {
                let before = tick.0.saturating_sub(u64::from(*idle_ticks));
                self.marks.retain(|_, last| *last >= before);
                Answer::MarksLeft(self.marks.len() as u64)
            }
            Command::ReadMarks { from } => self.read_marks(*from),
            Command::AddMarks(regions) => {
                for region in regions.iter() {
                    self.marks.insert(region.0, self.tick);
                }
                Answer::Done
            }
            Command::ReadPresence {
                from,
                regions,
                after,
                upto,
                ..
            } => self.presence((*from, *regions), (*after, *upto))?,
            Command::Hash(range, generation) => {
                let generation = self.readable(*generation)?;
                let chunks = range.split_at_multiples(shardmap::units::EXTENT_BLOCKS);
                Answer::Hashes(chunks.map(|c| self.digest(c, generation)).collect())
            }
            Command::ReadGenerations => Answer::Generations(self.generations.clone()),
            Command::BeginGeneration(head) if *head >= self.generations.head => {
                self.generations.begin(*head);
                Answer::Done
            }
            Command::CompleteGeneration(snapshot)
                if self.generations.snapshots.contains_key(snapshot) =>
            {
                self.generations.set_complete(*snapshot);
                Answer::Done
            }
            Command::BeginGeneration(_) | Command::CompleteGeneration(_) => {
                return Err(Fault::Refused);
            }
            Command::Read { .. }
            | Command::Write { .. }
            | Command::Zero { .. }
            | Command::Flush
            | Command::OpenSlice { .. }
            | Command::CloseSlice => unreachable!("{what:?} is handled elsewhere"),
        })
    }

    fn presence(
        &self,
        (from, regions): (RegionIndex, u32),
        (after, upto): (Generation, Generation),
    ) -> Result<Answer, Fault> {
        let upto = self.readable(upto)?;
        if after.0 != 0 {
            self.readable(after)?;
        }
        let first = u64::from(from.0) * u64::from(REGION_BLOCKS);
        let end = first + u64::from(regions) * u64::from(REGION_BLOCKS);
        let mut set = BlockSet::new();
        let known = self.durable.range((first, 0)..(end, 0)).map(|(b, _)| *b);
        let volatile = self.volatile.range((first, 0)..(end, 0)).map(|(b, _)| *b);
        for (block, generation) in known.chain(volatile) {
            if generation > after.0 && generation <= upto.0 {
                set.insert(BlockRange::new(Lba(block), Blocks(1)).unwrap());
            }
        }
        Ok(Answer::Presence(set))
    }

    /// At most two regions at a time, so that the paging is exercised.
    fn read_marks(&self, from: RegionIndex) -> Answer {
        let mut regions = self.marks.range(from.0..).map(|(r, _)| RegionIndex(*r));
        let page: RegionSet = regions.by_ref().take(2).collect();
        Answer::Marks(page, regions.next())
    }

    fn digest(&self, range: BlockRange, generation: Generation) -> u64 {
        blocks(range).fold(17, |sum: u64, b| {
            sum.wrapping_mul(0x0100_0000_01b3)
                .wrapping_add(self.value_in(b, generation))
        })
    }
}

pub(super) fn blocks(range: BlockRange) -> std::ops::Range<u64> {
    range.start().0..range.end().0
}

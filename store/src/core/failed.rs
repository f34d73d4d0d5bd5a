//! Blocks whose last write failed at the device. What is there is anybody's guess: the old content, the
//! new, some of both, or whatever was spoiled before. So they are noted, on the medium before the failure
//! is answered, and from then on read as a medium error, unless what is there has the checksum of what
//! was written before: then it is whole (ADR 0013).
//!
//! ```text
//! shown ──write fails──► noted ──in the superblock──► answered
//!   ▲                      │ written, healed, zeroed or freed: mended, for reads
//!   └─in no superblock─────┴─that is durable: the next flush takes it off the list, before it is answered
//! ```
//!
//! The list in a superblock has what is noted and what is mended and perhaps not durable. So power that is
//! lost takes nothing back that a note was needed for, and nothing that a flush was answered for is noted.

use super::checksums::{Span, Then};
use super::facts::StoreFault;
use super::format::superblock::FAILED_EXTENTS_MAX;
use super::io::{CommandId, Outbox};
use super::leaf::{lanes, present_lanes};
use super::{Core, Kind, Phase};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{EXTENT_BLOCKS, Lba};
use std::collections::BTreeMap;

/// What a read of such a block ends with, where the device itself had nothing to say: EIO.
pub(super) const ERRNO: i32 = 5;

/// A superblock on its way, for the list.
#[derive(Debug)]
struct Writing {
    /// Commands whose failure may be answered then.
    answers: Vec<CommandId>,
    /// The flush run may end then.
    ends_run: bool,
}

/// Blocks whose last write failed, by their number in the data area.
#[derive(Debug, Default)]
pub(super) struct Failed {
    /// When they failed.
    blocks: BTreeMap<u64, u64>,
    /// Mended ones that superblocks still have, and when they were.
    mended: BTreeMap<u64, u64>,
    /// Counts failures and mendings.
    clock: u64,
    /// Commands whose blocks the next superblock has to have.
    waiting: Vec<CommandId>,
    /// The flush run waits for a superblock without what is durable.
    run_waits: bool,
    writing: Option<Writing>,
}

impl Failed {
    /// As a superblock has them.
    pub(super) fn load(list: &BTreeMap<u32, u16>) -> Self {
        let blocks = list.iter().flat_map(|(extent, mask)| {
            let first = u64::from(*extent) * u64::from(EXTENT_BLOCKS);
            let listed = (0..EXTENT_BLOCKS).filter(move |block| mask >> block & 1 == 1);
            listed.map(move |block| (first + u64::from(block), 0))
        });
        Self {
            blocks: blocks.collect(),
            ..Self::default()
        }
    }

    /// For a superblock.
    pub(super) fn list(&self) -> BTreeMap<u32, u16> {
        let mut list = BTreeMap::new();
        for block in self.blocks.keys().chain(self.mended.keys()) {
            let extent = u32::try_from(block / u64::from(EXTENT_BLOCKS)).expect("an extent");
            *list.entry(extent).or_default() |= 1 << (block % u64::from(EXTENT_BLOCKS));
        }
        list
    }

    /// The time, by which a write says when it began.
    pub(super) const fn now(&self) -> u64 {
        self.clock
    }

    /// Which blocks of a span have failed: a bit each.
    pub(super) fn mask(&self, span: Span) -> u32 {
        let end = span.first + u64::from(span.blocks);
        let failed = self.blocks.range(span.first..end);
        failed.fold(0, |mask, (block, _)| mask | 1 << (block - span.first))
    }

    /// Whether superblocks have any of these blocks of an extent.
    pub(super) fn has(&self, extent: u32, mask: u16) -> bool {
        let first = u64::from(extent) * u64::from(EXTENT_BLOCKS);
        let listed = |all: &BTreeMap<u64, u64>| {
            let mut all = all.range(first..first + u64::from(EXTENT_BLOCKS));
            all.any(|(block, _)| mask >> (block - first) & 1 == 1)
        };
        listed(&self.blocks) || listed(&self.mended)
    }

    fn fail(&mut self, block: u64) {
        self.clock += 1;
        self.mended.remove(&block);
        self.blocks.insert(block, self.clock);
    }

    /// Blocks have other content now, or are not shown any more, by what began at a time: what failed
    /// since may have spoiled that too. Answers whether there were any.
    fn mend(&mut self, span: Span, began: u64) -> bool {
        let end = span.first + u64::from(span.blocks);
        let failed = self.blocks.range(span.first..end);
        let mended: Vec<u64> = failed
            .filter(|(_, since)| **since <= began)
            .map(|(block, _)| *block)
            .collect();
        for block in &mended {
            self.clock += 1;
            self.blocks.remove(block);
            self.mended.insert(*block, self.clock);
        }
        !mended.is_empty()
    }

    /// What was mended up to a time is durable: superblocks need not have it. Answers whether the flush
    /// run has to wait for one without it.
    pub(super) fn forget(&mut self, upto: u64) -> bool {
        let before = self.mended.len();
        self.mended.retain(|_, at| *at > upto);
        self.run_waits = self.mended.len() < before;
        self.run_waits
    }

    pub(super) const fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The store is poisoned.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
    }
}

impl Core {
    /// A device operation of a command ended: its blocks are mended, or what is there is not known.
    pub(super) fn note_outcome(
        &mut self,
        id: CommandId,
        lba: Lba,
        (span, began): (Span, u64),
        result: Result<(), i32>,
        out: &mut Outbox,
    ) {
        let active = self.active_mut(id);
        let writes = matches!(active.kind, Kind::Write { .. } | Kind::Heal(_));
        if !writes || !stands(Mechanism::FailedList) || matches!(self.phase, Phase::Poisoned(_)) {
            return;
        }
        let nsid = self.active_mut(id).nsid;
        let Err(errno) = result else {
            return self.mend(span, began);
        };
        for nth in 0..u64::from(span.blocks) {
            if self.shows(nsid, Lba(lba.0 + nth), span.first + nth) {
                self.failed.fail(span.first + nth);
                self.active_mut(id).noted = true;
            }
        }
        if self.failed.list().len() > FAILED_EXTENTS_MAX {
            self.poison("a write beyond those that can be noted", errno, out);
        }
    }

    /// Whether any generation of a slice has this block of the data area as the content of a block.
    fn shows(&self, nsid: u32, lba: Lba, block: u64) -> bool {
        let slice = &self.slices[&nsid];
        let (leaf, index) = slice.locate(lba);
        let extent = u32::try_from(block / u64::from(EXTENT_BLOCKS)).expect("an extent");
        let lane = lanes(1 << (block % u64::from(EXTENT_BLOCKS)));
        let cells = slice.leaves.get(&leaf).map(|l| l.cells(index, u32::MAX));
        let mut cells = cells.into_iter().flatten();
        cells.any(|(_, cell)| {
            cell.physical == Some(extent) && present_lanes(cell.states) & lane != 0
        })
    }

    /// Blocks have other content by what began at a time, or are not shown any more.
    pub(super) fn mend(&mut self, span: Span, began: u64) {
        if self.failed.mend(span, began) {
            self.flusher.note_mended();
        }
    }

    /// Blocks of an extent are not shown any more.
    pub(super) fn mend_extent(&mut self, extent: u32, mask: u16) {
        let first = u64::from(extent) * u64::from(EXTENT_BLOCKS);
        for block in (0..EXTENT_BLOCKS).filter(|block| mask >> block & 1 == 1) {
            let first = first + u64::from(block);
            let span = Span { first, blocks: 1 };
            self.mend(span, self.failed.now());
        }
    }

    /// Ends a command that has failed: when what it may have spoiled is noted on the medium, and what is
    /// known of its content from before.
    pub(super) fn finish_failed(&mut self, id: CommandId, fault: StoreFault, out: &mut Outbox) {
        let active = self.active_mut(id);
        if !active.noted {
            return self.finish(id, Err(fault), out);
        }
        active.fault = Some(fault);
        match &mut self.checksums {
            Some(checksums) => {
                let extents = self.failed.list().into_keys();
                checksums.start_batch(extents, true, Then::List(id));
            }
            None => self.failed.waiting.push(id),
        }
    }

    /// What is known of a failed command's blocks is on the medium; the blocks themselves are next.
    pub(super) fn list_for(&mut self, id: CommandId) {
        self.failed.waiting.push(id);
    }

    /// Writes a superblock with the list if somebody waits for it.
    pub(super) fn start_list(&mut self, out: &mut Outbox) {
        let wanted = !self.failed.waiting.is_empty() || self.failed.run_waits;
        let busy = self.is_switching() || self.is_growth_switching();
        if !wanted || self.failed.is_writing() || busy {
            return;
        }
        self.failed.writing = Some(Writing {
            answers: std::mem::take(&mut self.failed.waiting),
            ends_run: std::mem::take(&mut self.failed.run_waits),
        });
        self.write_superblock(out);
    }

    /// The superblock with the list is durable.
    pub(super) fn on_listed(&mut self, out: &mut Outbox) {
        let done = self.failed.writing.take().expect("it was being written");
        if matches!(self.phase, Phase::Poisoned(_)) {
            return;
        }
        for id in done.answers {
            let fault = self.active_mut(id).fault.take();
            self.finish(id, Err(fault.expect("it failed")), out);
        }
        if done.ends_run {
            self.end_flush_run(out);
        }
        if self.is_switching() {
            self.switch(out);
        }
    }
}

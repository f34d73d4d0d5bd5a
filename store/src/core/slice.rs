//! A slice in memory.

use super::facts::{SliceSpec, SliceState, Stamp, StoreFault};
use super::format::page::{LEAF_BLOCKS, PageHead, PageKind};
use super::generations::{Changes, Generations};
use super::io::{CommandId, Drain};
use super::journal::Ticket;
use super::leaf::Leaf;
use super::merge::Merging;
use roaring::RoaringBitmap;
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{BlockRange, Epoch, Generation, Incarnation, ShardIndex, WriteTick};
use shardmap::units::{EXTENT_BLOCKS, Lba};
use std::collections::{BTreeMap, BTreeSet};

/// An association's right to do IO.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub(super) association: u64,
    /// Ticks from this one on were handed out to this session.
    pub(super) first_tick: u64,
}

/// A session that waits for its predecessors' commands to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    pub(super) command: CommandId,
    pub(super) association: u64,
    pub(super) turn: u64,
    pub(super) ticket: Option<Ticket>,
}

/// What is known of a region that was written in this life.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RegionNote {
    pub(super) last_tick: u64,
    pub(super) in_flight: u32,
}

#[derive(Debug)]
pub(super) struct Slice {
    pub(super) spec: SliceSpec,
    /// Its metadata page.
    pub(super) page: u32,
    pub(super) epoch: Epoch,
    pub(super) stamp: Stamp,
    pub(super) incomplete: bool,
    pub(super) generations: Generations,
    pub(super) changes: Changes,
    pub(super) merging: Merging,
    pub(super) leaves: BTreeMap<u32, Leaf>,
    /// Durable marks.
    pub(super) marks: RoaringBitmap,
    /// Marks on their way into the journal.
    pub(super) marking: BTreeMap<u32, Ticket>,
    /// Metadata page per window of marks.
    pub(super) mark_pages: BTreeMap<u32, u32>,
    pub(super) regions: BTreeMap<u32, RegionNote>,
    pub(super) tick: u64,
    pub(super) session: Option<Session>,
    pub(super) opening: Option<Opening>,
    pub(super) closing: Vec<(CommandId, u64)>,
    pub(super) removing: Option<(CommandId, u64)>,
    /// Associations whose session a newer one ended, until they are gone.
    pub(super) revoked: BTreeSet<u64>,
    /// Commands in flight, by sessions.
    pub(super) drain: Drain,
}

impl Slice {
    pub(super) fn new(spec: SliceSpec, page: u32, tick: u64) -> Self {
        Self {
            spec,
            page,
            epoch: Epoch(0),
            stamp: Stamp::default(),
            incomplete: false,
            generations: Generations::default(),
            changes: Changes::default(),
            merging: Merging::default(),
            leaves: BTreeMap::new(),
            marks: RoaringBitmap::new(),
            marking: BTreeMap::new(),
            mark_pages: BTreeMap::new(),
            regions: BTreeMap::new(),
            tick,
            session: None,
            opening: None,
            closing: Vec::new(),
            removing: None,
            revoked: BTreeSet::new(),
            drain: Drain::default(),
        }
    }

    /// Blocks of one leaf: a shard, or 64 MiB of it.
    pub(super) fn leaf_blocks(&self) -> u32 {
        self.spec.shape.shard_blocks.min(LEAF_BLOCKS)
    }

    pub(super) fn leaf_extents(&self) -> u32 {
        self.leaf_blocks() / EXTENT_BLOCKS
    }

    /// Leaf, and extent within it, of a block.
    pub(super) fn locate(&self, lba: Lba) -> (u32, u16) {
        let blocks = u64::from(self.leaf_blocks());
        let leaf = u32::try_from(lba.0 / blocks).expect("volume of at most 16 PiB");
        let extent = (lba.0 % blocks) / u64::from(EXTENT_BLOCKS);
        (
            leaf,
            u16::try_from(extent).expect("at most 1 024 extents in a leaf"),
        )
    }

    /// Leaf and extent within it of an extent of the volume, if it exists.
    pub(super) fn locate_extent(&self, extent: u64) -> Option<(u32, u16)> {
        let lba = extent.checked_mul(u64::from(EXTENT_BLOCKS))?;
        (lba < self.spec.size_blocks).then(|| self.locate(Lba(lba)))
    }

    /// Number in the volume of a leaf's extent.
    pub(super) fn extent_number(&self, leaf: u32, index: u16) -> u64 {
        u64::from(leaf) * u64::from(self.leaf_extents()) + u64::from(index)
    }

    /// Shard and part of a leaf.
    pub(super) fn shard_and_part(&self, leaf: u32) -> (u32, u32) {
        let parts = self.spec.shape.shard_blocks / self.leaf_blocks();
        (leaf / parts, leaf % parts)
    }

    /// The leaf of a shard's part, if it can be.
    pub(super) fn leaf_of(&self, shard: u32, part: u32) -> Option<u32> {
        let parts = self.spec.shape.shard_blocks / self.leaf_blocks();
        if part >= parts {
            None
        } else {
            shard.checked_mul(parts)?.checked_add(part)
        }
    }

    /// Whether this association may do IO.
    pub(super) fn admit(&self, association: u64) -> Result<(), StoreFault> {
        let nsid = self.spec.nsid;
        if self.removing.is_some() {
            return Err(StoreFault::UnknownSlice { nsid });
        }
        let current = self.session.is_some_and(|s| s.association == association);
        if current || self.spec.open_access || !stands(Mechanism::SessionFence) {
            Ok(())
        } else if self.revoked.contains(&association) {
            Err(StoreFault::SessionRevoked { nsid })
        } else {
            Err(StoreFault::NotOpen { nsid })
        }
    }

    /// Whether the range lies in the volume and in shards that are here.
    pub(super) fn check_range(&self, range: BlockRange, max: u32) -> Result<(), StoreFault> {
        let spec = &self.spec;
        if range.blocks().0 > max {
            return Err(StoreFault::TooLong {
                blocks: range.blocks().0,
                max,
            });
        }
        if range.end().0 > spec.size_blocks {
            return Err(StoreFault::OutOfRange {
                range,
                size_blocks: spec.size_blocks,
            });
        }
        let first = spec.shape.shard_of(range.start()).0;
        let last = spec.shape.shard_of(Lba(range.end().0 - 1)).0;
        let missing = (first..=last).find(|s| !spec.shape.holds(spec.position, ShardIndex(*s)));
        match missing {
            None => Ok(()),
            Some(shard) => Err(StoreFault::ShardNotHere {
                nsid: spec.nsid,
                shard: ShardIndex(shard),
            }),
        }
    }

    pub(super) fn used_extents(&self) -> u64 {
        self.leaves.values().map(|l| u64::from(l.bound())).sum()
    }

    pub(super) fn state(&self, incarnation: u64, lost_at: u64, clean: bool) -> SliceState {
        SliceState {
            spec: self.spec,
            epoch: self.epoch,
            stamp: self.stamp,
            incomplete: self.incomplete,
            head: Generation(self.generations.head()),
            snapshot_count: u32::try_from(self.generations.snapshots().len()).expect("bounded"),
            mark_count: self.marks.len() + self.marking.len() as u64,
            tick: WriteTick(self.tick),
            incarnation: Incarnation(incarnation),
            lost_at: Incarnation(lost_at),
            clean,
            used_blocks: self.used_extents() * u64::from(EXTENT_BLOCKS),
        }
    }

    pub(super) fn page_head(
        &self,
        kind: PageKind,
        generation: u32,
        (shard, part): (u32, u32),
    ) -> PageHead {
        PageHead {
            kind,
            generation,
            shard,
            part,
            spec: self.spec,
            epoch: self.epoch.0,
            stamp: self.stamp,
            incomplete: self.incomplete,
            closed: self.session.is_none(),
        }
    }
}

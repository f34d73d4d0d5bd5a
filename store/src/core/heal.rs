//! Healing: a block that is not what was written there is written again, in place, from bytes that
//! somebody else has (ADR 0011). The checksum says whether they are what was written, so it makes no
//! difference who gives them, and whoever has the volume need not know.
//!
//! Promised, whatever comes in between (writes, discards, snapshots, merges, failures):
//! - only bytes that have the block's own, known checksum are written, and only at a place that the slice
//!   still shows there;
//! - no other write of the block is in flight meanwhile: one under way is left alone, one that comes later
//!   waits ([`Core::is_healing`]); a merge of the extent waits, too;
//! - for the checksums it is no write: what must be there is the same before and after, also if it fails.
//!   So a read beside it is judged, and finds either the right content or rot.

use super::checksums::{Asker, Check, Verdict};
use super::facts::{Healed, StoreFault};
use super::io::{Answer, CommandId, Effect, Outbox};
use super::read::sources;
use super::slice::Slice;
use super::{Core, Kind, Phase};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::REGION_BLOCKS;
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, EXTENT_BLOCKS, Generation, Lba, Nsid};

/// A block being healed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Healing {
    lba: Lba,
    /// As asked; what a deleted one wrote is looked for in the next one.
    generation: Generation,
    /// Of the bytes that were given.
    sum: u32,
    /// Where the block was when they came.
    offset_bytes: u64,
}

impl Slice {
    /// The generation that shows what was written in one that may be deleted; zero: the head.
    fn shown_in(&self, generation: Generation) -> u32 {
        match generation.0 {
            0 => self.generations.head(),
            asked => self.generations.heir(asked),
        }
    }

    /// One block of a slice that is here.
    fn check_block(&self, lba: Lba) -> Result<BlockRange, StoreFault> {
        let nsid = self.spec.nsid;
        let range = BlockRange::new(lba, Blocks(1)).ok_or(StoreFault::UnknownSlice { nsid })?;
        self.check_range(range, 1)?;
        if self.removing.is_some() {
            return Err(StoreFault::UnknownSlice { nsid });
        }
        Ok(range)
    }
}

impl Core {
    fn slice_of(&self, nsid: Nsid) -> Result<&Slice, StoreFault> {
        let slice = self.slices.get(&nsid.0);
        slice.ok_or(StoreFault::UnknownSlice { nsid })
    }

    /// Reads a block for healing another replica's, without a session: it may be old, or be written at
    /// the moment. Who wants it has the checksum of what it wants.
    pub(super) fn read_replica(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        (lba, generation): (Lba, Generation),
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self.slice_of(nsid)?;
        let range = slice.check_block(lba)?;
        if slice.incomplete {
            return Err(StoreFault::Incomplete { nsid });
        }
        let generation = slice.shown_in(generation);
        self.activate(id, nsid.0, Kind::Read { compare: false });
        self.start_read(id, nsid.0, (range, generation), out);
        Ok(())
    }

    /// Byte offset on the device of a block that a slice has itself and shows.
    fn place_of(&self, nsid: Nsid, (lba, generation): (Lba, Generation)) -> Option<u64> {
        let slice = &self.slices[&nsid.0];
        let block = lba.0 % u64::from(EXTENT_BLOCKS);
        let within = usize::try_from(block).expect("below the extent");
        // What a clone shows of its parent is the parent's to heal.
        let own = [(slice, slice.shown_in(generation))];
        let extent = sources(&own, lba)[within]?;
        let offset = self.sb.geometry.extent_offset(extent);
        Some(offset + block * u64::from(BLOCK_BYTES))
    }

    /// For checkers: the checksum of a block that a slice shows, if it is known and in memory.
    pub(crate) fn known_checksum(
        &self,
        nsid: Nsid,
        (lba, generation): (Lba, Generation),
    ) -> Option<u32> {
        self.slice_of(nsid).ok()?.check_block(lba).ok()?;
        let offset_bytes = self.place_of(nsid, (lba, generation))?;
        self.checksums.as_ref()?.known(self.span(offset_bytes, 1))
    }

    /// For checkers: whether the last write of a block that a slice shows has failed.
    pub(crate) fn has_failed(&self, nsid: Nsid, (lba, generation): (Lba, Generation)) -> bool {
        let block = self.slice_of(nsid).and_then(|slice| slice.check_block(lba));
        let place = block
            .ok()
            .and_then(|_| self.place_of(nsid, (lba, generation)));
        place.is_some_and(|offset_bytes| self.failed.mask(self.span(offset_bytes, 1)) != 0)
    }

    /// For checkers: whether the region of a block is marked.
    pub(crate) fn is_marked(&self, nsid: Nsid, lba: Lba) -> bool {
        let region = u32::try_from(lba.0 / u64::from(REGION_BLOCKS)).expect("in a volume");
        let slice = self.slices.get(&nsid.0);
        slice.is_some_and(|s| s.marks.contains(region) || s.marking.contains_key(&region))
    }

    /// Whether a block of the range is being written for healing: nothing else may write there meanwhile.
    pub(super) fn is_healing(&self, nsid: u32, range: BlockRange) -> bool {
        self.healing.is_some_and(|(slice, lba)| {
            slice == nsid && range.start().0 <= lba.0 && lba.0 < range.end().0
        })
    }

    /// Whether a block of the extent is.
    pub(super) fn is_healing_extent(&self, nsid: u32, extent: u64) -> bool {
        self.healing
            .is_some_and(|(slice, lba)| slice == nsid && lba.0 / u64::from(EXTENT_BLOCKS) == extent)
    }

    /// Somebody else's bytes for a block are here, with their checksum.
    pub(super) fn heal(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        (lba, generation, sum): (Lba, Generation, u32),
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        self.slice_of(nsid)?.check_block(lba)?;
        let place = self.place_of(nsid, (lba, generation));
        let answer = |healed| Effect::Answer {
            command: id,
            result: Ok(Answer::Healed(healed)),
        };
        let Some(offset_bytes) = place else {
            out.push(answer(Healed::Gone));
            return Ok(());
        };
        if self.checksums.is_none() {
            out.push(answer(Healed::Unknown));
            return Ok(());
        }
        let healing = Healing {
            lba,
            generation,
            sum,
            offset_bytes,
        };
        self.activate(id, nsid.0, Kind::Heal(healing));
        // Compared like something that was read: now, or when the checksum is here.
        let span = self.span(offset_bytes, 1);
        let since = self.begin_io(span, false);
        self.active_mut(id).ios += 1;
        let learn = false;
        let asker = Asker::Command { id, lba, learn };
        self.check(Check { asker, span, since }, &[sum], out);
        Ok(())
    }

    /// The bytes were compared with what is known of the block. It is written in this very step, if at
    /// all: nothing can come in between.
    pub(super) fn on_heal_checked(
        &mut self,
        id: CommandId,
        healing: Healing,
        verdict: &Verdict,
        out: &mut Outbox,
    ) {
        let active = self.active_mut(id);
        active.ios -= 1;
        let nsid = Nsid(active.nsid);
        if let Phase::Poisoned(fault) = &self.phase {
            let fault = fault.clone();
            return self.finish(id, Err(fault), out);
        }
        let Healing {
            lba,
            generation,
            offset_bytes,
            ..
        } = healing;
        let range = BlockRange::new(lba, Blocks(1)).expect("checked");
        let place = self.place_of(nsid, (lba, generation));
        let refused = if verdict.unknown > 0 {
            Some(Healed::Unknown)
        } else if verdict.bad > 0 && stands(Mechanism::HealCompare) {
            Some(Healed::Other)
        } else if place != Some(offset_bytes) {
            Some(Healed::Gone)
        } else {
            None
        };
        if let Some(refused) = refused {
            return self.finish(id, Ok(Answer::Healed(refused)), out);
        }
        if self.healing.is_some() || self.is_merging(nsid.0, range) {
            // A merge that reads the block at the moment would not know which content it has.
            let max = crate::limits::HEALS_MAX;
            return self.finish(id, Err(StoreFault::Busy { max }), out);
        }
        self.healing = Some((nsid.0, lba));
        if !stands(Mechanism::HealCompare) {
            let span = self.span(offset_bytes, 1);
            let checksums = self.checksums.as_mut().expect("compared");
            checksums.believe(span, healing.sum);
        }
        let io = self.start_data(id, lba, (offset_bytes, 1));
        out.push(Effect::WriteData {
            io,
            command: id,
            at_blocks: 0,
            blocks: 1,
            offset_bytes,
            durable: self.config.volatile_cache,
        });
    }

    /// The block was written, or the device refused.
    pub(super) fn on_healed(&mut self, id: CommandId, fault: Option<StoreFault>, out: &mut Outbox) {
        let (nsid, lba) = self.healing.take().expect("it was being written");
        if fault.is_none() {
            self.counts.blocks_healed += 1;
            let slice = self.slices.get_mut(&nsid).expect("outlives its commands");
            let (leaf, index) = slice.locate(lba);
            if slice.merging.may_try_again(leaf, index) {
                self.merge.add(nsid);
            }
        }
        self.merge.ready = true;
        match fault {
            None => self.finish(id, Ok(Answer::Healed(Healed::Written)), out),
            Some(fault) => self.finish_failed(id, fault, out),
        }
        self.retry_parked(out);
    }
}

//! Discard and write-zeroes: the zero state, never the absent one, and whole extents given back.

use super::Core;
use super::facts::StoreFault;
use super::format::NO_EXTENT;
use super::format::page::ZERO;
use super::io::{Answer, CommandId, Outbox};
use super::leaf::{lanes, present_lanes, with_state};
use super::write::mask_of;
use super::{Kind, slice::Slice};
use shardmap::units::{BlockRange, EXTENT_BLOCKS, Nsid, REGION_BLOCKS};
use smallvec::SmallVec;

/// Pieces of a range, extent by extent, that lie in leaves which exist: `(leaf, extent, blocks)`.
/// There is nothing to do elsewhere: without a parent generation, absent blocks are zeroes.
fn known_pieces(
    slice: &Slice,
    range: BlockRange,
) -> impl Iterator<Item = (u32, u16, BlockRange)> + '_ {
    let blocks = slice.leaf_blocks();
    range
        .split_at_multiples(blocks)
        .filter(|part| slice.leaves.contains_key(&slice.locate(part.start()).0))
        .flat_map(|part| part.split_at_multiples(EXTENT_BLOCKS))
        .map(|piece| {
            let (leaf, index) = slice.locate(piece.start());
            (leaf, index, piece)
        })
}

/// Regions in which something is present: only there the replica changes and must say so beforehand.
fn changed_regions(slice: &Slice, range: BlockRange) -> SmallVec<[u32; 2]> {
    let mut changed = SmallVec::<[u32; 2]>::new();
    for (leaf, index, piece) in known_pieces(slice, range) {
        let states = slice.leaves[&leaf].get(index).1;
        if present_lanes(states) & lanes(mask_of(piece)) != 0 {
            let region = piece.start().0 / u64::from(REGION_BLOCKS);
            let region = u32::try_from(region).expect("volume of at most 16 PiB");
            if changed.last() != Some(&region) {
                changed.push(region);
            }
        }
    }
    changed
}

impl Core {
    pub(super) fn admit_zero(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        range: BlockRange,
        (deallocate, fua): (bool, bool),
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = &self.slices[&nsid.0];
        let marked: SmallVec<[u32; 2]> = if slice.incomplete {
            // It lacks what the others may hold there: even where nothing changes here, it comes to
            // differ from those that have not zeroed yet. Model: `ResilverRecovery`, `FZeroMark`.
            range.regions().map(|r| r.0).collect()
        } else {
            changed_regions(slice, range)
        };
        let wait = self.require_marks(nsid.0, &marked)?;
        self.activate(
            id,
            nsid.0,
            Kind::Zero {
                range,
                deallocate,
                fua,
                marked,
            },
        );
        self.begin_after(id, wait, out);
        Ok(())
    }

    pub(super) fn apply_zero(
        &mut self,
        id: CommandId,
        range: BlockRange,
        deallocate: bool,
        fua: bool,
        out: &mut Outbox,
    ) {
        let nsid = self.active_mut(id).nsid;
        let pieces: Vec<_> = known_pieces(&self.slices[&nsid], range).collect();
        let slice = self.slices.get_mut(&nsid).expect("admitted");
        let marked: SmallVec<[u32; 2]> = match &self.active[id.0 as usize] {
            Some(super::Active {
                kind: Kind::Zero { marked, .. },
                ..
            }) => marked.clone(),
            Some(_) | None => unreachable!("a zero"),
        };
        for (leaf_number, index, piece) in pieces {
            let number = slice.extent_number(leaf_number, index);
            let region = piece.start().0 / u64::from(REGION_BLOCKS);
            let leaf = slice.leaves.get_mut(&leaf_number).expect("just seen");
            let (bound, states) = leaf.get(index);
            let mask = mask_of(piece);
            let changes = present_lanes(states) & lanes(mask) != 0;
            // A block that became present while the marks were written is another command's, which
            // this one does not have to follow: either order is right.
            if !changes || !marked.iter().any(|r| u64::from(*r) == region) {
                continue;
            }
            let after = with_state(states, mask, ZERO);
            let release = deallocate && present_lanes(after) == 0 && !leaf.is_pinned(index);
            let kept = bound.filter(|_| !release);
            leaf.set(index, kept, after);
            self.flusher
                .record((nsid, number), kept.unwrap_or(NO_EXTENT), 0, mask);
            if let Some(extent) = bound.filter(|_| release) {
                self.flusher.freed.push(extent);
                self.reclaim.waiting += 1;
                self.counts.extents_freed += 1;
            }
            self.pages.touch(leaf.page);
        }
        if fua {
            self.join_flush(id, out);
        } else {
            self.finish(id, Ok(Answer::Done), out);
        }
    }
}

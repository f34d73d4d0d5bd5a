//! Discard and write-zeroes: the zero state, never the absent one, and whole extents given back.

use super::facts::StoreFault;
use super::format::NO_EXTENT;
use super::format::page::ZERO;
use super::io::{Answer, CommandId, Outbox};
use super::leaf::{Cell, lanes, present_lanes, with_state};
use super::lineage::{Lineage, shown};
use super::slice::Slice;
use super::write::mask_of;
use super::{Active, Core, Kind};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{BlockRange, EXTENT_BLOCKS, Nsid, REGION_BLOCKS};
use smallvec::SmallVec;

/// Pieces of a range, extent by extent, where the generation shows data: `(leaf, extent, blocks)`.
/// There is nothing to do elsewhere: what is absent in all generations or zero is zeroes.
fn present_pieces<'a>(
    lineage: &'a Lineage<'_>,
    range: BlockRange,
) -> impl Iterator<Item = (u32, u16, BlockRange)> + 'a {
    let slice = lineage[0].0;
    let has_leaf = move |part: &BlockRange| {
        let (leaf, _) = slice.locate(part.start());
        let mut slices = lineage.iter();
        slices.any(|(slice, _)| slice.leaves.contains_key(&leaf))
    };
    range
        .split_at_multiples(slice.leaf_blocks())
        .filter(has_leaf)
        .flat_map(|part| part.split_at_multiples(EXTENT_BLOCKS))
        .filter(move |piece| {
            let states = shown(lineage, piece.start());
            present_lanes(states) & lanes(mask_of(*piece)) != 0
        })
        .map(move |piece| {
            let (leaf, index) = slice.locate(piece.start());
            (leaf, index, piece)
        })
}

fn region_of(piece: BlockRange) -> u32 {
    let region = piece.start().0 / u64::from(REGION_BLOCKS);
    u32::try_from(region).expect("volume of at most 16 PiB")
}

/// Regions in which something is present: only there the replica changes and must say so beforehand.
fn changed_regions(lineage: &Lineage<'_>, range: BlockRange) -> SmallVec<[u32; 2]> {
    let mut changed = SmallVec::<[u32; 2]>::new();
    for (_, _, piece) in present_pieces(lineage, range) {
        let region = region_of(piece);
        if changed.last() != Some(&region) {
            changed.push(region);
        }
    }
    changed
}

/// Pieces of extents that keep their place although nothing is in it any more: what zeroed them wanted
/// that. Giving it back changes nothing that a read would find.
fn kept_pieces<'a>(
    lineage: &'a Lineage<'_>,
    range: BlockRange,
) -> impl Iterator<Item = (u32, u16, BlockRange)> + 'a {
    let (slice, generation) = lineage[0];
    range
        .split_at_multiples(EXTENT_BLOCKS)
        .filter_map(move |piece| {
            let (number, index) = slice.locate(piece.start());
            let leaf = slice.leaves.get(&number)?;
            let shown = present_lanes(shown(lineage, piece.start()));
            let (_, cell) = slice.target(leaf, index, generation);
            let kept = cell.physical.is_some() && present_lanes(cell.states) == 0;
            (kept && shown & lanes(mask_of(piece)) == 0).then_some((number, index, piece))
        })
}

/// Metadata pages that zeroing the pieces of a range may take, at most.
fn pages_for(
    (slice, generation): (&Slice, u32),
    range: BlockRange,
    pieces: &[(u32, u16, BlockRange)],
) -> usize {
    let hides = |(leaf, index, _): &&(u32, u16, BlockRange)| {
        // Where a clone has nothing of its own, it gets a leaf, of which this generation is the base.
        slice.leaves.get(leaf).is_some_and(|leaf| {
            let (key, cell) = slice.target(leaf, *index, generation);
            cell.is_nothing() && key.1 != leaf.base()
        })
    };
    let mut new_leaves: Vec<u32> = pieces.iter().map(|(leaf, ..)| *leaf).collect();
    new_leaves.dedup();
    new_leaves.retain(|leaf| !slice.leaves.contains_key(leaf));
    // Every page that is there may be full, and takes 256 more cells after it was split.
    let touched = range.split_at_multiples(slice.leaf_blocks());
    let leaves = touched.filter_map(|part| slice.leaves.get(&slice.locate(part.start()).0));
    let cells_pages = match pieces.iter().filter(hides).count() {
        0 => 0,
        cells => cells / 256 + leaves.map(|l| l.pages().count()).sum::<usize>(),
    };
    cells_pages + new_leaves.len()
}

impl Core {
    pub(super) fn admit_zero(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        (range, generation): (BlockRange, u32),
        (deallocate, fua): (bool, bool),
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = &self.slices[&nsid.0];
        let marked: SmallVec<[u32; 2]> = if slice.incomplete && stands(Mechanism::ZeroMark) {
            // It lacks what the others may hold there: even where nothing changes here, it comes to
            // differ from those that have not zeroed yet. Model: `ResilverRecovery`, `FZeroMark`.
            range.regions().map(|r| r.0).collect()
        } else {
            changed_regions(&self.lineage(nsid.0, generation), range)
        };
        let wait = self.require_marks(nsid.0, &marked)?;
        let kind = Kind::Zero {
            range,
            generation,
            deallocate,
            fua,
            marked,
        };
        self.activate(id, nsid.0, kind);
        self.begin_after(id, wait, out);
        Ok(())
    }

    pub(super) fn begin_zero(&mut self, id: CommandId, out: &mut Outbox) {
        let Some(Active {
            kind:
                Kind::Zero {
                    range,
                    generation,
                    deallocate,
                    fua,
                    marked,
                },
            nsid,
            ..
        }) = &self.active[id.0 as usize]
        else {
            unreachable!("a zero")
        };
        let (nsid, range, generation, deallocate, fua) =
            (*nsid, *range, *generation, *deallocate, *fua);
        if self.is_merging(nsid, range) {
            self.parked.push_back(id);
            return;
        }
        let (pieces, needed) = {
            let lineage = self.lineage(nsid, generation);
            // A block that became present while the marks were written is another command's, which
            // this one does not have to follow: either order is right.
            let mut pieces: Vec<_> = present_pieces(&lineage, range)
                .filter(|(_, _, piece)| marked.contains(&region_of(*piece)))
                .collect();
            if deallocate {
                pieces.extend(kept_pieces(&lineage, range));
            }
            let needed = pages_for(lineage[0], range, &pieces);
            (pieces, needed)
        };
        if needed > self.pages.free_for_leaves() {
            let pages = self.pages.count();
            return self.finish(id, Err(StoreFault::NoPages { pages }), out);
        }
        for (leaf, index, piece) in pieces {
            self.zero_extent(nsid, (leaf, index, generation), mask_of(piece), deallocate);
        }
        if fua {
            self.join_flush(id, out);
        } else {
            self.finish(id, Ok(Answer::Done), out);
        }
    }

    fn zero_extent(
        &mut self,
        nsid: u32,
        (number, index, generation): (u32, u16, u32),
        mask: u16,
        deallocate: bool,
    ) {
        self.require_leaf(nsid, number, generation);
        let slice = &self.slices[&nsid];
        let (key, cell) = slice.target(&slice.leaves[&number], index, generation);
        if cell.is_nothing() {
            self.make_room(nsid, number, key);
        }
        let slice = self.slices.get_mut(&nsid).expect("admitted");
        let extent = (nsid, slice.extent_number(number, index), key.1);
        let leaf = slice.leaves.get_mut(&number).expect("just seen");
        let states = with_state(cell.states, mask, ZERO);
        let told = stands(Mechanism::ZeroEntry);
        let release = deallocate && present_lanes(states) == 0 && !leaf.is_pinned(key) && told;
        let physical = cell.physical.filter(|_| !release);
        leaf.set(key, Cell { physical, states });
        self.pages.touch(leaf.page_of(key));
        let named = physical.unwrap_or(NO_EXTENT);
        if told {
            self.flusher.record(extent, named, 0, mask);
        }
        let mended = cell.physical.filter(|_| told);
        if let Some(extent) = cell.physical.filter(|_| release) {
            self.flusher.freed.push(extent);
            self.reclaim.waiting += 1;
            self.counts.extents_freed += 1;
        }
        // It may hide now what was inherited from a dropped generation.
        let own = slice.generations.own(slice.generations.heir(key.1));
        if leaf.newest(index, *own.start()..=key.1 - 1).is_some() {
            slice.merging.add(number);
            self.merge.add(nsid);
        }
        if let Some(extent) = mended {
            self.mend_extent(extent, mask);
        }
    }
}

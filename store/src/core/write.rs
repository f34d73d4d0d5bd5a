//! Writes: blocks that are present in a cell of the writing generation's own are overwritten in place; a
//! first write lands in an extent of its own before the map says so, and the map says so durably before
//! the next flush completes. What older generations have is never touched and never copied: the blocks
//! that a new cell lacks are theirs.

use super::facts::StoreFault;
use super::format::NO_EXTENT;
use super::format::page::PRESENT;
use super::io::{Answer, CommandId, Effect, Outbox};
use super::leaf::{Cell, CellKey, Leaf, lanes, present_lanes, with_state};
use super::pages::PageOf;
use super::slice::Slice;
use super::space::Allocated;
use super::{Core, FirstWrite, Kind, Phase};
use shardmap::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS, Lba};
use smallvec::SmallVec;

/// The blocks of an extent that a piece of a range covers.
pub(super) fn mask_of(piece: BlockRange) -> u16 {
    let first = u32::try_from(piece.start().0 % u64::from(EXTENT_BLOCKS)).expect("small");
    let ones = (1u32 << piece.blocks().0) - 1;
    u16::try_from(ones << first).expect("a piece stays in its extent")
}

/// What a write needs before it can start.
#[derive(Default)]
struct Needs {
    extents: u32,
    /// Metadata pages, at most.
    pages: usize,
    /// Some block becomes present.
    first: bool,
    /// Some extent has a change that is not durable.
    pending: bool,
    /// Some block is on the list of those whose write failed.
    failed: bool,
}

impl Slice {
    /// The cell that a write of a generation to an extent goes into: the newest of the generation's
    /// own, or one that is not there yet.
    pub(super) fn target(&self, leaf: &Leaf, index: u16, generation: u32) -> (CellKey, Cell) {
        let own = self.generations.own(generation);
        if let Some((owner, cell)) = leaf.newest(index, own.clone()) {
            return ((index, owner), cell);
        }
        // Any of its own will do; the base's cells are the cheapest.
        let base = Some(leaf.base()).filter(|base| own.contains(base));
        ((index, base.unwrap_or(generation)), Cell::default())
    }
}

impl Core {
    /// Marks are durable (or were): a write or zero begins.
    pub(super) fn begin(&mut self, id: CommandId, out: &mut Outbox) {
        match self.active_mut(id).kind {
            Kind::Write {
                range,
                generation,
                fua,
                ..
            } => self.begin_write(id, (range, generation), fua, out),
            Kind::Zero { .. } => self.begin_zero(id, out),
            Kind::Read { .. }
            | Kind::Scrub(_)
            | Kind::Heal(_)
            | Kind::Flush
            | Kind::Stable { .. }
            | Kind::Entry(_) => {
                unreachable!("has nothing to begin")
            }
        }
    }

    fn needs(&self, nsid: u32, range: BlockRange, generation: u32) -> Needs {
        let slice = &self.slices[&nsid];
        let mut needs = Needs::default();
        let mut missing_leaf = None;
        for piece in range.split_at_multiples(EXTENT_BLOCKS) {
            let (leaf, index) = slice.locate(piece.start());
            let cell = match slice.leaves.get(&leaf) {
                Some(leaf) => {
                    let (key, cell) = slice.target(leaf, index, generation);
                    // Three pieces may be new in one page.
                    let new = cell.is_nothing() && !leaf.has_room(key, 3);
                    needs.pages += usize::from(new);
                    cell
                }
                None => {
                    needs.pages += usize::from(missing_leaf != Some(leaf));
                    missing_leaf = Some(leaf);
                    Cell::default()
                }
            };
            let wanted = lanes(mask_of(piece));
            needs.extents += u32::from(cell.physical.is_none());
            needs.first |= present_lanes(cell.states) & wanted != wanted;
            needs.pending |= self
                .flusher
                .is_pending(nsid, slice.extent_number(leaf, index));
            needs.failed |= cell
                .physical
                .is_some_and(|e| self.failed.has(e, mask_of(piece)));
        }
        needs
    }

    fn begin_write(
        &mut self,
        id: CommandId,
        (range, generation): (BlockRange, u32),
        fua: bool,
        out: &mut Outbox,
    ) {
        let nsid = self.active_mut(id).nsid;
        if self.is_merging(nsid, range) || self.is_healing(nsid, range) {
            self.parked.push_back(id);
            return;
        }
        let needs = self.needs(nsid, range, generation);
        let (free, needed) = (self.space.free(), needs.extents);
        if needed > free && self.reclaim.waiting > 0 {
            // Space is on its way, but only a commit releases it.
            self.flusher.want();
            self.parked.push_back(id);
            return;
        }
        if needed > free {
            return self.finish(id, Err(StoreFault::NoSpace { needed, free }), out);
        }
        if needs.pages > self.pages.free_for_leaves() {
            let pages = self.pages.count();
            return self.finish(id, Err(StoreFault::NoPages { pages }), out);
        }
        if needs.first && self.flusher.is_overfull() {
            self.parked.push_back(id);
            return;
        }
        if needs.first {
            self.counts.first_writes += 1;
        } else {
            self.counts.overwrites += 1;
        }
        let commit = fua && (needs.first || needs.pending || needs.failed);
        let durable = fua && !commit && self.config.volatile_cache;
        let (first, runs) = self.place(nsid, range, generation);
        if let Kind::Write {
            fua,
            durable: d,
            first: f,
            ..
        } = &mut self.active_mut(id).kind
        {
            (*fua, *d, *f) = (commit, durable, first);
        }
        for (at_blocks, blocks, offset_bytes) in runs {
            let lba = Lba(range.start().0 + u64::from(at_blocks));
            let io = self.start_data(id, lba, (offset_bytes, blocks));
            let command = id;
            out.push(Effect::WriteData {
                io,
                command,
                at_blocks,
                blocks,
                offset_bytes,
                durable,
            });
        }
    }

    /// Binds extents where there are none and gives the device runs of the range.
    #[allow(clippy::type_complexity, reason = "two local lists")]
    fn place(
        &mut self,
        nsid: u32,
        range: BlockRange,
        generation: u32,
    ) -> (SmallVec<[FirstWrite; 3]>, SmallVec<[(u32, u32, u64); 3]>) {
        let (mut first, mut runs) = (SmallVec::new(), SmallVec::<[(u32, u32, u64); 3]>::new());
        let (mut at_blocks, mut neighbour) = (0, None);
        for piece in range.split_at_multiples(EXTENT_BLOCKS) {
            let slice = &self.slices[&nsid];
            let (number, index) = slice.locate(piece.start());
            self.require_leaf(nsid, number, generation);
            let slice = &self.slices[&nsid];
            let (key, cell) = slice.target(&slice.leaves[&number], index, generation);
            if cell.is_nothing() {
                self.make_room(nsid, number, key);
            }
            let slice = self.slices.get_mut(&nsid).expect("admitted");
            let leaf = slice.leaves.get_mut(&number).expect("required");
            let Cell { physical, states } = cell;
            let extent = physical.unwrap_or_else(|| {
                let before = index.checked_sub(1);
                let before = before.and_then(|i| leaf.get((i, key.1)).physical);
                let wanted = neighbour.or(before).map(|e| e + 1);
                let Allocated { extent, recycled } =
                    self.space.allocate(wanted).expect("counted before");
                self.counts.extents_allocated += 1;
                self.counts.extents_recycled += u64::from(recycled);
                let physical = Some(extent);
                leaf.set(key, Cell { physical, states });
                extent
            });
            let mask = mask_of(piece);
            if present_lanes(states) & lanes(mask) != lanes(mask) {
                leaf.pin(key);
                first.push(FirstWrite {
                    leaf: number,
                    key,
                    mask,
                });
            }
            neighbour = Some(extent);
            let within = (piece.start().0 % u64::from(EXTENT_BLOCKS)) * u64::from(BLOCK_BYTES);
            let offset = self.sb.geometry.extent_offset(extent) + within;
            match runs.last_mut() {
                Some((_, blocks, at))
                    if *at + u64::from(*blocks * BLOCK_BYTES) == offset
                        && !self.sb.geometry.is_seam(offset) =>
                {
                    *blocks += piece.blocks().0;
                }
                _ => runs.push((at_blocks, piece.blocks().0, offset)),
            }
            at_blocks += piece.blocks().0;
        }
        (first, runs)
    }

    /// Makes the leaf if it is not there. A page was counted before.
    pub(super) fn require_leaf(&mut self, nsid: u32, number: u32, generation: u32) {
        let slice = self.slices.get_mut(&nsid).expect("admitted");
        let leaf_extents = slice.leaf_extents();
        slice.leaves.entry(number).or_insert_with(|| {
            let page = self.pages.allocate(PageOf::Leaf(nsid, number));
            Leaf::new(page.expect("counted before"), leaf_extents, generation)
        });
    }

    /// All device writes of a command ended.
    pub(super) fn on_written(
        &mut self,
        id: CommandId,
        fault: Option<StoreFault>,
        out: &mut Outbox,
    ) {
        let active = self.active_mut(id);
        let nsid = active.nsid;
        let Kind::Write {
            fua: commit,
            durable,
            first,
            ..
        } = &mut active.kind
        else {
            unreachable!("only writes are written")
        };
        let (commit, durable, first) = (*commit, *durable, std::mem::take(first));
        if !durable && self.config.volatile_cache {
            self.flusher.note_write();
        }
        for first in first {
            self.settle(nsid, first, fault.is_none());
        }
        match fault {
            Some(fault) => self.finish_failed(id, fault, out),
            None if commit => self.join_flush(id, out),
            None => self.finish(id, Ok(Answer::Done), out),
        }
    }

    /// The data of a first write has landed (or not): now the map may say so.
    pub(super) fn settle(&mut self, nsid: u32, write: FirstWrite, landed: bool) {
        let FirstWrite { leaf, key, mask } = write;
        let slice = self.slices.get_mut(&nsid).expect("outlives its commands");
        let extent = (nsid, slice.extent_number(leaf, key.0), key.1);
        let own = slice.generations.own(slice.generations.heir(key.1));
        let leaf_number = leaf;
        let leaf = slice.leaves.get_mut(&leaf_number).expect("leaves stay");
        leaf.unpin(key);
        let Cell { physical, states } = leaf.get(key);
        let named = physical.expect("pinned until now");
        let page = leaf.page_of(key);
        if landed {
            let states = with_state(states, mask, PRESENT);
            leaf.set(key, Cell { physical, states });
            self.flusher.record(extent, named, mask, 0);
            // It may hide now what was inherited from a dropped generation.
            if leaf.newest(key.0, *own.start()..=key.1 - 1).is_some() {
                slice.merging.add(leaf_number);
                self.merge.add(nsid);
            }
        } else if present_lanes(states) == 0 && !leaf.is_pinned(key) {
            let physical = None;
            leaf.set(key, Cell { physical, states });
            self.flusher.record(extent, NO_EXTENT, 0, 0);
            self.flusher.freed.push(named);
            self.reclaim.waiting += 1;
            self.counts.extents_freed += 1;
        }
        self.pages.touch(page);
    }

    /// Space or room in the journal came free: what waited for it tries again.
    pub(super) fn retry_parked(&mut self, out: &mut Outbox) {
        if self.parked.is_empty() || !matches!(self.phase, Phase::Serving | Phase::Stopping(_)) {
            return;
        }
        for id in std::mem::take(&mut self.parked) {
            self.begin(id, out);
        }
    }
}

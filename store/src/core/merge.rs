//! Merge forward. When a snapshot is dropped, what only it had belongs to the next generation at once:
//! a look-up takes the newest cell there is, whatever generation wrote it (see [`Generations::own`]).
//! What is left to do is space: where one generation has inherited a second cell of an extent, the older
//! one goes over to the newer, by a change of the map if one of them suffices, else by copying the blocks
//! that the newer lacks. Every step leaves what every generation reads as it was, so a crash may come
//! between any two.
//!
//! Steps and checkpoints keep out of each other's way: no page of a checkpoint is ahead of the journal
//! by a step, so that replay meets the very cells that the step met. Steps are appended only while the
//! ring has room for them, so that a checkpoint never has to wait for one that waits for it.
//!
//! [`Generations::own`]: super::generations::Generations::own

use super::checksums::{Asker, Check, Span, Then};
use super::format::entry::{Entry, Merge as MergeEntry};
use super::io::{Drain, Effect, IoKind, Outbox};
use super::leaf::{Leaf, known_lanes, present_lanes};
use super::slice::Slice;
use super::{Core, FirstWrite, Phase, Waiter};
use crate::limits::MERGE_STEPS_MAX;
use shardmap::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS};
use std::collections::BTreeSet;

/// What a slice has to merge.
#[derive(Debug, Default)]
pub(super) struct Merging {
    /// Leaves where a generation may have inherited what it has already.
    leaves: BTreeSet<u32>,
    /// Not before what was admitted up to this turn has ended: writes to the dropped generation.
    after: Option<u64>,
    /// Extents whose blocks could not be copied in this life of the store.
    failed: BTreeSet<(u32, u16)>,
}

impl Merging {
    pub(super) fn add(&mut self, leaf: u32) {
        self.leaves.insert(leaf);
    }

    /// Blocks of an extent could not be copied, and what was wrong with them may be mended. False if none
    /// had failed there.
    pub(super) fn may_try_again(&mut self, leaf: u32, index: u16) -> bool {
        let failed = self.failed.remove(&(leaf, index));
        if failed {
            self.leaves.insert(leaf);
        }
        failed
    }

    /// Whether merging may begin now and could not before.
    pub(super) fn waits_for(&mut self, drain: &Drain) -> bool {
        self.after.take_if(|turn| drain.is_over(*turn)).is_some()
    }
}

/// Blocks on their way from a cell to a newer one.
#[derive(Debug)]
struct Copying {
    nsid: u32,
    /// Of the slice's drain.
    turn: u64,
    /// Number of the extent in the volume.
    extent: u64,
    write: FirstWrite,
    ios: u32,
    failed: bool,
}

/// Merging in the whole store.
#[derive(Debug, Default)]
pub(super) struct Merge {
    /// Something has changed since the last look.
    pub(super) ready: bool,
    /// Slices that have something to merge.
    slices: BTreeSet<u32>,
    /// Steps are in the journal's lane.
    unsettled: bool,
    copying: Option<Copying>,
}

impl Merge {
    pub(super) fn add(&mut self, nsid: u32) {
        self.slices.insert(nsid);
    }

    /// Whether a checkpoint has to wait.
    pub(super) const fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Blocks are being copied, or their checksums written.
    pub(super) const fn is_copying(&self) -> bool {
        self.copying.is_some()
    }
}

/// What became of a leaf.
enum Outcome {
    /// Nothing is left to do.
    Done,
    /// Something is in the way: changes that are not durable, writes in flight.
    Blocked,
    /// Enough for now.
    Busy,
}

/// Two generations of a leaf of which the newer has inherited the older: the newest such pair.
fn heirs(slice: &Slice, leaf: &Leaf) -> Option<(u32, u32)> {
    let layers = leaf.layers().keys().rev();
    let older = leaf.layers().keys().rev().skip(1);
    let heir = |g: &u32| slice.generations.heir(*g);
    let mut pairs = layers
        .zip(older)
        .filter(|(to, from)| heir(to) == heir(from));
    pairs.next().map(|(to, from)| (*from, *to))
}

impl Core {
    /// A snapshot was dropped: the next generation has inherited from it.
    pub(super) fn inherit(&mut self, nsid: u32, generation: u32) {
        let slice = self.slices.get_mut(&nsid).expect("had the snapshot");
        let own = slice.generations.own(slice.generations.heir(generation));
        let leaves = slice.leaves.iter();
        let two = leaves.filter(|(_, leaf)| leaf.layers().range(own.clone()).nth(1).is_some());
        let two: Vec<u32> = two.map(|(number, _)| *number).collect();
        slice.merging.leaves.extend(two);
        self.merge.slices.insert(nsid);
        slice.merging.after = Some(slice.drain.next_turn());
        if slice.merging.waits_for(&slice.drain) {
            self.merge.ready = true;
        }
    }

    /// The store was opened: merges that were not finished go on.
    pub(super) fn resume_merges(&mut self) {
        for (nsid, slice) in &mut self.slices {
            let unfinished = slice
                .leaves
                .iter()
                .filter(|(_, l)| heirs(slice, l).is_some());
            let unfinished: Vec<u32> = unfinished.map(|(number, _)| *number).collect();
            slice.merging.leaves.extend(unfinished);
            if !slice.merging.leaves.is_empty() {
                self.merge.slices.insert(*nsid);
            }
        }
        self.merge.ready = true;
    }

    /// Whether blocks of an extent of the range are being copied: it must not change meanwhile.
    pub(super) fn is_merging(&self, nsid: u32, range: BlockRange) -> bool {
        let copying = self.merge.copying.as_ref().filter(|c| c.nsid == nsid);
        copying.is_some_and(|c| {
            let first = c.extent * u64::from(EXTENT_BLOCKS);
            range.start().0 < first + u64::from(EXTENT_BLOCKS) && first < range.end().0
        })
    }

    pub(super) fn continue_merge(&mut self, out: &mut Outbox) {
        let busy = self.merge.unsettled || self.merge.copying.is_some();
        let full = self.journal.is_filling() || self.journal.has_backlog();
        if !self.merge.ready || busy || full || self.checkpoint.is_some() {
            return;
        }
        if !matches!(self.phase, Phase::Serving) {
            return;
        }
        self.merge.ready = false;
        let (mut freed, mut steps, mut blocked) = (Vec::new(), MERGE_STEPS_MAX, false);
        'all: for nsid in self.merge.slices.clone() {
            let slice = self.slices.get(&nsid);
            let Some(slice) = slice.filter(|s| !s.merging.leaves.is_empty()) else {
                self.merge.slices.remove(&nsid);
                continue;
            };
            if slice.merging.after.is_some() {
                continue;
            }
            for number in slice.merging.leaves.clone() {
                match self.merge_leaf(nsid, number, (&mut freed, &mut steps), out) {
                    Outcome::Done => {
                        let slice = self.slices.get_mut(&nsid).expect("just seen");
                        slice.merging.leaves.remove(&number);
                    }
                    Outcome::Blocked => blocked = true,
                    Outcome::Busy => {
                        self.merge.ready = true;
                        break 'all;
                    }
                }
            }
        }
        if steps < MERGE_STEPS_MAX {
            let ticket = self.journal.newest_pending().expect("steps were appended");
            self.reclaim.waiting += freed.len() as u64;
            self.counts.extents_freed += freed.len() as u64;
            self.merge.unsettled = true;
            self.wait_for(ticket, Waiter::Freed(freed));
            self.wait_for(ticket, Waiter::Merged);
        } else if blocked {
            self.flusher.want();
            self.start_flush_run(out);
        }
        self.start_journal_record(out);
    }

    pub(super) const fn on_merged(&mut self) {
        self.merge.unsettled = false;
        self.merge.ready = true;
    }

    /// Takes steps in a leaf.
    fn merge_leaf(
        &mut self,
        nsid: u32,
        number: u32,
        (freed, steps): (&mut Vec<u32>, &mut usize),
        out: &mut Outbox,
    ) -> Outcome {
        loop {
            let slice = &self.slices[&nsid];
            let leaf = &slice.leaves[&number];
            let Some((from, to)) = heirs(slice, leaf) else {
                self.tidy(nsid, number);
                return Outcome::Done;
            };
            let mut both = leaf.extents_of_both(from, to);
            let all = both.len();
            both.retain(|index| !slice.merging.failed.contains(&(number, *index)));
            if both.is_empty() && all > 0 {
                return Outcome::Done;
            }
            let mut outcome = Outcome::Done;
            for index in both.iter().copied() {
                if *steps == 0 {
                    return Outcome::Busy;
                }
                match self.merge_extent(nsid, (number, index), (from, to), freed, out) {
                    Outcome::Done => *steps -= 1,
                    Outcome::Blocked => outcome = Outcome::Blocked,
                    Outcome::Busy => return Outcome::Busy,
                }
            }
            if both.is_empty() {
                outcome = self.merge_rest(nsid, number, (from, to), steps);
            }
            if !matches!(outcome, Outcome::Done) {
                return outcome;
            }
        }
    }

    /// One extent of which both generations have a cell.
    fn merge_extent(
        &mut self,
        nsid: u32,
        (number, index): (u32, u16),
        (from, to): (u32, u32),
        freed: &mut Vec<u32>,
        out: &mut Outbox,
    ) -> Outcome {
        let extent = self.slices[&nsid].extent_number(number, index);
        if self.is_healing_extent(nsid, extent) {
            return Outcome::Blocked;
        }
        let slice = self.slices.get_mut(&nsid).expect("being merged");
        let leaf = slice.leaves.get_mut(&number).expect("being merged");
        let pinned = leaf.is_pinned((index, from)) || leaf.is_pinned((index, to));
        if pinned || self.flusher.is_pending(nsid, extent) {
            return Outcome::Blocked;
        }
        let (older, newer) = (leaf.get((index, from)), leaf.get((index, to)));
        let wanted = present_lanes(older.states) & !known_lanes(newer.states);
        if wanted != 0 && newer.physical.is_some() {
            self.start_copy(nsid, (number, index), (from, to), wanted, out);
            return Outcome::Busy;
        }
        for generation in [from, to] {
            self.pages.touch(leaf.page_of((index, generation)));
        }
        let named = leaf.merge(index, from, to);
        freed.extend(named.expect("nothing is left to be copied"));
        self.counts.cells_moved += 1;
        self.append_merge(nsid, (extent, 1), (from, to));
        Outcome::Done
    }

    /// No extent has both: the cells of one generation become the other's.
    fn merge_rest(
        &mut self,
        nsid: u32,
        number: u32,
        (from, to): (u32, u32),
        steps: &mut usize,
    ) -> Outcome {
        if *steps == 0 {
            return Outcome::Busy;
        }
        let slice = self.slices.get_mut(&nsid).expect("being merged");
        let first = slice.extent_number(number, 0);
        let leaf = slice.leaves.get_mut(&number).expect("being merged");
        let last = first + u64::from(leaf.extents()) - 1;
        let pages = leaf.cells_pages().count() + 1;
        let pinned = leaf.has_pins(from) || leaf.has_pins(to);
        if pinned || self.flusher.are_pending(nsid, first..=last) {
            return Outcome::Blocked;
        }
        if pages > self.pages.free_for_leaves() {
            return Outcome::Blocked;
        }
        *steps -= 1;
        let count = leaf.extents().into();
        self.counts.cells_moved += u64::from(leaf.layers()[&from].cells);
        self.move_cells(nsid, number, (from, to));
        self.append_merge(nsid, (first, count), (from, to));
        Outcome::Done
    }

    /// All cells of a generation in a leaf become another's; no extent has both.
    pub(super) fn move_cells(&mut self, nsid: u32, number: u32, (from, to): (u32, u32)) {
        let slice = self.slices.get_mut(&nsid).expect("has the leaf");
        let leaf = slice.leaves.get_mut(&number).expect("is there");
        if leaf.absorb(from, to) {
            leaf.pages().for_each(|page| self.pages.touch(page));
            return;
        }
        for index in leaf.extents_with(from) {
            self.make_room(nsid, number, (index, to));
            let slice = self.slices.get_mut(&nsid).expect("has the leaf");
            let leaf = slice.leaves.get_mut(&number).expect("is there");
            let cell = leaf.get((index, from));
            self.pages.touch(leaf.page_of((index, from)));
            leaf.set((index, to), cell);
            leaf.set((index, from), super::leaf::Cell::default());
            self.pages.touch(leaf.page_of((index, to)));
        }
    }

    fn append_merge(&mut self, nsid: u32, (extent, count): (u64, u32), (from, to): (u32, u32)) {
        self.journal.append(&Entry::Merged(MergeEntry {
            nsid,
            from,
            to,
            extent,
            count,
        }));
    }

    /// Gives cells pages back that are not needed any more.
    fn tidy(&mut self, nsid: u32, number: u32) {
        assert!(self.checkpoint.is_none(), "pages must not move under it");
        let slice = self.slices.get_mut(&nsid).expect("being merged");
        let leaf = slice.leaves.get_mut(&number).expect("being merged");
        for (free, grew) in leaf.join_pages() {
            self.pages.release(free);
            if let Some(page) = grew {
                self.pages.touch(page);
            }
        }
    }

    /// Copies blocks of an extent from the older cell to the newer, whose first writes they are.
    fn start_copy(
        &mut self,
        nsid: u32,
        (number, index): (u32, u16),
        (from, to): (u32, u32),
        wanted: u32,
        out: &mut Outbox,
    ) {
        let slice = self.slices.get_mut(&nsid).expect("being merged");
        let extent = slice.extent_number(number, index);
        let turn = slice.drain.enter();
        let leaf = slice.leaves.get_mut(&number).expect("being merged");
        let physical = |key| leaf.get(key).physical.expect("both have data");
        let geometry = &self.sb.geometry;
        let source = geometry.extent_offset(physical((index, from)));
        let target = geometry.extent_offset(physical((index, to)));
        leaf.pin((index, to));
        let blocks = (0..EXTENT_BLOCKS).filter(|b| wanted >> (2 * b) & 1 != 0);
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for block in blocks.clone() {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                Some(_) | None => runs.push((block, 1)),
            }
        }
        self.merge.copying = Some(Copying {
            nsid,
            turn,
            extent,
            write: FirstWrite {
                leaf: number,
                key: (index, to),
                mask: blocks.fold(0, |mask, block| mask | 1 << block),
            },
            ios: u32::try_from(runs.len()).expect("at most eight"),
            failed: false,
        });
        for (first, count) in runs {
            let turn = self.data.enter();
            let at = u64::from(first) * u64::from(BLOCK_BYTES);
            let (from, to) = (self.span(source + at, count), self.span(target + at, count));
            let since = self.begin_io(from, false);
            self.begin_io(to, true);
            let io = self.ios.start(IoKind::Copy {
                turn,
                from,
                to,
                since,
                began: self.failed.now(),
            });
            out.push(Effect::Copy {
                io,
                from_bytes: source + at,
                to_bytes: target + at,
                len_bytes: count * BLOCK_BYTES,
            });
        }
    }

    /// Blocks were copied, or not: they count only if they are what was written at their old place.
    pub(super) fn on_copy_io(
        &mut self,
        (from, to): (Span, Span),
        since: u64,
        result: Result<&[u32], i32>,
        out: &mut Outbox,
    ) {
        let Some(checksums) = &mut self.checksums else {
            return self.on_copied(result.is_ok(), out);
        };
        checksums.end_write(to, result.ok());
        match result {
            Ok(sums) if !matches!(self.phase, Phase::Poisoned(_)) => {
                let check = Check {
                    asker: Asker::Copy,
                    span: from,
                    since,
                };
                self.check(check, sums, out);
            }
            Ok(_) | Err(_) => {
                checksums.end(from);
                self.on_copied(false, out);
            }
        }
    }

    pub(super) fn on_copied(&mut self, good: bool, out: &mut Outbox) {
        let copying = self.merge.copying.as_mut().expect("it asked for the copy");
        copying.ios -= 1;
        copying.failed |= !good;
        if copying.ios > 0 {
            return;
        }
        let write = copying.write;
        let leaf = &self.slices[&copying.nsid].leaves[&write.leaf];
        let extent = leaf.get(write.key).physical.expect("pinned");
        match &mut self.checksums {
            // The region may be unmarked: its checksums have to be right before the map says so.
            Some(checksums) if !copying.failed => {
                checksums.start_batch([extent].into_iter(), false, Then::Copied);
            }
            Some(_) | None => self.settle_copy(out),
        }
    }

    /// What was copied is there, with its checksums, or it is not.
    pub(super) fn settle_copy(&mut self, out: &mut Outbox) {
        let done = self.merge.copying.take().expect("just copied");
        let (nsid, write) = (done.nsid, done.write);
        if self.config.volatile_cache {
            self.flusher.note_write();
        }
        self.settle(nsid, write, !done.failed);
        let slice = self.slices.get_mut(&nsid).expect("waits for the copy");
        if done.failed {
            slice.merging.failed.insert((write.leaf, write.key.0));
        }
        slice.drain.leave(done.turn);
        self.counts.cells_copied += u64::from(!done.failed);
        self.merge.ready = true;
        self.on_drained(nsid, out);
        self.retry_parked(out);
    }
}

impl Slice {
    /// Whether merging has anything left to do.
    #[cfg(test)]
    pub(super) fn is_merged(&self) -> bool {
        self.merging.leaves.is_empty()
    }
}

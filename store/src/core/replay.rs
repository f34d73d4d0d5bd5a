//! The journal read back: records in sequence from the tail; the first that is missing or damaged ends
//! the log, unless a later record proves that it was durable once. Then an acknowledged change is lost
//! and the store does not open.

use super::Core;
use super::format::entry::{Entry, ExtentChange, Merge};
use super::format::journal::{claimed_bytes, decode};
use super::format::page::{MARK_REGIONS, PAGE_SNAPSHOTS};
use super::format::{Corrupt, NO_EXTENT};
use super::generations::Change;
use super::journal::Tail;
use super::leaf::{CellKey, Leaf};
use super::pages::PageOf;
use super::slice::Slice;
use shardmap::units::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;

/// What the reader found.
pub(super) enum Next {
    Record {
        sequence: u64,
        entries: Vec<u8>,
    },
    /// Feed more, or it is over.
    More,
    /// Record `sequence` is damaged although record `proof` says that it was durable.
    Damaged {
        sequence: u64,
        proof: u64,
    },
}

/// Walks once around the ring, beginning at the tail.
#[derive(Debug)]
pub(super) struct JournalReader {
    ring_bytes: u64,
    tail: Tail,
    store: [u8; 16],
    /// Sequence of the record that comes next.
    expected: u64,
    /// Bytes from the tail to the first unread byte of `buffer`.
    at: u64,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were read.
    consumed: usize,
    /// Bytes from the tail to the first byte that is no record of the log.
    ended: Option<u64>,
}

impl JournalReader {
    pub(super) const fn new(ring_bytes: u64, tail: Tail, store: [u8; 16]) -> Self {
        let expected = tail.sequence;
        Self {
            ring_bytes,
            tail,
            store,
            expected,
            at: 0,
            buffer: Vec::new(),
            consumed: 0,
            ended: None,
        }
    }

    /// The next piece of the ring to read: offset and length.
    pub(super) fn wanted(&self, most: u32) -> Option<(u64, u32)> {
        let read = self.at + self.unread().len() as u64;
        let left = self.ring_bytes - read;
        let offset = (self.tail.offset + read) % self.ring_bytes;
        let len = left.min(self.ring_bytes - offset).min(most.into());
        (len > 0).then(|| (offset, u32::try_from(len).expect("at most `most`")))
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.consumed..]
    }

    fn skip(&mut self, len: usize) {
        self.consumed += len;
        self.at += len as u64;
    }

    pub(super) fn next_record(&mut self) -> Next {
        while self.unread().len() >= BLOCK {
            let claimed = claimed_bytes(self.unread(), self.store)
                .filter(|len| self.at + u64::from(*len) <= self.ring_bytes);
            let Some(len) = claimed else {
                self.ended.get_or_insert(self.at);
                self.skip(BLOCK);
                continue;
            };
            let len = len as usize;
            if self.unread().len() < len {
                return Next::More;
            }
            let Ok((head, entries)) = decode(&self.unread()[..len], self.store) else {
                self.ended.get_or_insert(self.at);
                self.skip(BLOCK);
                continue;
            };
            if self.ended.is_none() && head.sequence == self.expected {
                let entries = entries.to_vec();
                self.expected += 1;
                self.skip(len);
                return Next::Record {
                    sequence: head.sequence,
                    entries,
                };
            }
            self.ended.get_or_insert(self.at);
            if head.sequence > self.expected && head.proven >= self.expected {
                return Next::Damaged {
                    sequence: self.expected,
                    proof: head.sequence,
                };
            }
            self.skip(len);
        }
        Next::More
    }

    /// Where the next record will be written.
    pub(super) fn head(&self) -> Tail {
        let end = self.ended.unwrap_or(self.at);
        Tail {
            sequence: self.expected,
            offset: (self.tail.offset + end) % self.ring_bytes,
        }
    }
}

impl Core {
    pub(super) fn replay_entries(&mut self, mut bytes: &[u8]) -> Result<(), Corrupt> {
        while !bytes.is_empty() {
            self.replay(Entry::decode(&mut bytes)?)?;
        }
        Ok(())
    }

    fn replay(&mut self, entry: Entry) -> Result<(), Corrupt> {
        match entry {
            Entry::Slice { spec, incomplete } => {
                if let Some(slice) = self.slices.get_mut(&spec.nsid.0) {
                    slice.spec = spec;
                    self.pages.touch(slice.page);
                } else {
                    let page = self.pages.allocate(PageOf::Slice(spec.nsid.0));
                    let mut slice = Slice::new(spec, page.ok_or(Corrupt::Value)?, 0);
                    slice.incomplete = incomplete;
                    self.slices.insert(spec.nsid.0, slice);
                }
            }
            Entry::SliceRemoved(nsid) => {
                self.release_orphans(nsid.0);
                if let Some(slice) = self.slices.remove(&nsid.0) {
                    let leaves = slice.leaves.values();
                    leaves
                        .flat_map(Leaf::pages)
                        .for_each(|page| self.pages.release(page));
                    slice
                        .mark_pages
                        .values()
                        .for_each(|page| self.pages.release(*page));
                    self.pages.release(slice.page);
                }
            }
            Entry::Epoch(nsid, epoch) => {
                self.replay_slice(nsid.0, |slice| slice.epoch = epoch);
            }
            Entry::Stamp(nsid, stamp) => {
                self.replay_slice(nsid.0, |slice| slice.stamp = stamp);
            }
            Entry::Incomplete(nsid, incomplete) => {
                self.replay_slice(nsid.0, |slice| slice.incomplete = incomplete);
            }
            Entry::Extent(change) => self.replay_extent(&change)?,
            Entry::ZeroRun {
                nsid,
                generation,
                extent,
                count,
            } => {
                self.replay_zeroes((nsid.0, generation.0), extent, count)?;
            }
            Entry::GenerationBegun(nsid, generation) => {
                self.replay_change(nsid.0, Change::Begin(generation.0))?;
            }
            Entry::GenerationCompleted(nsid, generation) => {
                self.replay_change(nsid.0, Change::Complete(generation.0))?;
            }
            Entry::GenerationDropped(nsid, generation) => {
                self.replay_change(nsid.0, Change::Drop(generation.0))?;
            }
            Entry::Merged(merge) => self.replay_merge(&merge)?,
            Entry::Marked(nsid, _, runs) => {
                let regions = runs.iter().flat_map(|r| r.start..r.start + r.count);
                self.replay_marks(nsid.0, regions, true)?;
            }
            Entry::Unmarked(nsid, _, runs) => {
                let regions = runs.iter().flat_map(|r| r.start..r.start + r.count);
                self.replay_marks(nsid.0, regions, false)?;
            }
        }
        Ok(())
    }

    fn replay_zeroes(
        &mut self,
        (nsid, generation): (u32, u32),
        first: u64,
        count: u32,
    ) -> Result<(), Corrupt> {
        for extent in first..first.checked_add(count.into()).ok_or(Corrupt::Value)? {
            self.replay_extent(&ExtentChange {
                nsid,
                generation,
                extent,
                physical: NO_EXTENT,
                present: 0,
                zero: u16::MAX,
            })?;
        }
        Ok(())
    }

    /// Entries of a slice that is gone by now have no effect.
    fn replay_slice(&mut self, nsid: u32, change: impl FnOnce(&mut Slice)) {
        if let Some(slice) = self.slices.get_mut(&nsid) {
            change(slice);
            self.pages.touch(slice.page);
        }
    }

    fn replay_extent(&mut self, change: &ExtentChange) -> Result<(), Corrupt> {
        let Some(slice) = self.slices.get_mut(&change.nsid) else {
            return Ok(());
        };
        let (number, index) = slice.locate_extent(change.extent).ok_or(Corrupt::Value)?;
        let named = change.physical != NO_EXTENT;
        if named && change.physical >= self.sb.geometry.extents() {
            return Err(Corrupt::Value);
        }
        if !slice.leaves.contains_key(&number) {
            let page = self.pages.allocate(PageOf::Leaf(change.nsid, number));
            let page = page.ok_or(Corrupt::Value)?;
            let leaf = Leaf::new(page, slice.leaf_extents(), change.generation);
            slice.leaves.insert(number, leaf);
        }
        let key = (index, change.generation);
        self.replay_room(change.nsid, number, key)?;
        let slice = self.slices.get_mut(&change.nsid).expect("just seen");
        let leaf = slice.leaves.get_mut(&number).expect("just made");
        leaf.replay(key, change);
        self.pages.touch(leaf.page_of(key));
        Ok(())
    }

    fn replay_room(&mut self, nsid: u32, number: u32, key: CellKey) -> Result<(), Corrupt> {
        let full = !self.slices[&nsid].leaves[&number].has_room(key, 1);
        if full && self.pages.next_free().is_none() {
            return Err(Corrupt::Value);
        }
        self.make_room(nsid, number, key);
        Ok(())
    }

    fn replay_change(&mut self, nsid: u32, change: Change) -> Result<(), Corrupt> {
        self.replay_slice(nsid, |slice| slice.generations.apply(change));
        let slice = self.slices.get(&nsid);
        let snapshots = slice.map_or(0, |s| s.generations.snapshots().len());
        if snapshots <= PAGE_SNAPSHOTS {
            Ok(())
        } else {
            Err(Corrupt::Value)
        }
    }

    /// A step of a merge meets the very cells that it met when it was written.
    fn replay_merge(&mut self, merge: &Merge) -> Result<(), Corrupt> {
        let (nsid, from, to) = (merge.nsid, merge.from, merge.to);
        let Some(slice) = self.slices.get(&nsid) else {
            return Ok(());
        };
        let located = slice.locate_extent(merge.extent).ok_or(Corrupt::Value)?;
        let (number, first) = located;
        let extents = slice.leaf_extents();
        if merge.count == 0 || u32::from(first) + merge.count > extents || from >= to {
            return Err(Corrupt::Value);
        }
        let leaf = slice.leaves.get(&number).ok_or(Corrupt::Value)?;
        if merge.count == extents && leaf.extents_of_both(from, to).is_empty() {
            let pages = leaf.cells_pages().count() + 1;
            if self.pages.free() < pages {
                return Err(Corrupt::Value);
            }
            self.move_cells(nsid, number, (from, to));
            return Ok(());
        }
        let last = first + u16::try_from(merge.count - 1).expect("in the leaf");
        for index in first..=last {
            self.replay_room(nsid, number, (index, to))?;
            let slice = self.slices.get_mut(&nsid).expect("just seen");
            let leaf = slice.leaves.get_mut(&number).expect("just seen");
            leaf.merge(index, from, to).map_err(|()| Corrupt::Value)?;
            leaf.pages().for_each(|page| self.pages.touch(page));
        }
        Ok(())
    }

    fn replay_marks(
        &mut self,
        nsid: u32,
        regions: impl Iterator<Item = u32>,
        on: bool,
    ) -> Result<(), Corrupt> {
        let Some(slice) = self.slices.get_mut(&nsid) else {
            return Ok(());
        };
        let blocks_max = slice.spec.size_blocks;
        for region in regions {
            let first = u64::from(region) * u64::from(shardmap::units::REGION_BLOCKS);
            if first >= blocks_max {
                return Err(Corrupt::Value);
            }
            if on {
                slice.marks.insert(region);
            } else {
                slice.marks.remove(region);
            }
            let window = region / MARK_REGIONS;
            match slice.mark_pages.get(&window) {
                Some(page) => self.pages.touch(*page),
                None => {
                    let page = self.pages.allocate(PageOf::Marks(nsid, window));
                    slice.mark_pages.insert(window, page.ok_or(Corrupt::Value)?);
                }
            }
        }
        Ok(())
    }
}

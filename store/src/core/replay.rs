//! The journal read back: records in sequence from the tail; the first that is missing or damaged ends
//! the log, unless a later record proves that it was durable once. Then an acknowledged change is lost
//! and the store does not open.

use super::Core;
use super::format::entry::{Entry, ExtentChange};
use super::format::journal::{claimed_bytes, decode};
use super::format::page::MARK_REGIONS;
use super::format::{Corrupt, NO_EXTENT};
use super::journal::Tail;
use super::leaf::Leaf;
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
                if let Some(slice) = self.slices.remove(&nsid.0) {
                    slice
                        .leaves
                        .values()
                        .for_each(|l| self.pages.release(l.page));
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
                for extent in extent..extent.checked_add(count.into()).ok_or(Corrupt::Value)? {
                    self.replay_extent(&ExtentChange {
                        nsid: nsid.0,
                        generation: generation.0,
                        extent,
                        physical: NO_EXTENT,
                        present: 0,
                        zero: u16::MAX,
                    })?;
                }
            }
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
        if named && change.physical >= self.sb.geometry.extents {
            return Err(Corrupt::Value);
        }
        if !slice.leaves.contains_key(&number) {
            let page = self.pages.allocate(PageOf::Leaf(change.nsid, number));
            let leaf = Leaf::new(page.ok_or(Corrupt::Value)?, slice.leaf_extents());
            slice.leaves.insert(number, leaf);
        }
        let leaf = slice.leaves.get_mut(&number).expect("just made");
        leaf.replay(index, change);
        self.pages.touch(leaf.page);
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

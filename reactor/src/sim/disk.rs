//! A simulated backing: what reads see, what survives a power cut, and what goes wrong.

use super::prng::Prng;
use crate::driver::{FileFacts, FileKind};
use crate::error::Errno;
use crate::slab::Key;
use std::collections::BTreeMap;
use std::ops::Range;

/// Granule of storage, in bytes.
const PAGE_BYTES: usize = 4096;
/// What a device writes or does not write as one, in bytes, unless told otherwise: a write torn by
/// a power cut is torn between sectors.
pub const SECTOR_BYTES: usize = 512;

/// Sparse bytes; what was never written reads as zero.
#[derive(Clone, Default)]
struct Pages(BTreeMap<u64, Box<[u8]>>);

impl Pages {
    /// Calls `f(page, range in page, range in the whole)` for each page the range touches.
    fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let at = offset + done as u64;
            let page = at / PAGE_BYTES as u64;
            let start = usize::try_from(at % PAGE_BYTES as u64).expect("below a page");
            let count = (PAGE_BYTES - start).min(len - done);
            let piece = (page, start..start + count, done..done + count);
            done += count;
            Some(piece)
        })
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        for (page, inner, outer) in Self::pieces(offset, into.len()) {
            match self.0.get(&page) {
                Some(bytes) => into[outer].copy_from_slice(&bytes[inner]),
                None => into[outer].fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        for (page, inner, outer) in Self::pieces(offset, from.len()) {
            let bytes = self
                .0
                .entry(page)
                .or_insert_with(|| vec![0; PAGE_BYTES].into());
            bytes[inner].copy_from_slice(&from[outer]);
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let len = usize::try_from(len).expect("64-bit host");
        for (page, inner, _) in Self::pieces(offset, len) {
            if inner.len() == PAGE_BYTES {
                self.0.remove(&page);
            } else if let Some(bytes) = self.0.get_mut(&page) {
                bytes[inner].fill(0);
            }
        }
    }
}

/// What changed since the medium was last made durable.
enum Change {
    /// Bytes, and whether they were promised durable on completion.
    Write { bytes: Vec<u8>, durable: bool },
    /// So many zeroes.
    Zero { len_bytes: u64 },
}

struct Entry {
    sequence: u64,
    offset_bytes: u64,
    change: Change,
}

/// Which ops a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Reads that touch the range.
    Read,
    /// Writes and discards that touch the range.
    Write,
    /// Flushes, whatever the range.
    Flush,
}

/// An error that is waiting to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which ops.
    pub kind: FaultKind,
    /// Which bytes.
    pub range_bytes: Range<u64>,
    /// What they end with.
    pub errno: Errno,
    /// How many more ops it strikes.
    pub times: u32,
}

/// A page that a write left torn when it failed.
struct Tear {
    offset_bytes: u64,
    /// What reads saw before, and what would have survived a power cut.
    before: [Vec<u8>; 2],
}

/// One backing of a node. It outlives the node's processes.
pub struct Disk {
    kind: FileKind,
    size_bytes: u64,
    /// Completed writes may be lost without a flush.
    volatile_cache: bool,
    sector_bytes: usize,
    /// A write that fails may leave parts of it.
    tears_failed_writes: bool,
    tears: Vec<Tear>,
    now: Pages,
    durable: Pages,
    log: Vec<Entry>,
    next_sequence: u64,
    faults: Vec<Fault>,
    /// Ops do not come back until this ends.
    pub(super) stuck: bool,
    /// What waits for that: life of the node, and the op.
    pub(super) waiting: Vec<(u32, Key)>,
    /// How long an op takes, if not as long as usual.
    pub(super) delay_ns: Option<(u64, u64)>,
    /// One op in so many takes that long instead, and later ones pass it.
    pub(super) laggards: Option<(u64, (u64, u64))>,
    /// Every write takes that long instead, and other ops pass it.
    pub(super) slow_writes_ns: Option<(u64, u64)>,
    /// Who has it exclusively.
    pub(super) locked: bool,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("kind", &self.kind)
            .field("size_bytes", &self.size_bytes)
            .field("unflushed", &self.log.len())
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// An empty disk.
    pub fn new(kind: FileKind, size_bytes: u64, volatile_cache: bool) -> Self {
        Self {
            kind,
            size_bytes,
            volatile_cache,
            sector_bytes: SECTOR_BYTES,
            tears_failed_writes: false,
            tears: Vec::new(),
            now: Pages::default(),
            durable: Pages::default(),
            log: Vec::new(),
            next_sequence: 1,
            faults: Vec::new(),
            stuck: false,
            waiting: Vec::new(),
            delay_ns: None,
            laggards: None,
            slow_writes_ns: None,
            locked: false,
        }
    }

    pub(super) fn facts(&self, direct: bool) -> FileFacts {
        FileFacts {
            kind: self.kind,
            size_bytes: self.size_bytes,
            volatile_cache: self.volatile_cache,
            can_discard: true,
            direct,
        }
    }

    /// How large it is, in bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whoever runs the machine makes it larger, durably.
    pub fn enlarge(&mut self, size_bytes: u64) {
        assert!(size_bytes >= self.size_bytes);
        self.size_bytes = size_bytes;
    }

    /// What the device writes or does not write as one, in bytes.
    pub fn set_sector_bytes(&mut self, sector_bytes: usize) {
        assert!(sector_bytes > 0);
        self.sector_bytes = sector_bytes;
    }

    /// From now on a write that fails may leave parts of it, torn at any sector of 512 bytes.
    pub fn tear_failed_writes(&mut self) {
        self.tears_failed_writes = true;
    }

    /// Writes at once, durably, without faults: how a disk gets its content before it is used.
    pub fn imprint(&mut self, offset_bytes: u64, bytes: &[u8]) {
        assert!(offset_bytes + bytes.len() as u64 <= self.size_bytes);
        self.mend(offset_bytes, bytes.len() as u64);
        self.now.write(offset_bytes, bytes);
        self.durable.write(offset_bytes, bytes);
    }

    /// Forgets the errors that have not happened yet.
    pub fn forgive(&mut self) {
        self.faults.clear();
    }

    /// Whether an error of this kind is to happen.
    pub fn is_to_fail(&self, kind: FaultKind) -> bool {
        self.faults.iter().any(|f| f.kind == kind && f.times > 0)
    }

    /// Makes an error happen later.
    pub fn inject(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Flips one bit of a stored byte: rot that no one is told about.
    pub fn rot(&mut self, offset_bytes: u64) {
        for pages in [&mut self.now, &mut self.durable] {
            let mut byte = [0];
            pages.read(offset_bytes, &mut byte);
            pages.write(offset_bytes, &[byte[0] ^ 0x10]);
        }
    }

    /// What a read would give now, whatever faults wait.
    pub fn peek(&self, offset_bytes: u64, into: &mut [u8]) {
        self.now.read(offset_bytes, into);
    }

    /// What a read would give after a power cut that lost all it may lose.
    pub fn peek_durable(&self, offset_bytes: u64, into: &mut [u8]) {
        self.durable.read(offset_bytes, into);
    }

    /// Writes whose durability nobody has asked for yet.
    pub fn unflushed_count(&self) -> usize {
        self.log.len()
    }

    fn strike(&mut self, kind: FaultKind, offset: u64, len: u64) -> Result<(), Errno> {
        let hit = self.faults.iter_mut().find(|fault| {
            let range = &fault.range_bytes;
            let touched = offset < range.end && range.start < offset + len.max(1);
            fault.kind == kind && fault.times > 0 && (touched || kind == FaultKind::Flush)
        });
        match hit {
            None => Ok(()),
            Some(fault) => {
                fault.times -= 1;
                Err(fault.errno)
            }
        }
    }

    /// Reads; fewer bytes at the end of the disk.
    pub(super) fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<u32, Errno> {
        self.strike(FaultKind::Read, offset, into.len() as u64)?;
        let left = self.size_bytes.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        self.now.read(offset, &mut into[..count]);
        Ok(u32::try_from(count).expect("windows are smaller than 4 GiB"))
    }

    pub(super) fn write(
        &mut self,
        offset: u64,
        from: &[u8],
        durable: bool,
        prng: &mut Prng,
    ) -> Result<(), Errno> {
        let struck = self.strike(FaultKind::Write, offset, from.len() as u64);
        if struck.is_err() && self.tears_failed_writes && prng.chance(2, 3) {
            self.tear(offset, from, prng);
        }
        struck?;
        if offset + from.len() as u64 > self.size_bytes {
            if self.kind == FileKind::BlockDevice {
                return Err(Errno::NO_SPACE);
            }
            self.size_bytes = offset + from.len() as u64;
        }
        self.put(offset, from, durable);
        Ok(())
    }

    /// Some sectors of a write that fails are written all the same, durably.
    fn tear(&mut self, offset: u64, from: &[u8], prng: &mut Prng) {
        for (page, at) in from.chunks(PAGE_BYTES).zip((offset..).step_by(PAGE_BYTES)) {
            let content = |pages: &Pages| {
                let mut bytes = vec![0; page.len()];
                pages.read(at, &mut bytes);
                bytes
            };
            let before = [content(&self.now), content(&self.durable)];
            for (sector, at) in page.chunks(SECTOR_BYTES).zip((at..).step_by(SECTOR_BYTES)) {
                if prng.chance(1, 2) {
                    self.now.write(at, sector);
                    self.durable.write(at, sector);
                }
            }
            self.tears.push(Tear {
                offset_bytes: at,
                before,
            });
        }
    }

    /// Whether a failed write has left this page torn, and nothing was written there since.
    pub fn is_torn(&self, offset_bytes: u64) -> bool {
        self.tears.iter().any(|t| t.offset_bytes == offset_bytes)
    }

    /// What failed writes have left turns out not to have landed, except in pages to `keep` (by offset
    /// in bytes), and where something else was written since.
    pub fn untear(&mut self, mut keep: impl FnMut(u64) -> bool) {
        while let Some(tear) = self.tears.pop() {
            if !keep(tear.offset_bytes) {
                let [now, durable] = &tear.before;
                self.now.write(tear.offset_bytes, now);
                self.durable.write(tear.offset_bytes, durable);
            }
        }
    }

    /// Something else is written there, even if it is the same.
    fn mend(&mut self, offset: u64, len: u64) {
        let apart = |t: &Tear| {
            let end = t.offset_bytes + t.before[0].len() as u64;
            end <= offset || offset + len <= t.offset_bytes
        };
        self.tears.retain(apart);
    }

    /// Writes without faults or limits.
    fn put(&mut self, offset: u64, from: &[u8], durable: bool) {
        self.mend(offset, from.len() as u64);
        self.now.write(offset, from);
        if durable || !self.volatile_cache {
            self.durable.write(offset, from);
        }
        // A durable write is logged too, behind older volatile ones that it overlaps: replaying the
        // log in order must not bring the older bytes back.
        if self.volatile_cache {
            self.log(
                offset,
                Change::Write {
                    bytes: from.to_vec(),
                    durable,
                },
            );
        }
    }

    fn log(&mut self, offset_bytes: u64, change: Change) {
        self.log.push(Entry {
            sequence: self.next_sequence,
            offset_bytes,
            change,
        });
        self.next_sequence += 1;
    }

    /// Zeroes the range or leaves it: what a discarded range holds is nobody's business.
    pub(super) fn discard(&mut self, at: u64, len: u64, prng: &mut Prng) -> Result<(), Errno> {
        self.strike(FaultKind::Write, at, len)?;
        let end = at
            .checked_add(len)
            .filter(|end| *end <= self.size_bytes)
            .ok_or(Errno::IO)?;
        if self.kind == FileKind::BlockDevice && prng.chance(1, 2) {
            return Ok(());
        }
        self.mend(at, len);
        self.now.zero(at, end - at);
        if self.volatile_cache {
            self.log(at, Change::Zero { len_bytes: len });
        } else {
            self.durable.zero(at, len);
        }
        Ok(())
    }

    /// Remembers which changes a flush submitted now must cover.
    pub(super) fn flush_mark(&self) -> u64 {
        self.next_sequence
    }

    /// Makes durable what was complete at the mark, and no more.
    pub(super) fn flush(&mut self, mark: u64) -> Result<(), Errno> {
        self.strike(FaultKind::Flush, 0, 0)?;
        let covered = self.log.partition_point(|entry| entry.sequence < mark);
        for entry in self.log.drain(..covered) {
            match entry.change {
                Change::Write { bytes, .. } => self.durable.write(entry.offset_bytes, &bytes),
                Change::Zero { len_bytes } => self.durable.zero(entry.offset_bytes, len_bytes),
            }
        }
        Ok(())
    }

    /// A write that was on its way when its process died: it arrives whole or not at all.
    pub(super) fn write_of_the_dead(&mut self, at: u64, from: &[u8], prng: &mut Prng) {
        if prng.chance(1, 2) && at + from.len() as u64 <= self.size_bytes {
            self.put(at, from, false);
        }
    }

    /// The power goes: each change not yet made durable is kept, lost or torn between sectors.
    pub(super) fn power_cut(&mut self, prng: &mut Prng) {
        for entry in std::mem::take(&mut self.log) {
            let luck = prng.below(4);
            match entry.change {
                Change::Write { bytes, durable } if durable || luck == 0 => {
                    self.durable.write(entry.offset_bytes, &bytes);
                }
                Change::Write { bytes, .. } if luck == 1 => {
                    for (sector, index) in bytes.chunks(self.sector_bytes).zip(0u64..) {
                        if prng.chance(1, 2) {
                            let at = entry.offset_bytes + index * self.sector_bytes as u64;
                            self.durable.write(at, sector);
                        }
                    }
                }
                Change::Zero { len_bytes } if luck == 0 => {
                    self.durable.zero(entry.offset_bytes, len_bytes);
                }
                Change::Write { .. } | Change::Zero { .. } => {}
            }
        }
        self.now = self.durable.clone();
        self.locked = false;
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn disk() -> Disk {
        Disk::new(FileKind::BlockDevice, 1 << 20, true)
    }

    fn at(disk: &Disk, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        disk.peek(offset, &mut bytes);
        bytes
    }

    #[test]
    fn bytes_cross_pages_and_unwritten_ones_are_zero() {
        let mut disk = disk();
        let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        disk.write(100, &bytes, false, &mut Prng::new(1)).unwrap();
        assert_eq!(at(&disk, 100, 10_000), bytes);
        assert_eq!(at(&disk, 0, 100), [0; 100]);
        assert_eq!(at(&disk, 10_100, 50), [0; 50]);
    }

    #[test]
    fn what_was_flushed_survives_every_power_cut() {
        for seed in 0..50 {
            let mut prng = Prng::new(seed);
            let mut disk = disk();
            disk.write(0, &[1; 8192], false, &mut Prng::new(1)).unwrap();
            let mark = disk.flush_mark();
            disk.write(8192, &[2; 4096], false, &mut Prng::new(1))
                .unwrap();
            disk.flush(mark).unwrap();
            assert_eq!(disk.unflushed_count(), 1);
            disk.power_cut(&mut prng);
            assert_eq!(at(&disk, 0, 8192), [1; 8192]);
            assert!(
                at(&disk, 8192, 4096)
                    .chunks(512)
                    .all(|s| s == [2; 512] || s == [0; 512])
            );
        }
    }

    #[test]
    fn what_was_not_flushed_is_sometimes_kept_lost_or_torn() {
        let mut outcomes = [0u32; 3];
        for seed in 0..200 {
            let mut disk = disk();
            disk.write(0, &[1; 4096], false, &mut Prng::new(1)).unwrap();
            disk.power_cut(&mut Prng::new(seed));
            let sum: u32 = at(&disk, 0, 4096).iter().map(|b| u32::from(*b)).sum();
            outcomes[match sum {
                0 => 0,
                4096 => 1,
                _ => 2,
            }] += 1;
        }
        assert!(outcomes.iter().all(|n| *n > 10), "{outcomes:?}");
    }

    #[test]
    fn a_durable_write_wins_over_older_volatile_ones() {
        for seed in 0..50 {
            let mut disk = disk();
            disk.write(0, &[1; 4096], false, &mut Prng::new(1)).unwrap();
            disk.write(0, &[2; 4096], true, &mut Prng::new(1)).unwrap();
            if seed % 2 == 0 {
                disk.flush(disk.flush_mark()).unwrap();
            }
            disk.power_cut(&mut Prng::new(seed));
            assert_eq!(at(&disk, 0, 4096), [2; 4096], "seed {seed}");
        }
    }

    #[test]
    fn faults_strike_their_range_their_kind_and_so_often() {
        let mut disk = disk();
        let fault = |kind| Fault {
            kind,
            range_bytes: 4096..8192,
            errno: Errno::IO,
            times: 1,
        };
        disk.inject(fault(FaultKind::Read));
        disk.inject(fault(FaultKind::Flush));
        let mut into = [0; 4096];
        assert_eq!(disk.read(0, &mut into), Ok(4096));
        assert_eq!(disk.write(4096, &into, false, &mut Prng::new(1)), Ok(()));
        assert_eq!(disk.read(8192, &mut into), Ok(4096));
        assert_eq!(disk.read(7000, &mut into), Err(Errno::IO));
        assert_eq!(disk.read(7000, &mut into), Ok(4096));
        assert_eq!(disk.flush(disk.flush_mark()), Err(Errno::IO));
        assert_eq!(disk.flush(disk.flush_mark()), Ok(()));
    }

    #[test]
    fn a_device_has_an_end() {
        let mut disk = disk();
        assert_eq!(
            disk.write((1 << 20) - 512, &[1; 1024], false, &mut Prng::new(1)),
            Err(Errno::NO_SPACE)
        );
        assert_eq!(disk.read((1 << 20) - 512, &mut [0; 1024]), Ok(512));
        assert_eq!(disk.read(1 << 21, &mut [0; 1024]), Ok(0));
        assert_eq!(
            disk.discard(1 << 19, 1 << 20, &mut Prng::new(0)),
            Err(Errno::IO)
        );
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_or_parts_of_it_if_told_so() {
        let fault = Fault {
            kind: FaultKind::Write,
            range_bytes: 0..8192,
            errno: Errno::IO,
            times: 1,
        };
        let mut torn = 0;
        for seed in 0..40 {
            let mut disk = disk();
            if seed >= 20 {
                disk.tear_failed_writes();
            }
            disk.inject(fault.clone());
            let failed = disk.write(0, &[1; 8192], false, &mut Prng::new(seed));
            assert_eq!(failed, Err(Errno::IO));
            let left = at(&disk, 0, 8192);
            assert!(seed >= 20 || left == [0; 8192]);
            torn += u32::from(left != [0; 8192] && left != [1; 8192]);
            assert!(disk.is_torn(0) || left == [0; 8192]);
            disk.untear(|offset| offset == 4096);
            assert_eq!(at(&disk, 0, 4096), [0; 4096]);
            assert_eq!(at(&disk, 4096, 4096), left[4096..]);
        }
        assert!((8..20).contains(&torn), "{torn}");
    }
}

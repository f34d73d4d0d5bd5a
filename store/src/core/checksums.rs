//! The checksums of blocks: which are known, which are being changed by writes in flight, and which of
//! the changes are on the medium (ADR 0009).
//!
//! What is promised, and what it rests on:
//! - *On the medium*, the checksum of a present block of an unmarked region is its content's, or unknown.
//!   Checksums of marked regions may be anything: after an unclean stop they are doubtful, and forgotten.
//!   So all that has changed in a region is durable before its mark goes ([`Batch`]).
//! - *In memory*, a checksum is the content's as it was written by the last write to the block that did
//!   not fail, or unknown if writes met. What a failed one left is in question ([`super::failed`]). A read
//!   is judged only if no write to the block was in flight meanwhile.

use super::format::checksums::{CHECKSUM_EXTENTS, CHECKSUMS, Checksums as Values, UNKNOWN, encode};
use super::io::CommandId;
use crate::limits::{CHECKSUM_READ_TRIES_MAX, CHECKSUM_READS_MAX, CHECKSUM_WRITES_MAX};
use roaring::RoaringBitmap;
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{EXTENT_BLOCKS, Lba};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Blocks of the data area that one device operation reads or writes; all in one checksum block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Number of the first in the data area.
    pub(super) first: u64,
    pub(super) blocks: u32,
}

impl Span {
    /// Their checksum block.
    pub(super) fn home(self) -> u32 {
        u32::try_from(self.first / CHECKSUMS as u64).expect("fewer than extents")
    }

    /// The blocks one by one: number within the span, extent, block of the extent, place in their
    /// checksum block.
    fn each(self) -> impl Iterator<Item = (usize, u32, usize, usize)> {
        (0..self.blocks as usize).map(move |nth| {
            let block = self.first + nth as u64;
            let extent = u32::try_from(block / u64::from(EXTENT_BLOCKS)).expect("an extent");
            let rest = |unit: u64| usize::try_from(block % unit).expect("below the unit");
            let (within, place) = (rest(EXTENT_BLOCKS.into()), rest(CHECKSUMS as u64));
            (nth, extent, within, place)
        })
    }

    fn extents(self) -> std::ops::RangeInclusive<u32> {
        let extent = |block| u32::try_from(block / u64::from(EXTENT_BLOCKS)).expect("an extent");
        extent(self.first)..=extent(self.first + u64::from(self.blocks) - 1)
    }
}

/// Checksums of blocks as they were read, in order, kept until those that were written are in memory.
pub(super) type Sums = SmallVec<[u32; 32]>;

/// Blocks that were read, to be compared with what was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    pub(super) asker: Asker,
    pub(super) span: Span,
    /// Value of the clock when the read began.
    pub(super) since: u64,
}

/// Who waits for a check.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// A read that begins at this block.
    Command {
        id: CommandId,
        lba: Lba,
        learn: bool,
    },
    /// The copy of a merge.
    Copy,
}

/// What a check found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Blocks that are as they were written.
    pub(super) good: u32,
    /// Blocks whose checksum is not known, or not to be compared with.
    pub(super) unknown: u32,
    /// Blocks that are not as they were written, and the first of them.
    pub(super) bad: u32,
    /// Of those: blocks whose last write failed.
    pub(super) failed: u32,
    pub(super) first_bad: Option<(u32, [u32; 2])>,
    /// All of them: a bit per block of the span.
    pub(super) bad_blocks: u32,
}

impl Verdict {
    /// The block of that number is not as it was written.
    pub(super) fn find(&mut self, nth: usize, sums: [u32; 2]) {
        self.bad += 1;
        let nth = u32::try_from(nth).expect("blocks of a read");
        self.bad_blocks |= 1 << nth;
        self.first_bad.get_or_insert((nth, sums));
    }
}

/// A checksum block in memory.
#[derive(Debug)]
struct Resident {
    values: Box<Values>,
    /// Counts changes over all checksum blocks; what has the same number is the same.
    version: u64,
    /// The version on the medium, maybe in its cache.
    written: u64,
    writing: Option<u64>,
    /// Device operations that will need it.
    pins: u32,
    /// Since the hand last passed.
    used: bool,
}

impl Resident {
    const fn is_clean(&self) -> bool {
        self.version == self.written
    }
}

/// A checksum block on its way into memory.
#[derive(Debug, Default)]
struct Loading {
    pins: u32,
    /// Reads of it that have failed.
    failures: u32,
    /// What writes have changed meanwhile, in order.
    changes: Vec<(usize, u32)>,
    checks: Vec<(Check, Sums)>,
}

/// What is in flight at an extent.
#[derive(Debug, Default)]
struct Busy {
    ios: u32,
    /// Writes in flight, by block.
    writing: [u16; 16],
    /// Blocks at which writes have met: nobody knows which was the last.
    met: u16,
    /// When the last write ended, by block.
    ended: [u64; 16],
}

/// What happens when a batch is on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Regions may be unmarked.
    Unmark(CommandId),
    /// What a merge has copied may be named.
    Copied,
    /// The store may stop.
    Stop,
    /// Blocks of a failed write may be listed.
    List(CommandId),
}

/// Checksum blocks that must be on the medium before something happens.
#[derive(Debug)]
struct Batch {
    /// Those that are not yet, and from which version on they are.
    left: BTreeMap<u32, u64>,
    /// Durably: how many writes a flush must have covered.
    flush: Option<u64>,
    then: Then,
}

/// All checksums of a store.
#[derive(Debug)]
pub(super) struct Checksums {
    /// Most checksum blocks in memory.
    limit: usize,
    resident: BTreeMap<u32, Resident>,
    loading: BTreeMap<u32, Loading>,
    /// To be read.
    queue: VecDeque<u32>,
    reads: usize,
    /// To be written.
    wanted: BTreeSet<u32>,
    writes: usize,
    /// Where the search for one to forget goes on.
    hand: u32,
    /// Writes of checksum blocks that have completed, and how many of them a flush has covered.
    completed: u64,
    flushed: u64,
    /// The flush in flight covers so many.
    flushing: Option<u64>,
    batches: Vec<Batch>,
    /// Extents whose checksums on the medium may be of another content. Forgotten when they are loaded.
    doubtful: RoaringBitmap,
    /// Blocks of doubtful extents of which it is to be believed.
    spared: BTreeMap<u32, u16>,
    busy: BTreeMap<u32, Busy>,
    /// Counts ends of writes and changes of checksum blocks.
    clock: u64,
}

impl Checksums {
    /// Nothing in memory, and never more than `limit` checksum blocks beside those that are in use.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            resident: BTreeMap::new(),
            loading: BTreeMap::new(),
            queue: VecDeque::new(),
            reads: 0,
            wanted: BTreeSet::new(),
            writes: 0,
            hand: 0,
            completed: 0,
            flushed: 0,
            flushing: None,
            batches: Vec::new(),
            doubtful: RoaringBitmap::new(),
            spared: BTreeMap::new(),
            busy: BTreeMap::new(),
            clock: 0,
        }
    }

    pub(super) const fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// What the medium says of these blocks of extents is to be believed all the same.
    pub(super) fn spare(&mut self, blocks: BTreeMap<u32, u16>) {
        self.spared = blocks;
    }

    /// What the medium says of the extent's blocks is not to be believed.
    pub(super) fn doubt(&mut self, extent: u32) {
        self.doubtful.insert(extent);
    }

    pub(super) fn is_doubtful(&self, extent: u32) -> bool {
        self.doubtful.contains(extent)
    }

    pub(super) fn has_doubts(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// A device operation begins. Answers the time.
    pub(super) fn begin(&mut self, span: Span, writes: bool) -> u64 {
        for extent in span.extents() {
            self.busy.entry(extent).or_default().ios += 1;
        }
        for (_, extent, within, _) in span.each().filter(|_| writes) {
            let busy = self.busy.get_mut(&extent).expect("just entered");
            busy.writing[within] += 1;
            if busy.writing[within] > 1 {
                busy.met |= 1 << within;
            }
        }
        self.pin(span.home());
        self.clock
    }

    fn pin(&mut self, home: u32) {
        if let Some(resident) = self.resident.get_mut(&home) {
            resident.pins += 1;
            resident.used = true;
        } else {
            self.load(home).pins += 1;
        }
    }

    fn load(&mut self, home: u32) -> &mut Loading {
        self.loading.entry(home).or_insert_with(|| {
            self.queue.push_back(home);
            Loading::default()
        })
    }

    /// A device operation is over: nothing will be compared with it any more.
    pub(super) fn end(&mut self, span: Span) {
        for extent in span.extents() {
            let busy = self.busy.get_mut(&extent).expect("began before");
            busy.ios -= 1;
            if busy.ios == 0 {
                self.busy.remove(&extent);
            }
        }
        let home = span.home();
        let pins = match self.resident.get_mut(&home) {
            Some(resident) => &mut resident.pins,
            None => &mut self.loading.get_mut(&home).expect("pinned").pins,
        };
        *pins -= 1;
    }

    /// A write ended, or failed: then what was known stays, to tell whether that is still there.
    pub(super) fn end_write(&mut self, span: Span, sums: Option<&[u32]>) {
        self.clock += 1;
        let home = span.home();
        for (nth, extent, within, place) in span.each() {
            let busy = self.busy.get_mut(&extent).expect("began before");
            busy.writing[within] -= 1;
            busy.ended[within] = self.clock;
            let met = busy.met >> within & 1 == 1;
            if busy.writing[within] == 0 {
                busy.met &= !(1 << within);
            }
            let value = match sums {
                Some(sums) if !met => sums[nth],
                None if !met && stands(Mechanism::FailedList) => continue,
                Some(_) | None => UNKNOWN,
            };
            match self.resident.get_mut(&home) {
                Some(resident) => resident.values[place] = value,
                None => {
                    let loading = self.loading.get_mut(&home).expect("pinned");
                    loading.changes.push((place, value));
                }
            }
        }
        if let Some(resident) = self.resident.get_mut(&home) {
            resident.version = self.clock;
        }
        self.end(span);
    }

    /// What is known of the first block of a span, if it is in memory.
    pub(super) fn known(&self, span: Span) -> Option<u32> {
        let resident = self.resident.get(&span.home())?;
        let (.., place) = span.each().next()?;
        Some(resident.values[place]).filter(|value| *value != UNKNOWN)
    }

    /// For the canary [`HealCompare`](shardmap::canary::Mechanism::HealCompare): what is not so.
    pub(super) fn believe(&mut self, span: Span, sum: u32) {
        self.clock += 1;
        let resident = self.resident.get_mut(&span.home());
        let resident = resident.expect("just judged");
        for (.., place) in span.each() {
            resident.values[place] = sum;
        }
        resident.version = self.clock;
    }

    /// Whether the span can be judged now; otherwise [`wait`](Self::wait).
    pub(super) fn is_resident(&self, span: Span) -> bool {
        self.resident.contains_key(&span.home())
    }

    pub(super) fn wait(&mut self, check: Check, sums: &[u32]) {
        let loading = self.loading.get_mut(&check.span.home());
        let waiting = (check, Sums::from_slice(sums));
        loading.expect("pinned").checks.push(waiting);
    }

    /// What waits for checksums does so no longer.
    pub(super) fn give_up(&mut self) -> Vec<Check> {
        let all = self.loading.values_mut();
        let waiting = all.flat_map(|l| std::mem::take(&mut l.checks));
        let checks: Vec<Check> = waiting.map(|(check, _)| check).collect();
        checks.iter().for_each(|check| self.end(check.span));
        checks
    }

    /// Compares what was read with what is known. `learn`: what is not known is from now on. `failed`:
    /// blocks (a bit each) that are bad if they are not known to be good.
    pub(super) fn judge(
        &mut self,
        check: Check,
        sums: &[u32],
        (learn, failed): (bool, u32),
    ) -> Verdict {
        let resident = self.resident.get_mut(&check.span.home());
        let resident = resident.expect("pinned and loaded");
        let mut verdict = Verdict::default();
        for (nth, extent, within, place) in check.span.each() {
            let busy = &self.busy[&extent];
            let (known, read) = (resident.values[place], sums[nth]);
            assert_ne!(read, UNKNOWN, "no block has it");
            let beside = busy.writing[within] > 0 || busy.ended[within] > check.since;
            if failed >> nth & 1 == 1 && (beside || known != read) {
                verdict.failed += 1;
                verdict.find(nth, [UNKNOWN, read]);
            } else if beside {
                verdict.unknown += 1;
            } else if known == UNKNOWN {
                verdict.unknown += 1;
                if learn {
                    self.clock += 1;
                    resident.values[place] = read;
                    resident.version = self.clock;
                }
            } else if known == read {
                verdict.good += 1;
            } else {
                verdict.find(nth, [known, read]);
            }
        }
        verdict
    }

    /// The next checksum block to read, if one is wanted and there is room for it.
    pub(super) fn next_read(&mut self) -> Option<u32> {
        if self.reads >= CHECKSUM_READS_MAX || self.queue.is_empty() {
            return None;
        }
        if self.resident.len() + self.reads >= self.limit && !self.forget_one() {
            return None;
        }
        self.reads += 1;
        self.queue.pop_front()
    }

    /// Forgets a checksum block that nobody used for a while. If all are in use or not written yet, some
    /// of the latter are written: there is something to wait for in either case.
    fn forget_one(&mut self) -> bool {
        for _ in 0..2 * self.resident.len() {
            let next = self.resident.range_mut(self.hand..).next();
            let Some((home, resident)) = next else {
                self.hand = 0;
                continue;
            };
            let home = *home;
            self.hand = home + 1;
            if resident.pins > 0 || resident.writing.is_some() {
                continue;
            }
            if std::mem::take(&mut resident.used) {
                continue;
            }
            if resident.is_clean() {
                self.resident.remove(&home);
                return true;
            }
            if self.wanted.len() >= 2 * CHECKSUM_WRITES_MAX {
                break;
            }
            self.wanted.insert(home);
        }
        false
    }

    /// A checksum block could not be read. Answers whether it will be tried again: an error that goes
    /// away must not leave 4 MiB of data unverified.
    pub(super) fn read_again(&mut self, home: u32) -> bool {
        let loading = self.loading.get_mut(&home).expect("being read");
        loading.failures += 1;
        let again = loading.failures < CHECKSUM_READ_TRIES_MAX;
        if again {
            self.reads -= 1;
            self.queue.push_front(home);
        }
        again
    }

    /// A checksum block was read; `None`: it says nothing. Answers whose checks can be made now.
    pub(super) fn on_read(&mut self, home: u32, values: Option<Box<Values>>) -> Vec<(Check, Sums)> {
        self.reads -= 1;
        let Some(loading) = self.loading.remove(&home) else {
            return Vec::new();
        };
        let mut values = values.unwrap_or_else(|| Box::new([UNKNOWN; CHECKSUMS]));
        let mut changed = false;
        let first = home * CHECKSUM_EXTENTS;
        for nth in 0..CHECKSUM_EXTENTS {
            if self.doubtful.remove(first + nth) {
                let spared = self.spared.get(&(first + nth)).copied().unwrap_or(0);
                let at = (nth * EXTENT_BLOCKS) as usize;
                let all = values[at..at + EXTENT_BLOCKS as usize].iter_mut();
                for (value, _) in all.zip(0..).filter(|(_, block)| spared >> block & 1 == 0) {
                    *value = UNKNOWN;
                }
                changed = true;
            }
        }
        for (place, value) in loading.changes {
            values[place] = value;
            changed = true;
        }
        if changed {
            self.clock += 1;
        }
        let resident = Resident {
            values,
            version: if changed { self.clock } else { 0 },
            written: 0,
            writing: None,
            pins: loading.pins,
            used: true,
        };
        self.resident.insert(home, resident);
        for batch in &mut self.batches {
            if !changed {
                batch.left.remove(&home);
            } else if batch.left.contains_key(&home) {
                self.wanted.insert(home);
            }
        }
        loading.checks
    }

    /// The next checksum block to write.
    pub(super) fn next_write(&mut self, store: [u8; 16]) -> Option<(u32, Vec<u8>)> {
        if self.writes >= CHECKSUM_WRITES_MAX {
            return None;
        }
        loop {
            let all = &self.resident;
            let idle = |home: &&u32| all.get(home).is_none_or(|r| r.writing.is_none());
            let home = self.wanted.iter().find(idle).copied()?;
            self.wanted.remove(&home);
            let found = self.resident.get_mut(&home).filter(|r| !r.is_clean());
            if let Some(resident) = found {
                resident.writing = Some(resident.version);
                self.writes += 1;
                return Some((home, encode(store, home, &resident.values)));
            }
        }
    }

    pub(super) fn on_written(&mut self, home: u32) {
        self.writes -= 1;
        self.completed += 1;
        let resident = self.resident.get_mut(&home).expect("not while writing");
        let written = resident.writing.take().expect("it was being written");
        resident.written = written;
        for batch in &mut self.batches {
            let satisfied = batch.left.get(&home).is_some_and(|need| *need <= written);
            if satisfied {
                batch.left.remove(&home);
            }
        }
    }

    /// Something happens once what is known of these extents is on the medium, durably or at least written.
    pub(super) fn start_batch(
        &mut self,
        extents: impl Iterator<Item = u32>,
        durable: bool,
        then: Then,
    ) {
        let mut left = BTreeMap::new();
        for extent in extents {
            let home = extent / CHECKSUM_EXTENTS;
            if let Some(resident) = self.resident.get(&home) {
                if !resident.is_clean() {
                    left.insert(home, resident.version);
                    self.wanted.insert(home);
                }
            } else if self.loading.contains_key(&home) || self.doubtful.contains(extent) {
                // Any write of it comes after it was loaded.
                self.load(home);
                left.insert(home, 0);
            }
        }
        self.batches.push(Batch {
            left,
            flush: durable.then_some(u64::MAX),
            then,
        });
    }

    /// The same for all that is known.
    pub(super) fn start_batch_of_all(&mut self, then: Then) {
        let homes = self.resident.keys().chain(self.loading.keys());
        let first: Vec<u32> = homes.map(|home| home * CHECKSUM_EXTENTS).collect();
        self.start_batch(first.into_iter(), true, then);
    }

    /// What has happened to the batches: the next that is on the medium.
    pub(super) fn next_done(&mut self) -> Option<Then> {
        let written = self.batches.iter_mut().filter(|b| b.left.is_empty());
        for covers in written.filter_map(|b| b.flush.as_mut()) {
            *covers = (*covers).min(self.completed);
        }
        let durable = |b: &Batch| b.flush.is_none_or(|covers| covers <= self.flushed);
        let done = |b: &Batch| b.left.is_empty() && durable(b);
        let at = self.batches.iter().position(done)?;
        Some(self.batches.remove(at).then)
    }

    /// Whether a device flush is to be started now, which covers what has completed.
    pub(super) fn start_flush(&mut self) -> bool {
        let waits = |b: &Batch| b.left.is_empty() && b.flush.is_some_and(|c| c > self.flushed);
        let wanted = self.flushing.is_none() && self.batches.iter().any(waits);
        if wanted {
            self.flushing = Some(self.completed);
        }
        wanted
    }

    pub(super) fn on_flushed(&mut self) {
        self.flushed = self.flushing.take().expect("it asked for the flush");
    }

    /// Everything in flight has ended.
    pub(super) fn is_idle(&self) -> bool {
        let quiet = self.loading.is_empty() && self.busy.is_empty();
        quiet && self.writes == 0 && self.flushing.is_none() && self.batches.is_empty()
    }
}

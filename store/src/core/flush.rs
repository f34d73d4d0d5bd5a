//! The flush lane: one run at a time (device flush, then the journal entries whose data it made
//! durable), one set of waiters for the next. A flush that arrives after the device flush was submitted
//! needs the next run, unless nothing has completed in between.

use super::format::NO_EXTENT;
use super::format::entry::{Entry, ExtentChange};
use super::io::{Answer, CommandId, Effect, IoKind, Outbox};
use super::reclaim::Way;
use super::{Core, Phase, Waiter};
use crate::limits::CHANGES_UNFLUSHED_MAX;
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{Generation, Nsid};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Slice, extent of the volume, and generation.
pub(super) type ExtentKey = (u32, u64, u32);

/// What changed in an extent since its last journal entry.
#[derive(Clone, Copy, Debug)]
struct Change {
    physical: u32,
    present: u16,
    zero: u16,
}

type Changes = BTreeMap<ExtentKey, Change>;

#[derive(Debug)]
struct Run {
    waiters: Vec<CommandId>,
    changes: Changes,
    freed: Vec<u32>,
    /// How many writes had completed when it began.
    covers: u64,
    /// Blocks that were mended until then are durable when it is through.
    mended: u64,
}

/// State of the lane.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    /// Changes whose data may not be durable.
    open: Changes,
    /// Extents that these changes give up.
    pub(super) freed: Vec<u32>,
    /// Writes completed at the device that may sit in its cache.
    completed: u64,
    /// How many of them a flush has covered.
    flushed: u64,
    run: Option<Run>,
    waiting: Vec<CommandId>,
    wanted: bool,
    /// A block was mended since the last run began.
    mended: bool,
}

impl Flusher {
    /// A write ended whose data may sit in the device's cache.
    pub(super) const fn note_write(&mut self) {
        self.completed += 1;
    }

    /// A block whose write had failed was written, or is not shown any more.
    pub(super) const fn note_mended(&mut self) {
        self.mended = true;
    }

    /// Ask for a run that nobody waits for.
    pub(super) const fn want(&mut self) {
        self.wanted = true;
    }

    /// Notes a change of the map. The data of `present` blocks has been written.
    pub(super) fn record(&mut self, key: ExtentKey, physical: u32, present: u16, zero: u16) {
        assert!(present & zero == 0 && (present == 0 || physical != NO_EXTENT));
        let change = self.open.entry(key).or_insert(Change {
            physical,
            present: 0,
            zero: 0,
        });
        change.physical = physical;
        change.present = (change.present & !zero) | present;
        change.zero = (change.zero & !present) | zero;
        assert!(
            physical != NO_EXTENT || change.present == 0,
            "present blocks lost their extent"
        );
    }

    /// Whether the extent's map in memory is ahead of the journal.
    pub(super) fn is_pending(&self, nsid: u32, extent: u64) -> bool {
        self.are_pending(nsid, extent..=extent)
    }

    /// Whether the map of some extent of these is, in any generation.
    pub(super) fn are_pending(&self, nsid: u32, extents: RangeInclusive<u64>) -> bool {
        let keys = (nsid, *extents.start(), 0)..=(nsid, *extents.end(), u32::MAX);
        let some = |changes: &Changes| changes.range(keys.clone()).next().is_some();
        some(&self.open) || self.run.as_ref().is_some_and(|r| some(&r.changes))
    }

    pub(super) fn is_overfull(&self) -> bool {
        self.open.len() >= 4 * CHANGES_UNFLUSHED_MAX
    }

    /// Nothing is ahead of the medium.
    pub(super) fn is_settled(&self) -> bool {
        self.run.is_none() && !self.has_work()
    }

    fn has_work(&self) -> bool {
        let changed = !self.open.is_empty() || !self.freed.is_empty();
        self.completed > self.flushed || changed || self.mended
    }

    fn wants_run(&self) -> bool {
        !self.waiting.is_empty()
            || self.wanted && self.has_work()
            || self.open.len() >= CHANGES_UNFLUSHED_MAX
    }

    /// The slice is gone; what it changed need not be told any more.
    pub(super) fn forget_slice(&mut self, nsid: u32) {
        self.open.retain(|(n, ..), _| *n != nsid);
        if let Some(run) = &mut self.run {
            run.changes.retain(|(n, ..), _| *n != nsid);
        }
    }
}

impl Core {
    /// Answers a command once everything that has completed so far is durable.
    pub(super) fn join_flush(&mut self, id: CommandId, out: &mut Outbox) {
        let flusher = &mut self.flusher;
        let nothing_new = flusher.open.is_empty() && flusher.freed.is_empty() && !flusher.mended;
        let has_work = flusher.has_work();
        match &mut flusher.run {
            Some(run) if nothing_new && run.covers == flusher.completed => run.waiters.push(id),
            None if !has_work => self.finish(id, Ok(Answer::Done), out),
            Some(_) | None => flusher.waiting.push(id),
        }
    }

    pub(super) fn start_flush_run(&mut self, out: &mut Outbox) {
        let flusher = &mut self.flusher;
        if flusher.run.is_some() || !flusher.wants_run() {
            return;
        }
        (flusher.wanted, flusher.mended) = (false, false);
        let run = Run {
            waiters: std::mem::take(&mut flusher.waiting),
            changes: std::mem::take(&mut flusher.open),
            freed: std::mem::take(&mut flusher.freed),
            covers: flusher.completed,
            mended: self.failed.now(),
        };
        flusher.run = Some(run);
        if flusher.completed > flusher.flushed && stands(Mechanism::DeviceFlush) {
            self.counts.flushes += 1;
            let io = self.ios.start(IoKind::Flush);
            out.push(Effect::Flush { io });
        } else {
            self.commit_run(out);
        }
    }

    pub(super) fn on_flushed(&mut self, out: &mut Outbox) {
        if matches!(self.phase, Phase::Poisoned(_)) {
            return;
        }
        self.flusher.flushed = self
            .flusher
            .run
            .as_ref()
            .expect("it asked for the flush")
            .covers;
        self.commit_run(out);
    }

    /// The data is durable: now the journal may name it.
    fn commit_run(&mut self, out: &mut Outbox) {
        let run = self.flusher.run.as_ref().expect("running");
        for entry in entries_of(&run.changes) {
            self.journal.append(&entry);
        }
        // Also what others appended: an extent freed with a slice waits for the slice's entry.
        match self.journal.newest_pending() {
            Some(ticket) if !run.changes.is_empty() || !run.freed.is_empty() => {
                self.wait_for(ticket, Waiter::Flushed);
            }
            Some(_) | None => self.finish_flush_run(out),
        }
    }

    /// All is durable, except that the list of failed blocks may have some that are mended.
    pub(super) fn finish_flush_run(&mut self, out: &mut Outbox) {
        let run = self.flusher.run.as_ref().expect("running");
        if !self.failed.forget(run.mended) {
            self.end_flush_run(out);
        }
    }

    pub(super) fn end_flush_run(&mut self, out: &mut Outbox) {
        let run = self.flusher.run.take().expect("running");
        for id in run.waiters {
            self.finish(id, Ok(Answer::Done), out);
        }
        self.quarantine(run.freed, Way::Device, out);
        self.merge.ready = true;
        self.retry_parked(out);
    }
}

/// Journal entries for changes; neighbouring extents that became zero as a whole share one.
fn entries_of(changes: &Changes) -> impl Iterator<Item = Entry> + '_ {
    let mut rest = changes.iter().peekable();
    std::iter::from_fn(move || {
        let ((nsid, extent, generation), change) = rest.next()?;
        let whole = |c: &Change| c.physical == NO_EXTENT && c.zero == u16::MAX;
        if !whole(change) {
            return Some(Entry::Extent(ExtentChange {
                nsid: *nsid,
                generation: *generation,
                extent: *extent,
                physical: change.physical,
                present: change.present,
                zero: change.zero,
            }));
        }
        let mut count = 1u32;
        while rest
            .next_if(|((n, e, g), c)| {
                (n, g) == (nsid, generation) && *e == extent + u64::from(count) && whole(c)
            })
            .is_some()
        {
            count += 1;
        }
        Some(Entry::ZeroRun {
            nsid: Nsid(*nsid),
            generation: Generation(*generation),
            extent: *extent,
            count,
        })
    })
}

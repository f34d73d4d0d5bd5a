//! What the core knows of one store of the volume.

use super::event::{CommandId, SliceFacts, Stamp};
use super::flush::FlushId;
use shardmap::canary::{Mechanism, stands};
use shardmap::dirty::{BlockSet, RegionSet};
use shardmap::generations::VolumeGenerations;
use shardmap::units::{BlockRange, Generation, Incarnation, Moment, RegionIndex, StoreId};

/// How far a session is.
///
/// ```text
/// Closed --OpenSlice sent--> Opening --SliceState sent--> Learning --[ReadGenerations]--
///    ^                                                        --[ReadMarks]--> Open
///    |__________ path lost, session refused or closed, from anywhere ______________|
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    Closed,
    Opening,
    Learning,
    Generations,
    Marks,
    Open,
}

/// Why a member is to be removed as soon as that is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condemned {
    /// No session for longer than the grace. Forgiven by a session.
    Grace,
    /// The store does not serve the slice. Forgiven by a session.
    Refused,
    /// It keeps writes waiting that others have taken long ago.
    Slow,
    /// It failed a write that others took, or lost what it had acknowledged.
    Diverged,
}

/// Blocks written to a store and not covered by a flush of it (protocol §6). Blocks of writes that
/// are still outstanding are not in here: the operations themselves know them.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    /// Of completed writes, to be covered by the next flush.
    completed: BlockSet,
    /// Of completed writes, covered by the running flush.
    covering: BlockSet,
}

impl Unflushed {
    /// A write completed on the store. A durable one also covers what it overwrote.
    pub(super) fn on_written(&mut self, range: BlockRange, durable: bool) {
        if durable {
            self.completed.remove(range);
            self.covering.remove(range);
        } else {
            self.completed.insert(range);
        }
    }

    /// Writes of our predecessor that completed on the store, as far as marks tell.
    pub(super) fn inherit(&mut self, region: RegionIndex, size_blocks: u64) {
        self.completed.insert_region(region, size_blocks);
    }

    /// True if a flush sent now would have something to cover.
    pub(super) fn wants_flush(&self) -> bool {
        !self.completed.is_empty()
    }

    /// A flush is being sent: it covers exactly what has completed.
    pub(super) fn begin_flush(&mut self) {
        assert!(
            self.covering.is_empty(),
            "two flushes of one store at a time"
        );
        self.covering = std::mem::take(&mut self.completed);
    }

    /// The flush succeeded: what it covered is durable. What was written since stays.
    pub(super) fn end_flush(&mut self) {
        self.covering.clear();
        if !stands(Mechanism::FlushCredit) {
            self.completed.clear();
        }
    }

    /// The flush has no known result.
    pub(super) fn lose_flush(&mut self) {
        let covering = std::mem::take(&mut self.covering);
        self.completed.merge(&covering);
    }

    /// The store has lost its volatile state: hands out what that may have taken along.
    pub(super) fn take_lost(&mut self) -> BlockSet {
        assert!(self.covering.is_empty(), "the session ended first");
        std::mem::take(&mut self.completed)
    }
}

/// Flushes of one store: one running, the rest waits for the next.
#[derive(Debug, Default)]
pub(super) struct LegFlush {
    pub(super) running: Option<CommandId>,
    /// Served by the running flush.
    pub(super) waiters: Vec<FlushId>,
    /// Served by the next one.
    pub(super) next: Vec<FlushId>,
    /// The running flush and the next one must be sent even with nothing of ours to cover.
    pub(super) forced_running: bool,
    pub(super) forced: bool,
}

/// One store of the volume.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) store: StoreId,
    /// Commands can be sent.
    pub(super) path: bool,
    pub(super) session: Session,
    /// Counts sessions; a command of an older one is told by it.
    pub(super) session_no: u32,
    /// Commands without an answer, of any session. A new session waits for zero, because a command
    /// sent before it may otherwise be admitted under it.
    pub(super) outstanding: u32,
    /// The last command of the current session that was answered well, and the last question
    /// whether the store is there.
    pub(super) heard: Option<CommandId>,
    pub(super) asked: Option<CommandId>,
    /// Of the last session.
    pub(super) incarnation: Option<Incarnation>,
    pub(super) facts: SliceFacts,
    /// Its head and snapshots: as it said, and what it has done since. All of it is durable there.
    pub(super) generations: VolumeGenerations,
    /// Snapshots up to this one are right there although the slice is incomplete, in that life.
    pub(super) caught_up: Option<(Incarnation, Generation)>,
    /// Read while attaching.
    pub(super) marks: RegionSet,
    /// It lost what it had acknowledged: no reads, no flush credit.
    pub(super) suspect: bool,
    /// It may hold acknowledged writes of our predecessor that no flush has covered, while what is
    /// above us is still the same. Only while attaching; then `unflushed` has them.
    pub(super) inherited: bool,
    /// How long reads take, smoothed; zero before the first.
    pub(super) read_ns: u64,
    /// How often it was removed for being slow.
    pub(super) slow_exits: u32,
    pub(super) condemned: Option<Condemned>,
    pub(super) unflushed: Unflushed,
    pub(super) flush: LegFlush,
    /// What it missed while out of the write set (fine bitmap).
    pub(super) dirty: BlockSet,
    /// Whether `dirty` is all it missed: this client saw it leave, or has planned its resilver.
    pub(super) witnessed: bool,
    /// Incarnation at the time `dirty` was planned for an incomplete slice.
    pub(super) planned_for: Option<Incarnation>,
    /// In a row, for the backoff.
    pub(super) failures: u32,
    /// Not to be opened before.
    pub(super) retry_at: Moment,
    /// When it last joined the in-sync set.
    pub(super) joined_at: Option<Moment>,
}

impl Leg {
    pub(super) fn new(store: StoreId) -> Self {
        Self {
            store,
            path: false,
            session: Session::Closed,
            session_no: 0,
            outstanding: 0,
            heard: None,
            asked: None,
            incarnation: None,
            facts: SliceFacts::default(),
            generations: VolumeGenerations::default(),
            caught_up: None,
            marks: RegionSet::new(),
            suspect: false,
            inherited: false,
            read_ns: 0,
            slow_exits: 0,
            condemned: None,
            unflushed: Unflushed::default(),
            flush: LegFlush::default(),
            dirty: BlockSet::new(),
            witnessed: false,
            planned_for: None,
            failures: 0,
            retry_at: Moment::default(),
            joined_at: None,
        }
    }

    /// Nothing that was acknowledged can be lost with its cache: a flush has nothing to do there,
    /// even if the store cannot be reached.
    pub(super) fn has_all_flushed(&self) -> bool {
        let flush = &self.flush;
        let quiet = flush.running.is_none() && flush.next.is_empty();
        quiet && !self.unflushed.wants_flush() && !self.suspect
    }

    /// Data commands may be sent and their answers count.
    pub(super) fn usable(&self) -> bool {
        self.session == Session::Open && !self.suspect
    }

    /// Its store is given this stamp.
    pub(super) fn stamp_with(&mut self, stamp: Stamp) {
        self.facts.stamp_seq = stamp.seq;
        self.facts.stamp_isr = stamp.isr;
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use shardmap::units::{Blocks, Lba};

    fn range(start: u64) -> BlockRange {
        BlockRange::new(Lba(start), Blocks(1)).unwrap()
    }

    #[test]
    fn a_flush_covers_only_what_completed_before_it_was_sent() {
        let mut unflushed = Unflushed::default();
        unflushed.on_written(range(1), false);
        unflushed.begin_flush();
        unflushed.on_written(range(1), false);
        unflushed.end_flush();
        assert!(
            unflushed.wants_flush(),
            "block 1 was written again while the flush ran"
        );
    }

    #[test]
    fn a_flush_without_a_result_covers_nothing() {
        let mut unflushed = Unflushed::default();
        unflushed.on_written(range(1), false);
        unflushed.begin_flush();
        unflushed.lose_flush();
        assert_eq!(unflushed.take_lost().len_blocks(), 1);
    }

    #[test]
    fn a_durable_write_covers_the_one_it_overwrote() {
        let mut unflushed = Unflushed::default();
        unflushed.on_written(range(1), false);
        unflushed.on_written(range(1), true);
        assert!(!unflushed.wants_flush() && unflushed.take_lost().is_empty());
    }
}

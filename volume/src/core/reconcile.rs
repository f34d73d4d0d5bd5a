//! Reconciliation (protocol §3.6): a region that may differ between members is made equal, from
//! one source and durably, before anybody reads or writes it.
//!
//! While a snapshot is pending, in its generation and then in the head: the head shows what the
//! snapshot has, so that order makes both equal.
//!
//! One region at a time, the one a host waits for first. Per region: lock it, compare digests of
//! all members, copy the chunks that differ. The choice of a source is kept until no copy of it is
//! in flight any more; a store whose session broke in between drained it when it was opened again.

use super::copy::{CopyFor, CopyStage};
use super::event::{Command, TraceEvent};
use super::flush::FlushFor;
use super::members::{Members, Position};
use super::range_lock::Holder;
use super::state::{Outbox, Phase, Purpose, Replicator};
use crate::limits::RECONCILE_COPIES_MAX;
use shardmap::canary::{Mechanism, stands};
use shardmap::dirty::RegionSet;
use shardmap::units::{BlockRange, EXTENT_BLOCKS, Generation, RegionIndex};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkStage {
    Locking,
    Hashing,
    Copying,
}

#[derive(Debug)]
struct Work {
    region: RegionIndex,
    range: BlockRange,
    homes: Members,
    /// Made equal now, and what is to be made equal next.
    generation: Generation,
    next: Option<Generation>,
    stage: WorkStage,
    asked: Members,
    hashes: Vec<(Position, Vec<u64>)>,
    source: Option<Position>,
    chunks: VecDeque<(BlockRange, Members)>,
    /// The source was lost: compare again once nothing of its choice is in flight.
    again: bool,
    /// Members with a medium error in this region: no sources.
    distrusted: Members,
    /// Of those: members that could not be compared. All of it is copied to them.
    unreadable: Members,
}

impl Work {
    fn compare_again(&mut self) {
        self.stage = WorkStage::Hashing;
        self.again = false;
        self.source = None;
        self.chunks.clear();
        self.hashes.clear();
        self.unreadable = Members::EMPTY;
        self.asked = Members::EMPTY;
    }
}

#[derive(Debug, Default)]
pub(super) struct Reconcile {
    /// Regions that wait, and the one being worked on.
    pub(super) regions: RegionSet,
    /// A host waits for this one.
    pub(super) wanted: Option<RegionIndex>,
    flushing: bool,
    flushed: bool,
    work: Option<Work>,
}

impl Reconcile {
    /// Whether part of the range is not known to be equal on all members.
    pub(super) fn touches(&self, range: BlockRange) -> bool {
        !self.regions.is_empty() && range.regions().any(|r| self.regions.contains(r))
    }

    /// Nothing is to be made equal, or not before an operation ends that may itself wait for a
    /// resilver.
    pub(super) fn lets_resilver(&self) -> bool {
        let locking = |w: &Work| w.stage == WorkStage::Locking;
        self.regions.is_empty() || self.work.as_ref().is_some_and(locking)
    }

    pub(super) fn hash_again(&mut self) {
        if let Some(work) = &mut self.work {
            work.again = true;
        }
    }

    pub(super) fn distrust(&mut self, at: Position) {
        if let Some(work) = &mut self.work {
            work.distrusted.insert(at);
        }
    }
}

impl Replicator {
    pub(super) fn begin_reconcile(&mut self, regions: RegionSet) {
        self.reconcile = Reconcile {
            regions,
            ..Reconcile::default()
        };
    }

    /// A write failed on every member: what the range holds is anybody's guess.
    pub(super) fn reconcile_again(&mut self, range: BlockRange) {
        range.regions().for_each(|r| {
            self.reconcile.regions.insert(r);
        });
        // What a member has of it may sit in its cache, and must be durable before it is the truth.
        self.reconcile.flushed = false;
        if std::mem::take(&mut self.reconcile.flushing) {
            self.cancel_flush(FlushFor::Reconcile);
        }
        self.changed = true;
    }

    pub(super) fn on_reconcile_flushed(&mut self) {
        self.reconcile.flushing = false;
        self.reconcile.flushed = true;
        self.changed = true;
    }

    pub(super) fn reconcile_forward(&mut self, out: &mut Outbox) {
        let live = matches!(self.phase, Phase::Serving | Phase::Detaching);
        if !live || self.reconcile.regions.is_empty() {
            return;
        }
        if !self.reconcile.flushed {
            if !self.reconcile.flushing {
                self.reconcile.flushing = true;
                self.start_flush(FlushFor::Reconcile, self.ack_set(), true, out);
            }
            return;
        }
        match self.reconcile.work.as_ref().map(|w| w.stage) {
            None => self.next_region(out),
            Some(WorkStage::Locking) => {}
            Some(WorkStage::Hashing) => self.hash_members(out),
            Some(WorkStage::Copying) => self.copy_chunks(out),
        }
    }

    fn next_region(&mut self, out: &mut Outbox) {
        let wanted = self.reconcile.wanted.take();
        let wanted = wanted.filter(|r| self.reconcile.regions.contains(*r));
        let Some(region) = wanted.or_else(|| self.reconcile.regions.first()) else {
            return;
        };
        let range = self
            .region_range(region)
            .expect("only regions of the volume are taken in");
        let (generation, next) = self.generations_to_reconcile();
        self.reconcile.work = Some(Work {
            region,
            range,
            homes: self.homes(range),
            generation,
            next,
            stage: WorkStage::Locking,
            asked: Members::EMPTY,
            hashes: Vec::new(),
            source: None,
            chunks: VecDeque::new(),
            again: false,
            distrusted: Members::EMPTY,
            unreadable: Members::EMPTY,
        });
        if self.lock.acquire(Holder::Region(region), range, true) {
            self.on_region_locked(region, out);
        }
    }

    pub(super) fn on_region_locked(&mut self, region: RegionIndex, out: &mut Outbox) {
        // Writes that were ahead of it in the queue may have been the first of a new head.
        let generations = self.generations_to_reconcile();
        let work = self
            .reconcile
            .work
            .as_mut()
            .expect("the region's work waits for its lock");
        assert!(work.region == region && work.stage == WorkStage::Locking);
        (work.generation, work.next) = generations;
        work.stage = WorkStage::Hashing;
        self.reconcile_forward(out); // a write that failed meanwhile may have asked for a flush
    }

    fn hash_members(&mut self, out: &mut Outbox) {
        let members = self.ack_set();
        let work = self.reconcile.work.as_mut().expect("hashing");
        let members = members.and(work.homes);
        let (region, range, asked) = (work.region, work.range, work.asked);
        let generation = work.generation;
        let got: Members = work.hashes.iter().map(|(at, _)| *at).collect();
        let got = got.or(work.unreadable);
        if members.count() <= 1 || got.covers(members) {
            return self.compare(members, out);
        }
        let missing = self.usable(members).minus(asked);
        for at in missing.iter() {
            let what = Command::Hash(range, generation);
            self.send(at, Purpose::Hash(region, generation), what, out);
        }
        self.reconcile.work.as_mut().expect("hashing").asked = asked.or(missing);
    }

    pub(super) fn on_hashes(
        &mut self,
        asked: (RegionIndex, Generation),
        at: Position,
        hashes: Vec<u64>,
    ) {
        let Some(work) = self.reconcile.work.as_mut() else {
            return;
        };
        let current = (work.region, work.generation) == asked;
        if current && work.stage == WorkStage::Hashing && work.asked.has(at) {
            assert_eq!(
                hashes.len(),
                work.range.split_at_multiples(EXTENT_BLOCKS).count()
            );
            work.hashes.push((at, hashes));
            self.changed = true;
        }
    }

    /// A member has a medium error in the region. What cannot be read is written again, so it is not
    /// told apart from what differs.
    pub(super) fn on_hash_unreadable(&mut self, asked: (RegionIndex, Generation), at: Position) {
        let Some(work) = self.reconcile.work.as_mut() else {
            return;
        };
        let current = (work.region, work.generation) == asked;
        if current && work.stage == WorkStage::Hashing && work.asked.has(at) {
            work.unreadable.insert(at);
            work.distrusted.insert(at);
            self.changed = true;
        }
    }

    /// Nobody has a whole copy of the region. Errors may go away; if they do not, members are removed as
    /// far as that is safe, and one that is left alone is compared with nobody.
    fn distrust_all(&mut self, members: Members, out: &mut Outbox) {
        let work = self.reconcile.work.as_mut().expect("hashing");
        work.distrusted = Members::EMPTY;
        work.compare_again();
        members.iter().for_each(|at| self.condemn_or_drop(at, out));
    }

    /// Picks the source and lists what differs from it.
    fn compare(&mut self, members: Members, out: &mut Outbox) {
        let readable = self.usable(members.and(self.read_set()));
        let work = self.reconcile.work.as_mut().expect("hashing");
        work.hashes.retain(|(at, _)| members.has(*at));
        let trusted = work
            .hashes
            .iter()
            .find(|(at, _)| readable.has(*at) && !work.distrusted.has(*at));
        let Some((source, own)) = trusted.cloned() else {
            if members.count() <= 1 {
                self.region_done(out);
            } else if work.distrusted.covers(members) {
                self.distrust_all(members, out);
            }
            return; // a readable member will be back, or removed
        };
        let out_of_it = work.homes.minus(members);
        for (index, chunk) in work.range.split_at_multiples(EXTENT_BLOCKS).enumerate() {
            let differ = work
                .hashes
                .iter()
                .filter(|(_, other)| other[index] != own[index]);
            let differ: Members = differ.map(|(at, _)| *at).collect();
            let differ = differ.or(work.unreadable.and(members));
            if !differ.is_empty() {
                work.chunks.push_back((chunk, differ));
                // A target may have been given what another member had there.
                for at in out_of_it.iter() {
                    self.legs[at.index()].dirty.insert(chunk);
                }
            }
        }
        work.source = Some(source);
        work.stage = WorkStage::Copying;
        let (generation, differs) = (work.generation, !work.chunks.is_empty());
        if differs {
            self.doubt_target(generation);
            self.doubt_catch_up(generation);
        }
        self.changed = true;
    }

    pub(super) fn reconcile_source(&mut self) -> Option<Position> {
        let source = self.reconcile.work.as_ref().and_then(|w| w.source)?;
        self.leg(source).usable().then_some(source)
    }

    fn copy_chunks(&mut self, out: &mut Outbox) {
        let ids: Vec<_> = self
            .copies
            .iter()
            .filter(|(_, c)| c.purpose == CopyFor::Reconcile)
            .map(|(id, _)| *id)
            .collect();
        let source = self
            .reconcile_source()
            .filter(|at| self.read_set().has(*at));
        for id in ids {
            let sourcing = self
                .copies
                .get(&id)
                .is_some_and(|c| c.stage == CopyStage::Sourcing);
            if sourcing && source.is_none() {
                self.reconcile.hash_again();
                self.end_copy(id, out);
            } else {
                self.advance_copy(id, out);
            }
        }
        let active = self
            .copies
            .values()
            .filter(|c| c.purpose == CopyFor::Reconcile)
            .count();
        let work = self.reconcile.work.as_mut().expect("copying");
        if source.is_none() && !work.chunks.is_empty() {
            work.again = true;
        }
        if work.again {
            if active == 0 || !stands(Mechanism::ReconcileDrain) {
                work.compare_again();
                self.changed = true;
            }
            return;
        }
        if work.chunks.is_empty() && active == 0 {
            return self.generation_done(out);
        }
        for _ in active..RECONCILE_COPIES_MAX {
            let Some(work) = self.reconcile.work.as_mut() else {
                return;
            };
            let Some((chunk, differ)) = work.chunks.pop_front() else {
                return;
            };
            let generation = work.generation;
            let id = self.new_copy(CopyFor::Reconcile, (chunk, generation), differ);
            self.advance_copy(id, out);
        }
    }

    /// The region is equal in a generation: the next one, of which the older is a part, or done.
    fn generation_done(&mut self, out: &mut Outbox) {
        let work = self.reconcile.work.as_mut().expect("copying");
        let Some(next) = work.next.take() else {
            return self.region_done(out);
        };
        work.generation = next;
        work.compare_again();
        self.changed = true;
    }

    fn region_done(&mut self, out: &mut Outbox) {
        let work = self.reconcile.work.take().expect("being done");
        assert!(self.reconcile.regions.remove(work.region));
        self.lock
            .release(Holder::Region(work.region), &mut self.granted);
        self.changed = true;
        if self.reconcile.regions.is_empty() {
            self.reconcile.flushed = false;
            self.trace(TraceEvent::Reconciled, out);
            self.note_marks(out);
        }
        let parked = std::mem::take(&mut self.parked);
        parked.into_iter().for_each(|op| self.admit(op, out));
    }

    /// Digests and copies of the session do not count.
    pub(super) fn reconcile_session_lost(&mut self, at: Position, _out: &mut Outbox) {
        self.copies_session_lost(at);
        if let Some(work) = &mut self.reconcile.work
            && work.stage == WorkStage::Hashing
        {
            work.asked.remove(at);
            work.unreadable.remove(at);
            work.hashes.retain(|(of, _)| *of != at);
        }
    }

    /// A member that leaves has missed whatever reconciliation was still to decide.
    pub(super) fn note_unreconciled(&mut self, at: Position) {
        let regions: Vec<_> = self.reconcile.regions.iter().collect();
        let size_blocks = self.map.size_blocks;
        for region in regions {
            if self.homes_of_region(region).has(at) {
                self.legs[at.index()]
                    .dirty
                    .insert_region(region, size_blocks);
            }
        }
    }
}

//! What a data store decides. No IO, no clock, no payload: [`Core::step`] takes an [`Event`] and appends
//! [`Effect`]s. Metadata bytes (superblock, journal, pages) pass through; data never does.
//!
//! Order on the medium, which everything here serves:
//! 1. a mark is durable before the first data write to its region;
//! 2. data is durable before the journal record that names it;
//! 3. the journal record that frees an extent is durable, and everything that was in flight at the
//!    extent has ended, before the extent is trimmed or used again;
//! 4. the checksums of what was written in a region are durable before its mark goes;
//! 5. pages and directory of a checkpoint, and all data they name, are durable before the superblock
//!    that makes them count; only then the journal's tail moves.
//!
//! ```text
//! Opening ──superblock durable──► Serving ──Stop──► Stopping ──clean superblock durable──► Stopped
//!    │                               └──flush or metadata write failed──► Poisoned (exit the process)
//!    └──► Failed
//! ```

pub mod facts;
pub mod format;
pub mod io;

mod account;
mod admit;
mod checkpoint;
mod checksums;
mod control;
mod failed;
mod flush;
mod generations;
mod grow;
mod heal;
mod journal;
mod leaf;
mod lineage;
mod marks;
mod merge;
mod open;
mod pages;
mod read;
mod reclaim;
mod replay;
mod scrub;
mod session;
mod slice;
mod space;
mod stop;
pub mod survey;
mod verify;
mod write;
mod zero;

#[cfg(test)]
mod test;

use self::checksums::Checksums;
use self::facts::{SliceState, StoreFault, StoreUsage};
use self::failed::Failed;
use self::flush::Flusher;
use self::format::superblock::Superblock;
use self::io::{Answer, CommandId, Drain, Effect, Event, IoId, IoKind, IoTable, Outbox};
use self::journal::{Journal, Ticket};
use self::leaf::CellKey;
use self::pages::Pages;
use self::reclaim::{Reclaim, Way};
use self::slice::Slice;
use self::space::Space;
use crate::limits::COMMANDS_MAX;
use shardmap::units::{BlockRange, EXTENT_BYTES, Lba, Moment, Nsid};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// What the shell found out about the device before the core begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// For texts.
    pub path: String,
    /// The cluster the store must belong to; `None` accepts any (checking tools).
    pub cluster: Option<[u8; 16]>,
    /// The device's size now, in bytes.
    pub device_bytes: u64,
    /// Completed writes may be lost without a flush.
    pub volatile_cache: bool,
    /// Free extents should be trimmed.
    pub can_trim: bool,
    /// Read and check everything, write nothing, serve nothing: the answer is
    /// [`Effect::Opened`] with the facts as they would be, or [`Effect::OpenFailed`].
    pub check_only: bool,
}

/// Where the store's life stands.
#[derive(Debug)]
enum Phase {
    Opening(Box<open::Opening>),
    Serving,
    Stopping(stop::Stage),
    Poisoned(StoreFault),
    /// Failed to open, or stopped.
    Over,
}

/// The blocks of a first write that become present when its data has landed.
#[derive(Clone, Copy, Debug)]
struct FirstWrite {
    leaf: u32,
    key: CellKey,
    mask: u16,
}

#[derive(Debug)]
enum Kind {
    Read {
        /// For comparison: what is not known of the blocks' checksums is from then on.
        compare: bool,
    },
    Write {
        range: BlockRange,
        generation: u32,
        fua: bool,
        durable: bool,
        first: SmallVec<[FirstWrite; 3]>,
    },
    Zero {
        range: BlockRange,
        generation: u32,
        deallocate: bool,
        fua: bool,
        marked: SmallVec<[u32; 2]>,
    },
    Flush,
    /// Regions that are to be unmarked wait for their checksums; last written before this tick.
    Stable {
        regions: Vec<u32>,
        tick: u64,
    },
    Scrub(scrub::Scrubbing),
    Heal(heal::Healing),
    /// Waits for a journal entry only.
    Entry(Answer),
}

/// A command that was admitted under a session (or open access).
#[derive(Debug)]
struct Active {
    nsid: u32,
    /// Of the slice's [`Drain`].
    turn: u64,
    kind: Kind,
    /// Device operations outstanding.
    ios: u32,
    fault: Option<StoreFault>,
    /// Blocks were there that a write has failed to replace.
    noted: bool,
}

/// What happens when a ticket is durable.
#[derive(Debug)]
enum Waiter {
    /// Regions are marked now.
    Marked { nsid: u32, regions: Vec<u32> },
    /// The write or zero may begin.
    Begin(CommandId),
    /// An admitted command is done.
    Finish(CommandId),
    /// A control command is done.
    Answer(CommandId, Answer),
    /// An opening session may go on.
    Open(Nsid),
    /// The flush run is through.
    Flushed,
    /// Extents are free once nothing in flight reaches them.
    Freed(Vec<u32>),
    /// A change of a slice's generations has taken effect.
    Changed(Nsid),
    /// A step of a merge is durable.
    Merged,
}

/// The data store's core.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    phase: Phase,
    sb: Superblock,
    /// Where the next superblock goes: the copy that does not count.
    sb_next: usize,
    was_clean: bool,
    slices: BTreeMap<u32, Slice>,
    space: Space,
    pages: Pages,
    journal: Journal,
    waiters: BTreeMap<(Ticket, u64), Waiter>,
    waiter_count: u64,
    flusher: Flusher,
    reclaim: Reclaim,
    checkpoint: Option<checkpoint::Checkpoint>,
    growing: Option<grow::Growing>,
    merge: merge::Merge,
    checksums: Option<Checksums>,
    failed: Failed,
    /// Slice and block that is being written for healing.
    healing: Option<(u32, Lba)>,
    /// All checksums are on the medium, for the stop.
    checksums_stopped: bool,
    ios: IoTable,
    /// Data operations in flight.
    data: Drain,
    active: Vec<Option<Active>>,
    active_count: usize,
    /// Writes that wait for space or for the journal to catch up.
    parked: std::collections::VecDeque<CommandId>,
    counts: CoreCounts,
}

/// What the core counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreCounts {
    /// Journal records written.
    pub journal_commits: u64,
    /// Regions marked.
    pub marks: u64,
    /// Regions unmarked.
    pub unmarked: u64,
    /// Device flushes on behalf of FLUSH and FUA.
    pub flushes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Writes that changed no metadata.
    pub overwrites: u64,
    /// Writes that made blocks present.
    pub first_writes: u64,
    /// Extents allocated.
    pub extents_allocated: u64,
    /// Of these, such that a merge or a deletion had given back shortly before.
    pub extents_recycled: u64,
    /// Extents given back.
    pub extents_freed: u64,
    /// Extents whose cell went over to the next generation by a change of the map.
    pub cells_moved: u64,
    /// Extents of which blocks were copied to the next generation's extent.
    pub cells_copied: u64,
    /// Blocks that were read and are as they were written.
    pub blocks_verified: u64,
    /// Blocks that were read and had no known checksum, or were being written.
    pub blocks_unverified: u64,
    /// Blocks that were read and are not as they were written.
    pub blocks_rotten: u64,
    /// Of those: written again from another replica's bytes.
    pub blocks_healed: u64,
    /// Checksum blocks read.
    pub checksum_blocks_read: u64,
    /// Checksum blocks written.
    pub checksum_blocks_written: u64,
    /// Checksum blocks that were damaged or could not be read.
    pub checksum_blocks_damaged: u64,
}

impl Core {
    /// Handles one event. Total: a command that cannot be is answered with a fault.
    pub fn step(&mut self, now: Moment, event: Event<'_>, out: &mut Outbox) {
        let _: Moment = now; // latency and idleness are the shell's; kept for the contract of cores
        match event {
            Event::Start => self.start_open(out),
            Event::Submitted {
                id,
                nsid,
                association,
                command,
            } => {
                self.on_submitted(id, nsid, association, command, out);
            }
            Event::IoDone { io, result } => self.on_io_done(io, result.map(|()| &[][..]), out),
            Event::DataDone { io, sums } => self.on_io_done(io, Ok(sums), out),
            Event::MetaRead { io, bytes } => self.on_meta_read(io, bytes, out),
            Event::Stop => self.begin_stop(out),
        }
        self.pump(out);
        self.check_invariants();
    }

    /// Starts what has become possible.
    fn pump(&mut self, out: &mut Outbox) {
        if !matches!(self.phase, Phase::Serving | Phase::Stopping(_)) {
            return;
        }
        self.pump_checksums(out);
        self.start_flush_run(out);
        self.start_journal_record(out);
        self.start_checkpoint_if_due(out);
        self.continue_growth(out);
        self.start_list(out);
        self.continue_merge(out);
        self.start_trims(out);
        if let Phase::Stopping(_) = self.phase {
            self.continue_stop(out);
        }
    }

    /// `sums`: of the blocks that were moved.
    fn on_io_done(&mut self, io: IoId, sums: Result<&[u32], i32>, out: &mut Outbox) {
        let result = sums.map(|_| ());
        match (self.ios.end(io), result) {
            (
                IoKind::Data {
                    command,
                    lba,
                    turn,
                    span,
                    since,
                    began,
                },
                _,
            ) => {
                self.data.leave(turn);
                self.note_outcome(command, lba, (span, began), result, out);
                self.on_data_io((command, lba), (span, since), sums, out);
                self.release_drained(out);
            }
            (
                IoKind::Copy {
                    turn,
                    from,
                    to,
                    since,
                    began,
                },
                _,
            ) => {
                self.data.leave(turn);
                if result.is_ok() {
                    self.mend(to, began);
                }
                self.on_copy_io((from, to), since, sums, out);
                self.release_drained(out);
            }
            (IoKind::ChecksumsRead(home), Err(errno)) => {
                self.on_checksums_read(home, Err(errno), out);
            }
            (IoKind::ChecksumsRead(home), Ok(())) => {
                unreachable!("checksum block {home} without bytes")
            }
            (IoKind::ChecksumsWrite(home), result) => {
                self.on_checksums_io(Some(home), result, out);
            }
            (IoKind::ChecksumsFlush, result) => self.on_checksums_io(None, result, out),
            (IoKind::Flush, Ok(())) => self.on_flushed(out),
            (IoKind::Flush, Err(errno)) => self.poison("device flush", errno, out),
            (IoKind::Journal, Ok(())) => self.on_journal_part(out),
            (IoKind::Journal, Err(errno)) => self.poison("journal write", errno, out),
            (IoKind::Checkpoint, Ok(())) => self.on_checkpoint_io(out),
            (IoKind::Checkpoint, Err(errno)) => self.poison("checkpoint write", errno, out),
            (IoKind::Growth, result) => self.on_growth_io(result),
            (IoKind::GrowthFlush, Ok(())) => self.on_growth_flushed(),
            (IoKind::GrowthFlush, Err(errno)) => self.poison("device flush", errno, out),
            (IoKind::Superblock, result) => self.on_superblock(result, out),
            (IoKind::Trim { first, count }, _) => self.on_trimmed(first, count, out),
            (IoKind::Open(what), Ok(())) => unreachable!("open read {what} without bytes"),
            (IoKind::Open(_) | IoKind::OpenFlush, Err(errno)) => self.open_io_failed(errno, out),
            (IoKind::OpenFlush, Ok(())) => self.on_open_flushed(out),
        }
    }

    fn on_superblock(&mut self, result: Result<(), i32>, out: &mut Outbox) {
        if let Err(errno) = result {
            if matches!(self.phase, Phase::Opening(_)) {
                self.open_io_failed(errno, out);
            } else {
                self.poison("superblock write", errno, out);
            }
            return;
        }
        self.sb_next = 1 - self.sb_next;
        if self.is_growth_switching() {
            return self.finish_growth(out);
        }
        if self.failed.is_writing() {
            return self.on_listed(out);
        }
        match self.phase {
            Phase::Opening(_) => self.finish_open(out),
            Phase::Stopping(stop::Stage::Superblock) => self.finish_stop(out),
            Phase::Serving | Phase::Stopping(_) => self.finish_checkpoint(out),
            Phase::Poisoned(_) | Phase::Over => {}
        }
    }

    /// Writes the superblock into the copy that does not count.
    fn write_superblock(&mut self, out: &mut Outbox) {
        self.sb.update += 1;
        self.sb.failed = self.failed.list();
        self.sb.proven = self.journal.proven();
        let offset_bytes = format::geometry::SUPERBLOCK_OFFSETS[self.sb_next];
        let io = self.ios.start(IoKind::Superblock);
        out.push(Effect::WriteMeta {
            io,
            offset_bytes,
            bytes: self.sb.encode(),
            durable: true,
        });
    }

    /// A write of metadata or a flush failed: what is on the medium is unknown. Nothing is retried.
    fn poison(&mut self, what: &'static str, errno: i32, out: &mut Outbox) {
        if matches!(self.phase, Phase::Poisoned(_) | Phase::Over) {
            return;
        }
        let fault = StoreFault::Poisoned { what, errno };
        self.phase = Phase::Poisoned(fault.clone());
        out.push(Effect::Poisoned(fault.clone()));
        self.parked.clear();
        self.failed.give_up();
        self.end_growth(Err(fault.clone()), out);
        for (_, waiter) in std::mem::take(&mut self.waiters) {
            if let Waiter::Answer(command, _) = waiter {
                out.push(Effect::Answer {
                    command,
                    result: Err(fault.clone()),
                });
            }
        }
        for slice in self.slices.values_mut() {
            let waiting = slice.opening.take().map(|o| o.command);
            let closing = slice
                .closing
                .drain(..)
                .chain(slice.removing.take())
                .map(|(c, _)| c)
                .chain(slice.changes.take_waiting());
            for command in waiting.into_iter().chain(closing) {
                out.push(Effect::Answer {
                    command,
                    result: Err(fault.clone()),
                });
            }
        }
        // Commands with device operations in flight are answered as these end.
        self.give_up_checks();
        for index in 0..self.active.len() {
            if self.active[index].as_ref().is_some_and(|a| a.ios == 0) {
                let id = CommandId(u32::try_from(index).expect("bounded"));
                self.finish(id, Err(fault.clone()), out);
            }
        }
    }

    fn activate(&mut self, id: CommandId, nsid: u32, kind: Kind) {
        let turn = self.slices.get_mut(&nsid).expect("admitted").drain.enter();
        let index = id.0 as usize;
        if self.active.len() <= index {
            self.active.resize_with(index + 1, || None);
        }
        let active = Active {
            nsid,
            turn,
            kind,
            ios: 0,
            fault: None,
            noted: false,
        };
        assert!(
            self.active[index].replace(active).is_none(),
            "command slot {index} in use"
        );
        self.active_count += 1;
    }

    fn active_mut(&mut self, id: CommandId) -> &mut Active {
        self.active[id.0 as usize]
            .as_mut()
            .expect("command is active")
    }

    /// Ends an admitted command.
    fn finish(&mut self, id: CommandId, result: Result<Answer, StoreFault>, out: &mut Outbox) {
        let active = self.active[id.0 as usize]
            .take()
            .expect("a command ends once");
        self.active_count -= 1;
        assert_eq!(active.ios, 0, "answered with device operations in flight");
        out.push(Effect::Answer {
            command: id,
            result,
        });
        let slice = self
            .slices
            .get_mut(&active.nsid)
            .expect("outlives its commands");
        match &active.kind {
            Kind::Write { range, .. } => {
                for region in range.regions() {
                    slice.leave_region(region.0);
                }
            }
            Kind::Zero { marked, .. } => marked.iter().for_each(|r| slice.leave_region(*r)),
            Kind::Read { .. }
            | Kind::Scrub(_)
            | Kind::Heal(_)
            | Kind::Flush
            | Kind::Stable { .. }
            | Kind::Entry(_) => {}
        }
        slice.drain.leave(active.turn);
        self.on_drained(active.nsid, out);
    }

    /// A device operation of a command begins: so many blocks, from this one of the volume on.
    fn start_data(
        &mut self,
        command: CommandId,
        lba: Lba,
        (offset_bytes, blocks): (u64, u32),
    ) -> IoId {
        let turn = self.data.enter();
        let active = self.active_mut(command);
        active.ios += 1;
        let writes = matches!(active.kind, Kind::Write { .. });
        let span = self.span(offset_bytes, blocks);
        let since = self.begin_io(span, writes);
        let began = self.failed.now();
        self.ios.start(IoKind::Data {
            command,
            lba,
            turn,
            span,
            since,
            began,
        })
    }

    fn on_data_done(&mut self, id: CommandId, result: Result<(), StoreFault>, out: &mut Outbox) {
        let poisoned = match &self.phase {
            Phase::Poisoned(fault) => Some(fault.clone()),
            Phase::Opening(_) | Phase::Serving | Phase::Stopping(_) | Phase::Over => None,
        };
        let active = self.active_mut(id);
        active.ios -= 1;
        if let Err(fault) = result {
            active.fault.get_or_insert(fault);
        }
        if active.ios > 0 {
            return;
        }
        let is_heal = matches!(active.kind, Kind::Heal(_));
        if let Some(fault) = poisoned {
            if is_heal {
                self.healing = None;
            }
            return self.finish(id, Err(fault), out);
        }
        let fault = active.fault.take();
        if is_heal {
            return self.on_healed(id, fault, out);
        }
        if matches!(active.kind, Kind::Write { .. }) {
            self.on_written(id, fault, out);
        } else if matches!(active.kind, Kind::Scrub(_)) {
            self.finish_scrub(id, out);
        } else {
            let result = fault.map_or(Ok(Answer::Done), Err);
            self.finish(id, result, out);
        }
    }

    fn wait_for(&mut self, ticket: Ticket, waiter: Waiter) {
        self.waiter_count += 1;
        self.waiters.insert((ticket, self.waiter_count), waiter);
    }

    fn start_journal_record(&mut self, out: &mut Outbox) {
        let Some(parts) = self.journal.next_record(self.sb.store, self.sb.incarnation) else {
            return;
        };
        self.counts.journal_commits += 1;
        for (offset_bytes, bytes) in parts {
            let io = self.ios.start(IoKind::Journal);
            out.push(Effect::WriteMeta {
                io,
                offset_bytes,
                bytes,
                durable: true,
            });
        }
    }

    fn on_journal_part(&mut self, out: &mut Outbox) {
        let Some(durable) = self.journal.part_done() else {
            return;
        };
        if matches!(self.phase, Phase::Poisoned(_)) {
            return;
        }
        let later = self.waiters.split_off(&(Ticket(durable.0 + 1), 0));
        let ready = std::mem::replace(&mut self.waiters, later);
        for (_, waiter) in ready {
            self.on_durable(waiter, out);
        }
    }

    fn on_durable(&mut self, waiter: Waiter, out: &mut Outbox) {
        match waiter {
            Waiter::Marked { nsid, regions } => self.on_marked(nsid, &regions),
            Waiter::Begin(id) => self.begin(id, out),
            Waiter::Finish(id) => {
                let answer = match &self.active_mut(id).kind {
                    Kind::Entry(answer) => answer.clone(),
                    Kind::Read { .. }
                    | Kind::Write { .. }
                    | Kind::Zero { .. }
                    | Kind::Scrub(_)
                    | Kind::Heal(_)
                    | Kind::Stable { .. }
                    | Kind::Flush => Answer::Done,
                };
                self.finish(id, Ok(answer), out);
            }
            Waiter::Answer(command, answer) => {
                out.push(Effect::Answer {
                    command,
                    result: Ok(answer),
                });
            }
            Waiter::Open(nsid) => self.on_drained(nsid.0, out),
            Waiter::Flushed => self.finish_flush_run(out),
            Waiter::Freed(extents) => self.quarantine(extents, Way::Pool, out),
            Waiter::Changed(nsid) => self.on_changed(nsid.0, out),
            Waiter::Merged => self.on_merged(),
        }
    }

    /// What a slice says of itself, if it is here.
    pub fn slice(&self, nsid: Nsid) -> Option<SliceState> {
        self.slices
            .get(&nsid.0)
            .filter(|s| s.removing.is_none())
            .map(|s| self.state_of(s))
    }

    /// All slices, ascending.
    pub fn slices(&self) -> impl Iterator<Item = SliceState> + '_ {
        self.slices
            .values()
            .filter(|s| s.removing.is_none())
            .map(|s| self.state_of(s))
    }

    fn state_of(&self, slice: &Slice) -> SliceState {
        slice.state(self.sb.incarnation, self.sb.lost_at, self.was_clean)
    }

    /// Identity of the store; zeroes until its superblock is read.
    pub const fn store(&self) -> [u8; 16] {
        self.sb.store
    }

    /// Space and other figures.
    pub fn usage(&self) -> StoreUsage {
        StoreUsage {
            capacity_bytes: self.sb.geometry.capacity_bytes(),
            free_bytes: (u64::from(self.space.free()) + self.not_yet_free())
                * u64::from(EXTENT_BYTES),
            returning_bytes: self.not_yet_free() * u64::from(EXTENT_BYTES),
            pages: self.pages.count(),
            pages_used: self.pages.used(),
            journal_bytes: self.sb.geometry.journal_bytes,
            journal_used_bytes: self.journal.used_bytes(),
        }
    }

    /// Marked regions of a slice, durable or on their way.
    #[cfg(test)]
    fn marked_regions(&self, nsid: u32) -> roaring::RoaringBitmap {
        self.slices[&nsid].marks.clone()
    }

    /// Snapshots of a slice and whether they are pending.
    #[cfg(test)]
    fn generations(&self, nsid: u32) -> Option<BTreeMap<u32, bool>> {
        let slice = self.slices.get(&nsid)?;
        Some(slice.generations.snapshots().clone())
    }

    #[cfg(test)]
    const fn growths(&self) -> u32 {
        self.sb.growths
    }

    /// Extents in use that growths have brought.
    #[cfg(test)]
    fn extents_used_of_growths(&self) -> u64 {
        let first = self.sb.geometry.first().extents;
        let leaves = self.slices.values().flat_map(|s| s.leaves.values());
        let used = leaves.flat_map(leaf::Leaf::physical);
        used.filter(|extent| *extent >= first).count() as u64
    }

    /// Few checksum blocks in memory, so that they come and go.
    #[cfg(test)]
    const fn limit_checksums(&mut self, blocks: usize) {
        if let Some(checksums) = &mut self.checksums {
            checksums.set_limit(blocks);
        }
    }

    #[cfg(test)]
    fn in_checkpoint(&self) -> bool {
        self.checkpoint.is_some()
    }

    #[cfg(test)]
    fn is_merged(&self, nsid: u32) -> bool {
        self.slices[&nsid].is_merged()
    }

    /// What has been done so far.
    pub const fn counts(&self) -> &CoreCounts {
        &self.counts
    }

    fn check_invariants(&self) {
        assert!(self.active_count <= COMMANDS_MAX);
        assert!(self.journal.used_bytes() < self.sb.geometry.journal_bytes);
        assert!(self.parked.len() <= self.active_count);
    }
}

//! Generations of a slice: which there are, who may write to which, and how they come and go. A change
//! takes effect when its journal entry is durable; one is on its way at a time, the others queue.
//!
//! ```text
//! Begin g+1:   head g ──► snapshot g, pending (takes what was issued before) + head g+1
//! Complete g:  pending ──► complete: exact and unchanging; answered when nothing of before is in flight
//! Drop g:      ──► gone: what only g had is the next generation's (see `merge`)
//! ```

use super::facts::{GenerationState, StoreFault};
use super::format::entry::Entry;
use super::format::page::PAGE_SNAPSHOTS;
use super::io::{Answer, Command, CommandId, Effect, Outbox};
use super::journal::Ticket;
use super::slice::Slice;
use super::{Core, Waiter};
use shardmap::canary::{Mechanism, stands};
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::units::{EXTENT_BLOCKS, Generation, Nsid};
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

/// Generation of a slice that never had a snapshot.
const FIRST: u32 = 1;

/// A step in the life of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Begin(u32),
    Complete(u32),
    Drop(u32),
}

impl Change {
    pub(super) const fn entry(self, nsid: Nsid) -> Entry {
        match self {
            Self::Begin(g) => Entry::GenerationBegun(nsid, Generation(g)),
            Self::Complete(g) => Entry::GenerationCompleted(nsid, Generation(g)),
            Self::Drop(g) => Entry::GenerationDropped(nsid, Generation(g)),
        }
    }
}

/// The generations of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generations {
    head: u32,
    /// Whether each is pending.
    snapshots: BTreeMap<u32, bool>,
}

impl Default for Generations {
    fn default() -> Self {
        Self {
            head: FIRST,
            snapshots: BTreeMap::new(),
        }
    }
}

impl Generations {
    pub(super) const fn load(head: u32, snapshots: BTreeMap<u32, bool>) -> Self {
        Self { head, snapshots }
    }

    pub(super) const fn head(&self) -> u32 {
        self.head
    }

    /// The snapshots, ascending, and whether they are pending.
    pub(super) const fn snapshots(&self) -> &BTreeMap<u32, bool> {
        &self.snapshots
    }

    /// Whether the generation can be read.
    pub(super) fn has(&self, generation: u32) -> bool {
        generation == self.head || self.snapshots.contains_key(&generation)
    }

    /// The generation that shows what was written in `generation`: itself, or the next one if it was
    /// dropped.
    pub(super) fn heir(&self, generation: u32) -> u32 {
        let next = self.snapshots.range(generation..).next();
        next.map_or(self.head, |(heir, _)| *heir)
    }

    /// The generations whose cells a generation may change: its own, and those that it alone inherited.
    pub(super) fn own(&self, generation: u32) -> RangeInclusive<u32> {
        let before = self.snapshots.range(..generation).next_back();
        before.map_or(1, |(before, _)| before + 1)..=generation
    }

    /// Applies a change; on replay of an entry that is older than the page it does no harm.
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Begin(head) if head > self.head => {
                self.snapshots.insert(self.head, true);
                self.head = head;
            }
            Change::Begin(_) => {}
            Change::Complete(generation) => {
                if let Some(pending) = self.snapshots.get_mut(&generation) {
                    *pending = false;
                }
            }
            Change::Drop(generation) => {
                self.snapshots.remove(&generation);
            }
        }
    }
}

/// Changes of a slice's generations that are not durable yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// In the journal's lane. Images of the slice's page tell it as done: the checkpoint's tail may lie
    /// behind its record.
    pub(super) running: Option<(Change, CommandId, Ticket)>,
    queue: VecDeque<(Change, CommandId)>,
    /// Completed, and answered when what was admitted up to this turn has ended.
    completing: Vec<(CommandId, u64)>,
}

impl Changes {
    /// Commands that wait here, because the slice or the store is gone.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = CommandId> {
        let running = self.running.take().map(|(_, id, _)| id).into_iter();
        let queue = std::mem::take(&mut self.queue)
            .into_iter()
            .map(|(_, id)| id);
        let completing = std::mem::take(&mut self.completing).into_iter();
        running.chain(queue).chain(completing.map(|(id, _)| id))
    }

    /// Whether this change is on its way into the journal.
    pub(super) fn is_running(&self, change: Change) -> bool {
        self.running.is_some_and(|(running, ..)| running == change)
    }

    pub(super) const fn is_completing(&self) -> bool {
        !self.completing.is_empty()
    }
}

impl Slice {
    /// The generation that a read, write or zero is for; zero stands for the head.
    pub(super) fn resolve(&self, asked: Generation) -> u32 {
        let unknown = asked.0 > self.generations.head() && !stands(Mechanism::BeginAll);
        if asked.0 == 0 || unknown {
            self.generations.head()
        } else {
            asked.0
        }
    }

    pub(super) fn check_readable(&self, asked: Generation) -> Result<u32, StoreFault> {
        let generation = self.resolve(asked);
        if self.generations.has(generation) {
            Ok(generation)
        } else {
            Err(StoreFault::UnknownGeneration {
                nsid: self.spec.nsid,
                asked,
            })
        }
    }

    /// Whether a command reads nothing but complete snapshots of a slice that has all of them. They never
    /// change, so it makes no difference who else has the slice, and no session is needed.
    pub(super) fn is_of_a_snapshot(&self, command: &Command) -> bool {
        let complete = |g: Generation| self.generations.snapshots().get(&g.0) == Some(&false);
        let only_complete = if let Command::Read { generation, .. } = command {
            complete(*generation)
        } else if let Command::ReadPresence { after, upto, .. } = command {
            complete(*upto) && (after.0 == 0 || complete(*after))
        } else {
            false
        };
        only_complete && !self.incomplete && self.removing.is_none()
    }

    /// Writes go to the head and to snapshots that are pending: to the one before the head, or to all
    /// that a store lacks which was away; and on an incomplete slice to any.
    pub(super) fn check_writable(&self, asked: Generation) -> Result<u32, StoreFault> {
        let generation = self.resolve(asked);
        let snapshot = self.generations.snapshots().get(&generation);
        let writable = snapshot.map_or(generation == self.generations.head(), |pending| {
            *pending || self.incomplete
        });
        if writable {
            Ok(generation)
        } else {
            Err(StoreFault::WrongGeneration {
                nsid: self.spec.nsid,
                head: Generation(self.generations.head()),
                asked,
            })
        }
    }

    /// A change is durable, or was before.
    fn answer_changed(&mut self, change: Change, id: CommandId, out: &mut Outbox) {
        if let Change::Complete(_) = change {
            let turn = self.drain.next_turn();
            self.changes.completing.push((id, turn));
            self.answer_completing(out);
        } else {
            out.push(Effect::Answer {
                command: id,
                result: Ok(Answer::Done),
            });
        }
    }

    /// Answers completions whose predecessors have ended.
    pub(super) fn answer_completing(&mut self, out: &mut Outbox) {
        let drain = &self.drain;
        self.changes.completing.retain(|(command, turn)| {
            let over = drain.is_over(*turn);
            if over {
                out.push(Effect::Answer {
                    command: *command,
                    result: Ok(Answer::Done),
                });
            }
            !over
        });
    }

    /// The generations as they are on the medium when all that is on its way has arrived.
    pub(super) fn generations_on_medium(&self) -> Generations {
        let mut generations = self.generations.clone();
        if let Some((change, ..)) = self.changes.running {
            generations.apply(change);
        }
        generations
    }

    /// Whether there is anything to do for a change; `Err` if it cannot be.
    fn check_change(&self, change: Change) -> Result<bool, StoreFault> {
        let nsid = self.spec.nsid;
        let generations = &self.generations;
        let unknown = |asked| StoreFault::UnknownGeneration {
            nsid,
            asked: Generation(asked),
        };
        match change {
            Change::Begin(head) if head == generations.head() => Ok(false),
            Change::Begin(head) => {
                if head < generations.head() {
                    let (head, asked) = (Generation(generations.head()), Generation(head));
                    Err(StoreFault::WrongGeneration { nsid, head, asked })
                } else if generations.snapshots().len() >= PAGE_SNAPSHOTS {
                    let max = PAGE_SNAPSHOTS;
                    Err(StoreFault::TooManySnapshots { nsid, max })
                } else {
                    Ok(true)
                }
            }
            Change::Complete(generation) => {
                let snapshot = generations.snapshots().get(&generation);
                snapshot.copied().ok_or_else(|| unknown(generation))
            }
            // One that is pending here was completed elsewhere and deleted while this store was away.
            Change::Drop(generation) => match generations.snapshots().get(&generation) {
                Some(_) => Ok(true),
                None if generation < generations.head() => Ok(false),
                None => Err(unknown(generation)),
            },
        }
    }
}

impl Core {
    /// A change of a slice's generations is asked for.
    pub(super) fn change_generations(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        change: Change,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self
            .slices
            .get_mut(&nsid.0)
            .filter(|s| s.removing.is_none());
        let slice = slice.ok_or(StoreFault::UnknownSlice { nsid })?;
        slice.changes.queue.push_back((change, id));
        self.start_change(nsid, out);
        Ok(())
    }

    /// The next change that is waiting, if none is on its way.
    fn start_change(&mut self, nsid: Nsid, out: &mut Outbox) {
        loop {
            let slice = self.slices.get_mut(&nsid.0).expect("has changes");
            if slice.changes.running.is_some() {
                return;
            }
            let Some((change, id)) = slice.changes.queue.pop_front() else {
                return;
            };
            let allowed = match change {
                Change::Drop(generation) => self.check_not_shown(nsid, Some(generation)),
                Change::Begin(_) | Change::Complete(_) => Ok(()),
            };
            let slice = self.slices.get_mut(&nsid.0).expect("has changes");
            match allowed.and_then(|()| slice.check_change(change)) {
                Err(fault) => out.push(Effect::Answer {
                    command: id,
                    result: Err(fault),
                }),
                Ok(false) => slice.answer_changed(change, id, out),
                Ok(true) => {
                    self.pages.touch(slice.page);
                    let ticket = self.journal.append(&change.entry(nsid));
                    slice.changes.running = Some((change, id, ticket));
                    self.wait_for(ticket, Waiter::Changed(nsid));
                    return;
                }
            }
        }
    }

    /// The change that was on its way is durable.
    pub(super) fn on_changed(&mut self, nsid: u32, out: &mut Outbox) {
        let journal = &self.journal;
        let Some((slice, (change, id, _))) = self.slices.get_mut(&nsid).and_then(|slice| {
            // A slice of that number that was made anew may have a change of its own.
            let running = slice
                .changes
                .running
                .take_if(|(.., t)| journal.is_durable(*t));
            running.map(|running| (slice, running))
        }) else {
            return;
        };
        slice.generations.apply(change);
        slice.answer_changed(change, id, out);
        if let Change::Drop(generation) = change {
            self.inherit(nsid, generation);
        }
        self.start_change(Nsid(nsid), out);
    }

    /// The generations of a slice.
    pub(crate) fn generations_of(&self, nsid: Nsid) -> Option<VolumeGenerations> {
        let generations = &self.slices.get(&nsid.0)?.generations;
        let snapshots = generations.snapshots().iter();
        let state = |(generation, pending): (&u32, &bool)| {
            let state = if *pending {
                SnapshotState::Pending
            } else {
                SnapshotState::Complete
            };
            (Generation(*generation), state)
        };
        Some(VolumeGenerations {
            head: Generation(generations.head()),
            snapshots: snapshots.map(state).collect(),
            hold: false,
        })
    }

    /// The generations of a slice and the space each has.
    pub(super) fn read_generations(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self.slices.get(&nsid.0);
        let slice = slice.ok_or(StoreFault::UnknownSlice { nsid })?;
        let mut extents: BTreeMap<u32, u64> = BTreeMap::new();
        for leaf in slice.leaves.values() {
            for (generation, count) in leaf.layers() {
                let heir = slice.generations.heir(*generation);
                *extents.entry(heir).or_default() += u64::from(count.bound);
            }
        }
        let state = |(generation, pending): (u32, bool)| GenerationState {
            generation: Generation(generation),
            pending,
            used_blocks: extents.get(&generation).copied().unwrap_or(0) * u64::from(EXTENT_BLOCKS),
        };
        let snapshots = slice.generations.snapshots().iter();
        let snapshots = snapshots.map(|(generation, pending)| (*generation, *pending));
        let all = snapshots.chain([(slice.generations.head(), false)]);
        let generations = all.map(state).collect();
        out.push(Effect::Answer {
            command: id,
            result: Ok(Answer::Generations(generations)),
        });
        Ok(())
    }
}

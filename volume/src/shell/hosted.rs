//! One volume of the shell: its core, its buffers, its counters.

use super::translate::Credentials;
use crate::api::{AttachGrant, HostBuffer, ViewGrant, VolumeCounters, VolumeEvent};
use crate::core::{
    AttachFault, CopyId, Effect, Event, HostFault, HostWhat, Members, OpId, Outbox, Payload,
    Position, Replicator, Timer, View,
};
use reactor::{Buf, BufMut, TimerId};
use shardmap::dirty::BlockSet;
use shardmap::generations::SnapshotStep;
use shardmap::map::VolumeMap;
use shardmap::units::{BLOCK_BYTES, Epoch, Generation, Moment, Nsid, StoreId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// A host request's buffer while the core works on it.
#[derive(Debug)]
pub(super) enum CallBuffer {
    /// Parts that are at home, by their first block. A part that is being read is away.
    Read {
        parts: BTreeMap<u32, BufMut>,
        away: u32,
    },
    Write(Buf),
    None,
}

/// A host request.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) what: HostWhat,
    pub(super) buffer: CallBuffer,
    /// What a request for changes has found.
    pub(super) found: Option<BlockSet>,
    /// The core is done; parts of the buffer are still away.
    pub(super) result: Option<Result<(), HostFault>>,
}

impl CallBuffer {
    pub(super) fn for_read(into: BufMut) -> Self {
        Self::Read {
            parts: BTreeMap::from([(0, into)]),
            away: 0,
        }
    }

    /// Lends the part `[first_block, first_block + blocks)` to a read.
    pub(super) fn lend(&mut self, first_block: u32, blocks: u32) -> BufMut {
        let Self::Read { parts, away } = self else {
            unreachable!("a read has a read buffer")
        };
        let key = *parts
            .range(..=first_block)
            .next_back()
            .expect("the part is at home")
            .0;
        let mut part = parts.remove(&key).expect("just seen");
        if key < first_block {
            parts.insert(key, part.split_to((first_block - key) * BLOCK_BYTES));
        }
        let lent = part.split_to(blocks * BLOCK_BYTES);
        if !part.is_empty() {
            parts.insert(first_block + blocks, part);
        }
        *away += 1;
        lent
    }

    pub(super) fn give_back(&mut self, first_block: u32, part: BufMut) {
        let Self::Read { parts, away } = self else {
            unreachable!("a read has a read buffer")
        };
        *away -= 1;
        assert!(
            parts.insert(first_block, part).is_none(),
            "one part came back twice"
        );
    }

    fn is_home(&self) -> bool {
        !matches!(self, Self::Read { away, .. } if *away > 0)
    }

    fn into_host(self) -> HostBuffer {
        match self {
            Self::Read { parts, .. } => {
                let mut parts = parts.into_values();
                let mut whole = parts.next().expect("all parts are at home");
                parts.for_each(|part| whole.join(part));
                HostBuffer::Read(whole)
            }
            Self::Write(data) => HostBuffer::Write(data),
            Self::None => HostBuffer::None,
        }
    }
}

/// A copy buffer of the core.
#[derive(Debug)]
pub(super) enum CopyBuffer {
    /// Being read, or waiting for memory; `true` once the core has dropped it.
    Away(bool),
    Home(Buf),
}

/// What decides.
#[derive(Debug)]
pub(super) enum Machine {
    Volume(Box<Replicator>),
    View(View),
}

impl Machine {
    pub(super) fn step(&mut self, now: Moment, event: Event, out: &mut Outbox) {
        match self {
            Self::Volume(core) => core.step(now, event, out),
            Self::View(core) => core.step(now, event, out),
        }
    }
}

/// A volume, or a view of one.
#[derive(Debug)]
pub(super) struct Hosted {
    pub(super) volume: VolumeId,
    pub(super) core: Machine,
    pub(super) credentials: Credentials,
    pub(super) epoch: Epoch,
    pub(super) map: VolumeMap,
    /// By position: server and namespace.
    pub(super) slices: Vec<(usize, Nsid)>,
    pub(super) calls: BTreeMap<OpId, Call>,
    pub(super) copies: BTreeMap<CopyId, CopyBuffer>,
    pub(super) timers: BTreeMap<Timer, TimerId>,
    pub(super) counters: VolumeCounters,
    pub(super) next_op: u64,
    /// The core has ended; told once every buffer is at home.
    pub(super) farewell: Option<VolumeEvent>,
}

impl Hosted {
    pub(super) fn new(grant: &AttachGrant, core: Machine, slices: Vec<(usize, Nsid)>) -> Self {
        let credentials = Credentials {
            volume: grant.volume,
            ticket: grant.ticket,
        };
        Self::with(credentials, core, (&grant.map, slices), grant.epoch)
    }

    /// A view has no session, and so neither an epoch nor a ticket.
    pub(super) fn of_view(grant: &ViewGrant, core: Machine, slices: Vec<(usize, Nsid)>) -> Self {
        let credentials = Credentials {
            volume: grant.id,
            ticket: [0; 32],
        };
        Self::with(credentials, core, (&grant.map, slices), Epoch(0))
    }

    fn with(
        credentials: Credentials,
        core: Machine,
        (map, slices): (&VolumeMap, Vec<(usize, Nsid)>),
        epoch: Epoch,
    ) -> Self {
        Self {
            volume: credentials.volume,
            core,
            credentials,
            epoch,
            map: map.clone(),
            slices,
            calls: BTreeMap::new(),
            copies: BTreeMap::new(),
            timers: BTreeMap::new(),
            counters: VolumeCounters::default(),
            next_op: 0,
            farewell: None,
        }
    }

    pub(super) fn store(&self, at: Position) -> StoreId {
        self.map.stores[at.index()]
    }

    pub(super) fn stores(&self, members: Members) -> BTreeSet<StoreId> {
        members
            .iter()
            .filter(|p| p.index() < self.slices.len())
            .map(|p| self.store(p))
            .collect()
    }

    /// Positions of stores; `None` if one is not of this volume.
    pub(super) fn members(map: &VolumeMap, stores: &BTreeSet<StoreId>) -> Option<Members> {
        stores
            .iter()
            .map(|s| Some(Position::new(usize::from(map.position_of(*s)?))))
            .collect()
    }

    /// What is known of stores, by position; strangers are left out.
    pub(super) fn by_position<T: Copy>(
        map: &VolumeMap,
        known: &BTreeMap<StoreId, T>,
    ) -> BTreeMap<Position, T> {
        let place = |(store, what): (&StoreId, &T)| {
            let position = map.position_of(*store)?;
            Some((Position::new(usize::from(position)), *what))
        };
        known.iter().filter_map(place).collect()
    }

    /// The stable bytes of a write; every replica gets a clone.
    pub(super) fn write_data(&self, from: &Payload, blocks: u32) -> Buf {
        match from {
            Payload::Host { op, first_block } => {
                let CallBuffer::Write(data) = &self.calls[op].buffer else {
                    unreachable!("a write has data")
                };
                data.slice(first_block * BLOCK_BYTES, blocks * BLOCK_BYTES)
            }
            Payload::Copy(copy) => {
                let Some(CopyBuffer::Home(data)) = self.copies.get(copy) else {
                    unreachable!("a copy is written after it was read")
                };
                assert_eq!(data.len_bytes(), blocks * BLOCK_BYTES);
                data.clone()
            }
        }
    }

    fn stores_needed(&self, why: AttachFault) -> BTreeSet<StoreId> {
        match why {
            AttachFault::StoresNeeded(members) => self.stores(members),
            AttachFault::Fenced
            | AttachFault::MembersAway(_)
            | AttachFault::Membership
            | AttachFault::MetadBehind
            | AttachFault::DataLost
            | AttachFault::Detached => BTreeSet::new(),
        }
    }

    fn snapshot(&mut self, generation: Generation, step: SnapshotStep) -> VolumeEvent {
        self.counters.metad_requests += 1;
        VolumeEvent::Snapshot {
            volume: self.volume,
            epoch: self.epoch,
            generation,
            step,
        }
    }

    /// What the program must know.
    pub(super) fn tell(&mut self, effect: Effect, events: &mut Vec<VolumeEvent>) {
        let volume = self.volume;
        match effect {
            Effect::AskMetad { request, seq, isr } => {
                self.counters.metad_requests += 1;
                let (epoch, new_isr) = (self.epoch, self.stores(isr));
                let request = request.0;
                events.push(VolumeEvent::AskMetad {
                    volume,
                    request,
                    epoch,
                    seq,
                    new_isr,
                });
            }
            Effect::AskVerify {
                request,
                seq,
                found_seq,
                isr,
            } => {
                self.counters.metad_requests += 1;
                events.push(VolumeEvent::AskVerify {
                    volume,
                    request: request.0,
                    epoch: self.epoch,
                    seq,
                    found_seq,
                    isr: self.stores(isr),
                });
            }
            Effect::Remember(trusted) => {
                let stores = trusted.into_iter();
                let stores = stores.map(|(at, incarnation)| (self.store(at), incarnation));
                events.push(VolumeEvent::Remember {
                    volume,
                    epoch: self.epoch,
                    stores: stores.collect(),
                });
            }
            Effect::Attached => events.push(VolumeEvent::Attached { volume }),
            Effect::AttachFailed(why) => {
                let stores_needed = self.stores_needed(why);
                self.farewell = Some(VolumeEvent::AttachFailed {
                    volume,
                    why,
                    stores_needed,
                });
            }
            Effect::Detached => self.farewell = Some(VolumeEvent::Detached { volume }),
            Effect::Failed(why) => {
                tracing::error!(%volume, %why, "device fails");
                events.push(VolumeEvent::Failed { volume, why });
            }
            Effect::Snapshot(generation, step) => {
                events.push(self.snapshot(generation, step));
            }
            Effect::Progress(progress) => {
                events.push(VolumeEvent::Progress { volume, progress });
            }
            Effect::Connect(_)
            | Effect::Send { .. }
            | Effect::Complete { .. }
            | Effect::Found { .. }
            | Effect::DropCopy(_)
            | Effect::Arm { .. }
            | Effect::Trace(_) => unreachable!("the shell's own"),
        }
    }

    /// The answer to a request for changes; its completion follows.
    pub(super) fn found(&mut self, op: OpId, found: BlockSet) {
        let call = self.calls.get_mut(&op).expect("not completed yet");
        call.found = Some(found);
    }

    /// The core is done with a request.
    pub(super) fn complete(
        &mut self,
        op: OpId,
        result: Result<(), HostFault>,
        events: &mut Vec<VolumeEvent>,
    ) {
        let call = self
            .calls
            .get_mut(&op)
            .expect("the core completes what it was given, once");
        assert!(
            call.result.replace(result).is_none(),
            "{op:?} completed twice"
        );
        self.tell_if_home(op, events);
    }

    /// Tells the host once every part of the buffer is back.
    pub(super) fn tell_if_home(&mut self, op: OpId, events: &mut Vec<VolumeEvent>) {
        let Some(call) = self.calls.get(&op) else {
            return;
        };
        let Some(result) = call.result.filter(|_| call.buffer.is_home()) else {
            return;
        };
        let call = self.calls.remove(&op).expect("just seen");
        self.count(call.what, result.is_ok());
        let buffer = match call.found {
            Some(found) => HostBuffer::Changes(found),
            None => call.buffer.into_host(),
        };
        events.push(VolumeEvent::HostDone {
            volume: self.volume,
            id: call.id,
            result,
            buffer,
        });
    }

    fn count(&mut self, what: HostWhat, ok: bool) {
        let counters = &mut self.counters;
        match what {
            _ if !ok => counters.faults += 1,
            HostWhat::Read(range) => {
                counters.reads += 1;
                counters.read_bytes += range.len_bytes();
            }
            HostWhat::Write { range, .. } => {
                counters.writes += 1;
                counters.written_bytes += range.len_bytes();
            }
            HostWhat::Flush => counters.flushes += 1,
            HostWhat::Zero { .. } => counters.zeroes += 1,
            HostWhat::Changes { .. } => {}
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use reactor::{Arena, ArenaConfig};

    #[test]
    fn a_read_buffer_is_lent_in_parts_and_comes_back_whole() {
        let config = ArenaConfig {
            slot_counts: [1, 1, 1],
            huge_pages: false,
        };
        let arena = Arena::new(&config).unwrap();
        let mut buffer = CallBuffer::for_read(arena.take(4 * BLOCK_BYTES).unwrap());
        let tail = buffer.lend(3, 1);
        let mut head = buffer.lend(0, 3);
        assert!(!buffer.is_home());
        head.bytes_mut()[0] = 42;
        buffer.give_back(3, tail);
        buffer.give_back(0, head);
        assert!(buffer.is_home());
        let HostBuffer::Read(whole) = buffer.into_host() else {
            panic!("a read")
        };
        assert_eq!((whole.len_bytes(), whole.bytes()[0]), (4 * BLOCK_BYTES, 42));
    }
}

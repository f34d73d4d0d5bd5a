//! Slices as NVMe namespaces: commands of the target become requests to stores, answers find back.

mod growth;

use self::growth::growth_of;
use crate::faults::status_of;
use crate::healing::{Finder, Healing, Looked, Place};
use crate::orders::{Fill, SliceEnd};
use crate::tidy::{Ask, DropCounters, Tidy};
use crate::vendor;
use control::core::STORAGED_HOST_NQN_PREFIX;
use nvmf::proto::status::Status;
use nvmf::proto::vendor::opcode::{GROW_STORE, READ_REPLICA};
use nvmf::target::{
    AssociationId, Command, CommandId, CommandKind, NamespaceFacts, Namespaces, Reply, ReplyData,
};
use reactor::{Buf, BufMut, Completion, Driver};
use shardmap::generations::VolumeGenerations;
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, EXTENT_BLOCKS, Generation, Lba, Nsid};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use store::{
    Growth, Healed, Rot, ScrubPace, SliceSpec, SliceState, Store, StoreEvent, StoreFault, StoreOp,
    StoreReply, StoreRequest,
};
use uuid::Uuid;

/// Requests that control makes carry this bit, so that their answers are told from the target's.
const CONTROL_BIT: u64 = 1 << 63;
/// Farewells carry this one; nobody waits for their answers.
const FAREWELL_BIT: u64 = 1 << 62;
/// What lets deleted generations go carries this one, the NSID shifted by one, and 1 for a drop.
const TIDY_BIT: u64 = 1 << 61;

/// What heals blocks carries this one, and 1 for an offer.
const HEAL_BIT: u64 = 1 << 60;
const ANY_BIT: u64 = CONTROL_BIT | FAREWELL_BIT | TIDY_BIT | HEAL_BIT;

/// A block that is not what was written there.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) store_index: usize,
    pub(crate) rot: Rot,
    pub(crate) by: Finder,
}

/// A store's answer to what heals a block.
#[derive(Debug)]
pub(crate) enum HealAnswer {
    /// It was looked at.
    Looked(Looked),
    /// Bytes were offered; `None`: the store could not write them.
    Offered(Option<Healed>),
}

/// What a request to a store was made for.
#[derive(Debug)]
struct Pending {
    id: CommandId,
    /// The opcode and longest answer of a vendor command.
    vendor: Option<(u8, u32)>,
    /// Of a Deallocate: ranges still unanswered, beside this one.
    group: Option<u64>,
    /// The slice, if deleted generations of it may be let go after this.
    completes: Option<Nsid>,
    /// Of a read: which store and generation.
    reads: Option<(usize, Generation)>,
}

/// A Deallocate of several ranges is answered once, when the last range is.
#[derive(Debug)]
struct Group {
    left: usize,
    worst: Status,
}

/// The stores of this server, seen as namespaces.
#[derive(Debug)]
pub struct Slices {
    stores: Vec<Option<Store>>,
    fills: Arc<[Fill]>,
    /// Which store holds a slice.
    homes: BTreeMap<u32, usize>,
    hosts: BTreeSet<String>,
    /// Who is behind an association.
    guests: BTreeMap<AssociationId, String>,
    pending: BTreeMap<u64, Pending>,
    groups: BTreeMap<u64, Group>,
    next_id: u64,
    tidy: Tidy,
    /// Slices that clones wait for, and those of them that have changed.
    awaited: BTreeSet<Nsid>,
    changed: BTreeSet<Nsid>,
    /// How stores are scrubbed.
    pace: Option<ScrubPace>,
    /// Events of stores by their place, not yet handled.
    events: Vec<(usize, StoreEvent)>,
    scratch: Vec<StoreEvent>,
    replies: Vec<Reply>,
    /// Blocks that are not what was written, to be told to who heals them.
    found: Vec<Found>,
    heal_answers: VecDeque<HealAnswer>,
}

/// What the app must know of a store's events, beyond answers to the target.
#[derive(Debug)]
pub(crate) enum Notable {
    /// The store serves.
    Opened(usize, Box<store::OpenFacts>),
    /// It does not.
    Failed(usize, String),
    /// It must not be trusted any more.
    Poisoned(usize, String),
    /// It is closed, clean.
    Stopped(usize),
    /// Control's request is answered.
    SliceDone {
        /// The slice.
        nsid: Nsid,
        /// How that ended.
        end: SliceEnd,
    },
    /// A slice that control wants is a clone's, and what it begins with is not whole here.
    CloneWaits(Nsid),
    /// A slice is whole, or has another complete snapshot, and clones wait for that.
    SliceChanged(Nsid),
    /// A store has grown.
    Grown(usize, Growth),
}

impl Slices {
    /// No store is open yet.
    pub(crate) fn new(fills: Arc<[Fill]>) -> Self {
        Self {
            stores: Vec::new(),
            fills,
            homes: BTreeMap::new(),
            hosts: BTreeSet::new(),
            guests: BTreeMap::new(),
            pending: BTreeMap::new(),
            groups: BTreeMap::new(),
            next_id: 0,
            tidy: Tidy::default(),
            awaited: BTreeSet::new(),
            changed: BTreeSet::new(),
            pace: None,
            events: Vec::new(),
            scratch: Vec::new(),
            replies: Vec::new(),
            found: Vec::new(),
            heal_answers: VecDeque::new(),
        }
    }

    /// Begins to open a store; [`Notable::Opened`] or [`Notable::Failed`] follows. Stores are
    /// opened in the order of their places.
    pub(crate) fn open(&mut self, io: &mut dyn Driver, room: u8, path: &Path, cluster: Uuid) {
        let index = self.stores.len();
        let place = u32::try_from(index).expect("a handful of stores");
        let mut events = std::mem::take(&mut self.scratch);
        match Store::open(io, (room, place), path, cluster, &mut events) {
            Ok(store) => self.stores.push(Some(store)),
            Err(fault) => {
                self.stores.push(None);
                events.push(StoreEvent::OpenFailed(fault));
            }
        }
        self.keep(index, events);
    }

    /// Stores that are open or opening, with their places.
    pub fn stores(&self) -> impl Iterator<Item = (usize, &Store)> {
        self.stores
            .iter()
            .enumerate()
            .filter_map(|(i, s)| Some((i, s.as_ref()?)))
    }

    /// Hosts that may connect. True if one that is connected may not any more.
    pub(crate) fn admit_hosts(&mut self, nqns: Vec<String>) -> bool {
        self.hosts = nqns.into_iter().collect();
        self.guests.values().any(|nqn| !self.hosts.contains(nqn))
    }

    /// Whether a namespace that needs no session is closed to this association: its host was
    /// forgotten after it had connected.
    fn is_closed_to(&self, association: AssociationId, nsid: u32) -> bool {
        let guest = self.guests.get(&association);
        guest.is_some_and(|nqn| !self.hosts.contains(nqn))
            && self.slice(nsid).is_some_and(|s| s.spec.open_access)
    }

    /// A completion of a store's own IO.
    pub(crate) fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        let index = completion.token.index as usize;
        let mut events = std::mem::take(&mut self.scratch);
        if let Some(store) = &mut self.stores[index] {
            store.on_completion(io, completion, &mut events);
        }
        self.keep(index, events);
    }

    fn keep(&mut self, index: usize, mut events: Vec<StoreEvent>) {
        self.events.extend(events.drain(..).map(|e| (index, e)));
        self.scratch = events;
    }

    fn submit(&mut self, io: &mut dyn Driver, index: usize, request: StoreRequest) {
        let mut events = std::mem::take(&mut self.scratch);
        match &mut self.stores[index] {
            Some(store) => store.submit(io, request, &mut events),
            None => {
                let result = Err(StoreFault::Stopping);
                events.push(StoreEvent::Reply {
                    id: request.id,
                    result,
                });
            }
        }
        self.keep(index, events);
    }

    /// Makes or grows a slice for control. A slice that metad knows to be here (`confirmed`) and
    /// that is not was lost: what is made in its place must not pass for whole.
    pub(crate) fn create(
        &mut self,
        io: &mut dyn Driver,
        index: usize,
        spec: SliceSpec,
        confirmed: bool,
    ) {
        let id = CONTROL_BIT | u64::from(spec.nsid.0) << 1;
        if confirmed && !self.homes.contains_key(&spec.nsid.0) {
            tracing::error!(nsid = %spec.nsid, volume = %spec.volume, "the slice is lost or was never here; made anew, to be resilvered");
        }
        let op = StoreOp::CreateSlice {
            spec,
            incomplete: confirmed,
        };
        self.submit(
            io,
            index,
            StoreRequest {
                id,
                slice: spec.nsid,
                association: 0,
                op,
            },
        );
    }

    /// Removes a slice for control.
    pub(crate) fn remove(&mut self, io: &mut dyn Driver, index: usize, nsid: Nsid) {
        let id = CONTROL_BIT | u64::from(nsid.0) << 1 | 1;
        let op = StoreOp::RemoveSlice;
        self.submit(
            io,
            index,
            StoreRequest {
                id,
                slice: nsid,
                association: 0,
                op,
            },
        );
    }

    /// metad has these generations of a slice; others before the head are let go.
    pub(crate) fn keep_generations(&mut self, nsid: Nsid, generations: VolumeGenerations) {
        self.tidy.want(nsid, generations);
    }

    /// Asks stores for what lets deleted generations go. True if there was something to ask.
    pub(crate) fn tidy(&mut self, io: &mut dyn Driver) -> bool {
        let mut any = false;
        while let Some(ask) = self.tidy.next() {
            let (nsid, op, bit) = match ask {
                Ask::Read(nsid) => (nsid, StoreOp::ReadGenerations, 0),
                Ask::Drop(nsid, generation) => (nsid, StoreOp::DropGeneration(generation), 1),
            };
            // A slice that is not made yet, or was removed, has none.
            let Some(index) = self.homes.get(&nsid.0).copied() else {
                continue;
            };
            let id = TIDY_BIT | u64::from(nsid.0) << 1 | bit;
            let request = StoreRequest {
                id,
                slice: nsid,
                association: 0,
                op,
            };
            self.submit(io, index, request);
            any = true;
        }
        any
    }

    /// Generations of slices that were let go since the start.
    pub fn drop_counters(&self) -> DropCounters {
        self.tidy.counters
    }

    fn on_tidied(&mut self, id: u64, result: Result<StoreReply, StoreFault>) {
        let nsid = u32::try_from((id & !TIDY_BIT) >> 1).expect("ids of tidying hold an NSID");
        let drop = id & 1 == 1;
        match result {
            Ok(StoreReply::Generations(has)) => self.tidy.found(Nsid(nsid), &has),
            Ok(_) => self.tidy.dropped(Nsid(nsid), None),
            Err(fault) if drop => self.tidy.dropped(Nsid(nsid), Some(fault.to_string())),
            Err(fault) => tracing::warn!(nsid, %fault, "cannot look for deleted generations"),
        }
    }

    /// Stores that open are scrubbed at that pace.
    pub(crate) const fn scrub_at(&mut self, pace: Option<ScrubPace>) {
        self.pace = pace;
    }

    /// The store has opened.
    pub(crate) fn scrub(&mut self, io: &mut dyn Driver, index: usize) {
        if let (Some(store), Some(pace)) = (&mut self.stores[index], self.pace) {
            store.scrub(io, pace);
        }
    }

    /// Stops every store in order; each answers with [`Notable::Stopped`].
    pub(crate) fn stop(&mut self, io: &mut dyn Driver) {
        for index in 0..self.stores.len() {
            let mut events = std::mem::take(&mut self.scratch);
            if let Some(store) = &mut self.stores[index] {
                store.stop(io, &mut events);
            }
            self.keep(index, events);
        }
    }

    /// Hands out what is to be answered to the target.
    pub(crate) fn take_replies(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.replies)
    }

    /// Works off the stores' events; `None` when there are no more.
    pub(crate) fn next_notable(&mut self) -> Option<Notable> {
        loop {
            if let Some(changed) = self.changed.pop_first() {
                return Some(Notable::SliceChanged(changed));
            }
            if self.events.is_empty() {
                return None;
            }
            let (index, event) = self.events.remove(0);
            if let Some(notable) = self.on_event(index, event) {
                return Some(notable);
            }
        }
    }

    fn on_event(&mut self, index: usize, event: StoreEvent) -> Option<Notable> {
        match event {
            StoreEvent::Opened(facts) => {
                for slice in &facts.slices {
                    self.homes.insert(slice.spec.nsid.0, index);
                }
                self.publish(index);
                Some(Notable::Opened(index, facts))
            }
            StoreEvent::OpenFailed(fault) => {
                self.stores[index] = None;
                Some(Notable::Failed(index, fault.to_string()))
            }
            StoreEvent::Rotten { blocks } => {
                let found = blocks.into_iter().map(|rot| Found {
                    store_index: index,
                    rot,
                    by: Finder::Scrub,
                });
                self.found.extend(found);
                None
            }
            StoreEvent::Poisoned(fault) => Some(Notable::Poisoned(index, fault.to_string())),
            StoreEvent::Stopped => {
                self.stores[index] = None;
                Some(Notable::Stopped(index))
            }
            StoreEvent::Reply { id, .. } if id & FAREWELL_BIT != 0 => None,
            StoreEvent::Reply { id, result } if id & TIDY_BIT != 0 => {
                self.on_tidied(id, result);
                None
            }
            StoreEvent::Reply {
                id,
                result: Err(StoreFault::ParentNotComplete { nsid, parent }),
            } if id & CONTROL_BIT != 0 => {
                self.awaited.insert(parent.nsid);
                Some(Notable::CloneWaits(nsid))
            }
            StoreEvent::Reply { id, result } if id & HEAL_BIT != 0 => {
                self.on_heal_answer(id & 1 == 1, result);
                None
            }
            StoreEvent::Reply { id, result } if id & CONTROL_BIT != 0 => {
                Some(self.on_slice_done(index, id, result.err().map(|f| f.to_string())))
            }
            StoreEvent::Reply { id, result } => {
                let pending = self
                    .pending
                    .remove(&id)
                    .expect("a store answers each request once");
                let growth = growth_of(&result);
                self.on_answer(pending, result);
                growth.map(|growth| self.on_grown(index, growth))
            }
        }
    }

    fn on_slice_done(&mut self, index: usize, id: u64, refused: Option<String>) -> Notable {
        let number = (id & !CONTROL_BIT) >> 1;
        let nsid = u32::try_from(number).expect("ids of control hold an NSID");
        let removal = id & 1 == 1;
        let end = if let Some(why) = refused {
            SliceEnd::Refused(why)
        } else if removal {
            self.tidy.forget(Nsid(nsid));
            self.homes.remove(&nsid);
            SliceEnd::Removed
        } else {
            self.homes.insert(nsid, index);
            let store = self.stores[index].as_ref();
            let slice = store.and_then(|store| store.slice(Nsid(nsid)));
            SliceEnd::Made {
                incomplete: slice.is_some_and(|s| s.incomplete),
            }
        };
        self.publish(index);
        Notable::SliceDone {
            nsid: Nsid(nsid),
            end,
        }
    }

    fn on_answer(&mut self, pending: Pending, result: Result<StoreReply, StoreFault>) {
        if let Some(nsid) = pending.completes.filter(|_| result.is_ok()) {
            self.tidy.completed(nsid);
            if self.awaited.remove(&nsid) {
                self.changed.insert(nsid);
            }
        }
        let status = match &result {
            Ok(_) => Status::SUCCESS,
            Err(fault) => {
                self.note_spoiled(&pending, fault);
                status_of(fault)
            }
        };
        if let Some(group) = pending.group {
            return self.on_group_part(pending.id, group, status);
        }
        let told = match (result, pending.vendor) {
            (Ok(StoreReply::Read(buf)), None) => Ok((0, ReplyData::Buf(buf.freeze()))),
            (Ok(reply), Some((op, max))) => vendor::answer(op, &reply, max).map(in_bytes),
            (Err(StoreFault::Growth(fault)), Some((_, max))) => {
                vendor::refused_growth(fault, max).map(in_bytes)
            }
            (Ok(_) | Err(_), _) => Err(status),
        };
        self.replies.push(match told {
            Ok((result, data)) => Reply {
                id: pending.id,
                status: Status::SUCCESS,
                result,
                data,
            },
            Err(status) => refusal(pending.id, status),
        });
    }

    /// A read that failed at the medium names a block for healing.
    fn note_spoiled(&mut self, pending: &Pending, fault: &StoreFault) {
        let Some((store_index, generation)) = pending.reads else {
            return;
        };
        let (StoreFault::Rotten { nsid, lba, .. }
        | StoreFault::Medium {
            what: "read",
            nsid,
            lba,
            ..
        }) = *fault
        else {
            return;
        };
        let Some(slice) = self.slice(nsid.0) else {
            return;
        };
        let generation = match generation {
            Generation(0) => slice.head,
            other => other,
        };
        let rot = Rot {
            nsid,
            volume: slice.spec.volume,
            generation,
            lba,
        };
        self.found.push(Found {
            store_index,
            rot,
            by: Finder::Read,
        });
    }

    pub(crate) fn take_found(&mut self) -> Vec<Found> {
        std::mem::take(&mut self.found)
    }

    /// Nobody heals.
    pub(crate) fn log_found(&mut self) {
        for Found { rot, .. } in self.found.drain(..) {
            tracing::error!(%rot, "a block on the disk is not what was written there");
        }
    }

    pub(crate) const fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    pub(crate) fn take_heal_answer(&mut self) -> Option<HealAnswer> {
        self.heal_answers.pop_front()
    }

    /// Reads a block of a store for healing it; [`HealAnswer::Looked`].
    pub(crate) fn look(&mut self, io: &mut dyn Driver, place: Place, into: BufMut) {
        let op = StoreOp::ReadReplica {
            lba: place.lba,
            generation: place.generation,
            into,
        };
        let id = HEAL_BIT;
        self.submit_control(io, place.store_index, (id, place.nsid), op);
    }

    /// Hands a store what another one has of a block; [`HealAnswer::Offered`].
    pub(crate) fn offer(&mut self, io: &mut dyn Driver, place: Place, data: Buf) {
        let op = StoreOp::Heal {
            lba: place.lba,
            generation: place.generation,
            data,
        };
        let id = HEAL_BIT | 1;
        self.submit_control(io, place.store_index, (id, place.nsid), op);
    }

    fn submit_control(
        &mut self,
        io: &mut dyn Driver,
        index: usize,
        (id, slice): (u64, Nsid),
        op: StoreOp,
    ) {
        let association = 0;
        let request = StoreRequest {
            id,
            slice,
            association,
            op,
        };
        self.submit(io, index, request);
    }

    fn on_heal_answer(&mut self, offered: bool, result: Result<StoreReply, StoreFault>) {
        let answer = if offered {
            HealAnswer::Offered(match result {
                Ok(StoreReply::Healed(healed)) => Some(healed),
                Ok(_) => unreachable!("an offer is answered by what became of it"),
                Err(fault) => {
                    tracing::warn!(%fault, "a spoiled block was not written again");
                    None
                }
            })
        } else {
            HealAnswer::Looked(match result {
                Ok(_) => Looked::Sound,
                Err(fault) => looked(&fault),
            })
        };
        self.heal_answers.push_back(answer);
    }

    fn on_group_part(&mut self, id: CommandId, group: u64, status: Status) {
        let parts = self
            .groups
            .get_mut(&group)
            .expect("a group lives until its last part");
        parts.left -= 1;
        if !status.is_success() {
            parts.worst = status;
        }
        if parts.left == 0 {
            let worst = parts.worst;
            self.groups.remove(&group);
            self.replies.push(refusal(id, worst));
        }
    }

    /// Publishes the fill of a store.
    fn publish(&self, index: usize) {
        if let Some(store) = &self.stores[index] {
            self.fills[index].publish(store.usage());
        }
    }

    /// Publishes the fill of every store.
    pub(crate) fn publish_all(&self, healing: Option<&Healing>) {
        for (index, _) in self.stores() {
            self.publish(index);
            let spoiled = healing.map_or(0, |h| h.findings_of(index));
            self.fills[index].publish_spoiled(spoiled as u64);
        }
    }

    fn slice(&self, nsid: u32) -> Option<SliceState> {
        let home = *self.homes.get(&nsid)?;
        self.stores[home].as_ref()?.slice(Nsid(nsid))
    }

    fn begin(&mut self, io: &mut dyn Driver, command: &Head, op: StoreOp, pending: Pending) {
        let id = self.next_id;
        self.next_id = (self.next_id + 1) & !ANY_BIT;
        self.pending.insert(id, pending);
        let association = command.association.0;
        let slice = Nsid(command.nsid);
        self.submit(
            io,
            command.home,
            StoreRequest {
                id,
                slice,
                association,
                op,
            },
        );
    }

    fn begin_deallocate(&mut self, io: &mut dyn Driver, head: &Head, ranges: &[(u64, u32)]) {
        let ranges: Vec<BlockRange> = ranges
            .iter()
            .filter_map(|(at, n)| BlockRange::new(Lba(*at), Blocks(*n)))
            .collect();
        if ranges.is_empty() {
            self.replies.push(refusal(head.id, Status::SUCCESS));
            return;
        }
        let group = self.next_id;
        self.groups.insert(
            group,
            Group {
                left: ranges.len(),
                worst: Status::SUCCESS,
            },
        );
        for range in ranges {
            let pending = Pending {
                id: head.id,
                vendor: None,
                group: Some(group),
                completes: None,
                reads: None,
            };
            let op = StoreOp::Zero {
                range,
                deallocate: true,
                fua: false,
                generation: Generation(0),
            };
            self.begin(io, head, op, pending);
        }
    }
}

/// What a look that failed has shown.
fn looked(fault: &StoreFault) -> Looked {
    match fault {
        StoreFault::Rotten { .. } | StoreFault::Medium { .. } => Looked::Spoiled,
        StoreFault::UnknownSlice { .. }
        | StoreFault::OutOfRange { .. }
        | StoreFault::ShardNotHere { .. } => Looked::Gone,
        // An incomplete slice is resilvered, and looked at again after that.
        StoreFault::Incomplete { .. }
        | StoreFault::Busy { .. }
        | StoreFault::Stopping
        | StoreFault::Poisoned { .. }
        | StoreFault::Open(_)
        | StoreFault::Growth(_)
        | StoreFault::WrongVolume { .. }
        | StoreFault::SliceExists { .. }
        | StoreFault::BadSpec { .. }
        | StoreFault::Fenced { .. }
        | StoreFault::SessionRevoked { .. }
        | StoreFault::NotOpen { .. }
        | StoreFault::TooLong { .. }
        | StoreFault::WrongGeneration { .. }
        | StoreFault::UnknownGeneration { .. }
        | StoreFault::TooManySnapshots { .. }
        | StoreFault::ParentNotComplete { .. }
        | StoreFault::HasClones { .. }
        | StoreFault::UnknownTick { .. }
        | StoreFault::NoSpace { .. }
        | StoreFault::NoPages { .. } => Looked::Later,
    }
}

/// The generation that a read is of.
fn read_generation(op: &StoreOp) -> Option<Generation> {
    if let StoreOp::Read { generation, .. } | StoreOp::ReadReplica { generation, .. } = op {
        return Some(*generation);
    }
    None
}

/// An answer to a vendor command, with data only if there are any.
fn in_bytes((result, data): (u64, Vec<u8>)) -> (u64, ReplyData) {
    if data.is_empty() {
        return (result, ReplyData::None);
    }
    (result, ReplyData::Bytes(data))
}

/// An answer without data: a refusal, or plain success.
fn refusal(id: CommandId, status: Status) -> Reply {
    Reply {
        id,
        status,
        result: 0,
        data: ReplyData::None,
    }
}

/// A command in terms of the store, with opcode and longest answer if it is a vendor command.
fn operation(kind: CommandKind) -> Result<(StoreOp, Option<(u8, u32)>), Status> {
    let range =
        |slba, blocks| BlockRange::new(Lba(slba), Blocks(blocks)).ok_or(Status::LBA_OUT_OF_RANGE);
    let op = match kind {
        CommandKind::Read {
            slba,
            blocks,
            into,
            tag,
        } => StoreOp::Read {
            range: range(slba, blocks)?,
            generation: Generation(tag),
            into,
        },
        CommandKind::Write {
            slba,
            blocks,
            fua,
            data,
            tag,
        } => StoreOp::Write {
            range: range(slba, blocks)?,
            data,
            fua,
            generation: Generation(tag),
        },
        CommandKind::Flush => StoreOp::Flush,
        CommandKind::WriteZeroes {
            slba,
            blocks,
            deallocate,
            fua,
            tag,
        } => StoreOp::Zero {
            range: range(slba, blocks)?,
            deallocate,
            fua,
            generation: Generation(tag),
        },
        CommandKind::Deallocate { .. } => unreachable!("has an answer of its own"),
        CommandKind::Vendor {
            opcode,
            cdw10_15,
            data,
            reply_len_bytes,
        } => {
            let op = vendor::operation(opcode, cdw10_15, data.as_deref())?;
            return Ok((op, Some((opcode, reply_len_bytes))));
        }
    };
    Ok((op, None))
}

impl Slices {
    /// The same. Reads of replicas are for storageds only, and need a buffer.
    fn operation_of(
        &self,
        io: &mut dyn Driver,
        association: AssociationId,
        kind: CommandKind,
    ) -> Result<(StoreOp, Option<(u8, u32)>), Status> {
        let CommandKind::Vendor {
            opcode: READ_REPLICA,
            cdw10_15,
            reply_len_bytes,
            ..
        } = kind
        else {
            return operation(kind);
        };
        let (lba, generation) = vendor::replica(cdw10_15)?;
        let guest = self.guests.get(&association);
        if !guest.is_some_and(|nqn| nqn.starts_with(STORAGED_HOST_NQN_PREFIX)) {
            return Err(Status::NOT_OPEN);
        }
        let into = io.arena().take(BLOCK_BYTES);
        let op = StoreOp::ReadReplica {
            lba,
            generation,
            into: into.ok_or(Status::COMMAND_INTERRUPTED)?,
        };
        Ok((op, Some((READ_REPLICA, reply_len_bytes))))
    }
}

/// What all parts of a command share.
struct Head {
    id: CommandId,
    association: AssociationId,
    nsid: u32,
    home: usize,
}

impl Namespaces for Slices {
    fn admits_host(&self, host_nqn: &str) -> bool {
        self.hosts.contains(host_nqn)
    }

    /// Only what a host can use without a session is offered: a block device that refuses every
    /// command helps nobody. clientd knows its slices from metad.
    fn list(&self, host_nqn: &str) -> Vec<u32> {
        if !self.hosts.contains(host_nqn) {
            return Vec::new();
        }
        let open = |nsid: &u32| self.slice(*nsid).is_some_and(|s| s.spec.open_access);
        self.homes.keys().copied().filter(open).collect()
    }

    fn identify(&self, nsid: u32) -> Option<NamespaceFacts> {
        let slice = self.slice(nsid)?;
        let mut nguid = slice.spec.volume.0;
        // One volume has a namespace on each of its stores; they hold different shards and are no
        // paths to one another, so their identities must differ.
        for (byte, salt) in nguid.iter_mut().rev().zip(nsid.to_le_bytes()) {
            *byte ^= salt;
        }
        Some(NamespaceFacts {
            size_blocks: slice.spec.size_blocks,
            used_blocks: slice.used_blocks,
            nguid,
            uuid: nguid,
            thin: true,
            deallocate_blocks: u16::try_from(EXTENT_BLOCKS).expect("an extent is small"),
        })
    }

    fn admit(&mut self, io: &mut dyn Driver, command: Command) {
        let Command {
            id,
            association,
            nsid,
            kind,
        } = command;
        if let CommandKind::Vendor {
            opcode: GROW_STORE,
            cdw10_15,
            reply_len_bytes,
            ..
        } = kind
        {
            let asked = (cdw10_15, reply_len_bytes);
            if let Err(status) = self.begin_growth(io, (id, association), asked) {
                self.replies.push(refusal(id, status));
            }
            return;
        }
        let home = self.homes.get(&nsid).copied();
        let Some(home) = home.filter(|_| !self.is_closed_to(association, nsid)) else {
            self.replies.push(refusal(id, Status::INVALID_NAMESPACE));
            return;
        };
        let head = Head {
            id,
            association,
            nsid,
            home,
        };
        if let CommandKind::Deallocate { ranges } = &kind {
            return self.begin_deallocate(io, &head, ranges);
        }
        match self.operation_of(io, association, kind) {
            Ok((op, vendor)) => {
                let reads = read_generation(&op);
                let completes = matches!(op, StoreOp::Complete(_) | StoreOp::CompleteGeneration(_));
                let pending = Pending {
                    id,
                    vendor,
                    group: None,
                    completes: completes.then_some(Nsid(nsid)),
                    reads: reads.map(|generation| (home, generation)),
                };
                self.begin(io, &head, op, pending);
            }
            Err(status) => self.replies.push(refusal(id, status)),
        }
    }

    fn on_association(&mut self, association: AssociationId, host_nqn: &str) {
        self.guests.insert(association, host_nqn.to_owned());
    }

    fn on_association_gone(&mut self, io: &mut dyn Driver, association: AssociationId) {
        self.guests.remove(&association);
        for index in 0..self.stores.len() {
            let id = FAREWELL_BIT;
            let op = StoreOp::AssociationGone;
            let request = StoreRequest {
                id,
                slice: Nsid(0),
                association: association.0,
                op,
            };
            self.submit(io, index, request);
        }
    }
}

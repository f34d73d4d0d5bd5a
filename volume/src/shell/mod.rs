//! The shell: carries a core's effects to the stores and their answers back. Decides nothing.
//!
//! All volumes of one reactor share one association per storaged. Buffers: a read lends the host's
//! buffer to one request at a time; a write lends clones of one stable copy; resilver copies live
//! in the arena. A host gets its request back once no part of a read buffer is away.

mod effects;
mod hosted;
mod servers;
mod translate;
mod views;

use crate::api::{
    AttachGrant, HostOp, HostRequest, MetadAnswer, MetadVerdict, NotTaken, NotTakenWhy, SlicePath,
    StoreStatus, ViewGrant, VolumeEvent, VolumeStatus,
};
use crate::core::{
    Command, CommandId, Config, CopyId, Event, Grant, HostWhat, OpId, Position, Replicator,
    RequestId, STRIDE_MAX, Timer, Verdict,
};
use crate::limits::HOST_OPS_MAX;
use hosted::{Call, CallBuffer, Hosted, Machine};
use nvmf::initiator::{self, Initiator, InitiatorEvent};
use reactor::{Completion, Driver, Token};
use servers::{Link, Server};
use shardmap::generations::VolumeGenerations;
use shardmap::map::VolumeMap;
use shardmap::units::{BlockRange, Generation, Nsid, StoreId, VolumeId};
use std::collections::{BTreeMap, VecDeque};

/// What all volumes of a reactor share.
#[derive(Clone, Debug)]
pub struct VolumesConfig {
    /// Room of our own tokens (timers).
    pub room: u8,
    /// The initiator; its `room` must be another one.
    pub initiator: initiator::Config,
    /// Spreads pauses; any number.
    pub seed: u64,
}

/// Why a grant cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantFault {
    /// The volume is attached here already.
    #[error("volume {0} is attached here already")]
    AlreadyHere(VolumeId),
    /// The map is not one a volume can have.
    #[error("the map of volume {0} has no store, too many, or does not fit its shape")]
    BadMap(VolumeId),
    /// A store of the map has no slice in the grant.
    #[error("{0} of the volume's map has no slice in the grant")]
    NoSlice(StoreId),
    /// Head and snapshots contradict each other.
    #[error("head and snapshots of volume {0} contradict each other")]
    BadGenerations(VolumeId),
    /// The in-sync set is empty or names a stranger.
    #[error("the in-sync set of volume {0} is empty or names a store outside its map")]
    BadIsr(VolumeId),
}

/// A command on its way, to be found again by the initiator's `user`.
#[derive(Debug)]
struct Ticket {
    slot: u32,
    turn: u32,
    command: CommandId,
    what: Command,
}

/// A read of a copy: into which buffer, where, of which generation.
type CopyRead = (CopyId, BlockRange, Generation);

#[derive(Debug, Default)]
struct Slot {
    turn: u32,
    hosted: Option<Box<Hosted>>,
}

/// All volumes of one reactor.
#[derive(Debug)]
pub struct Volumes {
    config: VolumesConfig,
    initiator: Initiator,
    servers: Vec<Server>,
    slots: Vec<Slot>,
    by_id: BTreeMap<VolumeId, u32>,
    tickets: BTreeMap<u64, Ticket>,
    next_ticket: u64,
    /// Core events that follow from what is being handled.
    work: VecDeque<(u32, u32, Event)>,
    /// Copy reads that wait for arena memory.
    starved: VecDeque<(u32, u32, CommandId, Position, CopyRead)>,
    events: Vec<VolumeEvent>,
    from_initiator: Vec<InitiatorEvent>,
    record_commands: bool,
}

impl Volumes {
    /// No volume yet.
    ///
    /// Panics if both rooms are the same.
    pub fn new(config: VolumesConfig) -> Self {
        assert_ne!(
            config.room, config.initiator.room,
            "rooms tell completions apart"
        );
        Self {
            initiator: Initiator::new(config.initiator.clone()),
            config,
            servers: Vec::new(),
            slots: Vec::new(),
            by_id: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            work: VecDeque::new(),
            starved: VecDeque::new(),
            events: Vec::new(),
            from_initiator: Vec::new(),
            record_commands: false,
        }
    }

    /// Volumes attached from now on trace their commands one by one ([`crate::TraceEvent::Sent`],
    /// [`crate::TraceEvent::Heard`]), for runs that are followed in the models. Costs time on every IO.
    pub fn record_commands(&mut self) {
        self.record_commands = true;
    }

    /// Begins to attach; ends in [`VolumeEvent::Attached`] or [`VolumeEvent::AttachFailed`].
    ///
    /// # Errors
    /// [`GrantFault`] if the grant contradicts itself; nothing was begun then.
    pub fn attach(&mut self, io: &mut dyn Driver, grant: &AttachGrant) -> Result<(), GrantFault> {
        if let Some(view) = ViewGrant::of(grant) {
            return self.open_view(io, &view);
        }
        let (id, map) = (grant.volume, &grant.map);
        self.check_map(id, map, &grant.slices)?;
        if !grant.generations.is_sound() {
            return Err(GrantFault::BadGenerations(id));
        }
        let isr = Hosted::members(map, &grant.isr).filter(|isr| !isr.is_empty());
        let isr = isr.ok_or(GrantFault::BadIsr(id))?;
        let slices: Vec<_> = map
            .stores
            .iter()
            .map(|s| self.server_of(&grant.slices[s]))
            .collect();
        let core_grant = Grant {
            map: map.clone(),
            epoch: grant.epoch,
            seq: grant.seq,
            isr,
            verified: grant.verified,
            survived: grant.survived.as_ref().map(|s| Hosted::by_position(map, s)),
            generations: grant.generations.clone(),
        };
        let core = Replicator::new(self.core_config(grant), core_grant);
        let core = Machine::Volume(Box::new(core));
        let slot = self.free_slot();
        self.slots[slot as usize].hosted = Some(Box::new(Hosted::new(grant, core, slices)));
        self.by_id.insert(id, slot);
        tracing::info!(volume = %id, epoch = grant.epoch.0, seq = grant.seq.0, isr = %isr, "attaching");
        self.step(io, slot, Event::Start);
        Ok(())
    }

    /// Whether a volume (or view) is new here, and its map one that the slices fit.
    fn check_map(
        &self,
        id: VolumeId,
        map: &VolumeMap,
        slices: &BTreeMap<StoreId, SlicePath>,
    ) -> Result<(), GrantFault> {
        if self.by_id.contains_key(&id) {
            return Err(GrantFault::AlreadyHere(id));
        }
        let (stride, shape) = (map.stores.len(), map.shape);
        let fits = (1..=STRIDE_MAX).contains(&stride)
            && stride == usize::from(shape.stride)
            && (1..=stride).contains(&usize::from(shape.replicas))
            && shape
                .shard_blocks
                .is_multiple_of(shardmap::units::REGION_BLOCKS)
            && shape.shard_blocks > 0
            && map.size_blocks > 0;
        if !fits {
            return Err(GrantFault::BadMap(id));
        }
        match map.stores.iter().find(|s| !slices.contains_key(s)) {
            Some(store) => Err(GrantFault::NoSlice(*store)),
            None => Ok(()),
        }
    }

    fn server_of(&mut self, path: &SlicePath) -> (usize, Nsid) {
        let same = |s: &Server| s.address == path.address && s.subsystem_nqn == path.subsystem_nqn;
        let known = self.servers.iter().position(same);
        let index = known.unwrap_or_else(|| {
            self.servers
                .push(Server::new(path.address, path.subsystem_nqn.clone()));
            self.servers.len() - 1
        });
        (index, path.nsid)
    }

    fn core_config(&self, grant: &AttachGrant) -> Config {
        let options = grant.options;
        Config {
            min_in_sync: u32::from(options.min_in_sync),
            degrade_grace_ms: options.degrade_grace_ms,
            attach_wait_ms: options.attach_wait_ms,
            slow_ms: options.slow_ms,
            may_shrink: options.may_shrink,
            resilver_bytes_per_s_max: options.resilver_bytes_per_s_max,
            stable_period_ms: options.stable_period_ms,
            seed: self.config.seed ^ grant.epoch.0,
            record_commands: self.record_commands,
            ..Config::default()
        }
    }

    fn free_slot(&mut self) -> u32 {
        let free = self.slots.iter().position(|s| s.hosted.is_none());
        let index = free.unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        u32::try_from(index).expect("few volumes")
    }

    /// Starts a host request. It comes back in exactly one [`VolumeEvent::HostDone`].
    ///
    /// # Errors
    /// Gives the request back where it cannot be taken now.
    pub fn submit(&mut self, io: &mut dyn Driver, request: HostRequest) -> Result<(), NotTaken> {
        let Some(slot) = self.by_id.get(&request.volume).copied() else {
            return Err(NotTaken {
                request,
                why: NotTakenWhy::UnknownVolume,
            });
        };
        let hosted = self.slots[slot as usize]
            .hosted
            .as_mut()
            .expect("named by id");
        if hosted.calls.len() >= HOST_OPS_MAX {
            return Err(NotTaken {
                request,
                why: NotTakenWhy::Full,
            });
        }
        let len_bytes = match &request.op {
            HostOp::Read { range, into } => range.len_bytes() == u64::from(into.len_bytes()),
            HostOp::Write { range, data, .. } => range.len_bytes() == u64::from(data.len_bytes()),
            HostOp::Flush | HostOp::Discard { .. } | HostOp::Zero { .. } => true,
            HostOp::Changes { .. } if matches!(hosted.core, Machine::Volume(_)) => {
                let why = NotTakenWhy::NotAView;
                return Err(NotTaken { request, why });
            }
            HostOp::Changes { .. } => true,
        };
        if !len_bytes {
            return Err(NotTaken {
                request,
                why: NotTakenWhy::BufferLength,
            });
        }
        let (what, buffer) = call_of(request.op);
        hosted.next_op += 1;
        let op = OpId(hosted.next_op);
        hosted.calls.insert(
            op,
            Call {
                id: request.id,
                what,
                buffer,
                found: None,
                result: None,
            },
        );
        self.step(io, slot, Event::Host { op, what });
        Ok(())
    }

    /// metad's answer to [`VolumeEvent::AskMetad`]. One for an unknown volume, or to an attachment that
    /// is over, is ignored.
    pub fn on_metad(&mut self, io: &mut dyn Driver, answer: MetadAnswer) {
        let Some(slot) = self.by_id.get(&answer.volume).copied() else {
            return;
        };
        let hosted = self.slots[slot as usize]
            .hosted
            .as_ref()
            .expect("named by id");
        if hosted.epoch != answer.epoch {
            return;
        }
        let members = |isr| Hosted::members(&hosted.map, isr);
        let verdict = match &answer.verdict {
            MetadVerdict::Committed { seq, isr } => {
                members(isr).map(|isr| Verdict::Committed { seq: *seq, isr })
            }
            MetadVerdict::Stale { seq, isr } => {
                members(isr).map(|isr| Verdict::Stale { seq: *seq, isr })
            }
            MetadVerdict::Fenced => Some(Verdict::Fenced),
            MetadVerdict::Unknown => Some(Verdict::Unknown),
        };
        // A set with strangers in it is not one we asked for: ask again.
        let verdict = verdict.unwrap_or(Verdict::Unknown);
        let request = RequestId(answer.request);
        self.step(io, slot, Event::Metad { request, verdict });
    }

    /// metad has made or deleted snapshots of the volume: its head and snapshots now. What is older than
    /// what is known is ignored. A new snapshot ends in [`VolumeEvent::Snapshot`]. False for an
    /// unknown volume.
    pub fn set_generations(
        &mut self,
        io: &mut dyn Driver,
        volume: VolumeId,
        generations: VolumeGenerations,
    ) -> bool {
        let Some(slot) = self.by_id.get(&volume).copied() else {
            return false;
        };
        let hosted = self.slots[slot as usize].hosted.as_ref();
        if !matches!(hosted.expect("named by id").core, Machine::Volume(_)) {
            return false;
        }
        self.step(io, slot, Event::Generations(generations));
        true
    }

    /// The volume is larger now; its stores have grown before. False for an unknown volume, or a view.
    pub fn grow(&mut self, io: &mut dyn Driver, volume: VolumeId, size_blocks: u64) -> bool {
        let Some(slot) = self.by_id.get(&volume).copied() else {
            return false;
        };
        let hosted = self.slots[slot as usize].hosted.as_mut();
        let hosted = hosted.expect("named by id");
        if !matches!(hosted.core, Machine::Volume(_)) {
            return false;
        }
        hosted.map.size_blocks = hosted.map.size_blocks.max(size_blocks);
        self.step(io, slot, Event::Grown { size_blocks });
        true
    }

    /// Finishes what is outstanding and lets go; ends in [`VolumeEvent::Detached`] (or, if the
    /// volume was still attaching, [`VolumeEvent::AttachFailed`]). False for an unknown volume.
    pub fn detach(&mut self, io: &mut dyn Driver, volume: VolumeId) -> bool {
        let Some(slot) = self.by_id.get(&volume).copied() else {
            return false;
        };
        self.step(io, slot, Event::Detach);
        true
    }

    /// Lets go at once, as a crash would; ends as [`Self::detach`] does. False for an unknown volume.
    pub fn abandon(&mut self, io: &mut dyn Driver, volume: VolumeId) -> bool {
        let Some(slot) = self.by_id.get(&volume).copied() else {
            return false;
        };
        self.step(io, slot, Event::Abandon);
        true
    }

    /// A completion of one of our two rooms. Appends what happened to `out`.
    pub fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        completion: Completion,
        out: &mut Vec<VolumeEvent>,
    ) {
        if completion.token.room == self.config.room {
            match completion.event {
                reactor::Event::Timer(_) => self.on_timer(io, completion.token),
                reactor::Event::Op { .. } | reactor::Event::Rung => {
                    unreachable!("volumes: we submit no ops and have no doorbell")
                }
            }
        } else {
            let mut events = std::mem::take(&mut self.from_initiator);
            self.initiator.on_completion(io, completion, &mut events);
            events
                .drain(..)
                .for_each(|event| self.on_initiator(io, event));
            self.from_initiator = events;
        }
        out.append(&mut self.events);
    }

    /// Sends what this turn has gathered, and appends what calls since the last turn made happen.
    pub fn on_turn_end(&mut self, io: &mut dyn Driver, out: &mut Vec<VolumeEvent>) {
        self.feed_starved(io);
        for server in &mut self.servers {
            server.drain(io, &mut self.initiator);
        }
        self.initiator.on_turn_end(io);
        out.append(&mut self.events);
    }

    /// What a volume looks like now. Of a view those stores are in sync that have the snapshot and answer.
    pub fn status(&self, volume: VolumeId) -> Option<VolumeStatus> {
        let slot = self.by_id.get(&volume)?;
        let hosted = self.slots[*slot as usize].hosted.as_ref()?;
        let core = match &hosted.core {
            Machine::Volume(core) => core,
            Machine::View(core) => return Some(Self::view_status(hosted, core)),
        };
        let (seq, isr) = core.membership();
        let stores = (0..hosted.slices.len()).map(Position::new).map(|at| {
            let (incarnation, dirty_blocks, outstanding) = core.store_facts(at);
            let state = core.store_state(at);
            let status = StoreStatus {
                state,
                incarnation,
                dirty_blocks,
                outstanding,
            };
            (hosted.store(at), status)
        });
        Some(VolumeStatus {
            epoch: hosted.epoch,
            seq,
            isr: hosted.stores(isr),
            generations: core.known_generations().clone(),
            serving: core.is_serving(),
            regions_to_reconcile: core.regions_to_reconcile(),
            moves: core.moves(),
            stores: stores.collect(),
            counters: hosted.counters,
        })
    }

    /// Volumes attached or attaching here.
    pub fn list(&self) -> impl Iterator<Item = VolumeId> + '_ {
        self.by_id.keys().copied()
    }

    /// True once nothing is attached and every association is gone: the reactor may stop.
    pub fn is_idle(&self) -> bool {
        self.by_id.is_empty() && self.initiator.is_idle()
    }

    /// What the initiator counted.
    pub fn initiator_counters(&self) -> &initiator::Counters {
        self.initiator.counters()
    }

    fn on_timer(&mut self, io: &mut dyn Driver, token: Token) {
        if token.value == SERVER_TIMER {
            let server = &mut self.servers[token.index as usize];
            assert!(matches!(server.link, Link::Waiting(_)));
            server.link = Link::Down;
            if !server.wanted_by.is_empty() {
                server.connect(io, &mut self.initiator);
            }
            return;
        }
        let timer = timer_of(token.value);
        let hosted = self.slots[token.index as usize].hosted.as_mut();
        let hosted = hosted.expect("timers are disarmed before a volume is forgotten");
        assert!(hosted.timers.remove(&timer).is_some());
        self.step(io, token.index, Event::Timer(timer));
    }

    fn turn(&self, slot: u32) -> u32 {
        self.slots[slot as usize].turn
    }

    fn hosted(&mut self, slot: u32, turn: u32) -> Option<&mut Hosted> {
        let slot = self
            .slots
            .get_mut(slot as usize)
            .filter(|s| s.turn == turn)?;
        slot.hosted.as_deref_mut()
    }
}

/// A request of the host, and its buffer, as the core and we keep them.
fn call_of(op: HostOp) -> (HostWhat, CallBuffer) {
    match op {
        HostOp::Read { range, into } => (HostWhat::Read(range), CallBuffer::for_read(into)),
        HostOp::Write { range, data, fua } => {
            (HostWhat::Write { range, fua }, CallBuffer::Write(data))
        }
        HostOp::Flush => (HostWhat::Flush, CallBuffer::None),
        HostOp::Discard { range } => {
            let what = HostWhat::Zero {
                range,
                deallocate: true,
                fua: false,
            };
            (what, CallBuffer::None)
        }
        HostOp::Zero {
            range,
            no_unmap,
            fua,
        } => {
            let what = HostWhat::Zero {
                range,
                deallocate: !no_unmap,
                fua,
            };
            (what, CallBuffer::None)
        }
        HostOp::Changes { from, after } => (HostWhat::Changes { from, after }, CallBuffer::None),
    }
}

const SERVER_TIMER: u64 = u64::MAX;

/// A timer's name as a token value.
fn timer_value(timer: Timer) -> u64 {
    let at = |at: Position| (at.index() as u64) << 8;
    match timer {
        Timer::Attach => 1,
        Timer::Grace(position) => 2 | at(position),
        Timer::Reopen(position) => 3 | at(position),
        Timer::Metad => 4,
        Timer::Resilver => 5,
        Timer::Stable => 6,
        Timer::Slow => 7,
        Timer::Snapshot => 8,
        Timer::View => 9,
        Timer::Hold => 10,
    }
}

fn timer_of(value: u64) -> Timer {
    let at = || Position::new(usize::try_from(value >> 8).expect("a position"));
    match value & 0xff {
        1 => Timer::Attach,
        2 => Timer::Grace(at()),
        3 => Timer::Reopen(at()),
        4 => Timer::Metad,
        5 => Timer::Resilver,
        6 => Timer::Stable,
        7 => Timer::Slow,
        8 => Timer::Snapshot,
        9 => Timer::View,
        10 => Timer::Hold,
        other => unreachable!("timer {other}"),
    }
}

/// Whether all bytes are zero. Looks at all of them, many at a time.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |any, byte| any | byte) == 0
}

#[cfg(test)]
mod test;

//! Carries out what [`Healing`] decides, on the reactor: looks at blocks of the stores here, reads them
//! from other storageds as one of their hosts, hands what came to the stores. One association at a time,
//! and none while there is nothing to heal.

use crate::healing::{End, Fetched, Finder, Healing, Looked, Place, Replica, Replicas, Step};
use crate::namespaces::{Found, HealAnswer, Slices};
use control::core::storaged_host_nqn;
use nvmf::initiator::{self, AssociationId, Failure, Initiator, InitiatorEvent, Request};
use nvmf::proto::vendor::{PROTOCOL_VERSION, opcode};
use reactor::{Buf, Completion, Driver, Event, TimerId, Token};
use shardmap::units::{BLOCK_BYTES, Moment, VolumeId};
use std::collections::VecDeque;
use std::net::SocketAddr;
use uuid::Uuid;

/// Room of the timer.
pub(crate) const ROOM_HEALER: u8 = 6;
/// Room of its associations.
pub(crate) const ROOM_HEALER_INITIATOR: u8 = 7;

const TIMER: Token = Token {
    room: ROOM_HEALER,
    index: 0,
    value: 0,
};
/// An association that is not needed for so long is let go.
const IDLE_MS: u64 = 2_000;

/// The association to another storaged.
#[derive(Debug)]
struct Link {
    id: AssociationId,
    address: SocketAddr,
    subsystem_nqn: String,
    ready: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Healer {
    machine: Healing,
    initiator: Initiator,
    events: Vec<InitiatorEvent>,
    link: Option<Link>,
    /// To be read from the link as soon as it is ready.
    wanted: Option<(Place, Replica)>,
    /// What was read.
    fetched: Option<Buf>,
    timer: Option<(TimerId, u64)>,
    /// Volumes whose slices metad is to name.
    asked: VecDeque<VolumeId>,
}

impl Healer {
    /// Nothing is found yet. `server` is the identity under which others know this server.
    pub fn new(server: Uuid) -> Self {
        let host_nqn = storaged_host_nqn(server);
        let config = initiator::Config::new(ROOM_HEALER_INITIATOR, host_nqn, *server.as_bytes());
        Self {
            machine: Healing::default(),
            initiator: Initiator::new(config),
            events: Vec::new(),
            link: None,
            wanted: None,
            fetched: None,
            timer: None,
            asked: VecDeque::new(),
        }
    }

    /// What is known and was done.
    pub const fn healing(&self) -> &Healing {
        &self.machine
    }

    pub(crate) fn on_replicas(
        &mut self,
        io: &mut dyn Driver,
        slices: &mut Slices,
        volume: VolumeId,
        replicas: Option<Replicas>,
    ) {
        let step = self.machine.on_replicas(now(io), volume, replicas);
        self.carry_out(io, slices, step);
    }

    pub(crate) fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        slices: &mut Slices,
        completion: Completion,
    ) {
        if completion.token.room == ROOM_HEALER_INITIATOR {
            let mut events = std::mem::take(&mut self.events);
            self.initiator.on_completion(io, completion, &mut events);
            for event in events.drain(..) {
                self.on_event(io, slices, event);
            }
            self.events = events;
        } else {
            assert!(matches!(completion.event, Event::Timer(_)));
            self.timer = None;
        }
    }

    pub(crate) fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.initiator.on_turn_end(io);
    }

    /// What the stores have found and answered. Volumes that metad is to be asked for come out.
    pub(crate) fn settle(&mut self, io: &mut dyn Driver, slices: &mut Slices) -> Option<VolumeId> {
        for found in slices.take_found() {
            self.on_found(io, &found);
        }
        while let Some(answer) = slices.take_heal_answer() {
            let step = match answer {
                HealAnswer::Looked(looked) => self.machine.on_looked(now(io), looked),
                HealAnswer::Offered(healed) => self.machine.on_offered(now(io), healed),
            };
            self.carry_out(io, slices, step);
        }
        let step = self.machine.on_time(now(io));
        self.carry_out(io, slices, step);
        self.log();
        self.rest(io);
        self.asked.pop_front()
    }

    fn on_found(&mut self, io: &dyn Driver, found: &Found) {
        let (rot, by) = (&found.rot, found.by);
        let before = self.machine.counters().not_remembered;
        let is_news = self.machine.on_found(now(io), found.store_index, rot, by);
        if is_news {
            let who = match by {
                Finder::Scrub => "the scrub",
                Finder::Read => "a read",
            };
            tracing::error!(volume = %rot.volume, lba = rot.lba.0, generation = rot.generation.0,
                nsid = %rot.nsid, who, "a block on the disk is not what was written there; to be healed");
        } else if before == 0 && self.machine.counters().not_remembered > 0 {
            tracing::error!(nsid = %rot.nsid, "so many blocks are spoiled that not all are remembered; \
                replace the disk, or let more passes of the scrub heal them");
        }
    }

    fn log(&mut self) {
        for (place, volume, end) in self.machine.take_ends() {
            let (lba, generation, nsid) = (place.lba.0, place.generation.0, place.nsid);
            match end {
                End::Healed => tracing::warn!(%volume, lba, generation, %nsid,
                    "healed a block with what another replica has"),
                End::Sound => tracing::info!(%volume, lba, generation, %nsid,
                    "a block that was spoiled has been written again by others"),
                End::Gone => tracing::info!(%volume, lba, generation, %nsid,
                    "a block that was spoiled is not in use any more"),
                End::Stays(why) => tracing::error!(%volume, lba, generation, %nsid, why,
                    "a spoiled block stays as it is for now"),
            }
        }
    }

    fn carry_out(&mut self, io: &mut dyn Driver, slices: &mut Slices, step: Option<Step>) {
        let mut step = step;
        while let Some(one) = step {
            step = match one {
                Step::Look(place) => self.look(io, slices, place),
                Step::Ask(volume) => {
                    self.asked.push_back(volume);
                    None
                }
                Step::Fetch(place, replica) => self.fetch(io, place, replica),
                Step::Offer(place) => {
                    let data = self.fetched.take().expect("it was fetched");
                    slices.offer(io, place, data);
                    None
                }
            };
        }
    }

    fn look(&mut self, io: &mut dyn Driver, slices: &mut Slices, place: Place) -> Option<Step> {
        let Some(into) = io.arena().take(BLOCK_BYTES) else {
            return self.machine.on_looked(now(io), Looked::Later);
        };
        slices.look(io, place, into);
        None
    }

    fn fetch(&mut self, io: &mut dyn Driver, place: Place, replica: Replica) -> Option<Step> {
        let same =
            |l: &Link| l.address == replica.address && l.subsystem_nqn == replica.subsystem_nqn;
        if self.link.as_ref().is_some_and(same) {
            self.wanted = Some((place, replica));
            return self.send(io);
        }
        self.let_go(io);
        let (address, subsystem_nqn) = (replica.address, replica.subsystem_nqn.clone());
        let id = self.initiator.connect(io, address, &subsystem_nqn);
        self.link = Some(Link {
            id,
            address,
            subsystem_nqn,
            ready: false,
        });
        self.wanted = Some((place, replica));
        None
    }

    /// Sends what is wanted, if the link is ready.
    fn send(&mut self, io: &mut dyn Driver) -> Option<Step> {
        let link = self.link.as_ref().filter(|link| link.ready)?;
        let (place, replica) = self.wanted.take()?;
        let (low, high) = (place.lba.0 & u64::from(u32::MAX), place.lba.0 >> 32);
        let dword = |half: u64| u32::try_from(half).expect("half of a long word");
        let request = Request::Vendor {
            nsid: replica.nsid.0,
            opcode: opcode::READ_REPLICA,
            cdw10_15: [
                PROTOCOL_VERSION.into(),
                dword(low),
                dword(high),
                place.generation.0,
                0,
                0,
            ],
            data: None,
            reply_len_bytes: BLOCK_BYTES,
        };
        let taken = self.initiator.submit(io, link.id, 0, request);
        if taken.is_err() {
            return self.machine.on_fetched(now(io), Fetched::Away);
        }
        None
    }

    fn on_event(&mut self, io: &mut dyn Driver, slices: &mut Slices, event: InitiatorEvent) {
        let ours = self.link.as_ref().map(|link| link.id);
        let step = match event {
            InitiatorEvent::Ready { association, .. } if Some(association) == ours => {
                let link = self.link.as_mut().expect("just compared");
                link.ready = true;
                self.send(io)
            }
            InitiatorEvent::Done {
                association,
                result,
                ..
            } if Some(association) == ours => self.on_fetched(io, result),
            InitiatorEvent::Lost { association, .. } if Some(association) == ours => {
                self.link = None;
                match self.wanted.take() {
                    Some(_) => self.machine.on_fetched(now(io), Fetched::Away),
                    None => None,
                }
            }
            // Of one that was let go, or nothing that is asked for here.
            InitiatorEvent::Ready { .. }
            | InitiatorEvent::Done { .. }
            | InitiatorEvent::Lost { .. }
            | InitiatorEvent::NamespacesChanged { .. } => None,
        };
        self.carry_out(io, slices, step);
    }

    fn on_fetched(
        &mut self,
        io: &mut dyn Driver,
        result: Result<initiator::Reply, Failure>,
    ) -> Option<Step> {
        let fetched = match result {
            Ok(reply) if reply.data.len() == BLOCK_BYTES as usize => {
                match io.arena().take(BLOCK_BYTES) {
                    Some(mut window) => {
                        window.bytes_mut().copy_from_slice(&reply.data);
                        self.fetched = Some(window.freeze());
                        Fetched::Here
                    }
                    None => Fetched::Away,
                }
            }
            Ok(_) | Err(Failure::Status(_)) => Fetched::Refused,
            Err(Failure::ConnectionLost) => Fetched::Away,
        };
        self.machine.on_fetched(now(io), fetched)
    }

    /// Arms the timer for what comes next; lets an association go that is not needed soon.
    fn rest(&mut self, io: &mut dyn Driver) {
        let due = self.machine.next_deadline();
        let soon = now(io).plus_ms(IDLE_MS);
        if !self.machine.is_working() && due.is_none_or(|at| at > soon) {
            self.let_go(io);
        }
        let due_ns = due.map(|at| at.0);
        if self.timer.map(|(_, at)| at) == due_ns {
            return;
        }
        if let Some((timer, _)) = self.timer.take() {
            io.disarm(timer);
        }
        self.timer = due_ns.map(|at| (io.arm(TIMER, at), at));
    }

    fn let_go(&mut self, io: &mut dyn Driver) {
        if let Some(link) = self.link.take() {
            self.initiator.abort(io, link.id);
        }
    }
}

fn now(io: &dyn Driver) -> Moment {
    Moment(io.now_ns())
}

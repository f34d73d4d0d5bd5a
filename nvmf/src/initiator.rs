//! The host side of NVMe/TCP on a reactor: associations to targets, commands over them.
//!
//! Owns the sockets, the headers and the order of things. Promises: every request that
//! [`Initiator::submit`] took comes back in exactly one [`InitiatorEvent::Done`], with its buffers;
//! when an association is lost, after both its sockets are closed (no byte of a buffer moves any
//! more) and before its one [`InitiatorEvent::Lost`]. Nothing is retried and nothing reconnects:
//! the caller decides. The caller owes: completions of our room to [`Initiator::on_completion`],
//! and [`Initiator::on_turn_end`] after each turn, which is when anything is sent.
//!
//! An idle association sleeps but for one Keep Alive per half timeout.

use crate::proto::host::{Event as HostEvent, HostConfig, LostReason, QueueId};
use crate::proto::pdu::Digests;
use reactor::{Completion, Driver, Event};
use std::fmt;
use std::net::SocketAddr;

mod association;
mod connection;
mod errand;
pub mod limits;
mod receiver;
mod request;
mod sender;

pub use crate::proto::host::Facts;
use association::{Association, Purpose, World, unpack};
pub use errand::{Errand, ErrandFault};
pub use request::{Failure, Reply, Request};

/// What all associations of an initiator share.
#[derive(Clone, Debug)]
pub struct Config {
    /// Room of its tokens.
    pub room: u8,
    /// Our NQN.
    pub host_nqn: String,
    /// Our identifier.
    pub host_id: [u8; 16],
    /// Keep-alive timeout in milliseconds; zero for none.
    pub kato_ms: u32,
    /// Most IO commands in flight per association, `2..=256`.
    pub queue_depth: u16,
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// How long an IO command may take before the association is given up.
    pub command_deadline_ms: u32,
    /// The same for admin commands, keep-alives included.
    pub admin_deadline_ms: u32,
    /// How long an association may take to get ready.
    pub connect_timeout_ms: u32,
}

impl Config {
    /// The usual values.
    pub fn new(room: u8, host_nqn: String, host_id: [u8; 16]) -> Self {
        Self {
            room,
            host_nqn,
            host_id,
            kato_ms: 15_000,
            queue_depth: 128,
            header_digest: false,
            data_digest: false,
            command_deadline_ms: 10_000,
            admin_deadline_ms: 10_000,
            connect_timeout_ms: 10_000,
        }
    }

    fn host(&self, subsystem_nqn: &str) -> HostConfig {
        let ns = |ms: u32| u64::from(ms) * 1_000_000;
        HostConfig {
            host_nqn: self.host_nqn.clone(),
            host_id: self.host_id,
            subsystem_nqn: subsystem_nqn.to_owned(),
            kato_ms: self.kato_ms,
            queue_depth: self.queue_depth,
            digests: Digests {
                header: self.header_digest,
                data: self.data_digest,
            },
            io_deadline_ns: ns(self.command_deadline_ms),
            admin_deadline_ns: ns(self.admin_deadline_ms),
            connect_timeout_ns: ns(self.connect_timeout_ms),
        }
    }
}

/// An association. Ids of lost ones are never valid again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssociationId {
    /// Slot in the initiator's table.
    pub index: u32,
    /// How often the slot was reused before.
    pub turn: u32,
}

impl fmt::Display for AssociationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.turn)
    }
}

/// What the caller is told.
#[derive(Debug)]
pub enum InitiatorEvent {
    /// Requests are taken from now on.
    Ready {
        /// Which association.
        association: AssociationId,
        /// What its controller is like.
        facts: Facts,
    },
    /// A request is over.
    Done {
        /// On which association.
        association: AssociationId,
        /// As given to [`Initiator::submit`].
        user: u64,
        /// The request, with its buffers.
        request: Request,
        /// How it ended.
        result: Result<Reply, Failure>,
    },
    /// The association is over, and its id with it. All its requests have come back before.
    Lost {
        /// Which association.
        association: AssociationId,
        /// Why.
        reason: LostReason,
    },
    /// The controller says that its namespaces are not what they were.
    NamespacesChanged {
        /// Which association.
        association: AssociationId,
    },
}

/// What happened so far, over all associations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests taken.
    pub commands: u64,
    /// Requests that ended with a status other than success.
    pub failed_commands: u64,
    /// Requests refused for lack of room, or before ready.
    pub refused_commands: u64,
    /// PDUs queued for sending.
    pub pdus_sent: u64,
    /// PDUs received.
    pub pdus_received: u64,
    /// Sends submitted; each carries many PDUs.
    pub sends: u64,
    /// Receives submitted.
    pub receives: u64,
    /// Data sent, in bytes.
    pub sent_bytes: u64,
    /// Data received, in bytes.
    pub received_bytes: u64,
    /// Of these, copied through staging instead of received in place, in bytes.
    pub staged_bytes: u64,
    /// Data digests that were wrong.
    pub wrong_digests: u64,
    /// Protocol breaches of controllers.
    pub breaches: u64,
    /// Associations that got ready.
    pub associations_ready: u64,
    /// Associations that were lost, ready or not.
    pub associations_lost: u64,
}

#[derive(Debug)]
struct Place {
    turn: u32,
    association: Option<Box<Association>>,
}

/// All associations of one reactor.
#[derive(Debug)]
pub struct Initiator {
    config: Config,
    places: Vec<Place>,
    free: Vec<u32>,
    /// Associations that have something to send.
    dirty: Vec<u32>,
    counters: Counters,
}

impl Initiator {
    /// An initiator without associations.
    ///
    /// Panics if `queue_depth` is outside `2..=256`.
    pub fn new(config: Config) -> Self {
        assert!((2..=crate::proto::host::QUEUE_DEPTH_MAX).contains(&config.queue_depth));
        Self {
            config,
            places: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Begins an association: admin queue and one IO queue. Ends in [`InitiatorEvent::Ready`] or
    /// [`InitiatorEvent::Lost`].
    ///
    /// Panics if there are [`limits::ASSOCIATIONS_MAX`] already, or if a name is longer than an
    /// NQN may be.
    pub fn connect(
        &mut self,
        io: &mut dyn Driver,
        to: SocketAddr,
        subsystem_nqn: &str,
    ) -> AssociationId {
        let index = self.free.pop().unwrap_or_else(|| {
            assert!(
                self.places.len() < limits::ASSOCIATIONS_MAX,
                "too many associations"
            );
            self.places.push(Place {
                turn: 0,
                association: None,
            });
            u32::try_from(self.places.len() - 1).expect("bounded")
        });
        let place = &mut self.places[index as usize];
        let id = AssociationId {
            index,
            turn: place.turn,
        };
        tracing::info!(association = %id, %to, subsystem = subsystem_nqn, "connecting");
        let config = self.config.host(subsystem_nqn);
        let association = Box::new(Association::new(id, self.config.room, to, config));
        let association = place.association.insert(association);
        let mut world = World {
            events: &mut Vec::new(),
            counters: &mut self.counters,
        };
        association.step(io, HostEvent::Start, &mut world);
        id
    }

    /// Starts a request. `user` comes back with it.
    ///
    /// # Errors
    /// Gives the request back if the queue is full, the arena is exhausted, or the association is
    /// not ready (any more): try again after a completion.
    ///
    /// Panics where the request breaks what its fields promise.
    pub fn submit(
        &mut self,
        io: &mut dyn Driver,
        association: AssociationId,
        user: u64,
        request: Request,
    ) -> Result<(), Request> {
        let Some(found) = find(&mut self.places, association) else {
            return Err(request);
        };
        // Admission completes nothing, so no event can come of it.
        let mut events = Vec::new();
        let mut world = World {
            events: &mut events,
            counters: &mut self.counters,
        };
        let was_dirty = found.dirty;
        let taken = found.submit(io, user, request, &mut world);
        assert!(events.is_empty());
        if taken.is_err() {
            self.counters.refused_commands += 1;
        } else if !was_dirty {
            self.dirty.push(association.index);
        }
        taken
    }

    /// Ends an association at once (RST). Its requests come back, then [`InitiatorEvent::Lost`].
    /// A stale id is ignored.
    pub fn abort(&mut self, io: &mut dyn Driver, association: AssociationId) {
        if let Some(found) = find(&mut self.places, association) {
            let mut world = World {
                events: &mut Vec::new(),
                counters: &mut self.counters,
            };
            found.step(io, HostEvent::Gone(LostReason::Aborted), &mut world);
        }
    }

    /// A completion whose token has our room.
    pub fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        completion: Completion,
        events: &mut Vec<InitiatorEvent>,
    ) {
        let Completion { token, event } = completion;
        let (turn, queue, purpose) = unpack(token.value);
        let id = AssociationId {
            index: token.index,
            turn,
        };
        let Some(association) = find(&mut self.places, id) else {
            // Sockets are closed and the timer is disarmed before an association is forgotten.
            unreachable!("initiator: {event:?} for association {id}, which is over");
        };
        let was_dirty = association.dirty;
        let mut world = World {
            events,
            counters: &mut self.counters,
        };
        match event {
            Event::Op { op, result } => {
                association.on_op(io, (queue, purpose), (op, result), &mut world);
            }
            Event::Timer(_) => {
                assert_eq!(purpose, Purpose::Timer);
                association.on_timer(io, &mut world);
            }
            Event::Rung => unreachable!("initiator: it has no doorbell"),
        }
        if association.dirty && !was_dirty {
            self.dirty.push(id.index);
        }
        if association.finish(io, &mut world) {
            let place = &mut self.places[id.index as usize];
            place.association = None;
            place.turn = place.turn.wrapping_add(1);
            self.free.push(id.index);
        }
    }

    /// Sends what this turn has gathered: one send per connection that has something to say.
    pub fn on_turn_end(&mut self, io: &mut dyn Driver) {
        for index in self.dirty.drain(..) {
            if let Some(association) = self.places[index as usize].association.as_mut()
                && association.dirty
            {
                association.flush(io, &mut self.counters);
            }
        }
    }

    /// What an association's controller is like, while it is ready.
    pub fn facts(&self, association: AssociationId) -> Option<&Facts> {
        self.get(association)?.host.facts()
    }

    /// Whether an IO request would be taken now.
    pub fn has_room(&self, association: AssociationId) -> bool {
        self.get(association)
            .is_some_and(|found| found.host.has_room(QueueId::Io))
    }

    /// IO requests in flight on an association.
    pub fn in_flight(&self, association: AssociationId) -> usize {
        self.get(association)
            .map_or(0, |found| found.host.in_flight(QueueId::Io))
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// True if there is no association at all, ready or ending.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.places.len()
    }

    fn get(&self, id: AssociationId) -> Option<&Association> {
        let place = self
            .places
            .get(id.index as usize)
            .filter(|place| place.turn == id.turn)?;
        place.association.as_deref()
    }
}

fn find(places: &mut [Place], id: AssociationId) -> Option<&mut Association> {
    let place = places
        .get_mut(id.index as usize)
        .filter(|place| place.turn == id.turn)?;
    place.association.as_deref_mut()
}

#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "tests wait for one event and refuse all others"
)]
mod test;

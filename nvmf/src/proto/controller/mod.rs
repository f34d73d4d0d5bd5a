//! The controller side: every connection and association of one target, without IO.
//!
//! [`Core`] owns which PDU may come next on each connection, which command occupies which slot, who
//! is connected to which controller, and when somebody is overdue. It promises that a breach of
//! the protocol ends that connection (its association, if it was the admin queue) and nothing
//! else, and that every command is answered exactly once on a connection that lives.
//!
//! The caller hands in what [`Core::need`] asks for, carries out the effects in their order, and
//! keeps the payload buffer of each command slot. Commands admitted on a connection that has gone
//! are not answered: the caller drops their replies.
//!
//! ```text
//! AwaitingIcReq ─► AwaitingConnect ─► Live (admin or IO queue)
//!       └─────────────────┴──────────────┴──► Closing ─► (closed)
//! ```
//!
//! Sources: NVMe/TCP transport §3, NVMe over Fabrics (Base 2.x) §3.1 and §6.

use super::fabrics::DISCOVERY_NQN;
use super::pdu::{Digests, Fatal, Fes, Framing, Role, term_req};
use super::receive::{Receiver, Wanted};
use std::net::SocketAddr;

mod admin;
mod association;
mod connect;
mod event;
mod features;
mod incoming;
pub mod limits;
mod nvm;
mod registers;
mod slots;
mod timing;

pub use event::{Answer, BufferUse, CloseReason, Effect, Event, Inquiry, Need, Outgoing, Work};

use association::Association;
use slots::Slots;

/// One life of an association: the controller id below, a count above, never the same twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssociationId(pub u64);

/// What the target says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the IO subsystem.
    pub subnqn: String,
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Firmware revision, at most 8 characters.
    pub firmware: String,
}

/// Where the payload that is arriving goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landing {
    Nowhere,
    Slot {
        slot: u16,
        start_bytes: u32,
        len_bytes: u32,
        ready: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AwaitingIcReq,
    AwaitingConnect,
    Live { association: usize, qid: u16 },
    Closing,
}

#[derive(Debug)]
struct Connection {
    stage: Stage,
    local: SocketAddr,
    receiver: Receiver,
    /// Digests and alignment of what we send.
    framing: Framing,
    landing: Landing,
    slots: Slots,
    in_capsule_bytes_max: u32,
    /// Entries of the queue; SQHD counts modulo this.
    queue_depth: u16,
    sqhd: u16,
    flow_control: bool,
    /// When it is given up: while setting up and while closing.
    deadline_ns: Option<u64>,
}

/// The target's protocol state.
#[derive(Debug)]
pub struct Core {
    identity: Identity,
    connections: Vec<Option<Connection>>,
    associations: Vec<Option<Association>>,
    cntlid_next: u16,
    associations_begun: u64,
    /// The moment of the event at hand.
    now_ns: u64,
    /// A deadline appeared, went or moved other than by traffic.
    deadlines_changed: bool,
}

impl Core {
    /// A target that nobody is connected to.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            connections: Vec::new(),
            associations: Vec::new(),
            cntlid_next: 1,
            associations_begun: 0,
            now_ns: 0,
            deadlines_changed: false,
        }
    }

    /// One event of one connection.
    pub fn step(&mut self, now_ns: u64, connection: u32, event: Event<'_>, out: &mut Vec<Effect>) {
        self.now_ns = now_ns;
        if let Event::Opened { local } = event {
            return self.on_opened(connection, local);
        }
        if let Event::Closed = event {
            self.retire(connection, CloseReason::PeerGone, out);
            self.connections[connection as usize] = None;
            self.deadlines_changed = true;
            return;
        }
        if self.connection(connection).stage == Stage::Closing {
            return;
        }
        match event {
            Event::Opened { .. } | Event::Closed => unreachable!("handled above"),
            Event::Header(bytes) => self.on_header(connection, bytes, out),
            Event::Payload { len_bytes } => self.on_payload(connection, len_bytes, out),
            Event::Digest { matches } => self.on_digest(connection, matches, out),
            Event::BufferReady { slot } => self.on_buffer_ready(connection, slot, out),
            Event::ConnectData {
                slot,
                data,
                host_allowed,
            } => {
                self.on_connect_data(connection, slot, data, host_allowed, out);
            }
            Event::Replied { slot, answer } => {
                self.on_replied(connection, slot, answer, out);
            }
            Event::PeerGone => {
                self.retire(connection, CloseReason::PeerGone, out);
                out.push(Effect::Close {
                    connection,
                    reset: false,
                    why: CloseReason::PeerGone,
                });
            }
        }
    }

    /// What the connection is to receive next.
    pub fn need(&self, connection: u32) -> Need {
        let this = self.connection(connection);
        if this.stage == Stage::Closing {
            return Need::Nothing;
        }
        match (this.receiver.wanted(), this.landing) {
            (Wanted::Header { len_bytes }, _) => Need::Header { len_bytes },
            (Wanted::Payload { .. }, Landing::Slot { ready: false, .. }) => Need::Buffer,
            (
                Wanted::Payload { left_bytes },
                Landing::Slot {
                    slot,
                    start_bytes,
                    len_bytes,
                    ..
                },
            ) => Need::Payload {
                slot: Some(slot),
                offset_bytes: start_bytes + (len_bytes - left_bytes),
                len_bytes: left_bytes,
            },
            (Wanted::Payload { left_bytes }, Landing::Nowhere) => Need::Payload {
                slot: None,
                offset_bytes: 0,
                len_bytes: left_bytes,
            },
            (
                Wanted::Digest,
                Landing::Slot {
                    slot,
                    start_bytes,
                    len_bytes,
                    ..
                },
            ) => Need::Digest {
                slot: Some(slot),
                offset_bytes: start_bytes,
                len_bytes,
            },
            (Wanted::Digest, Landing::Nowhere) => Need::Digest {
                slot: None,
                offset_bytes: 0,
                len_bytes: 0,
            },
        }
    }

    /// How PDUs to the peer are framed.
    pub fn framing(&self, connection: u32) -> Framing {
        self.connection(connection).framing
    }

    /// Whether the connection still takes replies; they are dropped otherwise.
    pub fn is_open(&self, connection: u32) -> bool {
        self.connections
            .get(connection as usize)
            .and_then(Option::as_ref)
            .is_some_and(|this| this.stage != Stage::Closing)
    }

    /// Whether the host owes us data that it was asked for by R2T.
    pub fn expects_data(&self, connection: u32) -> bool {
        self.connection(connection).slots.awaiting_data() > 0
    }

    /// The host of an association that exists.
    pub fn host_nqn(&self, association: AssociationId) -> Option<&str> {
        let found = self
            .associations
            .iter()
            .flatten()
            .find(|a| a.id == association)?;
        Some(&found.host_nqn)
    }

    /// The host whose association a connection belongs to.
    pub fn host_of(&self, connection: u32) -> Option<&str> {
        match self.connection(connection).stage {
            Stage::Live { association, .. } => Some(&self.association(association).host_nqn),
            Stage::AwaitingIcReq | Stage::AwaitingConnect | Stage::Closing => None,
        }
    }

    /// Bytes of data that a command moves, as its SGL says; zero for a slot not in use.
    pub fn data_bytes(&self, connection: u32, slot: u16) -> u32 {
        self.connection(connection)
            .slots
            .get(slot)
            .map_or(0, |entry| entry.len_bytes)
    }

    /// Associations that exist.
    pub fn association_count(&self) -> usize {
        self.associations.iter().flatten().count()
    }

    fn on_opened(&mut self, connection: u32, local: SocketAddr) {
        self.deadlines_changed = true;
        let index = connection as usize;
        assert!(index < limits::CONNECTIONS_MAX);
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        let fresh = Connection {
            stage: Stage::AwaitingIcReq,
            local,
            receiver: Receiver::new(Role::Host, limits::TRANSFER_BYTES_MAX),
            framing: Framing {
                digests: Digests::default(),
                pda: 0,
            },
            landing: Landing::Nowhere,
            slots: Slots::new(limits::SLOTS_BEFORE_CONNECT),
            in_capsule_bytes_max: limits::ADMIN_IN_CAPSULE_BYTES_MAX,
            queue_depth: 1,
            sqhd: 0,
            flow_control: true,
            deadline_ns: Some(self.now_ns + limits::SETUP_NS_MAX),
        };
        assert!(
            self.connections[index].replace(fresh).is_none(),
            "connection number in use"
        );
    }

    fn connection(&self, connection: u32) -> &Connection {
        self.connections[connection as usize]
            .as_ref()
            .expect("an open connection")
    }

    fn connection_mut(&mut self, connection: u32) -> &mut Connection {
        self.connections[connection as usize]
            .as_mut()
            .expect("an open connection")
    }

    fn association(&self, index: usize) -> &Association {
        self.associations[index]
            .as_ref()
            .expect("an association that exists")
    }

    fn association_mut(&mut self, index: usize) -> &mut Association {
        self.associations[index]
            .as_mut()
            .expect("an association that exists")
    }

    /// The peer broke the protocol: tell it, and end the connection.
    fn fail(&mut self, connection: u32, fatal: Fatal, out: &mut Vec<Effect>) {
        let bytes = term_req(
            Role::Controller,
            fatal,
            self.connection(connection).receiver.quote(),
        );
        self.retire(connection, CloseReason::Breach, out);
        out.push(Effect::Terminate {
            connection,
            bytes,
            fatal,
        });
    }

    /// Takes the connection out of its association; ends the association with its admin queue.
    fn retire(&mut self, connection: u32, why: CloseReason, out: &mut Vec<Effect>) {
        let deadline_ns = self.now_ns + limits::TERMINATE_NS_MAX;
        self.deadlines_changed = true;
        let this = self.connection_mut(connection);
        let stage = std::mem::replace(&mut this.stage, Stage::Closing);
        if stage == Stage::Closing {
            return;
        }
        this.deadline_ns = Some(deadline_ns);
        let Stage::Live { association, qid } = stage else {
            return;
        };
        if qid == 0 {
            self.end_association(association, why, out);
        } else {
            let removed = self.association_mut(association).queues.remove(&qid);
            assert_eq!(removed, Some(connection));
        }
    }

    fn end_association(&mut self, index: usize, why: CloseReason, out: &mut Vec<Effect>) {
        let gone = self.associations[index]
            .take()
            .expect("an association that exists");
        for connection in gone.queues.into_values() {
            self.shut(connection, CloseReason::AssociationGone, out);
        }
        out.push(Effect::Gone {
            association: gone.id,
            host_nqn: gone.host_nqn,
            why,
        });
    }

    /// Closes a connection that no longer belongs to an association.
    fn shut(&mut self, connection: u32, why: CloseReason, out: &mut Vec<Effect>) {
        let deadline_ns = self.now_ns + limits::TERMINATE_NS_MAX;
        self.deadlines_changed = true;
        let this = self.connection_mut(connection);
        if this.stage != Stage::Closing {
            this.stage = Stage::Closing;
            this.deadline_ns = Some(deadline_ns);
            out.push(Effect::Close {
                connection,
                reset: true,
                why,
            });
        }
    }

    fn is_discovery_name(&self, name: &str) -> bool {
        name == DISCOVERY_NQN
    }
}

/// A breach that only the order of PDUs makes.
const SEQUENCE: Fatal = Fatal::plain(Fes::SequenceError);

#[cfg(test)]
#[allow(
    clippy::too_many_lines,
    clippy::wildcard_enum_match_arm,
    reason = "tables of cases, and matches that take one variant and refuse the rest"
)]
mod test;

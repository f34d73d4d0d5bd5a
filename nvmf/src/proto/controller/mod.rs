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
use super::pdu::{Digests, Fatal, Fes, Framing, Header, Role, term_req};
use super::receive::{Receiver, Wanted};
use super::sqe::Sqe;
use super::status::Status;
use std::net::SocketAddr;

mod admin;
mod association;
mod connect;
mod features;
mod incoming;
pub mod limits;
mod nvm;
mod registers;
mod slots;
mod timing;

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

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection was accepted; `connection` is the caller's, below
    /// [`limits::CONNECTIONS_MAX`] and free.
    Opened {
        /// Our address on it, which discovery tells.
        local: SocketAddr,
    },
    /// The header bytes that [`Need::Header`] asked for.
    Header(&'a [u8]),
    /// Payload was moved to where [`Need::Payload`] said.
    Payload {
        /// How much, at most what was asked for.
        len_bytes: u32,
    },
    /// The digest that [`Need::Digest`] asked for was compared.
    Digest {
        /// Whether it matched; true where there was nothing to compare with.
        matches: bool,
    },
    /// The buffer that [`Effect::TakeBuffer`] asked for is there.
    BufferReady {
        /// Its command.
        slot: u16,
    },
    /// The data that [`Effect::Inspect`] asked for.
    ConnectData {
        /// Its command.
        slot: u16,
        /// What is in its buffer.
        data: &'a [u8],
        /// Whether the host named in it may connect.
        host_allowed: bool,
    },
    /// An admitted command or inquiry was carried out.
    Replied {
        /// Its command.
        slot: u16,
        /// How it went.
        answer: Answer,
    },
    /// The peer closed or broke the connection; the caller closes it too.
    PeerGone,
    /// The connection is closed: its number is free.
    Closed,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: Status,
    /// Completion dwords 0 and 1.
    pub result: u64,
    /// Data for the host; not sent unless the status is success.
    pub data: Outgoing,
}

impl Answer {
    /// Success with this result and nothing else.
    pub const fn result(result: u64) -> Self {
        Self {
            status: Status::SUCCESS,
            result,
            data: Outgoing::None,
        }
    }

    /// Success with data.
    pub const fn data(data: Outgoing) -> Self {
        Self {
            status: Status::SUCCESS,
            result: 0,
            data,
        }
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self {
            status,
            result: 0,
            data: Outgoing::None,
        }
    }
}

/// Where data of a PDU comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// There is none.
    None,
    /// The buffer that the caller keeps for this command.
    Slot {
        /// The command.
        slot: u16,
        /// How much of it.
        len_bytes: u32,
    },
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Outgoing {
    /// Length in bytes. Panics past 4 GiB, which nothing here reaches.
    pub fn len_bytes(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Slot { len_bytes, .. } => *len_bytes,
            Self::Bytes(bytes) => u32::try_from(bytes.len()).expect("bounded by transfer size"),
        }
    }
}

/// What a buffer is wanted for, in the order in which scarcity is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BufferUse {
    /// Data that is already in the socket; the connection waits for the buffer.
    InCapsule,
    /// Data for the host.
    Read,
    /// Data we shall ask for.
    R2t,
}

/// What a question to the backend is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inquiry {
    /// Active namespaces above this one (CNS 02h).
    List {
        /// The NSID to start after.
        above: u32,
    },
    /// A namespace (CNS 00h, 05h).
    Namespace,
    /// Its identification descriptors (CNS 03h).
    Descriptors,
}

/// What the caller is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Queue a PDU. PDUs of one connection leave in the order of their effects.
    Send {
        /// On which connection.
        connection: u32,
        /// The header, framed as [`Core::framing`] says.
        pdu: Header,
        /// What follows it.
        data: Outgoing,
    },
    /// Queue a terminate request as the last thing sent, throw away what still arrives, and close
    /// when the peer does.
    Terminate {
        /// On which connection.
        connection: u32,
        /// The whole PDU.
        bytes: Vec<u8>,
        /// Why, for counters and logs.
        fatal: Fatal,
    },
    /// Find a buffer for the command and say [`Event::BufferReady`].
    TakeBuffer {
        /// On which connection.
        connection: u32,
        /// For which command.
        slot: u16,
        /// How large.
        len_bytes: u32,
        /// What for.
        purpose: BufferUse,
    },
    /// Show the data of a Connect: [`Event::ConnectData`].
    Inspect {
        /// On which connection.
        connection: u32,
        /// Its command.
        slot: u16,
    },
    /// Answer from what the backend knows, at once: [`Event::Replied`].
    Inquire {
        /// On which connection.
        connection: u32,
        /// Its command.
        slot: u16,
        /// What about.
        inquiry: Inquiry,
        /// Which namespace, if it is about one.
        nsid: u32,
        /// Most bytes the host takes.
        len_bytes_max: u32,
    },
    /// Hand the command to the backend; [`Event::Replied`] comes later.
    Admit {
        /// On which connection.
        connection: u32,
        /// Its command.
        slot: u16,
        /// On whose behalf.
        association: AssociationId,
        /// What to do.
        work: Work,
        /// The command itself.
        sqe: Sqe,
        /// Bytes to or from the host, in the command's buffer (vendor reads: as bytes).
        len_bytes: u32,
    },
    /// The command ends without its buffer having been taken: it is free.
    ReleaseBuffer {
        /// On which connection.
        connection: u32,
        /// Its command.
        slot: u16,
    },
    /// Close the connection; [`Event::Closed`] follows.
    Close {
        /// Which one.
        connection: u32,
        /// With RST, so that the peer learns at once.
        reset: bool,
        /// Why, for logs.
        why: CloseReason,
    },
    /// An association exists from now on.
    Began {
        /// Which one.
        association: AssociationId,
    },
    /// An association is over; its sessions end with it.
    Gone {
        /// Which one.
        association: AssociationId,
        /// Whose it was.
        host_nqn: String,
        /// Why, for logs.
        why: CloseReason,
    },
}

/// Why something was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer went away.
    PeerGone,
    /// The peer sent a terminate request.
    PeerTerminated,
    /// The peer broke the protocol.
    Breach,
    /// No keep-alive in time.
    KeepAliveExpired,
    /// Not connected in time after accept, or not closed in time after our terminate request.
    TooSlow,
    /// The association's admin queue went.
    AssociationGone,
    /// The host disabled or shut down the controller.
    Disabled,
}

/// What the backend is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read blocks into the command's buffer.
    Read,
    /// Write blocks from the command's buffer.
    Write,
    /// Make completed writes durable.
    Flush,
    /// Zero blocks.
    WriteZeroes,
    /// Deallocate the ranges in the command's buffer.
    Deallocate,
    /// A vendor command.
    Vendor,
}

/// What the caller is to get for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Exactly this many bytes, for [`Event::Header`].
    Header {
        /// How many.
        len_bytes: u32,
    },
    /// Payload, into the buffer of a command or to nowhere, for [`Event::Payload`].
    Payload {
        /// The command; `None` throws the payload away.
        slot: Option<u16>,
        /// Where in the command's buffer.
        offset_bytes: u32,
        /// How much is left of this PDU.
        len_bytes: u32,
    },
    /// Four bytes to be compared with the CRC32C of a stretch of a command's buffer, for
    /// [`Event::Digest`].
    Digest {
        /// The command; `None` has nothing to compare with.
        slot: Option<u16>,
        /// Where the PDU's data begins in the command's buffer.
        offset_bytes: u32,
        /// How long it is.
        len_bytes: u32,
    },
    /// Nothing until the command whose payload is next has its buffer.
    Buffer,
    /// Whatever comes is thrown away.
    Nothing,
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

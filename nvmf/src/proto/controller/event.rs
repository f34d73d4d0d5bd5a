//! What the machine is told, what it wants done, and what it wants next.

use super::AssociationId;
use crate::proto::pdu::{Fatal, Header};
use crate::proto::sqe::Sqe;
use crate::proto::status::Status;
use std::net::SocketAddr;

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection was accepted; `connection` is the caller's, below
    /// [`CONNECTIONS_MAX`](super::limits::CONNECTIONS_MAX) and free.
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
        /// The header, framed as [`Core::framing`](super::Core::framing) says.
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

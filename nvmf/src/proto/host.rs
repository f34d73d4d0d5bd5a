//! The host side of one association: its admin queue and one IO queue, without IO.
//!
//! [`Host`] owns which command is in flight under which cid, what the peer may send next, and when
//! something is overdue. It holds no payload: data stays with the shell, which is told by
//! [`Effect::Send`] and [`Effect::Receive`] which bytes of which command to move. Every command
//! admitted ends in exactly one [`Effect::Complete`], unless [`Effect::Lose`] comes first: then
//! the shell closes both connections and hands back what is outstanding. Nothing follows `Lose`.
//!
//! ```text
//! Idle ─► Opening ─► Greeting ─► Connecting ─► ReadingCapabilities ─► Enabling ─► AwaitingReady
//!            ▲        (admin, then again for the IO queue)                              │
//!            └── SettingEvents ◄── SettingQueues ◄── Identifying ◄──────────────────────┘
//! Connecting (IO) ─► Ready;   every state ─► Lost
//! ```
//!
//! Sources: NVMe/TCP transport §3, NVMe over Fabrics (Base 2.x) §3.1 and §6.

use super::fabrics::ConnectData;
use super::pdu::{CommonHeader, Digests, Extent, Fatal, Framing, Header, Role};
use super::sqe::Sqe;
use super::status::Status;

mod commands;
mod receive;
mod setup;
mod slots;
mod timing;

use slots::{InFlight, Slots};

/// Largest read or write, in bytes (MDTS 5); a target that cannot do it is refused.
pub const IO_BYTES_MAX: u32 = 128 * 1024;
/// Most commands in flight on the IO queue: the cid has eight bits for the slot.
pub const QUEUE_DEPTH_MAX: u16 = 256;
/// SQSIZE asked for the admin queue, zero-based (as every host does).
pub const ADMIN_SQSIZE: u16 = 31;
/// Most of the caller's commands in flight on the admin queue.
pub const ADMIN_COMMANDS_MAX: u16 = 16;
/// Admin slots: the caller's, set-up, keep-alive, event request, changed-namespaces log.
const ADMIN_SLOTS: u16 = ADMIN_COMMANDS_MAX + 4;
/// Admin commands may carry this much in the capsule, whatever IOCCSZ says (NVMe-oF §2.1).
pub const ADMIN_INLINE_BYTES: u32 = 8192;
/// Most data of one admin command, in bytes.
pub const ADMIN_BYTES_MAX: u32 = 64 * 1024;
/// Smallest MAXH2CDATA a controller may state.
pub const MAXH2CDATA_MIN: u32 = 4096;
/// How often CSTS is looked at while the controller gets ready, in nanoseconds.
const READY_POLL_NS: u64 = 10_000_000;
/// Most effects of one event: an R2T for the largest IO at the smallest MAXH2CDATA, and a timer.
pub const EFFECTS_PER_EVENT_MAX: usize = (IO_BYTES_MAX / MAXH2CDATA_MIN) as usize + 2;

const _: () = assert!(ADMIN_SLOTS <= ADMIN_SQSIZE);
const _: () = assert!(ADMIN_BYTES_MAX <= IO_BYTES_MAX);

/// One of the two connections of an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueueId {
    /// Queue 0.
    Admin,
    /// Queue 1.
    Io,
}

impl QueueId {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Admin, Self::Io];

    /// The QID on the wire.
    pub const fn qid(self) -> u16 {
        self as u16
    }

    /// Place in an array of two.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What an association is set up with.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Our name.
    pub host_nqn: String,
    /// Our identifier.
    pub host_id: [u8; 16],
    /// The subsystem to connect to.
    pub subsystem_nqn: String,
    /// Keep-alive timeout in milliseconds; zero for none.
    pub kato_ms: u32,
    /// Most IO commands in flight; the target may allow fewer. `2..=QUEUE_DEPTH_MAX`.
    pub queue_depth: u16,
    /// Digests to ask for. The target must agree.
    pub digests: Digests,
    /// After how long without its answer an IO command costs the association.
    pub io_deadline_ns: u64,
    /// The same for admin commands and keep-alives.
    pub admin_deadline_ns: u64,
    /// From [`Event::Start`] to [`Effect::Ready`].
    pub connect_timeout_ns: u64,
}

/// Data of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    Nothing,
    /// Host to controller.
    ToController {
        /// How much.
        len_bytes: u32,
    },
    /// Controller to host.
    ToHost {
        /// The most that may come.
        len_bytes: u32,
        /// Whether success with less is a breach (reads) or an answer (vendor commands).
        exact: bool,
    },
}

/// A command to be admitted. The core sets cid and data descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Where it goes.
    pub queue: QueueId,
    /// Opcode, NSID, command dwords.
    pub sqe: Sqe,
    /// Its data.
    pub transfer: Transfer,
}

/// A command in flight: stable from admission to completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    /// Its queue.
    pub queue: QueueId,
    /// Its place there.
    pub index: u16,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// Begin.
    Start,
    /// The connection asked for by [`Effect::Open`] stands.
    Opened {
        /// Which.
        queue: QueueId,
    },
    /// A whole header arrived, digest and padding included; `extent` is from [`Host::measure`].
    Header {
        /// On which connection.
        queue: QueueId,
        /// What `measure` said.
        extent: Extent,
        /// `extent.header_bytes` bytes.
        bytes: &'a [u8],
    },
    /// The data of the last [`Effect::Receive`] of this queue arrived.
    DataReceived {
        /// On which connection.
        queue: QueueId,
        /// False if there was a digest and it was wrong.
        intact: bool,
        /// All data of this command so far; only looked at on the admin queue.
        data: &'a [u8],
    },
    /// [`Host::measure`] refused what arrived.
    Breach {
        /// On which connection.
        queue: QueueId,
        /// Why.
        fatal: Fatal,
    },
    /// A connection is gone, or the caller wants it to be.
    Gone(LostReason),
    /// The moment of the last [`Effect::Arm`] has come.
    Timer,
}

/// Bytes that follow a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    None,
    /// A part of the data of the command in this slot (same queue).
    Command {
        /// The slot's index.
        index: u16,
        /// First byte.
        start_bytes: u32,
        /// How many.
        len_bytes: u32,
    },
    /// The data of a Connect.
    Connect(Box<ConnectData>),
}

impl Payload {
    /// Its length.
    pub fn len_bytes(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Command { len_bytes, .. } => *len_bytes,
            Self::Connect(_) => super::fabrics::CONNECT_DATA_BYTES,
        }
    }
}

/// What to do about it, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Connect a socket for this queue; answer with [`Event::Opened`] or [`Event::Gone`].
    Open {
        /// Which.
        queue: QueueId,
    },
    /// Send a PDU, after all earlier ones of this queue.
    Send {
        /// On which connection.
        queue: QueueId,
        /// Its header, to be framed with [`Host::framing`].
        header: Header,
        /// What follows it.
        payload: Payload,
    },
    /// The next bytes of this queue are data of a command; answer with [`Event::DataReceived`].
    Receive {
        /// Whose data.
        slot: SlotId,
        /// Offset in the command's data.
        start_bytes: u32,
        /// How many bytes, then the digest.
        len_bytes: u32,
        /// Whether four bytes of digest follow.
        digest: bool,
    },
    /// The caller's command is over.
    Complete {
        /// Which.
        slot: SlotId,
        /// How.
        outcome: Outcome,
    },
    /// Set-up is complete: commands are admitted from now on.
    Ready(Facts),
    /// The list of namespaces, or one of them, is not what it was.
    NamespacesChanged,
    /// Replaces the timer.
    Arm {
        /// When.
        at_ns: u64,
    },
    /// The association is over: terminate (best effort), close both connections, hand back
    /// everything that is outstanding. Nothing follows.
    Lose {
        /// Why.
        reason: LostReason,
        /// The connection that the peer misused, and how.
        terminate: Option<(QueueId, Fatal)>,
    },
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the controller says. Success with a wrong data digest becomes
    /// [`Status::TRANSIENT_TRANSPORT`].
    pub status: Status,
    /// Result dwords.
    pub result: u64,
    /// Data that came, in bytes.
    pub received_bytes: u32,
}

/// What the controller is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its number.
    pub cntlid: u16,
    /// Most IO commands in flight.
    pub queue_depth: u16,
    /// Writes up to this many bytes go in the capsule.
    pub inline_bytes: u32,
    /// Largest transfer, in bytes.
    pub transfer_bytes_max: u32,
    /// Whether completed writes need a flush or FUA to be durable.
    pub write_cache: bool,
    /// Whether Write Zeroes works.
    pub write_zeroes: bool,
    /// Whether Dataset Management works.
    pub dataset_management: bool,
    /// Whether changes of namespaces are announced.
    pub announces_changes: bool,
}

/// Why an association ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    /// The caller wanted it.
    #[error("aborted by the caller")]
    Aborted,
    /// No connection came about.
    #[error("connect of the {queue:?} queue failed with errno {errno}")]
    OpenFailed {
        /// Which queue's.
        queue: QueueId,
        /// The kernel's reason.
        errno: i32,
    },
    /// A connection failed.
    #[error("connection of the {queue:?} queue failed with errno {errno}")]
    Socket {
        /// Which queue's.
        queue: QueueId,
        /// The kernel's reason.
        errno: i32,
    },
    /// The controller closed a connection.
    #[error("the controller closed the connection of the {queue:?} queue")]
    PeerClosed {
        /// Which queue's.
        queue: QueueId,
    },
    /// The controller gave up on us.
    #[error("the controller terminated the connection: status {fes}, information {fei:#x}")]
    PeerTerminated {
        /// Its fatal error status.
        fes: u16,
        /// Its information.
        fei: u32,
    },
    /// The controller broke the transport protocol.
    #[error("the controller broke the protocol on the {queue:?} queue: {fatal}")]
    Breach {
        /// On which queue.
        queue: QueueId,
        /// How.
        fatal: Fatal,
    },
    /// A data digest was wrong and the stream cannot be trusted without header digests.
    #[error("wrong data digest on the {queue:?} queue")]
    DataDigest {
        /// On which queue.
        queue: QueueId,
    },
    /// The controller refused a step of the set-up.
    #[error("refused while {phase:?}: {status}")]
    Refused {
        /// What we were doing.
        phase: Phase,
        /// Its status; DNR says whether trying again can help.
        status: Status,
    },
    /// The controller cannot serve us.
    #[error("unsuitable controller: {0}")]
    Unsuitable(#[from] Unsuitable),
    /// Set-up took too long.
    #[error("not ready in time, still {phase:?}")]
    ConnectTimeout {
        /// What we were doing.
        phase: Phase,
    },
    /// A command was not answered in time.
    #[error("no answer to opcode {opcode:#04x} on the {queue:?} queue before its deadline")]
    Deadline {
        /// On which queue.
        queue: QueueId,
        /// What the command was.
        opcode: u8,
    },
    /// The buffer arena is exhausted.
    #[error("no buffers for the connection of the {queue:?} queue")]
    NoBuffers {
        /// Which queue's.
        queue: QueueId,
    },
}

/// What a controller lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// Other digests than asked for.
    #[error("digests agreed are {0:?}")]
    Digests(Digests),
    /// Its number in Identify is not the one of Connect.
    #[error("controller id {identify} in Identify, {connect} in Connect")]
    ControllerId {
        /// From Connect.
        connect: u16,
        /// From Identify.
        identify: u16,
    },
    /// Not an IO controller.
    #[error("controller type {0}")]
    ControllerType(u8),
    /// Capsules are smaller than a command or a completion.
    #[error("capsule sizes of {command} and {response} 16-byte units")]
    Capsules {
        /// IOCCSZ.
        command: u32,
        /// IORCSZ.
        response: u32,
    },
    /// In-capsule data is not where we put it.
    #[error("in-capsule data offset {0}")]
    DataOffset(u16),
    /// No SGLs.
    #[error("no SGL support ({0:#x})")]
    Sgls(u32),
    /// No keep-alive, though we want one.
    #[error("no keep-alive support")]
    KeepAlive,
    /// The largest transfer is smaller than what we send.
    #[error("largest transfer is {0} bytes")]
    TransferSize(u32),
    /// No NVM command set.
    #[error("capabilities {0:#x} lack the NVM command set or 4 KiB pages")]
    Capabilities(u64),
    /// Queues of one entry.
    #[error("queues of {0} entries")]
    QueueDepth(u32),
    /// CSTS says that the controller failed.
    #[error("controller status {0:#x}")]
    Fatal(u32),
    /// Identify delivered something else than an Identify Controller structure.
    #[error("Identify delivered {0} bytes")]
    Identify(usize),
}

/// Where an association is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not started.
    Idle,
    /// A socket is being connected.
    Opening(QueueId),
    /// ICReq is sent.
    Greeting(QueueId),
    /// Connect is sent.
    Connecting(QueueId),
    /// CAP is asked for.
    ReadingCapabilities,
    /// CC.EN is being set.
    Enabling,
    /// CSTS.RDY is awaited.
    AwaitingReady,
    /// Identify Controller is asked for.
    Identifying,
    /// The number of queues is being set.
    SettingQueues,
    /// Asynchronous events are being configured.
    SettingEvents,
    /// Commands are admitted.
    Ready,
    /// Over.
    Lost,
}

/// Effects in order.
pub type Outbox = Vec<Effect>;

/// One queue's half of the machine.
#[derive(Debug)]
struct Queue {
    greeted: bool,
    slots: Slots,
    /// What we send.
    transmit: Framing,
    /// What we accept; HPDA is zero.
    receive: Framing,
    maxh2cdata_bytes: u32,
    inline_bytes: u32,
    receiving: Option<Receiving>,
}

/// The C2HData whose payload is on its way.
#[derive(Clone, Copy, Debug)]
struct Receiving {
    index: u16,
    len_bytes: u32,
    success: bool,
}

impl Queue {
    fn new(depth: u16, inline_bytes: u32) -> Self {
        Self {
            greeted: false,
            slots: Slots::new(depth),
            transmit: Framing::default(),
            receive: Framing::default(),
            maxh2cdata_bytes: MAXH2CDATA_MIN,
            inline_bytes,
            receiving: None,
        }
    }
}

/// The machine of one association.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    phase: Phase,
    queues: [Queue; 2],
    facts: Facts,
    /// Commands reset the controller's keep-alive timer too.
    traffic_keeps_alive: bool,
    admin_commands: u16,
    started_ns: u64,
    last_alive_ns: u64,
    poll_at_ns: u64,
    armed_ns: u64,
}

impl Host {
    /// A machine that has not started.
    ///
    /// Panics if the queue depth is outside `2..=QUEUE_DEPTH_MAX`.
    pub fn new(config: HostConfig) -> Self {
        assert!((2..=QUEUE_DEPTH_MAX).contains(&config.queue_depth));
        let facts = Facts {
            cntlid: 0,
            queue_depth: config.queue_depth,
            inline_bytes: 0,
            transfer_bytes_max: IO_BYTES_MAX,
            write_cache: true,
            write_zeroes: false,
            dataset_management: false,
            announces_changes: false,
        };
        Self {
            phase: Phase::Idle,
            queues: [
                Queue::new(ADMIN_SLOTS, ADMIN_INLINE_BYTES),
                Queue::new(1, 0),
            ],
            facts,
            traffic_keeps_alive: false,
            admin_commands: 0,
            started_ns: 0,
            last_alive_ns: 0,
            poll_at_ns: u64::MAX,
            armed_ns: u64::MAX,
            config,
        }
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What the controller is like, once ready.
    pub fn facts(&self) -> Option<&Facts> {
        (self.phase == Phase::Ready).then_some(&self.facts)
    }

    /// How PDUs sent on this queue are framed.
    pub fn framing(&self, queue: QueueId) -> Framing {
        self.queues[queue.index()].transmit
    }

    /// Whether [`Host::admit`] would take a command for this queue.
    pub fn has_room(&self, queue: QueueId) -> bool {
        self.phase == Phase::Ready
            && match queue {
                QueueId::Admin => self.admin_commands < ADMIN_COMMANDS_MAX,
                QueueId::Io => self.queues[1].slots.has_room(),
            }
    }

    /// Commands in flight on this queue, our own included.
    pub fn in_flight(&self, queue: QueueId) -> usize {
        self.queues[queue.index()].slots.in_flight()
    }

    /// How long the next PDU's header is. Only looks at the common header.
    ///
    /// # Errors
    /// [`Fatal`], to be handed back as [`Event::Breach`].
    pub fn measure(&self, queue: QueueId, common: &CommonHeader) -> Result<Extent, Fatal> {
        self.queues[queue.index()]
            .receive
            .check(common, Role::Controller, IO_BYTES_MAX)
    }

    /// Takes one event and says what to do. Total and deterministic.
    pub fn step(&mut self, now_ns: u64, event: Event<'_>, out: &mut Outbox) {
        if self.phase == Phase::Lost {
            return;
        }
        let before = out.len();
        match event {
            Event::Start => self.start(now_ns, out),
            Event::Opened { queue } => self.greet(queue, out),
            Event::Header {
                queue,
                extent,
                bytes,
            } => {
                self.on_header(now_ns, queue, &extent, bytes, out);
            }
            Event::DataReceived {
                queue,
                intact,
                data,
            } => {
                self.on_data(now_ns, queue, intact, data, out);
            }
            Event::Breach { queue, fatal } => self.breach(queue, fatal, out),
            Event::Gone(reason) => self.lose(reason, None, out),
            Event::Timer => self.on_timer(now_ns, out),
        }
        assert!(
            out.len() - before <= EFFECTS_PER_EVENT_MAX,
            "host: unbounded effects"
        );
        assert!(self.admin_commands <= ADMIN_COMMANDS_MAX);
    }

    fn queue(&mut self, queue: QueueId) -> &mut Queue {
        &mut self.queues[queue.index()]
    }

    fn lose(&mut self, reason: LostReason, terminate: Option<(QueueId, Fatal)>, out: &mut Outbox) {
        assert_ne!(self.phase, Phase::Lost, "host: lost twice");
        self.phase = Phase::Lost;
        out.push(Effect::Lose { reason, terminate });
    }

    fn breach(&mut self, queue: QueueId, fatal: Fatal, out: &mut Outbox) {
        self.lose(
            LostReason::Breach { queue, fatal },
            Some((queue, fatal)),
            out,
        );
    }
}

#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "tests look for single effects among many"
)]
mod test;

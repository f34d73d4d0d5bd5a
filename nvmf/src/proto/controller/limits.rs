//! Bounds of the controller side, each with its reason.

/// Most connections at a time: each holds a staging and a header slot of the arena.
pub const CONNECTIONS_MAX: usize = 512;
/// Most associations at a time: a client server has one, a standard host one per subsystem.
pub const ASSOCIATIONS_MAX: usize = 256;
/// Most IO queues of one association: one per core of a host, within reason.
pub const IO_QUEUES_MAX: u16 = 16;
/// Most entries of a queue (MQES is one less).
pub const QUEUE_DEPTH_MAX: u16 = 128;
/// Command slots per queue entry: a host may reuse a cid before our send of its answer completes.
pub const SLOTS_PER_ENTRY: u16 = 2;
/// Commands on a connection that has not connected its queue: Connect, and one too early.
pub const SLOTS_BEFORE_CONNECT: u16 = 2;
/// Largest transfer, log2 of 4 KiB pages (MDTS).
pub const MDTS: u8 = 5;
/// Largest transfer, in bytes; also MAXH2CDATA, so that one R2T can be answered by one PDU.
pub const TRANSFER_BYTES_MAX: u32 = 4096 << MDTS;
/// In-capsule data of IO queues, in bytes.
pub const IN_CAPSULE_BYTES_MAX: u32 = 16 * 1024;
/// In-capsule data of admin and fabrics commands, in bytes (fixed by NVMe-oF).
pub const ADMIN_IN_CAPSULE_BYTES_MAX: u32 = 8 * 1024;
/// Asynchronous event requests outstanding per association (AERL is one less).
pub const EVENT_REQUESTS_MAX: usize = 4;
/// Namespaces that a controller states (MNAN).
pub const NAMESPACES_MAX: u32 = 65_536;
/// How long a connection may take to connect its queue: as long as hosts wait for ICResp.
pub const SETUP_NS_MAX: u64 = 10_000_000_000;
/// How long a peer may take to close after our terminate request.
pub const TERMINATE_NS_MAX: u64 = 5_000_000_000;
/// Added to KATO before a silent association is given up: hosts send every KATO/2, late at times.
pub const KEEP_ALIVE_GRACE_MS: u64 = 2_000;
/// Longest KATO granted; a host that asks for more gets this (Set Features) or is refused.
pub const KATO_MS_MAX: u32 = 600_000;

const _: () = assert!(IN_CAPSULE_BYTES_MAX >= ADMIN_IN_CAPSULE_BYTES_MAX);
const _: () = assert!(IN_CAPSULE_BYTES_MAX <= TRANSFER_BYTES_MAX);
const _: () = assert!(IN_CAPSULE_BYTES_MAX.is_multiple_of(16));
const _: () = assert!(ASSOCIATIONS_MAX <= CONNECTIONS_MAX);
const _: () = assert!(QUEUE_DEPTH_MAX as u32 * SLOTS_PER_ENTRY as u32 <= u16::MAX as u32);

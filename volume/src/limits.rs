//! Every bound of this crate, with its reason.

use shardmap::units::{BLOCK_BYTES, EXTENT_BLOCKS, REGION_BLOCKS};

/// Largest read or write of a host, in blocks: the largest arena slot (128 KiB).
pub const IO_BLOCKS_MAX: u32 = 32;
/// Largest discard or write-zeroes of a host, in blocks (64 MiB): one bitmap container, one
/// command per replica and shard.
pub const ZERO_BLOCKS_MAX: u32 = 16_384;
/// Host requests one volume holds at a time; more is refused until some end. Two full ublk queues.
pub const HOST_OPS_MAX: usize = 1024;
/// Largest resilver copy, in blocks: the largest IO.
pub const COPY_BLOCKS_MAX: u32 = IO_BLOCKS_MAX;
/// How long a request to a view may wait for a store that answers, in milliseconds: a backup is told
/// before its reader gives up, and a restart of a server passes unnoticed.
pub const VIEW_WAIT_MS: u64 = 30_000;
/// Resilver copies in flight per volume while the host is quiet; each holds one large arena slot.
pub const COPIES_MAX: usize = 8;
/// Resilver copies in flight per volume while the host has requests outstanding.
pub const COPIES_BUSY_MAX: usize = 2;
/// Chunks of a region being equalised at a time during reconciliation.
pub const RECONCILE_COPIES_MAX: usize = 4;
/// Read repairs at a time; each holds a lock and an arena slot, and a medium that fails everywhere
/// must not take all of them.
pub const REPAIRS_MAX: usize = 4;
/// Marks a store may keep per slice (16 GiB of the volume): what a crash may make us compare.
pub const MARKS_MAX: u32 = 4_096;
/// Least time between two passes over the marks that their number asks for.
pub const STABLE_PAUSE_MS: u64 = 2_000;
/// Regions whose presence is asked for at a time (64 MiB: a bitmap of at most 2 KiB).
pub const PRESENCE_REGIONS: u32 = 16;
/// Marks handed to a store in one command. A store takes 16 384, and 64 KiB of bitmap: so many fit
/// even if each sits in a container of its own (10 bytes each).
pub const MARKS_PER_COMMAND_MAX: usize = 6_500;
/// Least time between two progress reports of a resilver.
pub const PROGRESS_MS: u64 = 500;
/// Commands the shell queues per association beyond what the initiator takes.
pub const QUEUED_COMMANDS_MAX: usize = 64 * 1024;

const _: () = assert!(COPIES_BUSY_MAX <= COPIES_MAX);
const _: () = assert!(IO_BLOCKS_MAX * BLOCK_BYTES == 128 * 1024);
const _: () = assert!(REGION_BLOCKS.is_multiple_of(EXTENT_BLOCKS));
const _: () = assert!(IO_BLOCKS_MAX.is_multiple_of(EXTENT_BLOCKS));
const _: () =
    assert!(MARKS_PER_COMMAND_MAX * 10 + 8 <= nvmf::proto::vendor::VENDOR_DATA_BYTES_MAX as usize);

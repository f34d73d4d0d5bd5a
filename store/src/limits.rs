//! Every bound of a store, with its reason.

use shardmap::units::{BLOCK_BYTES, EXTENT_BYTES};

/// Commands that may be active in one store. Beyond it a command is answered
/// [`StoreFault::Busy`](crate::StoreFault::Busy), which initiators retry: 32 associations of depth 128.
pub const COMMANDS_MAX: usize = 4096;
/// Device operations a store keeps in flight at its backing; the rest waits in order. Deep enough
/// for an NVMe drive's queue, shallow enough that a flush does not wait behind thousands of writes.
pub const DEVICE_OPS_MAX: usize = 256;
/// Most blocks of one read or write: the arena's largest window.
pub const IO_BLOCKS_MAX: u32 = 32;
/// Most blocks of one zero or discard (1 GiB): bounds the work of one step.
pub const ZERO_BLOCKS_MAX: u32 = 1 << 18;
/// Most blocks of one hash request (4 MiB: one region).
pub const HASH_BLOCKS_MAX: u32 = 1024;
/// Most regions of one presence request (64 MiB of volume).
pub const PRESENCE_REGIONS_MAX: u32 = 16;
/// Most regions reported or added at once: a serialised bitmap of so many stays within 64 KiB
/// even if every region sits in a container of its own half (2 bytes each plus headers).
pub const MARKS_PER_CALL_MAX: usize = 16_384;
/// Slices of one store. Each has a descriptor in memory and a metadata page.
pub const SLICES_MAX: usize = 16_384;
/// Parents a read may go on to, one after the other: each costs a look-up for what is absent so far.
pub const PARENTS_MAX: usize = 8;
/// One journal record, at most. Large enough for a group commit of hundreds of changes, small
/// enough for one arena window.
pub const RECORD_BYTES_MAX: u32 = 64 * 1024;
/// Extents whose map change waits for a flush nobody asked for; then the store flushes by itself,
/// so that memory and the size of the next commit stay bounded.
pub const CHANGES_UNFLUSHED_MAX: usize = 16_384;
/// Metadata pages written at once by a checkpoint.
pub const CHECKPOINT_WRITES_MAX: usize = 4;
/// Extents that merges go through before they wait for the journal.
pub const MERGE_STEPS_MAX: usize = 256;
/// Cells that one question for space looks at: well below a millisecond of the data path.
pub const SPACE_CELLS_MAX: u64 = 4096;
/// Checksum blocks read at once: reads of blocks whose checksums are not in memory wait for them.
pub const CHECKSUM_READS_MAX: usize = 16;
/// How often a checksum block is read that cannot be read, before its blocks pass for unknown: once more
/// than a drive that recovers needs, and few enough that a dead sector holds reads up for moments only.
pub const CHECKSUM_READ_TRIES_MAX: u32 = 3;
/// Checksum blocks written at once: background work, except for merges and the end of marks.
pub const CHECKSUM_WRITES_MAX: usize = 8;
/// Fewest and most checksum blocks in memory (4 KiB each: 16 to 64 MiB, for 16 to 64 GiB of data).
pub const CHECKSUM_BLOCKS_RANGE: std::ops::RangeInclusive<usize> = 4096..=16_384;
/// In between: one for so many extents of the store, 16 MiB for a TiB.
pub const CHECKSUM_EXTENTS_PER_BLOCK_IN_MEMORY: u32 = 4096;
/// Extents that a scrub reads in a row: few wake-ups, and a small part of a second of any disk.
pub const SCRUB_EXTENTS_AT_ONCE: u32 = 16;
/// Longest pause of a scrub: how soon it notices that there is something in an empty store.
pub const SCRUB_PAUSE_MAX: std::time::Duration = std::time::Duration::from_secs(60);
/// Blocks that one store heals at once: background work.
pub const HEALS_MAX: usize = 1;
/// Trims in flight at once.
pub const TRIMS_MAX: usize = 2;
/// Extents in one trim (64 MiB).
pub const TRIM_EXTENTS_MAX: u32 = 1024;
/// Extents that wait untrimmed to be used again, at most (4 GiB) ...
pub const POOL_EXTENTS_MAX: u32 = 65_536;
/// ... and this part of the store.
pub const POOL_SHARE: u32 = 32;
/// Bytes of one metadata read during open.
pub const META_READ_BYTES_MAX: u32 = 128 * 1024;
/// Metadata reads in flight during open.
pub const META_READS_MAX: usize = 2;

const _: () = assert!(RECORD_BYTES_MAX <= META_READ_BYTES_MAX);
const _: () = assert!(IO_BLOCKS_MAX * BLOCK_BYTES <= META_READ_BYTES_MAX);
const _: () = assert!(EXTENT_BYTES <= META_READ_BYTES_MAX);

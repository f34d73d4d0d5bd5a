//! Every bound of this crate, and how they relate.

use crate::uapi;

/// Bytes in a kernel sector, the unit of ublk's positions and counts.
pub const SECTOR_BYTES: u32 = 512;

/// Logical block of every device we make, in bytes.
pub const BLOCK_BYTES: u32 = 4096;

/// Sectors per block.
pub const BLOCK_SECTORS: u32 = BLOCK_BYTES / SECTOR_BYTES;

/// Largest read or write the kernel may hand us, in bytes: the arena's largest slot.
pub const IO_BYTES_MAX: u32 = 128 * 1024;

/// Largest discard or write-zeroes, in bytes: 64 MiB, what a volume takes as one operation (16 384
/// blocks; clientd asserts that the two agree). The kernel splits larger ones.
pub const RANGE_BYTES_MAX: u32 = 16_384 * BLOCK_BYTES;

/// Preferred IO size told to the file system, as a power of two in bytes: one extent (ADR 0004).
pub const IO_OPTIMAL_SHIFT: u8 = 16;

/// Most queues of one device. One reactor thread serves them all, so more than a few bring nothing.
pub const QUEUES_MAX: u16 = 16;

/// Most requests of one queue in flight. Times [`IO_BYTES_MAX`] it is what one queue can ask of the
/// arena.
pub const QUEUE_DEPTH_MAX: u16 = 1024;

/// How long an answer to a control command that only touches memory may take. A kernel that
/// oopsed in `ADD_DEV` never answers.
pub const CONTROL_ANSWER_SECONDS: u64 = 30;

/// How long recovery waits for the kernel to finish burying the previous daemon.
pub const RECOVERY_WAIT_SECONDS: u64 = 30;

/// How long a stop waits for passing openers (udev, blkid) to close the device.
pub const STOP_WAIT_MS: u64 = 3_000;

/// How long to wait for `/dev/ublkcN` to appear and to be free.
pub const NODE_WAIT_MS: u64 = 5_000;

/// Pause between two tries while waiting for the kernel or for udev, on a helper thread.
pub const RETRY_PAUSE_MS: u64 = 20;

const _: () = assert!(BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));
const _: () = assert!(IO_BYTES_MAX == reactor::arena::SLOT_BYTES[2]);
const _: () = assert!(IO_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!((IO_BYTES_MAX as u64) < 1 << uapi::USER_COPY_TAG_SHIFT);
const _: () = assert!(QUEUE_DEPTH_MAX <= uapi::QUEUE_DEPTH_MAX);
const _: () = assert!(QUEUES_MAX <= uapi::QUEUES_MAX);

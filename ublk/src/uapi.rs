//! The kernel's ublk interface (`include/uapi/linux/ublk_cmd.h`), as far as we speak it.
//!
//! Structures are in the host's byte order: they are shared with the kernel of this machine and go
//! nowhere else. `test` holds every size, offset and number against `libublk-rs-sys`.

use std::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a control command carries in its submission entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct CtrlCmd {
    /// Device, or `u32::MAX` for "the next free one" in [`CMD_ADD_DEV`].
    pub dev_id: u32,
    /// Queue, or [`NO_QUEUE`].
    pub queue_id: u16,
    /// Length of the buffer at `addr`, in bytes.
    pub buffer_len_bytes: u16,
    /// Address of the command's buffer, in or out.
    pub addr: u64,
    /// Inline argument: a process id, a size in sectors, a time in milliseconds.
    pub data: u64,
    /// Unprivileged devices only.
    pub dev_path_len: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<CtrlCmd>() == 32 && offset_of!(CtrlCmd, data) == 16);

/// `CtrlCmd::queue_id` of a command that concerns no queue.
pub const NO_QUEUE: u16 = u16::MAX;

/// `CtrlCmd::dev_id` that lets the kernel choose.
pub const ANY_DEVICE: u32 = u32::MAX;

/// A device as the kernel knows it: input and output of [`CMD_ADD_DEV`], output of
/// [`CMD_GET_DEV_INFO`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DevInfo {
    /// Queues; the kernel lowers it to the number of CPUs.
    pub nr_hw_queues: u16,
    /// Tags per queue.
    pub queue_depth: u16,
    /// One of `STATE_*`.
    pub state: u16,
    /// Zero.
    pub pad0: u16,
    /// Largest IO, in bytes.
    pub max_io_buf_bytes: u32,
    /// The N of `/dev/ublkbN`.
    pub dev_id: u32,
    /// The daemon's process id, -1 without one.
    pub ublksrv_pid: i32,
    /// Zero.
    pub pad1: u32,
    /// `F_*`; the kernel clears what it does not know.
    pub flags: u64,
    /// Ours to use; the kernel keeps it untouched.
    pub ublksrv_flags: u64,
    /// Owner, stored by the kernel.
    pub owner_uid: u32,
    /// Owner, stored by the kernel.
    pub owner_gid: u32,
    /// Zero.
    pub reserved1: u64,
    /// Zero.
    pub reserved2: u64,
}

const _: () = assert!(size_of::<DevInfo>() == 64 && offset_of!(DevInfo, flags) == 24);

/// What a tag's request is; one per tag in the mapped descriptor array.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IoDesc {
    /// Bits 0-7: `OP_*`; above: `IO_F_*`.
    pub op_flags: u32,
    /// Length in sectors.
    pub nr_sectors: u32,
    /// Position in sectors.
    pub start_sector: u64,
    /// Unused with [`F_USER_COPY`].
    pub addr: u64,
}

const _: () = assert!(size_of::<IoDesc>() == 24 && offset_of!(IoDesc, start_sector) == 8);

/// What a per-IO command carries in its submission entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IoCmd {
    /// Queue.
    pub q_id: u16,
    /// Tag in the queue.
    pub tag: u16,
    /// Bytes done or a negative error number; [`IO_COMMIT_AND_FETCH_REQ`] only.
    pub result: i32,
    /// Zero with [`F_USER_COPY`].
    pub addr: u64,
}

const _: () = assert!(size_of::<IoCmd>() == 16);

/// Basic parameters of a device.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ParamBasic {
    /// `ATTR_*`.
    pub attrs: u32,
    /// log2 of the logical block, in bytes.
    pub logical_bs_shift: u8,
    /// log2 of the physical block, in bytes.
    pub physical_bs_shift: u8,
    /// log2 of the preferred IO size, in bytes.
    pub io_opt_shift: u8,
    /// log2 of the smallest IO without a penalty, in bytes.
    pub io_min_shift: u8,
    /// Largest IO, in sectors.
    pub max_sectors: u32,
    /// No IO crosses a multiple of this, in sectors; 0 for none.
    pub chunk_sectors: u32,
    /// Device size, in sectors.
    pub dev_sectors: u64,
    /// Zero.
    pub virt_boundary_mask: u64,
}

/// Discard and write-zeroes parameters of a device.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ParamDiscard {
    /// Offset of the first aligned block, in bytes.
    pub discard_alignment: u32,
    /// Unit of deallocation, in bytes; not zero.
    pub discard_granularity: u32,
    /// Largest discard, in sectors.
    pub max_discard_sectors: u32,
    /// Largest write-zeroes, in sectors.
    pub max_write_zeroes_sectors: u32,
    /// Ranges per discard: always one.
    pub max_discard_segments: u16,
    /// Zero.
    pub reserved0: u16,
}

/// Parameters of a device: the first part of `struct ublk_params`, whose `len` tells the kernel
/// where ours ends.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Params {
    /// Bytes of this structure.
    pub len_bytes: u32,
    /// `PARAM_TYPE_*` of the parts that are set.
    pub types: u32,
    /// Basic parameters.
    pub basic: ParamBasic,
    /// Discard parameters.
    pub discard: ParamDiscard,
    /// Device numbers, filled in by the kernel: char major, char minor, disk major, disk minor.
    pub devt: [u32; 4],
    /// Start of the zoned part, which we never set.
    pub unused: u32,
}

const _: () = assert!(size_of::<Params>() == 80);
const _: () = assert!(offset_of!(Params, basic) == 8 && offset_of!(Params, discard) == 40);

const IOC_WRITE: u32 = 1;
const IOC_READ: u32 = 2;

#[cfg(any(target_arch = "powerpc", target_arch = "mips", target_arch = "sparc64"))]
compile_error!("this architecture encodes ioctl numbers in another way");

const fn ioc(direction: u32, number: u32, payload_bytes: usize) -> u32 {
    assert!(number < 256 && payload_bytes < 1 << 14);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounded by the assertion above"
    )]
    let size = payload_bytes as u32;
    direction << 30 | size << 16 | (b'u' as u32) << 8 | number
}

const fn control(direction: u32, number: u32) -> u32 {
    ioc(direction, number, size_of::<CtrlCmd>())
}

const fn per_io(number: u32) -> u32 {
    ioc(IOC_READ | IOC_WRITE, number, size_of::<IoCmd>())
}

/// Read what the kernel knows of a device.
pub const CMD_GET_DEV_INFO: u32 = control(IOC_READ, 0x02);
/// Create `/dev/ublkcN`.
pub const CMD_ADD_DEV: u32 = control(IOC_READ | IOC_WRITE, 0x04);
/// Remove a device; answers when the last descriptor and mapping of `/dev/ublkcN` are gone.
pub const CMD_DEL_DEV: u32 = control(IOC_READ | IOC_WRITE, 0x05);
/// Create `/dev/ublkbN`; answers when every tag was fetched and partitions were read.
pub const CMD_START_DEV: u32 = control(IOC_READ | IOC_WRITE, 0x06);
/// Remove `/dev/ublkbN`, whoever uses it, and abort all fetches.
pub const CMD_STOP_DEV: u32 = control(IOC_READ | IOC_WRITE, 0x07);
/// Set parameters, before the start.
pub const CMD_SET_PARAMS: u32 = control(IOC_READ | IOC_WRITE, 0x08);
/// Read parameters.
pub const CMD_GET_PARAMS: u32 = control(IOC_READ, 0x09);
/// Begin to replace a dead daemon.
pub const CMD_START_USER_RECOVERY: u32 = control(IOC_READ | IOC_WRITE, 0x10);
/// Finish replacing a dead daemon; answers when every tag was fetched.
pub const CMD_END_USER_RECOVERY: u32 = control(IOC_READ | IOC_WRITE, 0x11);
/// Read the driver's feature flags (Linux 6.5).
pub const CMD_GET_FEATURES: u32 = control(IOC_READ, 0x13);
/// Grow a live device (Linux 6.16).
pub const CMD_UPDATE_SIZE: u32 = control(IOC_READ | IOC_WRITE, 0x15);
/// Stop, but only if nobody has the device open (Linux 7.0).
pub const CMD_TRY_STOP_DEV: u32 = control(IOC_READ | IOC_WRITE, 0x17);

/// Hand a tag to the kernel for the first time.
pub const IO_FETCH_REQ: u32 = per_io(0x20);
/// Answer a tag's request and hand the tag back.
pub const IO_COMMIT_AND_FETCH_REQ: u32 = per_io(0x21);

/// Result of a per-IO command: a request is in the descriptor array.
pub const IO_RES_OK: i32 = 0;
/// Result of a per-IO command: the device is going away, do not fetch again (`-ENODEV`).
pub const IO_RES_ABORT: i32 = -libc::ENODEV;

/// Most tags of a queue the interface can express.
pub const QUEUE_DEPTH_MAX: u16 = 4096;
/// Most queues the interface can express.
pub const QUEUES_MAX: u16 = 4096;

/// `/dev/ublkcN` stays for the next daemon if this one dies.
pub const F_USER_RECOVERY: u64 = 1 << 3;
/// Requests handed to a dead daemon are handed to the next one.
pub const F_USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// Commands are encoded as ioctl numbers.
pub const F_CMD_IOCTL_ENCODE: u64 = 1 << 6;
/// Payload is copied by reading and writing `/dev/ublkcN`.
pub const F_USER_COPY: u64 = 1 << 7;
/// [`CMD_UPDATE_SIZE`] works.
pub const F_UPDATE_SIZE: u64 = 1 << 10;
/// [`CMD_TRY_STOP_DEV`] works.
pub const F_SAFE_STOP_DEV: u64 = 1 << 17;

/// No disk: not started yet, or stopped.
pub const STATE_DEAD: u16 = 0;
/// A disk with a daemon.
pub const STATE_LIVE: u16 = 1;
/// A disk whose daemon died; requests wait for the next one.
pub const STATE_QUIESCED: u16 = 2;
/// A disk whose daemon died; requests fail.
pub const STATE_FAIL_IO: u16 = 3;

/// Read.
pub const OP_READ: u32 = 0;
/// Write.
pub const OP_WRITE: u32 = 1;
/// Make completed writes durable.
pub const OP_FLUSH: u32 = 2;
/// The range holds nothing of interest.
pub const OP_DISCARD: u32 = 3;
/// The range reads as zeroes afterwards.
pub const OP_WRITE_ZEROES: u32 = 5;
/// Mask of the operation in [`IoDesc::op_flags`].
pub const OP_MASK: u32 = 0xff;

/// Durable on completion.
pub const IO_F_FUA: u32 = 1 << 13;
/// Write-zeroes must keep the space allocated.
pub const IO_F_NOUNMAP: u32 = 1 << 15;

/// The device cannot be written to.
pub const ATTR_READ_ONLY: u32 = 1 << 0;
/// Completed writes may be lost without a flush.
pub const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
/// Writes may carry [`IO_F_FUA`].
pub const ATTR_FUA: u32 = 1 << 3;

/// [`Params::basic`] is set.
pub const PARAM_TYPE_BASIC: u32 = 1 << 0;
/// [`Params::discard`] is set.
pub const PARAM_TYPE_DISCARD: u32 = 1 << 1;

/// Where payloads begin in the position space of `/dev/ublkcN`.
pub const USER_COPY_BASE: u64 = 0x8000_0000;
/// Bits of the offset within one request's payload.
pub const USER_COPY_TAG_SHIFT: u32 = 25;
/// Bits below the queue number.
pub const USER_COPY_QUEUE_SHIFT: u32 = 41;

/// Position of the first payload byte of a tag's request in `/dev/ublkcN`.
pub const fn user_copy_position(queue: u16, tag: u16) -> u64 {
    USER_COPY_BASE
        + ((queue as u64) << USER_COPY_QUEUE_SHIFT)
        + ((tag as u64) << USER_COPY_TAG_SHIFT)
}

#[cfg(test)]
mod test;

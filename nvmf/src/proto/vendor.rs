//! Vendor admin commands between clientd and storaged: what NVMe lacks for replication.
//!
//! Every command carries the slice as its NSID and the protocol version in CDW10 15:0; structs
//! repeat the version in their first two bytes. Opcode bits 1:0 give the data direction, as NVMe
//! demands. The session that a command opens belongs to the association it came on.

use super::sqe::{Direction, Sqe};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version this release speaks.
pub const PROTOCOL_VERSION: u16 = 2;

/// Most data a vendor command moves, in bytes.
pub const VENDOR_DATA_BYTES_MAX: u32 = 64 * 1024;

/// Opcodes.
pub mod opcode {
    /// [`OpenSlice`](super::OpenSlice) in; result: incarnation.
    pub const OPEN_SLICE: u8 = 0xc1;
    /// [`SliceState`](super::SliceState) out.
    pub const SLICE_STATE: u8 = 0xc2;
    /// Ends this association's session on the slice.
    pub const CLOSE_SLICE: u8 = 0xc4;
    /// [`SliceStamp`](super::SliceStamp) in, durable before the reply.
    pub const STAMP_SLICE: u8 = 0xc5;
    /// Bitmap of marked regions out; CDW11: first region.
    pub const READ_MARKS: u8 = 0xc6;
    /// Result: a tick (replication §8).
    pub const TICK: u8 = 0xc8;
    /// Bitmap of regions in, durable before the reply.
    pub const ADD_MARKS: u8 = 0xc9;
    /// Bitmap of present or zeroed blocks out; CDW11: first region, CDW12: regions, CDW13-14: those of
    /// generations after the one up to the other; 0 and 0: all.
    pub const READ_PRESENCE: u8 = 0xca;
    /// As [`READ_PRESENCE`] of generations up to CDW14, with what shows of the parents of a clone's slice.
    pub const READ_SHOWN: u8 = 0xd6;
    /// Unmarks regions last written before the tick in CDW11-12; CDW13: ticks they must have been
    /// idle, CDW14: marks that may stay (0: any number). Result: marks left.
    pub const STABLE: u8 = 0xcc;
    /// [`SliceStamp`](super::SliceStamp) in: the slice is complete again, durable before the reply.
    pub const COMPLETE_SLICE: u8 = 0xcd;
    /// One u64 per 64 KiB chunk out; CDW11-12: first block, CDW13: blocks, CDW14: generation.
    pub const HASH_RANGE: u8 = 0xce;
    /// The slice must be resilvered before it is trusted, durable before the reply.
    pub const SET_INCOMPLETE: u8 = 0xd0;
    /// [`SliceGeneration`](super::SliceGeneration)s out: the snapshots, ascending, and the head.
    pub const READ_GENERATIONS: u8 = 0xd2;
    /// [`SliceSpace`](super::SliceSpace) out, with [`SpaceExclusive`](super::SpaceExclusive)s behind it;
    /// CDW11-12: first extent. Result: the extent where to go on, 0: nothing follows.
    pub const READ_SPACE: u8 = 0xde;
    /// CDW11: the head from now on, durable before the reply.
    pub const BEGIN_GENERATION: u8 = 0xd4;
    /// One block out, as this store has it at the moment; CDW11-12: which, CDW13: generation. For healing
    /// another replica: no session, storageds only.
    pub const READ_REPLICA: u8 = 0xda;
    /// CDW11: the snapshot takes no more writes, durable before the reply, and has what it took.
    pub const COMPLETE_GENERATION: u8 = 0xd8;

    /// The store with the UUID in CDW11-14 takes in what its device has become larger by, durable before the
    /// reply: [`StoreGrowth`](super::StoreGrowth) out. No slice, no session; for `ubsctl` only.
    pub const GROW_STORE: u8 = 0xe2;

    /// All of them.
    pub const ALL: [u8; 19] = [
        OPEN_SLICE,
        SLICE_STATE,
        CLOSE_SLICE,
        STAMP_SLICE,
        READ_MARKS,
        TICK,
        ADD_MARKS,
        READ_PRESENCE,
        READ_SHOWN,
        STABLE,
        COMPLETE_SLICE,
        HASH_RANGE,
        SET_INCOMPLETE,
        READ_GENERATIONS,
        READ_SPACE,
        BEGIN_GENERATION,
        READ_REPLICA,
        COMPLETE_GENERATION,
        GROW_STORE,
    ];
}

/// Data of OpenSlice.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OpenSlice {
    /// [`PROTOCOL_VERSION`].
    pub version: U16,
    /// Zero.
    pub flags: U16,
    /// Zero.
    pub reserved: U32,
    /// Epoch of the attach.
    pub epoch: U64,
    /// Volume the slice must belong to.
    pub volume: [u8; 16],
    /// What metad gave the client to prove the attach.
    pub ticket: [u8; 32],
}
const _: () = assert!(size_of::<OpenSlice>() == 64);
const _: () = assert!(std::mem::offset_of!(OpenSlice, epoch) == 8);
const _: () = assert!(std::mem::offset_of!(OpenSlice, volume) == 16);
const _: () = assert!(std::mem::offset_of!(OpenSlice, ticket) == 32);

/// Flag of [`SliceState`]: the store's last stop was clean.
pub const STATE_CLEAN: u16 = 1 << 0;
/// Flag of [`SliceState`]: the slice must be resilvered before it is trusted.
pub const STATE_INCOMPLETE: u16 = 1 << 1;

/// Data of SliceState.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SliceState {
    /// [`PROTOCOL_VERSION`].
    pub version: U16,
    /// `STATE_*`.
    pub flags: U16,
    /// Zero.
    pub reserved0: U32,
    /// The store's incarnation.
    pub incarnation: U64,
    /// The last incarnation that began after an unclean stop.
    pub lost_at: U64,
    /// Newest epoch that opened the slice.
    pub epoch: U64,
    /// Sequence number of the stamp.
    pub stamp_seq: U64,
    /// In-sync positions of the stamp, a bitmap.
    pub stamp_isr: U64,
    /// Members of the stamp, a bitmap of positions.
    pub stamp_members: U64,
    /// The generation that takes writes.
    pub head_generation: U32,
    /// Regions marked.
    pub mark_count: U32,
    /// The store's tick now.
    pub tick: U64,
    /// Snapshots: what ReadGenerations tells besides the head.
    pub snapshot_count: U32,
    /// Zero.
    pub reserved: [u8; 52],
}
const _: () = assert!(size_of::<SliceState>() == 128);
const _: () = assert!(std::mem::offset_of!(SliceState, incarnation) == 8);
const _: () = assert!(std::mem::offset_of!(SliceState, stamp_seq) == 32);
const _: () = assert!(std::mem::offset_of!(SliceState, head_generation) == 56);
const _: () = assert!(std::mem::offset_of!(SliceState, tick) == 64);
const _: () = assert!(std::mem::offset_of!(SliceState, snapshot_count) == 72);

/// Flag of [`SliceGeneration`]: the snapshot is pending.
pub const GENERATION_PENDING: u32 = 1 << 0;

/// One entry of the data of ReadGenerations.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SliceGeneration {
    /// Its number; never zero.
    pub generation: U32,
    /// `GENERATION_*`.
    pub flags: U32,
}
const _: () = assert!(size_of::<SliceGeneration>() == 8);

/// Data of ReadSpace: what so far from the first extent asked for is for. In bytes, whole extents; the three
/// sum up to what is allocated.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SliceSpace {
    /// [`PROTOCOL_VERSION`].
    pub version: U16,
    /// Zero.
    pub flags: U16,
    /// How many [`SpaceExclusive`]s follow.
    pub exclusive_count: U32,
    /// What the head needs.
    pub live_bytes: U64,
    /// What the snapshots need beyond that.
    pub snapshots_bytes: U64,
    /// What is on its way back.
    pub reclaimable_bytes: U64,
}
const _: () = assert!(size_of::<SliceSpace>() == 32);
const _: () = assert!(std::mem::offset_of!(SliceSpace, live_bytes) == 8);

/// What the deletion of a snapshot would free.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SpaceExclusive {
    /// Of the snapshot.
    pub generation: U32,
    /// Zero.
    pub reserved: U32,
    /// Never zero.
    pub bytes: U64,
}
const _: () = assert!(size_of::<SpaceExclusive>() == 16);
const _: () = assert!(std::mem::offset_of!(SpaceExclusive, bytes) == 8);

/// GrowStore: the words of its command, and the refusals of [`StoreGrowth`]; 0: it has grown.
pub mod growth {
    /// CDW10-15 that ask a store to grow: the version, and its UUID.
    pub fn cdw10_15(store: [u8; 16]) -> [u32; 6] {
        let mut cdws = [super::PROTOCOL_VERSION.into(), 0, 0, 0, 0, 0];
        for (cdw, word) in cdws[1..].iter_mut().zip(store.as_chunks().0) {
            *cdw = u32::from_le_bytes(*word);
        }
        cdws
    }

    /// The UUID that CDW10-15 name.
    pub fn store([_, words @ .., _]: [u32; 6]) -> [u8; 16] {
        let mut store = [0; 16];
        store
            .as_chunks_mut()
            .0
            .copy_from_slice(&words.map(u32::to_le_bytes));
        store
    }

    /// The device is not larger than what the store uses, or not by much.
    pub const TOO_LITTLE: u32 = 1;
    /// The device is smaller than what the store uses.
    pub const SHRANK: u32 = 2;
    /// It has grown as often as can be.
    pub const TOO_OFTEN: u32 = 3;
    /// The device has more than a store can use.
    pub const TOO_LARGE: u32 = 4;
    /// Another growth is under way.
    pub const RUNNING: u32 = 5;
    /// The device has failed: see the errno.
    pub const DEVICE: u32 = 6;
}

/// Data of GrowStore. What is not known, or not of interest to the refusal, is zero.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct StoreGrowth {
    /// [`PROTOCOL_VERSION`].
    pub version: U16,
    /// Zero.
    pub flags: U16,
    /// 0, or why it has not grown: [`growth`].
    pub refusal: U32,
    /// Bytes of the device that the store used before.
    pub device_bytes_before: U64,
    /// Bytes of the device.
    pub device_bytes: U64,
    /// Capacity for data before, in bytes.
    pub capacity_bytes_before: U64,
    /// Capacity for data, in bytes.
    pub capacity_bytes: U64,
    /// What the kernel said.
    pub errno: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<StoreGrowth>() == 48);
const _: () = assert!(std::mem::offset_of!(StoreGrowth, device_bytes_before) == 8);
const _: () = assert!(std::mem::offset_of!(StoreGrowth, errno) == 40);

/// Data of StampSlice and CompleteSlice.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SliceStamp {
    /// [`PROTOCOL_VERSION`].
    pub version: U16,
    /// Zero.
    pub flags: U16,
    /// Zero.
    pub reserved: U32,
    /// Membership sequence number.
    pub seq: U64,
    /// In-sync positions, a bitmap.
    pub isr: U64,
    /// Members, a bitmap of positions.
    pub members: U64,
}
const _: () = assert!(size_of::<SliceStamp>() == 32);
const _: () = assert!(std::mem::offset_of!(SliceStamp, seq) == 8);

/// A vendor command without its data descriptor: NSID, version in CDW10, `cdw11_13` as the opcode
/// defines them.
pub fn command(opcode: u8, cid: u16, nsid: u32, cdw11_13: [u32; 3]) -> Sqe {
    let [cdw11, cdw12, cdw13] = cdw11_13;
    let cdws = [u32::from(PROTOCOL_VERSION), cdw11, cdw12, cdw13, 0, 0];
    Sqe::new(opcode, cid, nsid).with_cdws(cdws)
}

/// Direction of a vendor opcode of ours; `None` for opcodes we do not know.
pub fn direction(opcode: u8) -> Option<Direction> {
    opcode::ALL
        .contains(&opcode)
        .then(|| Direction::of_opcode(opcode))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn opcodes_say_which_way_their_data_goes() {
        use opcode::*;
        let into = [OPEN_SLICE, STAMP_SLICE, ADD_MARKS, COMPLETE_SLICE];
        let out = [
            SLICE_STATE,
            READ_MARKS,
            READ_PRESENCE,
            READ_SHOWN,
            HASH_RANGE,
            READ_GENERATIONS,
            READ_SPACE,
            READ_REPLICA,
            GROW_STORE,
        ];
        for op in ALL {
            let expected = if into.contains(&op) {
                Direction::ToController
            } else if out.contains(&op) {
                Direction::ToHost
            } else {
                Direction::None
            };
            assert_eq!(direction(op), Some(expected), "{op:#x}");
        }
        assert_eq!(direction(0xc3), None);
    }

    #[test]
    fn a_command_carries_the_version_and_its_dwords() {
        let sqe = command(opcode::HASH_RANGE, 9, 5, [1, 2, 3]);
        assert_eq!(sqe.cdws(), [2, 1, 2, 3, 0, 0]);
        assert_eq!((sqe.nsid.get(), sqe.cid.get()), (5, 9));
    }
}

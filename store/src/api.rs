//! What storaged asks of a store and what it gets.

use crate::core::facts::{
    GenerationState, Growth, Healed, OpenFacts, Rot, SliceSpace, SliceSpec, SliceState, Stamp,
    StoreFault,
};
use crate::core::format::geometry::GROWTH_BYTES_MIN;
use reactor::{Buf, BufMut};
use roaring::RoaringBitmap;
use shardmap::units::{BlockRange, Epoch, Generation, Lba, Nsid, RegionIndex, VolumeId, WriteTick};
use uuid::Uuid;

/// One command to a store. Answered by exactly one [`StoreEvent::Reply`] with the same id.
#[derive(Debug)]
pub struct StoreRequest {
    /// The caller's; unique among those it has outstanding.
    pub id: u64,
    /// Which slice. Ignored by [`StoreOp::AssociationGone`].
    pub slice: Nsid,
    /// Who asks: sessions are bound to it.
    pub association: u64,
    /// What is asked.
    pub op: StoreOp,
}

/// The commands. "Needs a session" means: an association that opened the slice (or `open_access`).
#[derive(Debug)]
pub enum StoreOp {
    /// Needs a session, unless it reads a complete snapshot of a slice that is not incomplete. Fills
    /// `into` (as long as the range), absent blocks with zeroes. At most 32 blocks. Answer:
    /// [`StoreReply::Read`].
    Read {
        /// Blocks of the volume.
        range: BlockRange,
        /// Of which generation; zero: the head.
        generation: Generation,
        /// Where to put them.
        into: BufMut,
    },
    /// Needs a session. At most 32 blocks. Answer: [`StoreReply::Done`].
    Write {
        /// Blocks of the volume.
        range: BlockRange,
        /// Exactly as long as the range.
        data: Buf,
        /// Durable when answered.
        fua: bool,
        /// Zero: the head. Otherwise the head, or a snapshot that is pending (a store that was away is
        /// given several); on an incomplete slice any.
        /// What a client writes to a block before a snapshot it has completed before what it writes
        /// there after it.
        generation: Generation,
    },
    /// Needs a session. All that was answered before is durable. Answer: [`StoreReply::Done`].
    Flush,
    /// Needs a session. The range reads as zeroes afterwards. At most 2^18 blocks.
    Zero {
        /// Blocks of the volume.
        range: BlockRange,
        /// Give space back (discard; write-zeroes without NOUNMAP).
        deallocate: bool,
        /// Durable when answered.
        fua: bool,
        /// As for a write.
        generation: Generation,
    },
    /// Control. Creates the slice, durably; the same description again is fine, a larger size grows it.
    CreateSlice {
        /// What to create.
        spec: SliceSpec,
        /// If it does not exist yet: it must be resilvered before it may be trusted, because a slice
        /// that was here is lost. Says nothing about one that exists.
        incomplete: bool,
    },
    /// Control. Revokes sessions, drains, frees everything, durably.
    RemoveSlice,
    /// Binds a session to this association: persists the epoch if newer (older: `Fenced`), revokes
    /// older sessions and answers when all they had admitted has completed on the backing. Answer:
    /// [`StoreReply::State`].
    OpenSession {
        /// The opener's.
        epoch: Epoch,
        /// Must be the slice's.
        volume: VolumeId,
    },
    /// Ends this association's session on the slice; answered when what it had admitted has completed.
    CloseSession,
    /// Control. The association is gone: its sessions on all slices end. What they had admitted goes
    /// on and is answered.
    AssociationGone,
    /// Control. Answer: [`StoreReply::State`].
    ReadState,
    /// Needs a session. Durable when answered.
    Stamp(Stamp),
    /// Needs a session. Answer: [`StoreReply::Tick`].
    Tick,
    /// Needs a session. Unmarks, durably, the regions whose last write is older than `tick` by more
    /// than `idle_ticks` ticks and that have no write in flight. Zero idle ticks: everything older.
    /// If more than `keep_max` stay, those written longest ago go too, as far as they are older than
    /// `tick`. Answer: [`StoreReply::Stable`].
    Stable {
        /// From an earlier [`StoreOp::Tick`] of this session.
        tick: WriteTick,
        /// How many ticks a region must have been idle.
        idle_ticks: u32,
        /// Marks that may stay; zero is no limit.
        keep_max: u32,
    },
    /// Needs a session. Durable when answered.
    AddMarks {
        /// Region numbers, at most 16 384.
        regions: RoaringBitmap,
    },
    /// Needs a session. Stamps and clears `incomplete`, durably.
    Complete(Stamp),
    /// Needs a session. Durable when answered.
    SetIncomplete,
    /// Needs a session. Answer: [`StoreReply::Marks`].
    ReadMarks {
        /// First region to report.
        from: RegionIndex,
    },
    /// Needs a session, unless both generations are complete snapshots (or the first is zero) of a slice
    /// that is not incomplete. Which blocks are present or zero. Answer: [`StoreReply::Presence`].
    ReadPresence {
        /// First region.
        from: RegionIndex,
        /// How many regions, at most 16.
        regions: u32,
        /// Only what was written in later generations than this; zero: all.
        after: Generation,
        /// Only what was written up to this generation; zero: the head.
        upto: Generation,
        /// With `after` zero: what shows of the parents of a clone, too, and not only what it wrote itself.
        shown: bool,
    },
    /// Needs a session. One hash per 64 KiB chunk of the volume that the range touches (aligned, at
    /// most 1 024 blocks). Answer: [`StoreReply::Hashes`].
    Hash {
        /// Blocks of the volume, starting and ending at multiples of 16 or at the volume's end.
        range: BlockRange,
        /// Of which generation; zero: the head.
        generation: Generation,
    },
    /// Needs a session. The head is this generation from now on, durably; the head before is a
    /// snapshot, pending: it takes the writes that carry its number until it is completed. The head
    /// again is fine.
    BeginGeneration(Generation),
    /// Needs a session. The snapshot takes no more writes, durably, and is answered when those it took
    /// have ended: from then on it never changes.
    CompleteGeneration(Generation),
    /// Control. The snapshot is gone, durably; one that is gone already is fine. What no other
    /// generation shows is given back in the background.
    DropGeneration(Generation),
    /// Control. Answer: [`StoreReply::Generations`].
    ReadGenerations,
    /// Control. What the slice's space is for, as the maps have it: a bounded part. Answer:
    /// [`StoreReply::Space`].
    ReadSpace {
        /// First extent of the volume.
        from: u64,
    },
    /// Control: for healing another replica. What this store has of a block, without a session, as it is at
    /// the moment. Answer: [`StoreReply::Read`].
    ReadReplica {
        /// Block of the volume.
        lba: Lba,
        /// The generation that wrote it, or a later one up to the one that shows it; zero: the head.
        generation: Generation,
        /// One block.
        into: BufMut,
    },
    /// Control: what somebody else has of a block that was found not to be what was written there. It is
    /// written in place, durably, if it is that. Answer: [`StoreReply::Healed`].
    Heal {
        /// Block of the volume.
        lba: Lba,
        /// As for [`StoreOp::ReadReplica`].
        generation: Generation,
        /// One block.
        data: Buf,
    },
    /// Control. The store takes in what its device has become larger by; the slice does not matter. Durable
    /// when answered, by [`StoreReply::Grown`].
    Grow,
    /// Control. Which blocks were written or zeroed in generations after one up to another, as the
    /// maps have it. Answer: [`StoreReply::Presence`].
    Diff {
        /// The earlier generation; zero: everything that the later one shows.
        after: Generation,
        /// The later generation; zero: the head.
        upto: Generation,
        /// First region.
        from: RegionIndex,
        /// How many regions, at most 16.
        regions: u32,
    },
}

/// Answers.
#[derive(Debug)]
pub enum StoreReply {
    /// It is done.
    Done,
    /// The buffer of a read, filled.
    Read(BufMut),
    /// The slice's state.
    State(SliceState),
    /// A tick.
    Tick(WriteTick),
    /// How many regions are still marked.
    Stable {
        /// Marked regions left.
        marks_left: u64,
    },
    /// Marked regions at or after the one asked for.
    Marks {
        /// At most 16 384 region numbers.
        regions: RoaringBitmap,
        /// Where to go on; `None`: these were all.
        next: Option<RegionIndex>,
    },
    /// Blocks that are present or zero.
    Presence {
        /// Block numbers relative to the first block of the first region asked for.
        blocks: RoaringBitmap,
        /// First region at or after the end of the answer where anything may be present.
        next: Option<RegionIndex>,
    },
    /// [`content_hash`](crate::hash::content_hash) per 64 KiB chunk, in order.
    Hashes(Vec<u64>),
    /// The snapshots, ascending, and the head.
    Generations(Vec<GenerationState>),
    /// What space is for, from the extent asked for up to where it goes on.
    Space(SliceSpace),
    /// What became of bytes for a block.
    Healed(Healed),
    /// What the store has of its device now, and had before.
    Grown(Growth),
}

/// What a store tells its program.
#[derive(Debug)]
pub enum StoreEvent {
    /// The store serves from now on.
    Opened(Box<OpenFacts>),
    /// It does not, and the device is closed.
    OpenFailed(StoreFault),
    /// The answer to a request.
    Reply {
        /// Of the request.
        id: u64,
        /// How it ended.
        result: Result<StoreReply, StoreFault>,
    },
    /// The scrub found an extent with blocks that are not what was written, or cannot be read.
    Rotten {
        /// These.
        blocks: Vec<Rot>,
    },
    /// The store cannot be trusted any more: exit, loudly; do not stop cleanly, do not retry.
    Poisoned(StoreFault),
    /// `Store::stop` is through: all is durable, the device is closed.
    Stopped,
}

/// How to prepare a device or file as a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareOptions {
    /// The cluster it will belong to.
    pub cluster: Uuid,
    /// The store's own identity.
    pub store: Uuid,
    /// For a regular file: create it with this size if it does not exist, in bytes.
    pub size_bytes: Option<u64>,
    /// Overwrite whatever signature is there.
    pub wipe: bool,
    /// Journal ring in bytes; `None`: 1/256 of the device within 4 ..= 256 MiB.
    pub journal_bytes: Option<u64>,
    /// Keep a checksum of every block: 0.1 % of the device.
    pub checksums: bool,
}

/// What the superblock of a prepared device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// Format version.
    pub version: u16,
    /// The cluster it belongs to.
    pub cluster: Uuid,
    /// The store's identity.
    pub store: Uuid,
    /// Bytes of the device that the store uses.
    pub device_bytes: u64,
    /// Bytes that the device has.
    pub device_bytes_now: u64,
    /// How often it has grown.
    pub growths: u32,
    /// Capacity for data, in bytes.
    pub capacity_bytes: u64,
    /// Journal ring, in bytes.
    pub journal_bytes: u64,
    /// Metadata pages.
    pub pages: u32,
    /// It keeps checksums of its blocks.
    pub checksums: bool,
    /// Current life's number.
    pub incarnation: u64,
    /// Last life that began uncleanly.
    pub lost_at: u64,
    /// It was stopped cleanly.
    pub clean: bool,
}

impl StoreInfo {
    /// Bytes of the device that a growth would take in; zero if these are too few.
    pub const fn unused_bytes(&self) -> u64 {
        let unused = self.device_bytes_now.saturating_sub(self.device_bytes);
        if unused < GROWTH_BYTES_MIN { 0 } else { unused }
    }
}

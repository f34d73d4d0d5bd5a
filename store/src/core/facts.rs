//! What is said about stores and slices: descriptions, states, refusals.

use super::format::geometry::GROWTH_BYTES_MIN;
use super::format::tracts::GROWTHS_MAX;
use shardmap::map::Shape;
use shardmap::units::{BlockRange, MembershipSeq, ShardIndex};
use shardmap::units::{Epoch, Generation, Incarnation, Lba, Nsid, VolumeId, WriteTick};

/// What a clone begins with: a complete snapshot of another slice of the same store, which has the same
/// shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The other slice.
    pub nsid: Nsid,
    /// Its snapshot.
    pub generation: Generation,
}

/// What makes a slice: given by metad, kept for life (only the size may grow).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceSpec {
    /// NVMe namespace id, never reused.
    pub nsid: Nsid,
    /// The volume it is a part of.
    pub volume: VolumeId,
    /// Size of the whole volume, in blocks.
    pub size_blocks: u64,
    /// How the volume's shards are dealt.
    pub shape: Shape,
    /// Which position of the stride set this slice is.
    pub position: u16,
    /// Any association may do IO without a session (volumes of one replica on standard hosts).
    pub open_access: bool,
    /// What is absent in the slice itself is looked for here: the slice is a clone's.
    pub parent: Option<Parent>,
}

/// A membership as it was when it was stamped (replication protocol §2). Bitmaps are over positions of
/// the stride set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Membership sequence number.
    pub seq: MembershipSeq,
    /// In-sync positions.
    pub in_sync: u64,
    /// All positions.
    pub members: u64,
}

/// What a slice says of itself, to its client and to `ubsctl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceState {
    /// As created.
    pub spec: SliceSpec,
    /// Highest epoch that ever opened it.
    pub epoch: Epoch,
    /// Newest stamp.
    pub stamp: Stamp,
    /// Must be resilvered before it may be trusted.
    pub incomplete: bool,
    /// Head generation.
    pub head: Generation,
    /// How many snapshots it has.
    pub snapshot_count: u32,
    /// Marked regions.
    pub mark_count: u64,
    /// Current tick.
    pub tick: WriteTick,
    /// The store's incarnation.
    pub incarnation: Incarnation,
    /// The last incarnation that began without a clean stop before it.
    pub lost_at: Incarnation,
    /// The store was stopped cleanly before it was opened this time.
    pub clean: bool,
    /// Blocks of space given to the slice (whole extents).
    pub used_blocks: u64,
}

/// A generation of a slice: a snapshot, or the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationState {
    /// Its number.
    pub generation: Generation,
    /// A snapshot that still takes writes that were issued before it.
    pub pending: bool,
    /// Blocks of space that it has (whole extents), not counting what it shows of older ones.
    pub used_blocks: u64,
}

/// What the space of a part of a slice is for: extents that are allocated, in bytes, as they will be when
/// all deleted generations are merged. The three sum up to what is allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceSpace {
    /// What the head needs: this would be left if all snapshots were deleted.
    pub live_bytes: u64,
    /// What the snapshots need beyond that.
    pub snapshots_bytes: u64,
    /// What is on its way back, from deleted snapshots.
    pub reclaimable_bytes: u64,
    /// By snapshot, ascending: what its deletion alone would free; those that would free nothing are left out.
    pub exclusive: Vec<(Generation, u64)>,
    /// Where to go on, an extent of the volume; `None`: nothing follows.
    pub next: Option<u64>,
}

/// A block that is not what was written there, or cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rot {
    /// The slice.
    pub nsid: Nsid,
    /// The volume it is a part of.
    pub volume: VolumeId,
    /// The generation that wrote it.
    pub generation: Generation,
    /// Block of the volume.
    pub lba: Lba,
}

/// What the scrub of one cell found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Blocks read.
    pub blocks: u64,
    /// Of those: no checksum was known, or they were being written.
    pub unknown: u64,
    /// Of those: the device did not read them.
    pub unreadable: u64,
    /// Of those: not what was written there.
    pub rotten: u64,
    /// Of the last two kinds: a bit per block of the extent.
    pub bad: u16,
    /// First block of the extent, bad or not.
    pub extent: Option<Rot>,
}

impl Scrubbed {
    /// The blocks that are not what was written, or cannot be read.
    pub fn found(&self) -> impl Iterator<Item = Rot> {
        let (bad, extent) = (self.bad, self.extent);
        let blocks = (0..u16::BITS).filter(move |block| bad >> block & 1 == 1);
        blocks.filter_map(move |block| {
            let first = extent?;
            let lba = Lba(first.lba.0 + u64::from(block));
            Some(Rot { lba, ..first })
        })
    }
}

/// What became of bytes that another store gave for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Healed {
    /// They are what was written there, and are there again, durably.
    Written,
    /// They are not what was written there.
    Other,
    /// Nobody knows what was written there, or it is being written.
    Unknown,
    /// Nothing of the slice shows that block any more.
    Gone,
}

impl std::fmt::Display for Rot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            nsid,
            volume,
            generation,
            lba,
        } = self;
        write!(f, "{lba} of volume {volume} ({nsid}, {generation})")
    }
}

/// What opening a store found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFacts {
    /// Identity of the store.
    pub store: [u8; 16],
    /// The cluster it belongs to.
    pub cluster: [u8; 16],
    /// This life's number.
    pub incarnation: Incarnation,
    /// The last incarnation that began without a clean stop before it.
    pub lost_at: Incarnation,
    /// The previous stop was clean.
    pub clean: bool,
    /// Capacity for data, in bytes.
    pub capacity_bytes: u64,
    /// Free for data, in bytes.
    pub free_bytes: u64,
    /// Journal records replayed.
    pub replayed: u64,
    /// Metadata pages read.
    pub pages: u64,
    /// The slices, ascending by namespace id.
    pub slices: Vec<SliceState>,
}

/// Space and other figures of a serving store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Capacity for data, in bytes.
    pub capacity_bytes: u64,
    /// Free for data, in bytes (including what waits to be trimmed).
    pub free_bytes: u64,
    /// Of that: given back, and not to be used before a journal record is durable, what is in flight there
    /// has ended, and the device was told.
    pub returning_bytes: u64,
    /// Metadata pages, and how many are in use.
    pub pages: u32,
    /// Metadata pages in use.
    pub pages_used: u32,
    /// Journal ring, in bytes.
    pub journal_bytes: u64,
    /// Journal ring in use, in bytes.
    pub journal_used_bytes: u64,
}

/// What a store has of its device, before and after a growth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Bytes of the device that it used.
    pub device_bytes_before: u64,
    /// Bytes of the device.
    pub device_bytes: u64,
    /// Capacity for data before, in bytes.
    pub capacity_bytes_before: u64,
    /// Capacity for data, in bytes.
    pub capacity_bytes: u64,
}

/// Why a store does not grow. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrowthFault {
    /// The device is not larger than what the store uses, or not by much.
    #[error(
        "the device has {device_bytes} bytes and the store uses {used_bytes} of them; enlarge it by at least {GROWTH_BYTES_MIN} bytes"
    )]
    TooLittle {
        /// Of the device.
        device_bytes: u64,
        /// By the store.
        used_bytes: u64,
    },
    /// The device is smaller than what the store uses.
    #[error(
        "the device has {device_bytes} bytes but the store uses {used_bytes}; it shrank: what was behind its end is lost, and the store will not open again before it has its size back"
    )]
    Shrank {
        /// Of the device.
        device_bytes: u64,
        /// By the store.
        used_bytes: u64,
    },
    /// No more tracts fit into their table.
    #[error(
        "the store has grown {GROWTHS_MAX} times, more cannot be; prepare another one, or this one anew"
    )]
    TooOften,
    /// More extents than can be numbered.
    #[error(
        "the device has {device_bytes} bytes; one store holds at most 256 TiB, make another one of the rest"
    )]
    TooLarge {
        /// Of the device.
        device_bytes: u64,
    },
    /// One at a time.
    #[error("the store is growing already; wait for that")]
    Running,
    /// What is new of the device cannot be used, or its size is not known.
    #[error(
        "the device failed with errno {errno}; the store is as it was, see that the device is sound"
    )]
    Device {
        /// What the kernel said.
        errno: i32,
    },
}

/// Why a command, an open or a whole store failed. Every number is in the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// Nobody created this namespace here, or it was removed.
    #[error("{nsid}: no such slice on this store")]
    UnknownSlice {
        /// As asked.
        nsid: Nsid,
    },
    /// The namespace belongs to another volume than the caller thinks.
    #[error("{nsid} belongs to volume {ours}, not {theirs}")]
    WrongVolume {
        /// As asked.
        nsid: Nsid,
        /// The slice's volume.
        ours: VolumeId,
        /// The caller's.
        theirs: VolumeId,
    },
    /// A slice of this number but with another description exists.
    #[error("{nsid} exists already with another description; remove it first")]
    SliceExists {
        /// As asked.
        nsid: Nsid,
    },
    /// What the slice is a clone of is not here, or not whole.
    #[error(
        "{nsid} is a clone of {} of {}, which is not complete on this store; it can be made when that is",
        .parent.generation, .parent.nsid
    )]
    ParentNotComplete {
        /// As asked.
        nsid: Nsid,
        /// What it is a clone of.
        parent: Parent,
    },
    /// Clones on this store show what would go.
    #[error("{nsid} shows through its clone {clone} on this store; remove that first")]
    HasClones {
        /// The slice.
        nsid: Nsid,
        /// One of them.
        clone: Nsid,
    },
    /// The description itself cannot be.
    #[error("{nsid}: bad slice description: {why}")]
    BadSpec {
        /// As asked.
        nsid: Nsid,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A newer epoch has opened the slice.
    #[error("{nsid}: {theirs} is fenced, {ours} has opened the slice")]
    Fenced {
        /// The slice.
        nsid: Nsid,
        /// Newest epoch.
        ours: Epoch,
        /// The caller's.
        theirs: Epoch,
    },
    /// This association's session was ended by a newer one.
    #[error("{nsid}: the session was revoked by a newer one")]
    SessionRevoked {
        /// The slice.
        nsid: Nsid,
    },
    /// This association has no session on the slice.
    #[error("{nsid}: this association has not opened the slice")]
    NotOpen {
        /// The slice.
        nsid: Nsid,
    },
    /// The range passes the end of the volume.
    #[error("{range} passes the end of a volume of {size_blocks} blocks")]
    OutOfRange {
        /// As asked.
        range: BlockRange,
        /// The volume's size.
        size_blocks: u64,
    },
    /// More blocks than one command may carry.
    #[error("{blocks} blocks in one command, at most {max} are allowed")]
    TooLong {
        /// As asked.
        blocks: u32,
        /// The limit.
        max: u32,
    },
    /// Another store holds this shard.
    #[error("{nsid}: {shard} is not on this store")]
    ShardNotHere {
        /// The slice.
        nsid: Nsid,
        /// The first shard that is missing.
        shard: ShardIndex,
    },
    /// The slice must be resilvered before it can be read.
    #[error("{nsid} is incomplete and must be resilvered before it is read")]
    Incomplete {
        /// The slice.
        nsid: Nsid,
    },
    /// The generation takes no writes.
    #[error("{nsid}: writes go to {head}, not {asked}")]
    WrongGeneration {
        /// The slice.
        nsid: Nsid,
        /// The head.
        head: Generation,
        /// As asked.
        asked: Generation,
    },
    /// No such snapshot, or it was dropped.
    #[error("{nsid} has no {asked}")]
    UnknownGeneration {
        /// The slice.
        nsid: Nsid,
        /// As asked.
        asked: Generation,
    },
    /// The slice has as many snapshots as can be.
    #[error("{nsid} has {max} snapshots, more cannot be; delete some")]
    TooManySnapshots {
        /// The slice.
        nsid: Nsid,
        /// The limit.
        max: usize,
    },
    /// A tick that this session was never given.
    #[error("{nsid}: {asked} was not handed out to this session")]
    UnknownTick {
        /// The slice.
        nsid: Nsid,
        /// As asked.
        asked: WriteTick,
    },
    /// No extent is free.
    #[error(
        "the store is full: {needed} extents of 64 KiB needed, {free} free; delete, add a store, or enlarge its device and `ubsctl store grow`"
    )]
    NoSpace {
        /// Extents the command needs.
        needed: u32,
        /// Extents free.
        free: u32,
    },
    /// No metadata page is free.
    #[error(
        "the store has used all {pages} metadata pages; delete volumes or prepare it with more"
    )]
    NoPages {
        /// Pages of the store.
        pages: u32,
    },
    /// The medium could not read or write a block.
    #[error("the device failed to {what} {lba} of {nsid}: errno {errno}")]
    Medium {
        /// "read" or "write".
        what: &'static str,
        /// The slice.
        nsid: Nsid,
        /// First block of the failed run.
        lba: Lba,
        /// What the kernel said.
        errno: i32,
    },
    /// A block is not what was written there.
    #[error(
        "{lba} of {nsid} is damaged on the device: its checksum is {read:08x}, {written:08x} was written"
    )]
    Rotten {
        /// The slice.
        nsid: Nsid,
        /// The first such block.
        lba: Lba,
        /// Checksum of what was written.
        written: u32,
        /// Checksum of what was read.
        read: u32,
    },
    /// Too many commands at once.
    #[error("the store has {max} commands in flight; try again")]
    Busy {
        /// The limit.
        max: usize,
    },
    /// The store is closing.
    #[error("the store is stopping")]
    Stopping,
    /// The store lost trust in its own volatile state: the process must exit, loudly, and never try
    /// again what failed (a failed flush may have dropped what it should have saved).
    #[error("the store is poisoned: {what} failed with errno {errno}; storaged must restart")]
    Poisoned {
        /// What failed.
        what: &'static str,
        /// What the kernel said.
        errno: i32,
    },
    /// The store does not grow.
    #[error(transparent)]
    Growth(#[from] GrowthFault),
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenFault),
}

/// Why a store did not open. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenFault {
    /// No superblock.
    #[error(
        "{path}: not a ublkstor store (no superblock); put the right device there, or make it one with `ubsctl store prepare {path}`"
    )]
    NotAStore {
        /// The device.
        path: String,
    },
    /// Both superblocks are damaged.
    #[error("{path}: both superblocks are damaged; the store must be prepared anew and resilvered")]
    SuperblockDamaged {
        /// The device.
        path: String,
    },
    /// Written by a newer release.
    #[error("{path}: format version {found}, this release knows {known}; use a newer release")]
    Version {
        /// The device.
        path: String,
        /// In the superblock.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// It belongs to another cluster.
    #[error(
        "{path}: belongs to cluster {found}, not to {wanted}, and stays as it is; put it into a server of its own cluster, or give it up with `ubsctl store prepare --wipe {path}`"
    )]
    OtherCluster {
        /// The device.
        path: String,
        /// In the superblock.
        found: uuid::Uuid,
        /// Ours.
        wanted: uuid::Uuid,
    },
    /// The device is smaller than what the store uses of it.
    #[error(
        "{path}: the device has {now_bytes} bytes but the store uses {then_bytes}; it shrank, refusing to open: give it its size back"
    )]
    Shrank {
        /// The device.
        path: String,
        /// Size now.
        now_bytes: u64,
        /// Size in the superblock.
        then_bytes: u64,
    },
    /// A metadata page, a directory page or the region table is damaged.
    #[error(
        "{path}: {what} {index} is damaged ({why}); the store must be prepared anew and resilvered"
    )]
    Damaged {
        /// The device.
        path: String,
        /// Which kind of structure.
        what: &'static str,
        /// Which one.
        index: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A journal record that was durable is no longer readable: an acknowledged change is lost.
    #[error(
        "{path}: journal record {sequence} is damaged although record {proof} proves that it was \
         durable; the store must be prepared anew and resilvered"
    )]
    JournalDamaged {
        /// The device.
        path: String,
        /// The damaged record.
        sequence: u64,
        /// The later record.
        proof: u64,
    },
    /// The device did not answer.
    #[error("{path}: {what} at byte {offset_bytes} failed with errno {errno}")]
    Device {
        /// The device.
        path: String,
        /// What was tried.
        what: &'static str,
        /// Where.
        offset_bytes: u64,
        /// What the kernel said.
        errno: i32,
    },
    /// The driver could not open the device.
    #[error("{path}: {reason}; see that the device is there and that nobody else uses it")]
    Setup {
        /// The device.
        path: String,
        /// The driver's words.
        reason: String,
    },
    /// Not enough arena memory for the metadata buffers.
    #[error("{path}: the buffer arena has no room for the store's metadata buffers; enlarge it")]
    NoBuffers {
        /// The device.
        path: String,
    },
}

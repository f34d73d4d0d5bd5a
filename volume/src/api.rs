//! What a program (clientd, ubs-bench) and this crate say to each other.

use crate::core::{
    AttachFault, FailReason, HostFault, Progress, Resilvered, StoreState, TraceEvent,
};
use reactor::{Buf, BufMut};
use shardmap::dirty::BlockSet;
use shardmap::generations::{SnapshotStep, VolumeGenerations};
use shardmap::grant::{AttachGrant as Granted, IsrAnswer, MembershipRequest, SliceAddress};
use shardmap::map::VolumeMap;
use shardmap::units::{
    BlockRange, Epoch, Generation, Incarnation, MembershipSeq, Nsid, RegionIndex, StoreId, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// How to reach one slice of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePath {
    /// Namespace of the slice.
    pub nsid: Nsid,
    /// Where its storaged listens.
    pub address: SocketAddr,
    /// Its storaged's subsystem. Slices with the same address and subsystem share an association.
    pub subsystem_nqn: String,
}

/// What metad grants with an attach.
#[derive(Clone, Debug)]
pub struct AttachGrant {
    /// The volume.
    pub volume: VolumeId,
    /// Its shape and stores.
    pub map: VolumeMap,
    /// This attach.
    pub epoch: Epoch,
    /// Version of the membership.
    pub seq: MembershipSeq,
    /// The in-sync set.
    pub isr: BTreeSet<StoreId>,
    /// False after a disaster restore of metad: the stores' stamps decide what is in sync.
    pub verified: bool,
    /// `Some` if what uses the volume has outlived the client before us: what that one was told by
    /// [`VolumeEvent::Remember`] last. Only stores with these incarnations are trusted then.
    pub survived: Option<BTreeMap<StoreId, Incarnation>>,
    /// Head and snapshots.
    pub generations: VolumeGenerations,
    /// Proof for the stores that metad minted the epoch.
    pub ticket: [u8; 32],
    /// One entry per store of the map.
    pub slices: BTreeMap<StoreId, SlicePath>,
    /// Knobs of this volume.
    pub options: VolumeOptions,
    /// Not the volume is attached but this snapshot of it opened, as [`ViewGrant`] does.
    pub view: Option<Generation>,
}

impl AttachGrant {
    /// What metad granted, with the knobs of this program; the least number of in-sync stores is
    /// metad's.
    pub fn new(granted: Granted, options: VolumeOptions) -> Self {
        let path = |slice: SliceAddress| {
            let path = SlicePath {
                nsid: slice.nsid,
                address: slice.address,
                subsystem_nqn: slice.subsystem_nqn,
            };
            (slice.store, path)
        };
        Self {
            volume: granted.volume,
            map: granted.map,
            epoch: granted.epoch,
            seq: granted.seq,
            isr: granted.isr,
            verified: granted.verified,
            survived: None,
            generations: granted.generations,
            ticket: [0; 32],
            slices: granted.slices.into_iter().map(path).collect(),
            options: VolumeOptions {
                min_in_sync: granted.min_in_sync,
                ..options
            },
            view: granted.view,
        }
    }
}

/// A snapshot to be read.
#[derive(Clone, Debug)]
pub struct ViewGrant {
    /// The view's own identity, chosen by who opens it: other than that of any volume or view here.
    pub id: VolumeId,
    /// Shape and stores of the snapshot's volume.
    pub map: VolumeMap,
    /// The snapshot, which metad knows to be complete.
    pub generation: Generation,
    /// One entry per store of the map.
    pub slices: BTreeMap<StoreId, SlicePath>,
    /// How long to wait until every shard has a store that answers, in milliseconds.
    pub attach_wait_ms: u64,
}

impl ViewGrant {
    /// The view that an attachment stands for; `None`: it attaches the volume itself.
    pub fn of(grant: &AttachGrant) -> Option<Self> {
        let generation = grant.view?;
        Some(Self {
            id: grant.volume,
            map: grant.map.clone(),
            generation,
            slices: grant.slices.clone(),
            attach_wait_ms: grant.options.attach_wait_ms,
        })
    }
}

/// Knobs of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeOptions {
    /// IO to a shard is held while fewer in-sync stores than this hold it. At least 1.
    pub min_in_sync: u8,
    /// How long a member may be without a session before it is removed, in milliseconds.
    pub degrade_grace_ms: u64,
    /// How long an attach waits for members to answer, in milliseconds.
    pub attach_wait_ms: u64,
    /// How long a member may keep a write or flush waiting that others have done before it is
    /// removed, in milliseconds; zero is for ever.
    pub slow_ms: u64,
    /// Whether members that do not answer are removed from the in-sync set. False for a volume that
    /// no host uses: nobody waits for them.
    pub may_shrink: bool,
    /// Resilver speed limit in bytes per second; zero is none.
    pub resilver_bytes_per_s_max: u64,
    /// How long after a write marks are cleaned, in milliseconds; zero is never.
    pub stable_period_ms: u64,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            min_in_sync: 1,
            degrade_grace_ms: 300,
            attach_wait_ms: 3_000,
            slow_ms: 3_000,
            may_shrink: true,
            resilver_bytes_per_s_max: 0,
            stable_period_ms: 45_000,
        }
    }
}

/// A request of the host. `id` is the caller's, unique per volume while the request is outstanding.
#[derive(Debug)]
pub struct HostRequest {
    /// Which volume.
    pub volume: VolumeId,
    /// The caller's name for it.
    pub id: u64,
    /// What to do.
    pub op: HostOp,
}

/// What a host can ask for. Reads and writes: at most [`crate::limits::IO_BLOCKS_MAX`] blocks;
/// discard and zero: at most [`crate::limits::ZERO_BLOCKS_MAX`].
#[derive(Debug)]
pub enum HostOp {
    /// Read into a window of exactly the range's length.
    Read {
        /// Where.
        range: BlockRange,
        /// What to fill.
        into: BufMut,
    },
    /// Write a window of exactly the range's length. Its bytes are stable: they are sent to every
    /// replica from here.
    Write {
        /// Where.
        range: BlockRange,
        /// What to write.
        data: Buf,
        /// Durable on completion.
        fua: bool,
    },
    /// Everything completed before is durable on completion.
    Flush,
    /// The range reads as zeroes from now on; space is given back.
    Discard {
        /// Where.
        range: BlockRange,
    },
    /// The range reads as zeroes from now on.
    Zero {
        /// Where.
        range: BlockRange,
        /// Keep the space allocated.
        no_unmap: bool,
        /// Durable on completion.
        fua: bool,
    },
    /// Of a view: which blocks of 16 regions (64 MiB) may read otherwise than in an earlier snapshot,
    /// from the maps; no data is read. The answer is [`HostBuffer::Changes`].
    Changes {
        /// First region.
        from: RegionIndex,
        /// The earlier snapshot; zero: one in which everything reads as zeroes.
        after: Generation,
    },
}

/// A request that was not taken, with the request.
#[derive(Debug, thiserror::Error)]
#[error("host request not taken: {why}")]
pub struct NotTaken {
    /// The request, with its buffers.
    pub request: HostRequest,
    /// Why.
    pub why: NotTakenWhy,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTakenWhy {
    /// No such volume here.
    #[error("the volume is not attached here")]
    UnknownVolume,
    /// [`crate::limits::HOST_OPS_MAX`] requests are outstanding: come again when one ended.
    #[error("too many requests are outstanding")]
    Full,
    /// The buffer's length is not the range's.
    #[error("the buffer's length differs from the range's")]
    BufferLength,
    /// Changes are told of snapshots only.
    #[error("the volume is not a view of a snapshot")]
    NotAView,
}

/// A request's buffer, given back.
#[derive(Debug)]
pub enum HostBuffer {
    /// Of a read.
    Read(BufMut),
    /// Of a write. Other windows of it may still be in flight to a replica that was removed.
    Write(Buf),
    /// The answer to a request for changes, if it ended well.
    Changes(BlockSet),
    /// There was none.
    None,
}

/// metad's answer to [`VolumeEvent::AskMetad`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadAnswer {
    /// Which volume.
    pub volume: VolumeId,
    /// The attachment that asked: each counts its requests from the same number on, and an answer may
    /// come after the next has begun.
    pub epoch: Epoch,
    /// The request it answers.
    pub request: u64,
    /// The answer.
    pub verdict: MetadVerdict,
}

/// How metad may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadVerdict {
    /// Recorded (now, or already by an earlier sending of the same request).
    Committed {
        /// Version now.
        seq: MembershipSeq,
        /// In-sync set now.
        isr: BTreeSet<StoreId>,
    },
    /// Not recorded: our version was not the current one.
    Stale {
        /// Version now.
        seq: MembershipSeq,
        /// In-sync set now.
        isr: BTreeSet<StoreId>,
    },
    /// Our epoch is over.
    Fenced,
    /// metad could not be asked or did not answer. The same request is asked again later.
    Unknown,
}

impl MetadVerdict {
    /// metad's answer to a request for `wanted`; `None` if there was none.
    pub fn of(answer: Option<IsrAnswer>, wanted: BTreeSet<StoreId>) -> Self {
        match answer {
            Some(IsrAnswer::Set(seq)) => Self::Committed { seq, isr: wanted },
            Some(IsrAnswer::Stale { seq, isr }) => Self::Stale { seq, isr },
            Some(IsrAnswer::Fenced { .. }) => Self::Fenced,
            None => Self::Unknown,
        }
    }
}

/// What happened to a volume.
#[derive(Debug)]
pub enum VolumeEvent {
    /// A host request ended.
    HostDone {
        /// Which volume.
        volume: VolumeId,
        /// The caller's name for the request.
        id: u64,
        /// How it ended.
        result: Result<(), HostFault>,
        /// Its buffer; a read's is filled if the result is `Ok`.
        buffer: HostBuffer,
    },
    /// The volume serves: the block device may appear.
    Attached {
        /// Which volume.
        volume: VolumeId,
    },
    /// The attach failed and is forgotten.
    AttachFailed {
        /// Which volume.
        volume: VolumeId,
        /// Why.
        why: AttachFault,
        /// The stores of which one is needed, if that is why.
        stores_needed: BTreeSet<StoreId>,
    },
    /// Ask metad to record `new_isr` for this epoch, based on `seq`. Answer by
    /// `Volumes::on_metad`. A repetition keeps `request`.
    AskMetad {
        /// Which volume.
        volume: VolumeId,
        /// Name of the request.
        request: u64,
        /// Our epoch.
        epoch: Epoch,
        /// Version it is based on.
        seq: MembershipSeq,
        /// The set wanted.
        new_isr: BTreeSet<StoreId>,
    },
    /// Ask metad to record as verified the membership that the stores have confirmed. Answer by
    /// `Volumes::on_metad`. A repetition keeps `request`.
    AskVerify {
        /// Which volume.
        volume: VolumeId,
        /// Name of the request.
        request: u64,
        /// Our epoch.
        epoch: Epoch,
        /// Version that was granted.
        seq: MembershipSeq,
        /// Newest version found.
        found_seq: MembershipSeq,
        /// Its in-sync set.
        isr: BTreeSet<StoreId>,
    },
    /// Keep this where it outlives the process and not the machine, for [`AttachGrant::survived`];
    /// the first one before the device appears.
    Remember {
        /// Which volume.
        volume: VolumeId,
        /// Our epoch.
        epoch: Epoch,
        /// Stores that hold all that was acknowledged, while their incarnation is this one.
        stores: BTreeMap<StoreId, Incarnation>,
    },
    /// Tell metad how far the snapshot is, until it has answered, under this epoch. Told again where metad is
    /// seen not to know, so a repetition must do no harm.
    Snapshot {
        /// Which volume.
        volume: VolumeId,
        /// Our epoch.
        epoch: Epoch,
        /// The snapshot.
        generation: Generation,
        /// How far it is.
        step: SnapshotStep,
    },
    /// A clean detach is done and the volume forgotten: tell metad.
    Detached {
        /// Which volume.
        volume: VolumeId,
    },
    /// The device must fail. Requests end with errors until `Volumes::detach`.
    Failed {
        /// Which volume.
        volume: VolumeId,
        /// Why.
        why: FailReason,
    },
    /// A resilver moves.
    Progress {
        /// Which volume.
        volume: VolumeId,
        /// How far it is.
        progress: Progress,
    },
    /// A resilver ended well.
    Resilvered {
        /// Which volume.
        volume: VolumeId,
        /// The history record.
        record: Resilvered,
    },
    /// A transition, for logs and health reports.
    Transition {
        /// Which volume.
        volume: VolumeId,
        /// What changed.
        what: TraceEvent,
    },
}

impl VolumeEvent {
    /// The request to metad that the event stands for; gives any other event back.
    ///
    /// # Errors
    /// The event, if it is no request.
    pub fn into_request(self) -> Result<MembershipRequest, Self> {
        if let Self::AskMetad {
            volume,
            request,
            epoch,
            seq,
            new_isr,
        } = self
        {
            return Ok(MembershipRequest {
                volume,
                request,
                epoch,
                seq,
                new_isr,
                found_seq: None,
            });
        }
        if let Self::AskVerify {
            volume,
            request,
            epoch,
            seq,
            found_seq,
            isr,
        } = self
        {
            return Ok(MembershipRequest {
                volume,
                request,
                epoch,
                seq,
                new_isr: isr,
                found_seq: Some(found_seq),
            });
        }
        Err(self)
    }
}

/// What a volume looks like now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// This attach.
    pub epoch: Epoch,
    /// Version of the membership.
    pub seq: MembershipSeq,
    /// The in-sync set.
    pub isr: BTreeSet<StoreId>,
    /// Head and snapshots.
    pub generations: VolumeGenerations,
    /// Whether it serves.
    pub serving: bool,
    /// Regions that wait for reconciliation.
    pub regions_to_reconcile: u64,
    /// Grows as long as whatever brings stores up to date moves, be it copying or looking for what to copy.
    pub moves: u64,
    /// Each store.
    pub stores: BTreeMap<StoreId, StoreStatus>,
    /// Counters since the attach.
    pub counters: VolumeCounters,
}

/// What one store of a volume looks like now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// Where it stands.
    pub state: StoreState,
    /// Incarnation of its last session.
    pub incarnation: Option<Incarnation>,
    /// Blocks it is known to have missed.
    pub dirty_blocks: u64,
    /// Commands outstanding.
    pub outstanding: u32,
}

/// Counters of a volume since its attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeCounters {
    /// Host reads that ended well.
    pub reads: u64,
    /// Host writes that ended well.
    pub writes: u64,
    /// Host discards and zeroes that ended well.
    pub zeroes: u64,
    /// Host flushes that ended well.
    pub flushes: u64,
    /// Host requests that failed.
    pub faults: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads that were asked of another replica after a failure.
    pub read_failovers: u64,
    /// Members removed.
    pub degrades: u64,
    /// Bytes copied by resilvers.
    pub resilvered_bytes: u64,
    /// Messages to metad.
    pub metad_requests: u64,
    /// Commands to stores that were not data or flush.
    pub admin_commands: u64,
}

//! What control and the reactor thread say to each other.

use crate::healing::{Healing, Replicas};
use crate::hosting::Hosting;
use crate::maintenance::Ending;
use crate::namespaces::Slices;
use control::core::Rollback;
use nvmf::target::Target;
use shardmap::generations::{SnapshotStep, VolumeGenerations};
use shardmap::grant::MembershipRequest;
use shardmap::units::{Epoch, Generation, Nsid, VolumeId};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use store::{OpenFacts, SliceSpec, StoreUsage};
use uuid::Uuid;
use volume::{AttachGrant, MetadAnswer, Progress, Resilvered, TraceEvent};

/// From control to the reactor.
#[derive(Debug)]
pub enum Order {
    /// Open the stores; all belong to this cluster.
    Open {
        /// The cluster.
        cluster: Uuid,
    },
    /// Make a slice, or grow it. Answered by [`News::SliceDone`].
    Create {
        /// Which store, by its place in the configuration.
        store_index: usize,
        /// What to make.
        spec: SliceSpec,
        /// If it is not there: it was, and is lost; what is made must be resilvered.
        confirmed: bool,
    },
    /// Remove a slice. Answered by [`News::SliceDone`].
    Remove {
        /// Which store, by its place in the configuration.
        store_index: usize,
        /// Which slice.
        nsid: Nsid,
    },
    /// Let go of the generations of a slice that are before the head and not among the snapshots, now
    /// and when one of them is completed. Not answered.
    KeepGenerations {
        /// Which slice.
        nsid: Nsid,
        /// What metad has.
        generations: VolumeGenerations,
    },
    /// Admit these hosts and no others.
    Hosts(Vec<String>),
    /// Bring a volume up to date, and roll it back. Answered by [`MaintenanceNews::Ended`] when that is over.
    Maintain(Box<AttachGrant>, Option<Rollback>),
    /// Detach a volume that was to be brought up to date.
    LetGo(VolumeId),
    /// Let go at once of a volume whose detach does not end.
    Abandon(VolumeId),
    /// Head and snapshots of a volume that is brought up to date, as metad has them now.
    Generations(VolumeId, VolumeGenerations),
    /// metad has answered [`MaintenanceNews::AskMetad`].
    Metad(MetadAnswer),
    /// The slices of a volume, as metad has them; `None`: it does not answer, or has no such volume.
    Replicas(VolumeId, Option<Replicas>),
    /// Let somebody look at the figures.
    Look(Look),
    /// Stop in order: nothing new, stores flushed and marked clean.
    Stop,
}

/// What there is to look at.
#[derive(Clone, Copy, Debug)]
pub struct Figures<'a> {
    /// The stores.
    pub slices: &'a Slices,
    /// The target.
    pub target: &'a Target,
    /// Volumes that are brought up to date.
    pub hosting: &'a Hosting,
    /// Spoiled blocks.
    pub healing: Option<&'a Healing>,
    /// What its reactor did.
    pub reactor: reactor::Counters,
}

type Looker = dyn FnOnce(Figures<'_>) + Send;

/// Somebody who looks at the figures, once, on the reactor's thread.
pub struct Look(pub Box<Looker>);

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Look")
    }
}

/// From the reactor to control.
#[derive(Debug)]
pub enum News {
    /// A store serves.
    StoreOpened {
        /// Its place in the configuration.
        store_index: usize,
        /// What opening found.
        facts: Box<OpenFacts>,
    },
    /// A store does not.
    StoreFailed {
        /// Its place in the configuration.
        store_index: usize,
        /// Why, in a sentence.
        why: String,
    },
    /// What a store has acknowledged may be gone. Only a new incarnation says so to the clients: the
    /// process must end at once, without stopping in order. The app does nothing any more.
    StorePoisoned {
        /// Its place in the configuration.
        store_index: usize,
        /// Why, in a sentence.
        why: String,
    },
    /// A store has taken in what its device has become larger by.
    StoreGrown {
        /// Its place in the configuration.
        store_index: usize,
        /// Its capacity for data now, in bytes.
        capacity_bytes: u64,
    },
    /// Every store is open or failed, and the target listens.
    Listening {
        /// Where.
        address: std::net::SocketAddr,
    },
    /// A slice was made or removed, or not.
    SliceDone {
        /// The slice.
        nsid: Nsid,
        /// How that ended.
        end: SliceEnd,
    },
    /// A slice of a clone cannot be made yet: what it begins with is not whole here.
    CloneWaits(Nsid),
    /// A slice is whole, or has another complete snapshot.
    SliceChanged(Nsid),
    /// A block is to be healed: metad is to name the slices of its volume. Answered by
    /// [`Order::Replicas`]; one at a time, and again if no answer comes.
    FindReplicas(VolumeId),
    /// Of a volume that is brought up to date. What is lost of it on the way is made good for: the
    /// volume repeats what it asks for, and is looked at.
    Maintenance(MaintenanceNews),
}

/// How an order about a slice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceEnd {
    /// It is there.
    Made {
        /// It has to be resilvered: what is there was made anew, and that has not ended yet.
        incomplete: bool,
    },
    /// It is not there any more.
    Removed,
    /// It is as it was, for this reason.
    Refused(String),
}

/// News of a volume that is brought up to date.
#[derive(Debug)]
pub enum MaintenanceNews {
    /// It changed in a way that its status shows.
    Changed {
        /// Which volume.
        volume: VolumeId,
        /// The transition, if it was one; for logs.
        what: Option<TraceEvent>,
    },
    /// Ask metad for another in-sync set; the answer goes back as [`Order::Metad`].
    AskMetad(MembershipRequest),
    /// How far a snapshot is: metad is to record it, under this epoch.
    Snapshot {
        /// Which volume.
        volume: VolumeId,
        /// Ours.
        epoch: Epoch,
        /// The snapshot.
        generation: Generation,
        /// How far it is.
        step: SnapshotStep,
    },
    /// A resilver moved.
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
        /// The record.
        record: Resilvered,
    },
    /// It is being rolled back.
    Rolling {
        /// Which volume.
        volume: VolumeId,
        /// How far it is, in hundredths.
        percent: u64,
    },
    /// It is rolled back, durably: metad is to record it, under this epoch.
    RolledBack {
        /// Which volume.
        volume: VolumeId,
        /// Ours.
        epoch: Epoch,
        /// What was rolled back to what.
        rollback: Rollback,
    },
    /// It is no longer here.
    Ended {
        /// Which volume.
        volume: VolumeId,
        /// How that came.
        how: Ending,
    },
}

/// Takes news to control; false if control is gone.
pub type Tell = Box<dyn FnMut(News) -> bool>;

/// A store's fill, published by the reactor whenever it changes and read by control when it reports:
/// reporting wakes nobody.
#[derive(Debug, Default)]
pub struct Fill {
    used_bytes: AtomicU64,
    capacity_bytes: AtomicU64,
    spoiled_blocks: AtomicU64,
}

impl Fill {
    /// The reactor's side.
    pub(crate) fn publish(&self, usage: StoreUsage) {
        // Two figures for a report: each is right by itself, they need no order between them.
        self.used_bytes
            .store(usage.capacity_bytes - usage.free_bytes, Ordering::Relaxed);
        self.capacity_bytes
            .store(usage.capacity_bytes, Ordering::Relaxed);
    }

    /// The reactor's side: blocks of the store that are not what was written, and not healed yet.
    pub(crate) fn publish_spoiled(&self, blocks: u64) {
        self.spoiled_blocks.store(blocks, Ordering::Relaxed);
    }

    /// Blocks that are not what was written, and not healed yet.
    pub fn spoiled_blocks(&self) -> u64 {
        self.spoiled_blocks.load(Ordering::Relaxed)
    }

    /// Used and usable bytes.
    pub fn read(&self) -> (u64, u64) {
        (
            self.used_bytes.load(Ordering::Relaxed),
            self.capacity_bytes.load(Ordering::Relaxed),
        )
    }
}

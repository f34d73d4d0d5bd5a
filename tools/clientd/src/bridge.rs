//! What the control thread and the reactor thread say to each other. Both directions are bounded.

use control::client::MembershipRequest;
use prometheus_client::registry::Registry;
use shardmap::generations::{SnapshotStep, VolumeGenerations};
use shardmap::units::{Epoch, Generation, VolumeId};
use tokio::sync::{mpsc, oneshot};
use volume::{AttachGrant, MetadAnswer, VolumeStatus};

/// Messages that may wait for the reactor.
pub(crate) const ORDERS_MAX: usize = 1024;
/// Messages that may wait for control. What does not fit is either repeated by the volume (requests
/// to metad) or news whose newest instance matters (progress).
pub(crate) const NEWS_MAX: usize = 4096;

/// From control to the reactor.
#[derive(Debug)]
pub(crate) enum Order {
    /// Attach a volume and make its device.
    Attach {
        /// From metad.
        grant: Box<AttachGrant>,
        /// Since when this host has held the volume without a break.
        held_since: Epoch,
    },
    /// Take the device away and detach.
    Detach {
        /// Which.
        volume: VolumeId,
    },
    /// Head and snapshots of a volume, as metad has them now.
    Generations(VolumeId, VolumeGenerations),
    /// A volume has so many blocks now.
    Grow(VolumeId, u64),
    /// metad has answered.
    Metad(MetadAnswer),
    /// How a volume looks now.
    Status(VolumeId, oneshot::Sender<Option<VolumeStatus>>),
    /// Figures for a scrape.
    Metrics(oneshot::Sender<Registry>),
}

/// From the reactor to control.
#[derive(Debug)]
pub(crate) enum News {
    /// The device of a volume can be used.
    Live {
        /// Which volume.
        volume: VolumeId,
        /// `/dev/ublkbN`.
        device: String,
    },
    /// An attach did not succeed; the volume is forgotten here.
    AttachFailed {
        /// Which volume.
        volume: VolumeId,
        /// A sentence.
        why: String,
    },
    /// An attach did not succeed because stores lost what the device of an earlier clientd was told:
    /// that device has to go.
    DeviceLost {
        /// Which volume.
        volume: VolumeId,
        /// A sentence.
        why: String,
    },
    /// There is no block device; [`News::Detached`] follows.
    DeviceFailed {
        /// Which volume.
        volume: VolumeId,
        /// A sentence.
        why: String,
    },
    /// The device would not go away (it is in use); the volume serves on.
    DetachRefused {
        /// Which volume.
        volume: VolumeId,
        /// A sentence.
        why: String,
    },
    /// The volume is no longer here.
    Detached {
        /// Which volume.
        volume: VolumeId,
    },
    /// The device of a volume that has grown keeps its size.
    NotGrown {
        /// Which volume.
        volume: VolumeId,
        /// A sentence.
        why: String,
    },
    /// The device answers with errors from now on.
    Failed {
        /// Which volume.
        volume: VolumeId,
        /// A sentence.
        why: String,
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
    /// The volume changed in a way that its status shows.
    Changed(VolumeId),
    /// A resilver moved.
    Progress {
        /// Which volume.
        volume: VolumeId,
        /// How far it is.
        progress: volume::Progress,
    },
    /// A resilver ended well.
    Resilvered {
        /// Which volume.
        volume: VolumeId,
        /// The record.
        record: volume::Resilvered,
    },
}

/// Control's end of the news.
pub(crate) type NewsReceiver = mpsc::Receiver<News>;
/// The reactor's end of the news.
pub(crate) type NewsSender = mpsc::Sender<News>;

//! What metad grants with an attachment: words of the control plane that the data path takes as
//! they are.

use crate::generations::{Rollback, VolumeGenerations};
use crate::map::VolumeMap;
use crate::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Where the slice at a position is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceAddress {
    /// Its store.
    pub store: StoreId,
    /// Position in the stride set.
    pub position: u16,
    /// Namespace id.
    pub nsid: Nsid,
    /// The store's server.
    pub server: ServerId,
    /// Where its target listens.
    pub address: SocketAddr,
    /// NQN of its subsystem.
    pub subsystem_nqn: String,
}

/// Everything that runs a volume without metad: what it grants with an attachment, to a clientd or
/// to a storaged that brings the volume up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachGrant {
    /// Which volume.
    pub volume: VolumeId,
    /// Its name, for logs.
    pub name: String,
    /// Size, shape and stores.
    pub map: VolumeMap,
    /// Minted for this attachment.
    pub epoch: Epoch,
    /// Version of the membership.
    pub seq: MembershipSeq,
    /// The in-sync set.
    pub isr: BTreeSet<StoreId>,
    /// The membership is sure; otherwise the stores must be asked first.
    pub verified: bool,
    /// The epoch since which nobody else has held the volume.
    pub held_since: Epoch,
    /// Head and snapshots.
    pub generations: VolumeGenerations,
    /// In-sync replicas of a shard below which IO is held.
    pub min_in_sync: u8,
    /// Where the slices are, by position.
    pub slices: Vec<SliceAddress>,
    /// It is a view: to be read is this snapshot of the volume whose slices these are, and nothing is
    /// written.
    pub view: Option<Generation>,
    /// To a storaged: the volume is to be rolled back under this epoch. What it was told that it is wanted for
    /// may be older, and the rollback over.
    pub rollback: Option<Rollback>,
}

/// metad's answer to a change of the in-sync set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsrAnswer {
    /// It is as asked now; its version.
    Set(MembershipSeq),
    /// Somebody newer has the volume: stop.
    Fenced {
        /// The newest epoch.
        epoch: Epoch,
    },
    /// It had changed already.
    Stale {
        /// Its version.
        seq: MembershipSeq,
        /// What it is.
        isr: BTreeSet<StoreId>,
    },
}

/// A change of membership that whoever has a volume wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipRequest {
    /// Which volume.
    pub volume: VolumeId,
    /// The asker's name for the request.
    pub request: u64,
    /// The epoch it has the volume under.
    pub epoch: Epoch,
    /// The version it is based on.
    pub seq: MembershipSeq,
    /// The set wanted.
    pub new_isr: BTreeSet<StoreId>,
    /// The set is not wanted but found on the stores of a restored volume, as this version.
    pub found_seq: Option<MembershipSeq>,
}

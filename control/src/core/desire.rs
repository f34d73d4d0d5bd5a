//! What each daemon should be doing, derived from the state.
//!
//! A daemon watches its list by when it last changed (`desired_index` of its server or host: the log
//! index, past all of earlier lineages), so a watch can be resumed on any member, also one that was
//! restored from a backup, and never needs polling.

use super::command::SliceAddress;
use super::model::{HostId, Phase, Rollback, State, Volume, reader_host_nqn, storaged_host_nqn};
use serde::{Deserialize, Serialize};
use shardmap::generations::VolumeGenerations;
use shardmap::map::Shape;
use shardmap::units::{Epoch, Generation, Nsid, ServerId, StoreId, VolumeId};
use uuid::Uuid;

/// Of a `desired_index`; the lineage is above them.
pub(super) const TURN_BITS: u32 = 48;

/// Whether metad was restored from a backup between two changes of a list: what was registered since the
/// backup is forgotten.
pub const fn was_restored_between(before: u64, after: u64) -> bool {
    before >> TURN_BITS != after >> TURN_BITS
}

/// A slice that a store should hold, or should let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredSlice {
    /// The store, of the asking server.
    pub store: StoreId,
    /// The store's own identity.
    pub store_uuid: Uuid,
    /// Namespace id.
    pub nsid: Nsid,
    /// The volume.
    pub volume: VolumeId,
    /// Size in blocks that the slice is to reach to.
    pub size_blocks: u64,
    /// Blocks that it reaches to, as the storaged said last.
    pub has_blocks: u64,
    /// How its shards are dealt.
    pub shape: Shape,
    /// Position of this slice in the stride set.
    pub position: u16,
    /// Any known host may do IO without a session.
    pub open_access: bool,
    /// What it begins with: it is a clone's.
    pub parent: Option<SliceParent>,
    /// If it is not there it must be resilvered: it was there before, or has missed what others have.
    pub confirmed: bool,
    /// Remove it and confirm with `ConfirmSliceGone`.
    pub remove: bool,
    /// Generations of the volume; those before the head that are not among its snapshots are to be
    /// dropped. `None`: nothing is to be dropped, a restored state does not know what there is.
    pub generations: Option<VolumeGenerations>,
}

/// What a slice of a clone begins with: a complete snapshot of a slice on the same store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceParent {
    /// The slice.
    pub nsid: Nsid,
    /// The snapshot.
    pub generation: Generation,
}

/// A volume that a host should have, or should let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredAttachment {
    /// Which.
    pub volume: VolumeId,
    /// Its name, for the device link.
    pub name: String,
    /// Size in blocks.
    pub size_blocks: u64,
    /// The host should have it; otherwise it should detach.
    pub wanted: bool,
    /// All its slices are there: `Attach` will not be refused for that.
    pub ready: bool,
    /// The epoch metad has for this host; `None`: not attached.
    pub epoch: Option<Epoch>,
    /// The newest epoch of the volume, whoever it was minted for; `Epoch(0)`: none yet.
    pub newest: Epoch,
    /// Where the slices are now (a server may have moved).
    pub slices: Vec<SliceAddress>,
    /// Head and snapshots; the pending one is to be completed by who has the volume.
    pub generations: VolumeGenerations,
}

impl DesiredAttachment {
    /// Whether an attachment that was granted to the host under this epoch has been ended without the
    /// host: by a forced detach, after which the host may be wanted to have the volume again. The word
    /// may be older than the grant, then it says nothing of it.
    pub fn has_ended(&self, granted: Epoch) -> bool {
        self.newest >= granted && self.epoch != Some(granted)
    }
}

/// Everything the storaged of a server should hold or remove, by NSID.
pub fn slices_of_server(state: &State, server: ServerId) -> Vec<DesiredSlice> {
    state
        .slices
        .iter()
        .filter_map(|(nsid, slice)| {
            let store = state
                .stores
                .get(&slice.store)
                .filter(|s| s.server == server)?;
            let volume = state.volumes.get(&slice.volume)?;
            Some(DesiredSlice {
                store: slice.store,
                store_uuid: store.uuid,
                nsid: *nsid,
                volume: slice.volume,
                size_blocks: volume.growing_to.unwrap_or(volume.map.size_blocks),
                has_blocks: slice.size_blocks,
                shape: volume.map.shape,
                position: slice.position,
                open_access: volume.open_access,
                parent: parent_of(state, volume, slice.position),
                // A restored state may not know that it was there: one made anew would look whole. Of a
                // clone, a store that was behind gets its slice when others may have written to theirs.
                confirmed: slice.confirmed
                    || !volume.verified
                    || !volume.isr.contains(&slice.store),
                remove: volume.phase == Phase::Deleting,
                generations: volume.verified.then(|| volume.generations()),
            })
        })
        .collect()
}

/// What the slice at a position of a volume begins with.
fn parent_of(state: &State, volume: &Volume, position: u16) -> Option<SliceParent> {
    let origin = volume.clone_of?;
    let of = state.volumes.get(&origin.volume)?;
    let at = |nsid: &&Nsid| {
        state
            .slices
            .get(*nsid)
            .is_some_and(|s| s.position == position)
    };
    Some(SliceParent {
        nsid: *of.slices.iter().find(at)?,
        generation: origin.generation,
    })
}

/// A volume that nobody has, which a storaged should bring up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredMaintenance {
    /// Which.
    pub volume: VolumeId,
    /// Its name, for logs.
    pub name: String,
    /// Grows when something changed that may let it succeed where it has failed.
    pub due_index: u64,
    /// Head and snapshots; the pending one is to be completed.
    pub generations: VolumeGenerations,
    /// It is to be rolled back, when that snapshot is complete.
    pub rollback: Option<Rollback>,
}

/// Host NQNs a storaged admits: clients, in order, the other storageds, and who reads snapshots.
pub fn known_hosts(state: &State) -> Vec<String> {
    let hosts = state.hosts.values().map(|h| h.host_nqn.clone());
    let servers = state.servers.values().map(|s| storaged_host_nqn(s.uuid));
    let reader = state.cluster.iter().map(|c| reader_host_nqn(c.uuid));
    hosts.chain(servers).chain(reader).collect()
}

/// The slices that who has the volume reads: its own, or those of the volume whose snapshot it shows.
pub fn slices_read<'s>(state: &'s State, volume: &'s Volume) -> &'s [Nsid] {
    let shown = volume.origin.and_then(|o| state.volumes.get(&o.volume));
    &shown.unwrap_or(volume).slices
}

/// Everything the storaged of a server should bring up to date, by volume.
pub fn maintenance_of_server(state: &State, server: ServerId) -> Vec<DesiredMaintenance> {
    let volumes = state.volumes.iter();
    let ours = volumes.filter_map(|(id, volume)| {
        let maintenance = volume.maintenance.filter(|m| m.server == server)?;
        Some(DesiredMaintenance {
            volume: *id,
            name: volume.name.clone(),
            due_index: maintenance.due_index,
            generations: volume.generations(),
            rollback: volume.rollback,
        })
    });
    ours.collect()
}

/// Everything the clientd of a host should attach or detach, by volume.
pub fn attachments_of_host(state: &State, host: HostId) -> Vec<DesiredAttachment> {
    state
        .volumes
        .iter()
        .filter_map(|(id, volume)| {
            let wanted = volume.desired == Some(host);
            let held = volume.attachment.filter(|a| a.host == host);
            if !wanted && held.is_none() {
                return None;
            }
            Some(DesiredAttachment {
                volume: *id,
                name: volume.name.clone(),
                size_blocks: volume.map.size_blocks,
                wanted,
                ready: volume.phase == Phase::Ready,
                epoch: held.map(|a| a.epoch),
                newest: volume.epoch,
                slices: slice_addresses(state, volume),
                generations: volume.generations(),
            })
        })
        .collect()
}

/// Where the slices of a volume are, by position; of a view those that it shows.
pub fn slice_addresses(state: &State, volume: &Volume) -> Vec<SliceAddress> {
    slices_read(state, volume)
        .iter()
        .filter_map(|nsid| {
            let slice = state.slices.get(nsid)?;
            let store = state.stores.get(&slice.store)?;
            let server = state.servers.get(&store.server)?;
            Some(SliceAddress {
                store: slice.store,
                position: slice.position,
                nsid: *nsid,
                server: store.server,
                address: server.address,
                subsystem_nqn: server.subsystem_nqn.clone(),
            })
        })
        .collect()
}

//! Clones: volumes that begin with what a complete snapshot of another volume shows. A clone has slices of
//! its own, each beside the one that it begins with, and from then on it is a volume like any other. Nothing
//! is copied: what a clone has not written is read from the other slice (ADR 0010).
//!
//! ```text
//! CreateClone:     slices on the same stores, in sync where the other volume is ──► Creating
//! ConfirmSlice:    … every slice that is in sync is there ──► Ready; the others are resilvered
//! DeleteSnapshot:  of one with clones: no name any more, kept until the last of them is gone
//! ```

use super::super::command::{Change, Reply, SnapshotFate};
use super::super::limits;
use super::super::model::{Origin, Phase, State, Volume};
use super::super::refusal::{Refusal, RefusalCode};
use super::view::complete_snapshot;
use super::volume::check_new_name;
use super::{Step, check_room};
use shardmap::generations::FIRST_GENERATION;
use shardmap::units::{Epoch, MembershipSeq, VolumeId};
use std::collections::BTreeMap;

impl Step<'_> {
    pub(super) fn create_clone(
        &mut self,
        id: VolumeId,
        name: String,
        origin: Origin,
    ) -> Result<Reply, Refusal> {
        check_new_name(self.state, id, &name)?;
        check_room("volume", self.state.volumes.len(), limits::VOLUMES_MAX)?;
        let of = complete_snapshot(self.state, origin)?;
        check_depth(self.state, of, origin)?;
        if !of.verified {
            return Err(Refusal::new(
                RefusalCode::NotReady,
                format!(
                    "the membership of volume {} was restored and is not verified",
                    of.name
                ),
                "attach it; that asks its stores",
            ));
        }
        let (isr, stores) = (of.isr.clone(), of.map.stores.clone());
        let promised = shardmap::placement::slice_bytes(of.map.shape, of.map.size_blocks);
        for (store, bytes) in stores.iter().zip(&promised) {
            self.check_promise(*store, 0, *bytes)?;
        }
        let volume = Volume {
            name,
            map: of.map.clone(),
            growing_to: None,
            set: of.set,
            slices: Vec::new(),
            min_in_sync: of.min_in_sync,
            open_access: false,
            phase: Phase::Creating,
            desired: None,
            attachment: None,
            epoch: Epoch(0),
            seq: MembershipSeq(1),
            // Whoever is in sync there has all complete snapshots.
            isr,
            verified: true,
            maintenance: None,
            head: FIRST_GENERATION,
            snapshots: BTreeMap::new(),
            origin: None,
            clone_of: Some(origin),
            kept: BTreeMap::new(),
            forsaken: false,
            rollback: None,
        };
        let slices = self.mint_slices(id, &stores, &promised);
        self.state.volumes.insert(id, Volume { slices, ..volume });
        self.wake_stores(id);
        self.say(Change::CloneCreated(id));
        Ok(Reply::Volume(id))
    }

    /// Whoever is in sync has its slice, also if its storaged could not say so yet.
    pub(super) fn in_sync_slices_are_there(&mut self, id: VolumeId) {
        let volume = &self.state.volumes[&id];
        for nsid in &volume.slices {
            let slice = self.state.slices.get_mut(nsid).expect("a volume's slice");
            if !slice.confirmed && volume.isr.contains(&slice.store) {
                slice.confirmed = true;
                slice.size_blocks = volume.map.size_blocks;
            }
        }
    }

    /// A volume is gone. If it was the last clone of a snapshot that was kept for it, that goes, too.
    pub(super) fn release_kept(&mut self, clone_of: Option<Origin>) {
        let Some(origin) = clone_of else {
            return;
        };
        let (volume, generation) = (origin.volume, origin.generation);
        if self
            .state
            .clones_of(volume, Some(generation))
            .next()
            .is_some()
        {
            return;
        }
        let of = self.state.volumes.get_mut(&volume);
        if let Some(kept) = of.and_then(|of| of.kept.remove(&generation)) {
            self.say(Change::Snapshot(volume, kept.name, SnapshotFate::Released));
            self.generations_moved(volume);
        }
    }
}

fn check_depth(state: &State, of: &Volume, origin: Origin) -> Result<(), Refusal> {
    let above = |v: &Volume| v.clone_of.and_then(|o| state.volumes.get(&o.volume));
    let parents = std::iter::successors(Some(of), |v| above(v)).count();
    if parents <= limits::PARENTS_MAX {
        return Ok(());
    }
    let max = limits::PARENTS_MAX;
    Err(Refusal::new(
        RefusalCode::Limit,
        format!(
            "a clone of {} would have {parents} volumes under it, each a clone of the next",
            state.snapshot_name(origin)
        ),
        format!(
            "there may be {max}; write a copy instead (`ubsctl snapshot export`, `import`), and clone that"
        ),
    ))
}

/// Refuses to delete a volume that clones show.
pub(super) fn has_no_clones(state: &State, id: VolumeId) -> Result<(), Refusal> {
    let clones: Vec<&str> = state.clones_of(id, None).map(|v| v.name.as_str()).collect();
    let Some(first) = clones.first() else {
        return Ok(());
    };
    let (of, names) = (state.volume_name(id), clones.join(", "));
    Err(Refusal::new(
        RefusalCode::StillUsed,
        format!("volume {of} has clones, which show its snapshots: {names}"),
        format!(
            "delete them first (`ubsctl volume delete {first}`), and wait until they are gone \
             (`ubsctl volume ls`)"
        ),
    ))
}

#[cfg(test)]
mod test;

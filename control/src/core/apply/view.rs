//! Views: volumes that show a complete snapshot of another one, for reading only. A view has no slices
//! of its own; who attaches it reads those of the other volume. So it is ready at once, costs nothing, and
//! needs nobody to bring it up to date.

use super::super::command::{Change, Reply};
use super::super::limits;
use super::super::model::{Origin, Phase, State, Volume};
use super::super::refusal::{Refusal, RefusalCode};
use super::volume::check_new_name;
use super::{Step, check_room};
use shardmap::generations::{FIRST_GENERATION, SnapshotState};
use shardmap::units::{Epoch, Generation, MembershipSeq, VolumeId};
use std::collections::BTreeMap;

impl Step<'_> {
    pub(super) fn create_view(
        &mut self,
        id: VolumeId,
        name: String,
        origin: Origin,
    ) -> Result<Reply, Refusal> {
        check_new_name(self.state, id, &name)?;
        check_room("volume", self.state.volumes.len(), limits::VOLUMES_MAX)?;
        let of = complete_snapshot(self.state, origin)?;
        let view = Volume {
            name,
            map: of.map.clone(),
            growing_to: None,
            set: of.set,
            slices: Vec::new(),
            min_in_sync: of.min_in_sync,
            open_access: false,
            phase: Phase::Ready,
            desired: None,
            attachment: None,
            epoch: Epoch(0),
            seq: MembershipSeq(1),
            isr: of.map.stores.iter().copied().collect(),
            verified: true,
            maintenance: None,
            head: FIRST_GENERATION,
            snapshots: BTreeMap::new(),
            origin: Some(origin),
            clone_of: None,
            kept: BTreeMap::new(),
            forsaken: false,
            rollback: None,
        };
        self.state.volumes.insert(id, view);
        self.say(Change::ViewCreated(id));
        Ok(Reply::Volume(id))
    }
}

/// The volume of a snapshot that is complete.
pub(super) fn complete_snapshot(state: &State, origin: Origin) -> Result<&Volume, Refusal> {
    let of = state.volumes.get(&origin.volume);
    let of = of.ok_or_else(|| Refusal::not_found("volume", origin.volume))?;
    let snapshot = of.snapshots.get(&origin.generation).ok_or_else(|| {
        Refusal::new(
            RefusalCode::NotFound,
            format!(
                "{} of volume {} is not a snapshot",
                origin.generation, of.name
            ),
            format!("see `ubsctl snapshot ls {}`", of.name),
        )
    })?;
    let is_there = matches!(of.phase, Phase::Ready | Phase::RollingBack);
    if !is_there || snapshot.state != SnapshotState::Complete {
        return Err(Refusal::new(
            RefusalCode::NotReady,
            format!("snapshot {}@{} is not complete", of.name, snapshot.name),
            format!("wait until it is (`ubsctl snapshot ls {}`)", of.name),
        ));
    }
    Ok(of)
}

/// Refuses to give up what a view shows: a snapshot, or with it (`None`) the volume.
pub(super) fn not_shown(
    state: &State,
    volume: VolumeId,
    generation: Option<Generation>,
) -> Result<(), Refusal> {
    let shows = |o: Origin| o.volume == volume && generation.is_none_or(|g| g == o.generation);
    let views = state.volumes.values();
    let Some(view) = views.into_iter().find(|v| v.origin.is_some_and(shows)) else {
        return Ok(());
    };
    let (of, name) = (state.volume_name(volume), &view.name);
    let what = match generation.and_then(|g| state.volumes[&volume].snapshots.get(&g)) {
        Some(snapshot) => format!("snapshot {of}@{}", snapshot.name),
        None => format!("a snapshot of volume {of}"),
    };
    Err(Refusal::new(
        RefusalCode::StillUsed,
        format!("view {name} shows {what}"),
        format!("delete the view first: `ubsctl volume delete {name}`"),
    ))
}

/// Refuses what makes no sense for a view.
pub(super) fn not_a_view(volume: &Volume, what: &str) -> Result<(), Refusal> {
    if volume.origin.is_none() {
        return Ok(());
    }
    Err(Refusal::invalid(
        format!("{} is a view of a snapshot and {what}", volume.name),
        "name the volume that the snapshot is of",
    ))
}

#[cfg(test)]
mod test;

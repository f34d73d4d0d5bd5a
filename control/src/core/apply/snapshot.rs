//! Snapshots of volumes. Here a snapshot begins and ends by name; in between, whoever has the volume
//! brings the stores from one generation to the next.
//!
//! ```text
//! CreateSnapshot:    head g ──► snapshot g, pending + head g+1
//! CompleteSnapshot:  pending ──► complete
//! DeleteSnapshot:    complete ──► gone; the storageds drop generation g (kept while it has clones)
//! ```
//!
//! Those of several volumes are of one moment: see [`super::group`].

use super::super::command::{Change, Reply, SnapshotFate};
use super::super::limits;
use super::super::model::{Phase, Snapshot, Volume};
use super::super::refusal::{Refusal, RefusalCode};
use super::rollback::not_rolled_back_to;
use super::view::{not_a_view, not_shown};
use super::{Step, check_name};
use shardmap::generations::{SNAPSHOTS_MAX, SnapshotState};
use shardmap::units::{Epoch, Generation, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

impl Step<'_> {
    pub(super) fn create_snapshot(
        &mut self,
        volumes: BTreeSet<VolumeId>,
        name: &str,
    ) -> Result<Reply, Refusal> {
        self.check_snapshot(name, volumes.len())?;
        for id in &volumes {
            let volume = self.state.volumes.get(id);
            let volume = volume.ok_or_else(|| Refusal::not_found("volume", id))?;
            may_snapshot(volume, name)?;
        }
        let alone = volumes.len() == 1;
        let begun = volumes
            .iter()
            .map(|id| (*id, self.begin_snapshot(*id, name)));
        let begun: BTreeMap<_, _> = begun.collect();
        if !alone {
            self.begin_group(begun);
        }
        Ok(Reply::Done)
    }

    /// Whether a snapshot can have the name, and the cluster so many more.
    pub(super) fn check_snapshot(&self, name: &str, volumes: usize) -> Result<(), Refusal> {
        check_name("snapshot", name)?;
        if !(1..=limits::SNAPSHOT_GROUP_MAX).contains(&volumes) {
            return Err(Refusal::invalid(
                format!("a snapshot of {volumes} volumes"),
                format!("name 1 to {}", limits::SNAPSHOT_GROUP_MAX),
            ));
        }
        let have = self.state.snapshot_count();
        if have + volumes > limits::SNAPSHOTS_CLUSTER_MAX {
            return Err(Refusal::new(
                RefusalCode::Limit,
                format!("the cluster has {have} snapshots, and no room for more"),
                format!("delete some; it can have {}", limits::SNAPSHOTS_CLUSTER_MAX),
            ));
        }
        Ok(())
    }

    pub(super) fn begin_snapshot(&mut self, id: VolumeId, name: &str) -> Generation {
        let created_unix_ms = self.at_unix_ms;
        let volume = self.state.volumes.get_mut(&id).expect("checked before");
        let generation = volume.head;
        let snapshot = Snapshot {
            name: name.to_owned(),
            created_unix_ms,
            state: SnapshotState::Pending,
            part: None,
            abandoned: false,
        };
        volume.snapshots.insert(generation, snapshot);
        volume.head = Generation(generation.0 + 1);
        self.say(Change::Snapshot(id, name.to_owned(), SnapshotFate::Begun));
        self.generations_moved(id);
        self.hurry_maintenance(id);
        generation
    }

    pub(super) fn complete_snapshot(
        &mut self,
        (id, generation): (VolumeId, Generation),
        epoch: Epoch,
        held: bool,
    ) -> Result<Reply, Refusal> {
        let volume = self.volume(id)?;
        if !volume.is_held_under(epoch) {
            let epoch = volume.epoch;
            return Ok(Reply::Fenced { epoch });
        }
        if generation >= volume.head {
            let (name, head) = (&volume.name, volume.head);
            return Err(Refusal::invalid(
                format!("{generation} of volume {name} is not a snapshot, its head is {head}"),
                "complete what is pending",
            ));
        }
        volume.forsaken = false; // every store of the in-sync set is open under this epoch
        // One that is complete, or was deleted since: the answer to that was lost.
        let pending = volume.snapshots.get(&generation);
        let Some(snapshot) = pending.filter(|s| s.state == SnapshotState::Pending) else {
            return Ok(Reply::Done);
        };
        if snapshot.abandoned {
            self.drop_abandoned(id, generation);
        } else if snapshot.part.is_some() {
            self.complete_part((id, generation), epoch, held);
        } else {
            self.set_complete(id, generation);
        }
        Ok(Reply::Done)
    }

    pub(super) fn delete_snapshot(
        &mut self,
        id: VolumeId,
        generation: Generation,
    ) -> Result<Reply, Refusal> {
        let volume = self.volume(id)?;
        let Some(snapshot) = volume.snapshots.get(&generation) else {
            let of = &volume.name;
            return Err(Refusal::new(
                RefusalCode::NotFound,
                format!("{generation} of volume {of} is not a snapshot"),
                format!("see `ubsctl snapshot ls {of}`"),
            ));
        };
        if let Some(part) = snapshot.part {
            self.abandon(part.group);
            return Ok(Reply::Done);
        }
        if snapshot.state == SnapshotState::Pending {
            return Err(still_pending(volume, snapshot));
        }
        not_rolled_back_to(volume, generation)?;
        let name = snapshot.name.clone();
        not_shown(self.state, id, Some(generation))?;
        let has_clones = self.state.clones_of(id, Some(generation)).next().is_some();
        let volume = self.volume(id)?;
        let deleted = volume.snapshots.remove(&generation).expect("just read");
        if has_clones {
            volume.kept.insert(generation, deleted);
            self.say(Change::Snapshot(id, name, SnapshotFate::Kept));
            return Ok(Reply::Done);
        }
        let rolls_back = volume.rollback.is_some();
        self.say(Change::Snapshot(id, name, SnapshotFate::Deleted));
        self.generations_moved(id);
        if rolls_back {
            self.hurry_maintenance(id); // there may be room for it now
        }
        Ok(Reply::Done)
    }

    /// Who has the volume and who holds its slices must look again.
    pub(super) fn generations_moved(&mut self, id: VolumeId) {
        self.wake_holders(id);
        self.wake_stores(id);
        let maintenance = self.state.volumes.get(&id).and_then(|v| v.maintenance);
        if let Some(maintenance) = maintenance {
            self.wake_server(maintenance.server);
        }
    }
}

/// Whether somebody can have a snapshot of the volume, of this name.
fn may_snapshot(volume: &Volume, name: &str) -> Result<(), Refusal> {
    if volume.phase != Phase::Ready {
        return Err(not_ready(volume));
    }
    may_keep_another(volume, name)
}

/// Why a volume that is not ready cannot be had.
pub(super) fn not_ready(volume: &Volume) -> Refusal {
    let of = &volume.name;
    let (why, remedy) = match volume.phase {
        Phase::Creating => ("still waits for slices", "says which stores are missing"),
        Phase::RollingBack => ("is being rolled back", "says how far it is"),
        Phase::Deleting => ("is being deleted", "says what that waits for"),
        Phase::Ready => unreachable!("volume {of} is ready"),
    };
    Refusal::new(
        RefusalCode::NotReady,
        format!("volume {of} {why}"),
        format!("`ubsctl volume explain {of}` {remedy}"),
    )
}

/// Whether the volume can have another snapshot, of this name, wherever it is in its life.
pub(super) fn may_keep_another(volume: &Volume, name: &str) -> Result<(), Refusal> {
    let of = &volume.name;
    not_a_view(volume, "has no snapshots of its own")?;
    if volume.open_access {
        return Err(Refusal::invalid(
            format!("volume {of} is open to standard NVMe hosts, which know nothing of snapshots"),
            "use a volume that is attached by clientd",
        ));
    }
    if !volume.verified {
        return Err(Refusal::new(
            RefusalCode::NotReady,
            format!("the membership of volume {of} was restored and is not verified"),
            "attach it; that asks its stores",
        ));
    }
    if let Some((_, abandoned)) = volume.pending_snapshot().filter(|(_, s)| s.abandoned) {
        return Err(still_pending(volume, abandoned));
    }
    if volume.snapshot_named(name).is_some() {
        return Err(Refusal::new(
            RefusalCode::NameTaken,
            format!("there is a snapshot {of}@{name} already"),
            "choose another name, or delete the other snapshot",
        ));
    }
    if let Some((_, pending)) = volume.pending_snapshot() {
        return Err(still_pending(volume, pending));
    }
    let count = volume.snapshots.len() + volume.kept.len();
    if count >= SNAPSHOTS_MAX || volume.head.0 == u32::MAX {
        return Err(Refusal::new(
            RefusalCode::Limit,
            format!(
                "volume {of} has {count} snapshots and its head is {}",
                volume.head
            ),
            format!("it can have {SNAPSHOTS_MAX}; delete some (`ubsctl snapshot rm {of}@NAME`)"),
        ));
    }
    Ok(())
}

fn still_pending(volume: &Volume, snapshot: &Snapshot) -> Refusal {
    let (of, name) = (&volume.name, &snapshot.name);
    if snapshot.abandoned {
        return Refusal::new(
            RefusalCode::NotReady,
            format!("snapshot {of}@{name} was given up and is not gone yet"),
            format!("try again; `ubsctl volume explain {of}` says what the volume waits for"),
        );
    }
    Refusal::new(
        RefusalCode::NotReady,
        format!("snapshot {of}@{name} is still pending"),
        format!(
            "wait until it is complete (`ubsctl snapshot ls {of}`); `ubsctl volume explain {of}` \
             says what the volume waits for"
        ),
    )
}

#[cfg(test)]
mod test;

//! Snapshots of several volumes that are of one moment (ADR 0012).
//!
//! ```text
//! Waiting --HoldSnapshot, by who has the volume--> Held --the last one--> Cut
//!   --CompleteSnapshot, held all the time--> Whole --the last one--> complete, all in one commit
//! abandoned: anything else that ends a snapshot, or the holding of its volume, before it is Whole
//! ```
//!
//! A volume that nobody has and that nobody can be writing to is `Held` from the beginning, by nobody.
//! Until the last is whole, all are pending. What an abandoned group has begun its holders bring to an
//! end like any snapshot, and then it is deleted.

use super::super::command::{Change, Reply, SnapshotFate, Subject};
use super::super::limits;
use super::super::model::{Part, PartStep, Snapshot};
use super::super::refusal::Refusal;
use super::Step;
use shardmap::generations::SnapshotState;
use shardmap::units::{Epoch, Generation, VolumeId};
use std::collections::BTreeMap;

impl Step<'_> {
    /// The pending snapshots of these volumes are to be of one moment.
    pub(super) fn begin_group(&mut self, members: BTreeMap<VolumeId, Generation>) {
        self.state.minted.group += 1;
        let group = self.state.minted.group;
        for (id, generation) in &members {
            let volume = self.state.volumes.get_mut(id).expect("just begun");
            let holder = volume.holder_epoch();
            let idle = holder.is_none() && !volume.forsaken;
            let step = if idle {
                PartStep::Held
            } else {
                PartStep::Waiting
            };
            let snapshot = volume.snapshots.get_mut(generation);
            snapshot.expect("just begun").part = Some(Part {
                group,
                holder,
                step,
            });
        }
        self.state.groups.insert(group, members);
        self.cut_if_held(group);
    }

    fn cut_if_held(&mut self, group: u64) {
        if self.all_are(group, PartStep::Held) {
            self.set_step(group, PartStep::Cut);
        }
    }

    /// Who has the volume says that its writes wait.
    pub(super) fn hold_snapshot(
        &mut self,
        id: VolumeId,
        epoch: Epoch,
        generation: Generation,
    ) -> Result<Reply, Refusal> {
        let volume = self.volume(id)?;
        if !volume.is_held_under(epoch) {
            let epoch = volume.epoch;
            return Ok(Reply::Fenced { epoch });
        }
        let snapshot = volume.snapshots.get_mut(&generation);
        let part = snapshot.and_then(|s| s.part.as_mut());
        // Otherwise it was given up meanwhile, or the answer to this was lost.
        if let Some(part) = part.filter(|p| p.step == PartStep::Waiting) {
            part.step = PartStep::Held;
            let group = part.group;
            self.cut_if_held(group);
        }
        Ok(Reply::Done)
    }

    /// Who has the volume has brought its part of a group to an end.
    pub(super) fn complete_part(
        &mut self,
        (id, generation): (VolumeId, Generation),
        epoch: Epoch,
        held: bool,
    ) {
        let part = self.snapshot_mut(id, generation).part.as_mut();
        let part = part.expect("of a group");
        if part.step == PartStep::Whole {
            return;
        }
        let group = part.group;
        // Nobody had it until the cut, so nobody has let writes go before.
        let idle = part.holder.is_none();
        if part.step != PartStep::Cut || !idle && (!held || part.holder != Some(epoch)) {
            self.say_why(id, group);
            self.abandon(group);
            return self.drop_abandoned(id, generation);
        }
        part.step = PartStep::Whole;
        if !self.all_are(group, PartStep::Whole) {
            return;
        }
        let members = self.state.groups.remove(&group).unwrap_or_default();
        for (id, generation) in members {
            self.snapshot_mut(id, generation).part = None;
            self.set_complete(id, generation);
        }
    }

    fn say_why(&mut self, id: VolumeId, group: u64) {
        let late: Vec<_> = self
            .state
            .behind_in_group(group, PartStep::Waiting)
            .collect();
        let mut text = if late.is_empty() {
            "did not hear in time that all volumes of its snapshot were cut".into()
        } else {
            format!("has held its writes in vain for {late:?}")
        };
        text.truncate(text.floor_char_boundary(limits::NOTE_BYTES_MAX));
        let named = format!("volume {} {text}", self.state.volume_name(id));
        self.say(Change::Noted(Subject::Volume(id), named));
    }

    /// An abandoned snapshot is at an end, so that its generation can be dropped.
    pub(super) fn drop_abandoned(&mut self, id: VolumeId, generation: Generation) {
        let volume = self.state.volumes.get_mut(&id).expect("just read");
        let dropped = volume.snapshots.remove(&generation).expect("just read");
        self.touch(id);
        self.say(Change::Snapshot(id, dropped.name, SnapshotFate::Deleted));
        self.generations_moved(id);
    }

    /// Gives up a group: nothing of it is to be seen any more.
    pub(super) fn abandon(&mut self, group: u64) {
        let members = self.state.groups.remove(&group).unwrap_or_default();
        for (id, generation) in members {
            let snapshot = self.snapshot_mut(id, generation);
            let part = snapshot.part.take();
            snapshot.abandoned = true;
            let name = snapshot.name.clone();
            self.say(Change::Snapshot(id, name, SnapshotFate::Abandoned));
            if part.is_some_and(|p| p.step == PartStep::Whole) {
                self.drop_abandoned(id, generation);
            } else {
                self.generations_moved(id);
            }
        }
    }

    /// Somebody has the volume from now on, under this epoch.
    pub(super) fn holder_came(&mut self, id: VolumeId, epoch: Epoch) {
        match self.unfinished_part(id) {
            Some(part) if part.holder.is_some() => self.holder_went(id),
            Some(part) if part.step < PartStep::Cut => {
                (part.holder, part.step) = (Some(epoch), PartStep::Waiting);
            }
            Some(_) | None => {}
        }
    }

    /// Who had the volume has it no more. Whoever comes next cannot know whether writes waited.
    pub(super) fn holder_went(&mut self, id: VolumeId) {
        let part = self.unfinished_part(id).filter(|p| p.holder.is_some());
        if let Some(group) = part.map(|p| p.group) {
            self.abandon(group);
        }
    }

    fn unfinished_part(&mut self, id: VolumeId) -> Option<&mut Part> {
        let volume = self.state.volumes.get_mut(&id)?;
        let newest = volume.snapshots.last_entry()?.into_mut();
        let part = newest.part.as_mut();
        part.filter(|p| p.step != PartStep::Whole)
    }

    /// Whether every part is that far.
    fn all_are(&self, group: u64, step: PartStep) -> bool {
        let members = &self.state.groups[&group];
        members.iter().all(|(id, generation)| {
            let snapshot = &self.state.volumes[id].snapshots[generation];
            snapshot.part.is_some_and(|p| p.step == step)
        })
    }

    fn set_step(&mut self, group: u64, step: PartStep) {
        for (id, generation) in self.state.groups[&group].clone() {
            let part = self.snapshot_mut(id, generation).part.as_mut();
            part.expect("of a group").step = step;
            self.generations_moved(id);
        }
    }

    fn snapshot_mut(&mut self, id: VolumeId, generation: Generation) -> &mut Snapshot {
        let volume = self.state.volumes.get_mut(&id).expect("of a group");
        let snapshot = volume.snapshots.get_mut(&generation);
        snapshot.expect("of a group")
    }

    /// From now on the snapshot never changes.
    pub(super) fn set_complete(&mut self, id: VolumeId, generation: Generation) {
        let snapshot = self.snapshot_mut(id, generation);
        snapshot.state = SnapshotState::Complete;
        let name = snapshot.name.clone();
        self.touch(id);
        self.say(Change::Snapshot(id, name, SnapshotFate::Completed));
        self.generations_moved(id);
    }
}

#[cfg(test)]
mod test;

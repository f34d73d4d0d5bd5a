//! Rolling back: a volume that nobody has shows again what one of its snapshots shows (ADR 0015). What it
//! shows now is kept as a snapshot first, and what differs is then written by a storaged, as any client
//! would write it. Until that is done nobody can attach the volume.
//!
//! ```text
//! RollBack:          Ready ──► RollingBack { to, before }, and `before` is pending
//! RollBack again:    another `to`, another `before`: half of what it was, kept too
//! CompleteRollback:  RollingBack ──► Ready
//! BeginLineage:      RollingBack ──► Ready: whether it was done nobody knows any more
//! ```

use super::super::command::{Change, Reply, RollbackFate};
use super::super::model::{HostId, Origin, Phase, Rollback, Volume};
use super::super::refusal::{Refusal, RefusalCode};
use super::Step;
use super::snapshot::{may_keep_another, not_ready};
use super::view::complete_snapshot;
use shardmap::units::{Epoch, Generation, VolumeId};

impl Step<'_> {
    pub(super) fn roll_back(
        &mut self,
        id: VolumeId,
        to: Generation,
        keep_as: &str,
    ) -> Result<Reply, Refusal> {
        self.check_snapshot(keep_as, 1)?;
        let volume = self.volume(id)?;
        if !matches!(volume.phase, Phase::Ready | Phase::RollingBack) {
            return Err(not_ready(volume));
        }
        may_keep_another(volume, keep_as)?;
        let origin = Origin {
            volume: id,
            generation: to,
        };
        let volume = complete_snapshot(self.state, origin)?;
        let holder = volume.attachment.map(|a| (a.host, "is attached"));
        let waits = volume.phase == Phase::RollingBack; // who wants it waits
        let user = volume.desired.filter(|_| !waits);
        if let Some(of) = holder.or(user.map(|host| (host, "is to be attached"))) {
            return Err(self.still_used(id, of));
        }
        let before = self.begin_snapshot(id, keep_as);
        let volume = self.volume(id)?;
        volume.phase = Phase::RollingBack;
        volume.rollback = Some(Rollback { to, before });
        self.say_rollback(id, to, RollbackFate::Begun);
        Ok(Reply::Done)
    }

    fn still_used(&self, id: VolumeId, (host, how): (HostId, &str)) -> Refusal {
        let name = &self.state.volumes[&id].name;
        let host = self.state.host_name(host);
        Refusal::new(
            RefusalCode::StillAttached,
            format!("volume {name} {how} on {host}, and what it shows would change under its user"),
            format!("detach it first (`ubsctl volume detach {name}`)"),
        )
    }

    pub(super) fn complete_rollback(
        &mut self,
        id: VolumeId,
        epoch: Epoch,
        done: Rollback,
    ) -> Result<Reply, Refusal> {
        let volume = self.volume(id)?;
        if !volume.is_held_under(epoch) {
            let epoch = volume.epoch;
            return Ok(Reply::Fenced { epoch });
        }
        // Another one was asked for meanwhile, or the answer to this was lost.
        if volume.rollback == Some(done) {
            self.end_rollback(id, RollbackFate::Completed);
        }
        Ok(Reply::Done)
    }

    /// metad was restored: done again it would undo what was written since it was done, if it was. If it was
    /// not, nobody should find half of it without looking.
    pub(super) fn abandon_rollback(&mut self, id: VolumeId) {
        if self.state.volumes[&id].rollback.is_none() {
            return;
        }
        self.end_rollback(id, RollbackFate::Abandoned);
        let volume = self.state.volumes.get_mut(&id).expect("just read");
        if volume.desired.take().is_some() {
            self.say(Change::DesiredAttachment(id, None));
        }
    }

    fn end_rollback(&mut self, id: VolumeId, fate: RollbackFate) {
        let volume = self.state.volumes.get_mut(&id).expect("just read");
        let Some(rollback) = volume.rollback.take() else {
            return;
        };
        volume.phase = Phase::Ready;
        self.touch(id);
        self.wake_holders(id);
        self.say_rollback(id, rollback.to, fate);
    }

    fn say_rollback(&mut self, id: VolumeId, to: Generation, fate: RollbackFate) {
        let snapshot = &self.state.volumes[&id].snapshots[&to];
        let name = snapshot.name.clone();
        self.say(Change::Rollback(id, name, fate));
    }
}

/// Refuses to give up a snapshot that a rollback reads.
pub(super) fn not_rolled_back_to(volume: &Volume, generation: Generation) -> Result<(), Refusal> {
    let reads = |r: Rollback| generation == r.to || generation == r.before;
    if !volume.rollback.is_some_and(reads) {
        return Ok(());
    }
    let of = &volume.name;
    let snapshot = &volume.snapshots[&generation].name;
    Err(Refusal::new(
        RefusalCode::StillUsed,
        format!("volume {of} is being rolled back, which reads its snapshot {snapshot}"),
        format!("wait until that is done; `ubsctl volume explain {of}` says how far it is"),
    ))
}

#[cfg(test)]
mod test;

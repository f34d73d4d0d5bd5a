//! Snapshots that the world's metad makes together with those of other volumes, which it plays: they
//! hold their writes sooner, later or never.

use super::{Happening, MS, World};
use shardmap::generations::SnapshotStep;
use shardmap::units::Generation;

/// The part of this volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) snapshot: Generation,
    /// The epoch that may speak for the volume.
    holder: Option<u64>,
    /// When all were cut.
    pub(super) cut: Option<u64>,
}

impl World {
    /// Some snapshots are of several volumes.
    pub(super) fn perhaps_in_a_group(&mut self, snapshot: Generation) {
        if !self.rng.one_in(2) {
            return;
        }
        self.metad.generations.hold = true;
        self.snapshots.group = Some(Group {
            snapshot,
            holder: self.client.as_ref().map(|c| c.epoch.0),
            cut: None,
        });
    }

    /// An epoch was minted.
    pub(super) fn holder_came(&mut self) {
        let epoch = self.metad.epoch;
        match &mut self.snapshots.group {
            Some(group) if group.holder.is_none() => group.holder = Some(epoch),
            Some(_) => self.abandon_group(),
            None => {}
        }
    }

    /// metad hears that writes wait.
    pub(super) fn snapshot_held(&mut self, epoch: u64, snapshot: Generation) {
        let group = self.snapshots.group.filter(|g| g.snapshot == snapshot);
        if epoch != self.metad.epoch || group.is_none_or(|g| g.cut.is_some()) {
            return;
        }
        let most = if self.rng.one_in(4) { 400 } else { 40 };
        let others = self.rng.below(most);
        self.after(others * MS, Happening::OthersHold(snapshot));
    }

    /// The last of the others holds, or one of them is lost.
    pub(super) fn others_hold(&mut self, snapshot: Generation) {
        let now = self.oracle.stamp();
        let group = self.snapshots.group.as_mut();
        let Some(group) = group.filter(|g| g.snapshot == snapshot && g.cut.is_none()) else {
            return;
        };
        group.cut = Some(now);
        if self.rng.one_in(6) {
            return self.abandon_group();
        }
        note!(self, "metad: {snapshot} is cut");
        self.metad.generations.hold = false;
        self.tell_generations();
    }

    fn abandon_group(&mut self) {
        if let Some(group) = self.snapshots.group.take() {
            note!(self, "metad: {} is abandoned", group.snapshot);
            self.seen.abandoned_snapshots += 1;
            self.metad.generations.hold = false;
            self.snapshots.abandoned = Some(group.snapshot);
            self.tell_generations();
        }
    }

    /// Whether the snapshot stays, now that it is complete; and when it was cut with others.
    pub(super) fn end_group(
        &mut self,
        epoch: u64,
        (snapshot, step): (Generation, SnapshotStep),
    ) -> (bool, Option<u64>) {
        let held = step == SnapshotStep::Complete { held: true };
        let group = self.snapshots.group.filter(|g| g.snapshot == snapshot);
        if let Some(group) = group {
            if held && group.holder == Some(epoch) && group.cut.is_some() {
                self.snapshots.group = None;
                self.seen.cut_snapshots += 1;
                return (true, group.cut);
            }
            self.abandon_group();
        }
        let abandoned = self.snapshots.abandoned == Some(snapshot);
        if abandoned {
            self.snapshots.abandoned = None;
        }
        (!abandoned, None)
    }
}

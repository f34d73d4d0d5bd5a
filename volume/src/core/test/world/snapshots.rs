//! Snapshots of the world: made and deleted by its metad, checked against what may be in them.

use super::super::oracle::{FAILED, Oracle, Written};
use super::groups::Group;
use super::{Happening, MS, World};
use crate::core::{Event, Position};
use shardmap::generations::{SnapshotState, SnapshotStep};
use shardmap::units::{Epoch, Generation};
use std::collections::BTreeMap;
use ubs_verify::MayShow;

/// One that was made.
#[derive(Debug)]
struct Snapshot {
    /// By block, what it may show: if no client has died on the way, and if one has.
    may: BTreeMap<u64, MayShow>,
    made: u64,
    /// When a client died last before: what was lost then is missing, and may be.
    since: u64,
    client_died: bool,
    /// What it shows, once it is complete; zero elsewhere.
    image: Option<BTreeMap<u64, u64>>,
}

#[derive(Debug, Default)]
pub(super) struct Snapshots {
    all: BTreeMap<Generation, Snapshot>,
    /// When a client died last.
    client_died: u64,
    /// The pending one is of several volumes.
    pub(super) group: Option<Group>,
    /// It was, and goes when it is complete.
    pub(super) abandoned: Option<Generation>,
}

impl World {
    /// The user asks metad for a snapshot, or to delete one.
    pub(super) fn snapshot_turn(&mut self) {
        if self.metad.down_until > self.now || !self.rng.one_in(12) {
            return;
        }
        if self.rng.one_in(3) {
            return self.delete_snapshot();
        }
        let metad = &mut self.metad;
        if metad.generations.pending().is_some() || metad.generations.snapshots.len() > 4 {
            return;
        }
        let snapshot = metad.generations.head;
        metad.generations.begin(Generation(snapshot.0 + 1));
        let made = Snapshot {
            may: self.oracle.may_show(),
            made: self.oracle.stamp(),
            since: self.snapshots.client_died,
            client_died: false,
            image: None,
        };
        self.snapshots.all.insert(snapshot, made);
        self.seen.snapshots += 1;
        self.perhaps_in_a_group(snapshot);
        note!(
            self,
            "metad: snapshot {snapshot} {:?}",
            self.snapshots.group
        );
        self.tell_generations();
    }

    fn delete_snapshot(&mut self) {
        let complete: Vec<_> = self.metad.generations.complete().collect();
        let Some(count) = (complete.len() as u64).checked_sub(1) else {
            return;
        };
        let nth = usize::try_from(self.rng.below(count + 1)).unwrap();
        let snapshot = complete[nth];
        self.delete(snapshot);
    }

    fn delete(&mut self, snapshot: Generation) {
        self.metad.generations.snapshots.remove(&snapshot);
        self.snapshots.all.remove(&snapshot);
        note!(self, "metad: {snapshot} is deleted");
        self.tell_generations();
        for at in 0..self.stores.len() {
            let delay = self.rng.below(100) * MS;
            self.after(delay, Happening::DropDeleted(Position::new(at)));
        }
    }

    /// The client hears of it later, perhaps too late, perhaps twice.
    pub(super) fn tell_generations(&mut self) {
        let Some(client) = self.client.as_ref().map(|c| c.life) else {
            return;
        };
        for _ in 0..=self.rng.below(2) {
            let delay = self.delay();
            let generations = self.metad.generations.clone();
            self.after(
                delay,
                Happening::Generations {
                    client,
                    generations,
                },
            );
        }
    }

    pub(super) fn drop_deleted(&mut self, at: Position) {
        let store = &mut self.stores[at.index()];
        if store.up {
            store.drop_deleted(&self.metad.generations);
        }
    }

    /// The client says how far a snapshot is; it says so until metad is there.
    pub(super) fn hear_snapshot(
        &mut self,
        client: u64,
        epoch: Epoch,
        (snapshot, step): (Generation, SnapshotStep),
    ) -> Result<(), String> {
        if self.metad.down_until > self.now {
            if self.client.as_ref().is_some_and(|c| c.life == client) {
                let what = Happening::Snapshot {
                    client,
                    epoch,
                    snapshot,
                    step,
                };
                self.after(20 * MS, what);
            }
            return Ok(());
        }
        let known = self.metad.generations.snapshots.get(&snapshot).copied();
        note!(self, "metad: {snapshot} of {epoch} {step:?}, was {known:?}");
        if step == SnapshotStep::Held {
            self.snapshot_held(epoch.0, snapshot);
            return Ok(());
        }
        if epoch.0 != self.metad.epoch || known != Some(SnapshotState::Pending) {
            return Ok(());
        }
        let (stays, cut) = self.end_group(epoch.0, (snapshot, step));
        if !stays {
            self.delete(snapshot);
            return Ok(());
        }
        self.metad.generations.set_complete(snapshot);
        self.seen.complete_snapshots += 1;
        self.tell_generations();
        self.keep_image(snapshot, cut)
    }

    pub(super) fn client_died_with_snapshots(&mut self) {
        self.snapshots.client_died = self.oracle.stamp();
        for snapshot in self.snapshots.all.values_mut() {
            snapshot.client_died = true;
        }
    }

    /// What it shows from now on must be legal, and a moment's.
    fn keep_image(&mut self, number: Generation, cut: Option<u64>) -> Result<(), String> {
        let image: BTreeMap<u64, u64> = self
            .oracle
            .touched()
            .into_iter()
            .filter_map(|block| {
                let homes = self.holders(block).and(self.metad.isr);
                let whole = |at: &Position| !self.stores[at.index()].incomplete;
                let at = homes.iter().find(whole)?;
                Some((block, self.stores[at.index()].value_in(block, number)))
            })
            .collect();
        let snapshot = self.snapshots.all.get_mut(&number).expect("was made");
        snapshot
            .check(&image, &self.oracle, cut)
            .map_err(|e| format!("{number}: {e}"))?;
        snapshot.image = Some(image);
        self.check_snapshots("when it was completed")
    }

    /// A complete snapshot shows the same for ever on every member, whatever a power cut takes.
    pub(super) fn check_snapshots(&self, when: &str) -> Result<(), String> {
        if !self.metad.verified {
            return Ok(());
        }
        for (number, snapshot) in &self.snapshots.all {
            let Some(image) = &snapshot.image else {
                continue;
            };
            for block in self.oracle.touched() {
                let expected = image.get(&block).copied().unwrap_or(0);
                for at in self.holders(block).and(self.metad.isr).iter() {
                    let store = &self.stores[at.index()];
                    if store.incomplete {
                        continue;
                    }
                    let shown = store.survivors(block, *number);
                    if shown.iter().any(|value| *value != expected) {
                        return Err(format!(
                            "{when}: {number} shows {shown:?} in block {block} of store {at}, was \
                             {expected}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// At the end every store has every snapshot and no other.
    pub(super) fn check_generations_at_end(&self) -> Result<(), String> {
        for (at, store) in self.stores.iter().enumerate() {
            let mut found = store.generations.clone();
            let wanted = &self.metad.generations;
            found
                .snapshots
                .retain(|s, _| wanted.snapshots.contains_key(s));
            if found != *wanted {
                return Err(format!("store {at} has {found:?}, metad {wanted:?}"));
            }
        }
        Ok(())
    }

    pub(super) fn hear_generations(
        &mut self,
        life: u64,
        generations: shardmap::generations::VolumeGenerations,
    ) -> Result<(), String> {
        if self.client.as_ref().is_some_and(|c| c.life == life) {
            return self.step(Event::Generations(generations));
        }
        Ok(())
    }
}

impl Snapshot {
    fn check(
        &self,
        image: &BTreeMap<u64, u64>,
        oracle: &Oracle,
        cut: Option<u64>,
    ) -> Result<(), String> {
        for (block, value) in image {
            let before = self
                .may
                .get(block)
                .map(|may| &may[usize::from(self.client_died)]);
            let before = before.map_or(*value == 0, |may| may.contains(value));
            let later = oracle.history.range(self.made..).flat_map(|(_, all)| all);
            let mut later = later.filter(|w| w.block == *block);
            if !before && !later.any(|w| w.value == *value) {
                return Err(format!(
                    "block {block} shows {value}, may {:?}",
                    self.may.get(block)
                ));
            }
        }
        if self.client_died {
            return Ok(());
        }
        self.check_cut(image, oracle, cut)
    }

    /// It shows a moment: nothing that was over before something that is in it began is missing, and no
    /// operation is in it by half. `cut`: the moment, if it is one of several volumes.
    fn check_cut(
        &self,
        image: &BTreeMap<u64, u64>,
        oracle: &Oracle,
        cut: Option<u64>,
    ) -> Result<(), String> {
        // Zeroes look alike: who wrote them is not known.
        let shown = |block: u64| {
            let value = image.get(&block).copied().filter(|v| *v != 0)?;
            let all = oracle.history.iter();
            let mut all = all.flat_map(|(issued, all)| all.iter().map(move |w| (*issued, *w)));
            all.find(|(_, w)| w.block == block && w.value == value)
        };
        let moment = image
            .keys()
            .filter_map(|b| shown(*b))
            .map(|(issued, _)| issued)
            .max();
        if let (Some(moment), Some(cut)) = (moment, cut)
            && moment > cut
        {
            return Err(format!(
                "{moment} is in it and began after the cut at {cut}"
            ));
        }
        let Some(moment) = moment.max(cut) else {
            return Ok(());
        };
        for block in image.keys() {
            let Some((_, written)) = shown(*block) else {
                continue;
            };
            let missed = oracle.history.range(self.since..).find(|(issued, all)| {
                let over = |w: &&Written| {
                    w.block == *block && w.completed < moment && written.completed < **issued
                };
                all.iter().find(over).is_some()
            });
            if let Some(missed) = missed {
                return Err(format!(
                    "block {block} lacks {missed:?}, over before {moment}"
                ));
            }
        }
        for all in oracle.history.range(self.since..) {
            let (issued, all) = all;
            let is_in = |w: &&Written| image.get(&w.block) == Some(&w.value);
            let failed = all.iter().any(|w| w.completed == FAILED);
            let torn = failed || oracle.taken_over.contains(issued);
            if torn || !all.iter().any(|w| w.value != 0 && is_in(&w)) {
                continue;
            }
            for part in all {
                let older = shown(part.block).filter(|(_, w)| w.completed < *issued);
                if let Some(older) = older {
                    return Err(format!(
                        "half of {all:?}: block {} is {older:?}",
                        part.block
                    ));
                }
            }
        }
        Ok(())
    }
}

//! Snapshots: the user makes and deletes them at metad, and what they may show.
//!
//! What a snapshot may show is noted when metad commits it; what it does show, when metad records it
//! as complete and whenever it is looked at afterwards: always the same, on every in-sync store.

use crate::faults::Prey;
use crate::log::Log;
use crate::metad::{VOLUME, Why, replicas_of};
use crate::plan::index;
use crate::rare::Rare;
use crate::sim::{Party, Sim, Task};
use crate::workload::Kind;
use control::core::{Command, Reply};
use reactor::sim::Prng;
use shardmap::generations::{SnapshotStep, VolumeGenerations};
use shardmap::units::{EXTENT_BYTES, Epoch, Generation, Nsid, StoreId};
use std::collections::BTreeMap;
use ubs_verify::MayShow;

/// Snapshots that the volume has at most.
pub(crate) const SNAPSHOTS_MAX: usize = 4;
/// Blocks that are discarded at a time in the end.
const DISCARD_BLOCKS: usize = 1024;

/// One that was made.
#[derive(Debug)]
struct Snapshot {
    /// By block; zero elsewhere, or what was written since.
    may: BTreeMap<u64, MayShow>,
    made: u64,
    /// The era that it was made in, and when that had begun: what was lost then is missing, and may be.
    era: u32,
    since: u64,
    /// When it was complete, and whether one client did all of it.
    completed: Option<(u64, bool)>,
    /// What it was seen to show.
    image: BTreeMap<u64, u64>,
}

/// The user, and the snapshots that there are.
#[derive(Debug)]
pub(crate) struct Snapshots {
    user: Prng,
    /// What the user waits for with the next one.
    lurking: Option<Prey>,
    all: BTreeMap<Generation, Snapshot>,
}

impl Snapshots {
    pub(crate) fn new(user: Prng) -> Self {
        Self {
            user,
            lurking: None,
            all: BTreeMap::new(),
        }
    }

    /// Mean pause between two deeds of the user, in milliseconds; `None`: there are no snapshots.
    pub(crate) fn draw_pause_ms(&mut self) -> Option<u64> {
        [None, Some(4_000), Some(12_000), Some(40_000)][index(&mut self.user, 4)]
    }
}

impl Sim {
    /// Who has the volume says how far a snapshot is.
    pub(crate) fn tell_of_snapshot(
        &mut self,
        party: Party,
        epoch: Epoch,
        (generation, step): (Generation, SnapshotStep),
    ) {
        self.say(format_args!("{party:?}: {generation} {step:?}"));
        if let SnapshotStep::Complete { .. } = step {
            self.rollback_may_write(generation);
        }
        let volume = VOLUME;
        let command = match step {
            SnapshotStep::Held => Command::HoldSnapshot {
                volume,
                epoch,
                generation,
            },
            SnapshotStep::Complete { held } => Command::CompleteSnapshot {
                volume,
                epoch,
                generation,
                held,
            },
        };
        self.ask(party, Why::Snapshot, command);
    }

    /// Snapshots that a blank store is to be given.
    pub(crate) fn snapshot_count(&self) -> u64 {
        self.snapshots.all.len() as u64
    }

    /// What a store has of the volume; `None` while it is not open.
    fn generations_of(&self, store: StoreId, nsid: Nsid) -> Option<VolumeGenerations> {
        self.with_store(store, |it| it.generations(nsid))?
    }

    /// The user thinks of the next deed.
    pub(crate) fn user_pauses(&mut self) {
        if let Some(mean_ms) = self.plan.snapshot_every_ms {
            let mean_ns = mean_ms * 1_000_000;
            let pause = self.snapshots.user.within(mean_ns / 20, mean_ns * 2);
            self.schedule(pause, Task::User);
        }
    }

    /// Acts, now or at a moment that matters.
    pub(crate) fn on_user(&mut self) {
        if self.calm {
            return;
        }
        let prey = match self.snapshots.user.below(6) {
            0..=2 => Some(Prey::Write),
            3 => Some(Prey::Change),
            4 => Some(Prey::Attach),
            _ => None,
        };
        match prey {
            Some(prey) if self.snapshots.lurking.is_none() => self.snapshots.lurking = Some(prey),
            Some(_) | None => self.use_snapshots(),
        }
        self.user_pauses();
    }

    /// A moment that the user may be waiting for.
    pub(crate) fn user_sees(&mut self, prey: Prey) {
        let odds = if prey == Prey::Write { 8 } else { 2 };
        if self.snapshots.lurking == Some(prey) && self.snapshots.user.chance(1, odds) {
            self.snapshots.lurking = None;
            let most_ns = [100_000, 1_000_000, 30_000_000][index(&mut self.snapshots.user, 3)];
            let pause = self.snapshots.user.within(0, most_ns);
            self.schedule(pause, Task::UserActs);
        }
    }

    /// Makes a snapshot, or deletes one. A user whom metad does not answer does something else.
    pub(crate) fn use_snapshots(&mut self) {
        if !self.metad.up || self.calm || !self.recorded().verified {
            return;
        }
        self.use_clones();
        let complete = self.deletable_snapshots();
        let user = &mut self.snapshots.user;
        if !complete.is_empty() && (complete.len() >= SNAPSHOTS_MAX || user.chance(1, 3)) {
            let which = complete[index(user, complete.len())];
            self.delete_snapshot(which);
        } else if self.recorded().pending_snapshot().is_none() && self.recorded().rollback.is_none()
        {
            self.make_snapshot();
        }
    }

    /// Complete ones that were not deleted, such as are kept for clones are the user's no more, and that no
    /// rollback reads.
    pub(crate) fn deletable_snapshots(&self) -> Vec<Generation> {
        let volume = self.recorded();
        let complete = volume.generations();
        let all = complete.complete();
        let reads = |g: &Generation| {
            volume
                .rollback
                .is_some_and(|r| r.to == *g || r.before == *g)
        };
        all.filter(|g| !volume.kept.contains_key(g) && !reads(g))
            .collect()
    }

    /// What a complete snapshot shows, by block; zero elsewhere.
    pub(crate) fn image_of(
        &mut self,
        generation: Generation,
        when: &str,
    ) -> Option<BTreeMap<u64, u64>> {
        self.check_snapshot(generation, when);
        let snapshot = self.snapshots.all.get(&generation)?;
        self.found.is_none().then(|| snapshot.image.clone())
    }

    /// Notes what the snapshot may show that is made next.
    pub(crate) fn note_snapshot(&mut self) -> Generation {
        let generation = self.recorded().head;
        let made = Snapshot {
            may: self.oracle.may_show(),
            made: self.oracle.stamp(),
            era: self.oracle.era(),
            since: self.eras.get(&self.oracle.era()).copied().unwrap_or(0),
            completed: None,
            image: BTreeMap::new(),
        };
        self.snapshots.all.insert(generation, made);
        self.rare.note(Rare::SnapshotMade);
        generation
    }

    fn make_snapshot(&mut self) {
        let generation = self.note_snapshot();
        let command = Command::CreateSnapshot {
            volumes: [VOLUME].into(),
            name: name_of(generation),
        };
        let reply = self.tell_metad(command);
        if reply != Reply::Done {
            self.find(format!("the snapshot {generation} is not made: {reply:?}"));
        }
    }

    pub(crate) fn delete_snapshot(&mut self, generation: Generation) {
        self.check_snapshot(generation, "when it is deleted");
        let (snapshot, volume) = (generation, VOLUME);
        let reply = self.tell_metad(Command::DeleteSnapshot { volume, generation });
        if reply != Reply::Done {
            return self.find(format!("{snapshot} is not deleted: {reply:?}"));
        }
        self.snapshots.all.remove(&generation);
        let away = |store: &StoreId| self.with_store(*store, |_| ()).is_none();
        let volume = self.recorded();
        if volume.map.stores.iter().any(away) || volume.isr.len() < volume.map.stores.len() {
            self.rare.note(Rare::SnapshotDeletedWithoutAll);
        }
    }

    /// A snapshot with a block whose write had failed, and which nobody can write again, may be in the way of
    /// stores that are to be given it: its user lets it go (docs/operations.md, known gaps).
    pub(crate) fn give_up_failed_snapshots(&mut self) {
        for generation in self.deletable_snapshots() {
            if self.found.is_none() && !self.failed_blocks(generation).is_empty() {
                self.rare.note(Rare::SnapshotGivenUp);
                self.delete_clones_of(generation);
                self.delete_snapshot(generation);
            }
        }
    }

    /// metad has recorded a snapshot as complete.
    pub(crate) fn on_snapshot_complete(&mut self, generation: Generation) {
        let (now, era) = (self.oracle.stamp(), self.oracle.era());
        let attachment = self.recorded().attachment;
        let snapshot = self.snapshots.all.get_mut(&generation).expect("was made");
        // A storaged serves no host: it begins no era, and is another client.
        let by_storaged = attachment.is_none();
        let one_client = snapshot.era == era && !by_storaged;
        if snapshot.completed.is_some() {
            // It was so before metad was restored.
            return self.check_snapshot(generation, "when it is complete once more");
        }
        snapshot.completed = Some((now, one_client));
        self.rare.note(Rare::SnapshotComplete);
        if by_storaged {
            self.rare.note(Rare::MaintenanceSnapshot);
        }
        if !one_client {
            self.rare.note(Rare::SnapshotResumed);
        }
        self.check_snapshot(generation, "when it is complete");
        if one_client && self.found.is_none() {
            let snapshot = &self.snapshots.all[&generation];
            if let Err(why) = is_a_moment(&snapshot.image, snapshot.since, &self.log) {
                self.find(format!("{generation}: {why}"));
            }
        }
    }

    /// Every complete snapshot shows what it showed before.
    pub(crate) fn check_snapshots(&mut self, when: &str) {
        let all: Vec<_> = self.snapshots.all.keys().copied().collect();
        all.into_iter().for_each(|g| self.check_snapshot(g, when));
    }

    /// It shows the same on every in-sync store that can be asked, always, and what it may.
    fn check_snapshot(&mut self, generation: Generation, when: &str) {
        let Some(mut snapshot) = self.snapshots.all.remove(&generation) else {
            return;
        };
        if snapshot.completed.is_some()
            && let Err(why) = self.look_at_snapshot(generation, &mut snapshot)
        {
            self.find(format!("{generation} {when}: {why}"));
        }
        self.snapshots.all.insert(generation, snapshot);
    }

    fn look_at_snapshot(
        &self,
        generation: Generation,
        snapshot: &mut Snapshot,
    ) -> Result<(), String> {
        let volume = self.recorded();
        for block in self.log.touched() {
            for (store, nsid) in replicas_of(volume, block) {
                if !volume.isr.contains(&store) || self.slice_facts(store, nsid) != Some(false) {
                    continue;
                }
                if self.has_failed(store, nsid, block, generation) {
                    continue;
                }
                let value = self.peek(store, nsid, block, generation)?;
                let seen = snapshot.image.get(&block).copied();
                if seen.is_some_and(|seen| seen != value) {
                    return Err(format!(
                        "block {block} is {value} on {store}, and was {seen:?}"
                    ));
                }
                if seen.is_none() {
                    snapshot.judge(block, value, &self.log)?;
                    snapshot.image.insert(block, value);
                }
            }
        }
        Ok(())
    }

    /// At the end every store of the volume has what metad has, and nothing else.
    pub(crate) fn prove_generations_equal(&mut self) {
        self.must_soon("every store has the snapshots and no others", |sim| {
            let volume = sim.recorded();
            let wanted = volume.generations();
            let slices = volume.map.stores.iter().zip(&volume.slices);
            let mut found = slices.map(|(store, nsid)| sim.generations_of(*store, *nsid));
            found.all(|found| found.as_ref() == Some(&wanted))
        });
        if self.found.is_some() {
            self.say_generations();
        }
        self.check_snapshots("at the end");
    }

    /// What the stores of the volume have, for people.
    fn say_generations(&mut self) {
        let volume = self.recorded().clone();
        let wanted = volume.generations();
        self.say(format_args!("metad has {wanted:?}"));
        for (store, nsid) in volume.map.stores.iter().zip(&volume.slices) {
            let has = self.generations_of(*store, *nsid);
            let used = self.used_extents(*store);
            self.say(format_args!("{store} has {has:?}, uses {used:?} extents"));
        }
    }

    /// Without snapshots, and with everything discarded, nothing is in use.
    pub(crate) fn prove_space_comes_back(&mut self) {
        let all: Vec<_> = self.snapshots.all.keys().copied().collect();
        for generation in all {
            if self.found.is_none() {
                self.delete_snapshot(generation);
            }
        }
        self.prove_generations_equal();
        self.discard_everything();
        self.must_soon("the space of what is gone comes back", |sim| {
            let mut stores = sim.recorded().map.stores.iter();
            stores.all(|store| sim.used_extents(*store) == Some(0))
        });
        if self.found.is_some() {
            self.say_generations();
        }
        self.prove_replicas_equal();
    }

    fn discard_everything(&mut self) {
        let Some(host) = self.holder().filter(|_| self.found.is_none()) else {
            return;
        };
        let (era, size) = (self.oracle.era(), self.plan.size_blocks());
        for start in (0..size).step_by(DISCARD_BLOCKS) {
            let end = size.min(start + DISCARD_BLOCKS as u64);
            if !self.start(host, era, Kind::Discard, (start, end)) {
                return self.find(format!("the discard of [{start}, {end}) is not taken"));
            }
        }
        self.must_soon("discards end", |s| s.hosts[host].ops.is_empty());
        self.read_everything();
    }

    /// Extents that a store has in use.
    fn used_extents(&self, store: StoreId) -> Option<usize> {
        let used = |it: &store::Store| {
            let usage = it.usage();
            (usage.capacity_bytes - usage.free_bytes) / u64::from(EXTENT_BYTES)
        };
        let used = self.with_store(store, used)?;
        Some(usize::try_from(used).expect("a small store"))
    }
}

/// How the user calls it.
pub(crate) fn name_of(generation: Generation) -> String {
    format!("s{}", generation.0)
}

/// Which snapshot has the name.
pub(crate) fn generation_of(name: &str) -> Generation {
    let number = name.strip_prefix('s').and_then(|n| n.parse().ok());
    Generation(number.expect("the user's names"))
}

impl Snapshot {
    /// What a block shows was there when it was made, or was written before it was complete.
    fn judge(&self, block: u64, value: u64, log: &Log) -> Result<(), String> {
        let (completed, one_client) = self.completed.expect("it is looked at");
        let may = self.may.get(&block).map(|m| &m[usize::from(!one_client)]);
        let before = may.map_or(value == 0, |may| may.contains(&value));
        let mut later = log.of_block(block);
        if before || later.any(|w| w.value == value && w.issued > self.made && w.issued < completed)
        {
            return Ok(());
        }
        Err(format!("block {block} shows {value}, may {may:?}"))
    }
}

/// It shows a moment of an era: nothing that was over before something in it began is missing, and no
/// request is in it by half. Zeroes look alike: who wrote them is not known.
fn is_a_moment(image: &BTreeMap<u64, u64>, since: u64, log: &Log) -> Result<(), String> {
    let shown = |block: u64| image.get(&block).and_then(|value| log.by_value(*value));
    let moment = image.keys().filter_map(|b| shown(*b)).map(|w| w.issued);
    let Some(moment) = moment.max() else {
        return Ok(());
    };
    let mut requests = BTreeMap::new();
    for block in image.keys() {
        let Some(written) = shown(*block) else {
            continue;
        };
        let missed = |w: &&crate::log::Written| {
            w.issued >= since && w.issued > written.completed && w.completed < moment
        };
        if let Some(missed) = log.of_block(*block).find(missed) {
            return Err(format!(
                "block {block} shows {written:?} and lacks {missed:?}, over before {moment}"
            ));
        }
        if written.issued >= since && written.is_sure() && !written.in_pieces {
            requests.insert(written.value, written);
        }
    }
    for whole in requests.values() {
        for block in whole.start..whole.end {
            let older = shown(block).filter(|w| w.completed < whole.issued);
            if let Some(older) = older {
                return Err(format!(
                    "half of {whole:?} is in it: block {block} shows {older:?}"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    /// One write of each of two blocks, one after the other, then one of both.
    fn log() -> Log {
        let mut log = Log::default();
        log.issued(1, Some(1), (7, 8), 10);
        log.completed(1, 11);
        log.issued(2, Some(2), (8, 9), 12);
        log.completed(2, 13);
        log.issued(3, Some(3), (7, 9), 14);
        log.completed(3, 15);
        log
    }

    fn verdict(image: [(u64, u64); 2], since: u64) -> bool {
        is_a_moment(&image.into(), since, &log()).is_ok()
    }

    #[test]
    fn a_snapshot_shows_a_moment_or_it_is_found() {
        assert!(verdict([(7, 0), (8, 0)], 0));
        assert!(verdict([(7, 1), (8, 0)], 0));
        assert!(verdict([(7, 1), (8, 2)], 0));
        assert!(verdict([(7, 3), (8, 3)], 0));
        assert!(!verdict([(7, 3), (8, 2)], 0), "half of the third");
        assert!(!verdict([(7, 1), (8, 3)], 0), "half of the third");
        assert!(verdict([(7, 1), (8, 3)], 15), "lost before the era");
    }

    #[test]
    fn an_effect_without_its_cause_is_found() {
        let mut log = Log::default();
        for (value, block) in [(1, 7), (2, 7), (3, 8)] {
            log.issued(value, Some(value), (block, block + 1), value * 10);
            log.completed(value, value * 10 + 1);
        }
        let shows = |first| is_a_moment(&[(7, first), (8, 3)].into(), 0, &log);
        assert!(shows(2).is_ok());
        assert!(shows(1).is_err());
    }
}

//! One seed: a cluster is made, lives in trouble, and must then heal and hold what it promised.

use crate::faults::Ease;
use crate::metad::{VOLUME, replicas_of};
use crate::plan::index;
use crate::rare::{Counts, Rare};
use crate::recorder::Recorder;
use crate::server::path;
use crate::sim::{Party, Sim, Task};
use crate::stamp;
use crate::workload::Kind;
use shardmap::units::{Generation, Lba, Nsid, StoreId};
use std::panic::{AssertUnwindSafe, catch_unwind};
use volume::StoreState;

/// Virtual seconds of trouble.
pub(crate) const TROUBLE_S: u64 = 600;
/// Virtual seconds in which everything must have healed, beside what a limited resilver must take, and
/// in which single things must be done.
const HEAL_S: u64 = 300;
const SOON_S: u64 = 60;
/// Virtual seconds after which everybody has noticed which connections are dead: more than the
/// longest keep-alive timeout. Before, a store that has lost its cache may still pass for healthy.
const NOTICE_S: u64 = 20;
/// How often the volume may turn out not to be healthy after all.
const ATTEMPTS: u32 = 3;

/// What kind of finding one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A promise is broken: data, replicas, fencing, a store that does not open.
    Broken,
    /// Something that must come has not come.
    Stuck,
    /// The code under test panicked.
    Panic,
}

/// What a seed came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) found: Option<String>,
    /// Of `found`.
    pub(crate) kind: Finding,
    pub(crate) digest: u64,
    pub(crate) virtual_ns: u64,
    pub(crate) faults: u64,
    pub(crate) ops: u64,
    pub(crate) rare: Counts,
    /// The end of the timeline, of a seed that failed.
    pub(crate) tail: Vec<String>,
}

/// Runs a seed. A panic of the code under test is a finding.
pub(crate) fn run(seed: u64, show: bool) -> Outcome {
    let mut sim = Sim::new(seed, show);
    in_trouble_or_panic(&mut sim, live);
    let outcome = Outcome {
        seed,
        kind: sim.kind,
        digest: sim.timeline.digest(),
        virtual_ns: sim.world.now_ns(),
        faults: sim.faults_count,
        ops: sim.ops_count,
        rare: sim.rare.clone(),
        tail: if sim.found.is_some() {
            sim.timeline.tail()
        } else {
            Vec::new()
        },
        found: sim.found.take(),
    };
    if outcome.found.is_some() {
        // What panicked half-way may panic again when it is taken apart.
        drop(catch_unwind(AssertUnwindSafe(move || drop(sim))));
    }
    outcome
}

/// What happened to one block of a seed's volume, for the models, and why the telling ends.
///
/// # Errors
/// What was found until then.
pub(crate) fn record(seed: u64, events_max: usize) -> Result<(Vec<String>, &'static str), String> {
    let mut sim = Sim::new(seed, false);
    // Around a place that is written often, and where regions and shards meet.
    let plan = &sim.plan;
    let spot = plan.hot[plan.hot.len().min(4) - 1];
    let block = (spot + plan.spread_blocks / 2 - 1).min(plan.size_blocks() - 1);
    sim.recorder = Some(Box::new(Recorder::new(block, events_max)));
    in_trouble_or_panic(&mut sim, |sim| {
        sim.run_to(TROUBLE_S, |s| {
            s.recorder.as_ref().is_some_and(|r| r.has_ended())
        });
    });
    match sim.found.take() {
        Some(found) => Err(found),
        None => Ok(sim.recorder.take().expect("just given").into_lines()),
    }
}

/// Sets a cluster up and lets trouble begin; then `what` goes on. A panic of the code under test is a finding.
fn in_trouble_or_panic(sim: &mut Sim, what: impl FnOnce(&mut Sim)) {
    let lives = |sim: &mut Sim| {
        if !sim.establish() {
            return sim.find_kind(Finding::Stuck, "the cluster does not come up".into());
        }
        sim.schedule(2_000_000_000, Task::Fault);
        what(sim);
    };
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| lives(sim))) else {
        return;
    };
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let place = crate::runner::take_panic_place();
    sim.find_kind(
        Finding::Panic,
        format!("panic at {place}: {}", text.unwrap_or("?")),
    );
}

/// The ten minutes, and what must hold after them.
fn live(sim: &mut Sim) {
    sim.user_pauses();
    sim.rot_later();
    sim.backup_later();
    sim.grow_later(crate::growth::PAUSE_NS);
    sim.roll_back_later();
    sim.run_for(TROUBLE_S);
    sim.heal();
    sim.prove_nothing_is_spoiled();
    sim.prove_replicas_equal();
    sim.prove_generations_equal();
    sim.prove_capacities();
    sim.prove_a_detach_in_order();
    sim.prove_nothing_is_lost_without_power();
    sim.prove_clones();
    sim.prove_space_comes_back();
    for server in 0..sim.servers.len() {
        sim.note_counts(server);
        sim.note_healing(server);
    }
}

impl Sim {
    /// Waits for something that must come; what is missing is a finding.
    pub(crate) fn must(
        &mut self,
        seconds: u64,
        what: &str,
        done: impl FnMut(&Self) -> bool,
    ) -> bool {
        if self.found.is_some() {
            return false;
        }
        let came = self.run_to(seconds, done);
        if !came && self.found.is_none() {
            for index in 0..self.hosts.len() {
                let held = self.hosts[index].held;
                let ops = self.hosts[index].ops.clone();
                self.say(format_args!("host {index}: {held:?}, outstanding {ops:?}"));
                if let Some(app) = self.hosts[index].app.clone() {
                    self.say(format_args!("host {index}: {:#?}", app.borrow().volumes));
                }
            }
            if let Some(lost) = self.shard_without_medium() {
                self.find(format!("{what}: not after {seconds} s: {lost}"));
            } else {
                self.find_kind(Finding::Stuck, format!("{what}: not after {seconds} s"));
            }
        }
        came
    }

    /// The same of something that must come soon.
    pub(crate) fn must_soon(&mut self, what: &str, done: impl FnMut(&Self) -> bool) {
        self.must(SOON_S, what, done);
    }

    /// A shard none of whose in-sync stores has a whole slice. Media are lost only while another
    /// in-sync store's is whole, so that is a broken promise and no mere delay.
    fn shard_without_medium(&self) -> Option<String> {
        let volume = self.recorded();
        let nsids: std::collections::BTreeMap<_, _> =
            volume.map.stores.iter().zip(&volume.slices).collect();
        let mut shards = (0..volume.map.shard_count()).map(shardmap::units::ShardIndex);
        let blank = |store: &shardmap::units::StoreId| self.is_incomplete(*store, *nsids[store]);
        let lost = shards.find(|shard| {
            let members = volume.map.stores_of(*shard);
            let mut in_sync = members.filter(|s| volume.isr.contains(s)).peekable();
            in_sync.peek().is_some() && in_sync.all(|s| blank(&s))
        });
        lost.map(|shard| format!("every in-sync store of shard {} is blank", shard.0))
    }

    pub(crate) fn holder(&self) -> Option<usize> {
        let era = self.oracle.era();
        self.hosts.iter().position(|h| h.serving == Some(era))
    }

    fn status_of(&self, host: usize) -> Option<volume::VolumeStatus> {
        let app = self.hosts[host].app.as_ref()?;
        app.borrow().volumes.status(VOLUME)
    }

    /// Full in-sync set, nothing to reconcile, no snapshot pending, nothing outstanding.
    fn is_healthy(&self) -> bool {
        let Some(host) = self.holder() else {
            return false;
        };
        // Who was superseded may not know it yet.
        let epoch = self.recorded().attachment.map(|held| held.epoch);
        if epoch.is_none() || epoch != self.hosts[host].held_epoch() {
            return false;
        }
        let pending = self.recorded().pending_snapshot().is_some();
        if pending || self.hosts[host].failed || !self.hosts[host].ops.is_empty() {
            return false;
        }
        self.status_of(host).is_some_and(|status| {
            status.serving
                && status.regions_to_reconcile == 0
                && status
                    .stores
                    .values()
                    .all(|s| s.state == StoreState::InSync)
        })
    }

    /// Trouble ends; everything must heal by itself.
    fn heal(&mut self) {
        if self.found.is_some() {
            return;
        }
        self.ease_all();
        self.run_for(NOTICE_S);
        // A storaged that has failed pauses, for up to 300 s.
        self.prove_rollback_ends(2 * HEAL_S + self.plan.copies_s() * (1 + self.snapshot_count()));
        self.write_again_what_failed();
        self.give_up_failed_snapshots();
        if self.plan.heals_alone && self.recorded().verified {
            self.prove_health_with_nobody();
        }
        self.prove_health("the volume is healthy again");
    }

    /// It gets whole although nobody has it; then somebody is given it again.
    fn prove_health_with_nobody(&mut self) {
        self.must_soon("the operator is through", |s| s.operator.todo.is_empty());
        let command = control::core::Command::ForceDetach { volume: VOLUME };
        self.operator.todo.push_back(command);
        self.operate();
        // A storaged that has failed pauses, for up to 300 s.
        let seconds = 2 * HEAL_S + self.plan.copies_s() * (1 + self.snapshot_count());
        let whole = "the volume is whole with nobody";
        self.must(seconds, whole, Self::is_whole_with_nobody);
        if self.replace_a_disk() {
            // No mere delay: the next loss of a disk would cost data.
            let came = self.run_to(seconds, Self::is_whole_with_nobody);
            if !came && self.found.is_none() {
                self.find("a disk that was replaced with nobody there stays blank".into());
            }
        }
        self.prove_members_equal("in the end");
        self.operator.idle = true;
        self.on_ease(Ease::Wanted);
    }

    /// One of the volume's disks is replaced by a blank one, if that may be.
    fn replace_a_disk(&mut self) -> bool {
        let stores = self.recorded().map.stores.clone();
        let store = stores[index(&mut self.fate, stores.len())];
        let server = self.server_of(store);
        let replaced = self.found.is_none() && self.wipe(server, (1_000_000, 3_000_000_000));
        if replaced {
            self.rare.note(Rare::ReplacedWithNobody);
        }
        replaced
    }

    /// It gets healthy, everything can be read, and it is healthy still: reads may show that a store
    /// has lost something, which then has to leave and come back.
    fn prove_health(&mut self, what: &str) {
        for _ in 0..ATTEMPTS {
            let seconds = HEAL_S + self.plan.copies_s() * (1 + self.snapshot_count());
            self.must(seconds, what, Self::is_healthy);
            self.read_everything();
            if self.found.is_some() || self.is_healthy() {
                return;
            }
        }
        self.find_kind(Finding::Stuck, format!("{what}: not for long"));
    }

    pub(crate) fn read_everything(&mut self) {
        if self.found.is_some() {
            return;
        }
        let Some(host) = self.holder() else { return };
        let era = self.oracle.era();
        for run in runs_of(&self.oracle.touched()) {
            if !self.start(host, era, Kind::Read, run) {
                self.must(SOON_S, "reads end", |s| s.hosts[host].ops.is_empty());
                self.start(host, era, Kind::Read, run);
            }
        }
        self.start(host, era, Kind::Flush, (0, 0));
        self.must(SOON_S, "reads end", |s| s.hosts[host].ops.is_empty());
        let failovers = self
            .status_of(host)
            .map_or(0, |s| s.counters.read_failovers);
        self.rare.add(Rare::ReadFailover, failovers);
    }

    /// Whether a write of a block has failed at a store, which does not read it since.
    pub(crate) fn has_failed(
        &self,
        store: StoreId,
        nsid: Nsid,
        block: u64,
        generation: Generation,
    ) -> bool {
        let failed = self.with_store(store, |it| it.has_failed(nsid, Lba(block), generation));
        failed == Some(true)
    }

    /// Blocks of a generation (zero: the head) of which a write has failed at any of their stores.
    pub(crate) fn failed_blocks(&self, generation: Generation) -> Vec<u64> {
        let volume = self.recorded();
        let failed = |block: &u64| {
            let mut slices = replicas_of(volume, *block);
            slices.any(|(store, nsid)| self.has_failed(store, nsid, *block, generation))
        };
        let touched = self.oracle.touched().into_iter();
        touched.filter(failed).collect()
    }

    /// Who uses the device writes again what could not be written: until then nobody may be able to read
    /// it, and no store can be given it.
    fn write_again_what_failed(&mut self) {
        let failed = self.failed_blocks(Generation(0));
        if failed.is_empty() || self.found.is_some() {
            return;
        }
        self.rare.note(Rare::WrittenAgain);
        self.must_soon("somebody has the volume", |s| s.holder().is_some());
        let Some(host) = self.holder() else { return };
        let era = self.oracle.era();
        let zero = Kind::Zero { fua: false };
        let was_written = |block: &u64| self.log.was_written(*block);
        let (written, blank): (Vec<u64>, Vec<u64>) = failed.into_iter().partition(was_written);
        // A copy of a block that nobody has ever written can fail too; zeroes are what it holds.
        for (kind, blocks) in [(Kind::Write { fua: false }, written), (zero, blank)] {
            for run in runs_of(&blocks) {
                self.start(host, era, kind, run);
            }
        }
        // Where two must be in sync, a write waits for a resilver.
        let seconds = SOON_S + self.plan.copies_s();
        self.must(seconds, "what failed is written again", |s| {
            s.hosts[host].ops.is_empty()
        });
    }

    /// A client has opened the stores and not written yet: what no in-sync store has marked is the same on
    /// all of them.
    pub(crate) fn prove_unmarked_equal(&mut self) {
        let volume = self.recorded();
        let counts = |(store, nsid): &(StoreId, Nsid)| {
            volume.isr.contains(store) && self.slice_facts(*store, *nsid) == Some(false)
        };
        let differs = self.oracle.touched().into_iter().find(|block| {
            let members: Vec<_> = replicas_of(volume, *block).filter(counts).collect();
            let unmarked = |(store, nsid): &(StoreId, Nsid)| {
                let marked = self.with_store(*store, |it| it.is_marked(*nsid, Lba(*block)));
                marked == Some(false) && !self.has_failed(*store, *nsid, *block, Generation(0))
            };
            let value =
                |(store, nsid): &(StoreId, Nsid)| self.peek(*store, *nsid, *block, Generation(0));
            let differs = |m| value(m).is_err() || value(m) != value(&members[0]);
            members.iter().all(unmarked) && members.iter().any(differs)
        });
        if let Some(block) = differs {
            self.find(format!(
                "opened: block {block} differs and is marked nowhere"
            ));
        }
    }

    /// Every replica of a block holds the same, and what may be read.
    pub(crate) fn prove_replicas_equal(&mut self) {
        if self.found.is_some() {
            return;
        }
        let volume = self.recorded().clone();
        for block in self.oracle.touched() {
            let mut first: Option<(usize, u64)> = None;
            for (store, nsid) in replicas_of(&volume, block) {
                let index = self.server_of(store);
                let value = match self.peek(store, nsid, block, Generation(0)) {
                    Ok(value) => value,
                    Err(why) => return self.find(why),
                };
                let (other, same) = *first.get_or_insert((index, value));
                if value != same {
                    return self.find(format!(
                        "block {block} differs: server {other} has {same}, server {index} has {value}"
                    ));
                }
            }
        }
    }

    pub(crate) fn server_of(&self, store: StoreId) -> usize {
        let server = self.servers.iter().position(|s| s.store == Some(store));
        server.expect("stores have servers")
    }

    /// What a store holds of a block in a generation (zero: the head), behind its back.
    pub(crate) fn peek(
        &self,
        store: StoreId,
        nsid: Nsid,
        block: u64,
        generation: Generation,
    ) -> Result<u64, String> {
        let index = self.server_of(store);
        let place = self.with_store(store, |it| it.place_of(nsid, Lba(block), generation));
        let place = place.ok_or_else(|| format!("server {index} has no store open"))?;
        let Some(offset) = place.map_err(|fault| format!("server {index}: {fault}"))? else {
            return Ok(0);
        };
        let mut bytes = [0; 4096];
        self.world
            .disk_ref(self.servers[index].node, path())
            .peek(offset, &mut bytes);
        self.see_through(index, offset, &mut bytes);
        stamp::sequence_of(&bytes, block)
            .map_err(|broken| format!("block {block} on server {index} is {broken:?}"))
    }

    /// A detach in order leaves no mark.
    fn prove_a_detach_in_order(&mut self) {
        let Some(host) = self.holder().filter(|_| self.found.is_none()) else {
            return;
        };
        self.must(SOON_S, "the operator is through", |s| {
            s.operator.todo.is_empty()
        });
        self.operator
            .todo
            .push_back(control::core::Command::ClearDesiredAttachment { volume: VOLUME });
        self.operate();
        self.must(SOON_S, "the volume is detached", |s| {
            s.recorded().attachment.is_none()
                && s.hosts[host].serving.is_none()
                && s.operator.todo.is_empty()
        });
        if self.found.is_some() {
            return;
        }
        for (index, server) in self.servers.iter().enumerate() {
            let app = server.app.as_ref().expect("everybody is up").borrow();
            let marked = app
                .slices()
                .stores()
                .flat_map(|(_, s)| s.slices().collect::<Vec<_>>())
                .map(|s| s.mark_count)
                .sum::<u64>();
            if marked > 0 {
                drop(app);
                return self.find(format!(
                    "server {index}: {marked} marks after a detach in order"
                ));
            }
        }
    }

    /// All servers lose power after that; nothing is lost.
    fn prove_nothing_is_lost_without_power(&mut self) {
        if self.found.is_some() {
            return;
        }
        for index in 0..self.servers.len() {
            self.cut_server(index);
            self.schedule(100_000_000, Task::Boot(Party::Server(index)));
        }
        self.say(format_args!("all servers: power cut after the detach"));
        let goal = self.operator.goal;
        self.give_volume_to(goal, false);
        self.prove_health("the volume is healthy after a power cut");
        self.prove_replicas_equal();
    }
}

/// Ascending blocks as runs of at most 32.
pub(crate) fn runs_of(blocks: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((start, end)) if *end == *block && *end - *start < 32 => *end += 1,
            Some(_) | None => runs.push((*block, *block + 1)),
        }
    }
    runs
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sim::Sim;

    /// The digest of a cluster's first minute of trouble.
    fn first_minute(seed: u64) -> (u64, u64) {
        let mut sim = Sim::new(seed, false);
        assert!(sim.establish());
        sim.schedule(0, Task::Fault);
        sim.run_for(60);
        assert_eq!(sim.found, None);
        (sim.timeline.digest(), sim.ops_count)
    }

    #[test]
    fn a_seed_is_a_run() {
        let (digest, ops) = first_minute(1);
        assert!(ops > 50, "{ops} requests in a minute");
        assert_eq!(first_minute(1), (digest, ops));
        assert_ne!(first_minute(3).0, digest);
    }

    #[test]
    fn blocks_are_read_in_runs() {
        let mut blocks: Vec<u64> = (3..40).collect();
        blocks.push(50);
        assert_eq!(runs_of(&blocks), [(3, 35), (35, 40), (50, 51)]);
    }
}

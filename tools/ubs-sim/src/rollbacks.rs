//! A user who rolls the volume back to one of its snapshots (ADR 0015), in any weather: detaches it for
//! that, or finds it detached; sometimes changes his mind half-way.
//!
//! To the oracle a rollback is one write of every block, of what the snapshot was seen to show. It begins
//! when what the volume showed is kept, with every client before superseded by then; it is over, and
//! durable, when metad says so, and then every in-sync store shows what the snapshot shows.

use crate::faults::Prey;
use crate::metad::{VOLUME, Why, replicas_of};
use crate::plan::index;
use crate::rare::Rare;
use crate::sim::{Party, Sim, Task};
use crate::snapshots::SNAPSHOTS_MAX;
use control::core::{Command, Phase, Reply, Rollback, RollbackFate};
use reactor::sim::Prng;
use shardmap::units::{Epoch, Generation};
use std::collections::BTreeMap;

/// Makes the user's chance another one than the world's.
const ROLLBACK_SEED: u64 = 0x726f_6c6c_6261_636b;
/// One seed in so many has such a user.
const ONE_IN: u64 = 2;
const PAUSE_NS: (u64, u64) = (5_000_000_000, 90_000_000_000);
/// For so long nobody wants a volume that was detached for it.
const IDLE_NS: (u64, u64) = (1_000_000_000, 40_000_000_000);
const SOON_NS: u64 = 2_000_000_000;

/// One that is under way.
#[derive(Debug)]
struct Current {
    rollback: Rollback,
    /// What the snapshot was seen to show; zero elsewhere.
    image: BTreeMap<u64, u64>,
    /// When its writes began, and of which blocks, as the oracle has it.
    issued: Option<(u64, Vec<u64>)>,
}

/// The user.
#[derive(Debug)]
pub(crate) struct Rollbacks {
    chance: Prng,
    current: Option<Current>,
}

impl Rollbacks {
    /// In some seeds, somebody.
    pub(crate) fn draw(seed: u64) -> Option<Self> {
        let mut chance = Prng::new(seed ^ ROLLBACK_SEED);
        chance.chance(1, ONE_IN).then_some(Self {
            chance,
            current: None,
        })
    }
}

impl Sim {
    pub(crate) fn roll_back_later(&mut self) {
        if let Some(rollbacks) = &mut self.rollbacks {
            let pause = rollbacks.chance.within(PAUSE_NS.0, PAUSE_NS.1);
            self.schedule(pause, Task::RollBack);
        }
    }

    pub(crate) fn on_roll_back(&mut self) {
        // What follows runs in the models knows nothing of it.
        if self.calm || self.recorder.is_some() {
            return;
        }
        self.roll_back_later();
        let volume = self.recorded();
        if !self.metad.up || !volume.verified || volume.pending_snapshot().is_some() {
            return;
        }
        let unused = volume.desired.is_none() && volume.attachment.is_none();
        let phase = volume.phase;
        let Some(rollbacks) = &mut self.rollbacks else {
            return;
        };
        let (one_in_3, one_in_6) = (rollbacks.chance.chance(1, 3), rollbacks.chance.chance(1, 6));
        match phase {
            Phase::Ready if unused => self.roll_back_to_any(),
            Phase::RollingBack if one_in_6 => self.roll_back_to_any(),
            Phase::Ready if one_in_3 => self.detach_to_roll_back(),
            Phase::Ready | Phase::RollingBack | Phase::Creating | Phase::Deleting => {}
        }
    }

    fn detach_to_roll_back(&mut self) {
        let rollbacks = self.rollbacks.as_mut().expect("the user does it");
        let idle_ns = rollbacks.chance.within(IDLE_NS.0, IDLE_NS.1);
        if self.operator.idle || !self.operator.todo.is_empty() {
            return;
        }
        self.leave_for(idle_ns);
        self.schedule(SOON_NS, Task::RollBack);
    }

    /// To any snapshot; one that is too many goes first.
    fn roll_back_to_any(&mut self) {
        let mut complete = self.deletable_snapshots();
        let rollbacks = self.rollbacks.as_mut().expect("the user does it");
        if complete.is_empty() {
            return;
        }
        let nth = index(&mut rollbacks.chance, complete.len());
        let to = complete.swap_remove(nth);
        if complete.len() >= SNAPSHOTS_MAX {
            let nth = index(&mut rollbacks.chance, complete.len());
            self.delete_snapshot(complete[nth]);
        }
        self.roll_back(to);
    }

    fn roll_back(&mut self, to: Generation) {
        let Some(image) = self.image_of(to, "when it is rolled back to") else {
            return;
        };
        // Its stores may be down, so that nobody can look; the user comes by again.
        if self.log.touched().any(|block| !image.contains_key(&block)) {
            return;
        }
        let before = self.note_snapshot();
        let command = Command::RollBack {
            volume: VOLUME,
            to,
            keep_as: crate::snapshots::name_of(before),
        };
        let reply = self.tell_metad(command);
        if reply != Reply::Done {
            return self.find(format!("no rollback to {to}: {reply:?}"));
        }
        self.say(format_args!("the user rolls back to {to}, keeps {before}"));
        if let Some((at, blocks)) = self.take_rollback().and_then(|current| current.issued) {
            self.rare.note(Rare::RollbackReplaced);
            let now = self.oracle.stamp();
            for block in blocks {
                self.oracle.write_failed(block, at, now);
            }
        }
        let rollbacks = self.rollbacks.as_mut().expect("the user does it");
        rollbacks.current = Some(Current {
            rollback: Rollback { to, before },
            image,
            issued: None,
        });
    }

    fn take_rollback(&mut self) -> Option<Current> {
        self.rollbacks.as_mut()?.current.take()
    }

    /// Who has the volume says that a snapshot is complete.
    pub(crate) fn rollback_may_write(&mut self, generation: Generation) {
        let rollbacks = self.rollbacks.as_mut();
        let Some(current) = rollbacks.and_then(|r| r.current.as_mut()) else {
            return;
        };
        if current.rollback.before != generation || current.issued.is_some() {
            return;
        }
        let (at, blocks) = (self.oracle.stamp(), self.oracle.touched());
        for block in &blocks {
            let value = current.image.get(block).copied().unwrap_or(0);
            self.oracle.write_issued(*block, value, at);
        }
        current.issued = Some((at, blocks));
    }

    /// Whether the volume may be written although nobody has it.
    pub(crate) fn is_rolling(&self) -> bool {
        let current = self.rollbacks.as_ref().and_then(|r| r.current.as_ref());
        current.is_some_and(|current| current.issued.is_some())
    }

    /// A storaged says that it has rolled the volume back.
    pub(crate) fn tell_rolled_back(&mut self, server: usize, epoch: Epoch, rollback: Rollback) {
        self.say(format_args!(
            "server {server}: has rolled back {rollback:?}"
        ));
        self.pass(Prey::Change);
        let command = Command::CompleteRollback {
            volume: VOLUME,
            epoch,
            rollback,
        };
        self.ask(Party::Server(server), Why::RolledBack, command);
    }

    /// What became of it, at metad.
    pub(crate) fn on_rollback_change(&mut self, fate: RollbackFate) {
        match fate {
            RollbackFate::Begun => {}
            RollbackFate::Abandoned => {
                self.rare.note(Rare::RollbackAbandoned);
                drop(self.take_rollback()); // what was to be written may be there in part
            }
            RollbackFate::Completed => self.on_rolled_back(),
        }
    }

    fn on_rolled_back(&mut self) {
        self.rare.note(Rare::RolledBack);
        let Some(current) = self.take_rollback() else {
            return self.find("a rollback is over that was not asked for".into());
        };
        let Some((at, blocks)) = current.issued else {
            return self.find("rolled back before what was there was kept".into());
        };
        let now = self.oracle.stamp();
        for block in blocks {
            self.oracle.write_completed(block, at, now, true);
        }
        let volume = self.recorded().clone();
        for block in self.oracle.touched() {
            let wanted = current.image.get(&block).copied().unwrap_or(0);
            for (store, nsid) in replicas_of(&volume, block) {
                let whole = self.slice_facts(store, nsid) == Some(false);
                let failed = self.has_failed(store, nsid, block, Generation(0));
                if !volume.isr.contains(&store) || !whole || failed {
                    continue;
                }
                match self.peek(store, nsid, block, Generation(0)) {
                    Ok(value) if value == wanted => {}
                    Ok(value) => {
                        return self.find(format!(
                            "rolled back, and block {block} is {value} on {store}, not {wanted}"
                        ));
                    }
                    Err(why) => return self.find(format!("rolled back: {why}")),
                }
            }
        }
    }

    /// In the end a rollback ends, with the room that other snapshots took; one to a snapshot with a block that
    /// nobody can read is undone.
    pub(crate) fn prove_rollback_ends(&mut self, seconds: u64) {
        let rollback = self.recorded().rollback;
        if rollback.is_some() {
            for generation in self.deletable_snapshots() {
                self.delete_clones_of(generation);
                self.delete_snapshot(generation);
            }
        }
        if let Some(rollback) = rollback
            && !self.failed_blocks(rollback.to).is_empty()
        {
            self.must(seconds, "what was there is kept", |s| {
                s.recorded().pending_snapshot().is_none()
            });
            self.roll_back(rollback.before);
        }
        self.must(seconds, "the rollback ends", |s| {
            s.recorded().rollback.is_none()
        });
    }
}

//! Which volume this server brings up to date next (ADR 0006): one at a time, fairly, with pauses
//! that grow where it does not succeed. Decides; asks and orders nothing by itself.
//!
//! ```text
//! idle --Ask--> asking --granted: Host--> here --LetGo--> leaving --TellGone--> telling --> idle
//!                  |refused: a pause        |the volume ended by itself ----------^
//! ```

use control::core::{DesiredMaintenance, Rollback};
use shardmap::units::{Epoch, Moment, StoreId, VolumeId};
use std::collections::BTreeMap;
use volume::{StoreState, VolumeStatus};

/// How often a volume is looked at while it is here, in milliseconds.
pub const LOOK_MS: u64 = 5_000;
/// A volume that has not moved for so long is let go: what it waits for is away.
pub const STILL_MS: u64 = 60_000;
/// First and longest pause of a volume that could not be finished.
const PAUSE_MS: (u64, u64) = (1_000, 300_000);
/// Longest pause after metad has refused: asking costs it nothing.
const REFUSED_PAUSE_MS_MAX: u64 = 30_000;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask metad for the volume; [`Maintenance::on_granted`] or [`Maintenance::on_refused`].
    Ask(VolumeId),
    /// Hand the grant to the reactor.
    Host(VolumeId),
    /// Ask the reactor how it looks; [`Maintenance::on_status`].
    Look(VolumeId),
    /// Tell the reactor to detach it; [`Maintenance::on_ended`].
    LetGo(VolumeId),
    /// Tell the reactor to let it go at once, as a crash would; [`Maintenance::on_ended`].
    Abandon(VolumeId),
    /// Tell metad that it is free; [`Maintenance::on_told`].
    TellGone(VolumeId, Epoch),
}

/// How a volume's stay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was let go in order.
    LetGo,
    /// Somebody else has taken it.
    Fenced,
    /// It could not go on.
    Failed(String),
}

#[derive(Debug)]
struct Wanted {
    name: String,
    /// metad has a snapshot of it that it does not know to be complete.
    snapshot_pending: bool,
    /// It is to be rolled back.
    rollback: Option<Rollback>,
    due_index: u64,
    not_before: Moment,
    /// Next pause.
    pause_ms: u64,
    /// Why it is not done yet, for people.
    note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking,
    Here,
    Leaving,
    Telling,
}

#[derive(Debug)]
struct Work {
    volume: VolumeId,
    stage: Stage,
    epoch: Epoch,
    /// What it is rolled back with while it is here.
    rollback: Option<Rollback>,
    look_at: Moment,
    /// How it looked when it last moved, and when that was.
    sight: Sight,
    moved_at: Moment,
    /// Every store is in sync, no snapshot is pending, it is rolled back and the marks can go.
    whole: bool,
}

/// What shows that a volume moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sight {
    serving: bool,
    regions_to_reconcile: u64,
    moves: u64,
    stores: BTreeMap<StoreId, StoreState>,
}

impl Sight {
    fn of(status: &VolumeStatus) -> Self {
        let stores = status.stores.iter();
        Self {
            serving: status.serving,
            regions_to_reconcile: status.regions_to_reconcile,
            moves: status.moves,
            stores: stores.map(|(id, s)| (*id, s.state)).collect(),
        }
    }
}

/// Whether nothing is left to do for a volume.
fn is_whole(status: &VolumeStatus) -> bool {
    let in_sync = status
        .stores
        .values()
        .all(|s| s.state == StoreState::InSync);
    let complete = status.generations.pending().is_none();
    status.serving && status.regions_to_reconcile == 0 && in_sync && complete
}

/// The machine.
#[derive(Debug, Default)]
pub struct Maintenance {
    wanted: BTreeMap<VolumeId, Wanted>,
    work: Option<Work>,
}

impl Maintenance {
    /// What metad wants of this server now.
    pub fn on_desire(&mut self, now: Moment, desired: Vec<DesiredMaintenance>) -> Option<Step> {
        let mut before = std::mem::take(&mut self.wanted);
        for d in desired {
            let known = before.remove(&d.volume);
            let known = known.filter(|w| w.due_index >= d.due_index);
            let mut wanted = known.unwrap_or(Wanted {
                name: d.name,
                snapshot_pending: false,
                rollback: None,
                due_index: d.due_index,
                not_before: now,
                pause_ms: PAUSE_MS.0,
                note: String::new(),
            });
            wanted.snapshot_pending = d.generations.pending().is_some();
            wanted.rollback = d.rollback;
            self.wanted.insert(d.volume, wanted);
        }
        // One that is rolled back now, or to something else, is taken anew.
        let stays = |w: &Work| {
            let wanted = self.wanted.get(&w.volume);
            wanted.is_some_and(|wanted| wanted.rollback == w.rollback)
        };
        let gone = |w: &&mut Work| w.stage == Stage::Here && !stays(w);
        if let Some(work) = self.work.as_mut().filter(gone) {
            (work.stage, work.moved_at) = (Stage::Leaving, now);
            return Some(Step::LetGo(work.volume));
        }
        self.next(now)
    }

    /// The volume that the reactor has.
    pub fn here(&self) -> Option<VolumeId> {
        let work = self.work.as_ref().filter(|w| w.stage == Stage::Here);
        work.map(|w| w.volume)
    }

    /// metad has granted the volume, under this epoch, to be rolled back. That it was wanted for a rollback is
    /// no reason for one: somebody may have completed it, and others have written since.
    pub fn on_granted(
        &mut self,
        now: Moment,
        volume: VolumeId,
        (epoch, rollback): (Epoch, Option<Rollback>),
    ) -> Option<Step> {
        let is_wanted = self.wanted.contains_key(&volume);
        let work = self.at(volume, Stage::Asking)?;
        work.epoch = epoch;
        work.moved_at = now;
        work.look_at = now.plus_ms(LOOK_MS);
        if is_wanted {
            (work.stage, work.rollback) = (Stage::Here, rollback);
            return Some(Step::Host(volume));
        }
        work.stage = Stage::Telling;
        Some(Step::TellGone(volume, epoch))
    }

    /// metad has not granted the volume.
    pub fn on_refused(&mut self, now: Moment, volume: VolumeId, why: &str) -> Option<Step> {
        self.at(volume, Stage::Asking)?;
        self.work = None;
        self.pause(now, volume, REFUSED_PAUSE_MS_MAX, why);
        self.next(now)
    }

    /// How a volume looks; `None`: it is not here.
    pub fn on_status(
        &mut self,
        now: Moment,
        volume: VolumeId,
        status: Option<&VolumeStatus>,
    ) -> Option<Step> {
        let work = self.work.as_mut().filter(|w| w.volume == volume)?;
        if !matches!(work.stage, Stage::Here | Stage::Leaving) {
            return None;
        }
        let Some(status) = status else {
            return self.on_ended(now, volume, &Ending::Failed("its end was lost".into()));
        };
        if work.stage == Stage::Leaving {
            if now < work.moved_at.plus_ms(STILL_MS) {
                return None;
            }
            // What it waits for may never come: a store that is lost now is not opened again.
            work.moved_at = now;
            return Some(Step::Abandon(volume));
        }
        // Let go earlier, it could not be recorded under our epoch any more.
        let wanted = self.wanted.get(&volume);
        let unrecorded = wanted.is_some_and(|w| w.snapshot_pending) || work.rollback.is_some();
        let sight = Sight::of(status);
        if sight != work.sight {
            (work.sight, work.moved_at) = (sight, now);
        }
        work.whole = is_whole(status) && !unrecorded;
        if work.whole || now >= work.moved_at.plus_ms(STILL_MS) {
            (work.stage, work.moved_at) = (Stage::Leaving, now);
            return Some(Step::LetGo(volume));
        }
        None
    }

    /// A rollback moves.
    pub fn on_rolling(&mut self, now: Moment, volume: VolumeId, percent: u64) {
        let Some(work) = self.at(volume, Stage::Here) else {
            return;
        };
        work.moved_at = now;
        if let Some(wanted) = self.wanted.get_mut(&volume) {
            wanted.note = format!("rolling back, {percent} %");
        }
    }

    /// The reactor has let go of the volume.
    pub fn on_ended(&mut self, now: Moment, volume: VolumeId, how: &Ending) -> Option<Step> {
        let work = self.work.as_mut().filter(|w| w.volume == volume)?;
        if !matches!(work.stage, Stage::Here | Stage::Leaving) {
            return None;
        }
        let (whole, epoch, rollback) = (work.whole, work.epoch, work.rollback);
        let wanted = self.wanted.get(&volume).and_then(|w| w.rollback);
        let is_rolled_back = rollback.is_some() && wanted != rollback;
        work.stage = Stage::Telling;
        match how {
            // Whoever fenced us has told metad.
            Ending::Fenced => {
                self.work = None;
                self.pause(now, volume, PAUSE_MS.1, "another one has taken it");
                return self.next(now);
            }
            Ending::LetGo if whole => self.pause(now, volume, PAUSE_MS.0, ""),
            Ending::LetGo if is_rolled_back => self.pause(now, volume, PAUSE_MS.0, ""),
            Ending::LetGo => self.pause(now, volume, PAUSE_MS.1, "some store is not there"),
            Ending::Failed(why) => self.pause(now, volume, PAUSE_MS.1, why),
        }
        Some(Step::TellGone(volume, epoch))
    }

    /// metad knows that the volume is free.
    pub fn on_told(&mut self, now: Moment, volume: VolumeId) -> Option<Step> {
        self.at(volume, Stage::Telling)?;
        self.work = None;
        self.next(now)
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Moment) -> Option<Step> {
        let Some(work) = &mut self.work else {
            return self.next(now);
        };
        let is_here = matches!(work.stage, Stage::Here | Stage::Leaving);
        if !is_here || now < work.look_at {
            return None;
        }
        work.look_at = now.plus_ms(LOOK_MS);
        Some(Step::Look(work.volume))
    }

    /// When [`Self::on_time`] has something to do.
    pub fn next_deadline(&self) -> Option<Moment> {
        match &self.work {
            None => self.wanted.values().map(|w| w.not_before).min(),
            Some(work) => {
                let is_here = matches!(work.stage, Stage::Here | Stage::Leaving);
                is_here.then_some(work.look_at)
            }
        }
    }

    /// Volumes to bring up to date, with what keeps them from it; the one at work first.
    pub fn notes(&self) -> impl Iterator<Item = (VolumeId, &str)> {
        let at_work = self.work.as_ref().map(|w| w.volume);
        let first = at_work.and_then(|id| self.wanted.get_key_value(&id));
        let rest = self
            .wanted
            .iter()
            .filter(move |(id, _)| Some(**id) != at_work);
        let all = first.into_iter().chain(rest);
        all.map(|(id, w)| (*id, w.note.as_str()))
    }

    /// Name of a volume that is wanted.
    pub fn name(&self, volume: VolumeId) -> Option<&str> {
        self.wanted.get(&volume).map(|w| w.name.as_str())
    }

    fn at(&mut self, volume: VolumeId, stage: Stage) -> Option<&mut Work> {
        let fits = |w: &&mut Work| w.volume == volume && w.stage == stage;
        self.work.as_mut().filter(fits)
    }

    fn pause(&mut self, now: Moment, volume: VolumeId, pause_ms_max: u64, why: &str) {
        if let Some(wanted) = self.wanted.get_mut(&volume) {
            wanted.not_before = now.plus_ms(wanted.pause_ms.min(pause_ms_max));
            wanted.pause_ms = (wanted.pause_ms * 2).min(PAUSE_MS.1);
            why.clone_into(&mut wanted.note);
        }
    }

    /// The volume that has waited longest, if none is at work.
    fn next(&mut self, now: Moment) -> Option<Step> {
        if self.work.is_some() {
            return None;
        }
        let ready = self.wanted.iter().filter(|(_, w)| w.not_before <= now);
        let (volume, _) = ready.min_by_key(|(id, w)| (w.not_before, **id))?;
        let volume = *volume;
        self.work = Some(Work {
            volume,
            stage: Stage::Asking,
            epoch: Epoch(0),
            rollback: None,
            look_at: now,
            sight: Sight::default(),
            moved_at: now,
            whole: false,
        });
        Some(Step::Ask(volume))
    }
}

#[cfg(test)]
mod test;

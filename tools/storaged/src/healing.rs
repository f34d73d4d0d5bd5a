//! Which spoiled block of this server's stores is healed next, and from whom (ADR 0011). Decides; reads,
//! asks and writes nothing by itself. One block at a time: that is the limit of reads in flight and, with
//! a pause after each, of the rate.
//!
//! ```text
//! idle --Look--> looking --spoiled: Ask--> asking --replicas: Fetch--> fetching --bytes: Offer--> offering
//!                   |                        | nobody answers             | refused: the next      | other: the next
//!                   | sound, gone            |                            | none left              | healed, gone
//!                   v                        v                            v                        v
//!                 struck                  a pause                       a pause                  struck
//! ```
//!
//! A finding is struck only when the block is good, or nobody's any more. What cannot be healed stays, and
//! is tried again after pauses that grow.

use shardmap::map::Shape;
use shardmap::units::{Generation, Lba, Moment, Nsid, VolumeId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use store::{Healed, Rot};

/// Findings that are remembered, per store. What is found beyond is found again by the next scrub.
pub const FINDINGS_MAX: usize = 1024;
/// How long a block that a host's read has found is left to the host, which writes it again if it can.
pub const LEFT_TO_HOST_MS: u64 = 10_000;
/// First and longest pause after a block could not be healed.
const PAUSE_MS: (u64, u64) = (5_000, 300_000);
/// Pause between two blocks: two hundred in a second.
const PACE_MS: u64 = 5;
/// How long an answer of control is waited for.
const ANSWER_MS: u64 = 60_000;
/// How long what metad said of a volume's slices is good for.
const REPLICAS_AGE_MS: u64 = 30_000;

/// Where a block is: of which store by its place in the configuration, and what of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Store, by its place in the configuration.
    pub store_index: usize,
    /// Its slice.
    pub nsid: Nsid,
    /// The generation that wrote it, or one that shows it.
    pub generation: Generation,
    /// Block of the volume.
    pub lba: Lba,
}

/// Another slice of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its namespace.
    pub nsid: Nsid,
    /// Its position in the stride set.
    pub position: u16,
    /// Where its storaged is.
    pub address: SocketAddr,
    /// And how that is called.
    pub subsystem_nqn: String,
}

/// The slices of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// How its shards are dealt.
    pub shape: Shape,
    /// All of them, in the order in which they are asked.
    pub slices: Vec<Replica>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the block here; [`Healing::on_looked`].
    Look(Place),
    /// Ask metad for the volume's slices; [`Healing::on_replicas`].
    Ask(VolumeId),
    /// Read the block there; [`Healing::on_fetched`].
    Fetch(Place, Replica),
    /// Hand what was read there to the store here; [`Healing::on_offered`].
    Offer(Place),
}

/// What a look at a block has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// It is what was written, or nobody knows otherwise.
    Sound,
    /// It is not, or cannot be read.
    Spoiled,
    /// The slice or its block is not there any more.
    Gone,
    /// Not now: no memory, a store that stops or is busy.
    Later,
}

/// How a read of another replica ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Its bytes are here.
    Here,
    /// It has none to give.
    Refused,
    /// It does not answer.
    Away,
}

/// What became of a finding, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was written again.
    Healed,
    /// Somebody else has written it.
    Sound,
    /// Nobody has it any more.
    Gone,
    /// It stays, for this reason.
    Stays(&'static str),
}

/// Who found a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finder {
    /// The scrub.
    Scrub,
    /// Somebody's read.
    Read,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealCounters {
    /// Blocks found.
    pub found: u64,
    /// Blocks found that did not fit, to be found again.
    pub not_remembered: u64,
    /// Blocks healed from another replica.
    pub healed: u64,
    /// Blocks that somebody else had made good, or given up.
    pub moot: u64,
    /// Replicas that had something else than what was written here.
    pub other_content: u64,
    /// Replicas that did not answer or refused.
    pub unread: u64,
    /// Times that a block could not be healed.
    pub failed: u64,
}

#[derive(Debug)]
struct Finding {
    volume: VolumeId,
    not_before: Moment,
    /// Next pause.
    pause_ms: u64,
    /// Why it is still there.
    why: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Looking,
    Asking,
    Fetching,
    Offering,
}

#[derive(Debug)]
struct Work {
    place: Place,
    stage: Stage,
    since: Moment,
    /// How many of the slices were asked, and whether any of them answered.
    asked: usize,
    answered: bool,
}

#[derive(Debug)]
struct Known {
    volume: VolumeId,
    at: Moment,
    replicas: Replicas,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Healing {
    findings: BTreeMap<Place, Finding>,
    /// How many of each store.
    counts: BTreeMap<usize, usize>,
    /// When the first of them may be tried: looking at the clock is all that most turns cost.
    due: Option<Moment>,
    work: Option<Work>,
    known: Option<Known>,
    not_before: Moment,
    ends: Vec<(Place, VolumeId, End)>,
    counters: HealCounters,
}

impl Healing {
    /// A block is not what was written there. True if that is news.
    pub fn on_found(&mut self, now: Moment, store_index: usize, rot: &Rot, by: Finder) -> bool {
        let place = Place {
            store_index,
            nsid: rot.nsid,
            generation: rot.generation,
            lba: rot.lba,
        };
        if self.findings.contains_key(&place) {
            return false;
        }
        if self.findings_of(store_index) >= FINDINGS_MAX {
            self.counters.not_remembered += 1;
            return false;
        }
        self.counters.found += 1;
        let wait_ms = match by {
            Finder::Scrub => 0,
            Finder::Read => LEFT_TO_HOST_MS,
        };
        let finding = Finding {
            volume: rot.volume,
            not_before: now.plus_ms(wait_ms),
            pause_ms: PAUSE_MS.0,
            why: "",
        };
        self.findings.insert(place, finding);
        *self.counts.entry(store_index).or_default() += 1;
        self.refresh();
        true
    }

    /// How many blocks of a store are known to be spoiled.
    pub fn findings_of(&self, store_index: usize) -> usize {
        self.counts.get(&store_index).copied().unwrap_or(0)
    }

    fn refresh(&mut self) {
        let first = self.findings.values().map(|f| f.not_before).min();
        self.due = first.map(|at| at.max(self.not_before));
    }

    /// What was counted.
    pub const fn counters(&self) -> HealCounters {
        self.counters
    }

    /// What became of findings since this was last asked.
    pub fn take_ends(&mut self) -> Vec<(Place, VolumeId, End)> {
        std::mem::take(&mut self.ends)
    }

    /// Whether a block is at work.
    pub const fn is_working(&self) -> bool {
        self.work.is_some()
    }

    /// Time has passed, or something was found.
    pub fn on_time(&mut self, now: Moment) -> Option<Step> {
        match &self.work {
            None => self.next(now),
            Some(work) if work.stage == Stage::Asking && now >= work.since.plus_ms(ANSWER_MS) => {
                self.postpone(now, "metad does not say who has the volume")
            }
            Some(_) => None,
        }
    }

    /// When [`Self::on_time`] has something to do.
    pub fn next_deadline(&self) -> Option<Moment> {
        match &self.work {
            None => self.due,
            Some(work) if work.stage == Stage::Asking => Some(work.since.plus_ms(ANSWER_MS)),
            Some(_) => None,
        }
    }

    /// The block was read here.
    pub fn on_looked(&mut self, now: Moment, looked: Looked) -> Option<Step> {
        let place = self.at(Stage::Looking)?;
        match looked {
            Looked::Sound => self.strike(now, End::Sound),
            Looked::Gone => self.strike(now, End::Gone),
            Looked::Later => self.postpone(now, "its store is busy"),
            Looked::Spoiled => {
                let volume = self.findings[&place].volume;
                let fresh = self.known.as_ref().is_some_and(|known| {
                    known.volume == volume && now < known.at.plus_ms(REPLICAS_AGE_MS)
                });
                if fresh {
                    return self.fetch(now);
                }
                self.go(now, Stage::Asking);
                Some(Step::Ask(volume))
            }
        }
    }

    /// metad's answer; `None`: there is no such volume, or metad does not answer.
    pub fn on_replicas(
        &mut self,
        now: Moment,
        volume: VolumeId,
        replicas: Option<Replicas>,
    ) -> Option<Step> {
        let place = self.at(Stage::Asking)?;
        if self.findings[&place].volume != volume {
            return None; // an answer that was given up
        }
        let Some(replicas) = replicas else {
            return self.postpone(now, "metad does not say who has the volume");
        };
        self.known = Some(Known {
            volume,
            at: now,
            replicas,
        });
        self.fetch(now)
    }

    /// The other replica was read.
    pub fn on_fetched(&mut self, now: Moment, fetched: Fetched) -> Option<Step> {
        let place = self.at(Stage::Fetching)?;
        match fetched {
            Fetched::Here => {
                self.go(now, Stage::Offering);
                Some(Step::Offer(place))
            }
            Fetched::Refused | Fetched::Away => {
                self.counters.unread += 1;
                self.fetch(now)
            }
        }
    }

    /// The store has looked at the bytes; `None`: it could not, or its device does not take them.
    pub fn on_offered(&mut self, now: Moment, healed: Option<Healed>) -> Option<Step> {
        self.at(Stage::Offering)?;
        match healed {
            Some(Healed::Written) => self.strike(now, End::Healed),
            Some(Healed::Gone) => self.strike(now, End::Gone),
            Some(Healed::Unknown) => self.postpone(now, "nobody knows what was written there"),
            None => self.postpone(now, "its store could not write it"),
            Some(Healed::Other) => {
                self.counters.other_content += 1;
                if let Some(work) = &mut self.work {
                    work.answered = true;
                }
                self.fetch(now)
            }
        }
    }

    fn at(&self, stage: Stage) -> Option<Place> {
        let work = self.work.as_ref().filter(|work| work.stage == stage)?;
        Some(work.place)
    }

    fn go(&mut self, now: Moment, stage: Stage) {
        let work = self.work.as_mut().expect("a block is at work");
        (work.stage, work.since) = (stage, now);
    }

    /// The next replica that has the block's shard.
    fn fetch(&mut self, now: Moment) -> Option<Step> {
        let (work, known) = (self.work.as_mut()?, self.known.as_ref()?);
        let place = work.place;
        let shape = known.replicas.shape;
        let shard = shape.shard_of(place.lba);
        let has = |r: &Replica| r.nsid != place.nsid && shape.holds(r.position, shard);
        let mut left = known.replicas.slices.iter().enumerate().skip(work.asked);
        if let Some((nth, replica)) = left.find(|(_, replica)| has(replica)) {
            work.asked = nth + 1;
            let step = Step::Fetch(place, replica.clone());
            self.go(now, Stage::Fetching);
            return Some(step);
        }
        let why = match work.answered {
            true => "no other replica has what was written there",
            false => "no other replica can be read",
        };
        self.postpone(now, why)
    }

    /// The block is done with.
    fn strike(&mut self, now: Moment, end: End) -> Option<Step> {
        let work = self.work.take().expect("a block is at work");
        let finding = self.findings.remove(&work.place).expect("not struck yet");
        match end {
            End::Healed => self.counters.healed += 1,
            End::Sound | End::Gone | End::Stays(_) => self.counters.moot += 1,
        }
        self.ends.push((work.place, finding.volume, end));
        let count = self.counts.get_mut(&work.place.store_index);
        *count.expect("it was counted") -= 1;
        self.rest(now)
    }

    /// The block stays, and is tried again.
    fn postpone(&mut self, now: Moment, why: &'static str) -> Option<Step> {
        let work = self.work.take().expect("a block is at work");
        let finding = self.findings.get_mut(&work.place).expect("not struck yet");
        self.counters.failed += 1;
        finding.not_before = now.plus_ms(finding.pause_ms);
        finding.pause_ms = (finding.pause_ms * 2).min(PAUSE_MS.1);
        if finding.why != why {
            finding.why = why;
            self.ends
                .push((work.place, finding.volume, End::Stays(why)));
        }
        self.rest(now)
    }

    fn rest(&mut self, now: Moment) -> Option<Step> {
        self.not_before = now.plus_ms(PACE_MS);
        self.refresh();
        self.next(now)
    }

    /// The block that has waited longest, if none is at work.
    fn next(&mut self, now: Moment) -> Option<Step> {
        if self.work.is_some() || self.due.is_none_or(|due| now < due) {
            return None;
        }
        let ready = self.findings.iter().filter(|(_, f)| f.not_before <= now);
        let (place, _) = ready.min_by_key(|(place, f)| (f.not_before, **place))?;
        let place = *place;
        self.work = Some(Work {
            place,
            stage: Stage::Looking,
            since: now,
            asked: 0,
            answered: false,
        });
        Some(Step::Look(place))
    }
}

#[cfg(test)]
mod test;

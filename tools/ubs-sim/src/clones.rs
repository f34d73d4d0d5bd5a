//! Clones of snapshots (ADR 0010) that nobody attaches. Each shows what its snapshot showed when it was made,
//! while stores crash, are lost and come back, and merge what is beside and below it; also when the snapshot
//! itself was deleted. Stores that were away get their slice of a clone from their storaged, and have it
//! brought up to date by one of the storageds.

use crate::metad::{VOLUME, replicas_of};
use crate::plan::index;
use crate::rare::Rare;
use crate::sim::Sim;
use control::core::{Command, NewSpaceLimits, Origin, Phase, Refusal, RefusalCode, Reply, Volume};
use reactor::sim::Prng;
use shardmap::units::{Generation, VolumeId};
use std::collections::BTreeMap;

/// Makes the user's chance of clones another one than the world's.
const CLONE_SEED: u64 = 0x636c_6f6e_6573_0000;
/// Seeds in which clones are made, modulo 16, if there are snapshots and metad is not restored: a backup may
/// be older than a clone, whose slices are then strangers.
const CLONE_SEEDS: [u64; 4] = [7, 10, 13, 15];
/// Clones at a time, at most.
const CLONES_MAX: usize = 3;
/// What stores may promise, in percent of their size: clones are as large as their volume.
const OVERCOMMIT_PERCENT: u32 = 1_000;
/// Virtual seconds in which a clone gets whole, once its volume is: its storageds pause for up to 300 s after
/// a failure.
const WHOLE_S: u64 = 700;

/// One that was made.
#[derive(Debug)]
struct Clone {
    of: Generation,
    /// By block; zero elsewhere.
    image: BTreeMap<u64, u64>,
}

/// The user of clones, and the clones that there are.
#[derive(Debug)]
pub(crate) struct Clones {
    user: Prng,
    is_on: bool,
    made: u32,
    all: BTreeMap<VolumeId, Clone>,
}

impl Clones {
    pub(crate) fn draw(seed: u64) -> Self {
        Self {
            user: Prng::new(seed ^ CLONE_SEED),
            is_on: CLONE_SEEDS.contains(&(seed % 16)),
            made: 0,
            all: BTreeMap::new(),
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.all.len() as u64
    }
}

impl Sim {
    fn has_clones(&self) -> bool {
        self.clones.is_on && self.backups.is_none() && self.recorder.is_none()
    }

    /// Before there are volumes.
    pub(crate) fn allow_clones(&mut self) {
        if self.has_clones() {
            let limits = Command::SetSpaceLimits(NewSpaceLimits {
                overcommit_percent: Some(OVERCOMMIT_PERCENT),
                high_water_percent: None,
            });
            assert_eq!(self.metad.init(limits), Reply::Done);
        }
    }

    /// The user of snapshots has come by: clones are looked at; perhaps one is made or deleted.
    pub(crate) fn use_clones(&mut self) {
        if !self.has_clones() || !self.metad.up || self.calm {
            return;
        }
        self.check_clones("while it is used");
        let complete = self.deletable_snapshots();
        let user = &mut self.clones.user;
        let full = self.clones.all.len() >= CLONES_MAX;
        if full || (!self.clones.all.is_empty() && user.chance(1, 4)) {
            let nth = index(user, self.clones.all.len());
            let id = *self.clones.all.keys().nth(nth).expect("below the count");
            self.delete_clone(id);
        } else if !complete.is_empty() && user.chance(1, 2) {
            let of = complete[index(user, complete.len())];
            self.make_clone(of);
        }
    }

    fn make_clone(&mut self, of: Generation) {
        let Some(image) = self.image_of(of, "when it is cloned") else {
            return;
        };
        // Its stores may be down, so that nobody can look; the user comes by again.
        if self.log.touched().any(|block| !image.contains_key(&block)) {
            return;
        }
        self.clones.made += 1;
        let name = format!("clone{}", self.clones.made);
        let mut id = *b"simulated clone ";
        id[12..].copy_from_slice(&self.clones.made.to_be_bytes());
        let (id, volume) = (VolumeId(id), VOLUME);
        let origin = Origin {
            volume,
            generation: of,
        };
        let reply = self.tell_metad(Command::CreateClone { id, name, origin });
        if reply == Reply::Volume(id) {
            self.rare.note(Rare::Cloned);
            self.clones.all.insert(id, Clone { of, image });
            return;
        }
        // Clones that a store does not let go of count, too, until stores may promise no more.
        let full = |r: &Refusal| r.code == RefusalCode::NoRoom;
        if matches!(&reply, Reply::Refused(refusal) if full(refusal)) {
            return self.say(format_args!("no clone of {of}: {reply:?}"));
        }
        self.find(format!("no clone of {of}: {reply:?}"));
    }

    /// Nobody looks at it any more, whether it goes at once or not.
    fn delete_clone(&mut self, id: VolumeId) {
        let reply = self.tell_metad(Command::DeleteVolume {
            volume: id,
            with_snapshots: false,
        });
        if reply != Reply::Done {
            return self.find(format!("a clone is not deleted: {reply:?}"));
        }
        self.clones.all.remove(&id);
    }

    /// Also deletes those that the user still has of a snapshot.
    pub(crate) fn delete_clones_of(&mut self, of: Generation) {
        let all = self.clones.all.iter();
        let ids: Vec<VolumeId> = all.filter(|(_, c)| c.of == of).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.delete_clone(id));
    }

    /// What each clone shows, on every in-sync store that can be asked, is what its snapshot showed.
    pub(crate) fn check_clones(&mut self, when: &str) {
        let all = self.clones.all.iter();
        let found = all.filter_map(|(id, clone)| self.look_at_clone(*id, clone).err());
        if let Some(why) = found.collect::<Vec<_>>().first() {
            self.find(format!("{when}: {why}"));
        }
    }

    fn look_at_clone(&self, id: VolumeId, clone: &Clone) -> Result<(), String> {
        let (volume, of) = (&self.metad.state.volumes[&id], self.recorded());
        for block in self.log.touched() {
            let wanted = clone.image.get(&block).copied().unwrap_or(0);
            // On the same stores as what it was made from.
            let slices = replicas_of(volume, block).zip(replicas_of(of, block));
            for ((store, nsid), (_, parent)) in slices {
                let whole = self.slice_facts(store, nsid) == Some(false);
                let failed = || self.has_failed(store, parent, block, clone.of);
                if !whole || !volume.isr.contains(&store) || failed() {
                    continue;
                }
                let value = self.peek(store, nsid, block, Generation(0))?;
                if value != wanted {
                    let (name, of) = (&volume.name, clone.of);
                    return Err(format!(
                        "block {block} of {name} is {value} on {store}, and was {wanted} in {of}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether every clone has all its slices, and they are in sync: a store may be lost now.
    pub(crate) fn clones_are_whole(&self) -> bool {
        let volumes = self.metad.state.volumes.iter();
        let mut clones = volumes.filter(|(id, _)| **id != VOLUME);
        clones.all(|(_, volume)| self.is_whole_clone(volume))
    }

    fn is_whole_clone(&self, volume: &Volume) -> bool {
        let mut slices = volume.map.stores.iter().zip(&volume.slices);
        volume.phase == Phase::Ready
            && volume.out_of_sync().next().is_none()
            && slices.all(|(store, nsid)| self.slice_facts(*store, *nsid) == Some(false))
    }

    /// In the end all are whole and show what they must; then they go.
    pub(crate) fn prove_clones(&mut self) {
        let others = self.metad.state.volumes.len() > 1;
        if !others || self.found.is_some() {
            return;
        }
        let seconds = WHOLE_S + self.plan.copies_s() * self.clones.count();
        self.must(seconds, "clones are whole", |sim| {
            let volumes = &sim.metad.state.volumes;
            let mut clones = sim.clones.all.keys();
            clones.all(|id| sim.is_whole_clone(&volumes[id]))
        });
        self.check_clones("at the end");
        for id in self.clones.all.keys().copied().collect::<Vec<_>>() {
            self.delete_clone(id);
        }
        self.must_soon("clones are gone", |sim| sim.metad.state.volumes.len() == 1);
    }
}

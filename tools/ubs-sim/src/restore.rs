//! metad comes back from a backup: its replicated state is that of an earlier moment, and begins a new
//! lineage. The stores know better, and must be asked before anything is served.
//!
//! Restored is only what docs/replication.md says can be: no snapshot was made or deleted since the
//! backup, and every in-sync store has its medium.

use crate::metad::VOLUME;
use crate::rare::Rare;
use crate::sim::{Sim, Task};
use control::core::{Command, Reply, State};
use reactor::sim::Prng;
use shardmap::generations::VolumeGenerations;
use shardmap::units::{Generation, Nsid, StoreId};

const SECOND_NS: u64 = 1_000_000_000;
/// Pause before a backup is made, and its age when metad is restored from it, at least and at most.
const PAUSE_NS: (u64, u64) = (10 * SECOND_NS, 150 * SECOND_NS);
const AGE_NS: (u64, u64) = (SECOND_NS / 10, 60 * SECOND_NS);
/// Pause before it is looked again whether metad can be restored now.
const AGAIN_NS: u64 = SECOND_NS / 2;
/// For so long nobody wants the volume after that, at least and at most.
const IDLE_NS: (u64, u64) = (SECOND_NS / 2, 15 * SECOND_NS);

/// What metad was.
#[derive(Debug)]
struct Backup {
    state: State,
    index: u64,
    made_ns: u64,
}

/// Backups of metad.
#[derive(Debug)]
pub(crate) struct Backups {
    chance: Prng,
    kept: Option<Backup>,
    /// The newest history that there was.
    lineage: u16,
}

impl Backups {
    /// `None`: nobody restores metad. `needed`: a script does.
    pub(crate) fn draw(mut chance: Prng, needed: bool) -> Option<Self> {
        let restores = chance.chance(1, 3);
        (restores || needed).then_some(Self {
            chance,
            kept: None,
            lineage: 1,
        })
    }
}

/// What of the generations a backup must not lack or have too much: all but whether one is complete.
fn generations(of: &VolumeGenerations) -> (Generation, Vec<Generation>) {
    (of.head, of.snapshots.keys().copied().collect())
}

impl Sim {
    /// The next backup is due in a while.
    pub(crate) fn backup_later(&mut self) {
        if let Some(backups) = &mut self.backups {
            let pause = backups.chance.within(PAUSE_NS.0, PAUSE_NS.1);
            self.schedule(pause, Task::Backup);
        }
    }

    pub(crate) fn on_backup(&mut self) {
        if self.calm {
            return;
        }
        self.back_up();
        let Some(backups) = &mut self.backups else {
            return;
        };
        let age = backups.chance.within(AGE_NS.0, AGE_NS.1);
        self.schedule(age, Task::Restore);
    }

    /// Keeps metad's state of now.
    pub(crate) fn back_up(&mut self) {
        let backup = Backup {
            state: self.metad.state.clone(),
            index: self.metad.index,
            made_ns: self.world.now_ns(),
        };
        if let Some(backups) = &mut self.backups {
            backups.kept = Some(backup);
        }
    }

    pub(crate) fn on_restore(&mut self) {
        if self.calm {
            return;
        }
        let Some(backup) = self.backups.as_ref().and_then(|b| b.kept.as_ref()) else {
            return; // metad was restored from it earlier
        };
        let then = generations(&backup.state.volumes[&VOLUME].generations());
        if then != generations(&self.recorded().generations()) {
            return self.on_backup(); // it would lose them
        }
        if !self.stores_can_tell() {
            return self.schedule(AGAIN_NS, Task::Restore);
        }
        self.restore();
        self.backup_later();
    }

    /// Whether there is a backup that does not know of this member.
    pub(crate) fn backup_lacks(&self, member: StoreId) -> bool {
        let kept = self.backups.as_ref().and_then(|b| b.kept.as_ref());
        kept.is_some_and(|b| !b.state.volumes[&VOLUME].isr.contains(&member))
    }

    /// Whether the newest membership can be found on the stores. If a medium was lost once, all that are in
    /// sync must have theirs, and be stamped as what they are.
    fn stores_can_tell(&self) -> bool {
        let volume = self.recorded();
        let mut slices = volume.map.stores.iter().zip(&volume.slices);
        let stamped = |(store, nsid): (&StoreId, Nsid)| {
            let slice = self.with_store(*store, |it| it.slice(nsid)).flatten();
            let of_now = slice.is_some_and(|s| s.stamp.seq == volume.seq && !s.incomplete);
            !volume.isr.contains(store) || of_now
        };
        let told = slices.all(|(store, nsid)| stamped((store, *nsid)));
        volume.verified && (self.wiped.is_none() || told)
    }

    /// metad's state is put back and a new lineage begins, in which nobody has the volume. Sometimes the
    /// operator has it detached for a while; or who had it, or is to have it again, takes it anew.
    fn restore(&mut self) {
        let backups = self.backups.as_mut().expect("metad has backups");
        let backup = backups.kept.take().expect("just seen");
        backups.lineage += 1;
        let lineage = backups.lineage;
        let idle_ns = backups.chance.within(IDLE_NS.0, IDLE_NS.1);
        let detaches = backups.chance.chance(1, 2);
        let age_ms = (self.world.now_ns() - backup.made_ns) / 1_000_000;
        self.faults_count += 1;
        self.say(format_args!(
            "FAULT metad is restored from a backup that is {age_ms} ms old"
        ));
        self.rare.note(Rare::Restored);
        (self.metad.state, self.metad.index) = (backup.state, backup.index);
        self.record_restore();
        let begun = self.tell_metad(Command::BeginLineage { lineage });
        if begun != Reply::Done {
            return self.find(format!("lineage {lineage} does not begin: {begun:?}"));
        }
        if detaches || self.recorded().desired.is_none() {
            self.leave_for(idle_ns);
        }
    }

    /// The newest membership was found on the stores.
    pub(crate) fn note_found(&mut self, isr: &std::collections::BTreeSet<StoreId>) {
        let found = if *isr == self.recorded().isr {
            Rare::FoundAsInBackup
        } else {
            Rare::FoundNewer
        };
        self.rare.note(found);
    }
}

//! Generations of a volume: the head takes writes, each snapshot is a generation that has ended.
//!
//! ```text
//! created by metad's commit:  head g ──► snapshot g, pending + head g+1
//! whoever has the volume:     pending ──► complete: the same on every in-sync replica, for ever
//! deleted:                    complete ──► gone; the number is not used again
//! ```

use crate::units::Generation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Generation of a volume that never had a snapshot.
pub const FIRST_GENERATION: Generation = Generation(1);

/// Snapshots of one volume. A store has room for 1024 of a slice; the rest is for those that were
/// deleted while it was away.
pub const SNAPSHOTS_MAX: usize = 1000;

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotState {
    /// Writes of its generation may still be under way.
    Pending,
    /// It never changes any more.
    Complete,
}

/// What who has a volume tells metad of its pending snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStep {
    /// No write begins until metad says that all volumes of the group are cut (ADR 0012).
    Held,
    /// It is the same on every in-sync store, for ever.
    Complete {
        /// Writes waited, from [`Self::Held`] until the cut was heard of.
        held: bool,
    },
}

/// What a volume is rolled back with (ADR 0015).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// The snapshot that it is to show.
    pub to: Generation,
    /// The snapshot of what it showed before. What differs between the two is to be written.
    pub before: Generation,
}

/// The generations of a volume. One below the head that is not among the snapshots is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeGenerations {
    /// Takes the writes.
    pub head: Generation,
    /// The snapshots. At most one is pending: the generation before the head.
    pub snapshots: BTreeMap<Generation, SnapshotState>,
    /// The pending snapshot is to be of one moment with those of other volumes, and not all of these
    /// are known to wait: no write may carry the head (ADR 0012). Of metad only; a store knows no groups.
    pub hold: bool,
}

impl Default for VolumeGenerations {
    fn default() -> Self {
        Self {
            head: FIRST_GENERATION,
            snapshots: BTreeMap::new(),
            hold: false,
        }
    }
}

impl VolumeGenerations {
    /// The snapshot that is pending.
    pub fn pending(&self) -> Option<Generation> {
        let newest = self.snapshots.last_key_value();
        let pending = newest.filter(|(_, state)| **state == SnapshotState::Pending);
        pending.map(|(generation, _)| *generation)
    }

    /// The complete snapshots, ascending.
    pub fn complete(&self) -> impl DoubleEndedIterator<Item = Generation> + '_ {
        let all = self.snapshots.iter();
        all.filter(|(_, state)| **state == SnapshotState::Complete)
            .map(|(generation, _)| *generation)
    }

    /// The head ends and this generation is the head; the head again does nothing.
    pub fn begin(&mut self, head: Generation) {
        if head > self.head {
            self.snapshots.insert(self.head, SnapshotState::Pending);
            self.head = head;
        }
    }

    /// A snapshot that is there is complete.
    pub fn set_complete(&mut self, snapshot: Generation) {
        if let Some(state) = self.snapshots.get_mut(&snapshot) {
            *state = SnapshotState::Complete;
        }
    }

    /// Whether this is what metad can have: a head from the first on, snapshots below it and not too
    /// many, none pending but the one before the head, and nothing held without one.
    pub fn is_sound(&self) -> bool {
        let pending =
            |(_, state): &(&Generation, &SnapshotState)| **state == SnapshotState::Pending;
        let before_head = |(generation, _): (&Generation, _)| generation.0 + 1 == self.head.0;
        self.head >= FIRST_GENERATION
            && self.snapshots.len() <= SNAPSHOTS_MAX
            && self
                .snapshots
                .keys()
                .all(|g| *g >= FIRST_GENERATION && *g < self.head)
            && self.snapshots.iter().filter(pending).all(before_head)
            && (!self.hold || self.pending().is_some())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn generations(head: u32, snapshots: &[(u32, SnapshotState)]) -> VolumeGenerations {
        let snapshots = snapshots.iter();
        VolumeGenerations {
            head: Generation(head),
            snapshots: snapshots
                .map(|(g, state)| (Generation(*g), *state))
                .collect(),
            hold: false,
        }
    }

    #[test]
    fn only_the_generation_before_the_head_may_be_pending() {
        use SnapshotState::{Complete, Pending};
        assert!(VolumeGenerations::default().is_sound());
        let one = generations(5, &[(2, Complete), (4, Pending)]);
        assert!(one.is_sound());
        assert_eq!(one.pending(), Some(Generation(4)));
        assert_eq!(one.complete().collect::<Vec<_>>(), [Generation(2)]);
        assert!(!generations(5, &[(3, Pending)]).is_sound());
        assert!(!generations(5, &[(5, Complete)]).is_sound());
        assert!(!generations(5, &[(0, Complete)]).is_sound());
        assert!(!generations(0, &[]).is_sound());
        let held = |generations| VolumeGenerations {
            hold: true,
            ..generations
        };
        assert!(held(one).is_sound());
        assert!(!held(generations(5, &[(4, Complete)])).is_sound());
    }
}

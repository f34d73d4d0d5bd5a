//! Which generations of slices are let go: those that metad has deleted. Decides; asks no store by
//! itself.
//!
//! metad is the only one who deletes, and what it has deleted it never has again, so an older answer
//! of it can only make this do less.

use shardmap::generations::VolumeGenerations;
use shardmap::units::{Generation, Nsid};
use std::collections::{BTreeMap, BTreeSet};
use store::GenerationState;

/// What is to be asked of the store of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Which generations it has; [`Tidy::found`].
    Read(Nsid),
    /// To drop one; [`Tidy::dropped`].
    Drop(Nsid, Generation),
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounters {
    /// Generations of slices that were dropped.
    pub dropped: u64,
    /// Those that a store did not drop; tried again when something of the slice changes.
    pub refused: u64,
}

/// The machine.
#[derive(Debug, Default)]
pub(crate) struct Tidy {
    wanted: BTreeMap<Nsid, VolumeGenerations>,
    /// To be looked at.
    due: BTreeSet<Nsid>,
    /// To be dropped.
    drops: BTreeSet<(Nsid, Generation)>,
    pub(crate) counters: DropCounters,
}

impl Tidy {
    /// metad has these generations.
    pub(crate) fn want(&mut self, nsid: Nsid, generations: VolumeGenerations) {
        self.wanted.insert(nsid, generations);
        self.due.insert(nsid);
    }

    /// A generation of the slice was completed, or the slice as a whole: what could not be dropped
    /// before may be dropped now.
    pub(crate) fn completed(&mut self, nsid: Nsid) {
        if self.wanted.contains_key(&nsid) {
            self.due.insert(nsid);
        }
    }

    /// The slice is gone.
    pub(crate) fn forget(&mut self, nsid: Nsid) {
        self.wanted.remove(&nsid);
        self.due.remove(&nsid);
    }

    /// What the store has of the slice, incomplete or not: one that is brought up to date slowly would
    /// fill its store with snapshots that come and go meanwhile. What others show does not change with
    /// it, and who gives the store a snapshot that goes is refused, and gives it the ones that are left.
    pub(crate) fn found(&mut self, nsid: Nsid, has: &[GenerationState]) {
        let Some(wanted) = self.wanted.get(&nsid) else {
            return;
        };
        // One that is pending here was completed and deleted while the store was away; nobody will complete
        // it here.
        let deleted = |g: &&GenerationState| {
            g.generation < wanted.head && !wanted.snapshots.contains_key(&g.generation)
        };
        // The last one is the store's head.
        let snapshots = has.split_last().map_or(&[][..], |(_, snapshots)| snapshots);
        let deleted = snapshots.iter().filter(deleted);
        self.drops.extend(deleted.map(|g| (nsid, g.generation)));
    }

    /// A store has dropped a generation, or why it has not.
    pub(crate) fn dropped(&mut self, nsid: Nsid, refused: Option<String>) {
        match refused {
            None => self.counters.dropped += 1,
            Some(why) => {
                self.counters.refused += 1;
                tracing::warn!(%nsid, why, "a deleted generation stays for now");
            }
        }
    }

    /// The next thing to ask.
    pub(crate) fn next(&mut self) -> Option<Ask> {
        if let Some((nsid, generation)) = self.drops.pop_first() {
            tracing::info!(%nsid, %generation, "dropping a deleted generation");
            return Some(Ask::Drop(nsid, generation));
        }
        self.due.pop_first().map(Ask::Read)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use shardmap::generations::SnapshotState;

    const N: Nsid = Nsid(7);

    fn wanted(head: u32, snapshots: &[u32]) -> VolumeGenerations {
        let complete = |g: &u32| (Generation(*g), SnapshotState::Complete);
        VolumeGenerations {
            head: Generation(head),
            snapshots: snapshots.iter().map(complete).collect(),
            hold: false,
        }
    }

    /// Snapshots (those that are pending negative) and the head.
    fn has(generations: &[i32]) -> Vec<GenerationState> {
        let state = |g: &i32| GenerationState {
            generation: Generation(g.unsigned_abs()),
            pending: *g < 0,
            used_blocks: 0,
        };
        generations.iter().map(state).collect()
    }

    fn asked(tidy: &mut Tidy) -> Vec<Ask> {
        std::iter::from_fn(|| tidy.next()).collect()
    }

    fn drop_of(generation: u32) -> Ask {
        Ask::Drop(N, Generation(generation))
    }

    #[test]
    fn what_metad_has_deleted_is_dropped_and_nothing_else() {
        let mut tidy = Tidy::default();
        tidy.want(N, wanted(6, &[2, 5]));
        assert_eq!(asked(&mut tidy), [Ask::Read(N)]);
        tidy.found(N, &has(&[1, 2, 3, 5, 6]));
        assert_eq!(asked(&mut tidy), [drop_of(1), drop_of(3)]);
        tidy.dropped(N, None);
        tidy.dropped(N, Some("no".into()));
        let counted = DropCounters {
            dropped: 1,
            refused: 1,
        };
        assert_eq!(tidy.counters, counted);
    }

    #[test]
    fn the_stores_head_and_those_from_metads_head_on_stay() {
        let mut tidy = Tidy::default();
        tidy.want(N, wanted(4, &[]));
        assert_eq!(asked(&mut tidy), [Ask::Read(N)]);
        tidy.found(N, &has(&[3]));
        assert_eq!(asked(&mut tidy), [], "it is behind: 3 is its head");
        tidy.completed(N);
        assert_eq!(asked(&mut tidy), [Ask::Read(N)]);
        tidy.found(N, &has(&[3, -4, 5]));
        assert_eq!(asked(&mut tidy), [drop_of(3)], "metad's news of 4 is old");
    }

    #[test]
    fn one_that_was_deleted_before_the_store_could_complete_it_goes_too() {
        let mut tidy = Tidy::default();
        tidy.want(N, wanted(6, &[5]));
        assert_eq!(asked(&mut tidy), [Ask::Read(N)]);
        tidy.found(N, &has(&[-3, -5, 6]));
        assert_eq!(asked(&mut tidy), [drop_of(3)]);
    }

    #[test]
    fn a_slice_that_is_gone_is_forgotten() {
        let mut tidy = Tidy::default();
        tidy.want(N, wanted(4, &[]));
        assert_eq!(asked(&mut tidy), [Ask::Read(N)]);
        tidy.forget(N);
        tidy.completed(N);
        tidy.found(N, &has(&[3, 4]));
        assert_eq!(asked(&mut tidy), []);
    }
}

//! Clones. A slice may begin with what a complete snapshot of another slice shows, its *parent*: a block
//! that is absent in all its generations is looked for there, and so on. Nothing is copied, and nothing
//! of the parent's is ever changed through a clone: what a clone writes or zeroes is in cells of its own.
//!
//! Nothing may be read through a parent that lacks something. So a clone's slice is made only while its
//! parent is here, not incomplete, and has the snapshot complete; from then on the parent is neither
//! removed nor said to be incomplete, and the snapshot is not dropped, before the clone's slice is gone.
//! Opening checks that it is so.

use super::Core;
use super::facts::{Parent, SliceSpec, StoreFault};
use super::format::page::PRESENT;
use super::generations::Change;
use super::leaf::{known_lanes, seen_through, uniform};
use super::slice::Slice;
use crate::limits::PARENTS_MAX;
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{Lba, Nsid};
use smallvec::SmallVec;

/// A slice and its parents, in the order in which a block is looked for, each with the generation in which
/// it is read.
pub(super) type Lineage<'a> = SmallVec<[(&'a Slice, u32); 2]>;

/// The states of an extent's blocks as a lineage shows them: of the extent in which this block is.
pub(super) fn shown(lineage: &[(&Slice, u32)], lba: Lba) -> u32 {
    let mut states = 0;
    for (slice, generation) in lineage {
        if known_lanes(states) == uniform(PRESENT) {
            break;
        }
        // All have the same shards.
        let (leaf, index) = slice.locate(lba);
        if let Some(leaf) = slice.leaves.get(&leaf) {
            states = seen_through(states, leaf.states(index, &(1..=*generation)));
        }
    }
    states
}

/// Whether a slice can be read as the parent of clones.
fn is_whole(parent: &Slice, generation: u32) -> bool {
    parent.generations.snapshots().get(&generation) == Some(&false) && !parent.incomplete
}

/// What must be equal in a slice and its parent.
fn have_same_shards(clone: &SliceSpec, parent: &SliceSpec) -> bool {
    let of = |s: &SliceSpec| (s.shape, s.position);
    of(clone) == of(parent) && clone.volume != parent.volume
}

impl Core {
    /// A slice in a generation, and where a read goes on from there.
    pub(super) fn lineage(&self, nsid: u32, generation: u32) -> Lineage<'_> {
        let mut lineage = Lineage::new();
        let mut next = Some((nsid, generation));
        while let Some((nsid, generation)) = next {
            let slice = &self.slices[&nsid];
            lineage.push((slice, generation));
            let parent = slice.spec.parent;
            next = parent.map(|p| (p.nsid.0, p.generation.0));
        }
        lineage
    }

    /// A clone that needs the slice, or that generation of it.
    pub(super) fn clone_of(&self, nsid: u32, generation: Option<u32>) -> Option<Nsid> {
        let shows = |p: Parent| p.nsid.0 == nsid && generation.is_none_or(|g| p.generation.0 == g);
        let mut slices = self.slices.values();
        let clone = slices.find(|s| s.spec.parent.is_some_and(shows));
        clone.map(|s| s.spec.nsid)
    }

    /// Refuses what would take from clones what they show.
    pub(super) fn check_not_shown(
        &self,
        nsid: Nsid,
        generation: Option<u32>,
    ) -> Result<(), StoreFault> {
        match self.clone_of(nsid.0, generation) {
            None => Ok(()),
            Some(clone) => Err(StoreFault::HasClones { nsid, clone }),
        }
    }

    /// Whether a slice that is not here yet may be made: what it is a clone of is whole, and stays.
    pub(super) fn check_parent(&self, spec: &SliceSpec) -> Result<(), StoreFault> {
        let Some(parent) = spec.parent else {
            return Ok(());
        };
        let nsid = spec.nsid;
        let generation = parent.generation.0;
        let found = self.slices.get(&parent.nsid.0);
        let whole = |s: &&Slice| is_whole(s, generation) || !stands(Mechanism::CloneParent);
        let found = found.filter(|s| s.removing.is_none()).filter(whole);
        let found = found.filter(|s| !s.changes.is_completing());
        let stays = |s: &&Slice| !s.changes.is_running(Change::Drop(generation));
        let Some(found) = found.filter(stays) else {
            return Err(StoreFault::ParentNotComplete { nsid, parent });
        };
        let bad = |why| Err(StoreFault::BadSpec { nsid, why });
        if !have_same_shards(spec, &found.spec) {
            return bad("a clone has the shards of its parent, and is another volume");
        }
        if self.lineage(parent.nsid.0, generation).len() > PARENTS_MAX {
            return bad("a clone of a clone of a clone, too many times");
        }
        Ok(())
    }

    /// The first slice whose parent is not as a parent must be, if any. Parents have lower numbers, so
    /// that this ends.
    pub(super) fn lost_parent(&self) -> Option<&Slice> {
        self.slices.values().find(|slice| {
            let Some(parent) = slice.spec.parent else {
                return false;
            };
            let found = self.slices.get(&parent.nsid.0);
            let found = found.filter(|s| have_same_shards(&slice.spec, &s.spec));
            !found.is_some_and(|s| is_whole(s, parent.generation.0))
        })
    }
}

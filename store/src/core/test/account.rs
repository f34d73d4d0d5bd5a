//! What space is for: the figures add up at any moment, and are those of the dull model when nothing is
//! under way.

use super::device::BLOCK;
use super::model::Model;
use super::world::World;
use crate::core::facts::SliceSpace;
use crate::core::io::{Answer, Command};
use shardmap::units::{EXTENT_BYTES, Generation};
use std::collections::BTreeMap;

fn sum(parts: &[SliceSpace]) -> SliceSpace {
    let mut exclusive: BTreeMap<Generation, u64> = BTreeMap::new();
    for (generation, bytes) in parts.iter().flat_map(|part| &part.exclusive) {
        *exclusive.entry(*generation).or_default() += bytes;
    }
    let of = |bytes: fn(&SliceSpace) -> u64| parts.iter().map(bytes).sum();
    SliceSpace {
        live_bytes: of(|part| part.live_bytes),
        snapshots_bytes: of(|part| part.snapshots_bytes),
        reclaimable_bytes: of(|part| part.reclaimable_bytes),
        exclusive: exclusive.into_iter().collect(),
        next: None,
    }
}

/// Whatever is under way, every extent of every slice is counted once.
pub(super) fn check_sums(world: &World) {
    for slice in world.core.slices() {
        let space = sum(&world.core.space_in_parts(slice.spec.nsid.0, 7));
        let all = space.live_bytes + space.snapshots_bytes + space.reclaimable_bytes;
        assert_eq!(all, slice.used_blocks * BLOCK, "{space:?}");
        let free = |(_, bytes): &(Generation, u64)| *bytes <= space.snapshots_bytes;
        assert!(space.exclusive.iter().all(free), "{space:?}");
    }
}

/// What a slice needs by the dull model.
fn needed(model: &Model, nsid: u32) -> u64 {
    model.extents_needed(nsid) * u64::from(EXTENT_BYTES)
}

/// All that can be merged is, and no command is under way.
pub(super) fn check(world: &mut World, nsid: u32) {
    let asked = world.ok(nsid, Command::ReadSpace { from: 0 });
    let Answer::Space(found) = asked else {
        panic!("{asked:?}")
    };
    assert_eq!(found, sum(&world.core.space_in_parts(nsid, 1)));
    let all = needed(&world.model, nsid);
    let mut without = world.model.clone();
    let head = world.model.head(nsid);
    let mut generations: Vec<u32> = world.model.generations(nsid).into_keys().collect();
    generations.retain(|g| *g != head);
    let frees = generations.iter().filter_map(|g| {
        let mut one_less = world.model.clone();
        one_less.drop(nsid, *g);
        let freed = all - needed(&one_less, nsid);
        (freed > 0).then_some((Generation(*g), freed))
    });
    let exclusive = frees.collect();
    generations.iter().for_each(|g| without.drop(nsid, *g));
    let live_bytes = needed(&without, nsid);
    let wanted = SliceSpace {
        live_bytes,
        snapshots_bytes: all - live_bytes,
        reclaimable_bytes: 0,
        exclusive,
        next: None,
    };
    assert_eq!(found, wanted, "nsid {nsid}");
}

/// What the deletion of a snapshot will free.
pub(super) fn exclusive(world: &World, nsid: u32, generation: Generation) -> u64 {
    let space = sum(&world.core.space_in_parts(nsid, u64::MAX));
    let found = space.exclusive.iter().find(|(g, _)| *g == generation);
    found.map_or(0, |(_, bytes)| *bytes)
}

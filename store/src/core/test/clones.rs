//! Rules of clones, one test each. That they survive crashes and go with any history: see `generations`.

use super::generations::read_all;
use super::world::{World, clone_of, create, range, write, zero};
use crate::core::facts::{SliceSpec, StoreFault};
use crate::core::io::{Answer, Command};
use crate::limits::PARENTS_MAX;
use shardmap::units::{Generation, Nsid, RegionIndex};

const BLOCKS: u64 = 1100;
const CLONE: u32 = 3;

/// The head ends, and is a complete snapshot.
fn snapshot(world: &mut World, nsid: u32) -> u32 {
    let before = world.model.head(nsid);
    world.ok(nsid, Command::BeginGeneration(Generation(before + 1)));
    world.ok(nsid, Command::CompleteGeneration(Generation(before)));
    before
}

/// Slice 1 with 40 blocks in its only snapshot, and a clone of that.
fn with_clone() -> World {
    let mut world = World::new(32 << 20, BLOCKS);
    world.ok(1, write(4, 20, false));
    world.ok(1, write(24, 20, false));
    let generation = snapshot(&mut world, 1);
    world.ok(CLONE, create(clone_of(CLONE, BLOCKS, (1, generation))));
    world
}

fn used_extents(world: &World, nsid: u32) -> u64 {
    world.core.slice(Nsid(nsid)).unwrap().used_blocks / 16
}

#[test]
fn a_clone_takes_nothing_until_it_is_written_and_then_what_was_written() {
    let mut world = with_clone();
    read_all(&mut world);
    assert_eq!(used_extents(&world, CLONE), 0);
    world.ok(1, write(0, 10, false));
    world.ok(CLONE, write(8, 2, false));
    world.ok(CLONE, write(1000, 1, false));
    assert_eq!(used_extents(&world, CLONE), 2);
    // Both extents in one read, by pieces: its own, the parent's, and nobody's.
    read_all(&mut world);
    world.ok(CLONE, Command::Flush);
    world.crash(false, 9);
    read_all(&mut world);
    world.check_merged();
}

#[test]
fn what_is_discarded_in_a_clone_hides_its_parent() {
    let mut world = with_clone();
    let pages = world.core.usage().pages_used;
    world.ok(CLONE, zero(0, 20, false));
    assert_eq!(used_extents(&world, CLONE), 0, "a zero needs no space");
    assert!(
        world.core.usage().pages_used > pages,
        "and is kept in a page"
    );
    read_all(&mut world);
    world.ok(CLONE, Command::Flush);
    world.crash(false, 3);
    read_all(&mut world);
    // Where nothing shows there is nothing to hide.
    let commits = world.core.counts().journal_commits;
    world.ok(CLONE, zero(200, 300, true));
    assert_eq!(world.core.counts().journal_commits, commits);
}

#[test]
fn zeroes_of_a_clones_oldest_generation_survive_its_merge() {
    let mut world = with_clone();
    world.ok(CLONE, zero(4, 12, false));
    let oldest = snapshot(&mut world, CLONE);
    world.ok(CLONE, write(6, 1, false));
    world.ok(CLONE, write(20, 1, false));
    world.ok(CLONE, Command::DropGeneration(Generation(oldest)));
    world.check_merged();
    read_all(&mut world);
    world.ok(CLONE, Command::Flush);
    world.crash(false, 4);
    read_all(&mut world);
}

#[test]
fn what_a_clone_begins_with_is_complete_and_stays() {
    let mut world = World::new(32 << 20, BLOCKS);
    world.ok(1, write(0, 4, false));
    world.ok(1, Command::BeginGeneration(Generation(2)));
    let spec = |generation| clone_of(CLONE, BLOCKS, (1, generation));
    let refused = |world: &mut World, spec: SliceSpec| {
        let fault = world.run(CLONE, create(spec));
        matches!(fault, Err(StoreFault::ParentNotComplete { .. }))
    };
    assert!(refused(&mut world, spec(1)), "pending");
    world.ok(1, Command::CompleteGeneration(Generation(1)));
    assert!(refused(&mut world, spec(2)), "the head");
    assert!(refused(&mut world, spec(7)), "unknown");
    world.ok(2, Command::SetIncomplete);
    let of_incomplete = clone_of(CLONE, BLOCKS, (2, 1));
    assert!(refused(&mut world, of_incomplete), "incomplete");
    // One that is on its way out is gone before the clone could be there.
    let drop = world.submit(1, Command::DropGeneration(Generation(1)));
    assert!(refused(&mut world, spec(1)), "being dropped");
    assert_eq!(world.answer(drop), Ok(Answer::Done));
    let second = snapshot(&mut world, 1);
    world.ok(CLONE, create(spec(second)));
    for taking in [
        Command::DropGeneration(Generation(second)),
        Command::SetIncomplete,
        Command::Remove,
    ] {
        let fault = world.run(1, taking.clone());
        let clone = Nsid(CLONE);
        let nsid = Nsid(1);
        assert_eq!(
            fault,
            Err(StoreFault::HasClones { nsid, clone }),
            "{taking:?}"
        );
    }
    world.ok(CLONE, Command::Remove);
    world.ok(1, Command::DropGeneration(Generation(second)));
    world.ok(1, Command::Remove);
}

#[test]
fn a_clone_has_the_shards_of_its_parent_and_not_too_many_parents() {
    let mut world = with_clone();
    let bad = |world: &mut World, nsid, spec| {
        let fault = world.run(nsid, create(spec));
        assert!(
            matches!(fault, Err(StoreFault::BadSpec { .. })),
            "{fault:?}"
        );
    };
    let mut other_shards = clone_of(4, BLOCKS, (1, 1));
    other_shards.shape.shard_blocks *= 2;
    bad(&mut world, 4, other_shards);
    let same_volume = SliceSpec {
        volume: super::world::spec(1, 1).volume,
        ..clone_of(4, BLOCKS, (1, 1))
    };
    bad(&mut world, 4, same_volume);
    bad(&mut world, 4, clone_of(4, BLOCKS, (5, 1)));
    let deepest = CLONE + u32::try_from(PARENTS_MAX).unwrap() - 1;
    for nsid in CLONE + 1..=deepest {
        world.ok(nsid - 1, write(u64::from(nsid), 1, false));
        let generation = snapshot(&mut world, nsid - 1);
        world.ok(nsid, create(clone_of(nsid, BLOCKS, (nsid - 1, generation))));
    }
    let generation = snapshot(&mut world, deepest);
    bad(
        &mut world,
        deepest + 1,
        clone_of(deepest + 1, BLOCKS, (deepest, generation)),
    );
    read_all(&mut world);
    world.crash(true, 2);
    read_all(&mut world);
}

#[test]
fn a_clone_that_grows_ends_with_its_parent_where_that_ended() {
    let mut world = with_clone();
    world.ok(1, create(super::world::spec(1, BLOCKS + 2048)));
    world.ok(1, write(BLOCKS - 1, 4, false));
    let grown = clone_of(CLONE, BLOCKS + 1024, (1, 1));
    world.ok(CLONE, create(grown));
    let read = Command::Read {
        range: range(BLOCKS - 1, 8),
        generation: Generation(0),
    };
    world.ok(CLONE, read.clone());
    world.ok(CLONE, write(BLOCKS + 3, 1, false));
    world.ok(CLONE, read);
}

#[test]
fn a_clone_says_what_it_wrote_itself_or_with_what_it_shows() {
    let mut world = with_clone();
    world.ok(CLONE, write(43, 2, false));
    world.ok(CLONE, zero(4, 1, false));
    let changed = |world: &mut World, shown| {
        let presence = Command::ReadPresence {
            from: RegionIndex(0),
            regions: 2,
            after: Generation(0),
            upto: Generation(0),
            shown,
        };
        let Answer::Presence { blocks, next: None } = world.ok(CLONE, presence) else {
            panic!("no blocks")
        };
        blocks.into_iter().collect::<Vec<u32>>()
    };
    assert_eq!(changed(&mut world, false), [4, 43, 44]);
    assert_eq!(changed(&mut world, true), (4..=44).collect::<Vec<u32>>());
}

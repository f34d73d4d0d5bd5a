//! Writes that fail at the device: what they leave is read by nobody, whatever comes after.

use super::checksums::world;
use super::device::{BLOCK, Content};
use super::world::{Pending, World, read, write, zero};
use crate::core::facts::{Healed, StoreFault};
use crate::core::format::superblock::FAILED_EXTENTS_MAX;
use crate::core::io::{Answer, Command, Event};
use crate::hash::block_checksum;
use shardmap::units::{Generation, Lba};

const SIZE: u64 = 4096;

fn is_data(pending: &Pending) -> bool {
    matches!(pending, Pending::Write { data: true, .. })
}

/// A write of blocks fails, and the device has something else there.
fn tear(world: &mut World, start: u64, blocks: u32) {
    let id = world.submit(1, write(start, blocks, false));
    assert!(world.fail(is_data));
    for lba in start..start + u64::from(blocks) {
        let block = world.place(lba, 0).expect("present");
        world.device.write(block, b"torn".to_vec(), true);
    }
    world.settle();
    let answer = world.answer(id);
    assert!(matches!(
        answer,
        Err(StoreFault::Medium { what: "write", .. })
    ));
}

#[track_caller]
fn assert_unreadable(world: &mut World, lba: u64) {
    let answer = world.run(1, read(lba, 1));
    let medium = matches!(
        answer,
        Err(StoreFault::Medium { what: "read", lba: at, .. }) if at == Lba(lba)
    );
    assert!(medium, "{answer:?}");
}

fn crash(world: &mut World, survives: bool) {
    world.lose_power(|| survives);
    world.outstanding.clear();
    world.reopen();
    world.open_session(1);
}

/// Whether the superblock that counts has failed blocks.
fn is_listed(world: &World) -> bool {
    use crate::core::format::geometry::SUPERBLOCK_OFFSETS;
    use crate::core::format::superblock::Superblock;
    let [a, b] = SUPERBLOCK_OFFSETS.map(|at| world.device.read(at / BLOCK));
    !Superblock::choose(&a, &b).unwrap().0.failed.is_empty()
}

#[test]
fn a_failure_is_answered_when_its_blocks_are_on_the_list_and_what_was_known_is_durable() {
    let mut world = world();
    world.ok(1, write(0, 16, false));
    let id = world.submit(1, write(4, 2, false));
    assert!(world.fail(is_data));
    // The checksums, a flush, the superblock: one after the other.
    for step in 0..3 {
        assert!(!world.answers.contains_key(&id), "step {step}");
        assert_eq!(world.order.len(), 1, "step {step}");
        assert!(!is_listed(&world));
        world.complete(0);
    }
    assert!(is_listed(&world));
    assert!(matches!(world.answer(id), Err(StoreFault::Medium { .. })));
    assert!(world.order.is_empty());
}

#[test]
fn what_a_failed_write_left_is_not_read_until_it_is_written_or_zeroed() {
    for checksums in [Some(64), None] {
        let mut world = World::with(32 << 20, SIZE, checksums);
        world.ok(1, write(0, 16, true));
        tear(&mut world, 4, 3);
        (4..7).for_each(|lba| assert_unreadable(&mut world, lba));
        world.ok(1, read(0, 4));
        world.ok(1, read(7, 9));
        world.ok(1, write(4, 1, false));
        world.ok(1, zero(5, 1, false));
        world.ok(1, read(0, 6));
        assert_unreadable(&mut world, 6);
        assert!(is_listed(&world), "not all is mended");
        world.ok(1, write(6, 1, true));
        assert!(!is_listed(&world), "durable with the write");
        world.ok(1, read(0, 16));
    }
}

/// What is there has the checksum of what was written before: nothing has landed.
#[test]
fn what_is_whole_is_read_also_after_a_crash() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let id = world.submit(1, write(4, 4, false));
    assert!(world.fail(is_data));
    world.settle();
    assert!(world.answer(id).is_err());
    world.ok(1, read(0, 16));
    crash(&mut world, false);
    world.ok(1, read(4, 4));
    // Of the others nothing is known now.
    let verified = world.core.counts().blocks_verified;
    assert_eq!(verified, 4);
    let block = world.place(5, 0).expect("present");
    world.device.write(block, b"torn".to_vec(), true);
    assert_unreadable(&mut world, 5);
}

#[test]
fn power_that_is_lost_takes_no_note_along_and_a_clean_stop_neither() {
    for (checksums, clean) in [(Some(64), false), (None, false), (Some(64), true)] {
        let mut world = World::with(32 << 20, SIZE, checksums);
        world.ok(1, write(0, 16, true));
        tear(&mut world, 4, 1);
        if clean {
            world.step(Event::Stop);
            world.settle();
            assert!(world.stopped);
        }
        for _ in 0..2 {
            crash(&mut world, false);
            assert_unreadable(&mut world, 4);
            world.ok(1, read(0, 4));
        }
        world.ok(1, write(4, 1, false));
        world.ok(1, Command::Flush);
        crash(&mut world, false);
        world.ok(1, read(0, 16));
    }
}

/// The write that mended a block goes with the cache: what comes back is what the failed one left. A
/// superblock that was written meanwhile still has it.
#[test]
fn what_mended_a_block_and_was_lost_leaves_it_noted() {
    // With checksums the second failure flushes what mended the first.
    let mut world = World::plain(32 << 20, SIZE);
    world.ok(1, write(0, 32, true));
    tear(&mut world, 4, 1);
    world.ok(1, write(4, 1, false));
    tear(&mut world, 20, 1);
    world.ok(1, read(4, 1));
    crash(&mut world, false);
    assert_unreadable(&mut world, 4);
    assert_unreadable(&mut world, 20);
    // A zero is durable with its record only.
    world.ok(1, zero(4, 1, false));
    tear(&mut world, 8, 1);
    crash(&mut world, false);
    assert_unreadable(&mut world, 4);
    world.ok(1, zero(4, 1, true));
    crash(&mut world, false);
    world.ok(1, read(4, 1));
}

#[test]
fn a_flush_is_answered_when_what_is_mended_is_off_the_list() {
    for durable_device in [false, true] {
        let mut world = world();
        world.volatile_cache = !durable_device;
        world.reopen();
        world.open_session(1);
        world.ok(1, write(0, 16, true));
        tear(&mut world, 4, 1);
        world.ok(1, write(4, 1, false));
        let id = world.submit(1, Command::Flush);
        while !world.answers.contains_key(&id) {
            assert!(is_listed(&world));
            assert!(world.complete(0));
        }
        assert!(!is_listed(&world));
        crash(&mut world, durable_device);
        world.ok(1, read(0, 16));
    }
}

/// Other replicas' bytes with the checksum of what was there mend it; a heal that fails notes it.
#[test]
fn a_heal_mends_and_one_that_fails_does_not() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let head = world.model.head(1);
    let content: Content = world.model.content(1, head, 4);
    let heal = |world: &mut World| {
        world.offered = Some(content.clone());
        let (lba, generation) = (Lba(4), Generation(0));
        let sum = block_checksum(&content);
        world.submit(
            1,
            Command::Heal {
                lba,
                generation,
                sum,
            },
        )
    };
    let block = world.place(4, 0).expect("present");
    world.device.write(block, b"rotten".to_vec(), true);
    let id = heal(&mut world);
    assert!(world.fail(is_data));
    world.settle();
    assert!(world.answer(id).is_err() && is_listed(&world));
    crash(&mut world, false);
    assert_unreadable(&mut world, 4);
    let id = heal(&mut world);
    world.settle();
    assert_eq!(world.answer(id), Ok(Answer::Healed(Healed::Written)));
    world.ok(1, read(4, 1));
    world.ok(1, Command::Flush);
    assert!(!is_listed(&world));
}

/// A merge copies nothing of what a failed write left.
#[test]
fn a_merge_copies_no_failed_block() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    tear(&mut world, 4, 1);
    crash(&mut world, false);
    world.ok(1, Command::BeginGeneration(Generation(2)));
    world.ok(1, Command::CompleteGeneration(Generation(1)));
    world.ok(1, write(0, 2, true));
    world.ok(1, Command::DropGeneration(Generation(1)));
    world.settle();
    assert_unreadable(&mut world, 4);
    world.ok(1, read(0, 4));
    world.ok(1, write(4, 1, true));
    world.ok(1, read(0, 16));
}

/// A first write that fails leaves nothing that is shown, and an extent that is free again no note.
#[test]
fn what_is_not_shown_is_not_noted() {
    let mut world = world();
    let id = world.submit(1, write(0, 16, false));
    world.complete(0);
    assert!(world.fail(is_data));
    world.settle();
    assert!(world.answer(id).is_err() && !is_listed(&world));
    world.ok(1, write(0, 16, true));
    tear(&mut world, 4, 1);
    world.ok(1, zero(0, 16, true));
    assert!(!is_listed(&world));
}

/// More than fit: the store stops rather than forget one.
#[test]
fn a_store_with_more_failed_blocks_than_can_be_noted_is_poisoned() {
    let mut world = World::with(64 << 20, 16 * 512, Some(64));
    let extents = u64::try_from(FAILED_EXTENTS_MAX).unwrap();
    for extent in 0..=extents {
        world.ok(1, write(extent * 16, 1, false));
    }
    for extent in 0..extents {
        tear(&mut world, extent * 16, 1);
    }
    assert!(world.poisoned.is_none());
    let id = world.submit(1, write(extents * 16, 1, false));
    assert!(world.fail(is_data));
    assert!(matches!(world.poisoned, Some(StoreFault::Poisoned { .. })));
    assert!(world.answer(id).is_err());
}

/// A growth and the list both write superblocks: one after the other, whichever is first. And the list
/// has blocks that a growth has brought.
#[test]
fn a_growth_and_the_list_take_turns() {
    for (steps, growth_first) in (0..6).flat_map(|s| [(s, true), (s, false)]) {
        let mut world = world();
        world.ok(1, write(0, 16, true));
        let mut growth = growth_first.then(|| world.grow(20 << 20));
        (0..steps).for_each(|_| {
            world.complete(0);
        });
        let failing = world.submit(1, write(4, 2, false));
        assert!(world.fail(is_data));
        for lba in 4..6 {
            let block = world.place(lba, 0).expect("present");
            world.device.write(block, b"torn".to_vec(), true);
        }
        (0..steps).for_each(|_| {
            world.complete(0);
        });
        let growth = growth.take().unwrap_or_else(|| world.grow(20 << 20));
        world.settle();
        let answers = (world.answer(growth), world.answer(failing));
        let done = matches!(
            answers,
            (Ok(Answer::Grown(_)), Err(StoreFault::Medium { .. }))
        );
        assert!(done && is_listed(&world), "{answers:?} after {steps} steps");
        world.ok(1, write(1600, 16, true));
        assert!(world.core.extents_used_of_growths() > 0);
        tear(&mut world, 1601, 1);
        crash(&mut world, steps % 2 == 0);
        for lba in [4, 5, 1601] {
            assert_unreadable(&mut world, lba);
        }
        world.ok(1, read(1602, 14));
    }
}

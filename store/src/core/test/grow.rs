//! Growth: the device became larger, and the store takes that in, whatever happens meanwhile.

use super::world::{Outstanding, Pending, World, create, range, read, spec, write, zero};
use crate::core::facts::{GrowthFault, OpenFault, StoreFault};
use crate::core::format::geometry::SUPERBLOCK_OFFSETS;
use crate::core::format::tracts::{GROWTHS_MAX, table_offset};
use crate::core::io::{Answer, Command, Event};
use shardmap::units::EXTENT_BYTES;

const MIB: u64 = 1 << 20;
const DEVICE: u64 = 32 * MIB;
/// More than the device has room for.
const BLOCKS: u64 = 96 * MIB / 4096;

impl World {
    /// The device is larger by so many bytes, and the store is told to take them. Returns the command's id.
    pub(super) fn grow(&mut self, more_bytes: u64) -> u32 {
        self.device_bytes += more_bytes;
        let device_bytes = Ok(self.device_bytes);
        self.submit(0, Command::Grow { device_bytes })
    }

    /// Whether a growth is under way.
    pub(super) fn is_growing(&self) -> bool {
        let grows = |out: &Outstanding| matches!(out.command, Command::Grow { .. });
        self.outstanding.values().any(grows)
    }
}

fn capacity(world: &World) -> u64 {
    world.core.usage().capacity_bytes
}

/// Writes whole extents until the store is full, and says how many there are.
fn fill(world: &mut World, first: u64) -> u64 {
    for extent in first..BLOCKS / 16 {
        match world.run(1, write(extent * 16, 16, false)) {
            Ok(_) => {}
            Err(StoreFault::NoSpace { free: 0, .. }) => return extent,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("{} extents fit", BLOCKS / 16)
}

fn grow(world: &mut World, more: u64) -> Result<Answer, StoreFault> {
    let id = world.grow(more);
    world.settle();
    world.answer(id)
}

fn refused(world: &mut World, device_bytes: u64) -> GrowthFault {
    let device_bytes = Ok(device_bytes);
    match world.run(0, Command::Grow { device_bytes }) {
        Err(StoreFault::Growth(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_store_takes_more_after_a_growth_and_keeps_all() {
    for checksums in [None, Some(2)] {
        let mut world = World::with(DEVICE, BLOCKS, checksums);
        let before = fill(&mut world, 0);
        assert_eq!(capacity(&world), before * u64::from(EXTENT_BYTES));
        let Ok(Answer::Grown(facts)) = grow(&mut world, 20 * MIB) else {
            panic!("it grows")
        };
        assert_eq!(facts.device_bytes_before, DEVICE);
        assert_eq!(facts.device_bytes, DEVICE + 20 * MIB);
        assert_eq!(
            facts.capacity_bytes_before,
            before * u64::from(EXTENT_BYTES)
        );
        assert_eq!(facts.capacity_bytes, capacity(&world));
        assert!(facts.capacity_bytes >= facts.capacity_bytes_before + 18 * MIB);
        world.check_space();
        // A read and a write over the seam between old and new.
        world.ok(1, write((before - 1) * 16 + 8, 16, false));
        world.ok(1, read((before - 1) * 16, 32));
        let after = fill(&mut world, before + 1);
        assert_eq!(after * u64::from(EXTENT_BYTES), capacity(&world));
        world.ok(1, Command::Flush);
        world.crash(false, 5);
        assert_eq!(capacity(&world), facts.capacity_bytes);
        // What came from the growth goes back, too, and is used again.
        world.ok(1, zero(0, u32::try_from(after * 16).unwrap(), true));
        world.ok(1, Command::Flush);
        world.settle();
        assert_eq!(world.core.usage().free_bytes, facts.capacity_bytes);
        assert_eq!(fill(&mut world, 0), after);
        world.step(Event::Stop);
        world.settle();
        assert!(world.stopped);
    }
}

/// Work around a growth; ends after `cut` device completions or when all is done. Returns how many there
/// were.
fn script(world: &mut World, cut: usize) -> usize {
    let mut completions = 0;
    for i in 0..24u64 {
        if i == 4 {
            world.grow(20 * MIB);
        }
        world.submit(1, write(i * 16, 3, i % 3 == 0));
        if i % 4 == 1 {
            world.submit(2, write(i * 16, 1, false));
        }
        while world.order.len() > 4 {
            if completions == cut {
                return completions;
            }
            completions += 1;
            world.complete(completions % 3);
        }
    }
    while completions < cut && world.complete(completions % 3) {
        completions += 1;
    }
    completions
}

/// A store with data, short of a checkpoint if that is wanted.
fn with_data(checkpoint_is_near: bool) -> World {
    let mut world = World::new(DEVICE, BLOCKS);
    let short = |world: &World| {
        let usage = world.core.usage();
        usage.journal_used_bytes + 3 * 4096 < usage.journal_bytes / 2
    };
    (30..60).for_each(|extent| {
        world.ok(1, write(extent * 16, 16, false));
    });
    while checkpoint_is_near && short(&world) {
        world.ok(1, write(2040, 1, true));
        world.ok(1, zero(2032, 16, true));
    }
    world
}

#[test]
fn a_power_cut_at_any_point_of_a_growth_leaves_the_old_store_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    for near in [false, true] {
        let world = with_data(near);
        let before = capacity(&world);
        let mut whole = with_data(near);
        let completions = script(&mut whole, usize::MAX);
        whole.settle();
        let after = capacity(&whole);
        assert!(after > before + 15 * MIB);
        assert_eq!(whole.core.counts().checkpoints, u64::from(near));
        for cut in 0..=completions {
            for seed in 1..5 {
                let mut world = with_data(near);
                assert_eq!(script(&mut world, cut), cut);
                let answered = !world.is_growing() && world.device_bytes > DEVICE;
                world.crash(seed == 4, 0x9e37_79b9 * (cut as u64 + 1) * seed);
                let found = capacity(&world);
                assert!(found == after || found == before && !answered);
                old += u32::from(found == before);
                new += u32::from(found == after);
                // It grows again, whatever has become of it, and what is new can be used.
                let grown = grow(&mut world, 16 * MIB);
                assert!(matches!(grown, Ok(Answer::Grown(_))), "{grown:?}");
                (100..130).for_each(|extent| {
                    world.ok(1, write(extent * 16, 16, false));
                });
                assert!(world.core.extents_used_of_growths() >= 30);
                world.ok(1, Command::Flush);
                world.crash(false, seed);
            }
        }
    }
    assert!(old > 20 && new > 20, "{old} {new}");
}

#[test]
fn a_growth_goes_on_while_the_store_stops_and_waits_for_a_checkpoint() {
    let mut world = with_data(true);
    for i in 0..100 {
        world.submit(1, write(i * 16, 1, true));
        while !world.core.in_checkpoint() && world.complete(0) {}
    }
    let id = world.grow(20 * MIB);
    let second = world.grow(20 * MIB);
    assert_eq!(world.answer(second), Err(GrowthFault::Running.into()));
    assert!(world.core.in_checkpoint());
    world.step(Event::Stop);
    world.settle();
    assert!(world.stopped);
    assert!(matches!(world.answer(id), Ok(Answer::Grown(_))));
    let grown = capacity(&world);
    world.model.all_flushed();
    world.reopen();
    assert!(
        world
            .opened
            .clone()
            .is_some_and(|o| o.clean && o.capacity_bytes == grown)
    );
    world.check_after_restart();
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut world = World::new(DEVICE, BLOCKS);
    let (before, writes) = (capacity(&world), world.device.completed());
    let used_bytes = DEVICE;
    for device_bytes in [DEVICE, DEVICE + 16 * MIB - 1] {
        let fault = refused(&mut world, device_bytes);
        let wanted = GrowthFault::TooLittle {
            device_bytes,
            used_bytes,
        };
        assert_eq!(fault, wanted);
        assert!(
            fault.to_string().contains(&device_bytes.to_string()),
            "{fault}"
        );
    }
    let device_bytes = DEVICE - 4096;
    let wanted = GrowthFault::Shrank {
        device_bytes,
        used_bytes,
    };
    assert_eq!(refused(&mut world, device_bytes), wanted);
    let device_bytes = 1 << 49;
    let wanted = GrowthFault::TooLarge { device_bytes };
    assert_eq!(refused(&mut world, device_bytes), wanted);
    let device_bytes = Err(6);
    let nameless = world.run(0, Command::Grow { device_bytes });
    assert_eq!(nameless, Err(GrowthFault::Device { errno: 6 }.into()));
    assert_eq!(
        (capacity(&world), world.device.completed()),
        (before, writes)
    );
}

#[test]
fn a_store_grows_so_often_and_no_more() {
    let mut world = World::new(DEVICE, BLOCKS);
    world.ok(1, write(0, 16, true));
    for _ in 0..GROWTHS_MAX {
        grow(&mut world, 16 * MIB).expect("it grows");
    }
    let device_bytes = world.device_bytes + 16 * MIB;
    assert_eq!(refused(&mut world, device_bytes), GrowthFault::TooOften);
    let grown = capacity(&world);
    world.crash(false, 3);
    assert_eq!(capacity(&world), grown);
    world.ok(1, read(0, 16));
}

/// One leaf for each shard of 4 MiB: the old metadata pages are not enough for the new space.
#[test]
fn metadata_pages_grow_with_the_device() {
    let shards = 300;
    let mut world = World::with(DEVICE, 64, Some(2));
    world.ok(9, create(spec(9, shards * 1024)));
    world.open_session(9);
    let mut first_refused = None;
    for shard in 0..shards {
        match world.run(9, write(shard * 1024, 1, false)) {
            Ok(_) => {}
            Err(StoreFault::NoPages { pages: 256 }) => {
                first_refused = Some(shard);
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    let first = first_refused.expect("the pages are not enough");
    // Past what one page of the directory describes.
    grow(&mut world, 150 << 30).expect("it grows");
    assert!(world.core.usage().pages > 16_128);
    for shard in first..shards {
        world.ok(9, write(shard * 1024, 1, true));
    }
    world.ok(9, Command::Flush);
    let checkpoints = world.core.counts().checkpoints;
    while world.core.counts().checkpoints == checkpoints {
        world.ok(9, write(2040, 1, true));
        world.ok(9, zero(2032, 16, true));
    }
    world.crash(false, 9);
    assert!(world.core.usage().pages_used >= 300);
}

#[test]
fn a_failed_write_of_a_growth_leaves_the_store_as_it_was() {
    let mut world = with_data(false);
    let before = capacity(&world);
    let id = world.grow(20 * MIB);
    assert!(world.fail(|p| matches!(p, Pending::Write { .. })));
    assert_eq!(
        world.answer(id),
        Err(GrowthFault::Device { errno: 5 }.into())
    );
    assert_eq!((capacity(&world), &world.poisoned), (before, &None));
    world.ok(1, write(0, 16, true));
    let again = Ok(world.device_bytes);
    let again = world.run(
        0,
        Command::Grow {
            device_bytes: again,
        },
    );
    assert!(matches!(again, Ok(Answer::Grown(_))), "{again:?}");
    world.crash(false, 8);
    assert!(capacity(&world) > before);
}

#[test]
fn a_failed_flush_or_superblock_of_a_growth_poisons() {
    for nth in 0..2 {
        let mut world = with_data(false);
        let id = world.grow(20 * MIB);
        world.complete(0);
        if nth == 1 {
            world.complete(0);
        }
        assert!(world.fail(|_| true));
        assert!(world.poisoned.is_some());
        let answer = world.answer(id);
        assert!(
            matches!(answer, Err(StoreFault::Poisoned { .. })),
            "{answer:?}"
        );
        world.settle();
        world.crash(false, 11);
    }
}

#[test]
fn a_device_that_lost_what_it_had_grown_by_and_a_damaged_table_are_refused() {
    let mut world = with_data(false);
    grow(&mut world, 20 * MIB).expect("it grows");
    world.device_bytes = DEVICE;
    world.reopen();
    let fault = world.failed.clone().expect("refused");
    let shrank = OpenFault::Shrank {
        path: "fake".into(),
        now_bytes: DEVICE,
        then_bytes: DEVICE + 20 * MIB,
    };
    assert_eq!(fault, shrank.into());
    world.device_bytes = DEVICE + 20 * MIB;
    world.device.corrupt(table_offset(1) / 4096);
    world.reopen();
    let fault = world.failed.clone().expect("refused").to_string();
    assert!(
        fault.contains("tract table of growth 1 is damaged"),
        "{fault}"
    );
}

/// What an older release must not touch says so: its feature is set from the first growth on.
#[test]
fn the_superblock_says_that_the_store_has_grown() {
    let mut world = with_data(false);
    let features = |world: &World| -> Vec<u64> {
        let at = |offset: &u64| world.device.read(offset / 4096);
        let copies = SUPERBLOCK_OFFSETS.iter().map(at).filter(|c| !c.is_empty());
        let feature = |c: Vec<u8>| u64::from_le_bytes(c[168..176].try_into().unwrap());
        copies.map(feature).collect()
    };
    assert!(features(&world).iter().all(|f| *f == 1));
    grow(&mut world, 20 * MIB).expect("it grows");
    assert!(features(&world).contains(&5));
    assert!(!world.is_locked(1, range(0, 1)));
}

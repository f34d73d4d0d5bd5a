//! What the checksums promise: rot is never answered, and nothing else is called rot.

use super::device::{BLOCK, Coin};
use super::world::{Pending, World, range, read, write, zero};
use crate::core::facts::{Scrubbed, StoreFault};
use crate::core::io::{Answer, Command, Event};
use shardmap::units::{Generation, Lba, Nsid};

const SIZE: u64 = 4096;

/// With checksums, 64 blocks of which may be in memory.
pub(super) fn world() -> World {
    World::with(32 << 20, SIZE, Some(64))
}

impl World {
    /// Block of the device that has a block of the first slice, as a generation (zero: the head) shows it.
    pub(super) fn place(&self, lba: u64, generation: u32) -> Option<u64> {
        let generation = Generation(generation);
        let runs = self.core.locate_range(Nsid(1), range(lba, 1), generation);
        runs.unwrap()[0].1.map(|offset| offset / BLOCK)
    }
}

pub(super) fn rot(world: &mut World, lba: u64) {
    let block = world.place(lba, 0).expect("present");
    world.device.write(block, b"rotten".to_vec(), true);
}

#[track_caller]
fn assert_rotten(world: &mut World, command: Command, at: u64) {
    let answer = world.run(1, command);
    let Err(StoreFault::Rotten { nsid, lba, .. }) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!((nsid, lba), (Nsid(1), Lba(at)));
}

fn compare(start: u64, blocks: u32) -> Command {
    Command::Compare {
        range: range(start, blocks),
        generation: Generation(0),
    }
}

/// All marks go.
fn unmark(world: &mut World) -> Result<Answer, StoreFault> {
    let Answer::Tick(tick) = world.ok(1, Command::Tick) else {
        panic!("no tick")
    };
    world.must_mark.retain(|(n, _), _| *n != 1);
    let stable = Command::Stable {
        tick,
        idle_ticks: 0,
        keep_max: 0,
    };
    world.run(1, stable)
}

fn unknown(world: &World) -> u64 {
    world.core.counts().blocks_unverified
}

#[test]
fn rot_is_a_fault_at_its_block_until_it_is_written_again() {
    let mut world = world();
    world.ok(1, write(0, 32, false));
    world.ok(1, write(100, 4, true));
    rot(&mut world, 7);
    assert_rotten(&mut world, read(0, 32), 7);
    assert_rotten(&mut world, compare(7, 1), 7);
    world.ok(1, read(0, 7));
    world.ok(1, read(8, 24));
    world.ok(1, write(7, 1, false));
    world.ok(1, read(0, 32));
    assert_eq!(world.core.counts().blocks_rotten, 2);
}

#[test]
fn a_misdirected_write_is_found_at_both_places() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let before = world.device.read(world.place(3, 0).expect("present"));
    let id = world.submit(1, write(3, 1, false));
    // The device puts it elsewhere and says that it is done.
    let io = world.order[0];
    let target = world.place(9, 0).expect("present");
    let Some(Pending::Write { blocks, .. }) = world.pending.get_mut(&io) else {
        panic!("a write")
    };
    blocks[0].0 = target;
    world.settle();
    assert_eq!(world.answers[&id], Ok(Answer::Done));
    assert_eq!(
        world.device.read(world.place(3, 0).expect("present")),
        before
    );
    assert_rotten(&mut world, read(3, 1), 3);
    assert_rotten(&mut world, read(9, 1), 9);
    world.ok(1, read(4, 5));
}

#[test]
fn checksums_survive_a_clean_stop_and_those_of_unmarked_regions_a_crash() {
    let mut world = world();
    world.ok(1, write(0, 16, false));
    world.ok(1, write(2048, 16, false));
    world.step(Event::Stop);
    world.settle();
    assert!(world.stopped);
    world.device.lose_power(Vec::new(), || false);
    world.model.all_flushed();
    world.reopen();
    world.open_session(1);
    rot(&mut world, 5);
    assert_rotten(&mut world, read(0, 16), 5);
    world.ok(1, write(0, 16, false));
    assert_eq!(unmark(&mut world), Ok(Answer::Stable { marks_left: 0 }));
    // Marked again, and the mark is durable.
    world.ok(1, write(2050, 1, true));
    world.crash(false, 0);
    rot(&mut world, 6);
    assert_rotten(&mut world, read(0, 16), 6);
    world.ok(1, compare(2048, 16));
    let before = unknown(&world);
    world.ok(1, read(2048, 16));
    assert_eq!(unknown(&world), before);
}

/// After a crash, what a marked region's checksums on the medium say may be of older content.
#[test]
fn marked_regions_are_not_judged_after_a_crash_until_they_are_compared() {
    let mut world = world();
    world.ok(1, write(0, 16, false));
    unmark(&mut world).unwrap();
    world.ok(1, write(0, 16, true));
    // A crash that nobody looks at: nothing is compared.
    world.lose_power(|| false);
    world.outstanding.clear();
    world.reopen();
    world.open_session(1);
    let before = unknown(&world);
    world.ok(1, read(0, 16));
    world.ok(1, read(0, 16));
    assert_eq!(unknown(&world) - before, 32);
    // What nobody knew is forgotten for good, also where nothing was written before the mark went.
    assert_eq!(unmark(&mut world), Ok(Answer::Stable { marks_left: 0 }));
    world.lose_power(|| false);
    world.reopen();
    world.open_session(1);
    let before = unknown(&world);
    world.ok(1, read(0, 8));
    assert_eq!(unknown(&world) - before, 8);
    world.ok(1, compare(0, 16));
    let before = unknown(&world);
    world.ok(1, read(0, 16));
    assert_eq!(unknown(&world), before);
    rot(&mut world, 4);
    assert_rotten(&mut world, read(0, 16), 4);
}

/// The medium has the checksums of older content, and nobody has looked before the mark goes.
#[test]
fn doubtful_checksums_are_forgotten_on_the_medium_before_the_mark_goes() {
    let mut world = world();
    world.ok(1, write(0, 16, false));
    unmark(&mut world).unwrap();
    world.ok(1, write(0, 16, true));
    world.lose_power(|| false);
    world.reopen();
    world.open_session(1);
    assert_eq!(unmark(&mut world), Ok(Answer::Stable { marks_left: 0 }));
    world.lose_power(|| false);
    world.reopen();
    world.open_session(1);
    world.ok(1, read(0, 16));
}

/// A checksum block is on its way to the medium when more of it changes, for another region.
#[test]
fn a_mark_waits_for_the_checksums_as_they_are_when_it_is_to_go() {
    let mut world = world();
    let ahead = |world: &World| {
        world.order.iter().any(|io| {
            let pending = &world.pending[io];
            matches!(pending, Pending::Write { blocks, data: false, durable: false } if blocks[0].1.len() == 4096)
        })
    };
    world.ok(1, write(0, 16, true));
    world.ok(1, write(1024, 16, true));
    unmark(&mut world).unwrap();
    world.ok(1, write(0, 1, false));
    world.ok(1, write(1024, 1, false));
    let stable = |world: &mut World| {
        let Ok(Answer::Tick(tick)) = ({
            let id = world.submit(1, Command::Tick);
            world.answers.remove(&id).expect("at once")
        }) else {
            panic!("no tick")
        };
        world.must_mark.clear();
        world.submit(
            1,
            Command::Stable {
                tick,
                idle_ticks: 0,
                keep_max: 0,
            },
        )
    };
    stable(&mut world);
    assert!(ahead(&world), "{:?}", world.pending);
    // Written while the checksum block is on its way; its own mark goes next.
    let second = world.submit(1, write(1024, 8, false));
    let at = world.order.len() - 1;
    world.complete(at);
    assert_eq!(world.answers.remove(&second), Some(Ok(Answer::Done)));
    stable(&mut world);
    loop {
        for bits in 0..8u64 {
            let mut crashed = world.fork();
            let mut nth = 0;
            crashed.cut(|| {
                nth += 1;
                bits >> (nth % 3) & 1 == 1
            });
        }
        if !world.complete(0) {
            break;
        }
    }
}

#[test]
fn doubts_outlive_a_clean_stop() {
    let mut world = world();
    world.ok(1, write(0, 16, false));
    unmark(&mut world).unwrap();
    world.ok(1, write(0, 16, true));
    world.lose_power(|| false);
    for _ in 0..2 {
        world.reopen();
        world.open_session(1);
        world.step(Event::Stop);
        world.settle();
        assert!(world.stopped);
    }
    world.reopen();
    assert!(world.opened.as_ref().unwrap().clean);
    world.open_session(1);
    let before = unknown(&world);
    world.ok(1, read(0, 16));
    assert_eq!(unknown(&world) - before, 16);
}

#[test]
fn a_read_beside_a_write_may_find_either() {
    // The read begins before or after the write, and ends before or after it; the device has the
    // old content or the new one for it.
    for (read_first, read_ends_first, new_content) in
        (0..8).map(|bits| (bits & 1 == 0, bits & 2 == 0, bits & 4 == 0))
    {
        let mut world = world();
        world.ok(1, write(0, 16, true));
        let mut reader = None;
        if read_first {
            reader = Some(world.submit(1, compare(0, 16)));
        }
        world.submit(1, write(3, 2, false));
        let reader = reader.unwrap_or_else(|| world.submit(1, compare(0, 16)));
        let (mut sums, mut io_of_read) = (Vec::new(), 0);
        for (io, pending) in &world.pending {
            if let Pending::Read { first, .. } = pending {
                let content = |b| world.device.read(first + b);
                sums = (0..16)
                    .map(|b| crate::hash::block_checksum(&content(b)))
                    .collect();
                io_of_read = *io;
            }
        }
        if new_content {
            let new = |b| super::model::data(1, b, world.version - u64::from(!read_first));
            (sums[3], sums[4]) = (
                crate::hash::block_checksum(&new(3)),
                crate::hash::block_checksum(&new(4)),
            );
        }
        let end_read = |world: &mut World| {
            world.pending.remove(&io_of_read);
            world.order.retain(|io| *io != io_of_read);
            let io = crate::core::io::IoId(io_of_read);
            world.step(Event::DataDone { io, sums: &sums });
        };
        if read_ends_first {
            end_read(&mut world);
            world.settle();
        } else {
            let write_at = world.order.iter().position(|io| *io != io_of_read).unwrap();
            world.complete(write_at);
            end_read(&mut world);
        }
        assert_eq!(world.answers[&reader], Ok(Answer::Done));
        world.settle();
        world.ok(1, read(0, 16));
    }
}

#[test]
fn writes_that_meet_or_fail_leave_a_block_unknown() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    world.submit(1, write(3, 2, false));
    world.submit(1, write(4, 2, false));
    world.settle();
    let before = unknown(&world);
    world.ok(1, compare(3, 3));
    assert_eq!(unknown(&world) - before, 1, "block 4");
    world.ok(1, compare(3, 3));
    assert_eq!(unknown(&world) - before, 1, "known since it was compared");
    world.submit(1, write(8, 1, false));
    assert!(world.fail(|p| matches!(p, Pending::Write { data: true, .. })));
    let before = unknown(&world);
    world.settle();
    world.ok(1, compare(8, 1));
    assert_eq!(
        unknown(&world) - before,
        0,
        "what was there is known, and is there"
    );
}

/// Blocks that a merge copies into an unmarked region are named when their checksums are on the medium;
/// the extent was used before, by content with other checksums.
#[test]
fn a_merge_names_what_it_copied_after_its_checksums() {
    let mut world = World::with(32 << 20, 1 << 20, Some(64));
    let extents = world.core.usage().capacity_bytes / 65_536;
    (0..extents).for_each(|e| {
        world.ok(1, write(e * 16, 16, false));
    });
    unmark(&mut world).unwrap();
    world.ok(1, zero(16, u32::try_from(extents * 16 - 16).unwrap(), true));
    world.ok(1, Command::BeginGeneration(Generation(2)));
    world.ok(1, Command::CompleteGeneration(Generation(1)));
    world.ok(1, write(2, 1, true));
    unmark(&mut world).unwrap();
    world.submit(1, Command::DropGeneration(Generation(1)));
    let (mut cut, mut copied_before) = (0, false);
    while !world.order.is_empty() {
        for survivors in 0..8u64 {
            let mut crashed = world.fork();
            let mut nth = 0;
            crashed.cut(|| {
                nth += 1;
                survivors >> (nth % 3) & 1 == 1
            });
            crashed.settle();
            (0..16).for_each(|lba| {
                crashed.ok(1, read(lba, 1));
            });
        }
        copied_before |= world.core.counts().cells_copied > 0;
        cut += 1;
        world.complete(0);
    }
    assert!(cut > 5 && copied_before);
    assert_eq!(world.core.counts().cells_copied, 1);
}

#[test]
fn a_merge_does_not_spread_rot() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    world.ok(1, Command::BeginGeneration(Generation(2)));
    world.ok(1, Command::CompleteGeneration(Generation(1)));
    world.ok(1, write(2, 1, true));
    rot(&mut world, 5);
    world.ok(1, Command::DropGeneration(Generation(1)));
    assert_eq!(world.core.counts().cells_copied, 0);
    assert_rotten(&mut world, read(0, 16), 5);
    world.ok(1, read(0, 5));
    world.ok(1, read(6, 10));
}

#[test]
fn a_damaged_checksum_block_says_nothing_and_is_made_good() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    unmark(&mut world).unwrap();
    let geometry = crate::core::format::geometry::Geometry::plan(32 << 20, 1 << 20, true).unwrap();
    let block = geometry.checksums_block_offset(0) / BLOCK;
    world.crash(false, 0);
    world.device.corrupt(block);
    world.reopen();
    world.open_session(1);
    let before = unknown(&world);
    world.ok(1, compare(0, 16));
    assert_eq!(unknown(&world) - before, 16);
    assert_eq!(world.core.counts().checksum_blocks_damaged, 1);
    rot(&mut world, 5);
    assert_rotten(&mut world, read(0, 16), 5);
}

#[test]
fn steady_overwrites_write_no_checksums_and_wait_for_none() {
    let mut world = world();
    world.ok(1, write(0, 32, true));
    let before = *world.core.counts();
    for _ in 0..100 {
        let id = world.submit(1, write(8, 20, false));
        assert_eq!(world.order.len(), 1);
        world.complete(0);
        assert_eq!(world.answers.remove(&id), Some(Ok(Answer::Done)));
    }
    let counts = world.core.counts();
    assert_eq!(
        counts.checksum_blocks_written,
        before.checksum_blocks_written
    );
    assert_eq!(counts.checksum_blocks_read, before.checksum_blocks_read);
    assert_eq!(counts.journal_commits, before.journal_commits);
}

/// More checksum blocks than fit come and go under random overwrites, and every read is judged.
#[test]
fn checksum_blocks_come_and_go() {
    let mut world = World::with(32 << 20, 16 * 250, Some(2));
    (0..250).for_each(|e| {
        world.ok(1, write(e * 16, 16, false));
    });
    let mut coin = Coin(77);
    for _ in 0..600 {
        let r = coin.next() >> 20;
        let at = r % (16 * 250 - 8);
        if !world.is_locked(1, range(at, 8)) {
            world.submit(
                1,
                if r >> 30 & 1 == 0 {
                    write(at, 8, false)
                } else {
                    read(at, 8)
                },
            );
        }
        while world.order.len() > 6 {
            world.complete(usize::try_from(r >> 31 & 7).unwrap());
        }
    }
    world.settle();
    for e in 0..250 {
        world.ok(1, read(e * 16, 16));
    }
    let counts = world.core.counts();
    assert!(counts.blocks_verified > 250 * 16 && counts.blocks_rotten == 0);
    assert!(counts.checksum_blocks_written > 10 && counts.checksum_blocks_read > 10);
}

fn scrub_pass(world: &mut World) -> Vec<Scrubbed> {
    let mut all = Vec::new();
    loop {
        let Answer::Scrubbed(found) = world.ok(1, Command::Scrub) else {
            panic!("a scrub")
        };
        match found {
            Some(found) => all.push(found),
            None => return all,
        }
    }
}

#[test]
fn a_scrub_reads_every_cell_once_and_tells_where_rot_is() {
    let mut world = world();
    world.ok(1, write(0, 20, true));
    world.ok(2, write(2048, 3, true));
    world.ok(1, Command::BeginGeneration(Generation(2)));
    world.ok(1, Command::CompleteGeneration(Generation(1)));
    world.ok(1, write(2, 1, true));
    let clean = scrub_pass(&mut world);
    let blocks: Vec<u64> = clean.iter().map(|s| s.blocks).collect();
    // Extent 0 in both generations, extent 1, and the other slice's.
    assert_eq!(blocks, [16, 1, 4, 3]);
    assert!(
        clean
            .iter()
            .all(|s| s.rotten + s.unknown + s.unreadable == 0)
    );
    rot(&mut world, 2);
    rot(&mut world, 17);
    rot(&mut world, 18);
    let found = scrub_pass(&mut world);
    let bad: Vec<_> = found
        .iter()
        .flat_map(Scrubbed::found)
        .map(|r| (r.nsid.0, r.generation.0, r.lba.0))
        .collect();
    assert_eq!(bad, [(1, 2, 2), (1, 1, 17), (1, 1, 18)]);
    assert_eq!(found.iter().map(|s| s.rotten).sum::<u64>(), 3);
    // A cell that cannot be read is told, and the scrub goes on.
    let id = world.submit(1, Command::Scrub);
    assert!(world.fail(|p| matches!(p, Pending::Read { .. })));
    world.settle();
    let Some(Ok(Answer::Scrubbed(Some(found)))) = world.answers.remove(&id) else {
        panic!("a scrub")
    };
    assert_eq!((found.unreadable, found.rotten), (16, 0));
    assert_eq!(found.found().count(), 16);
    assert_eq!(scrub_pass(&mut world).len(), 3);
}

#[test]
fn a_scrub_learns_what_is_not_known_but_not_of_marked_regions() {
    let mut world = world();
    world.ok(1, write(0, 16, false));
    world.ok(1, write(1024, 16, true));
    world.lose_power(|| false);
    world.reopen();
    world.open_session(1);
    let unknown_of = |world: &mut World| scrub_pass(world).iter().map(|s| s.unknown).sum::<u64>();
    assert_eq!(unknown_of(&mut world), 32);
    assert_eq!(unknown_of(&mut world), 32, "both regions are marked");
    unmark(&mut world).unwrap();
    assert_eq!(unknown_of(&mut world), 32, "looked at for the first time");
    assert_eq!(unknown_of(&mut world), 0);
    // A crash: what was learnt is durable after a clean stop only, and never wrong.
    world.lose_power(|| true);
    world.reopen();
    scrub_pass(&mut world);
    assert_eq!(world.core.counts().blocks_rotten, 0);
}

#[test]
fn a_scrub_goes_on_where_it_was_after_a_clean_stop() {
    let mut world = world();
    (0..4).for_each(|e| {
        world.ok(1, write(e * 16, 16, true));
    });
    world.ok(1, Command::Scrub);
    world.ok(1, Command::Scrub);
    world.step(Event::Stop);
    world.settle();
    world.device.lose_power(Vec::new(), || false);
    world.reopen();
    assert_eq!(scrub_pass(&mut world).len(), 2);
    assert_eq!(scrub_pass(&mut world).len(), 4);
}

/// An error that goes away costs nothing; one that stays leaves the blocks unverified, and is counted.
#[test]
fn a_checksum_block_that_cannot_be_read_is_tried_again() {
    use crate::limits::CHECKSUM_READ_TRIES_MAX;
    for failures in [1, CHECKSUM_READ_TRIES_MAX - 1, CHECKSUM_READ_TRIES_MAX] {
        let mut world = world();
        world.ok(1, write(0, 16, true));
        unmark(&mut world).unwrap();
        world.lose_power(|| false);
        world.outstanding.clear();
        world.reopen();
        world.open_session(1);
        rot(&mut world, 7);
        let id = world.submit(1, compare(0, 16));
        for _ in 0..failures {
            assert!(world.fail(|p| matches!(p, Pending::MetaRead { .. })));
        }
        world.settle();
        let answer = world.answers.remove(&id).expect("answered");
        let given_up = failures == CHECKSUM_READ_TRIES_MAX;
        let rotten = matches!(answer, Err(StoreFault::Rotten { .. }));
        assert_eq!(rotten, !given_up, "{answer:?}");
        let damaged = world.core.counts().checksum_blocks_damaged;
        assert_eq!(damaged, u64::from(given_up));
    }
}

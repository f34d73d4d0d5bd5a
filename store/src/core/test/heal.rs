//! Healing: only what was written there is written again, whatever happens beside it.

use super::checksums::{rot, world};
use super::device::{Coin, Content};
use super::world::{Pending, World, range, read, write, zero};
use crate::core::facts::{Healed, StoreFault};
use crate::core::io::{Answer, Command, Event, IoId};
use crate::hash::block_checksum;
use shardmap::units::{Generation, Lba};

const SIZE: u64 = 4096;

fn right(world: &World, lba: u64) -> Content {
    let head = world.model.head(1);
    world.model.content(1, head, lba)
}

fn offer(world: &mut World, lba: u64, generation: u32, content: &Content) -> u32 {
    world.offered = Some(content.clone());
    let heal = Command::Heal {
        lba: Lba(lba),
        generation: Generation(generation),
        sum: block_checksum(content),
    };
    world.submit(1, heal)
}

#[track_caller]
fn heal(world: &mut World, lba: u64, content: &Content) -> Healed {
    let id = offer(world, lba, 0, content);
    world.settle();
    let Ok(Answer::Healed(healed)) = world.answer(id) else {
        panic!("no heal")
    };
    healed
}

#[track_caller]
fn assert_rotten(world: &mut World, lba: u64) {
    let answer = world.run(1, read(lba, 1));
    assert!(
        matches!(answer, Err(StoreFault::Rotten { .. })),
        "{answer:?}"
    );
}

fn writes(world: &World) -> usize {
    let data = |p: &&Pending| matches!(p, Pending::Write { data: true, .. });
    world.pending.values().filter(data).count()
}

#[test]
fn only_what_was_written_there_heals_and_it_is_durable() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let content = right(&world, 7);
    rot(&mut world, 7);
    let before = world.device.read(world.place(7, 0).unwrap());
    for wrong in [right(&world, 6), Vec::new(), b"rotten".to_vec()] {
        assert_eq!(heal(&mut world, 7, &wrong), Healed::Other);
        assert_eq!(world.device.read(world.place(7, 0).unwrap()), before);
    }
    assert_rotten(&mut world, 7);
    assert_eq!(heal(&mut world, 7, &content), Healed::Written);
    assert_eq!(world.core.counts().blocks_healed, 1);
    world.ok(1, read(0, 16));
    let block = world.place(7, 0).unwrap();
    world.lose_power(|| false);
    assert_eq!(world.device.read(block), content);
}

#[test]
fn what_is_not_known_or_not_shown_is_left_alone() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let content = right(&world, 7);
    assert_eq!(
        heal(&mut world, 100, &content),
        Healed::Gone,
        "never written"
    );
    world.ok(1, zero(7, 1, false));
    assert_eq!(heal(&mut world, 7, &content), Healed::Gone, "zeroed");
    // The checksums of a marked region are of nobody knows what after a crash.
    let content = right(&world, 5);
    world.lose_power(|| false);
    world.outstanding.clear();
    world.reopen();
    world.open_session(1);
    assert_eq!(heal(&mut world, 5, &content), Healed::Unknown);
    let outside = Command::Heal {
        lba: Lba(SIZE),
        generation: Generation(0),
        sum: 1,
    };
    let refused = world.run(1, outside);
    assert!(matches!(refused, Err(StoreFault::OutOfRange { .. })));
}

#[test]
fn a_write_that_comes_meanwhile_waits_and_one_under_way_is_left_alone() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let old = right(&world, 7);
    rot(&mut world, 7);
    let id = offer(&mut world, 7, 0, &old);
    assert_eq!(writes(&world), 1);
    let later = world.submit(1, write(6, 4, false));
    assert_eq!(writes(&world), 1, "the write waits");
    let beside = world.submit(1, write(12, 2, false));
    assert_eq!(writes(&world), 2, "one beside it does not");
    world.complete(0);
    assert_eq!(world.answer(id), Ok(Answer::Healed(Healed::Written)));
    assert_eq!(writes(&world), 2);
    world.settle();
    for id in [later, beside] {
        assert_eq!(world.answer(id), Ok(Answer::Done));
    }
    world.ok(1, read(0, 16));
    assert_eq!(heal(&mut world, 7, &old), Healed::Other, "it is old now");
    // The other way round.
    let new = right(&world, 8);
    let writing = world.submit(1, write(8, 1, false));
    let id = offer(&mut world, 8, 0, &new);
    assert_eq!(writes(&world), 1);
    assert_eq!(world.answer(id), Ok(Answer::Healed(Healed::Unknown)));
    world.settle();
    assert_eq!(world.answer(writing), Ok(Answer::Done));
    world.ok(1, read(0, 16));
}

/// For the checksums a heal is no write: a read that met it is not excused.
#[test]
fn a_read_beside_a_heal_is_judged() {
    for read_sees_rot in [true, false] {
        let mut world = world();
        world.ok(1, write(0, 16, true));
        let content = right(&world, 7);
        rot(&mut world, 7);
        let reading = world.submit(1, read(0, 16));
        let healing = offer(&mut world, 7, 0, &content);
        let io_of_read = world.order[0];
        let seen: Vec<u32> = (0..16)
            .map(|lba| match lba {
                7 if read_sees_rot => block_checksum(b"rotten"),
                _ => block_checksum(&right(&world, lba)),
            })
            .collect();
        world.complete(1);
        assert_eq!(world.answer(healing), Ok(Answer::Healed(Healed::Written)));
        if read_sees_rot {
            world.pending.remove(&io_of_read);
            world.order.retain(|io| *io != io_of_read);
            let io = IoId(io_of_read);
            world.step(Event::DataDone { io, sums: &seen });
            let answer = world.answer(reading);
            assert!(
                matches!(answer, Err(StoreFault::Rotten { .. })),
                "{answer:?}"
            );
        } else {
            world.settle();
            assert_eq!(world.answer(reading), Ok(Answer::Done));
        }
    }
}

/// The checksum is on its way into memory, and a write comes and goes before it is there.
#[test]
fn a_write_while_the_checksum_is_awaited_is_not_written_over() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let Answer::Tick(tick) = world.ok(1, Command::Tick) else {
        panic!("no tick")
    };
    world.must_mark.clear();
    let (idle_ticks, keep_max) = (0, 0);
    let stable = Command::Stable {
        tick,
        idle_ticks,
        keep_max,
    };
    world.ok(1, stable);
    world.lose_power(|| true);
    world.outstanding.clear();
    world.reopen();
    world.open_session(1);
    let old = right(&world, 7);
    let id = offer(&mut world, 7, 0, &old);
    let checksums = world.order.clone();
    assert_eq!((checksums.len(), writes(&world)), (1, 0));
    let later = world.submit(1, write(7, 1, false));
    while !world.answers.contains_key(&later) {
        let at = world.order.iter().position(|io| !checksums.contains(io));
        world.complete(at.expect("the write does not wait for checksums"));
    }
    world.settle();
    let answer = world.answer(id);
    let left_alone = [Healed::Unknown, Healed::Other].map(|h| Ok(Answer::Healed(h)));
    assert!(left_alone.contains(&answer), "{answer:?}");
    world.ok(1, read(0, 16));
}

#[test]
fn a_heal_that_fails_leaves_the_block_as_rotten_as_it_was() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let content = right(&world, 7);
    rot(&mut world, 7);
    let id = offer(&mut world, 7, 0, &content);
    let waits = world.submit(1, write(0, 2, false));
    let other = world.submit(1, write(7, 1, false));
    assert!(world.fail(|p| matches!(
        p,
        Pending::Write {
            data: true,
            durable: true,
            ..
        }
    )));
    world.settle();
    assert!(matches!(world.answer(id), Err(StoreFault::Medium { .. })));
    assert_eq!(
        (world.answer(waits), world.answer(other)),
        (Ok(Answer::Done), Ok(Answer::Done))
    );
    world.ok(1, read(0, 16));
    let content = right(&world, 9);
    rot(&mut world, 9);
    let id = offer(&mut world, 9, 0, &content);
    assert!(world.fail(|p| matches!(p, Pending::Write { data: true, .. })));
    world.settle();
    assert!(world.answer(id).is_err());
    assert!(world.run(1, read(9, 1)).is_err());
    assert_eq!(heal(&mut world, 9, &content), Healed::Written);
}

fn snapshot(world: &mut World, head: u32) {
    world.ok(1, Command::BeginGeneration(Generation(head)));
    world.ok(1, Command::CompleteGeneration(Generation(head - 1)));
}

#[test]
fn blocks_of_snapshots_heal_and_a_merge_that_had_failed_goes_on() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let content = right(&world, 5);
    snapshot(&mut world, 2);
    world.ok(1, write(2, 1, true));
    rot(&mut world, 5);
    world.ok(1, Command::DropGeneration(Generation(1)));
    assert_eq!(world.core.counts().cells_copied, 0);
    assert_rotten(&mut world, 5);
    // The generation that wrote it is deleted; the next one shows it.
    let id = offer(&mut world, 5, 1, &content);
    world.settle();
    assert_eq!(world.answer(id), Ok(Answer::Healed(Healed::Written)));
    assert_eq!(world.core.counts().cells_copied, 1);
    assert!(world.core.is_merged(1));
    world.ok(1, read(0, 16));
    // What a snapshot shows and the head has written again.
    let old = right(&world, 9);
    snapshot(&mut world, 3);
    rot(&mut world, 9);
    world.ok(1, write(9, 1, true));
    assert_eq!(
        heal(&mut world, 9, &old),
        Healed::Other,
        "that is the head's"
    );
    let id = offer(&mut world, 9, 2, &old);
    world.settle();
    assert_eq!(world.answer(id), Ok(Answer::Healed(Healed::Written)));
    let of_snapshot = Command::Read {
        range: range(0, 16),
        generation: Generation(2),
    };
    world.ok(1, of_snapshot);
    world.ok(1, read(0, 16));
}

/// A merge must not copy what is being written: it would not know whose checksum it has.
#[test]
fn a_merge_and_a_heal_of_one_extent_do_not_meet() {
    let mut world = world();
    world.ok(1, write(0, 16, true));
    let content = right(&world, 5);
    snapshot(&mut world, 2);
    world.ok(1, write(2, 1, true));
    rot(&mut world, 5);
    let heal = offer(&mut world, 5, 0, &content);
    world.submit(1, Command::DropGeneration(Generation(1)));
    let healing = world.order[0];
    while let Some(at) = world.order.iter().position(|io| *io != healing) {
        let copying = world
            .pending
            .values()
            .any(|p| matches!(p, Pending::Copy { .. }));
        assert!(!copying, "the merge waits");
        world.complete(at);
    }
    world.settle();
    assert_eq!(world.answer(heal), Ok(Answer::Healed(Healed::Written)));
    assert_eq!(world.core.counts().cells_copied, 1);
    // The merge was first.
    snapshot(&mut world, 3);
    world.ok(1, write(2, 1, true));
    let content = right(&world, 5);
    rot(&mut world, 5);
    world.submit(1, Command::DropGeneration(Generation(2)));
    let copying = |w: &World| {
        w.pending
            .values()
            .any(|p| matches!(p, Pending::Copy { .. }))
    };
    while !copying(&world) {
        assert!(world.complete(0));
    }
    let id = offer(&mut world, 5, 0, &content);
    assert!(matches!(world.answer(id), Err(StoreFault::Busy { .. })));
    world.settle();
    assert_rotten(&mut world, 5);
}

/// Heals every block of every generation from a good copy.
fn heal_all(world: &mut World, seed: u64) {
    for generation in world.model.generations(1).into_keys() {
        for lba in 0..64 {
            let content = world.model.content(1, generation, lba);
            let id = offer(world, lba, generation, &content);
            world.settle();
            let healed = world.answer(id);
            let fine = [Healed::Written, Healed::Gone].map(|h| Ok(Answer::Healed(h)));
            assert!(fine.contains(&healed), "seed {seed}, {lba}: {healed:?}");
            let command = Command::Read {
                range: range(lba, 1),
                generation: Generation(generation),
            };
            world.ok(1, command);
        }
    }
}

/// Everything at once: blocks rot, right, old and foreign bytes are offered beside writes, zeroes,
/// snapshots, deletions and their merges. Nothing wrong is ever read, and in the end all of it heals.
#[test]
fn nothing_heals_from_a_bad_copy_whatever_happens_beside_it() {
    let mut tally = [0u64; 4];
    for seed in 1..80 {
        let mut world = World::with(32 << 20, 64, Some(2));
        let mut coin = Coin(seed * 7919);
        let mut head = 1;
        let mut old: Vec<(u64, u32, Content)> = Vec::new();
        for _ in 0..150 {
            let r = coin.next() >> 16;
            let (lba, pick) = (r % 60, r >> 8 & 15);
            match pick {
                0..=4 if !world.is_locked(1, range(lba, 4)) => {
                    old.push((lba, 0, right(&world, lba)));
                    world.submit(1, write(lba, 4, pick == 0));
                }
                5 if !world.is_locked(1, range(lba, 3)) => {
                    world.submit(1, zero(lba, 3, true));
                }
                6 => {
                    // Where nothing is being written, so that the checksum is known.
                    world.settle();
                    if let Some(block) = world.place(lba, 0) {
                        old.push((lba, 0, right(&world, lba)));
                        world.device.write(block, b"rotten".to_vec(), true);
                    }
                }
                7 => {
                    world.settle();
                    head += 1;
                    snapshot(&mut world, head);
                    if head > 3 {
                        world.submit(1, Command::DropGeneration(Generation(head - 3)));
                    }
                }
                8..=12 if !old.is_empty() => {
                    let nth = usize::try_from(r >> 12).unwrap() % old.len();
                    let (lba, generation, content) = old[nth].clone();
                    offer(&mut world, lba, generation, &content);
                }
                13 => {
                    offer(&mut world, lba, head, &b"foreign".to_vec());
                }
                _ if !world.is_locked(1, range(lba, 4)) => {
                    world.submit(1, read(lba, 4));
                }
                _ => {}
            }
            while world.order.len() > 5 {
                world.complete(usize::try_from(r >> 20 & 7).unwrap());
            }
        }
        world.settle();
        for answer in world.answers.values() {
            if let Ok(Answer::Healed(healed)) = answer {
                tally[*healed as usize] += 1;
            }
        }
        heal_all(&mut world, seed);
        assert!(world.core.is_merged(1), "seed {seed}");
    }
    assert!(tally.iter().all(|n| *n > 10), "{tally:?}");
}

//! Random work, random order of device completions, crashes anywhere.

use super::device::coin_of;
use super::world::{World, range, read, write, zero};
use crate::core::facts::{Stamp, StoreFault};
use crate::core::io::{Answer, Command, Event};
use proptest::prelude::*;
use shardmap::units::{Generation, WriteTick};

#[derive(Clone, Debug)]
enum Op {
    Write {
        nsid: u32,
        start: u64,
        blocks: u32,
        fua: bool,
    },
    Zero {
        nsid: u32,
        start: u64,
        blocks: u32,
        fua: bool,
        deallocate: bool,
    },
    Read {
        nsid: u32,
        start: u64,
        blocks: u32,
    },
    Flush {
        nsid: u32,
    },
    Complete {
        nth: usize,
        count: usize,
    },
    Clean {
        nsid: u32,
    },
    Tear {
        nth: usize,
        seed: u64,
    },
    Crash {
        kill: bool,
        seed: u64,
    },
    Stop,
}

/// Four MiB of each volume, so that blocks meet again; the second slice's extents lie between.
const BLOCKS: u64 = 2048;

fn op() -> impl Strategy<Value = Op> {
    let start = prop_oneof![0u64..40, 0u64..BLOCKS - 32, 1000u64..1060];
    let at = || (1u32..3, start.clone(), 1u32..33);
    prop_oneof![
        8 => (at(), prop::bool::weighted(0.1))
            .prop_map(|((nsid, start, blocks), fua)| Op::Write { nsid, start, blocks, fua }),
        3 => (at(), prop::bool::weighted(0.2), prop::bool::weighted(0.8), 1u32..9).prop_map(
            |((nsid, start, blocks), fua, deallocate, times)| {
                let blocks = (blocks * times).min(u32::try_from(BLOCKS - start).unwrap());
                Op::Zero { nsid, start, blocks, fua, deallocate }
            }
        ),
        4 => at().prop_map(|(nsid, start, blocks)| Op::Read { nsid, start, blocks }),
        3 => (1u32..3).prop_map(|nsid| Op::Flush { nsid }),
        12 => (any::<usize>(), 1usize..8).prop_map(|(nth, count)| Op::Complete { nth, count }),
        1 => (1u32..3).prop_map(|nsid| Op::Clean { nsid }),
        1 => (any::<usize>(), any::<u64>()).prop_map(|(nth, seed)| Op::Tear { nth, seed }),
        1 => (any::<bool>(), any::<u64>()).prop_map(|(kill, seed)| Op::Crash { kill, seed }),
        1 => Just(Op::Stop),
    ]
}

fn apply(world: &mut World, op: &Op) {
    let free = |w: &World, nsid, start, blocks| !w.is_locked(nsid, range(start, blocks));
    match *op {
        Op::Write {
            nsid,
            start,
            blocks,
            fua,
        } if free(world, nsid, start, blocks) => {
            world.submit(nsid, write(start, blocks, fua));
        }
        Op::Zero {
            nsid,
            start,
            blocks,
            fua,
            deallocate,
        } if free(world, nsid, start, blocks) => {
            let range = range(start, blocks);
            world.submit(
                nsid,
                Command::Zero {
                    range,
                    deallocate,
                    fua,
                    generation: Generation(0),
                },
            );
        }
        Op::Read {
            nsid,
            start,
            blocks,
        } if free(world, nsid, start, blocks) => {
            world.submit(nsid, read(start, blocks));
        }
        Op::Write { .. } | Op::Zero { .. } | Op::Read { .. } => {}
        Op::Flush { nsid } => {
            world.submit(nsid, Command::Flush);
        }
        Op::Complete { nth, count } => {
            for i in 0..count {
                world.complete(nth.wrapping_add(i * 7));
            }
        }
        Op::Clean { nsid } => clean(world, nsid),
        Op::Tear { nth, seed } => {
            world.tear(nth, coin_of(seed));
        }
        Op::Crash { kill, seed } => world.crash(kill, seed),
        Op::Stop => stop_and_start(world),
    }
}

/// What a client does in protocol §8, with other work going on.
pub(super) fn clean(world: &mut World, nsid: u32) {
    let since = world.version;
    let Ok(Answer::Tick(tick)) = world.run(nsid, Command::Tick) else {
        panic!("no tick")
    };
    assert_eq!(world.run(nsid, Command::Flush), Ok(Answer::Done));
    world
        .must_mark
        .retain(|(n, _), written| *n != nsid || *written > since);
    let stable = world.run(
        nsid,
        Command::Stable {
            tick,
            idle_ticks: 0,
            keep_max: 0,
        },
    );
    let kept = world.must_mark.keys().filter(|(n, _)| *n == nsid).count() as u64;
    assert_eq!(stable, Ok(Answer::Stable { marks_left: kept }));
    let next = WriteTick(tick.0 + 1);
    let refused = world.run(
        nsid,
        Command::Stable {
            tick: next,
            idle_ticks: 0,
            keep_max: 0,
        },
    );
    assert!(matches!(refused, Err(StoreFault::UnknownTick { .. })));
}

pub(super) fn stop_and_start(world: &mut World) {
    let before = world.core.slices().next().unwrap().incarnation;
    world.step(Event::Stop);
    world.settle();
    assert!(world.stopped && world.outstanding.is_empty());
    // Everything that was answered is durable now.
    world.model.all_flushed();
    // A clean stop leaves nothing in the cache that matters.
    world.device.lose_power(Vec::new(), coin_of(77));
    world.reopen();
    let facts = world.opened.clone().expect("opens after a clean stop");
    assert!(facts.clean && facts.incarnation == before);
    world.check_after_restart();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn flushed_data_survives_and_nothing_foreign_appears(
        ops in prop::collection::vec(op(), 1..250), trim: bool, kill: bool, seed: u64,
        checksums in prop::option::weighted(0.8, Just(2))
    ) {
        let mut world = World::with(32 << 20, BLOCKS, checksums);
        world.can_trim = trim;
        ops.iter().for_each(|op| apply(&mut world, op));
        world.crash(kill, seed);
        world.settle();
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_wraps_and_checkpoints_survive_crashes(
        ops in prop::collection::vec(op(), 40..120), seeds in prop::collection::vec(any::<u64>(), 3)
    ) {
        let mut world = World::new(32 << 20, BLOCKS);
        for seed in seeds {
            // A flushed first write or zero costs one journal block: half a ring each round.
            for i in 0..140u64 {
                let at = (i * 16) % BLOCKS;
                world.settle();
                world.ok(1, if i % 2 == 0 { write(at, 1, true) } else { zero(at, 16, true) });
                apply(&mut world, &ops[usize::try_from(i).unwrap() % ops.len()]);
            }
            world.crash(seed % 3 == 0, seed);
        }
    }
}

#[test]
fn the_ring_is_used_many_times_over() {
    let mut world = World::new(32 << 20, BLOCKS);
    for i in 0..2000u64 {
        let at = (i * 16) % BLOCKS;
        world.ok(
            1,
            if (i / 128 + i) % 2 == 0 {
                write(at, 1, true)
            } else {
                zero(at, 16, true)
            },
        );
        if i % 500 == 499 {
            assert!(
                world.core.counts().checkpoints >= 2,
                "{:?}",
                world.core.counts()
            );
            world.crash(false, i);
        }
    }
}

/// Work that runs into a checkpoint if the journal is at the brink; ends after `cut` device completions
/// or when all is done. Returns how many there were.
fn script(world: &mut World, cut: usize) -> usize {
    let mut completions = 0;
    for i in 0..128u64 {
        world.submit(1, write(i * 16, 2, true));
        if i % 3 == 0 {
            world.submit(2, write(i * 16, 1, false));
        }
        while world.order.len() > 5 {
            if completions == cut {
                return completions;
            }
            completions += 1;
            world.complete(completions % 3);
        }
    }
    world.submit(1, Command::Stamp(Stamp::default()));
    while completions < cut && world.complete(completions % 3) {
        completions += 1;
    }
    completions
}

/// A world that has completed `checkpoints` and is just short of the next.
fn at_the_brink(checkpoints: u64) -> World {
    let mut world = World::new(32 << 20, BLOCKS);
    let short = |world: &World| {
        let usage = world.core.usage();
        usage.journal_used_bytes + 6 * 4096 < usage.journal_bytes / 2
    };
    while world.core.counts().checkpoints < checkpoints || short(&world) {
        world.ok(1, write(2040, 1, true));
        world.ok(2, write(16, 1, false));
        world.ok(1, zero(2032, 16, true));
    }
    assert_eq!(world.core.counts().checkpoints, checkpoints);
    world
}

/// Stops the script after `cut` device completions, loses power (or only the process), and looks.
fn crash_in_checkpoint(checkpoints_before: u64, step: usize) {
    let mut world = at_the_brink(checkpoints_before);
    let completions = script(&mut world, usize::MAX);
    let counts = world.core.counts();
    assert_eq!(
        counts.checkpoints,
        checkpoints_before + 1,
        "the script runs into a checkpoint"
    );
    for cut in (0..=completions).step_by(step) {
        let mut world = at_the_brink(checkpoints_before);
        assert_eq!(script(&mut world, cut), cut);
        world.crash(cut % 5 == 0, 0x9e37_79b9 * (cut as u64 + 1));
    }
}

#[test]
fn a_crash_at_any_point_of_a_checkpoint_loses_nothing() {
    crash_in_checkpoint(0, 1);
}

/// Data in place of a discarded extent that a snapshot shows through, caught by a checkpoint before its
/// record is there: after a crash the page is ahead of the record of the discard.
#[test]
fn a_page_that_is_ahead_of_a_discard_keeps_what_was_written_after_it() {
    for cut in 0..60 {
        let mut world = at_the_brink(0);
        world.ok(1, write(0, 2, true));
        world.ok(1, Command::BeginGeneration(Generation(2)));
        world.ok(1, Command::CompleteGeneration(Generation(1)));
        world.ok(1, write(1, 1, true));
        world.submit(1, zero(1, 1, true));
        (0..6).for_each(|i| {
            world.submit(2, write(64 + i * 16, 1, true));
        });
        let mut written = false;
        for nth in 0..cut {
            world.complete(nth % 2);
            if !written && world.core.in_checkpoint() {
                written = true;
                world.submit(1, write(0, 1, false));
            }
        }
        world.crash(cut % 2 == 0, 7 * cut as u64 + 1);
    }
}

/// The second checkpoint finds content in both places of a page.
#[test]
fn a_crash_at_any_point_of_a_later_checkpoint_loses_nothing() {
    crash_in_checkpoint(1, 1);
}

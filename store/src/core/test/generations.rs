//! Random histories of writes, zeroes, snapshots and deletions, with crashes anywhere: every generation
//! that is left reads as the model has it, and the space of those that are gone comes back.

use super::account::{check_sums, exclusive};
use super::crash::{clean, stop_and_start};
use super::device::Coin;
use super::world::{World, clone_of, create, range, zero};
use crate::core::facts::Stamp;
use crate::core::io::{Answer, Command};
use proptest::prelude::*;
use shardmap::units::{Generation, Nsid, RegionIndex, WriteTick};

/// Two leaves and a bit of each slice.
const BLOCKS: u64 = 1100;
/// Blocks that a clone has more than what it is a clone of, if that is no clone.
const MORE: u64 = 40;
/// Slices at a time.
const SLICES_MAX: usize = 7;

#[derive(Clone, Copy, Debug)]
enum Op {
    Write { at: At, fua: bool, pending: bool },
    Zero { at: At, fua: bool, pending: bool },
    Read { at: At, nth: usize },
    Flush { nsid: u32 },
    Complete { nth: usize, count: usize },
    Begin { nsid: u32 },
    EndPending { nsid: u32 },
    Drop { nsid: u32, nth: usize },
    Clone { nsid: u32, nth: usize },
    Remove { nsid: u32 },
    Clean { nsid: u32 },
    Crash { kill: bool, seed: u64 },
    Stop,
}

#[derive(Clone, Copy, Debug)]
struct At {
    nsid: u32,
    start: u64,
    blocks: u32,
}

fn at() -> impl Strategy<Value = At> {
    let start = prop_oneof![3 => 0u64..40, 1 => 0u64..BLOCKS + MORE - 32, 2 => 1000u64..1060];
    (0u32..9, start, 1u32..33).prop_map(|(nsid, start, blocks)| At {
        nsid,
        start,
        blocks,
    })
}

fn op(crashes: bool) -> impl Strategy<Value = Op> {
    let flag = || prop::bool::weighted(0.15);
    prop_oneof![
        10 => (at(), flag(), any::<bool>())
            .prop_map(|(at, fua, pending)| Op::Write { at, fua, pending }),
        3 => (at(), flag(), any::<bool>())
            .prop_map(|(at, fua, pending)| Op::Zero { at, fua, pending }),
        5 => (at(), any::<usize>()).prop_map(|(at, nth)| Op::Read { at, nth }),
        2 => (0u32..9).prop_map(|nsid| Op::Flush { nsid }),
        14 => (any::<usize>(), 1usize..8).prop_map(|(nth, count)| Op::Complete { nth, count }),
        3 => (0u32..9).prop_map(|nsid| Op::Begin { nsid }),
        3 => (0u32..9).prop_map(|nsid| Op::EndPending { nsid }),
        2 => (0u32..9, any::<usize>()).prop_map(|(nsid, nth)| Op::Drop { nsid, nth }),
        2 => (0u32..9, any::<usize>()).prop_map(|(nsid, nth)| Op::Clone { nsid, nth }),
        1 => (0u32..9).prop_map(|nsid| Op::Remove { nsid }),
        1 => (0u32..9).prop_map(|nsid| Op::Clean { nsid }),
        1 => (any::<bool>(), any::<u64>()).prop_map(move |(kill, seed)| {
            if crashes { Op::Crash { kill, seed } } else { Op::Flush { nsid: 1 } }
        }),
        1 => Just(if crashes { Op::Stop } else { Op::Flush { nsid: 2 } }),
    ]
}

/// The generation to write to: the head, or the oldest pending snapshot if no later generation has been
/// there yet: a client issues what is before a snapshot before what is after it.
fn tag(world: &World, at: At, pending: bool) -> Generation {
    let range = range(at.start, at.blocks);
    let pending = world.model.pending(at.nsid).filter(|_| pending);
    let pending = pending.filter(|p| !world.model.is_touched_after(at.nsid, *p, range));
    Generation(pending.unwrap_or(0))
}

/// One of the slices that are there, the first two more often than clones.
fn slice(world: &World, nth: u32) -> u32 {
    let is_here = |nsid: &u32| world.core.slice(Nsid(*nsid)).is_some();
    let slices: Vec<u32> = world.model.slices().into_iter().filter(is_here).collect();
    slices[nth as usize % slices.len()]
}

fn size(world: &World, nsid: u32) -> u64 {
    world.core.slice(Nsid(nsid)).unwrap().spec.size_blocks
}

/// The same of a slice that is there, and within it.
fn there(world: &World, at: At) -> At {
    let nsid = slice(world, at.nsid);
    let start = at.start.min(size(world, nsid) - u64::from(at.blocks));
    At { nsid, start, ..at }
}

fn apply(world: &mut World, op: Op) {
    match op {
        Op::Write { .. } | Op::Zero { .. } | Op::Read { .. } => apply_at(world, op),
        Op::Complete { nth, count } => {
            for i in 0..count {
                world.complete(nth.wrapping_add(i * 7));
            }
        }
        Op::Crash { kill, seed } => world.crash(kill, seed),
        Op::Stop => stop_and_start(world),
        Op::Flush { nsid }
        | Op::Begin { nsid }
        | Op::EndPending { nsid }
        | Op::Drop { nsid, .. }
        | Op::Clone { nsid, .. }
        | Op::Remove { nsid }
        | Op::Clean { nsid } => {
            let nsid = slice(world, nsid);
            apply_to(world, op, nsid);
        }
    }
}

/// The nth complete snapshot of a slice.
fn snapshot(world: &World, nsid: u32, nth: usize) -> Option<u32> {
    let snapshots = world.model.snapshots(nsid);
    snapshots.get(nth % snapshots.len().max(1)).copied()
}

fn apply_to(world: &mut World, op: Op, nsid: u32) {
    match op {
        Op::Flush { .. } => {
            world.submit(nsid, Command::Flush);
        }
        Op::Begin { .. } => {
            if world.model.generations(nsid).len() < 7 {
                let head = Generation(world.model.head(nsid) + 1);
                world.submit(nsid, Command::BeginGeneration(head));
            }
        }
        Op::EndPending { .. } => {
            if let Some(pending) = world.model.pending(nsid) {
                world.submit(nsid, Command::CompleteGeneration(Generation(pending)));
            }
        }
        Op::Drop { nth, .. } => {
            if let Some(generation) = snapshot(world, nsid, nth) {
                world.submit(nsid, Command::DropGeneration(Generation(generation)));
            }
        }
        Op::Clone { nth, .. } => {
            let generation = snapshot(world, nsid, nth);
            let generation = generation.filter(|_| world.core.slices().count() < SLICES_MAX);
            if let Some(generation) = generation {
                let (clone, size) = (world.new_nsid(), BLOCKS + MORE);
                world.submit(clone, create(clone_of(clone, size, (nsid, generation))));
            }
        }
        // A change under way would be refused, and may happen all the same if the power goes.
        Op::Remove { .. } if nsid > 2 && !world.is_changing(nsid) => {
            world.submit(nsid, Command::Remove);
        }
        Op::Remove { .. } => {}
        Op::Clean { .. } => clean(world, nsid),
        Op::Write { .. }
        | Op::Zero { .. }
        | Op::Read { .. }
        | Op::Complete { .. }
        | Op::Crash { .. }
        | Op::Stop => unreachable!("of no slice as a whole"),
    }
}

fn apply_at(world: &mut World, op: Op) {
    let free = |w: &World, at: At| !w.is_locked(at.nsid, range(at.start, at.blocks));
    let (at, command) = match op {
        Op::Write { at, fua, pending } => {
            let at = there(world, at);
            let generation = tag(world, at, pending);
            let range = range(at.start, at.blocks);
            (
                at,
                Command::Write {
                    range,
                    fua,
                    generation,
                },
            )
        }
        Op::Zero { at, fua, pending } => {
            let at = there(world, at);
            let command = Command::Zero {
                range: range(at.start, at.blocks),
                deallocate: true,
                fua,
                generation: tag(world, at, pending),
            };
            (at, command)
        }
        Op::Read { at, nth } => {
            let at = there(world, at);
            let all: Vec<u32> = world.model.generations(at.nsid).into_keys().collect();
            let range = range(at.start, at.blocks);
            let generation = Generation(all[nth % all.len()]);
            (at, Command::Read { range, generation })
        }
        Op::Flush { .. }
        | Op::Complete { .. }
        | Op::Begin { .. }
        | Op::EndPending { .. }
        | Op::Drop { .. }
        | Op::Clone { .. }
        | Op::Remove { .. }
        | Op::Clean { .. }
        | Op::Crash { .. }
        | Op::Stop => unreachable!("of no blocks"),
    };
    if free(world, at) {
        world.submit(at.nsid, command);
    }
}

/// Reads every block of every generation.
pub(super) fn read_all(world: &mut World) {
    for nsid in world.model.slices() {
        let size = size(world, nsid).min(BLOCKS + MORE);
        for generation in world.model.generations(nsid).into_keys() {
            for start in (0..size).step_by(32) {
                let blocks = u32::try_from((size - start).min(32)).unwrap();
                let command = Command::Read {
                    range: range(start, blocks),
                    generation: Generation(generation),
                };
                world.ok(nsid, command);
            }
        }
    }
}

/// What would delete snapshots and clones that nothing shows through.
fn deletable(world: &World) -> Vec<(u32, Command)> {
    let model = &world.model;
    let of = |nsid: u32| {
        let snapshots = model.snapshots(nsid).into_iter();
        let free = snapshots.filter(move |g| !model.has_clones(nsid, Some(*g)));
        let drops = free.map(|g| Command::DropGeneration(Generation(g)));
        let gone = (nsid > 2 && !model.has_clones(nsid, None)).then_some(Command::Remove);
        drops.chain(gone).map(move |command| (nsid, command))
    };
    model.slices().into_iter().flat_map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn generations_survive_crashes(
        ops in prop::collection::vec(op(true), 1..250), trim: bool, kill: bool, seed: u64
    ) {
        let mut world = World::new(32 << 20, BLOCKS);
        world.can_trim = trim;
        ops.iter().for_each(|op| apply(&mut world, *op));
        world.crash(kill, seed);
        check_sums(&world);
        world.settle();
        read_all(&mut world);
    }

    #[test]
    fn space_comes_back_and_all_generations_are_as_they_were(
        ops in prop::collection::vec(op(false), 1..250), order in any::<u64>()
    ) {
        let mut world = World::new(32 << 20, BLOCKS);
        for op in &ops {
            apply(&mut world, *op);
            check_sums(&world);
        }
        world.settle();
        for nsid in world.model.slices() {
            while world.model.pending(nsid).is_some() {
                apply_to(&mut world, Op::EndPending { nsid }, nsid);
                world.settle();
            }
        }
        world.check_merged();
        read_all(&mut world);
        let mut coin = Coin(order | 1);
        loop {
            let left = deletable(&world);
            let nth = usize::try_from(coin.next() >> 40).unwrap();
            let Some((nsid, command)) = left.get(nth % left.len().max(1)).cloned() else {
                break;
            };
            let used = |world: &World| {
                let usage = world.core.usage();
                usage.capacity_bytes - usage.free_bytes
            };
            let told = if let Command::DropGeneration(generation) = command {
                Some(used(&world) - exclusive(&world, nsid, generation))
            } else {
                None
            };
            world.ok(nsid, command);
            world.check_merged();
            prop_assert_eq!(told.unwrap_or(used(&world)), used(&world));
            read_all(&mut world);
        }
        prop_assert!(world.model.slices().into_iter().eq([1, 2]));
        for nsid in [1, 2] {
            world.ok(nsid, zero(0, u32::try_from(BLOCKS).unwrap(), true));
        }
        world.check_merged();
        let usage = world.core.usage();
        prop_assert_eq!(usage.free_bytes, usage.capacity_bytes);
    }
}

/// What a client does in protocol §8, step by step: a tick, and the version it stands for.
fn tick(world: &mut World, nsid: u32) -> (WriteTick, u64) {
    let since = world.version;
    let id = world.submit(nsid, Command::Tick);
    let Some(Ok(Answer::Tick(tick))) = world.answers.remove(&id) else {
        panic!("no tick")
    };
    (tick, since)
}

/// Lets marks go of what was written before the tick, whether it was flushed or not.
fn unmark(world: &mut World, nsid: u32, (tick, since): (WriteTick, u64)) {
    let marks = &mut world.must_mark;
    marks.retain(|(n, _), written| *n != nsid || *written > since);
    let stable = Command::Stable {
        tick,
        idle_ticks: 0,
        keep_max: 0,
    };
    world.submit(nsid, stable);
}

/// Writes, snapshots and deletions from a seed; looks at the world before every device completion.
pub(super) fn script(world: &mut World, (seed, steps): (u64, u64), look: &mut dyn FnMut(&World)) {
    let mut coin = Coin(seed | 1);
    let mut ticked = None;
    for i in 0..steps {
        let r = coin.next() >> 20;
        let (pending, fua) = (r & 1 == 1, r >> 1 & 7 == 0);
        // The first slice, or one of its clones.
        let nsid = if r >> 40 & 3 == 0 {
            2 + (r >> 42 & 3)
        } else {
            0
        };
        let nsid = u32::try_from(nsid).unwrap();
        let start = (r >> 8) % 10 * 13 + if r >> 6 & 1 == 1 { 1000 } else { 0 };
        let blocks = u32::try_from((r >> 16) % 30 + 1).unwrap();
        let at = At {
            nsid,
            start: start.min(BLOCKS - u64::from(blocks)),
            blocks,
        };
        let nth = usize::try_from(r >> 30 & 0xff).unwrap();
        apply(
            world,
            match i % 13 {
                4 => Op::Begin { nsid },
                6 => Op::EndPending { nsid },
                7 if i > 20 => Op::Clone { nsid, nth },
                0 if i > 70 => Op::Remove { nsid },
                8 if i > 60 => Op::Drop { nsid, nth },
                9 => Op::Zero { at, fua, pending },
                11 => Op::Flush { nsid },
                12 => Op::Read { at, nth },
                10 if i % 2 == 0 => Op::Flush { nsid },
                _ => Op::Write { at, fua, pending },
            },
        );
        match i % 26 {
            10 => ticked = Some(tick(world, 1)),
            12 => ticked.take().into_iter().for_each(|t| unmark(world, 1, t)),
            _ => {}
        }
        if i % 64 == 25 && !world.is_growing() {
            world.grow(17 << 20);
        }
        while world.order.len() as u64 > i % 5 {
            look(world);
            world.complete(nth % 3);
        }
    }
    while !world.order.is_empty() {
        look(world);
        world.complete(0);
    }
}

/// A power cut or a killed process at every so many device completions of a history with deletions.
fn crash_everywhere(seed: u64, steps: u64, every: u64) {
    let mut world = World::new(32 << 20, BLOCKS);
    let mut completions = 0;
    script(&mut world, (seed, steps), &mut |world| {
        completions += 1;
        if completions % every != 0 {
            return;
        }
        let mut crashed = world.fork();
        crashed.crash(completions % 5 == 0, 0x9e37_79b9 * completions);
        if completions % (every * 8) == 0 {
            // What was begun goes on.
            script(&mut crashed, (seed + 1, 26), &mut |_| {});
            read_all(&mut crashed);
            crashed.crash(completions % 3 == 0, completions + 7);
        }
    });
    let counts = *world.core.counts();
    assert!(
        counts.cells_moved > 0 && counts.cells_copied > 0,
        "{counts:?}"
    );
}

#[test]
fn a_crash_at_any_point_of_a_history_with_deletions_loses_nothing() {
    crash_everywhere(1, 260, 1);
}

#[test]
fn a_crash_at_some_points_of_other_histories_loses_nothing() {
    (2..8).for_each(|seed| crash_everywhere(seed * 977, 390, 13));
}

/// A world whose first leaf has `cells` cells beside its base in one page for 512, with the journal just
/// short of a checkpoint.
fn short_of_a_split_and_a_checkpoint(cells: u64) -> World {
    let mut world = World::new(64 << 20, BLOCKS);
    (0..64).for_each(|e| {
        world.ok(1, write(e * 16, 2));
    });
    for i in 0..cells {
        if i % 64 == 0 {
            begin(&mut world, u32::try_from(i / 64).unwrap() + 2);
        }
        world.ok(1, write(i % 64 * 16 + i / 64, 1));
    }
    begin(&mut world, 20);
    let short = |world: &World| {
        let usage = world.core.usage();
        usage.journal_used_bytes + 4 * 4096 < usage.journal_bytes / 2
    };
    while short(&world) {
        world.ok(2, super::world::write(40, 1, true));
        world.ok(2, zero(32, 16, true));
    }
    assert_eq!(world.core.counts().checkpoints, 0);
    world
}

/// Where cells are when a page is split must be told by a checkpoint as it was before or after.
fn split_in_a_checkpoint(cells: u64, crash: bool) -> bool {
    let mut world = short_of_a_split_and_a_checkpoint(cells);
    let (mut completions, mut in_checkpoint) = (0, false);
    for i in 0..40u64 {
        let pages = world.core.usage().pages_used;
        world.submit(1, super::world::write(i * 16 + 11, 2, i % 2 == 0));
        world.submit(2, super::world::write(i * 16, 1, true));
        in_checkpoint |= world.core.usage().pages_used > pages && world.core.in_checkpoint();
        while world.order.len() as u64 > 2 + i % 5 {
            completions += 1;
            if crash && completions % 3 == 0 {
                let mut crashed = world.fork();
                crashed.crash(completions % 4 == 0, 0x9e37_79b9 * completions);
            }
            let nth = usize::try_from(completions % 5).unwrap();
            world.complete(nth);
        }
    }
    world.settle();
    assert!(world.core.counts().checkpoints > 0);
    world.crash(false, cells);
    read_all(&mut world);
    in_checkpoint
}

#[test]
fn a_crash_while_a_cells_page_is_split_in_a_checkpoint_loses_nothing() {
    let hits: Vec<u64> = (488..500)
        .filter(|cells| split_in_a_checkpoint(*cells, false))
        .collect();
    assert!(hits.len() > 2, "{hits:?}");
    for cells in hits.iter().step_by(hits.len() / 3) {
        split_in_a_checkpoint(*cells, true);
    }
}

fn begin(world: &mut World, generation: u32) {
    let before = Generation(world.model.head(1));
    world.ok(1, Command::BeginGeneration(Generation(generation)));
    world.ok(1, Command::CompleteGeneration(before));
}

fn changed(world: &mut World, after: u32, upto: u32) -> Vec<u32> {
    let diff = Command::Diff {
        after: Generation(after),
        upto: Generation(upto),
        from: RegionIndex(0),
        regions: 1,
    };
    let Answer::Presence { blocks, .. } = world.ok(1, diff) else {
        panic!("no blocks")
    };
    blocks.into_iter().collect()
}

fn write(start: u64, blocks: u32) -> Command {
    super::world::write(start, blocks, false)
}

#[test]
fn a_diff_is_what_was_written_in_between_also_after_deletions() {
    let mut world = World::new(32 << 20, BLOCKS);
    world.ok(1, write(0, 2));
    begin(&mut world, 2);
    world.ok(1, write(1, 2));
    begin(&mut world, 3);
    world.ok(1, zero(0, 1, false));
    begin(&mut world, 7);
    world.ok(1, write(900, 1));
    assert_eq!(changed(&mut world, 0, 1), [0, 1]);
    assert_eq!(changed(&mut world, 1, 2), [1, 2]);
    assert_eq!(changed(&mut world, 1, 3), [0, 1, 2]);
    assert_eq!(changed(&mut world, 3, 0), [900]);
    world.ok(1, Command::DropGeneration(Generation(2)));
    world.check_merged();
    assert_eq!(changed(&mut world, 1, 3), [0, 1, 2]);
    assert_eq!(changed(&mut world, 0, 7), [0, 1, 2, 900]);
    let gone = Command::Diff {
        after: Generation(2),
        upto: Generation(0),
        from: RegionIndex(0),
        regions: 1,
    };
    assert!(world.run(1, gone).is_err());
}

#[test]
fn what_a_merge_frees_is_used_again_and_what_a_host_gives_back_is_trimmed() {
    let mut world = World::new(32 << 20, BLOCKS);
    world.ok(1, write(0, 16));
    begin(&mut world, 2);
    world.ok(1, write(0, 16));
    world.ok(1, Command::DropGeneration(Generation(1)));
    world.check_merged();
    assert_eq!(world.core.counts().extents_freed, 1);
    assert_eq!(world.device.trims, 0);
    world.ok(1, write(64, 1));
    assert_eq!(world.core.counts().extents_recycled, 1);
    world.ok(1, zero(64, 16, true));
    world.ok(1, Command::Flush);
    assert_eq!(world.device.trims, 1);
    world.ok(1, write(128, 1));
    assert_eq!(world.core.counts().extents_recycled, 1);
}

#[test]
fn complete_snapshots_are_read_without_a_session_and_nothing_else_is() {
    const STRANGER: u64 = 99;
    let mut world = World::new(32 << 20, BLOCKS);
    let read = |generation| Command::Read {
        range: range(0, 1),
        generation: Generation(generation),
    };
    let presence = |after, upto| Command::ReadPresence {
        from: RegionIndex(0),
        regions: 1,
        after: Generation(after),
        upto: Generation(upto),
        shown: false,
    };
    let ask = |world: &mut World, command| {
        let id = world.submit_as(STRANGER, 1, command);
        world.settle();
        world.answer(id).is_ok()
    };
    world.ok(1, write(0, 2));
    begin(&mut world, 2);
    world.ok(1, Command::BeginGeneration(Generation(3)));
    for complete in [read(1), presence(0, 1)] {
        assert!(ask(&mut world, complete.clone()), "{complete:?}");
    }
    let pending_or_head = [read(2), read(3), read(0), presence(0, 2), presence(1, 0)];
    for other in pending_or_head
        .into_iter()
        .chain([presence(2, 1), write(0, 1)])
    {
        assert!(!ask(&mut world, other.clone()), "{other:?}");
    }
    world.ok(1, Command::SetIncomplete);
    assert!(!ask(&mut world, read(1)));
}

#[test]
fn a_store_that_was_away_takes_several_pending_snapshots_oldest_first() {
    let mut world = World::new(32 << 20, BLOCKS);
    let write = |start, generation| Command::Write {
        range: range(start, 4),
        fua: false,
        generation: Generation(generation),
    };
    world.ok(1, write(0, 1));
    for head in 2..5 {
        world.ok(1, Command::BeginGeneration(Generation(head)));
    }
    for (start, generation) in [(2, 4), (0, 1), (3, 2), (20, 2), (1, 3)] {
        world.ok(1, write(start, generation));
    }
    read_all(&mut world);
    world.ok(1, Command::CompleteGeneration(Generation(1)));
    assert!(world.run(1, write(0, 1)).is_err());
    // Deleted while the store was away.
    world.ok(1, Command::DropGeneration(Generation(2)));
    let gone = Command::Read {
        range: range(0, 1),
        generation: Generation(2),
    };
    assert!(world.run(1, gone).is_err());
    world.ok(1, write(21, 3));
    read_all(&mut world);
    world.ok(1, Command::Flush);
    world.crash(false, 3);
    read_all(&mut world);
}

/// A store that is brought up to date slowly must not keep what came and went meanwhile.
#[test]
fn an_incomplete_slice_drops_snapshots_and_gets_the_rest() {
    let mut world = World::new(32 << 20, BLOCKS);
    let write = |start, generation| Command::Write {
        range: range(start, 4),
        fua: false,
        generation: Generation(generation),
    };
    world.ok(1, Command::SetIncomplete);
    for head in 2..5 {
        world.ok(1, Command::BeginGeneration(Generation(head)));
    }
    for (start, generation) in [(0, 1), (2, 2), (20, 2), (1, 3)] {
        world.ok(1, write(start, generation));
    }
    world.ok(1, Command::CompleteGeneration(Generation(1)));
    for deleted in [1, 2] {
        world.ok(1, Command::DropGeneration(Generation(deleted)));
    }
    world.ok(1, write(21, 3));
    world.ok(1, Command::CompleteGeneration(Generation(3)));
    world.ok(1, Command::Complete(Stamp::default()));
    read_all(&mut world);
    world.ok(1, Command::Flush);
    world.crash(false, 3);
    read_all(&mut world);
    let refused = world.run(1, write(30, 2));
    assert!(refused.is_err(), "who gives it one that went is told");
}

#[test]
fn a_full_store_can_drop_snapshots_and_goes_on() {
    let mut world = World::new(32 << 20, 1 << 20);
    let capacity = world.core.usage().capacity_bytes / 65_536;
    let half = capacity / 2;
    (0..half).for_each(|e| {
        world.ok(1, write(e * 16, 16));
    });
    begin(&mut world, 2);
    (0..capacity - half).for_each(|e| {
        world.ok(1, write(e * 16 + 3, 2));
    });
    assert!(world.run(1, write(capacity * 16, 1)).is_err());
    assert!(world.run(2, write(0, 1)).is_err());
    world.ok(1, Command::DropGeneration(Generation(1)));
    world.check_merged();
    assert!(world.core.counts().cells_copied > 0);
    world.ok(2, write(0, 16));
    let used = world.core.slice(Nsid(1)).unwrap().used_blocks / 16;
    assert_eq!(used, capacity - half);
    world.crash(false, 5);
}

//! One rule, one test.

use super::device::{BLOCK, coin_of};
use super::world::{Pending, World, create, range, read, spec, write, zero};
use crate::core::facts::{OpenFault, Stamp, StoreFault};
use crate::core::format::geometry::{JOURNAL_OFFSET, SUPERBLOCK_OFFSETS};
use crate::core::io::{Answer, Command};
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, RegionIndex, VolumeId, WriteTick};

const SIZE: u64 = 4096;

fn world() -> World {
    World::plain(32 << 20, SIZE)
}

fn stable(tick: WriteTick, idle_ticks: u32, keep_max: u32) -> Command {
    Command::Stable {
        tick,
        idle_ticks,
        keep_max,
    }
}

/// What the outstanding device operations are, in order.
fn pending(world: &World) -> String {
    let name = |io: &u32| match &world.pending[io] {
        Pending::Read { .. } => 'r',
        Pending::Write { blocks, .. } if blocks[0].1.len() < 4096 => 'w',
        Pending::Write { durable: true, .. } => 'J',
        Pending::Write { durable: false, .. } => 'P',
        Pending::MetaRead { .. } => 'm',
        Pending::Copy { .. } => 'c',
        Pending::Flush { .. } => 'F',
        Pending::Discard { .. } => 'd',
    };
    world.order.iter().map(name).collect()
}

#[test]
fn a_write_is_not_sent_before_its_mark_is_durable() {
    let mut world = world();
    world.submit(1, write(0, 8, false));
    world.submit(1, write(100, 8, false));
    assert_eq!(pending(&world), "J", "one commit marks for both");
    world.complete(0);
    assert_eq!(pending(&world), "ww");
    world.settle();
    world.submit(1, write(200, 8, false));
    assert_eq!(pending(&world), "w", "the region is marked already");
}

#[test]
fn a_first_write_is_durable_in_the_order_data_flush_record() {
    let mut world = world();
    world.ok(1, write(500, 1, false));
    let id = world.submit(1, write(0, 8, true));
    let mut seen = String::new();
    while !world.order.is_empty() {
        assert!(!world.answers.contains_key(&id));
        seen += &pending(&world);
        world.complete(0);
    }
    assert_eq!(seen, "wFJ");
    assert_eq!(world.answers[&id], Ok(Answer::Done));
}

#[test]
fn an_overwrite_is_one_device_write_and_no_metadata() {
    let mut world = world();
    world.ok(1, write(0, 32, false));
    world.ok(1, Command::Flush);
    let before = world.core.counts().journal_commits;
    for fua in [false, true] {
        world.submit(1, write(8, 20, fua));
        assert_eq!(pending(&world), "w");
        world.settle();
    }
    world.ok(1, Command::Flush);
    assert_eq!(world.core.counts().journal_commits, before);
}

#[test]
fn fua_over_a_block_whose_record_is_pending_waits_for_the_record() {
    let mut world = world();
    world.ok(1, write(0, 1, false));
    let id = world.submit(1, write(0, 1, true));
    world.complete(0);
    assert!(
        !world.answers.contains_key(&id),
        "durable data without a durable map is lost"
    );
    world.crash(false, 4);
    let id = world.submit(1, write(0, 1, true));
    world.settle();
    assert_eq!(world.answers[&id], Ok(Answer::Done));
    world.crash(false, 5);
}

#[test]
fn a_flush_that_comes_after_the_device_flush_needs_the_next_if_anything_completed() {
    let mut world = world();
    world.ok(1, write(0, 1, true));
    world.ok(1, write(0, 1, false));
    let first = world.submit(1, Command::Flush);
    let joins = world.submit(2, Command::Flush);
    world.submit(1, write(0, 1, false));
    world.complete(1);
    let late = world.submit(1, Command::Flush);
    assert_eq!(pending(&world), "F");
    world.complete(0);
    assert!(world.answers.contains_key(&first) && world.answers.contains_key(&joins));
    assert!(!world.answers.contains_key(&late));
    assert_eq!(pending(&world), "F");
    world.settle();
    assert!(world.answers.contains_key(&late));
    world.submit(1, Command::Flush);
    assert_eq!(pending(&world), "", "nothing is unflushed");
}

#[test]
fn opening_waits_for_what_the_older_session_had_admitted() {
    let mut world = world();
    world.ok(1, write(0, 1, false));
    let zombie = world.submit(1, write(0, 1, false));
    let volume = VolumeId([1; 16]);
    let open = |epoch| Command::Open {
        epoch: Epoch(epoch),
        volume,
    };
    let id = world.submit_as(9, 1, open(7));
    let late = world.submit(1, write(1, 1, false));
    assert_eq!(
        world.answers[&late],
        Err(StoreFault::SessionRevoked { nsid: Nsid(1) })
    );
    let early = world.submit_as(9, 1, write(1, 1, false));
    assert_eq!(
        world.answers[&early],
        Err(StoreFault::NotOpen { nsid: Nsid(1) })
    );
    while !world.answers.contains_key(&zombie) {
        assert!(!world.answers.contains_key(&id));
        world.complete(0);
    }
    world.settle();
    assert!(matches!(world.answers[&id], Ok(Answer::State(_))));
    let (ours, theirs) = (Epoch(7), Epoch(6));
    let fenced = StoreFault::Fenced {
        nsid: Nsid(1),
        ours,
        theirs,
    };
    assert_eq!(world.run(1, open(6)), Err(fenced));
    let wrong = Command::Open {
        epoch: Epoch(8),
        volume: VolumeId([3; 16]),
    };
    assert!(matches!(
        world.run(1, wrong),
        Err(StoreFault::WrongVolume { .. })
    ));
}

#[test]
fn an_epoch_that_was_answered_survives_and_fences() {
    let mut world = world();
    let volume = VolumeId([1; 16]);
    world.ok(
        1,
        Command::Open {
            epoch: Epoch(900),
            volume,
        },
    );
    world.device.lose_power(Vec::new(), coin_of(3));
    world.reopen();
    let old = world.run(
        1,
        Command::Open {
            epoch: Epoch(899),
            volume,
        },
    );
    assert!(matches!(old, Err(StoreFault::Fenced { .. })), "{old:?}");
}

#[test]
fn stamps_flags_and_added_marks_survive() {
    let mut world = world();
    let stamp = Stamp {
        seq: MembershipSeq(5),
        in_sync: 0b101,
        members: 0b111,
    };
    world.ok(1, Command::Stamp(stamp));
    world.ok(1, Command::SetIncomplete);
    world.ok(1, Command::AddMarks([1, 3].into_iter().collect()));
    world.device.lose_power(Vec::new(), coin_of(3));
    world.reopen();
    let state = world.core.slice(Nsid(1)).unwrap();
    assert_eq!(
        (state.stamp, state.incomplete, state.mark_count),
        (stamp, true, 2)
    );
    world.open_session(1);
    assert_eq!(
        world.run(1, read(0, 1)),
        Err(StoreFault::Incomplete { nsid: Nsid(1) })
    );
    let regions = [1, 3].into_iter().collect();
    let marks = Answer::Marks {
        regions,
        next: None,
    };
    assert_eq!(
        world.ok(
            1,
            Command::ReadMarks {
                from: RegionIndex(0)
            }
        ),
        marks
    );
}

#[test]
fn stable_keeps_what_was_written_since_or_is_being_written() {
    let mut world = world();
    let tick = |world: &mut World| {
        let Answer::Tick(tick) = world.ok(1, Command::Tick) else {
            panic!("no tick")
        };
        tick
    };
    world.ok(1, write(0, 1, false));
    let slow = world.submit(1, write(1024, 1, false));
    world.complete(0);
    let id = world.submit(1, Command::Tick);
    let Ok(Answer::Tick(t)) = world.answers[&id] else {
        panic!("no tick")
    };
    let id = world.submit(1, stable(t, 0, 0));
    while !world.answers.contains_key(&id) {
        // The journal's record; the slow write stays where it is.
        let at = world.order.len() - 1;
        world.complete(at);
    }
    assert_eq!(world.answers[&id], Ok(Answer::Stable { marks_left: 1 }));
    assert!(!world.answers.contains_key(&slow));
    world.must_mark.remove(&(1, 0));
    world.settle();
    let t = tick(&mut world);
    world.ok(1, write(1024, 1, false));
    let kept = world.ok(1, stable(t, 0, 0));
    assert_eq!(kept, Answer::Stable { marks_left: 1 });
    let t = tick(&mut world);
    let hot = world.ok(1, stable(t, 1, 0));
    assert_eq!(hot, Answer::Stable { marks_left: 1 });
    let cold = world.ok(1, stable(t, 0, 0));
    assert_eq!(cold, Answer::Stable { marks_left: 0 });
    world.ok(1, write(1024, 1, false));
    world.crash(false, 9);
    let unknown = world.run(1, stable(t, 0, 0));
    assert!(
        matches!(unknown, Err(StoreFault::UnknownTick { .. })),
        "a tick of another life"
    );
}

#[test]
fn a_hot_working_set_writes_no_metadata() {
    let mut world = world();
    for region in 0..4 {
        world.ok(1, write(region * 1024, 8, false));
    }
    world.ok(1, Command::Flush);
    let before = *world.core.counts();
    for round in 0..200 {
        for region in 0..4 {
            world.ok(1, write(region * 1024 + round % 8, 1, round % 3 == 0));
            world.ok(1, read(region * 1024, 8));
        }
        world.ok(1, Command::Flush);
        if round % 20 == 10 {
            // The client looks for marks to drop; everything was written since it did last.
            let Answer::Tick(tick) = world.ok(1, Command::Tick) else {
                panic!("no tick")
            };
            let left = world.ok(1, stable(tick, 1, 4096));
            assert_eq!(left, Answer::Stable { marks_left: 4 });
        }
    }
    let after = *world.core.counts();
    assert_eq!(after.overwrites - before.overwrites, 800);
    let metadata = |c: super::super::CoreCounts| (c.journal_commits, c.marks, c.checkpoints);
    assert_eq!(metadata(after), metadata(before));
}

#[test]
fn hot_regions_keep_their_marks_and_only_so_many() {
    let mut world = world();
    let tick = |world: &mut World| {
        let Answer::Tick(tick) = world.ok(1, Command::Tick) else {
            panic!("no tick")
        };
        tick
    };
    let left = |world: &mut World, tick, keep_max| world.ok(1, stable(tick, 1, keep_max));
    let [first, second] = [0, 1024];
    world.ok(1, write(first, 1, false));
    tick(&mut world);
    world.ok(1, write(second, 1, false));
    world.ok(1, Command::Flush);
    let t = tick(&mut world);
    // The first was idle for a whole tick, the second was not.
    world.must_mark.remove(&(1, 0));
    assert_eq!(left(&mut world, t, 0), Answer::Stable { marks_left: 1 });
    world.ok(1, write(first, 1, false));
    let t = tick(&mut world);
    world.ok(1, write(first, 1, false));
    world.ok(1, Command::Flush);
    // Both are hot. One may stay: the one that was written since the tick, however many may.
    world.must_mark.remove(&(1, 1));
    assert_eq!(left(&mut world, t, 1), Answer::Stable { marks_left: 1 });
    assert_eq!(left(&mut world, t, 1), Answer::Stable { marks_left: 1 });
}

#[test]
fn a_failed_flush_poisons_the_store_for_good() {
    let mut world = world();
    world.ok(1, write(0, 1, false));
    let flush = world.submit(1, Command::Flush);
    assert!(world.fail(|p| matches!(p, Pending::Flush { .. })));
    let fault = world.poisoned.clone().expect("poisoned");
    assert_eq!(world.answers[&flush], Err(fault.clone()));
    assert_eq!(world.run(1, read(0, 1)), Err(fault.clone()));
    assert_eq!(world.run(1, Command::Flush), Err(fault));
    assert_eq!(pending(&world), "", "nothing is retried");
}

#[test]
fn a_failed_journal_write_poisons_too_and_every_command_is_answered() {
    let mut world = world();
    world.submit(1, write(0, 1, false));
    assert!(world.fail(|p| matches!(p, Pending::Write { durable: true, .. })));
    assert!(world.poisoned.is_some() && world.outstanding.is_empty());
}

#[test]
fn a_failed_read_or_write_is_a_fault_with_its_block_and_leaks_nothing() {
    let mut world = world();
    let free = world.core.usage().free_bytes;
    let id = world.submit(1, write(40, 4, false));
    world.complete(0);
    assert!(world.fail(|p| matches!(p, Pending::Write { durable: false, .. })));
    let Err(StoreFault::Medium {
        what: "write",
        lba,
        errno: 5,
        ..
    }) = world.answers[&id]
    else {
        panic!("{:?}", world.answers[&id])
    };
    assert_eq!(lba.0, 40);
    world.ok(1, Command::Flush);
    assert_eq!(world.core.usage().free_bytes, free);
    world.ok(1, write(40, 4, false));
    let id = world.submit(1, read(40, 4));
    assert!(world.fail(|p| matches!(p, Pending::Read { .. })));
    assert!(matches!(
        world.answers[&id],
        Err(StoreFault::Medium { what: "read", .. })
    ));
    world.ok(1, read(40, 4));
}

#[test]
fn a_full_store_refuses_cleanly_keeps_serving_and_takes_back_what_is_freed() {
    let mut world = World::new(32 << 20, 1 << 20);
    let capacity = world.core.usage().capacity_bytes / 65_536;
    for extent in 0..capacity {
        world.ok(1, write(extent * 16, 1, extent % 50 == 0));
    }
    let full = world.run(1, write(capacity * 16, 4, false));
    assert_eq!(full, Err(StoreFault::NoSpace { needed: 1, free: 0 }));
    let full = world.run(2, write(0, 4, false));
    assert_eq!(full, Err(StoreFault::NoSpace { needed: 1, free: 0 }));
    world.ok(1, write(16, 16, true));
    world.ok(1, read(0, 32));
    // Freed space comes back through a commit that nobody asked for.
    world.ok(1, zero(0, 32, false));
    world.ok(2, write(0, 32, false));
    world.ok(2, read(0, 32));
    assert!(world.run(2, write(64, 1, false)).is_err());
    world.crash(false, 12);
    world.ok(1, Command::Remove);
    world.ok(2, write(64, 1, false));
    world.crash(true, 13);
}

#[test]
fn a_freed_extent_is_not_reused_while_a_read_is_in_flight_there() {
    let mut world = World::new(32 << 20, 1 << 20);
    world.can_trim = false;
    world.reopen();
    (1..3).for_each(|nsid| world.open_session(nsid));
    let capacity = world.core.usage().capacity_bytes / 65_536;
    for extent in 0..capacity {
        world.ok(1, write(extent * 16, 1, false));
    }
    world.ok(1, Command::Flush);
    // Not judged by the model: it began before the discard and may return either.
    let slow = world.submit(
        1,
        Command::Compare {
            range: range(0, 1),
            generation: Generation(0),
        },
    );
    world.submit(1, zero(0, 16, true));
    let wants = world.submit(2, write(0, 1, false));
    while world.order.len() > 1 {
        world.complete(1);
    }
    assert!(!world.answers.contains_key(&slow) && !world.answers.contains_key(&wants));
    world.settle();
    assert_eq!(world.answers[&wants], Ok(Answer::Done));
}

#[test]
fn discarding_what_was_never_written_costs_nothing() {
    let mut world = world();
    let before = world.core.usage();
    world.submit(1, zero(0, 4096, true));
    assert_eq!(pending(&world), "");
    assert_eq!(world.core.usage(), before);
    assert_eq!(world.core.slice(Nsid(1)).unwrap().mark_count, 0);
}

#[test]
fn a_discard_gives_back_what_was_zeroed_and_kept() {
    let mut world = world();
    let free = world.core.usage().free_bytes;
    let mut keep = zero(0, 16, false);
    if let Command::Zero { deallocate, .. } = &mut keep {
        *deallocate = false;
    }
    world.ok(1, write(0, 16, false));
    world.ok(1, keep);
    world.ok(1, Command::Flush);
    assert!(world.core.usage().free_bytes < free, "kept");
    world.ok(1, zero(0, 16, false));
    world.ok(1, Command::Flush);
    world.settle();
    assert_eq!(world.core.usage().free_bytes, free);
}

#[test]
fn a_removed_slice_leaves_nothing_to_its_successor() {
    let mut world = world();
    let free = world.core.usage().free_bytes;
    for at in 0..40 {
        world.ok(1, write(at * 16, 16, at % 7 == 0));
    }
    let flush = world.submit(1, Command::Flush);
    let slow = world.submit(1, write(0, 1, false));
    let remove = world.submit(1, Command::Remove);
    let late = world.submit(1, read(0, 1));
    assert_eq!(
        world.answers[&late],
        Err(StoreFault::UnknownSlice { nsid: Nsid(1) })
    );
    world.settle();
    for id in [flush, slow, remove] {
        assert_eq!(world.answers[&id], Ok(Answer::Done));
    }
    assert_eq!(world.core.usage().free_bytes, free);
    world.ok(1, create(spec(1, SIZE)));
    world.model.clear();
    world.must_mark.clear();
    world.open_session(1);
    world.ok(1, read(0, 16));
    world.crash(false, 77);
    world.ok(1, read(0, 16));
}

#[test]
fn a_slice_is_created_once_and_only_grows() {
    let mut world = world();
    world.ok(1, create(spec(1, SIZE)));
    world.ok(1, create(spec(1, 2 * SIZE)));
    let smaller = world.run(1, create(spec(1, SIZE)));
    assert_eq!(smaller, Err(StoreFault::SliceExists { nsid: Nsid(1) }));
    let mut odd = spec(5, SIZE);
    odd.shape.shard_blocks = 3000;
    assert!(matches!(
        world.run(5, create(odd)),
        Err(StoreFault::BadSpec { .. })
    ));
    world.crash(false, 3);
    assert_eq!(
        world.core.slice(Nsid(1)).unwrap().spec.size_blocks,
        2 * SIZE
    );
}

#[test]
fn a_slice_made_anew_for_a_lost_one_is_incomplete_until_it_is_completed() {
    let mut world = world();
    let anew = |nsid, size_blocks| Command::Create {
        spec: spec(nsid, size_blocks),
        incomplete: true,
    };
    world.ok(5, anew(5, SIZE));
    world.ok(1, anew(1, 2 * SIZE));
    let incomplete = |world: &World, nsid| world.core.slice(Nsid(nsid)).unwrap().incomplete;
    assert!(incomplete(&world, 5));
    assert!(!incomplete(&world, 1), "it is here, and only grows");
    world.crash(false, 3);
    assert!(incomplete(&world, 5) && !incomplete(&world, 1));
    world.open_session(5);
    world.ok(5, Command::Complete(Stamp::default()));
    world.ok(5, anew(5, SIZE));
    world.crash(false, 4);
    assert!(!incomplete(&world, 5));
}

/// A blank resilver target took a discard that the in-sync stores had not, joined, and the client died:
/// nobody had a mark, so the difference stayed. Found by `ResilverRecovery`.
#[test]
fn an_incomplete_slice_marks_what_is_zeroed_although_nothing_changes() {
    let mut world = world();
    world.ok(
        5,
        Command::Create {
            spec: spec(5, SIZE),
            incomplete: true,
        },
    );
    world.open_session(5);
    world.ok(5, zero(0, 8, false));
    assert!(world.core.marked_regions(5).contains(0));
    world.crash(true, 3);
    assert!(
        world.core.marked_regions(5).contains(0),
        "the mark is durable"
    );
    world.open_session(5);
    world.ok(5, Command::Complete(Stamp::default()));
    world.ok(1, zero(0, 8, false));
    assert!(
        world.core.marked_regions(1).is_empty(),
        "a whole slice that does not change needs no mark"
    );
}

#[test]
fn ranges_beyond_the_volume_or_on_other_stores_are_refused() {
    let mut world = world();
    assert!(matches!(
        world.run(1, write(SIZE - 1, 2, false)),
        Err(StoreFault::OutOfRange { .. })
    ));
    assert!(matches!(
        world.run(1, read(0, 33)),
        Err(StoreFault::TooLong { .. })
    ));
    let mut elsewhere = spec(3, SIZE);
    (
        elsewhere.shape.stride,
        elsewhere.position,
        elsewhere.open_access,
    ) = (2, 1, true);
    world.ok(3, create(elsewhere));
    assert!(matches!(
        world.run(3, read(0, 1)),
        Err(StoreFault::ShardNotHere { .. })
    ));
    assert!(matches!(
        world.run(3, read(1020, 8)),
        Err(StoreFault::ShardNotHere { .. })
    ));
    world.ok(3, write(1024, 8, true));
}

/// Where the last journal record lies.
fn last_record(world: &World) -> u64 {
    let used = world.core.usage().journal_used_bytes;
    (JOURNAL_OFFSET + used) / BLOCK - 1
}

#[test]
fn a_torn_tail_is_the_end_of_the_log() {
    let mut world = world();
    world.ok(1, write(0, 1, true));
    world.ok(1, write(2000, 1, true));
    world.device.corrupt(last_record(&world));
    world.reopen();
    assert!(world.opened.is_some(), "{:?}", world.failed);
}

#[test]
fn a_damaged_record_that_was_proven_durable_refuses_the_store() {
    let mut world = world();
    for at in 0..4 {
        world.ok(1, write(at * 16, 1, true));
    }
    world.device.corrupt(last_record(&world) - 2);
    world.reopen();
    let refused = StoreFault::Open(OpenFault::JournalDamaged {
        path: "fake".into(),
        sequence: 0,
        proof: 0,
    });
    let failed = world.failed.clone().expect("refused");
    assert_eq!(
        std::mem::discriminant(&failed),
        std::mem::discriminant(&refused)
    );
    assert!(
        failed.to_string().contains("proves that it was durable"),
        "{failed}"
    );
}

#[test]
fn one_damaged_superblock_is_survived_and_two_are_not() {
    let mut world = world();
    world.ok(1, write(0, 1, true));
    world.crash(true, 1);
    // The older copy goes; the newer one counts.
    let copies = SUPERBLOCK_OFFSETS.map(|at| at / BLOCK);
    let mut other = world.device.clone();
    world.device.flush(usize::MAX);
    world.device.corrupt(copies[0]);
    world.reopen();
    let first = world.opened.is_some();
    other.flush(usize::MAX);
    other.corrupt(copies[1]);
    world.device = other;
    world.reopen();
    assert!(first && world.opened.is_some(), "{:?}", world.failed);
    world.device.flush(usize::MAX);
    copies.into_iter().for_each(|at| world.device.corrupt(at));
    world.reopen();
    let failed = world.failed.clone().expect("refused");
    assert!(
        failed.to_string().contains("both superblocks are damaged"),
        "{failed}"
    );
}

#[test]
fn a_write_through_device_costs_no_flush() {
    let mut world = world();
    world.volatile_cache = false;
    world.reopen();
    world.open_session(1);
    world.ok(1, write(0, 16, false));
    world.submit(1, Command::Flush);
    assert_eq!(pending(&world), "J", "the map still has to be durable");
    world.settle();
    world.submit(1, write(0, 16, true));
    assert_eq!(pending(&world), "w");
    world.settle();
    world.submit(1, Command::Flush);
    assert_eq!(pending(&world), "");
}

//! The rules of writing, flushing and reading: one claim each.

use super::script::{MS, Script, any, at, command_to, done, members, range, write};
use crate::core::OpId;
use crate::core::{
    Answer, Command, Effect, Event, FailReason, Fault, HostFault, HostWhat, RequestId, SliceFacts,
    Timer, Verdict,
};
use shardmap::dirty::RegionSet;
use shardmap::units::{Incarnation, MembershipSeq, RegionIndex};

#[test]
fn write_is_not_acked_before_every_in_sync_replica_has_it() {
    let mut script = Script::attached(3);
    let sent = script.host(1, write(5, false));
    assert_eq!(sent.len(), 3);
    let ids: Vec<_> = (0..3).map(|s| command_to(&sent, s, any)).collect();
    assert_eq!(script.answer(ids[2], Answer::Done), []);
    assert_eq!(script.answer(ids[0], Answer::Done), []);
    assert_eq!(script.answer(ids[1], Answer::Done), [done(1)]);
}

#[test]
fn a_flush_with_nothing_written_is_answered_at_once() {
    let mut script = Script::attached(2);
    assert_eq!(script.host(1, HostWhat::Flush), [done(1)]);
    let sent = script.host(2, write(5, true));
    script.answer(command_to(&sent, 0, any), Answer::Done);
    assert_eq!(
        script.answer(command_to(&sent, 1, any), Answer::Done),
        [done(2)]
    );
    assert_eq!(
        script.host(3, HostWhat::Flush),
        [done(3)],
        "a durable write needs no flush"
    );
}

#[test]
fn a_flush_covers_a_completed_write_although_the_block_is_being_overwritten() {
    let mut script = Script::attached(1);
    let first = script.host(1, write(5, false));
    script.answer(command_to(&first, 0, any), Answer::Done);
    script.host(2, write(5, false));
    let sent = script.host(3, HostWhat::Flush);
    let flush = command_to(&sent, 0, |c| *c == Command::Flush);
    assert_eq!(script.answer(flush, Answer::Done), [done(3)]);
}

#[test]
fn new_blocks_are_taken_once_the_volume_has_grown_and_it_never_shrinks() {
    let mut script = Script::attached(2);
    let refused = Effect::Complete {
        op: OpId(1),
        result: Err(HostFault::Range),
    };
    assert_eq!(script.host(1, write(1024, false)), [refused]);
    for size_blocks in [2048, 1024] {
        assert_eq!(script.step(Event::Grown { size_blocks }), []);
    }
    assert_eq!(script.run(2, write(2047, false)), [done(2)]);
}

#[test]
fn a_detach_goes_on_when_the_flush_it_waited_for_is_answered() {
    let mut script = Script::attached(1);
    script.run(1, write(5, false));
    let sent = script.host(2, HostWhat::Flush);
    assert_eq!(script.step(Event::Detach), []);
    let flush = command_to(&sent, 0, |c| *c == Command::Flush);
    let mut leaving = script.answer(flush, Answer::Done);
    assert_eq!(leaving.remove(0), done(2));
    assert_eq!(script.serve(leaving), [Effect::Detached]);
}

#[test]
fn overlapping_operations_wait_and_neighbours_do_not() {
    let mut script = Script::attached(1);
    let first = script.host(1, write(5, false));
    assert_eq!(script.host(2, HostWhat::Read(range(4, 2))), []);
    assert_eq!(script.host(3, HostWhat::Read(range(6, 2))).len(), 1);
    let after = script.answer(command_to(&first, 0, any), Answer::Done);
    assert_eq!(after[0], done(1));
    assert_eq!(after.len(), 2, "the read follows: {after:?}");
}

/// A write that store 1 does not answer because its path is gone.
fn held_write() -> Script {
    let mut script = Script::attached(2);
    let sent = script.host(1, write(5, false));
    assert_eq!(script.answer(command_to(&sent, 0, any), Answer::Done), []);
    assert_eq!(script.step(Event::PathLost(at(1))), []);
    script
}

#[test]
fn a_degraded_write_is_acked_only_after_metad_and_the_stamp() {
    let mut script = held_write();
    script.now += 300 * MS;
    let question = script.timer(Timer::Grace(at(1)));
    let asked = script.hear(question);
    let (request, seq, isr) = (RequestId(0), MembershipSeq(0), members(&[0]));
    assert_eq!(asked, [Effect::AskMetad { request, seq, isr }]);
    let verdict = Verdict::Committed {
        seq: MembershipSeq(1),
        isr,
    };
    let stamp = script.step(Event::Metad { request, verdict });
    assert_eq!(stamp.len(), 1);
    let stamp = command_to(&stamp, 0, |c| matches!(c, Command::Stamp(_)));
    assert_eq!(script.answer(stamp, Answer::Done), [done(1)]);
}

#[test]
fn a_target_inherits_many_marks_in_commands_that_a_store_takes() {
    let shards = 15_000_u32;
    let mut script = Script::sized(2, shards.into()).attach();
    script.step(Event::PathLost(at(1)));
    script.now += 300 * MS;
    let question = script.timer(Timer::Grace(at(1)));
    script.hear(question);
    let (seq, isr) = (MembershipSeq(1), members(&[0]));
    let verdict = Verdict::Committed { seq, isr };
    let request = RequestId(0);
    let stamp = script.step(Event::Metad { request, verdict });
    script.answer(command_to(&stamp, 0, any), Answer::Done);
    script.now += 60_000 * MS;
    let asked = script.open(1);
    let [source, target] = [0, 1].map(|s| command_to(&asked, s, any));
    let marks: RegionSet = (0..shards).map(RegionIndex).collect();
    script.answer(target, Answer::Marks(RegionSet::new(), None));
    let mut sent = script.answer(source, Answer::Marks(marks, None));
    if let [Effect::Send { command, what, .. }] = &sent[..]
        && *what == Command::Flush
    {
        sent = script.answer(*command, Answer::Done);
    }
    let mut added = Vec::new();
    while let [Effect::Send { command, what, .. }] = &sent[..]
        && let Command::AddMarks(regions) = what
    {
        assert!(regions.to_bytes().len() <= 64 * 1024);
        added.push(regions.len_regions());
        sent = script.answer(*command, Answer::Done);
    }
    assert_eq!(added, [6_500, 6_500, 2_000]);
    command_to(&sent, 1, |c| matches!(c, Command::CompleteSlice(_)));
}

#[test]
fn a_store_that_is_back_in_time_gets_the_write_again() {
    let mut script = held_write();
    let sent = script.open(1);
    let again = command_to(&sent, 1, |c| matches!(c, Command::Write { .. }));
    assert_eq!(script.answer(again, Answer::Done), [done(1)]);
    assert_eq!(
        script.step(Event::Timer(Timer::Grace(at(1)))),
        [],
        "a late alarm means nothing"
    );
}

#[test]
fn a_store_that_lost_acknowledged_writes_is_removed_at_once() {
    let mut script = Script::attached(2);
    let sent = script.host(1, write(5, false));
    script.answer(command_to(&sent, 0, any), Answer::Done);
    assert_eq!(
        script.answer(command_to(&sent, 1, any), Answer::Done),
        [done(1)]
    );
    script.step(Event::PathLost(at(1)));
    script.told[1].incarnation = 2;
    let open = script.step(Event::PathUp(at(1)));
    let open = command_to(&open, 1, any);
    let after = script.answer(open, Answer::Opened(Incarnation(2)));
    let question = script.answer(
        command_to(&after, 1, any),
        Answer::Facts(SliceFacts {
            incarnation: Incarnation(2),
            ..SliceFacts::default()
        }),
    );
    script.hear(question);
    let (_, isr) = script.machine.membership();
    assert_eq!(isr, members(&[0, 1]), "not before metad says so");
    assert_eq!(script.machine.ack_set(), members(&[0, 1]));
    assert_eq!(script.machine.read_set(), members(&[0]));
}

#[test]
fn the_device_fails_when_the_only_copy_lost_acknowledged_writes() {
    let mut script = Script::attached(1);
    let sent = script.host(1, write(5, false));
    script.answer(command_to(&sent, 0, any), Answer::Done);
    script.step(Event::PathLost(at(0)));
    script.host(2, HostWhat::Read(range(5, 1)));
    script.told[0].incarnation = 2;
    let after = script.open(0);
    let failed = Effect::Complete {
        op: OpId(2),
        result: Err(HostFault::Failed),
    };
    assert_eq!(after, [Effect::Failed(FailReason::DataLost), failed]);
}

#[test]
fn the_last_member_is_never_removed() {
    let mut script = Script::attached(1);
    script.step(Event::PathLost(at(0)));
    assert_eq!(script.step(Event::Timer(Timer::Grace(at(0)))), []);
    assert_eq!(
        script.host(1, HostWhat::Read(range(0, 1))),
        [],
        "held, not failed"
    );
    let read = script.open(0);
    let read = command_to(&read, 0, |c| matches!(c, Command::Read { .. }));
    assert_eq!(script.answer(read, Answer::Done), [done(1)]);
}

#[test]
fn a_session_is_not_reopened_before_the_old_ones_commands_are_answered() {
    let mut script = Script::attached(1);
    let first = script.host(1, write(5, false));
    let second = script.host(2, write(9, false));
    assert_eq!(script.fault(command_to(&first, 0, any), Fault::NotOpen), []);
    script.now += 1_000 * MS;
    assert_eq!(
        script.step(Event::Timer(Timer::Reopen(at(0)))),
        [],
        "one is outstanding"
    );
    let open = script.answer(command_to(&second, 0, any), Answer::Done);
    let sent = script.answer_opening(0, &open);
    assert_eq!(sent.len(), 2, "both are sent again: {sent:?}");
}

#[test]
fn a_superseded_client_fails_its_device() {
    let mut script = Script::attached(2);
    let sent = script.host(1, write(5, false));
    script.fault(command_to(&sent, 0, any), Fault::Fenced);
    script.now += 1_000 * MS;
    let open = script.step(Event::Timer(Timer::Reopen(at(0))));
    let open = command_to(&open, 0, |c| matches!(c, Command::OpenSlice { .. }));
    let after = script.fault(open, Fault::Fenced);
    let failed = Effect::Complete {
        op: OpId(1),
        result: Err(HostFault::Failed),
    };
    assert_eq!(after, [Effect::Failed(FailReason::Fenced), failed]);
}

#[test]
fn a_read_goes_on_elsewhere_at_once_when_its_path_is_lost() {
    let mut script = Script::attached(2);
    let sent = script.host(1, HostWhat::Read(range(0, 1)));
    let Effect::Send { to, .. } = sent[0] else {
        panic!("{sent:?}")
    };
    let other = 1 - to.index();
    let again = script.step(Event::PathLost(to));
    let again = command_to(&again, other, |c| matches!(c, Command::Read { .. }));
    assert_eq!(script.answer(again, Answer::Done), [done(1)]);
}

#[test]
fn a_read_fails_only_when_every_member_has_a_medium_error() {
    let mut script = Script::attached(2);
    let sent = script.host(1, HostWhat::Read(range(0, 1)));
    let Effect::Send { to, command, .. } = sent[0] else {
        panic!("{sent:?}")
    };
    let again = script.fault(command, Fault::Medium);
    let again = command_to(&again, 1 - to.index(), any);
    let failed = Effect::Complete {
        op: OpId(1),
        result: Err(HostFault::Medium),
    };
    assert_eq!(script.fault(again, Fault::Medium), [failed]);
}

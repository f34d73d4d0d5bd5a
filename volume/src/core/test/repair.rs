//! Read repair.

use super::script::{
    Script, any, at, command_to, done, is_read, is_write, members, range, sends, write,
};
use crate::core::{
    Answer, Command, CopyId, Effect, Event, Fault, HostWhat, Payload, RequestId, TraceEvent,
};
use shardmap::units::{Generation, Lba, MembershipSeq, StoreId};

const WHERE: fn() -> shardmap::units::BlockRange = || range(40, 2);

/// A read that one of two members could not serve; that member, the other one, and what followed.
fn half_readable() -> (Script, usize, usize, Vec<Effect>) {
    let mut script = Script::attached(2);
    let sent = script.host(1, HostWhat::Read(WHERE()));
    let [(id, bad, _)] = sends(&sent)[..] else {
        panic!("{sent:?}")
    };
    let again = script.fault(id, Fault::Medium);
    let good = 1 - bad;
    let after = script.answer(command_to(&again, good, is_read), Answer::Done);
    assert_eq!(after[0], done(1), "the host does not wait for the repair");
    (script, bad, good, after)
}

fn copied() -> Answer {
    Answer::Copied { all_zero: false }
}

#[test]
fn what_one_member_cannot_read_is_written_to_it_again() {
    let (mut script, bad, good, after) = half_readable();
    let copy = CopyId(0);
    let into = Payload::Copy(copy);
    let range = WHERE();
    let what = Command::Read {
        range,
        into,
        generation: Generation(1),
    };
    let read = command_to(&after, good, |c| *c == what);
    let sent = script.answer(read, copied());
    let [
        (
            write,
            to,
            Command::Write {
                range, from, fua, ..
            },
        ),
    ] = sends(&sent)[..]
    else {
        panic!("{sent:?}")
    };
    assert_eq!((to, *range, *from, *fua), (bad, WHERE(), into, true));
    assert_eq!(script.answer(write, Answer::Done), [Effect::DropCopy(copy)]);
    let repaired = TraceEvent::Repaired {
        store: StoreId(u32::try_from(bad).unwrap()),
        lba: Lba(40),
        blocks: 2,
    };
    assert!(script.traced.contains(&repaired));
    assert_eq!(script.run(2, write_at(40)), [done(2)], "the lock is free");
}

fn write_at(block: u64) -> HostWhat {
    write(block, false)
}

#[test]
fn a_write_waits_for_the_repair_of_its_blocks_and_then_stands() {
    let (mut script, _, _, after) = half_readable();
    assert_eq!(script.host(2, write_at(41)), []);
    assert_eq!(sends(&script.host(3, write_at(42))).len(), 2);
    let read = command_to(&after, sends(&after)[0].1, any);
    let sent = script.answer(read, copied());
    let ended = script.answer(sends(&sent)[0].0, Answer::Done);
    assert_eq!(sends(&ended).len(), 2, "the write follows: {ended:?}");
}

#[test]
fn a_member_that_does_not_take_the_repair_is_removed() {
    let (mut script, bad, good, after) = half_readable();
    let sent = script.answer(command_to(&after, good, is_read), copied());
    let question = script.fault(command_to(&sent, bad, is_write), Fault::Medium);
    let asked = script.hear(question);
    let (request, seq, isr) = (RequestId(0), MembershipSeq(0), members(&[good]));
    let drop = Effect::DropCopy(CopyId(0));
    assert_eq!(asked, [drop, Effect::AskMetad { request, seq, isr }]);
}

#[test]
fn a_repair_whose_source_is_lost_gives_its_lock_back() {
    let (mut script, _, good, _) = half_readable();
    assert_eq!(script.host(2, write_at(40)), []);
    let after = script.step(Event::PathLost(at(good)));
    assert!(after.contains(&Effect::DropCopy(CopyId(0))), "{after:?}");
    assert_eq!(sends(&after).len(), 1, "the write goes on: {after:?}");
}

#[test]
fn a_repair_whose_target_is_lost_is_given_up() {
    let (mut script, bad, good, after) = half_readable();
    script.answer(command_to(&after, good, is_read), copied());
    assert_eq!(script.host(2, HostWhat::Read(range(41, 1))), []);
    let after = script.step(Event::PathLost(at(bad)));
    assert!(after.contains(&Effect::DropCopy(CopyId(0))), "{after:?}");
    let read = command_to(&after, good, is_read);
    assert_eq!(script.answer(read, Answer::Done), [done(2)]);
    let again = script.open(bad);
    assert!(
        !sends(&again).iter().any(|(_, _, c)| is_write(c)),
        "{again:?}"
    );
}

/// What a store reads beside a write it does not compare with its checksum.
#[test]
fn nobody_reads_what_is_being_repaired() {
    let (mut script, bad, good, after) = half_readable();
    let sent = script.answer(command_to(&after, good, is_read), copied());
    for op in 2..6 {
        assert_eq!(script.host(op, HostWhat::Read(range(41, 1))), []);
        assert_eq!(
            sends(&script.host(op + 10, HostWhat::Read(range(42, 1)))).len(),
            1
        );
    }
    let reads = script.answer(command_to(&sent, bad, is_write), Answer::Done);
    assert_eq!(sends(&reads).len(), 4, "they follow: {reads:?}");
}

#[test]
fn the_same_blocks_are_repaired_once_at_a_time_and_a_failing_disk_not_all_at_once() {
    let mut script = Script::attached(2);
    let mut copies = 0;
    for op in 1..=20 {
        let sent = script.host(op, HostWhat::Read(range(op / 2 * 8, 1)));
        let [(id, bad, _)] = sends(&sent)[..] else {
            assert_eq!(
                op % 2,
                1,
                "it waits for the repair of the same block: {sent:?}"
            );
            continue;
        };
        let again = script.fault(id, Fault::Medium);
        let after = script.answer(command_to(&again, 1 - bad, is_read), Answer::Done);
        copies += sends(&after).len();
    }
    assert_eq!(copies, crate::limits::REPAIRS_MAX);
}

#[test]
fn a_detach_waits_for_a_repair_that_is_being_written_and_for_no_other() {
    let (mut script, bad, good, after) = half_readable();
    let sent = script.answer(command_to(&after, good, is_read), copied());
    assert_eq!(
        script.step(Event::Detach),
        [],
        "a late write must not pass it"
    );
    let closing = script.answer(command_to(&sent, bad, is_write), Answer::Done);
    assert_eq!(script.serve(closing).last(), Some(&Effect::Detached));

    let (mut script, _, _, _) = half_readable();
    let closing = script.step(Event::Detach);
    assert_eq!(closing[0], Effect::DropCopy(CopyId(0)));
    assert_eq!(script.serve(closing).last(), Some(&Effect::Detached));
}

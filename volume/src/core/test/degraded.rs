//! Members that are lost, slow or in doubt.

use super::script::{
    MS, Script, any, ask, at, command_to, done, grant, is_read, is_write, members, range, sends,
    write,
};
use crate::core::{
    Answer, Command, CommandId, Config, Effect, Event, Fault, HostWhat, RequestId, StoreState,
    Timer, TraceEvent, Verdict,
};
use shardmap::units::{MembershipSeq, StoreId};

/// A member is lost and metad does not answer.
fn undecided() -> Script {
    let mut script = Script::attached(3);
    script.step(Event::PathLost(at(2)));
    script.now += 300 * MS;
    let questions = script.timer(Timer::Grace(at(2)));
    assert_eq!(script.hear(questions), [ask(0, 0, &[0, 1])]);
    let (request, verdict) = (RequestId(0), Verdict::Unknown);
    assert_eq!(script.step(Event::Metad { request, verdict }), []);
    script
}

#[test]
fn without_metad_only_writes_wait_that_touch_the_lost_member() {
    let mut script = undecided();
    assert_eq!(script.run(1, HostWhat::Read(range(9, 1))), [done(1)]);
    assert_eq!(
        script.host(2, HostWhat::Flush),
        [done(2)],
        "nothing is unflushed on the lost member"
    );
    assert_eq!(script.run(3, write(5, false)), [], "held, not failed");
    let flushes = script.host(4, HostWhat::Flush);
    let flushes = script.serve(flushes);
    assert_eq!(flushes, [done(4)], "it covers only what has completed");
    // metad is back: the same request, and the stamp, let the write go.
    script.now += 2_000 * MS;
    let questions = script.timer(Timer::Metad);
    assert_eq!(script.hear(questions), [ask(0, 0, &[0, 1])]);
    let stamps = script.committed(0, 1, &[0, 1]);
    assert_eq!(script.serve(stamps), [done(3)]);
}

#[test]
fn a_shard_without_the_lost_member_does_not_notice() {
    let map_of_two = |replicas: u8| {
        let mut grant = grant(3, 3);
        grant.map.shape.replicas = replicas;
        grant
    };
    let config = Config {
        stable_period_ms: 0,
        ..Config::default()
    };
    let mut script = Script::with(config, map_of_two(2)).attach();
    script.step(Event::PathLost(at(2)));
    script.now += 300 * MS;
    script.timer(Timer::Grace(at(2)));
    // Three shards on stores 01, 12 and 20.
    assert_eq!(script.run(1, write(5, false)), [done(1)]);
    assert_eq!(script.run(2, write(1029, false)), []);
    assert_eq!(script.run(3, write(2053, false)), []);
}

#[test]
fn a_degrade_that_was_recorded_although_its_answer_was_lost_is_learnt_from_the_repetition() {
    let mut script = undecided();
    script.run(1, write(5, false));
    let verdict = Verdict::Stale {
        seq: MembershipSeq(1),
        isr: members(&[0, 1]),
    };
    let request = RequestId(0);
    let stamps = script.step(Event::Metad { request, verdict });
    assert_eq!(script.serve(stamps), [done(1)]);
    let repeated = script.committed(0, 1, &[0, 1]);
    assert_eq!(repeated, [], "a second answer to a settled request");
}

#[test]
fn the_last_member_that_lost_nothing_is_kept_however_late_it_is() {
    let mut script = Script::attached(2);
    script.run(1, write(5, false));
    script.step(Event::PathLost(at(1)));
    script.step(Event::PathLost(at(0)));
    script.now += 300 * MS;
    assert_eq!(script.timer(Timer::Grace(at(0))), []);
    assert_eq!(script.timer(Timer::Grace(at(1))), []);
    // One comes back having lost the write: the other must not be given up for it.
    script.told[1].incarnation = 2;
    assert_eq!(script.open(1), []);
    assert_eq!(script.machine.store_state(at(1)), StoreState::Suspect);
    assert_eq!(script.host(2, HostWhat::Read(range(5, 1))), []);
    let after = script.open(0);
    command_to(&after, 0, is_read);
    assert!(after.contains(&ask(0, 0, &[0])), "{after:?}");
}

#[test]
fn below_the_minimum_io_is_held_until_a_replica_is_back() {
    let config = Config {
        min_in_sync: 2,
        stable_period_ms: 0,
        ..Config::default()
    };
    let mut script = Script::with(config, grant(2, 1)).attach();
    script.lose(1, (0, 1), &[0]);
    assert_eq!(script.run(1, write(5, false)), []);
    assert_eq!(script.run(2, HostWhat::Read(range(9, 1))), []);
    script.now += 60_000 * MS;
    let opened = script.open(1);
    let asked = script.serve(opened);
    assert_eq!(asked, [ask(1, 1, &[0, 1])]);
    let stamps = script.committed(1, 2, &[0, 1]);
    let mut ended = script.serve(stamps);
    ended.sort_by_key(|e| format!("{e:?}"));
    assert_eq!(ended, [done(1), done(2)]);
}

#[test]
fn a_detach_waits_for_what_is_held_and_the_resilver_that_lets_it_go_on() {
    let config = Config {
        min_in_sync: 2,
        stable_period_ms: 0,
        ..Config::default()
    };
    let mut script = Script::with(config, grant(2, 1)).attach();
    script.lose(1, (0, 1), &[0]);
    assert_eq!(script.run(1, write(5, false)), []);
    assert_eq!(script.step(Event::Detach), []);
    script.now += 60_000 * MS;
    let opened = script.open(1);
    assert_eq!(script.serve(opened), [ask(1, 1, &[0, 1])]);
    let stamps = script.committed(1, 2, &[0, 1]);
    assert_eq!(script.serve(stamps), [done(1), Effect::Detached]);
}

#[test]
fn a_write_over_two_shards_is_held_until_the_store_that_fails_it_can_go() {
    let mut grant = grant(3, 3);
    grant.map.shape.replicas = 2;
    let config = Config {
        stable_period_ms: 0,
        ..Config::default()
    };
    // Three shards on stores 01, 12 and 20; of the second only store 2 is in sync.
    let mut script = Script::with(config, grant).attach();
    script.lose(1, (0, 1), &[0, 2]);
    let two_shards = HostWhat::Write {
        range: range(2047, 2),
        fua: false,
    };
    let sent = script.host(1, two_shards);
    let [first, taken, second] = sends(&sent)[..] else {
        panic!("{sent:?}")
    };
    assert_eq!([first.1, taken.1, second.1], [2, 0, 2]);
    let ids = [first.0, taken.0, second.0];
    assert_eq!(script.fault(ids[0], Fault::Medium), []);
    assert_eq!(script.answer(ids[1], Answer::Done), []);
    assert_eq!(script.fault(ids[2], Fault::Medium), [], "it cannot go");
    script.now += 60_000 * MS;
    let opened = script.open(1);
    let joins = script.serve(opened);
    assert_eq!(joins, [ask(1, 1, &[0, 1, 2])]);
    let stamps = script.committed(1, 2, &[0, 1, 2]);
    assert_eq!(script.serve(stamps), [ask(2, 2, &[0, 1])]);
    let stamps = script.committed(2, 3, &[0, 1]);
    assert_eq!(script.serve(stamps), [done(1)], "the others have it");
}

/// A write that store 2 keeps waiting while the others have done it.
fn one_waits() -> (Script, CommandId) {
    let mut script = Script::attached(3);
    let sent = script.host(1, write(5, false));
    for store in 0..2 {
        script.answer(command_to(&sent, store, any), Answer::Done);
    }
    assert_eq!(script.armed[&Timer::Slow].0, 3_000 * MS);
    script.now = 3_000 * MS;
    (script, command_to(&sent, 2, any))
}

#[test]
fn a_member_that_keeps_a_write_waiting_counts_as_lost() {
    let (mut script, late) = one_waits();
    let questions = script.timer(Timer::Slow);
    assert_eq!(script.hear(questions), [ask(0, 0, &[0, 1])]);
    let store = StoreId(2);
    assert!(script.traced.contains(&TraceEvent::Slow { store }));
    let stamps = script.committed(0, 1, &[0, 1]);
    let ended = script.serve(stamps);
    assert_eq!(ended, [done(1)]);
    script.answer(late, Answer::Done); // nobody needs it any more
    // Hysteresis: it does not come back at once, and later the next time.
    let back = |script: &mut Script| {
        script.armed.remove(&Timer::Reopen(at(2)));
        script.timer(Timer::Reopen(at(2)));
        script.armed.get(&Timer::Reopen(at(2))).map(|m| m.0)
    };
    assert_eq!(back(&mut script), Some(13_000 * MS));
}

#[test]
fn when_every_member_keeps_a_write_waiting_none_is_to_blame() {
    let mut script = Script::attached(2);
    script.host(1, write(5, false));
    script.now = 3_000 * MS;
    assert_eq!(script.timer(Timer::Slow), []);
    assert!(script.armed[&Timer::Slow].0 > script.now, "looked at again");
}

#[test]
fn a_late_alarm_blames_nobody_because_answers_may_lie_unread() {
    let (mut script, _) = one_waits();
    script.now = 30_000 * MS;
    assert_eq!(script.timer(Timer::Slow), []);
    assert_eq!(script.armed[&Timer::Slow].0, 33_000 * MS);
}

#[test]
fn the_alarm_ends_with_the_writes() {
    let mut script = Script::attached(2);
    script.run(1, write(5, false));
    script.now = 3_000 * MS;
    script.armed.clear();
    assert_eq!(script.timer(Timer::Slow), []);
    assert!(script.armed.is_empty(), "an idle volume has no alarm");
}

#[test]
fn reads_go_to_the_quicker_member_and_try_the_other_now_and_then() {
    let mut script = Script::attached(2);
    let mut reads = [0_u32; 2];
    for op in 1..=256 {
        let sent = script.host(op, HostWhat::Read(range(0, 1)));
        let [(id, store, _)] = sends(&sent)[..] else {
            panic!("{sent:?}")
        };
        reads[store] += 1;
        script.now += if store == 0 { 10 * MS } else { MS / 10 };
        assert_eq!(script.answer(id, Answer::Done), [done(op)]);
    }
    assert!((1..20).contains(&reads[0]), "{reads:?}");
}

#[test]
fn reads_of_equally_quick_members_take_turns() {
    let mut script = Script::attached(2);
    let mut reads = [0_u32; 2];
    for op in 1..=64 {
        let sent = script.host(op, HostWhat::Read(range(0, 1)));
        let [(id, store, _)] = sends(&sent)[..] else {
            panic!("{sent:?}")
        };
        reads[store] += 1;
        script.now += MS / 10;
        script.answer(id, Answer::Done);
    }
    assert!(reads[0].abs_diff(reads[1]) <= 4, "{reads:?}");
}

#[test]
fn a_detach_does_not_wait_for_a_lost_member_that_has_everything_flushed() {
    let mut script = undecided();
    let closing = script.step(Event::Detach);
    let closed: Vec<_> = sends(&closing).iter().map(|(_, to, _)| *to).collect();
    assert_eq!(closed, [0, 1], "and marks are not cleaned: {closing:?}");
    assert_eq!(script.serve(closing), [Effect::Detached]);
    assert!(!script.sent.iter().any(|(_, what)| is_write(what)));
    let cleaned = |(_, what): &(usize, Command)| matches!(what, Command::Stable { .. });
    assert!(!script.sent.iter().any(cleaned));
}

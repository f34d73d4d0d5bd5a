//! Without a host (ADR 0006): nobody waits for a member, so members are waited for.

use super::script::{MS, Script, ask, at, grant, members, range, sends, write};
use crate::core::{
    AttachFault, Command, Config, Effect, Event, Grant, HostFault, OpId, StoreState, Timer,
    TraceEvent,
};
use shardmap::units::MembershipSeq;

const PATIENT: Config = Config {
    min_in_sync: 1,
    degrade_grace_ms: 300,
    attach_wait_ms: 3_000,
    metad_retry_ms: 2_000,
    reopen_ms: (100, 10_000),
    slow_ms: 0,
    slow_return_ms: (10_000, 300_000),
    may_shrink: false,
    resilver_bytes_per_s_max: 0,
    stable_period_ms: 0,
    snapshot_stuck_ms: 2_000,
    snapshot_hold_ms: 3_000,
    seed: 1,
    record_commands: false,
};

/// Three stores with these in sync, whose marks say that region 0 may differ.
fn script(isr: &[usize]) -> Script {
    let grant = Grant {
        seq: MembershipSeq(5),
        isr: members(isr),
        ..grant(3, 1)
    };
    let mut script = Script::with(PATIENT, grant);
    for told in &mut script.told {
        told.stamp = (5, members(isr));
        told.marks = vec![0];
    }
    script
}

fn is_asked(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::AskMetad { .. }))
}

/// Serves with 0 and 1 in sync, 2 never seen so far.
fn serving() -> Script {
    let mut script = script(&[0, 1]);
    script.step(Event::Start);
    script.open(0);
    let last = script.open(1);
    let last = script.serve(last);
    assert!(last.contains(&Effect::Attached), "{last:?}");
    assert!(script.traced.contains(&TraceEvent::Reconciled));
    script
}

#[test]
fn a_store_comes_back_and_the_marks_are_cleaned_with_nobody_using_the_volume() {
    let mut script = serving();
    let opened = script.open(2);
    assert_eq!(script.serve(opened), [ask(0, 5, &[0, 1, 2])]);
    let stamps = script.committed(0, 6, &[0, 1, 2]);
    assert_eq!(script.serve(stamps), []);
    script.sent.clear();
    let leaving = script.step(Event::Detach);
    assert_eq!(script.serve(leaving), [Effect::Detached]);
    let cleaned = script
        .sent
        .iter()
        .filter(|(_, what)| matches!(what, Command::Stable { .. }));
    assert_eq!(cleaned.count(), 3);
}

#[test]
fn a_member_that_is_lost_is_waited_for_however_long() {
    let mut script = serving();
    assert_eq!(script.step(Event::PathLost(at(1))), []);
    for _ in 0..100 {
        script.now += 60_000 * MS;
        assert_eq!(script.timer(Timer::Grace(at(1))), []);
    }
    assert_eq!(script.machine.store_state(at(1)), StoreState::Disconnected);
    let opened = script.open(2);
    assert_eq!(sends(&opened).len(), 0, "no resilver with a member away");
    let back = script.open(1);
    assert_eq!(script.serve(back), [ask(0, 5, &[0, 1, 2])]);
}

#[test]
fn an_attach_ends_if_a_member_does_not_answer_in_time_though_another_has_everything() {
    let mut script = script(&[0, 1]);
    script.step(Event::Start);
    script.open(0);
    script.open(2);
    script.now += 3_000 * MS;
    let away = AttachFault::MembersAway(members(&[1]));
    assert_eq!(script.timer(Timer::Attach), [Effect::AttachFailed(away)]);
}

#[test]
fn a_member_that_has_lost_its_slice_is_no_use_waiting_for() {
    let mut script = script(&[0, 1, 2]);
    script.told[1].incomplete = true;
    script.told[1].present = vec![range(0, 0x10)];
    script.told[0].present = vec![range(0, 0x20)];
    script.step(Event::Start);
    script.open(0);
    script.open(2);
    let question = script.open(1);
    assert_eq!(script.hear(question), [ask(0, 5, &[0, 2])]);
    let stamps = script.committed(0, 6, &[0, 2]);
    let served = script.serve(stamps);
    assert!(served.contains(&Effect::Attached) && !is_asked(&served));
    script.now += 60_000 * MS;
    let opening = script.timer(Timer::Reopen(at(1)));
    script.told[1].stamp = (0, members(&[]));
    let back = script.answer_opening(1, &opening);
    assert_eq!(script.serve(back), [ask(1, 6, &[0, 1, 2])]);
}

#[test]
fn what_is_abandoned_ends_at_once_with_all_that_it_holds() {
    let mut script = serving();
    assert_eq!(script.step(Event::PathLost(at(1))), []);
    assert_eq!(script.run(1, write(5, false)), []);
    assert_eq!(
        script.step(Event::Detach),
        [],
        "the write waits for a member"
    );
    let failed = Effect::Complete {
        op: OpId(1),
        result: Err(HostFault::Failed),
    };
    assert_eq!(script.step(Event::Abandon), [failed, Effect::Detached]);
    assert_eq!(script.step(Event::Abandon), [], "once");
}

#[test]
fn what_is_not_there_yet_or_has_failed_is_abandoned_as_it_is_detached() {
    let mut script = script(&[0, 1]);
    script.step(Event::Start);
    script.open(0);
    let why = AttachFault::Detached;
    assert_eq!(script.step(Event::Abandon), [Effect::AttachFailed(why)]);
}

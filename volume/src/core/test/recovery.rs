//! Attaches that are not ordinary: what is above has outlived its client, or metad was restored.

use super::script::{MS, Script, at, command_to, done, grant, members, sends, write};
use crate::core::{
    Answer, AttachFault, Command, Config, Effect, Event, FailReason, Fault, Grant, HostFault,
    HostWhat, OpId, RequestId, Timer, TraceEvent,
};
use shardmap::units::{Incarnation, MembershipSeq, StoreId};

const CONFIG: fn() -> Config = || Config {
    stable_period_ms: 0,
    ..Config::default()
};

/// Store and incarnation of those that the predecessor trusted.
fn survived(stores: u16, trusted: &[(usize, u64)]) -> Script {
    let trusted = trusted.iter().map(|(s, i)| (at(*s), Incarnation(*i)));
    let grant = Grant {
        survived: Some(trusted.collect()),
        ..grant(stores, 1)
    };
    let mut script = Script::with(CONFIG(), grant);
    script.step(Event::Start);
    script
}

fn suspects(script: &Script) -> Vec<StoreId> {
    let suspect = |event: &TraceEvent| {
        if let TraceEvent::Suspect { store, .. } = event {
            Some(*store)
        } else {
            None
        }
    };
    script.traced.iter().filter_map(suspect).collect()
}

#[test]
fn what_is_remembered_grows_with_sessions_and_leaves_out_who_lost_writes() {
    let mut script = Script::attached(2);
    let both = [(at(0), Incarnation(1)), (at(1), Incarnation(1))];
    assert_eq!(script.remembered, both.into(), "before the device appears");
    // A restart with nothing unflushed loses nothing.
    script.step(Event::PathLost(at(1)));
    assert_eq!(script.remembered, both.into(), "it may come back as it was");
    script.told[1].incarnation = 2;
    script.open(1);
    let both = [(at(0), Incarnation(1)), (at(1), Incarnation(2))];
    assert_eq!(script.remembered, both.into());
    // One with an unflushed write does: the store is not to be trusted until metad says so again.
    script.run(1, write(5, false));
    script.step(Event::PathLost(at(1)));
    script.told[1].incarnation = 3;
    script.open(1);
    assert_eq!(script.remembered, [(at(0), Incarnation(1))].into());
}

#[test]
fn a_store_is_remembered_as_soon_as_metad_is_asked_to_take_it_in() {
    let mut script = Script::with(CONFIG(), grant(2, 1)).attach();
    script.lose(1, (0, 1), &[0]);
    script.run(1, write(5, false));
    assert_eq!(script.remembered, [(at(0), Incarnation(1))].into());
    script.now += 60_000 * MS;
    let opened = script.open(1);
    let asked = script.serve(opened);
    assert!(matches!(asked[..], [Effect::AskMetad { .. }]), "{asked:?}");
    // Killed now, it may have been taken in all the same.
    let both = [(at(0), Incarnation(1)), (at(1), Incarnation(1))];
    assert_eq!(script.remembered, both.into());
}

#[test]
fn a_store_that_restarted_while_the_client_was_down_is_removed_before_anything_is_served() {
    let mut script = survived(2, &[(0, 1), (1, 1)]);
    script.told[1].incarnation = 2;
    assert_eq!(script.open(0), []);
    let question = script.open(1);
    assert_eq!(suspects(&script), [StoreId(1)]);
    let asked = script.hear(question);
    let (request, seq, isr) = (RequestId(0), MembershipSeq(0), members(&[0]));
    assert_eq!(asked, [Effect::AskMetad { request, seq, isr }]);
    let stamp = script.committed(0, 1, &[0]);
    let stamp = command_to(&stamp, 0, |c| matches!(c, Command::Stamp(_)));
    let after = script.answer(stamp, Answer::Done);
    assert_eq!(after[0], Effect::Attached);
    assert_eq!(script.remembered, [(at(0), Incarnation(1))].into());
}

#[test]
fn stores_that_did_not_restart_are_all_trusted() {
    let mut script = survived(2, &[(0, 1), (1, 1)]);
    script.open(0);
    assert_eq!(script.open(1), [Effect::Attached]);
    assert_eq!(suspects(&script), []);
}

#[test]
fn the_device_is_lost_if_every_member_restarted_while_the_client_was_down() {
    let mut script = survived(2, &[(0, 1), (1, 1)]);
    script.told[0].incarnation = 2;
    script.told[1].incarnation = 7;
    assert_eq!(script.open(0), [], "the other one may be whole");
    assert_eq!(
        script.open(1),
        [Effect::AttachFailed(AttachFault::DataLost)]
    );
}

#[test]
fn a_member_that_nobody_remembers_is_not_trusted() {
    let mut script = survived(2, &[]);
    script.open(0);
    assert_eq!(
        script.open(1),
        [Effect::AttachFailed(AttachFault::DataLost)]
    );
}

#[test]
fn an_absent_store_that_may_be_whole_is_waited_for_and_named() {
    let mut script = survived(2, &[(0, 1), (1, 1)]);
    script.told[0].incarnation = 2;
    assert_eq!(script.open(0), []);
    script.now += 3_000 * MS;
    let needed = AttachFault::StoresNeeded(members(&[0, 1]));
    assert_eq!(
        script.timer(Timer::Attach),
        [Effect::AttachFailed(needed)],
        "refused, and tried again later"
    );
}

#[test]
fn a_flush_after_the_takeover_covers_what_the_predecessor_acknowledged() {
    let mut script = survived(1, &[(0, 1)]);
    script.told[0].marks = vec![0];
    let after = script.open(0);
    assert_eq!(after[0], Effect::Attached);
    let sent = script.host(1, HostWhat::Flush);
    assert_eq!(sent, [], "waits for the flush that reconciliation began");
    let first = command_to(&after, 0, |c| *c == Command::Flush);
    assert!(script.answer(first, Answer::Done).contains(&done(1)));
    assert_eq!(script.host(2, HostWhat::Flush), [done(2)]);
}

#[test]
fn a_restart_after_the_takeover_and_before_a_flush_loses_the_predecessors_writes() {
    let mut script = survived(1, &[(0, 1)]);
    script.told[0].marks = vec![0];
    script.open(0);
    script.step(Event::PathLost(at(0)));
    script.told[0].incarnation = 2;
    script.told[0].marks = Vec::new();
    assert_eq!(script.open(0), [Effect::Failed(FailReason::DataLost)]);
    let failed = Effect::Complete {
        op: OpId(1),
        result: Err(HostFault::Failed),
    };
    assert_eq!(script.host(1, write(5, false)), [failed]);
}

#[test]
fn a_restart_before_the_takeover_is_complete_counts_too() {
    let mut script = survived(2, &[(0, 1), (1, 1)]);
    script.open(0);
    script.step(Event::PathLost(at(0)));
    script.told[0].incarnation = 2;
    script.open(0);
    assert_eq!(suspects(&script), [StoreId(0)]);
}

/// Granted from a backup: seq 3, all in sync.
fn restored(stores: u16, stamps: &[(u64, &[usize])]) -> Script {
    let grant = Grant {
        verified: false,
        seq: MembershipSeq(3),
        ..grant(stores, 1)
    };
    let mut script = Script::with(CONFIG(), grant);
    for (told, (seq, isr)) in script.told.iter_mut().zip(stamps) {
        told.stamp = (*seq, members(isr));
    }
    script.step(Event::Start);
    script
}

fn verify(found_seq: u64, isr: &[usize]) -> Effect {
    Effect::AskVerify {
        request: RequestId(0),
        seq: MembershipSeq(3),
        found_seq: MembershipSeq(found_seq),
        isr: members(isr),
    }
}

#[test]
fn the_newest_stamp_wins_over_the_backup() {
    let mut script = restored(2, &[(4, &[0]), (3, &[0, 1])]);
    let asked = script.open(0);
    assert_eq!(asked, [verify(4, &[0])]);
    assert_eq!(script.open(1), [], "nothing is served and nobody removed");
    let stamp = script.committed(0, 2 << 48, &[0]);
    let [(id, 0, Command::Stamp(stamp))] = sends(&stamp)[..] else {
        panic!("{stamp:?}")
    };
    assert_eq!((stamp.seq.0, stamp.isr), (2 << 48, members(&[0])));
    assert_eq!(script.answer(id, Answer::Done)[0], Effect::Attached);
}

#[test]
fn every_member_of_the_newest_membership_must_answer() {
    let mut script = restored(2, &[(4, &[0]), (3, &[0, 1])]);
    assert_eq!(script.open(1), [], "the backup names store 0 too");
    script.now += 3_000 * MS;
    let needed = AttachFault::StoresNeeded(members(&[0]));
    assert_eq!(script.timer(Timer::Attach), [Effect::AttachFailed(needed)]);
}

#[test]
fn a_blank_disk_is_not_an_answer() {
    let mut script = restored(2, &[(0, &[]), (3, &[0, 1])]);
    script.told[0].incomplete = true;
    script.open(0);
    assert_eq!(script.open(1), [], "store 0 may have held a newer stamp");
    script.now += 3_000 * MS;
    let needed = AttachFault::StoresNeeded(members(&[0]));
    assert_eq!(script.timer(Timer::Attach), [Effect::AttachFailed(needed)]);
}

#[test]
fn two_memberships_of_one_version_are_refused() {
    let mut script = restored(2, &[(4, &[0]), (4, &[0, 1])]);
    let asked = script.open(1);
    assert_eq!(asked, [], "store 0 has not answered");
    assert_eq!(
        script.open(0),
        [Effect::AttachFailed(AttachFault::Membership)]
    );
}

#[test]
fn marks_of_a_member_that_only_the_stamps_know_are_reconciled() {
    let backup = members(&[0]);
    let grant = Grant {
        verified: false,
        seq: MembershipSeq(3),
        isr: backup,
        ..grant(2, 1)
    };
    let mut script = Script::with(CONFIG(), grant);
    script.told[0].stamp = (4, members(&[0, 1]));
    script.told[1].stamp = (4, members(&[0, 1]));
    script.told[1].marks = vec![0];
    script.step(Event::Start);
    script.open(0);
    let asked = script.open(1);
    assert_eq!(asked, [verify(4, &[0, 1])]);
    let stamps = script.committed(0, 2 << 48, &[0, 1]);
    script.serve(stamps);
    let regions = 1;
    assert!(script.traced.contains(&TraceEvent::Establish { regions }));
    assert!(script.traced.contains(&TraceEvent::Reconciled));
}

#[test]
fn a_lost_answer_to_the_verification_is_asked_for_again() {
    let mut script = restored(1, &[(3, &[0])]);
    assert_eq!(script.open(0), [verify(3, &[0])]);
    script.now += 2_000 * MS;
    assert_eq!(script.timer(Timer::Metad), [verify(3, &[0])]);
}

#[test]
fn a_stamp_that_metad_does_not_know_of_stops_an_ordinary_attach() {
    let mut script = Script::new(2);
    script.told[1].stamp = (9, members(&[1]));
    script.step(Event::Start);
    script.open(0);
    assert_eq!(
        script.open(1),
        [Effect::AttachFailed(AttachFault::MetadBehind)]
    );
}

#[test]
fn a_write_that_failed_everywhere_is_flushed_before_its_region_is_compared() {
    let mut script = Script::attached(2);
    let sent = script.host(1, write(5, false));
    script.fault(command_to(&sent, 0, |_| true), Fault::Medium);
    let after = script.fault(command_to(&sent, 1, |_| true), Fault::Medium);
    // Either member may hold part of it in its cache; a value that is read must not vanish again.
    let flushes: Vec<_> = sends(&after)
        .into_iter()
        .map(|(_, to, what)| (to, what.clone()))
        .collect();
    assert_eq!(flushes, [(0, Command::Flush), (1, Command::Flush)]);
    script.answer(command_to(&after, 0, |_| true), Answer::Done);
    let hashes = script.answer(command_to(&after, 1, |_| true), Answer::Done);
    command_to(&hashes, 0, |c| matches!(c, Command::Hash(..)));
    assert_eq!(script.machine.regions_to_reconcile(), 1);
    script.serve(hashes);
    assert_eq!(script.machine.regions_to_reconcile(), 0);
    let again = script.host(2, write(5, false));
    assert_eq!(sends(&again).len(), 2);
}

/// A write failed everywhere; both members have been flushed and are asked for their digests.
fn compared_again(script: &mut Script) -> Vec<Effect> {
    let sent = script.host(1, write(5, false));
    script.fault(command_to(&sent, 0, |_| true), Fault::Medium);
    let after = script.fault(command_to(&sent, 1, |_| true), Fault::Medium);
    script.answer(command_to(&after, 0, |_| true), Answer::Done);
    script.answer(command_to(&after, 1, |_| true), Answer::Done)
}

fn hashes(command: &Command) -> bool {
    matches!(command, Command::Hash(..))
}

/// What cannot be read on one member is written there again from the other one, all of the region, and
/// nobody is removed for it.
#[test]
fn a_doubtful_region_that_a_member_cannot_read_is_copied_to_it_whole() {
    let mut script = Script::attached(2);
    let asked = compared_again(&mut script);
    script.sent.clear();
    script.fault(command_to(&asked, 0, hashes), Fault::Medium);
    let other = command_to(&asked, 1, hashes);
    let copies = script.answer(other, Answer::Hashes(vec![7; 64]));
    let rest = script.serve(copies);
    assert_eq!(script.machine.regions_to_reconcile(), 0);
    let asks = |e: &Effect| matches!(e, Effect::AskMetad { .. });
    assert!(!rest.iter().any(asks), "{rest:?}");
    let to = |of: usize, f: fn(&Command) -> bool| {
        let sent = script.sent.iter();
        sent.filter(|(to, what)| *to == of && f(what)).count()
    };
    let reads = |c: &Command| matches!(c, Command::Read { .. });
    let durable = |c: &Command| matches!(c, Command::Write { fua: true, .. });
    assert_eq!((to(0, reads), to(1, reads)), (0, 64));
    assert_eq!((to(0, durable), to(1, durable)), (64, 0));
}

/// Nobody can be read: the region is not taken for equal.
#[test]
fn a_doubtful_region_that_no_member_can_read_stays_doubtful() {
    let mut script = Script::attached(2);
    let asked = compared_again(&mut script);
    script.fault(command_to(&asked, 0, hashes), Fault::Medium);
    script.fault(command_to(&asked, 1, hashes), Fault::Medium);
    assert_eq!(script.machine.regions_to_reconcile(), 1);
}

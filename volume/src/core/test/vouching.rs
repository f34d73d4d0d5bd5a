//! A store that has joined counts once an older member is stamped with it (protocol §7).

use super::script::{MS, Script, ask, at, done, grant, members, sends, write};
use crate::core::{Answer, AttachFault, Command, Effect, Event, Grant, StoreState, Timer};
use shardmap::units::MembershipSeq;

/// Both in sync as of version 3; this is what they were stamped with.
fn granted(stamps: [(u64, &[usize]); 2]) -> Script {
    let grant = Grant {
        seq: MembershipSeq(3),
        ..grant(2, 1)
    };
    let mut script = Script::with(crate::core::Config::default(), grant);
    for (told, (seq, isr)) in script.told.iter_mut().zip(stamps) {
        told.stamp = (seq, members(isr));
    }
    script.step(Event::Start);
    script
}

/// The other store does not answer while attaching; what is asked for in the end.
fn attach_with_only(store: usize, script: &mut Script) -> Vec<Effect> {
    let opened = script.open(store);
    assert_eq!(script.serve(opened), []);
    script.now += 3_000 * MS;
    let question = script.timer(Timer::Attach);
    script.hear(question)
}

/// Whom these effects stamp.
fn stamped(effects: &[Effect]) -> Vec<usize> {
    let stamp =
        |(_, to, what): (_, usize, &Command)| matches!(what, Command::Stamp(_)).then_some(to);
    sends(effects).into_iter().filter_map(stamp).collect()
}

/// Attached; store 1 was lost and is in again, and nobody is stamped with that.
fn joined() -> (Script, Vec<Effect>) {
    let mut script = Script::attached(2);
    script.lose(1, (0, 1), &[0]);
    script.run(1, write(5, false));
    script.now += 60_000 * MS;
    let opened = script.open(1);
    assert_eq!(script.serve(opened), [ask(1, 1, &[0, 1])]);
    let stamps = script.committed(1, 2, &[0, 1]);
    (script, stamps)
}

#[test]
fn a_store_that_joined_unknown_to_the_older_member_does_not_stay_alone() {
    let mut script = granted([(2, &[0]), (2, &[0])]);
    let needed = AttachFault::StoresNeeded(members(&[0]));
    let failed = Effect::AttachFailed(needed);
    assert_eq!(attach_with_only(1, &mut script), [failed]);
}

#[test]
fn a_store_that_joined_stays_alone_if_the_older_member_has_lost_its_medium() {
    let mut script = granted([(0, &[]), (2, &[0])]);
    script.told[0].incomplete = true;
    let opened = script.open(0);
    assert_eq!(stamped(&opened), []);
    let asked = script.open(1);
    assert_eq!(stamped(&asked), [1], "nobody else can tell");
    let asked = script.serve(asked);
    assert_eq!(script.hear(asked), [ask(0, 3, &[1])]);
}

#[test]
fn an_older_member_that_lost_its_cache_is_stamped_before_it_is_removed() {
    let (mut script, stamps) = joined();
    assert_eq!(stamped(&stamps), [0]);
    script.told[0].incarnation = 2;
    script.told[0].stamp = (1, members(&[0]));
    script.step(Event::PathLost(at(0)));
    let opened = script.open(0);
    assert_eq!(
        stamped(&opened),
        [0],
        "it is suspect, and the only one that vouches"
    );
    let asked = script.serve(opened);
    assert_eq!(script.hear(asked), [ask(2, 2, &[1])]);
}

#[test]
fn the_older_member_stays_alone() {
    let mut script = granted([(2, &[0]), (2, &[0])]);
    assert_eq!(attach_with_only(0, &mut script), [ask(0, 3, &[0])]);
}

#[test]
fn a_store_that_joined_stays_alone_once_it_is_stamped() {
    let mut script = granted([(2, &[0]), (3, &[0, 1])]);
    assert_eq!(attach_with_only(1, &mut script), [ask(0, 3, &[1])]);
}

#[test]
fn who_has_joined_is_stamped_after_an_older_member() {
    let (mut script, stamps) = joined();
    assert_eq!(stamped(&stamps), [0]);
    let (first, ..) = sends(&stamps)[0];
    let after = script.answer(first, Answer::Done);
    assert_eq!(stamped(&after), [1]);
    assert_eq!(script.serve(after), []);
    assert_eq!(script.run(2, write(6, false)), [done(2)]);
}

#[test]
fn the_last_older_member_is_waited_for_until_it_is_stamped() {
    let (mut script, stamps) = joined();
    assert_eq!(stamped(&stamps), [0]);
    script.step(Event::PathLost(at(0)));
    let ended = script.run(2, write(6, false));
    assert_eq!(ended, [], "held");
    script.now += 300 * MS;
    let question = script.timer(Timer::Grace(at(0)));
    assert_eq!(script.hear(question), [], "the other one is not asked for");
    assert_eq!(script.machine.store_state(at(1)), StoreState::InSync);
    let opened = script.open(0);
    assert_eq!(script.serve(opened), [done(2)]);
}

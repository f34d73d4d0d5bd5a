//! Nobody is removed for somebody who may not be there any more.

use super::script::{MS, Script, ask, at, command_to, is_read, members, range};
use crate::core::{
    Answer, Command, Effect, Event, Fault, HostWhat, RequestId, StoreState, Timer, Verdict,
};
use shardmap::units::MembershipSeq;

fn is_question(what: &Command) -> bool {
    *what == Command::SliceState
}

/// Store 1 is lost and its grace over; what follows.
fn lost() -> (Script, Vec<Effect>) {
    let mut script = Script::attached(2);
    script.step(Event::PathLost(at(1)));
    script.now += 300 * MS;
    let questions = script.timer(Timer::Grace(at(1)));
    (script, questions)
}

#[test]
fn who_stays_is_asked_once_and_its_answer_lets_the_other_go() {
    let (mut script, questions) = lost();
    let question = command_to(&questions, 0, is_question);
    assert_eq!(questions.len(), 1);
    assert_eq!(script.timer(Timer::Slow), [], "not asked again");
    let facts = script.told[0].facts();
    let asked = script.answer(question, Answer::Facts(facts));
    assert_eq!(asked, [ask(0, 0, &[0])]);
}

#[test]
fn what_was_asked_before_the_failure_proves_nothing() {
    let mut script = Script::attached(2);
    script.step(Event::PathLost(at(1)));
    let read = script.host(1, HostWhat::Read(range(0, 1)));
    script.now += 300 * MS;
    script.timer(Timer::Grace(at(1)));
    let done = script.answer(command_to(&read, 0, is_read), Answer::Done);
    assert_eq!(done, [super::script::done(1)]);
}

#[test]
fn a_store_that_does_not_answer_is_not_counted_on_and_the_other_is_kept() {
    let (mut script, _) = lost();
    assert_eq!(script.step(Event::PathLost(at(0))), []);
    script.now += 300 * MS;
    assert_eq!(script.timer(Timer::Grace(at(0))), [], "nobody is left");
    // It comes back blank; the one that was to go comes back whole.
    script.told[0].incarnation = 2;
    script.told[0].incomplete = true;
    assert_eq!(script.open(0), []);
    assert_eq!(script.machine.store_state(at(0)), StoreState::Suspect);
    let questions = script.open(1);
    assert_eq!(script.hear(questions), [ask(0, 0, &[1])]);
}

#[test]
fn a_store_that_answers_as_another_life_is_opened_again() {
    let (mut script, questions) = lost();
    script.told[0].incarnation = 2;
    let facts = script.told[0].facts();
    let question = command_to(&questions, 0, is_question);
    let again = script.answer(question, Answer::Facts(facts));
    command_to(&again, 0, |c| matches!(c, Command::OpenSlice { .. }));
    assert_eq!(script.machine.store_state(at(0)), StoreState::Disconnected);
}

#[test]
fn a_question_that_is_refused_ends_the_session() {
    let (mut script, questions) = lost();
    let question = command_to(&questions, 0, is_question);
    script.fault(question, Fault::NotOpen);
    assert_eq!(script.machine.store_state(at(0)), StoreState::Disconnected);
}

/// The removal of store 1 was asked for, nobody knows whether it was recorded, and store 0 is blank.
fn stayed_blank() -> Script {
    let (mut script, questions) = lost();
    assert_eq!(script.hear(questions), [ask(0, 0, &[0])]);
    let (request, verdict) = (RequestId(0), Verdict::Unknown);
    script.step(Event::Metad { request, verdict });
    script.step(Event::PathLost(at(0)));
    script.now += 2_000 * MS;
    assert_eq!(
        script.timer(Timer::Metad),
        [],
        "it does not answer any more"
    );
    script.told[0].incarnation = 2;
    script.told[0].incomplete = true;
    script.open(0);
    let questions = script.open(1);
    assert_eq!(script.hear(questions), [ask(1, 0, &[1])]);
    script
}

#[test]
fn a_removal_that_was_not_answered_is_given_up_for_one_that_is_safe() {
    let mut script = stayed_blank();
    assert_eq!(script.machine.ack_set(), members(&[0, 1]));
    assert_eq!(script.machine.read_set(), members(&[]), "either may count");
    assert_eq!(script.committed(0, 1, &[0]), [], "a late answer");
    let stamps = script.committed(1, 1, &[1]);
    assert_eq!(script.serve(stamps), []);
    let read = script.host(1, HostWhat::Read(range(0, 1)));
    command_to(&read, 1, is_read);
}

#[test]
fn the_first_of_two_requests_may_be_the_one_that_was_recorded() {
    let mut script = stayed_blank();
    let verdict = Verdict::Stale {
        seq: MembershipSeq(1),
        isr: members(&[0]),
    };
    let request = RequestId(1);
    let after = script.step(Event::Metad { request, verdict });
    let failed = |e: &Effect| matches!(e, Effect::Failed(_));
    assert!(after.iter().any(failed), "the blank one is all there is");
}

#[test]
fn a_removal_is_asked_for_again_only_if_who_stays_still_answers() {
    let (mut script, questions) = lost();
    assert_eq!(script.hear(questions), [ask(0, 0, &[0])]);
    script.now += 2_000 * MS;
    let questions = script.timer(Timer::Metad);
    command_to(&questions, 0, is_question);
    assert_eq!(script.hear(questions), [ask(0, 0, &[0])]);
}

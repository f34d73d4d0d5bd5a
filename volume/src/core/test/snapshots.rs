//! Snapshots: the barrier, what an attach finds, and stores that were out.

use super::script::{
    MS, Script, any, at, command_to, done, grant, is_write, range, sends, tags, write,
};
use crate::core::{
    Answer, AttachFault, Command, Config, Effect, Event, FailReason, Fault, HostWhat, SliceFacts,
    Timer, TraceEvent,
};
use shardmap::generations::{SnapshotState, SnapshotStep, VolumeGenerations};
use shardmap::units::{Generation, Incarnation};

use SnapshotState::{Complete, Pending};

const COMPLETE: Effect = Effect::Snapshot(Generation(1), SnapshotStep::Complete { held: false });

fn generations(head: u32, snapshots: &[(u32, SnapshotState)]) -> VolumeGenerations {
    let snapshots = snapshots.iter();
    VolumeGenerations {
        head: Generation(head),
        snapshots: snapshots
            .map(|(g, state)| (Generation(*g), *state))
            .collect(),
        hold: false,
    }
}

fn begins(what: &Command) -> bool {
    matches!(what, Command::BeginGeneration(Generation(2)))
}

fn completes(what: &Command) -> bool {
    matches!(what, Command::CompleteGeneration(Generation(1)))
}

fn told(effects: &[Effect]) -> bool {
    effects.contains(&COMPLETE)
}

fn snapshot(script: &mut Script) -> Vec<Effect> {
    script.step(Event::Generations(generations(2, &[(1, Pending)])))
}

#[test]
fn writes_carry_the_new_head_once_every_member_has_begun_it_and_not_before() {
    let mut script = Script::attached(2);
    let sent = snapshot(&mut script);
    let begin = [0, 1].map(|store| command_to(&sent, store, begins));
    let early = script.host(1, write(1, false));
    assert_eq!(tags(&early), [1, 1]);
    script.answer(begin[0], Answer::Done);
    let still_early = script.host(2, write(2, false));
    assert_eq!(tags(&still_early), [1, 1]);
    script.answer(begin[1], Answer::Done);
    let late = script.host(3, write(3, false));
    assert_eq!(tags(&late), [2, 2]);
    let zero = HostWhat::Zero {
        range: range(9, 4),
        deallocate: true,
        fua: false,
    };
    let late = script.host(4, zero);
    assert_eq!(tags(&late), [2, 2]);
}

#[test]
fn a_snapshot_is_complete_when_its_writes_have_ended_and_are_flushed_and_all_members_say_so() {
    let mut script = Script::attached(2);
    let writing = script.host(1, write(1, false));
    let sent = snapshot(&mut script);
    // Nothing more happens while a write of before is under way.
    let rest = script.serve(sent);
    assert_eq!(rest, []);
    let of_write = [0, 1].map(|store| command_to(&writing, store, is_write));
    assert_eq!(script.answer(of_write[0], Answer::Done), []);
    let flushing = script.answer(of_write[1], Answer::Done);
    assert!(flushing.contains(&done(1)));
    let flush = [0, 1].map(|store| command_to(&flushing, store, |c| *c == Command::Flush));
    assert_eq!(script.answer(flush[0], Answer::Done), []);
    let completing = script.answer(flush[1], Answer::Done);
    let complete = [0, 1].map(|store| command_to(&completing, store, completes));
    assert_eq!(script.answer(complete[1], Answer::Done), []);
    let last = script.answer(complete[0], Answer::Done);
    assert_eq!(last, [COMPLETE]);
    // metad has not heard: it is told again. It has: it is not.
    assert!(told(&snapshot(&mut script)));
    let heard = generations(2, &[(1, Complete)]);
    assert_eq!(script.step(Event::Generations(heard)), []);
}

#[test]
fn a_store_whose_session_is_opened_again_does_not_pass_for_one_that_has_completed() {
    let mut script = Script::attached(2);
    let sent = snapshot(&mut script);
    let begin = [0, 1].map(|store| command_to(&sent, store, begins));
    script.answer(begin[0], Answer::Done);
    let completing = script.answer(begin[1], Answer::Done);
    let complete = command_to(&completing, 0, completes);
    script.step(Event::PathLost(at(1)));
    let opening = script.step(Event::PathUp(at(1)));
    let incarnation = Incarnation(script.told[1].incarnation);
    let open = command_to(&opening, 1, any);
    let asked = script.answer(open, Answer::Opened(incarnation));
    let facts = SliceFacts {
        incarnation,
        head: Generation(2),
        snapshot_count: 1,
        ..SliceFacts::default()
    };
    let asked = script.answer(command_to(&asked, 1, any), Answer::Facts(facts));
    assert!(
        !told(&script.answer(complete, Answer::Done)),
        "nobody knows of store 1"
    );
    let has = Answer::Generations(generations(2, &[(1, Pending)]));
    let again = script.answer(command_to(&asked, 1, any), has);
    let last = script.answer(command_to(&again, 1, completes), Answer::Done);
    assert!(told(&last));
}

#[test]
fn a_durable_write_of_the_head_covers_nothing_of_what_the_snapshot_keeps() {
    let mut script = Script::attached(1);
    assert_eq!(script.run(1, write(7, false)), [done(1)]);
    let held = script.host(2, write(9, true));
    let sent = snapshot(&mut script);
    script.serve(sent);
    assert_eq!(script.run(3, write(7, true)), [done(3)]);
    let after = script.answer(command_to(&held, 0, is_write), Answer::Done);
    command_to(&after, 0, |c| *c == Command::Flush);
}

#[test]
fn a_write_that_waits_for_an_overlapping_one_belongs_to_the_generation_in_which_it_starts() {
    let mut script = Script::attached(2);
    let first = script.host(1, write(7, false));
    assert_eq!(script.host(2, write(7, false)), []);
    let sent = snapshot(&mut script);
    script.serve(sent);
    script.answer(command_to(&first, 0, is_write), Answer::Done);
    let second = script.answer(command_to(&first, 1, is_write), Answer::Done);
    assert_eq!(tags(&second), [2, 2]);
}

#[test]
fn a_write_that_is_sent_again_keeps_its_generation() {
    let mut script = Script::attached(2);
    script.host(1, write(7, false));
    let sent = snapshot(&mut script);
    script.serve(sent);
    script.told[1].generations = generations(2, &[(1, Pending)]);
    script.step(Event::PathLost(at(1)));
    let again = script.open(1);
    assert_eq!(tags(&again), [1]);
}

#[test]
fn a_member_that_is_lost_is_removed_and_the_snapshot_completed_without_it() {
    let mut script = Script::attached(2);
    let sent = snapshot(&mut script);
    script.answer(command_to(&sent, 0, begins), Answer::Done);
    script.step(Event::PathLost(at(1)));
    script.now += 300 * MS;
    let question = script.timer(Timer::Grace(at(1)));
    let asked = script.hear(question);
    assert!(matches!(asked[..], [Effect::AskMetad { .. }]), "{asked:?}");
    let stamps = script.committed(0, 1, &[0]);
    let rest = script.serve(stamps);
    assert_eq!(rest, [COMPLETE]);
}

#[test]
fn a_store_without_room_for_another_snapshot_is_asked_again_and_not_removed() {
    let mut script = Script::attached(1);
    let sent = snapshot(&mut script);
    let begin = command_to(&sent, 0, begins);
    assert_eq!(script.fault(begin, Fault::NoSpace), []);
    script.now = script.armed[&Timer::Snapshot].0;
    let again = script.timer(Timer::Snapshot);
    assert!(told(&script.serve(again)));
    assert_eq!(script.machine.membership().1.count(), 1);
}

/// A machine for a volume with these generations at metad, with stores that have these.
fn attaching(known: VolumeGenerations, stores: &[VolumeGenerations]) -> Script {
    let mut granted = grant(u16::try_from(stores.len()).unwrap(), 1);
    granted.generations = known;
    let config = Config {
        stable_period_ms: 0,
        ..Config::default()
    };
    let mut script = Script::with(config, granted);
    for (told, generations) in script.told.iter_mut().zip(stores) {
        told.generations = generations.clone();
    }
    script
}

fn open_all(script: &mut Script) -> Vec<Effect> {
    script.step(Event::Start);
    let mut last = Vec::new();
    for store in 0..script.told.len() {
        last = script.open(store);
    }
    last
}

#[test]
fn an_attach_serves_once_every_member_has_begun_what_is_pending() {
    let pending = generations(2, &[(1, Pending)]);
    let mut script = attaching(pending.clone(), &[pending, generations(1, &[])]);
    let sent = open_all(&mut script);
    let begin = command_to(&sent, 1, begins);
    assert_eq!(sends(&sent).len(), 1, "store 0 has begun: {sent:?}");
    let attached = script.answer(begin, Answer::Done);
    assert_eq!(attached[0], Effect::Attached);
    assert_eq!(tags(&script.host(1, write(3, false))), [2, 2]);
    // What an earlier client wrote is flushed, though this one has written nothing.
    assert_eq!(script.serve(attached).last(), Some(&COMPLETE));
    assert_eq!(
        script
            .sent
            .iter()
            .filter(|(_, c)| *c == Command::Flush)
            .count(),
        2
    );
}

#[test]
fn marked_regions_are_made_equal_in_the_pending_generation_and_then_in_the_head() {
    let pending = generations(2, &[(1, Pending)]);
    let mut script = attaching(pending.clone(), &[pending.clone(), pending]);
    script.told[0].marks = vec![0];
    let attached = open_all(&mut script);
    script.serve(attached);
    let hashes = script.sent.iter().filter_map(|(to, what)| {
        if let Command::Hash(_, generation) = what {
            Some((*to, generation.0))
        } else {
            None
        }
    });
    assert_eq!(hashes.collect::<Vec<_>>(), [(0, 1), (1, 1), (0, 2), (1, 2)]);
}

#[test]
fn what_one_member_has_complete_all_members_have() {
    let (pending, complete) = (
        generations(2, &[(1, Pending)]),
        generations(2, &[(1, Complete)]),
    );
    let mut script = attaching(pending.clone(), &[complete, pending]);
    script.told[0].marks = vec![0];
    let attached = open_all(&mut script);
    command_to(&attached, 1, completes);
    let rest = script.serve(attached);
    assert!(told(&rest));
    let in_the_old = |c: &Command| matches!(c, Command::Hash(_, Generation(1)));
    assert!(!script.sent.iter().any(|(_, c)| in_the_old(c)));
}

#[test]
fn stores_with_newer_generations_than_metad_knows_are_not_served() {
    let mut script = attaching(generations(1, &[]), &[generations(2, &[(1, Complete)])]);
    assert_eq!(
        open_all(&mut script),
        [Effect::AttachFailed(AttachFault::MetadBehind)]
    );
}

fn attached_without_snapshots() -> Script {
    let none = || generations(1, &[]);
    let mut script = attaching(none(), &[none(), none()]);
    assert_eq!(open_all(&mut script), [Effect::Attached]);
    script
}

#[test]
fn a_generation_that_only_a_store_knows_of_is_a_successors() {
    let mut script = attached_without_snapshots();
    script.step(Event::PathLost(at(1)));
    script.told[1].generations = generations(2, &[(1, Complete)]);
    assert_eq!(script.open(1), [Effect::Failed(FailReason::Fenced)]);
}

#[test]
fn a_snapshot_that_is_gone_before_it_is_complete_here_was_finished_by_a_successor() {
    let mut script = attached_without_snapshots();
    script.step(Event::Generations(generations(2, &[(1, Pending)])));
    let ended = script.step(Event::Generations(generations(2, &[])));
    assert_eq!(ended, [Effect::Failed(FailReason::Fenced)]);
}

#[test]
fn a_member_that_lacks_a_complete_snapshot_is_removed() {
    let complete = generations(2, &[(1, Complete)]);
    let mut script = attaching(complete.clone(), &[complete, generations(1, &[])]);
    let asked = open_all(&mut script);
    let asked = script.hear(asked);
    assert!(matches!(asked[..], [Effect::AskMetad { .. }]), "{asked:?}");
}

/// Steps in the generations of a store, and writes to it, in order.
fn steps(script: &Script, store: usize) -> Vec<String> {
    let step = |(to, what): &(usize, Command)| {
        let text = match what {
            Command::BeginGeneration(g) => format!("begin {}", g.0),
            Command::CompleteGeneration(g) => format!("complete {}", g.0),
            Command::Write {
                range, generation, ..
            } => {
                format!("write {} as {}", range.start().0, generation.0)
            }
            Command::ReadPresence { after, upto, .. } => format!("ask {}..{}", after.0, upto.0),
            Command::CompleteSlice(_) => "join".into(),
            Command::Flush => "flush".into(),
            Command::Read { .. }
            | Command::Zero { .. }
            | Command::OpenSlice { .. }
            | Command::SliceState
            | Command::CloseSlice
            | Command::Stamp(_)
            | Command::Tick
            | Command::Stable { .. }
            | Command::ReadMarks { .. }
            | Command::AddMarks(_)
            | Command::Hash(..)
            | Command::ReadGenerations => return None,
        };
        (*to == store).then_some(text)
    };
    script.sent.iter().filter_map(step).collect()
}

#[test]
fn a_store_that_was_out_is_given_the_snapshots_it_missed_and_then_the_head() {
    let mut script = Script::attached(2);
    script.lose(1, (0, 1), &[0]);
    assert_eq!(script.run(1, write(5, false)), [done(1)]);
    let sent = snapshot(&mut script);
    assert!(told(&script.serve(sent)));
    script.step(Event::Generations(generations(2, &[(1, Complete)])));
    script.told[0].generations = generations(2, &[(1, Complete)]);
    assert_eq!(script.run(2, write(6, false)), [done(2)]);
    script.now += 60_000 * MS;
    script.sent.clear();
    // Whatever is asked about: both blocks were written.
    script.told[0].present = vec![range(5, 2)];
    let opened = script.open(1);
    let rest = script.serve(opened);
    assert!(matches!(rest[..], [Effect::AskMetad { .. }]), "{rest:?}");
    assert_eq!(
        steps(&script, 1),
        [
            "begin 2",
            "ask 0..1",
            "write 5 as 1",
            "flush",
            "complete 1",
            "ask 1..0",
            "write 5 as 2",
            "flush",
            "join"
        ]
    );
    // What shows whoever waits for it that it moves: two windows looked at, two copies.
    assert_eq!(script.machine.moves(), 4);
    assert!(
        script
            .traced
            .iter()
            .any(|t| matches!(t, TraceEvent::CaughtUp { .. }))
    );
}

#[test]
fn a_resilver_does_not_go_on_into_a_new_generation() {
    let mut script = Script::attached(2);
    script.lose(1, (0, 1), &[0]);
    assert_eq!(script.run(1, write(5, false)), [done(1)]);
    script.now += 60_000 * MS;
    script.open(1);
    let sent = snapshot(&mut script);
    command_to(&sent, 1, |c| *c == Command::CloseSlice);
    assert!(
        script
            .traced
            .iter()
            .any(|t| matches!(t, TraceEvent::DropRs { .. }))
    );
}

#[test]
fn a_snapshot_that_waits_for_a_store_that_is_out_is_given_to_it_while_it_is_pending() {
    let mut granted = grant(2, 1);
    granted.seq = shardmap::units::MembershipSeq(0);
    let config = Config {
        stable_period_ms: 0,
        min_in_sync: 2,
        ..Config::default()
    };
    let mut script = Script::with(config, granted).attach();
    script.lose(1, (0, 1), &[0]);
    // Held until there are two again.
    let held = script.host(1, write(5, false));
    script.serve(held);
    let sent = snapshot(&mut script);
    assert_eq!(script.serve(sent), []);
    script.now += 60_000 * MS;
    script.timer(Timer::Snapshot);
    script.told[0].generations = generations(2, &[(1, Pending)]);
    script.told[0].present = vec![range(5, 1)];
    let opened = script.open(1);
    assert_eq!(script.serve(opened), []);
    script.now += 300 * MS; // the host waits: copies wait a little
    let rest = script.timer(Timer::Resilver);
    let rest = script.serve(rest);
    assert!(matches!(rest[..], [Effect::AskMetad { .. }]), "{rest:?}");
    let first = steps(&script, 1);
    let begun = first.iter().position(|s| s == "begin 2").unwrap();
    assert_eq!(
        first[begun..begun + 2],
        ["begin 2", "ask 0..1"],
        "{first:?}"
    );
    let stamps = script.committed(1, 2, &[0, 1]);
    let rest = script.serve(stamps);
    assert!(rest.contains(&done(1)) && told(&rest), "{rest:?}");
}

#[test]
fn a_leaving_client_that_holds_operations_does_not_give_a_store_what_was_deleted() {
    let config = Config {
        stable_period_ms: 0,
        min_in_sync: 2,
        ..Config::default()
    };
    let mut script = Script::with(config, grant(2, 1)).attach();
    script.lose(1, (0, 1), &[0]);
    let sent = snapshot(&mut script);
    let sealed = script.serve(sent);
    assert!(told(&sealed), "{sealed:?}");
    script.step(Event::Generations(generations(2, &[(1, Complete)])));
    script.told[0].generations = generations(2, &[(1, Complete)]);
    let held = script.host(1, write(5, false));
    assert_eq!(script.serve(held), []);
    assert_eq!(script.step(Event::Detach), []);
    script.step(Event::Generations(generations(2, &[])));
    script.told[0].generations = generations(2, &[]);
    script.now += 60_000 * MS;
    script.sent.clear();
    let opened = script.open(1);
    let asked = script.serve(opened);
    assert!(
        matches!(asked[..], [Effect::AskMetad { .. }]),
        "{asked:?}: {:?}",
        steps(&script, 1)
    );
    let given = steps(&script, 1);
    assert!(!given.iter().any(|s| s == "complete 1"), "{given:?}");
    let stamps = script.committed(1, 2, &[0, 1]);
    assert_eq!(script.serve(stamps), [done(1), Effect::Detached]);
}

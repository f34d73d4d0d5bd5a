//! Snapshots of several volumes at one moment (ADR 0012): when writes wait, for whom and how long.

use super::script::{
    MS, Script, command_to, done, grant, is_read, is_write, range, sends, tags, write,
};
use crate::core::{Answer, Command, Config, Effect, Event, HostWhat, Timer};
use shardmap::generations::{SnapshotState, SnapshotStep, VolumeGenerations};
use shardmap::units::Generation;

const SNAPSHOT: Generation = Generation(1);
const HELD: Effect = Effect::Snapshot(SNAPSHOT, SnapshotStep::Held);

fn complete(held: bool) -> Effect {
    Effect::Snapshot(SNAPSHOT, SnapshotStep::Complete { held })
}

fn pending(hold: bool) -> VolumeGenerations {
    VolumeGenerations {
        head: Generation(2),
        snapshots: [(SNAPSHOT, SnapshotState::Pending)].into(),
        hold,
    }
}

fn begins(what: &Command) -> bool {
    *what == Command::BeginGeneration(Generation(2))
}

/// A volume of two stores whose writes wait.
fn holding() -> Script {
    let mut script = Script::attached(2);
    let sent = script.step(Event::Generations(pending(true)));
    let begin = [0, 1].map(|store| command_to(&sent, store, begins));
    assert_eq!(script.answer(begin[0], Answer::Done), []);
    let early = script.host(9, write(9, false));
    assert_eq!(tags(&early), [1, 1], "not begun everywhere");
    assert_eq!(script.answer(begin[1], Answer::Done), [HELD]);
    script.serve(early);
    script
}

#[test]
fn writes_wait_from_held_to_cut_and_carry_the_head() {
    let mut script = holding();
    assert_eq!(script.host(1, write(1, false)), []);
    let zero = HostWhat::Zero {
        range: range(20, 4),
        deallocate: true,
        fua: false,
    };
    assert_eq!(script.host(2, zero), []);
    // What is older than the group, or says the same again, changes nothing.
    script.step(Event::Generations(VolumeGenerations::default()));
    assert_eq!(script.step(Event::Generations(pending(true))), []);
    let cut = script.step(Event::Generations(pending(false)));
    assert_eq!(tags(&cut), [2, 2, 2, 2]);
    assert_eq!(tags(&script.host(3, write(3, false))), [2, 2]);
    let rest = script.serve(cut);
    assert!(rest.contains(&done(1)) && rest.contains(&done(2)));
    assert_eq!(rest.last(), Some(&complete(true)));
    // metad waits for the other volumes: told again, and the same.
    let again = script.step(Event::Generations(pending(false)));
    assert_eq!(again, [complete(true)]);
}

#[test]
fn reads_and_flushes_go_on_unless_a_write_that_waits_is_in_their_way() {
    let mut script = holding();
    let free = script.host(1, HostWhat::Read(range(50, 1)));
    assert_eq!(sends(&free).len(), 1);
    assert_eq!(script.serve(free), [done(1)]);
    script.host(2, write(60, false));
    assert_eq!(script.host(3, HostWhat::Read(range(60, 1))), []);
    let flush = script.host(4, HostWhat::Flush);
    assert!(script.serve(flush).contains(&done(4)));
    let cut = script.step(Event::Generations(pending(false)));
    let writing = [0, 1].map(|store| command_to(&cut, store, is_write));
    script.answer(writing[0], Answer::Done);
    let then = script.answer(writing[1], Answer::Done);
    assert!(then.contains(&done(2)));
    assert!(sends(&then).iter().any(|(_, _, what)| is_read(what)));
}

#[test]
fn the_deadline_lets_writes_go_and_says_so() {
    let mut script = holding();
    assert_eq!(script.armed[&Timer::Hold].0, 3_000 * MS);
    script.host(1, write(1, false));
    script.now = 3_000 * MS;
    let go = script.timer(Timer::Hold);
    assert_eq!(tags(&go), [2, 2]);
    // It is cut after all: too late for us.
    script.step(Event::Generations(pending(false)));
    let rest = script.serve(go);
    assert_eq!(rest, [done(1), complete(false)]);
    // The deadline of a group is not that of what comes later.
    assert_eq!(script.timer(Timer::Hold), []);
}

#[test]
fn who_never_waited_does_not_say_so() {
    let mut script = Script::attached(2);
    let sent = script.step(Event::Generations(pending(true)));
    // Given up before everybody has begun.
    script.step(Event::Generations(pending(false)));
    assert_eq!(script.serve(sent).last(), Some(&complete(false)));
}

#[test]
fn a_volume_that_is_attached_meanwhile_holds_as_well() {
    let mut of = grant(2, 1);
    of.generations = pending(true);
    let config = Config {
        stable_period_ms: 0,
        ..Config::default()
    };
    let mut script = Script::with(config, of);
    script.step(Event::Start);
    script.open(0);
    let sent = script.open(1);
    let begin = [0, 1].map(|store| command_to(&sent, store, begins));
    script.answer(begin[0], Answer::Done);
    let attached = script.answer(begin[1], Answer::Done);
    assert_eq!(attached, [HELD, Effect::Attached]);
    assert_eq!(script.host(1, write(1, false)), []);
    let cut = script.step(Event::Generations(pending(false)));
    assert_eq!(tags(&cut), [2, 2]);
    assert_eq!(script.serve(cut).last(), Some(&complete(true)));
}

#[test]
fn a_detach_waits_for_the_writes_that_wait() {
    let mut script = holding();
    script.host(1, write(1, false));
    assert_eq!(script.step(Event::Detach), []);
    let cut = script.step(Event::Generations(pending(false)));
    assert_eq!(tags(&cut), [2, 2]);
    let rest = script.serve(cut);
    assert!(rest.contains(&done(1)) && rest.contains(&Effect::Detached));
}

//! The steady state costs nothing but data: counted, not believed. And how marks are cleaned.

use super::script::{MS, Script, done, grant, range, sends};
use crate::core::{Answer, Command, Config, Effect, Event, HostWhat, Timer};
use crate::limits::MARKS_MAX;
use shardmap::units::WriteTick;

fn is_data(what: &Command) -> bool {
    matches!(
        what,
        Command::Read { .. } | Command::Write { .. } | Command::Zero { .. } | Command::Flush
    )
}

#[test]
fn reads_writes_and_flushes_ask_neither_metad_nor_the_admin_queue_of_a_store() {
    const OPS: u64 = 10_000;
    let mut script = Script::with(Config::default(), grant(3, 8)).attach();
    script.sent.clear();
    for op in 0..OPS {
        script.now += MS / 1_000; // 10 ms in all: less than the period of cleaning
        let start = op * 37 % (8 * 1024 - 4);
        let what = match op % 4 {
            0 => HostWhat::Read(range(start, 4)),
            1 => HostWhat::Flush,
            2 => HostWhat::Zero {
                range: range(start, 1),
                deallocate: true,
                fua: false,
            },
            _ => HostWhat::Write {
                range: range(start, 1),
                fua: op % 8 == 3,
            },
        };
        assert_eq!(script.run(op, what), [done(op)], "and nothing for metad");
    }
    let (data, other): (Vec<_>, Vec<_>) = script.sent.iter().partition(|(_, what)| is_data(what));
    assert_eq!(other, Vec::<&(usize, Command)>::new());
    let of = |fits: fn(&Command) -> bool| data.iter().filter(|(_, what)| fits(what)).count() as u64;
    assert_eq!(
        of(|c| matches!(c, Command::Read { .. })),
        OPS / 4,
        "one store per read"
    );
    assert_eq!(of(|c| matches!(c, Command::Write { .. })), OPS / 4 * 3);
    assert!(of(|c| *c == Command::Flush) <= OPS / 4 * 3);
}

/// What a pass of cleaning tells the stores.
fn pass(script: &mut Script) -> Vec<(usize, u32, u32)> {
    script.now = script.armed[&Timer::Stable].0;
    script.sent.clear();
    let ticks = script.timer(Timer::Stable);
    script.serve(ticks);
    let told = |(to, what): &(usize, Command)| {
        if let Command::Stable {
            idle_ticks,
            keep_max,
            ..
        } = what
        {
            Some((*to, *idle_ticks, *keep_max))
        } else {
            None
        }
    };
    script.sent.iter().filter_map(told).collect()
}

fn write(block: u64) -> HostWhat {
    super::script::write(block, false)
}

#[test]
fn hot_regions_are_left_alone_and_two_quiet_passes_end_it() {
    let mut script = Script::with(Config::default(), grant(2, 2)).attach();
    script.run(1, write(5));
    assert_eq!(script.armed[&Timer::Stable].0, 45_000 * MS);
    let hot = [(0, 1, MARKS_MAX), (1, 1, MARKS_MAX)];
    assert_eq!(pass(&mut script), hot, "idle for a whole period at least");
    assert_eq!(pass(&mut script), hot);
    script.armed.remove(&Timer::Stable);
    script.timer(Timer::Stable);
    assert!(!script.armed.contains_key(&Timer::Stable), "idle: no alarm");
}

#[test]
fn a_detach_cleans_everything() {
    let mut script = Script::with(Config::default(), grant(1, 1)).attach();
    script.run(1, write(5));
    let ending = script.step(Event::Detach);
    assert_eq!(script.serve(ending), [Effect::Detached]);
    let all = Command::Stable {
        tick: WriteTick(1),
        idle_ticks: 0,
        keep_max: 0,
    };
    assert!(script.sent.contains(&(0, all)));
}

#[test]
fn too_many_marks_are_cleaned_early_and_not_too_often() {
    let regions = u64::from(MARKS_MAX) + 2;
    let mut script = Script::with(Config::default(), grant(1, regions)).attach();
    script.now = 3_000 * MS;
    for region in 0..u64::from(MARKS_MAX) {
        script.run(region, write(region * 1024));
    }
    assert_eq!(script.armed[&Timer::Stable].0, 48_000 * MS);
    script.run(90_000, write(u64::from(MARKS_MAX) * 1024));
    assert_eq!(script.armed[&Timer::Stable].0, 3_000 * MS, "at once");
    let ticks = script.timer(Timer::Stable);
    // The store says that it could not let them go: the next pass waits a little.
    let [(id, _, Command::Tick)] = sends(&ticks)[..] else {
        panic!("{ticks:?}")
    };
    let flush = script.answer(id, Answer::Tick(WriteTick(1)));
    let stable = script.answer(sends(&flush)[0].0, Answer::Done);
    let left = u64::from(MARKS_MAX);
    script.answer(sends(&stable)[0].0, Answer::MarksLeft(left));
    script.run(90_001, write(5));
    assert_eq!(script.armed[&Timer::Stable].0, 5_000 * MS);
}

#[test]
fn marks_that_an_attach_found_are_cleaned_without_a_write() {
    let mut script = Script::with(Config::default(), grant(2, 1));
    script.told[1].marks = vec![0];
    script.step(Event::Start);
    script.open(0);
    let after = script.open(1);
    script.serve(after);
    assert_eq!(pass(&mut script).len(), 2);
}

#[test]
fn nothing_is_cleaned_while_a_member_is_out() {
    let mut script = Script::with(Config::default(), grant(2, 1)).attach();
    script.run(1, write(5));
    script.lose(1, (0, 1), &[0]);
    assert_eq!(pass(&mut script), []);
}

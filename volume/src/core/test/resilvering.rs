//! Bringing a store back.

use super::script::{MS, Script, ask, at, done, grant, is_write, range, sends, write};
use crate::core::{
    Answer, Command, Config, Effect, Event, HostWhat, StoreState, Timer, TraceEvent,
};

/// Missed and moved bytes of the last resilver that ended.
fn account(script: &Script) -> (u64, u64) {
    let ended = script.traced.iter().rev().find_map(|e| {
        if let TraceEvent::Resilvered(record) = e {
            Some((record.bytes_missed, record.bytes_moved))
        } else {
            None
        }
    });
    ended.expect("one has ended")
}

/// Copies to a store, in blocks.
fn copied(script: &Script, to: usize) -> Vec<(u64, u32)> {
    let copy = |(at, what): &(usize, Command)| {
        if let Command::Write {
            range,
            from: crate::core::Payload::Copy(_),
            ..
        } = what
        {
            (*at == to).then(|| (range.start().0, range.blocks().0))
        } else {
            None
        }
    };
    script.sent.iter().filter_map(copy).collect()
}

#[test]
fn only_what_was_missed_is_moved() {
    let mut script = Script::sized(2, 4).attach();
    script.lose(1, (0, 1), &[0]);
    // 300 scattered blocks, some twice, each of which shares its 64 KiB and its region with others.
    for op in 0..400 {
        let block = op % 300 * 13;
        assert_eq!(script.run(op, write(block, false)), [done(op)]);
    }
    script.now += 60_000 * MS;
    script.sent.clear();
    let opened = script.open(1);
    assert_eq!(script.serve(opened), [ask(1, 1, &[0, 1])]);
    let stamps = script.committed(1, 2, &[0, 1]);
    script.serve(stamps);
    assert_eq!(account(&script), (300 * 4096, 300 * 4096));
    assert_eq!(copied(&script, 1).len(), 300);
}

#[test]
fn what_the_source_holds_as_zeroes_is_not_moved_as_data() {
    let mut script = Script::attached(2);
    script.lose(1, (0, 1), &[0]);
    let discard = HostWhat::Zero {
        range: range(64, 64),
        deallocate: true,
        fua: false,
    };
    script.run(1, discard);
    script.now += 60_000 * MS;
    let opened = script.open(1);
    // Reads of the copies find zeroes.
    let mut todo = opened;
    let mut zeroed = Vec::new();
    while let Some(effect) = todo.pop() {
        let Effect::Send { command, to, what } = effect else {
            continue;
        };
        if let Command::Zero {
            range, deallocate, ..
        } = &what
        {
            assert!(to == at(1) && *deallocate);
            zeroed.push((range.start().0, range.blocks().0));
        }
        assert!(!is_write(&what), "{what:?}");
        let answer = if matches!(what, Command::Read { .. }) {
            Answer::Copied { all_zero: true }
        } else {
            script.told[to.index()].reply(&what)
        };
        todo.extend(script.answer(command, answer));
    }
    zeroed.sort_unstable();
    assert_eq!(zeroed, [(64, 32), (96, 32)]);
}

#[test]
fn two_stores_are_brought_back_one_after_the_other() {
    let mut script = Script::attached(3);
    script.lose(1, (0, 1), &[0, 2]);
    script.run(1, write(5, false));
    script.lose(2, (1, 2), &[0]);
    script.run(2, write(9, false));
    script.now += 60_000 * MS;
    let first = script.open(1);
    let second = script.open(2);
    assert_eq!(second, [], "one at a time");
    assert_eq!(script.serve(first), [ask(2, 2, &[0, 1])]);
    let stamps = script.committed(2, 3, &[0, 1]);
    assert_eq!(script.serve(stamps), [ask(3, 3, &[0, 1, 2])]);
    let stamps = script.committed(3, 4, &[0, 1, 2]);
    script.serve(stamps);
    assert_eq!(copied(&script, 1), [(5, 1), (9, 1)]);
    assert_eq!(copied(&script, 2), [(9, 1)]);
    for store in 0..3 {
        assert_eq!(script.machine.store_state(at(store)), StoreState::InSync);
    }
}

#[test]
fn a_target_that_fails_again_gets_only_what_it_still_misses() {
    let mut script = Script::attached(2);
    script.lose(1, (0, 1), &[0]);
    for op in 0..40 {
        script.run(op, write(op * 20, false));
    }
    script.now += 60_000 * MS;
    let opened = script.open(1);
    // Some copies are served, then the path breaks.
    let mut todo = opened;
    for _ in 0..30 {
        let mut next = Vec::new();
        for effect in todo {
            if let Effect::Send { command, to, what } = effect {
                let answer = script.told[to.index()].reply(&what);
                next.extend(script.answer(command, answer));
            }
        }
        todo = next;
        if copied(&script, 1).len() >= 20 {
            break;
        }
    }
    script.step(Event::PathLost(at(1)));
    let dropped = |e: &TraceEvent| matches!(e, TraceEvent::DropRs { .. });
    assert!(script.traced.iter().any(dropped));
    let (_, missed, _) = script.machine.store_facts(at(1));
    assert!((10..40).contains(&missed), "{missed}");
    script.now += 60_000 * MS;
    script.sent.clear();
    let opened = script.open(1);
    assert_eq!(script.serve(opened), [ask(1, 1, &[0, 1])]);
    assert_eq!(copied(&script, 1).len() as u64, missed);
}

#[test]
fn a_target_that_restarted_gets_again_what_it_lost_with_its_cache() {
    let mut script = Script::attached(2);
    script.lose(1, (0, 1), &[0]);
    script.run(1, write(5, false));
    script.now += 60_000 * MS;
    let opened = script.open(1);
    // Everything is copied; before the flush is answered the target loses its cache.
    let mut todo = opened;
    'copying: loop {
        let mut next = Vec::new();
        for effect in std::mem::take(&mut todo) {
            if let Effect::Send { command, to, what } = effect {
                if what == Command::Flush {
                    break 'copying;
                }
                let answer = script.told[to.index()].reply(&what);
                next.extend(script.answer(command, answer));
            }
        }
        todo = next;
    }
    script.step(Event::PathLost(at(1)));
    script.told[1].incarnation = 2;
    script.now += 60_000 * MS;
    script.sent.clear();
    let opened = script.open(1);
    assert_eq!(script.serve(opened), [ask(1, 1, &[0, 1])]);
    assert_eq!(copied(&script, 1), [(5, 1)]);
}

#[test]
fn a_blank_target_gets_everything_present_and_nothing_else() {
    let mut script = Script::attached(2);
    script.lose(1, (0, 1), &[0]);
    script.told[0].present = vec![range(100, 3), range(900, 1)];
    script.told[1].incomplete = true;
    script.told[1].incarnation = 2;
    script.now += 60_000 * MS;
    script.sent.clear();
    let opened = script.open(1);
    assert_eq!(script.serve(opened), [ask(1, 1, &[0, 1])]);
    assert_eq!(copied(&script, 1), [(100, 3), (900, 1)]);
}

#[test]
fn while_the_host_works_copies_wait_for_its_measure() {
    let mut script = Script::attached(2);
    script.lose(1, (0, 1), &[0]);
    for op in 0..8 {
        script.run(op, write(op * 100, false));
    }
    script.now += 60_000 * MS;
    let held = script.host(50, HostWhat::Read(range(1000, 1)));
    script.sent.clear();
    let opened = script.open(1);
    assert_eq!(script.serve(opened), []);
    assert_eq!(copied(&script, 1), [], "the host is measured first");
    assert_eq!(script.armed[&Timer::Resilver].0, script.now + 250 * MS);
    script.serve(held);
    script.now += 250 * MS;
    let going = script.timer(Timer::Resilver);
    assert_eq!(script.serve(going), [ask(1, 1, &[0, 1])]);
}

#[test]
fn a_volume_of_one_replica_has_nothing_to_resilver_and_waits_for_its_store() {
    let config = Config::default();
    let mut script = Script::with(config, grant(1, 1)).attach();
    script.run(1, write(5, true));
    script.step(Event::PathLost(at(0)));
    script.timer(Timer::Grace(at(0)));
    assert_eq!(script.host(2, HostWhat::Read(range(5, 1))), []);
    script.told[0].incarnation = 2;
    let after = script.open(0);
    assert_eq!(sends(&after).len(), 1, "nothing was unflushed: {after:?}");
    assert_eq!(script.serve(after), [done(2)]);
}

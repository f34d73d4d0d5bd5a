//! Thousands of small worlds. A failing seed prints how to run it again.

use super::world::{Plan, Seen, World};

fn plan(seed: u64) -> Plan {
    let (stores, replicas) = [(1, 1), (2, 2), (3, 3), (4, 2), (3, 2), (5, 3)][(seed % 6) as usize];
    Plan {
        seed,
        stores,
        replicas,
        host_ops: 250,
        fault_ms: [20, 60, 250][(seed / 6 % 3) as usize],
        client_crashes: seed / 18 % 2 == 1,
        medium_errors: seed / 36 % 4 == 3,
        disk_swaps: seed / 144 % 2 == 1,
        min_in_sync: if seed / 12 % 5 == 4 {
            u32::from(replicas).min(2)
        } else {
            1
        },
        restarts: seed % 8 == 3 || seed % 40 == 32,
        restores: seed.is_multiple_of(8),
        snapshots: false,
        zombies: false,
    }
}

/// The same with snapshots. metad is not restored: it would not know those that came after the backup.
fn plan_with_snapshots(seed: u64) -> Plan {
    let plan = plan(seed);
    Plan {
        restores: false,
        snapshots: true,
        // So that snapshots wait for stores that are out.
        min_in_sync: if seed.is_multiple_of(4) {
            u32::from(plan.replicas).min(2)
        } else {
            plan.min_in_sync
        },
        ..plan
    }
}

/// Runs one world. `UBS_SEED` picks one seed and prints its story.
fn run(plan: Plan, tell: bool) -> Result<Seen, String> {
    let mut world = World::new(plan);
    world.telling = tell;
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    let result = caught.unwrap_or_else(|_| Err("a panic, printed above".into()));
    if tell {
        world.log.iter().for_each(|line| println!("{line}"));
    }
    result.map(|()| world.seen)
}

fn add(into: &mut Seen, seen: Seen) {
    into.attaches += seen.attaches;
    into.degrades += seen.degrades;
    into.suspects += seen.suspects;
    into.resilvers += seen.resilvers;
    into.dropped_resilvers += seen.dropped_resilvers;
    into.reconciles += seen.reconciles;
    into.stables += seen.stables;
    into.device_failures += seen.device_failures;
    into.host_faults += seen.host_faults;
    into.reads += seen.reads;
    into.takeovers += seen.takeovers;
    into.lost_above += seen.lost_above;
    into.verifies += seen.verifies;
    into.repairs += seen.repairs;
    into.snapshots += seen.snapshots;
    into.cut_snapshots += seen.cut_snapshots;
    into.abandoned_snapshots += seen.abandoned_snapshots;
    into.complete_snapshots += seen.complete_snapshots;
    into.resumed_snapshots += seen.resumed_snapshots;
    into.caught_up += seen.caught_up;
    into.given_pending += seen.given_pending;
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// Runs `UBS_SEED` and tells its story, or `UBS_SEEDS` of them from `UBS_FIRST` on.
fn run_all(test: &str, plan: fn(u64) -> Plan) -> (u64, Seen) {
    let mut all = Seen::default();
    if let Some(seed) = number("UBS_SEED") {
        run(plan(seed), true).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        return (1, all);
    }
    let first = number("UBS_FIRST").unwrap_or(0);
    let count = number("UBS_SEEDS").unwrap_or(300);
    for seed in first..first + count {
        match run(plan(seed), false) {
            Ok(seen) => add(&mut all, seen),
            Err(e) => panic!(
                "{e}\nseed {seed}: UBS_SEED={seed} cargo test -p volume {test} -- --nocapture\n{:?}",
                plan(seed)
            ),
        }
    }
    println!("{count} seeds: {all:?}");
    (count, all)
}

#[test]
fn no_seed_breaks_a_snapshot() {
    let (count, all) = run_all("no_seed_breaks_a_snapshot", plan_with_snapshots);
    let rare = [
        all.complete_snapshots,
        all.cut_snapshots,
        all.abandoned_snapshots,
        all.resumed_snapshots,
        all.caught_up,
        all.given_pending,
        all.resilvers,
        all.reconciles,
        all.stables,
    ];
    assert!(
        count < 300 || rare.iter().all(|n| *n > 0),
        "a path was never taken: {all:?}"
    );
}

#[test]
fn no_seed_breaks_a_promise() {
    let (count, all) = run_all("no_seed_breaks_a_promise", plan);
    let rare = [
        all.degrades,
        all.suspects,
        all.resilvers,
        all.dropped_resilvers,
        all.reconciles,
        all.stables,
        all.device_failures,
        all.takeovers,
        all.lost_above,
        all.verifies,
        all.repairs,
    ];
    assert!(
        count < 300 || rare.iter().all(|n| *n > 0),
        "a path was never taken: {all:?}"
    );
}

/// 109: a diverged member that could not go made a step endless. 199: a blank target held blocks of
/// an earlier attempt that its source had lost. 839, 1708, 1714: a member that failed a write could not
/// be removed and IO hung. 57: a copy waited for a write that waited for the minimum in-sync count.
/// 898: an answer of a lost session spared the copy. 949: an answer of an aborted pass over the
/// marks counted for the next one.
#[test]
fn seeds_that_once_found_something_stay_clean() {
    for seed in [22, 109, 199, 839, 1708, 1714, 57, 898, 949] {
        run(plan(seed), false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// Prints one-block runs for `cargo xtask trace`, which replays them in `tla/TraceResilver.tla`.
fn record_runs(seeds: std::ops::Range<u64>, stores: u16) {
    let (mut runs, mut text) = (0, String::new());
    for seed in seeds.clone() {
        let mut world = World::new(Plan {
            seed,
            stores,
            replicas: u8::try_from(stores).unwrap(),
            host_ops: 24,
            fault_ms: [12, 40][usize::try_from(seed / 2 % 2).unwrap()],
            client_crashes: seed / 4 % 2 == 1,
            medium_errors: false,
            disk_swaps: seed / 8 % 2 == 1,
            min_in_sync: 1,
            restarts: false,
            restores: false,
            snapshots: false,
            zombies: false,
        });
        world.record();
        world.run().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let Some(lines) = world.recorded() else {
            continue;
        };
        runs += 1;
        lines.iter().for_each(|line| text += &format!("{line}\n"));
        text += "\n";
    }
    print!("\n{text}");
    assert!(
        runs * 3 >= seeds.count() * 2,
        "only {runs} runs without an error of the host"
    );
    let events = [
        "propose", "exclude", "resilver", "planned", "drop", "join", "gone", "crash", "loss",
    ];
    for event in events {
        assert!(text.contains(&format!("\"{event}\"")), "no {event}");
    }
}

#[test]
fn runs_with_two_stores_are_recorded() {
    record_runs(0..72, 2);
}

#[test]
fn runs_with_three_stores_are_recorded() {
    record_runs(0..20, 3);
}

/// Prints one-block runs in which clients live on after they were superseded; `cargo xtask trace` replays
/// them in `tla/TraceShard.tla`.
#[test]
fn runs_with_superseded_clients_are_recorded() {
    let (mut text, mut superseded, mut refused) = (String::new(), 0, 0);
    for seed in 0..48 {
        let mut world = World::new(Plan {
            seed,
            stores: 2,
            replicas: 2,
            host_ops: 40,
            fault_ms: [12, 40][usize::try_from(seed / 2 % 2).unwrap()],
            client_crashes: seed / 4 % 2 == 1,
            medium_errors: false,
            disk_swaps: seed / 8 % 2 == 1,
            min_in_sync: 1,
            restarts: false,
            restores: false,
            snapshots: false,
            zombies: true,
        });
        world.record_shard();
        world.run().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let (lines, of_superseded, of_refused) = world.recorded_shard();
        superseded += of_superseded;
        refused += of_refused;
        lines.iter().for_each(|line| text += &format!("{line}\n"));
        text += "\n";
    }
    println!("\n{text}\n{superseded} events of superseded clients, {refused} commands refused");
    assert!(
        superseded >= 300 && refused >= 20,
        "superseded clients did too little"
    );
    let events = [
        "W", "C", "copy", "F", "M", "complete", "commit", "join", "drop", "gone", "crash", "loss",
    ];
    for event in events {
        assert!(text.contains(&format!("\"{event}\"")), "no {event}");
    }
}

#[test]
fn without_faults_nothing_is_degraded_and_metad_is_not_asked() {
    let calm = Plan {
        fault_ms: 0,
        ..plan(2)
    };
    let seen = run(calm, false).unwrap();
    assert_eq!((seen.degrades, seen.resilvers, seen.host_faults), (0, 0, 0));
}

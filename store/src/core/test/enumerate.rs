//! Crash states by enumeration: at every point of recorded histories, every subset of the writes that
//! were not durable (beyond a bound, a choice that has the telling ones) is what a power cut left. Each
//! must open, with all that was flushed and nothing that never was.
//!
//! `make crash STATES=n FIRST=seed`; prints what was done.

use super::device::Coin;
use super::generations::script;
use super::world::{World, write, zero};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Up to so many writes, all subsets are tried.
const ALL_SUBSETS_UPTO: usize = 5;
/// Beyond that: none, all, so many prefixes, so many of the newest writes alone and missing, and so many
/// subsets by coin.
const OF_A_KIND: usize = 8;
/// Every so many states, the power goes again while the store opens.
const CUT_AGAIN_EVERY: u64 = 7;
/// Every so many states, work goes on and all is read afterwards.
const GO_ON_EVERY: u64 = 997;
const STEPS: u64 = 150;
const BLOCKS: u64 = 1100;

/// Which of the writes that were not durable survive.
#[derive(Clone, Copy, Debug)]
enum Survivors {
    /// Those whose bit is set.
    Set(u64),
    /// Those that completed or were begun first.
    Prefix(usize),
    /// All but one.
    Without(usize),
    /// One alone.
    Only(usize),
    /// By coin.
    Random(u64),
}

impl Survivors {
    /// Every choice for so many writes.
    fn of(writes: usize, salt: u64) -> Vec<Self> {
        if writes <= ALL_SUBSETS_UPTO {
            return (0..1 << writes).map(Self::Set).collect();
        }
        let prefixes = (0..=OF_A_KIND).map(|nth| Self::Prefix(writes * nth / OF_A_KIND));
        let newest = writes - OF_A_KIND.min(writes)..writes;
        let singles = newest.flat_map(|i| [Self::Without(i), Self::Only(i)]);
        let coins = OF_A_KIND as u64..3 * OF_A_KIND as u64;
        let random = coins.map(|i| Self::Random(salt << 8 | i));
        prefixes.chain(singles).chain(random).collect()
    }

    fn chooser(self) -> impl FnMut() -> bool {
        let (mut coin, mut at) = (Coin(0), 0);
        if let Self::Random(seed) = self {
            coin = Coin(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        }
        move || {
            let i = at;
            at += 1;
            match self {
                Self::Set(bits) => bits >> i & 1 == 1,
                Self::Prefix(count) => i < count,
                Self::Without(one) => i != one,
                Self::Only(one) => i == one,
                Self::Random(_) => coin.flip(),
            }
        }
    }
}

/// Totals over all histories.
#[derive(Debug, Default)]
struct Tally {
    histories: AtomicU64,
    points: AtomicU64,
    exhaustive_points: AtomicU64,
    states: AtomicU64,
    cut_again: AtomicU64,
    checkpoints: AtomicU64,
    unmarked: AtomicU64,
    verified: AtomicU64,
    merges: AtomicU64,
    clones: AtomicU64,
    growths: AtomicU64,
    /// Extents in use when a history ended that a growth has brought.
    grown_used: AtomicU64,
}

/// Says where it was if it is dropped by a panic.
struct Here {
    seed: u64,
    point: u64,
    survivors: Survivors,
}

impl Drop for Here {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "crash: history {} point {} {:?}; again: make crash STATES=1 FIRST={}",
                self.seed, self.point, self.survivors, self.seed
            );
        }
    }
}

fn history(seed: u64, tally: &Tally, wanted: u64) {
    // Some stores keep no checksums.
    let checksums = (!seed.is_multiple_of(5)).then_some(2);
    let mut world = World::with(32 << 20, BLOCKS, checksums);
    // Some devices cannot trim.
    world.can_trim = !seed.is_multiple_of(3);
    if seed.is_multiple_of(2) {
        to_the_brink_of_a_checkpoint(&mut world);
    }
    let mut point = 0;
    let mut changed = u64::MAX;
    script(&mut world, (seed, STEPS), &mut |world| {
        point += 1;
        // Nothing happened to the medium or to what is promised since the last point.
        if std::mem::replace(&mut changed, world.fingerprint()) == world.fingerprint() {
            return;
        }
        if tally.states.load(Relaxed) >= wanted && wanted > 1 {
            return;
        }
        tally.points.fetch_add(1, Relaxed);
        let writes = world.unsure();
        if writes <= ALL_SUBSETS_UPTO {
            tally.exhaustive_points.fetch_add(1, Relaxed);
        }
        for survivors in Survivors::of(writes, point) {
            let _here = Here {
                seed,
                point,
                survivors,
            };
            let number = tally.states.fetch_add(1, Relaxed) + 1;
            let mut crashed = world.fork();
            if number.is_multiple_of(CUT_AGAIN_EVERY) {
                tally.cut_again.fetch_add(1, Relaxed);
                let completions = number / CUT_AGAIN_EVERY % 9;
                crashed.lose_power(survivors.chooser());
                crashed.crash_while_opening(completions, number);
            } else {
                crashed.cut(survivors.chooser());
            }
            let counts = crashed.core.counts();
            tally.verified.fetch_add(counts.blocks_verified, Relaxed);
            if number.is_multiple_of(GO_ON_EVERY) {
                script(&mut crashed, (seed + 1, 26), &mut |_| {});
                super::generations::read_all(&mut crashed);
            }
        }
    });
    tally.histories.fetch_add(1, Relaxed);
    let counts = world.core.counts();
    tally.checkpoints.fetch_add(counts.checkpoints, Relaxed);
    tally.unmarked.fetch_add(counts.unmarked, Relaxed);
    tally.clones.fetch_add(world.clones().into(), Relaxed);
    tally
        .growths
        .fetch_add(world.core.growths().into(), Relaxed);
    let used = world.core.extents_used_of_growths();
    tally.grown_used.fetch_add(used, Relaxed);
    tally
        .merges
        .fetch_add(counts.cells_moved + counts.cells_copied, Relaxed);
}

/// Fills the journal with the other slice's changes.
fn to_the_brink_of_a_checkpoint(world: &mut World) {
    let short = |world: &World| {
        let usage = world.core.usage();
        usage.journal_used_bytes + 12 * 4096 < usage.journal_bytes / 2
    };
    while short(world) {
        world.ok(2, write(40, 1, true));
        world.ok(2, zero(32, 16, true));
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return otherwise;
    };
    let parsed = text.parse();
    parsed.unwrap_or_else(|_| panic!("{name}={text}: expected a number"))
}

#[test]
fn every_crash_state_opens_with_what_was_promised() {
    let wanted = number("UBS_CRASH_STATES", 4_000);
    let next = AtomicU64::new(number("UBS_CRASH_FIRST", 1));
    let tally = Tally::default();
    let failed = Mutex::new(String::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while tally.states.load(Relaxed) < wanted {
                    let seed = next.fetch_add(1, Relaxed);
                    let run = std::panic::AssertUnwindSafe(|| history(seed, &tally, wanted));
                    if std::panic::catch_unwind(run).is_err() {
                        let mut failed = failed.lock().expect("never held over a panic");
                        write!(failed, " {seed}").expect("to memory");
                        return;
                    }
                }
            });
        }
    });
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    println!(
        "crash: {} states at {} points of {} histories with {} checkpoints, {} merges, {} clones, {} growths ({} extents of them in use) and {} regions unmarked; \
         all subsets at {} of the points; cut again while opening {} times; {} blocks verified",
        count(&tally.states),
        count(&tally.points),
        count(&tally.histories),
        count(&tally.checkpoints),
        count(&tally.merges),
        count(&tally.clones),
        count(&tally.growths),
        count(&tally.grown_used),
        count(&tally.unmarked),
        count(&tally.exhaustive_points),
        count(&tally.cut_again),
        count(&tally.verified),
    );
    let failed = failed.into_inner().expect("never held over a panic");
    assert!(failed.is_empty(), "histories that failed:{failed}");
    assert!(count(&tally.states) >= wanted);
    // A history is a few thousand states.
    if wanted >= 20_000 {
        assert!(count(&tally.checkpoints) > 0 && count(&tally.merges) > 0);
        assert!(count(&tally.clones) > 0);
        assert!(count(&tally.growths) > 0 && count(&tally.grown_used) > 0);
        assert!(count(&tally.unmarked) > 0 && count(&tally.verified) > 0);
    }
}

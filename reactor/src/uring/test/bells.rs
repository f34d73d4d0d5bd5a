use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Counts what ringers have announced; finished when all is seen.
struct Counter {
    shared: Arc<AtomicU64>,
    seen: u64,
    wanted: u64,
    rings: u64,
}

impl App for Counter {
    fn on_completion(&mut self, _io: &mut dyn Driver, completion: Completion) {
        assert!(matches!(completion.event, Event::Rung));
        self.rings += 1;
        self.seen = self.shared.load(SeqCst);
    }
    fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
    fn is_finished(&self) -> bool {
        self.seen == self.wanted
    }
}

#[test]
fn no_ring_is_lost_between_threads_and_sleep() {
    every_ring_counts(0);
}

#[test]
fn no_ring_is_lost_between_threads_spinning_and_sleep() {
    every_ring_counts(30);
}

fn every_ring_counts(spin_us: u32) {
    const THREADS: u64 = 3;
    const RINGS: u64 = 20_000;
    let mut io = driver(UringConfig {
        spin_us,
        ..config()
    });
    let bell = io.doorbell(token(1)).unwrap();
    let shared = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (bell, shared) = (bell.clone(), shared.clone());
            std::thread::spawn(move || {
                for i in 0..RINGS {
                    shared.fetch_add(1, SeqCst);
                    bell.ring();
                    // Vary the distance, so that some rings meet a reactor about to sleep.
                    for _ in 0..(i * 7 + thread * 13) % 300 {
                        std::hint::spin_loop();
                    }
                }
            })
        })
        .collect();
    let mut app = Counter {
        shared,
        seen: 0,
        wanted: THREADS * RINGS,
        rings: 0,
    };
    // Nothing else would wake it: a lost ring hangs here.
    io.run(&mut app);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(app.rings >= 1);
    assert_eq!(io.counters().stale_cqes, 0);
}

#[test]
fn each_ring_of_a_ping_pong_wakes_the_sleeper() {
    let mut bench = Bench::new();
    let bell = bench.io.doorbell(token(1)).unwrap();
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let ringer = std::thread::spawn(move || {
        for () in asked {
            bell.ring();
        }
    });
    for _ in 0..2000 {
        ask.send(()).unwrap();
        assert!(matches!(bench.wait(1), Event::Rung));
    }
    drop(ask);
    ringer.join().unwrap();
}

#[test]
fn ringing_an_awake_reactor_makes_no_system_call() {
    let mut bench = Bench::new();
    let bell = bench.io.doorbell(token(1)).unwrap();
    for _ in 0..100 {
        bell.ring();
        assert!(matches!(bench.wait(1), Event::Rung));
    }
    assert_eq!(bench.io.counters().wakeups, 0);
    assert_eq!(bench.io.counters().sleeps, 0);
}

#[test]
fn bells_are_told_apart() {
    let mut bench = Bench::new();
    let first = bench.io.doorbell(token(1)).unwrap();
    let second = bench.io.doorbell(token(2)).unwrap();
    second.ring();
    second.ring();
    assert!(matches!(bench.wait(2), Event::Rung));
    assert!(bench.inbox.arrived.is_empty());
    first.ring();
    assert!(matches!(bench.wait(1), Event::Rung));
    assert!(bench.inbox.arrived.is_empty());
}

#[test]
fn a_bell_may_outlive_its_reactor() {
    let bell = Bench::new().io.doorbell(token(1)).unwrap();
    bell.ring();
}

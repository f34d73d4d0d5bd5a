use super::*;

#[test]
fn timers_fire_in_order_and_not_early() {
    let mut bench = Bench::new();
    let start = bench.io.now_ns();
    for (value, after_ms) in [(1, 6), (2, 2), (3, 4)] {
        bench.io.arm(token(value), start + after_ms * 1_000_000);
    }
    let mut order = Vec::new();
    while order.len() < 3 {
        bench.io.turn(&mut bench.inbox);
        for completion in bench.inbox.arrived.drain(..) {
            let due =
                start + [6, 2, 4][usize::try_from(completion.token.value).unwrap() - 1] * 1_000_000;
            assert!(bench.io.now_ns() >= due);
            order.push(completion.token.value);
        }
    }
    assert_eq!(order, [2, 3, 1]);
}

#[test]
fn a_timer_disarmed_by_the_one_before_it_stays_silent() {
    struct Disarmer {
        victim: TimerId,
        fired: Vec<u64>,
    }
    impl App for Disarmer {
        fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
            io.disarm(self.victim);
            self.fired.push(completion.token.value);
        }
        fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
        fn is_finished(&self) -> bool {
            self.fired.contains(&3)
        }
    }
    let mut bench = Bench::new();
    let at = bench.io.now_ns() + 1_000_000;
    bench.io.arm(token(1), at);
    let victim = bench.io.arm(token(2), at);
    bench.io.arm(token(3), at);
    let mut app = Disarmer {
        victim,
        fired: Vec::new(),
    };
    bench.io.run(&mut app);
    assert_eq!(app.fired, [1, 3]);
}

#[test]
fn a_timer_armed_in_the_past_by_a_timer_does_not_starve_the_ring() {
    struct Eager(u32);
    impl App for Eager {
        fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
            self.0 += 1;
            io.arm(completion.token, 0);
        }
        fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
        fn is_finished(&self) -> bool {
            self.0 >= 10
        }
    }
    let mut bench = Bench::new();
    bench.io.arm(token(1), 0);
    bench.io.run(&mut Eager(0));
    assert!(bench.io.counters().turns >= 10);
}

#[test]
fn an_idle_reactor_sleeps_in_one_enter_until_its_only_timer() {
    sleeps_once(Bench::new());
}

#[test]
fn an_idle_reactor_that_may_spin_sleeps_all_the_same() {
    let bench = Bench::with(UringConfig {
        spin_us: 15,
        ..config()
    });
    sleeps_once(bench);
}

fn sleeps_once(mut bench: Bench) {
    bench.io.doorbell(token(7)).unwrap();
    let listener = bench.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    bench.io.submit(token(2), Op::Accept { listener });
    let (_near, far) = bench.pair();
    // A long wait before, so that nobody hopes for a short one.
    bench.io.arm(token(8), bench.io.now_ns() + 50_000_000);
    bench.wait(8);
    bench.io.submit(
        token(3),
        Op::Recv {
            socket: far,
            into: (bench.window(8, |_| {}), None),
        },
    );
    bench.io.arm(token(1), bench.io.now_ns() + 300_000_000);
    let before = bench.io.counters();
    bench.wait(1);
    let after = bench.io.counters();
    assert_eq!(after.enters - before.enters, 1);
    assert_eq!((after.wakeups, after.stale_cqes), (before.wakeups, 0));
}

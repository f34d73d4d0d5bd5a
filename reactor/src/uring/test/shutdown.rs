use super::*;

/// Resubmits whatever ends, and counts.
struct Stubborn {
    ended: Vec<Result<Done, Errno>>,
    finished: bool,
}

impl App for Stubborn {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        if let Event::Op { op, result } = completion.event {
            self.ended.push(result);
            if self.ended.len() < 20 {
                io.submit(completion.token, op);
            }
        }
    }
    fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
    fn is_finished(&self) -> bool {
        self.finished
    }
}

#[test]
fn the_end_of_the_loop_delivers_every_op_once() {
    let mut bench = Bench::new();
    let (near, far) = bench.pair();
    for socket in [near, far, near] {
        let into = (bench.window(100, |_| {}), None);
        bench.io.submit(token(1), Op::Recv { socket, into });
    }
    bench.inbox.finished = true;
    bench.io.run(&mut bench.inbox);
    assert_eq!(bench.inbox.arrived.len(), 3);
    for _ in 0..3 {
        assert_eq!(bench.result(1).1, Err(Errno::CANCELED));
    }
    assert_eq!(
        (bench.io.ops.len(), bench.io.arena().in_use_bytes()),
        (0, 0)
    );
}

#[test]
fn an_app_that_resubmits_while_draining_gets_its_ops_back_at_once() {
    let mut bench = Bench::new();
    let (near, _far) = bench.pair();
    let into = (bench.window(100, |_| {}), None);
    bench.io.submit(token(1), Op::Recv { socket: near, into });
    let mut app = Stubborn {
        ended: Vec::new(),
        finished: true,
    };
    bench.io.run(&mut app);
    assert_eq!(app.ended, vec![Err(Errno::CANCELED); 20]);
    assert_eq!(bench.io.ops.len(), 0);
}

#[test]
fn a_close_during_the_drain_still_closes() {
    struct Closer(Handle, Vec<Result<Done, Errno>>);
    impl App for Closer {
        fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
            if let Event::Op { op, result } = completion.event {
                self.1.push(result);
                if !matches!(op, Op::Close { .. }) {
                    io.submit(
                        token(2),
                        Op::Close {
                            handle: self.0,
                            reset: true,
                        },
                    );
                }
            }
        }
        fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
        fn is_finished(&self) -> bool {
            true
        }
    }
    let mut bench = Bench::new();
    let (near, _far) = bench.pair();
    let into = (bench.window(100, |_| {}), None);
    bench.io.submit(token(1), Op::Recv { socket: near, into });
    let mut app = Closer(near, Vec::new());
    bench.io.run(&mut app);
    assert_eq!(app.1, [Err(Errno::CANCELED), Ok(Done::Nothing)]);
}

#[test]
fn a_driver_dropped_with_ops_in_flight_takes_its_memory_back_first() {
    let mut bench = Bench::new();
    let arena = bench.io.arena().clone();
    let (near, far) = bench.pair();
    for value in 0..4 {
        let into = (bench.window(100, |_| {}), Some(bench.window(5000, |_| {})));
        bench
            .io
            .submit(token(value), Op::Recv { socket: near, into });
    }
    let big = bench.buf(&pattern(128 * 1024, 0));
    let parts = vec![big; SEND_PARTS_MAX];
    bench.io.submit(
        token(9),
        Op::Send {
            socket: near,
            parts,
        },
    );
    let listener = bench.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    bench.io.submit(token(10), Op::Accept { listener });
    bench.io.arm(token(11), bench.io.now_ns() + 1_000_000);
    bench.wait(11); // all of it is in the kernel now
    let _ = far;
    assert!(arena.in_use_bytes() > 0);
    drop(bench);
    assert_eq!(arena.in_use_bytes(), 0);
}

#[test]
fn one_thread_may_make_and_drop_many_drivers() {
    // A task has 16 places for registered rings.
    for _ in 0..40 {
        let bench = Bench::new();
        assert!(bench.io.features().has("registered ring"));
    }
}

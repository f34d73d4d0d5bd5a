use super::*;

fn recv(socket: Handle, into: BufMut) -> Op {
    Op::Recv {
        socket,
        into: (into, None),
    }
}

fn send(socket: Handle, parts: Vec<Buf>) -> Op {
    Op::Send { socket, parts }
}

/// Receives exactly `len` bytes through windows of odd sizes, one or two at a time.
fn drain(bench: &mut Bench, socket: Handle, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut round = 0;
    while got.len() < len {
        round += 1;
        let first = bench.window(1 + round * 977 % 3000, |_| {});
        let second = (round % 3 != 0).then(|| bench.window(1 + round * 7919 % 60_000, |_| {}));
        let room = first.len_bytes() + second.as_ref().map_or(0, BufMut::len_bytes);
        let (op, result) = bench.run(Op::Recv {
            socket,
            into: (first, second),
        });
        let Op::Recv {
            into: (first, second),
            ..
        } = op
        else {
            panic!("{op:?}")
        };
        let Ok(Done::Bytes(count)) = result else {
            panic!("{result:?}")
        };
        assert!(count > 0 && count <= room);
        let both = [
            first.bytes(),
            second.as_ref().map_or(&[][..], BufMut::bytes),
        ]
        .concat();
        got.extend_from_slice(&both[..count as usize]);
    }
    got
}

#[test]
fn big_sends_of_many_parts_arrive_whole_and_in_order() {
    let mut bench = Bench::new();
    let (near, far) = bench.pair();
    let mut expected = Vec::new();
    for round in 0..40 {
        // More than the socket's buffers hold, so sends stop half-way until the far end reads.
        let sizes: [usize; 4] = [1 + round % 72, 128 * 1024 - round, 4095, 16 * 1024];
        let bytes: Vec<_> = sizes.iter().map(|len| pattern(*len, round)).collect();
        let parts = bytes.iter().map(|b| bench.buf(b)).collect();
        bench.io.submit(token(1), send(near, parts));
        let sent = bytes.concat();
        expected.extend_from_slice(&sent);
        assert!(drain(&mut bench, far, sent.len()) == sent, "round {round}");
        let (op, result) = bench.result(1);
        assert_eq!(result, Ok(Done::Bytes(u32::try_from(sent.len()).unwrap())));
        assert!(matches!(op, Op::Send { parts, .. } if parts.len() == 4));
    }
    assert_eq!(bench.io.counters().stale_cqes, 0);
    assert_eq!(bench.io.arena().in_use_bytes(), 0);
}

#[test]
fn answers_that_come_soon_are_met_awake_if_spinning_is_allowed() {
    let mut bench = Bench::with(UringConfig {
        spin_us: 1_000_000,
        ..config()
    });
    let (near, far) = bench.pair();
    for round in 0..50u8 {
        let into = bench.window(8, |_| {});
        bench.io.submit(token(1), recv(far, into));
        let part = bench.buf(&[round; 8]);
        bench.io.submit(token(2), send(near, vec![part]));
        assert_eq!(bench.result(1).1, Ok(Done::Bytes(8)));
        bench.result(2).1.unwrap();
    }
    let counters = bench.io.counters();
    // Only the very first wait was not preceded by a short one.
    assert!(counters.sleeps <= 1, "{counters:?}");
}

#[test]
fn a_single_part_and_the_most_parts_both_go_out() {
    let mut bench = Bench::new();
    let (near, far) = bench.pair();
    bench
        .io
        .submit(token(1), send(near, vec![bench.buf(b"alone")]));
    assert_eq!(drain(&mut bench, far, 5), b"alone");
    bench.result(1).1.unwrap();
    let all = bench.buf(&pattern(SEND_PARTS_MAX * 3, 9));
    let parts = (0..SEND_PARTS_MAX)
        .map(|i| all.slice(u32::try_from(i * 3).unwrap(), 3))
        .collect();
    bench.io.submit(token(1), send(near, parts));
    assert_eq!(drain(&mut bench, far, SEND_PARTS_MAX * 3), all.bytes());
    bench.result(1).1.unwrap();
}

#[test]
fn many_connections_do_not_mix() {
    let mut bench = Bench::new();
    let listener = bench.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = bench.io.local_addr(listener).unwrap();
    let pairs: Vec<_> = (0..16).map(|_| bench.pair_through(listener, to)).collect();
    for (i, (near, far)) in pairs.iter().enumerate() {
        let value = i as u64;
        bench
            .io
            .submit(token(100 + value), recv(*far, bench.window(100, |_| {})));
        let part = bench.buf(&[u8::try_from(i).unwrap(); 8]);
        bench.io.submit(token(200 + value), send(*near, vec![part]));
    }
    for i in 0..pairs.len() as u64 {
        let (op, result) = bench.result(100 + i);
        assert_eq!(result, Ok(Done::Bytes(8)));
        let Op::Recv {
            into: (window, _), ..
        } = op
        else {
            panic!("{op:?}")
        };
        assert_eq!(window.bytes()[..8], [u8::try_from(i).unwrap(); 8]);
        bench.result(200 + i).1.unwrap();
    }
}

#[test]
fn a_batch_of_ops_costs_few_enters() {
    let mut bench = Bench::new();
    let listener = bench.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = bench.io.local_addr(listener).unwrap();
    let pairs: Vec<_> = (0..10).map(|_| bench.pair_through(listener, to)).collect();
    let before = bench.io.counters();
    for (value, (near, _)) in (0..).zip(&pairs) {
        let part = bench.buf(b"hello");
        bench.io.submit(token(value), send(*near, vec![part]));
    }
    for value in 0..10 {
        bench.result(value).1.unwrap();
    }
    let after = bench.io.counters();
    assert_eq!(
        (after.sqes - before.sqes, after.cqes - before.cqes),
        (10, 10)
    );
    assert_eq!(after.enters - before.enters, 1);
}

#[test]
fn a_cancelled_receive_gives_its_window_back_and_spares_the_connection() {
    let mut bench = Bench::new();
    let (near, far) = bench.pair();
    let op = bench
        .io
        .submit(token(1), recv(far, bench.window(64, |_| {})));
    bench.io.cancel(op);
    let (op_back, result) = bench.result(1);
    assert_eq!(result, Err(Errno::CANCELED));
    assert!(matches!(op_back, Op::Recv { into: (window, None), .. } if window.len_bytes() == 64));
    bench.io.cancel(op); // stale: nothing happens
    bench
        .io
        .submit(token(2), send(near, vec![bench.buf(b"still here")]));
    assert_eq!(drain(&mut bench, far, 10), b"still here");
    bench.result(2).1.unwrap();
}

#[test]
fn a_cancelled_half_done_send_fails_and_is_not_continued() {
    let mut bench = Bench::new();
    let (near, far) = bench.pair();
    let big = bench.buf(&pattern(128 * 1024, 1));
    // Nobody reads: 32 MiB do not fit anywhere.
    let mut last = None;
    for value in 0..5 {
        let parts = vec![big.clone(); SEND_PARTS_MAX];
        let op = bench.io.submit(token(value), send(near, parts));
        last = Some((op, value));
        bench.io.arm(token(99), bench.io.now_ns() + 20_000_000);
        bench.wait(99);
        if bench.inbox.arrived.is_empty() {
            break;
        }
        bench.result(value).1.unwrap();
    }
    let (op, value) = last.unwrap();
    bench.io.cancel(op);
    assert_eq!(bench.result(value).1, Err(Errno::CANCELED));
    bench
        .run(Op::Close {
            handle: far,
            reset: true,
        })
        .1
        .unwrap();
}

#[test]
fn close_completes_after_everything_on_its_handle() {
    let mut bench = Bench::new();
    let (near, _far) = bench.pair();
    for value in 1..=8 {
        bench
            .io
            .submit(token(value), recv(near, bench.window(10, |_| {})));
    }
    bench.io.submit(
        token(9),
        Op::Close {
            handle: near,
            reset: false,
        },
    );
    let late = recv(near, bench.window(10, |_| {}));
    bench.io.submit(token(10), late);
    while bench.inbox.arrived.len() < 10 {
        bench.io.turn(&mut bench.inbox);
    }
    let order: Vec<_> = bench.inbox.arrived.iter().map(|c| c.token.value).collect();
    let close = order.iter().position(|value| *value == 9).unwrap();
    for value in 1..=8 {
        assert!(
            order.iter().position(|v| *v == value).unwrap() < close,
            "{order:?}"
        );
        assert_eq!(bench.result(value).1, Err(Errno::CANCELED));
    }
    assert_eq!(bench.result(9).1, Ok(Done::Nothing));
    assert_eq!(bench.result(10).1, Err(Errno::BAD_HANDLE));
}

#[test]
fn a_closed_connection_ends_the_peers_stream() {
    let mut bench = Bench::new();
    let (near, far) = bench.pair();
    bench
        .io
        .submit(token(1), send(near, vec![bench.buf(b"bye")]));
    bench.result(1).1.unwrap();
    bench
        .run(Op::Close {
            handle: near,
            reset: false,
        })
        .1
        .unwrap();
    assert_eq!(drain(&mut bench, far, 3), b"bye");
    let end = bench.run(recv(far, bench.window(10, |_| {}))).1;
    assert_eq!(end, Ok(Done::Bytes(0)));
}

#[test]
fn a_reset_connection_tells_the_peer_at_once() {
    let mut bench = Bench::new();
    let (near, far) = bench.pair();
    bench
        .io
        .submit(token(1), recv(near, bench.window(10, |_| {})));
    bench
        .io
        .submit(token(2), recv(far, bench.window(10, |_| {})));
    bench.io.submit(
        token(3),
        Op::Close {
            handle: near,
            reset: true,
        },
    );
    assert_eq!(bench.result(2).1, Err(Errno::CONNECTION_RESET));
    assert_eq!(bench.result(1).1, Err(Errno::CANCELED));
    assert_eq!(bench.result(3).1, Ok(Done::Nothing));
}

#[test]
fn nobody_listening_is_a_refusal() {
    let mut bench = Bench::new();
    let listener = bench.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = bench.io.local_addr(listener).unwrap();
    bench
        .run(Op::Close {
            handle: listener,
            reset: false,
        })
        .1
        .unwrap();
    assert_eq!(
        bench.run(Op::Connect { to }).1,
        Err(Errno::CONNECTION_REFUSED)
    );
    assert_eq!(bench.io.handles.0.len(), 0);
}

#[test]
fn a_stale_handle_is_told_from_its_successor() {
    let mut bench = Bench::new();
    let (near, far) = bench.pair();
    bench
        .run(Op::Close {
            handle: near,
            reset: false,
        })
        .1
        .unwrap();
    let again = bench.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(again.index, near.index.min(again.index));
    let op = recv(near, bench.window(10, |_| {}));
    assert_eq!(bench.run(op).1, Err(Errno::BAD_HANDLE));
    assert_eq!(
        bench
            .run(Op::Close {
                handle: near,
                reset: true
            })
            .1,
        Err(Errno::BAD_HANDLE)
    );
    assert_eq!(bench.io.local_addr(near), None);
    assert!(bench.io.local_addr(far).is_some());
}

#[test]
fn more_connections_than_handles_are_refused_and_cost_nothing_else() {
    let mut bench = Bench::with(UringConfig {
        handles_max: 2,
        ..config()
    });
    let listener = bench.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = bench.io.local_addr(listener).unwrap();
    bench.io.submit(token(1), Op::Accept { listener });
    bench.io.submit(token(2), Op::Connect { to });
    let results = [bench.result(1).1, bench.result(2).1];
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.contains(&Err(Errno::TOO_MANY_HANDLES)));
}

#[test]
fn an_address_in_use_is_named() {
    let mut bench = Bench::new();
    let listener = bench.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = bench.io.local_addr(listener).unwrap();
    let told = bench.io.listen(at).unwrap_err().to_string();
    assert!(
        told.starts_with(&format!("listen on {at}: Address already in use")),
        "{told}"
    );
}

#[test]
#[should_panic(expected = "two sends in flight on one socket")]
fn two_sends_on_one_socket_are_a_bug() {
    let mut bench = Bench::new();
    let (near, _) = bench.pair();
    for value in 0..2 {
        bench
            .io
            .submit(token(value), send(near, vec![bench.buf(b"x")]));
    }
}

#[test]
fn more_ops_than_the_submission_queue_holds_all_complete() {
    let mut bench = Bench::with(UringConfig {
        sq_entries: 4,
        ..config()
    });
    let (_near, far) = bench.pair();
    let ids: Vec<_> = (0..30)
        .map(|value| {
            bench
                .io
                .submit(token(value), recv(far, bench.window(8, |_| {})))
        })
        .collect();
    assert!(bench.io.counters().queue_full > 0);
    for op in ids {
        bench.io.cancel(op);
    }
    for value in 0..30 {
        assert_eq!(bench.result(value).1, Err(Errno::CANCELED));
    }
}

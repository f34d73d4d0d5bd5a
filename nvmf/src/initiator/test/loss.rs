use super::*;
use crate::proto::pdu::Fatal;
use proptest::prelude::*;
use std::net::TcpListener;

/// Fills the queue with reads and writes; returns how many.
pub(super) fn fill(world: &mut World, id: AssociationId) -> u64 {
    let mut count = 0;
    while world.inbox.initiator.has_room(id) {
        let request = match count % 3 {
            0 => world.read(count, 32),
            1 => world.write(count, 32, 1),
            _ => world.write(count, 2, 1),
        };
        world
            .inbox
            .initiator
            .submit(&mut world.io, id, count, request)
            .unwrap();
        count += 1;
    }
    count
}

/// Takes events until the end; every request comes back once, with all its bytes, before `Lost`.
pub(super) fn collect(world: &mut World, count: u64) -> (LostReason, u64) {
    let (reason, failures) = collect_any(world, count);
    assert!(
        failures
            .iter()
            .all(|failure| *failure == Failure::ConnectionLost)
    );
    (reason, failures.len() as u64)
}

pub(super) fn collect_any(world: &mut World, count: u64) -> (LostReason, Vec<Failure>) {
    let mut back = BTreeMap::new();
    let mut failures = Vec::new();
    let reason = loop {
        match world.next() {
            InitiatorEvent::Done {
                user,
                request,
                result,
                ..
            } => {
                match &request {
                    Request::Read { blocks, into, .. } => {
                        assert_eq!(into.len_bytes(), blocks * 4096);
                    }
                    Request::Write { blocks, data, .. } => {
                        assert_eq!(data.len_bytes(), blocks * 4096);
                    }
                    other => panic!("{other:?}"),
                }
                failures.extend(result.err());
                assert!(
                    back.insert(user, ()).is_none(),
                    "request {user} came back twice"
                );
            }
            InitiatorEvent::Lost { reason, .. } => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        back.len() as u64,
        count,
        "all requests are back before the end is told"
    );
    assert!(world.inbox.events.is_empty() && world.inbox.initiator.is_idle());
    if world.inbox.server.is_none() {
        assert_eq!(world.io.arena().in_use_bytes(), 0, "windows were kept");
    }
    (reason, failures)
}

#[test]
fn a_target_killed_in_the_middle_returns_every_request_once() {
    for close_at in [1, 2, 3, 7, 20, 31] {
        let model = Model::start(Knobs {
            close_at,
            c2h_bytes: 7000,
            ..Knobs::default()
        });
        let (mut world, id) = World::ready(config(), &model);
        let count = fill(&mut world, id);
        assert_eq!(count, 32);
        let (reason, failed) = collect(&mut world, count);
        assert!(
            matches!(
                reason,
                LostReason::PeerClosed { .. } | LostReason::Socket { .. }
            ),
            "{reason:?}"
        );
        assert!(failed >= 1);
    }
}

#[test]
fn a_target_that_stops_answering_costs_the_association_at_the_deadline() {
    let model = Model::start(Knobs {
        mute_after: 5,
        ..Knobs::default()
    });
    let short = Config {
        command_deadline_ms: 50,
        ..config()
    };
    let (mut world, id) = World::ready(short, &model);
    let count = fill(&mut world, id);
    let (reason, failed) = collect(&mut world, count);
    assert!(
        matches!(
            reason,
            LostReason::Deadline {
                queue: QueueId::Io,
                ..
            }
        ),
        "{reason:?}"
    );
    // A slow machine may pass the deadline before the five are answered.
    assert!(failed >= 27);
}

#[test]
fn an_abort_returns_every_request_once() {
    let model = Model::start(Knobs {
        mute_after: 0,
        ..Knobs::default()
    });
    let (mut world, id) = World::ready(config(), &model);
    let count = fill(&mut world, id);
    world.inbox.on_turn_end(&mut world.io);
    world.inbox.initiator.abort(&mut world.io, id);
    world.inbox.initiator.abort(&mut world.io, id);
    let request = world.read(0, 1);
    assert!(
        world
            .inbox
            .initiator
            .submit(&mut world.io, id, 0, request)
            .is_err()
    );
    assert_eq!(collect(&mut world, count), (LostReason::Aborted, count));
}

#[test]
fn an_abort_before_ready_is_an_end_too() {
    let model = Model::start(Knobs::default());
    for turns in 0..12 {
        let mut world = World::new(config());
        let id = world.connect(&model);
        for _ in 0..turns {
            if world.inbox.events.is_empty() {
                world.io.turn(&mut world.inbox);
            }
        }
        world.inbox.initiator.abort(&mut world.io, id);
        let mut last = world.next();
        if matches!(last, InitiatorEvent::Ready { .. }) {
            last = world.next();
        }
        assert!(matches!(
            last,
            InitiatorEvent::Lost {
                reason: LostReason::Aborted,
                ..
            }
        ));
        assert_eq!(world.io.arena().in_use_bytes(), 0);
    }
}

#[test]
fn nobody_listening_is_told_with_the_kernels_reason() {
    let at = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut world = World::new(config());
    world.inbox.initiator.connect(&mut world.io, at, NQN);
    let reason = world.lost();
    let LostReason::OpenFailed {
        queue: QueueId::Admin,
        errno,
    } = reason
    else {
        panic!("{reason:?}");
    };
    assert_eq!(errno, reactor::Errno::CONNECTION_REFUSED.0);
}

#[test]
fn a_listener_that_says_nothing_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut world = World::new(Config {
        connect_timeout_ms: 50,
        ..config()
    });
    world
        .inbox
        .initiator
        .connect(&mut world.io, listener.local_addr().unwrap(), NQN);
    assert!(matches!(world.lost(), LostReason::ConnectTimeout { .. }));
}

#[test]
fn a_target_that_hangs_up_during_set_up_is_an_end() {
    for opcode in [0x06, 0x09] {
        let model = Model::start(Knobs {
            hang_up_on: Some(opcode),
            ..Knobs::default()
        });
        let mut world = World::new(config());
        world.connect(&model);
        let reason = world.lost();
        let queue = QueueId::Admin;
        assert_eq!(reason, LostReason::PeerClosed { queue });
        assert_eq!(world.io.arena().in_use_bytes(), 0);
    }
}

#[test]
fn a_breach_during_set_up_is_an_end() {
    let model = Model::start(Knobs {
        maxh2cdata: 4,
        ..Knobs::default()
    });
    let mut world = World::new(config());
    world.connect(&model);
    let (queue, fatal) = (QueueId::Admin, Fatal::field(12));
    assert_eq!(world.lost(), LostReason::Breach { queue, fatal });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a target says instead of an answer: every request comes back once, and then the
    /// end is told (at the deadline, if what was said is the beginning of something lawful).
    #[test]
    fn garbage_returns_every_request_once(
        kind in 0u8..12,
        cid in prop_oneof![0x100u16..0x103, 0u16..40, any::<u16>()],
        mut bytes in prop::collection::vec(any::<u8>(), 8..600),
        lawful_frame in any::<bool>(),
    ) {
        if lawful_frame {
            let data = if kind == 7 { bytes.len().saturating_sub(24) } else { 0 };
            let hlen = if kind <= 1 { 128 } else { 24 };
            let plen = u32::try_from(usize::from(hlen) + data).unwrap();
            bytes[..4].copy_from_slice(&[kind, 0, hlen, if data > 0 { 24 } else { 0 }]);
            bytes[4..8].copy_from_slice(&plen.to_le_bytes());
            let at = if kind == 5 { 20 } else { 8 };
            if bytes.len() > at + 2 {
                bytes[at..at + 2].copy_from_slice(&cid.to_le_bytes());
            }
        }
        let model = Model::start(Knobs { instead: Some(bytes), ..Knobs::default() });
        let short = Config { command_deadline_ms: 40, queue_depth: 6, ..config() };
        let (mut world, id) = World::ready(short, &model);
        let count = fill(&mut world, id);
        collect_any(&mut world, count);
    }
}

/// A CapsuleResp for a cid that is not in flight.
const FOREIGN_CID: &[u8] = &[
    5, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77, 0x77, 0, 0,
];
/// An R2T for cid 0100h: the read, in the slot (0) that Connect used first.
const R2T_FOR_A_READ: &[u8] = &[
    9, 0, 24, 0, 24, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0,
];
/// A type byte nobody knows.
const UNKNOWN_TYPE: &[u8] = &[8, 0, 24, 0, 24, 0, 0, 0];
/// A CapsuleResp with another HLEN than its type's.
const WRONG_HLEN: &[u8] = &[5, 0, 255, 0, 255, 0, 0, 0];
/// C2HTermReq.
const TERMINATE: &[u8] = &[
    3, 0, 24, 0, 24, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn a_breach_is_answered_with_a_terminate_request_and_costs_that_association_only() {
    let cases: [(&'static [u8], (u16, u32)); 4] = [
        (FOREIGN_CID, (1, 20)),
        (R2T_FOR_A_READ, (2, 0)),
        (UNKNOWN_TYPE, (1, 0)),
        (WRONG_HLEN, (1, 2)),
    ];
    for (bytes, term) in cases {
        let model = Model::start(Knobs {
            instead: Some(bytes.to_vec()),
            ..Knobs::default()
        });
        let healthy = Model::start(Knobs::default());
        let (mut world, bystander) = World::ready(config(), &healthy);
        let id = world.connect(&model);
        assert!(matches!(world.next(), InitiatorEvent::Ready { .. }));
        let read = world.read(0, 1);
        let (_, result) = world.ask(id, read);
        assert_eq!(result, Err(Failure::ConnectionLost));
        let reason = world.lost();
        assert!(
            matches!(
                reason,
                LostReason::Breach {
                    queue: QueueId::Io,
                    ..
                }
            ),
            "{reason:?}"
        );
        // The request was sent before the socket was closed, which `Lost` waited for; the model
        // reads it in its own time.
        let seen = std::iter::repeat_with(|| {
            std::thread::yield_now();
            model.terminated()
        });
        let seen = seen.take(1_000_000).find(|seen| !seen.is_empty());
        assert_eq!(seen.as_deref(), Some(&[term][..]));
        let read = world.read(0, 1);
        assert!(world.ask(bystander, read).1.is_ok());
    }
}

#[test]
fn a_terminate_request_is_not_answered_with_one() {
    let model = Model::start(Knobs {
        instead: Some(TERMINATE.to_vec()),
        ..Knobs::default()
    });
    let (mut world, id) = World::ready(config(), &model);
    let read = world.read(0, 1);
    assert_eq!(world.ask(id, read).1, Err(Failure::ConnectionLost));
    assert_eq!(world.lost(), LostReason::PeerTerminated { fes: 2, fei: 0 });
    assert_eq!(model.terminated(), []);
}

#[test]
fn an_exhausted_arena_is_backpressure_for_commands_and_an_end_for_connections() {
    let model = Model::start(Knobs::default());
    let (mut world, id) = World::ready(config(), &model);
    let taken: Vec<_> = std::iter::from_fn(|| world.io.arena().take(4096)).collect();
    let request = Request::Vendor {
        nsid: 1,
        opcode: 0xc1,
        cdw10_15: [0; 6],
        data: Some(vec![1]),
        reply_len_bytes: 0,
    };
    let refused = world.inbox.initiator.submit(&mut world.io, id, 1, request);
    let request = refused.expect_err("no memory for the data");
    world.connect(&model);
    assert_eq!(
        world.lost(),
        LostReason::NoBuffers {
            queue: QueueId::Admin
        }
    );
    drop(taken);
    assert!(world.ask(id, request).1.is_ok());
    world.end(id);
}

//! A ready association: commands, data, time, events.

use super::*;

#[test]
fn a_small_write_goes_in_its_capsule_and_a_large_one_waits_for_r2t() {
    let mut rig = Rig::ready();
    let (index, _, effects) = rig.io(io::WRITE, Transfer::ToController { len_bytes: 16384 });
    let (queue, sqe, payload) = capsule(&effects);
    assert_eq!((queue, sqe.sgl), (QueueId::Io, Sgl::in_capsule(16384)));
    assert_eq!(
        payload,
        Payload::Command {
            index,
            start_bytes: 0,
            len_bytes: 16384
        }
    );

    let (_, _, effects) = rig.io(io::WRITE, Transfer::ToController { len_bytes: 20480 });
    let (_, sqe, payload) = capsule(&effects);
    assert_eq!((sqe.sgl, payload), (Sgl::transport(20480), Payload::None));
}

#[test]
fn r2t_is_answered_with_pdus_of_at_most_maxh2cdata_and_last_on_the_last() {
    let mut rig = Rig::ready();
    let (index, cid) = rig.write(131_072);
    let mut sent = Vec::new();
    for (start, len) in [(0, 81_920), (81_920, 49_152)] {
        for effect in rig.r2t(cid, start, len) {
            let Effect::Send {
                header: Header::H2cData { data, last },
                payload,
                ..
            } = effect
            else {
                panic!("{effect:?}");
            };
            assert_eq!((data.cccid.get(), data.ttag.get()), (cid, 77));
            let (start_bytes, len_bytes) = (data.datao.get(), data.datal.get());
            assert_eq!(
                payload,
                Payload::Command {
                    index,
                    start_bytes,
                    len_bytes
                }
            );
            sent.push((start_bytes, len_bytes, last));
        }
    }
    let expected = [
        (0, 32768, false),
        (32768, 32768, false),
        (65536, 16384, true),
        (81920, 32768, false),
        (114_688, 16384, true),
    ];
    assert_eq!(sent, expected);
    let (done, outcome) = outcome(&rig.respond(QueueId::Io, cid, Status::SUCCESS, 0));
    assert_eq!((done, outcome.status), (index, Status::SUCCESS));
}

#[test]
fn a_read_ends_with_the_success_flag_or_with_its_completion() {
    let mut rig = Rig::ready();
    let (index, cid) = rig.read(8192);
    let slot = SlotId {
        queue: QueueId::Io,
        index,
    };
    let receive = |start_bytes, len_bytes| {
        [Effect::Receive {
            slot,
            start_bytes,
            len_bytes,
            digest: false,
        }]
    };
    assert_eq!(rig.data(cid, (0, 4096), (false, false)), receive(0, 4096));
    assert_eq!(rig.arrived(), []);
    assert_eq!(
        rig.data(cid, (4096, 4096), (true, true)),
        receive(4096, 4096)
    );
    let (_, outcome_) = outcome(&rig.arrived());
    assert_eq!(
        (outcome_.status, outcome_.received_bytes),
        (Status::SUCCESS, 8192)
    );

    let (_, cid) = rig.read(4096);
    rig.data(cid, (0, 4096), (true, false));
    assert_eq!(rig.arrived(), []);
    let (_, outcome) = outcome(&rig.respond(QueueId::Io, cid, Status::SUCCESS, 0));
    assert_eq!(outcome.status, Status::SUCCESS);
}

#[test]
fn a_failed_read_may_have_delivered_anything() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(8192);
    rig.data(cid, (0, 4096), (false, false));
    rig.arrived();
    let effects = rig.respond(QueueId::Io, cid, Status::UNRECOVERED_READ, 0);
    assert_eq!(outcome(&effects).1.status, Status::UNRECOVERED_READ);
}

#[test]
fn a_vendor_reply_may_be_shorter_than_its_bound() {
    let mut rig = Rig::ready();
    let command = Command {
        queue: QueueId::Admin,
        sqe: Sqe::new(0xc6, 0, 1),
        transfer: Transfer::ToHost {
            len_bytes: 65536,
            exact: false,
        },
    };
    let mut out = Vec::new();
    rig.host.admit(rig.now_ns, command, &mut out).unwrap();
    let cid = capsule(&out).1.cid.get();
    let data = C2hData {
        cccid: cid.into(),
        datal: 12.into(),
        ..C2hData::new_zeroed()
    };
    rig.pdu(
        QueueId::Admin,
        &Header::C2hData {
            data,
            last: true,
            success: false,
        },
        12,
    );
    rig.step(Event::DataReceived {
        queue: QueueId::Admin,
        intact: true,
        data: &[0; 12],
    });
    let (_, outcome) = outcome(&rig.respond(QueueId::Admin, cid, Status::SUCCESS, 5));
    assert_eq!((outcome.result, outcome.received_bytes), (5, 12));
}

#[test]
fn a_full_queue_refuses_until_something_completes() {
    let mut rig = Rig::ready();
    let cids: Vec<_> = (0..127).map(|_| rig.read(4096).1).collect();
    assert!(!rig.host.has_room(QueueId::Io));
    let command = Command {
        queue: QueueId::Io,
        sqe: Sqe::new(io::FLUSH, 0, 1),
        transfer: Transfer::Nothing,
    };
    let mut out = Vec::new();
    assert_eq!(rig.host.admit(1, command, &mut out), None);
    assert_eq!(out, []);
    rig.respond(QueueId::Io, cids[60], Status::INVALID_FIELD, 0);
    assert_eq!(rig.host.admit(1, command, &mut out), Some(60));
}

#[test]
fn callers_cannot_take_the_admin_slots_that_the_association_lives_on() {
    let mut rig = Rig::ready();
    let command = Command {
        queue: QueueId::Admin,
        sqe: Sqe::new(0xc8, 0, 1),
        transfer: Transfer::Nothing,
    };
    let mut out = Vec::new();
    let admitted = (0..100)
        .map_while(|_| rig.host.admit(rig.now_ns, command, &mut out))
        .count();
    assert_eq!(admitted, usize::from(ADMIN_COMMANDS_MAX));
    rig.now_ns += 5 * SECOND_NS; // no deadline has passed yet
    rig.host.last_alive_ns = 0;
    rig.host.config.kato_ms = 1;
    assert_eq!(capsule(&rig.step(Event::Timer)).1.opcode, admin::KEEP_ALIVE);
}

#[test]
fn an_overdue_command_costs_the_association() {
    let mut rig = Rig::ready();
    let (_, _, effects) = rig.io(
        io::READ,
        Transfer::ToHost {
            len_bytes: 4096,
            exact: true,
        },
    );
    let at_ns = rig.now_ns + 5 * SECOND_NS;
    assert_eq!(effects.last(), Some(&Effect::Arm { at_ns }));
    rig.now_ns = at_ns - 1;
    assert_eq!(rig.step(Event::Timer), [Effect::Arm { at_ns }]);
    rig.now_ns = at_ns;
    let reason = LostReason::Deadline {
        queue: QueueId::Io,
        opcode: io::READ,
    };
    assert_eq!(
        rig.step(Event::Timer),
        [Effect::Lose {
            reason,
            terminate: None
        }]
    );
}

#[test]
fn a_busy_association_moves_its_timer_once_per_deadline() {
    let mut rig = Rig::ready();
    let mut arms = 0;
    let mut armed_ns = u64::MAX;
    for _ in 0..1000 {
        rig.now_ns += SECOND_NS / 100;
        let mut effects = Vec::new();
        if rig.now_ns >= armed_ns {
            effects.extend(rig.step(Event::Timer));
        }
        let (_, cid, more) = rig.io(
            io::READ,
            Transfer::ToHost {
                len_bytes: 4096,
                exact: true,
            },
        );
        effects.extend(more);
        effects.extend(rig.respond(QueueId::Io, cid, Status::INVALID_FIELD, 0));
        for effect in effects {
            if let Effect::Arm { at_ns } = effect {
                (arms, armed_ns) = (arms + 1, at_ns);
            }
        }
    }
    // Ten seconds of traffic, deadlines of five.
    assert!(arms <= 6, "{arms} moves");
    assert_eq!(rig.host.phase(), Phase::Ready);
}

/// What an idle association does: wake-ups by timer, and commands sent.
fn idle(rig: &mut Rig, seconds: u64) -> (u32, Vec<u8>) {
    let end_ns = rig.now_ns + seconds * SECOND_NS;
    let (mut wakes, mut opcodes) = (0, Vec::new());
    while rig.host.armed_ns <= end_ns {
        rig.now_ns = rig.host.armed_ns;
        wakes += 1;
        let effects = rig.step(Event::Timer);
        assert_eq!(lost(&effects), None);
        if effects
            .iter()
            .any(|effect| matches!(effect, Effect::Send { .. }))
        {
            let (queue, sqe, _) = capsule(&effects);
            opcodes.push(sqe.opcode);
            rig.now_ns += 1000;
            rig.respond(queue, sqe.cid.get(), Status::SUCCESS, 0);
        }
    }
    rig.now_ns = end_ns;
    (wakes, opcodes)
}

#[test]
fn an_idle_association_wakes_for_keep_alives_only() {
    let mut rig = Rig::ready();
    let (wakes, opcodes) = idle(&mut rig, 76);
    assert_eq!(opcodes, [admin::KEEP_ALIVE; 10]);
    assert_eq!(wakes, 10);
}

#[test]
fn traffic_replaces_keep_alives_where_the_controller_counts_it() {
    for counts in [true, false] {
        let mut rig = Rig::new(config());
        rig.identify.ctratt = (u32::from(counts) << 6).into();
        rig.run_setup();
        let mut sent = 0;
        for _ in 0..60 {
            sent += idle(&mut rig, 1).1.len();
            let (_, cid) = rig.read(4096);
            rig.respond(QueueId::Io, cid, Status::INVALID_FIELD, 0);
        }
        assert_eq!(sent, if counts { 0 } else { 8 });
    }
}

#[test]
fn a_silent_controller_is_found_out_by_the_keep_alive() {
    let mut rig = Rig::ready();
    rig.now_ns = rig.host.armed_ns;
    let effects = rig.step(Event::Timer);
    assert_eq!(capsule(&effects).1.opcode, admin::KEEP_ALIVE);
    assert_eq!(rig.host.armed_ns, rig.now_ns + 6 * SECOND_NS);
    rig.now_ns = rig.host.armed_ns;
    let reason = LostReason::Deadline {
        queue: QueueId::Admin,
        opcode: admin::KEEP_ALIVE,
    };
    assert_eq!(lost(&rig.step(Event::Timer)), Some(reason));
}

#[test]
fn without_kato_an_idle_association_has_no_timer() {
    let mut rig = Rig::ready_with(HostConfig {
        kato_ms: 0,
        ..config()
    });
    rig.now_ns = rig.host.armed_ns;
    assert_eq!(rig.step(Event::Timer), []);
    assert_eq!(rig.host.armed_ns, u64::MAX);
}

#[test]
fn a_changed_namespace_is_told_after_its_log_was_read_and_asked_for_again() {
    let mut rig = Rig::new(config());
    let effects = rig.run_setup();
    let (_, request, _) = capsule(&effects);
    assert_eq!(request.opcode, admin::ASYNC_EVENT);

    let event = 2 | 4 << 16; // notice, namespace attribute changed, log page 4
    let effects = rig.respond(QueueId::Admin, request.cid.get(), Status::SUCCESS, event);
    let (_, log, _) = capsule(&effects);
    assert_eq!(
        (log.opcode, log.cdw(10)),
        (admin::GET_LOG_PAGE, 4 | 1023 << 16)
    );
    let cid = log.cid;
    let data = C2hData {
        cccid: cid,
        datal: 4096.into(),
        ..C2hData::new_zeroed()
    };
    rig.pdu(
        QueueId::Admin,
        &Header::C2hData {
            data,
            last: true,
            success: false,
        },
        4096,
    );
    rig.step(Event::DataReceived {
        queue: QueueId::Admin,
        intact: true,
        data: &[0; 4096],
    });
    let effects = rig.respond(QueueId::Admin, cid.get(), Status::SUCCESS, 0);
    assert_eq!(effects[0], Effect::NamespacesChanged);
    assert_eq!(capsule(&effects).1.opcode, admin::ASYNC_EVENT);
}

#[test]
fn other_events_only_renew_the_request_and_a_refusal_does_not() {
    let mut rig = Rig::new(config());
    let effects = rig.run_setup();
    let cid = capsule(&effects).1.cid.get();
    let effects = rig.respond(QueueId::Admin, cid, Status::SUCCESS, 1);
    assert_eq!(effects.len(), 1);
    let (_, again, _) = capsule(&effects);
    let status = Status::AER_LIMIT_EXCEEDED;
    assert_eq!(rig.respond(QueueId::Admin, again.cid.get(), status, 0), []);
    assert_eq!(rig.host.phase(), Phase::Ready);
}

#[test]
fn nothing_follows_the_end() {
    let mut rig = Rig::ready();
    rig.read(4096);
    let effects = rig.step(Event::Gone(LostReason::Aborted));
    assert_eq!(
        effects,
        [Effect::Lose {
            reason: LostReason::Aborted,
            terminate: None
        }]
    );
    assert!(!rig.host.has_room(QueueId::Io) && rig.host.facts().is_none());
    rig.now_ns += 100 * SECOND_NS;
    assert_eq!(rig.step(Event::Timer), []);
    assert_eq!(rig.step(Event::Gone(LostReason::Aborted)), []);
}

use super::*;

#[test]
fn set_up_takes_these_steps_and_no_others() {
    let mut rig = Rig::new(config());
    let mut seen = Vec::new();
    let mut effects = rig.step(Event::Start);
    loop {
        for effect in &effects {
            if let Effect::Send { queue, header, .. } = effect {
                let note = match header {
                    Header::IcReq(_) => "greet".into(),
                    Header::CapsuleCmd(sqe) if sqe.opcode == admin::FABRICS => {
                        format!("fabrics {:02x} {:x}", fabrics::fctype(sqe), sqe.cdw(11))
                    }
                    Header::CapsuleCmd(sqe) => {
                        format!("{:02x} {:x} {:x}", sqe.opcode, sqe.cdw(10), sqe.cdw(11))
                    }
                    other => panic!("{other:?}"),
                };
                seen.push(format!("{} {note}", queue.qid()));
            }
        }
        match rig.answer(&effects) {
            Some(next) => effects = next,
            None => break,
        }
    }
    let expected = [
        "0 greet",
        "0 fabrics 01 4001f", // Connect: SQSIZE 31, no flow control
        "0 fabrics 04 0",     // CAP
        "0 fabrics 00 14",    // CC
        "0 fabrics 04 1c",    // CSTS
        "0 06 1 0",           // Identify Controller
        "0 09 7 0",           // one IO queue
        "0 09 b 100",         // tell of changed namespaces
        "1 greet",
        "1 fabrics 01 4007f", // Connect: SQSIZE 127
        "0 0c 0 0",           // the first event request
    ];
    assert_eq!(seen, expected);
    assert_eq!(rig.host.phase(), Phase::Ready);
    let facts = rig.host.facts().unwrap();
    assert_eq!(
        (facts.cntlid, facts.queue_depth, facts.inline_bytes),
        (3, 127, 16384)
    );
    assert!(facts.write_cache && facts.write_zeroes && facts.dataset_management);
}

#[test]
fn the_io_queue_connects_to_the_same_controller_under_the_same_names() {
    let mut rig = Rig::new(config());
    let mut connects = Vec::new();
    let mut effects = rig.step(Event::Start);
    while let Some(next) = rig.answer(&effects) {
        connects.extend(effects.iter().filter_map(|effect| match effect {
            Effect::Send {
                header: Header::CapsuleCmd(sqe),
                payload: Payload::Connect(data),
                ..
            } => Some((ConnectCommand::of(sqe), data.clone())),
            _ => None,
        }));
        effects = next;
    }
    let [(admin, first), (io, second)] = &connects[..] else {
        panic!("{connects:?}")
    };
    assert_eq!(
        (admin.qid.get(), admin.kato_ms.get(), first.cntlid.get()),
        (0, 15_000, 0xffff)
    );
    assert_eq!(
        (io.qid.get(), io.kato_ms.get(), second.cntlid.get()),
        (1, 0, 3)
    );
    assert_eq!(io.sgl, Sgl::in_capsule(1024));
    for data in [first, second] {
        assert_eq!(
            fabrics::nqn(&data.subnqn),
            Some("nqn.2026-01.io.ublkstor:storaged:s")
        );
        assert_eq!(
            fabrics::nqn(&data.hostnqn),
            Some("nqn.2026-01.io.ublkstor:clientd:h")
        );
        assert_eq!(data.hostid, [7; 16]);
    }
}

#[test]
fn a_refused_step_ends_the_association_with_its_status() {
    let mut rig = Rig::new(config());
    let effects = rig.step(Event::Start);
    let effects = rig.answer(&effects).unwrap();
    let effects = rig.answer(&effects).unwrap();
    let (queue, sqe, _) = capsule(&effects);
    let status = Status::CONNECT_CONTROLLER_BUSY;
    let effects = rig.respond(queue, sqe.cid.get(), status, 0);
    let phase = Phase::Connecting(QueueId::Admin);
    assert_eq!(lost(&effects), Some(LostReason::Refused { phase, status }));
    assert_eq!(rig.step(Event::Timer), []);
}

#[test]
fn an_unready_controller_is_looked_at_again_but_not_in_a_loop() {
    let mut rig = Rig::new(config());
    let mut effects = rig.step(Event::Start);
    while rig.host.phase() != Phase::AwaitingReady {
        effects = rig.answer(&effects).unwrap();
    }
    let (queue, sqe, _) = capsule(&effects);
    let effects = rig.respond(queue, sqe.cid.get(), Status::SUCCESS, 0);
    let at_ns = rig.now_ns + READY_POLL_NS;
    assert_eq!(effects, [Effect::Arm { at_ns }]);
    rig.now_ns = at_ns;
    let effects = rig.step(Event::Timer);
    let (_, sqe, _) = capsule(&effects);
    assert_eq!((fabrics::fctype(&sqe), sqe.cdw(11)), (4, 0x1c));
    let fatal = u64::from(fabrics::CSTS_FATAL);
    let effects = rig.respond(queue, sqe.cid.get(), Status::SUCCESS, fatal);
    assert_eq!(lost(&effects), Some(Unsuitable::Fatal(2).into()));
}

#[test]
fn set_up_that_stands_still_times_out() {
    let mut rig = Rig::new(config());
    let effects = rig.step(Event::Start);
    assert!(effects.contains(&Effect::Arm {
        at_ns: 1 + 10 * SECOND_NS
    }));
    rig.answer(&effects).unwrap();
    rig.now_ns += 10 * SECOND_NS;
    let effects = rig.step(Event::Timer);
    let phase = Phase::Greeting(QueueId::Admin);
    assert_eq!(lost(&effects), Some(LostReason::ConnectTimeout { phase }));
}

#[test]
fn controllers_that_cannot_serve_us_are_refused_by_name() {
    type Edit = fn(&mut IdentifyController);
    let cases: [(Edit, Unsuitable); 9] = [
        (
            |id| id.cntlid = 4.into(),
            Unsuitable::ControllerId {
                connect: 3,
                identify: 4,
            },
        ),
        (|id| id.cntrltype = 2, Unsuitable::ControllerType(2)),
        (|id| id.kas = 0.into(), Unsuitable::KeepAlive),
        (
            |id| id.ioccsz = 3.into(),
            Unsuitable::Capsules {
                command: 3,
                response: 1,
            },
        ),
        (
            |id| id.iorcsz = 0.into(),
            Unsuitable::Capsules {
                command: 1028,
                response: 0,
            },
        ),
        (|id| id.icdoff = 1.into(), Unsuitable::DataOffset(1)),
        (|id| id.sgls = 0.into(), Unsuitable::Sgls(0)),
        (|id| id.mdts = 4, Unsuitable::TransferSize(65536)),
        (|id| id.maxcmd = 1.into(), Unsuitable::QueueDepth(1)),
    ];
    for (edit, reason) in cases {
        let mut rig = Rig::new(config());
        edit(&mut rig.identify);
        assert_eq!(lost(&rig.run_setup()), Some(reason.into()));
    }
}

#[test]
fn odd_but_lawful_controllers_are_taken() {
    let mut rig = Rig::new(config());
    rig.identify.mdts = 0; // no limit
    rig.identify.maxcmd = 0.into(); // not stated
    rig.identify.oaes = 0.into(); // no events
    rig.identify.cntrltype = 0; // not reported
    rig.identify.ioccsz = u32::MAX.into();
    rig.run_setup();
    let facts = rig.host.facts().unwrap();
    assert_eq!(
        (facts.transfer_bytes_max, facts.inline_bytes),
        (u32::MAX, IO_BYTES_MAX)
    );
    assert!(!facts.announces_changes);
    assert_eq!(rig.host.in_flight(QueueId::Admin), 0);
}

#[test]
fn icresp_is_checked() {
    type Edit = fn(&mut IcResp);
    let cases: [(Edit, Fatal); 4] = [
        (|resp| resp.pfv = 1.into(), Fatal::field(8)),
        (|resp| resp.cpda = 32, Fatal::field(10)),
        (|resp| resp.maxh2cdata = 4092.into(), Fatal::field(12)),
        (|resp| resp.maxh2cdata = 4098.into(), Fatal::field(12)),
    ];
    for (edit, fatal) in cases {
        let mut rig = Rig::new(config());
        rig.step(Event::Start);
        rig.step(Event::Opened {
            queue: QueueId::Admin,
        });
        let mut resp = IcResp::new(Digests::default(), 8192);
        edit(&mut resp);
        let effects = rig.pdu(QueueId::Admin, &Header::IcResp(resp), 0);
        let reason = LostReason::Breach {
            queue: QueueId::Admin,
            fatal,
        };
        assert_eq!(lost(&effects), Some(reason));
    }
}

#[test]
fn other_digests_than_asked_for_are_refused() {
    let digests = Digests {
        header: true,
        data: false,
    };
    let mut rig = Rig::new(HostConfig {
        digests,
        ..config()
    });
    rig.step(Event::Start);
    rig.step(Event::Opened {
        queue: QueueId::Admin,
    });
    let resp = Header::IcResp(IcResp::new(Digests::default(), 8192));
    let effects = rig.pdu(QueueId::Admin, &resp, 0);
    assert_eq!(
        lost(&effects),
        Some(Unsuitable::Digests(Digests::default()).into())
    );
}

#[test]
fn anything_but_icresp_first_and_a_second_icresp_are_sequence_errors() {
    let sequence = Fatal::plain(Fes::SequenceError);
    let mut rig = Rig::new(config());
    rig.step(Event::Start);
    rig.step(Event::Opened {
        queue: QueueId::Admin,
    });
    let effects = rig.respond(QueueId::Admin, 0, Status::SUCCESS, 0);
    let reason = LostReason::Breach {
        queue: QueueId::Admin,
        fatal: sequence,
    };
    assert_eq!(lost(&effects), Some(reason));

    let mut rig = Rig::ready();
    let resp = Header::IcResp(IcResp::new(Digests::default(), 8192));
    assert_breach(&rig.pdu(QueueId::Io, &resp, 0), sequence);
}

//! What a well-behaved host sees.

use super::bench::*;
use crate::proto::controller::*;
use crate::proto::fabrics::*;
use crate::proto::identify::{EVENT_NAMESPACE_CHANGED, cns, read_list};
use crate::proto::log::{LogRequest, lid};
use crate::proto::pdu::*;
use crate::proto::sqe::Sqe;
use crate::proto::sqe::{self, CDW11_DEALLOCATE, DsmRange, NSID_ALL, Sgl};
use crate::proto::status::Status;
use crate::proto::vendor;
use zerocopy::{FromZeros, IntoBytes};

fn pattern(blocks: u32) -> Vec<u8> {
    (0..blocks * 4096)
        .map(|i| u8::try_from((i * 7 + i / 4096) % 251).unwrap())
        .collect()
}

fn h2c(r2t: &R2t, start: u32, len: u32, last: bool) -> Header {
    Header::H2cData {
        data: H2cData {
            cccid: r2t.cccid,
            ttag: r2t.ttag,
            datao: start.into(),
            datal: len.into(),
            reserved: 0.into(),
        },
        last,
    }
}

/// Connects with `digests`, writes in the capsule and by R2T in two PDUs, reads both back. The
/// stream arrives in pieces of `piece` bytes.
fn write_and_read(digests: Digests, hpda: u8, piece: usize) {
    let mut bench = Bench::new();
    let send = |bench: &mut Bench, on: u32, bytes: &[u8]| {
        bytes.chunks(piece).for_each(|part| bench.feed(on, part));
    };
    let framing = Framing { digests, pda: 0 };
    let mut cntlid = CNTLID_DYNAMIC;
    for qid in 0..2u16 {
        let on = u32::from(qid);
        bench.open(on);
        let icreq = IcReq {
            hpda,
            ..IcReq::new(digests)
        };
        send(&mut bench, on, &encode(plain(), &Header::IcReq(icreq), &[]));
        let Header::IcResp(resp) = bench.take(on).unwrap().pdu else {
            panic!()
        };
        assert_eq!(
            (resp.dgst, resp.maxh2cdata.get(), resp.cpda),
            (digests.to_wire(), 131_072, 0)
        );
        assert_eq!(bench.core.framing(on), Framing { digests, pda: hpda });
        let connect = Header::CapsuleCmd(ConnectCommand::new(1, qid, 31, 0, 5000).to_sqe());
        let data = ConnectData::new(HOSTID, cntlid, SUBNQN, HOSTNQN);
        send(&mut bench, on, &encode(framing, &connect, data.as_bytes()));
        let cqe = bench.completion(on);
        assert_eq!(cqe.status(), Status::SUCCESS);
        cntlid = u16::try_from(cqe.result.get()).unwrap();
        if qid == 0 {
            let set = PropertyCommand::set(2, property::CC, CC_ENABLE).to_sqe();
            send(
                &mut bench,
                on,
                &encode(framing, &Header::CapsuleCmd(set), &[]),
            );
            assert_eq!(bench.completion(on).status(), Status::SUCCESS);
        }
    }
    let small = pattern(2);
    send(
        &mut bench,
        1,
        &encode(framing, &Header::CapsuleCmd(write(5, 3, 2)), &small),
    );
    assert_eq!(bench.completion(1).cid.get(), 5);

    let large = pattern(32);
    let sqe = write(6, 100, 32).with_sgl(Sgl::transport(131_072));
    send(
        &mut bench,
        1,
        &encode(framing, &Header::CapsuleCmd(sqe), &[]),
    );
    let Header::R2t(r2t) = bench.take(1).unwrap().pdu else {
        panic!()
    };
    assert_eq!(
        (r2t.r2to.get(), r2t.r2tl.get(), r2t.cccid.get()),
        (0, 131_072, 6)
    );
    let (first, second) = large.split_at(100_000);
    send(
        &mut bench,
        1,
        &encode(framing, &h2c(&r2t, 0, 100_000, false), first),
    );
    assert_eq!(bench.take(1), None);
    send(
        &mut bench,
        1,
        &encode(framing, &h2c(&r2t, 100_000, 31_072, true), second),
    );
    assert_eq!(bench.completion(1).status(), Status::SUCCESS);

    for (slba, expected) in [(3, &small), (100, &large)] {
        let blocks = u32::try_from(expected.len() / 4096).unwrap();
        let sqe = Header::CapsuleCmd(read(8, slba, blocks));
        send(&mut bench, 1, &encode(framing, &sqe, &[]));
        let sent = bench.take(1).unwrap();
        assert!(matches!(
            sent.pdu,
            Header::C2hData {
                last: true,
                success: false,
                ..
            }
        ));
        assert!(sent.data == *expected);
        assert_eq!(bench.completion(1).status(), Status::SUCCESS);
    }
}

#[test]
fn what_was_written_is_read_back_whatever_the_framing() {
    for dgst in 0..4 {
        for hpda in [0, 3, 31] {
            write_and_read(Digests::from_wire(dgst), hpda, usize::MAX);
        }
        write_and_read(Digests::from_wire(dgst), 0, 1);
        write_and_read(Digests::from_wire(dgst), 0, 4099);
    }
}

#[test]
fn without_flow_control_a_read_ends_with_its_data() {
    let mut bench = Bench::new();
    bench.flow_control = false;
    bench.greet(0);
    let cqe = bench.connect(0, 0, CNTLID_DYNAMIC, SUBNQN);
    assert_eq!(cqe.sqhd.get(), 0xffff);
    let set = PropertyCommand::set(2, property::CC, CC_ENABLE).to_sqe();
    assert_eq!(bench.command(0, set), Status::SUCCESS);
    bench.greet(1);
    bench.connect(1, 1, u16::try_from(cqe.result.get()).unwrap(), SUBNQN);
    bench.feed(1, &capsule(read(4, 0, 1), &[]));
    let sent = bench.take(1).unwrap();
    assert!(matches!(
        sent.pdu,
        Header::C2hData {
            last: true,
            success: true,
            ..
        }
    ));
    assert_eq!(bench.take(1), None);
}

#[test]
fn flow_control_counts_the_queue_head() {
    let mut bench = Bench::new();
    bench.association(0);
    for turn in 2u16..70 {
        bench.feed(1, &capsule(Sqe::new(sqe::io::FLUSH, turn, NSID), &[]));
        assert_eq!(bench.completion(1).sqhd.get(), turn % 32);
    }
}

#[test]
fn zeroes_and_deallocation_reach_the_backend() {
    let mut bench = Bench::new();
    bench.association(0);
    bench.feed(1, &capsule(write(1, 0, 4), &pattern(4)));
    bench.completion(1);
    let zero = Sqe::new(sqe::io::WRITE_ZEROES, 2, NSID).with_range(0, 1, 1 << 25);
    assert_eq!(bench.command(1, zero), Status::SUCCESS);
    // One range in a page, as Linux sends it.
    let mut page = vec![0; 4096];
    let range = DsmRange {
        attributes: 0.into(),
        blocks: 1.into(),
        slba: 2.into(),
    };
    page[..16].copy_from_slice(range.as_bytes());
    let dsm = |flags| {
        Sqe::new(sqe::io::DATASET_MANAGEMENT, 3, NSID)
            .with_cdws([0, flags, 0, 0, 0, 0])
            .with_sgl(Sgl::in_capsule(4096))
    };
    bench.feed(1, &capsule(dsm(CDW11_DEALLOCATE), &page));
    assert_eq!(bench.completion(1).status(), Status::SUCCESS);
    let admitted = bench.admitted.len();
    bench.feed(1, &capsule(dsm(0), &page));
    assert_eq!(bench.completion(1).status(), Status::SUCCESS);
    assert_eq!(bench.admitted.len(), admitted, "a hint is no command");
    bench.feed(1, &capsule(read(4, 0, 4), &[]));
    let data = bench.take(1).unwrap().data;
    let all = pattern(4);
    assert!(data[..4096].iter().all(|b| *b == 0) && data[8192..12288].iter().all(|b| *b == 0));
    assert!(data[4096..8192] == all[4096..8192] && data[12288..] == all[12288..]);
}

#[test]
fn a_wrong_data_digest_fails_the_command_and_nothing_else() {
    let digests = Digests {
        header: true,
        data: true,
    };
    let framing = Framing { digests, pda: 0 };
    let mut bench = Bench::new();
    bench.association(0);
    // A second IO queue, with digests.
    bench.open(2);
    bench.feed(
        2,
        &encode(plain(), &Header::IcReq(IcReq::new(digests)), &[]),
    );
    bench.take(2);
    let connect = Header::CapsuleCmd(ConnectCommand::new(1, 2, 31, 0, 0).to_sqe());
    let data = ConnectData::new(HOSTID, 1, SUBNQN, HOSTNQN);
    bench.feed(2, &encode(framing, &connect, data.as_bytes()));
    assert_eq!(bench.completion(2).status(), Status::SUCCESS);
    let before = bench.admitted.len();
    let mut bytes = encode(framing, &Header::CapsuleCmd(write(5, 0, 1)), &pattern(1));
    bytes[500] ^= 1;
    bench.feed(2, &bytes);
    assert_eq!(bench.completion(2).status(), Status::TRANSIENT_TRANSPORT);
    assert_eq!(
        bench.admitted.len(),
        before,
        "damaged data never reaches the backend"
    );
    bench.feed(
        2,
        &encode(framing, &Header::CapsuleCmd(write(5, 0, 1)), &pattern(1)),
    );
    assert_eq!(bench.completion(2).status(), Status::SUCCESS);
}

#[test]
fn identify_lists_and_describes_namespaces() {
    let mut bench = Bench::new();
    bench.association(0);
    let list = bench.data_of(0, identify(cns::ACTIVE_LIST, 0));
    assert_eq!(read_list(&list).collect::<Vec<_>>(), [NSID]);
    let namespace = bench.data_of(0, identify(cns::NAMESPACE, NSID));
    assert_eq!(namespace[..8], SIZE_BLOCKS.to_le_bytes());
    let inactive = bench.data_of(0, identify(cns::NAMESPACE, NSID + 1));
    assert!(inactive.iter().all(|b| *b == 0));
    assert_eq!(bench.data_of(0, identify(cns::DESCRIPTORS, NSID))[0], 2);
    assert_eq!(
        bench.data_of(0, identify(cns::CONTROLLER_OF_SET, 0)),
        vec![0; 4096]
    );
    let controller = bench.data_of(0, identify(cns::CONTROLLER, 0));
    assert_eq!(controller[111], 1);
}

#[test]
fn discovery_tells_both_subsystems_page_by_page() {
    let mut bench = Bench::new();
    bench.admin(0, DISCOVERY_NQN);
    let mut whole = Vec::new();
    for offset_bytes in [0, 1024, 2048] {
        let request = LogRequest {
            lid: lid::DISCOVERY,
            retain_event: false,
            offset_bytes,
            len_bytes: 1024,
        };
        whole.extend(bench.data_of(0, request.to_sqe(3, 0).with_sgl(Sgl::transport(1024))));
    }
    assert_eq!(
        whole,
        crate::proto::log::discovery(1, SUBNQN, "127.0.0.1:4420".parse().unwrap())
    );
    assert_eq!(bench.data_of(0, identify(cns::CONTROLLER, 0))[111], 2);
    assert_eq!(
        bench.command(0, identify(cns::ACTIVE_LIST, 0)),
        Status::INVALID_FIELD
    );
    bench.greet(1);
    assert_eq!(
        bench.connect(1, 1, 1, DISCOVERY_NQN).status(),
        Status::CONNECT_INVALID_PARAMETERS
    );
}

fn event_config(value: u32) -> Sqe {
    Sqe::new(sqe::admin::SET_FEATURES, 3, 0).with_cdws([0x0b, value, 0, 0, 0, 0])
}

#[test]
fn a_host_learns_of_changed_namespaces_once_until_it_looks() {
    let mut bench = Bench::new();
    bench.association(0);
    bench.namespaces_changed();
    bench.feed(0, &capsule(Sqe::new(sqe::admin::ASYNC_EVENT, 31, 0), &[]));
    assert_eq!(bench.take(0), None, "not wanted yet");
    bench.feed(0, &capsule(event_config(EVENT_NAMESPACE_CHANGED), &[]));
    let event = bench.completion(0);
    assert_eq!((event.cid.get(), event.result.get()), (31, 0x0004_0002));
    assert_eq!(bench.completion(0).cid.get(), 3);
    bench.feed(0, &capsule(Sqe::new(sqe::admin::ASYNC_EVENT, 31, 0), &[]));
    assert_eq!(bench.take(0), None, "told and not read");
    let log = LogRequest {
        lid: lid::CHANGED_NAMESPACES,
        retain_event: false,
        offset_bytes: 0,
        len_bytes: 4096,
    };
    let sqe = log.to_sqe(4, NSID_ALL).with_sgl(Sgl::transport(4096));
    assert_eq!(bench.data_of(0, sqe)[..4], [0xff; 4]);
    assert_eq!(bench.data_of(0, sqe)[..4], [0; 4]);
    bench.namespaces_changed();
    assert_eq!(bench.completion(0).cid.get(), 31);
}

#[test]
fn event_requests_have_a_limit() {
    let mut bench = Bench::new();
    bench.association(0);
    for cid in 0..4 {
        bench.feed(0, &capsule(Sqe::new(sqe::admin::ASYNC_EVENT, cid, 0), &[]));
    }
    let fifth = Sqe::new(sqe::admin::ASYNC_EVENT, 4, 0);
    assert_eq!(bench.command(0, fifth), Status::AER_LIMIT_EXCEEDED);
}

#[test]
fn vendor_commands_carry_data_both_ways() {
    let mut bench = Bench::new();
    bench.association(0);
    let state = vendor::command(vendor::opcode::SLICE_STATE, 5, NSID, [0; 3]);
    assert_eq!(
        bench.data_of(0, state.with_sgl(Sgl::transport(128))),
        vec![0x5a; 128]
    );
    let open = vendor::OpenSlice {
        version: vendor::PROTOCOL_VERSION.into(),
        ..vendor::OpenSlice::new_zeroed()
    };
    let sqe = vendor::command(vendor::opcode::OPEN_SLICE, 6, NSID, [0; 3]);
    bench.feed(
        0,
        &capsule(sqe.with_sgl(Sgl::in_capsule(64)), open.as_bytes()),
    );
    assert_eq!(bench.completion(0).result.get(), 0x1_0000_0001);
    let tick = vendor::command(vendor::opcode::TICK, 7, NSID, [0; 3]);
    assert_eq!(bench.command(0, tick), Status::SUCCESS);
    let mut wrong = tick;
    wrong.cdw[0] = (u32::from(vendor::PROTOCOL_VERSION) + 1).into();
    assert_eq!(bench.command(0, wrong), Status::PROTOCOL_VERSION);
}

#[test]
fn a_waiting_capsule_stops_its_connection_and_no_other() {
    let mut bench = Bench::new();
    bench.association(0);
    bench.starve = true;
    bench.feed(1, &capsule(write(5, 0, 1), &pattern(1)));
    bench.feed(1, &capsule(Sqe::new(sqe::io::FLUSH, 6, NSID), &[]));
    assert_eq!(bench.core.need(1), Need::Buffer);
    assert_eq!(
        bench.command(0, Sqe::new(sqe::admin::KEEP_ALIVE, 1, 0)),
        Status::SUCCESS
    );
    let (on, slot, len) = bench.starved.remove(0);
    bench.give(on, slot, len);
    bench.pump(1);
    assert_eq!(
        (bench.completion(1).cid.get(), bench.completion(1).cid.get()),
        (5, 6)
    );
}

#[test]
fn commands_that_wait_for_a_buffer_do_not_stop_their_connection() {
    let mut bench = Bench::new();
    bench.association(0);
    bench.starve = true;
    bench.feed(
        1,
        &capsule(write(5, 0, 32).with_sgl(Sgl::transport(131_072)), &[]),
    );
    bench.feed(1, &capsule(read(6, 0, 1), &[]));
    assert_eq!(
        bench.command(1, Sqe::new(sqe::io::FLUSH, 7, NSID)),
        Status::SUCCESS
    );
    let (on, slot, len) = bench.starved.remove(0);
    bench.give(on, slot, len);
    assert!(matches!(bench.take(1).unwrap().pdu, Header::R2t(_)));
    assert!(bench.core.expects_data(1));
}

#[test]
fn the_same_cid_twice_in_flight_is_two_commands() {
    let mut bench = Bench::new();
    bench.association(0);
    for slba in [0, 1] {
        let sqe = write(5, slba, 1).with_sgl(Sgl::transport(4096));
        bench.feed(1, &capsule(sqe, &[]));
    }
    let r2ts: Vec<R2t> = (0..2)
        .map(|_| match bench.take(1).unwrap().pdu {
            Header::R2t(r2t) => r2t,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_ne!(r2ts[0].ttag, r2ts[1].ttag);
    for r2t in r2ts.iter().rev() {
        let data = vec![u8::try_from(r2t.ttag.get()).unwrap(); 4096];
        bench.feed(1, &encode(plain(), &h2c(r2t, 0, 4096, true), &data));
        assert_eq!(bench.completion(1).status(), Status::SUCCESS);
    }
}

//! Whatever comes: the right terminate request or status, and only that connection closes.

use super::bench::*;
use crate::proto::controller::*;
use crate::proto::fabrics::*;
use crate::proto::pdu::*;
use crate::proto::sqe::Sqe;
use crate::proto::sqe::{self, NSID_ALL, SGL_IN_CAPSULE, Sgl};
use crate::proto::status::Status;
use crate::proto::vendor;
use proptest::prelude::*;
use zerocopy::IntoBytes;

/// How far a connection got before the malformed bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Opened,
    Greeted,
    Admin,
    Io,
    /// An IO queue with one R2T outstanding: cid 5, 8 KiB, TTAG as returned.
    Asked,
}

const ALL: [State; 5] = [
    State::Opened,
    State::Greeted,
    State::Admin,
    State::Io,
    State::Asked,
];

/// A bench with a bystander association on 10 and 11, the victim in `state`, and its number.
fn at(state: State) -> (Bench, u32, u16) {
    let mut bench = Bench::new();
    bench.association(10);
    let (mut victim, mut ttag) = (0, 0);
    match state {
        State::Opened => bench.open(0),
        State::Greeted => bench.greet(0),
        State::Admin => drop(bench.admin(0, SUBNQN)),
        State::Io | State::Asked => {
            bench.association(0);
            victim = 1;
        }
    }
    if state == State::Asked {
        bench.feed(
            1,
            &capsule(write(5, 0, 2).with_sgl(Sgl::transport(8192)), &[]),
        );
        let Header::R2t(r2t) = bench.take(1).unwrap().pdu else {
            panic!()
        };
        ttag = r2t.ttag.get();
    }
    (bench, victim, ttag)
}

/// Feeds `bytes` and expects this breach, and that nobody else notices.
fn breach(state: State, bytes: &[u8], expected: Fatal) {
    for piece in [usize::MAX, 1] {
        let (mut bench, victim, _) = at(state);
        bytes
            .chunks(piece.min(bytes.len()))
            .for_each(|part| bench.feed(victim, part));
        assert_eq!(
            bench.terminated.get(&victim),
            Some(&expected),
            "{state:?} {bytes:02x?}"
        );
        assert!(!bench.core.is_open(victim));
        assert_eq!(bench.core.need(victim), Need::Nothing);
        assert_eq!(
            bench.command(10, Sqe::new(sqe::admin::KEEP_ALIVE, 1, 0)),
            Status::SUCCESS
        );
        assert_eq!(bench.command(11, read(1, 0, 1)), Status::SUCCESS);
    }
}

fn header(header: &Header) -> Vec<u8> {
    encode(plain(), header, &[])
}

fn raw(kind: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> Vec<u8> {
    let mut bytes = vec![kind, flags, hlen, pdo];
    bytes.extend_from_slice(&plen.to_le_bytes());
    bytes.resize(128, 0);
    bytes
}

#[test]
fn icreq_comes_first_and_once() {
    let icreq = header(&Header::IcReq(IcReq::new(Digests::default())));
    let flush = capsule(Sqe::new(sqe::io::FLUSH, 1, NSID), &[]);
    breach(State::Opened, &flush, SEQUENCE);
    breach(State::Opened, &h2c(0, 0, 0, 4096, true), SEQUENCE);
    for state in [State::Greeted, State::Admin, State::Io, State::Asked] {
        breach(state, &icreq, SEQUENCE);
    }
}

#[test]
fn wrong_header_fields_are_named_in_every_state() {
    for state in ALL {
        for kind in [0x08, 0x0a, 0x0b, 0x42, 0xff, 0x01, 0x03, 0x05, 0x07, 0x09] {
            breach(state, &raw(kind, 0, 24, 0, 24), Fatal::field(0));
        }
        breach(state, &raw(0x00, 0, 24, 0, 128), Fatal::field(2));
        breach(state, &raw(0x04, 0, 255, 0, 72), Fatal::field(2));
        breach(state, &raw(0x04, 0, 0, 0, 72), Fatal::field(2));
        breach(state, &raw(0x00, 1, 128, 0, 128), Fatal::field(1));
        breach(state, &raw(0x04, FLAG_HDGST, 72, 0, 76), Fatal::field(1));
        breach(state, &raw(0x04, FLAG_DDGST, 72, 72, 80), Fatal::field(1));
        breach(state, &raw(0x04, 0x10, 72, 0, 72), Fatal::field(1));
        breach(state, &raw(0x04, 0, 72, 72, 72), Fatal::field(3));
        breach(state, &raw(0x04, 0, 72, 71, 80), Fatal::field(3));
        breach(state, &raw(0x04, 0, 72, 76, 80), Fatal::field(3));
        breach(state, &raw(0x00, 0, 128, 0, 132), Fatal::field(4));
        breach(state, &raw(0x04, 0, 72, 0, 8), Fatal::field(4));
        breach(state, &raw(0x02, 0, 24, 0, 153), Fatal::field(4));
        breach(state, &raw(0x02, 0, 24, 0, 23), Fatal::field(4));
        breach(
            state,
            &raw(0x04, 0, 72, 72, u32::MAX),
            Fatal::plain(Fes::LimitExceeded),
        );
    }
}

#[test]
fn a_foreign_format_or_alignment_is_refused() {
    let icreq = IcReq::new(Digests::default());
    let format = Header::IcReq(IcReq {
        pfv: 1.into(),
        ..icreq
    });
    breach(State::Opened, &header(&format), Fatal::field(8));
    breach(
        State::Opened,
        &header(&Header::IcReq(IcReq { hpda: 32, ..icreq })),
        Fatal::field(10),
    );
}

fn h2c(cccid: u16, ttag: u16, datao: u32, datal: u32, last: bool) -> Vec<u8> {
    let data = H2cData {
        cccid: cccid.into(),
        ttag: ttag.into(),
        datao: datao.into(),
        datal: datal.into(),
        reserved: 0.into(),
    };
    let payload = vec![1; datal.min(200_000) as usize];
    encode(plain(), &Header::H2cData { data, last }, &payload)
}

#[test]
fn data_that_nobody_asked_for_is_a_breach() {
    for state in [State::Greeted, State::Admin, State::Io] {
        for ttag in [0, 1, 63, 64, 0xffff] {
            breach(state, &h2c(5, ttag, 0, 4096, true), SEQUENCE);
        }
    }
    let (_, _, ttag) = at(State::Asked);
    for other in [ttag ^ 1, ttag + 64, 0xffff] {
        breach(State::Asked, &h2c(5, other, 0, 4096, false), SEQUENCE);
    }
}

#[test]
fn data_must_continue_what_was_asked_for() {
    let (_, _, ttag) = at(State::Asked);
    let range = Fatal::plain(Fes::DataOutOfRange);
    breach(State::Asked, &h2c(6, ttag, 0, 4096, false), Fatal::field(8));
    breach(State::Asked, &h2c(5, ttag, 4096, 4096, true), range);
    breach(
        State::Asked,
        &h2c(5, ttag, u32::MAX - 4095, 4096, true),
        range,
    );
    breach(State::Asked, &h2c(5, ttag, 0, 12288, true), range);
    breach(State::Asked, &h2c(5, ttag, 0, 4096, true), Fatal::field(1));
    breach(State::Asked, &h2c(5, ttag, 0, 8192, false), Fatal::field(1));
    let limit = Fatal::plain(Fes::LimitExceeded);
    breach(State::Asked, &h2c(5, ttag, 0, 131_076, true), limit);
    // DATAL that PLEN contradicts, and none at all.
    let mut lying = h2c(5, ttag, 0, 4096, false);
    lying[16..20].copy_from_slice(&4000u32.to_le_bytes());
    breach(State::Asked, &lying, Fatal::field(16));
    breach(State::Asked, &h2c(5, ttag, 0, 0, false), Fatal::field(16));
    // After all of it came, there is nothing left to send.
    let twice = [h2c(5, ttag, 0, 8192, true), h2c(5, ttag, 0, 8192, true)].concat();
    breach(State::Asked, &twice, SEQUENCE);
    let again = [h2c(5, ttag, 0, 4096, false), h2c(5, ttag, 0, 4096, false)].concat();
    breach(State::Asked, &again, range);
}

#[test]
fn capsules_have_a_size_limit_per_queue() {
    let limit = Fatal::plain(Fes::LimitExceeded);
    let with = |bytes: usize| {
        let sgl = Sgl::in_capsule(u32::try_from(bytes).unwrap());
        capsule(
            Sqe::new(sqe::io::WRITE, 1, NSID).with_sgl(sgl),
            &vec![0; bytes],
        )
    };
    breach(State::Greeted, &with(8196), limit);
    breach(State::Admin, &with(8196), limit);
    breach(State::Io, &with(16388), limit);
}

#[test]
fn a_terminate_request_ends_the_connection_without_an_answer() {
    for state in ALL {
        let (mut bench, victim, _) = at(state);
        let bytes = term_req(Role::Host, SEQUENCE, &[9; 40]);
        bench.feed(victim, &bytes);
        assert_eq!(
            bench.closed.get(&victim),
            Some(&CloseReason::PeerTerminated)
        );
        assert!(bench.terminated.is_empty());
        assert_eq!(bench.command(11, read(1, 0, 1)), Status::SUCCESS);
    }
}

/// Commands that fail with a status; the connection goes on, the stream stays in step.
#[test]
fn wrong_commands_get_their_status() {
    let sgl = |kind| Sgl {
        kind,
        ..Sgl::transport(4096)
    };
    let offset = Sgl {
        address: 8.into(),
        ..Sgl::in_capsule(4096)
    };
    let page: &[u8] = &[0; 4096];
    let flags = |flags| Sqe {
        flags,
        ..read(1, 0, 1)
    };
    let nsid = |nsid: u32| Sqe {
        nsid: nsid.into(),
        ..read(1, 0, 1)
    };
    let plain_read = |slba, blocks| read(1, slba, blocks);
    let dsm = |ranges: u32, len| {
        Sqe::new(sqe::io::DATASET_MANAGEMENT, 1, NSID)
            .with_cdws([ranges - 1, 4, 0, 0, 0, 0])
            .with_sgl(Sgl::in_capsule(len))
    };
    let cases: Vec<(Sqe, &[u8], Status)> = vec![
        (Sqe::new(0x05, 1, NSID), &[], Status::INVALID_OPCODE),
        (Sqe::new(0x7f, 1, 1), &[], Status::COMMAND_SEQUENCE),
        (flags(0x00), &[], Status::INVALID_FIELD),
        (flags(0x80), &[], Status::INVALID_FIELD),
        (flags(0x41), &[], Status::INVALID_FIELD),
        (nsid(0), &[], Status::INVALID_NAMESPACE),
        (nsid(NSID_ALL), &[], Status::INVALID_NAMESPACE),
        // As VWC says.
        (
            Sqe::new(sqe::io::FLUSH, 1, NSID_ALL),
            &[],
            Status::INVALID_NAMESPACE,
        ),
        (nsid(NSID + 1), &[], Status::INVALID_NAMESPACE),
        (plain_read(SIZE_BLOCKS, 1), &[], Status::LBA_OUT_OF_RANGE),
        (plain_read(u64::MAX, 1), &[], Status::LBA_OUT_OF_RANGE),
        (plain_read(u64::MAX - 3, 4), &[], Status::LBA_OUT_OF_RANGE),
        (plain_read(0, 33), &[], Status::INVALID_FIELD),
        (
            plain_read(0, 2).with_sgl(Sgl::transport(4096)),
            &[],
            Status::SGL_LENGTH_INVALID,
        ),
        (
            plain_read(0, 1).with_sgl(Sgl::transport(0)),
            &[],
            Status::SGL_LENGTH_INVALID,
        ),
        (
            plain_read(0, 1).with_sgl(Sgl::transport(u32::MAX)),
            &[],
            Status::SGL_LENGTH_INVALID,
        ),
        (
            plain_read(0, 1).with_sgl(Sgl::in_capsule(4096)),
            page,
            Status::INVALID_FIELD,
        ),
        (
            plain_read(0, 1).with_sgl(sgl(0x40)),
            &[],
            Status::SGL_TYPE_INVALID,
        ),
        (
            plain_read(0, 1).with_sgl(sgl(0x20)),
            &[],
            Status::SGL_TYPE_INVALID,
        ),
        (
            plain_read(0, 1).with_sgl(sgl(SGL_IN_CAPSULE)),
            &[],
            Status::INVALID_FIELD,
        ),
        (plain_read(0, 1), page, Status::SGL_LENGTH_INVALID),
        (
            write(1, 0, 1).with_sgl(offset),
            page,
            Status::SGL_OFFSET_INVALID,
        ),
        (write(1, 0, 1), &[], Status::SGL_LENGTH_INVALID),
        (write(1, 0, 1), &page[..4092], Status::SGL_LENGTH_INVALID),
        (
            write(1, 0, 1).with_sgl(Sgl::transport(4096)),
            page,
            Status::SGL_LENGTH_INVALID,
        ),
        (write(1, SIZE_BLOCKS, 1), page, Status::LBA_OUT_OF_RANGE),
        (
            Sqe::new(0, 1, NSID).with_sgl(Sgl::transport(8)),
            &[],
            Status::SGL_LENGTH_INVALID,
        ),
        (Sqe::new(0, 1, NSID), page, Status::SGL_LENGTH_INVALID),
        (
            Sqe::new(8, 1, NSID).with_range(u64::MAX, 2, 0),
            &[],
            Status::LBA_OUT_OF_RANGE,
        ),
        (dsm(2, 16), &page[..16], Status::SGL_LENGTH_INVALID),
        (dsm(256, 4112), &[0; 4112], Status::SGL_LENGTH_INVALID),
    ];
    let (mut bench, victim, _) = at(State::Io);
    for (index, (sqe, data, expected)) in cases.into_iter().enumerate() {
        bench.feed(victim, &capsule(sqe, data));
        assert_eq!(
            bench.completion(victim).status(),
            expected,
            "case {index}: {sqe:?}"
        );
        assert_eq!(
            bench.command(victim, read(2, 0, 1)),
            Status::SUCCESS,
            "after case {index}"
        );
    }
}

#[test]
fn wrong_admin_commands_get_their_status() {
    let out = |sqe: Sqe| sqe.with_sgl(Sgl::transport(4096));
    let admin = |opcode, cdw10: u32| out(Sqe::new(opcode, 1, 0)).with_cdws([cdw10, 0, 0, 0, 0, 0]);
    let bare = |opcode, cdw10: u32| Sqe::new(opcode, 1, 0).with_cdws([cdw10, 0, 0, 0, 0, 0]);
    let vendor = |opcode| vendor::command(opcode, 1, NSID, [0; 3]);
    let get = |offset, wide| PropertyCommand::get(1, offset, wide).to_sqe();
    let set = |offset| PropertyCommand::set(1, offset, 1).to_sqe();
    let log = |at: u32| admin(2, 1).with_cdws([1, 0, at, 0, 0, 0]);
    let cases = [
        (admin(0x06, 0x07), Status::INVALID_FIELD),
        (identify(0x00, 0), Status::INVALID_NAMESPACE),
        (identify(0x00, NSID_ALL), Status::INVALID_NAMESPACE),
        (identify(0x02, NSID_ALL - 1), Status::INVALID_NAMESPACE),
        (identify(0x03, NSID + 1), Status::INVALID_NAMESPACE),
        (
            Sqe::new(0x06, 1, 0).with_cdws([1, 0, 0, 0, 0, 0]),
            Status::SGL_LENGTH_INVALID,
        ),
        (admin(0x02, 0x0c), Status::INVALID_LOG_PAGE),
        (admin(0x02, 0x70), Status::INVALID_LOG_PAGE),
        (log(2), Status::INVALID_FIELD),
        (log(68), Status::INVALID_FIELD),
        (bare(0x09, 0x06), Status::FEATURE_NOT_CHANGEABLE),
        (bare(0x09, 0x8000_000b), Status::FEATURE_NOT_SAVEABLE),
        (bare(0x09, 0x7b), Status::INVALID_FIELD),
        (bare(0x0a, 0x04), Status::INVALID_FIELD),
        (bare(0x01, 0), Status::INVALID_OPCODE),
        (vendor(0xc3), Status::INVALID_OPCODE),
        (vendor(0xc1), Status::SGL_LENGTH_INVALID),
        (out(vendor(0xc8)), Status::SGL_LENGTH_INVALID),
        (
            vendor(0xc2).with_sgl(Sgl::transport(65540)),
            Status::INVALID_FIELD,
        ),
        (get(0x00, false), Status::INVALID_FIELD),
        (get(0x1c, true), Status::INVALID_FIELD),
        (get(0x04, false), Status::INVALID_FIELD),
        (get(u32::MAX, false), Status::INVALID_FIELD),
        (set(0x1c), Status::INVALID_FIELD),
        (set(0x00), Status::INVALID_FIELD),
        (
            ConnectCommand::new(1, 0, 31, 0, 0).to_sqe(),
            Status::COMMAND_SEQUENCE,
        ),
        (Sqe::new(0x7f, 1, 5), Status::INVALID_OPCODE),
    ];
    let (mut bench, victim, _) = at(State::Admin);
    for (index, (sqe, expected)) in cases.into_iter().enumerate() {
        assert_eq!(
            bench.command(victim, sqe),
            expected,
            "case {index}: {sqe:?}"
        );
    }
}

#[test]
fn wrong_connects_get_their_status() {
    let good = ConnectData::new(HOSTID, CNTLID_DYNAMIC, SUBNQN, HOSTNQN);
    let command = |qid, sqsize| ConnectCommand::new(1, qid, sqsize, 0, 0);
    let unterminated = [b'x'; 256];
    let invalid = Status::CONNECT_INVALID_PARAMETERS;
    let again = invalid.retryable();
    let io = |cntlid, hostid, host| ConnectData::new(hostid, cntlid, SUBNQN, host);
    let stranger = ConnectData::new(HOSTID, CNTLID_DYNAMIC, "nqn.other", HOSTNQN);
    let cases: Vec<(ConnectCommand, ConnectData, Status, u64)> = vec![
        (
            ConnectCommand {
                recfmt: 1.into(),
                ..command(0, 31)
            },
            good,
            Status::CONNECT_INCOMPATIBLE_FORMAT,
            0,
        ),
        (command(0, 0), good, invalid, 44),
        (command(0, 128), good, invalid, 44),
        (
            command(0, 31),
            ConnectData {
                subnqn: unterminated,
                ..good
            },
            again,
            0x1_0100,
        ),
        (
            command(0, 31),
            ConnectData {
                hostnqn: unterminated,
                ..good
            },
            again,
            0x1_0200,
        ),
        (
            command(0, 31),
            ConnectData {
                hostnqn: [0; 256],
                ..good
            },
            again,
            0x1_0200,
        ),
        (command(0, 31), stranger, again, 0x1_0100),
        (
            command(0, 31),
            ConnectData {
                cntlid: 3.into(),
                ..good
            },
            again,
            0x1_0010,
        ),
        (
            ConnectCommand {
                kato_ms: u32::MAX.into(),
                ..command(0, 31)
            },
            good,
            invalid,
            48,
        ),
        (command(1, 31), io(999, HOSTID, HOSTNQN), again, 0x1_0010),
        (
            command(1, 31),
            io(1, HOSTID, "nqn.someone"),
            again,
            0x1_0200,
        ),
        (command(1, 31), io(1, [9; 16], HOSTNQN), again, 0x1_0000),
        (command(17, 31), io(1, HOSTID, HOSTNQN), invalid, 42),
        (
            command(1, 31),
            io(1, HOSTID, HOSTNQN),
            Status::COMMAND_SEQUENCE,
            0,
        ),
    ];
    let (mut bench, victim, _) = at(State::Greeted);
    for (index, (command, data, status, result)) in cases.into_iter().enumerate() {
        bench.feed(victim, &capsule(command.to_sqe(), data.as_bytes()));
        let cqe = bench.completion(victim);
        assert_eq!(
            (cqe.status(), cqe.result.get()),
            (status, result),
            "case {index}"
        );
    }
    let short = ConnectCommand {
        sgl: Sgl::in_capsule(512),
        ..command(0, 31)
    };
    bench.feed(victim, &capsule(short.to_sqe(), &good.as_bytes()[..512]));
    assert_eq!(
        bench.completion(victim).status(),
        Status::SGL_LENGTH_INVALID
    );
    assert_eq!(bench.command(victim, read(1, 0, 1)), Status::INVALID_OPCODE);
    bench.feed(victim, &capsule(command(0, 31).to_sqe(), good.as_bytes()));
    assert_eq!(bench.completion(victim).status(), Status::SUCCESS);
}

/// A valid conversation on an IO queue, after set-up: in-capsule write, R2T write, read, flush.
fn conversation(ttag: u16) -> Vec<u8> {
    [
        capsule(write(1, 0, 1), &[1; 4096]),
        h2c(5, ttag, 0, 4096, false),
        capsule(read(2, 0, 1), &[]),
        h2c(5, ttag, 4096, 4096, true),
        capsule(Sqe::new(sqe::io::FLUSH, 3, NSID), &[]),
    ]
    .concat()
}

#[test]
fn a_connection_may_end_after_any_byte() {
    let (_, _, ttag) = at(State::Asked);
    let bytes = conversation(ttag);
    // Every byte of the headers, and some within the payloads.
    for end in (0..bytes.len()).filter(|at| at % 4168 < 200 || at % 97 == 0) {
        let (mut bench, victim, _) = at(State::Asked);
        bench.feed(victim, &bytes[..end]);
        bench.step(victim, Event::PeerGone);
        assert_eq!(bench.core.association_count(), 2);
        bench.step(victim - 1, Event::PeerGone);
        assert_eq!(bench.core.association_count(), 1);
        assert_eq!(bench.command(11, read(1, 0, 1)), Status::SUCCESS);
        assert!(bench.terminated.is_empty());
    }
}

#[test]
fn set_up_may_end_after_any_byte() {
    let icreq = header(&Header::IcReq(IcReq::new(Digests::default())));
    let data = ConnectData::new(HOSTID, CNTLID_DYNAMIC, SUBNQN, HOSTNQN);
    let connect = capsule(
        ConnectCommand::new(1, 0, 31, 0, 0).to_sqe(),
        data.as_bytes(),
    );
    let bytes = [icreq, connect].concat();
    for end in 0..=bytes.len() {
        let (mut bench, victim, _) = at(State::Opened);
        bench.feed(victim, &bytes[..end]);
        assert_eq!(
            bench.core.association_count(),
            if end == bytes.len() { 2 } else { 1 }
        );
        bench.step(victim, Event::PeerGone);
        assert_eq!(bench.core.association_count(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any damage to a valid conversation, in any state, cut anywhere: nothing panics and the
    /// bystander never notices.
    #[test]
    fn damage_stays_on_its_connection(
        state in prop::sample::select(&ALL[..]),
        flips in prop::collection::vec((0usize..13_000, any::<u8>()), 0..6),
        header_flips in prop::collection::vec((0usize..5, 0usize..72, any::<u8>()), 0..4),
        piece in prop::sample::select(&[1usize, 7, 73, 4096, 65_536][..]),
        end in 0usize..13_000,
    ) {
        let (mut bench, victim, ttag) = at(state);
        let mut bytes = conversation(ttag);
        let starts = [0, 4168, 8288, 8360, 12480];
        for (offset, value) in flips {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte = value;
            }
        }
        for (pdu, offset, value) in header_flips {
            bytes[(starts[pdu] + offset).min(12_500)] = value;
        }
        bytes.truncate(end.max(100));
        bytes.chunks(piece).for_each(|part| bench.feed(victim, part));
        prop_assert_eq!(bench.command(11, read(1, 0, 1)), Status::SUCCESS);
        bench.pass(1_000_000);
        prop_assert_eq!(bench.core.association_count(), 0);
    }
}

//! Everything of the malformed-input list that concerns an initiator.

use super::*;

const SEQUENCE: Fatal = Fatal::plain(Fes::SequenceError);
const RANGE: Fatal = Fatal::plain(Fes::DataOutOfRange);

#[test]
fn an_r2t_for_a_read_discloses_nothing() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(65536);
    assert_breach(&rig.r2t(cid, 0, 65536), SEQUENCE);
}

#[test]
fn an_r2t_for_data_that_went_in_the_capsule_is_refused() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.write(4096);
    assert_breach(&rig.r2t(cid, 0, 4096), SEQUENCE);
}

#[test]
fn r2ts_stay_in_order_and_inside_the_command() {
    let wrong = [
        (0, 0),
        (0, 131_073),
        (4096, 4096),
        (0, u32::MAX),
        (u32::MAX, 1),
        (131_072, 1),
    ];
    for (r2to, r2tl) in wrong {
        let mut rig = Rig::ready();
        let (_, cid) = rig.write(131_072);
        assert_breach(&rig.r2t(cid, r2to, r2tl), RANGE);
    }
    for (r2to, r2tl) in [(0, 4096), (4096, 4096), (12_288, 4096), (8192, 131_072)] {
        let mut rig = Rig::ready();
        let (_, cid) = rig.write(131_072);
        assert_eq!(rig.r2t(cid, 0, 8192).len(), 1);
        assert_breach(&rig.r2t(cid, r2to, r2tl), RANGE);
    }
}

#[test]
fn data_for_a_write_is_refused() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.write(65536);
    assert_breach(&rig.data(cid, (0, 4096), (true, true)), SEQUENCE);
    let mut rig = Rig::ready();
    let (_, cid, _) = rig.io(io::FLUSH, Transfer::Nothing);
    assert_breach(&rig.data(cid, (0, 4096), (true, true)), SEQUENCE);
}

#[test]
fn data_stays_in_order_and_inside_the_command() {
    for (datao, datal) in [(0, 8193), (4, 4096), (8192, 1), (u32::MAX, 8), (4096, 4096)] {
        let mut rig = Rig::ready();
        let (_, cid) = rig.read(8192);
        assert_breach(&rig.data(cid, (datao, datal), (false, false)), RANGE);
    }
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(8192);
    rig.data(cid, (0, 4096), (false, false));
    rig.arrived();
    assert_breach(&rig.data(cid, (0, 4096), (false, false)), RANGE);
}

#[test]
fn data_of_another_length_than_its_pdu_is_refused() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(8192);
    let data = C2hData {
        cccid: cid.into(),
        datal: 8192.into(),
        ..C2hData::new_zeroed()
    };
    let header = Header::C2hData {
        data,
        last: true,
        success: true,
    };
    assert_breach(&rig.pdu(QueueId::Io, &header, 4096), Fatal::field(16));
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(8192);
    assert_breach(&rig.data(cid, (0, 0), (true, false)), Fatal::field(16));
}

#[test]
fn data_after_the_last_is_refused() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(8192);
    rig.data(cid, (0, 4096), (true, false));
    rig.arrived();
    assert_breach(&rig.data(cid, (4096, 4096), (true, false)), SEQUENCE);
}

#[test]
fn success_without_last_is_refused() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(4096);
    assert_breach(&rig.data(cid, (0, 4096), (false, true)), Fatal::field(1));
}

#[test]
fn a_successful_read_that_fell_short_is_refused() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(8192);
    assert_breach(&rig.data(cid, (0, 4096), (true, true)), RANGE);
    let mut rig = Rig::ready();
    let (_, cid) = rig.read(8192);
    rig.data(cid, (0, 4096), (true, false));
    rig.arrived();
    assert_breach(&rig.respond(QueueId::Io, cid, Status::SUCCESS, 0), RANGE);
}

#[test]
fn a_successful_write_whose_data_was_not_asked_for_is_refused() {
    let mut rig = Rig::ready();
    let (_, cid) = rig.write(65536);
    rig.r2t(cid, 0, 32768);
    assert_breach(&rig.respond(QueueId::Io, cid, Status::SUCCESS, 0), RANGE);
}

#[test]
fn unknown_and_stale_cids_are_refused() {
    for cid in [5, 0x0100, 0xffff] {
        let mut rig = Rig::ready();
        assert_breach(
            &rig.respond(QueueId::Io, cid, Status::SUCCESS, 0),
            Fatal::field(20),
        );
    }
    let mut rig = Rig::ready();
    let (_, old) = rig.read(4096);
    rig.respond(QueueId::Io, old, Status::UNRECOVERED_READ, 0);
    let (_, new) = rig.read(4096);
    assert_eq!((old & 0xff, old == new), (new & 0xff, false));
    assert_breach(&rig.data(old, (0, 4096), (true, true)), Fatal::field(8));
    let mut rig = Rig::ready();
    assert_breach(&rig.r2t(9, 0, 4096), Fatal::field(8));
}

#[test]
fn a_wrong_header_digest_is_fatal_and_says_which() {
    let digests = Digests {
        header: true,
        data: false,
    };
    let mut rig = Rig::ready_with(HostConfig {
        digests,
        ..config()
    });
    let (_, cid) = rig.read(4096);
    let mut bytes = [0; 132];
    let framing = Framing { digests, pda: 0 };
    let header = Header::CapsuleResp(Cqe::new(cid, 0, Status::SUCCESS, 0));
    let written = framing.encode(&header, 0, &mut bytes);
    bytes[24..28].copy_from_slice(&[1, 2, 3, 4]);
    let fatal = Fatal {
        fes: Fes::HeaderDigest,
        fei: 0x0403_0201,
    };
    assert_breach(&rig.bytes(QueueId::Io, &bytes[..written]), fatal);
}

#[test]
fn a_wrong_data_digest_fails_the_command_only_if_headers_are_safe() {
    for header in [true, false] {
        let digests = Digests { header, data: true };
        let mut rig = Rig::ready_with(HostConfig {
            digests,
            ..config()
        });
        let (index, cid) = rig.read(4096);
        rig.data(cid, (0, 4096), (true, true));
        let event = Event::DataReceived {
            queue: QueueId::Io,
            intact: false,
            data: &[],
        };
        let effects = rig.step(event);
        if header {
            let (done, outcome) = outcome(&effects);
            assert_eq!((done, outcome.status), (index, Status::TRANSIENT_TRANSPORT));
            assert_eq!(rig.host.phase(), Phase::Ready);
        } else {
            assert_eq!(
                lost(&effects),
                Some(LostReason::DataDigest { queue: QueueId::Io })
            );
        }
    }
}

#[test]
fn the_controllers_terminate_request_ends_the_association_without_an_answer() {
    let mut rig = Rig::ready();
    let term = TermReq {
        fes: 0x7777.into(),
        fei: 9.into(),
        ..TermReq::new_zeroed()
    };
    let effects = rig.pdu(QueueId::Io, &Header::C2hTermReq(term), 0);
    let reason = LostReason::PeerTerminated {
        fes: 0x7777,
        fei: 9,
    };
    assert_eq!(
        effects,
        [Effect::Lose {
            reason,
            terminate: None
        }]
    );
}

#[test]
fn hosts_pdus_from_a_controller_are_refused() {
    let mut rig = Rig::ready();
    let header = Header::CapsuleCmd(Sqe::new(io::FLUSH, 0, 1));
    assert_breach(&rig.pdu(QueueId::Io, &header, 0), Fatal::field(0));
}

/// Whatever arrives, the machine neither panics nor says anything after the end, and never asks
/// to send or receive bytes outside a command's data.
#[derive(Clone, Debug)]
enum Noise {
    Admit(u32, bool),
    R2t(u16, u32, u32),
    Data(u16, u32, u32, bool, bool),
    Response(bool, u16, u16, u64),
    Raw(bool, Vec<u8>),
    Timer(u64),
}

fn noise() -> impl Strategy<Value = Noise> {
    let cid = prop_oneof![4 => 0u16..6, 1 => 0x100u16..0x106, 1 => any::<u16>()];
    let bytes = prop_oneof![3 => (0u32..33).prop_map(|n| n * 4096), 1 => any::<u32>()];
    prop_oneof![
        4 => (1u32..33, any::<bool>()).prop_map(|(n, write)| Noise::Admit(n * 4096, write)),
        2 => (cid.clone(), bytes.clone(), bytes.clone()).prop_map(|(c, o, l)| Noise::R2t(c, o, l)),
        3 => (cid.clone(), bytes.clone(), bytes, any::<bool>(), any::<bool>())
            .prop_map(|(c, o, l, last, success)| Noise::Data(c, o, l, last, success)),
        2 => (any::<bool>(), cid, any::<u16>(), any::<u64>())
            .prop_map(|(io, c, s, r)| Noise::Response(io, c, s, r)),
        1 => (any::<bool>(), prop::collection::vec(any::<u8>(), 8..132))
            .prop_map(|(io, bytes)| Noise::Raw(io, bytes)),
        1 => (0u64..20 * SECOND_NS).prop_map(Noise::Timer),
    ]
}

#[derive(Default)]
struct Witness {
    lens: [std::collections::BTreeMap<u16, u32>; 2],
    over: bool,
}

impl Witness {
    fn see(&mut self, effects: &[Effect]) {
        assert!(
            !self.over || effects.is_empty(),
            "said after the end: {effects:?}"
        );
        for effect in effects {
            match effect {
                Effect::Send {
                    queue: QueueId::Io,
                    payload:
                        Payload::Command {
                            index,
                            start_bytes,
                            len_bytes,
                        },
                    ..
                } => assert!(start_bytes + len_bytes <= self.lens[1][index]),
                Effect::Receive {
                    slot,
                    start_bytes,
                    len_bytes,
                    ..
                } if slot.queue == QueueId::Io => {
                    assert!(start_bytes + len_bytes <= self.lens[1][&slot.index]);
                }
                Effect::Complete { slot, .. } => {
                    let gone = self.lens[slot.queue.index()].remove(&slot.index);
                    assert!(gone.is_some(), "completed twice");
                }
                Effect::Lose { .. } => self.over = true,
                _ => {}
            }
        }
    }
}

fn make(rig: &mut Rig, witness: &mut Witness, noise: Noise) -> Vec<Effect> {
    let queue = |io| if io { QueueId::Io } else { QueueId::Admin };
    match noise {
        Noise::Admit(len_bytes, write) => {
            if !rig.host.has_room(QueueId::Io) {
                return Vec::new();
            }
            let (opcode, transfer) = if write {
                (io::WRITE, Transfer::ToController { len_bytes })
            } else {
                (
                    io::READ,
                    Transfer::ToHost {
                        len_bytes,
                        exact: true,
                    },
                )
            };
            let (index, _, effects) = rig.io(opcode, transfer);
            assert!(witness.lens[1].insert(index, len_bytes).is_none());
            effects
        }
        Noise::R2t(cid, offset, len) => rig.r2t(cid, offset, len),
        Noise::Data(cid, offset, len, last, success) => {
            // A length beyond any PDU of ours cannot be framed by the rig.
            rig.data(cid, (offset, len.min(1 << 20)), (last, success))
        }
        Noise::Response(io, cid, status, result) => {
            rig.respond(queue(io), cid, Status::from_wire(status), result)
        }
        Noise::Raw(io, mut bytes) => {
            bytes.resize(132, 0);
            rig.bytes(queue(io), &bytes)
        }
        Noise::Timer(ns) => {
            rig.now_ns += ns;
            rig.step(Event::Timer)
        }
    }
}

proptest! {
    #[test]
    fn noise_does_no_harm(steps in prop::collection::vec(noise(), 1..60)) {
        let mut rig = Rig::ready();
        let mut witness = Witness::default();
        for step in steps {
            let effects = make(&mut rig, &mut witness, step);
            witness.see(&effects);
            let receiving = effects.iter().find_map(|effect| match effect {
                Effect::Receive { slot, .. } => Some(slot.queue),
                _ => None,
            });
            if let Some(queue) = receiving {
                let effects = rig.step(Event::DataReceived { queue, intact: true, data: &[0; 64] });
                witness.see(&effects);
            }
        }
    }

    #[test]
    fn noise_during_set_up_does_no_harm(
        steps in 0usize..10,
        io in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 132),
        kind in 0u8..10,
    ) {
        let mut rig = Rig::new(config());
        let mut effects = rig.step(Event::Start);
        for _ in 0..steps {
            match rig.answer(&effects) {
                Some(next) => effects = next,
                None => break,
            }
        }
        let mut bytes = bytes;
        // Half of the time a plausible common header before the noise.
        if kind != 9 || bytes[9] > 127 {
            bytes[0] = kind;
            bytes[1] = 0;
            bytes[2] = if kind <= 1 { 128 } else { 24 };
            bytes[3] = 0;
            let plen = u32::from(bytes[2]);
            bytes[4..8].copy_from_slice(&plen.to_le_bytes());
        }
        let queue = if io { QueueId::Io } else { QueueId::Admin };
        rig.bytes(queue, &bytes);
        rig.now_ns += 30 * SECOND_NS;
        rig.step(Event::Timer);
        prop_assert_eq!(rig.step(Event::Timer).len(), 0);
    }
}

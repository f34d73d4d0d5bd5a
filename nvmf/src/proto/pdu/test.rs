use super::*;
use crate::proto::sqe::{self, Sgl};
use crate::proto::status::Status;
use proptest::prelude::*;

const LIMIT: u32 = 128 * 1024;

fn samples() -> Vec<(Header, u32)> {
    let digests = Digests {
        header: true,
        data: false,
    };
    let data = H2cData {
        cccid: 9.into(),
        ttag: 3.into(),
        datao: 4096.into(),
        ..zeroed()
    };
    vec![
        (Header::IcReq(IcReq::new(digests)), 0),
        (Header::IcResp(IcResp::new(digests, LIMIT)), 0),
        (Header::CapsuleCmd(Sqe::new(sqe::io::FLUSH, 5, 1)), 0),
        (
            Header::CapsuleCmd(Sqe::new(sqe::io::WRITE, 5, 1).with_sgl(Sgl::in_capsule(64))),
            64,
        ),
        (Header::CapsuleResp(Cqe::new(5, 6, Status::SUCCESS, 7)), 0),
        (
            Header::H2cData {
                data: H2cData {
                    datal: 8192.into(),
                    ..data
                },
                last: true,
            },
            8192,
        ),
        (
            Header::C2hData {
                data: C2hData {
                    cccid: 9.into(),
                    datal: 512.into(),
                    ..zeroed()
                },
                last: true,
                success: true,
            },
            512,
        ),
        (
            Header::R2t(R2t {
                r2tl: 4096.into(),
                ..zeroed()
            }),
            0,
        ),
    ]
}

fn zeroed<T: FromBytes>() -> T {
    T::new_zeroed()
}

fn framings() -> Vec<Framing> {
    let mut all = Vec::new();
    for dgst in 0..4 {
        for pda in [0, 1, 7, 31] {
            all.push(Framing {
                digests: Digests::from_wire(dgst),
                pda,
            });
        }
    }
    all
}

/// Decodes as a receiver does: common header first, then the rest.
fn decode(framing: Framing, bytes: &[u8]) -> Result<(Header, Extent), Fatal> {
    let (common, _) = CommonHeader::read_from_prefix(bytes).expect("eight bytes");
    let sender = PduKind::from_wire(common.pdu_type).map_or(Role::Host, PduKind::sender);
    let extent = framing.check(&common, sender, LIMIT)?;
    let header = Header::decode(framing, &extent, &bytes[..extent.header_bytes as usize])?;
    Ok((header, extent))
}

#[test]
fn type_bytes_and_kinds_agree() {
    for byte in 0..=u8::MAX {
        let expected = PduKind::ALL.into_iter().find(|kind| *kind as u8 == byte);
        assert_eq!(PduKind::from_wire(byte), expected, "{byte:#x}");
    }
}

#[test]
fn digest_is_crc32c() {
    assert_eq!(digest(b"123456789"), 0xe306_9283);
}

#[test]
fn every_header_survives_every_framing() {
    for framing in framings() {
        for (header, data_bytes) in samples() {
            let mut out = [0xff; HEADER_BYTES_MAX];
            let written = framing.encode(&header, data_bytes, &mut out);
            let (back, extent) = decode(framing, &out[..written]).unwrap();
            assert_eq!(back, header, "{framing:?}");
            assert_eq!(extent.header_bytes as usize, written);
            assert_eq!(extent.data_bytes, data_bytes);
            let digested = data_bytes > 0 && framing.digests.data && header.kind().has_digests();
            assert_eq!(extent.data_digest, digested);
            if data_bytes > 0 {
                assert_eq!(written % ((usize::from(framing.pda) + 1) * 4), 0);
            }
        }
    }
}

#[test]
fn a_plain_capsule_is_byte_for_byte_as_specified() {
    let mut out = [0; HEADER_BYTES_MAX];
    let header = Header::R2t(R2t {
        cccid: 0x0102.into(),
        ttag: 0x0304.into(),
        r2to: 0x1000.into(),
        r2tl: 0x2000.into(),
        reserved: 0.into(),
    });
    let written = Framing::default().encode(&header, 0, &mut out);
    let expected = [
        9, 0, 24, 0, 24, 0, 0, 0, 2, 1, 4, 3, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(out[..written], expected);
}

#[test]
fn a_flipped_bit_in_a_digested_header_is_noticed() {
    let framing = Framing {
        digests: Digests {
            header: true,
            data: false,
        },
        pda: 0,
    };
    for (header, data_bytes) in samples()
        .into_iter()
        .filter(|(h, _)| h.kind().has_digests())
    {
        let mut out = [0; HEADER_BYTES_MAX];
        let written = framing.encode(&header, data_bytes, &mut out);
        for bit in 64..written * 8 {
            let mut bad = out;
            bad[bit / 8] ^= 1 << (bit % 8);
            let fatal = decode(framing, &bad[..written]).unwrap_err();
            assert_eq!(fatal.fes, Fes::HeaderDigest, "bit {bit} of {header:?}");
        }
    }
}

/// One wrong field of an otherwise good CapsuleCmd: (offset, value, expected breach).
#[test]
fn each_wrong_field_of_the_common_header_is_named() {
    let plain = Framing::default();
    let mut good = [0; HEADER_BYTES_MAX];
    plain.encode(&Header::CapsuleCmd(Sqe::new(1, 0, 1)), 64, &mut good);
    let field = Fatal::field;
    let cases: &[(usize, &[u8], Fatal)] = &[
        (0, &[0x08], field(0)),
        (0, &[0x0a], field(0)),
        (0, &[0xff], field(0)),
        (0, &[0x05], field(0)), // a controller's PDU
        (1, &[FLAG_HDGST], field(1)),
        (1, &[FLAG_DDGST], field(1)),
        (1, &[FLAG_LAST], field(1)),
        (1, &[0x80], field(1)),
        (2, &[71], field(2)),
        (2, &[255], field(2)),
        (2, &[0], field(2)),
        (3, &[0], field(3)),
        (3, &[71], field(3)),
        (3, &[76], field(3)), // padding that nobody negotiated
        (3, &[255], field(3)),
        (4, &[0, 0, 0, 0], field(4)),
        (4, &[71, 0, 0, 0], field(4)),
        (4, &[72, 0, 0, 0], field(3)), // an offset without data
        (
            4,
            &[0xff, 0xff, 0xff, 0xff],
            Fatal::plain(Fes::LimitExceeded),
        ),
    ];
    for (offset, value, expected) in cases {
        let mut bad = good;
        bad[*offset..offset + value.len()].copy_from_slice(value);
        let (common, _) = CommonHeader::read_from_prefix(&bad[..]).unwrap();
        let found = plain.check(&common, Role::Host, LIMIT);
        assert_eq!(found, Err(*expected), "offset {offset} value {value:x?}");
    }
}

#[test]
fn pdus_without_data_may_not_grow() {
    for kind in [
        PduKind::IcReq,
        PduKind::IcResp,
        PduKind::CapsuleResp,
        PduKind::R2t,
    ] {
        for plen in [u32::from(kind.hlen_bytes()) + 4, 4096, u32::MAX, 0, 23] {
            let common = CommonHeader {
                pdu_type: kind as u8,
                flags: 0,
                hlen: kind.hlen_bytes(),
                pdo: 0,
                plen: plen.into(),
            };
            let found = Framing::default().check(&common, kind.sender(), LIMIT);
            assert_eq!(found, Err(Fatal::field(4)), "{kind:?} {plen}");
        }
    }
}

#[test]
fn a_terminate_request_quotes_at_most_128_bytes() {
    for (quoted, plen) in [(0, 24), (72, 96), (500, 152)] {
        let out = term_req(Role::Controller, Fatal::field(4), &vec![7; quoted]);
        assert_eq!(out.len(), plen);
        let (header, extent) = decode(Framing::default(), &out).unwrap();
        assert_eq!(extent.data_bytes as usize, plen - 24);
        let Header::C2hTermReq(body) = header else {
            panic!("{header:?}")
        };
        assert_eq!((body.fes.get(), body.fei.get()), (1, 4));
    }
}

#[test]
fn terminate_requests_outside_their_bounds_are_malformed() {
    for plen in [0, 23, 153, u32::MAX] {
        let common = CommonHeader {
            pdu_type: 2,
            flags: 0,
            hlen: 24,
            pdo: 0,
            plen: plen.into(),
        };
        let found = Framing::default().check(&common, Role::Host, LIMIT);
        assert_eq!(found, Err(Fatal::field(4)), "{plen}");
    }
}

proptest! {
    /// Whatever passes the check has an extent that adds up to PLEN and stays within the limits.
    #[test]
    fn an_accepted_header_adds_up(bytes in any::<[u8; 8]>(), dgst in 0u8..4, pda in 0u8..=31) {
        let framing = Framing { digests: Digests::from_wire(dgst), pda };
        let common = CommonHeader::read_from_bytes(&bytes).unwrap();
        for sender in [Role::Host, Role::Controller] {
            if let Ok(extent) = framing.check(&common, sender, LIMIT) {
                let digest = if extent.data_digest { 4 } else { 0 };
                let sum = extent.header_bytes + extent.data_bytes + digest;
                prop_assert_eq!(sum, common.plen.get());
                prop_assert!(extent.header_bytes <= 132 && extent.data_bytes <= LIMIT);
                prop_assert_eq!(extent.kind.sender(), sender);
            }
        }
    }
}

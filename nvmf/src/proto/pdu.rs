//! PDU headers of NVMe/TCP: layouts, what each may look like, how they are framed.
//!
//! Layouts are the NVMe/TCP transport specification's §3.6. Decoding looks at headers only; payload
//! bytes never come here. Everything that arrives is checked before a byte beyond the common
//! header is trusted: type, HLEN, flags, PDO and PLEN in that order, then the header digest.

use super::cqe::Cqe;
use super::sqe::Sqe;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

mod framing;

pub use framing::{Extent, Framing};

/// The type byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum PduKind {
    /// Initialize connection request, host to controller.
    IcReq = 0x00,
    /// Its answer.
    IcResp = 0x01,
    /// The host gives up on the connection.
    H2cTermReq = 0x02,
    /// The controller gives up on the connection.
    C2hTermReq = 0x03,
    /// A command, maybe with data.
    CapsuleCmd = 0x04,
    /// A completion.
    CapsuleResp = 0x05,
    /// Write data.
    H2cData = 0x06,
    /// Read data.
    C2hData = 0x07,
    /// Ready to transfer: the controller asks for write data.
    R2t = 0x09,
}

impl PduKind {
    /// All kinds, in the order of their type bytes.
    pub const ALL: [Self; 9] = [
        Self::IcReq,
        Self::IcResp,
        Self::H2cTermReq,
        Self::C2hTermReq,
        Self::CapsuleCmd,
        Self::CapsuleResp,
        Self::H2cData,
        Self::C2hData,
        Self::R2t,
    ];

    /// The kind with this type byte. 08h is unused and 0Ah up are not for us.
    pub const fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 => Self::IcReq,
            0x01 => Self::IcResp,
            0x02 => Self::H2cTermReq,
            0x03 => Self::C2hTermReq,
            0x04 => Self::CapsuleCmd,
            0x05 => Self::CapsuleResp,
            0x06 => Self::H2cData,
            0x07 => Self::C2hData,
            0x09 => Self::R2t,
            _ => return None,
        })
    }

    /// The only HLEN this kind may have.
    pub const fn hlen_bytes(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp => 128,
            Self::CapsuleCmd => 72,
            Self::H2cTermReq
            | Self::C2hTermReq
            | Self::CapsuleResp
            | Self::H2cData
            | Self::C2hData
            | Self::R2t => 24,
        }
    }

    /// Who sends it.
    pub const fn sender(self) -> Role {
        match self {
            Self::IcReq | Self::H2cTermReq | Self::CapsuleCmd | Self::H2cData => Role::Host,
            Self::IcResp | Self::C2hTermReq | Self::CapsuleResp | Self::C2hData | Self::R2t => {
                Role::Controller
            }
        }
    }

    /// Whether negotiated digests apply: never to connection set-up and termination.
    pub const fn has_digests(self) -> bool {
        !matches!(
            self,
            Self::IcReq | Self::IcResp | Self::H2cTermReq | Self::C2hTermReq
        )
    }

    /// Whether it may carry data.
    pub const fn may_carry_data(self) -> bool {
        matches!(
            self,
            Self::CapsuleCmd | Self::H2cData | Self::C2hData | Self::H2cTermReq | Self::C2hTermReq
        )
    }

    const fn flags_allowed(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp | Self::H2cTermReq | Self::C2hTermReq => 0,
            Self::CapsuleCmd => FLAG_HDGST | FLAG_DDGST,
            Self::CapsuleResp | Self::R2t => FLAG_HDGST,
            Self::H2cData => FLAG_HDGST | FLAG_DDGST | FLAG_LAST,
            Self::C2hData => FLAG_HDGST | FLAG_DDGST | FLAG_LAST | FLAG_SUCCESS,
        }
    }
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends commands.
    Host,
    /// Answers them.
    Controller,
}

/// Flag: a header digest follows the header.
pub const FLAG_HDGST: u8 = 1 << 0;
/// Flag: a data digest follows the data.
pub const FLAG_DDGST: u8 = 1 << 1;
/// Flag: last PDU of this transfer (H2CData: of this R2T).
pub const FLAG_LAST: u8 = 1 << 2;
/// Flag of C2HData: the command succeeded and no completion follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Length of a header or data digest.
pub const DIGEST_BYTES: u32 = 4;
/// The common header's length.
pub const COMMON_BYTES: u32 = 8;
/// Room that any header with digest and padding fits: 128 bytes of header, or data at offset 128.
pub const HEADER_BYTES_MAX: usize = 132;
/// Longest terminate request: its header and at most 128 bytes of the offender.
pub const TERM_REQ_BYTES_MAX: u32 = 152;
/// Largest HPDA or CPDA (zero-based dwords; 128 bytes).
pub const PDA_MAX: u8 = 31;

/// The 8 bytes that every PDU begins with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    /// Type byte, see [`PduKind`].
    pub pdu_type: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Header length, fixed by type.
    pub hlen: u8,
    /// Offset of the data in the PDU, zero if there is none.
    pub pdo: u8,
    /// Length of the whole PDU with digests, padding and data.
    pub plen: U32,
}
const _: () = assert!(size_of::<CommonHeader>() == 8);

/// ICReq after its common header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IcReq {
    /// PDU format version, 0.
    pub pfv: U16,
    /// The host's wish for the alignment of C2HData data (zero-based dwords).
    pub hpda: u8,
    /// Digests wished: bit 0 header, bit 1 data.
    pub dgst: u8,
    /// R2Ts the host takes per command, zero-based.
    pub maxr2t: U32,
    /// Reserved.
    pub reserved: [u8; 112],
}
const _: () = assert!(size_of::<IcReq>() + 8 == 128);
const _: () = assert!(offset_of!(IcReq, hpda) + 8 == 10);
const _: () = assert!(offset_of!(IcReq, dgst) + 8 == 11);
const _: () = assert!(offset_of!(IcReq, maxr2t) + 8 == 12);

/// ICResp after its common header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IcResp {
    /// PDU format version, 0.
    pub pfv: U16,
    /// The controller's wish for the alignment of H2C data (zero-based dwords).
    pub cpda: u8,
    /// Digests in use: bit 0 header, bit 1 data.
    pub dgst: u8,
    /// Most data one H2CData PDU may carry, in bytes.
    pub maxh2cdata: U32,
    /// Reserved.
    pub reserved: [u8; 112],
}
const _: () = assert!(size_of::<IcResp>() + 8 == 128);
const _: () = assert!(offset_of!(IcResp, cpda) + 8 == 10);
const _: () = assert!(offset_of!(IcResp, dgst) + 8 == 11);
const _: () = assert!(offset_of!(IcResp, maxh2cdata) + 8 == 12);

/// H2CTermReq and C2HTermReq after their common header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TermReq {
    /// Fatal error status, see [`Fes`].
    pub fes: U16,
    /// Fatal error information.
    pub fei: U32,
    /// Reserved.
    pub reserved: [u8; 10],
}
const _: () = assert!(size_of::<TermReq>() + 8 == 24);
const _: () = assert!(offset_of!(TermReq, fes) + 8 == 8);
const _: () = assert!(offset_of!(TermReq, fei) + 8 == 10);

/// H2CData after its common header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct H2cData {
    /// The command it belongs to.
    pub cccid: U16,
    /// Tag of the R2T it answers.
    pub ttag: U16,
    /// Offset of this data in the command's, in bytes.
    pub datao: U32,
    /// Length of this data, in bytes.
    pub datal: U32,
    /// Reserved.
    pub reserved: U32,
}
const _: () = assert!(size_of::<H2cData>() + 8 == 24);
const _: () = assert!(offset_of!(H2cData, ttag) + 8 == 10);
const _: () = assert!(offset_of!(H2cData, datao) + 8 == 12);
const _: () = assert!(offset_of!(H2cData, datal) + 8 == 16);

/// C2HData after its common header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct C2hData {
    /// The command it belongs to.
    pub cccid: U16,
    /// Reserved.
    pub reserved0: U16,
    /// Offset of this data in the command's, in bytes.
    pub datao: U32,
    /// Length of this data, in bytes.
    pub datal: U32,
    /// Reserved.
    pub reserved: U32,
}
const _: () = assert!(size_of::<C2hData>() + 8 == 24);
const _: () = assert!(offset_of!(C2hData, datao) + 8 == 12);
const _: () = assert!(offset_of!(C2hData, datal) + 8 == 16);

/// R2T after its common header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct R2t {
    /// The command it belongs to.
    pub cccid: U16,
    /// Tag to be repeated in the data that answers.
    pub ttag: U16,
    /// Offset of the wanted data in the command's, in bytes.
    pub r2to: U32,
    /// Length of the wanted data, in bytes.
    pub r2tl: U32,
    /// Reserved.
    pub reserved: U32,
}
const _: () = assert!(size_of::<R2t>() + 8 == 24);
const _: () = assert!(offset_of!(R2t, ttag) + 8 == 10);
const _: () = assert!(offset_of!(R2t, r2to) + 8 == 12);
const _: () = assert!(offset_of!(R2t, r2tl) + 8 == 16);

impl IcReq {
    /// A request for these digests, one R2T per command, no padding.
    pub fn new(digests: Digests) -> Self {
        Self {
            dgst: digests.to_wire(),
            ..Self::new_zeroed()
        }
    }
}

impl IcResp {
    /// An answer with these digests and this H2CData limit, no padding.
    pub fn new(digests: Digests, maxh2cdata_bytes: u32) -> Self {
        Self {
            dgst: digests.to_wire(),
            maxh2cdata: maxh2cdata_bytes.into(),
            ..Self::new_zeroed()
        }
    }
}

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// CRC32C over every header.
    pub header: bool,
    /// CRC32C over every PDU's data.
    pub data: bool,
}

impl Digests {
    /// The DGST byte.
    pub const fn to_wire(self) -> u8 {
        self.header as u8 | (self.data as u8) << 1
    }

    /// Reads the DGST byte; reserved bits are ignored.
    pub const fn from_wire(byte: u8) -> Self {
        Self {
            header: byte & 1 != 0,
            data: byte & 2 != 0,
        }
    }
}

/// Fatal error status of a terminate request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Fes {
    /// A header field is wrong; FEI is its byte offset.
    InvalidHeaderField = 1,
    /// A PDU came that may not come now.
    SequenceError = 2,
    /// The header digest is wrong; FEI is the digest received.
    HeaderDigest = 3,
    /// Data outside what was asked for.
    DataOutOfRange = 4,
    /// More data, or more R2Ts, than the limit.
    LimitExceeded = 5,
    /// A parameter is not supported; FEI is its byte offset.
    UnsupportedParameter = 6,
}

impl Fes {
    /// The status with this number.
    pub fn from_wire(value: u16) -> Option<Self> {
        [
            Self::InvalidHeaderField,
            Self::SequenceError,
            Self::HeaderDigest,
            Self::DataOutOfRange,
            Self::LimitExceeded,
            Self::UnsupportedParameter,
        ]
        .into_iter()
        .find(|fes| *fes as u16 == value)
    }
}

/// The peer broke the transport protocol: send a terminate request with this, then close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fatal transport error {fes:?}, information {fei:#x}")]
pub struct Fatal {
    /// What kind of breach.
    pub fes: Fes,
    /// Its information field.
    pub fei: u32,
}

impl Fatal {
    /// A wrong header field at this byte offset of the PDU.
    pub const fn field(offset: u32) -> Self {
        Self {
            fes: Fes::InvalidHeaderField,
            fei: offset,
        }
    }

    /// A breach that has no further information.
    pub const fn plain(fes: Fes) -> Self {
        Self { fes, fei: 0 }
    }
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// ICReq.
    IcReq(IcReq),
    /// ICResp.
    IcResp(IcResp),
    /// H2CTermReq.
    H2cTermReq(TermReq),
    /// C2HTermReq.
    C2hTermReq(TermReq),
    /// A command.
    CapsuleCmd(Sqe),
    /// A completion.
    CapsuleResp(Cqe),
    /// Write data.
    H2cData {
        /// The fields.
        data: H2cData,
        /// Whether it is the R2T's last.
        last: bool,
    },
    /// Read data.
    C2hData {
        /// The fields.
        data: C2hData,
        /// Whether it is the command's last.
        last: bool,
        /// Whether it stands for the completion too.
        success: bool,
    },
    /// Ready to transfer.
    R2t(R2t),
}

impl Header {
    /// Its type.
    pub const fn kind(&self) -> PduKind {
        match self {
            Self::IcReq(_) => PduKind::IcReq,
            Self::IcResp(_) => PduKind::IcResp,
            Self::H2cTermReq(_) => PduKind::H2cTermReq,
            Self::C2hTermReq(_) => PduKind::C2hTermReq,
            Self::CapsuleCmd(_) => PduKind::CapsuleCmd,
            Self::CapsuleResp(_) => PduKind::CapsuleResp,
            Self::H2cData { .. } => PduKind::H2cData,
            Self::C2hData { .. } => PduKind::C2hData,
            Self::R2t(_) => PduKind::R2t,
        }
    }

    fn own_flags(&self) -> u8 {
        match *self {
            Self::H2cData { last, .. } => u8::from(last) * FLAG_LAST,
            Self::C2hData { last, success, .. } => {
                (u8::from(last) * FLAG_LAST) | (u8::from(success) * FLAG_SUCCESS)
            }
            Self::IcReq(_)
            | Self::IcResp(_)
            | Self::H2cTermReq(_)
            | Self::C2hTermReq(_)
            | Self::CapsuleCmd(_)
            | Self::CapsuleResp(_)
            | Self::R2t(_) => 0,
        }
    }

    fn body(&self) -> &[u8] {
        match self {
            Self::IcReq(body) => body.as_bytes(),
            Self::IcResp(body) => body.as_bytes(),
            Self::H2cTermReq(body) | Self::C2hTermReq(body) => body.as_bytes(),
            Self::CapsuleCmd(body) => body.as_bytes(),
            Self::CapsuleResp(body) => body.as_bytes(),
            Self::H2cData { data, .. } => data.as_bytes(),
            Self::C2hData { data, .. } => data.as_bytes(),
            Self::R2t(body) => body.as_bytes(),
        }
    }

    /// Reads a header whose common part passed [`Framing::check`], and its digest if there is one.
    /// `bytes` are the PDU's first `extent.header_bytes`.
    ///
    /// # Errors
    /// [`Fes::HeaderDigest`] with the digest received.
    pub fn decode(framing: Framing, extent: &Extent, bytes: &[u8]) -> Result<Self, Fatal> {
        let kind = extent.kind;
        let hlen = usize::from(kind.hlen_bytes());
        assert!(bytes.len() == extent.header_bytes as usize && bytes.len() >= hlen);
        if framing.header_digest_bytes(kind) != 0 {
            let received: [u8; 4] = bytes[hlen..hlen + 4].try_into().expect("four bytes");
            let received = u32::from_le_bytes(received);
            if !digest_matches(received, digest(&bytes[..hlen])) {
                return Err(Fatal {
                    fes: Fes::HeaderDigest,
                    fei: received,
                });
            }
        }
        let flags = bytes[1];
        let body = &bytes[8..hlen];
        let fits = "HLEN was checked against the type";
        Ok(match kind {
            PduKind::IcReq => Self::IcReq(IcReq::read_from_bytes(body).expect(fits)),
            PduKind::IcResp => Self::IcResp(IcResp::read_from_bytes(body).expect(fits)),
            PduKind::H2cTermReq => Self::H2cTermReq(TermReq::read_from_bytes(body).expect(fits)),
            PduKind::C2hTermReq => Self::C2hTermReq(TermReq::read_from_bytes(body).expect(fits)),
            PduKind::CapsuleCmd => Self::CapsuleCmd(Sqe::read_from_bytes(body).expect(fits)),
            PduKind::CapsuleResp => Self::CapsuleResp(Cqe::read_from_bytes(body).expect(fits)),
            PduKind::H2cData => Self::H2cData {
                data: H2cData::read_from_bytes(body).expect(fits),
                last: flags & FLAG_LAST != 0,
            },
            PduKind::C2hData => Self::C2hData {
                data: C2hData::read_from_bytes(body).expect(fits),
                last: flags & FLAG_LAST != 0,
                success: flags & FLAG_SUCCESS != 0,
            },
            PduKind::R2t => Self::R2t(R2t::read_from_bytes(body).expect(fits)),
        })
    }
}

/// A whole terminate request: its header, and up to 128 bytes of the PDU that caused it.
pub fn term_req(from: Role, fatal: Fatal, offender: &[u8]) -> Vec<u8> {
    let body = TermReq {
        fes: (fatal.fes as u16).into(),
        fei: fatal.fei.into(),
        ..TermReq::new_zeroed()
    };
    let header = match from {
        Role::Host => Header::H2cTermReq(body),
        Role::Controller => Header::C2hTermReq(body),
    };
    let quoted = &offender[..offender.len().min(128)];
    let mut out = vec![0; HEADER_BYTES_MAX];
    let quoted_bytes = u32::try_from(quoted.len()).expect("at most 128");
    let written = Framing::default().encode(&header, quoted_bytes, &mut out);
    out.truncate(written);
    out.extend_from_slice(quoted);
    out
}

/// CRC32C as digests use it (Castagnoli, stored little-endian).
pub fn digest(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Compares digests. Under `cfg(fuzzing)` every digest matches, so that fuzzers get past them.
pub fn digest_matches(received: u32, computed: u32) -> bool {
    cfg!(fuzzing) || received == computed
}

#[cfg(test)]
mod test;

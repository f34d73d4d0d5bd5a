//! Framing: digests, padding, and the checks of a common header.

use super::{
    CommonHeader, DIGEST_BYTES, Digests, FLAG_DDGST, FLAG_HDGST, Fatal, Fes, Header, PduKind, Role,
    TERM_REQ_BYTES_MAX, digest,
};
use zerocopy::IntoBytes;

/// What both ends agreed on for framing in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// Digests in use.
    pub digests: Digests,
    /// HPDA or CPDA: alignment of data within the PDU, zero-based dwords.
    pub pda: u8,
}

impl Framing {
    /// Bytes before the data of a PDU: header, its digest, padding up to the alignment.
    pub fn data_offset_bytes(self, kind: PduKind) -> u8 {
        let header = kind.hlen_bytes() + self.header_digest_bytes(kind);
        if !kind.has_digests() {
            return header;
        }
        header.next_multiple_of((self.pda + 1) * 4)
    }

    pub(super) fn header_digest_bytes(self, kind: PduKind) -> u8 {
        if self.digests.header && kind.has_digests() {
            4
        } else {
            0
        }
    }

    /// Checks a common header against what this direction of the connection allows.
    ///
    /// `sender` is the peer. `data_bytes_max` bounds the data of any PDU.
    ///
    /// # Errors
    /// [`Fatal`] naming the first wrong field.
    pub fn check(
        self,
        common: &CommonHeader,
        sender: Role,
        data_bytes_max: u32,
    ) -> Result<Extent, Fatal> {
        let kind = PduKind::from_wire(common.pdu_type).ok_or(Fatal::field(0))?;
        if kind.sender() != sender {
            return Err(Fatal::field(0));
        }
        if common.hlen != kind.hlen_bytes() {
            return Err(Fatal::field(2));
        }
        let header_digest = self.header_digest_bytes(kind);
        let flags = common.flags;
        if flags & !kind.flags_allowed() != 0 || (flags & FLAG_HDGST != 0) != (header_digest != 0) {
            return Err(Fatal::field(1));
        }
        if matches!(kind, PduKind::H2cTermReq | PduKind::C2hTermReq) {
            return Self::check_term_req(kind, common);
        }
        self.check_data(kind, common, data_bytes_max)
    }

    fn check_term_req(kind: PduKind, common: &CommonHeader) -> Result<Extent, Fatal> {
        let plen = common.plen.get();
        if !(u32::from(common.hlen)..=TERM_REQ_BYTES_MAX).contains(&plen) {
            return Err(Fatal::field(4));
        }
        let data_bytes = plen - u32::from(common.hlen);
        Ok(Extent {
            kind,
            header_bytes: u32::from(common.hlen),
            data_bytes,
            data_digest: false,
        })
    }

    fn check_data(
        self,
        kind: PduKind,
        common: &CommonHeader,
        data_bytes_max: u32,
    ) -> Result<Extent, Fatal> {
        let plen = common.plen.get();
        let header_bytes = u32::from(kind.hlen_bytes() + self.header_digest_bytes(kind));
        if plen == header_bytes {
            // No data: nothing to point at, nothing to digest.
            return match (common.pdo, common.flags & FLAG_DDGST) {
                (0, 0) => Ok(Extent {
                    kind,
                    header_bytes,
                    data_bytes: 0,
                    data_digest: false,
                }),
                (0, _) => Err(Fatal::field(1)),
                _ => Err(Fatal::field(3)),
            };
        }
        if !kind.may_carry_data() || plen < header_bytes {
            return Err(Fatal::field(4));
        }
        if common.pdo != self.data_offset_bytes(kind) {
            return Err(Fatal::field(3));
        }
        if (common.flags & FLAG_DDGST != 0) != self.digests.data {
            return Err(Fatal::field(1));
        }
        let digest_bytes = if self.digests.data { DIGEST_BYTES } else { 0 };
        let data_bytes = plen
            .checked_sub(u32::from(common.pdo) + digest_bytes)
            .filter(|bytes| *bytes > 0)
            .ok_or(Fatal::field(4))?;
        if data_bytes > data_bytes_max {
            return Err(Fatal::plain(Fes::LimitExceeded));
        }
        let header_bytes = u32::from(common.pdo);
        Ok(Extent {
            kind,
            header_bytes,
            data_bytes,
            data_digest: self.digests.data,
        })
    }

    /// Writes header, header digest and padding of `pdu` into `out`, for `data_bytes` of data that
    /// the caller sends after it (followed by their digest where [`Digests::data`] is on). Returns
    /// the bytes written.
    ///
    /// Panics if `out` is shorter than [`HEADER_BYTES_MAX`](super::HEADER_BYTES_MAX).
    pub fn encode(self, pdu: &Header, data_bytes: u32, out: &mut [u8]) -> usize {
        let kind = pdu.kind();
        let hlen = usize::from(kind.hlen_bytes());
        let has_data = data_bytes > 0;
        let header_digest = self.header_digest_bytes(kind) != 0;
        let data_digest = has_data && self.digests.data && kind.has_digests();
        let pdo = if has_data && kind.has_digests() {
            self.data_offset_bytes(kind)
        } else {
            0
        };
        let total = usize::from(pdo).max(hlen + if header_digest { 4 } else { 0 });
        let plen = u32::from(kind.hlen_bytes() + self.header_digest_bytes(kind))
            .max(u32::from(pdo))
            + data_bytes
            + if data_digest { DIGEST_BYTES } else { 0 };
        let mut flags = pdu.own_flags();
        flags |= if header_digest { FLAG_HDGST } else { 0 };
        flags |= if data_digest { FLAG_DDGST } else { 0 };
        let common = CommonHeader {
            pdu_type: kind as u8,
            flags,
            hlen: kind.hlen_bytes(),
            pdo,
            plen: plen.into(),
        };
        out[..8].copy_from_slice(common.as_bytes());
        out[8..hlen].copy_from_slice(pdu.body());
        out[hlen..total].fill(0);
        if header_digest {
            let digest = digest(&out[..hlen]);
            out[hlen..hlen + 4].copy_from_slice(&digest.to_le_bytes());
        }
        total
    }
}

/// How a checked PDU is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its type.
    pub kind: PduKind,
    /// Bytes before the data (or in all, without data): header, digest, padding.
    pub header_bytes: u32,
    /// Bytes of data.
    pub data_bytes: u32,
    /// Whether four bytes of digest follow the data.
    pub data_digest: bool,
}

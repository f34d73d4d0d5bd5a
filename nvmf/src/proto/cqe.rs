//! Completion queue entries: the 16 bytes of a response capsule.

use super::status::Status;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A completion queue entry.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Cqe {
    /// Dwords 0 and 1: the command's result, zero if it has none.
    pub result: U64,
    /// Submission queue head; reserved (zero) where the host disabled SQ flow control.
    pub sqhd: U16,
    /// Submission queue id; always zero on fabrics.
    pub sqid: U16,
    /// The command this answers.
    pub cid: U16,
    /// Status field in 15:1, phase (zero) in bit 0.
    pub status: U16,
}
const _: () = assert!(size_of::<Cqe>() == 16);
const _: () = assert!(std::mem::offset_of!(Cqe, cid) == 12);

/// SQHD of a Connect response that agrees to work without SQ flow control.
pub const SQHD_NO_FLOW_CONTROL: u16 = 0xffff;

impl Cqe {
    /// Builds an entry.
    pub fn new(cid: u16, sqhd: u16, status: Status, result: u64) -> Self {
        Self {
            result: result.into(),
            sqhd: sqhd.into(),
            sqid: U16::ZERO,
            cid: cid.into(),
            status: status.to_wire().into(),
        }
    }

    /// The status it carries.
    pub fn status(&self) -> Status {
        Status::from_wire(self.status.get())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_specified() {
        let cqe = Cqe::new(0x1234, 0x55, Status::INVALID_FIELD, 0x0102_0304_0506_0708);
        let bytes = [
            8, 7, 6, 5, 4, 3, 2, 1, 0x55, 0, 0, 0, 0x34, 0x12, 0x04, 0x80,
        ];
        assert_eq!(cqe.as_bytes(), bytes);
        assert_eq!(
            Cqe::read_from_bytes(&bytes).unwrap().status(),
            Status::INVALID_FIELD
        );
    }
}

//! Submission queue entries: the 64 bytes of a command capsule, and the SGL forms of NVMe/TCP.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Admin opcodes (NVMe Base, figure "Opcodes for Admin Commands").
pub mod admin {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT: u8 = 0x0c;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Fabrics commands, on any queue; see [`crate::proto::fabrics`].
    pub const FABRICS: u8 = 0x7f;
    /// First vendor specific opcode; see [`crate::proto::vendor`].
    pub const VENDOR_FIRST: u8 = 0xc0;
}

/// IO opcodes of the NVM command set.
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// NSID that means every namespace of the controller.
pub const NSID_ALL: u32 = 0xffff_ffff;
/// CDW12 bit of reads and writes: force unit access.
pub const CDW12_FUA: u32 = 1 << 30;
/// CDW12 bit of Write Zeroes: deallocate.
pub const CDW12_DEALLOCATE: u32 = 1 << 25;
/// CDW11 bit of Dataset Management: deallocate.
pub const CDW11_DEALLOCATE: u32 = 1 << 2;

/// Which way data goes, as the two low bits of every opcode say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// Host to controller.
    ToController,
    /// Controller to host.
    ToHost,
    /// Both ways; no command we know has it.
    Both,
}

impl Direction {
    /// Reads bits 1:0 of an opcode.
    pub const fn of_opcode(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Self::None,
            1 => Self::ToController,
            2 => Self::ToHost,
            _ => Self::Both,
        }
    }
}

/// One SGL descriptor; NVMe/TCP uses exactly one, inside the command.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Sgl {
    /// Address, or offset within the capsule.
    pub address: U64,
    /// Length in bytes.
    pub length: U32,
    /// Zero in the forms we use.
    pub reserved: [u8; 3],
    /// Type (7:4) and subtype (3:0).
    pub kind: u8,
}
const _: () = assert!(size_of::<Sgl>() == 16);

/// Descriptor byte of an in-capsule data block (type 0, subtype 1: offset).
pub const SGL_IN_CAPSULE: u8 = 0x01;
/// Descriptor byte of a transport data block (type 5, subtype Ah).
pub const SGL_TRANSPORT: u8 = 0x5a;

/// What an SGL descriptor means, in the two forms of NVMe/TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Data follows in this capsule.
    InCapsule {
        /// Its length.
        len_bytes: u32,
    },
    /// Data moves by R2T/H2CData or by C2HData; zero length means no data.
    Transport {
        /// Its length.
        len_bytes: u32,
    },
}

/// Why a descriptor is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SglFault {
    /// Neither of the two forms.
    Type,
    /// In-capsule offset that is not zero (ICDOFF is 0).
    Offset,
}

impl Sgl {
    /// In-capsule data of this length.
    pub fn in_capsule(len_bytes: u32) -> Self {
        Self {
            length: len_bytes.into(),
            kind: SGL_IN_CAPSULE,
            ..Self::new_zeroed()
        }
    }

    /// Data of this length by separate PDUs; zero for commands without data.
    pub fn transport(len_bytes: u32) -> Self {
        Self {
            length: len_bytes.into(),
            kind: SGL_TRANSPORT,
            ..Self::new_zeroed()
        }
    }

    /// Reads the descriptor.
    ///
    /// # Errors
    /// [`SglFault`] for keyed, segment and other forms, and for an offset.
    pub fn transfer(&self) -> Result<Transfer, SglFault> {
        let len_bytes = self.length.get();
        match self.kind {
            SGL_IN_CAPSULE if self.address.get() != 0 => Err(SglFault::Offset),
            SGL_IN_CAPSULE => Ok(Transfer::InCapsule { len_bytes }),
            SGL_TRANSPORT => Ok(Transfer::Transport { len_bytes }),
            _ => Err(SglFault::Type),
        }
    }
}

/// Flags byte: PSDT 01b (SGL used, metadata pointer is an address), as fabrics demands.
pub const FLAGS_SGL: u8 = 0x40;

/// A submission queue entry.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Sqe {
    /// Opcode.
    pub opcode: u8,
    /// FUSE (1:0) and PSDT (7:6).
    pub flags: u8,
    /// Command identifier, the host's.
    pub cid: U16,
    /// Namespace; fabrics commands keep FCTYPE in its first byte.
    pub nsid: U32,
    /// Command dwords 2 and 3.
    pub cdw2_3: U64,
    /// Metadata pointer, unused.
    pub mptr: U64,
    /// The one data descriptor.
    pub sgl: Sgl,
    /// Command dwords 10 to 15.
    pub cdw: [U32; 6],
}
const _: () = assert!(size_of::<Sqe>() == 64);
const _: () = assert!(std::mem::offset_of!(Sqe, sgl) == 24);
const _: () = assert!(std::mem::offset_of!(Sqe, cdw) == 40);

impl Sqe {
    /// A command without data and with all dwords zero.
    pub fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        Self {
            opcode,
            flags: FLAGS_SGL,
            cid: cid.into(),
            nsid: nsid.into(),
            sgl: Sgl::transport(0),
            ..Self::new_zeroed()
        }
    }

    /// The same command with this descriptor.
    pub fn with_sgl(mut self, sgl: Sgl) -> Self {
        self.sgl = sgl;
        self
    }

    /// The same command with command dwords 10 to 15.
    pub fn with_cdws(mut self, cdw10_15: [u32; 6]) -> Self {
        self.cdw = cdw10_15.map(U32::new);
        self
    }

    /// Command dword `n`, 10 to 15.
    pub fn cdw(&self, n: usize) -> u32 {
        self.cdw[n - 10].get()
    }

    /// Command dwords 10 to 15.
    pub fn cdws(&self) -> [u32; 6] {
        self.cdw.map(U32::get)
    }

    /// FUSE field; zero for a normal command.
    pub fn fuse(&self) -> u8 {
        self.flags & 3
    }

    /// True if PSDT says SGL, which NVMe/TCP requires.
    pub fn uses_sgl(&self) -> bool {
        self.flags & 0xc0 == FLAGS_SGL
    }

    /// Starting LBA of read, write and write zeroes (CDW10-11).
    pub fn slba(&self) -> u64 {
        u64::from(self.cdw(11)) << 32 | u64::from(self.cdw(10))
    }

    /// Block count of read, write and write zeroes: NLB (CDW12 15:0) is zero-based, this is not.
    pub fn blocks(&self) -> u32 {
        (self.cdw(12) & 0xffff) + 1
    }

    /// CDW10-12 of a command over a block range. Panics unless `blocks` is in `1..=65536`.
    pub fn with_range(mut self, slba: u64, blocks: u32, cdw12_flags: u32) -> Self {
        assert!((1..=65536).contains(&blocks));
        let [a, b, c, d, e, f, g, h] = slba.to_le_bytes();
        self.cdw[0] = U32::from_bytes([a, b, c, d]);
        self.cdw[1] = U32::from_bytes([e, f, g, h]);
        self.cdw[2] = U32::new((blocks - 1) | cdw12_flags);
        self
    }
}

/// One range of Dataset Management, 16 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes, ignored.
    pub attributes: U32,
    /// Length in blocks (not zero-based).
    pub blocks: U32,
    /// First block.
    pub slba: U64,
}
const _: () = assert!(size_of::<DsmRange>() == 16);

/// Most ranges one Dataset Management command carries (NR is 8 bits, zero-based).
pub const DSM_RANGES_MAX: usize = 256;

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_range_survives_the_wire_and_nlb_is_zero_based() {
        let sqe = Sqe::new(io::WRITE, 7, 3).with_range(0x1_2345_6789, 32, CDW12_FUA);
        assert_eq!((sqe.slba(), sqe.blocks()), (0x1_2345_6789, 32));
        assert_eq!(sqe.cdw(12), 31 | CDW12_FUA);
        assert_eq!(
            &sqe.as_bytes()[40..48],
            &[0x89, 0x67, 0x45, 0x23, 1, 0, 0, 0]
        );
    }

    #[test]
    fn only_the_two_forms_of_the_transport_are_read() {
        assert_eq!(
            Sgl::in_capsule(9).transfer(),
            Ok(Transfer::InCapsule { len_bytes: 9 })
        );
        assert_eq!(
            Sgl::transport(0).transfer(),
            Ok(Transfer::Transport { len_bytes: 0 })
        );
        let offset = Sgl {
            address: 4.into(),
            ..Sgl::in_capsule(9)
        };
        assert_eq!(offset.transfer(), Err(SglFault::Offset));
        for kind in [0x00, 0x02, 0x40, 0x4f, 0x50, 0xff] {
            assert_eq!(
                Sgl {
                    kind,
                    ..Sgl::transport(1)
                }
                .transfer(),
                Err(SglFault::Type)
            );
        }
    }
}

//! What callers ask for, and how it looks as a command.

use super::limits::RANGES_MAX;
use crate::proto::host::{Command, QueueId, Transfer};
use crate::proto::identify::{BLOCK_BYTES, IDENTIFY_BYTES};
use crate::proto::sqe::{
    CDW11_DEALLOCATE, CDW12_DEALLOCATE, CDW12_FUA, Direction, DsmRange, Sqe, admin, io,
};
use crate::proto::status::Status;
use reactor::{Arena, Buf, BufMut};
use zerocopy::IntoBytes;

/// Where the generation of a write or of write-zeroes stands, counted from CDW10. A read has access
/// hints there, which standard hosts set, and its generation one further.
const WRITE_TAG: usize = 3;
const READ_TAG: usize = 4;

/// A command of the caller's. It comes back with its buffers, whatever happened.
#[derive(Debug)]
pub enum Request {
    /// Read blocks. Needs `into.len_bytes() == blocks * 4096`, at most 128 KiB.
    Read {
        /// Namespace.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Count.
        blocks: u32,
        /// Filled straight from the socket. Its content is undefined unless the read succeeded.
        into: BufMut,
        /// CDW14: generation, zero for the head.
        tag: u32,
    },
    /// Write blocks. Needs `data.len_bytes() == blocks * 4096`, at most 128 KiB.
    Write {
        /// Namespace.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Count.
        blocks: u32,
        /// Durable before it completes.
        fua: bool,
        /// Sent from where it is.
        data: Buf,
        /// CDW13: generation, zero for the head.
        tag: u32,
    },
    /// Make completed writes durable.
    Flush {
        /// Namespace.
        nsid: u32,
    },
    /// Make blocks read as zeroes.
    WriteZeroes {
        /// Namespace.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Count, at most 65536.
        blocks: u32,
        /// Whether space may be given back.
        deallocate: bool,
        /// Durable before it completes.
        fua: bool,
        /// CDW13: generation, zero for the head.
        tag: u32,
    },
    /// Say that blocks hold nothing of interest.
    Deallocate {
        /// Namespace.
        nsid: u32,
        /// First block and count, 1 to 256 of them.
        ranges: Vec<(u64, u32)>,
    },
    /// A vendor admin command; opcode bits 1:0 say which way data goes.
    Vendor {
        /// Namespace.
        nsid: u32,
        /// `C0h` or above.
        opcode: u8,
        /// Command dwords 10 to 15.
        cdw10_15: [u32; 6],
        /// Data to the controller, at most 64 KiB; with opcodes of that direction only.
        data: Option<Vec<u8>>,
        /// Most data from the controller, at most 64 KiB; with opcodes of that direction only.
        reply_len_bytes: u32,
    },
    /// Identify; the reply's data has 4096 bytes.
    Identify {
        /// Namespace, or zero.
        nsid: u32,
        /// What to identify.
        cns: u8,
    },
}

/// A successful end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Result dwords 0 and 1.
    pub result: u64,
    /// Data of admin commands. Reads have theirs in `into`.
    pub data: Vec<u8>,
}

/// An end that is no success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The controller said so. A wrong data digest shows as a transient transport error.
    #[error("status {0}")]
    Status(Status),
    /// The association was lost; the command may have been carried out, or may not.
    #[error("connection lost")]
    ConnectionLost,
}

impl Request {
    /// Which queue carries it.
    pub fn queue(&self) -> QueueId {
        match self {
            Self::Read { .. }
            | Self::Write { .. }
            | Self::Flush { .. }
            | Self::WriteZeroes { .. }
            | Self::Deallocate { .. } => QueueId::Io,
            Self::Vendor { .. } | Self::Identify { .. } => QueueId::Admin,
        }
    }

    /// As a command for the core. Panics where the request breaks what its fields promise.
    pub(super) fn command(&self) -> Command {
        let (sqe, transfer) = match self {
            Self::Read { .. } | Self::Write { .. } | Self::WriteZeroes { .. } => self.on_range(),
            Self::Flush { nsid } => (Sqe::new(io::FLUSH, 0, *nsid), Transfer::Nothing),
            Self::Deallocate { nsid, ranges } => deallocate(*nsid, ranges.len()),
            Self::Vendor {
                nsid,
                opcode,
                cdw10_15,
                data,
                reply_len_bytes,
            } => {
                let sqe = Sqe::new(*opcode, 0, *nsid).with_cdws(*cdw10_15);
                let data = data.as_deref();
                (sqe, vendor_transfer(*opcode, data, *reply_len_bytes))
            }
            Self::Identify { nsid, cns } => {
                let sqe = Sqe::new(admin::IDENTIFY, 0, *nsid);
                let sqe = sqe.with_cdws([u32::from(*cns), 0, 0, 0, 0, 0]);
                (sqe, to_host(IDENTIFY_BYTES))
            }
        };
        Command {
            queue: self.queue(),
            sqe,
            transfer,
        }
    }

    fn on_range(&self) -> (Sqe, Transfer) {
        let (opcode, nsid, slba, blocks, flags) = match *self {
            Self::Read {
                nsid, slba, blocks, ..
            } => (io::READ, nsid, slba, blocks, 0),
            Self::Write {
                nsid,
                slba,
                blocks,
                fua,
                ..
            } => (io::WRITE, nsid, slba, blocks, u32::from(fua) * CDW12_FUA),
            Self::WriteZeroes {
                nsid,
                slba,
                blocks,
                deallocate,
                fua,
                ..
            } => {
                let deallocate = u32::from(deallocate) * CDW12_DEALLOCATE;
                let flags = deallocate | (u32::from(fua) * CDW12_FUA);
                (io::WRITE_ZEROES, nsid, slba, blocks, flags)
            }
            Self::Flush { .. }
            | Self::Deallocate { .. }
            | Self::Vendor { .. }
            | Self::Identify { .. } => unreachable!("not over a range of blocks"),
        };
        let mut sqe = Sqe::new(opcode, 0, nsid).with_range(slba, blocks, flags);
        let len_bytes = u64::from(blocks) * u64::from(BLOCK_BYTES);
        match self {
            Self::Read { into, tag, .. } => {
                assert_eq!(u64::from(into.len_bytes()), len_bytes, "read buffer");
                sqe.cdw[READ_TAG] = (*tag).into();
                (sqe, to_host(into.len_bytes()))
            }
            Self::Write { data, tag, .. } => {
                assert_eq!(u64::from(data.len_bytes()), len_bytes, "write data");
                sqe.cdw[WRITE_TAG] = (*tag).into();
                let len_bytes = data.len_bytes();
                (sqe, Transfer::ToController { len_bytes })
            }
            Self::WriteZeroes { tag, .. } => {
                sqe.cdw[WRITE_TAG] = (*tag).into();
                (sqe, Transfer::Nothing)
            }
            Self::Flush { .. }
            | Self::Deallocate { .. }
            | Self::Vendor { .. }
            | Self::Identify { .. } => (sqe, Transfer::Nothing),
        }
    }

    /// Data that is not in the arena yet, copied there. `Err` means that the arena is exhausted.
    pub(super) fn staged(&self, arena: &Arena) -> Result<Option<Buf>, ()> {
        match self {
            Self::Vendor {
                data: Some(data), ..
            } => {
                let len_bytes = u32::try_from(data.len()).expect("checked in `command`");
                let mut window = arena.take(len_bytes).ok_or(())?;
                window.bytes_mut().copy_from_slice(data);
                Ok(Some(window.freeze()))
            }
            Self::Deallocate { ranges, .. } => {
                let len_bytes = u32::try_from(ranges.len() * 16).expect("at most 256 ranges");
                let mut window = arena.take(len_bytes).ok_or(())?;
                for (entry, (slba, blocks)) in window.bytes_mut().chunks_mut(16).zip(ranges) {
                    let range = DsmRange {
                        attributes: 0.into(),
                        blocks: (*blocks).into(),
                        slba: (*slba).into(),
                    };
                    entry.copy_from_slice(range.as_bytes());
                }
                Ok(Some(window.freeze()))
            }
            Self::Vendor { data: None, .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Flush { .. }
            | Self::WriteZeroes { .. }
            | Self::Identify { .. } => Ok(None),
        }
    }
}

fn to_host(len_bytes: u32) -> Transfer {
    Transfer::ToHost {
        len_bytes,
        exact: true,
    }
}

fn deallocate(nsid: u32, ranges: usize) -> (Sqe, Transfer) {
    assert!(
        (1..=RANGES_MAX).contains(&ranges),
        "deallocation of {ranges} ranges"
    );
    let count = u32::try_from(ranges).expect("at most 256");
    let sqe = Sqe::new(io::DATASET_MANAGEMENT, 0, nsid);
    let sqe = sqe.with_cdws([count - 1, CDW11_DEALLOCATE, 0, 0, 0, 0]);
    (
        sqe,
        Transfer::ToController {
            len_bytes: count * 16,
        },
    )
}

fn vendor_transfer(opcode: u8, data: Option<&[u8]>, reply_len_bytes: u32) -> Transfer {
    assert!(
        opcode >= admin::VENDOR_FIRST,
        "opcode {opcode:#x} is not a vendor's"
    );
    let limit = crate::proto::host::ADMIN_BYTES_MAX;
    match (Direction::of_opcode(opcode), data) {
        (Direction::None, None) if reply_len_bytes == 0 => Transfer::Nothing,
        (Direction::ToController, Some(data)) if reply_len_bytes == 0 => {
            let len_bytes = u32::try_from(data.len()).expect("vendor data");
            assert!(
                (1..=limit).contains(&len_bytes),
                "vendor data of {len_bytes} bytes"
            );
            Transfer::ToController { len_bytes }
        }
        (Direction::ToHost, None) => {
            assert!(
                (1..=limit).contains(&reply_len_bytes),
                "reply of {reply_len_bytes} bytes"
            );
            Transfer::ToHost {
                len_bytes: reply_len_bytes,
                exact: false,
            }
        }
        (direction, _) => panic!("opcode {opcode:#x} moves data {direction:?}"),
    }
}

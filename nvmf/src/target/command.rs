//! What passes between the target and its backend.

use crate::proto::controller::{AssociationId, Work};
use crate::proto::identify::NamespaceFacts;
use crate::proto::sqe::{CDW12_DEALLOCATE, CDW12_FUA, Direction, DsmRange, Sqe};
use crate::proto::status::Status;
use reactor::{Buf, BufMut, Driver};
use zerocopy::FromBytes;

/// The backend of a target.
pub trait Namespaces {
    /// Whether this host may connect. By default every host may.
    fn admits_host(&self, host_nqn: &str) -> bool {
        !host_nqn.is_empty()
    }

    /// Active NSIDs for this host, ascending.
    fn list(&self, host_nqn: &str) -> Vec<u32>;

    /// What is known of a namespace; `None` if there is none.
    fn identify(&self, nsid: u32) -> Option<NamespaceFacts>;

    /// Starts a command. It is answered later by `Target::reply`, exactly once. The block range is
    /// known not to wrap and to match the data's length; that it lies within an existing namespace
    /// is for the backend to check.
    fn admit(&mut self, io: &mut dyn Driver, command: Command);

    /// An association exists from now on. By default nobody cares.
    fn on_association(&mut self, association: AssociationId, host_nqn: &str) {
        let _ = (association, host_nqn);
    }

    /// An association is over: its sessions are closed. Its outstanding commands must still be
    /// answered; the target drops the answers.
    fn on_association_gone(&mut self, io: &mut dyn Driver, association: AssociationId);
}

/// Names a command from [`Namespaces::admit`] until its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId {
    pub(super) connection: u32,
    pub(super) turn: u32,
    pub(super) slot: u16,
}

/// A command for the backend.
#[derive(Debug)]
pub struct Command {
    /// To be repeated in the reply.
    pub id: CommandId,
    /// On whose behalf.
    pub association: AssociationId,
    /// Which namespace; never FFFFFFFFh (all).
    pub nsid: u32,
    /// What to do.
    pub kind: CommandKind,
}

/// What a command is to do. Ranges are in blocks of 4 KiB.
#[derive(Debug)]
pub enum CommandKind {
    /// Read into the buffer, and reply with it.
    Read {
        /// First block.
        slba: u64,
        /// Number of blocks.
        blocks: u32,
        /// Exactly as long as the range.
        into: BufMut,
        /// CDW14: generation, 0 for the head (what standard hosts send).
        tag: u32,
    },
    /// Write.
    Write {
        /// First block.
        slba: u64,
        /// Number of blocks.
        blocks: u32,
        /// Durable before the reply.
        fua: bool,
        /// Exactly as long as the range.
        data: Buf,
        /// CDW13: generation, 0 for the head (what standard hosts send).
        tag: u32,
    },
    /// Make every completed write durable.
    Flush,
    /// Make blocks read as zero.
    WriteZeroes {
        /// First block.
        slba: u64,
        /// Number of blocks.
        blocks: u32,
        /// Their space may be given back.
        deallocate: bool,
        /// Durable before the reply.
        fua: bool,
        /// CDW13: as for a write.
        tag: u32,
    },
    /// Give space back.
    Deallocate {
        /// First block and number of blocks of each range; may be empty ranges, and may wrap.
        ranges: Vec<(u64, u32)>,
    },
    /// A vendor admin command, see `proto::vendor`.
    Vendor {
        /// Its opcode.
        opcode: u8,
        /// Command dwords 10 to 15.
        cdw10_15: [u32; 6],
        /// Data from the host.
        data: Option<Vec<u8>>,
        /// Most data for the host; a shorter reply is padded with zeroes.
        reply_len_bytes: u32,
    },
}

/// The answer to a command.
#[derive(Debug)]
pub struct Reply {
    /// Which command.
    pub id: CommandId,
    /// How it went.
    pub status: Status,
    /// Completion dwords 0 and 1; zero for reads and writes.
    pub result: u64,
    /// Data for the host, if the status is success.
    pub data: ReplyData,
}

/// Data of a reply.
#[derive(Debug)]
pub enum ReplyData {
    /// None.
    None,
    /// What was read.
    Buf(Buf),
    /// What a vendor command yields.
    Bytes(Vec<u8>),
}

/// Makes the backend's command of what the protocol admitted. `buffer` is the command's.
pub(super) fn kind_of(
    work: Work,
    sqe: &Sqe,
    buffer: Option<BufMut>,
    len_bytes: u32,
) -> CommandKind {
    let (slba, blocks) = (sqe.slba(), sqe.blocks());
    let fua = sqe.cdw(12) & CDW12_FUA != 0;
    let has_buffer = "the protocol took a buffer for it";
    match work {
        Work::Read => CommandKind::Read {
            slba,
            blocks,
            into: buffer.expect(has_buffer),
            tag: sqe.cdw(14),
        },
        Work::Write => {
            let data = buffer.expect(has_buffer).freeze();
            CommandKind::Write {
                slba,
                blocks,
                fua,
                data,
                tag: sqe.cdw(13),
            }
        }
        Work::Flush => CommandKind::Flush,
        Work::WriteZeroes => {
            let deallocate = sqe.cdw(12) & CDW12_DEALLOCATE != 0;
            CommandKind::WriteZeroes {
                slba,
                blocks,
                deallocate,
                fua,
                tag: sqe.cdw(13),
            }
        }
        Work::Deallocate => {
            let count = usize::try_from(sqe.cdw(10) & 0xff).expect("eight bits") + 1;
            let data = buffer.expect(has_buffer);
            let ranges = data
                .bytes()
                .chunks_exact(size_of::<DsmRange>())
                .take(count)
                .map(|raw| {
                    let range = DsmRange::read_from_bytes(raw).expect("sixteen bytes");
                    (range.slba.get(), range.blocks.get())
                });
            CommandKind::Deallocate {
                ranges: ranges.collect(),
            }
        }
        Work::Vendor => {
            let to_host = Direction::of_opcode(sqe.opcode) == Direction::ToHost;
            CommandKind::Vendor {
                opcode: sqe.opcode,
                cdw10_15: sqe.cdws(),
                data: buffer.map(|data| data.bytes().to_vec()),
                reply_len_bytes: if to_host { len_bytes } else { 0 },
            }
        }
    }
}

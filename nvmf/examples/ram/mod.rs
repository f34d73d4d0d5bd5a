//! A backend over memory: one namespace, every command carried out as it is admitted. Shared by
//! the example and the tests over sockets.

use nvmf::proto::vendor;
use nvmf::target::{
    AssociationId, Command, CommandKind, NamespaceFacts, Namespaces, Reply, ReplyData, Status,
};
use reactor::Driver;

/// Its only namespace.
pub(crate) const NSID: u32 = 1;
const BLOCK_BYTES: usize = 4096;

/// The backend. Answers gather in `replies`, for the program to pass on.
pub(crate) struct Ram {
    memory: Vec<u8>,
    marks: Vec<u8>,
    /// Answers that the target has not got yet.
    pub(crate) replies: Vec<Reply>,
    /// Associations that exist, in the order in which they began.
    pub(crate) associations: Vec<AssociationId>,
}

impl Ram {
    /// A namespace of this many bytes, all zero.
    pub(crate) fn new(size_bytes: usize) -> Self {
        Self {
            memory: vec![0; size_bytes],
            marks: Vec::new(),
            replies: Vec::new(),
            associations: Vec::new(),
        }
    }

    /// The range in bytes; `None` if it passes the end.
    fn range(&self, slba: u64, blocks: u32) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(slba).ok()?.checked_mul(BLOCK_BYTES)?;
        let len = usize::try_from(blocks).ok()?.checked_mul(BLOCK_BYTES)?;
        let end = start.checked_add(len)?;
        (end <= self.memory.len()).then_some(start..end)
    }

    fn execute(&mut self, kind: CommandKind) -> Result<ReplyData, Status> {
        let outside = Status::LBA_OUT_OF_RANGE;
        match kind {
            CommandKind::Read {
                slba,
                blocks,
                mut into,
                ..
            } => {
                let range = self.range(slba, blocks).ok_or(outside)?;
                into.bytes_mut().copy_from_slice(&self.memory[range]);
                return Ok(ReplyData::Buf(into.freeze()));
            }
            CommandKind::Write {
                slba, blocks, data, ..
            } => {
                let range = self.range(slba, blocks).ok_or(outside)?;
                self.memory[range].copy_from_slice(data.bytes());
            }
            CommandKind::Flush => {}
            CommandKind::WriteZeroes { slba, blocks, .. } => {
                let range = self.range(slba, blocks).ok_or(outside)?;
                self.memory[range].fill(0);
            }
            CommandKind::Deallocate { ranges } => {
                for (slba, blocks) in ranges {
                    let range = self.range(slba, blocks).ok_or(outside)?;
                    self.memory[range].fill(0);
                }
            }
            CommandKind::Vendor { opcode, data, .. } => return self.vendor(opcode, data),
        }
        Ok(ReplyData::None)
    }

    /// Marks are kept as opaque bytes, which is enough to see data go both ways.
    fn vendor(&mut self, opcode: u8, data: Option<Vec<u8>>) -> Result<ReplyData, Status> {
        match (opcode, data) {
            (vendor::opcode::ADD_MARKS, Some(marks)) => {
                self.marks = marks;
                Ok(ReplyData::None)
            }
            (vendor::opcode::READ_MARKS, None) => Ok(ReplyData::Bytes(self.marks.clone())),
            _ => Err(Status::NOT_OPEN),
        }
    }
}

impl Namespaces for Ram {
    fn list(&self, _host_nqn: &str) -> Vec<u32> {
        vec![NSID]
    }

    fn identify(&self, nsid: u32) -> Option<NamespaceFacts> {
        let size_blocks = (self.memory.len() / BLOCK_BYTES) as u64;
        (nsid == NSID).then_some(NamespaceFacts {
            size_blocks,
            used_blocks: size_blocks,
            nguid: *b"ublkstor ram dsk",
            uuid: *b"ublkstor-ram-uid",
            thin: false,
            deallocate_blocks: 1,
        })
    }

    fn admit(&mut self, _io: &mut dyn Driver, command: Command) {
        let known = command.nsid == NSID || matches!(command.kind, CommandKind::Flush);
        let done = if known {
            self.execute(command.kind)
        } else {
            Err(Status::INVALID_NAMESPACE)
        };
        let (status, data) = match done {
            Ok(data) => (Status::SUCCESS, data),
            Err(status) => (status, ReplyData::None),
        };
        self.replies.push(Reply {
            id: command.id,
            status,
            result: 0,
            data,
        });
    }

    fn on_association(&mut self, association: AssociationId, _host_nqn: &str) {
        self.associations.push(association);
    }

    fn on_association_gone(&mut self, _io: &mut dyn Driver, association: AssociationId) {
        self.associations.retain(|known| *known != association);
    }
}

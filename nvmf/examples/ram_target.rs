//! A target over memory, for trying hosts against: `ram_target [ADDRESS [MIB]]`.
//!
//! Prints `listening on ADDRESS:PORT nqn NQN` and serves namespace 1 until it is killed. Data is
//! kept in ordinary memory and lost at the end.

use nvmf::target::{
    AssociationId, Command, CommandKind, Identity, NamespaceFacts, Namespaces, Reply, ReplyData,
    Status, Target, TargetConfig,
};
use reactor::{App, Completion, Driver, UringConfig, UringDriver};
use std::net::SocketAddr;

const NSID: u32 = 1;
const NQN: &str = "nqn.2026-01.io.ublkstor:storaged:ram";
const BLOCK_BYTES: usize = 4096;

/// One namespace; commands are carried out at once and answered before the turn ends.
struct Ram {
    memory: Vec<u8>,
    replies: Vec<Reply>,
}

impl Ram {
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
            CommandKind::Vendor { .. } => return Err(Status::INVALID_OPCODE),
        }
        Ok(ReplyData::None)
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

    fn on_association_gone(&mut self, _io: &mut dyn Driver, _association: AssociationId) {}
}

struct Program {
    target: Target,
    ram: Ram,
}

impl Program {
    fn answer(&mut self, io: &mut dyn Driver) {
        for reply in self.ram.replies.drain(..) {
            self.target.reply(io, reply);
        }
    }
}

impl App for Program {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        self.target.on_completion(io, &mut self.ram, completion);
        self.answer(io);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.target.on_turn_end(io, &mut self.ram);
        if !self.ram.replies.is_empty() {
            self.answer(io);
            self.target.on_turn_end(io, &mut self.ram);
        }
    }

    fn is_finished(&self) -> bool {
        false
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let at: SocketAddr = arguments
        .next()
        .as_deref()
        .unwrap_or("127.0.0.1:0")
        .parse()?;
    let mib: usize = arguments.next().as_deref().unwrap_or("256").parse()?;
    let identity = Identity {
        subnqn: NQN.into(),
        serial: "ram".into(),
        firmware: "0.1".into(),
    };
    let mut driver = UringDriver::new(UringConfig::default())?;
    let mut program = Program {
        target: Target::new(TargetConfig::new(0, identity)),
        ram: Ram {
            memory: vec![0; mib << 20],
            replies: Vec::new(),
        },
    };
    let bound = program.target.listen(&mut driver, at)?;
    println!("listening on {bound} nqn {NQN}");
    driver.run(&mut program);
    Ok(())
}

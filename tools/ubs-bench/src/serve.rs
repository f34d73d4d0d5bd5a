//! The data half of a storaged on one file or on memory: what a load is put on where no cluster is
//! wanted. Namespaces 1, 2 … are open to every host.
//!
//! Life is ruled by standard input: a line `counters` is answered by one line of JSON, the end of
//! the input is the end of the server.

use crate::cpu;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nvmf::target::{
    AssociationId, Command, CommandId, CommandKind, Identity, NamespaceFacts, Namespaces, Reply,
    ReplyData, Status, Target, TargetConfig,
};
use reactor::{App, Completion, Driver, Mailbox, Token, UringConfig, UringDriver};
use serde::{Deserialize, Serialize};
use shardmap::map::{Layout, Shape};
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, Generation, Lba, Nsid, VolumeId};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::SocketAddr;
use std::path::PathBuf;
use store::{
    PrepareOptions, SliceSpec, Store, StoreEvent, StoreFault, StoreOp, StoreReply, StoreRequest,
};
use uuid::Uuid;

const ROOM_TARGET: u8 = 1;
const ROOM_STORE: u8 = 2;
const ROOM_INPUT: u8 = 3;
/// The cluster that stores made here belong to.
const CLUSTER: Uuid = Uuid::from_u128(0xbe);
/// Requests to the store that make the slices.
const CREATE_BIT: u64 = 1 << 63;

/// Where the blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backing {
    /// Ordinary memory: every command is carried out as it arrives.
    Ram,
    /// A store on a file.
    Store,
}

/// Options of the server.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServeOptions {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Name of the subsystem
    #[arg(long, default_value = crate::serve::NQN)]
    pub(crate) nqn: String,
    /// What holds the blocks
    #[arg(long, value_enum, default_value = "store")]
    pub(crate) backing: Backing,
    /// File of the store; made if it is not there, left there at the end
    #[arg(long, required_if_eq("backing", "store"))]
    pub(crate) path: Option<PathBuf>,
    /// Size of the namespace
    #[arg(long, default_value = "256M", value_parser = crate::options::parse_bytes)]
    pub(crate) size: u64,
    /// Run on this processor only
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
    /// Look for completions so long before sleeping, microseconds
    #[arg(long, default_value_t = 0)]
    pub(crate) spin_us: u32,
}

/// Default name of the subsystem.
pub(crate) const NQN: &str = "nqn.2026-01.io.ublkstor:storaged:ubs-bench";

/// The answer to `counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServeCounters {
    /// `io_uring_enter` calls.
    pub(crate) enters: u64,
    /// Commands admitted.
    pub(crate) commands: u64,
    /// Operations submitted to the ring.
    pub(crate) ops: u64,
}

/// What standard input says.
#[derive(Debug)]
enum Input {
    Counters,
    End,
}

#[derive(Debug)]
enum Disk {
    Ram(Vec<u8>),
    Store(Box<Store>),
}

/// The backend.
#[derive(Debug)]
struct Served {
    disk: Disk,
    size_blocks: u64,
    pending: BTreeMap<u64, CommandId>,
    next_id: u64,
    events: Vec<StoreEvent>,
    replies: Vec<Reply>,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Serving,
    Stopping,
    Over,
}

/// The program on the reactor.
struct Server {
    options: ServeOptions,
    target: Target,
    served: Served,
    input: Mailbox<Input>,
    stage: Stage,
    counters_wanted: bool,
    problem: Option<String>,
}

/// Serves until standard input ends.
pub(crate) fn run(options: ServeOptions) -> Result<()> {
    if let Some(cpu) = options.cpu {
        cpu::pin(cpu)?;
    }
    let config = UringConfig {
        spin_us: options.spin_us,
        ..UringConfig::default()
    };
    let mut driver = UringDriver::new(config).context("cannot start io_uring")?;
    let token = Token {
        room: ROOM_INPUT,
        index: 0,
        value: 0,
    };
    let input = Mailbox::new(16, driver.doorbell(token)?);
    listen_to_input(input.clone())?;
    let mut server = Server::new(&mut driver, options, input)?;
    server.settle(&mut driver);
    while server.stage != Stage::Over {
        driver.turn(&mut server);
        if std::mem::take(&mut server.counters_wanted) {
            let counters = ServeCounters {
                enters: driver.counters().enters,
                commands: server.target.counters().commands_admitted,
                ops: driver.counters().ops,
            };
            println!("{}", serde_json::to_string(&counters)?);
        }
    }
    driver.run(&mut server);
    server.problem.map_or(Ok(()), |problem| bail!(problem))
}

fn listen_to_input(input: Mailbox<Input>) -> Result<()> {
    let body = move || {
        for line in std::io::stdin().lock().lines() {
            // A full mailbox means that nobody reads the answers either.
            if line.is_ok_and(|line| line == "counters") && input.send(Input::Counters).is_err() {
                break;
            }
        }
        while input.send(Input::End).is_err() {
            std::thread::yield_now();
        }
    };
    std::thread::Builder::new()
        .name("input".into())
        .spawn(body)?;
    Ok(())
}

impl Server {
    fn new(io: &mut dyn Driver, options: ServeOptions, input: Mailbox<Input>) -> Result<Self> {
        let mut events = Vec::new();
        let disk = match (options.backing, &options.path) {
            (Backing::Ram, _) | (Backing::Store, None) => {
                // Touched here, so that no load pays for first use.
                Disk::Ram(vec![0xa5; usize::try_from(options.size)?])
            }
            (Backing::Store, Some(path)) => {
                if !path.exists() {
                    let prepare = PrepareOptions {
                        cluster: CLUSTER,
                        store: Uuid::from_u128(1),
                        // Room for the journal and the pages beside the data.
                        size_bytes: Some(options.size + options.size / 4 + (64 << 20)),
                        wipe: false,
                        journal_bytes: None,
                        checksums: true,
                    };
                    Store::prepare(path, &prepare)?;
                }
                let at = (ROOM_STORE, 0);
                Disk::Store(Box::new(Store::open(io, at, path, CLUSTER, &mut events)?))
            }
        };
        let identity = Identity {
            subnqn: options.nqn.clone(),
            serial: "ubs-bench".into(),
            firmware: "0.1".into(),
        };
        let in_memory = matches!(disk, Disk::Ram(_));
        let mut server = Self {
            target: Target::new(TargetConfig::new(ROOM_TARGET, identity)),
            served: Served {
                disk,
                size_blocks: options.size / u64::from(BLOCK_BYTES),
                pending: BTreeMap::new(),
                next_id: 0,
                events,
                replies: Vec::new(),
            },
            options,
            input,
            stage: Stage::Opening,
            counters_wanted: false,
            problem: None,
        };
        if in_memory {
            server.listen(io);
        }
        Ok(server)
    }

    fn listen(&mut self, io: &mut dyn Driver) {
        match self.target.listen(io, self.options.listen) {
            Ok(bound) => {
                self.stage = Stage::Serving;
                println!("listening on {bound} nqn {}", self.options.nqn);
            }
            Err(why) => self.fail(why.to_string()),
        }
    }

    fn fail(&mut self, why: String) {
        self.problem.get_or_insert(why);
        self.stage = Stage::Over;
    }

    /// Handles what the store said, and passes answers on.
    fn settle(&mut self, io: &mut dyn Driver) {
        while !self.served.events.is_empty() {
            for event in std::mem::take(&mut self.served.events) {
                match event {
                    StoreEvent::Opened(_) => self.served.create(io),
                    StoreEvent::Reply { id, result } if id & CREATE_BIT != 0 => match result {
                        Ok(_) => self.listen(io),
                        Err(fault) => self.fail(fault.to_string()),
                    },
                    StoreEvent::Reply { id, result } => self.served.answer(id, result),
                    StoreEvent::OpenFailed(fault) | StoreEvent::Poisoned(fault) => {
                        self.fail(fault.to_string());
                    }
                    StoreEvent::Rotten { blocks } => {
                        let first = blocks.first().map(ToString::to_string);
                        self.fail(first.unwrap_or_default());
                    }
                    StoreEvent::Stopped => self.stage = Stage::Over,
                }
            }
        }
        for reply in self.served.replies.drain(..) {
            self.target.reply(io, reply);
        }
    }

    fn stop(&mut self, io: &mut dyn Driver) {
        self.stage = Stage::Stopping;
        self.target.stop(io);
        match &mut self.served.disk {
            Disk::Ram(_) => self.stage = Stage::Over,
            Disk::Store(store) => store.stop(io, &mut self.served.events),
        }
    }
}

impl App for Server {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        match completion.token.room {
            ROOM_TARGET => self.target.on_completion(io, &mut self.served, completion),
            ROOM_STORE => {
                let Disk::Store(store) = &mut self.served.disk else {
                    unreachable!("no store was opened")
                };
                store.on_completion(io, completion, &mut self.served.events);
            }
            _ => {
                while let Some(input) = self.input.recv() {
                    match input {
                        Input::Counters => self.counters_wanted = true,
                        Input::End => self.stop(io),
                    }
                }
            }
        }
        self.settle(io);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.target.on_turn_end(io, &mut self.served);
        if !self.served.replies.is_empty() || !self.served.events.is_empty() {
            self.settle(io);
            self.target.on_turn_end(io, &mut self.served);
        }
    }

    fn is_finished(&self) -> bool {
        self.stage == Stage::Over
    }
}

impl Served {
    fn create(&mut self, io: &mut dyn Driver) {
        let spec = SliceSpec {
            nsid: Nsid(1),
            volume: VolumeId([0xbe; 16]),
            size_blocks: self.size_blocks,
            shape: Shape {
                shard_blocks: 16_384,
                stride: 1,
                replicas: 1,
                layout: Layout::Ring,
            },
            position: 0,
            open_access: true,
            parent: None,
        };
        self.ask(
            io,
            CREATE_BIT,
            0,
            StoreOp::CreateSlice {
                spec,
                incomplete: false,
            },
        );
    }

    fn ask(&mut self, io: &mut dyn Driver, id: u64, association: u64, op: StoreOp) {
        let Disk::Store(store) = &mut self.disk else {
            unreachable!("asked a store")
        };
        let request = StoreRequest {
            id,
            slice: Nsid(1),
            association,
            op,
        };
        store.submit(io, request, &mut self.events);
    }

    fn answer(&mut self, id: u64, result: Result<StoreReply, StoreFault>) {
        let Some(id) = self.pending.remove(&id) else {
            return;
        };
        let (status, data) = match result {
            Ok(StoreReply::Read(buf)) => (Status::SUCCESS, ReplyData::Buf(buf.freeze())),
            Ok(_) => (Status::SUCCESS, ReplyData::None),
            Err(fault) => {
                tracing::warn!(%fault, "command failed");
                (Status::INTERNAL_ERROR, ReplyData::None)
            }
        };
        self.replies.push(Reply {
            id,
            status,
            result: 0,
            data,
        });
    }

    /// Carries a command out on memory.
    fn execute(&mut self, kind: CommandKind) -> Result<ReplyData, Status> {
        let Disk::Ram(memory) = &mut self.disk else {
            unreachable!("asked memory")
        };
        let block = BLOCK_BYTES as usize;
        let range = |slba: u64, blocks: u32| {
            let start = usize::try_from(slba).ok()?.checked_mul(block)?;
            let end = start.checked_add(blocks as usize * block)?;
            Some(start..end)
        };
        let outside = Status::LBA_OUT_OF_RANGE;
        match kind {
            CommandKind::Read {
                slba,
                blocks,
                mut into,
                ..
            } => {
                let range = range(slba, blocks).ok_or(outside)?;
                into.bytes_mut()
                    .copy_from_slice(memory.get(range).ok_or(outside)?);
                return Ok(ReplyData::Buf(into.freeze()));
            }
            CommandKind::Write {
                slba, blocks, data, ..
            } => {
                let range = range(slba, blocks).ok_or(outside)?;
                memory
                    .get_mut(range)
                    .ok_or(outside)?
                    .copy_from_slice(data.bytes());
            }
            CommandKind::WriteZeroes { slba, blocks, .. } => {
                let range = range(slba, blocks).ok_or(outside)?;
                memory.get_mut(range).ok_or(outside)?.fill(0);
            }
            CommandKind::Flush | CommandKind::Deallocate { .. } => {}
            CommandKind::Vendor { .. } => return Err(Status::INVALID_OPCODE),
        }
        Ok(ReplyData::None)
    }

    /// The command as a request to a store; `None` if it is none.
    fn operation(kind: CommandKind) -> Option<StoreOp> {
        let range = |slba, blocks| BlockRange::new(Lba(slba), Blocks(blocks));
        match kind {
            CommandKind::Read {
                slba,
                blocks,
                into,
                tag,
            } => Some(StoreOp::Read {
                range: range(slba, blocks)?,
                generation: Generation(tag),
                into,
            }),
            CommandKind::Write {
                slba,
                blocks,
                fua,
                data,
                tag,
            } => {
                let (range, generation) = (range(slba, blocks)?, Generation(tag));
                Some(StoreOp::Write {
                    range,
                    data,
                    fua,
                    generation,
                })
            }
            CommandKind::Flush => Some(StoreOp::Flush),
            CommandKind::WriteZeroes {
                slba,
                blocks,
                deallocate,
                fua,
                tag,
            } => Some(StoreOp::Zero {
                range: range(slba, blocks)?,
                deallocate,
                fua,
                generation: Generation(tag),
            }),
            CommandKind::Deallocate { .. } | CommandKind::Vendor { .. } => None,
        }
    }
}

impl Namespaces for Served {
    fn list(&self, _host_nqn: &str) -> Vec<u32> {
        vec![1]
    }

    fn identify(&self, nsid: u32) -> Option<NamespaceFacts> {
        (nsid == 1).then_some(NamespaceFacts {
            size_blocks: self.size_blocks,
            used_blocks: self.size_blocks,
            nguid: [0xbe; 16],
            uuid: [0xbe; 16],
            thin: true,
            deallocate_blocks: 16,
        })
    }

    fn admit(&mut self, io: &mut dyn Driver, command: Command) {
        let Command {
            id,
            association,
            kind,
            ..
        } = command;
        let refused = |status| Reply {
            id,
            status,
            result: 0,
            data: ReplyData::None,
        };
        if matches!(self.disk, Disk::Ram(_)) {
            let reply = match self.execute(kind) {
                Ok(data) => Reply {
                    id,
                    status: Status::SUCCESS,
                    result: 0,
                    data,
                },
                Err(status) => refused(status),
            };
            self.replies.push(reply);
        } else if let Some(op) = Self::operation(kind) {
            let number = self.next_id;
            self.next_id = (number + 1) & !CREATE_BIT;
            self.pending.insert(number, id);
            self.ask(io, number, association.0, op);
        } else {
            self.replies.push(refused(Status::INVALID_OPCODE));
        }
    }

    fn on_association_gone(&mut self, io: &mut dyn Driver, association: AssociationId) {
        if matches!(self.disk, Disk::Store(_)) {
            let number = self.next_id;
            self.next_id = (number + 1) & !CREATE_BIT;
            self.ask(io, number, association.0, StoreOp::AssociationGone);
        }
    }
}

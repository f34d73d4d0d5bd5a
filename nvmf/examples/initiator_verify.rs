//! Writes, reads back and compares on a namespace of any NVMe/TCP target, with our initiator.
//!
//! `initiator_verify ADDR:PORT SUBSYSTEM-NQN NSID [seconds=N] [depth=N] [blocks=N] [seed=N]
//! [hdgst] [ddgst] [loss]`
//!
//! The first `blocks` blocks of the namespace are overwritten. One line of JSON on standard
//! output; exit code 1 if a block was wrong, a command failed or the association was lost. With
//! `loss` the association must be lost before the time is over (someone kills the target), and
//! every request must have come back.

#![forbid(unsafe_code)]

use nvmf::initiator::{AssociationId, Config, Failure, Initiator, InitiatorEvent, Reply, Request};
use nvmf::proto::identify::{IdentifyNamespace, cns};
use reactor::uring::{UringConfig, UringDriver};
use reactor::{App, Completion, Driver, Event, Token};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use zerocopy::FromBytes;

const ROOM_INITIATOR: u8 = 1;
const ROOM_END: u8 = 2;
const BLOCK_BYTES: usize = 4096;
/// The space is worked on in cells: one request at a time each, so that no two overlap.
const CELL_BLOCKS: u64 = 32;
/// `user` of the Identify that comes first.
const IDENTIFY: u64 = u64::MAX;

struct Options {
    at: SocketAddr,
    nqn: String,
    nsid: u32,
    seconds: u64,
    depth: usize,
    blocks: u64,
    seed: u64,
    hdgst: bool,
    ddgst: bool,
    loss: bool,
}

fn options() -> Result<Options, String> {
    let usage = "usage: initiator_verify ADDR:PORT NQN NSID [seconds=N] [depth=N] [blocks=N] \
                 [seed=N] [hdgst] [ddgst] [loss]";
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().ok_or(format!("{what} is missing; {usage}"));
    let at = next("ADDR:PORT")?;
    let nqn = next("NQN")?;
    let nsid = next("NSID")?;
    let mut options = Options {
        at: at.parse().map_err(|e| format!("{at}: {e}"))?,
        nqn,
        nsid: nsid.parse().map_err(|e| format!("NSID {nsid}: {e}"))?,
        seconds: 5,
        depth: 32,
        blocks: 8192,
        seed: 1,
        hdgst: false,
        ddgst: false,
        loss: false,
    };
    for arg in args {
        let (key, value) = arg.split_once('=').unwrap_or((&arg, "1"));
        let number: u64 = value.parse().map_err(|e| format!("{arg}: {e}"))?;
        match key {
            "seconds" => options.seconds = number,
            "depth" => options.depth = usize::try_from(number).unwrap_or(1).clamp(2, 256),
            "blocks" => options.blocks = number,
            "seed" => options.seed = number,
            "hdgst" => options.hdgst = true,
            "ddgst" => options.ddgst = true,
            "loss" => options.loss = true,
            _ => return Err(format!("{arg} is not known; {usage}")),
        }
    }
    Ok(options)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    /// Random work until the time is over.
    Working,
    /// Everything is read once more.
    Checking,
    Ending,
    Over,
}

#[derive(Default)]
struct Tally {
    writes: u64,
    reads: u64,
    flushes: u64,
    zeroes: u64,
    deallocates: u64,
    written_bytes: u64,
    read_bytes: u64,
    wrong_blocks: u64,
    failed: u64,
    returned: u64,
}

struct Verify {
    options: Options,
    initiator: Initiator,
    association: Option<AssociationId>,
    stage: Stage,
    random: u64,
    /// Version last written, per block; `None` where the content is not known.
    versions: Vec<Option<u64>>,
    version: u64,
    /// Cells with a request in flight, and what its blocks hold if it succeeds.
    busy: BTreeMap<u64, Option<u64>>,
    next_check: u64,
    events: Vec<InitiatorEvent>,
    tally: Tally,
    problem: Option<String>,
    lost: bool,
    began_ns: u64,
    ended_ns: u64,
}

/// Content of a block: version 0 is zeroes, others tell address, version and place.
fn fill(block: &mut [u8], lba: u64, version: u64) {
    if version == 0 {
        return block.fill(0);
    }
    for (word, bytes) in (0u64..).zip(block.chunks_mut(8)) {
        let value = ((lba << 24) ^ (version << 9) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

impl Verify {
    fn new(options: Options) -> Self {
        let name = "nqn.2026-01.io.ublkstor:clientd:initiator-verify".to_owned();
        let mut config = Config::new(ROOM_INITIATOR, name, [0x42; 16]);
        config.queue_depth = u16::try_from(options.depth).expect("clamped").max(2);
        config.header_digest = options.hdgst;
        config.data_digest = options.ddgst;
        Self {
            initiator: Initiator::new(config),
            association: None,
            stage: Stage::Connecting,
            random: options.seed,
            versions: Vec::new(),
            version: 0,
            busy: BTreeMap::new(),
            next_check: 0,
            events: Vec::new(),
            tally: Tally::default(),
            problem: None,
            lost: false,
            began_ns: 0,
            ended_ns: 0,
            options,
        }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    fn problem(&mut self, io: &mut dyn Driver, text: String) {
        self.problem.get_or_insert(text);
        self.end(io);
    }

    fn end(&mut self, io: &mut dyn Driver) {
        self.stage = Stage::Ending;
        if let Some(association) = self.association {
            self.initiator.abort(io, association);
        }
    }

    fn on_event(&mut self, io: &mut dyn Driver, event: InitiatorEvent) {
        match event {
            InitiatorEvent::Ready { association, facts } => {
                eprintln!("ready: {facts:?}");
                let nsid = self.options.nsid;
                let request = Request::Identify {
                    nsid,
                    cns: cns::NAMESPACE,
                };
                let taken = self.initiator.submit(io, association, IDENTIFY, request);
                taken.expect("nothing is in flight");
            }
            InitiatorEvent::Done {
                user: IDENTIFY,
                result,
                ..
            } => self.on_identified(io, result),
            InitiatorEvent::Done {
                user,
                request,
                result,
                ..
            } => self.on_done(io, user, &request, result),
            InitiatorEvent::Lost { reason, .. } => {
                self.lost = true;
                if self.stage != Stage::Ending && !self.options.loss {
                    self.problem = Some(format!("association lost: {reason}"));
                }
                eprintln!("lost: {reason}");
                if !self.busy.is_empty() {
                    let count = self.busy.len();
                    self.problem = Some(format!("{count} requests never came back"));
                }
                self.ended_ns = io.now_ns();
                self.stage = Stage::Over;
            }
            InitiatorEvent::NamespacesChanged { .. } => eprintln!("namespaces changed"),
        }
    }

    fn on_identified(&mut self, io: &mut dyn Driver, result: Result<Reply, Failure>) {
        let reply = match result {
            Ok(reply) => reply,
            Err(failure) => return self.problem(io, format!("identify: {failure}")),
        };
        let namespace = IdentifyNamespace::ref_from_bytes(&reply.data).expect("4096 bytes");
        let (blocks, shift) = (namespace.nsze.get(), namespace.lbaf0_lbads);
        if shift != 12 {
            return self.problem(io, format!("blocks of 2^{shift} bytes, not of 4096"));
        }
        let cells = blocks.min(self.options.blocks) / CELL_BLOCKS;
        if cells < 2 * self.options.depth as u64 {
            return self.problem(io, format!("{blocks} blocks are too few"));
        }
        let blocks = usize::try_from(cells * CELL_BLOCKS).expect("bounded by an option");
        self.versions = vec![None; blocks];
        self.stage = Stage::Working;
        self.began_ns = io.now_ns();
        let end_ns = self.began_ns + self.options.seconds * 1_000_000_000;
        let token = Token {
            room: ROOM_END,
            index: 0,
            value: 0,
        };
        io.arm(token, end_ns);
    }

    fn on_done(
        &mut self,
        io: &mut dyn Driver,
        cell: u64,
        request: &Request,
        result: Result<Reply, Failure>,
    ) {
        let version = self.busy.remove(&cell).expect("came back twice");
        if let Err(failure) = result {
            self.tally.returned += 1;
            if failure != Failure::ConnectionLost {
                self.tally.failed += 1;
                self.problem(io, format!("{request:?}: {failure}"));
            }
            return;
        }
        match request {
            Request::Read { slba, into, .. } => {
                self.tally.reads += 1;
                self.tally.read_bytes += u64::from(into.len_bytes());
                let mut expected = [0; BLOCK_BYTES];
                for (lba, block) in (*slba..).zip(into.bytes().chunks(BLOCK_BYTES)) {
                    let index = usize::try_from(lba).expect("within the space");
                    let Some(version) = self.versions[index] else {
                        continue;
                    };
                    fill(&mut expected, lba, version);
                    if block != expected {
                        self.tally.wrong_blocks += 1;
                        self.problem(io, format!("block {lba} does not hold version {version}"));
                        return;
                    }
                }
            }
            Request::Write { slba, blocks, .. } => {
                self.tally.writes += 1;
                self.tally.written_bytes += u64::from(*blocks) * BLOCK_BYTES as u64;
                self.set(*slba, u64::from(*blocks), version);
            }
            Request::WriteZeroes { slba, blocks, .. } => {
                self.tally.zeroes += 1;
                self.set(*slba, u64::from(*blocks), Some(0));
            }
            Request::Deallocate { ranges, .. } => {
                self.tally.deallocates += 1;
                for (slba, blocks) in ranges {
                    self.set(*slba, u64::from(*blocks), None);
                }
            }
            Request::Flush { .. } => self.tally.flushes += 1,
            Request::Vendor { .. } | Request::Identify { .. } => unreachable!("never sent"),
        }
    }

    fn set(&mut self, slba: u64, blocks: u64, version: Option<u64>) {
        let start = usize::try_from(slba).expect("within the space");
        let count = usize::try_from(blocks).expect("within the space");
        self.versions[start..start + count].fill(version);
    }

    /// A request for a free cell.
    fn request(&mut self, io: &dyn Driver, cell: u64) -> Option<(Request, Option<u64>)> {
        let nsid = self.options.nsid;
        let first = self.below(CELL_BLOCKS);
        let count = self.below(CELL_BLOCKS - first) + 1;
        // Half of the requests are of one block.
        let count = if self.below(2) == 0 { 1 } else { count };
        let slba = cell * CELL_BLOCKS + first;
        let blocks = u32::try_from(count).expect("at most 32");
        let fua = self.below(8) == 0;
        let facts = *self.initiator.facts(self.association?)?;
        match self.below(100) {
            0..45 => {
                let mut data = io.arena().take(blocks * 4096)?;
                self.version += 1;
                for (lba, block) in (slba..).zip(data.bytes_mut().chunks_mut(BLOCK_BYTES)) {
                    fill(block, lba, self.version);
                }
                let request = Request::Write {
                    nsid,
                    slba,
                    blocks,
                    fua,
                    data: data.freeze(),
                    tag: 0,
                };
                Some((request, Some(self.version)))
            }
            45..47 if facts.write_zeroes => {
                let deallocate = self.below(2) == 0;
                let request = Request::WriteZeroes {
                    nsid,
                    slba,
                    blocks,
                    deallocate,
                    fua,
                    tag: 0,
                };
                Some((request, None))
            }
            47..49 if facts.dataset_management => {
                let ranges = vec![(slba, blocks)];
                Some((Request::Deallocate { nsid, ranges }, None))
            }
            49..50 => Some((Request::Flush { nsid }, None)),
            _ => Some((self.read(io, slba, blocks)?, None)),
        }
    }

    fn read(&self, io: &dyn Driver, slba: u64, blocks: u32) -> Option<Request> {
        Some(Request::Read {
            nsid: self.options.nsid,
            slba,
            blocks,
            into: io.arena().take(blocks * 4096)?,
            tag: 0,
        })
    }

    fn submit(&mut self, io: &mut dyn Driver) {
        let Some(association) = self.association else {
            return;
        };
        let cells = self.versions.len() as u64 / CELL_BLOCKS;
        while self.initiator.has_room(association) {
            let (cell, made) = match self.stage {
                Stage::Working => {
                    let mut cell = self.below(cells);
                    while self.busy.contains_key(&cell) {
                        cell = (cell + 1) % cells;
                    }
                    (cell, self.request(io, cell))
                }
                Stage::Checking if self.next_check < cells => {
                    let cell = self.next_check;
                    if self.busy.contains_key(&cell) {
                        return;
                    }
                    self.next_check += 1;
                    let blocks = u32::try_from(CELL_BLOCKS).expect("32");
                    let read = self.read(io, cell * CELL_BLOCKS, blocks);
                    (cell, read.map(|request| (request, None)))
                }
                Stage::Checking if self.busy.is_empty() => return self.end(io),
                Stage::Checking | Stage::Connecting | Stage::Ending | Stage::Over => return,
            };
            let Some((request, version)) = made else {
                return;
            };
            self.busy.insert(cell, version);
            let taken = self.initiator.submit(io, association, cell, request);
            taken.expect("room was asked for");
        }
    }

    fn report(&self) -> String {
        let seconds = (self.ended_ns - self.began_ns) as f64 / 1e9;
        let Tally {
            writes,
            reads,
            flushes,
            zeroes,
            deallocates,
            written_bytes,
            read_bytes,
            wrong_blocks,
            failed,
            returned,
        } = &self.tally;
        let counters = self.initiator.counters();
        let (sends, receives) = (counters.sends, counters.receives);
        let (pdus_sent, staged_bytes) = (counters.pdus_sent, counters.staged_bytes);
        let problem = self.problem.as_deref().unwrap_or("");
        format!(
            "{{\"ok\":{},\"problem\":{problem:?},\"seconds\":{seconds:.2},\"writes\":{writes},\
             \"reads\":{reads},\"flushes\":{flushes},\"zeroes\":{zeroes},\
             \"deallocates\":{deallocates},\"written_bytes\":{written_bytes},\
             \"read_bytes\":{read_bytes},\"wrong_blocks\":{wrong_blocks},\"failed\":{failed},\
             \"returned\":{returned},\"lost\":{},\"sends\":{sends},\"receives\":{receives},\
             \"pdus_sent\":{pdus_sent},\"staged_bytes\":{staged_bytes}}}",
            problem.is_empty(),
            self.lost,
        )
    }
}

impl App for Verify {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        if completion.token.room == ROOM_END {
            assert!(matches!(completion.event, Event::Timer(_)));
            if self.options.loss {
                return self.problem(io, "the association was not lost in time".to_owned());
            }
            if self.stage == Stage::Working {
                self.stage = Stage::Checking;
            }
            return;
        }
        let mut events = std::mem::take(&mut self.events);
        self.initiator.on_completion(io, completion, &mut events);
        for event in events.drain(..) {
            self.on_event(io, event);
        }
        self.events = events;
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.submit(io);
        self.initiator.on_turn_end(io);
    }

    fn is_finished(&self) -> bool {
        self.stage == Stage::Over
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(text) => {
            eprintln!("initiator_verify: {text}");
            return ExitCode::from(2);
        }
    };
    let mut io = match UringDriver::new(UringConfig::default()) {
        Ok(io) => io,
        Err(error) => {
            eprintln!("initiator_verify: {error}");
            return ExitCode::from(2);
        }
    };
    let mut app = Verify::new(options);
    let (at, nqn) = (app.options.at, app.options.nqn.clone());
    app.association = Some(app.initiator.connect(&mut io, at, &nqn));
    io.run(&mut app);
    println!("{}", app.report());
    if app.problem.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

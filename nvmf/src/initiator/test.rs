//! The initiator over real sockets, against a model of a target that can also misbehave.

use super::*;
use crate::proto::status::Status;
use loopback::Server;
use model::{Knobs, Model};
use reactor::uring::{UringConfig, UringDriver};
use reactor::{App, ArenaConfig, Token};
use std::collections::BTreeMap;

mod io;
mod loopback;
mod loss;
mod model;

const ROOM: u8 = 3;
const WATCHDOG: u8 = 9;
const NQN: &str = "nqn.2026-01.io.ublkstor:storaged:test";

/// What the app of a world keeps between turns.
struct Inbox {
    initiator: Initiator,
    events: Vec<InitiatorEvent>,
    /// Our own target, where it is the other end.
    server: Option<Server>,
}

impl App for Inbox {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        assert_ne!(
            completion.token.room, WATCHDOG,
            "nothing happened for half a minute"
        );
        if let Some(server) = self
            .server
            .as_mut()
            .filter(|_| completion.token.room != ROOM)
        {
            return server.on_completion(io, completion);
        }
        self.initiator
            .on_completion(io, completion, &mut self.events);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.initiator.on_turn_end(io);
        if let Some(server) = &mut self.server {
            server.on_turn_end(io);
        }
    }

    fn is_finished(&self) -> bool {
        self.initiator.is_idle()
    }
}

/// A reactor with an initiator on it.
struct World {
    io: UringDriver,
    inbox: Inbox,
}

fn config() -> Config {
    let mut config = Config::new(ROOM, "nqn.2026-01.io.ublkstor:clientd:test".into(), [9; 16]);
    config.queue_depth = 32;
    config
}

impl World {
    fn new(config: Config) -> Self {
        let arena = ArenaConfig {
            slot_counts: [256, 64, 80],
            huge_pages: false,
        };
        let io = UringDriver::new(UringConfig {
            arena,
            ..UringConfig::default()
        })
        .unwrap();
        let initiator = Initiator::new(config);
        Self {
            io,
            inbox: Inbox {
                initiator,
                events: Vec::new(),
                server: None,
            },
        }
    }

    /// Connected to this model.
    fn ready(config: Config, model: &Model) -> (Self, AssociationId) {
        let mut world = Self::new(config);
        let id = world.connect(model);
        match world.next() {
            InitiatorEvent::Ready { association, .. } if association == id => (world, id),
            other => panic!("not ready: {other:?}"),
        }
    }

    fn connect(&mut self, model: &Model) -> AssociationId {
        self.inbox.initiator.connect(&mut self.io, model.at, NQN)
    }

    /// Turns until there is an event.
    fn next(&mut self) -> InitiatorEvent {
        let at_ns = self.io.now_ns() + 30_000_000_000;
        let token = Token {
            room: WATCHDOG,
            index: 0,
            value: 0,
        };
        let watchdog = self.io.arm(token, at_ns);
        // What was submitted outside of a turn.
        self.inbox.on_turn_end(&mut self.io);
        while self.inbox.events.is_empty() {
            self.io.turn(&mut self.inbox);
        }
        self.io.disarm(watchdog);
        self.inbox.events.remove(0)
    }

    fn submit(&mut self, to: AssociationId, user: u64, request: Request) {
        let taken = self.inbox.initiator.submit(&mut self.io, to, user, request);
        taken.unwrap_or_else(|request| panic!("refused: {request:?}"));
    }

    /// Submits one request and waits for it.
    fn ask(&mut self, to: AssociationId, request: Request) -> (Request, Result<Reply, Failure>) {
        self.submit(to, 7, request);
        match self.next() {
            InitiatorEvent::Done {
                association,
                user: 7,
                request,
                result,
            } => {
                assert_eq!(association, to);
                (request, result)
            }
            other => panic!("not done: {other:?}"),
        }
    }

    fn lost(&mut self) -> LostReason {
        match self.next() {
            InitiatorEvent::Lost { reason, .. } => reason,
            other => panic!("not lost: {other:?}"),
        }
    }

    /// A read request for this many blocks.
    fn read(&self, slba: u64, blocks: u32) -> Request {
        let into = self.io.arena().take(blocks * 4096).unwrap();
        Request::Read {
            nsid: 1,
            slba,
            blocks,
            into,
            tag: 0,
        }
    }

    /// A write request whose blocks all hold what `pattern` makes of the seed.
    fn write(&self, slba: u64, blocks: u32, seed: u64) -> Request {
        let mut data = self.io.arena().take(blocks * 4096).unwrap();
        for (at, block) in (slba..).zip(data.bytes_mut().chunks_mut(4096)) {
            block.copy_from_slice(&pattern(at, seed));
        }
        let data = data.freeze();
        Request::Write {
            nsid: 1,
            slba,
            blocks,
            fua: false,
            data,
            tag: 0,
        }
    }

    /// Ends the association and waits for everything to be back.
    fn end(mut self, id: AssociationId) {
        self.inbox.initiator.abort(&mut self.io, id);
        assert_eq!(self.lost(), LostReason::Aborted);
        assert!(self.inbox.initiator.is_idle());
        assert_eq!(self.io.arena().in_use_bytes(), 0, "windows were kept");
    }
}

/// Content of a block: tells its address and seed, and differs in every part.
fn pattern(lba: u64, seed: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    for (word, bytes) in (0u64..).zip(block.chunks_mut(8)) {
        let value = (lba << 20 ^ seed << 9 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    block
}

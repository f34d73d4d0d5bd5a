//! The driver against the running kernel.

mod bells;
mod devices;
mod files;
mod shutdown;
mod sockets;
mod timers;

use super::*;
use crate::arena::{Buf, BufMut};
use crate::driver::SEND_PARTS_MAX;

/// Takes what comes; tests wait for what they expect.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) arrived: VecDeque<Completion>,
    pub(super) finished: bool,
    pub(super) turn_ends: u64,
}

impl App for Inbox {
    fn on_completion(&mut self, _io: &mut dyn Driver, completion: Completion) {
        self.arrived.push_back(completion);
    }

    fn on_turn_end(&mut self, _io: &mut dyn Driver) {
        self.turn_ends += 1;
    }

    fn is_finished(&self) -> bool {
        self.finished
    }
}

/// A driver. Locked memory is counted per user: on a machine with many cores and a low limit, tests
/// wait for each other's.
pub(crate) fn driver(config: UringConfig) -> UringDriver {
    let patience = Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match UringDriver::new(config) {
            Err(SetupError::MemlockTooLow { .. }) if Instant::now() < patience => {
                std::thread::yield_now();
            }
            made => return made.unwrap(),
        }
    }
}

pub(super) struct Bench {
    pub(super) io: UringDriver,
    pub(super) inbox: Inbox,
}

/// Small enough for an unprivileged user's locked-memory limit, several times over.
pub(super) fn config() -> UringConfig {
    UringConfig {
        sq_entries: 32,
        ops_max: 512,
        handles_max: 128,
        timers_max: 64,
        spin_us: 0,
        registered_files: true,
        arena: ArenaConfig {
            slot_counts: [32, 8, 4],
            huge_pages: false,
        },
        drain_ms: 5000,
    }
}

pub(super) fn token(value: u64) -> Token {
    Token {
        room: 1,
        index: 2,
        value,
    }
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    pub(super) fn with(config: UringConfig) -> Self {
        Self {
            io: driver(config),
            inbox: Inbox::default(),
        }
    }

    /// Turns until the completion of that token arrives; others stay for later.
    pub(super) fn wait(&mut self, value: u64) -> Event {
        loop {
            let found = self
                .inbox
                .arrived
                .iter()
                .position(|c| c.token == token(value));
            if let Some(index) = found {
                return self.inbox.arrived.remove(index).unwrap().event;
            }
            self.io.turn(&mut self.inbox);
        }
    }

    pub(super) fn result(&mut self, value: u64) -> (Op, Result<Done, Errno>) {
        match self.wait(value) {
            Event::Op { op, result } => (op, result),
            other @ (Event::Timer(_) | Event::Rung) => panic!("{other:?} under token {value}"),
        }
    }

    /// Submits and waits.
    pub(super) fn run(&mut self, op: Op) -> (Op, Result<Done, Errno>) {
        const VALUE: u64 = u64::MAX;
        self.io.submit(token(VALUE), op);
        self.result(VALUE)
    }

    pub(super) fn buf(&self, bytes: &[u8]) -> Buf {
        self.window(bytes.len(), |into| into.copy_from_slice(bytes))
            .freeze()
    }

    pub(super) fn window(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> BufMut {
        let mut window = self.io.arena().take(u32::try_from(len).unwrap()).unwrap();
        fill(window.bytes_mut());
        window
    }

    /// A connected pair: (the connecting end, the accepting end).
    pub(super) fn pair(&mut self) -> (Handle, Handle) {
        let listener = self.io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = self.io.local_addr(listener).unwrap();
        let ends = self.pair_through(listener, to);
        self.run(Op::Close {
            handle: listener,
            reset: false,
        })
        .1
        .unwrap();
        ends
    }

    pub(super) fn pair_through(&mut self, listener: Handle, to: SocketAddr) -> (Handle, Handle) {
        self.io.submit(token(u64::MAX - 1), Op::Accept { listener });
        let near = socket(self.run(Op::Connect { to }).1);
        let far = socket(self.result(u64::MAX - 1).1);
        assert_eq!(near.1, to);
        (near.0, far.0)
    }
}

pub(super) fn socket(result: Result<Done, Errno>) -> (Handle, SocketAddr) {
    match result.unwrap() {
        Done::Socket { handle, peer } => (handle, peer),
        other @ (Done::Bytes(_) | Done::Value(_) | Done::Nothing) => panic!("{other:?}"),
    }
}

pub(super) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + (i >> 8) * 7 + seed) % 251).unwrap())
        .collect()
}

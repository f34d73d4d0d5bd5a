//! The `uring` driver: ops become SQEs, CQEs become completions.
//!
//! One `io_uring_enter` per turn submits what the last turn queued, sleeps until something
//! completes or the nearest timer is due, and runs the kernel's deferred work. Ops live in a slab
//! from submission to their last CQE, and own whatever memory the kernel may touch meanwhile.

mod area;
mod bell;
mod file;
mod flight;
mod handles;
mod ops;
mod ring;
mod shutdown;
mod sleep;
mod socket;
#[cfg(test)]
pub(crate) mod test;

use crate::app::App;
use crate::arena::{Arena, ArenaConfig};
use crate::counters::Counters;
use crate::driver::{
    Completion, Done, Doorbell, Driver, Event, FileFacts, FileKind, Handle, Op, OpId, OpenFile,
    TimerId, Token,
};
use crate::error::{Errno, SetupError};
use crate::probe::{self, Features};
use crate::slab::{Key, Slab};
use crate::timer::Timers;
use area::AreaPool;
use bell::Bells;
use flight::{Flight, Place};
use handles::{Handles, Kind};
use ring::Ring;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// `user_data` of cancel requests, whose own results say nothing we need.
const CANCEL_TAG: u64 = Key {
    index: u32::MAX,
    turn: 0,
}
.to_u64();
/// `user_data` of the poll on the doorbells' eventfd.
const BELL_TAG: u64 = Key {
    index: u32::MAX,
    turn: 1,
}
.to_u64();

/// Sizes of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// Entries of the submission queue (one turn's submissions; more cost an extra call).
    pub sq_entries: u32,
    /// Most ops in flight. Owners' own bounds must add up to less.
    pub ops_max: u32,
    /// Most open handles.
    pub handles_max: u32,
    /// Most armed timers.
    pub timers_max: u32,
    /// How long to look for completions before sleeping, in microseconds, if the last wait was about
    /// as short. Zero: sleep at once. An idle reactor sleeps either way.
    pub spin_us: u32,
    /// Name files by registered slot where the kernel is up to it. Off, every kernel is used like
    /// one before 6.15.
    pub registered_files: bool,
    /// The buffer arena.
    pub arena: ArenaConfig,
    /// How long to wait at shutdown for cancelled ops to come back, in milliseconds.
    pub drain_ms: u32,
}

impl Default for UringConfig {
    /// A data thread of a daemon.
    fn default() -> Self {
        Self {
            sq_entries: 512,
            ops_max: 16 * 1024,
            handles_max: 4096,
            timers_max: 64 * 1024,
            spin_us: 0,
            registered_files: true,
            arena: ArenaConfig::default(),
            drain_ms: 5000,
        }
    }
}

/// The driver. Stays on the thread that made it.
pub struct UringDriver {
    // Dropped first: the ring must not outlive what its registrations point to.
    ring: Ring,
    handles: Handles,
    ops: Slab<Flight>,
    areas: AreaPool,
    arena: Arena,
    arena_base: usize,
    timers: Timers,
    bells: Bells,
    bell_armed: bool,
    /// Ops whose results are decided, in the order of delivery.
    ready: VecDeque<(Key, Result<Done, Errno>)>,
    origin: Instant,
    now_ns: u64,
    /// How long the last wait took.
    waited_ns: u64,
    ops_total: u64,
    turns: u64,
    continued: u64,
    stale_cqes: u64,
    wakeups: u64,
    /// Shutting down: new ops are refused.
    draining: bool,
    config: UringConfig,
}

impl std::fmt::Debug for UringDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringDriver")
            .field("ops", &self.ops.len())
            .field("handles", &self.handles.0.len())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl UringDriver {
    /// Probes the kernel, makes the ring, maps and registers the arena.
    ///
    /// # Errors
    /// See [`SetupError`]: each text says what was found, what is needed and what to do.
    pub fn new(config: UringConfig) -> Result<Self, SetupError> {
        // Each op has at most one CQE outstanding and one cancel, so the queue cannot overflow
        // (and if it did, the kernel keeps the rest).
        let cq_entries = config.ops_max.saturating_mul(2).next_power_of_two();
        let mut ring = Ring::new(
            config.sq_entries,
            cq_entries.max(config.sq_entries),
            config.spin_us > 0,
        )?;
        let arena = Arena::new(&config.arena)?;
        ring.register_arena(&arena)?;
        if config.registered_files {
            ring.register_files(config.handles_max);
        }
        let arena_base = arena.as_iovec().iov_base.addr();
        Ok(Self {
            ring,
            handles: Handles(Slab::new(config.handles_max)),
            ops: Slab::new(config.ops_max),
            areas: AreaPool::new(),
            arena,
            arena_base,
            timers: Timers::new(config.timers_max),
            bells: Bells::new().map_err(|errno| SetupError::Call {
                what: "make an eventfd for doorbells".to_owned(),
                errno: errno.into(),
            })?,
            bell_armed: false,
            ready: VecDeque::new(),
            origin: Instant::now(),
            now_ns: 0,
            waited_ns: u64::MAX,
            ops_total: 0,
            turns: 0,
            continued: 0,
            stale_cqes: 0,
            wakeups: 0,
            draining: false,
            config,
        })
    }

    /// What the kernel can do, for the start-up log and `doctor`.
    pub fn features(&self) -> &Features {
        &self.ring.features
    }

    /// Turns until the app is finished; then cancels what is in flight, delivers its completions
    /// and returns. Ops submitted meanwhile end at once with [`Errno::CANCELED`].
    pub fn run(&mut self, app: &mut (impl App + ?Sized)) {
        while !app.is_finished() {
            self.turn(app);
        }
        self.drain(app);
    }

    /// One turn: sleeps until something happens, then delivers it.
    pub fn turn(&mut self, app: &mut (impl App + ?Sized)) {
        self.turn_within(app, None);
    }

    /// One turn that sleeps `at_most_ns` at most.
    fn turn_within(&mut self, app: &mut (impl App + ?Sized), at_most_ns: Option<u64>) {
        self.turns += 1;
        self.enter(at_most_ns);
        self.ring.reap();
        for _ in 0..self.ring.arrived.len() {
            let cqe = self.ring.arrived.pop_front().expect("counted");
            if let Some(completion) = self.on_cqe(cqe) {
                app.on_completion(self, completion);
            }
        }
        // Only what is there now: a result decided by these handlers waits for the next turn, so
        // that an app which answers every failure with a new attempt cannot starve the ring.
        for _ in 0..self.ready.len() {
            let (key, result) = self.ready.pop_front().expect("counted");
            let completion = self.retire(key, result);
            app.on_completion(self, completion);
        }
        for index in 0..self.bells.len() {
            if let Some(token) = self.bells.take(index) {
                app.on_completion(
                    self,
                    Completion {
                        token,
                        event: Event::Rung,
                    },
                );
            }
        }
        while let Some((timer, token)) = self.timers.pop_due(self.now_ns) {
            app.on_completion(
                self,
                Completion {
                    token,
                    event: Event::Timer(timer),
                },
            );
        }
        app.on_turn_end(self);
    }

    fn clock_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).expect("up for less than 585 years")
    }
}

impl Driver for UringDriver {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn counters(&self) -> Counters {
        Counters {
            turns: self.turns,
            stale_cqes: self.stale_cqes,
            wakeups: self.wakeups,
            ops: self.ops_total,
            continued: self.continued,
            ..self.ring.counters
        }
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn submit(&mut self, token: Token, op: Op) -> OpId {
        self.ops_total += 1;
        let flight = Flight {
            token,
            op,
            place: Place::Kernel,
            stopping: false,
            moved_bytes: 0,
            direct: false,
            discard_command: false,
            area: None,
            connecting: None,
        };
        let Ok(key) = self.ops.insert(flight) else {
            panic!("reactor: more than {} ops in flight", self.config.ops_max)
        };
        if let Err(errno) = self.start(key) {
            self.decide(key, Err(errno));
        }
        OpId {
            index: key.index,
            turn: key.turn,
        }
    }

    fn cancel(&mut self, op: OpId) {
        self.cancel_key(Key {
            index: op.index,
            turn: op.turn,
        });
    }

    fn arm(&mut self, token: Token, at_ns: u64) -> TimerId {
        // Never in the past: a timer armed by a timer waits for the next turn.
        self.timers.arm(token, at_ns.max(self.now_ns + 1))
    }

    fn disarm(&mut self, timer: TimerId) {
        self.timers.disarm(timer);
    }

    fn listen(&mut self, at: SocketAddr) -> Result<Handle, SetupError> {
        let fd = socket::listen(&at)?;
        self.adopt_as(fd, Kind::Listener)
            .map_err(|errno| SetupError::Call {
                what: format!("listen on {at}"),
                errno,
            })
    }

    fn local_addr(&self, handle: Handle) -> Option<SocketAddr> {
        socket::local_addr(self.handles.get(handle)?.fd.as_fd())
    }

    fn open(&mut self, path: &Path, how: OpenFile) -> Result<(Handle, FileFacts), SetupError> {
        let (fd, facts) = file::open(path, how)?;
        let discard_command = self.ring.features.has(probe::BLOCK_DISCARD);
        let kind = match facts.kind {
            FileKind::File => Kind::File {
                direct: facts.direct,
            },
            FileKind::BlockDevice => Kind::BlockDevice { discard_command },
        };
        let handle = self.adopt_as(fd, kind).map_err(|errno| SetupError::Call {
            what: format!("open {}", path.display()),
            errno,
        })?;
        Ok((handle, facts))
    }

    fn size_bytes(&self, file: Handle) -> Result<u64, Errno> {
        let open = self.handles.get(file).ok_or(Errno::BAD_HANDLE)?;
        file::size(open.fd.as_fd()).map_err(Errno::from)
    }

    fn adopt(&mut self, fd: OwnedFd) -> Result<Handle, SetupError> {
        self.adopt_as(fd, Kind::Adopted)
            .map_err(|errno| SetupError::Call {
                what: "adopt a descriptor".to_owned(),
                errno,
            })
    }

    fn doorbell(&mut self, token: Token) -> Result<Doorbell, SetupError> {
        Ok(self.bells.add(token))
    }
}

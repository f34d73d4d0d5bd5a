//! Random use under both drivers: whatever is submitted, cancelled and closed in whatever order,
//! every op completes exactly once and gives its buffers back.

use crate::sim::{Prng, SimConfig, SimWorld};
use crate::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

const ACTIONS: u32 = 1000;
const FILE_BYTES: u64 = 1 << 20;
/// The token of the timer that keeps things going.
const TICK: u64 = u64::MAX;

struct Socket {
    handle: Handle,
    sending: bool,
    receiving: bool,
}

struct Chaos {
    prng: Prng,
    arena: Arena,
    listener: Handle,
    to: SocketAddr,
    file: Handle,
    sockets: Vec<Socket>,
    /// Submitted and not completed.
    live: BTreeMap<u64, OpId>,
    submitted: u64,
    actions_left: u32,
    closing: bool,
    /// How ops ended: well, cancelled, otherwise.
    ends: [u32; 3],
}

impl Chaos {
    fn start(io: &mut dyn Driver, path: &Path, seed: u64) -> Self {
        let listener = io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let how = OpenFile {
            exclusive: true,
            writable: true,
            direct: true,
            create_bytes: Some(FILE_BYTES),
        };
        let file = io.open(path, how).unwrap().0;
        let mut this = Self {
            prng: Prng::new(seed),
            arena: io.arena().clone(),
            listener,
            to: io.local_addr(listener).unwrap(),
            file,
            sockets: Vec::new(),
            live: BTreeMap::new(),
            submitted: 0,
            actions_left: ACTIONS,
            closing: false,
            ends: [0; 3],
        };
        this.submit(io, Op::Accept { listener });
        Self::tick(io);
        this
    }

    fn tick(io: &mut dyn Driver) {
        let token = Token {
            room: 0,
            index: 0,
            value: TICK,
        };
        io.arm(token, io.now_ns() + 20_000);
    }

    fn submit(&mut self, io: &mut dyn Driver, op: Op) {
        let value = self.submitted;
        self.submitted += 1;
        let token = Token {
            room: 0,
            index: 0,
            value,
        };
        let id = io.submit(token, op);
        assert!(self.live.insert(value, id).is_none());
    }

    fn window(&mut self) -> Option<BufMut> {
        let pages = self.prng.within(1, 4);
        self.arena.take(u32::try_from(pages * 4096).unwrap())
    }

    fn act(&mut self, io: &mut dyn Driver) {
        let count = self.sockets.len() as u64;
        let at = usize::try_from(self.prng.below(count.max(1))).unwrap();
        let offset_bytes = self.prng.below(FILE_BYTES / 4096 - 8) * 4096;
        let file = self.file;
        match self.prng.below(16) {
            0 | 1 if count < 20 => self.submit(io, Op::Connect { to: self.to }),
            2..=4 if count > 0 => self.send(io, at),
            5..=7 if count > 0 => self.recv(io, at),
            8 if count > 0 => {
                let handle = self.sockets.swap_remove(at).handle;
                let reset = self.prng.chance(1, 2);
                self.submit(io, Op::Close { handle, reset });
            }
            9 | 10 if !self.live.is_empty() => {
                let nth = self.prng.below(self.live.len() as u64);
                let id = self.live.values().nth(usize::try_from(nth).unwrap());
                io.cancel(*id.unwrap());
            }
            11 | 12 => {
                if let Some(into) = self.window() {
                    self.submit(
                        io,
                        Op::Read {
                            file,
                            offset_bytes,
                            into,
                        },
                    );
                }
            }
            13 | 14 => {
                let durable = self.prng.chance(1, 8);
                if let Some(window) = self.window() {
                    let from = window.freeze();
                    self.submit(
                        io,
                        Op::Write {
                            file,
                            offset_bytes,
                            from,
                            durable,
                        },
                    );
                }
            }
            15 if self.prng.chance(1, 4) => self.submit(io, Op::Flush { file }),
            _ => {}
        }
    }

    fn send(&mut self, io: &mut dyn Driver, at: usize) {
        if self.sockets[at].sending {
            return;
        }
        let Some(window) = self.window() else { return };
        let whole = window.freeze();
        let parts = (0..self.prng.within(1, 20))
            .map(|_| whole.clone())
            .collect();
        let socket = self.sockets[at].handle;
        self.sockets[at].sending = true;
        self.submit(io, Op::Send { socket, parts });
    }

    fn recv(&mut self, io: &mut dyn Driver, at: usize) {
        if self.sockets[at].receiving {
            return;
        }
        let Some(first) = self.window() else { return };
        let second = if self.prng.chance(1, 2) {
            self.window()
        } else {
            None
        };
        let socket = self.sockets[at].handle;
        self.sockets[at].receiving = true;
        self.submit(
            io,
            Op::Recv {
                socket,
                into: (first, second),
            },
        );
    }

    fn on_op(&mut self, io: &mut dyn Driver, op: &Op, result: Result<Done, Errno>) {
        self.ends[match result {
            Ok(_) => 0,
            Err(Errno::CANCELED) => 1,
            Err(_) => 2,
        }] += 1;
        if let Ok(Done::Socket { handle, .. }) = result {
            self.sockets.push(Socket {
                handle,
                sending: false,
                receiving: false,
            });
        }
        let find = |socket: Handle| move |s: &&mut Socket| s.handle == socket;
        match op {
            Op::Accept { listener } if !self.closing => {
                self.submit(
                    io,
                    Op::Accept {
                        listener: *listener,
                    },
                );
            }
            Op::Send { socket, .. } => {
                if let Some(socket) = self.sockets.iter_mut().find(find(*socket)) {
                    socket.sending = false;
                }
            }
            Op::Recv { socket, .. } => {
                if let Some(socket) = self.sockets.iter_mut().find(find(*socket)) {
                    socket.receiving = false;
                }
            }
            Op::Accept { .. }
            | Op::Connect { .. }
            | Op::Read { .. }
            | Op::Write { .. }
            | Op::Flush { .. }
            | Op::Discard { .. }
            | Op::Command { .. }
            | Op::Close { .. } => {}
        }
        if self.closing {
            self.close_all(io);
        }
    }

    fn close_all(&mut self, io: &mut dyn Driver) {
        for socket in std::mem::take(&mut self.sockets) {
            self.submit(
                io,
                Op::Close {
                    handle: socket.handle,
                    reset: true,
                },
            );
        }
    }
}

impl App for Chaos {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        match completion.event {
            Event::Op { op, result } => {
                let known = self.live.remove(&completion.token.value);
                assert!(known.is_some(), "{op:?} completed twice: {result:?}");
                self.on_op(io, &op, result);
            }
            Event::Timer(_) => {
                for _ in 0..self.prng.below(12).min(self.actions_left.into()) {
                    self.actions_left -= 1;
                    self.act(io);
                }
                if self.actions_left > 0 {
                    return Self::tick(io);
                }
                self.closing = true;
                for handle in [self.listener, self.file] {
                    self.submit(
                        io,
                        Op::Close {
                            handle,
                            reset: false,
                        },
                    );
                }
                self.close_all(io);
            }
            Event::Rung => panic!("nobody rang"),
        }
    }

    fn on_turn_end(&mut self, _io: &mut dyn Driver) {}

    fn is_finished(&self) -> bool {
        self.closing && self.live.is_empty()
    }
}

impl Chaos {
    fn check(&self) {
        assert_eq!(self.arena.in_use_bytes(), 0);
        // The run was worth something.
        assert!(
            self.submitted > 300 && self.ends.iter().all(|n| *n > 0),
            "{:?}",
            self.ends
        );
    }
}

fn arena() -> ArenaConfig {
    ArenaConfig {
        slot_counts: [48, 16, 4],
        huge_pages: false,
    }
}

fn under_uring(seed: u64, registered_files: bool) {
    let binary = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
    let config = UringConfig {
        sq_entries: 8,
        ops_max: 1024,
        registered_files,
        arena: arena(),
        ..UringConfig::default()
    };
    let mut io = crate::uring::test::driver(config);
    let mut app = Chaos::start(&mut io, &folder.path().join("backing"), seed);
    io.run(&mut app);
    app.check();
    assert_eq!(io.counters().stale_cqes, 0);
}

#[test]
fn every_op_completes_once_under_uring() {
    for seed in 0..2 {
        under_uring(seed, true);
    }
}

#[test]
fn every_op_completes_once_where_files_are_not_registered() {
    under_uring(7, false);
}

#[test]
fn every_op_completes_once_in_simulated_worlds() {
    for seed in 0..8 {
        let mut world = SimWorld::new(SimConfig {
            arena: arena(),
            ..SimConfig::seeded(seed)
        });
        let node = world.add_node();
        let app = world.boot(node, |io| Chaos::start(io, Path::new("/backing"), seed));
        assert!(world.run_to(100_000_000_000, |world| !world.is_running(node)));
        app.borrow().check();
    }
}

//! One scripted program under both drivers: what each of its actors experiences must be the same.

use crate::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SERVER: u8 = 1;
const CLIENT: u8 = 2;
const DISK: u8 = 3;
const CLOCK: u8 = 4;
const VISITOR: u8 = 5;

/// Bytes that travel to the server and back.
const ECHO_BYTES: usize = 300_000;
const PIECE_BYTES: usize = 100_000;

/// Actors that do not wait for each other, one room each.
struct Script {
    log: BTreeMap<u8, Vec<String>>,
    path: PathBuf,
    listener: Option<Handle>,
    server: Option<Handle>,
    client: Option<Handle>,
    file: Option<Handle>,
    echoed: Vec<u8>,
    sent_bytes: usize,
    disk_step: u64,
    timers_left: u32,
    open_actors: u32,
}

fn token(room: u8, value: u64) -> Token {
    Token {
        room,
        index: 0,
        value,
    }
}

fn payload() -> Vec<u8> {
    (0..ECHO_BYTES)
        .map(|i| u8::try_from(i % 253).unwrap())
        .collect()
}

fn filled(io: &dyn Driver, bytes: &[u8]) -> BufMut {
    let mut window = io
        .arena()
        .take(u32::try_from(bytes.len()).unwrap())
        .unwrap();
    window.bytes_mut().copy_from_slice(bytes);
    window
}

fn socket_of(result: &Result<Done, Errno>) -> Handle {
    match result {
        Ok(Done::Socket { handle, .. }) => *handle,
        other => panic!("{other:?}"),
    }
}

impl Script {
    fn start(io: &mut dyn Driver, path: &Path) -> Self {
        let listener = io.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = io.local_addr(listener).unwrap();
        io.submit(token(SERVER, 0), Op::Accept { listener });
        io.submit(token(CLIENT, 0), Op::Connect { to });
        let mut this = Self {
            log: BTreeMap::new(),
            path: path.to_owned(),
            listener: Some(listener),
            server: None,
            client: None,
            file: None,
            echoed: Vec::new(),
            sent_bytes: 0,
            disk_step: 0,
            timers_left: 3,
            open_actors: 5,
        };
        this.next_disk(io);
        let now_ns = io.now_ns();
        for (value, after_ns) in [
            (1, 3_000_000),
            (2, 1_000_000),
            (3, 2_000_000),
            (4, 1_000_000),
        ] {
            let timer = io.arm(token(CLOCK, value), now_ns + after_ns);
            if value == 3 {
                io.disarm(timer);
            }
        }
        this
    }

    fn note(&mut self, room: u8, line: String) {
        self.log.entry(room).or_default().push(line);
    }

    /// Accept, echo until the stream ends, close, close the listener.
    fn on_server(&mut self, io: &mut dyn Driver, op: Op, result: Result<Done, Errno>) {
        match (op, result) {
            (Op::Accept { .. }, result) => {
                self.server = Some(socket_of(&result));
                self.note(SERVER, "accepted".to_owned());
                self.server_recv(io);
            }
            (
                Op::Recv {
                    into: (mut first, second),
                    ..
                },
                Ok(Done::Bytes(count)),
            ) if count > 0 => {
                let in_first = count.min(first.len_bytes());
                let mut parts = vec![first.split_to(in_first).freeze()];
                if let Some(mut second) = second.filter(|_| count > in_first) {
                    parts.push(second.split_to(count - in_first).freeze());
                }
                let socket = self.server.unwrap();
                io.submit(token(SERVER, 2), Op::Send { socket, parts });
            }
            (Op::Send { parts, .. }, result) => {
                let bytes: u32 = parts.iter().map(Buf::len_bytes).sum();
                assert_eq!(result, Ok(Done::Bytes(bytes)));
                self.server_recv(io);
            }
            (Op::Recv { .. }, end) => {
                self.note(SERVER, format!("stream ended {end:?}"));
                let handle = self.server.take().unwrap();
                io.submit(
                    token(SERVER, 3),
                    Op::Close {
                        handle,
                        reset: false,
                    },
                );
            }
            (Op::Close { .. }, result) => {
                self.note(SERVER, format!("closed {result:?}"));
                self.open_actors -= 1;
                self.visit(io);
            }
            other => panic!("{other:?}"),
        }
    }

    fn server_recv(&mut self, io: &mut dyn Driver) {
        let windows = (io.arena().take(5000).unwrap(), io.arena().take(100_000));
        let socket = self.server.unwrap();
        io.submit(
            token(SERVER, 1),
            Op::Recv {
                socket,
                into: windows,
            },
        );
    }

    /// Connect, send all in pieces while receiving it back, compare, close.
    fn on_client(&mut self, io: &mut dyn Driver, op: Op, result: Result<Done, Errno>) {
        match (op, result) {
            (Op::Connect { .. }, result) => {
                self.client = Some(socket_of(&result));
                self.note(CLIENT, "connected".to_owned());
                self.client_send(io);
                self.client_recv(io);
            }
            (Op::Send { .. }, result) => {
                self.note(CLIENT, format!("sent {result:?}"));
                self.client_send(io);
            }
            (
                Op::Recv {
                    into: (window, _), ..
                },
                Ok(Done::Bytes(count)),
            ) if count > 0 => {
                self.echoed
                    .extend_from_slice(&window.bytes()[..count as usize]);
                if self.echoed.len() < ECHO_BYTES {
                    return self.client_recv(io);
                }
                assert!(self.echoed == payload(), "the echo differs");
                self.note(CLIENT, "echo complete".to_owned());
                let handle = self.client.take().unwrap();
                io.submit(
                    token(CLIENT, 3),
                    Op::Close {
                        handle,
                        reset: false,
                    },
                );
            }
            (Op::Close { .. }, result) => {
                self.note(CLIENT, format!("closed {result:?}"));
                self.open_actors -= 1;
            }
            other => panic!("{other:?}"),
        }
    }

    fn client_send(&mut self, io: &mut dyn Driver) {
        if self.sent_bytes == ECHO_BYTES {
            return;
        }
        let piece = &payload()[self.sent_bytes..self.sent_bytes + PIECE_BYTES];
        self.sent_bytes += PIECE_BYTES;
        let head = filled(io, &piece[..72]).freeze();
        let tail = filled(io, &piece[72..]).freeze();
        let socket = self.client.unwrap();
        io.submit(
            token(CLIENT, 1),
            Op::Send {
                socket,
                parts: vec![head, tail],
            },
        );
    }

    fn client_recv(&mut self, io: &mut dyn Driver) {
        let socket = self.client.unwrap();
        let window = io.arena().take(9999).unwrap();
        io.submit(
            token(CLIENT, 2),
            Op::Recv {
                socket,
                into: (window, None),
            },
        );
    }

    /// After the echo: what a closed listener, an aborted peer and a cancelled receive look like.
    fn visit(&mut self, io: &mut dyn Driver) {
        let listener = self.listener.unwrap();
        let to = io.local_addr(listener).unwrap();
        io.submit(token(VISITOR, 0), Op::Accept { listener });
        io.submit(token(VISITOR, 1), Op::Connect { to });
    }

    fn on_visitor(&mut self, io: &mut dyn Driver, value: u64, op: Op, result: Result<Done, Errno>) {
        if matches!(op, Op::Accept { .. }) && result.is_ok() {
            self.server = Some(socket_of(&result));
        } else if matches!(op, Op::Connect { .. }) && result.is_ok() {
            self.client = Some(socket_of(&result));
        } else {
            self.note(
                VISITOR + u8::try_from(value).unwrap(),
                format!("{result:?}"),
            );
        }
        match value {
            0 | 1 => {
                let (Some(server), Some(client)) = (self.server, self.client) else {
                    return;
                };
                let into = (io.arena().take(10).unwrap(), None);
                let op = io.submit(
                    token(VISITOR, 2),
                    Op::Recv {
                        socket: client,
                        into,
                    },
                );
                io.cancel(op);
                let into = (io.arena().take(10).unwrap(), None);
                io.submit(
                    token(VISITOR, 3),
                    Op::Recv {
                        socket: server,
                        into,
                    },
                );
            }
            2 => {
                let handle = self.client.unwrap();
                io.submit(
                    token(VISITOR, 4),
                    Op::Close {
                        handle,
                        reset: true,
                    },
                );
            }
            3 => {
                let handle = self.server.unwrap();
                io.submit(
                    token(VISITOR, 5),
                    Op::Close {
                        handle,
                        reset: false,
                    },
                );
                let listener = self.listener.unwrap();
                io.submit(token(VISITOR, 6), Op::Accept { listener });
                let close = Op::Close {
                    handle: listener,
                    reset: false,
                };
                io.submit(token(VISITOR, 7), close);
                // Answered at once, and only noted.
                io.submit(token(VISITOR, 8), Op::Accept { listener });
            }
            7 => self.open_actors -= 1,
            _ => {}
        }
    }

    /// Create, write, flush, read, read past the end, discard, close, use after close.
    fn next_disk(&mut self, io: &mut dyn Driver) {
        let step = self.disk_step;
        self.disk_step += 1;
        if step == 0 {
            let how = OpenFile {
                exclusive: true,
                writable: true,
                direct: true,
                create_bytes: Some(64 * 1024),
            };
            let (file, facts) = io.open(&self.path, how).unwrap();
            let FileFacts {
                kind,
                size_bytes,
                volatile_cache,
                ..
            } = facts;
            self.note(DISK, format!("{kind:?} {size_bytes} {volatile_cache}"));
            let again = io.open(&self.path, how).unwrap_err();
            assert_eq!(io.size_bytes(file), Ok(size_bytes));
            assert!(
                again.to_string().contains("another process has it open"),
                "{again}"
            );
            self.file = Some(file);
        }
        let file = self.file.unwrap();
        let window = |len| io.arena().take(len).unwrap();
        let bytes = |seed: u8| filled(io, &[seed; 8192]).freeze();
        let op = match step {
            0 => Op::Write {
                file,
                offset_bytes: 4096,
                from: bytes(7),
                durable: false,
            },
            1 => Op::Write {
                file,
                offset_bytes: 8192,
                from: bytes(9),
                durable: true,
            },
            2 | 6 => Op::Flush { file },
            3 => Op::Read {
                file,
                offset_bytes: 0,
                into: window(20_480),
            },
            4 => Op::Read {
                file,
                offset_bytes: 60 * 1024,
                into: window(8192),
            },
            5 => Op::Discard {
                file,
                offset_bytes: 0,
                len_bytes: 8192,
            },
            7 => Op::Read {
                file,
                offset_bytes: 4096,
                into: window(8192),
            },
            8 => Op::Close {
                handle: file,
                reset: false,
            },
            9 => Op::Flush { file },
            _ => return self.open_actors -= 1,
        };
        io.submit(token(DISK, step), op);
    }

    fn on_disk(&mut self, io: &mut dyn Driver, op: Op, result: Result<Done, Errno>) {
        let mut line = format!("step {} {result:?}", self.disk_step - 1);
        if let (Op::Read { into, .. }, Ok(Done::Bytes(count))) = (&op, &result) {
            let firsts = into.bytes()[..*count as usize]
                .chunks(4096)
                .map(|c| (c[0], c[c.len() - 1]));
            line.push_str(&format!(" {:?}", firsts.collect::<Vec<_>>()));
        }
        self.note(DISK, line);
        self.next_disk(io);
    }
}

impl App for Script {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        let Token { room, value, .. } = completion.token;
        match (room, completion.event) {
            (SERVER, Event::Op { op, result }) => self.on_server(io, op, result),
            (CLIENT, Event::Op { op, result }) => self.on_client(io, op, result),
            (DISK, Event::Op { op, result }) => self.on_disk(io, op, result),
            (VISITOR, Event::Op { op, result }) => self.on_visitor(io, value, op, result),
            (CLOCK, Event::Timer(_)) => {
                self.note(CLOCK, format!("timer {value}"));
                self.timers_left -= 1;
                if self.timers_left == 0 {
                    self.open_actors -= 1;
                }
            }
            (_, event) => panic!("{event:?} in room {room}"),
        }
    }

    fn on_turn_end(&mut self, _io: &mut dyn Driver) {}

    fn is_finished(&self) -> bool {
        self.open_actors == 0
    }
}

const ARENA: ArenaConfig = ArenaConfig {
    slot_counts: [16, 16, 8],
    huge_pages: false,
};

fn under_uring() -> BTreeMap<u8, Vec<String>> {
    let binary = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
    let config = UringConfig {
        ops_max: 256,
        arena: ARENA,
        ..UringConfig::default()
    };
    let mut io = crate::uring::test::driver(config);
    let mut script = Script::start(&mut io, &folder.path().join("backing"));
    io.run(&mut script);
    script.log
}

fn under_sim(seed: u64) -> BTreeMap<u8, Vec<String>> {
    let mut world = sim::SimWorld::new(sim::SimConfig {
        arena: ARENA,
        ..sim::SimConfig::seeded(seed)
    });
    let node = world.add_node();
    let script = world.boot(node, |io| Script::start(io, Path::new("/backing")));
    assert!(world.run_to(10_000_000_000, |world| !world.is_running(node)));
    std::mem::take(&mut script.borrow_mut().log)
}

#[test]
fn a_program_experiences_the_same_under_uring_and_in_every_simulated_world() {
    let real = under_uring();
    assert_eq!(real[&CLOCK], ["timer 2", "timer 4", "timer 1"]);
    assert!(real[&CLIENT].contains(&"echo complete".to_owned()));
    for seed in 0..25 {
        assert_eq!(under_sim(seed), real, "seed {seed}");
    }
}

use super::*;
use crate::driver::{Done, Handle, OpenFile};
use crate::error::Errno;
use std::net::SocketAddr;

const PORT: u16 = 4420;
const SECOND: u64 = 1_000_000_000;

/// Echoes everything, on any number of connections.
struct Server;

impl Server {
    fn start(io: &mut dyn Driver) -> Self {
        let listener = io.listen(SocketAddr::from(([0, 0, 0, 0], PORT))).unwrap();
        io.submit(token(0), Op::Accept { listener });
        Self
    }

    fn recv(io: &mut dyn Driver, socket: Handle) {
        let into = (io.arena().take(4096).unwrap(), None);
        io.submit(token(1), Op::Recv { socket, into });
    }
}

impl App for Server {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        let Event::Op { op, result } = completion.event else {
            return;
        };
        match (op, result) {
            (Op::Accept { listener }, Ok(Done::Socket { handle, .. })) => {
                Self::recv(io, handle);
                io.submit(token(0), Op::Accept { listener });
            }
            (Op::Recv { socket, into }, Ok(Done::Bytes(count))) if count > 0 => {
                let mut window = into.0;
                let parts = vec![window.split_to(count).freeze()];
                io.submit(token(2), Op::Send { socket, parts });
            }
            (Op::Send { socket, .. }, Ok(_)) => Self::recv(io, socket),
            (Op::Recv { socket, .. } | Op::Send { socket, .. }, _) => {
                let close = Op::Close {
                    handle: socket,
                    reset: false,
                };
                io.submit(token(3), close);
            }
            _ => {}
        }
    }
    fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
    fn is_finished(&self) -> bool {
        false
    }
}

/// Keeps what arrives; the test acts through [`SimWorld::on`].
#[derive(Default)]
struct Inbox {
    arrived: Vec<Completion>,
    finished: bool,
}

impl App for Inbox {
    fn on_completion(&mut self, _io: &mut dyn Driver, completion: Completion) {
        self.arrived.push(completion);
    }
    fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
    fn is_finished(&self) -> bool {
        self.finished
    }
}

fn token(value: u64) -> Token {
    Token {
        room: 0,
        index: 0,
        value,
    }
}

struct Bench {
    world: SimWorld,
    node: NodeId,
    inbox: Rc<RefCell<Inbox>>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let mut world = SimWorld::new(SimConfig::seeded(seed));
        let node = world.add_node();
        let inbox = world.boot(node, |_| Inbox::default());
        Self { world, node, inbox }
    }

    fn reboot(&mut self) {
        self.inbox = self.world.boot(self.node, |_| Inbox::default());
    }

    fn submit(&mut self, value: u64, op: Op) {
        self.world.on(self.node, |io| io.submit(token(value), op));
    }

    fn result_within(&mut self, value: u64, ns: u64) -> Option<(Op, Result<Done, Errno>)> {
        let inbox = self.inbox.clone();
        let find = move || {
            inbox
                .borrow()
                .arrived
                .iter()
                .position(|c| c.token == token(value))
        };
        if !self.world.run_to(ns, |_| find().is_some()) {
            return None;
        }
        let at = self
            .inbox
            .borrow()
            .arrived
            .iter()
            .position(|c| c.token == token(value));
        match self.inbox.borrow_mut().arrived.remove(at.unwrap()).event {
            Event::Op { op, result } => Some((op, result)),
            other @ (Event::Timer(_) | Event::Rung) => panic!("{other:?}"),
        }
    }

    fn run(&mut self, op: Op) -> (Op, Result<Done, Errno>) {
        self.submit(99, op);
        self.result_within(99, 1000 * SECOND)
            .expect("an op that ends")
    }

    fn window(&mut self, fill: &[u8]) -> crate::BufMut {
        self.world.on(self.node, |io| {
            let mut window = io.arena().take(u32::try_from(fill.len()).unwrap()).unwrap();
            window.bytes_mut().copy_from_slice(fill);
            window
        })
    }

    fn connect(&mut self, to: NodeId) -> Result<Handle, Errno> {
        let to = SocketAddr::new(self.world.ip(to), PORT);
        match self.run(Op::Connect { to }).1? {
            Done::Socket { handle, peer } => {
                assert_eq!(peer, to);
                Ok(handle)
            }
            other @ (Done::Bytes(_) | Done::Value(_) | Done::Nothing) => panic!("{other:?}"),
        }
    }

    fn send(&mut self, value: u64, socket: Handle, bytes: &[u8]) {
        let parts = vec![self.window(bytes).freeze()];
        self.submit(value, Op::Send { socket, parts });
    }

    fn recv(&mut self, value: u64, socket: Handle) {
        let into = (self.window(&[0; 4096]), None);
        self.submit(value, Op::Recv { socket, into });
    }

    fn open(&mut self) -> Handle {
        let how = OpenFile {
            exclusive: true,
            writable: true,
            direct: true,
            create_bytes: Some(1 << 20),
        };
        self.world
            .on(self.node, |io| io.open(Path::new("/d"), how).unwrap().0)
    }

    fn write(&mut self, file: Handle, offset_bytes: u64, bytes: &[u8]) -> Result<Done, Errno> {
        let from = self.window(bytes).freeze();
        self.run(Op::Write {
            file,
            offset_bytes,
            from,
            durable: false,
        })
        .1
    }

    fn read(&mut self, file: Handle, offset_bytes: u64) -> Vec<u8> {
        let into = self.window(&[0xee; 4096]);
        let (op, result) = self.run(Op::Read {
            file,
            offset_bytes,
            into,
        });
        assert_eq!(result, Ok(Done::Bytes(4096)));
        let Op::Read { into, .. } = op else {
            panic!("{op:?}")
        };
        into.bytes().to_vec()
    }
}

/// A bench beside a machine that runs the echo server.
fn with_server(seed: u64) -> (Bench, NodeId) {
    let mut bench = Bench::new(seed);
    let server = bench.world.add_node();
    bench.world.boot(server, |io| Server::start(io));
    (bench, server)
}

fn echo(bench: &mut Bench, socket: Handle, bytes: &[u8]) {
    bench.send(1, socket, bytes);
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        bench.recv(2, socket);
        let (op, result) = bench.result_within(2, SECOND).unwrap();
        let Ok(Done::Bytes(count @ 1..)) = result else {
            panic!("{result:?}")
        };
        let Op::Recv {
            into: (window, _), ..
        } = op
        else {
            panic!("{op:?}")
        };
        got.extend_from_slice(&window.bytes()[..count as usize]);
    }
    assert!(got == bytes);
    let sent = u32::try_from(bytes.len()).unwrap();
    assert_eq!(
        bench.result_within(1, SECOND).unwrap().1,
        Ok(Done::Bytes(sent))
    );
}

fn transcript(seed: u64) -> Vec<String> {
    let (mut bench, server) = with_server(seed);
    bench.world.record();
    let socket = bench.connect(server).unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(100_000).collect();
    echo(&mut bench, socket, &bytes);
    let file = bench.open();
    for i in 0..20u8 {
        bench.write(file, u64::from(i) * 4096, &[i; 4096]).unwrap();
    }
    bench.world.power_cut(bench.node);
    bench.reboot();
    let file = bench.open();
    let kept = (0..20).map(|i| bench.read(file, i * 4096));
    let kept: Vec<_> = kept.collect();
    bench
        .world
        .transcript()
        .iter()
        .cloned()
        .chain([format!("{kept:?}")])
        .collect()
}

#[test]
fn a_seed_is_a_run_and_another_seed_another() {
    for seed in 0..5 {
        let first = transcript(seed);
        assert!(first.len() > 40);
        assert_eq!(first, transcript(seed));
        assert_ne!(first, transcript(seed + 1000));
    }
}

#[test]
fn a_stream_is_cut_anywhere_and_arrives_whole() {
    for seed in 0..20 {
        let (mut bench, server) = with_server(seed);
        let socket = bench.connect(server).unwrap();
        let bytes: Vec<u8> = (0..=252).cycle().take(128 * 1024).collect();
        echo(&mut bench, socket, &bytes);
    }
}

#[test]
fn a_killed_peer_ends_its_connections_and_a_new_one_listens_again() {
    let (mut bench, server) = with_server(1);
    let socket = bench.connect(server).unwrap();
    echo(&mut bench, socket, b"hello");
    bench.recv(5, socket);
    bench.world.crash(server);
    assert_eq!(
        bench.result_within(5, SECOND).unwrap().1,
        Ok(Done::Bytes(0))
    );
    // What is sent to nobody is answered with a reset.
    bench.send(6, socket, b"anyone?");
    bench.result_within(6, SECOND).unwrap().1.unwrap();
    bench.world.run_for(SECOND);
    bench.send(7, socket, b"anyone?");
    assert_eq!(
        bench.result_within(7, SECOND).unwrap().1,
        Err(Errno::CONNECTION_RESET)
    );
    assert_eq!(bench.connect(server), Err(Errno::CONNECTION_REFUSED));
    bench.world.boot(server, |io| Server::start(io));
    let socket = bench.connect(server).unwrap();
    echo(&mut bench, socket, b"hello again");
}

#[test]
fn a_peer_without_power_is_silent_until_it_is_back() {
    let (mut bench, server) = with_server(2);
    let socket = bench.connect(server).unwrap();
    bench.recv(5, socket);
    bench.world.power_cut(server);
    bench.send(6, socket, b"lost");
    assert!(bench.result_within(5, 20 * SECOND).is_none());
    let to = SocketAddr::new(bench.world.ip(server), PORT);
    bench.submit(8, Op::Connect { to });
    assert!(bench.result_within(8, 100 * SECOND).is_none());
    assert_eq!(
        bench.result_within(8, 100 * SECOND).unwrap().1,
        Err(Errno(libc::ETIMEDOUT))
    );
    bench.world.boot(server, |io| Server::start(io));
    assert_eq!(
        bench.result_within(5, SECOND).unwrap().1,
        Err(Errno::CONNECTION_RESET)
    );
}

#[test]
fn a_partition_delays_and_loses_nothing() {
    let (mut bench, server) = with_server(3);
    let socket = bench.connect(server).unwrap();
    bench.world.partition(bench.node, server);
    bench.send(5, socket, b"one");
    bench.recv(6, socket);
    assert!(bench.result_within(6, 60 * SECOND).is_none());
    bench.result_within(5, SECOND).unwrap().1.unwrap();
    bench.send(5, socket, b"two");
    bench.world.heal(bench.node, server);
    let mut got = Vec::new();
    while got.len() < 6 {
        let (op, result) = bench.result_within(6, SECOND).unwrap();
        let (Op::Recv { into, .. }, Ok(Done::Bytes(count))) = (op, result) else {
            panic!()
        };
        got.extend_from_slice(&into.0.bytes()[..count as usize]);
        if got.len() < 6 {
            bench.recv(6, socket);
        }
    }
    assert_eq!(got, b"onetwo");
}

#[test]
fn a_reset_connection_fails_what_waits_on_it() {
    let (mut bench, server) = with_server(4);
    let socket = bench.connect(server).unwrap();
    bench.recv(5, socket);
    bench.world.reset_between(bench.node, server);
    assert_eq!(
        bench.result_within(5, SECOND).unwrap().1,
        Err(Errno::CONNECTION_RESET)
    );
    let close = Op::Close {
        handle: socket,
        reset: false,
    };
    assert_eq!(bench.run(close).1, Ok(Done::Nothing));
}

#[test]
fn a_full_window_holds_the_sender_back() {
    let mut bench = Bench::new(5);
    let other = bench.world.add_node();
    let far = bench.world.boot(other, |io| {
        let listener = io.listen(SocketAddr::from(([0, 0, 0, 0], PORT))).unwrap();
        io.submit(token(0), Op::Accept { listener });
        Inbox::default()
    });
    let socket = bench.connect(other).unwrap();
    let big = bench.window(&vec![1; 128 * 1024]).freeze();
    bench.submit(
        5,
        Op::Send {
            socket,
            parts: vec![big; 8],
        },
    );
    assert!(bench.result_within(5, 10 * SECOND).is_none());
    let accepted = far.borrow_mut().arrived.pop().unwrap().event;
    let Event::Op {
        result: Ok(Done::Socket {
            handle: far_socket, ..
        }),
        ..
    } = accepted
    else {
        panic!("{accepted:?}")
    };
    let mut got = 0;
    while got < 1024 * 1024 {
        bench.world.on(other, |io| {
            let into = (io.arena().take(128 * 1024).unwrap(), None);
            io.submit(
                token(1),
                Op::Recv {
                    socket: far_socket,
                    into,
                },
            );
        });
        assert!(
            bench
                .world
                .run_to(SECOND, |_| !far.borrow().arrived.is_empty())
        );
        let event = far.borrow_mut().arrived.pop().unwrap().event;
        let Event::Op {
            result: Ok(Done::Bytes(count)),
            ..
        } = event
        else {
            panic!("{event:?}")
        };
        got += count;
    }
    assert_eq!(
        bench.result_within(5, SECOND).unwrap().1,
        Ok(Done::Bytes(1024 * 1024))
    );
}

#[test]
fn flushed_bytes_survive_a_power_cut_and_a_crash_loses_nothing_complete() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed);
        let file = bench.open();
        bench.write(file, 0, &[1; 4096]).unwrap();
        bench.run(Op::Flush { file }).1.unwrap();
        bench.write(file, 4096, &[2; 4096]).unwrap();
        bench.world.crash(bench.node);
        bench.reboot();
        let file = bench.open();
        assert_eq!(bench.read(file, 4096), [2; 4096]);
        bench.world.power_cut(bench.node);
        bench.reboot();
        let file = bench.open();
        assert_eq!(bench.read(file, 0), [1; 4096]);
    }
}

#[test]
fn a_write_in_flight_at_a_crash_arrives_or_does_not() {
    let mut outcomes = [0; 2];
    for seed in 0..40 {
        let mut bench = Bench::new(seed);
        let file = bench.open();
        let from = bench.window(&[5; 4096]).freeze();
        bench.submit(
            1,
            Op::Write {
                file,
                offset_bytes: 0,
                from,
                durable: true,
            },
        );
        bench.world.crash(bench.node);
        bench.reboot();
        let file = bench.open();
        let got = bench.read(file, 0);
        assert!(got == [5; 4096] || got == [0; 4096]);
        outcomes[usize::from(got[0] == 5)] += 1;
    }
    assert!(outcomes[0] > 5 && outcomes[1] > 5, "{outcomes:?}");
}

#[test]
fn a_sick_disk_fails_or_hangs_as_told() {
    let mut bench = Bench::new(6);
    let file = bench.open();
    let path = Path::new("/d");
    bench.world.disk(bench.node, path).inject(Fault {
        kind: FaultKind::Write,
        range_bytes: 0..4096,
        errno: Errno::IO,
        times: 1,
    });
    assert_eq!(bench.write(file, 0, &[1; 4096]), Err(Errno::IO));
    assert!(bench.write(file, 0, &[1; 4096]).is_ok());
    bench.world.disk(bench.node, path).rot(7);
    assert_eq!(bench.read(file, 0)[7], 0x11);
    bench.world.set_stuck(bench.node, path, true);
    bench.submit(5, Op::Flush { file });
    assert!(bench.result_within(5, 100 * SECOND).is_none());
    bench.world.set_stuck(bench.node, path, false);
    assert_eq!(bench.result_within(5, SECOND).unwrap().1, Ok(Done::Nothing));
}

#[test]
fn a_finished_app_gets_its_ops_back_and_its_node_stops() {
    let (mut bench, server) = with_server(7);
    let socket = bench.connect(server).unwrap();
    let file = bench.open();
    bench.recv(1, socket);
    bench.submit(2, Op::Flush { file });
    bench.inbox.borrow_mut().finished = true;
    bench.world.run_for(SECOND);
    assert!(!bench.world.is_running(bench.node));
    let mut results: Vec<_> = bench.inbox.borrow_mut().arrived.drain(..).collect();
    results.sort_by_key(|c| c.token.value);
    let results = results.into_iter().map(|c| match c.event {
        Event::Op { result, .. } => result,
        other @ (Event::Timer(_) | Event::Rung) => panic!("{other:?}"),
    });
    let expected = [Err(Errno::CANCELED), Ok(Done::Nothing)];
    assert_eq!(results.collect::<Vec<_>>(), expected);
}

#[test]
fn bells_ring_across_the_harness() {
    let mut bench = Bench::new(8);
    let bell = bench
        .world
        .on(bench.node, |io| io.doorbell(token(5)).unwrap());
    assert!(!bench.world.step());
    std::thread::spawn(move || bell.ring()).join().unwrap();
    bench.world.run_for(SECOND);
    let arrived = &bench.inbox.borrow().arrived;
    assert!(matches!(
        arrived[..],
        [Completion {
            event: Event::Rung,
            ..
        }]
    ));
}

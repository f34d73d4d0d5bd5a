//! The world behind the drivers: nodes, what they have in flight, and what will happen when.

use super::SimConfig;
use super::disk::Disk;
use super::net::{End, Link, LinkEnd};
use super::prng::Prng;
use crate::driver::{Done, Handle, Op, TimerId, Token, handle_of};
use crate::error::Errno;
use crate::slab::{Key, Slab};
use crate::timer::Timers;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Something that will happen at a moment.
#[derive(Debug)]
pub(super) enum Action {
    /// A node looks at what it has got.
    Turn { node: usize, life: u32 },
    /// A file op is performed.
    Disk { node: usize, life: u32, key: Key },
    /// A connection request reaches its destination.
    Syn {
        node: usize,
        life: u32,
        key: Key,
        from: SocketAddr,
        to: SocketAddr,
    },
    /// The answer to a connection request.
    SynAnswer {
        node: usize,
        life: u32,
        key: Key,
        link: Result<u64, Errno>,
    },
    /// Bytes reach an end.
    Arrive { end: LinkEnd, bytes: Vec<u8> },
    /// The other end has closed in order.
    Fin { end: LinkEnd },
    /// The other end has aborted.
    Reset { end: LinkEnd },
}

/// An op in flight.
pub(super) struct SimOp {
    pub(super) token: Token,
    pub(super) op: Op,
    /// It counts among the ops in flight on its handle.
    pub(super) counted: bool,
    /// Its result waits for delivery.
    pub(super) decided: bool,
    /// For a flush: what it must cover.
    pub(super) mark: u64,
}

pub(super) enum Place {
    Listener {
        port: u16,
        backlog: VecDeque<u64>,
        accepts: VecDeque<Key>,
    },
    Socket(LinkEnd),
    File(PathBuf),
}

pub(super) struct SimHandle {
    pub(super) place: Place,
    pub(super) local: Option<SocketAddr>,
    /// Ops on it that were not delivered yet.
    pub(super) in_flight: u32,
    pub(super) closing: Option<Key>,
    pub(super) exclusive: bool,
}

/// How a node's clock goes: from another beginning and at another rate than the world's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clock {
    pub(super) ahead_ns: u64,
    pub(super) fast_ppm: u32,
}

const MILLION: u128 = 1_000_000;

impl Clock {
    fn rate(self) -> u128 {
        MILLION + u128::from(self.fast_ppm)
    }

    /// What the node's clock shows at that moment of the world.
    pub(super) fn local_ns(self, world_ns: u64) -> u64 {
        let shown = u128::from(world_ns) * self.rate() / MILLION;
        self.ahead_ns + u64::try_from(shown).expect("a few hours")
    }

    /// The first moment of the world at which the node's clock shows that.
    pub(super) fn world_ns(self, local_ns: u64) -> u64 {
        let shown = u128::from(local_ns.saturating_sub(self.ahead_ns));
        u64::try_from((shown * MILLION).div_ceil(self.rate())).unwrap_or(u64::MAX)
    }
}

pub(super) struct Node {
    pub(super) running: bool,
    /// Its power is off: it does not even refuse.
    pub(super) dark: bool,
    /// Its process is stopped (`SIGSTOP`); its kernel goes on.
    pub(super) stopped: bool,
    pub(super) clock: Clock,
    pub(super) life: u32,
    pub(super) ops: Slab<SimOp>,
    pub(super) handles: Slab<SimHandle>,
    pub(super) timers: Timers,
    pub(super) ready: VecDeque<(Key, Result<Done, Errno>)>,
    pub(super) bells: Vec<(Token, Arc<AtomicBool>)>,
    pub(super) turn_scheduled: bool,
    pub(super) draining: bool,
    pub(super) next_port: u16,
    /// Backings; they outlive processes.
    pub(super) disks: BTreeMap<PathBuf, Disk>,
}

pub(super) struct State {
    pub(super) config: SimConfig,
    pub(super) now_ns: u64,
    next_sequence: u64,
    pub(super) agenda: BTreeMap<(u64, u64), Action>,
    pub(super) prng: Prng,
    pub(super) nodes: Vec<Node>,
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) next_link: u64,
    /// From which node nothing reaches which other one, and what waits on the way.
    pub(super) partitions: BTreeSet<(usize, usize)>,
    pub(super) held: Vec<((usize, usize), Action)>,
}

impl State {
    pub(super) fn new(config: SimConfig) -> Self {
        Self {
            prng: Prng::new(config.seed),
            config,
            now_ns: 0,
            next_sequence: 0,
            agenda: BTreeMap::new(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            next_link: 0,
            partitions: BTreeSet::new(),
            held: Vec::new(),
        }
    }

    pub(super) fn add_node(&mut self) -> usize {
        self.nodes.push(Node {
            running: false,
            dark: false,
            stopped: false,
            clock: Clock::default(),
            life: 0,
            ops: Slab::new(self.config.ops_max),
            handles: Slab::new(self.config.handles_max),
            timers: Timers::new(self.config.timers_max),
            ready: VecDeque::new(),
            bells: Vec::new(),
            turn_scheduled: false,
            draining: false,
            next_port: 40_000,
            disks: BTreeMap::new(),
        });
        self.nodes.len() - 1
    }

    pub(super) fn ip(node: usize) -> IpAddr {
        let number = u32::try_from(node + 1).expect("few nodes");
        IpAddr::V4(Ipv4Addr::from_bits(
            u32::from_be_bytes([10, 0, 0, 0]) + number,
        ))
    }

    /// The node that an address reaches from `from`.
    pub(super) fn node_at(&self, from: usize, ip: IpAddr) -> Option<usize> {
        if ip.is_loopback() {
            return Some(from);
        }
        (0..self.nodes.len()).find(|node| Self::ip(*node) == ip)
    }

    pub(super) fn schedule(&mut self, at_ns: u64, action: Action) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        assert!(at_ns >= self.now_ns, "sim: an action in the past");
        assert!(self.agenda.insert((at_ns, sequence), action).is_none());
    }

    pub(super) fn draw(&mut self, range: (u64, u64)) -> u64 {
        self.prng.within(range.0, range.1)
    }

    /// Sees to it that the node looks at its ready ops soon.
    pub(super) fn wake(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if it.running && !it.turn_scheduled && !it.stopped {
            it.turn_scheduled = true;
            let life = it.life;
            let at_ns = self.now_ns + self.draw(self.config.turn_ns);
            self.schedule(at_ns, Action::Turn { node, life });
        }
    }

    /// Decides an op's result; its delivery comes with the node's next turn.
    pub(super) fn decide(&mut self, node: usize, key: Key, result: Result<Done, Errno>) {
        let it = &mut self.nodes[node];
        let op = it
            .ops
            .get_mut(key)
            .expect("sim: undecided ops are in the slab");
        assert!(!op.decided, "sim: an op is decided once");
        op.decided = true;
        it.ready.push_back((key, result));
        self.wake(node);
    }

    /// Whether the process that asked is still there.
    pub(super) fn is_alive(&self, node: usize, life: u32) -> bool {
        self.nodes[node].running && self.nodes[node].life == life
    }

    /// The op, unless its result is decided or it is gone.
    pub(super) fn undecided(&mut self, node: usize, key: Key) -> Option<&mut SimOp> {
        self.nodes[node].ops.get_mut(key).filter(|op| !op.decided)
    }

    /// Takes the next ready op out, and finishes a close that waited for it.
    pub(super) fn pop_ready(&mut self, node: usize) -> Option<(SimOp, Result<Done, Errno>)> {
        let it = &mut self.nodes[node];
        let (key, result) = it.ready.pop_front()?;
        let op = it.ops.remove(key).expect("sim: ready ops are in the slab");
        if op.counted {
            let handle = handle_of(&op.op).expect("counted ops have a handle");
            let open = it
                .handles
                .get_mut(slot(handle))
                .expect("sim: open while ops are on it");
            open.in_flight -= 1;
            if open.in_flight == 0 && open.closing.is_some() {
                self.finish_close(node, handle);
            }
        }
        Some((op, result))
    }

    pub(super) fn begin_close(&mut self, node: usize, key: Key, handle: Handle, reset: bool) {
        let open = self.nodes[node].handles.get_mut(slot(handle));
        let Some(open) = open.filter(|open| open.closing.is_none()) else {
            return self.decide(node, key, Err(Errno::BAD_HANDLE));
        };
        open.closing = Some(key);
        let idle = open.in_flight == 0;
        self.cancel_all_on(node, handle);
        if let Place::Socket(end) = self.place(node, handle) {
            let end = *end;
            self.close_end(end, reset);
        }
        if idle {
            self.finish_close(node, handle);
        }
    }

    pub(super) fn place(&self, node: usize, handle: Handle) -> &Place {
        &self.nodes[node]
            .handles
            .get(slot(handle))
            .expect("sim: an open handle")
            .place
    }

    fn cancel_all_on(&mut self, node: usize, handle: Handle) {
        for key in self.nodes[node].ops.keys() {
            let op = self.nodes[node].ops.get(key).expect("listed");
            if handle_of(&op.op) == Some(handle) {
                self.cancel(node, key);
            }
        }
    }

    fn finish_close(&mut self, node: usize, handle: Handle) {
        let open = self.nodes[node]
            .handles
            .remove(slot(handle))
            .expect("sim: open until now");
        let key = open.closing.expect("sim: only closing handles are closed");
        self.release(node, open);
        self.decide(node, key, Ok(Done::Nothing));
    }

    /// What the kernel does with a descriptor that is gone.
    fn release(&mut self, node: usize, open: SimHandle) {
        match open.place {
            Place::Listener { backlog, .. } => {
                for link in backlog {
                    self.close_end(
                        LinkEnd {
                            link,
                            end: End::Far,
                        },
                        true,
                    );
                }
            }
            Place::Socket(end) => self.close_end(end, false),
            Place::File(path) => {
                let disk = self.nodes[node]
                    .disks
                    .get_mut(&path)
                    .expect("sim: disks stay");
                disk.locked &= !open.exclusive;
            }
        }
    }

    /// Ends what can be ended early; file ops are performed all the same.
    pub(super) fn cancel(&mut self, node: usize, key: Key) {
        let Some(op) = self.undecided(node, key) else {
            return;
        };
        match &op.op {
            Op::Accept { listener } => {
                let listener = *listener;
                let open = self.nodes[node].handles.get_mut(slot(listener));
                let Place::Listener { accepts, .. } = &mut open.expect("sim: open").place else {
                    unreachable!("accepts are on listeners")
                };
                accepts.retain(|waiting| *waiting != key);
            }
            Op::Recv { socket, .. } | Op::Send { socket, .. } => {
                let socket = *socket;
                let Place::Socket(end) = self.place(node, socket) else {
                    unreachable!("checked at submission")
                };
                let end = *end;
                self.forget_on_link(end, key);
            }
            Op::Connect { .. } => {}
            Op::Read { .. }
            | Op::Write { .. }
            | Op::Flush { .. }
            | Op::Discard { .. }
            | Op::Command { .. }
            | Op::Close { .. } => return,
        }
        self.decide(node, key, Err(Errno::CANCELED));
    }

    /// Everything that can be cancelled is; the rest comes back by itself.
    pub(super) fn drain(&mut self, node: usize) {
        self.nodes[node].draining = true;
        for key in self.nodes[node].ops.keys() {
            self.cancel(node, key);
        }
    }

    /// The process is gone: the kernel closes what it had open.
    pub(super) fn end_life(&mut self, node: usize, quietly: bool) {
        let it = &mut self.nodes[node];
        it.running = false;
        it.stopped = false;
        it.turn_scheduled = false;
        it.draining = false;
        it.life += 1;
        it.ready.clear();
        it.bells.clear();
        it.timers = Timers::new(self.config.timers_max);
        let ops = std::mem::replace(&mut it.ops, Slab::new(self.config.ops_max));
        let handles = std::mem::replace(&mut it.handles, Slab::new(self.config.handles_max));
        for (_, op) in ops.iter() {
            let Op::Write {
                file,
                offset_bytes,
                from,
                ..
            } = &op.op
            else {
                continue;
            };
            let Some(Place::File(path)) = handles.get(slot(*file)).map(|h| &h.place) else {
                continue;
            };
            let disk = it.disks.get_mut(path).expect("sim: disks stay");
            if !op.decided {
                disk.write_of_the_dead(*offset_bytes, from.bytes(), &mut self.prng);
            }
        }
        let mut handles = handles;
        for key in handles.keys() {
            let open = handles.remove(key).expect("listed");
            match (&open.place, quietly) {
                (Place::Socket(end), true) => self.lose_end(*end),
                (Place::Listener { backlog, .. }, true) => {
                    for link in backlog.clone() {
                        self.lose_end(LinkEnd {
                            link,
                            end: End::Far,
                        });
                    }
                }
                (Place::File(_), _) | (_, false) => self.release(node, open),
            }
        }
    }

    /// Bells that threads or the harness have rung since.
    pub(super) fn notice_bells(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node]
                .bells
                .iter()
                .any(|(_, rung)| rung.load(SeqCst))
            {
                self.wake(node);
            }
        }
    }

    pub(super) fn take_bell(&mut self, node: usize) -> Option<Token> {
        let mut bells = self.nodes[node].bells.iter();
        bells
            .find(|(_, rung)| rung.swap(false, SeqCst))
            .map(|(token, _)| *token)
    }

    pub(super) fn pop_timer(&mut self, node: usize) -> Option<(TimerId, Token)> {
        self.nodes[node].timers.pop_due(self.now_ns)
    }

    /// When something happens next, and whether it is a timer (of that node).
    pub(super) fn next(&self) -> Option<(u64, Option<usize>)> {
        let agenda = self
            .agenda
            .first_key_value()
            .map(|((at_ns, _), _)| (*at_ns, None));
        let timers = self.nodes.iter().enumerate();
        let timer = timers
            .filter(|(_, node)| !node.stopped)
            .filter_map(|(n, node)| Some((node.timers.next_ns()?, Some(n))))
            .min();
        match (agenda, timer) {
            (Some(action), Some(timer)) => Some(if timer.0 < action.0 { timer } else { action }),
            (some, None) | (None, some) => some,
        }
    }

    /// Performs a file op.
    pub(super) fn on_disk(&mut self, node: usize, life: u32, key: Key) {
        if !self.is_alive(node, life) || self.undecided(node, key).is_none() {
            return;
        }
        let it = &mut self.nodes[node];
        let op = it.ops.get_mut(key).expect("just seen");
        let file = handle_of(&op.op).expect("file ops have a file");
        let Place::File(path) = &it.handles.get(slot(file)).expect("sim: open").place else {
            unreachable!("checked at submission")
        };
        let disk = it.disks.get_mut(path).expect("sim: disks stay");
        if disk.stuck {
            return disk.waiting.push((life, key));
        }
        let result = match &mut op.op {
            Op::Read {
                offset_bytes, into, ..
            } => disk.read(*offset_bytes, into.bytes_mut()).map(Done::Bytes),
            Op::Write {
                offset_bytes,
                from,
                durable,
                ..
            } => disk
                .write(*offset_bytes, from.bytes(), *durable, &mut self.prng)
                .map(|()| Done::Bytes(from.len_bytes())),
            Op::Flush { .. } => disk.flush(op.mark).map(|()| Done::Nothing),
            Op::Discard {
                offset_bytes,
                len_bytes,
                ..
            } => disk
                .discard(*offset_bytes, *len_bytes, &mut self.prng)
                .map(|()| Done::Nothing),
            Op::Accept { .. }
            | Op::Connect { .. }
            | Op::Recv { .. }
            | Op::Send { .. }
            | Op::Command { .. }
            | Op::Close { .. } => unreachable!("not a file op"),
        };
        self.decide(node, key, result);
    }
}

pub(super) const fn slot(handle: Handle) -> Key {
    Key {
        index: handle.index,
        turn: handle.turn,
    }
}

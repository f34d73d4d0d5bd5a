//! The `sim` driver: many nodes, their network and their disks in one thread, under virtual time.
//!
//! A seed is a run: every delay, every cut of a stream, every loss at a power cut comes from one
//! generator, and what happens at the same moment happens in the order in which it was decided.
//! Nothing here reads a clock. Nodes run the same apps as under `uring`.

mod connect;
mod disk;
mod driver;
mod net;
mod prng;
mod state;
#[cfg(test)]
mod test;

use crate::app::App;
use crate::arena::{Arena, ArenaConfig};
use crate::driver::{Completion, Driver, Event, FileKind, Op, Token};
use net::{End, LinkEnd, pair};
use state::{Action, Clock, State};
use std::cell::{Ref, RefCell, RefMut};
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;

pub use disk::{Disk, Fault, FaultKind, SECTOR_BYTES};
pub use driver::SimDriver;
pub use prng::Prng;

/// Sizes and delays of a world. Delays are ranges `(least, most)` in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Where all chance comes from.
    pub seed: u64,
    /// One arena per life of a node.
    pub arena: ArenaConfig,
    /// Most ops in flight per node.
    pub ops_max: u32,
    /// Most handles per node.
    pub handles_max: u32,
    /// Most timers per node.
    pub timers_max: u32,
    /// One way through the network.
    pub net_ns: (u64, u64),
    /// One file op.
    pub disk_ns: (u64, u64),
    /// From something being ready to the node's looking at it: what is ready by then is one turn.
    pub turn_ns: (u64, u64),
}

impl SimConfig {
    /// The usual sizes and delays.
    pub const fn seeded(seed: u64) -> Self {
        Self {
            seed,
            arena: ArenaConfig {
                slot_counts: [256, 128, 48],
                huge_pages: false,
            },
            ops_max: 16 * 1024,
            handles_max: 1024,
            timers_max: 16 * 1024,
            net_ns: (20_000, 200_000),
            disk_ns: (10_000, 150_000),
            turn_ns: (0, 5_000),
        }
    }
}

/// A machine of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// A running process.
struct Process {
    driver: SimDriver,
    app: Rc<RefCell<dyn App>>,
}

/// The world. See the module's documentation.
pub struct SimWorld {
    state: Rc<RefCell<State>>,
    processes: Vec<Option<Process>>,
    transcript: Option<Vec<String>>,
}

impl std::fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimWorld")
            .field("now_ns", &self.now_ns())
            .field("nodes", &self.processes.len())
            .finish_non_exhaustive()
    }
}

impl SimWorld {
    /// An empty world.
    pub fn new(config: SimConfig) -> Self {
        let state = Rc::new(RefCell::new(State::new(config)));
        Self {
            state,
            processes: Vec::new(),
            transcript: None,
        }
    }

    /// Adds a machine, with nothing running on it.
    pub fn add_node(&mut self) -> NodeId {
        self.processes.push(None);
        NodeId(self.state.borrow_mut().add_node())
    }

    /// The address of a machine. Loopback addresses reach the machine itself.
    pub fn ip(&self, node: NodeId) -> IpAddr {
        assert!(node.0 < self.processes.len());
        State::ip(node.0)
    }

    /// Virtual nanoseconds since the beginning of the world.
    pub fn now_ns(&self) -> u64 {
        self.state.borrow().now_ns
    }

    /// A generator for the harness's own choices, forked from the world's.
    pub fn fork_prng(&mut self) -> Prng {
        self.state.borrow_mut().prng.fork()
    }

    /// Starts a process on a node (switching it on if it was dark): `make` builds its app, which
    /// the world then drives. Panics if one is running there.
    pub fn boot<A: App + 'static>(
        &mut self,
        node: NodeId,
        make: impl FnOnce(&mut dyn Driver) -> A,
    ) -> Rc<RefCell<A>> {
        assert!(!self.is_running(node), "sim: node {} is running", node.0);
        let config = {
            let mut state = self.state.borrow_mut();
            let it = &mut state.nodes[node.0];
            it.running = true;
            it.dark = false;
            state.disown_lost(node.0);
            state.config.arena
        };
        let arena = Arena::simulated(&config).expect("memory for a small arena");
        let mut driver = SimDriver {
            state: self.state.clone(),
            node: node.0,
            arena,
            ops_total: 0,
        };
        let app = Rc::new(RefCell::new(make(&mut driver)));
        self.processes[node.0] = Some(Process {
            driver,
            app: app.clone(),
        });
        self.turn(node);
        app
    }

    /// Whether a process runs there.
    pub fn is_running(&self, node: NodeId) -> bool {
        self.processes[node.0].is_some()
    }

    /// Lets the harness act as a part of the node's program: `act` gets its driver, then the app
    /// ends its turn. Panics if nothing is running there.
    pub fn on<R>(&mut self, node: NodeId, act: impl FnOnce(&mut dyn Driver) -> R) -> R {
        let process = self.processes[node.0]
            .as_mut()
            .expect("sim: nothing is running there");
        let result = act(&mut process.driver);
        process.app.borrow_mut().on_turn_end(&mut process.driver);
        self.end_if_finished(node);
        result
    }

    /// Kills the process (`kill -9`). Its kernel closes its sockets; what it wrote is in the
    /// volatile caches; writes in flight arrive or do not.
    pub fn crash(&mut self, node: NodeId) {
        self.processes[node.0] = None;
        self.state.borrow_mut().end_life(node.0, false);
    }

    /// Cuts the power: peers hear nothing, volatile caches are lost or torn.
    pub fn power_cut(&mut self, node: NodeId) {
        self.processes[node.0] = None;
        let mut state = self.state.borrow_mut();
        state.end_life(node.0, true);
        let State { nodes, prng, .. } = &mut *state;
        nodes[node.0].dark = true;
        for disk in nodes[node.0].disks.values_mut() {
            disk.power_cut(prng);
        }
    }

    /// Puts a disk into a machine. Panics if the path is taken.
    pub fn add_disk(&mut self, node: NodeId, path: &Path, kind: FileKind, size_bytes: u64) {
        let disk = Disk::new(kind, size_bytes, true);
        let mut state = self.state.borrow_mut();
        let old = state.nodes[node.0].disks.insert(path.to_owned(), disk);
        assert!(old.is_none(), "sim: {} is taken", path.display());
    }

    /// A disk or file of a machine, to look at or to hurt. Panics if there is none.
    pub fn disk(&self, node: NodeId, path: &Path) -> RefMut<'_, Disk> {
        RefMut::map(self.state.borrow_mut(), |state| {
            let disk = state.nodes[node.0].disks.get_mut(path);
            disk.unwrap_or_else(|| panic!("sim: no {} on node {}", path.display(), node.0))
        })
    }

    /// Takes a disk out of a machine, for good. Panics if a process runs there or there is none.
    pub fn remove_disk(&mut self, node: NodeId, path: &Path) -> Disk {
        assert!(
            !self.is_running(node),
            "sim: the disks of node {} are in use",
            node.0
        );
        let disk = self.state.borrow_mut().nodes[node.0].disks.remove(path);
        disk.unwrap_or_else(|| panic!("sim: no {} on node {}", path.display(), node.0))
    }

    /// The same, only to look at.
    pub fn disk_ref(&self, node: NodeId, path: &Path) -> Ref<'_, Disk> {
        Ref::map(self.state.borrow(), |state| {
            let disk = state.nodes[node.0].disks.get(path);
            disk.unwrap_or_else(|| panic!("sim: no {} on node {}", path.display(), node.0))
        })
    }

    /// While stuck, ops on the disk do not come back.
    pub fn set_stuck(&mut self, node: NodeId, path: &Path, stuck: bool) {
        let mut disk = self.disk(node, path);
        disk.stuck = stuck;
        if stuck {
            return;
        }
        let waiting = std::mem::take(&mut disk.waiting);
        drop(disk);
        let mut state = self.state.borrow_mut();
        let disk_ns = state.config.disk_ns;
        for (life, key) in waiting {
            let at_ns = state.now_ns + state.draw(disk_ns);
            let node = node.0;
            state.schedule(at_ns, Action::Disk { node, life, key });
        }
    }

    /// How long each op on the disk takes from now on (`None`: as usual), in nanoseconds.
    pub fn set_disk_delay(&mut self, node: NodeId, path: &Path, delay_ns: Option<(u64, u64)>) {
        self.disk(node, path).delay_ns = delay_ns;
    }

    /// One op in `one_in` takes as long as `delay_ns` from now on, in nanoseconds, and what is
    /// submitted after it passes it (`None`: none does): a device that tries again inside.
    pub fn set_disk_laggards(
        &mut self,
        node: NodeId,
        path: &Path,
        laggards: Option<(u64, (u64, u64))>,
    ) {
        assert!(laggards.is_none_or(|(one_in, _)| one_in > 0));
        self.disk(node, path).laggards = laggards;
    }

    /// How long each write to the disk takes from now on (`None`: as usual), in nanoseconds; what else is
    /// submitted after it passes it.
    pub fn set_slow_writes(&mut self, node: NodeId, path: &Path, delay_ns: Option<(u64, u64)>) {
        self.disk(node, path).slow_writes_ns = delay_ns;
    }

    /// How long one way through the network takes from now on, in nanoseconds.
    pub fn set_net_delay(&mut self, net_ns: (u64, u64)) {
        self.state.borrow_mut().config.net_ns = net_ns;
    }

    /// Stops the process on a node (`SIGSTOP`): it does nothing and its timers do not fire, while
    /// its kernel goes on receiving and performing what was submitted.
    pub fn stop(&mut self, node: NodeId) {
        assert!(self.is_running(node));
        self.state.borrow_mut().nodes[node.0].stopped = true;
    }

    /// Whether the process on a node is stopped.
    pub fn is_stopped(&self, node: NodeId) -> bool {
        self.state.borrow().nodes[node.0].stopped
    }

    /// Lets a stopped process go on (`SIGCONT`): it finds what came meanwhile.
    pub fn go_on(&mut self, node: NodeId) {
        let mut state = self.state.borrow_mut();
        state.nodes[node.0].stopped = false;
        state.wake(node.0);
    }

    /// Sets the clock of a node: so far ahead of the world's, and so much faster (parts per
    /// million). Panics if a process runs there, whose timers would be wrong.
    pub fn set_clock(&mut self, node: NodeId, ahead_ns: u64, fast_ppm: u32) {
        assert!(
            !self.is_running(node),
            "sim: node {} looks at its clock",
            node.0
        );
        self.state.borrow_mut().nodes[node.0].clock = Clock { ahead_ns, fast_ppm };
    }

    /// Nothing passes between the two until [`SimWorld::heal`]; then what waited arrives.
    pub fn partition(&mut self, a: NodeId, b: NodeId) {
        self.partition_one_way(a, b);
        self.partition_one_way(b, a);
    }

    /// Nothing passes from one to the other until [`SimWorld::heal`]; what the other sends does.
    pub fn partition_one_way(&mut self, from: NodeId, to: NodeId) {
        self.state.borrow_mut().partitions.insert((from.0, to.0));
    }

    /// Ends a partition.
    pub fn heal(&mut self, a: NodeId, b: NodeId) {
        let mut state = self.state.borrow_mut();
        for way in [(a.0, b.0), (b.0, a.0)] {
            state.partitions.remove(&way);
        }
        let held = std::mem::take(&mut state.held);
        let (free, held) = held
            .into_iter()
            .partition(|((from, to), _)| pair(*from, *to) == pair(a.0, b.0));
        state.held = held;
        // At once and in order: what was sent later is still on its way.
        let free: Vec<(_, Action)> = free;
        for (_, action) in free {
            Self::apply(&mut state, action);
        }
    }

    /// Aborts every connection between the two.
    pub fn reset_between(&mut self, a: NodeId, b: NodeId) {
        self.state.borrow_mut().reset_between(pair(a.0, b.0));
    }

    /// Keeps a line per delivered completion from now on.
    pub fn record(&mut self) {
        self.transcript.get_or_insert_default();
    }

    /// The lines kept so far.
    pub fn transcript(&self) -> &[String] {
        self.transcript.as_deref().unwrap_or_default()
    }

    /// Lets the next thing happen. False: nothing will ever happen by itself.
    pub fn step(&mut self) -> bool {
        self.step_until(u64::MAX)
    }

    /// Lets time pass up to that moment.
    pub fn run_until(&mut self, at_ns: u64) {
        while self.step_until(at_ns) {}
        let mut state = self.state.borrow_mut();
        state.now_ns = state.now_ns.max(at_ns);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, ns: u64) {
        self.run_until(self.now_ns().saturating_add(ns));
    }

    /// Lets things happen until `done`; false if that much time passed first.
    pub fn run_to(&mut self, within_ns: u64, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let limit_ns = self.now_ns().saturating_add(within_ns);
        loop {
            if done(self) {
                return true;
            }
            if !self.step_until(limit_ns) {
                self.run_until(limit_ns);
                return false;
            }
        }
    }

    fn step_until(&mut self, limit_ns: u64) -> bool {
        let turn = {
            let mut state = self.state.borrow_mut();
            state.notice_bells();
            let Some((at_ns, timer)) = state.next().filter(|(at_ns, _)| *at_ns <= limit_ns) else {
                return false;
            };
            state.now_ns = state.now_ns.max(at_ns);
            match timer {
                Some(node) => Some(node),
                None => {
                    let (_, action) = state.agenda.pop_first().expect("just seen");
                    Self::apply(&mut state, action)
                }
            }
        };
        if let Some(node) = turn {
            self.turn(NodeId(node));
        }
        true
    }

    /// Performs an action; returns the node whose turn it is, if that is what it was.
    fn apply(state: &mut State, action: Action) -> Option<usize> {
        let action = match action {
            Action::Arrive { end, .. } | Action::Fin { end } | Action::Reset { end } => {
                state.hold(end, action)?
            }
            Action::SynAnswer { link: Ok(link), .. } => state.hold(
                LinkEnd {
                    link,
                    end: End::Near,
                },
                action,
            )?,
            other @ (Action::Turn { .. }
            | Action::Disk { .. }
            | Action::Syn { .. }
            | Action::SynAnswer { link: Err(_), .. }) => other,
        };
        match action {
            Action::Turn { node, life } => {
                if !state.is_alive(node, life) {
                    return None;
                }
                if state.nodes[node].stopped {
                    state.nodes[node].turn_scheduled = false;
                    return None;
                }
                return Some(node);
            }
            Action::Disk { node, life, key } => state.on_disk(node, life, key),
            syn @ Action::Syn { .. } => state.on_syn(syn),
            Action::SynAnswer {
                node,
                life,
                key,
                link,
            } => {
                state.on_syn_answer(node, life, key, link);
            }
            Action::Arrive { end, bytes } => state.on_arrive(end, &bytes),
            Action::Fin { end } => state.on_fin(end),
            Action::Reset { end } => state.on_reset(end),
        }
        None
    }

    /// One turn of a node: what is ready, then bells, then timers.
    fn turn(&mut self, node: NodeId) {
        let ready = {
            let mut state = self.state.borrow_mut();
            state.nodes[node.0].turn_scheduled = false;
            state.nodes[node.0].ready.len()
        };
        for _ in 0..ready {
            let popped = self.state.borrow_mut().pop_ready(node.0);
            let Some((op, result)) = popped else { break };
            self.deliver(node, op.token, Event::Op { op: op.op, result });
        }
        loop {
            let rung = self.state.borrow_mut().take_bell(node.0);
            let Some(token) = rung else { break };
            self.deliver(node, token, Event::Rung);
        }
        loop {
            let fired = self.state.borrow_mut().pop_timer(node.0);
            let Some((timer, token)) = fired else { break };
            self.deliver(node, token, Event::Timer(timer));
        }
        let Some(process) = &mut self.processes[node.0] else {
            return;
        };
        process.app.borrow_mut().on_turn_end(&mut process.driver);
        if !self.state.borrow().nodes[node.0].ready.is_empty() {
            self.state.borrow_mut().wake(node.0);
        }
        self.end_if_finished(node);
    }

    fn deliver(&mut self, node: NodeId, token: Token, event: Event) {
        if let Some(transcript) = &mut self.transcript {
            let now_ns = self.state.borrow().now_ns;
            transcript.push(format!(
                "{now_ns} node {} {}",
                node.0,
                summary(token, &event)
            ));
        }
        let Some(process) = &mut self.processes[node.0] else {
            return;
        };
        let mut app = process.app.borrow_mut();
        app.on_completion(&mut process.driver, Completion { token, event });
    }

    /// A finished app gets its ops back, then its process ends.
    fn end_if_finished(&mut self, node: NodeId) {
        let Some(process) = &self.processes[node.0] else {
            return;
        };
        let mut state = self.state.borrow_mut();
        if !state.nodes[node.0].draining {
            if !process.app.borrow().is_finished() {
                return;
            }
            state.drain(node.0);
        }
        if state.nodes[node.0].ops.len() == 0 {
            self.processes[node.0] = None;
            state.end_life(node.0, false);
        }
    }
}

/// A completion in words, without buffer contents.
fn summary(token: Token, event: &Event) -> String {
    let Token { room, index, value } = token;
    let what = match event {
        Event::Op { op, result } => format!("{} {result:?}", name(op)),
        Event::Timer(_) => "Timer".to_owned(),
        Event::Rung => "Rung".to_owned(),
    };
    format!("{room}/{index}/{value} {what}")
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Accept { .. } => "Accept",
        Op::Connect { .. } => "Connect",
        Op::Recv { .. } => "Recv",
        Op::Send { .. } => "Send",
        Op::Read { .. } => "Read",
        Op::Write { .. } => "Write",
        Op::Flush { .. } => "Flush",
        Op::Discard { .. } => "Discard",
        Op::Command { .. } => "Command",
        Op::Close { .. } => "Close",
    }
}

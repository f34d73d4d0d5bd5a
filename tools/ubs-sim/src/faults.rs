//! What goes wrong, and how it ends.

use crate::host::Held;
use crate::plan::{DEVICE_BYTES, index};
use crate::rare::Rare;
use crate::server::path;
use crate::sim::{Party, Sim, Task};
use control::core::Command;
use reactor::Errno;
use reactor::sim::{Fault, FaultKind};
use shardmap::units::StoreId;

/// The end of a trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ease {
    /// Packets travel as usual.
    Net,
    /// Two nodes reach each other again.
    Heal(usize, usize),
    /// The disk of a server is as fast as usual.
    Disk(usize),
    /// It answers again.
    Unstick(usize),
    /// None of its ops is held for long any more.
    Laggards(usize),
    /// A host goes on.
    GoOn(usize),
    /// metad is back.
    Metad,
    /// Its answers arrive.
    Answers,
    /// A party reaches it again.
    Uncut(Party),
    /// A host is to have the volume again.
    Wanted,
}

/// What a trouble waits for, to come at a bad moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Prey {
    /// A write is under way.
    Write,
    /// The client is about something: a membership, a resilver, a join.
    Change,
    /// It has just cleaned marks: all that is unmarked must be durable everywhere.
    Clean,
    /// A client is about to open the stores, and to compare what is marked.
    Attach,
    /// It compares and copies.
    Reconcile,
}

const SECOND_NS: u64 = 1_000_000_000;
const NET_NS: (u64, u64) = (20_000, 200_000);

type Strike = fn(&mut Sim);

/// The kinds of trouble with their weights.
const KINDS: &[(u64, Strike)] = &[
    (16, Sim::kill_a_store),
    (7, Sim::cut_a_store),
    (3, Sim::cut_all_stores),
    (3, Sim::cut_some_stores),
    (5, Sim::stop_a_store),
    (6, Sim::kill_a_client),
    (6, Sim::make_a_zombie),
    (3, Sim::pause_a_client),
    (5, Sim::move_the_volume),
    (8, Sim::leave_the_volume),
    (9, Sim::reset_connections),
    (8, Sim::partition),
    (4, Sim::storm),
    (5, Sim::slow_disk),
    (4, Sim::stuck_disk),
    (8, Sim::hold_ops),
    (4, Sim::read_errors),
    (4, Sim::write_errors),
    (1, Sim::flush_error),
    (5, Sim::metad_down),
    (4, Sim::lose_answers),
    (4, Sim::cut_from_metad),
    (4, Sim::wipe_a_store),
];

impl Sim {
    /// Something goes wrong, now or at the next bad moment; the next trouble is on its way.
    pub(crate) fn on_fault(&mut self) {
        if self.calm {
            return;
        }
        match self.fate.below(8) {
            0..=2 => self.strike(),
            3 | 4 => self.lie_in_wait(Prey::Write),
            5 => self.lie_in_wait(Prey::Change),
            6 => self.lie_in_wait(Prey::Clean),
            _ => self.lie_in_wait(Prey::Attach),
        }
        // Troubles come in company.
        let mean_ns = self.plan.fault_every_ms * 1_000_000;
        let pause = if self.fate.chance(1, 3) {
            self.fate.within(0, mean_ns / 10)
        } else {
            self.fate.within(mean_ns / 10, mean_ns * 2)
        };
        self.schedule(pause, Task::Fault);
    }

    /// One trouble at a time waits for a moment; a second does not.
    fn lie_in_wait(&mut self, prey: Prey) {
        if !self.lurking.insert(prey) {
            self.strike();
        }
    }

    /// A moment that a trouble may be waiting for.
    pub(crate) fn pass(&mut self, prey: Prey) {
        self.user_sees(prey);
        self.script_sees(prey);
        let odds = match prey {
            Prey::Write => 8,
            Prey::Change => 3,
            Prey::Clean | Prey::Attach | Prey::Reconcile => 1,
        };
        if self.lurking.contains(&prey) && self.fate.chance(1, odds) {
            self.lurking.remove(&prey);
            let most_ns = match prey {
                Prey::Reconcile => 800_000_000,
                Prey::Attach => 100_000,
                Prey::Write | Prey::Change | Prey::Clean => {
                    [100_000, 1_000_000, 30_000_000][index(&mut self.fate, 3)]
                }
            };
            let pause = self.fate.within(0, most_ns);
            self.schedule(pause, Task::Strike(prey));
        }
    }

    /// What was waiting for the moment, with a liking for what would hurt most just then.
    pub(crate) fn on_strike(&mut self, prey: Prey) {
        if self.calm {
            return;
        }
        let likely = self.fate.chance(2, 3);
        match prey {
            // What was written during a long pass is in caches when it ends.
            Prey::Clean if !likely => {
                self.hold_all_ops(8);
                self.lurking.insert(Prey::Clean);
            }
            // Soon back: nobody is removed, and what differs now stays.
            Prey::Clean => {
                let servers = self.some_servers();
                self.cut_stores(servers, true, 1);
            }
            Prey::Write if !likely => {
                let servers = self.some_servers();
                self.cut_stores(servers, true, 1);
                self.lurking.insert(Prey::Attach);
            }
            Prey::Attach if likely => {
                self.hold_all_ops(3);
                self.lurking.insert(Prey::Reconcile);
            }
            Prey::Reconcile => {
                self.reset_a_member();
                if likely {
                    let pause = self.fate.within(0, 500_000_000);
                    self.schedule(pause, Task::Strike(Prey::Reconcile));
                }
            }
            Prey::Change if !likely => self.leave_the_volume(),
            Prey::Write | Prey::Change | Prey::Attach => self.strike(),
        }
    }

    /// Some trouble.
    fn strike(&mut self) {
        let total = KINDS.iter().map(|(weight, _)| weight).sum();
        let mut luck = self.fate.below(total);
        for (weight, strike) in KINDS {
            if luck < *weight {
                return strike(self);
            }
            luck -= weight;
        }
    }

    pub(crate) fn trouble(&mut self, what: std::fmt::Arguments<'_>) {
        self.faults_count += 1;
        self.say(format_args!("FAULT {what}"));
    }

    fn any_server(&mut self) -> usize {
        index(&mut self.fate, self.servers.len())
    }

    /// Short mostly, long sometimes.
    fn duration_ns(&mut self, most_s: u64) -> u64 {
        let most_ns = most_s * SECOND_NS;
        match self.fate.below(3) {
            0 => self.fate.within(1_000_000, most_ns / 50),
            1 => self.fate.within(1_000_000, most_ns / 5),
            _ => self.fate.within(1_000_000, most_ns),
        }
    }

    fn ease_later(&mut self, most_s: u64, ease: Ease) {
        let after = self.duration_ns(most_s);
        self.schedule(after, Task::Ease(ease));
    }

    fn kill_a_store(&mut self) {
        let index = self.any_server();
        if self.servers[index].is_up() {
            self.trouble(format_args!("server {index}: kill -9"));
            self.rare.note(Rare::StoreKilled);
            self.crash_server(index);
            let after = self.duration_ns(20);
            self.schedule(after, Task::Boot(Party::Server(index)));
        }
    }

    fn cut_a_store(&mut self) {
        let index = self.any_server();
        self.trouble(format_args!("server {index}: power cut"));
        self.rare.note(Rare::PowerLost);
        self.cut_server(index);
        let after = self.duration_ns(30);
        self.schedule(after, Task::Boot(Party::Server(index)));
    }

    fn cut_all_stores(&mut self) {
        self.rare.note(Rare::PowerLostEverywhere);
        let hosts_too = self.fate.chance(1, 2);
        self.cut_stores((0..self.servers.len()).collect(), hosts_too, 20);
    }

    /// What hangs on one fuse.
    fn cut_some_stores(&mut self) {
        let hosts_too = self.fate.chance(1, 2);
        let servers = self.some_servers();
        self.cut_stores(servers, hosts_too, 20);
    }

    fn some_servers(&mut self) -> Vec<usize> {
        let all = 0..self.servers.len();
        all.filter(|_| self.fate.chance(1, 2)).collect()
    }

    fn cut_stores(&mut self, servers: Vec<usize>, hosts_too: bool, most_s: u64) {
        self.trouble(format_args!(
            "servers {servers:?}: power cut, hosts too {hosts_too}"
        ));
        for index in servers {
            self.cut_server(index);
            let after = self.duration_ns(most_s);
            self.schedule(after, Task::Boot(Party::Server(index)));
        }
        if !hosts_too {
            return;
        }
        for index in 0..self.hosts.len() {
            self.crash_host(index, true);
            let after = self.duration_ns(most_s);
            self.schedule(after, Task::Boot(Party::Host(index)));
        }
    }

    fn stop_a_store(&mut self) {
        let index = self.any_server();
        let server = &self.servers[index];
        if server.listening && !server.stopping {
            self.trouble(format_args!("server {index}: is to stop in order"));
            self.stop_server(index);
            let after = self.duration_ns(10);
            self.schedule(after, Task::Boot(Party::Server(index)));
        }
    }

    pub(crate) fn the_client(&self) -> Option<usize> {
        let era = self.oracle.era();
        self.hosts.iter().position(|h| h.serving == Some(era))
    }

    fn kill_a_client(&mut self) {
        let index = match self.the_client() {
            Some(index) if self.fate.chance(3, 4) => index,
            _ => index(&mut self.fate, self.hosts.len()),
        };
        if self.hosts[index].is_up() {
            let power = self.fate.chance(1, 3);
            self.trouble(format_args!("host {index}: killed, power {power}"));
            self.crash_host(index, power);
            let after = self.duration_ns(10);
            self.schedule(after, Task::Boot(Party::Host(index)));
        }
    }

    /// The client is stopped, its volume taken from it and given to another; then it goes on.
    fn make_a_zombie(&mut self) {
        let Some(zombie) = self.the_client() else {
            return;
        };
        if self.hosts.len() < 2 || self.world.is_stopped(self.hosts[zombie].node) {
            return;
        }
        let heir = (zombie + 1 + index(&mut self.fate, self.hosts.len() - 1)) % self.hosts.len();
        let partitioned = self.fate.chance(1, 3);
        self.trouble(format_args!(
            "host {zombie}: superseded by host {heir}, cut off from metad instead of stopped {partitioned}"
        ));
        if partitioned {
            self.metad.cut.insert(Party::Host(zombie));
            self.ease_later(40, Ease::Uncut(Party::Host(zombie)));
        } else {
            self.stop_host(zombie);
            self.ease_later(40, Ease::GoOn(zombie));
        }
        self.give_volume_to(heir, true);
    }

    fn pause_a_client(&mut self) {
        let Some(index) = self.the_client() else {
            return;
        };
        self.trouble(format_args!("host {index}: stopped for a while"));
        self.stop_host(index);
        self.ease_later(20, Ease::GoOn(index));
    }

    fn move_the_volume(&mut self) {
        let to = index(&mut self.fate, self.hosts.len());
        self.trouble(format_args!("the volume moves to host {to}"));
        self.give_volume_to(to, false);
    }

    /// Nobody wants the volume for a while: after a detach in order, by force, or after its client died.
    fn leave_the_volume(&mut self) {
        if !self.operator.todo.is_empty() || self.recorded().desired.is_none() {
            return;
        }
        let how = self.fate.below(3);
        self.trouble(format_args!(
            "nobody wants the volume for a while, how {how}"
        ));
        let volume = crate::metad::VOLUME;
        let command = match how {
            0 => Command::ClearDesiredAttachment { volume },
            _ => Command::ForceDetach { volume },
        };
        if let Some(client) = self.the_client().filter(|_| how == 1) {
            self.crash_host(client, false);
            let after = self.duration_ns(10);
            self.schedule(after, Task::Boot(Party::Host(client)));
        }
        self.operator.todo.push_back(command);
        self.operator.idle = true;
        self.operate();
        self.ease_later(90, Ease::Wanted);
    }

    /// The operator has the volume detached in order, and wants it again after so long.
    pub(crate) fn leave_for(&mut self, idle_ns: u64) {
        let volume = crate::metad::VOLUME;
        let detach = Command::ClearDesiredAttachment { volume };
        self.operator.todo.push_back(detach);
        self.operator.idle = true;
        self.operate();
        self.schedule(idle_ns, Task::Ease(Ease::Wanted));
    }

    /// Ends that.
    fn want_the_volume(&mut self) {
        if !std::mem::take(&mut self.operator.idle) {
            return;
        }
        let host = index(&mut self.fate, self.hosts.len());
        let Some(id) = self.hosts[host].id else {
            self.operator.idle = true;
            return self.schedule(SECOND_NS / 2, Task::Ease(Ease::Wanted));
        };
        let volume = crate::metad::VOLUME;
        let command = Command::SetDesiredAttachment { volume, host: id };
        self.operator.todo.push_back(command);
        self.operator.goal = host;
        self.operate();
    }

    fn nodes(&self) -> Vec<reactor::sim::NodeId> {
        let servers = self.servers.iter().map(|s| s.node);
        servers.chain(self.hosts.iter().map(|h| h.node)).collect()
    }

    /// A server and a host, or the server that has the volume.
    fn any_pair(&mut self) -> (usize, usize) {
        let server = self.any_server();
        let upkeeper = self.the_upkeeper().filter(|other| *other != server);
        if let Some(other) = upkeeper
            && self.fate.chance(3, 4)
        {
            return (server, other);
        }
        let host = match self.the_client() {
            Some(host) if self.fate.chance(3, 4) => host,
            _ => index(&mut self.fate, self.hosts.len()),
        };
        (server, self.servers.len() + host)
    }

    fn reset_connections(&mut self) {
        let (a, b) = self.any_pair();
        self.trouble(format_args!(
            "connections between nodes {a} and {b} are reset"
        ));
        let nodes = self.nodes();
        self.world.reset_between(nodes[a], nodes[b]);
    }

    /// The client loses a member for a moment: perhaps the one that it copies from.
    fn reset_a_member(&mut self) {
        let client = self.the_client().map(|host| self.hosts[host].node);
        let upkeeper = self.the_upkeeper().map(|server| self.servers[server].node);
        let Some(client) = upkeeper.or(client) else {
            return;
        };
        let members: Vec<StoreId> = self.recorded().isr.iter().copied().collect();
        let store = members[index(&mut self.fate, members.len())];
        let server = self.servers.iter().position(|s| s.store == Some(store));
        let server = server.expect("stores have servers");
        self.trouble(format_args!(
            "connections between the client and server {server} are reset"
        ));
        self.world.reset_between(client, self.servers[server].node);
    }

    fn partition(&mut self) {
        let (a, b) = self.any_pair();
        let way = self.fate.below(3);
        self.trouble(format_args!("nodes {a} and {b} are cut off, ways {way}"));
        let nodes = self.nodes();
        match way {
            0 => self.world.partition(nodes[a], nodes[b]),
            1 => self.world.partition_one_way(nodes[a], nodes[b]),
            _ => self.world.partition_one_way(nodes[b], nodes[a]),
        }
        self.ease_later(30, Ease::Heal(a, b));
    }

    fn storm(&mut self) {
        let most = [2_000_000, 20_000_000, 300_000_000][index(&mut self.fate, 3)];
        self.trouble(format_args!("packets take up to {} ms", most / 1_000_000));
        self.world.set_net_delay((20_000, most));
        self.ease_later(8, Ease::Net);
    }

    fn slow_disk(&mut self) {
        let index = self.any_server();
        let most = self.fate.within(1_000_000, 60_000_000);
        self.trouble(format_args!(
            "server {index}: disk takes up to {} ms",
            most / 1_000_000
        ));
        let node = self.servers[index].node;
        self.world
            .set_disk_delay(node, path(), Some((100_000, most)));
        self.ease_later(15, Ease::Disk(index));
    }

    fn stuck_disk(&mut self) {
        let index = self.any_server();
        self.trouble(format_args!("server {index}: disk is stuck"));
        self.world.set_stuck(self.servers[index].node, path(), true);
        self.ease_later(20, Ease::Unstick(index));
    }

    /// A device that tries again inside: single ops take very long, and later ones pass them.
    fn hold_ops(&mut self) {
        let index = self.any_server();
        let one_in = [2, 8, 40][crate::plan::index(&mut self.fate, 3)];
        let most = self.fate.within(20, 8_000);
        self.hold_ops_of(index, one_in, most, 20);
    }

    fn hold_all_ops(&mut self, one_in: u64) {
        for index in 0..self.servers.len() {
            let most = self.fate.within(20, 2_000);
            self.hold_ops_of(index, one_in, most, 5);
        }
    }

    fn hold_ops_of(&mut self, index: usize, one_in: u64, most: u64, ease_s: u64) {
        self.trouble(format_args!(
            "server {index}: one op of its disk in {one_in} takes up to {most} ms"
        ));
        let node = self.servers[index].node;
        let held = (1_000_000, most * 1_000_000);
        self.world
            .set_disk_laggards(node, path(), Some((one_in, held)));
        self.ease_later(ease_s, Ease::Laggards(index));
    }

    fn disk_errors(&mut self, kind: FaultKind, times: u32) {
        let index = self.any_server();
        if kind == FaultKind::Read {
            self.unspoil(index, false);
        }
        self.trouble(format_args!("server {index}: {times} {kind:?} errors"));
        let fault = Fault {
            kind,
            range_bytes: 0..DEVICE_BYTES,
            errno: Errno::IO,
            times,
        };
        self.world
            .disk(self.servers[index].node, path())
            .inject(fault);
    }

    fn read_errors(&mut self) {
        let times = self.fate.within(1, 6);
        self.disk_errors(FaultKind::Read, u32::try_from(times).expect("small"));
    }

    fn write_errors(&mut self) {
        let times = self.fate.within(1, 3);
        self.disk_errors(FaultKind::Write, u32::try_from(times).expect("small"));
    }

    fn flush_error(&mut self) {
        self.disk_errors(FaultKind::Flush, 1);
    }

    fn metad_down(&mut self) {
        self.trouble(format_args!("metad is down"));
        self.metad.up = false;
        self.ease_later(30, Ease::Metad);
    }

    fn lose_answers(&mut self) {
        self.trouble(format_args!("metad's answers get lost"));
        self.metad.lossy = true;
        self.ease_later(30, Ease::Answers);
    }

    fn cut_from_metad(&mut self) {
        let party = match self.the_client() {
            Some(host) if self.fate.chance(1, 2) => Party::Host(host),
            _ => Party::Server(self.any_server()),
        };
        self.trouble(format_args!("{party:?} is cut off from metad"));
        self.metad.cut.insert(party);
        self.ease_later(20, Ease::Uncut(party));
    }

    /// The medium of one store is lost and a blank one with its identity put in its place. Only
    /// while every other in-sync store's medium is whole: that is the promise. A store counts as
    /// removed from when metad is asked to remove it.
    fn wipe_a_store(&mut self) {
        let volume = self.recorded();
        let of_volume = |s: &StoreId| self.servers.iter().position(|it| it.store == Some(*s));
        let all: Vec<usize> = volume.map.stores.iter().filter_map(of_volume).collect();
        let server = all[index(&mut self.fate, all.len())];
        let after = self.duration_ns(10);
        if self.wipe(server, (after, after)) && self.fate.chance(1, 3) {
            self.crash_beside(server, &all);
        }
    }

    /// Another store of the volume crashes and keeps its medium, while nobody has noticed yet that one
    /// has lost it: its connections still look alive.
    fn crash_beside(&mut self, lost: usize, all: &[usize]) {
        let others: Vec<usize> = all.iter().copied().filter(|s| *s != lost).collect();
        let other = others[index(&mut self.fate, others.len())];
        if self.servers[other].is_up() {
            self.trouble(format_args!("server {other}: kill -9 beside it"));
            self.rare.note(Rare::StoreKilled);
            self.crash_server(other);
            let after = self.duration_ns(20);
            self.schedule(after, Task::Boot(Party::Server(other)));
        }
    }

    /// The same to one of them; false if that must not be now.
    pub(crate) fn wipe(&mut self, index: usize, back_ns: (u64, u64)) -> bool {
        let volume = self.recorded();
        let whole = volume.isr.len() == volume.map.stores.len()
            && self.no_slice_is_incomplete()
            && !self.membership_is_asked_for();
        // Until its membership is verified, nobody knows who is in sync.
        if volume.map.shape.replicas < 2
            || !volume.verified
            || !whole
            || !self.clones_are_whole()
            || self.wiped.is_some_and(|at| volume.seq <= at)
        {
            return false;
        }
        let seq = volume.seq;
        self.unspoil_all();
        self.trouble(format_args!(
            "server {index}: its disk is lost and replaced by a blank one"
        ));
        self.rare.note(Rare::StoreWiped);
        // The set must change before the next: this store has to leave and come back.
        self.wiped = Some(seq);
        self.cut_server(index);
        let node = self.servers[index].node;
        self.world.remove_disk(node, path());
        self.give_blank_store(index);
        self.record_loss(index);
        self.restart_server(index, back_ns);
        true
    }

    /// Whether every slice of the volume is there and whole. A store that is down is not.
    pub(crate) fn no_slice_is_incomplete(&self) -> bool {
        let volume = self.recorded();
        volume
            .map
            .stores
            .iter()
            .zip(&volume.slices)
            .all(|(store, nsid)| self.slice_facts(*store, *nsid) == Some(false))
    }

    /// Whether a store says that its slice is incomplete.
    pub(crate) fn is_incomplete(&self, store: StoreId, nsid: shardmap::units::Nsid) -> bool {
        self.slice_facts(store, nsid) == Some(true)
    }

    /// Whether a slice is incomplete; `None`: it is not there now.
    pub(crate) fn slice_facts(&self, store: StoreId, nsid: shardmap::units::Nsid) -> Option<bool> {
        let slice = self.with_store(store, |s| s.slice(nsid))??;
        Some(slice.incomplete)
    }

    /// A trouble ends.
    pub(crate) fn on_ease(&mut self, ease: Ease) {
        self.say(format_args!("ease {ease:?}"));
        match ease {
            Ease::Net => self.world.set_net_delay(NET_NS),
            Ease::Heal(a, b) => {
                let nodes = self.nodes();
                self.world.heal(nodes[a], nodes[b]);
            }
            Ease::Disk(index) => {
                let node = self.servers[index].node;
                self.world.set_disk_delay(node, path(), None);
            }
            Ease::Unstick(index) => {
                self.world
                    .set_stuck(self.servers[index].node, path(), false);
            }
            Ease::Laggards(index) => {
                let node = self.servers[index].node;
                self.world.set_disk_laggards(node, path(), None);
            }
            Ease::GoOn(index) => self.host_goes_on(index),
            Ease::Metad => self.metad.up = true,
            Ease::Answers => self.metad.lossy = false,
            Ease::Uncut(party) => {
                self.metad.cut.remove(&party);
            }
            Ease::Wanted => self.want_the_volume(),
        }
    }

    /// Ends all trouble for good.
    pub(crate) fn ease_all(&mut self) {
        self.calm = true;
        self.say(format_args!("all trouble ends"));
        self.end_script();
        for ease in [Ease::Net, Ease::Metad, Ease::Answers] {
            self.on_ease(ease);
        }
        self.metad.cut.clear();
        for server in 0..self.servers.len() {
            for other in 0..self.servers.len() + self.hosts.len() {
                self.on_ease(Ease::Heal(server, other));
            }
            self.on_ease(Ease::Disk(server));
            self.on_ease(Ease::Unstick(server));
            self.on_ease(Ease::Laggards(server));
            let node = self.servers[server].node;
            self.world.disk(node, path()).forgive();
            self.schedule(0, Task::Boot(Party::Server(server)));
        }
        for host in 0..self.hosts.len() {
            self.host_goes_on(host);
            self.schedule(0, Task::Boot(Party::Host(host)));
        }
        self.on_ease(Ease::Wanted);
    }

    /// Has the operator give the volume to a host: after a detach in order, or by force.
    pub(crate) fn give_volume_to(&mut self, host: usize, force: bool) {
        if !self.operator.todo.is_empty() {
            return;
        }
        let Some(id) = self.hosts[host].id else {
            return;
        };
        let volume = crate::metad::VOLUME;
        let first = if force {
            Command::ForceDetach { volume }
        } else {
            Command::ClearDesiredAttachment { volume }
        };
        self.operator.todo.push_back(first);
        self.operator
            .todo
            .push_back(Command::SetDesiredAttachment { volume, host: id });
        (self.operator.goal, self.operator.idle) = (host, false);
        self.operate();
    }

    /// A failed device is taken away and attached again.
    pub(crate) fn on_replug(&mut self, host: usize) {
        let it = &self.hosts[host];
        if !it.failed || !matches!(it.held, Held::Here(_)) {
            return;
        }
        if it.id == self.recorded().desired {
            self.give_volume_to(host, false);
        }
        // Until it is gone: the operator may be busy, or the host may not have heard.
        let life = self.hosts[host].life;
        self.schedule(3 * SECOND_NS, Task::Replug(Party::Host(host), life));
    }
}

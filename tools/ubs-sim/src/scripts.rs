//! Troubles that come in a certain order: some hazards need three things in a row at the right moments,
//! which chance alone hardly ever brings together.
//!
//! * *An abandoned choice*: a member misses what the others have, the client dies, the next one compares;
//!   copies of the first choice wait inside the target's disk while their source is lost and comes back.
//! * *A zero that only the blank store has*: it comes between the look at the marks of the sources, which
//!   do not get to it, and the end of the resilver; then the client and the sources are lost.
//! * *A newcomer left alone*: a store joins, and all older members are lost before they hear of it; then the
//!   newcomer is lost, and metad comes back from a backup that is older than the join.

use crate::faults::Prey;
use crate::plan::index;
use crate::rare::Rare;
use crate::server::path;
use crate::sim::{Party, Sim, Task};
use crate::workload::Kind;
use reactor::sim::Prng;
use shardmap::units::{EXTENT_BLOCKS, Generation, Lba, Nsid, StoreId};
use volume::TraceEvent;

const MS: u64 = 1_000_000;

/// Which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    AbandonedChoice,
    ZeroToBlank,
    NewcomerAlone,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scene {
    #[default]
    Idle,
    /// Writes to a server's disk wait; power and client are lost next.
    Missing(usize),
    /// The next client is awaited.
    Awaited,
    /// It compares; copies to this server wait in its disk.
    Compared(usize),
    /// Hosts are quiet until nothing is marked.
    Hushed,
    /// This server has lost its disk.
    Blank(usize),
    /// It is being brought up to date, and zeroes come.
    Zeroing(usize),
    /// This server's store has just joined, and the older members are gone.
    Alone(usize),
}

/// The script of a seed.
#[derive(Debug)]
pub(crate) struct Scripts {
    chance: Prng,
    script: Option<Script>,
    scene: Scene,
    /// Not before; and the end of one that got stuck.
    next_ns: u64,
    /// The next client reads everything.
    pub(crate) look_at_all: bool,
}

impl Scripts {
    pub(crate) fn draw(mut chance: Prng) -> Self {
        let all = [
            None,
            Some(Script::AbandonedChoice),
            Some(Script::ZeroToBlank),
        ];
        let script = all[index(&mut chance, all.len())];
        let newcomer = script.is_none() && chance.chance(1, 2);
        let script = script.or(newcomer.then_some(Script::NewcomerAlone));
        Self {
            chance,
            script,
            scene: Scene::Idle,
            next_ns: 5_000 * MS,
            look_at_all: false,
        }
    }

    /// Whether metad comes back from a backup in it.
    pub(crate) fn restores(&self) -> bool {
        self.script == Some(Script::NewcomerAlone)
    }
}

impl Sim {
    /// Whether hosts do nothing by themselves now.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let quiet = matches!(
            self.scripts.scene,
            Scene::Hushed | Scene::Blank(_) | Scene::Zeroing(..)
        );
        if quiet && self.world.now_ns() >= self.scripts.next_ns {
            self.end_script(); // it came otherwise
            return false;
        }
        quiet
    }

    fn script_after(&mut self, ms: (u64, u64)) {
        let pause = self.scripts.chance.within(ms.0 * MS, ms.1 * MS);
        self.schedule(pause, Task::Script(self.scripts.scene_number()));
    }

    /// A moment that a script may begin with.
    pub(crate) fn script_sees(&mut self, prey: Prey) {
        let now = self.world.now_ns();
        if self.calm || now < self.scripts.next_ns {
            return;
        }
        if self.scripts.scene != Scene::Idle {
            self.end_script();
        }
        match (self.scripts.script, prey) {
            (Some(Script::AbandonedChoice), Prey::Write) if self.scripts.chance.chance(1, 20) => {
                self.miss_a_write();
            }
            (Some(Script::ZeroToBlank), Prey::Clean) => self.begin_scene(Scene::Hushed),
            (Some(_) | None, _) => {}
        }
    }

    fn begin_scene(&mut self, scene: Scene) {
        self.scripts.scene = scene;
        self.scripts.next_ns = self.world.now_ns() + 10_000 * MS;
        self.say(format_args!("script: {scene:?}"));
    }

    /// The next scene is due.
    pub(crate) fn on_script(&mut self, of: u64) {
        if self.calm || of != self.scripts.scene_number() {
            return;
        }
        match self.scripts.scene {
            Scene::Idle | Scene::Awaited | Scene::Hushed | Scene::Blank(_) => {}
            Scene::Missing(server) => self.lose_what_was_missed(server),
            Scene::Compared(target) => self.lose_the_source(target),
            Scene::Zeroing(_) => self.send_a_zero(),
            Scene::Alone(newcomer) => self.forget_the_newcomer(newcomer),
        }
    }

    /// Servers of the volume whose store is in sync, ascending.
    fn members(&self) -> Vec<usize> {
        let isr = self.recorded().isr.iter();
        isr.map(|store| self.server_of(*store)).collect()
    }

    /// Ends what single disks were made to do.
    pub(crate) fn end_script(&mut self) {
        for server in 0..self.servers.len() {
            let node = self.servers[server].node;
            self.world.set_slow_writes(node, path(), None);
            if self.scripts.scene != Scene::Idle {
                self.world.set_disk_delay(node, path(), None);
            }
        }
        if self.scripts.scene != Scene::Idle {
            self.begin_scene(Scene::Idle);
        }
    }

    fn miss_a_write(&mut self) {
        let members = self.members();
        if members.len() < 2 {
            return;
        }
        let server = members[index(&mut self.scripts.chance, members.len())];
        self.faults_count += 1;
        self.begin_scene(Scene::Missing(server));
        let node = self.servers[server].node;
        let slow_ns = (2_000 * MS, 5_000 * MS);
        self.world.set_slow_writes(node, path(), Some(slow_ns));
        self.script_after((1, 30));
    }

    fn lose_what_was_missed(&mut self, server: usize) {
        self.faults_count += 1;
        let node = self.servers[server].node;
        self.world.set_slow_writes(node, path(), None);
        self.begin_scene(Scene::Awaited);
        self.cut_server(server);
        self.restart_server(server, (10 * MS, 100 * MS));
        for host in 0..self.hosts.len() {
            if self.hosts[host].serving.is_some() {
                self.crash_host(host, false);
                let after = self.scripts.chance.within(100 * MS, 300 * MS);
                self.schedule(after, Task::Boot(Party::Host(host)));
            }
        }
    }

    /// A client has something to compare.
    fn wait_in_the_disk(&mut self) {
        let members = self.members();
        if members.len() < 2 {
            return self.end_script();
        }
        let target = members[index(&mut self.scripts.chance, members.len())];
        self.faults_count += 1;
        self.begin_scene(Scene::Compared(target));
        let node = self.servers[target].node;
        // It answers last, so another one is the source.
        let later_ns = (MS, 3 * MS);
        self.world.set_disk_delay(node, path(), Some(later_ns));
        let slow_ns = (300 * MS, 900 * MS);
        self.world.set_slow_writes(node, path(), Some(slow_ns));
        self.script_after((10, 150));
    }

    fn lose_the_source(&mut self, target: usize) {
        let Some(host) = self.holder() else {
            return self.end_script();
        };
        self.end_script();
        self.rare.note(Rare::ChoiceAbandoned);
        for member in self.members() {
            if member != target {
                self.faults_count += 1;
                let (node, of_host) = (self.servers[member].node, self.hosts[host].node);
                self.world.reset_between(of_host, node);
                // Now it answers later than the target.
                let later_ns = (5 * MS, 20 * MS);
                self.world.set_disk_delay(node, path(), Some(later_ns));
                let after = self.scripts.chance.within(200 * MS, 400 * MS);
                self.schedule(after, Task::Ease(crate::faults::Ease::Disk(member)));
            }
        }
    }

    fn lose_a_disk_in_quiet(&mut self) {
        let members = self.members();
        if self.has_marks() || members.len() < 2 || members.len() < self.recorded().map.stores.len()
        {
            return;
        }
        let server = members[index(&mut self.scripts.chance, members.len())];
        if self.wipe(server, (10 * MS, 100 * MS)) {
            self.begin_scene(Scene::Blank(server));
        }
    }

    /// Whether a store of the volume has a mark, or cannot say.
    fn has_marks(&self) -> bool {
        let volume = self.recorded();
        let mut slices = volume.map.stores.iter().zip(&volume.slices);
        let marks = |(store, nsid): (&StoreId, &Nsid)| {
            let slice = self.with_store(*store, |it| it.slice(*nsid))??;
            Some(slice.mark_count)
        };
        slices.any(|slice| marks(slice) != Some(0))
    }

    /// The marks of the sources are being asked for: what comes after the answer is not among them. What
    /// comes before its copy need not be copied.
    fn zero_it(&mut self, server: usize) {
        self.begin_scene(Scene::Zeroing(server));
        for member in self.members() {
            let slow_ns = (500 * MS, 2_000 * MS);
            let node = self.servers[member].node;
            self.world.set_slow_writes(node, path(), Some(slow_ns));
        }
        for _ in 0..3 {
            let pause = self.scripts.chance.within(MS / 8, MS / 2);
            self.schedule(pause, Task::Script(self.scripts.scene_number()));
        }
    }

    fn send_a_zero(&mut self) {
        let touched = self.log.touched();
        let touched: Vec<u64> = touched.filter(|block| self.holds_data(*block)).collect();
        let (Some(host), false) = (self.holder(), touched.is_empty()) else {
            return;
        };
        let block = touched[index(&mut self.scripts.chance, touched.len())];
        let extent = u64::from(EXTENT_BLOCKS);
        let start = block / extent * extent;
        let end = (start + extent).min(self.plan.size_blocks());
        let era = self.oracle.era();
        self.start(host, era, Kind::Zero { fua: false }, (start, end));
    }

    /// Whether some member shows data there.
    fn holds_data(&self, block: u64) -> bool {
        let volume = self.recorded();
        let mut slices = volume.map.stores.iter().zip(&volume.slices);
        slices.any(|(store, nsid)| {
            let member = volume.isr.contains(store);
            let place = self.with_store(*store, |it| it.place_of(*nsid, Lba(block), Generation(0)));
            member && matches!(place, Some(Ok(Some(_))))
        })
    }

    /// metad has recorded these stores as in sync: whoever else could tell is lost.
    pub(crate) fn script_sees_set(&mut self, joined: &[StoreId]) {
        let [store] = joined else {
            return;
        };
        let joined = self.server_of(*store);
        match self.scripts.scene {
            Scene::Zeroing(server) if server == joined => {
                self.rare.note(Rare::ZeroedWhileJoining);
                self.end_script();
                self.scripts.look_at_all = true;
                self.lose_all_but(joined, (10 * MS, 100 * MS));
            }
            Scene::Idle => self.leave_alone(*store),
            Scene::Missing(_)
            | Scene::Awaited
            | Scene::Compared(_)
            | Scene::Hushed
            | Scene::Blank(_)
            | Scene::Zeroing(_)
            | Scene::Alone(_) => {}
        }
    }

    fn newcomer_is_due(&self) -> bool {
        let idle = !self.calm && self.scripts.scene == Scene::Idle;
        idle && self.scripts.restores() && self.world.now_ns() >= self.scripts.next_ns
    }

    /// The newcomer, which nobody has heard of, for some seconds.
    fn leave_alone(&mut self, newcomer: StoreId) {
        if self.newcomer_is_due() && self.backup_lacks(newcomer) {
            let server = self.server_of(newcomer);
            self.rare.note(Rare::LeftAlone);
            self.begin_scene(Scene::Alone(server));
            self.lose_all_but(server, (9_000 * MS, 11_000 * MS));
            self.script_after((5_000, 7_000));
        }
    }

    /// The client, and every other member for so long.
    fn lose_all_but(&mut self, server: usize, ns: (u64, u64)) {
        self.faults_count += 1;
        for host in 0..self.hosts.len() {
            if self.hosts[host].serving.is_some() {
                self.crash_host(host, true);
                self.schedule(300 * MS, Task::Boot(Party::Host(host)));
            }
        }
        for other in self.members() {
            if other != server {
                self.cut_server(other);
                self.restart_server(other, ns);
            }
        }
    }

    fn forget_the_newcomer(&mut self, newcomer: usize) {
        self.end_script();
        self.faults_count += 1;
        self.cut_server(newcomer);
        self.restart_server(newcomer, (12_000 * MS, 20_000 * MS));
        self.on_restore();
    }

    /// What a client does, before anybody hears of it.
    pub(crate) fn script_sees_event(&mut self, what: TraceEvent) {
        if self.calm {
            return;
        }
        match (self.scripts.scene, what) {
            (Scene::Idle, TraceEvent::StartRs { .. }) if self.newcomer_is_due() => self.back_up(),
            (Scene::Awaited, TraceEvent::Establish { regions: 1.. }) => self.wait_in_the_disk(),
            (_, TraceEvent::Establish { .. }) if self.scripts.look_at_all => {
                self.prove_unmarked_equal();
            }
            (Scene::Hushed, TraceEvent::Stable) => self.lose_a_disk_in_quiet(),
            (Scene::Blank(server), TraceEvent::StartRs { store })
                if self.server_of(store) == server =>
            {
                self.zero_it(server);
            }
            (_, _) => {}
        }
    }
}

impl Scripts {
    /// Tells scenes apart, so that what was planned for one that is over does not come.
    const fn scene_number(&self) -> u64 {
        let scene = match self.scene {
            Scene::Idle => 0,
            Scene::Missing(_) => 1,
            Scene::Awaited => 2,
            Scene::Compared(_) => 3,
            Scene::Blank(_) => 4,
            Scene::Zeroing(..) => 5,
            Scene::Hushed => 6,
            Scene::Alone(_) => 7,
        };
        self.next_ns << 3 | scene
    }
}

//! A cluster in one thread: the world, who lives in it, and what is due when.

use crate::clones::Clones;
use crate::faults::{Ease, Prey};
use crate::growth::Growths;
use crate::host::Host;
use crate::log::Log;
use crate::metad::{Ask, Metad, VOLUME, Why};
use crate::plan::Plan;
use crate::rare::Counts;
use crate::recorder::Recorder;
use crate::restore::Backups;
use crate::rollbacks::Rollbacks;
use crate::rotting::Rotting;
use crate::run::Finding;
use crate::scripts::Scripts;
use crate::server::Server;
use crate::snapshots::Snapshots;
use crate::timeline::Timeline;
use crate::upkeep::Upkept;
use control::core::{Command, Domain, NewVolume, Phase, Reply};
use reactor::ArenaConfig;
use reactor::sim::{Prng, SimConfig, SimWorld};
use shardmap::units::MembershipSeq;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use storaged::News;
use ubs_verify::Oracle;
use uuid::Uuid;
use volume::VolumeEvent;

/// The cluster of every seed.
pub(crate) const CLUSTER: Uuid = Uuid::from_u128(0xc1);
const SECOND_NS: u64 = 1_000_000_000;
/// Make the chance of the user, of backups, of scripts, and of healing with nobody, another one than the world's.
const USER_SEED: u64 = 0x75_7365_7220_0000;
const BACKUP_SEED: u64 = 0x62_6163_6b75_7000;
const SCRIPT_SEED: u64 = 0x73_6372_6970_7420;
const ALONE_SEED: u64 = 0x61_6c6f_6e65_0000;

/// Who talks to metad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    Server(usize),
    Host(usize),
    Operator,
}

/// Something that is due at a moment.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// A command reaches metad.
    MetadHears(u64, Box<Ask>),
    /// An answer reaches who asked.
    AskerHears(u64, Box<Reply>),
    /// Nobody has answered.
    AskAgain(u64),
    /// A party's watch fires.
    Look(Party, u32),
    /// A process starts.
    Boot(Party),
    /// A host's workload goes on.
    Work(Party, u32),
    /// A host tries to attach again.
    AttachAgain(Party, u32),
    /// A failed device is replaced.
    Replug(Party, u32),
    /// The kernel issues requests again that a killed clientd had not answered.
    Reissue(Party, u32),
    /// A storaged's control thread looks at what it brings up to date.
    Upkeep(Party, u32),
    /// metad's leader looks whose storaged is gone.
    Duties,
    /// The operator tries again.
    Operate,
    /// Something may go wrong.
    Fault,
    /// Something goes wrong: the moment that it waited for has come.
    Strike(Prey),
    /// A trouble ends.
    Ease(Ease),
    /// The user thinks of something to do with snapshots.
    User,
    /// The user does it.
    UserActs,
    /// A disk may spoil something.
    Rot,
    /// A host writes over a block that is spoiled.
    WriteOver(u64),
    /// metad has said who has slices of the volume.
    Replicas(Party, u32),
    /// A backup of metad is made.
    Backup,
    /// metad is restored from it.
    Restore,
    /// The operator enlarges a disk.
    Grow,
    /// A server that was asked to let its store grow loses power.
    CutGrowing(usize),
    /// The user may roll the volume back.
    RollBack,
    /// The next scene of a script, if it is still that one's turn.
    Script(u64),
}

/// What an app told.
pub(crate) enum Item {
    Server(usize, u32, News),
    Host(usize, u32, VolumeEvent),
}

/// What apps told and nobody has looked at.
#[derive(Default)]
pub(crate) struct Inbox(RefCell<VecDeque<Item>>);

impl Inbox {
    pub(crate) fn put(&self, item: Item) {
        self.0.borrow_mut().push_back(item);
    }

    fn take(&self) -> Option<Item> {
        self.0.borrow_mut().pop_front()
    }

    fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// Who gives the volume to hosts.
#[derive(Default)]
pub(crate) struct Operator {
    /// Commands in order; the first may be on its way.
    pub(crate) todo: VecDeque<Command>,
    busy: bool,
    refusals: u32,
    /// Who shall have the volume.
    pub(crate) goal: usize,
    /// For now nobody shall.
    pub(crate) idle: bool,
}

/// One run.
pub(crate) struct Sim {
    pub(crate) world: SimWorld,
    agenda: BTreeMap<(u64, u64), Task>,
    next_task: u64,
    pub(crate) inbox: Rc<Inbox>,
    /// Chance of the control plane, of the workload, of the faults.
    pub(crate) control: Prng,
    pub(crate) load: Prng,
    pub(crate) fate: Prng,
    pub(crate) plan: Plan,
    pub(crate) metad: Metad,
    pub(crate) servers: Vec<Server>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) operator: Operator,
    pub(crate) asks: BTreeMap<u64, Ask>,
    pub(crate) next_ask: u64,
    pub(crate) oracle: Oracle,
    pub(crate) log: Log,
    pub(crate) snapshots: Snapshots,
    pub(crate) upkept: Upkept,
    /// If metad is restored from backups.
    pub(crate) backups: Option<Backups>,
    pub(crate) scripts: Scripts,
    pub(crate) rotting: Rotting,
    pub(crate) clones: Clones,
    /// If there is somebody who lets stores grow.
    pub(crate) growths: Option<Growths>,
    pub(crate) rollbacks: Option<Rollbacks>,
    /// When eras began, in the oracle's time.
    pub(crate) eras: BTreeMap<u32, u64>,
    pub(crate) next_op: u64,
    pub(crate) timeline: Timeline,
    pub(crate) rare: Counts,
    /// What troubles that wait for a bad moment wait for.
    pub(crate) lurking: BTreeSet<Prey>,
    /// When a write was last issued.
    pub(crate) wrote_at_ns: u64,
    pub(crate) faults_count: u64,
    pub(crate) ops_count: u64,
    /// Version of the membership when a store was last wiped.
    pub(crate) wiped: Option<MembershipSeq>,
    pub(crate) volume: shardmap::units::VolumeId,
    /// No more trouble and no more load.
    pub(crate) calm: bool,
    /// What must not be, if it was found.
    pub(crate) found: Option<String>,
    /// Of what was found.
    pub(crate) kind: Finding,
    /// If the run is to be followed in a model.
    pub(crate) recorder: Option<Box<Recorder>>,
}

impl Sim {
    /// A cluster with nothing running.
    pub(crate) fn new(seed: u64, show: bool) -> Self {
        let mut config = SimConfig::seeded(seed);
        config.arena = ArenaConfig {
            slot_counts: [192, 96, 40],
            huge_pages: false,
        };
        let mut world = SimWorld::new(config);
        let mut plan = Plan::draw(&mut world.fork_prng());
        // Of its own, so that clusters without snapshots are what they were without such a user.
        let mut snapshots = Snapshots::new(Prng::new(seed ^ USER_SEED));
        plan.snapshot_every_ms = snapshots.draw_pause_ms();
        plan.heals_alone = Prng::new(seed ^ ALONE_SEED).chance(1, 3);
        let (control, load, fate) = (world.fork_prng(), world.fork_prng(), world.fork_prng());
        let servers = (0..plan.servers).map(|n| Server::new(world.add_node(), n));
        let servers = servers.collect();
        let hosts = (0..plan.hosts).map(|n| Host::new(world.add_node(), n));
        let hosts = hosts.collect();
        let growths = Growths::draw(seed, &mut world);
        let scripts = Scripts::draw(Prng::new(seed ^ SCRIPT_SEED));
        let mut sim = Self {
            world,
            agenda: BTreeMap::new(),
            next_task: 0,
            inbox: Rc::default(),
            control,
            load,
            fate,
            plan,
            metad: Metad::new(),
            servers,
            hosts,
            operator: Operator::default(),
            asks: BTreeMap::new(),
            next_ask: 0,
            oracle: Oracle::default(),
            log: Log::default(),
            snapshots,
            rotting: Rotting::draw(seed),
            clones: Clones::draw(seed),
            growths,
            rollbacks: Rollbacks::draw(seed),
            upkept: Upkept::default(),
            backups: Backups::draw(Prng::new(seed ^ BACKUP_SEED), scripts.restores()),
            scripts,
            eras: BTreeMap::new(),
            next_op: 1,
            timeline: Timeline::new(show),
            rare: Counts::default(),
            lurking: BTreeSet::new(),
            wrote_at_ns: 0,
            faults_count: 0,
            ops_count: 0,
            wiped: None,
            volume: VOLUME,
            calm: false,
            found: None,
            kind: Finding::Broken,
            recorder: None,
        };
        let plan = format!("{:?}", sim.plan);
        sim.say(format_args!("seed {seed}: {plan}"));
        sim
    }

    /// Starts everybody and makes the volume; false if that does not come to an end.
    pub(crate) fn establish(&mut self) -> bool {
        let init = Command::InitCluster {
            uuid: CLUSTER,
            name: "sim".into(),
        };
        self.metad.init(init);
        for index in 0..self.servers.len() {
            self.give_blank_store(index);
            self.boot_server(index);
        }
        (0..self.hosts.len()).for_each(|host| self.boot_host(host));
        let known = |s: &Self| {
            s.servers.iter().all(|s| s.store.is_some()) && s.hosts.iter().all(|h| h.id.is_some())
        };
        if !self.run_to(60, known) {
            return false;
        }
        self.allow_clones();
        let plan = &self.plan;
        let new = NewVolume {
            id: VOLUME,
            name: "v".into(),
            size_bytes: plan.size_bytes,
            replicas: plan.replicas,
            shard_bytes: plan.shard_bytes,
            layout: plan.layout,
            stride: Some(plan.stride),
            min_in_sync: plan.options.min_in_sync,
            domain: Domain::Server,
            open_access: false,
            avoid: [].into(),
        };
        let made = self.metad.init(Command::CreateVolume(new));
        if made != Reply::Volume(VOLUME) {
            self.find(format!("the volume is not made: {made:?}"));
            return false;
        }
        (0..self.servers.len()).for_each(|s| self.look_soon(Party::Server(s)));
        if !self.run_to(60, |s| s.recorded().phase == Phase::Ready) {
            return false;
        }
        self.give_volume_to(0, false);
        self.schedule(SECOND_NS, Task::Duties);
        true
    }

    /// Adds a line to the timeline.
    pub(crate) fn say(&mut self, what: std::fmt::Arguments<'_>) {
        self.timeline.say(self.world.now_ns(), what);
    }

    /// Notes a broken promise. The run ends; the first finding counts.
    pub(crate) fn find(&mut self, what: String) {
        self.find_kind(Finding::Broken, what);
    }

    /// Notes what must not be.
    pub(crate) fn find_kind(&mut self, kind: Finding, what: String) {
        self.say(format_args!("FOUND {what}"));
        if self.found.is_none() {
            (self.found, self.kind) = (Some(what), kind);
        }
    }

    pub(crate) fn schedule(&mut self, after_ns: u64, task: Task) {
        let at_ns = self.world.now_ns() + after_ns;
        let number = self.next_task;
        self.next_task += 1;
        self.agenda.insert((at_ns, number), task);
    }

    /// What is on its way to metad, from the living and the dead.
    pub(crate) fn messages_to_metad(&self) -> impl Iterator<Item = &Ask> {
        self.agenda.values().filter_map(|task| {
            if let Task::MetadHears(_, ask) = task {
                Some(&**ask)
            } else {
                None
            }
        })
    }

    /// A clock of its own for each life.
    pub(crate) fn draw_clock(&mut self) -> (u64, u32) {
        let ahead_ns = self.control.below(100_000 * SECOND_NS);
        let fast_ppm = if self.control.chance(1, 4) {
            300_000
        } else {
            200
        };
        (
            ahead_ns,
            u32::try_from(self.control.below(fast_ppm)).expect("small"),
        )
    }

    pub(crate) fn life_of(&self, party: Party) -> u32 {
        match party {
            Party::Server(index) => self.servers[index].life,
            Party::Host(index) => self.hosts[index].life,
            Party::Operator => 0,
        }
    }

    /// Lets so many virtual seconds pass; less if something is found.
    pub(crate) fn run_for(&mut self, seconds: u64) {
        self.run_to(seconds, |_| false);
    }

    /// Lets things happen until `done`; false if so many virtual seconds passed first, or something
    /// was found.
    pub(crate) fn run_to(&mut self, seconds: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let until_ns = self.world.now_ns() + seconds * SECOND_NS;
        while self.found.is_none() {
            while let Some(item) = self.inbox.take() {
                self.on_item(item);
            }
            self.reap_servers();
            self.reap_growth();
            if done(self) {
                return true;
            }
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let due_ns = next.map_or(until_ns, |at| at.min(until_ns));
            let now_ns = self.world.now_ns();
            if due_ns > now_ns {
                let inbox = self.inbox.clone();
                self.world.run_to(due_ns - now_ns, |_| !inbox.is_empty());
            } else if next.is_some_and(|at| at <= now_ns) {
                let (_, task) = self.agenda.pop_first().expect("just seen");
                self.act(task);
            } else {
                return false;
            }
        }
        false
    }

    fn on_item(&mut self, item: Item) {
        match item {
            Item::Server(index, life, news) if self.servers[index].life == life => {
                if self.servers[index].is_up() {
                    self.on_server_news(index, news);
                }
            }
            Item::Host(index, life, event) if self.hosts[index].life == life => {
                if self.hosts[index].is_up() {
                    self.on_volume_event(index, event);
                }
            }
            Item::Server(..) | Item::Host(..) => {}
        }
    }

    fn act(&mut self, task: Task) {
        let task = match self.stopped_host_of(&task) {
            Some(host) => return self.hosts[host].deferred.push(task),
            None => task,
        };
        match task {
            Task::MetadHears(id, ask) => self.on_metad_hears(id, *ask),
            Task::AskerHears(id, reply) => self.on_asker_hears(id, *reply),
            Task::AskAgain(id) => self.on_ask_again(id),
            Task::Boot(Party::Server(index)) => self.boot_server(index),
            Task::Boot(Party::Host(index)) => self.boot_host(index),
            Task::Look(party, life)
            | Task::Upkeep(party, life)
            | Task::Work(party, life)
            | Task::AttachAgain(party, life)
            | Task::Replicas(party, life)
            | Task::Reissue(party, life)
            | Task::Replug(party, life) => {
                let up = match party {
                    Party::Server(index) => self.servers[index].is_up(),
                    Party::Host(index) => self.hosts[index].is_up(),
                    Party::Operator => true,
                };
                if up && self.life_of(party) == life {
                    self.act_for(party, &task);
                }
            }
            Task::Duties => self.on_duties(),
            Task::Operate => self.operate(),
            Task::Fault => self.on_fault(),
            Task::Strike(prey) => self.on_strike(prey),
            Task::Ease(ease) => self.on_ease(ease),
            Task::User => self.on_user(),
            Task::Backup => self.on_backup(),
            Task::Restore => self.on_restore(),
            Task::UserActs => self.use_snapshots(),
            Task::Rot => self.on_rot(),
            Task::WriteOver(block) => self.write_over(block),
            Task::Grow => self.on_grow(),
            Task::CutGrowing(server) => self.cut_while_it_grows(server),
            Task::RollBack => self.on_roll_back(),
            Task::Script(of) => self.on_script(of),
            Task::Boot(Party::Operator) => unreachable!("people do not boot"),
        }
    }

    fn act_for(&mut self, party: Party, task: &Task) {
        match (task, party) {
            (Task::Look(..), party) => self.on_look(party),
            (Task::Upkeep(..), Party::Server(index)) => self.on_upkeep_time(index),
            (Task::Work(..), Party::Host(index)) => self.on_work(index),
            (Task::Replicas(..), Party::Server(index)) => self.tell_replicas(index),
            (Task::AttachAgain(..), Party::Host(index)) => self.on_attach_again(index),
            (Task::Replug(..), Party::Host(index)) => self.on_replug(index),
            (Task::Reissue(..), Party::Host(index)) => self.reissue(index),
            (task, party) => unreachable!("{task:?} for {party:?}"),
        }
    }

    /// The host whose process would have to do it, if that is stopped.
    fn stopped_host_of(&self, task: &Task) -> Option<usize> {
        let party = match task {
            Task::AskerHears(id, _) | Task::AskAgain(id) => self.asks.get(id)?.party,
            Task::Look(party, _)
            | Task::Upkeep(party, _)
            | Task::Work(party, _)
            | Task::AttachAgain(party, _)
            | Task::Reissue(party, _)
            | Task::Replug(party, _) => *party,
            Task::MetadHears(..)
            | Task::Boot(_)
            | Task::Duties
            | Task::Operate
            | Task::Fault
            | Task::Strike(_)
            | Task::Ease(_)
            | Task::User
            | Task::UserActs
            | Task::Rot
            | Task::WriteOver(_)
            | Task::Replicas(..)
            | Task::Backup
            | Task::Restore
            | Task::Grow
            | Task::CutGrowing(_)
            | Task::RollBack
            | Task::Script(_) => {
                return None;
            }
        };
        let Party::Host(index) = party else {
            return None;
        };
        let host = &self.hosts[index];
        (host.is_up() && self.world.is_stopped(host.node)).then_some(index)
    }

    /// The operator's next command.
    pub(crate) fn operate(&mut self) {
        if self.operator.busy {
            return;
        }
        if let Some(command) = self.operator.todo.front().cloned() {
            self.operator.busy = true;
            self.ask(Party::Operator, Why::Operate, command);
        }
    }

    pub(crate) fn on_operator_reply(&mut self, reply: &Reply) {
        self.operator.busy = false;
        if let Reply::Refused(refusal) = reply {
            self.say(format_args!("operator: {refusal}"));
            self.operator.refusals += 1;
            if self.operator.refusals > 30 {
                // Whoever has it does not let it go.
                self.operator.refusals = 0;
                let volume = VOLUME;
                self.operator
                    .todo
                    .push_front(Command::ForceDetach { volume });
            }
            return self.schedule(SECOND_NS / 2, Task::Operate);
        }
        self.operator.refusals = 0;
        self.operator.todo.pop_front();
        self.operate();
    }
}

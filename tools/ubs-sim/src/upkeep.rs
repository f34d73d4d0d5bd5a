//! Volumes that nobody has attached (ADR 0006): what the control thread of a storaged does about them,
//! and what the leader of metad adds.
//!
//! Whatever a storaged does to a volume is acknowledged to nobody: what a block may hold does not change
//! by it. But once it has compared what was marked, all in-sync stores hold the same.

use crate::faults::{Ease, Prey};
use crate::host::prey_of;
use crate::metad::{Ask, VOLUME, Why, replicas_of};
use crate::rare::Rare;
use crate::sim::{Party, Sim, Task};
use control::core::desire::maintenance_of_server;
use control::core::{AttachGrant, Command, Refusal, RefusalCode, Reply};
use shardmap::units::{Epoch, Generation, Moment, ServerId, StoreId, VolumeId};
use std::collections::BTreeMap;
use storaged::{Ending, Maintenance, MaintenanceNews, Order, Step, hosting};
use volume::{MetadAnswer, TraceEvent};

/// How often the leader looks for volumes whose storaged is gone.
const LOOK_NS: u64 = 5_000_000_000;
/// Longest moment between what a transition shows and what is done about it.
const SOON_NS: u64 = 20_000_000;
/// Longest time for which a storaged does not hear that a host has its volume.
const DEAF_NS: u64 = 5_000_000_000;

/// A server's side of it, while its process runs.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    machine: Maintenance,
    /// From metad, on its way to the reactor.
    grant: Option<Box<AttachGrant>>,
    /// Which volume the reactor has, under which epoch.
    has: Option<(VolumeId, Epoch)>,
    /// When the machine is told the time next.
    due_ns: Option<u64>,
}

/// What is known of storageds at work.
#[derive(Debug, Default)]
pub(crate) struct Upkept {
    /// Epoch of the last one that has made all in-sync stores equal.
    equal: Option<Epoch>,
    /// When a storaged had opened every in-sync store while a host's era went on.
    pub(crate) superseded: BTreeMap<u32, u64>,
}

impl Sim {
    fn moment(&self) -> Moment {
        Moment(self.world.now_ns())
    }

    /// metad's wishes have changed.
    pub(crate) fn upkeep_looks(&mut self, index: usize, id: ServerId) {
        let desired = maintenance_of_server(&self.metad.state, id);
        let machine = &self.servers[index].upkeep.machine;
        let here = desired.iter().find(|d| Some(d.volume) == machine.here());
        if let Some(d) = here {
            let order = Order::Generations(d.volume, d.generations.clone());
            self.order(index, order);
        }
        let now = self.moment();
        let machine = &mut self.servers[index].upkeep.machine;
        let step = machine.on_desire(now, desired);
        self.upkeep_does(index, step);
    }

    /// Time has passed.
    pub(crate) fn on_upkeep_time(&mut self, index: usize) {
        let now = self.moment();
        let upkeep = &mut self.servers[index].upkeep;
        if upkeep.due_ns.is_some_and(|due| due > now.0) {
            return; // another one is on its way
        }
        upkeep.due_ns = None;
        let step = upkeep.machine.on_time(now);
        self.upkeep_does(index, step);
    }

    fn upkeep_does(&mut self, index: usize, step: Option<Step>) {
        let party = Party::Server(index);
        match step {
            None => {}
            Some(Step::Ask(volume)) => {
                let server = self.servers[index]
                    .id
                    .expect("it asks for what it was told");
                let command = Command::Maintain { volume, server };
                self.ask(party, Why::Maintain, command);
            }
            Some(Step::Host(_)) => self.upkeep_begins(index),
            Some(Step::Look(volume)) => self.upkeep_sees(index, volume),
            Some(Step::LetGo(volume)) => self.order(index, Order::LetGo(volume)),
            Some(Step::Abandon(volume)) => self.order(index, Order::Abandon(volume)),
            Some(Step::TellGone(volume, epoch)) => {
                let command = Command::Detach { volume, epoch };
                self.ask(party, Why::Detach(epoch), command);
            }
        }
        self.arm_upkeep(index);
    }

    fn arm_upkeep(&mut self, index: usize) {
        let now_ns = self.world.now_ns();
        let server = &mut self.servers[index];
        let Some(at) = server.upkeep.machine.next_deadline() else {
            return;
        };
        let due_ns = at.0.max(now_ns + 1);
        if server.upkeep.due_ns.is_none_or(|due| due > due_ns) {
            server.upkeep.due_ns = Some(due_ns);
            let life = server.life;
            self.schedule(due_ns - now_ns, Task::Upkeep(Party::Server(index), life));
        }
    }

    fn upkeep_begins(&mut self, index: usize) {
        let upkeep = &mut self.servers[index].upkeep;
        let grant = upkeep.grant.take().expect("it was just granted");
        let (volume, epoch, rollback) = (grant.volume, grant.epoch, grant.rollback);
        upkeep.has = Some((volume, epoch));
        let limit = self.plan.options.resilver_bytes_per_s_max;
        let options = hosting::options(limit, rollback);
        let grant = volume::AttachGrant::new(*grant, options);
        self.order(index, Order::Maintain(Box::new(grant), rollback));
        if volume == VOLUME {
            self.pass(Prey::Attach);
        }
    }

    /// Control looks at the volume.
    fn upkeep_sees(&mut self, index: usize, volume: VolumeId) {
        let Some(app) = &self.servers[index].app else {
            return;
        };
        let status = app.borrow().hosting().status(volume);
        let now = self.moment();
        let machine = &mut self.servers[index].upkeep.machine;
        let step = machine.on_status(now, volume, status.as_ref());
        self.upkeep_does(index, step);
    }

    /// metad has answered a storaged about a volume that it brings up to date.
    pub(crate) fn on_upkeep_reply(&mut self, index: usize, ask: &Ask, reply: Reply) {
        let now = self.moment();
        let upkeep = &mut self.servers[index].upkeep;
        let step = match (&ask.command, reply) {
            (Command::Maintain { volume, .. }, Reply::Granted(grant)) => {
                let (epoch, rollback) = (grant.epoch, grant.rollback);
                upkeep.grant = Some(grant);
                let step = upkeep.machine.on_granted(now, *volume, (epoch, rollback));
                self.rare.note(Rare::Maintained);
                if *volume == VOLUME {
                    self.record_upkeep();
                }
                self.say(format_args!("server {index}: maintains under {epoch:?}"));
                step
            }
            (Command::Maintain { volume, .. }, Reply::Refused(refusal)) => {
                let why = refusal.to_string();
                let step = upkeep.machine.on_refused(now, *volume, &why);
                self.say(format_args!("server {index}: {why}"));
                step
            }
            (Command::Detach { volume, .. }, _) => upkeep.machine.on_told(now, *volume),
            (
                Command::SetIsr {
                    volume,
                    epoch,
                    new_isr,
                    ..
                },
                reply,
            ) => {
                let Why::Isr(request) = ask.why else {
                    unreachable!("asked for an in-sync set")
                };
                if let Some(verdict) = self.verdict(reply, new_isr.clone()) {
                    self.answer_storaged((index, *volume, *epoch, request), verdict);
                }
                None
            }
            // Recorded, or no longer ours to tell.
            (_, Reply::Done | Reply::Fenced { .. })
                if matches!(ask.why, Why::Snapshot | Why::RolledBack) =>
            {
                None
            }
            (_, reply) => {
                let why = ask.why;
                self.find(format!("server {index}: {why:?} answered by {reply:?}"));
                None
            }
        };
        self.upkeep_does(index, step);
    }

    pub(crate) fn answer_storaged(
        &mut self,
        (index, volume, epoch, request): (usize, VolumeId, Epoch, u64),
        verdict: volume::MetadVerdict,
    ) {
        let answer = MetadAnswer {
            volume,
            epoch,
            request,
            verdict,
        };
        self.order(index, Order::Metad(answer));
    }

    pub(crate) fn on_maintenance_news(&mut self, index: usize, news: MaintenanceNews) {
        match news {
            MaintenanceNews::Changed { volume, what } => {
                if let Some(what) = what {
                    self.say(format_args!("server {index}: maintenance: {what:?}"));
                    // What a clone must show does not depend on its transitions.
                    if volume == VOLUME {
                        self.on_upkeep_transition(index, what);
                    }
                }
                self.upkeep_sees(index, volume);
            }
            MaintenanceNews::AskMetad(request) => {
                let (volume, epoch, seq) = (request.volume, request.epoch, request.seq);
                let new_isr = request.new_isr;
                self.say(format_args!(
                    "server {index}: asks for {new_isr:?} after {seq:?}"
                ));
                let command = Command::SetIsr {
                    volume,
                    epoch,
                    seq,
                    new_isr,
                };
                self.ask(Party::Server(index), Why::Isr(request.request), command);
            }
            MaintenanceNews::Snapshot {
                epoch,
                generation,
                step,
                ..
            } => self.tell_of_snapshot(Party::Server(index), epoch, (generation, step)),
            MaintenanceNews::Progress { .. } => {}
            MaintenanceNews::Rolling { volume, percent } => {
                let now = self.moment();
                let machine = &mut self.servers[index].upkeep.machine;
                machine.on_rolling(now, volume, percent);
            }
            MaintenanceNews::RolledBack {
                epoch, rollback, ..
            } => self.tell_rolled_back(index, epoch, rollback),
            MaintenanceNews::Resilvered { .. } => self.rare.note(Rare::MaintenanceResilvered),
            MaintenanceNews::Ended { volume, how } => self.on_upkeep_ended(index, volume, &how),
        }
    }

    fn on_upkeep_transition(&mut self, index: usize, what: TraceEvent) {
        if let TraceEvent::Establish { .. } = what {
            // Whoever had the volume is superseded from here on.
            let (era, now) = (self.oracle.era(), self.oracle.stamp());
            self.upkept.superseded.entry(era).or_insert(now);
        }
        if let TraceEvent::Reconciled = what {
            self.rare.note(Rare::MaintenanceReconciled);
        }
        if let TraceEvent::Establish { regions: 0 } | TraceEvent::Reconciled = what {
            self.upkeep_has_compared(index);
        }
        if let TraceEvent::Propose { .. } = what {
            self.rare.note(Rare::MaintenanceRemovedBlank);
        }
        // Nobody writes: that a pass has cleaned marks is no special moment.
        if let Some(prey) = prey_of(what).filter(|prey| *prey != Prey::Clean) {
            self.pass(prey);
            if self.operator.idle && self.fate.chance(1, 10) {
                self.take_it_over(index);
            }
        }
    }

    /// A host is to have the volume now; the storaged may not hear of it before the stores say so.
    fn take_it_over(&mut self, index: usize) {
        let soon = self.fate.within(0, SOON_NS);
        self.schedule(soon, Task::Ease(Ease::Wanted));
        let deaf_ns = self.fate.within(0, DEAF_NS);
        if self.fate.chance(1, 2) && !self.calm {
            self.metad.cut.insert(Party::Server(index));
            let party = Party::Server(index);
            self.schedule(deaf_ns, Task::Ease(Ease::Uncut(party)));
        }
    }

    fn upkeep_has_compared(&mut self, index: usize) {
        self.upkept.equal = self.servers[index].upkeep.has.map(|(_, epoch)| epoch);
        if !self.is_rolling() {
            self.prove_members_equal("compared");
        }
    }

    fn on_upkeep_ended(&mut self, index: usize, volume: VolumeId, how: &Ending) {
        self.say(format_args!("server {index}: maintenance ended: {how:?}"));
        match how {
            Ending::LetGo => {
                self.rare.note(Rare::MaintenanceLetGo);
                // A clone may be let go while another storaged rolls the volume back.
                if volume == VOLUME || !self.is_rolling() {
                    self.prove_members_equal("let go");
                }
            }
            Ending::Fenced => self.rare.note(Rare::MaintenanceFenced),
            Ending::Failed(_) => self.rare.note(Rare::MaintenanceFailed),
        }
        let now = self.moment();
        let upkeep = &mut self.servers[index].upkeep;
        upkeep.has = None;
        let step = upkeep.machine.on_ended(now, volume, how);
        self.upkeep_does(index, step);
    }

    /// While nobody else has been granted the volume since a storaged made all in-sync stores equal, they
    /// are, and hold what may be there. A store that is down, or has lost its medium, cannot be asked.
    pub(crate) fn prove_members_equal(&mut self, when: &str) {
        let volume = self.recorded().clone();
        if self.upkept.equal != Some(volume.epoch) || self.found.is_some() {
            return;
        }
        for block in self.oracle.touched() {
            let mut first: Option<(StoreId, u64)> = None;
            for (store, nsid) in replicas_of(&volume, block) {
                let whole = self.slice_facts(store, nsid) == Some(false);
                let failed = self.has_failed(store, nsid, block, Generation(0));
                if !volume.isr.contains(&store) || !whole || failed {
                    continue;
                }
                let value = match self.peek(store, nsid, block, Generation(0)) {
                    Ok(value) => value,
                    Err(why) => return self.find(format!("{when} with nobody: {why}")),
                };
                let (other, same) = *first.get_or_insert((store, value));
                if value != same {
                    return self.find(format!(
                        "{when} with nobody: block {block} is {same} on {other}, {value} on {store}"
                    ));
                }
                if let Err(lost) = self.oracle.may_survive(block, value) {
                    return self.find(format!("{when} with nobody: on {store} {lost}"));
                }
            }
        }
    }

    /// The leader refuses a storaged that could only wait; it may not have noticed yet.
    pub(crate) fn leader_lets_maintain(&mut self, volume: VolumeId) -> Result<(), Refusal> {
        let Some(volume) = self.metad.state.volumes.get(&volume) else {
            return Ok(()); // metad knows what to say
        };
        let there = |store: &StoreId| self.servers[self.server_of(*store)].registered;
        let members = volume.isr.iter().all(there);
        let out: Vec<StoreId> = volume.out_of_sync().collect();
        let nothing = !out.is_empty() && !out.iter().any(there);
        let pending = volume.pending_snapshot().is_some();
        if volume.rollback.is_some()
            || (members && (pending || !nothing))
            || self.control.chance(1, 4)
        {
            return Ok(());
        }
        let (why, remedy) = ("a store of the volume does not report", "wait for it");
        Err(Refusal::new(RefusalCode::NotReady, why, remedy))
    }

    /// The leader gives a volume whose storaged is gone to another one.
    pub(crate) fn on_duties(&mut self) {
        self.schedule(LOOK_NS, Task::Duties);
        // The volume first, then its clones.
        let clones = self.metad.state.volumes.keys();
        let clones = clones.copied().filter(|id| *id != VOLUME);
        let all: Vec<VolumeId> = [VOLUME].into_iter().chain(clones).collect();
        all.into_iter().for_each(|id| self.move_maintenance(id));
    }

    fn move_maintenance(&mut self, id: VolumeId) {
        let volume = &self.metad.state.volumes[&id];
        let Some(before) = volume.maintenance.filter(|_| self.metad.up) else {
            return;
        };
        let reports = |index: usize| {
            self.servers[index].registered && !self.metad.cut.contains(&Party::Server(index))
        };
        let of = |server: ServerId| self.servers.iter().position(|s| s.id == Some(server));
        let mut members = volume.isr.iter().map(|store| self.server_of(*store));
        let another = members.find(|index| reports(*index));
        if of(before.server).is_none_or(reports) || !self.control.chance(1, 2) {
            return;
        }
        let Some(server) = another.and_then(|index| self.servers[index].id) else {
            return;
        };
        if before.epoch.is_some() {
            self.rare.note(Rare::MaintenanceMoved);
        }
        let volume = id;
        self.tell_metad(Command::AssignMaintenance { volume, server });
    }

    /// Whether the volume is whole, and nobody has it.
    pub(crate) fn is_whole_with_nobody(&self) -> bool {
        let volume = self.recorded();
        let idle = volume.desired.is_none() && volume.attachment.is_none();
        let whole = volume.out_of_sync().next().is_none() && volume.pending_snapshot().is_none();
        idle && whole && volume.maintenance.is_none() && self.no_slice_is_incomplete()
    }

    /// The server whose storaged has the volume.
    pub(crate) fn the_upkeeper(&self) -> Option<usize> {
        self.servers
            .iter()
            .position(|s| s.is_up() && s.upkeep.has.is_some_and(|(id, _)| id == VOLUME))
    }
}

//! A client host: the real volume shell on a simulated machine, and what its control thread does.

use crate::device::Device;
use crate::faults::Prey;
use crate::metad::{Ask, VOLUME, Why, host_index};
use crate::rare::Rare;
use crate::sim::{Item, Party, Sim, Task};
use crate::workload::InFlight;
use control::core::desire::attachments_of_host;
use control::core::{CLIENTD_NQN_PREFIX, Command, DesiredAttachment, HostId, NewHost, Reply};
use nvmf::initiator;
use reactor::sim::NodeId;
use reactor::{App, Completion, Driver};
use shardmap::grant::MembershipRequest;
use shardmap::units::{Epoch, Incarnation, StoreId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use uuid::Uuid;
use volume::{
    AttachFault, AttachGrant, FailReason, MetadAnswer, MetadVerdict, TraceEvent, VolumeEvent,
    Volumes, VolumesConfig,
};

const ROOM_VOLUMES: u8 = 1;
const ROOM_INITIATOR: u8 = 2;

/// clientd without a block device: its requests come from the workload.
pub(crate) struct Client {
    pub(crate) volumes: Volumes,
    events: Vec<VolumeEvent>,
    tell: Box<dyn FnMut(VolumeEvent)>,
}

impl App for Client {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        self.volumes.on_completion(io, completion, &mut self.events);
        self.events.drain(..).for_each(&mut self.tell);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.volumes.on_turn_end(io, &mut self.events);
        self.events.drain(..).for_each(&mut self.tell);
    }

    fn is_finished(&self) -> bool {
        false
    }
}

/// Where the volume is, as the host's control knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Not here.
    No,
    /// metad was asked for it.
    Asking,
    /// Attaching or attached under this epoch.
    Here(Epoch),
    /// To be detached.
    Leaving(Epoch),
    /// metad is being told that it is gone.
    LettingGo,
    /// A pause before the next attempt.
    Pausing,
}

/// A client host.
pub(crate) struct Host {
    pub(crate) node: NodeId,
    uuid: Uuid,
    pub(crate) life: u32,
    pub(crate) app: Option<Rc<RefCell<Client>>>,
    pub(crate) id: Option<HostId>,
    pub(crate) seen: u64,
    pub(crate) looking: bool,
    pub(crate) held: Held,
    granted_at_ns: u64,
    /// What uses the volume, in the kernel.
    pub(crate) device: Option<Device>,
    /// What clientd keeps for its successor: which stores can be trusted, as of which attachment. `None`:
    /// nobody may take over its device.
    pub(crate) remembered: Option<(Epoch, BTreeMap<StoreId, Incarnation>)>,
    /// The in-sync set, as its client last heard of it.
    isr: BTreeSet<StoreId>,
    /// Serves, in this era of the oracle.
    pub(crate) serving: Option<u32>,
    /// The device failed.
    pub(crate) failed: bool,
    attach_failures: u32,
    /// What waits for the process to go on.
    pub(crate) deferred: Vec<Task>,
    pub(crate) ops: BTreeMap<u64, InFlight>,
    /// Regions wait for reconciliation.
    pub(crate) reconciling: bool,
    /// What metad wants of it, as its control last heard.
    desired: Option<DesiredAttachment>,
    /// Snapshots that are still to be given to the store that catches up.
    catching_up: u32,
    /// The store being resilvered, and those that were dropped in this attachment.
    resilvering: Option<StoreId>,
    dropped: BTreeSet<StoreId>,
    /// Ends of bursts left, see the workload.
    pub(crate) burst_left: u32,
    /// What it reads before it does anything else.
    pub(crate) to_read: Vec<(u64, u64)>,
}

/// A pass that cleans marks beside writes has had one since.
const LATELY_NS: u64 = 30_000_000;

/// Whether trouble likes to come then.
pub(crate) fn prey_of(what: TraceEvent) -> Option<Prey> {
    match what {
        TraceEvent::Propose { .. }
        | TraceEvent::Join { .. }
        | TraceEvent::Learn { .. }
        | TraceEvent::StartRs { .. }
        | TraceEvent::Planned { .. }
        | TraceEvent::RsFlush { .. }
        | TraceEvent::Begun { .. }
        | TraceEvent::Sealed { .. }
        | TraceEvent::CatchUp { .. }
        | TraceEvent::CaughtUp { .. }
        | TraceEvent::Shows { .. } => Some(Prey::Change),
        TraceEvent::Stable => Some(Prey::Clean),
        TraceEvent::Establish { regions: 1.. } => Some(Prey::Reconcile),
        TraceEvent::Establish { regions: 0 }
        | TraceEvent::Open { .. }
        | TraceEvent::ConnBreak { .. }
        | TraceEvent::Suspect { .. }
        | TraceEvent::Verify { .. }
        | TraceEvent::Slow { .. }
        | TraceEvent::Repaired { .. }
        | TraceEvent::Stamp { .. }
        | TraceEvent::Sent(_)
        | TraceEvent::Heard(_)
        | TraceEvent::Reconciled
        | TraceEvent::DropRs { .. }
        | TraceEvent::Resilvered(_) => None,
    }
}

fn nqn(uuid: Uuid) -> String {
    format!("{CLIENTD_NQN_PREFIX}{uuid}")
}

impl Host {
    pub(crate) fn new(node: NodeId, number: usize) -> Self {
        Self {
            node,
            uuid: Uuid::from_u128(0xc1_0000 + number as u128),
            life: 0,
            app: None,
            id: None,
            seen: 0,
            looking: false,
            held: Held::No,
            granted_at_ns: 0,
            device: None,
            remembered: None,
            isr: BTreeSet::new(),
            serving: None,
            failed: false,
            attach_failures: 0,
            deferred: Vec::new(),
            ops: BTreeMap::new(),
            reconciling: false,
            desired: None,
            catching_up: 0,
            resilvering: None,
            dropped: BTreeSet::new(),
            burst_left: 0,
            to_read: Vec::new(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.app.is_some()
    }

    /// The epoch that it has the volume under.
    pub(crate) fn held_epoch(&self) -> Option<Epoch> {
        match self.held {
            Held::Here(epoch) | Held::Leaving(epoch) => Some(epoch),
            Held::No | Held::Asking | Held::LettingGo | Held::Pausing => None,
        }
    }

    fn is_wanted(&self) -> bool {
        self.desired.as_ref().is_some_and(|d| d.wanted)
    }

    /// What an attachment leaves behind when it ends.
    fn forget_attachment(&mut self) {
        (self.serving, self.failed, self.reconciling) = (None, false, false);
        self.resilvering = None;
        self.catching_up = 0;
        self.dropped.clear();
        self.to_read.clear();
    }
}

impl Sim {
    pub(crate) fn boot_host(&mut self, index: usize) {
        if self.hosts[index].is_up() {
            return;
        }
        let (ahead_ns, fast_ppm) = self.draw_clock();
        let host = &mut self.hosts[index];
        host.life += 1;
        (host.looking, host.seen, host.held, host.id) = (false, 0, Held::No, None);
        host.forget_attachment();
        host.desired = None;
        host.deferred.clear();
        let (node, life, uuid) = (host.node, host.life, host.uuid);
        let plan = &self.plan;
        let initiator = initiator::Config {
            kato_ms: plan.kato_ms,
            command_deadline_ms: plan.deadline_ms,
            admin_deadline_ms: plan.deadline_ms,
            connect_timeout_ms: plan.deadline_ms,
            header_digest: plan.header_digest,
            data_digest: plan.data_digest,
            ..initiator::Config::new(ROOM_INITIATOR, nqn(uuid), uuid.into_bytes())
        };
        let config = VolumesConfig {
            room: ROOM_VOLUMES,
            initiator,
            seed: u64::from(life) << 8 | index as u64,
        };
        let inbox = self.inbox.clone();
        self.world.set_clock(node, ahead_ns, fast_ppm);
        let app = self.world.boot(node, |_| Client {
            volumes: Volumes::new(config),
            events: Vec::new(),
            tell: Box::new(move |event| inbox.put(Item::Host(index, life, event))),
        });
        if self.recorder.is_some() {
            app.borrow_mut().volumes.record_commands();
        }
        self.hosts[index].app = Some(app);
        self.say(format_args!("host {index}: boots"));
        let new = NewHost {
            uuid,
            name: format!("c{index}"),
            host_nqn: nqn(uuid),
        };
        let command = Command::RegisterHost(new);
        self.ask(Party::Host(index), Why::RegisterHost, command);
    }

    /// `kill -9`, which its device outlives, or the power of a client host: the same to everybody else.
    pub(crate) fn crash_host(&mut self, index: usize, power: bool) {
        if !self.hosts[index].is_up() {
            return;
        }
        if self.hosts[index].serving.is_some() {
            self.rare.note(Rare::ClientKilled);
        }
        self.note_attachment_over(index);
        self.record_gone(index);
        let host = &mut self.hosts[index];
        host.app = None;
        host.forget_attachment();
        if power {
            self.remove_device(index);
            self.world.power_cut(self.hosts[index].node);
        } else {
            self.world.crash(self.hosts[index].node);
        }
        self.forget_asks(Party::Host(index));
    }

    fn note_attachment_over(&mut self, index: usize) {
        if self.hosts[index].reconciling {
            self.rare.note(Rare::ReconcileInterrupted);
        }
        if self.hosts[index].catching_up > 0 {
            self.rare.note(Rare::CatchUpInterrupted);
        }
    }

    /// Stops the process (`SIGSTOP`).
    pub(crate) fn stop_host(&mut self, index: usize) {
        self.world.stop(self.hosts[index].node);
    }

    /// Lets it go on.
    pub(crate) fn host_goes_on(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        if !host.is_up() || !self.world.is_stopped(host.node) {
            return;
        }
        let deferred = std::mem::take(&mut host.deferred);
        let old = host.serving.is_some_and(|era| era < self.oracle.era());
        self.world.go_on(self.hosts[index].node);
        if old {
            self.rare.note(Rare::ZombieWokeUp);
        }
        for task in deferred {
            // A process that was stopped for long does not learn everything at once.
            let looks = matches!(&task, Task::Look(..));
            let most_ns = if looks { 8_000_000_000 } else { 1_000_000 };
            let delay = self.control.within(0, most_ns);
            self.schedule(delay, task);
        }
    }

    /// Acts as a part of the host's program.
    pub(crate) fn on_host<R>(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut dyn Driver, &mut Volumes) -> R,
    ) -> Option<R> {
        let host = &self.hosts[index];
        let app = host.app.clone()?;
        Some(
            self.world
                .on(host.node, |io| act(io, &mut app.borrow_mut().volumes)),
        )
    }

    pub(crate) fn on_host_reply(&mut self, index: usize, ask: Ask, reply: Reply) {
        match (ask.why, reply) {
            (Why::RegisterHost, Reply::Host(id)) => {
                self.hosts[index].id = Some(id);
                self.look_soon(Party::Host(index));
            }
            (Why::Attach, Reply::Granted(grant)) => self.on_grant(index, *grant),
            (Why::Attach, Reply::Refused(refusal)) => {
                self.say(format_args!("host {index}: {refusal}"));
                self.retry_later(index);
            }
            (Why::Detach(_), _) => {
                self.hosts[index].held = Held::No;
                self.look_soon(Party::Host(index));
            }
            // Recorded, or no longer ours to tell.
            (Why::Snapshot, Reply::Done | Reply::Fenced { .. }) => {}
            (Why::Isr(request), reply) => {
                let (Command::SetIsr { epoch, new_isr, .. }
                | Command::VerifyMembership {
                    epoch,
                    isr: new_isr,
                    ..
                }) = ask.command
                else {
                    unreachable!("asked for an in-sync set")
                };
                if let Some(verdict) = self.verdict(reply, new_isr) {
                    self.answer_isr(index, (epoch, request), verdict);
                }
            }
            (why, reply) => self.find(format!("host {index}: {why:?} answered by {reply:?}")),
        }
    }

    pub(crate) fn verdict(&mut self, reply: Reply, isr: BTreeSet<StoreId>) -> Option<MetadVerdict> {
        match reply {
            Reply::IsrSet(seq) => Some(MetadVerdict::Committed { seq, isr }),
            Reply::Stale { seq, isr } => Some(MetadVerdict::Stale { seq, isr }),
            Reply::Fenced { .. } => Some(MetadVerdict::Fenced),
            // As clientd has it: a refusal is no answer to build on.
            Reply::Refused(refusal) => {
                self.say(format_args!("metad refuses: {refusal}"));
                Some(MetadVerdict::Unknown)
            }
            other @ (Reply::Done
            | Reply::Server(_)
            | Reply::Store(_)
            | Reply::Host(_)
            | Reply::Volume(_)
            | Reply::Granted(_)) => {
                self.find(format!("SetIsr answered by {other:?}"));
                None
            }
        }
    }

    pub(crate) fn answer_isr(
        &mut self,
        index: usize,
        (epoch, request): (Epoch, u64),
        verdict: MetadVerdict,
    ) {
        let answer = MetadAnswer {
            volume: VOLUME,
            epoch,
            request,
            verdict,
        };
        self.on_host(index, |io, volumes| volumes.on_metad(io, answer));
    }

    fn on_grant(&mut self, index: usize, grant: control::core::AttachGrant) {
        let host = &mut self.hosts[index];
        if host.held != Held::Asking {
            return;
        }
        let desired = host.desired.as_ref();
        if desired.is_some_and(|d| d.has_ended(grant.epoch)) {
            self.say(format_args!(
                "host {index}: granted {:?}, which is over",
                grant.epoch
            ));
            self.rare.note(Rare::GrantLate);
            return self.retry_later(index);
        }
        host.held = Held::Here(grant.epoch);
        if host.device.is_none() {
            host.granted_at_ns = self.world.now_ns();
        }
        host.isr.clone_from(&grant.isr);
        host.forget_attachment();
        if self.the_upkeeper().is_some() {
            self.rare.note(Rare::MaintenanceTakenOver);
        }
        if self.hosts[index].device.is_some() {
            self.record_take_over();
        } else {
            self.record_grant(index, &grant.isr);
        }
        let held_since = grant.held_since;
        let mut grant = AttachGrant::new(grant, self.plan.options);
        grant.survived = self.recall(index, held_since);
        let epoch = grant.epoch;
        self.say(format_args!("host {index}: granted epoch {epoch:?}"));
        self.pass(Prey::Attach);
        let begun = self.on_host(index, |io, volumes| volumes.attach(io, &grant));
        if let Some(Err(fault)) = begun {
            self.find(format!("host {index}: {fault}"));
        }
        // metad may have said more since it granted the volume; perhaps that it is not wanted here any
        // more.
        if self.hosts[index].is_wanted() {
            self.pass_generations(index);
        } else {
            self.is_to_detach(index, epoch);
        }
    }

    fn pass_generations(&mut self, index: usize) {
        let Some(desired) = &self.hosts[index].desired else {
            return;
        };
        let generations = desired.generations.clone();
        self.on_host(index, |io, volumes| {
            volumes.set_generations(io, VOLUME, generations);
        });
    }

    fn retry_later(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.held = Held::Pausing;
        host.attach_failures += 1;
        let pause_ns = 500_000_000 << host.attach_failures.min(3);
        let life = host.life;
        self.schedule(pause_ns, Task::AttachAgain(Party::Host(index), life));
    }

    pub(crate) fn on_attach_again(&mut self, index: usize) {
        if self.hosts[index].held == Held::Pausing {
            self.hosts[index].held = Held::No;
            self.look_soon(Party::Host(index));
        }
    }

    pub(crate) fn on_host_look(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(id) = host.id else { return };
        host.looking = false;
        let state = &self.metad.state;
        host.seen = host_index(state, id);
        let desired = attachments_of_host(state, id).into_iter().next();
        host.desired.clone_from(&desired);
        match (desired, host.held) {
            (Some(d), Held::No) if d.wanted && d.ready => {
                host.held = Held::Asking;
                let command = Command::Attach {
                    volume: VOLUME,
                    host: id,
                };
                self.ask(Party::Host(index), Why::Attach, command);
            }
            (Some(d), Held::No) if !d.wanted => match d.epoch {
                Some(epoch) => self.let_go(index, epoch),
                None => self.remove_device(index),
            },
            (Some(d), Held::Here(epoch)) if d.wanted && !d.has_ended(epoch) => {
                self.pass_generations(index);
            }
            (desired, Held::Here(epoch)) => {
                if desired.is_some_and(|d| d.wanted) {
                    self.rare.note(Rare::EndedAndWanted);
                }
                self.is_to_detach(index, epoch);
            }
            (Some(d), Held::Leaving(epoch)) if !d.has_ended(epoch) => self.pass_generations(index),
            (Some(_), Held::Leaving(_)) => {}
            // Whose turn is not ours ends by itself and looks again.
            (Some(_), Held::No | Held::Asking | Held::LettingGo | Held::Pausing) => {}
            (None, Held::No) => self.remove_device(index),
            (None, _) => {}
        }
    }

    fn is_to_detach(&mut self, index: usize, epoch: Epoch) {
        self.say(format_args!("host {index}: is to detach"));
        self.hosts[index].held = Held::Leaving(epoch);
        self.on_host(index, |io, volumes| volumes.detach(io, VOLUME));
    }

    fn let_go(&mut self, index: usize, epoch: Epoch) {
        self.remove_device(index);
        self.hosts[index].held = Held::LettingGo;
        let command = Command::Detach {
            volume: VOLUME,
            epoch,
        };
        self.ask(Party::Host(index), Why::Detach(epoch), command);
    }

    pub(crate) fn on_volume_event(&mut self, index: usize, event: VolumeEvent) {
        self.record_event(index, &event);
        let event = match event.into_request() {
            Ok(request) => return self.ask_about_membership(index, request),
            Err(event) => event,
        };
        match event {
            VolumeEvent::HostDone {
                id, result, buffer, ..
            } => self.on_done(index, id, result, &buffer),
            VolumeEvent::Attached { .. } => self.on_attached(index),
            VolumeEvent::AttachFailed {
                why, stores_needed, ..
            } => {
                self.say(format_args!("host {index}: {why} {stores_needed:?}"));
                self.rare.note(Rare::AttachFailed);
                self.note_attachment_over(index);
                match self.hosts[index].held {
                    Held::Leaving(epoch) => self.let_go(index, epoch),
                    Held::Here(epoch) if why == AttachFault::DataLost => {
                        self.device_is_lost(index);
                        self.let_go(index, epoch);
                    }
                    Held::No | Held::Asking | Held::Here(_) | Held::LettingGo | Held::Pausing => {
                        self.retry_later(index);
                    }
                }
            }
            VolumeEvent::Detached { .. } => self.on_detached(index),
            VolumeEvent::Failed { why, .. } => self.on_failed(index, why),
            VolumeEvent::AskMetad { .. } | VolumeEvent::AskVerify { .. } => {
                unreachable!("passed on as a request")
            }
            VolumeEvent::Remember { epoch, stores, .. } => {
                self.hosts[index].remembered = Some((epoch, stores));
            }
            VolumeEvent::Progress { .. } | VolumeEvent::Resilvered { .. } => {}
            VolumeEvent::Snapshot {
                epoch,
                generation,
                step,
                ..
            } => self.tell_of_snapshot(Party::Host(index), epoch, (generation, step)),
            VolumeEvent::Transition {
                what: TraceEvent::Sent(_) | TraceEvent::Heard(_),
                ..
            } => {} // for the recorder
            VolumeEvent::Transition { what, .. } => self.on_transition(index, what),
        }
    }

    fn ask_about_membership(&mut self, index: usize, request: MembershipRequest) {
        let MembershipRequest {
            volume,
            request,
            epoch,
            seq,
            new_isr,
            found_seq,
        } = request;
        let command = if let Some(found_seq) = found_seq {
            self.say(format_args!(
                "host {index}: has found {new_isr:?} as {found_seq:?}"
            ));
            self.note_found(&new_isr);
            Command::VerifyMembership {
                volume,
                epoch,
                seq,
                found_seq,
                isr: new_isr,
            }
        } else {
            self.say(format_args!(
                "host {index}: asks for {new_isr:?} after {seq:?}"
            ));
            Command::SetIsr {
                volume,
                epoch,
                seq,
                new_isr,
            }
        };
        self.ask(Party::Host(index), Why::Isr(request), command);
    }

    fn on_attached(&mut self, index: usize) {
        let era = self.device_serves(index);
        let host = &mut self.hosts[index];
        host.serving = Some(era);
        host.attach_failures = 0;
        self.say(format_args!("host {index}: attached, era {era}"));
        self.plan_reading(index);
        self.work_soon(index);
        if let Held::Leaving(_) = self.hosts[index].held {
            self.on_host(index, |io, volumes| volumes.detach(io, VOLUME));
        }
    }

    fn on_detached(&mut self, index: usize) {
        self.note_attachment_over(index);
        let host = &mut self.hosts[index];
        let clean = !host.failed && host.serving == Some(self.oracle.era());
        let Held::Leaving(epoch) = host.held else {
            return self.find(format!("host {index}: detached without being asked to"));
        };
        host.forget_attachment();
        self.say(format_args!("host {index}: detached, clean {clean}"));
        if clean {
            self.oracle.end_era();
            self.rare.note(Rare::Detached);
        }
        self.let_go(index, epoch);
    }

    fn on_failed(&mut self, index: usize, why: FailReason) {
        self.say(format_args!("host {index}: device failed: {why}"));
        let host = &mut self.hosts[index];
        host.failed = true;
        host.remembered = None;
        let (Held::Here(epoch) | Held::Leaving(epoch)) = host.held else {
            return self.find(format!("host {index}: failed without a volume"));
        };
        match why {
            FailReason::Fenced => {
                self.rare.note(Rare::Fenced);
                if self.recorded().epoch == epoch {
                    self.find(format!("host {index}: fenced, and nobody else was granted"));
                }
            }
            FailReason::DataLost => {
                self.rare.note(Rare::DataLost);
                self.judge_data_lost(index);
            }
            FailReason::Membership => {
                self.find(format!("host {index}: the membership changed under it"));
            }
        }
        let pause = self.control.within(500_000_000, 3_000_000_000);
        let life = self.hosts[index].life;
        self.schedule(pause, Task::Replug(Party::Host(index), life));
    }

    /// A device may fail for lost data only if every in-sync store of some shard lost its volatile
    /// state during the attachment: in sync as far as the client knows, which may be superseded.
    pub(crate) fn judge_data_lost(&mut self, index: usize) {
        let since_ns = self.hosts[index].granted_at_ns;
        let volume = self.recorded();
        let isr = &self.hosts[index].isr;
        let shards = (0..volume.map.shard_count()).map(shardmap::units::ShardIndex);
        let lost = |store: &StoreId| {
            let server = self.servers.iter().find(|s| s.store == Some(*store));
            server.is_some_and(|s| s.lost_at_ns.is_some_and(|at| at >= since_ns))
        };
        let mut all_lost = shards.map(|shard| {
            let mut members = volume.map.stores_of(shard).filter(|s| isr.contains(s));
            members.all(|s| lost(&s))
        });
        if !all_lost.any(|lost| lost) {
            self.find(format!(
                "host {index}: failed for lost data that was not lost"
            ));
        }
    }

    fn on_transition(&mut self, index: usize, what: TraceEvent) {
        self.say(format_args!("host {index}: {what:?}"));
        self.script_sees_event(what);
        if let Some(prey) = prey_of(what) {
            let quiet_ns = self.world.now_ns() - self.wrote_at_ns;
            if prey != Prey::Clean || quiet_ns < LATELY_NS {
                self.pass(prey);
            }
        }
        let up = self.metad.up;
        let stores = self.recorded().map.stores.clone();
        let host = &mut self.hosts[index];
        let rare = &mut self.rare;
        match what {
            TraceEvent::Propose { .. } => {
                rare.note(Rare::Degraded);
                if !up {
                    rare.note(Rare::DegradedWithoutMetad);
                }
                if host.resilvering.is_some() {
                    rare.note(Rare::SecondFailure);
                }
            }
            TraceEvent::Learn { isr, .. } | TraceEvent::Verify { isr, .. } => {
                host.isr = isr.iter().map(|at| stores[at.index()]).collect();
            }
            TraceEvent::Suspect { .. } => rare.note(Rare::Suspect),
            TraceEvent::Join { .. } => rare.note(Rare::Joined),
            TraceEvent::Establish { regions } => {
                host.reconciling = regions > 0;
                if regions > 0 {
                    rare.note(Rare::Reconciling);
                }
            }
            TraceEvent::Reconciled => {
                host.reconciling = false;
                rare.note(Rare::Reconciled);
            }
            TraceEvent::StartRs { store } => {
                host.resilvering = Some(store);
                if host.dropped.contains(&store) {
                    rare.note(Rare::ResilverAgain);
                }
            }
            TraceEvent::DropRs { store } => {
                host.resilvering = None;
                host.dropped.insert(store);
                rare.note(Rare::ResilverDropped);
            }
            TraceEvent::Resilvered(_) => {
                host.resilvering = None;
                rare.note(Rare::Resilvered);
            }
            TraceEvent::Stable => rare.note(Rare::Stable),
            TraceEvent::Open { .. }
            | TraceEvent::ConnBreak { .. }
            | TraceEvent::Sent(_)
            | TraceEvent::Heard(_)
            | TraceEvent::Stamp { .. }
            | TraceEvent::Planned { .. }
            | TraceEvent::RsFlush { .. }
            | TraceEvent::Slow { .. }
            | TraceEvent::Begun { .. }
            | TraceEvent::Sealed { .. }
            | TraceEvent::CatchUp { .. }
            | TraceEvent::CaughtUp { .. }
            | TraceEvent::Shows { .. }
            | TraceEvent::Repaired { .. } => self.note_catch_up(index, what),
        }
    }

    /// A store that was out is given the snapshots that it missed, or one of them is there.
    fn note_catch_up(&mut self, index: usize, what: TraceEvent) {
        let host = &mut self.hosts[index];
        if let TraceEvent::CatchUp { snapshots, .. } = what {
            if host.catching_up > 0 {
                self.rare.note(Rare::CatchUpInterrupted);
            }
            host.catching_up = snapshots;
        } else if let TraceEvent::CaughtUp { .. } = what {
            host.catching_up = host.catching_up.saturating_sub(1);
            self.rare.note(Rare::SnapshotCaughtUp);
        }
    }
}

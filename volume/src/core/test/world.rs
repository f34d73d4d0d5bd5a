//! N fake stores, a fake metad, one client at a time, and a seed that decides what goes wrong.

use super::oracle::Oracle;
use super::store::{FakeStore, Message, Rng};
use crate::core::{
    Answer, AttachFault, Command, CommandId, Config, CopyId, Effect, Event, Fault, Grant, HostWhat,
    Members, OpId, Outbox, Payload, Position, Replicator, RequestId, Timer, TraceEvent, Verdict,
};
use shardmap::generations::{SnapshotStep, VolumeGenerations};
use shardmap::map::{Layout, Shape, VolumeMap};
use shardmap::units::{Epoch, Generation, Incarnation, MembershipSeq, Moment, StoreId};
use std::collections::BTreeMap;

/// Adds a line to the story, if somebody wants to read it.
macro_rules! note {
    ($world:expr, $($text:tt)*) => {
        if $world.telling {
            let line = format!("{:>9.3} {}", $world.now as f64 / MS as f64, format!($($text)*));
            $world.log.push(line);
        }
    };
}

mod checks;
mod faults;
mod groups;
mod host;
mod metad;
mod record;
mod shard;
mod snapshots;
mod zombies;

use metad::Metad;

pub(super) const MS: u64 = 1_000_000;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) stores: u16,
    pub(super) replicas: u8,
    pub(super) host_ops: u32,
    /// Mean time between faults, in milliseconds; zero is none.
    pub(super) fault_ms: u64,
    pub(super) client_crashes: bool,
    pub(super) medium_errors: bool,
    pub(super) disk_swaps: bool,
    pub(super) min_in_sync: u32,
    /// The client is killed and started again, and what is above the volume lives on.
    pub(super) restarts: bool,
    /// metad is restored from an older backup.
    pub(super) restores: bool,
    /// Snapshots are made and deleted.
    pub(super) snapshots: bool,
    /// Clients are superseded and live on.
    pub(super) zombies: bool,
}

#[derive(Debug)]
struct HostCall {
    what: HostWhat,
    issued: u64,
    data: Vec<u64>,
}

#[derive(Debug)]
struct Client {
    machine: Replicator,
    life: u64,
    epoch: Epoch,
    associations: BTreeMap<Position, u64>,
    inflight: BTreeMap<CommandId, (Position, u64, Command)>,
    calls: BTreeMap<OpId, HostCall>,
    copies: BTreeMap<CopyId, Vec<u64>>,
    timers: BTreeMap<Timer, u64>,
    attached: bool,
}

/// A command under way.
#[derive(Debug)]
struct Parcel {
    at: Position,
    /// Of the store; another one drops it.
    life: u64,
    association: u64,
    client: u64,
    id: CommandId,
    message: Message,
}

#[derive(Debug)]
enum Happening {
    ToStore(Parcel),
    ToClient {
        client: u64,
        association: u64,
        at: Position,
        id: CommandId,
        result: Result<(Answer, Vec<u64>), Fault>,
    },
    PathUp {
        client: u64,
        at: Position,
    },
    Alarm {
        client: u64,
        timer: Timer,
        no: u64,
    },
    AskMetad {
        client: u64,
        epoch: Epoch,
        request: RequestId,
        seq: MembershipSeq,
        /// Of a verification.
        found_seq: Option<MembershipSeq>,
        isr: Members,
    },
    /// What the host waits for is asked of the new client.
    Reissue(u64),
    MetadSays {
        client: u64,
        request: RequestId,
        verdict: Verdict,
    },
    StoreStarts(Position),
    /// The client hears of snapshots.
    Generations {
        client: u64,
        generations: VolumeGenerations,
    },
    /// metad hears of a snapshot.
    Snapshot {
        client: u64,
        epoch: Epoch,
        snapshot: Generation,
        step: SnapshotStep,
    },
    /// Of a group: the other volumes hold their writes.
    OthersHold(Generation),
    /// A store hears which snapshots are deleted.
    DropDeleted(Position),
    Attach,
    HostTurn,
    Fault,
}

/// What a run did, so that a suite can tell whether it has seen the rare paths.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) attaches: u64,
    pub(super) degrades: u64,
    pub(super) suspects: u64,
    pub(super) resilvers: u64,
    pub(super) dropped_resilvers: u64,
    pub(super) reconciles: u64,
    pub(super) stables: u64,
    pub(super) device_failures: u64,
    pub(super) host_faults: u64,
    pub(super) reads: u64,
    pub(super) takeovers: u64,
    pub(super) lost_above: u64,
    pub(super) verifies: u64,
    pub(super) cut_snapshots: u64,
    pub(super) abandoned_snapshots: u64,
    pub(super) repairs: u64,
    pub(super) snapshots: u64,
    pub(super) complete_snapshots: u64,
    /// Attaches with a snapshot pending.
    pub(super) resumed_snapshots: u64,
    pub(super) caught_up: u64,
    /// Resilvers of stores that were given a pending snapshot.
    pub(super) given_pending: u64,
}

#[derive(Debug)]
pub(super) struct World {
    plan: Plan,
    rng: Rng,
    now: u64,
    order: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    pub(super) stores: Vec<FakeStore>,
    metad: Metad,
    client: Option<Client>,
    clients: u64,
    zombies: zombies::Zombies,
    associations: u64,
    oracle: Oracle,
    snapshots: snapshots::Snapshots,
    map: VolumeMap,
    next_value: u64,
    next_op: u64,
    ops_left: u32,
    /// Faults are over: everything must heal.
    calm: bool,
    quiet: bool,
    /// What a killed client left in the state directory.
    remembered: BTreeMap<Position, Incarnation>,
    /// The host has outlived its client, and waits for these.
    surviving: Option<BTreeMap<OpId, HostCall>>,
    detached: bool,
    lost_volume: bool,
    pub(super) seen: Seen,
    pub(super) telling: bool,
    pub(super) log: Vec<String>,
    recorder: record::Recorder,
    shard: shard::Recorder,
}

const SHARD_BLOCKS: u32 = 1024;
const HOT: [u64; 7] = [0, 13, 500, 1019, 1024, 2046, 2600];

impl World {
    pub(super) fn new(plan: Plan) -> Self {
        let shape = Shape {
            shard_blocks: SHARD_BLOCKS,
            stride: plan.stores,
            replicas: plan.replicas,
            layout: Layout::Ring,
        };
        let stores: Vec<_> = (0..u32::from(plan.stores))
            .map(|s| StoreId(s + 1))
            .collect();
        let mut world = Self {
            plan,
            rng: Rng::new(plan.seed),
            now: 0,
            order: 0,
            agenda: BTreeMap::new(),
            stores: stores.iter().map(|_| FakeStore::new()).collect(),
            metad: Metad {
                epoch: 0,
                seq: 0,
                isr: (0..stores.len()).map(Position::new).collect(),
                verified: true,
                down_until: 0,
                backup: (0, (0..stores.len()).map(Position::new).collect()),
                generations: VolumeGenerations::default(),
            },
            map: VolumeMap {
                size_blocks: u64::from(SHARD_BLOCKS) * 3 - 100,
                shape,
                stores,
            },
            client: None,
            clients: 0,
            zombies: zombies::Zombies::default(),
            associations: 0,
            oracle: Oracle::default(),
            snapshots: snapshots::Snapshots::default(),
            next_value: 0,
            next_op: 0,
            ops_left: plan.host_ops,
            calm: plan.fault_ms == 0,
            quiet: false,
            remembered: BTreeMap::new(),
            surviving: None,
            detached: false,
            lost_volume: false,
            seen: Seen::default(),
            telling: false,
            log: Vec::new(),
            recorder: record::Recorder::default(),
            shard: shard::Recorder::default(),
        };
        world.at(0, Happening::Attach);
        world.at(1, Happening::HostTurn);
        if plan.fault_ms > 0 {
            world.at(plan.fault_ms * MS, Happening::Fault);
        }
        world
    }

    fn at(&mut self, time: u64, what: Happening) {
        self.order += 1;
        self.agenda.insert((time, self.order), what);
    }

    fn after(&mut self, delay: u64, what: Happening) {
        self.at(self.now + delay, what);
    }

    /// Mostly quick, sometimes slow, rarely very slow.
    fn delay(&mut self) -> u64 {
        match self.rng.below(100) {
            0 => self.rng.below(200) * MS,
            1..=8 => self.rng.below(4 * MS),
            _ => 20_000 + self.rng.below(200_000),
        }
    }

    /// Runs to the end; `Err` is a broken promise.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let mut steps = 0u64;
        while let Some(((time, _), what)) = self.agenda.pop_first() {
            assert!(time >= self.now);
            self.now = time;
            self.happen_to_whom_it_concerns(what)?;
            steps += 1;
            if self.is_over() {
                return self.final_check();
            }
            if steps > 1_000_000 || self.now > 3_000_000 * MS {
                return Err(format!("no end after {steps} steps: {:?}", self.client));
            }
        }
        Err(format!("nothing happens any more: {:?}", self.client))
    }

    fn is_over(&mut self) -> bool {
        if self.lost_volume || self.detached {
            return true;
        }
        let all: Members = (0..self.stores.len()).map(Position::new).collect();
        let healed = self.calm
            && self.ops_left == 0
            && self.metad.isr == all
            && self.metad.generations.pending().is_none()
            && self
                .client
                .as_ref()
                .is_some_and(|c| c.attached && c.calls.is_empty() && c.machine.may_clean());
        if healed && !self.quiet {
            self.quiet = true;
            note!(self, "healed: detach");
            self.step(Event::Detach).expect("detach breaks nothing");
        }
        false
    }

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        match what {
            Happening::Attach => self.attach(),
            Happening::ToStore(parcel) => {
                self.reach_store(&parcel);
                Ok(())
            }
            Happening::ToClient {
                client,
                association,
                at,
                id,
                result,
            } => self.reach_client(client, association, at, id, result),
            Happening::PathUp { client, at } => self.path_up(client, at),
            Happening::Alarm { client, timer, no } => {
                let armed = |c: &&Client| c.life == client && c.timers.get(&timer) == Some(&no);
                if self.client.as_ref().filter(armed).is_some() {
                    return self.step(Event::Timer(timer));
                }
                Ok(())
            }
            Happening::AskMetad {
                client,
                epoch,
                request,
                seq,
                found_seq,
                isr,
            } => self.ask_metad((client, epoch), request, (seq, found_seq), isr),
            Happening::Reissue(client) => self.reissue(client),
            Happening::MetadSays {
                client,
                request,
                verdict,
            } => {
                if self.client.as_ref().is_some_and(|c| c.life == client) {
                    return self.step(Event::Metad { request, verdict });
                }
                Ok(())
            }
            Happening::StoreStarts(at) => {
                note!(self, "store {at} starts");
                self.stores[at.index()].up = true;
                Ok(())
            }
            Happening::Generations {
                client,
                generations,
            } => self.hear_generations(client, generations),
            Happening::Snapshot {
                client,
                epoch,
                snapshot,
                step,
            } => self.hear_snapshot(client, epoch, (snapshot, step)),
            Happening::OthersHold(snapshot) => {
                self.others_hold(snapshot);
                Ok(())
            }
            Happening::DropDeleted(at) => {
                self.drop_deleted(at);
                Ok(())
            }
            Happening::HostTurn => self.host_turn(),
            Happening::Fault => self.fault(),
        }
    }

    fn attach(&mut self) -> Result<(), String> {
        if self.client.is_some() {
            return Ok(());
        }
        if self.metad.down_until > self.now {
            self.at(self.metad.down_until + MS, Happening::Attach);
            return Ok(());
        }
        self.metad.epoch += 1;
        self.holder_came();
        self.clients += 1;
        self.record_start();
        self.shard_attach();
        self.seen.attaches += 1;
        let grant = Grant {
            map: self.map.clone(),
            epoch: Epoch(self.metad.epoch),
            seq: MembershipSeq(self.metad.seq),
            isr: self.metad.isr,
            verified: self.metad.verified,
            survived: self.surviving.as_ref().map(|_| self.remembered.clone()),
            generations: self.metad.generations.clone(),
        };
        self.seen.resumed_snapshots += u64::from(grant.generations.pending().is_some());
        note!(
            self,
            "attach epoch {} isr {}",
            self.metad.epoch,
            self.metad.isr
        );
        let config = Config {
            seed: self.plan.seed,
            min_in_sync: self.plan.min_in_sync,
            stable_period_ms: 400,
            snapshot_hold_ms: 200,
            snapshot_stuck_ms: if self.plan.seed.is_multiple_of(2) {
                20
            } else {
                2_000
            },
            resilver_bytes_per_s_max: if self.plan.seed.is_multiple_of(3) {
                4 << 20
            } else {
                0
            },
            ..Config::default()
        };
        self.client = Some(Client {
            epoch: grant.epoch,
            machine: Replicator::new(config, grant),
            life: self.clients,
            associations: BTreeMap::new(),
            inflight: BTreeMap::new(),
            calls: BTreeMap::new(),
            copies: BTreeMap::new(),
            timers: BTreeMap::new(),
            attached: false,
        });
        self.step(Event::Start)
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        let mut client = self.client.take().expect("a client steps");
        let mut out = Outbox::default();
        if !matches!(event, Event::Done { .. } | Event::Host { .. }) {
            note!(self, "event {event:?}");
        }
        client.machine.step(Moment(self.now), event, &mut out);
        self.client = Some(client);
        let effects: Vec<_> = out.drain().collect();
        effects
            .into_iter()
            .try_for_each(|effect| self.carry_out(effect))
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), String> {
        let Some(client) = self.client.as_mut() else {
            return Ok(());
        };
        let life = client.life;
        match effect {
            Effect::Connect(at) => {
                let delay = self.delay() + self.connect_pause();
                self.after(delay, Happening::PathUp { client: life, at });
            }
            Effect::Send { command, to, what } => self.send(command, to, what),
            Effect::Complete { op, result } => return self.complete(op, result),
            Effect::Found { .. } => unreachable!("of views only"),
            Effect::DropCopy(copy) => {
                client.copies.remove(&copy);
            }
            Effect::AskMetad { request, seq, isr } => {
                self.send_to_metad(request, (seq, None), isr);
            }
            Effect::AskVerify {
                request,
                seq,
                found_seq,
                isr,
            } => self.send_to_metad(request, (seq, Some(found_seq)), isr),
            Effect::Remember(_) if self.zombies.steps() => {} // on another host
            Effect::Remember(trusted) => self.remembered = trusted,
            Effect::Arm { timer, at } => {
                let no = client.timers.get(&timer).copied().unwrap_or(0) + 1;
                client.timers.insert(timer, no);
                let at = at.0.max(self.now);
                let client = life;
                self.at(at, Happening::Alarm { client, timer, no });
            }
            Effect::Attached => {
                client.attached = true;
                note!(self, "attached");
                self.after(0, Happening::Reissue(life));
            }
            Effect::AttachFailed(why) => {
                note!(self, "attach failed: {why}");
                self.shard_gone();
                self.client = None;
                self.attach_failed(why);
                self.attach_again();
            }
            Effect::Detached => self.detached = true,
            Effect::Failed(why) => {
                self.seen.device_failures += 1;
                note!(self, "device failed: {why}");
                if self.zombies.steps() {
                    self.shard_gone();
                    self.client = None;
                    return Ok(());
                }
                return self.client_dies();
            }
            Effect::Progress(_) => {}
            Effect::Snapshot(snapshot, step) => {
                let what = Happening::Snapshot {
                    client: life,
                    epoch: client.epoch,
                    snapshot,
                    step,
                };
                let delay = self.delay();
                self.after(delay, what);
            }
            Effect::Trace(event) => self.trace(event),
        }
        Ok(())
    }

    fn send_to_metad(
        &mut self,
        request: RequestId,
        (seq, found_seq): (MembershipSeq, Option<MembershipSeq>),
        isr: Members,
    ) {
        let client = self.client.as_ref().expect("it asks");
        let what = Happening::AskMetad {
            client: client.life,
            epoch: client.epoch,
            request,
            seq,
            found_seq,
            isr,
        };
        let delay = self.delay();
        self.after(delay, what);
    }

    fn attach_failed(&mut self, why: AttachFault) {
        match why {
            // The device answers with errors: for the host that is a machine crash.
            AttachFault::DataLost => {
                self.seen.lost_above += 1;
                self.surviving = None;
                self.host_is_gone();
            }
            // A blank disk cannot say what the restored metad does not know: an operator must decide.
            AttachFault::StoresNeeded(needed) => {
                let blank = |at: Position| self.stores[at.index()].incomplete;
                self.lost_volume |= self.calm && !self.metad.verified && needed.iter().any(blank);
            }
            AttachFault::Fenced
            | AttachFault::Membership
            | AttachFault::MetadBehind
            | AttachFault::MembersAway(_)
            | AttachFault::Detached => {}
        }
    }

    fn trace(&mut self, event: TraceEvent) {
        note!(self, "trace {event:?}");
        self.record_trace(event);
        self.shard_trace(event);
        match event {
            TraceEvent::Propose { .. } => self.seen.degrades += 1,
            TraceEvent::Suspect { .. } => self.seen.suspects += 1,
            TraceEvent::Resilvered(_) => self.seen.resilvers += 1,
            TraceEvent::DropRs { .. } => self.seen.dropped_resilvers += 1,
            TraceEvent::Reconciled => self.seen.reconciles += 1,
            TraceEvent::Stable => self.seen.stables += 1,
            TraceEvent::Verify { .. } => self.seen.verifies += 1,
            TraceEvent::Repaired { .. } => self.seen.repairs += 1,
            TraceEvent::CaughtUp { .. } => self.seen.caught_up += 1,
            TraceEvent::StartRs { .. } => {
                let resilver = self
                    .client
                    .as_ref()
                    .and_then(|c| c.machine.resilver.as_ref());
                let pending = resilver.is_some_and(|r| r.snapshot.is_some());
                self.seen.given_pending += u64::from(pending);
            }
            TraceEvent::Slow { .. }
            | TraceEvent::Open { .. }
            | TraceEvent::ConnBreak { .. }
            | TraceEvent::Shows { .. }
            | TraceEvent::Join { .. }
            | TraceEvent::Learn { .. }
            | TraceEvent::Stamp { .. }
            | TraceEvent::Establish { .. }
            | TraceEvent::Planned { .. }
            | TraceEvent::Begun { .. }
            | TraceEvent::Sealed { .. }
            | TraceEvent::CatchUp { .. }
            | TraceEvent::Sent(_)
            | TraceEvent::Heard(_)
            | TraceEvent::RsFlush { .. } => {}
        }
    }

    fn attach_again(&mut self) {
        let delay = 50 * MS + self.rng.below(500) * MS;
        self.after(delay, Happening::Attach);
    }

    fn host_is_gone(&mut self) {
        self.oracle.crash();
        self.client_died_with_snapshots();
    }

    /// kill -9 of clientd, or the end of a failed device: what is in the network stays there.
    fn client_dies(&mut self) -> Result<(), String> {
        self.record_gone();
        self.shard_gone();
        self.client = None;
        self.surviving = None;
        self.host_is_gone();
        self.attach_again();
        self.check_survivors("when the client died")
    }

    /// kill -9 of clientd under a host that does not notice: its requests wait in the kernel.
    fn client_restarts(&mut self) -> Result<(), String> {
        let client = self.client.take().expect("it is killed");
        if client.attached {
            let before = self.surviving.replace(client.calls);
            assert!(
                before.is_none_or(|calls| calls.is_empty()),
                "reissued when it attached"
            );
        } else if self.surviving.is_none() {
            self.host_is_gone(); // there was no device yet, so nothing survives it
        }
        self.attach_again();
        Ok(())
    }

    /// The kernel asks the new client for what the old one has not answered.
    fn reissue(&mut self, life: u64) -> Result<(), String> {
        if self.client.as_ref().is_none_or(|c| c.life != life) {
            return Ok(());
        }
        let Some(calls) = self.surviving.take() else {
            return Ok(());
        };
        self.seen.takeovers += 1;
        for (op, call) in calls {
            note!(self, "again {op:?} {:?}", call.what);
            self.oracle.taken_over.insert(call.issued);
            let what = call.what;
            let Some(client) = self.client.as_mut().filter(|c| c.life == life) else {
                return Ok(()); // its device failed
            };
            client.calls.insert(op, call);
            self.step(Event::Host { op, what })?;
        }
        Ok(())
    }

    /// A new lineage from the last backup.
    fn restore_metad(&mut self) {
        let metad = &mut self.metad;
        metad.epoch = (metad.lineage() + 1) << 48;
        (metad.seq, metad.isr) = metad.backup;
        metad.verified = false;
        note!(
            self,
            "fault: metad restored, seq {} isr {}",
            self.metad.seq,
            self.metad.isr
        );
    }

    fn send(&mut self, id: CommandId, at: Position, what: Command) {
        let client = self.client.as_mut().expect("it sends");
        let association = client.associations[&at];
        let data = if let Command::Write { range, from, .. } = &what {
            let count = range.blocks().0 as usize;
            match from {
                Payload::Host { op, first_block } => {
                    let first = *first_block as usize;
                    client.calls[op].data[first..first + count].to_vec()
                }
                Payload::Copy(copy) => {
                    assert_eq!(client.copies[copy].len(), count);
                    client.copies[copy].clone()
                }
            }
        } else {
            Vec::new()
        };
        note!(self, "  to {at}: {id:?} {what:?} {data:?}");
        if let Command::Write {
            from: Payload::Host { .. },
            ..
        } = &what
        {
            self.record_sent(data[0]);
            self.shard_sent(data[0]);
        }
        let client = self.client.as_mut().expect("it sends");
        assert!(
            client
                .inflight
                .insert(id, (at, association, what.clone()))
                .is_none()
        );
        let client = client.life;
        let life = self.stores[at.index()].life;
        let delay = self.delay();
        let message = Message { what, data };
        self.after(
            delay,
            Happening::ToStore(Parcel {
                at,
                life,
                association,
                client,
                id,
                message,
            }),
        );
    }

    fn reach_store(&mut self, parcel: &Parcel) {
        let Parcel {
            at,
            life,
            association,
            client,
            id,
            ref message,
        } = *parcel;
        let (errors, draw) = (self.plan.medium_errors && !self.calm, self.rng.below(400));
        let store = &mut self.stores[at.index()];
        if !store.up || store.life != life {
            return;
        }
        let data = matches!(message.what, Command::Write { .. } | Command::Read { .. });
        let marked = store.marks.contains_key(&0);
        let result = if errors && data && draw == 0 {
            Err(Fault::Medium)
        } else if errors && matches!(message.what, Command::Write { .. }) && draw == 1 {
            Err(Fault::NoSpace)
        } else if errors && draw == 2 {
            Err(Fault::Transient)
        } else {
            store.perform(association, message)
        };
        if let Err(fault) = &result {
            note!(self, "  store {at} refuses {id:?}: {fault:?}");
            self.shard_refused(client);
        } else {
            self.shard_performed(parcel, marked);
        }
        let delay = self.delay();
        self.after(
            delay,
            Happening::ToClient {
                client,
                association,
                at,
                id,
                result,
            },
        );
    }

    fn reach_client(
        &mut self,
        life: u64,
        association: u64,
        at: Position,
        id: CommandId,
        result: Result<(Answer, Vec<u64>), Fault>,
    ) -> Result<(), String> {
        let current =
            |c: &&mut Client| c.life == life && c.associations.get(&at) == Some(&association);
        let Some(client) = self.client.as_mut().filter(current) else {
            return Ok(());
        };
        let (_, _, what) = client.inflight.remove(&id).expect("answered once");
        let result = result.map(|(answer, data)| {
            if let Command::Read { into, .. } = &what {
                match into {
                    Payload::Host { op, first_block } => {
                        if let Some(call) = client.calls.get_mut(op) {
                            let first = *first_block as usize;
                            call.data[first..first + data.len()].copy_from_slice(&data);
                        }
                    }
                    Payload::Copy(copy) => {
                        client.copies.insert(*copy, data);
                    }
                }
            }
            answer
        });
        self.record_answer(id, &result);
        self.shard_heard(at, id, result.is_ok());
        self.step(Event::Done {
            command: id,
            result,
        })
    }

    fn path_up(&mut self, life: u64, at: Position) -> Result<(), String> {
        let up = self.stores[at.index()].up;
        let Some(client) = self.client.as_mut().filter(|c| c.life == life) else {
            return Ok(());
        };
        if !up {
            self.after(20 * MS, Happening::PathUp { client: life, at });
            return Ok(());
        }
        self.associations += 1;
        let fresh = client.associations.insert(at, self.associations).is_none();
        assert!(fresh, "one path at a time");
        self.step(Event::PathUp(at))
    }

    fn break_path(&mut self, at: Position, pause: u64) -> Result<(), String> {
        let Some(client) = self.client.as_mut() else {
            return Ok(());
        };
        if client.associations.remove(&at).is_none() {
            return Ok(());
        }
        client.inflight.retain(|_, (to, _, _)| *to != at);
        let life = client.life;
        self.after(pause, Happening::PathUp { client: life, at });
        self.step(Event::PathLost(at))
    }

    fn ask_metad(
        &mut self,
        (client, epoch): (u64, Epoch),
        request: RequestId,
        (seq, found_seq): (MembershipSeq, Option<MembershipSeq>),
        isr: Members,
    ) -> Result<(), String> {
        if self.metad.down_until > self.now {
            if self.rng.one_in(2) {
                let verdict = Verdict::Unknown;
                self.after(
                    5 * MS,
                    Happening::MetadSays {
                        client,
                        request,
                        verdict,
                    },
                );
            }
            return Ok(());
        }
        let before = self.metad.seq;
        let verdict = match found_seq {
            None => self.metad.set_isr(epoch, seq, isr),
            Some(found) => self.metad.verify(epoch, found, isr),
        };
        if self.metad.seq != before {
            self.shard_commit(client);
        }
        note!(self, "metad: {request:?} {verdict:?}");
        if !self.rng.one_in(8) {
            let delay = self.delay();
            self.after(
                delay,
                Happening::MetadSays {
                    client,
                    request,
                    verdict,
                },
            );
        }
        self.check_survivors("after a membership change")
    }
}

//! metad: the real state machine on one state, reached through messages that are delayed, lost and
//! repeated. It is down now and then and loses nothing by that.

use crate::rare::Rare;
use crate::sim::{Party, Sim, Task};
use crate::snapshots::generation_of;
use control::core::{
    Change, ClientId, Command, Envelope, HostId, Reply, SnapshotFate, State, Volume, apply,
};
use shardmap::units::{Epoch, Lba, Nsid, ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Schema that its clients speak.
const SCHEMA: u16 = control::core::limits::SCHEMA;

/// metad as a whole.
pub(crate) struct Metad {
    pub(crate) state: State,
    pub(crate) up: bool,
    /// Half of its answers are lost.
    pub(crate) lossy: bool,
    /// Who cannot reach it.
    pub(crate) cut: BTreeSet<Party>,
    pub(crate) index: u64,
}

impl Metad {
    pub(crate) fn new() -> Self {
        Self {
            state: State::default(),
            up: true,
            lossy: false,
            cut: BTreeSet::new(),
            index: 0,
        }
    }

    /// Applies a command that comes from nobody in particular.
    pub(crate) fn init(&mut self, command: Command) -> Reply {
        let client = ClientId(Uuid::from_u128(1));
        let sequence = self.index + 1;
        self.apply(0, client, sequence, command).0
    }

    fn apply(
        &mut self,
        now_ns: u64,
        client: ClientId,
        sequence: u64,
        command: Command,
    ) -> (Reply, Vec<Change>) {
        self.index += 1;
        let envelope = Envelope {
            schema: SCHEMA,
            client,
            sequence,
            at_unix_ms: now_ns / 1_000_000,
            command,
        };
        apply(&mut self.state, self.index, envelope)
    }
}

/// Why a party asks: what its answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    RegisterServer,
    RegisterStore,
    Confirm,
    RegisterHost,
    Attach,
    Detach(Epoch),
    /// The volume's own name for its request.
    Isr(u64),
    Snapshot,
    RolledBack,
    Maintain,
    Operate,
}

/// A question that was not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) party: Party,
    client: ClientId,
    sequence: u64,
    pub(crate) command: Command,
    pub(crate) why: Why,
}

/// Longest time a party waits for an answer before it asks again.
const PATIENCE_NS: (u64, u64) = (1_000_000_000, 2_000_000_000);

impl Sim {
    /// Sends a command to metad; repeated until answered or the party's life ends.
    pub(crate) fn ask(&mut self, party: Party, why: Why, command: Command) {
        let id = self.next_ask;
        self.next_ask += 1;
        let life = self.life_of(party);
        let number = match party {
            Party::Operator => 0,
            Party::Server(i) => 1_000 + i as u128,
            Party::Host(i) => 2_000 + i as u128,
        };
        let ask = Ask {
            party,
            client: ClientId(Uuid::from_u128(number << 64 | u128::from(life) << 32 | 7)),
            sequence: id + 1,
            command,
            why,
        };
        self.asks.insert(id, ask);
        self.send_ask(id);
    }

    fn send_ask(&mut self, id: u64) {
        let ask = self.asks[&id].clone();
        let (there, again) = (
            self.control_delay_ns(),
            self.control.within(PATIENCE_NS.0, PATIENCE_NS.1),
        );
        self.schedule(there, Task::MetadHears(id, Box::new(ask)));
        self.schedule(again, Task::AskAgain(id));
    }

    pub(crate) fn control_delay_ns(&mut self) -> u64 {
        let slow = self.control.chance(1, 20);
        self.control
            .within(200_000, if slow { 300_000_000 } else { 5_000_000 })
    }

    pub(crate) fn on_metad_hears(&mut self, id: u64, ask: Ask) {
        if !self.metad.up || self.metad.cut.contains(&ask.party) {
            return;
        }
        let lets = if let Command::Maintain { volume, .. } = ask.command {
            self.leader_lets_maintain(volume)
        } else {
            Ok(())
        };
        let reply = match lets {
            Ok(()) => self.metad_applies(ask.client, ask.sequence, ask.command),
            Err(refusal) => Reply::Refused(refusal),
        };
        if self.metad.lossy && self.control.chance(1, 2) {
            self.rare.note(Rare::AnswerLost);
            return;
        }
        let back = self.control_delay_ns();
        self.schedule(back, Task::AskerHears(id, Box::new(reply)));
    }

    fn metad_applies(&mut self, client: ClientId, sequence: u64, command: Command) -> Reply {
        let now_ns = self.world.now_ns();
        let (reply, changes) = self.metad.apply(now_ns, client, sequence, command);
        for change in changes {
            self.timeline.say(now_ns, format_args!("metad: {change:?}"));
            if let Change::Snapshot(volume, name, fate) = &change {
                self.on_snapshot_change(*volume, name, *fate);
            }
            if let Change::Rollback(VOLUME, _, fate) = &change {
                self.on_rollback_change(*fate);
            }
            if let Change::IsrChanged { volume, joined, .. } = &change {
                self.on_set_change(*volume, joined);
            }
        }
        self.tell_watchers();
        reply
    }

    fn on_snapshot_change(&mut self, volume: VolumeId, name: &str, fate: SnapshotFate) {
        if volume == VOLUME && fate == SnapshotFate::Completed {
            self.on_snapshot_complete(generation_of(name));
        }
        let kept = u64::from(fate == SnapshotFate::Kept);
        self.rare.add(Rare::KeptForClone, kept);
    }

    fn on_set_change(&mut self, volume: VolumeId, joined: &[StoreId]) {
        if volume == VOLUME {
            self.script_sees_set(joined);
        } else {
            let joined = joined.len() as u64;
            self.rare.add(Rare::CloneResilvered, joined);
        }
    }

    /// A command of somebody who is not simulated reaches metad at once.
    pub(crate) fn tell_metad(&mut self, command: Command) -> Reply {
        let (client, sequence) = (ClientId(Uuid::from_u128(1)), self.metad.index + 1);
        self.metad_applies(client, sequence, command)
    }

    pub(crate) fn on_asker_hears(&mut self, id: u64, reply: Reply) {
        let Some(ask) = self.asks.remove(&id) else {
            return;
        };
        match ask.party {
            Party::Operator => self.on_operator_reply(&reply),
            Party::Server(index) => self.on_server_reply(index, &ask, reply),
            Party::Host(index) => self.on_host_reply(index, ask, reply),
        }
    }

    pub(crate) fn on_ask_again(&mut self, id: u64) {
        let Some(ask) = self.asks.get(&id) else {
            return;
        };
        self.rare.note(Rare::AskedAgain);
        // The volume asks again by itself, and may want something else by then.
        if let (Why::Isr(request), party) = (ask.why, ask.party)
            && let Command::SetIsr { volume, epoch, .. }
            | Command::VerifyMembership { volume, epoch, .. } = ask.command
            && self.control.chance(1, 2)
        {
            self.asks.remove(&id);
            let unknown = volume::MetadVerdict::Unknown;
            return match party {
                Party::Host(index) => self.answer_isr(index, (epoch, request), unknown),
                Party::Server(index) => {
                    self.answer_storaged((index, volume, epoch, request), unknown);
                }
                Party::Operator => unreachable!("people have no volumes"),
            };
        }
        self.send_ask(id);
    }

    /// Whether a request for another in-sync set is under way.
    pub(crate) fn membership_is_asked_for(&self) -> bool {
        let isr = |ask: &Ask| matches!(ask.why, Why::Isr(_));
        self.asks.values().any(isr) || self.messages_to_metad().any(isr)
    }

    /// The party's process is gone: nobody waits for its answers any more.
    pub(crate) fn forget_asks(&mut self, party: Party) {
        self.asks.retain(|_, ask| ask.party != party);
    }

    /// Servers and hosts with something new to do learn of it in a while.
    fn tell_watchers(&mut self) {
        let state = &self.metad.state;
        let mut due = Vec::new();
        for (index, server) in self.servers.iter_mut().enumerate() {
            let known = server.id.filter(|_| server.registered);
            let known = known.and_then(|id| state.servers.get(&id));
            if known.is_some_and(|s| s.desired_index > server.seen) && !server.looking {
                server.looking = true;
                due.push((Party::Server(index), server.life));
            }
        }
        for (index, host) in self.hosts.iter_mut().enumerate() {
            let known = host.id.and_then(|id| state.hosts.get(&id));
            if known.is_some_and(|h| h.desired_index > host.seen) && !host.looking {
                host.looking = true;
                due.push((Party::Host(index), host.life));
            }
        }
        for (party, life) in due {
            let delay = self.control_delay_ns();
            self.schedule(delay, Task::Look(party, life));
        }
    }

    /// Has a party look at what metad wants of it.
    pub(crate) fn look_soon(&mut self, party: Party) {
        match party {
            Party::Server(index) => self.servers[index].looking = true,
            Party::Host(index) => self.hosts[index].looking = true,
            Party::Operator => return,
        }
        let (delay, life) = (self.control_delay_ns(), self.life_of(party));
        self.schedule(delay, Task::Look(party, life));
    }

    pub(crate) fn on_look(&mut self, party: Party) {
        if !self.metad.up || self.metad.cut.contains(&party) {
            let life = self.life_of(party);
            return self.schedule(500_000_000, Task::Look(party, life));
        }
        match party {
            Party::Server(index) => self.on_server_look(index),
            Party::Host(index) => self.on_host_look(index),
            Party::Operator => {}
        }
    }

    /// metad's record of the volume.
    pub(crate) fn recorded(&self) -> &Volume {
        &self.metad.state.volumes[&self.volume]
    }
}

/// The slices that should have a block of a volume.
pub(crate) fn replicas_of(
    volume: &Volume,
    block: u64,
) -> impl Iterator<Item = (StoreId, Nsid)> + '_ {
    let shape = volume.map.shape;
    let positions = shape.positions_of(shape.shard_of(Lba(block)));
    positions.map(|position| {
        let at = usize::from(position);
        (volume.map.stores[at], volume.slices[at])
    })
}

/// The volume of every seed.
pub(crate) const VOLUME: VolumeId = VolumeId(*b"simulated volume");

/// The log index of the last change to what a server should do.
pub(crate) fn server_index(state: &State, id: ServerId) -> u64 {
    state.servers.get(&id).map_or(0, |s| s.desired_index)
}

/// The same for a host.
pub(crate) fn host_index(state: &State, id: HostId) -> u64 {
    state.hosts.get(&id).map_or(0, |h| h.desired_index)
}

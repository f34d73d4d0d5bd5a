//! The one door to the state: `apply(state, index, command) -> (reply, changes)`.
//!
//! Every handler first checks everything, then changes; a refusal leaves no trace but the
//! remembered reply. A handler sees the state through `Step`, which gathers the changes.

mod attach;
mod clone;
mod cluster;
mod event;
mod forget;
mod group;
mod grow;
mod maintenance;
mod restore;
mod rollback;
mod snapshot;
mod view;
mod volume;

pub(in crate::core) use attach::shard_without;
pub(in crate::core) use maintenance::maintenance_of;
pub use volume::plan_volume;

use super::command::{Change, ClientId, Command, Envelope, Reply};
use super::desire::TURN_BITS;
use super::limits;
use super::model::{HostId, State};
use super::refusal::{Refusal, RefusalCode};
use shardmap::units::{ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;

/// One command being applied.
struct Step<'a> {
    state: &'a mut State,
    index: u64,
    at_unix_ms: u64,
    changes: Vec<Change>,
    /// Volumes to review.
    touched: BTreeSet<VolumeId>,
}

/// Applies one command of the log entry `index`. Those of one entry follow each other, and nobody looks
/// at the state between them; the next entry has a larger index. A command whose `(client, sequence)` was answered before gets
/// the same reply and changes nothing.
pub fn apply(state: &mut State, index: u64, envelope: Envelope) -> (Reply, Vec<Change>) {
    assert!(
        index >= state.applied_index,
        "entry {index} after {}",
        state.applied_index
    );
    state.applied_index = index;
    let Envelope {
        schema,
        client,
        sequence,
        at_unix_ms,
        command,
    } = envelope;
    match remembered(state, client, sequence) {
        Memory::Known(reply) => return (reply, Vec::new()),
        Memory::Forgotten(refusal) => return (Reply::Refused(refusal), Vec::new()),
        Memory::New => {}
    }
    let mut step = Step {
        state,
        index,
        at_unix_ms,
        changes: Vec::new(),
        touched: BTreeSet::new(),
    };
    let outcome = if schema == limits::SCHEMA {
        step.carry_out(command)
    } else {
        Err(Refusal::new(
            RefusalCode::Schema,
            format!(
                "the command has schema {schema}, this cluster has {}",
                limits::SCHEMA
            ),
            "upgrade the older program",
        ))
    };
    let changes = step.changes;
    let reply = outcome.unwrap_or_else(|refusal| {
        assert!(
            changes.is_empty(),
            "a refused command changed something: {changes:?}"
        );
        Reply::Refused(refusal)
    });
    event::record(state, at_unix_ms, &changes);
    remember(state, client, sequence, index, reply.clone());
    (reply, changes)
}

enum Memory {
    New,
    Known(Reply),
    Forgotten(Refusal),
}

fn remembered(state: &State, client: ClientId, sequence: u64) -> Memory {
    let Some(memory) = state.clients.get(&client) else {
        return Memory::New;
    };
    if let Some((_, reply)) = memory.replies.get(&sequence) {
        return Memory::Known(reply.clone());
    }
    let full = memory.replies.len() >= limits::REPLIES_PER_CLIENT_MAX;
    match memory.replies.first_key_value() {
        Some((oldest, _)) if full && sequence < *oldest => Memory::Forgotten(Refusal::new(
            RefusalCode::TooOld,
            format!(
                "command {sequence} of client {} is older than what is remembered",
                client.0
            ),
            "ask for the current state and start again",
        )),
        Some(_) | None => Memory::New,
    }
}

fn remember(state: &mut State, client: ClientId, sequence: u64, index: u64, reply: Reply) {
    let memory = state.clients.entry(client).or_default();
    memory.last_index = index;
    memory.replies.insert(sequence, (index, reply));
    while memory.replies.len() > limits::REPLIES_PER_CLIENT_MAX {
        memory.replies.pop_first();
    }
    if state.clients.len() > limits::CLIENTS_MAX {
        let silent = state
            .clients
            .iter()
            .min_by_key(|(_, m)| m.last_index)
            .map(|(id, _)| *id);
        if let Some(silent) = silent {
            state.clients.remove(&silent);
        }
    }
}

impl Step<'_> {
    fn carry_out(&mut self, command: Command) -> Result<Reply, Refusal> {
        if let Command::InitCluster { uuid, name } = command {
            return self.init_cluster(uuid, name);
        }
        if self.state.cluster.is_none() {
            return Err(Refusal::new(
                RefusalCode::NotInitialised,
                "the cluster has no identity yet",
                "wait until every member listed in metad.toml has started once",
            ));
        }
        let reply = self.dispatch(command)?;
        self.review_touched();
        Ok(reply)
    }

    fn dispatch(&mut self, command: Command) -> Result<Reply, Refusal> {
        match command {
            Command::InitCluster { .. } => unreachable!("handled by the caller"),
            Command::RegisterServer(new) => self.register_server(new),
            Command::RegisterStore(new) => self.register_store(new),
            Command::RegisterHost(new) => self.register_host(new),
            Command::SetServerStanding { server, standing } => self.set_standing(server, standing),
            Command::CreateVolume(new) => self.create_volume(new),
            Command::DeleteVolume {
                volume,
                with_snapshots,
            } => self.delete_volume(volume, with_snapshots),
            Command::ConfirmSlice {
                store,
                nsid,
                size_blocks,
            } => self.confirm_slice(store, nsid, size_blocks),
            Command::ConfirmSliceGone { store, nsid } => self.confirm_slice_gone(store, nsid),
            Command::ReportBlankSlice { store, nsid } => self.report_blank_slice(store, nsid),
            Command::SetDesiredAttachment { volume, host } => self.set_desired(volume, host),
            Command::ClearDesiredAttachment { volume } => self.clear_desired(volume),
            Command::Attach { volume, host } => self.attach(volume, host),
            Command::Detach { volume, epoch } => self.detach(volume, epoch),
            Command::ForceDetach { volume } => self.force_detach(volume),
            Command::SetIsr {
                volume,
                epoch,
                seq,
                new_isr,
            } => self.set_isr(volume, epoch, seq, new_isr),
            Command::Maintain { volume, server } => self.maintain(volume, server),
            Command::AssignMaintenance { volume, server } => {
                self.assign_maintenance(volume, server)
            }
            Command::CreateSnapshot { .. }
            | Command::CompleteSnapshot { .. }
            | Command::HoldSnapshot { .. }
            | Command::DeleteSnapshot { .. }
            | Command::CreateView { .. }
            | Command::CreateClone { .. }
            | Command::RollBack { .. }
            | Command::CompleteRollback { .. } => self.dispatch_snapshot(command),
            Command::GrowVolume { volume, size_bytes } => self.grow_volume(volume, size_bytes),
            Command::SetSpaceLimits(new) => self.set_space_limits(new),
            Command::Note { subject, text } => self.note(subject, text),
            Command::AddHost(new) => self.add_host(new),
            Command::RemoveHost { host } => self.remove_host(host),
            Command::RemoveStore { store } => self.remove_store(store),
            Command::RemoveServer { server } => self.remove_server(server),
            Command::BeginLineage { lineage } => self.begin_lineage(lineage),
            Command::VerifyMembership {
                volume,
                epoch,
                seq,
                found_seq,
                isr,
            } => self.verify_membership(volume, epoch, seq, (found_seq, isr)),
        }
    }

    /// `command`: one about snapshots and what is made of them.
    fn dispatch_snapshot(&mut self, command: Command) -> Result<Reply, Refusal> {
        match command {
            Command::CreateSnapshot { volumes, name } => self.create_snapshot(volumes, &name),
            Command::CompleteSnapshot {
                volume,
                epoch,
                generation,
                held,
            } => self.complete_snapshot((volume, generation), epoch, held),
            Command::HoldSnapshot {
                volume,
                epoch,
                generation,
            } => self.hold_snapshot(volume, epoch, generation),
            Command::DeleteSnapshot { volume, generation } => {
                self.delete_snapshot(volume, generation)
            }
            Command::CreateView { id, name, origin } => self.create_view(id, name, origin),
            Command::CreateClone { id, name, origin } => self.create_clone(id, name, origin),
            Command::RollBack {
                volume,
                to,
                keep_as,
            } => self.roll_back(volume, to, &keep_as),
            Command::CompleteRollback {
                volume,
                epoch,
                rollback,
            } => self.complete_rollback(volume, epoch, rollback),
            Command::InitCluster { .. }
            | Command::RegisterServer(_)
            | Command::RegisterStore(_)
            | Command::RegisterHost(_)
            | Command::SetServerStanding { .. }
            | Command::CreateVolume(_)
            | Command::DeleteVolume { .. }
            | Command::ConfirmSlice { .. }
            | Command::ConfirmSliceGone { .. }
            | Command::ReportBlankSlice { .. }
            | Command::SetDesiredAttachment { .. }
            | Command::ClearDesiredAttachment { .. }
            | Command::Attach { .. }
            | Command::Detach { .. }
            | Command::ForceDetach { .. }
            | Command::SetIsr { .. }
            | Command::Maintain { .. }
            | Command::AssignMaintenance { .. }
            | Command::GrowVolume { .. }
            | Command::SetSpaceLimits(_)
            | Command::Note { .. }
            | Command::AddHost(_)
            | Command::RemoveHost { .. }
            | Command::RemoveStore { .. }
            | Command::RemoveServer { .. }
            | Command::BeginLineage { .. }
            | Command::VerifyMembership { .. } => unreachable!("dispatched by the caller"),
        }
    }

    fn say(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// The turn that a daemon is woken with: grows with the log, and from one lineage to the next, whose
    /// log may be shorter than what daemons have seen of the one before.
    fn turn(&self) -> u64 {
        let lineage = self.state.cluster.as_ref().map_or(1, |c| c.lineage);
        (u64::from(lineage.saturating_sub(1)) << TURN_BITS) + self.index
    }

    /// The storaged of this store has something new to do.
    fn wake_store(&mut self, store: StoreId) {
        if let Some(server) = self.state.stores.get(&store).map(|s| s.server) {
            self.wake_server(server);
        }
    }

    /// The storaged of this server has something new to do.
    fn wake_server(&mut self, server: ServerId) {
        let turn = self.turn();
        if let Some(server) = self.state.servers.get_mut(&server) {
            server.desired_index = turn;
        }
    }

    /// The clientd of this host has something new to do.
    fn wake_host(&mut self, host: HostId) {
        let turn = self.turn();
        if let Some(host) = self.state.hosts.get_mut(&host) {
            host.desired_index = turn;
        }
    }

    /// The storageds of the volume's stores have something new to do.
    fn wake_stores(&mut self, volume: VolumeId) {
        let stores = self
            .state
            .volumes
            .get(&volume)
            .map(|v| v.map.stores.clone());
        for store in stores.unwrap_or_default() {
            self.wake_store(store);
        }
    }

    /// The clientd that has, or should have, the volume must look again.
    fn wake_holders(&mut self, volume: VolumeId) {
        let Some(volume) = self.state.volumes.get(&volume) else {
            return;
        };
        let holder = volume.attachment.map(|a| a.host);
        for host in [volume.desired, holder].into_iter().flatten() {
            self.wake_host(host);
        }
    }
}

/// A name that people type and that appears in paths and NQNs.
fn check_name(kind: &str, name: &str) -> Result<(), Refusal> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if first && rest && name.len() <= limits::NAME_BYTES_MAX {
        return Ok(());
    }
    Err(Refusal::invalid(
        format!("{name:?} cannot be the name of a {kind}"),
        format!(
            "use 1 to {} letters, digits, '-', '_' or '.', beginning with a letter or digit",
            limits::NAME_BYTES_MAX
        ),
    ))
}

fn check_nqn(nqn: &str) -> Result<(), Refusal> {
    let plain = nqn.bytes().all(|b| b.is_ascii_graphic());
    if nqn.starts_with("nqn.") && plain && nqn.len() <= limits::NQN_BYTES_MAX {
        return Ok(());
    }
    Err(Refusal::invalid(
        format!("{nqn:?} is not an NVMe qualified name"),
        "it begins with \"nqn.\" and has at most 223 printable characters",
    ))
}

fn check_room(kind: &str, have: usize, max: usize) -> Result<(), Refusal> {
    if have < max {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::Limit,
        format!("the cluster has {have} {kind}s, which is the most it can have"),
        format!("remove a {kind} first"),
    ))
}

//! Turns changes into the bounded event log, with the names of the moment.

use super::super::command::{Change, EventRecord, RollbackFate, SnapshotFate, Subject};
use super::super::limits;
use super::super::model::{HostId, Origin, SpaceLimits, Standing, State};
use shardmap::units::{Epoch, MembershipSeq, ServerId, StoreId, VolumeId};

/// Appends one event per change.
pub(super) fn record(state: &mut State, at_unix_ms: u64, changes: &[Change]) {
    for change in changes {
        let (subject, kind, text) = tell(state, change);
        state.minted.event += 1;
        let index = state.minted.event;
        state.events.push_back(EventRecord {
            index,
            at_unix_ms,
            subject,
            kind: kind.to_owned(),
            text,
        });
    }
    while state.events.len() > limits::EVENTS_MAX {
        state.events.pop_front();
    }
}

impl State {
    /// The host's name, or its id if it is unknown.
    pub fn host_name(&self, id: HostId) -> String {
        self.hosts
            .get(&id)
            .map_or_else(|| id.to_string(), |h| h.name.clone())
    }

    /// The server's name, or its id if it is unknown.
    pub fn server_name(&self, id: ServerId) -> String {
        self.servers
            .get(&id)
            .map_or_else(|| id.to_string(), |s| s.name.clone())
    }

    /// The volume's name, or its id if it is unknown.
    pub fn volume_name(&self, id: VolumeId) -> String {
        self.volumes
            .get(&id)
            .map_or_else(|| id.to_string(), |v| v.name.clone())
    }

    /// `data@monday`, or what is known of it; `data@monday (deleted)` if it is kept for clones.
    pub fn snapshot_name(&self, origin: Origin) -> String {
        let of = self.volumes.get(&origin.volume);
        let snapshot = of.and_then(|v| v.snapshots.get(&origin.generation));
        let kept = of.and_then(|v| v.kept.get(&origin.generation));
        let name = match (snapshot, kept) {
            (Some(snapshot), _) => snapshot.name.clone(),
            (None, Some(kept)) => format!("{} (deleted)", kept.name),
            (None, None) => origin.generation.to_string(),
        };
        format!("{}@{name}", self.volume_name(origin.volume))
    }

    /// `store-3 on alpha`.
    pub fn store_name(&self, id: StoreId) -> String {
        match self.stores.get(&id) {
            Some(store) => format!("{id} on {}", self.server_name(store.server)),
            None => id.to_string(),
        }
    }
}

type Told = (Subject, &'static str, String);

fn tell(state: &State, change: &Change) -> Told {
    match change {
        Change::ClusterInitialised => {
            let name = state.cluster.as_ref().map_or("", |c| c.name.as_str());
            (
                Subject::Cluster,
                "ClusterInitialised",
                format!("cluster {name} begins"),
            )
        }
        Change::ServerRegistered(id) => server(state, *id, "ServerRegistered", "joined"),
        Change::ServerChanged(id) => server(state, *id, "ServerChanged", "changed"),
        Change::ServerStanding(id, Standing::Active) => {
            server(state, *id, "ServerUncordoned", "takes new slices again")
        }
        Change::ServerStanding(id, Standing::Cordoned) => {
            server(state, *id, "ServerCordoned", "takes nothing new")
        }
        Change::StoreRegistered(id) => store(state, *id, "StoreRegistered", "joined"),
        Change::StoreChanged(id) => store(state, *id, "StoreChanged", "changed"),
        Change::HostRegistered(id) => host(state, *id, "HostRegistered", "joined"),
        Change::HostChanged(id) => host(state, *id, "HostChanged", "changed"),
        Change::VolumeCreated(id) => volume(state, *id, "VolumeCreated", "waits for its slices"),
        Change::VolumeReady(id) => volume(state, *id, "VolumeReady", "is ready"),
        Change::VolumeDeleting(id) => volume(state, *id, "VolumeDeleting", "is being deleted"),
        Change::VolumeGone(id, was) => (
            Subject::Volume(*id),
            "VolumeGone",
            format!("volume {was} is gone"),
        ),
        Change::DesiredAttachment(id, Some(on)) => volume(
            state,
            *id,
            "AttachWanted",
            &format!("is wanted on {}", state.host_name(*on)),
        ),
        Change::DesiredAttachment(id, None) => {
            volume(state, *id, "DetachWanted", "is wanted nowhere")
        }
        Change::Attached(id, on, epoch) => {
            let what = format!("attached on {}, {epoch}", state.host_name(*on));
            volume(state, *id, "Attached", &what)
        }
        Change::Detached(id, from) => {
            let what = format!("detached from {}", state.host_name(*from));
            volume(state, *id, "Detached", &what)
        }
        Change::ForceDetached(id, from) => forced(state, *id, *from),
        Change::SliceBlank(id, on) => replica_lost(state, *id, *on),
        Change::MaintenanceBegan(id, by, epoch) => maintained(state, *id, *by, Some(*epoch)),
        Change::MaintenanceEnded(id, by) => maintained(state, *id, *by, None),
        Change::IsrChanged {
            volume: id,
            seq,
            left,
            joined,
        } => isr(state, *id, *seq, left, joined),
        Change::LineageBegan(lineage) => lineage_began(*lineage),
        Change::MembershipVerified { volume, seq, isr } => verified(state, *volume, *seq, isr),
        Change::Snapshot(id, name, fate) => snapshot(state, *id, name, *fate),
        Change::Rollback(id, to, fate) => rollback(state, *id, to, *fate),
        Change::ViewCreated(id) | Change::CloneCreated(id) => of_snapshot(state, *id),
        Change::VolumeGrowing(id, to) => grown(state, *id, "VolumeGrowing", "is to have", *to),
        Change::VolumeGrown(id, to) => grown(state, *id, "VolumeGrown", "has", *to),
        Change::SpaceLimits(space) => space_limits(*space),
        Change::Noted(subject, text) => (*subject, "Noted", text.clone()),
        Change::HostRemoved(id, was) => forgotten(Subject::Host(*id), "HostRemoved", was),
        Change::StoreRemoved(id, was) => forgotten(Subject::Store(*id), "StoreRemoved", was),
        Change::ServerRemoved(id, was) => forgotten(Subject::Server(*id), "ServerRemoved", was),
    }
}

fn isr(
    state: &State,
    id: VolumeId,
    seq: MembershipSeq,
    left: &[StoreId],
    joined: &[StoreId],
) -> Told {
    let kind = if left.is_empty() {
        "ReplicaInSync"
    } else {
        "ReplicaOutOfSync"
    };
    let out = stores(state, left, "out of sync: ");
    let back = stores(state, joined, "in sync again: ");
    volume(state, id, kind, &format!("{out}{back}({seq})"))
}

fn forced(state: &State, id: VolumeId, from: HostId) -> Told {
    let what = format!("taken from {} by force", state.host_name(from));
    volume(state, id, "ForceDetached", &what)
}

fn replica_lost(state: &State, id: VolumeId, on: StoreId) -> Told {
    let what = format!("{} has lost what it had of it", state.store_name(on));
    volume(state, id, "ReplicaLost", &what)
}

/// `epoch`: under which it was taken, otherwise it was let go.
fn maintained(state: &State, id: VolumeId, by: ServerId, epoch: Option<Epoch>) -> Told {
    let by = state.server_name(by);
    match epoch {
        Some(epoch) => {
            let what = format!("is resilvered by {by}, nobody has it attached ({epoch})");
            volume(state, id, "MaintenanceBegan", &what)
        }
        None => volume(state, id, "MaintenanceEnded", &format!("let go by {by}")),
    }
}

fn snapshot(state: &State, id: VolumeId, name: &str, fate: SnapshotFate) -> Told {
    let (kind, what) = match fate {
        SnapshotFate::Begun => ("SnapshotBegun", "is pending"),
        SnapshotFate::Completed => ("SnapshotCompleted", "is complete"),
        SnapshotFate::Deleted => ("SnapshotDeleted", "is deleted"),
        SnapshotFate::Kept => ("SnapshotKept", "is deleted, and kept for its clones"),
        SnapshotFate::Abandoned => (
            "SnapshotAbandoned",
            "is given up: not all volumes could be cut at one moment",
        ),
        SnapshotFate::Released => ("SnapshotReleased", "was kept for clones, which are gone"),
    };
    let of = state.volume_name(id);
    let text = format!("snapshot {of}@{name} {what}");
    (Subject::Volume(id), kind, text)
}

fn rollback(state: &State, id: VolumeId, to: &str, fate: RollbackFate) -> Told {
    let (kind, what) = match fate {
        RollbackFate::Begun => (
            "RollbackBegun",
            format!("is to show what its snapshot {to} shows"),
        ),
        RollbackFate::Completed => (
            "RollbackCompleted",
            format!("shows what its snapshot {to} shows"),
        ),
        RollbackFate::Abandoned => (
            "RollbackAbandoned",
            format!(
                "was being rolled back to {to} when the backup was made that metad was restored from; \
                 if that was never completed, roll it back again before it is used"
            ),
        ),
    };
    volume(state, id, kind, &what)
}

fn grown(state: &State, id: VolumeId, kind: &'static str, what: &str, bytes: u64) -> Told {
    volume(state, id, kind, &format!("{what} {bytes} bytes"))
}

/// A view or a clone was made.
fn of_snapshot(state: &State, id: VolumeId) -> Told {
    let made = state.volumes.get(&id);
    let origin = made.and_then(|v| v.origin.or(v.clone_of));
    let of = origin.map_or(String::new(), |origin| state.snapshot_name(origin));
    if made.is_some_and(|v| v.clone_of.is_some()) {
        let what = format!("waits for its slices, which begin with {of}");
        volume(state, id, "CloneCreated", &what)
    } else {
        volume(state, id, "ViewCreated", &format!("shows {of}"))
    }
}

fn space_limits(space: SpaceLimits) -> Told {
    let text = format!(
        "stores may promise {} % of their size and are given nothing new from {} % on",
        space.overcommit_percent, space.high_water_percent
    );
    (Subject::Cluster, "SpaceLimits", text)
}

fn lineage_began(lineage: u16) -> Told {
    (
        Subject::Cluster,
        "LineageBegan",
        format!("restored from a backup; lineage {lineage} begins"),
    )
}

fn verified(state: &State, id: VolumeId, seq: MembershipSeq, isr: &[StoreId]) -> Told {
    let isr = stores(state, isr, "the stores agree on ");
    volume(state, id, "MembershipVerified", &format!("{isr}({seq})"))
}

/// `was`: what it was called, with its kind.
fn forgotten(subject: Subject, kind: &'static str, was: &str) -> Told {
    (subject, kind, format!("{was} is forgotten"))
}

fn server(state: &State, id: ServerId, kind: &'static str, what: &str) -> Told {
    (
        Subject::Server(id),
        kind,
        format!("server {} {what}", state.server_name(id)),
    )
}

fn store(state: &State, id: StoreId, kind: &'static str, what: &str) -> Told {
    (
        Subject::Store(id),
        kind,
        format!("{} {what}", state.store_name(id)),
    )
}

fn host(state: &State, id: HostId, kind: &'static str, what: &str) -> Told {
    (
        Subject::Host(id),
        kind,
        format!("host {} {what}", state.host_name(id)),
    )
}

fn volume(state: &State, id: VolumeId, kind: &'static str, what: &str) -> Told {
    (
        Subject::Volume(id),
        kind,
        format!("volume {} {what}", state.volume_name(id)),
    )
}

fn stores(state: &State, ids: &[StoreId], what: &str) -> String {
    if ids.is_empty() {
        return String::new();
    }
    let names: Vec<String> = ids.iter().map(|s| state.store_name(*s)).collect();
    format!("{what}{} ", names.join(", "))
}

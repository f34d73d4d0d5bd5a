//! What may be asked of the state machine, and what it answers.

use super::model::{Domain, HostId, Origin, Rollback, SpaceLimits, Standing};
use super::refusal::Refusal;
use serde::{Deserialize, Serialize};
pub use shardmap::grant::{AttachGrant, SliceAddress};
use shardmap::map::Layout;
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use uuid::Uuid;

/// One run of a client program; it numbers its commands from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub Uuid);

/// A command as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Schema the proposer speaks, [`super::limits::SCHEMA`].
    pub schema: u16,
    /// Who asks.
    pub client: ClientId,
    /// The client's number of this command; a repeat is answered as the first time.
    pub sequence: u64,
    /// Wall clock of the leader when it proposed, milliseconds since 1970; for event lists only.
    pub at_unix_ms: u64,
    /// What is asked.
    pub command: Command,
}

/// What is to change of [`SpaceLimits`]; `None`: as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSpaceLimits {
    /// Thin promises, in percent of a store's size.
    pub overcommit_percent: Option<u32>,
    /// In use, in percent, from which on a store is given nothing new.
    pub high_water_percent: Option<u32>,
}

/// A storage server as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewServer {
    /// Cluster its data directory belongs to; `None` before it has joined one.
    pub cluster: Option<Uuid>,
    /// Its identity.
    pub uuid: Uuid,
    /// Unique name.
    pub name: String,
    /// Where its NVMe/TCP target listens.
    pub address: SocketAddr,
    /// NQN of its subsystem.
    pub subsystem_nqn: String,
    /// Failure-domain and other labels.
    pub labels: BTreeMap<String, String>,
}

/// A store as its superblock describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewStore {
    /// The cluster it was prepared for.
    pub cluster: Uuid,
    /// The server that opened it.
    pub server: ServerId,
    /// Its identity.
    pub uuid: Uuid,
    /// Usable size in bytes.
    pub size_bytes: u64,
}

/// A client host: a clientd as it describes itself, or a standard NVMe host as the operator does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewHost {
    /// Its identity.
    pub uuid: Uuid,
    /// Unique name.
    pub name: String,
    /// NQN its initiator uses.
    pub host_nqn: String,
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolume {
    /// Its identity, chosen by who asks.
    pub id: VolumeId,
    /// Unique name.
    pub name: String,
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Replicas of each shard.
    pub replicas: u8,
    /// Shard size in bytes, a power of two.
    pub shard_bytes: u64,
    /// How shards are dealt.
    pub layout: Layout,
    /// Stores in its set; `None`: as many domains as there are, up to twice the replicas.
    pub stride: Option<u16>,
    /// In-sync replicas of a shard below which IO is held, 1 ..= replicas.
    pub min_in_sync: u8,
    /// What must differ between its stores.
    pub domain: Domain,
    /// A single slice that standard NVMe hosts may use without a session.
    pub open_access: bool,
    /// Stores that take nothing new now (suspect, too full); filled in by the leader.
    pub avoid: BTreeSet<StoreId>,
}

/// What may be asked. New variants go to the end: the log holds them by position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Give the cluster its identity. Repeating it with the same uuid is harmless.
    InitCluster {
        /// Identity.
        uuid: Uuid,
        /// For people.
        name: String,
    },
    /// Announce or update a server.
    RegisterServer(NewServer),
    /// Announce or update a store.
    RegisterStore(NewStore),
    /// Announce or update a client host.
    RegisterHost(NewHost),
    /// Make a volume.
    CreateVolume(NewVolume),
    /// Remove a volume that nobody has attached.
    DeleteVolume {
        /// Which.
        volume: VolumeId,
        /// Its snapshots go with it; otherwise a volume that has some is kept.
        with_snapshots: bool,
    },
    /// Ask a host to attach a volume.
    SetDesiredAttachment {
        /// Which volume.
        volume: VolumeId,
        /// On which host.
        host: HostId,
    },
    /// Ask the host that has it to detach.
    ClearDesiredAttachment {
        /// Which volume.
        volume: VolumeId,
    },
    /// A clientd takes the volume: mints an epoch that fences every earlier holder.
    Attach {
        /// Which volume.
        volume: VolumeId,
        /// The client host.
        host: HostId,
    },
    /// A clientd has stopped using the volume.
    Detach {
        /// Which volume.
        volume: VolumeId,
        /// The epoch it held.
        epoch: Epoch,
    },
    /// Take the volume from a holder that does not answer. Its unflushed writes may be lost.
    ForceDetach {
        /// Which volume.
        volume: VolumeId,
    },
    /// Change the in-sync set.
    SetIsr {
        /// Which volume.
        volume: VolumeId,
        /// The epoch of the asker.
        epoch: Epoch,
        /// The membership it knows.
        seq: MembershipSeq,
        /// The in-sync set it wants.
        new_isr: BTreeSet<StoreId>,
    },
    /// A storaged made the slice, or grew it.
    ConfirmSlice {
        /// On which store.
        store: StoreId,
        /// Which slice.
        nsid: Nsid,
        /// Blocks of the volume that it reaches to.
        size_blocks: u64,
    },
    /// A slice that had been confirmed is blank, or incomplete: its storaged had to make it anew.
    ReportBlankSlice {
        /// On which store.
        store: StoreId,
        /// Which slice.
        nsid: Nsid,
    },
    /// A storaged removed the slice.
    ConfirmSliceGone {
        /// On which store.
        store: StoreId,
        /// Which slice.
        nsid: Nsid,
    },
    /// Cordon or uncordon.
    SetServerStanding {
        /// Which server.
        server: ServerId,
        /// What is wanted of it.
        standing: Standing,
    },
    /// Note something that is not part of the state in the event log (liveness, resilver).
    Note {
        /// What it is about.
        subject: Subject,
        /// What happened.
        text: String,
    },
    /// Let a standard NVMe host use open-access volumes.
    AddHost(NewHost),
    /// Forget a host that has no volume.
    RemoveHost {
        /// Which.
        host: HostId,
    },
    /// Forget a store that holds nothing which is wanted.
    RemoveStore {
        /// Which.
        store: StoreId,
    },
    /// Forget a server without stores.
    RemoveServer {
        /// Which.
        server: ServerId,
    },
    /// This state was restored from a backup: it is a new history, whose epochs are past all that
    /// anybody can have seen. Nobody holds a volume, and every membership is to be verified.
    BeginLineage {
        /// Number of the history, above that in the state.
        lineage: u16,
    },
    /// The holder of an unverified volume has found its newest membership on the stores.
    VerifyMembership {
        /// Which volume.
        volume: VolumeId,
        /// The epoch of the asker.
        epoch: Epoch,
        /// The membership it was granted.
        seq: MembershipSeq,
        /// Version of the newest one found, at least `seq`.
        found_seq: MembershipSeq,
        /// Its in-sync set, every member of which has answered.
        isr: BTreeSet<StoreId>,
    },
    /// A storaged takes a volume that nobody has, to bring it up to date: mints an epoch.
    Maintain {
        /// Which volume.
        volume: VolumeId,
        /// The storaged's server.
        server: ServerId,
    },
    /// Let another server bring a volume up to date, because the one that should is gone.
    AssignMaintenance {
        /// Which volume.
        volume: VolumeId,
        /// The server, of one of its in-sync stores.
        server: ServerId,
    },
    /// End the present generation of each of these volumes and keep it as a snapshot, all of one moment:
    /// all or none.
    CreateSnapshot {
        /// Which volumes.
        volumes: BTreeSet<VolumeId>,
        /// What each snapshot is called.
        name: String,
    },
    /// Who has the volume has brought the snapshot to an end: it is the same on every in-sync store
    /// and never changes any more.
    CompleteSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// The epoch of the asker.
        epoch: Epoch,
        /// Which snapshot.
        generation: Generation,
        /// Of a group: writes waited from [`Self::HoldSnapshot`] until its cut was heard of.
        held: bool,
    },
    /// Give up a snapshot; what only it has is given back by the stores. One that is pending with those of
    /// other volumes takes these with it.
    DeleteSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which snapshot.
        generation: Generation,
    },
    /// Make a volume that shows a complete snapshot, for reading only.
    CreateView {
        /// Its identity, chosen by who asks.
        id: VolumeId,
        /// Unique name.
        name: String,
        /// What it shows.
        origin: Origin,
    },
    /// Make a volume larger, while it is used.
    GrowVolume {
        /// Which.
        volume: VolumeId,
        /// Its new size, a multiple of 4096.
        size_bytes: u64,
    },
    /// Say how far stores may be filled.
    SetSpaceLimits(NewSpaceLimits),
    /// Make a volume that begins with what a complete snapshot shows.
    CreateClone {
        /// Its identity, chosen by who asks.
        id: VolumeId,
        /// Unique name.
        name: String,
        /// What it begins with.
        origin: Origin,
    },
    /// Who has the volume lets no write begin until all volumes of the snapshot's group are cut.
    HoldSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// The epoch of the asker.
        epoch: Epoch,
        /// Which snapshot.
        generation: Generation,
    },
    /// Let a volume that nobody has show again what a complete snapshot of it shows.
    RollBack {
        /// Which volume.
        volume: VolumeId,
        /// The snapshot.
        to: Generation,
        /// Name of the snapshot that keeps what it shows now.
        keep_as: String,
    },
    /// A storaged has written what a rollback had to write, and it is durable.
    CompleteRollback {
        /// Which volume.
        volume: VolumeId,
        /// The epoch of the asker.
        epoch: Epoch,
        /// Which rollback.
        rollback: Rollback,
    },
}

/// What is answered. New variants go to the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done, or it was so already.
    #[default]
    Done,
    /// The server's id.
    Server(ServerId),
    /// The store's id.
    Store(StoreId),
    /// The host's id.
    Host(HostId),
    /// The volume was made.
    Volume(VolumeId),
    /// The volume may be used.
    Granted(Box<AttachGrant>),
    /// The membership is now as asked; its version.
    IsrSet(MembershipSeq),
    /// The asker's epoch is not the holder's any more.
    Fenced {
        /// The newest epoch.
        epoch: Epoch,
    },
    /// The asker's membership is not the current one.
    Stale {
        /// The current version.
        seq: MembershipSeq,
        /// The current in-sync set.
        isr: BTreeSet<StoreId>,
    },
    /// Not carried out.
    Refused(Refusal),
}

/// What a transition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Subject {
    /// The cluster as a whole.
    Cluster,
    /// A server.
    Server(ServerId),
    /// A store.
    Store(StoreId),
    /// A client host.
    Host(HostId),
    /// A volume.
    Volume(VolumeId),
}

/// A transition. Each becomes one event and one log line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The cluster has its identity.
    ClusterInitialised,
    /// A server is known.
    ServerRegistered(ServerId),
    /// A known server has another name, address, NQN or label.
    ServerChanged(ServerId),
    /// The operator wants something else of a server.
    ServerStanding(ServerId, Standing),
    /// A store is known.
    StoreRegistered(StoreId),
    /// A known store has another size or server.
    StoreChanged(StoreId),
    /// A host is known.
    HostRegistered(HostId),
    /// A known host has another name or NQN.
    HostChanged(HostId),
    /// A volume waits for its slices.
    VolumeCreated(VolumeId),
    /// All slices are there.
    VolumeReady(VolumeId),
    /// The volume's slices are being removed.
    VolumeDeleting(VolumeId),
    /// The volume of this name is gone.
    VolumeGone(VolumeId, String),
    /// A host should attach it (or nobody should any more).
    DesiredAttachment(VolumeId, Option<HostId>),
    /// A host took it.
    Attached(VolumeId, HostId, Epoch),
    /// Its holder let it go.
    Detached(VolumeId, HostId),
    /// It was taken from its holder.
    ForceDetached(VolumeId, HostId),
    /// Stores left or joined the in-sync set.
    IsrChanged {
        /// Which volume.
        volume: VolumeId,
        /// New version.
        seq: MembershipSeq,
        /// Who left.
        left: Vec<StoreId>,
        /// Who joined.
        joined: Vec<StoreId>,
    },
    /// The state was restored and a new history begins.
    LineageBegan(u16),
    /// A restored membership is the newest one again.
    MembershipVerified {
        /// Which volume.
        volume: VolumeId,
        /// Its version now.
        seq: MembershipSeq,
        /// The in-sync set.
        isr: Vec<StoreId>,
    },
    /// Something worth knowing that is not part of the state.
    Noted(Subject, String),
    /// The host is forgotten; what it was called.
    HostRemoved(HostId, String),
    /// The store is forgotten; what it was called.
    StoreRemoved(StoreId, String),
    /// The server is forgotten; what it was called.
    ServerRemoved(ServerId, String),
    /// An in-sync store of a volume that nobody has says that it lost its slice.
    SliceBlank(VolumeId, StoreId),
    /// A storaged took the volume to bring it up to date.
    MaintenanceBegan(VolumeId, ServerId, Epoch),
    /// It let it go, or was replaced.
    MaintenanceEnded(VolumeId, ServerId),
    /// What became of the snapshot of this name.
    Snapshot(VolumeId, String, SnapshotFate),
    /// A view of a snapshot is ready.
    ViewCreated(VolumeId),
    /// Its slices are to grow so that it can have so many bytes.
    VolumeGrowing(VolumeId, u64),
    /// It has so many bytes.
    VolumeGrown(VolumeId, u64),
    /// How far stores may be filled.
    SpaceLimits(SpaceLimits),
    /// A clone of a snapshot waits for its slices.
    CloneCreated(VolumeId),
    /// What became of the rollback to the snapshot of this name.
    Rollback(VolumeId, String, RollbackFate),
}

/// A step in the life of a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RollbackFate {
    /// Nobody can attach the volume.
    Begun,
    /// The volume shows what the snapshot shows.
    Completed,
    /// metad was restored from a backup: whether it was completed nobody knows.
    Abandoned,
}

/// A step in the life of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotFate {
    /// It is pending.
    Begun,
    /// It never changes any more.
    Completed,
    /// It is given up.
    Deleted,
    /// It is given up, and kept for clones.
    Kept,
    /// It was kept, and the last clone is gone.
    Released,
    /// Its volume, or another one of its group, was not cut with the others.
    Abandoned,
}

/// A change in the event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Counts events from 1 without holes.
    pub index: u64,
    /// The leader's wall clock, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What it is about.
    pub subject: Subject,
    /// Stable name of the kind, for scripts.
    pub kind: String,
    /// One sentence, with names as they were then.
    pub text: String,
}

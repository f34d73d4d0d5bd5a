//! Questions that members of metad answer, and their answers, in the words of the state machine.

use crate::core::{
    ClientId, Command, DesiredAttachment, DesiredMaintenance, DesiredSlice, EventRecord, HostId,
    NewVolume, Phase, Refusal, Reply, SpaceLimits, Standing,
};
use serde::Serialize;
use shardmap::map::{Shape, VolumeMap};
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use uuid::Uuid;

/// A member of metad.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemberAddress {
    /// Its id, from 1.
    pub id: u64,
    /// `host:port` of its RPC listener.
    pub address: String,
}

/// How far a member is in joining a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Stage {
    /// Its data directory is empty.
    #[default]
    Blank,
    /// It belongs to a cluster and has neither voted nor logged.
    Fresh,
    /// It takes part.
    Running,
}

/// What a member says of itself to other members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemberFacts {
    /// Its id.
    pub id: u64,
    /// How far it is.
    pub stage: Stage,
    /// The cluster it belongs to; nil if blank.
    pub cluster: Uuid,
}

/// What a member knows of the cluster, without asking anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Id, stage, cluster.
    pub facts: MemberFacts,
    /// "leader", "follower", "candidate", "learner", or "waiting".
    pub role: String,
    /// Raft term.
    pub term: u64,
    /// The leader it knows, 0: none.
    pub leader: u64,
    /// Log index of the last applied entry.
    pub applied_index: u64,
    /// Log index of the last entry known to be committed.
    pub committed_index: u64,
    /// All members.
    pub members: Vec<MemberAddress>,
    /// Those that vote.
    pub voters: Vec<u64>,
    /// Version of its program.
    pub version: String,
    /// What it waits for; empty: nothing.
    pub note: String,
    /// How full the map of its log is.
    pub log_fill_percent: u8,
}

/// Whether a daemon was heard of lately. Unknown to a new leader until the daemon reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Liveness {
    /// This leader has not heard of it.
    #[default]
    Unknown,
    /// Reports arrive.
    Online,
    /// A report is overdue, or its connection broke.
    Suspect,
    /// Nothing for long.
    Offline,
}

/// Who reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reporter {
    /// The storaged of a server.
    Server(ServerId),
    /// The clientd of a host.
    Host(HostId),
}

/// How a store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum StoreHealth {
    /// Serves.
    #[default]
    Online,
    /// Recovering after a start.
    Opening,
    /// Its medium failed.
    Faulted,
}

/// How a volume is, as seen by the clientd that has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum VolumeHealth {
    /// Opening its stores.
    #[default]
    Attaching,
    /// All replicas in sync.
    Online,
    /// Serving with fewer replicas.
    Degraded,
    /// Holding IO.
    Stalled,
    /// The device answers with errors.
    Failed,
    /// Going away.
    Detaching,
}

/// A store as its storaged sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreReport {
    /// Which.
    pub store: StoreId,
    /// How it is.
    pub health: StoreHealth,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Usable size in bytes.
    pub size_bytes: u64,
    /// A sentence for people; may be empty.
    pub note: String,
}

impl StoreReport {
    /// How full it is, rounded down.
    pub fn used_percent(&self) -> u64 {
        self.used_bytes.saturating_mul(100) / self.size_bytes.max(1)
    }
}

/// A volume as who has it sees it: a clientd, or a storaged that brings it up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    /// Which.
    pub volume: VolumeId,
    /// How it is.
    pub health: VolumeHealth,
    /// Path of its device; empty while there is none.
    pub device: String,
    /// A sentence for people; may be empty.
    pub note: String,
}

/// How a resilver ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum ResilverOutcome {
    /// Not yet.
    #[default]
    Running,
    /// The replica is in sync.
    Complete,
    /// Given up; it will start again.
    Failed,
}

/// A resilver as who does it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ResilverReport {
    /// Of which volume.
    pub volume: VolumeId,
    /// Towards which store.
    pub store: StoreId,
    /// Wall clock at its start, milliseconds since 1970; with volume and store its identity.
    pub started_unix_ms: u64,
    /// Bytes copied or found equal.
    pub done_bytes: u64,
    /// Bytes it had to look at.
    pub total_bytes: u64,
    /// Present rate.
    pub bytes_per_s: u64,
    /// How it ended.
    pub outcome: ResilverOutcome,
    /// Wall clock at its end, 0 while running.
    pub ended_unix_ms: u64,
}

/// What a daemon reports: everything it knows, replacing what it reported before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportContents {
    /// Its stores (storaged).
    pub stores: Vec<StoreReport>,
    /// Its volumes (clientd), or those it brings up to date (storaged).
    pub volumes: Vec<VolumeReport>,
    /// Running and lately ended resilvers.
    pub resilvers: Vec<ResilverReport>,
}

/// A report or a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who.
    pub from: Reporter,
    /// Which run of the daemon.
    pub run: Uuid,
    /// Version of the contents within the run.
    pub turn: u64,
    /// `None`: a heartbeat, the contents of `turn` stand.
    pub contents: Option<ReportContents>,
}

/// The cluster in one line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClusterView {
    /// Identity.
    pub uuid: Uuid,
    /// For people.
    pub name: String,
    /// Which history.
    pub lineage: u16,
    /// Schema of the state.
    pub schema: u16,
    /// The answering leader.
    pub leader: MemberAddress,
    /// Log index of its last applied entry.
    pub applied_index: u64,
    /// All members.
    pub members: Vec<MemberAddress>,
    /// How far stores may be filled.
    pub space: SpaceLimits,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerView {
    /// Id.
    pub id: ServerId,
    /// Its own identity.
    pub uuid: Uuid,
    /// Name.
    pub name: String,
    /// Where its target listens.
    pub address: SocketAddr,
    /// NQN of its subsystem.
    pub subsystem_nqn: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What the operator wants of it.
    pub standing: Standing,
    /// Whether it was heard of.
    pub liveness: Liveness,
    /// How many stores it has.
    pub stores: u32,
}

/// A store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreView {
    /// Id.
    pub id: StoreId,
    /// From its superblock.
    pub uuid: Uuid,
    /// Its server.
    pub server: ServerId,
    /// Name of its server.
    pub server_name: String,
    /// Usable size in bytes.
    pub size_bytes: u64,
    /// Bytes its slices can grow to.
    pub promised_bytes: u64,
    /// How many slices it has.
    pub slices: u32,
    /// Of its server.
    pub liveness: Liveness,
    /// What its storaged said last, to this leader.
    pub report: Option<StoreReport>,
}

/// A client host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostView {
    /// Id.
    pub id: HostId,
    /// Its own identity.
    pub uuid: Uuid,
    /// Name.
    pub name: String,
    /// NQN of its initiator.
    pub host_nqn: String,
    /// Whether it was heard of.
    pub liveness: Liveness,
    /// Volumes it has.
    pub volumes: u32,
    /// A standard NVMe host, without clientd; its liveness is never known.
    pub standard: bool,
}

/// A slice of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SliceView {
    /// Namespace id.
    pub nsid: Nsid,
    /// Its store.
    pub store: StoreId,
    /// The store's server.
    pub server: ServerId,
    /// The server's name.
    pub server_name: String,
    /// The server's address.
    pub address: SocketAddr,
    /// Position in the stride set.
    pub position: u16,
    /// Its storaged said that it is there.
    pub confirmed: bool,
    /// Blocks of the volume that it reaches to.
    pub size_blocks: u64,
    /// Its store is in the in-sync set.
    pub in_sync: bool,
    /// Of the server.
    pub liveness: Liveness,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeView {
    /// Id.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// Size, shape, stores.
    pub map: VolumeMap,
    /// Stride set.
    pub set: u32,
    /// Replicas below which IO is held.
    pub min_in_sync: u8,
    /// Open to standard NVMe hosts.
    pub open_access: bool,
    /// Blocks that it will have when every slice has them; 0: it does not grow.
    pub growing_to: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// Host that should have it; empty: nobody.
    pub desired_on: String,
    /// Host that has it; empty: nobody.
    pub held_by: String,
    /// Last epoch.
    pub epoch: Epoch,
    /// Version of the membership.
    pub seq: MembershipSeq,
    /// Its slices by position.
    pub slices: Vec<SliceView>,
    /// What the clientd that has it, or the storaged that brings it up to date, said last, to this
    /// leader.
    pub report: Option<VolumeReport>,
    /// Liveness of who would report.
    pub holder_liveness: Liveness,
    /// Server whose storaged should bring it up to date while nobody has it; empty: none.
    pub maintained_by: String,
    /// The generation that takes the writes.
    pub head: Generation,
    /// Its snapshots.
    pub snapshots: u32,
    /// The snapshot that is not complete yet; empty: none.
    pub pending_snapshot: String,
    /// Other volumes that it is to be of one moment with and that are not as far, comma-separated.
    pub pending_for: String,
    /// Name of the snapshot that it is being rolled back to; empty: it is not.
    pub rolls_back_to: String,
    /// It is a view of this snapshot (`VOLUME@NAME`), whose slices these are; empty: it is none.
    pub shows: String,
    /// It is a clone of this snapshot (`VOLUME@NAME`); empty: it is none.
    pub clone_of: String,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotView {
    /// Id of the volume.
    pub volume: VolumeId,
    /// Name of the volume.
    pub volume_name: String,
    /// Its own name.
    pub name: String,
    /// The generation that it keeps.
    pub generation: Generation,
    /// The leader's wall clock when it was asked for, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Writes from before it may still be under way.
    pub pending: bool,
}

/// A resilver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResilverView {
    /// Name of the volume.
    pub volume_name: String,
    /// The store and its server.
    pub store_name: String,
    /// What its clientd said.
    pub report: ResilverReport,
}

/// Where a volume would go.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanView {
    /// The set of the catalogue it would share, 0: a new one.
    pub reused_set: u32,
    /// The rule.
    pub shape: Shape,
    /// Stores by position.
    pub stores: Vec<StoreId>,
    /// Names of their servers.
    pub server_names: Vec<String>,
    /// Bytes each slice can grow to.
    pub slice_bytes: Vec<u64>,
    /// Groups of stores that hold all replicas of some shard.
    pub copysets: u32,
    /// Probability of losing data with 1, 2, 3 lost servers.
    pub loss_probability: Vec<f64>,
    /// Seconds to refill the largest slice.
    pub resilver_seconds: u64,
}

/// Which things, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this one; empty: all.
    pub name: String,
    /// Answer as soon as the version is another one; 0: at once.
    pub version: u64,
}

/// What may be asked of a member.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Change the state.
    Command {
        /// Who asks.
        client: ClientId,
        /// Its number.
        sequence: u64,
        /// What.
        command: Command,
    },
    /// Answered by every member about itself.
    MemberStatus,
    /// Identity and leader.
    Cluster,
    /// Servers.
    Servers(Filter),
    /// Stores.
    Stores(Filter),
    /// Hosts.
    Hosts(Filter),
    /// Volumes.
    Volumes(Filter),
    /// Resilvers.
    Resilvers(Filter),
    /// Snapshots, of a volume or one of them (`VOLUME@NAME`).
    Snapshots(Filter),
    /// Where a volume would go.
    Plan(NewVolume),
    /// Check the state.
    Fsck,
    /// Events after an index.
    Events {
        /// Events with a greater index.
        after: u64,
        /// Wait until there is one.
        wait: bool,
    },
    /// What the storaged of a server should hold, once it is newer than `after`.
    WatchSlices {
        /// Which server.
        server: ServerId,
        /// The index of the last answer; 0: at once.
        after: u64,
    },
    /// What the clientd of a host should attach, once it is newer than `after`.
    WatchAttachments {
        /// Which host.
        host: HostId,
        /// The index of the last answer; 0: at once.
        after: u64,
    },
    /// A report or a heartbeat.
    Report(Report),
}

/// A list with the version it was taken at.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned<T> {
    /// For [`Filter::version`]; comparable only with versions of the same list.
    pub version: u64,
    /// The items.
    pub list: Vec<T>,
}

/// What the storaged of a server should hold or remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceDesire {
    /// For the next watch.
    pub index: u64,
    /// All of it.
    pub slices: Vec<DesiredSlice>,
    /// Hosts it should admit.
    pub host_nqns: Vec<String>,
    /// Volumes it should bring up to date.
    pub maintenance: Vec<DesiredMaintenance>,
}

/// What the clientd of a host should attach or detach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentDesire {
    /// For the next watch.
    pub index: u64,
    /// All of it.
    pub volumes: Vec<DesiredAttachment>,
}

/// Resilvers, running and past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resilvers {
    /// For [`Filter::version`].
    pub version: u64,
    /// Running.
    pub running: Vec<ResilverView>,
    /// Ended ones this leader has heard of, newest last.
    pub history: Vec<ResilverView>,
}

/// What a member answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Ask that one.
    NotLeader(Option<MemberAddress>),
    /// Nobody can answer now.
    Unavailable(String),
    /// The question cannot be answered.
    Refused(Refusal),
    /// To a command.
    Command {
        /// Its index in the log.
        index: u64,
        /// What the state machine said.
        reply: Reply,
    },
    /// The member itself.
    MemberStatus(MemberStatus),
    /// Identity and leader.
    Cluster(ClusterView),
    /// Servers.
    Servers(Versioned<ServerView>),
    /// Stores.
    Stores(Versioned<StoreView>),
    /// Hosts.
    Hosts(Versioned<HostView>),
    /// Volumes.
    Volumes(Versioned<VolumeView>),
    /// Resilvers.
    Resilvers(Resilvers),
    /// Snapshots, by volume, oldest first.
    Snapshots(Versioned<SnapshotView>),
    /// Where a volume would go.
    Plan(PlanView),
    /// What is wrong with the state.
    Fsck(Vec<String>),
    /// Events, oldest first.
    Events(Vec<EventRecord>),
    /// To `WatchSlices`.
    Slices(SliceDesire),
    /// To `WatchAttachments`.
    Attachments(AttachmentDesire),
    /// The report was taken. `known` is false after a heartbeat about contents that this leader
    /// has not seen: send them.
    Reported {
        /// The contents are here.
        known: bool,
    },
}

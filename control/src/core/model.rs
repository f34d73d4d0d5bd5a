//! The records of the replicated state.
//!
//! Only `apply` changes them. All maps are ordered, so that iteration is the same on every member.

use super::command::{ClientId, EventRecord, Reply};
use super::limits;
use serde::{Deserialize, Serialize};
pub use shardmap::generations::Rollback;
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::map::VolumeMap;
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use uuid::Uuid;

/// A client host, minted by metad, never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct HostId(pub u32);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host-{}", self.0)
    }
}

/// A stride set of the catalogue, minted by metad, never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct SetId(pub u32);

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set-{}", self.0)
    }
}

/// Everything the cluster agrees on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Identity; `None` until `InitCluster`.
    pub cluster: Option<Cluster>,
    /// Log index of the last applied entry.
    pub applied_index: u64,
    /// Storage servers.
    pub servers: BTreeMap<ServerId, Server>,
    /// Their stores.
    pub stores: BTreeMap<StoreId, Store>,
    /// Client hosts.
    pub hosts: BTreeMap<HostId, Host>,
    /// The catalogue of stride sets.
    pub sets: BTreeMap<SetId, StrideSet>,
    /// Volumes, also those being deleted.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Slices of volumes on stores.
    pub slices: BTreeMap<Nsid, Slice>,
    /// Last ids handed out.
    pub minted: Minted,
    /// Snapshots that are to be of one moment and are pending, by group.
    pub groups: BTreeMap<u64, BTreeMap<VolumeId, Generation>>,
    /// What was answered to whom, so that a repeated command is not carried out twice.
    pub clients: BTreeMap<ClientId, ClientMemory>,
    /// The last [`limits::EVENTS_MAX`] transitions, oldest first.
    pub events: VecDeque<EventRecord>,
}

/// Identity of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Chosen when the first member booted.
    pub uuid: Uuid,
    /// For people.
    pub name: String,
    /// Which history this is: 1, and one more after each disaster restore. High bits of epochs.
    pub lineage: u16,
    /// Schema of the state, [`limits::SCHEMA`].
    pub schema: u16,
    /// How far stores may be filled.
    pub space: SpaceLimits,
}

/// How far stores may be filled, in percent of their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceLimits {
    /// Thin promises a store may make.
    pub overcommit_percent: u32,
    /// In use: from there on a store is given no new slices.
    pub high_water_percent: u32,
}

impl Default for SpaceLimits {
    fn default() -> Self {
        Self {
            overcommit_percent: limits::OVERCOMMIT_PERCENT_DEFAULT,
            high_water_percent: limits::HIGH_WATER_PERCENT_DEFAULT,
        }
    }
}

/// Last ids handed out; ids start at 1 and are never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    /// Servers.
    pub server: u32,
    /// Stores.
    pub store: u32,
    /// Hosts.
    pub host: u32,
    /// Stride sets.
    pub set: u32,
    /// Slices.
    pub nsid: u32,
    /// Events.
    pub event: u64,
    /// Groups of snapshots.
    pub group: u64,
}

/// What the operator wants of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Takes new slices.
    #[default]
    Active,
    /// Keeps what it has, takes nothing new.
    Cordoned,
}

/// A storage server (one storaged).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its own identity, from its data directory.
    pub uuid: Uuid,
    /// Unique name.
    pub name: String,
    /// Where its NVMe/TCP target listens.
    pub address: SocketAddr,
    /// NQN of its subsystem.
    pub subsystem_nqn: String,
    /// Failure-domain and other labels.
    pub labels: BTreeMap<String, String>,
    /// What the operator wants of it.
    pub standing: Standing,
    /// When what its storaged should do last changed: the log index, past all of earlier lineages.
    pub desired_index: u64,
}

/// One backing device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// From its superblock.
    pub uuid: Uuid,
    /// The server it was last seen in.
    pub server: ServerId,
    /// Usable size in bytes.
    pub size_bytes: u64,
}

/// What the NQN of a clientd begins with; its UUID follows. No other host may be called so.
pub const CLIENTD_NQN_PREFIX: &str = "nqn.2026-01.io.ublkstor:clientd:";
/// What the NQN begins with under which a storaged connects to others; its UUID follows.
pub const STORAGED_HOST_NQN_PREFIX: &str = "nqn.2026-01.io.ublkstor:storaged-host:";

/// NQN under which the storaged of a server connects to others, to bring volumes up to date.
pub fn storaged_host_nqn(server: Uuid) -> String {
    format!("{STORAGED_HOST_NQN_PREFIX}{server}")
}

/// What the NQN begins with under which `ubsctl` reads snapshots; the cluster's UUID follows.
pub const READER_HOST_NQN_PREFIX: &str = "nqn.2026-01.io.ublkstor:reader:";

/// NQN under which snapshots of a cluster are read from its storageds.
pub fn reader_host_nqn(cluster: Uuid) -> String {
    format!("{READER_HOST_NQN_PREFIX}{cluster}")
}

/// A client host: one clientd, or a standard NVMe host that uses open-access volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its own identity.
    pub uuid: Uuid,
    /// Unique name.
    pub name: String,
    /// NQN its initiator uses.
    pub host_nqn: String,
    /// When what its clientd should do last changed: the log index, past all of earlier lineages.
    pub desired_index: u64,
}

impl Host {
    /// Whether it is a standard NVMe host: no clientd, attaches nothing, reports to nobody.
    pub fn is_standard(&self) -> bool {
        !self.host_nqn.starts_with(CLIENTD_NQN_PREFIX)
    }
}

/// What must differ between two stores of a stride set.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Domain {
    /// Only the store.
    Store,
    /// The server.
    #[default]
    Server,
    /// The value of a server label ("rack", "zone"); servers without it are not used.
    Label(String),
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("store"),
            Self::Server => f.write_str("server"),
            Self::Label(key) => write!(f, "label:{key}"),
        }
    }
}

/// A set of stores that volumes share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrideSet {
    /// Stores by position.
    pub stores: Vec<StoreId>,
    /// The rule it was made under.
    pub domain: Domain,
}

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Some slice has not been confirmed by its storaged.
    Creating,
    /// All slices are there.
    Ready,
    /// Slices are being removed; the volume goes with the last one.
    Deleting,
    /// Ready for nobody but a storaged, which writes what a snapshot shows: see [`Rollback`].
    RollingBack,
}

/// Who holds a volume. Its epoch is the volume's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The client host.
    pub host: HostId,
    /// Minted for this attachment.
    pub epoch: Epoch,
    /// The epoch with which the host began to hold it. Since then nobody else has, so a device that
    /// the host's clientd left in the kernel under this or a later epoch may be taken over.
    pub since: Epoch,
}

/// A storaged that brings a volume up to date while nobody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// Its server.
    pub server: ServerId,
    /// While it is at work: minted for it, the volume's epoch.
    pub epoch: Option<Epoch>,
    /// Log index of the last change that may let it succeed where it has failed.
    pub due_index: u64,
    /// An in-sync store has lost its slice, as its storaged says: somebody has to open the stores and see.
    pub blank: bool,
}

/// A snapshot of a volume: a generation that has ended, or is about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Unique among the snapshots of the volume.
    pub name: String,
    /// The leader's wall clock when it was asked for, milliseconds since 1970; for people only.
    pub created_unix_ms: u64,
    /// How far it is.
    pub state: SnapshotState,
    /// While it is pending with those of other volumes.
    pub part: Option<Part>,
    /// It is not of one moment with the others of its group: it goes as soon as it is at an end.
    pub abandoned: bool,
}

/// What a snapshot is in the group that it is pending with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The group.
    pub group: u64,
    /// Who may speak for the volume: its holder when the group was made, or else the first one before the
    /// cut. If there was none, whoever ends it.
    pub holder: Option<Epoch>,
    /// How far it is.
    pub step: PartStep,
}

/// How far a part of a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PartStep {
    /// Writes of the volume may still belong to the snapshot.
    Waiting,
    /// No write begins.
    Held,
    /// All were held: writes begin again, and do not belong to the snapshot.
    Cut,
    /// Complete on the stores.
    Whole,
}

/// A snapshot that a view shows, or that a clone begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The snapshot's volume.
    pub volume: VolumeId,
    /// The snapshot.
    pub generation: Generation,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique among volumes that are not being deleted.
    pub name: String,
    /// Size, shape and stores by position.
    pub map: VolumeMap,
    /// The stride set it took its stores from.
    pub set: SetId,
    /// Size in blocks that it will have when every slice has it.
    pub growing_to: Option<u64>,
    /// Slices by position.
    pub slices: Vec<Nsid>,
    /// Below this many in-sync replicas of a shard, clientd holds IO.
    pub min_in_sync: u8,
    /// Any known host may do IO on the single slice without a session (standard NVMe hosts).
    pub open_access: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// Which host should have it.
    pub desired: Option<HostId>,
    /// Which host has it.
    pub attachment: Option<Attachment>,
    /// The last epoch minted; `Epoch(0)` before the first attach.
    pub epoch: Epoch,
    /// Version of the membership.
    pub seq: MembershipSeq,
    /// The in-sync set.
    pub isr: BTreeSet<StoreId>,
    /// The membership is the newest there ever was. False after a disaster restore, until a clientd
    /// has asked the stores for their stamps.
    pub verified: bool,
    /// Which storaged should bring it up to date; `None` while a host has it or should have it, and
    /// once it is whole and no snapshot is pending.
    pub maintenance: Option<Maintenance>,
    /// The generation that takes the writes; only grows.
    pub head: Generation,
    /// The generations before the head that are kept. Those that are missing were deleted.
    pub snapshots: BTreeMap<Generation, Snapshot>,
    /// It is a view of this snapshot: read-only, without slices of its own.
    pub origin: Option<Origin>,
    /// It is a clone of this snapshot: its slices begin with what those of the other volume show.
    pub clone_of: Option<Origin>,
    /// Snapshots that were deleted and that clones still show.
    pub kept: BTreeMap<Generation, Snapshot>,
    /// It was taken from a host, which may go on writing until the stores are opened by somebody else. Known
    /// to be over when a snapshot is complete.
    pub forsaken: bool,
    /// While it is being rolled back.
    pub rollback: Option<Rollback>,
}

impl Volume {
    /// Whether this epoch may change the membership: that of a host that has the volume, or of a
    /// storaged that brings it up to date.
    pub fn is_held_under(&self, epoch: Epoch) -> bool {
        self.holder_epoch() == Some(epoch)
    }

    /// The epoch of who has the volume, if anybody has.
    pub fn holder_epoch(&self) -> Option<Epoch> {
        let maintained = self.maintenance.and_then(|m| m.epoch);
        self.attachment.map(|a| a.epoch).or(maintained)
    }

    /// The epoch to mint next, of the present lineage.
    pub fn next_epoch(&self, lineage: u16) -> Epoch {
        let floor = Epoch::new(lineage, 0).expect("counter zero fits");
        self.epoch.max(floor).next()
    }

    /// Head and snapshots as the data path knows them: with those that are kept for clones.
    pub fn generations(&self) -> VolumeGenerations {
        let snapshots = self.snapshots.iter().chain(&self.kept);
        VolumeGenerations {
            head: self.head,
            snapshots: snapshots.map(|(g, s)| (*g, s.state)).collect(),
            hold: self.pending_part().is_some_and(|p| p.step < PartStep::Cut),
        }
    }

    /// The snapshot that is not complete yet: the newest, if any.
    pub fn pending_snapshot(&self) -> Option<(Generation, &Snapshot)> {
        let newest = self.snapshots.last_key_value();
        newest
            .filter(|(_, s)| s.state == SnapshotState::Pending)
            .map(|(g, s)| (*g, s))
    }

    /// What the pending snapshot is in its group.
    pub fn pending_part(&self) -> Option<Part> {
        self.pending_snapshot().and_then(|(_, s)| s.part)
    }

    /// Whether there is a snapshot that who has the volume must bring to an end.
    pub fn has_unfinished_snapshot(&self) -> bool {
        let whole = self
            .pending_part()
            .is_some_and(|p| p.step == PartStep::Whole);
        self.pending_snapshot().is_some() && !whole
    }

    /// The snapshot of a name.
    pub fn snapshot_named(&self, name: &str) -> Option<(Generation, &Snapshot)> {
        let mut all = self.snapshots.iter();
        all.find(|(_, s)| s.name == name).map(|(g, s)| (*g, s))
    }

    /// Stores of the stride set that are not in the in-sync set.
    pub fn out_of_sync(&self) -> impl Iterator<Item = StoreId> + '_ {
        self.map
            .stores
            .iter()
            .copied()
            .filter(|s| !self.isr.contains(s))
    }
}

/// The part of one volume that one store holds: an NVMe namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The volume.
    pub volume: VolumeId,
    /// The store.
    pub store: StoreId,
    /// Position in the stride set.
    pub position: u16,
    /// Bytes it can grow to.
    pub promised_bytes: u64,
    /// It is there, says its storaged, or who has brought it up to date.
    pub confirmed: bool,
    /// Blocks of the volume that it reaches to, as its storaged said last.
    pub size_blocks: u64,
}

/// Replies already given to a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientMemory {
    /// Log index of the last command.
    pub last_index: u64,
    /// By sequence number; at most [`limits::REPLIES_PER_CLIENT_MAX`].
    pub replies: BTreeMap<u64, (u64, Reply)>,
}

impl State {
    /// The volume of a name; one that is being deleted only if no other has the name.
    pub fn volume_named(&self, name: &str) -> Option<(VolumeId, &Volume)> {
        let mut named = self.volumes.iter().filter(|(_, v)| v.name == name);
        let first = named.next()?;
        let best = if first.1.phase == Phase::Deleting {
            named
                .find(|(_, v)| v.phase != Phase::Deleting)
                .unwrap_or(first)
        } else {
            first
        };
        Some((*best.0, best.1))
    }

    /// The host of a name.
    pub fn host_named(&self, name: &str) -> Option<(HostId, &Host)> {
        self.hosts
            .iter()
            .find(|(_, h)| h.name == name)
            .map(|(id, h)| (*id, h))
    }

    /// The server of a name.
    pub fn server_named(&self, name: &str) -> Option<(ServerId, &Server)> {
        self.servers
            .iter()
            .find(|(_, s)| s.name == name)
            .map(|(id, s)| (*id, s))
    }

    /// Snapshots of all volumes, with those that are kept for clones.
    pub fn snapshot_count(&self) -> usize {
        let of = |v: &Volume| v.snapshots.len() + v.kept.len();
        self.volumes.values().map(of).sum()
    }

    /// Names of the volumes of a group whose part is at most that far, and not whole.
    pub fn behind_in_group(&self, group: u64, step: PartStep) -> impl Iterator<Item = &String> {
        let members = self.groups.get(&group).into_iter().flatten();
        let volumes = members.filter_map(|(id, _)| self.volumes.get(id));
        let far = move |v: &&Volume| {
            let part = v.pending_part();
            part.is_some_and(|p| p.step <= step && p.step < PartStep::Whole)
        };
        volumes.filter(far).map(|v| &v.name)
    }

    /// Clones of a snapshot, or of any of the volume; also those that are being deleted.
    pub fn clones_of(
        &self,
        volume: VolumeId,
        generation: Option<Generation>,
    ) -> impl Iterator<Item = &Volume> {
        let begins = move |o: Origin| {
            o.volume == volume && generation.is_none_or(|wanted| wanted == o.generation)
        };
        let volumes = self.volumes.values();
        volumes.filter(move |v| v.clone_of.is_some_and(begins))
    }

    /// Bytes promised to slices, by store; stores without slices are absent.
    pub fn promised_bytes(&self) -> BTreeMap<StoreId, u64> {
        let mut promised = BTreeMap::new();
        for slice in self.slices.values() {
            *promised.entry(slice.store).or_insert(0) += slice.promised_bytes;
        }
        promised
    }

    /// How far stores may be filled.
    pub fn space_limits(&self) -> SpaceLimits {
        self.cluster.as_ref().map(|c| c.space).unwrap_or_default()
    }

    /// Bytes a store of this size may promise.
    pub fn promisable_bytes(&self, size_bytes: u64) -> u64 {
        let percent = self.space_limits().overcommit_percent;
        u64::try_from(u128::from(size_bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX)
    }
}

//! One member: its stores, its part in consensus, its listener.

use super::health::Health;
use super::marker::Marker;
use super::proposals::Proposals;
use super::{PROPOSALS_MAX, bootstrap, duties, rpc};
use crate::api::{MemberAddress, MemberFacts, MemberStatus, Stage};
use crate::core::ClientId;
use crate::raft::Raft;
use crate::raft::log::LogStore;
use crate::raft::machine::Machine;
use crate::raft::network::Network;
use openraft::{ServerState, SnapshotPolicy};
use shardmap::units::Moment;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

/// How a member runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its id, from 1, one of `members`.
    pub id: u64,
    /// Where its log and snapshots live; its own.
    pub data_dir: PathBuf,
    /// Name of a cluster that is begun by it.
    pub cluster_name: String,
    /// All members of a cluster that is begun by it, in any order.
    pub members: Vec<MemberAddress>,
    /// Between two heartbeats of the leader.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for a random time from this …
    pub election_min_ms: u64,
    /// … up to this stands for election.
    pub election_max_ms: u64,
    /// Entries between two snapshots; bounds what is applied again after a start.
    pub snapshot_entries: u64,
    /// Map of the log, bytes; sparse.
    pub log_map_bytes: usize,
    /// Map of the snapshots, bytes; sparse.
    pub state_map_bytes: usize,
    /// A daemon that is silent this long is suspect.
    pub suspect_after_ms: u64,
    /// A daemon that is silent this long is offline.
    pub offline_after_ms: u64,
}

impl NodeConfig {
    /// The usual times and sizes.
    pub fn new(id: u64, data_dir: impl Into<PathBuf>, members: Vec<MemberAddress>) -> Self {
        Self {
            id,
            data_dir: data_dir.into(),
            cluster_name: "ublkstor".into(),
            members,
            heartbeat_ms: 500,
            election_min_ms: 1_500,
            election_max_ms: 3_000,
            snapshot_entries: 5_000,
            log_map_bytes: 2 << 30,
            state_map_bytes: 4 << 30,
            suspect_after_ms: 12_000,
            offline_after_ms: 30_000,
        }
    }
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("data directory {dir}: {source}")]
    Data {
        /// Which.
        dir: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The data directory belongs to another member.
    #[error(
        "data directory {dir} belongs to member {theirs}, the configuration says member {ours}; \
         give each member its own directory"
    )]
    OtherMember {
        /// Which directory.
        dir: String,
        /// Its member.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// There is a log and nothing says which cluster it belongs to.
    #[error(
        "data directory {dir} has a log and no member.toml: it was damaged or copied in part; \
         restore member.toml, or empty the directory and let the member join again"
    )]
    NoMarker {
        /// Which directory.
        dir: String,
    },
    /// openraft refused its configuration or its stores.
    #[error("consensus does not start: {0}")]
    Raft(String),
}

/// A running member. Lives on a tokio `LocalSet`.
#[derive(Debug)]
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) machine: Machine,
    pub(super) health: RefCell<Health>,
    /// Grows whenever the leader's memory changes.
    pub(super) reported: watch::Sender<u64>,
    /// Wakes the task that watches for overdue reports.
    pub(super) deadline_moved: Notify,
    pub(super) proposals: Semaphore,
    pub(super) waiting: Proposals,
    /// Whose commands those of the leader itself are.
    pub(super) own_client: ClientId,
    pub(super) own_sequence: Cell<u64>,
    /// What it waits for, for people.
    pub(super) note: RefCell<String>,
    log: LogStore,
    cluster: Rc<Cell<Uuid>>,
    raft: RefCell<Option<RaftHandle>>,
    raft_started: watch::Sender<bool>,
    began: Instant,
    tasks: RefCell<JoinSet<()>>,
}

struct RaftHandle(Raft);

impl std::fmt::Debug for RaftHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Raft")
    }
}

impl Node {
    /// Opens the data directory, begins to serve, and takes part in consensus as soon as the
    /// directory belongs to a cluster.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: NodeConfig, listener: TcpListener) -> Result<Rc<Self>, StartError> {
        let dir = config.data_dir.clone();
        let data = |source| StartError::Data {
            dir: dir.display().to_string(),
            source,
        };
        std::fs::create_dir_all(&dir).map_err(data)?;
        let marker = Marker::read(&dir).map_err(data)?;
        let log = LogStore::open(&dir.join("log"), config.log_map_bytes).map_err(data)?;
        let machine = Machine::open(&dir.join("state"), config.state_map_bytes).map_err(data)?;
        check_marker(marker.as_ref(), &config, &log, &dir)?;
        let cluster = marker.map_or(Uuid::nil(), |m| m.cluster);
        let health = Health::new(config.suspect_after_ms, config.offline_after_ms);
        let node = Rc::new(Self {
            machine,
            health: RefCell::new(health),
            reported: watch::Sender::new(0),
            deadline_moved: Notify::new(),
            proposals: Semaphore::new(PROPOSALS_MAX),
            waiting: Proposals::default(),
            own_client: ClientId(Uuid::new_v4()),
            own_sequence: Cell::new(0),
            note: RefCell::default(),
            log,
            cluster: Rc::new(Cell::new(cluster)),
            raft: RefCell::new(None),
            raft_started: watch::Sender::new(false),
            began: Instant::now(),
            tasks: RefCell::new(JoinSet::new()),
            config,
        });
        if cluster != Uuid::nil() {
            node.start_raft().await?;
        }
        node.spawn(rpc::serve(Rc::clone(&node), listener));
        node.spawn(bootstrap::run(Rc::clone(&node)));
        node.spawn(duties::run(Rc::clone(&node)));
        Ok(node)
    }

    async fn start_raft(&self) -> Result<(), StartError> {
        let c = &self.config;
        let raft_config = openraft::Config {
            cluster_name: c.cluster_name.clone(),
            heartbeat_interval: c.heartbeat_ms,
            election_timeout_min: c.election_min_ms,
            election_timeout_max: c.election_max_ms,
            install_snapshot_timeout: c.election_max_ms * 2,
            max_payload_entries: 64,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(c.snapshot_entries),
            max_in_snapshot_log_to_keep: c.snapshot_entries / 2,
            snapshot_max_chunk_size: 1 << 20,
            ..openraft::Config::default()
        };
        let raft_config = raft_config
            .validate()
            .map_err(|e| StartError::Raft(e.to_string()))?;
        let network = Network {
            cluster: Rc::clone(&self.cluster),
        };
        let (log, machine) = (self.log.clone(), self.machine.clone());
        let raft = Raft::new(c.id, Arc::new(raft_config), network, log, machine)
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;
        *self.raft.borrow_mut() = Some(RaftHandle(raft));
        self.raft_started.send_replace(true);
        Ok(())
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(task);
    }

    /// Consensus, once the member belongs to a cluster.
    pub(super) fn raft(&self) -> Option<Raft> {
        self.raft.borrow().as_ref().map(|r| r.0.clone())
    }

    /// As [`Self::raft`], waiting for it.
    pub(super) async fn raft_when_started(&self) -> Raft {
        let mut started = self.raft_started.subscribe();
        loop {
            if let Some(raft) = self.raft() {
                return raft;
            }
            // The sender is ours, so it is there as long as we are.
            drop(started.changed().await);
        }
    }

    /// Time on the member's own clock.
    pub(super) fn now(&self) -> Moment {
        Moment(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The instant of a moment on the member's own clock.
    pub(super) fn instant(&self, at: Moment) -> Instant {
        self.began + Duration::from_nanos(at.0)
    }

    /// The cluster it belongs to; nil: none.
    pub(super) fn cluster(&self) -> Uuid {
        self.cluster.get()
    }

    /// Makes the directory one of the cluster's, durably, and takes part from now on.
    ///
    /// # Errors
    /// It belongs to a cluster and has voted or logged; the marker cannot be written.
    pub(super) async fn adopt(
        &self,
        cluster: Uuid,
        members: &[MemberAddress],
    ) -> Result<(), StartError> {
        if self.facts().stage == Stage::Running && cluster != self.cluster() {
            return Err(StartError::Raft(format!(
                "member {} takes part in cluster {} already",
                self.config.id,
                self.cluster()
            )));
        }
        if cluster != self.cluster() {
            let dir = &self.config.data_dir;
            let marker = Marker::new(cluster, self.config.id, members);
            marker.write(dir).map_err(|source| StartError::Data {
                dir: dir.display().to_string(),
                source,
            })?;
            self.cluster.set(cluster);
        }
        if self.raft.borrow().is_none() {
            self.start_raft().await?;
        }
        Ok(())
    }

    /// How far it is.
    pub fn facts(&self) -> MemberFacts {
        let stage = if self.cluster() == Uuid::nil() {
            Stage::Blank
        } else if self.log.is_untouched() {
            Stage::Fresh
        } else {
            Stage::Running
        };
        MemberFacts {
            id: self.config.id,
            stage,
            cluster: self.cluster(),
        }
    }

    /// What it knows, without asking anybody.
    pub fn status(&self) -> MemberStatus {
        let mut status = MemberStatus {
            facts: self.facts(),
            role: "waiting".into(),
            members: self.config.members.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            note: self.note.borrow().clone(),
            applied_index: self.machine.state().applied_index,
            log_fill_percent: self.log_fill_percent(),
            ..MemberStatus::default()
        };
        let Some(raft) = self.raft() else {
            return status;
        };
        let metrics = raft.metrics().borrow().clone();
        status.role = role(metrics.state).into();
        status.term = metrics.current_term;
        status.leader = metrics.current_leader.unwrap_or(0);
        status.committed_index = metrics.last_applied.map_or(0, |id| id.index);
        let membership = metrics.membership_config.membership();
        if membership.nodes().next().is_some() {
            let nodes = membership.nodes();
            status.members = nodes
                .map(|(id, node)| MemberAddress {
                    id: *id,
                    address: node.addr.clone(),
                })
                .collect();
            status.voters = membership.voter_ids().collect();
        }
        status
    }

    /// How full the log's map is, in percent.
    pub fn log_fill_percent(&self) -> u8 {
        self.log.fill_gauge().load(Ordering::Relaxed)
    }

    /// Whether this member leads, as far as it knows.
    pub(super) fn is_leader(&self) -> bool {
        self.raft()
            .is_some_and(|r| r.server_metrics().borrow().state == ServerState::Leader)
    }

    /// The leader it knows.
    pub(super) fn leader(&self) -> Option<MemberAddress> {
        let raft = self.raft()?;
        let metrics = raft.server_metrics().borrow().clone();
        let id = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&id)?;
        Some(MemberAddress {
            id,
            address: node.addr.clone(),
        })
    }

    /// Waits until consensus has stopped for good, and says why. The process should then end:
    /// what the disk holds is not certain any more.
    pub async fn failed(&self) -> String {
        let raft = self.raft_when_started().await;
        let mut metrics = raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_and_update().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "consensus has ended".into();
            }
        }
    }

    /// Waits for a change of the member's own status worth telling (`sd_notify`, log).
    pub async fn status_changed(&self) {
        let raft = self.raft_when_started().await;
        let mut metrics = raft.server_metrics();
        metrics.mark_unchanged();
        // Ends also when consensus has ended: then there is something to tell, too.
        drop(metrics.changed().await);
    }

    /// Ends connections and consensus, and gives the data directory free. What was acknowledged is durable with or without it.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        tasks.shutdown().await;
        let raft = self.raft.borrow_mut().take();
        if let Some(RaftHandle(raft)) = raft
            && let Err(e) = raft.shutdown().await
        {
            tracing::warn!(error = %e, "consensus did not end in order");
        }
        self.log.close();
        self.machine.close();
    }
}

const fn role(state: ServerState) -> &'static str {
    match state {
        ServerState::Learner => "learner",
        ServerState::Follower => "follower",
        ServerState::Candidate => "candidate",
        ServerState::Leader => "leader",
        ServerState::Shutdown => "stopped",
    }
}

fn check_marker(
    marker: Option<&Marker>,
    config: &NodeConfig,
    log: &LogStore,
    dir: &Path,
) -> Result<(), StartError> {
    let dir = dir.display().to_string();
    match marker {
        Some(m) if m.node_id != config.id => Err(StartError::OtherMember {
            dir,
            theirs: m.node_id,
            ours: config.id,
        }),
        None if !log.is_untouched() => Err(StartError::NoMarker { dir }),
        Some(_) | None => Ok(()),
    }
}

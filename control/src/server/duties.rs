//! What the leader does on its own: give the cluster its identity, notice daemons that fall silent,
//! give their maintenance to others.

use super::health::Transition;
use super::maintenance;
use super::node::Node;
use crate::api::{Liveness, Reporter, ResilverOutcome, ResilverReport};
use crate::core::{Command, Envelope, Subject, limits};
use crate::wall_clock::unix_ms;
use openraft::ServerState;
use std::rc::Rc;
use std::time::Duration;

/// Before trying again what a lost leadership or quorum prevented.
const RETRY: Duration = Duration::from_secs(1);

/// Runs as long as the member.
pub(super) async fn run(node: Rc<Node>) {
    let raft = node.raft_when_started().await;
    let mut role = raft.server_metrics();
    loop {
        let leads = role.borrow_and_update().state == ServerState::Leader;
        if leads {
            let now = node.now();
            node.health.borrow_mut().begin(now);
            node.bump_reported();
            tokio::select! {
                () = lead(&node) => {}
                () = until_not_leader(&mut role) => {}
            }
        } else if role.changed().await.is_err() {
            return;
        }
    }
}

async fn until_not_leader(
    role: &mut tokio::sync::watch::Receiver<
        openraft::metrics::RaftServerMetrics<u64, openraft::BasicNode>,
    >,
) {
    while role.borrow_and_update().state == ServerState::Leader {
        if role.changed().await.is_err() {
            return;
        }
    }
}

async fn lead(node: &Rc<Node>) {
    while !identify(node).await {
        tokio::time::sleep(RETRY).await;
    }
    let mut look = tokio::time::interval(maintenance::LOOK);
    loop {
        let next = node.health.borrow().next_deadline();
        let due = async {
            match next {
                None => std::future::pending().await,
                Some(at) => tokio::time::sleep_until(node.instant(at).into()).await,
            }
        };
        tokio::select! {
            () = due => {}
            () = node.deadline_moved.notified() => {}
            _ = look.tick() => maintenance::reassign(node).await,
        }
        let overdue = node.health.borrow_mut().on_time(node.now());
        node.tell(overdue);
    }
}

/// Makes sure that the cluster has its identity; true when it has.
async fn identify(node: &Rc<Node>) -> bool {
    let Some(raft) = node.raft() else {
        return false;
    };
    if raft.ensure_linearizable().await.is_err() {
        return false;
    }
    if node.machine.state().cluster.is_some() {
        return true;
    }
    let name = node.config.cluster_name.clone();
    node.propose(Command::InitCluster {
        uuid: node.cluster(),
        name,
    })
    .await
}

impl Node {
    pub(super) fn bump_reported(&self) {
        self.reported.send_modify(|version| *version += 1);
    }

    /// Proposes a command of the leader itself; true when it is committed.
    pub(super) async fn propose(self: &Rc<Self>, command: Command) -> bool {
        let Some(raft) = self.raft() else {
            return false;
        };
        let sequence = self.own_sequence.get() + 1;
        self.own_sequence.set(sequence);
        let envelope = Envelope {
            schema: limits::SCHEMA,
            client: self.own_client,
            sequence,
            at_unix_ms: unix_ms(),
            command,
        };
        let bytes = postcard::to_stdvec(&envelope).map_or(usize::MAX, |e| e.len());
        self.commit(raft, envelope, bytes).await.is_ok()
    }

    /// Puts transitions of the leader's memory into the event log, in the background.
    pub(super) fn tell(self: &Rc<Self>, transitions: Vec<Transition>) {
        if transitions.is_empty() {
            return;
        }
        self.bump_reported();
        let node = Rc::clone(self);
        self.spawn(async move {
            for transition in transitions {
                let (subject, text) = node.describe(&transition);
                // A note that cannot be committed now is not worth keeping for later.
                if !node.propose(Command::Note { subject, text }).await {
                    return;
                }
            }
        });
    }

    fn describe(&self, transition: &Transition) -> (Subject, String) {
        match transition {
            Transition::Liveness(of, liveness) => self.describe_liveness(*of, *liveness),
            Transition::ResilverBegan(r) => {
                let bytes = r.total_bytes;
                self.describe_resilver(r, &format!("began, {bytes} bytes to look at"))
            }
            Transition::ResilverEnded(r) => {
                let how = match r.outcome {
                    ResilverOutcome::Complete => "complete",
                    ResilverOutcome::Failed | ResilverOutcome::Running => "given up for now",
                };
                let took_ms = r.ended_unix_ms.saturating_sub(r.started_unix_ms);
                let bytes = r.done_bytes;
                self.describe_resilver(r, &format!("{how}: {bytes} bytes in {took_ms} ms"))
            }
        }
    }

    fn describe_liveness(&self, of: Reporter, liveness: Liveness) -> (Subject, String) {
        let state = self.machine.state();
        let (subject, who) = match of {
            Reporter::Server(id) => (
                Subject::Server(id),
                format!("server {}", state.server_name(id)),
            ),
            Reporter::Host(id) => (Subject::Host(id), format!("host {}", state.host_name(id))),
        };
        let what = match liveness {
            Liveness::Online | Liveness::Unknown => "is online again",
            Liveness::Suspect => "is suspect: its reports have stopped",
            Liveness::Offline => "is offline",
        };
        (subject, format!("{who} {what}"))
    }

    fn describe_resilver(&self, r: &ResilverReport, what: &str) -> (Subject, String) {
        let state = self.machine.state();
        let (volume, store) = (state.volume_name(r.volume), state.store_name(r.store));
        (
            Subject::Volume(r.volume),
            format!("resilver of volume {volume} to {store} {what}"),
        )
    }
}

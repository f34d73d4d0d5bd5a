//! Answers questions: commands through the log, listings from the state, watches when it changes.

use super::health::Health;
use super::node::Node;
use super::proposals::Unproposed;
use super::views::Scene;
use super::{COMMAND_BYTES_MAX, LOG_FILL_PERCENT_MAX};
use crate::api::{
    Answer, AttachmentDesire, ClusterView, Filter, Question, Report, Resilvers, SliceDesire,
    Versioned,
};
use crate::core::desire::{
    attachments_of_host, known_hosts, maintenance_of_server, slices_of_server,
};
use crate::core::{ClientId, Command, Envelope, Refusal, RefusalCode, fsck, limits};
use crate::wall_clock::unix_ms;
use openraft::error::RaftError;
use std::rc::Rc;
use std::time::Duration;

/// Longest wait for a majority before a listing is refused.
const QUORUM: Duration = Duration::from_secs(3);

impl Node {
    /// Answers one question that came over a connection.
    pub(super) async fn answer(self: &Rc<Self>, connection: u64, question: Question) -> Answer {
        if question == Question::MemberStatus {
            return Answer::MemberStatus(self.status());
        }
        if !self.is_leader() {
            return self.not_leader();
        }
        match question {
            Question::MemberStatus => unreachable!("answered above"),
            Question::Command {
                client,
                sequence,
                command,
            } => self.carry_out(client, sequence, command).await,
            Question::Report(report) => self.take_report(connection, report),
            Question::Events { after, wait } => {
                self.when(true, |node| node.events(after, wait)).await
            }
            Question::WatchSlices { server, after } => {
                self.when(after == 0, |node| {
                    let state = node.machine.state();
                    let Some(found) = state.servers.get(&server) else {
                        return Some(Answer::Refused(Refusal::not_found("server", server)));
                    };
                    (found.desired_index > after).then(|| {
                        Answer::Slices(SliceDesire {
                            index: found.desired_index,
                            slices: slices_of_server(&state, server),
                            host_nqns: known_hosts(&state),
                            maintenance: maintenance_of_server(&state, server),
                        })
                    })
                })
                .await
            }
            Question::WatchAttachments { host, after } => {
                self.when(after == 0, |node| {
                    let state = node.machine.state();
                    let Some(found) = state.hosts.get(&host) else {
                        return Some(Answer::Refused(Refusal::not_found("host", host)));
                    };
                    (found.desired_index > after).then(|| {
                        Answer::Attachments(AttachmentDesire {
                            index: found.desired_index,
                            volumes: attachments_of_host(&state, host),
                        })
                    })
                })
                .await
            }
            Question::Cluster
            | Question::Fsck
            | Question::Plan(_)
            | Question::Servers(_)
            | Question::Stores(_)
            | Question::Hosts(_)
            | Question::Volumes(_)
            | Question::Snapshots(_)
            | Question::Resilvers(_) => self.list(question).await,
        }
    }

    fn not_leader(&self) -> Answer {
        let us = self.config.id;
        Answer::NotLeader(self.leader().filter(|leader| leader.id != us))
    }

    /// Waits until `look` has an answer, for as long as this member leads.
    async fn when(&self, fresh: bool, look: impl Fn(&Self) -> Option<Answer>) -> Answer {
        let Some(raft) = self.raft() else {
            return self.not_leader();
        };
        if fresh && let Some(refused) = self.linearizable().await {
            return refused;
        }
        let mut role = raft.server_metrics();
        let mut applied = self.machine.applied();
        let mut reported = self.reported.subscribe();
        loop {
            role.mark_unchanged();
            applied.mark_unchanged();
            reported.mark_unchanged();
            if !self.is_leader() {
                return self.not_leader();
            }
            if let Some(answer) = look(self) {
                return answer;
            }
            let gone = tokio::select! {
                changed = role.changed() => changed.is_err(),
                changed = applied.changed() => changed.is_err(),
                changed = reported.changed() => changed.is_err(),
            };
            if gone {
                return Answer::Unavailable("the member is stopping".into());
            }
        }
    }

    /// Makes sure that this member still leads and has applied everything that was committed
    /// before; otherwise the answer to give.
    async fn linearizable(&self) -> Option<Answer> {
        let Some(raft) = self.raft() else {
            return Some(self.not_leader());
        };
        match tokio::time::timeout(QUORUM, raft.ensure_linearizable()).await {
            Ok(Ok(_)) => None,
            Ok(Err(RaftError::APIError(_))) => Some(self.not_leader()),
            Ok(Err(RaftError::Fatal(e))) => Some(Answer::Unavailable(e.to_string())),
            Err(_) => Some(Answer::Unavailable("no majority of members answers".into())),
        }
    }

    /// Changes with whatever a listing may show. Terms keep versions of two leaders apart.
    fn version(&self) -> u64 {
        let term = self.raft().map_or(0, |r| r.metrics().borrow().current_term);
        let applied = self.machine.state().applied_index;
        (term << 40) + applied + *self.reported.borrow() + 1
    }

    pub(super) fn scene<T>(&self, show: impl FnOnce(&Scene<'_>) -> T) -> T {
        let (state, health) = (self.machine.state(), self.health.borrow());
        show(&Scene {
            state: &state,
            health: &health,
            now: self.now(),
        })
    }

    async fn list(&self, question: Question) -> Answer {
        let wait = match &question {
            Question::Servers(f)
            | Question::Stores(f)
            | Question::Hosts(f)
            | Question::Volumes(f)
            | Question::Snapshots(f)
            | Question::Resilvers(f) => f.version,
            Question::Cluster
            | Question::Fsck
            | Question::Plan(_)
            | Question::Command { .. }
            | Question::MemberStatus
            | Question::Events { .. }
            | Question::WatchSlices { .. }
            | Question::WatchAttachments { .. }
            | Question::Report(_) => 0,
        };
        self.when(true, |node| {
            let version = node.version();
            (version != wait).then(|| node.scene(|scene| node.show(scene, version, &question)))
        })
        .await
    }

    fn show(&self, scene: &Scene<'_>, version: u64, question: &Question) -> Answer {
        let name = |filter: &Filter| filter.name.clone();
        match question {
            Question::Servers(f) => Answer::Servers(Versioned {
                version,
                list: scene.servers(&name(f)),
            }),
            Question::Stores(f) => Answer::Stores(Versioned {
                version,
                list: scene.stores(&name(f)),
            }),
            Question::Hosts(f) => Answer::Hosts(Versioned {
                version,
                list: scene.hosts(&name(f)),
            }),
            Question::Volumes(f) => Answer::Volumes(Versioned {
                version,
                list: scene.volumes(&name(f)),
            }),
            Question::Snapshots(f) => Answer::Snapshots(Versioned {
                version,
                list: scene.snapshots(&name(f)),
            }),
            Question::Resilvers(_) => Answer::Resilvers(Resilvers {
                version,
                running: scene.health.running().map(|r| scene.resilver(r)).collect(),
                history: scene.health.history().map(|r| scene.resilver(r)).collect(),
            }),
            Question::Fsck => {
                Answer::Fsck(fsck(scene.state).into_iter().map(|f| f.sentence).collect())
            }
            Question::Plan(new) => {
                let mut new = new.clone();
                new.avoid = scene.avoid();
                scene.plan(&new).map_or_else(Answer::Refused, Answer::Plan)
            }
            Question::Cluster => self.cluster_view(scene),
            Question::Command { .. }
            | Question::MemberStatus
            | Question::Events { .. }
            | Question::WatchSlices { .. }
            | Question::WatchAttachments { .. }
            | Question::Report(_) => unreachable!("not a listing"),
        }
    }

    fn cluster_view(&self, scene: &Scene<'_>) -> Answer {
        let Some(cluster) = &scene.state.cluster else {
            return Answer::Unavailable("the cluster has no identity yet".into());
        };
        Answer::Cluster(ClusterView {
            uuid: cluster.uuid,
            name: cluster.name.clone(),
            lineage: cluster.lineage,
            schema: cluster.schema,
            leader: self.leader().unwrap_or_default(),
            applied_index: scene.state.applied_index,
            members: self.status().members,
            space: scene.state.space_limits(),
        })
    }

    fn events(&self, after: u64, wait: bool) -> Option<Answer> {
        let state = self.machine.state();
        let newer: Vec<_> = state
            .events
            .iter()
            .filter(|e| e.index > after)
            .cloned()
            .collect();
        (!newer.is_empty() || !wait).then_some(Answer::Events(newer))
    }

    async fn carry_out(
        self: &Rc<Self>,
        client: ClientId,
        sequence: u64,
        command: Command,
    ) -> Answer {
        let fill = self.log_fill_percent();
        if fill >= LOG_FILL_PERCENT_MAX {
            return Answer::Refused(Refusal::new(
                RefusalCode::Limit,
                format!("the log's map is {fill} % full"),
                "raise log_map_mib in metad.toml on every member, one after the other",
            ));
        }
        if self.machine.state().cluster.is_none() {
            // The leader is about to see to it: the client tries again instead of giving up.
            return Answer::Unavailable("the cluster has no identity yet".into());
        }
        let Ok(_permit) = self.proposals.try_acquire() else {
            return Answer::Unavailable("too many commands at once".into());
        };
        if let Command::Maintain { volume, .. } = &command
            && let Err(refusal) = self.scene(|scene| scene.may_maintain(*volume))
        {
            return Answer::Refused(refusal);
        }
        let mut command = command;
        if let Command::CreateVolume(new) = &mut command {
            new.avoid = self.scene(|scene| scene.avoid());
        }
        let envelope = Envelope {
            schema: limits::SCHEMA,
            client,
            sequence,
            at_unix_ms: unix_ms(),
            command,
        };
        let bytes = postcard::to_stdvec(&envelope).map_or(usize::MAX, |e| e.len());
        if bytes > COMMAND_BYTES_MAX {
            return Answer::Refused(Refusal::new(
                RefusalCode::Limit,
                format!("a command of {bytes} bytes"),
                format!("commands have at most {COMMAND_BYTES_MAX} bytes"),
            ));
        }
        let Some(raft) = self.raft() else {
            return self.not_leader();
        };
        match self.commit(raft, envelope, bytes).await {
            Ok((index, reply)) => Answer::Command { index, reply },
            Err(Unproposed::NotLeader) => self.not_leader(),
            Err(Unproposed::Unavailable(why)) => Answer::Unavailable(why),
        }
    }

    fn take_report(self: &Rc<Self>, connection: u64, report: Report) -> Answer {
        if let Err(why) = Health::check(&report) {
            return Answer::Refused(Refusal::invalid(why, "report less at a time"));
        }
        let news = report.contents.is_some();
        let now = self.now();
        let (known, transitions) = self.health.borrow_mut().on_report(now, connection, report);
        if news {
            self.bump_reported();
        }
        self.deadline_moved.notify_one();
        self.tell(transitions);
        Answer::Reported { known }
    }
}

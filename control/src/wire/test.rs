//! What goes over the wire comes back the same.

use super::question::{get_answer, get_question, put_answer, put_question};
use crate::api::*;
use crate::core::test::{Cluster0, VOL, any_command};
use crate::core::*;
use capnp::message::Builder;
use proptest::prelude::*;
use shardmap::generations::VolumeGenerations;
use shardmap::units::{Epoch, Generation, MembershipSeq, ServerId, StoreId};
use ubs_capnp::control_capnp as wire;
use uuid::Uuid;

fn question_there_and_back(question: &Question) -> Question {
    let mut message = Builder::new_default();
    put_question(question, message.init_root::<wire::question::Builder<'_>>());
    get_question(message.get_root_as_reader().unwrap()).unwrap()
}

fn answer_there_and_back(answer: &Answer) -> Answer {
    let mut message = Builder::new_default();
    put_answer(answer, message.init_root::<wire::answer::Builder<'_>>());
    get_answer(message.get_root_as_reader().unwrap()).unwrap()
}

proptest! {
    #[test]
    fn commands_survive_the_wire(command in any_command(), client in 1u128.., sequence: u64) {
        let client = ClientId(Uuid::from_u128(client));
        let question = Question::Command { client, sequence, command };
        prop_assert_eq!(question_there_and_back(&question), question);
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error_not_a_panic(
        words in proptest::collection::vec(any::<u64>(), 1..40),
    ) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let segments: &[&[u8]] = &[&bytes];
        let message = capnp::message::Reader::new(
            capnp::message::SegmentArray::new(segments),
            capnp::message::ReaderOptions::new(),
        );
        // Either answer will do: most are errors, a few decode to something.
        if let Ok(root) = message.get_root::<wire::question::Reader<'_>>() {
            drop(get_question(root));
        }
        if let Ok(root) = message.get_root::<wire::answer::Reader<'_>>() {
            drop(get_answer(root));
        }
    }
}

fn reports() -> ReportContents {
    ReportContents {
        stores: vec![StoreReport {
            store: StoreId(3),
            health: StoreHealth::Faulted,
            used_bytes: 5,
            size_bytes: 9,
            note: "x".into(),
        }],
        volumes: vec![VolumeReport {
            volume: VOL,
            health: VolumeHealth::Degraded,
            device: "/dev/ublkb0".into(),
            note: String::new(),
        }],
        resilvers: vec![ResilverReport {
            volume: VOL,
            store: StoreId(1),
            started_unix_ms: 1,
            done_bytes: 2,
            total_bytes: 3,
            bytes_per_s: 4,
            outcome: ResilverOutcome::Failed,
            ended_unix_ms: 5,
        }],
    }
}

#[test]
fn questions_survive_the_wire() {
    let filter = || Filter {
        name: "v".into(),
        version: 3,
    };
    let report = |contents| Report {
        from: Reporter::Host(HostId(2)),
        run: Uuid::from_u128(4),
        turn: 7,
        contents,
    };
    let questions = [
        Question::MemberStatus,
        Question::Cluster,
        Question::Servers(filter()),
        Question::Stores(filter()),
        Question::Hosts(filter()),
        Question::Volumes(filter()),
        Question::Resilvers(Filter::default()),
        Question::Snapshots(filter()),
        Question::Fsck,
        Question::Events {
            after: 9,
            wait: true,
        },
        Question::WatchSlices {
            server: ServerId(1),
            after: 2,
        },
        Question::WatchAttachments {
            host: HostId(1),
            after: 2,
        },
        Question::Report(report(None)),
        Question::Report(report(Some(reports()))),
        Question::Report(Report {
            from: Reporter::Server(ServerId(9)),
            ..report(None)
        }),
    ];
    for question in questions {
        assert_eq!(question_there_and_back(&question), question);
    }
}

#[test]
fn every_reply_survives_the_wire() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let grant = it.attach(1);
    let rolled_back = AttachGrant {
        rollback: maintenance().rollback,
        ..grant.clone()
    };
    let mut replies = vec![
        Reply::Done,
        Reply::Server(ServerId(1)),
        Reply::Store(StoreId(2)),
        Reply::Host(HostId(3)),
        Reply::Volume(VOL),
        Reply::Granted(Box::new(grant)),
        Reply::Granted(Box::new(rolled_back)),
        Reply::IsrSet(MembershipSeq(5)),
        Reply::Fenced { epoch: Epoch(6) },
        Reply::Stale {
            seq: MembershipSeq(7),
            isr: [StoreId(1)].into(),
        },
    ];
    replies
        .extend(RefusalCode::ALL.map(|code| Reply::Refused(Refusal::new(code, "what", "do this"))));
    for reply in replies {
        let answer = Answer::Command { index: 8, reply };
        assert_eq!(answer_there_and_back(&answer), answer);
    }
}

fn maintenance() -> DesiredMaintenance {
    DesiredMaintenance {
        volume: VOL,
        name: "v".into(),
        due_index: 9,
        generations: VolumeGenerations::default(),
        rollback: Some(Rollback {
            to: Generation(1),
            before: Generation(3),
        }),
    }
}

/// Slices that say what to drop and slices that do not, a snapshot that is pending, and none.
#[test]
fn snapshots_survive_the_wire() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let grant = it.attach(1);
    it.second_volume();
    for name in ["a", "b"] {
        let name = name.into();
        let volumes = [VOL].into();
        it.run(Command::CreateSnapshot { volumes, name });
        let (volume, epoch, generation) = (VOL, grant.epoch, Generation(1));
        it.run(Command::CompleteSnapshot {
            volume,
            epoch,
            generation,
            held: false,
        });
    }
    let mut slices = desire::slices_of_server(&it.state, ServerId(1));
    slices[1].generations = None;
    let answers = [
        Answer::Snapshots(Versioned {
            version: 3,
            list: vec![SnapshotView {
                volume: VOL,
                volume_name: "v".into(),
                name: "a".into(),
                generation: Generation(4),
                created_unix_ms: 5,
                pending: true,
            }],
        }),
        Answer::Slices(SliceDesire {
            index: 4,
            slices,
            host_nqns: Vec::new(),
            maintenance: vec![DesiredMaintenance {
                generations: it.state.volumes[&VOL].generations(),
                ..maintenance()
            }],
        }),
        Answer::Attachments(AttachmentDesire {
            index: 4,
            volumes: desire::attachments_of_host(&it.state, HostId(1)),
        }),
        Answer::Command {
            index: 1,
            reply: Reply::Granted(Box::new(it.attach(1))),
        },
    ];
    for answer in answers {
        assert_eq!(answer_there_and_back(&answer), answer);
    }
}

#[test]
fn answers_survive_the_wire() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.attach(1);
    let member = MemberAddress {
        id: 1,
        address: "127.0.0.1:1".into(),
    };
    let facts = MemberFacts {
        id: 1,
        stage: Stage::Running,
        cluster: Uuid::from_u128(8),
    };
    let answers = [
        Answer::NotLeader(None),
        Answer::NotLeader(Some(member.clone())),
        Answer::Unavailable("no".into()),
        Answer::Refused(Refusal::not_found("volume", "x")),
        Answer::MemberStatus(MemberStatus {
            facts,
            role: "leader".into(),
            term: 1,
            leader: 2,
            applied_index: 3,
            committed_index: 4,
            members: vec![member.clone()],
            voters: vec![1, 2],
            version: "0".into(),
            note: "n".into(),
            log_fill_percent: 7,
        }),
        Answer::Cluster(ClusterView {
            uuid: Uuid::from_u128(2),
            name: "lab".into(),
            lineage: 1,
            schema: 2,
            leader: member.clone(),
            applied_index: 3,
            members: vec![member],
            space: SpaceLimits::default(),
        }),
        Answer::Hosts(Versioned {
            version: 3,
            list: vec![HostView {
                id: HostId(5),
                uuid: Uuid::from_u128(6),
                name: "web1".into(),
                host_nqn: "nqn.x".into(),
                liveness: Liveness::Unknown,
                volumes: 2,
                standard: true,
            }],
        }),
        Answer::Fsck(vec!["a".into(), "b".into()]),
        Answer::Events(it.state.events.iter().cloned().collect()),
        Answer::Slices(SliceDesire {
            index: 4,
            slices: desire::slices_of_server(&it.state, ServerId(1)),
            host_nqns: desire::known_hosts(&it.state),
            maintenance: vec![maintenance()],
        }),
        Answer::Attachments(AttachmentDesire {
            index: 4,
            volumes: desire::attachments_of_host(&it.state, HostId(1)),
        }),
        Answer::Reported { known: true },
    ];
    for answer in answers {
        assert_eq!(answer_there_and_back(&answer), answer);
    }
}

//! The state machine's promises.

mod commands;

use super::desire::{attachments_of_host, slices_of_server};
use super::*;
use SnapshotState::{Complete, Pending};
pub(crate) use commands::any_command;
use proptest::prelude::*;
use shardmap::generations::SnapshotState;
use shardmap::map::Layout;
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;
use uuid::Uuid;

/// A state with one client that numbers its commands.
#[derive(Clone, Default)]
pub(crate) struct Cluster0 {
    pub(crate) state: State,
    sequence: u64,
}

pub(crate) const CLUSTER: Uuid = Uuid::from_u128(0xc1);
pub(crate) const VOL: VolumeId = VolumeId([7; 16]);

impl Cluster0 {
    /// `n` servers with one 64 GiB store each, and two hosts.
    pub(crate) fn with_servers(n: u32) -> Self {
        let mut it = Self::default();
        it.run(Command::InitCluster {
            uuid: CLUSTER,
            name: "lab".into(),
        });
        for i in 1..=n {
            it.run(server(i));
            it.run(store(i, i));
        }
        it.run(host(1));
        it.run(host(2));
        it
    }

    pub(crate) fn run(&mut self, command: Command) -> Reply {
        self.sequence += 1;
        self.run_as(1, self.sequence, command)
    }

    fn run_as(&mut self, client: u128, sequence: u64, command: Command) -> Reply {
        let envelope = Envelope {
            schema: limits::SCHEMA,
            client: ClientId(Uuid::from_u128(client)),
            sequence,
            at_unix_ms: 1,
            command,
        };
        let index = self.state.applied_index + 1;
        let (reply, _) = apply(&mut self.state, index, envelope);
        assert_eq!(fsck(&self.state), []);
        reply
    }

    pub(crate) fn refused(&mut self, command: Command) -> RefusalCode {
        let before = self.state.clone();
        let reply = self.run(command);
        let Reply::Refused(refusal) = reply else {
            panic!("not refused: {reply:?}")
        };

        let mut after = self.state.clone();
        after.applied_index = before.applied_index;
        after.clients = before.clients.clone();
        assert_eq!(after, before, "a refusal changes nothing");
        assert!(!refusal.sentence.is_empty() && !refusal.remedy.is_empty());
        refusal.code
    }

    /// A ready volume beside [`VOL`].
    pub(crate) fn second_volume(&mut self) -> VolumeId {
        let mut second = volume("w");
        second.id = VolumeId([8; 16]);
        self.run(Command::CreateVolume(second));
        self.confirm_all();
        VolumeId([8; 16])
    }

    pub(crate) fn confirm_all(&mut self) {
        let slices: Vec<_> = self.state.slices.keys().copied().collect();
        for nsid in slices {
            self.confirm(nsid);
        }
    }

    /// A storaged has made a slice.
    pub(crate) fn confirm(&mut self, nsid: Nsid) {
        let slice = &self.state.slices[&nsid];
        let size_blocks = self.state.volumes[&slice.volume].map.size_blocks;
        let store = slice.store;
        self.run(Command::ConfirmSlice {
            store,
            nsid,
            size_blocks,
        });
    }

    /// A ready volume on three stores.
    pub(crate) fn ready_volume(&mut self) {
        assert_eq!(
            self.run(Command::CreateVolume(volume("v"))),
            Reply::Volume(VOL)
        );
        self.confirm_all();
    }

    pub(crate) fn attach(&mut self, host: u32) -> AttachGrant {
        self.run(Command::SetDesiredAttachment {
            volume: VOL,
            host: HostId(host),
        });
        let reply = self.run(Command::Attach {
            volume: VOL,
            host: HostId(host),
        });
        let Reply::Granted(grant) = reply else {
            panic!("not granted: {reply:?}")
        };
        *grant
    }
}

pub(crate) fn server(i: u32) -> Command {
    Command::RegisterServer(NewServer {
        cluster: None,
        uuid: Uuid::from_u128(u128::from(i)),
        name: format!("s{i}"),
        address: ([127, 0, 0, 1], 4420 + u16::try_from(i).unwrap()).into(),
        subsystem_nqn: format!("nqn.2026-01.io.ublkstor:storaged:{i}"),
        labels: [("rack".to_owned(), format!("r{}", i % 2))].into(),
    })
}

pub(crate) fn store(i: u32, server: u32) -> Command {
    Command::RegisterStore(NewStore {
        cluster: CLUSTER,
        server: ServerId(server),
        uuid: Uuid::from_u128(1000 + u128::from(i)),
        size_bytes: 64 << 30,
    })
}

fn host(i: u32) -> Command {
    Command::RegisterHost(NewHost {
        uuid: Uuid::from_u128(2000 + u128::from(i)),
        name: format!("h{i}"),
        host_nqn: format!("nqn.2026-01.io.ublkstor:clientd:{i}"),
    })
}

fn standard_host(i: u32) -> Command {
    Command::AddHost(NewHost {
        uuid: Uuid::from_u128(3000 + u128::from(i)),
        name: format!("standard{i}"),
        host_nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{i}"),
    })
}

fn volume(name: &str) -> NewVolume {
    NewVolume {
        id: VOL,
        name: name.into(),
        size_bytes: 1 << 30,
        replicas: 3,
        shard_bytes: 64 << 20,
        layout: Layout::Ring,
        stride: None,
        min_in_sync: 1,
        domain: Domain::Server,
        open_access: false,
        avoid: BTreeSet::new(),
    }
}

fn delete_volume(volume: VolumeId) -> Command {
    Command::DeleteVolume {
        volume,
        with_snapshots: false,
    }
}

pub(crate) fn stores(ids: &[u32]) -> BTreeSet<StoreId> {
    ids.iter().map(|i| StoreId(*i)).collect()
}

#[test]
fn nothing_happens_before_the_cluster_has_an_identity() {
    let mut it = Cluster0::default();
    assert_eq!(it.refused(server(1)), RefusalCode::NotInitialised);
    assert_eq!(
        it.run(Command::InitCluster {
            uuid: CLUSTER,
            name: "lab".into()
        }),
        Reply::Done
    );
    assert_eq!(
        it.run(Command::InitCluster {
            uuid: CLUSTER,
            name: "lab".into()
        }),
        Reply::Done
    );
    let other = Command::InitCluster {
        uuid: Uuid::from_u128(5),
        name: "x".into(),
    };
    assert_eq!(it.refused(other), RefusalCode::WrongCluster);
}

#[test]
fn a_store_of_another_cluster_is_refused() {
    let mut it = Cluster0::with_servers(1);
    let foreign = NewStore {
        cluster: Uuid::from_u128(99),
        server: ServerId(1),
        uuid: Uuid::from_u128(1),
        size_bytes: 1 << 30,
    };
    assert_eq!(
        it.refused(Command::RegisterStore(foreign)),
        RefusalCode::WrongCluster
    );
}

#[test]
fn a_volume_is_ready_only_when_every_slice_is_confirmed() {
    let mut it = Cluster0::with_servers(3);
    it.run(Command::CreateVolume(volume("v")));
    let slices: Vec<_> = it.state.slices.iter().map(|(n, s)| (*n, s.store)).collect();
    assert_eq!(slices.len(), 3);
    it.run(Command::SetDesiredAttachment {
        volume: VOL,
        host: HostId(1),
    });
    for (nsid, _) in &slices {
        assert_eq!(it.state.volumes[&VOL].phase, Phase::Creating);
        let attach = Command::Attach {
            volume: VOL,
            host: HostId(1),
        };
        assert_eq!(it.refused(attach), RefusalCode::NotReady);
        it.confirm(*nsid);
    }
    assert_eq!(it.state.volumes[&VOL].phase, Phase::Ready);
    assert!(attachments_of_host(&it.state, HostId(1))[0].ready);
}

#[test]
fn bad_volumes_are_refused_by_kind() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let other = |f: &dyn Fn(&mut NewVolume)| {
        let mut v = volume("w");
        v.id = VolumeId([8; 16]);
        f(&mut v);
        Command::CreateVolume(v)
    };
    assert_eq!(
        it.refused(other(&|v| v.name = "v".into())),
        RefusalCode::NameTaken
    );
    assert_eq!(
        it.refused(other(&|v| v.name = "a/b".into())),
        RefusalCode::Invalid
    );
    assert_eq!(
        it.refused(other(&|v| v.size_bytes += 512)),
        RefusalCode::Invalid
    );
    assert_eq!(
        it.refused(other(&|v| v.size_bytes = 0)),
        RefusalCode::Invalid
    );
    assert_eq!(it.refused(other(&|v| v.replicas = 0)), RefusalCode::Invalid);
    assert_eq!(
        it.refused(other(&|v| v.replicas = 4)),
        RefusalCode::TooFewServers
    );
    assert_eq!(
        it.refused(other(&|v| v.min_in_sync = 4)),
        RefusalCode::Invalid
    );
    assert_eq!(
        it.refused(other(&|v| v.shard_bytes = 5 << 20)),
        RefusalCode::Invalid
    );
    assert_eq!(
        it.refused(other(&|v| v.size_bytes = 1 << 40)),
        RefusalCode::NoRoom
    );
    assert_eq!(
        it.refused(other(&|v| v.avoid = stores(&[2]))),
        RefusalCode::TooFewServers
    );
    assert_eq!(
        it.refused(other(&|v| v.open_access = true)),
        RefusalCode::Invalid
    );
    let racks = Domain::Label("rack".into());
    assert_eq!(
        it.refused(other(&|v| v.domain = racks.clone())),
        RefusalCode::TooFewServers
    );
    assert!(matches!(it.run(other(&|_| ())), Reply::Volume(_)));
}

#[test]
fn a_standard_host_is_admitted_and_attaches_nothing() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let woken = it.state.servers[&ServerId(1)].desired_index;
    assert_eq!(it.run(standard_host(1)), Reply::Host(HostId(3)));
    assert!(it.state.servers[&ServerId(1)].desired_index > woken);
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:1".to_owned();
    assert!(desire::known_hosts(&it.state).contains(&nqn));
    assert_eq!(
        it.run(standard_host(1)),
        Reply::Host(HostId(3)),
        "again is harmless"
    );
    let with = |name: &str, host_nqn: &str| {
        Command::AddHost(NewHost {
            uuid: Uuid::from_u128(1),
            name: name.into(),
            host_nqn: host_nqn.into(),
        })
    };
    assert_eq!(it.refused(with("other", &nqn)), RefusalCode::NameTaken);
    assert_eq!(
        it.refused(with("standard1", "nqn.x")),
        RefusalCode::NameTaken
    );
    assert_eq!(it.refused(with("x", "web1")), RefusalCode::Invalid);
    let clientd = "nqn.2026-01.io.ublkstor:clientd:77";
    assert_eq!(it.refused(with("x", clientd)), RefusalCode::Invalid);
    let attach = Command::SetDesiredAttachment {
        volume: VOL,
        host: HostId(3),
    };
    assert_eq!(it.refused(attach), RefusalCode::Invalid);
    assert_eq!(it.run(Command::RemoveHost { host: HostId(3) }), Reply::Done);
    assert!(!desire::known_hosts(&it.state).contains(&nqn));
}

#[test]
fn a_host_with_a_volume_is_not_forgotten() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let grant = it.attach(1);
    let forget = Command::RemoveHost { host: HostId(1) };
    assert_eq!(it.refused(forget.clone()), RefusalCode::StillAttached);
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    assert_eq!(it.refused(forget.clone()), RefusalCode::StillAttached);
    it.run(Command::Detach {
        volume: VOL,
        epoch: grant.epoch,
    });
    assert_eq!(it.run(forget.clone()), Reply::Done);
    assert_eq!(it.refused(forget), RefusalCode::NotFound);
    assert!(matches!(it.run(host(1)), Reply::Host(HostId(3))));
}

/// A volume could otherwise not be deleted after the loss of one of its stores.
#[test]
fn a_lost_store_is_forgotten_once_nothing_wanted_is_on_it() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let forget = Command::RemoveStore { store: StoreId(3) };
    assert_eq!(it.refused(forget.clone()), RefusalCode::StillUsed);
    let server = Command::RemoveServer {
        server: ServerId(3),
    };
    assert_eq!(it.refused(server.clone()), RefusalCode::StillUsed);
    it.run(delete_volume(VOL));
    let there: Vec<_> = it.state.slices.iter().map(|(n, s)| (*n, s.store)).collect();
    for (nsid, store) in there.into_iter().filter(|(_, s)| *s != StoreId(3)) {
        it.run(Command::ConfirmSliceGone { store, nsid });
    }
    assert_eq!(it.state.volumes[&VOL].phase, Phase::Deleting);
    assert_eq!(it.run(forget), Reply::Done);
    assert!(it.state.volumes.is_empty() && it.state.sets.is_empty());
    assert_eq!(it.run(server), Reply::Done);
    let mut two = volume("w");
    two.replicas = 2;
    assert!(matches!(
        it.run(Command::CreateVolume(two)),
        Reply::Volume(_)
    ));
}

#[test]
fn a_cordoned_server_takes_nothing_new() {
    let mut it = Cluster0::with_servers(3);
    let cordon = Command::SetServerStanding {
        server: ServerId(2),
        standing: Standing::Cordoned,
    };
    it.run(cordon);
    assert_eq!(
        it.refused(Command::CreateVolume(volume("v"))),
        RefusalCode::TooFewServers
    );
    it.run(Command::SetServerStanding {
        server: ServerId(2),
        standing: Standing::Active,
    });
    assert_eq!(
        it.run(Command::CreateVolume(volume("v"))),
        Reply::Volume(VOL)
    );
}

#[test]
fn volumes_share_the_catalogue() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let mut second = volume("w");
    second.id = VolumeId([8; 16]);
    it.run(Command::CreateVolume(second));
    assert_eq!(it.state.sets.len(), 1);
    assert_eq!(
        it.state.volumes[&VolumeId([8; 16])].set,
        it.state.volumes[&VOL].set
    );
}

#[test]
fn a_second_attach_is_refused_until_the_holder_lets_go() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let first = it.attach(1);
    assert_eq!(first.slices.len(), 3);
    assert_eq!(first.isr, stores(&[1, 2, 3]));
    let steal = Command::SetDesiredAttachment {
        volume: VOL,
        host: HostId(2),
    };
    assert_eq!(it.refused(steal.clone()), RefusalCode::AttachedElsewhere);
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    assert_eq!(it.refused(steal), RefusalCode::AttachedElsewhere);
    let wants = attachments_of_host(&it.state, HostId(1));
    assert!(
        !wants[0].wanted && wants[0].epoch == Some(first.epoch),
        "it is told to detach"
    );
    assert_eq!(it.refused(delete_volume(VOL)), RefusalCode::StillAttached);
    it.run(Command::Detach {
        volume: VOL,
        epoch: first.epoch,
    });
    assert!(it.attach(2).epoch > first.epoch);
}

#[test]
fn a_host_is_told_that_an_attachment_has_ended_although_it_is_to_have_the_volume() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let first = it.attach(1).epoch;
    let told = |it: &Cluster0| attachments_of_host(&it.state, HostId(1))[0].clone();
    assert!(!told(&it).has_ended(first));
    it.run(Command::ForceDetach { volume: VOL });
    it.run(Command::SetDesiredAttachment {
        volume: VOL,
        host: HostId(1),
    });
    let then = told(&it);
    assert!(then.wanted && then.has_ended(first));
    let second = it.attach(1).epoch;
    assert!(told(&it).has_ended(first) && !told(&it).has_ended(second));
    assert!(!then.has_ended(second), "an older word says nothing of it");
}

#[test]
fn attaching_unasked_is_refused() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let attach = Command::Attach {
        volume: VOL,
        host: HostId(1),
    };
    assert_eq!(it.refused(attach), RefusalCode::NotDesired);
}

#[test]
fn the_same_host_attaching_again_gets_a_newer_epoch() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let first = it.attach(1);
    let second = it.attach(1);
    assert!(second.epoch > first.epoch);
    let old = Command::Detach {
        volume: VOL,
        epoch: first.epoch,
    };
    assert_eq!(
        it.run(old),
        Reply::Fenced {
            epoch: second.epoch
        }
    );
    assert!(it.state.volumes[&VOL].attachment.is_some());
}

#[test]
fn membership_changes_only_for_the_holder_who_knows_the_current_one() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let grant = it.attach(1);
    let set = |epoch: Epoch, seq: u64, isr: &[u32]| Command::SetIsr {
        volume: VOL,
        epoch,
        seq: MembershipSeq(seq),
        new_isr: stores(isr),
    };
    let seq = grant.seq.0;
    assert_eq!(
        it.run(set(grant.epoch, seq, &[1, 2])),
        Reply::IsrSet(MembershipSeq(seq + 1))
    );
    // The same question again, from another client run that lost the answer.
    let again = it.run_as(9, 1, set(grant.epoch, seq, &[1, 2]));
    assert_eq!(again, Reply::IsrSet(MembershipSeq(seq + 1)));
    assert_eq!(
        it.run(set(grant.epoch, seq, &[1, 3])),
        Reply::Stale {
            seq: MembershipSeq(seq + 1),
            isr: stores(&[1, 2])
        }
    );
    assert_eq!(
        it.refused(set(grant.epoch, seq + 1, &[])),
        RefusalCode::LastReplica
    );
    let swap = set(grant.epoch, seq + 1, &[3]);
    assert_eq!(
        it.refused(swap),
        RefusalCode::LastReplica,
        "3 is stale, so 3 alone has nothing"
    );
    assert_eq!(
        it.refused(set(grant.epoch, seq + 1, &[1, 99])),
        RefusalCode::Invalid
    );
    let back = it.run(set(grant.epoch, seq + 1, &[1, 2, 3]));
    assert_eq!(back, Reply::IsrSet(MembershipSeq(seq + 2)));
    it.run(Command::ForceDetach { volume: VOL });
    let late = it.run(set(grant.epoch, seq + 2, &[1]));
    assert_eq!(
        late,
        Reply::Fenced {
            epoch: grant.epoch.next()
        }
    );
}

#[test]
fn every_shard_keeps_a_replica_in_a_wide_set() {
    let mut it = Cluster0::with_servers(6);
    let mut wide = volume("v");
    wide.replicas = 2;
    wide.stride = Some(6);
    it.run(Command::CreateVolume(wide));
    it.confirm_all();
    let grant = it.attach(1);
    let set = |isr: &[u32]| Command::SetIsr {
        volume: VOL,
        epoch: grant.epoch,
        seq: grant.seq,
        new_isr: stores(isr),
    };
    assert_eq!(
        it.refused(set(&[1, 2, 5, 6])),
        RefusalCode::LastReplica,
        "shard on 3 and 4"
    );
    assert!(matches!(it.run(set(&[1, 3, 5])), Reply::IsrSet(_)));
}

#[test]
fn a_deleted_volume_goes_with_its_last_slice_and_frees_its_name_at_once() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.run(delete_volume(VOL));
    assert!(
        slices_of_server(&it.state, ServerId(2))
            .iter()
            .all(|s| s.remove)
    );
    let mut heir = volume("v");
    heir.id = VolumeId([8; 16]);
    assert!(matches!(
        it.run(Command::CreateVolume(heir)),
        Reply::Volume(_)
    ));
    let old: Vec<_> = it
        .state
        .slices
        .iter()
        .filter(|(_, s)| s.volume == VOL)
        .map(|(n, s)| (*n, s.store))
        .collect();
    for (nsid, store) in &old {
        assert!(it.state.volumes.contains_key(&VOL));
        it.run(Command::ConfirmSliceGone {
            store: *store,
            nsid: *nsid,
        });
    }
    assert!(!it.state.volumes.contains_key(&VOL));
    let (nsid, store) = old[0];
    assert_eq!(
        it.run(Command::ConfirmSliceGone { store, nsid }),
        Reply::Done
    );
    let living = it
        .state
        .slices
        .iter()
        .next()
        .map(|(n, s)| (*n, s.store))
        .unwrap();
    let wrong = Command::ConfirmSliceGone {
        store: living.1,
        nsid: living.0,
    };
    assert_eq!(it.refused(wrong), RefusalCode::Invalid);
}

#[test]
fn a_moved_server_wakes_the_holders_of_its_volumes() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.attach(1);
    let before = it.state.hosts[&HostId(1)].desired_index;
    let Command::RegisterServer(mut moved) = server(2) else {
        unreachable!()
    };
    moved.address = ([127, 0, 0, 1], 9999).into();
    it.run(Command::RegisterServer(moved.clone()));
    let woken = it.state.hosts[&HostId(1)].desired_index;
    assert!(woken > before);
    it.run(Command::RegisterServer(moved));
    assert_eq!(
        it.state.hosts[&HostId(1)].desired_index,
        woken,
        "nothing new, nobody woken"
    );
}

#[test]
fn a_repeated_command_is_answered_as_the_first_time() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.run(Command::SetDesiredAttachment {
        volume: VOL,
        host: HostId(1),
    });
    let attach = Command::Attach {
        volume: VOL,
        host: HostId(1),
    };
    let first = it.run_as(5, 1, attach.clone());
    let events = it.state.events.len();
    assert_eq!(it.run_as(5, 1, attach.clone()), first);
    assert_eq!(it.state.events.len(), events);
    assert_ne!(it.run_as(5, 2, attach), first);
}

#[test]
fn a_sequence_number_older_than_the_memory_is_refused_not_repeated() {
    let mut it = Cluster0::with_servers(3);
    let note = || Command::Note {
        subject: Subject::Cluster,
        text: "x".into(),
    };
    for sequence in 10..10 + limits::REPLIES_PER_CLIENT_MAX as u64 {
        it.run_as(5, sequence, note());
    }
    let Reply::Refused(refusal) = it.run_as(5, 9, note()) else {
        panic!("carried out")
    };
    assert_eq!(refusal.code, RefusalCode::TooOld);
}

#[test]
fn the_event_log_is_bounded_and_counts_without_holes() {
    let mut it = Cluster0::with_servers(1);
    for i in 0..limits::EVENTS_MAX + 10 {
        let text = i.to_string();
        it.run(Command::Note {
            subject: Subject::Cluster,
            text,
        });
    }
    assert_eq!(it.state.events.len(), limits::EVENTS_MAX);
}

/// A generation that is what it must not become: new ones only begin at the head, what is complete
/// stays so until it is deleted, and what is deleted stays so.
fn generations_moved_back(before: &Volume, after: &Volume) -> Option<Generation> {
    if after.head < before.head {
        return Some(after.head);
    }
    let moved_back = |(generation, now): &(&Generation, &Snapshot)| {
        let then = before.snapshots.get(generation);
        let was_head = **generation == before.head;
        then.map_or(!was_head, |then| {
            now.name != then.name || (then.state, now.state) == (Complete, Pending)
        })
    };
    let moved_back = after.snapshots.iter().find(moved_back);
    moved_back.map(|(generation, _)| *generation)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn any_history_keeps_the_state_sound(
        history in proptest::collection::vec((any_command(), any::<bool>(), any::<bool>()), 1..150),
    ) {
        let mut it = Cluster0::with_servers(3);
        for (command, confirm, repeat) in history {
            let before = it.state.clone();
            let reply = it.run(command.clone());
            for (id, volume) in &before.volumes {
                let Some(after) = it.state.volumes.get(id) else { continue };
                prop_assert!(after.epoch >= volume.epoch && after.seq >= volume.seq);
                let changed_hands = after.attachment.map(|a| a.host) != volume.attachment.map(|a| a.host);
                let maintained = after.maintenance.is_some();
                prop_assert!(!maintained || after.attachment.is_none() && after.desired.is_none());
                let freed = after.attachment.is_none() || volume.attachment.is_none();
                prop_assert!(!changed_hands || freed, "taken from a holder in one step");
                prop_assert_eq!(generations_moved_back(volume, after), None);
                prop_assert!(after.isr == volume.isr || after.seq > volume.seq);
            }
            if repeat {
                let sequence = it.sequence;
                let state = it.state.clone();
                prop_assert_eq!(it.run_as(1, sequence, command), reply);
                prop_assert_eq!(&it.state.volumes, &state.volumes);
                prop_assert_eq!(&it.state.events, &state.events);
            }
            // Often confirm everything, so that histories get past `Creating`.
            if confirm {
                it.confirm_all();
            }
        }
    }

    #[test]
    fn the_same_log_gives_the_same_state(
        history in proptest::collection::vec(any_command(), 1..60),
    ) {
        let run = || {
            let mut it = Cluster0::with_servers(3);
            let replies: Vec<Reply> = history.iter().map(|c| it.run(c.clone())).collect();
            (postcard::to_stdvec(&it.state).unwrap(), replies)
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn a_host_that_attaches_again_has_held_the_volume_all_along() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let first = it.attach(1);
    let again = it.attach(1);
    assert!(again.epoch > first.epoch);
    assert_eq!(again.held_since, first.epoch);
    it.run(Command::ForceDetach { volume: VOL });
    let other = it.attach(2);
    assert_eq!(other.held_since, other.epoch);
    it.run(Command::ForceDetach { volume: VOL });
    let back = it.attach(1);
    assert_eq!(
        back.held_since, back.epoch,
        "somebody else had it in between"
    );
}

fn put_snapshots(state: &mut State, head: u32, snapshots: &[(u32, SnapshotState, &str)]) {
    let volume = state.volumes.get_mut(&VOL).unwrap();
    volume.head = Generation(head);
    for (generation, state, name) in snapshots {
        let snapshot = Snapshot {
            name: (*name).to_owned(),
            created_unix_ms: 1,
            state: *state,
            part: None,
            abandoned: false,
        };
        volume.snapshots.insert(Generation(*generation), snapshot);
    }
}

#[test]
fn fsck_finds_what_it_should() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.attach(1);
    type Break = fn(&mut State);
    let breaks: [Break; 13] = [
        |s| s.volumes.get_mut(&VOL).unwrap().epoch = Epoch(0),
        |s| s.volumes.get_mut(&VOL).unwrap().isr = stores(&[]),
        |s| s.volumes.get_mut(&VOL).unwrap().isr = stores(&[1, 9]),
        |s| s.volumes.get_mut(&VOL).unwrap().phase = Phase::Creating,
        |s| s.slices.retain(|nsid, _| nsid.0 != 1),
        |s| s.minted.nsid = 1,
        |s| s.hosts.retain(|id, _| id.0 != 1),
        |s| s.servers.get_mut(&ServerId(1)).unwrap().name = "s2".into(),
        |s| {
            let volume = s.volumes.get_mut(&VOL).unwrap();
            (volume.attachment, volume.desired, volume.isr) = (None, None, stores(&[1]));
        },
        |s| s.volumes.get_mut(&VOL).unwrap().head = Generation(0),
        |s| put_snapshots(s, 3, &[(1, Complete, "a"), (2, Complete, "a")]),
        |s| put_snapshots(s, 3, &[(1, Pending, "a")]),
        |s| {
            let of = |server| Maintenance {
                server,
                epoch: None,
                due_index: 1,
                blank: false,
            };
            s.volumes.get_mut(&VOL).unwrap().maintenance = Some(of(ServerId(1)));
        },
    ];
    for (i, harm) in breaks.into_iter().enumerate() {
        let mut state = it.state.clone();
        harm(&mut state);
        assert_ne!(fsck(&state), [], "damage {i} was not seen");
    }
}

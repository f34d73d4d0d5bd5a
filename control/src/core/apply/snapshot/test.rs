//! The life of a snapshot.

use crate::core::desire::{attachments_of_host, maintenance_of_server, slices_of_server};
use crate::core::test::{Cluster0, VOL, stores};
use crate::core::{Command, HostId, RefusalCode, Reply, limits};
use shardmap::generations::{SNAPSHOTS_MAX, SnapshotState, VolumeGenerations};
use shardmap::units::{Epoch, Generation, MembershipSeq, ServerId, VolumeId};
use std::collections::BTreeSet;

fn create(name: &str) -> Command {
    create_of(&[VOL], name)
}

fn create_of(volumes: &[VolumeId], name: &str) -> Command {
    Command::CreateSnapshot {
        volumes: volumes.iter().copied().collect(),
        name: name.into(),
    }
}

fn complete(epoch: Epoch, generation: u32) -> Command {
    Command::CompleteSnapshot {
        volume: VOL,
        epoch,
        generation: Generation(generation),
        held: false,
    }
}

fn delete(generation: u32) -> Command {
    Command::DeleteSnapshot {
        volume: VOL,
        generation: Generation(generation),
    }
}

fn generations(head: u32, snapshots: &[(u32, SnapshotState)]) -> VolumeGenerations {
    let snapshots = snapshots.iter();
    VolumeGenerations {
        head: Generation(head),
        snapshots: snapshots.map(|(g, s)| (Generation(*g), *s)).collect(),
        hold: false,
    }
}

fn now(it: &Cluster0) -> VolumeGenerations {
    it.state.volumes[&VOL].generations()
}

fn ready() -> Cluster0 {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it
}

use SnapshotState::{Complete, Pending};

#[test]
fn its_holder_completes_a_snapshot_and_everybody_concerned_hears_of_it() {
    let mut it = ready();
    let grant = it.attach(1);
    assert_eq!(grant.generations, VolumeGenerations::default());
    let steps = [
        (create("a"), generations(2, &[(1, Pending)])),
        (complete(grant.epoch, 1), generations(2, &[(1, Complete)])),
        (complete(grant.epoch, 1), generations(2, &[(1, Complete)])),
        (create("b"), generations(3, &[(1, Complete), (2, Pending)])),
        (
            complete(grant.epoch, 2),
            generations(3, &[(1, Complete), (2, Complete)]),
        ),
        (delete(1), generations(3, &[(2, Complete)])),
        // The answer to the first question was lost for long.
        (complete(grant.epoch, 1), generations(3, &[(2, Complete)])),
    ];
    for (command, then) in steps {
        let before = now(&it);
        assert_eq!(it.run(command), Reply::Done);
        assert_eq!(now(&it), then);
        let desired = &attachments_of_host(&it.state, HostId(1))[0].generations;
        assert_eq!(desired, &then);
        let slices = slices_of_server(&it.state, ServerId(2));
        assert_eq!(slices[0].generations, Some(then.clone()));
        if then != before {
            let index = it.state.applied_index;
            assert_eq!(it.state.hosts[&HostId(1)].desired_index, index);
            assert_eq!(it.state.servers[&ServerId(2)].desired_index, index);
        }
    }
    assert_eq!(it.attach(1).generations, generations(3, &[(2, Complete)]));
    let kinds: Vec<_> = it.state.events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds.iter().filter(|k| **k == "SnapshotBegun").count(), 2);
    let texts = it.state.events.iter().map(|e| e.text.as_str());
    assert!(texts.clone().any(|t| t == "snapshot v@a is deleted"));
}

#[test]
fn only_who_has_the_volume_completes_what_is_pending() {
    let mut it = ready();
    let old = it.attach(1).epoch;
    it.run(create("a"));
    let epoch = it.attach(1).epoch;
    assert_eq!(it.run(complete(old, 1)), Reply::Fenced { epoch });
    assert_eq!(it.refused(complete(epoch, 2)), RefusalCode::Invalid);
    assert_eq!(now(&it), generations(2, &[(1, Pending)]));
    it.run(Command::ForceDetach { volume: VOL });
    let late = it.run(complete(epoch, 1));
    assert!(matches!(late, Reply::Fenced { .. }));
}

#[test]
fn refusals_name_what_is_in_the_way() {
    let mut it = Cluster0::with_servers(3);
    assert_eq!(it.refused(create("a")), RefusalCode::NotFound);
    it.ready_volume();
    let epoch = it.attach(1).epoch;
    assert_eq!(it.refused(create("a@b")), RefusalCode::Invalid);
    assert_eq!(it.refused(create_of(&[], "a")), RefusalCode::Invalid);
    let many: Vec<_> = (0..=limits::SNAPSHOT_GROUP_MAX).map(volume_of).collect();
    assert_eq!(it.refused(create_of(&many, "a")), RefusalCode::Invalid);
    let both = create_of(&[VOL, VolumeId([9; 16])], "a");
    assert_eq!(it.refused(both), RefusalCode::NotFound, "all or none");
    it.run(create("a"));
    assert_eq!(it.refused(create("a")), RefusalCode::NameTaken);
    assert_eq!(it.refused(create("b")), RefusalCode::NotReady);
    assert_eq!(it.refused(delete(1)), RefusalCode::NotReady);
    assert_eq!(it.refused(delete(2)), RefusalCode::NotFound, "the head");
    it.run(complete(epoch, 1));
    for n in 2..=SNAPSHOTS_MAX {
        it.run(create(&format!("s{n}")));
        it.run(complete(epoch, u32::try_from(n).unwrap()));
    }
    assert_eq!(it.refused(create("more")), RefusalCode::Limit);
    it.run(delete(7));
    assert_eq!(it.run(create("more")), Reply::Done);
    assert_eq!(it.refused(delete(7)), RefusalCode::NotFound);
}

fn volume_of(i: usize) -> VolumeId {
    VolumeId(u128::try_from(i).unwrap().to_le_bytes())
}

#[test]
fn a_volume_with_snapshots_is_deleted_only_with_them() {
    let mut it = ready();
    let epoch = it.attach(1).epoch;
    it.run(create("a"));
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    it.run(Command::Detach { volume: VOL, epoch });
    let remove = |with_snapshots| Command::DeleteVolume {
        volume: VOL,
        with_snapshots,
    };
    assert_eq!(it.refused(remove(false)), RefusalCode::StillUsed);
    assert_eq!(it.run(remove(true)), Reply::Done);
    assert_eq!(it.refused(create("b")), RefusalCode::NotReady);
}

#[test]
fn a_storaged_completes_the_snapshot_of_a_volume_that_nobody_has() {
    let mut it = ready();
    assert_eq!(it.run(create("a")), Reply::Done);
    let maintenance = it.state.volumes[&VOL].maintenance.unwrap();
    let server = maintenance.server;
    let wanted = maintenance_of_server(&it.state, server);
    assert_eq!(wanted[0].generations, generations(2, &[(1, Pending)]));
    let maintain = Command::Maintain {
        volume: VOL,
        server,
    };
    let Reply::Granted(grant) = it.run(maintain) else {
        panic!("not granted")
    };
    assert_eq!(grant.generations, generations(2, &[(1, Pending)]));
    let epoch = grant.epoch;
    assert_eq!(it.run(complete(epoch, 1)), Reply::Done);
    let woken = it.state.servers[&server].desired_index;
    assert_eq!(woken, it.state.applied_index);
    // It is still at work: another one is its own, too.
    it.run(create("b"));
    let again = it.state.volumes[&VOL].maintenance.unwrap();
    assert!(again.epoch == Some(epoch) && again.due_index > maintenance.due_index);
    assert_eq!(it.run(complete(epoch, 2)), Reply::Done);
    it.run(Command::Detach { volume: VOL, epoch });
    assert_eq!(it.state.volumes[&VOL].maintenance, None);
}

/// Otherwise a volume that is out of sync for long would have its snapshots wait for a pause to end.
#[test]
fn a_snapshot_is_a_reason_to_try_again_at_once() {
    let mut it = ready();
    let epoch = it.attach(1).epoch;
    it.run(Command::SetIsr {
        volume: VOL,
        epoch,
        seq: MembershipSeq(1),
        new_isr: stores(&[1, 3]),
    });
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    it.run(Command::Detach { volume: VOL, epoch });
    let before = it.state.volumes[&VOL].maintenance.unwrap();
    it.run(create("a"));
    let after = it.state.volumes[&VOL].maintenance.unwrap();
    assert!(after.server == before.server && after.due_index > before.due_index);
}

#[test]
fn a_restored_state_drops_nothing_and_makes_nothing_before_it_is_verified() {
    let mut it = ready();
    let epoch = it.attach(1).epoch;
    it.run(create("a"));
    it.run(complete(epoch, 1));
    it.run(create("b"));
    it.run(Command::BeginLineage { lineage: 2 });
    assert_eq!(now(&it), generations(3, &[(1, Complete), (2, Pending)]));
    assert_eq!(it.refused(create("c")), RefusalCode::NotReady);
    assert_eq!(
        slices_of_server(&it.state, ServerId(1))[0].generations,
        None
    );
    let epoch = it.attach(1).epoch;
    let isr = stores(&[1, 2, 3]);
    it.run(Command::VerifyMembership {
        volume: VOL,
        epoch,
        seq: MembershipSeq(1),
        found_seq: MembershipSeq(1),
        isr,
    });
    let desired = slices_of_server(&it.state, ServerId(1));
    assert_eq!(desired[0].generations, Some(now(&it)));
    let woken = it.state.servers[&ServerId(1)].desired_index;
    let lineage = 1 << 48; // the second one
    assert_eq!(woken, lineage + it.state.applied_index);
    assert_eq!(it.run(complete(epoch, 2)), Reply::Done);
    assert_eq!(it.run(create("c")), Reply::Done);
}

#[test]
fn several_volumes_get_a_snapshot_of_one_command() {
    let mut it = ready();
    let second = it.second_volume();
    let volumes: BTreeSet<_> = [VOL, second].into();
    assert_eq!(it.run(create_of(&[VOL, second], "nightly")), Reply::Done);
    for id in volumes {
        let (generation, snapshot) = it.state.volumes[&id].pending_snapshot().unwrap();
        assert_eq!(
            (generation, snapshot.name.as_str()),
            (Generation(1), "nightly")
        );
        assert_eq!(snapshot.created_unix_ms, 1);
    }
}

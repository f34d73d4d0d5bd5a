//! The life of a rollback.

use crate::core::desire::{attachments_of_host, maintenance_of_server};
use crate::core::test::{Cluster0, VOL};
use crate::core::{Command, DesiredMaintenance, HostId, Phase, RefusalCode, Reply, Rollback};
use shardmap::generations::SnapshotState;
use shardmap::units::{Epoch, Generation};

const GOOD: Generation = Generation(1);

/// A detached volume with the complete snapshot [`GOOD`].
fn with_snapshot() -> Cluster0 {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let epoch = it.attach(1).epoch;
    it.run(Command::CreateSnapshot {
        volumes: [VOL].into(),
        name: "good".into(),
    });
    it.run(complete(epoch, GOOD));
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    it.run(Command::Detach { volume: VOL, epoch });
    it
}

fn complete(epoch: Epoch, generation: Generation) -> Command {
    Command::CompleteSnapshot {
        volume: VOL,
        epoch,
        generation,
        held: false,
    }
}

fn roll_back(to: Generation, keep_as: &str) -> Command {
    Command::RollBack {
        volume: VOL,
        to,
        keep_as: keep_as.into(),
    }
}

fn delete(generation: Generation) -> Command {
    Command::DeleteSnapshot {
        volume: VOL,
        generation,
    }
}

/// What the storaged that is to do it is told.
fn told(it: &Cluster0) -> Option<DesiredMaintenance> {
    let server = it.state.volumes[&VOL].maintenance?.server;
    maintenance_of_server(&it.state, server).pop()
}

/// It takes the volume.
fn taken(it: &mut Cluster0) -> Epoch {
    let maintenance = it.state.volumes[&VOL].maintenance.unwrap();
    let server = maintenance.server;
    let Reply::Granted(grant) = it.run(Command::Maintain {
        volume: VOL,
        server,
    }) else {
        panic!("not granted")
    };
    grant.epoch
}

fn done(epoch: Epoch, rollback: Rollback) -> Command {
    Command::CompleteRollback {
        volume: VOL,
        epoch,
        rollback,
    }
}

#[test]
fn a_storaged_rolls_back_what_nobody_has_and_nobody_gets_it_meanwhile() {
    let mut it = with_snapshot();
    assert_eq!(it.run(roll_back(GOOD, "bad")), Reply::Done);
    let rollback = Rollback {
        to: GOOD,
        before: Generation(2),
    };
    assert_eq!(told(&it).unwrap().rollback, Some(rollback));
    let volume = &it.state.volumes[&VOL];
    assert_eq!(
        volume.snapshots[&rollback.before].state,
        SnapshotState::Pending
    );
    let host = HostId(1);
    it.run(Command::SetDesiredAttachment { volume: VOL, host });
    assert!(!attachments_of_host(&it.state, host)[0].ready);
    assert!(told(&it).is_some(), "a host that waits for it ends nothing");
    let attach = Command::Attach { volume: VOL, host };
    assert_eq!(it.refused(attach.clone()), RefusalCode::NotReady);
    for kept in [GOOD, rollback.before] {
        let code = it.refused(delete(kept));
        assert!(matches!(
            code,
            RefusalCode::StillUsed | RefusalCode::NotReady
        ));
    }
    let epoch = taken(&mut it);
    it.run(complete(epoch, rollback.before));
    assert_eq!(it.refused(delete(rollback.before)), RefusalCode::StillUsed);
    let fenced = it.run(done(Epoch(epoch.0 - 1), rollback));
    assert_eq!(fenced, Reply::Fenced { epoch });
    let woken = it.state.hosts[&host].desired_index;
    assert_eq!(it.run(done(epoch, rollback)), Reply::Done);
    assert_eq!(it.state.volumes[&VOL].phase, Phase::Ready);
    assert!(it.state.hosts[&host].desired_index > woken);
    assert!(attachments_of_host(&it.state, host)[0].ready);
    assert!(matches!(it.run(attach), Reply::Granted(_)));
    assert_eq!(it.run(delete(rollback.before)), Reply::Done);
    let kinds: Vec<_> = it.state.events.iter().map(|e| e.kind.as_str()).collect();
    assert!(kinds.contains(&"RollbackBegun") && kinds.contains(&"RollbackCompleted"));
}

#[test]
fn another_rollback_takes_the_place_of_one_that_does_not_end() {
    let mut it = with_snapshot();
    it.run(roll_back(GOOD, "bad"));
    assert_eq!(it.refused(roll_back(GOOD, "half")), RefusalCode::NotReady);
    let epoch = taken(&mut it);
    let before = Generation(2);
    it.run(complete(epoch, before));
    assert_eq!(it.refused(roll_back(GOOD, "bad")), RefusalCode::NameTaken);
    assert_eq!(it.run(roll_back(before, "half")), Reply::Done);
    let first = Rollback { to: GOOD, before };
    let second = Rollback {
        to: before,
        before: Generation(3),
    };
    assert_eq!(told(&it).unwrap().rollback, Some(second));
    assert_eq!(it.run(done(epoch, first)), Reply::Done);
    assert_eq!(it.state.volumes[&VOL].phase, Phase::RollingBack);
    it.run(complete(epoch, second.before));
    // The answer to the first question was lost.
    for _ in 0..2 {
        assert_eq!(it.run(done(epoch, second)), Reply::Done);
        assert_eq!(it.state.volumes[&VOL].phase, Phase::Ready);
    }
}

#[test]
fn what_is_in_use_or_no_snapshot_is_not_rolled_back() {
    let mut it = with_snapshot();
    assert_eq!(
        it.refused(roll_back(Generation(2), "bad")),
        RefusalCode::NotFound
    );
    assert_eq!(it.refused(roll_back(GOOD, "good")), RefusalCode::NameTaken);
    let host = HostId(1);
    it.run(Command::SetDesiredAttachment { volume: VOL, host });
    assert_eq!(
        it.refused(roll_back(GOOD, "bad")),
        RefusalCode::StillAttached
    );
    let epoch = it.attach(1).epoch;
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    assert_eq!(
        it.refused(roll_back(GOOD, "bad")),
        RefusalCode::StillAttached
    );
    it.run(Command::Detach { volume: VOL, epoch });
    it.run(roll_back(GOOD, "bad"));
    it.run(Command::DeleteVolume {
        volume: VOL,
        with_snapshots: true,
    });
    assert_eq!(it.state.volumes[&VOL].rollback, None);
}

/// The backup may be older than what was written since the rollback ended.
#[test]
fn a_restored_metad_does_not_roll_back_again() {
    let mut it = with_snapshot();
    it.run(roll_back(GOOD, "bad"));
    let host = HostId(1);
    it.run(Command::SetDesiredAttachment { volume: VOL, host });
    it.run(Command::BeginLineage { lineage: 2 });
    let volume = &it.state.volumes[&VOL];
    assert_eq!((volume.phase, volume.desired), (Phase::Ready, None));
    assert_eq!(told(&it), None);
    let kinds: Vec<_> = it.state.events.iter().map(|e| e.kind.as_str()).collect();
    assert!(kinds.contains(&"RollbackAbandoned"));
}

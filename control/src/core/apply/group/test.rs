//! Groups of snapshots: who may speak for a volume, and what gives a group up.

use crate::core::desire::attachments_of_host;
use crate::core::model::PartStep;
use crate::core::test::{Cluster0, VOL};
use crate::core::{Command, HostId, RefusalCode, Reply};
use shardmap::generations::SnapshotState;
use shardmap::units::{Epoch, Generation, VolumeId};

const SECOND: VolumeId = VolumeId([8; 16]);

fn create() -> Command {
    Command::CreateSnapshot {
        volumes: [VOL, SECOND].into(),
        name: "s".into(),
    }
}

fn hold(volume: VolumeId, epoch: Epoch) -> Command {
    Command::HoldSnapshot {
        volume,
        epoch,
        generation: Generation(1),
    }
}

fn complete(volume: VolumeId, epoch: Epoch, held: bool) -> Command {
    Command::CompleteSnapshot {
        volume,
        epoch,
        generation: Generation(1),
        held,
    }
}

fn attach(it: &mut Cluster0, volume: VolumeId) -> Epoch {
    let host = HostId(1);
    it.run(Command::SetDesiredAttachment { volume, host });
    let reply = it.run(Command::Attach { volume, host });
    granted(reply)
}

fn granted(reply: Reply) -> Epoch {
    let Reply::Granted(grant) = reply else {
        panic!("not granted: {reply:?}")
    };
    grant.epoch
}

/// Two volumes that a host has, with a group of snapshots.
fn begun() -> (Cluster0, [Epoch; 2]) {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.second_volume();
    let epochs = [VOL, SECOND].map(|volume| attach(&mut it, volume));
    assert_eq!(it.run(create()), Reply::Done);
    (it, epochs)
}

fn state(it: &Cluster0, volume: VolumeId) -> Option<SnapshotState> {
    let snapshot = it.state.volumes[&volume].snapshots.get(&Generation(1))?;
    Some(snapshot.state)
}

fn holds(it: &Cluster0) -> [bool; 2] {
    [VOL, SECOND].map(|volume| it.state.volumes[&volume].generations().hold)
}

fn is_abandoned(it: &Cluster0, volume: VolumeId) -> bool {
    let snapshot = it.state.volumes[&volume].snapshots.get(&Generation(1));
    it.state.groups.is_empty() && snapshot.is_none_or(|s| s.abandoned)
}

#[test]
fn all_are_cut_when_the_last_one_holds_and_complete_when_the_last_one_is_whole() {
    let (mut it, [first, second]) = begun();
    assert_eq!(holds(&it), [true, true]);
    let told = attachments_of_host(&it.state, HostId(1));
    assert!(told.iter().all(|d| d.generations.hold));
    assert_eq!(it.run(hold(VOL, first)), Reply::Done);
    assert_eq!(it.run(hold(VOL, first)), Reply::Done, "the answer was lost");
    assert_eq!(holds(&it), [true, true]);
    assert_eq!(it.run(hold(SECOND, second)), Reply::Done);
    assert_eq!(holds(&it), [false, false]);
    let woken = it.state.hosts[&HostId(1)].desired_index;
    assert_eq!(woken, it.state.applied_index);
    it.run(complete(SECOND, second, true));
    it.run(complete(SECOND, second, true));
    assert_eq!(state(&it, SECOND), Some(SnapshotState::Pending));
    it.run(complete(VOL, first, true));
    for volume in [VOL, SECOND] {
        assert_eq!(state(&it, volume), Some(SnapshotState::Complete));
    }
    assert!(it.state.groups.is_empty());
}

#[test]
fn who_let_writes_go_too_early_gives_the_group_up() {
    let (mut it, [first, second]) = begun();
    it.run(hold(VOL, first));
    it.run(hold(SECOND, second));
    it.run(complete(SECOND, second, true));
    it.run(complete(VOL, first, false));
    assert_eq!([state(&it, VOL), state(&it, SECOND)], [None, None]);
    assert_eq!(it.run(create()), Reply::Done, "the name is free");
    let kinds = it.state.events.iter().map(|e| e.kind.as_str());
    assert_eq!(kinds.filter(|k| *k == "SnapshotAbandoned").count(), 2);
}

#[test]
fn what_is_begun_of_an_abandoned_group_is_brought_to_an_end_and_then_goes() {
    let (mut it, [first, second]) = begun();
    it.run(hold(VOL, first));
    it.run(complete(VOL, first, false)); // the others never held
    assert_eq!(state(&it, VOL), None);
    assert_eq!(state(&it, SECOND), Some(SnapshotState::Pending));
    assert!(is_abandoned(&it, SECOND) && holds(&it) == [false, false]);
    let one = Command::CreateSnapshot {
        volumes: [SECOND].into(),
        name: "s".into(),
    };
    assert_eq!(it.refused(one.clone()), RefusalCode::NotReady);
    it.run(complete(SECOND, second, true));
    assert_eq!(state(&it, SECOND), None);
    assert_eq!(it.run(one), Reply::Done);
}

/// Each of these means that nobody knows whether writes waited all the time.
#[test]
fn a_group_ends_with_the_holding_of_a_volume_that_is_not_whole() {
    type End = fn(Epoch) -> Command;
    let ends: [(&str, End); 4] = [
        ("restart of the holder", |_| Command::Attach {
            volume: VOL,
            host: HostId(1),
        }),
        ("detach", |epoch| Command::Detach { volume: VOL, epoch }),
        ("force", |_| Command::ForceDetach { volume: VOL }),
        ("restore", |_| Command::BeginLineage { lineage: 2 }),
    ];
    for (what, end) in ends {
        let (mut it, [first, second]) = begun();
        it.run(hold(VOL, first));
        it.run(hold(SECOND, second));
        it.run(end(first));
        assert!(
            is_abandoned(&it, VOL) && is_abandoned(&it, SECOND),
            "{what}"
        );
        let (mut it, [first, second]) = begun();
        it.run(hold(VOL, first));
        it.run(hold(SECOND, second));
        it.run(complete(VOL, first, true));
        it.run(end(first));
        let lost = what == "restore";
        assert_eq!(is_abandoned(&it, SECOND), lost, "{what}, but it was whole");
    }
}

#[test]
fn a_fenced_holder_holds_nothing() {
    let (mut it, [first, second]) = begun();
    it.run(hold(SECOND, second));
    it.run(Command::ForceDetach { volume: VOL });
    let late = it.run(hold(VOL, first));
    assert!(matches!(late, Reply::Fenced { .. }));
    assert!(is_abandoned(&it, SECOND));
}

/// Two volumes, the first attached, the second taken from its host by force.
fn with_forsaken() -> (Cluster0, Epoch) {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.second_volume();
    attach(&mut it, SECOND);
    it.run(Command::ForceDetach { volume: SECOND });
    let first = attach(&mut it, VOL);
    (it, first)
}

/// A storaged takes the volume.
fn maintain(it: &mut Cluster0, volume: VolumeId) -> Epoch {
    let server = it.state.volumes[&volume].maintenance.unwrap().server;
    let reply = it.run(Command::Maintain { volume, server });
    granted(reply)
}

#[test]
fn the_first_who_gets_a_forsaken_volume_speaks_for_it_and_nobody_after_it() {
    let (mut it, first) = with_forsaken();
    it.run(create());
    it.run(hold(VOL, first));
    assert_eq!(holds(&it), [true, true], "its host may still write");
    let epoch = maintain(&mut it, SECOND);
    it.run(hold(SECOND, epoch));
    assert_eq!(holds(&it), [false, false]);
    it.run(complete(SECOND, epoch, true));
    let part = it.state.volumes[&SECOND].pending_part().unwrap();
    assert_eq!(part.step, PartStep::Whole);
    // It need not stay until the others are whole, and who comes next changes nothing.
    let volume = SECOND;
    it.run(Command::Detach { volume, epoch });
    assert_eq!(it.state.volumes[&SECOND].maintenance, None);
    attach(&mut it, SECOND);
    it.run(complete(VOL, first, true));
    assert_eq!(state(&it, SECOND), Some(SnapshotState::Complete));
    // All its stores were opened by another one: its host cannot write any more.
    assert!(!it.state.volumes[&SECOND].forsaken);
}

#[test]
fn a_volume_that_nobody_can_be_writing_to_is_held_by_nobody() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.second_volume();
    let epoch = attach(&mut it, SECOND);
    it.run(Command::ClearDesiredAttachment { volume: SECOND });
    let volume = SECOND;
    it.run(Command::Detach { volume, epoch });
    let first = attach(&mut it, VOL);
    it.run(create());
    it.run(hold(VOL, first));
    assert_eq!(holds(&it), [false, false]);
    // Who comes after the cut has nothing to hold, and may be replaced.
    maintain(&mut it, SECOND);
    let second = attach(&mut it, SECOND);
    it.run(complete(SECOND, second, false));
    it.run(complete(VOL, first, true));
    assert_eq!(state(&it, VOL), Some(SnapshotState::Complete));
}

#[test]
fn who_attaches_a_volume_before_the_cut_has_to_hold_it() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.second_volume();
    let first = attach(&mut it, VOL);
    it.run(create());
    let second = attach(&mut it, SECOND);
    it.run(hold(VOL, first));
    assert_eq!(holds(&it), [true, true]);
    it.run(hold(SECOND, second));
    assert_eq!(holds(&it), [false, false]);
    it.run(complete(SECOND, second, false));
    assert!(is_abandoned(&it, VOL));
}

#[test]
fn volumes_that_nobody_has_are_cut_at_once_and_ended_one_after_the_other() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.second_volume();
    it.run(create());
    assert_eq!(holds(&it), [false, false]);
    for volume in [VOL, SECOND] {
        assert_eq!(state(&it, VOL), Some(SnapshotState::Pending));
        let epoch = maintain(&mut it, volume);
        it.run(complete(volume, epoch, false));
    }
    assert_eq!(state(&it, VOL), Some(SnapshotState::Complete));
}

#[test]
fn a_host_that_takes_a_volume_from_its_storaged_gives_the_group_up() {
    let (mut it, _) = with_forsaken();
    it.run(create());
    maintain(&mut it, SECOND);
    let (volume, host) = (SECOND, HostId(1));
    it.run(Command::SetDesiredAttachment { volume, host });
    assert!(is_abandoned(&it, VOL));
}

#[test]
fn a_pending_group_is_deleted_by_any_of_its_names_and_with_any_of_its_volumes() {
    let (mut it, [first, _]) = begun();
    let rm = Command::DeleteSnapshot {
        volume: VOL,
        generation: Generation(1),
    };
    assert_eq!(it.run(rm.clone()), Reply::Done);
    assert!(is_abandoned(&it, VOL) && is_abandoned(&it, SECOND));
    assert_eq!(it.refused(rm), RefusalCode::NotReady, "it is being ended");
    it.run(complete(VOL, first, false));
    assert_eq!(state(&it, VOL), None);

    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.second_volume();
    it.run(create());
    let (volume, with_snapshots) = (SECOND, true);
    it.run(Command::DeleteVolume {
        volume,
        with_snapshots,
    });
    assert!(is_abandoned(&it, VOL));
}

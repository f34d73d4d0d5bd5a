//! The life of a view.

use crate::core::desire::{attachments_of_host, slices_of_server};
use crate::core::test::{Cluster0, VOL};
use crate::core::{Command, HostId, Origin, RefusalCode, Reply};
use shardmap::units::{Generation, ServerId, VolumeId};

const VIEW: VolumeId = VolumeId([9; 16]);

fn create(name: &str, volume: VolumeId, generation: u32) -> Command {
    Command::CreateView {
        id: VIEW,
        name: name.into(),
        origin: Origin {
            volume,
            generation: Generation(generation),
        },
    }
}

fn snapshot(volume: VolumeId) -> Command {
    Command::CreateSnapshot {
        volumes: [volume].into(),
        name: "s".into(),
    }
}

const fn delete(volume: VolumeId) -> Command {
    Command::DeleteVolume {
        volume,
        with_snapshots: true,
    }
}

/// A volume with one snapshot, complete or not.
fn with_snapshot(complete: bool) -> Cluster0 {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let epoch = it.attach(1).epoch;
    it.run(snapshot(VOL));
    if complete {
        let (volume, generation) = (VOL, Generation(1));
        it.run(Command::CompleteSnapshot {
            volume,
            epoch,
            generation,
            held: false,
        });
    }
    it
}

#[test]
fn a_view_is_ready_at_once_and_reads_the_slices_of_the_volume() {
    let mut it = with_snapshot(true);
    let promised = it.state.promised_bytes();
    assert_eq!(it.run(create("old", VOL, 1)), Reply::Volume(VIEW));
    assert_eq!(it.state.promised_bytes(), promised, "it costs nothing");
    let (volume, host) = (VIEW, HostId(2));
    it.run(Command::SetDesiredAttachment { volume, host });
    let Reply::Granted(grant) = it.run(Command::Attach { volume, host }) else {
        panic!("not granted")
    };
    assert_eq!(grant.view, Some(Generation(1)));
    assert_eq!(grant.map, it.state.volumes[&VOL].map);
    let holder = it.attach(1);
    assert_eq!((holder.view, &holder.slices), (None, &grant.slices));
    assert_eq!(grant.slices.len(), 3);
    let desired = attachments_of_host(&it.state, host);
    assert_eq!(desired[0].slices, grant.slices);
    let slices = slices_of_server(&it.state, ServerId(1));
    assert!(slices.iter().all(|s| s.volume == VOL));
}

#[test]
fn only_a_complete_snapshot_can_be_shown_and_a_view_has_none() {
    let mut it = with_snapshot(false);
    assert_eq!(it.refused(create("old", VOL, 1)), RefusalCode::NotReady);
    let mut it = with_snapshot(true);
    assert_eq!(it.refused(create("old", VOL, 2)), RefusalCode::NotFound);
    assert_eq!(
        it.refused(create("old", VolumeId([5; 16]), 1)),
        RefusalCode::NotFound
    );
    assert_eq!(it.refused(create("v", VOL, 1)), RefusalCode::NameTaken);
    assert_eq!(
        it.refused(create("not a name", VOL, 1)),
        RefusalCode::Invalid
    );
    it.run(create("old", VOL, 1));
    assert_eq!(it.refused(snapshot(VIEW)), RefusalCode::Invalid);
}

#[test]
fn what_a_view_shows_stays_until_the_view_is_gone() {
    let mut it = with_snapshot(true);
    it.run(create("old", VOL, 1));
    let give_up = Command::DeleteSnapshot {
        volume: VOL,
        generation: Generation(1),
    };
    assert_eq!(it.refused(give_up.clone()), RefusalCode::StillUsed);
    it.run(Command::ForceDetach { volume: VOL });
    assert_eq!(it.refused(delete(VOL)), RefusalCode::StillUsed);
    assert_eq!(it.run(delete(VIEW)), Reply::Done);
    assert!(!it.state.volumes.contains_key(&VIEW));
    assert_eq!(it.run(give_up), Reply::Done);
}

#[test]
fn a_restored_state_does_not_ask_a_view_for_its_membership() {
    let mut it = with_snapshot(true);
    it.run(create("old", VOL, 1));
    it.run(Command::BeginLineage { lineage: 9 });
    let verified = [VOL, VIEW].map(|id| it.state.volumes[&id].verified);
    assert_eq!(verified, [false, true]);
}

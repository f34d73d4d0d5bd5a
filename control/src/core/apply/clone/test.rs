//! The life of a clone.

use crate::core::desire::slices_of_server;
use crate::core::test::{Cluster0, VOL};
use crate::core::{Command, DesiredSlice, HostId, Origin, Phase, RefusalCode, Reply, SliceParent};
use shardmap::units::{Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;

const CLONE: VolumeId = VolumeId([9; 16]);

fn create(id: VolumeId, name: &str, volume: VolumeId, generation: u32) -> Command {
    Command::CreateClone {
        id,
        name: name.into(),
        origin: Origin {
            volume,
            generation: Generation(generation),
        },
    }
}

fn snapshot(it: &mut Cluster0, volume: VolumeId, name: &str) {
    it.run(Command::CreateSnapshot {
        volumes: [volume].into(),
        name: name.into(),
    });
}

const fn delete_snapshot(volume: VolumeId, generation: u32) -> Command {
    Command::DeleteSnapshot {
        volume,
        generation: Generation(generation),
    }
}

const fn delete(volume: VolumeId) -> Command {
    Command::DeleteVolume {
        volume,
        with_snapshots: true,
    }
}

/// A volume that host 1 has, with the snapshot `mon`, complete.
fn with_snapshot() -> Cluster0 {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let epoch = it.attach(1).epoch;
    snapshot(&mut it, VOL, "mon");
    let (volume, generation) = (VOL, Generation(1));
    it.run(Command::CompleteSnapshot {
        volume,
        epoch,
        generation,
        held: false,
    });
    it
}

/// Only these stores are in sync of [`VOL`] any more.
fn remain(it: &mut Cluster0, stores: &[u32]) {
    let volume = &it.state.volumes[&VOL];
    let (epoch, seq) = (volume.epoch, volume.seq);
    it.run(Command::SetIsr {
        volume: VOL,
        epoch,
        seq,
        new_isr: stores.iter().map(|s| StoreId(*s)).collect(),
    });
}

fn desired(it: &Cluster0, volume: VolumeId) -> Vec<DesiredSlice> {
    let all = (1..4).flat_map(|s| slices_of_server(&it.state, ServerId(s)));
    all.filter(|s| s.volume == volume).collect()
}

/// The storageds let go of the volume's slices.
fn gone(it: &mut Cluster0, volume: VolumeId) {
    for slice in desired(it, volume) {
        assert!(slice.remove);
        let (store, nsid) = (slice.store, slice.nsid);
        it.run(Command::ConfirmSliceGone { store, nsid });
    }
}

#[test]
fn a_clone_has_slices_beside_those_of_the_snapshot() {
    let mut it = with_snapshot();
    assert_eq!(it.run(create(CLONE, "c", VOL, 1)), Reply::Volume(CLONE));
    let (of, clone) = (&it.state.volumes[&VOL], &it.state.volumes[&CLONE]);
    assert_eq!((&clone.map, clone.phase), (&of.map, Phase::Creating));
    let slices = desired(&it, CLONE);
    assert_eq!(slices.len(), 3);
    for slice in slices {
        let beside = desired(&it, VOL);
        let beside = beside
            .iter()
            .find(|s| s.position == slice.position)
            .unwrap();
        let parent = SliceParent {
            nsid: beside.nsid,
            generation: Generation(1),
        };
        assert_eq!((slice.parent, slice.store), (Some(parent), beside.store));
        assert!(!slice.confirmed, "one that is made now is whole");
    }
    it.confirm_all();
    assert_eq!(it.state.volumes[&CLONE].phase, Phase::Ready);
}

#[test]
fn a_store_that_is_behind_is_not_waited_for_and_gets_an_incomplete_slice() {
    let mut it = with_snapshot();
    remain(&mut it, &[1, 2]);
    it.run(create(CLONE, "c", VOL, 1));
    let in_sync: BTreeSet<StoreId> = [StoreId(1), StoreId(2)].into();
    assert_eq!(it.state.volumes[&CLONE].isr, in_sync);
    let slices = desired(&it, CLONE);
    let told: Vec<bool> = slices.iter().map(|s| s.confirmed).collect();
    assert_eq!(told, [false, false, true]);
    it.confirm(slices[0].nsid);
    assert_eq!(it.state.volumes[&CLONE].phase, Phase::Creating);
    it.confirm(slices[1].nsid);
    let clone = &it.state.volumes[&CLONE];
    assert_eq!(clone.phase, Phase::Ready);
    let before = clone.maintenance.expect("a storaged brings it up to date");
    it.confirm(slices[2].nsid);
    let after = it.state.volumes[&CLONE].maintenance.unwrap();
    assert!(after.due_index > before.due_index, "now it may succeed");
}

#[test]
fn whoever_joins_has_its_slice_even_if_its_storaged_did_not_say_so() {
    let mut it = with_snapshot();
    remain(&mut it, &[1, 2]);
    it.run(create(CLONE, "c", VOL, 1));
    let slices = desired(&it, CLONE);
    it.confirm(slices[0].nsid);
    it.confirm(slices[1].nsid);
    let (volume, host) = (CLONE, HostId(2));
    it.run(Command::SetDesiredAttachment { volume, host });
    let Reply::Granted(grant) = it.run(Command::Attach { volume, host }) else {
        panic!("not granted")
    };
    assert_eq!(grant.view, None);
    it.run(Command::SetIsr {
        volume,
        epoch: grant.epoch,
        seq: MembershipSeq(1),
        new_isr: [1, 2, 3].map(StoreId).into(),
    });
    assert!(it.state.slices[&slices[2].nsid].confirmed);
}

#[test]
fn only_complete_snapshots_are_cloned_and_not_too_deep() {
    let mut it = with_snapshot();
    snapshot(&mut it, VOL, "tue");
    assert_eq!(
        it.refused(create(CLONE, "c", VOL, 2)),
        RefusalCode::NotReady
    );
    assert_eq!(
        it.refused(create(CLONE, "c", VOL, 3)),
        RefusalCode::NotFound
    );
    assert_eq!(
        it.refused(create(CLONE, "v", VOL, 1)),
        RefusalCode::NameTaken
    );
    let mut of = VOL;
    for depth in 0..9u8 {
        let id = VolumeId([10 + depth; 16]);
        let command = create(id, &format!("c{depth}"), of, 1);
        if depth == 8 {
            assert_eq!(it.refused(command), RefusalCode::Limit);
            break;
        }
        it.run(command);
        it.confirm_all();
        snapshot(&mut it, id, "s");
        let (volume, host, generation) = (id, HostId(2), Generation(1));
        it.run(Command::SetDesiredAttachment { volume, host });
        let Reply::Granted(grant) = it.run(Command::Attach { volume, host }) else {
            panic!("not granted")
        };
        it.run(Command::CompleteSnapshot {
            volume,
            epoch: grant.epoch,
            generation,
            held: false,
        });
        of = id;
    }
}

#[test]
fn a_volume_with_clones_stays_and_a_snapshot_is_kept_for_them() {
    let mut it = with_snapshot();
    let second = VolumeId([10; 16]);
    it.run(create(CLONE, "c", VOL, 1));
    it.run(create(second, "d", VOL, 1));
    it.confirm_all();
    it.run(Command::ForceDetach { volume: VOL });
    assert_eq!(it.refused(delete(VOL)), RefusalCode::StillUsed);
    assert_eq!(it.run(delete_snapshot(VOL, 1)), Reply::Done);
    assert_eq!(it.refused(delete_snapshot(VOL, 1)), RefusalCode::NotFound);
    assert_eq!(
        it.refused(create(VolumeId([11; 16]), "e", VOL, 1)),
        RefusalCode::NotFound
    );
    let keeps = |it: &Cluster0| {
        let generations = desired(it, VOL)[0].generations.clone().unwrap();
        generations.snapshots.contains_key(&Generation(1))
    };
    assert!(keeps(&it) && it.state.volumes[&VOL].snapshots.is_empty());
    // Its name is free.
    snapshot(&mut it, VOL, "mon");
    for clone in [CLONE, second] {
        it.run(delete(clone));
        assert_eq!(it.refused(delete(VOL)), RefusalCode::StillUsed);
        assert!(keeps(&it), "until the last clone is gone from the stores");
        gone(&mut it, clone);
    }
    assert!(!keeps(&it));
    assert_eq!(it.run(delete(VOL)), Reply::Done);
}

#[test]
fn the_parent_of_each_slice_has_a_lower_number() {
    let mut it = with_snapshot();
    it.run(create(CLONE, "c", VOL, 1));
    let lower = |s: &DesiredSlice| {
        s.parent
            .is_some_and(|p| p.nsid < s.nsid && p.nsid != Nsid(0))
    };
    assert!(desired(&it, CLONE).iter().all(lower));
}

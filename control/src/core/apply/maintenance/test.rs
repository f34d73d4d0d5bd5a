//! Who brings a volume up to date that nobody uses.

use crate::core::desire::{known_hosts, maintenance_of_server};
use crate::core::test::{Cluster0, VOL, store, stores};
use crate::core::{Command, HostId, Maintenance, RefusalCode, Reply};
use shardmap::units::{Epoch, MembershipSeq, Nsid, ServerId, StoreId};

/// Detached with stores 1 and 3 in sync.
fn degraded() -> Cluster0 {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let epoch = it.attach(1).epoch;
    assert!(matches!(
        it.run(isr(epoch, 1, &[1, 3])),
        Reply::IsrSet(MembershipSeq(2))
    ));
    assert_eq!(maintenance(&it), None, "its host does it");
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    assert_eq!(maintenance(&it), None, "its host still has it");
    it.run(Command::Detach { volume: VOL, epoch });
    it
}

fn isr(epoch: Epoch, seq: u64, of: &[u32]) -> Command {
    Command::SetIsr {
        volume: VOL,
        epoch,
        seq: MembershipSeq(seq),
        new_isr: stores(of),
    }
}

fn maintenance(it: &Cluster0) -> Option<Maintenance> {
    it.state.volumes[&VOL].maintenance
}

fn maintain(server: ServerId) -> Command {
    Command::Maintain {
        volume: VOL,
        server,
    }
}

/// The server that should do it takes it.
fn begun(it: &mut Cluster0) -> (ServerId, Epoch) {
    let server = maintenance(it).unwrap().server;
    let Reply::Granted(grant) = it.run(maintain(server)) else {
        panic!("not granted")
    };
    assert_eq!(grant.epoch, it.state.volumes[&VOL].epoch);
    (server, grant.epoch)
}

fn woken(it: &Cluster0, server: ServerId) -> u64 {
    it.state.servers[&server].desired_index
}

#[test]
fn a_volume_left_with_a_stale_replica_is_brought_up_to_date_and_let_go() {
    let mut it = degraded();
    let server = maintenance(&it).unwrap().server;
    assert!([1, 3].contains(&server.0), "one with an in-sync store");
    assert_eq!(woken(&it, server), it.state.applied_index);
    let wanted = maintenance_of_server(&it.state, server);
    assert_eq!((wanted.len(), wanted[0].volume), (1, VOL));
    assert_eq!(
        it.refused(maintain(ServerId(2))),
        RefusalCode::NotDesired,
        "another one should do it"
    );
    let (server, epoch) = begun(&mut it);
    assert_eq!(
        it.run(isr(epoch, 2, &[1, 2, 3])),
        Reply::IsrSet(MembershipSeq(3))
    );
    assert_eq!(
        maintenance(&it).map(|m| m.epoch),
        Some(Some(epoch)),
        "it has marks to clean"
    );
    it.run(Command::Detach { volume: VOL, epoch });
    assert_eq!(maintenance(&it), None);
    assert_eq!(maintenance_of_server(&it.state, server), []);
    let kinds: Vec<_> = it.state.events.iter().map(|e| e.kind.as_str()).collect();
    let tail = ["MaintenanceBegan", "ReplicaInSync", "MaintenanceEnded"];
    assert_eq!(kinds[kinds.len() - 3..], tail);
}

/// Store 2 says that its slice is blank.
fn report(it: &mut Cluster0) {
    let all = &it.state.slices;
    let of_two = all.iter().find(|(_, slice)| slice.store == StoreId(2));
    let nsid = *of_two.expect("a slice each").0;
    let (store, blank) = (StoreId(2), Reply::Done);
    assert_eq!(it.run(Command::ReportBlankSlice { store, nsid }), blank);
}

#[test]
fn a_volume_of_which_a_slice_is_lost_is_looked_at_although_all_are_in_sync() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    report(&mut it);
    let wanted = maintenance(&it).expect("somebody has to look");
    assert!(wanted.blank && wanted.epoch.is_none());
    assert_eq!(woken(&it, wanted.server), it.state.applied_index);
    report(&mut it);
    assert_eq!(maintenance(&it), Some(wanted), "once is enough");
    let assign = Command::AssignMaintenance {
        volume: VOL,
        server: ServerId(1 + wanted.server.0 % 3),
    };
    it.run(assign);
    assert!(maintenance(&it).unwrap().blank, "for whoever does it");
    let (_, epoch) = begun(&mut it);
    it.run(isr(epoch, 1, &[1, 3]));
    it.run(isr(epoch, 2, &[1, 2, 3]));
    it.run(Command::Detach { volume: VOL, epoch });
    assert_eq!(maintenance(&it), None, "it was seen");
    let kinds: Vec<_> = it.state.events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds.iter().filter(|k| **k == "ReplicaLost").count(), 1);
}

#[test]
fn a_lost_slice_that_is_out_of_sync_or_of_an_attached_volume_is_no_news() {
    let mut it = degraded();
    let before = maintenance(&it);
    report(&mut it);
    assert_eq!(maintenance(&it), before, "it is to be resilvered anyway");
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let epoch = it.attach(1).epoch;
    report(&mut it);
    assert_eq!(maintenance(&it), None, "its host sees it");
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    it.run(Command::Detach { volume: VOL, epoch });
    assert_eq!(maintenance(&it), None);
    let (store, nsid) = (StoreId(2), Nsid(999));
    let unknown = Command::ReportBlankSlice { store, nsid };
    assert_eq!(it.refused(unknown), RefusalCode::NotFound);
}

#[test]
fn a_host_takes_over_and_what_was_begun_is_fenced() {
    let mut it = degraded();
    let (server, old) = begun(&mut it);
    it.run(Command::SetDesiredAttachment {
        volume: VOL,
        host: HostId(2),
    });
    assert_eq!(maintenance(&it), None, "it is not waited for");
    assert_eq!(woken(&it, server), it.state.applied_index);
    assert_eq!(
        it.run(isr(old, 2, &[1, 2, 3])),
        Reply::Fenced { epoch: old }
    );
    let grant = it.attach(2);
    assert!(grant.epoch > old && grant.held_since == grant.epoch);
    let epoch = grant.epoch;
    let late = Command::Detach {
        volume: VOL,
        epoch: old,
    };
    assert_eq!(it.run(late), Reply::Fenced { epoch });
    assert_eq!(
        it.state.volumes[&VOL].attachment.map(|a| a.epoch),
        Some(epoch)
    );
    assert_eq!(it.refused(maintain(server)), RefusalCode::NotDesired);
}

#[test]
fn a_server_that_is_gone_is_replaced_and_fenced() {
    let mut it = degraded();
    let (gone, old) = begun(&mut it);
    let assign = |server| Command::AssignMaintenance {
        volume: VOL,
        server,
    };
    assert_eq!(
        it.refused(assign(ServerId(2))),
        RefusalCode::Invalid,
        "its store is not in sync"
    );
    let other = ServerId(4 - gone.0);
    assert_eq!(it.run(assign(other)), Reply::Done);
    assert_eq!(woken(&it, other), it.state.applied_index);
    assert_eq!(
        it.run(isr(old, 2, &[1, 2, 3])),
        Reply::Fenced { epoch: old }
    );
    assert_eq!(it.refused(maintain(gone)), RefusalCode::NotDesired);
    let (server, epoch) = begun(&mut it);
    assert!(server == other && epoch > old);
}

#[test]
fn a_store_that_comes_back_is_a_reason_to_try_again_and_one_elsewhere_is_not() {
    let mut it = degraded();
    let before = maintenance(&it).unwrap();
    it.run(store(2, 2));
    let after = maintenance(&it).unwrap();
    assert!(after.server == before.server && after.due_index > before.due_index);
    assert_eq!(woken(&it, after.server), it.state.applied_index);
    it.run(store(9, 2));
    assert_eq!(maintenance(&it), Some(after));
}

#[test]
fn nothing_is_done_for_a_volume_that_is_deleted_or_unverified() {
    let mut it = degraded();
    begun(&mut it);
    let mut restored = it.clone();
    it.run(Command::DeleteVolume {
        volume: VOL,
        with_snapshots: false,
    });
    assert_eq!(maintenance(&it), None);
    restored.run(Command::BeginLineage { lineage: 2 });
    assert_eq!(maintenance(&restored), None);
}

#[test]
fn storageds_admit_each_other() {
    let it = Cluster0::with_servers(2);
    let ours = |nqn: &&String| nqn.contains(":storaged-host:");
    assert_eq!(known_hosts(&it.state).iter().filter(ours).count(), 2);
    assert_eq!(woken(&it, ServerId(1)), woken(&it, ServerId(2)));
}

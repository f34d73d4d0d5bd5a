//! What holds after a restore from a backup.

use crate::core::desire::{slices_of_server, was_restored_between};
use crate::core::test::{Cluster0, VOL, server, stores};
use crate::core::{Command, HostId, RefusalCode, Reply, limits};
use shardmap::units::{Epoch, MembershipSeq, ServerId};

/// A state restored from a backup with the three stores in sync at seq 1, as its lineage begins.
fn restored() -> Cluster0 {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.attach(1);
    assert_eq!(it.run(Command::BeginLineage { lineage: 2 }), Reply::Done);
    it
}

fn verify(epoch: Epoch, found_seq: u64, isr: &[u32]) -> Command {
    Command::VerifyMembership {
        volume: VOL,
        epoch,
        seq: MembershipSeq(1),
        found_seq: MembershipSeq(found_seq),
        isr: stores(isr),
    }
}

#[test]
fn after_a_restore_epochs_are_past_all_that_was_seen_and_nobody_holds_a_volume() {
    let mut it = restored();
    let old = Epoch::new(1, 1 << 40).unwrap();
    assert!(it.state.volumes[&VOL].epoch > old);
    assert_eq!(it.state.volumes[&VOL].attachment, None);
    assert_eq!(it.state.minted.nsid, 3 + limits::NSIDS_SKIPPED);
    let grant = it.attach(1);
    assert_eq!(grant.epoch, Epoch::new(2, 1).unwrap());
    assert_eq!((grant.verified, grant.held_since), (false, grant.epoch));
    let again = Command::BeginLineage { lineage: 2 };
    assert_eq!(it.refused(again), RefusalCode::Invalid);
    for slice in slices_of_server(&it.state, ServerId(1)) {
        assert!(slice.confirmed, "one made anew must not look whole");
    }
}

#[test]
fn daemons_that_have_seen_more_of_the_lost_history_are_woken() {
    let mut it = restored();
    let seen = 1 << 40; // a log that was much longer than the backup's
    let woken = |it: &Cluster0| {
        let servers = it.state.servers.values().map(|s| s.desired_index);
        servers
            .chain(it.state.hosts.values().map(|h| h.desired_index))
            .collect::<Vec<_>>()
    };
    let first = woken(&it);
    assert!(first.iter().all(|turn| *turn > seen), "{first:?}");
    it.run(Command::ClearDesiredAttachment { volume: VOL });
    let host = HostId(1);
    assert!(it.state.hosts[&host].desired_index > first[3]);
}

#[test]
fn every_server_hears_that_metad_was_restored_and_hears_it_once() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.run(server(4)); // without a store
    let turns = |it: &Cluster0| {
        let servers = it.state.servers.iter();
        servers
            .map(|(id, s)| (*id, s.desired_index))
            .collect::<Vec<_>>()
    };
    let before = turns(&it);
    it.run(Command::BeginLineage { lineage: 2 });
    let begun = turns(&it);
    it.run(server(5)); // wakes all
    let later = turns(&it);
    assert_eq!((before.len(), later.len()), (4, 5));
    for (((id, before), (_, begun)), (_, later)) in before.into_iter().zip(begun).zip(later) {
        assert!(was_restored_between(before, begun), "{id}");
        assert!(later > begun && !was_restored_between(begun, later), "{id}");
    }
}

#[test]
fn an_unverified_membership_changes_only_by_what_the_stores_say() {
    let mut it = restored();
    let epoch = it.attach(1).epoch;
    let shrink = Command::SetIsr {
        volume: VOL,
        epoch,
        seq: MembershipSeq(1),
        new_isr: stores(&[1, 2]),
    };
    assert_eq!(it.refused(shrink), RefusalCode::NotReady);
    let old = Epoch::new(1, 1).unwrap();
    assert_eq!(it.run(verify(old, 4, &[2])), Reply::Fenced { epoch });
    assert_eq!(it.refused(verify(epoch, 4, &[9])), RefusalCode::Invalid);
    assert_eq!(it.refused(verify(epoch, 4, &[])), RefusalCode::LastReplica);
    let new = MembershipSeq(2 << 48);
    assert_eq!(it.run(verify(epoch, 4, &[2])), Reply::IsrSet(new));
    let volume = &it.state.volumes[&VOL];
    assert_eq!((&volume.isr, volume.verified), (&stores(&[2]), true));
    let lost_answer = it.run(verify(epoch, 4, &[2]));
    assert_eq!(lost_answer, Reply::IsrSet(new));
    let (seq, isr) = (new, stores(&[2]));
    assert_eq!(
        it.run(verify(epoch, 4, &[1, 2])),
        Reply::Stale { seq, isr },
        "once verified, stamps decide nothing"
    );
}

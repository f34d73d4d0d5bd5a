//! Deadlines and endings.

use super::bench::*;
use crate::proto::controller::*;
use crate::proto::fabrics::*;
use crate::proto::sqe;
use crate::proto::sqe::Sqe;
use crate::proto::status::Status;

#[test]
fn a_silent_association_ends_after_kato_and_grace() {
    let mut bench = Bench::new();
    bench.association(0);
    bench.association(2);
    bench.pass(4_000);
    // Traffic on the IO queue counts.
    assert_eq!(bench.command(1, read(1, 0, 1)), Status::SUCCESS);
    bench.pass(3_100);
    let expired = CloseReason::KeepAliveExpired;
    assert_eq!(
        bench.gone.iter().map(|g| g.1).collect::<Vec<_>>(),
        [expired]
    );
    assert_eq!(bench.closed.get(&2), Some(&expired));
    assert_eq!(bench.closed.get(&3), Some(&CloseReason::AssociationGone));
    assert!(bench.core.is_open(0) && bench.core.is_open(1));
    assert_eq!(bench.core.deadline_ns(), Some(11_000_000_000));
    bench.pass(4_000);
    assert_eq!(bench.core.association_count(), 0);
    assert_eq!(bench.core.deadline_ns(), None);
}

#[test]
fn a_connection_that_never_connects_is_given_up() {
    let mut bench = Bench::new();
    bench.open(0);
    bench.greet(1);
    bench.association(2);
    bench.pass(5_000);
    assert_eq!(bench.command(3, read(1, 0, 1)), Status::SUCCESS);
    bench.pass(5_000);
    assert_eq!(bench.closed.keys().collect::<Vec<_>>(), [&0, &1]);
}

#[test]
fn losing_the_admin_queue_ends_the_association_and_its_queues() {
    let mut bench = Bench::new();
    bench.association(0);
    bench.step(0, Event::PeerGone);
    assert_eq!(bench.closed.get(&1), Some(&CloseReason::AssociationGone));
    assert_eq!((bench.gone.len(), bench.core.association_count()), (1, 0));
}

#[test]
fn losing_an_io_queue_keeps_the_association_and_frees_the_qid() {
    let mut bench = Bench::new();
    bench.association(0);
    bench.step(1, Event::PeerGone);
    assert!(bench.gone.is_empty());
    bench.greet(1);
    assert_eq!(bench.connect(1, 1, 1, SUBNQN).status(), Status::SUCCESS);
}

#[test]
fn disabling_the_controller_closes_its_io_queues() {
    let mut bench = Bench::new();
    bench.association(0);
    let off = PropertyCommand::set(2, property::CC, CC_ENABLE & !CC_EN).to_sqe();
    assert_eq!(bench.command(0, off), Status::SUCCESS);
    assert_eq!(bench.closed.get(&1), Some(&CloseReason::Disabled));
    assert!(bench.core.is_open(0));
    let status = bench.command(0, identify(1, 0));
    assert_eq!(status, Status::COMMAND_SEQUENCE);
}

#[test]
fn controller_ids_are_not_reused_at_once() {
    let mut bench = Bench::new();
    let first = bench.admin(0, SUBNQN);
    bench.step(0, Event::PeerGone);
    let second = bench.admin(0, SUBNQN);
    assert_ne!(first, second);
}

#[test]
fn a_controller_cannot_be_enabled_with_foreign_entry_sizes() {
    for cc in [
        CC_EN,
        CC_ENABLE | CC_MPS,
        CC_ENABLE | 1 << 11,
        CC_ENABLE | 1 << 4,
    ] {
        let mut bench = Bench::new();
        bench.greet(0);
        bench.connect(0, 0, CNTLID_DYNAMIC, SUBNQN);
        let set = PropertyCommand::set(2, property::CC, cc).to_sqe();
        assert_eq!(bench.command(0, set), Status::SUCCESS);
        let get = PropertyCommand::get(3, property::CSTS, false).to_sqe();
        bench.feed(0, &capsule(get, &[]));
        assert_eq!(
            bench.completion(0).result.get(),
            u64::from(CSTS_FATAL),
            "{cc:#x}"
        );
    }
}

#[test]
fn shutdown_completes_at_once() {
    let mut bench = Bench::new();
    bench.association(0);
    let set = PropertyCommand::set(2, property::CC, CC_ENABLE | 1 << 14).to_sqe();
    assert_eq!(bench.command(0, set), Status::SUCCESS);
    bench.feed(
        0,
        &capsule(PropertyCommand::get(3, property::CSTS, false).to_sqe(), &[]),
    );
    assert_eq!(
        bench.completion(0).result.get() & 0xc,
        u64::from(CSTS_SHUTDOWN_COMPLETE)
    );
}

#[test]
fn more_commands_than_slots_are_a_breach() {
    let mut bench = Bench::new();
    bench.association(0);
    bench.starve = true;
    for cid in 0..64 {
        bench.feed(1, &capsule(read(cid, 0, 1), &[]));
    }
    assert!(bench.terminated.is_empty());
    bench.feed(1, &capsule(Sqe::new(sqe::io::FLUSH, 64, NSID), &[]));
    assert_eq!(bench.terminated.get(&1), Some(&SEQUENCE));
    assert!(bench.core.is_open(0));
}

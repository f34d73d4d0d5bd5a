use super::*;
use crate::bridge::{NEWS_MAX, ORDERS_MAX};
use reactor::sim::{SimConfig, SimWorld};
use reactor::{App, Completion, Driver};
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::units::{Generation, MembershipSeq, StoreId};
use volume::{StoreStatus, VolumeCounters};

const VOLUME: VolumeId = VolumeId([7; 16]);

struct Idle;

impl App for Idle {
    fn on_completion(&mut self, _: &mut dyn Driver, _: Completion) {}

    fn on_turn_end(&mut self, _: &mut dyn Driver) {}

    fn is_finished(&self) -> bool {
        false
    }
}

/// Control over a volume whose device is there, and that metad does (not) want here.
fn holding(wanted: bool) -> Control {
    let mut world = SimWorld::new(SimConfig::seeded(1));
    let node = world.add_node();
    let _app = world.boot(node, |_| Idle);
    let bell = world.on(node, |io| io.doorbell(crate::app::CONTROL_TOKEN).unwrap());
    let orders = Arc::new(Mailbox::new(ORDERS_MAX, bell));
    let text = "name = \"h1\"\ndata_dir = \"state\"\nmetad = [\"127.0.0.1:1\"]\n";
    let identity = Identity {
        uuid: uuid::Uuid::from_u128(1),
        cluster: None,
    };
    let (_news, news) = mpsc::channel(NEWS_MAX);
    let mut control = Control::new(toml::from_str(text).unwrap(), identity, orders, news);
    let held = Held {
        size_blocks: 1024,
        ..Held::new("v", Stage::Here)
    };
    control.held.insert(VOLUME, held);
    want(&mut control, wanted);
    control
}

fn want(control: &mut Control, wanted: bool) {
    let desired = DesiredAttachment {
        volume: VOLUME,
        name: "v".into(),
        size_blocks: 1024,
        wanted,
        ready: true,
        epoch: Some(Epoch(1)),
        newest: Epoch(1),
        slices: Vec::new(),
        generations: VolumeGenerations::default(),
    };
    control.wanted.insert(VOLUME, desired);
}

fn refuse(control: &mut Control) {
    control.on_news(News::DetachRefused {
        volume: VOLUME,
        why: "in use".into(),
    });
}

/// Tasks that control begins are dropped at the end.
fn with_tasks(test: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async { test() });
}

const HOST: HostId = HostId(1);

#[test]
fn a_refused_detach_is_tried_again_and_says_why_meanwhile() {
    with_tasks(|| {
        let mut control = holding(false);
        for _ in 0..2 {
            refuse(&mut control);
            assert_eq!(control.held[&VOLUME].note(), "in use");
            assert!(control.orders.recv().is_none(), "not before a pause");
            control.on_outcome(HOST, Outcome::DetachAgain(VOLUME));
            let order = control.orders.recv();
            assert!(matches!(order, Some(Order::Detach { volume: VOLUME })));
            assert_eq!(control.held[&VOLUME].note(), "in use");
        }
    });
}

#[test]
fn a_volume_that_is_wanted_again_is_not_detached() {
    with_tasks(|| {
        let mut control = holding(false);
        refuse(&mut control);
        want(&mut control, true);
        control.pursue(HOST, VOLUME);
        control.on_outcome(HOST, Outcome::DetachAgain(VOLUME));
        assert!(is_generations(control.orders.recv()));
        assert!(control.orders.recv().is_none());
        assert_eq!(control.held[&VOLUME].note(), "");
    });
}

fn is_generations(order: Option<Order>) -> bool {
    matches!(order, Some(Order::Generations(VOLUME, _)))
}

#[test]
fn a_volume_of_an_earlier_clientd_is_cleared_away_before_it_is_taken_again() {
    with_tasks(|| {
        let mut control = holding(false);
        control.held.clear();
        control.pursue(HOST, VOLUME);
        assert_eq!(control.held[&VOLUME].stage, Stage::LettingGo);
        want(&mut control, true);
        control.pursue(HOST, VOLUME);
        assert_eq!(control.held[&VOLUME].stage, Stage::LettingGo);
    });
}

#[test]
fn a_volume_that_is_granted_when_it_is_not_wanted_any_more_is_detached() {
    for forced in [false, true] {
        let mut control = holding(false);
        control.held.get_mut(&VOLUME).unwrap().stage = Stage::Asking;
        if forced {
            control.wanted.clear();
        }
        control.on_outcome(HOST, Outcome::Granted(VOLUME, Ok(Box::new(granted()))));
        let order = control.orders.recv();
        assert!(matches!(order, Some(Order::Attach { .. })), "{order:?}");
        let order = control.orders.recv();
        let detach = matches!(order, Some(Order::Detach { volume: VOLUME }));
        assert!(detach, "{order:?}");
        assert_eq!(control.held[&VOLUME].health, VolumeHealth::Detaching);
    }
}

/// A forced detach, after which the host is to have the volume again.
fn end_attachment(control: &mut Control, newest: Epoch) {
    let desired = control.wanted.get_mut(&VOLUME).unwrap();
    (desired.epoch, desired.newest) = (None, newest);
}

#[test]
fn a_grant_that_is_late_is_asked_for_again() {
    for (newest, is_over) in [(Epoch(3), true), (Epoch(1), true), (Epoch(0), false)] {
        with_tasks(|| {
            let mut control = holding(true);
            control.held.get_mut(&VOLUME).unwrap().stage = Stage::Asking;
            end_attachment(&mut control, newest);
            control.on_outcome(HOST, Outcome::Granted(VOLUME, Ok(Box::new(granted()))));
            let attach = matches!(control.orders.recv(), Some(Order::Attach { .. }));
            assert_eq!(attach, !is_over, "{newest:?}");
            let stage = control.held[&VOLUME].stage;
            assert_eq!(stage == Stage::Pausing, is_over, "{newest:?}");
        });
    }
}

#[test]
fn a_volume_that_was_taken_away_and_is_wanted_again_is_detached_first() {
    with_tasks(|| {
        let mut control = holding(true);
        control.held.get_mut(&VOLUME).unwrap().epoch = Some(Epoch(1));
        control.pursue(HOST, VOLUME);
        assert!(is_generations(control.orders.recv()), "nothing has ended");
        end_attachment(&mut control, Epoch(1));
        has_snapshot(&mut control, SnapshotState::Pending);
        control.pursue(HOST, VOLUME);
        let is_detach = |order| matches!(order, Some(Order::Detach { volume: VOLUME }));
        assert!(is_detach(control.orders.recv()));
        assert!(control.orders.recv().is_none(), "it completes no snapshot");
        refuse(&mut control);
        control.on_outcome(HOST, Outcome::DetachAgain(VOLUME));
        assert!(is_detach(control.orders.recv()), "until it is not in use");
        control.on_news(News::Detached { volume: VOLUME });
        control.on_outcome(HOST, Outcome::LetGo(VOLUME));
        assert_eq!(control.held[&VOLUME].stage, Stage::Pausing);
    });
}

fn granted() -> control::core::AttachGrant {
    control::core::AttachGrant {
        volume: VOLUME,
        name: "v".into(),
        map: shardmap::map::VolumeMap {
            size_blocks: 1024,
            shape: shardmap::map::Shape {
                shard_blocks: 1024,
                stride: 1,
                replicas: 1,
                layout: shardmap::map::Layout::Ring,
            },
            stores: Vec::new(),
        },
        epoch: Epoch(1),
        seq: shardmap::units::MembershipSeq(1),
        isr: [].into(),
        verified: true,
        held_since: Epoch(1),
        generations: VolumeGenerations::default(),
        min_in_sync: 1,
        slices: Vec::new(),
        view: None,
        rollback: None,
    }
}

#[test]
fn a_volume_that_has_grown_is_told_once() {
    let mut control = holding(true);
    control.wanted.get_mut(&VOLUME).unwrap().size_blocks = 2048;
    for told in [true, false] {
        control.pursue(HOST, VOLUME);
        if told {
            assert!(is_generations(control.orders.recv()));
            let order = control.orders.recv();
            assert!(
                matches!(order, Some(Order::Grow(VOLUME, 2048))),
                "{order:?}"
            );
        }
        assert!(control.orders.recv().is_none());
    }
}

#[test]
fn a_device_that_keeps_its_size_is_told_whenever_nothing_else_is() {
    let mut control = holding(true);
    let why = "the kernel is too old".to_owned();
    control.on_news(News::NotGrown {
        volume: VOLUME,
        why,
    });
    let said = "its device keeps its old size: the kernel is too old";
    assert_eq!(control.held[&VOLUME].note(), said);
    let mut status = VolumeStatus {
        epoch: Epoch(1),
        seq: MembershipSeq(1),
        isr: [].into(),
        generations: VolumeGenerations::default(),
        serving: true,
        regions_to_reconcile: 0,
        moves: 0,
        stores: BTreeMap::new(),
        counters: VolumeCounters::default(),
    };
    let away = StoreStatus {
        state: StoreState::Out,
        incarnation: None,
        dirty_blocks: 0,
        outstanding: 0,
    };
    for (is_away, expected) in [(false, true), (true, false), (false, true)] {
        status.stores = is_away.then_some((StoreId(1), away)).into_iter().collect();
        control.on_outcome(HOST, Outcome::Status(VOLUME, Box::new(status.clone())));
        assert_eq!(control.held[&VOLUME].note() == said, expected);
    }
}

/// metad has one snapshot, which is (not) complete.
fn has_snapshot(control: &mut Control, state: SnapshotState) -> VolumeGenerations {
    let generations = VolumeGenerations {
        head: Generation(2),
        snapshots: [(Generation(1), state)].into(),
        hold: false,
    };
    let desired = control.wanted.get_mut(&VOLUME).unwrap();
    desired.generations.clone_from(&generations);
    generations
}

#[test]
fn a_volume_is_told_of_snapshots_while_it_is_here_and_again_while_one_is_pending() {
    let mut control = holding(true);
    let told = |control: &mut Control| {
        control.pursue(HOST, VOLUME);
        match control.orders.recv() {
            None => None,
            Some(Order::Generations(_, generations)) => Some(generations),
            Some(order) => panic!("{order:?}"),
        }
    };
    assert_eq!(told(&mut control), Some(VolumeGenerations::default()));
    assert_eq!(told(&mut control), None, "it knows");
    let pending = has_snapshot(&mut control, SnapshotState::Pending);
    for _ in 0..2 {
        assert_eq!(told(&mut control), Some(pending.clone()));
    }
    let complete = has_snapshot(&mut control, SnapshotState::Complete);
    assert_eq!(told(&mut control), Some(complete));
    assert_eq!(told(&mut control), None);
    control.held.get_mut(&VOLUME).unwrap().stage = Stage::Pausing;
    has_snapshot(&mut control, SnapshotState::Pending);
    assert_eq!(told(&mut control), None, "the next grant says it");
}

/// What it holds for its operations may wait for a store that can be given only snapshots that there are.
#[test]
fn a_volume_that_is_to_leave_is_told_of_snapshots_too() {
    let mut control = holding(false);
    let now = has_snapshot(&mut control, SnapshotState::Complete);
    control.pursue(HOST, VOLUME);
    assert!(matches!(control.orders.recv(), Some(Order::Detach { .. })));
    let Some(Order::Generations(_, told)) = control.orders.recv() else {
        panic!("it is not told")
    };
    assert_eq!(told, now);
}

use super::*;
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::units::{Generation, MembershipSeq};
use volume::{StoreStatus, VolumeCounters};

fn id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

fn ms(n: u64) -> Moment {
    Moment(0).plus_ms(n)
}

fn desired(volumes: &[(u8, u64)]) -> Vec<DesiredMaintenance> {
    let one = |&(n, due_index): &(u8, u64)| DesiredMaintenance {
        volume: id(n),
        name: format!("v{n}"),
        due_index,
        generations: VolumeGenerations::default(),
        rollback: None,
    };
    volumes.iter().map(one).collect()
}

/// Two stores, the second of which is as given.
fn status(state: StoreState, moves: u64) -> VolumeStatus {
    let store = |state| StoreStatus {
        state,
        incarnation: None,
        dirty_blocks: 0,
        outstanding: 0,
    };
    let first = (StoreId(1), store(StoreState::InSync));
    let second = (StoreId(2), store(state));
    VolumeStatus {
        epoch: Epoch(5),
        seq: MembershipSeq(1),
        isr: [StoreId(1)].into(),
        serving: true,
        regions_to_reconcile: 0,
        moves,
        generations: VolumeGenerations::default(),
        stores: [first, second].into(),
        counters: VolumeCounters::default(),
    }
}

/// Volume 1 is here since 0 ms, volume 2 waits.
fn working() -> Maintenance {
    let mut it = Maintenance::default();
    let step = it.on_desire(ms(0), desired(&[(1, 7), (2, 7)]));
    assert_eq!(step, Some(Step::Ask(id(1))));
    assert_eq!(it.on_desire(ms(0), desired(&[(1, 7), (2, 7)])), None);
    let step = it.on_granted(ms(0), id(1), (Epoch(5), None));
    assert_eq!(step, Some(Step::Host(id(1))));
    it
}

#[test]
fn a_volume_is_let_go_when_it_is_whole_and_then_the_next_one_is_taken() {
    let mut it = working();
    let copying = status(StoreState::Resilvering, 9);
    assert_eq!(it.on_status(ms(10), id(1), Some(&copying)), None);
    let whole = status(StoreState::InSync, 0);
    let step = it.on_status(ms(20), id(1), Some(&whole));
    assert_eq!(step, Some(Step::LetGo(id(1))));
    let step = it.on_ended(ms(30), id(1), &Ending::LetGo);
    assert_eq!(step, Some(Step::TellGone(id(1), Epoch(5))));
    assert_eq!(it.on_told(ms(40), id(1)), Some(Step::Ask(id(2))));
}

#[test]
fn a_volume_that_does_not_move_makes_room_and_comes_back_after_a_pause() {
    let mut it = working();
    let still = status(StoreState::Out, 0);
    assert_eq!(it.on_status(ms(5_000), id(1), Some(&still)), None);
    let at = 5_000 + STILL_MS;
    assert_eq!(it.on_status(ms(at - 1), id(1), Some(&still)), None);
    let step = it.on_status(ms(at), id(1), Some(&still));
    assert_eq!(step, Some(Step::LetGo(id(1))));
    it.on_ended(ms(at), id(1), &Ending::LetGo);
    assert_eq!(it.on_told(ms(at), id(1)), Some(Step::Ask(id(2))));
    let refused = it.on_refused(ms(at), id(2), "no store reports");
    assert_eq!(refused, None, "both pause");
    assert_eq!(it.next_deadline(), Some(ms(at + PAUSE_MS.0)));
    let step = it.on_time(ms(at + PAUSE_MS.0));
    assert_eq!(step, Some(Step::Ask(id(1))));
    let notes: Vec<_> = it.notes().collect();
    assert_eq!(
        notes,
        [
            (id(1), "some store is not there"),
            (id(2), "no store reports")
        ]
    );
}

#[test]
fn whatever_moves_is_left_alone_for_as_long_as_it_takes() {
    let mut it = working();
    for moves in 1..=100 {
        let now = ms(moves * (STILL_MS - 1));
        let copying = status(StoreState::Resilvering, moves);
        assert_eq!(it.on_status(now, id(1), Some(&copying)), None);
    }
}

#[test]
fn pauses_grow_and_a_change_ends_them() {
    let mut it = Maintenance::default();
    it.on_desire(ms(0), desired(&[(1, 7)]));
    let mut now = 0;
    for pause in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        assert_eq!(it.on_refused(ms(now), id(1), "no"), None);
        now += pause;
        assert_eq!(it.on_time(ms(now - 1)), None);
        assert_eq!(it.on_time(ms(now)), Some(Step::Ask(id(1))));
    }
    it.on_refused(ms(now), id(1), "no");
    assert_eq!(it.on_desire(ms(now), desired(&[(1, 7)])), None, "no news");
    let step = it.on_desire(ms(now), desired(&[(1, 8)]));
    assert_eq!(step, Some(Step::Ask(id(1))));
}

#[test]
fn a_volume_that_is_not_wanted_any_more_is_let_go_whatever_its_stage() {
    let mut it = working();
    let step = it.on_desire(ms(1), desired(&[(2, 7)]));
    assert_eq!(step, Some(Step::LetGo(id(1))));
    assert_eq!(it.on_desire(ms(1), desired(&[(2, 7)])), None, "once");
    let step = it.on_ended(ms(2), id(1), &Ending::LetGo);
    assert_eq!(step, Some(Step::TellGone(id(1), Epoch(5))));
    assert_eq!(it.on_told(ms(2), id(1)), Some(Step::Ask(id(2))));
    assert_eq!(it.on_desire(ms(3), Vec::new()), None, "metad was asked");
    let step = it.on_granted(ms(4), id(2), (Epoch(6), None));
    assert_eq!(step, Some(Step::TellGone(id(2), Epoch(6))));
}

#[test]
fn whoever_is_fenced_goes_without_a_word() {
    let mut it = working();
    let step = it.on_ended(ms(1), id(1), &Ending::Fenced);
    assert_eq!(step, Some(Step::Ask(id(2))));
}

#[test]
fn an_end_that_was_not_heard_of_is_seen_at_the_next_look() {
    let mut it = working();
    assert_eq!(it.next_deadline(), Some(ms(LOOK_MS)));
    assert_eq!(it.on_time(ms(LOOK_MS)), Some(Step::Look(id(1))));
    assert_eq!(it.on_time(ms(LOOK_MS)), None);
    let step = it.on_status(ms(LOOK_MS), id(1), None);
    assert_eq!(step, Some(Step::TellGone(id(1), Epoch(5))));
}

#[test]
fn a_volume_stays_until_metad_has_recorded_its_snapshot() {
    let mut it = working();
    let whole = status(StoreState::InSync, 0);
    let with = |state| {
        let mut wanted = desired(&[(1, 8)]);
        wanted[0].generations = VolumeGenerations {
            head: Generation(2),
            snapshots: [(Generation(1), state)].into(),
            hold: false,
        };
        wanted
    };
    assert_eq!(it.on_desire(ms(1), with(SnapshotState::Pending)), None);
    assert_eq!(it.on_status(ms(2), id(1), Some(&whole)), None);
    assert_eq!(it.on_desire(ms(3), with(SnapshotState::Complete)), None);
    let step = it.on_status(ms(4), id(1), Some(&whole));
    assert_eq!(step, Some(Step::LetGo(id(1))));
}

#[test]
fn a_volume_that_is_to_be_rolled_back_is_taken_anew_and_stays_until_metad_has_recorded_that() {
    let mut it = working();
    let rolled_back = |to| {
        let mut wanted = desired(&[(1, 8)]);
        wanted[0].rollback = Some(Rollback {
            to: Generation(to),
            before: Generation(4),
        });
        wanted
    };
    let step = it.on_desire(ms(1), rolled_back(1));
    assert_eq!(step, Some(Step::LetGo(id(1))));
    it.on_ended(ms(2), id(1), &Ending::LetGo);
    it.on_told(ms(2), id(1));
    let again = ms(2 + PAUSE_MS.0);
    assert_eq!(it.on_time(again), Some(Step::Ask(id(1))));
    let rollback = rolled_back(1)[0].rollback;
    let step = it.on_granted(again, id(1), (Epoch(6), rollback));
    assert_eq!(step, Some(Step::Host(id(1))));
    let whole = status(StoreState::InSync, 0);
    let mut now = again;
    for percent in 0..3 {
        now = now.plus_ms(STILL_MS - 1);
        it.on_rolling(now, id(1), percent);
        assert_eq!(it.on_status(now, id(1), Some(&whole)), None);
    }
    assert_eq!(it.notes().next(), Some((id(1), "rolling back, 2 %")));
    assert_eq!(it.on_desire(now, rolled_back(1)), None);
    let step = it.on_desire(now, desired(&[(1, 8)]));
    assert_eq!(step, Some(Step::LetGo(id(1))), "recorded");
}

#[test]
fn a_volume_is_rolled_back_for_what_was_granted_and_not_for_what_was_wanted() {
    let mut it = Maintenance::default();
    let mut wanted = desired(&[(1, 7)]);
    wanted[0].rollback = Some(Rollback {
        to: Generation(1),
        before: Generation(4),
    });
    it.on_desire(ms(0), wanted);
    let step = it.on_granted(ms(1), id(1), (Epoch(5), None));
    assert_eq!(step, Some(Step::Host(id(1))));
    let whole = status(StoreState::InSync, 0);
    let step = it.on_status(ms(2), id(1), Some(&whole));
    assert_eq!(step, Some(Step::LetGo(id(1))), "there is none to wait for");
}

#[test]
fn a_volume_whose_detach_does_not_end_makes_room_as_well() {
    let mut it = working();
    let whole = status(StoreState::InSync, 0);
    let step = it.on_status(ms(20), id(1), Some(&whole));
    assert_eq!(step, Some(Step::LetGo(id(1))));
    let leaving = |it: &mut Maintenance, now| it.on_status(ms(now), id(1), Some(&whole));
    assert_eq!(leaving(&mut it, 19 + STILL_MS), None);
    assert_eq!(leaving(&mut it, 20 + STILL_MS), Some(Step::Abandon(id(1))));
    assert_eq!(leaving(&mut it, 21 + STILL_MS), None, "once in a while");
    let ended = Ending::Failed("it could not be detached in order".into());
    let step = it.on_ended(ms(22 + STILL_MS), id(1), &ended);
    assert_eq!(step, Some(Step::TellGone(id(1), Epoch(5))));
}

use super::*;
use shardmap::map::Layout;

fn ms(ms: u64) -> Moment {
    Moment(0).plus_ms(ms)
}

fn rot(lba: u64) -> Rot {
    Rot {
        nsid: Nsid(10),
        volume: VolumeId([7; 16]),
        generation: Generation(3),
        lba: Lba(lba),
    }
}

fn place(lba: u64) -> Place {
    Place {
        store_index: 0,
        nsid: Nsid(10),
        generation: Generation(3),
        lba: Lba(lba),
    }
}

fn replica(position: u16) -> Replica {
    Replica {
        nsid: Nsid(10 + u32::from(position)),
        position,
        address: SocketAddr::from(([10, 0, 0, 1], 4420 + position)),
        subsystem_nqn: format!("s{position}"),
    }
}

/// Five stores, three replicas of each shard; ours is the first position.
fn replicas() -> Replicas {
    Replicas {
        shape: Shape {
            shard_blocks: 1024,
            stride: 5,
            replicas: 3,
            layout: Layout::Ring,
        },
        slices: (0..5).map(replica).collect(),
    }
}

/// A machine that fetches a block from the first of the others.
fn fetching() -> Healing {
    let mut it = Healing::default();
    assert!(it.on_found(ms(0), 0, &rot(5), Finder::Scrub));
    assert_eq!(it.on_time(ms(0)), Some(Step::Look(place(5))));
    let step = it.on_looked(ms(1), Looked::Spoiled);
    assert_eq!(step, Some(Step::Ask(rot(5).volume)));
    let step = it.on_replicas(ms(2), rot(5).volume, Some(replicas()));
    assert_eq!(step, Some(Step::Fetch(place(5), replica(1))));
    it
}

#[test]
fn a_block_is_looked_at_fetched_offered_and_struck() {
    let mut it = fetching();
    assert!(it.on_found(ms(3), 0, &rot(6), Finder::Scrub));
    assert_eq!(it.on_time(ms(3)), None, "one at a time");
    let step = it.on_fetched(ms(4), Fetched::Here);
    assert_eq!(step, Some(Step::Offer(place(5))));
    assert_eq!(it.findings_of(0), 2, "not before it is durable");
    assert_eq!(it.on_offered(ms(5), Some(Healed::Written)), None, "a pause");
    assert_eq!(it.findings_of(0), 1);
    let ends = it.take_ends();
    assert_eq!(ends, [(place(5), rot(5).volume, End::Healed)]);
    assert_eq!(it.next_deadline(), Some(ms(5 + PACE_MS)));
    assert_eq!(it.on_time(ms(5 + PACE_MS)), Some(Step::Look(place(6))));
    // What metad said a moment ago is still good.
    let step = it.on_looked(ms(11), Looked::Spoiled);
    assert_eq!(step, Some(Step::Fetch(place(6), replica(1))));
}

#[test]
fn every_replica_of_the_shard_is_tried_and_no_other_slice() {
    let mut it = fetching();
    it.on_fetched(ms(3), Fetched::Here);
    let step = it.on_offered(ms(4), Some(Healed::Other));
    assert_eq!(step, Some(Step::Fetch(place(5), replica(2))));
    assert_eq!(it.on_fetched(ms(5), Fetched::Refused), None);
    let why = "no other replica has what was written there";
    let ends = it.take_ends();
    assert_eq!(ends, [(place(5), rot(5).volume, End::Stays(why))]);
    let c = it.counters();
    assert_eq!((c.other_content, c.unread, c.failed), (1, 1, 1));
    // It stays, is tried again later and later, and that is told once.
    assert_eq!(it.findings_of(0), 1);
    assert!(!it.on_found(ms(6), 0, &rot(5), Finder::Scrub), "no news");
    let mut at = 5;
    for pause in [5_000, 10_000, 20_000, 40_000] {
        at += pause;
        assert_eq!(it.next_deadline(), Some(ms(at)));
        assert_eq!(it.on_time(ms(at - 1)), None);
        assert_eq!(it.on_time(ms(at)), Some(Step::Look(place(5))));
        let mut step = it.on_looked(ms(at), Looked::Spoiled);
        if let Some(Step::Ask(volume)) = step {
            step = it.on_replicas(ms(at), volume, Some(replicas()));
        }
        assert!(matches!(step, Some(Step::Fetch(..))));
        it.on_fetched(ms(at), Fetched::Here);
        it.on_offered(ms(at), Some(Healed::Other));
        it.on_fetched(ms(at), Fetched::Away);
    }
    assert_eq!(it.take_ends(), []);
}

#[test]
fn what_is_sound_or_gone_is_no_finding_any_more() {
    for (looked, end) in [(Looked::Sound, End::Sound), (Looked::Gone, End::Gone)] {
        let mut it = Healing::default();
        it.on_found(ms(0), 0, &rot(5), Finder::Scrub);
        it.on_time(ms(0));
        assert_eq!(it.on_looked(ms(1), looked), None);
        assert_eq!(it.take_ends(), [(place(5), rot(5).volume, end)]);
        assert_eq!((it.findings_of(0), it.next_deadline()), (0, None));
    }
    let mut it = fetching();
    it.on_fetched(ms(3), Fetched::Here);
    it.on_offered(ms(4), Some(Healed::Gone));
    assert_eq!(it.findings_of(0), 0);
}

#[test]
fn what_cannot_be_now_stays() {
    let mut it = Healing::default();
    it.on_found(ms(0), 0, &rot(5), Finder::Scrub);
    it.on_time(ms(0));
    assert_eq!(it.on_looked(ms(1), Looked::Later), None);
    assert_eq!(it.next_deadline(), Some(ms(5_001)));
    // metad does not answer at all, or says that it does not know.
    it.on_time(ms(5_001));
    let step = it.on_looked(ms(5_001), Looked::Spoiled);
    assert!(matches!(step, Some(Step::Ask(_))));
    let give_up = it.next_deadline().unwrap();
    assert_eq!(give_up, ms(5_001 + ANSWER_MS));
    assert_eq!(it.on_time(give_up), None);
    assert!(!it.is_working());
    assert_eq!(
        it.on_replicas(ms(90_000), rot(5).volume, Some(replicas())),
        None,
        "too late"
    );
    it.on_time(ms(90_000));
    it.on_looked(ms(90_000), Looked::Spoiled);
    assert_eq!(it.on_replicas(ms(90_001), rot(5).volume, None), None);
    // The store cannot say, or cannot write.
    for healed in [Some(Healed::Unknown), None] {
        let mut it = fetching();
        it.on_fetched(ms(3), Fetched::Here);
        assert_eq!(it.on_offered(ms(4), healed), None);
        assert_eq!(it.findings_of(0), 1);
    }
}

#[test]
fn what_a_host_has_read_is_left_to_it_for_a_while() {
    let mut it = Healing::default();
    assert!(it.on_found(ms(0), 0, &rot(5), Finder::Read));
    assert!(!it.on_found(ms(1), 0, &rot(5), Finder::Read));
    assert_eq!(it.on_time(ms(LEFT_TO_HOST_MS - 1)), None);
    let step = it.on_time(ms(LEFT_TO_HOST_MS));
    assert_eq!(step, Some(Step::Look(place(5))));
}

#[test]
fn findings_are_limited_per_store() {
    let mut it = Healing::default();
    let all = FINDINGS_MAX as u64;
    assert!((0..all).all(|lba| it.on_found(ms(0), 0, &rot(lba), Finder::Scrub)));
    assert!(!it.on_found(ms(0), 0, &rot(all), Finder::Scrub));
    assert_eq!(it.counters().not_remembered, 1);
    assert!(it.on_found(ms(0), 1, &rot(all), Finder::Scrub));
    assert_eq!((it.findings_of(0), it.findings_of(1)), (FINDINGS_MAX, 1));
}

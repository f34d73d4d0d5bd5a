//! Snapshots of several volumes are of one moment (ADR 0012).

use super::client::Client;
use super::lab::{PATIENCE, run};
use super::maintenance::{Cluster, VOLUME};
use control::api::{Filter, SnapshotView};
use control::client::MetadClient;
use shardmap::units::{BlockRange, Blocks, Generation, Lba, VolumeId};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use store::Examined;

const SECOND: VolumeId = VolumeId([8; 16]);
/// Nobody has it.
const IDLE: VolumeId = VolumeId([9; 16]);
const GROUPS: u32 = 8;

async fn with_volumes(dir: &Path) -> Cluster {
    let it = Cluster::begin(dir, "").await;
    it.create_volume(SECOND, "w").await;
    it.create_volume(IDLE, "x").await;
    it
}

/// Follows all snapshots until they are as wanted.
async fn snapshots_until(metad: &MetadClient, done: impl Fn(&[SnapshotView]) -> bool) {
    let follow = async {
        let mut filter = Filter::default();
        loop {
            let seen = metad.snapshots(filter.clone()).await.unwrap();
            if done(&seen.list) {
                return;
            }
            filter.version = seen.version;
        }
    };
    let followed = tokio::time::timeout(PATIENCE, follow).await;
    followed.expect("the snapshots in time");
}

/// Version of the first block in a generation of a volume.
fn version_in(examined: &Examined, volume: VolumeId, generation: u32) -> u64 {
    let slice = examined.slices().find(|s| s.spec.volume == volume).unwrap();
    let mut block = [0; 4096];
    let range = BlockRange::new(Lba(0), Blocks(1)).unwrap();
    let generation = Generation(generation);
    let read = examined.read_in(slice.spec.nsid, generation, range, &mut block);
    read.unwrap();
    u64::from_le_bytes(block[..8].try_into().unwrap()) & 0xffff
}

/// Every write begins when the one before, on the other volume, has been acknowledged.
#[test]
fn what_was_acknowledged_before_something_in_it_began_is_in_it_whichever_volume_it_is_on() {
    run(async |dir| {
        let mut it = with_volumes(dir).await;
        let metad = it.metad.client.clone();
        let mut first = Client::attach(&it.metad, VOLUME, "h1").await;
        let mut second = Client::attach(&it.metad, SECOND, "h2").await;
        first.follow_snapshots();
        second.follow_snapshots();
        let over = Rc::new(Cell::new(false));
        let ends = Rc::clone(&over);
        let user = tokio::task::spawn_local(async move {
            for number in 1..=GROUPS {
                // The last ones with a volume that a storaged has to take for it.
                let mut volumes = vec![VOLUME, SECOND];
                volumes.extend(Some(IDLE).filter(|_| number + 2 > GROUPS));
                let (count, name) = (volumes.len(), format!("s{number}"));
                let volumes = volumes.into_iter().collect();
                metad.create_snapshot(volumes, name.clone()).await.unwrap();
                let whole = |all: &[SnapshotView]| {
                    let ours = all.iter().filter(|s| s.name == name);
                    let (pending, whole): (Vec<_>, Vec<_>) = ours.partition(|s| s.pending);
                    assert!(pending.is_empty() || whole.is_empty(), "all or none");
                    assert_eq!(pending.len() + whole.len(), count, "{name} is given up");
                    pending.is_empty()
                };
                snapshots_until(&metad, whole).await;
            }
            ends.set(true);
        });
        let (mut version, mut slowest) = (0, Duration::ZERO);
        while !over.get() {
            assert!(!user.is_finished(), "it has failed");
            version += 1;
            for client in [&mut first, &mut second] {
                let began = Instant::now();
                client.write(0, version).await;
                slowest = slowest.max(began.elapsed());
            }
        }
        user.await.unwrap();
        println!("{version} pairs of writes, the slowest took {slowest:?}");
        first.detach().await;
        second.detach().await;
        for (number, examined) in it.stop() {
            for generation in 1..=GROUPS {
                let [a, b] = [VOLUME, SECOND].map(|v| version_in(&examined, v, generation));
                assert!(
                    b <= a && a <= b + 1,
                    "store {number}, group {generation}: {a} and {b} of {version}"
                );
            }
        }
    });
}

#[test]
fn a_holder_that_does_not_hear_costs_the_others_no_more_than_the_deadline() {
    run(async |dir| {
        let mut it = with_volumes(dir).await;
        let metad = it.metad.client.clone();
        let mut first = Client::attach(&it.metad, VOLUME, "h1").await;
        let mut deaf = Client::attach(&it.metad, SECOND, "h2").await;
        first.follow_snapshots();
        first.write(0, 1).await;
        deaf.write(0, 1).await;
        let volumes = [VOLUME, SECOND].into();
        metad.create_snapshot(volumes, "s".into()).await.unwrap();
        let mut slowest = Duration::ZERO;
        let began = Instant::now();
        for version in 2.. {
            let asked = Instant::now();
            first.write(0, version).await;
            slowest = slowest.max(asked.elapsed());
            if metad
                .snapshots(Filter::default())
                .await
                .unwrap()
                .list
                .is_empty()
            {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "it is not given up");
        }
        println!("the slowest write took {slowest:?}");
        assert!(
            slowest > Duration::from_secs(2),
            "{slowest:?}: nothing waited"
        );
        let events = metad.events(0, false).await.unwrap();
        let why = events
            .iter()
            .find(|e| e.text.contains("in vain for [\"w\"]"));
        assert!(why.is_some(), "{events:#?}");
        deaf.write(0, 2).await;
        deaf.detach().await; // a storaged ends what it has begun
        metad
            .create_snapshot([VOLUME, IDLE].into(), "s".into())
            .await
            .unwrap();
        let whole = |all: &[SnapshotView]| all.len() == 2 && all.iter().all(|s| !s.pending);
        snapshots_until(&metad, whole).await;
        first.detach().await;
        it.stop();
    });
}

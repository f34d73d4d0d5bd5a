//! A clone of a snapshot on three storageds.

use super::client::Client;
use super::lab::run;
use super::maintenance::{CHUNKS, Cluster, VOLUME, check_chunks, used_bytes};
use control::api::{StoreView, VolumeView};
use control::core::{Origin, Phase};
use shardmap::units::{Generation, StoreId, VolumeId};
use std::collections::BTreeMap;

const CLONE: VolumeId = VolumeId([9; 16]);

/// A volume that was written in part, its only snapshot, and a clone of that.
async fn with_clone(dir: &std::path::Path) -> Cluster {
    let mut it = Cluster::begin(dir, "").await;
    let metad = it.metad.client.clone();
    let mut host = Client::attach(&it.metad, VOLUME, "h1").await;
    it.write(&mut host, 0..CHUNKS / 2, 1).await;
    host.detach().await;
    metad
        .create_snapshot([VOLUME].into(), "mon".into())
        .await
        .unwrap();
    let complete = |v: &VolumeView| v.pending_snapshot.is_empty() && v.maintained_by.is_empty();
    it.metad.one_until("v", "complete", complete).await;
    let origin = Origin {
        volume: VOLUME,
        generation: Generation(1),
    };
    metad.create_clone(CLONE, "c".into(), origin).await.unwrap();
    let ready = |v: &VolumeView| v.phase == Phase::Ready;
    let view = it.metad.one_until("c", "ready", ready).await;
    assert_eq!(view.clone_of, "v@mon");
    it
}

async fn write(
    client: &mut Client,
    written: &mut BTreeMap<u64, u64>,
    chunks: impl Iterator<Item = u64>,
    version: u64,
) {
    for chunk in chunks {
        client.write(chunk, version).await;
        written.insert(chunk, version);
    }
}

/// What the stores have of both volumes, when all servers have stopped.
fn check(it: &mut Cluster, cloned: &BTreeMap<u64, u64>) {
    let written = it.written.clone();
    let mut used = Vec::new();
    for (number, examined) in it.stop() {
        let slices: Vec<_> = examined.slices().collect();
        let [of, clone] = &slices[..] else {
            panic!("{slices:?}")
        };
        assert_eq!((of.spec.volume, clone.spec.volume), (VOLUME, CLONE));
        assert!(!of.incomplete && !clone.incomplete, "{slices:?}");
        assert_eq!(
            (of.stamp.in_sync, clone.stamp.in_sync),
            (7, 7),
            "store {number}"
        );
        check_chunks(&examined, of.spec.nsid, (number, 0), &written);
        check_chunks(&examined, clone.spec.nsid, (number, 0), cloned);
        used.push(clone.used_blocks);
    }
    let own = cloned.values().filter(|version| **version > 1).count();
    assert_eq!(
        used,
        [own as u64 * 32; 3],
        "a copy of the clone has what it wrote, and no more"
    );
}

#[test]
fn a_clone_and_its_volume_go_their_ways_also_on_a_store_that_was_lost() {
    run(async |dir| {
        let mut it = with_clone(dir).await;
        let mut cloned = it.written.clone();
        // Its name goes, what it shows stays.
        let metad = it.metad.client.clone();
        metad.delete_snapshot(VOLUME, Generation(1)).await.unwrap();
        let mut host = Client::attach(&it.metad, VOLUME, "h2").await;
        let mut other = Client::attach(&it.metad, CLONE, "h3").await;
        it.write(&mut host, (0..CHUNKS).step_by(3), 2).await;
        write(&mut other, &mut cloned, (0..CHUNKS).step_by(5), 3).await;
        it.kill(3);
        it.write(&mut host, 0..8, 4).await;
        write(&mut other, &mut cloned, 4..12, 5).await;
        it.blank(3);
        it.start(3);
        host.resilvered(StoreId(3)).await;
        other.resilvered(StoreId(3)).await;
        it.write(&mut host, (0..CHUNKS).step_by(7), 6).await;
        write(&mut other, &mut cloned, (0..CHUNKS).step_by(11), 7).await;
        host.detach().await;
        other.detach().await;
        check(&mut it, &cloned);
    });
}

#[test]
fn with_the_last_clone_goes_what_was_kept_for_it() {
    run(async |dir| {
        let mut it = with_clone(dir).await;
        let metad = it.metad.client.clone();
        let mut host = Client::attach(&it.metad, VOLUME, "h2").await;
        it.write(&mut host, 0..CHUNKS, 2).await;
        host.detach().await;
        let filled = |stores: &[StoreView]| used_bytes(stores) >= 3 * (48 << 20);
        it.metad.stores_until(filled).await;
        metad.delete_snapshot(VOLUME, Generation(1)).await.unwrap();
        let refused = metad.delete_volume(VOLUME, true).await.unwrap_err();
        assert!(refused.to_string().contains("has clones"), "{refused}");
        metad.delete_volume(CLONE, false).await.unwrap();
        let back = |stores: &[StoreView]| used_bytes(stores) == 3 * (32 << 20);
        it.metad.stores_until(back).await;
        for (number, examined) in it.stop() {
            let slices: Vec<_> = examined.slices().collect();
            assert_eq!(
                (slices.len(), slices[0].snapshot_count),
                (1, 0),
                "store {number}"
            );
        }
    });
}

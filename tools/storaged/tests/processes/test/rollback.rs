//! A volume is rolled back to a snapshot by a storaged (ADR 0015).

use super::client::Client;
use super::lab::run;
use super::maintenance::{CHUNKS, Cluster, VOLUME};
use control::api::VolumeView;
use control::core::Phase;
use shardmap::units::Generation;
use std::collections::BTreeMap;

const MON: Generation = Generation(1);

/// A detached volume that was written, its snapshot [`MON`], and what was there when that was made; since
/// then chunks were written anew and for the first time.
async fn written_since(dir: &std::path::Path) -> (Cluster, BTreeMap<u64, u64>) {
    let mut it = Cluster::begin(dir, "").await;
    let mut host = Client::attach(&it.metad, VOLUME, "h1").await;
    it.write(&mut host, 0..CHUNKS / 2, 1).await;
    host.detach().await;
    let monday = it.written.clone();
    let metad = it.metad.client.clone();
    metad
        .create_snapshot([VOLUME].into(), "mon".into())
        .await
        .unwrap();
    it.metad.one_until("v", "complete", is_idle).await;
    let mut host = Client::attach(&it.metad, VOLUME, "h2").await;
    it.write(&mut host, (0..CHUNKS).step_by(3), 2).await;
    host.detach().await;
    it.metad.one_until("v", "whole", is_idle).await;
    (it, monday)
}

fn is_idle(v: &VolumeView) -> bool {
    let whole = v.slices.iter().all(|s| s.in_sync);
    whole && v.pending_snapshot.is_empty() && v.maintained_by.is_empty()
}

fn is_rolled_back(v: &VolumeView) -> bool {
    v.phase == Phase::Ready && v.rolls_back_to.is_empty()
}

/// Begins it; what is there is kept.
async fn roll_back(it: &Cluster) -> VolumeView {
    let metad = it.metad.client.clone();
    metad.roll_back(VOLUME, MON, "bad".into()).await.unwrap();
    let begun = |v: &VolumeView| v.rolls_back_to == "mon" || is_rolled_back(v);
    it.metad.one_until("v", "rolled back", begun).await
}

#[test]
fn a_volume_shows_what_the_snapshot_shows_also_on_a_store_that_was_down() {
    run(async |dir| {
        let (mut it, monday) = written_since(dir).await;
        let bad = it.written.clone();
        it.kill(3);
        roll_back(&it).await;
        let view = it.metad.one_until("v", "ready", is_rolled_back).await;
        assert_eq!(view.snapshots, 2);
        it.start(3);
        it.metad.one_until("v", "whole", is_idle).await;
        it.check_generations(&[(0, monday.clone()), (1, monday), (2, bad)]);
    });
}

#[test]
fn another_storaged_or_the_same_one_goes_on_when_the_one_at_work_has_died() {
    run(async |dir| {
        let (mut it, monday) = written_since(dir).await;
        let bad = it.written.clone();
        let at_work = roll_back(&it).await.maintained_by;
        let number = at_work.strip_prefix('s').map(|n| n.parse().unwrap());
        if let Some(number) = number {
            it.kill(number);
            it.start(number);
        }
        it.metad.one_until("v", "ready", is_rolled_back).await;
        let mut host = Client::attach(&it.metad, VOLUME, "h3").await;
        it.written.clone_from(&monday);
        it.write(&mut host, 5..9, 3).await;
        host.detach().await;
        it.metad.one_until("v", "whole", is_idle).await;
        let now = it.written.clone();
        it.check_generations(&[(0, now), (1, monday), (2, bad)]);
    });
}

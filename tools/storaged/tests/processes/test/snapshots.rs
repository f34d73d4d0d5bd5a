//! Snapshots of a volume on three storageds.

use super::client::Client;
use super::lab::run;
use super::maintenance::{CHUNKS, Cluster, VOLUME};
use shardmap::units::StoreId;

#[test]
fn a_snapshot_is_the_same_on_every_store_also_on_one_that_was_away() {
    run(async |dir| {
        let mut it = Cluster::begin(dir, "").await;
        let mut client = Client::attach(&it.metad, VOLUME, "h1").await;
        it.write(&mut client, 0..CHUNKS / 2, 1).await;
        let first = it.written.clone();
        client.snapshot(1).await;
        it.write(&mut client, CHUNKS / 4..CHUNKS / 4 * 3, 2).await;
        it.kill(3);
        it.write(&mut client, 0..8, 3).await;
        let second = it.written.clone();
        client.snapshot(2).await;
        it.write(&mut client, (0..CHUNKS).step_by(5), 4).await;
        it.start(3);
        client.resilvered(StoreId(3)).await;
        it.write(&mut client, (0..CHUNKS).step_by(7), 5).await;
        client.detach().await;
        let head = it.written.clone();
        it.check_generations(&[(1, first), (2, second), (0, head)]);
    });
}

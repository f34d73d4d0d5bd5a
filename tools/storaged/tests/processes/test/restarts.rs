//! storaged after others were restarted: it waits for what its predecessor still has, and tells a metad that was
//! restored from a backup what that does not know any more.

use super::lab::{Metad, Storaged, run};
use control::api::{Filter, Liveness, StoreHealth, StoreView};
use control::core::{Command, NewServer, NewStore};
use std::fs::File;
use std::time::Duration;

const STORE_BYTES: u64 = 64 << 20;

/// The only store is served, as its storaged says.
fn is_served(stores: &[StoreView]) -> bool {
    stores.iter().any(|store| {
        let report = store.report.as_ref();
        let sound = report.is_some_and(|r| r.health == StoreHealth::Online);
        sound && store.liveness == Liveness::Online
    })
}

#[test]
fn a_store_that_a_predecessor_still_has_is_waited_for() {
    run(async |dir| {
        let metad = Metad::begin(dir).await;
        let path = dir.join("s1.img");
        let storaged = Storaged::with_store(dir, &metad, STORE_BYTES);
        metad.stores_until(is_served).await;
        storaged.stop();
        metad.stores_until(|stores| !is_served(stores)).await;

        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        std::fs::remove_file(dir.join("s1.log")).unwrap();
        let storaged = Storaged::with_store(dir, &metad, STORE_BYTES);
        storaged
            .log_until("store in use by somebody else; waiting")
            .await;
        // Time for some tries: one that did not wait would have said by now that it cannot open the store.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let log = storaged.log();
        assert_eq!(log.matches("; waiting").count(), 1, "said once:\n{log}");
        assert!(log.contains(&path.display().to_string()), "{log}");
        assert!(!log.contains("store not opened"), "{log}");

        drop(held);
        metad.stores_until(is_served).await;
    });
}

#[test]
fn a_restored_metad_hears_again_of_servers_and_stores() {
    run(async |dir| {
        let metad = Metad::begin(dir).await;
        let client = &metad.client;
        let cluster = client.cluster().await.unwrap().uuid;
        let _storaged = Storaged::with_store(dir, &metad, STORE_BYTES);
        let store = metad.stores_until(is_served).await.remove(0);
        let server = client.servers(Filter::default()).await.unwrap().list;
        let server = server.into_iter().next().unwrap();

        // What a backup says that was made before the server moved and the store grew.
        let old = NewServer {
            cluster: Some(cluster),
            uuid: server.uuid,
            name: server.name.clone(),
            address: ([127, 0, 0, 1], 1).into(),
            subsystem_nqn: server.subsystem_nqn.clone(),
            labels: [("rack".to_owned(), "old".to_owned())].into(),
        };
        client.register_server(old).await.unwrap();
        let old = NewStore {
            cluster,
            server: server.id,
            uuid: store.uuid,
            size_bytes: store.size_bytes / 2,
        };
        client.register_store(old).await.unwrap();
        let halved = |stores: &[StoreView]| stores[0].size_bytes == store.size_bytes / 2;
        metad.stores_until(halved).await;

        let restored = Command::BeginLineage { lineage: 2 };
        client.command(restored).await.unwrap();
        let as_it_is = |stores: &[StoreView]| stores[0].size_bytes == store.size_bytes;
        let again = metad.stores_until(as_it_is).await;
        assert_eq!((again.len(), again[0].id), (1, store.id), "the same store");
        let servers = client.servers(Filter::default()).await.unwrap().list;
        assert_eq!(servers.len(), 1);
        assert_eq!(
            (servers[0].id, servers[0].address, &servers[0].labels),
            (server.id, server.address, &server.labels)
        );
    });
}

//! A store's file becomes larger, and the store takes that in while a host uses it (ADR 0014).

use super::client::{CHUNK_BLOCKS, Client};
use super::lab::{Metad, Storaged, run};
use super::maintenance::{VOLUME, check_chunks};
use control::api::{Filter, Liveness, StoreView, VolumeView};
use control::core::{Domain, NewVolume, reader_host_nqn};
use nvmf::initiator::{Config, Errand, ErrandFault, Reply, Request};
use nvmf::proto::status::Status;
use nvmf::proto::vendor::{StoreGrowth, growth, opcode};
use reactor::{ArenaConfig, UringConfig, UringDriver};
use shardmap::map::Layout;
use shardmap::units::VolumeId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use store::{Examined, Store};
use uuid::Uuid;
use zerocopy::FromBytes as _;

const MIB: u64 = 1 << 20;
const BEFORE: u64 = 80 * MIB;
const AFTER: u64 = 200 * MIB;
/// More than the store has room for before.
const VOLUME_BYTES: u64 = 128 * MIB;
const CHUNKS: u64 = VOLUME_BYTES / (CHUNK_BLOCKS as u64 * 4096);

fn volume(id: VolumeId, name: &str, size_bytes: u64) -> NewVolume {
    NewVolume {
        id,
        name: name.into(),
        size_bytes,
        replicas: 1,
        shard_bytes: 4 << 20,
        layout: Layout::Ring,
        stride: None,
        min_in_sync: 1,
        domain: Domain::Server,
        open_access: false,
        avoid: BTreeSet::new(),
    }
}

/// Asks the only server under a host's name.
async fn ask(metad: &Metad, host_nqn: String, store: Uuid) -> Result<Reply, ErrandFault> {
    let servers = metad.client.servers(Filter::default()).await.unwrap().list;
    let server = servers.into_iter().next().unwrap();
    let asked = tokio::task::spawn_blocking(move || {
        let request = Request::Vendor {
            nsid: 0,
            opcode: opcode::GROW_STORE,
            cdw10_15: growth::cdw10_15(*store.as_bytes()),
            data: None,
            reply_len_bytes: 48,
        };
        let arena = ArenaConfig {
            slot_counts: [64, 32, 48],
            huge_pages: false,
        };
        let mut driver = UringDriver::new(UringConfig {
            arena,
            ..UringConfig::default()
        })
        .unwrap();
        let config = Config::new(1, host_nqn, [7; 16]);
        let to = (server.address, server.subsystem_nqn.as_str());
        let mut errand = Errand::begin(&mut driver, config, to, request);
        driver.run(&mut errand);
        errand.answer()
    });
    asked.await.unwrap()
}

async fn grow(metad: &Metad, store: Uuid) -> StoreGrowth {
    let cluster = metad.client.cluster().await.unwrap().uuid;
    let reply = ask(metad, reader_host_nqn(cluster), store).await.unwrap();
    StoreGrowth::read_from_prefix(&reply.data).unwrap().0
}

/// It was heard of in this life, and has a whole volume in use.
fn is_full(stores: &[StoreView]) -> bool {
    let report = stores[0].report.as_ref();
    let used = report.is_some_and(|r| r.used_bytes >= VOLUME_BYTES);
    used && stores[0].liveness == Liveness::Online
}

#[test]
fn a_store_takes_in_what_its_file_became_larger_by_while_a_host_uses_it() {
    run(async |dir| {
        let metad = Metad::begin(dir).await;
        let server = Storaged::with_store(dir, &metad, BEFORE);
        let stores = metad.stores_until(|stores| stores.len() == 1).await;
        let (store, before) = (stores[0].uuid, stores[0].size_bytes);
        assert!(before < BEFORE && before + 16 * MIB < VOLUME_BYTES);
        let new = volume(VOLUME, "v", VOLUME_BYTES);
        metad.client.create_volume(new).await.unwrap();
        let ready = |v: &VolumeView| v.slices.iter().all(|s| s.confirmed);
        metad.one_until("v", "ready", ready).await;
        let mut client = Client::attach(&metad, VOLUME, "h1").await;
        for chunk in 0..32 {
            client.write(chunk, 1).await;
        }
        client.flush().await;
        // As long as the file is as it was; of a store that is not there; by somebody else.
        let refused = grow(&metad, store).await;
        assert_eq!(refused.refusal.get(), growth::TOO_LITTLE);
        let sizes = (
            refused.device_bytes_before.get(),
            refused.device_bytes.get(),
        );
        assert_eq!(sizes, (BEFORE, BEFORE));
        let cluster = metad.client.cluster().await.unwrap().uuid;
        let other = ask(&metad, reader_host_nqn(cluster), Uuid::from_u128(1)).await;
        assert_eq!(other, Err(ErrandFault::Refused(Status::STORE_FAULTED)));
        let more = volume(VolumeId([9; 16]), "w", 64 * MIB);
        let full = metad.client.create_volume(more.clone()).await;
        assert!(full.is_err(), "{full:?}");

        let path = dir.join("s1.img");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(AFTER).unwrap();
        let grown = grow(&metad, store).await;
        assert_eq!(grown.refusal.get(), 0);
        assert_eq!(grown.capacity_bytes_before.get(), before);
        let capacity = grown.capacity_bytes.get();
        assert!(capacity > before + (AFTER - BEFORE) - 4 * MIB);
        let known = |stores: &[StoreView]| stores[0].size_bytes == capacity;
        metad.stores_until(known).await;
        assert!(server.log().contains("store grown"), "{}", server.log());
        metad.client.create_volume(more).await.unwrap();
        // More than there was room for, in old and new.
        let mut written = BTreeMap::new();
        for chunk in 0..CHUNKS {
            client.write(chunk, 2).await;
            written.insert(chunk, 2);
        }
        client.flush().await;
        client.detach().await;
        server.kill_9();
        metad
            .stores_until(|s| s[0].liveness != Liveness::Online)
            .await;
        let server = Storaged::with_store(dir, &metad, BEFORE);
        metad.stores_until(|s| is_full(s) && known(s)).await;
        server.stop();
        let info = Store::inspect(&path).unwrap();
        assert_eq!((info.capacity_bytes, info.growths), (capacity, 1));
        assert_eq!((info.device_bytes, info.unused_bytes()), (AFTER, 0));
        let examined = Examined::open(&path).unwrap();
        let slice = examined.slices().find(|s| s.spec.volume == VOLUME).unwrap();
        check_chunks(&examined, slice.spec.nsid, (1, 0), &written);
        let verified = examined.verify(&mut |_| {});
        assert_eq!((verified.rotten, verified.unreadable), (0, 0));
        // A file that lost what it had become larger by is refused, and says why.
        file.set_len(BEFORE).unwrap();
        let refused = Store::check(&path).unwrap_err().to_string();
        assert!(refused.contains("it shrank"), "{refused}");
    });
}

//! A volume that nobody uses is brought up to date by a storaged (ADR 0006).

use super::client::{CHUNK_BLOCKS, Client, content};
use super::lab::{Metad, PATIENCE, Setup, Storaged, run};
use control::api::{Filter, ResilverOutcome, ResilverReport, Resilvers, StoreView, VolumeView};
use control::core::{Domain, NewVolume};
use shardmap::map::Layout;
use shardmap::units::{
    BlockRange, Blocks, Generation, Lba, MembershipSeq, Nsid, StoreId, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use store::{Examined, PrepareOptions, Store};

pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);
const SIZE_BYTES: u64 = 32 << 20;
pub(super) const CHUNKS: u64 = SIZE_BYTES / (CHUNK_BLOCKS as u64 * 4096);

/// Three servers with a store each, and a volume on all of them.
pub(super) struct Cluster {
    dir: PathBuf,
    pub(super) metad: Metad,
    /// By number, from 1.
    servers: BTreeMap<usize, Storaged>,
    listen: BTreeMap<usize, String>,
    more: String,
    /// Version of every chunk that was written.
    pub(super) written: BTreeMap<u64, u64>,
}

pub(super) fn store(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("s{number}.img"))
}

impl Cluster {
    pub(super) async fn begin(dir: &Path, more: &str) -> Self {
        let metad = Metad::with(dir, |config| {
            config.suspect_after_ms = 3_000;
            config.offline_after_ms = 6_000;
        });
        let mut it = Self {
            dir: dir.to_owned(),
            metad: metad.await,
            servers: BTreeMap::new(),
            listen: BTreeMap::new(),
            more: more.into(),
            written: BTreeMap::new(),
        };
        for number in 1..=3 {
            it.start(number);
            // In order, so that ids follow names.
            it.metad.stores_until(|stores| stores.len() == number).await;
        }
        for server in it
            .metad
            .client
            .servers(Filter::default())
            .await
            .unwrap()
            .list
        {
            let number = server.name[1..].parse().unwrap();
            it.listen.insert(number, server.address.to_string());
        }
        it.create_volume(VOLUME, "v").await;
        it
    }

    pub(super) async fn create_volume(&self, id: VolumeId, name: &str) {
        let new = NewVolume {
            id,
            name: name.into(),
            size_bytes: SIZE_BYTES,
            replicas: 3,
            shard_bytes: 4 << 20,
            layout: Layout::Ring,
            stride: None,
            min_in_sync: 1,
            domain: Domain::Server,
            open_access: false,
            avoid: BTreeSet::new(),
        };
        self.metad.client.create_volume(new).await.unwrap();
        let ready = |v: &VolumeView| v.slices.iter().all(|s| s.confirmed);
        self.metad.one_until(name, "ready", ready).await;
    }

    pub(super) fn start(&mut self, number: usize) {
        let listen = self.listen.get(&number).map_or("127.0.0.1:0", |l| l);
        let path = store(&self.dir, number).display().to_string();
        let setup = Setup {
            name: &format!("s{number}"),
            listen,
            more: &self.more,
            tables: &format!(
                "[[store]]\npath = \"{path}\"\ncreate_bytes = {}\n",
                128 << 20
            ),
        };
        let storaged = Storaged::launch(&self.dir, &self.metad.address, &setup);
        self.servers.insert(number, storaged);
    }

    /// The server, which is not running, gets an empty disk that passes for the one it had.
    pub(super) fn blank(&self, number: usize) {
        let path = store(&self.dir, number);
        let was = Store::inspect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let options = PrepareOptions {
            cluster: was.cluster,
            store: was.store,
            size_bytes: Some(was.device_bytes),
            wipe: false,
            journal_bytes: None,
            checksums: true,
        };
        Store::prepare(&path, &options).unwrap();
    }

    /// Every server stops in order; their stores by number.
    pub(super) fn stop(&mut self) -> Vec<(usize, Examined)> {
        let servers = std::mem::take(&mut self.servers);
        servers.into_values().for_each(Storaged::stop);
        let examine = |number| (number, Examined::open(&store(&self.dir, number)).unwrap());
        (1..=3).map(examine).collect()
    }

    pub(super) fn kill(&mut self, number: usize) {
        self.servers.remove(&number).unwrap().kill_9();
    }

    /// Stops a storaged in order.
    pub(super) fn stop_one(&mut self, number: usize) {
        self.servers.remove(&number).unwrap().stop();
    }

    pub(super) fn log(&self, number: usize) -> String {
        self.servers[&number].log()
    }

    pub(super) async fn write(
        &mut self,
        client: &mut Client,
        chunks: impl Iterator<Item = u64>,
        version: u64,
    ) {
        for chunk in chunks {
            client.write(chunk, version).await;
            self.written.insert(chunk, version);
        }
    }

    /// Detached, and store 3 has missed so many chunks.
    async fn behind(dir: &Path, more: &str, missed: u64) -> Self {
        let mut it = Self::begin(dir, more).await;
        let mut client = Client::attach(&it.metad, VOLUME, "h1").await;
        it.write(&mut client, 0..CHUNKS / 2, 1).await;
        client.flush().await;
        it.kill(3);
        it.write(&mut client, 0..missed, 2).await;
        client.flush().await;
        client.detach().await;
        let view = it.metad.volume_until("given to a storaged", is_given).await;
        assert_eq!(in_sync(&view), [1, 2]);
        it
    }

    /// Follows the resilvers until they are as wanted.
    async fn resilvers_until(&self, done: impl Fn(&Resilvers) -> bool) -> Resilvers {
        let follow = async {
            let mut filter = Filter::default();
            loop {
                let told = self.metad.client.resilvers(filter.clone()).await.unwrap();
                if done(&told) {
                    return told;
                }
                filter.version = told.version;
            }
        };
        let followed = tokio::time::timeout(PATIENCE, follow).await;
        followed.expect("the resilvers in time")
    }

    /// Waits until a resilver has moved something and is not through.
    async fn resilvering(&self) {
        let moves = |told: &Resilvers| told.running.iter().any(|r| r.report.done_bytes > 0);
        self.resilvers_until(moves).await;
    }

    /// The first resilver that has ended.
    async fn resilvered(&self) -> ResilverReport {
        let told = self.resilvers_until(|told| !told.history.is_empty());
        told.await.history[0].report
    }

    /// Kinds of the events about the volume, in order.
    async fn events(&self) -> Vec<String> {
        let events = self.metad.client.events(0, false).await.unwrap();
        let kinds = events.into_iter().map(|e| e.kind);
        kinds
            .filter(|kind| kind != "Noted" && !kind.contains("Register"))
            .collect()
    }

    /// Every server stops in order; then every replica holds what was written, without a mark.
    fn check_replicas(&mut self) {
        let written = self.written.clone();
        self.check_generations(&[(0, written)]);
    }

    /// The same for generations, each as it was; zero is the head.
    pub(super) fn check_generations(&mut self, all: &[(u32, BTreeMap<u64, u64>)]) {
        for (number, examined) in self.stop() {
            let slice = examined.slices().next().unwrap();
            assert!(!slice.incomplete && slice.mark_count == 0, "{slice:?}");
            let members = 7;
            assert_eq!(slice.stamp.in_sync, members, "store {number}: {slice:?}");
            for (generation, written) in all {
                check_chunks(&examined, slice.spec.nsid, (number, *generation), written);
            }
        }
    }
}

pub(super) fn check_chunks(
    examined: &Examined,
    nsid: Nsid,
    (number, generation): (usize, u32),
    written: &BTreeMap<u64, u64>,
) {
    let mut bytes = vec![0; CHUNK_BLOCKS as usize * 4096];
    for chunk in 0..CHUNKS {
        let start = chunk * u64::from(CHUNK_BLOCKS);
        let range = BlockRange::new(Lba(start), Blocks(CHUNK_BLOCKS)).unwrap();
        let read = examined.read_in(nsid, Generation(generation), range, &mut bytes);
        read.unwrap();
        for (lba, block) in (start..).zip(bytes.chunks(4096)) {
            let version = written.get(&chunk).copied();
            let expected = version.map_or([0; 4096], |v| content(lba, v));
            let place = format!("store {number}, generation {generation}, lba {lba}");
            assert!(block == expected, "{place}");
        }
    }
}

fn in_sync(v: &VolumeView) -> Vec<u32> {
    let slices = v.slices.iter().filter(|s| s.in_sync);
    slices.map(|s| s.store.0).collect()
}

fn is_given(v: &VolumeView) -> bool {
    v.held_by.is_empty() && !v.maintained_by.is_empty()
}

fn is_whole(v: &VolumeView) -> bool {
    in_sync(v).len() == 3 && v.maintained_by.is_empty()
}

/// Position of the first event of a kind at or after a place.
fn find(events: &[String], kind: &str, from: usize) -> usize {
    let at = events[from..].iter().position(|k| k == kind);
    from + at.unwrap_or_else(|| panic!("no {kind} in {:?}", &events[from..]))
}

#[test]
fn a_store_that_missed_writes_is_made_whole_with_nobody_attached() {
    run(async |dir| {
        let missed = 24;
        let mut it = Cluster::behind(dir, "", missed).await;
        it.start(3);
        let view = it.metad.volume_until("whole", is_whole).await;
        assert_eq!(view.seq, MembershipSeq(3), "out once, in once");
        let report = it.resilvered().await;
        assert_eq!((report.volume, report.store), (VOLUME, StoreId(3)));
        assert_eq!(report.outcome, ResilverOutcome::Complete);
        // Marks are of 4 MiB, and nobody remembers more: what the first writes marked and no pass
        // has cleaned is looked at too.
        assert_eq!(report.done_bytes, report.total_bytes);
        let missed_bytes = missed * u64::from(CHUNK_BLOCKS) * 4096;
        assert!(
            (missed_bytes..=SIZE_BYTES).contains(&report.done_bytes),
            "{report:?}"
        );
        let events = it.events().await;
        let began = find(&events, "MaintenanceBegan", find(&events, "Detached", 0));
        let joined = find(&events, "ReplicaInSync", began);
        find(&events, "MaintenanceEnded", joined);
        it.check_replicas();
    });
}

#[test]
fn a_disk_that_is_replaced_with_nobody_attached_is_brought_up_to_date() {
    run(async |dir| {
        let mut it = Cluster::begin(dir, "").await;
        let mut client = Client::attach(&it.metad, VOLUME, "h1").await;
        it.write(&mut client, 0..CHUNKS / 2, 1).await;
        client.detach().await;
        it.metad.volume_until("whole", is_whole).await;
        it.kill(2);
        it.blank(2);
        it.start(2);
        let report = it.resilvered().await;
        assert_eq!(
            (report.store, report.outcome),
            (StoreId(2), ResilverOutcome::Complete)
        );
        let view = it.metad.volume_until("whole", is_whole).await;
        assert_eq!(view.seq, MembershipSeq(3), "out once, in once");
        let events = it.events().await;
        let lost = find(&events, "ReplicaLost", find(&events, "Detached", 0));
        let began = find(&events, "MaintenanceBegan", lost);
        find(
            &events,
            "ReplicaInSync",
            find(&events, "ReplicaOutOfSync", began),
        );
        it.check_replicas();
    });
}

#[test]
fn a_host_that_attaches_takes_over_and_nothing_is_lost() {
    run(async |dir| {
        // Slow enough to be met at work.
        let slow = "resilver_bytes_per_s_max = 1048576";
        let mut it = Cluster::behind(dir, slow, CHUNKS / 2).await;
        it.start(3);
        it.resilvering().await;
        let before = it.metad.volume_until("at work", is_given).await;
        let mut client = Client::attach(&it.metad, VOLUME, "h2").await;
        assert!(client.epoch > before.epoch);
        it.write(&mut client, (0..CHUNKS).step_by(3), 3).await;
        client.flush().await;
        client.resilvered(StoreId(3)).await;
        client.detach().await;
        it.metad.volume_until("whole", is_whole).await;
        let events = it.events().await;
        let attached = find(&events, "Attached", find(&events, "MaintenanceBegan", 0));
        find(&events, "ReplicaInSync", attached);
        let ended = events[attached..]
            .iter()
            .any(|k| k.starts_with("Maintenance"));
        assert!(
            !ended,
            "metad hears nothing of one that was taken over: {events:?}"
        );
        it.check_replicas();
    });
}

#[test]
fn another_server_goes_on_when_the_one_at_work_dies() {
    run(async |dir| {
        let slow = "resilver_bytes_per_s_max = 2097152";
        let mut it = Cluster::behind(dir, slow, CHUNKS / 4).await;
        it.start(3);
        it.resilvering().await;
        let first = it
            .metad
            .volume_until("at work", is_given)
            .await
            .maintained_by;
        let number: usize = first[1..].parse().unwrap();
        it.kill(number);
        let other = |v: &VolumeView| is_given(v) && v.maintained_by != first;
        let view = it.metad.volume_until("given to another one", other).await;
        assert_eq!(in_sync(&view), [1, 2], "nobody is removed for being away");
        it.start(number);
        it.metad.volume_until("whole", is_whole).await;
        it.check_replicas();
    });
}

pub(super) fn used_bytes(stores: &[StoreView]) -> u64 {
    let reports = stores.iter().filter_map(|s| s.report.as_ref());
    reports.map(|r| r.used_bytes).sum()
}

#[test]
fn a_snapshot_is_completed_with_nobody_attached_and_gives_its_space_back() {
    run(async |dir| {
        let mut it = Cluster::begin(dir, "").await;
        let client = it.metad.client.clone();
        let mut host = Client::attach(&it.metad, VOLUME, "h1").await;
        it.write(&mut host, 0..CHUNKS, 1).await;
        host.detach().await;
        let filled = |stores: &[StoreView]| used_bytes(stores) >= 3 * SIZE_BYTES;
        let plain = used_bytes(&it.metad.stores_until(filled).await);
        let volumes = [VOLUME].into();
        client.create_snapshot(volumes, "a".into()).await.unwrap();
        let complete = |v: &VolumeView| v.pending_snapshot.is_empty() && v.maintained_by.is_empty();
        let view = it.metad.volume_until("complete", complete).await;
        assert_eq!((view.head, view.snapshots), (Generation(2), 1));
        let mut host = Client::attach(&it.metad, VOLUME, "h2").await;
        it.write(&mut host, 0..CHUNKS / 2, 2).await;
        host.detach().await;
        let grown = |stores: &[StoreView]| used_bytes(stores) >= plain + 3 * SIZE_BYTES / 2;
        it.metad.stores_until(grown).await;
        // A store that is away drops it when it is back.
        it.kill(3);
        let snapshot = client.snapshots(Filter::default()).await.unwrap();
        let generation = snapshot.list[0].generation;
        client.delete_snapshot(VOLUME, generation).await.unwrap();
        it.start(3);
        let back = |stores: &[StoreView]| used_bytes(stores) <= plain;
        it.metad.stores_until(back).await;
        it.metad.volume_until("whole", is_whole).await;
        it.check_replicas();
    });
}

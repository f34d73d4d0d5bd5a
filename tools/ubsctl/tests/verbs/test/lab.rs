//! A metad of one member in this process, and daemons that are played.

use control::api::{
    MemberAddress, Reporter, ResilverOutcome, ResilverReport, StoreReport, VolumeHealth,
    VolumeReport,
};
use control::client::{ClientConfig, MetadClient};
use control::core::{HostId, NewHost, NewServer, NewStore, Rollback};
use control::server::{Node, NodeConfig};
use shardmap::generations::VolumeGenerations;
use shardmap::units::{Epoch, ServerId, StoreId, VolumeId};
use std::collections::BTreeMap;
use std::process::{Command, Output};
use tempfile::TempDir;
use tokio::net::TcpListener;
use uuid::Uuid;

/// A cluster with three servers and a host whose daemons do what they are told, at once.
pub(super) struct Lab {
    pub(super) address: String,
    pub(super) dir: TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Lab {
    pub(super) fn begin() -> Self {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("metad");
        let (told, address) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap().to_string();
                let members = vec![MemberAddress {
                    id: 1,
                    address: address.clone(),
                }];
                let config = NodeConfig {
                    heartbeat_ms: 50,
                    election_min_ms: 150,
                    election_max_ms: 300,
                    log_map_bytes: 64 << 20,
                    state_map_bytes: 64 << 20,
                    ..NodeConfig::new(1, data, members)
                };
                let node = Node::start(config, listener).await.unwrap();
                let client = MetadClient::new(ClientConfig::new(vec![address.clone()], "test"));
                for i in 1..=3 {
                    let server = storaged(&client, i).await;
                    tokio::task::spawn_local(make_slices(client.clone(), server));
                }
                clientd(&client, 9, "absent").await;
                let host = clientd(&client, 8, "h1").await;
                tokio::task::spawn_local(make_devices(client.clone(), host));
                told.send(address).unwrap();
                drop(stopped.await);
                node.stop().await;
            });
        });
        let address = address.recv().unwrap();
        Self {
            address,
            dir,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(super) fn ctl(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ubsctl"))
            .env("UBS_METAD", &self.address)
            .args(args)
            .output()
            .unwrap()
    }

    pub(super) fn ok(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code and the sentence of a run that fails.
    pub(super) fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.ctl(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() != Some(0), "{args:?} did not fail");
        (output.status.code().unwrap(), said)
    }

    pub(super) fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let value: serde_json::Value = serde_json::from_str(&self.ok(&all)).unwrap();
        assert_eq!(value["apiVersion"], "ublkstor/v1");
        value
    }
}

impl Lab {
    /// What metad knows, to show that nothing was lost or changed.
    pub(super) fn state(&self) -> Vec<serde_json::Value> {
        let nouns = ["volume", "snapshot", "server", "store", "host"];
        nouns.map(|noun| self.json(&[noun, "ls"])).into()
    }

    /// What a played daemon is about to do is done.
    pub(super) fn until(&self, done: impl Fn() -> bool) {
        for _ in 0..100 {
            if done() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{}", self.ok(&["volume", "explain", "v"]));
    }

    /// The storaged that has a volume says that it has rolled it back.
    pub(super) fn end_rollback(&self, volume: &str, rollback: Rollback) {
        let shown = self.json(&["volume", "show", volume]);
        let id: Uuid = shown["id"].as_str().unwrap().parse().unwrap();
        let epoch = Epoch(shown["epoch"].as_u64().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let client = MetadClient::new(ClientConfig::new(vec![self.address.clone()], "test"));
            let done = client.complete_rollback(VolumeId(id.into_bytes()), epoch, rollback);
            assert!(done.await.unwrap(), "fenced");
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().unwrap().join());
    }
}

async fn storaged(client: &MetadClient, i: u16) -> ServerId {
    let server = client
        .register_server(NewServer {
            cluster: None,
            uuid: Uuid::from_u128(u128::from(i)),
            name: format!("s{i}"),
            address: ([127, 0, 0, 1], 4420 + i).into(),
            subsystem_nqn: format!("nqn.2026-01.io.ublkstor:storaged:{i}"),
            labels: [].into(),
        })
        .await
        .unwrap();
    let cluster = client.cluster().await.unwrap().uuid;
    let uuid = Uuid::from_u128(100 + u128::from(i));
    let store = NewStore {
        cluster,
        server,
        uuid,
        size_bytes: 1 << 36,
    };
    client.register_store(store).await.unwrap();
    server
}

/// Only the third server tells of its store: it is 80 % full. A volume that is to be rolled back is
/// kept, and nothing is written to it ([`Lab::end_rollback`]).
async fn make_slices(client: MetadClient, server: ServerId) {
    let reports = client.reporter(Reporter::Server(server));
    let third = StoreReport {
        store: StoreId(3),
        used_bytes: (1 << 36) / 5 * 4,
        size_bytes: 1 << 36,
        ..StoreReport::default()
    };
    if server.0 == 3 {
        reports.change(|c| c.stores = vec![third]);
    }
    let mut after = 0;
    let mut ours: BTreeMap<VolumeId, Epoch> = BTreeMap::new();
    loop {
        let desire = client.watch_slices(server, after).await.unwrap();
        after = desire.index;
        for m in desire.maintenance {
            let epoch = match ours.remove(&m.volume) {
                Some(epoch) => epoch,
                None => match client.maintain(m.volume, server).await {
                    Ok(grant) => grant.epoch,
                    Err(_) => continue, // a host may want it by now
                },
            };
            go_on(&client, m.volume, epoch, &m.generations).await;
            if m.rollback.is_some() {
                reports.change(|c| c.volumes = vec![rolling_back(m.volume)]);
            }
            if m.generations.hold || m.rollback.is_some() {
                ours.insert(m.volume, epoch);
            } else {
                client.detach(m.volume, epoch).await.unwrap();
            }
        }
        for s in desire.slices {
            if s.remove {
                client.confirm_slice_gone(s.store, s.nsid).await.unwrap();
            } else if !s.confirmed || s.has_blocks < s.size_blocks {
                let confirmed = client.confirm_slice(s.store, s.nsid, s.size_blocks).await;
                confirmed.unwrap();
            }
        }
    }
}

fn rolling_back(volume: VolumeId) -> VolumeReport {
    VolumeReport {
        volume,
        health: VolumeHealth::Degraded,
        device: String::new(),
        note: "rolling back, 40 %".into(),
    }
}

/// Who has the volume goes on with its pending snapshot.
async fn go_on(client: &MetadClient, volume: VolumeId, epoch: Epoch, now: &VolumeGenerations) {
    let Some(pending) = now.pending() else { return };
    let told = if now.hold {
        client.hold_snapshot(volume, epoch, pending).await
    } else {
        client.complete_snapshot(volume, epoch, pending, true).await
    };
    assert!(told.unwrap(), "fenced");
}

async fn clientd(client: &MetadClient, i: u128, name: &str) -> HostId {
    let host = NewHost {
        uuid: Uuid::from_u128(i),
        name: name.into(),
        host_nqn: format!("nqn.2026-01.io.ublkstor:clientd:{i}"),
    };
    client.register_host(host).await.unwrap()
}

async fn make_devices(client: MetadClient, host: HostId) {
    let reports = client.reporter(Reporter::Host(host));
    let mut after = 0;
    loop {
        let desire = client.watch_attachments(host, after).await.unwrap();
        after = desire.index;
        for v in desire.volumes {
            match (v.wanted && v.ready, v.epoch) {
                (true, None) => {
                    let grant = client.attach(v.volume, host).await.unwrap();
                    reports.change(|c| {
                        c.volumes = vec![VolumeReport {
                            volume: v.volume,
                            health: VolumeHealth::Online,
                            device: "/dev/ublkb0".into(),
                            note: String::new(),
                        }];
                        c.resilvers = vec![ResilverReport {
                            volume: v.volume,
                            store: grant.map.stores[0],
                            started_unix_ms: 1_000,
                            done_bytes: 4096,
                            total_bytes: 8192,
                            bytes_per_s: 1,
                            outcome: ResilverOutcome::Running,
                            ended_unix_ms: 0,
                        }];
                    });
                }
                (false, Some(epoch)) => {
                    client.detach(v.volume, epoch).await.unwrap();
                    reports.change(|c| c.volumes.clear());
                }
                (true, Some(epoch)) => {
                    go_on(&client, v.volume, epoch, &v.generations).await;
                }
                _ => {}
            }
        }
    }
}

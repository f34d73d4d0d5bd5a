//! Members of metad and their clients over loopback, in one process.
#![forbid(unsafe_code)]

#[cfg(test)]
mod test {
    use control::api::{
        Filter, Liveness, MemberAddress, ReportContents, Reporter, Stage, StoreReport,
        VolumeHealth, VolumeReport,
    };
    use control::client::{ClientConfig, IsrAnswer, MetadClient, MetadError};
    use control::core::{
        Command, Domain, HostId, NewHost, NewServer, NewStore, NewVolume, Phase, RefusalCode,
        Subject,
    };
    use control::server::{Node, NodeConfig, StartError};
    use shardmap::map::Layout;
    use shardmap::units::{ServerId, StoreId, VolumeId};
    use std::collections::{BTreeMap, BTreeSet};
    use std::rc::Rc;
    use std::time::Duration;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use uuid::Uuid;

    const PATIENCE: Duration = Duration::from_secs(60);
    const VOLUME: VolumeId = VolumeId([7; 16]);

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let test = async {
            tokio::time::timeout(PATIENCE, test)
                .await
                .expect("took too long")
        };
        tokio::task::LocalSet::new().block_on(&runtime, test)
    }

    struct Member {
        config: NodeConfig,
        node: Option<Rc<Node>>,
    }

    struct Cluster {
        members: Vec<Member>,
        addresses: Vec<String>,
        _dir: TempDir,
    }

    impl Cluster {
        async fn begin(count: u64) -> Self {
            let (mut it, listeners) = Self::prepare(count).await;
            for (i, listener) in listeners.into_iter().enumerate() {
                it.start(i, listener).await;
            }
            it
        }

        /// Members that have not started, and their listeners.
        async fn prepare(count: u64) -> (Self, Vec<TcpListener>) {
            let dir = TempDir::new().unwrap();
            let mut listeners = Vec::new();
            for _ in 0..count {
                listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
            }
            let addresses: Vec<String> = listeners
                .iter()
                .map(|l| l.local_addr().unwrap().to_string())
                .collect();
            let all: Vec<MemberAddress> = (1..)
                .zip(&addresses)
                .map(|(id, a)| MemberAddress {
                    id,
                    address: a.clone(),
                })
                .collect();
            let members = all
                .iter()
                .map(|m| {
                    let data = dir.path().join(format!("member-{}", m.id));
                    let config = NodeConfig {
                        heartbeat_ms: 60,
                        election_min_ms: 300,
                        election_max_ms: 600,
                        log_map_bytes: 64 << 20,
                        state_map_bytes: 64 << 20,
                        suspect_after_ms: 3_000,
                        offline_after_ms: 4_000,
                        snapshot_entries: 50,
                        ..NodeConfig::new(m.id, data, all.clone())
                    };
                    Member { config, node: None }
                })
                .collect();
            (
                Self {
                    members,
                    addresses,
                    _dir: dir,
                },
                listeners,
            )
        }

        async fn start(&mut self, i: usize, listener: TcpListener) {
            let member = &mut self.members[i];
            let node = Node::start(member.config.clone(), listener).await.unwrap();
            member.node = Some(node);
        }

        async fn restart(&mut self, i: usize) {
            let listener = TcpListener::bind(&self.addresses[i]).await.unwrap();
            self.start(i, listener).await;
        }

        async fn stop(&mut self, i: usize) {
            let node = self.members[i].node.take().unwrap();
            node.stop().await;
        }

        async fn stop_all(mut self) {
            for i in 0..self.members.len() {
                if self.members[i].node.is_some() {
                    self.stop(i).await;
                }
            }
        }

        fn client(&self) -> MetadClient {
            let config = ClientConfig {
                answer_timeout_ms: 1_000,
                heartbeat_ms: 100,
                ..ClientConfig::new(self.addresses.clone(), "test")
            };
            MetadClient::new(config)
        }

        /// Position of the member that a client finds leading.
        async fn leader(&self, client: &MetadClient) -> usize {
            let id = client.cluster().await.unwrap().leader.id;
            usize::try_from(id).unwrap() - 1
        }
    }

    async fn server(client: &MetadClient, i: u16) -> (ServerId, StoreId) {
        let cluster = client.cluster().await.unwrap().uuid;
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
        let uuid = Uuid::from_u128(100 + u128::from(i));
        let new = NewStore {
            cluster,
            server,
            uuid,
            size_bytes: 1 << 36,
        };
        (server, client.register_store(new).await.unwrap())
    }

    async fn host(client: &MetadClient) -> HostId {
        let new = NewHost {
            uuid: Uuid::from_u128(500),
            name: "h".into(),
            host_nqn: "nqn.2026-01.io.ublkstor:clientd:h".into(),
        };
        client.register_host(new).await.unwrap()
    }

    fn volume(replicas: u8) -> NewVolume {
        NewVolume {
            id: VOLUME,
            name: "v".into(),
            size_bytes: 1 << 30,
            replicas,
            shard_bytes: 64 << 20,
            layout: Layout::Ring,
            stride: None,
            min_in_sync: 1,
            domain: Domain::Server,
            open_access: false,
            avoid: BTreeSet::new(),
        }
    }

    /// Plays storaged: confirms every slice it is told of.
    async fn confirm_all(client: &MetadClient, server: ServerId) {
        let desire = client.watch_slices(server, 0).await.unwrap();
        for slice in desire.slices {
            let has = slice.size_blocks;
            client
                .confirm_slice(slice.store, slice.nsid, has)
                .await
                .unwrap();
        }
    }

    #[test]
    fn a_volume_lives_its_whole_life() {
        run(async {
            let cluster = Cluster::begin(1).await;
            let client = cluster.client();
            let mut servers = Vec::new();
            for i in 1..=3 {
                servers.push(server(&client, i).await);
            }
            let host = host(&client).await;
            assert_eq!(client.create_volume(volume(3)).await.unwrap(), VOLUME);
            let again = client.create_volume(volume(3)).await.unwrap_err();
            assert_eq!(again.refusal(), Some(RefusalCode::NameTaken));
            for (server, _) in &servers {
                confirm_all(&client, *server).await;
            }
            client.want_attached(VOLUME, host).await.unwrap();
            let wanted = client.watch_attachments(host, 0).await.unwrap();
            assert!(wanted.volumes[0].wanted && wanted.volumes[0].ready);
            let grant = client.attach(VOLUME, host).await.unwrap();
            assert_eq!(grant.slices.len(), 3);
            let without: BTreeSet<StoreId> = [servers[0].1, servers[1].1].into();
            let set = client
                .set_isr(VOLUME, grant.epoch, grant.seq, without.clone())
                .await;
            let Ok(IsrAnswer::Set(seq)) = set else {
                panic!("{set:?}")
            };
            let stale = client
                .set_isr(VOLUME, grant.epoch, grant.seq, [servers[0].1].into())
                .await;
            assert_eq!(stale.unwrap(), IsrAnswer::Stale { seq, isr: without });
            assert!(client.detach(VOLUME, grant.epoch).await.unwrap());
            client.want_detached(VOLUME).await.unwrap();
            client.delete_volume(VOLUME, false).await.unwrap();
            for (server, store) in servers {
                let desire = client.watch_slices(server, 0).await.unwrap();
                assert!(desire.slices[0].remove);
                client
                    .confirm_slice_gone(store, desire.slices[0].nsid)
                    .await
                    .unwrap();
            }
            assert_eq!(client.volumes(Filter::default()).await.unwrap().list, []);
            assert_eq!(client.fsck().await.unwrap(), Vec::<String>::new());
            let events = client.events(0, false).await.unwrap();
            assert!(
                events
                    .iter()
                    .any(|e| e.kind == "VolumeGone" && e.text == "volume v is gone")
            );
            cluster.stop_all().await;
        });
    }

    #[test]
    fn a_watch_answers_when_something_changes_and_not_before() {
        run(async {
            let cluster = Cluster::begin(1).await;
            let client = cluster.client();
            let (s1, _) = server(&client, 1).await;
            let first = client.watch_slices(s1, 0).await.unwrap();
            let watcher = client.clone();
            let index = first.index;
            let watch =
                tokio::task::spawn_local(
                    async move { watcher.watch_slices(s1, index).await.unwrap() },
                );
            // Something that is none of its business does not answer it.
            client
                .command(Command::Note {
                    subject: Subject::Cluster,
                    text: "x".into(),
                })
                .await
                .unwrap();
            assert!(!watch.is_finished());
            client.create_volume(volume(1)).await.unwrap();
            let second = watch.await.unwrap();
            assert!(second.index > first.index);
            assert_eq!(second.slices.len(), 1);
            cluster.stop_all().await;
        });
    }

    #[test]
    fn the_leader_dies_and_nothing_committed_is_lost() {
        run(async {
            let mut cluster = Cluster::begin(3).await;
            let client = cluster.client();
            let mut servers = Vec::new();
            for i in 1..=3 {
                servers.push(server(&client, i).await);
            }
            let index = client.watch_slices(servers[0].0, 0).await.unwrap().index;
            let (watcher, s0) = (client.clone(), servers[0].0);
            let watch =
                tokio::task::spawn_local(
                    async move { watcher.watch_slices(s0, index).await.unwrap() },
                );
            for round in 0..3 {
                let leader = cluster.leader(&client).await;
                cluster.stop(leader).await;
                let text = format!("round {round}");
                let note = Command::Note {
                    subject: Subject::Cluster,
                    text,
                };
                client.command(note).await.unwrap();
                assert_ne!(cluster.leader(&client).await, leader);
                cluster.restart(leader).await;
            }
            client.create_volume(volume(3)).await.unwrap();
            assert_eq!(
                watch.await.unwrap().slices.len(),
                1,
                "the watch moved with the leader"
            );
            let told = client.events(0, false).await.unwrap();
            for round in 0..3 {
                let text = format!("round {round}");
                assert_eq!(
                    told.iter().filter(|e| e.text == text).count(),
                    1,
                    "once, {text}"
                );
            }
            assert_eq!(
                client.servers(Filter::default()).await.unwrap().list.len(),
                3
            );
            cluster.stop_all().await;
        });
    }

    #[test]
    fn commands_at_once_share_entries_and_each_has_its_own_reply() {
        const CLIENTS: u16 = 30;
        run(async {
            let cluster = Cluster::begin(3).await;
            let clients: Vec<_> = (0..CLIENTS).map(|_| cluster.client()).collect();
            // Connected, so that they speak at the same time.
            for client in &clients {
                client.cluster().await.unwrap();
            }
            let before = clients[0].cluster().await.unwrap().applied_index;
            let mut tasks = tokio::task::JoinSet::new();
            for (i, client) in (0..).zip(clients) {
                let new = NewHost {
                    uuid: Uuid::from_u128(u128::from(1000 + i)),
                    name: format!("h{i}"),
                    host_nqn: format!("nqn.2026-01.io.ublkstor:clientd:h{i}"),
                };
                tasks.spawn_local(async move { (i, client.register_host(new).await.unwrap()) });
            }
            let minted: BTreeMap<u32, HostId> = tasks.join_all().await.into_iter().collect();
            let client = cluster.client();
            let hosts = client.hosts(Filter::default()).await.unwrap().list;
            assert_eq!(hosts.len(), usize::from(CLIENTS));
            for host in hosts {
                let i: u32 = host.name[1..].parse().unwrap();
                assert_eq!(minted[&i], host.id, "the reply of {}", host.name);
            }
            let entries = client.cluster().await.unwrap().applied_index - before;
            assert!(
                entries < u64::from(CLIENTS),
                "{entries} entries for {CLIENTS} commands"
            );
            cluster.stop_all().await;
        });
    }

    #[test]
    fn everything_is_there_after_all_members_restart() {
        run(async {
            let mut cluster = Cluster::begin(3).await;
            let client = cluster.client();
            server(&client, 1).await;
            let uuid = client.cluster().await.unwrap().uuid;
            // Enough for a snapshot and a purge.
            for i in 0..120 {
                let note = Command::Note {
                    subject: Subject::Cluster,
                    text: format!("n{i}"),
                };
                client.command(note).await.unwrap();
            }
            let before = client.events(0, false).await.unwrap();
            for i in 0..3 {
                cluster.stop(i).await;
            }
            for i in 0..3 {
                cluster.restart(i).await;
            }
            assert_eq!(client.cluster().await.unwrap().uuid, uuid);
            assert_eq!(client.events(0, false).await.unwrap(), before);
            assert_eq!(client.fsck().await.unwrap(), Vec::<String>::new());
            cluster.stop_all().await;
        });
    }

    #[test]
    fn a_cluster_begins_only_when_every_member_is_there() {
        run(async {
            let (mut cluster, mut listeners) = Cluster::prepare(3).await;
            let last = listeners.pop().unwrap();
            for (i, listener) in listeners.into_iter().enumerate() {
                cluster.start(i, listener).await;
            }
            let two = cluster.client();
            loop {
                let first = two.member_statuses().await[0].1.clone().unwrap();
                assert_eq!(first.facts.stage, Stage::Blank, "began without member 3");
                if first.note.contains("member 3") {
                    break;
                }
                tokio::task::yield_now().await;
            }
            cluster.start(2, last).await;
            assert_eq!(two.cluster().await.unwrap().members.len(), 3);
            cluster.stop_all().await;
        });
    }

    #[test]
    fn a_member_that_lost_its_data_neither_votes_nor_begins_another_cluster() {
        run(async {
            let mut cluster = Cluster::begin(3).await;
            let client = cluster.client();
            let uuid = client.cluster().await.unwrap().uuid;
            for victim in [0, 2] {
                cluster.stop(victim).await;
                std::fs::remove_dir_all(&cluster.members[victim].config.data_dir).unwrap();
                cluster.restart(victim).await;
                loop {
                    let status = client
                        .member_statuses()
                        .await
                        .swap_remove(victim)
                        .1
                        .unwrap();
                    assert_eq!(status.facts.stage, Stage::Blank);
                    assert_eq!(status.term, 0, "it voted");
                    if status.note.contains("must not vote") {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                if victim == 0 {
                    // The two others go on.
                    assert_eq!(client.cluster().await.unwrap().uuid, uuid);
                }
            }
            // One of three is left: no majority, and the blank ones do not make one up.
            let hasty = MetadClient::new(ClientConfig {
                answer_timeout_ms: 200,
                deadline_ms: 1_500,
                ..ClientConfig::new(cluster.addresses.clone(), "test")
            });
            let none = hasty.cluster().await.unwrap_err();
            assert!(matches!(none, MetadError::Unreachable { .. }), "{none}");
            cluster.stop_all().await;
        });
    }

    #[test]
    fn a_directory_of_another_member_is_refused() {
        run(async {
            let mut cluster = Cluster::begin(1).await;
            cluster.client().cluster().await.unwrap();
            cluster.stop(0).await;
            let mut config = cluster.members[0].config.clone();
            config.id = 2;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let refused = Node::start(config, listener).await.unwrap_err();
            assert!(matches!(
                refused,
                StartError::OtherMember {
                    theirs: 1,
                    ours: 2,
                    ..
                }
            ));
        });
    }

    #[test]
    fn reports_are_seen_and_a_new_leader_asks_for_them_again() {
        run(async {
            let mut cluster = Cluster::begin(3).await;
            let client = cluster.client();
            let (s1, store) = server(&client, 1).await;
            let h = host(&client).await;
            let storaged = cluster.client();
            let clientd = cluster.client();
            let stores = storaged.reporter(Reporter::Server(s1));
            let volumes = clientd.reporter(Reporter::Host(h));
            client.create_volume(volume(1)).await.unwrap();
            confirm_all(&client, s1).await;
            client.want_attached(VOLUME, h).await.unwrap();
            client.attach(VOLUME, h).await.unwrap();
            stores.update(ReportContents {
                stores: vec![StoreReport {
                    store,
                    used_bytes: 42,
                    ..StoreReport::default()
                }],
                ..ReportContents::default()
            });
            volumes.change(|c| {
                c.volumes = vec![VolumeReport {
                    volume: VOLUME,
                    health: VolumeHealth::Online,
                    device: "/dev/ublkb0".into(),
                    note: String::new(),
                }];
            });
            let seen = async |client: &MetadClient| {
                let mut version = 0;
                loop {
                    let filter = Filter {
                        name: String::new(),
                        version,
                    };
                    let stores = client.stores(filter.clone()).await.unwrap();
                    let volumes = client.volumes(Filter::default()).await.unwrap();
                    let used = stores.list[0].report.as_ref().map(|r| r.used_bytes);
                    let device = volumes.list[0].report.as_ref().map(|r| r.device.clone());
                    if used == Some(42) && device.as_deref() == Some("/dev/ublkb0") {
                        break;
                    }
                    version = stores.version;
                }
            };
            seen(&client).await;
            let leader = cluster.leader(&client).await;
            cluster.stop(leader).await;
            seen(&client).await;
            cluster.stop_all().await;
        });
    }

    #[test]
    fn a_server_that_falls_silent_is_noticed_and_takes_nothing_new() {
        run(async {
            let cluster = Cluster::begin(1).await;
            let client = cluster.client();
            let (s1, _) = server(&client, 1).await;
            let storaged = cluster.client();
            let reports = storaged.reporter(Reporter::Server(s1));
            until_server_is(&client, Liveness::Online).await;
            client.plan_volume(volume(1)).await.unwrap();
            drop((reports, storaged));
            until_server_is(&client, Liveness::Offline).await;
            let events = client.events(0, false).await.unwrap();
            let told = |text: &str| events.iter().any(|e| e.text == text);
            assert!(
                told("server s1 is suspect: its reports have stopped"),
                "{events:#?}"
            );
            let refused = client.plan_volume(volume(1)).await.unwrap_err();
            assert_eq!(refused.refusal(), Some(RefusalCode::TooFewServers));
            cluster.stop_all().await;
        });
    }

    async fn until_server_is(client: &MetadClient, liveness: Liveness) {
        let mut version = 0;
        loop {
            let filter = Filter {
                name: "s1".into(),
                version,
            };
            let servers = client.servers(filter).await.unwrap();
            if servers.list[0].liveness == liveness {
                return;
            }
            version = servers.version;
        }
    }

    #[test]
    fn nonsense_closes_its_own_connection_only() {
        run(async {
            let cluster = Cluster::begin(1).await;
            let client = cluster.client();
            client.cluster().await.unwrap();
            let watcher = client.clone();
            let watch = tokio::task::spawn_local(async move { watcher.events(1, true).await });
            let nonsense: [&[u8]; 4] = [
                b"GET / HTTP/1.1\r\n\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
                &[0xff; 64],
                // One segment of 2^32 - 1 words.
                &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
                // A sound frame header, then no message of the protocol.
                &[
                    0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff,
                ],
            ];
            for bytes in nonsense {
                let mut stream = TcpStream::connect(&cluster.addresses[0]).await.unwrap();
                stream.write_all(bytes).await.unwrap();
                let mut rest = Vec::new();
                // Whatever it still says (an abort), it closes; a reset will do.
                drop(stream.read_to_end(&mut rest).await);
            }
            // A message cut short by the end of the stream.
            let mut stream = TcpStream::connect(&cluster.addresses[0]).await.unwrap();
            stream
                .write_all(&[0, 0, 0, 0, 9, 0, 0, 0, 1, 2, 3])
                .await
                .unwrap();
            stream.shutdown().await.unwrap();
            drop(stream.read_to_end(&mut Vec::new()).await);
            assert!(!watch.is_finished(), "the other connection lives");
            server(&client, 1).await;
            assert!(!watch.await.unwrap().unwrap().is_empty());
            cluster.stop_all().await;
        });
    }

    #[test]
    fn a_client_that_reaches_nobody_says_whom_it_tried() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            drop(listener);
            let client = MetadClient::new(ClientConfig {
                deadline_ms: 300,
                ..ClientConfig::new(vec![address.clone()], "test")
            });
            let error = client.cluster().await.unwrap_err();
            assert!(error.to_string().contains(&address), "{error}");
            assert_eq!(error.code(), "Unreachable");
            assert!(!error.remedy().is_empty());
        });
    }

    #[test]
    fn a_daemon_that_comes_before_the_cluster_begins_is_served_when_it_has() {
        run(async {
            let (mut cluster, listeners) = Cluster::prepare(1).await;
            let client = cluster.client();
            let early = tokio::task::spawn_local(async move { host(&client).await });
            for listener in listeners {
                cluster.start(0, listener).await;
            }
            assert_eq!(early.await.unwrap(), HostId(1));
            cluster.stop_all().await;
        });
    }

    #[test]
    fn a_ready_volume_says_so() {
        run(async {
            let cluster = Cluster::begin(1).await;
            let client = cluster.client();
            let (s1, _) = server(&client, 1).await;
            client.create_volume(volume(1)).await.unwrap();
            let creating = client.volumes(Filter::default()).await.unwrap();
            assert_eq!(creating.list[0].phase, Phase::Creating);
            confirm_all(&client, s1).await;
            let filter = Filter {
                name: "v".into(),
                version: creating.version,
            };
            let ready = client.volumes(filter).await.unwrap();
            assert_eq!(ready.list[0].phase, Phase::Ready);
            cluster.stop_all().await;
        });
    }
}

//! ubsctl as a process, against a metad of one member and daemons that are played.
#![forbid(unsafe_code)]

#[cfg(test)]
mod test {
    use control::api::{
        MemberAddress, Reporter, ResilverOutcome, ResilverReport, VolumeHealth, VolumeReport,
    };
    use control::client::{ClientConfig, MetadClient};
    use control::core::{HostId, NewHost, NewServer, NewStore};
    use control::server::{Node, NodeConfig};
    use shardmap::units::ServerId;
    use std::process::{Command, Output};
    use tempfile::TempDir;
    use tokio::net::TcpListener;
    use uuid::Uuid;

    /// A cluster with three servers and a host whose daemons do what they are told, at once.
    struct Lab {
        address: String,
        dir: TempDir,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Lab {
        fn begin() -> Self {
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

        fn ctl(&self, args: &[&str]) -> Output {
            Command::new(env!("CARGO_BIN_EXE_ubsctl"))
                .env("UBS_METAD", &self.address)
                .args(args)
                .output()
                .unwrap()
        }

        fn ok(&self, args: &[&str]) -> String {
            let output = self.ctl(args);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
            String::from_utf8(output.stdout).unwrap()
        }

        /// The exit code and the sentence of a run that fails.
        fn fails(&self, args: &[&str]) -> (i32, String) {
            let output = self.ctl(args);
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() != Some(0), "{args:?} did not fail");
            (output.status.code().unwrap(), said)
        }

        fn json(&self, args: &[&str]) -> serde_json::Value {
            let mut all = args.to_vec();
            all.extend(["-o", "json"]);
            let value: serde_json::Value = serde_json::from_str(&self.ok(&all)).unwrap();
            assert_eq!(value["apiVersion"], "ublkstor/v1");
            value
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

    async fn make_slices(client: MetadClient, server: ServerId) {
        let _reports = client.reporter(Reporter::Server(server));
        let mut after = 0;
        loop {
            let desire = client.watch_slices(server, after).await.unwrap();
            after = desire.index;
            for s in desire.slices {
                if s.remove {
                    client.confirm_slice_gone(s.store, s.nsid).await.unwrap();
                } else if !s.confirmed {
                    client.confirm_slice(s.store, s.nsid).await.unwrap();
                }
            }
        }
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
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_volume_from_create_to_delete() {
        let lab = Lab::begin();
        let plan = lab.json(&["volume", "create", "v", "--size", "1GiB", "--dry-run"]);
        assert_eq!(plan["places"].as_array().unwrap().len(), 3);
        assert_eq!(
            lab.json(&["volume", "ls"])["items"]
                .as_array()
                .unwrap()
                .len(),
            0
        );
        lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
        assert_eq!(lab.json(&["volume", "show", "v"])["phase"], "ready");
        let device = lab.ok(&["volume", "attach", "v", "--on", "h1", "--wait"]);
        assert_eq!(device, "/dev/ublkb0\n");
        assert_eq!(lab.ok(&["volume", "ls", "-o", "name"]), "v\n");
        let table = lab.ok(&["volume", "ls"]);
        assert!(
            table.contains("online") && table.contains("/dev/ublkb0"),
            "{table}"
        );
        let why = lab.ok(&["volume", "explain", "v"]);
        assert!(why.contains("volume v is online, 3/3 in sync"), "{why}");
        assert!(
            why.contains("safe to stop, one at a time: s1, s2, s3"),
            "{why}"
        );
        let resilvers = lab.json(&["resilver", "ls"]);
        assert_eq!(resilvers["items"][0]["doneBytes"], 4096);

        let (code, said) = lab.fails(&["volume", "delete", "v", "--yes"]);
        assert_eq!(code, 3, "{said}");
        assert!(said.contains("attached on h1") && said.contains("ubsctl volume detach v"));
        lab.ok(&["volume", "detach", "v", "--wait"]);
        let (code, said) = lab.fails(&["volume", "delete", "v"]);
        assert_eq!(code, 3);
        assert!(said.contains("1.0 GiB") && said.contains("--yes"), "{said}");
        lab.ok(&["volume", "delete", "v", "--yes", "--wait"]);
        assert_eq!(lab.fails(&["volume", "show", "v"]).0, 5);
        let events = lab.ok(&["events"]);
        assert!(events.contains("volume v is gone"), "{events}");
        lab.ok(&["meta", "fsck"]);
    }

    #[test]
    fn bad_input_is_a_sentence_and_an_exit_code() {
        let lab = Lab::begin();
        lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
        let cases: [(&[&str], i32, &str); 8] = [
            (
                &["volume", "create", "v", "--size", "1GiB"],
                1,
                "there is a volume v already",
            ),
            (
                &["volume", "create", "w", "--size", "1000000000"],
                2,
                "use 1000001536",
            ),
            (&["volume", "create", "w", "--size", "1X"], 2, "unit"),
            (
                &["volume", "create", "w", "--size", "1G", "--replicas", "4"],
                1,
                "4 distinct",
            ),
            (
                &["volume", "attach", "v", "--on", "nobody"],
                5,
                "no host nobody",
            ),
            (&["volume", "attach", "x", "--on", "h1"], 5, "no volume x"),
            (&["server", "show", "s9"], 5, "no server s9"),
            (&["--metad", "here", "volume", "ls"], 2, "host:port"),
        ];
        for (args, code, part) in cases {
            let (found, said) = lab.fails(args);
            assert_eq!(found, code, "{args:?}: {said}");
            assert!(said.contains(part), "{args:?}: {said}");
        }
        lab.ok(&["volume", "attach", "v", "--on", "h1", "--wait"]);
        lab.ok(&["volume", "attach", "v", "--on", "h1"]);
    }

    #[test]
    fn waiting_that_times_out_says_that_the_work_goes_on() {
        let lab = Lab::begin();
        lab.ok(&["server", "cordon", "s3"]);
        let (code, _) = lab.fails(&["volume", "create", "v", "--size", "1G"]);
        assert_eq!(code, 1, "too few servers");
        lab.ok(&["server", "uncordon", "s3"]);
        lab.ok(&["volume", "create", "v", "--size", "1G", "--wait"]);
        // Nobody plays a clientd on this host.
        let attach = [
            "volume",
            "attach",
            "v",
            "--on",
            "absent",
            "--wait",
            "--timeout",
            "1",
        ];
        let (code, said) = lab.fails(&attach);
        assert_eq!(code, 4, "{said}");
        assert!(said.contains("ubsctl volume explain v"), "{said}");
        let why = lab.ok(&["volume", "explain", "v"]);
        assert!(
            why.contains("absent is asked to attach it and has not"),
            "{why}"
        );
        let (code, said) = lab.fails(&["volume", "attach", "v", "--on", "h1"]);
        assert_eq!(code, 3, "{said}");
        assert!(said.contains("attached on absent"), "{said}");
    }

    #[test]
    fn stores_are_prepared_for_the_cluster_and_not_twice() {
        let lab = Lab::begin();
        let path = lab.dir.path().join("disk").display().to_string();
        let made = lab.json(&["store", "prepare", &path, "--size", "1GiB"]);
        let cluster = lab.json(&["status"])["cluster"]["uuid"].clone();
        assert_eq!(made["cluster"], cluster);
        assert_eq!(lab.json(&["store", "show", &path])["uuid"], made["uuid"]);
        let (code, said) = lab.fails(&["store", "prepare", &path]);
        assert_eq!(code, 3, "{said}");
        assert!(said.contains(&path) && said.contains("--wipe"), "{said}");
    }

    #[test]
    fn status_and_listings_come_in_every_format() {
        let lab = Lab::begin();
        for noun in ["server", "store", "host", "volume", "resilver"] {
            lab.ok(&[noun, "ls"]);
            lab.json(&[noun, "ls"]);
            lab.ok(&[noun, "ls", "-o", "name"]);
        }
        let status = lab.ok(&["status"]);
        assert!(
            status.contains("1 of 1 members answer, member 1 leads"),
            "{status}"
        );
        assert!(lab.ok(&["cluster", "status"]).contains("leader"));
        for shell in ["bash", "zsh", "fish"] {
            assert!(lab.ok(&["completions", shell]).contains("ubsctl"));
        }
    }

    #[test]
    fn nobody_answering_is_an_error_that_names_the_address() {
        let lab = Lab::begin();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let (code, said) = lab.fails(&["--metad", &address, "--timeout", "1", "volume", "ls"]);
        assert_eq!(code, 1);
        assert!(
            said.contains(&address) && said.contains("systemctl status metad"),
            "{said}"
        );
        let (code, said) = lab.fails(&["--metad", &address, "cluster", "status"]);
        assert_eq!(code, 1, "{said}");
    }
}

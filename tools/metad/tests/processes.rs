//! metad as processes: kill -9, restart, configuration mistakes.
#![forbid(unsafe_code)]

#[cfg(test)]
mod test {
    use control::client::{ClientConfig, MetadClient};
    use control::core::{Command as Order, Subject};
    use std::net::TcpListener;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;
    use tempfile::TempDir;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn metad() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metad"));
        command.stdin(Stdio::null());
        command
    }

    struct Cluster {
        dir: TempDir,
        addresses: Vec<String>,
        children: Vec<Option<Child>>,
    }

    impl Cluster {
        fn begin(count: usize) -> Self {
            let held: Vec<TcpListener> = (0..count)
                .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
                .collect();
            let addresses: Vec<String> = held
                .iter()
                .map(|l| l.local_addr().unwrap().to_string())
                .collect();
            drop(held);
            let dir = TempDir::new().unwrap();
            let mut it = Self {
                dir,
                addresses,
                children: Vec::new(),
            };
            for i in 0..count {
                std::fs::write(it.config(i), it.text(i)).unwrap();
                it.children.push(None);
                it.start(i);
            }
            it
        }

        fn config(&self, i: usize) -> PathBuf {
            self.dir.path().join(format!("metad-{i}.toml"))
        }

        fn text(&self, i: usize) -> String {
            let dir = self.dir.path().display();
            let listen = &self.addresses[i];
            let id = i + 1;
            let mut text = format!(
                "node_id = {id}\nlisten = \"{listen}\"\ndata_dir = \"{dir}/member-{id}\"\n\
                 cluster_name = \"lab\"\nmetrics_listen = \"127.0.0.1:0\"\n\
                 [raft]\nheartbeat_ms = 100\nelection_min_ms = 400\nelection_max_ms = 800\n\
                 log_map_mib = 64\nstate_map_mib = 64\n"
            );
            for (j, address) in self.addresses.iter().enumerate() {
                text += &format!("[[member]]\nid = {}\naddress = \"{address}\"\n", j + 1);
            }
            text
        }

        fn start(&mut self, i: usize) {
            let log = self.dir.path().join(format!("metad-{i}.log"));
            let log = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
                .unwrap();
            let config = self.config(i);
            let child = metad()
                .arg("--config")
                .arg(config)
                .stderr(log)
                .spawn()
                .unwrap();
            self.children[i] = Some(child);
        }

        /// `Child::kill` is SIGKILL.
        fn kill_9(&mut self, i: usize) {
            let mut child = self.children[i].take().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        }

        fn client(&self) -> MetadClient {
            let config = ClientConfig {
                answer_timeout_ms: 2_000,
                deadline_ms: 60_000,
                ..ClientConfig::new(self.addresses.clone(), "test")
            };
            MetadClient::new(config)
        }
    }

    impl Drop for Cluster {
        fn drop(&mut self) {
            for child in self.children.iter_mut().flatten() {
                drop(child.kill());
                drop(child.wait());
            }
        }
    }

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

    async fn note(client: &MetadClient, text: &str) {
        let order = Order::Note {
            subject: Subject::Cluster,
            text: text.to_owned(),
        };
        client.command(order).await.unwrap();
    }

    #[test]
    fn killed_leaders_take_nothing_committed_with_them() {
        let mut cluster = Cluster::begin(3);
        run(async {
            let client = cluster.client();
            let uuid = client.cluster().await.unwrap().uuid;
            for round in 0..4 {
                let leader = client.cluster().await.unwrap().leader.id;
                let leader = usize::try_from(leader).unwrap() - 1;
                note(&client, &format!("before {round}")).await;
                // One is on its way while the leader dies.
                let (racing, text) = (client.clone(), format!("during {round}"));
                let race = tokio::task::spawn_local(async move { note(&racing, &text).await });
                tokio::task::yield_now().await;
                cluster.kill_9(leader);
                race.await.unwrap();
                note(&client, &format!("after {round}")).await;
                cluster.start(leader);
            }
            for i in 0..3 {
                cluster.kill_9(i);
            }
            for i in 0..3 {
                cluster.start(i);
            }
            assert_eq!(client.cluster().await.unwrap().uuid, uuid);
            let events = client.events(0, false).await.unwrap();
            for round in 0..4 {
                for when in ["before", "during", "after"] {
                    let text = format!("{when} {round}");
                    let seen = events.iter().filter(|e| e.text == text).count();
                    assert_eq!(seen, 1, "{text}");
                }
            }
        });
    }

    #[test]
    fn sigterm_is_a_clean_stop() {
        let mut cluster = Cluster::begin(1);
        run(async { cluster.client().cluster().await.unwrap() });
        let mut child = cluster.children[0].take().unwrap();
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    fn check(path: &Path) -> (Option<i32>, String) {
        let output = metad()
            .arg("--check-config")
            .arg("--config")
            .arg(path)
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.code(), text)
    }

    #[test]
    fn a_wrong_configuration_is_exit_code_2_and_a_sentence() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("metad.toml");
        let good = "node_id = 1\nlisten = \"127.0.0.1:7700\"\n\
            [[member]]\nid = 1\naddress = \"127.0.0.1:7700\"\n";
        std::fs::write(&path, good).unwrap();
        assert_eq!(check(&path).0, Some(0));
        std::fs::write(&path, format!("nonsense = 1\n{good}")).unwrap();
        let (code, text) = check(&path);
        assert_eq!(code, Some(2));
        assert!(text.contains("nonsense"), "{text}");
        std::fs::write(&path, good.replace("node_id = 1", "node_id = 7")).unwrap();
        let (code, text) = check(&path);
        assert_eq!(code, Some(2));
        assert!(text.contains("node_id = 7"), "{text}");
    }

    #[test]
    fn a_second_metad_on_the_directory_is_refused() {
        let cluster = Cluster::begin(1);
        run(async { cluster.client().cluster().await.unwrap() });
        let other = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let text = cluster.text(0).replacen(&cluster.addresses[0], &other, 1);
        let path = cluster.dir.path().join("second.toml");
        std::fs::write(&path, text).unwrap();
        let output = metad().arg("--config").arg(path).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("in use by another metad"), "{said}");
    }
}

//! A metad of one member in this process, and storageds as processes.

use control::api::{Filter, MemberAddress, StoreView, VolumeView};
use control::client::{ClientConfig, MetadClient};
use control::server::{Node, NodeConfig};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_storaged"));
    command.stdin(Stdio::null());
    command
}

/// A metad of one member in this process.
pub(super) struct Metad {
    pub(super) address: String,
    pub(super) client: MetadClient,
}

impl Metad {
    pub(super) async fn begin(dir: &Path) -> Self {
        Self::with(dir, |_| {}).await
    }

    /// With other knobs than usual.
    pub(super) async fn with(dir: &Path, change: impl FnOnce(&mut NodeConfig)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let members = vec![MemberAddress {
            id: 1,
            address: address.clone(),
        }];
        let mut config = NodeConfig {
            heartbeat_ms: 50,
            election_min_ms: 150,
            election_max_ms: 300,
            log_map_bytes: 64 << 20,
            state_map_bytes: 64 << 20,
            ..NodeConfig::new(1, dir.join("metad"), members)
        };
        change(&mut config);
        let node = Node::start(config, listener).await.unwrap();
        // Runs until the process ends.
        tokio::task::spawn_local(async move {
            std::future::pending::<()>().await;
            drop(node);
        });
        let client = MetadClient::new(ClientConfig::new(vec![address.clone()], "test"));
        Self { address, client }
    }

    /// Follows the stores until they are as wanted.
    pub(super) async fn stores_until(&self, done: impl Fn(&[StoreView]) -> bool) -> Vec<StoreView> {
        let follow = async {
            let mut filter = Filter::default();
            loop {
                let seen = self.client.stores(filter.clone()).await.unwrap();
                if done(&seen.list) {
                    return seen.list;
                }
                filter.version = seen.version;
            }
        };
        tokio::time::timeout(PATIENCE, follow)
            .await
            .expect("the stores in time")
    }

    /// Follows the only volume until it is as wanted.
    pub(super) async fn volume_until(
        &self,
        what: &str,
        done: impl Fn(&VolumeView) -> bool,
    ) -> VolumeView {
        self.one_until("", what, done).await
    }

    /// The same of the volume of this name.
    pub(super) async fn one_until(
        &self,
        name: &str,
        what: &str,
        done: impl Fn(&VolumeView) -> bool,
    ) -> VolumeView {
        let mut last = None;
        let follow = async {
            let mut filter = Filter {
                name: name.into(),
                version: 0,
            };
            loop {
                let seen = self.client.volumes(filter.clone()).await.unwrap();
                let volume = seen.list.into_iter().next().expect("there is one");
                if done(&volume) {
                    return volume;
                }
                last = Some(volume);
                filter.version = seen.version;
            }
        };
        let followed = tokio::time::timeout(PATIENCE, follow).await;
        followed.unwrap_or_else(|_| panic!("{what}: not in time: {last:#?}"))
    }
}

/// How a storaged is configured.
pub(super) struct Setup<'a> {
    pub(super) name: &'a str,
    pub(super) listen: &'a str,
    /// Lines before the tables.
    pub(super) more: &'a str,
    /// Of stores.
    pub(super) tables: &'a str,
}

/// A storaged that is killed at the end.
pub(super) struct Storaged {
    child: Child,
    log: PathBuf,
}

impl Storaged {
    pub(super) fn start(dir: &Path, metad: &str, stores: &[&Path]) -> Self {
        let table = |store: &&Path| format!("[[store]]\npath = \"{}\"\n", store.display());
        let setup = Setup {
            name: "s1",
            listen: "127.0.0.1:0",
            more: "",
            tables: &stores.iter().map(table).collect::<String>(),
        };
        Self::launch(dir, metad, &setup)
    }

    /// With one store, which it makes if it is not there.
    pub(super) fn with_store(dir: &Path, metad: &Metad, create_bytes: u64) -> Self {
        let path = dir.join("s1.img").display().to_string();
        let setup = Setup {
            name: "s1",
            listen: "127.0.0.1:0",
            more: "",
            tables: &format!("[[store]]\npath = \"{path}\"\ncreate_bytes = {create_bytes}\n"),
        };
        Self::launch(dir, &metad.address, &setup)
    }

    pub(super) fn launch(dir: &Path, metad: &str, setup: &Setup<'_>) -> Self {
        let Setup {
            name,
            listen,
            more,
            tables,
        } = setup;
        let of = |end: &str| dir.join(format!("{name}.{end}"));
        let (config, log, data) = (of("toml"), of("log"), of("data"));
        std::fs::create_dir_all(&data).unwrap();
        let text = format!(
            "name = \"{name}\"\ndata_dir = \"{}\"\nlisten = \"{listen}\"\n\
             metad = [\"{metad}\"]\nreport_interval_ms = 100\n{more}\n\
             [arena]\nslots_4k = 256\nslots_16k = 64\nslots_128k = 32\n{tables}",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let out = OpenOptions::new().append(true).create(true).open(&log);
        let child = command()
            .arg("--config")
            .arg(config)
            .stderr(out.unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Follows the log until it has this.
    pub(super) async fn log_until(&self, part: &str) {
        let follow = async {
            while !self.log().contains(part) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let followed = tokio::time::timeout(PATIENCE, follow).await;
        followed.unwrap_or_else(|_| panic!("no {part:?} in time:\n{}", self.log()));
    }

    /// `Child::kill` is SIGKILL.
    pub(super) fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop in order, and waits until it has.
    pub(super) fn stop(mut self) {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(told.unwrap().success());
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }
}

impl Drop for Storaged {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(super) fn run(test: impl AsyncFnOnce(&Path)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Direct IO: not every temporary folder can do that, the build folder can.
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test(dir.path()));
}

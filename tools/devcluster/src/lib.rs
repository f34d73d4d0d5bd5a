//! A whole cluster of child processes in one directory: `ubsctl dev`, the demo and the process tests
//! stand on it. Everything listens on loopback. The directory holds configurations, logs, data and
//! `cluster.json`, so any later process can go on from there.
#![forbid(unsafe_code)]

mod daemons;
mod plan;
mod process;

pub use plan::{Daemon, Kind, Plan};
pub use process::Alive;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a daemon may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a killed process may take to disappear.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Why something could not be done. Every text names the thing.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The directory already holds a cluster.
    #[error(
        "{dir} already holds a cluster; use `dev down --wipe` first or choose another directory"
    )]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds none.
    #[error("{dir} holds no cluster (no cluster.json); create one with `dev up`")]
    None {
        /// The directory.
        dir: PathBuf,
    },
    /// A daemon's program is not there.
    #[error(
        "there is no program {program}; build all of them (`make build`), or say where they are \
         with --programs"
    )]
    NoProgram {
        /// Where it should be.
        program: PathBuf,
    },
    /// The stores' files do not fit.
    #[error(
        "{stores} stores of {} MiB do not fit into {dir}: {} MiB are free; use a smaller \
         --store-bytes or another --dir", store_bytes >> 20, free_bytes >> 20
    )]
    NoRoom {
        /// The directory.
        dir: PathBuf,
        /// How many.
        stores: u8,
        /// Bytes of each.
        store_bytes: u64,
        /// Bytes that its file system has left.
        free_bytes: u64,
    },
    /// No daemon of that name.
    #[error("no daemon \"{name}\" here; there are {known}")]
    NoSuchDaemon {
        /// As asked.
        name: String,
        /// What there is.
        known: String,
    },
    /// It runs already.
    #[error("{name} runs already as process {pid}")]
    Running {
        /// The daemon.
        name: String,
        /// Its process.
        pid: i32,
    },
    /// A daemon did not end in time.
    #[error("{name} (process {pid}) did not end within {seconds} s of {signal}; see {log}")]
    Stuck {
        /// The daemon.
        name: String,
        /// Its process.
        pid: i32,
        /// What it was sent.
        signal: &'static str,
        /// How long we waited.
        seconds: u64,
        /// Its log.
        log: PathBuf,
    },
    /// The system said no.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// `cluster.json` cannot be read.
    #[error("{path} is damaged: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

/// Says what was tried when the system refuses.
pub(crate) fn trying<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, Fault> {
    result.map_err(|source| Fault::System {
        what: what.into(),
        source,
    })
}

/// A cluster in a directory.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    daemons: Vec<Daemon>,
}

impl Cluster {
    /// Lays out the directory: ports, configurations, data directories. Starts nothing.
    ///
    /// # Errors
    /// [`Fault::Exists`], [`Fault::System`].
    pub fn create(plan: &Plan) -> Result<Self, Fault> {
        if plan.dir.join(STATE_FILE).exists() {
            return Err(Fault::Exists {
                dir: plan.dir.clone(),
            });
        }
        let kinds = [
            (true, Kind::Metad),
            (true, Kind::Storaged),
            (plan.clientd, Kind::Clientd),
        ];
        for (_, kind) in kinds.into_iter().filter(|(wanted, _)| *wanted) {
            let program = plan.programs.join(kind.program());
            if !program.is_file() {
                return Err(Fault::NoProgram { program });
            }
        }
        trying(
            format!("create {}", plan.dir.display()),
            std::fs::create_dir_all(&plan.dir),
        )?;
        let dir = trying(
            format!("find {}", plan.dir.display()),
            plan.dir.canonicalize(),
        )?;
        let room = trying(
            format!("look for room in {}", dir.display()),
            rustix::fs::statvfs(&dir).map_err(io::Error::from),
        )?;
        let free_bytes = room.f_bavail.saturating_mul(room.f_frsize);
        if free_bytes < u64::from(plan.storageds).saturating_mul(plan.store_bytes) {
            return Err(Fault::NoRoom {
                dir,
                stores: plan.storageds,
                store_bytes: plan.store_bytes,
                free_bytes,
            });
        }
        let daemons = daemons::lay_out(&dir, plan)?;
        let cluster = Self { dir, daemons };
        cluster.save()?;
        Ok(cluster)
    }

    /// Goes on with what an earlier process created.
    ///
    /// # Errors
    /// [`Fault::None`], [`Fault::Damaged`].
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        let path = dir.join(STATE_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Fault::None {
                    dir: dir.to_owned(),
                });
            }
            Err(source) => {
                return Err(Fault::System {
                    what: format!("read {}", path.display()),
                    source,
                });
            }
        };
        let daemons = serde_json::from_str(&text).map_err(|source| Fault::Damaged {
            path: path.clone(),
            source,
        })?;
        let dir = trying(format!("find {}", dir.display()), dir.canonicalize())?;
        Ok(Self { dir, daemons })
    }

    /// The daemons, in starting order.
    pub fn daemons(&self) -> &[Daemon] {
        &self.daemons
    }

    /// Addresses of the metad members.
    pub fn metad_addresses(&self) -> Vec<std::net::SocketAddr> {
        self.daemons
            .iter()
            .filter(|d| d.kind == Kind::Metad)
            .map(|d| d.address)
            .collect()
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a daemon; returns its process id. It lives on when the caller ends.
    ///
    /// # Errors
    /// [`Fault::Running`], [`Fault::NoSuchDaemon`], [`Fault::System`].
    pub fn start(&mut self, name: &str) -> Result<i32, Fault> {
        let at = self.position(name)?;
        if let Some(alive) = self.daemons[at].alive() {
            return Err(Fault::Running {
                name: name.to_owned(),
                pid: alive.pid,
            });
        }
        let alive = process::spawn(&self.daemons[at])?;
        self.daemons[at].process = Some(alive);
        self.save()?;
        Ok(alive.pid)
    }

    /// Stops a daemon in order and waits for its end. `Ok(false)`: it did not run.
    ///
    /// # Errors
    /// [`Fault::Stuck`] after 30 s; it is not killed.
    pub fn stop(&mut self, name: &str) -> Result<bool, Fault> {
        self.end(name, process::Signal::Terminate, STOP_DEADLINE)
    }

    /// Kills a daemon (SIGKILL) and waits for its end. `Ok(false)`: it did not run.
    ///
    /// # Errors
    /// [`Fault::Stuck`], [`Fault::NoSuchDaemon`].
    pub fn kill(&mut self, name: &str) -> Result<bool, Fault> {
        self.end(name, process::Signal::Kill, KILL_DEADLINE)
    }

    fn end(&mut self, name: &str, how: process::Signal, within: Duration) -> Result<bool, Fault> {
        let at = self.position(name)?;
        let Some(alive) = self.daemons[at].alive() else {
            return Ok(false);
        };
        process::signal(alive, how)?;
        let began = Instant::now();
        if !process::wait_gone(alive, began + within)? {
            return Err(Fault::Stuck {
                name: name.to_owned(),
                pid: alive.pid,
                signal: how.name(),
                seconds: within.as_secs(),
                log: self.daemons[at].log.clone(),
            });
        }
        self.daemons[at].process = None;
        self.save()?;
        Ok(true)
    }

    fn position(&self, name: &str) -> Result<usize, Fault> {
        self.daemons
            .iter()
            .position(|d| d.name == name)
            .ok_or_else(|| Fault::NoSuchDaemon {
                name: name.to_owned(),
                known: self
                    .daemons
                    .iter()
                    .map(|d| d.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    fn save(&self) -> Result<(), Fault> {
        let path = self.dir.join(STATE_FILE);
        let draft = self.dir.join("cluster.json.new");
        let text =
            serde_json::to_string_pretty(&self.daemons).map_err(|source| Fault::Damaged {
                path: path.clone(),
                source,
            })?;
        trying(
            format!("write {}", draft.display()),
            std::fs::write(&draft, text),
        )?;
        trying(
            format!("rename {}", draft.display()),
            std::fs::rename(&draft, &path),
        )
    }
}

const STATE_FILE: &str = "cluster.json";

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn stores_that_do_not_fit_are_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        for program in ["metad", "storaged"] {
            std::fs::write(dir.path().join(program), "").unwrap();
        }
        let cluster = dir.path().join("cluster");
        let plan = Plan {
            dir: cluster.clone(),
            programs: dir.path().to_owned(),
            metads: 1,
            storageds: 3,
            store_bytes: 1 << 60,
            clientd: false,
        };
        let fault = Cluster::create(&plan).unwrap_err();
        assert!(matches!(fault, Fault::NoRoom { stores: 3, .. }), "{fault}");
        assert_eq!(std::fs::read_dir(&cluster).unwrap().count(), 0);
    }
}

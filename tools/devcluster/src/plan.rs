//! What a cluster consists of.

use crate::process::Alive;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What to lay out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything goes.
    pub dir: PathBuf,
    /// Where the daemons' programs are.
    pub programs: PathBuf,
    /// metad members: 1 or 3.
    pub metads: u8,
    /// Storage servers.
    pub storageds: u8,
    /// Size of each server's store, in bytes.
    pub store_bytes: u64,
    /// With a clientd (needs ublk).
    pub clientd: bool,
}

/// Which program a daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The control plane.
    Metad,
    /// A storage server.
    Storaged,
    /// The client host.
    Clientd,
}

impl Kind {
    /// Name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Metad => "metad",
            Self::Storaged => "storaged",
            Self::Clientd => "clientd",
        }
    }
}

/// One daemon of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Daemon {
    /// Unique name: `metad1`, `storaged2`, `clientd`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its program.
    pub program: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// Where its standard error goes.
    pub log: PathBuf,
    /// Where it serves its peers; of clientd only `/metrics` answers, and this is its address.
    pub address: SocketAddr,
    /// Where `/metrics` answers.
    pub metrics: SocketAddr,
    /// The process started last, if any.
    pub process: Option<Alive>,
}

impl Daemon {
    /// The last thing it said, if it said anything.
    pub fn last_words(&self) -> Option<String> {
        let text = std::fs::read_to_string(&self.log).ok()?;
        let last = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(last.to_owned())
    }

    /// The process, if it still runs. A process id that was given to somebody else does not count.
    pub fn alive(&self) -> Option<Alive> {
        self.process.filter(|alive| alive.is_running())
    }
}

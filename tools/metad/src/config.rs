//! `metad.toml`.

use control::api::MemberAddress;
use control::server::NodeConfig;
use daemon::config::{Config, Senseless};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Everything metad can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetadConfig {
    /// Which of the members this one is.
    pub(crate) node_id: u64,
    /// Its own directory: log, snapshots, `member.toml`.
    #[serde(default = "default_data_dir")]
    pub(crate) data_dir: PathBuf,
    /// Where it listens for daemons, `ubsctl` and the other members.
    pub(crate) listen: SocketAddr,
    /// The RPC is not encrypted and knows no users: an address that other machines reach must be
    /// allowed explicitly, on a network that only the cluster uses.
    #[serde(default)]
    pub(crate) allow_plaintext_network: bool,
    /// Name of a cluster that is begun by this member.
    #[serde(default = "default_cluster_name")]
    pub(crate) cluster_name: String,
    /// Prometheus metrics. Every member of one machine needs its own port.
    #[serde(default = "default_metrics_listen")]
    pub(crate) metrics_listen: SocketAddr,
    /// Consensus.
    #[serde(default)]
    pub(crate) raft: RaftConfig,
    /// When silent daemons are noticed.
    #[serde(default)]
    pub(crate) liveness: LivenessConfig,
    /// All members, this one too; one, three or five.
    pub(crate) member: Vec<MemberConfig>,
}

/// A `[[member]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemberConfig {
    /// From 1; the lowest begins the cluster.
    pub(crate) id: u64,
    /// `host:port` at which the other members and clients reach it.
    pub(crate) address: String,
}

/// `[raft]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RaftConfig {
    /// Between two heartbeats of the leader.
    pub(crate) heartbeat_ms: u64,
    /// A follower that hears nothing for a random time from this …
    pub(crate) election_min_ms: u64,
    /// … up to this stands for election.
    pub(crate) election_max_ms: u64,
    /// Entries between two snapshots.
    pub(crate) snapshot_entries: u64,
    /// Largest log, MiB; sparse. Commands are refused at three quarters.
    pub(crate) log_map_mib: u32,
    /// Largest snapshots, MiB; sparse.
    pub(crate) state_map_mib: u32,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            election_min_ms: 1_500,
            election_max_ms: 3_000,
            snapshot_entries: 5_000,
            log_map_mib: 2_048,
            state_map_mib: 4_096,
        }
    }
}

/// `[liveness]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LivenessConfig {
    /// A daemon that is silent this long is suspect and takes nothing new.
    pub(crate) suspect_after_ms: u64,
    /// A daemon that is silent this long is offline.
    pub(crate) offline_after_ms: u64,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self {
            suspect_after_ms: 12_000,
            offline_after_ms: 30_000,
        }
    }
}

fn default_data_dir() -> PathBuf {
    "/var/lib/ublkstor/metad".into()
}

fn default_cluster_name() -> String {
    "ublkstor".into()
}

fn default_metrics_listen() -> SocketAddr {
    ([127, 0, 0, 1], 9701).into()
}

impl Config for MetadConfig {
    fn check(&self) -> Result<(), Senseless> {
        if !self.listen.ip().is_loopback() && !self.allow_plaintext_network {
            return Err(Senseless::new(
                "listen",
                self.listen,
                "other machines reach this address and the RPC is not encrypted; use a loopback \
                 address, or set allow_plaintext_network = true on a network of the cluster's own",
            ));
        }
        self.check_members()?;
        self.check_times()
    }
}

impl MetadConfig {
    fn check_members(&self) -> Result<(), Senseless> {
        let count = self.member.len();
        if ![1, 3, 5].contains(&count) {
            let remedy = "list 1, 3 or 5 [[member]], the same on every member";
            return Err(Senseless::new("member", format!("{count} entries"), remedy));
        }
        let ids: BTreeSet<u64> = self.member.iter().map(|m| m.id).collect();
        if ids.len() != count || ids.contains(&0) {
            let found = format!("{:?}", self.member.iter().map(|m| m.id).collect::<Vec<_>>());
            return Err(Senseless::new(
                "member.id",
                found,
                "use different numbers from 1",
            ));
        }
        if !ids.contains(&self.node_id) {
            let remedy = "it must be the id of one [[member]]";
            return Err(Senseless::new("node_id", self.node_id, remedy));
        }
        for member in &self.member {
            let port = member
                .address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                let remedy = "use host:port, as other machines reach it";
                return Err(Senseless::new("member.address", &member.address, remedy));
            }
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), Senseless> {
        let raft = &self.raft;
        if !(10..=60_000).contains(&raft.heartbeat_ms) {
            return Err(Senseless::new(
                "raft.heartbeat_ms",
                raft.heartbeat_ms,
                "use 10 to 60000",
            ));
        }
        if raft.election_min_ms < 2 * raft.heartbeat_ms {
            return Err(Senseless::new(
                "raft.election_min_ms",
                raft.election_min_ms,
                "use at least twice raft.heartbeat_ms, or followers stand up against a live leader",
            ));
        }
        if raft.election_max_ms <= raft.election_min_ms {
            let remedy = "use more than raft.election_min_ms";
            return Err(Senseless::new(
                "raft.election_max_ms",
                raft.election_max_ms,
                remedy,
            ));
        }
        if raft.snapshot_entries < 10 {
            let remedy = "use at least 10";
            return Err(Senseless::new(
                "raft.snapshot_entries",
                raft.snapshot_entries,
                remedy,
            ));
        }
        for (key, mib) in [
            ("raft.log_map_mib", raft.log_map_mib),
            ("raft.state_map_mib", raft.state_map_mib),
        ] {
            if !(16..=1 << 20).contains(&mib) {
                return Err(Senseless::new(key, mib, "use 16 to 1048576"));
            }
        }
        let live = &self.liveness;
        if live.suspect_after_ms == 0 || live.suspect_after_ms >= live.offline_after_ms {
            return Err(Senseless::new(
                "liveness.suspect_after_ms",
                live.suspect_after_ms,
                "use more than 0 and less than liveness.offline_after_ms",
            ));
        }
        Ok(())
    }

    /// For the member itself.
    pub(crate) fn node(&self) -> NodeConfig {
        let members = self.member.iter();
        let members = members
            .map(|m| MemberAddress {
                id: m.id,
                address: m.address.clone(),
            })
            .collect();
        let bytes = |mib: u32| {
            usize::try_from(mib)
                .unwrap_or(usize::MAX)
                .saturating_mul(1 << 20)
        };
        NodeConfig {
            cluster_name: self.cluster_name.clone(),
            heartbeat_ms: self.raft.heartbeat_ms,
            election_min_ms: self.raft.election_min_ms,
            election_max_ms: self.raft.election_max_ms,
            snapshot_entries: self.raft.snapshot_entries,
            log_map_bytes: bytes(self.raft.log_map_mib),
            state_map_bytes: bytes(self.raft.state_map_mib),
            suspect_after_ms: self.liveness.suspect_after_ms,
            offline_after_ms: self.liveness.offline_after_ms,
            ..NodeConfig::new(self.node_id, &self.data_dir, members)
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn load(text: &str) -> Result<MetadConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metad.toml");
        std::fs::write(&path, text).unwrap();
        daemon::config::load(&path).map_err(|e| e.to_string())
    }

    const GOOD: &str = "node_id = 1\nlisten = \"127.0.0.1:7700\"\n\
        [[member]]\nid = 1\naddress = \"127.0.0.1:7700\"\n";

    #[test]
    fn the_shortest_configuration_is_good() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.node().heartbeat_ms, 500);
        assert_eq!(config.metrics_listen, ([127, 0, 0, 1], 9701).into());
    }

    #[test]
    fn mistakes_name_key_and_remedy() {
        let cases = [
            (GOOD.replace("node_id = 1", "node_id = 2"), "node_id = 2"),
            (
                GOOD.replace("127.0.0.1:7700\"\n[[", "0.0.0.0:7700\"\n[["),
                "allow_plaintext_network",
            ),
            (
                format!("{GOOD}[[member]]\nid = 2\naddress = \"a:1\"\n"),
                "1, 3 or 5",
            ),
            (
                GOOD.replace("address = \"127.0.0.1:7700\"", "address = \"here\""),
                "host:port",
            ),
            (
                format!("{GOOD}[raft]\nheartbeat_ms = 2000\n"),
                "raft.election_min_ms",
            ),
            (format!("{GOOD}[raft]\nheartbeat = 2000\n"), "heartbeat"),
            (
                format!("{GOOD}[liveness]\nsuspect_after_ms = 40000\n"),
                "liveness.suspect_after_ms",
            ),
        ];
        for (text, part) in cases {
            let error = load(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}

//! `clientd.toml`.

use daemon::config::{ArenaConfig, Config, Senseless};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientdConfig {
    /// Name of this host, unique in the cluster.
    pub(crate) name: String,
    /// Where the host's identity is kept.
    pub(crate) data_dir: PathBuf,
    /// Addresses of the metad members.
    pub(crate) metad: Vec<SocketAddr>,
    /// Where `/metrics` answers; absent: nowhere.
    #[serde(default)]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// How often liveness is shown, in milliseconds.
    #[serde(default = "report_interval_ms_default")]
    pub(crate) report_interval_ms: u64,
    /// Buffers of the reactor.
    #[serde(default)]
    pub(crate) arena: ArenaConfig,
    /// The connections to storage servers.
    #[serde(default)]
    pub(crate) paths: Paths,
    /// Every volume.
    #[serde(default)]
    pub(crate) volume: VolumeKnobs,
    /// The block devices.
    #[serde(default)]
    pub(crate) ublk: UblkKnobs,
}

const fn report_interval_ms_default() -> u64 {
    5_000
}

/// The connections to storage servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Paths {
    /// A command that takes longer breaks its connection, in milliseconds.
    pub(crate) command_deadline_ms: u32,
    /// Keep-alive timeout, in milliseconds; an idle connection is touched every half of it.
    pub(crate) keep_alive_ms: u32,
    /// CRC32C over PDU headers.
    pub(crate) header_digest: bool,
    /// CRC32C over payloads.
    pub(crate) data_digest: bool,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            command_deadline_ms: 5_000,
            keep_alive_ms: 15_000,
            header_digest: false,
            data_digest: false,
        }
    }
}

/// Every volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VolumeKnobs {
    /// How long a store may be without a connection before the volume goes on without it, in
    /// milliseconds.
    pub(crate) degrade_grace_ms: u64,
    /// How long an attach waits for stores to answer, in milliseconds.
    pub(crate) attach_wait_ms: u64,
    /// Resilver speed limit in bytes per second; zero is none.
    pub(crate) resilver_bytes_per_s_max: u64,
    /// How long after a write marks are cleaned, in milliseconds; zero is never.
    pub(crate) stable_period_ms: u64,
}

impl Default for VolumeKnobs {
    fn default() -> Self {
        let usual = volume::VolumeOptions::default();
        Self {
            degrade_grace_ms: usual.degrade_grace_ms,
            attach_wait_ms: usual.attach_wait_ms,
            resilver_bytes_per_s_max: usual.resilver_bytes_per_s_max,
            stable_period_ms: usual.stable_period_ms,
        }
    }
}

/// The block devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct UblkKnobs {
    /// Queues per device.
    pub(crate) queue_count: u16,
    /// Requests in flight per queue.
    pub(crate) queue_depth: u16,
}

impl Default for UblkKnobs {
    fn default() -> Self {
        Self {
            queue_count: 1,
            queue_depth: 128,
        }
    }
}

impl Config for ClientdConfig {
    fn check(&self) -> Result<(), Senseless> {
        let within = |key: &str, value: u64, min: u64, max: u64| {
            let good = (min..=max).contains(&value);
            let remedy = format!("use {min} to {max}");
            if good {
                Ok(())
            } else {
                Err(Senseless::new(key, value, &remedy))
            }
        };
        if self.name.is_empty() {
            return Err(Senseless::new("name", "\"\"", "give the host a name"));
        }
        if self.metad.is_empty() {
            return Err(Senseless::new(
                "metad",
                "[]",
                "name at least one metad address",
            ));
        }
        within("report_interval_ms", self.report_interval_ms, 100, 60_000)?;
        within(
            "paths.command_deadline_ms",
            self.paths.command_deadline_ms.into(),
            100,
            600_000,
        )?;
        within(
            "paths.keep_alive_ms",
            self.paths.keep_alive_ms.into(),
            1_000,
            600_000,
        )?;
        within(
            "volume.degrade_grace_ms",
            self.volume.degrade_grace_ms,
            0,
            600_000,
        )?;
        within(
            "volume.attach_wait_ms",
            self.volume.attach_wait_ms,
            100,
            600_000,
        )?;
        within("ublk.queue_count", self.ublk.queue_count.into(), 1, 64)?;
        within("ublk.queue_depth", self.ublk.queue_depth.into(), 1, 1024)?;
        self.arena.check()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const GOOD: &str = "name = \"h1\"\ndata_dir = \"state\"\nmetad = [\"127.0.0.1:7001\"]\n";

    #[test]
    fn the_smallest_file_is_good() {
        toml::from_str::<ClientdConfig>(GOOD)
            .unwrap()
            .check()
            .unwrap();
    }

    #[test]
    fn a_deadline_of_zero_is_refused_with_its_key() {
        let text = format!("{GOOD}[paths]\ncommand_deadline_ms = 0\n");
        let refused = toml::from_str::<ClientdConfig>(&text)
            .unwrap()
            .check()
            .unwrap_err();
        assert_eq!(refused.key, "paths.command_deadline_ms");
    }
}

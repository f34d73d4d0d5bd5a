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
    /// Where this process leaves word for the next one; a directory that a reboot empties.
    #[serde(default = "runtime_dir_default")]
    pub(crate) runtime_dir: PathBuf,
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

fn runtime_dir_default() -> PathBuf {
    PathBuf::from("/run/ublkstor/clientd")
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
    /// How long a store may keep a write waiting that others have done before the volume goes on
    /// without it, in milliseconds; zero is for ever.
    pub(crate) slow_ms: u64,
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
            slow_ms: usual.slow_ms,
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

impl UblkKnobs {
    fn check(&self) -> Result<(), Senseless> {
        let [count_max, depth_max] = [ublk::limits::QUEUES_MAX, ublk::limits::QUEUE_DEPTH_MAX];
        if !(1..=count_max).contains(&self.queue_count) {
            let remedy = format!("use 1 to {count_max}");
            return Err(Senseless::new(
                "ublk.queue_count",
                self.queue_count,
                &remedy,
            ));
        }
        if !(1..=depth_max).contains(&self.queue_depth) {
            let remedy = format!("use 1 to {depth_max}");
            return Err(Senseless::new(
                "ublk.queue_depth",
                self.queue_depth,
                &remedy,
            ));
        }
        let requests = usize::from(self.queue_count) * usize::from(self.queue_depth);
        let requests_max = volume::limits::HOST_OPS_MAX;
        if requests > requests_max {
            let found = format!("{} ({} queues)", self.queue_depth, self.queue_count);
            let remedy = format!(
                "that is {requests} requests, and a volume takes {requests_max}; lower queue_depth or queue_count"
            );
            return Err(Senseless::new("ublk.queue_depth", found, &remedy));
        }
        Ok(())
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
        // metad suspects a daemon that is silent for 12 s.
        within("report_interval_ms", self.report_interval_ms, 100, 10_000)?;
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
        within("volume.slow_ms", self.volume.slow_ms, 0, 600_000)?;
        self.ublk.check()?;
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

    fn refused(text: &str) -> Option<Senseless> {
        let config = toml::from_str::<ClientdConfig>(text).unwrap();
        config.check().err()
    }

    #[test]
    fn more_queues_than_a_device_has_are_refused() {
        let queues =
            |count: u32| format!("{GOOD}[ublk]\nqueue_count = {count}\nqueue_depth = 64\n");
        assert!(refused(&queues(16)).is_none());
        assert_eq!(refused(&queues(17)).unwrap().key, "ublk.queue_count");
    }

    #[test]
    fn more_requests_than_a_volume_takes_are_refused() {
        let queues = |depth: u32| format!("{GOOD}[ublk]\nqueue_count = 8\nqueue_depth = {depth}\n");
        assert!(refused(&queues(128)).is_none());
        let refused = refused(&queues(129)).unwrap();
        assert_eq!(refused.key, "ublk.queue_depth");
        assert!(
            refused.remedy.contains("1032 requests"),
            "{}",
            refused.remedy
        );
    }

    #[test]
    fn reports_come_more_often_than_metad_suspects() {
        let interval = |ms: u64| format!("report_interval_ms = {ms}\n{GOOD}");
        assert!(refused(&interval(10_000)).is_none());
        assert_eq!(
            refused(&interval(10_001)).unwrap().key,
            "report_interval_ms"
        );
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

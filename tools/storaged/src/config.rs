//! `storaged.toml`.

use daemon::config::{ArenaConfig, Config, Senseless};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoragedConfig {
    /// Name of this server, unique in the cluster.
    pub(crate) name: String,
    /// Where the server's identity is kept.
    pub(crate) data_dir: PathBuf,
    /// Where the NVMe/TCP target listens.
    pub(crate) listen: SocketAddr,
    /// The address others reach it at, if it differs from `listen`.
    #[serde(default)]
    pub(crate) advertise: Option<SocketAddr>,
    /// Addresses of the metad members.
    pub(crate) metad: Vec<SocketAddr>,
    /// Failure-domain and other labels.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// Where `/metrics` answers; absent: nowhere.
    #[serde(default)]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// How often usage is reported and liveness shown, in milliseconds.
    #[serde(default = "report_interval_ms_default")]
    pub(crate) report_interval_ms: u64,
    /// Limit for bringing volumes up to date that no host uses, in bytes per second; zero is none.
    #[serde(default = "resilver_bytes_per_s_max_default")]
    pub(crate) resilver_bytes_per_s_max: u64,
    /// In how many days, or part of a day, each store is read once and compared with its checksums;
    /// zero: never.
    #[serde(default = "scrub_days_default")]
    pub(crate) scrub_days: f64,
    /// Limit for that, for each store, in bytes per second.
    #[serde(default = "scrub_bytes_per_s_max_default")]
    pub(crate) scrub_bytes_per_s_max: u64,
    /// Buffers of the reactor.
    #[serde(default)]
    pub(crate) arena: ArenaConfig,
    /// The stores.
    #[serde(default, rename = "store")]
    pub(crate) stores: Vec<StoreConfig>,
}

const fn report_interval_ms_default() -> u64 {
    5_000
}

/// A 10 Gbit/s port keeps most of its bandwidth for hosts, and 1 TiB takes 4.7 hours.
const fn resilver_bytes_per_s_max_default() -> u64 {
    64 << 20
}

const fn scrub_days_default() -> f64 {
    7.0
}

/// Longer than that a scrub would hardly find anything in time.
const SCRUB_DAYS_MAX: f64 = 3_650.0;

/// A small part of what any disk does; 4.6 TiB in a week.
const fn scrub_bytes_per_s_max_default() -> u64 {
    8 << 20
}

/// Slower than that a scrub would never see its end.
const SCRUB_BYTES_PER_S_MIN: u64 = 64 << 10;

/// Slower than that a volume would look as if it did not move.
const RESILVER_BYTES_PER_S_MIN: u64 = 1 << 20;

/// One store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreConfig {
    /// A block device prepared with `ubsctl store prepare`, or a regular file.
    pub(crate) path: PathBuf,
    /// For a regular file that does not exist yet: create and prepare it with this size, in bytes.
    #[serde(default)]
    pub(crate) create_bytes: Option<u64>,
}

impl Config for StoragedConfig {
    fn check(&self) -> Result<(), Senseless> {
        if self.name.is_empty() {
            return Err(Senseless::new("name", "\"\"", "give the server a name"));
        }
        if self.metad.is_empty() {
            return Err(Senseless::new(
                "metad",
                "[]",
                "name at least one metad address",
            ));
        }
        if self.stores.is_empty() {
            return Err(Senseless::new(
                "store",
                "[]",
                "add at least one [[store]] with a path",
            ));
        }
        let advertised = self.advertise.unwrap_or(self.listen);
        if advertised.ip().is_unspecified() {
            return Err(Senseless::new(
                "advertise",
                advertised,
                "clients cannot connect to an unspecified address; set advertise to this host's",
            ));
        }
        for (i, store) in self.stores.iter().enumerate() {
            if self.stores[..i]
                .iter()
                .any(|other| other.path == store.path)
            {
                let path = store.path.display();
                return Err(Senseless::new(
                    "store.path",
                    path,
                    "is listed twice; remove one",
                ));
            }
        }
        // metad suspects a daemon that is silent for 12 s.
        if !(100..=10_000).contains(&self.report_interval_ms) {
            let found = self.report_interval_ms;
            return Err(Senseless::new(
                "report_interval_ms",
                found,
                "use 100 to 10000",
            ));
        }
        let rate = self.resilver_bytes_per_s_max;
        if (1..RESILVER_BYTES_PER_S_MIN).contains(&rate) {
            return Err(Senseless::new(
                "resilver_bytes_per_s_max",
                rate,
                "use at least 1048576 (1 MiB/s), or 0 for no limit",
            ));
        }
        if !(0.0..=SCRUB_DAYS_MAX).contains(&self.scrub_days) {
            return Err(Senseless::new(
                "scrub_days",
                self.scrub_days,
                "use 0 for no scrub, or at most 3650 days",
            ));
        }
        let rate = self.scrub_bytes_per_s_max;
        if self.scrub_days > 0.0 && rate < SCRUB_BYTES_PER_S_MIN {
            return Err(Senseless::new(
                "scrub_bytes_per_s_max",
                rate,
                "use at least 65536 (64 KiB/s), or scrub_days = 0 for no scrub",
            ));
        }
        self.arena.check()
    }
}

impl StoragedConfig {
    /// How stores are scrubbed.
    pub(crate) fn scrub(&self) -> Option<store::ScrubPace> {
        const DAY_S: f64 = 24.0 * 3600.0;
        (self.scrub_days > 0.0).then(|| store::ScrubPace {
            period: std::time::Duration::from_secs_f64(self.scrub_days * DAY_S),
            bytes_per_s_max: self.scrub_bytes_per_s_max,
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const GOOD: &str = r#"
        name = "s1"
        data_dir = "state"
        listen = "127.0.0.1:4420"
        metad = ["127.0.0.1:7001"]
        [[store]]
        path = "s1.img"
    "#;

    fn parse(text: &str) -> StoragedConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_smallest_file_is_good() {
        parse(GOOD).check().unwrap();
    }

    #[test]
    fn reports_come_more_often_than_metad_suspects() {
        let config = |ms: u64| parse(&format!("report_interval_ms = {ms}\n{GOOD}"));
        assert_eq!(
            config(10_001).check().unwrap_err().key,
            "report_interval_ms"
        );
        config(10_000).check().unwrap();
    }

    #[test]
    fn a_resilver_that_would_hardly_move_is_refused() {
        let config = |rate: u64| parse(&format!("resilver_bytes_per_s_max = {rate}\n{GOOD}"));
        let error = config(1_000_000).check().unwrap_err();
        assert_eq!(error.key, "resilver_bytes_per_s_max");
        config(0).check().unwrap();
        config(1 << 20).check().unwrap();
        assert_eq!(parse(GOOD).resilver_bytes_per_s_max, 64 << 20);
    }

    #[test]
    fn an_unspecified_address_is_not_advertised() {
        let config = parse(&GOOD.replace("127.0.0.1:4420", "0.0.0.0:4420"));
        assert_eq!(config.check().unwrap_err().key, "advertise");
    }

    #[test]
    fn a_store_listed_twice_is_refused() {
        let config = parse(&format!("{GOOD}\n[[store]]\npath = \"s1.img\"\n"));
        assert_eq!(config.check().unwrap_err().key, "store.path");
    }
}

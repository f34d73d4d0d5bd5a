//! What every verb has: a client, an output format, patience.

use crate::failure::Failure;
use crate::output::Format;
use control::api::{Filter, HostView, ServerView, SnapshotView, StoreView, Versioned, VolumeView};
use control::client::{ClientConfig, MetadClient, MetadError};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONFIG: &str = "/etc/ublkstor/ubsctl.toml";
const METAD_DEFAULT: &str = "127.0.0.1:7700";

/// Heading of the options of every verb, so that help texts show a verb's own first.
const COMMON: &str = "Options of every command";

/// Options of every verb.
#[derive(clap::Args)]
pub(crate) struct Globals {
    /// Members of metad, host:port, separated by commas [default: `metad` in the configuration,
    /// else 127.0.0.1:7700]
    #[arg(
        long,
        global = true,
        env = "UBS_METAD",
        hide_env_values = true,
        help_heading = COMMON,
        value_delimiter = ',',
        value_name = "ADDRESSES"
    )]
    metad: Vec<String>,
    /// Configuration file [default: /etc/ublkstor/ubsctl.toml, if it is there]
    #[arg(long, global = true, help_heading = COMMON, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Output format
    #[arg(short, long, global = true, help_heading = COMMON, value_enum,
        default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Longest wait for an answer and for --wait, in seconds
    #[arg(long, global = true, help_heading = COMMON, default_value_t = 60,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

impl Globals {
    /// Longest wait.
    pub(crate) const fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// `ubsctl.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    metad: Vec<String>,
}

fn read_config(path: Option<&Path>) -> Result<Config, Failure> {
    let (path, required) = match path {
        Some(path) => (path, true),
        None => (Path::new(CONFIG), false),
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if !required && e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Config::default());
        }
        Err(e) => {
            return Err(Failure::usage(format!(
                "cannot read {}: {e}",
                path.display()
            )));
        }
    };
    toml::from_str(&text).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

/// See the module.
pub(crate) struct Context {
    pub(crate) client: MetadClient,
    pub(crate) format: Format,
    pub(crate) timeout: Duration,
}

impl Context {
    pub(crate) fn new(globals: &Globals) -> Result<Self, Failure> {
        Self::asking(globals, Self::members(globals)?)
    }

    /// The members that somebody named: on the command line, in the environment, in the file.
    pub(crate) fn members(globals: &Globals) -> Result<Option<Vec<String>>, Failure> {
        let named = globals.metad.iter().filter(|m| !m.is_empty());
        let mut members: Vec<String> = named.cloned().collect();
        if members.is_empty() {
            members = read_config(globals.config.as_deref())?.metad;
        }
        Ok(Some(members).filter(|m| !m.is_empty()))
    }

    /// Asks these members; `None`: one on this machine, as `dev` and single hosts have it.
    pub(crate) fn asking(globals: &Globals, members: Option<Vec<String>>) -> Result<Self, Failure> {
        let members = members.unwrap_or_else(|| vec![METAD_DEFAULT.into()]);
        for member in &members {
            let port = member.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                return Err(Failure::usage(format!(
                    "{member:?} is not the address of a metad; use host:port"
                )));
            }
        }
        let config = ClientConfig {
            deadline_ms: globals.timeout * 1_000,
            ..ClientConfig::new(members, concat!("ubsctl ", env!("CARGO_PKG_VERSION")))
        };
        Ok(Self {
            client: MetadClient::new(config),
            format: globals.output,
            timeout: Duration::from_secs(globals.timeout),
        })
    }

    /// The volume of a name or id.
    pub(crate) async fn volume(&self, name: &str) -> Result<VolumeView, Failure> {
        let found = self.client.volumes(named(name)).await?.list;
        found
            .into_iter()
            .next()
            .ok_or_else(|| Failure::not_found("volume", name))
    }

    /// The server of a name or id.
    pub(crate) async fn server(&self, name: &str) -> Result<ServerView, Failure> {
        let found = self.client.servers(named(name)).await?.list;
        found
            .into_iter()
            .next()
            .ok_or_else(|| Failure::not_found("server", name))
    }

    /// The client host of a name or id.
    pub(crate) async fn host(&self, name: &str) -> Result<HostView, Failure> {
        let found = self.client.hosts(named(name)).await?.list;
        found
            .into_iter()
            .next()
            .ok_or_else(|| Failure::not_found("host", name))
    }

    /// Follows a volume (`None`: it is gone) until `done` gives something or the time is up.
    pub(crate) async fn follow_volume<T>(
        &self,
        name: &str,
        mut done: impl FnMut(Option<&VolumeView>) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let look = |filter| self.client.volumes(filter);
        self.follow(name, look, |list| done(list.first())).await
    }

    /// Follows a store (`None`: it is forgotten) until `done` gives something or the time is up.
    pub(crate) async fn follow_store<T>(
        &self,
        name: &str,
        done: impl Fn(Option<&StoreView>) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let look = |filter| self.client.stores(filter);
        self.follow(name, look, |list| done(list.first())).await
    }

    /// Follows a snapshot, `VOLUME@NAME` (`None`: it is gone), until `done` gives something or the
    /// time is up.
    pub(crate) async fn follow_snapshot<T>(
        &self,
        name: &str,
        done: impl Fn(Option<&SnapshotView>) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let look = |filter| self.client.snapshots(filter);
        self.follow(name, look, |list| done(list.first())).await
    }

    async fn follow<V, T>(
        &self,
        name: &str,
        look: impl AsyncFn(Filter) -> Result<Versioned<V>, MetadError>,
        mut done: impl FnMut(&[V]) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let follow = async {
            let mut version = 0;
            loop {
                let filter = Filter {
                    name: name.to_owned(),
                    version,
                };
                let seen = look(filter).await?;
                if let Some(end) = done(&seen.list)? {
                    return Ok(end);
                }
                version = seen.version;
            }
        };
        match tokio::time::timeout(self.timeout, follow).await {
            Ok(ended) => ended.map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// Everything of this name, at once.
pub(crate) fn named(name: &str) -> Filter {
    Filter {
        name: name.to_owned(),
        version: 0,
    }
}

//! One TOML file per daemon, one typed struct, unknown keys refused.

use clap::{CommandFactory as _, FromArgMatches as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit code for a wrong command line or configuration.
pub const EXIT_USAGE: u8 = 2;

/// The command line that all daemons share.
#[derive(Debug, clap::Parser)]
pub struct Cli {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Read and check the configuration, then exit: 0 if it is good, 2 if not.
    #[arg(long)]
    pub check_config: bool,
    /// Print the configuration with all defaults filled in, then exit.
    #[arg(long)]
    pub print_config: bool,
    /// Log filter, e.g. `info` or `volume=debug,info`.
    #[arg(
        long,
        env = "UBS_LOG",
        default_value = "info,openraft=warn",
        value_name = "FILTER"
    )]
    pub log: String,
}

impl Cli {
    /// Reads the command line of a daemon; `--help` and `--version` speak in its name. Ends the
    /// process with [`EXIT_USAGE`] if the line is wrong.
    pub fn of(program: &'static str, version: &'static str, about: &'static str) -> Self {
        let command = Self::command().name(program).version(version).about(about);
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
}

/// Why a configuration is refused. Every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a value of the wrong type.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what, with the line.
        source: Box<toml::de::Error>,
    },
    /// A value that parses and makes no sense.
    #[error("{path}: {key} = {value}: {remedy}")]
    Senseless {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: String,
        /// The value found.
        value: String,
        /// What would be accepted.
        remedy: String,
    },
}

/// A value that parses and makes no sense, before the file is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Senseless {
    /// The key, dotted.
    pub key: String,
    /// The value found.
    pub value: String,
    /// What would be accepted.
    pub remedy: String,
}

impl Senseless {
    /// Shorthand for the three texts.
    pub fn new(key: &str, value: impl std::fmt::Display, remedy: &str) -> Self {
        Self {
            key: key.to_owned(),
            value: value.to_string(),
            remedy: remedy.to_owned(),
        }
    }
}

/// A daemon's configuration.
pub trait Config: DeserializeOwned + Serialize {
    /// Checks what types cannot say: ranges, relations between keys.
    ///
    /// # Errors
    /// The first value that makes no sense.
    fn check(&self) -> Result<(), Senseless>;
}

/// Reads and checks a configuration.
///
/// # Errors
/// [`ConfigError`]; nothing was changed.
pub fn load<C: Config>(path: &Path) -> Result<C, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let config: C = toml::from_str(&text).map_err(|source| ConfigError::Malformed {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    match config.check() {
        Ok(()) => Ok(config),
        Err(Senseless { key, value, remedy }) => Err(ConfigError::Senseless {
            path: path.to_owned(),
            key,
            value,
            remedy,
        }),
    }
}

/// Does what the command line asks for before a daemon starts: `Ok` holds the configuration to run
/// with, `Err` the exit code of a run that ends here.
///
/// # Errors
/// The exit code: success after `--check-config` and `--print-config`, [`EXIT_USAGE`] otherwise.
pub fn load_or_exit<C: Config>(cli: &Cli) -> Result<C, ExitCode> {
    let config: C = load(&cli.config).map_err(|error| {
        eprintln!("error: {error}");
        ExitCode::from(EXIT_USAGE)
    })?;
    if cli.print_config {
        match toml::to_string_pretty(&config) {
            Ok(text) => print!("{text}"),
            Err(error) => {
                eprintln!("error: cannot print the configuration: {error}");
                return Err(ExitCode::FAILURE);
            }
        }
        return Err(ExitCode::SUCCESS);
    }
    if cli.check_config {
        println!("{}: good", cli.config.display());
        return Err(ExitCode::SUCCESS);
    }
    Ok(config)
}

/// Buffers of a reactor, as configured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArenaConfig {
    /// Slots of 4 KiB.
    pub slots_4k: u32,
    /// Slots of 16 KiB.
    pub slots_16k: u32,
    /// Slots of 128 KiB.
    pub slots_128k: u32,
    /// Try huge pages first.
    pub huge_pages: bool,
}

impl Default for ArenaConfig {
    fn default() -> Self {
        let usual = reactor::ArenaConfig::default();
        let [slots_4k, slots_16k, slots_128k] = usual.slot_counts;
        Self {
            slots_4k,
            slots_16k,
            slots_128k,
            huge_pages: usual.huge_pages,
        }
    }
}

impl ArenaConfig {
    /// As the reactor wants it.
    pub fn to_reactor(&self) -> reactor::ArenaConfig {
        reactor::ArenaConfig {
            slot_counts: [self.slots_4k, self.slots_16k, self.slots_128k],
            huge_pages: self.huge_pages,
        }
    }

    /// Enough for one connection and one store to make progress.
    ///
    /// # Errors
    /// The counts, if they are too small.
    pub fn check(&self) -> Result<(), Senseless> {
        if self.slots_4k >= 64 && self.slots_16k >= 16 && self.slots_128k >= 16 {
            return Ok(());
        }
        let found = format!(
            "{} x 4k, {} x 16k, {} x 128k",
            self.slots_4k, self.slots_16k, self.slots_128k
        );
        Err(Senseless::new(
            "arena",
            found,
            "use at least 64 x 4k, 16 x 16k and 16 x 128k",
        ))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        queue_depth: u16,
    }

    impl Config for Sample {
        fn check(&self) -> Result<(), Senseless> {
            if self.queue_depth == 0 {
                return Err(Senseless::new("queue_depth", 0, "use 1 to 4096"));
            }
            Ok(())
        }
    }

    fn load_text(text: &str) -> Result<Sample, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.toml");
        std::fs::write(&path, text).unwrap();
        load(&path).map_err(|e| {
            e.to_string()
                .replace(&dir.path().display().to_string(), "DIR")
        })
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = load_text("queue_depth = 4\nqueue_dept = 5\n").unwrap_err();
        assert!(error.contains("DIR/sample.toml"), "{error}");
        assert!(
            error.contains("queue_dept") && error.contains("line 2"),
            "{error}"
        );
    }

    #[test]
    fn a_senseless_value_names_key_value_and_remedy() {
        let error = load_text("queue_depth = 0\n").unwrap_err();
        assert_eq!(error, "DIR/sample.toml: queue_depth = 0: use 1 to 4096");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Sample>(Path::new("/nonexistent/x.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/x.toml"), "{error}");
    }
}

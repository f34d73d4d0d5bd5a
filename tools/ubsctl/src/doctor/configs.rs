//! The configurations of this host's daemons, as the daemons themselves read them.

use super::finding::{Finding, Level};
use serde::Deserialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use uuid::Uuid;

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Metad,
    Storaged,
    Clientd,
}

impl Program {
    const ALL: [Self; 3] = [Self::Metad, Self::Storaged, Self::Clientd];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Metad => "metad",
            Self::Storaged => "storaged",
            Self::Clientd => "clientd",
        }
    }
}

/// What the doctor needs of a configuration; `--print-config` fills in every default.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Settings {
    #[serde(default)]
    pub(super) data_dir: PathBuf,
    #[serde(default)]
    metad: Vec<String>,
    #[serde(default, rename = "member")]
    members: Vec<Member>,
    #[serde(default)]
    pub(super) arena: Option<Arena>,
    #[serde(default, rename = "store")]
    pub(super) stores: Vec<StorePath>,
}

#[derive(Debug, Deserialize)]
struct Member {
    address: String,
}

/// Buffers of a daemon.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Arena {
    slots_4k: u32,
    slots_16k: u32,
    slots_128k: u32,
    huge_pages: bool,
}

impl Arena {
    pub(super) const fn to_reactor(self) -> reactor::ArenaConfig {
        reactor::ArenaConfig {
            slot_counts: [self.slots_4k, self.slots_16k, self.slots_128k],
            huge_pages: self.huge_pages,
        }
    }
}

/// A store that storaged should open.
#[derive(Debug, Deserialize)]
pub(super) struct StorePath {
    pub(super) path: PathBuf,
    pub(super) create_bytes: Option<u64>,
}

/// A daemon's configuration.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) program: Program,
    /// `None`: it could not be read, and a finding says why.
    pub(super) settings: Option<Settings>,
}

impl Configured {
    /// The cluster that the data directory has joined, if it can be read.
    pub(super) fn cluster(&self) -> Option<Uuid> {
        #[derive(Deserialize)]
        struct Identity {
            cluster: Option<Uuid>,
        }
        let path = self.settings.as_ref()?.data_dir.join("identity.toml");
        let text = std::fs::read_to_string(path).ok()?;
        toml::from_str::<Identity>(&text).ok()?.cluster
    }
}

/// All of this host, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Configs {
    pub(super) all: Vec<Configured>,
    pub(super) findings: Vec<Finding>,
}

impl Configs {
    pub(super) fn read(dir: &Path) -> Self {
        let mut it = Self::default();
        let files = match files(dir) {
            Ok(files) => files,
            Err(error) => {
                let (level, remedy) = if error.kind() == ErrorKind::NotFound {
                    (
                        Level::Hint,
                        "write them there if this host shall run a daemon",
                    )
                } else {
                    (Level::Hint, "run the doctor as root to have them looked at")
                };
                let text = format!("no configurations in {}: {error}", dir.display());
                it.findings
                    .push(Finding::new(level, "configuration", text, remedy));
                return it;
            }
        };
        if files.is_empty() {
            let text = format!("no configuration of a daemon in {}", dir.display());
            let remedy = "write one there if this host shall run a daemon";
            it.findings
                .push(Finding::new(Level::Hint, "configuration", text, remedy));
        }
        for (program, path) in files {
            let (settings, finding) = examine(program, &path);
            it.findings.push(finding);
            it.all.push(Configured { program, settings });
        }
        it
    }

    /// Whether this host runs the daemon, as far as its configurations say.
    pub(super) fn has(&self, program: Program) -> bool {
        self.all.iter().any(|c| c.program == program)
    }

    /// Whether a daemon with a reactor belongs here; without any configuration one may come.
    pub(super) fn needs_reactor(&self) -> bool {
        self.all.is_empty() || self.has(Program::Storaged) || self.has(Program::Clientd)
    }

    /// The largest arena of a daemon here.
    pub(super) fn arena(&self) -> reactor::ArenaConfig {
        let settings = self.all.iter().filter_map(|c| c.settings.as_ref());
        settings
            .filter_map(|s| s.arena)
            .map(Arena::to_reactor)
            .max_by_key(reactor::ArenaConfig::len_bytes)
            .unwrap_or_default()
    }

    /// Members of metad that some daemon here is told of.
    pub(super) fn metad_addresses(&self) -> Option<Vec<String>> {
        let settings = self.all.iter().filter_map(|c| c.settings.as_ref());
        settings
            .map(|s| {
                let members = s.members.iter().map(|m| m.address.clone());
                s.metad.iter().cloned().chain(members).collect::<Vec<_>>()
            })
            .find(|addresses| !addresses.is_empty())
    }
}

/// Configurations of daemons, in the order of their names.
fn files(dir: &Path) -> std::io::Result<Vec<(Program, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let program = Program::ALL
            .into_iter()
            .find(|p| name.starts_with(p.name()));
        if let Some(program) = program.filter(|_| name.ends_with(".toml")) {
            found.push((program, path.clone()));
        }
    }
    found.sort_by(|(_, a), (_, b)| a.cmp(b));
    Ok(found)
}

/// Asks the daemon's own program, beside this one or in PATH: it alone knows its keys.
fn examine(program: Program, path: &Path) -> (Option<Settings>, Finding) {
    const CHECK: &str = "configuration";
    let name = program.name();
    let beside = std::env::current_exe().ok();
    let beside = beside.and_then(|exe| Some(exe.parent()?.join(name)));
    let executable = beside
        .filter(|p| p.is_file())
        .unwrap_or_else(|| name.into());
    let asked = Command::new(&executable)
        .arg("--print-config")
        .arg("--config")
        .arg(path)
        .output();
    let shown = path.display();
    let output = match asked {
        Ok(output) => output,
        Err(error) => {
            let text = format!("{shown} is there and {name} cannot be run: {error}");
            let remedy = format!("install {name} beside ubsctl or in PATH, or remove the file");
            return (None, Finding::new(Level::Problem, CHECK, text, remedy));
        }
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("error: ");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let remedy =
            format!("mend it; `{name} --config {shown} --check-config` tells when it is good");
        return (None, Finding::new(Level::Problem, CHECK, said, remedy));
    }
    match toml::from_str(&String::from_utf8_lossy(&output.stdout)) {
        Ok(settings) => (
            Some(settings),
            Finding::ok(CHECK, format!("{shown} is good")),
        ),
        Err(error) => {
            let text = format!("what {name} says of {shown} is not understood: {error}");
            let remedy = "install ubsctl and the daemons from one release";
            (None, Finding::new(Level::Warning, CHECK, text, remedy))
        }
    }
}

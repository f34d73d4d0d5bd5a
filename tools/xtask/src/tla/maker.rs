//! Programs of the workspace that print runs of the real machines.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Artifact, Message};

/// A program that prints runs. It is built with the features of the whole workspace, as `make test` builds it: crates
/// that were built for the tests are not built again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maker {
    build: &'static [&'static str],
    /// The target's name, and whether it is the tests of it.
    target: (&'static str, bool),
    arguments: Arguments,
}

#[derive(Clone, Copy, Debug)]
enum Arguments {
    /// The test to run.
    Test(&'static str),
    Words(&'static [&'static str]),
}

impl Maker {
    /// A unit test of a library.
    pub(super) const fn test(package: &'static str, name: &'static str) -> Self {
        Self {
            build: &["test", "--no-run", "--workspace", "--lib"],
            target: (package, true),
            arguments: Arguments::Test(name),
        }
    }

    pub(super) const fn example(name: &'static str, words: &'static [&'static str]) -> Self {
        Self {
            build: &["build", "--workspace", "--examples"],
            target: (name, false),
            arguments: Arguments::Words(words),
        }
    }

    /// The simulator of whole clusters.
    pub(super) const fn clusters(words: &'static [&'static str]) -> Self {
        Self {
            build: &["build", "--profile", "sim", "-p", "ubs-sim"],
            target: ("ubs-sim", false),
            arguments: Arguments::Words(words),
        }
    }

    /// Builds and runs it; what it printed.
    pub(super) fn run(&self, root: &Path) -> Result<String> {
        let mut program = Command::new(self.build(root)?);
        program.current_dir(root);
        match self.arguments {
            Arguments::Test(name) => program.args([name, "--nocapture"]),
            Arguments::Words(words) => program.args(words),
        };
        output(&mut program)
    }

    fn build(&self, root: &Path) -> Result<PathBuf> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build
            .current_dir(root)
            .args(self.build)
            .args(["-q", "--message-format=json-render-diagnostics"]);
        let messages = output(&mut build)?;
        for message in Message::parse_stream(messages.as_bytes()) {
            let Message::CompilerArtifact(artifact) = message.context("a message of cargo")? else {
                continue;
            };
            if self.is(&artifact) {
                let path = artifact.executable.context("a program has a path")?;
                return Ok(path.into_std_path_buf());
            }
        }
        anyhow::bail!("cargo {:?} made no program {}", self.build, self.target.0)
    }

    fn is(&self, artifact: &Artifact) -> bool {
        let (name, test) = self.target;
        artifact.executable.is_some()
            && artifact.target.name == name
            && artifact.profile.test == test
    }
}

/// What a command printed to standard output.
fn output(command: &mut Command) -> Result<String> {
    let asked = format!("{command:?}");
    let got = command.output().with_context(|| asked.clone())?;
    ensure!(
        got.status.success(),
        "{asked}: {}\n{}",
        got.status,
        String::from_utf8_lossy(&got.stderr)
    );
    String::from_utf8(got.stdout).with_context(|| format!("{asked}: not text"))
}

//! What the command line says of itself to shells, to man and to scripts.

use crate::failure::Failure;
use crate::output::{Format, document, say};
use clap_complete::Shell;
use serde_json::json;
use std::path::PathBuf;

/// `completions`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For which shell
    shell: Shell,
}

/// `man`.
#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// Where to write ubsctl.1 and a page for each command; it must exist
    dir: PathBuf,
}

pub(crate) fn run(args: &Args, command: &mut clap::Command) {
    clap_complete::generate(args.shell, command, "ubsctl", &mut std::io::stdout());
}

pub(crate) fn man(args: &ManArgs, command: clap::Command) -> Result<(), Failure> {
    clap_mangen::generate_to(command, &args.dir).map_err(|error| {
        let dir = args.dir.display();
        Failure::error(format!(
            "cannot write manual pages to {dir}: {error}; name a directory that is there"
        ))
    })
}

pub(crate) fn version(format: Format) {
    let version = env!("CARGO_PKG_VERSION");
    match format {
        Format::Table => say(&format!("ubsctl {version}")),
        Format::Json => document("Version", json!({ "version": version })),
        Format::Name => say(version),
    }
}

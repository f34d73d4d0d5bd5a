//! `ubsctl completions SHELL`.

use clap_complete::Shell;

/// `completions`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For which shell.
    shell: Shell,
}

pub(crate) fn run(args: &Args, command: &mut clap::Command) {
    clap_complete::generate(args.shell, command, "ubsctl", &mut std::io::stdout());
}

//! The operator's tool: `ubsctl NOUN VERB`.
//!
//! One module per noun. Answers go to standard output (a table for people, stable JSON for
//! scripts), errors to standard error as one sentence with what helps, and the exit code says what
//! kind of end it was ([`failure`]).
#![forbid(unsafe_code)]

mod cluster;
mod completions;
mod context;
mod dev;
mod events;
mod explain;
mod failure;
mod host;
mod meta;
mod output;
mod resilver;
mod server;
mod status;
mod store;
mod volume;

use clap::{CommandFactory as _, Parser as _, Subcommand};
use context::{Context, Globals};
use failure::Failure;
use std::process::ExitCode;

/// Operates a cluster of ublkstor.
#[derive(clap::Parser)]
#[command(name = "ubsctl", version, after_help = failure::EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// The whole cluster on one screen.
    Status,
    /// The members of metad.
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Storage servers.
    #[command(subcommand)]
    Server(server::Verb),
    /// Stores: the disks and files of the servers.
    #[command(subcommand)]
    Store(store::Verb),
    /// Client hosts.
    #[command(subcommand)]
    Host(host::Verb),
    /// Volumes.
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Replicas being brought up to date.
    #[command(subcommand)]
    Resilver(resilver::Verb),
    /// What happened.
    Events(events::Args),
    /// The replicated state itself.
    #[command(subcommand)]
    Meta(meta::Verb),
    /// A whole cluster in one directory of this machine, for trying out.
    #[command(subcommand)]
    Dev(dev::Verb),
    /// Completions for a shell.
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = run(cli);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ubsctl: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Noun::Completions(args) = cli.noun {
        completions::run(&args, &mut Cli::command());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::error(format!("cannot start: {e}")))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        if let Noun::Dev(verb) = cli.noun {
            return dev::run(verb, cli.globals.output, cli.globals.patience()).await;
        }
        let context = Context::new(&cli.globals)?;
        match cli.noun {
            Noun::Status => status::run(&context).await,
            Noun::Cluster(verb) => cluster::run(verb, &context).await,
            Noun::Server(verb) => server::run(verb, &context).await,
            Noun::Store(verb) => store::run(verb, &context).await,
            Noun::Host(verb) => host::run(verb, &context).await,
            Noun::Volume(verb) => volume::run(verb, &context).await,
            Noun::Resilver(verb) => resilver::run(verb, &context).await,
            Noun::Events(args) => events::run(&args, &context).await,
            Noun::Meta(verb) => meta::run(verb, &context).await,
            Noun::Dev(_) | Noun::Completions(_) => unreachable!("done before"),
        }
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}

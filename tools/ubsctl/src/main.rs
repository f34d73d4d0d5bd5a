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
mod doctor;
mod events;
mod explain;
mod failure;
mod fsck;
mod grow;
mod host;
mod meta;
mod output;
mod resilver;
mod ring;
mod server;
mod snapshot;
mod space;
mod status;
mod store;
mod survey;
mod volume;

use clap::{CommandFactory as _, Parser as _, Subcommand};
use context::{Context, Globals};
use failure::Failure;
use std::process::ExitCode;

/// Operates a cluster of ublkstor.
#[derive(clap::Parser)]
#[command(name = "ubsctl", version, after_help = format!("{EXAMPLES}{}", failure::EXIT_CODES))]
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
    /// Is this host fit, is the cluster well: what was found, what is needed, what to do.
    #[command(
        after_help = "Examples:\n  ubsctl doctor                 # this host and the cluster\n  \
        ubsctl doctor --host-only     # before anything runs\n  \
        ubsctl doctor --cluster-only -o json\nExit code 1 if something does not work; warnings do \
        not fail."
    )]
    Doctor(doctor::Args),
    /// Volumes.
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Snapshots of volumes.
    #[command(subcommand)]
    Snapshot(snapshot::Verb),
    /// Client hosts.
    #[command(subcommand)]
    Host(host::Verb),
    /// Storage servers.
    #[command(subcommand)]
    Server(server::Verb),
    /// Stores: the disks and files of the servers.
    #[command(subcommand)]
    Store(store::Verb),
    /// Replicas being brought up to date.
    #[command(subcommand)]
    Resilver(resilver::Verb),
    /// What happened.
    Events(events::Args),
    /// The members of metad, and limits of the cluster.
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// The replicated state itself.
    #[command(subcommand)]
    Meta(meta::Verb),
    /// A whole cluster in one directory of this machine, for trying out.
    #[command(subcommand)]
    Dev(dev::Verb),
    /// Completions for a shell, on standard output.
    #[command(after_help = "Example: ubsctl completions bash > /etc/bash_completion.d/ubsctl")]
    Completions(completions::Args),
    /// Manual pages, into a directory.
    #[command(after_help = "Example: ubsctl man /usr/local/share/man/man1")]
    Man(completions::ManArgs),
    /// The version of this program; `cluster status` shows those of metad.
    Version,
}

/// What people do most, for `--help`.
const EXAMPLES: &str = "Examples:\n  ubsctl dev up --dir /tmp/ubs           # a cluster to try out\n  \
    ubsctl volume create data --size 10GiB --wait\n  \
    ubsctl volume attach data --on HOST --wait\n  \
    ubsctl volume explain data             # why it is as it is, what would mend it\n  \
    ubsctl doctor\n\n";

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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::error(format!("cannot start: {e}")))?;
    tokio::task::LocalSet::new().block_on(&runtime, dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let globals = &cli.globals;
    let context = || Context::new(globals);
    match cli.noun {
        Noun::Status => status::run(&context()?).await,
        Noun::Cluster(verb) => cluster::run(verb, &context()?).await,
        Noun::Server(verb) => server::run(verb, &context()?).await,
        Noun::Store(verb) => store::run(verb, &context()?).await,
        Noun::Host(verb) => host::run(verb, &context()?).await,
        Noun::Volume(verb) => volume::run(verb, &context()?).await,
        Noun::Snapshot(verb) => snapshot::run(verb, &context()?).await,
        Noun::Resilver(verb) => resilver::run(verb, &context()?).await,
        Noun::Events(args) => events::run(&args, &context()?).await,
        Noun::Meta(verb) => meta::run(verb, &context()?).await,
        Noun::Doctor(args) => doctor::run(&args, globals).await,
        Noun::Dev(verb) => dev::run(verb, globals.output, globals.patience()).await,
        Noun::Completions(args) => {
            completions::run(&args, &mut Cli::command());
            Ok(())
        }
        Noun::Man(args) => completions::man(&args, Cli::command()),
        Noun::Version => {
            completions::version(globals.output);
            Ok(())
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}

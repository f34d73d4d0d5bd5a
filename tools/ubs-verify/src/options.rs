//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use ubs_verify::Handover;

#[derive(Debug, Parser)]
#[command(
    name = "ubs-verify",
    version,
    about = "Writes stamped blocks, keeps a journal of them, and says of every block that is read whether it may be",
    after_help = "Exit codes: 0 all as it may be; 1 wrong data; 2 the command could not be carried out; 3 the device \
                  reported IO errors, and no wrong data."
)]
pub(crate) struct Cli {
    /// How to report
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Write to the device until the time, the count or a signal ends it. Overwrites it
    Write(Load),
    /// Read everything and judge it by the journal
    Check(Check),
    /// Write and read back at the same time, then check everything. Overwrites the device
    Run(Load),
    /// Compare the replicas of a volume directly: the stores of stopped storaged. Changes nothing
    Compare(Compare),
}

/// What to work on.
#[derive(Clone, Debug, Args)]
pub(crate) struct On {
    /// Block device or file
    pub(crate) device: PathBuf,
    /// Where the journal is or will be: a file outside of what may fail, or a character device or pipe
    /// that is written only
    #[arg(long, value_name = "FILE")]
    pub(crate) journal: PathBuf,
    /// How the device came to us since the journal was written
    #[arg(long, value_enum, default_value_t = HandoverArg::Continued)]
    pub(crate) since: HandoverArg,
    /// Requests in flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) depth: u16,
    /// Stop after so many IO errors
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) errors_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HandoverArg {
    /// The device stayed: everything completed must be there
    Continued,
    /// It was detached in order and attached again: everything completed is durable
    Clean,
    /// Power cut, crash or forced detach: what was flushed must be there
    Unclean,
}

impl From<HandoverArg> for Handover {
    fn from(arg: HandoverArg) -> Self {
        match arg {
            HandoverArg::Continued => Self::Continued,
            HandoverArg::Clean => Self::Clean,
            HandoverArg::Unclean => Self::Unclean,
        }
    }
}

/// What to do to it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    #[command(flatten)]
    pub(crate) on: On,
    /// Seconds to go on; 0: until another limit or a signal
    #[arg(long, default_value_t = 0)]
    pub(crate) seconds: u64,
    /// Requests to make; 0: until another limit or a signal
    #[arg(long, default_value_t = 0)]
    pub(crate) ops: u64,
    /// Requests per second at most; 0: no limit
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u32,
    /// Where the next request goes
    #[arg(long, value_enum, default_value_t = Where::Random)]
    pub(crate) pattern: Where,
    /// Use the first so many blocks of 4 KiB; 0: the whole device
    #[arg(long, default_value_t = 0, value_name = "BLOCKS")]
    pub(crate) blocks: u64,
    /// Largest request, in blocks; sizes are random up to it
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) io_blocks: u32,
    /// Flush after so many writes; 0: never
    #[arg(long, default_value_t = 64)]
    pub(crate) flush_every: u64,
    /// Percentage of writes that are durable by themselves
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) fua_percent: u8,
    /// Percentage of writes that discard instead
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) zero_percent: u8,
    /// Percentage of requests that read (`run` only)
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_percent: u8,
    /// Same seed, same requests
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// A new journal: the device is known to hold zeroes
    #[arg(long)]
    pub(crate) fresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Where {
    /// Anywhere
    Random,
    /// One after the other, again and again
    Sequential,
    /// Nine of ten in the first twentieth
    Hot,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) on: On,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Compare {
    /// The volume's uuid, as `ubsctl volume show` has it
    #[arg(long, value_name = "UUID")]
    pub(crate) volume: uuid::Uuid,
    /// The stores that hold it: devices or files that no storaged has open
    #[arg(required = true, num_args = 2..)]
    pub(crate) stores: Vec<PathBuf>,
}

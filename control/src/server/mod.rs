//! A member of metad: consensus, RPC, and what the leader keeps in memory.

mod answer;
mod bootstrap;
mod duties;
mod health;
mod maintenance;
mod marker;
mod node;
mod proposals;
mod rpc;
mod views;

pub use node::{Node, NodeConfig, StartError};

/// Most connections a member serves; more are closed at once.
const CONNECTIONS_MAX: usize = 2048;
/// Most questions one connection may have open, long watches included.
const QUESTIONS_PER_CONNECTION_MAX: usize = 256;
/// Most commands on their way through the log.
const PROPOSALS_MAX: usize = 1024;
/// Largest encoded command, bytes. The largest sound one is a few kilobytes.
const COMMAND_BYTES_MAX: usize = 64 * 1024;
/// Commands are refused when the log's map is this full; votes, appends and purges go on.
const LOG_FILL_PERCENT_MAX: u8 = 75;
/// Most stores, volumes or resilvers in one report.
const REPORT_ITEMS_MAX: usize = 4096;
/// Most text of one report item, bytes.
const REPORT_TEXT_MAX: usize = 512;
/// Ended resilvers that are remembered.
const RESILVER_HISTORY_MAX: usize = 256;

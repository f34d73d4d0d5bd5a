//! Consensus: openraft 0.9 over an LMDB log, and the state machine in memory.
//!
//! All openraft types of the crate are behind this module. What lies where:
//!
//! * the log, durable before it is acknowledged: `disk` (LMDB and its writer thread), `log`;
//! * the applied state: in memory (`machine`), rebuilt after a start from the last durable snapshot
//!   and the log behind it, so that a commit costs one `fdatasync` and not two;
//! * `network`: Raft messages to other members over Cap'n Proto.

pub(crate) mod disk;
mod env;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod record;

#[cfg(test)]
mod test;

use crate::core::{Envelope, Reply};
use serde::{Deserialize, Serialize};
use std::io::Cursor;

/// The commands of one log entry, in order. Nobody sees the state between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch(pub(crate) Vec<Envelope>);

/// A reply for each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replies(pub(crate) Vec<Reply>);

openraft::declare_raft_types!(
    /// Our log entries are commands, the answers their replies.
    pub(crate) TypeConfig:
        D = Batch,
        R = Replies,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type StorageError = openraft::StorageError<u64>;

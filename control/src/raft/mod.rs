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
use std::io::Cursor;

openraft::declare_raft_types!(
    /// Our log entries are envelopes, our answers replies.
    pub(crate) TypeConfig:
        D = Envelope,
        R = Reply,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type StorageError = openraft::StorageError<u64>;

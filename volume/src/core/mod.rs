//! What clientd decides: one replication machine per volume, and a smaller one per snapshot that is read
//! ([`View`]).
//!
//! [`Replicator`] owns the volume's in-sync set as this client knows it, its sessions with the
//! stores, the order of overlapping operations, what is unflushed and what is dirty where. It
//! promises the rules of `docs/replication.md`; the caller owes it every [`Event`] that an
//! [`Effect`] asks for, exactly once, and never re-enters [`Replicator::step`].
//!
//! Handlers by concern: `attach`, `verify`, `on_path` (sessions), `on_host`, `on_write`, `on_read`,
//! `repair`, `flush`, `degrade`, `hear`, `slow`, `reconcile`, `copy`, `resilver`, `generations`, `catch_up`,
//! `stable`, `detach`. Each is a small part of one
//! machine; `ReplicatedShard.tla` is its model and the names are the same.

pub mod event;
pub mod members;

mod attach;
mod catch_up;
mod copy;
mod degrade;
mod detach;
mod dispatch;
mod flush;
mod generations;
mod hear;
mod invariants;
mod leg;
mod on_host;
mod on_path;
mod on_read;
mod on_write;
mod pace;
mod range_lock;
mod reconcile;
mod recorded;
mod repair;
mod resilver;
mod slow;
mod stable;
mod state;
mod verify;
mod view;

pub use event::{
    Answer, AttachFault, Command, CommandFacts, CommandId, CommandKind, CopyId, Effect, Event,
    FailReason, Fault, Grant, HostFault, HostWhat, OpId, Payload, Progress, RequestId, Resilvered,
    SliceFacts, Stamp, StoreState, Timer, TraceEvent, Verdict,
};
pub use members::{Members, Position, STRIDE_MAX};
pub use state::{Config, Outbox, Replicator};
pub use view::View;

/// A store that left this soon after joining waits longer before it is taken in again.
const HYSTERESIS_MS: u64 = 60_000;

#[cfg(test)]
mod test;

//! The replicated state machine: what the cluster is, and how a command changes it.
//!
//! [`apply`](apply::apply) is total and deterministic: the same commands in the same order give the
//! same [`State`], replies and [`Change`]s on every member. It has no clock, no IO and no
//! randomness: identities and times arrive inside the [`Envelope`]. Referential checks happen here
//! and nowhere else; a command that fails them changes nothing and is answered with a
//! [`Refusal`] that names the thing, the value and the remedy.

pub mod apply;
pub mod command;
pub mod desire;
pub mod fsck;
pub mod limits;
pub mod model;
pub mod refusal;

pub use apply::apply;
pub use command::{
    AttachGrant, Change, ClientId, Command, Envelope, EventRecord, NewHost, NewServer,
    NewSpaceLimits, NewStore, NewVolume, Reply, RollbackFate, SliceAddress, SnapshotFate, Subject,
};
pub use desire::{DesiredAttachment, DesiredMaintenance, DesiredSlice, SliceParent};
pub use fsck::{Finding, fsck};
pub use model::{
    Attachment, CLIENTD_NQN_PREFIX, Cluster, Domain, Host, HostId, Maintenance, Origin, Phase,
    READER_HOST_NQN_PREFIX, Rollback, STORAGED_HOST_NQN_PREFIX, Server, SetId, Slice, Snapshot,
    SpaceLimits, Standing, State, Store, StrideSet, Volume, reader_host_nqn, storaged_host_nqn,
};
pub use refusal::{Refusal, RefusalCode};

#[cfg(test)]
pub(crate) mod test;

//! The replication client: attach, fan-out, flush, degrade, resilver.
//!
//! [`core`] decides (one state machine per volume, no IO, no clock); the shell carries its effects
//! to the stores. The rules are those of `docs/replication.md`.
#![forbid(unsafe_code)]

pub mod api;
pub mod core;
pub mod limits;
pub mod shell;

pub use api::{
    AttachGrant, HostBuffer, HostOp, HostRequest, MetadAnswer, MetadVerdict, NotTaken, NotTakenWhy,
    SlicePath, StoreStatus, ViewGrant, VolumeCounters, VolumeEvent, VolumeOptions, VolumeStatus,
};
pub use core::{
    AttachFault, CommandFacts, CommandKind, FailReason, HostFault, Progress, Resilvered,
    StoreState, TraceEvent,
};
pub use shell::{GrantFault, Volumes, VolumesConfig, is_zero};

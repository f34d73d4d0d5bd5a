//! What clientd decides: one replication machine per volume.

pub mod event;
pub mod members;

pub use event::{
    Answer, AttachFault, Command, CommandId, CopyId, Effect, Event, FailReason, Fault, Grant,
    HostFault, HostWhat, OpId, Payload, Progress, RequestId, Resilvered, SliceFacts, Stamp,
    StoreState, Timer, TraceEvent, Verdict,
};
pub use members::{Members, Position};

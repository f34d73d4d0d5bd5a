//! Completion-driven IO: one thread, one ring, one arena.
//!
//! The reactor moves bytes, descriptors and tokens; it knows nothing of blocks, shards or volumes.
//! A shell [`submit`](Driver::submit)s an [`Op`] that owns every buffer the kernel may touch, and
//! gets the same `Op` back in exactly one [`Completion`]. Drivers differ in how they do it
//! (`uring`: the kernel's completion queue; `sim`: a seeded world under virtual time) and not in
//! what they promise:
//!
//! * every submitted op completes exactly once, also after [`cancel`](Driver::cancel) and during
//!   shutdown;
//! * no completion is delivered from inside a call to the driver;
//! * [`Op::Close`] completes after every other op on its handle has completed;
//! * nothing runs while nothing happens: no tick, no poll.
//!
//! Unsafe code of the workspace lives here (and in the ublk mapping), nowhere else.

pub mod app;
pub mod arena;
#[cfg(test)]
mod chaos;
pub mod counters;
pub mod driver;
pub mod error;
#[cfg(test)]
mod parity;
pub mod probe;
pub mod queue;
pub mod sim;
mod slab;
mod timer;
pub mod uring;

pub use app::App;
pub use arena::{Arena, ArenaConfig, Buf, BufMut};
pub use counters::Counters;
pub use driver::{
    Completion, Done, Doorbell, Driver, Event, FileFacts, FileKind, Handle, Op, OpId, OpenFile,
    SEND_PARTS_MAX, TimerId, Token,
};
pub use error::{Errno, SetupError};
pub use probe::{Feature, Features};
pub use queue::Mailbox;
pub use uring::{UringConfig, UringDriver};

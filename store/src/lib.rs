//! The data store: one backing device, cut into slices of volumes.
//!
//! [`core`] decides (extent map, journal, sessions, marks, recovery) and performs no IO; the shell
//! performs what it decided on a [`reactor::Driver`]. `docs/formats.md` describes the medium.
//!
//! ```text
//! Store::open(io: &mut dyn Driver, room: u8, index: u32, path: &Path, cluster: Uuid) -> Store
//! store.submit(io, StoreRequest, &mut Vec<StoreEvent>)
//! store.on_completion(io, Completion, &mut Vec<StoreEvent>)
//! store.stop(io, &mut Vec<StoreEvent>)                   // drains, flushes, clean mark; Stopped
//! store.slices() -> impl Iterator<Item = SliceState>     // for namespace lists
//! store.slice(Nsid) -> Option<SliceState>
//! store.usage() -> StoreUsage        store.counters() -> &Counters
//! Store::prepare(&Path, &PrepareOptions) -> Result<StoreInfo, PrepareError>     // blocking
//! Store::inspect(&Path) -> Result<StoreInfo, PrepareError>                     // blocking
//! ```
//! Every call that takes the event vector may append to it; the caller handles them afterwards.
#![forbid(unsafe_code)]

pub mod api;
pub mod core;
pub mod hash;
pub mod limits;

pub use crate::core::facts::{
    OpenFacts, OpenFault, SliceSpec, SliceState, Stamp, StoreFault, StoreUsage,
};
pub use api::{PrepareOptions, StoreEvent, StoreInfo, StoreOp, StoreReply, StoreRequest};

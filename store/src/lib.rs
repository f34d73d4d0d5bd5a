//! The data store: one backing device, cut into slices of volumes.
//!
//! [`core`] decides (extent map, journal, sessions, marks, recovery) and performs no IO; the shell
//! performs what it decided on a [`reactor::Driver`]. `docs/formats.md` describes the medium.
//!
//! ```text
//! Store::open(io, (room, index), &Path, cluster: Uuid, &mut Vec<StoreEvent>) -> Result<Store, StoreFault>
//! store.submit(io, StoreRequest, &mut Vec<StoreEvent>)
//! store.on_completion(io, Completion, &mut Vec<StoreEvent>)
//! store.stop(io, &mut Vec<StoreEvent>)                   // drains, flushes, clean mark; Stopped
//! store.scrub(io, ScrubPace)                             // from now on; StoreEvent::Rotten
//! store.slices() -> impl Iterator<Item = SliceState>     // for namespace lists
//! store.slice(Nsid) -> Option<SliceState>
//! store.usage() -> StoreUsage        store.counters() -> Counters
//! Store::prepare(&Path, &PrepareOptions) -> Result<StoreInfo, PrepareError>     // blocking
//! Store::inspect(&Path) -> Result<StoreInfo, PrepareError>                     // blocking
//! Examined::open(&Path) -> Result<Examined, StoreFault>                        // blocking, read-only
//! examined.verify(&mut FnMut(u64)) -> Verified                                 // blocking, read-only
//! Store::check(&Path) -> Result<OpenFacts, StoreFault>                         // blocking, fsck
//! ```
//! Every call that takes the event vector may append to it; the caller handles them afterwards.
#![forbid(unsafe_code)]

pub mod api;
mod buffers;
pub mod core;
pub mod counters;
mod device;
mod examine;
pub mod hash;
mod hashing;
pub mod limits;
pub mod prepare;
mod scrub;
mod signature;
mod store;
#[cfg(test)]
mod test;

pub use crate::core::facts::{
    GenerationState, Growth, GrowthFault, Healed, OpenFacts, OpenFault, Parent, Rot, SliceSpace,
    SliceSpec, SliceState, Stamp, StoreFault, StoreUsage,
};
pub use api::{PrepareOptions, StoreEvent, StoreInfo, StoreOp, StoreReply, StoreRequest};
pub use counters::Counters;
pub use examine::{Examined, Verified};
pub use prepare::PrepareError;
pub use scrub::{ScrubCounters, ScrubPace};
pub use store::Store;

//! Words of the data path and what all its cores share about a volume.
//!
//! `units` names every number; the rest of the crate answers questions about a volume's shape:
//! which store holds which shard ([`map`]), where a new volume goes ([`placement`]), which blocks
//! differ ([`dirty`]), which snapshots there are ([`generations`]), what whoever has it was granted
//! ([`grant`]). It owns no IO, no clock and no thread.
#![forbid(unsafe_code)]

pub mod canary;
pub mod dirty;
pub mod generations;
pub mod grant;
pub mod map;
pub mod placement;
pub mod units;

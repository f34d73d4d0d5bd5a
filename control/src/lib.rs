//! The control plane: what the cluster is, who agrees on it, and how programs ask.
//!
//! [`core`] is the replicated state machine, without IO. Around it stand the shells: consensus and
//! its store, the RPC server of `metad`, and the client that daemons and `ubsctl` use. Unsafe code:
//! one call, in `raft::env`.
#![deny(unsafe_code)]

pub mod api;
pub mod client;
pub mod core;
mod link;
mod raft;
pub mod server;
pub mod wall_clock;
mod wire;

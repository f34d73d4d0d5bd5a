//! NVMe over TCP: the protocol as pure machines, and the two shells that give them sockets.

#![forbid(unsafe_code)]

pub mod initiator;
pub mod proto;
pub mod target;

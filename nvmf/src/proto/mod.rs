//! The protocol without IO: codec, and the machines of both ends of a connection.
//!
//! Nothing here knows sockets, clocks or payload bytes. Headers come in as slices, payload is
//! spoken of by length and offset, time is an argument in nanoseconds.

pub mod controller;
pub mod cqe;
pub mod fabrics;
pub mod host;
pub mod identify;
pub mod log;
pub mod pdu;
pub mod receive;
pub mod sqe;
pub mod status;
pub mod vendor;

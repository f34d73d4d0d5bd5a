//! Cap'n Proto schemas of the control plane (`schema/`) and the types made from them.
//!
//! Nothing here is written by hand but the schemas; `control::wire` turns these types into those of
//! the state machine and back.

#[allow(
    clippy::all,
    clippy::unimplemented,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_debug_implementations,
    reason = "made by capnpc"
)]
pub mod control_capnp {
    include!(concat!(env!("OUT_DIR"), "/control_capnp.rs"));
}

pub use control_capnp::PROTOCOL;

//! The volume as a real `/dev/ublkbN`.
//!
//! [`Device`] joins three parts: [`control`] (blocking commands, on helper threads), [`life`] and
//! [`tag`] (what to do, without IO), and the reactor (per-IO commands and copies, on its one ring).
//! libublk is not used at run time: ADR 0003 says why; its bindings hold [`uapi`] in place in a test.
#![deny(unsafe_code)]

pub mod control;
pub mod device;
pub mod error;
pub mod hygiene;
mod job;
pub mod life;
pub mod limits;
pub mod status;
#[allow(
    unsafe_code,
    reason = "the one place of this crate for it, see its module text"
)]
mod sys;
pub mod tag;
pub mod uapi;

pub use control::{Control, DeviceInfo, DeviceSpec, DeviceState};
pub use device::{Device, DeviceConfig, RequestOp, UblkEvent};
pub use error::{ControlError, DeviceError};
pub use hygiene::protect_process;
pub use status::Fault;
pub use tag::TagIndex;

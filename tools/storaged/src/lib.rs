//! What storaged runs on its reactor: stores shown as NVMe namespaces, volumes that are brought up to
//! date because no host uses them, and the app that routes completions between the target, the
//! stores, the volumes and control.
//!
//! The program around it adds a control thread (metad, metrics, signals); the simulator adds its
//! own. Both talk to the app by [`Order`]s and [`News`] and follow metad by [`Wanted`] and
//! [`Maintenance`]. Nothing here blocks, and nothing knows a runtime.
#![forbid(unsafe_code)]

pub mod app;
mod faults;
mod healer;
pub mod healing;
pub mod hosting;
pub mod maintenance;
pub mod namespaces;
pub mod orders;
pub mod rollback;
mod roller;
mod tidy;
mod vendor;
pub mod wanted;

pub use app::Storaged;
pub use healer::Healer;
pub use healing::{Healing, Replica, Replicas};
pub use hosting::{Hosting, MaintenanceCounters};
pub use maintenance::{Ending, Maintenance, Step};
pub use namespaces::Slices;
pub use orders::{Figures, Fill, Look, MaintenanceNews, News, Order, SliceEnd, Tell};
pub use tidy::DropCounters;
pub use wanted::{Told, Wanted};

use uuid::Uuid;

/// NQN of a server's subsystem.
pub fn subsystem_nqn(server: Uuid) -> String {
    format!("nqn.2026-01.io.ublkstor:storaged:{server}")
}

/// What the target of a server says of itself.
pub fn subsystem(server: Uuid) -> nvmf::proto::controller::Identity {
    let serial: String = server.simple().to_string().chars().take(20).collect();
    let firmware = env!("CARGO_PKG_VERSION").chars().take(8).collect();
    nvmf::proto::controller::Identity {
        subnqn: subsystem_nqn(server),
        serial,
        firmware,
    }
}

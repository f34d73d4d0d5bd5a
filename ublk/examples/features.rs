//! Says what the ublk driver of this host can: one line, or why it cannot be used.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use ublk::{Control, uapi};

/// The flags we use, in the order of their bits.
const NAMES: &[(u64, &str)] = &[
    (uapi::F_USER_RECOVERY, "USER_RECOVERY"),
    (uapi::F_USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE"),
    (uapi::F_CMD_IOCTL_ENCODE, "CMD_IOCTL_ENCODE"),
    (uapi::F_USER_COPY, "USER_COPY"),
    (uapi::F_UPDATE_SIZE, "UPDATE_SIZE"),
    (uapi::F_SAFE_STOP_DEV, "SAFE_STOP_DEV"),
];

fn main() -> ExitCode {
    match Control::open() {
        Ok(control) => {
            let mask = control.features();
            let known = NAMES.iter().filter(|(flag, _)| mask & flag != 0);
            let names: Vec<&str> = known.map(|(_, name)| *name).collect();
            println!("ublk features {mask:#x}: {}", names.join(" "));
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("ublk: {why}");
            ExitCode::FAILURE
        }
    }
}

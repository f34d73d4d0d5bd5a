//! The ublk driver, and devices that nobody serves.

use super::configs::{Configs, Program};
use super::finding::{Finding, Level};
use super::host::{Module, is_root, module};
use ublk::{Control, ControlError, DeviceInfo, DeviceState, uapi};

const CHECK: &str = "ublk driver";

/// What the driver lacks that we would use, and what that means.
const OPTIONAL: [(u64, &str); 2] = [
    (
        uapi::F_UPDATE_SIZE,
        "UPDATE_SIZE (a live device cannot grow, Linux 6.16)",
    ),
    (
        uapi::F_SAFE_STOP_DEV,
        "SAFE_STOP_DEV (a device that a program has open is not known to be in use, Linux 7.0)",
    ),
];

pub(super) fn findings(configs: &Configs) -> Vec<Finding> {
    let level = match (configs.has(Program::Clientd), configs.all.is_empty()) {
        (true, _) => Level::Problem,
        (false, true) => Level::Warning,
        (false, false) => Level::Hint,
    };
    let mut control = match Control::open() {
        Ok(control) => control,
        Err(error) => return vec![why_not(&error, level)],
    };
    let absent: Vec<&str> = OPTIONAL
        .iter()
        .filter(|(flag, _)| control.features() & flag == 0)
        .map(|(_, what)| *what)
        .collect();
    let without = if absent.is_empty() {
        String::new()
    } else {
        format!(", without {}", absent.join(", "))
    };
    let told = format!("works, features {:#x}{without}", control.features());
    let mut found = vec![Finding::ok(CHECK, told)];
    match control.list() {
        Ok(devices) => found.extend(devices.iter().filter_map(left_behind)),
        Err(error) => found.push(Finding::of_error(Level::Warning, "ublk devices", &error)),
    }
    found
}

fn why_not(error: &ControlError, level: Level) -> Finding {
    match error {
        ControlError::ModuleMissing if module("ublk_drv") == Module::Absent => Finding::new(
            level,
            CHECK,
            "this kernel has no module ublk_drv",
            "clientd needs it: install the distribution's full set of kernel modules, or boot a \
             kernel with CONFIG_BLK_DEV_UBLK",
        ),
        ControlError::NotPermitted { .. } if !is_root() => Finding::new(
            Level::Hint,
            CHECK,
            "/dev/ublk-control may not be opened by this user, so the driver was not looked at",
            "run the doctor as root",
        ),
        ControlError::ModuleMissing
        | ControlError::NotPermitted { .. }
        | ControlError::NoRing { .. }
        | ControlError::DriverTooOld { .. }
        | ControlError::Refused { .. }
        | ControlError::NoAnswer { .. }
        | ControlError::Node { .. }
        | ControlError::InUse { .. }
        | ControlError::NoThread { .. }
        | ControlError::StillServed { .. }
        | ControlError::NothingToRecover { .. }
        | ControlError::Foreign { .. }
        | ControlError::Shape { .. } => Finding::of_error(level, CHECK, error),
    }
}

/// A device whose daemon is gone.
fn left_behind(device: &DeviceInfo) -> Option<Finding> {
    let what = match device.state {
        DeviceState::Live => return None,
        DeviceState::Dead => "was stopped and is still in the driver",
        DeviceState::Waiting => "has no daemon any more: whoever uses it waits",
        DeviceState::Failing => "has no daemon any more: whoever uses it gets errors",
    };
    let pid = device.daemon_pid;
    let served = pid.map_or_else(String::new, |pid| format!(" (process {pid} served it)"));
    Some(Finding::new(
        Level::Warning,
        "ublk devices",
        format!("ublk device {}{served} {what}", device.id),
        "start clientd: it takes devices of its volumes over, or removes those that are not wanted \
         here any more; a device of another program is for that one to remove",
    ))
}

#[cfg(test)]
mod test {
    use super::*;

    fn device(state: DeviceState) -> DeviceInfo {
        DeviceInfo {
            id: 4,
            state,
            queue_count: 1,
            queue_depth: 1,
            daemon_pid: Some(77),
            mark: 1,
            flags: 0,
        }
    }

    #[test]
    fn a_device_without_its_daemon_is_named_and_a_served_one_is_not() {
        assert_eq!(left_behind(&device(DeviceState::Live)), None);
        let found = left_behind(&device(DeviceState::Waiting)).unwrap();
        assert!(
            found.found.contains("device 4 (process 77 served it)"),
            "{found:?}"
        );
        assert!(found.remedy.contains("start clientd"), "{found:?}");
    }
}

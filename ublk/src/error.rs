//! Why a device could not be made, kept or removed, in an operator's words.

use crate::control::Command;
use reactor::{Errno, SetupError};
use std::path::PathBuf;

/// A control command, or what belongs to it, failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No `/dev/ublk-control`.
    #[error(
        "/dev/ublk-control is missing: the kernel module ublk_drv is not loaded; run `modprobe \
         ublk_drv`, and put the line `ublk_drv` into /etc/modules-load.d/ublkstor.conf for every \
         boot (if modprobe does not find it, install the distribution's full set of kernel modules)"
    )]
    ModuleMissing,
    /// `/dev/ublk-control` exists and may not be opened.
    #[error(
        "/dev/ublk-control cannot be opened: {errno}; block devices need root or CAP_SYS_ADMIN, \
         and in a container access to this device node"
    )]
    NotPermitted {
        /// What the kernel said.
        errno: Errno,
    },
    /// No ring for control commands.
    #[error(
        "no io_uring ring for ublk control commands: {errno} (kernel.io_uring_disabled = \
         {disabled}); set it to 0 with `sysctl -w kernel.io_uring_disabled=0`, and in a container \
         allow io_uring in its seccomp profile"
    )]
    NoRing {
        /// What the kernel said.
        errno: Errno,
        /// The sysctl's value, `?` if there is none.
        disabled: String,
    },
    /// The driver lacks what every device of ours needs.
    #[error("the kernel's ublk driver lacks {missing}; Linux 6.5 is the first to have it, upgrade")]
    DriverTooOld {
        /// Names of the missing features.
        missing: String,
    },
    /// The driver refused a command.
    #[error("ublk {command} of device {device}: {errno}{}", remedy(*.command, *.errno))]
    Refused {
        /// Which command.
        command: Command,
        /// Which device; `new` if the driver was to choose.
        device: DeviceName,
        /// What the driver said.
        errno: Errno,
    },
    /// The driver did not answer.
    #[error(
        "ublk {command} of device {device} has no answer after {seconds} s: the driver hangs or \
         crashed; see `dmesg | grep -i ublk`, then reboot this host into another kernel"
    )]
    NoAnswer {
        /// Which command.
        command: Command,
        /// Which device.
        device: DeviceName,
        /// How long we waited.
        seconds: u64,
    },
    /// `/dev/ublkcN` cannot be used.
    #[error(
        "{}: {errno}; check that /dev is a devtmpfs or that udev runs, and that no other process \
         serves this device", path.display()
    )]
    Node {
        /// The device node.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// Somebody uses the disk.
    #[error(
        "/dev/ublkb{device} is in use; unmount it, or stop what holds it (`lsblk /dev/ublkb{device}` \
         and `fuser -vm /dev/ublkb{device}` show it)"
    )]
    InUse {
        /// Which device.
        device: u32,
    },
    /// No thread for control commands.
    #[error("no thread for ublk control commands: {errno}; raise TasksMax or LimitNPROC")]
    NoThread {
        /// What the kernel said.
        errno: Errno,
    },
    /// Recovery was asked for a device that has a daemon.
    #[error(
        "/dev/ublkb{device} is still served by process {pid} after {seconds} s; stop that process \
         first"
    )]
    StillServed {
        /// Which device.
        device: u32,
        /// Its daemon.
        pid: i32,
        /// How long we waited.
        seconds: u64,
    },
    /// Recovery was asked for a device that has nothing to recover.
    #[error("ublk device {device} was never started or was stopped: nothing to recover; remove it")]
    NothingToRecover {
        /// Which device.
        device: u32,
    },
    /// Recovery was asked for somebody else's device.
    #[error(
        "ublk device {device} is not the one that was made here (mark {found:#x}, not \
         {wanted:#x}): its number was taken by another program; make a new device"
    )]
    Foreign {
        /// Which device.
        device: u32,
        /// The mark it has.
        found: u64,
        /// The mark it should have.
        wanted: u64,
    },
    /// The device has a shape that this build does not serve.
    #[error(
        "ublk device {device} has blocks of {block_bytes} bytes and IOs of {io_bytes} bytes; this \
         version serves 4096 and at most 131072: stop the device and make a new one"
    )]
    Shape {
        /// Which device.
        device: u32,
        /// Its logical block.
        block_bytes: u64,
        /// Its largest IO.
        io_bytes: u64,
    },
}

/// A device number for texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName(pub u32);

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == crate::uapi::ANY_DEVICE {
            f.write_str("new")
        } else {
            self.0.fmt(f)
        }
    }
}

/// What an operator can do about a refusal; starts with `; ` or is empty.
pub(crate) fn remedy(command: Command, errno: Errno) -> &'static str {
    match (command, errno.0) {
        (_, libc::EPERM) => "; run as root or with CAP_SYS_ADMIN",
        (Command::AddDev, libc::EEXIST) => {
            "; the number is taken: choose another one, or let the driver choose"
        }
        (Command::AddDev, libc::EACCES | libc::ENOSPC) => {
            "; the driver's limit of devices is reached: raise it with `modprobe -r ublk_drv && \
             modprobe ublk_drv ublks_max=N`"
        }
        (_, libc::ENODEV) => "; there is no such device (any more)",
        (Command::UpdateSize, libc::EOPNOTSUPP | libc::EINVAL) => {
            "; growing a live device needs Linux 6.16: detach and attach it instead"
        }
        (_, libc::EOPNOTSUPP) => "; this kernel's driver cannot do it, upgrade the kernel",
        (
            Command::TryStopDev | Command::StartUserRecovery | Command::EndUserRecovery,
            libc::EBUSY,
        ) => "; somebody still uses or serves the device",
        _ => "",
    }
}

/// A device failed. What the kernel knows of it stays as it is unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Device control failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The reactor cannot carry a device.
    #[error("the reactor cannot carry a block device: {0}")]
    Reactor(#[from] SetupError),
    /// The descriptor array cannot be mapped.
    #[error("the descriptors of ublk device {device} cannot be mapped: {errno}")]
    Mapping {
        /// Which device.
        device: u32,
        /// What the kernel said.
        errno: Errno,
    },
    /// The configuration asks for what no device can be.
    #[error("{name} = {value}: {rule}")]
    Config {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it has to be.
        rule: &'static str,
    },
    /// The driver refused a per-IO command. Requests of this tag would hang: the process has to
    /// exit, and its successor recovers the device.
    #[error(
        "the driver refused a command of queue {queue} tag {tag} of ublk device {device}: {errno}; \
         restart this daemon, it will take the device over without an IO error"
    )]
    Broken {
        /// Which device.
        device: u32,
        /// Queue.
        queue: u16,
        /// Tag.
        tag: u16,
        /// What the driver said.
        errno: Errno,
    },
    /// Growing was asked for at a moment or to a size that does not fit.
    #[error("ublk device cannot be resized to {size_bytes} bytes: {rule}")]
    Resize {
        /// Wanted size.
        size_bytes: u64,
        /// What is in the way.
        rule: &'static str,
    },
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_missing_module_names_the_command_that_loads_it() {
        assert!(
            ControlError::ModuleMissing
                .to_string()
                .contains("modprobe ublk_drv")
        );
    }

    #[test]
    fn every_refusal_names_command_device_and_reason() {
        let text = |command, device, code| {
            let errno = Errno(code);
            ControlError::Refused {
                command,
                device: DeviceName(device),
                errno,
            }
            .to_string()
        };
        let taken = text(Command::AddDev, 7, libc::EEXIST);
        assert!(
            taken.contains("add of device 7") && taken.contains("number is taken"),
            "{taken}"
        );
        let limit = text(Command::AddDev, crate::uapi::ANY_DEVICE, libc::EACCES);
        assert!(
            limit.contains("device new") && limit.contains("ublks_max"),
            "{limit}"
        );
        let rights = text(Command::StopDev, 1, libc::EPERM);
        assert!(rights.contains("CAP_SYS_ADMIN"), "{rights}");
        let plain = text(Command::SetParams, 1, libc::EINVAL);
        assert!(plain.ends_with("Invalid argument (os error 22)"), "{plain}");
    }
}

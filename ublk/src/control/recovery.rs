//! Taking over the device of a dead daemon.

use super::{Command, Control, DeviceInfo, DeviceState, is_refusal, open_char_device, retry};
use crate::error::ControlError;
use crate::limits::RECOVERY_WAIT_SECONDS;
use crate::sys;
use reactor::Errno;
use std::time::Duration;

impl Control {
    /// Begins to take over the device of a dead daemon; waits until the kernel has buried it.
    ///
    /// # Errors
    /// [`ControlError::StillServed`], [`ControlError::NothingToRecover`],
    /// [`ControlError::Foreign`], or what the driver refuses.
    pub fn start_recovery(&mut self, device: u32, mark: u64) -> Result<DeviceInfo, ControlError> {
        let info = self.info(device)?;
        if info.mark != mark {
            return Err(ControlError::Foreign {
                device,
                found: info.mark,
                wanted: mark,
            });
        }
        if info.state == DeviceState::Dead {
            return Err(ControlError::NothingToRecover { device });
        }
        match self.begin(&info) {
            Err(e) if is_refusal(&e, libc::EINVAL) => {
                if self.info(device)?.state != DeviceState::Waiting {
                    return Err(e);
                }
                repair_broken_recovery(&info)?;
                self.begin(&info)?;
            }
            begun => begun?,
        }
        self.info(device)
    }

    fn begin(&mut self, info: &DeviceInfo) -> Result<(), ControlError> {
        let begun = retry(
            Duration::from_secs(RECOVERY_WAIT_SECONDS),
            || {
                self.run(Command::StartUserRecovery, info.id, 0, Vec::new())
                    .map(drop)
            },
            |error| is_refusal(error, libc::EBUSY),
        );
        begun.map_err(|error| match error {
            e if is_refusal(&e, libc::EBUSY) => ControlError::StillServed {
                device: info.id,
                pid: info.daemon_pid.unwrap_or(-1),
                seconds: RECOVERY_WAIT_SECONDS,
            },
            e => e,
        })
    }

    /// Finishes taking over a device. Returns when all tags were fetched.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn end_recovery(&mut self, device: u32) -> Result<(), ControlError> {
        let pid = u64::from(std::process::id());
        self.run(Command::EndUserRecovery, device, pid, Vec::new())
            .map(drop)
    }
}

/// Makes a device recoverable again whose last recovery died half-way.
///
/// Drivers before Linux 6.16 forget a daemon only in `START_USER_RECOVERY`, and refuse that
/// (`EINVAL`) unless all tags have been fetched since the last one. A successor that dies between the
/// start of its recovery and its last fetch so leaves a device that nobody can map, recover or, without
/// IO errors, remove. The way out: fetch what is left, on a thread and a ring of their own which end at
/// once. Then all tags have been fetched, their daemon is dead, and recovery may start.
fn repair_broken_recovery(info: &DeviceInfo) -> Result<(), ControlError> {
    tracing::warn!(
        device = info.id,
        "an earlier recovery died half-way: repairing"
    );
    let char_device = open_char_device(info.id)?;
    let (queue_count, depth) = (info.queue_count, info.queue_depth);
    let fetch = move || sys::fetch_and_let_go(char_device, queue_count, depth);
    // The driver takes the thread for the daemon, so it has to be gone before recovery starts.
    let thread = std::thread::Builder::new()
        .name("ublk-repair".to_owned())
        .spawn(fetch);
    let fetched = match thread {
        Ok(thread) => thread.join().expect("it does not panic"),
        Err(e) => Err(e),
    };
    fetched.map_err(|e| ControlError::NoThread {
        errno: Errno(e.raw_os_error().unwrap_or(libc::EAGAIN)),
    })
}

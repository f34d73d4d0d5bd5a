//! Devices that an earlier clientd left in the kernel.

use ublk::{Control, ControlError, DeviceInfo, DeviceState};

/// What is asked of the driver.
trait Driver {
    fn list(&mut self) -> Result<Vec<DeviceInfo>, ControlError>;
    fn stop(&mut self, device: u32, force: bool) -> Result<(), ControlError>;
    fn delete(&mut self, device: u32) -> Result<(), ControlError>;
}

impl Driver for Control {
    fn list(&mut self) -> Result<Vec<DeviceInfo>, ControlError> {
        Self::list(self)
    }

    fn stop(&mut self, device: u32, force: bool) -> Result<(), ControlError> {
        Self::stop(self, device, force)
    }

    fn delete(&mut self, device: u32) -> Result<(), ControlError> {
        Self::delete(self, device)
    }
}

/// The device with this mark, if there is one. One that never lived is removed.
pub(crate) fn find(mark: u64) -> Result<Option<u32>, String> {
    let found = Control::open().and_then(|mut control| find_by(&mut control, mark));
    found.map_err(|error| error.to_string())
}

/// Removes the devices with this mark; whoever has them open gets errors instead of waiting for
/// ever. Blocks until the driver is through.
pub(crate) fn remove(mark: u64) -> Result<(), String> {
    let removed = match Control::open() {
        // Without the driver there are no devices.
        Err(ControlError::ModuleMissing) => return Ok(()),
        Err(error) => Err(error),
        Ok(mut control) => remove_by(&mut control, mark),
    };
    removed.map_err(|error| error.to_string())
}

fn find_by(driver: &mut impl Driver, mark: u64) -> Result<Option<u32>, ControlError> {
    let mut all = driver.list()?.into_iter();
    match all.find(|device| device.mark == mark) {
        Some(device) if device.state == DeviceState::Dead => {
            driver.delete(device.id)?;
            Ok(None)
        }
        other => Ok(other.map(|device| device.id)),
    }
}

fn remove_by(driver: &mut impl Driver, mark: u64) -> Result<(), ControlError> {
    let all = driver.list()?;
    for device in all.iter().filter(|d| d.mark == mark) {
        match device.state {
            DeviceState::Dead => {}
            // Nobody serves it, so nobody's writes can be saved by asking politely.
            DeviceState::Waiting | DeviceState::Failing => driver.stop(device.id, true)?,
            // The kernel has not noticed yet that its daemon is gone.
            DeviceState::Live => driver.stop(device.id, false)?,
        }
        driver.delete(device.id)?;
        tracing::info!(
            device = device.id,
            "removed the device of an earlier clientd"
        );
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    const OURS: u64 = 1;
    const OTHER: u64 = 2;

    /// Remembers what was asked.
    struct Fake {
        devices: Vec<DeviceInfo>,
        asked: Vec<String>,
        in_use: bool,
    }

    impl Driver for Fake {
        fn list(&mut self) -> Result<Vec<DeviceInfo>, ControlError> {
            Ok(self.devices.clone())
        }

        fn stop(&mut self, device: u32, force: bool) -> Result<(), ControlError> {
            self.asked.push(format!("stop {device} {force}"));
            if self.in_use && !force {
                return Err(ControlError::InUse { device });
            }
            Ok(())
        }

        fn delete(&mut self, device: u32) -> Result<(), ControlError> {
            self.asked.push(format!("delete {device}"));
            Ok(())
        }
    }

    fn fake(devices: &[(u32, u64, DeviceState)]) -> Fake {
        let info = |&(id, mark, state): &(u32, u64, DeviceState)| DeviceInfo {
            id,
            state,
            queue_count: 1,
            queue_depth: 128,
            daemon_pid: None,
            mark,
            flags: 0,
        };
        Fake {
            devices: devices.iter().map(info).collect(),
            asked: Vec::new(),
            in_use: true,
        }
    }

    #[test]
    fn a_waiting_device_is_stopped_whoever_has_it_open_and_others_stay() {
        let mut driver = fake(&[
            (3, OTHER, DeviceState::Waiting),
            (4, OURS, DeviceState::Waiting),
        ]);
        remove_by(&mut driver, OURS).unwrap();
        assert_eq!(driver.asked, ["stop 4 true", "delete 4"]);
    }

    #[test]
    fn a_device_that_is_served_and_in_use_is_not_taken_away() {
        let mut driver = fake(&[(4, OURS, DeviceState::Live)]);
        assert!(remove_by(&mut driver, OURS).is_err());
        assert_eq!(driver.asked, ["stop 4 false"]);
    }

    #[test]
    fn only_a_device_that_lived_is_taken_over() {
        let mut driver = fake(&[(4, OURS, DeviceState::Dead)]);
        assert_eq!(find_by(&mut driver, OURS).unwrap(), None);
        assert_eq!(driver.asked, ["delete 4"]);
        let mut driver = fake(&[(5, OURS, DeviceState::Waiting)]);
        assert_eq!(find_by(&mut driver, OURS).unwrap(), Some(5));
        assert!(driver.asked.is_empty());
    }
}

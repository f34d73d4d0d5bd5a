//! Device control: blocking commands on `/dev/ublk-control`.
//!
//! Never call this from a reactor thread: `START_DEV` and `END_USER_RECOVERY` wait for fetches that
//! the reactor issues, `STOP_DEV` for requests that it serves. [`crate::Device`] uses a helper
//! thread; tools without a reactor may call directly.

use crate::error::{ControlError, DeviceName};
use crate::limits::{
    BLOCK_BYTES, BLOCK_SECTORS, CONTROL_ANSWER_SECONDS, IO_BYTES_MAX, IO_OPTIMAL_SHIFT,
    NODE_WAIT_MS, RANGE_BYTES_MAX, RETRY_PAUSE_MS, SECTOR_BYTES, STOP_WAIT_MS,
};
use crate::sys::{CallFault, ControlRing};
use crate::uapi::{self, CtrlCmd, DevInfo, Params};
use reactor::Errno;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

mod recovery;

/// The control commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `GET_FEATURES`
    GetFeatures,
    /// `ADD_DEV`
    AddDev,
    /// `DEL_DEV`
    DelDev,
    /// `START_DEV`
    StartDev,
    /// `STOP_DEV`
    StopDev,
    /// `TRY_STOP_DEV`
    TryStopDev,
    /// `SET_PARAMS`
    SetParams,
    /// `GET_PARAMS`
    GetParams,
    /// `GET_DEV_INFO`
    GetDevInfo,
    /// `START_USER_RECOVERY`
    StartUserRecovery,
    /// `END_USER_RECOVERY`
    EndUserRecovery,
    /// `UPDATE_SIZE`
    UpdateSize,
}

impl Command {
    const fn number(self) -> u32 {
        match self {
            Self::GetFeatures => uapi::CMD_GET_FEATURES,
            Self::AddDev => uapi::CMD_ADD_DEV,
            Self::DelDev => uapi::CMD_DEL_DEV,
            Self::StartDev => uapi::CMD_START_DEV,
            Self::StopDev => uapi::CMD_STOP_DEV,
            Self::TryStopDev => uapi::CMD_TRY_STOP_DEV,
            Self::SetParams => uapi::CMD_SET_PARAMS,
            Self::GetParams => uapi::CMD_GET_PARAMS,
            Self::GetDevInfo => uapi::CMD_GET_DEV_INFO,
            Self::StartUserRecovery => uapi::CMD_START_USER_RECOVERY,
            Self::EndUserRecovery => uapi::CMD_END_USER_RECOVERY,
            Self::UpdateSize => uapi::CMD_UPDATE_SIZE,
        }
    }

    /// How long the driver may take. `None`: for as long as others take: a start waits for the
    /// daemon and reads partitions through it, a stop waits for requests, a delete for closes.
    const fn patience(self) -> Option<Duration> {
        match self {
            Self::StartDev
            | Self::StopDev
            | Self::TryStopDev
            | Self::EndUserRecovery
            | Self::DelDev => None,
            Self::GetFeatures
            | Self::AddDev
            | Self::SetParams
            | Self::GetParams
            | Self::GetDevInfo
            | Self::StartUserRecovery
            | Self::UpdateSize => Some(Duration::from_secs(CONTROL_ANSWER_SECONDS)),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GetFeatures => "feature query",
            Self::AddDev => "add",
            Self::DelDev => "delete",
            Self::StartDev => "start",
            Self::StopDev => "stop",
            Self::TryStopDev => "stop if unused",
            Self::SetParams => "set parameters",
            Self::GetParams => "get parameters",
            Self::GetDevInfo => "get info",
            Self::StartUserRecovery => "start of recovery",
            Self::EndUserRecovery => "end of recovery",
            Self::UpdateSize => "update size",
        })
    }
}

/// What a new device shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The N of `/dev/ublkbN`; `None` takes the next free one.
    pub wanted_id: Option<u32>,
    /// Size in blocks.
    pub size_blocks: u64,
    /// Queues. The kernel lowers it to the number of CPUs.
    pub queue_count: u16,
    /// Requests in flight per queue.
    pub queue_depth: u16,
    /// No writes.
    pub read_only: bool,
    /// No read or write crosses a multiple of this many blocks (a shard); `None` for no such rule.
    pub boundary_blocks: Option<u32>,
    /// A number of the owner's choice that the kernel keeps with the device, so that a restarted
    /// daemon can tell its device from a stranger's that got the same number.
    pub mark: u64,
}

/// State of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Not started, or stopped: there is no `/dev/ublkbN`.
    Dead,
    /// Served.
    Live,
    /// The daemon died; requests wait for the next one.
    Waiting,
    /// The daemon died; requests fail.
    Failing,
}

/// What the kernel knows of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The N of `/dev/ublkbN`.
    pub id: u32,
    /// Its state.
    pub state: DeviceState,
    /// Queues.
    pub queue_count: u16,
    /// Requests in flight per queue.
    pub queue_depth: u16,
    /// Process id of the daemon, if it has or had one.
    pub daemon_pid: Option<i32>,
    /// As given in [`DeviceSpec::mark`].
    pub mark: u64,
    /// Feature flags (`uapi::F_*`) that are in force.
    pub flags: u64,
}

impl From<DevInfo> for DeviceInfo {
    fn from(raw: DevInfo) -> Self {
        Self {
            id: raw.dev_id,
            state: match raw.state {
                uapi::STATE_LIVE => DeviceState::Live,
                uapi::STATE_QUIESCED => DeviceState::Waiting,
                uapi::STATE_FAIL_IO => DeviceState::Failing,
                _ => DeviceState::Dead,
            },
            queue_count: raw.nr_hw_queues,
            queue_depth: raw.queue_depth,
            daemon_pid: (raw.ublksrv_pid > 0).then_some(raw.ublksrv_pid),
            mark: raw.ublksrv_flags,
            flags: raw.flags,
        }
    }
}

/// `/dev/ublkbN`.
pub fn block_path(device: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{device}"))
}

/// `/dev/ublkcN`.
pub fn char_path(device: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{device}"))
}

/// Features without which no device of ours can be.
const NEEDED: [(u64, &str); 4] = [
    (uapi::F_CMD_IOCTL_ENCODE, "CMD_IOCTL_ENCODE"),
    (uapi::F_USER_COPY, "USER_COPY"),
    (uapi::F_USER_RECOVERY, "USER_RECOVERY"),
    (uapi::F_USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE"),
];

/// Features that are asked for where the driver has them.
const WANTED: u64 = uapi::F_UPDATE_SIZE | uapi::F_SAFE_STOP_DEV;

/// An open `/dev/ublk-control`.
#[derive(Debug)]
pub struct Control {
    ring: ControlRing,
    features: u64,
}

impl Control {
    /// Opens the driver's control device and asks what it can.
    ///
    /// # Errors
    /// [`ControlError::ModuleMissing`], [`ControlError::NotPermitted`], [`ControlError::NoRing`],
    /// [`ControlError::DriverTooOld`].
    pub fn open() -> Result<Self, ControlError> {
        let path = Path::new("/dev/ublk-control");
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| match errno_of(&e) {
                Errno(libc::ENOENT | libc::ENXIO | libc::ENODEV) => ControlError::ModuleMissing,
                errno => ControlError::NotPermitted { errno },
            })?;
        let ring = ControlRing::new(device.into()).map_err(|e| ControlError::NoRing {
            errno: errno_of(&e),
            disabled: std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
                .map_or_else(|_| "?".to_owned(), |value| value.trim().to_owned()),
        })?;
        let mut control = Self { ring, features: 0 };
        control.features = control.ask_features()?;
        let missing: Vec<_> = NEEDED
            .iter()
            .filter(|(flag, _)| control.features & flag == 0)
            .map(|(_, name)| *name)
            .collect();
        if missing.is_empty() {
            Ok(control)
        } else {
            Err(ControlError::DriverTooOld {
                missing: missing.join(", "),
            })
        }
    }

    /// The driver's feature flags (`uapi::F_*`).
    pub fn features(&self) -> u64 {
        self.features
    }

    fn ask_features(&mut self) -> Result<u64, ControlError> {
        let answer = self.run(Command::GetFeatures, uapi::ANY_DEVICE, 0, vec![0; 8]);
        match answer {
            Ok(bytes) => Ok(u64::read_from_bytes(&bytes).expect("eight bytes")),
            // Before 6.5 there is no such command, and USER_COPY neither.
            Err(ControlError::Refused {
                errno: Errno(libc::EOPNOTSUPP | libc::EINVAL),
                ..
            }) => Ok(0),
            Err(other) => Err(other),
        }
    }

    /// Creates a device with its parameters set. It has no `/dev/ublkbN` before
    /// [`Control::start`].
    ///
    /// # Errors
    /// What the driver refuses; nothing is left behind then.
    pub fn add(&mut self, spec: &DeviceSpec) -> Result<DeviceInfo, ControlError> {
        let id = spec.wanted_id.unwrap_or(uapi::ANY_DEVICE);
        let wanted = DevInfo {
            nr_hw_queues: spec.queue_count,
            queue_depth: spec.queue_depth,
            max_io_buf_bytes: IO_BYTES_MAX,
            dev_id: id,
            flags: NEEDED.iter().map(|(flag, _)| flag).sum::<u64>() | self.features & WANTED,
            ublksrv_flags: spec.mark,
            ..DevInfo::default()
        };
        let bytes = self.run(Command::AddDev, id, 0, wanted.as_bytes().to_vec())?;
        let info = DevInfo::read_from_bytes(&bytes).expect("the buffer keeps its length");
        let set = self.run(
            Command::SetParams,
            info.dev_id,
            0,
            params(spec).as_bytes().to_vec(),
        );
        if let Err(error) = set {
            // The first error is the one to report.
            drop(self.delete(info.dev_id));
            return Err(error);
        }
        Ok(info.into())
    }

    /// Makes `/dev/ublkbN` appear. Returns when all tags were fetched and partitions were read.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn start(&mut self, device: u32) -> Result<(), ControlError> {
        let pid = u64::from(std::process::id());
        self.run(Command::StartDev, device, pid, Vec::new())
            .map(drop)
    }

    /// Removes `/dev/ublkbN` and aborts all fetches.
    ///
    /// With `force`, whoever uses it gets IO errors, and what they have not flushed is lost.
    /// Without, it refuses while the disk is used: by anybody where the driver can tell (Linux
    /// 7.0), by a mount, a device mapping, a RAID or swap otherwise.
    ///
    /// # Errors
    /// [`ControlError::InUse`], or what the driver refuses.
    pub fn stop(&mut self, device: u32, force: bool) -> Result<(), ControlError> {
        if force {
            return self.run(Command::StopDev, device, 0, Vec::new()).map(drop);
        }
        let patience = Duration::from_millis(STOP_WAIT_MS);
        if self.info(device)?.flags & uapi::F_SAFE_STOP_DEV != 0 {
            return retry(
                patience,
                || {
                    self.run(Command::TryStopDev, device, 0, Vec::new())
                        .map(drop)
                },
                |error| is_refusal(error, libc::EBUSY),
            )
            .map_err(|error| match error {
                e if is_refusal(&e, libc::EBUSY) => ControlError::InUse { device },
                e => e,
            });
        }
        // A disk without openers has no dirty pages, so this open and close cause no IO.
        let path = block_path(device);
        let probe = || {
            let held = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_EXCL)
                .open(&path);
            match held.map_err(|e| errno_of(&e).0) {
                Err(libc::EBUSY) => Err(ControlError::InUse { device }),
                Ok(_) | Err(_) => Ok(()),
            }
        };
        retry(patience, probe, |_| true)?;
        self.run(Command::StopDev, device, 0, Vec::new()).map(drop)
    }

    /// Removes a device. Returns when the last descriptor and mapping of it are gone.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn delete(&mut self, device: u32) -> Result<(), ControlError> {
        self.run(Command::DelDev, device, 0, Vec::new()).map(drop)
    }

    /// What the kernel knows of a device.
    ///
    /// # Errors
    /// What the driver refuses, `ENODEV` if there is none.
    pub fn info(&mut self, device: u32) -> Result<DeviceInfo, ControlError> {
        let room = vec![0; size_of::<DevInfo>()];
        let bytes = self.run(Command::GetDevInfo, device, 0, room)?;
        Ok(DevInfo::read_from_bytes(&bytes)
            .expect("the buffer keeps its length")
            .into())
    }

    /// The size of a device, in blocks of 4 KiB.
    ///
    /// # Errors
    /// [`ControlError::Shape`] if it is not one of ours, or what the driver refuses.
    pub fn size_blocks(&mut self, device: u32) -> Result<u64, ControlError> {
        let len_bytes = u32::try_from(size_of::<Params>()).expect("80");
        let room = Params {
            len_bytes,
            ..Params::default()
        }
        .as_bytes()
        .to_vec();
        let bytes = self.run(Command::GetParams, device, 0, room)?;
        let basic = Params::read_from_bytes(&bytes)
            .expect("the buffer keeps its length")
            .basic;
        let block_bytes = 1u64.checked_shl(basic.logical_bs_shift.into()).unwrap_or(0);
        let io_bytes = u64::from(basic.max_sectors) * u64::from(SECTOR_BYTES);
        if block_bytes != u64::from(BLOCK_BYTES) || io_bytes > u64::from(IO_BYTES_MAX) {
            return Err(ControlError::Shape {
                device,
                block_bytes,
                io_bytes,
            });
        }
        Ok(basic.dev_sectors / u64::from(BLOCK_SECTORS))
    }

    /// Grows a live device (Linux 6.16).
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn update_size(&mut self, device: u32, size_blocks: u64) -> Result<(), ControlError> {
        let sectors = size_blocks * u64::from(BLOCK_SECTORS);
        self.run(Command::UpdateSize, device, sectors, Vec::new())
            .map(drop)
    }

    /// All ublk devices of this host, ascending, whoever made them.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn list(&mut self) -> Result<Vec<DeviceInfo>, ControlError> {
        let mut devices = Vec::new();
        for id in device_ids(Path::new("/sys/class/ublk-char")) {
            match self.info(id) {
                Ok(info) => devices.push(info),
                Err(e) if is_refusal(&e, libc::ENODEV) => {} // gone meanwhile
                Err(e) => return Err(e),
            }
        }
        Ok(devices)
    }

    fn run(
        &mut self,
        command: Command,
        device: u32,
        data: u64,
        payload: Vec<u8>,
    ) -> Result<Vec<u8>, ControlError> {
        let head = CtrlCmd {
            dev_id: device,
            queue_id: uapi::NO_QUEUE,
            data,
            ..CtrlCmd::default()
        };
        let patience = command.patience();
        let answer = self.ring.call(command.number(), head, payload, patience);
        answer
            .map(|(_, payload)| payload)
            .map_err(|fault| match fault {
                CallFault::Refused(errno) => ControlError::Refused {
                    command,
                    device: DeviceName(device),
                    errno,
                },
                CallFault::NoAnswer => ControlError::NoAnswer {
                    command,
                    device: DeviceName(device),
                    seconds: CONTROL_ANSWER_SECONDS,
                },
            })
    }
}

/// Opens `/dev/ublkcN`, which may take udev a moment to make.
///
/// # Errors
/// [`ControlError::Node`].
pub fn open_char_device(device: u32) -> Result<OwnedFd, ControlError> {
    let path = char_path(device);
    let open = || {
        // Without O_NONBLOCK the ring would hand each copy of a payload to a worker thread.
        let opened: Result<File, _> = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        opened.map_err(|e| ControlError::Node {
            path: path.clone(),
            errno: errno_of(&e),
        })
    };
    let transient = |error: &ControlError| {
        matches!(
            error,
            ControlError::Node {
                errno: Errno(libc::ENOENT | libc::EBUSY),
                ..
            }
        )
    };
    retry(Duration::from_millis(NODE_WAIT_MS), open, transient).map(OwnedFd::from)
}

fn params(spec: &DeviceSpec) -> Params {
    let shift = u8::try_from(BLOCK_BYTES.trailing_zeros()).expect("12");
    let read_only = if spec.read_only {
        uapi::ATTR_READ_ONLY
    } else {
        0
    };
    let range_sectors = RANGE_BYTES_MAX / SECTOR_BYTES;
    Params {
        len_bytes: u32::try_from(size_of::<Params>()).expect("80"),
        types: uapi::PARAM_TYPE_BASIC | uapi::PARAM_TYPE_DISCARD,
        basic: uapi::ParamBasic {
            attrs: uapi::ATTR_VOLATILE_CACHE | uapi::ATTR_FUA | read_only,
            logical_bs_shift: shift,
            physical_bs_shift: shift,
            io_opt_shift: IO_OPTIMAL_SHIFT,
            io_min_shift: shift,
            max_sectors: IO_BYTES_MAX / SECTOR_BYTES,
            chunk_sectors: spec.boundary_blocks.unwrap_or(0) * BLOCK_SECTORS,
            dev_sectors: spec.size_blocks * u64::from(BLOCK_SECTORS),
            virt_boundary_mask: 0,
        },
        discard: uapi::ParamDiscard {
            discard_alignment: 0,
            discard_granularity: BLOCK_BYTES,
            max_discard_sectors: range_sectors,
            max_write_zeroes_sectors: range_sectors,
            max_discard_segments: 1,
            reserved0: 0,
        },
        ..Params::default()
    }
}

fn device_ids(class: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(class).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut ids: Vec<u32> = names
        .filter_map(|name| name.strip_prefix("ublkc")?.parse().ok())
        .collect();
    ids.sort_unstable();
    ids
}

fn is_refusal(error: &ControlError, code: i32) -> bool {
    matches!(error, ControlError::Refused { errno, .. } if errno.0 == code)
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Tries until it works, fails for good, or the patience is used up.
fn retry<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, ControlError>,
    is_transient: impl Fn(&ControlError) -> bool,
) -> Result<T, ControlError> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if is_transient(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(RETRY_PAUSE_MS));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const SPEC: DeviceSpec = DeviceSpec {
        wanted_id: None,
        size_blocks: 1000,
        queue_count: 1,
        queue_depth: 128,
        read_only: false,
        boundary_blocks: Some(16_384),
        mark: 7,
    };

    #[test]
    fn parameters_declare_a_write_back_cache_with_fua_and_4_kib_blocks() {
        let p = params(&SPEC);
        assert_eq!(p.basic.attrs, uapi::ATTR_VOLATILE_CACHE | uapi::ATTR_FUA);
        assert_eq!((p.basic.logical_bs_shift, p.basic.io_min_shift), (12, 12));
        assert_eq!((p.basic.max_sectors, p.basic.dev_sectors), (256, 8000));
        assert_eq!(p.basic.chunk_sectors, 64 * 1024 * 1024 / 512);
        assert_eq!(
            (
                p.discard.discard_granularity,
                p.discard.max_discard_segments
            ),
            (4096, 1)
        );
        let frozen = params(&DeviceSpec {
            read_only: true,
            boundary_blocks: None,
            ..SPEC
        });
        assert_ne!(frozen.basic.attrs & uapi::ATTR_READ_ONLY, 0);
        assert_eq!(frozen.basic.chunk_sectors, 0);
    }

    #[test]
    fn only_character_devices_of_ublk_are_listed_in_order() {
        let class = tempfile::tempdir().unwrap();
        for name in ["ublkc12", "ublkc3", "ublkb3", "ublkcx", "other"] {
            std::fs::create_dir(class.path().join(name)).unwrap();
        }
        assert_eq!(device_ids(class.path()), [3, 12]);
        assert_eq!(device_ids(&class.path().join("absent")), [0; 0]);
    }

    #[test]
    fn a_transient_error_is_retried_and_a_final_one_is_not() {
        let mut tries = 0;
        let mut fail_until = |n| {
            tries += 1;
            if tries < n {
                Err(ControlError::InUse { device: tries })
            } else {
                Ok(tries)
            }
        };
        assert_eq!(
            retry(Duration::from_secs(60), || fail_until(3), |_| true).unwrap(),
            3
        );
        assert!(retry(Duration::from_secs(60), || fail_until(9), |_| false).is_err());
        assert_eq!(tries, 4);
    }

    #[test]
    fn without_the_module_the_operator_is_told_to_load_it() {
        if Path::new("/dev/ublk-control").exists() {
            assert!(Control::open().is_ok_and(|c| c.features() & uapi::F_USER_COPY != 0));
        } else {
            assert!(matches!(Control::open(), Err(ControlError::ModuleMissing)));
        }
    }
}

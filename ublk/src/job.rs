//! Blocking control work, each piece on a short-lived thread of its own.
//!
//! `START_DEV` waits for the reactor and `STOP_DEV` for the volume, so neither may run on the
//! reactor's thread; and a stop that hangs must not hold up another device, so there is no shared
//! queue of work. An idle device has no thread here.

use crate::control::{Control, DeviceInfo, DeviceSpec, DeviceState, open_char_device};
use crate::error::ControlError;
use crate::life::Origin;
use reactor::Errno;
use reactor::driver::Doorbell;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;

/// A piece of work.
#[derive(Debug)]
pub(crate) enum Job {
    Create(DeviceSpec),
    Recover { device: u32, mark: u64 },
    Start { device: u32, origin: Origin },
    Stop { device: u32, force: bool },
    Remove { device: u32 },
    Grow { device: u32, size_blocks: u64 },
}

/// A device that is ready to be fetched from.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) info: DeviceInfo,
    pub(crate) size_blocks: u64,
    pub(crate) char_device: OwnedFd,
}

/// How a piece of work ended.
#[derive(Debug)]
pub(crate) enum Answer {
    Prepared(Result<Prepared, ControlError>),
    Started(Result<(), ControlError>),
    Stopped(Result<(), ControlError>),
    Removed(Result<(), ControlError>),
    Grown {
        size_blocks: u64,
        result: Result<(), ControlError>,
    },
}

impl Job {
    /// Starts the work; its answer comes through `answers`, announced by `bell`.
    pub(crate) fn spawn(self, answers: Sender<Answer>, bell: Doorbell) {
        let refusal = (self.kind(), answers.clone(), bell.clone());
        let work = move || {
            let answer = self.run();
            // Nobody listens any more if the device was dropped.
            drop(answers.send(answer));
            bell.ring();
        };
        if let Err(e) = std::thread::Builder::new()
            .name("ublk-control".to_owned())
            .spawn(work)
        {
            let (kind, answers, bell) = refusal;
            let errno = Errno(e.raw_os_error().unwrap_or(libc::EAGAIN));
            drop(answers.send(kind(ControlError::NoThread { errno })));
            bell.ring();
        }
    }

    /// How this work says that it failed.
    fn kind(&self) -> fn(ControlError) -> Answer {
        match self {
            Self::Create(_) | Self::Recover { .. } => |e| Answer::Prepared(Err(e)),
            Self::Start { .. } => |e| Answer::Started(Err(e)),
            Self::Stop { .. } => |e| Answer::Stopped(Err(e)),
            Self::Remove { .. } => |e| Answer::Removed(Err(e)),
            Self::Grow { .. } => |e| Answer::Grown {
                size_blocks: 0,
                result: Err(e),
            },
        }
    }

    fn run(self) -> Answer {
        match self {
            Self::Create(spec) => Answer::Prepared(create(&spec)),
            Self::Recover { device, mark } => Answer::Prepared(recover(device, mark)),
            Self::Start { device, origin } => {
                Answer::Started(Control::open().and_then(|mut control| match origin {
                    Origin::Created => control.start(device),
                    Origin::Recovered => control.end_recovery(device),
                }))
            }
            Self::Stop { device, force } => {
                Answer::Stopped(Control::open().and_then(|mut control| control.stop(device, force)))
            }
            Self::Remove { device } => Answer::Removed(remove(device)),
            Self::Grow {
                device,
                size_blocks,
            } => Answer::Grown {
                size_blocks,
                result: Control::open()
                    .and_then(|mut control| control.update_size(device, size_blocks)),
            },
        }
    }
}

fn create(spec: &DeviceSpec) -> Result<Prepared, ControlError> {
    let mut control = Control::open()?;
    let info = control.add(spec)?;
    match open_char_device(info.id) {
        Ok(char_device) => Ok(Prepared {
            info,
            size_blocks: spec.size_blocks,
            char_device,
        }),
        Err(error) => {
            // The first error is the one to report.
            drop(control.delete(info.id));
            Err(error)
        }
    }
}

fn recover(device: u32, mark: u64) -> Result<Prepared, ControlError> {
    let mut control = Control::open()?;
    let size_blocks = control.size_blocks(device)?;
    let info = control.start_recovery(device, mark)?;
    let char_device = open_char_device(device)?;
    Ok(Prepared {
        info,
        size_blocks,
        char_device,
    })
}

/// Removes a device unless it waits for another daemon: then somebody quiesced it on purpose.
fn remove(device: u32) -> Result<(), ControlError> {
    let mut control = Control::open()?;
    let gone = |error: &ControlError| {
        matches!(
            error,
            ControlError::Refused {
                errno: Errno(libc::ENODEV),
                ..
            }
        )
    };
    let removed = match control.info(device) {
        Ok(info) if info.state == DeviceState::Dead => control.delete(device),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })
}

//! A device on a reactor: the shell around [`Tags`] and [`Life`].
//!
//! It decides nothing. Requests go out as [`UblkEvent::Request`] from the moment the device is being
//! fetched, which is *before* [`UblkEvent::Live`]: the kernel reads partition tables during the
//! start and waits for them. Each request is answered once, by [`Device::complete`].
//!
//! To leave a device to the next process (a restart for an upgrade), do not stop it: end the process
//! without draining the reactor. The kernel keeps the disk and its requests for
//! [`Device::recover`]. Only the end of the process takes fetches back without a stop.

mod serving;

use crate::control::{DeviceInfo, DeviceSpec, block_path};
use crate::error::{ControlError, DeviceError};
use crate::job::{Answer, Job, Prepared};
use crate::life::{Life, LifeEffect, LifeEvent, Origin, Phase, Report};
use crate::limits::{BLOCK_SECTORS, QUEUE_DEPTH_MAX, QUEUES_MAX};
use crate::status::Fault;
use crate::sys::Descriptors;
use crate::tag::{TagEffect, TagEvent, TagIndex, Tags};
use reactor::driver::Doorbell;
use reactor::{Buf, BufMut, Completion, Done, Driver, Errno, Event, Op, Token};
use serving::{Payload, Purpose, Serving};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

/// A request with its buffer.
#[derive(Debug)]
pub enum RequestOp {
    /// Read `blocks` into `into`, whose length is exactly theirs.
    Read {
        /// First block.
        first_block: u64,
        /// Number of blocks.
        blocks: u32,
        /// To be filled, frozen, and given to [`Device::complete`].
        into: BufMut,
    },
    /// Write `data`, a stable copy of the application's bytes.
    Write {
        /// First block.
        first_block: u64,
        /// Number of blocks.
        blocks: u32,
        /// Durable before the answer.
        fua: bool,
        /// The bytes.
        data: Buf,
    },
    /// Make all writes durable that were answered before this was handed out.
    Flush,
    /// The range holds nothing of interest.
    Discard {
        /// First block.
        first_block: u64,
        /// Number of blocks.
        blocks: u32,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First block.
        first_block: u64,
        /// Number of blocks.
        blocks: u32,
        /// Keep the space allocated.
        no_unmap: bool,
        /// Durable before the answer.
        fua: bool,
    },
}

/// What a device tells its owner.
#[derive(Debug)]
pub enum UblkEvent {
    /// A request; answer it with [`Device::complete`].
    Request {
        /// For the answer.
        tag: TagIndex,
        /// The request.
        op: RequestOp,
    },
    /// The disk can be used.
    Live {
        /// The N of `/dev/ublkbN`: remember it for [`Device::recover`].
        device: u32,
        /// `/dev/ublkbN`.
        path: PathBuf,
    },
    /// A stop was refused, mostly because the disk is in use; the device serves on.
    StopRefused {
        /// Why.
        error: ControlError,
    },
    /// The disk has its new size.
    Grown {
        /// The size, in blocks.
        size_blocks: u64,
    },
    /// The disk has kept its size.
    GrowFailed {
        /// Why.
        error: ControlError,
    },
    /// The device is gone: by [`Device::stop`], or because somebody else stopped it.
    Stopped,
    /// The device failed.
    Failed {
        /// Why.
        error: DeviceError,
        /// The kernel still holds tags: the process has to exit, and its successor to recover.
        must_exit: bool,
    },
}

/// Where a device reports to, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct DeviceConfig {
    /// `Token::room` of its completions.
    pub room: u8,
    /// `Token::index` of its completions.
    pub index: u32,
    /// What it shall be.
    pub spec: DeviceSpec,
}

/// One block device.
#[derive(Debug)]
pub struct Device {
    room: u8,
    index: u32,
    life: Life,
    info: Option<DeviceInfo>,
    size_blocks: u64,
    prepared: Option<Prepared>,
    serving: Option<Serving>,
    failure: Option<DeviceError>,
    answers: Receiver<Answer>,
    answer_to: Sender<Answer>,
    bell: Doorbell,
    /// How control work is started; tests do it themselves.
    start_job: fn(Job, Sender<Answer>, Doorbell),
    /// One growth at a time.
    is_growing: bool,
    tag_effects: Vec<TagEffect>,
}

impl Device {
    /// Begins to make a new device. [`UblkEvent::Live`] or [`UblkEvent::Failed`] follows.
    ///
    /// # Errors
    /// [`DeviceError::Config`], or the reactor has no doorbell to spare.
    pub fn create(io: &mut dyn Driver, config: DeviceConfig) -> Result<Self, DeviceError> {
        check(&config.spec)?;
        let device = Self::new(io, config.room, config.index, Origin::Created)?;
        device.run(Job::Create(config.spec));
        Ok(device)
    }

    /// Begins to take over the device of a dead process; `mark` is that of its
    /// [`DeviceSpec::mark`]. [`UblkEvent::Live`] or [`UblkEvent::Failed`] follows. Requests that the
    /// dead process had in hand come again: a write may run twice.
    ///
    /// # Errors
    /// The reactor has no doorbell to spare.
    pub fn recover(
        io: &mut dyn Driver,
        room: u8,
        index: u32,
        device: u32,
        mark: u64,
    ) -> Result<Self, DeviceError> {
        let recovered = Self::new(io, room, index, Origin::Recovered)?;
        recovered.run(Job::Recover { device, mark });
        Ok(recovered)
    }

    fn new(io: &mut dyn Driver, room: u8, index: u32, origin: Origin) -> Result<Self, DeviceError> {
        let value = Purpose::Bell.value(TagIndex(0));
        let bell = io.doorbell(Token { room, index, value })?;
        let (answer_to, answers) = channel();
        Ok(Self {
            room,
            index,
            life: Life::new(origin),
            info: None,
            size_blocks: 0,
            prepared: None,
            serving: None,
            failure: None,
            answers,
            answer_to,
            bell,
            start_job: Job::spawn,
            is_growing: false,
            tag_effects: Vec::new(),
        })
    }

    /// The N of `/dev/ublkbN`, once it is known.
    pub fn id(&self) -> Option<u32> {
        self.info.map(|info| info.id)
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// Size in blocks; zero before it is known.
    pub fn size_blocks(&self) -> u64 {
        self.size_blocks
    }

    /// Asks for the end: [`UblkEvent::Stopped`], [`UblkEvent::StopRefused`] or
    /// [`UblkEvent::Failed`] follows. Requests keep coming until then and have to be answered.
    /// Without `force` a disk in use stays; with it, its users get IO errors and lose what they have
    /// not flushed.
    pub fn stop(&mut self, io: &mut dyn Driver, force: bool, out: &mut Vec<UblkEvent>) {
        self.live(io, LifeEvent::StopAsked { force }, out);
    }

    /// Asks for a larger disk: [`UblkEvent::Grown`] or [`UblkEvent::GrowFailed`] follows. The volume
    /// must have the blocks already.
    ///
    /// # Errors
    /// [`DeviceError::Resize`] if it is not live or would shrink.
    pub fn grow(&mut self, size_blocks: u64) -> Result<(), DeviceError> {
        let refused = |rule| {
            let size_bytes = size_blocks.saturating_mul(u64::from(crate::limits::BLOCK_BYTES));
            Err(DeviceError::Resize { size_bytes, rule })
        };
        if self.life.phase() != Phase::Live {
            return refused("it is not live");
        }
        if size_blocks < self.size_blocks {
            return refused("a live device does not shrink");
        }
        if size_blocks > BLOCKS_MAX {
            return refused("that is beyond 2^63 bytes");
        }
        if std::mem::replace(&mut self.is_growing, true) {
            return refused("it is growing already");
        }
        let device = self.id().expect("a live device has a number");
        // The kernel may ask for new blocks before its answer to the helper was seen here.
        let mut effects = Vec::new();
        self.serving_mut()
            .tags
            .step(TagEvent::Grown { size_blocks }, &mut effects);
        assert!(effects.is_empty(), "growth asks for nothing");
        self.run(Job::Grow {
            device,
            size_blocks,
        });
        Ok(())
    }

    /// One of this device's completions.
    pub fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        completion: Completion,
        out: &mut Vec<UblkEvent>,
    ) {
        let (purpose, tag) = Purpose::split(completion.token.value);
        match (purpose, completion.event) {
            (Purpose::Bell, Event::Rung) => {
                while let Ok(answer) = self.answers.try_recv() {
                    self.on_answer(io, answer, out);
                }
            }
            (Purpose::Command, Event::Op { result, .. }) => {
                let event = self.command_ended(tag, result);
                self.tags(io, event, out);
            }
            (
                Purpose::CopyIn,
                Event::Op {
                    op: Op::Read { into, .. },
                    result,
                },
            ) => {
                let complete = result == Ok(Done::Bytes(into.len_bytes()));
                self.keep(tag, Payload::Full(into.freeze()));
                self.tags(io, TagEvent::CopiedIn { tag, complete }, out);
            }
            (
                Purpose::CopyOut,
                Event::Op {
                    op: Op::Write { from, .. },
                    result,
                },
            ) => {
                let complete = result == Ok(Done::Bytes(from.len_bytes()));
                self.tags(io, TagEvent::CopiedOut { tag, complete }, out);
            }
            (Purpose::Close, Event::Op { .. }) => self.live(io, LifeEvent::Closed, out),
            (purpose, event) => panic!("ublk: {event:?} cannot be about {purpose:?}"),
        }
    }

    /// The turn ends: requests that wait for a buffer try again. Call it before the shells that
    /// send, so that what they are given goes out in this turn.
    pub fn on_turn_end(&mut self, io: &mut dyn Driver, out: &mut Vec<UblkEvent>) {
        if self
            .serving
            .as_ref()
            .is_some_and(|serving| serving.tags.wanting_count() > 0)
        {
            self.tags(io, TagEvent::TurnEnded, out);
        }
    }

    /// Answers a request. A read that went well brings its bytes in `data`; anything else needs
    /// none. Panics on a tag that is not owed an answer, and on a read of another length.
    pub fn complete(
        &mut self,
        io: &mut dyn Driver,
        tag: TagIndex,
        result: Result<(), Fault>,
        data: Option<Buf>,
    ) {
        if let Some(data) = data {
            self.keep(tag, Payload::Full(data));
        }
        let mut out = Vec::new();
        self.tags(io, TagEvent::Answered { tag, result }, &mut out);
        assert!(out.is_empty(), "an answer brings no event");
    }

    fn on_answer(&mut self, io: &mut dyn Driver, answer: Answer, out: &mut Vec<UblkEvent>) {
        let event = match answer {
            Answer::Prepared(Ok(prepared)) => {
                self.info = Some(prepared.info);
                self.size_blocks = prepared.size_blocks;
                self.prepared = Some(prepared);
                LifeEvent::Prepared
            }
            Answer::Prepared(Err(e)) => self.fail(e, LifeEvent::PrepareFailed),
            Answer::Started(Ok(())) => LifeEvent::Started,
            Answer::Started(Err(e)) => self.fail(e, LifeEvent::StartFailed),
            Answer::Stopped(Ok(())) => LifeEvent::StopDone,
            Answer::Stopped(Err(e)) => self.fail(e, LifeEvent::StopFailed),
            Answer::Removed(Ok(())) => LifeEvent::Removed,
            Answer::Removed(Err(e)) => self.fail(e, LifeEvent::RemoveFailed),
            Answer::Grown {
                size_blocks,
                result,
            } => {
                self.is_growing = false;
                return out.push(match result {
                    Ok(()) => {
                        self.size_blocks = size_blocks;
                        UblkEvent::Grown { size_blocks }
                    }
                    Err(error) => UblkEvent::GrowFailed { error },
                });
            }
        };
        self.live(io, event, out);
    }

    /// Keeps the first failure, which is the one to report.
    fn fail(&mut self, error: impl Into<DeviceError>, event: LifeEvent) -> LifeEvent {
        self.failure.get_or_insert(error.into());
        event
    }

    fn live(&mut self, io: &mut dyn Driver, event: LifeEvent, out: &mut Vec<UblkEvent>) {
        let from = self.life.phase();
        let mut effects = Vec::new();
        self.life.step(event, &mut effects);
        let to = self.life.phase();
        if from != to {
            tracing::info!(device = self.id(), ?from, ?to, why = ?event, "ublk");
        }
        for effect in effects {
            match effect {
                LifeEffect::Open => {
                    let event = match self.open(io) {
                        Ok(()) => LifeEvent::Opened,
                        Err(error) => self.fail(error, LifeEvent::OpenFailed),
                    };
                    self.live(io, event, out);
                }
                LifeEffect::Fetch => self.tags(io, TagEvent::Mapped, out),
                LifeEffect::RunStart => {
                    let origin = self.life.origin();
                    self.run(Job::Start {
                        device: self.known_id(),
                        origin,
                    });
                }
                LifeEffect::RunStop { force } => {
                    self.run(Job::Stop {
                        device: self.known_id(),
                        force,
                    });
                }
                LifeEffect::Close => {
                    let serving = self.serving.take().expect("closed once");
                    self.submit(
                        io,
                        Purpose::Close,
                        TagIndex(0),
                        Op::Close {
                            handle: serving.handle,
                            reset: false,
                        },
                    );
                }
                LifeEffect::RunRemove => self.run(Job::Remove {
                    device: self.known_id(),
                }),
                LifeEffect::Report(report) => self.report(report, out),
            }
        }
    }

    fn report(&mut self, report: Report, out: &mut Vec<UblkEvent>) {
        out.push(match (report, self.failure.take()) {
            (Report::Live, _) => {
                let device = self.known_id();
                UblkEvent::Live {
                    device,
                    path: block_path(device),
                }
            }
            (Report::Stopped, _) => UblkEvent::Stopped,
            (Report::StopRefused, Some(DeviceError::Control(error))) => {
                UblkEvent::StopRefused { error }
            }
            (Report::Failed, Some(error)) => UblkEvent::Failed {
                error,
                must_exit: self.life.phase() == Phase::Stranded,
            },
            (report, failure) => panic!("ublk: {report:?} because of {failure:?}"),
        });
    }

    fn open(&mut self, io: &mut dyn Driver) -> Result<(), DeviceError> {
        let Prepared {
            info,
            size_blocks,
            char_device,
        } = self.prepared.take().expect("opened after it was prepared");
        let mut descriptors = Vec::new();
        for queue in 0..info.queue_count {
            let mapped = Descriptors::map(char_device.as_fd(), queue, info.queue_depth);
            descriptors.push(mapped.map_err(|e| DeviceError::Mapping {
                device: info.id,
                errno: Errno(e.raw_os_error().unwrap_or(libc::EIO)),
            })?);
        }
        let handle = io.adopt(char_device)?;
        let tag_count = u32::from(info.queue_count) * u32::from(info.queue_depth);
        let payloads = std::iter::repeat_with(Payload::default)
            .take(tag_count as usize)
            .collect();
        let tags = Tags::new(tag_count, size_blocks);
        self.serving = Some(Serving {
            handle,
            descriptors,
            tags,
            payloads,
        });
        Ok(())
    }

    fn submit(&self, io: &mut dyn Driver, purpose: Purpose, tag: TagIndex, op: Op) {
        let token = Token {
            room: self.room,
            index: self.index,
            value: purpose.value(tag),
        };
        io.submit(token, op);
    }

    fn run(&self, job: Job) {
        (self.start_job)(job, self.answer_to.clone(), self.bell.clone());
    }

    fn known_id(&self) -> u32 {
        self.id().expect("prepared before anything else")
    }
}

/// Largest device: its size in bytes fits a signed 64-bit offset.
const BLOCKS_MAX: u64 = 1 << (63 - 12);

fn check(spec: &DeviceSpec) -> Result<(), DeviceError> {
    let bad = |name, value, rule| Err(DeviceError::Config { name, value, rule });
    if spec.size_blocks == 0 || spec.size_blocks > BLOCKS_MAX {
        return bad("size_blocks", spec.size_blocks, "has to be 1 to 2^51");
    }
    if spec.queue_count == 0 || spec.queue_count > QUEUES_MAX {
        return bad("queue_count", spec.queue_count.into(), "has to be 1 to 16");
    }
    if spec.queue_depth == 0 || spec.queue_depth > QUEUE_DEPTH_MAX {
        return bad(
            "queue_depth",
            spec.queue_depth.into(),
            "has to be 1 to 1024",
        );
    }
    match spec.boundary_blocks {
        Some(0) => bad("boundary_blocks", 0, "has to be at least 1"),
        Some(n) if n.checked_mul(BLOCK_SECTORS).is_none() => {
            bad("boundary_blocks", n.into(), "has to be below 2^29")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod test;

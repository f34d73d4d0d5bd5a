//! The half of a device that serves requests: what [`Tags`] wants, done on the reactor.

use super::{Device, RequestOp, UblkEvent};
use crate::error::DeviceError;
use crate::life::LifeEvent;
use crate::sys::Descriptors;
use crate::tag::{Request, TagEffect, TagEvent, TagIndex, Tags};
use crate::uapi::{self, IoCmd};
use reactor::{Buf, BufMut, Done, Driver, Errno, Handle, Op};
use zerocopy::IntoBytes;

/// What a completion's `Token::value` is about: purpose in the high half, tag in the low.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Command = 1,
    CopyIn = 2,
    CopyOut = 3,
    Close = 4,
    Bell = 5,
}

impl Purpose {
    pub(super) const fn value(self, tag: TagIndex) -> u64 {
        (self as u64) << 32 | tag.0 as u64
    }

    pub(super) fn split(value: u64) -> (Self, TagIndex) {
        let all = [
            Self::Command,
            Self::CopyIn,
            Self::CopyOut,
            Self::Close,
            Self::Bell,
        ];
        let purpose = all.into_iter().find(|p| *p as u64 == value >> 32);
        let tag = u32::try_from(value & u64::from(u32::MAX)).expect("masked");
        (
            purpose.expect("ublk: a completion that is not ours"),
            TagIndex(tag),
        )
    }
}

/// Bytes of a tag's request while they are here.
#[derive(Debug, Default)]
pub(super) enum Payload {
    #[default]
    Absent,
    Empty(BufMut),
    Full(Buf),
}

/// What exists between open and close of `/dev/ublkcN`.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) handle: Handle,
    pub(super) descriptors: Vec<Descriptors>,
    pub(super) tags: Tags,
    pub(super) payloads: Vec<Payload>,
}

impl Device {
    pub(super) fn tags(&mut self, io: &mut dyn Driver, event: TagEvent, out: &mut Vec<UblkEvent>) {
        let mut effects = std::mem::take(&mut self.tag_effects);
        let mut next = Some(event);
        let mut done = 0;
        loop {
            if let Some(event) = next.take() {
                self.serving_mut().tags.step(event, &mut effects);
            }
            let Some(effect) = effects.get(done).copied() else {
                break;
            };
            done += 1;
            next = self.apply(io, effect, out);
        }
        effects.clear();
        self.tag_effects = effects;
    }

    pub(super) fn apply(
        &mut self,
        io: &mut dyn Driver,
        effect: TagEffect,
        out: &mut Vec<UblkEvent>,
    ) -> Option<TagEvent> {
        match effect {
            TagEffect::Fetch { tag } => self.command(io, tag, uapi::IO_FETCH_REQ, 0),
            TagEffect::Commit { tag, result } => {
                self.keep(tag, Payload::Absent);
                self.command(io, tag, uapi::IO_COMMIT_AND_FETCH_REQ, result);
            }
            TagEffect::TakeBuffer { tag, len_bytes } => {
                let Some(buffer) = io.arena().take(len_bytes) else {
                    return Some(TagEvent::BufferDenied { tag });
                };
                self.keep(tag, Payload::Empty(buffer));
                return Some(TagEvent::BufferTaken { tag });
            }
            TagEffect::CopyIn { tag } => {
                let Payload::Empty(into) = self.payload(tag) else {
                    panic!("ublk: tag {} has no buffer to fill", tag.0);
                };
                let (file, offset_bytes) = self.place(tag);
                self.submit(
                    io,
                    Purpose::CopyIn,
                    tag,
                    Op::Read {
                        file,
                        offset_bytes,
                        into,
                    },
                );
            }
            TagEffect::CopyOut { tag } => {
                let Payload::Full(from) = self.payload(tag) else {
                    panic!(
                        "ublk: the read of tag {} was answered without its bytes",
                        tag.0
                    );
                };
                let (file, offset_bytes) = self.place(tag);
                let op = Op::Write {
                    file,
                    offset_bytes,
                    from,
                    durable: false,
                };
                self.submit(io, Purpose::CopyOut, tag, op);
            }
            TagEffect::Hand { tag, request } => {
                let op = self.equip(tag, request);
                out.push(UblkEvent::Request { tag, op });
            }
            TagEffect::AllWithdrawn => self.live(io, LifeEvent::AllWithdrawn, out),
            TagEffect::Broke { tag, code } => {
                let (queue, tag) = self.split(tag);
                let device = self.known_id();
                let error = DeviceError::Broken {
                    device,
                    queue,
                    tag,
                    errno: Errno(code),
                };
                let event = self.fail(error, LifeEvent::Broke);
                self.live(io, event, out);
            }
        }
        None
    }

    /// The request with its buffer.
    pub(super) fn equip(&mut self, tag: TagIndex, request: Request) -> RequestOp {
        match (request, self.payload(tag)) {
            (
                Request::Read {
                    first_block,
                    blocks,
                },
                Payload::Empty(into),
            ) => RequestOp::Read {
                first_block,
                blocks,
                into,
            },
            (
                Request::Write {
                    first_block,
                    blocks,
                    fua,
                },
                Payload::Full(data),
            ) => RequestOp::Write {
                first_block,
                blocks,
                fua,
                data,
            },
            (Request::Flush, Payload::Absent) => RequestOp::Flush,
            (
                Request::Discard {
                    first_block,
                    blocks,
                },
                Payload::Absent,
            ) => RequestOp::Discard {
                first_block,
                blocks,
            },
            (
                Request::WriteZeroes {
                    first_block,
                    blocks,
                    no_unmap,
                    fua,
                },
                Payload::Absent,
            ) => RequestOp::WriteZeroes {
                first_block,
                blocks,
                no_unmap,
                fua,
            },
            (request, payload) => panic!("ublk: {request:?} with {payload:?}"),
        }
    }

    pub(super) fn command_ended(&self, tag: TagIndex, result: Result<Done, Errno>) -> TagEvent {
        match result {
            Ok(Done::Value(uapi::IO_RES_OK)) => {
                let (queue, slot) = self.split(tag);
                let serving = self.serving.as_ref().expect("a tag without a device");
                TagEvent::Offered {
                    tag,
                    desc: serving.descriptors[usize::from(queue)].load(slot),
                }
            }
            Err(Errno(libc::ENODEV) | Errno::CANCELED) => TagEvent::Withdrawn { tag },
            Err(Errno(code)) => TagEvent::Refused { tag, code },
            Ok(done) => panic!("ublk: a command ended with {done:?}"),
        }
    }

    pub(super) fn command(&self, io: &mut dyn Driver, tag: TagIndex, command: u32, result: i32) {
        let (q_id, slot) = self.split(tag);
        let payload = IoCmd {
            q_id,
            tag: slot,
            result,
            addr: 0,
        };
        let payload = payload.as_bytes().try_into().expect("16 bytes");
        let file = self
            .serving
            .as_ref()
            .expect("a command without a device")
            .handle;
        self.submit(
            io,
            Purpose::Command,
            tag,
            Op::Command {
                file,
                command,
                payload,
            },
        );
    }

    pub(super) fn serving_mut(&mut self) -> &mut Serving {
        self.serving
            .as_mut()
            .expect("tags live between open and close")
    }

    pub(super) fn keep(&mut self, tag: TagIndex, payload: Payload) {
        self.serving_mut().payloads[tag.0 as usize] = payload;
    }

    pub(super) fn payload(&mut self, tag: TagIndex) -> Payload {
        std::mem::take(&mut self.serving_mut().payloads[tag.0 as usize])
    }

    /// Where a tag's payload is: the handle and the position.
    pub(super) fn place(&self, tag: TagIndex) -> (Handle, u64) {
        let (queue, slot) = self.split(tag);
        let handle = self
            .serving
            .as_ref()
            .expect("a copy without a device")
            .handle;
        (handle, uapi::user_copy_position(queue, slot))
    }

    /// Queue, and tag within it.
    pub(super) fn split(&self, tag: TagIndex) -> (u16, u16) {
        let depth = u32::from(self.info.expect("a tag without a device").queue_depth);
        let narrow = |n| u16::try_from(n).expect("a tag of this device");
        (narrow(tag.0 / depth), narrow(tag.0 % depth))
    }
}

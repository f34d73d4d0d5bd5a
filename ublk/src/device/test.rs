use super::*;
use crate::control::DeviceState;
use crate::uapi::{self, IoDesc};
use reactor::Handle;
use reactor::driver::{FileFacts, OpId, OpenFile, TimerId};
use reactor::{Arena, ArenaConfig, SetupError};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use zerocopy::IntoBytes;

const DEPTH: u16 = 4;
const FILE: Handle = Handle { index: 7, turn: 1 };

/// A driver that remembers what it was asked and answers when the test says so.
struct Bench {
    arena: Arena,
    asked: Vec<(Token, Op)>,
    can_adopt: bool,
}

impl Bench {
    fn new(large_slots: u32) -> Self {
        let config = ArenaConfig {
            slot_counts: [0, 0, large_slots],
            huge_pages: false,
        };
        Self {
            arena: Arena::new(&config).unwrap(),
            asked: Vec::new(),
            can_adopt: true,
        }
    }
}

impl Driver for Bench {
    fn now_ns(&self) -> u64 {
        0
    }
    fn counters(&self) -> reactor::Counters {
        reactor::Counters::default()
    }
    fn arena(&self) -> &Arena {
        &self.arena
    }
    fn submit(&mut self, token: Token, op: Op) -> OpId {
        self.asked.push((token, op));
        OpId { index: 0, turn: 0 }
    }
    fn cancel(&mut self, _: OpId) {}
    fn arm(&mut self, _: Token, _: u64) -> TimerId {
        panic!("an idle device arms no timer")
    }
    fn disarm(&mut self, _: TimerId) {}
    fn listen(&mut self, _: SocketAddr) -> Result<Handle, SetupError> {
        unreachable!("no sockets here")
    }
    fn local_addr(&self, _: Handle) -> Option<SocketAddr> {
        None
    }
    fn open(&mut self, _: &Path, _: OpenFile) -> Result<(Handle, FileFacts), SetupError> {
        unreachable!("no files here")
    }
    fn size_bytes(&self, _: Handle) -> Result<u64, Errno> {
        unreachable!("no files here")
    }
    fn adopt(&mut self, _: OwnedFd) -> Result<Handle, SetupError> {
        if self.can_adopt {
            Ok(FILE)
        } else {
            Err(SetupError::NotWithThisDriver {
                what: "a device",
                driver: "poll",
            })
        }
    }
    fn doorbell(&mut self, _: Token) -> Result<Doorbell, SetupError> {
        Ok(Doorbell::new(|| {}))
    }
}

/// A device on the bench; a plain file with descriptors stands for `/dev/ublkcN`. Control work is
/// answered by the test, never by the host's driver.
struct Rig {
    io: Bench,
    device: Device,
    out: Vec<UblkEvent>,
}

impl Rig {
    fn prepared(large_slots: u32, descs: &[IoDesc], origin: Origin) -> (Self, Answer) {
        let mut io = Bench::new(large_slots);
        let mut file = tempfile::tempfile().unwrap();
        for desc in descs {
            file.write_all(desc.as_bytes()).unwrap();
        }
        let info = DeviceInfo {
            id: 3,
            state: DeviceState::Dead,
            queue_count: 1,
            queue_depth: DEPTH,
            daemon_pid: None,
            mark: 0,
            flags: 0,
        };
        let mut device = Device::new(&mut io, 1, 2, origin).unwrap();
        device.start_job = |_, _, _| {};
        let prepared = Prepared {
            info,
            size_blocks: 1000,
            char_device: file.into(),
        };
        (
            Self {
                io,
                device,
                out: Vec::new(),
            },
            Answer::Prepared(Ok(prepared)),
        )
    }

    /// A live device whose tags have these descriptors.
    fn live(large_slots: u32, descs: &[IoDesc]) -> Self {
        let (mut rig, prepared) = Self::prepared(large_slots, descs, Origin::Created);
        rig.answer(prepared);
        rig.answer(Answer::Started(Ok(())));
        assert!(matches!(
            rig.out.remove(0),
            UblkEvent::Live { device: 3, .. }
        ));
        rig
    }

    fn answer(&mut self, answer: Answer) {
        self.device.on_answer(&mut self.io, answer, &mut self.out);
    }

    /// Completes the oldest op that is about this tag, and returns it as it was submitted.
    fn end(&mut self, tag: u32, finish: impl FnOnce(&mut Op) -> Result<Done, Errno>) {
        let about = |(token, _): &(Token, Op)| Purpose::split(token.value).1 == TagIndex(tag);
        let at = self
            .io
            .asked
            .iter()
            .position(about)
            .expect("an op of this tag");
        let (token, mut op) = self.io.asked.remove(at);
        assert_eq!((token.room, token.index), (1, 2));
        let result = finish(&mut op);
        let completion = Completion {
            token,
            event: Event::Op { op, result },
        };
        self.device
            .on_completion(&mut self.io, completion, &mut self.out);
    }

    fn offer(&mut self, tag: u32) {
        self.end(tag, |_| Ok(Done::Value(0)));
    }

    /// The command that is in flight for a tag, with its result field.
    fn command_of(&self, wanted: u32) -> (u32, i32) {
        let found = self.io.asked.iter().find_map(|(_, op)| {
            let Op::Command {
                file: FILE,
                command,
                payload,
            } = op
            else {
                return None;
            };
            let tag = u16::from_le_bytes([payload[2], payload[3]]);
            let result = i32::from_le_bytes([payload[4], payload[5], payload[6], payload[7]]);
            (u32::from(tag) == wanted).then_some((*command, result))
        });
        found.expect("a command of this tag")
    }
}

fn desc(op_flags: u32, first_block: u64, blocks: u32) -> IoDesc {
    IoDesc {
        op_flags,
        nr_sectors: blocks * 8,
        start_sector: first_block * 8,
        addr: 0,
    }
}

#[test]
fn every_tag_is_fetched_and_nothing_else_is_asked_of_an_idle_reactor() {
    let rig = Rig::live(1, &[IoDesc::default(); 4]);
    assert_eq!(rig.io.asked.len(), usize::from(DEPTH));
    for tag in 0..u32::from(DEPTH) {
        assert_eq!(rig.command_of(tag), (uapi::IO_FETCH_REQ, 0));
    }
}

#[test]
fn a_write_arrives_with_a_copy_of_its_bytes_and_is_committed_with_their_count() {
    let mut rig = Rig::live(
        1,
        &[desc(uapi::OP_WRITE | uapi::IO_F_FUA, 5, 2), desc(2, 0, 0)],
    );
    rig.offer(0);
    rig.end(0, |op| {
        let Op::Read {
            file: FILE,
            offset_bytes: 0x8000_0000,
            into,
        } = op
        else {
            panic!("wanted the copy of a write, got {op:?}");
        };
        into.bytes_mut().fill(0xa5);
        Ok(Done::Bytes(8192))
    });
    let Some(UblkEvent::Request { tag, op }) = rig.out.pop() else {
        panic!("no request")
    };
    let RequestOp::Write {
        first_block: 5,
        blocks: 2,
        fua: true,
        data,
    } = op
    else {
        panic!("not the write: {op:?}");
    };
    assert!(data.len_bytes() == 8192 && data.bytes().iter().all(|b| *b == 0xa5));
    rig.device.complete(&mut rig.io, tag, Ok(()), None);
    assert_eq!(rig.command_of(0), (uapi::IO_COMMIT_AND_FETCH_REQ, 8192));
}

#[test]
fn a_reads_bytes_go_to_its_own_place_before_the_commit() {
    let mut rig = Rig::live(1, &[desc(0, 0, 1), desc(uapi::OP_READ, 9, 1)]);
    rig.offer(1);
    let Some(UblkEvent::Request { tag, op }) = rig.out.pop() else {
        panic!("no request")
    };
    let RequestOp::Read {
        first_block: 9,
        blocks: 1,
        mut into,
    } = op
    else {
        panic!("not the read: {op:?}");
    };
    into.bytes_mut().fill(0x5a);
    rig.device
        .complete(&mut rig.io, tag, Ok(()), Some(into.freeze()));
    rig.end(1, |op| {
        let place = uapi::user_copy_position(0, 1);
        let Op::Write {
            file: FILE,
            offset_bytes,
            from,
            durable: false,
        } = op
        else {
            panic!("wanted the copy of a read, got {op:?}");
        };
        assert_eq!(
            (*offset_bytes, from.bytes()[0], from.len_bytes()),
            (place, 0x5a, 4096)
        );
        Ok(Done::Bytes(4096))
    });
    assert_eq!(rig.command_of(1), (uapi::IO_COMMIT_AND_FETCH_REQ, 4096));
    assert_eq!(rig.io.arena.in_use_bytes(), 0);
}

#[test]
fn a_request_without_a_buffer_waits_until_one_is_free() {
    let mut rig = Rig::live(1, &[desc(uapi::OP_READ, 0, 1), desc(uapi::OP_READ, 1, 1)]);
    rig.offer(0);
    rig.offer(1);
    assert_eq!(rig.out.len(), 1, "one buffer, one request");
    let Some(UblkEvent::Request { tag, op }) = rig.out.pop() else {
        panic!("no request")
    };
    rig.device.on_turn_end(&mut rig.io, &mut rig.out);
    assert!(rig.out.is_empty(), "the buffer is still in use");
    drop(op);
    rig.device
        .complete(&mut rig.io, tag, Err(Fault::NoSpace), None);
    assert_eq!(
        rig.command_of(0),
        (uapi::IO_COMMIT_AND_FETCH_REQ, -libc::ENOSPC)
    );
    rig.device.on_turn_end(&mut rig.io, &mut rig.out);
    let first = rig.out.pop();
    assert!(
        matches!(
            first,
            Some(UblkEvent::Request {
                tag: TagIndex(1),
                ..
            })
        ),
        "{first:?}"
    );
}

#[test]
fn a_refused_copy_fails_the_request_and_frees_the_buffer() {
    let mut rig = Rig::live(1, &[desc(uapi::OP_WRITE, 0, 1)]);
    rig.offer(0);
    rig.end(0, |_| Err(Errno(libc::EACCES)));
    assert!(rig.out.is_empty());
    assert_eq!(
        rig.command_of(0),
        (uapi::IO_COMMIT_AND_FETCH_REQ, -libc::EIO)
    );
    assert_eq!(rig.io.arena.in_use_bytes(), 0);
}

#[test]
fn requests_are_served_while_the_kernel_still_starts_the_disk() {
    let descs = [desc(uapi::OP_READ, 0, 1)];
    let (mut rig, prepared) = Rig::prepared(1, &descs, Origin::Created);
    rig.answer(prepared);
    rig.offer(0);
    assert!(matches!(
        rig.out.pop(),
        Some(UblkEvent::Request {
            tag: TagIndex(0),
            ..
        })
    ));
    assert_eq!(rig.device.phase(), Phase::Starting);
}

#[test]
fn a_stopped_device_is_closed_after_its_last_tag_and_then_removed() {
    let mut rig = Rig::live(1, &[IoDesc::default(); 4]);
    rig.device.stop(&mut rig.io, false, &mut rig.out);
    for tag in 0..u32::from(DEPTH) {
        rig.end(tag, |_| Err(Errno(libc::ENODEV)));
    }
    assert!(rig.io.asked.is_empty(), "closed before the stop was over");
    rig.answer(Answer::Stopped(Ok(())));
    assert!(matches!(
        rig.io.asked[0].1,
        Op::Close {
            handle: FILE,
            reset: false
        }
    ));
    rig.end(0, |_| Ok(Done::Nothing));
    rig.answer(Answer::Removed(Ok(())));
    assert!(matches!(rig.out[..], [UblkEvent::Stopped]), "{:?}", rig.out);
}

#[test]
fn a_stop_of_a_disk_in_use_is_refused_and_says_so() {
    let mut rig = Rig::live(1, &[IoDesc::default(); 4]);
    rig.device.stop(&mut rig.io, false, &mut rig.out);
    rig.answer(Answer::Stopped(Err(ControlError::InUse { device: 3 })));
    let Some(UblkEvent::StopRefused { error }) = rig.out.pop() else {
        panic!("not refused")
    };
    assert!(error.to_string().contains("/dev/ublkb3 is in use"));
    assert_eq!(rig.device.phase(), Phase::Live);
}

#[test]
fn a_broken_tag_asks_for_a_restart() {
    let mut rig = Rig::live(1, &[IoDesc::default(); 4]);
    rig.end(2, |_| Err(Errno(libc::EINVAL)));
    let Some(UblkEvent::Failed {
        error,
        must_exit: true,
    }) = rig.out.pop()
    else {
        panic!("not failed");
    };
    assert!(
        error.to_string().contains("queue 0 tag 2 of ublk device 3"),
        "{error}"
    );
}

#[test]
fn a_reactor_without_descriptors_fails_the_device_and_says_why() {
    let (mut rig, prepared) = Rig::prepared(1, &[IoDesc::default(); 4], Origin::Created);
    rig.io.can_adopt = false;
    rig.answer(prepared);
    rig.answer(Answer::Removed(Ok(())));
    let Some(UblkEvent::Failed {
        error,
        must_exit: false,
    }) = rig.out.pop()
    else {
        panic!("not failed");
    };
    assert!(
        error
            .to_string()
            .contains("not available with driver = \"poll\""),
        "{error}"
    );
}

#[test]
fn new_blocks_are_served_as_soon_as_growth_was_asked_for() {
    let mut rig = Rig::live(1, &[desc(uapi::OP_DISCARD, 1999, 1)]);
    rig.device.grow(2000).unwrap();
    rig.offer(0);
    let op = RequestOp::Discard {
        first_block: 1999,
        blocks: 1,
    };
    let Some(UblkEvent::Request { op: handed, .. }) = rig.out.pop() else {
        panic!("refused")
    };
    assert_eq!(format!("{handed:?}"), format!("{op:?}"));
}

#[test]
fn a_refused_growth_may_be_followed_by_a_smaller_one() {
    let mut rig = Rig::live(1, &[IoDesc::default(); 4]);
    rig.device.grow(3000).unwrap();
    assert!(
        rig.device
            .grow(2000)
            .unwrap_err()
            .to_string()
            .contains("growing already")
    );
    let refused = Err(ControlError::InUse { device: 3 });
    rig.answer(Answer::Grown {
        size_blocks: 3000,
        result: refused,
    });
    assert!(matches!(rig.out.pop(), Some(UblkEvent::GrowFailed { .. })));
    assert_eq!(rig.device.size_blocks(), 1000);
    rig.device.grow(2000).unwrap();
}

#[test]
fn a_device_neither_shrinks_nor_grows_before_it_is_live() {
    let mut rig = Rig::live(1, &[IoDesc::default(); 4]);
    assert!(
        rig.device
            .grow(999)
            .unwrap_err()
            .to_string()
            .contains("does not shrink")
    );
    rig.answer(Answer::Grown {
        size_blocks: 2000,
        result: Ok(()),
    });
    assert_eq!(rig.device.size_blocks(), 2000);
    assert!(matches!(
        rig.out.pop(),
        Some(UblkEvent::Grown { size_blocks: 2000 })
    ));
    let (mut early, _) = Rig::prepared(1, &[], Origin::Created);
    assert!(
        early
            .device
            .grow(2000)
            .unwrap_err()
            .to_string()
            .contains("not live")
    );
}

#[test]
fn impossible_devices_are_refused_with_the_rule() {
    let spec = DeviceSpec {
        wanted_id: None,
        size_blocks: 1000,
        queue_count: 1,
        queue_depth: 128,
        read_only: false,
        boundary_blocks: None,
        mark: 0,
    };
    let bad = [
        DeviceSpec {
            size_blocks: 0,
            ..spec
        },
        DeviceSpec {
            size_blocks: BLOCKS_MAX + 1,
            ..spec
        },
        DeviceSpec {
            queue_count: 0,
            ..spec
        },
        DeviceSpec {
            queue_depth: 1025,
            ..spec
        },
        DeviceSpec {
            boundary_blocks: Some(0),
            ..spec
        },
        DeviceSpec {
            boundary_blocks: Some(1 << 29),
            ..spec
        },
    ];
    assert!(check(&spec).is_ok());
    for spec in bad {
        let error = check(&spec).unwrap_err();
        assert!(error.to_string().contains("has to be"), "{error}");
    }
}

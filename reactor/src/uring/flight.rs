//! An op on its way through the kernel: how it becomes an SQE, and what its CQE means.

use super::area::{AreaLoan, AreaPool, Part};
use super::handles::Target;
use super::ring::FIXED_BUFFER_BYTES;
use crate::arena::{Buf, BufMut};
use crate::driver::{Done, Op, Token, total_bytes};
use crate::error::Errno;
use io_uring::{opcode, squeue, types};
use std::os::fd::{AsRawFd, OwnedFd};

/// `BLOCK_URING_CMD_DISCARD`, `_IO(0x12, 0)`.
const BLOCK_DISCARD: u32 = 0x1200;
/// Direct IO moves multiples of this except at the end of a file.
const SECTOR_BYTES: u32 = 512;

/// Where an op is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The kernel has it and will answer.
    Kernel,
    /// Its result is decided and waits for delivery.
    Ready,
    /// A close that waits for the other ops on its handle.
    Closing,
}

/// One op in flight with everything that the kernel may touch for it.
pub(super) struct Flight {
    pub(super) token: Token,
    pub(super) op: Op,
    pub(super) place: Place,
    /// An end was asked for: a partial result is not continued.
    pub(super) stopping: bool,
    /// What earlier rounds have moved.
    pub(super) moved_bytes: u32,
    /// Direct IO: a count that is no multiple of a sector is the end of the file.
    pub(super) direct: bool,
    /// A discard goes to the block layer as a command of its own.
    pub(super) discard_command: bool,
    pub(super) area: Option<AreaLoan>,
    /// The socket that is being connected.
    pub(super) connecting: Option<OwnedFd>,
}

/// What is to be done after a CQE.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The op is done.
    End(Result<Done, Errno>),
    /// A part is done or nothing happened yet: submit the rest.
    Again,
    /// A new connection: make a handle of it.
    Accepted(OwnedFd),
    /// The socket in `connecting` is connected.
    Connected,
    /// This device does not know the discard command: use fallocate from now on.
    DiscardByFallocate,
}

impl Target {
    /// The registered buffer to name the window by, if the file takes one.
    fn buffer(self, arena_base: usize, at: *const u8, len_bytes: u32) -> Option<u16> {
        if self.fixed_memory {
            fixed_buffer(arena_base, at, len_bytes)
        } else {
            None
        }
    }
}

/// The registered buffer that holds the window, if one holds all of it.
fn fixed_buffer(arena_base: usize, at: *const u8, len_bytes: u32) -> Option<u16> {
    let offset = at
        .addr()
        .checked_sub(arena_base)
        .expect("windows lie in the arena");
    let last = offset + (len_bytes as usize).max(1) - 1;
    let index = offset / FIXED_BUFFER_BYTES;
    (index == last / FIXED_BUFFER_BYTES)
        .then(|| u16::try_from(index).expect("an arena of at most 64 TiB"))
}

impl Flight {
    /// The next SQE of the op, without `user_data`. Everything it points to is owned by `self`: the
    /// windows in `op` (whose slots stay mapped and in place while they live) and `area`.
    pub(super) fn sqe(
        &mut self,
        target: Target,
        areas: &mut AreaPool,
        arena_base: usize,
    ) -> squeue::Entry {
        let moved = self.moved_bytes;
        let fd = target.fd;
        let entry = match &mut self.op {
            Op::Accept { .. } => {
                opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Op::Connect { to } => {
                let area = self.area.get_or_insert_with(|| areas.take());
                let (address, len) = area.keep_address(*to);
                let socket = self
                    .connecting
                    .as_ref()
                    .expect("made at submission")
                    .as_raw_fd();
                return opcode::Connect::new(types::Fd(socket), address, len).build();
            }
            Op::Recv { into, .. } => recv(fd, into, &mut self.area, areas),
            Op::Send { parts, .. } => send(fd, parts, moved, &mut self.area, areas),
            Op::Read {
                offset_bytes, into, ..
            } => {
                let at = into.as_mut_ptr().wrapping_add(moved as usize);
                let (offset, len) = (*offset_bytes + u64::from(moved), into.len_bytes() - moved);
                match target.buffer(arena_base, at, len) {
                    Some(fixed) => opcode::ReadFixed::new(fd, at, len, fixed)
                        .offset(offset)
                        .build(),
                    None => opcode::Read::new(fd, at, len).offset(offset).build(),
                }
            }
            Op::Write {
                offset_bytes,
                from,
                durable,
                ..
            } => {
                let at = from.as_ptr().wrapping_add(moved as usize);
                let (offset, len) = (*offset_bytes + u64::from(moved), from.len_bytes() - moved);
                write(
                    fd,
                    (at, len),
                    offset,
                    *durable,
                    target.buffer(arena_base, at, len),
                )
            }
            Op::Flush { .. } => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Op::Discard {
                offset_bytes,
                len_bytes,
                ..
            } => discard(fd, *offset_bytes, *len_bytes, self.discard_command),
            Op::Command {
                command, payload, ..
            } => opcode::UringCmd16::new(fd, *command).cmd(*payload).build(),
            Op::Close { .. } => unreachable!("a close is not an SQE"),
        };
        entry.flags(target.flags())
    }

    /// What the kernel's answer means.
    pub(super) fn judge(&mut self, result: i32) -> Verdict {
        let Ok(count) = u32::try_from(result) else {
            return self.judge_errno(Errno(-result));
        };
        match &self.op {
            // SAFETY: a successful accept returns a descriptor that nobody else knows.
            Op::Accept { .. } => Verdict::Accepted(unsafe { owned(result) }),
            Op::Connect { .. } => Verdict::Connected,
            Op::Recv { .. } => Verdict::End(Ok(Done::Bytes(count))),
            Op::Flush { .. } | Op::Discard { .. } => Verdict::End(Ok(Done::Nothing)),
            Op::Command { .. } => Verdict::End(Ok(Done::Value(result))),
            Op::Send { .. } | Op::Read { .. } | Op::Write { .. } => self.judge_count(count),
            Op::Close { .. } => unreachable!("a close is not an SQE"),
        }
    }

    fn judge_count(&mut self, count: u32) -> Verdict {
        let total = total_bytes(&self.op);
        self.moved_bytes += count;
        assert!(
            self.moved_bytes <= total,
            "uring: {} of {total} bytes moved",
            self.moved_bytes
        );
        let reading = matches!(self.op, Op::Read { .. });
        let end_of_file =
            reading && (count == 0 || self.direct && !count.is_multiple_of(SECTOR_BYTES));
        if self.moved_bytes == total || end_of_file {
            return Verdict::End(Ok(Done::Bytes(self.moved_bytes)));
        }
        if count == 0 {
            return Verdict::End(Err(Errno::IO));
        }
        if self.stopping {
            Verdict::End(Err(Errno::CANCELED))
        } else {
            Verdict::Again
        }
    }

    fn judge_errno(&self, errno: Errno) -> Verdict {
        let unknown = [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOTTY].contains(&errno.0);
        if self.discard_command && unknown {
            return Verdict::DiscardByFallocate;
        }
        // A worker that is told to stop sees it as a signal; so does one that was told by mistake.
        match (errno.0, self.stopping) {
            (libc::EINTR, true) => Verdict::End(Err(Errno::CANCELED)),
            (libc::EINTR, false) => Verdict::Again,
            _ => Verdict::End(Err(errno)),
        }
    }
}

/// # Safety
/// `fd` is an open descriptor that nobody else owns.
unsafe fn owned(fd: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the caller's condition is that of the callee.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn recv(
    fd: types::Fd,
    into: &mut (BufMut, Option<BufMut>),
    area: &mut Option<AreaLoan>,
    areas: &mut AreaPool,
) -> squeue::Entry {
    let (first, second) = into;
    match second {
        Some(second) if !second.is_empty() => {
            let area = area.get_or_insert_with(|| areas.take());
            let vectors = [first, second].map(|w| (w.as_mut_ptr().cast_const(), w.len_bytes()));
            opcode::RecvMsg::new(fd, area.fill(vectors.into_iter(), 0)).build()
        }
        _ => opcode::Recv::new(fd, first.as_mut_ptr(), first.len_bytes()).build(),
    }
}

fn send(
    fd: types::Fd,
    parts: &[Buf],
    moved: u32,
    area: &mut Option<AreaLoan>,
    areas: &mut AreaPool,
) -> squeue::Entry {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
    if let [part] = parts {
        let at = part.as_ptr().wrapping_add(moved as usize);
        return opcode::Send::new(fd, at, part.len_bytes() - moved)
            .flags(flags)
            .build();
    }
    let area = area.get_or_insert_with(|| areas.take());
    let vectors = parts.iter().map(|part| (part.as_ptr(), part.len_bytes()));
    let message = area.fill(vectors, moved);
    opcode::SendMsg::new(fd, message)
        .flags(flags.cast_unsigned())
        .build()
}

fn write(
    fd: types::Fd,
    (at, len): Part,
    offset: u64,
    durable: bool,
    fixed: Option<u16>,
) -> squeue::Entry {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match fixed {
        Some(fixed) => opcode::WriteFixed::new(fd, at, len, fixed)
            .offset(offset)
            .rw_flags(flags)
            .build(),
        None => opcode::Write::new(fd, at, len)
            .offset(offset)
            .rw_flags(flags)
            .build(),
    }
}

#[allow(
    clippy::host_endian_bytes,
    reason = "the kernel reads its own structs in host order"
)]
fn discard(fd: types::Fd, offset_bytes: u64, len_bytes: u64, command: bool) -> squeue::Entry {
    if command {
        // The length is `addr3`, which lies where the payload of a 64-byte SQE begins.
        let mut payload = [0; 16];
        payload[..8].copy_from_slice(&len_bytes.to_ne_bytes());
        opcode::UringCmd16::new(fd, BLOCK_DISCARD)
            .addr(Some(offset_bytes))
            .cmd(payload)
            .build()
    } else {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        opcode::Fallocate::new(fd, len_bytes)
            .offset(offset_bytes)
            .mode(mode)
            .build()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::arena::{Arena, ArenaConfig};

    const FILE: crate::Handle = crate::Handle { index: 0, turn: 0 };

    fn flight(op: Op) -> Flight {
        Flight {
            token: Token {
                room: 0,
                index: 0,
                value: 0,
            },
            op,
            place: Place::Kernel,
            stopping: false,
            moved_bytes: 0,
            direct: false,
            discard_command: false,
            area: None,
            connecting: None,
        }
    }

    fn window() -> BufMut {
        let config = ArenaConfig {
            slot_counts: [1, 0, 0],
            huge_pages: false,
        };
        Arena::new(&config).unwrap().take(4096).unwrap()
    }

    fn read() -> Flight {
        flight(Op::Read {
            file: FILE,
            offset_bytes: 0,
            into: window(),
        })
    }

    fn write() -> Flight {
        let from = window().freeze();
        flight(Op::Write {
            file: FILE,
            offset_bytes: 0,
            from,
            durable: false,
        })
    }

    fn ended(verdict: Verdict) -> Result<Done, Errno> {
        match verdict {
            Verdict::End(result) => result,
            other @ (Verdict::Again
            | Verdict::Accepted(_)
            | Verdict::Connected
            | Verdict::DiscardByFallocate) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_short_count_is_continued_until_all_is_moved() {
        let mut write = write();
        assert!(matches!(write.judge(1000), Verdict::Again));
        assert_eq!(write.moved_bytes, 1000);
        assert_eq!(ended(write.judge(3096)), Ok(Done::Bytes(4096)));
    }

    #[test]
    fn a_write_that_moves_nothing_has_failed() {
        assert_eq!(ended(write().judge(0)), Err(Errno::IO));
    }

    #[test]
    fn a_read_ends_at_the_end_of_the_file() {
        let mut buffered = read();
        assert!(matches!(buffered.judge(1000), Verdict::Again));
        assert_eq!(ended(buffered.judge(0)), Ok(Done::Bytes(1000)));
        // Asking for the rest of an odd count would be refused as misaligned.
        let mut direct = read();
        direct.direct = true;
        assert_eq!(ended(direct.judge(1000)), Ok(Done::Bytes(1000)));
        let mut direct = read();
        direct.direct = true;
        assert!(matches!(direct.judge(1024), Verdict::Again));
    }

    #[test]
    fn an_op_that_is_to_stop_is_neither_continued_nor_repeated() {
        let mut stopped = write();
        stopped.stopping = true;
        assert_eq!(ended(stopped.judge(1000)), Err(Errno::CANCELED));
        assert_eq!(ended(stopped.judge(-libc::EINTR)), Err(Errno::CANCELED));
        assert!(matches!(write().judge(-libc::EINTR), Verdict::Again));
        assert_eq!(ended(write().judge(-libc::ENOSPC)), Err(Errno::NO_SPACE));
    }

    #[test]
    fn a_discard_falls_back_only_if_the_command_is_unknown() {
        let discard = |command| {
            let mut flight = flight(Op::Discard {
                file: FILE,
                offset_bytes: 0,
                len_bytes: 4096,
            });
            flight.discard_command = command;
            flight
        };
        for errno in [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOTTY] {
            assert!(matches!(
                discard(true).judge(-errno),
                Verdict::DiscardByFallocate
            ));
            assert_eq!(ended(discard(false).judge(-errno)), Err(Errno(errno)));
        }
        assert_eq!(ended(discard(true).judge(-libc::EIO)), Err(Errno::IO));
        assert_eq!(ended(discard(true).judge(0)), Ok(Done::Nothing));
    }
}

//! From submission to completion: ops meet the kernel, handles are opened and closed.

use super::flight::{Place, Verdict};
use super::handles::{self, Closing, Kind, Open, Target};
use super::ring::Cqe;
use super::{BELL_TAG, CANCEL_TAG, UringDriver, socket};
use crate::driver::{Completion, Done, Event, Handle, Op, SEND_PARTS_MAX, handle_of, total_bytes};
use crate::error::Errno;
use crate::slab::Key;
use io_uring::{opcode, types};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

impl UringDriver {
    pub(super) fn on_cqe(&mut self, cqe: Cqe) -> Option<Completion> {
        match cqe.user_data {
            CANCEL_TAG => return None,
            BELL_TAG => {
                self.bell_armed = cqe.more;
                self.wakeups += 1;
                return None;
            }
            _ => {}
        }
        let key = Key::from_u64(cqe.user_data);
        let Some(flight) = self.ops.get_mut(key).filter(|f| f.place == Place::Kernel) else {
            self.stale_cqes += 1;
            return None;
        };
        let result = match flight.judge(cqe.result) {
            Verdict::End(result) => result,
            Verdict::Again => {
                self.continued += 1;
                self.push_flight(key);
                return None;
            }
            Verdict::DiscardByFallocate => {
                self.forget_discard_command(key);
                self.push_flight(key);
                return None;
            }
            Verdict::Accepted(fd) => {
                let peer = socket::accepted(fd.as_fd());
                self.adopt_as(fd, Kind::Socket)
                    .map(|handle| Done::Socket { handle, peer })
            }
            Verdict::Connected => self.connected(key),
        };
        Some(self.retire(key, result))
    }

    fn connected(&mut self, key: Key) -> Result<Done, Errno> {
        let flight = self.ops.get_mut(key).expect("just found");
        let Op::Connect { to: peer } = flight.op else {
            unreachable!("judged as connected")
        };
        let fd = flight.connecting.take().expect("kept since submission");
        self.adopt_as(fd, Kind::Socket)
            .map(|handle| Done::Socket { handle, peer })
    }

    fn forget_discard_command(&mut self, key: Key) {
        let flight = self.ops.get_mut(key).expect("just found");
        flight.discard_command = false;
        let handle = handle_of(&flight.op).expect("a discard has a file");
        if let Some(open) = self.handles.get_mut(handle) {
            open.kind = Kind::BlockDevice {
                discard_command: false,
            };
        }
    }

    /// Makes a handle of a descriptor.
    pub(super) fn adopt_as(&mut self, fd: OwnedFd, kind: Kind) -> Result<Handle, Errno> {
        let raw = fd.as_raw_fd();
        let open = Open {
            fd,
            kind,
            fixed: false,
            in_kernel: 0,
            sending: false,
            closing: None,
        };
        let key = self
            .handles
            .0
            .insert(open)
            .map_err(|_| Errno::TOO_MANY_HANDLES)?;
        let fixed = self.ring.fix_file(key.index, raw);
        self.handles.0.get_mut(key).expect("just inserted").fixed = fixed;
        Ok(Handle {
            index: key.index,
            turn: key.turn,
        })
    }

    /// Takes an op out of the slab and makes its completion. Finishes a close that waited for it.
    pub(super) fn retire(&mut self, key: Key, result: Result<Done, Errno>) -> Completion {
        let flight = self.ops.remove(key).expect("an op is retired once");
        if let Some(area) = flight.area {
            self.areas.give_back(area);
        }
        if flight.place == Place::Kernel
            && let Some(handle) = handle_of(&flight.op)
        {
            let open = self
                .handles
                .get_mut(handle)
                .expect("open while ops are on it");
            open.in_kernel -= 1;
            if matches!(flight.op, Op::Send { .. }) {
                open.sending = false;
            }
            if open.in_kernel == 0 && open.closing.is_some() {
                self.finish_close(handle);
            }
        }
        Completion {
            token: flight.token,
            event: Event::Op {
                op: flight.op,
                result,
            },
        }
    }

    /// Nothing is in flight on the handle: close it, let its `Op::Close` complete.
    fn finish_close(&mut self, handle: Handle) {
        let open = self
            .handles
            .0
            .remove(handles::key(handle))
            .expect("open until now");
        let closing = open.closing.expect("only closing handles are closed");
        assert_eq!(
            open.in_kernel, 0,
            "uring: closing a handle with ops in flight"
        );
        if open.fixed {
            self.ring.unfix_file(handle.index);
        }
        if closing.reset && open.kind == Kind::Socket {
            socket::reset_on_close(open.fd.as_fd());
        }
        drop(open.fd);
        self.decide(closing.op, Ok(Done::Nothing));
    }

    /// Queues a result for delivery.
    pub(super) fn decide(&mut self, key: Key, result: Result<Done, Errno>) {
        let flight = self
            .ops
            .get_mut(key)
            .expect("undecided ops are in the slab");
        flight.place = Place::Ready;
        self.ready.push_back((key, result));
    }

    /// Gives a new op to the kernel; an error decides it here.
    pub(super) fn start(&mut self, key: Key) -> Result<(), Errno> {
        let flight = self.ops.get_mut(key).expect("just inserted");
        if let Op::Close { handle, reset } = flight.op {
            return self.begin_close(handle, Closing { op: key, reset });
        }
        if self.draining {
            return Err(Errno::CANCELED);
        }
        match &flight.op {
            Op::Connect { to } => flight.connecting = Some(socket::for_connect(to)?),
            Op::Send { parts, .. } => assert!((1..=SEND_PARTS_MAX).contains(&parts.len())),
            Op::Recv { .. } => assert!(total_bytes(&flight.op) > 0, "an empty receive"),
            Op::Accept { .. }
            | Op::Read { .. }
            | Op::Write { .. }
            | Op::Flush { .. }
            | Op::Discard { .. }
            | Op::Command { .. }
            | Op::Close { .. } => {}
        }
        if let Some(handle) = handle_of(&flight.op) {
            let open = self.handles.get_mut(handle).ok_or(Errno::BAD_HANDLE)?;
            if open.closing.is_some() {
                return Err(Errno::BAD_HANDLE);
            }
            open.in_kernel += 1;
            if matches!(flight.op, Op::Send { .. }) {
                assert!(!open.sending, "reactor: two sends in flight on one socket");
                open.sending = true;
            }
            flight.direct = matches!(open.kind, Kind::File { direct: true });
            flight.discard_command = matches!(flight.op, Op::Discard { .. })
                && open.kind
                    == (Kind::BlockDevice {
                        discard_command: true,
                    });
        }
        self.push_flight(key);
        Ok(())
    }

    /// Queues the SQE for the op's first or next round.
    fn push_flight(&mut self, key: Key) {
        let flight = self.ops.get_mut(key).expect("in flight");
        flight.place = Place::Kernel;
        let target = match handle_of(&flight.op) {
            Some(handle) => self
                .handles
                .target(handle)
                .expect("open while ops are on it"),
            None => Target {
                fd: types::Fd(-1),
                fixed: false,
                fixed_memory: false,
            },
        };
        let entry = flight
            .sqe(target, &mut self.areas, self.arena_base)
            .user_data(key.to_u64());
        // SAFETY: the entry points into windows and an area that `flight` owns. The slab keeps it
        // until the CQE with this key was judged final, or leaks it (see `shutdown`); windows stay
        // where they are in the mapping when the slab moves its entries. A `BufMut` is the only
        // window over its bytes and `Buf`s are written by nobody, so nothing aliases.
        unsafe { self.ring.push(&entry) };
    }

    fn begin_close(&mut self, handle: Handle, closing: Closing) -> Result<(), Errno> {
        let open = self.handles.get_mut(handle).ok_or(Errno::BAD_HANDLE)?;
        if open.closing.is_some() {
            return Err(Errno::BAD_HANDLE);
        }
        open.closing = Some(closing);
        let idle = open.in_kernel == 0;
        self.ops.get_mut(closing.op).expect("just inserted").place = Place::Closing;
        if idle {
            self.finish_close(handle);
            return Ok(());
        }
        self.stop_all_on(handle);
        let target = self.handles.target(handle).expect("open");
        let cancel = opcode::AsyncCancel2::new(target.cancel_all())
            .build()
            .user_data(CANCEL_TAG);
        // SAFETY: a cancel points to no memory.
        unsafe { self.ring.push(&cancel) };
        Ok(())
    }

    /// Marks everything in flight on the handle, so that partial results are not continued.
    fn stop_all_on(&mut self, handle: Handle) {
        for key in self.ops.keys() {
            let flight = self.ops.get_mut(key).expect("listed");
            flight.stopping |= handle_of(&flight.op) == Some(handle);
        }
    }

    pub(super) fn cancel_key(&mut self, key: Key) {
        let Some(flight) = self.ops.get_mut(key).filter(|f| f.place == Place::Kernel) else {
            return;
        };
        flight.stopping = true;
        let what = types::CancelBuilder::user_data(key.to_u64());
        let cancel = opcode::AsyncCancel2::new(what)
            .build()
            .user_data(CANCEL_TAG);
        // SAFETY: a cancel points to no memory.
        unsafe { self.ring.push(&cancel) };
    }
}

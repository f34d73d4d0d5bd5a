//! The contract between shells and drivers: handles, ops, completions.

use crate::arena::{Arena, Buf, BufMut};
use crate::counters::Counters;
use crate::error::{Errno, SetupError};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Whom a completion concerns. Chosen by the submitter, returned untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// Which shell of the program (a constant of its wiring).
    pub room: u8,
    /// Which connection, store or device within the shell.
    pub index: u32,
    /// The shell's own note: a command slot, a turn, a purpose.
    pub value: u64,
}

/// An open socket, listener, file or device of this driver. Stale handles are told from fresh ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    /// Slot in the driver's table.
    pub index: u32,
    /// How often the slot was reused before.
    pub turn: u32,
}

/// A submitted op, for [`Driver::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId {
    /// Slot in the op slab.
    pub index: u32,
    /// How often the slot was reused before.
    pub turn: u32,
}

/// An armed timer, for [`Driver::disarm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(pub u64);

/// One operation. It owns its buffers until its completion gives them back.
#[derive(Debug)]
pub enum Op {
    /// Accept one connection; completes with [`Done::Socket`].
    Accept {
        /// From [`Driver::listen`].
        listener: Handle,
    },
    /// Connect a TCP socket (no delay, close on exec); completes with [`Done::Socket`].
    Connect {
        /// Remote address.
        to: SocketAddr,
    },
    /// Receive at least one byte, filling `into` in order; zero bytes mean end of stream.
    Recv {
        /// A connected socket.
        socket: Handle,
        /// First window, then the second if there is one. The sum of their lengths is the most
        /// that is received.
        into: (BufMut, Option<BufMut>),
    },
    /// Send all parts in order, completely, or fail. At most one send per socket is in flight.
    Send {
        /// A connected socket.
        socket: Handle,
        /// At most [`SEND_PARTS_MAX`] windows. Handed back so that the vector can be used again.
        parts: Vec<Buf>,
    },
    /// Read `into.len_bytes()` at the offset. A short count means end of file.
    Read {
        /// A file or device.
        file: Handle,
        /// Where, in bytes.
        offset_bytes: u64,
        /// What to fill.
        into: BufMut,
    },
    /// Write all of `from` at the offset.
    Write {
        /// A file or device.
        file: Handle,
        /// Where, in bytes.
        offset_bytes: u64,
        /// What to write.
        from: Buf,
        /// Durable on completion (`RWF_DSYNC`).
        durable: bool,
    },
    /// Make all completed writes durable (`fdatasync`).
    Flush {
        /// A file or device.
        file: Handle,
    },
    /// Tell the device that the range holds nothing of interest; its content is then undefined.
    Discard {
        /// A file or device.
        file: Handle,
        /// Where, in bytes.
        offset_bytes: u64,
        /// How much, in bytes.
        len_bytes: u64,
    },
    /// Pass a 16-byte command to a device's driver (`IORING_OP_URING_CMD`); completes with
    /// [`Done::Value`]. Stays in flight as long as the device likes.
    Command {
        /// An adopted device.
        file: Handle,
        /// The command number.
        command: u32,
        /// Its payload, as laid out by the device.
        payload: [u8; 16],
    },
    /// Cancel what is in flight on the handle, wait for it to complete, and close. A socket with
    /// `reset` is closed with RST (no linger): its peer learns at once. Device commands cannot be
    /// cancelled: the close of a device waits until the device has ended them.
    Close {
        /// Any handle of this driver; invalid afterwards.
        handle: Handle,
        /// Abort a TCP connection instead of closing it in order.
        reset: bool,
    },
}

/// The handle that an op works on.
pub(crate) fn handle_of(op: &Op) -> Option<Handle> {
    match op {
        Op::Accept { listener } => Some(*listener),
        Op::Connect { .. } => None,
        Op::Recv { socket, .. } | Op::Send { socket, .. } => Some(*socket),
        Op::Read { file, .. }
        | Op::Write { file, .. }
        | Op::Flush { file }
        | Op::Discard { file, .. }
        | Op::Command { file, .. } => Some(*file),
        Op::Close { handle, .. } => Some(*handle),
    }
}

/// How many bytes a send or a file op is to move.
pub(crate) fn total_bytes(op: &Op) -> u32 {
    match op {
        Op::Send { parts, .. } => parts.iter().map(Buf::len_bytes).sum(),
        Op::Read { into, .. } => into.len_bytes(),
        Op::Write { from, .. } => from.len_bytes(),
        Op::Recv {
            into: (first, second),
            ..
        } => first.len_bytes() + second.as_ref().map_or(0, |window| window.len_bytes()),
        Op::Accept { .. }
        | Op::Connect { .. }
        | Op::Flush { .. }
        | Op::Discard { .. }
        | Op::Command { .. }
        | Op::Close { .. } => 0,
    }
}

/// Most windows one [`Op::Send`] may carry.
pub const SEND_PARTS_MAX: usize = 64;

/// What a successful op produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Bytes moved (receive, send, read, write).
    Bytes(u32),
    /// A new socket (accept, connect) and its remote address.
    Socket {
        /// The socket.
        handle: Handle,
        /// The other end.
        peer: SocketAddr,
    },
    /// A device command's result.
    Value(i32),
    /// Nothing to report (flush, discard, close).
    Nothing,
}

/// Something that happened.
#[derive(Debug)]
pub struct Completion {
    /// As given at submission.
    pub token: Token,
    /// What happened.
    pub event: Event,
}

/// The kinds of things that happen.
#[derive(Debug)]
pub enum Event {
    /// A submitted op ended; here it is back, with its buffers.
    Op {
        /// The op as it was submitted (buffer contents may have changed).
        op: Op,
        /// How it ended.
        result: Result<Done, Errno>,
    },
    /// A timer reached its moment. Never delivered after its `disarm` returned.
    Timer(TimerId),
    /// A [`Doorbell`] was rung at least once since the last time.
    Rung,
}

/// What kind of thing a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A block device.
    BlockDevice,
    /// A regular file.
    File,
}

/// How to open a backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Refuse if anyone else holds it (`O_EXCL` on devices, a lock on files), so that commands of a
    /// killed predecessor have drained before we begin. A holder that is about to let go is waited
    /// for, up to 0.2 s.
    pub exclusive: bool,
    /// Open for writing too.
    pub writable: bool,
    /// Bypass the page cache (`O_DIRECT`). Offsets, lengths and memory are then 4 KiB-aligned.
    pub direct: bool,
    /// Create a regular file of this size if nothing is there.
    pub create_bytes: Option<u64>,
}

/// What the driver found out about an opened file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Kind of file.
    pub kind: FileKind,
    /// Its size now, in bytes.
    pub size_bytes: u64,
    /// Whether completed writes may be lost without a flush. False only if the device says so.
    pub volatile_cache: bool,
    /// Whether [`Op::Discard`] does anything.
    pub can_discard: bool,
    /// Whether it really is open with `O_DIRECT` (some file systems refuse it).
    pub direct: bool,
}

/// Wakes a reactor from another thread.
///
/// Ringing is cheap while the reactor is awake and one system call while it sleeps. Data travels
/// beside it, in a bounded queue that both sides share.
#[derive(Clone)]
pub struct Doorbell(Arc<dyn Fn() + Send + Sync>);

impl Doorbell {
    /// A bell that does `ring` when rung: drivers make theirs so, and tests may too.
    pub fn new(ring: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(ring))
    }

    /// Makes the reactor deliver [`Event::Rung`] soon.
    pub fn ring(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Doorbell")
    }
}

/// What a shell may ask of the world. One implementation per driver.
pub trait Driver {
    /// Monotonic nanoseconds since an arbitrary start, sampled once per turn.
    fn now_ns(&self) -> u64;

    /// What was done so far. A driver without a ring counts the ops only.
    fn counters(&self) -> Counters;

    /// The buffers that ops may use.
    fn arena(&self) -> &Arena;

    /// Starts an op. Owners bound what they have in flight; the slab holds their sum, so a full
    /// slab is a bug of ours and panics.
    fn submit(&mut self, token: Token, op: Op) -> OpId;

    /// Asks for an early end. The op still completes exactly once, with
    /// [`Errno::CANCELED`] or with whatever it had done by then. A stale id is ignored.
    fn cancel(&mut self, op: OpId);

    /// Asks for [`Event::Timer`] at or soon after a moment.
    fn arm(&mut self, token: Token, at_ns: u64) -> TimerId;

    /// Forgets a timer. A stale id is ignored.
    fn disarm(&mut self, timer: TimerId);

    /// Opens a listening TCP socket. Port 0 picks one; see [`Driver::local_addr`].
    ///
    /// # Errors
    /// [`SetupError::Call`] with the address in its text.
    fn listen(&mut self, at: SocketAddr) -> Result<Handle, SetupError>;

    /// The address a listener or socket is bound to.
    fn local_addr(&self, handle: Handle) -> Option<SocketAddr>;

    /// Opens a backing file or block device.
    ///
    /// # Errors
    /// [`SetupError::Call`] with the path in its text.
    fn open(&mut self, path: &Path, how: OpenFile) -> Result<(Handle, FileFacts), SetupError>;

    /// The size of an open file or block device now, in bytes.
    ///
    /// # Errors
    /// What the kernel said; [`Errno::BAD_HANDLE`] if that is nothing open.
    fn size_bytes(&self, file: Handle) -> Result<u64, Errno>;

    /// Takes over an open descriptor (the ublk character device).
    ///
    /// # Errors
    /// [`SetupError::NotWithThisDriver`] where there are no descriptors.
    fn adopt(&mut self, fd: OwnedFd) -> Result<Handle, SetupError>;

    /// A bell whose ringing is delivered as [`Event::Rung`] under `token`.
    ///
    /// # Errors
    /// [`SetupError::Call`] if the kernel refuses a descriptor.
    fn doorbell(&mut self, token: Token) -> Result<Doorbell, SetupError>;
}

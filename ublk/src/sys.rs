//! The unsafe corner: control ring, fetches of a recovery that broke, descriptor mapping, `unshare`.

use crate::uapi::{CtrlCmd, IO_FETCH_REQ, IoCmd, IoDesc, QUEUE_DEPTH_MAX};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use reactor::Errno;
use std::fmt;
use std::io;
use std::mem::{ManuallyDrop, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;
use zerocopy::IntoBytes;

/// A ring of 128-byte entries on `/dev/ublk-control`, one command at a time, blocking.
pub(crate) struct ControlRing {
    /// Dropped before the descriptor it refers to.
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    device: OwnedFd,
    sequence: u64,
}

impl fmt::Debug for ControlRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlRing")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// Why a command has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallFault {
    /// The driver, or the ring, said no.
    Refused(Errno),
    /// The driver has not answered in time. The command may still take effect.
    NoAnswer,
}

impl ControlRing {
    pub(crate) fn new(device: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::builder().build(4)?,
            device,
            sequence: 0,
        })
    }

    /// Runs one command whose buffer is `payload`; returns its result, and the buffer as the
    /// driver left it. Without `patience` it waits for as long as the driver takes.
    pub(crate) fn call(
        &mut self,
        number: u32,
        mut command: CtrlCmd,
        payload: Vec<u8>,
        patience: Option<Duration>,
    ) -> Result<(i32, Vec<u8>), CallFault> {
        // The driver may use the buffer until the completion was seen. If that never happens, it
        // is never freed.
        let mut payload = ManuallyDrop::new(payload);
        if !payload.is_empty() {
            command.buffer_len_bytes = u16::try_from(payload.len()).expect("buffers are small");
            command.addr = payload.as_mut_ptr().expose_provenance() as u64;
        }
        self.sequence += 1;
        self.push(number, &command);
        let result = self.wait(patience)?;
        let payload = ManuallyDrop::into_inner(payload);
        if result < 0 {
            Err(CallFault::Refused(Errno(-result)))
        } else {
            Ok((result, payload))
        }
    }

    fn push(&mut self, number: u32, command: &CtrlCmd) {
        let mut inline = [0; 80];
        inline[..size_of::<CtrlCmd>()].copy_from_slice(command.as_bytes());
        let entry = opcode::UringCmd80::new(types::Fd(self.device.as_raw_fd()), number)
            .cmd(inline)
            .build()
            .user_data(self.sequence);
        // SAFETY: `push` asks that everything the entry refers to stays valid until its completion.
        // The descriptor is a field of `self` and is dropped after the ring; the command itself is
        // copied into the entry; the buffer behind its `addr` is not freed by `call` before the
        // completion with this sequence number was seen, and not at all otherwise.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "control ring: one command at a time fits");
    }

    /// Waits for the completion of the latest command.
    fn wait(&mut self, patience: Option<Duration>) -> Result<i32, CallFault> {
        let limit = patience.map(types::Timespec::from);
        let args = match &limit {
            Some(limit) => types::SubmitArgs::new().timespec(limit),
            None => types::SubmitArgs::new(),
        };
        loop {
            let entered = self.ring.submitter().submit_with_args(1, &args);
            // Completions of commands that were given up earlier are passed over.
            if let Some(entry) = self
                .ring
                .completion()
                .find(|e| e.user_data() == self.sequence)
            {
                return Ok(entry.result());
            }
            match entered.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO)) {
                Ok(_) | Err(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                Err(libc::ETIME) => return Err(CallFault::NoAnswer),
                Err(code) => return Err(CallFault::Refused(Errno(code))),
            }
        }
    }
}

/// The request descriptors of one queue, shared with the driver, read-only.
pub(crate) struct Descriptors {
    base: NonNull<IoDesc>,
    len_bytes: usize,
    depth: u16,
}

impl fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptors")
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

impl Descriptors {
    /// Maps a queue's descriptors from an open `/dev/ublkcN`.
    pub(crate) fn map(device: BorrowedFd<'_>, queue: u16, depth: u16) -> io::Result<Self> {
        let page_bytes = rustix::param::page_size();
        let slots_bytes =
            |slots: u16| (usize::from(slots) * size_of::<IoDesc>()).next_multiple_of(page_bytes);
        let len_bytes = slots_bytes(depth);
        let offset_bytes = usize::from(queue) * slots_bytes(QUEUE_DEPTH_MAX);
        // SAFETY: a new shared mapping at an address of the kernel's choice; no memory of ours is
        // concerned, and the driver checks offset, length and protection against the queue.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len_bytes,
                rustix::mm::ProtFlags::READ,
                rustix::mm::MapFlags::SHARED | rustix::mm::MapFlags::POPULATE,
                device,
                offset_bytes as u64,
            )
        }?;
        let base = NonNull::new(at.cast()).expect("mmap without MAP_FIXED never returns null");
        Ok(Self {
            base,
            len_bytes,
            depth,
        })
    }

    /// What the tag's request is. Meaningful from the completion of the tag's fetch until its
    /// commit.
    pub(crate) fn load(&self, tag: u16) -> IoDesc {
        assert!(
            tag < self.depth,
            "ublk: tag {tag} of a queue of {}",
            self.depth
        );
        // SAFETY: `depth` descriptors lie in the mapping (its length was rounded up from exactly
        // that), and the tag is below `depth`.
        let at = unsafe { self.base.add(usize::from(tag)) };
        // SAFETY: `at` is mapped and readable as long as `self` lives, aligned because mappings
        // start on a page and 24 is a multiple of 8, and any bytes are an `IoDesc`. The driver
        // writes a descriptor before it completes the tag's command and not again before our
        // commit, so this does not race; volatile, because the compiler sees no writer at all.
        unsafe { at.as_ptr().read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: address and length are those of our one mmap, and `load` hands out copies, so
        // nothing refers to the mapping any more.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len_bytes) };
        assert_eq!(unmapped, Ok(()), "ublk: munmap of our own mapping failed");
    }
}

/// Fetches every tag of a device once and lets go of them all: the ring, and with it the fetches,
/// ends here, and so does the descriptor. What the driver says to each fetch does not matter.
pub(crate) fn fetch_and_let_go(device: OwnedFd, queue_count: u16, depth: u16) -> io::Result<()> {
    let mut ring: IoUring = IoUring::new(64)?;
    for (q_id, tag) in (0..queue_count).flat_map(|q| (0..depth).map(move |t| (q, t))) {
        let command = IoCmd {
            q_id,
            tag,
            ..IoCmd::default()
        };
        let inline = command.as_bytes().try_into().expect("16 bytes");
        let entry = opcode::UringCmd16::new(types::Fd(device.as_raw_fd()), IO_FETCH_REQ)
            .cmd(inline)
            .build();
        if ring.submission().is_full() {
            ring.submit()?;
        }
        // SAFETY: the entry carries its command by value and refers to nothing but the descriptor,
        // which this function owns and drops after the ring.
        let pushed = unsafe { ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "submitted when it was full");
    }
    ring.submit()?;
    drop(ring);
    drop(device);
    Ok(())
}

/// Gives this thread, and all it will start, a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: only descriptor tables (`UnshareFlags::FILES`) make the call unsafe; they stay
    // shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    Ok(())
}

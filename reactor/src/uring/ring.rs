//! The ring itself: set-up, registration, push, enter, reap. Knows nothing of ops.

use crate::arena::Arena;
use crate::counters::Counters;
use crate::error::{Errno, SetupError};
use crate::probe::{self, Features};
use io_uring::{IoUring, cqueue, squeue};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};

/// Largest registered buffer the kernel takes, in bytes; a larger arena is registered in pieces.
pub(super) const FIXED_BUFFER_BYTES: usize = 1 << 30;

const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
const ENTER_NO_IOWAIT: u32 = 1 << 7;
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

/// `struct io_uring_rsrc_update`, as ring registration takes it.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    resv: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArg {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_us: u32,
    timespec: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// How long an enter may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Not at all.
    No,
    /// Until something completes.
    Forever,
    /// Until something completes, at most so many nanoseconds.
    AtMost(u64),
}

/// One completion, copied out of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cqe {
    pub(super) user_data: u64,
    pub(super) result: i32,
    /// Others with the same `user_data` follow.
    pub(super) more: bool,
}

pub(super) struct Ring {
    ring: IoUring,
    /// Index of the ring in the task's registered rings, or the descriptor.
    enter_fd: i32,
    enter_flags: u32,
    pub(super) features: Features,
    pub(super) counters: Counters,
    /// Completions taken from the queue and not yet handled.
    pub(super) arrived: VecDeque<Cqe>,
    fixed_files: bool,
    /// The arena is registered.
    buffers: bool,
}

impl Ring {
    pub(super) fn new(
        sq_entries: u32,
        cq_entries: u32,
        flag_work: bool,
    ) -> Result<Self, SetupError> {
        let ring = probe::set_up(sq_entries, cq_entries, flag_work)?;
        let features = probe::features(&ring);
        features.require()?;
        let mut this = Self {
            enter_fd: ring.as_raw_fd(),
            enter_flags: if ring.params().is_feature_no_iowait() {
                ENTER_NO_IOWAIT
            } else {
                0
            },
            ring,
            features,
            counters: Counters::default(),
            arrived: VecDeque::new(),
            fixed_files: false,
            buffers: false,
        };
        this.register_ring_fd();
        Ok(this)
    }

    /// Saves the lookup of the ring's descriptor in each enter. Failure only costs that.
    fn register_ring_fd(&mut self) {
        let fd = self.ring.as_raw_fd();
        let data = u64::try_from(fd).expect("descriptors are not negative");
        let mut update = RingUpdate {
            offset: u32::MAX,
            resv: 0,
            data,
        };
        // SAFETY: io_uring_register(fd, IORING_REGISTER_RING_FDS, array, 1) reads and writes one
        // io_uring_rsrc_update; `update` has its layout and outlives the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                fd,
                REGISTER_RING_FDS,
                &raw mut update,
                1,
            )
        };
        if done == 1 {
            self.enter_fd = i32::try_from(update.offset).expect("the kernel has 16 such slots");
            self.enter_flags |= ENTER_REGISTERED_RING;
        }
        self.features.set(probe::REGISTERED_RING, done == 1);
    }

    /// Registers the arena as fixed buffers 0, 1, … of [`FIXED_BUFFER_BYTES`] each.
    pub(super) fn register_arena(&mut self, arena: &Arena) -> Result<(), SetupError> {
        let whole = arena.as_iovec();
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < whole.iov_len {
            let len = FIXED_BUFFER_BYTES.min(whole.iov_len - at);
            let base = whole.iov_base.wrapping_byte_add(at);
            pieces.push(libc::iovec {
                iov_base: base,
                iov_len: len,
            });
            at += len;
        }
        // SAFETY: the iovecs cover the arena's mapping, which stays mapped while any window or
        // `Arena` lives; the driver holds one and drops the ring before it. Pages are pinned by the
        // kernel anyway. The memory is reached only through windows, never through references that
        // span it, so kernel writes under an op alias nothing.
        let done = unsafe { self.ring.submitter().register_buffers(&pieces) };
        done.map_err(|e| probe::buffer_error(Errno::of(&e), whole.iov_len as u64))?;
        self.buffers = true;
        Ok(())
    }

    /// Makes the table of registered files, if files leave it promptly (see [`Features`]). It has
    /// no more slots than the process may open files: the kernel refuses that, and handles beyond
    /// it go by descriptor.
    pub(super) fn register_files(&mut self, count: u32) {
        use rustix::process::{Resource, getrlimit};
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let count = count.min(u32::try_from(limit).unwrap_or(u32::MAX));
        self.fixed_files = self.features.has(probe::PROMPT_FILES)
            && self.ring.submitter().register_files_sparse(count).is_ok();
        self.features.set(probe::FIXED_FILES, self.fixed_files);
    }

    /// Puts a descriptor into the file table; true if ops may use the slot.
    pub(super) fn fix_file(&mut self, slot: u32, fd: RawFd) -> bool {
        self.fixed_files
            && self
                .ring
                .submitter()
                .register_files_update(slot, &[fd])
                .is_ok()
    }

    /// Takes a descriptor out of the file table.
    pub(super) fn unfix_file(&mut self, slot: u32) {
        let gone = self.ring.submitter().register_files_update(slot, &[-1]);
        assert!(
            gone.is_ok(),
            "uring: cannot empty file slot {slot}: {gone:?}"
        );
    }

    /// Queues one entry; submits what is queued if there is no room.
    ///
    /// # Safety
    /// Memory that the entry points to stays valid, and unaliased as the operation demands, until
    /// the completion with its `user_data` was reaped.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: forwarded to the caller of this function, same condition.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return;
            }
            self.counters.queue_full += 1;
            self.enter(Wait::No);
            // A kernel that refuses entries until completions were taken (EBUSY) is satisfied so.
            self.reap();
        }
    }

    /// Submits everything queued, waits as told, runs the kernel's deferred work.
    pub(super) fn enter(&mut self, wait: Wait) {
        let queued = u32::try_from(self.ring.submission().len()).expect("ring sizes are u32");
        let timespec = match wait {
            Wait::AtMost(ns) => Some(Timespec {
                seconds: i64::try_from(ns / 1_000_000_000).expect("u64 ns are 585 years"),
                nanoseconds: i64::try_from(ns % 1_000_000_000).expect("below 1e9"),
            }),
            Wait::No | Wait::Forever => None,
        };
        let arg = WaitArg {
            sigmask: 0,
            sigmask_bytes: 0,
            min_wait_us: 0,
            timespec: timespec
                .as_ref()
                .map_or(0, |t| std::ptr::from_ref(t).expose_provenance() as u64),
        };
        let want = u32::from(wait != Wait::No);
        self.counters.enters += 1;
        self.counters.sleeps += u64::from(want);
        // SAFETY: `enter_fd` is this ring's descriptor or its registered index, as `enter_flags`
        // say. With EXT_ARG the kernel reads `size` bytes of an io_uring_getevents_arg and the
        // timespec it points to; both live on this stack frame. What the queued entries point to
        // is vouched for by the callers of `push`.
        let done = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.enter_fd,
                queued,
                want,
                ENTER_GETEVENTS | ENTER_EXT_ARG | self.enter_flags,
                &raw const arg,
                size_of::<WaitArg>(),
            )
        };
        let left = self.ring.submission().len();
        self.counters.sqes += u64::from(queued) - left as u64;
        if done < 0 {
            let errno = Errno::last();
            // ETIME: the deadline. EINTR: a signal. EAGAIN, EBUSY: come again after completions.
            let expected = [libc::ETIME, libc::EINTR, libc::EAGAIN, libc::EBUSY];
            assert!(
                expected.contains(&errno.0),
                "uring: enter failed: {errno:?}"
            );
        }
    }

    /// Whether an enter or a reap would bring something now. Needs the work flag asked for at set-up.
    pub(super) fn has_work(&mut self) -> bool {
        !self.ring.completion().is_empty() || {
            let queue = self.ring.submission();
            queue.taskrun() || queue.cq_overflow()
        }
    }

    /// Moves all completions into `arrived`.
    pub(super) fn reap(&mut self) {
        let before = self.arrived.len();
        let queue = self.ring.completion();
        self.arrived.extend(queue.map(|cqe| Cqe {
            user_data: cqe.user_data(),
            result: cqe.result(),
            more: cqueue::more(cqe.flags()),
        }));
        self.counters.cqes += (self.arrived.len() - before) as u64;
    }
}

impl Drop for Ring {
    /// The kernel takes a closed ring apart later, in a worker. What others may wait for (locks and
    /// claims of files, pinned memory) is let go here, and so is the task's hold on the ring.
    fn drop(&mut self) {
        if self.fixed_files && self.ring.submitter().unregister_files().is_err() {
            tracing::warn!("uring: files stay open until the kernel has taken the ring apart");
        }
        if self.buffers && self.ring.submitter().unregister_buffers().is_err() {
            tracing::warn!("uring: memory stays locked until the kernel has taken the ring apart");
        }
        if self.enter_flags & ENTER_REGISTERED_RING != 0 {
            let offset = u32::try_from(self.enter_fd).expect("it was an unsigned offset");
            let mut update = RingUpdate {
                offset,
                resv: 0,
                data: 0,
            };
            let fd = self.ring.as_raw_fd();
            // SAFETY: as in `register_ring_fd`: one io_uring_rsrc_update that outlives the call.
            let done = unsafe {
                libc::syscall(
                    libc::SYS_io_uring_register,
                    fd,
                    UNREGISTER_RING_FDS,
                    &raw mut update,
                    1,
                )
            };
            if done != 1 {
                tracing::warn!("uring: the ring stays registered until the thread ends");
            }
        }
    }
}

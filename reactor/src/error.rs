//! The kernel's refusals, typed at the edge.

use std::fmt;

/// A Linux error number, positive (`errno(3)`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// The op was cancelled before it did anything (`ECANCELED`).
    pub const CANCELED: Self = Self(libc::ECANCELED);
    /// The peer reset the connection.
    pub const CONNECTION_RESET: Self = Self(libc::ECONNRESET);
    /// Nobody listens there.
    pub const CONNECTION_REFUSED: Self = Self(libc::ECONNREFUSED);
    /// The medium failed.
    pub const IO: Self = Self(libc::EIO);
    /// The file system or device is full.
    pub const NO_SPACE: Self = Self(libc::ENOSPC);
    /// The operation is not supported by this file or driver.
    pub const NOT_SUPPORTED: Self = Self(libc::EOPNOTSUPP);
    /// The handle is not open (any more).
    pub const BAD_HANDLE: Self = Self(libc::EBADF);
    /// No more handles: the driver's limit or the process's.
    pub const TOO_MANY_HANDLES: Self = Self(libc::EMFILE);

    /// That of the last failed libc call of this thread.
    pub(crate) fn last() -> Self {
        Self::of(&std::io::Error::last_os_error())
    }

    /// That of an error which came from the kernel.
    pub(crate) fn of(error: &std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

impl std::error::Error for Errno {}

/// Why a reactor, a listener or a file could not be set up. Each text names the value found and
/// what the operator can do about it.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `kernel.io_uring_disabled` forbids rings.
    #[error(
        "io_uring is disabled on this host (kernel.io_uring_disabled = {value}); set it to 0 with \
         `sysctl -w kernel.io_uring_disabled=0`"
    )]
    Disabled {
        /// The sysctl's value.
        value: String,
    },
    /// The sysctl allows rings and the call is refused all the same.
    #[error(
        "io_uring is refused ({errno}) although kernel.io_uring_disabled = 0: a seccomp filter of \
         the container or unit forbids it; allow io_uring_setup, io_uring_enter and \
         io_uring_register there"
    )]
    Forbidden {
        /// What the kernel said.
        errno: Errno,
    },
    /// The running kernel lacks something we cannot do without.
    #[error("the kernel is too old: {missing} needs Linux {needed}, this is {found}; upgrade it")]
    KernelTooOld {
        /// What is missing.
        missing: &'static str,
        /// First version that has it.
        needed: &'static str,
        /// `uname -r`.
        found: String,
    },
    /// The locked-memory limit does not admit the arena.
    #[error(
        "the locked-memory limit is {limit_bytes} bytes for all processes of this user together, the \
         buffer arena needs {needed_bytes}; set LimitMEMLOCK=infinity in the unit or run \
         `ulimit -l unlimited`"
    )]
    MemlockTooLow {
        /// `RLIMIT_MEMLOCK`.
        limit_bytes: u64,
        /// What registration needs.
        needed_bytes: u64,
    },
    /// A system call failed with a reason of its own.
    #[error("{what}: {errno}")]
    Call {
        /// What was tried, with its argument ("listen on 127.0.0.1:4420", "open /dev/sdb").
        what: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// This driver cannot do it at all.
    #[error("{what} is not available with driver = \"{driver}\"")]
    NotWithThisDriver {
        /// What was asked for.
        what: &'static str,
        /// The driver's name in the configuration.
        driver: &'static str,
    },
}

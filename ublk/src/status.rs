//! How a volume's refusals reach the kernel.

use reactor::Errno;

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No replica could do it, or data is damaged: the application sees an IO error.
    Io,
    /// The stores are full: thin volumes report it as such, and file systems know what it means.
    NoSpace,
    /// The volume cannot do this kind of request; the kernel falls back where it knows a way.
    NotSupported,
}

impl Fault {
    /// The error number the driver is told (`errno_to_blk_status` turns it into a block status).
    pub const fn errno(self) -> Errno {
        match self {
            Self::Io => Errno(libc::EIO),
            Self::NoSpace => Errno(libc::ENOSPC),
            Self::NotSupported => Errno(libc::EOPNOTSUPP),
        }
    }
}

/// The result field of a commit. Only reads and writes count bytes; the driver ignores the count
/// of everything else.
pub(crate) fn commit_result(outcome: Result<u32, Fault>) -> i32 {
    match outcome {
        Ok(len_bytes) => i32::try_from(len_bytes).expect("an IO is far below 2 GiB"),
        Err(fault) => -fault.errno().0,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_outcome_has_its_number() {
        let table = [
            (Ok(0), 0),
            (Ok(131_072), 131_072),
            (Err(Fault::Io), -libc::EIO),
            (Err(Fault::NoSpace), -libc::ENOSPC),
            (Err(Fault::NotSupported), -libc::EOPNOTSUPP),
        ];
        for (outcome, result) in table {
            assert_eq!(commit_result(outcome), result, "{outcome:?}");
        }
    }
}

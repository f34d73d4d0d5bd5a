//! What a process must do before it serves a disk of its own host.
//!
//! Such a process sits in the write-back path of every program on the host: if it waits for memory
//! and the kernel waits for a write to free some, both wait for ever.

use crate::sys;
use reactor::Errno;
use rustix::mm::MlockAllFlags;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use std::path::{Path, PathBuf};

/// A protection could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HygieneError {
    /// Too late: threads that exist already would stay behind.
    #[error(
        "{threads} threads run already: protections have to be set up before the first thread \
         starts (a bug of this program)"
    )]
    Threads {
        /// How many.
        threads: usize,
    },
    /// The kernel refused.
    #[error("{what}: {errno}; {remedy}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
        /// What to do.
        remedy: &'static str,
    },
}

/// Prepares this process for serving block devices. Call it first thing in `main`: threads inherit
/// what is set here, and threads that exist already do not get it.
///
/// 1. `PR_SET_IO_FLUSHER`: allocations on our behalf never wait for write-back.
/// 2. All memory is locked as it is touched, so that no page of ours has to be read back from a disk
///    that may be our own.
/// 3. A private mount namespace without the mounts that this process does not need. Otherwise it
///    may be the last user of a file system on its own disk: its exit then unmounts that, which
///    writes to a disk nobody serves any more. `needed` are paths that it will use, besides the
///    root, `/dev`, `/proc`, `/sys`, `/etc` and `/usr`.
///
/// # Errors
/// [`HygieneError`]; what came before the failed step stays in force.
pub fn protect_process(needed: &[&Path]) -> Result<(), HygieneError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(HygieneError::Threads { threads });
    }
    rustix::process::configure_io_flusher_behavior(true).map_err(|e| {
        refused(
            "PR_SET_IO_FLUSHER",
            e,
            "give the process CAP_SYS_RESOURCE (root has it)",
        )
    })?;
    lock_memory()?;
    leave_mounts(needed)
}

fn lock_memory() -> Result<(), HygieneError> {
    let how = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    rustix::mm::mlockall(how).map_err(|e| {
        refused(
            "mlockall",
            e,
            "give it CAP_IPC_LOCK, or LimitMEMLOCK=infinity in the unit",
        )
    })
}

fn leave_mounts(needed: &[&Path]) -> Result<(), HygieneError> {
    let remedy = "give it CAP_SYS_ADMIN (root has it; some containers do not)";
    sys::unshare_mounts().map_err(|e| HygieneError::Refused {
        what: "unshare the mount namespace",
        errno: Errno(e.raw_os_error().unwrap_or(libc::EIO)),
        remedy,
    })?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|e| refused("make / private", e, remedy))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts_to_leave(&table, needed) {
        match rustix::mount::unmount(&mount, UnmountFlags::DETACH) {
            // Gone with the mount above it.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(refused("leave a mount", e, remedy)),
        }
    }
    Ok(())
}

/// Mount points of a `mountinfo` table that a process can do without, innermost first.
fn mounts_to_leave(table: &str, needed: &[&Path]) -> Vec<PathBuf> {
    let whole: [&Path; 5] = ["/dev", "/proc", "/sys", "/etc", "/usr"].map(Path::new);
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    let mut leave: Vec<PathBuf> = points
        .filter(|at| at != Path::new("/"))
        .filter(|at| !whole.iter().any(|kept| at.starts_with(kept)))
        .filter(|at| !needed.iter().any(|path| path.starts_with(at)))
        .collect();
    leave.reverse();
    leave
}

/// Undoes the kernel's octal escapes of blanks and backslashes.
fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (code, plain) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        text = text.replace(code, plain);
    }
    PathBuf::from(text)
}

fn refused(what: &'static str, errno: rustix::io::Errno, remedy: &'static str) -> HygieneError {
    HygieneError::Refused {
        what,
        errno: Errno(errno.raw_os_error()),
        remedy,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const TABLE: &str = "\
21 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
22 21 0:5 / /dev rw shared:2 - devtmpfs udev rw
23 22 0:20 / /dev/shm rw shared:3 - tmpfs tmpfs rw
24 21 0:21 / /proc rw - proc proc rw
25 21 0:22 / /run rw - tmpfs tmpfs rw
26 21 259:3 / /var rw - xfs /dev/nvme0n1p3 rw
27 26 259:4 / /var/lib/ublkstor rw - xfs /dev/nvme0n1p4 rw
28 21 251:0 / /mnt/my\\040volume rw - ext4 /dev/ublkb0 rw
29 28 251:1 / /mnt/my\\040volume/inner rw - ext4 /dev/ublkb1 rw
30 21 0:30 / /etc/resolv.conf rw - tmpfs tmpfs rw
31 21 259:5 / /variety rw - ext4 /dev/nvme0n1p5 rw
";

    #[test]
    fn only_mounts_on_the_way_to_needed_paths_are_kept() {
        let needed = [
            Path::new("/var/lib/ublkstor/clientd"),
            Path::new("/run/ublkstor"),
        ];
        let leave = mounts_to_leave(TABLE, &needed);
        assert_eq!(
            leave,
            ["/variety", "/mnt/my volume/inner", "/mnt/my volume"].map(PathBuf::from)
        );
    }

    #[test]
    fn without_needs_every_foreign_mount_is_left() {
        let leave = mounts_to_leave(TABLE, &[]);
        assert!(leave.contains(&PathBuf::from("/var")) && leave.contains(&PathBuf::from("/run")));
        assert!(
            !leave
                .iter()
                .any(|at| at.starts_with("/dev") || at == Path::new("/"))
        );
    }

    #[test]
    fn it_refuses_to_run_beside_other_threads() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv().is_err());
        assert!(matches!(
            protect_process(&[]),
            Err(HygieneError::Threads { .. })
        ));
        drop(done);
        assert!(other.join().unwrap());
    }
}

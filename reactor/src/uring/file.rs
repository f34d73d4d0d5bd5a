//! Opening backings, and what there is to know about them.

use crate::driver::{FileFacts, FileKind, OpenFile};
use crate::error::{Errno, SetupError};
use rustix::fs::{self, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno as Os;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) fn open(path: &Path, how: OpenFile) -> Result<(OwnedFd, FileFacts), SetupError> {
    let (fd, direct) = open_or_create(path, how)?;
    let failed = |what: &str, errno: Os| call(what, path, errno);
    let stat = fs::fstat(&fd).map_err(|e| failed("examine", e))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::RegularFile => FileKind::File,
        FileType::Directory
        | FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::Unknown => return Err(failed("use as a backing", Os::INVAL)),
    };
    if how.exclusive && kind == FileKind::File {
        let lock = || fs::flock(&fd, FlockOperation::NonBlockingLockExclusive);
        patiently(lock).map_err(|e| {
            let errno = if e == Os::WOULDBLOCK { Os::BUSY } else { e };
            failed("lock (another process has it open)", errno)
        })?;
    }
    let size_bytes = size(fd.as_fd()).map_err(|e| failed("size", e))?;
    let queue = queue_folder(stat.st_rdev);
    let (volatile_cache, can_discard) = match kind {
        FileKind::File => (true, how.writable && can_punch(&fd, size_bytes)),
        FileKind::BlockDevice => (has_volatile_cache(&queue), can_discard(&queue)),
    };
    Ok((
        fd,
        FileFacts {
            kind,
            size_bytes,
            volatile_cache,
            can_discard,
            direct,
        },
    ))
}

/// Of a file or block device, in bytes. Positions of descriptors mean nothing here.
pub(super) fn size(fd: BorrowedFd<'_>) -> Result<u64, Os> {
    fs::seek(fd, SeekFrom::End(0))
}

fn call(what: &str, path: &Path, errno: Os) -> SetupError {
    SetupError::Call {
        what: format!("{what} {}", path.display()),
        errno: Errno::from(errno),
    }
}

/// Tries for a moment to get what somebody else still has. A file is really released a little
/// after its close, when the last worker thread of the kernel has let go of its last command, or
/// when a child process between `fork` and `exec` has shed its copies of our descriptors.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Os>) -> Result<T, Os> {
    const TRIES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(2);
    for _ in 1..TRIES {
        match attempt() {
            Err(Os::BUSY | Os::WOULDBLOCK) => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
    attempt()
}

/// Opens; creates if that was asked for and nothing is there. Says whether `O_DIRECT` is in force.
fn open_or_create(path: &Path, how: OpenFile) -> Result<(OwnedFd, bool), SetupError> {
    let access = if how.writable {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    // O_EXCL without O_CREAT claims a block device; on a regular file it is undefined.
    let device = fs::stat(path)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice);
    let claim = if how.exclusive && device {
        OFlags::EXCL
    } else {
        OFlags::empty()
    };
    match patiently(|| open_direct(path, access | claim, how.direct)) {
        Err(Os::NOENT) => match how.create_bytes {
            Some(bytes) => create(path, bytes, how.direct),
            None => Err(call("open", path, Os::NOENT)),
        },
        Err(Os::BUSY) => Err(call(
            "claim (mounted, or another process has it)",
            path,
            Os::BUSY,
        )),
        opened => opened.map_err(|e| call("open", path, e)),
    }
}

/// Tries `O_DIRECT` first; some file systems refuse it.
fn open_direct(path: &Path, flags: OFlags, direct: bool) -> Result<(OwnedFd, bool), Os> {
    let flags = flags | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    if direct {
        // A refused O_CREAT|O_EXCL|O_DIRECT may leave the file behind, hence the separate create.
        match fs::open(path, flags | OFlags::DIRECT, mode) {
            Err(Os::INVAL) => {}
            opened => return opened.map(|fd| (fd, true)),
        }
    }
    fs::open(path, flags, mode).map(|fd| (fd, false))
}

/// Creates a file with its space allocated, so that running full is found out now, and durable in
/// its folder.
fn create(path: &Path, bytes: u64, direct: bool) -> Result<(OwnedFd, bool), SetupError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| call("create", path, e))?;
    let grown = match fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes) {
        Err(Os::OPNOTSUPP) => fs::ftruncate(&fd, bytes),
        done => done,
    };
    let made = grown.and_then(|()| fs::fsync(&fd)).and_then(|()| {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::fsync(fs::open(
            folder,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    });
    if let Err(errno) = made {
        let removed = fs::unlink(path);
        debug_assert!(removed.is_ok(), "remove the file just created: {removed:?}");
        return Err(call(&format!("allocate {bytes} bytes for"), path, errno));
    }
    open_direct(path, OFlags::RDWR, direct).map_err(|e| call("open", path, e))
}

/// Whether holes can be punched: tried beyond the end, where it changes nothing.
fn can_punch(fd: &OwnedFd, size_bytes: u64) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fs::fallocate(fd.as_fd(), mode, size_bytes.next_multiple_of(4096), 4096).is_ok()
}

/// The request queue's folder of a disk; a partition's queue is its disk's.
fn queue_folder(device: u64) -> PathBuf {
    let base = format!("/sys/dev/block/{}:{}", fs::major(device), fs::minor(device));
    let own = PathBuf::from(&base).join("queue");
    if own.is_dir() {
        own
    } else {
        PathBuf::from(base).join("../queue")
    }
}

/// Only a device that says so has no volatile cache.
fn has_volatile_cache(queue: &Path) -> bool {
    queue_value(queue, "write_cache").as_deref() != Some("write through")
}

fn can_discard(queue: &Path) -> bool {
    queue_value(queue, "discard_max_bytes").is_some_and(|most| most != "0")
}

fn queue_value(queue: &Path, name: &str) -> Option<String> {
    Some(
        std::fs::read_to_string(queue.join(name))
            .ok()?
            .trim()
            .to_owned(),
    )
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_file_that_is_about_to_be_released_is_waited_for_but_not_for_ever() {
        let mut tries = 0;
        let released = patiently(|| {
            tries += 1;
            if tries < 5 { Err(Os::BUSY) } else { Ok(()) }
        });
        assert_eq!((released, tries), (Ok(()), 5));
        assert_eq!(
            patiently(|| Err::<(), _>(Os::WOULDBLOCK)),
            Err(Os::WOULDBLOCK)
        );
        let mut tries = 0;
        let missing = patiently(|| {
            tries += 1;
            Err::<(), _>(Os::NOENT)
        });
        assert_eq!((missing, tries), (Err(Os::NOENT), 1));
    }

    #[test]
    fn only_write_through_means_no_volatile_cache() {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path();
        assert!(has_volatile_cache(queue) && !can_discard(queue));
        for (cache, volatile) in [("write back", true), ("write through", false), ("", true)] {
            std::fs::write(queue.join("write_cache"), format!("{cache}\n")).unwrap();
            assert_eq!(has_volatile_cache(queue), volatile, "{cache:?}");
        }
        for (most, can) in [("0", false), ("4294966784", true)] {
            std::fs::write(queue.join("discard_max_bytes"), format!("{most}\n")).unwrap();
            assert_eq!(can_discard(queue), can);
        }
    }
}

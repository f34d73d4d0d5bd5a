//! Opens LMDB environments. The only unsafe code of the crate: LMDB maps a file, and Rust cannot
//! know that nobody else changes it.
#![allow(unsafe_code, reason = "heed's open is unsafe; see SAFETY")]

use heed::{Env, EnvOpenOptions, WithoutTls};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// An environment of ours: the only one on its directory, on this machine.
#[derive(Debug)]
pub(crate) struct OwnedEnv {
    pub(crate) env: Env<WithoutTls>,
    /// Held as long as the map: dropped after `env`, in field order.
    _lock: File,
}

/// Opens or creates the environment in a directory.
///
/// # Errors
/// The directory cannot be made, another process has it, or LMDB refuses.
pub(crate) fn open(dir: &Path, map_bytes: usize, databases: u32) -> io::Result<OwnedEnv> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join("owner");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    lock.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is in use by another metad", dir.display()),
        ),
        TryLockError::Error(e) => e,
    })?;
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_bytes).max_dbs(databases);
    // SAFETY: the map must not be changed by others while it is open. The directory is metad's
    // own, and the exclusive lock above keeps a second process and a second open of ours away for
    // as long as the environment lives. No flag that weakens LMDB's own locking is set.
    let env = unsafe { options.open(dir) }.map_err(to_io)?;
    Ok(OwnedEnv { env, _lock: lock })
}

/// LMDB's errors as IO errors, with its text.
pub(crate) fn to_io(e: heed::Error) -> io::Error {
    let full = matches!(e, heed::Error::Mdb(heed::MdbError::MapFull));
    if let heed::Error::Io(e) = e {
        return e;
    }
    let kind = if full {
        io::ErrorKind::StorageFull
    } else {
        io::ErrorKind::Other
    };
    io::Error::new(kind, e)
}

//! A directory belongs to one process at a time.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Holds a directory until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct OwnDir {
    _lock: File,
}

/// The directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OwnDirError {
    /// Two daemons would overwrite each other's files.
    #[error("another process uses {0}; give each daemon directories of its own, or stop the other")]
    Used(PathBuf),
    /// The system said no.
    #[error("cannot lock {path}: {source}")]
    System {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OwnDir {
    /// Makes the directory if it is not there, and takes it.
    ///
    /// # Errors
    /// [`OwnDirError`] names it.
    pub fn take(dir: &Path) -> Result<Self, OwnDirError> {
        let path = dir.join("lock");
        let open = || {
            std::fs::create_dir_all(dir)?;
            File::create(&path)
        };
        let failed = |source| OwnDirError::System {
            path: path.clone(),
            source,
        };
        let lock = open().map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OwnDirError::Used(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        let own = OwnDir::take(&inner).unwrap();
        let error = OwnDir::take(&inner).unwrap_err();
        assert!(matches!(&error, OwnDirError::Used(dir) if *dir == inner));
        drop(own);
        OwnDir::take(&inner).unwrap();
    }
}

//! Preparing a device and asking what it is: blocking, for `ubsctl` and tests; never on a reactor.

use crate::api::{PrepareOptions, StoreInfo};
use crate::core::facts::{OpenFacts, OpenFault, StoreFault};
use crate::core::format::geometry::{
    DEVICE_BYTES_MIN, Geometry, JOURNAL_BYTES_RANGE, Misfit, SUPERBLOCK_OFFSETS,
};
use crate::core::format::superblock::{SUPERBLOCK_BYTES, Superblock};
use crate::core::format::{Corrupt, VERSION, directory, tracts};
use crate::core::io::{Effect, Event};
use crate::core::{Core, CoreConfig};
use crate::signature::{HEAD_BYTES, TAIL_BYTES, find};
use crate::store::Store;
use shardmap::units::{BLOCK_BYTES, Moment};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use uuid::Uuid;

/// Why a device cannot be prepared or inspected. Nothing was changed unless the text says so.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A system call failed.
    #[error("{path}: {what}: {source}")]
    Io {
        /// The device.
        path: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Somebody has it open exclusively: it is mounted, part of an array, or a running store.
    #[error(
        "{path}: in use (mounted, part of an array or volume group, or an open store); release it first"
    )]
    InUse {
        /// The device.
        path: String,
    },
    /// Neither a block device nor a regular file.
    #[error(
        "{path}: neither a block device nor a regular file; name a disk, a partition or a file"
    )]
    WrongKind {
        /// The path.
        path: String,
    },
    /// There is nothing, and no size to create a file with.
    #[error("{path}: does not exist; name a block device, or give --size to create a file")]
    Missing {
        /// The path.
        path: String,
    },
    /// There is nothing to look at.
    #[error("{path}: does not exist; name a block device or a file that is there")]
    Absent {
        /// The path.
        path: String,
    },
    /// It holds something.
    #[error("{path}: holds {what}; give --wipe to overwrite it")]
    Occupied {
        /// The device.
        path: String,
        /// What was recognised.
        what: &'static str,
    },
    /// Too small.
    #[error(
        "{path}: {found_bytes} bytes is too small; a store needs at least {DEVICE_BYTES_MIN} bytes, and room beside its journal ({journal_bytes} bytes)"
    )]
    TooSmall {
        /// The device.
        path: String,
        /// Its size.
        found_bytes: u64,
        /// The journal asked for.
        journal_bytes: u64,
    },
    /// Too large for 32-bit extent numbers.
    #[error("{path}: {found_bytes} bytes; one store holds at most 256 TiB, make partitions")]
    TooLarge {
        /// The device.
        path: String,
        /// Its size.
        found_bytes: u64,
    },
    /// The journal cannot be so large or small.
    #[error("{path}: a journal of {found_bytes} bytes; choose whole blocks within {min} and {max} bytes", min = JOURNAL_BYTES_RANGE.start(), max = JOURNAL_BYTES_RANGE.end())]
    Journal {
        /// The device.
        path: String,
        /// As asked.
        found_bytes: u64,
    },
    /// A size or block size that is no multiple of 4 KiB.
    #[error(
        "{path}: {what} is {found_bytes} bytes, which does not fit blocks of 4096; use another device or size"
    )]
    Alignment {
        /// The device.
        path: String,
        /// Which number.
        what: &'static str,
        /// Its value.
        found_bytes: u64,
    },
    /// No superblock.
    #[error("{path}: not a ublkstor store; run `ubsctl store prepare {path}`")]
    NotAStore {
        /// The device.
        path: String,
    },
    /// Written by another release.
    #[error(
        "{path}: format version {found}, this release knows {VERSION}; use the release that wrote it"
    )]
    Version {
        /// The device.
        path: String,
        /// In the superblock.
        found: u16,
    },
    /// The table of what growths have added is damaged.
    #[error(
        "{path}: the tract table is damaged ({why}); the store must be prepared anew and resilvered"
    )]
    TractsDamaged {
        /// The device.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Both copies are damaged.
    #[error("{path}: both superblocks are damaged ({why})")]
    Damaged {
        /// The device.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// `O_EXCL` without `O_CREAT`: on a block device, fail if anyone else holds it.
const O_EXCL: i32 = 0o200;

struct Target<'a> {
    path: &'a Path,
    file: File,
    bytes: u64,
}

impl Target<'_> {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn io<T>(&self, what: &'static str, result: io::Result<T>) -> Result<T, PrepareError> {
        result.map_err(|source| PrepareError::Io {
            path: self.name(),
            what,
            source,
        })
    }

    /// What is recognised on it.
    fn occupant(&self) -> Result<Option<&'static str>, PrepareError> {
        let tail_at = self.bytes.saturating_sub(TAIL_BYTES as u64);
        let (head, tail) = (self.read(0, HEAD_BYTES)?, self.read(tail_at, TAIL_BYTES)?);
        Ok(find(&head, &tail))
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, PrepareError> {
        let left = self.bytes.saturating_sub(offset);
        let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut bytes = vec![0; len];
        self.io("read", self.file.read_exact_at(&mut bytes, offset))?;
        Ok(bytes)
    }
}

impl Store {
    /// Makes a device or file a store: empty, clean, ready to be opened. A file that does not exist is
    /// created (and its space reserved) if a size is given. Blocking.
    ///
    /// # Errors
    /// [`PrepareError`]. A device that holds something recognisable is refused unless `wipe`.
    pub fn prepare(path: &Path, options: &PrepareOptions) -> Result<StoreInfo, PrepareError> {
        let target = open_target(path, Access::Write, options.size_bytes)?;
        let name = || target.name();
        check_alignment(&target)?;
        let found_bytes = target.bytes;
        let journal_bytes = options
            .journal_bytes
            .unwrap_or(Geometry::journal_bytes_default(found_bytes));
        let geometry = plan(path, found_bytes, journal_bytes, options.checksums)?;
        if let Some(what) = target.occupant()?.filter(|_| !options.wipe) {
            return Err(PrepareError::Occupied { path: name(), what });
        }
        let sb = Superblock::new(
            options.store.into_bytes(),
            options.cluster.into_bytes(),
            geometry,
        );
        write_store(&target, &sb)?;
        Ok(info_of(&sb, target.bytes))
    }

    /// Whether a device or file could be prepared without losing anything; changes nothing. Blocking.
    ///
    /// # Errors
    /// [`PrepareError::InUse`], [`PrepareError::Occupied`] as [`Store::prepare`]; or it cannot be read.
    pub fn vacancy(path: &Path) -> Result<(), PrepareError> {
        let target = open_target(path, Access::Claim, None)?;
        match target.occupant()? {
            None => Ok(()),
            Some(what) => Err(PrepareError::Occupied {
                path: target.name(),
                what,
            }),
        }
    }

    /// What makes a device of that size a store if it reads as zeroes: bytes, by byte offset. For
    /// devices that exist in memory only; [`Store::prepare`] does the same and more to real ones.
    ///
    /// # Errors
    /// [`PrepareError`] if the size does not fit.
    pub fn blank(
        device_bytes: u64,
        options: &PrepareOptions,
    ) -> Result<Vec<(u64, Vec<u8>)>, PrepareError> {
        let journal_bytes = options
            .journal_bytes
            .unwrap_or(Geometry::journal_bytes_default(device_bytes));
        let path = Path::new("blank");
        let geometry = plan(path, device_bytes, journal_bytes, options.checksums)?;
        let sb = Superblock::new(
            options.store.into_bytes(),
            options.cluster.into_bytes(),
            geometry,
        );
        let superblocks = SUPERBLOCK_OFFSETS.map(|offset| (offset, sb.encode().to_vec()));
        Ok(directory_of(&sb).chain(superblocks).collect())
    }

    /// What the superblock says, without opening the store. Works while it is in use. Blocking.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn inspect(path: &Path) -> Result<StoreInfo, PrepareError> {
        let target = open_target(path, Access::Read, None)?;
        let a = target.read(SUPERBLOCK_OFFSETS[0], SUPERBLOCK_BYTES)?;
        let b = target.read(SUPERBLOCK_OFFSETS[1], SUPERBLOCK_BYTES)?;
        let version = Superblock::peek_version(&a).max(Superblock::peek_version(&b));
        match Superblock::choose(&a, &b) {
            Ok((sb, _)) => inspect_growths(&target, sb),
            Err(_) if version.is_none() => Err(PrepareError::NotAStore {
                path: target.name(),
            }),
            Err(Corrupt::Unknown) => {
                let found = version.unwrap_or(0);
                Err(PrepareError::Version {
                    path: target.name(),
                    found,
                })
            }
            Err(corrupt) => Err(PrepareError::Damaged {
                path: target.name(),
                why: corrupt.why(),
            }),
        }
    }
}

impl Store {
    /// Reads and checks all metadata of a store that nobody has open, with the code that opens it, and
    /// writes nothing. Blocking.
    ///
    /// # Errors
    /// What opening it would fail with; [`OpenFault::Setup`] if the device cannot be read.
    pub fn check(path: &Path) -> Result<OpenFacts, StoreFault> {
        open_checked(path).map(|(_, _, facts)| facts)
    }
}

/// The core of a store after a check-only open, with the device.
pub(crate) fn open_checked(path: &Path) -> Result<(Core, File, OpenFacts), StoreFault> {
    let setup = |e: &dyn std::fmt::Display| OpenFault::Setup {
        path: path.display().to_string(),
        reason: e.to_string(),
    };
    let target = open_target(path, Access::Read, None).map_err(|e| setup(&e))?;
    // A running store holds the lock; what it is writing would look like damage.
    let regular = target.file.metadata().is_ok_and(|m| m.is_file());
    if regular && target.file.try_lock_shared().is_err() {
        return Err(setup(&"in use by a running store; stop it first").into());
    }
    let mut core = Core::new(CoreConfig {
        path: target.name(),
        cluster: None,
        device_bytes: target.bytes,
        volatile_cache: false,
        can_trim: false,
        check_only: true,
    });
    let mut effects = VecDeque::new();
    let mut out = Vec::new();
    core.step(Moment(0), Event::Start, &mut out);
    loop {
        effects.extend(out.drain(..));
        match effects.pop_front() {
            Some(Effect::ReadMeta {
                io,
                offset_bytes,
                len_bytes,
            }) => {
                let mut bytes = vec![0; len_bytes as usize];
                let event = match target.file.read_exact_at(&mut bytes, offset_bytes) {
                    Ok(()) => Event::MetaRead { io, bytes: &bytes },
                    Err(e) => {
                        let result = Err(e.raw_os_error().unwrap_or(EIO));
                        Event::IoDone { io, result }
                    }
                };
                core.step(Moment(0), event, &mut out);
            }
            Some(Effect::Opened(facts)) => return Ok((core, target.file, *facts)),
            Some(Effect::OpenFailed(fault)) => return Err(fault),
            other => unreachable!("a check only reads, not {other:?}"),
        }
    }
}

const EIO: i32 = 5;

/// What a device is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Beside whoever uses it.
    Read,
    /// Alone, to know that nobody uses it.
    Claim,
    /// Alone, to write.
    Write,
}

fn open_target(
    path: &Path,
    access: Access,
    create_bytes: Option<u64>,
) -> Result<Target<'_>, PrepareError> {
    let name = || path.display().to_string();
    let fail = |what| {
        move |source| PrepareError::Io {
            path: name(),
            what,
            source,
        }
    };
    let kind = match path.metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound && access == Access::Write => {
            let bytes = create_bytes.ok_or_else(|| PrepareError::Missing { path: name() })?;
            return create_file(path, bytes);
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(PrepareError::Absent { path: name() });
        }
        Err(e) => return Err(fail("look")(e)),
    };
    if !kind.is_block_device() && !kind.is_file() {
        return Err(PrepareError::WrongKind { path: name() });
    }
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write);
    if access != Access::Read && kind.is_block_device() {
        options.custom_flags(O_EXCL);
    }
    let file = options.open(path).map_err(|e| {
        if e.kind() == io::ErrorKind::ResourceBusy {
            PrepareError::InUse { path: name() }
        } else {
            fail("open")(e)
        }
    })?;
    if access != Access::Read && kind.is_file() {
        file.try_lock()
            .map_err(|_| PrepareError::InUse { path: name() })?;
    }
    let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(fail("find the size"))?;
    Ok(Target { path, file, bytes })
}

/// A new file with its space reserved: a store must not meet a full file system later.
fn create_file(path: &Path, bytes: u64) -> Result<Target<'_>, PrepareError> {
    let name = || path.display().to_string();
    let target = |file| Target { path, file, bytes };
    if !bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
        let (what, found_bytes) = ("the size", bytes);
        return Err(PrepareError::Alignment {
            path: name(),
            what,
            found_bytes,
        });
    }
    if bytes < DEVICE_BYTES_MIN {
        let found_bytes = bytes;
        let journal_bytes = Geometry::journal_bytes_default(bytes);
        return Err(PrepareError::TooSmall {
            path: name(),
            found_bytes,
            journal_bytes,
        });
    }
    let fail = |what| {
        move |source| PrepareError::Io {
            path: name(),
            what,
            source,
        }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(fail("create"))?;
    file.try_lock()
        .map_err(|_| PrepareError::InUse { path: name() })?;
    let reserved = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
    match reserved {
        Ok(()) => Ok(target(file)),
        Err(rustix::io::Errno::OPNOTSUPP) => {
            file.set_len(bytes).map_err(fail("set the size"))?;
            Ok(target(file))
        }
        Err(e) => {
            drop(file);
            std::fs::remove_file(path).map_err(fail("remove the file again"))?;
            Err(fail("reserve the space")(e.into()))
        }
    }
}

fn check_alignment(target: &Target<'_>) -> Result<(), PrepareError> {
    let path = target.name();
    if !target.bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
        let (what, found_bytes) = ("the size", target.bytes);
        return Err(PrepareError::Alignment {
            path,
            what,
            found_bytes,
        });
    }
    let metadata = target.io("look", target.file.metadata())?;
    if !metadata.file_type().is_block_device() {
        return Ok(());
    }
    let logical = target.io("ask for the block size", logical_block_bytes(&metadata))?;
    if logical > BLOCK_BYTES || !BLOCK_BYTES.is_multiple_of(logical) {
        let (what, found_bytes) = ("the logical block", u64::from(logical));
        return Err(PrepareError::Alignment {
            path,
            what,
            found_bytes,
        });
    }
    Ok(())
}

/// From sysfs; a partition asks its disk.
fn logical_block_bytes(metadata: &std::fs::Metadata) -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    let (major, minor) = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    let base = format!("/sys/dev/block/{major}:{minor}");
    let own = std::fs::read_to_string(format!("{base}/queue/logical_block_size"));
    let text =
        own.or_else(|_| std::fs::read_to_string(format!("{base}/../queue/logical_block_size")))?;
    text.trim().parse().map_err(io::Error::other)
}

/// The layout of a device of that size.
fn plan(
    path: &Path,
    found_bytes: u64,
    journal_bytes: u64,
    checksums: bool,
) -> Result<Geometry, PrepareError> {
    let path = path.display().to_string();
    Geometry::plan(found_bytes, journal_bytes, checksums).map_err(|misfit| match misfit {
        Misfit::TooSmall => PrepareError::TooSmall {
            path,
            found_bytes,
            journal_bytes,
        },
        Misfit::TooLarge => PrepareError::TooLarge { path, found_bytes },
        Misfit::Journal => PrepareError::Journal {
            path,
            found_bytes: journal_bytes,
        },
    })
}

/// The directory of a store without pages, with its places.
fn directory_of(sb: &Superblock) -> impl Iterator<Item = (u64, Vec<u8>)> {
    (0..sb.geometry.directory_pages()).map(|index| {
        let bytes = directory::encode(sb.store, index, 0, std::iter::empty());
        (sb.geometry.directory_page_offset(index, 0), bytes.to_vec())
    })
}

/// Everything else first, the superblock last: half a store is none.
fn write_store(target: &Target<'_>, sb: &Superblock) -> Result<(), PrepareError> {
    let write = |bytes: &[u8], offset| target.io("write", target.file.write_all_at(bytes, offset));
    let blank = vec![0; HEAD_BYTES];
    write(&blank, 0)?;
    write(&blank[..TAIL_BYTES], target.bytes - TAIL_BYTES as u64)?;
    // The ring must not hold records of an earlier life of the same store.
    let ring = crate::core::format::geometry::JOURNAL_OFFSET;
    let mut at = 0;
    while at < sb.geometry.journal_bytes {
        let len = (sb.geometry.journal_bytes - at).min(HEAD_BYTES as u64);
        write(
            &blank[..usize::try_from(len).expect("at most 128 KiB")],
            ring + at,
        )?;
        at += len;
    }
    for (offset, bytes) in directory_of(sb) {
        write(&bytes, offset)?;
    }
    target.io("flush", target.file.sync_all())?;
    let bytes = sb.encode();
    for offset in SUPERBLOCK_OFFSETS {
        write(&bytes, offset)?;
    }
    target.io("flush", target.file.sync_all())
}

/// Of a store that has grown, the tract table tells the rest.
fn inspect_growths(target: &Target<'_>, mut sb: Superblock) -> Result<StoreInfo, PrepareError> {
    if sb.growths > 0 {
        let bytes = target.read(tracts::table_offset(sb.growths), SUPERBLOCK_BYTES)?;
        let damaged = |corrupt: Corrupt| PrepareError::TractsDamaged {
            path: target.name(),
            why: corrupt.why(),
        };
        sb.complete(&bytes).map_err(damaged)?;
    }
    Ok(info_of(&sb, target.bytes))
}

fn info_of(sb: &Superblock, device_bytes_now: u64) -> StoreInfo {
    StoreInfo {
        version: VERSION,
        cluster: Uuid::from_bytes(sb.cluster),
        store: Uuid::from_bytes(sb.store),
        device_bytes: sb.geometry.device_bytes,
        device_bytes_now,
        growths: sb.growths,
        capacity_bytes: sb.geometry.capacity_bytes(),
        journal_bytes: sb.geometry.journal_bytes,
        pages: sb.geometry.pages(),
        checksums: sb.geometry.has_checksums(),
        incarnation: sb.incarnation,
        lost_at: sb.lost_at,
        clean: sb.clean,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn options() -> PrepareOptions {
        PrepareOptions {
            cluster: Uuid::from_u128(1),
            store: Uuid::from_u128(2),
            size_bytes: Some(64 << 20),
            wipe: false,
            journal_bytes: None,
            checksums: true,
        }
    }

    #[test]
    fn a_prepared_file_tells_who_it_is_and_is_not_prepared_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let made = Store::prepare(&path, &options()).unwrap();
        assert_eq!(
            (made.clean, made.incarnation, made.device_bytes),
            (true, 1, 64 << 20)
        );
        assert_eq!(Store::inspect(&path).unwrap(), made);
        let again = Store::prepare(&path, &options()).unwrap_err();
        assert!(
            again.to_string().contains("holds a ublkstor store"),
            "{again}"
        );
        let other = PrepareOptions {
            store: Uuid::from_u128(3),
            wipe: true,
            ..options()
        };
        Store::prepare(&path, &other).unwrap();
        assert_eq!(Store::inspect(&path).unwrap().store, Uuid::from_u128(3));
    }

    #[test]
    fn foreign_content_small_and_odd_files_and_locked_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create_new(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[0x53, 0xef], 0x438).unwrap();
        let refused = Store::prepare(&path, &options()).unwrap_err();
        assert!(
            matches!(refused, PrepareError::Occupied { .. }),
            "{refused}"
        );
        file.write_all_at(&[0, 0], 0x438).unwrap();
        file.lock().unwrap();
        let refused = Store::prepare(&path, &options()).unwrap_err();
        assert!(matches!(refused, PrepareError::InUse { .. }), "{refused}");
        file.unlock().unwrap();
        file.set_len((64 << 20) + 512).unwrap();
        let refused = Store::prepare(&path, &options()).unwrap_err();
        assert!(
            matches!(refused, PrepareError::Alignment { .. }),
            "{refused}"
        );
        file.set_len(8 << 20).unwrap();
        let refused = Store::prepare(&path, &options()).unwrap_err();
        assert!(
            matches!(refused, PrepareError::TooSmall { .. }),
            "{refused}"
        );
        let none = PrepareOptions {
            size_bytes: None,
            ..options()
        };
        let refused = Store::prepare(&dir.path().join("absent"), &none).unwrap_err();
        assert!(matches!(refused, PrepareError::Missing { .. }), "{refused}");
        let refused = Store::prepare(Path::new("/dev/null"), &options()).unwrap_err();
        assert!(
            matches!(refused, PrepareError::WrongKind { .. }),
            "{refused}"
        );
        assert!(matches!(
            Store::inspect(&path),
            Err(PrepareError::NotAStore { .. })
        ));
    }
}

//! The medium, byte by byte: `docs/formats.md` links here. All integers are little-endian.
//!
//! ```text
//! 0        superblock A (4 KiB)
//! 64 KiB   superblock B (4 KiB)
//! 128 KiB  tract table, of a store that has grown (4 KiB); 192 KiB: its other place
//! 1 MiB    journal ring
//! …        directory: place A of every directory page, then place B
//! …        metadata pages: place A of every page, then place B
//! …        checksum blocks, if the store has them
//! …        data extents (aligned to 1 MiB)
//! …        of every growth: directory, metadata pages, checksum blocks and extents, like these
//! ```
//! Every structure carries a CRC32C over all its bytes after the checksum field, the store's UUID and
//! its own position, so that a misplaced or foreign block is never believed.

pub mod checksums;
pub mod directory;
pub mod entry;
pub mod geometry;
pub mod journal;
pub mod page;
pub mod superblock;
pub mod tracts;

/// Version of the whole format, as written. A store of a newer version is refused.
pub const VERSION: u16 = 3;
/// Oldest version that is still read. Version 1 is version 2 of a store with one generation, version 2 is
/// version 3 of a store without clones.
pub const VERSION_OLDEST: u16 = 1;
/// A physical extent number that names nothing.
pub const NO_EXTENT: u32 = u32::MAX;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    /// Not even the magic is there: nothing was ever written, or something else was.
    Magic,
    /// The checksum does not match.
    Checksum,
    /// The structure belongs to another store.
    OtherStore,
    /// The structure belongs elsewhere on the device.
    Misplaced,
    /// A version or kind this release does not know.
    Unknown,
    /// A field holds an impossible value.
    Value,
    /// Too few or too many bytes.
    Length,
}

impl Corrupt {
    /// For texts.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Magic => "no magic",
            Self::Checksum => "checksum mismatch",
            Self::OtherStore => "belongs to another store",
            Self::Misplaced => "belongs elsewhere",
            Self::Unknown => "unknown version or kind",
            Self::Value => "impossible value",
            Self::Length => "wrong length",
        }
    }
}

/// Whether this release reads structures of that version.
const fn is_known(version: u16) -> bool {
    VERSION_OLDEST <= version && version <= VERSION
}

/// Checks what every structure but the superblock begins with: magic, checksum, version and store, which
/// are to be these.
fn check(
    bytes: &[u8],
    (magic, version, store): ([u8; 4], u16, [u8; 16]),
    expected: ([u8; 4], [u8; 16]),
) -> Result<(), Corrupt> {
    if magic != expected.0 {
        return Err(Corrupt::Magic);
    }
    if !is_sealed(bytes) {
        return Err(Corrupt::Checksum);
    }
    if !is_known(version) {
        return Err(Corrupt::Unknown);
    }
    if store != expected.1 {
        return Err(Corrupt::OtherStore);
    }
    Ok(())
}

/// CRC32C of everything after the first four bytes.
fn sum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(&bytes[4..])
}

/// Writes the checksum into the first four bytes.
fn seal(bytes: &mut [u8]) {
    let crc = sum(bytes);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the first four bytes are the checksum of the rest.
fn is_sealed(bytes: &[u8]) -> bool {
    bytes.len() > 4 && bytes[..4] == sum(bytes).to_le_bytes()
}

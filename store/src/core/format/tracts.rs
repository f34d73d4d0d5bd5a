//! The tract table: what growths have added to the region table of the superblock. A store that has grown
//! *n* times has a table of *n* tracts in place *n* mod 2: the next one goes to the other place, so that
//! this one stays valid until a superblock says that the next one counts.

use super::geometry::Tract;
use super::{Corrupt, VERSION, check, seal};
use shardmap::units::BLOCK_BYTES;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most growths of a store.
pub const GROWTHS_MAX: u32 = 84;

const MAGIC: [u8; 4] = *b"UBST";
const PLACES: [u64; 2] = [128 << 10, 192 << 10];

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTract {
    directory_offset: U64,
    pages_offset: U64,
    checksums_offset: U64,
    data_offset: U64,
    directory_pages: U32,
    pages: U32,
    checksum_blocks: U32,
    extents: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U32, // CRC32C of every byte after this field
    magic: [u8; 4],
    version: U16,
    reserved_a: U16,
    growths: U32, // how many of the tracts count
    store: [u8; 16],
    reserved_b: [u8; 32],
    tracts: [RawTract; GROWTHS_MAX as usize],
}

const _: () = assert!(size_of::<Raw>() == BLOCK_BYTES as usize);
const _: () = assert!(size_of::<RawTract>() == 48);
const _: () = assert!(offset_of!(Raw, store) == 16 && offset_of!(Raw, tracts) == 64);

/// Byte offset of the table of a store that has grown so often.
pub const fn table_offset(growths: u32) -> u64 {
    PLACES[growths as usize % 2]
}

/// The bytes, sealed.
///
/// # Panics
/// More than [`GROWTHS_MAX`] tracts.
pub fn encode(store: [u8; 16], tracts: &[Tract]) -> Vec<u8> {
    let growths = u32::try_from(tracts.len()).expect("bounded");
    assert!(growths <= GROWTHS_MAX, "{growths} tracts");
    let nothing = RawTract::read_from_bytes(&[0; 48]).expect("as long as one");
    let mut raw = Raw {
        checksum: 0.into(),
        magic: MAGIC,
        version: VERSION.into(),
        reserved_a: 0.into(),
        growths: growths.into(),
        store,
        reserved_b: [0; 32],
        tracts: [nothing; GROWTHS_MAX as usize],
    };
    for (raw, tract) in raw.tracts.iter_mut().zip(tracts) {
        *raw = RawTract {
            directory_offset: tract.directory_offset.into(),
            pages_offset: tract.pages_offset.into(),
            checksums_offset: tract.checksums_offset.into(),
            data_offset: tract.data_offset.into(),
            directory_pages: tract.directory_pages.into(),
            pages: tract.pages.into(),
            checksum_blocks: tract.checksum_blocks.into(),
            extents: tract.extents.into(),
        };
    }
    let mut bytes = raw.as_bytes().to_vec();
    seal(&mut bytes);
    bytes
}

/// Checks and decodes the table of a store that has grown so often.
///
/// # Errors
/// [`Corrupt`].
pub fn decode(bytes: &[u8], store: [u8; 16], growths: u32) -> Result<Vec<Tract>, Corrupt> {
    let raw = Raw::ref_from_bytes(bytes).map_err(|_| Corrupt::Length)?;
    let head = (raw.magic, raw.version.get(), raw.store);
    check(bytes, head, (MAGIC, store))?;
    let tracts = raw.tracts.get(..growths as usize);
    let tracts = tracts.filter(|_| raw.growths.get() == growths);
    let tract = |raw: &RawTract| Tract {
        directory_offset: raw.directory_offset.get(),
        directory_pages: raw.directory_pages.get(),
        pages_offset: raw.pages_offset.get(),
        pages: raw.pages.get(),
        checksums_offset: raw.checksums_offset.get(),
        checksum_blocks: raw.checksum_blocks.get(),
        data_offset: raw.data_offset.get(),
        extents: raw.extents.get(),
    };
    Ok(tracts.ok_or(Corrupt::Value)?.iter().map(tract).collect())
}

#[cfg(test)]
mod test {
    use super::super::geometry::Geometry;
    use super::*;

    #[test]
    fn what_was_written_is_read_and_no_flipped_byte_passes() {
        let mut geometry = Geometry::plan(32 << 20, 1 << 20, true).unwrap();
        for growth in 1..=u64::from(GROWTHS_MAX) {
            geometry = geometry.grown((32 << 20) + growth * (48 << 20)).unwrap();
        }
        let bytes = encode([3; 16], geometry.growths());
        assert_eq!(
            decode(&bytes, [3; 16], GROWTHS_MAX).as_deref(),
            Ok(geometry.growths())
        );
        assert_eq!(decode(&bytes, [3; 16], 83), Err(Corrupt::Value));
        assert_eq!(decode(&bytes, [4; 16], 84), Err(Corrupt::OtherStore));
        assert_eq!(decode(&[0; 4096], [3; 16], 0), Err(Corrupt::Magic));
        for at in (0..4096).step_by(31) {
            let mut torn = bytes.clone();
            torn[at] ^= 0x10;
            assert!(
                decode(&torn, [3; 16], GROWTHS_MAX).is_err(),
                "byte {at} passes"
            );
        }
        assert_ne!(table_offset(6), table_offset(7));
    }
}

//! Checksum blocks: one checksum for every 4 KiB block of the data area, by its place on the device. A
//! checksum block has those of 63 extents and is written in place, whole or not at all. What was never
//! written, or is damaged, says nothing about any block.

use super::{Corrupt, VERSION, check, seal};
use shardmap::units::EXTENT_BLOCKS;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Extents whose checksums are in one checksum block.
pub const CHECKSUM_EXTENTS: u32 = 63;
/// Checksums in one checksum block.
pub const CHECKSUMS: usize = (CHECKSUM_EXTENTS * EXTENT_BLOCKS) as usize;
/// A checksum that is not known. No block has it: see [`block_checksum`](crate::hash::block_checksum).
pub const UNKNOWN: u32 = 0;

const MAGIC: [u8; 4] = *b"UBSC";

/// The checksums of one checksum block, by block of its extents.
pub type Checksums = [u32; CHECKSUMS];

#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U32, // CRC32C of every byte after this field
    magic: [u8; 4],
    version: U16,
    reserved_a: U16,
    index: U32, // which checksum block
    store: [u8; 16],
    reserved_b: [u8; 32],
    checksums: [U32; CHECKSUMS], // 0: not known
}

const _: () = assert!(size_of::<Raw>() == 4096);
const _: () = assert!(offset_of!(Raw, store) == 16);
const _: () = assert!(offset_of!(Raw, checksums) == 64);

/// The bytes, sealed.
pub fn encode(store: [u8; 16], index: u32, checksums: &Checksums) -> Vec<u8> {
    let raw = Raw {
        checksum: 0.into(),
        magic: MAGIC,
        version: VERSION.into(),
        reserved_a: 0.into(),
        index: index.into(),
        store,
        reserved_b: [0; 32],
        checksums: checksums.map(U32::new),
    };
    let mut bytes = raw.as_bytes().to_vec();
    seal(&mut bytes);
    bytes
}

/// Checks and decodes.
///
/// # Errors
/// [`Corrupt`]; a block that was never written fails in whatever way its old content does.
pub fn decode(bytes: &[u8], store: [u8; 16], index: u32) -> Result<Box<Checksums>, Corrupt> {
    let raw = Raw::ref_from_bytes(bytes).map_err(|_| Corrupt::Length)?;
    let head = (raw.magic, raw.version.get(), raw.store);
    check(bytes, head, (MAGIC, store))?;
    if raw.index.get() != index {
        return Err(Corrupt::Misplaced);
    }
    Ok(Box::new(raw.checksums.map(U32::get)))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else_passes() {
        let mut checksums = [UNKNOWN; CHECKSUMS];
        (checksums[0], checksums[7], checksums[CHECKSUMS - 1]) = (1, u32::MAX, 77);
        let bytes = encode([3; 16], 9, &checksums);
        assert_eq!(decode(&bytes, [3; 16], 9).as_deref(), Ok(&checksums));
        assert_eq!(decode(&bytes, [3; 16], 8), Err(Corrupt::Misplaced));
        assert_eq!(decode(&bytes, [4; 16], 9), Err(Corrupt::OtherStore));
        assert_eq!(decode(&[0; 4096], [3; 16], 9), Err(Corrupt::Magic));
        for at in (0..4096).step_by(97) {
            let mut torn = bytes.clone();
            torn[at] ^= 0x10;
            assert!(decode(&torn, [3; 16], 9).is_err(), "byte {at}");
        }
    }
}

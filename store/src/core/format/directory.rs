//! The directory: which of a metadata page's two places counts, two bits per page.

use super::{Corrupt, VERSION, check, seal};
use shardmap::units::BLOCK_BYTES;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"UBSD";
/// Metadata pages described by one directory page.
pub const PAGES_PER_DIRECTORY_PAGE: u32 = 4032 * 4;

/// Where the content of a metadata page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagePlace {
    /// Nowhere: the page is free.
    Free,
    /// In place 0 (A) or 1 (B).
    At(u8),
}

impl PagePlace {
    const fn bits(self) -> u8 {
        match self {
            Self::Free => 0,
            Self::At(place) => place + 1,
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U32, // CRC32C of every byte after this field
    magic: [u8; 4],
    version: U16,
    reserved_a: U16,
    index: U32, // which directory page
    store: [u8; 16],
    checkpoint: U64, // that wrote it
    reserved_b: [u8; 24],
    states: [u8; 4032], // two bits per page, lowest bits first: 0 free, 1 place A, 2 place B
}

const _: () = assert!(size_of::<Raw>() == BLOCK_BYTES as usize);
const _: () = assert!(offset_of!(Raw, store) == 16 && offset_of!(Raw, states) == 64);

/// The bytes of one directory page, sealed. `places` are those of its pages, in order.
pub fn encode(
    store: [u8; 16],
    index: u32,
    checkpoint: u64,
    places: impl Iterator<Item = PagePlace>,
) -> Vec<u8> {
    let mut states = [0u8; 4032];
    for (i, place) in places.enumerate() {
        states[i / 4] |= place.bits() << (i % 4 * 2);
    }
    let raw = Raw {
        checksum: 0.into(),
        magic: MAGIC,
        version: VERSION.into(),
        reserved_a: 0.into(),
        index: index.into(),
        store,
        checkpoint: checkpoint.into(),
        reserved_b: [0; 24],
        states,
    };
    let mut bytes = raw.as_bytes().to_vec();
    seal(&mut bytes);
    bytes
}

/// Checks one directory page and gives the places of its pages, in order. All zeroes (a fresh
/// device, written by `prepare`) is not accepted: `prepare` writes real pages.
///
/// # Errors
/// [`Corrupt`].
pub fn decode(bytes: &[u8], store: [u8; 16], index: u32) -> Result<Vec<PagePlace>, Corrupt> {
    let raw = Raw::ref_from_bytes(bytes).map_err(|_| Corrupt::Length)?;
    let head = (raw.magic, raw.version.get(), raw.store);
    check(bytes, head, (MAGIC, store))?;
    if raw.index.get() != index {
        return Err(Corrupt::Misplaced);
    }
    (0..PAGES_PER_DIRECTORY_PAGE as usize)
        .map(|i| match (raw.states[i / 4] >> (i % 4 * 2)) & 3 {
            0 => Ok(PagePlace::Free),
            1 => Ok(PagePlace::At(0)),
            2 => Ok(PagePlace::At(1)),
            _ => Err(Corrupt::Value),
        })
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_survive_and_no_flipped_bit_passes(
            places in prop::collection::vec(0u8..3, 0..200), at in 0usize..4096, bit in 0u8..8
        ) {
            let places: Vec<_> = places
                .iter()
                .map(|p| if *p == 2 { PagePlace::Free } else { PagePlace::At(*p) })
                .collect();
            let mut bytes = encode([1; 16], 3, 9, places.iter().copied());
            let read = decode(&bytes, [1; 16], 3).unwrap();
            prop_assert_eq!(&read[..places.len()], &places[..]);
            prop_assert!(read[places.len()..].iter().all(|p| *p == PagePlace::Free));
            prop_assert_eq!(decode(&bytes, [2; 16], 3), Err(Corrupt::OtherStore));
            prop_assert_eq!(decode(&bytes, [1; 16], 4), Err(Corrupt::Misplaced));
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes, [1; 16], 3).is_err());
        }
    }
}

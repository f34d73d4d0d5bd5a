//! Journal records: a ring of blocks, each record a whole number of them, one after the other, wrapping
//! at the ring's end in the middle of a record if need be.

use super::{Corrupt, VERSION, check, seal};
use crate::limits::RECORD_BYTES_MAX;
use shardmap::units::BLOCK_BYTES;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"UBSJ";
/// Length of a record's header.
pub const RECORD_HEAD_BYTES: usize = 64;
/// Most bytes of entries in one record.
pub const RECORD_ENTRIES_MAX: usize = RECORD_BYTES_MAX as usize - RECORD_HEAD_BYTES;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U32, // CRC32C of every byte of the record after this field, padding included
    magic: [u8; 4],
    len_bytes: U32,     // the whole record, a multiple of 4 KiB
    entries_bytes: U32, // after this header; the rest is zero
    version: U16,
    reserved_a: U16,
    reserved_b: U32,
    sequence: U64,
    proven: U64, // highest sequence known durable when this was written
    incarnation: U64,
    store: [u8; 16],
}

const _: () = assert!(size_of::<Raw>() == RECORD_HEAD_BYTES);

/// What a record's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Number of the record; each is one more than the one before, for the life of the store.
    pub sequence: u64,
    /// Highest sequence known durable when this was written.
    pub proven: u64,
    /// The life that wrote it.
    pub incarnation: u64,
}

/// Bytes a record with so many bytes of entries takes in the ring.
pub fn record_bytes(entries_bytes: usize) -> u32 {
    let bytes = (RECORD_HEAD_BYTES + entries_bytes).next_multiple_of(BLOCK_BYTES as usize);
    u32::try_from(bytes).expect("bounded by RECORD_BYTES_MAX")
}

/// The bytes of a record, sealed.
pub fn encode(store: [u8; 16], head: RecordHead, entries: &[u8]) -> Vec<u8> {
    assert!(entries.len() <= RECORD_ENTRIES_MAX);
    let len = record_bytes(entries.len());
    let raw = Raw {
        checksum: 0.into(),
        magic: MAGIC,
        len_bytes: len.into(),
        entries_bytes: u32::try_from(entries.len()).expect("checked").into(),
        version: VERSION.into(),
        reserved_a: 0.into(),
        reserved_b: 0.into(),
        sequence: head.sequence.into(),
        proven: head.proven.into(),
        incarnation: head.incarnation.into(),
        store,
    };
    let mut bytes = Vec::with_capacity(len as usize);
    bytes.extend_from_slice(raw.as_bytes());
    bytes.extend_from_slice(entries);
    bytes.resize(len as usize, 0);
    seal(&mut bytes);
    bytes
}

/// Length of the record that seems to begin here, from its (unchecked) header: how much must be
/// gathered before [`decode`].
pub fn claimed_bytes(block: &[u8], store: [u8; 16]) -> Option<u32> {
    let (raw, _) = Raw::ref_from_prefix(block).ok()?;
    let len = raw.len_bytes.get();
    let plausible = raw.magic == MAGIC
        && raw.store == store
        && (BLOCK_BYTES..=RECORD_BYTES_MAX).contains(&len)
        && len.is_multiple_of(BLOCK_BYTES);
    plausible.then_some(len)
}

/// Checks a whole record and gives its header and entries.
///
/// # Errors
/// [`Corrupt`].
pub fn decode(bytes: &[u8], store: [u8; 16]) -> Result<(RecordHead, &[u8]), Corrupt> {
    let (raw, rest) = Raw::ref_from_prefix(bytes).map_err(|_| Corrupt::Length)?;
    if raw.magic == MAGIC && raw.len_bytes.get() as usize != bytes.len() {
        return Err(Corrupt::Length);
    }
    let head = (raw.magic, raw.version.get(), raw.store);
    check(bytes, head, (MAGIC, store))?;
    let entries = rest
        .get(..raw.entries_bytes.get() as usize)
        .ok_or(Corrupt::Value)?;
    let head = RecordHead {
        sequence: raw.sequence.get(),
        proven: raw.proven.get(),
        incarnation: raw.incarnation.get(),
    };
    Ok((head, entries))
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_survives_and_any_flipped_bit_or_lost_block_is_seen(
            entries in prop::collection::vec(any::<u8>(), 0..20_000),
            sequence: u64, proven: u64, at: prop::sample::Index, bit in 0u8..8
        ) {
            let head = RecordHead { sequence, proven, incarnation: 4 };
            let mut bytes = encode([3; 16], head, &entries);
            prop_assert_eq!(claimed_bytes(&bytes, [3; 16]).map(|n| n as usize), Some(bytes.len()));
            prop_assert_eq!(decode(&bytes, [3; 16]), Ok((head, &entries[..])));
            let mut torn = bytes.clone();
            let block = at.index(bytes.len() / 4096) * 4096;
            torn[block..block + 4096].fill(0xee);
            prop_assert!(decode(&torn, [3; 16]).is_err());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes, [3; 16]).is_err());
        }
    }
}

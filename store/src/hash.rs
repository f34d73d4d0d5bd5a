//! Hashes of content: the one by which replicas are compared, the same on every store and release, and
//! the one that stays beside each block.

/// Hashes one chunk of content (`Hash`); two replicas compare equal chunk by chunk.
pub fn content_hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The checksum of one block: its CRC32C. Zero means "not known", so a CRC of zero counts as `ffff ffff`.
pub fn block_checksum(bytes: &[u8]) -> u32 {
    match crc_fast::crc32_iscsi(bytes) {
        0 => u32::MAX,
        crc => crc,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn no_checksum_is_zero() {
        let zero = crc_fast::crc32_iscsi(b"");
        assert_eq!((zero, block_checksum(b"")), (0, u32::MAX));
        assert_eq!(block_checksum(b"123456789"), 0xe306_9283);
    }
}

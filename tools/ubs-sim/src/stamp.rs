//! What a block is filled with, so that a read says which write it came from.
//!
//! Every 32 bytes repeat magic and volume, LBA, write sequence and a check word: a block that is
//! torn anywhere, belongs to another LBA or volume, or is made of nothing that was ever written is
//! told from one that is merely old.

use shardmap::units::BLOCK_BYTES;

const MAGIC: u64 = 0x7562_735f_7369_6d31;
const UNIT: usize = 32;

/// Why a block is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Two writes, or a write and something else, share it.
    Torn,
    /// It was written to another LBA.
    Misdirected {
        /// Which.
        lba: u64,
    },
    /// No write of ours made it.
    Foreign,
}

fn unit(lba: u64, sequence: u64) -> [u8; UNIT] {
    let check = (lba.rotate_left(32) ^ sequence).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut unit = [0; UNIT];
    for (part, word) in unit.chunks_exact_mut(8).zip([MAGIC, lba, sequence, check]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    unit
}

/// Fills whole blocks from `lba` on. `sequence` is never zero.
pub(crate) fn fill(bytes: &mut [u8], lba: u64, sequence: u64) {
    assert!(sequence > 0);
    for (lba, block) in (lba..).zip(bytes.chunks_exact_mut(BLOCK_BYTES as usize)) {
        let unit = unit(lba, sequence);
        block
            .chunks_exact_mut(UNIT)
            .for_each(|part| part.copy_from_slice(&unit));
    }
}

/// Which write a block came from; zero: none, it reads as zeroes.
pub(crate) fn sequence_of(block: &[u8], lba: u64) -> Result<u64, Broken> {
    assert_eq!(block.len(), BLOCK_BYTES as usize);
    let first = &block[..UNIT];
    // All units are equal if the block shifted by one is the block.
    if block[..block.len() - UNIT] != block[UNIT..] {
        return Err(Broken::Torn);
    }
    if first == [0; UNIT] {
        return Ok(0);
    }
    let word = |at: usize| {
        let part = first[at * 8..][..8].try_into().expect("eight bytes");
        u64::from_le_bytes(part)
    };
    if word(0) != MAGIC || first != unit(word(1), word(2)) {
        return Err(Broken::Foreign);
    }
    if word(1) != lba {
        return Err(Broken::Misdirected { lba: word(1) });
    }
    Ok(word(2))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_block_says_where_it_belongs_and_who_wrote_it() {
        let mut bytes = vec![0; 8192];
        assert_eq!(sequence_of(&bytes[..4096], 7), Ok(0));
        fill(&mut bytes, 7, 3);
        assert_eq!(sequence_of(&bytes[..4096], 7), Ok(3));
        assert_eq!(sequence_of(&bytes[4096..], 8), Ok(3));
        let misdirected = Err(Broken::Misdirected { lba: 8 });
        assert_eq!(sequence_of(&bytes[4096..], 7), misdirected);
        bytes[512..1024].fill(0);
        assert_eq!(sequence_of(&bytes[..4096], 7), Err(Broken::Torn));
        assert_eq!(sequence_of(&[9; 4096], 7), Err(Broken::Foreign));
    }
}

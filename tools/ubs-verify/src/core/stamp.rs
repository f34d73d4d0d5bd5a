//! What a written block looks like, so that any other content is told from it.

use super::record::WriterId;
use shardmap::units::{BLOCK_BYTES, Generation, Lba, VolumeId};
use std::fmt;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"ubs\x9dvfy1";
/// A sector is the smallest unit that a device writes whole.
const SECTOR_BYTES: usize = 512;
const BODY_BYTES: usize = SECTOR_BYTES - size_of::<SectorHead>();

/// Beginning of each sector of a stamped block. The rest of the sector is derived from it.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SectorHead {
    magic: [u8; 8],
    volume: [u8; 16],
    lba: U64,
    seq: U64,
    generation: U32,
    writer: U32,
    /// Position in the block, 0 ..= 7.
    sector: U32,
    /// CRC32C of the whole block with this field zero in every sector; the same in all of them. Lets
    /// a tool that knows nothing else find damaged blocks.
    crc: U32,
}
const _: () = assert!(size_of::<SectorHead>() == 56 && BODY_BYTES.is_multiple_of(8));

/// Who wrote a block, when, and for where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// The volume it was written to.
    pub volume: VolumeId,
    /// The block it was written to.
    pub lba: Lba,
    /// Which write of the writer.
    pub seq: u64,
    /// Snapshot generation the write was tagged with.
    pub generation: Generation,
    /// Who wrote.
    pub writer: WriterId,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (volume, lba, generation) = (self.volume, self.lba.0, self.generation.0);
        write!(
            f,
            "{}#{} for lba {lba} of {volume} in generation {generation}",
            self.writer, self.seq
        )
    }
}

/// What a block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Only zeroes: never written, discarded or zeroed.
    Zero,
    /// A whole stamped block; of which place it speaks is for the history to judge.
    Stamped(Stamp),
    /// Parts of stamped blocks, or one that was damaged: what its sectors say, without repetition.
    Torn(Vec<Stamp>),
    /// Nothing of ours.
    Foreign,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "zeroes"),
            Self::Stamped(stamp) => write!(f, "{stamp}"),
            Self::Torn(stamps) => {
                let parts: Vec<String> = stamps.iter().map(Stamp::to_string).collect();
                write!(f, "parts of [{}]", parts.join(", "))
            }
            Self::Foreign => write!(f, "foreign bytes"),
        }
    }
}

impl Stamp {
    /// Writes the stamped block. Panics unless `block` is one block long.
    pub fn fill(&self, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK_BYTES as usize, "one block");
        let mut head = self.head();
        for (index, sector) in (0_u32..).zip(block.chunks_exact_mut(SECTOR_BYTES)) {
            head.sector = index.into();
            let (front, body) = sector.split_at_mut(size_of::<SectorHead>());
            front.copy_from_slice(head.as_bytes());
            let mut state = self.seed(index);
            for word in body.chunks_exact_mut(8) {
                word.copy_from_slice(&splitmix64(&mut state).to_le_bytes());
            }
        }
        let crc = crc32c::crc32c(block);
        for sector in block.chunks_exact_mut(SECTOR_BYTES) {
            set_crc(sector, crc);
        }
    }

    const fn head(&self) -> SectorHead {
        SectorHead {
            magic: MAGIC,
            volume: self.volume.0,
            lba: U64::new(self.lba.0),
            seq: U64::new(self.seq),
            generation: U32::new(self.generation.0),
            writer: U32::new(self.writer.0),
            sector: U32::ZERO,
            crc: U32::ZERO,
        }
    }

    /// Different for each sector of each write.
    fn seed(&self, sector: u32) -> u64 {
        let mut state = self.seq ^ (u64::from(self.writer.0) << 40) ^ (u64::from(sector) << 61);
        splitmix64(&mut state) ^ self.lba.0
    }
}

impl Content {
    /// What `block` holds. Panics unless it is one block long.
    pub fn of(block: &[u8]) -> Self {
        assert_eq!(block.len(), BLOCK_BYTES as usize, "one block");
        if block.iter().all(|b| *b == 0) {
            return Self::Zero;
        }
        let mut stamps: Vec<Stamp> = block
            .chunks_exact(SECTOR_BYTES)
            .filter_map(|s| SectorHead::read_from_prefix(s).ok())
            .filter(|(head, _)| head.magic == MAGIC)
            .map(|(head, _)| head.stamp())
            .collect();
        stamps.dedup();
        match *stamps {
            [] => Self::Foreign,
            [stamp] if is_whole(&stamp, block) => Self::Stamped(stamp),
            _ => {
                stamps.sort();
                stamps.dedup();
                Self::Torn(stamps)
            }
        }
    }
}

impl SectorHead {
    fn stamp(&self) -> Stamp {
        Stamp {
            volume: VolumeId(self.volume),
            lba: Lba(self.lba.get()),
            seq: self.seq.get(),
            generation: Generation(self.generation.get()),
            writer: WriterId(self.writer.get()),
        }
    }
}

/// The block is, byte for byte, checksum included, what the stamp would have written.
fn is_whole(stamp: &Stamp, block: &[u8]) -> bool {
    let mut wanted = [0; BLOCK_BYTES as usize];
    stamp.fill(&mut wanted);
    block == wanted
}

fn set_crc(sector: &mut [u8], crc: u32) {
    let end = size_of::<SectorHead>();
    sector[end - size_of::<U32>()..end].copy_from_slice(&crc.to_le_bytes());
}

/// The generator splitmix64: every seed is a good one.
pub const fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod test {
    use super::*;

    fn stamp(seq: u64) -> Stamp {
        Stamp {
            volume: VolumeId([7; 16]),
            lba: Lba(99),
            seq,
            generation: Generation(3),
            writer: WriterId(2),
        }
    }

    fn block(stamp: &Stamp) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        stamp.fill(&mut block);
        block
    }

    #[test]
    fn a_block_says_what_was_written() {
        assert_eq!(Content::of(&block(&stamp(5))), Content::Stamped(stamp(5)));
        assert_eq!(Content::of(&[0; 4096]), Content::Zero);
        assert_eq!(Content::of(&[1; 4096]), Content::Foreign);
    }

    #[test]
    fn a_mix_of_two_writes_is_seen_wherever_it_is_torn() {
        let (old, new) = (block(&stamp(5)), block(&stamp(6)));
        for cut in 1..old.len() {
            let mut torn = new[..cut].to_vec();
            torn.extend_from_slice(&old[cut..]);
            // Cut where both are the same the block is whole, and only there.
            let is_either = torn == old || torn == new;
            let seen = Content::of(&torn);
            assert_eq!(
                matches!(seen, Content::Torn(_)),
                !is_either,
                "cut at {cut}: {seen}"
            );
        }
        let mut torn = new[..1024].to_vec();
        torn.extend_from_slice(&old[1024..]);
        assert_eq!(Content::of(&torn), Content::Torn(vec![stamp(5), stamp(6)]));
    }

    #[test]
    fn a_flipped_bit_a_lost_sector_and_swapped_sectors_are_seen() {
        let good = block(&stamp(5));
        for bit in (0..8 * 4096).step_by(11) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Content::of(&bad), Content::Torn(_)), "bit {bit}");
        }
        let mut bad = good.clone();
        bad[512..1024].fill(0);
        assert_eq!(Content::of(&bad), Content::Torn(vec![stamp(5)]));
        let mut bad = good[512..1024].to_vec();
        bad.extend_from_slice(&good[..512]);
        bad.extend_from_slice(&good[1024..]);
        assert!(matches!(Content::of(&bad), Content::Torn(_)));
    }
}

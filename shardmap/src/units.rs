//! Numbers that cannot be swapped. Imports nothing of ours; everything else imports it.
//!
//! A *block* is 4 KiB everywhere above the medium: it is the logical block of `/dev/ublkbN`, of the
//! NVMe namespaces, the unit of presence, dirtiness and atomicity (ADR 0004).

use serde::{Deserialize, Serialize};
use std::fmt;

/// log2 of [`BLOCK_BYTES`]; the LBADS of our namespaces.
pub const BLOCK_SHIFT: u8 = 12;
/// One block, in bytes.
pub const BLOCK_BYTES: u32 = 1 << BLOCK_SHIFT;
/// One extent (allocation unit of a store), in bytes.
pub const EXTENT_BYTES: u32 = 64 * 1024;
/// Blocks in one extent.
pub const EXTENT_BLOCKS: u32 = EXTENT_BYTES / BLOCK_BYTES;
/// One write-intent region, in bytes (replication protocol §2).
pub const REGION_BYTES: u64 = 4 * 1024 * 1024;
/// Blocks in one region.
pub const REGION_BLOCKS: u32 = 1024;
/// Default shard, in bytes; a volume may choose a power of two within [`SHARD_BYTES_RANGE`].
pub const SHARD_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
/// Smallest and largest shard a volume may choose, in bytes (both powers of two).
pub const SHARD_BYTES_RANGE: std::ops::RangeInclusive<u64> = 4 << 20..=1 << 30;

const _: () = assert!(REGION_BYTES == REGION_BLOCKS as u64 * BLOCK_BYTES as u64);
const _: () = assert!(EXTENT_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(REGION_BYTES.is_multiple_of(EXTENT_BYTES as u64));

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number!(
    /// Position of a block in a volume, counted in blocks from the volume's start.
    Lba(u64), "lba "
);
number!(
    /// A count of blocks.
    Blocks(u32), ""
);
number!(
    /// Ordinal of a shard in its volume.
    ShardIndex(u32), "shard "
);
number!(
    /// Ordinal of a 4 MiB write-intent region in its volume.
    RegionIndex(u32), "region "
);
number!(
    /// A storage server, minted by metad, never reused.
    ServerId(u32), "server-"
);
number!(
    /// A store (one backing device), minted by metad, never reused.
    StoreId(u32), "store-"
);
number!(
    /// NVMe namespace id of a slice, minted by metad, never reused. Zero is no slice.
    Nsid(u32), "nsid "
);
number!(
    /// Attachment count of a volume. High 16 bits: lineage (which metad history minted it); low 48
    /// bits: counter within the lineage. Ordered as one number, so a newer lineage always wins.
    Epoch(u64), "epoch "
);
number!(
    /// Version of a volume's replica membership (replication protocol §2, "seq").
    MembershipSeq(u64), "seq "
);
number!(
    /// One life of a storaged's volatile state; persisted, kept only by a clean stop.
    Incarnation(u64), "incarnation "
);
number!(
    /// Snapshot lineage position of a volume; the head generation takes writes.
    Generation(u32), "generation "
);
number!(
    /// A logical moment of a store, handed out to bound "last write before" questions (protocol §8).
    WriteTick(u64), "tick "
);

/// A volume's identity for life: UUID, 16 bytes, as stored in layer pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub [u8; 16]);

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl Epoch {
    /// Builds from lineage and counter; `None` if the counter passes 48 bits.
    pub const fn new(lineage: u16, counter: u64) -> Option<Self> {
        if counter >> 48 != 0 {
            None
        } else {
            Some(Self((lineage as u64) << 48 | counter))
        }
    }

    /// The epoch after this one in the same lineage. Panics after 2^48 attaches.
    pub const fn next(self) -> Self {
        assert!(
            self.0 & 0xffff_ffff_ffff != 0xffff_ffff_ffff,
            "epoch counter exhausted"
        );
        Self(self.0 + 1)
    }
}

/// A moment of monotonic time in nanoseconds since an arbitrary start. Cores get it as an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment plus `ms` milliseconds, saturating.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds since `earlier`; zero if `earlier` is later.
    pub const fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A half-open range of blocks `[start, start + blocks)`. Never empty, never wraps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    start: Lba,
    blocks: Blocks,
}

impl fmt::Debug for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start.0, self.end().0)
    }
}

impl BlockRange {
    /// `None` if `blocks` is zero or the end passes 2^52 (so byte offsets always fit 64 bits).
    pub const fn new(start: Lba, blocks: Blocks) -> Option<Self> {
        if blocks.0 == 0 {
            return None;
        }
        match start.0.checked_add(blocks.0 as u64) {
            Some(end) if end <= 1 << (64 - BLOCK_SHIFT) => Some(Self { start, blocks }),
            _ => None,
        }
    }

    /// First block.
    pub const fn start(self) -> Lba {
        self.start
    }

    /// Number of blocks, at least one.
    pub const fn blocks(self) -> Blocks {
        self.blocks
    }

    /// First block after the range.
    pub const fn end(self) -> Lba {
        Lba(self.start.0 + self.blocks.0 as u64)
    }

    /// Byte offset of the first block in the volume.
    pub const fn offset_bytes(self) -> u64 {
        self.start.0 << BLOCK_SHIFT
    }

    /// Length in bytes.
    pub const fn len_bytes(self) -> u64 {
        (self.blocks.0 as u64) << BLOCK_SHIFT
    }

    /// True if the two share a block.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end().0 && other.start.0 < self.end().0
    }

    /// Pieces of this range that do not cross a multiple of `unit_blocks`, in order.
    pub fn split_at_multiples(self, unit_blocks: u32) -> impl Iterator<Item = BlockRange> {
        assert!(unit_blocks > 0);
        let unit = u64::from(unit_blocks);
        let mut at = self.start.0;
        let end = self.end().0;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let next = ((at / unit + 1) * unit).min(end);
            let blocks = u32::try_from(next - at).expect("a piece is at most the whole range");
            let piece = BlockRange {
                start: Lba(at),
                blocks: Blocks(blocks),
            };
            at = next;
            Some(piece)
        })
    }

    /// The regions that the range touches, in order.
    pub fn regions(self) -> impl Iterator<Item = RegionIndex> {
        let unit = u64::from(REGION_BLOCKS);
        let first = self.start.0 / unit;
        let last = (self.end().0 - 1) / unit;
        (first..=last).map(|r| RegionIndex(u32::try_from(r).expect("volume of at most 16 PiB")))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn range(start: u64, blocks: u32) -> BlockRange {
        BlockRange::new(Lba(start), Blocks(blocks)).unwrap()
    }

    #[test]
    fn a_range_is_never_empty_and_never_wraps() {
        assert_eq!(BlockRange::new(Lba(0), Blocks(0)), None);
        assert_eq!(BlockRange::new(Lba(u64::MAX), Blocks(1)), None);
        assert_eq!(BlockRange::new(Lba((1 << 52) - 1), Blocks(2)), None);
        assert!(BlockRange::new(Lba((1 << 52) - 1), Blocks(1)).is_some());
    }

    #[test]
    fn splitting_covers_the_range_and_respects_the_unit() {
        let pieces: Vec<_> = range(14, 40).split_at_multiples(16).collect();
        assert_eq!(
            pieces,
            [range(14, 2), range(16, 16), range(32, 16), range(48, 6)]
        );
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!range(0, 4).overlaps(range(4, 1)));
        assert!(range(0, 5).overlaps(range(4, 1)));
    }

    #[test]
    fn a_range_touches_its_regions() {
        let touched: Vec<_> = range(1023, 2).regions().collect();
        assert_eq!(touched, [RegionIndex(0), RegionIndex(1)]);
    }

    #[test]
    fn a_newer_lineage_beats_any_counter() {
        let old = Epoch::new(1, (1 << 48) - 1).unwrap();
        let new = Epoch::new(2, 0).unwrap();
        assert!(new > old);
        assert_eq!(Epoch::new(0, 1 << 48), None);
    }
}

//! Which store holds which shard of a volume.
//!
//! A volume is spread over the stores of its *stride set* by a fixed rule, so its whole map is a
//! handful of numbers, the same for metad, clientd and storaged, and a slice knows by itself which
//! shards it holds.

use crate::units::{BLOCK_BYTES, BlockRange, Lba, ShardIndex, StoreId};
use serde::{Deserialize, Serialize};

/// How the shards of a volume are dealt to the positions of its stride set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// Shard `i` on positions `i, i+1 … i+R-1` modulo the stride: every neighbour helps a resilver.
    Ring,
    /// Positions in fixed groups of R, shard `i` on group `i mod (stride / R)`: fewest copysets.
    Block,
}

/// The rule alone, without the stores: what a slice needs besides its own position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Blocks in a shard; a power of two.
    pub shard_blocks: u32,
    /// Stores in the stride set.
    pub stride: u16,
    /// Replicas of each shard, 1 ..= stride.
    pub replicas: u8,
    /// The dealing rule.
    pub layout: Layout,
}

impl Shape {
    /// Positions of the stride set that hold the shard, in replica order.
    pub fn positions_of(self, shard: ShardIndex) -> impl Iterator<Item = u16> {
        let (stride, replicas) = (u32::from(self.stride), u32::from(self.replicas));
        assert!(
            replicas >= 1 && replicas <= stride,
            "{replicas} replicas on {stride} stores"
        );
        let first = match self.layout {
            Layout::Ring => shard.0 % stride,
            Layout::Block => (shard.0 % (stride / replicas)) * replicas,
        };
        (0..replicas).map(move |k| u16::try_from((first + k) % stride).expect("below stride"))
    }

    /// Whether the slice at a position holds the shard.
    pub fn holds(self, position: u16, shard: ShardIndex) -> bool {
        self.positions_of(shard).any(|p| p == position)
    }

    /// The shard of a block.
    pub fn shard_of(self, lba: Lba) -> ShardIndex {
        let shard = lba.0 / u64::from(self.shard_blocks);
        ShardIndex(u32::try_from(shard).expect("volume of at most 16 PiB"))
    }
}

/// A volume's shape and the stores it lives on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMap {
    /// Size in blocks.
    pub size_blocks: u64,
    /// The dealing rule; `shape.stride` equals `stores.len()`.
    pub shape: Shape,
    /// The stride set, by position.
    pub stores: Vec<StoreId>,
}

impl VolumeMap {
    /// Stores that hold the shard, in replica order.
    pub fn stores_of(&self, shard: ShardIndex) -> impl Iterator<Item = StoreId> + '_ {
        self.shape
            .positions_of(shard)
            .map(|p| self.stores[usize::from(p)])
    }

    /// Position of a store in the stride set.
    pub fn position_of(&self, store: StoreId) -> Option<u16> {
        let at = self.stores.iter().position(|s| *s == store)?;
        Some(u16::try_from(at).expect("stride fits u16"))
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_blocks * u64::from(BLOCK_BYTES)
    }

    /// Number of shards; the last one may be short.
    pub fn shard_count(&self) -> u32 {
        let count = self
            .size_blocks
            .div_ceil(u64::from(self.shape.shard_blocks));
        u32::try_from(count).expect("volume of at most 16 PiB")
    }

    /// Whether the range lies inside the volume.
    pub fn contains(&self, range: BlockRange) -> bool {
        range.end().0 <= self.size_blocks
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn shape(stride: u16, replicas: u8, layout: Layout) -> Shape {
        Shape {
            shard_blocks: 16_384,
            stride,
            replicas,
            layout,
        }
    }

    proptest! {
        #[test]
        fn every_shard_has_r_distinct_homes_inside_the_stride(
            stride in 1u16..40, r in 1u8..6, shard in 0u32..10_000, ring: bool
        ) {
            prop_assume!(u16::from(r) <= stride);
            let layout = if ring { Layout::Ring } else { Layout::Block };
            let mut homes: Vec<_> =
                shape(stride, r, layout).positions_of(ShardIndex(shard)).collect();
            prop_assert!(homes.iter().all(|p| *p < stride));
            homes.sort_unstable();
            homes.dedup();
            prop_assert_eq!(homes.len(), usize::from(r));
        }
    }

    #[test]
    fn block_layout_uses_only_the_fixed_groups() {
        let shape = shape(6, 3, Layout::Block);
        for shard in 0..100 {
            let homes: Vec<_> = shape.positions_of(ShardIndex(shard)).collect();
            assert!(homes == [0, 1, 2] || homes == [3, 4, 5]);
        }
    }
}

//! Sets of blocks and of regions: what is dirty, unflushed, marked or present.
//!
//! Both are compressed bitmaps; their size follows how scattered the members are, not how large
//! the volume is. Iteration is ascending, so cores that walk them stay deterministic.

use crate::units::{BlockRange, Blocks, Lba, REGION_BLOCKS, RegionIndex};
use roaring::{RoaringBitmap, RoaringTreemap};
use std::fmt;

/// A set of blocks of one volume.
#[derive(Clone, Default, PartialEq)]
pub struct BlockSet(RoaringTreemap);

impl fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockSet({} blocks)", self.0.len())
    }
}

impl BlockSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds every block of the range.
    pub fn insert(&mut self, range: BlockRange) {
        self.0.insert_range(range.start().0..range.end().0);
    }

    /// Takes every block of the range out.
    pub fn remove(&mut self, range: BlockRange) {
        if !self.0.is_empty() {
            self.0.remove_range(range.start().0..range.end().0);
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// Takes all of `other` out.
    pub fn subtract(&mut self, other: &Self) {
        self.0 -= &other.0;
    }

    /// Keeps what is also in `other`.
    pub fn intersect(&mut self, other: &Self) {
        self.0 &= &other.0;
    }

    /// Takes every block of the range out and hands out those that were there.
    pub fn take(&mut self, range: BlockRange) -> Self {
        let (start, end) = (range.start().0, range.end().0);
        let mut iter = self.0.iter();
        iter.advance_to(start);
        let taken = iter.take_while(|block| *block < end).collect();
        self.0.remove_range(start..end);
        Self(taken)
    }

    /// Adds blocks given relative to `base`, as a store reports presence.
    pub fn insert_relative(&mut self, base: Lba, blocks: &RoaringBitmap) {
        let mut iter = blocks.iter();
        while let Some(run) = iter.next_range() {
            let (first, last) = (u64::from(*run.start()), u64::from(*run.end()));
            self.0.insert_range(base.0 + first..=base.0 + last);
        }
    }

    /// Adds blocks given relative to `base` in the portable roaring format, as they travel.
    ///
    /// # Errors
    /// [`BadBitmap`] if the bytes are no bitmap.
    pub fn insert_serialized(&mut self, base: Lba, bytes: &[u8]) -> Result<(), BadBitmap> {
        let blocks = RoaringBitmap::deserialize_from(bytes).map_err(BadBitmap)?;
        self.insert_relative(base, &blocks);
        Ok(())
    }

    /// Adds every block of the region that lies below `size_blocks`.
    pub fn insert_region(&mut self, region: RegionIndex, size_blocks: u64) {
        let first = u64::from(region.0) * u64::from(REGION_BLOCKS);
        let end = (first + u64::from(REGION_BLOCKS)).min(size_blocks);
        if first < end {
            self.0.insert_range(first..end);
        }
    }

    /// Whether any block of the range is in the set.
    pub fn intersects(&self, range: BlockRange) -> bool {
        !self.0.is_empty() && self.0.range_cardinality(range.start().0..range.end().0) > 0
    }

    /// Whether every block of the range is in the set.
    pub fn contains_all(&self, range: BlockRange) -> bool {
        self.0.contains_range(range.start().0..range.end().0)
    }

    /// The first run of neighbouring members at or after `from`, cut to `blocks_max`.
    pub fn first_run(&self, from: Lba, blocks_max: u32) -> Option<BlockRange> {
        assert!(blocks_max > 0);
        let mut iter = self.0.iter();
        iter.advance_to(from.0);
        let start = iter.next()?;
        let blocks = 1 + iter
            .take((blocks_max - 1) as usize)
            .zip(start + 1..)
            .take_while(|(b, n)| b == n)
            .count();
        BlockRange::new(
            Lba(start),
            Blocks(u32::try_from(blocks).expect("at most blocks_max")),
        )
    }

    /// How many blocks there are.
    pub fn len_blocks(&self) -> u64 {
        self.0.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Packs runs; worth it once after a large set was built.
    pub fn optimize(&mut self) {
        self.0.optimize();
    }
}

/// A set of write-intent regions of one volume.
#[derive(Clone, Default, PartialEq)]
pub struct RegionSet(RoaringBitmap);

impl fmt::Debug for RegionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().take(16)).finish()
    }
}

impl From<RoaringBitmap> for RegionSet {
    fn from(regions: RoaringBitmap) -> Self {
        Self(regions)
    }
}

impl FromIterator<RegionIndex> for RegionSet {
    fn from_iter<T: IntoIterator<Item = RegionIndex>>(regions: T) -> Self {
        Self(regions.into_iter().map(|r| r.0).collect())
    }
}

impl RegionSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a region; true if it was not there.
    pub fn insert(&mut self, region: RegionIndex) -> bool {
        self.0.insert(region.0)
    }

    /// Takes a region out; true if it was there.
    pub fn remove(&mut self, region: RegionIndex) -> bool {
        self.0.remove(region.0)
    }

    /// Whether the region is in the set.
    pub fn contains(&self, region: RegionIndex) -> bool {
        self.0.contains(region.0)
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// Keeps the regions for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(RegionIndex) -> bool) {
        self.0.retain(|r| keep(RegionIndex(r)));
    }

    /// Members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        self.0.iter().map(RegionIndex)
    }

    /// The lowest member.
    pub fn first(&self) -> Option<RegionIndex> {
        self.0.min().map(RegionIndex)
    }

    /// How many regions there are.
    pub fn len_regions(&self) -> u64 {
        self.0.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The bitmap in the portable roaring format, as it travels (`docs/protocol.md`).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.serialized_size());
        self.0
            .serialize_into(&mut bytes)
            .expect("a vector takes any number of bytes");
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`BadBitmap`] if the bytes are no bitmap.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadBitmap> {
        RoaringBitmap::deserialize_from(bytes)
            .map(Self)
            .map_err(BadBitmap)
    }
}

/// A peer sent bytes that are no bitmap.
#[derive(Debug, thiserror::Error)]
#[error("not a roaring bitmap")]
pub struct BadBitmap(#[source] pub std::io::Error);

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(start: u64, blocks: u32) -> BlockRange {
        BlockRange::new(Lba(start), Blocks(blocks)).unwrap()
    }

    proptest! {
        #[test]
        fn a_block_set_behaves_like_a_tree_of_blocks(
            steps in proptest::collection::vec((any::<bool>(), 0u64..200, 1u32..20), 1..60),
            from in 0u64..220,
            blocks_max in 1u32..12,
        ) {
            let (mut set, mut model) = (BlockSet::new(), BTreeSet::new());
            for (add, start, blocks) in steps {
                let range = range(start + (1 << 33), blocks);
                let members = range.start().0..range.end().0;
                if add {
                    set.insert(range);
                    model.extend(members);
                } else {
                    set.remove(range);
                    members.for_each(|b| { model.remove(&b); });
                }
            }
            let from = from + (1 << 33);
            let expected = model.range(from..).next().map(|first| {
                let run = (*first..).take(blocks_max as usize).take_while(|b| model.contains(b));
                BlockRange::new(Lba(*first), Blocks(u32::try_from(run.count()).unwrap())).unwrap()
            });
            prop_assert_eq!(set.first_run(Lba(from), blocks_max), expected);
            prop_assert_eq!(set.len_blocks(), model.len() as u64);
            let probe = range(from, blocks_max);
            let hit = model.range(probe.start().0..probe.end().0).next().is_some();
            prop_assert_eq!(set.intersects(probe), hit);
            let all = (probe.start().0..probe.end().0).all(|b| model.contains(&b));
            prop_assert_eq!(set.contains_all(probe), all);
        }
    }

    #[test]
    fn a_region_at_the_end_of_the_volume_is_cut() {
        let mut set = BlockSet::new();
        set.insert_region(RegionIndex(1), 1030);
        assert_eq!(set.first_run(Lba(0), 100), Some(range(1024, 6)));
        set.insert_region(RegionIndex(2), 1030);
        assert_eq!(set.len_blocks(), 6);
    }

    #[test]
    fn regions_survive_the_wire_and_garbage_does_not() {
        let set: RegionSet = [3, 9, 4096].map(RegionIndex).into_iter().collect();
        assert_eq!(RegionSet::from_bytes(&set.to_bytes()).unwrap(), set);
        assert!(RegionSet::from_bytes(b"nonsense").is_err());
    }

    #[test]
    fn relative_presence_lands_at_its_base() {
        let mut set = BlockSet::new();
        set.insert_relative(Lba(1 << 32), &RoaringBitmap::from_iter([0, 1, 2, 70_000]));
        assert_eq!(set.first_run(Lba(0), 32), Some(range(1 << 32, 3)));
        assert_eq!(
            set.first_run(Lba((1 << 32) + 3), 32),
            Some(range((1 << 32) + 70_000, 1))
        );
    }
}

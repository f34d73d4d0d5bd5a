//! Free extents: a bitmap rebuilt at open from what no layer page names, and a pool of those that
//! merges and deletions gave back, which are taken first, untrimmed and without a search.

use crate::limits::{POOL_EXTENTS_MAX, POOL_SHARE};
use std::collections::BTreeSet;

/// Free extents of the data area.
#[derive(Debug)]
pub(super) struct Space {
    /// Bit set: free.
    words: Vec<u64>,
    /// Those of the free ones that are to be used again.
    pool: BTreeSet<u32>,
    extents: u32,
    free: u32,
    /// Where the search goes on.
    cursor: u32,
}

/// An extent that was free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allocated {
    pub(super) extent: u32,
    /// From the pool.
    pub(super) recycled: bool,
}

impl Space {
    /// All free.
    pub(super) fn new(extents: u32) -> Self {
        let mut words = vec![u64::MAX; (extents as usize).div_ceil(64)];
        if !extents.is_multiple_of(64)
            && let Some(last) = words.last_mut()
        {
            *last = (1 << (extents % 64)) - 1;
        }
        Self {
            words,
            pool: BTreeSet::new(),
            extents,
            free: extents,
            cursor: 0,
        }
    }

    /// There are so many extents from now on; the new ones are free.
    pub(super) fn grow(&mut self, extents: u32) {
        assert!(extents >= self.extents, "{} to {extents}", self.extents);
        let grown = Self::new(extents);
        let old = std::mem::replace(&mut self.words, grown.words);
        self.words[..old.len()].copy_from_slice(&old);
        // The word in which they begin.
        let (index, bit) = (self.extents as usize / 64, self.extents % 64);
        if bit > 0 && extents > self.extents {
            let upto = (extents - self.extents).min(64 - bit);
            self.words[index] |= (u64::MAX >> (64 - upto)) << bit;
        }
        self.free += extents - self.extents;
        // What is new is free in one piece.
        self.cursor = self.extents % extents;
        self.extents = extents;
    }

    pub(super) const fn free(&self) -> u32 {
        self.free
    }

    fn is_free(&self, extent: u32) -> bool {
        extent < self.extents && self.words[extent as usize / 64] >> (extent % 64) & 1 == 1
    }

    /// Whether the pool takes another one.
    pub(super) fn has_room_in_pool(&self) -> bool {
        self.pool.len() < (self.extents / POOL_SHARE).min(POOL_EXTENTS_MAX) as usize
    }

    /// Takes a particular extent; false if it is not free (or does not exist).
    pub(super) fn take(&mut self, extent: u32) -> bool {
        if !self.is_free(extent) {
            return false;
        }
        self.words[extent as usize / 64] &= !(1 << (extent % 64));
        self.free -= 1;
        self.pool.remove(&extent);
        true
    }

    /// Takes the extent `wanted` if it is free (a neighbour makes larger device operations), else one of
    /// the pool, else the next free one after the last.
    pub(super) fn allocate(&mut self, wanted: Option<u32>) -> Option<Allocated> {
        let wanted = wanted.filter(|extent| self.is_free(*extent));
        let extent = wanted.or_else(|| self.pool.first().copied());
        let extent = extent.or_else(|| self.next_free())?;
        let recycled = self.pool.contains(&extent);
        assert!(self.take(extent));
        Some(Allocated { extent, recycled })
    }

    /// The next free extent at or after the cursor, which goes past it.
    fn next_free(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let count = self.words.len();
        let first = self.cursor as usize / 64;
        for step in 0..=count {
            let index = (first + step) % count;
            let mut word = self.words[index];
            if step == 0 {
                word &= u64::MAX << (self.cursor % 64);
            }
            if word != 0 {
                let bit = word.trailing_zeros();
                let extent = u32::try_from(index).expect("words of a u32 range") * 64 + bit;
                self.cursor = if extent + 1 == self.extents {
                    0
                } else {
                    extent + 1
                };
                return Some(extent);
            }
        }
        unreachable!("{} extents are counted free but none is found", self.free)
    }

    /// Gives an extent back.
    pub(super) fn release(&mut self, extent: u32) {
        assert!(
            extent < self.extents && !self.is_free(extent),
            "extent {extent} freed twice"
        );
        self.words[extent as usize / 64] |= 1 << (extent % 64);
        self.free += 1;
    }

    /// Gives an extent back that the pool has room for.
    pub(super) fn recycle(&mut self, extent: u32) {
        assert!(self.has_room_in_pool());
        self.release(extent);
        self.pool.insert(extent);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_hands_out_each_extent_once(extents in 1u32..300, ops in prop::collection::vec(any::<(bool, bool, u32)>(), 0..600)) {
            let mut space = Space::new(extents);
            let (mut taken, mut pool) = (BTreeSet::new(), BTreeSet::new());
            for (give, again, n) in ops {
                if give {
                    if let Some(e) = taken.iter().nth(n as usize % extents as usize).copied() {
                        taken.remove(&e);
                        if again && space.has_room_in_pool() {
                            pool.insert(e);
                            space.recycle(e);
                        } else {
                            space.release(e);
                        }
                    }
                } else if let Some(got) = space.allocate(Some(n % (extents + 2))) {
                    prop_assert!(got.extent < extents && taken.insert(got.extent));
                    prop_assert_eq!(pool.remove(&got.extent), got.recycled);
                } else {
                    prop_assert_eq!(taken.len(), extents as usize);
                }
                prop_assert_eq!(space.free() as usize + taken.len(), extents as usize);
                prop_assert!(pool.len() <= (extents / POOL_SHARE) as usize);
            }
        }
    }

    #[test]
    fn what_is_new_is_free_and_nothing_else() {
        for (before, after) in [(1, 2), (63, 64), (64, 65), (70, 700), (128, 128)] {
            let mut space = Space::new(before);
            let taken: Vec<_> = (0..before).map(|_| extent(&mut space, None)).collect();
            assert_eq!((space.free(), space.allocate(None)), (0, None));
            space.grow(after);
            assert_eq!(space.free(), after - before);
            let mut new: Vec<_> = (before..after)
                .map(|_| extent(&mut space, None).unwrap())
                .collect();
            new.sort_unstable();
            assert!(new.into_iter().eq(before..after), "{before} to {after}");
            assert_eq!((space.allocate(None), taken.len()), (None, before as usize));
        }
    }

    fn extent(space: &mut Space, wanted: Option<u32>) -> Option<u32> {
        space.allocate(wanted).map(|got| got.extent)
    }

    #[test]
    fn sequential_allocation_is_contiguous() {
        let mut space = Space::new(200);
        let got: Vec<_> = (0..200)
            .map(|_| extent(&mut space, None).unwrap())
            .collect();
        assert!(got.iter().copied().eq(0..200));
        assert_eq!(space.allocate(None), None);
    }

    #[test]
    fn the_pool_comes_before_what_was_never_used_and_after_the_neighbour() {
        let mut space = Space::new(640);
        (0..100).for_each(|_| assert!(space.allocate(None).is_some()));
        (20..22).for_each(|e| space.recycle(e));
        assert_eq!(extent(&mut space, Some(100)), Some(100));
        let recycled = |extent| {
            Some(Allocated {
                extent,
                recycled: true,
            })
        };
        assert_eq!(space.allocate(Some(50)), recycled(20), "50 is not free");
        assert_eq!(space.allocate(None), recycled(21));
        assert_eq!(extent(&mut space, None), Some(101));
    }
}

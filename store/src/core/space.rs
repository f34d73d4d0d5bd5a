//! Free extents: a bitmap rebuilt at open from what no layer page names.

/// Free extents of the data area.
#[derive(Debug)]
pub(super) struct Space {
    /// Bit set: free.
    words: Vec<u64>,
    extents: u32,
    free: u32,
    /// Where the search goes on.
    cursor: u32,
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
            extents,
            free: extents,
            cursor: 0,
        }
    }

    pub(super) const fn free(&self) -> u32 {
        self.free
    }

    fn is_free(&self, extent: u32) -> bool {
        extent < self.extents && self.words[extent as usize / 64] >> (extent % 64) & 1 == 1
    }

    /// Takes a particular extent; false if it is not free (or does not exist).
    pub(super) fn take(&mut self, extent: u32) -> bool {
        if !self.is_free(extent) {
            return false;
        }
        self.words[extent as usize / 64] &= !(1 << (extent % 64));
        self.free -= 1;
        true
    }

    /// Takes the extent `wanted` if it is free (a neighbour makes larger device operations), else the
    /// next free one after the last.
    pub(super) fn allocate(&mut self, wanted: Option<u32>) -> Option<u32> {
        if let Some(extent) = wanted
            && self.take(extent)
        {
            return Some(extent);
        }
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
                assert!(self.take(extent));
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
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_hands_out_each_extent_once(extents in 1u32..300, ops in prop::collection::vec(any::<(bool, u32)>(), 0..600)) {
            let mut space = Space::new(extents);
            let mut taken = BTreeSet::new();
            for (give, n) in ops {
                if give {
                    if let Some(e) = taken.iter().nth(n as usize % extents as usize).copied() {
                        taken.remove(&e);
                        space.release(e);
                    }
                } else if let Some(e) = space.allocate(Some(n % (extents + 2))) {
                    prop_assert!(e < extents && taken.insert(e));
                } else {
                    prop_assert_eq!(taken.len(), extents as usize);
                }
                prop_assert_eq!(space.free() as usize + taken.len(), extents as usize);
            }
        }
    }

    #[test]
    fn sequential_allocation_is_contiguous() {
        let mut space = Space::new(200);
        let got: Vec<_> = (0..200).map(|_| space.allocate(None).unwrap()).collect();
        assert!(got.iter().copied().eq(0..200));
        assert_eq!(space.allocate(None), None);
    }
}

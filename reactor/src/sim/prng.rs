//! The only source of chance in a simulated world.

/// A seeded generator (SplitMix64: a Weyl sequence through a 64-bit finaliser). Same seed, same
/// numbers, on every machine and release.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// A generator for that seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `[0, bound)`. Panics if `bound` is zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0);
        // The bias is below 2^-32 for every bound in use here.
        self.next_u64() % bound
    }

    /// A number in `[low, high]`. Panics if the range is empty.
    pub const fn within(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high);
        if low == 0 && high == u64::MAX {
            return self.next_u64();
        }
        low + self.below(high - low + 1)
    }

    /// True in `hits` of `of` cases.
    pub const fn chance(&mut self, hits: u64, of: u64) -> bool {
        self.below(of) < hits
    }

    /// A generator of its own for a part of the world, so that parts do not disturb each other.
    pub const fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let draw = |seed| {
            let mut prng = Prng::new(seed);
            [
                prng.next_u64(),
                prng.below(10),
                prng.within(5, 6),
                prng.fork().next_u64(),
            ]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        // The reference sequence of SplitMix64 for seed 0.
        assert_eq!(Prng::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn bounds_are_kept_and_reached() {
        let mut prng = Prng::new(7);
        let mut seen = [0u32; 4];
        for _ in 0..1000 {
            seen[usize::try_from(prng.within(10, 13) - 10).unwrap()] += 1;
        }
        assert!(seen.iter().all(|n| *n > 150), "{seen:?}");
        assert!(!prng.chance(0, 5) && prng.chance(5, 5));
    }
}

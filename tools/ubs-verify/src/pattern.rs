//! Which request comes next: seeded, so that two runs ask for the same.

use crate::options::Where;
use shardmap::units::{BlockRange, Blocks, Lba};

/// What kinds of requests, in which proportion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    pub(crate) read_percent: u8,
    pub(crate) zero_percent: u8,
    pub(crate) fua_percent: u8,
    /// Flush after so many writes; zero: never.
    pub(crate) flush_every: u64,
}

/// The next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Read(BlockRange),
    Write(BlockRange, bool),
    Zero(BlockRange),
    Flush,
}

impl Wish {
    pub(crate) const fn range(self) -> Option<BlockRange> {
        match self {
            Self::Read(range) | Self::Write(range, _) | Self::Zero(range) => Some(range),
            Self::Flush => None,
        }
    }
}

/// Endless sequence of requests.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    place: Where,
    mix: Mix,
    size_blocks: u64,
    io_blocks: u32,
    next_lba: u64,
    writes_since_flush: u64,
    state: u64,
}

impl Pattern {
    /// Requests of up to `io_blocks` blocks within the first `size_blocks`, at least one.
    pub(crate) fn new(place: Where, mix: Mix, size_blocks: u64, io_blocks: u32, seed: u64) -> Self {
        assert!(size_blocks > 0 && io_blocks > 0, "room for one request");
        Self {
            place,
            mix,
            size_blocks,
            io_blocks,
            next_lba: 0,
            writes_since_flush: 0,
            state: seed,
        }
    }

    pub(crate) fn next(&mut self) -> Wish {
        if self.mix.flush_every > 0 && self.writes_since_flush >= self.mix.flush_every {
            self.writes_since_flush = 0;
            return Wish::Flush;
        }
        let range = self.next_range();
        if self.one_of_hundred() < self.mix.read_percent.into() {
            return Wish::Read(range);
        }
        self.writes_since_flush += 1;
        if self.one_of_hundred() < self.mix.zero_percent.into() {
            return Wish::Zero(range);
        }
        let fua = self.one_of_hundred() < self.mix.fua_percent.into();
        Wish::Write(range, fua)
    }

    fn next_range(&mut self) -> BlockRange {
        let size = self.size_blocks;
        let (start, blocks) = match self.place {
            Where::Sequential => {
                let start = self.next_lba;
                let blocks = u64::from(self.io_blocks).min(size - start);
                self.next_lba = (start + blocks) % size;
                (start, blocks)
            }
            Where::Random => {
                let start = self.below(size);
                (start, self.length().min(size - start))
            }
            Where::Hot => {
                let hot = self.one_of_hundred() < 90;
                let start = self.below(if hot { (size / 20).max(1) } else { size });
                (start, self.length().min(size - start))
            }
        };
        let blocks = Blocks(u32::try_from(blocks).expect("at most io_blocks"));
        BlockRange::new(Lba(start), blocks).expect("inside a device")
    }

    fn length(&mut self) -> u64 {
        1 + self.below(self.io_blocks.into())
    }

    fn one_of_hundred(&mut self) -> u64 {
        self.below(100)
    }

    /// A number below `n` (multiply-shift: no modulo bias worth speaking of).
    fn below(&mut self, n: u64) -> u64 {
        let random = ubs_verify::core::stamp::splitmix64(&mut self.state);
        u64::try_from((u128::from(random) * u128::from(n)) >> 64).expect("below n")
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const MIX: Mix = Mix {
        read_percent: 30,
        zero_percent: 10,
        fua_percent: 10,
        flush_every: 8,
    };

    #[test]
    fn requests_stay_inside_and_a_seed_repeats_them() {
        for place in [Where::Random, Where::Sequential, Where::Hot] {
            let wishes = |seed| {
                let mut pattern = Pattern::new(place, MIX, 77, 8, seed);
                (0..2000).map(|_| pattern.next()).collect::<Vec<_>>()
            };
            assert_eq!(wishes(3), wishes(3));
            let inside = |w: &Wish| {
                w.range()
                    .is_none_or(|r| r.end().0 <= 77 && r.blocks().0 <= 8)
            };
            assert!(wishes(3).iter().all(inside), "{place:?}");
            assert!(wishes(3).contains(&Wish::Flush));
        }
    }

    #[test]
    fn sequential_reads_cover_everything_once() {
        let mix = Mix {
            read_percent: 100,
            flush_every: 0,
            ..MIX
        };
        let mut pattern = Pattern::new(Where::Sequential, mix, 70, 32, 1);
        let starts = [(0, 32), (32, 32), (64, 6), (0, 32)];
        for (start, blocks) in starts {
            let range = BlockRange::new(Lba(start), Blocks(blocks)).unwrap();
            assert_eq!(pattern.next(), Wish::Read(range));
        }
    }
}

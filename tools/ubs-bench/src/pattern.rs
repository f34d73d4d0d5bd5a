//! Which block comes next: seeded, so that two runs do the same.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The kinds of load, named as fio names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "lower")]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rw {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Reads at random places.
    RandRead,
    /// Writes at random places.
    RandWrite,
    /// Both at random places.
    #[value(name = "randrw")]
    #[serde(rename = "randrw")]
    RandMix,
}

impl Rw {
    /// As on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::RandMix => "randrw",
        }
    }

    const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandMix)
    }
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// Endless sequence of places.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    rw: Rw,
    read_percent: u8,
    io_blocks: u64,
    places_count: u64,
    next_place: u64,
    state: u64,
}

impl Pattern {
    /// Requests of `io_blocks` within the first `size_blocks` blocks; `None` if not one fits.
    pub(crate) fn new(
        rw: Rw,
        read_percent: u8,
        io_blocks: u32,
        size_blocks: u64,
        seed: u64,
    ) -> Option<Self> {
        let io_blocks = u64::from(io_blocks);
        let places_count = size_blocks.checked_div(io_blocks)?;
        (places_count > 0).then_some(Self {
            rw,
            read_percent,
            io_blocks,
            places_count,
            next_place: 0,
            state: seed,
        })
    }

    /// Way and first block of the next request.
    pub(crate) fn next(&mut self) -> (Way, u64) {
        let place = if self.rw.is_random() {
            self.below(self.places_count)
        } else {
            let place = self.next_place;
            self.next_place = (place + 1) % self.places_count;
            place
        };
        let way = match self.rw {
            Rw::Read | Rw::RandRead => Way::Read,
            Rw::Write | Rw::RandWrite => Way::Write,
            Rw::RandMix => {
                let reads = self.below(100) < u64::from(self.read_percent);
                if reads { Way::Read } else { Way::Write }
            }
        };
        (way, place * self.io_blocks)
    }

    /// How many requests cover the space once.
    pub(crate) const fn places_count(&self) -> u64 {
        self.places_count
    }

    /// A number below `n` (multiply-shift: no modulo bias worth speaking of).
    fn below(&mut self, n: u64) -> u64 {
        let random = splitmix64(&mut self.state);
        u64::try_from((u128::from(random) * u128::from(n)) >> 64).expect("below n")
    }
}

/// The generator splitmix64: every seed is a good one.
pub(crate) fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod test {
    use super::*;

    fn first(rw: Rw, seed: u64, count: usize) -> Vec<(Way, u64)> {
        let mut pattern = Pattern::new(rw, 70, 4, 403, seed).expect("room for one");
        (0..count).map(|_| pattern.next()).collect()
    }

    #[test]
    fn a_seed_gives_the_same_requests_and_another_seed_others() {
        assert_eq!(first(Rw::RandMix, 7, 50), first(Rw::RandMix, 7, 50));
        assert_ne!(first(Rw::RandMix, 7, 50), first(Rw::RandMix, 8, 50));
    }

    #[test]
    fn requests_are_aligned_and_stay_inside() {
        for rw in [Rw::Read, Rw::RandWrite, Rw::RandMix] {
            for (_, lba) in first(rw, 1, 1000) {
                assert!(lba % 4 == 0 && lba + 4 <= 403, "{rw:?} at {lba}");
            }
        }
    }

    #[test]
    fn sequential_work_covers_everything_once_and_begins_again() {
        let seen = first(Rw::Write, 1, 101);
        let wanted = (0..100).chain([0]).map(|place| (Way::Write, place * 4));
        assert_eq!(seen, wanted.collect::<Vec<_>>());
    }

    #[test]
    fn a_mix_has_the_reads_that_were_asked_for() {
        let seen = first(Rw::RandMix, 3, 10_000);
        let reads = seen.iter().filter(|(way, _)| *way == Way::Read).count();
        assert!((6500..7500).contains(&reads), "{reads}");
    }

    #[test]
    fn no_room_for_one_request_is_said() {
        assert!(Pattern::new(Rw::Read, 0, 32, 31, 1).is_none());
    }
}

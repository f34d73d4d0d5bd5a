//! The extent map of one layer page in memory: four bytes per extent, and more only where an extent is
//! mixed.

use super::format::NO_EXTENT;
use super::format::entry::ExtentChange;
use super::format::page::{ABSENT, PRESENT, ZERO};
use std::collections::BTreeMap;

/// All sixteen blocks in one state.
pub(super) const fn uniform(state: u32) -> u32 {
    state * 0x5555_5555
}

/// A sixteen-bit block mask as two-bit lanes.
pub(super) const fn lanes(mask: u16) -> u32 {
    let mut x = mask as u32;
    x = (x | x << 8) & 0x00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f;
    x = (x | x << 2) & 0x3333_3333;
    (x | x << 1) & 0x5555_5555
}

/// Which blocks are present, as two-bit lanes with the low bit set.
pub(super) const fn present_lanes(states: u32) -> u32 {
    states & 0x5555_5555
}

/// `states` with the blocks of `mask` put into `state`.
pub(super) const fn with_state(states: u32, mask: u16, state: u32) -> u32 {
    let lanes = lanes(mask);
    (states & !(lanes * 3)) | (lanes * state)
}

/// In memory only: no physical extent, all blocks zero.
const ZEROED: u32 = NO_EXTENT - 1;

/// One layer page's extents.
#[derive(Debug)]
pub(super) struct Leaf {
    /// The metadata page it is kept in.
    pub(super) page: u32,
    entries: Box<[u32]>,
    /// States of extents that are neither all absent, all zero nor all present.
    mixed: BTreeMap<u16, u32>,
    /// First writes in flight per extent: it must not be unbound under them.
    pins: BTreeMap<u16, u16>,
    /// Extents with a physical extent.
    bound: u32,
}

impl Leaf {
    pub(super) fn new(page: u32, extents: u32) -> Self {
        Self {
            page,
            entries: vec![NO_EXTENT; extents as usize].into_boxed_slice(),
            mixed: BTreeMap::new(),
            pins: BTreeMap::new(),
            bound: 0,
        }
    }

    pub(super) fn extents(&self) -> u16 {
        u16::try_from(self.entries.len()).expect("at most 1 024")
    }

    pub(super) const fn bound(&self) -> u32 {
        self.bound
    }

    /// Physical extent (or none) and the states of its blocks.
    pub(super) fn get(&self, index: u16) -> (Option<u32>, u32) {
        let entry = self.entries[usize::from(index)];
        let (physical, whole) = match entry {
            NO_EXTENT => (None, uniform(ABSENT)),
            ZEROED => return (None, uniform(ZERO)),
            extent => (Some(extent), uniform(PRESENT)),
        };
        if self.mixed.is_empty() {
            return (physical, whole);
        }
        (physical, self.mixed.get(&index).copied().unwrap_or(whole))
    }

    pub(super) fn set(&mut self, index: u16, physical: Option<u32>, states: u32) {
        assert!(
            physical.is_some() || present_lanes(states) == 0,
            "data without an extent"
        );
        let was_bound = self.get(index).0.is_some();
        let (entry, whole) = match physical {
            None if states == uniform(ZERO) => (ZEROED, states),
            None => (NO_EXTENT, uniform(ABSENT)),
            Some(extent) => (extent, uniform(PRESENT)),
        };
        self.entries[usize::from(index)] = entry;
        if states == whole {
            self.mixed.remove(&index);
        } else {
            self.mixed.insert(index, states);
        }
        self.bound = self.bound + u32::from(physical.is_some()) - u32::from(was_bound);
    }

    pub(super) fn pin(&mut self, index: u16) {
        *self.pins.entry(index).or_insert(0) += 1;
    }

    pub(super) fn unpin(&mut self, index: u16) {
        let pins = self.pins.get_mut(&index).expect("pinned before");
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(&index);
        }
    }

    pub(super) fn is_pinned(&self, index: u16) -> bool {
        !self.pins.is_empty() && self.pins.contains_key(&index)
    }

    /// Replays a change. A change of the physical extent only ever happens when no block is present,
    /// so blocks that are (the page was written later than the record) turn zero.
    pub(super) fn replay(&mut self, index: u16, change: &ExtentChange) {
        let (before, mut states) = self.get(index);
        let physical = (change.physical != NO_EXTENT).then_some(change.physical);
        if before != physical {
            let present = present_lanes(states);
            states = (states & !(present * 3)) | (present * ZERO);
        }
        states = with_state(states, change.zero, ZERO);
        if physical.is_some() {
            states = with_state(states, change.present, PRESENT);
        }
        self.set(index, physical, states);
    }

    /// Physical extents named here.
    pub(super) fn physical(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.iter().copied().filter(|e| *e < ZEROED)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_an_array_of_pairs(ops in prop::collection::vec((0u16..64, any::<Option<u16>>(), any::<u16>(), any::<u16>()), 0..200)) {
            let mut leaf = Leaf::new(0, 64);
            let mut model = [(None, 0u32); 64];
            for (index, physical, present, zero) in ops {
                let physical = physical.map(u32::from);
                let mut states = with_state(0, zero, ZERO);
                if physical.is_some() {
                    states = with_state(states, present, PRESENT);
                }
                leaf.set(index, physical, states);
                model[usize::from(index)] = (physical, states);
            }
            for (index, want) in (0u16..).zip(model) {
                prop_assert_eq!(leaf.get(index), want);
            }
            prop_assert_eq!(leaf.bound() as usize, model.iter().filter(|m| m.0.is_some()).count());
            prop_assert_eq!(leaf.physical().count(), leaf.bound() as usize);
        }

        #[test]
        fn lanes_spread_a_mask(mask: u16) {
            for bit in 0..16 {
                prop_assert_eq!(lanes(mask) >> (2 * bit) & 3, u32::from(mask >> bit & 1));
            }
        }
    }

    #[test]
    fn replaying_a_move_never_leaves_data_of_the_old_extent() {
        let change = |physical, present, zero| ExtentChange {
            nsid: 1,
            generation: 1,
            extent: 0,
            physical,
            present,
            zero,
        };
        let mut leaf = Leaf::new(0, 64);
        leaf.replay(3, &change(7, 0b1000, 0));
        leaf.replay(3, &change(9, 0b0001, 0));
        assert_eq!(leaf.get(3), (Some(9), with_state(PRESENT, 0b1000, ZERO)));
        leaf.replay(3, &change(NO_EXTENT, 0, 0));
        assert_eq!(leaf.get(3), (None, with_state(ZERO, 0b1000, ZERO)));
    }
}

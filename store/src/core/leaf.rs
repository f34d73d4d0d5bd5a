//! The extent map of one part of a shard (64 MiB at most), of all generations: a *cell* is what one
//! generation holds of one extent. The cells of the *base*, the generation that wrote here first, take
//! four bytes per extent, and more only where an extent is mixed; the cells of the others are sorted by
//! extent and generation, so that what an extent has in all generations lies together and a look-up
//! costs the same however many snapshots the volume has.
//!
//! The cells of the others are kept in *cells pages*, each of which holds a range of them.

use super::format::NO_EXTENT;
use super::format::entry::ExtentChange;
use super::format::page::{ABSENT, CellRecord, PAGE_CELLS, PRESENT, ZERO};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

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

/// Which blocks are not absent, as two-bit lanes with the low bit set.
pub(super) const fn known_lanes(states: u32) -> u32 {
    (states | states >> 1) & 0x5555_5555
}

/// The states of an older cell seen through a newer one.
pub(super) const fn seen_through(newer: u32, older: u32) -> u32 {
    newer | (older & !(known_lanes(newer) * 3))
}

/// `states` with the blocks of `mask` put into `state`.
pub(super) const fn with_state(states: u32, mask: u16, state: u32) -> u32 {
    let lanes = lanes(mask);
    (states & !(lanes * 3)) | (lanes * state)
}

/// In memory only: no physical extent, all blocks zero.
const ZEROED: u32 = NO_EXTENT - 1;

/// What one generation holds of one extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    /// The physical extent.
    pub(super) physical: Option<u32>,
    /// Two bits per block.
    pub(super) states: u32,
}

impl Cell {
    /// Nothing: as if the generation had never touched the extent.
    pub(super) const fn is_nothing(self) -> bool {
        self.physical.is_none() && self.states == uniform(ABSENT)
    }
}

/// What two cells become of which the newer inherits the older. If both have an extent, the newer keeps its
/// own, and blocks that it lacks have to be copied.
pub(super) fn inherited(newer: Cell, older: Cell) -> Cell {
    let states = seen_through(newer.states, older.states);
    let inherits = present_lanes(states) != present_lanes(newer.states);
    let physical = newer.physical.or(older.physical.filter(|_| inherits));
    Cell { physical, states }
}

/// Extent in the leaf and generation.
pub(super) type CellKey = (u16, u32);

/// A cells page.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    page: u32,
    cells: u16,
}

/// How many cells a generation has in a leaf, and how many of them have a physical extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LayerCount {
    pub(super) cells: u32,
    pub(super) bound: u32,
}

/// One part of a shard.
#[derive(Debug)]
pub(super) struct Leaf {
    /// The metadata page of the base.
    pub(super) page: u32,
    /// The generation whose cells are in `entries`.
    base: u32,
    entries: Box<[u32]>,
    /// States of extents of the base that are neither all absent, all zero nor all present.
    mixed: BTreeMap<u16, u32>,
    /// Cells of the other generations: physical extent or [`NO_EXTENT`], states.
    others: BTreeMap<CellKey, (u32, u32)>,
    /// Cells pages by the first key they are for; the first is for everything from the start.
    chunks: BTreeMap<CellKey, Chunk>,
    /// First writes in flight per cell: it must not be unbound under them.
    pins: BTreeMap<CellKey, u16>,
    /// Generations that have cells here.
    layers: BTreeMap<u32, LayerCount>,
}

impl Leaf {
    pub(super) fn new(page: u32, extents: u32, base: u32) -> Self {
        Self {
            page,
            base,
            entries: vec![NO_EXTENT; extents as usize].into_boxed_slice(),
            mixed: BTreeMap::new(),
            others: BTreeMap::new(),
            chunks: BTreeMap::new(),
            pins: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }

    /// As its page has it: every cell of the base once, none of them nothing.
    pub(super) fn load(page: u32, extents: u32, base: u32, cells: &[(u16, Cell)]) -> Self {
        let mut leaf = Self::new(page, extents, base);
        let mut count = LayerCount::default();
        for (index, cell) in cells {
            leaf.set_base(*index, *cell);
            count.cells += 1;
            count.bound += u32::from(cell.physical.is_some());
        }
        if count.cells > 0 {
            leaf.layers.insert(base, count);
        }
        leaf
    }

    pub(super) fn extents(&self) -> u16 {
        u16::try_from(self.entries.len()).expect("at most 1 024")
    }

    pub(super) const fn base(&self) -> u32 {
        self.base
    }

    /// Generations that have cells here, with their counts, ascending.
    pub(super) const fn layers(&self) -> &BTreeMap<u32, LayerCount> {
        &self.layers
    }

    /// Extents with a physical extent, of all generations.
    pub(super) fn bound(&self) -> u32 {
        self.layers.values().map(|l| l.bound).sum()
    }

    fn base_cell(&self, index: u16) -> Cell {
        let entry = self.entries[usize::from(index)];
        let (physical, whole) = match entry {
            NO_EXTENT => (None, uniform(ABSENT)),
            ZEROED => (None, uniform(ZERO)),
            extent => (Some(extent), uniform(PRESENT)),
        };
        let states = if self.mixed.is_empty() {
            whole
        } else {
            self.mixed.get(&index).copied().unwrap_or(whole)
        };
        Cell { physical, states }
    }

    /// What a generation holds of an extent.
    pub(super) fn get(&self, (index, generation): CellKey) -> Cell {
        if generation == self.base {
            return self.base_cell(index);
        }
        let found = self.others.get(&(index, generation));
        found.map_or(Cell::default(), |(physical, states)| Cell {
            physical: (*physical != NO_EXTENT).then_some(*physical),
            states: *states,
        })
    }

    /// The cells of an extent of generations up to `upto`, newest first.
    pub(super) fn cells(&self, index: u16, upto: u32) -> impl Iterator<Item = (u32, Cell)> + '_ {
        let cell = |((_, generation), (physical, states)): (&CellKey, &(u32, u32))| {
            let physical = (*physical != NO_EXTENT).then_some(*physical);
            let states = *states;
            (*generation, Cell { physical, states })
        };
        let base = self.base;
        let (above, below) = if self.others.is_empty() {
            (None, None)
        } else {
            let above = (upto > base).then(|| self.others.range((index, base)..=(index, upto)));
            let below = self.others.range((index, 0)..=(index, upto.min(base)));
            (above, Some(below))
        };
        let of_base = (upto >= base).then(|| (base, self.base_cell(index)));
        let above = above.into_iter().flatten().rev().map(cell);
        let below = below.into_iter().flatten().rev().map(cell);
        above
            .chain(of_base.filter(|(_, cell)| !cell.is_nothing()))
            .chain(below)
    }

    /// The newest cell of an extent in a range of generations.
    pub(super) fn newest(
        &self,
        index: u16,
        generations: RangeInclusive<u32>,
    ) -> Option<(u32, Cell)> {
        let newest = self.cells(index, *generations.end()).next();
        newest.filter(|(generation, _)| generations.contains(generation))
    }

    /// The states of an extent's blocks as a range of generations shows them.
    pub(super) fn states(&self, index: u16, generations: &RangeInclusive<u32>) -> u32 {
        let mut states = 0;
        for (generation, cell) in self.cells(index, *generations.end()) {
            if generation < *generations.start() || known_lanes(states) == uniform(PRESENT) {
                break;
            }
            states = seen_through(states, cell.states);
        }
        states
    }

    /// Sets a cell. There must be room for it: see [`has_room`](Self::has_room).
    pub(super) fn set(&mut self, key: CellKey, cell: Cell) {
        let Cell { physical, states } = cell;
        assert!(
            physical.is_some() || present_lanes(states) == 0,
            "data without an extent"
        );
        let before = self.get(key);
        self.count(key.1, before, cell);
        if key.1 == self.base {
            self.set_base(key.0, cell);
        } else if cell.is_nothing() {
            if self.others.remove(&key).is_some() {
                self.chunk_mut(key).cells -= 1;
            }
        } else {
            let value = (physical.unwrap_or(NO_EXTENT), states);
            if self.others.insert(key, value).is_none() {
                let chunk = self.chunk_mut(key);
                chunk.cells += 1;
                assert!(usize::from(chunk.cells) <= PAGE_CELLS, "no room was made");
            }
        }
    }

    fn set_base(&mut self, index: u16, Cell { physical, states }: Cell) {
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
    }

    fn count(&mut self, generation: u32, before: Cell, after: Cell) {
        let layer = self.layers.entry(generation).or_default();
        layer.cells =
            layer.cells + u32::from(!after.is_nothing()) - u32::from(!before.is_nothing());
        layer.bound = layer.bound + u32::from(after.physical.is_some())
            - u32::from(before.physical.is_some());
        if layer.cells == 0 {
            self.layers.remove(&generation);
        }
    }

    fn chunk_mut(&mut self, key: CellKey) -> &mut Chunk {
        let found = self.chunks.range_mut(..=key).next_back();
        found.expect("room was made").1
    }

    /// Whether so many new cells fit at a key without another page.
    pub(super) fn has_room(&self, key: CellKey, cells: usize) -> bool {
        let chunk = self.chunks.range(..=key).next_back();
        key.1 == self.base || chunk.is_some_and(|(_, c)| usize::from(c.cells) + cells <= PAGE_CELLS)
    }

    /// Takes a page for cells around `key`, half of those of the page that is full now. The page that
    /// lost cells, if any, is told.
    pub(super) fn add_page(&mut self, key: CellKey, page: u32) -> Option<u32> {
        let Some((start, full)) = self.chunks.range(..=key).next_back() else {
            self.chunks.insert((0, 0), Chunk { page, cells: 0 });
            return None;
        };
        let (start, full) = (*start, *full);
        let moved = full.cells / 2;
        let kept = full.cells - moved;
        let middle = self.others.range(start..).nth(usize::from(kept));
        let (middle, _) = middle.expect("half of the cells of a full page");
        self.chunks.insert(*middle, Chunk { page, cells: moved });
        self.chunks.get_mut(&start).expect("just seen").cells = kept;
        Some(full.page)
    }

    /// Joins neighbouring cells pages that are half empty: `(page that is free now, page that grew)`.
    pub(super) fn join_pages(&mut self) -> Vec<(u32, Option<u32>)> {
        let mut joined = Vec::new();
        let mut kept: BTreeMap<CellKey, Chunk> = BTreeMap::new();
        for (start, chunk) in std::mem::take(&mut self.chunks) {
            match kept.last_entry() {
                Some(mut last) if usize::from(last.get().cells + chunk.cells) <= PAGE_CELLS / 2 => {
                    last.get_mut().cells += chunk.cells;
                    let grew = (chunk.cells > 0).then(|| last.get().page);
                    joined.push((chunk.page, grew));
                }
                Some(_) | None => {
                    kept.insert(start, chunk);
                }
            }
        }
        if kept.len() == 1 && self.others.is_empty() {
            joined.extend(kept.pop_first().map(|(_, c)| (c.page, None)));
        }
        self.chunks = kept;
        joined
    }

    /// The page that a cell is kept in.
    pub(super) fn page_of(&self, key: CellKey) -> u32 {
        if key.1 == self.base {
            return self.page;
        }
        let chunk = self.chunks.range(..=key).next_back();
        chunk.expect("the cell is here").1.page
    }

    /// All metadata pages.
    pub(super) fn pages(&self) -> impl Iterator<Item = u32> + '_ {
        [self.page].into_iter().chain(self.cells_pages())
    }

    /// The cells pages.
    pub(super) fn cells_pages(&self) -> impl Iterator<Item = u32> + '_ {
        self.chunks.values().map(|c| c.page)
    }

    /// The cells of a cells page, in order.
    pub(super) fn cells_of(&self, page: u32) -> impl Iterator<Item = CellRecord> + '_ {
        let mut chunks = self.chunks.iter().skip_while(move |(_, c)| c.page != page);
        let (start, chunk) = chunks.next().expect("a page of this leaf");
        let cells = self.others.range(*start..).take(chunk.cells.into());
        cells.map(|((index, generation), (physical, states))| CellRecord {
            index: *index,
            generation: *generation,
            physical: *physical,
            states: *states,
        })
    }

    /// Adds a cells page that was read. False if its cells are not after those of the pages before.
    pub(super) fn load_page(&mut self, page: u32, cells: &[CellRecord]) -> bool {
        let Some(first) = cells.first() else {
            return false;
        };
        let key = |c: &CellRecord| (c.index, c.generation);
        let start = if self.chunks.is_empty() {
            (0, 0)
        } else {
            key(first)
        };
        let last = self.others.last_key_value().map(|(k, _)| *k);
        if last.is_some_and(|last| last >= key(first)) {
            return false;
        }
        self.chunks.insert(start, Chunk { page, cells: 0 });
        for cell in cells {
            let physical = (cell.physical != NO_EXTENT).then_some(cell.physical);
            let (states, known) = (cell.states, usize::from(cell.index) < self.entries.len());
            let cell_now = Cell { physical, states };
            if !known || cell.generation == self.base || cell_now.is_nothing() {
                return false;
            }
            self.set(key(cell), cell_now);
        }
        true
    }

    pub(super) fn pin(&mut self, key: CellKey) {
        *self.pins.entry(key).or_insert(0) += 1;
    }

    pub(super) fn unpin(&mut self, key: CellKey) {
        let pins = self.pins.get_mut(&key).expect("pinned before");
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(&key);
        }
    }

    pub(super) fn is_pinned(&self, key: CellKey) -> bool {
        !self.pins.is_empty() && self.pins.contains_key(&key)
    }

    /// Replays a change. The physical extent only ever changes when no block is present, and each that was
    /// is named by then, as zero or as written again. So where another block is, the page was written later
    /// than the record, and has all that the record says: it stays as it is. What is present there need not
    /// be in any later record, and what hides it otherwise may be another generation's.
    pub(super) fn replay(&mut self, key: CellKey, change: &ExtentChange) {
        let Cell {
            physical: before,
            mut states,
        } = self.get(key);
        let physical = (change.physical != NO_EXTENT).then_some(change.physical);
        if before != physical {
            let present = present_lanes(states);
            if present & !lanes(change.present | change.zero) != 0 {
                return;
            }
            states = (states & !(present * 3)) | (present * ZERO);
        }
        states = with_state(states, change.zero, ZERO);
        if physical.is_some() {
            states = with_state(states, change.present, PRESENT);
        }
        self.set(key, Cell { physical, states });
    }

    /// The older of two cells goes over to the newer: the physical extent that nothing names any more.
    /// `Err` if data would be lost: the newer has an extent of its own and lacks blocks of the older.
    pub(super) fn merge(&mut self, index: u16, from: u32, to: u32) -> Result<Option<u32>, ()> {
        let (older, newer) = (self.get((index, from)), self.get((index, to)));
        if older.is_nothing() {
            return Ok(None);
        }
        let merged = inherited(newer, older);
        let lacks = present_lanes(merged.states) != present_lanes(newer.states);
        if newer.physical.is_some() && lacks {
            return Err(());
        }
        self.set((index, from), Cell::default());
        self.set((index, to), merged);
        Ok(older.physical.filter(|_| merged.physical != older.physical))
    }

    /// Extents of which a generation has a cell, ascending.
    pub(super) fn extents_with(&self, generation: u32) -> Vec<u16> {
        if generation == self.base {
            let all = 0..self.extents();
            return all.filter(|i| !self.base_cell(*i).is_nothing()).collect();
        }
        let keys = self.others.keys().filter(|(_, g)| *g == generation);
        keys.map(|(index, _)| *index).collect()
    }

    /// Extents of which both generations have a cell, ascending.
    pub(super) fn extents_of_both(&self, a: u32, b: u32) -> Vec<u16> {
        // The base's are the dearer ones to list.
        let (listed, other) = if a == self.base { (b, a) } else { (a, b) };
        let mut both = self.extents_with(listed);
        both.retain(|index| !self.get((*index, other)).is_nothing());
        both
    }

    /// Makes the cells of one generation another's, if one of them is the base: the result is the base.
    /// No extent may have both.
    pub(super) fn absorb(&mut self, from: u32, to: u32) -> bool {
        let listed = match self.base {
            base if base == from => to,
            base if base == to => from,
            _ => return false,
        };
        let moved: Vec<_> = self.extents_with(listed);
        let moved: Vec<_> = moved
            .into_iter()
            .map(|i| (i, self.get((i, listed))))
            .collect();
        for (index, _) in &moved {
            self.set((*index, listed), Cell::default());
        }
        if self.base == from {
            self.base = to;
            if let Some(count) = self.layers.remove(&from) {
                self.layers.insert(to, count);
            }
        }
        for (index, cell) in moved {
            assert!(
                self.base_cell(index).is_nothing(),
                "two cells of one extent"
            );
            self.set((index, to), cell);
        }
        true
    }

    pub(super) fn has_pins(&self, generation: u32) -> bool {
        self.pins.keys().any(|(_, g)| *g == generation)
    }

    /// Physical extents named here.
    pub(super) fn physical(&self) -> impl Iterator<Item = u32> + '_ {
        let base = self.entries.iter().copied().filter(|e| *e < ZEROED);
        let others = self.others.values().map(|(physical, _)| *physical);
        base.chain(others.filter(|e| *e != NO_EXTENT))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u32 = 1000;

    /// A leaf of 64 extents that was first written in generation 5, with page numbers from 1000 on.
    fn leaf() -> Leaf {
        Leaf::new(PAGE, 64, 5)
    }

    fn set(leaf: &mut Leaf, key: CellKey, cell: Cell, next_page: &mut u32) {
        if !leaf.has_room(key, 1) {
            *next_page += 1;
            leaf.add_page(key, *next_page);
        }
        leaf.set(key, cell);
    }

    fn cell() -> impl Strategy<Value = Cell> {
        (any::<Option<u16>>(), any::<u16>(), any::<u16>()).prop_map(|(physical, present, zero)| {
            let physical = physical.map(u32::from);
            let mut states = with_state(0, zero, ZERO);
            if physical.is_some() {
                states = with_state(states, present, PRESENT);
            }
            Cell { physical, states }
        })
    }

    proptest! {
        #[test]
        fn it_is_a_map_from_extent_and_generation_to_cells(
            ops in prop::collection::vec((0u16..64, 1u32..30, cell(), any::<bool>()), 0..1500),
            upto in 0u32..31, from in 1u32..31
        ) {
            let (mut leaf, mut model, mut next_page) = (leaf(), BTreeMap::new(), PAGE);
            for (index, generation, cell, gone) in ops {
                let cell = if gone { Cell::default() } else { cell };
                set(&mut leaf, (index, generation), cell, &mut next_page);
                model.insert((index, generation), cell);
                if gone && index == 0 {
                    leaf.join_pages();
                }
            }
            model.retain(|_, cell| !cell.is_nothing());
            for index in 0..64 {
                let want: Vec<_> = model
                    .range((index, 0)..=(index, upto))
                    .rev()
                    .map(|((_, generation), cell)| (*generation, *cell))
                    .collect();
                prop_assert!(leaf.cells(index, upto).eq(want.iter().copied()));
                let newest = want.first().filter(|(g, _)| *g >= from).copied();
                prop_assert_eq!(leaf.newest(index, from..=upto), newest);
                let seen = want.iter().filter(|(g, _)| *g >= from);
                let states = seen.fold(0, |s, (_, cell)| seen_through(s, cell.states));
                prop_assert_eq!(leaf.states(index, &(from..=upto)), states);
            }
            let bound = model.values().filter(|c| c.physical.is_some()).count();
            prop_assert_eq!(leaf.bound() as usize, bound);
            prop_assert_eq!(leaf.physical().count(), bound);
            let cells: u32 = leaf.layers().values().map(|l| l.cells).sum();
            prop_assert_eq!(cells as usize, model.len());
            // Its pages hold it.
            let mut again = Leaf::new(PAGE, 64, 5);
            for index in 0..64 {
                again.set((index, 5), leaf.get((index, 5)));
            }
            let pages: Vec<_> = leaf.cells_pages().collect();
            for page in pages {
                let records: Vec<_> = leaf.cells_of(page).collect();
                prop_assert!(records.len() <= PAGE_CELLS);
                prop_assert!(records.is_empty() || again.load_page(page, &records));
            }
            for index in 0..64 {
                prop_assert!(again.cells(index, 99).eq(leaf.cells(index, 99)));
            }
        }

        #[test]
        fn lanes_spread_a_mask(mask: u16) {
            for bit in 0..16 {
                prop_assert_eq!(lanes(mask) >> (2 * bit) & 3, u32::from(mask >> bit & 1));
            }
        }
    }

    #[test]
    fn half_empty_pages_are_joined_and_the_last_one_goes() {
        let (mut leaf, mut next_page) = (leaf(), PAGE);
        let full = Cell {
            physical: Some(1),
            states: uniform(PRESENT),
        };
        for i in 0..1500u32 {
            let key = (u16::try_from(i % 64).unwrap(), 6 + i / 64);
            set(&mut leaf, key, full, &mut next_page);
        }
        assert!(leaf.cells_pages().count() >= 3);
        for i in 0..1500u32 {
            let key = (u16::try_from(i % 64).unwrap(), 6 + i / 64);
            if i % 10 != 0 {
                leaf.set(key, Cell::default());
            }
        }
        assert_eq!(leaf.join_pages().len() + 1, (next_page - PAGE) as usize);
        assert_eq!(leaf.cells_pages().count(), 1);
        (0..1500u32).step_by(10).for_each(|i| {
            leaf.set(
                (u16::try_from(i % 64).unwrap(), 6 + i / 64),
                Cell::default(),
            );
        });
        assert_eq!(leaf.join_pages().len(), 1);
        assert_eq!(leaf.pages().collect::<Vec<_>>(), [PAGE]);
    }

    #[test]
    fn replaying_a_move_never_leaves_data_of_the_old_extent() {
        let change = |physical, present, zero| ExtentChange {
            nsid: 1,
            generation: 5,
            extent: 0,
            physical,
            present,
            zero,
        };
        let mut leaf = leaf();
        leaf.replay((3, 5), &change(7, 0b1000, 0));
        leaf.replay((3, 5), &change(9, 0b0001, 0b1000));
        let cell = |physical, states| Cell { physical, states };
        let moved = cell(Some(9), with_state(PRESENT, 0b1000, ZERO));
        assert_eq!(leaf.get((3, 5)), moved);
        // An older record, met by a page that is ahead of it.
        leaf.replay((3, 5), &change(NO_EXTENT, 0, 0b1000));
        assert_eq!(leaf.get((3, 5)), moved);
        leaf.replay((3, 5), &change(NO_EXTENT, 0, 0b0001));
        let gone = cell(None, with_state(ZERO, 0b1000, ZERO));
        assert_eq!(leaf.get((3, 5)), gone);
    }
}

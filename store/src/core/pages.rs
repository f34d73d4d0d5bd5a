//! The metadata pages: what each holds, where it is on the medium, which must be written.

use super::format::directory::PagePlace;
use std::collections::BTreeSet;

/// What a metadata page is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageOf {
    /// A slice's description.
    Slice(u32),
    /// A leaf of a slice: its base.
    Leaf(u32, u32),
    /// Cells of a leaf.
    Cells(u32, u32),
    /// A window of a slice's marks.
    Marks(u32, u32),
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    of: Option<PageOf>,
    place: PagePlace,
}

/// The table of metadata pages.
#[derive(Debug)]
pub(super) struct Pages {
    slots: Vec<Slot>,
    free: BTreeSet<u32>,
    dirty: BTreeSet<u32>,
    /// Kept for slices and marks: a store full of layers must still take marks and stamps.
    reserve: usize,
}

impl Pages {
    pub(super) fn new(count: u32) -> Self {
        Self {
            slots: vec![
                Slot {
                    of: None,
                    place: PagePlace::Free
                };
                count as usize
            ],
            free: (0..count).collect(),
            dirty: BTreeSet::new(),
            reserve: reserve(count),
        }
    }

    /// There are so many pages from now on; the new ones are free.
    pub(super) fn grow(&mut self, count: u32) {
        let before = self.count();
        let slot = Slot {
            of: None,
            place: PagePlace::Free,
        };
        self.slots.resize(count as usize, slot);
        self.free.append(&mut (before..count).collect());
        self.reserve = reserve(count);
    }

    /// A page read during open: it holds `of` and lies at `place`.
    pub(super) fn load(&mut self, page: u32, of: PageOf, place: PagePlace) {
        assert!(self.free.remove(&page), "page {page} loaded twice");
        self.slots[page as usize] = Slot {
            of: Some(of),
            place,
        };
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many pages leaves may still take.
    pub(super) fn free_for_leaves(&self) -> usize {
        self.free.len().saturating_sub(self.reserve)
    }

    /// The page that is allocated next.
    pub(super) fn next_free(&self) -> Option<u32> {
        self.free.first().copied()
    }

    pub(super) fn allocate(&mut self, of: PageOf) -> Option<u32> {
        let page = self.free.pop_first()?;
        self.slots[page as usize].of = Some(of);
        self.dirty.insert(page);
        Some(page)
    }

    pub(super) fn release(&mut self, page: u32) {
        assert!(
            self.slots[page as usize].of.take().is_some(),
            "page {page} freed twice"
        );
        self.free.insert(page);
        self.dirty.insert(page);
    }

    pub(super) fn touch(&mut self, page: u32) {
        assert!(
            self.slots[page as usize].of.is_some(),
            "page {page} is free"
        );
        self.dirty.insert(page);
    }

    /// The pages a checkpoint that starts now must write or free.
    pub(super) fn dirty(&self) -> Vec<u32> {
        self.dirty.iter().copied().collect()
    }

    /// Takes a page for writing: clean from now on, unless touched again.
    pub(super) fn capture(&mut self, page: u32) -> Option<PageOf> {
        self.dirty.remove(&page);
        self.slots[page as usize].of
    }

    pub(super) fn place(&self, page: u32) -> PagePlace {
        self.slots[page as usize].place
    }

    pub(super) fn set_place(&mut self, page: u32, place: PagePlace) {
        self.slots[page as usize].place = place;
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("made from a u32")
    }

    pub(super) fn used(&self) -> u32 {
        self.count() - u32::try_from(self.free.len()).expect("part of the count")
    }
}

fn reserve(count: u32) -> usize {
    (count as usize / 16).max(8)
}

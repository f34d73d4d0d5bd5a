//! What the space of a slice is for. Told from the map alone, a bounded part at a time, in whole extents as
//! they will be when all merges are done: so the figures say what comes back, and what a deletion frees.
//!
//! Of the cells of an extent, those that one generation owns become one ([`inherited`]). If that happens
//! to all of them, as if no snapshot were left, what remains is *live*; what the snapshots keep beyond it is
//! theirs; what disappears when each generation merges its own is *reclaimable*.

use super::Core;
use super::facts::{SliceSpace, StoreFault};
use super::generations::Generations;
use super::io::{Answer, CommandId, Effect, Outbox};
use super::leaf::{Cell, Leaf, inherited};
use super::slice::Slice;
use crate::limits::SPACE_CELLS_MAX;
use shardmap::units::{EXTENT_BYTES, Generation, Nsid};
use std::collections::BTreeMap;

/// Extents.
#[derive(Debug, Default)]
struct Account {
    live: u64,
    snapshots: u64,
    reclaimable: u64,
    /// By snapshot: what only it keeps.
    exclusive: BTreeMap<u32, u64>,
}

/// What one generation will have of an extent, when it has merged its cells.
#[derive(Clone, Copy, Debug)]
struct Merged {
    owner: u32,
    cell: Cell,
}

impl Account {
    /// All extents of a leaf have at most one cell each.
    fn add_single_layer(&mut self, leaf: &Leaf) {
        self.live += u64::from(leaf.bound());
    }

    /// The cells of one extent, newest first. Says how many there are.
    fn add(&mut self, generations: &Generations, cells: impl Iterator<Item = (u32, Cell)>) -> u64 {
        let (mut count, mut bound, mut kept) = (0, 0, 0);
        let mut all: Option<Cell> = None;
        let (mut newer, mut current): (Option<Merged>, Option<Merged>) = (None, None);
        for (generation, cell) in cells {
            count += 1;
            bound += u64::from(cell.physical.is_some());
            all = Some(all.map_or(cell, |newer| inherited(newer, cell)));
            let owner = generations.heir(generation);
            match &mut current {
                Some(merged) if merged.owner == owner => merged.cell = inherited(merged.cell, cell),
                Some(_) | None => {
                    if let Some(merged) = current {
                        kept += self.close(generations, newer, merged);
                        newer = Some(merged);
                    }
                    current = Some(Merged { owner, cell });
                }
            }
        }
        if let Some(merged) = current {
            kept += self.close(generations, newer, merged);
        }
        let live = u64::from(all.is_some_and(|cell| cell.physical.is_some()));
        self.live += live;
        self.snapshots += kept - live;
        self.reclaimable += bound - kept;
        count
    }

    /// All cells of one owner are known: whether it keeps an extent, and whether that goes with it.
    fn close(&mut self, generations: &Generations, newer: Option<Merged>, merged: Merged) -> u64 {
        let Merged { owner, cell } = merged;
        if cell.physical.is_none() {
            return 0;
        }
        // What is dropped goes to the next generation, which keeps it if it has nothing there itself.
        let next = newer.filter(|n| n.owner == generations.heir(owner + 1));
        let frees = next.is_some_and(|next| {
            next.cell.physical.is_some() || inherited(next.cell, cell).physical.is_none()
        });
        if frees {
            *self.exclusive.entry(owner).or_default() += 1;
        }
        1
    }

    fn told(self, next: Option<u64>) -> SliceSpace {
        let bytes = |extents: u64| extents * u64::from(EXTENT_BYTES);
        let exclusive = self.exclusive.into_iter();
        SliceSpace {
            live_bytes: bytes(self.live),
            snapshots_bytes: bytes(self.snapshots),
            reclaimable_bytes: bytes(self.reclaimable),
            exclusive: exclusive
                .map(|(generation, extents)| (Generation(generation), bytes(extents)))
                .collect(),
            next,
        }
    }
}

impl Slice {
    /// From an extent of the volume on, until about so many cells were looked at.
    fn space(&self, from: u64, cells_max: u64) -> SliceSpace {
        let mut account = Account::default();
        let per_leaf = u64::from(self.leaf_extents());
        let Ok(first) = u32::try_from(from / per_leaf) else {
            return account.told(None);
        };
        let mut looked_at = 0;
        for (number, leaf) in self.leaves.range(first..) {
            let start = self.extent_number(*number, 0);
            let skipped = u16::try_from(from.saturating_sub(start)).expect("in the leaf");
            if looked_at >= cells_max {
                return account.told(Some(start));
            }
            if leaf.layers().len() < 2 && skipped == 0 {
                account.add_single_layer(leaf);
                looked_at += 1;
                continue;
            }
            for index in skipped..leaf.extents() {
                if looked_at >= cells_max {
                    return account.told(Some(start + u64::from(index)));
                }
                looked_at += 1 + account.add(&self.generations, leaf.cells(index, u32::MAX));
            }
        }
        account.told(None)
    }
}

impl Core {
    pub(super) fn read_space(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        from: u64,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self.slices.get(&nsid.0).filter(|s| s.removing.is_none());
        let slice = slice.ok_or(StoreFault::UnknownSlice { nsid })?;
        let space = slice.space(from, SPACE_CELLS_MAX);
        out.push(Effect::Answer {
            command: id,
            result: Ok(Answer::Space(space)),
        });
        Ok(())
    }
}

#[cfg(test)]
impl Core {
    /// In parts of so many cells.
    pub(super) fn space_in_parts(&self, nsid: u32, cells_max: u64) -> Vec<SliceSpace> {
        let slice = &self.slices[&nsid];
        let mut parts = vec![slice.space(0, cells_max)];
        while let Some(next) = parts.last().and_then(|part| part.next) {
            parts.push(slice.space(next, cells_max));
        }
        parts
    }
}

#[cfg(test)]
mod test {
    use super::super::format::page::{PRESENT, ZERO};
    use super::super::leaf::{lanes, uniform, with_state};
    use super::*;

    fn cell(physical: u32, present: u16) -> Cell {
        Cell {
            physical: Some(physical),
            states: lanes(present) * PRESENT,
        }
    }

    /// Live, snapshots, reclaimable, and what each snapshot alone keeps: in extents, of the cells of one.
    fn account(snapshots: &[u32], cells: &[(u32, Cell)]) -> ([u64; 3], Vec<(u32, u64)>) {
        let snapshots = snapshots.iter().map(|g| (*g, false)).collect();
        let generations = Generations::load(9, snapshots);
        let mut account = Account::default();
        account.add(&generations, cells.iter().copied());
        let exclusive = account.exclusive.into_iter().collect();
        (
            [account.live, account.snapshots, account.reclaimable],
            exclusive,
        )
    }

    #[test]
    fn an_extent_is_counted_once_and_for_what_it_will_be() {
        let zero = Cell {
            physical: None,
            states: uniform(ZERO),
        };
        // The head shows what a snapshot wrote: nothing comes back with that.
        assert_eq!(account(&[3], &[(3, cell(1, 1))]), ([1, 0, 0], vec![]));
        // The head has blocks of its own there: those of the snapshot that it lacks would be copied.
        assert_eq!(
            account(&[3], &[(9, cell(2, 1)), (3, cell(1, 0xffff))]),
            ([1, 1, 0], vec![(3, 1)])
        );
        // Zeroed in the head.
        assert_eq!(
            account(&[3], &[(9, zero), (3, cell(1, 1))]),
            ([0, 1, 0], vec![(3, 1)])
        );
        // Two snapshots show it, and the head does not: it goes with the second only.
        assert_eq!(
            account(&[3, 5], &[(9, zero), (3, cell(1, 1))]),
            ([0, 1, 0], vec![])
        );
        // A snapshot that was dropped: its blocks are hidden in part, or as a whole.
        assert_eq!(
            account(&[], &[(9, cell(2, 1)), (3, cell(1, 0xffff))]),
            ([1, 0, 1], vec![])
        );
        let mixed = Cell {
            physical: None,
            states: with_state(0, 1, ZERO),
        };
        assert_eq!(
            account(&[], &[(9, mixed), (3, cell(1, 1))]),
            ([0, 0, 1], vec![])
        );
        assert_eq!(
            account(&[], &[(9, mixed), (3, cell(1, 3))]),
            ([1, 0, 0], vec![])
        );
    }
}

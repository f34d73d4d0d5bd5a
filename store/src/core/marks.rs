//! Write-intent marks: durable before the first data write to a region (protocol §4), cleared when the
//! client says that all replicas agree and nobody has written since (§8).

use super::facts::StoreFault;
use super::format::entry::{Entry, runs_of};
use super::format::page::MARK_REGIONS;
use super::io::{CommandId, Outbox};
use super::journal::Ticket;
use super::pages::PageOf;
use super::slice::Slice;
use super::{Core, Waiter};
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{Generation, Nsid};
use std::collections::btree_map;

impl Slice {
    pub(super) fn leave_region(&mut self, region: u32) {
        let note = self.regions.get_mut(&region).expect("noted at admission");
        note.in_flight -= 1;
    }

    /// Whether Stable may unmark the region.
    fn is_settled(&self, region: u32, before: u64) -> bool {
        self.regions
            .get(&region)
            .is_none_or(|n| n.in_flight == 0 && (n.last_tick < before || !stands(Mechanism::Tick)))
    }
}

impl Core {
    /// Notes a write to regions and makes sure they are marked: `Some` says what to wait for. Fails
    /// without a trace if there is no page to keep the marks in.
    pub(super) fn require_marks(
        &mut self,
        nsid: u32,
        regions: &[u32],
    ) -> Result<Option<Ticket>, StoreFault> {
        let wait = if stands(Mechanism::Mark) {
            self.mark(nsid, regions.iter().copied())?
        } else {
            None
        };
        let slice = self.slices.get_mut(&nsid).expect("admitted");
        for region in regions {
            let note = slice.regions.entry(*region).or_default();
            note.last_tick = slice.tick;
            note.in_flight += 1;
        }
        Ok(wait)
    }

    /// Marks regions that are not: `Some` says what to wait for.
    pub(super) fn mark(
        &mut self,
        nsid: u32,
        regions: impl Iterator<Item = u32>,
    ) -> Result<Option<Ticket>, StoreFault> {
        let slice = self.slices.get_mut(&nsid).expect("admitted");
        let mut wait = None;
        let mut fresh = Vec::new();
        for region in regions {
            if slice.marks.contains(region) {
                continue;
            }
            match slice.marking.get(&region) {
                Some(ticket) => wait = wait.max(Some(*ticket)),
                None => fresh.push(region),
            }
        }
        if fresh.is_empty() {
            return Ok(wait);
        }
        for region in &fresh {
            let window = region / MARK_REGIONS;
            match slice.mark_pages.entry(window) {
                btree_map::Entry::Occupied(page) => self.pages.touch(*page.get()),
                btree_map::Entry::Vacant(entry) => {
                    let page = self.pages.allocate(PageOf::Marks(nsid, window));
                    let pages = self.pages.count();
                    entry.insert(page.ok_or(StoreFault::NoPages { pages })?);
                }
            }
        }
        let mut ticket = Ticket(0);
        let head = Generation(slice.generations.head());
        for runs in runs_of(fresh.iter().copied()) {
            ticket = self.journal.append(&Entry::Marked(Nsid(nsid), head, runs));
        }
        slice.marking.extend(fresh.iter().map(|r| (*r, ticket)));
        self.counts.marks += fresh.len() as u64;
        self.wait_for(
            ticket,
            Waiter::Marked {
                nsid,
                regions: fresh,
            },
        );
        Ok(Some(ticket))
    }

    pub(super) fn on_marked(&mut self, nsid: u32, regions: &[u32]) {
        let Some(slice) = self.slices.get_mut(&nsid) else {
            return;
        };
        for region in regions {
            let ticket = slice.marking.remove(region);
            assert!(ticket.is_some_and(|t| self.journal.is_durable(t)));
            slice.marks.insert(*region);
        }
    }

    /// Begins a write or zero, at once or when its marks are durable.
    pub(super) fn begin_after(&mut self, id: CommandId, wait: Option<Ticket>, out: &mut Outbox) {
        match wait {
            Some(ticket) if !self.journal.is_durable(ticket) => {
                self.wait_for(ticket, Waiter::Begin(id));
            }
            Some(_) | None => self.begin(id, out),
        }
    }

    /// Regions that may be unmarked: last written before `before` and not being written; and if too many
    /// marks would stay, the coldest of those last written before the tick.
    pub(super) fn settled_regions(
        &self,
        nsid: u32,
        before: u64,
        (tick, keep_max): (u64, u32),
    ) -> Vec<u32> {
        let slice = &self.slices[&nsid];
        let (mut settled, hot): (Vec<u32>, Vec<u32>) = slice
            .marks
            .iter()
            .partition(|r| slice.is_settled(*r, before));
        let excess = hot.len().saturating_sub(keep_max as usize);
        if excess > 0 {
            let mut older: Vec<(u64, u32)> = hot
                .into_iter()
                .filter(|r| slice.is_settled(*r, tick))
                .map(|r| (slice.regions.get(&r).map_or(0, |n| n.last_tick), r))
                .collect();
            older.sort_unstable();
            settled.extend(older.into_iter().take(excess).map(|(_, region)| region));
            settled.sort_unstable();
        }
        settled
    }

    /// Unmarks those of the regions, ascending, that are still marked and have not been written since:
    /// what to wait for, and how many marks are left.
    pub(super) fn unmark(
        &mut self,
        nsid: u32,
        mut settled: Vec<u32>,
        tick: u64,
    ) -> (Option<Ticket>, u64) {
        let slice = self.slices.get_mut(&nsid).expect("admitted");
        settled.retain(|r| slice.marks.contains(*r) && slice.is_settled(*r, tick));
        self.counts.unmarked += settled.len() as u64;
        for region in &settled {
            slice.marks.remove(*region);
            slice.regions.remove(region);
        }
        // Notes of regions that never got a mark here (a zero that changed nothing) go too.
        slice.regions.retain(|r, n| {
            n.in_flight > 0 || slice.marks.contains(*r) || slice.marking.contains_key(r)
        });
        let mut windows: Vec<u32> = settled.iter().map(|r| r / MARK_REGIONS).collect();
        windows.dedup();
        for window in windows {
            self.pages.touch(slice.mark_pages[&window]);
        }
        let left = slice.marks.len() + slice.marking.len() as u64;
        let mut ticket = None;
        let head = Generation(slice.generations.head());
        for runs in runs_of(settled) {
            ticket = Some(
                self.journal
                    .append(&Entry::Unmarked(Nsid(nsid), head, runs)),
            );
        }
        (ticket, left)
    }
}

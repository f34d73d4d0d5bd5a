//! Slices come and go; stamps, ticks, marks and presence are asked and told.

use super::checksums::Then;
use super::facts::{SliceSpec, Stamp, StoreFault};
use super::format::entry::{Entry, spec_error};
use super::io::{Answer, CommandId, Effect, Outbox};
use super::leaf::{Leaf, known_lanes};
use super::pages::PageOf;
use super::slice::Slice;
use super::{Core, Kind, Waiter};
use crate::limits::{MARKS_PER_CALL_MAX, PRESENCE_REGIONS_MAX, SLICES_MAX};
use roaring::RoaringBitmap;
use shardmap::units::{
    EXTENT_BLOCKS, Generation, Lba, Nsid, REGION_BLOCKS, RegionIndex, WriteTick,
};
use smallvec::SmallVec;
use std::ops::RangeInclusive;

impl Core {
    pub(super) fn create_slice(
        &mut self,
        id: CommandId,
        spec: SliceSpec,
        incomplete: bool,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let nsid = spec.nsid;
        let incomplete = incomplete && !self.slices.contains_key(&nsid.0);
        if let Some(why) = spec_error(&spec) {
            return Err(StoreFault::BadSpec { nsid, why });
        }
        if let Some(slice) = self.slices.get_mut(&nsid.0) {
            let grown = SliceSpec {
                size_blocks: spec.size_blocks,
                ..slice.spec
            };
            if slice.removing.is_some()
                || grown != spec
                || slice.spec.size_blocks > spec.size_blocks
            {
                return Err(StoreFault::SliceExists { nsid });
            }
            if slice.spec == spec {
                // Its entry may still be on its way.
                match self.journal.newest_pending() {
                    Some(ticket) => self.wait_for(ticket, Waiter::Answer(id, Answer::Done)),
                    None => out.push(Effect::Answer {
                        command: id,
                        result: Ok(Answer::Done),
                    }),
                }
                return Ok(());
            }
            slice.spec = spec;
            self.pages.touch(slice.page);
        } else {
            self.check_parent(&spec)?;
            let pages = self.pages.count();
            if self.slices.len() >= SLICES_MAX {
                return Err(StoreFault::NoPages { pages });
            }
            let page = self.pages.allocate(PageOf::Slice(nsid.0));
            let page = page.ok_or(StoreFault::NoPages { pages })?;
            let mut slice = Slice::new(spec, page, self.first_tick());
            slice.incomplete = incomplete;
            self.slices.insert(nsid.0, slice);
        }
        let ticket = self.journal.append(&Entry::Slice { spec, incomplete });
        self.wait_for(ticket, Waiter::Answer(id, Answer::Done));
        Ok(())
    }

    /// Ticks of different openings of the store never meet: the high half counts superblock writes.
    pub(super) const fn first_tick(&self) -> u64 {
        self.sb.update << 32
    }

    pub(super) fn remove_slice(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let Some(slice) = self.slices.get(&nsid.0) else {
            match self.journal.newest_pending() {
                Some(ticket) => self.wait_for(ticket, Waiter::Answer(id, Answer::Done)),
                None => out.push(Effect::Answer {
                    command: id,
                    result: Ok(Answer::Done),
                }),
            }
            return Ok(());
        };
        if slice.removing.is_some() {
            return Err(StoreFault::UnknownSlice { nsid });
        }
        self.check_not_shown(nsid, None)?;
        let slice = self.slices.get_mut(&nsid.0).expect("just seen");
        slice.session = None;
        if let Some(opening) = slice.opening.take() {
            let result = Err(StoreFault::UnknownSlice { nsid });
            out.push(Effect::Answer {
                command: opening.command,
                result,
            });
        }
        let turn = slice.drain.next_turn();
        slice.removing = Some((id, turn));
        self.on_drained(nsid.0, out);
        Ok(())
    }

    /// Nothing of the slice is in flight: its space goes, once that is durable.
    pub(super) fn drop_slice(&mut self, nsid: Nsid, command: CommandId, out: &mut Outbox) {
        let mut slice = self.slices.remove(&nsid.0).expect("being removed");
        let mut extents = Vec::new();
        for command in slice.changes.take_waiting() {
            let result = Err(StoreFault::UnknownSlice { nsid });
            out.push(Effect::Answer { command, result });
        }
        for leaf in slice.leaves.values() {
            extents.extend(leaf.physical());
            leaf.pages().for_each(|page| self.pages.release(page));
        }
        slice
            .mark_pages
            .values()
            .for_each(|page| self.pages.release(*page));
        self.pages.release(slice.page);
        self.flusher.forget_slice(nsid.0);
        let ticket = self.journal.append(&Entry::SliceRemoved(nsid));
        self.reclaim.waiting += extents.len() as u64;
        self.counts.extents_freed += extents.len() as u64;
        self.wait_for(ticket, Waiter::Freed(extents));
        self.wait_for(ticket, Waiter::Answer(command, Answer::Done));
    }

    pub(super) fn read_state(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let state = self.slice(nsid).ok_or(StoreFault::UnknownSlice { nsid })?;
        out.push(Effect::Answer {
            command: id,
            result: Ok(Answer::State(state)),
        });
        Ok(())
    }

    /// Admits a command that waits for its journal entry only.
    fn wait_for_entry(&mut self, id: CommandId, nsid: Nsid, entry: &Entry) {
        let slice = self.slices.get(&nsid.0).expect("admitted");
        self.pages.touch(slice.page);
        let ticket = self.journal.append(entry);
        self.activate(id, nsid.0, Kind::Entry(Answer::Done));
        self.wait_for(ticket, Waiter::Finish(id));
    }

    pub(super) fn stamp(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        stamp: Stamp,
        complete: bool,
    ) -> Result<(), StoreFault> {
        let slice = self.slices.get_mut(&nsid.0).expect("admitted");
        slice.stamp = stamp;
        if complete {
            slice.incomplete = false;
            // The flag first: a slice that is complete but not stamped is merely removed by its client.
            self.journal.append(&Entry::Incomplete(nsid, false));
        }
        self.wait_for_entry(id, nsid, &Entry::Stamp(nsid, stamp));
        Ok(())
    }

    pub(super) fn set_incomplete(&mut self, id: CommandId, nsid: Nsid) -> Result<(), StoreFault> {
        self.check_not_shown(nsid, None)?;
        self.slices.get_mut(&nsid.0).expect("admitted").incomplete = true;
        self.wait_for_entry(id, nsid, &Entry::Incomplete(nsid, true));
        Ok(())
    }

    pub(super) fn tick(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self.slices.get_mut(&nsid.0).expect("admitted");
        slice.tick += 1;
        let result = Ok(Answer::Tick(WriteTick(slice.tick)));
        out.push(Effect::Answer {
            command: id,
            result,
        });
        Ok(())
    }

    pub(super) fn stable(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        (tick, idle_ticks, keep_max): (WriteTick, u32, u32),
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = &self.slices[&nsid.0];
        let first = slice.session.map_or(self.first_tick(), |s| s.first_tick);
        if tick.0 < first || tick.0 > slice.tick {
            return Err(StoreFault::UnknownTick { nsid, asked: tick });
        }
        let idle_since = tick.0.saturating_sub(idle_ticks.into());
        let keep_max = if keep_max == 0 { u32::MAX } else { keep_max };
        let regions = self.settled_regions(nsid.0, idle_since, (tick.0, keep_max));
        let tick = tick.0;
        self.activate(id, nsid.0, Kind::Stable { regions, tick });
        self.begin_stable(id, out);
        Ok(())
    }

    /// What has been written in the regions is durable with its checksums before the marks go.
    fn begin_stable(&mut self, id: CommandId, out: &mut Outbox) {
        let active = self.active[id.0 as usize].as_ref().expect("just admitted");
        let Kind::Stable { regions, .. } = &active.kind else {
            unreachable!("admitted as such")
        };
        match &mut self.checksums {
            Some(checksums) if !regions.is_empty() => {
                let slice = &self.slices[&active.nsid];
                let extents = regions.iter().flat_map(|r| slice.physical_of(*r));
                checksums.start_batch(extents, true, Then::Unmark(id));
            }
            Some(_) | None => self.finish_stable(id, out),
        }
    }

    /// Unmarks what has not been written again meanwhile.
    pub(super) fn finish_stable(&mut self, id: CommandId, out: &mut Outbox) {
        let active = self.active_mut(id);
        let nsid = active.nsid;
        let Kind::Stable { regions, tick } = &mut active.kind else {
            unreachable!("admitted as such")
        };
        let (regions, tick) = (std::mem::take(regions), *tick);
        let (ticket, marks_left) = self.unmark(nsid, regions, tick);
        let answer = Answer::Stable { marks_left };
        match ticket {
            None => self.finish(id, Ok(answer), out),
            Some(ticket) => {
                self.active_mut(id).kind = Kind::Entry(answer);
                self.wait_for(ticket, Waiter::Finish(id));
            }
        }
    }

    pub(super) fn add_marks(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        regions: &RoaringBitmap,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self.slices.get_mut(&nsid.0).expect("admitted");
        let size_blocks = slice.spec.size_blocks;
        let too_many = regions.len() > MARKS_PER_CALL_MAX as u64;
        let past = |r: u32| u64::from(r) * u64::from(REGION_BLOCKS) >= size_blocks;
        if too_many || regions.max().is_some_and(past) {
            let max = u32::try_from(MARKS_PER_CALL_MAX).expect("small");
            let blocks = u32::try_from(regions.len()).unwrap_or(u32::MAX);
            return Err(StoreFault::TooLong { blocks, max });
        }
        let tick = slice.tick;
        for region in regions {
            slice.regions.entry(region).or_default().last_tick = tick;
        }
        match self.mark(nsid.0, regions.iter())? {
            None => out.push(Effect::Answer {
                command: id,
                result: Ok(Answer::Done),
            }),
            Some(ticket) => {
                self.activate(id, nsid.0, Kind::Entry(Answer::Done));
                self.wait_for(ticket, Waiter::Finish(id));
            }
        }
        Ok(())
    }

    pub(super) fn read_marks(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        from: RegionIndex,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = &self.slices[&nsid.0];
        let mut all = slice.marks.clone();
        all.extend(slice.marking.keys().copied());
        all.remove_range(..from.0);
        let regions: RoaringBitmap = all.iter().take(MARKS_PER_CALL_MAX).collect();
        let next = all
            .select(u32::try_from(MARKS_PER_CALL_MAX).expect("small"))
            .map(RegionIndex);
        out.push(Effect::Answer {
            command: id,
            result: Ok(Answer::Marks { regions, next }),
        });
        Ok(())
    }

    /// What the generations after one up to another have written; what the parents have, too, if it is
    /// `shown` and there is no earlier generation.
    pub(super) fn diff(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        (after, upto, shown): (Generation, Generation, bool),
        window: (RegionIndex, u32),
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = self.slices.get(&nsid.0);
        let slice = slice.ok_or(StoreFault::UnknownSlice { nsid })?;
        let last = slice.check_readable(upto)?;
        if after.0 != 0 {
            slice.check_readable(after)?;
        }
        let own = (slice, after.0 + 1..=last);
        let mut layers: Layers<'_> = [own].into_iter().collect();
        if shown && after.0 == 0 {
            let parents = self.lineage(nsid.0, last).into_iter().skip(1);
            layers.extend(parents.map(|(slice, generation)| (slice, 1..=generation)));
        }
        let answer = read_cells(&layers, window)?;
        out.push(Effect::Answer {
            command: id,
            result: Ok(answer),
        });
        Ok(())
    }
}

/// Generations of slices, of which the later ones show through the earlier.
type Layers<'a> = SmallVec<[(&'a Slice, RangeInclusive<u32>); 2]>;

/// Which blocks generations have written or zeroed.
fn read_cells(
    layers: &[(&Slice, RangeInclusive<u32>)],
    (from, regions): (RegionIndex, u32),
) -> Result<Answer, StoreFault> {
    let (slice, _) = layers.first().expect("the slice itself");
    if regions == 0 || regions > PRESENCE_REGIONS_MAX {
        return Err(StoreFault::TooLong {
            blocks: regions,
            max: PRESENCE_REGIONS_MAX,
        });
    }
    let start = u64::from(from.0) * u64::from(REGION_BLOCKS);
    let end = start + u64::from(regions) * u64::from(REGION_BLOCKS);
    let size_blocks = slice.spec.size_blocks;
    let mut blocks = RoaringBitmap::new();
    let mut at = start;
    while at < end.min(size_blocks) {
        let (leaf, index) = slice.locate(Lba(at));
        let known = layers.iter().fold(0, |known, (slice, generations)| {
            let leaf = slice.leaves.get(&leaf);
            known | leaf.map_or(0, |l| known_lanes(l.states(index, generations)))
        });
        let relative = u32::try_from(at - start).expect("at most 16 regions");
        if known != 0 {
            let known = (0..EXTENT_BLOCKS).filter(|b| known >> (2 * b) & 1 != 0);
            blocks.extend(known.map(|b| relative + b));
        }
        at += u64::from(EXTENT_BLOCKS);
    }
    let (leaf, _) = slice.locate(Lba(end));
    let later = layers.iter().filter_map(|(slice, generations)| {
        let known = |leaf: &Leaf| leaf.layers().range(generations.clone()).next().is_some();
        let mut later = slice.leaves.range(leaf..).filter(|(_, leaf)| known(leaf));
        later.next().map(|(number, _)| *number)
    });
    let next = later.min().map(|next| {
        let lba = (u64::from(next) * u64::from(slice.leaf_blocks())).max(end);
        RegionIndex(u32::try_from(lba / u64::from(REGION_BLOCKS)).expect("in the volume"))
    });
    Ok(Answer::Presence { blocks, next })
}

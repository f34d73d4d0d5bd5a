//! Checkpoints: dirty pages go to their alternate place, then the directory, then everything is flushed,
//! then the superblock makes it count and the journal's tail moves. Until then the old places and the
//! old tail stay valid.
//!
//! Pages are captured one by one while IO goes on. A captured page may be ahead of the journal: what it
//! names was written before the capture and is made durable by the flush before the superblock. It may
//! also be ahead of records that replay applies to it again; see `Leaf::replay`.

use super::Core;
use super::format::directory::{self, PAGES_PER_DIRECTORY_PAGE, PagePlace};
use super::format::page::{MARK_REGIONS, PageImage, PageKind};
use super::io::{Effect, IoKind, Outbox};
use super::journal::Tail;
use super::leaf::CellKey;
use super::pages::PageOf;
use super::{Phase, format};
use crate::limits::CHECKPOINT_WRITES_MAX;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Pages,
    Directory,
    Flush,
    Superblock,
}

/// A running checkpoint.
#[derive(Debug)]
pub(super) struct Checkpoint {
    stage: Stage,
    /// Where replay will begin once it counts.
    tail: Tail,
    pages: BTreeSet<u32>,
    /// Images of pages that were captured before their turn, and where they go.
    ready: VecDeque<(u64, Vec<u8>)>,
    directory: VecDeque<u32>,
    /// Directory pages that were written to their alternate place.
    flips: Vec<u32>,
    /// Where pages will be.
    staged: BTreeMap<u32, PagePlace>,
    in_flight: usize,
}

impl Core {
    pub(super) fn start_checkpoint_if_due(&mut self, out: &mut Outbox) {
        let busy = self.checkpoint.is_some() || self.growing.is_some();
        let busy = busy || self.merge.is_unsettled();
        if busy || !self.journal.is_filling() {
            return;
        }
        self.checkpoint = Some(Checkpoint {
            stage: Stage::Pages,
            tail: self.journal.head(),
            pages: self.pages.dirty().into_iter().collect(),
            ready: VecDeque::new(),
            directory: VecDeque::new(),
            flips: Vec::new(),
            staged: BTreeMap::new(),
            in_flight: 0,
        });
        self.continue_checkpoint(out);
    }

    pub(super) fn on_checkpoint_io(&mut self, out: &mut Outbox) {
        let checkpoint = self.checkpoint.as_mut().expect("it asked for the write");
        checkpoint.in_flight -= 1;
        if matches!(self.phase, Phase::Serving | Phase::Stopping(_)) {
            self.continue_checkpoint(out);
        }
    }

    fn continue_checkpoint(&mut self, out: &mut Outbox) {
        loop {
            let checkpoint = self.checkpoint.as_mut().expect("running");
            match checkpoint.stage {
                Stage::Pages => self.write_pages(out),
                Stage::Directory => self.write_directory(out),
                Stage::Flush | Stage::Superblock => {}
            }
            let checkpoint = self.checkpoint.as_mut().expect("running");
            if checkpoint.in_flight > 0 {
                return;
            }
            checkpoint.stage = match checkpoint.stage {
                Stage::Pages => {
                    checkpoint.directory = directory_pages_of(&checkpoint.staged);
                    Stage::Directory
                }
                Stage::Directory if self.config.volatile_cache => {
                    checkpoint.in_flight += 1;
                    let io = self.ios.start(IoKind::Checkpoint);
                    out.push(Effect::Flush { io });
                    Stage::Flush
                }
                Stage::Directory | Stage::Flush => Stage::Superblock,
                Stage::Superblock => unreachable!("ends by finish_checkpoint"),
            };
            if checkpoint.stage == Stage::Superblock {
                // Otherwise when the superblock that is being written is.
                if !self.failed.is_writing() {
                    self.switch(out);
                }
                return;
            }
        }
    }

    fn write_pages(&mut self, out: &mut Outbox) {
        while let Some((offset, bytes)) = self.next_page() {
            self.write_checkpoint(offset, bytes, out);
        }
    }

    /// The next page to write, if another write may be started.
    fn next_page(&mut self) -> Option<(u64, Vec<u8>)> {
        let mut checkpoint = self.checkpoint.as_mut().expect("running");
        while checkpoint.in_flight < CHECKPOINT_WRITES_MAX {
            if let Some(ready) = checkpoint.ready.pop_front() {
                return Some(ready);
            }
            let page = checkpoint.pages.pop_first()?;
            let captured = self.capture(page);
            if captured.is_some() {
                return captured;
            }
            checkpoint = self.checkpoint.as_mut().expect("running");
        }
        None
    }

    /// A page as it is now is what the checkpoint has of it.
    fn capture(&mut self, page: u32) -> Option<(u64, Vec<u8>)> {
        let of = self.pages.capture(page);
        let (place, captured) = match of {
            None => (PagePlace::Free, None),
            Some(of) => {
                let place = match self.pages.place(page) {
                    PagePlace::At(current) => 1 - current,
                    PagePlace::Free => 0,
                };
                let offset = self.sb.geometry.page_offset(page, place);
                let bytes = self.image(page, of).seal();
                (PagePlace::At(place), Some((offset, bytes)))
            }
        };
        let checkpoint = self.checkpoint.as_mut().expect("running");
        checkpoint.staged.insert(page, place);
        captured
    }

    /// Makes room for a cell. What moves to another page thereby must not be in both or in neither for
    /// a running checkpoint: it takes the pages as they were before.
    pub(super) fn make_room(&mut self, nsid: u32, number: u32, key: CellKey) {
        let leaf = &self.slices[&nsid].leaves[&number];
        if leaf.has_room(key, 1) {
            return;
        }
        let page = self.pages.next_free().expect("counted before");
        let affected: Vec<u32> = leaf.pages().chain([page]).collect();
        for page in affected {
            let listed = |c: &mut Checkpoint| c.pages.remove(&page);
            if self.checkpoint.as_mut().is_some_and(listed)
                && let Some(captured) = self.capture(page)
            {
                let checkpoint = self.checkpoint.as_mut().expect("running");
                checkpoint.ready.push_back(captured);
            }
        }
        let allocated = self.pages.allocate(PageOf::Cells(nsid, number));
        assert_eq!(allocated, Some(page));
        let slice = self.slices.get_mut(&nsid).expect("has the leaf");
        let leaf = slice.leaves.get_mut(&number).expect("is there");
        if let Some(split) = leaf.add_page(key, page) {
            self.pages.touch(split);
        }
    }

    fn write_directory(&mut self, out: &mut Outbox) {
        while let Some(index) = self.next_directory() {
            let checkpoint = self.checkpoint.as_mut().expect("running");
            checkpoint.flips.push(index);
            let first = index * PAGES_PER_DIRECTORY_PAGE;
            let end = (first + PAGES_PER_DIRECTORY_PAGE).min(self.pages.count());
            let (staged, pages) = (&checkpoint.staged, &self.pages);
            let places =
                (first..end).map(|p| staged.get(&p).copied().unwrap_or_else(|| pages.place(p)));
            let (store, number) = (self.sb.store, self.sb.checkpoint + 1);
            let bytes = directory::encode(store, index, number, places);
            let place = 1 - self.sb.directory_place(index);
            let offset = self.sb.geometry.directory_page_offset(index, place);
            self.write_checkpoint(offset, bytes, out);
        }
    }

    /// The next directory page to write, if another write may be started.
    fn next_directory(&mut self) -> Option<u32> {
        let checkpoint = self.checkpoint.as_mut().expect("running");
        if checkpoint.in_flight >= CHECKPOINT_WRITES_MAX {
            return None;
        }
        checkpoint.directory.pop_front()
    }

    fn write_checkpoint(&mut self, offset_bytes: u64, bytes: Vec<u8>, out: &mut Outbox) {
        self.checkpoint.as_mut().expect("running").in_flight += 1;
        let io = self.ios.start(IoKind::Checkpoint);
        out.push(Effect::WriteMeta {
            io,
            offset_bytes,
            bytes,
            durable: false,
        });
    }

    /// Whether it writes the superblock, or is about to.
    pub(super) fn is_switching(&self) -> bool {
        let checkpoint = self.checkpoint.as_ref();
        checkpoint.is_some_and(|c| c.stage == Stage::Superblock)
    }

    /// All of it is durable: the superblock makes it count.
    pub(super) fn switch(&mut self, out: &mut Outbox) {
        let checkpoint = self.checkpoint.as_ref().expect("running");
        self.sb.checkpoint += 1;
        self.sb.tail_sequence = checkpoint.tail.sequence;
        self.sb.tail_offset = checkpoint.tail.offset;
        for index in &checkpoint.flips {
            self.sb.flip_directory(*index);
        }
        self.write_superblock(out);
    }

    pub(super) fn finish_checkpoint(&mut self, out: &mut Outbox) {
        let checkpoint = self.checkpoint.take().expect("it wrote the superblock");
        assert_eq!(checkpoint.stage, Stage::Superblock);
        for (page, place) in checkpoint.staged {
            self.pages.set_place(page, place);
        }
        self.journal.move_tail(checkpoint.tail);
        self.counts.checkpoints += 1;
        self.merge.ready = true;
        self.retry_parked(out);
    }

    fn image(&self, page: u32, of: PageOf) -> PageImage {
        let (store, number) = (self.sb.store, self.sb.checkpoint + 1);
        let of_slice = match of {
            PageOf::Slice(nsid)
            | PageOf::Leaf(nsid, _)
            | PageOf::Cells(nsid, _)
            | PageOf::Marks(nsid, _) => nsid,
        };
        let slice = &self.slices[&of_slice];
        match of {
            PageOf::Slice(_) => {
                let generations = slice.generations_on_medium();
                let head = slice.page_head(PageKind::Slice, generations.head(), (0, 0));
                let mut image = PageImage::new(store, page, number, &head);
                for (slot, (snapshot, pending)) in generations.snapshots().iter().enumerate() {
                    image.set_snapshot(slot, *snapshot, *pending);
                }
                image
            }
            PageOf::Leaf(_, leaf_number) => {
                let leaf = &slice.leaves[&leaf_number];
                let part = slice.shard_and_part(leaf_number);
                let head = slice.page_head(PageKind::Layer, leaf.base(), part);
                let mut image = PageImage::new(store, page, number, &head);
                for index in 0..leaf.extents() {
                    let cell = leaf.get((index, leaf.base()));
                    let physical = cell.physical.unwrap_or(format::NO_EXTENT);
                    image.set_extent(usize::from(index), physical, cell.states);
                }
                image
            }
            PageOf::Cells(_, leaf_number) => {
                let leaf = &slice.leaves[&leaf_number];
                let part = slice.shard_and_part(leaf_number);
                let head = slice.page_head(PageKind::Cells, 0, part);
                let mut image = PageImage::new(store, page, number, &head);
                for (slot, cell) in leaf.cells_of(page).enumerate() {
                    image.set_cell(slot, &cell);
                }
                image
            }
            PageOf::Marks(_, window) => {
                let generation = slice.generations.head();
                let head = slice.page_head(PageKind::Marks, generation, (0, window));
                let mut image = PageImage::new(store, page, number, &head);
                let pending = slice.marking.keys().copied();
                for region in slice.marks.iter().chain(pending) {
                    if region / MARK_REGIONS == window {
                        image.set_mark(region % MARK_REGIONS);
                    }
                }
                image
            }
        }
    }
}

fn directory_pages_of(staged: &BTreeMap<u32, PagePlace>) -> VecDeque<u32> {
    let mut pages: VecDeque<u32> = VecDeque::new();
    for page in staged.keys() {
        let index = page / PAGES_PER_DIRECTORY_PAGE;
        if pages.back() != Some(&index) {
            pages.push_back(index);
        }
    }
    pages
}

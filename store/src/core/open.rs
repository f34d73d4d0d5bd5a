//! Opening: superblocks, directory, pages, journal; then, unless the last stop was clean, a flush (what
//! was read may sit in a cache), and a superblock that says "in use" and counts this life. Nothing is
//! served and nothing is written before all of it has been checked. `fsck` is this code without the
//! last step.

use super::facts::{OpenFacts, OpenFault};
use super::format::directory::{self, PAGES_PER_DIRECTORY_PAGE, PagePlace};
use super::format::geometry::{DEVICE_BYTES_MIN, Geometry, JOURNAL_OFFSET, SUPERBLOCK_OFFSETS};
use super::format::page::{CellRecord, MARK_REGIONS, PAGE_BYTES, PageKind, PageView};
use super::format::superblock::{SUPERBLOCK_BYTES, Superblock};
use super::format::{Corrupt, NO_EXTENT, VERSION, tracts};
use super::generations::Generations;
use super::io::{Effect, IoId, IoKind, IoTable, Outbox};
use super::journal::{Journal, Tail};
use super::leaf::{Cell, Leaf};
use super::pages::{PageOf, Pages};
use super::replay::{JournalReader, Next};
use super::slice::Slice;
use super::space::Space;
use super::verify::checksums_of;
use super::{Core, CoreConfig, CoreCounts, Drain, Flusher, Phase, Reclaim};
use crate::limits::{META_READ_BYTES_MAX, META_READS_MAX};
use roaring::RoaringBitmap;
use shardmap::units::{BLOCK_BYTES, Epoch, Incarnation};
use std::collections::{BTreeMap, VecDeque};

/// What a read of the open is about.
#[derive(Clone, Copy, Debug)]
enum What {
    Superblock(usize),
    Tracts,
    Directory(u32),
    /// So many consecutive pages, all in the same place.
    Pages {
        first: u32,
        place: u8,
    },
    Journal,
}

#[derive(Clone, Copy, Debug)]
struct MetaRead {
    what: What,
    offset_bytes: u64,
    len_bytes: u32,
}

/// Number and cells of a cells page.
type CellsPage = (u32, Vec<CellRecord>);

/// State of an open in progress.
#[derive(Debug, Default)]
pub(super) struct Opening {
    queue: VecDeque<MetaRead>,
    in_flight: BTreeMap<u64, MetaRead>,
    next_number: u64,
    supers: [Vec<u8>; 2],
    places: BTreeMap<u32, PagePlace>,
    /// Leaves, cells and marks until their slices are known.
    leaves: BTreeMap<(u32, u32), Leaf>,
    cells: BTreeMap<(u32, u32), Vec<CellsPage>>,
    /// Pages of slices that are not there: they must turn out to be removed.
    orphans: BTreeMap<u32, Vec<u32>>,
    marks: Vec<(u32, u32, u32, RoaringBitmap)>,
    pages_read: u64,
    replayed: u64,
    journal: Option<JournalReader>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Superblocks,
    Tracts,
    Directory,
    Pages,
    Journal,
}

impl Core {
    /// A core that will open a store when it gets [`Event::Start`](super::io::Event::Start).
    pub fn new(config: CoreConfig) -> Self {
        // Replaced by what the superblock says.
        let nothing = Geometry::plan(DEVICE_BYTES_MIN, 1 << 20, false).expect("constant");
        let tail = Tail {
            sequence: 1,
            offset: 0,
        };
        Self {
            config,
            phase: Phase::Opening(Box::default()),
            sb: Superblock::new([0; 16], [0; 16], nothing.clone()),
            sb_next: 0,
            was_clean: false,
            slices: BTreeMap::new(),
            space: Space::new(nothing.extents()),
            pages: Pages::new(nothing.pages()),
            journal: Journal::new(nothing.journal_bytes, tail, tail, 0),
            waiters: BTreeMap::new(),
            waiter_count: 0,
            flusher: Flusher::default(),
            reclaim: Reclaim::default(),
            checkpoint: None,
            growing: None,
            merge: super::merge::Merge::default(),
            checksums: None,
            failed: super::failed::Failed::default(),
            healing: None,
            checksums_stopped: false,
            ios: IoTable::default(),
            data: Drain::default(),
            active: Vec::new(),
            active_count: 0,
            parked: VecDeque::new(),
            counts: CoreCounts::default(),
        }
    }

    fn opening(&mut self) -> &mut Opening {
        match &mut self.phase {
            Phase::Opening(opening) => opening,
            Phase::Serving | Phase::Stopping(_) | Phase::Poisoned(_) | Phase::Over => {
                unreachable!("only while opening")
            }
        }
    }

    pub(super) fn start_open(&mut self, out: &mut Outbox) {
        let len_bytes = u32::try_from(SUPERBLOCK_BYTES).expect("constant");
        for (copy, offset_bytes) in SUPERBLOCK_OFFSETS.into_iter().enumerate() {
            let read = MetaRead {
                what: What::Superblock(copy),
                offset_bytes,
                len_bytes,
            };
            self.opening().queue.push_back(read);
        }
        self.start_reads(out);
    }

    fn start_reads(&mut self, out: &mut Outbox) {
        let Phase::Opening(opening) = &mut self.phase else {
            return;
        };
        while opening.in_flight.len() < META_READS_MAX {
            let Some(read) = opening.queue.pop_front() else {
                return;
            };
            let number = opening.next_number;
            opening.next_number += 1;
            opening.in_flight.insert(number, read);
            let io = self.ios.start(IoKind::Open(number));
            let MetaRead {
                offset_bytes,
                len_bytes,
                ..
            } = read;
            out.push(Effect::ReadMeta {
                io,
                offset_bytes,
                len_bytes,
            });
        }
    }

    pub(super) fn on_meta_read(&mut self, io: IoId, bytes: &[u8], out: &mut Outbox) {
        let kind = self.ios.end(io);
        if let IoKind::ChecksumsRead(home) = kind {
            return self.on_checksums_read(home, Ok(bytes), out);
        }
        let IoKind::Open(number) = kind else {
            unreachable!("metadata is read by open only")
        };
        let Phase::Opening(opening) = &mut self.phase else {
            return;
        };
        let read = opening.in_flight.remove(&number).expect("asked for");
        assert_eq!(bytes.len(), read.len_bytes as usize);
        let result = match read.what {
            What::Superblock(copy) => {
                opening.supers[copy] = bytes.to_vec();
                Ok(())
            }
            What::Tracts => self.load_tracts(bytes),
            What::Directory(index) => self.load_directory(index, bytes),
            What::Pages { first, place } => self.load_pages(first, place, bytes),
            What::Journal => self.replay_chunk(bytes),
        };
        let result = result.and_then(|()| self.next_stage(out));
        if let Err(fault) = result {
            return self.fail_open(fault, out);
        }
        self.start_reads(out);
    }

    /// Whatever was asked for has arrived: on to the next stage.
    fn next_stage(&mut self, out: &mut Outbox) -> Result<(), OpenFault> {
        loop {
            let opening = self.opening();
            if !opening.queue.is_empty() || !opening.in_flight.is_empty() {
                return Ok(());
            }
            match opening.stage {
                Stage::Superblocks => {
                    self.choose_superblock()?;
                    self.opening().stage = Stage::Tracts;
                }
                Stage::Tracts => {
                    self.queue_directory();
                    self.opening().stage = Stage::Directory;
                }
                Stage::Directory => {
                    self.queue_pages();
                    self.opening().stage = Stage::Pages;
                }
                Stage::Pages => {
                    self.attach_pages()?;
                    let tail = Tail {
                        sequence: self.sb.tail_sequence,
                        offset: self.sb.tail_offset,
                    };
                    let ring_bytes = self.sb.geometry.journal_bytes;
                    let reader = JournalReader::new(ring_bytes, tail, self.sb.store);
                    self.opening().journal = Some(reader);
                    self.opening().stage = Stage::Journal;
                    self.queue_journal();
                }
                Stage::Journal => {
                    self.finish_replay()?;
                    self.rebuild_space()?;
                    self.doubt_marked();
                    self.take_over(out);
                    return Ok(());
                }
            }
        }
    }

    fn choose_superblock(&mut self) -> Result<(), OpenFault> {
        let path = self.config.path.clone();
        let [a, b] = std::mem::take(&mut self.opening().supers);
        let (sb, copy) = Superblock::choose(&a, &b).map_err(|corrupt| {
            let version = Superblock::peek_version(&a).max(Superblock::peek_version(&b));
            match corrupt {
                Corrupt::Magic => OpenFault::NotAStore { path: path.clone() },
                Corrupt::Unknown => {
                    let found = version.unwrap_or(0);
                    OpenFault::Version {
                        path: path.clone(),
                        found,
                        known: VERSION,
                    }
                }
                Corrupt::Checksum
                | Corrupt::OtherStore
                | Corrupt::Misplaced
                | Corrupt::Value
                | Corrupt::Length => OpenFault::SuperblockDamaged { path: path.clone() },
            }
        })?;
        if let Some(wanted) = self.config.cluster.filter(|c| *c != sb.cluster) {
            let (found, wanted) = (
                uuid::Uuid::from_bytes(sb.cluster),
                uuid::Uuid::from_bytes(wanted),
            );
            return Err(OpenFault::OtherCluster {
                path,
                found,
                wanted,
            });
        }
        let (now_bytes, then_bytes) = (self.config.device_bytes, sb.geometry.device_bytes);
        if now_bytes < then_bytes {
            return Err(OpenFault::Shrank {
                path,
                now_bytes,
                then_bytes,
            });
        }
        self.sb_next = 1 - copy;
        self.was_clean = sb.clean;
        if sb.growths > 0 {
            let offset_bytes = tracts::table_offset(sb.growths);
            let what = What::Tracts;
            let read = MetaRead {
                what,
                offset_bytes,
                len_bytes: BLOCK_BYTES,
            };
            self.opening().queue.push_back(read);
        }
        self.sb = sb;
        Ok(())
    }

    fn load_tracts(&mut self, bytes: &[u8]) -> Result<(), OpenFault> {
        let growths = self.sb.growths.into();
        let complete = self.sb.complete(bytes);
        complete.map_err(|corrupt| self.damaged("tract table of growth", growths, corrupt))
    }

    /// The region table is known.
    fn queue_directory(&mut self) {
        let geometry = &self.sb.geometry;
        self.space = Space::new(geometry.extents());
        self.pages = Pages::new(geometry.pages());
        self.checksums = checksums_of(geometry);
        self.failed = super::failed::Failed::load(&self.sb.failed);
        for index in 0..geometry.directory_pages() {
            let place = self.sb.directory_place(index);
            let read = MetaRead {
                what: What::Directory(index),
                offset_bytes: self.sb.geometry.directory_page_offset(index, place),
                len_bytes: BLOCK_BYTES,
            };
            self.opening().queue.push_back(read);
        }
    }

    fn damaged(&self, what: &'static str, index: u64, corrupt: Corrupt) -> OpenFault {
        OpenFault::Damaged {
            path: self.config.path.clone(),
            what,
            index,
            why: corrupt.why(),
        }
    }

    fn load_directory(&mut self, index: u32, bytes: &[u8]) -> Result<(), OpenFault> {
        let places = directory::decode(bytes, self.sb.store, index)
            .map_err(|corrupt| self.damaged("directory page", index.into(), corrupt))?;
        let (count, first) = (self.sb.geometry.pages(), index * PAGES_PER_DIRECTORY_PAGE);
        for (page, place) in (first..).zip(places).filter(|(_, p)| *p != PagePlace::Free) {
            if page >= count {
                return Err(self.damaged("directory page", index.into(), Corrupt::Value));
            }
            self.opening().places.insert(page, place);
        }
        Ok(())
    }

    /// Reads of pages that lie side by side are joined.
    fn queue_pages(&mut self) {
        let geometry = self.sb.geometry.clone();
        let opening = self.opening();
        for (page, place) in &opening.places {
            let PagePlace::At(place) = *place else {
                continue;
            };
            let offset_bytes = geometry.page_offset(*page, place);
            if let Some(last) = opening.queue.back_mut()
                && last.offset_bytes + u64::from(last.len_bytes) == offset_bytes
                && matches!(last.what, What::Pages { place: p, .. } if p == place)
                && last.len_bytes + PAGE_BYTES <= META_READ_BYTES_MAX
            {
                last.len_bytes += PAGE_BYTES;
                continue;
            }
            let what = What::Pages {
                first: *page,
                place,
            };
            opening.queue.push_back(MetaRead {
                what,
                offset_bytes,
                len_bytes: PAGE_BYTES,
            });
        }
    }

    fn load_pages(&mut self, first: u32, place: u8, bytes: &[u8]) -> Result<(), OpenFault> {
        for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE_BYTES as usize)) {
            self.load_page(page, place, bytes)
                .map_err(|corrupt| self.damaged("metadata page", page.into(), corrupt))?;
        }
        Ok(())
    }

    fn load_page(&mut self, page: u32, place: u8, bytes: &[u8]) -> Result<(), Corrupt> {
        let view = PageView::open(bytes, self.sb.store, page)?;
        let head = &view.head;
        let nsid = head.spec.nsid.0;
        let mut slice = Slice::new(head.spec, page, 0);
        let of = match head.kind {
            PageKind::Slice => {
                slice.epoch = Epoch(head.epoch);
                slice.stamp = head.stamp;
                slice.incomplete = head.incomplete;
                let snapshots = view.snapshots()?.into_iter().collect();
                slice.generations = Generations::load(head.generation, snapshots);
                if self.slices.insert(nsid, slice).is_some() {
                    return Err(Corrupt::Value);
                }
                PageOf::Slice(nsid)
            }
            PageKind::Layer => {
                let number = slice.leaf_of(head.shard, head.part).ok_or(Corrupt::Value)?;
                let extents = self.sb.geometry.extents();
                let leaf = load_leaf(&view, page, slice.leaf_extents(), extents)?;
                if self.opening().leaves.insert((nsid, number), leaf).is_some() {
                    return Err(Corrupt::Value);
                }
                PageOf::Leaf(nsid, number)
            }
            PageKind::Cells => {
                let number = slice.leaf_of(head.shard, head.part).ok_or(Corrupt::Value)?;
                let extents = self.sb.geometry.extents();
                let exists = |c: &CellRecord| c.physical == NO_EXTENT || c.physical < extents;
                let cells = view.cells()?;
                if !cells.iter().all(exists) {
                    return Err(Corrupt::Value);
                }
                let pages = self.opening().cells.entry((nsid, number)).or_default();
                pages.push((page, cells));
                PageOf::Cells(nsid, number)
            }
            PageKind::Marks => {
                let base = head.part.checked_mul(MARK_REGIONS).ok_or(Corrupt::Value)?;
                let regions = view.marks().map(|r| base + r).collect();
                self.opening().marks.push((nsid, head.part, page, regions));
                PageOf::Marks(nsid, head.part)
            }
        };
        self.opening().pages_read += 1;
        self.pages.load(page, of, PagePlace::At(place));
        Ok(())
    }

    fn attach_pages(&mut self) -> Result<(), OpenFault> {
        let leaves = std::mem::take(&mut self.opening().leaves);
        for ((nsid, number), leaf) in leaves {
            let page = leaf.page;
            match self.slices.get_mut(&nsid) {
                Some(slice) => {
                    slice.leaves.insert(number, leaf);
                }
                None => self.orphan(nsid, page),
            }
        }
        for ((nsid, number), pages) in std::mem::take(&mut self.opening().cells) {
            self.attach_cells(nsid, number, pages)?;
        }
        for (nsid, window, page, regions) in std::mem::take(&mut self.opening().marks) {
            match self.slices.get_mut(&nsid) {
                Some(slice) => {
                    slice.marks |= regions;
                    slice.mark_pages.insert(window, page);
                }
                None => self.orphan(nsid, page),
            }
        }
        Ok(())
    }

    fn attach_cells(
        &mut self,
        nsid: u32,
        number: u32,
        mut pages: Vec<CellsPage>,
    ) -> Result<(), OpenFault> {
        // Empty ones were taken for cells that never became durable.
        let (full, empty): (Vec<_>, Vec<_>) = pages.drain(..).partition(|(_, c)| !c.is_empty());
        empty.iter().for_each(|(page, _)| self.pages.release(*page));
        pages = full;
        pages.sort_by_key(|(_, cells)| (cells[0].index, cells[0].generation));
        for (page, cells) in pages {
            let Some(slice) = self.slices.get_mut(&nsid) else {
                self.orphan(nsid, page);
                continue;
            };
            let leaf = slice.leaves.get_mut(&number);
            if !leaf.is_some_and(|leaf| leaf.load_page(page, &cells)) {
                return Err(self.damaged("metadata page", page.into(), Corrupt::Value));
            }
        }
        Ok(())
    }

    fn orphan(&mut self, nsid: u32, page: u32) {
        let orphans = &mut self.opening().orphans;
        orphans.entry(nsid).or_default().push(page);
    }

    /// The slice was removed while the checkpoint was written that has these pages.
    pub(super) fn release_orphans(&mut self, nsid: u32) {
        let orphans = self.opening().orphans.remove(&nsid);
        for page in orphans.into_iter().flatten() {
            self.pages.release(page);
        }
    }

    /// The next chunk of the ring, from the tail all the way round.
    fn queue_journal(&mut self) {
        let ring = self.sb.geometry.journal_bytes;
        let reader = self.opening().journal.as_ref().expect("made before");
        let Some((offset, len_bytes)) = reader.wanted(META_READ_BYTES_MAX) else {
            return;
        };
        assert!(offset + u64::from(len_bytes) <= ring);
        let read = MetaRead {
            what: What::Journal,
            offset_bytes: JOURNAL_OFFSET + offset,
            len_bytes,
        };
        self.opening().queue.push_back(read);
    }

    fn replay_chunk(&mut self, bytes: &[u8]) -> Result<(), OpenFault> {
        let mut reader = self.opening().journal.take().expect("reading the journal");
        reader.feed(bytes);
        loop {
            match reader.next_record() {
                Next::Record { sequence, entries } => {
                    self.opening().replayed += 1;
                    self.replay_entries(&entries)
                        .map_err(|corrupt| self.damaged("journal record", sequence, corrupt))?;
                }
                Next::More => break,
                Next::Damaged { sequence, proof } => {
                    let path = self.config.path.clone();
                    return Err(OpenFault::JournalDamaged {
                        path,
                        sequence,
                        proof,
                    });
                }
            }
        }
        self.opening().journal = Some(reader);
        self.queue_journal();
        Ok(())
    }

    fn finish_replay(&mut self) -> Result<(), OpenFault> {
        let reader = self.opening().journal.take().expect("read to the end");
        let head = reader.head();
        if self.sb.proven >= head.sequence {
            let (path, sequence) = (self.config.path.clone(), head.sequence);
            return Err(OpenFault::JournalDamaged {
                path,
                sequence,
                proof: self.sb.proven,
            });
        }
        let tail = Tail {
            sequence: self.sb.tail_sequence,
            offset: self.sb.tail_offset,
        };
        let ring_bytes = self.sb.geometry.journal_bytes;
        self.journal = Journal::new(ring_bytes, tail, head, head.sequence - 1);
        if let Some(page) = self.opening().orphans.values().flatten().next().copied() {
            return Err(self.damaged("metadata page", page.into(), Corrupt::Value));
        }
        self.check_layers()
    }

    /// Nothing was written in a generation that was not begun.
    fn check_layers(&self) -> Result<(), OpenFault> {
        for slice in self.slices.values() {
            let begun = 1..=slice.generations.head();
            let wrong = slice
                .leaves
                .values()
                .find(|leaf| !leaf.layers().keys().all(|g| begun.contains(g)));
            if let Some(leaf) = wrong {
                return Err(self.damaged("metadata page", leaf.page.into(), Corrupt::Value));
            }
        }
        // Clones have something to show through.
        match self.lost_parent() {
            Some(slice) => Err(self.damaged("metadata page", slice.page.into(), Corrupt::Value)),
            None => Ok(()),
        }
    }

    /// Free is what no layer names; what two layers name is damage.
    fn rebuild_space(&mut self) -> Result<(), OpenFault> {
        let leaves = self.slices.values().flat_map(|s| s.leaves.values());
        let twice = leaves
            .flat_map(Leaf::physical)
            .find(|extent| !self.space.take(*extent));
        match twice {
            None => Ok(()),
            Some(extent) => Err(OpenFault::Damaged {
                path: self.config.path.clone(),
                what: "extent",
                index: extent.into(),
                why: "named twice or out of range",
            }),
        }
    }

    /// Everything is known and sound. What was read may only be in the device's cache: make it durable,
    /// then say that the store is in use.
    fn take_over(&mut self, out: &mut Outbox) {
        if !self.was_clean {
            self.sb.incarnation += 1;
            self.sb.lost_at = self.sb.incarnation;
        }
        self.sb.clean = false;
        if self.config.check_only {
            self.finish_open(out);
            self.phase = Phase::Over;
        } else if self.config.volatile_cache && !self.was_clean {
            let io = self.ios.start(IoKind::OpenFlush);
            out.push(Effect::Flush { io });
        } else {
            self.write_superblock(out);
        }
    }

    pub(super) fn on_open_flushed(&mut self, out: &mut Outbox) {
        self.write_superblock(out);
    }

    pub(super) fn finish_open(&mut self, out: &mut Outbox) {
        let opening = std::mem::take(self.opening());
        let tick = self.first_tick();
        self.slices.values_mut().for_each(|s| s.tick = tick);
        self.phase = Phase::Serving;
        self.resume_merges();
        let usage = self.usage();
        out.push(Effect::Opened(Box::new(OpenFacts {
            store: self.sb.store,
            cluster: self.sb.cluster,
            incarnation: Incarnation(self.sb.incarnation),
            lost_at: Incarnation(self.sb.lost_at),
            clean: self.was_clean,
            capacity_bytes: usage.capacity_bytes,
            free_bytes: usage.free_bytes,
            replayed: opening.replayed,
            pages: opening.pages_read,
            slices: self.slices().collect(),
        })));
    }

    pub(super) fn open_io_failed(&mut self, errno: i32, out: &mut Outbox) {
        let Phase::Opening(opening) = &self.phase else {
            return;
        };
        let read = opening.in_flight.values().next();
        let fault = OpenFault::Device {
            path: self.config.path.clone(),
            what: if read.is_some() {
                "reading metadata"
            } else {
                "writing the superblock"
            },
            offset_bytes: read.map_or(SUPERBLOCK_OFFSETS[self.sb_next], |r| r.offset_bytes),
            errno,
        };
        self.fail_open(fault, out);
    }

    fn fail_open(&mut self, fault: OpenFault, out: &mut Outbox) {
        self.phase = Phase::Over;
        out.push(Effect::OpenFailed(fault.into()));
    }
}

fn load_leaf(
    view: &PageView<'_>,
    page: u32,
    leaf_extents: u32,
    extents: u32,
) -> Result<Leaf, Corrupt> {
    let mut cells = Vec::with_capacity(leaf_extents as usize);
    for index in 0..super::format::page::LEAF_EXTENTS {
        let (physical, states) = view.extent(index as usize)?;
        if physical == NO_EXTENT && states == 0 {
            continue;
        }
        if index >= leaf_extents || (physical != NO_EXTENT && physical >= extents) {
            return Err(Corrupt::Value);
        }
        let index = u16::try_from(index).expect("at most 1 024");
        let physical = (physical != NO_EXTENT).then_some(physical);
        cells.push((index, Cell { physical, states }));
    }
    let base = view.head.generation;
    Ok(Leaf::load(page, leaf_extents, base, &cells))
}

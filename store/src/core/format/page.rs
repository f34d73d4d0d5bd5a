//! Metadata pages: a slice, one layer's part of one shard, or marks. Self-describing: a scan of pages
//! alone tells volumes, shapes, epochs and memberships.

use super::entry::SliceRecord;
use super::{Corrupt, NO_EXTENT, VERSION, check, seal};
use crate::core::facts::{SliceSpec, Stamp};
use shardmap::units::EXTENT_BLOCKS;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"UBSP";
/// Length of a metadata page: header, first and second half of the body, one block each.
pub const PAGE_BYTES: u32 = 12_288;
/// Extents described by one layer page: 64 MiB. Larger shards have several pages ("parts").
pub const LEAF_EXTENTS: u32 = 1024;
/// Blocks described by one layer page.
pub const LEAF_BLOCKS: u32 = LEAF_EXTENTS * EXTENT_BLOCKS;
/// Regions described by one marks page (256 GiB of volume).
pub const MARK_REGIONS: u32 = 65_536;

/// Cells in one cells page.
pub const PAGE_CELLS: usize = 512;
/// Snapshots in one slice page.
pub const PAGE_SNAPSHOTS: usize = 1024;

/// State of a block in a layer, two bits each. 3 is not used.
pub const ABSENT: u32 = 0;
/// Two-bit state: the extent holds the block's data.
pub const PRESENT: u32 = 1;
/// Two-bit state: the block reads as zeroes and hides the parent.
pub const ZERO: u32 = 2;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// The slice itself, with its snapshots.
    Slice,
    /// One part of a shard's layer.
    Layer,
    /// Marked regions of a window of the volume.
    Marks,
    // 4: block checksums (reserved; see docs/formats.md)
    /// Extents of one part of a shard, of any generations.
    Cells,
}

impl PageKind {
    const fn to_disk(self) -> u16 {
        match self {
            Self::Slice => 1,
            Self::Layer => 2,
            Self::Marks => 3,
            Self::Cells => 5,
        }
    }

    const fn from_disk(raw: u16) -> Option<Self> {
        match raw {
            1 => Some(Self::Slice),
            2 => Some(Self::Layer),
            3 => Some(Self::Marks),
            5 => Some(Self::Cells),
            _ => None,
        }
    }
}

#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U32, // CRC32C of every byte after this field
    magic: [u8; 4],
    version: U16,
    kind: U16,
    page: U32, // number of this page
    store: [u8; 16],
    checkpoint: U64, // that wrote it
    generation: U32,
    reserved_g: U32, // version 1: the generation again
    shard: U32,      // layer: the shard
    part: U32,       // layer: which 64 MiB of the shard; marks: which 65 536 regions
    reserved_a: U64,
    slice: SliceRecord, // at 64
    epoch: U64,
    stamp_seq: U64,
    stamp_in_sync: U64,
    stamp_members: U64,
    flags: U32, // bit 0: incomplete; bit 1: the store was clean (no session) when this was written
    reserved_b: U32,
    checksum_extents: [U32; 4], // reserved for block checksums: none = ffff ffff
    reserved_c: [u8; 3912],
    first: [u8; 4096], // layer: 1 024 physical extents; marks: bits of the first 32 768 regions;
    // cells, slice: first half of the array
    second: [u8; 4096], // layer: 1 024 x 16 two-bit block states; marks: the other 32 768; cells,
                        // slice: second half of the array
}

const _: () = assert!(size_of::<Raw>() == PAGE_BYTES as usize);
const _: () = assert!(offset_of!(Raw, store) == 16 && offset_of!(Raw, slice) == 64);
const _: () = assert!(offset_of!(Raw, epoch) == 128 && offset_of!(Raw, first) == 4096);
const _: () = assert!(LEAF_EXTENTS * 4 == 4096 && MARK_REGIONS / 8 == 8192);

/// What every page says besides its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHead {
    /// What the body is.
    pub kind: PageKind,
    /// Generation of the layer; the head for a slice page and for marks; 0 for cells.
    pub generation: u32,
    /// Shard of the layer.
    pub shard: u32,
    /// Part of the shard, or window of marks.
    pub part: u32,
    /// The slice.
    pub spec: SliceSpec,
    /// Its epoch.
    pub epoch: u64,
    /// Its stamp.
    pub stamp: Stamp,
    /// Must be resilvered.
    pub incomplete: bool,
    /// Nobody had the slice open when the page was written.
    pub closed: bool,
}

/// What one generation holds of one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellRecord {
    /// Extent in the part of the shard.
    pub index: u16,
    /// The generation.
    pub generation: u32,
    /// Physical extent, or [`NO_EXTENT`].
    pub physical: u32,
    /// Block states.
    pub states: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawCell {
    index: U16,
    reserved: U16,
    generation: U32, // zero: no more cells
    physical: U32,
    states: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSnapshot {
    generation: U32, // zero: no more snapshots
    flags: U32,      // bit 0: pending
}

const PENDING: u32 = 1;
const _: () = assert!(size_of::<RawCell>() * PAGE_CELLS == 8192);
const _: () = assert!(size_of::<RawSnapshot>() * PAGE_SNAPSHOTS == 8192);

/// Neither both bits of a block state, nor data without an extent.
const fn is_possible(physical: u32, states: u32) -> bool {
    let both = states & (states >> 1) & 0x5555_5555;
    both == 0 && (physical != NO_EXTENT || states & 0x5555_5555 == 0)
}

/// A page to be written. The body of a layer: `(physical extent, block states)` per extent.
#[derive(Debug)]
pub struct PageImage(Vec<u8>);

impl PageImage {
    /// A page with an empty body.
    pub fn new(store: [u8; 16], page: u32, checkpoint: u64, head: &PageHead) -> Self {
        let flags = u32::from(head.incomplete) | u32::from(head.closed) << 1;
        let raw = Raw {
            checksum: 0.into(),
            magic: MAGIC,
            version: VERSION.into(),
            kind: head.kind.to_disk().into(),
            page: page.into(),
            store,
            checkpoint: checkpoint.into(),
            generation: head.generation.into(),
            reserved_g: 0.into(),
            shard: head.shard.into(),
            part: head.part.into(),
            reserved_a: 0.into(),
            slice: SliceRecord::from(&head.spec),
            epoch: head.epoch.into(),
            stamp_seq: head.stamp.seq.0.into(),
            stamp_in_sync: head.stamp.in_sync.into(),
            stamp_members: head.stamp.members.into(),
            flags: flags.into(),
            reserved_b: 0.into(),
            checksum_extents: [NO_EXTENT.into(); 4],
            reserved_c: [0; 3912],
            first: [if head.kind == PageKind::Layer {
                0xff
            } else {
                0
            }; 4096],
            second: [0; 4096],
        };
        Self(raw.as_bytes().to_vec())
    }

    /// Sets one extent of a layer page.
    pub fn set_extent(&mut self, index: usize, physical: u32, states: u32) {
        assert!(index < LEAF_EXTENTS as usize);
        let at = 4096 + index * 4;
        self.0[at..at + 4].copy_from_slice(&physical.to_le_bytes());
        self.0[at + 4096..at + 4100].copy_from_slice(&states.to_le_bytes());
    }

    /// Puts a cell into a cells page.
    pub fn set_cell(&mut self, slot: usize, cell: &CellRecord) {
        assert!(slot < PAGE_CELLS && cell.generation != 0);
        let raw = RawCell {
            index: cell.index.into(),
            reserved: 0.into(),
            generation: cell.generation.into(),
            physical: cell.physical.into(),
            states: cell.states.into(),
        };
        self.put(slot, raw.as_bytes());
    }

    /// Puts a snapshot into a slice page; ascending.
    pub fn set_snapshot(&mut self, slot: usize, generation: u32, pending: bool) {
        assert!(slot < PAGE_SNAPSHOTS && generation != 0);
        let raw = RawSnapshot {
            generation: generation.into(),
            flags: if pending { PENDING } else { 0 }.into(),
        };
        self.put(slot, raw.as_bytes());
    }

    fn put(&mut self, slot: usize, bytes: &[u8]) {
        let at = 4096 + slot * bytes.len();
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Marks one region of a marks page (relative to its window).
    pub fn set_mark(&mut self, region: u32) {
        assert!(region < MARK_REGIONS);
        self.0[4096 + region as usize / 8] |= 1 << (region % 8);
    }

    /// The bytes, sealed.
    pub fn seal(mut self) -> Vec<u8> {
        seal(&mut self.0);
        self.0
    }
}

/// A page that was read and passed all checks of its header.
#[derive(Debug)]
pub struct PageView<'a> {
    raw: &'a Raw,
    /// Its header.
    pub head: PageHead,
}

impl<'a> PageView<'a> {
    /// Checks a page.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn open(bytes: &'a [u8], store: [u8; 16], page: u32) -> Result<Self, Corrupt> {
        let raw = Raw::ref_from_bytes(bytes).map_err(|_| Corrupt::Length)?;
        let head = (raw.magic, raw.version.get(), raw.store);
        check(bytes, head, (MAGIC, store))?;
        if raw.page.get() != page {
            return Err(Corrupt::Misplaced);
        }
        let head = PageHead {
            kind: PageKind::from_disk(raw.kind.get()).ok_or(Corrupt::Unknown)?,
            generation: raw.generation.get(),
            shard: raw.shard.get(),
            part: raw.part.get(),
            spec: raw.slice.to_spec()?,
            epoch: raw.epoch.get(),
            stamp: Stamp {
                seq: shardmap::units::MembershipSeq(raw.stamp_seq.get()),
                in_sync: raw.stamp_in_sync.get(),
                members: raw.stamp_members.get(),
            },
            incomplete: raw.flags.get() & 1 != 0,
            closed: raw.flags.get() & 2 != 0,
        };
        Ok(Self { raw, head })
    }

    /// Physical extent and block states of one extent of a layer page.
    ///
    /// # Errors
    /// `Value` if a state is 3, or data is present without an extent.
    pub fn extent(&self, index: usize) -> Result<(u32, u32), Corrupt> {
        let word = |half: &[u8; 4096]| {
            let at = index * 4;
            u32::from_le_bytes([half[at], half[at + 1], half[at + 2], half[at + 3]])
        };
        let (physical, states) = (word(&self.raw.first), word(&self.raw.second));
        if is_possible(physical, states) {
            Ok((physical, states))
        } else {
            Err(Corrupt::Value)
        }
    }

    /// The cells of a cells page, ascending by extent and generation.
    ///
    /// # Errors
    /// `Value` if they are not, or one of them is impossible.
    pub fn cells(&self) -> Result<Vec<CellRecord>, Corrupt> {
        let mut cells: Vec<CellRecord> = Vec::new();
        for half in [&self.raw.first, &self.raw.second] {
            for raw in half.chunks_exact(size_of::<RawCell>()) {
                let raw = RawCell::ref_from_bytes(raw).map_err(|_| Corrupt::Length)?;
                let cell = CellRecord {
                    index: raw.index.get(),
                    generation: raw.generation.get(),
                    physical: raw.physical.get(),
                    states: raw.states.get(),
                };
                if cell.generation == 0 {
                    return Ok(cells);
                }
                let key = |c: &CellRecord| (c.index, c.generation);
                let ascending = cells.last().is_none_or(|last| key(last) < key(&cell));
                if !ascending || !is_possible(cell.physical, cell.states) {
                    return Err(Corrupt::Value);
                }
                cells.push(cell);
            }
        }
        Ok(cells)
    }

    /// The snapshots of a slice page, ascending, and whether they are pending.
    ///
    /// # Errors
    /// `Value` if they do not ascend to below the head.
    pub fn snapshots(&self) -> Result<Vec<(u32, bool)>, Corrupt> {
        let mut snapshots: Vec<(u32, bool)> = Vec::new();
        for half in [&self.raw.first, &self.raw.second] {
            for raw in half.chunks_exact(size_of::<RawSnapshot>()) {
                let raw = RawSnapshot::ref_from_bytes(raw).map_err(|_| Corrupt::Length)?;
                let generation = raw.generation.get();
                if generation == 0 {
                    return Ok(snapshots);
                }
                let ascending = snapshots.last().is_none_or(|last| last.0 < generation);
                if !ascending || generation >= self.head.generation {
                    return Err(Corrupt::Value);
                }
                snapshots.push((generation, raw.flags.get() & PENDING != 0));
            }
        }
        Ok(snapshots)
    }

    /// Marked regions of a marks page, relative to its window, ascending.
    pub fn marks(&self) -> impl Iterator<Item = u32> + '_ {
        let bytes = self.raw.first.iter().chain(&self.raw.second);
        (0u32..).zip(bytes).flat_map(|(i, byte)| {
            (0..8)
                .filter(move |bit| byte >> bit & 1 != 0)
                .map(move |bit| i * 8 + bit)
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::core::format::entry::test::spec;
    use proptest::prelude::*;

    fn head(kind: PageKind) -> PageHead {
        PageHead {
            kind,
            generation: 1,
            shard: 5,
            part: 2,
            spec: spec(17),
            epoch: 3,
            stamp: Stamp {
                seq: shardmap::units::MembershipSeq(8),
                in_sync: 3,
                members: 7,
            },
            incomplete: true,
            closed: false,
        }
    }

    proptest! {
        #[test]
        fn a_layer_page_keeps_extents_and_rejects_any_flipped_bit(
            extents in prop::collection::btree_map(0usize..1024, (0u32..9999, any::<u32>()), 0..50),
            at in 0usize..12_288, bit in 0u8..8
        ) {
            let mut image = PageImage::new([1; 16], 4, 6, &head(PageKind::Layer));
            let legal = |s: u32| s & !((s & (s >> 1) & 0x5555_5555) * 3);
            for (i, (physical, states)) in &extents {
                image.set_extent(*i, *physical, legal(*states));
            }
            let mut bytes = image.seal();
            let view = PageView::open(&bytes, [1; 16], 4).unwrap();
            prop_assert_eq!(view.head, head(PageKind::Layer));
            for i in 0..1024 {
                let want = extents.get(&i).map_or((NO_EXTENT, 0), |(p, s)| (*p, legal(*s)));
                prop_assert_eq!(view.extent(i), Ok(want));
            }
            prop_assert_eq!(PageView::open(&bytes, [1; 16], 5).err(), Some(Corrupt::Misplaced));
            bytes[at] ^= 1 << bit;
            prop_assert!(PageView::open(&bytes, [1; 16], 4).is_err());
        }

        #[test]
        fn a_marks_page_keeps_its_regions(
            regions in prop::collection::btree_set(0u32..65_536, 0..100)
        ) {
            let mut image = PageImage::new([1; 16], 4, 6, &head(PageKind::Marks));
            regions.iter().for_each(|r| image.set_mark(*r));
            let bytes = image.seal();
            let view = PageView::open(&bytes, [1; 16], 4).unwrap();
            prop_assert!(view.marks().eq(regions.iter().copied()));
        }
    }

    #[test]
    fn cells_and_snapshots_survive_and_must_ascend() {
        let cell = |index, generation| CellRecord {
            index,
            generation,
            physical: 7,
            states: PRESENT,
        };
        let mut image = PageImage::new([1; 16], 4, 6, &head(PageKind::Cells));
        (0..512u16).for_each(|i| image.set_cell(i.into(), &cell(i / 2, 1 + u32::from(i % 2))));
        let bytes = image.seal();
        let cells = PageView::open(&bytes, [1; 16], 4).unwrap().cells().unwrap();
        assert_eq!((cells.len(), cells[511]), (512, cell(255, 2)));
        let mut image = PageImage::new([1; 16], 4, 6, &head(PageKind::Cells));
        image.set_cell(0, &cell(3, 2));
        image.set_cell(1, &cell(3, 2));
        let bytes = image.seal();
        let view = PageView::open(&bytes, [1; 16], 4).unwrap();
        assert_eq!(view.cells(), Err(Corrupt::Value));

        let mut slice = head(PageKind::Slice);
        slice.generation = 9;
        let mut image = PageImage::new([1; 16], 4, 6, &slice);
        image.set_snapshot(0, 3, false);
        image.set_snapshot(1, 8, true);
        let bytes = image.seal();
        let view = PageView::open(&bytes, [1; 16], 4).unwrap();
        assert_eq!(view.snapshots(), Ok(vec![(3, false), (8, true)]));
        let mut image = PageImage::new([1; 16], 4, 6, &slice);
        image.set_snapshot(0, 9, false);
        let bytes = image.seal();
        let view = PageView::open(&bytes, [1; 16], 4).unwrap();
        assert_eq!(view.snapshots(), Err(Corrupt::Value));
    }

    #[test]
    fn impossible_states_are_refused() {
        let mut image = PageImage::new([1; 16], 4, 6, &head(PageKind::Layer));
        image.set_extent(0, 7, 3);
        image.set_extent(1, NO_EXTENT, PRESENT);
        image.set_extent(2, NO_EXTENT, ZERO);
        let bytes = image.seal();
        let view = PageView::open(&bytes, [1; 16], 4).unwrap();
        assert_eq!(view.extent(0), Err(Corrupt::Value));
        assert_eq!(view.extent(1), Err(Corrupt::Value));
        assert_eq!(view.extent(2), Ok((NO_EXTENT, ZERO)));
    }
}

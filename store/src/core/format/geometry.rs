//! Where everything is on a device.

use shardmap::units::{BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES};

use super::checksums::CHECKSUM_EXTENTS;
use super::directory::PAGES_PER_DIRECTORY_PAGE;
use super::page::PAGE_BYTES;
use super::superblock::DIRECTORY_PAGES_MAX;

/// Byte offsets of the two superblocks.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 * 1024];
/// First byte of the journal.
pub const JOURNAL_OFFSET: u64 = 1 << 20;
/// The data area and the regions before it begin at multiples of this.
pub const REGION_ALIGN_BYTES: u64 = 1 << 20;
/// Smallest and largest journal ring, in bytes.
pub const JOURNAL_BYTES_RANGE: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;
/// One metadata page per this many bytes of device: eight times what 64 MiB shards, fully written,
/// need; enough for 8 MiB shards, many sparse layers, slices and marks.
pub const DEVICE_BYTES_PER_PAGE: u64 = 8 << 20;
/// Fewest metadata pages.
pub const PAGES_MIN: u32 = 256;
/// Smallest device, in bytes.
pub const DEVICE_BYTES_MIN: u64 = 32 << 20;

/// Bytes by which a device must be larger than its store for a growth: less is not worth a tract.
pub const GROWTH_BYTES_MIN: u64 = 16 << 20;

/// A part of a device that was laid out at once: by `prepare`, or by a growth. Directory pages, metadata
/// pages, checksum blocks and extents are numbered through all tracts of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tract {
    /// First byte of its part of the directory.
    pub directory_offset: u64,
    /// Directory pages (each in two places); zero if those before have room for its metadata pages.
    pub directory_pages: u32,
    /// First byte of its metadata pages.
    pub pages_offset: u64,
    /// Metadata pages (each in two places).
    pub pages: u32,
    /// First byte of its checksum blocks; zero: there are none.
    pub checksums_offset: u64,
    /// Checksum blocks; with those before enough for all extents, or zero in all tracts.
    pub checksum_blocks: u32,
    /// First byte of its first extent.
    pub data_offset: u64,
    /// Data extents.
    pub extents: u32,
}

/// What the tracts before have.
#[derive(Clone, Copy, Default)]
struct Before {
    directory_pages: u64,
    pages: u64,
    checksum_blocks: u64,
    extents: u64,
}

impl Before {
    fn add(&mut self, tract: &Tract) {
        self.directory_pages += u64::from(tract.directory_pages);
        self.pages += u64::from(tract.pages);
        self.checksum_blocks += u64::from(tract.checksum_blocks);
        self.extents += u64::from(tract.extents);
    }
}

const fn align(at: u64) -> u64 {
    at.next_multiple_of(REGION_ALIGN_BYTES)
}

impl Tract {
    /// Lays out what of a device of that size is behind `start`.
    fn plan(
        start: u64,
        device_bytes: u64,
        before: Before,
        checksums: bool,
    ) -> Result<Self, Misfit> {
        let block = u64::from(BLOCK_BYTES);
        let wanted = (device_bytes / DEVICE_BYTES_PER_PAGE).max(u64::from(PAGES_MIN));
        let pages = wanted.saturating_sub(before.pages);
        let directory_pages = (before.pages + pages)
            .div_ceil(u64::from(PAGES_PER_DIRECTORY_PAGE))
            .saturating_sub(before.directory_pages);
        let directory_offset = align(start);
        let pages_offset = align(directory_offset + 2 * directory_pages * block);
        let pages_end = align(pages_offset + 2 * pages * u64::from(PAGE_BYTES));
        let extents_after = |at: u64| device_bytes.saturating_sub(at) / u64::from(EXTENT_BYTES);
        let blocks_for = |extents: u64| {
            let all = (before.extents + extents).div_ceil(CHECKSUM_EXTENTS.into());
            let more = all.saturating_sub(before.checksum_blocks);
            if checksums { more } else { 0 }
        };
        // As many as all the rest would need, a little more than what is left of it does.
        let checksum_blocks = blocks_for(extents_after(pages_end));
        let data_offset = align(pages_end + checksum_blocks * block);
        let extents = extents_after(data_offset);
        if extents == 0 {
            return Err(Misfit::TooSmall);
        }
        let checksum_blocks = checksum_blocks.min(blocks_for(extents));
        let too_large = |_| Misfit::TooLarge;
        Ok(Self {
            directory_offset,
            directory_pages: u32::try_from(directory_pages).map_err(too_large)?,
            pages_offset,
            pages: u32::try_from(pages).map_err(too_large)?,
            checksums_offset: if checksum_blocks > 0 { pages_end } else { 0 },
            checksum_blocks: u32::try_from(checksum_blocks).map_err(too_large)?,
            data_offset,
            extents: u32::try_from(extents).map_err(too_large)?,
        })
    }

    /// First byte behind its extents.
    fn end(&self) -> u64 {
        self.data_offset + u64::from(self.extents) * u64::from(EXTENT_BYTES)
    }

    /// First byte behind it, if it begins at `start` or later and its regions are aligned, in order and
    /// disjoint.
    fn checked_end(&self, start: u64) -> Option<u64> {
        let end = |at: u64, count: u64, each: u32| count.checked_mul(each.into())?.checked_add(at);
        let directory = 2 * u64::from(self.directory_pages);
        let directory = end(self.directory_offset, directory, BLOCK_BYTES)?;
        let pages = end(self.pages_offset, 2 * u64::from(self.pages), PAGE_BYTES)?;
        let checksums = match self.checksum_blocks {
            0 => pages,
            blocks => end(self.checksums_offset, blocks.into(), BLOCK_BYTES)?,
        };
        let data = end(self.data_offset, self.extents.into(), EXTENT_BYTES)?;
        let offsets = [
            self.directory_offset,
            self.pages_offset,
            self.checksums_offset,
            self.data_offset,
        ];
        let aligned = |at: &u64| at.is_multiple_of(REGION_ALIGN_BYTES);
        let ordered = start <= self.directory_offset
            && directory <= self.pages_offset
            && match self.checksum_blocks {
                0 => self.checksums_offset == 0,
                _ => pages <= self.checksums_offset,
            }
            && checksums <= self.data_offset;
        (ordered && self.extents > 0 && offsets.iter().all(aligned)).then_some(data)
    }
}

/// The region table of a device: where its parts begin and how large they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the device that are used; it may be larger, never smaller.
    pub device_bytes: u64,
    /// Size of the journal ring, in bytes, a multiple of 4 KiB.
    pub journal_bytes: u64,
    /// What `prepare` has laid out, then what each growth has; never empty.
    tracts: Vec<Tract>,
}

/// Why a device cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Fewer bytes than [`DEVICE_BYTES_MIN`], or than the journal leaves room for; of a growth, fewer than
    /// [`GROWTH_BYTES_MIN`] more.
    TooSmall,
    /// More extents than a u32 names (256 TiB).
    TooLarge,
    /// Journal out of range or not in whole blocks.
    Journal,
}

impl Geometry {
    /// Default journal size for a device: 1/256 of it within 4 ..= 256 MiB.
    pub const fn journal_bytes_default(device_bytes: u64) -> u64 {
        let wanted = device_bytes / 256;
        let clamped = if wanted < 4 << 20 {
            4 << 20
        } else if wanted > 256 << 20 {
            256 << 20
        } else {
            wanted
        };
        clamped / REGION_ALIGN_BYTES * REGION_ALIGN_BYTES
    }

    /// Lays out a device, with or without room for the checksums of its blocks.
    ///
    /// # Errors
    /// See [`Misfit`].
    pub fn plan(device_bytes: u64, journal_bytes: u64, checksums: bool) -> Result<Self, Misfit> {
        if device_bytes < DEVICE_BYTES_MIN {
            return Err(Misfit::TooSmall);
        }
        let blocks = journal_bytes.is_multiple_of(BLOCK_BYTES.into());
        if !JOURNAL_BYTES_RANGE.contains(&journal_bytes) || !blocks {
            return Err(Misfit::Journal);
        }
        let start = JOURNAL_OFFSET + journal_bytes;
        let tract = Tract::plan(start, device_bytes, Before::default(), checksums)?;
        let geometry = Self::new(device_bytes, journal_bytes, tract);
        if geometry.is_consistent() {
            Ok(geometry)
        } else {
            Err(Misfit::TooLarge)
        }
    }

    /// As a superblock has it.
    pub fn new(device_bytes: u64, journal_bytes: u64, first: Tract) -> Self {
        Self {
            device_bytes,
            journal_bytes,
            tracts: vec![first],
        }
    }

    /// The same device with more bytes: another tract behind the last one. Nothing else moves.
    ///
    /// # Errors
    /// [`Misfit::TooSmall`], [`Misfit::TooLarge`].
    pub fn grown(&self, device_bytes: u64) -> Result<Self, Misfit> {
        if device_bytes.saturating_sub(self.device_bytes) < GROWTH_BYTES_MIN {
            return Err(Misfit::TooSmall);
        }
        let mut before = Before::default();
        self.tracts.iter().for_each(|tract| before.add(tract));
        let start = self.tracts[self.tracts.len() - 1].end();
        let tract = Tract::plan(start, device_bytes, before, self.has_checksums())?;
        let grown = Self {
            device_bytes,
            ..self.clone()
        };
        grown.with_growths(&[tract]).ok_or(Misfit::TooLarge)
    }

    /// With what growths have laid out; `None` if that cannot be.
    #[must_use]
    pub fn with_growths(mut self, tracts: &[Tract]) -> Option<Self> {
        self.tracts.extend_from_slice(tracts);
        self.is_consistent().then_some(self)
    }

    /// What `prepare` has laid out.
    pub fn first(&self) -> &Tract {
        &self.tracts[0]
    }

    /// What each growth has laid out.
    pub fn growths(&self) -> &[Tract] {
        &self.tracts[1..]
    }

    /// Whether the regions are in order, aligned, disjoint and inside the device.
    pub fn is_consistent(&self) -> bool {
        let mut sum = Before::default();
        let mut end = JOURNAL_OFFSET.saturating_add(self.journal_bytes);
        for tract in &self.tracts {
            let Some(behind) = tract.checked_end(end) else {
                return false;
            };
            sum.add(tract);
            // Each tract has room for what describes it.
            let room = sum.directory_pages * u64::from(PAGES_PER_DIRECTORY_PAGE);
            let summed = sum.checksum_blocks * u64::from(CHECKSUM_EXTENTS);
            if sum.pages > room || self.has_checksums() && summed < sum.extents {
                return false;
            }
            end = behind;
        }
        JOURNAL_BYTES_RANGE.contains(&self.journal_bytes)
            && self.journal_bytes.is_multiple_of(BLOCK_BYTES.into())
            && (1..=u64::from(DIRECTORY_PAGES_MAX)).contains(&sum.directory_pages)
            && (1..=u64::from(u32::MAX)).contains(&sum.pages)
            && (1..u64::from(u32::MAX) - 1).contains(&sum.extents)
            && (self.has_checksums() || sum.checksum_blocks == 0)
            && end <= self.device_bytes
    }

    fn sum(&self, of: impl Fn(&Tract) -> u32) -> u32 {
        self.tracts.iter().map(of).sum()
    }

    /// Directory pages.
    pub fn directory_pages(&self) -> u32 {
        self.sum(|tract| tract.directory_pages)
    }

    /// Metadata pages.
    pub fn pages(&self) -> u32 {
        self.sum(|tract| tract.pages)
    }

    /// Checksum blocks.
    pub fn checksum_blocks(&self) -> u32 {
        self.sum(|tract| tract.checksum_blocks)
    }

    /// Data extents.
    pub fn extents(&self) -> u32 {
        self.sum(|tract| tract.extents)
    }

    /// The tract that has something of that number, and its number there.
    #[track_caller]
    fn locate(&self, number: u32, of: impl Fn(&Tract) -> u32) -> (&Tract, u64) {
        let mut within = number;
        for tract in &self.tracts {
            match within.checked_sub(of(tract)) {
                None => return (tract, within.into()),
                Some(left) => within = left,
            }
        }
        panic!("number {number} of {}", self.sum(of))
    }

    /// Byte offset of a directory page's place (0 or 1).
    pub fn directory_page_offset(&self, index: u32, place: u8) -> u64 {
        assert!(place < 2);
        let (tract, within) = self.locate(index, |tract| tract.directory_pages);
        let slot = u64::from(place) * u64::from(tract.directory_pages) + within;
        tract.directory_offset + slot * u64::from(BLOCK_BYTES)
    }

    /// Byte offset of a metadata page's place (0 or 1).
    pub fn page_offset(&self, page: u32, place: u8) -> u64 {
        assert!(place < 2);
        let (tract, within) = self.locate(page, |tract| tract.pages);
        let slot = u64::from(place) * u64::from(tract.pages) + within;
        tract.pages_offset + slot * u64::from(PAGE_BYTES)
    }

    /// Whether there is room for the checksums of all blocks.
    pub fn has_checksums(&self) -> bool {
        self.tracts[0].checksum_blocks > 0
    }

    /// Byte offset of a checksum block.
    pub fn checksums_block_offset(&self, index: u32) -> u64 {
        let (tract, within) = self.locate(index, |tract| tract.checksum_blocks);
        tract.checksums_offset + within * u64::from(BLOCK_BYTES)
    }

    /// Number of the block of the data area at a byte offset.
    ///
    /// # Panics
    /// No extent is there.
    pub fn data_block(&self, offset_bytes: u64) -> u64 {
        let mut before = 0;
        for tract in &self.tracts {
            if offset_bytes < tract.end() {
                assert!(offset_bytes >= tract.data_offset, "byte {offset_bytes}");
                return before + (offset_bytes - tract.data_offset) / u64::from(BLOCK_BYTES);
            }
            before += u64::from(tract.extents) * u64::from(EXTENT_BLOCKS);
        }
        panic!("byte {offset_bytes} is behind the last extent")
    }

    /// Whether the checksums of the blocks before and at a byte offset are in different checksum blocks:
    /// no device operation passes there, so that each concerns one checksum block.
    pub fn is_seam(&self, offset_bytes: u64) -> bool {
        let per_block = u64::from(CHECKSUM_EXTENTS) * u64::from(EXTENT_BLOCKS);
        self.has_checksums() && self.data_block(offset_bytes).is_multiple_of(per_block)
    }

    /// Byte offset of an extent.
    pub fn extent_offset(&self, extent: u32) -> u64 {
        let (tract, within) = self.locate(extent, |tract| tract.extents);
        tract.data_offset + within * u64::from(EXTENT_BYTES)
    }

    /// Whether an extent lies directly behind the one with the number before.
    pub fn is_behind_the_last(&self, extent: u32) -> bool {
        extent > 0
            && self.extent_offset(extent - 1) + u64::from(EXTENT_BYTES)
                == self.extent_offset(extent)
    }

    /// Capacity for data, in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.extents()) * u64::from(EXTENT_BYTES)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_plan_is_consistent_and_wastes_little(mib in 32u64..200 << 20, journal_mib in 1u64..64, checksums: bool) {
            let device = mib << 20;
            if let Ok(plan) = Geometry::plan(device, journal_mib << 20, checksums) {
                prop_assert!(plan.is_consistent() && plan.has_checksums() == checksums);
                let overhead = device - plan.capacity_bytes();
                let most = device / 300 + if checksums { device / 1000 } else { 0 };
                prop_assert!(overhead <= (journal_mib << 20) + (16 << 20) + most);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(
            Geometry::plan(DEVICE_BYTES_MIN - 1, 1 << 20, true),
            Err(Misfit::TooSmall)
        );
        assert_eq!(
            Geometry::plan(DEVICE_BYTES_MIN, 64 << 20, true),
            Err(Misfit::TooSmall)
        );
        assert_eq!(Geometry::plan(1 << 30, 4096, true), Err(Misfit::Journal));
        assert_eq!(
            Geometry::plan(1 << 30, (4 << 20) + 512, true),
            Err(Misfit::Journal)
        );
        assert_eq!(
            Geometry::plan(1 << 49, 4 << 20, true),
            Err(Misfit::TooLarge)
        );
        assert!(Geometry::plan(DEVICE_BYTES_MIN, 1 << 20, true).is_ok());
    }

    /// Every metadata page, checksum block and extent of a device, as bytes.
    fn parts(geometry: &Geometry) -> Vec<std::ops::Range<u64>> {
        let (block, page) = (u64::from(BLOCK_BYTES), u64::from(PAGE_BYTES));
        let mut all = Vec::new();
        for place in 0..2 {
            let directory = (0..geometry.directory_pages())
                .map(|index| (geometry.directory_page_offset(index, place), block));
            let pages = (0..geometry.pages()).map(|n| (geometry.page_offset(n, place), page));
            all.extend(directory.chain(pages));
        }
        let checksums =
            (0..geometry.checksum_blocks()).map(|n| (geometry.checksums_block_offset(n), block));
        let extents =
            (0..geometry.extents()).map(|n| (geometry.extent_offset(n), EXTENT_BYTES.into()));
        all.extend(checksums.chain(extents));
        all.into_iter().map(|(at, len)| at..at + len).collect()
    }

    #[test]
    fn a_growth_moves_nothing_and_its_parts_are_apart() {
        for checksums in [false, true] {
            let mut geometry = Geometry::plan((700 << 20) + 4096, 4 << 20, checksums).unwrap();
            // By little, by an odd number of bytes, and past what one directory page describes.
            for device in [716u64 << 20, (1 << 30) + 12_345, 3 << 30, 130 << 30] {
                let grown = geometry.grown(device.max(geometry.device_bytes + (16 << 20)));
                let grown = grown.unwrap();
                let mut after = parts(&grown);
                let all: std::collections::BTreeSet<u64> = after.iter().map(|p| p.start).collect();
                assert!(
                    parts(&geometry)
                        .iter()
                        .all(|part| all.contains(&part.start))
                );
                assert!(grown.is_consistent() && grown.has_checksums() == checksums);
                assert_eq!(grown.first(), geometry.first());
                after.sort_by_key(|part| part.start);
                assert!(after.windows(2).all(|w| w[0].end <= w[1].start));
                assert!(after.last().unwrap().end <= grown.device_bytes);
                let per_extent = u64::from(EXTENT_BLOCKS);
                for extent in [
                    geometry.extents() - 1,
                    geometry.extents(),
                    grown.extents() - 1,
                ] {
                    let at = grown.extent_offset(extent);
                    assert_eq!(grown.data_block(at), u64::from(extent) * per_extent);
                    let home = extent / CHECKSUM_EXTENTS;
                    assert!(!checksums || home < grown.checksum_blocks());
                    assert_eq!(
                        grown.is_seam(at),
                        checksums && extent % CHECKSUM_EXTENTS == 0
                    );
                }
                assert!(grown.is_behind_the_last(geometry.extents() + 1));
                geometry = grown;
            }
            assert_eq!(geometry.directory_pages(), 2);
        }
    }

    #[test]
    fn a_growth_by_too_little_or_too_much_is_refused() {
        let geometry = Geometry::plan(64 << 20, 1 << 20, true).unwrap();
        let refused = |bytes| geometry.grown(bytes).unwrap_err();
        assert_eq!(refused(48 << 20), Misfit::TooSmall);
        assert_eq!(refused(64 << 20), Misfit::TooSmall);
        assert_eq!(refused((80 << 20) - 1), Misfit::TooSmall);
        assert_eq!(refused(1 << 49), Misfit::TooLarge);
        let grown = geometry.grown(80 << 20).unwrap();
        assert!(grown.extents() > geometry.extents() + 180);
    }
}

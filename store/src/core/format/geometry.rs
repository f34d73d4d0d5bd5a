//! Where everything is on a device.

use shardmap::units::{BLOCK_BYTES, EXTENT_BYTES};

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

/// The region table of a device: where its parts begin and how large they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the device that are used; it may be larger, never smaller.
    pub device_bytes: u64,
    /// Size of the journal ring, in bytes, a multiple of 4 KiB.
    pub journal_bytes: u64,
    /// First byte of the directory.
    pub directory_offset: u64,
    /// Directory pages (each in two places).
    pub directory_pages: u32,
    /// First byte of the metadata pages.
    pub pages_offset: u64,
    /// Metadata pages (each in two places).
    pub pages: u32,
    /// First byte of the checksum blocks; zero: there are none.
    pub checksums_offset: u64,
    /// Checksum blocks; zero, or enough for all extents.
    pub checksum_blocks: u32,
    /// First byte of extent 0.
    pub data_offset: u64,
    /// Number of data extents.
    pub extents: u32,
}

/// Why a device cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Fewer bytes than [`DEVICE_BYTES_MIN`], or than the journal leaves room for.
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
        let block = u64::from(BLOCK_BYTES);
        if device_bytes < DEVICE_BYTES_MIN {
            return Err(Misfit::TooSmall);
        }
        if !JOURNAL_BYTES_RANGE.contains(&journal_bytes) || !journal_bytes.is_multiple_of(block) {
            return Err(Misfit::Journal);
        }
        let pages = (device_bytes / DEVICE_BYTES_PER_PAGE).max(u64::from(PAGES_MIN));
        let directory_pages = pages.div_ceil(u64::from(PAGES_PER_DIRECTORY_PAGE));
        let align = |at: u64| at.next_multiple_of(REGION_ALIGN_BYTES);
        let directory_offset = align(JOURNAL_OFFSET + journal_bytes);
        let pages_offset = align(directory_offset + 2 * directory_pages * block);
        let pages_end = align(pages_offset + 2 * pages * u64::from(PAGE_BYTES));
        let extents_after = |at: u64| device_bytes.saturating_sub(at) / u64::from(EXTENT_BYTES);
        // As many as all the rest would need, a little more than what is left of it does.
        let checksum_blocks = if checksums {
            extents_after(pages_end).div_ceil(CHECKSUM_EXTENTS.into())
        } else {
            0
        };
        let data_offset = align(pages_end + checksum_blocks * block);
        let extents = extents_after(data_offset);
        if extents == 0 {
            return Err(Misfit::TooSmall);
        }
        let checksum_blocks = checksum_blocks.min(extents.div_ceil(CHECKSUM_EXTENTS.into()));
        let too_large = |_| Misfit::TooLarge;
        let geometry = Self {
            device_bytes,
            journal_bytes,
            directory_offset,
            directory_pages: u32::try_from(directory_pages).map_err(too_large)?,
            pages_offset,
            pages: u32::try_from(pages).map_err(too_large)?,
            checksums_offset: if checksums { pages_end } else { 0 },
            checksum_blocks: u32::try_from(checksum_blocks).map_err(too_large)?,
            data_offset,
            extents: u32::try_from(extents).map_err(too_large)?,
        };
        if geometry.is_consistent() {
            Ok(geometry)
        } else {
            Err(Misfit::TooLarge)
        }
    }

    /// Whether the regions are in order, aligned, disjoint and inside the device.
    pub fn is_consistent(&self) -> bool {
        let block = u64::from(BLOCK_BYTES);
        let end = |at: u64, count: u64, each: u64| count.checked_mul(each)?.checked_add(at);
        let inside = || {
            let journal = end(JOURNAL_OFFSET, 1, self.journal_bytes)?;
            let directory = end(
                self.directory_offset,
                2 * u64::from(self.directory_pages),
                block,
            )?;
            let pages = 2 * u64::from(self.pages);
            let pages = end(self.pages_offset, pages, u64::from(PAGE_BYTES))?;
            let checksums = match self.checksum_blocks {
                0 => pages,
                blocks => end(self.checksums_offset, blocks.into(), block)?,
            };
            let data = end(
                self.data_offset,
                u64::from(self.extents),
                u64::from(EXTENT_BYTES),
            )?;
            let ordered = journal <= self.directory_offset
                && directory <= self.pages_offset
                && (!self.has_checksums() || pages <= self.checksums_offset)
                && checksums <= self.data_offset
                && data <= self.device_bytes;
            Some(ordered)
        };
        let regions = [
            self.directory_offset,
            self.pages_offset,
            self.checksums_offset,
            self.data_offset,
        ];
        let aligned = regions
            .iter()
            .all(|at| at.is_multiple_of(REGION_ALIGN_BYTES));
        let checksums = match self.checksum_blocks {
            0 => self.checksums_offset == 0,
            blocks => u64::from(blocks) * u64::from(CHECKSUM_EXTENTS) >= self.extents.into(),
        };
        let room = u64::from(self.directory_pages) * u64::from(PAGES_PER_DIRECTORY_PAGE);
        aligned
            && checksums
            && JOURNAL_BYTES_RANGE.contains(&self.journal_bytes)
            && self.journal_bytes.is_multiple_of(block)
            && (1..=DIRECTORY_PAGES_MAX).contains(&self.directory_pages)
            && (1..=room).contains(&u64::from(self.pages))
            && (1..u32::MAX - 1).contains(&self.extents)
            && inside() == Some(true)
    }

    /// Byte offset of a directory page's place (0 or 1).
    pub fn directory_page_offset(&self, index: u32, place: u8) -> u64 {
        assert!(index < self.directory_pages && place < 2);
        let slot = u64::from(place) * u64::from(self.directory_pages) + u64::from(index);
        self.directory_offset + slot * u64::from(BLOCK_BYTES)
    }

    /// Byte offset of a metadata page's place (0 or 1).
    pub fn page_offset(&self, page: u32, place: u8) -> u64 {
        assert!(page < self.pages && place < 2);
        let slot = u64::from(place) * u64::from(self.pages) + u64::from(page);
        self.pages_offset + slot * u64::from(PAGE_BYTES)
    }

    /// Whether there is room for the checksums of all blocks.
    pub const fn has_checksums(&self) -> bool {
        self.checksum_blocks > 0
    }

    /// Byte offset of a checksum block.
    pub fn checksums_block_offset(&self, index: u32) -> u64 {
        assert!(index < self.checksum_blocks);
        self.checksums_offset + u64::from(index) * u64::from(BLOCK_BYTES)
    }

    /// Number of the block of the data area at a byte offset.
    pub fn data_block(&self, offset_bytes: u64) -> u64 {
        assert!(offset_bytes >= self.data_offset);
        (offset_bytes - self.data_offset) / u64::from(BLOCK_BYTES)
    }

    /// Whether the checksums of the blocks before and at a byte offset are in different checksum blocks:
    /// no device operation passes there, so that each concerns one checksum block.
    pub fn is_seam(&self, offset_bytes: u64) -> bool {
        let per_block = u64::from(CHECKSUM_EXTENTS) * u64::from(EXTENT_BYTES);
        self.has_checksums() && (offset_bytes - self.data_offset).is_multiple_of(per_block)
    }

    /// Byte offset of an extent.
    pub fn extent_offset(&self, extent: u32) -> u64 {
        assert!(extent < self.extents, "extent {extent} of {}", self.extents);
        self.data_offset + u64::from(extent) * u64::from(EXTENT_BYTES)
    }

    /// Capacity for data, in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.extents) * u64::from(EXTENT_BYTES)
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
}

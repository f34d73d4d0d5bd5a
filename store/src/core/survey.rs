//! Walking over all data there is, cell by cell, while it changes: for the scrub, and for checks of
//! stopped stores. Cells come in order of slice, extent and generation.

use super::Core;
use super::facts::Rot;
use super::format::checksums::{CHECKSUM_EXTENTS, Checksums, UNKNOWN, decode};
use super::leaf::present_lanes;
use super::slice::Slice;
use shardmap::units::{EXTENT_BLOCKS, Generation, Lba, Nsid};

/// A place in the walk: the cell there, or the next one after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// Namespace id.
    pub nsid: u32,
    /// Extent of the volume.
    pub extent: u64,
    /// The generation that wrote it.
    pub generation: u32,
}

impl Spot {
    /// Right behind it.
    pub(crate) const fn after(self) -> Self {
        Self {
            generation: self.generation + 1,
            ..self
        }
    }
}

/// A cell with data of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) spot: Spot,
    pub(crate) physical: u32,
    /// Blocks of the extent that are present.
    pub(crate) present: u16,
}

impl Found {
    /// Runs of present blocks: first block of the extent, and how many.
    pub(crate) fn runs(self) -> impl Iterator<Item = (u32, u32)> {
        let mut left = u32::from(self.present);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let first = left.trailing_zeros();
            let blocks = (left >> first).trailing_ones();
            left &= !(((1 << blocks) - 1) << first);
            Some((first, blocks))
        })
    }
}

impl Core {
    /// The next cell with data at or after a spot.
    pub(crate) fn next_data(&self, from: Spot) -> Option<Found> {
        let slices = self.slices.range(from.nsid..);
        let mut slices = slices.filter(|(_, slice)| slice.removing.is_none());
        slices.find_map(|(nsid, slice)| {
            let start = Spot {
                nsid: *nsid,
                ..Spot::default()
            };
            slice.next_data(start.max(from))
        })
    }
}

impl Slice {
    fn next_data(&self, from: Spot) -> Option<Found> {
        let extents = u64::from(self.leaf_extents());
        let first = u32::try_from(from.extent / extents).ok()?;
        let leaves = self.leaves.range(first..);
        let mut bound = leaves.filter(|(_, leaf)| leaf.bound() > 0);
        bound.find_map(|(number, leaf)| {
            let start = self.extent_number(*number, 0);
            let skipped = u16::try_from(from.extent.saturating_sub(start)).expect("in the leaf");
            (skipped..leaf.extents()).find_map(|index| {
                // Newest first: the last that is not before the spot is wanted.
                let spots = leaf.cells(index, u32::MAX).map(|(generation, cell)| {
                    let extent = start + u64::from(index);
                    let spot = Spot {
                        extent,
                        generation,
                        ..from
                    };
                    (spot, cell)
                });
                let ahead = spots.take_while(|(spot, _)| *spot >= from);
                let data = ahead.filter_map(|(spot, cell)| {
                    let lanes = present_lanes(cell.states);
                    let blocks = (0..EXTENT_BLOCKS).filter(|b| lanes >> (2 * b) & 1 != 0);
                    let present = blocks.fold(0, |mask, block| mask | 1 << block);
                    let physical = cell.physical.filter(|_| present != 0)?;
                    Some(Found {
                        spot,
                        physical,
                        present,
                    })
                });
                data.last()
            })
        })
    }
}

/// For checks of stopped stores.
impl Core {
    /// Byte offset of an extent of the device.
    pub(crate) fn extent_offset(&self, physical: u32) -> u64 {
        self.sb.geometry.extent_offset(physical)
    }

    /// The checksum block of an extent and its byte offset; `None`: the store keeps no checksums.
    pub(crate) fn home_of(&self, physical: u32) -> Option<(u32, u64)> {
        let home = physical / CHECKSUM_EXTENTS;
        let geometry = &self.sb.geometry;
        geometry
            .has_checksums()
            .then(|| (home, geometry.checksums_block_offset(home)))
    }

    /// What a checksum block says; nothing, if it is damaged or was never written.
    pub(crate) fn decode_home(&self, home: u32, bytes: &[u8]) -> Option<Box<Checksums>> {
        decode(bytes, self.sb.store, home).ok()
    }

    /// What it says of an extent; nothing, if that may be of another content.
    pub(crate) fn known_of(&self, values: Option<&Checksums>, physical: u32) -> [u32; 16] {
        let doubtful = self.checksums.as_ref();
        let doubtful = doubtful.is_none_or(|c| c.is_doubtful(physical));
        let at = ((physical % CHECKSUM_EXTENTS) * EXTENT_BLOCKS) as usize;
        let mut known = [UNKNOWN; 16];
        if let Some(values) = values.filter(|_| !doubtful) {
            known.copy_from_slice(&values[at..at + 16]);
        }
        known
    }

    /// Where something was found.
    pub(crate) fn rot_at(&self, found: Found, block: u32) -> Rot {
        let slice = &self.slices[&found.spot.nsid];
        Rot {
            nsid: Nsid(found.spot.nsid),
            volume: slice.spec.volume,
            generation: Generation(found.spot.generation),
            lba: Lba(found.spot.extent * u64::from(EXTENT_BLOCKS) + u64::from(block)),
        }
    }
}

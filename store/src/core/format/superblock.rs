//! The superblock: identity, region table, life, and which checkpoint counts.

use super::geometry::{Geometry, Tract};
use super::tracts::{self, GROWTHS_MAX};
use super::{Corrupt, VERSION, is_known, is_sealed, seal};
use crate::core::survey::Spot;
use shardmap::units::{BLOCK_BYTES, EXTENT_BYTES};
use std::collections::BTreeMap;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every store, after the checksum.
pub const MAGIC: [u8; 8] = *b"UBSSTORE";
/// Most directory pages: one bit each in the superblock.
pub const DIRECTORY_PAGES_MAX: u32 = 8192;
/// Length of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// Flag: stopped cleanly, nothing was written since.
const CLEAN: u16 = 1;
/// Flag: the checksums of marked regions are not to be believed, also after a clean stop.
const DOUBT: u16 = 2;
/// Feature: the device has checksum blocks.
const CHECKSUMS: u64 = 1;
/// Feature: there are blocks whose last write failed. Only while there are.
const FAILED: u64 = 2;
/// Extents that may have blocks whose last write failed.
pub const FAILED_EXTENTS_MAX: usize = 358;

/// Blocks of an extent whose last write failed.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFailed {
    extent: U32, // of the data area, ascending
    blocks: U16, // bit i: block i of it; never 0
    reserved: U16,
}

const NO_FAILED: RawFailed = RawFailed {
    extent: U32::ZERO,
    blocks: U16::ZERO,
    reserved: U16::ZERO,
};
/// Feature: the store has grown; most of its region table is in the tract table.
const GROWN: u64 = 4;
/// All that are known.
const FEATURES: u64 = CHECKSUMS | FAILED | GROWN;

/// The bytes. Two copies; the valid one with the larger `update` wins, the other is overwritten next.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U32, // CRC32C of every byte after this field
    version: U16,
    flags: U16, // bit 0: clean stop; bit 1: checksums of marked regions are doubtful
    magic: [u8; 8],
    store: [u8; 16],
    cluster: [u8; 16],
    update: U64, // counts superblock writes
    device_bytes: U64,
    block_bytes: U32,  // 4096
    extent_bytes: U32, // 65536
    journal_bytes: U64,
    directory_offset: U64,
    pages_offset: U64,
    data_offset: U64,
    directory_pages: U32,
    pages: U32,
    extents: U32,
    growths: U32, // tracts in the tract table
    incarnation: U64,
    lost_at: U64,
    checkpoint: U64,    // counts checkpoints
    tail_sequence: U64, // first journal record to replay
    tail_offset: U64,   // its byte offset in the ring
    proven: U64,        // highest journal sequence known durable when this was written
    features: U64, // without which it must not be opened; bit 0: checksums; 1: failed; 2: grown
    checksums_offset: U64,
    checksum_blocks: U32,
    scrub_nsid: U32, // where the scrub goes on: this cell, or the next after it
    scrub_extent: U64,
    scrub_generation: U32,
    failed_extents: U32, // how many of the following count
    failed: [RawFailed; FAILED_EXTENTS_MAX],
    directory_current: [u8; 1024], // bit i: directory page i counts in place B
}

const _: () = assert!(size_of::<Raw>() == SUPERBLOCK_BYTES);
const _: () = assert!(offset_of!(Raw, magic) == 8);
const _: () = assert!(offset_of!(Raw, update) == 48);
const _: () = assert!(offset_of!(Raw, journal_bytes) == 72);
const _: () = assert!(offset_of!(Raw, growths) == 116);
const _: () = assert!(offset_of!(Raw, incarnation) == 120);
const _: () = assert!(offset_of!(Raw, features) == 168);
const _: () = assert!(offset_of!(Raw, checksum_blocks) == 184);
const _: () = assert!(offset_of!(Raw, scrub_extent) == 192);
const _: () = assert!(offset_of!(Raw, failed) == 208);
const _: () = assert!(offset_of!(Raw, directory_current) == 3072);
const _: () = assert!(DIRECTORY_PAGES_MAX == 1024 * 8);

/// A superblock, decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the store.
    pub store: [u8; 16],
    /// The cluster it belongs to.
    pub cluster: [u8; 16],
    /// Counts superblock writes.
    pub update: u64,
    /// The region table; without what growths have added until the tract table is read.
    pub geometry: Geometry,
    /// How often the store has grown: so many tracts are in the tract table.
    pub growths: u32,
    /// Stopped cleanly.
    pub clean: bool,
    /// The checksums of marked regions are not to be believed, even if it was stopped cleanly.
    pub doubt: bool,
    /// Current life's number.
    pub incarnation: u64,
    /// Last life that began uncleanly.
    pub lost_at: u64,
    /// Counts checkpoints.
    pub checkpoint: u64,
    /// First journal record to replay.
    pub tail_sequence: u64,
    /// Its byte offset in the ring.
    pub tail_offset: u64,
    /// Highest journal sequence known durable.
    pub proven: u64,
    /// Where the scrub goes on.
    pub scrub: Spot,
    /// Extents and their blocks (a bit each) whose last write failed: what is there is anybody's guess.
    /// At most [`FAILED_EXTENTS_MAX`].
    pub failed: BTreeMap<u32, u16>,
    /// Bit i: directory page i counts in place B.
    pub directory_current: Box<[u8; 1024]>,
}

impl std::fmt::Debug for Superblock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Superblock")
            .field("update", &self.update)
            .field("clean", &self.clean)
            .field("incarnation", &self.incarnation)
            .field("checkpoint", &self.checkpoint)
            .field("tail_sequence", &self.tail_sequence)
            .finish_non_exhaustive()
    }
}

impl Superblock {
    /// A new store's: empty, clean, in its first life.
    pub fn new(store: [u8; 16], cluster: [u8; 16], geometry: Geometry) -> Self {
        Self {
            store,
            cluster,
            update: 1,
            geometry,
            growths: 0,
            clean: true,
            doubt: false,
            incarnation: 1,
            lost_at: 0,
            checkpoint: 0,
            tail_sequence: 1,
            tail_offset: 0,
            proven: 0,
            scrub: Spot::default(),
            failed: BTreeMap::new(),
            directory_current: Box::new([0; 1024]),
        }
    }

    /// Which place of a directory page counts.
    pub fn directory_place(&self, index: u32) -> u8 {
        (self.directory_current[index as usize / 8] >> (index % 8)) & 1
    }

    /// Makes the other place count.
    pub fn flip_directory(&mut self, index: u32) {
        self.directory_current[index as usize / 8] ^= 1 << (index % 8);
    }

    fn features(&self) -> u64 {
        let checksums = u64::from(self.geometry.has_checksums()) * CHECKSUMS;
        let grown = u64::from(self.growths > 0) * GROWN;
        checksums | grown | (u64::from(!self.failed.is_empty()) * FAILED)
    }

    fn raw_failed(&self) -> [RawFailed; FAILED_EXTENTS_MAX] {
        assert!(self.failed.len() <= FAILED_EXTENTS_MAX, "more than fit");
        let mut raw = [NO_FAILED; FAILED_EXTENTS_MAX];
        for (raw, (extent, blocks)) in raw.iter_mut().zip(&self.failed) {
            (raw.extent, raw.blocks) = ((*extent).into(), (*blocks).into());
        }
        raw
    }

    /// The bytes, sealed.
    pub fn encode(&self) -> Vec<u8> {
        let g = &self.geometry;
        let first = g.first();
        let raw = Raw {
            checksum: 0.into(),
            version: VERSION.into(),
            flags: ((u16::from(self.clean) * CLEAN) | (u16::from(self.doubt) * DOUBT)).into(),
            magic: MAGIC,
            store: self.store,
            cluster: self.cluster,
            update: self.update.into(),
            device_bytes: g.device_bytes.into(),
            block_bytes: BLOCK_BYTES.into(),
            extent_bytes: EXTENT_BYTES.into(),
            journal_bytes: g.journal_bytes.into(),
            directory_offset: first.directory_offset.into(),
            pages_offset: first.pages_offset.into(),
            data_offset: first.data_offset.into(),
            directory_pages: first.directory_pages.into(),
            pages: first.pages.into(),
            extents: first.extents.into(),
            growths: self.growths.into(),
            incarnation: self.incarnation.into(),
            lost_at: self.lost_at.into(),
            checkpoint: self.checkpoint.into(),
            tail_sequence: self.tail_sequence.into(),
            tail_offset: self.tail_offset.into(),
            proven: self.proven.into(),
            features: self.features().into(),
            checksums_offset: first.checksums_offset.into(),
            checksum_blocks: first.checksum_blocks.into(),
            scrub_nsid: self.scrub.nsid.into(),
            scrub_extent: self.scrub.extent.into(),
            scrub_generation: self.scrub.generation.into(),
            failed_extents: u32::try_from(self.failed.len()).expect("bounded").into(),
            failed: self.raw_failed(),
            directory_current: *self.directory_current,
        };
        let mut bytes = raw.as_bytes().to_vec();
        seal(&mut bytes);
        bytes
    }

    /// Checks and decodes. The version is looked at before the checksum, so that a newer format is
    /// told from a damaged one.
    ///
    /// # Errors
    /// [`Corrupt`]; `Unknown` carries the version by [`Superblock::peek_version`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let raw = Raw::ref_from_bytes(bytes).map_err(|_| Corrupt::Length)?;
        if raw.magic != MAGIC {
            return Err(Corrupt::Magic);
        }
        if !is_sealed(bytes) {
            return Err(Corrupt::Checksum);
        }
        if !is_known(raw.version.get()) || raw.features.get() & !FEATURES != 0 {
            return Err(Corrupt::Unknown);
        }
        let checksums = raw.features.get() & CHECKSUMS != 0;
        let growths = raw.growths.get();
        let grown = raw.features.get() & GROWN != 0;
        let first = Tract {
            checksums_offset: raw.checksums_offset.get(),
            checksum_blocks: raw.checksum_blocks.get(),
            directory_offset: raw.directory_offset.get(),
            directory_pages: raw.directory_pages.get(),
            pages_offset: raw.pages_offset.get(),
            pages: raw.pages.get(),
            data_offset: raw.data_offset.get(),
            extents: raw.extents.get(),
        };
        let (device_bytes, journal_bytes) = (raw.device_bytes.get(), raw.journal_bytes.get());
        let geometry = Geometry::new(device_bytes, journal_bytes, first);
        let units = raw.block_bytes.get() == BLOCK_BYTES && raw.extent_bytes.get() == EXTENT_BYTES;
        let tail = raw.tail_offset.get();
        let tail_fits = tail < geometry.journal_bytes && tail.is_multiple_of(BLOCK_BYTES.into());
        let agree = checksums == geometry.has_checksums()
            && grown == (growths > 0)
            && growths <= GROWTHS_MAX;
        if !units || !geometry.is_consistent() || !tail_fits || !agree {
            return Err(Corrupt::Value);
        }
        // What growths have brought is not known yet.
        let extents = if grown { u32::MAX } else { geometry.extents() };
        let failed = failed_of(raw, extents)?;
        Ok(Self {
            store: raw.store,
            cluster: raw.cluster,
            update: raw.update.get(),
            failed,
            geometry,
            growths,
            clean: raw.flags.get() & CLEAN != 0,
            doubt: raw.flags.get() & DOUBT != 0,
            incarnation: raw.incarnation.get(),
            lost_at: raw.lost_at.get(),
            checkpoint: raw.checkpoint.get(),
            tail_sequence: raw.tail_sequence.get(),
            tail_offset: tail,
            proven: raw.proven.get(),
            scrub: Spot {
                nsid: raw.scrub_nsid.get(),
                extent: raw.scrub_extent.get(),
                generation: raw.scrub_generation.get(),
            },
            directory_current: Box::new(raw.directory_current),
        })
    }

    /// Completes the region table of a store that has grown by its tract table.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn complete(&mut self, table: &[u8]) -> Result<(), Corrupt> {
        let tracts = tracts::decode(table, self.store, self.growths)?;
        let grown = self.geometry.clone().with_growths(&tracts);
        let grown = grown.ok_or(Corrupt::Value)?;
        if self.failed.keys().any(|extent| *extent >= grown.extents()) {
            return Err(Corrupt::Value);
        }
        self.geometry = grown;
        Ok(())
    }

    /// The version field of something that carries our magic.
    pub fn peek_version(bytes: &[u8]) -> Option<u16> {
        let raw = Raw::ref_from_bytes(bytes).ok()?;
        (raw.magic == MAGIC).then(|| raw.version.get())
    }

    /// The newer valid one of two copies and where it lies.
    ///
    /// # Errors
    /// The more telling of the two reasons if neither is valid.
    pub fn choose(a: &[u8], b: &[u8]) -> Result<(Self, usize), Corrupt> {
        match (Self::decode(a), Self::decode(b)) {
            (Ok(a), Ok(b)) if b.update > a.update => Ok((b, 1)),
            (Ok(a), _) => Ok((a, 0)),
            (Err(_), Ok(b)) => Ok((b, 1)),
            (Err(Corrupt::Magic), Err(e)) | (Err(e), Err(_)) => Err(e),
        }
    }
}

fn failed_of(raw: &Raw, extents: u32) -> Result<BTreeMap<u32, u16>, Corrupt> {
    if raw.features.get() & FAILED == 0 {
        return Ok(BTreeMap::new());
    }
    let listed = raw.failed.get(..raw.failed_extents.get() as usize);
    let listed = listed.ok_or(Corrupt::Value)?.iter();
    let failed: BTreeMap<u32, u16> = listed.map(|f| (f.extent.get(), f.blocks.get())).collect();
    let sound = |(extent, blocks): (&u32, &u16)| *extent < extents && *blocks != 0;
    match failed.iter().all(sound) {
        true => Ok(failed),
        false => Err(Corrupt::Value),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn superblock(update: u64) -> Superblock {
        let geometry = Geometry::plan(64 << 20, 1 << 20, update.is_multiple_of(2)).unwrap();
        let mut s = Superblock::new([7; 16], [9; 16], geometry);
        s.update = update;
        s.flip_directory(0);
        s
    }

    #[test]
    fn the_newer_valid_copy_wins() {
        let (old, new) = (superblock(4).encode(), superblock(5).encode());
        assert_eq!(Superblock::choose(&old, &new).unwrap().1, 1);
        assert_eq!(Superblock::choose(&new, &old).unwrap().0.update, 5);
        let mut torn = new.clone();
        torn[3000] ^= 1;
        assert_eq!(Superblock::choose(&torn, &old).unwrap().0.update, 4);
        assert_eq!(
            Superblock::choose(&torn, &[0; 4096]),
            Err(Corrupt::Checksum)
        );
        assert_eq!(
            Superblock::choose(&[0; 4096], &torn),
            Err(Corrupt::Checksum)
        );
        assert_eq!(
            Superblock::choose(&[0; 4096], &[0; 4096]),
            Err(Corrupt::Magic)
        );
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_no_flipped_bit_passes(
            update: u64, incarnation: u64, tail in 0u64..256, clean: bool, doubt: bool,
            failed in proptest::collection::btree_map(0u32..500, 1u16.., 0..=FAILED_EXTENTS_MAX),
            growths in 0..=GROWTHS_MAX,
            at in 0usize..4096, bit in 0u8..8
        ) {
            let mut s = superblock(update);
            (s.incarnation, s.tail_offset, s.clean) = (incarnation, tail * 4096, clean);
            s.doubt = doubt;
            s.failed = failed;
            s.growths = growths;
            s.scrub = Spot { nsid: 7, extent: incarnation, generation: u32::MAX };
            let mut bytes = s.encode();
            prop_assert_eq!(&Superblock::decode(&bytes).unwrap(), &s);
            bytes[at] ^= 1 << bit;
            prop_assert!(Superblock::decode(&bytes).is_err());
        }
    }
}

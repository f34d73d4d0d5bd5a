//! A store that nobody has open, looked at without changing it: what `ubs-verify compare` reads and
//! `ubsctl store fsck` checks.

use crate::core::Core;
use crate::core::facts::{OpenFacts, OpenFault, Rot, SliceState, StoreFault};
use crate::core::format::checksums::{Checksums, UNKNOWN};
use crate::core::survey::Spot;
use crate::hash::block_checksum;
use crate::prepare::open_checked;
use shardmap::units::{BLOCK_BYTES, BlockRange, EXTENT_BYTES, Generation, Nsid};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Metadata in memory, data on demand. Blocking.
#[derive(Debug)]
pub struct Examined {
    core: Core,
    facts: OpenFacts,
    file: File,
    path: PathBuf,
}

impl Examined {
    /// Reads and checks all metadata, as [`Store::check`](crate::Store::check).
    ///
    /// # Errors
    /// What opening it would fail with; [`OpenFault::Setup`] if a storaged has it open.
    pub fn open(path: &Path) -> Result<Self, StoreFault> {
        let (core, file, facts) = open_checked(path)?;
        Ok(Self {
            core,
            facts,
            file,
            path: path.to_owned(),
        })
    }

    /// What was found.
    pub const fn facts(&self) -> &OpenFacts {
        &self.facts
    }

    /// All slices, ascending by namespace id.
    pub fn slices(&self) -> impl Iterator<Item = SliceState> + '_ {
        self.core.slices()
    }

    /// Fills `into`, as long as the range, with what the slice holds: absent blocks are zeroes. Asks
    /// neither for a session nor whether the slice is complete.
    ///
    /// # Errors
    /// The slice or the shard is not here, the range passes the end, or the device fails.
    pub fn read(&self, nsid: Nsid, range: BlockRange, into: &mut [u8]) -> Result<(), StoreFault> {
        self.read_in(nsid, Generation(0), range, into)
    }

    /// The same of a generation; zero: the head.
    ///
    /// # Errors
    /// As before, or there is no such generation.
    pub fn read_in(
        &self,
        nsid: Nsid,
        generation: Generation,
        range: BlockRange,
        into: &mut [u8],
    ) -> Result<(), StoreFault> {
        let mut rest = into;
        for (blocks, source) in self.core.locate_range(nsid, range, generation)? {
            let len_bytes = blocks as usize * BLOCK_BYTES as usize;
            let (part, after) = rest.split_at_mut(len_bytes);
            rest = after;
            let Some(offset_bytes) = source else {
                part.fill(0);
                continue;
            };
            let read = self.file.read_exact_at(part, offset_bytes);
            read.map_err(|e| OpenFault::Device {
                path: self.path.display().to_string(),
                what: "reading data",
                offset_bytes,
                errno: e.raw_os_error().unwrap_or(0),
            })?;
        }
        assert!(rest.is_empty(), "as long as the range");
        Ok(())
    }
}

/// What reading all data of a stopped store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks read.
    pub blocks: u64,
    /// Of those: no checksum is known.
    pub unknown: u64,
    /// Of those: the device did not read them.
    pub unreadable: u64,
    /// Of those: not what was written there.
    pub rotten: u64,
    /// The first of the last two kinds, at most 1 000.
    pub found: Vec<Rot>,
}

/// Most findings that are listed.
const FOUND_MAX: usize = 1000;

impl Examined {
    /// Reads all data of all generations and compares it with its checksums. `progress` is told how many
    /// blocks were read, once in a while. Changes nothing.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Verified {
        let mut verified = Verified::default();
        let mut buffer = vec![0; EXTENT_BYTES as usize];
        let (mut at, mut home) = (Spot::default(), None);
        while let Some(found) = self.core.next_data(at) {
            at = found.spot.after();
            let known = self.known(found.physical, &mut home);
            for (first, blocks) in found.runs() {
                let bytes = &mut buffer[..(blocks * BLOCK_BYTES) as usize];
                let offset = self.core.extent_offset(found.physical);
                let offset = offset + u64::from(first * BLOCK_BYTES);
                let read = self.file.read_exact_at(bytes, offset).is_ok();
                for (block, content) in (first..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
                    let known = known[block as usize];
                    verified.blocks += 1;
                    let good = match (read, known) {
                        (false, _) => {
                            verified.unreadable += 1;
                            false
                        }
                        (true, UNKNOWN) => {
                            verified.unknown += 1;
                            true
                        }
                        (true, known) => {
                            let good = block_checksum(content) == known;
                            verified.rotten += u64::from(!good);
                            good
                        }
                    };
                    if !good && verified.found.len() < FOUND_MAX {
                        verified.found.push(self.core.rot_at(found, block));
                    }
                }
            }
            progress(verified.blocks);
        }
        verified
    }

    /// What is known of an extent's blocks; `home` is the checksum block looked at last.
    fn known(&self, physical: u32, home: &mut Option<(u32, Option<Box<Checksums>>)>) -> [u32; 16] {
        let Some((number, offset)) = self.core.home_of(physical) else {
            return [UNKNOWN; 16];
        };
        if home.as_ref().is_none_or(|(last, _)| *last != number) {
            let mut bytes = vec![0; BLOCK_BYTES as usize];
            let read = self.file.read_exact_at(&mut bytes, offset).is_ok();
            let values = self.core.decode_home(number, &bytes).filter(|_| read);
            *home = Some((number, values));
        }
        let (_, values) = home.as_ref().expect("just set");
        self.core.known_of(values.as_deref(), physical)
    }
}

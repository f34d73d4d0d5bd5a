//! A store that nobody has open, looked at without changing it: what `ubs-verify compare` reads.

use crate::core::Core;
use crate::core::facts::{OpenFault, SliceState, StoreFault};
use crate::prepare::open_checked;
use shardmap::units::{BLOCK_BYTES, BlockRange, Generation, Nsid};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Metadata in memory, data on demand. Blocking.
#[derive(Debug)]
pub struct Examined {
    core: Core,
    file: File,
    path: PathBuf,
}

impl Examined {
    /// Reads and checks all metadata, as [`Store::check`](crate::Store::check).
    ///
    /// # Errors
    /// What opening it would fail with; [`OpenFault::Setup`] if a storaged has it open.
    pub fn open(path: &Path) -> Result<Self, StoreFault> {
        let (core, file, _) = open_checked(path)?;
        Ok(Self {
            core,
            file,
            path: path.to_owned(),
        })
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

//! The block device or file under test: direct, aligned, one request at a time per caller.

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use shardmap::units::{BLOCK_BYTES, BlockRange};
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Direct IO wants memory aligned like the medium.
const ALIGNMENT_BYTES: usize = BLOCK_BYTES as usize;

/// What is written and read.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    pub(crate) size_blocks: u64,
}

impl Device {
    pub(crate) fn open(path: &Path, writable: bool) -> Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("a flag fits");
        let mut options = OpenOptions::new();
        options.read(true).write(writable).custom_flags(flags);
        let at = || format!("cannot open {} for direct IO", path.display());
        let mut file = options.open(path).with_context(at)?;
        let size_bytes = file.seek(SeekFrom::End(0)).with_context(at)?;
        Ok(Self {
            file,
            size_blocks: size_bytes / u64::from(BLOCK_BYTES),
        })
    }

    pub(crate) fn read(&self, range: BlockRange, into: &mut Buffer) -> Result<(), Errno> {
        let bytes = into.bytes_mut(range);
        let wanted = bytes.len();
        let mut parts = [IoSliceMut::new(bytes)];
        let offset = range.offset_bytes();
        let got = preadv2(&self.file, &mut parts, offset, ReadWriteFlags::empty())?;
        whole(got, wanted)
    }

    pub(crate) fn write(&self, range: BlockRange, from: &Buffer, fua: bool) -> Result<(), Errno> {
        let bytes = from.bytes(range);
        let flags = if fua {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        };
        let parts = [IoSlice::new(bytes)];
        let done = pwritev2(&self.file, &parts, range.offset_bytes(), flags)?;
        whole(done, bytes.len())
    }

    /// Discards in a way that leaves zeroes.
    pub(crate) fn zero(&self, range: BlockRange) -> Result<(), Errno> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, how, range.offset_bytes(), range.len_bytes())
    }

    pub(crate) fn flush(&self) -> Result<(), Errno> {
        rustix::fs::fdatasync(&self.file)
    }
}

/// A device that does half a request has failed it.
fn whole(done: usize, wanted: usize) -> Result<(), Errno> {
    if done == wanted {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}

/// Memory for one request.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(crate) fn new(blocks: u32) -> Self {
        let memory = vec![0; blocks as usize * BLOCK_BYTES as usize + ALIGNMENT_BYTES];
        let start = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
        Self { memory, start }
    }

    pub(crate) fn bytes(&self, range: BlockRange) -> &[u8] {
        &self.memory[self.start..][..len_bytes(range)]
    }

    pub(crate) fn bytes_mut(&mut self, range: BlockRange) -> &mut [u8] {
        &mut self.memory[self.start..][..len_bytes(range)]
    }
}

fn len_bytes(range: BlockRange) -> usize {
    usize::try_from(range.len_bytes()).expect("a request fits memory")
}

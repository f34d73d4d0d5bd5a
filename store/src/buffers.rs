//! The few buffers through which metadata and hashes go: taken once, at open, so that a checkpoint or a
//! journal record never waits for the arena.

use crate::limits::{
    CHECKPOINT_WRITES_MAX, CHECKSUM_READS_MAX, CHECKSUM_WRITES_MAX, META_READ_BYTES_MAX,
};
use reactor::{Arena, Buf, BufMut};
use shardmap::units::{BLOCK_BYTES, EXTENT_BYTES};

const PAGE_BUFFER_BYTES: u32 = 16 * 1024;

/// Metadata buffers by size.
#[derive(Debug)]
pub(crate) struct Buffers {
    small: Vec<BufMut>,
    large: Vec<BufMut>,
    /// For checksum blocks: as many as are moved at once.
    checksums: Vec<BufMut>,
    /// For hash requests, one at a time.
    pub(crate) hash: Option<BufMut>,
    /// For the scrub, one extent at a time.
    pub(crate) scrub: Option<BufMut>,
    /// For copies of a merge, one at a time.
    pub(crate) copy: Option<BufMut>,
}

impl Buffers {
    /// `None` if the arena has no room.
    pub(crate) fn new(arena: &Arena) -> Option<Self> {
        let small = (0..=CHECKPOINT_WRITES_MAX).map(|_| arena.take(PAGE_BUFFER_BYTES));
        let large = (0..2).map(|_| arena.take(META_READ_BYTES_MAX));
        // One more: a block that was read is looked at while the next is asked for.
        let checksums = CHECKSUM_READS_MAX + CHECKSUM_WRITES_MAX + 1;
        let checksums = (0..checksums).map(|_| arena.take(BLOCK_BYTES));
        let hash = Some(arena.take(META_READ_BYTES_MAX)?);
        Some(Self {
            small: small.collect::<Option<_>>()?,
            large: large.collect::<Option<_>>()?,
            checksums: checksums.collect::<Option<_>>()?,
            hash,
            scrub: Some(arena.take(EXTENT_BYTES)?),
            copy: Some(arena.take(EXTENT_BYTES)?),
        })
    }

    /// A free buffer that holds so many bytes.
    pub(crate) fn take(&mut self, len_bytes: usize) -> Option<BufMut> {
        let small = len_bytes <= PAGE_BUFFER_BYTES as usize;
        let first = if small { self.small.pop() } else { None };
        first.or_else(|| self.large.pop())
    }

    /// A buffer for a checksum block.
    pub(crate) fn take_checksums(&mut self) -> BufMut {
        let buffer = self.checksums.pop();
        buffer.expect("the core moves no more than there are buffers")
    }

    pub(crate) fn put(&mut self, buffer: BufMut) {
        if buffer.len_bytes() == PAGE_BUFFER_BYTES {
            self.small.push(buffer);
        } else if buffer.len_bytes() == BLOCK_BYTES {
            self.checksums.push(buffer);
        } else {
            self.large.push(buffer);
        }
    }

    pub(crate) fn put_shared(&mut self, buffer: Buf) {
        let whole = buffer
            .try_unfreeze()
            .expect("the op has given back its window");
        self.put(whole);
    }
}

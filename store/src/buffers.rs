//! The few buffers through which metadata and hashes go: taken once, at open, so that a checkpoint or a
//! journal record never waits for the arena.

use crate::limits::{CHECKPOINT_WRITES_MAX, META_READ_BYTES_MAX};
use reactor::{Arena, Buf, BufMut};
use shardmap::units::EXTENT_BYTES;

const PAGE_BUFFER_BYTES: u32 = 16 * 1024;

/// Metadata buffers by size.
#[derive(Debug)]
pub(crate) struct Buffers {
    small: Vec<BufMut>,
    large: Vec<BufMut>,
    /// For hash requests, one at a time.
    pub(crate) hash: Option<BufMut>,
    /// For copies of a merge, one at a time.
    pub(crate) copy: Option<BufMut>,
}

impl Buffers {
    /// `None` if the arena has no room.
    pub(crate) fn new(arena: &Arena) -> Option<Self> {
        let small = (0..=CHECKPOINT_WRITES_MAX).map(|_| arena.take(PAGE_BUFFER_BYTES));
        let large = (0..2).map(|_| arena.take(META_READ_BYTES_MAX));
        let hash = Some(arena.take(META_READ_BYTES_MAX)?);
        Some(Self {
            small: small.collect::<Option<_>>()?,
            large: large.collect::<Option<_>>()?,
            hash,
            copy: Some(arena.take(EXTENT_BYTES)?),
        })
    }

    /// A free buffer that holds so many bytes.
    pub(crate) fn take(&mut self, len_bytes: usize) -> Option<BufMut> {
        let small = len_bytes <= PAGE_BUFFER_BYTES as usize;
        let first = if small { self.small.pop() } else { None };
        first.or_else(|| self.large.pop())
    }

    pub(crate) fn put(&mut self, buffer: BufMut) {
        if buffer.len_bytes() == PAGE_BUFFER_BYTES {
            self.small.push(buffer);
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

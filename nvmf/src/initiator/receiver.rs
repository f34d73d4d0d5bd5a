//! What a connection hears: headers from staging, payload straight into the caller's window.
//!
//! A receive names up to two windows: the rest of the payload that is due, then staging. While it
//! is in flight the rest of the caller's window stays here or in the request, and is joined again
//! when it ends.

use super::limits::STAGING_BYTES;
use crate::proto::host::SlotId;
use reactor::{Arena, BufMut};

/// Payload that is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub(super) slot: SlotId,
    /// Offset in the command's data, in bytes.
    pub(super) start_bytes: u32,
    /// Of this PDU, in bytes.
    pub(super) len_bytes: u32,
    /// Of these, received, in bytes.
    pub(super) got_bytes: u32,
    pub(super) digest: bool,
}

impl Incoming {
    pub(super) fn left_bytes(&self) -> u32 {
        self.len_bytes - self.got_bytes
    }

    /// Where the next byte goes in the command's data.
    pub(super) fn at_bytes(&self) -> u32 {
        self.start_bytes + self.got_bytes
    }
}

/// What comes next in the stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    Header,
    Data(Incoming),
    Digest(Incoming),
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) expect: Expect,
    /// Whole while no receive is in flight, else its first `end` bytes.
    staging: BufMut,
    /// Unparsed bytes of staging: `[start, end)`.
    start: u32,
    end: u32,
    /// The part of the caller's window before the one being received into.
    pub(super) direct_head: Option<BufMut>,
}

impl Receiver {
    /// `None` if the arena is exhausted.
    pub(super) fn new(arena: &Arena) -> Option<Self> {
        let staging = arena.take(STAGING_BYTES)?;
        Some(Self {
            expect: Expect::Header,
            staging,
            start: 0,
            end: 0,
            direct_head: None,
        })
    }

    /// What arrived and was not looked at.
    pub(super) fn unparsed(&self) -> &[u8] {
        &self.staging.bytes()[self.start as usize..self.end as usize]
    }

    pub(super) fn consume(&mut self, len_bytes: u32) {
        self.start += len_bytes;
        assert!(self.start <= self.end);
    }

    /// The free part of staging, to be received into. What is unparsed moves to the front first:
    /// less than a header, or nothing.
    pub(super) fn lend(&mut self) -> BufMut {
        let (start, end) = (self.start as usize, self.end as usize);
        self.staging.bytes_mut().copy_within(start..end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let mut free = self.staging.split_to(self.end);
        std::mem::swap(&mut free, &mut self.staging);
        assert!(!free.is_empty(), "initiator: a header fills staging");
        free
    }

    /// The free part comes back with this many new bytes.
    pub(super) fn take_back(&mut self, free: BufMut, new_bytes: u32) {
        self.staging.join(free);
        self.end += new_bytes;
        assert!(self.end <= self.staging.len_bytes());
    }
}

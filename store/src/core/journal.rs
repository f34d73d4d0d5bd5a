//! The journal's lane: entries gather in drafts, one record is written at a time (group commit), and who
//! waits for an entry waits for its ticket.

use super::format::entry::Entry;
use super::format::geometry::JOURNAL_OFFSET;
use super::format::journal::{RECORD_ENTRIES_MAX, RecordHead, encode, record_bytes};
use shardmap::units::BLOCK_BYTES;
use std::collections::VecDeque;

/// Number of an entry; durable in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

#[derive(Debug, Default)]
struct Draft {
    entries: Vec<u8>,
    last: Ticket,
}

#[derive(Debug)]
struct Running {
    last: Ticket,
    sequence: u64,
    parts: u32,
}

/// Where replay begins: a record's sequence and its offset in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) sequence: u64,
    pub(super) offset: u64,
}

/// The journal of an open store.
#[derive(Debug)]
pub(super) struct Journal {
    ring_bytes: u64,
    tail: Tail,
    /// Where the next record goes.
    head: Tail,
    used_bytes: u64,
    drafts: VecDeque<Draft>,
    running: Option<Running>,
    appended: Ticket,
    durable: Ticket,
    proven: u64,
}

/// A part of a record and where it goes on the device.
pub(super) type Part = (u64, Vec<u8>);

impl Journal {
    pub(super) fn new(ring_bytes: u64, tail: Tail, head: Tail, proven: u64) -> Self {
        let used_bytes = if head.sequence == tail.sequence {
            0
        } else if head.offset > tail.offset {
            head.offset - tail.offset
        } else {
            ring_bytes - tail.offset + head.offset
        };
        Self {
            ring_bytes,
            tail,
            head,
            used_bytes,
            drafts: VecDeque::new(),
            running: None,
            appended: Ticket(0),
            durable: Ticket(0),
            proven,
        }
    }

    /// Queues an entry.
    pub(super) fn append(&mut self, entry: &Entry) -> Ticket {
        let mut bytes = Vec::with_capacity(32);
        entry.encode(&mut bytes);
        self.appended.0 += 1;
        let fits = |d: &&mut Draft| d.entries.len() + bytes.len() <= RECORD_ENTRIES_MAX;
        if let Some(draft) = self.drafts.back_mut().filter(fits) {
            draft.entries.extend_from_slice(&bytes);
            draft.last = self.appended;
        } else {
            self.drafts.push_back(Draft {
                entries: bytes,
                last: self.appended,
            });
        }
        self.appended
    }

    /// The next record's parts (two if it wraps), if one can be written now.
    pub(super) fn next_record(&mut self, store: [u8; 16], incarnation: u64) -> Option<Vec<Part>> {
        if self.running.is_some() {
            return None;
        }
        let len = u64::from(record_bytes(self.drafts.front()?.entries.len()));
        // One block always stays free: a full ring would look like an empty one.
        if self.used_bytes + len + u64::from(BLOCK_BYTES) > self.ring_bytes {
            return None;
        }
        let draft = self.drafts.pop_front().expect("just looked at");
        let head = RecordHead {
            sequence: self.head.sequence,
            proven: self.proven,
            incarnation,
        };
        let mut bytes = encode(store, head, &draft.entries);
        let room = self.ring_bytes - self.head.offset;
        let mut parts = Vec::with_capacity(1);
        let at = JOURNAL_OFFSET + self.head.offset;
        if len > room {
            let rest = bytes.split_off(usize::try_from(room).expect("below a record"));
            parts.push((at, bytes));
            parts.push((JOURNAL_OFFSET, rest));
        } else {
            parts.push((at, bytes));
        }
        let count = u32::try_from(parts.len()).expect("one or two");
        self.running = Some(Running {
            last: draft.last,
            sequence: self.head.sequence,
            parts: count,
        });
        self.head.offset = (self.head.offset + len) % self.ring_bytes;
        self.head.sequence += 1;
        self.used_bytes += len;
        Some(parts)
    }

    /// A part of the record is durable; the ticket up to which all is, once it is the last part.
    pub(super) fn part_done(&mut self) -> Option<Ticket> {
        let running = self.running.as_mut().expect("a record is being written");
        running.parts -= 1;
        if running.parts > 0 {
            return None;
        }
        self.durable = running.last;
        self.proven = running.sequence;
        self.running = None;
        Some(self.durable)
    }

    pub(super) fn is_durable(&self, ticket: Ticket) -> bool {
        ticket <= self.durable
    }

    /// The newest entry that is not durable yet, if there is one.
    pub(super) fn newest_pending(&self) -> Option<Ticket> {
        (self.appended > self.durable).then_some(self.appended)
    }

    /// What a checkpoint that starts now makes unnecessary: everything before the next record.
    pub(super) const fn head(&self) -> Tail {
        self.head
    }

    pub(super) const fn proven(&self) -> u64 {
        self.proven
    }

    /// The records before `tail` will not be replayed any more.
    pub(super) fn move_tail(&mut self, tail: Tail) {
        let freed = if tail.sequence == self.tail.sequence {
            0
        } else if tail.offset > self.tail.offset {
            tail.offset - self.tail.offset
        } else {
            self.ring_bytes - self.tail.offset + tail.offset
        };
        assert!(
            freed <= self.used_bytes,
            "{freed} of {} bytes",
            self.used_bytes
        );
        self.used_bytes -= freed;
        self.tail = tail;
    }

    pub(super) const fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Time for a checkpoint: half of the ring is used.
    pub(super) const fn is_filling(&self) -> bool {
        self.used_bytes * 2 > self.ring_bytes
    }

    /// More waits than the next record takes.
    pub(super) fn has_backlog(&self) -> bool {
        self.drafts.len() > 1
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none() && self.drafts.is_empty()
    }
}

//! What happens to each tag of a device: the machine `UblkDrv`.
//!
//! ```text
//!            Mapped            Offered (flush, discard, zeroes) ──────────────┐
//! Unfetched ───────► Fetching ───────► Wanting ──► CopyingIn ──► Serving ◄────┘
//!                       │     Offered     │  (write)                │ ▲
//!                       │                 └──────────(read)─────────┼─┘
//!             Withdrawn │                                  Answered │ read, without a fault
//!                       ▼                                     ┌─────┴──────► CopyingOut
//!                   Withdrawn ◄─────── Committing ◄───────────┴──────────────────┘
//!                           Withdrawn      │ Offered: as from Fetching
//! ```
//!
//! Promises: the driver gets exactly one fetch per tag, and after it exactly one commit per request;
//! no command is issued for a withdrawn tag; a request is handed out exactly once and its answer is
//! committed even while the device is being stopped (the driver waits for it); requests that wait
//! for a buffer get one in the order of their arrival. The caller owes: one event per command it
//! was told to issue, one answer per request it was handed.
//!
//! No bytes here, and no time: a request may take for ever, because deadlines are the volume's.

use crate::limits::{BLOCK_BYTES, BLOCK_SECTORS, IO_BYTES_MAX, RANGE_BYTES_MAX};
use crate::status::{Fault, commit_result};
use crate::uapi::{self, IoDesc};
use std::collections::VecDeque;

/// Position of a tag among all tags of a device: queue × depth + tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TagIndex(pub u32);

/// What the kernel wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read.
    Read {
        /// First block.
        first_block: u64,
        /// Number of blocks.
        blocks: u32,
    },
    /// Write.
    Write {
        /// First block.
        first_block: u64,
        /// Number of blocks.
        blocks: u32,
        /// Durable before the answer.
        fua: bool,
    },
    /// Make all writes durable that were answered before this was handed out.
    Flush,
    /// The range holds nothing of interest.
    Discard {
        /// First block.
        first_block: u64,
        /// Number of blocks.
        blocks: u32,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First block.
        first_block: u64,
        /// Number of blocks.
        blocks: u32,
        /// Keep the space allocated.
        no_unmap: bool,
        /// Durable before the answer.
        fua: bool,
    },
}

impl Request {
    /// Bytes of payload that travel with it.
    pub fn payload_bytes(self) -> u32 {
        match self {
            Self::Read { blocks, .. } | Self::Write { blocks, .. } => blocks * BLOCK_BYTES,
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } => 0,
        }
    }
}

/// Where a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagState {
    /// Never given to the driver.
    Unfetched,
    /// The driver has it, for the first time: idle.
    Fetching,
    /// A request waits for a buffer.
    Wanting(Request),
    /// The payload of a write is on its way into its buffer.
    CopyingIn(Request),
    /// Handed out, not answered.
    Serving(Request),
    /// The payload of a read is on its way to the kernel.
    CopyingOut(Request),
    /// The driver has it, with an answer to the request before: idle.
    Committing,
    /// The driver gave it back for good, or broke it.
    Withdrawn,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagEvent {
    /// The descriptor array is mapped: time to fetch.
    Mapped,
    /// A fetch or commit completed with a request.
    Offered {
        /// Which tag.
        tag: TagIndex,
        /// Its descriptor.
        desc: IoDesc,
    },
    /// A fetch or commit completed with "going away".
    Withdrawn {
        /// Which tag.
        tag: TagIndex,
    },
    /// A fetch or commit was refused in a way it never should be.
    Refused {
        /// Which tag.
        tag: TagIndex,
        /// Positive error number.
        code: i32,
    },
    /// There was a buffer.
    BufferTaken {
        /// Which tag.
        tag: TagIndex,
    },
    /// There was no buffer.
    BufferDenied {
        /// Which tag.
        tag: TagIndex,
    },
    /// A write's payload arrived, or did not.
    CopiedIn {
        /// Which tag.
        tag: TagIndex,
        /// Whether all of it did.
        complete: bool,
    },
    /// The request was done, or not.
    Answered {
        /// Which tag.
        tag: TagIndex,
        /// How it went.
        result: Result<(), Fault>,
    },
    /// A read's payload reached the kernel, or did not.
    CopiedOut {
        /// Which tag.
        tag: TagIndex,
        /// Whether all of it did.
        complete: bool,
    },
    /// Buffers may have become free.
    TurnEnded,
    /// The device grows: its new blocks may be asked for from now on.
    Grown {
        /// New size in blocks.
        size_blocks: u64,
    },
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagEffect {
    /// Issue the first fetch.
    Fetch {
        /// Which tag.
        tag: TagIndex,
    },
    /// Try to get a buffer: `BufferTaken` or `BufferDenied` follows at once.
    TakeBuffer {
        /// Which tag.
        tag: TagIndex,
        /// How large, in bytes.
        len_bytes: u32,
    },
    /// Copy the payload from the kernel into the tag's buffer.
    CopyIn {
        /// Which tag.
        tag: TagIndex,
    },
    /// Hand the request out, with its buffer if it has one.
    Hand {
        /// Which tag.
        tag: TagIndex,
        /// The request.
        request: Request,
    },
    /// Copy the payload from the tag's buffer to the kernel.
    CopyOut {
        /// Which tag.
        tag: TagIndex,
    },
    /// Drop the tag's buffer, if any, and issue a commit.
    Commit {
        /// Which tag.
        tag: TagIndex,
        /// Bytes, or a negative error number.
        result: i32,
    },
    /// The driver holds no tag any more and never will.
    AllWithdrawn,
    /// A tag is lost for good: its requests would hang.
    Broke {
        /// Which tag.
        tag: TagIndex,
        /// Positive error number.
        code: i32,
    },
}

/// Most effects of one event other than [`TagEvent::Mapped`], which has one per tag.
pub const EFFECTS_PER_EVENT_MAX: usize = 2;

/// The tags of one device.
#[derive(Debug)]
pub struct Tags {
    states: Box<[TagState]>,
    /// Tags in `Wanting`, oldest first.
    wanting: VecDeque<TagIndex>,
    /// Whether the oldest has been denied a buffer since the last `TurnEnded`.
    starved: bool,
    withdrawn_count: u32,
    size_blocks: u64,
}

impl Tags {
    /// All tags of a device, none fetched.
    pub fn new(count: u32, size_blocks: u64) -> Self {
        assert!(count > 0, "a device without tags");
        Self {
            states: (0..count).map(|_| TagState::Unfetched).collect(),
            wanting: VecDeque::with_capacity(count as usize),
            starved: false,
            withdrawn_count: 0,
            size_blocks,
        }
    }

    /// Where a tag is.
    pub fn state(&self, tag: TagIndex) -> TagState {
        self.states[tag.0 as usize]
    }

    /// Requests that wait for a buffer.
    pub fn wanting_count(&self) -> usize {
        self.wanting.len()
    }

    /// Whether some request was handed out and not answered.
    pub fn is_serving(&self) -> bool {
        self.states
            .iter()
            .any(|state| matches!(state, TagState::Serving(_)))
    }

    /// Size of the device in blocks.
    pub fn size_blocks(&self) -> u64 {
        self.size_blocks
    }

    /// One event. Total for what a truthful caller can tell; panics on what it cannot.
    pub fn step(&mut self, event: TagEvent, out: &mut Vec<TagEffect>) {
        let before = out.len();
        match event {
            TagEvent::Mapped => self.on_mapped(out),
            TagEvent::Offered { tag, desc } => self.on_offered(tag, desc, out),
            TagEvent::Withdrawn { tag } => self.on_withdrawn(tag, out),
            TagEvent::Refused { tag, code } => {
                out.push(TagEffect::Broke { tag, code });
                self.on_withdrawn(tag, out);
            }
            TagEvent::BufferTaken { tag } => self.on_buffer_taken(tag, out),
            TagEvent::BufferDenied { tag } => self.on_buffer_denied(tag),
            TagEvent::CopiedIn { tag, complete } => self.on_copied_in(tag, complete, out),
            TagEvent::Answered { tag, result } => self.on_answered(tag, result, out),
            TagEvent::CopiedOut { tag, complete } => self.on_copied_out(tag, complete, out),
            TagEvent::TurnEnded => {
                self.starved = false;
                self.ask_for_oldest(out);
            }
            TagEvent::Grown { size_blocks } => {
                // Never down: a growth that the kernel refused may be followed by a smaller one.
                self.size_blocks = self.size_blocks.max(size_blocks);
            }
        }
        assert!(event == TagEvent::Mapped || out.len() - before <= EFFECTS_PER_EVENT_MAX);
        self.check_invariants();
    }

    fn on_mapped(&mut self, out: &mut Vec<TagEffect>) {
        for (state, index) in self.states.iter_mut().zip(0u32..) {
            assert_eq!(*state, TagState::Unfetched, "tag {index} is fetched once");
            *state = TagState::Fetching;
            out.push(TagEffect::Fetch {
                tag: TagIndex(index),
            });
        }
    }

    fn on_offered(&mut self, tag: TagIndex, desc: IoDesc, out: &mut Vec<TagEffect>) {
        self.assert_with_driver(tag);
        match parse(desc, self.size_blocks) {
            Err(fault) => self.commit(tag, Err(fault), out),
            Ok(request) if request.payload_bytes() == 0 => self.hand(tag, request, out),
            Ok(request) => {
                self.set(tag, TagState::Wanting(request));
                self.wanting.push_back(tag);
                if self.wanting.len() == 1 {
                    self.ask_for_oldest(out);
                }
            }
        }
    }

    fn on_withdrawn(&mut self, tag: TagIndex, out: &mut Vec<TagEffect>) {
        self.assert_with_driver(tag);
        self.set(tag, TagState::Withdrawn);
        self.withdrawn_count += 1;
        if self.withdrawn_count as usize == self.states.len() {
            out.push(TagEffect::AllWithdrawn);
        }
    }

    fn on_buffer_taken(&mut self, tag: TagIndex, out: &mut Vec<TagEffect>) {
        assert_eq!(
            self.wanting.pop_front(),
            Some(tag),
            "buffers go to the oldest"
        );
        let TagState::Wanting(request) = self.state(tag) else {
            panic!("tag {} got a buffer in state {:?}", tag.0, self.state(tag));
        };
        if let Request::Write { .. } = request {
            self.set(tag, TagState::CopyingIn(request));
            out.push(TagEffect::CopyIn { tag });
        } else {
            self.hand(tag, request, out);
        }
        self.ask_for_oldest(out);
    }

    fn on_buffer_denied(&mut self, tag: TagIndex) {
        assert_eq!(self.wanting.front(), Some(&tag), "only the oldest asks");
        self.starved = true;
    }

    fn on_copied_in(&mut self, tag: TagIndex, complete: bool, out: &mut Vec<TagEffect>) {
        let TagState::CopyingIn(request) = self.state(tag) else {
            panic!("tag {} was copied in state {:?}", tag.0, self.state(tag));
        };
        if complete {
            self.hand(tag, request, out);
        } else {
            self.commit(tag, Err(Fault::Io), out);
        }
    }

    fn on_answered(&mut self, tag: TagIndex, result: Result<(), Fault>, out: &mut Vec<TagEffect>) {
        let TagState::Serving(request) = self.state(tag) else {
            panic!("tag {} was answered in state {:?}", tag.0, self.state(tag));
        };
        match (request, result) {
            (Request::Read { .. }, Ok(())) => {
                self.set(tag, TagState::CopyingOut(request));
                out.push(TagEffect::CopyOut { tag });
            }
            (_, Ok(())) => self.commit(tag, Ok(request.payload_bytes()), out),
            (_, Err(fault)) => self.commit(tag, Err(fault), out),
        }
    }

    fn on_copied_out(&mut self, tag: TagIndex, complete: bool, out: &mut Vec<TagEffect>) {
        let TagState::CopyingOut(request) = self.state(tag) else {
            panic!("tag {} was copied in state {:?}", tag.0, self.state(tag));
        };
        let outcome = if complete {
            Ok(request.payload_bytes())
        } else {
            Err(Fault::Io)
        };
        self.commit(tag, outcome, out);
    }

    fn ask_for_oldest(&mut self, out: &mut Vec<TagEffect>) {
        let Some(&tag) = self.wanting.front() else {
            return;
        };
        let TagState::Wanting(request) = self.state(tag) else {
            panic!(
                "tag {} waits for a buffer in state {:?}",
                tag.0,
                self.state(tag)
            );
        };
        if !self.starved {
            out.push(TagEffect::TakeBuffer {
                tag,
                len_bytes: request.payload_bytes(),
            });
        }
    }

    fn hand(&mut self, tag: TagIndex, request: Request, out: &mut Vec<TagEffect>) {
        self.set(tag, TagState::Serving(request));
        out.push(TagEffect::Hand { tag, request });
    }

    fn commit(&mut self, tag: TagIndex, outcome: Result<u32, Fault>, out: &mut Vec<TagEffect>) {
        self.set(tag, TagState::Committing);
        out.push(TagEffect::Commit {
            tag,
            result: commit_result(outcome),
        });
    }

    fn set(&mut self, tag: TagIndex, state: TagState) {
        let slot = &mut self.states[tag.0 as usize];
        assert_ne!(*slot, TagState::Withdrawn, "tag {} is gone for good", tag.0);
        *slot = state;
    }

    fn assert_with_driver(&self, tag: TagIndex) {
        assert!(
            matches!(self.state(tag), TagState::Fetching | TagState::Committing),
            "the driver answered for tag {} in state {:?}",
            tag.0,
            self.state(tag)
        );
    }

    fn check_invariants(&self) {
        assert!(self.wanting.len() <= self.states.len());
        if cfg!(debug_assertions) {
            let count =
                |wanted: fn(&TagState) -> bool| self.states.iter().filter(|s| wanted(s)).count();
            assert_eq!(
                count(|s| matches!(s, TagState::Wanting(_))),
                self.wanting.len()
            );
            assert_eq!(
                count(|s| *s == TagState::Withdrawn),
                self.withdrawn_count as usize
            );
        }
    }
}

/// What a descriptor asks for. The driver keeps to the device's limits; what does not is an error
/// of the request, never a wrong access.
fn parse(desc: IoDesc, size_blocks: u64) -> Result<Request, Fault> {
    let op = desc.op_flags & uapi::OP_MASK;
    if op == uapi::OP_FLUSH {
        return Ok(Request::Flush);
    }
    let aligned = desc.nr_sectors.is_multiple_of(BLOCK_SECTORS)
        && desc.start_sector.is_multiple_of(u64::from(BLOCK_SECTORS));
    let first_block = desc.start_sector / u64::from(BLOCK_SECTORS);
    let blocks = desc.nr_sectors / BLOCK_SECTORS;
    let is_inside = first_block
        .checked_add(u64::from(blocks))
        .is_some_and(|end| end <= size_blocks);
    if !aligned || blocks == 0 || !is_inside {
        return Err(Fault::Io);
    }
    let fua = desc.op_flags & uapi::IO_F_FUA != 0;
    let (request, bytes_max) = match op {
        uapi::OP_READ => (
            Request::Read {
                first_block,
                blocks,
            },
            IO_BYTES_MAX,
        ),
        uapi::OP_WRITE => (
            Request::Write {
                first_block,
                blocks,
                fua,
            },
            IO_BYTES_MAX,
        ),
        uapi::OP_DISCARD => (
            Request::Discard {
                first_block,
                blocks,
            },
            RANGE_BYTES_MAX,
        ),
        uapi::OP_WRITE_ZEROES => {
            let no_unmap = desc.op_flags & uapi::IO_F_NOUNMAP != 0;
            (
                Request::WriteZeroes {
                    first_block,
                    blocks,
                    no_unmap,
                    fua,
                },
                RANGE_BYTES_MAX,
            )
        }
        _ => return Err(Fault::NotSupported),
    };
    if blocks > bytes_max / BLOCK_BYTES {
        Err(Fault::Io)
    } else {
        Ok(request)
    }
}

#[cfg(test)]
mod test;

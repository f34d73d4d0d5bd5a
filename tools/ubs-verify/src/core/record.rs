//! What happened, in the order in which it happened: the words of a journal.

use serde::{Deserialize, Serialize};
use shardmap::units::{BlockRange, Blocks, Generation, Lba, VolumeId};
use std::fmt;

/// Number of an attachment: later writers have larger numbers. Zero is nobody.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct WriterId(pub u32);

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writer {}", self.0)
    }
}

/// One action of one writer; the sequence number is also that of the blocks it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    /// Whose.
    pub writer: WriterId,
    /// Counts the writer's actions from 1.
    pub seq: u64,
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.writer, self.seq)
    }
}

/// What blocks hold before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Initial {
    /// A new volume.
    Zero,
    /// Anything without our stamp.
    Unknown,
}

/// What a history is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Goes into every stamp; a fresh random one if the volume's own is not known.
    pub volume: VolumeId,
    /// Size of the volume, in blocks.
    pub size_blocks: u64,
    /// What is there already.
    pub initial: Initial,
}

/// How the device came into the hands of the next writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handover {
    /// First attach, or after a detach: everything completed is durable.
    Clean,
    /// The device stayed; only the program that wrote ended, and its requests with it, some answers
    /// unseen.
    Continued,
    /// Without a detach: power cut, crash, forced detach. What was not flushed may be gone.
    Unclean,
}

/// What a writer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stamped blocks.
    Write {
        /// Where.
        range: BlockRange,
        /// The head it is tagged with.
        generation: Generation,
        /// Durable when it has ended well.
        fua: bool,
    },
    /// Discard or write-zeroes: the blocks are zero afterwards.
    Zero {
        /// Where.
        range: BlockRange,
        /// Durable when it has ended well.
        fua: bool,
    },
    /// What completed before this was issued is durable when it has ended well.
    Flush,
    /// Blocks to be judged.
    Read {
        /// Where.
        range: BlockRange,
    },
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Success was reported.
    Ok,
    /// An error was reported: a write may have taken effect by now, or never will.
    Failed,
}

/// What a legal read found, for what later reads may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sight {
    /// Zeroes.
    Zero,
    /// What was there before everything, where that is not known.
    Initial,
    /// A block of this write.
    Written(OpId),
}

/// One step of a history in its serial form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Always first.
    Begun(Subject),
    /// The next writer, numbered by their order, has the device; earlier ones are fenced.
    HandedOver(Handover),
    /// Recorded outside before it is sent to the device.
    Issued {
        /// Which.
        op: OpId,
        /// What.
        action: SerialAction,
    },
    /// Recorded when the answer is known.
    Ended {
        /// Which.
        op: OpId,
        /// How.
        how: Ending,
    },
    /// A read found this, and that was not the only possibility.
    Saw {
        /// The read.
        op: OpId,
        /// Where.
        lba: u64,
        /// What.
        sight: Sight,
    },
}

/// [`Action`] with its range as plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SerialAction {
    /// Start, blocks, generation, FUA.
    Write(u64, u32, u32, bool),
    /// Start, blocks, FUA.
    Zero(u64, u32, bool),
    /// Nothing more to say.
    Flush,
    /// Start, blocks.
    Read(u64, u32),
}

impl Action {
    /// The blocks it is about; a flush is about all.
    pub const fn range(&self) -> Option<BlockRange> {
        match self {
            Self::Write { range, .. } | Self::Zero { range, .. } | Self::Read { range } => {
                Some(*range)
            }
            Self::Flush => None,
        }
    }
}

impl From<Action> for SerialAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Write {
                range,
                generation,
                fua,
            } => Self::Write(range.start().0, range.blocks().0, generation.0, fua),
            Action::Zero { range, fua } => Self::Zero(range.start().0, range.blocks().0, fua),
            Action::Flush => Self::Flush,
            Action::Read { range } => Self::Read(range.start().0, range.blocks().0),
        }
    }
}

impl SerialAction {
    /// `None` if the range cannot be.
    pub fn parse(self) -> Option<Action> {
        let range = |start, blocks| BlockRange::new(Lba(start), Blocks(blocks));
        Some(match self {
            Self::Write(start, blocks, generation, fua) => Action::Write {
                range: range(start, blocks)?,
                generation: Generation(generation),
                fua,
            },
            Self::Zero(start, blocks, fua) => Action::Zero {
                range: range(start, blocks)?,
                fua,
            },
            Self::Flush => Action::Flush,
            Self::Read(start, blocks) => Action::Read {
                range: range(start, blocks)?,
            },
        })
    }
}

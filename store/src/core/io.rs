//! What goes into the core and what comes out of it.

use super::checksums::Span;
use super::facts::{
    GenerationState, Growth, Healed, OpenFacts, Scrubbed, SliceSpace, SliceSpec, SliceState, Stamp,
    StoreFault,
};
use roaring::RoaringBitmap;
use shardmap::units::{BlockRange, Epoch, Generation, Lba, Nsid, RegionIndex, VolumeId, WriteTick};

/// A command of the shell: a slot of its table, free again after [`Effect::Answer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u32);

/// A device operation the core has asked for; free again after its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u32);

/// [`StoreOp`](crate::StoreOp) without the bytes.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "told once, at StoreOp")]
pub enum Command {
    Read {
        range: BlockRange,
        generation: Generation,
    },
    /// A read for comparison, allowed on an incomplete slice.
    Compare {
        range: BlockRange,
        generation: Generation,
    },
    Write {
        range: BlockRange,
        fua: bool,
        generation: Generation,
    },
    Flush,
    Zero {
        range: BlockRange,
        deallocate: bool,
        fua: bool,
        generation: Generation,
    },
    Create {
        spec: SliceSpec,
        incomplete: bool,
    },
    Remove,
    Open {
        epoch: Epoch,
        volume: VolumeId,
    },
    Close,
    AssociationGone,
    State,
    Stamp(Stamp),
    Tick,
    Stable {
        tick: WriteTick,
        idle_ticks: u32,
        keep_max: u32,
    },
    AddMarks(RoaringBitmap),
    Complete(Stamp),
    SetIncomplete,
    ReadMarks {
        from: RegionIndex,
    },
    ReadPresence {
        from: RegionIndex,
        regions: u32,
        after: Generation,
        upto: Generation,
        shown: bool,
    },
    BeginGeneration(Generation),
    CompleteGeneration(Generation),
    DropGeneration(Generation),
    ReadGenerations,
    ReadSpace {
        from: u64,
    },
    /// The device has so many bytes, or does not say: its errno.
    Grow {
        device_bytes: Result<u64, i32>,
    },
    /// Not a request: reads the next cell of the scrub into a buffer of an extent.
    Scrub,
    ReadReplica {
        lba: Lba,
        generation: Generation,
    },
    /// The bytes are a write's.
    Heal {
        lba: Lba,
        generation: Generation,
        /// [`block_checksum`](crate::hash::block_checksum) of the bytes.
        sum: u32,
    },
    Diff {
        after: Generation,
        upto: Generation,
        from: RegionIndex,
        regions: u32,
    },
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// Begin to open the store. Once, first.
    Start,
    /// A command arrived.
    Submitted {
        /// A free slot of the shell.
        id: CommandId,
        /// Which slice.
        nsid: Nsid,
        /// Who asks.
        association: u64,
        /// What is asked.
        command: Command,
    },
    /// A device operation other than a metadata read ended; the errno if it failed.
    IoDone {
        /// Which.
        io: IoId,
        /// How.
        result: Result<(), i32>,
    },
    /// [`Effect::ReadData`], [`Effect::WriteData`] or [`Effect::Copy`] succeeded, in a core that
    /// [keeps checksums](super::Core::has_checksums): instead of [`Event::IoDone`].
    DataDone {
        /// Which.
        io: IoId,
        /// [`block_checksum`](crate::hash::block_checksum) of each block that was read, written or copied.
        sums: &'a [u32],
    },
    /// A read of metadata or of checksums succeeded.
    MetaRead {
        /// Which.
        io: IoId,
        /// As many bytes as asked for.
        bytes: &'a [u8],
    },
    /// Stop cleanly.
    Stop,
}

/// What is to be done. Parts of a command's buffer are told as blocks from its start; the parts of a
/// read come in order and cover it.
#[derive(Debug)]
pub enum Effect {
    /// Read a part of a command's buffer.
    ReadData {
        /// Answer with this.
        io: IoId,
        /// Whose buffer.
        command: CommandId,
        /// Part of the buffer: first block.
        at_blocks: u32,
        /// Part of the buffer: length.
        blocks: u32,
        /// Where on the device.
        offset_bytes: u64,
    },
    /// Fill a part of a command's buffer with zeroes.
    FillZero {
        /// Whose buffer.
        command: CommandId,
        /// Part of the buffer: first block.
        at_blocks: u32,
        /// Part of the buffer: length.
        blocks: u32,
    },
    /// Write a part of a command's buffer.
    WriteData {
        /// Answer with this.
        io: IoId,
        /// Whose buffer.
        command: CommandId,
        /// Part of the buffer: first block.
        at_blocks: u32,
        /// Part of the buffer: length.
        blocks: u32,
        /// Where on the device.
        offset_bytes: u64,
        /// Durable when it completes.
        durable: bool,
    },
    /// Read metadata; answer with [`Event::MetaRead`], or [`Event::IoDone`] if it fails.
    ReadMeta {
        /// Answer with this.
        io: IoId,
        /// Where on the device.
        offset_bytes: u64,
        /// How much, at most 128 KiB.
        len_bytes: u32,
    },
    /// Write metadata.
    WriteMeta {
        /// Answer with this.
        io: IoId,
        /// Where on the device.
        offset_bytes: u64,
        /// At most 64 KiB, whole blocks.
        bytes: Vec<u8>,
        /// Durable when it completes.
        durable: bool,
    },
    /// Read a checksum block; answer with [`Event::MetaRead`], or [`Event::IoDone`] if it fails. A few at
    /// once, so that there is always a buffer.
    ReadChecksums {
        /// Answer with this.
        io: IoId,
        /// Where on the device.
        offset_bytes: u64,
    },
    /// Write a checksum block. A few at once, too.
    WriteChecksums {
        /// Answer with this.
        io: IoId,
        /// Where on the device.
        offset_bytes: u64,
        /// One block.
        bytes: Vec<u8>,
    },
    /// Copy data from one place of the device to another; one answer, when all is written.
    Copy {
        /// Answer with this.
        io: IoId,
        /// From where on the device.
        from_bytes: u64,
        /// To where on the device.
        to_bytes: u64,
        /// How much, at most 64 KiB.
        len_bytes: u32,
    },
    /// Make all completed writes durable.
    Flush {
        /// Answer with this.
        io: IoId,
    },
    /// Trim a range of the device.
    Discard {
        /// Answer with this.
        io: IoId,
        /// Where on the device.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
    },
    /// The command has ended; its slot is free.
    Answer {
        /// Which.
        command: CommandId,
        /// How.
        result: Result<Answer, StoreFault>,
    },
    /// The store serves.
    Opened(Box<OpenFacts>),
    /// The store cannot be opened; nothing follows.
    OpenFailed(StoreFault),
    /// The process must exit.
    Poisoned(StoreFault),
    /// Stopped cleanly; nothing follows.
    Stopped,
}

/// Effects in the order in which they must be started.
pub type Outbox = Vec<Effect>;

/// Answers to commands.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "told once, at StoreReply")]
pub enum Answer {
    Done,
    State(SliceState),
    Tick(WriteTick),
    Stable {
        marks_left: u64,
    },
    Marks {
        regions: RoaringBitmap,
        next: Option<RegionIndex>,
    },
    Presence {
        blocks: RoaringBitmap,
        next: Option<RegionIndex>,
    },
    Generations(Vec<GenerationState>),
    Space(SliceSpace),
    /// Nothing: the scrub has come to its end and begins again.
    Scrubbed(Option<Scrubbed>),
    Healed(Healed),
    Grown(Growth),
}

/// What a device operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoKind {
    /// A part of a command, and how many of the reads and writes before it must end before an extent
    /// freed later is used again.
    Data {
        command: CommandId,
        lba: Lba,
        turn: u64,
        span: Span,
        /// When it began, for the checksums.
        since: u64,
        /// When it began, for the blocks whose write failed.
        began: u64,
    },
    /// The device flush of the flush lane.
    Flush,
    /// A part of the journal record being written.
    Journal,
    /// A page or directory page of the running checkpoint, or its flush.
    Checkpoint,
    /// The superblock.
    Superblock,
    /// A write of a growth, to where nothing counts.
    Growth,
    /// The flush of a growth.
    GrowthFlush,
    /// A part of the copy of a merge, and its turn among the data operations.
    Copy {
        turn: u64,
        from: Span,
        to: Span,
        since: u64,
        /// When it began, for the blocks whose write failed.
        began: u64,
    },
    /// A read of a checksum block.
    ChecksumsRead(u32),
    /// A write of a checksum block.
    ChecksumsWrite(u32),
    /// The device flush for checksums.
    ChecksumsFlush,
    /// A trim of extents.
    Trim { first: u32, count: u32 },
    /// A read of the open; the number tells which.
    Open(u64),
    /// The flush of the open.
    OpenFlush,
}

/// Device operations in flight.
#[derive(Debug, Default)]
pub(super) struct IoTable {
    slots: Vec<Option<IoKind>>,
    free: Vec<u32>,
}

impl IoTable {
    pub(super) fn start(&mut self, kind: IoKind) -> IoId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("bounded by the commands")
        });
        let before = self.slots[index as usize].replace(kind);
        assert!(before.is_none(), "io slot {index} was in use");
        IoId(index)
    }

    pub(super) fn end(&mut self, io: IoId) -> IoKind {
        let kind = self.slots[io.0 as usize].take().expect("an io ends once");
        self.free.push(io.0);
        kind
    }

    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

/// Counts what is in flight by *turn*, so that one can wait for everything that began before now
/// while new things begin.
#[derive(Debug, Default)]
pub(super) struct Drain {
    turn: u64,
    counts: std::collections::BTreeMap<u64, u32>,
}

impl Drain {
    /// Something begins; hand the number back to [`leave`](Self::leave).
    pub(super) fn enter(&mut self) -> u64 {
        *self.counts.entry(self.turn).or_insert(0) += 1;
        self.turn
    }

    pub(super) fn leave(&mut self, turn: u64) {
        let count = self.counts.get_mut(&turn).expect("entered before");
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&turn);
        }
    }

    /// From here on things belong to a new turn; returns the one that ends now.
    pub(super) fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn - 1
    }

    /// Nothing of that turn or an older one is in flight.
    pub(super) fn is_over(&self, turn: u64) -> bool {
        self.counts
            .keys()
            .next()
            .is_none_or(|oldest| *oldest > turn)
    }
}

//! The shell: what the core decided becomes operations of the driver, their completions become its
//! events. It owns the buffers and decides nothing.

use crate::api::{StoreEvent, StoreOp, StoreReply, StoreRequest};
use crate::buffers::Buffers;
use crate::core::facts::{OpenFacts, OpenFault, SliceState, StoreFault, StoreUsage};
use crate::core::io::{Answer, Command, CommandId, Effect, Event as CoreEvent, IoId};
use crate::core::{Core, CoreConfig};
use crate::counters::{Counters, Sort};
use crate::device::{CopyJob, MetaJob, Note, full_length};
use crate::hash::block_checksum;
use crate::hashing::HashJob;
use crate::limits::COMMANDS_MAX;
use crate::scrub::Scrub;
use reactor::{Buf, BufMut, Completion, Driver, Event, FileFacts, FileKind, Handle, Op};
use reactor::{OpenFile, Token};
use shardmap::generations::VolumeGenerations;
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, Generation, Lba, Moment, Nsid};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::path::Path;
use uuid::Uuid;

/// `Token::value` of the final close; ids of device operations are 32 bits.
const CLOSE: u64 = u64::MAX;

/// The bytes of a command.
#[derive(Debug)]
pub(crate) enum Body {
    None,
    /// Parts of the buffer in order (`None`: with the driver), and what is not yet cut.
    Read {
        parts: SmallVec<[Option<BufMut>; 2]>,
        rest: BufMut,
    },
    Write(Buf),
}

/// Who waits for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Request(u64),
    /// A chunk of the hash request at the front.
    Hash,
    /// The scrub.
    Scrub,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) owner: Owner,
    pub(crate) sort: Sort,
    pub(crate) bytes: u64,
    pub(crate) since_ns: u64,
    pub(crate) body: Body,
}

/// What comes after the device is closed.
#[derive(Debug)]
enum Ending {
    Failed(StoreFault),
    Stopped,
}

/// One open store.
#[derive(Debug)]
pub struct Store {
    pub(crate) core: Core,
    pub(crate) room: u8,
    pub(crate) index: u32,
    pub(crate) file: Handle,
    facts: FileFacts,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    pub(crate) notes: Vec<Option<Note>>,
    pub(crate) buffers: Buffers,
    /// Metadata effects that wait for a buffer.
    pub(crate) meta: VecDeque<MetaJob>,
    /// Copies that wait for the copy buffer.
    pub(crate) copies: VecDeque<CopyJob>,
    /// Operations that wait for a place at the device.
    pub(crate) queue: VecDeque<(Token, Op)>,
    pub(crate) in_flight: usize,
    pub(crate) hashes: VecDeque<HashJob>,
    /// What a short piece left of the hash buffer.
    pub(crate) hash_rest: Option<BufMut>,
    pub(crate) scrub: Scrub,
    effects: Vec<Effect>,
    opened: bool,
    stop_wanted: bool,
    ending: Option<Ending>,
    pub(crate) counters: Counters,
}

impl Store {
    /// Opens the device and begins to open the store on it. Ends with [`StoreEvent::Opened`] or
    /// [`StoreEvent::OpenFailed`]. Completions carry `room` and `index` in their token.
    ///
    /// # Errors
    /// [`OpenFault::Setup`] if the device cannot be opened (absent, in use), [`OpenFault::NoBuffers`].
    pub fn open(
        io: &mut dyn Driver,
        (room, index): (u8, u32),
        path: &Path,
        cluster: Uuid,
        out: &mut Vec<StoreEvent>,
    ) -> Result<Self, StoreFault> {
        let name = path.display().to_string();
        let how = OpenFile {
            exclusive: true,
            writable: true,
            direct: true,
            create_bytes: None,
        };
        let (file, facts) = io.open(path, how).map_err(|e| OpenFault::Setup {
            path: name.clone(),
            reason: e.to_string(),
        })?;
        let Some(buffers) = Buffers::new(io.arena()) else {
            let token = Token {
                room,
                index,
                value: CLOSE,
            };
            io.submit(
                token,
                Op::Close {
                    handle: file,
                    reset: false,
                },
            );
            return Err(OpenFault::NoBuffers { path: name }.into());
        };
        let core = Core::new(CoreConfig {
            path: name,
            cluster: Some(cluster.into_bytes()),
            device_bytes: facts.size_bytes,
            volatile_cache: facts.volatile_cache,
            // A preallocated file keeps its blocks.
            can_trim: facts.can_discard && facts.kind == FileKind::BlockDevice,
            check_only: false,
        });
        let mut store = Self {
            core,
            room,
            index,
            file,
            facts,
            slots: Vec::new(),
            free: Vec::new(),
            notes: Vec::new(),
            buffers,
            meta: VecDeque::new(),
            copies: VecDeque::new(),
            queue: VecDeque::new(),
            in_flight: 0,
            hashes: VecDeque::new(),
            hash_rest: None,
            scrub: Scrub::default(),
            effects: Vec::new(),
            opened: false,
            stop_wanted: false,
            ending: None,
            counters: Counters::default(),
        };
        store.step(io, CoreEvent::Start, out);
        Ok(store)
    }

    /// What the driver found out about the device.
    pub const fn device(&self) -> &FileFacts {
        &self.facts
    }

    /// All slices, ascending by namespace id.
    pub fn slices(&self) -> impl Iterator<Item = SliceState> + '_ {
        self.core.slices()
    }

    /// One slice.
    pub fn slice(&self, nsid: Nsid) -> Option<SliceState> {
        self.core.slice(nsid)
    }

    /// Byte offset on the device of a block as a read of the generation (zero: the head) would find it;
    /// `None`: it reads as zeroes. For checkers that compare replicas behind the stores' backs.
    ///
    /// # Errors
    /// There is no such slice, block or generation.
    pub fn place_of(
        &self,
        nsid: Nsid,
        lba: Lba,
        generation: Generation,
    ) -> Result<Option<u64>, StoreFault> {
        let range = BlockRange::new(lba, Blocks(1)).expect("one block");
        let runs = self.core.locate_range(nsid, range, generation)?;
        Ok(runs[0].1)
    }

    /// What a block of a generation (zero: the head) must have as its checksum, if the store knows it
    /// without reading. For checkers that spoil blocks behind the store's back.
    pub fn known_checksum(&self, nsid: Nsid, lba: Lba, generation: Generation) -> Option<u32> {
        self.core.known_checksum(nsid, (lba, generation))
    }

    /// Whether the last write of a block that a generation shows has failed at the device. For the same.
    pub fn has_failed(&self, nsid: Nsid, lba: Lba, generation: Generation) -> bool {
        self.core.has_failed(nsid, (lba, generation))
    }

    /// Whether the region of a block is marked. For the same.
    pub fn is_marked(&self, nsid: Nsid, lba: Lba) -> bool {
        self.core.is_marked(nsid, lba)
    }

    /// The generations of a slice.
    pub fn generations(&self, nsid: Nsid) -> Option<VolumeGenerations> {
        self.core.generations_of(nsid)
    }

    /// Its identity; nil until its superblock is read.
    pub const fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.core.store())
    }

    /// Space and other figures.
    pub fn usage(&self) -> StoreUsage {
        self.core.usage()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        Counters {
            core: *self.core.counts(),
            ..self.counters.clone()
        }
    }

    /// Starts a request. It is answered by one [`StoreEvent::Reply`], maybe at once.
    pub fn submit(
        &mut self,
        io: &mut dyn Driver,
        request: StoreRequest,
        out: &mut Vec<StoreEvent>,
    ) {
        let StoreRequest {
            id,
            slice,
            association,
            op,
        } = request;
        if let StoreOp::Hash { range, generation } = op {
            let job = HashJob::new(id, (slice, association), range, generation);
            self.submit_hash(io, job, out);
            return;
        }
        let size = || io.size_bytes(self.file).map_err(|errno| errno.0);
        let (sort, bytes, body, command) = sort_out(op, size);
        if !body_fits(&body, bytes) {
            let blocks = u32::try_from(bytes / u64::from(BLOCK_BYTES)).unwrap_or(u32::MAX);
            let result = Err(StoreFault::TooLong {
                blocks,
                max: crate::limits::IO_BLOCKS_MAX,
            });
            out.push(StoreEvent::Reply { id, result });
            return;
        }
        let since_ns = io.now_ns();
        let slot = Slot {
            owner: Owner::Request(id),
            sort,
            bytes,
            since_ns,
            body,
        };
        let Some(command_id) = self.reserve(slot) else {
            self.counters.faults += 1;
            let result = Err(StoreFault::Busy { max: COMMANDS_MAX });
            out.push(StoreEvent::Reply { id, result });
            return;
        };
        let event = CoreEvent::Submitted {
            id: command_id,
            nsid: slice,
            association,
            command,
        };
        self.step(io, event, out);
        self.continue_hashes(io, out);
    }

    /// Reads a part of a hash request.
    pub(crate) fn submit_compare(
        &mut self,
        io: &mut dyn Driver,
        (nsid, association): (Nsid, u64),
        (range, generation): (BlockRange, Generation),
        into: BufMut,
        out: &mut Vec<StoreEvent>,
    ) {
        let body = Body::Read {
            parts: SmallVec::new(),
            rest: into,
        };
        let since_ns = io.now_ns();
        let slot = Slot {
            owner: Owner::Hash,
            sort: Sort::Control,
            bytes: 0,
            since_ns,
            body,
        };
        let id = self.reserve_beyond(slot);
        let command = Command::Compare { range, generation };
        self.step(
            io,
            CoreEvent::Submitted {
                id,
                nsid,
                association,
                command,
            },
            out,
        );
    }

    fn reserve(&mut self, slot: Slot) -> Option<CommandId> {
        // One place is kept for the hash request at the front.
        let used = self.slots.len() - self.free.len();
        (used + 1 < COMMANDS_MAX).then(|| self.reserve_beyond(slot))
    }

    pub(crate) fn reserve_beyond(&mut self, slot: Slot) -> CommandId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("bounded by COMMANDS_MAX")
        });
        self.slots[index as usize] = Some(slot);
        CommandId(index)
    }

    /// One completion of this store's room and index.
    pub fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        completion: Completion,
        out: &mut Vec<StoreEvent>,
    ) {
        let Event::Op { op, result } = completion.event else {
            return self.on_timer(io, completion.token, out);
        };
        if completion.token.value == CLOSE {
            match self.ending.take() {
                Some(Ending::Failed(fault)) => out.push(StoreEvent::OpenFailed(fault)),
                Some(Ending::Stopped) => out.push(StoreEvent::Stopped),
                None => {}
            }
            return;
        }
        self.in_flight -= 1;
        let id = IoId(u32::try_from(completion.token.value).expect("our own token"));
        let note = self.notes[id.0 as usize].take().expect("an op ends once");
        let result = full_length(&op, result);
        match (note, op) {
            (Note::ReadPart { command, part }, Op::Read { into, .. }) => {
                let sums = self.sums_of(result, into.bytes());
                self.parts(command)[part] = Some(into);
                self.moved(io, id, (result, sums), out);
            }
            (Note::MetaRead { rest }, Op::Read { mut into, .. }) => {
                match result {
                    Ok(()) => {
                        let event = CoreEvent::MetaRead {
                            io: id,
                            bytes: into.bytes(),
                        };
                        self.step(io, event, out);
                    }
                    Err(_) => self.step(io, CoreEvent::IoDone { io: id, result }, out),
                }
                if let Some(rest) = rest {
                    into.join(rest);
                }
                self.buffers.put(into);
            }
            (Note::Data, Op::Write { from, .. }) => {
                let sums = self.sums_of(result, from.bytes());
                drop(from);
                self.moved(io, id, (result, sums), out);
            }
            (Note::CopyRead { to_bytes, rest }, Op::Read { mut into, .. }) => match result {
                Ok(()) => self.write_copy(io, id, to_bytes, (into, rest)),
                Err(_) => {
                    into.join(rest);
                    self.buffers.copy = Some(into);
                    self.step(io, CoreEvent::IoDone { io: id, result }, out);
                }
            },
            (Note::CopyWrite { whole }, Op::Write { from, .. }) => {
                let sums = self.sums_of(result, from.bytes());
                drop(from);
                let whole = whole.try_unfreeze();
                self.buffers.copy = Some(whole.expect("the op has given back its window"));
                self.moved(io, id, (result, sums), out);
            }
            (Note::MetaWrite { whole }, Op::Write { from, .. }) => {
                drop(from);
                self.buffers.put_shared(whole);
                self.step(io, CoreEvent::IoDone { io: id, result }, out);
            }
            (_, op) => {
                drop(op);
                self.step(io, CoreEvent::IoDone { io: id, result }, out);
            }
        }
        self.go_on(io, out);
    }

    /// What waited for a buffer or for a place at the device.
    fn go_on(&mut self, io: &mut dyn Driver, out: &mut Vec<StoreEvent>) {
        self.start_meta(io);
        self.start_copies(io);
        self.start_queued(io);
        self.continue_hashes(io, out);
        self.continue_scrub(io, out);
    }

    /// The checksums of blocks that were moved, if the store keeps them.
    fn sums_of(&self, result: Result<(), i32>, bytes: &[u8]) -> Option<SmallVec<[u32; 32]>> {
        let wanted = result.is_ok() && self.core.has_checksums();
        wanted.then(|| {
            let blocks = bytes.chunks_exact(BLOCK_BYTES as usize);
            blocks.map(block_checksum).collect()
        })
    }

    /// Data was moved, or not.
    fn moved(
        &mut self,
        io: &mut dyn Driver,
        id: IoId,
        (result, sums): (Result<(), i32>, Option<SmallVec<[u32; 32]>>),
        out: &mut Vec<StoreEvent>,
    ) {
        match sums {
            Some(sums) => self.step(
                io,
                CoreEvent::DataDone {
                    io: id,
                    sums: &sums,
                },
                out,
            ),
            None => self.step(io, CoreEvent::IoDone { io: id, result }, out),
        }
    }

    /// Stops cleanly: everything submitted is answered, all is durable, the device is closed, then
    /// [`StoreEvent::Stopped`].
    pub fn stop(&mut self, io: &mut dyn Driver, out: &mut Vec<StoreEvent>) {
        self.stop_wanted = true;
        self.stop_scrub(io);
        if self.opened {
            self.step(io, CoreEvent::Stop, out);
        }
    }

    pub(crate) fn step(
        &mut self,
        io: &mut dyn Driver,
        event: CoreEvent<'_>,
        out: &mut Vec<StoreEvent>,
    ) {
        // Reused; a step within a step (a stop that was waiting) finds it empty and makes its own.
        let mut effects = std::mem::take(&mut self.effects);
        self.core.step(Moment(io.now_ns()), event, &mut effects);
        for effect in effects.drain(..) {
            self.perform(io, effect, out);
        }
        self.effects = effects;
    }

    fn perform(&mut self, io: &mut dyn Driver, effect: Effect, out: &mut Vec<StoreEvent>) {
        match effect {
            Effect::ReadData { .. } | Effect::FillZero { .. } | Effect::WriteData { .. } => {
                self.move_data(io, &effect);
            }
            Effect::ReadMeta { .. } | Effect::WriteMeta { .. } => self.move_meta(io, effect),
            Effect::ReadChecksums { .. } | Effect::WriteChecksums { .. } => {
                self.move_checksums(io, &effect);
            }
            Effect::Copy {
                io: id,
                from_bytes,
                to_bytes,
                len_bytes,
            } => {
                self.copies.push_back(CopyJob {
                    id,
                    from_bytes,
                    to_bytes,
                    len_bytes,
                });
                self.start_copies(io);
            }
            Effect::Flush { io: id } => {
                self.start(io, id, Note::Plain, Op::Flush { file: self.file });
            }
            Effect::Discard {
                io: id,
                offset_bytes,
                len_bytes,
            } => {
                let op = Op::Discard {
                    file: self.file,
                    offset_bytes,
                    len_bytes,
                };
                self.start(io, id, Note::Plain, op);
            }
            Effect::Answer { command, result } => self.answer(io, command, result, out),
            Effect::Opened(facts) => self.on_opened(io, facts, out),
            Effect::OpenFailed(fault) => self.close(io, Ending::Failed(fault)),
            Effect::Poisoned(fault) => out.push(StoreEvent::Poisoned(fault)),
            Effect::Stopped => self.close(io, Ending::Stopped),
        }
    }

    fn move_meta(&mut self, io: &mut dyn Driver, effect: Effect) {
        if let Effect::ReadMeta {
            io: id,
            offset_bytes,
            len_bytes,
        } = effect
        {
            let job = MetaJob::Read {
                id,
                offset_bytes,
                len_bytes,
            };
            self.queue_meta(io, job);
        } else if let Effect::WriteMeta {
            io: id,
            offset_bytes,
            bytes,
            durable,
        } = effect
        {
            let job = MetaJob::Write {
                id,
                offset_bytes,
                bytes,
                durable,
            };
            self.queue_meta(io, job);
        }
    }

    fn move_checksums(&mut self, io: &mut dyn Driver, effect: &Effect) {
        if let &Effect::ReadChecksums {
            io: id,
            offset_bytes,
        } = effect
        {
            self.read_checksums(io, id, offset_bytes);
        } else if let Effect::WriteChecksums {
            io: id,
            offset_bytes,
            bytes,
        } = effect
        {
            self.write_checksums(io, *id, (*offset_bytes, bytes));
        }
    }

    fn move_data(&mut self, io: &mut dyn Driver, effect: &Effect) {
        let file = self.file;
        if let &Effect::ReadData {
            io: id,
            command,
            blocks,
            offset_bytes,
            ..
        } = effect
        {
            let (into, part) = self.cut(command, blocks);
            let op = Op::Read {
                file,
                offset_bytes,
                into,
            };
            self.start(io, id, Note::ReadPart { command, part }, op);
        }
        if let &Effect::FillZero {
            command, blocks, ..
        } = effect
        {
            let (mut into, part) = self.cut(command, blocks);
            into.bytes_mut().fill(0);
            self.parts(command)[part] = Some(into);
        }
        if let &Effect::WriteData {
            io: id,
            command,
            at_blocks,
            blocks,
            offset_bytes,
            durable,
        } = effect
        {
            let from = self.data_of(command, at_blocks, blocks);
            self.start(
                io,
                id,
                Note::Data,
                Op::Write {
                    file,
                    offset_bytes,
                    from,
                    durable,
                },
            );
        }
    }

    fn on_opened(&mut self, io: &mut dyn Driver, facts: Box<OpenFacts>, out: &mut Vec<StoreEvent>) {
        self.opened = true;
        out.push(StoreEvent::Opened(facts));
        if self.stop_wanted {
            self.step(io, CoreEvent::Stop, out);
        }
    }

    /// A window over a part of a write's data.
    fn data_of(&self, command: CommandId, at_blocks: u32, blocks: u32) -> Buf {
        let slot = self.slots[command.0 as usize]
            .as_ref()
            .expect("a command in flight");
        let Body::Write(data) = &slot.body else {
            unreachable!("writes have data")
        };
        data.slice(at_blocks * BLOCK_BYTES, blocks * BLOCK_BYTES)
    }

    fn close(&mut self, io: &mut dyn Driver, ending: Ending) {
        self.ending = Some(ending);
        let token = Token {
            room: self.room,
            index: self.index,
            value: CLOSE,
        };
        io.submit(
            token,
            Op::Close {
                handle: self.file,
                reset: false,
            },
        );
    }

    fn parts(&mut self, command: CommandId) -> &mut SmallVec<[Option<BufMut>; 2]> {
        let slot = self.slots[command.0 as usize]
            .as_mut()
            .expect("a command in flight");
        let Body::Read { parts, .. } = &mut slot.body else {
            unreachable!("reads have parts")
        };
        parts
    }

    /// The next part of a read's buffer and its number.
    fn cut(&mut self, command: CommandId, blocks: u32) -> (BufMut, usize) {
        let slot = self.slots[command.0 as usize]
            .as_mut()
            .expect("a command in flight");
        let Body::Read { parts, rest } = &mut slot.body else {
            unreachable!("reads have parts")
        };
        parts.push(None);
        (rest.split_to(blocks * BLOCK_BYTES), parts.len() - 1)
    }

    fn answer(
        &mut self,
        io: &mut dyn Driver,
        command: CommandId,
        result: Result<Answer, StoreFault>,
        out: &mut Vec<StoreEvent>,
    ) {
        let slot = self.slots[command.0 as usize]
            .take()
            .expect("a command ends once");
        self.free.push(command.0);
        let buffer = match slot.body {
            Body::Read { parts, rest } => Some(rejoin(parts, rest)),
            Body::None | Body::Write(_) => None,
        };
        let id = match slot.owner {
            Owner::Request(id) => id,
            Owner::Hash => return self.on_compared(result, buffer.expect("a read")),
            Owner::Scrub => return self.on_scrubbed(io, result, buffer.expect("a read"), out),
        };
        let took_ns = io.now_ns().saturating_sub(slot.since_ns);
        self.counters
            .note(slot.sort, slot.bytes, took_ns, result.is_ok());
        let result = result.map(|answer| match (answer, buffer) {
            (Answer::Done, Some(buffer)) => StoreReply::Read(buffer),
            (Answer::Done, None) => StoreReply::Done,
            (Answer::State(state), _) => StoreReply::State(state),
            (Answer::Tick(tick), _) => StoreReply::Tick(tick),
            (Answer::Stable { marks_left }, _) => StoreReply::Stable { marks_left },
            (Answer::Marks { regions, next }, _) => StoreReply::Marks { regions, next },
            (Answer::Presence { blocks, next }, _) => StoreReply::Presence { blocks, next },
            (Answer::Generations(all), _) => StoreReply::Generations(all),
            (Answer::Space(space), _) => StoreReply::Space(space),
            (Answer::Grown(growth), _) => StoreReply::Grown(growth),
            (Answer::Healed(healed), _) => StoreReply::Healed(healed),
            (Answer::Scrubbed(_), _) => unreachable!("nobody requests a scrub"),
        });
        out.push(StoreEvent::Reply { id, result });
    }
}

/// A buffer whose length is not its range's would be cut wrongly.
fn body_fits(body: &Body, bytes: u64) -> bool {
    match body {
        Body::None => true,
        Body::Read { rest, .. } => u64::from(rest.len_bytes()) == bytes,
        Body::Write(data) => u64::from(data.len_bytes()) == bytes,
    }
}

fn rejoin(parts: SmallVec<[Option<BufMut>; 2]>, rest: BufMut) -> BufMut {
    let mut whole: Option<BufMut> = None;
    for part in parts.into_iter().flatten().chain([rest]) {
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => whole.join(part),
        }
    }
    whole.expect("at least the rest")
}

#[allow(clippy::too_many_lines, reason = "one arm per command")]
fn sort_out(
    op: StoreOp,
    device_bytes: impl FnOnce() -> Result<u64, i32>,
) -> (Sort, u64, Body, Command) {
    let control = |command| (Sort::Control, 0, Body::None, command);
    match op {
        StoreOp::Read {
            range,
            generation,
            into,
        } => {
            let body = Body::Read {
                parts: SmallVec::new(),
                rest: into,
            };
            let command = Command::Read { range, generation };
            (Sort::Read, range.len_bytes(), body, command)
        }
        StoreOp::Write {
            range,
            data,
            fua,
            generation,
        } => {
            let command = Command::Write {
                range,
                fua,
                generation,
            };
            (Sort::Write, range.len_bytes(), Body::Write(data), command)
        }
        StoreOp::Flush => (Sort::Flush, 0, Body::None, Command::Flush),
        StoreOp::Zero {
            range,
            deallocate,
            fua,
            generation,
        } => (
            Sort::Zero,
            0,
            Body::None,
            Command::Zero {
                range,
                deallocate,
                fua,
                generation,
            },
        ),
        StoreOp::CreateSlice { spec, incomplete } => control(Command::Create { spec, incomplete }),
        StoreOp::RemoveSlice => control(Command::Remove),
        StoreOp::OpenSession { epoch, volume } => control(Command::Open { epoch, volume }),
        StoreOp::CloseSession => control(Command::Close),
        StoreOp::AssociationGone => control(Command::AssociationGone),
        StoreOp::ReadState => control(Command::State),
        StoreOp::Stamp(stamp) => control(Command::Stamp(stamp)),
        StoreOp::Tick => control(Command::Tick),
        StoreOp::Stable {
            tick,
            idle_ticks,
            keep_max,
        } => control(Command::Stable {
            tick,
            idle_ticks,
            keep_max,
        }),
        StoreOp::AddMarks { regions } => control(Command::AddMarks(regions)),
        StoreOp::Complete(stamp) => control(Command::Complete(stamp)),
        StoreOp::SetIncomplete => control(Command::SetIncomplete),
        StoreOp::ReadMarks { from } => control(Command::ReadMarks { from }),
        StoreOp::ReadPresence {
            from,
            regions,
            after,
            upto,
            shown,
        } => control(Command::ReadPresence {
            from,
            regions,
            after,
            upto,
            shown,
        }),
        StoreOp::BeginGeneration(g) => control(Command::BeginGeneration(g)),
        StoreOp::CompleteGeneration(g) => control(Command::CompleteGeneration(g)),
        StoreOp::DropGeneration(g) => control(Command::DropGeneration(g)),
        StoreOp::ReadGenerations => control(Command::ReadGenerations),
        StoreOp::Grow => control(Command::Grow {
            device_bytes: device_bytes(),
        }),
        StoreOp::ReadSpace { from } => control(Command::ReadSpace { from }),
        StoreOp::Diff {
            after,
            upto,
            from,
            regions,
        } => control(Command::Diff {
            after,
            upto,
            from,
            regions,
        }),
        StoreOp::ReadReplica {
            lba,
            generation,
            into,
        } => {
            let body = Body::Read {
                parts: SmallVec::new(),
                rest: into,
            };
            let command = Command::ReadReplica { lba, generation };
            (Sort::Control, BLOCK_BYTES.into(), body, command)
        }
        StoreOp::Heal {
            lba,
            generation,
            data,
        } => {
            let sum = block_checksum(data.bytes());
            let command = Command::Heal {
                lba,
                generation,
                sum,
            };
            let bytes = BLOCK_BYTES.into();
            (Sort::Control, bytes, Body::Write(data), command)
        }
        StoreOp::Hash { .. } => unreachable!("cut into compares by the caller"),
    }
}

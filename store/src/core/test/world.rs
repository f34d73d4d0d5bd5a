#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the model looks at few commands"
)]
#![allow(clippy::too_many_lines, reason = "one arm per effect")]
//! One core, one device, a model of what may be read, and the device operations in between.

use super::device::{BLOCK, Content, Device, coin_of};
use super::model::{Model, data};
use super::record::Recorder;
use crate::core::facts::{OpenFacts, Parent, SliceSpec, StoreFault};
use crate::core::format::geometry::{Geometry, SUPERBLOCK_OFFSETS};
use crate::core::format::superblock::Superblock;
use crate::core::format::{directory, directory::PagePlace};
use crate::core::io::{Answer, Command, CommandId, Effect, Event, IoId};
use crate::core::{Core, CoreConfig};
use crate::hash::block_checksum;
use shardmap::map::{Layout, Shape};
use shardmap::units::{BlockRange, Blocks, Epoch, Generation, Lba, Moment, Nsid, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const STORE: [u8; 16] = [5; 16];
pub(super) const CLUSTER: [u8; 16] = [6; 16];
pub(super) const CLIENT: u64 = 1;

pub(super) type Answered = Result<Answer, StoreFault>;

/// A device operation that has not ended.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    Read {
        command: u32,
        at: u32,
        blocks: u32,
        first: u64,
    },
    Write {
        blocks: Vec<(u64, Content)>,
        durable: bool,
        /// Of a command or a copy.
        data: bool,
    },
    MetaRead {
        first: u64,
        blocks: u64,
    },
    /// Reads when it is completed first, and is a write from then on.
    Copy {
        from: u64,
        to: u64,
        blocks: u64,
    },
    Flush {
        covers: usize,
    },
    Discard {
        first: u64,
        blocks: u64,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Outstanding {
    pub(super) nsid: u32,
    pub(super) command: Command,
    pub(super) version: u64,
    pub(super) buffer: Vec<Content>,
    /// Of a read: what it must return. The blocks do not change meanwhile; the generation may be dropped.
    pub(super) wanted: Vec<Content>,
    /// Of a flush: what had completed when it was sent, per generation and block of its slice.
    pub(super) covers: BTreeMap<(u32, u64), u64>,
}

pub(super) struct World {
    pub(super) device: Device,
    pub(super) core: Core,
    pub(super) pending: BTreeMap<u32, Pending>,
    pub(super) order: Vec<u32>,
    pub(super) outstanding: BTreeMap<u32, Outstanding>,
    pub(super) model: Model,
    /// Regions that were written since they were last allowed to be clean, and when.
    pub(super) must_mark: BTreeMap<(u32, u32), u64>,
    pub(super) answers: BTreeMap<u32, Answered>,
    pub(super) opened: Option<OpenFacts>,
    pub(super) failed: Option<StoreFault>,
    pub(super) poisoned: Option<StoreFault>,
    pub(super) stopped: bool,
    pub(super) version: u64,
    pub(super) can_trim: bool,
    pub(super) volatile_cache: bool,
    /// Most checksum blocks in memory.
    pub(super) checksum_limit: usize,
    /// Blocks of writes that failed, by slice, and these writes: reads may fail until they are written
    /// again, and after a crash until that was flushed.
    pub(super) torn: BTreeMap<(u32, u64), u64>,
    /// The bytes of the next heal.
    pub(super) offered: Option<Content>,
    next_id: u32,
    next_nsid: u32,
    epoch: u64,
    pub(super) device_bytes: u64,
    /// If the run is to be followed in a model.
    pub(super) recorder: Option<Recorder>,
}

pub(super) fn spec(nsid: u32, size_blocks: u64) -> SliceSpec {
    SliceSpec {
        nsid: Nsid(nsid),
        volume: VolumeId([u8::try_from(nsid).unwrap(); 16]),
        size_blocks,
        shape: Shape {
            shard_blocks: 1024,
            stride: 1,
            replicas: 1,
            layout: Layout::Ring,
        },
        position: 0,
        open_access: false,
        parent: None,
    }
}

/// A clone of a snapshot, which anybody may use.
pub(super) fn clone_of(nsid: u32, size_blocks: u64, (parent, generation): (u32, u32)) -> SliceSpec {
    SliceSpec {
        open_access: true,
        parent: Some(Parent {
            nsid: Nsid(parent),
            generation: Generation(generation),
        }),
        ..spec(nsid, size_blocks)
    }
}

pub(super) fn create(spec: SliceSpec) -> Command {
    Command::Create {
        spec,
        incomplete: false,
    }
}

pub(super) fn range(start: u64, blocks: u32) -> BlockRange {
    BlockRange::new(Lba(start), Blocks(blocks)).unwrap()
}

fn blocks_of(offset_bytes: u64, bytes: &[u8]) -> Vec<(u64, Content)> {
    assert!(bytes.len().is_multiple_of(4096) && !bytes.is_empty());
    (offset_bytes / BLOCK..)
        .zip(bytes.chunks(4096).map(<[u8]>::to_vec))
        .collect()
}

impl World {
    /// A prepared device without checksums, opened, with slices 1 and 2 of `size_blocks` open to [`CLIENT`].
    pub(super) fn plain(device_bytes: u64, size_blocks: u64) -> Self {
        Self::with(device_bytes, size_blocks, None)
    }

    /// The same with checksums, of which very few are in memory.
    pub(super) fn new(device_bytes: u64, size_blocks: u64) -> Self {
        Self::with(device_bytes, size_blocks, Some(2))
    }

    pub(super) fn with(device_bytes: u64, size_blocks: u64, checksums: Option<usize>) -> Self {
        let geometry = Geometry::plan(device_bytes, 1 << 20, checksums.is_some()).unwrap();
        let mut device = Device::default();
        for index in 0..geometry.directory_pages() {
            let bytes = directory::encode(STORE, index, 0, std::iter::empty::<PagePlace>());
            device.write(
                geometry.directory_page_offset(index, 0) / BLOCK,
                bytes,
                true,
            );
        }
        let sb = Superblock::new(STORE, CLUSTER, geometry);
        device.write(SUPERBLOCK_OFFSETS[0] / BLOCK, sb.encode(), true);
        let mut world = Self {
            core: Core::new(config(device_bytes, true, true)),
            device,
            pending: BTreeMap::new(),
            order: Vec::new(),
            outstanding: BTreeMap::new(),
            model: Model::default(),
            must_mark: BTreeMap::new(),
            answers: BTreeMap::new(),
            opened: None,
            failed: None,
            poisoned: None,
            stopped: false,
            version: 0,
            can_trim: true,
            volatile_cache: true,
            checksum_limit: checksums.unwrap_or(0),
            torn: BTreeMap::new(),
            offered: None,
            next_id: 0,
            next_nsid: 3,
            epoch: 0,
            device_bytes,
            recorder: None,
        };
        world.reopen();
        for nsid in [1, 2] {
            assert_eq!(
                world.run(nsid, create(spec(nsid, size_blocks))),
                Ok(Answer::Done)
            );
            world.open_session(nsid);
        }
        world
    }

    /// A number that no slice has had.
    pub(super) const fn new_nsid(&mut self) -> u32 {
        self.next_nsid += 1;
        self.next_nsid - 1
    }

    /// Clones that were made, or tried.
    pub(super) const fn clones(&self) -> u32 {
        self.next_nsid - 3
    }

    pub(super) fn open_session(&mut self, nsid: u32) {
        self.epoch += 1;
        let volume = VolumeId([u8::try_from(nsid).unwrap(); 16]);
        let opened = self.run(
            nsid,
            Command::Open {
                epoch: Epoch(self.epoch),
                volume,
            },
        );
        assert!(matches!(opened, Ok(Answer::State(_))), "{opened:?}");
    }

    /// A new core on the device as it is now.
    pub(super) fn reopen(&mut self) {
        self.pending.clear();
        self.order.clear();
        self.outstanding.clear();
        self.start();
        self.settle();
        self.core.limit_checksums(self.checksum_limit);
    }

    /// A new core begins to open the device.
    fn start(&mut self) {
        self.core = Core::new(config(
            self.device_bytes,
            self.can_trim,
            self.volatile_cache,
        ));
        (self.opened, self.failed, self.stopped) = (None, None, false);
        self.record_starting();
        self.step(Event::Start);
    }

    pub(super) fn step(&mut self, event: Event<'_>) {
        let mut out = Vec::new();
        self.core.step(Moment(0), event, &mut out);
        for effect in out {
            self.on_effect(effect);
        }
        self.record_seen();
    }

    fn on_effect(&mut self, effect: Effect) {
        match effect {
            Effect::ReadData {
                io,
                command,
                at_blocks,
                blocks,
                offset_bytes,
            } => {
                let first = offset_bytes / BLOCK;
                let read = Pending::Read {
                    command: command.0,
                    at: at_blocks,
                    blocks,
                    first,
                };
                self.pend(io, read);
            }
            Effect::FillZero {
                command,
                at_blocks,
                blocks,
            } => {
                let buffer = &mut self.outstanding.get_mut(&command.0).unwrap().buffer;
                buffer[at_blocks as usize..(at_blocks + blocks) as usize].fill(Vec::new());
            }
            Effect::WriteData {
                io,
                command,
                at_blocks,
                blocks,
                offset_bytes,
                durable,
            } => {
                let write = self.data_write(command, at_blocks, blocks, offset_bytes);
                if self.recorder.is_some() {
                    let out = self.outstanding[&command.0].clone();
                    self.record_write(io.0, &out, offset_bytes);
                }
                self.pend(
                    io,
                    Pending::Write {
                        blocks: write,
                        durable,
                        data: true,
                    },
                );
            }
            Effect::ReadMeta {
                io,
                offset_bytes,
                len_bytes,
            } => {
                let (first, blocks) = (offset_bytes / BLOCK, u64::from(len_bytes) / BLOCK);
                self.pend(io, Pending::MetaRead { first, blocks });
            }
            Effect::WriteMeta {
                io,
                offset_bytes,
                bytes,
                durable,
            } => {
                let blocks = blocks_of(offset_bytes, &bytes);
                self.record_meta(io.0, offset_bytes);
                let data = false;
                let write = Pending::Write {
                    blocks,
                    durable,
                    data,
                };
                self.pend(io, write);
            }
            Effect::ReadChecksums { io, offset_bytes } => {
                let (first, blocks) = (offset_bytes / BLOCK, 1);
                self.pend(io, Pending::MetaRead { first, blocks });
            }
            Effect::WriteChecksums {
                io,
                offset_bytes,
                bytes,
            } => {
                let write = Pending::Write {
                    blocks: blocks_of(offset_bytes, &bytes),
                    durable: false,
                    data: false,
                };
                self.pend(io, write);
            }
            Effect::Copy {
                io,
                from_bytes,
                to_bytes,
                len_bytes,
            } => {
                let (from, to) = (from_bytes / BLOCK, to_bytes / BLOCK);
                let blocks = u64::from(len_bytes) / BLOCK;
                self.pend(io, Pending::Copy { from, to, blocks });
            }
            Effect::Flush { io } => {
                let covers = self.device.completed();
                self.record_flush(io.0);
                self.pend(io, Pending::Flush { covers });
            }
            Effect::Discard {
                io,
                offset_bytes,
                len_bytes,
            } => {
                let (first, blocks) = (offset_bytes / BLOCK, len_bytes / BLOCK);
                self.pend(io, Pending::Discard { first, blocks });
            }
            Effect::Answer { command, result } => self.on_answer(command.0, result),
            Effect::Opened(facts) => {
                self.opened = Some(*facts);
                self.record_opened();
            }
            Effect::OpenFailed(fault) => self.failed = Some(fault),
            Effect::Poisoned(fault) => self.poisoned = Some(fault),
            Effect::Stopped => self.stopped = true,
        }
    }

    fn data_write(
        &mut self,
        command: CommandId,
        at: u32,
        blocks: u32,
        offset: u64,
    ) -> Vec<(u64, Content)> {
        let out = &self.outstanding[&command.0];
        if let Command::Heal { .. } = out.command {
            return vec![(offset / BLOCK, out.buffer[0].clone())];
        }
        let Command::Write { range, .. } = out.command else {
            panic!("writes write")
        };
        let piece = (at..at + blocks).map(|b| range.start().0 + u64::from(b));
        for lba in piece.clone() {
            let key = (out.nsid, u32::try_from(lba / 1024).unwrap());
            self.must_mark.insert(key, out.version);
        }
        (offset / BLOCK..)
            .zip(piece.map(|lba| data(out.nsid, lba, out.version)))
            .collect()
    }

    fn pend(&mut self, io: IoId, pending: Pending) {
        assert!(self.pending.insert(io.0, pending).is_none(), "io id in use");
        self.order.push(io.0);
    }

    /// The `nth` outstanding device operation ends.
    pub(super) fn complete(&mut self, nth: usize) -> bool {
        if self.order.is_empty() {
            return false;
        }
        let io = self.order.remove(nth % self.order.len());
        self.record_ended(io);
        match self.pending.remove(&io).unwrap() {
            Pending::Read {
                command,
                at,
                blocks,
                first,
            } => {
                let mut sums = Vec::new();
                for i in 0..blocks {
                    let content = self.device.read(first + u64::from(i));
                    sums.push(block_checksum(&content));
                    let out = self.outstanding.get_mut(&command).unwrap();
                    out.buffer[(at + i) as usize] = content;
                }
                self.moved(io, &sums);
            }
            Pending::Write {
                blocks,
                durable,
                data,
            } => {
                let sums: Vec<u32> = blocks.iter().map(|(_, c)| block_checksum(c)).collect();
                self.write_to_device(blocks, durable);
                if data {
                    self.moved(io, &sums);
                } else {
                    self.done(io);
                }
            }
            Pending::MetaRead { first, blocks } => {
                let mut bytes = Vec::new();
                for block in first..first + blocks {
                    let mut content = self.device.read(block);
                    content.resize(4096, 0);
                    bytes.extend(content);
                }
                self.step(Event::MetaRead {
                    io: IoId(io),
                    bytes: &bytes,
                });
            }
            Pending::Copy { from, to, blocks } => {
                let read = |i| (to + i, self.device.read(from + i));
                let write = Pending::Write {
                    blocks: (0..blocks).map(read).collect(),
                    durable: false,
                    data: true,
                };
                self.pend(IoId(io), write);
            }
            Pending::Flush { covers } => {
                self.device.flush(covers);
                for pending in self.pending.values_mut() {
                    if let Pending::Flush { covers: other } = pending {
                        *other = other.saturating_sub(covers);
                    }
                }
                self.done(io);
            }
            Pending::Discard { first, blocks } => {
                self.device.discard(first, blocks);
                self.done(io);
            }
        }
        true
    }

    fn write_to_device(&mut self, blocks: Vec<(u64, Content)>, durable: bool) {
        for (block, content) in blocks {
            if !durable {
                self.device.write(block, content, false);
                continue;
            }
            // Writes completed before keep their place: only this one is made durable, and a
            // flush in flight covers the same number of older ones.
            let before = self.device.completed();
            self.device.write(block, content, true);
            let gone = before - self.device.completed();
            for pending in self.pending.values_mut() {
                if let Pending::Flush { covers } = pending {
                    *covers = covers.saturating_sub(gone);
                }
            }
        }
    }

    fn done(&mut self, io: u32) {
        let (io, result) = (IoId(io), Ok(()));
        self.step(Event::IoDone { io, result });
    }

    /// Data was moved.
    fn moved(&mut self, io: u32, sums: &[u32]) {
        if self.core.has_checksums() {
            let io = IoId(io);
            self.step(Event::DataDone { io, sums });
        } else {
            self.done(io);
        }
    }

    /// An outstanding operation that `wanted` picks fails.
    pub(super) fn fail(&mut self, wanted: impl Fn(&Pending) -> bool) -> bool {
        let Some(at) = self.order.iter().position(|io| wanted(&self.pending[io])) else {
            return false;
        };
        let io = self.order.remove(at);
        self.pending.remove(&io);
        self.step(Event::IoDone {
            io: IoId(io),
            result: Err(5),
        });
        true
    }

    pub(super) fn settle(&mut self) {
        while self.complete(0) {}
    }

    /// Submits; model bookkeeping included. Returns the id.
    pub(super) fn submit(&mut self, nsid: u32, command: Command) -> u32 {
        self.submit_as(CLIENT, nsid, command)
    }

    pub(super) fn submit_as(&mut self, association: u64, nsid: u32, command: Command) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.version += 1;
        let version = self.version;
        let (mut buffer, mut wanted) = (Vec::new(), Vec::new());
        let mut covers = BTreeMap::new();
        match &command {
            Command::Read { range, .. } | Command::Compare { range, .. } => {
                buffer = vec![b"untouched".to_vec(); range.blocks().0 as usize];
                if let Command::Read { generation, .. } = command {
                    let generation = self.model.resolve(nsid, generation);
                    let blocks = range.start().0..range.end().0;
                    let content = |lba| self.model.content(nsid, generation, lba);
                    wanted = blocks.map(content).collect();
                }
            }
            Command::Write {
                range, generation, ..
            }
            | Command::Zero {
                range, generation, ..
            } => {
                let zero = matches!(command, Command::Zero { .. });
                let key = (nsid, self.model.resolve(nsid, *generation));
                self.model.submitted(key, *range, version, zero);
            }
            Command::Scrub => buffer = vec![b"untouched".to_vec(); 16],
            Command::ReadReplica { .. } => buffer = vec![b"untouched".to_vec()],
            Command::Heal { .. } => buffer.extend(self.offered.take()),
            Command::Flush => covers = self.model.completed(nsid),
            _ => {}
        }
        let outstanding = Outstanding {
            nsid,
            command: command.clone(),
            version,
            buffer,
            wanted,
            covers,
        };
        self.record_submitted(nsid, &outstanding.command, version);
        self.outstanding.insert(id, outstanding);
        let id = CommandId(id);
        self.step(Event::Submitted {
            id,
            nsid: Nsid(nsid),
            association,
            command,
        });
        id.0
    }

    /// Submits, lets everything end, and expects success.
    pub(super) fn ok(&mut self, nsid: u32, command: Command) -> Answer {
        self.run(nsid, command).expect("accepted")
    }

    /// Submits and lets everything end.
    pub(super) fn run(&mut self, nsid: u32, command: Command) -> Answered {
        let id = self.submit(nsid, command);
        self.settle();
        self.answer(id)
    }

    /// How a command was answered.
    pub(super) fn answer(&mut self, id: u32) -> Answered {
        self.answers.remove(&id).expect("answered")
    }

    fn on_answer(&mut self, id: u32, result: Answered) {
        let out = self.outstanding.remove(&id).expect("answered once");
        if let (Err(fault), false, Command::Read { range, generation }) =
            (&result, self.torn.is_empty(), &out.command)
        {
            let key = (out.nsid, self.model.resolve(out.nsid, *generation));
            let mut all = range.start().0..range.end().0;
            assert!(all.any(|lba| self.may_be_torn(key, lba, false)), "{fault}");
        }
        if result.is_ok() {
            self.record_answer(&out);
            self.check_answer(&out);
        } else if !matches!(
            result,
            Err(StoreFault::Medium { .. } | StoreFault::Rotten { .. })
        ) {
            // A refused command changes nothing; a failed one may have changed anything.
            self.model.refused(out.nsid, out.version);
        }
        self.answers.insert(id, result);
    }

    fn check_answer(&mut self, out: &Outstanding) {
        match &out.command {
            Command::Read { range, generation } => {
                let key = (out.nsid, self.model.resolve(out.nsid, *generation));
                let pairs = out.buffer.iter().zip(&out.wanted);
                for (lba, (content, wanted)) in (range.start().0..).zip(pairs) {
                    let torn = self.may_be_torn(key, lba, false);
                    if torn && self.model.may_be(key, lba, content) {
                        continue;
                    }
                    assert_eq!(
                        content, wanted,
                        "nsid {} lba {lba}: {:?}",
                        out.nsid, out.command
                    );
                }
            }
            Command::Write { fua, .. } | Command::Zero { fua, .. } => {
                self.model.done(out.nsid, out.version, *fua);
                if *fua
                    && let Command::Write { range, .. } | Command::Zero { range, .. } = &out.command
                {
                    let blocks = range.start().0..range.end().0;
                    let covers = blocks.map(|lba| ((0, lba), out.version)).collect();
                    self.mend(out.nsid, &covers);
                }
            }
            Command::Flush => {
                self.model.flushed(out.nsid, &out.covers);
                self.mend(out.nsid, &out.covers);
            }
            Command::BeginGeneration(generation) => self.model.begin(out.nsid, generation.0),
            Command::CompleteGeneration(g) => self.model.complete(out.nsid, g.0),
            Command::DropGeneration(g) => self.model.drop(out.nsid, g.0),
            Command::Create { spec, .. } => self.model.create(spec),
            Command::Remove => self.model.remove(out.nsid),
            _ => {}
        }
    }

    /// Blocks that commands in flight touch: the model keeps overlapping ones apart, as clients do.
    pub(super) fn is_locked(&self, nsid: u32, wanted: BlockRange) -> bool {
        self.outstanding.values().any(|o| match &o.command {
            Command::Read { range, .. }
            | Command::Write { range, .. }
            | Command::Zero { range, .. } => o.nsid == nsid && range.overlaps(wanted),
            _ => false,
        })
    }

    /// Whether a change of the slice's generations is under way.
    pub(super) fn is_changing(&self, nsid: u32) -> bool {
        self.outstanding.values().any(|o| match &o.command {
            Command::BeginGeneration(_)
            | Command::CompleteGeneration(_)
            | Command::DropGeneration(_) => o.nsid == nsid,
            _ => false,
        })
    }

    /// The same without its core: good for a crash.
    pub(super) fn fork(&self) -> Self {
        Self {
            device: self.device.clone(),
            core: Core::new(config(
                self.device_bytes,
                self.can_trim,
                self.volatile_cache,
            )),
            pending: self.pending.clone(),
            order: self.order.clone(),
            outstanding: self.outstanding.clone(),
            model: self.model.clone(),
            must_mark: self.must_mark.clone(),
            answers: BTreeMap::new(),
            opened: None,
            failed: None,
            poisoned: None,
            recorder: None,
            torn: self.torn.clone(),
            offered: None,
            ..*self
        }
    }

    /// Power loss (or, with `kill`, only the process dies and the device keeps its cache).
    pub(super) fn crash(&mut self, kill: bool, seed: u64) {
        if kill {
            for (block, content) in self.take_in_flight() {
                self.device.write(block, content, false);
            }
            self.come_back();
        } else {
            self.cut(coin_of(seed));
        }
    }

    /// Power loss; `survives` is asked for every block that was not durable.
    pub(super) fn cut(&mut self, survives: impl FnMut() -> bool) {
        self.lose_power(survives);
        self.come_back();
    }

    pub(super) fn lose_power(&mut self, survives: impl FnMut() -> bool) {
        let in_flight = self.take_in_flight();
        self.device.lose_power(in_flight, survives);
    }

    /// Power has gone; it comes back, goes again after so many device completions of the open, and
    /// comes back.
    pub(super) fn crash_while_opening(&mut self, completions: u64, seed: u64) {
        let doomed = std::mem::take(&mut self.outstanding);
        self.start();
        for nth in 0..completions {
            self.complete(usize::try_from(seed >> nth & 3).expect("small"));
        }
        self.outstanding = doomed;
        self.cut(coin_of(seed));
    }

    /// The writes that have not ended.
    fn take_in_flight(&mut self) -> Vec<(u64, Content)> {
        let order = std::mem::take(&mut self.order).into_iter();
        let pending = order.map(|io| self.pending.remove(&io).expect("in order"));
        let blocks = pending.filter_map(|pending| match pending {
            Pending::Write { blocks, .. } => Some(blocks),
            _ => None,
        });
        blocks.flatten().collect()
    }

    fn come_back(&mut self) {
        let doomed = std::mem::take(&mut self.outstanding);
        self.reopen();
        let facts = self.opened.clone();
        let facts = facts.unwrap_or_else(|| panic!("it opens after any crash: {:?}", self.failed));
        assert!(!facts.clean && facts.lost_at == facts.incarnation);
        self.adopt_changes(doomed.into_values());
        // Everything is looked at: checksum blocks that come and go would take most of the time.
        self.core.limit_checksums(1000);
        self.check_after_restart();
        self.core.limit_checksums(self.checksum_limit);
    }

    /// A change of generations that was not answered has happened or not.
    fn adopt_changes(&mut self, doomed: impl Iterator<Item = Outstanding>) {
        for out in doomed {
            let Some(found) = self.generations(out.nsid) else {
                continue;
            };
            match out.command {
                Command::BeginGeneration(g) if found.contains_key(&g.0) => {
                    self.model.begin(out.nsid, g.0);
                }
                Command::CompleteGeneration(g) if found.get(&g.0) == Some(&false) => {
                    self.model.complete(out.nsid, g.0);
                }
                Command::DropGeneration(g) if !found.contains_key(&g.0) => {
                    self.model.drop(out.nsid, g.0);
                }
                Command::Create { spec, .. } => self.model.create(&spec),
                _ => {}
            }
        }
    }

    /// The generations of a slice and whether they are pending.
    fn generations(&self, nsid: u32) -> Option<BTreeMap<u32, bool>> {
        let mut core_generations = self.core.generations(nsid)?;
        let head = self.core.slice(Nsid(nsid))?.head.0;
        core_generations.insert(head, false);
        Some(core_generations)
    }

    /// Every block has one of its legal values in every generation, and from now on exactly that one.
    pub(super) fn check_after_restart(&mut self) {
        let nsids: BTreeSet<u32> = self.core.slices().map(|s| s.spec.nsid.0).collect();
        for nsid in &nsids {
            self.check_marks(*nsid);
            self.open_session(*nsid);
        }
        self.model.keep_slices(&nsids);
        for nsid in nsids {
            let found = self.generations(nsid).unwrap();
            assert_eq!(found, self.model.generations(nsid), "nsid {nsid}");
            for generation in found.into_keys() {
                for lba in self.model.known_blocks(nsid) {
                    match self.peek(nsid, lba, generation) {
                        Some(content) => self.model.pin(nsid, generation, lba, &content),
                        // Until it is written again.
                        None => {
                            self.torn.insert((nsid, lba), self.version + 1);
                        }
                    }
                }
            }
            if let Some(pending) = self.model.pending(nsid) {
                self.ok(nsid, Command::CompleteGeneration(Generation(pending)));
            }
        }
        self.settle();
        self.check_space();
    }

    /// Every extent is free or has a use.
    pub(super) fn check_space(&self) {
        let usage = self.core.usage();
        let used: u64 = self.core.slices().map(|s| s.used_blocks * BLOCK).sum();
        assert_eq!(usage.free_bytes + used, usage.capacity_bytes);
    }

    /// All that can be merged is: a slice has exactly the extents that its generations need.
    pub(super) fn check_merged(&mut self) {
        self.settle();
        for slice in self.core.slices().collect::<Vec<_>>() {
            let nsid = slice.spec.nsid.0;
            assert!(self.core.is_merged(nsid), "nsid {nsid}");
            let extents = self.model.extents_needed(nsid);
            assert_eq!(slice.used_blocks, extents * 16, "nsid {nsid}");
            super::account::check(self, nsid);
        }
        self.check_space();
    }

    /// Reads a block without judging it; `None`: a write of it failed before, and so does this.
    fn peek(&mut self, nsid: u32, lba: u64, generation: u32) -> Option<Content> {
        let mut whole = true;
        let key = (nsid, generation);
        let id = self.next_id;
        self.next_id += 1;
        let (range, generation) = (range(lba, 1), Generation(generation));
        let incomplete = self.core.slice(Nsid(nsid)).unwrap().incomplete;
        // Comparing makes checksums known, reading does not.
        let command = if incomplete || (lba + self.version).is_multiple_of(2) {
            Command::Compare { range, generation }
        } else {
            Command::Read { range, generation }
        };
        let buffer = vec![b"untouched".to_vec()];
        let covers = BTreeMap::new();
        let out = Outstanding {
            nsid,
            command: command.clone(),
            version: 0,
            buffer,
            wanted: Vec::new(),
            covers,
        };
        self.outstanding.insert(id, out);
        let event = Event::Submitted {
            id: CommandId(id),
            nsid: Nsid(nsid),
            association: CLIENT,
            command,
        };
        let mut effects = Vec::new();
        self.core.step(Moment(0), event, &mut effects);
        let mut content = b"untouched".to_vec();
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::ReadData {
                    io, offset_bytes, ..
                } => {
                    content = self.device.read(offset_bytes / BLOCK);
                    let sums = [block_checksum(&content)];
                    let event = if self.core.has_checksums() {
                        Event::DataDone { io, sums: &sums }
                    } else {
                        Event::IoDone { io, result: Ok(()) }
                    };
                    self.core.step(Moment(0), event, &mut effects);
                }
                Effect::ReadChecksums { io, offset_bytes } => {
                    let mut bytes = self.device.read(offset_bytes / BLOCK);
                    bytes.resize(4096, 0);
                    let bytes = &bytes;
                    let event = Event::MetaRead { io, bytes };
                    self.core.step(Moment(0), event, &mut effects);
                }
                Effect::WriteChecksums {
                    io,
                    offset_bytes,
                    bytes,
                } => {
                    self.device.write(offset_bytes / BLOCK, bytes, false);
                    let result = Ok(());
                    self.core
                        .step(Moment(0), Event::IoDone { io, result }, &mut effects);
                }
                Effect::FillZero { .. } => content = Vec::new(),
                Effect::Answer { command, result } => {
                    let what = |e| format!("nsid {nsid} lba {lba} of {generation}: {e}");
                    whole = result.is_ok();
                    if whole || !self.may_be_torn(key, lba, true) {
                        assert_eq!(result.map_err(what), Ok(Answer::Done));
                    }
                    self.outstanding.remove(&command.0);
                }
                other => self.on_effect(other),
            }
        }
        whole.then_some(content)
    }

    fn check_marks(&mut self, nsid: u32) {
        let state = self.core.slice(Nsid(nsid)).unwrap();
        assert_eq!(state.spec.nsid.0, nsid);
        let marked = self.core.marked_regions(nsid);
        for (n, region) in self.must_mark.keys().filter(|(n, _)| *n == nsid) {
            assert!(
                marked.contains(*region),
                "nsid {n} region {region} was written unmarked"
            );
        }
    }
}

fn config(device_bytes: u64, can_trim: bool, volatile_cache: bool) -> CoreConfig {
    CoreConfig {
        path: "fake".into(),
        cluster: Some(CLUSTER),
        device_bytes,
        volatile_cache,
        can_trim,
        check_only: false,
    }
}

pub(super) fn write(start: u64, blocks: u32, fua: bool) -> Command {
    Command::Write {
        range: range(start, blocks),
        fua,
        generation: Generation(0),
    }
}

pub(super) fn zero(start: u64, blocks: u32, fua: bool) -> Command {
    Command::Zero {
        range: range(start, blocks),
        deallocate: true,
        fua,
        generation: Generation(0),
    }
}

pub(super) fn read(start: u64, blocks: u32) -> Command {
    Command::Read {
        range: range(start, blocks),
        generation: Generation(0),
    }
}

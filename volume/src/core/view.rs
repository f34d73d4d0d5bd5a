//! A view: one complete snapshot of a volume, for reading only.
//!
//! A complete snapshot is the same on every store that has it, whoever has the volume and whatever
//! its in-sync set is, and never changes. So a view opens no session, asks metad nothing, and is in
//! nobody's way: it asks stores whether they have the snapshot and reads from those that do.
//!
//! ```text
//! Away ──path──► Asked ──complete there──► Ready ──path lost──► Away
//!                  │ not (yet)               │ refuses a read
//!                  └───────► Unfit ◄─────────┘      Unfit ──pause──► Asked
//! ```

use super::event::{
    Answer, AttachFault, Command, CommandId, Effect, Event, Fault, HostFault, HostWhat, OpId,
    Payload, StoreState, Timer, TraceEvent,
};
use super::members::{Members, Position};
use super::state::{Outbox, copysets_of, homes_of};
use crate::limits::{IO_BLOCKS_MAX, PRESENCE_REGIONS, VIEW_WAIT_MS};
use shardmap::dirty::BlockSet;
use shardmap::generations::SnapshotState;
use shardmap::map::VolumeMap;
use shardmap::units::{BlockRange, Blocks, Generation, Lba, Moment, REGION_BLOCKS, RegionIndex};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// How long a store that does not have the snapshot is left alone before it is asked again.
const PAUSE_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Away,
    Asked,
    Ready,
    /// Not before then again.
    Unfit(Moment),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Attaching { until: Moment },
    Serving,
    Ended,
}

/// A part of a request that lies in one shard.
#[derive(Clone, Copy, Debug)]
struct Piece {
    range: BlockRange,
    /// Blocks from the start of the request's buffer.
    first_block: u32,
    homes: Members,
    /// Stores whose medium failed.
    tried: Members,
    /// Who is asked now.
    at: Option<Position>,
    done: bool,
}

#[derive(Debug)]
struct Op {
    what: HostWhat,
    pieces: SmallVec<[Piece; 1]>,
    until: Moment,
    found: BlockSet,
}

/// A store of the volume.
#[derive(Clone, Copy, Debug)]
struct Store {
    standing: Standing,
    /// Commands on the way to it.
    outstanding: u32,
}

/// What a command was sent for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Ask,
    Piece(OpId, usize),
}

/// The machine.
#[derive(Debug)]
pub struct View {
    map: VolumeMap,
    generation: Generation,
    attach_wait_ms: u64,
    phase: Phase,
    stores: Vec<Store>,
    /// Commands on the way, with their receiver.
    commands: BTreeMap<CommandId, (Position, Purpose)>,
    next_command: u64,
    /// In the order in which they came, which is that of their deadlines.
    ops: BTreeMap<OpId, Op>,
    /// When the alarm is due.
    armed: Option<Moment>,
}

impl View {
    /// Nothing is asked yet. `attach_wait_ms`: how long every shard may take to have a store that answers.
    pub fn new(map: VolumeMap, generation: Generation, attach_wait_ms: u64) -> Self {
        let store = Store {
            standing: Standing::Away,
            outstanding: 0,
        };
        let stores = vec![store; map.stores.len()];
        Self {
            map,
            generation,
            attach_wait_ms,
            phase: Phase::Attaching { until: Moment(0) },
            stores,
            commands: BTreeMap::new(),
            next_command: 0,
            ops: BTreeMap::new(),
            armed: None,
        }
    }

    /// Reacts to an event.
    pub fn step(&mut self, now: Moment, event: Event, out: &mut Outbox) {
        if self.phase == Phase::Ended {
            return; // the answers of what was on the way
        }
        match event {
            Event::Start => {
                let until = now.plus_ms(self.attach_wait_ms);
                self.phase = Phase::Attaching { until };
                self.positions()
                    .for_each(|at| out.push(Effect::Connect(at)));
            }
            Event::PathUp(at) => self.ask(at, out),
            Event::PathLost(at) => self.on_lost(now, at, out),
            Event::Done { command, result } => self.on_done(now, command, result, out),
            Event::Host { op, what } => self.on_host(now, op, what, out),
            Event::Timer(_) => self.on_alarm(now, out),
            Event::Detach | Event::Abandon => return self.end(out),
            Event::Metad { .. } | Event::Generations(_) | Event::Grown { .. } => {
                unreachable!("a view asks metad nothing and does not change")
            }
        }
        self.arm(out);
    }

    /// Whether reads are answered.
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Where a store stands, its commands under way.
    pub fn store_state(&self, at: Position) -> (StoreState, u32) {
        let store = self.stores[at.index()];
        let state = match store.standing {
            Standing::Ready => StoreState::InSync,
            Standing::Away | Standing::Asked | Standing::Unfit(_) => StoreState::Out,
        };
        (state, store.outstanding)
    }

    /// Stores that have the snapshot and answer.
    pub fn ready(&self) -> Members {
        let ready = |at: &Position| self.stores[at.index()].standing == Standing::Ready;
        self.positions().filter(ready).collect()
    }

    fn positions(&self) -> impl Iterator<Item = Position> + use<> {
        (0..self.stores.len()).map(Position::new)
    }

    fn store_mut(&mut self, at: Position) -> &mut Store {
        &mut self.stores[at.index()]
    }

    fn send(&mut self, at: Position, purpose: Purpose, what: Command, out: &mut Outbox) {
        self.next_command += 1;
        let command = CommandId(self.next_command);
        self.commands.insert(command, (at, purpose));
        self.store_mut(at).outstanding += 1;
        out.push(Effect::Send {
            command,
            to: at,
            what,
        });
    }

    fn ask(&mut self, at: Position, out: &mut Outbox) {
        self.stand(at, Standing::Asked, out);
        self.send(at, Purpose::Ask, Command::SliceState, out);
    }

    fn on_lost(&mut self, now: Moment, at: Position, out: &mut Outbox) {
        self.stand(at, Standing::Away, out);
        self.store_mut(at).outstanding = 0;
        let all = std::mem::take(&mut self.commands).into_iter();
        let (lost, rest): (Vec<_>, Vec<_>) = all.partition(|(_, (to, _))| *to == at);
        self.commands = rest.into_iter().collect();
        for (_, (_, purpose)) in lost {
            if let Purpose::Piece(op, index) = purpose {
                self.piece_mut(op, index).at = None;
            }
        }
        self.advance_all(now, out);
    }

    fn piece_mut(&mut self, op: OpId, index: usize) -> &mut Piece {
        let op = self.ops.get_mut(&op).expect("it waits for the answer");
        &mut op.pieces[index]
    }

    fn on_done(
        &mut self,
        now: Moment,
        command: CommandId,
        result: Result<Answer, Fault>,
        out: &mut Outbox,
    ) {
        let (at, purpose) = self
            .commands
            .remove(&command)
            .expect("a command is answered once");
        self.store_mut(at).outstanding -= 1;
        match purpose {
            Purpose::Ask => self.on_told(now, at, result, out),
            Purpose::Piece(op, index) => self.on_piece(now, at, (op, index), result, out),
        }
    }

    /// What a store says of itself.
    fn on_told(
        &mut self,
        now: Moment,
        at: Position,
        result: Result<Answer, Fault>,
        out: &mut Outbox,
    ) {
        let complete = match &result {
            Ok(Answer::Facts(facts)) if !facts.incomplete => {
                return self.send(at, Purpose::Ask, Command::ReadGenerations, out);
            }
            Ok(Answer::Generations(has)) => {
                has.snapshots.get(&self.generation) == Some(&SnapshotState::Complete)
            }
            Ok(_) | Err(_) => false,
        };
        if !complete {
            return self.leave_alone(now, at, out);
        }
        self.stand(at, Standing::Ready, out);
        if let Phase::Attaching { until } = self.phase {
            self.attach(now, until, out);
        }
        self.advance_all(now, out);
    }

    fn leave_alone(&mut self, now: Moment, at: Position, out: &mut Outbox) {
        self.stand(at, Standing::Unfit(now.plus_ms(PAUSE_MS)), out);
    }

    fn stand(&mut self, at: Position, standing: Standing, out: &mut Outbox) {
        let store = self.map.stores[at.index()];
        let before = std::mem::replace(&mut self.store_mut(at).standing, standing);
        let ready = standing == Standing::Ready;
        if (before == Standing::Ready) != ready {
            out.push(Effect::Trace(TraceEvent::Shows { store, ready }));
        }
    }

    fn on_piece(
        &mut self,
        now: Moment,
        at: Position,
        (op, index): (OpId, usize),
        result: Result<Answer, Fault>,
        out: &mut Outbox,
    ) {
        let piece = self.piece_mut(op, index);
        match result {
            Ok(answer) => {
                piece.done = true;
                if let Answer::Presence(blocks) = answer {
                    let op = self.ops.get_mut(&op).expect("just seen");
                    op.found.merge(&blocks);
                }
            }
            Err(Fault::Medium) => {
                piece.at = None;
                piece.tried.insert(at);
            }
            Err(
                Fault::Fenced
                | Fault::NotOpen
                | Fault::NoSpace
                | Fault::Incomplete
                | Fault::Refused
                | Fault::Transient,
            ) => {
                piece.at = None;
                self.leave_alone(now, at, out);
            }
        }
        self.advance(now, op, out);
    }

    fn on_alarm(&mut self, now: Moment, out: &mut Outbox) {
        self.armed = None;
        for at in self.positions() {
            let standing = self.stores[at.index()].standing;
            if matches!(standing, Standing::Unfit(until) if now >= until) {
                self.ask(at, out);
            }
        }
        if let Phase::Attaching { until } = self.phase {
            self.attach(now, until, out);
        }
        self.advance_all(now, out);
    }

    fn on_host(&mut self, now: Moment, op: OpId, what: HostWhat, out: &mut Outbox) {
        let pieces = match what {
            _ if self.phase != Phase::Serving => Err(HostFault::NotAttached),
            HostWhat::Flush => Ok(SmallVec::new()),
            HostWhat::Write { .. } | HostWhat::Zero { .. } => Err(HostFault::ReadOnly),
            HostWhat::Read(range) if range.blocks().0 > IO_BLOCKS_MAX => Err(HostFault::Range),
            HostWhat::Read(range) => self.pieces_of(range),
            HostWhat::Changes { from, .. } => match self.window(from) {
                Some(window) => self.pieces_of(window),
                None => Err(HostFault::Range),
            },
        };
        match pieces {
            Ok(pieces) => {
                let op_state = Op {
                    what,
                    pieces,
                    until: now.plus_ms(VIEW_WAIT_MS),
                    found: BlockSet::new(),
                };
                let before = self.ops.insert(op, op_state);
                assert!(before.is_none(), "{op:?} is outstanding already");
                self.advance(now, op, out);
            }
            Err(fault) => out.push(Effect::Complete {
                op,
                result: Err(fault),
            }),
        }
    }

    /// The regions that one request for changes covers; `None` past the end.
    fn window(&self, from: RegionIndex) -> Option<BlockRange> {
        let start = u64::from(from.0) * u64::from(REGION_BLOCKS);
        let left = self.map.size_blocks.checked_sub(start)?;
        let blocks = left.min(u64::from(PRESENCE_REGIONS * REGION_BLOCKS));
        BlockRange::new(Lba(start), Blocks(u32::try_from(blocks).expect("bounded")))
    }

    fn pieces_of(&self, range: BlockRange) -> Result<SmallVec<[Piece; 1]>, HostFault> {
        if !self.map.contains(range) {
            return Err(HostFault::Range);
        }
        let pieces = range.split_at_multiples(self.map.shape.shard_blocks);
        let piece = |piece: BlockRange| Piece {
            range: piece,
            first_block: u32::try_from(piece.start().0 - range.start().0).expect("bounded"),
            homes: homes_of(&self.map, self.map.shape.shard_of(piece.start())),
            tried: Members::EMPTY,
            at: None,
            done: false,
        };
        Ok(pieces.map(piece).collect())
    }

    /// Arms the alarm for what must be looked at first.
    fn arm(&mut self, out: &mut Outbox) {
        let unfit = self.stores.iter().filter_map(|store| match store.standing {
            Standing::Unfit(until) => Some(until),
            Standing::Away | Standing::Asked | Standing::Ready => None,
        });
        let first_op = self.ops.first_key_value().map(|(_, op)| op.until);
        let attach = match self.phase {
            Phase::Attaching { until } => Some(until),
            Phase::Serving | Phase::Ended => None,
        };
        let due = unfit.chain(first_op).chain(attach).min();
        if let Some(at) = due.filter(|at| self.armed.is_none_or(|armed| *at < armed)) {
            self.armed = Some(at);
            let timer = Timer::View;
            out.push(Effect::Arm { timer, at });
        }
    }

    fn attach(&mut self, now: Moment, until: Moment, out: &mut Outbox) {
        let ready = self.ready();
        let without = copysets_of(&self.map);
        let without = without
            .into_iter()
            .find(|homes| homes.and(ready).is_empty());
        match without {
            None => {
                self.phase = Phase::Serving;
                out.push(Effect::Attached);
            }
            Some(needed) if now >= until => {
                self.phase = Phase::Ended;
                self.commands.clear();
                let why = AttachFault::StoresNeeded(needed);
                out.push(Effect::AttachFailed(why));
            }
            Some(_) => {}
        }
    }

    fn advance_all(&mut self, now: Moment, out: &mut Outbox) {
        let ids: Vec<OpId> = self.ops.keys().copied().collect();
        ids.into_iter().for_each(|id| self.advance(now, id, out));
    }

    /// Asks for the parts of a request that nobody is asked for, and ends it if that is all.
    fn advance(&mut self, now: Moment, id: OpId, out: &mut Outbox) {
        let ready = self.ready();
        let mut sends: SmallVec<[(usize, Position); 1]> = SmallVec::new();
        let op = &self.ops[&id];
        let mut fault = None;
        for (index, piece) in op.pieces.iter().enumerate() {
            if piece.done || piece.at.is_some() {
                continue;
            }
            if piece.tried.covers(piece.homes) {
                fault = Some(HostFault::Medium);
                break;
            }
            let among = piece.homes.and(ready).minus(piece.tried);
            let busy = |at: &Position| self.stores[at.index()].outstanding;
            let turn = |at: &Position| (id.0 + at.index() as u64) % u64::from(among.count());
            match among.iter().min_by_key(|at| (busy(at), turn(at))) {
                Some(at) => sends.push((index, at)),
                None if now >= op.until => fault = Some(HostFault::Failed),
                None => {}
            }
        }
        let busy = op.pieces.iter().any(|p| p.at.is_some());
        if let Some(fault) = fault {
            // Parts of the buffer that are away come back first; what they bring is not looked at.
            if !busy {
                self.complete(id, Err(fault), out);
            }
            return;
        }
        if op.pieces.iter().all(|p| p.done) {
            return self.complete(id, Ok(()), out);
        }
        for (index, at) in sends {
            self.send_piece(id, index, at, out);
        }
    }

    fn send_piece(&mut self, id: OpId, index: usize, at: Position, out: &mut Outbox) {
        let generation = self.generation;
        let op = self.ops.get_mut(&id).expect("being advanced");
        let piece = &mut op.pieces[index];
        piece.at = Some(at);
        let what = if let HostWhat::Changes { after, .. } = op.what {
            let region = |lba: u64| u32::try_from(lba / u64::from(REGION_BLOCKS)).expect("few");
            let first = region(piece.range.start().0);
            Command::ReadPresence {
                from: RegionIndex(first),
                regions: region(piece.range.end().0 - 1) - first + 1,
                after,
                upto: generation,
                shown: true,
            }
        } else {
            Command::Read {
                range: piece.range,
                into: Payload::Host {
                    op: id,
                    first_block: piece.first_block,
                },
                generation,
            }
        };
        self.send(at, Purpose::Piece(id, index), what, out);
    }

    fn complete(&mut self, id: OpId, result: Result<(), HostFault>, out: &mut Outbox) {
        let op = self.ops.remove(&id).expect("it is not over");
        if let (HostWhat::Changes { .. }, Ok(())) = (op.what, result) {
            let found = op.found;
            out.push(Effect::Found { op: id, found });
        }
        out.push(Effect::Complete { op: id, result });
    }

    fn end(&mut self, out: &mut Outbox) {
        let attaching = matches!(self.phase, Phase::Attaching { .. });
        self.phase = Phase::Ended;
        for op in std::mem::take(&mut self.ops).into_keys() {
            let result = Err(HostFault::NotAttached);
            out.push(Effect::Complete { op, result });
        }
        out.push(if attaching {
            Effect::AttachFailed(AttachFault::Detached)
        } else {
            Effect::Detached
        });
    }
}

//! A machine driven step by step, with exact effects.

use crate::core::{
    Answer, Command, CommandId, Config, Effect, Event, Fault, Grant, HostWhat, Members, OpId,
    Outbox, Position, Replicator, RequestId, SliceFacts, Timer, TraceEvent, Verdict,
};
use shardmap::dirty::{BlockSet, RegionSet};
use shardmap::generations::VolumeGenerations;
use shardmap::map::{Layout, Shape, VolumeMap};
use shardmap::units::{
    BlockRange, Blocks, Epoch, Incarnation, Lba, MembershipSeq, Moment, RegionIndex, StoreId,
    WriteTick,
};
use std::collections::BTreeMap;

pub(super) const MS: u64 = 1_000_000;

/// What a store says of itself.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) incarnation: u64,
    pub(super) stamp: (u64, Members),
    pub(super) incomplete: bool,
    pub(super) marks: Vec<u32>,
    /// For reads of presence.
    pub(super) present: Vec<BlockRange>,
    pub(super) generations: VolumeGenerations,
}

/// A machine, and the effects of its last step without traces, alarms and what is remembered.
pub(super) struct Script {
    pub(super) machine: Replicator,
    pub(super) now: u64,
    pub(super) told: Vec<Told>,
    pub(super) traced: Vec<TraceEvent>,
    pub(super) remembered: BTreeMap<Position, Incarnation>,
    /// Every command there was, with its receiver.
    pub(super) sent: Vec<(usize, Command)>,
    pub(super) armed: BTreeMap<Timer, Moment>,
}

pub(super) fn at(index: usize) -> Position {
    Position::new(index)
}

pub(super) fn members(of: &[usize]) -> Members {
    of.iter().copied().map(at).collect()
}

pub(super) fn range(start: u64, blocks: u32) -> BlockRange {
    BlockRange::new(Lba(start), Blocks(blocks)).unwrap()
}

pub(super) fn write(start: u64, fua: bool) -> HostWhat {
    HostWhat::Write {
        range: range(start, 1),
        fua,
    }
}

pub(super) fn done(op: u64) -> Effect {
    Effect::Complete {
        op: OpId(op),
        result: Ok(()),
    }
}

/// metad is asked for this in-sync set after that version.
pub(super) fn ask(request: u64, seq: u64, isr: &[usize]) -> Effect {
    Effect::AskMetad {
        request: RequestId(request),
        seq: MembershipSeq(seq),
        isr: members(isr),
    }
}

pub(super) fn any(_: &Command) -> bool {
    true
}

pub(super) fn is_write(what: &Command) -> bool {
    matches!(what, Command::Write { .. })
}

pub(super) fn is_read(what: &Command) -> bool {
    matches!(what, Command::Read { .. })
}

/// The commands among effects.
pub(super) fn sends(effects: &[Effect]) -> Vec<(CommandId, usize, &Command)> {
    let sent = |e| {
        if let &Effect::Send {
            command,
            to,
            ref what,
        } = e
        {
            Some((command, to.index(), what))
        } else {
            None
        }
    };
    effects.iter().filter_map(sent).collect()
}

/// Generation tags of the writes and zeroes among effects.
pub(super) fn tags(effects: &[Effect]) -> Vec<u32> {
    let tag = |(_, _, what): (CommandId, usize, &Command)| {
        if let Command::Write { generation, .. } | Command::Zero { generation, .. } = what {
            Some(generation.0)
        } else {
            None
        }
    };
    sends(effects).into_iter().filter_map(tag).collect()
}

/// The id of the one command to a store that fits.
pub(super) fn command_to(
    effects: &[Effect],
    store: usize,
    fits: impl Fn(&Command) -> bool,
) -> CommandId {
    let fitting = sends(effects)
        .into_iter()
        .filter(|(_, to, what)| *to == store && fits(what));
    let ids: Vec<_> = fitting.map(|(id, _, _)| id).collect();
    let [id] = ids[..] else {
        panic!("{} such commands to {store} in {effects:?}", ids.len())
    };
    id
}

/// A grant for a volume whose every store holds every shard.
pub(super) fn grant(stores: u16, shards: u64) -> Grant {
    let map = VolumeMap {
        size_blocks: shards * 1024,
        shape: Shape {
            shard_blocks: 1024,
            stride: stores,
            replicas: u8::try_from(stores).unwrap(),
            layout: Layout::Ring,
        },
        stores: (0..u32::from(stores)).map(StoreId).collect(),
    };
    Grant {
        map,
        epoch: Epoch(4),
        seq: MembershipSeq(0),
        isr: (0..usize::from(stores)).map(at).collect(),
        verified: true,
        survived: None,
        generations: VolumeGenerations::default(),
    }
}

impl Script {
    pub(super) fn new(stores: u16) -> Self {
        Self::sized(stores, 1)
    }

    pub(super) fn sized(stores: u16, shards: u64) -> Self {
        let config = Config {
            stable_period_ms: 0,
            ..Config::default()
        };
        Self::with(config, grant(stores, shards))
    }

    pub(super) fn with(config: Config, grant: Grant) -> Self {
        let told = Told {
            incarnation: 1,
            stamp: (0, Members::EMPTY),
            incomplete: false,
            marks: Vec::new(),
            present: Vec::new(),
            generations: VolumeGenerations::default(),
        };
        Self {
            told: vec![told; grant.map.stores.len()],
            machine: Replicator::new(config, grant),
            now: 0,
            traced: Vec::new(),
            remembered: BTreeMap::new(),
            sent: Vec::new(),
            armed: BTreeMap::new(),
        }
    }

    /// Attached, with a session on every store.
    pub(super) fn attached(stores: u16) -> Self {
        Self::new(stores).attach()
    }

    pub(super) fn attach(self) -> Self {
        let mut script = self;
        script.step(Event::Start);
        let mut last = Vec::new();
        for store in 0..script.told.len() {
            last = script.open(store);
        }
        assert_eq!(last, [Effect::Attached]);
        script
    }

    pub(super) fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Outbox::default();
        self.machine.step(Moment(self.now), event, &mut out);
        let mut loud = Vec::new();
        for effect in out.drain() {
            if let Effect::Send { to, what, .. } = &effect {
                self.sent.push((to.index(), what.clone()));
            }
            if let Effect::Trace(event) = effect {
                self.traced.push(event);
            } else if let Effect::Arm { timer, at } = effect {
                self.armed.insert(timer, at);
            } else if let Effect::Remember(map) = effect {
                self.remembered = map;
            } else {
                loud.push(effect);
            }
        }
        loud
    }

    pub(super) fn host(&mut self, op: u64, what: HostWhat) -> Vec<Effect> {
        self.step(Event::Host { op: OpId(op), what })
    }

    pub(super) fn timer(&mut self, timer: Timer) -> Vec<Effect> {
        self.step(Event::Timer(timer))
    }

    pub(super) fn answer(&mut self, command: CommandId, answer: Answer) -> Vec<Effect> {
        self.step(Event::Done {
            command,
            result: Ok(answer),
        })
    }

    pub(super) fn fault(&mut self, command: CommandId, fault: Fault) -> Vec<Effect> {
        self.step(Event::Done {
            command,
            result: Err(fault),
        })
    }

    pub(super) fn committed(&mut self, request: u64, seq: u64, isr: &[usize]) -> Vec<Effect> {
        self.step(Event::Metad {
            request: RequestId(request),
            verdict: Verdict::Committed {
                seq: MembershipSeq(seq),
                isr: members(isr),
            },
        })
    }

    /// Brings a path up and answers the opening; what followed the last answer.
    pub(super) fn open(&mut self, store: usize) -> Vec<Effect> {
        let sent = self.step(Event::PathUp(at(store)));
        self.answer_opening(store, &sent)
    }

    pub(super) fn answer_opening(&mut self, store: usize, sent: &[Effect]) -> Vec<Effect> {
        let open = command_to(sent, store, |c| matches!(c, Command::OpenSlice { .. }));
        let incarnation = Incarnation(self.told[store].incarnation);
        let sent = self.answer(open, Answer::Opened(incarnation));
        let state = command_to(&sent, store, |c| matches!(c, Command::SliceState));
        let facts = self.told[store].facts();
        let mut sent = self.answer(state, Answer::Facts(facts));
        if let [(id, _, Command::ReadGenerations)] = sends(&sent)[..] {
            let generations = self.told[store].generations.clone();
            sent = self.answer(id, Answer::Generations(generations));
        }
        if self.told[store].marks.is_empty() {
            return sent;
        }
        match sends(&sent)[..] {
            [(id, _, Command::ReadMarks { .. })] => {
                let marks = self.told[store].mark_set();
                self.answer(id, Answer::Marks(marks, None))
            }
            _ => sent,
        }
    }

    /// Answers every command well until nothing more is sent; everything else that happened,
    /// except that copy buffers went.
    pub(super) fn serve(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        let (mut todo, mut rest) = (effects, Vec::new());
        while !todo.is_empty() {
            let mut next = Vec::new();
            for effect in todo {
                if let Effect::Send { command, to, what } = effect {
                    let answer = self.told[to.index()].reply(&what);
                    next.extend(self.answer(command, answer));
                } else if !matches!(effect, Effect::DropCopy(_)) {
                    rest.push(effect);
                }
            }
            todo = next;
        }
        rest
    }

    /// Answers the questions whether a member is there; everything else that happened.
    pub(super) fn hear(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        let mut rest = Vec::new();
        for effect in effects {
            if let Effect::Send { command, to, what } = &effect
                && *what == Command::SliceState
            {
                let facts = self.told[to.index()].facts();
                rest.extend(self.answer(*command, Answer::Facts(facts)));
            } else {
                rest.push(effect);
            }
        }
        rest
    }

    /// A host operation that everybody serves; how it ended.
    pub(super) fn run(&mut self, op: u64, what: HostWhat) -> Vec<Effect> {
        let effects = self.host(op, what);
        self.serve(effects)
    }

    /// The path of a member is lost, its grace ends, and metad lets it go.
    pub(super) fn lose(&mut self, store: usize, (request, seq): (u64, u64), isr: &[usize]) {
        self.step(Event::PathLost(at(store)));
        self.now += 300 * MS;
        let question = self.timer(Timer::Grace(at(store)));
        let asked = self.hear(question);
        assert!(matches!(asked[..], [Effect::AskMetad { .. }]), "{asked:?}");
        let stamps = self.committed(request, seq, isr);
        self.serve(stamps);
    }
}

impl Told {
    pub(super) fn facts(&self) -> SliceFacts {
        SliceFacts {
            incarnation: Incarnation(self.incarnation),
            incomplete: self.incomplete,
            stamp_seq: MembershipSeq(self.stamp.0),
            stamp_isr: self.stamp.1,
            mark_count: u32::try_from(self.marks.len()).unwrap(),
            head: self.generations.head,
            snapshot_count: u32::try_from(self.generations.snapshots.len()).unwrap(),
        }
    }

    pub(super) fn mark_set(&self) -> RegionSet {
        self.marks.iter().copied().map(RegionIndex).collect()
    }

    /// A good answer.
    pub(super) fn reply(&self, what: &Command) -> Answer {
        match what {
            Command::Read { into, .. } => match into {
                crate::core::Payload::Host { .. } => Answer::Done,
                crate::core::Payload::Copy(_) => Answer::Copied { all_zero: false },
            },
            Command::Write { .. }
            | Command::Zero { .. }
            | Command::Flush
            | Command::CloseSlice
            | Command::Stamp(_)
            | Command::AddMarks(_)
            | Command::BeginGeneration(_)
            | Command::CompleteGeneration(_)
            | Command::CompleteSlice(_) => Answer::Done,
            Command::ReadGenerations => Answer::Generations(self.generations.clone()),
            Command::OpenSlice { .. } => Answer::Opened(Incarnation(self.incarnation)),
            Command::SliceState => Answer::Facts(self.facts()),
            Command::Tick => Answer::Tick(WriteTick(1)),
            Command::Stable { .. } => Answer::MarksLeft(0),
            Command::ReadMarks { .. } => Answer::Marks(self.mark_set(), None),
            Command::ReadPresence { .. } => {
                let mut blocks = BlockSet::new();
                self.present.iter().for_each(|range| blocks.insert(*range));
                Answer::Presence(blocks)
            }
            Command::Hash(range, _) => {
                let chunks = range.split_at_multiples(shardmap::units::EXTENT_BLOCKS);
                Answer::Hashes(chunks.map(|_| 7).collect())
            }
        }
    }
}

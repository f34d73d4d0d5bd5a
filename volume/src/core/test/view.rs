//! Views, step by step.

use super::script::{MS, at, members, range};
use crate::core::{
    Answer, AttachFault, Command, CommandId, Effect, Event, Fault, HostFault, HostWhat, OpId,
    Outbox, Position, SliceFacts, Timer, TraceEvent, View,
};
use crate::limits::VIEW_WAIT_MS;
use shardmap::dirty::BlockSet;
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::map::{Layout, Shape, VolumeMap};
use shardmap::units::{Generation, Moment, RegionIndex, StoreId};

const SNAPSHOT: Generation = Generation(2);
const ATTACH_WAIT_MS: u64 = 3_000;

struct Script {
    view: View,
    now: u64,
    alarm: Option<Moment>,
    /// Stores that it said it reads from, or no more.
    told: Vec<(u32, bool)>,
}

impl Script {
    /// Two replicas on three stores, a shard of one region, four shards.
    fn started() -> Self {
        let map = VolumeMap {
            size_blocks: 4096,
            shape: Shape {
                shard_blocks: 1024,
                stride: 3,
                replicas: 2,
                layout: Layout::Ring,
            },
            stores: [10, 11, 12].map(StoreId).to_vec(),
        };
        let mut script = Self {
            view: View::new(map, SNAPSHOT, ATTACH_WAIT_MS),
            now: 0,
            alarm: None,
            told: Vec::new(),
        };
        let effects = script.step(Event::Start);
        assert_eq!(effects, [0, 1, 2].map(|i| Effect::Connect(at(i))));
        script
    }

    fn attached() -> Self {
        let mut script = Self::started();
        let last = (0..3)
            .map(|i| script.says(i, SnapshotState::Complete))
            .last();
        assert!(script.view.is_serving());
        assert_eq!(last, Some(Vec::new()));
        script
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Outbox::default();
        self.view.step(Moment(self.now), event, &mut out);
        let mut effects: Vec<Effect> = out.drain().collect();
        effects.retain(|effect| {
            if let Effect::Trace(TraceEvent::Shows { store, ready }) = effect {
                self.told.push((store.0, *ready));
                return false;
            }
            let Effect::Arm { timer, at } = effect else {
                return true;
            };
            assert_eq!(*timer, Timer::View);
            self.alarm = Some(*at);
            false
        });
        effects
    }

    /// The alarm rings when it is due.
    fn ring(&mut self) -> Vec<Effect> {
        self.now = self.alarm.take().expect("armed").0;
        self.step(Event::Timer(Timer::View))
    }

    fn done(&mut self, effect: &Effect, result: Result<Answer, Fault>) -> Vec<Effect> {
        let (command, ..) = sent(effect);
        self.step(Event::Done { command, result })
    }

    /// A store's path comes up, and it tells of its snapshot.
    fn says(&mut self, store: usize, state: SnapshotState) -> Vec<Effect> {
        let asked = self.step(Event::PathUp(at(store)));
        self.tells(&asked, state)
    }

    fn tells(&mut self, asked: &[Effect], state: SnapshotState) -> Vec<Effect> {
        let asked = self.done(&asked[0], Ok(Answer::Facts(SliceFacts::default())));
        let generations = VolumeGenerations {
            head: Generation(3),
            snapshots: [(SNAPSHOT, state)].into(),
            hold: false,
        };
        self.done(&asked[0], Ok(Answer::Generations(generations)))
    }

    fn host(&mut self, op: u64, what: HostWhat) -> Vec<Effect> {
        self.step(Event::Host { op: OpId(op), what })
    }

    fn read(&mut self, op: u64, start: u64, blocks: u32) -> Vec<Effect> {
        self.host(op, HostWhat::Read(range(start, blocks)))
    }
}

fn sent(effect: &Effect) -> (CommandId, Position, &Command) {
    let Effect::Send { command, to, what } = effect else {
        panic!("{effect:?}")
    };
    (*command, *to, what)
}

fn ends(op: u64, result: Result<(), HostFault>) -> Vec<Effect> {
    let op = OpId(op);
    vec![Effect::Complete { op, result }]
}

#[test]
fn it_serves_once_every_shard_has_a_store_with_the_complete_snapshot() {
    let mut script = Script::started();
    assert_eq!(script.says(0, SnapshotState::Complete), []);
    assert_eq!(script.says(1, SnapshotState::Pending), []);
    assert!(!script.view.is_serving(), "shard 1 is on stores 1 and 2");
    let effects = script.says(2, SnapshotState::Complete);
    assert_eq!(effects, [Effect::Attached]);
    assert_eq!(script.view.ready(), members(&[0, 2]));
    // The store completes it later.
    let asked = script.ring();
    assert_eq!(sent(&asked[0]).1, at(1));
    script.tells(&asked, SnapshotState::Complete);
    assert_eq!(script.view.ready(), members(&[0, 1, 2]));
}

#[test]
fn without_a_store_for_every_shard_it_gives_up_and_names_who_is_needed() {
    let mut script = Script::started();
    script.says(0, SnapshotState::Complete);
    let effects = script.ring();
    let why = AttachFault::StoresNeeded(members(&[1, 2]));
    assert_eq!(effects, [Effect::AttachFailed(why)]);
}

#[test]
fn an_incomplete_store_is_not_read() {
    let mut script = Script::started();
    let asked = script.step(Event::PathUp(at(0)));
    let facts = SliceFacts {
        incomplete: true,
        ..SliceFacts::default()
    };
    assert_eq!(script.done(&asked[0], Ok(Answer::Facts(facts))), []);
    assert!(script.view.ready().is_empty());
}

#[test]
fn a_read_over_two_shards_reads_the_snapshot_of_each_and_ends_once() {
    let mut script = Script::attached();
    let sends = script.read(1, 1020, 8);
    assert_eq!(sends.len(), 2);
    for (effect, homes) in sends.iter().zip([members(&[0, 1]), members(&[1, 2])]) {
        let (_, to, what) = sent(effect);
        assert!(homes.has(to));
        assert!(matches!(what, Command::Read { generation, range, .. }
            if *generation == SNAPSHOT && range.blocks().0 == 4));
    }
    assert_eq!(script.done(&sends[1], Ok(Answer::Done)), []);
    assert_eq!(script.done(&sends[0], Ok(Answer::Done)), ends(1, Ok(())));
}

#[test]
fn a_failed_medium_and_a_lost_path_lead_to_the_other_store() {
    let mut script = Script::attached();
    let first = script.read(1, 0, 1);
    let second = script.done(&first[0], Err(Fault::Medium));
    let (one, other) = (sent(&first[0]).1, sent(&second[0]).1);
    assert_ne!(one, other);
    assert_eq!(
        script.step(Event::PathLost(other)),
        [],
        "nobody is left now"
    );
    let asked = script.step(Event::PathUp(other));
    let third = script.tells(&asked, SnapshotState::Complete);
    assert_eq!(sent(&third[0]).1, other);
    let who = 10 + u32::try_from(other.index()).unwrap();
    assert_eq!(script.told[3..], [(who, false), (who, true)]);
    let effects = script.done(&third[0], Err(Fault::Medium));
    assert_eq!(effects, ends(1, Err(HostFault::Medium)));
}

#[test]
fn a_store_that_refuses_is_asked_again_and_a_read_nobody_answers_fails_in_the_end() {
    let mut script = Script::attached();
    let first = script.read(1, 0, 1);
    let second = script.done(&first[0], Err(Fault::Refused));
    assert_eq!(script.done(&second[0], Err(Fault::Incomplete)), []);
    let mut asks = 0;
    let ended = loop {
        let mut effects = script.ring();
        let ended = effects.pop_if(|e| matches!(e, Effect::Complete { .. }));
        asks += effects.len();
        for ask in &effects {
            script.done(ask, Err(Fault::Transient));
        }
        if ended.is_some() {
            break Vec::from_iter(ended);
        }
    };
    assert_eq!(ended, ends(1, Err(HostFault::Failed)));
    assert_eq!(script.now, VIEW_WAIT_MS * MS);
    assert!(asks > 50, "both every second: {asks}");
}

#[test]
fn changes_are_asked_of_one_store_per_shard_and_come_together() {
    let mut script = Script::attached();
    let what = HostWhat::Changes {
        from: RegionIndex(0),
        after: Generation(1),
    };
    let sends = script.host(1, what);
    assert_eq!(sends.len(), 4);
    let mut found = BlockSet::new();
    let mut last = Vec::new();
    for (shard, effect) in (0..).zip(&sends) {
        let expected = Command::ReadPresence {
            from: RegionIndex(shard),
            regions: 1,
            after: Generation(1),
            upto: SNAPSHOT,
            shown: true,
        };
        assert_eq!(sent(effect).2, &expected);
        let mut blocks = BlockSet::new();
        blocks.insert(range(u64::from(shard) * 1024 + 7, 2));
        found.merge(&blocks);
        last = script.done(effect, Ok(Answer::Presence(blocks)));
    }
    let op = OpId(1);
    let expected = [Effect::Found { op, found }, ends(1, Ok(())).remove(0)];
    assert_eq!(last, expected);
    let past = HostWhat::Changes {
        from: RegionIndex(4),
        after: Generation(1),
    };
    assert_eq!(script.host(2, past), ends(2, Err(HostFault::Range)));
}

#[test]
fn a_snapshot_is_not_written_and_flushing_it_is_nothing() {
    let mut script = Script::attached();
    let write = super::script::write(0, false);
    assert_eq!(script.host(1, write), ends(1, Err(HostFault::ReadOnly)));
    assert_eq!(script.host(2, HostWhat::Flush), ends(2, Ok(())));
    assert_eq!(script.read(3, 4090, 8), ends(3, Err(HostFault::Range)));
}

#[test]
fn letting_go_ends_what_is_under_way_and_late_answers_are_nothing() {
    let mut script = Script::attached();
    let sends = script.read(1, 0, 1);
    let mut expected = ends(1, Err(HostFault::NotAttached));
    expected.push(Effect::Detached);
    assert_eq!(script.step(Event::Detach), expected);
    assert_eq!(script.done(&sends[0], Ok(Answer::Done)), []);
}

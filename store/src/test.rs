//! The whole store over the io_uring driver, on a file.

mod integrity;

use crate::{PrepareOptions, SliceSpec, Stamp, Store, StoreEvent, StoreFault, StoreOp, StoreReply};
use crate::{StoreRequest, hash::content_hash};
use reactor::{App, ArenaConfig, BufMut, Completion, Driver, UringConfig, UringDriver};
use shardmap::map::{Layout, Shape};
use shardmap::units::{BlockRange, Blocks, Epoch, Generation, Incarnation, Lba, MembershipSeq};
use shardmap::units::{Nsid, RegionIndex, VolumeId};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const CLUSTER: Uuid = Uuid::from_u128(11);
const BLOCKS: u64 = 4096;
const CLIENT: u64 = 3;

#[derive(Default)]
struct Inbox(VecDeque<Completion>);

impl App for Inbox {
    fn on_completion(&mut self, _io: &mut dyn Driver, completion: Completion) {
        self.0.push_back(completion);
    }
    fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
    fn is_finished(&self) -> bool {
        false
    }
}

struct Rig {
    store: Store,
    events: Vec<StoreEvent>,
    inbox: Inbox,
    next_id: u64,
    // After the store: it holds windows of the arena.
    io: UringDriver,
}

fn driver() -> UringDriver {
    let arena = ArenaConfig {
        slot_counts: [64, 64, 64],
        huge_pages: false,
    };
    UringDriver::new(UringConfig {
        ops_max: 1024,
        arena,
        ..UringConfig::default()
    })
    .unwrap()
}

fn prepared(dir: &Path) -> PathBuf {
    prepared_with(dir, true)
}

fn prepared_with(dir: &Path, checksums: bool) -> PathBuf {
    let path = dir.join("disk");
    let options = PrepareOptions {
        checksums,
        cluster: CLUSTER,
        store: Uuid::from_u128(12),
        size_bytes: Some(64 << 20),
        wipe: false,
        journal_bytes: Some(1 << 20),
    };
    Store::prepare(&path, &options).unwrap();
    path
}

fn spec(nsid: u32) -> SliceSpec {
    SliceSpec {
        nsid: Nsid(nsid),
        volume: VolumeId([9; 16]),
        size_blocks: BLOCKS,
        shape: Shape {
            shard_blocks: 1024,
            stride: 1,
            replicas: 1,
            layout: Layout::Ring,
        },
        parent: None,
        position: 0,
        open_access: false,
    }
}

fn range(start: u64, blocks: u32) -> BlockRange {
    BlockRange::new(Lba(start), Blocks(blocks)).unwrap()
}

impl Rig {
    fn open(path: &Path) -> Result<Self, StoreFault> {
        let (mut io, mut events) = (driver(), Vec::new());
        let store = Store::open(&mut io, (1, 7), path, CLUSTER, &mut events)?;
        let mut rig = Self {
            store,
            events,
            inbox: Inbox::default(),
            next_id: 0,
            io,
        };
        let opened =
            |e: &StoreEvent| matches!(e, StoreEvent::Opened(_) | StoreEvent::OpenFailed(_));
        match rig.until(opened) {
            StoreEvent::OpenFailed(fault) => Err(fault),
            StoreEvent::Opened(_)
            | StoreEvent::Reply { .. }
            | StoreEvent::Rotten { .. }
            | StoreEvent::Poisoned(_)
            | StoreEvent::Stopped => Ok(rig),
        }
    }

    fn until(&mut self, wanted: impl Fn(&StoreEvent) -> bool) -> StoreEvent {
        loop {
            if let Some(at) = self.events.iter().position(&wanted) {
                return self.events.remove(at);
            }
            self.io.turn(&mut self.inbox);
            while let Some(completion) = self.inbox.0.pop_front() {
                assert_eq!((completion.token.room, completion.token.index), (1, 7));
                self.store
                    .on_completion(&mut self.io, completion, &mut self.events);
            }
        }
    }

    fn submit(&mut self, nsid: u32, op: StoreOp) -> u64 {
        self.next_id += 1;
        let (id, slice, association) = (self.next_id, Nsid(nsid), CLIENT);
        let request = StoreRequest {
            id,
            slice,
            association,
            op,
        };
        self.store.submit(&mut self.io, request, &mut self.events);
        id
    }

    fn reply(&mut self, id: u64) -> Result<StoreReply, StoreFault> {
        let mine = |e: &StoreEvent| matches!(e, StoreEvent::Reply { id: i, .. } if *i == id);
        let StoreEvent::Reply { result, .. } = self.until(mine) else {
            unreachable!("asked for")
        };
        result
    }

    fn run(&mut self, nsid: u32, op: StoreOp) -> Result<StoreReply, StoreFault> {
        let id = self.submit(nsid, op);
        self.reply(id)
    }

    fn open_session(&mut self, nsid: u32, epoch: u64) -> crate::SliceState {
        let op = StoreOp::OpenSession {
            epoch: Epoch(epoch),
            volume: VolumeId([9; 16]),
        };
        match self.run(nsid, op) {
            Ok(StoreReply::State(state)) => state,
            other => panic!("{other:?}"),
        }
    }

    fn buffer(&self, blocks: u32) -> BufMut {
        self.io
            .arena()
            .take(blocks * 4096)
            .expect("the arena is large enough")
    }

    fn write_op(&self, start: u64, blocks: u32, seed: u64, fua: bool) -> StoreOp {
        let mut data = self.buffer(blocks);
        for (lba, block) in (start..).zip(data.bytes_mut().chunks_mut(4096)) {
            block.copy_from_slice(&pattern(lba, seed));
        }
        let generation = Generation(0);
        StoreOp::Write {
            range: range(start, blocks),
            data: data.freeze(),
            fua,
            generation,
        }
    }

    fn read(&mut self, nsid: u32, start: u64, blocks: u32) -> Result<Vec<u8>, StoreFault> {
        let into = self.buffer(blocks);
        let reply = self.run(
            nsid,
            StoreOp::Read {
                generation: Generation(0),
                range: range(start, blocks),
                into,
            },
        )?;
        let StoreReply::Read(buffer) = reply else {
            panic!("a read answers with its buffer")
        };
        Ok(buffer.bytes().to_vec())
    }

    fn check(&mut self, nsid: u32, model: &BTreeMap<u64, u64>) {
        for start in (0..BLOCKS).step_by(32) {
            let content = self.read(nsid, start, 32).unwrap();
            for (lba, block) in (start..).zip(content.chunks(4096)) {
                let want = model
                    .get(&lba)
                    .map_or([0; 4096], |seed| pattern(lba, *seed));
                assert!(block == want, "lba {lba} seed {:?}", model.get(&lba));
            }
        }
    }

    fn stop(mut self) {
        self.store.stop(&mut self.io, &mut self.events);
        self.until(|e| matches!(e, StoreEvent::Stopped));
    }
}

fn pattern(lba: u64, seed: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    for (i, word) in (0u64..).zip(block.chunks_mut(8)) {
        let value = (lba << 32 | i << 20) ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
    block
}

/// Random writes and zeroes at depth 16, without overlaps.
fn churn(rig: &mut Rig, nsid: u32, model: &mut BTreeMap<u64, u64>, rounds: u64) {
    let mut state = rounds | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for round in 0..rounds {
        let mut ids = Vec::new();
        for lane in 0..16u64 {
            let start = lane * 256 + random(200);
            let blocks = u32::try_from(1 + random(32)).unwrap();
            if random(5) == 0 {
                let (deallocate, fua) = (random(2) == 0, random(8) == 0);
                let range = range(start, blocks);
                ids.push(rig.submit(
                    nsid,
                    StoreOp::Zero {
                        generation: Generation(0),
                        range,
                        deallocate,
                        fua,
                    },
                ));
                model.retain(|lba, _| !(start..start + u64::from(blocks)).contains(lba));
            } else {
                let op = rig.write_op(start, blocks, round, random(8) == 0);
                ids.push(rig.submit(nsid, op));
                model.extend((start..start + u64::from(blocks)).map(|lba| (lba, round)));
            }
        }
        for id in ids {
            assert!(matches!(rig.reply(id), Ok(StoreReply::Done)));
        }
    }
}

#[test]
fn what_was_flushed_is_there_after_a_stop_and_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = Rig::open(&path).unwrap();
    assert!(matches!(
        rig.run(
            4,
            StoreOp::CreateSlice {
                spec: spec(4),
                incomplete: false
            }
        ),
        Ok(StoreReply::Done)
    ));
    assert_eq!(rig.open_session(4, 1).incarnation, Incarnation(1));
    let mut model = BTreeMap::new();
    churn(&mut rig, 4, &mut model, 60);
    rig.check(4, &model);
    rig.stop();

    let mut rig = Rig::open(&path).unwrap();
    let state = rig.open_session(4, 2);
    assert!(state.clean && state.incarnation == Incarnation(1) && state.lost_at == Incarnation(0));
    assert!(
        state.mark_count > 0,
        "marks stay until the client says that all agree"
    );
    rig.check(4, &model);
    churn(&mut rig, 4, &mut model, 60);
    assert!(matches!(rig.run(4, StoreOp::Flush), Ok(StoreReply::Done)));
    drop(rig);

    let mut rig = Rig::open(&path).unwrap();
    let state = rig.open_session(4, 3);
    assert!(!state.clean && state.incarnation == Incarnation(2));
    assert_eq!(state.lost_at, Incarnation(2));
    rig.check(4, &model);
    assert!(rig.store.counters().reads > 0);
    rig.stop();
}

#[test]
fn hashes_marks_and_presence_tell_what_a_replica_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = Rig::open(&path).unwrap();
    rig.run(
        4,
        StoreOp::CreateSlice {
            spec: spec(4),
            incomplete: false,
        },
    )
    .unwrap();
    rig.open_session(4, 1);
    let op = rig.write_op(1030, 20, 5, false);
    rig.run(4, op).unwrap();
    let Ok(StoreReply::Hashes(hashes)) = rig.run(
        4,
        StoreOp::Hash {
            generation: Generation(0),
            range: range(1008, 64),
        },
    ) else {
        panic!("no hashes")
    };
    let blank = content_hash(&[0; 65_536]);
    let content: Vec<u8> = (1024..1040)
        .flat_map(|lba| {
            if lba < 1030 {
                [0; 4096]
            } else {
                pattern(lba, 5)
            }
        })
        .collect();
    assert_eq!((hashes[0], hashes[3]), (blank, blank));
    assert_eq!(hashes[1], content_hash(&content));
    assert!(hashes.len() == 4 && hashes[2] != blank);
    let Ok(StoreReply::Marks {
        regions,
        next: None,
    }) = rig.run(
        4,
        StoreOp::ReadMarks {
            from: RegionIndex(0),
        },
    )
    else {
        panic!("no marks")
    };
    assert!(regions.iter().eq([1]));
    let presence = StoreOp::ReadPresence {
        from: RegionIndex(1),
        regions: 2,
        after: Generation(0),
        upto: Generation(0),
        shown: false,
    };
    let Ok(StoreReply::Presence { blocks, next: None }) = rig.run(4, presence) else {
        panic!("no presence")
    };
    assert!(blocks.iter().eq(6..26));
    rig.stop();
}

#[test]
fn an_incomplete_slice_is_compared_but_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = Rig::open(&path).unwrap();
    rig.run(
        4,
        StoreOp::CreateSlice {
            spec: spec(4),
            incomplete: false,
        },
    )
    .unwrap();
    rig.open_session(4, 1);
    rig.run(4, StoreOp::SetIncomplete).unwrap();
    assert!(matches!(
        rig.read(4, 0, 1),
        Err(StoreFault::Incomplete { .. })
    ));
    assert!(
        rig.run(
            4,
            StoreOp::Hash {
                generation: Generation(0),
                range: range(0, 32)
            }
        )
        .is_ok()
    );
    let stamp = Stamp {
        seq: MembershipSeq(4),
        in_sync: 1,
        members: 1,
    };
    rig.run(4, StoreOp::Complete(stamp)).unwrap();
    assert!(rig.read(4, 0, 1).is_ok());
    assert_eq!(rig.store.slice(Nsid(4)).unwrap().stamp, stamp);
    let refused = rig.run(
        4,
        StoreOp::Hash {
            generation: Generation(0),
            range: range(1, 16),
        },
    );
    assert!(matches!(refused, Err(StoreFault::OutOfRange { .. })));
    rig.stop();
}

#[test]
fn a_store_is_opened_once_by_its_own_cluster_and_at_full_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let rig = Rig::open(&path).unwrap();
    let Err(second) = Rig::open(&path) else {
        panic!("opened twice")
    };
    assert!(second.to_string().contains("disk"), "{second}");
    rig.stop();
    let (mut io, mut events) = (driver(), Vec::new());
    let other = Uuid::from_u128(99);
    let store = Store::open(&mut io, (1, 7), &path, other, &mut events).unwrap();
    let mut rig = Rig {
        store,
        events,
        inbox: Inbox::default(),
        next_id: 0,
        io,
    };
    let failed = rig.until(|e| matches!(e, StoreEvent::OpenFailed(_)));
    assert!(format!("{failed:?}").contains("OtherCluster"), "{failed:?}");
    drop(rig);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(48 << 20).unwrap();
    let Err(shrunk) = Rig::open(&path) else {
        panic!("opened a shrunk device")
    };
    assert!(shrunk.to_string().contains("shrank"), "{shrunk}");
    let info = Store::inspect(&path).unwrap();
    assert!(info.clean, "a refused open writes nothing");
}

#[test]
fn a_file_that_became_larger_is_taken_in_while_the_store_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = Rig::open(&path).unwrap();
    let before = rig.store.usage().capacity_bytes;
    let mut large = spec(4);
    large.size_blocks = (96 << 20) / 4096;
    let create = StoreOp::CreateSlice {
        spec: large,
        incomplete: false,
    };
    rig.run(4, create).unwrap();
    rig.open_session(4, 1);
    let refused = rig.run(0, StoreOp::Grow).unwrap_err();
    assert!(refused.to_string().contains("enlarge it"), "{refused}");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(128 << 20).unwrap();
    assert_eq!(Store::inspect(&path).unwrap().unused_bytes(), 64 << 20);
    let Ok(StoreReply::Grown(grown)) = rig.run(0, StoreOp::Grow) else {
        panic!("it grows")
    };
    assert_eq!(grown.capacity_bytes_before, before);
    assert_eq!(
        (grown.device_bytes_before, grown.device_bytes),
        (64 << 20, 128 << 20)
    );
    assert_eq!(grown.capacity_bytes, rig.store.usage().capacity_bytes);
    for start in (0..large.size_blocks).step_by(32) {
        let write = rig.write_op(start, 32, 5, false);
        rig.run(4, write).unwrap();
    }
    rig.run(4, StoreOp::Flush).unwrap();
    drop(rig);
    let facts = Store::check(&path).unwrap();
    assert_eq!(facts.capacity_bytes, grown.capacity_bytes);
    let mut rig = Rig::open(&path).unwrap();
    rig.open_session(4, 2);
    for start in (0..large.size_blocks).step_by(32) {
        let found = rig.read(4, start, 32).unwrap();
        let wanted: Vec<u8> = (start..start + 32)
            .flat_map(|lba| pattern(lba, 5))
            .collect();
        assert!(found == wanted, "block {start}");
    }
    rig.stop();
    let info = Store::inspect(&path).unwrap();
    assert_eq!(
        (info.capacity_bytes, info.growths),
        (grown.capacity_bytes, 1)
    );
}

#[test]
fn a_check_reads_everything_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = Rig::open(&path).unwrap();
    rig.run(
        4,
        StoreOp::CreateSlice {
            spec: spec(4),
            incomplete: false,
        },
    )
    .unwrap();
    rig.open_session(4, 1);
    let mut model = BTreeMap::new();
    churn(&mut rig, 4, &mut model, 20);
    let used = rig.store.slice(Nsid(4)).unwrap().used_blocks;
    let busy = Store::check(&path).unwrap_err();
    assert!(busy.to_string().contains("in use"), "{busy}");
    rig.stop();
    let before = std::fs::read(&path).unwrap();
    let facts = Store::check(&path).unwrap();
    assert!(facts.clean && facts.slices[0].used_blocks == used);
    assert_eq!(facts.capacity_bytes - facts.free_bytes, used * 4096);
    assert!(std::fs::read(&path).unwrap() == before);
    // One flipped bit in a page or in the log is found.
    let at = before
        .windows(4)
        .position(|w| w == b"UBSJ")
        .expect("a record");
    let mut damaged = before;
    damaged[at + 40] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let fault = Store::check(&path).unwrap_err();
    assert!(
        fault.to_string().contains("journal record 1 is damaged"),
        "{fault}"
    );
}

#[test]
fn a_stopped_or_killed_store_can_be_examined_and_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let create = || StoreOp::CreateSlice {
        spec: spec(5),
        incomplete: false,
    };
    let mut rig = Rig::open(&path).unwrap();
    rig.run(5, create()).unwrap();
    rig.open_session(5, 1);
    let write = rig.write_op(14, 6, 77, true);
    rig.run(5, write).unwrap();
    let in_use = crate::Examined::open(&path).unwrap_err().to_string();
    assert!(in_use.contains("in use"), "{in_use}");
    drop(rig); // without a stop: as if killed
    let before = std::fs::read(&path).unwrap();
    let examined = crate::Examined::open(&path).unwrap();
    let slices: Vec<Nsid> = examined.slices().map(|s| s.spec.nsid).collect();
    assert_eq!(slices, [Nsid(5)]);
    let mut seen = vec![1; 16 * 4096];
    examined.read(Nsid(5), range(8, 16), &mut seen).unwrap();
    for (lba, block) in (8..).zip(seen.chunks(4096)) {
        let written = (14..20).contains(&lba);
        let want = if written { pattern(lba, 77) } else { [0; 4096] };
        assert!(block == want, "lba {lba}");
    }
    let beyond = examined.read(Nsid(5), range(BLOCKS - 8, 16), &mut seen);
    assert!(
        matches!(beyond, Err(StoreFault::OutOfRange { .. })),
        "{beyond:?}"
    );
    assert!(before == std::fs::read(&path).unwrap());
}

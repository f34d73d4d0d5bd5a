//! One store on a reactor of its own, asked from outside.

use anyhow::{Context, Result, anyhow, bail};
use reactor::{App, ArenaConfig, Completion, Driver, UringConfig, UringDriver};
use shardmap::map::{Layout, Shape};
use shardmap::units::{BlockRange, Blocks, Generation, Lba, Nsid, VolumeId};
use std::path::Path;
use std::time::{Duration, Instant};
use store::{PrepareOptions, SliceSpec, Store, StoreEvent, StoreOp, StoreReply, StoreRequest};
use uuid::Uuid;

const ROOM_STORE: u8 = 1;
const CLUSTER: Uuid = Uuid::from_u128(2);
/// Requests in flight when nothing is measured.
const FILL_DEPTH: u32 = 32;
/// Flushes after which a merge is given up.
const MERGE_TURNS_MAX: u32 = 2_000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Overwrite,
}

/// The program on the reactor.
struct Shell {
    store: Option<Store>,
    events: Vec<StoreEvent>,
    opened: bool,
    stopped: bool,
    problem: Option<String>,
    /// Answers, in the order they came.
    replies: Vec<StoreReply>,
}

/// The store and its reactor.
pub(super) struct Lab {
    driver: UringDriver,
    shell: Shell,
}

/// Creates a file of that size, sparse, as a store. One that the store made would be allocated as a
/// whole, in memory here.
pub(super) fn prepare(path: &Path, size_bytes: u64) -> Result<()> {
    prepare_with(path, size_bytes, true)
}

/// The same with or without checksums.
pub(super) fn prepare_with(path: &Path, size_bytes: u64, checksums: bool) -> Result<()> {
    std::fs::File::create_new(path)?.set_len(size_bytes)?;
    let options = PrepareOptions {
        cluster: CLUSTER,
        store: Uuid::from_u128(1),
        size_bytes: None,
        wipe: false,
        journal_bytes: None,
        checksums,
    };
    Store::prepare(path, &options)?;
    Ok(())
}

impl Lab {
    /// Opens the store, and says how long that took.
    pub(super) fn open(path: &Path) -> Result<(Self, Duration)> {
        let config = UringConfig {
            arena: ArenaConfig::default(),
            ..UringConfig::default()
        };
        let mut driver = UringDriver::new(config).context("cannot start io_uring")?;
        let mut events = Vec::new();
        let began = Instant::now();
        let store = Store::open(&mut driver, (ROOM_STORE, 0), path, CLUSTER, &mut events)?;
        let shell = Shell {
            store: Some(store),
            events,
            opened: false,
            stopped: false,
            problem: None,
            replies: Vec::new(),
        };
        let mut lab = Self { driver, shell };
        lab.turn_until(|shell| shell.opened)?;
        Ok((lab, began.elapsed()))
    }

    fn turn_until(&mut self, done: impl Fn(&Shell) -> bool) -> Result<()> {
        self.shell.settle();
        while !done(&self.shell) {
            if let Some(problem) = self.shell.problem.take() {
                bail!(problem);
            }
            self.driver.turn(&mut self.shell);
        }
        Ok(())
    }

    pub(super) fn store(&self) -> &Store {
        self.shell.store.as_ref().expect("until it is stopped")
    }

    fn submit(&mut self, slice: u32, op: StoreOp) {
        let request = StoreRequest {
            id: 0,
            slice: Nsid(slice),
            association: 0,
            op,
        };
        let store = self.shell.store.as_mut().expect("until it is stopped");
        store.submit(&mut self.driver, request, &mut self.shell.events);
        self.shell.settle();
    }

    /// Asks for one thing and waits for the answer.
    pub(super) fn ask(&mut self, slice: u32, op: StoreOp) -> Result<StoreReply> {
        self.submit(slice, op);
        self.turn_until(|shell| !shell.replies.is_empty())?;
        self.shell.replies.pop().context("just seen")
    }

    /// A slice of so many blocks that anybody may use.
    pub(super) fn create(&mut self, slice: u32, size_blocks: u64) -> Result<()> {
        let spec = SliceSpec {
            nsid: Nsid(slice),
            volume: VolumeId([0xbe; 16]),
            size_blocks,
            shape: Shape {
                shard_blocks: 16_384,
                stride: 1,
                replicas: 1,
                layout: Layout::Ring,
            },
            position: 0,
            open_access: true,
            parent: None,
        };
        let op = StoreOp::CreateSlice {
            spec,
            incomplete: false,
        };
        self.ask(slice, op).map(|_| ())
    }

    /// Ends the head and begins the next one; nothing is in flight.
    pub(super) fn snapshot(&mut self, slice: u32, head: u32) -> Result<()> {
        self.ask(slice, StoreOp::BeginGeneration(Generation(head)))?;
        self.ask(slice, StoreOp::CompleteGeneration(Generation(head - 1)))?;
        Ok(())
    }

    /// Deletes a snapshot, and waits until its space has come back.
    pub(super) fn drop_snapshot(&mut self, slice: u32, generation: u32) -> Result<()> {
        self.ask(slice, StoreOp::DropGeneration(Generation(generation)))?;
        for _ in 0..MERGE_TURNS_MAX {
            // Something to turn for; a merge may wait for the flush as well.
            self.write(slice, std::iter::repeat_n(0, 100), 1)?;
            if self.store().usage().returning_bytes == 0 && self.reclaimable(slice)? == 0 {
                return Ok(());
            }
        }
        bail!("the space of generation {generation} does not come back")
    }

    /// Bytes that deleted snapshots will give back.
    fn reclaimable(&mut self, slice: u32) -> Result<u64> {
        let (mut bytes, mut next) = (0, Some(0));
        while let Some(from) = next {
            let reply = self.ask(slice, StoreOp::ReadSpace { from })?;
            let StoreReply::Space(space) = reply else {
                bail!("not the answer: {reply:?}")
            };
            bytes += space.reclaimable_bytes;
            next = space.next;
        }
        Ok(bytes)
    }

    /// Writes blocks of those numbers, so long each, and flushes.
    pub(super) fn write(
        &mut self,
        slice: u32,
        places: impl Iterator<Item = u64>,
        blocks: u32,
    ) -> Result<()> {
        let (mut places, mut in_flight) = (places.peekable(), 0);
        while places.peek().is_some() || in_flight > 0 {
            while in_flight < FILL_DEPTH
                && let Some(place) = places.next()
            {
                let arena = self.driver.arena();
                let buf = arena
                    .take(blocks * 4096)
                    .context("the arena is too small")?;
                let op = StoreOp::Write {
                    range: range(place, blocks)?,
                    data: buf.freeze(),
                    fua: false,
                    generation: Generation(0),
                };
                self.submit(slice, op);
                in_flight += 1;
            }
            self.turn_until(|shell| !shell.replies.is_empty())?;
            in_flight -= u32::try_from(self.shell.replies.drain(..).count())?;
        }
        self.ask(slice, StoreOp::Flush).map(|_| ())
    }

    /// Reads or overwrites single blocks for that long, so many at once; how many per second.
    pub(super) fn iops(
        &mut self,
        slice: u32,
        (access, depth): (Access, u32),
        time: Duration,
        mut place: impl FnMut() -> u64,
    ) -> Result<f64> {
        let began = Instant::now();
        let (mut done, mut in_flight) = (0u64, 0);
        loop {
            while in_flight < depth && began.elapsed() < time {
                let buf = self.driver.arena().take(4096);
                let buf = buf.context("the arena is too small")?;
                let (range, generation) = (range(place(), 1)?, Generation(0));
                let op = match access {
                    Access::Read => StoreOp::Read {
                        range,
                        generation,
                        into: buf,
                    },
                    Access::Overwrite => StoreOp::Write {
                        range,
                        data: buf.freeze(),
                        fua: false,
                        generation,
                    },
                };
                self.submit(slice, op);
                in_flight += 1;
            }
            if in_flight == 0 {
                break;
            }
            self.turn_until(|shell| !shell.replies.is_empty())?;
            let answered = self.shell.replies.drain(..).count();
            in_flight -= u32::try_from(answered)?;
            done += answered as u64;
        }
        Ok(crate::outcome::float(done) / began.elapsed().as_secs_f64())
    }

    /// Stops cleanly.
    pub(super) fn stop(mut self) -> Result<()> {
        let store = self.shell.store.as_mut().expect("until it is stopped");
        store.stop(&mut self.driver, &mut self.shell.events);
        self.turn_until(|shell| shell.stopped)?;
        self.driver.run(&mut self.shell);
        Ok(())
    }
}

fn range(lba: u64, blocks: u32) -> Result<BlockRange> {
    BlockRange::new(Lba(lba), Blocks(blocks)).ok_or_else(|| anyhow!("block {lba} is too far"))
}

impl Shell {
    fn settle(&mut self) {
        for event in self.events.drain(..) {
            match event {
                StoreEvent::Opened(_) => self.opened = true,
                StoreEvent::Reply { result, .. } => match result {
                    Ok(reply) => self.replies.push(reply),
                    Err(fault) => self.problem = Some(fault.to_string()),
                },
                StoreEvent::OpenFailed(fault) | StoreEvent::Poisoned(fault) => {
                    self.problem = Some(fault.to_string());
                }
                StoreEvent::Rotten { blocks } => {
                    self.problem = blocks.first().map(ToString::to_string)
                }
                StoreEvent::Stopped => self.stopped = true,
            }
        }
    }
}

impl App for Shell {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        if let Some(store) = &mut self.store {
            store.on_completion(io, completion, &mut self.events);
        }
        self.settle();
    }

    fn on_turn_end(&mut self, _io: &mut dyn Driver) {}

    fn is_finished(&self) -> bool {
        self.stopped
    }
}

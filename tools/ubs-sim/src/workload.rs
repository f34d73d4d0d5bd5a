//! What hosts do with the volume, and what the oracle says to it.

use crate::faults::Prey;
use crate::metad::VOLUME;
use crate::plan::index;
use crate::rare::Rare;
use crate::run::runs_of;
use crate::sim::{Party, Sim, Task};
use crate::stamp;
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, EXTENT_BLOCKS, Lba};
use std::ops::Range;
use volume::{HostBuffer, HostFault, HostOp, HostRequest};

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write { fua: bool },
    Zero { fua: bool },
    Discard,
    Flush,
}

/// A request without an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) kind: Kind,
    /// Blocks `[start, end)`.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The oracle's moment of its issue.
    issued: u64,
    /// The attachment that issued it.
    era: u32,
    /// Of zeroes: the space stays.
    no_unmap: bool,
}

/// Requests of one burst.
const BURST: (u64, u64) = (10, 120);
/// How often it looks whether it may go on.
const QUIET_NS: u64 = 50_000_000;

impl Sim {
    pub(crate) fn work_soon(&mut self, host: usize) {
        let life = self.hosts[host].life;
        self.schedule(0, Task::Work(Party::Host(host), life));
    }

    /// Fills the queue, and comes back later.
    pub(crate) fn on_work(&mut self, host: usize) {
        let it = &self.hosts[host];
        let Some(era) = it.serving.filter(|_| !it.failed && !self.calm) else {
            return;
        };
        if it.burst_left == 0 {
            let burst = self.load.within(BURST.0, BURST.1);
            self.hosts[host].burst_left = u32::try_from(burst).expect("small");
        }
        if self.is_quiet() {
            let life = self.hosts[host].life;
            return self.schedule(QUIET_NS, Task::Work(Party::Host(host), life));
        }
        let room = self.plan.depth.saturating_sub(self.hosts[host].ops.len());
        let some = if room == 0 {
            0
        } else {
            1 + index(&mut self.load, room)
        };
        for _ in 0..some {
            if let Some(range) = self.hosts[host].to_read.pop() {
                self.start(host, era, Kind::Read, range);
            } else {
                self.issue(host, era);
            }
        }
        let it = &mut self.hosts[host];
        it.burst_left = it
            .burst_left
            .saturating_sub(u32::try_from(some).expect("small"));
        let pause = if it.burst_left == 0 {
            self.plan.pause_ns
        } else {
            self.plan.think_ns
        };
        let life = it.life;
        let pause = self.load.within(pause.0, pause.1);
        self.schedule(pause, Task::Work(Party::Host(host), life));
    }

    /// What a host that comes up reads, twice: which value holds is decided then, and stays.
    pub(crate) fn plan_reading(&mut self, host: usize) {
        let look = std::mem::take(&mut self.scripts.look_at_all) && self.plan.mix.read > 0;
        if self.plan.reads_first || look {
            let runs = runs_of(&self.oracle.touched());
            self.hosts[host].to_read = [runs.clone(), runs].concat();
        }
    }

    fn issue(&mut self, host: usize, era: u32) {
        let kind = self.draw_kind();
        let (start, end) = match kind {
            Kind::Flush => (0, 0),
            Kind::Read | Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard => self.place(kind),
        };
        self.start(host, era, kind, (start, end));
    }

    fn draw_kind(&mut self) -> Kind {
        let mix = self.plan.mix;
        let kinds = [
            (mix.read, Kind::Read),
            (mix.write, Kind::Write { fua: false }),
            (mix.write_fua, Kind::Write { fua: true }),
            (mix.zero, Kind::Zero { fua: false }),
            (mix.flush, Kind::Flush),
        ];
        let total = kinds.iter().map(|(share, _)| share).sum();
        let mut luck = self.load.below(total);
        for (share, kind) in kinds {
            if luck < share {
                let fua = kind == Kind::Zero { fua: false } && self.load.chance(1, 6);
                return if fua { Kind::Zero { fua } } else { kind };
            }
            luck -= share;
        }
        unreachable!("luck is below the sum of the shares")
    }

    fn place(&mut self, kind: Kind) -> (u64, u64) {
        let size = self.plan.size_blocks();
        let spot = self.plan.hot[index(&mut self.load, self.plan.hot.len())];
        let start = (spot + self.load.below(self.plan.spread_blocks)).min(size - 1);
        let most = [1, 2, 4, 8, 32][index(&mut self.load, self.plan.sizes)];
        let mut blocks = self.load.within(1, most);
        let mut start = start;
        if matches!(kind, Kind::Zero { .. }) && self.load.chance(1, 3) {
            // Whole extents are given back.
            let extent = u64::from(EXTENT_BLOCKS);
            (start, blocks) = (start / extent * extent, extent * self.load.within(1, 3));
        }
        (start, (start + blocks).min(size))
    }

    /// Issues one request. False: it was not taken.
    pub(crate) fn start(
        &mut self,
        host: usize,
        era: u32,
        kind: Kind,
        (start, end): (u64, u64),
    ) -> bool {
        let id = self.next_op;
        self.next_op += 1;
        let no_unmap = self.load.chance(1, 3);
        let discard = self.load.chance(1, 2);
        let kind = if discard && kind == (Kind::Zero { fua: false }) {
            Kind::Discard
        } else {
            kind
        };
        let op = InFlight {
            kind,
            start,
            end,
            issued: self.oracle.stamp(),
            era,
            no_unmap,
        };
        // The arena or the volume has no room, or the volume has just gone.
        if !self.submit(host, id, &op) {
            return false;
        }
        let current = era == self.oracle.era();
        let value = match kind {
            Kind::Write { .. } => Some(id),
            Kind::Zero { .. } | Kind::Discard => Some(0),
            Kind::Read | Kind::Flush => None,
        };
        if let (Some(value), true) = (value, current) {
            self.note_issued((id, value), (start, end), op.issued);
        }
        self.hosts[host].ops.insert(id, op);
        self.ops_count += 1;
        self.say(format_args!("host {host}: #{id} {kind:?} [{start}, {end})"));
        if value.is_some() && current {
            self.wrote_at_ns = self.world.now_ns();
            self.pass(Prey::Write);
        }
        true
    }

    /// Hands a request to clientd. False: it was not taken.
    pub(crate) fn submit(&mut self, host: usize, id: u64, op: &InFlight) -> bool {
        let (start, end) = (op.start, op.end);
        let blocks = u32::try_from(end - start).expect("small");
        let range = BlockRange::new(Lba(start), Blocks(blocks.max(1))).expect("in the volume");
        let taken = self.on_host(host, |io, volumes| {
            let what = match op.kind {
                Kind::Flush => HostOp::Flush,
                Kind::Read => HostOp::Read {
                    range,
                    into: io.arena().take(blocks * BLOCK_BYTES)?,
                },
                Kind::Write { fua } => {
                    let mut data = io.arena().take(blocks * BLOCK_BYTES)?;
                    stamp::fill(data.bytes_mut(), start, id);
                    HostOp::Write {
                        range,
                        data: data.freeze(),
                        fua,
                    }
                }
                Kind::Discard => HostOp::Discard { range },
                Kind::Zero { fua } => HostOp::Zero {
                    range,
                    no_unmap: op.no_unmap,
                    fua,
                },
            };
            let volume = VOLUME;
            volumes
                .submit(
                    io,
                    HostRequest {
                        volume,
                        id,
                        op: what,
                    },
                )
                .ok()
        });
        taken == Some(Some(()))
    }

    /// A write of the current era, or zeroes (value 0), begin.
    fn note_issued(&mut self, (id, value): (u64, u64), (start, end): (u64, u64), issued: u64) {
        for block in self.blocks_to_note(start..end) {
            self.oracle.write_issued(block, value, issued);
        }
        if !self.calm {
            let data = (value != 0).then_some(value);
            self.log.issued(id, data, (start, end), issued);
        }
    }

    /// Blocks that were never written are zero before and after the end, when all is discarded.
    fn blocks_to_note(&self, range: Range<u64>) -> Vec<u64> {
        let noted = |block: &u64| !self.calm || self.log.was_written(*block);
        range.filter(noted).collect()
    }

    /// A request ended.
    pub(crate) fn on_done(
        &mut self,
        host: usize,
        id: u64,
        result: Result<(), HostFault>,
        buffer: &HostBuffer,
    ) {
        let Some(op) = self.hosts[host].ops.remove(&id) else {
            return self.find(format!("host {host}: #{id} ended twice"));
        };
        match &result {
            Ok(()) => self.say(format_args!("host {host}: #{id} done")),
            Err(fault) => self.say(format_args!("host {host}: #{id} {fault}")),
        }
        if result == Err(HostFault::Medium) {
            self.rare.note(Rare::MediumFault);
        }
        if result == Err(HostFault::Range) {
            return self.find(format!(
                "host {host}: #{id} {op:?} is refused as out of range"
            ));
        }
        if op.era == self.oracle.era() {
            self.on_done_current(host, id, &op, result, buffer);
        } else {
            self.on_done_superseded(host, id, &op, result, buffer);
        }
    }

    fn on_done_current(
        &mut self,
        host: usize,
        id: u64,
        op: &InFlight,
        result: Result<(), HostFault>,
        buffer: &HostBuffer,
    ) {
        let now = self.oracle.stamp();
        let writes = matches!(
            op.kind,
            Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard
        );
        if writes && self.began_superseded(op) {
            if result.is_ok() {
                let kind = op.kind;
                self.find(format!(
                    "host {host} is superseded by a storaged, and its #{id} {kind:?} is acknowledged"
                ));
            }
            self.rare.note(Rare::ZombieRefusedByUpkeep);
        }
        match (op.kind, result) {
            (Kind::Read, Ok(())) => self.check_read(host, id, op, buffer),
            (Kind::Flush, Ok(())) => self.oracle.flush_completed(op.issued),
            (Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard, Ok(())) => {
                self.log.completed(id, now);
                let fua = matches!(
                    op.kind,
                    Kind::Write { fua: true } | Kind::Zero { fua: true }
                );
                for block in self.blocks_to_note(op.start..op.end) {
                    self.oracle.write_completed(block, op.issued, now, fua);
                }
            }
            (Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard, Err(_)) => {
                for block in self.blocks_to_note(op.start..op.end) {
                    self.oracle.write_failed(block, op.issued, now);
                }
            }
            (Kind::Read | Kind::Flush, Err(_)) => {}
        }
    }

    /// The client that issued it is superseded: it can neither change data nor complete a flush.
    fn on_done_superseded(
        &mut self,
        host: usize,
        id: u64,
        op: &InFlight,
        result: Result<(), HostFault>,
        buffer: &HostBuffer,
    ) {
        let late = self.began_superseded(op);
        match (op.kind, result) {
            (Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard, Ok(())) if late => {
                self.find(format!(
                    "host {host} is superseded, and its #{id} {:?} is acknowledged",
                    op.kind
                ));
            }
            // Fine if everything it covers was durable, which the new era then shows.
            (Kind::Flush, Ok(())) if op.era + 1 == self.oracle.era() => {
                if let Err(illegal) = self.oracle.late_flush_completed(op.issued) {
                    self.find(format!(
                        "flush #{id} of a superseded client was durable, yet {illegal}"
                    ));
                }
            }
            (Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard | Kind::Flush, Err(_)) => {
                if late {
                    self.rare.note(Rare::ZombieRefused);
                }
            }
            // It may be old, and it may not be nobody's.
            (Kind::Read, Ok(())) => self.check_stamps(host, id, op, buffer),
            (Kind::Read, Err(_)) => {}
            (Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard | Kind::Flush, Ok(())) => {}
        }
    }

    /// Whether the request began when its client was superseded already.
    fn began_superseded(&self, op: &InFlight) -> bool {
        let next = self.eras.get(&(op.era + 1));
        let moments = next.into_iter().chain(self.upkept.superseded.get(&op.era));
        moments.into_iter().any(|began| op.issued > *began)
    }

    fn check_stamps(&mut self, host: usize, id: u64, op: &InFlight, buffer: &HostBuffer) {
        let HostBuffer::Read(data) = buffer else {
            return self.find(format!("host {host}: #{id} came back without its buffer"));
        };
        for (block, bytes) in (op.start..op.end).zip(data.bytes().chunks_exact(4096)) {
            if let Err(broken) = stamp::sequence_of(bytes, block) {
                return self.find(format!("host {host}: #{id} block {block} is {broken:?}"));
            }
        }
    }

    fn check_read(&mut self, host: usize, id: u64, op: &InFlight, buffer: &HostBuffer) {
        let HostBuffer::Read(data) = buffer else {
            return self.find(format!("host {host}: #{id} came back without its buffer"));
        };
        for (block, bytes) in (op.start..op.end).zip(data.bytes().chunks_exact(4096)) {
            let value = match stamp::sequence_of(bytes, block) {
                Ok(value) => value,
                Err(broken) => {
                    return self.find(format!("host {host}: #{id} block {block} is {broken:?}"));
                }
            };
            if let Err(illegal) = self.oracle.read(block, value, op.issued) {
                return self.find(format!("host {host}: read #{id}: {illegal}"));
            }
        }
    }
}

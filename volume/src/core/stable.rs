//! Cleaning marks (protocol §8): what is everywhere and durable needs no mark.
//!
//! Armed by a write, twice in a row at most without another one: an idle volume has no timer. Hot
//! regions keep their marks, at most [`MARKS_MAX`] of them: beyond that the coldest go, sooner.

use super::event::{Command, Effect, OpId, Timer};
use super::flush::FlushFor;
use super::members::{Members, Position};
use super::state::{Outbox, Phase, Purpose, Replicator};
use crate::limits::{MARKS_MAX, STABLE_PAUSE_MS};
use shardmap::canary::{Mechanism, stands};
use shardmap::dirty::RegionSet;
use shardmap::units::{Moment, WriteTick};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunStage {
    Ticking,
    /// Waits for the writes that were in flight when the ticks were taken.
    Draining,
    Flushing,
    Cleaning,
}

#[derive(Debug)]
struct Run {
    /// Answers of an earlier pass do not count.
    pass: u64,
    stage: RunStage,
    awaiting: Members,
    ticks: Vec<(Position, WriteTick)>,
    /// Writes that started up to this one must have ended.
    barrier: u64,
}

#[derive(Debug, Default)]
pub(super) struct Stable {
    due: Option<Moment>,
    rounds_left: u8,
    passes: u64,
    run: Option<Run>,
    /// When the last pass began.
    began: Moment,
    /// Regions written since the last pass began: what may be marked besides `marks_left`.
    written: RegionSet,
    /// Marks that the last pass left on the store that has most.
    marks_left: u64,
}

/// A region that was written since the pass before keeps its mark, so that a hot one costs no
/// metadata IO: after the last write, this many passes clean everything.
const ROUNDS: u8 = 2;
const HOT_TICKS: u32 = 1;

impl Stable {
    /// Whether the end of that write lets a pass go on.
    pub(super) fn waits_for(&self, start_no: u64) -> bool {
        self.run
            .as_ref()
            .is_some_and(|r| r.stage == RunStage::Draining && start_no <= r.barrier)
    }

    pub(super) fn is_running(&self) -> bool {
        self.run.is_some()
    }
}

impl Replicator {
    pub(super) fn note_write(&mut self, id: OpId, out: &mut Outbox) {
        if self.config.stable_period_ms == 0 {
            return;
        }
        let regions = self.ops[&id].range.regions();
        regions.for_each(|region| {
            self.stable.written.insert(region);
        });
        self.note_marks(out);
        let marks = self.stable.written.len_regions() + self.stable.marks_left;
        if marks > u64::from(MARKS_MAX) && !self.stable.is_running() {
            let soonest = self.stable.began.plus_ms(STABLE_PAUSE_MS);
            self.arm_stable(soonest.max(self.now), out);
        }
    }

    /// There may be marks to clean.
    pub(super) fn note_marks(&mut self, out: &mut Outbox) {
        if self.config.stable_period_ms > 0 {
            self.stable.rounds_left = ROUNDS;
            self.arm_stable(self.now.plus_ms(self.config.stable_period_ms), out);
        }
    }

    fn arm_stable(&mut self, at: Moment, out: &mut Outbox) {
        if self.stable.due.is_none_or(|due| at < due) {
            self.stable.due = Some(at);
            let timer = Timer::Stable;
            out.push(Effect::Arm { timer, at });
        }
    }

    pub(super) fn on_stable_timer(&mut self, out: &mut Outbox) {
        self.stable.due = None;
        if self.phase != Phase::Serving || self.stable.rounds_left == 0 {
            return;
        }
        self.stable.rounds_left -= 1;
        if !self.stable.is_running() && self.may_clean() {
            self.begin_stable(out);
        }
        if self.stable.rounds_left > 0 {
            self.arm_stable(self.now.plus_ms(self.config.stable_period_ms), out);
        }
    }

    /// Who must be in sync when marks are cleaned: everybody.
    fn cleaners(&self) -> Members {
        if stands(Mechanism::StickyMarks) {
            self.all
        } else {
            self.isr
        }
    }

    /// Only with everybody in sync, open and trusted, and nothing under reconstruction: a mark
    /// that is still needed by a store that is out is never cleaned.
    pub(super) fn may_clean(&self) -> bool {
        let who = self.cleaners();
        self.isr.covers(who)
            && self.pending.is_none()
            && self.resilver.is_none()
            && self.reconcile.regions.is_empty()
            && self.is_stamped()
            && self.usable(who) == who
            && who.iter().all(|at| self.leg(at).condemned.is_none())
    }

    /// Model: `Stable`, with the tick taken first.
    pub(super) fn begin_stable(&mut self, out: &mut Outbox) {
        assert!(self.may_clean() && !self.stable.is_running());
        self.stable.passes += 1;
        self.stable.began = self.now;
        self.stable.written.clear();
        self.stable.marks_left = 0;
        let (awaiting, pass) = (self.cleaners(), self.stable.passes);
        let stage = RunStage::Ticking;
        self.stable.run = Some(Run {
            pass,
            stage,
            awaiting,
            ticks: Vec::new(),
            barrier: 0,
        });
        for at in awaiting.iter() {
            self.send(at, Purpose::Tick(pass), Command::Tick, out);
        }
    }

    pub(super) fn on_tick(&mut self, at: Position, pass: u64, tick: WriteTick) {
        let barrier = self.next_start;
        let asked = |r: &&mut Run| r.pass == pass && r.stage == RunStage::Ticking;
        let Some(run) = self.stable.run.as_mut().filter(asked) else {
            return;
        };
        if run.awaiting.has(at) {
            run.awaiting.remove(at);
            run.ticks.push((at, tick));
        }
        if run.awaiting.is_empty() {
            run.stage = RunStage::Draining;
            run.barrier = barrier;
            self.changed = true;
        }
    }

    pub(super) fn stable_forward(&mut self, out: &mut Outbox) {
        let Some(run) = self.stable.run.as_mut() else {
            return;
        };
        if run.stage != RunStage::Draining {
            return;
        }
        let barrier = run.barrier;
        let early =
            |op: &super::state::HostOp| !op.is_read() && op.start_no > 0 && op.start_no <= barrier;
        if !self.ops.values().any(early) {
            run.stage = RunStage::Flushing;
            self.start_flush(FlushFor::Stable, self.cleaners(), false, out);
        }
    }

    pub(super) fn on_stable_flushed(&mut self, out: &mut Outbox) {
        let Some(run) = self.stable.run.as_mut() else {
            return;
        };
        assert_eq!(run.stage, RunStage::Flushing);
        run.stage = RunStage::Cleaning;
        run.awaiting = run.ticks.iter().map(|(at, _)| *at).collect();
        let (ticks, pass) = (run.ticks.clone(), run.pass);
        let (idle_ticks, keep_max) = if self.phase == Phase::Detaching {
            (0, 0)
        } else {
            (HOT_TICKS, MARKS_MAX)
        };
        for (at, tick) in ticks {
            let what = Command::Stable {
                tick,
                idle_ticks,
                keep_max,
            };
            self.send(at, Purpose::Stable(pass), what, out);
        }
    }

    pub(super) fn on_stable_done(
        &mut self,
        at: Position,
        pass: u64,
        marks_left: u64,
        out: &mut Outbox,
    ) {
        let asked = |r: &&mut Run| r.pass == pass && r.stage == RunStage::Cleaning;
        let Some(run) = self.stable.run.as_mut().filter(asked) else {
            return;
        };
        run.awaiting.remove(at);
        self.stable.marks_left = self.stable.marks_left.max(marks_left);
        if run.awaiting.is_empty() {
            self.stable.run = None;
            self.changed = true;
            self.trace_stable(out);
        }
    }

    /// The pass is over without result; marks stay.
    pub(super) fn abort_stable(&mut self, out: &mut Outbox) {
        if self.stable.run.take().is_none() {
            return;
        }
        self.cancel_flush(FlushFor::Stable);
        self.changed = true;
        if self.phase == Phase::Serving {
            self.note_marks(out);
        }
    }
}

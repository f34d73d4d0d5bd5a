//! Cleaning marks (protocol §8): what is everywhere and durable needs no mark.
//!
//! Armed by a write, twice in a row at most without another one: an idle volume has no timer.

use super::event::{Command, Effect, Timer};
use super::flush::FlushFor;
use super::members::{Members, Position};
use super::state::{Outbox, Phase, Purpose, Replicator};
use shardmap::units::WriteTick;

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
    armed: bool,
    rounds_left: u8,
    passes: u64,
    run: Option<Run>,
}

/// Regions are left alone while hot; after the last write this many passes find them cold.
const ROUNDS: u8 = 2;

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
    pub(super) fn note_write(&mut self, out: &mut Outbox) {
        if self.config.stable_period_ms == 0 {
            return;
        }
        self.stable.rounds_left = ROUNDS;
        self.arm_stable(out);
    }

    fn arm_stable(&mut self, out: &mut Outbox) {
        if !self.stable.armed {
            self.stable.armed = true;
            let at = self.now.plus_ms(self.config.stable_period_ms);
            out.push(Effect::Arm {
                timer: Timer::Stable,
                at,
            });
        }
    }

    pub(super) fn on_stable_timer(&mut self, out: &mut Outbox) {
        self.stable.armed = false;
        if self.phase != Phase::Serving || self.stable.rounds_left == 0 {
            return;
        }
        self.stable.rounds_left -= 1;
        if !self.stable.is_running() && self.may_clean() {
            self.begin_stable(out);
        }
        if self.stable.rounds_left > 0 {
            self.arm_stable(out);
        }
    }

    /// Only with everybody in sync, open and trusted, and nothing under reconstruction: a mark
    /// that is still needed by a store that is out is never cleaned.
    pub(super) fn may_clean(&self) -> bool {
        self.isr == self.all
            && self.pending.is_none()
            && self.resilver.is_none()
            && self.reconcile.regions.is_empty()
            && self.is_stamped()
            && self.usable(self.all) == self.all
            && self.all.iter().all(|at| self.leg(at).condemned.is_none())
    }

    /// Model: `Stable`, with the tick taken first.
    pub(super) fn begin_stable(&mut self, out: &mut Outbox) {
        assert!(self.may_clean() && !self.stable.is_running());
        self.stable.passes += 1;
        let (awaiting, pass) = (self.all, self.stable.passes);
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
            self.start_flush(FlushFor::Stable, self.all, false, out);
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
        for (at, tick) in ticks {
            self.send(at, Purpose::Stable(pass), Command::Stable(tick), out);
        }
    }

    pub(super) fn on_stable_done(&mut self, at: Position, pass: u64, out: &mut Outbox) {
        let asked = |r: &&mut Run| r.pass == pass && r.stage == RunStage::Cleaning;
        let Some(run) = self.stable.run.as_mut().filter(asked) else {
            return;
        };
        run.awaiting.remove(at);
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
        if self.config.stable_period_ms > 0 && self.phase == Phase::Serving {
            self.stable.rounds_left = ROUNDS;
            self.arm_stable(out);
        }
    }
}

//! Paths and sessions: opening, losing, opening again.

use super::event::{Command, Effect, FailReason, Fault, SliceFacts, Timer, TraceEvent};
use super::leg::{Condemned, Session};
use super::members::{Members, Position};
use super::state::{HostOp, Outbox, Phase, Purpose, Replicator, Stage};
use shardmap::canary::{Mechanism, stands};
use shardmap::generations::VolumeGenerations;
use shardmap::units::Incarnation;

impl Replicator {
    pub(super) fn on_path_up(&mut self, at: Position) {
        let leg = self.leg_mut(at);
        assert!(
            !leg.path && leg.outstanding == 0,
            "position {at}: two paths"
        );
        leg.path = true;
        self.changed = true;
    }

    /// Everything outstanding on the path has ended without an answer.
    pub(super) fn on_path_lost(&mut self, at: Position, out: &mut Outbox) {
        if !self.leg(at).path {
            return;
        }
        self.end_session(at, out);
        let ended: Vec<_> = self
            .commands
            .iter()
            .filter(|(_, c)| c.to == at)
            .map(|(id, c)| (*id, *c))
            .collect();
        for (id, command) in ended {
            self.commands.remove(&id);
            self.on_lost_command(command, out);
        }
        let leg = self.leg_mut(at);
        leg.path = false;
        leg.outstanding = 0;
        self.changed = true;
    }

    fn on_lost_command(&mut self, command: super::state::Outstanding, out: &mut Outbox) {
        if let Purpose::HostRead { op, piece } = command.purpose {
            self.on_read_lost(op, piece, command.to, out);
        } else if let Purpose::CopyRead(copy) = command.purpose {
            self.abandon_copy(copy, out);
        }
    }

    /// Opens every slice whose path is up and whose last session has drained: a command sent under
    /// the old session must not be admitted under the new one.
    pub(super) fn open_closed_sessions(&mut self, out: &mut Outbox) {
        if matches!(self.phase, Phase::Failed) || self.detach.is_closing() {
            return;
        }
        for at in self.all.iter() {
            let leg = self.leg(at);
            if !leg.path || leg.session != Session::Closed || leg.outstanding > 0 {
                continue;
            }
            if leg.retry_at > self.now {
                let retry = leg.retry_at;
                out.push(Effect::Arm {
                    timer: Timer::Reopen(at),
                    at: retry,
                });
                continue;
            }
            let leg = self.leg_mut(at);
            leg.session = Session::Opening;
            leg.session_no += 1;
            let epoch = self.epoch;
            self.send(at, Purpose::Open, Command::OpenSlice { epoch }, out);
        }
    }

    pub(super) fn on_open_refused(&mut self, at: Position, fault: Fault, out: &mut Outbox) {
        self.leg_mut(at).session = Session::Closed;
        self.changed = true;
        match fault {
            Fault::Fenced => return self.fail(FailReason::Fenced, out),
            Fault::Refused | Fault::Incomplete | Fault::Medium | Fault::NoSpace => {
                self.leg_mut(at).condemned.get_or_insert(Condemned::Refused);
            }
            Fault::Transient | Fault::NotOpen => {}
        }
        self.retry_later(at);
    }

    /// Counts a failure and sets the moment of the next attempt.
    pub(super) fn retry_later(&mut self, at: Position) {
        let failures = self.leg(at).failures;
        let pause = self.backoff_ms(failures);
        let retry_at = self.now.plus_ms(pause);
        let leg = self.leg_mut(at);
        leg.failures += 1;
        leg.retry_at = leg.retry_at.max(retry_at);
    }

    pub(super) fn on_opened(&mut self, at: Position, incarnation: Incarnation, out: &mut Outbox) {
        // Before the stores have said who is in sync, anybody may turn out to be.
        let in_sync = self.ack_set().has(at) || !self.verified;
        let leg = &mut self.legs[at.index()];
        assert_eq!(leg.session, Session::Opening);
        let was = leg.incarnation.replace(incarnation);
        if was != Some(incarnation) {
            let lost = leg.unflushed.take_lost();
            let lost_some = leg.inherited || !lost.is_empty();
            if in_sync && lost_some && stands(Mechanism::Incarnation) {
                leg.suspect = true;
                leg.condemned = Some(Condemned::Diverged);
                out.push(Effect::Trace(TraceEvent::Suspect {
                    store: leg.store,
                    was: was.unwrap_or_default(),
                    now: incarnation,
                }));
            }
            if !in_sync || stands(Mechanism::Incarnation) {
                leg.dirty.merge(&lost);
            }
        }
        let leg = self.leg_mut(at);
        leg.session = Session::Learning;
        self.send(at, Purpose::State, Command::SliceState, out);
    }

    pub(super) fn on_facts(&mut self, at: Position, facts: SliceFacts, out: &mut Outbox) {
        let in_sync = self.ack_set().has(at);
        let leg = &mut self.legs[at.index()];
        assert_eq!(leg.session, Session::Learning);
        if leg.incarnation != Some(facts.incarnation) {
            // The slice was opened in one life and described in another: ask again.
            return self.end_session(at, out);
        }
        leg.facts = facts;
        if in_sync && facts.incomplete && stands(Mechanism::Incomplete) {
            leg.suspect = true;
            leg.condemned = Some(Condemned::Diverged);
        }
        leg.generations = VolumeGenerations {
            head: facts.head,
            ..VolumeGenerations::default()
        };
        leg.marks.clear();
        if facts.snapshot_count > 0 {
            leg.session = Session::Generations;
            return self.send(at, Purpose::Generations, Command::ReadGenerations, out);
        }
        self.learn_marks(at, out);
    }

    pub(super) fn on_slice_generations(
        &mut self,
        at: Position,
        all: VolumeGenerations,
        out: &mut Outbox,
    ) {
        let leg = self.leg_mut(at);
        assert_eq!(leg.session, Session::Generations);
        leg.generations = all;
        self.learn_marks(at, out);
    }

    /// While attaching the marks of those that may be members are wanted.
    fn learn_marks(&mut self, at: Position, out: &mut Outbox) {
        let member = self.ack_set().has(at) || !self.verified;
        let wanted = self.phase == Phase::Attaching && member;
        let leg = self.leg_mut(at);
        if wanted && leg.facts.mark_count > 0 {
            leg.session = Session::Marks;
            let from = shardmap::units::RegionIndex(0);
            return self.send(at, Purpose::AttachMarks, Command::ReadMarks { from }, out);
        }
        self.session_ready(at, out);
    }

    pub(super) fn session_ready(&mut self, at: Position, out: &mut Outbox) {
        let (seq, isr) = (self.seq, self.isr);
        let leg = self.leg_mut(at);
        leg.session = Session::Open;
        if leg.condemned != Some(Condemned::Diverged) {
            leg.condemned = None;
        }
        let (facts, store) = (leg.facts, leg.store);
        if facts.stamp_seq == seq && facts.stamp_isr == isr {
            self.stamped.insert(at);
        } else {
            self.stamped.remove(at);
        }
        if self.is_succeeded_at(at) {
            return self.fail(FailReason::Fenced, out);
        }
        self.doubt_generations(at);
        self.trace(
            TraceEvent::Open {
                store,
                incarnation: facts.incarnation,
            },
            out,
        );
        self.changed = true;
    }

    /// The session is over, whatever ended it. Nothing it answered counts for what is still going
    /// on; a member gets its grace; a target is dropped.
    pub(super) fn end_session(&mut self, at: Position, out: &mut Outbox) {
        let leg = &mut self.legs[at.index()];
        if leg.session == Session::Closed {
            return;
        }
        let was_open = leg.session == Session::Open;
        leg.session = Session::Closed;
        (leg.heard, leg.asked) = (None, None);
        let store = leg.store;
        if was_open {
            self.trace(TraceEvent::ConnBreak { store }, out);
        }
        self.changed = true;
        if self.leg(at).failures > 0 {
            self.retry_later(at);
        }
        self.stamping.remove(at);
        self.forget_answers(at);
        self.restart_flushes(at);
        self.abort_stable(out);
        self.reconcile_session_lost(at, out);
        self.repair_session_lost(at, out);
        self.resilver_session_lost(at, out);
        self.catch_up_session_lost(at, out);
        self.generations.forget_asked(at);
        if self.ack_set().has(at) && self.phase != Phase::Attaching {
            let grace = self.now.plus_ms(self.config.degrade_grace_ms);
            out.push(Effect::Arm {
                timer: Timer::Grace(at),
                at: grace,
            });
        }
    }

    /// Acknowledgements count only on current sessions (protocol §4).
    fn forget_answers(&mut self, at: Position) {
        let running = |op: &&mut HostOp| !op.is_read() && op.stage == Stage::Running;
        for piece in self
            .ops
            .values_mut()
            .filter(running)
            .flat_map(|op| &mut op.pieces)
        {
            piece.sent.remove(at);
            piece.done.remove(at);
        }
    }

    pub(super) fn on_grace(&mut self, at: Position) {
        let in_sync = self.ack_set().has(at);
        let leg = self.leg_mut(at);
        if in_sync && leg.session != Session::Open {
            leg.condemned.get_or_insert(Condemned::Grace);
            self.changed = true;
        }
    }

    /// Fails the device once every in-sync copy of some shard has lost acknowledged writes.
    pub(super) fn fail_if_lost(&mut self, out: &mut Outbox) {
        if !matches!(self.phase, Phase::Serving | Phase::Detaching) {
            return;
        }
        let suspect: Members = self.isr.iter().filter(|p| self.leg(*p).suspect).collect();
        let lost = |homes: &Members| {
            let members = homes.and(self.isr);
            !members.is_empty() && suspect.covers(members)
        };
        if !suspect.is_empty() && self.copysets.iter().any(lost) {
            self.fail(FailReason::DataLost, out);
        }
    }
}

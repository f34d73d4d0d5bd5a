//! One match per kind of event, and what is tried again after a change.

use super::event::{Answer, CommandId, Event, Fault, Timer};
use super::leg::Session;
use super::members::Position;
use super::range_lock::Holder;
use super::state::{Outbox, Outstanding, Phase, Purpose, Replicator};

impl Replicator {
    pub(super) fn dispatch(&mut self, event: Event, out: &mut Outbox) {
        match event {
            Event::Start => self.on_start(out),
            Event::PathUp(at) => self.on_path_up(at),
            Event::PathLost(at) => self.on_path_lost(at, out),
            Event::Done { command, result } => self.on_done(command, result, out),
            Event::Host { op, what } => self.on_host(op, what, out),
            Event::Metad { request, verdict } => self.on_metad(request, verdict, out),
            Event::Timer(timer) => self.on_timer(timer, out),
            Event::Generations(generations) => self.on_generations(generations, out),
            Event::Grown { size_blocks } => self.on_grown(size_blocks),
            Event::Detach => self.on_detach(out),
            Event::Abandon => self.on_abandon(out),
        }
    }

    fn on_timer(&mut self, timer: Timer, out: &mut Outbox) {
        match timer {
            Timer::Attach => {
                self.attach_due = true;
                self.changed = true;
            }
            Timer::Grace(at) => self.on_grace(at),
            Timer::Reopen(_) | Timer::Resilver => self.changed = true,
            Timer::Metad => self.on_metad_timer(out),
            Timer::Stable => self.on_stable_timer(out),
            Timer::Slow => self.on_slow_timer(out),
            Timer::Snapshot => self.on_snapshot_timer(),
            Timer::Hold => self.on_hold_timer(out),
            Timer::View => unreachable!("armed by views only"),
        }
    }

    /// Everything that may have waited for a change tries to go on. Runs after rare events only:
    /// sessions, membership, the end of a piece of background work.
    pub(super) fn pump(&mut self, out: &mut Outbox) {
        if matches!(self.phase, Phase::New | Phase::Ended) {
            return;
        }
        self.open_closed_sessions(out);
        if self.phase == Phase::Failed {
            return;
        }
        self.fail_if_lost(out);
        self.propose(out);
        self.attach_forward(out);
        self.advance_all_ops(out);
        self.forward_flushes(out);
        self.send_stamps(out);
        self.release_acks(out);
        self.reconcile_forward(out);
        self.snapshot_forward(out);
        self.stable_forward(out);
        self.catch_up_forward(out);
        self.resilver_forward(out);
        self.repair_forward(out);
        self.remember(out);
        self.detach_forward(out);
    }

    pub(super) fn on_granted(&mut self, holder: Holder, out: &mut Outbox) {
        match holder {
            Holder::Host(op) => self.start_op(op, out),
            Holder::Copy(copy) => self.on_repair_locked(copy, out),
            Holder::Region(region) => self.on_region_locked(region, out),
        }
    }

    fn on_done(&mut self, id: CommandId, result: Result<Answer, Fault>, out: &mut Outbox) {
        let command = self
            .commands
            .remove(&id)
            .expect("an answer to a command we sent, once");
        let leg = self.leg_mut(command.to);
        assert!(
            leg.outstanding > 0,
            "position {}: answer without a command",
            command.to
        );
        leg.outstanding -= 1;
        if leg.outstanding == 0 && leg.session == Session::Closed {
            self.changed = true;
        }
        if !matches!(
            self.phase,
            Phase::Attaching | Phase::Serving | Phase::Detaching
        ) {
            return;
        }
        let leg = self.leg(command.to);
        let current = leg.session != Session::Closed && leg.session_no == command.session_no;
        if !current {
            self.on_stale_answer(command, out);
            return;
        }
        match (result, command.purpose) {
            (Err(fault), Purpose::Open) => self.on_open_refused(command.to, fault, out),
            (Err(Fault::Fenced | Fault::NotOpen | Fault::Transient), _) => {
                self.on_stale_answer(command, out);
                self.leg_mut(command.to).failures += 1;
                self.end_session(command.to, out);
            }
            (Err(fault), purpose) => self.on_fault(command, purpose, fault, out),
            (Ok(answer), purpose) => {
                let leg = self.leg_mut(command.to);
                leg.heard = leg.heard.max(Some(id));
                self.record_heard(&command, &answer, out);
                self.on_answer(command, purpose, answer, out);
            }
        }
    }

    /// An answer that does not count: its session is over. Only reads care, because their buffer
    /// is free again.
    fn on_stale_answer(&mut self, command: Outstanding, out: &mut Outbox) {
        match command.purpose {
            Purpose::HostRead { op, piece } => self.on_read_lost(op, piece, command.to, out),
            Purpose::CopyRead(copy) => self.abandon_copy(copy, out),
            Purpose::Open
            | Purpose::State
            | Purpose::Hear
            | Purpose::AttachMarks
            | Purpose::Close
            | Purpose::Stamp(_)
            | Purpose::HostWrite { .. }
            | Purpose::Flush
            | Purpose::CopyWrite(_)
            | Purpose::Hash(..)
            | Purpose::ResilverMarks
            | Purpose::ResilverPresence(_)
            | Purpose::ResilverAddMarks
            | Purpose::ResilverSeal(_)
            | Purpose::ResilverComplete
            | Purpose::Generations
            | Purpose::Begin(_)
            | Purpose::Seal(_)
            | Purpose::CatchUpMarks
            | Purpose::CatchUpBegin(_)
            | Purpose::CatchUpPresence(_)
            | Purpose::CatchUpSeal(_)
            | Purpose::Tick(_)
            | Purpose::Stable(_) => {}
        }
    }

    fn on_answer(
        &mut self,
        command: Outstanding,
        purpose: Purpose,
        answer: Answer,
        out: &mut Outbox,
    ) {
        let at = command.to;
        match (purpose, answer) {
            (Purpose::Open, Answer::Opened(incarnation)) => self.on_opened(at, incarnation, out),
            (Purpose::State, Answer::Facts(facts)) => self.on_facts(at, facts, out),
            (Purpose::Hear, Answer::Facts(facts)) => self.on_heard(at, facts, out),
            (Purpose::AttachMarks, Answer::Marks(marks, more)) => {
                self.on_attach_marks(at, &marks, more, out);
            }
            (Purpose::Generations, Answer::Generations(all)) => {
                self.on_slice_generations(at, all, out);
            }
            (Purpose::Begin(head), Answer::Done) => self.on_begun(at, head),
            (Purpose::Seal(snapshot), Answer::Done) => self.on_sealed(at, snapshot),
            (Purpose::CatchUpBegin(head), Answer::Done) => self.on_catch_up_begun(at, head, out),
            (Purpose::CatchUpSeal(snapshot), Answer::Done) => {
                self.on_catch_up_sealed(at, snapshot, out);
            }
            (Purpose::CatchUpMarks, Answer::Marks(marks, more)) => {
                self.on_catch_up_marks(at, &marks, more, out);
            }
            (Purpose::CatchUpPresence(from), Answer::Presence(blocks)) => {
                self.on_catch_up_presence(at, from, &blocks);
            }
            (Purpose::Stamp(seq), Answer::Done) => self.on_stamped(at, seq, out),
            (Purpose::HostRead { op, piece }, Answer::Done) => {
                self.note_read_time(at, command.sent_at);
                self.on_read_done(op, piece, at, out);
            }
            (Purpose::HostWrite { op, piece }, Answer::Done) => {
                self.on_write_done(op, piece, at, out);
            }
            (Purpose::Flush, Answer::Done) => self.on_flushed(at, out),
            (Purpose::CopyRead(copy), Answer::Copied { all_zero }) => {
                self.on_copy_read(copy, all_zero, out);
            }
            (Purpose::CopyWrite(copy), Answer::Done) => self.on_copy_written(copy, at, out),
            (Purpose::Hash(region, generation), Answer::Hashes(hashes)) => {
                self.on_hashes((region, generation), at, hashes);
            }
            (Purpose::ResilverMarks, Answer::Marks(marks, more)) => {
                self.on_resilver_marks(at, &marks, more, out);
            }
            (Purpose::ResilverPresence(from), Answer::Presence(blocks)) => {
                self.on_presence(at, from, &blocks);
            }
            (
                Purpose::ResilverAddMarks | Purpose::ResilverSeal(_) | Purpose::ResilverComplete,
                Answer::Done,
            ) => self.on_resilver_step(at, purpose, out),
            (Purpose::Tick(pass), Answer::Tick(tick)) => self.on_tick(at, pass, tick),
            (Purpose::Stable(pass), Answer::MarksLeft(left)) => {
                self.on_stable_done(at, pass, left, out);
            }
            (Purpose::Close, Answer::Done) => self.on_closed(at, out),
            (purpose, answer) => panic!("position {at}: {purpose:?} answered by {answer:?}"),
        }
    }

    /// A fault that ends the command and not the session.
    fn on_fault(&mut self, command: Outstanding, purpose: Purpose, fault: Fault, out: &mut Outbox) {
        let at = command.to;
        match purpose {
            Purpose::HostRead { op, piece } => self.on_read_fault(op, piece, at, fault, out),
            Purpose::HostWrite { op, piece } => self.on_write_fault(op, piece, at, fault, out),
            Purpose::CopyRead(copy) => self.on_copy_unreadable(copy, at, out),
            Purpose::Hash(region, generation) if fault == Fault::Medium => {
                self.on_hash_unreadable((region, generation), at);
            }
            Purpose::CopyWrite(copy) if self.repairs().any(|(id, _)| id == copy) => {
                self.repair_refused(copy, at, out);
            }
            // A source says no: the snapshot was deleted meanwhile.
            Purpose::ResilverPresence(_) if !self.target().has(at) => self.drop_resilver(out),
            Purpose::CatchUpPresence(_) => self.drop_catch_up(out),
            Purpose::Begin(_) | Purpose::Seal(_) => self.on_snapshot_refused(at, fault, out),
            Purpose::CopyWrite(_)
            | Purpose::Flush
            | Purpose::Stamp(_)
            | Purpose::Hash(..)
            | Purpose::ResilverMarks
            | Purpose::ResilverPresence(_)
            | Purpose::ResilverAddMarks
            | Purpose::ResilverSeal(_)
            | Purpose::ResilverComplete
            | Purpose::CatchUpMarks
            | Purpose::CatchUpBegin(_)
            | Purpose::CatchUpSeal(_)
            | Purpose::Generations
            | Purpose::State
            | Purpose::Hear
            | Purpose::AttachMarks => self.condemn_or_drop(at, out),
            Purpose::Tick(_) | Purpose::Stable(_) => self.abort_stable(out),
            Purpose::Close => self.on_closed(at, out),
            Purpose::Open => unreachable!("handled by on_open_refused"),
        }
    }

    /// The store cannot do its part: a member is to be removed, a target is dropped. Its session
    /// ends, so that nothing half done continues on it.
    pub(super) fn condemn_or_drop(&mut self, at: Position, out: &mut Outbox) {
        let leg = self.leg_mut(at);
        leg.failures += 1;
        leg.condemned.get_or_insert(super::leg::Condemned::Refused);
        self.end_session(at, out);
    }
}

//! A clean detach (protocol §10): finish, flush, clean all marks, close.

use super::event::{AttachFault, Command};
use super::flush::FlushFor;
use super::leg::Session;
use super::members::Members;
use super::state::{Outbox, Phase, Purpose, Replicator};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum DetachStage {
    /// Host operations end.
    #[default]
    Draining,
    Flushing,
    Cleaning,
    Closing,
}

#[derive(Debug, Default)]
pub(super) struct Detach {
    stage: DetachStage,
    closing: Members,
    flushed: bool,
}

impl Detach {
    pub(super) fn is_draining(&self) -> bool {
        self.stage == DetachStage::Draining
    }

    pub(super) fn is_closing(&self) -> bool {
        self.stage == DetachStage::Closing
    }
}

impl Replicator {
    pub(super) fn on_detach(&mut self, out: &mut Outbox) {
        match self.phase {
            Phase::New => self.end(out),
            Phase::Attaching => self.end_attach(AttachFault::Detached, out),
            Phase::Failed => self.end(out),
            Phase::Detaching | Phase::Ended => {}
            Phase::Serving => {
                self.phase = Phase::Detaching;
                self.changed = true;
                self.abort_stable(out);
                // Marks of regions nobody waits for stay; the next attach reconciles them.
            }
        }
    }

    pub(super) fn on_abandon(&mut self, out: &mut Outbox) {
        match self.phase {
            Phase::New | Phase::Attaching | Phase::Failed | Phase::Ended => self.on_detach(out),
            Phase::Serving | Phase::Detaching => {
                self.fail_all_ops(out);
                self.end(out);
            }
        }
    }

    pub(super) fn detach_forward(&mut self, out: &mut Outbox) {
        if self.phase != Phase::Detaching {
            return;
        }
        match self.detach.stage {
            DetachStage::Draining => {
                let host = |f: &super::flush::FlushTicket| matches!(f.purpose, FlushFor::Host(_));
                let repairing = self.repairs().next().is_some();
                if self.ops.is_empty() && !self.flushes.values().any(host) && !repairing {
                    if !self.is_joining() {
                        self.drop_resilver(out);
                    }
                    self.drop_catch_up(out);
                    self.detach.stage = DetachStage::Flushing;
                    self.start_flush(FlushFor::Detach, self.write_set(), false, out);
                }
            }
            DetachStage::Flushing => {
                if self.detach.flushed {
                    self.detach.stage = DetachStage::Cleaning;
                    self.changed = true;
                    if self.may_clean() {
                        self.begin_stable(out);
                    }
                }
            }
            DetachStage::Cleaning => {
                if !self.stable.is_running() {
                    self.close_all(out);
                }
            }
            DetachStage::Closing => {
                let open = self.detach.closing.iter();
                let open: Members = open
                    .filter(|at| self.leg(*at).session != Session::Closed)
                    .collect();
                self.detach.closing = open;
                if open.is_empty() {
                    self.end(out);
                }
            }
        }
    }

    pub(super) fn on_detach_flushed(&mut self) {
        self.detach.flushed = true;
        self.changed = true;
    }

    fn close_all(&mut self, out: &mut Outbox) {
        self.detach.stage = DetachStage::Closing;
        self.changed = true;
        let open = self
            .all
            .iter()
            .filter(|at| self.leg(*at).session == Session::Open);
        let open: Members = open.collect();
        for at in open.iter() {
            self.detach.closing.insert(at);
            self.send(at, Purpose::Close, Command::CloseSlice, out);
        }
    }

    /// A store has let go of the session at our request.
    pub(super) fn on_closed(&mut self, at: super::members::Position, out: &mut Outbox) {
        self.end_session(at, out);
    }
}

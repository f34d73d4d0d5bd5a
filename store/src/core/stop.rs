//! A clean stop: nothing new, everything admitted ends, all is durable, and the superblock says so.

use super::Core;
use super::Phase;
use super::checksums::{Checksums, Then};
use super::io::{Effect, Outbox};

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Draining,
    Superblock,
}

impl Core {
    pub(super) fn begin_stop(&mut self, out: &mut Outbox) {
        match self.phase {
            Phase::Serving => {
                for slice in self.slices.values_mut() {
                    slice.session = None;
                }
                self.phase = Phase::Stopping(Stage::Draining);
            }
            Phase::Opening(_) | Phase::Stopping(_) | Phase::Poisoned(_) => {}
            Phase::Over => out.push(Effect::Stopped),
        }
    }

    pub(super) fn continue_stop(&mut self, out: &mut Outbox) {
        let Phase::Stopping(stage) = self.phase else {
            return;
        };
        if stage != Stage::Draining || self.active_count > 0 || !self.waiters.is_empty() {
            return;
        }
        if !self.flusher.is_settled() {
            self.flusher.want();
            self.start_flush_run(out);
            self.start_journal_record(out);
            if !self.flusher.is_settled() {
                return;
            }
        }
        let busy = self.checkpoint.is_some() || self.reclaim.is_trimming();
        let busy = busy || self.merge.is_copying() || self.growing.is_some();
        if !self.journal.is_idle() || busy || !self.ios.is_idle() {
            return;
        }
        if let Some(checksums) = &mut self.checksums
            && !self.checksums_stopped
        {
            if checksums.is_idle() {
                checksums.start_batch_of_all(Then::Stop);
                self.pump_checksums(out);
            }
            if !self.checksums_stopped {
                return;
            }
        }
        // What was never loaded is still doubtful in the next life.
        self.sb.doubt = self.checksums.as_ref().is_some_and(Checksums::has_doubts);
        self.phase = Phase::Stopping(Stage::Superblock);
        self.sb.clean = true;
        self.write_superblock(out);
    }

    pub(super) fn finish_stop(&mut self, out: &mut Outbox) {
        self.phase = Phase::Over;
        out.push(Effect::Stopped);
    }
}

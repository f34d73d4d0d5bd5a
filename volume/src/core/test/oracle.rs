//! What may be read, and what may survive, per block, with the history that snapshots are judged by.

use std::collections::{BTreeMap, BTreeSet};

use ubs_verify::MayShow;

#[derive(Debug, Default)]
pub(super) struct Oracle {
    blocks: ubs_verify::Oracle,
    /// Every write there was, by the first moment of its operation.
    pub(super) history: BTreeMap<u64, Vec<Written>>,
    /// Operations that were under way when their client died and the next one was asked for them.
    pub(super) taken_over: BTreeSet<u64>,
}

/// A block of a write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) block: u64,
    pub(super) value: u64,
    /// `u64::MAX` while it is under way.
    pub(super) completed: u64,
}

/// Completion of a write that failed: it may have been done in part.
pub(super) const FAILED: u64 = u64::MAX - 1;

impl Oracle {
    pub(super) fn touched(&self) -> Vec<u64> {
        self.blocks.touched()
    }

    /// The moment of a host event.
    pub(super) fn stamp(&mut self) -> u64 {
        self.blocks.stamp()
    }

    pub(super) fn write_issued(&mut self, block: u64, value: u64, issued: u64) {
        self.blocks.write_issued(block, value, issued);
        self.history.entry(issued).or_default().push(Written {
            block,
            value,
            completed: u64::MAX,
        });
    }

    pub(super) fn may_show(&mut self) -> BTreeMap<u64, MayShow> {
        self.blocks.may_show()
    }

    pub(super) fn write_completed(&mut self, block: u64, issued: u64, now: u64, fua: bool) {
        self.blocks.write_completed(block, issued, now, fua);
        for written in self.history.get_mut(&issued).into_iter().flatten() {
            if written.block == block {
                written.completed = now;
            }
        }
    }

    /// The write ended with an error: it may have taken effect by now, or never.
    pub(super) fn write_failed(&mut self, block: u64, issued: u64, now: u64) {
        self.blocks.write_failed(block, issued, now);
        for written in self.history.get_mut(&issued).into_iter().flatten() {
            written.completed = FAILED;
        }
    }

    pub(super) fn flush_completed(&mut self, issued: u64) {
        self.blocks.flush_completed(issued);
    }

    /// What a read issued at `issued` may return; remembers what it did return.
    pub(super) fn read(&mut self, block: u64, value: u64, issued: u64) -> Result<(), String> {
        let legal = self.blocks.read(block, value, issued);
        legal.map_err(|illegal| format!("a read: {illegal}"))
    }

    /// The client is gone: anything that may survive may be the truth.
    pub(super) fn crash(&mut self) {
        self.blocks.begin_era();
    }

    /// Whether a power cut may leave this value on an in-sync store.
    pub(super) fn may_survive(&self, block: u64, value: u64) -> Result<(), String> {
        let legal = self.blocks.may_survive(block, value);
        legal.map_err(|illegal| format!("after a power cut {illegal}"))
    }
}

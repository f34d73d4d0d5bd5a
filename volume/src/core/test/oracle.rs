//! What may be read, and what may survive, per block.
//!
//! Time is a counter of host events. A write is *superseded* at a moment if another write began
//! after it had completed, and itself completed before that moment.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug)]
struct Entry {
    value: u64,
    issued: u64,
    /// `u64::MAX` while it may still take effect.
    completed: u64,
    /// Left by an earlier attach: which one holds is decided when it is first read.
    undecided: bool,
    /// It took effect; a failed write only may have.
    sure: bool,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// Writes a read may return, together with those in flight.
    readable: Vec<Entry>,
    /// Writes a crash may bring back.
    survivable: Vec<Entry>,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    now: u64,
    blocks: BTreeMap<u64, Block>,
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

impl Block {
    fn start() -> Self {
        let zero = Entry {
            value: 0,
            issued: 0,
            completed: 0,
            undecided: false,
            sure: true,
        };
        Self {
            readable: vec![zero],
            survivable: vec![zero],
        }
    }
}

/// Drops what another write has superseded before `moment`.
fn drop_superseded(entries: &mut Vec<Entry>, moment: u64, also: &[Entry]) {
    let over: Vec<_> = entries.iter().chain(also).copied().collect();
    entries.retain(|e| {
        !over
            .iter()
            .any(|o| o.sure && o.issued > e.completed && o.completed < moment)
    });
}

impl Oracle {
    fn block(&mut self, block: u64) -> &mut Block {
        self.blocks.entry(block).or_insert_with(Block::start)
    }

    pub(super) fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.keys().copied()
    }

    /// The moment of a host event.
    pub(super) fn stamp(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    pub(super) fn write_issued(&mut self, block: u64, value: u64, issued: u64) {
        let entry = Entry {
            value,
            issued,
            completed: u64::MAX,
            undecided: false,
            sure: true,
        };
        let of_block = self.block(block);
        of_block.readable.push(entry);
        of_block.survivable.push(entry);
        self.history.entry(issued).or_default().push(Written {
            block,
            value,
            completed: u64::MAX,
        });
    }

    /// What a snapshot that is made now may show of each block that was ever written: if its client
    /// lives until it is complete, and if not.
    pub(super) fn may_show(&mut self) -> BTreeMap<u64, [BTreeSet<u64>; 2]> {
        let now = self.stamp();
        let values = |entries: &[Entry]| entries.iter().map(|e| e.value).collect::<BTreeSet<_>>();
        let blocks = self.blocks.iter_mut();
        let shown = blocks.map(|(at, block)| {
            drop_superseded(&mut block.readable, now, &[]);
            let readable = values(&block.readable);
            let survivable = values(&block.survivable);
            (*at, [readable.clone(), &readable | &survivable])
        });
        shown.collect()
    }

    pub(super) fn write_completed(&mut self, block: u64, issued: u64, now: u64, fua: bool) {
        for written in self.history.get_mut(&issued).into_iter().flatten() {
            if written.block == block {
                written.completed = now;
            }
        }
        let block = self.block(block);
        for entry in block.readable.iter_mut().chain(&mut block.survivable) {
            if entry.issued == issued && entry.completed == u64::MAX {
                entry.completed = now;
            }
        }
        if fua {
            // Durable itself: whatever had completed before it began cannot come back.
            block
                .survivable
                .retain(|e| e.issued == issued || e.completed > issued);
        }
    }

    /// The write ended with an error: it may have taken effect by now, or never.
    pub(super) fn write_failed(&mut self, block: u64, issued: u64, now: u64) {
        for written in self.history.get_mut(&issued).into_iter().flatten() {
            written.completed = FAILED;
        }
        let block = self.block(block);
        for entry in block.readable.iter_mut().chain(&mut block.survivable) {
            if entry.issued == issued && entry.completed == u64::MAX {
                (entry.completed, entry.sure) = (now, false);
            }
        }
    }

    /// Everything completed before the flush was issued is durable.
    pub(super) fn flush_completed(&mut self, issued: u64) {
        for block in self.blocks.values_mut() {
            let known = block.readable.clone();
            drop_superseded(&mut block.survivable, issued, &known);
        }
    }

    /// What a read issued at `issued` may return; remembers what it did return.
    pub(super) fn read(&mut self, block: u64, value: u64, issued: u64) -> Result<(), String> {
        let at = block;
        let block = self.block(at);
        drop_superseded(&mut block.readable, issued, &[]);
        if !block.readable.iter().any(|e| e.value == value) {
            return Err(format!(
                "block {at} read {value}, may be {:?}",
                block.readable
            ));
        }
        // Zeroes look alike: only an unmistakable hit decides.
        let mut hits = block.readable.iter().filter(|e| e.value == value);
        let decides = hits.all(|e| e.undecided);
        block
            .readable
            .retain(|e| e.value == value || e.completed >= issued);
        if decides {
            let decided = |e: &mut Vec<Entry>| {
                e.retain(|e| !e.undecided || e.value == value);
                e.iter_mut().for_each(|e| e.undecided = false);
            };
            decided(&mut block.readable);
            decided(&mut block.survivable);
        }
        Ok(())
    }

    /// The client is gone: anything that may survive may be the truth.
    pub(super) fn crash(&mut self) {
        let now = self.stamp();
        for block in self.blocks.values_mut() {
            for entry in &mut block.survivable {
                (entry.issued, entry.completed) = (0, now);
                entry.undecided = true;
            }
            block.readable = block.survivable.clone();
        }
    }

    /// Whether a power cut may leave this value on an in-sync store.
    pub(super) fn may_survive(&self, block: u64, value: u64) -> Result<(), String> {
        let entries = self
            .blocks
            .get(&block)
            .map(|b| b.survivable.clone())
            .unwrap_or_default();
        if entries.iter().any(|e| e.value == value) {
            return Ok(());
        }
        Err(format!(
            "block {block} may come back as {value}, may only be {entries:?}"
        ))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_completed_write_hides_what_completed_before_it_began() {
        let mut oracle = Oracle::default();
        for value in [1, 2] {
            let issued = oracle.stamp();
            oracle.write_issued(7, value, issued);
            let done = oracle.stamp();
            oracle.write_completed(7, issued, done, false);
        }
        let issued = oracle.stamp();
        assert!(oracle.read(7, 1, issued).is_err());
        assert!(oracle.read(7, 2, issued).is_ok());
        assert!(oracle.may_survive(7, 0).is_ok());
        oracle.flush_completed(issued);
        assert!(oracle.may_survive(7, 1).is_err());
        assert!(oracle.may_survive(7, 2).is_ok());
    }

    #[test]
    fn what_was_read_after_a_crash_stays() {
        let mut oracle = Oracle::default();
        let issued = oracle.stamp();
        oracle.write_issued(7, 1, issued);
        oracle.crash();
        let issued = oracle.stamp();
        assert!(oracle.read(7, 0, issued).is_ok());
        assert!(oracle.read(7, 1, issued).is_err());
        assert!(oracle.may_survive(7, 1).is_err());
    }
}

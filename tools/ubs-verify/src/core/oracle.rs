//! What may be read, and what must be durable, per block, where every write leaves a number of its own:
//! for simulations, which know the end of each write and hold all of it in memory.
//!
//! Time is a counter of host events. A write is *superseded* at a moment if another one that surely
//! took effect began after it had completed and completed before that moment. An *era* is one
//! attachment, from the moment its volume serves. When an era begins, everything the one before
//! left that may have survived is *undecided* until it is read: what was once read stays.
//!
//! Zero stands for "reads as zeroes": never written, discarded or zeroed.

use std::collections::{BTreeMap, BTreeSet};

/// A write as far as one block is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    value: u64,
    issued: u64,
    /// `u64::MAX` while it may still take effect.
    completed: u64,
    /// Left by an earlier era: which one holds is decided when it is first read.
    undecided: bool,
    /// It took effect; a failed write only may have.
    sure: bool,
}

#[derive(Clone, Debug)]
struct Block {
    /// Writes a read may return, together with those in flight.
    readable: Vec<Entry>,
    /// Writes that the loss of all volatile state may bring back.
    survivable: Vec<Entry>,
    /// What was known when the current era began, with the times of then: flushes of the era
    /// before may still be answered.
    before: Vec<Entry>,
}

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
            before: Vec::new(),
        }
    }

    /// What a late flush says about the era before: values that cannot be there any more.
    fn superseded_before(&self, moment: u64) -> Vec<u64> {
        let mut left = self.before.clone();
        drop_superseded(&mut left, moment, &[]);
        let gone = self.before.iter().map(|e| e.value);
        gone.filter(|v| !left.iter().any(|l| l.value == *v))
            .collect()
    }
}

/// Drops what another write, of these or of `also`, has superseded before `moment`.
fn drop_superseded(entries: &mut Vec<Entry>, moment: u64, also: &[Entry]) {
    if entries.len() < 2 && also.is_empty() {
        return; // nothing supersedes itself
    }
    let these = entries.clone();
    entries.retain(|e| {
        !these
            .iter()
            .chain(also)
            .any(|o| o.sure && o.issued > e.completed && o.completed < moment)
    });
}

/// What a snapshot may show of a block: if its client lives until it is complete, and if not.
pub type MayShow = [BTreeSet<u64>; 2];

/// A finding that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Illegal {
    /// Number of the block.
    pub block: u64,
    /// The value that was found.
    pub found: u64,
    /// The values that would have been right.
    pub legal: Vec<u64>,
}

impl std::error::Error for Illegal {}

impl std::fmt::Display for Illegal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            block,
            found,
            legal,
        } = self;
        write!(f, "block {block} holds {found}, legal are {legal:?}")
    }
}

/// The histories of all blocks.
#[derive(Debug, Default)]
pub struct Oracle {
    now: u64,
    era: u32,
    blocks: BTreeMap<u64, Block>,
}

impl Oracle {
    fn block(&mut self, block: u64) -> &mut Block {
        self.blocks.entry(block).or_insert_with(Block::start)
    }

    /// Blocks that were ever written, ascending.
    pub fn touched(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    /// The current era.
    pub fn era(&self) -> u32 {
        self.era
    }

    /// The moment of a host event.
    pub fn stamp(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A write (or a discard or zero: value 0) of the current era begins.
    pub fn write_issued(&mut self, block: u64, value: u64, issued: u64) {
        let entry = Entry {
            value,
            issued,
            completed: u64::MAX,
            undecided: false,
            sure: true,
        };
        let block = self.block(block);
        block.readable.push(entry);
        block.survivable.push(entry);
    }

    /// What a snapshot that is made now may show of each block that was ever written.
    pub fn may_show(&mut self) -> BTreeMap<u64, MayShow> {
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

    /// Whether a block may hold that value when nobody has the volume, and after a power cut.
    ///
    /// # Errors
    /// It may not.
    pub fn may_survive(&self, block: u64, value: u64) -> Result<(), Illegal> {
        let entries = self.blocks.get(&block).map(|b| b.survivable.iter());
        let legal: Vec<u64> = match entries {
            Some(entries) => entries.map(|e| e.value).collect(),
            None => vec![0],
        };
        if legal.contains(&value) {
            return Ok(());
        }
        Err(Illegal {
            block,
            found: value,
            legal,
        })
    }

    /// Whether a block holds that value even after the loss of all volatile state.
    pub fn is_durable(&self, block: u64, value: u64) -> bool {
        let block = self.blocks.get(&block);
        block.map_or(value == 0, |b| {
            b.survivable.iter().all(|e| e.value == value)
        })
    }

    /// A write of the current era is acknowledged.
    pub fn write_completed(&mut self, block: u64, issued: u64, now: u64, fua: bool) {
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

    /// A write of the current era ended with an error: it may have taken effect by now, or never.
    pub fn write_failed(&mut self, block: u64, issued: u64, now: u64) {
        let block = self.block(block);
        for entry in block.readable.iter_mut().chain(&mut block.survivable) {
            if entry.issued == issued && entry.completed == u64::MAX {
                (entry.completed, entry.sure) = (now, false);
            }
        }
    }

    /// A flush of the current era ended well: all that completed before it was issued is durable.
    pub fn flush_completed(&mut self, issued: u64) {
        for block in self.blocks.values_mut() {
            if block.survivable.len() > 1 {
                drop_superseded(&mut block.survivable, issued, &block.readable);
            }
        }
    }

    /// A flush of the era before ends well only now: what it covered was durable when the current
    /// era began.
    ///
    /// # Errors
    /// Something it covered has been read to be lost.
    pub fn late_flush_completed(&mut self, issued: u64) -> Result<(), Illegal> {
        for (at, block) in &mut self.blocks {
            let gone = block.superseded_before(issued);
            if gone.is_empty() {
                continue;
            }
            let lost = block
                .readable
                .iter()
                .find(|e| e.issued == 0 && !e.undecided && gone.contains(&e.value));
            if let Some(lost) = lost {
                return Err(Illegal {
                    block: *at,
                    found: lost.value,
                    legal: Vec::new(),
                });
            }
            let stays = |e: &Entry| !(e.undecided && gone.contains(&e.value));
            block.readable.retain(stays);
            block.survivable.retain(stays);
        }
        Ok(())
    }

    /// Checks what a read of the current era, issued at `issued`, returned; remembers it.
    ///
    /// # Errors
    /// It must not return that.
    pub fn read(&mut self, at: u64, value: u64, issued: u64) -> Result<(), Illegal> {
        let block = self.block(at);
        drop_superseded(&mut block.readable, issued, &[]);
        if !block.readable.iter().any(|e| e.value == value) {
            return Err(Illegal {
                block: at,
                found: value,
                legal: block.readable.iter().map(|e| e.value).collect(),
            });
        }
        if block.readable.len() == 1 {
            let only = &mut block.readable[0];
            if !only.undecided {
                return Ok(());
            }
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

    /// Another attachment serves from now on: anything that may have survived may be the truth.
    pub fn begin_era(&mut self) -> u32 {
        let now = self.stamp();
        self.era += 1;
        for block in self.blocks.values_mut() {
            block.before.clone_from(&block.readable);
            for entry in &block.survivable {
                if !block.before.contains(entry) {
                    block.before.push(*entry);
                }
            }
            for entry in &mut block.survivable {
                (entry.issued, entry.completed) = (0, now);
                entry.undecided = true;
            }
            block.readable.clone_from(&block.survivable);
        }
        self.era
    }

    /// The current era ended in order: all that was acknowledged is durable.
    pub fn end_era(&mut self) {
        let now = self.stamp();
        self.flush_completed(now);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn written(oracle: &mut Oracle, value: u64) -> u64 {
        let issued = oracle.stamp();
        oracle.write_issued(7, value, issued);
        let done = oracle.stamp();
        oracle.write_completed(7, issued, done, false);
        issued
    }

    fn reads(oracle: &Oracle, value: u64) -> bool {
        let mut again = Oracle {
            now: oracle.now,
            era: oracle.era,
            blocks: oracle.blocks.clone(),
        };
        let issued = again.stamp();
        again.read(7, value, issued).is_ok()
    }

    #[test]
    fn a_completed_write_hides_what_completed_before_it_began() {
        let mut oracle = Oracle::default();
        written(&mut oracle, 1);
        written(&mut oracle, 2);
        assert!(!reads(&oracle, 1) && reads(&oracle, 2) && !reads(&oracle, 3));
    }

    #[test]
    fn concurrent_writes_land_in_either_order_and_what_was_read_stays() {
        let mut oracle = Oracle::default();
        let (a, b) = (oracle.stamp(), oracle.stamp());
        oracle.write_issued(7, 1, a);
        oracle.write_issued(7, 2, b);
        for issued in [a, b] {
            let done = oracle.stamp();
            oracle.write_completed(7, issued, done, false);
        }
        assert!(reads(&oracle, 1) && reads(&oracle, 2) && !reads(&oracle, 0));
        let issued = oracle.stamp();
        oracle.read(7, 1, issued).unwrap();
        assert!(!reads(&oracle, 2));
    }

    #[test]
    fn a_new_era_shows_the_last_flushed_or_a_later_value() {
        let mut oracle = Oracle::default();
        written(&mut oracle, 1);
        written(&mut oracle, 2);
        let issued = oracle.stamp();
        oracle.flush_completed(issued);
        written(&mut oracle, 3);
        oracle.begin_era();
        assert!(!reads(&oracle, 1) && reads(&oracle, 2) && reads(&oracle, 3));
        let issued = oracle.stamp();
        oracle.read(7, 2, issued).unwrap();
        assert!(!reads(&oracle, 3));
        oracle.begin_era();
        assert!(!reads(&oracle, 3), "what was once read stays");
    }

    #[test]
    fn a_detach_in_order_keeps_everything() {
        let mut oracle = Oracle::default();
        written(&mut oracle, 1);
        written(&mut oracle, 2);
        oracle.end_era();
        oracle.begin_era();
        assert!(!reads(&oracle, 1) && reads(&oracle, 2));
    }

    #[test]
    fn a_flush_answered_late_was_durable_before_the_new_era() {
        let mut oracle = Oracle::default();
        written(&mut oracle, 1);
        written(&mut oracle, 2);
        let flush = oracle.stamp();
        oracle.begin_era();
        assert!(reads(&oracle, 1) && reads(&oracle, 2));
        let mut sound = Oracle {
            blocks: oracle.blocks.clone(),
            ..Oracle::default()
        };
        sound.late_flush_completed(flush).unwrap();
        assert!(!reads(&sound, 1) && reads(&sound, 2));
        let issued = oracle.stamp();
        oracle.read(7, 1, issued).unwrap();
        assert_eq!(oracle.late_flush_completed(flush).unwrap_err().found, 1);
    }

    #[test]
    fn a_failed_write_hides_nothing() {
        let mut oracle = Oracle::default();
        written(&mut oracle, 1);
        let issued = oracle.stamp();
        oracle.write_issued(7, 2, issued);
        let now = oracle.stamp();
        oracle.write_failed(7, issued, now);
        assert!(reads(&oracle, 1) && reads(&oracle, 2));
    }
}

//! What a rollback writes (ADR 0015): of two snapshots of a volume, what it is to show (`to`) and what it
//! showed (`before`), those blocks that may differ are written as they are in `to`. Decides; reads and
//! writes nothing by itself.
//!
//! ```text
//! window by window of 64 MiB:  Differing ──some──► Shown ──► Read, Write where `to` has data, Zero elsewhere
//!                                  └──none──► next window              after the last window: Flush ──► done
//! ```
//! Begun anew it does all of it again, which does no harm: neither snapshot ever changes.

use shardmap::canary::{Mechanism, stands};
use shardmap::dirty::BlockSet;
use shardmap::units::{BlockRange, Lba, REGION_BLOCKS, RegionIndex};
use std::collections::BTreeMap;
use volume::limits::{COPY_BLOCKS_MAX, PRESENCE_REGIONS, ZERO_BLOCKS_MAX};

/// Pieces under way at a time; each may hold one large arena slot.
pub const PIECES_MAX: usize = 4;
const WINDOW_BLOCKS: u64 = (PRESENCE_REGIONS * REGION_BLOCKS) as u64;

/// What is to be done. Each is answered once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Which blocks of the window may read otherwise in `before` than in `to`;
    /// [`Rolling::on_blocks`].
    Differing(RegionIndex),
    /// Which blocks of the window are there in `to`; [`Rolling::on_blocks`].
    Shown(RegionIndex),
    /// Read a piece of `to`; [`Rolling::on_read`], or [`Rolling::put_back`] if there is no room for it now.
    Read(u64, BlockRange),
    /// Write what was read to the volume; [`Rolling::on_written`].
    Write(u64, BlockRange),
    /// Zero a piece of the volume; [`Rolling::on_written`].
    Zero(u64, BlockRange),
    /// Make all of it durable; [`Rolling::on_flushed`].
    Flush,
}

/// How far a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    ToRead,
    Reading,
    ToWrite,
    ToZero,
    Writing,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    range: BlockRange,
    step: Step,
}

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    /// The window is to be asked for.
    ToLook,
    /// It was.
    Looking,
    /// It differs there; what `to` has is to be asked for.
    ToSee(BlockSet),
    Seeing(BlockSet),
    /// Left to copy and to zero in the window.
    Copying(BlockSet, BlockSet),
    ToFlush,
    Flushing,
    Done,
}

/// A rollback under way.
#[derive(Debug)]
pub struct Rolling {
    size_blocks: u64,
    /// First region of the window at work.
    window: RegionIndex,
    stage: Stage,
    pieces: BTreeMap<u64, Piece>,
    next_piece: u64,
}

impl Rolling {
    /// Nothing is asked yet.
    pub fn new(size_blocks: u64) -> Self {
        Self {
            size_blocks,
            window: RegionIndex(0),
            stage: Stage::ToLook,
            pieces: BTreeMap::new(),
            next_piece: 0,
        }
    }

    /// Everything is written and durable.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// How far it is, in hundredths of the volume.
    pub fn percent(&self) -> u64 {
        let at = u64::from(self.window.0) * u64::from(REGION_BLOCKS);
        (at.min(self.size_blocks) * 100)
            .checked_div(self.size_blocks)
            .unwrap_or(100)
    }

    /// The next thing to do, if something can be done now.
    pub fn next_ask(&mut self) -> Option<Ask> {
        match &mut self.stage {
            Stage::ToLook => {
                self.stage = Stage::Looking;
                Some(Ask::Differing(self.window))
            }
            Stage::ToSee(differing) => {
                self.stage = Stage::Seeing(std::mem::take(differing));
                Some(Ask::Shown(self.window))
            }
            Stage::Copying(..) => self.next_of_pieces(),
            Stage::ToFlush => {
                self.stage = Stage::Flushing;
                Some(Ask::Flush)
            }
            Stage::Looking | Stage::Seeing(_) | Stage::Flushing | Stage::Done => None,
        }
    }

    fn next_of_pieces(&mut self) -> Option<Ask> {
        let waits = |p: &Piece| !matches!(p.step, Step::Reading | Step::Writing);
        if let Some((id, piece)) = self.pieces.iter_mut().find(|(_, p)| waits(p)) {
            let (ask, step): (fn(u64, BlockRange) -> Ask, _) = match piece.step {
                Step::ToRead => (Ask::Read, Step::Reading),
                Step::ToWrite => (Ask::Write, Step::Writing),
                Step::ToZero => (Ask::Zero, Step::Writing),
                Step::Reading | Step::Writing => unreachable!("it waits"),
            };
            piece.step = step;
            return Some(ask(*id, piece.range));
        }
        let Stage::Copying(to_copy, to_zero) = &mut self.stage else {
            return None;
        };
        if self.pieces.len() >= PIECES_MAX {
            return None;
        }
        let (ask, step, range): (fn(u64, BlockRange) -> Ask, _, _) =
            if let Some(run) = to_copy.first_run(Lba(0), COPY_BLOCKS_MAX) {
                to_copy.remove(run);
                (Ask::Read, Step::Reading, run)
            } else {
                let run = to_zero.first_run(Lba(0), ZERO_BLOCKS_MAX)?;
                to_zero.remove(run);
                (Ask::Zero, Step::Writing, run)
            };
        self.next_piece += 1;
        self.pieces.insert(self.next_piece, Piece { range, step });
        Some(ask(self.next_piece, range))
    }

    /// The answer to [`Ask::Differing`] and [`Ask::Shown`].
    pub fn on_blocks(&mut self, mut blocks: BlockSet) {
        match std::mem::replace(&mut self.stage, Stage::ToLook) {
            Stage::Looking if blocks.is_empty() => self.advance(),
            Stage::Looking => self.stage = Stage::ToSee(blocks),
            Stage::Seeing(differing) => {
                let mut to_zero = differing.clone();
                to_zero.subtract(&blocks);
                if !stands(Mechanism::RollbackZero) {
                    to_zero.clear();
                }
                blocks.intersect(&differing);
                self.stage = Stage::Copying(blocks, to_zero);
            }
            stage @ (Stage::ToLook
            | Stage::ToSee(_)
            | Stage::Copying(..)
            | Stage::ToFlush
            | Stage::Flushing
            | Stage::Done) => unreachable!("no blocks were asked for in {stage:?}"),
        }
    }

    /// A piece was read. Zeroes that `to` has take no space.
    pub fn on_read(&mut self, id: u64, is_zero: bool) {
        let next = if is_zero { Step::ToZero } else { Step::ToWrite };
        self.piece_steps(id, Step::Reading, next);
    }

    /// A piece cannot be read now: it is asked for again.
    pub fn put_back(&mut self, id: u64) {
        self.piece_steps(id, Step::Reading, Step::ToRead);
    }

    fn piece_steps(&mut self, id: u64, from: Step, to: Step) {
        let piece = self.pieces.get_mut(&id).expect("a piece under way");
        assert_eq!(piece.step, from, "piece {id}");
        piece.step = to;
    }

    /// A piece was written or zeroed.
    pub fn on_written(&mut self, id: u64) {
        let piece = self.pieces.remove(&id).expect("a piece under way");
        assert_eq!(piece.step, Step::Writing, "piece {id}");
        let Stage::Copying(to_copy, to_zero) = &self.stage else {
            unreachable!("pieces are of a window")
        };
        if self.pieces.is_empty() && to_copy.is_empty() && to_zero.is_empty() {
            self.advance();
        }
    }

    /// All of it is durable.
    pub fn on_flushed(&mut self) {
        assert_eq!(self.stage, Stage::Flushing);
        self.stage = Stage::Done;
    }

    /// The window is done.
    fn advance(&mut self) {
        let next = self.window.0 + PRESENCE_REGIONS;
        self.window = RegionIndex(next);
        let start = u64::from(next) * u64::from(REGION_BLOCKS);
        self.stage = if start >= self.size_blocks && !stands(Mechanism::RollbackFlush) {
            Stage::Done
        } else if start >= self.size_blocks {
            Stage::ToFlush
        } else {
            Stage::ToLook
        };
    }
}

const _: () = assert!(WINDOW_BLOCKS <= ZERO_BLOCKS_MAX as u64);

#[cfg(test)]
mod test;

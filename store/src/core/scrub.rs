//! The scrub: all data is read once in a while and compared with its checksums. One cell at a time, when
//! the shell says so; the place is kept in the superblock, so that a restart goes on (from the last
//! checkpoint or clean stop).

use super::checksums::Verdict;
use super::facts::Scrubbed;
use super::io::{Answer, CommandId, Effect, Outbox};
use super::survey::Spot;
use super::{Core, Kind};
use shardmap::units::{BLOCK_BYTES, EXTENT_BLOCKS, Lba, REGION_BLOCKS};

/// A cell being scrubbed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scrubbing {
    /// What is not known is from now on: not while the region is marked, because then the replicas
    /// may differ, and it is not for this one to say what is right.
    pub(super) learn: bool,
    tally: Scrubbed,
}

impl Core {
    /// Scrubs the next cell, or says that there is none before the end.
    pub(super) fn scrub(&mut self, id: CommandId, out: &mut Outbox) {
        let Some(found) = self.next_data(self.sb.scrub) else {
            self.sb.scrub = Spot::default();
            let result = Ok(Answer::Scrubbed(None));
            return out.push(Effect::Answer {
                command: id,
                result,
            });
        };
        self.sb.scrub = found.spot.after();
        let nsid = found.spot.nsid;
        let first = found.spot.extent * u64::from(EXTENT_BLOCKS);
        let slice = &self.slices[&nsid];
        let region = u32::try_from(first / u64::from(REGION_BLOCKS)).expect("in the volume");
        let marked = slice.marks.contains(region) || slice.marking.contains_key(&region);
        let scrubbing = Scrubbing {
            learn: !marked,
            tally: Scrubbed {
                extent: Some(self.rot_at(found, 0)),
                ..Scrubbed::default()
            },
        };
        self.activate(id, nsid, Kind::Scrub(scrubbing));
        let mut at_blocks = 0;
        for (start, blocks) in found.runs() {
            let within = u64::from(start) * u64::from(BLOCK_BYTES);
            let offset_bytes = self.sb.geometry.extent_offset(found.physical) + within;
            let lba = Lba(first + u64::from(start));
            self.read_data((id, at_blocks), lba, (offset_bytes, blocks), out);
            at_blocks += blocks;
        }
    }

    /// A run was read and compared; `None`: it could not be read.
    pub(super) fn on_scrubbed(
        &mut self,
        id: CommandId,
        (lba, blocks): (Lba, u32),
        verdict: Option<&Verdict>,
    ) {
        let Kind::Scrub(scrubbing) = &mut self.active_mut(id).kind else {
            unreachable!("only a scrub is scrubbed")
        };
        let tally = &mut scrubbing.tally;
        tally.blocks += u64::from(blocks);
        let bad = match verdict {
            None => {
                tally.unreadable += u64::from(blocks);
                (1 << blocks) - 1
            }
            Some(verdict) => {
                tally.unknown += u64::from(verdict.unknown);
                tally.unreadable += u64::from(verdict.failed);
                tally.rotten += u64::from(verdict.bad - verdict.failed);
                verdict.bad_blocks
            }
        };
        let at = lba.0 % u64::from(EXTENT_BLOCKS);
        tally.bad |= u16::try_from(bad << at).expect("a run stays in its extent");
    }

    /// All of the cell was read.
    pub(super) fn finish_scrub(&mut self, id: CommandId, out: &mut Outbox) {
        let Kind::Scrub(scrubbing) = &self.active_mut(id).kind else {
            unreachable!("a scrub")
        };
        let answer = Answer::Scrubbed(Some(scrubbing.tally));
        self.finish(id, Ok(answer), out);
    }
}

//! Reads: one device read per physically contiguous run; what is absent or zero touches no device.

use super::Core;
use super::format::page::PRESENT;
use super::io::{Answer, CommandId, Effect, Outbox};
use shardmap::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS, Lba};
use smallvec::SmallVec;

/// A part of a read: zeroes or a run of the device.
#[derive(Clone, Copy)]
struct Run {
    at_blocks: u32,
    blocks: u32,
    /// Byte offset on the device; `None`: zeroes.
    source: Option<u64>,
}

impl Run {
    /// Grows by `next` if that is more of the same.
    fn absorb(&mut self, next: &Self) -> bool {
        let follows = match (self.source, next.source) {
            (None, None) => true,
            (Some(a), Some(b)) => a + u64::from(self.blocks) * u64::from(BLOCK_BYTES) == b,
            (None, Some(_)) | (Some(_), None) => false,
        };
        if follows {
            self.blocks += next.blocks;
        }
        follows
    }
}

impl Core {
    pub(super) fn start_read(
        &mut self,
        id: CommandId,
        nsid: u32,
        range: BlockRange,
        out: &mut Outbox,
    ) {
        let mut touches_device = false;
        for run in self.plan_read(nsid, range) {
            let Run {
                at_blocks,
                blocks,
                source,
            } = run;
            if let Some(offset_bytes) = source {
                touches_device = true;
                let lba = Lba(range.start().0 + u64::from(at_blocks));
                let io = self.start_data(id, lba);
                out.push(Effect::ReadData {
                    io,
                    command: id,
                    at_blocks,
                    blocks,
                    offset_bytes,
                });
            } else {
                out.push(Effect::FillZero {
                    command: id,
                    at_blocks,
                    blocks,
                });
            }
        }
        if !touches_device {
            self.finish(id, Ok(Answer::Done), out);
        }
    }

    fn plan_read(&self, nsid: u32, range: BlockRange) -> SmallVec<[Run; 4]> {
        let slice = &self.slices[&nsid];
        let mut runs: SmallVec<[Run; 4]> = SmallVec::new();
        let mut at_blocks = 0;
        for piece in range.split_at_multiples(EXTENT_BLOCKS) {
            let (leaf, index) = slice.locate(piece.start());
            let (physical, states) = slice.leaves.get(&leaf).map_or((None, 0), |l| l.get(index));
            let first = u32::try_from(piece.start().0 % u64::from(EXTENT_BLOCKS)).expect("small");
            for block in first..first + piece.blocks().0 {
                let present = states >> (2 * block) & 3 == PRESENT;
                let source = physical.filter(|_| present).map(|extent| {
                    self.sb.geometry.extent_offset(extent)
                        + u64::from(block) * u64::from(BLOCK_BYTES)
                });
                let run = Run {
                    at_blocks,
                    blocks: 1,
                    source,
                };
                at_blocks += 1;
                if !runs.last_mut().is_some_and(|last| last.absorb(&run)) {
                    runs.push(run);
                }
            }
        }
        runs
    }
}

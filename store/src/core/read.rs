//! Reads: one device read per physically contiguous run; what is absent or zero touches no device.

use super::Core;
use super::facts::StoreFault;
use super::format::geometry::Geometry;
use super::format::page::PRESENT;
use super::io::{Answer, CommandId, Effect, Outbox};
use super::leaf::{known_lanes, present_lanes, uniform};
use super::slice::Slice;
use crate::limits::IO_BLOCKS_MAX;
use shardmap::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS, Generation, Lba, Nsid};
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
    /// Grows by `next` if that is more of the same; not over a seam.
    fn absorb(&mut self, next: &Self, geometry: &Geometry) -> bool {
        let follows = match (self.source, next.source) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                let end = a + u64::from(self.blocks) * u64::from(BLOCK_BYTES);
                end == b && !geometry.is_seam(b)
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        if follows {
            self.blocks += next.blocks;
        }
        follows
    }
}

/// The physical extent that has each block of an extent, as a lineage shows it: from the first slice, and
/// there the newest cell, where the block is not absent.
pub(super) fn sources(lineage: &[(&Slice, u32)], lba: Lba) -> [Option<u32>; 16] {
    let mut sources = [None; 16];
    let mut wanted = uniform(PRESENT);
    let cells = lineage.iter().flat_map(|(slice, generation)| {
        let (leaf, index) = slice.locate(lba);
        let leaf = slice.leaves.get(&leaf);
        let cells = leaf.map(|l| l.cells(index, *generation));
        cells.into_iter().flatten()
    });
    for (_, cell) in cells {
        let mut present = present_lanes(cell.states) & wanted;
        wanted &= !known_lanes(cell.states);
        if present == uniform(PRESENT) {
            return [cell.physical; 16];
        }
        while present != 0 {
            sources[present.trailing_zeros() as usize / 2] = cell.physical;
            present &= present - 1;
        }
        if wanted == 0 {
            break;
        }
    }
    sources
}

impl Core {
    /// Where the range of a generation is on the device: runs of blocks with their byte offset, or zeroes
    /// (`None`). At most [`IO_BLOCKS_MAX`] blocks.
    pub(crate) fn locate_range(
        &self,
        nsid: Nsid,
        range: BlockRange,
        generation: Generation,
    ) -> Result<Vec<(u32, Option<u64>)>, StoreFault> {
        let slice = self.slices.get(&nsid.0);
        let slice = slice.ok_or(StoreFault::UnknownSlice { nsid })?;
        slice.check_range(range, IO_BLOCKS_MAX)?;
        let generation = slice.check_readable(generation)?;
        let runs = self.plan_read(nsid.0, range, generation);
        Ok(runs.iter().map(|r| (r.blocks, r.source)).collect())
    }

    pub(super) fn start_read(
        &mut self,
        id: CommandId,
        nsid: u32,
        (range, generation): (BlockRange, u32),
        out: &mut Outbox,
    ) {
        let mut touches_device = false;
        for run in self.plan_read(nsid, range, generation) {
            let Run {
                at_blocks,
                blocks,
                source,
            } = run;
            if let Some(offset_bytes) = source {
                touches_device = true;
                let lba = Lba(range.start().0 + u64::from(at_blocks));
                self.read_data((id, at_blocks), lba, (offset_bytes, blocks), out);
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

    /// Reads a run of the device to a place in a command's buffer; `lba` is its first block.
    pub(super) fn read_data(
        &mut self,
        (command, at_blocks): (CommandId, u32),
        lba: Lba,
        (offset_bytes, blocks): (u64, u32),
        out: &mut Outbox,
    ) {
        let io = self.start_data(command, lba, (offset_bytes, blocks));
        out.push(Effect::ReadData {
            io,
            command,
            at_blocks,
            blocks,
            offset_bytes,
        });
    }

    fn plan_read(&self, nsid: u32, range: BlockRange, generation: u32) -> SmallVec<[Run; 4]> {
        let lineage = self.lineage(nsid, generation);
        let mut runs: SmallVec<[Run; 4]> = SmallVec::new();
        let mut at_blocks = 0;
        for piece in range.split_at_multiples(EXTENT_BLOCKS) {
            let sources = sources(&lineage, piece.start());
            let first = u32::try_from(piece.start().0 % u64::from(EXTENT_BLOCKS)).expect("small");
            for block in first..first + piece.blocks().0 {
                let source = sources[block as usize].map(|extent| {
                    self.sb.geometry.extent_offset(extent)
                        + u64::from(block) * u64::from(BLOCK_BYTES)
                });
                let run = Run {
                    at_blocks,
                    blocks: 1,
                    source,
                };
                at_blocks += 1;
                if !runs
                    .last_mut()
                    .is_some_and(|last| last.absorb(&run, &self.sb.geometry))
                {
                    runs.push(run);
                }
            }
        }
        runs
    }
}

//! Hash requests: read piece by piece through one buffer, one request after the other. Comparing replicas
//! is background work; it must not take buffers from the data path.

use crate::api::{StoreEvent, StoreReply};
use crate::core::facts::StoreFault;
use crate::core::io::Answer;
use crate::hash::content_hash;
use crate::limits::{COMMANDS_MAX, HASH_BLOCKS_MAX, IO_BLOCKS_MAX};
use crate::store::Store;
use reactor::{BufMut, Driver};
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, EXTENT_BLOCKS, EXTENT_BYTES, Generation};
use shardmap::units::{Lba, Nsid};

/// A hash request on its way.
#[derive(Debug)]
pub(crate) struct HashJob {
    id: u64,
    nsid: Nsid,
    association: u64,
    range: BlockRange,
    generation: Generation,
    /// First block not yet asked for.
    next: Lba,
    hashes: Vec<u64>,
    fault: Option<StoreFault>,
}

impl HashJob {
    pub(crate) fn new(
        id: u64,
        (nsid, association): (Nsid, u64),
        range: BlockRange,
        generation: Generation,
    ) -> Self {
        let next = range.start();
        Self {
            id,
            nsid,
            association,
            range,
            generation,
            next,
            hashes: Vec::new(),
            fault: None,
        }
    }

    /// The next piece to read: at most one large buffer, cut at multiples of its size.
    fn take_piece(&mut self) -> Option<BlockRange> {
        let left = u32::try_from(self.range.end().0 - self.next.0).expect("at most the range");
        let rest = BlockRange::new(self.next, Blocks(left))?;
        let piece = rest.split_at_multiples(IO_BLOCKS_MAX).next()?;
        self.next = piece.end();
        Some(piece)
    }
}

impl Store {
    pub(crate) fn submit_hash(
        &mut self,
        io: &mut dyn Driver,
        job: HashJob,
        out: &mut Vec<StoreEvent>,
    ) {
        let size_blocks = self.core.slice(job.nsid).map_or(0, |s| s.spec.size_blocks);
        let unit = u64::from(EXTENT_BLOCKS);
        let (start, end) = (job.range.start().0, job.range.end().0);
        let aligned =
            start.is_multiple_of(unit) && (end.is_multiple_of(unit) || end == size_blocks);
        let result = if self.hashes.len() >= COMMANDS_MAX {
            Err(StoreFault::Busy { max: COMMANDS_MAX })
        } else if job.range.blocks().0 > HASH_BLOCKS_MAX {
            let (blocks, max) = (job.range.blocks().0, HASH_BLOCKS_MAX);
            Err(StoreFault::TooLong { blocks, max })
        } else if !aligned {
            Err(StoreFault::OutOfRange {
                range: job.range,
                size_blocks,
            })
        } else {
            Ok(())
        };
        match result {
            Err(fault) => out.push(StoreEvent::Reply {
                id: job.id,
                result: Err(fault),
            }),
            Ok(()) => {
                self.hashes.push_back(job);
                self.continue_hashes(io, out);
            }
        }
    }

    /// Reads on as long as the buffer is here; what is neither present nor on its way ends at once, so
    /// this is a loop and not a recursion.
    pub(crate) fn continue_hashes(&mut self, io: &mut dyn Driver, out: &mut Vec<StoreEvent>) {
        while let Some(job) = self.hashes.front_mut() {
            let piece = if job.fault.is_some() {
                None
            } else {
                job.take_piece()
            };
            let Some(piece) = piece else {
                if self.buffers.hash.is_none() {
                    return;
                }
                let job = self.hashes.pop_front().expect("just seen");
                let result = match job.fault {
                    Some(fault) => Err(fault),
                    None => Ok(StoreReply::Hashes(job.hashes)),
                };
                out.push(StoreEvent::Reply { id: job.id, result });
                continue;
            };
            let Some(mut rest) = self.buffers.hash.take() else {
                job.next = piece.start();
                return;
            };
            let (who, generation) = ((job.nsid, job.association), job.generation);
            let whole = IO_BLOCKS_MAX * BLOCK_BYTES;
            if piece.blocks().0 * BLOCK_BYTES < whole {
                let into = rest.split_to(piece.blocks().0 * BLOCK_BYTES);
                self.hash_rest = Some(rest);
                self.submit_compare(io, who, (piece, generation), into, out);
            } else {
                self.submit_compare(io, who, (piece, generation), rest, out);
            }
        }
    }

    /// A piece was read (or not); the buffer is here again.
    pub(crate) fn on_compared(&mut self, result: Result<Answer, StoreFault>, mut buffer: BufMut) {
        let job = self.hashes.front_mut().expect("it asked for the piece");
        match result {
            Ok(_) => {
                let chunks = buffer.bytes().chunks(EXTENT_BYTES as usize);
                job.hashes.extend(chunks.map(content_hash));
            }
            Err(fault) => job.fault = Some(fault),
        }
        if let Some(rest) = self.hash_rest.take() {
            buffer.join(rest);
        }
        self.buffers.hash = Some(buffer);
    }
}

//! Growth: the store takes in what its device has beyond what the superblock names, while it serves. What
//! is new is another tract, laid out behind the last one; nothing moves. Its description and its directory
//! pages go where nothing counts, the device is flushed, and one superblock makes it count (ADR 0014).
//!
//! ```text
//! Waiting ──no checkpoint──► Writing ──all there──► Flushing ──► Ready ──► Superblock ──► answered
//!                               └──a write failed──► refused: nothing has changed
//! ```
//! Checkpoints write superblocks, too: none begins while a growth is under way. So do failed writes: the two
//! wait for each other.

use super::Core;
use super::facts::{Growth, GrowthFault, StoreFault};
use super::format::geometry::{Geometry, Misfit};
use super::format::tracts::{self, GROWTHS_MAX};
use super::format::{directory, directory::PagePlace};
use super::io::{Answer, CommandId, Effect, IoKind, Outbox};
use super::verify::checksums_limit;
use crate::limits::CHECKPOINT_WRITES_MAX;
use shardmap::canary::{Mechanism, stands};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Writing,
    Flushing,
    Ready,
    Superblock,
}

/// A growth under way.
#[derive(Debug)]
pub(super) struct Growing {
    command: CommandId,
    stage: Stage,
    /// What the device will be.
    geometry: Geometry,
    facts: Growth,
    /// What is to be written, and where.
    writes: VecDeque<(u64, Vec<u8>)>,
    in_flight: usize,
    /// The errno of a write.
    failed: Option<i32>,
}

impl Core {
    /// The device has so many bytes now, or does not say.
    pub(super) fn grow(
        &mut self,
        id: CommandId,
        device_bytes: Result<u64, i32>,
    ) -> Result<(), StoreFault> {
        let device_bytes = device_bytes.map_err(|errno| GrowthFault::Device { errno })?;
        let now = &self.sb.geometry;
        let used_bytes = now.device_bytes;
        if self.growing.is_some() {
            return Err(GrowthFault::Running.into());
        }
        if device_bytes < used_bytes {
            return Err(GrowthFault::Shrank {
                device_bytes,
                used_bytes,
            }
            .into());
        }
        let geometry = now.grown(device_bytes).map_err(|misfit| match misfit {
            Misfit::TooSmall => GrowthFault::TooLittle {
                device_bytes,
                used_bytes,
            },
            Misfit::TooLarge | Misfit::Journal => GrowthFault::TooLarge { device_bytes },
        })?;
        if self.sb.growths >= GROWTHS_MAX {
            return Err(GrowthFault::TooOften.into());
        }
        let facts = Growth {
            device_bytes_before: used_bytes,
            device_bytes,
            capacity_bytes_before: now.capacity_bytes(),
            capacity_bytes: geometry.capacity_bytes(),
        };
        self.growing = Some(Growing {
            command: id,
            stage: Stage::Waiting,
            writes: self.writes_of_growth(&geometry),
            geometry,
            facts,
            in_flight: 0,
            failed: None,
        });
        Ok(())
    }

    /// The tract table, to the place that does not count, and new directory pages, all free.
    fn writes_of_growth(&self, grown: &Geometry) -> VecDeque<(u64, Vec<u8>)> {
        let (store, checkpoint) = (self.sb.store, self.sb.checkpoint);
        let table = (
            tracts::table_offset(self.sb.growths + 1),
            tracts::encode(store, grown.growths()),
        );
        let indexes = self.sb.geometry.directory_pages()..grown.directory_pages();
        let pages = indexes.map(|index| {
            let free = std::iter::empty::<PagePlace>();
            let bytes = directory::encode(store, index, checkpoint, free);
            let place = self.sb.directory_place(index);
            (grown.directory_page_offset(index, place), bytes)
        });
        std::iter::once(table).chain(pages).collect()
    }

    pub(super) fn continue_growth(&mut self, out: &mut Outbox) {
        let Some(growing) = &mut self.growing else {
            return;
        };
        if growing.stage == Stage::Waiting && self.checkpoint.is_none() {
            growing.stage = Stage::Writing;
        }
        if growing.stage == Stage::Ready && !self.failed.is_writing() {
            growing.stage = Stage::Superblock;
            self.sb.geometry = growing.geometry.clone();
            self.sb.growths += 1;
            return self.write_superblock(out);
        }
        if growing.stage != Stage::Writing {
            return;
        }
        while growing.in_flight < CHECKPOINT_WRITES_MAX
            && growing.failed.is_none()
            && let Some((offset_bytes, bytes)) = growing.writes.pop_front()
        {
            growing.in_flight += 1;
            let io = self.ios.start(IoKind::Growth);
            let durable = false;
            out.push(Effect::WriteMeta {
                io,
                offset_bytes,
                bytes,
                durable,
            });
        }
        if growing.in_flight > 0 {
            return;
        }
        match growing.failed {
            Some(errno) => self.end_growth(Err(GrowthFault::Device { errno }.into()), out),
            None if !stands(Mechanism::GrowthFlush) => {
                growing.stage = Stage::Ready;
                self.continue_growth(out);
            }
            None => {
                growing.stage = Stage::Flushing;
                // Even without a cache: the size of a file must be durable, too.
                let io = self.ios.start(IoKind::GrowthFlush);
                out.push(Effect::Flush { io });
            }
        }
    }

    /// Nothing counts yet: a failure harms nobody.
    pub(super) fn on_growth_io(&mut self, result: Result<(), i32>) {
        if let Some(growing) = &mut self.growing {
            growing.in_flight -= 1;
            growing.failed = growing.failed.or(result.err());
        }
    }

    /// All of it is durable: the superblock may make it count.
    pub(super) const fn on_growth_flushed(&mut self) {
        // `None`: poisoned meanwhile.
        if let Some(growing) = &mut self.growing {
            growing.stage = Stage::Ready;
        }
    }

    /// Whether the superblock that is being written is a growth's.
    pub(super) fn is_growth_switching(&self) -> bool {
        let growing = self.growing.as_ref();
        growing.is_some_and(|g| g.stage == Stage::Superblock)
    }

    /// The superblock is durable: what is new may be used.
    pub(super) fn finish_growth(&mut self, out: &mut Outbox) {
        let geometry = &self.sb.geometry;
        self.space.grow(geometry.extents());
        self.pages.grow(geometry.pages());
        if let Some(checksums) = &mut self.checksums {
            checksums.set_limit(checksums_limit(geometry));
        }
        let facts = self
            .growing
            .as_ref()
            .expect("it wrote the superblock")
            .facts;
        self.end_growth(Ok(Answer::Grown(facts)), out);
        self.retry_parked(out);
    }

    pub(super) fn end_growth(&mut self, result: Result<Answer, StoreFault>, out: &mut Outbox) {
        if let Some(Growing { command, .. }) = self.growing.take() {
            out.push(Effect::Answer { command, result });
        }
    }
}

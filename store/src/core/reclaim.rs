//! Extents on their way back: freed in memory, freed durably, out of reach of everything in flight, and
//! then into the pool, or trimmed; free.

use super::Core;
use super::io::{Effect, IoKind, Outbox};
use crate::limits::{TRIM_EXTENTS_MAX, TRIMS_MAX};
use shardmap::units::EXTENT_BYTES;
use std::collections::{BTreeSet, VecDeque};

/// Where an extent goes that nothing reaches any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A user gave it back: the device is to have it.
    Device,
    /// A merge or a deletion: the next layer will want some. What the pool has no room for goes to the
    /// device.
    Pool,
}

/// State of the way back.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    /// Extents given up and not yet free, at any stage.
    pub(super) waiting: u64,
    /// Durably freed; device operations of that turn may still be in flight at them.
    draining: VecDeque<(u64, Vec<u32>, Way)>,
    trim: BTreeSet<u32>,
    trims: usize,
}

impl Reclaim {
    pub(super) const fn is_trimming(&self) -> bool {
        self.trims > 0
    }
}

impl Core {
    pub(super) const fn not_yet_free(&self) -> u64 {
        self.reclaim.waiting
    }

    /// The journal says that these extents are free; what began before may still reach them.
    pub(super) fn quarantine(&mut self, extents: Vec<u32>, way: Way, out: &mut Outbox) {
        if extents.is_empty() {
            return;
        }
        let turn = self.data.next_turn();
        self.reclaim.draining.push_back((turn, extents, way));
        self.release_drained(out);
    }

    pub(super) fn release_drained(&mut self, out: &mut Outbox) {
        let mut released = false;
        while let Some((turn, ..)) = self.reclaim.draining.front() {
            if !self.data.is_over(*turn) {
                break;
            }
            let (_, extents, way) = self.reclaim.draining.pop_front().expect("just seen");
            for extent in extents {
                released |= self.give_back(extent, way);
            }
        }
        if released {
            self.retry_parked(out);
        }
    }

    /// Whether it is free now.
    fn give_back(&mut self, extent: u32, way: Way) -> bool {
        self.mend_extent(extent, u16::MAX);
        if way == Way::Pool && self.space.has_room_in_pool() {
            self.space.recycle(extent);
        } else if self.config.can_trim {
            self.reclaim.trim.insert(extent);
            return false;
        } else {
            self.space.release(extent);
        }
        self.reclaim.waiting -= 1;
        true
    }

    pub(super) fn start_trims(&mut self, out: &mut Outbox) {
        while self.reclaim.trims < TRIMS_MAX {
            let Some(first) = self.reclaim.trim.pop_first() else {
                return;
            };
            let mut count = 1;
            while count < TRIM_EXTENTS_MAX
                && self.reclaim.trim.contains(&(first + count))
                && self.sb.geometry.is_behind_the_last(first + count)
            {
                self.reclaim.trim.remove(&(first + count));
                count += 1;
            }
            self.reclaim.trims += 1;
            let io = self.ios.start(IoKind::Trim { first, count });
            let offset_bytes = self.sb.geometry.extent_offset(first);
            let len_bytes = u64::from(count) * u64::from(EXTENT_BYTES);
            out.push(Effect::Discard {
                io,
                offset_bytes,
                len_bytes,
            });
        }
    }

    /// A trim is advice: whether the device took it or not, the extents are free now.
    pub(super) fn on_trimmed(&mut self, first: u32, count: u32, out: &mut Outbox) {
        self.reclaim.trims -= 1;
        for extent in first..first + count {
            self.space.release(extent);
            self.reclaim.waiting -= 1;
        }
        self.retry_parked(out);
    }
}

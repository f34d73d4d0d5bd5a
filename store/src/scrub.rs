//! When the scrub reads: a few extents in a row, then a pause, so that a pass takes about as long as it
//! may and no second has more than its share. Nothing is due while the store is empty.

use crate::api::StoreEvent;
use crate::core::facts::{Scrubbed, StoreFault};
use crate::core::io::{Answer, Command, Event as CoreEvent};
use crate::counters::Sort;
use crate::limits::{SCRUB_EXTENTS_AT_ONCE, SCRUB_PAUSE_MAX};
use crate::store::{Body, Owner, Slot, Store};
use reactor::{BufMut, Driver, TimerId, Token};
use shardmap::units::{EXTENT_BYTES, Nsid};
use smallvec::SmallVec;
use std::time::Duration;

/// `Token::value` of the timer.
const SCRUB: u64 = u64::MAX - 1;

/// How a store is scrubbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPace {
    /// In how long all data shall have been read once.
    pub period: Duration,
    /// Not more than this, even if a pass takes longer then; in bytes per second.
    pub bytes_per_s_max: u64,
}

/// What the scrub of a store has found since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCounters {
    /// Passes that came to their end.
    pub passes: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Of those: no checksum was known (before), or they were being written.
    pub unknown: u64,
    /// Of those: the device did not read them.
    pub unreadable: u64,
    /// Of those: not what was written there.
    pub rotten: u64,
}

/// The scrub of an open store.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    pace: Option<ScrubPace>,
    timer: Option<TimerId>,
    /// Extents to be read before the next pause.
    left: u32,
    running: bool,
    /// The next extent is to be read.
    wanted: bool,
}

impl ScrubPace {
    /// The pause after so many bytes, in a store with so many bytes in use.
    fn pause(self, bytes: u64, used_bytes: u64) -> Duration {
        let period_s = self.period.as_secs().max(1);
        let rate = (used_bytes / period_s).clamp(1, self.bytes_per_s_max.max(1));
        let pause = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        pause.min(SCRUB_PAUSE_MAX)
    }
}

impl Store {
    /// Scrubs from now on, until it is stopped. What is found is told by [`StoreEvent::Rotten`].
    pub fn scrub(&mut self, io: &mut dyn Driver, pace: ScrubPace) {
        self.scrub.pace = Some(pace);
        if self.scrub.timer.is_none() && !self.scrub.running {
            self.pause_scrub(io, u64::from(SCRUB_EXTENTS_AT_ONCE * EXTENT_BYTES));
        }
    }

    fn pause_scrub(&mut self, io: &mut dyn Driver, bytes: u64) {
        let Some(pace) = self.scrub.pace else {
            return;
        };
        let usage = self.usage();
        let used_bytes = usage.capacity_bytes - usage.free_bytes;
        let pause = u64::try_from(pace.pause(bytes, used_bytes).as_nanos()).unwrap_or(u64::MAX);
        let token = Token {
            room: self.room,
            index: self.index,
            value: SCRUB,
        };
        self.scrub.timer = Some(io.arm(token, io.now_ns().saturating_add(pause)));
    }

    pub(crate) fn stop_scrub(&mut self, io: &mut dyn Driver) {
        self.scrub.pace = None;
        if let Some(timer) = self.scrub.timer.take() {
            io.disarm(timer);
        }
    }

    /// The store's only timer: the scrub goes on.
    pub(crate) fn on_timer(
        &mut self,
        io: &mut dyn Driver,
        token: Token,
        out: &mut Vec<StoreEvent>,
    ) {
        if token.value != SCRUB {
            return;
        }
        self.scrub.timer = None;
        if self.scrub.pace.is_some() && !self.scrub.running {
            self.scrub.left = SCRUB_EXTENTS_AT_ONCE;
            self.scrub.wanted = true;
            self.continue_scrub(io, out);
        }
    }

    /// Reads the next extent. Its answer comes with a completion, or at once at the end of a pass.
    fn scrub_next(&mut self, io: &mut dyn Driver, out: &mut Vec<StoreEvent>) {
        let Some(rest) = self.buffers.scrub.take() else {
            return;
        };
        self.scrub.running = true;
        let slot = Slot {
            owner: Owner::Scrub,
            sort: Sort::Control,
            bytes: 0,
            since_ns: io.now_ns(),
            body: Body::Read {
                parts: SmallVec::new(),
                rest,
            },
        };
        let id = self.reserve_beyond(slot);
        let event = CoreEvent::Submitted {
            id,
            nsid: Nsid(0),
            association: 0,
            command: Command::Scrub,
        };
        self.step(io, event, out);
    }

    /// An extent was scrubbed; the buffer is here again.
    pub(crate) fn on_scrubbed(
        &mut self,
        io: &mut dyn Driver,
        result: Result<Answer, StoreFault>,
        buffer: BufMut,
        out: &mut Vec<StoreEvent>,
    ) {
        self.buffers.scrub = Some(buffer);
        self.scrub.running = false;
        let tally = match result {
            Ok(Answer::Scrubbed(tally)) => tally,
            // Stopping, or too much to do: later.
            Ok(_) | Err(_) => {
                return self.pause_scrub(io, EXTENT_BYTES.into());
            }
        };
        let Some(tally) = tally else {
            self.counters.scrub.passes += 1;
            return self.pause_scrub(io, EXTENT_BYTES.into());
        };
        self.note_scrubbed(&tally, out);
        self.scrub.left -= 1;
        if self.scrub.left == 0 {
            self.pause_scrub(io, u64::from(SCRUB_EXTENTS_AT_ONCE * EXTENT_BYTES));
        } else {
            self.scrub.wanted = true;
        }
    }

    /// Goes on outside of the step that ended the extent before.
    pub(crate) fn continue_scrub(&mut self, io: &mut dyn Driver, out: &mut Vec<StoreEvent>) {
        while std::mem::take(&mut self.scrub.wanted) {
            self.scrub_next(io, out);
        }
    }

    fn note_scrubbed(&mut self, tally: &Scrubbed, out: &mut Vec<StoreEvent>) {
        let c = &mut self.counters.scrub;
        c.blocks += tally.blocks;
        c.unknown += tally.unknown;
        c.unreadable += tally.unreadable;
        c.rotten += tally.rotten;
        if tally.bad != 0 {
            let blocks = tally.found().collect();
            out.push(StoreEvent::Rotten { blocks });
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_pass_takes_its_period_unless_that_is_too_fast() {
        let pace = ScrubPace {
            period: Duration::from_secs(1000),
            bytes_per_s_max: 4 << 20,
        };
        let mib = |n: u64| n << 20;
        // 1000 MiB in 1000 s.
        assert_eq!(pace.pause(mib(1), mib(1000)), Duration::from_secs(1));
        assert_eq!(pace.pause(mib(1), mib(100_000)), Duration::from_millis(250));
        assert_eq!(pace.pause(mib(1), 0), SCRUB_PAUSE_MAX);
    }
}

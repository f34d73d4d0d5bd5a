//! Who waits for a buffer. Scarcity is backpressure: nothing is refused for it.

use super::limits::GRANTED_BYTES_MAX_DEFAULT;
use crate::proto::controller::BufferUse;
use reactor::{Arena, BufMut};
use std::collections::VecDeque;

/// A command that wants a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) connection: u32,
    pub(super) turn: u32,
    pub(super) slot: u16,
    pub(super) len_bytes: u32,
    pub(super) purpose: BufferUse,
}

/// Two queues, each first come first served. Data already sent to us and reads come first; asking
/// for more data comes second and never holds more than its share, so that hosts which are slow to
/// send what they were asked for cannot starve the others.
#[derive(Debug)]
pub(super) struct Buffers {
    urgent: VecDeque<Waiter>,
    grants: VecDeque<Waiter>,
    granted_bytes: u64,
    granted_bytes_max: u64,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            urgent: VecDeque::new(),
            grants: VecDeque::new(),
            granted_bytes: 0,
            granted_bytes_max: GRANTED_BYTES_MAX_DEFAULT,
        }
    }
}

impl Buffers {
    pub(super) fn new(granted_bytes_max: u64) -> Self {
        Self {
            granted_bytes_max,
            ..Self::default()
        }
    }

    /// A buffer now, or a place in the queue.
    pub(super) fn take(&mut self, arena: &Arena, waiter: Waiter) -> Option<BufMut> {
        if self.queue_of(waiter.purpose).is_empty()
            && let Some(buffer) = self.try_take(arena, &waiter)
        {
            return Some(buffer);
        }
        self.queue_of(waiter.purpose).push_back(waiter);
        None
    }

    /// The next waiter whose buffer is there now.
    pub(super) fn next(&mut self, arena: &Arena) -> Option<(Waiter, BufMut)> {
        for purpose in [BufferUse::InCapsule, BufferUse::R2t] {
            let Some(waiter) = self.queue_of(purpose).front().copied() else {
                continue;
            };
            if let Some(buffer) = self.try_take(arena, &waiter) {
                self.queue_of(purpose).pop_front();
                return Some((waiter, buffer));
            }
        }
        None
    }

    /// A grant's data is in, or its connection went.
    pub(super) fn grant_ended(&mut self, len_bytes: u32) {
        self.granted_bytes -= u64::from(len_bytes);
    }

    /// Forgets the waiters of a connection.
    pub(super) fn forget(&mut self, connection: u32) {
        self.urgent.retain(|waiter| waiter.connection != connection);
        self.grants.retain(|waiter| waiter.connection != connection);
    }

    fn queue_of(&mut self, purpose: BufferUse) -> &mut VecDeque<Waiter> {
        match purpose {
            BufferUse::InCapsule | BufferUse::Read => &mut self.urgent,
            BufferUse::R2t => &mut self.grants,
        }
    }

    fn try_take(&mut self, arena: &Arena, waiter: &Waiter) -> Option<BufMut> {
        let len_bytes = u64::from(waiter.len_bytes);
        let is_grant = waiter.purpose == BufferUse::R2t;
        if is_grant && self.granted_bytes + len_bytes > self.granted_bytes_max {
            return None;
        }
        let buffer = arena.take(waiter.len_bytes)?;
        self.granted_bytes += if is_grant { len_bytes } else { 0 };
        Some(buffer)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use reactor::ArenaConfig;

    fn waiter(slot: u16, purpose: BufferUse) -> Waiter {
        Waiter {
            connection: 0,
            turn: 0,
            slot,
            len_bytes: 4096,
            purpose,
        }
    }

    #[test]
    fn grants_never_take_more_than_their_share() {
        let config = ArenaConfig {
            slot_counts: [4, 0, 0],
            huge_pages: false,
        };
        let arena = Arena::new(&config).unwrap();
        let mut buffers = Buffers::new(8192);
        let held: Vec<_> = (0..3)
            .map(|slot| buffers.take(&arena, waiter(slot, BufferUse::R2t)))
            .collect();
        assert_eq!(held.iter().flatten().count(), 2);
        assert!(
            buffers
                .take(&arena, waiter(3, BufferUse::InCapsule))
                .is_some()
        );
        assert!(buffers.next(&arena).is_none());
        buffers.grant_ended(4096);
        assert_eq!(buffers.next(&arena).unwrap().0.slot, 2);
    }

    #[test]
    fn nobody_overtakes_in_a_queue() {
        let config = ArenaConfig {
            slot_counts: [1, 0, 0],
            huge_pages: false,
        };
        let arena = Arena::new(&config).unwrap();
        let mut buffers = Buffers::default();
        let held = buffers.take(&arena, waiter(0, BufferUse::Read));
        assert!(
            buffers
                .take(&arena, waiter(1, BufferUse::InCapsule))
                .is_none()
        );
        drop(held);
        assert!(buffers.take(&arena, waiter(2, BufferUse::Read)).is_none());
        assert_eq!(buffers.next(&arena).unwrap().0.slot, 1);
        buffers.forget(0);
        assert!(buffers.next(&arena).is_none());
    }
}

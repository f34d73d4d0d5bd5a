//! Deadlines, kept in order. Nothing is armed in the kernel: a driver sleeps until the first one.

use crate::driver::{TimerId, Token};
use crate::slab::{Key, Slab};
use std::collections::BTreeMap;

struct Armed {
    at_ns: u64,
    sequence: u64,
    token: Token,
}

/// The timers of one driver. Equal moments fire in the order in which they were armed.
pub(crate) struct Timers {
    armed: Slab<Armed>,
    order: BTreeMap<(u64, u64), Key>,
    next_sequence: u64,
}

impl Timers {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            armed: Slab::new(limit),
            order: BTreeMap::new(),
            next_sequence: 0,
        }
    }

    /// Panics if the owner arms more than the limit: timers are bounded by what is in flight.
    pub(crate) fn arm(&mut self, token: Token, at_ns: u64) -> TimerId {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let key = self
            .armed
            .insert(Armed {
                at_ns,
                sequence,
                token,
            })
            .unwrap_or_else(|_| panic!("reactor: more timers than the limit"));
        assert!(self.order.insert((at_ns, sequence), key).is_none());
        TimerId(key.to_u64())
    }

    pub(crate) fn disarm(&mut self, timer: TimerId) {
        if let Some(armed) = self.armed.remove(Key::from_u64(timer.0)) {
            assert!(self.order.remove(&(armed.at_ns, armed.sequence)).is_some());
        }
    }

    /// The nearest deadline.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.order.first_key_value().map(|((at_ns, _), _)| *at_ns)
    }

    /// The next timer that is due at `now_ns`. One at a time, so that a handler's `disarm` of the
    /// next one still counts.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<(TimerId, Token)> {
        let first = self.order.first_entry()?;
        if first.key().0 > now_ns {
            return None;
        }
        let key = first.remove();
        let armed = self.armed.remove(key).expect("ordered timers are armed");
        Some((TimerId(key.to_u64()), armed.token))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn token(value: u64) -> Token {
        Token {
            room: 0,
            index: 0,
            value,
        }
    }

    fn fire(timers: &mut Timers, now_ns: u64) -> Vec<u64> {
        std::iter::from_fn(|| timers.pop_due(now_ns))
            .map(|(_, token)| token.value)
            .collect()
    }

    #[test]
    fn timers_fire_by_moment_and_then_by_arming() {
        let mut timers = Timers::new(8);
        for (value, at_ns) in [(0, 30), (1, 10), (2, 10), (3, 20)] {
            timers.arm(token(value), at_ns);
        }
        assert_eq!(timers.next_ns(), Some(10));
        assert_eq!(fire(&mut timers, 20), [1, 2, 3]);
        assert_eq!(fire(&mut timers, 29), []);
        assert_eq!(fire(&mut timers, 30), [0]);
        assert_eq!(timers.next_ns(), None);
    }

    #[test]
    fn a_disarmed_timer_never_fires_and_its_id_stays_dead() {
        let mut timers = Timers::new(1);
        let first = timers.arm(token(1), 5);
        timers.disarm(first);
        let second = timers.arm(token(2), 5);
        timers.disarm(first);
        assert_ne!(first, second);
        assert_eq!(fire(&mut timers, 5), [2]);
    }
}

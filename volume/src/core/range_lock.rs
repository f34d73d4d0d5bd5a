//! Orders overlapping reads, writes and copies (replication protocol §4).
//!
//! Locks are granted in the order of arrival among those that conflict: a later request never
//! passes an earlier one it overlaps with, so nobody starves. Two conflict if they share a block
//! and not both are shared. Ranges are exact; nothing is rounded up, so neighbours do not wait.

use shardmap::canary::{Mechanism, stands};
use shardmap::units::{BlockRange, RegionIndex};

use super::event::{CopyId, OpId};
use std::collections::VecDeque;

/// Who holds or waits for a lock. Each has at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    Host(OpId),
    Copy(CopyId),
    Region(RegionIndex),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    holder: Holder,
    range: BlockRange,
    exclusive: bool,
    /// Conflicting entries that came earlier; zero means granted.
    behind: u32,
}

impl Entry {
    fn conflicts(&self, range: BlockRange, exclusive: bool) -> bool {
        (self.exclusive || exclusive) && self.range.overlaps(range) && stands(Mechanism::RangeLock)
    }
}

/// The queue of all holders and waiters, by arrival.
#[derive(Debug, Default)]
pub(super) struct RangeLock {
    entries: VecDeque<Entry>,
}

impl RangeLock {
    /// Queues; true if granted at once.
    pub(super) fn acquire(&mut self, holder: Holder, range: BlockRange, exclusive: bool) -> bool {
        debug_assert!(
            self.entries.iter().all(|e| e.holder != holder),
            "{holder:?} locks twice"
        );
        let conflicts = self
            .entries
            .iter()
            .filter(|e| e.conflicts(range, exclusive))
            .count();
        let behind = u32::try_from(conflicts).expect("bounded by HOST_OPS_MAX");
        self.entries.push_back(Entry {
            holder,
            range,
            exclusive,
            behind,
        });
        behind == 0
    }

    /// For copies to a resilver target, which nobody reads: granted beside reads and ahead of
    /// everybody who waits, refused while a write there is under way. A copy must not queue: what
    /// it would wait for may itself wait for the target to become whole.
    pub(super) fn try_ahead(&mut self, holder: Holder, range: BlockRange) -> bool {
        if !stands(Mechanism::CopyLock) {
            return true; // holds nothing
        }
        let busy = |e: &Entry| e.behind == 0 && e.conflicts(range, false);
        if self.entries.iter().any(busy) {
            return false;
        }
        for entry in &mut self.entries {
            entry.behind += u32::from(entry.conflicts(range, false));
        }
        self.entries.push_front(Entry {
            holder,
            range,
            exclusive: false,
            behind: 0,
        });
        true
    }

    /// Lets go, granted or not; pushes whom that admits to `granted`, in order of arrival.
    pub(super) fn release(&mut self, holder: Holder, granted: &mut VecDeque<Holder>) {
        let at = self.entries.iter().position(|e| e.holder == holder);
        if at.is_none() && !stands(Mechanism::CopyLock) {
            return;
        }
        let at = at.expect("a holder releases what it acquired");
        let gone = self.entries.remove(at).expect("found above");
        for entry in self.entries.range_mut(at..) {
            if gone.conflicts(entry.range, entry.exclusive) {
                assert!(entry.behind > 0, "{:?} waited for nobody", entry.holder);
                entry.behind -= 1;
                if entry.behind == 0 {
                    granted.push_back(entry.holder);
                }
            }
        }
    }

    /// Holders and waiters.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Panics if two granted entries conflict.
    pub(super) fn check(&self) {
        let granted: Vec<_> = self.entries.iter().filter(|e| e.behind == 0).collect();
        for (i, a) in granted.iter().enumerate() {
            for b in &granted[i + 1..] {
                assert!(!a.conflicts(b.range, b.exclusive), "both hold: {a:?} {b:?}");
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use shardmap::units::{Blocks, Lba};

    fn host(id: u64) -> Holder {
        Holder::Host(OpId(id))
    }

    fn range(start: u64, blocks: u32) -> BlockRange {
        BlockRange::new(Lba(start), Blocks(blocks)).unwrap()
    }

    fn release(lock: &mut RangeLock, holder: Holder) -> Vec<Holder> {
        let mut granted = VecDeque::new();
        lock.release(holder, &mut granted);
        granted.into()
    }

    #[test]
    fn readers_share_and_a_waiting_writer_is_not_passed_by_later_readers() {
        let mut lock = RangeLock::default();
        assert!(lock.acquire(host(1), range(0, 4), false));
        assert!(lock.acquire(host(2), range(0, 4), false));
        assert!(!lock.acquire(host(3), range(3, 1), true));
        assert!(!lock.acquire(host(4), range(3, 2), false));
        assert!(lock.acquire(host(5), range(4, 1), false));
        assert_eq!(release(&mut lock, host(1)), []);
        assert_eq!(release(&mut lock, host(2)), [host(3)]);
        assert_eq!(release(&mut lock, host(3)), [host(4)]);
    }

    #[test]
    fn neighbours_do_not_wait_for_each_other() {
        let mut lock = RangeLock::default();
        assert!(lock.acquire(host(1), range(0, 1), true));
        assert!(lock.acquire(host(2), range(1, 1), true));
    }

    #[test]
    fn a_copy_passes_who_waits_and_not_a_write_under_way() {
        let copy = |id| Holder::Copy(CopyId(id));
        let mut lock = RangeLock::default();
        assert!(lock.acquire(host(1), range(0, 4), true));
        assert!(!lock.acquire(host(2), range(2, 4), true));
        assert!(!lock.try_ahead(copy(1), range(3, 2)));
        assert!(lock.try_ahead(copy(2), range(4, 1)));
        assert_eq!(release(&mut lock, host(1)), [], "the copy is in the way");
        assert_eq!(release(&mut lock, copy(2)), [host(2)]);
        assert!(lock.acquire(host(3), range(8, 1), false));
        assert!(
            lock.try_ahead(copy(3), range(8, 1)),
            "reads and copies share"
        );
    }

    proptest! {
        #[test]
        fn everyone_is_granted_once_and_never_beside_a_conflict(
            asks in proptest::collection::vec((0u64..20, 1u32..6, any::<bool>()), 1..40),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let mut lock = RangeLock::default();
            let mut held = Vec::new();
            let mut grants = 0;
            for (id, (start, blocks, exclusive)) in asks.iter().enumerate() {
                if lock.acquire(host(id as u64), range(*start, *blocks), *exclusive) {
                    held.push(host(id as u64));
                    grants += 1;
                }
                lock.check();
            }
            for pick in order {
                if held.is_empty() {
                    break;
                }
                let gone = held.swap_remove(pick.index(held.len()));
                let more = release(&mut lock, gone);
                grants += more.len();
                held.extend(more);
                lock.check();
            }
            prop_assert_eq!(grants, asks.len());
            prop_assert_eq!(lock.len(), 0);
        }
    }
}

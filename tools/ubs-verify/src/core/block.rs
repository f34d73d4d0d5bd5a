//! What one block may hold: the writes that a read may return and those that a crash may bring back.
//!
//! Write `e` *precedes* `v` if `v` was issued after `e` had taken effect, or if a read that was issued
//! after `e` had taken effect returned `v`. From then on:
//! * a read issued after `v` took effect cannot return `e`;
//! * a crash cannot bring back `e` if `v` is durable.

use super::record::{Ending, Handover, OpId, Sight};
use shardmap::units::Generation;

/// Number of a step of the history.
pub(super) type Time = u64;
const NOT_YET: Time = Time::MAX;

/// What a write leaves in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Whatever was there before the history began.
    Initial,
    Zero,
    Stamped(Generation),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// `None`: was there at the beginning.
    pub(super) op: Option<OpId>,
    pub(super) held: Held,
    issued: Time,
    /// It has taken effect by then, if ever.
    applied_by: Time,
    /// Success was reported then.
    completed: Time,
    /// No read issued later returns it.
    gone_at: Time,
    /// It did take effect; one that failed or is in flight only may have.
    sure: bool,
    /// Durable whatever was flushed.
    durable: bool,
    /// One of several that an unclean detach left possible.
    undecided: bool,
    /// A read told that this one came later.
    overruled_by: Option<OpId>,
}

impl Entry {
    pub(super) const fn start(held: Held) -> Self {
        Self {
            op: None,
            held,
            issued: 0,
            applied_by: 0,
            completed: 0,
            gone_at: NOT_YET,
            sure: true,
            durable: true,
            undecided: false,
            overruled_by: None,
        }
    }

    const fn issued(op: OpId, held: Held, now: Time) -> Self {
        Self {
            op: Some(op),
            held,
            issued: now,
            applied_by: NOT_YET,
            completed: NOT_YET,
            gone_at: NOT_YET,
            sure: false,
            durable: false,
            undecided: false,
            overruled_by: None,
        }
    }

    pub(super) fn shows(&self, sight: Sight) -> bool {
        match (self.held, sight) {
            (Held::Initial, Sight::Initial | Sight::Zero) | (Held::Zero, Sight::Zero) => true,
            (Held::Stamped(_), Sight::Written(op)) => self.op == Some(op),
            (Held::Initial, Sight::Written(_))
            | (Held::Zero, Sight::Initial | Sight::Written(_))
            | (Held::Stamped(_), Sight::Initial | Sight::Zero) => false,
        }
    }

    const fn in_flight(&self) -> bool {
        self.applied_by == NOT_YET
    }

    const fn is_durable(&self, durable_before: Time) -> bool {
        self.sure && (self.durable || self.completed < durable_before)
    }
}

/// What a legal read was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) kind: HitKind,
    /// More than one content was possible: the answer bears on later reads.
    pub(super) decides: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HitKind {
    Newest,
    OneOfSeveral,
    OlderAfterCrash,
}

#[derive(Clone, Debug)]
pub(super) struct Block {
    entries: Vec<Entry>,
    /// Newest write that was read since the last unclean detach.
    pub(super) last_seen: Option<OpId>,
}

impl Block {
    pub(super) fn start(held: Held) -> Self {
        Self {
            entries: vec![Entry::start(held)],
            last_seen: None,
        }
    }

    /// What a read issued at `since` may return, oldest first.
    pub(super) fn legal(&self, since: Time) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| e.gone_at >= since)
    }

    pub(super) fn generation_of(&self, op: OpId) -> Option<Generation> {
        let entry = self.entries.iter().find(|e| e.op == Some(op))?;
        match entry.held {
            Held::Stamped(generation) => Some(generation),
            Held::Initial | Held::Zero => None,
        }
    }

    /// Whether a read issued now could return one content only.
    pub(super) fn is_settled(&self) -> bool {
        let mut open = self.entries.iter().filter(|e| e.gone_at == NOT_YET);
        open.next().is_some_and(|e| !e.in_flight()) && open.next().is_none()
    }

    pub(super) fn on_issued(&mut self, op: OpId, held: Held, now: Time) {
        self.entries.push(Entry::issued(op, held, now));
    }

    pub(super) fn on_ended(&mut self, op: OpId, how: Ending, fua: bool, now: Time) {
        let Some(at) = self.entries.iter().position(|e| e.op == Some(op)) else {
            return; // overwritten meanwhile, seen by a read, and forgotten
        };
        match how {
            Ending::Ok => {
                self.entries[at].completed = now;
                self.entries[at].durable |= fua;
                self.took_effect(at, now);
            }
            Ending::Failed => {
                let entry = &mut self.entries[at];
                entry.applied_by = entry.applied_by.min(now);
            }
        }
    }

    /// Everything that had taken effect before this write was issued precedes it.
    fn took_effect(&mut self, at: usize, now: Time) {
        let entry = &mut self.entries[at];
        entry.sure = true;
        entry.applied_by = entry.applied_by.min(now);
        let (issued, applied_by) = (entry.issued, entry.applied_by);
        for other in &mut self.entries {
            if other.applied_by < issued {
                other.gone_at = other.gone_at.min(applied_by);
            }
        }
    }

    /// A read issued at `since` found `sight`; `None` if no legal entry shows it.
    pub(super) fn on_read(&mut self, sight: Sight, since: Time, now: Time) -> Option<Hit> {
        let is_hit = |e: &Entry| e.gone_at >= since && e.shows(sight);
        let hits: Vec<usize> = (0..self.entries.len())
            .filter(|i| is_hit(&self.entries[*i]))
            .collect();
        let newest = *hits.last()?;
        let kind = self.kind_of_hit(newest, since);
        let decides = self.legal(since).count() > 1 || self.entries[newest].in_flight();
        if hits.len() == 1 {
            self.took_effect(newest, now);
            self.last_seen = self.last_seen.max(self.entries[newest].op);
        }
        self.overrule(&hits, since, now);
        Some(Hit { kind, decides })
    }

    fn kind_of_hit(&self, at: usize, since: Time) -> HitKind {
        let hit = &self.entries[at];
        let newer = |e: &&Entry| e.op > hit.op;
        if hit.undecided && self.legal(since).filter(newer).any(|e| e.undecided) {
            HitKind::OlderAfterCrash
        } else if self.legal(since).filter(|e| !e.undecided).count() > 1 || hit.in_flight() {
            HitKind::OneOfSeveral
        } else {
            HitKind::Newest
        }
    }

    /// What had taken effect before the read and was not found precedes what was found.
    fn overrule(&mut self, hits: &[usize], since: Time, now: Time) {
        let entries = &self.entries;
        let applied_by = hits.iter().map(|i| entries[*i].applied_by.min(now)).max();
        let decided = hits.iter().all(|i| entries[*i].undecided);
        let (applied_by, single) = match (applied_by, hits) {
            (Some(by), [one]) => (by, entries[*one].op),
            (Some(by), _) => (by, None),
            (None, _) => return,
        };
        let mut index = 0;
        self.entries.retain_mut(|e| {
            let hit = hits.contains(&index);
            index += 1;
            if hit {
                if decided && hits.len() == 1 {
                    (e.undecided, e.durable) = (false, true);
                }
                return true;
            }
            if e.applied_by >= since {
                return true;
            }
            e.gone_at = e.gone_at.min(applied_by);
            e.overruled_by = e.overruled_by.or(single);
            let never_happened = !e.sure && e.issued > applied_by;
            !(never_happened || decided && e.undecided)
        });
    }

    /// Whether a crash may bring `e` back.
    fn is_survivable(&self, e: &Entry, durable_before: Time) -> bool {
        let superseded = |v: &Entry| {
            v.is_durable(durable_before)
                && (e.applied_by < v.issued || e.overruled_by.is_some() && e.overruled_by == v.op)
        };
        let orphaned = e
            .overruled_by
            .is_some_and(|op| !self.entries.iter().any(|v| v.op == Some(op)));
        !orphaned && !self.entries.iter().any(superseded)
    }

    /// Forgets what neither a read nor a crash can bring up again.
    pub(super) fn prune(&mut self, oldest_read: Time, durable_before: Time) {
        if self.entries.len() == 1 {
            return;
        }
        let before = self.clone();
        self.entries
            .retain(|e| e.gone_at >= oldest_read || before.is_survivable(e, durable_before));
    }

    pub(super) fn on_handed_over(&mut self, how: Handover, now: Time, durable_before: Time) {
        match how {
            Handover::Clean | Handover::Continued => {
                for e in &mut self.entries {
                    e.applied_by = e.applied_by.min(now);
                }
            }
            Handover::Unclean => self.on_crash(now, durable_before),
        }
    }

    fn on_crash(&mut self, now: Time, durable_before: Time) {
        let before = self.clone();
        self.entries
            .retain(|e| before.is_survivable(e, durable_before));
        assert!(!self.entries.is_empty(), "something always survives");
        let undecided = self.entries.len() > 1;
        for e in &mut self.entries {
            *e = Entry {
                op: e.op,
                held: e.held,
                applied_by: now,
                undecided,
                durable: !undecided,
                sure: !undecided,
                ..Entry::start(e.held)
            };
            if undecided {
                e.completed = NOT_YET;
            }
        }
        self.last_seen = None;
    }
}

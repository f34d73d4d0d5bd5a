//! One block as a set of worlds: everything that may have happened, spelled out.

use std::collections::{BTreeMap, BTreeSet};

/// Index of a write; 0 is what was there at the beginning.
pub(super) type Write = usize;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    /// What an unclean detach left: one of these, decided when it is first read.
    base: BTreeSet<Write>,
    /// Writes that took effect since, in order.
    applied: Vec<Write>,
    pending: BTreeSet<Write>,
    /// Open reads and what they will return.
    reads: BTreeMap<usize, Option<Write>>,
}

#[derive(Clone, Debug)]
pub(super) struct Dull {
    worlds: BTreeSet<World>,
    durable: BTreeSet<Write>,
    completed: BTreeSet<Write>,
}

impl Dull {
    pub(super) fn new() -> Self {
        let world = World {
            base: BTreeSet::from([0]),
            applied: Vec::new(),
            pending: BTreeSet::new(),
            reads: BTreeMap::new(),
        };
        Self {
            worlds: BTreeSet::from([world]),
            durable: BTreeSet::new(),
            completed: BTreeSet::new(),
        }
    }

    /// Adds every world in which something in flight has happened by now.
    fn let_happen(&mut self) {
        let mut todo: Vec<World> = self.worlds.iter().cloned().collect();
        while let Some(world) = todo.pop() {
            let mut next = Vec::new();
            for write in &world.pending {
                let mut other = world.clone();
                other.pending.remove(write);
                other.applied.push(*write);
                next.push(other);
            }
            for (read, _) in world.reads.iter().filter(|(_, found)| found.is_none()) {
                let now: Vec<Write> = match world.applied.last() {
                    Some(last) => vec![*last],
                    None => world.base.iter().copied().collect(),
                };
                for write in now {
                    let mut other = world.clone();
                    other.reads.insert(*read, Some(write));
                    if other.applied.is_empty() {
                        other.base = BTreeSet::from([write]);
                    }
                    next.push(other);
                }
            }
            for world in next {
                if self.worlds.insert(world.clone()) {
                    todo.push(world);
                }
            }
        }
    }

    fn change(&mut self, change: impl Fn(&mut World)) {
        let worlds = std::mem::take(&mut self.worlds).into_iter();
        self.worlds = worlds
            .map(|mut world| {
                change(&mut world);
                world
            })
            .collect();
    }

    pub(super) fn write_issued(&mut self, write: Write) {
        self.change(|w| assert!(w.pending.insert(write)));
    }

    pub(super) fn write_completed(&mut self, write: Write, fua: bool) {
        self.let_happen();
        self.worlds.retain(|w| w.applied.contains(&write));
        self.completed.insert(write);
        if fua {
            self.durable.insert(write);
        }
    }

    pub(super) fn write_failed(&mut self, write: Write) {
        self.let_happen();
        self.change(|w| w.pending.retain(|other| *other != write));
    }

    pub(super) fn completed(&self) -> BTreeSet<Write> {
        self.completed.clone()
    }

    pub(super) fn flushed(&mut self, writes: &BTreeSet<Write>) {
        self.durable.extend(writes);
    }

    pub(super) fn read_issued(&mut self, read: usize) {
        self.change(|w| assert_eq!(w.reads.insert(read, None), None));
    }

    /// What the read may return if it ends now.
    pub(super) fn may_return(&mut self, read: usize) -> BTreeSet<Write> {
        self.let_happen();
        self.worlds.iter().filter_map(|w| w.reads[&read]).collect()
    }

    /// The read ends with one of `these`, which look alike.
    pub(super) fn returned(&mut self, read: usize, these: &BTreeSet<Write>) {
        let fits = |w: &World| w.reads[&read].is_some_and(|found| these.contains(&found));
        self.worlds.retain(fits);
        assert!(!self.worlds.is_empty(), "only what it may return");
        self.change(|w| w.reads.retain(|other, _| *other != read));
    }

    pub(super) fn continued(&mut self) {
        self.let_happen();
        self.change(|w| {
            w.pending.clear();
            w.reads.clear();
        });
    }

    pub(super) fn detached(&mut self) {
        self.continued();
        self.durable.extend(&self.completed);
    }

    pub(super) fn crashed(&mut self) {
        self.let_happen();
        let durable = self.durable.clone();
        self.change(|w| {
            let last = w.applied.iter().rposition(|write| durable.contains(write));
            let mut left: BTreeSet<Write> = match last {
                Some(at) => w.applied[at..].iter().copied().collect(),
                None => w.base.iter().chain(&w.applied).copied().collect(),
            };
            left.append(&mut w.pending);
            w.base = left;
            w.applied.clear();
            w.reads.clear();
        });
    }
}

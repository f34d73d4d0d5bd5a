//! What may be read: per slice and generation the values each block may have, from the last one known
//! durable to the newest. A block that a generation has not touched is its parent's.

use super::device::Content;
use crate::core::facts::SliceSpec;
use shardmap::units::{BlockRange, Generation};
use std::collections::{BTreeMap, BTreeSet};

/// One value a block may have in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The parent's.
    Absent,
    Data,
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    /// Of the command that wrote it; zero: none.
    number: u64,
    what: What,
}

const UNTOUCHED: Version = Version {
    number: 0,
    what: What::Absent,
};

/// What a block may hold, in order.
#[derive(Clone, Debug)]
struct History {
    versions: Vec<Version>,
    /// The last completed one.
    current: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            versions: vec![UNTOUCHED],
            current: 0,
        }
    }
}

impl History {
    fn forget_before(&mut self, number: u64) {
        self.versions.retain(|v| v.number >= number);
    }

    fn current(&self) -> Version {
        let current = self.versions.iter().find(|v| v.number == self.current);
        *current.expect("the current version is always legal")
    }
}

type Layer = BTreeMap<u64, History>;

/// A generation.
#[derive(Clone, Debug, Default)]
struct Generated {
    pending: bool,
    layer: Layer,
}

/// All slices.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    /// By slice and generation; the last of a slice is its head.
    layers: BTreeMap<(u32, u32), Generated>,
    /// Slices that are clones, and the snapshot of what they begin with.
    parents: BTreeMap<u32, (u32, u32)>,
    /// Block by version number: where commands in flight write.
    in_flight: BTreeMap<u64, (u32, BlockRange)>,
}

pub(super) fn data(nsid: u32, lba: u64, version: u64) -> Content {
    let mut content = nsid.to_le_bytes().to_vec();
    content.extend(lba.to_le_bytes());
    content.extend(version.to_le_bytes());
    content
}

/// Slice, block and version of a content.
pub(super) fn written(content: &Content) -> (u32, u64, u64) {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let nsid = u32::from_le_bytes(content[..4].try_into().expect("four bytes"));
    (nsid, number(&content[4..12]), number(&content[12..]))
}

impl Model {
    fn of(&self, nsid: u32) -> impl DoubleEndedIterator<Item = (u32, &Generated)> {
        let all = self.layers.range((nsid, 0)..=(nsid, u32::MAX));
        all.map(|((_, generation), generated)| (*generation, generated))
    }

    pub(super) fn head(&self, nsid: u32) -> u32 {
        self.of(nsid).next_back().map_or(1, |(head, _)| head)
    }

    pub(super) fn pending(&self, nsid: u32) -> Option<u32> {
        self.of(nsid).find(|(_, g)| g.pending).map(|(g, _)| g)
    }

    /// Complete snapshots.
    pub(super) fn snapshots(&self, nsid: u32) -> Vec<u32> {
        let head = self.head(nsid);
        let snapshots = self.of(nsid).filter(|(g, s)| *g != head && !s.pending);
        snapshots.map(|(g, _)| g).collect()
    }

    pub(super) fn generations(&self, nsid: u32) -> BTreeMap<u32, bool> {
        let mut all: BTreeMap<_, _> = self.of(nsid).map(|(g, s)| (g, s.pending)).collect();
        all.entry(self.head(nsid)).or_insert(false);
        all
    }

    pub(super) fn resolve(&self, nsid: u32, generation: Generation) -> u32 {
        if generation.0 == 0 {
            self.head(nsid)
        } else {
            generation.0
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn keep_slices(&mut self, nsids: &BTreeSet<u32>) {
        self.layers.retain(|(nsid, _), _| nsids.contains(nsid));
        self.parents.retain(|nsid, _| nsids.contains(nsid));
        self.in_flight.clear();
    }

    /// All slices.
    pub(super) fn slices(&self) -> BTreeSet<u32> {
        let touched = self.layers.keys().map(|(nsid, _)| *nsid);
        touched.chain(self.parents.keys().copied()).collect()
    }

    /// A slice was made, perhaps a clone.
    pub(super) fn create(&mut self, spec: &SliceSpec) {
        if self.of(spec.nsid.0).next().is_none() {
            self.layers.entry((spec.nsid.0, 1)).or_default();
        }
        if let Some(parent) = spec.parent {
            let parent = (parent.nsid.0, parent.generation.0);
            self.parents.insert(spec.nsid.0, parent);
        }
    }

    pub(super) fn remove(&mut self, nsid: u32) {
        self.layers.retain(|(n, _), _| *n != nsid);
        self.parents.remove(&nsid);
    }

    /// Whether clones show the generation, or any of the slice.
    pub(super) fn has_clones(&self, nsid: u32, generation: Option<u32>) -> bool {
        let shows =
            |(n, g): &(u32, u32)| *n == nsid && generation.is_none_or(|wanted| wanted == *g);
        self.parents.values().any(shows)
    }

    pub(super) fn begin(&mut self, nsid: u32, head: u32) {
        let before = self.head(nsid);
        if head > before {
            self.layers.entry((nsid, before)).or_default().pending = true;
            self.layers.entry((nsid, head)).or_default();
        }
    }

    /// The answer may come after that of the generation's deletion.
    pub(super) fn complete(&mut self, nsid: u32, generation: u32) {
        if let Some(completed) = self.layers.get_mut(&(nsid, generation)) {
            completed.pending = false;
        }
    }

    /// What only the dropped generation had is the next one's.
    pub(super) fn drop(&mut self, nsid: u32, generation: u32) {
        let Some(dropped) = self.layers.remove(&(nsid, generation)) else {
            return;
        };
        let next = self.layers.range_mut((nsid, generation)..).next();
        let heir = &mut next.expect("there is a head").1.layer;
        for (lba, older) in dropped.layer {
            let history = heir.entry(lba).or_default();
            if let Some(at) = history.versions.iter().position(|v| *v == UNTOUCHED) {
                history.versions.splice(at..=at, older.versions);
            }
            if history.current == 0 {
                history.current = older.current;
            }
        }
    }

    fn history(&mut self, (nsid, generation): (u32, u32), lba: u64) -> &mut History {
        let generated = self.layers.entry((nsid, generation)).or_default();
        generated.layer.entry(lba).or_default()
    }

    pub(super) fn submitted(
        &mut self,
        key: (u32, u32),
        range: BlockRange,
        number: u64,
        zero: bool,
    ) {
        let what = if zero { What::Zero } else { What::Data };
        for lba in range.start().0..range.end().0 {
            self.history(key, lba)
                .versions
                .push(Version { number, what });
        }
        self.in_flight.insert(number, (key.1, range));
    }

    pub(super) fn refused(&mut self, nsid: u32, number: u64) {
        let Some((generation, range)) = self.in_flight.remove(&number) else {
            return;
        };
        for lba in range.start().0..range.end().0 {
            let history = self.history((nsid, generation), lba);
            history.versions.retain(|v| v.number != number);
        }
    }

    pub(super) fn done(&mut self, nsid: u32, number: u64, fua: bool) {
        let (generation, range) = self.in_flight.remove(&number).expect("submitted");
        for lba in range.start().0..range.end().0 {
            let history = self.history((nsid, generation), lba);
            history.current = number;
            if fua {
                history.forget_before(number);
            }
        }
    }

    /// The write or zero of a block that completed last.
    pub(super) fn newest(&self, key: (u32, u32), lba: u64) -> u64 {
        let generated = self.layers.get(&key);
        let history = generated.and_then(|g| g.layer.get(&lba));
        history.map_or(0, |history| history.current)
    }

    /// The completed version of every block.
    pub(super) fn completed(&self, nsid: u32) -> BTreeMap<(u32, u64), u64> {
        let layers = self.of(nsid);
        layers
            .flat_map(|(g, s)| s.layer.iter().map(move |(lba, h)| ((g, *lba), h.current)))
            .collect()
    }

    pub(super) fn flushed(&mut self, nsid: u32, covers: &BTreeMap<(u32, u64), u64>) {
        for ((generation, lba), number) in covers {
            // A generation that was dropped meanwhile is its heir's: nothing is said about that one.
            if let Some(generated) = self.layers.get_mut(&(nsid, *generation)) {
                let history = generated.layer.get_mut(lba).expect("never forgotten");
                history.forget_before(*number);
            }
        }
    }

    /// All that was answered is durable.
    pub(super) fn all_flushed(&mut self) {
        for generated in self.layers.values_mut() {
            for history in generated.layer.values_mut() {
                let current = history.current;
                history.forget_before(current);
            }
        }
    }

    fn content_of(&self, nsid: u32, generation: u32, lba: u64, version: Version) -> Content {
        match version.what {
            What::Data => data(nsid, lba, version.number),
            What::Zero => Vec::new(),
            What::Absent => {
                let before = self.layers.range((nsid, 0)..(nsid, generation)).next_back();
                let before = before.map(|(key, _)| *key);
                let parent = before.or_else(|| self.parents.get(&nsid).copied());
                parent.map_or(Vec::new(), |(nsid, generation)| {
                    self.content(nsid, generation, lba)
                })
            }
        }
    }

    /// Whether a later generation has been written to in the range.
    pub(super) fn is_touched_after(&self, nsid: u32, generation: u32, range: BlockRange) -> bool {
        let later = self.of(nsid).filter(|(g, _)| *g > generation);
        let mut own = later.flat_map(|(_, later)| &later.layer);
        own.any(|(lba, history)| {
            let inside = (range.start().0..range.end().0).contains(lba);
            inside && history.versions.iter().any(|v| *v != UNTOUCHED)
        })
    }

    /// What a read must return.
    pub(super) fn content(&self, nsid: u32, generation: u32, lba: u64) -> Content {
        let generated = self.layers.get(&(nsid, generation));
        let history = generated.and_then(|g| g.layer.get(&lba));
        let current = history.map_or(UNTOUCHED, History::current);
        self.content_of(nsid, generation, lba, current)
    }

    /// Whether a block may have this content.
    pub(super) fn may_be(&self, key: (u32, u32), lba: u64, content: &Content) -> bool {
        let generated = self.layers.get(&key);
        let history = generated.and_then(|g| g.layer.get(&lba));
        history.is_some_and(|history| {
            let mut versions = history.versions.iter();
            versions.any(|v| self.content_of(key.0, key.1, lba, *v) == *content)
        })
    }

    pub(super) fn known_blocks(&self, nsid: u32) -> BTreeSet<u64> {
        let own = self.of(nsid).flat_map(|(_, g)| g.layer.keys().copied());
        let parent = self.parents.get(&nsid);
        let parents = parent.map(|(parent, _)| self.known_blocks(*parent));
        own.chain(parents.into_iter().flatten()).collect()
    }

    /// The block was found to have this value, which must be a legal one; those of the generations
    /// before are known already.
    pub(super) fn pin(&mut self, nsid: u32, generation: u32, lba: u64, content: &Content) {
        let history = self.history((nsid, generation), lba).clone();
        let legal = |v: &&Version| self.content_of(nsid, generation, lba, **v) == *content;
        let found = history.versions.iter().rev().find(legal).copied();
        let found = found.unwrap_or_else(|| {
            let versions = &history.versions;
            panic!(
                "nsid {nsid} generation {generation} lba {lba}: {content:?} is none of {versions:?}"
            )
        });
        *self.history((nsid, generation), lba) = History {
            versions: vec![found],
            current: found.number,
        };
    }

    /// Extents that are needed: one for every generation that has data of its own in it.
    pub(super) fn extents_needed(&self, nsid: u32) -> u64 {
        let layers = self.of(nsid).map(|(_, generated)| {
            let own = generated.layer.iter();
            let own = own.filter(|(_, history)| history.current().what == What::Data);
            let extents: BTreeSet<u64> = own.map(|(lba, _)| lba / 16).collect();
            extents.len() as u64
        });
        layers.sum()
    }
}

//! Journal entries: one per transition, packed into records.

use super::Corrupt;
use crate::core::facts::{Parent, SliceSpec, Stamp};
use shardmap::map::{Layout, Shape};
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, VolumeId};
use shardmap::units::{REGION_BLOCKS, SHARD_BYTES_RANGE};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most runs of regions in one entry; more are split.
pub const RUNS_MAX: usize = 1024;

/// A slice's description, 64 bytes; in journal entries and at the head of every page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SliceRecord {
    volume: [u8; 16],
    size_blocks: U64,
    nsid: U32,
    shard_blocks: U32,
    stride: U16,
    position: U16,
    replicas: u8,
    layout: u8,       // 0 ring, 1 block
    flags: U16,       // bit 0: open access; bit 1, in entries only: born incomplete
    parent_nsid: U32, // of a clone; otherwise zero
    parent_generation: U32,
    reserved: [u8; 16],
}

const OPEN_ACCESS: u16 = 1;
const BORN_INCOMPLETE: u16 = 2;
const _: () = assert!(size_of::<SliceRecord>() == 64);

impl From<&SliceSpec> for SliceRecord {
    fn from(spec: &SliceSpec) -> Self {
        Self {
            volume: spec.volume.0,
            size_blocks: spec.size_blocks.into(),
            nsid: spec.nsid.0.into(),
            shard_blocks: spec.shape.shard_blocks.into(),
            stride: spec.shape.stride.into(),
            position: spec.position.into(),
            replicas: spec.shape.replicas,
            layout: match spec.shape.layout {
                Layout::Ring => 0,
                Layout::Block => 1,
            },
            flags: if spec.open_access { OPEN_ACCESS } else { 0 }.into(),
            parent_nsid: spec.parent.map_or(0, |p| p.nsid.0).into(),
            parent_generation: spec.parent.map_or(0, |p| p.generation.0).into(),
            reserved: [0; 16],
        }
    }
}

impl SliceRecord {
    /// Decodes.
    ///
    /// # Errors
    /// `Value` if the description is impossible.
    pub fn to_spec(self) -> Result<SliceSpec, Corrupt> {
        let layout = match self.layout {
            0 => Layout::Ring,
            1 => Layout::Block,
            _ => return Err(Corrupt::Value),
        };
        let parent = Parent {
            nsid: Nsid(self.parent_nsid.get()),
            generation: Generation(self.parent_generation.get()),
        };
        let spec = SliceSpec {
            nsid: Nsid(self.nsid.get()),
            volume: VolumeId(self.volume),
            size_blocks: self.size_blocks.get(),
            shape: Shape {
                shard_blocks: self.shard_blocks.get(),
                stride: self.stride.get(),
                replicas: self.replicas,
                layout,
            },
            position: self.position.get(),
            open_access: self.flags.get() & OPEN_ACCESS != 0,
            parent: (parent.nsid.0 != 0 || parent.generation.0 != 0).then_some(parent),
        };
        if spec_error(&spec).is_some() {
            Err(Corrupt::Value)
        } else {
            Ok(spec)
        }
    }
}

/// Why a slice description cannot be, if so.
pub fn spec_error(spec: &SliceSpec) -> Option<&'static str> {
    let shape = &spec.shape;
    let shard_bytes = u64::from(shape.shard_blocks) << shardmap::units::BLOCK_SHIFT;
    if spec.nsid.0 == 0 || spec.nsid.0 == u32::MAX {
        Some("the namespace id is not one")
    } else if !shape.shard_blocks.is_power_of_two() || !SHARD_BYTES_RANGE.contains(&shard_bytes) {
        Some("the shard size is not a power of two within 4 MiB and 1 GiB")
    } else if shape.replicas == 0 || u16::from(shape.replicas) > shape.stride {
        Some("more replicas than stores")
    } else if shape.stride > 64 {
        Some("more than 64 stores in the stride set")
    } else if shape.layout == Layout::Block
        && !shape.stride.is_multiple_of(u16::from(shape.replicas))
    {
        Some("a block layout needs a stride that is a multiple of the replicas")
    } else if spec.position >= shape.stride {
        Some("the position is outside the stride set")
    } else if spec.size_blocks == 0 || spec.size_blocks > u64::from(REGION_BLOCKS) << 32 {
        Some("the size is zero or above 16 PiB")
    } else if let Some(parent) = spec.parent
        && !(1..spec.nsid.0).contains(&parent.nsid.0)
    {
        Some("a parent was made before its clones and has a lower namespace id")
    } else if spec.parent.is_some_and(|p| p.generation.0 == 0) {
        Some("a clone begins with a snapshot, not with the head")
    } else {
        None
    }
}

/// A change of one extent's map. Blocks in neither mask keep their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentChange {
    /// The slice.
    pub nsid: u32,
    /// The layer's generation.
    pub generation: u32,
    /// Number of the extent in the volume (block number / 16).
    pub extent: u64,
    /// The physical extent from now on, or [`NO_EXTENT`](super::NO_EXTENT).
    pub physical: u32,
    /// Blocks that are present from now on.
    pub present: u16,
    /// Blocks that are zero from now on.
    pub zero: u16,
}

/// What generation `from` has of the extents goes to generation `to`, where that has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The slice.
    pub nsid: u32,
    /// A generation that was dropped.
    pub from: u32,
    /// The next one.
    pub to: u32,
    /// First extent in the volume.
    pub extent: u64,
    /// How many.
    pub count: u32,
}

/// A half-open run of regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionRun {
    /// First region.
    pub start: u32,
    /// How many, at least one.
    pub count: u32,
}

/// One transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The slice exists with this description (created or grown).
    Slice {
        /// The description.
        spec: SliceSpec,
        /// If this creates it: it is incomplete from the start.
        incomplete: bool,
    },
    /// The slice and all its layers and marks are gone.
    SliceRemoved(Nsid),
    /// The slice was opened with this epoch.
    Epoch(Nsid, Epoch),
    /// The slice was stamped.
    Stamp(Nsid, Stamp),
    /// The slice is (not) incomplete.
    Incomplete(Nsid, bool),
    /// An extent's map changed; the data it names is durable.
    Extent(ExtentChange),
    /// Whole extents became zero and have no physical extent.
    ZeroRun {
        /// The slice.
        nsid: Nsid,
        /// The layer's generation.
        generation: Generation,
        /// First extent in the volume.
        extent: u64,
        /// How many.
        count: u32,
    },
    /// Regions are marked.
    Marked(Nsid, Generation, Vec<RegionRun>),
    /// Regions are not marked any more.
    Unmarked(Nsid, Generation, Vec<RegionRun>),
    /// The head from now on; the head before is a snapshot, pending until it is completed.
    GenerationBegun(Nsid, Generation),
    /// The snapshot takes no more writes.
    GenerationCompleted(Nsid, Generation),
    /// The snapshot is gone; what only it had belongs to the next generation.
    GenerationDropped(Nsid, Generation),
    /// What a dropped generation had of extents went to the next one.
    Merged(Merge),
}

mod tag {
    pub(super) const SLICE: u8 = 1;
    pub(super) const SLICE_REMOVED: u8 = 2;
    pub(super) const EPOCH: u8 = 3;
    pub(super) const STAMP: u8 = 4;
    pub(super) const INCOMPLETE: u8 = 5;
    pub(super) const EXTENT: u8 = 6;
    pub(super) const ZERO_RUN: u8 = 7;
    pub(super) const MARKED: u8 = 8;
    pub(super) const UNMARKED: u8 = 9;
    pub(super) const GENERATION_BEGUN: u8 = 16;
    pub(super) const GENERATION_COMPLETED: u8 = 17;
    pub(super) const GENERATION_DROPPED: u8 = 18;
    // 19 reserved: region sealed with checksums
    pub(super) const MERGED: u8 = 20;
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    tag: u8,
    reserved: u8,
    len_bytes: U16, // with this header
    nsid: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawStamp {
    seq: U64,
    in_sync: U64,
    members: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtent {
    generation: U32,
    physical: U32,
    extent: U64,
    present: U16,
    zero: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawZeroRun {
    generation: U32,
    count: U32,
    extent: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMerge {
    from: U32,
    to: U32,
    extent: U64,
    count: U32,
    reserved: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRun {
    start: U32,
    count: U32,
}

const HEAD_BYTES: usize = 8;
const _: () = assert!(size_of::<Head>() == HEAD_BYTES && size_of::<RawExtent>() == 20);
const _: () = assert!(size_of::<RawStamp>() == 24 && size_of::<RawZeroRun>() == 16);
const _: () = assert!(size_of::<RawMerge>() == 24);

impl Entry {
    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let at = out.len();
        let (tag, nsid) = self.tag_and_nsid();
        let head = Head {
            tag,
            reserved: 0,
            len_bytes: 0.into(),
            nsid: nsid.into(),
        };
        out.extend_from_slice(head.as_bytes());
        match self {
            Self::Slice { spec, incomplete } => {
                let mut record = SliceRecord::from(spec);
                if *incomplete {
                    record.flags |= U16::new(BORN_INCOMPLETE);
                }
                out.extend_from_slice(record.as_bytes());
            }
            Self::SliceRemoved(_) => {}
            Self::Epoch(_, epoch) => out.extend_from_slice(&epoch.0.to_le_bytes()),
            Self::Stamp(_, stamp) => out.extend_from_slice(
                RawStamp {
                    seq: stamp.seq.0.into(),
                    in_sync: stamp.in_sync.into(),
                    members: stamp.members.into(),
                }
                .as_bytes(),
            ),
            Self::Incomplete(_, on) => out.extend_from_slice(&u32::from(*on).to_le_bytes()),
            Self::Extent(c) => out.extend_from_slice(
                RawExtent {
                    generation: c.generation.into(),
                    physical: c.physical.into(),
                    extent: c.extent.into(),
                    present: c.present.into(),
                    zero: c.zero.into(),
                }
                .as_bytes(),
            ),
            Self::ZeroRun {
                generation,
                extent,
                count,
                ..
            } => out.extend_from_slice(
                RawZeroRun {
                    generation: generation.0.into(),
                    count: (*count).into(),
                    extent: (*extent).into(),
                }
                .as_bytes(),
            ),
            Self::Marked(_, generation, runs) | Self::Unmarked(_, generation, runs) => {
                encode_runs(*generation, runs, out);
            }
            Self::GenerationBegun(_, generation)
            | Self::GenerationCompleted(_, generation)
            | Self::GenerationDropped(_, generation) => {
                out.extend_from_slice(&generation.0.to_le_bytes());
            }
            Self::Merged(merge) => out.extend_from_slice(RawMerge::from(merge).as_bytes()),
        }
        let len = u16::try_from(out.len() - at).expect("an entry is at most 8 204 bytes");
        out[at + 2..at + 4].copy_from_slice(&len.to_le_bytes());
    }

    const fn tag_and_nsid(&self) -> (u8, u32) {
        match self {
            Self::Slice { spec, .. } => (tag::SLICE, spec.nsid.0),
            Self::SliceRemoved(nsid) => (tag::SLICE_REMOVED, nsid.0),
            Self::Epoch(nsid, _) => (tag::EPOCH, nsid.0),
            Self::Stamp(nsid, _) => (tag::STAMP, nsid.0),
            Self::Incomplete(nsid, _) => (tag::INCOMPLETE, nsid.0),
            Self::Extent(change) => (tag::EXTENT, change.nsid),
            Self::ZeroRun { nsid, .. } => (tag::ZERO_RUN, nsid.0),
            Self::Marked(nsid, ..) => (tag::MARKED, nsid.0),
            Self::Unmarked(nsid, ..) => (tag::UNMARKED, nsid.0),
            Self::GenerationBegun(nsid, _) => (tag::GENERATION_BEGUN, nsid.0),
            Self::GenerationCompleted(nsid, _) => (tag::GENERATION_COMPLETED, nsid.0),
            Self::GenerationDropped(nsid, _) => (tag::GENERATION_DROPPED, nsid.0),
            Self::Merged(merge) => (tag::MERGED, merge.nsid),
        }
    }

    /// Takes one entry off the front.
    ///
    /// # Errors
    /// [`Corrupt`]; the record's checksum was right, so this is a format we do not know.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, Corrupt> {
        let (head, _) = Head::ref_from_prefix(bytes).map_err(|_| Corrupt::Length)?;
        let len = usize::from(head.len_bytes.get());
        let whole = bytes
            .get(..len)
            .filter(|_| len >= HEAD_BYTES)
            .ok_or(Corrupt::Length)?;
        *bytes = &bytes[len..];
        Self::decode_body(head.tag, Nsid(head.nsid.get()), &whole[HEAD_BYTES..])
    }

    fn decode_body(tag: u8, nsid: Nsid, body: &[u8]) -> Result<Self, Corrupt> {
        let length = |_| Corrupt::Length;
        Ok(match tag {
            tag::SLICE => {
                let record = SliceRecord::read_from_bytes(body).map_err(|_| Corrupt::Length)?;
                Self::Slice {
                    spec: record.to_spec()?,
                    incomplete: record.flags.get() & BORN_INCOMPLETE != 0,
                }
            }
            tag::SLICE_REMOVED if body.is_empty() => Self::SliceRemoved(nsid),
            tag::EPOCH => Self::Epoch(
                nsid,
                Epoch(u64::from_le_bytes(body.try_into().map_err(length)?)),
            ),
            tag::STAMP => {
                let raw = RawStamp::ref_from_bytes(body).map_err(|_| Corrupt::Length)?;
                let seq = MembershipSeq(raw.seq.get());
                let (in_sync, members) = (raw.in_sync.get(), raw.members.get());
                Self::Stamp(
                    nsid,
                    Stamp {
                        seq,
                        in_sync,
                        members,
                    },
                )
            }
            tag::INCOMPLETE => match u32::from_le_bytes(body.try_into().map_err(length)?) {
                0 => Self::Incomplete(nsid, false),
                1 => Self::Incomplete(nsid, true),
                _ => return Err(Corrupt::Value),
            },
            tag::EXTENT => Self::Extent(decode_extent(nsid, body)?),
            tag::ZERO_RUN => {
                let raw = RawZeroRun::ref_from_bytes(body).map_err(|_| Corrupt::Length)?;
                let (generation, extent) = (Generation(raw.generation.get()), raw.extent.get());
                Self::ZeroRun {
                    nsid,
                    generation,
                    extent,
                    count: raw.count.get(),
                }
            }
            tag::MARKED | tag::UNMARKED => {
                let (generation, runs) = decode_runs(body)?;
                if tag == tag::MARKED {
                    Self::Marked(nsid, generation, runs)
                } else {
                    Self::Unmarked(nsid, generation, runs)
                }
            }
            tag::GENERATION_BEGUN => Self::GenerationBegun(nsid, decode_generation(body)?),
            tag::GENERATION_COMPLETED => Self::GenerationCompleted(nsid, decode_generation(body)?),
            tag::GENERATION_DROPPED => Self::GenerationDropped(nsid, decode_generation(body)?),
            tag::MERGED => Self::Merged(decode_merge(nsid, body)?),
            _ => return Err(Corrupt::Unknown),
        })
    }
}

fn encode_runs(generation: Generation, runs: &[RegionRun], out: &mut Vec<u8>) {
    assert!(!runs.is_empty() && runs.len() <= RUNS_MAX);
    out.extend_from_slice(&generation.0.to_le_bytes());
    for run in runs {
        let raw = RawRun {
            start: run.start.into(),
            count: run.count.into(),
        };
        out.extend_from_slice(raw.as_bytes());
    }
}

impl From<&Merge> for RawMerge {
    fn from(merge: &Merge) -> Self {
        Self {
            from: merge.from.into(),
            to: merge.to.into(),
            extent: merge.extent.into(),
            count: merge.count.into(),
            reserved: 0.into(),
        }
    }
}

fn decode_merge(nsid: Nsid, body: &[u8]) -> Result<Merge, Corrupt> {
    let raw = RawMerge::ref_from_bytes(body).map_err(|_| Corrupt::Length)?;
    Ok(Merge {
        nsid: nsid.0,
        from: raw.from.get(),
        to: raw.to.get(),
        extent: raw.extent.get(),
        count: raw.count.get(),
    })
}

fn decode_extent(nsid: Nsid, body: &[u8]) -> Result<ExtentChange, Corrupt> {
    let raw = RawExtent::ref_from_bytes(body).map_err(|_| Corrupt::Length)?;
    Ok(ExtentChange {
        nsid: nsid.0,
        generation: raw.generation.get(),
        extent: raw.extent.get(),
        physical: raw.physical.get(),
        present: raw.present.get(),
        zero: raw.zero.get(),
    })
}

fn decode_generation(body: &[u8]) -> Result<Generation, Corrupt> {
    let raw = U32::read_from_bytes(body).map_err(|_| Corrupt::Length)?;
    Ok(Generation(raw.get()))
}

fn decode_runs(body: &[u8]) -> Result<(Generation, Vec<RegionRun>), Corrupt> {
    let (generation, rest) = U32::read_from_prefix(body).map_err(|_| Corrupt::Length)?;
    let raw = <[RawRun]>::ref_from_bytes(rest).map_err(|_| Corrupt::Length)?;
    let runs: Vec<_> = raw
        .iter()
        .map(|r| RegionRun {
            start: r.start.get(),
            count: r.count.get(),
        })
        .collect();
    let fits = |r: &RegionRun| r.count > 0 && r.start.checked_add(r.count).is_some();
    if runs.is_empty() || !runs.iter().all(fits) {
        return Err(Corrupt::Value);
    }
    Ok((Generation(generation.get()), runs))
}

/// Ascending regions as runs, in groups that fit one entry each.
pub fn runs_of(regions: impl IntoIterator<Item = u32>) -> Vec<Vec<RegionRun>> {
    let mut groups: Vec<Vec<RegionRun>> = Vec::new();
    for region in regions {
        if let Some(run) = groups.last_mut().and_then(|g| g.last_mut())
            && run.start + run.count == region
        {
            run.count += 1;
            continue;
        }
        let run = RegionRun {
            start: region,
            count: 1,
        };
        match groups.last_mut() {
            Some(group) if group.len() < RUNS_MAX => group.push(run),
            _ => groups.push(vec![run]),
        }
    }
    groups
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn spec(nsid: u32) -> SliceSpec {
        SliceSpec {
            nsid: Nsid(nsid),
            volume: VolumeId([nsid.to_le_bytes()[0]; 16]),
            size_blocks: 1 << 16,
            shape: Shape {
                shard_blocks: 16_384,
                stride: 3,
                replicas: 2,
                layout: Layout::Ring,
            },
            position: 1,
            open_access: nsid % 2 == 1,
            parent: nsid.is_multiple_of(3).then_some(Parent {
                nsid: Nsid(nsid - 1),
                generation: Generation(nsid),
            }),
        }
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let runs = || {
            prop::collection::vec((0u32..1 << 30, 1u32..1 << 30), 1..9).prop_map(|v| {
                v.into_iter()
                    .map(|(start, count)| RegionRun { start, count })
                    .collect::<Vec<_>>()
            })
        };
        let change = (any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>());
        prop_oneof![
            (1u32..99, any::<bool>()).prop_map(|(n, incomplete)| Entry::Slice {
                spec: spec(n),
                incomplete
            }),
            any::<u32>().prop_map(|n| Entry::SliceRemoved(Nsid(n))),
            (1u32..99, any::<u64>()).prop_map(|(n, e)| Entry::Epoch(Nsid(n), Epoch(e))),
            (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(s, in_sync, members)| {
                Entry::Stamp(
                    Nsid(4),
                    Stamp {
                        seq: MembershipSeq(s),
                        in_sync,
                        members,
                    },
                )
            }),
            any::<bool>().prop_map(|on| Entry::Incomplete(Nsid(1), on)),
            change.prop_map(|(extent, physical, present, zero)| {
                let (nsid, generation) = (1, 1);
                Entry::Extent(ExtentChange {
                    nsid,
                    generation,
                    extent,
                    physical,
                    present,
                    zero,
                })
            }),
            any::<(u64, u32)>().prop_map(|(extent, count)| {
                let (nsid, generation) = (Nsid(3), Generation(1));
                Entry::ZeroRun {
                    nsid,
                    generation,
                    extent,
                    count,
                }
            }),
            runs().prop_map(|r| Entry::Marked(Nsid(1), Generation(1), r)),
            runs().prop_map(|r| Entry::Unmarked(Nsid(1), Generation(2), r)),
            (any::<u32>(), 0u8..3).prop_map(|(g, what)| {
                let (nsid, generation) = (Nsid(6), Generation(g));
                match what {
                    0 => Entry::GenerationBegun(nsid, generation),
                    1 => Entry::GenerationCompleted(nsid, generation),
                    _ => Entry::GenerationDropped(nsid, generation),
                }
            }),
            any::<(u32, u32, u64, u32)>().prop_map(|(from, to, extent, count)| {
                let nsid = 7;
                Entry::Merged(Merge {
                    nsid,
                    from,
                    to,
                    extent,
                    count,
                })
            }),
        ]
    }

    proptest! {
        #[test]
        fn entries_survive_in_order(entries in prop::collection::vec(entry(), 0..30)) {
            let mut bytes = Vec::new();
            entries.iter().for_each(|e| e.encode(&mut bytes));
            let mut rest = &bytes[..];
            let mut read = Vec::new();
            while !rest.is_empty() {
                read.push(Entry::decode(&mut rest).unwrap());
            }
            prop_assert_eq!(read, entries);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = &bytes[..];
            while !rest.is_empty() && Entry::decode(&mut rest).is_ok() {}
        }

        #[test]
        fn runs_cover_exactly_the_regions(
            regions in prop::collection::btree_set(0u32..5000, 0..3000)
        ) {
            let groups = runs_of(regions.iter().copied());
            prop_assert!(groups.iter().all(|g| g.len() <= RUNS_MAX));
            let back = groups.iter().flatten().flat_map(|r| r.start..r.start + r.count);
            prop_assert!(back.eq(regions.iter().copied()));
        }
    }
}

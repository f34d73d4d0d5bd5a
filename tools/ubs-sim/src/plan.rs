//! What a seed's cluster is like. Everything here is drawn before the first event.

use reactor::sim::Prng;
use shardmap::map::Layout;
use shardmap::units::{EXTENT_BLOCKS, REGION_BLOCKS, REGION_BYTES};
use volume::VolumeOptions;

/// Size of each store's device, in bytes.
pub(crate) const DEVICE_BYTES: u64 = 64 << 20;
/// Size of its journal, in bytes: the smallest, so that it is checkpointed now and then.
pub(crate) const JOURNAL_BYTES: u64 = 1 << 20;

/// Pauses of a load that comes in bursts, within and between them, and of a steady one.
const THINK_NS: (u64, u64) = (50_000, 12_000_000);
const PAUSE_NS: (u64, u64) = (100_000_000, 9_000_000_000);
const STEADY_NS: (u64, u64) = (5_000_000, 200_000_000);

/// How much of the volume a load uses.
#[derive(Clone, Copy, Debug)]
struct Reach {
    /// Hot spots, at most.
    spots: usize,
    spread_blocks: u64,
    sizes: usize,
}

const fn reach(spots: usize, spread_blocks: u64, sizes: usize) -> Reach {
    Reach {
        spots,
        spread_blocks,
        sizes,
    }
}

/// Many places; a few blocks that are written again and again; many chunks of few regions.
const REACHES: [Reach; 6] = [
    reach(usize::MAX, 20, 5),
    reach(usize::MAX, 20, 5),
    reach(usize::MAX, 20, 5),
    reach(1, 4, 3),
    reach(3, 4, 3),
    reach(2, 300, 3),
];

/// How many of a hundred requests are of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    pub(crate) read: u64,
    pub(crate) write: u64,
    pub(crate) write_fua: u64,
    pub(crate) zero: u64,
    /// The rest.
    pub(crate) flush: u64,
}

impl Mix {
    const fn new(read: u64, write: u64, write_fua: u64, zero: u64) -> Self {
        Self {
            read,
            write,
            write_fua,
            zero,
            flush: 100 - read - write - write_fua - zero,
        }
    }
}

/// A little of everything; hardly a read; none at all, so that nobody notices by reading; hardly a
/// flush, so that much is in caches.
const MIXES: [Mix; 5] = [
    Mix::new(32, 34, 8, 8),
    Mix::new(32, 34, 8, 8),
    Mix::new(4, 70, 6, 12),
    Mix::new(0, 62, 8, 12),
    Mix::new(20, 68, 2, 8),
];

/// The cluster of a seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Storage servers with one store each.
    pub(crate) servers: usize,
    /// Client hosts.
    pub(crate) hosts: usize,
    /// Replicas of each shard.
    pub(crate) replicas: u8,
    /// Stores of the volume.
    pub(crate) stride: u16,
    pub(crate) layout: Layout,
    pub(crate) shard_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) options: VolumeOptions,
    /// Requests a host keeps outstanding.
    pub(crate) depth: usize,
    /// What it asks for.
    pub(crate) mix: Mix,
    /// A host that comes up reads all that was written first.
    pub(crate) reads_first: bool,
    /// Pause between two looks at the queue in a burst, and between bursts, in nanoseconds.
    pub(crate) think_ns: (u64, u64),
    pub(crate) pause_ns: (u64, u64),
    /// Where it likes to read and write: first blocks.
    pub(crate) hot: Vec<u64>,
    /// How far from there its requests begin at most, and how long they are at most: the indices of
    /// a few sizes.
    pub(crate) spread_blocks: u64,
    pub(crate) sizes: usize,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) kato_ms: u32,
    pub(crate) deadline_ms: u32,
    /// Mean pause between two faults.
    pub(crate) fault_every_ms: u64,
    /// Mean pause between two deeds of a user who makes and deletes snapshots; `None`: none.
    pub(crate) snapshot_every_ms: Option<u64>,
    /// In the end it must become whole while nobody has it, before somebody gets it again.
    pub(crate) heals_alone: bool,
}

impl Plan {
    /// Seconds that the limit of resilvers makes of filling all stores but one, one after the other.
    pub(crate) fn copies_s(&self) -> u64 {
        let stride = u64::from(self.stride);
        let of_one_store = self.size_bytes * u64::from(self.replicas) / stride;
        let bytes = (stride - 1) * of_one_store;
        match self.options.resilver_bytes_per_s_max {
            0 => 0,
            limit => bytes.div_ceil(limit),
        }
    }

    /// Draws a plan.
    pub(crate) fn draw(prng: &mut Prng) -> Self {
        let servers = prng.within(3, 5);
        let replicas = match prng.below(8) {
            0 => 1,
            1..=4 => 2,
            _ => 3,
        };
        let stride = prng.within(replicas, servers);
        let block = stride.is_multiple_of(replicas) && prng.chance(1, 3);
        let shard_bytes = REGION_BYTES << prng.below(2);
        // The last shard may be short, and so may the last region and extent.
        let shards = prng.within(3, 6);
        let size_bytes = shards * shard_bytes - prng.below(3) * 4096 * 9;
        let pick = |prng: &mut Prng, among: &[u64]| among[index(prng, among.len())];
        let options = VolumeOptions {
            min_in_sync: if replicas > 1 && prng.chance(1, 4) {
                2
            } else {
                1
            },
            degrade_grace_ms: pick(prng, &[0, 100, 300, 2_000]),
            attach_wait_ms: pick(prng, &[500, 3_000]),
            may_shrink: true,
            slow_ms: pick(prng, &[0, 1_000, 3_000]),
            resilver_bytes_per_s_max: pick(prng, &[0, 0, 256 << 10]),
            stable_period_ms: pick(prng, &[30, 400, 2_000, 10_000]),
        };
        let mut hot = hot_spots(prng, size_bytes, shard_bytes);
        let reach = REACHES[index(prng, REACHES.len())];
        hot.truncate(reach.spots);
        let steady = prng.chance(1, 4);
        let mix = MIXES[index(prng, MIXES.len())];
        Self {
            servers: usize::try_from(servers).expect("small"),
            hosts: usize::try_from(prng.within(1, 3)).expect("small"),
            replicas: u8::try_from(replicas).expect("small"),
            stride: u16::try_from(stride).expect("small"),
            layout: if block { Layout::Block } else { Layout::Ring },
            shard_bytes,
            size_bytes,
            options,
            depth: usize::try_from(prng.within(1, 12)).expect("small"),
            mix,
            reads_first: mix.read > 0 && prng.chance(1, 2),
            think_ns: if steady { STEADY_NS } else { THINK_NS },
            pause_ns: if steady { STEADY_NS } else { PAUSE_NS },
            hot,
            spread_blocks: reach.spread_blocks,
            sizes: reach.sizes,
            header_digest: prng.chance(1, 4),
            data_digest: prng.chance(1, 4),
            kato_ms: u32::try_from(pick(prng, &[2_000, 5_000, 15_000])).expect("small"),
            deadline_ms: u32::try_from(pick(prng, &[1_000, 3_000, 8_000])).expect("small"),
            fault_every_ms: pick(prng, &[3_000, 4_000, 5_000, 10_000]),
            snapshot_every_ms: None,
            heals_alone: false,
        }
    }

    /// Blocks of the volume.
    pub(crate) fn size_blocks(&self) -> u64 {
        self.size_bytes / 4096
    }
}

/// Any index of so many.
pub(crate) fn index(prng: &mut Prng, count: usize) -> usize {
    usize::try_from(prng.below(count as u64)).expect("smaller than a usize")
}

/// Places where extents, regions and shards meet, and some others.
fn hot_spots(prng: &mut Prng, size_bytes: u64, shard_bytes: u64) -> Vec<u64> {
    let (size, shard) = (size_bytes / 4096, shard_bytes / 4096);
    let (extent, region) = (u64::from(EXTENT_BLOCKS), u64::from(REGION_BLOCKS));
    let mut spots = vec![0, size - 1, shard, region, region - extent];
    let first = index(prng, spots.len());
    spots.rotate_left(first);
    for _ in 0..prng.within(2, 6) {
        let unit = [shard, region, extent][index(prng, 3)];
        spots.push(prng.below(size.div_ceil(unit)) * unit);
        spots.push(prng.below(size));
    }
    spots
        .into_iter()
        .map(|at| at.saturating_sub(prng.below(10)).min(size - 1))
        .collect()
}

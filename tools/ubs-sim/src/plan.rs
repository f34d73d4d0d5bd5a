//! What a seed's cluster is like. Everything here is drawn before the first event.

use reactor::sim::Prng;
use shardmap::map::Layout;
use shardmap::units::{EXTENT_BLOCKS, REGION_BLOCKS, REGION_BYTES};
use volume::VolumeOptions;

/// Size of each store's device, in bytes.
pub(crate) const DEVICE_BYTES: u64 = 64 << 20;
/// Size of its journal, in bytes: the smallest, so that it is checkpointed now and then.
pub(crate) const JOURNAL_BYTES: u64 = 1 << 20;

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
    /// Where it likes to read and write: first blocks.
    pub(crate) hot: Vec<u64>,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) kato_ms: u32,
    pub(crate) deadline_ms: u32,
    /// Mean pause between two faults.
    pub(crate) fault_every_ms: u64,
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
            stable_period_ms: pick(prng, &[400, 2_000, 10_000]),
        };
        let hot = hot_spots(prng, size_bytes, shard_bytes);
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
            hot,
            header_digest: prng.chance(1, 4),
            data_digest: prng.chance(1, 4),
            kato_ms: u32::try_from(pick(prng, &[2_000, 5_000, 15_000])).expect("small"),
            deadline_ms: u32::try_from(pick(prng, &[1_000, 3_000, 8_000])).expect("small"),
            fault_every_ms: pick(prng, &[3_000, 4_000, 5_000]),
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

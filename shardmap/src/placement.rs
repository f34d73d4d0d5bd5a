//! Which stores a new volume lives on.
//!
//! Volumes share a *catalogue* of stride sets instead of each taking random stores: with random sets
//! nearly every R-tuple of servers is a copyset of some volume, so nearly every simultaneous loss of
//! R servers loses data of someone; with a shared catalogue few tuples are. The choice is a pure
//! function of its arguments (ties go to the lowest id), so every member of metad makes the same.
//!
//! Order of preference: a new set that shares no store with the catalogue (spreads load), then the
//! emptiest existing set that has room, then a new set that overlaps others.

use crate::map::{Layout, Shape};
use crate::units::{BLOCK_BYTES, ServerId, ShardIndex, StoreId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most stores in one stride set.
pub const STRIDE_MAX: u16 = 24;
/// Most replicas of a shard.
pub const REPLICAS_MAX: u8 = 5;
/// Rate at which one peer is assumed to feed a resilver, for [`Forecast::resilver_s`], bytes/s.
pub const PEER_RESILVER_BYTES_PER_S: u64 = 200 * 1024 * 1024;

/// A store that may take a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The store.
    pub store: StoreId,
    /// Its server.
    pub server: ServerId,
    /// Its failure domain under the volume's rule. No two stores of a set share one.
    pub domain: String,
    /// Bytes that may still be promised to slices.
    pub room_bytes: u64,
    /// Bytes that are promised already.
    pub promised_bytes: u64,
}

/// A stride set of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSet {
    /// Its id in the catalogue.
    pub id: u32,
    /// Its stores, by position.
    pub stores: Vec<StoreId>,
    /// Whether it was made under the same failure-domain rule.
    pub same_rule: bool,
}

/// What the volume asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Size in blocks.
    pub size_blocks: u64,
    /// Blocks in a shard.
    pub shard_blocks: u32,
    /// Replicas of each shard.
    pub replicas: u8,
    /// Stores in the set; `None`: as many as there are domains, up to twice the replicas (one for
    /// one replica).
    pub stride: Option<u16>,
    /// The dealing rule.
    pub layout: Layout,
}

/// The chosen stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The set of the catalogue that is used again; `None`: a new one.
    pub reused: Option<u32>,
    /// Stores by position.
    pub stores: Vec<StoreId>,
    /// The rule, with the stride filled in.
    pub shape: Shape,
    /// Bytes that each position's slice can grow to.
    pub slice_bytes: Vec<u64>,
}

/// Why there is no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NoPlace {
    /// Not enough distinct failure domains with a usable store.
    #[error("{needed} distinct failure domains are needed and {found} have a usable store")]
    TooFewDomains {
        /// How many are needed.
        needed: u16,
        /// How many there are.
        found: u16,
    },
    /// There are enough domains, and too few of them have room.
    #[error(
        "each store would have to promise {needed_bytes} bytes and only {found} of {needed} \
         failure domains have a store with that much room"
    )]
    NoRoom {
        /// Worst-case size of a slice.
        needed_bytes: u64,
        /// Domains with that much room.
        found: u16,
        /// Domains needed.
        needed: u16,
    },
    /// The stride does not fit the replicas or the layout.
    #[error("a stride of {stride} does not fit {replicas} replicas in this layout")]
    BadStride {
        /// The stride asked for.
        stride: u16,
        /// The replicas asked for.
        replicas: u8,
    },
}

/// Chooses the stores of a new volume.
///
/// # Errors
/// [`NoPlace`] with the numbers needed and found.
pub fn choose(
    wish: Wish,
    candidates: &[Candidate],
    catalogue: &[KnownSet],
) -> Result<Choice, NoPlace> {
    let domains: BTreeSet<&str> = candidates.iter().map(|c| c.domain.as_str()).collect();
    let found = u16::try_from(domains.len()).unwrap_or(u16::MAX);
    let shape = shape_for(wish, found)?;
    let slice_bytes = slice_bytes(shape, wish.size_blocks);
    let need = slice_bytes.iter().copied().max().unwrap_or(0);
    let roomy: Vec<&Candidate> = candidates.iter().filter(|c| c.room_bytes >= need).collect();
    let taken: BTreeSet<StoreId> = catalogue
        .iter()
        .filter(|s| s.same_rule)
        .flat_map(|s| s.stores.iter().copied())
        .collect();

    let untouched = roomy.iter().copied().filter(|c| !taken.contains(&c.store));
    if let Some(stores) = fresh_set(untouched, shape.stride) {
        return Ok(Choice {
            reused: None,
            stores,
            shape,
            slice_bytes,
        });
    }
    if let Some(set) = emptiest_known(&roomy, catalogue, shape.stride) {
        let stores = set.stores.clone();
        return Ok(Choice {
            reused: Some(set.id),
            stores,
            shape,
            slice_bytes,
        });
    }
    if let Some(stores) = fresh_set(roomy.iter().copied(), shape.stride) {
        return Ok(Choice {
            reused: None,
            stores,
            shape,
            slice_bytes,
        });
    }
    let with_room: BTreeSet<&str> = roomy.iter().map(|c| c.domain.as_str()).collect();
    Err(NoPlace::NoRoom {
        needed_bytes: need,
        found: u16::try_from(with_room.len()).unwrap_or(u16::MAX),
        needed: shape.stride,
    })
}

fn shape_for(wish: Wish, domains: u16) -> Result<Shape, NoPlace> {
    let replicas = u16::from(wish.replicas);
    assert!(
        wish.replicas >= 1 && wish.replicas <= REPLICAS_MAX,
        "{} replicas",
        wish.replicas
    );
    let stride = wish.stride.unwrap_or_else(|| {
        // Unreplicated data on many stores would only be lost more often.
        let widest = if replicas == 1 { 1 } else { replicas * 2 };
        let wide = domains.min(widest).max(replicas);
        match wish.layout {
            Layout::Ring => wide,
            Layout::Block => wide / replicas * replicas,
        }
    });
    let grouped = wish.layout == Layout::Ring || stride.is_multiple_of(replicas);
    if stride < replicas || stride > STRIDE_MAX || !grouped {
        return Err(NoPlace::BadStride {
            stride,
            replicas: wish.replicas,
        });
    }
    if domains < stride {
        return Err(NoPlace::TooFewDomains {
            needed: stride,
            found: domains,
        });
    }
    Ok(Shape {
        shard_blocks: wish.shard_blocks,
        stride,
        replicas: wish.replicas,
        layout: wish.layout,
    })
}

/// Bytes that the slice at each position can grow to: its shards, counted whole.
pub fn slice_bytes(shape: Shape, size_blocks: u64) -> Vec<u64> {
    let shards = size_blocks.div_ceil(u64::from(shape.shard_blocks));
    let round = u64::from(shape.stride);
    let shard_bytes = u64::from(shape.shard_blocks) * u64::from(BLOCK_BYTES);
    (0..shape.stride)
        .map(|position| {
            // The rule repeats every `stride` shards (Block repeats sooner, and its period divides).
            let held = (0..round).map(|i| {
                let i = u32::try_from(i).expect("below the stride");
                let times = shards / round + u64::from(u64::from(i) < shards % round);
                if shape.holds(position, ShardIndex(i)) {
                    times
                } else {
                    0
                }
            });
            held.sum::<u64>() * shard_bytes
        })
        .collect()
}

/// The emptiest store of each domain, then the emptiest `stride` of those; ordered by store id.
fn fresh_set<'a>(
    candidates: impl Iterator<Item = &'a Candidate>,
    stride: u16,
) -> Option<Vec<StoreId>> {
    let mut best: BTreeMap<&str, &Candidate> = BTreeMap::new();
    for c in candidates {
        let best = best.entry(&c.domain).or_insert(c);
        if (c.promised_bytes, c.store) < (best.promised_bytes, best.store) {
            *best = c;
        }
    }
    let mut chosen: Vec<&Candidate> = best.into_values().collect();
    chosen.sort_by_key(|c| (c.promised_bytes, c.store));
    chosen.truncate(usize::from(stride));
    (chosen.len() == usize::from(stride)).then(|| {
        let mut stores: Vec<StoreId> = chosen.iter().map(|c| c.store).collect();
        stores.sort_unstable();
        stores
    })
}

fn emptiest_known<'a>(
    roomy: &[&Candidate],
    catalogue: &'a [KnownSet],
    stride: u16,
) -> Option<&'a KnownSet> {
    let by_store: BTreeMap<StoreId, &Candidate> = roomy.iter().map(|c| (c.store, *c)).collect();
    catalogue
        .iter()
        .filter(|set| set.same_rule && set.stores.len() == usize::from(stride))
        .filter_map(|set| {
            let members: Option<Vec<&Candidate>> = set
                .stores
                .iter()
                .map(|s| by_store.get(s).copied())
                .collect();
            let members = members?;
            // A store may have moved since the set was made: its domains must still be distinct.
            let domains: BTreeSet<&str> = members.iter().map(|c| c.domain.as_str()).collect();
            let fullest = members.iter().map(|c| c.promised_bytes).max()?;
            (domains.len() == members.len()).then_some((fullest, set.id, set))
        })
        .min_by_key(|(fullest, id, _)| (*fullest, *id))
        .map(|(_, _, set)| set)
}

/// What a placement means, for `--dry-run` and `explain`.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Distinct groups of stores that hold all replicas of some shard.
    pub copysets: u32,
    /// Probability that some shard of the volume is lost when 1, 2, 3 servers chosen at random are
    /// lost for good at the same time.
    pub loss_probability: [f64; 3],
    /// Seconds to fill a blank replacement of the largest slice, if full, at
    /// [`PEER_RESILVER_BYTES_PER_S`] per peer.
    pub resilver_s: u64,
}

/// Computes the forecast. `servers` are the servers of the set by position, `servers_total` how
/// many the cluster has.
pub fn forecast(choice: &Choice, servers: &[ServerId], servers_total: u32) -> Forecast {
    let shape = choice.shape;
    assert_eq!(servers.len(), usize::from(shape.stride));
    let copysets: BTreeSet<BTreeSet<u16>> = (0..u32::from(shape.stride))
        .map(|i| shape.positions_of(ShardIndex(i)).collect())
        .collect();
    let hit: BTreeSet<BTreeSet<ServerId>> = copysets
        .iter()
        .map(|set| set.iter().map(|p| servers[usize::from(*p)]).collect())
        .collect();
    let own: Vec<ServerId> = servers
        .iter()
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let others = servers_total.saturating_sub(u32::try_from(own.len()).unwrap_or(u32::MAX));
    let loss_probability = [1u32, 2, 3].map(|lost| {
        let all = binomial(others + u32::try_from(own.len()).unwrap_or(0), lost);
        if all == 0 {
            return 0.0;
        }
        let fatal: u64 = subsets_up_to_three(&own)
            .filter(|s| u32::try_from(s.len()).unwrap_or(u32::MAX) <= lost)
            .filter(|s| {
                hit.iter()
                    .any(|copyset| copyset.iter().all(|server| s.contains(server)))
            })
            .map(|s| binomial(others, lost - u32::try_from(s.len()).unwrap_or(0)))
            .sum();
        ratio(fatal, all)
    });
    let largest = choice.slice_bytes.iter().copied().max().unwrap_or(0);
    let peers = u64::from(
        shape
            .stride
            .saturating_sub(1)
            .min(2 * u16::from(shape.replicas - 1)),
    );
    Forecast {
        copysets: u32::try_from(copysets.len()).unwrap_or(u32::MAX),
        loss_probability,
        resilver_s: largest.div_ceil(PEER_RESILVER_BYTES_PER_S * peers.max(1)),
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a probability for people; 53 bits are plenty"
)]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

fn binomial(n: u32, k: u32) -> u64 {
    (0..k).fold(1u64, |product, i| {
        product * u64::from(n.saturating_sub(i)) / u64::from(i + 1)
    })
}

fn subsets_up_to_three(items: &[ServerId]) -> impl Iterator<Item = BTreeSet<ServerId>> {
    let n = items.len();
    let mut all: Vec<BTreeSet<ServerId>> = vec![BTreeSet::new()];
    for a in 0..n {
        all.push(BTreeSet::from([items[a]]));
        for b in a + 1..n {
            all.push(BTreeSet::from([items[a], items[b]]));
            for c in b + 1..n {
                all.push(BTreeSet::from([items[a], items[b], items[c]]));
            }
        }
    }
    all.into_iter()
}

#[cfg(test)]
mod test;

//! Every bound of the replicated state, with its reason.

use std::ops::RangeInclusive;

/// Version of the replicated state and of the commands; a member refuses a log it does not know.
/// 10: volumes can be rolled back.
pub const SCHEMA: u16 = 10;
/// Servers of a cluster: what one listing and one placement may scan.
pub const SERVERS_MAX: usize = 1024;
/// Stores of a cluster.
pub const STORES_MAX: usize = 8192;
/// Client hosts of a cluster.
pub const HOSTS_MAX: usize = 4096;
/// Snapshots of a cluster: about 100 bytes each in memory and in every snapshot of the state, and
/// listed with their slices to the storageds.
pub const SNAPSHOTS_CLUSTER_MAX: usize = 200_000;
/// Volumes of one `CreateSnapshot`: each makes three commands and events, while the writes of all wait.
pub const SNAPSHOT_GROUP_MAX: usize = 64;
/// Clones of clones: a read looks through so many slices for a block that nobody wrote, and stores allow no
/// more parents.
pub const PARENTS_MAX: usize = 8;
/// Volumes of a cluster: the state lives in memory on every member (about 1 KiB each).
pub const VOLUMES_MAX: usize = 50_000;
/// Longest name of a server, host, volume, label key or value, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest NQN (NVM Express Base §4.7: 223 bytes).
pub const NQN_BYTES_MAX: usize = 223;
/// Labels of one server.
pub const LABELS_MAX: usize = 16;
/// Clients whose last replies are remembered; the longest silent one is forgotten first.
pub const CLIENTS_MAX: usize = 1024;
/// Replies remembered per client: more than [`CLIENT_IN_FLIGHT_MAX`], so that a repeat is known.
pub const REPLIES_PER_CLIENT_MAX: usize = 64;
/// Commands one client may have in flight.
pub const CLIENT_IN_FLIGHT_MAX: usize = 32;
/// Events remembered; older ones are gone and a reader is told so by their indexes.
pub const EVENTS_MAX: usize = 4096;
/// Text of a noted event, in bytes.
pub const NOTE_BYTES_MAX: usize = 512;
/// Smallest volume: one write-intent region, in bytes.
pub const VOLUME_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Largest volume, in bytes (16 TiB at the default shard; the map allows 16 PiB).
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Namespace ids left out after a restore: more than can have been minted since the backup.
pub const NSIDS_SKIPPED: u32 = 1 << 20;
/// Thin promises a store may make, in percent of its size, unless the cluster says otherwise.
pub const OVERCOMMIT_PERCENT_DEFAULT: u32 = 250;
/// What an operator may choose for it. Above a hundredfold a promise means nothing.
pub const OVERCOMMIT_PERCENT_RANGE: RangeInclusive<u32> = 10..=10_000;
/// How full a store may be and still be given new slices, in percent, unless the cluster says otherwise:
/// the rest is for growth of what it has, for resilvers and for snapshots.
pub const HIGH_WATER_PERCENT_DEFAULT: u32 = 85;
/// What an operator may choose for it.
pub const HIGH_WATER_PERCENT_RANGE: RangeInclusive<u32> = 1..=100;

const _: () = assert!(REPLIES_PER_CLIENT_MAX > CLIENT_IN_FLIGHT_MAX);
const _: () = assert!(VOLUME_BYTES_MIN.is_multiple_of(shardmap::units::REGION_BYTES));

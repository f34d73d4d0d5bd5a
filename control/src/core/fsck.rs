//! Checks the whole state against itself. Run by tests after every command, by `ubsctl meta fsck`
//! and by a member after it has loaded a snapshot.

use super::apply::{maintenance_of, shard_without};
use super::limits;
use super::model::{Part, PartStep, Phase, State, Volume};
use shardmap::generations::SnapshotState;
use shardmap::units::{Epoch, VolumeId};
use std::collections::BTreeSet;
use std::fmt::Display;

/// Something in the state that contradicts something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, with the ids and values.
    pub sentence: String,
}

/// Every contradiction found; empty for a sound state.
pub fn fsck(state: &State) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    check_identities(state, &mut found);
    check_minted(state, &mut found);
    check_catalogue(state, &mut found);
    for (id, volume) in &state.volumes {
        check_volume(state, *id, volume, &mut found);
    }
    check_groups(state, &mut found);
    check_slices(state, &mut found);
    check_bounds(state, &mut found);
    found.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn unless(&mut self, holds: bool, sentence: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Finding {
                sentence: sentence(),
            });
        }
    }

    fn unique<T: Ord + Display>(&mut self, what: &str, items: impl Iterator<Item = T>) {
        let mut seen = BTreeSet::new();
        for item in items {
            let sentence = format!("two {what} are {item}");
            self.unless(seen.insert(item), || sentence);
        }
    }
}

fn check_identities(state: &State, found: &mut Findings) {
    found.unique("server names", state.servers.values().map(|s| &s.name));
    found.unique("server uuids", state.servers.values().map(|s| s.uuid));
    found.unique("store uuids", state.stores.values().map(|s| s.uuid));
    found.unique("host names", state.hosts.values().map(|h| &h.name));
    found.unique("host uuids", state.hosts.values().map(|h| h.uuid));
    found.unique("host NQNs", state.hosts.values().map(|h| &h.host_nqn));
    let living = state
        .volumes
        .values()
        .filter(|v| v.phase != Phase::Deleting);
    found.unique("volume names", living.map(|v| &v.name));
    let empty = state.servers.is_empty() && state.volumes.is_empty() && state.hosts.is_empty();
    found.unless(state.cluster.is_some() || empty, || {
        "things without a cluster".into()
    });
}

fn check_minted(state: &State, found: &mut Findings) {
    let m = state.minted;
    let last = |id: Option<u32>| id.unwrap_or(0);
    let ids = [
        (
            "server",
            last(state.servers.last_key_value().map(|(k, _)| k.0)),
            m.server,
        ),
        (
            "store",
            last(state.stores.last_key_value().map(|(k, _)| k.0)),
            m.store,
        ),
        (
            "host",
            last(state.hosts.last_key_value().map(|(k, _)| k.0)),
            m.host,
        ),
        (
            "set",
            last(state.sets.last_key_value().map(|(k, _)| k.0)),
            m.set,
        ),
        (
            "nsid",
            last(state.slices.last_key_value().map(|(k, _)| k.0)),
            m.nsid,
        ),
    ];
    for (what, used, minted) in ids {
        found.unless(used <= minted, || {
            format!("{what} {used} is used and {minted} were minted")
        });
    }
    for store in state.stores.values() {
        found.unless(state.servers.contains_key(&store.server), || {
            format!("store {} is in unknown {}", store.uuid, store.server)
        });
    }
}

fn check_catalogue(state: &State, found: &mut Findings) {
    for (id, set) in &state.sets {
        let distinct: BTreeSet<_> = set.stores.iter().collect();
        found.unless(distinct.len() == set.stores.len(), || {
            format!("{id} has a store twice")
        });
        found.unless(
            set.stores.iter().all(|s| state.stores.contains_key(s)),
            || format!("{id} has an unknown store"),
        );
    }
}

fn check_volume(state: &State, id: VolumeId, volume: &Volume, found: &mut Findings) {
    let name = &volume.name;
    let shape = volume.map.shape;
    found.unless(usize::from(shape.stride) == volume.map.stores.len(), || {
        format!(
            "volume {name}: stride {} and {} stores",
            shape.stride,
            volume.map.stores.len()
        )
    });
    // The set of a volume that is being deleted may be gone with a store that was removed.
    let set = state.sets.get(&volume.set);
    found.unless(
        set.map_or(volume.phase == Phase::Deleting, |s| {
            s.stores == volume.map.stores
        }),
        || format!("volume {name}: its stores are not those of {}", volume.set),
    );
    found.unless(
        volume.isr.iter().all(|s| volume.map.stores.contains(s)),
        || format!("volume {name}: the in-sync set has a stranger"),
    );
    found.unless(shard_without(&volume.map, &volume.isr).is_none(), || {
        format!("volume {name}: some shard has no in-sync replica")
    });
    found.unless(
        volume.phase == Phase::Deleting
            || volume.origin.is_some()
            || volume.slices.len() == volume.map.stores.len(),
        || {
            format!(
                "volume {name}: {} slices for {} stores",
                volume.slices.len(),
                volume.map.stores.len()
            )
        },
    );
    for nsid in &volume.slices {
        found.unless(
            state.slices.get(nsid).is_some_and(|s| s.volume == id),
            || format!("volume {name}: {nsid} is not its slice"),
        );
    }
    let confirmed = volume
        .slices
        .iter()
        .filter_map(|n| state.slices.get(n))
        .all(|s| s.confirmed || volume.clone_of.is_some() && !volume.isr.contains(&s.store));
    let is_there = matches!(volume.phase, Phase::Ready | Phase::RollingBack);
    found.unless(is_there <= confirmed, || {
        format!("volume {name} is ready without all its slices")
    });
    check_origin(state, volume, found);
    check_clone(state, volume, found);
    check_kept(state, (id, volume), found);
    check_growth(state, volume, found);
    check_snapshots(volume, found);
    check_holder(state, volume, found);
    check_maintenance(state, (id, volume), found);
}

fn check_maintenance(state: &State, (id, volume): (VolumeId, &Volume), found: &mut Findings) {
    let name = &volume.name;
    let now = maintenance_of(state, state.applied_index, (id, volume));
    found.unless(volume.maintenance.is_some() == now.is_some(), || {
        let is = volume
            .maintenance
            .map_or("nobody".into(), |m| m.server.to_string());
        format!("volume {name}: to be resilvered by {is}, which does not follow from its state")
    });
    let Some(maintenance) = volume.maintenance else {
        return;
    };
    let server = maintenance.server;
    found.unless(state.servers.contains_key(&server), || {
        format!("volume {name}: to be resilvered by unknown {server}")
    });
    found.unless(maintenance.epoch.is_none_or(|e| e == volume.epoch), || {
        let newest = volume.epoch;
        format!("volume {name}: resilvered by {server} under another epoch than {newest}")
    });
}

fn check_origin(state: &State, volume: &Volume, found: &mut Findings) {
    let Some(origin) = volume.origin else {
        return;
    };
    let name = &volume.name;
    let of = state.volumes.get(&origin.volume);
    let snapshot = of.and_then(|v| v.snapshots.get(&origin.generation));
    let complete = snapshot.is_some_and(|s| s.state == SnapshotState::Complete);
    found.unless(complete, || {
        format!("view {name}: what it shows is no complete snapshot")
    });
    found.unless(
        volume.slices.is_empty() && volume.snapshots.is_empty(),
        || format!("view {name} has slices or snapshots of its own"),
    );
}

fn check_clone(state: &State, clone: &Volume, found: &mut Findings) {
    let Some(origin) = clone.clone_of else {
        return;
    };
    let name = &clone.name;
    let Some(of) = state.volumes.get(&origin.volume) else {
        found.unless(false, || {
            format!("clone {name}: the volume that it begins with is gone")
        });
        return;
    };
    let snapshot = of.snapshots.get(&origin.generation);
    let snapshot = snapshot.or_else(|| of.kept.get(&origin.generation));
    let complete = snapshot.is_some_and(|s| s.state == SnapshotState::Complete);
    found.unless(complete, || {
        format!("clone {name}: what it begins with is no complete snapshot")
    });
    let places = |v: &Volume| (v.map.shape, v.map.stores.clone());
    let apart = places(of) != places(clone);
    found.unless(!apart, || {
        format!(
            "clone {name}: its slices do not lie beside those of {}",
            of.name
        )
    });
    let lower = of.slices.iter().max() < clone.slices.iter().min() || clone.slices.is_empty();
    found.unless(lower, || {
        format!("clone {name}: a slice has a lower number than what it begins with")
    });
}

fn check_kept(state: &State, (id, volume): (VolumeId, &Volume), found: &mut Findings) {
    for (generation, kept) in &volume.kept {
        let mut clones = state.clones_of(id, Some(*generation));
        let named = volume.snapshots.contains_key(generation);
        found.unless(clones.next().is_some() && !named, || {
            let (of, name) = (&volume.name, &kept.name);
            format!("snapshot {of}@{name} is kept for clones and has none, or is not deleted")
        });
    }
}

fn check_groups(state: &State, found: &mut Findings) {
    for (group, members) in &state.groups {
        let parts = members.iter().map(|(id, generation)| {
            let snapshot = state
                .volumes
                .get(id)
                .and_then(|v| v.snapshots.get(generation));
            snapshot.and_then(|s| s.part).filter(|p| p.group == *group)
        });
        let parts: Vec<_> = parts.collect();
        found.unless(parts.len() > 1 && parts.iter().all(Option::is_some), || {
            format!("group {group} of snapshots has one that is not a part of it")
        });
        let cut = |p: &Option<Part>| p.is_some_and(|p| p.step >= PartStep::Cut);
        let some_cut = parts.iter().any(cut);
        found.unless(!some_cut || parts.iter().all(cut), || {
            format!("group {group} of snapshots is cut in some volumes only")
        });
    }
    for (id, volume) in &state.volumes {
        for (generation, snapshot) in &volume.snapshots {
            let pending = snapshot.state == SnapshotState::Pending;
            found.unless(pending || !snapshot.abandoned, || {
                format!("snapshot {generation} of volume {id} is complete and abandoned")
            });
            let Some(part) = snapshot.part else { continue };
            let group = state.groups.get(&part.group);
            let listed = group.and_then(|members| members.get(id)) == Some(generation);
            found.unless(pending && listed && !snapshot.abandoned, || {
                format!("snapshot {generation} of volume {id} is of a group without it")
            });
            let holder = volume.holder_epoch();
            let idle = part.holder.is_none() && part.step >= PartStep::Cut;
            let spoken_for = idle || part.step == PartStep::Whole || holder == part.holder;
            found.unless(spoken_for, || {
                format!("snapshot {generation} of volume {id} waits for a holder that is gone")
            });
        }
    }
}

fn check_growth(state: &State, volume: &Volume, found: &mut Findings) {
    let (name, size) = (&volume.name, volume.map.size_blocks);
    found.unless(volume.growing_to.is_none_or(|to| to > size), || {
        format!("volume {name}: growing to less than it has, {size} blocks")
    });
    let slices = volume.slices.iter().filter_map(|n| state.slices.get(n));
    let short = slices
        .filter(|s| s.confirmed && s.size_blocks < size)
        .count();
    found.unless(short == 0 || volume.phase == Phase::Creating, || {
        format!("volume {name}: {short} slices are smaller than it")
    });
}

fn check_snapshots(volume: &Volume, found: &mut Findings) {
    let name = &volume.name;
    found.unless(volume.generations().is_sound(), || {
        format!(
            "volume {name}: its snapshots do not fit its head, {}",
            volume.head
        )
    });
    let names = volume.snapshots.values().map(|s| &s.name);
    found.unique(&format!("snapshots of volume {name}"), names);
    found.unless(!volume.open_access || volume.snapshots.is_empty(), || {
        format!("volume {name}: open to standard hosts and has snapshots")
    });
    let rolls = volume.phase == Phase::RollingBack;
    found.unless(rolls == volume.rollback.is_some(), || {
        format!("volume {name}: rolled back without a snapshot, or not rolled back with one")
    });
    for generation in volume.rollback.iter().flat_map(|r| [r.to, r.before]) {
        found.unless(volume.snapshots.contains_key(&generation), || {
            format!("volume {name}: rolled back without its snapshot {generation}")
        });
    }
}

fn check_holder(state: &State, volume: &Volume, found: &mut Findings) {
    let name = &volume.name;
    if let Some(held) = volume.attachment {
        found.unless(held.epoch == volume.epoch && held.epoch > Epoch(0), || {
            format!(
                "volume {name}: held under {} and its epoch is {}",
                held.epoch, volume.epoch
            )
        });
        found.unless(held.since <= held.epoch, || {
            format!(
                "volume {name}: held since {}, after its epoch {}",
                held.since, held.epoch
            )
        });
        found.unless(volume.phase == Phase::Ready, || {
            format!("volume {name}: held and not ready")
        });
    }
    for host in [volume.desired, volume.attachment.map(|a| a.host)]
        .into_iter()
        .flatten()
    {
        found.unless(state.hosts.contains_key(&host), || {
            format!("volume {name}: unknown {host}")
        });
    }
    let idle = volume.desired.is_none() && volume.attachment.is_none();
    found.unless(volume.phase != Phase::Deleting || idle, || {
        format!("volume {name} is being deleted while somebody has it")
    });
}

fn check_slices(state: &State, found: &mut Findings) {
    for (nsid, slice) in &state.slices {
        let volume = state.volumes.get(&slice.volume);
        found.unless(volume.is_some_and(|v| v.slices.contains(nsid)), || {
            format!("{nsid} belongs to no volume")
        });
        let at = volume.and_then(|v| v.map.stores.get(usize::from(slice.position)));
        found.unless(at == Some(&slice.store), || {
            format!(
                "{nsid} is on {} at position {}, the map differs",
                slice.store, slice.position
            )
        });
    }
}

fn check_bounds(state: &State, found: &mut Findings) {
    found.unless(state.events.len() <= limits::EVENTS_MAX, || {
        "too many events".into()
    });
    found.unless(
        state.snapshot_count() <= limits::SNAPSHOTS_CLUSTER_MAX,
        || "too many snapshots".into(),
    );
    found.unless(state.clients.len() <= limits::CLIENTS_MAX, || {
        "too many clients".into()
    });
    let mut indexes = state.events.iter().map(|e| e.index);
    let mut next = indexes.next().unwrap_or(0);
    for index in indexes {
        found.unless(index == next + 1, || {
            format!("event {index} follows event {next}")
        });
        next = index;
    }
    found.unless(
        state.events.is_empty() || next == state.minted.event,
        || {
            format!(
                "the last event is {next} and {} were minted",
                state.minted.event
            )
        },
    );
}

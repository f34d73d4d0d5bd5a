//! Making and deleting volumes; slices.

use super::super::command::{Change, NewVolume, Reply};
use super::super::limits;
use super::super::model::{Domain, Phase, SetId, Slice, Standing, State, StrideSet, Volume};
use super::super::refusal::{Refusal, RefusalCode};
use super::clone::has_no_clones;
use super::view::not_shown;
use super::{Step, check_name, check_room};
use shardmap::generations::FIRST_GENERATION;
use shardmap::map::VolumeMap;
use shardmap::placement::{self, Candidate, Choice, KnownSet, NoPlace, Wish};
use shardmap::units::{
    BLOCK_BYTES, Epoch, MembershipSeq, Nsid, SHARD_BYTES_RANGE, StoreId, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Where a volume would go: the checks and the choice of `CreateVolume`, without carrying it out.
///
/// # Errors
/// The refusal that `CreateVolume` would answer with.
pub fn plan_volume(state: &State, new: &NewVolume) -> Result<Choice, Refusal> {
    check_numbers(new)?;
    check_new_name(state, new.id, &new.name)?;
    check_room("volume", state.volumes.len(), limits::VOLUMES_MAX)?;
    let candidates = candidates(state, &new.domain, &new.avoid);
    let catalogue: Vec<KnownSet> = state
        .sets
        .iter()
        .map(|(id, set)| KnownSet {
            id: id.0,
            stores: set.stores.clone(),
            same_rule: set.domain == new.domain,
        })
        .collect();
    let shard_blocks = u32::try_from(new.shard_bytes / u64::from(BLOCK_BYTES))
        .map_err(|_| bad_shard(new.shard_bytes))?;
    let wish = Wish {
        size_blocks: new.size_bytes / u64::from(BLOCK_BYTES),
        shard_blocks,
        replicas: new.replicas,
        stride: new.stride,
        layout: new.layout,
    };
    placement::choose(wish, &candidates, &catalogue).map_err(|no| no_place(new, &no))
}

/// Whether a volume of this name and identity can be made.
pub(super) fn check_new_name(state: &State, id: VolumeId, name: &str) -> Result<(), Refusal> {
    check_name("volume", name)?;
    let mut same_name = state.volumes.values().filter(|v| v.name == name);
    if state.volumes.contains_key(&id) || same_name.any(|v| v.phase != Phase::Deleting) {
        return Err(Refusal::new(
            RefusalCode::NameTaken,
            format!("there is a volume {name} already"),
            "choose another name, or delete the other volume",
        ));
    }
    Ok(())
}

/// Whether a volume can have this size.
pub(super) fn check_size(name: &str, size: u64) -> Result<(), Refusal> {
    if !size.is_multiple_of(u64::from(BLOCK_BYTES)) {
        let up = size.next_multiple_of(u64::from(BLOCK_BYTES));
        return Err(Refusal::invalid(
            format!("volume {name}: {size} bytes is not a multiple of {BLOCK_BYTES}"),
            format!("use {up}"),
        ));
    }
    if !(limits::VOLUME_BYTES_MIN..=limits::VOLUME_BYTES_MAX).contains(&size) {
        return Err(Refusal::invalid(
            format!("volume {name}: {size} bytes is not an acceptable size"),
            format!(
                "use {} to {} bytes",
                limits::VOLUME_BYTES_MIN,
                limits::VOLUME_BYTES_MAX
            ),
        ));
    }
    Ok(())
}

fn check_numbers(new: &NewVolume) -> Result<(), Refusal> {
    let name = &new.name;
    check_size(name, new.size_bytes)?;
    if !(1..=placement::REPLICAS_MAX).contains(&new.replicas) {
        return Err(Refusal::invalid(
            format!("volume {name}: {} replicas", new.replicas),
            format!("use 1 to {}", placement::REPLICAS_MAX),
        ));
    }
    if !(1..=new.replicas).contains(&new.min_in_sync) {
        return Err(Refusal::invalid(
            format!(
                "volume {name}: at least {} in-sync replicas",
                new.min_in_sync
            ),
            format!("use 1 to {}, the number of replicas", new.replicas),
        ));
    }
    let shard = new.shard_bytes;
    if !shard.is_power_of_two() || !SHARD_BYTES_RANGE.contains(&shard) {
        return Err(bad_shard(shard));
    }
    if new.open_access && (new.replicas != 1 || new.stride.is_some_and(|s| s != 1)) {
        return Err(Refusal::invalid(
            format!("volume {name}: open access with {} replicas", new.replicas),
            "standard NVMe hosts can use a volume of one replica on one store only; \
             use --replicas 1 --stride 1",
        ));
    }
    Ok(())
}

fn bad_shard(shard_bytes: u64) -> Refusal {
    let (low, high) = (SHARD_BYTES_RANGE.start(), SHARD_BYTES_RANGE.end());
    Refusal::invalid(
        format!("a shard of {shard_bytes} bytes"),
        format!("use a power of two from {low} to {high}"),
    )
}

fn no_place(new: &NewVolume, no: &NoPlace) -> Refusal {
    let sentence = format!("volume {}: {no}", new.name);
    match no {
        NoPlace::TooFewDomains { .. } => {
            let more = match &new.domain {
                Domain::Store => "stores (or bring back those that are away)".to_owned(),
                Domain::Server => "servers (or bring back those that are away)".to_owned(),
                Domain::Label(key) => format!("servers with other values of `labels.{key}`"),
            };
            Refusal::new(
                RefusalCode::TooFewServers,
                sentence,
                format!(
                    "add {more}, uncordon some, ask for fewer --replicas, or choose another \
                     --domain than {}",
                    new.domain
                ),
            )
        }
        NoPlace::NoRoom { .. } => Refusal::new(
            RefusalCode::NoRoom,
            sentence,
            "add stores, delete volumes, make the volume smaller, or allow more promises \
             (`ubsctl cluster limits`)",
        ),
        NoPlace::BadStride { .. } => Refusal::invalid(
            sentence,
            format!(
                "use a stride from the number of replicas to {}; with layout block a multiple of it",
                placement::STRIDE_MAX
            ),
        ),
    }
}

fn candidates(state: &State, domain: &Domain, avoid: &BTreeSet<StoreId>) -> Vec<Candidate> {
    let promised = state.promised_bytes();
    state
        .stores
        .iter()
        .filter(|(id, _)| !avoid.contains(id))
        .filter_map(|(id, store)| {
            let server = state.servers.get(&store.server)?;
            if server.standing != Standing::Active {
                return None;
            }
            let domain = match domain {
                Domain::Store => id.to_string(),
                Domain::Server => store.server.to_string(),
                Domain::Label(key) => server.labels.get(key)?.clone(),
            };
            let promised_bytes = promised.get(id).copied().unwrap_or(0);
            let room_bytes = state
                .promisable_bytes(store.size_bytes)
                .saturating_sub(promised_bytes);
            let server = store.server;
            Some(Candidate {
                store: *id,
                server,
                domain,
                room_bytes,
                promised_bytes,
            })
        })
        .collect()
}

impl Step<'_> {
    pub(super) fn create_volume(&mut self, new: NewVolume) -> Result<Reply, Refusal> {
        let choice = plan_volume(self.state, &new)?;
        let set = self.take_set(&choice, new.domain);
        let slices = self.mint_slices(new.id, &choice.stores, &choice.slice_bytes);
        let volume = Volume {
            name: new.name,
            map: VolumeMap {
                size_blocks: new.size_bytes / u64::from(BLOCK_BYTES),
                shape: choice.shape,
                stores: choice.stores.clone(),
            },
            growing_to: None,
            set,
            slices,
            min_in_sync: new.min_in_sync,
            open_access: new.open_access,
            phase: Phase::Creating,
            desired: None,
            attachment: None,
            epoch: Epoch(0),
            seq: MembershipSeq(1),
            isr: choice.stores.iter().copied().collect(),
            verified: true,
            maintenance: None,
            head: FIRST_GENERATION,
            snapshots: BTreeMap::new(),
            origin: None,
            clone_of: None,
            kept: BTreeMap::new(),
            forsaken: false,
            rollback: None,
        };
        self.state.volumes.insert(new.id, volume);
        self.wake_stores(new.id);
        self.say(Change::VolumeCreated(new.id));
        Ok(Reply::Volume(new.id))
    }

    fn take_set(&mut self, choice: &Choice, domain: Domain) -> SetId {
        if let Some(id) = choice.reused {
            return SetId(id);
        }
        self.state.minted.set += 1;
        let id = SetId(self.state.minted.set);
        self.state.sets.insert(
            id,
            StrideSet {
                stores: choice.stores.clone(),
                domain,
            },
        );
        id
    }

    /// Slices on these stores, by position.
    pub(super) fn mint_slices(
        &mut self,
        volume: VolumeId,
        stores: &[StoreId],
        promised: &[u64],
    ) -> Vec<Nsid> {
        let mut minted = Vec::with_capacity(stores.len());
        for ((position, store), promised) in (0u16..).zip(stores).zip(promised) {
            self.state.minted.nsid += 1;
            let nsid = Nsid(self.state.minted.nsid);
            let slice = Slice {
                volume,
                store: *store,
                position,
                promised_bytes: *promised,
                confirmed: false,
                size_blocks: 0,
            };
            self.state.slices.insert(nsid, slice);
            minted.push(nsid);
        }
        minted
    }

    pub(super) fn delete_volume(
        &mut self,
        id: VolumeId,
        with_snapshots: bool,
    ) -> Result<Reply, Refusal> {
        let Some(volume) = self.state.volumes.get(&id) else {
            return Err(Refusal::not_found("volume", id));
        };
        let holder = volume.attachment.map(|a| a.host).or(volume.desired);
        if let Some(host) = holder {
            let name = &volume.name;
            return Err(Refusal::new(
                RefusalCode::StillAttached,
                format!(
                    "volume {name} is attached on {}",
                    self.state.host_name(host)
                ),
                format!("detach it first: `ubsctl volume detach {name}`"),
            ));
        }
        if volume.phase == Phase::Deleting {
            return Ok(Reply::Done);
        }
        if !with_snapshots && !volume.snapshots.is_empty() {
            let (name, count) = (&volume.name, volume.snapshots.len());
            return Err(Refusal::new(
                RefusalCode::StillUsed,
                format!("volume {name} has {count} snapshots, which would go with it"),
                format!(
                    "delete them first (`ubsctl snapshot rm {name}@NAME`), or say \
                     `ubsctl volume delete {name} --with-snapshots`"
                ),
            ));
        }
        not_shown(self.state, id, None)?;
        has_no_clones(self.state, id)?;
        if volume.origin.is_some() {
            let name = volume.name.clone();
            self.state.volumes.remove(&id);
            self.say(Change::VolumeGone(id, name));
            return Ok(Reply::Done);
        }
        let volume = self.state.volumes.get_mut(&id).expect("just read");
        (volume.phase, volume.rollback) = (Phase::Deleting, None);
        self.touch(id);
        self.wake_stores(id);
        self.say(Change::VolumeDeleting(id));
        let part = self.state.volumes[&id].pending_part();
        if let Some(part) = part {
            self.abandon(part.group);
        }
        Ok(Reply::Done)
    }

    pub(super) fn confirm_slice(
        &mut self,
        store: StoreId,
        nsid: Nsid,
        size_blocks: u64,
    ) -> Result<Reply, Refusal> {
        let Some(slice) = self
            .state
            .slices
            .get_mut(&nsid)
            .filter(|s| s.store == store)
        else {
            return Err(Refusal::not_found("slice", format!("{nsid} on {store}")));
        };
        let id = slice.volume;
        let size = self.state.volumes[&id].map.size_blocks;
        if size_blocks < size {
            return Err(Refusal::invalid(
                format!("{nsid} on {store} has {size_blocks} blocks and its volume {size}"),
                "make it as large as the volume",
            ));
        }
        let is_new = !std::mem::replace(&mut slice.confirmed, true);
        self.slice_has(store, nsid, size_blocks);
        let volume = &self.state.volumes[&id];
        let slices = volume.slices.iter().map(|n| &self.state.slices[n]);
        let mut in_sync = slices.filter(|s| volume.isr.contains(&s.store));
        let all = in_sync.all(|s| s.confirmed);
        if is_new && matches!(volume.phase, Phase::Ready | Phase::RollingBack) {
            // Of a clone, on a store that was behind: now it can be brought up to date.
            self.hurry_maintenance(id);
        } else if all && volume.phase == Phase::Creating {
            self.state.volumes.get_mut(&id).expect("just read").phase = Phase::Ready;
            self.touch(id);
            self.say(Change::VolumeReady(id));
            self.wake_holders(id);
        }
        Ok(Reply::Done)
    }

    pub(super) fn confirm_slice_gone(
        &mut self,
        store: StoreId,
        nsid: Nsid,
    ) -> Result<Reply, Refusal> {
        let Some(slice) = self.state.slices.get(&nsid) else {
            return Ok(Reply::Done);
        };
        let id = slice.volume;
        let deleting = self.state.volumes[&id].phase == Phase::Deleting;
        if slice.store != store || !deleting {
            return Err(Refusal::invalid(
                format!("{nsid} on {store} is wanted, so it must not be removed"),
                "restore the store from the other replicas",
            ));
        }
        self.drop_slice(nsid);
        self.wake_store(store);
        Ok(Reply::Done)
    }

    /// A slice of a volume that is being deleted is gone; with the last one the volume is.
    pub(super) fn drop_slice(&mut self, nsid: Nsid) {
        let Some(slice) = self.state.slices.remove(&nsid) else {
            return;
        };
        let id = slice.volume;
        let volume = self
            .state
            .volumes
            .get_mut(&id)
            .expect("a slice has a volume");
        volume.slices.retain(|n| *n != nsid);
        let (name, clone_of) = (volume.name.clone(), volume.clone_of);
        if volume.slices.is_empty() {
            self.state.volumes.remove(&id);
            self.say(Change::VolumeGone(id, name));
            self.release_kept(clone_of);
        }
    }
}

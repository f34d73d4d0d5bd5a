//! Online growth. The stores grow their slices first; when the last one has said so, the volume has its
//! new size, and who has it hears of it.
//!
//! ```text
//! GrowVolume:   size, growing to N        the storageds are asked for slices of N
//! ConfirmSlice: … every slice is N  ──►   size N
//! ```

use super::super::command::{Change, Reply};
use super::super::model::Phase;
use super::super::refusal::{Refusal, RefusalCode};
use super::Step;
use super::attach::shard_without;
use super::snapshot::not_ready;
use super::view::not_a_view;
use super::volume::check_size;
use shardmap::map::VolumeMap;
use shardmap::placement::slice_bytes;
use shardmap::units::{BLOCK_BYTES, Nsid, StoreId, VolumeId};

impl Step<'_> {
    pub(super) fn grow_volume(&mut self, id: VolumeId, size_bytes: u64) -> Result<Reply, Refusal> {
        let volume = self.state.volumes.get(&id);
        let volume = volume.ok_or_else(|| Refusal::not_found("volume", id))?;
        not_a_view(volume, "has the size of its snapshot")?;
        check_size(&volume.name, size_bytes)?;
        let size_blocks = size_bytes / u64::from(BLOCK_BYTES);
        let now = volume.growing_to.unwrap_or(volume.map.size_blocks);
        if size_blocks == now {
            return Ok(Reply::Done);
        }
        if size_blocks < now {
            return Err(Refusal::invalid(
                format!(
                    "volume {} has {} bytes, or is about to, and does not shrink",
                    volume.name,
                    now * u64::from(BLOCK_BYTES)
                ),
                "name a larger size",
            ));
        }
        if volume.phase != Phase::Ready {
            return Err(not_ready(volume));
        }
        let promised = slice_bytes(volume.map.shape, size_blocks);
        let slices: Vec<(Nsid, u64)> = volume.slices.iter().copied().zip(promised).collect();
        for (nsid, bytes) in &slices {
            let slice = &self.state.slices[nsid];
            self.check_promise(slice.store, slice.promised_bytes, *bytes)?;
        }
        for (nsid, bytes) in slices {
            let slice = self.state.slices.get_mut(&nsid).expect("a volume's slice");
            slice.promised_bytes = bytes;
        }
        let volume = self.volume(id)?;
        volume.growing_to = Some(size_blocks);
        self.say(Change::VolumeGrowing(id, size_bytes));
        self.wake_stores(id);
        Ok(Reply::Done)
    }

    /// Whether a store may promise a slice so many bytes, to which it has promised some before.
    pub(super) fn check_promise(
        &self,
        store: StoreId,
        before: u64,
        bytes: u64,
    ) -> Result<(), Refusal> {
        let promised = self.state.promised_bytes();
        let others = promised.get(&store).map_or(0, |all| all - before);
        let size = self.state.stores.get(&store).map_or(0, |s| s.size_bytes);
        let may = self.state.promisable_bytes(size);
        if others.saturating_add(bytes) <= may {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalCode::NoRoom,
            format!(
                "{} would have to promise {} bytes and may promise {may}",
                self.state.store_name(store),
                others.saturating_add(bytes)
            ),
            format!(
                "delete volumes, choose a smaller size, or allow more than {} % \
                 (`ubsctl cluster limits --overcommit-percent N`)",
                self.state.space_limits().overcommit_percent
            ),
        ))
    }

    /// A storaged has the slice, with so many blocks.
    pub(super) fn slice_has(&mut self, store: StoreId, nsid: Nsid, size_blocks: u64) {
        let slice = self
            .state
            .slices
            .get_mut(&nsid)
            .filter(|s| s.store == store);
        let slice = slice.expect("looked up by the caller");
        slice.size_blocks = slice.size_blocks.max(size_blocks);
        let id = slice.volume;
        let volume = &self.state.volumes[&id];
        let Some(to) = volume.growing_to else {
            return;
        };
        if size_blocks < to {
            // Its storaged may have looked before the volume began to grow.
            return self.wake_store(store);
        }
        self.finish_growth(id);
    }

    /// The volume has its new size if all its slices have, and each of its shards, also the new ones, an
    /// in-sync replica.
    pub(super) fn finish_growth(&mut self, id: VolumeId) {
        let volume = &self.state.volumes[&id];
        let Some(to) = volume.growing_to else {
            return;
        };
        let has = |n: &Nsid| self.state.slices[n].size_blocks >= to;
        let grown = VolumeMap {
            size_blocks: to,
            ..volume.map.clone()
        };
        if !volume.slices.iter().all(has) || shard_without(&grown, &volume.isr).is_some() {
            return;
        }
        let volume = self.state.volumes.get_mut(&id).expect("just read");
        volume.map = grown;
        volume.growing_to = None;
        self.say(Change::VolumeGrown(id, to * u64::from(BLOCK_BYTES)));
        self.wake_holders(id);
    }
}

#[cfg(test)]
mod test;

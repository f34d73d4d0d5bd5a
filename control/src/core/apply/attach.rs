//! Who has a volume, and which of its replicas are in sync.

use super::super::command::{AttachGrant, Change, Reply};
use super::super::desire::slice_addresses;
use super::super::model::{Attachment, HostId, Phase, Volume};
use super::super::refusal::{Refusal, RefusalCode};
use super::Step;
use super::snapshot::not_ready;
use shardmap::map::VolumeMap;
use shardmap::units::{Epoch, MembershipSeq, ShardIndex, StoreId, VolumeId};
use std::collections::BTreeSet;

impl Step<'_> {
    pub(super) fn volume(&mut self, id: VolumeId) -> Result<&mut Volume, Refusal> {
        self.touch(id);
        self.state
            .volumes
            .get_mut(&id)
            .ok_or_else(|| Refusal::not_found("volume", id))
    }

    pub(super) fn set_desired(&mut self, id: VolumeId, host: HostId) -> Result<Reply, Refusal> {
        let Some(found) = self.state.hosts.get(&host) else {
            return Err(Refusal::not_found("host", host));
        };
        if found.is_standard() {
            return Err(Refusal::invalid(
                format!("{} is a standard NVMe host: it has no clientd", found.name),
                "attach on a host that runs clientd; standard hosts connect to open-access \
                 volumes with `nvme connect`",
            ));
        }
        let volume = self.volume(id)?;
        if volume.phase == Phase::Deleting {
            let name = volume.name.clone();
            return Err(Refusal::new(
                RefusalCode::NotReady,
                format!("volume {name} is being deleted"),
                "create another one",
            ));
        }
        if volume.open_access {
            let name = volume.name.clone();
            return Err(Refusal::invalid(
                format!("volume {name} is open to standard NVMe hosts"),
                "connect to it with `nvme connect` instead of attaching it",
            ));
        }
        let holder = volume.attachment.map(|a| a.host);
        let other = [volume.desired, holder]
            .into_iter()
            .flatten()
            .find(|h| *h != host);
        if let Some(other) = other {
            return Err(self.attached_elsewhere(id, other));
        }
        if volume.desired == Some(host) {
            return Ok(Reply::Done);
        }
        volume.desired = Some(host);
        self.say(Change::DesiredAttachment(id, Some(host)));
        self.wake_host(host);
        Ok(Reply::Done)
    }

    fn attached_elsewhere(&self, id: VolumeId, other: HostId) -> Refusal {
        let name = &self.state.volumes[&id].name;
        let host = self.state.host_name(other);
        Refusal::new(
            RefusalCode::AttachedElsewhere,
            format!("volume {name} is attached on {host}"),
            format!(
                "detach it there first (`ubsctl volume detach {name}`); if {host} is gone for \
                 good, `ubsctl volume force-detach {name}`"
            ),
        )
    }

    pub(super) fn clear_desired(&mut self, id: VolumeId) -> Result<Reply, Refusal> {
        let volume = self.volume(id)?;
        if let Some(host) = volume.desired.take() {
            self.say(Change::DesiredAttachment(id, None));
            self.wake_host(host);
        }
        Ok(Reply::Done)
    }

    pub(super) fn attach(&mut self, id: VolumeId, host: HostId) -> Result<Reply, Refusal> {
        let lineage = self.state.cluster.as_ref().map_or(0, |c| c.lineage);
        let volume = self.volume(id)?;
        if let Some(holder) = volume.attachment
            && holder.host != host
        {
            return Err(self.attached_elsewhere(id, holder.host));
        }
        if volume.desired != Some(host) {
            let name = volume.name.clone();
            let asker = self.state.host_name(host);
            return Err(Refusal::new(
                RefusalCode::NotDesired,
                format!("volume {name} is not wanted on {asker}"),
                format!("ask for it with `ubsctl volume attach {name} --on {asker}`"),
            ));
        }
        if volume.phase != Phase::Ready {
            return Err(not_ready(volume));
        }
        let epoch = volume.next_epoch(lineage);
        let since = volume.attachment.map_or(epoch, |held| held.since);
        volume.forsaken |= volume.attachment.is_some();
        volume.epoch = epoch;
        volume.attachment = Some(Attachment { host, epoch, since });
        self.say(Change::Attached(id, host, epoch));
        self.holder_came(id, epoch);
        self.wake_host(host);
        Ok(Reply::Granted(Box::new(self.grant(id))))
    }

    pub(super) fn grant(&self, id: VolumeId) -> AttachGrant {
        let volume = &self.state.volumes[&id];
        AttachGrant {
            volume: id,
            name: volume.name.clone(),
            map: volume.map.clone(),
            epoch: volume.epoch,
            seq: volume.seq,
            isr: volume.isr.clone(),
            verified: volume.verified,
            held_since: volume.attachment.map_or(volume.epoch, |held| held.since),
            generations: volume.generations(),
            min_in_sync: volume.min_in_sync,
            slices: slice_addresses(self.state, volume),
            view: volume.origin.map(|origin| origin.generation),
            rollback: volume.rollback,
        }
    }

    pub(super) fn detach(&mut self, id: VolumeId, epoch: Epoch) -> Result<Reply, Refusal> {
        let volume = self.volume(id)?;
        if volume.epoch != epoch {
            return Ok(Reply::Fenced {
                epoch: volume.epoch,
            });
        }
        if let Some(held) = volume.attachment.take() {
            self.say(Change::Detached(id, held.host));
            self.wake_host(held.host);
            self.holder_went(id);
        } else if let Some(ours) = &mut volume.maintenance
            && ours.epoch.take().is_some()
        {
            // It has opened the stores and seen.
            ours.blank = false;
            let server = ours.server;
            self.say(Change::MaintenanceEnded(id, server));
            self.holder_went(id);
        }
        Ok(Reply::Done)
    }

    pub(super) fn force_detach(&mut self, id: VolumeId) -> Result<Reply, Refusal> {
        let volume = self.volume(id)?;
        let desired = volume.desired.take();
        if let Some(held) = volume.attachment.take() {
            // The old holder's epoch ends here: metad answers it `Fenced` from now on, the stores
            // from the next attach on.
            volume.epoch = volume.epoch.next();
            volume.forsaken = true;
            self.say(Change::ForceDetached(id, held.host));
            self.wake_host(held.host);
            self.holder_went(id);
        }
        if let Some(host) = desired {
            self.say(Change::DesiredAttachment(id, None));
            self.wake_host(host);
        }
        Ok(Reply::Done)
    }

    pub(super) fn set_isr(
        &mut self,
        id: VolumeId,
        epoch: Epoch,
        seq: MembershipSeq,
        new_isr: BTreeSet<StoreId>,
    ) -> Result<Reply, Refusal> {
        let volume = self.volume(id)?;
        if !volume.is_held_under(epoch) {
            return Ok(Reply::Fenced {
                epoch: volume.epoch,
            });
        }
        if !volume.verified {
            return Err(Refusal::new(
                RefusalCode::NotReady,
                format!(
                    "the membership of volume {} was restored and is not verified",
                    volume.name
                ),
                "attach it again; that asks its stores",
            ));
        }
        if seq != volume.seq {
            let answered = seq.0 + 1 == volume.seq.0 && new_isr == volume.isr;
            return Ok(if answered {
                Reply::IsrSet(volume.seq)
            } else {
                Reply::Stale {
                    seq: volume.seq,
                    isr: volume.isr.clone(),
                }
            });
        }
        no_stranger(volume, &new_isr)?;
        let staying: BTreeSet<StoreId> = volume.isr.intersection(&new_isr).copied().collect();
        if let Some(shard) = shard_without(&volume.map, &staying) {
            return Err(Refusal::new(
                RefusalCode::LastReplica,
                format!(
                    "volume {}: {shard} would be left without an in-sync replica",
                    volume.name
                ),
                "bring one of its stores back first",
            ));
        }
        if new_isr == volume.isr {
            return Ok(Reply::IsrSet(volume.seq));
        }
        let left = volume.isr.difference(&new_isr).copied().collect();
        let joined = new_isr.difference(&volume.isr).copied().collect();
        volume.seq.0 += 1;
        volume.isr = new_isr;
        let seq = volume.seq;
        self.in_sync_slices_are_there(id);
        self.say(Change::IsrChanged {
            volume: id,
            seq,
            left,
            joined,
        });
        self.finish_growth(id);
        Ok(Reply::IsrSet(seq))
    }
}

/// Refuses a set that names a store outside the volume's stride set.
pub(super) fn no_stranger(volume: &Volume, isr: &BTreeSet<StoreId>) -> Result<(), Refusal> {
    match isr.iter().find(|s| !volume.map.stores.contains(s)) {
        None => Ok(()),
        Some(stranger) => Err(Refusal::invalid(
            format!("{stranger} holds nothing of volume {}", volume.name),
            "name stores of the volume's stride set only",
        )),
    }
}

/// A shard of which none of these stores holds a replica. The dealing rule repeats every `stride`
/// shards, so that many are enough to look at.
pub(in crate::core) fn shard_without(
    map: &VolumeMap,
    stores: &BTreeSet<StoreId>,
) -> Option<ShardIndex> {
    (0..u32::from(map.shape.stride).min(map.shard_count()))
        .map(ShardIndex)
        .find(|shard| !map.stores_of(*shard).any(|s| stores.contains(&s)))
}

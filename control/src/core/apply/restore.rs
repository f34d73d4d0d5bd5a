//! After a disaster restore: a new history, and memberships that the stores have to confirm.
//!
//! A backup may be older than the truth: its in-sync sets may name stores that were removed later
//! and miss what was acknowledged since. Every membership was stamped on all of its members before
//! anything was acknowledged under it, so the stores know better (replication protocol §3.4).

use super::super::command::{Change, Reply};
use super::super::limits::NSIDS_SKIPPED;
use super::super::refusal::{Refusal, RefusalCode};
use super::Step;
use super::attach::{no_stranger, shard_without};
use shardmap::units::{Epoch, MembershipSeq, StoreId, VolumeId};
use std::collections::BTreeSet;

impl Step<'_> {
    pub(super) fn begin_lineage(&mut self, lineage: u16) -> Result<Reply, Refusal> {
        let cluster = self.state.cluster.as_mut().expect("checked by dispatch");
        let floor = Epoch::new(lineage, 0).filter(|_| lineage > cluster.lineage);
        let Some(floor) = floor else {
            let ours = cluster.lineage;
            return Err(Refusal::invalid(
                format!("lineage {lineage} does not follow lineage {ours}"),
                format!("begin lineage {} or a later one", u32::from(ours) + 1),
            ));
        };
        cluster.lineage = lineage;
        for volume in self.state.volumes.values_mut() {
            volume.epoch = volume.epoch.max(floor);
            volume.attachment = None;
            volume.forsaken = true; // by whoever had it in the lost history
            // A view has no membership to verify.
            volume.verified = volume.origin.is_some();
        }
        let volumes: Vec<_> = self.state.volumes.keys().copied().collect();
        for volume in volumes {
            self.abandon_rollback(volume);
            self.touch(volume);
        }
        // Stores may hold slices that were minted after the backup: their numbers stay unused.
        self.state.minted.nsid = self.state.minted.nsid.saturating_add(NSIDS_SKIPPED);
        // Replies of the lost history, or to numbers that it used again after the backup.
        self.state.clients.clear();
        let hosts: Vec<_> = self.state.hosts.keys().copied().collect();
        hosts.into_iter().for_each(|host| self.wake_host(host));
        // Their storageds register again: what they and their stores were may be older than it is.
        let servers: Vec<_> = self.state.servers.keys().copied().collect();
        servers
            .into_iter()
            .for_each(|server| self.wake_server(server));
        self.say(Change::LineageBegan(lineage));
        let groups: Vec<_> = self.state.groups.keys().copied().collect();
        groups.into_iter().for_each(|group| self.abandon(group));
        Ok(Reply::Done)
    }

    /// Records the newest membership that the stores know of, as a new one.
    pub(super) fn verify_membership(
        &mut self,
        id: VolumeId,
        epoch: Epoch,
        seq: MembershipSeq,
        (found_seq, isr): (MembershipSeq, BTreeSet<StoreId>),
    ) -> Result<Reply, Refusal> {
        let lineage = self.state.cluster.as_ref().map_or(0, |c| c.lineage);
        let volume = self.volume(id)?;
        if !volume.is_held_under(epoch) {
            let epoch = volume.epoch;
            return Ok(Reply::Fenced { epoch });
        }
        // Past every stamp of an earlier lineage, also those that no answering store holds.
        let new_seq = MembershipSeq(found_seq.0.saturating_add(1).max(u64::from(lineage) << 48));
        if volume.verified || volume.seq != seq {
            let answered = volume.verified && volume.seq == new_seq && volume.isr == isr;
            return Ok(if answered {
                Reply::IsrSet(new_seq)
            } else {
                Reply::Stale {
                    seq: volume.seq,
                    isr: volume.isr.clone(),
                }
            });
        }
        no_stranger(volume, &isr)?;
        if let Some(shard) = shard_without(&volume.map, &isr) {
            return Err(Refusal::new(
                RefusalCode::LastReplica,
                format!("volume {}: {shard} has no replica in that set", volume.name),
                "a membership covers every shard",
            ));
        }
        if found_seq < seq {
            return Err(Refusal::invalid(
                format!("{found_seq} is older than the recorded {seq}"),
                "the recorded membership is one of those found",
            ));
        }
        volume.seq = new_seq;
        volume.isr.clone_from(&isr);
        volume.verified = true;
        self.in_sync_slices_are_there(id);
        let isr = isr.into_iter().collect();
        let seq = new_seq;
        self.wake_stores(id);
        self.finish_growth(id);
        self.say(Change::MembershipVerified {
            volume: id,
            seq,
            isr,
        });
        Ok(Reply::IsrSet(seq))
    }
}

#[cfg(test)]
mod test;

//! One method per thing that programs ask for.

use super::{MetadClient, MetadError};
use crate::api::{
    Answer, AttachmentDesire, ClusterView, Filter, HostView, PlanView, Question, Resilvers,
    ServerView, SliceDesire, SnapshotView, StoreView, Versioned, VolumeView,
};
use crate::core::{
    AttachGrant, Command, EventRecord, HostId, NewHost, NewServer, NewSpaceLimits, NewStore,
    NewVolume, Origin, Reply, Rollback, Standing,
};
use shardmap::generations::SnapshotStep;
use shardmap::grant::{IsrAnswer, MembershipRequest};
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;

macro_rules! expect {
    ($asked:expr, $got:expr, $pattern:pat => $value:expr) => {
        match $got {
            $pattern => Ok($value),
            other => Err(MetadError::unexpected(&$asked, &other)),
        }
    };
}

impl MetadClient {
    async fn run<T>(
        &self,
        command: Command,
        pick: impl FnOnce(Reply) -> Result<T, Reply>,
    ) -> Result<T, MetadError> {
        let asked = format!("{command:?}");
        let reply = self.command(command).await?;
        pick(reply).map_err(|got| MetadError::Unexpected {
            asked,
            got: format!("{got:?}"),
        })
    }

    async fn run_done(&self, command: Command) -> Result<(), MetadError> {
        self.run(command, |r| if r == Reply::Done { Ok(()) } else { Err(r) })
            .await
    }

    /// Announces a server, or its new address.
    ///
    /// # Errors
    /// Name taken, another cluster; see [`MetadError`].
    pub async fn register_server(&self, new: NewServer) -> Result<ServerId, MetadError> {
        let pick = |r| {
            if let Reply::Server(id) = r {
                Ok(id)
            } else {
                Err(r)
            }
        };
        self.run(Command::RegisterServer(new), pick).await
    }

    /// Announces a store of a server.
    ///
    /// # Errors
    /// Another cluster, unknown server; see [`MetadError`].
    pub async fn register_store(&self, new: NewStore) -> Result<StoreId, MetadError> {
        let pick = |r| {
            if let Reply::Store(id) = r {
                Ok(id)
            } else {
                Err(r)
            }
        };
        self.run(Command::RegisterStore(new), pick).await
    }

    /// Announces a client host.
    ///
    /// # Errors
    /// Name or NQN taken; see [`MetadError`].
    pub async fn register_host(&self, new: NewHost) -> Result<HostId, MetadError> {
        let pick = |r| {
            if let Reply::Host(id) = r {
                Ok(id)
            } else {
                Err(r)
            }
        };
        self.run(Command::RegisterHost(new), pick).await
    }

    /// Lets a standard NVMe host use open-access volumes.
    ///
    /// # Errors
    /// Name or NQN taken, the NQN of a clientd; see [`MetadError`].
    pub async fn add_host(&self, new: NewHost) -> Result<HostId, MetadError> {
        let pick = |r| {
            if let Reply::Host(id) = r {
                Ok(id)
            } else {
                Err(r)
            }
        };
        self.run(Command::AddHost(new), pick).await
    }

    /// Forgets a host.
    ///
    /// # Errors
    /// Unknown, or it has a volume; see [`MetadError`].
    pub async fn remove_host(&self, host: HostId) -> Result<(), MetadError> {
        self.run_done(Command::RemoveHost { host }).await
    }

    /// Forgets a store.
    ///
    /// # Errors
    /// Unknown, or a volume needs it; see [`MetadError`].
    pub async fn remove_store(&self, store: StoreId) -> Result<(), MetadError> {
        self.run_done(Command::RemoveStore { store }).await
    }

    /// Forgets a server.
    ///
    /// # Errors
    /// Unknown, or it has stores; see [`MetadError`].
    pub async fn remove_server(&self, server: ServerId) -> Result<(), MetadError> {
        self.run_done(Command::RemoveServer { server }).await
    }

    /// Makes a volume; it is ready when its storageds have made the slices.
    ///
    /// # Errors
    /// Name taken, bad numbers, too few servers, no room; see [`MetadError`].
    pub async fn create_volume(&self, new: NewVolume) -> Result<VolumeId, MetadError> {
        let pick = |r| {
            if let Reply::Volume(id) = r {
                Ok(id)
            } else {
                Err(r)
            }
        };
        self.run(Command::CreateVolume(new), pick).await
    }

    /// Begins to remove a volume, its snapshots only if that is said.
    ///
    /// # Errors
    /// Unknown, attached, has snapshots; see [`MetadError`].
    pub async fn delete_volume(
        &self,
        volume: VolumeId,
        with_snapshots: bool,
    ) -> Result<(), MetadError> {
        self.run_done(Command::DeleteVolume {
            volume,
            with_snapshots,
        })
        .await
    }

    /// Begins a snapshot of each of these volumes; it is complete when who has the volume, or a
    /// storaged, has brought it to an end.
    ///
    /// # Errors
    /// Unknown, name taken, another one pending, too many; see [`MetadError`].
    pub async fn create_snapshot(
        &self,
        volumes: BTreeSet<VolumeId>,
        name: String,
    ) -> Result<(), MetadError> {
        self.run_done(Command::CreateSnapshot { volumes, name })
            .await
    }

    /// Says how far stores may be filled.
    ///
    /// # Errors
    /// A percentage that makes no sense; see [`MetadError`].
    pub async fn set_space_limits(&self, new: NewSpaceLimits) -> Result<(), MetadError> {
        self.run_done(Command::SetSpaceLimits(new)).await
    }

    /// Makes a volume larger; it has the size when its storageds have grown its slices.
    ///
    /// # Errors
    /// Unknown, smaller than it is, no room; see [`MetadError`].
    pub async fn grow_volume(&self, volume: VolumeId, size_bytes: u64) -> Result<(), MetadError> {
        self.run_done(Command::GrowVolume { volume, size_bytes })
            .await
    }

    /// Makes a view of a complete snapshot.
    ///
    /// # Errors
    /// Unknown, name taken, not complete; see [`MetadError`].
    pub async fn create_view(
        &self,
        id: VolumeId,
        name: String,
        origin: Origin,
    ) -> Result<(), MetadError> {
        let pick = |r| {
            if let Reply::Volume(_) = r {
                Ok(())
            } else {
                Err(r)
            }
        };
        let command = Command::CreateView { id, name, origin };
        self.run(command, pick).await
    }

    /// Makes a clone of a complete snapshot: a volume that begins with what it shows.
    ///
    /// # Errors
    /// Unknown, name taken, not complete, too deep, no room; see [`MetadError`].
    pub async fn create_clone(
        &self,
        id: VolumeId,
        name: String,
        origin: Origin,
    ) -> Result<(), MetadError> {
        let pick = |r| {
            if let Reply::Volume(_) = r {
                Ok(())
            } else {
                Err(r)
            }
        };
        let command = Command::CreateClone { id, name, origin };
        self.run(command, pick).await
    }

    /// Gives up a snapshot; its space comes back in the background.
    ///
    /// # Errors
    /// Unknown, pending; see [`MetadError`].
    pub async fn delete_snapshot(
        &self,
        volume: VolumeId,
        generation: Generation,
    ) -> Result<(), MetadError> {
        self.run_done(Command::DeleteSnapshot { volume, generation })
            .await
    }

    /// Lets a volume that nobody has show again what a complete snapshot of it shows; what it shows now is
    /// kept as a snapshot of this name. Nobody can attach it until that is done.
    ///
    /// # Errors
    /// Unknown, attached, pending, name taken, no room; see [`MetadError`].
    pub async fn roll_back(
        &self,
        volume: VolumeId,
        to: Generation,
        keep_as: String,
    ) -> Result<(), MetadError> {
        self.run_done(Command::RollBack {
            volume,
            to,
            keep_as,
        })
        .await
    }

    /// Who has a volume: it is rolled back, durably. True: recorded, now or before; false: somebody newer has
    /// the volume.
    ///
    /// # Errors
    /// Unknown volume; see [`MetadError`].
    pub async fn complete_rollback(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        rollback: Rollback,
    ) -> Result<bool, MetadError> {
        self.run_unless_fenced(Command::CompleteRollback {
            volume,
            epoch,
            rollback,
        })
        .await
    }

    /// Who has a volume: a snapshot of it never changes any more. `held`: writes waited for those of its
    /// group. True: recorded, now or before; false: somebody newer has the volume.
    ///
    /// # Errors
    /// Unknown volume, no snapshot; see [`MetadError`].
    pub async fn complete_snapshot(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        generation: Generation,
        held: bool,
    ) -> Result<bool, MetadError> {
        let command = Command::CompleteSnapshot {
            volume,
            epoch,
            generation,
            held,
        };
        self.run_unless_fenced(command).await
    }

    /// Who has a volume: no write of it begins until all volumes of the snapshot's group are cut. True:
    /// recorded, or the group was given up; false: somebody newer has the volume.
    ///
    /// # Errors
    /// Unknown volume; see [`MetadError`].
    pub async fn hold_snapshot(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        generation: Generation,
    ) -> Result<bool, MetadError> {
        let command = Command::HoldSnapshot {
            volume,
            epoch,
            generation,
        };
        self.run_unless_fenced(command).await
    }

    /// Tells metad how far a snapshot is, until it has answered. The answer is logged: who has the volume has
    /// nothing else to do with it.
    pub async fn record_snapshot(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        (generation, step): (Generation, SnapshotStep),
    ) {
        loop {
            let answer = match step {
                SnapshotStep::Held => self.hold_snapshot(volume, epoch, generation).await,
                SnapshotStep::Complete { held } => {
                    self.complete_snapshot(volume, epoch, generation, held)
                        .await
                }
            };
            match answer {
                Err(error @ MetadError::Unreachable { .. }) => {
                    tracing::warn!(%volume, %generation, %error, "cannot tell metad of a snapshot yet");
                }
                Err(error) => {
                    return tracing::warn!(%volume, %generation, %error, "a snapshot is not recorded");
                }
                Ok(ours) => {
                    return match step {
                        SnapshotStep::Held => {
                            tracing::info!(%volume, %generation, ours, "writes wait for other volumes");
                        }
                        SnapshotStep::Complete { held } => {
                            tracing::info!(%volume, %generation, ours, held, "a snapshot is complete");
                        }
                    };
                }
            }
        }
    }

    /// Asks a host to attach a volume.
    ///
    /// # Errors
    /// Unknown, attached elsewhere; see [`MetadError`].
    pub async fn want_attached(&self, volume: VolumeId, host: HostId) -> Result<(), MetadError> {
        self.run_done(Command::SetDesiredAttachment { volume, host })
            .await
    }

    /// Asks the host that has the volume to detach it.
    ///
    /// # Errors
    /// Unknown volume; see [`MetadError`].
    pub async fn want_detached(&self, volume: VolumeId) -> Result<(), MetadError> {
        self.run_done(Command::ClearDesiredAttachment { volume })
            .await
    }

    /// Takes a volume from a holder that does not answer.
    ///
    /// # Errors
    /// Unknown volume; see [`MetadError`].
    pub async fn force_detach(&self, volume: VolumeId) -> Result<(), MetadError> {
        self.run_done(Command::ForceDetach { volume }).await
    }

    /// Cordons or uncordons a server.
    ///
    /// # Errors
    /// Unknown server; see [`MetadError`].
    pub async fn set_standing(
        &self,
        server: ServerId,
        standing: Standing,
    ) -> Result<(), MetadError> {
        self.run_done(Command::SetServerStanding { server, standing })
            .await
    }

    /// clientd: takes a volume, fencing every earlier holder.
    ///
    /// # Errors
    /// Not wanted here, held elsewhere, not ready; see [`MetadError`].
    pub async fn attach(&self, volume: VolumeId, host: HostId) -> Result<AttachGrant, MetadError> {
        self.run_grant(Command::Attach { volume, host }).await
    }

    /// storaged: takes a volume that nobody has, to bring it up to date.
    ///
    /// # Errors
    /// Not (or no longer) to be done by this server, or a store that it needs does not report; see
    /// [`MetadError`].
    pub async fn maintain(
        &self,
        volume: VolumeId,
        server: ServerId,
    ) -> Result<AttachGrant, MetadError> {
        self.run_grant(Command::Maintain { volume, server }).await
    }

    /// clientd: asks for another in-sync set.
    ///
    /// # Errors
    /// A shard would lose its last replica; see [`MetadError`]. After `Unreachable` it is unknown
    /// whether the set changed: ask again with the same arguments.
    pub async fn set_isr(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        seq: MembershipSeq,
        new_isr: BTreeSet<StoreId>,
    ) -> Result<IsrAnswer, MetadError> {
        let command = Command::SetIsr {
            volume,
            epoch,
            seq,
            new_isr,
        };
        self.run_membership(command).await
    }

    /// clientd: the newest membership that the stores of a restored volume know of.
    ///
    /// # Errors
    /// As [`Self::set_isr`].
    pub async fn verify_membership(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        seq: MembershipSeq,
        (found_seq, isr): (MembershipSeq, BTreeSet<StoreId>),
    ) -> Result<IsrAnswer, MetadError> {
        let command = Command::VerifyMembership {
            volume,
            epoch,
            seq,
            found_seq,
            isr,
        };
        self.run_membership(command).await
    }

    async fn run_grant(&self, command: Command) -> Result<AttachGrant, MetadError> {
        self.run(command, |r| {
            if let Reply::Granted(grant) = r {
                Ok(*grant)
            } else {
                Err(r)
            }
        })
        .await
    }

    /// Who has a volume: asks for another in-sync set, or for one that was found to be recorded.
    ///
    /// # Errors
    /// As [`Self::set_isr`].
    pub async fn change_membership(
        &self,
        wanted: &MembershipRequest,
    ) -> Result<IsrAnswer, MetadError> {
        let (volume, epoch, seq) = (wanted.volume, wanted.epoch, wanted.seq);
        let isr = wanted.new_isr.clone();
        match wanted.found_seq {
            None => self.set_isr(volume, epoch, seq, isr).await,
            Some(found) => {
                self.verify_membership(volume, epoch, seq, (found, isr))
                    .await
            }
        }
    }

    async fn run_membership(&self, command: Command) -> Result<IsrAnswer, MetadError> {
        self.run(command, |r| {
            if let Reply::IsrSet(seq) = r {
                Ok(IsrAnswer::Set(seq))
            } else if let Reply::Fenced { epoch } = r {
                Ok(IsrAnswer::Fenced { epoch })
            } else if let Reply::Stale { seq, isr } = r {
                Ok(IsrAnswer::Stale { seq, isr })
            } else {
                Err(r)
            }
        })
        .await
    }

    /// clientd: has stopped using a volume. True: it was ours; false: somebody newer has it.
    ///
    /// # Errors
    /// Unknown volume; see [`MetadError`].
    pub async fn detach(&self, volume: VolumeId, epoch: Epoch) -> Result<bool, MetadError> {
        self.run_unless_fenced(Command::Detach { volume, epoch })
            .await
    }

    /// False: the asker's epoch is over.
    async fn run_unless_fenced(&self, command: Command) -> Result<bool, MetadError> {
        self.run(command, |r| {
            let ours = r == Reply::Done;
            if ours || matches!(r, Reply::Fenced { .. }) {
                Ok(ours)
            } else {
                Err(r)
            }
        })
        .await
    }

    /// storaged: a slice is there.
    ///
    /// # Errors
    /// Unknown slice; see [`MetadError`].
    pub async fn confirm_slice(
        &self,
        store: StoreId,
        nsid: Nsid,
        size_blocks: u64,
    ) -> Result<(), MetadError> {
        let command = Command::ConfirmSlice {
            store,
            nsid,
            size_blocks,
        };
        self.run_done(command).await
    }

    /// storaged: a slice that was confirmed is blank, or was and is not complete yet.
    ///
    /// # Errors
    /// Unknown slice; see [`MetadError`].
    pub async fn report_blank_slice(&self, store: StoreId, nsid: Nsid) -> Result<(), MetadError> {
        self.run_done(Command::ReportBlankSlice { store, nsid })
            .await
    }

    /// storaged: a slice is gone.
    ///
    /// # Errors
    /// The slice is wanted; see [`MetadError`].
    pub async fn confirm_slice_gone(&self, store: StoreId, nsid: Nsid) -> Result<(), MetadError> {
        self.run_done(Command::ConfirmSliceGone { store, nsid })
            .await
    }

    /// storaged: what its server should hold, once that is newer than `after` (0: at once).
    ///
    /// # Errors
    /// Unknown server; waits through everything else.
    pub async fn watch_slices(
        &self,
        server: ServerId,
        after: u64,
    ) -> Result<SliceDesire, MetadError> {
        let asked = Question::WatchSlices { server, after };
        expect!(asked, self.watch(&asked).await?, Answer::Slices(desire) => desire)
    }

    /// clientd: what its host should attach, once that is newer than `after` (0: at once).
    ///
    /// # Errors
    /// Unknown host; waits through everything else.
    pub async fn watch_attachments(
        &self,
        host: HostId,
        after: u64,
    ) -> Result<AttachmentDesire, MetadError> {
        let asked = Question::WatchAttachments { host, after };
        expect!(asked, self.watch(&asked).await?, Answer::Attachments(desire) => desire)
    }

    /// Identity and leader.
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn cluster(&self) -> Result<ClusterView, MetadError> {
        let asked = Question::Cluster;
        expect!(asked, self.ask(&asked).await?, Answer::Cluster(view) => view)
    }

    /// Waits if the filter says so, otherwise answers at once.
    async fn list(&self, asked: &Question, filter_version: u64) -> Result<Answer, MetadError> {
        if filter_version == 0 {
            self.ask(asked).await
        } else {
            self.watch(asked).await
        }
    }

    /// Servers.
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn servers(&self, filter: Filter) -> Result<Versioned<ServerView>, MetadError> {
        let version = filter.version;
        let asked = Question::Servers(filter);
        expect!(asked, self.list(&asked, version).await?, Answer::Servers(list) => list)
    }

    /// Stores.
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn stores(&self, filter: Filter) -> Result<Versioned<StoreView>, MetadError> {
        let version = filter.version;
        let asked = Question::Stores(filter);
        expect!(asked, self.list(&asked, version).await?, Answer::Stores(list) => list)
    }

    /// Client hosts.
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn hosts(&self, filter: Filter) -> Result<Versioned<HostView>, MetadError> {
        let version = filter.version;
        let asked = Question::Hosts(filter);
        expect!(asked, self.list(&asked, version).await?, Answer::Hosts(list) => list)
    }

    /// Volumes.
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn volumes(&self, filter: Filter) -> Result<Versioned<VolumeView>, MetadError> {
        let version = filter.version;
        let asked = Question::Volumes(filter);
        expect!(asked, self.list(&asked, version).await?, Answer::Volumes(list) => list)
    }

    /// Snapshots: all, of a volume, or one (`VOLUME@NAME`).
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn snapshots(&self, filter: Filter) -> Result<Versioned<SnapshotView>, MetadError> {
        let version = filter.version;
        let asked = Question::Snapshots(filter);
        expect!(asked, self.list(&asked, version).await?, Answer::Snapshots(list) => list)
    }

    /// Resilvers, running and past.
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn resilvers(&self, filter: Filter) -> Result<Resilvers, MetadError> {
        let version = filter.version;
        let asked = Question::Resilvers(filter);
        expect!(asked, self.list(&asked, version).await?, Answer::Resilvers(list) => list)
    }

    /// Where a volume would go.
    ///
    /// # Errors
    /// What [`Self::create_volume`] would be refused with.
    pub async fn plan_volume(&self, new: NewVolume) -> Result<PlanView, MetadError> {
        let asked = Question::Plan(new);
        expect!(asked, self.ask(&asked).await?, Answer::Plan(plan) => plan)
    }

    /// What is wrong with the replicated state; empty: nothing.
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn fsck(&self) -> Result<Vec<String>, MetadError> {
        let asked = Question::Fsck;
        expect!(asked, self.ask(&asked).await?, Answer::Fsck(found) => found)
    }

    /// Events after an index, oldest first; with `wait` as soon as there is one.
    ///
    /// # Errors
    /// See [`MetadError`].
    pub async fn events(&self, after: u64, wait: bool) -> Result<Vec<EventRecord>, MetadError> {
        let asked = Question::Events { after, wait };
        let answer = if wait {
            self.watch(&asked).await?
        } else {
            self.ask(&asked).await?
        };
        expect!(asked, answer, Answer::Events(events) => events)
    }
}

//! Listings: the replicated state and the leader's memory, side by side.

use super::health::Health;
use crate::api::{
    HostView, Liveness, PlanView, Reporter, ResilverReport, ResilverView, ServerView, SliceView,
    SnapshotView, StoreView, VolumeView,
};
use crate::core::apply::plan_volume;
use crate::core::desire::slices_read;
use crate::core::{NewVolume, Refusal, State, Volume};
use shardmap::generations::SnapshotState;
use shardmap::placement::forecast;
use shardmap::units::{Moment, ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;

/// The state, the memory and the time of one answer.
pub(super) struct Scene<'a> {
    pub(super) state: &'a State,
    pub(super) health: &'a Health,
    pub(super) now: Moment,
}

impl Scene<'_> {
    pub(super) fn server_liveness(&self, id: ServerId) -> Liveness {
        self.health.liveness(self.now, Reporter::Server(id))
    }

    pub(super) fn servers(&self, name: &str) -> Vec<ServerView> {
        let servers = self.state.servers.iter().filter(|(id, s)| {
            name.is_empty()
                || s.name == name
                || id.to_string() == name
                || s.uuid.to_string() == name
        });
        servers
            .map(|(id, s)| ServerView {
                id: *id,
                uuid: s.uuid,
                name: s.name.clone(),
                address: s.address,
                subsystem_nqn: s.subsystem_nqn.clone(),
                labels: s.labels.clone(),
                standing: s.standing,
                liveness: self.server_liveness(*id),
                stores: count(self.state.stores.values().filter(|st| st.server == *id)),
            })
            .collect()
    }

    pub(super) fn stores(&self, name: &str) -> Vec<StoreView> {
        let promised = self.state.promised_bytes();
        let reports = self.health.stores();
        let stores = self.state.stores.iter().filter(|(id, s)| {
            name.is_empty() || id.to_string() == name || s.uuid.to_string() == name
        });
        stores
            .map(|(id, s)| StoreView {
                id: *id,
                uuid: s.uuid,
                server: s.server,
                server_name: self.state.server_name(s.server),
                size_bytes: s.size_bytes,
                promised_bytes: promised.get(id).copied().unwrap_or(0),
                slices: count(self.state.slices.values().filter(|sl| sl.store == *id)),
                liveness: self.server_liveness(s.server),
                report: reports.get(id).copied().cloned(),
            })
            .collect()
    }

    pub(super) fn hosts(&self, name: &str) -> Vec<HostView> {
        let hosts = self.state.hosts.iter().filter(|(id, h)| {
            name.is_empty()
                || h.name == name
                || id.to_string() == name
                || h.uuid.to_string() == name
        });
        hosts
            .map(|(id, h)| HostView {
                id: *id,
                uuid: h.uuid,
                name: h.name.clone(),
                host_nqn: h.host_nqn.clone(),
                liveness: if h.is_standard() {
                    Liveness::Unknown
                } else {
                    self.health.liveness(self.now, Reporter::Host(*id))
                },
                volumes: count(
                    self.state
                        .volumes
                        .values()
                        .filter(|v| v.attachment.is_some_and(|a| a.host == *id)),
                ),
                standard: h.is_standard(),
            })
            .collect()
    }

    pub(super) fn volumes(&self, name: &str) -> Vec<VolumeView> {
        let volumes = self.volumes_named(name);
        volumes.map(|(id, v)| self.volume(*id, v)).collect()
    }

    /// Volumes of a name or id; empty: all.
    fn volumes_named<'n>(
        &'n self,
        name: &'n str,
    ) -> impl Iterator<Item = (&'n VolumeId, &'n Volume)> + 'n {
        let all = self.state.volumes.iter();
        all.filter(move |(id, v)| name.is_empty() || v.name == name || id.to_string() == name)
    }

    fn volume(&self, id: VolumeId, volume: &Volume) -> VolumeView {
        let host = |id| self.state.host_name(id);
        let holder = volume.attachment.map(|a| a.host);
        let maintainer = volume.maintenance.map(|m| m.server);
        let user = holder.or(volume.desired);
        let user = user.filter(|_| volume.rollback.is_none()); // who is to have it waits
        let host_or_server = user.map(Reporter::Host);
        let reporter = host_or_server.or(maintainer.map(Reporter::Server));
        VolumeView {
            id,
            name: volume.name.clone(),
            map: volume.map.clone(),
            set: volume.set.0,
            min_in_sync: volume.min_in_sync,
            open_access: volume.open_access,
            growing_to: volume.growing_to.unwrap_or(0),
            phase: volume.phase,
            desired_on: volume.desired.map(host).unwrap_or_default(),
            held_by: holder.map(host).unwrap_or_default(),
            epoch: volume.epoch,
            seq: volume.seq,
            slices: self.slices(volume),
            report: reporter.and_then(|r| self.health.volume(r, id)).cloned(),
            holder_liveness: reporter
                .map_or(Liveness::Unknown, |r| self.health.liveness(self.now, r)),
            maintained_by: maintainer
                .map(|server| self.state.server_name(server))
                .unwrap_or_default(),
            head: volume.head,
            snapshots: count(volume.snapshots.keys()),
            pending_snapshot: volume
                .pending_snapshot()
                .map(|(_, snapshot)| snapshot.name.clone())
                .unwrap_or_default(),
            pending_for: self.pending_for(volume),
            rolls_back_to: volume
                .rollback
                .map(|rollback| volume.snapshots[&rollback.to].name.clone())
                .unwrap_or_default(),
            shows: volume
                .origin
                .map(|origin| self.state.snapshot_name(origin))
                .unwrap_or_default(),
            clone_of: volume
                .clone_of
                .map(|origin| self.state.snapshot_name(origin))
                .unwrap_or_default(),
        }
    }

    fn pending_for(&self, volume: &Volume) -> String {
        let Some(part) = volume.pending_part() else {
            return String::new();
        };
        let behind = self.state.behind_in_group(part.group, part.step);
        let others = behind.filter(|other| *other != &volume.name);
        others.map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// `name`: empty for all, a volume, or `VOLUME@NAME`.
    pub(super) fn snapshots(&self, name: &str) -> Vec<SnapshotView> {
        let (volume, only) = match name.split_once('@') {
            Some((volume, only)) => (volume, Some(only)),
            None => (name, None),
        };
        let volumes = self.volumes_named(volume);
        let all = volumes.flat_map(|(id, v)| v.snapshots.iter().map(move |s| (id, v, s)));
        let ours = all.filter(|(_, _, (_, s))| only.is_none_or(|name| s.name == name));
        let ours = ours.filter(|(_, _, (_, s))| !s.abandoned);
        ours.map(|(id, v, (generation, s))| SnapshotView {
            volume: *id,
            volume_name: v.name.clone(),
            name: s.name.clone(),
            generation: *generation,
            created_unix_ms: s.created_unix_ms,
            pending: s.state == SnapshotState::Pending,
        })
        .collect()
    }

    fn slices(&self, volume: &Volume) -> Vec<SliceView> {
        let slices = slices_read(self.state, volume).iter().filter_map(|nsid| {
            let slice = self.state.slices.get(nsid)?;
            let store = self.state.stores.get(&slice.store)?;
            let server = self.state.servers.get(&store.server)?;
            Some(SliceView {
                nsid: *nsid,
                store: slice.store,
                server: store.server,
                server_name: server.name.clone(),
                address: server.address,
                position: slice.position,
                confirmed: slice.confirmed,
                size_blocks: slice.size_blocks,
                in_sync: volume.isr.contains(&slice.store),
                liveness: self.server_liveness(store.server),
            })
        });
        slices.collect()
    }

    pub(super) fn resilver(&self, report: &ResilverReport) -> ResilverView {
        ResilverView {
            volume_name: self.state.volume_name(report.volume),
            store_name: self.state.store_name(report.store),
            report: *report,
        }
    }

    /// Stores that should take nothing new: faulted, above the high-water mark, or of a server that
    /// does not answer.
    pub(super) fn avoid(&self) -> BTreeSet<StoreId> {
        let silent = self
            .state
            .stores
            .iter()
            .filter(|(_, s)| self.server_liveness(s.server) >= Liveness::Suspect)
            .map(|(id, _)| *id);
        let high_water = self.state.space_limits().high_water_percent;
        let unusable = self.health.unusable_stores(high_water);
        silent.chain(unusable).collect()
    }

    pub(super) fn plan(&self, new: &NewVolume) -> Result<PlanView, Refusal> {
        let choice = plan_volume(self.state, new)?;
        let servers: Vec<ServerId> = choice
            .stores
            .iter()
            .map(|s| self.state.stores[s].server)
            .collect();
        let total = count(self.state.servers.values());
        let seen = forecast(&choice, &servers, total);
        Ok(PlanView {
            reused_set: choice.reused.unwrap_or(0),
            shape: choice.shape,
            stores: choice.stores,
            server_names: servers.iter().map(|s| self.state.server_name(*s)).collect(),
            slice_bytes: choice.slice_bytes,
            copysets: seen.copysets,
            loss_probability: seen.loss_probability.to_vec(),
            resilver_seconds: seen.resilver_s,
        })
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

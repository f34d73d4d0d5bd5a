//! Forgetting hosts, stores and servers that nothing depends on any more.

use super::super::command::{Change, Reply};
use super::super::model::{HostId, Phase};
use super::super::refusal::{Refusal, RefusalCode};
use super::Step;
use shardmap::units::{Nsid, ServerId, StoreId};

impl Step<'_> {
    /// A host without volumes. A clientd that still runs would only register itself again.
    pub(super) fn remove_host(&mut self, id: HostId) -> Result<Reply, Refusal> {
        if !self.state.hosts.contains_key(&id) {
            return Err(Refusal::not_found("host", id));
        }
        let name = self.state.host_name(id);
        let has = |v: &&super::super::model::Volume| {
            v.desired == Some(id) || v.attachment.is_some_and(|a| a.host == id)
        };
        if let Some(volume) = self.state.volumes.values().find(has) {
            return Err(Refusal::new(
                RefusalCode::StillAttached,
                format!("host {name} has volume {}", volume.name),
                format!(
                    "detach it first (`ubsctl volume detach {0}`); if {name} is gone for good, \
                     `ubsctl volume force-detach {0}`",
                    volume.name
                ),
            ));
        }
        self.state.hosts.remove(&id);
        self.say(Change::HostRemoved(id, format!("host {name}")));
        self.wake_servers();
        Ok(Reply::Done)
    }

    /// A store on which nothing is wanted. Slices of volumes that are being deleted count as gone:
    /// otherwise a volume could not be deleted after the loss of one of its stores.
    pub(super) fn remove_store(&mut self, id: StoreId) -> Result<Reply, Refusal> {
        if !self.state.stores.contains_key(&id) {
            return Err(Refusal::not_found("store", id));
        }
        let name = self.state.store_name(id);
        let living = |v: &&super::super::model::Volume| {
            v.phase != Phase::Deleting && v.map.stores.contains(&id)
        };
        if let Some(volume) = self.state.volumes.values().find(living) {
            return Err(Refusal::new(
                RefusalCode::StillUsed,
                format!("{name} holds a part of volume {}", volume.name),
                format!(
                    "copy what is needed to another volume and delete this one \
                     (`ubsctl volume delete {}`); then remove the store",
                    volume.name
                ),
            ));
        }
        let gone: Vec<Nsid> = self
            .state
            .slices
            .iter()
            .filter(|(_, s)| s.store == id)
            .map(|(nsid, _)| *nsid)
            .collect();
        for nsid in gone {
            self.drop_slice(nsid);
        }
        // Volumes that are still being deleted have let go of their set: see `fsck`.
        self.state.sets.retain(|_, set| !set.stores.contains(&id));
        self.state.stores.remove(&id);
        self.say(Change::StoreRemoved(id, name));
        Ok(Reply::Done)
    }

    /// A server that has no store any more.
    pub(super) fn remove_server(&mut self, id: ServerId) -> Result<Reply, Refusal> {
        if !self.state.servers.contains_key(&id) {
            return Err(Refusal::not_found("server", id));
        }
        let name = self.state.server_name(id);
        if let Some(store) = self.state.stores.iter().find(|(_, s)| s.server == id) {
            let store = store.0;
            return Err(Refusal::new(
                RefusalCode::StillUsed,
                format!("server {name} has {store}"),
                format!("remove its stores first (`ubsctl store rm {store}`)"),
            ));
        }
        self.state.servers.remove(&id);
        // Its stores may have gone to another server while it was at work.
        let volumes = self.state.volumes.iter();
        let left = volumes.filter(|(_, v)| v.maintenance.is_some_and(|m| m.server == id));
        let left: Vec<_> = left.map(|(volume, _)| *volume).collect();
        left.into_iter().for_each(|volume| self.touch(volume));
        self.say(Change::ServerRemoved(id, format!("server {name}")));
        self.wake_servers();
        Ok(Reply::Done)
    }
}

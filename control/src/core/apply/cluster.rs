//! Identity, servers, stores, hosts, notes.

use super::super::command::{Change, NewHost, NewServer, NewSpaceLimits, NewStore, Reply, Subject};
use super::super::limits;
use super::super::model::{
    CLIENTD_NQN_PREFIX, Cluster, Host, HostId, READER_HOST_NQN_PREFIX, STORAGED_HOST_NQN_PREFIX,
    Server, SpaceLimits, Standing, Store,
};
use super::super::refusal::{Refusal, RefusalCode};
use super::{Step, check_name, check_nqn, check_room};
use shardmap::units::{ServerId, StoreId};
use std::ops::RangeInclusive;
use uuid::Uuid;

impl Step<'_> {
    pub(super) fn init_cluster(&mut self, uuid: Uuid, name: String) -> Result<Reply, Refusal> {
        if let Some(cluster) = &self.state.cluster {
            return self.same_cluster(uuid, || format!("cluster {}", cluster.name));
        }
        check_name("cluster", &name)?;
        self.state.cluster = Some(Cluster {
            uuid,
            name,
            lineage: 1,
            schema: limits::SCHEMA,
            space: SpaceLimits::default(),
        });
        self.say(Change::ClusterInitialised);
        Ok(Reply::Done)
    }

    fn same_cluster(&self, theirs: Uuid, what: impl Fn() -> String) -> Result<Reply, Refusal> {
        let ours = self.state.cluster.as_ref().map_or(Uuid::nil(), |c| c.uuid);
        if theirs == ours {
            return Ok(Reply::Done);
        }
        Err(Refusal::new(
            RefusalCode::WrongCluster,
            format!(
                "{} belongs to cluster {theirs}, this is cluster {ours}",
                what()
            ),
            "connect it to its own cluster, or wipe it and prepare it for this one",
        ))
    }

    /// What is promised or in use already stays.
    pub(super) fn set_space_limits(&mut self, new: NewSpaceLimits) -> Result<Reply, Refusal> {
        check_percent(
            "overcommitment",
            new.overcommit_percent,
            &limits::OVERCOMMIT_PERCENT_RANGE,
        )?;
        check_percent(
            "the high-water mark",
            new.high_water_percent,
            &limits::HIGH_WATER_PERCENT_RANGE,
        )?;
        let now = self.state.space_limits();
        let wanted = SpaceLimits {
            overcommit_percent: new.overcommit_percent.unwrap_or(now.overcommit_percent),
            high_water_percent: new.high_water_percent.unwrap_or(now.high_water_percent),
        };
        if wanted != now {
            let cluster = self.state.cluster.as_mut();
            cluster.expect("it has an identity").space = wanted;
            self.say(Change::SpaceLimits(wanted));
        }
        Ok(Reply::Done)
    }

    pub(super) fn register_server(&mut self, new: NewServer) -> Result<Reply, Refusal> {
        check_name("server", &new.name)?;
        check_nqn(&new.subsystem_nqn)?;
        check_labels(&new)?;
        if let Some(cluster) = new.cluster {
            self.same_cluster(cluster, || format!("server {}", new.name))?;
        }
        let known = self
            .state
            .servers
            .iter()
            .find(|(_, s)| s.uuid == new.uuid)
            .map(|(id, _)| *id);
        if let Some((id, _)) = self.state.server_named(&new.name)
            && Some(id) != known
        {
            return Err(name_taken("server", &new.name));
        }
        if let Some(id) = known {
            self.update_server(id, new);
            return Ok(Reply::Server(id));
        }
        check_room("server", self.state.servers.len(), limits::SERVERS_MAX)?;
        self.state.minted.server += 1;
        let id = ServerId(self.state.minted.server);
        let server = Server {
            uuid: new.uuid,
            name: new.name,
            address: new.address,
            subsystem_nqn: new.subsystem_nqn,
            labels: new.labels,
            standing: Standing::Active,
            desired_index: self.turn(),
        };
        self.state.servers.insert(id, server);
        self.say(Change::ServerRegistered(id));
        self.wake_servers();
        Ok(Reply::Server(id))
    }

    fn update_server(&mut self, id: ServerId, new: NewServer) {
        let server = self.state.servers.get_mut(&id).expect("found by uuid");
        let moved = server.address != new.address || server.subsystem_nqn != new.subsystem_nqn;
        if !moved && server.name == new.name && server.labels == new.labels {
            return;
        }
        server.name = new.name;
        server.address = new.address;
        server.subsystem_nqn = new.subsystem_nqn;
        server.labels = new.labels;
        self.say(Change::ServerChanged(id));
        if moved {
            let stores: Vec<StoreId> = self
                .state
                .stores
                .iter()
                .filter(|(_, s)| s.server == id)
                .map(|(s, _)| *s)
                .collect();
            for store in stores {
                self.wake_users_of(store);
            }
        }
    }

    /// Clients of volumes with a slice on the store learn its new address.
    fn wake_users_of(&mut self, store: StoreId) {
        for volume in self.volumes_on(store) {
            self.wake_holders(volume);
        }
    }

    pub(super) fn register_store(&mut self, new: NewStore) -> Result<Reply, Refusal> {
        self.same_cluster(new.cluster, || format!("store {}", new.uuid))?;
        if !self.state.servers.contains_key(&new.server) {
            return Err(Refusal::not_found("server", new.server));
        }
        if new.size_bytes == 0 {
            return Err(Refusal::invalid(
                format!("store {} has a size of 0 bytes", new.uuid),
                "prepare it again on a larger device",
            ));
        }
        let known = self
            .state
            .stores
            .iter()
            .find(|(_, s)| s.uuid == new.uuid)
            .map(|(id, _)| *id);
        let Some(id) = known else {
            check_room("store", self.state.stores.len(), limits::STORES_MAX)?;
            self.state.minted.store += 1;
            let id = StoreId(self.state.minted.store);
            let store = Store {
                uuid: new.uuid,
                server: new.server,
                size_bytes: new.size_bytes,
            };
            self.state.stores.insert(id, store);
            self.say(Change::StoreRegistered(id));
            return Ok(Reply::Store(id));
        };
        let store = self.state.stores.get_mut(&id).expect("found by uuid");
        let moved = store.server != new.server;
        if moved || store.size_bytes != new.size_bytes {
            *store = Store {
                uuid: new.uuid,
                server: new.server,
                size_bytes: new.size_bytes,
            };
            self.say(Change::StoreChanged(id));
        }
        if moved {
            self.wake_store(id);
            self.wake_users_of(id);
        }
        self.retry_maintenance(id);
        Ok(Reply::Store(id))
    }

    pub(super) fn register_host(&mut self, new: NewHost) -> Result<Reply, Refusal> {
        check_name("host", &new.name)?;
        check_nqn(&new.host_nqn)?;
        let known = self
            .state
            .hosts
            .iter()
            .find(|(_, h)| h.uuid == new.uuid)
            .map(|(id, _)| *id);
        self.check_host_is_free(&new, known)?;
        let Some(id) = known else {
            return self.new_host(new);
        };
        let host = self.state.hosts.get_mut(&id).expect("found by uuid");
        if host.name != new.name || host.host_nqn != new.host_nqn {
            host.name = new.name;
            host.host_nqn = new.host_nqn;
            self.say(Change::HostChanged(id));
            self.wake_servers();
        }
        Ok(Reply::Host(id))
    }

    /// A standard NVMe host, told by an operator. Telling it again is harmless.
    pub(super) fn add_host(&mut self, new: NewHost) -> Result<Reply, Refusal> {
        check_name("host", &new.name)?;
        check_nqn(&new.host_nqn)?;
        if new.host_nqn.starts_with(CLIENTD_NQN_PREFIX) {
            return Err(Refusal::invalid(
                format!("{} is the name of a clientd", new.host_nqn),
                "start clientd on that host, it registers itself; of a standard host give what \
                 /etc/nvme/hostnqn says",
            ));
        }
        let ours = [STORAGED_HOST_NQN_PREFIX, READER_HOST_NQN_PREFIX];
        if ours.iter().any(|prefix| new.host_nqn.starts_with(prefix)) {
            return Err(Refusal::invalid(
                format!(
                    "{} is the name of a storaged or a reader of snapshots",
                    new.host_nqn
                ),
                "these are admitted by themselves; of a standard host give what \
                 /etc/nvme/hostnqn says",
            ));
        }
        let same = |h: &Host| h.name == new.name && h.host_nqn == new.host_nqn;
        if let Some((id, _)) = self.state.hosts.iter().find(|(_, h)| same(h)) {
            return Ok(Reply::Host(*id));
        }
        self.check_host_is_free(&new, None)?;
        self.new_host(new)
    }

    /// No other host has the name or the NQN.
    fn check_host_is_free(&self, new: &NewHost, known: Option<HostId>) -> Result<(), Refusal> {
        let mut others = self
            .state
            .hosts
            .iter()
            .filter(|(id, _)| Some(**id) != known);
        match others.find(|(_, h)| h.name == new.name || h.host_nqn == new.host_nqn) {
            None => Ok(()),
            Some((_, other)) if other.name == new.name => Err(name_taken("host", &new.name)),
            Some((_, other)) => Err(Refusal::new(
                RefusalCode::NameTaken,
                format!("host {} has the NQN {} already", other.name, new.host_nqn),
                format!("remove it first (`ubsctl host rm {}`)", other.name),
            )),
        }
    }

    fn new_host(&mut self, new: NewHost) -> Result<Reply, Refusal> {
        check_room("host", self.state.hosts.len(), limits::HOSTS_MAX)?;
        self.state.minted.host += 1;
        let id = HostId(self.state.minted.host);
        let host = Host {
            uuid: new.uuid,
            name: new.name,
            host_nqn: new.host_nqn,
            desired_index: self.turn(),
        };
        self.state.hosts.insert(id, host);
        self.say(Change::HostRegistered(id));
        self.wake_servers();
        Ok(Reply::Host(id))
    }

    /// Storageds learn which hosts and which of each other are known together with their slices.
    pub(super) fn wake_servers(&mut self) {
        let turn = self.turn();
        for server in self.state.servers.values_mut() {
            server.desired_index = turn;
        }
    }

    pub(super) fn set_standing(
        &mut self,
        server: ServerId,
        standing: Standing,
    ) -> Result<Reply, Refusal> {
        let Some(found) = self.state.servers.get_mut(&server) else {
            return Err(Refusal::not_found("server", server));
        };
        if found.standing != standing {
            found.standing = standing;
            self.say(Change::ServerStanding(server, standing));
        }
        Ok(Reply::Done)
    }

    pub(super) fn note(&mut self, subject: Subject, text: String) -> Result<Reply, Refusal> {
        if text.len() > limits::NOTE_BYTES_MAX {
            return Err(Refusal::invalid(
                format!("a note of {} bytes", text.len()),
                format!("use at most {} bytes", limits::NOTE_BYTES_MAX),
            ));
        }
        self.say(Change::Noted(subject, text));
        Ok(Reply::Done)
    }
}

pub(super) fn name_taken(kind: &str, name: &str) -> Refusal {
    Refusal::new(
        RefusalCode::NameTaken,
        format!("another {kind} is called {name}"),
        format!("choose another name, or remove the other {kind} (`ubsctl {kind} rm {name}`)"),
    )
}

fn check_percent(
    what: &str,
    percent: Option<u32>,
    range: &RangeInclusive<u32>,
) -> Result<(), Refusal> {
    match percent {
        Some(percent) if !range.contains(&percent) => Err(Refusal::invalid(
            format!("{what} of {percent} %"),
            format!("use {} to {}", range.start(), range.end()),
        )),
        Some(_) | None => Ok(()),
    }
}

fn check_labels(new: &NewServer) -> Result<(), Refusal> {
    if new.labels.len() > limits::LABELS_MAX {
        return Err(Refusal::invalid(
            format!("server {} has {} labels", new.name, new.labels.len()),
            format!("use at most {}", limits::LABELS_MAX),
        ));
    }
    for (key, value) in &new.labels {
        check_name("label", key)?;
        check_name("label value", value)?;
    }
    Ok(())
}

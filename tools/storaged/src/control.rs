//! The control thread: joins the cluster, learns which slices to hold, reports.

use crate::bridge::{MaintenanceReceiver, NewsReceiver, send};
use crate::config::{StoragedConfig, StoreConfig};
use crate::upkeep::Upkeep;
use crate::{hosts, remembered};
use anyhow::{Context, Result, ensure};
use control::api::{Filter, ReportContents, Reporter, StoreHealth, StoreReport};
use control::client::{ClientConfig, MetadClient, MetadError, ReportHandle};
use control::core::desire::was_restored_between;
use control::core::{NewServer, NewStore};
use daemon::identity::Identity;
use daemon::service;
use reactor::Mailbox;
use shardmap::units::{Nsid, ServerId, StoreId, VolumeId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use storaged::{Fill, News, Order, Replica, Replicas, Told, Wanted};
use store::{OpenFacts, PrepareOptions, Store};
use uuid::Uuid;

/// metad refuses reports with notes of more than 512 bytes; a character has up to 4.
const NOTE_CHARS_MAX: usize = 128;

/// A store as control knows it.
#[derive(Debug, Default)]
struct Known {
    facts: Option<OpenFacts>,
    failure: Option<String>,
    id: Option<StoreId>,
}

/// What the control thread is made of.
pub(crate) struct Control {
    config: StoragedConfig,
    identity: Identity,
    client: MetadClient,
    orders: Arc<Mailbox<Order>>,
    news: NewsReceiver,
    stores: Vec<Known>,
    fills: Arc<[Fill]>,
    wanted: Wanted,
}

impl Control {
    /// Puts the parts together.
    pub(crate) fn new(
        config: StoragedConfig,
        identity: Identity,
        orders: Arc<Mailbox<Order>>,
        news: NewsReceiver,
        fills: Arc<[Fill]>,
    ) -> Self {
        let members = config.metad.iter().map(ToString::to_string).collect();
        let mut client_config =
            ClientConfig::new(members, concat!("storaged/", env!("CARGO_PKG_VERSION")));
        client_config.heartbeat_ms = config.report_interval_ms;
        let stores = config.stores.iter().map(|_| Known::default()).collect();
        Self {
            client: MetadClient::new(client_config),
            config,
            identity,
            orders,
            news,
            stores,
            fills,
            wanted: Wanted::default(),
        }
    }

    /// Runs until the reactor thread is gone.
    ///
    /// # Errors
    /// What cannot be helped by waiting: a refusal of metad, a data directory that cannot be
    /// written.
    pub(crate) async fn run(mut self, maintenance: MaintenanceReceiver) -> Result<()> {
        self.learn_cluster().await?;
        let cluster = self.identity.cluster.expect("just learnt");
        // Clients that were known before the last stop may come back before metad does.
        self.order(Order::Hosts(hosts::load(&self.config.data_dir)?))
            .await;
        for store in &self.config.stores {
            create_if_missing(store, cluster);
        }
        self.order(Order::Open { cluster }).await;
        let Some(address) = self.wait_until_listening().await else {
            return Ok(());
        };
        let opened = self.stores.iter().filter(|s| s.facts.is_some()).count();
        service::notify_ready(&format!(
            "serving {opened} of {} stores on {address}",
            self.stores.len()
        ));
        let server = self.register(cluster, address).await?;
        self.follow((cluster, server, address), maintenance).await
    }

    /// A data directory that has joined a cluster serves it without asking metad.
    async fn learn_cluster(&mut self) -> Result<()> {
        if self.identity.cluster.is_some() {
            return Ok(());
        }
        service::notify_status("waiting for metad to say which cluster this is");
        loop {
            match self.client.cluster().await {
                Ok(view) => {
                    tracing::info!(cluster = %view.uuid, name = view.name, "joined the cluster");
                    self.identity.cluster = Some(view.uuid);
                    return Ok(self.identity.save(&self.config.data_dir)?);
                }
                Err(error) => tracing::warn!(%error, "cannot learn the cluster yet"),
            }
        }
    }

    async fn wait_until_listening(&mut self) -> Option<SocketAddr> {
        loop {
            if let News::Listening { address } = self.next_news().await? {
                return Some(address);
            }
        }
    }

    async fn next_news(&mut self) -> Option<News> {
        let news = self.news.recv().await?;
        match &news {
            News::StoreOpened { store_index, facts } => {
                self.stores[*store_index].facts = Some((**facts).clone());
            }
            News::StoreFailed { store_index, why } => {
                self.stores[*store_index].failure = Some(why.clone());
            }
            News::StoreGrown {
                store_index,
                capacity_bytes,
            } => {
                let facts = &mut self.stores[*store_index].facts;
                facts.as_mut().expect("it is open").capacity_bytes = *capacity_bytes;
            }
            News::Listening { .. }
            | News::SliceDone { .. }
            | News::CloneWaits(_)
            | News::SliceChanged(_)
            | News::StorePoisoned { .. }
            | News::FindReplicas(_)
            | News::Maintenance(_) => {}
        }
        Some(news)
    }

    async fn register(&mut self, cluster: Uuid, listening: SocketAddr) -> Result<ServerId> {
        let address = match self.config.advertise {
            Some(advertise) if advertise.port() == 0 => {
                SocketAddr::new(advertise.ip(), listening.port())
            }
            Some(advertise) => advertise,
            None => listening,
        };
        let server = NewServer {
            cluster: Some(cluster),
            uuid: self.identity.uuid,
            name: self.config.name.clone(),
            address,
            subsystem_nqn: storaged::subsystem_nqn(self.identity.uuid),
            labels: self.config.labels.clone(),
        };
        let server = self.persist(|c| {
            let server = server.clone();
            async move { c.register_server(server).await }
        });
        let server = server.await.context("metad refused this server")?;
        tracing::info!(%server, %address, "registered");
        for index in 0..self.stores.len() {
            let Some(id) = self.register_store(cluster, server, index).await? else {
                continue;
            };
            let path = self.config.stores[index].path.display();
            tracing::info!(store = %id, %path, "registered");
            self.stores[index].id = Some(id);
            self.wanted.registered(index, id);
        }
        self.name_failed_stores(cluster, server).await?;
        Ok(server)
    }

    /// Tells metad of a store and of its size, if it is open.
    async fn register_store(
        &self,
        cluster: Uuid,
        server: ServerId,
        index: usize,
    ) -> Result<Option<StoreId>> {
        let Some(facts) = &self.stores[index].facts else {
            return Ok(None);
        };
        let new = NewStore {
            cluster,
            server,
            uuid: Uuid::from_bytes(facts.store),
            size_bytes: facts.capacity_bytes,
        };
        let id = self
            .persist(|c| async move { c.register_store(new).await })
            .await;
        let path = self.config.stores[index].path.display();
        let id = id.with_context(|| format!("metad refused the store {path}"))?;
        Ok(Some(id))
    }

    /// Finds out which stores of metad those are that did not open, so that they are reported as
    /// faulted and not only missing.
    async fn name_failed_stores(&mut self, cluster: Uuid, server: ServerId) -> Result<()> {
        let mut known = remembered::load(&self.config.data_dir)?;
        for index in 0..self.stores.len() {
            let path = &self.config.stores[index].path;
            if let Some(facts) = &self.stores[index].facts {
                known.insert(path.clone(), Uuid::from_bytes(facts.store));
                continue;
            }
            // What the superblock says counts more than what was there before.
            let told = Store::inspect(path)
                .ok()
                .filter(|info| info.cluster == cluster);
            let Some(uuid) = told.map(|info| info.store).or(known.get(path).copied()) else {
                continue;
            };
            let filter = Filter {
                name: uuid.to_string(),
                version: 0,
            };
            let found = self.persist(|c| {
                let filter = filter.clone();
                async move { c.stores(filter).await }
            });
            let found = found.await.context("metad does not list stores")?.list;
            let ours = found.iter().find(|s| s.server == server).map(|s| s.id);
            // The device may serve under another path meanwhile.
            if ours.is_some_and(|id| !self.stores.iter().any(|s| s.id == Some(id))) {
                self.stores[index].id = ours;
            }
        }
        remembered::save(&self.config.data_dir, &known)
    }

    /// Asks again while metad cannot be reached; only a refusal ends it.
    async fn persist<T, F, G>(&self, ask: F) -> Result<T, MetadError>
    where
        F: Fn(MetadClient) -> G,
        G: Future<Output = Result<T, MetadError>>,
    {
        loop {
            match ask(self.client.clone()).await {
                Err(error) if matches!(error, MetadError::Unreachable { .. }) => {
                    tracing::warn!(%error, "metad does not answer; serving goes on");
                }
                other => return other,
            }
        }
    }

    /// Follows the desired state and reports, until the reactor is gone.
    async fn follow(
        &mut self,
        (cluster, server, address): (Uuid, ServerId, SocketAddr),
        maintenance: MaintenanceReceiver,
    ) -> Result<()> {
        let reporter = self.client.reporter(Reporter::Server(server));
        let every = Duration::from_millis(self.config.report_interval_ms);
        let mut report_due = tokio::time::interval(every);
        let mut after = 0;
        let client = self.client.clone();
        let mut upkeep = Upkeep::new(
            server,
            self.config.resilver_bytes_per_s_max,
            client.clone(),
            (Arc::clone(&self.orders), maintenance),
        );
        let watch = client.watch_slices(server, after);
        tokio::pin!(watch);
        loop {
            tokio::select! {
                desire = &mut watch => {
                    let desire = desire.context("metad ended the watch")?;
                    if was_restored_between(after, desire.index) {
                        let again = self.register(cluster, address).await?;
                        ensure!(again == server, "metad was restored and knows {server} as {again}");
                    }
                    after = desire.index;
                    watch.set(client.watch_slices(server, after));
                    hosts::save(&self.config.data_dir, &desire.host_nqns)?;
                    self.order(Order::Hosts(desire.host_nqns)).await;
                    for order in self.wanted.orders(desire.slices) {
                        self.order(order).await;
                    }
                    upkeep.on_desire(desire.maintenance).await;
                    self.report(&reporter, &upkeep);
                }
                outcome = upkeep.wait() => {
                    upkeep.on_wait(outcome).await;
                    self.report(&reporter, &upkeep);
                }
                news = self.next_news() => match news {
                    None => return Ok(()),
                    Some(News::SliceDone { nsid, end }) => {
                        for told in self.wanted.done(nsid, &end) {
                            self.tell(nsid, told).await;
                        }
                    }
                    Some(News::StoreGrown { store_index, .. }) => {
                        let told = self.register_store(cluster, server, store_index).await;
                        if let Err(error) = told {
                            tracing::warn!(%error, "metad did not take the store's new size");
                        }
                        self.report(&reporter, &upkeep);
                    }
                    Some(News::CloneWaits(nsid)) => self.wanted.waits(nsid),
                    Some(News::SliceChanged(nsid)) => {
                        for order in self.wanted.parent_changed(nsid) {
                            self.order(order).await;
                        }
                    }
                    Some(News::FindReplicas(volume)) => self.find_replicas(volume),
                    Some(
                        News::StoreOpened { .. }
                        | News::StoreFailed { .. }
                        | News::StorePoisoned { .. }
                        | News::Maintenance(_)
                        | News::Listening { .. },
                    ) => {}
                },
                _ = report_due.tick() => self.report(&reporter, &upkeep),
            }
        }
    }

    /// Asks metad who has slices of a volume, for healing a block of it.
    fn find_replicas(&self, volume: VolumeId) {
        let (client, orders) = (self.client.clone(), Arc::clone(&self.orders));
        tokio::task::spawn_local(async move {
            let found = replicas(&client, volume).await;
            if let Err(error) = &found {
                tracing::warn!(%volume, %error, "metad does not say who has the volume");
            }
            send(&orders, Order::Replicas(volume, found.ok().flatten())).await;
        });
    }

    async fn tell(&mut self, nsid: Nsid, told: Told) {
        let told = match told {
            Told::Blank(store, nsid) => {
                self.persist(|c| async move { c.report_blank_slice(store, nsid).await })
                    .await
            }
            Told::Gone(store, nsid) => {
                self.persist(|c| async move { c.confirm_slice_gone(store, nsid).await })
                    .await
            }
            Told::Made(store, nsid, size_blocks) => {
                self.persist(|c| async move { c.confirm_slice(store, nsid, size_blocks).await })
                    .await
            }
        };
        if let Err(error) = told {
            tracing::warn!(%nsid, %error, "metad did not take the confirmation");
        }
    }

    fn report(&self, reporter: &ReportHandle, upkeep: &Upkeep) {
        let stores = self
            .stores
            .iter()
            .zip(self.fills.iter())
            .filter_map(|(known, fill)| {
                let (used_bytes, size_bytes) = fill.read();
                let health = match known.failure {
                    Some(_) => StoreHealth::Faulted,
                    None => StoreHealth::Online,
                };
                let spoiled = match fill.spoiled_blocks() {
                    0 => String::new(),
                    n => format!("blocks not as they were written, and not healed yet: {n}"),
                };
                let note = note(known.failure.as_deref().unwrap_or(&spoiled));
                Some(StoreReport {
                    store: known.id?,
                    health,
                    used_bytes,
                    size_bytes,
                    note,
                })
            });
        let (volumes, resilvers) = upkeep.report();
        reporter.update(ReportContents {
            stores: stores.collect(),
            volumes,
            resilvers,
        });
    }

    async fn order(&self, order: Order) {
        send(&self.orders, order).await;
    }
}

/// The slices of a volume; `None`: there is no such volume.
async fn replicas(client: &MetadClient, volume: VolumeId) -> Result<Option<Replicas>, MetadError> {
    let named = |name: String| Filter { name, version: 0 };
    let found = client.volumes(named(volume.to_string())).await?.list;
    let Some(view) = found.into_iter().find(|view| view.id == volume) else {
        return Ok(None);
    };
    let servers = client.servers(named(String::new())).await?.list;
    let slices = view.slices.iter().filter_map(|slice| {
        let server = servers.iter().find(|s| s.id == slice.server)?;
        Some(Replica {
            nsid: slice.nsid,
            position: slice.position,
            address: server.address,
            subsystem_nqn: server.subsystem_nqn.clone(),
        })
    });
    Ok(Some(Replicas {
        shape: view.map.shape,
        slices: slices.collect(),
    }))
}

/// As much of a sentence as a report takes.
pub(crate) fn note(why: &str) -> String {
    why.chars().take(NOTE_CHARS_MAX).collect()
}

/// Prepares a store file that does not exist yet, if the configuration wants that. A failure is not
/// the end: opening will say what is wrong with the path.
fn create_if_missing(config: &StoreConfig, cluster: Uuid) {
    let Some(size_bytes) = config.create_bytes else {
        return;
    };
    if config.path.exists() {
        return;
    }
    let store = Uuid::new_v4();
    let options = PrepareOptions {
        cluster,
        store,
        size_bytes: Some(size_bytes),
        wipe: false,
        journal_bytes: None,
        checksums: true,
    };
    let path = config.path.display();
    match Store::prepare(&config.path, &options) {
        Ok(_) => tracing::info!(%path, size_bytes, %store, "prepared a new store"),
        Err(error) => tracing::error!(%path, %error, "cannot prepare the store"),
    }
}

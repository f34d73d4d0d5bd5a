//! The control thread: learns which volumes to hold, takes them from metad, reports.

use crate::bridge::{News, NewsReceiver, Order};
use crate::config::ClientdConfig;
use crate::disks::mark_of;
use crate::left_behind;
use crate::refusal::Refusal;
use crate::survival::Survival;
use anyhow::{Context, Result};
use control::api::{AttachmentDesire, ReportContents, Reporter, VolumeHealth, VolumeReport};
use control::client::{
    ClientConfig, MembershipRequest, MetadClient, MetadError, ReportHandle, ResilverLog,
};
use control::core::{DesiredAttachment, HostId, NewHost};
use control::wall_clock::unix_ms;
use daemon::identity::Identity;
use daemon::service;
use reactor::Mailbox;
use shardmap::generations::VolumeGenerations;
use shardmap::units::{Epoch, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use volume::{AttachGrant, MetadAnswer, MetadVerdict, StoreState, VolumeOptions, VolumeStatus};

/// First pause before an attach that failed is tried again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Outcomes of tasks that may wait.
const OUTCOMES_MAX: usize = 256;

/// Where a volume is, as control knows it.
#[derive(Debug)]
struct Held {
    epoch: Option<Epoch>,
    name: String,
    health: VolumeHealth,
    device: String,
    note: String,
    stage: Stage,
    /// Next pause before another attempt.
    retry: Duration,
    /// Why it could not be taken away, while it should go.
    refusal: Option<Refusal>,
    /// What the volume was last told of its snapshots.
    generations: Option<VolumeGenerations>,
    /// And of its size.
    size_blocks: u64,
    /// Why its device has not followed: said as long as nothing else is to be said.
    not_grown: Option<String>,
}

impl Held {
    fn new(name: &str, stage: Stage) -> Self {
        Self {
            epoch: None,
            name: name.to_owned(),
            health: VolumeHealth::Attaching,
            device: String::new(),
            note: String::new(),
            stage,
            retry: RETRY_MIN,
            refusal: None,
            generations: None,
            size_blocks: 0,
            not_grown: None,
        }
    }

    fn note(&self) -> String {
        if let Some(refusal) = &self.refusal {
            return refusal.why.clone();
        }
        match &self.not_grown {
            Some(why) if self.note.is_empty() => format!("its device keeps its old size: {why}"),
            Some(_) | None => self.note.clone(),
        }
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// metad was asked for the volume.
    Asking,
    /// The reactor has it.
    Here,
    /// metad is being told that it is gone.
    LettingGo,
    /// A pause before the next attempt.
    Pausing,
}

/// What a task of control ended with.
enum Outcome {
    /// metad granted (or not) an attach.
    Granted(
        VolumeId,
        Result<Box<control::core::AttachGrant>, MetadError>,
    ),
    /// It is time to try an attach again.
    Retry(VolumeId),
    /// It is time to try a detach again.
    DetachAgain(VolumeId),
    /// The device that an earlier clientd left could not be removed yet.
    StillThere(VolumeId, String),
    /// metad knows that we have let the volume go.
    LetGo(VolumeId),
    /// How a volume looks.
    Status(VolumeId, Box<VolumeStatus>),
}

/// What the control thread is made of.
pub(crate) struct Control {
    config: ClientdConfig,
    identity: Identity,
    client: MetadClient,
    orders: Arc<Mailbox<Order>>,
    news: NewsReceiver,
    wanted: BTreeMap<VolumeId, DesiredAttachment>,
    held: BTreeMap<VolumeId, Held>,
    /// Volumes that had a device under an earlier clientd, until metad has said which are ours.
    left_behind: Vec<VolumeId>,
    resilvers: ResilverLog,
    outcomes: mpsc::Sender<Outcome>,
    outcomes_in: mpsc::Receiver<Outcome>,
}

impl Control {
    /// Puts the parts together.
    pub(crate) fn new(
        config: ClientdConfig,
        identity: Identity,
        orders: Arc<Mailbox<Order>>,
        news: NewsReceiver,
    ) -> Self {
        let members = config.metad.iter().map(ToString::to_string).collect();
        let mut client_config =
            ClientConfig::new(members, concat!("clientd/", env!("CARGO_PKG_VERSION")));
        client_config.heartbeat_ms = config.report_interval_ms;
        let left_behind = Survival::new(&config.runtime_dir).volumes();
        let left_behind = left_behind.unwrap_or_else(|error| {
            tracing::error!(%error, dir = %config.runtime_dir.display(), "cannot look for devices left behind");
            Vec::new()
        });
        let (outcomes, outcomes_in) = mpsc::channel(OUTCOMES_MAX);
        Self {
            client: MetadClient::new(client_config),
            config,
            identity,
            orders,
            news,
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            left_behind,
            resilvers: ResilverLog::default(),
            outcomes,
            outcomes_in,
        }
    }

    /// Runs until the reactor thread is gone.
    ///
    /// # Errors
    /// What cannot be helped by waiting: a refusal of metad.
    pub(crate) async fn run(mut self) -> Result<()> {
        service::notify_ready("waiting for metad");
        let host = self.register().await?;
        service::notify_status("registered");
        let reporter = self.client.reporter(Reporter::Host(host));
        let client = self.client.clone();
        let watch = client.watch_attachments(host, 0);
        tokio::pin!(watch);
        loop {
            tokio::select! {
                desire = &mut watch => {
                    let desire = desire.context("metad ended the watch")?;
                    watch.set(client.watch_attachments(host, desire.index));
                    self.on_desire(host, desire);
                }
                news = self.news.recv() => match news {
                    Some(news) => self.on_news(news),
                    None => return Ok(()),
                },
                Some(outcome) = self.outcomes_in.recv() => self.on_outcome(host, outcome),
            }
            self.report(&reporter);
        }
    }

    async fn register(&self) -> Result<HostId> {
        let new = NewHost {
            uuid: self.identity.uuid,
            name: self.config.name.clone(),
            host_nqn: crate::host_nqn(self.identity.uuid),
        };
        loop {
            match self.client.register_host(new.clone()).await {
                Ok(host) => {
                    tracing::info!(%host, "registered");
                    return Ok(host);
                }
                Err(error @ MetadError::Unreachable { .. }) => {
                    tracing::warn!(%error, "cannot register yet");
                }
                Err(error) => return Err(error).context("metad refused this host"),
            }
        }
    }

    fn on_desire(&mut self, host: HostId, desire: AttachmentDesire) {
        let wanted: BTreeMap<_, _> = desire.volumes.into_iter().map(|d| (d.volume, d)).collect();
        // A volume that metad gave to somebody else is fenced; its device must not hang for ever.
        let gone = |id: &&VolumeId| !wanted.contains_key(id);
        let lost: Vec<VolumeId> = self.held.keys().filter(gone).copied().collect();
        self.wanted = wanted;
        for volume in lost {
            self.order(Order::Detach { volume });
        }
        for volume in std::mem::take(&mut self.left_behind) {
            self.sweep(volume);
        }
        let volumes: Vec<VolumeId> = self.wanted.keys().copied().collect();
        for volume in volumes {
            self.pursue(host, volume);
        }
    }

    /// Does the next thing towards what is wanted of a volume.
    fn pursue(&mut self, host: HostId, volume: VolumeId) {
        let Some(desired) = self.wanted.get(&volume) else {
            return;
        };
        let stays = self.may_stay(volume);
        match (stays, self.held.get_mut(&volume)) {
            (true, None) if desired.ready => {
                let held = Held::new(&desired.name, Stage::Asking);
                self.held.insert(volume, held);
                self.take(host, volume);
            }
            (false, Some(held)) if held.stage == Stage::Here => {
                let has_ended = held.epoch.is_some_and(|epoch| desired.has_ended(epoch));
                self.detach(volume);
                // One that has ended must complete no snapshot: it may be one for a rollback.
                if !has_ended {
                    self.pass_generations(volume);
                }
            }
            (true, Some(held)) if held.stage == Stage::Here => {
                held.refusal = None;
                self.pass_changes(volume);
            }
            // A turn that is not ours ends by itself and comes back here.
            (_, Some(_)) => {}
            // metad thinks we hold it, and we do not (a clientd before us did).
            (false, None) => {
                if let Some(epoch) = desired.epoch {
                    let mut held = Held::new(&desired.name, Stage::LettingGo);
                    held.health = VolumeHealth::Detaching;
                    self.held.insert(volume, held);
                    self.clear_away(volume, Some(epoch));
                }
            }
            (true, None) => {}
        }
    }

    fn detach(&mut self, volume: VolumeId) {
        if let Some(held) = self.held.get_mut(&volume) {
            held.health = VolumeHealth::Detaching;
        }
        self.order(Order::Detach { volume });
    }

    /// Hands a volume that is here what metad has changed of it.
    fn pass_changes(&mut self, volume: VolumeId) {
        self.pass_generations(volume);
        let (Some(desired), Some(held)) = (self.wanted.get(&volume), self.held.get_mut(&volume))
        else {
            return;
        };
        if held.size_blocks < desired.size_blocks {
            held.size_blocks = desired.size_blocks;
            held.not_grown = None;
            let size_blocks = desired.size_blocks;
            self.order(Order::Grow(volume, size_blocks));
        }
    }

    /// Hands a volume that is here the snapshots that metad has; it ignores what is older than it knows.
    /// One that is pending is handed over again: the news of its end may have been lost on the way.
    fn pass_generations(&mut self, volume: VolumeId) {
        let (Some(desired), Some(held)) = (self.wanted.get(&volume), self.held.get_mut(&volume))
        else {
            return;
        };
        let now = desired.generations.clone();
        if now.pending().is_some() || held.generations.as_ref() != Some(&now) {
            held.generations = Some(now.clone());
            self.order(Order::Generations(volume, now));
        }
    }

    /// Asks metad for the volume.
    fn take(&self, host: HostId, volume: VolumeId) {
        let (client, outcomes) = (self.client.clone(), self.outcomes.clone());
        tokio::task::spawn_local(async move {
            let granted = client.attach(volume, host).await.map(Box::new);
            // Control is gone only when the program ends.
            drop(outcomes.send(Outcome::Granted(volume, granted)).await);
        });
    }

    /// A volume that was taken from this host while no clientd ran (a forced detach) has left its
    /// device. Whoever has that open waits until it is removed.
    fn sweep(&mut self, volume: VolumeId) {
        let wanted = self.wanted.get(&volume);
        if wanted.is_some_and(|desired| desired.wanted || desired.epoch.is_some()) {
            return; // taken over, or cleared away before metad is told
        }
        let mut held = Held::new(&volume.to_string(), Stage::LettingGo);
        held.health = VolumeHealth::Detaching;
        self.held.insert(volume, held);
        self.clear_away(volume, None);
    }

    /// Removes the device that an earlier clientd left, so that its openers do not hang, and then
    /// tells metad that the volume is no longer here, if metad thinks so (`epoch`).
    fn clear_away(&self, volume: VolumeId, epoch: Option<Epoch>) {
        let (client, outcomes) = (self.client.clone(), self.outcomes.clone());
        let survival = Survival::new(&self.config.runtime_dir);
        let mark = mark_of(self.identity.uuid, volume);
        tokio::task::spawn_local(async move {
            let mut refusal = Refusal::default();
            loop {
                // The driver may take its time over a device with requests.
                let removed = tokio::task::spawn_blocking(move || left_behind::remove(mark));
                match removed.await {
                    Ok(Ok(())) => break,
                    Ok(Err(why)) => {
                        tracing::warn!(%volume, why, "the device of an earlier clientd stays");
                        drop(outcomes.send(Outcome::StillThere(volume, why)).await);
                    }
                    Err(error) => tracing::error!(%volume, %error, "removal of a device died"),
                }
                refusal.end_pause();
                let pause = refusal.next_pause().expect("none is under way");
                tokio::time::sleep(pause).await;
            }
            survival.forget(volume);
            if let Some(epoch) = epoch {
                tell_gone(&client, volume, epoch).await;
            }
            drop(outcomes.send(Outcome::LetGo(volume)).await);
        });
    }

    /// Tells metad that the volume is no longer here.
    fn let_go(&mut self, volume: VolumeId, epoch: Epoch) {
        if let Some(held) = self.held.get_mut(&volume) {
            held.stage = Stage::LettingGo;
        }
        let (client, outcomes) = (self.client.clone(), self.outcomes.clone());
        tokio::task::spawn_local(async move {
            tell_gone(&client, volume, epoch).await;
            drop(outcomes.send(Outcome::LetGo(volume)).await);
        });
    }

    fn retry_later(&mut self, volume: VolumeId, why: &str) {
        let Some(held) = self.held.get_mut(&volume) else {
            return;
        };
        tracing::warn!(volume = held.name, why, "not attached; trying again");
        why.clone_into(&mut held.note);
        held.health = VolumeHealth::Attaching;
        held.refusal = None;
        held.device.clear();
        held.stage = Stage::Pausing;
        let pause = held.retry;
        held.retry = (pause * 2).min(RETRY_MAX);
        let outcomes = self.outcomes.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            drop(outcomes.send(Outcome::Retry(volume)).await);
        });
    }

    fn on_outcome(&mut self, host: HostId, outcome: Outcome) {
        match outcome {
            Outcome::Granted(volume, Ok(grant)) => self.on_granted(volume, *grant),
            Outcome::Granted(volume, Err(error)) => {
                self.retry_later(volume, &error.to_string());
            }
            Outcome::Retry(volume) => {
                let wanted = self.is_wanted(volume);
                let Some(held) = self.held.get_mut(&volume) else {
                    return;
                };
                if wanted {
                    held.stage = Stage::Asking;
                    self.take(host, volume);
                } else {
                    self.held.remove(&volume);
                    self.pursue(host, volume);
                }
            }
            Outcome::DetachAgain(volume) => self.detach_again(volume),
            Outcome::StillThere(volume, why) => {
                if let Some(held) = self.held.get_mut(&volume) {
                    held.note = why;
                }
            }
            Outcome::LetGo(volume) => {
                if self.is_wanted(volume) {
                    self.retry_later(volume, "it was detached");
                } else {
                    self.held.remove(&volume);
                }
            }
            Outcome::Status(volume, status) => {
                if let Some(held) = self.held.get_mut(&volume) {
                    (held.health, held.note) = health_of(&status);
                }
            }
        }
    }

    fn on_granted(&mut self, volume: VolumeId, grant: control::core::AttachGrant) {
        let Some(held) = self.held.get_mut(&volume) else {
            return;
        };
        // metad may have said more since it granted the volume: that the attachment has ended, which
        // its stores need not know, or that the volume is not wanted here any more.
        let desired = self.wanted.get(&volume);
        if desired.is_some_and(|d| d.has_ended(grant.epoch)) {
            return self.retry_later(volume, "it was detached by force before the grant was here");
        }
        held.epoch = Some(grant.epoch);
        held.stage = Stage::Here;
        held.generations = None;
        held.size_blocks = grant.map.size_blocks;
        let held_since = grant.held_since;
        let grant = Box::new(self.grant(grant));
        self.order(Order::Attach { grant, held_since });
        if self.is_wanted(volume) {
            self.pass_changes(volume);
        } else {
            self.detach(volume);
        }
    }

    fn grant(&self, grant: control::core::AttachGrant) -> AttachGrant {
        let knobs = &self.config.volume;
        let options = VolumeOptions {
            degrade_grace_ms: knobs.degrade_grace_ms,
            attach_wait_ms: knobs.attach_wait_ms,
            slow_ms: knobs.slow_ms,
            resilver_bytes_per_s_max: knobs.resilver_bytes_per_s_max,
            stable_period_ms: knobs.stable_period_ms,
            ..VolumeOptions::default()
        };
        AttachGrant::new(grant, options)
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Live { volume, device } => {
                if let Some(held) = self.held.get_mut(&volume) {
                    held.device = device;
                    held.retry = RETRY_MIN;
                    held.not_grown = None;
                }
                self.look(volume);
            }
            News::AttachFailed { volume, why } => self.retry_later(volume, &why),
            News::DeviceLost { volume, why } => {
                if let Some(held) = self.held.get_mut(&volume)
                    && let Some(epoch) = held.epoch
                {
                    held.health = VolumeHealth::Failed;
                    held.stage = Stage::LettingGo;
                    held.note = why;
                    self.clear_away(volume, Some(epoch));
                }
            }
            News::DeviceFailed { volume, why } => {
                if let Some(held) = self.held.get_mut(&volume) {
                    held.note = why;
                }
            }
            News::DetachRefused { volume, why } => self.detach_refused(volume, why),
            News::Detached { volume } => {
                if let Some(epoch) = self.held.get(&volume).and_then(|held| held.epoch) {
                    self.let_go(volume, epoch);
                }
            }
            News::NotGrown { volume, why } => {
                if let Some(held) = self.held.get_mut(&volume) {
                    held.not_grown = Some(why);
                }
            }
            News::Failed { volume, why } => {
                if let Some(held) = self.held.get_mut(&volume) {
                    held.health = VolumeHealth::Failed;
                    held.note = why;
                }
            }
            News::AskMetad(ask) => self.ask_metad(ask),
            News::Snapshot {
                volume,
                epoch,
                generation,
                step,
            } => {
                let client = self.client.clone();
                tokio::task::spawn_local(async move {
                    let snapshot = (generation, step);
                    client.record_snapshot(volume, epoch, snapshot).await;
                });
            }
            News::Changed(volume) => self.look(volume),
            News::Progress { volume, progress } => {
                let moved = (progress.bytes_done, progress.bytes_total);
                let of = (volume, progress.store);
                self.resilvers
                    .moved(of, moved, progress.bytes_per_s, unix_ms());
            }
            News::Resilvered { volume, record } => {
                let moved = (record.bytes_moved, record.bytes_missed);
                self.resilvers
                    .complete((volume, record.store), moved, unix_ms());
                self.look(volume);
            }
        }
    }

    /// Passes a request for another in-sync set on to metad, and the answer back.
    fn ask_metad(&self, ask: MembershipRequest) {
        let (client, orders) = (self.client.clone(), Arc::clone(&self.orders));
        tokio::task::spawn_local(async move {
            let answer = client.change_membership(&ask).await;
            if let Err(error) = &answer {
                tracing::warn!(%error, "metad did not change the in-sync set");
            }
            let (volume, epoch, request) = (ask.volume, ask.epoch, ask.request);
            let verdict = MetadVerdict::of(answer.ok(), ask.new_isr);
            let answer = MetadAnswer {
                volume,
                epoch,
                request,
                verdict,
            };
            if orders.send(Order::Metad(answer)).is_err() {
                // The volume asks again.
                tracing::warn!(%volume, "the reactor's mailbox is full");
            }
        });
    }

    fn is_wanted(&self, volume: VolumeId) -> bool {
        self.wanted.get(&volume).is_some_and(|d| d.wanted)
    }

    /// Whether the attachment that is here, if one is, may go on: it is wanted, and metad has not ended
    /// it. One that was ended goes even if the host is to have the volume again, under another epoch.
    fn may_stay(&self, volume: VolumeId) -> bool {
        let epoch = self.held.get(&volume).and_then(|held| held.epoch);
        let desired = self.wanted.get(&volume).filter(|d| d.wanted);
        desired.is_some_and(|d| !epoch.is_some_and(|epoch| d.has_ended(epoch)))
    }

    /// The device is in use: says so, and tries again after a pause.
    fn detach_refused(&mut self, volume: VolumeId, why: String) {
        let stays = self.may_stay(volume);
        let Some(held) = self.held.get_mut(&volume) else {
            return;
        };
        tracing::warn!(volume = held.name, why, "detach refused");
        held.health = VolumeHealth::Online;
        if stays {
            return;
        }
        let refusal = held.refusal.get_or_insert_with(Refusal::default);
        refusal.why = why;
        let Some(pause) = refusal.next_pause() else {
            return;
        };
        let outcomes = self.outcomes.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            drop(outcomes.send(Outcome::DetachAgain(volume)).await);
        });
    }

    fn detach_again(&mut self, volume: VolumeId) {
        let stays = self.may_stay(volume);
        let Some(held) = self.held.get_mut(&volume) else {
            return;
        };
        let Some(refusal) = &mut held.refusal else {
            return;
        };
        refusal.end_pause();
        if !stays && held.stage == Stage::Here {
            self.order(Order::Detach { volume });
        }
    }

    /// Asks the reactor how a volume looks, for the report.
    fn look(&self, volume: VolumeId) {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Status(volume, answer));
        let outcomes = self.outcomes.clone();
        tokio::task::spawn_local(async move {
            if let Ok(Some(status)) = answered.await {
                drop(
                    outcomes
                        .send(Outcome::Status(volume, Box::new(status)))
                        .await,
                );
            }
        });
    }

    fn report(&self, reporter: &ReportHandle) {
        let volumes = self.held.iter().map(|(volume, held)| VolumeReport {
            volume: *volume,
            health: held.health,
            device: held.device.clone(),
            note: held.note(),
        });
        reporter.update(ReportContents {
            volumes: volumes.collect(),
            resilvers: self.resilvers.reports(),
            ..ReportContents::default()
        });
    }

    /// Hands an order to the reactor. The mailbox is far larger than what can be on its way.
    fn order(&self, order: Order) {
        if let Err(order) = self.orders.send(order) {
            tracing::error!(?order, "the reactor's mailbox is full");
        }
    }
}

async fn tell_gone(client: &MetadClient, volume: VolumeId, epoch: Epoch) {
    loop {
        match client.detach(volume, epoch).await {
            Err(error @ MetadError::Unreachable { .. }) => {
                tracing::warn!(%volume, %error, "cannot tell metad of the detach yet");
            }
            Err(error) => return tracing::warn!(%volume, %error, "detach not recorded"),
            Ok(ours) => return tracing::info!(%volume, ours, "detached"),
        }
    }
}

fn health_of(status: &VolumeStatus) -> (VolumeHealth, String) {
    if !status.serving {
        return (VolumeHealth::Attaching, String::new());
    }
    let named = |wanted: fn(StoreState) -> bool| -> Vec<String> {
        let stores = status.stores.iter().filter(|(_, s)| wanted(s.state));
        stores.map(|(id, _)| id.to_string()).collect()
    };
    let out = named(|s| s != StoreState::InSync);
    if out.is_empty() {
        return (VolumeHealth::Online, String::new());
    }
    (
        VolumeHealth::Degraded,
        format!("not in sync: {}", out.join(", ")),
    )
}

#[cfg(test)]
mod test;

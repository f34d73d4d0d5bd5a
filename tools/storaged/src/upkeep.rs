//! The control side of maintenance: carries out what [`Maintenance`] decides, and reports it.

use crate::bridge::{MaintenanceReceiver, send};
use control::api::{ResilverReport, VolumeHealth, VolumeReport};
use control::client::{MembershipRequest, MetadClient, MetadError, ResilverLog};
use control::core::{AttachGrant, DesiredMaintenance, Rollback};
use control::wall_clock::unix_ms;
use reactor::Mailbox;
use shardmap::units::{Epoch, Moment, ServerId, VolumeId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use storaged::{Ending, Look, Maintenance, MaintenanceNews, Order, Step, hosting};
use tokio::sync::{mpsc, oneshot};
use volume::{MetadAnswer, MetadVerdict, VolumeStatus};

/// Outcomes of tasks that may wait: a handful of tasks run at a time.
const OUTCOMES_MAX: usize = 64;
/// Volumes that are reported: what keeps the first ones from being whole mostly keeps all.
const REPORTED_MAX: usize = 64;

/// What a task ended with, or what the reactor says.
#[derive(Debug)]
pub(crate) enum Outcome {
    News(MaintenanceNews),
    Granted(VolumeId, Result<Box<AttachGrant>, MetadError>),
    Status(VolumeId, Option<Box<VolumeStatus>>),
    Told(VolumeId),
}

/// See the module.
pub(crate) struct Upkeep {
    server: ServerId,
    bytes_per_s_max: u64,
    client: MetadClient,
    orders: Arc<Mailbox<Order>>,
    machine: Maintenance,
    /// From metad, on its way to the reactor.
    grant: Option<Box<AttachGrant>>,
    resilvers: ResilverLog,
    news: MaintenanceReceiver,
    outcomes: mpsc::Sender<Outcome>,
    outcomes_in: mpsc::Receiver<Outcome>,
    began: Instant,
}

impl Upkeep {
    pub(crate) fn new(
        server: ServerId,
        bytes_per_s_max: u64,
        client: MetadClient,
        (orders, news): (Arc<Mailbox<Order>>, MaintenanceReceiver),
    ) -> Self {
        let (outcomes, outcomes_in) = mpsc::channel(OUTCOMES_MAX);
        Self {
            server,
            bytes_per_s_max,
            client,
            orders,
            machine: Maintenance::default(),
            grant: None,
            resilvers: ResilverLog::default(),
            news,
            outcomes,
            outcomes_in,
            began: Instant::now(),
        }
    }

    fn now(&self) -> Moment {
        Moment(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// What a task or the reactor brings, or `None` when it is time to look again.
    pub(crate) async fn wait(&mut self) -> Option<Outcome> {
        let due = self.machine.next_deadline().map(|at| {
            let at = self.began + Duration::from_nanos(at.0);
            tokio::time::sleep_until(at.into())
        });
        let due = async {
            match due {
                Some(due) => due.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            outcome = self.outcomes_in.recv() => outcome,
            Some(news) = self.news.recv() => Some(Outcome::News(news)),
            () = due => None,
        }
    }

    pub(crate) async fn on_wait(&mut self, outcome: Option<Outcome>) {
        let now = self.now();
        let step = match outcome {
            None => self.machine.on_time(now),
            Some(Outcome::News(news)) => return self.on_news(news).await,
            Some(Outcome::Granted(volume, Ok(grant))) => {
                let of = (grant.epoch, grant.rollback);
                self.grant = Some(grant);
                self.machine.on_granted(now, volume, of)
            }
            Some(Outcome::Granted(volume, Err(error))) => {
                let why = error.to_string();
                tracing::debug!(%volume, why, "not resilvered now");
                self.machine.on_refused(now, volume, &why)
            }
            Some(Outcome::Status(volume, status)) => {
                self.machine.on_status(now, volume, status.as_deref())
            }
            Some(Outcome::Told(volume)) => self.machine.on_told(now, volume),
        };
        self.carry_out(step).await;
    }

    pub(crate) async fn on_desire(&mut self, desired: Vec<DesiredMaintenance>) {
        let here = desired
            .iter()
            .find(|d| Some(d.volume) == self.machine.here());
        if let Some(d) = here {
            let order = Order::Generations(d.volume, d.generations.clone());
            send(&self.orders, order).await;
        }
        let step = self.machine.on_desire(self.now(), desired);
        self.carry_out(step).await;
    }

    async fn on_news(&mut self, news: MaintenanceNews) {
        match news {
            MaintenanceNews::Changed { volume, what } => {
                tracing::trace!(%volume, ?what, "a volume that nobody uses");
                self.look(volume).await;
            }
            MaintenanceNews::AskMetad(request) => self.ask_metad(request),
            MaintenanceNews::Snapshot {
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
            MaintenanceNews::Progress { volume, progress } => {
                let moved = (progress.bytes_done, progress.bytes_total);
                let of = (volume, progress.store);
                self.resilvers
                    .moved(of, moved, progress.bytes_per_s, unix_ms());
            }
            MaintenanceNews::Resilvered { volume, record } => {
                tracing::info!(%volume, store = %record.store, missed = record.bytes_missed,
                    moved = record.bytes_moved, ms = record.duration_ms, "resilvered");
                let moved = (record.bytes_moved, record.bytes_missed);
                self.resilvers
                    .complete((volume, record.store), moved, unix_ms());
            }
            MaintenanceNews::Rolling { volume, percent } => {
                self.machine.on_rolling(self.now(), volume, percent);
            }
            MaintenanceNews::RolledBack {
                volume,
                epoch,
                rollback,
            } => self.tell_rolled_back(volume, epoch, rollback),
            MaintenanceNews::Ended { volume, how } => {
                self.resilvers.give_up(volume, unix_ms());
                match &how {
                    Ending::LetGo | Ending::Fenced => tracing::info!(%volume, ?how, "let go"),
                    Ending::Failed(why) => {
                        tracing::warn!(%volume, why, "not resilvered; trying again");
                    }
                }
                let step = self.machine.on_ended(self.now(), volume, &how);
                self.carry_out(step).await;
            }
        }
    }

    async fn carry_out(&mut self, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::Ask(volume)) => self.ask(volume),
            Some(Step::Host(volume)) => {
                let grant = self.grant.take().expect("it was just granted");
                let rollback = grant.rollback;
                let name = self.machine.name(volume).unwrap_or_default();
                tracing::info!(%volume, name, epoch = grant.epoch.0, ?rollback, "resilvering a volume that nobody uses");
                let options = hosting::options(self.bytes_per_s_max, rollback);
                let grant = volume::AttachGrant::new(*grant, options);
                send(&self.orders, Order::Maintain(Box::new(grant), rollback)).await;
            }
            Some(Step::Look(volume)) => self.look(volume).await,
            Some(Step::LetGo(volume)) => send(&self.orders, Order::LetGo(volume)).await,
            Some(Step::Abandon(volume)) => send(&self.orders, Order::Abandon(volume)).await,
            Some(Step::TellGone(volume, epoch)) => self.tell_gone(volume, epoch),
        }
    }

    fn ask(&self, volume: VolumeId) {
        let (client, outcomes, server) = (self.client.clone(), self.outcomes.clone(), self.server);
        tokio::task::spawn_local(async move {
            let granted = client.maintain(volume, server).await.map(Box::new);
            // Control is gone only when the program ends.
            drop(outcomes.send(Outcome::Granted(volume, granted)).await);
        });
    }

    async fn look(&self, volume: VolumeId) {
        let (answer, answered) = oneshot::channel();
        let look = Look(Box::new(move |figures| {
            drop(answer.send(figures.hosting.status(volume)));
        }));
        send(&self.orders, Order::Look(look)).await;
        let outcomes = self.outcomes.clone();
        tokio::task::spawn_local(async move {
            if let Ok(status) = answered.await {
                let status = status.map(Box::new);
                drop(outcomes.send(Outcome::Status(volume, status)).await);
            }
        });
    }

    fn tell_gone(&self, volume: VolumeId, epoch: Epoch) {
        let (client, outcomes) = (self.client.clone(), self.outcomes.clone());
        tokio::task::spawn_local(async move {
            // metad gives it to another one, or to a host, without hearing of us: one try is enough.
            if let Err(error) = client.detach(volume, epoch).await {
                tracing::warn!(%volume, %error, "metad was not told that the volume is free");
            }
            drop(outcomes.send(Outcome::Told(volume)).await);
        });
    }

    /// What is lost of this is made good for by who takes the volume next: it rolls back once more.
    fn tell_rolled_back(&self, volume: VolumeId, epoch: Epoch, rollback: Rollback) {
        let client = self.client.clone();
        tokio::task::spawn_local(async move {
            loop {
                match client.complete_rollback(volume, epoch, rollback).await {
                    Err(error @ MetadError::Unreachable { .. }) => {
                        tracing::warn!(%volume, %error, "cannot tell metad that a volume is rolled back yet");
                    }
                    Err(error) => {
                        return tracing::warn!(%volume, %error, "a rollback is not recorded");
                    }
                    Ok(ours) => return tracing::info!(%volume, ours, "rolled back"),
                }
            }
        });
    }

    /// Passes a request for another in-sync set on to metad, and the answer back.
    fn ask_metad(&self, request: MembershipRequest) {
        let (client, orders) = (self.client.clone(), Arc::clone(&self.orders));
        tokio::task::spawn_local(async move {
            let answer = client.change_membership(&request).await;
            if let Err(error) = &answer {
                tracing::warn!(%error, "metad did not change the in-sync set");
            }
            let answer = MetadAnswer {
                volume: request.volume,
                epoch: request.epoch,
                request: request.request,
                verdict: MetadVerdict::of(answer.ok(), request.new_isr),
            };
            send(&orders, Order::Metad(answer)).await;
        });
    }

    /// For the report to metad.
    pub(crate) fn report(&self) -> (Vec<VolumeReport>, Vec<ResilverReport>) {
        let volumes = self.machine.notes().take(REPORTED_MAX);
        let volumes = volumes.map(|(volume, note)| VolumeReport {
            volume,
            health: VolumeHealth::Degraded,
            device: String::new(),
            note: crate::control::note(note),
        });
        (volumes.collect(), self.resilvers.reports())
    }
}

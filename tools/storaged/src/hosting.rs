//! The volumes that this server brings up to date, on its reactor: the replication client of a
//! volume that no host uses (ADR 0006). Reaches its own slices over the network like all others.

use crate::maintenance::Ending;
use crate::orders::MaintenanceNews;
use crate::roller::{self, Roller, Told};
use control::core::{Rollback, storaged_host_nqn};
use nvmf::initiator;
use reactor::{Completion, Driver};
use shardmap::generations::VolumeGenerations;
use shardmap::units::VolumeId;
use std::collections::BTreeMap;
use uuid::Uuid;
use volume::limits::{COPIES_MAX, RECONCILE_COPIES_MAX};
use volume::{
    AttachFault, AttachGrant, FailReason, MetadAnswer, VolumeEvent, VolumeOptions, VolumeStatus,
    Volumes, VolumesConfig,
};

/// Room of the volumes' timers.
pub const ROOM_VOLUMES: u8 = 4;
/// Room of their associations.
pub const ROOM_INITIATOR: u8 = 5;
/// Large arena slots that copies of the volume at work may hold; serving must not lack them.
pub const COPY_SLOTS: usize = COPIES_MAX + RECONCILE_COPIES_MAX + roller::SLOTS;

/// Knobs of a volume that no host uses: nobody waits for a member, and copies are slow on purpose. For one
/// that is rolled back somebody waits: it goes on without members that are away.
pub fn options(resilver_bytes_per_s_max: u64, rollback: Option<Rollback>) -> VolumeOptions {
    VolumeOptions {
        attach_wait_ms: 10_000,
        slow_ms: 0,
        may_shrink: rollback.is_some(),
        resilver_bytes_per_s_max,
        ..VolumeOptions::default()
    }
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaintenanceCounters {
    /// Volumes taken.
    pub begun: u64,
    /// Volumes let go in order.
    pub let_go: u64,
    /// Volumes that somebody else took meanwhile.
    pub fenced: u64,
    /// Volumes that could not go on.
    pub failed: u64,
    /// Replicas brought up to date.
    pub resilvers: u64,
    /// Bytes copied to them.
    pub resilvered_bytes: u64,
    /// Volumes rolled back.
    pub rollbacks: u64,
}

/// The volumes that are here to be brought up to date.
#[derive(Debug)]
pub struct Hosting {
    volumes: Volumes,
    events: Vec<VolumeEvent>,
    news: Vec<MaintenanceNews>,
    roller: Roller,
    /// How volumes that are on their way out end, other than in order.
    failed: BTreeMap<VolumeId, Ending>,
    counters: MaintenanceCounters,
}

impl Hosting {
    /// Nothing is here yet. `server` is the identity under which others know this server.
    pub fn new(server: Uuid) -> Self {
        let host_nqn = storaged_host_nqn(server);
        let (seed, _) = server.as_u64_pair();
        let volumes = Volumes::new(VolumesConfig {
            room: ROOM_VOLUMES,
            initiator: initiator::Config::new(ROOM_INITIATOR, host_nqn, *server.as_bytes()),
            seed,
        });
        Self {
            volumes,
            events: Vec::new(),
            news: Vec::new(),
            roller: Roller::default(),
            failed: BTreeMap::new(),
            counters: MaintenanceCounters::default(),
        }
    }

    /// What was counted.
    pub fn counters(&self) -> MaintenanceCounters {
        self.counters
    }

    /// Volumes that are here to be brought up to date.
    pub fn list(&self) -> impl Iterator<Item = VolumeId> + '_ {
        self.volumes.list().filter(|id| !self.roller.has_view(*id))
    }

    /// How one of them looks.
    pub fn status(&self, volume: VolumeId) -> Option<VolumeStatus> {
        self.volumes.status(volume)
    }

    pub(crate) fn begin(
        &mut self,
        io: &mut dyn Driver,
        grant: &AttachGrant,
        rollback: Option<Rollback>,
    ) {
        self.counters.begun += 1;
        if let Err(fault) = self.volumes.attach(io, grant) {
            return self.ended(grant.volume, Ending::Failed(fault.to_string()));
        }
        if let Some(rollback) = rollback {
            self.roller.begin(grant, rollback);
        }
    }

    /// What is being rolled back is let go at once: its writes may be held for as long as a store is away.
    pub(crate) fn let_go(&mut self, io: &mut dyn Driver, volume: VolumeId) {
        if self.roller.end(io, &mut self.volumes, volume) {
            return self.abandon(io, volume, "not rolled back yet".into());
        }
        if !self.volumes.detach(io, volume) {
            self.ended(volume, Ending::LetGo);
        }
    }

    pub(crate) fn abandon(&mut self, io: &mut dyn Driver, volume: VolumeId, why: String) {
        if self.volumes.abandon(io, volume) {
            let failed = self.failed.entry(volume);
            failed.or_insert(Ending::Failed(why));
        }
    }

    /// One that has been let go meanwhile needs none. One that is rolled back is not told of a snapshot that
    /// was made for another rollback: it would complete it and write on.
    pub(crate) fn set_generations(
        &mut self,
        io: &mut dyn Driver,
        volume: VolumeId,
        generations: VolumeGenerations,
    ) {
        if self.roller.stops_for(volume, &generations) {
            return;
        }
        self.volumes.set_generations(io, volume, generations);
        self.roller.go_on(io, &mut self.volumes);
    }

    pub(crate) fn on_metad(&mut self, io: &mut dyn Driver, answer: MetadAnswer) {
        self.volumes.on_metad(io, answer);
    }

    pub(crate) fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        self.volumes.on_completion(io, completion, &mut self.events);
        self.settle(io);
    }

    pub(crate) fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.roller.retry(io, &mut self.volumes);
        // What an event brings may give the volumes more to send; nothing may be left unsent.
        loop {
            self.volumes.on_turn_end(io, &mut self.events);
            if self.events.is_empty() {
                return;
            }
            self.settle(io);
        }
    }

    pub(crate) fn take_news(&mut self) -> Vec<MaintenanceNews> {
        std::mem::take(&mut self.news)
    }

    fn settle(&mut self, io: &mut dyn Driver) {
        for event in std::mem::take(&mut self.events) {
            match event.into_request() {
                Ok(request) => self.news.push(MaintenanceNews::AskMetad(request)),
                Err(event) => self.on_event(io, event),
            }
        }
        self.roller.go_on(io, &mut self.volumes);
        for told in self.roller.take_told() {
            self.on_rolled(io, told);
        }
    }

    fn on_rolled(&mut self, io: &mut dyn Driver, (volume, told): (VolumeId, Told)) {
        match told {
            Told::Progress(percent) => {
                let news = MaintenanceNews::Rolling { volume, percent };
                self.news.push(news);
            }
            Told::Done(epoch, rollback) => {
                self.counters.rollbacks += 1;
                self.news.push(MaintenanceNews::RolledBack {
                    volume,
                    epoch,
                    rollback,
                });
            }
            Told::Failed(why) => self.abandon(io, volume, format!("not rolled back: {why}")),
        }
    }

    fn ended(&mut self, volume: VolumeId, how: Ending) {
        match &how {
            Ending::LetGo => self.counters.let_go += 1,
            Ending::Fenced => self.counters.fenced += 1,
            Ending::Failed(_) => self.counters.failed += 1,
        }
        self.news.push(MaintenanceNews::Ended { volume, how });
    }

    fn on_event(&mut self, io: &mut dyn Driver, event: VolumeEvent) {
        let Some(event) = self.roller.on_event(io, &mut self.volumes, event) else {
            return;
        };
        match event {
            VolumeEvent::HostDone { .. } => unreachable!("only the roller asks for anything here"),
            VolumeEvent::Remember { .. } => {} // no device outlives us
            VolumeEvent::Attached { volume } => {
                self.news
                    .push(MaintenanceNews::Changed { volume, what: None });
            }
            VolumeEvent::Transition { volume, what } => {
                let what = Some(what);
                self.news.push(MaintenanceNews::Changed { volume, what });
            }
            VolumeEvent::AttachFailed { volume, why, .. } => {
                self.roller.end(io, &mut self.volumes, volume);
                let how = match why {
                    AttachFault::Fenced => Ending::Fenced,
                    AttachFault::Detached => Ending::LetGo,
                    AttachFault::StoresNeeded(_)
                    | AttachFault::MembersAway(_)
                    | AttachFault::Membership
                    | AttachFault::MetadBehind
                    | AttachFault::DataLost => Ending::Failed(why.to_string()),
                };
                self.ended(volume, how);
            }
            VolumeEvent::Failed { volume, why } => {
                let how = match why {
                    FailReason::Fenced => Ending::Fenced,
                    FailReason::DataLost | FailReason::Membership => {
                        Ending::Failed(why.to_string())
                    }
                };
                self.failed.insert(volume, how);
                self.roller.end(io, &mut self.volumes, volume);
                self.volumes.detach(io, volume);
            }
            VolumeEvent::Detached { volume } => {
                self.roller.end(io, &mut self.volumes, volume);
                let how = self.failed.remove(&volume);
                self.ended(volume, how.unwrap_or(Ending::LetGo));
            }
            VolumeEvent::Progress { volume, progress } => {
                self.news
                    .push(MaintenanceNews::Progress { volume, progress });
            }
            VolumeEvent::Resilvered { volume, record } => {
                self.counters.resilvers += 1;
                self.counters.resilvered_bytes += record.bytes_moved;
                self.news
                    .push(MaintenanceNews::Resilvered { volume, record });
            }
            VolumeEvent::Snapshot {
                volume,
                epoch,
                generation,
                step,
            } => self.news.push(MaintenanceNews::Snapshot {
                volume,
                epoch,
                generation,
                step,
            }),
            VolumeEvent::AskMetad { .. } | VolumeEvent::AskVerify { .. } => {
                unreachable!("passed on as a request")
            }
        }
    }
}

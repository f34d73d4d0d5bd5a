//! The reactor thread: routes completions between the devices, the volumes and control.

use crate::bridge::{News, NewsSender, Order};
use crate::disks::{DiskNews, Disks};
use crate::left_behind;
use crate::metrics;
use crate::survival::Survival;
use reactor::{App, Completion, Driver, Mailbox, Token};
use shardmap::units::{Epoch, StoreId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use volume::{AttachFault, AttachGrant, VolumeEvent, Volumes};

/// The volumes' room: their timers.
pub(crate) const ROOM_VOLUMES: u8 = 1;
/// The room of their associations.
pub(crate) const ROOM_INITIATOR: u8 = 2;
/// The devices' room; the token's index is the device's.
pub(crate) const ROOM_DISKS: u8 = 3;
/// The doorbell of control.
pub(crate) const ROOM_CONTROL: u8 = 4;

/// Token of control's doorbell.
pub(crate) const CONTROL_TOKEN: Token = Token {
    room: ROOM_CONTROL,
    index: 0,
    value: 0,
};

/// Where a volume is between metad and its device.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Opening stores.
    Attaching,
    /// The device is being made or serves.
    Device,
    /// The device is to go, then the volume.
    Leaving,
    /// The device is gone; the volume closes its sessions.
    Detaching,
}

/// A volume on its way in or out.
#[derive(Debug)]
struct Guest {
    stage: Stage,
    size_blocks: u64,
    /// Device that an earlier clientd left.
    left_behind: Option<u32>,
    /// A view of a snapshot.
    read_only: bool,
}

/// The app of clientd's reactor.
pub(crate) struct Clientd {
    orders: Arc<Mailbox<Order>>,
    news: NewsSender,
    volumes: Volumes,
    disks: Disks,
    survival: Survival,
    guests: BTreeMap<VolumeId, Guest>,
    events: Vec<VolumeEvent>,
    disk_news: Vec<DiskNews>,
}

impl Clientd {
    /// No volumes yet.
    pub(crate) fn new(
        orders: Arc<Mailbox<Order>>,
        news: NewsSender,
        volumes: Volumes,
        disks: Disks,
        survival: Survival,
    ) -> Self {
        Self {
            orders,
            news,
            volumes,
            disks,
            survival,
            guests: BTreeMap::new(),
            events: Vec::new(),
            disk_news: Vec::new(),
        }
    }

    fn on_order(&mut self, io: &mut dyn Driver, order: Order) {
        match order {
            Order::Attach { grant, held_since } => self.attach(io, *grant, held_since),
            Order::Detach { volume } => self.detach(io, volume),
            Order::Generations(volume, generations) => {
                // One that has left meanwhile needs none.
                self.volumes.set_generations(io, volume, generations);
            }
            Order::Grow(volume, size_blocks) => self.grow(io, volume, size_blocks),
            Order::Metad(answer) => self.volumes.on_metad(io, answer),
            Order::Status(volume, answer) => drop(answer.send(self.volumes.status(volume))),
            Order::Metrics(answer) => {
                let registry = metrics::registry(&self.volumes, io.counters());
                drop(answer.send(registry));
            }
        }
    }

    /// If a device has been waiting for us, whoever uses it has not noticed anything: then only
    /// stores count that have not restarted since.
    fn attach(&mut self, io: &mut dyn Driver, mut grant: AttachGrant, held_since: Epoch) {
        let volume = grant.volume;
        let begun = left_behind::find(self.disks.mark_of(volume)).and_then(|left_behind| {
            // A view is the same on every store for ever: there is nothing to be trusted or not.
            let asks = left_behind.filter(|_| grant.view.is_none());
            grant.survived = asks.map(|_| self.survival.recall(volume, held_since));
            let attached = self.volumes.attach(io, &grant);
            attached.map(|()| left_behind).map_err(|e| e.to_string())
        });
        let left_behind = match begun {
            Ok(left_behind) => left_behind,
            Err(why) => return self.tell(News::AttachFailed { volume, why }),
        };
        let guest = Guest {
            stage: Stage::Attaching,
            size_blocks: grant.map.size_blocks,
            left_behind,
            read_only: grant.view.is_some(),
        };
        if guest.read_only {
            // Nothing is trusted of its stores; that there may be a device is what has to be known.
            self.distrust(volume);
        }
        self.guests.insert(volume, guest);
    }

    /// A device that is not made yet gets the size that the volume has then.
    fn grow(&mut self, io: &mut dyn Driver, volume: VolumeId, size_blocks: u64) {
        let Some(guest) = self.guests.get_mut(&volume) else {
            return;
        };
        if !self.volumes.grow(io, volume, size_blocks) {
            return;
        }
        guest.size_blocks = guest.size_blocks.max(size_blocks);
        // One that is not live yet is looked at again when it is.
        if guest.stage == Stage::Device
            && self.disks.is_live(volume)
            && let Err(why) = self.disks.grow(volume, size_blocks)
        {
            self.tell(News::NotGrown { volume, why });
        }
    }

    fn detach(&mut self, io: &mut dyn Driver, volume: VolumeId) {
        let Some(guest) = self.guests.get_mut(&volume) else {
            return self.tell(News::Detached { volume });
        };
        guest.stage = Stage::Leaving;
        let news = &mut self.disk_news;
        if !self.disks.stop(io, &mut self.volumes, volume, false, news) {
            guest.stage = Stage::Detaching;
            self.volumes.detach(io, volume);
        }
    }

    fn on_volume_event(&mut self, io: &mut dyn Driver, event: VolumeEvent) {
        match event {
            VolumeEvent::HostDone {
                volume,
                id,
                result,
                buffer,
            } => {
                self.disks.complete(io, volume, id, result, buffer);
            }
            VolumeEvent::Attached { volume } => self.make_device(io, volume),
            VolumeEvent::AttachFailed {
                volume,
                why,
                stores_needed,
            } => self.attach_failed(volume, why, &stores_needed),
            VolumeEvent::AskMetad { .. } | VolumeEvent::AskVerify { .. } => {
                unreachable!("passed on as a request")
            }
            VolumeEvent::Remember {
                volume,
                epoch,
                stores,
            } => {
                if let Err(error) = self.survival.remember(volume, epoch, &stores) {
                    tracing::error!(%volume, %error, "a restart may cost the device");
                }
            }
            VolumeEvent::Snapshot {
                volume,
                epoch,
                generation,
                step,
            } => self.tell(News::Snapshot {
                volume,
                epoch,
                generation,
                step,
            }),
            VolumeEvent::Detached { volume }
            | VolumeEvent::Failed { volume, .. }
            | VolumeEvent::Progress { volume, .. }
            | VolumeEvent::Resilvered { volume, .. }
            | VolumeEvent::Transition { volume, .. } => self.pass_on(volume, event),
        }
    }

    /// What control reports.
    fn pass_on(&mut self, volume: VolumeId, event: VolumeEvent) {
        match event {
            VolumeEvent::Detached { .. } => {
                self.guests.remove(&volume);
                self.survival.forget(volume);
                self.tell(News::Detached { volume });
            }
            VolumeEvent::Failed { why, .. } => {
                tracing::error!(%volume, %why, "the device answers with errors from now on");
                self.distrust(volume); // nobody shall make it answer again
                self.tell(News::Failed {
                    volume,
                    why: why.to_string(),
                });
            }
            VolumeEvent::Progress { progress, .. } => {
                self.tell(News::Progress { volume, progress });
            }
            VolumeEvent::Resilvered { record, .. } => {
                tracing::info!(%volume, store = %record.store, missed = record.bytes_missed,
                    moved = record.bytes_moved, ms = record.duration_ms, "resilvered");
                self.tell(News::Resilvered { volume, record });
            }
            VolumeEvent::Transition { .. } => self.tell(News::Changed(volume)),
            VolumeEvent::HostDone { .. }
            | VolumeEvent::Attached { .. }
            | VolumeEvent::AttachFailed { .. }
            | VolumeEvent::AskMetad { .. }
            | VolumeEvent::AskVerify { .. }
            | VolumeEvent::Snapshot { .. }
            | VolumeEvent::Remember { .. } => unreachable!("not for reports alone"),
        }
    }

    fn attach_failed(
        &mut self,
        volume: VolumeId,
        why: AttachFault,
        stores_needed: &BTreeSet<StoreId>,
    ) {
        self.guests.remove(&volume);
        let lost = why == AttachFault::DataLost;
        let why = attach_fault(why, stores_needed);
        self.tell(if lost {
            tracing::error!(%volume, why, "the device of the clientd before has to fail");
            self.distrust(volume);
            News::DeviceLost { volume, why }
        } else {
            News::AttachFailed { volume, why }
        });
    }

    fn distrust(&self, volume: VolumeId) {
        if let Err(error) = self.survival.distrust(volume) {
            tracing::error!(%volume, %error, "an old record stays");
        }
    }

    fn make_device(&mut self, io: &mut dyn Driver, volume: VolumeId) {
        let Some(guest) = self.guests.get_mut(&volume) else {
            return;
        };
        if guest.stage != Stage::Attaching {
            return;
        }
        guest.stage = Stage::Device;
        let (left, read_only) = (guest.left_behind, guest.read_only);
        let size_blocks = guest.size_blocks;
        if let Some(device) = left {
            tracing::info!(%volume, device, "taking over the device of an earlier clientd");
        }
        let made = self.disks.open(io, volume, (size_blocks, read_only), left);
        if let Err(why) = made {
            self.device_failed(io, volume, why);
        }
    }

    fn device_failed(&mut self, io: &mut dyn Driver, volume: VolumeId, why: String) {
        tracing::error!(%volume, why, "no block device");
        self.tell(News::DeviceFailed { volume, why });
        if let Some(guest) = self.guests.get_mut(&volume) {
            guest.stage = Stage::Detaching;
            self.volumes.detach(io, volume);
        }
    }

    fn on_disk_news(&mut self, io: &mut dyn Driver, news: DiskNews) {
        match news {
            DiskNews::Live(volume, device) => {
                tracing::info!(%volume, device, "live");
                self.tell(News::Live { volume, device });
                // The volume may have grown while the device was made, or nobody served it.
                let size_blocks = self.guests.get(&volume).map_or(0, |g| g.size_blocks);
                if let Err(why) = self.disks.grow(volume, size_blocks) {
                    self.tell(News::NotGrown { volume, why });
                }
            }
            DiskNews::StopRefused(volume, why) => {
                if let Some(guest) = self.guests.get_mut(&volume) {
                    guest.stage = Stage::Device;
                }
                self.tell(News::DetachRefused { volume, why });
            }
            DiskNews::Gone(volume) => {
                if let Some(guest) = self.guests.get_mut(&volume) {
                    guest.stage = Stage::Detaching;
                    self.volumes.detach(io, volume);
                }
            }
            DiskNews::Grown(volume) => self.tell(News::Changed(volume)),
            DiskNews::NotGrown(volume, why) => self.tell(News::NotGrown { volume, why }),
            DiskNews::Failed(volume, why) => self.device_failed(io, volume, why),
        }
    }

    fn tell(&mut self, news: News) {
        if let Err(error) = self.news.try_send(news) {
            // Control is gone or drowned: what matters is asked for again.
            tracing::warn!(%error, "news lost on the way to control");
        }
    }

    /// Events may bring events; the order is that of their making.
    fn settle(&mut self, io: &mut dyn Driver) {
        while !self.events.is_empty() || !self.disk_news.is_empty() {
            for event in std::mem::take(&mut self.events) {
                match event.into_request() {
                    Ok(request) => self.tell(News::AskMetad(request)),
                    Err(event) => self.on_volume_event(io, event),
                }
            }
            for news in std::mem::take(&mut self.disk_news) {
                self.on_disk_news(io, news);
            }
        }
    }
}

/// Why an attach failed, and what would help.
fn attach_fault(why: AttachFault, stores_needed: &BTreeSet<StoreId>) -> String {
    if stores_needed.is_empty() {
        return why.to_string();
    }
    let needed: Vec<String> = stores_needed.iter().map(ToString::to_string).collect();
    format!("{why}; bring back one of: {}", needed.join(", "))
}

impl App for Clientd {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        match completion.token.room {
            ROOM_VOLUMES | ROOM_INITIATOR => {
                self.volumes.on_completion(io, completion, &mut self.events)
            }
            ROOM_DISKS => {
                let news = &mut self.disk_news;
                self.disks
                    .on_completion(io, &mut self.volumes, completion, news);
            }
            ROOM_CONTROL => {
                while let Some(order) = self.orders.recv() {
                    self.on_order(io, order);
                }
            }
            room => unreachable!("no room {room} in clientd"),
        }
        self.settle(io);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        // What the volumes bring may give them more to send; nothing may be left unsent.
        loop {
            self.disks
                .on_turn_end(io, &mut self.volumes, &mut self.disk_news);
            self.settle(io);
            self.volumes.on_turn_end(io, &mut self.events);
            if self.events.is_empty() {
                break;
            }
            self.settle(io);
        }
    }

    /// Never: the process ends without draining, so that the devices stay for the next clientd.
    fn is_finished(&self) -> bool {
        false
    }
}

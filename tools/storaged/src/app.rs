//! The reactor thread: routes completions between the target, the stores, the volumes that are brought
//! up to date, and control.

use crate::healer::{Healer, ROOM_HEALER, ROOM_HEALER_INITIATOR};
use crate::healing::Healing;
use crate::hosting::{Hosting, ROOM_INITIATOR, ROOM_VOLUMES};
use crate::namespaces::{Notable, Slices};
use crate::orders::{Figures, Fill, News, Order, Tell};
use nvmf::target::Target;
use reactor::{App, Completion, Driver, Mailbox, Token};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use store::ScrubPace;
use uuid::Uuid;

/// The target's room.
pub const ROOM_TARGET: u8 = 1;
/// The stores' room; the token's index is the store's place.
pub const ROOM_STORE: u8 = 2;
/// The doorbell of control.
pub const ROOM_CONTROL: u8 = 3;

/// Token of control's doorbell.
pub const CONTROL_TOKEN: Token = Token {
    room: ROOM_CONTROL,
    index: 0,
    value: 0,
};

/// Where the daemon is in its life.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Control has not said which cluster this is.
    Waiting,
    /// So many stores have neither opened nor failed.
    Opening(usize),
    /// The target listens.
    Serving,
    /// So many stores have not stopped.
    Stopping(usize),
    /// Everything is closed.
    Finished,
    /// A store is poisoned: nothing happens any more.
    Dead,
}

/// The app of storaged's reactor.
pub struct Storaged {
    paths: Vec<PathBuf>,
    listen: SocketAddr,
    orders: Arc<Mailbox<Order>>,
    news: Tell,
    target: Target,
    hosting: Hosting,
    slices: Slices,
    healer: Option<Healer>,
    stage: Stage,
}

impl fmt::Debug for Storaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storaged")
            .field("paths", &self.paths)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl Storaged {
    /// Stores at these paths, served by `target` at `listen`. Nothing is open yet; control's first
    /// order opens the stores. `fills` has a place for each store. The target's room is
    /// [`ROOM_TARGET`], the token of the bell of `orders` [`CONTROL_TOKEN`].
    pub fn new(
        (paths, fills): (Vec<PathBuf>, Arc<[Fill]>),
        (listen, target): (SocketAddr, Target),
        hosting: Hosting,
        orders: Arc<Mailbox<Order>>,
        news: Tell,
    ) -> Self {
        assert_eq!(paths.len(), fills.len(), "a fill for each store");
        Self {
            paths,
            listen,
            orders,
            news,
            target,
            hosting,
            slices: Slices::new(fills),
            healer: None,
            stage: Stage::Waiting,
        }
    }

    /// Stores are scrubbed at that pace, from their opening on.
    #[must_use]
    pub fn scrubbed(mut self, pace: Option<ScrubPace>) -> Self {
        self.slices.scrub_at(pace);
        self
    }

    /// Blocks that are found not to be what was written are healed from other servers' replicas.
    /// `server` is the identity under which these know this server.
    #[must_use]
    pub fn healed(mut self, server: Uuid) -> Self {
        self.healer = Some(Healer::new(server));
        self
    }

    /// What is known of spoiled blocks.
    pub fn healing(&self) -> Option<&Healing> {
        self.healer.as_ref().map(Healer::healing)
    }

    /// The stores.
    pub fn slices(&self) -> &Slices {
        &self.slices
    }

    /// The volumes that are brought up to date.
    pub fn hosting(&self) -> &Hosting {
        &self.hosting
    }

    fn on_order(&mut self, io: &mut dyn Driver, order: Order) {
        match order {
            Order::Open { cluster } => self.open(io, cluster),
            Order::Create {
                store_index,
                spec,
                confirmed,
            } => self.slices.create(io, store_index, spec, confirmed),
            Order::Remove { store_index, nsid } => self.slices.remove(io, store_index, nsid),
            Order::KeepGenerations { nsid, generations } => {
                self.slices.keep_generations(nsid, generations);
            }
            Order::Hosts(nqns) => {
                if self.slices.admit_hosts(nqns) {
                    // Their kernels look again and let their devices go.
                    self.target.namespaces_changed(io);
                }
            }
            Order::Maintain(grant, rollback) => self.hosting.begin(io, &grant, rollback),
            Order::LetGo(volume) => self.hosting.let_go(io, volume),
            Order::Abandon(volume) => {
                let why = "it could not be detached in order".into();
                self.hosting.abandon(io, volume, why);
            }
            Order::Generations(volume, generations) => {
                self.hosting.set_generations(io, volume, generations);
            }
            Order::Metad(answer) => self.hosting.on_metad(io, answer),
            Order::Replicas(volume, replicas) => {
                if let Some(healer) = &mut self.healer {
                    healer.on_replicas(io, &mut self.slices, volume, replicas);
                }
            }
            Order::Look(look) => (look.0)(Figures {
                slices: &self.slices,
                target: &self.target,
                hosting: &self.hosting,
                healing: self.healer.as_ref().map(Healer::healing),
                reactor: io.counters(),
            }),
            Order::Stop => self.stop(io),
        }
    }

    fn open(&mut self, io: &mut dyn Driver, cluster: Uuid) {
        if self.stage != Stage::Waiting {
            return;
        }
        self.stage = Stage::Opening(self.paths.len());
        for path in &self.paths {
            self.slices.open(io, ROOM_STORE, path, cluster);
        }
    }

    fn stop(&mut self, io: &mut dyn Driver) {
        let open = self.slices.stores().count();
        tracing::info!(stores = open, "stopping");
        self.stage = if open == 0 {
            Stage::Finished
        } else {
            Stage::Stopping(open)
        };
        self.target.stop(io);
        self.slices.stop(io);
    }

    fn on_notable(&mut self, io: &mut dyn Driver, notable: Notable) {
        match notable {
            Notable::Opened(store_index, facts) => {
                let path = self.paths[store_index].display();
                tracing::info!(%path, incarnation = facts.incarnation.0, clean = facts.clean,
                    slices = facts.slices.len(), replayed = facts.replayed, "store open");
                self.slices.scrub(io, store_index);
                self.tell(News::StoreOpened { store_index, facts });
                self.opened_one(io);
            }
            Notable::Failed(store_index, why) => {
                tracing::error!(why = %why, "store not opened");
                self.tell(News::StoreFailed { store_index, why });
                self.opened_one(io);
            }
            Notable::Poisoned(store_index, why) => {
                let path = self.paths[store_index].display();
                let why = format!("{path}: {why}");
                self.stage = Stage::Dead;
                self.tell(News::StorePoisoned { store_index, why });
            }
            Notable::Stopped(store_index) => {
                let path = self.paths[store_index].display();
                tracing::info!(%path, "store closed, clean");
                if let Stage::Stopping(left) = self.stage {
                    self.stage = if left == 1 {
                        Stage::Finished
                    } else {
                        Stage::Stopping(left - 1)
                    };
                }
            }
            Notable::CloneWaits(nsid) => self.tell(News::CloneWaits(nsid)),
            Notable::Grown(store_index, growth) => {
                let path = self.paths[store_index].display();
                tracing::info!(%path, before = growth.capacity_bytes_before, bytes = growth.capacity_bytes,
                    device = growth.device_bytes, "store grown");
                let capacity_bytes = growth.capacity_bytes;
                self.tell(News::StoreGrown {
                    store_index,
                    capacity_bytes,
                });
            }
            Notable::SliceChanged(nsid) => self.tell(News::SliceChanged(nsid)),
            Notable::SliceDone { nsid, end } => {
                self.target.namespaces_changed(io);
                self.tell(News::SliceDone { nsid, end });
            }
        }
    }

    fn opened_one(&mut self, io: &mut dyn Driver) {
        let Stage::Opening(left) = self.stage else {
            return;
        };
        if left > 1 {
            self.stage = Stage::Opening(left - 1);
            return;
        }
        // A host that connects to a server without its stores would take that for an answer.
        match self.target.listen(io, self.listen) {
            Ok(address) => {
                tracing::info!(%address, "listening");
                self.stage = Stage::Serving;
                self.tell(News::Listening { address });
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn tell(&mut self, news: News) {
        let heard = (self.news)(news);
        if !heard && !matches!(self.stage, Stage::Finished | Stage::Dead) {
            tracing::error!("control does not listen any more; stopping");
            self.stage = Stage::Finished;
        }
    }

    /// Volumes that are brought up to date need nothing of a server that stops: whoever takes them
    /// next opens their stores under another epoch.
    fn is_serving(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// True if a store was asked, which may have answered at once.
    fn heal(&mut self, io: &mut dyn Driver) -> bool {
        let serving = self.is_serving();
        let Some(healer) = &mut self.healer else {
            self.slices.log_found();
            return false;
        };
        if !serving {
            return false;
        }
        let asked = healer.settle(io, &mut self.slices);
        let any = self.slices.has_events();
        if let Some(volume) = asked {
            self.tell(News::FindReplicas(volume));
        }
        any
    }

    fn settle(&mut self, io: &mut dyn Driver) {
        for news in self.hosting.take_news() {
            self.tell(News::Maintenance(news));
        }
        loop {
            while let Some(notable) = self.slices.next_notable() {
                self.on_notable(io, notable);
                if self.stage == Stage::Dead {
                    return;
                }
            }
            // What is asked here may be answered at once.
            if !self.slices.tidy(io) && !self.heal(io) {
                break;
            }
        }
        for reply in self.slices.take_replies() {
            self.target.reply(io, reply);
        }
    }
}

impl App for Storaged {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        if self.stage == Stage::Dead {
            return;
        }
        match completion.token.room {
            ROOM_TARGET => self.target.on_completion(io, &mut self.slices, completion),
            ROOM_STORE => self.slices.on_completion(io, completion),
            ROOM_VOLUMES | ROOM_INITIATOR if !self.is_serving() => {}
            ROOM_VOLUMES | ROOM_INITIATOR => self.hosting.on_completion(io, completion),
            ROOM_HEALER | ROOM_HEALER_INITIATOR => {
                let healer = self
                    .healer
                    .as_mut()
                    .filter(|_| self.stage == Stage::Serving);
                if let Some(healer) = healer {
                    healer.on_completion(io, &mut self.slices, completion);
                }
            }
            ROOM_CONTROL => {
                while let Some(order) = self.orders.recv() {
                    self.on_order(io, order);
                }
            }
            room => unreachable!("no room {room} in storaged"),
        }
        self.settle(io);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        if self.stage == Stage::Dead {
            return;
        }
        if self.is_serving() {
            self.hosting.on_turn_end(io);
            if let Some(healer) = &mut self.healer {
                healer.on_turn_end(io);
            }
        }
        self.target.on_turn_end(io, &mut self.slices);
        self.settle(io);
        self.slices
            .publish_all(self.healer.as_ref().map(Healer::healing));
    }

    fn is_finished(&self) -> bool {
        self.stage == Stage::Finished
    }
}

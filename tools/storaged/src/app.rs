//! The reactor thread: routes completions between the target, the stores and control.

use crate::bridge::{Fill, News, NewsSender, Order};
use crate::config::{StoragedConfig, StoreConfig};
use crate::metrics;
use crate::namespaces::{Notable, Slices};
use nvmf::target::Target;
use reactor::{App, Completion, Driver, Mailbox, Token};
use std::sync::Arc;
use store::{PrepareOptions, Store};
use uuid::Uuid;

/// The target's room.
pub(crate) const ROOM_TARGET: u8 = 1;
/// The stores' room; the token's index is the store's place.
pub(crate) const ROOM_STORE: u8 = 2;
/// The doorbell of control.
pub(crate) const ROOM_CONTROL: u8 = 3;

/// Token of control's doorbell.
pub(crate) const CONTROL_TOKEN: Token = Token {
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
}

/// The app of storaged's reactor.
pub(crate) struct Storaged {
    config: StoragedConfig,
    orders: Arc<Mailbox<Order>>,
    news: NewsSender,
    target: Target,
    slices: Slices,
    stage: Stage,
}

impl Storaged {
    /// Nothing is open yet; control's first order opens the stores.
    pub(crate) fn new(
        config: StoragedConfig,
        target: Target,
        orders: Arc<Mailbox<Order>>,
        news: NewsSender,
        fills: Arc<[Fill]>,
    ) -> Self {
        let slices = Slices::new(fills);
        Self {
            config,
            orders,
            news,
            target,
            slices,
            stage: Stage::Waiting,
        }
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
            Order::Hosts(nqns) => {
                if self.slices.admit_hosts(nqns) {
                    // Their kernels look again and let their devices go.
                    self.target.namespaces_changed(io);
                }
            }
            Order::Metrics(answer) => {
                // A scraper that has gone away needs no answer.
                drop(answer.send(metrics::registry(&self.config, &self.slices, &self.target)));
            }
            Order::Stop => self.stop(io),
        }
    }

    fn open(&mut self, io: &mut dyn Driver, cluster: Uuid) {
        if self.stage != Stage::Waiting {
            return;
        }
        self.stage = Stage::Opening(self.config.stores.len());
        for store in &self.config.stores {
            create_if_missing(store, cluster);
            self.slices.open(io, ROOM_STORE, &store.path, cluster);
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
                let path = self.config.stores[store_index].path.display();
                tracing::info!(%path, incarnation = facts.incarnation.0, clean = facts.clean,
                    slices = facts.slices.len(), replayed = facts.replayed, "store open");
                self.tell(News::StoreOpened { store_index, facts });
                self.opened_one(io);
            }
            Notable::Failed(store_index, why) => {
                tracing::error!(why = %why, "store not opened");
                self.tell(News::StoreFailed { store_index, why });
                self.opened_one(io);
            }
            Notable::Poisoned(store_index, why) => {
                let path = self.config.stores[store_index].path.display();
                // What the store acknowledged may be gone: only a new incarnation says so.
                panic!("{path}: {why}");
            }
            Notable::Stopped(store_index) => {
                let path = self.config.stores[store_index].path.display();
                tracing::info!(%path, "store closed, clean");
                if let Stage::Stopping(left) = self.stage {
                    self.stage = if left == 1 {
                        Stage::Finished
                    } else {
                        Stage::Stopping(left - 1)
                    };
                }
            }
            Notable::SliceDone {
                nsid,
                removal,
                refused,
            } => {
                self.target.namespaces_changed(io);
                self.tell(News::SliceDone {
                    nsid,
                    removal,
                    refused,
                });
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
        match self.target.listen(io, self.config.listen) {
            Ok(address) => {
                tracing::info!(%address, "listening");
                self.stage = Stage::Serving;
                self.tell(News::Listening { address });
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn tell(&mut self, news: News) {
        // Bounded by construction: one answer per order and a few lines per store.
        if self.news.try_send(news).is_err() && self.stage != Stage::Finished {
            tracing::error!("control does not listen any more; stopping");
            self.stage = Stage::Finished;
        }
    }

    fn settle(&mut self, io: &mut dyn Driver) {
        while let Some(notable) = self.slices.next_notable() {
            self.on_notable(io, notable);
        }
        for reply in self.slices.take_replies() {
            self.target.reply(io, reply);
        }
    }
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
    };
    let path = config.path.display();
    match Store::prepare(&config.path, &options) {
        Ok(_) => tracing::info!(%path, size_bytes, %store, "prepared a new store"),
        Err(error) => tracing::error!(%path, %error, "cannot prepare the store"),
    }
}

impl App for Storaged {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        match completion.token.room {
            ROOM_TARGET => self.target.on_completion(io, &mut self.slices, completion),
            ROOM_STORE => self.slices.on_completion(io, completion),
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
        self.target.on_turn_end(io, &mut self.slices);
        self.settle(io);
        self.slices.publish_all();
    }

    fn is_finished(&self) -> bool {
        self.stage == Stage::Finished
    }
}

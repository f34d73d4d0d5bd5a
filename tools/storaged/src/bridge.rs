//! What the control thread and the reactor thread say to each other. Both directions are bounded.

use prometheus_client::registry::Registry;
use shardmap::units::Nsid;
use std::sync::atomic::{AtomicU64, Ordering};
use store::{OpenFacts, SliceSpec, StoreUsage};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Messages that may wait for the reactor.
pub(crate) const ORDERS_MAX: usize = 1024;
/// Messages that may wait for control: each order is answered once, each store reports a few times.
pub(crate) const NEWS_MAX: usize = ORDERS_MAX + 64;

/// From control to the reactor.
#[derive(Debug)]
pub(crate) enum Order {
    /// Open the stores; all belong to this cluster.
    Open {
        /// The cluster.
        cluster: Uuid,
    },
    /// Make a slice, or grow it. Answered by [`News::SliceDone`].
    Create {
        /// Which store, by its place in the configuration.
        store_index: usize,
        /// What to make.
        spec: SliceSpec,
        /// If it is not there: it was, and is lost; what is made must be resilvered.
        confirmed: bool,
    },
    /// Remove a slice. Answered by [`News::SliceDone`].
    Remove {
        /// Which store, by its place in the configuration.
        store_index: usize,
        /// Which slice.
        nsid: Nsid,
    },
    /// Admit these hosts and no others.
    Hosts(Vec<String>),
    /// Figures for a scrape.
    Metrics(oneshot::Sender<Registry>),
    /// Stop in order: nothing new, stores flushed and marked clean.
    Stop,
}

/// From the reactor to control.
#[derive(Debug)]
pub(crate) enum News {
    /// A store serves.
    StoreOpened {
        /// Its place in the configuration.
        store_index: usize,
        /// What opening found.
        facts: Box<OpenFacts>,
    },
    /// A store does not.
    StoreFailed {
        /// Its place in the configuration.
        store_index: usize,
        /// Why, in a sentence.
        why: String,
    },
    /// Every store is open or failed, and the target listens.
    Listening {
        /// Where.
        address: std::net::SocketAddr,
    },
    /// A slice was made or removed, or not.
    SliceDone {
        /// The slice.
        nsid: Nsid,
        /// It was to be removed.
        removal: bool,
        /// Why not.
        refused: Option<String>,
    },
}

/// Control's end of the news.
pub(crate) type NewsReceiver = mpsc::Receiver<News>;
/// The reactor's end of the news.
pub(crate) type NewsSender = mpsc::Sender<News>;

/// A store's fill, published by the reactor whenever it changes and read by control when it reports:
/// reporting wakes nobody.
#[derive(Debug, Default)]
pub(crate) struct Fill {
    used_bytes: AtomicU64,
    capacity_bytes: AtomicU64,
}

impl Fill {
    /// The reactor's side.
    pub(crate) fn publish(&self, usage: StoreUsage) {
        // Two figures for a report: each is right by itself, they need no order between them.
        self.used_bytes
            .store(usage.capacity_bytes - usage.free_bytes, Ordering::Relaxed);
        self.capacity_bytes
            .store(usage.capacity_bytes, Ordering::Relaxed);
    }

    /// Used and usable bytes.
    pub(crate) fn read(&self) -> (u64, u64) {
        (
            self.used_bytes.load(Ordering::Relaxed),
            self.capacity_bytes.load(Ordering::Relaxed),
        )
    }
}

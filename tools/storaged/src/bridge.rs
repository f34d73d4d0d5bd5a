//! The way between the control thread and the reactor thread. Both directions are bounded.

use reactor::Mailbox;
use std::time::Duration;
use storaged::{MaintenanceNews, News, Order, Tell};
use tokio::sync::mpsc;

/// Messages that may wait for the reactor.
pub(crate) const ORDERS_MAX: usize = 1024;
/// Messages that may wait for control: each order is answered once, each store reports a few times.
pub(crate) const NEWS_MAX: usize = ORDERS_MAX + 64;

/// Of the volume that is brought up to date: what does not fit is lost, see [`News::Maintenance`].
pub(crate) const MAINTENANCE_NEWS_MAX: usize = 256;

/// Control's end of the news.
pub(crate) type NewsReceiver = mpsc::Receiver<News>;
/// And of those that may be lost.
pub(crate) type MaintenanceReceiver = mpsc::Receiver<MaintenanceNews>;

/// The reactor's end of the news. A poisoned store ends the process here, loudly.
pub(crate) fn teller(news: mpsc::Sender<News>, maintenance: mpsc::Sender<MaintenanceNews>) -> Tell {
    Box::new(move |one| {
        if let News::StorePoisoned { why, .. } = &one {
            panic!("{why}");
        }
        if let News::Maintenance(one) = one {
            if let Err(error) = maintenance.try_send(one) {
                tracing::debug!(%error, "news of a volume lost on the way to control");
            }
            return !maintenance.is_closed();
        }
        // Bounded by construction: one answer per order and a few lines per store.
        news.try_send(one).is_ok()
    })
}

/// Hands an order to the reactor; waits while its mailbox is full.
pub(crate) async fn send(orders: &Mailbox<Order>, order: Order) {
    let mut order = order;
    while let Err(back) = orders.send(order) {
        order = back;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

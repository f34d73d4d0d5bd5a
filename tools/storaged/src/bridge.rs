//! The way between the control thread and the reactor thread. Both directions are bounded.

use storaged::{News, Tell};
use tokio::sync::mpsc;

/// Messages that may wait for the reactor.
pub(crate) const ORDERS_MAX: usize = 1024;
/// Messages that may wait for control: each order is answered once, each store reports a few times.
pub(crate) const NEWS_MAX: usize = ORDERS_MAX + 64;

/// Control's end of the news.
pub(crate) type NewsReceiver = mpsc::Receiver<News>;

/// The reactor's end of the news. A poisoned store ends the process here, loudly.
pub(crate) fn teller(news: mpsc::Sender<News>) -> Tell {
    Box::new(move |one| {
        if let News::StorePoisoned { why, .. } = &one {
            panic!("{why}");
        }
        // Bounded by construction: one answer per order and a few lines per store.
        news.try_send(one).is_ok()
    })
}

//! storaged's figures for a scrape, gathered on the reactor thread when asked.

use nvmf::target::Target;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use storaged::Slices;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreKind {
    store: String,
    kind: &'static str,
}

/// Everything, as of now. `names` are those of the stores, by place.
pub(crate) fn registry(names: &[String], slices: &Slices, target: &Target) -> Registry {
    let mut registry = Registry::with_prefix("ubs");
    let labels = vec![
        ("version", env!("CARGO_PKG_VERSION")),
        ("program", "storaged"),
    ];
    registry.register("build", "What runs here", Info::new(labels));
    let bytes = Family::<StoreKind, Gauge>::default();
    let io = Family::<StoreKind, Counter>::default();
    for (index, store) in slices.stores() {
        let name = &names[index];
        let label = |kind| StoreKind {
            store: name.clone(),
            kind,
        };
        let usage = store.usage();
        for (kind, value) in [
            ("capacity", usage.capacity_bytes),
            ("free", usage.free_bytes),
            ("journal", usage.journal_bytes),
            ("journal_used", usage.journal_used_bytes),
        ] {
            bytes
                .get_or_create(&label(kind))
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let c = store.counters();
        for (kind, value) in [
            ("reads", c.reads),
            ("writes", c.writes),
            ("zeroes", c.zeroes),
            ("flushes", c.flushes),
            ("read_bytes", c.read_bytes),
            ("write_bytes", c.write_bytes),
            ("faults", c.faults),
            ("device_ops_queued", c.device_ops_queued),
        ] {
            io.get_or_create(&label(kind)).inc_by(value);
        }
    }
    registry.register("store_bytes", "Space of a store, in bytes", bytes);
    registry.register("store_events", "What a store did", io);
    let wire = Family::<[(&'static str, &'static str); 1], Counter>::default();
    let c = target.counters();
    for (kind, value) in [
        ("connections_accepted", c.connections_accepted),
        ("connections_refused", c.connections_refused),
        ("associations_begun", c.associations_begun),
        ("commands_admitted", c.commands_admitted),
        ("commands_failed", c.commands_failed),
        ("received_bytes", c.received_bytes),
        ("sent_bytes", c.sent_bytes),
        ("buffer_waits", c.buffer_waits),
        ("breaches", c.breaches.iter().sum()),
    ] {
        wire.get_or_create(&[("kind", kind)]).inc_by(value);
    }
    registry.register("target_events", "What the NVMe/TCP target saw", wire);
    registry
}

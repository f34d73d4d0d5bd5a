//! storaged's figures for a scrape, gathered on the reactor thread when asked.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use storaged::{Figures, Healing, Hosting, Slices};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreKind {
    store: String,
    kind: &'static str,
}

/// Everything, as of now. `names` are those of the stores, by place.
pub(crate) fn registry(names: &[String], figures: Figures<'_>) -> Registry {
    let mut registry = Registry::with_prefix("ubs");
    let labels = vec![
        ("version", env!("CARGO_PKG_VERSION")),
        ("program", "storaged"),
    ];
    registry.register("build", "What runs here", Info::new(labels));
    let bytes = Family::<StoreKind, Gauge>::default();
    let io = Family::<StoreKind, Counter>::default();
    for (index, store) in figures.slices.stores() {
        let name = &names[index];
        let label = |kind| StoreKind {
            store: name.clone(),
            kind,
        };
        let usage = store.usage();
        for (kind, value) in [
            ("capacity", usage.capacity_bytes),
            ("free", usage.free_bytes),
            ("returning", usage.returning_bytes),
            ("journal", usage.journal_bytes),
            ("journal_used", usage.journal_used_bytes),
        ] {
            bytes
                .get_or_create(&label(kind))
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        for (kind, value) in store_events(&store.counters()) {
            io.get_or_create(&label(kind)).inc_by(value);
        }
    }
    registry.register("store_bytes", "Space of a store, in bytes", bytes);
    registry.register("store_events", "What a store did", io);
    register_scrub(&mut registry, names, figures.slices);
    if let Some(healing) = figures.healing {
        register_healing(&mut registry, (names, figures.slices), healing);
    }
    let wire = Family::<[(&'static str, &'static str); 1], Counter>::default();
    let c = figures.target.counters();
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
    let drops = Family::<[(&'static str, &'static str); 1], Counter>::default();
    let c = figures.slices.drop_counters();
    for (kind, value) in [("dropped", c.dropped), ("refused", c.refused)] {
        drops.get_or_create(&[("kind", kind)]).inc_by(value);
    }
    registry.register(
        "generation_events",
        "What came of generations whose snapshot was deleted",
        drops,
    );
    register_maintenance(&mut registry, figures.hosting);
    daemon::metrics::register_reactor(&mut registry, figures.reactor);
    registry
}

/// What a store did, by kind.
fn store_events(c: &store::Counters) -> [(&'static str, u64); 17] {
    [
        ("reads", c.reads),
        ("writes", c.writes),
        ("zeroes", c.zeroes),
        ("flushes", c.flushes),
        ("read_bytes", c.read_bytes),
        ("write_bytes", c.write_bytes),
        ("faults", c.faults),
        ("device_ops_queued", c.device_ops_queued),
        ("extents_allocated", c.core.extents_allocated),
        ("extents_recycled", c.core.extents_recycled),
        ("blocks_verified", c.core.blocks_verified),
        ("blocks_unverified", c.core.blocks_unverified),
        ("blocks_rotten", c.core.blocks_rotten),
        ("blocks_healed", c.core.blocks_healed),
        ("checksum_blocks_read", c.core.checksum_blocks_read),
        ("checksum_blocks_written", c.core.checksum_blocks_written),
        ("checksum_blocks_damaged", c.core.checksum_blocks_damaged),
    ]
}

/// What the scrubs of the stores have found since these were opened.
fn register_scrub(registry: &mut Registry, names: &[String], slices: &Slices) {
    let passes = Family::<[(&'static str, String); 1], Counter>::default();
    let blocks = Family::<StoreKind, Counter>::default();
    for (index, store) in slices.stores() {
        let (name, c) = (&names[index], store.counters().scrub);
        passes
            .get_or_create(&[("store", name.clone())])
            .inc_by(c.passes);
        for (kind, value) in [
            ("read", c.blocks),
            ("unknown", c.unknown),
            ("unreadable", c.unreadable),
            ("rotten", c.rotten),
        ] {
            let label = StoreKind {
                store: name.clone(),
                kind,
            };
            blocks.get_or_create(&label).inc_by(value);
        }
    }
    let what = "Times that all data of a store was scrubbed";
    registry.register("store_scrub_passes", what, passes);
    let what = "Blocks that the scrub of a store read, and of those: without a known checksum, unreadable, not what was written";
    registry.register("store_scrub_blocks", what, blocks);
}

/// Blocks that are not what was written, and what became of them.
fn register_healing(
    registry: &mut Registry,
    (names, slices): (&[String], &Slices),
    healing: &Healing,
) {
    let spoiled = Family::<[(&'static str, String); 1], Gauge>::default();
    for (index, _) in slices.stores() {
        let blocks = i64::try_from(healing.findings_of(index)).unwrap_or(i64::MAX);
        let label = [("store", names[index].clone())];
        spoiled.get_or_create(&label).set(blocks);
    }
    let what =
        "Blocks of a store that are known not to be what was written, and are not healed yet";
    registry.register("store_spoiled_blocks", what, spoiled);
    let events = Family::<[(&'static str, &'static str); 1], Counter>::default();
    let c = healing.counters();
    for (kind, value) in [
        ("found", c.found),
        ("not_remembered", c.not_remembered),
        ("healed", c.healed),
        ("moot", c.moot),
        ("other_content", c.other_content),
        ("unread", c.unread),
        ("failed", c.failed),
    ] {
        events.get_or_create(&[("kind", kind)]).inc_by(value);
    }
    let what = "What became of blocks that were found not to be what was written";
    registry.register("healing_events", what, events);
}

/// Volumes that are brought up to date because no host uses them.
fn register_maintenance(registry: &mut Registry, hosting: &Hosting) {
    let here = Gauge::<i64>::default();
    here.set(i64::try_from(hosting.list().count()).unwrap_or(i64::MAX));
    registry.register(
        "maintenance_volumes",
        "Volumes at work: brought up to date here, without a host",
        here,
    );
    let missing = Family::<[(&'static str, String); 1], Gauge>::default();
    for (volume, status) in hosting
        .list()
        .filter_map(|id| Some((id, hosting.status(id)?)))
    {
        let blocks: u64 = status.stores.values().map(|s| s.dirty_blocks).sum();
        let blocks = i64::try_from(blocks).unwrap_or(i64::MAX);
        missing
            .get_or_create(&[("volume", volume.to_string())])
            .set(blocks);
    }
    registry.register(
        "maintenance_dirty_blocks",
        "Blocks that replicas of a volume at work are known to miss",
        missing,
    );
    let events = Family::<[(&'static str, &'static str); 1], Counter>::default();
    let c = hosting.counters();
    for (kind, value) in [
        ("begun", c.begun),
        ("let_go", c.let_go),
        ("rollbacks", c.rollbacks),
        ("fenced", c.fenced),
        ("failed", c.failed),
        ("resilvers", c.resilvers),
        ("resilvered_bytes", c.resilvered_bytes),
    ] {
        events.get_or_create(&[("kind", kind)]).inc_by(value);
    }
    registry.register(
        "maintenance_events",
        "What came of volumes that were brought up to date here",
        events,
    );
}

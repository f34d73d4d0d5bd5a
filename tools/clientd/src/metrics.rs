//! clientd's figures for a scrape, gathered on the reactor thread when asked.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use volume::Volumes;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeKind {
    volume: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplicaKind {
    volume: String,
    store: u32,
}

/// Everything, as of now.
pub(crate) fn registry(volumes: &Volumes, reactor: reactor::Counters) -> Registry {
    let mut registry = Registry::with_prefix("ubs");
    let labels = vec![
        ("version", env!("CARGO_PKG_VERSION")),
        ("program", "clientd"),
    ];
    registry.register("build", "What runs here", Info::new(labels));
    let io = Family::<VolumeKind, Counter>::default();
    let dirty = Family::<ReplicaKind, Gauge>::default();
    let redundancy = Family::<VolumeKind, Gauge>::default();
    for (id, status) in volumes
        .list()
        .filter_map(|id| Some((id, volumes.status(id)?)))
    {
        let volume = id.to_string();
        let c = status.counters;
        for (kind, value) in [
            ("reads", c.reads),
            ("writes", c.writes),
            ("zeroes", c.zeroes),
            ("flushes", c.flushes),
            ("faults", c.faults),
            ("read_bytes", c.read_bytes),
            ("written_bytes", c.written_bytes),
            ("read_failovers", c.read_failovers),
            ("degrades", c.degrades),
            ("resilvered_bytes", c.resilvered_bytes),
            ("metad_requests", c.metad_requests),
            ("admin_commands", c.admin_commands),
        ] {
            let label = VolumeKind {
                volume: volume.clone(),
                kind,
            };
            io.get_or_create(&label).inc_by(value);
        }
        for (store, s) in &status.stores {
            let label = ReplicaKind {
                volume: volume.clone(),
                store: store.0,
            };
            let blocks = i64::try_from(s.dirty_blocks).unwrap_or(i64::MAX);
            dirty.get_or_create(&label).set(blocks);
        }
        for (kind, count) in [("have", status.isr.len()), ("stores", status.stores.len())] {
            let label = VolumeKind {
                volume: volume.clone(),
                kind,
            };
            let count = i64::try_from(count).expect("a handful of stores");
            redundancy.get_or_create(&label).set(count);
        }
    }
    registry.register("volume_events", "What a volume did", io);
    registry.register(
        "replica_dirty_blocks",
        "Blocks a replica is known to miss",
        dirty,
    );
    registry.register("volume_redundancy", "Stores in sync and in all", redundancy);
    daemon::metrics::register_reactor(&mut registry, reactor);
    registry
}

//! What a scrape shows.

use control::server::Node;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Gathers the member's own view; asks nobody.
pub(crate) fn gather(node: &Node) -> Registry {
    let status = node.status();
    let mut registry = Registry::with_prefix("ubs_metad");
    registry.register(
        "build",
        "Version of the program",
        Info::new([("version", status.version)]),
    );
    let facts = [
        (
            "leader",
            "Whether this member leads",
            u64::from(status.role == "leader"),
        ),
        (
            "has_leader",
            "Whether this member knows a leader",
            u64::from(status.leader != 0),
        ),
        ("term", "Raft term", status.term),
        (
            "applied_index",
            "Log index of the last applied entry",
            status.applied_index,
        ),
        (
            "members",
            "Members of the cluster",
            status.members.len() as u64,
        ),
        (
            "log_fill_percent",
            "How full the log's map is",
            u64::from(node.log_fill_percent()),
        ),
    ];
    for (name, help, value) in facts {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    registry
}

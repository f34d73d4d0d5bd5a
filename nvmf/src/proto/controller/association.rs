//! One controller: a host's admin queue and the IO queues that joined it.

use super::AssociationId;
use super::limits::KEEP_ALIVE_GRACE_MS;
use std::collections::BTreeMap;

#[derive(Debug)]
pub(super) struct Association {
    pub(super) id: AssociationId,
    pub(super) cntlid: u16,
    pub(super) discovery: bool,
    pub(super) host_nqn: String,
    pub(super) host_id: [u8; 16],
    /// Connection of the admin queue.
    pub(super) admin: u32,
    /// Connections of the IO queues, by qid.
    pub(super) queues: BTreeMap<u16, u32>,
    /// IO queues granted by Set Features.
    pub(super) queues_granted: u16,
    /// Controller configuration and status, as the properties show them.
    pub(super) cc: u32,
    pub(super) csts: u32,
    /// Zero: the host does not want to be watched.
    pub(super) kato_ms: u32,
    /// Last command on any queue (traffic based keep alive).
    pub(super) seen_ns: u64,
    /// Asynchronous event configuration.
    pub(super) events_wanted: u32,
    /// Slots of outstanding event requests on the admin queue, oldest first.
    pub(super) event_requests: Vec<u16>,
    /// Namespaces changed since the host last read the log.
    pub(super) namespaces_changed: bool,
    /// That was told and not yet read.
    pub(super) event_told: bool,
}

impl Association {
    /// When silence becomes death.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        if self.kato_ms == 0 {
            return None;
        }
        let patience_ms = u64::from(self.kato_ms) + KEEP_ALIVE_GRACE_MS;
        Some(self.seen_ns.saturating_add(patience_ms * 1_000_000))
    }

    pub(super) fn is_ready(&self) -> bool {
        self.csts & super::super::fabrics::CSTS_READY != 0
    }
}

//! What the target counts.

use crate::proto::pdu::{Fatal, Fes};

/// Totals since the target was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetCounters {
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections closed at once for want of a place or of buffers.
    pub connections_refused: u64,
    /// Associations begun.
    pub associations_begun: u64,
    /// Commands handed to the backend.
    pub commands_admitted: u64,
    /// Commands answered with another status than success.
    pub commands_failed: u64,
    /// Replies to connections that had gone.
    pub replies_dropped: u64,
    /// Payload received, in bytes.
    pub received_bytes: u64,
    /// Payload sent, in bytes.
    pub sent_bytes: u64,
    /// Payloads whose digest was wrong.
    pub data_digest_errors: u64,
    /// Commands that had to wait for a buffer.
    pub buffer_waits: u64,
    /// Connections ended for a breach of the protocol, by [`Fes`] (1 to 6).
    pub breaches: [u64; 7],
}

impl TargetCounters {
    pub(super) fn count_breach(&mut self, fatal: Fatal) {
        self.breaches[usize::from(fatal.fes as u16)] += 1;
    }

    /// Connections ended for this breach.
    pub fn breaches_of(&self, fes: Fes) -> u64 {
        self.breaches[usize::from(fes as u16)]
    }
}

//! What a reactor did, for benchmarks, metrics and tests.

/// Totals since the driver was made. All grow only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Turns of the loop.
    pub turns: u64,
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Calls among them that were allowed to sleep.
    pub sleeps: u64,
    /// Submission queue entries handed to the kernel.
    pub sqes: u64,
    /// Completion queue entries taken.
    pub cqes: u64,
    /// Completions that named no op in flight (expected only after giving up at shutdown).
    pub stale_cqes: u64,
    /// Wake-ups by a doorbell's eventfd.
    pub wakeups: u64,
    /// Ops submitted by shells.
    pub ops: u64,
    /// Ops that the kernel completed in part and that were continued.
    pub continued: u64,
    /// Times the submission queue was full and an extra submit was needed.
    pub queue_full: u64,
}

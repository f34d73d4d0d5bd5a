//! What a store has done and how long it took. Read by the program's metrics; never on the data path.

use crate::core::CoreCounts;
use crate::scrub::ScrubCounters;

/// A latency histogram: bucket `i` counts operations of `[2^i, 2^(i+1))` nanoseconds.
#[derive(Clone, Debug)]
pub struct Latency {
    /// The counts.
    pub buckets: [u64; 40],
    /// Operations in all.
    pub count: u64,
    /// Their sum, in nanoseconds.
    pub sum_ns: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            buckets: [0; 40],
            count: 0,
            sum_ns: 0,
        }
    }
}

impl Latency {
    pub(crate) fn note(&mut self, ns: u64) {
        let bucket = (63 - ns.max(1).leading_zeros()).min(39);
        self.buckets[bucket as usize] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }
}

/// Counters of one store since it was opened.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Reads answered.
    pub reads: u64,
    /// Writes answered.
    pub writes: u64,
    /// Zeroes and discards answered.
    pub zeroes: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Bytes of the reads.
    pub read_bytes: u64,
    /// Bytes of the writes.
    pub write_bytes: u64,
    /// Commands answered with a fault.
    pub faults: u64,
    /// Device operations that had to wait for a place.
    pub device_ops_queued: u64,
    /// Of reads, from submission to answer.
    pub read_latency: Latency,
    /// Of writes.
    pub write_latency: Latency,
    /// Of flushes.
    pub flush_latency: Latency,
    /// What the scrub found.
    pub scrub: ScrubCounters,
    /// What the core counts.
    pub core: CoreCounts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Read,
    Write,
    Zero,
    Flush,
    Control,
}

impl Counters {
    pub(crate) fn note(&mut self, sort: Sort, bytes: u64, took_ns: u64, ok: bool) {
        if !ok {
            self.faults += 1;
            return;
        }
        let count = |n: &mut u64, latency: Option<&mut Latency>| {
            *n += 1;
            if let Some(latency) = latency {
                latency.note(took_ns);
            }
        };
        match sort {
            Sort::Read => {
                self.read_bytes += bytes;
                count(&mut self.reads, Some(&mut self.read_latency));
            }
            Sort::Write => {
                self.write_bytes += bytes;
                count(&mut self.writes, Some(&mut self.write_latency));
            }
            Sort::Zero => count(&mut self.zeroes, None),
            Sort::Flush => count(&mut self.flushes, Some(&mut self.flush_latency)),
            Sort::Control => {}
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let mut latency = Latency::default();
        for ns in [0, 1, 2, 1023, 1024, u64::MAX] {
            latency.note(ns);
        }
        assert_eq!((latency.buckets[0], latency.buckets[1]), (2, 1));
        assert_eq!(
            (latency.buckets[9], latency.buckets[10], latency.buckets[39]),
            (1, 1, 1)
        );
        assert_eq!(latency.count, 6);
    }
}

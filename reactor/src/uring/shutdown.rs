//! Ending with ops in flight. The kernel must be done with our memory before it is freed.

use super::UringDriver;
use super::flight::{Flight, Place};
use crate::app::App;
use crate::driver::Op;
use crate::error::Errno;
use crate::slab::{Key, Slab};

/// How long one wait of a drain lasts before cancels are repeated, in nanoseconds.
const ROUND_NS: u64 = 50_000_000;

/// Whether the kernel may still touch memory or descriptors of ours for this op. A device command
/// carries its payload in the SQE, and a device may keep it for ever: it ends with the ring.
fn must_return(flight: &Flight) -> bool {
    flight.place == Place::Kernel && !matches!(flight.op, Op::Command { .. })
}

impl UringDriver {
    /// Cancels everything and delivers the completions, within [`super::UringConfig::drain_ms`].
    pub(super) fn drain(&mut self, app: &mut (impl App + ?Sized)) {
        self.draining = true;
        let deadline_ns = self.drain_deadline_ns();
        while (self.waits_for_kernel() || !self.ready.is_empty()) && self.clock_ns() < deadline_ns {
            self.cancel_everything();
            self.turn_within(app, Some(ROUND_NS));
        }
        for key in self.ops.keys() {
            let given_up = self
                .ops
                .get(key)
                .is_some_and(|f| matches!(f.op, Op::Command { .. }));
            if given_up {
                let completion = self.retire(key, Err(Errno::CANCELED));
                app.on_completion(self, completion);
            }
        }
        // Closes that waited for those commands only.
        while let Some((key, result)) = self.ready.pop_front() {
            let completion = self.retire(key, result);
            app.on_completion(self, completion);
        }
        if self.ops.len() > 0 {
            tracing::error!(
                ops = self.ops.len(),
                "uring: ops did not end when cancelled"
            );
        }
        self.draining = false;
    }

    fn drain_deadline_ns(&self) -> u64 {
        self.clock_ns() + u64::from(self.config.drain_ms) * 1_000_000
    }

    fn waits_for_kernel(&self) -> bool {
        self.ops.iter().any(|(_, flight)| must_return(flight))
    }

    fn cancel_everything(&mut self) {
        let keys: Vec<Key> = self.ops.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.cancel_key(key);
        }
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        self.draining = true;
        let deadline_ns = self.drain_deadline_ns();
        while self.waits_for_kernel() && self.clock_ns() < deadline_ns {
            self.cancel_everything();
            self.ready.clear();
            self.enter(Some(ROUND_NS));
            self.ring.reap();
            while let Some(cqe) = self.ring.arrived.pop_front() {
                drop(self.on_cqe(cqe));
            }
        }
        if self.waits_for_kernel() {
            // Freeing would let the kernel write into memory that means something else by then.
            // The windows keep the arena mapped; areas on loan are never freed.
            tracing::error!(
                ops = self.ops.len(),
                "uring: leaking ops that the kernel still has"
            );
            Box::leak(Box::new(std::mem::replace(&mut self.ops, Slab::new(0))));
        }
    }
}

//! When to sleep, for how long, and whether to look around first.

use super::ring::Wait;
use super::{BELL_TAG, UringDriver};
use io_uring::{opcode, types};
use std::os::fd::AsRawFd;

impl UringDriver {
    /// Submits, sleeps if there is nothing to deliver, and samples the clock.
    pub(super) fn enter(&mut self, at_most_ns: Option<u64>) {
        self.arm_bell();
        let wait = self.wait(at_most_ns);
        if wait == Wait::No {
            self.ring.enter(Wait::No);
        } else {
            let start_ns = self.clock_ns();
            if !self.spin(start_ns, wait) {
                self.sleep(at_most_ns);
            }
            self.waited_ns = self.clock_ns() - start_ns;
        }
        self.now_ns = self.clock_ns();
    }

    fn sleep(&mut self, at_most_ns: Option<u64>) {
        let awaited = self.bells.park();
        let wait = if awaited {
            self.wait(at_most_ns)
        } else {
            Wait::No
        };
        self.ring.enter(wait);
        self.bells.unpark();
    }

    /// Looks for completions without sleeping. True: there is something to collect. The kernel sets
    /// a flag in the ring when it has deferred work for us, so looking is one load.
    ///
    /// It pays only while answers come about as fast as a sleeper wakes, so it is tried only if the
    /// last wait was that short: after one long wait the reactor sleeps at once.
    fn spin(&mut self, start_ns: u64, wait: Wait) -> bool {
        let spin_ns = u64::from(self.config.spin_us) * 1000;
        if spin_ns == 0 || self.waited_ns > 2 * spin_ns {
            return false;
        }
        self.ring.enter(Wait::No);
        let until_ns = match wait {
            Wait::AtMost(ns) => start_ns + spin_ns.min(ns),
            Wait::No | Wait::Forever => start_ns + spin_ns,
        };
        loop {
            if self.ring.has_work() {
                // Runs the deferred work; what is in the queue already stays there.
                self.ring.enter(Wait::No);
                return true;
            }
            if self.bells.any_rung() {
                return true;
            }
            if self.clock_ns() >= until_ns {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn wait(&self, at_most_ns: Option<u64>) -> Wait {
        if !self.ready.is_empty() || !self.ring.arrived.is_empty() {
            return Wait::No;
        }
        let next_ns = self.timers.next_ns();
        let timer = next_ns.map(|at_ns| at_ns.saturating_sub(self.clock_ns()));
        match (timer, at_most_ns) {
            (Some(0), _) | (_, Some(0)) => Wait::No,
            (None, None) => Wait::Forever,
            (Some(ns), None) | (None, Some(ns)) => Wait::AtMost(ns),
            (Some(a), Some(b)) => Wait::AtMost(a.min(b)),
        }
    }

    /// The doorbells' poll ends only if the completion queue overflowed; then it is armed again.
    fn arm_bell(&mut self) {
        if self.bell_armed || self.bells.len() == 0 {
            return;
        }
        let readable = u32::from(libc::POLLIN.unsigned_abs());
        let fd = types::Fd(self.bells.event().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, readable)
            .multi(true)
            .build()
            .user_data(BELL_TAG);
        // SAFETY: a poll points to no memory.
        unsafe { self.ring.push(&entry) };
        self.bell_armed = true;
    }
}

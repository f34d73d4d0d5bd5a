//! Waking a sleeping reactor from another thread, without a system call while it is awake.
//!
//! # Why no ring is lost
//! A ringer stores `rung` and then loads `parked`. The reactor, before it sleeps, stores `parked`
//! and then loads `rung`. All four are sequentially consistent, so in their one total order either
//! the ringer's load comes after the reactor's store (the ringer sees `parked` and writes the
//! eventfd, whose read is always armed on the ring, so the sleep ends) or the reactor's load comes
//! after the ringer's store (the reactor sees `rung` and does not sleep). Of several ringers that
//! see `parked`, the one whose swap clears it writes; the write ends the sleep for all of them, and
//! awake the reactor looks at every `rung`.
//!
//! What a ringer put into its queue before ringing is visible after `Rung`: the reactor's swap of
//! `rung` reads the ringer's store or a later one of the same modification order (each of them a
//! read-modify-write, so they form one release sequence).

use crate::driver::{Doorbell, Token};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Shared with the ringers; one per reactor.
pub(super) struct Waker {
    parked: AtomicBool,
    event: OwnedFd,
}

impl Waker {
    fn wake_if_parked(&self) {
        if self.parked.load(SeqCst) && self.parked.swap(false, SeqCst) {
            // EAGAIN would mean that the counter is full of wakes not yet read: also a wake.
            let written = rustix::io::write(&self.event, &ONE);
            debug_assert!(written.is_ok(), "ring the eventfd: {written:?}");
        }
    }
}

/// One wake, as an eventfd takes it: eight bytes in the host's order.
#[allow(
    clippy::host_endian_bytes,
    reason = "eventfd(2) is defined in host order"
)]
const ONE: [u8; 8] = 1u64.to_ne_bytes();

struct Bell {
    token: Token,
    rung: Arc<AtomicBool>,
}

/// The reactor's side.
pub(super) struct Bells {
    pub(super) waker: Arc<Waker>,
    bells: Vec<Bell>,
}

impl Bells {
    pub(super) fn new() -> Result<Self, rustix::io::Errno> {
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        let waker = Arc::new(Waker {
            parked: AtomicBool::new(false),
            event,
        });
        Ok(Self {
            waker,
            bells: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, token: Token) -> Doorbell {
        let rung = Arc::new(AtomicBool::new(false));
        self.bells.push(Bell {
            token,
            rung: rung.clone(),
        });
        let waker = self.waker.clone();
        Doorbell::new(move || {
            rung.swap(true, SeqCst);
            waker.wake_if_parked();
        })
    }

    /// Before sleeping: from here on ringers wake us. False: somebody rang, do not sleep.
    pub(super) fn park(&self) -> bool {
        self.waker.parked.store(true, SeqCst);
        !self.any_rung()
    }

    /// Whether somebody rang.
    pub(super) fn any_rung(&self) -> bool {
        self.bells.iter().any(|bell| bell.rung.load(SeqCst))
    }

    /// After sleeping: from here on ringing costs nothing.
    pub(super) fn unpark(&self) {
        self.waker.parked.store(false, SeqCst);
    }

    pub(super) fn len(&self) -> usize {
        self.bells.len()
    }

    /// Whether the bell was rung since the last time; whose it is.
    pub(super) fn take(&self, index: usize) -> Option<Token> {
        let bell = &self.bells[index];
        // The load spares an awake reactor the locked instruction for bells that did not ring. It
        // may miss a ring of this instant; `park` will not.
        (bell.rung.load(SeqCst) && bell.rung.swap(false, SeqCst)).then_some(bell.token)
    }

    pub(super) fn event(&self) -> &OwnedFd {
        &self.waker.event
    }
}

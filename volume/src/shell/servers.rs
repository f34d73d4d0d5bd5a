//! One association per storaged, shared by all volumes; reconnected while anybody wants it.

use crate::core::Position;
use crate::limits::QUEUED_COMMANDS_MAX;
use nvmf::initiator::{AssociationId, Initiator, Request};
use nvmf::proto::host::QueueId;
use reactor::{Driver, TimerId, Token};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

/// First and longest pause before connecting again, in milliseconds.
const RECONNECT_MS: (u64, u64) = (20, 5_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Down,
    Waiting(TimerId),
    Connecting(AssociationId),
    Ready(AssociationId),
}

/// A storaged.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) subsystem_nqn: String,
    pub(super) link: Link,
    /// Volumes (by slot) and the position this server has in them.
    pub(super) wanted_by: BTreeSet<(u32, Position)>,
    /// Requests the initiator had no room for: IO and admin apart, so that one does not wait for
    /// the other.
    waiting: [VecDeque<(u64, Request)>; 2],
    failures: u32,
}

impl Server {
    pub(super) fn new(address: SocketAddr, subsystem_nqn: String) -> Self {
        Self {
            address,
            subsystem_nqn,
            link: Link::Down,
            wanted_by: BTreeSet::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            failures: 0,
        }
    }

    pub(super) fn association(&self) -> Option<AssociationId> {
        match self.link {
            Link::Connecting(id) | Link::Ready(id) => Some(id),
            Link::Down | Link::Waiting(_) => None,
        }
    }

    pub(super) fn connect(&mut self, io: &mut dyn Driver, initiator: &mut Initiator) {
        let id = initiator.connect(io, self.address, &self.subsystem_nqn);
        self.link = Link::Connecting(id);
    }

    pub(super) fn on_ready(&mut self, id: AssociationId) {
        self.link = Link::Ready(id);
        self.failures = 0;
    }

    /// Arms the next attempt; `spread` is any number, to keep clients from marching in step.
    pub(super) fn connect_later(&mut self, io: &mut dyn Driver, token: Token, spread: u64) {
        let (first, longest) = RECONNECT_MS;
        let pause = first
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        let pause = pause - spread % (pause / 4).max(1);
        self.failures += 1;
        let timer = io.arm(token, io.now_ns() + pause * 1_000_000);
        self.link = Link::Waiting(timer);
    }

    /// Sends, or queues if the initiator has no room.
    pub(super) fn submit(
        &mut self,
        io: &mut dyn Driver,
        initiator: &mut Initiator,
        user: u64,
        request: Request,
    ) {
        let queue = usize::from(request.queue() == QueueId::Admin);
        let Link::Ready(id) = self.link else {
            unreachable!("the core sends on paths that are up");
        };
        let refused = if self.waiting[queue].is_empty() {
            initiator.submit(io, id, user, request).err()
        } else {
            Some(request)
        };
        if let Some(request) = refused {
            assert!(
                self.waiting[queue].len() < QUEUED_COMMANDS_MAX,
                "bounded by host requests"
            );
            self.waiting[queue].push_back((user, request));
        }
    }

    /// Sends what waited, as far as there is room now.
    pub(super) fn drain(&mut self, io: &mut dyn Driver, initiator: &mut Initiator) {
        let Link::Ready(id) = self.link else { return };
        for queue in &mut self.waiting {
            while let Some((user, request)) = queue.pop_front() {
                if let Err(request) = initiator.submit(io, id, user, request) {
                    queue.push_front((user, request));
                    break;
                }
            }
        }
    }

    /// What never got to the initiator, for their buffers.
    pub(super) fn take_waiting(&mut self) -> Vec<(u64, Request)> {
        self.waiting.iter_mut().flat_map(std::mem::take).collect()
    }
}

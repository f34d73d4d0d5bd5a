//! One association: the core's effects turned into ops, completions into its events.

use super::connection::{Connection, Pending, Socket};
use super::limits::TERMINATE_NS;
use super::receiver::{Expect, Incoming, Receiver};
use super::request::{Failure, Reply, Request};
use super::sender::{Body, Sender};
use super::{AssociationId, Counters, InitiatorEvent};
use crate::proto::host::{
    Effect, Event, Host, HostConfig, LostReason, Outbox, Outcome, Payload, Phase, QueueId, SlotId,
};
use crate::proto::pdu::{COMMON_BYTES, CommonHeader, DIGEST_BYTES, Fatal, Header, Role};
use crate::proto::pdu::{digest_matches, term_req};
use reactor::{Buf, BufMut, Done, Driver, Errno, Handle, Op, TimerId, Token};
use std::net::SocketAddr;
use zerocopy::FromBytes;

/// What an op of ours was for; the low byte of its token's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Open,
    Receive,
    Send,
    Close,
    Timer,
}

impl Purpose {
    const ALL: [Self; 5] = [
        Self::Open,
        Self::Receive,
        Self::Send,
        Self::Close,
        Self::Timer,
    ];
}

/// A token's value: turn of the association, queue, purpose.
pub(super) fn pack(turn: u32, queue: QueueId, purpose: Purpose) -> u64 {
    u64::from(turn) << 16 | u64::from(queue.qid()) << 8 | purpose as u64
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack(value: u64) -> (u32, QueueId, Purpose) {
    let [purpose, queue, t0, t1, t2, t3, ..] = value.to_le_bytes();
    let turn = u32::from_le_bytes([t0, t1, t2, t3]);
    (
        turn,
        QueueId::ALL[usize::from(queue)],
        Purpose::ALL[usize::from(purpose)],
    )
}

/// How an association ends.
#[derive(Debug)]
struct Ending {
    reason: LostReason,
}

/// The shell of one [`Host`].
#[derive(Debug)]
pub(super) struct Association {
    pub(super) id: AssociationId,
    room: u8,
    to: SocketAddr,
    pub(super) host: Host,
    outbox: Outbox,
    connections: [Connection; 2],
    timer: Option<TimerId>,
    ending: Option<Ending>,
    /// Whether a connection has something to say at the end of the turn.
    pub(super) dirty: bool,
    /// Facts for the log: the header that broke the protocol.
    offender: Vec<u8>,
}

impl Association {
    pub(super) fn new(id: AssociationId, room: u8, to: SocketAddr, config: HostConfig) -> Self {
        Self {
            id,
            room,
            to,
            host: Host::new(config),
            outbox: Outbox::new(),
            connections: [Connection::new(), Connection::new()],
            timer: None,
            ending: None,
            dirty: false,
            offender: Vec::new(),
        }
    }

    fn token(&self, queue: QueueId, purpose: Purpose) -> Token {
        Token {
            room: self.room,
            index: self.id.index,
            value: pack(self.id.turn, queue, purpose),
        }
    }

    /// Feeds the core and does what it says.
    pub(super) fn step(&mut self, io: &mut dyn Driver, event: Event<'_>, world: &mut World<'_>) {
        let before = self.host.phase();
        let mut outbox = std::mem::take(&mut self.outbox);
        self.host.step(io.now_ns(), event, &mut outbox);
        self.perform_all(io, outbox, world);
        self.note(before);
    }

    fn note(&self, before: Phase) {
        let after = self.host.phase();
        if before != after {
            tracing::debug!(association = %self.id, to = %self.to, from = ?before, now = ?after);
        }
    }

    fn perform_all(&mut self, io: &mut dyn Driver, mut outbox: Outbox, world: &mut World<'_>) {
        for effect in outbox.drain(..) {
            self.perform(io, effect, world);
        }
        self.outbox = outbox;
    }

    fn perform(&mut self, io: &mut dyn Driver, effect: Effect, world: &mut World<'_>) {
        match effect {
            Effect::Open { queue } => {
                let token = self.token(queue, Purpose::Open);
                let op = io.submit(token, Op::Connect { to: self.to });
                self.connections[queue.index()].socket = Socket::Opening(op);
            }
            Effect::Send {
                queue,
                header,
                payload,
            } => self.enqueue(queue, header, payload, world),
            Effect::Receive {
                slot,
                start_bytes,
                len_bytes,
                digest,
            } => {
                let incoming = Incoming {
                    slot,
                    start_bytes,
                    len_bytes,
                    got_bytes: 0,
                    digest,
                };
                self.connections[slot.queue.index()].expect(incoming);
            }
            Effect::Complete { slot, outcome } => self.complete(slot, outcome, world),
            Effect::Ready(facts) => {
                tracing::info!(association = %self.id, to = %self.to, ?facts, "ready");
                world.counters.associations_ready += 1;
                world.events.push(InitiatorEvent::Ready {
                    association: self.id,
                    facts,
                });
            }
            Effect::NamespacesChanged => {
                tracing::info!(association = %self.id, to = %self.to, "namespaces changed");
                world.events.push(InitiatorEvent::NamespacesChanged {
                    association: self.id,
                });
            }
            Effect::Arm { at_ns } => {
                if let Some(timer) = self.timer.take() {
                    io.disarm(timer);
                }
                self.timer = Some(io.arm(self.token(QueueId::Admin, Purpose::Timer), at_ns));
            }
            Effect::Lose { reason, terminate } => self.lose(io, reason, terminate, world),
        }
    }

    fn enqueue(&mut self, queue: QueueId, header: Header, payload: Payload, world: &mut World<'_>) {
        let connection = &mut self.connections[queue.index()];
        let body = match payload {
            Payload::None => Body::None,
            Payload::Connect(data) => Body::Connect(data),
            Payload::Command {
                index,
                start_bytes,
                len_bytes,
            } => {
                world.counters.sent_bytes += u64::from(len_bytes);
                let pending = connection.pending[usize::from(index)].as_ref();
                let pending = pending.expect("initiator: data of a command not in flight");
                Body::Window(pending.window(start_bytes, len_bytes))
            }
        };
        world.counters.pdus_sent += 1;
        connection.sender().push(header, body);
        self.dirty = true;
    }

    /// Starts a command. `Err` is backpressure.
    pub(super) fn submit(
        &mut self,
        io: &mut dyn Driver,
        user: u64,
        request: Request,
        world: &mut World<'_>,
    ) -> Result<(), Request> {
        let queue = request.queue();
        if !self.host.has_room(queue) {
            return Err(request);
        }
        let command = request.command();
        let Ok(staged) = request.staged(io.arena()) else {
            return Err(request);
        };
        let mut outbox = std::mem::take(&mut self.outbox);
        let index = self.host.admit(io.now_ns(), command, &mut outbox);
        let index = usize::from(index.expect("initiator: room was asked for"));
        let pending = &mut self.connections[queue.index()].pending;
        if pending.len() <= index {
            pending.resize_with(index + 1, || None);
        }
        assert!(pending[index].is_none(), "initiator: slot {index} is taken");
        pending[index] = Some(Pending {
            user,
            request,
            staged,
        });
        self.perform_all(io, outbox, world);
        world.counters.commands += 1;
        Ok(())
    }

    fn complete(&mut self, slot: SlotId, outcome: Outcome, world: &mut World<'_>) {
        let connection = &mut self.connections[slot.queue.index()];
        let index = usize::from(slot.index);
        let pending = connection.pending[index].take();
        let Pending { user, request, .. } = pending.expect("initiator: completion out of nothing");
        let mut data = Vec::new();
        if slot.queue == QueueId::Admin && outcome.received_bytes > 0 {
            data = std::mem::take(&mut connection.collected[index]);
        }
        let result = if outcome.status.is_success() {
            Ok(Reply {
                result: outcome.result,
                data,
            })
        } else {
            world.counters.failed_commands += 1;
            Err(Failure::Status(outcome.status))
        };
        let association = self.id;
        world.events.push(InitiatorEvent::Done {
            association,
            user,
            request,
            result,
        });
    }

    /// Sends what has gathered, one send per connection.
    pub(super) fn flush(&mut self, io: &mut dyn Driver, counters: &mut Counters) {
        self.dirty = false;
        for queue in QueueId::ALL {
            let framing = self.host.framing(queue);
            let connection = &mut self.connections[queue.index()];
            let Socket::Open(socket) = connection.socket else {
                continue;
            };
            if let Some(parts) = connection.sender().next(framing) {
                counters.sends += 1;
                io.submit(self.token(queue, Purpose::Send), Op::Send { socket, parts });
            }
        }
    }

    pub(super) fn on_timer(&mut self, io: &mut dyn Driver, world: &mut World<'_>) {
        self.timer = None;
        if self.ending.is_none() {
            return self.step(io, Event::Timer, world);
        }
        for queue in QueueId::ALL {
            if let Socket::Terminating(handle) = self.connections[queue.index()].socket {
                self.close(io, queue, handle, true);
            }
        }
    }

    /// An op ended.
    pub(super) fn on_op(
        &mut self,
        io: &mut dyn Driver,
        (queue, purpose): (QueueId, Purpose),
        (op, result): (Op, Result<Done, Errno>),
        world: &mut World<'_>,
    ) {
        match (purpose, op) {
            (Purpose::Open, Op::Connect { .. }) => self.on_opened(io, queue, result, world),
            (Purpose::Receive, Op::Recv { into, .. }) => {
                self.on_received(io, queue, into, result, world);
            }
            (Purpose::Send, Op::Send { parts, .. }) => {
                self.on_sent(io, queue, parts, result, world)
            }
            (Purpose::Close, Op::Close { .. }) => {
                self.connections[queue.index()].socket = Socket::Closed;
            }
            (purpose, op) => unreachable!("initiator: {purpose:?} completed with {op:?}"),
        }
    }

    fn on_opened(
        &mut self,
        io: &mut dyn Driver,
        queue: QueueId,
        result: Result<Done, Errno>,
        world: &mut World<'_>,
    ) {
        let handle = match result {
            Ok(Done::Socket { handle, .. }) => handle,
            Ok(other) => unreachable!("initiator: connect produced {other:?}"),
            Err(Errno(errno)) => {
                self.connections[queue.index()].socket = Socket::Closed;
                return self.step(
                    io,
                    Event::Gone(LostReason::OpenFailed { queue, errno }),
                    world,
                );
            }
        };
        self.connections[queue.index()].socket = Socket::Open(handle);
        if self.ending.is_some() {
            return self.close(io, queue, handle, true);
        }
        let halves = Sender::new(io.arena()).zip(Receiver::new(io.arena()));
        if halves.is_none() {
            return self.step(io, Event::Gone(LostReason::NoBuffers { queue }), world);
        }
        self.connections[queue.index()].halves = halves;
        self.step(io, Event::Opened { queue }, world);
        self.receive(io, queue, world.counters);
    }

    fn on_sent(
        &mut self,
        io: &mut dyn Driver,
        queue: QueueId,
        parts: Vec<Buf>,
        result: Result<Done, Errno>,
        world: &mut World<'_>,
    ) {
        let connection = &mut self.connections[queue.index()];
        connection.sender().ended(parts);
        match connection.socket {
            Socket::Open(_) => match result {
                Ok(_) => self.dirty = true,
                Err(Errno(errno)) => {
                    self.step(io, Event::Gone(LostReason::Socket { queue, errno }), world);
                }
            },
            Socket::Terminating(handle) => self.close(io, queue, handle, false),
            Socket::Unopened | Socket::Opening(_) | Socket::Closing | Socket::Closed => {}
        }
    }

    fn on_received(
        &mut self,
        io: &mut dyn Driver,
        queue: QueueId,
        into: (BufMut, Option<BufMut>),
        result: Result<Done, Errno>,
        world: &mut World<'_>,
    ) {
        let bytes = match result {
            Ok(Done::Bytes(bytes)) => bytes,
            Ok(other) => unreachable!("initiator: receive produced {other:?}"),
            Err(_) => 0,
        };
        self.connections[queue.index()].give_back(into, bytes);
        if self.ending.is_some() {
            return;
        }
        let gone = match result {
            Ok(Done::Bytes(0)) => Some(LostReason::PeerClosed { queue }),
            Err(Errno(errno)) => Some(LostReason::Socket { queue, errno }),
            Ok(_) => None,
        };
        if let Some(reason) = gone {
            return self.step(io, Event::Gone(reason), world);
        }
        self.parse(io, queue, world);
        self.receive(io, queue, world.counters);
    }

    /// Keeps one receive in flight.
    fn receive(&mut self, io: &mut dyn Driver, queue: QueueId, counters: &mut Counters) {
        let connection = &mut self.connections[queue.index()];
        let Socket::Open(socket) = connection.socket else {
            return;
        };
        let into = connection.lend();
        counters.receives += 1;
        io.submit(
            self.token(queue, Purpose::Receive),
            Op::Recv { socket, into },
        );
    }

    /// Takes what staging holds apart, until it needs more.
    fn parse(&mut self, io: &mut dyn Driver, queue: QueueId, world: &mut World<'_>) {
        while self.ending.is_none() {
            let more = match self.connections[queue.index()].receiver().expect {
                Expect::Header => self.parse_header(io, queue, world),
                Expect::Data(incoming) => self.parse_data(io, queue, incoming, world),
                Expect::Digest(incoming) => self.parse_digest(io, queue, incoming, world),
            };
            if !more {
                break;
            }
        }
    }

    fn parse_header(&mut self, io: &mut dyn Driver, queue: QueueId, world: &mut World<'_>) -> bool {
        let receiver = self.connections[queue.index()].receiver();
        let bytes = receiver.unparsed();
        let Ok((common, _)) = CommonHeader::read_from_prefix(bytes) else {
            return false;
        };
        let extent = match self.host.measure(queue, &common) {
            Ok(extent) => extent,
            Err(fatal) => {
                self.offender = bytes[..COMMON_BYTES as usize].to_vec();
                self.step(io, Event::Breach { queue, fatal }, world);
                return false;
            }
        };
        let Some(bytes) = bytes.get(..extent.header_bytes as usize) else {
            return false;
        };
        world.counters.pdus_received += 1;
        let before = self.host.phase();
        let mut outbox = std::mem::take(&mut self.outbox);
        self.host.step(
            io.now_ns(),
            Event::Header {
                queue,
                extent,
                bytes,
            },
            &mut outbox,
        );
        if let Some(Effect::Lose {
            terminate: Some(_), ..
        }) = outbox.last()
        {
            self.offender = bytes.to_vec();
        }
        receiver.consume(extent.header_bytes);
        self.perform_all(io, outbox, world);
        self.note(before);
        true
    }

    fn parse_data(
        &mut self,
        io: &mut dyn Driver,
        queue: QueueId,
        mut incoming: Incoming,
        world: &mut World<'_>,
    ) -> bool {
        let connection = &mut self.connections[queue.index()];
        let staged = connection.receiver().unparsed().len();
        let take = incoming
            .left_bytes()
            .min(u32::try_from(staged).expect("staging is small"));
        if take > 0 {
            connection.move_data(&incoming, take);
            world.counters.staged_bytes += u64::from(take);
            incoming.got_bytes += take;
        }
        connection.receiver().expect = Expect::Data(incoming);
        if incoming.left_bytes() > 0 {
            return false;
        }
        if incoming.digest {
            connection.receiver().expect = Expect::Digest(incoming);
        } else {
            self.data_received(io, queue, incoming, true, world);
        }
        true
    }

    fn parse_digest(
        &mut self,
        io: &mut dyn Driver,
        queue: QueueId,
        incoming: Incoming,
        world: &mut World<'_>,
    ) -> bool {
        let connection = &mut self.connections[queue.index()];
        let Some(received) = connection.receiver().unparsed().first_chunk() else {
            return false;
        };
        let received = u32::from_le_bytes(*received);
        connection.receiver().consume(DIGEST_BYTES);
        let intact = digest_matches(received, connection.data_digest(&incoming));
        world.counters.wrong_digests += u64::from(!intact);
        self.data_received(io, queue, incoming, intact, world);
        true
    }

    fn data_received(
        &mut self,
        io: &mut dyn Driver,
        queue: QueueId,
        incoming: Incoming,
        intact: bool,
        world: &mut World<'_>,
    ) {
        world.counters.received_bytes += u64::from(incoming.len_bytes);
        let connection = &mut self.connections[queue.index()];
        connection.receiver().expect = Expect::Header;
        let index = usize::from(incoming.slot.index);
        let data = match queue {
            QueueId::Admin => std::mem::take(&mut connection.collected[index]),
            QueueId::Io => Vec::new(),
        };
        let mut outbox = std::mem::take(&mut self.outbox);
        let event = Event::DataReceived {
            queue,
            intact,
            data: &data,
        };
        self.host.step(io.now_ns(), event, &mut outbox);
        if queue == QueueId::Admin {
            self.connections[0].collected[index] = data;
        }
        self.perform_all(io, outbox, world);
    }

    fn lose(
        &mut self,
        io: &mut dyn Driver,
        reason: LostReason,
        terminate: Option<(QueueId, Fatal)>,
        world: &mut World<'_>,
    ) {
        tracing::info!(association = %self.id, to = %self.to, %reason, "lost");
        world.counters.associations_lost += 1;
        world.counters.breaches += u64::from(terminate.is_some());
        if let Some(timer) = self.timer.take() {
            io.disarm(timer);
        }
        self.dirty = false;
        self.ending = Some(Ending { reason });
        for queue in QueueId::ALL {
            match self.connections[queue.index()].socket {
                Socket::Unopened => self.connections[queue.index()].socket = Socket::Closed,
                Socket::Opening(op) => io.cancel(op),
                Socket::Open(handle) => {
                    let fatal = terminate
                        .filter(|(on, _)| *on == queue)
                        .map(|(_, fatal)| fatal);
                    if !fatal.is_some_and(|fatal| self.terminate(io, queue, handle, fatal)) {
                        self.close(io, queue, handle, true);
                    }
                }
                Socket::Terminating(_) | Socket::Closing | Socket::Closed => {}
            }
        }
    }

    /// Sends a terminate request, if no send is in the way.
    fn terminate(
        &mut self,
        io: &mut dyn Driver,
        queue: QueueId,
        socket: Handle,
        fatal: Fatal,
    ) -> bool {
        let request = term_req(Role::Host, fatal, &self.offender);
        let connection = &mut self.connections[queue.index()];
        let Some(parts) = connection.sender().only(&request) else {
            return false;
        };
        connection.socket = Socket::Terminating(socket);
        io.submit(self.token(queue, Purpose::Send), Op::Send { socket, parts });
        let at_ns = io.now_ns().saturating_add(TERMINATE_NS);
        self.timer = Some(io.arm(self.token(QueueId::Admin, Purpose::Timer), at_ns));
        true
    }

    fn close(&mut self, io: &mut dyn Driver, queue: QueueId, handle: Handle, reset: bool) {
        self.connections[queue.index()].socket = Socket::Closing;
        io.submit(
            self.token(queue, Purpose::Close),
            Op::Close { handle, reset },
        );
    }

    /// Once both connections are closed: everything outstanding goes back, then the end is told.
    /// True if the association is over.
    pub(super) fn finish(&mut self, io: &mut dyn Driver, world: &mut World<'_>) -> bool {
        let closed = |connection: &Connection| matches!(connection.socket, Socket::Closed);
        if self.ending.is_none() || !self.connections.iter().all(closed) {
            return false;
        }
        if let Some(timer) = self.timer.take() {
            io.disarm(timer);
        }
        let association = self.id;
        for connection in &mut self.connections {
            for Pending { user, request, .. } in connection.pending.drain(..).flatten() {
                let result = Err(Failure::ConnectionLost);
                world.events.push(InitiatorEvent::Done {
                    association,
                    user,
                    request,
                    result,
                });
            }
        }
        let reason = self.ending.take().expect("looked at above").reason;
        world.events.push(InitiatorEvent::Lost {
            association,
            reason,
        });
        true
    }
}

/// What an association may change beside itself.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub(super) events: &'a mut Vec<InitiatorEvent>,
    pub(super) counters: &'a mut Counters,
}

//! The target: sockets for the controller machine, buffers for its commands.
//!
//! It owns its sockets and the payload of commands that are arriving or waiting; a command handed
//! to the backend takes its buffer along. It decides nothing about the protocol: bytes become
//! events of [`Core`], effects become ops. Payload is received straight into the buffer that the
//! backend will write from, PDUs gather until the turn ends and leave as one send per socket.
//!
//! The program routes completions of [`TargetConfig::room`] here, calls [`Target::on_turn_end`] each
//! turn, and answers every command of [`Namespaces::admit`] by [`Target::reply`].

mod buffers;
mod command;
mod counters;
mod effects;
pub mod limits;
mod link;
mod receiver;
mod sender;

pub use crate::proto::controller::{AssociationId, Identity};
pub use crate::proto::identify::NamespaceFacts;
pub use crate::proto::status::Status;
pub use command::{Command, CommandId, CommandKind, Namespaces, Reply, ReplyData};
pub use counters::TargetCounters;

use crate::proto::controller::limits::CONNECTIONS_MAX;
use crate::proto::controller::{Answer, Core, Effect, Event, Need, Outgoing};
use crate::proto::pdu::{digest, digest_matches};
use buffers::Buffers;
use limits::{ACCEPT_RETRY_NS, GRANTED_BYTES_MAX_DEFAULT};
use link::Link;
use reactor::{Completion, Done, Driver, Errno, Handle, Op, SetupError, TimerId, Token};
use receiver::Receiver;
use sender::Sender;
use std::net::SocketAddr;

/// How a target is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// The `Token.room` of everything it submits.
    pub room: u8,
    /// What it says of itself.
    pub identity: Identity,
    /// Most bytes asked for by R2T at a time; at most half of the arena is wise.
    pub granted_bytes_max: u64,
}

impl TargetConfig {
    /// Defaults for everything but names.
    pub fn new(room: u8, identity: Identity) -> Self {
        Self {
            room,
            identity,
            granted_bytes_max: GRANTED_BYTES_MAX_DEFAULT,
        }
    }
}

/// `Token.value`: what an op or timer was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Receive,
    Send,
    Close,
    Accept,
    Listener,
    Deadline,
    AcceptAgain,
}

impl Purpose {
    const ALL: [Self; 7] = [
        Self::Receive,
        Self::Send,
        Self::Close,
        Self::Accept,
        Self::Listener,
        Self::Deadline,
        Self::AcceptAgain,
    ];

    fn of(token: Token) -> Self {
        let index = usize::try_from(token.value).expect("small");
        Self::ALL[index]
    }
}

/// An NVMe/TCP target on one reactor.
#[derive(Debug)]
pub struct Target {
    config: TargetConfig,
    core: Core,
    listener: Option<Handle>,
    accepting: bool,
    /// Told to stop: nothing new is accepted.
    stopping: bool,
    links: Vec<Option<Link>>,
    free: Vec<u32>,
    turns: Vec<u32>,
    /// Links to be looked at when the turn ends.
    dirty: Vec<u32>,
    buffers: Buffers,
    timer: Option<TimerId>,
    effects: Vec<Effect>,
    effects_spare: Vec<Effect>,
    counters: TargetCounters,
}

impl Target {
    /// A target that listens nowhere yet.
    pub fn new(config: TargetConfig) -> Self {
        Self {
            core: Core::new(config.identity.clone()),
            buffers: Buffers::new(config.granted_bytes_max),
            config,
            listener: None,
            accepting: false,
            stopping: false,
            links: Vec::new(),
            free: Vec::new(),
            turns: Vec::new(),
            dirty: Vec::new(),
            timer: None,
            effects: Vec::new(),
            effects_spare: Vec::new(),
            counters: TargetCounters::default(),
        }
    }

    /// Begins to listen; returns the address, whose port was chosen if 0 was asked for.
    ///
    /// # Errors
    /// [`SetupError`] naming the address.
    ///
    /// Panics if it listens already.
    pub fn listen(
        &mut self,
        io: &mut dyn Driver,
        at: SocketAddr,
    ) -> Result<SocketAddr, SetupError> {
        assert!(self.listener.is_none(), "one listener per target");
        let listener = io.listen(at)?;
        self.listener = Some(listener);
        let bound = io.local_addr(listener).unwrap_or(at);
        self.accept(io);
        tracing::info!(address = %bound, subsystem = %self.config.identity.subnqn, "listening");
        Ok(bound)
    }

    /// Stops listening and resets every connection; see [`Target::is_stopped`].
    pub fn stop(&mut self, io: &mut dyn Driver) {
        self.stopping = true;
        if let Some(handle) = self.listener.take() {
            io.submit(
                self.token(0, Purpose::Listener),
                Op::Close {
                    handle,
                    reset: false,
                },
            );
        }
        for connection in 0..self.links.len() {
            self.close(io, index(connection), true);
        }
    }

    /// Whether every socket is closed after [`Target::stop`].
    pub fn is_stopped(&self) -> bool {
        self.stopping && !self.accepting && self.links.iter().all(Option::is_none)
    }

    /// What was counted so far.
    pub fn counters(&self) -> &TargetCounters {
        &self.counters
    }

    /// Connections that are open, and associations that exist.
    pub fn population(&self) -> (usize, usize) {
        (
            self.links.iter().flatten().count(),
            self.core.association_count(),
        )
    }

    /// The host of an association that exists.
    pub fn host_nqn(&self, association: AssociationId) -> Option<&str> {
        self.core.host_nqn(association)
    }

    /// A completion of this target's room.
    pub fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        namespaces: &mut dyn Namespaces,
        completion: Completion,
    ) {
        let Completion { token, event } = completion;
        match (Purpose::of(token), event) {
            (purpose, reactor::Event::Op { op, result }) => {
                self.on_op(io, namespaces, token.index, purpose, (op, result));
            }
            (Purpose::Deadline, reactor::Event::Timer(_)) => {
                self.timer = None;
                self.core.on_time(io.now_ns(), &mut self.effects);
                self.carry_out(io, namespaces);
            }
            (_, reactor::Event::Timer(_)) => self.accept(io),
            (purpose, reactor::Event::Rung) => unreachable!("{purpose:?}: no doorbell here"),
        }
    }

    /// Answers a command. A reply for a connection that has gone is dropped.
    ///
    /// Panics if data for a read is not as long as the range, or a command is answered twice.
    pub fn reply(&mut self, io: &mut dyn Driver, reply: Reply) {
        let Reply {
            id,
            status,
            result,
            data,
        } = reply;
        let open = self
            .links
            .get(id.connection as usize)
            .and_then(Option::as_ref);
        if open.is_none_or(|l| l.turn != id.turn) || !self.core.is_open(id.connection) {
            self.counters.replies_dropped += 1;
            return;
        }
        self.counters.commands_failed += u64::from(!status.is_success());
        let len_bytes = self.core.data_bytes(id.connection, id.slot);
        let data = match data {
            ReplyData::Buf(buf) if status.is_success() => {
                let len_bytes = buf.len_bytes();
                self.link_mut(id.connection).held.hold_full(id.slot, buf);
                Outgoing::Slot {
                    slot: id.slot,
                    len_bytes,
                }
            }
            ReplyData::Bytes(mut bytes) if status.is_success() => {
                assert!(
                    bytes.len() <= len_bytes as usize,
                    "more data than was asked for"
                );
                bytes.resize(len_bytes as usize, 0);
                Outgoing::Bytes(bytes)
            }
            ReplyData::None | ReplyData::Buf(_) | ReplyData::Bytes(_) => Outgoing::None,
        };
        let answer = Answer {
            status,
            result,
            data,
        };
        let event = Event::Replied {
            slot: id.slot,
            answer,
        };
        self.core
            .step(io.now_ns(), id.connection, event, &mut self.effects);
        self.carry_out_sends();
    }

    /// Namespaces appeared, went or changed: tells the hosts that asked to be told.
    pub fn namespaces_changed(&mut self, io: &mut dyn Driver) {
        let _ = io;
        self.core.on_namespaces_changed(&mut self.effects);
        self.carry_out_sends();
    }

    /// The turn is over: gives out buffers that came free, and sends what gathered.
    pub fn on_turn_end(&mut self, io: &mut dyn Driver, namespaces: &mut dyn Namespaces) {
        while let Some((waiter, buffer)) = self.buffers.next(io.arena()) {
            self.buffer_ready(io, waiter, buffer);
            self.carry_out(io, namespaces);
            self.pump(io, namespaces, waiter.connection);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for connection in dirty.drain(..) {
            self.send_gathered(io, connection);
        }
        // Those that found no slot for their data are looked at again.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
        if self.core.take_deadlines_changed() {
            if let Some(timer) = self.timer.take() {
                io.disarm(timer);
            }
            let token = self.token(0, Purpose::Deadline);
            self.timer = self.core.deadline_ns().map(|at_ns| io.arm(token, at_ns));
        }
    }

    fn token(&self, connection: u32, purpose: Purpose) -> Token {
        Token {
            room: self.config.room,
            index: connection,
            value: purpose as u64,
        }
    }

    fn link_mut(&mut self, connection: u32) -> &mut Link {
        self.links[connection as usize]
            .as_mut()
            .expect("an open link")
    }

    fn accept(&mut self, io: &mut dyn Driver) {
        let full = self.links.len() - self.free.len() >= CONNECTIONS_MAX;
        if let Some(listener) = self.listener.filter(|_| !self.accepting && !full) {
            self.accepting = true;
            io.submit(self.token(0, Purpose::Accept), Op::Accept { listener });
        }
    }

    fn on_op(
        &mut self,
        io: &mut dyn Driver,
        namespaces: &mut dyn Namespaces,
        connection: u32,
        purpose: Purpose,
        (op, result): (Op, Result<Done, Errno>),
    ) {
        match (purpose, op) {
            (Purpose::Receive, Op::Recv { into, .. }) => {
                let len_bytes = match result {
                    Ok(Done::Bytes(len_bytes)) => len_bytes,
                    Ok(_) | Err(_) => 0,
                };
                let link = self.link_mut(connection);
                if let Some((slot, buffer, filled)) = link.receiver.on_received(into, len_bytes) {
                    link.held.give_back(slot, buffer);
                    if filled > 0 {
                        self.step(io, connection, Event::Payload { len_bytes: filled });
                        self.counters.received_bytes += u64::from(filled);
                        self.carry_out(io, namespaces);
                    }
                }
                if len_bytes == 0 {
                    return self.peer_gone(io, namespaces, connection);
                }
                self.pump(io, namespaces, connection);
            }
            (Purpose::Send, Op::Send { parts, .. }) => {
                let link = self.link_mut(connection);
                link.sender.on_sent(parts);
                if result.is_err() {
                    return self.peer_gone(io, namespaces, connection);
                }
                self.mark(connection);
                self.pump(io, namespaces, connection);
            }
            (Purpose::Close, Op::Close { .. }) => self.closed(io, namespaces, connection),
            (Purpose::Accept, Op::Accept { .. }) => self.accepted(io, result),
            (Purpose::Listener, Op::Close { .. }) => {}
            (purpose, op) => unreachable!("{purpose:?} completed with {op:?}"),
        }
    }

    fn accepted(&mut self, io: &mut dyn Driver, result: Result<Done, Errno>) {
        self.accepting = false;
        match result {
            Ok(Done::Socket { handle, peer }) if !self.stopping => {
                self.open(io, handle, peer);
                self.accept(io);
            }
            Ok(Done::Socket { handle, .. }) => {
                io.submit(
                    self.token(0, Purpose::Listener),
                    Op::Close {
                        handle,
                        reset: true,
                    },
                );
            }
            Ok(_) | Err(Errno::CANCELED) => {}
            Err(errno) => {
                tracing::warn!(%errno, "accept failed");
                io.arm(
                    self.token(0, Purpose::AcceptAgain),
                    io.now_ns() + ACCEPT_RETRY_NS,
                );
            }
        }
    }

    fn open(&mut self, io: &mut dyn Driver, socket: Handle, peer: SocketAddr) {
        let (Some(receiver), Some(page)) = (Receiver::new(io.arena()), sender::page(io.arena()))
        else {
            self.counters.connections_refused += 1;
            io.submit(
                self.token(0, Purpose::Listener),
                Op::Close {
                    handle: socket,
                    reset: true,
                },
            );
            return;
        };
        let connection = self.free.pop().unwrap_or_else(|| {
            self.links.push(None);
            self.turns.push(0);
            index(self.links.len() - 1)
        });
        let turn = self.turns[connection as usize];
        let link = Link::new(socket, peer, turn, receiver, Sender::new(page));
        self.links[connection as usize] = Some(link);
        self.counters.connections_accepted += 1;
        let local = io.local_addr(socket).unwrap_or(peer);
        self.step(io, connection, Event::Opened { local });
        self.receive(io, connection);
    }

    fn step(&mut self, io: &mut dyn Driver, connection: u32, event: Event<'_>) {
        self.core
            .step(io.now_ns(), connection, event, &mut self.effects);
    }

    /// Feeds what is staged to the machine, then receives more if it wants more.
    fn pump(&mut self, io: &mut dyn Driver, namespaces: &mut dyn Namespaces, connection: u32) {
        while self.links[connection as usize]
            .as_ref()
            .is_some_and(|l| !l.closing)
            && self.pump_once(io, connection)
        {
            self.carry_out(io, namespaces);
        }
        self.receive(io, connection);
    }

    /// One event out of staged bytes; false if there are too few.
    fn pump_once(&mut self, io: &mut dyn Driver, connection: u32) -> bool {
        let need = self.core.need(connection);
        let link = self.links[connection as usize]
            .as_mut()
            .expect("an open link");
        let staged = link.receiver.staged();
        let have = staged.len();
        match need {
            Need::Header { len_bytes } if have >= len_bytes as usize => {
                let event = Event::Header(&staged[..len_bytes as usize]);
                self.core
                    .step(io.now_ns(), connection, event, &mut self.effects);
                link.receiver.consume(len_bytes as usize);
            }
            Need::Payload {
                slot,
                offset_bytes,
                len_bytes,
            } if have > 0 => {
                let len = have.min(len_bytes as usize);
                if let Some(slot) = slot {
                    let start = offset_bytes as usize;
                    let buffer = link.held.buffer_mut(slot);
                    buffer.bytes_mut()[start..start + len].copy_from_slice(&staged[..len]);
                }
                link.receiver.consume(len);
                let len_bytes = u32::try_from(len).expect("at most the staging slot");
                self.counters.received_bytes += u64::from(len_bytes);
                self.step(io, connection, Event::Payload { len_bytes });
            }
            Need::Digest {
                slot,
                offset_bytes,
                len_bytes,
            } if have >= 4 => {
                let received = u32::from_le_bytes(staged[..4].try_into().expect("four bytes"));
                link.receiver.consume(4);
                let matches = slot.is_none_or(|slot| {
                    let (start, len) = (offset_bytes as usize, len_bytes as usize);
                    let data = &link.held.buffer_mut(slot).bytes()[start..start + len];
                    digest_matches(received, digest(data))
                });
                self.counters.data_digest_errors += u64::from(!matches);
                self.step(io, connection, Event::Digest { matches });
            }
            Need::Nothing => {
                link.receiver.consume(have);
                return false;
            }
            Need::Header { .. } | Need::Payload { .. } | Need::Digest { .. } | Need::Buffer => {
                return false;
            }
        }
        true
    }

    /// Starts a receive, unless one runs or nothing is to be heard from this host now.
    fn receive(&mut self, io: &mut dyn Driver, connection: u32) {
        let token = self.token(connection, Purpose::Receive);
        let Some(link) = self.links[connection as usize].as_mut() else {
            return;
        };
        if link.closing || link.receiver.is_in_flight() || link.sender.is_full() {
            return;
        }
        let socket = link.socket;
        let op = match self.core.need(connection) {
            Need::Buffer => return,
            Need::Payload {
                slot: Some(slot),
                offset_bytes,
                len_bytes,
            } => {
                let buffer = link.held.lend(slot);
                link.receiver
                    .receive_aimed(socket, slot, buffer, offset_bytes, len_bytes)
            }
            Need::Nothing => link.receiver.receive_staged(socket, false),
            Need::Header { .. } | Need::Payload { slot: None, .. } | Need::Digest { .. } => {
                let busy = self.core.expects_data(connection);
                link.receiver.receive_staged(socket, busy)
            }
        };
        io.submit(token, op);
    }

    /// Remembers that the link has something to send.
    fn mark(&mut self, connection: u32) {
        let link = self.links[connection as usize]
            .as_mut()
            .expect("an open link");
        if !link.dirty {
            link.dirty = true;
            self.dirty.push(connection);
        }
    }

    fn send_gathered(&mut self, io: &mut dyn Driver, connection: u32) {
        let token = self.token(connection, Purpose::Send);
        let Some(link) = self.links[connection as usize].as_mut() else {
            return;
        };
        link.dirty = false;
        if link.closing {
            return;
        }
        let was_idle = link.sender.is_idle();
        match link.sender.gather(io.arena()) {
            Some(parts) => {
                let socket = link.socket;
                let len: u64 = parts.iter().map(|part| u64::from(part.len_bytes())).sum();
                self.counters.sent_bytes += len;
                io.submit(token, Op::Send { socket, parts });
            }
            None if was_idle && link.sender.has_queued() => self.mark(connection),
            None => {}
        }
    }

    fn peer_gone(&mut self, io: &mut dyn Driver, namespaces: &mut dyn Namespaces, on: u32) {
        if self.core.is_open(on) {
            self.step(io, on, Event::PeerGone);
            self.carry_out(io, namespaces);
        } else {
            self.close(io, on, false);
        }
    }

    fn close(&mut self, io: &mut dyn Driver, connection: u32, reset: bool) {
        let token = self.token(connection, Purpose::Close);
        let Some(link) = self.links[connection as usize].as_mut() else {
            return;
        };
        if !link.closing {
            link.closing = true;
            self.buffers.forget(connection);
            io.submit(
                token,
                Op::Close {
                    handle: link.socket,
                    reset,
                },
            );
        }
    }

    fn closed(&mut self, io: &mut dyn Driver, namespaces: &mut dyn Namespaces, connection: u32) {
        self.step(io, connection, Event::Closed);
        self.carry_out(io, namespaces);
        let mut link = self.links[connection as usize]
            .take()
            .expect("an open link");
        self.buffers.grant_ended(link.held.clear());
        let turn = &mut self.turns[connection as usize];
        *turn = turn.wrapping_add(1);
        self.free.push(connection);
        self.accept(io);
    }
}

fn index(connection: usize) -> u32 {
    u32::try_from(connection).expect("connections are few")
}

#[cfg(test)]
mod test;

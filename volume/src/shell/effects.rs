//! Effects out, answers in.

use super::hosted::CopyBuffer;
use super::servers::Link;
use super::{SERVER_TIMER, Ticket, Volumes, is_zero, timer_value, translate};
use crate::api::VolumeEvent;
use crate::core::{
    Answer, Command, CommandId, Effect, Event, Fault, OpId, Outbox, Payload, Position, Timer,
    TraceEvent,
};
use nvmf::initiator::{AssociationId, Failure, InitiatorEvent, Reply, Request};
use reactor::{Driver, Token};
use shardmap::units::{BLOCK_BYTES, Moment, Nsid};

impl Volumes {
    /// Runs one event through a volume's core, and everything that follows from it at once.
    pub(super) fn step(&mut self, io: &mut dyn Driver, slot: u32, event: Event) {
        self.work.push_back((slot, self.turn(slot), event));
        while let Some((slot, turn, event)) = self.work.pop_front() {
            let Some(hosted) = self.hosted(slot, turn) else {
                continue;
            };
            let mut out = Outbox::default();
            hosted.core.step(Moment(io.now_ns()), event, &mut out);
            out.drain()
                .for_each(|effect| self.carry_out(io, (slot, turn), effect));
            self.say_farewell(io, slot, turn);
        }
    }

    fn carry_out(&mut self, io: &mut dyn Driver, (slot, turn): (u32, u32), effect: Effect) {
        let events = &mut self.events;
        let hosted = self.slots[slot as usize]
            .hosted
            .as_mut()
            .expect("its core just spoke");
        match effect {
            Effect::Connect(at) => self.want(io, slot, turn, at),
            Effect::Send { command, to, what } => self.send(io, (slot, turn), command, to, what),
            Effect::Complete { op, result } => hosted.complete(op, result, events),
            Effect::Found { op, found } => hosted.found(op, found),
            Effect::DropCopy(copy) => {
                if let Some(CopyBuffer::Away(dropped)) = hosted.copies.get_mut(&copy) {
                    *dropped = true;
                } else {
                    hosted.copies.remove(&copy);
                }
            }
            Effect::Arm { timer, at } => self.arm(io, slot, timer, at),
            Effect::Trace(what) => self.on_trace(slot, what),
            Effect::AskMetad { .. }
            | Effect::AskVerify { .. }
            | Effect::Remember(_)
            | Effect::Attached
            | Effect::AttachFailed(_)
            | Effect::Detached
            | Effect::Failed(_)
            | Effect::Snapshot(..)
            | Effect::Progress(_) => hosted.tell(effect, events),
        }
    }

    fn arm(&mut self, io: &mut dyn Driver, slot: u32, timer: Timer, at: Moment) {
        let token = Token {
            room: self.config.room,
            index: slot,
            value: timer_value(timer),
        };
        let armed = io.arm(token, at.0);
        let hosted = self.slots[slot as usize].hosted.as_mut();
        let hosted = hosted.expect("its core just spoke");
        if let Some(earlier) = hosted.timers.insert(timer, armed) {
            io.disarm(earlier);
        }
    }

    fn on_trace(&mut self, slot: u32, mut what: TraceEvent) {
        let hosted = self.slots[slot as usize]
            .hosted
            .as_mut()
            .expect("its core just spoke");
        let volume = hosted.volume;
        if let TraceEvent::Sent(facts) | TraceEvent::Heard(facts) = &mut what {
            let call = facts.request.map(|op| &hosted.calls[&OpId(op)]);
            facts.request = call.map(|call| call.id);
            return self.events.push(VolumeEvent::Transition { volume, what });
        }
        tracing::info!(%volume, ?what, "transition");
        if let TraceEvent::Propose { .. } = what {
            hosted.counters.degrades += 1;
        }
        if let TraceEvent::Resilvered(record) = what {
            hosted.counters.resilvered_bytes += record.bytes_moved;
            self.events.push(VolumeEvent::Resilvered { volume, record });
        }
        self.events.push(VolumeEvent::Transition { volume, what });
    }

    /// A volume wants a path to one of its stores.
    fn want(&mut self, io: &mut dyn Driver, slot: u32, turn: u32, at: Position) {
        let hosted = self.slots[slot as usize]
            .hosted
            .as_ref()
            .expect("its core just spoke");
        let server = &mut self.servers[hosted.slices[at.index()].0];
        server.wanted_by.insert((slot, at));
        match server.link {
            Link::Ready(_) => self.work.push_back((slot, turn, Event::PathUp(at))),
            Link::Down => server.connect(io, &mut self.initiator),
            Link::Waiting(_) | Link::Connecting(_) => {}
        }
    }

    fn send(
        &mut self,
        io: &mut dyn Driver,
        (slot, turn): (u32, u32),
        command: CommandId,
        to: Position,
        what: Command,
    ) {
        let hosted = self.slots[slot as usize].hosted.as_mut();
        let hosted = hosted.expect("its core just spoke");
        let (server, Nsid(nsid)) = hosted.slices[to.index()];
        let request = if let Command::Read {
            range,
            into,
            generation,
        } = &what
        {
            let (slba, blocks, tag) = (range.start().0, range.blocks().0, generation.0);
            match into {
                Payload::Host { op, first_block } => {
                    let call = hosted.calls.get_mut(op).expect("being read");
                    let into = call.buffer.lend(*first_block, blocks);
                    Request::Read {
                        nsid,
                        slba,
                        blocks,
                        into,
                        tag,
                    }
                }
                Payload::Copy(copy) => {
                    hosted.copies.insert(*copy, CopyBuffer::Away(false));
                    let read = (*copy, *range, *generation);
                    self.starved.push_back((slot, turn, command, to, read));
                    return self.feed_starved(io);
                }
            }
        } else if let Command::Write {
            range,
            from,
            fua,
            generation,
        } = &what
        {
            let (slba, blocks, tag) = (range.start().0, range.blocks().0, generation.0);
            let data = hosted.write_data(from, blocks);
            Request::Write {
                nsid,
                slba,
                blocks,
                fua: *fua,
                data,
                tag,
            }
        } else {
            translate::request(nsid, &hosted.credentials, &what)
        };
        if matches!(request, Request::Vendor { .. }) {
            hosted.counters.admin_commands += 1;
        }
        self.submit_request(
            io,
            server,
            Ticket {
                slot,
                turn,
                command,
                what,
            },
            request,
        );
    }

    fn submit_request(
        &mut self,
        io: &mut dyn Driver,
        server: usize,
        ticket: Ticket,
        request: Request,
    ) {
        let user = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(user, ticket);
        self.servers[server].submit(io, &mut self.initiator, user, request);
    }

    /// Starts copy reads as far as the arena has memory. They wait in order.
    pub(super) fn feed_starved(&mut self, io: &mut dyn Driver) {
        while let Some((slot, turn, command, to, read)) = self.starved.front().copied() {
            let (copy, range, generation) = read;
            let Some(hosted) = self.hosted(slot, turn) else {
                self.starved.pop_front();
                continue;
            };
            let (server, nsid) = hosted.slices[to.index()];
            if !matches!(self.servers[server].link, Link::Ready(_)) {
                self.starved.pop_front(); // the path's loss has ended the command
                continue;
            }
            let len_bytes = range.blocks().0 * BLOCK_BYTES;
            let Some(into) = io.arena().take(len_bytes) else {
                return;
            };
            self.starved.pop_front();
            let (slba, blocks) = (range.start().0, range.blocks().0);
            let request = Request::Read {
                nsid: nsid.0,
                slba,
                blocks,
                into,
                tag: generation.0,
            };
            let what = Command::Read {
                range,
                into: Payload::Copy(copy),
                generation,
            };
            self.submit_request(
                io,
                server,
                Ticket {
                    slot,
                    turn,
                    command,
                    what,
                },
                request,
            );
        }
    }

    pub(super) fn on_initiator(&mut self, io: &mut dyn Driver, event: InitiatorEvent) {
        match event {
            InitiatorEvent::Ready { association, .. } => {
                let Some(index) = self.server_by(association) else {
                    return;
                };
                let server = &mut self.servers[index];
                server.on_ready(association);
                let wanted: Vec<_> = server.wanted_by.iter().copied().collect();
                for (slot, at) in wanted {
                    self.step(io, slot, Event::PathUp(at));
                }
                self.let_go_if_unwanted(io, index);
            }
            InitiatorEvent::Done {
                user,
                request,
                result,
                ..
            } => {
                self.on_request_done(io, user, request, result);
            }
            InitiatorEvent::Lost { association, .. } => self.on_lost(io, association),
            InitiatorEvent::NamespacesChanged { .. } => {} // sessions say what we need to know
        }
    }

    fn server_by(&self, association: AssociationId) -> Option<usize> {
        self.servers
            .iter()
            .position(|s| s.association() == Some(association))
    }

    fn on_lost(&mut self, io: &mut dyn Driver, association: AssociationId) {
        let Some(index) = self.server_by(association) else {
            return;
        };
        let server = &mut self.servers[index];
        let was_ready = matches!(server.link, Link::Ready(_));
        server.link = Link::Down;
        for (user, request) in server.take_waiting() {
            self.on_request_done(io, user, request, Err(Failure::ConnectionLost));
        }
        if was_ready {
            let lost: Vec<_> = self.servers[index].wanted_by.iter().copied().collect();
            for (slot, at) in lost {
                self.forget_starved(slot, at);
                self.step(io, slot, Event::PathLost(at));
            }
        }
        let server = &mut self.servers[index];
        if !server.wanted_by.is_empty() && server.link == Link::Down {
            let token = Token {
                room: self.config.room,
                index: u32::try_from(index).expect("few servers"),
                value: SERVER_TIMER,
            };
            let spread = self.config.seed.wrapping_add(io.now_ns() / 1_000);
            server.connect_later(io, token, spread);
        }
    }

    fn forget_starved(&mut self, slot: u32, at: Position) {
        self.starved
            .retain(|(s, _, _, to, _)| (*s, *to) != (slot, at));
    }

    fn on_request_done(
        &mut self,
        io: &mut dyn Driver,
        user: u64,
        request: Request,
        result: Result<Reply, Failure>,
    ) {
        let ticket = self
            .tickets
            .remove(&user)
            .expect("every request comes back once");
        let Ticket {
            slot,
            turn,
            command,
            what,
        } = ticket;
        if self.hosted(slot, turn).is_none() {
            return; // the volume is gone; the buffers go with the request
        }
        let read = self.take_home((slot, turn), &what, request, result.is_ok());
        let result = match result {
            Err(Failure::ConnectionLost) => {
                self.say_farewell(io, slot, turn);
                return; // covered by the loss of the path
            }
            Err(Failure::Status(status)) => Err(translate::fault(status)),
            Ok(reply) => read.unwrap_or_else(|| translate::answer(&what, &reply)),
        };
        self.step(io, slot, Event::Done { command, result });
    }

    /// Puts a request's buffer back where it belongs; what a read of a copy found.
    fn take_home(
        &mut self,
        (slot, turn): (u32, u32),
        what: &Command,
        request: Request,
        ok: bool,
    ) -> Option<Result<Answer, Fault>> {
        let (Command::Read { into, .. }, Request::Read { into: buffer, .. }) = (what, request)
        else {
            return None;
        };
        let slot = self
            .slots
            .get_mut(slot as usize)
            .filter(|s| s.turn == turn)?;
        let hosted = slot.hosted.as_mut()?;
        match into {
            Payload::Host { op, first_block } => {
                let call = hosted
                    .calls
                    .get_mut(op)
                    .expect("told only once its buffer is home");
                call.buffer.give_back(*first_block, buffer);
                if !ok {
                    hosted.counters.read_failovers += 1;
                }
                hosted.tell_if_home(*op, &mut self.events);
                None
            }
            Payload::Copy(copy) => {
                let dropped = matches!(hosted.copies.get(copy), Some(CopyBuffer::Away(true)));
                if dropped || !ok {
                    hosted.copies.remove(copy);
                    return Some(Ok(Answer::Copied { all_zero: false }));
                }
                let data = buffer.freeze();
                let all_zero = is_zero(data.bytes());
                hosted.copies.insert(*copy, CopyBuffer::Home(data));
                Some(Ok(Answer::Copied { all_zero }))
            }
        }
    }

    /// Forgets a volume whose core has ended, once all its host requests are told.
    fn say_farewell(&mut self, io: &mut dyn Driver, slot: u32, turn: u32) {
        let ready = |h: &mut super::Hosted| h.farewell.is_some() && h.calls.is_empty();
        if !self.hosted(slot, turn).is_some_and(ready) {
            return;
        }
        let place = &mut self.slots[slot as usize];
        let hosted = place.hosted.take().expect("just seen");
        place.turn = place.turn.wrapping_add(1);
        self.by_id.remove(&hosted.volume);
        hosted.timers.values().for_each(|timer| io.disarm(*timer));
        for (index, (server, _)) in hosted.slices.iter().enumerate() {
            self.servers[*server]
                .wanted_by
                .remove(&(slot, Position::new(index)));
            self.let_go_if_unwanted(io, *server);
        }
        tracing::info!(volume = %hosted.volume, "let go");
        self.events.extend(hosted.farewell);
    }

    /// No volume uses the server any more.
    fn let_go_if_unwanted(&mut self, io: &mut dyn Driver, index: usize) {
        let server = &mut self.servers[index];
        if !server.wanted_by.is_empty() {
            return;
        }
        match server.link {
            Link::Connecting(id) | Link::Ready(id) => self.initiator.abort(io, id),
            Link::Waiting(timer) => {
                io.disarm(timer);
                server.link = Link::Down;
            }
            Link::Down => {}
        }
    }
}

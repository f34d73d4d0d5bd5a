//! Effects of the machine become ops, questions and commands.

use super::buffers::Waiter;
use super::command::kind_of;
use super::sender::Payload;
use super::{Command, CommandId, Namespaces, Target};
use crate::proto::controller::{
    Answer, AssociationId, BufferUse, CloseReason, Effect, Event, Inquiry, Outgoing,
};
use crate::proto::fabrics::{ConnectData, nqn};
use crate::proto::identify::{IDENTIFY_BYTES, IdentifyNamespace, active_list, descriptors};
use crate::proto::pdu::{Fatal, Header};
use crate::proto::status::Status;
use reactor::{BufMut, Driver};
use zerocopy::{FromBytes, IntoBytes};

impl Target {
    /// Carries out effects, and those that come of them, until none is left.
    pub(super) fn carry_out(&mut self, io: &mut dyn Driver, namespaces: &mut dyn Namespaces) {
        while !self.effects.is_empty() {
            let spare = std::mem::take(&mut self.effects_spare);
            let mut batch = std::mem::replace(&mut self.effects, spare);
            for effect in batch.drain(..) {
                self.carry_out_one(io, namespaces, effect);
            }
            self.effects_spare = batch;
        }
    }

    /// Carries out the effects of an answer, which are sends.
    pub(super) fn carry_out_sends(&mut self) {
        let mut batch = std::mem::take(&mut self.effects);
        for effect in batch.drain(..) {
            let Effect::Send {
                connection,
                pdu,
                data,
            } = effect
            else {
                unreachable!("an answer leads to {effect:?}");
            };
            self.send(connection, pdu, data);
        }
        self.effects = batch;
    }

    fn carry_out_one(
        &mut self,
        io: &mut dyn Driver,
        namespaces: &mut dyn Namespaces,
        effect: Effect,
    ) {
        match effect {
            Effect::Send {
                connection,
                pdu,
                data,
            } => self.send(connection, pdu, data),
            Effect::Terminate {
                connection,
                bytes,
                fatal,
            } => {
                self.terminate(connection, bytes, fatal);
            }
            Effect::TakeBuffer {
                connection,
                slot,
                len_bytes,
                purpose,
            } => {
                let turn = self.link_mut(connection).turn;
                self.take_buffer(
                    io,
                    Waiter {
                        connection,
                        turn,
                        slot,
                        len_bytes,
                        purpose,
                    },
                );
            }
            Effect::ReleaseBuffer { connection, slot } => {
                drop(self.buffer_of(connection, slot));
            }
            Effect::Inspect { .. } | Effect::Inquire { .. } | Effect::Admit { .. } => {
                self.ask_backend(io, namespaces, effect);
            }
            Effect::Close {
                connection,
                reset,
                why,
            } => {
                self.close_because(io, connection, reset, why);
            }
            Effect::Began { association } => self.began(namespaces, association),
            Effect::Gone {
                association,
                host_nqn,
                why,
            } => {
                let id = association.0;
                tracing::info!(association = id, host = %host_nqn, ?why, "association gone");
                namespaces.on_association_gone(io, association);
            }
        }
    }

    fn ask_backend(
        &mut self,
        io: &mut dyn Driver,
        namespaces: &mut dyn Namespaces,
        effect: Effect,
    ) {
        match effect {
            Effect::Inspect { connection, slot } => {
                self.inspect(io, namespaces, connection, slot);
            }
            Effect::Inquire {
                connection,
                slot,
                inquiry,
                nsid,
                len_bytes_max,
            } => {
                let host = self
                    .core
                    .host_of(connection)
                    .expect("inquiries need an association");
                let answer = inquire(namespaces, host, inquiry, nsid, len_bytes_max);
                self.step(io, connection, Event::Replied { slot, answer });
            }
            Effect::Admit {
                connection,
                slot,
                association,
                work,
                sqe,
                len_bytes,
            } => {
                let buffer = self.buffer_of(connection, slot);
                let id = CommandId {
                    connection,
                    turn: self.link_mut(connection).turn,
                    slot,
                };
                let kind = kind_of(work, &sqe, buffer, len_bytes);
                let nsid = sqe.nsid.get();
                self.counters.commands_admitted += 1;
                namespaces.admit(
                    io,
                    Command {
                        id,
                        association,
                        nsid,
                        kind,
                    },
                );
            }
            Effect::Send { .. }
            | Effect::Terminate { .. }
            | Effect::TakeBuffer { .. }
            | Effect::ReleaseBuffer { .. }
            | Effect::Close { .. }
            | Effect::Began { .. }
            | Effect::Gone { .. } => unreachable!("the backend has no part in {effect:?}"),
        }
    }

    fn take_buffer(&mut self, io: &mut dyn Driver, waiter: Waiter) {
        match self.buffers.take(io.arena(), waiter) {
            Some(buffer) => self.buffer_ready(io, waiter, buffer),
            None => self.counters.buffer_waits += 1,
        }
    }

    fn close_because(&mut self, io: &mut dyn Driver, on: u32, reset: bool, why: CloseReason) {
        if why != CloseReason::PeerGone {
            let peer = self.link_mut(on).peer;
            tracing::info!(%peer, ?why, "connection closed");
        }
        self.close(io, on, reset);
    }

    fn terminate(&mut self, connection: u32, bytes: Vec<u8>, fatal: Fatal) {
        self.counters.count_breach(fatal);
        let link = self.link_mut(connection);
        link.sender.push_raw(bytes);
        tracing::info!(peer = %link.peer, %fatal, "connection terminated");
        self.mark(connection);
    }

    fn began(&mut self, namespaces: &mut dyn Namespaces, association: AssociationId) {
        self.counters.associations_begun += 1;
        let host = self.core.host_nqn(association).unwrap_or_default();
        tracing::info!(association = association.0, %host, "association begun");
        namespaces.on_association(association, host);
    }

    fn send(&mut self, connection: u32, pdu: Header, data: Outgoing) {
        let framing = self.core.framing(connection);
        let link = self.link_mut(connection);
        if link.closing {
            return;
        }
        let payload = match data {
            Outgoing::None => Payload::None,
            Outgoing::Bytes(bytes) => Payload::Bytes(bytes),
            Outgoing::Slot { slot, .. } => Payload::Buf(link.held.take_full(slot)),
        };
        link.sender.push(pdu, framing, payload);
        self.mark(connection);
    }

    /// Gives a command its buffer, unless its connection went meanwhile.
    pub(super) fn buffer_ready(&mut self, io: &mut dyn Driver, waiter: Waiter, buffer: BufMut) {
        let Waiter {
            connection,
            turn,
            slot,
            len_bytes,
            purpose,
        } = waiter;
        let granted = purpose == BufferUse::R2t;
        let alive = self.links[connection as usize]
            .as_ref()
            .is_some_and(|l| l.turn == turn);
        if !alive || !self.core.is_open(connection) {
            if granted {
                self.buffers.grant_ended(len_bytes);
            }
            return;
        }
        self.link_mut(connection)
            .held
            .hold_empty(slot, buffer, granted);
        self.step(io, connection, Event::BufferReady { slot });
    }

    /// The command's buffer, if it has one; its grant ends.
    fn buffer_of(&mut self, connection: u32, slot: u16) -> Option<BufMut> {
        let (buffer, granted) = self.link_mut(connection).held.take_empty(slot)?;
        if granted {
            self.buffers.grant_ended(buffer.len_bytes());
        }
        Some(buffer)
    }

    fn inspect(
        &mut self,
        io: &mut dyn Driver,
        namespaces: &mut dyn Namespaces,
        connection: u32,
        slot: u16,
    ) {
        let buffer = self.buffer_of(connection, slot).expect("Connect has data");
        let host_allowed = ConnectData::ref_from_bytes(buffer.bytes())
            .ok()
            .and_then(|data| nqn(&data.hostnqn))
            .is_some_and(|host| namespaces.admits_host(host));
        let event = Event::ConnectData {
            slot,
            data: buffer.bytes(),
            host_allowed,
        };
        self.step(io, connection, event);
    }
}

/// Answers from what the backend knows.
fn inquire(
    namespaces: &mut dyn Namespaces,
    host: &str,
    inquiry: Inquiry,
    nsid: u32,
    len_bytes_max: u32,
) -> Answer {
    let visible = namespaces.list(host);
    let facts = || {
        visible
            .contains(&nsid)
            .then(|| namespaces.identify(nsid))
            .flatten()
    };
    let data = match inquiry {
        Inquiry::List { above } => Some(active_list(&visible, above)),
        // An inactive namespace is all zero, not an error.
        Inquiry::Namespace => Some(facts().map_or_else(
            || vec![0; IDENTIFY_BYTES as usize],
            |facts| IdentifyNamespace::new(&facts).as_bytes().to_vec(),
        )),
        Inquiry::Descriptors => facts().map(|facts| descriptors(&facts)),
    };
    data.map_or(Status::INVALID_NAMESPACE.into(), |mut data| {
        data.truncate(len_bytes_max as usize);
        Answer::data(Outgoing::Bytes(data))
    })
}

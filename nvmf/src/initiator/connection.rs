//! One of an association's two connections: its socket, its halves, and whose data it moves.

use super::receiver::{Expect, Incoming, Receiver};
use super::request::Request;
use super::sender::Sender;
use crate::proto::host::QueueId;
use crate::proto::pdu::digest;
use reactor::{Buf, BufMut, Handle, OpId};

/// ```text
/// Unopened ─► Opening ─► Open ─► (Terminating) ─► Closing ─► Closed
///     └───────────┴───────────────────────────────────────────▲
/// ```
#[derive(Clone, Copy, Debug)]
pub(super) enum Socket {
    Unopened,
    Opening(OpId),
    Open(Handle),
    /// A terminate request is leaving; then it closes.
    Terminating(Handle),
    Closing,
    Closed,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: Socket,
    /// Present from `Open` on.
    pub(super) halves: Option<(Sender, Receiver)>,
    /// By slot index.
    pub(super) pending: Vec<Option<Pending>>,
    /// Data of admin commands, by slot index.
    pub(super) collected: Vec<Vec<u8>>,
}

/// A command in flight.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) user: u64,
    pub(super) request: Request,
    /// Its data, where the request itself holds none in the arena.
    pub(super) staged: Option<Buf>,
}

impl Pending {
    /// A stretch of the data to be sent.
    pub(super) fn window(&self, start_bytes: u32, len_bytes: u32) -> Buf {
        match (&self.staged, &self.request) {
            (Some(staged), _) => staged.slice(start_bytes, len_bytes),
            (None, Request::Write { data, .. }) => data.slice(start_bytes, len_bytes),
            (None, request) => unreachable!("initiator: {request:?} has no data to send"),
        }
    }
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            socket: Socket::Unopened,
            halves: None,
            pending: Vec::new(),
            collected: Vec::new(),
        }
    }

    pub(super) fn sender(&mut self) -> &mut Sender {
        &mut self.halves.as_mut().expect("initiator: not open").0
    }

    pub(super) fn receiver(&mut self) -> &mut Receiver {
        &mut self.halves.as_mut().expect("initiator: not open").1
    }

    /// Takes note of payload that is due.
    pub(super) fn expect(&mut self, incoming: Incoming) {
        if incoming.slot.queue == QueueId::Admin {
            let index = usize::from(incoming.slot.index);
            if self.collected.len() <= index {
                self.collected.resize_with(index + 1, Vec::new);
            }
            if incoming.start_bytes == 0 {
                self.collected[index].clear();
            }
        }
        self.receiver().expect = Expect::Data(incoming);
    }

    /// Windows for the next receive: what is left of the payload that is due, then staging.
    pub(super) fn lend(&mut self) -> (BufMut, Option<BufMut>) {
        let free = self.receiver().lend();
        match self.receiver().expect {
            Expect::Data(incoming) if incoming.slot.queue == QueueId::Io => {
                let window = read_window(&mut self.pending, incoming.slot.index);
                let head = window.split_to(incoming.at_bytes());
                let direct = window.split_to(incoming.left_bytes());
                self.receiver().direct_head = Some(head);
                (direct, Some(free))
            }
            Expect::Data(_) | Expect::Digest(_) | Expect::Header => (free, None),
        }
    }

    /// Joins the windows of a receive that ended with what they were cut from.
    pub(super) fn give_back(&mut self, into: (BufMut, Option<BufMut>), bytes: u32) {
        let (free, direct) = match into {
            (free, None) => (free, None),
            (direct, Some(free)) => (free, Some(direct)),
        };
        let receiver = self.receiver();
        let direct_bytes = direct.as_ref().map_or(0, BufMut::len_bytes).min(bytes);
        receiver.take_back(free, bytes - direct_bytes);
        let Some(direct) = direct else { return };
        let head = receiver.direct_head.take();
        let mut whole = head.expect("initiator: head of a direct receive");
        whole.join(direct);
        let Expect::Data(incoming) = &mut receiver.expect else {
            unreachable!("initiator: direct receive without data due");
        };
        incoming.got_bytes += direct_bytes;
        let index = incoming.slot.index;
        // The request kept what follows the window: [head | direct | rest] again.
        let into = read_window(&mut self.pending, index);
        std::mem::swap(into, &mut whole);
        into.join(whole);
    }

    /// Moves payload from staging to where it belongs.
    pub(super) fn move_data(&mut self, incoming: &Incoming, take: u32) {
        let (_, receiver) = self.halves.as_mut().expect("initiator: not open");
        let bytes = &receiver.unparsed()[..take as usize];
        let index = incoming.slot.index;
        match incoming.slot.queue {
            QueueId::Admin => self.collected[usize::from(index)].extend_from_slice(bytes),
            QueueId::Io => {
                let at = incoming.at_bytes() as usize;
                let into = read_window(&mut self.pending, index);
                into.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        receiver.consume(take);
    }

    /// Digest over the payload of one PDU.
    pub(super) fn data_digest(&mut self, incoming: &Incoming) -> u32 {
        let start = incoming.start_bytes as usize;
        let range = start..start + incoming.len_bytes as usize;
        let index = incoming.slot.index;
        match incoming.slot.queue {
            QueueId::Admin => digest(&self.collected[usize::from(index)][range]),
            QueueId::Io => digest(&read_window(&mut self.pending, index).bytes()[range]),
        }
    }
}

/// The caller's window of a read in flight.
fn read_window(pending: &mut [Option<Pending>], index: u16) -> &mut BufMut {
    let pending = pending[usize::from(index)].as_mut();
    match pending.map(|pending| &mut pending.request) {
        Some(Request::Read { into, .. }) => into,
        other => unreachable!("initiator: data for {other:?}"),
    }
}

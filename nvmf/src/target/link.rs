//! One connection's IO state.

use super::receiver::Receiver;
use super::sender::Sender;
use reactor::{Buf, BufMut, Handle};
use std::net::SocketAddr;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) socket: Handle,
    pub(super) peer: SocketAddr,
    /// How often the number was used before.
    pub(super) turn: u32,
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
    pub(super) held: HeldBuffers,
    /// In the list of links to be looked at when the turn ends.
    pub(super) dirty: bool,
    /// `Op::Close` is submitted.
    pub(super) closing: bool,
}

/// The buffer of a command slot.
#[derive(Debug)]
enum Held {
    Nothing,
    /// To be received or read into. `granted`: counted as asked for by R2T.
    Empty {
        buffer: BufMut,
        granted: bool,
    },
    /// Away in a receive.
    Away {
        granted: bool,
    },
    /// Data for the host.
    Full(Buf),
}

/// The buffers of a connection's commands, by slot.
#[derive(Debug, Default)]
pub(super) struct HeldBuffers(Vec<Held>);

impl HeldBuffers {
    /// The slot's buffer, to be received or read into.
    pub(super) fn hold_empty(&mut self, slot: u16, buffer: BufMut, granted: bool) {
        let before = self.swap(slot, Held::Empty { buffer, granted });
        assert!(
            matches!(before, Held::Nothing),
            "slot {slot} held {before:?}"
        );
    }

    /// The slot's answer.
    pub(super) fn hold_full(&mut self, slot: u16, buf: Buf) {
        let before = self.swap(slot, Held::Full(buf));
        assert!(
            matches!(before, Held::Nothing),
            "slot {slot} held {before:?}"
        );
    }

    /// Takes the answer out.
    pub(super) fn take_full(&mut self, slot: u16) -> Buf {
        let held = self.swap(slot, Held::Nothing);
        let Held::Full(buf) = held else {
            panic!("slot {slot} held {held:?}")
        };
        buf
    }

    /// Takes the buffer out, if there is one; whether it was granted.
    pub(super) fn take_empty(&mut self, slot: u16) -> Option<(BufMut, bool)> {
        match self.swap(slot, Held::Nothing) {
            Held::Empty { buffer, granted } => Some((buffer, granted)),
            Held::Nothing | Held::Full(_) => None,
            Held::Away { .. } => panic!("slot {slot} is being received into"),
        }
    }

    /// The buffer that payload is copied into. Panics if it is not at home.
    pub(super) fn buffer_mut(&mut self, slot: u16) -> &mut BufMut {
        let held = &mut self.0[usize::from(slot)];
        let Held::Empty { buffer, .. } = held else {
            panic!("slot {slot} held {held:?}")
        };
        buffer
    }

    /// Lends the buffer to a receive.
    pub(super) fn lend(&mut self, slot: u16) -> BufMut {
        let (buffer, granted) = self.take_empty(slot).expect("payload has a buffer");
        self.swap(slot, Held::Away { granted });
        buffer
    }

    /// The receive gave it back.
    pub(super) fn give_back(&mut self, slot: u16, buffer: BufMut) {
        let held = self.swap(slot, Held::Nothing);
        let Held::Away { granted } = held else {
            panic!("slot {slot} held {held:?}")
        };
        self.hold_empty(slot, buffer, granted);
    }

    /// Drops everything; returns the length of what was granted. No receive may be in flight.
    pub(super) fn clear(&mut self) -> u32 {
        let granted = |held: Held| match held {
            Held::Empty {
                buffer,
                granted: true,
            } => buffer.len_bytes(),
            Held::Empty { .. } | Held::Nothing | Held::Full(_) => 0,
            Held::Away { .. } => panic!("cleared during a receive"),
        };
        self.0.drain(..).map(granted).sum()
    }

    fn swap(&mut self, slot: u16, held: Held) -> Held {
        let index = usize::from(slot);
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || Held::Nothing);
        }
        std::mem::replace(&mut self.0[index], held)
    }
}

impl Link {
    pub(super) fn new(
        socket: Handle,
        peer: SocketAddr,
        turn: u32,
        receiver: Receiver,
        sender: Sender,
    ) -> Self {
        let held = HeldBuffers::default();
        Self {
            socket,
            peer,
            turn,
            receiver,
            sender,
            held,
            dirty: false,
            closing: false,
        }
    }
}

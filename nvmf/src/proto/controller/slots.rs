//! Command slots of one connection. A slot is found by its own index (TTAG), never by cid.

use super::super::sqe::Sqe;

/// What a command is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// A buffer, to receive in-capsule data or to ask for data, or to read into.
    Buffer,
    /// Its in-capsule data.
    Capsule,
    /// Data asked for by R2T.
    Data,
    /// The backend.
    Reply,
    /// An event to tell of.
    Event,
}

/// What is to be done once the data is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Connect.
    Connect,
    /// A command of the backend.
    Work(super::Work),
    /// A question to the backend.
    Inquire(super::Inquiry),
    /// Everything else: answered without data from the host and without the backend.
    Here,
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) waiting: Waiting,
    pub(super) plan: Plan,
    pub(super) sqe: Sqe,
    /// Data length the SGL states.
    pub(super) len_bytes: u32,
    /// Data received so far.
    pub(super) received_bytes: u32,
    /// Some of its data had a wrong digest.
    pub(super) damaged: bool,
}

#[derive(Debug)]
pub(super) struct Slots {
    entries: Vec<Option<Slot>>,
    free: Vec<u16>,
    awaiting_data: u16,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        Self {
            entries: vec![None; usize::from(count)],
            free: (0..count).rev().collect(),
            awaiting_data: 0,
        }
    }

    /// More slots; those in use keep their index.
    pub(super) fn grow(&mut self, count: u16) {
        let before = u16::try_from(self.entries.len()).expect("grown from a u16");
        self.entries.resize(usize::from(count.max(before)), None);
        self.free.splice(0..0, (before..count).rev());
    }

    /// `None`: the host has more commands outstanding than its queue has entries.
    pub(super) fn insert(&mut self, slot: Slot) -> Option<u16> {
        let index = self.free.pop()?;
        assert!(self.entries[usize::from(index)].replace(slot).is_none());
        Some(index)
    }

    pub(super) fn get(&self, index: u16) -> Option<&Slot> {
        self.entries.get(usize::from(index))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, index: u16) -> Option<&mut Slot> {
        self.entries.get_mut(usize::from(index))?.as_mut()
    }

    pub(super) fn set_waiting(&mut self, index: u16, waiting: Waiting) {
        let slot = self.entries[usize::from(index)]
            .as_mut()
            .expect("a slot in use");
        self.awaiting_data -= u16::from(slot.waiting == Waiting::Data);
        self.awaiting_data += u16::from(waiting == Waiting::Data);
        slot.waiting = waiting;
    }

    pub(super) fn remove(&mut self, index: u16) -> Slot {
        let slot = self.entries[usize::from(index)]
            .take()
            .expect("a slot in use");
        self.awaiting_data -= u16::from(slot.waiting == Waiting::Data);
        self.free.push(index);
        slot
    }

    /// Commands whose data the host was asked for.
    pub(super) fn awaiting_data(&self) -> u16 {
        self.awaiting_data
    }
}

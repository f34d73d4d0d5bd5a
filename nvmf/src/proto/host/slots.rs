//! Commands in flight of one queue, found by cid.
//!
//! cid = turn << 8 | index: a response to an earlier use of a slot is told from one to this use.
//! Turn FFh is never used, so no cid is FFFFh (which error logs reserve).

use super::Transfer;

/// Why a command is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The caller's.
    User,
    /// A step of the set-up.
    Setup,
    /// Keep Alive.
    KeepAlive,
    /// Asynchronous Event Request.
    AsyncEvent,
    /// Reading the changed-namespaces log, which re-arms its event.
    ChangedLog,
}

/// A command in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) purpose: Purpose,
    pub(super) opcode: u8,
    pub(super) transfer: Transfer,
    /// Data went in the capsule.
    pub(super) inline: bool,
    /// Data received, or asked for by R2T.
    pub(super) moved_bytes: u32,
    /// C2HData with LAST came.
    pub(super) last_seen: bool,
    /// A data digest was wrong.
    pub(super) corrupt: bool,
    pub(super) deadline_ns: u64,
}

#[derive(Debug)]
struct Slot {
    turn: u8,
    command: Option<InFlight>,
}

/// The table. Sized once.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
}

impl Slots {
    pub(super) fn new(depth: u16) -> Self {
        assert!((1..=super::QUEUE_DEPTH_MAX).contains(&depth));
        Self {
            slots: (0..depth)
                .map(|_| Slot {
                    turn: 0,
                    command: None,
                })
                .collect(),
            free: (0..depth).rev().collect(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot. Panics if there is none: callers ask first.
    pub(super) fn insert(&mut self, command: InFlight) -> (u16, u16) {
        let index = self.free.pop().expect("host: no free command slot");
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.command.replace(command).is_none());
        (index, u16::from(slot.turn) << 8 | index)
    }

    /// The slot this cid means now, if it is in flight.
    pub(super) fn find(&self, cid: u16) -> Option<u16> {
        let [index, turn] = cid.to_le_bytes();
        let slot = self.slots.get(usize::from(index))?;
        (slot.turn == turn && slot.command.is_some()).then_some(u16::from(index))
    }

    pub(super) fn get(&mut self, index: u16) -> &mut InFlight {
        self.slots[usize::from(index)]
            .command
            .as_mut()
            .expect("host: slot is empty")
    }

    pub(super) fn remove(&mut self, index: u16) -> InFlight {
        let slot = &mut self.slots[usize::from(index)];
        let command = slot.command.take().expect("host: slot is empty");
        slot.turn = (slot.turn + 1) % 0xff;
        self.free.push(index);
        command
    }

    fn iter(&self) -> impl Iterator<Item = &InFlight> {
        self.slots.iter().filter_map(|slot| slot.command.as_ref())
    }

    /// The earliest deadline, `u64::MAX` if there is none.
    pub(super) fn deadline_ns(&self) -> u64 {
        self.iter()
            .map(|command| command.deadline_ns)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Opcode of a command whose deadline has passed.
    pub(super) fn overdue(&self, now_ns: u64) -> Option<u8> {
        self.iter()
            .find(|command| command.deadline_ns <= now_ns)
            .map(|command| command.opcode)
    }

    /// Whether a command of this kind is in flight.
    pub(super) fn contains(&self, purpose: Purpose) -> bool {
        self.iter().any(|command| command.purpose == purpose)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn command() -> InFlight {
        InFlight {
            purpose: Purpose::User,
            opcode: 0,
            transfer: Transfer::Nothing,
            inline: false,
            moved_bytes: 0,
            last_seen: false,
            corrupt: false,
            deadline_ns: 0,
        }
    }

    #[test]
    fn a_cid_is_valid_for_one_use_and_never_ffff() {
        let mut slots = Slots::new(256);
        let all: Vec<_> = (0..256).map(|_| slots.insert(command())).collect();
        assert!(!slots.has_room());
        assert_eq!(all[255], (255, 255));
        for _ in 0..1000 {
            slots.remove(255);
            let (index, cid) = slots.insert(command());
            assert_eq!((index, slots.find(cid)), (255, Some(255)));
            assert_ne!(cid, 0xffff);
            assert_eq!(slots.find(cid.wrapping_sub(0x100)), None);
        }
    }

    #[test]
    fn a_free_or_foreign_slot_is_not_found() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.find(0), None);
        let (index, cid) = slots.insert(command());
        assert_eq!(slots.find(cid), Some(index));
        assert_eq!(slots.find(2), None);
        slots.remove(index);
        assert_eq!(slots.find(cid), None);
    }
}

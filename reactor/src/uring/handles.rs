//! The open sockets, listeners, files and devices of one driver.

use crate::driver::Handle;
use crate::slab::{Key, Slab};
use io_uring::{squeue, types};
use std::os::fd::{AsRawFd, OwnedFd};

/// What sort of thing a handle is, as far as the driver treats them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Listener,
    Socket,
    File { direct: bool },
    BlockDevice { discard_command: bool },
    Adopted,
}

/// A close in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    /// The `Op::Close` that completes when the last op is back.
    pub(super) op: Key,
    pub(super) reset: bool,
}

pub(super) struct Open {
    pub(super) fd: OwnedFd,
    pub(super) kind: Kind,
    /// Whether the registered file table has it, in the slot of the handle's index.
    pub(super) fixed: bool,
    /// Ops on it that the kernel has.
    pub(super) in_kernel: u32,
    /// At most one send is in flight per socket: two would interleave when one is short.
    pub(super) sending: bool,
    pub(super) closing: Option<Closing>,
}

/// How an SQE names a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Descriptor, or slot of the file table.
    pub(super) fd: types::Fd,
    pub(super) fixed: bool,
    /// Whether the arena may be named by its registration. Drivers of adopted devices may insist
    /// on user memory: ublk copies payloads to and from nothing else.
    pub(super) fixed_memory: bool,
}

impl Target {
    pub(super) fn flags(self) -> squeue::Flags {
        if self.fixed {
            squeue::Flags::FIXED_FILE
        } else {
            squeue::Flags::empty()
        }
    }

    pub(super) fn cancel_all(self) -> types::CancelBuilder {
        if self.fixed {
            let slot = u32::try_from(self.fd.0).expect("slots are not negative");
            types::CancelBuilder::fd(types::Fixed(slot)).all()
        } else {
            types::CancelBuilder::fd(self.fd).all()
        }
    }
}

pub(super) struct Handles(pub(super) Slab<Open>);

pub(super) const fn key(handle: Handle) -> Key {
    Key {
        index: handle.index,
        turn: handle.turn,
    }
}

impl Handles {
    pub(super) fn get(&self, handle: Handle) -> Option<&Open> {
        self.0.get(key(handle))
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Open> {
        self.0.get_mut(key(handle))
    }

    /// How to name the file in an SQE.
    pub(super) fn target(&self, handle: Handle) -> Option<Target> {
        let open = self.get(handle)?;
        let number = if open.fixed {
            i32::try_from(handle.index).expect("the table is smaller than 2^31")
        } else {
            open.fd.as_raw_fd()
        };
        Some(Target {
            fd: types::Fd(number),
            fixed: open.fixed,
            fixed_memory: open.kind != Kind::Adopted,
        })
    }
}

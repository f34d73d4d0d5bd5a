//! The receive side of one connection: staging for headers, payload straight to its place.

use super::limits::{STAGING_BYTES, STAGING_BYTES_BUSY};
use reactor::{Arena, BufMut, Handle, Op};

/// Where the payload window of a receive belongs.
#[derive(Debug)]
struct Aimed {
    slot: u16,
    before: BufMut,
    after: BufMut,
}

#[derive(Debug)]
pub(super) struct Receiver {
    /// The staging slot; the parts beside the window while a receive is in flight.
    staging: Option<BufMut>,
    behind: Option<BufMut>,
    /// Unconsumed bytes of the staging slot.
    start: usize,
    end: usize,
    aimed: Option<Aimed>,
    in_flight: bool,
}

impl Receiver {
    pub(super) fn new(arena: &Arena) -> Option<Self> {
        Some(Self {
            staging: Some(arena.take(STAGING_BYTES)?),
            behind: None,
            start: 0,
            end: 0,
            aimed: None,
            in_flight: false,
        })
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Bytes received and not consumed. Empty while a receive is in flight.
    pub(super) fn staged(&self) -> &[u8] {
        if self.in_flight {
            return &[];
        }
        &self.staging.as_ref().expect("at home").bytes()[self.start..self.end]
    }

    pub(super) fn consume(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end);
    }

    /// A receive into staging only. `busy`: large payload is expected, so take little ahead.
    pub(super) fn receive_staged(&mut self, socket: Handle, busy: bool) -> Op {
        Op::Recv {
            socket,
            into: (self.open_window(busy), None),
        }
    }

    /// A receive into `[offset, offset + len)` of a command's buffer, then staging.
    pub(super) fn receive_aimed(
        &mut self,
        socket: Handle,
        slot: u16,
        mut buffer: BufMut,
        offset_bytes: u32,
        len_bytes: u32,
    ) -> Op {
        let before = buffer.split_to(offset_bytes);
        let window = buffer.split_to(len_bytes);
        self.aimed = Some(Aimed {
            slot,
            before,
            after: buffer,
        });
        let staging = self.open_window(true);
        Op::Recv {
            socket,
            into: (window, Some(staging)),
        }
    }

    /// Moves what is left to the front and cuts the window that follows it.
    fn open_window(&mut self, busy: bool) -> BufMut {
        assert!(!self.in_flight);
        self.in_flight = true;
        let mut staging = self.staging.take().expect("at home");
        let kept = self.end - self.start;
        staging.bytes_mut().copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, kept);
        let kept = u32::try_from(kept).expect("less than the slot");
        let mut window = staging;
        self.staging = Some(window.split_to(kept));
        let wanted = if busy {
            STAGING_BYTES_BUSY
        } else {
            STAGING_BYTES
        };
        let len_bytes = window.len_bytes().min(wanted);
        assert!(len_bytes > 0, "a header is smaller than the staging slot");
        let head = window.split_to(len_bytes);
        self.behind = Some(window);
        head
    }

    /// The receive ended with this many bytes. Returns the buffer it was aimed at, its command,
    /// and how much of it was filled.
    pub(super) fn on_received(
        &mut self,
        into: (BufMut, Option<BufMut>),
        len_bytes: u32,
    ) -> Option<(u16, BufMut, u32)> {
        assert!(self.in_flight);
        self.in_flight = false;
        let (first, second) = into;
        let (landed, window, staged_bytes) = match self.aimed.take() {
            None => (None, first, len_bytes),
            Some(Aimed {
                slot,
                before: mut buffer,
                after,
            }) => {
                let filled = len_bytes.min(first.len_bytes());
                buffer.join(first);
                buffer.join(after);
                let window = second.expect("aimed receives have a staging window too");
                (Some((slot, buffer, filled)), window, len_bytes - filled)
            }
        };
        let staging = self.staging.as_mut().expect("what was kept");
        staging.join(window);
        staging.join(self.behind.take().expect("what was behind"));
        self.end += staged_bytes as usize;
        landed
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use reactor::ArenaConfig;

    const SOCKET: Handle = Handle { index: 0, turn: 0 };

    #[test]
    fn payload_goes_to_its_place_and_the_rest_is_staged() {
        let config = ArenaConfig {
            slot_counts: [1, 1, 1],
            huge_pages: false,
        };
        let arena = Arena::new(&config).unwrap();
        let mut receiver = Receiver::new(&arena).unwrap();
        let Op::Recv { mut into, .. } = receiver.receive_staged(SOCKET, false) else {
            panic!()
        };
        assert_eq!(into.0.len_bytes(), STAGING_BYTES);
        into.0.bytes_mut()[..10].copy_from_slice(b"0123456789");
        assert!(receiver.on_received(into, 10).is_none());
        receiver.consume(7);
        assert_eq!(receiver.staged(), b"789");

        let buffer = arena.take(4096).unwrap();
        let op = receiver.receive_aimed(SOCKET, 5, buffer, 100, 1000);
        let Op::Recv {
            into: (mut first, Some(mut second)),
            ..
        } = op
        else {
            panic!()
        };
        assert_eq!(
            (first.len_bytes(), second.len_bytes()),
            (1000, STAGING_BYTES_BUSY)
        );
        first.bytes_mut().fill(1);
        second.bytes_mut()[..2].copy_from_slice(b"ab");
        let (slot, buffer, filled) = receiver.on_received((first, Some(second)), 1002).unwrap();
        assert_eq!((slot, buffer.len_bytes(), filled), (5, 4096, 1000));
        assert_eq!(buffer.bytes()[99..101], [0, 1]);
        assert_eq!(receiver.staged(), b"789ab");
    }
}

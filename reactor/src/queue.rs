//! A bounded way into a reactor from other threads: a queue and the bell that announces it.

use crate::driver::Doorbell;
use crossbeam::queue::ArrayQueue;
use std::fmt;
use std::sync::Arc;

/// A bounded queue whose senders ring a reactor. Clones share it; any thread may send.
///
/// The receiving app empties it with [`Mailbox::recv`] until `None` at each [`crate::Event::Rung`]
/// of the bell: one ring may stand for many messages.
pub struct Mailbox<T> {
    queue: Arc<ArrayQueue<T>>,
    bell: Doorbell,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            bell: self.bell.clone(),
        }
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Mailbox({} of {})",
            self.queue.len(),
            self.queue.capacity()
        )
    }
}

impl<T> Mailbox<T> {
    /// A mailbox for at most `messages_max` messages, announced by `bell` (from
    /// [`crate::Driver::doorbell`] of the receiving reactor). Panics if `messages_max` is zero.
    pub fn new(messages_max: usize, bell: Doorbell) -> Self {
        Self {
            queue: Arc::new(ArrayQueue::new(messages_max)),
            bell,
        }
    }

    /// Puts a message in and rings.
    ///
    /// # Errors
    /// Gives the message back if the mailbox is full: the receiver is behind, try later.
    pub fn send(&self, message: T) -> Result<(), T> {
        // A full box was rung for and not emptied yet; no ring is owed for what did not go in.
        self.queue.push(message)?;
        self.bell.ring();
        Ok(())
    }

    /// The oldest message, if there is one.
    pub fn recv(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Messages waiting.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{App, ArenaConfig, Completion, Driver, Event, Token, UringConfig};
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    #[test]
    fn a_full_mailbox_gives_the_message_back_and_does_not_ring() {
        let rings = Arc::new(AtomicU32::new(0));
        let counted = rings.clone();
        let bell = Doorbell::new(move || {
            counted.fetch_add(1, SeqCst);
        });
        let mailbox = Mailbox::new(2, bell);
        assert_eq!(
            [mailbox.send(1), mailbox.send(2), mailbox.send(3)],
            [Ok(()), Ok(()), Err(3)]
        );
        assert_eq!(rings.load(SeqCst), 2);
        let other = mailbox.clone();
        assert_eq!(
            [other.recv(), mailbox.recv(), other.recv()],
            [Some(1), Some(2), None]
        );
    }

    struct Reader {
        mailbox: Mailbox<u64>,
        next: [u64; 2],
    }

    const MESSAGES: u64 = 5000;

    impl App for Reader {
        fn on_completion(&mut self, _io: &mut dyn Driver, completion: Completion) {
            assert!(matches!(completion.event, Event::Rung));
            while let Some(message) = self.mailbox.recv() {
                let (sender, number) = (message / MESSAGES, message % MESSAGES);
                let next = &mut self.next[usize::try_from(sender).unwrap()];
                assert_eq!(*next, number);
                *next += 1;
            }
        }
        fn on_turn_end(&mut self, _io: &mut dyn Driver) {}
        fn is_finished(&self) -> bool {
            self.next == [MESSAGES; 2]
        }
    }

    #[test]
    fn every_message_arrives_in_its_senders_order_at_a_reactor_that_sleeps_between() {
        let arena = ArenaConfig {
            slot_counts: [1, 0, 0],
            huge_pages: false,
        };
        let mut io = crate::uring::test::driver(UringConfig {
            arena,
            ..UringConfig::default()
        });
        let bell = io
            .doorbell(Token {
                room: 0,
                index: 0,
                value: 0,
            })
            .unwrap();
        let mailbox = Mailbox::new(16, bell);
        let senders: Vec<_> = (0..2)
            .map(|sender| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || {
                    for number in 0..MESSAGES {
                        let mut message = sender * MESSAGES + number;
                        while let Err(back) = mailbox.send(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut app = Reader {
            mailbox,
            next: [0; 2],
        };
        io.run(&mut app);
        for sender in senders {
            sender.join().unwrap();
        }
    }
}

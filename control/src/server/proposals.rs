//! Group commit: commands that come while an entry of the log is being made durable share the next
//! entry, so that many clients cost one `fdatasync` and not one each.
//!
//! openraft 0.9 appends the next entry only when the one before is durable; without this, commands
//! of 64 clients would be written one after the other.

use super::COMMAND_BYTES_MAX;
use super::node::Node;
use crate::core::{Envelope, Reply};
use crate::raft::{Batch, Raft};
use openraft::error::{ClientWriteError, RaftError};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::sync::oneshot;

/// Most commands of one entry.
const ENTRY_COMMANDS_MAX: usize = 64;
/// Most bytes of the commands of one entry; the largest command fits alone.
const ENTRY_BYTES_MAX: usize = COMMAND_BYTES_MAX;
/// Entries on their way: one is made durable here while the one before is replicated.
const ENTRIES_MAX: usize = 2;

/// Why a command is not committed, or perhaps not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unproposed {
    /// Ask another member.
    NotLeader,
    /// Whether it will be committed is not known.
    Unavailable(String),
}

/// Log index of the entry that holds the command, and what came of it.
pub(super) type Proposed = Result<(u64, Reply), Unproposed>;

/// What waits for its entry. The callers' permits bound it.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    waiting: RefCell<VecDeque<Waiting>>,
    entries: Cell<usize>,
}

#[derive(Debug)]
struct Waiting {
    envelope: Envelope,
    bytes: usize,
    done: oneshot::Sender<Proposed>,
}

impl Proposals {
    /// The commands of the next entry; none: nothing waits.
    fn take_entry(&self) -> (Batch, Vec<oneshot::Sender<Proposed>>) {
        let mut waiting = self.waiting.borrow_mut();
        let (mut batch, mut callers, mut total_bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = waiting.front() {
            let fits =
                batch.len() < ENTRY_COMMANDS_MAX && total_bytes + next.bytes <= ENTRY_BYTES_MAX;
            if !batch.is_empty() && !fits {
                break;
            }
            let next = waiting.pop_front().expect("seen just now");
            total_bytes += next.bytes;
            batch.push(next.envelope);
            callers.push(next.done);
        }
        (Batch(batch), callers)
    }
}

impl Node {
    /// Commits a command of so many bytes, alone or with others.
    pub(super) async fn commit(
        self: &Rc<Self>,
        raft: Raft,
        envelope: Envelope,
        bytes: usize,
    ) -> Proposed {
        let (done, answer) = oneshot::channel();
        let waiting = Waiting {
            envelope,
            bytes,
            done,
        };
        self.waiting.waiting.borrow_mut().push_back(waiting);
        if self.waiting.entries.get() < ENTRIES_MAX {
            self.waiting.entries.set(self.waiting.entries.get() + 1);
            let node = Rc::clone(self);
            self.spawn(async move { node.write_entries(raft).await });
        }
        let stopped = || Unproposed::Unavailable("this member stops".into());
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn write_entries(&self, raft: Raft) {
        loop {
            let (batch, callers) = self.waiting.take_entry();
            if callers.is_empty() {
                break;
            }
            let outcome = raft.client_write(batch).await.map_err(|e| match e {
                RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Unproposed::NotLeader,
                e @ (RaftError::APIError(_) | RaftError::Fatal(_)) => {
                    Unproposed::Unavailable(e.to_string())
                }
            });
            tell(
                callers,
                outcome.map(|done| (done.log_id.index, done.data.0)),
            );
        }
        self.waiting.entries.set(self.waiting.entries.get() - 1);
    }
}

fn tell(callers: Vec<oneshot::Sender<Proposed>>, outcome: Result<(u64, Vec<Reply>), Unproposed>) {
    match outcome {
        Ok((index, replies)) => {
            assert_eq!(
                replies.len(),
                callers.len(),
                "a reply for every command of entry {index}"
            );
            for (caller, reply) in callers.into_iter().zip(replies) {
                // A caller that has gone needs no answer.
                drop(caller.send(Ok((index, reply))));
            }
        }
        Err(why) => {
            for caller in callers {
                drop(caller.send(Err(why.clone())));
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::core::{ClientId, Command, Subject, limits};
    use uuid::Uuid;

    fn wait(proposals: &Proposals, sequence: u64, bytes: usize) {
        let envelope = Envelope {
            schema: limits::SCHEMA,
            client: ClientId(Uuid::nil()),
            sequence,
            at_unix_ms: 0,
            command: Command::Note {
                subject: Subject::Cluster,
                text: String::new(),
            },
        };
        let (done, _) = oneshot::channel();
        proposals.waiting.borrow_mut().push_back(Waiting {
            envelope,
            bytes,
            done,
        });
    }

    fn sequences(batch: &Batch) -> Vec<u64> {
        batch.0.iter().map(|envelope| envelope.sequence).collect()
    }

    #[test]
    fn an_entry_takes_what_waits_in_order_up_to_its_limits() {
        let proposals = Proposals::default();
        for sequence in 0..70 {
            wait(&proposals, sequence, 10);
        }
        let (first, callers) = proposals.take_entry();
        assert_eq!(sequences(&first), (0..64).collect::<Vec<_>>());
        assert_eq!(callers.len(), 64);
        assert_eq!(
            sequences(&proposals.take_entry().0),
            (64..70).collect::<Vec<_>>()
        );
        assert!(proposals.take_entry().1.is_empty());
    }

    #[test]
    fn bytes_are_a_limit_too_and_the_largest_command_goes_alone() {
        let proposals = Proposals::default();
        for (sequence, bytes) in [
            (0, ENTRY_BYTES_MAX),
            (1, 1),
            (2, ENTRY_BYTES_MAX - 1),
            (3, 1),
        ] {
            wait(&proposals, sequence, bytes);
        }
        assert_eq!(sequences(&proposals.take_entry().0), [0]);
        assert_eq!(sequences(&proposals.take_entry().0), [1, 2]);
        assert_eq!(sequences(&proposals.take_entry().0), [3]);
    }
}

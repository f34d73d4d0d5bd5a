//! A history with its serial form: append-only, to be kept outside the machine that may fail.
//!
//! A record is `length (1 byte) | postcard of [Record] | CRC32C of both (4 bytes, little-endian)`.
//! What a crash tore off the end is not there; anything else that is damaged is an error.

use super::history::{Breach, History};
use super::record::{Action, Ending, Handover, OpId, Record, SerialAction, Subject, WriterId};
use super::stamp::Content;
use super::verdict::Verdict;
use crate::limits::RECORD_BYTES_MAX;
use shardmap::units::Lba;
use std::collections::BTreeSet;

const CRC_BYTES: usize = 4;

/// Why a journal cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalFault {
    /// Not even the first record is whole.
    #[error("the journal is empty or does not begin with what it is about")]
    NoBeginning,
    /// A damaged record with whole ones behind it.
    #[error("the journal is damaged at byte {at_bytes}: whole records follow at byte {next_bytes}")]
    Damaged {
        /// Where the damage begins.
        at_bytes: usize,
        /// Where the next whole record begins.
        next_bytes: usize,
    },
    /// The records contradict each other, or a fenced writer was obeyed.
    #[error("the journal's record {number}: {breach}")]
    Breach {
        /// Ordinal of the record, from zero.
        number: usize,
        /// What it says.
        breach: Breach,
    },
}

/// A [`History`] that writes down what it is told.
#[derive(Clone, Debug)]
pub struct Journal {
    history: History,
    /// Open reads that were written down.
    reads: BTreeSet<OpId>,
    unsaved: Vec<u8>,
}

/// A journal that was read back.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// It goes on where the saved bytes end.
    pub journal: Journal,
    /// How many of the bytes are whole records: cut the rest off before appending.
    pub whole_bytes: usize,
    /// Requests of fenced writers that were obeyed.
    pub obeyed: Vec<OpId>,
}

impl Journal {
    /// A new one.
    pub fn new(subject: Subject) -> Self {
        let mut journal = Self::of(History::new(subject));
        journal.note(&Record::Begun(subject));
        journal
    }

    const fn of(history: History) -> Self {
        Self {
            history,
            reads: BTreeSet::new(),
            unsaved: Vec::new(),
        }
    }

    /// Reads saved bytes back.
    ///
    /// # Errors
    /// Every [`JournalFault`].
    pub fn load(saved: &[u8]) -> Result<Loaded, JournalFault> {
        let (records, whole_bytes) = decode(saved)?;
        let Some((Record::Begun(subject), rest)) = records.split_first() else {
            return Err(JournalFault::NoBeginning);
        };
        let mut history = History::new(*subject);
        let mut obeyed = Vec::new();
        for (number, record) in (1..).zip(rest) {
            match history.replay(record) {
                Ok(()) => {}
                Err(Breach::FencedButObeyed(op)) => obeyed.push(op),
                Err(breach @ (Breach::Malformed { .. } | Breach::BegunTwice)) => {
                    return Err(JournalFault::Breach { number, breach });
                }
            }
        }
        Ok(Loaded {
            journal: Self::of(history),
            whole_bytes,
            obeyed,
        })
    }

    /// What is known.
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// Takes the bytes that must be saved, in order, before the next request goes to the device.
    pub fn take_unsaved(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unsaved)
    }

    /// As [`History::hand_over`].
    pub fn hand_over(&mut self, how: Handover) -> WriterId {
        self.note(&Record::HandedOver(how));
        self.reads.clear();
        self.history.hand_over(how)
    }

    /// As [`History::issue`]. Reads that can tell nothing new are not written down.
    pub fn issue(&mut self, writer: WriterId, action: Action) -> OpId {
        let telling = match action {
            Action::Read { range } => !self.history.is_settled(range),
            Action::Write { .. } | Action::Zero { .. } | Action::Flush => true,
        };
        let op = self.history.issue(writer, action);
        if telling {
            let action = action.into();
            self.note(&Record::Issued { op, action });
            if matches!(action, SerialAction::Read(..)) {
                self.reads.insert(op);
            }
        }
        op
    }

    /// As [`History::end`].
    ///
    /// # Errors
    /// As there.
    pub fn end(&mut self, op: OpId, how: Ending) -> Result<(), Breach> {
        let is_read = self.history.is_open_read(op);
        if !is_read || self.reads.remove(&op) {
            self.note(&Record::Ended { op, how });
        }
        self.history.end(op, how)
    }

    /// As [`History::judge`].
    pub fn judge(&mut self, read: OpId, lba: Lba, content: &Content) -> Verdict {
        let (verdict, sight) = self.history.judge_and_note(read, lba, content);
        if let Some(sight) = sight.filter(|_| self.reads.contains(&read)) {
            let lba = lba.0;
            self.note(&Record::Saw {
                op: read,
                lba,
                sight,
            });
        }
        verdict
    }

    fn note(&mut self, record: &Record) {
        encode(record, &mut self.unsaved);
    }
}

/// Appends a record.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    let body = postcard::to_allocvec(record).expect("to memory");
    let start = out.len();
    let length = u8::try_from(body.len()).expect("a record is short");
    out.push(length);
    out.extend_from_slice(&body);
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    assert!(out.len() - start <= RECORD_BYTES_MAX, "a record is short");
}

/// All whole records, and how many bytes they take.
///
/// # Errors
/// [`JournalFault::Damaged`].
pub fn decode(bytes: &[u8]) -> Result<(Vec<Record>, usize), JournalFault> {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some((record, next)) = decode_one(bytes, at) {
        records.push(record);
        at = next;
    }
    let later = (at + 1..bytes.len()).find(|next| decode_one(bytes, *next).is_some());
    match later {
        Some(next_bytes) => Err(JournalFault::Damaged {
            at_bytes: at,
            next_bytes,
        }),
        None => Ok((records, at)),
    }
}

fn decode_one(bytes: &[u8], at: usize) -> Option<(Record, usize)> {
    let length = usize::from(*bytes.get(at)?);
    let crc_at = at + 1 + length;
    let next = crc_at + CRC_BYTES;
    let stored = bytes.get(crc_at..next)?;
    if length == 0 || crc32c::crc32c(&bytes[at..crc_at]).to_le_bytes() != stored {
        return None;
    }
    let (record, rest) = postcard::take_from_bytes(&bytes[at + 1..crc_at]).ok()?;
    rest.is_empty().then_some((record, next))
}

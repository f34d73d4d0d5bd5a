//! The Raft log: entries in memory, and on disk before they are acknowledged.
//!
//! The log is short (a snapshot every few thousand entries lets it be purged), so all of it is kept
//! in memory and reads never touch the disk.

use super::disk::{COMMITTED, Contents, Disk, VOTE, Write};
use super::record::{self, Kind};
use super::{Entry, LogId, StorageError, TypeConfig};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError, Vote,
};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::rc::Rc;

/// Most entries one read gives: keeps a message to a member small.
const READ_ENTRIES_MAX: usize = 128;

/// The log and vote of a member. Clones are readers of the same log.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    mem: Rc<RefCell<Mem>>,
    disk: Rc<Disk>,
}

#[derive(Debug, Default)]
struct Mem {
    /// Entries with the checksum of their record.
    entries: BTreeMap<u64, (u32, Entry)>,
    vote: Option<Vote<u64>>,
    committed: Option<LogId>,
    purged: Option<Purged>,
}

/// The last entry that was purged.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Purged {
    log_id: LogId,
    /// Its checksum, if it was ever here (after a snapshot from the leader it was not).
    crc: u32,
}

impl Mem {
    fn last_crc(&self) -> u32 {
        let last = self.entries.last_key_value().map(|(_, (crc, _))| *crc);
        last.unwrap_or_else(|| self.purged.map_or(0, |p| p.crc))
    }
}

fn read_mem(contents: Contents) -> io::Result<Mem> {
    let mut mem = Mem {
        vote: contents
            .vote
            .map(|r| record::open(Kind::Vote, &r))
            .transpose()?,
        committed: contents
            .committed
            .map(|r| record::open(Kind::Committed, &r))
            .transpose()?,
        purged: contents
            .purged
            .map(|r| record::open(Kind::Purged, &r))
            .transpose()?,
        entries: BTreeMap::new(),
    };
    let mut expected = mem.purged.map(|p| (p.log_id.index + 1, p.crc));
    for (index, bytes) in contents.entries {
        let opened = record::open_entry::<Entry>(&bytes)?;
        let (next, before) = expected.unwrap_or((index, opened.before));
        if index != next || opened.index != index || opened.before != before {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the log does not continue from entry {next} to entry {index}: this member \
                     has lost entries and must not vote; empty its data directory and let it \
                     join again"
                ),
            ));
        }
        expected = Some((index + 1, opened.crc));
        mem.entries.insert(index, (opened.crc, opened.entry));
    }
    Ok(mem)
}

impl LogStore {
    /// Opens or creates the log in a directory and checks every entry of it.
    ///
    /// # Errors
    /// Not ours to open, damaged, or with a hole.
    pub(crate) fn open(dir: &Path, map_bytes: usize) -> io::Result<Self> {
        let (disk, contents) = Disk::open(dir, map_bytes)?;
        let mem = read_mem(contents)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.display())))?;
        Ok(Self {
            mem: Rc::new(RefCell::new(mem)),
            disk: Rc::new(disk),
        })
    }

    /// True if nothing was ever voted for, logged or purged.
    pub(crate) fn is_untouched(&self) -> bool {
        let mem = self.mem.borrow();
        mem.vote.is_none() && mem.entries.is_empty() && mem.purged.is_none()
    }

    /// Finishes what was begun and gives the directory free; later writes fail.
    pub(crate) fn close(&self) {
        self.disk.close();
    }

    /// How full the map is, in percent.
    pub(crate) fn fill_gauge(&self) -> std::sync::Arc<std::sync::atomic::AtomicU8> {
        self.disk.fill_gauge()
    }
}

fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb, e: &io::Error) -> StorageError {
    StorageIOError::new(subject, verb, AnyError::new(e)).into()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self
            .mem
            .borrow()
            .entries
            .range(range)
            .map(|(_, (_, entry))| entry.clone())
            .collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let mem = self.mem.borrow();
        let range = mem.entries.range(start..end).take(READ_ENTRIES_MAX);
        Ok(range.map(|(_, (_, entry))| entry.clone()).collect())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let mem = self.mem.borrow();
        let purged = mem.purged.map(|p| p.log_id);
        let last = mem
            .entries
            .last_key_value()
            .map(|(_, (_, entry))| entry.log_id);
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError> {
        let record = record::seal(Kind::Vote, vote);
        self.disk
            .send_and_wait(|done| Write::Fact {
                key: VOTE,
                record,
                done,
            })
            .await
            .map_err(|e| failed(ErrorSubject::Vote, ErrorVerb::Write, &e))?;
        self.mem.borrow_mut().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError> {
        Ok(self.mem.borrow().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.mem.borrow_mut().committed = committed;
        let Some(committed) = committed else {
            return Ok(());
        };
        let record = record::seal(Kind::Committed, &committed);
        self.disk
            .send(Write::Hint {
                key: COMMITTED,
                record,
            })
            .map_err(|e| failed(ErrorSubject::Store, ErrorVerb::Write, &e))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.mem.borrow().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut mem = self.mem.borrow_mut();
            for entry in entries {
                let LogId { leader_id, index } = entry.log_id;
                let (crc, record) =
                    record::seal_entry(mem.last_crc(), leader_id.term, index, &entry);
                records.push((index, record));
                mem.entries.insert(index, (crc, entry));
            }
        }
        self.disk
            .send(Write::Append {
                records,
                done: callback,
            })
            .map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Write, &e))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        drop(self.mem.borrow_mut().entries.split_off(&log_id.index));
        self.disk
            .send_and_wait(|done| Write::Truncate {
                from: log_id.index,
                done,
            })
            .await
            .map_err(|e| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &e))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let purged = {
            let mut mem = self.mem.borrow_mut();
            let kept = mem.entries.split_off(&(log_id.index + 1));
            let gone = std::mem::replace(&mut mem.entries, kept);
            let crc = gone.last_key_value().map_or(0, |(_, (crc, _))| *crc);
            let purged = Purged { log_id, crc };
            mem.purged = Some(purged);
            purged
        };
        let record = record::seal(Kind::Purged, &purged);
        self.disk
            .send_and_wait(|done| Write::Purge {
                upto: log_id.index,
                record,
                done,
            })
            .await
            .map_err(|e| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &e))
    }
}

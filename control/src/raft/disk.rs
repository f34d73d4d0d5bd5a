//! The log on disk: one LMDB environment and the one thread that writes it.
//!
//! Requests are carried out in the order they were given; those that wait together share one
//! transaction and one `fdatasync`. A failed commit poisons the thread: what the disk holds is then
//! unknown, so nothing is written or acknowledged any more and the member stops.

use super::TypeConfig;
use super::env::{self, OwnedEnv, to_io};
use heed::types::{Bytes, Str, U64};
use heed::{Database, RwTxn};
use openraft::storage::LogFlushed;
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

type Entries = Database<U64<heed::byteorder::BE>, Bytes>;
type Facts = Database<Str, Bytes>;

/// Keys of the facts.
pub(super) const VOTE: &str = "vote";
pub(super) const COMMITTED: &str = "committed";
pub(super) const PURGED: &str = "purged";

/// Most requests of one transaction: bounds what a crash can leave unacknowledged.
const BATCH_MAX: usize = 256;
/// Left in the directory after a failed commit; a member does not start beside it.
const POISON: &str = "poisoned";

/// Something to make durable. Answers come when it is.
pub(super) enum Write {
    Append {
        records: Vec<(u64, Vec<u8>)>,
        done: LogFlushed<TypeConfig>,
    },
    Fact {
        key: &'static str,
        record: Vec<u8>,
        done: Done,
    },
    /// Needs no answer and no commit of its own: travels with what comes next.
    Hint {
        key: &'static str,
        record: Vec<u8>,
    },
    Truncate {
        from: u64,
        done: Done,
    },
    Purge {
        upto: u64,
        record: Vec<u8>,
        done: Done,
    },
    Stop,
}

type Done = oneshot::Sender<io::Result<()>>;

/// What an opened log holds.
pub(super) struct Contents {
    pub(super) entries: Vec<(u64, Vec<u8>)>,
    pub(super) vote: Option<Vec<u8>>,
    pub(super) committed: Option<Vec<u8>>,
    pub(super) purged: Option<Vec<u8>>,
}

/// Handle to the writer thread. Dropping it lets the thread finish what it was given and end.
#[derive(Debug)]
pub(crate) struct Disk {
    to_writer: mpsc::Sender<Write>,
    fill_percent: Arc<AtomicU8>,
    thread: RefCell<Option<JoinHandle<()>>>,
}

impl Disk {
    /// Opens or creates a log.
    ///
    /// # Errors
    /// Not ours to open, damaged, or poisoned by an earlier failure.
    pub(super) fn open(dir: &Path, map_bytes: usize) -> io::Result<(Self, Contents)> {
        let poison = dir.join(POISON);
        if poison.exists() {
            return Err(io::Error::other(format!(
                "{} says that the disk failed to write the log; what it holds cannot be trusted. \
                 Replace the disk, empty the data directory and let the member join again",
                poison.display()
            )));
        }
        let owned = env::open(dir, map_bytes, 2)?;
        let (entries, facts) = tables(&owned).map_err(to_io)?;
        let contents = read_all(&owned, entries, facts).map_err(to_io)?;
        let (to_writer, requests) = mpsc::channel();
        let fill_percent = Arc::new(AtomicU8::new(0));
        let fill = Arc::clone(&fill_percent);
        let mut writer = Writer {
            owned,
            entries,
            facts,
            poison,
            failed: None,
            fill,
        };
        writer.measure();
        let thread = std::thread::Builder::new()
            .name("metad-log".into())
            .spawn(move || writer.run(&requests))?;
        Ok((
            Self {
                to_writer,
                fill_percent,
                thread: RefCell::new(Some(thread)),
            },
            contents,
        ))
    }

    pub(super) fn send(&self, write: Write) -> io::Result<()> {
        self.to_writer
            .send(write)
            .map_err(|_| io::Error::other("the log's writer has ended"))
    }

    pub(super) async fn send_and_wait(&self, make: impl FnOnce(Done) -> Write) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(make(done))?;
        answer
            .await
            .map_err(|_| io::Error::other("the log's writer has ended"))?
    }

    /// How full the map is; proposals are refused well before it is full, so that votes, appends
    /// and purges still work.
    pub(crate) fn fill_gauge(&self) -> Arc<AtomicU8> {
        Arc::clone(&self.fill_percent)
    }
}

impl Disk {
    /// Lets the writer finish what it was given, and gives the directory free. Later writes fail.
    pub(super) fn close(&self) {
        // A writer that has ended already has nothing left to finish.
        drop(self.to_writer.send(Write::Stop));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}

fn tables(owned: &OwnedEnv) -> heed::Result<(Entries, Facts)> {
    let mut txn = owned.env.write_txn()?;
    let entries = owned.env.create_database(&mut txn, Some("entries"))?;
    let facts = owned.env.create_database(&mut txn, Some("facts"))?;
    txn.commit()?;
    Ok((entries, facts))
}

fn read_all(owned: &OwnedEnv, entries: Entries, facts: Facts) -> heed::Result<Contents> {
    let txn = owned.env.read_txn()?;
    let fact = |key| Ok::<_, heed::Error>(facts.get(&txn, key)?.map(<[u8]>::to_vec));
    let contents = Contents {
        entries: entries
            .iter(&txn)?
            .map(|row| row.map(|(index, record)| (index, record.to_vec())))
            .collect::<heed::Result<_>>()?,
        vote: fact(VOTE)?,
        committed: fact(COMMITTED)?,
        purged: fact(PURGED)?,
    };
    Ok(contents)
}

struct Writer {
    owned: OwnedEnv,
    entries: Entries,
    facts: Facts,
    poison: PathBuf,
    failed: Option<String>,
    fill: Arc<AtomicU8>,
}

impl Writer {
    fn run(&mut self, requests: &mpsc::Receiver<Write>) {
        let mut hints: Vec<Write> = Vec::new();
        loop {
            let Ok(first) = requests.recv() else { return };
            let mut batch = std::mem::take(&mut hints);
            let mut next = Some(first);
            while let Some(write) = next {
                batch.push(write);
                next = if batch.len() < BATCH_MAX {
                    requests.try_recv().ok()
                } else {
                    None
                };
            }
            if batch.iter().all(|w| matches!(w, Write::Hint { .. })) {
                // Only the newest counts.
                hints = batch.split_off(batch.len() - 1);
                continue;
            }
            let stop = batch.iter().any(|w| matches!(w, Write::Stop));
            self.carry_out(batch);
            if stop {
                return;
            }
        }
    }

    fn carry_out(&mut self, batch: Vec<Write>) {
        if self.failed.is_none()
            && let Err(e) = self.commit(&batch).map_err(to_io)
        {
            tracing::error!(error = %e, "the log cannot be written; this member stops");
            if e.kind() != io::ErrorKind::StorageFull {
                // As good as can be: the same disk has just failed.
                drop(std::fs::write(&self.poison, e.to_string()));
            }
            self.failed = Some(e.to_string());
        }
        self.measure();
        for write in batch {
            let result = match &self.failed {
                None => Ok(()),
                Some(why) => Err(io::Error::other(why.clone())),
            };
            match write {
                Write::Append { done, .. } => done.log_io_completed(result),
                Write::Fact { done, .. }
                | Write::Truncate { done, .. }
                | Write::Purge { done, .. } => {
                    // Whoever asked may have gone; then nobody needs the answer.
                    drop(done.send(result));
                }
                Write::Hint { .. } | Write::Stop => {}
            }
        }
    }

    fn commit(&self, batch: &[Write]) -> heed::Result<()> {
        let mut txn = self.owned.env.write_txn()?;
        for write in batch {
            self.put(&mut txn, write)?;
        }
        txn.commit()
    }

    fn put(&self, txn: &mut RwTxn<'_>, write: &Write) -> heed::Result<()> {
        match write {
            Write::Append { records, .. } => {
                for (index, record) in records {
                    self.entries.put(txn, index, record)?;
                }
            }
            Write::Fact { key, record, .. } | Write::Hint { key, record } => {
                self.facts.put(txn, key, record)?;
            }
            Write::Truncate { from, .. } => {
                self.entries.delete_range(txn, &(*from..))?;
            }
            Write::Purge { upto, record, .. } => {
                self.entries.delete_range(txn, &(..=*upto))?;
                self.facts.put(txn, PURGED, record)?;
            }
            Write::Stop => {}
        }
        Ok(())
    }

    fn measure(&self) {
        let Ok(used) = self.owned.env.non_free_pages_size() else {
            return;
        };
        let size = u64::try_from(self.owned.env.info().map_size)
            .unwrap_or(u64::MAX)
            .max(1);
        let percent = u8::try_from((used * 100 / size).min(100)).unwrap_or(100);
        self.fill.store(percent, Ordering::Relaxed);
    }
}

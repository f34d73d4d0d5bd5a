//! The replicated state machine as openraft sees it: in memory, with durable snapshots.
//!
//! A snapshot and its position are written in one LMDB transaction. After a start the state is the
//! last snapshot, and openraft applies the log behind it again: the log is purged only up to a
//! durable snapshot.

use super::env::{self, OwnedEnv, to_io};
use super::record::{self, Kind};
use super::{Batch, Entry, LogId, Replies, StorageError, TypeConfig};
use crate::core::{Change, State, apply, fsck};
use heed::Database;
use heed::types::{Bytes, Str};
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    AnyError, BasicNode, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder,
    SnapshotMeta, StorageIOError, StoredMembership,
};
use std::cell::{Ref, RefCell};
use std::io::{self, Cursor};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;

const META: &str = "meta";
const STATE: &str = "state";

type Meta = SnapshotMeta<u64, BasicNode>;

/// The state machine of a member. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    mem: Rc<RefCell<Mem>>,
    store: Arc<SnapshotStore>,
    applied: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Mem {
    state: State,
    last_applied: Option<LogId>,
    membership: StoredMembership<u64, BasicNode>,
    snapshots_built: u64,
}

#[derive(Debug)]
struct SnapshotStore {
    /// `None` once closed.
    owned: RwLock<Option<OwnedEnv>>,
    table: Database<Str, Bytes>,
}

fn closed() -> io::Error {
    io::Error::other("the snapshots are closed")
}

impl SnapshotStore {
    fn open(dir: &Path, map_bytes: usize) -> io::Result<Self> {
        let owned = env::open(dir, map_bytes, 1)?;
        let table = (|| {
            let mut txn = owned.env.write_txn()?;
            let table = owned.env.create_database(&mut txn, Some("snapshot"))?;
            txn.commit()?;
            Ok(table)
        })()
        .map_err(to_io)?;
        Ok(Self {
            owned: RwLock::new(Some(owned)),
            table,
        })
    }

    fn close(&self) {
        self.owned
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<OwnedEnv>> {
        self.owned.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// One transaction, durable when it returns.
    fn put(&self, meta: &Meta, state: &[u8]) -> io::Result<()> {
        let meta = record::seal(Kind::SnapshotMeta, meta);
        let guard = self.read();
        let owned = guard.as_ref().ok_or_else(closed)?;
        (|| {
            let mut txn = owned.env.write_txn()?;
            self.table.put(&mut txn, META, &meta)?;
            self.table.put(&mut txn, STATE, state)?;
            txn.commit()
        })()
        .map_err(to_io)
    }

    fn get(&self) -> io::Result<Option<(Meta, Vec<u8>)>> {
        let guard = self.read();
        let owned = guard.as_ref().ok_or_else(closed)?;
        let txn = owned.env.read_txn().map_err(to_io)?;
        let meta = self.table.get(&txn, META).map_err(to_io)?;
        let state = self.table.get(&txn, STATE).map_err(to_io)?;
        match (meta, state) {
            (Some(meta), Some(state)) => Ok(Some((
                record::open(Kind::SnapshotMeta, meta)?,
                state.to_vec(),
            ))),
            (None, None) => Ok(None),
            (Some(_), None) | (None, Some(_)) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "half a snapshot",
            )),
        }
    }
}

/// Decodes a snapshot and refuses one that contradicts itself.
fn open_state(bytes: &[u8]) -> io::Result<State> {
    let state: State = record::open(Kind::Snapshot, bytes)?;
    match fsck(&state).into_iter().next() {
        None => Ok(state),
        Some(finding) => Err(io::Error::new(io::ErrorKind::InvalidData, finding.sentence)),
    }
}

fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb, e: &io::Error) -> StorageError {
    StorageIOError::new(subject, verb, AnyError::new(e)).into()
}

impl Machine {
    /// Opens the snapshot in a directory, or begins with an empty state.
    ///
    /// # Errors
    /// Not ours to open, damaged, or unsound.
    pub(crate) fn open(dir: &Path, map_bytes: usize) -> io::Result<Self> {
        let store = SnapshotStore::open(dir, map_bytes)?;
        let mut mem = Mem::default();
        if let Some((meta, bytes)) = store.get()? {
            mem.state = open_state(&bytes)?;
            mem.last_applied = meta.last_log_id;
            mem.membership = meta.last_membership;
        }
        let applied = watch::Sender::new(mem.state.applied_index);
        Ok(Self {
            mem: Rc::new(RefCell::new(mem)),
            store: Arc::new(store),
            applied,
        })
    }

    /// Waits for a snapshot that is being written and gives the directory free.
    pub(crate) fn close(&self) {
        self.store.close();
    }

    /// The state as of the last applied entry. Don't hold it across an `await`.
    pub(crate) fn state(&self) -> Ref<'_, State> {
        Ref::map(self.mem.borrow(), |mem| &mem.state)
    }

    /// Tells the index of the last applied entry, and when it grows.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn apply_one(mem: &mut Mem, entry: Entry) -> Replies {
        let index = entry.log_id.index;
        mem.last_applied = Some(entry.log_id);
        mem.state.applied_index = index;
        match entry.payload {
            EntryPayload::Blank => Replies::default(),
            EntryPayload::Membership(membership) => {
                mem.membership = StoredMembership::new(Some(entry.log_id), membership);
                Replies::default()
            }
            EntryPayload::Normal(Batch(envelopes)) => {
                let carry_out = |envelope| {
                    let (reply, changes) = apply(&mut mem.state, index, envelope);
                    log_changes(index, &mem.state, &changes);
                    reply
                };
                Replies(envelopes.into_iter().map(carry_out).collect())
            }
        }
    }
}

/// One line per transition, as in the event log.
fn log_changes(index: u64, state: &State, changes: &[Change]) {
    let newest = state.events.iter().rev().take(changes.len()).rev();
    for event in newest {
        tracing::info!(index, kind = %event.kind, "{}", event.text);
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, StoredMembership<u64, BasicNode>), StorageError> {
        let mem = self.mem.borrow();
        Ok((mem.last_applied, mem.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Replies>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (replies, index) = {
            let mut mem = self.mem.borrow_mut();
            let replies = entries
                .into_iter()
                .map(|entry| Self::apply_one(&mut mem, entry))
                .collect();
            (replies, mem.state.applied_index)
        };
        self.applied.send_replace(index);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let mut mem = self.mem.borrow_mut();
        mem.snapshots_built += 1;
        let position = mem
            .last_applied
            .map_or_else(|| "0".to_owned(), |id| id.to_string());
        Builder {
            state: mem.state.clone(),
            meta: SnapshotMeta {
                last_log_id: mem.last_applied,
                last_membership: mem.membership.clone(),
                snapshot_id: format!("{position}-{}", mem.snapshots_built),
            },
            store: Arc::clone(&self.store),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let wrong = |e| {
            failed(
                ErrorSubject::Snapshot(Some(meta.signature())),
                ErrorVerb::Write,
                &e,
            )
        };
        let bytes = snapshot.into_inner();
        let state = open_state(&bytes).map_err(wrong)?;
        put_off_thread(Arc::clone(&self.store), meta.clone(), bytes)
            .await
            .map_err(wrong)?;
        let index = state.applied_index;
        {
            let mut mem = self.mem.borrow_mut();
            mem.state = state;
            mem.last_applied = meta.last_log_id;
            mem.membership = meta.last_membership.clone();
        }
        self.applied.send_replace(index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let found = self
            .store
            .get()
            .map_err(|e| failed(ErrorSubject::Snapshot(None), ErrorVerb::Read, &e))?;
        Ok(found.map(|(meta, bytes)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        }))
    }
}

/// `fdatasync` of some megabytes does not belong on the thread that answers.
async fn put_off_thread(
    store: Arc<SnapshotStore>,
    meta: Meta,
    bytes: Vec<u8>,
) -> io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || store.put(&meta, &bytes).map(|()| bytes))
        .await
        .map_err(io::Error::other)?
}

/// Makes one snapshot of the state it was created with.
#[derive(Debug)]
pub(crate) struct Builder {
    state: State,
    meta: Meta,
    store: Arc<SnapshotStore>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let state = std::mem::take(&mut self.state);
        let meta = self.meta.clone();
        let store = Arc::clone(&self.store);
        let built = tokio::task::spawn_blocking(move || {
            let bytes = record::seal(Kind::Snapshot, &state);
            store.put(&meta, &bytes).map(|()| bytes)
        });
        let bytes = built
            .await
            .map_err(io::Error::other)
            .and_then(|stored| stored)
            .map_err(|e| failed(ErrorSubject::Snapshot(None), ErrorVerb::Write, &e))?;
        Ok(Snapshot {
            meta: self.meta.clone(),
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }
}

//! The stores keep openraft's contract, also over a reopen.

use super::log::LogStore;
use super::machine::Machine;
use super::{Batch, Entry, LogId, StorageError, TypeConfig};
use crate::core::{ClientId, Command, Envelope, Subject, limits};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt as _, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{
    CommittedLeaderId, EntryPayload, RaftLogReader as _, RaftSnapshotBuilder as _, Vote,
};
use std::path::Path;
use tempfile::TempDir;
use uuid::Uuid;

const MAP: usize = 64 << 20;

struct Fresh;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Fresh {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = TempDir::new().unwrap();
        let (log, machine) = open(dir.path());
        Ok((dir, log, machine))
    }
}

fn open(dir: &Path) -> (LogStore, Machine) {
    let log = LogStore::open(&dir.join("log"), MAP).unwrap();
    let machine = Machine::open(&dir.join("state"), MAP).unwrap();
    (log, machine)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

fn note(index: u64) -> Entry {
    let envelope = Envelope {
        schema: limits::SCHEMA,
        client: ClientId(Uuid::from_u128(1)),
        sequence: index,
        at_unix_ms: 0,
        command: match index {
            1 => Command::InitCluster {
                uuid: Uuid::from_u128(7),
                name: "lab".into(),
            },
            _ => Command::Note {
                subject: Subject::Cluster,
                text: format!("entry {index}"),
            },
        },
    };
    Entry {
        log_id: log_id(index),
        payload: EntryPayload::Normal(Batch(vec![envelope])),
    }
}

#[test]
fn openraft_accepts_the_stores() {
    Suite::test_all(Fresh).unwrap();
}

#[test]
fn what_was_flushed_is_there_after_a_reopen() {
    let dir = TempDir::new().unwrap();
    run(async {
        let (mut log, _) = open(dir.path());
        log.save_vote(&Vote::new_committed(3, 2)).await.unwrap();
        log.blocking_append((1..=9).map(note)).await.unwrap();
        log.save_committed(Some(log_id(8))).await.unwrap();
        log.truncate(log_id(9)).await.unwrap();
        log.purge(log_id(3)).await.unwrap();
    });
    run(async {
        let (mut log, _) = open(dir.path());
        assert!(!log.is_untouched());
        assert_eq!(
            log.read_vote().await.unwrap(),
            Some(Vote::new_committed(3, 2))
        );
        assert_eq!(log.read_committed().await.unwrap(), Some(log_id(8)));
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(log_id(3)));
        assert_eq!(state.last_log_id, Some(log_id(8)));
        let entries = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(entries, (4..=8).map(note).collect::<Vec<_>>());
        // The chain goes on behind what was purged and truncated.
        log.blocking_append([note(9)]).await.unwrap();
    });
    open(dir.path());
}

#[test]
fn a_log_with_a_damaged_entry_is_not_opened() {
    let dir = TempDir::new().unwrap();
    run(async {
        let (mut log, _) = open(dir.path());
        log.blocking_append((1..=5).map(note)).await.unwrap();
    });
    let file = dir.path().join("log/data.mdb");
    let mut bytes = std::fs::read(&file).unwrap();
    let text = b"entry 3";
    let hits: Vec<usize> = (0..bytes.len() - text.len())
        .filter(|i| bytes[*i..].starts_with(text))
        .collect();
    assert!(!hits.is_empty());
    for at in hits {
        bytes[at] ^= 1;
    }
    std::fs::write(&file, bytes).unwrap();
    let refused = LogStore::open(&dir.path().join("log"), MAP).unwrap_err();
    assert!(refused.to_string().contains("checksum"), "{refused}");
}

#[test]
fn a_log_with_a_hole_is_not_opened() {
    let dir = TempDir::new().unwrap();
    run(async {
        let (mut log, _) = open(dir.path());
        log.blocking_append([note(1), note(3)]).await.unwrap();
    });
    let refused = LogStore::open(&dir.path().join("log"), MAP).unwrap_err();
    assert!(refused.to_string().contains("lost entries"), "{refused}");
}

#[test]
fn a_directory_is_opened_once() {
    let dir = TempDir::new().unwrap();
    let first = LogStore::open(dir.path(), MAP).unwrap();
    let second = LogStore::open(dir.path(), MAP).unwrap_err();
    assert!(second.to_string().contains("in use"), "{second}");
    drop(first);
    LogStore::open(dir.path(), MAP).unwrap();
}

#[test]
fn a_snapshot_brings_the_state_back() {
    let dir = TempDir::new().unwrap();
    let before = run(async {
        let (_, mut machine) = open(dir.path());
        machine.apply((1..=6).map(note)).await.unwrap();
        machine
            .get_snapshot_builder()
            .await
            .build_snapshot()
            .await
            .unwrap();
        let at_snapshot = machine.state().clone();
        machine.apply([note(7)]).await.unwrap();
        at_snapshot
    });
    run(async {
        let (_, mut machine) = open(dir.path());
        assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(6)));
        assert_eq!(*machine.state(), before);
        machine.apply([note(7)]).await.unwrap();
        assert_eq!(machine.state().events.back().unwrap().text, "entry 7");
    });
}

#[test]
fn a_full_map_refuses_writes_and_keeps_what_was_there() {
    let dir = TempDir::new().unwrap();
    let map = 256 << 10;
    let written = run(async {
        let mut log = LogStore::open(dir.path(), map).unwrap();
        let mut written = 0;
        for index in 1..100_000 {
            if log.blocking_append([note(index)]).await.is_err() {
                break;
            }
            written = index;
        }
        assert!(log.fill_gauge().load(std::sync::atomic::Ordering::Relaxed) >= 50);
        assert!(
            log.save_vote(&Vote::new(9, 9)).await.is_err(),
            "nothing after a failure"
        );
        written
    });
    assert!(written > 10);
    run(async {
        let mut log = LogStore::open(dir.path(), map).unwrap();
        assert_eq!(
            log.get_log_state().await.unwrap().last_log_id,
            Some(log_id(written))
        );
        assert_eq!(log.read_vote().await.unwrap(), None);
    });
}

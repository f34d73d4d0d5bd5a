//! Heartbeats and reports of a daemon.

use super::MetadClient;
use crate::api::{Answer, Question, Report, ReportContents, Reporter};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Changes within this time travel together.
const COALESCE: Duration = Duration::from_millis(100);

/// Keeps the leader informed of what a daemon last said, until it is dropped.
#[derive(Debug)]
pub struct ReportHandle {
    shared: Rc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    contents: RefCell<ReportContents>,
    turn: Cell<u64>,
    changed: Notify,
}

impl ReportHandle {
    /// Replaces what is reported; sent soon, together with what else changes meanwhile.
    pub fn update(&self, contents: ReportContents) {
        if *self.shared.contents.borrow() == contents {
            return;
        }
        *self.shared.contents.borrow_mut() = contents;
        self.shared.turn.set(self.shared.turn.get() + 1);
        self.shared.changed.notify_one();
    }

    /// Changes part of what is reported.
    pub fn change(&self, edit: impl FnOnce(&mut ReportContents)) {
        let mut contents = self.shared.contents.borrow().clone();
        edit(&mut contents);
        self.update(contents);
    }
}

impl Drop for ReportHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl MetadClient {
    /// Begins to report as a server or host: heartbeats, and contents whenever they change or the
    /// leader does not have them.
    pub fn reporter(&self, from: Reporter) -> ReportHandle {
        let shared = Rc::new(Shared {
            contents: RefCell::default(),
            turn: Cell::new(1),
            changed: Notify::new(),
        });
        let task = tokio::task::spawn_local(run(self.clone(), from, Rc::clone(&shared)));
        ReportHandle { shared, task }
    }
}

async fn run(client: MetadClient, from: Reporter, shared: Rc<Shared>) {
    let run = Uuid::new_v4();
    let heartbeat = Duration::from_millis(client.0.config.heartbeat_ms);
    let mut known_turn = 0;
    loop {
        let turn = shared.turn.get();
        let contents = (turn != known_turn).then(|| shared.contents.borrow().clone());
        let sent_contents = contents.is_some();
        let relinked = client.0.relinked.notified();
        let question = Question::Report(Report {
            from,
            run,
            turn,
            contents,
        });
        match client.ask(&question).await {
            Ok(Answer::Reported { known: true }) => known_turn = turn,
            Ok(Answer::Reported { known: false }) if !sent_contents => {
                known_turn = 0;
                continue;
            }
            Ok(other) => tracing::warn!(?other, "metad did not take a report"),
            Err(error) => tracing::warn!(%error, "metad did not take a report"),
        }
        let woken = tokio::time::timeout(heartbeat, async {
            tokio::select! {
                () = shared.changed.notified() => tokio::time::sleep(COALESCE).await,
                () = relinked => {}
            }
        })
        .await;
        if woken.is_err() {
            tracing::trace!("heartbeat");
        }
    }
}

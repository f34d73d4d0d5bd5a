//! What a run did to one block, event by event, for `tla/TraceResilver.tla`.
//!
//! Stores and membership are those of the block's shard. A run is followed from the first attach to
//! the first thing that the model does not have (a client that lives on after it was superseded, a
//! write that failed), or to as many events as were asked for.

use crate::metad::VOLUME;
use crate::sim::Sim;
use crate::stamp;
use crate::workload::Kind;
use shardmap::units::{BlockRange, Generation, Lba, StoreId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use volume::{CommandFacts, CommandKind, HostBuffer, StoreState, TraceEvent, VolumeEvent};

/// Why a run ends where a store cannot be looked into.
const HIDDEN: &str = "what a store holds cannot be seen";

/// The client that has the volume.
#[derive(Debug, Default)]
struct Client {
    host: usize,
    isr: BTreeSet<StoreId>,
    /// A smaller set was asked for.
    asked: Option<BTreeSet<StoreId>>,
    open: BTreeSet<StoreId>,
    /// It serves the block.
    attached: bool,
    /// The write that is under way.
    writing: Option<u64>,
    /// Requests from this one on were issued when no write or copy of the block was under way.
    quiet_from: u64,
    /// Stores on which something of the block was answered and no flush has covered it.
    touched: BTreeSet<StoreId>,
    /// Something of the block was acknowledged after the last flush that the host was told of.
    unpromised: bool,
    target: Option<StoreId>,
    /// Flushes under way on each store, and whether nothing of the block was answered since they left.
    flushes: BTreeMap<StoreId, VecDeque<bool>>,
}

/// A run, as far as it is known.
#[derive(Debug)]
pub(crate) struct Recorder {
    block: u64,
    events_max: usize,
    lines: Vec<String>,
    /// Of the block's shard.
    stores: Vec<StoreId>,
    client: Option<Client>,
    /// Writes in the order in which they were first sent.
    sent: Vec<u64>,
    /// Why nothing more is written down.
    ended: Option<&'static str>,
}

impl Recorder {
    pub(crate) fn new(block: u64, events_max: usize) -> Self {
        Self {
            block,
            events_max,
            lines: Vec::new(),
            stores: Vec::new(),
            client: None,
            sent: Vec::new(),
            ended: None,
        }
    }

    /// Nothing more will be written down.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// The run, and why it ends.
    pub(crate) fn into_lines(self) -> (Vec<String>, &'static str) {
        (self.lines, self.ended.unwrap_or("all is told"))
    }

    fn log(&mut self, action: &str, fields: &str) {
        if self.ended.is_some() {
            return;
        }
        let mut line = format!("[a |-> \"{action}\"");
        if !fields.is_empty() {
            write!(line, ", {fields}").expect("a string takes all");
        }
        self.lines.push(line + "]");
        if self.lines.len() >= self.events_max {
            self.ended = Some("long enough");
        }
    }

    fn end(&mut self, why: &'static str) {
        self.ended.get_or_insert(why);
    }

    fn name(&self, store: StoreId) -> String {
        let at = self.stores.iter().position(|s| *s == store);
        format!("\"s{}\"", at.expect("of the shard"))
    }

    fn store(&mut self, action: &str, store: StoreId) {
        let name = self.name(store);
        self.log(action, &format!("s |-> {name}"));
    }

    fn set(&self, members: &BTreeSet<StoreId>) -> String {
        let names: Vec<_> = members.iter().map(|s| self.name(*s)).collect();
        format!("m |-> {{{}}}", names.join(", "))
    }

    /// The number of a write; zero was never written.
    fn number(&self, value: u64) -> usize {
        let at = self.sent.iter().position(|v| *v == value);
        at.map_or(0, |n| n + 1)
    }

    fn attached(&mut self) -> Option<&mut Client> {
        self.client.as_mut().filter(|c| c.attached)
    }

    fn covers(&self, range: Option<BlockRange>) -> bool {
        range.is_some_and(|r| (r.start().0..r.end().0).contains(&self.block))
    }

    /// What became of the membership.
    fn members(&mut self, isr: BTreeSet<StoreId>) {
        let Some(client) = &mut self.client else {
            return;
        };
        client.asked = None;
        let was = std::mem::replace(&mut client.isr, isr.clone());
        if !client.attached {
            return;
        }
        if !was.is_subset(&isr) {
            let set = self.set(&isr);
            self.log("exclude", &set);
        }
        for store in isr.difference(&was) {
            self.store("join", *store);
        }
    }

    fn propose(&mut self, isr: BTreeSet<StoreId>) {
        let Some(client) = self.client.as_mut().filter(|c| c.isr != isr) else {
            return; // about stores of other shards
        };
        client.asked = Some(isr.clone());
        if client.attached {
            let set = self.set(&isr);
            self.log("propose", &set);
        }
    }

    /// Something of the block was answered: flushes that have left need not cover it.
    fn answered(&mut self, store: StoreId, next_op: u64) {
        let Some(client) = self.attached() else {
            return;
        };
        client.quiet_from = next_op;
        client.touched.insert(store);
        let flushes = client.flushes.entry(store).or_default();
        flushes.iter_mut().for_each(|covers| *covers = false);
    }

    fn broken(&mut self, store: StoreId) {
        let Some(client) = &mut self.client else {
            return;
        };
        client.open.remove(&store);
        client.flushes.remove(&store);
        if client.attached {
            self.store("break", store);
        }
    }

    fn sent_flush(&mut self, store: StoreId) {
        if let Some(client) = &mut self.client {
            client.flushes.entry(store).or_default().push_back(true);
        }
    }

    fn heard_flush(&mut self, store: StoreId) {
        let Some(client) = &mut self.client else {
            return;
        };
        let flushes = client.flushes.entry(store).or_default();
        let covers = flushes.pop_front().expect("it was sent");
        let tells = client.touched.contains(&store) || client.target == Some(store);
        if covers {
            client.touched.remove(&store);
        }
        if client.attached && tells {
            let (name, covers) = (self.name(store), if covers { "TRUE" } else { "FALSE" });
            self.log("flush", &format!("s |-> {name}, c |-> {covers}"));
        }
    }

    fn gone(&mut self) {
        if self.client.take().is_some_and(|c| c.attached) {
            self.log("gone", "");
        }
    }
}

impl Sim {
    fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_deref_mut().filter(|r| r.ended.is_none())
    }

    /// The client that the recorder follows, if it is on this host.
    fn followed(&mut self, host: usize) -> Option<&mut Recorder> {
        self.recorder()
            .filter(|r| r.client.as_ref().is_some_and(|c| c.host == host))
    }

    pub(crate) fn record_grant(&mut self, host: usize, isr: &BTreeSet<StoreId>) {
        let map = &self.recorded().map;
        let block = self.recorder.as_ref().map_or(0, |r| r.block);
        let stores: Vec<_> = map.stores_of(map.shape.shard_of(Lba(block))).collect();
        let Some(recorder) = self.recorder() else {
            return;
        };
        if recorder.client.as_ref().is_some_and(|c| c.attached) {
            return recorder.end("a client lives on after it was superseded");
        }
        recorder.stores = stores;
        let isr = isr.iter().copied().filter(|s| recorder.stores.contains(s));
        recorder.client = Some(Client {
            host,
            isr: isr.collect(),
            ..Client::default()
        });
    }

    /// What metad is restored from is no state of the model.
    pub(crate) fn record_restore(&mut self) {
        if let Some(recorder) = self.recorder() {
            recorder.end("metad was restored from a backup");
        }
    }

    /// A client of the model trusts nothing that was not flushed.
    pub(crate) fn record_take_over(&mut self) {
        if let Some(recorder) = self.recorder() {
            recorder.end("a clientd takes over the device of another");
        }
    }

    /// The model has one kind of client.
    pub(crate) fn record_upkeep(&mut self) {
        if let Some(recorder) = self.recorder() {
            recorder.end("a storaged brings the volume up to date");
        }
    }

    pub(crate) fn record_gone(&mut self, host: usize) {
        if let Some(recorder) = self.followed(host) {
            recorder.gone();
        }
    }

    /// A store begins a new life after one that did not end in order; what it has kept.
    pub(crate) fn record_crash(&mut self, server: usize) {
        let store = self.servers[server].store;
        let value = self.value_on(store);
        let Some(recorder) = self.recorder() else {
            return;
        };
        if let Some(store) = store.filter(|s| recorder.stores.contains(s)) {
            let Some(value) = value else {
                return recorder.end(HIDDEN);
            };
            let name = recorder.name(store);
            recorder.log("crash", &format!("s |-> {name}, v |-> {value}"));
        }
    }

    pub(crate) fn record_loss(&mut self, server: usize) {
        let store = self.servers[server].store;
        if let Some(recorder) = self.recorder()
            && let Some(store) = store.filter(|s| recorder.stores.contains(s))
        {
            recorder.store("loss", store);
        }
    }

    /// The number of the write that a store holds of the block, if it can be looked into.
    fn value_on(&mut self, store: Option<StoreId>) -> Option<usize> {
        let (recorder, store) = (self.recorder.as_ref()?, store?);
        let volume = self.recorded();
        let at = volume.map.stores.iter().position(|s| *s == store)?;
        let (nsid, block) = (volume.slices[at], recorder.block);
        if self.with_store(store, |it| it.slice(nsid).is_none()) == Some(true) {
            return Some(recorder.number(0)); // not made anew yet
        }
        let value = self.peek(store, nsid, block, Generation(0)).ok()?; // it may be down
        Some(recorder.number(value))
    }

    /// A volume's event, before anybody else has seen it.
    pub(crate) fn record_event(&mut self, host: usize, event: &VolumeEvent) {
        if self.followed(host).is_none() {
            return;
        }
        match event {
            VolumeEvent::HostDone {
                id, result, buffer, ..
            } => self.record_done(host, *id, result.is_ok(), buffer),
            VolumeEvent::Transition { what, .. } => self.record_transition(host, *what),
            VolumeEvent::Detached { .. }
            | VolumeEvent::AttachFailed { .. }
            | VolumeEvent::Failed { .. } => self.record_gone(host),
            VolumeEvent::Attached { .. }
            | VolumeEvent::AskMetad { .. }
            | VolumeEvent::AskVerify { .. }
            | VolumeEvent::Remember { .. }
            | VolumeEvent::Snapshot { .. }
            | VolumeEvent::Progress { .. }
            | VolumeEvent::Resilvered { .. } => {}
        }
    }

    fn record_done(&mut self, host: usize, id: u64, fine: bool, buffer: &HostBuffer) {
        let Some(op) = self.hosts[host].ops.get(&id).copied() else {
            return;
        };
        let next_op = self.next_op;
        let Some(recorder) = self.followed(host) else {
            return;
        };
        let block = recorder.block;
        let hit = (op.start..op.end).contains(&block);
        let Some(client) = recorder.attached() else {
            return;
        };
        let quiet = client.writing.is_none() && id >= client.quiet_from && fine;
        match op.kind {
            Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard if hit => {
                if !fine {
                    return recorder.end("a write failed");
                }
                client.quiet_from = next_op;
                client.writing = None;
                client.unpromised = true;
                let number = recorder.number(id);
                recorder.log("ack", &format!("v |-> {number}"));
            }
            Kind::Flush if quiet && std::mem::take(&mut client.unpromised) => {
                recorder.log("flushed", "");
            }
            Kind::Read if quiet && hit => {
                let HostBuffer::Read(data) = buffer else {
                    return;
                };
                let at = usize::try_from(block - op.start).expect("small") * 4096;
                let value = stamp::sequence_of(&data.bytes()[at..at + 4096], block);
                let Ok(value) = value else {
                    return recorder.end("a read brought foreign data"); // the oracle says more
                };
                let number = recorder.number(value);
                recorder.log("read", &format!("v |-> {number}"));
            }
            Kind::Write { .. } | Kind::Zero { .. } | Kind::Discard | Kind::Flush | Kind::Read => {}
        }
    }

    fn record_transition(&mut self, host: usize, what: TraceEvent) {
        let all = self.recorded().map.stores.clone();
        let Some(recorder) = self.followed(host) else {
            return;
        };
        let ours = recorder.stores.clone();
        let among = |members: volume::core::Members| -> BTreeSet<StoreId> {
            let stores = members.iter().map(|at| all[at.index()]);
            stores.filter(|s| ours.contains(s)).collect()
        };
        let client = recorder.client.as_mut().expect("just seen");
        let attached = client.attached;
        match what {
            TraceEvent::Open { store, .. } if ours.contains(&store) => {
                client.open.insert(store);
                if attached {
                    self.record_open(host, store);
                }
            }
            TraceEvent::ConnBreak { store } if ours.contains(&store) => recorder.broken(store),
            TraceEvent::Learn { isr, .. } => recorder.members(among(isr)),
            TraceEvent::Propose { isr } => recorder.propose(among(isr)),
            TraceEvent::Establish { regions: 0 } | TraceEvent::Reconciled => {
                self.record_attached(host);
            }
            TraceEvent::StartRs { store } if ours.contains(&store) => {
                self.record_attached(host);
                if let Some(recorder) = self.followed(host) {
                    recorder.client.as_mut().expect("just seen").target = Some(store);
                    recorder.store("resilver", store);
                }
            }
            TraceEvent::Planned { store, .. } if ours.contains(&store) => {
                recorder.store("planned", store);
            }
            TraceEvent::DropRs { store } if ours.contains(&store) => recorder.store("drop", store),
            TraceEvent::Stable if attached => recorder.log("stable", ""),
            TraceEvent::Sent(facts) if ours.contains(&facts.store) => {
                self.record_sent(host, &facts);
            }
            TraceEvent::Heard(facts) if ours.contains(&facts.store) => {
                self.record_heard(host, &facts);
            }
            // Of other shards, or told by other events.
            TraceEvent::Open { .. }
            | TraceEvent::ConnBreak { .. }
            | TraceEvent::Suspect { .. }
            | TraceEvent::Join { .. }
            | TraceEvent::Verify { .. }
            | TraceEvent::Slow { .. }
            | TraceEvent::Repaired { .. }
            | TraceEvent::Stamp { .. }
            | TraceEvent::Establish { .. }
            | TraceEvent::StartRs { .. }
            | TraceEvent::Planned { .. }
            | TraceEvent::RsFlush { .. }
            | TraceEvent::DropRs { .. }
            | TraceEvent::Resilvered(_)
            | TraceEvent::Stable
            | TraceEvent::Begun { .. }
            | TraceEvent::Sealed { .. }
            | TraceEvent::CatchUp { .. }
            | TraceEvent::CaughtUp { .. }
            | TraceEvent::Shows { .. }
            | TraceEvent::Sent(_)
            | TraceEvent::Heard(_) => {}
        }
    }

    fn record_sent(&mut self, host: usize, facts: &CommandFacts) {
        let Some(recorder) = self.followed(host) else {
            return;
        };
        if facts.what == CommandKind::Flush {
            return recorder.sent_flush(facts.store);
        }
        if facts.what != CommandKind::Write || !recorder.covers(facts.range) {
            return;
        }
        // Only what is reconciled is written.
        self.record_attached(host);
        let id = facts.request.expect("a write is a host's");
        let zero = self.hosts[host]
            .ops
            .get(&id)
            .is_some_and(|op| matches!(op.kind, Kind::Zero { .. } | Kind::Discard));
        let Some(recorder) = self.followed(host) else {
            return;
        };
        let client = recorder.client.as_mut().expect("just seen");
        if client.writing.replace(id) != Some(id) {
            recorder.sent.push(id);
            let number = recorder.number(id);
            recorder.log(
                if zero { "zero" } else { "write" },
                &format!("v |-> {number}"),
            );
        }
    }

    fn record_heard(&mut self, host: usize, facts: &CommandFacts) {
        let next_op = self.next_op;
        let Some(recorder) = self.followed(host) else {
            return;
        };
        let hit = recorder.covers(facts.range);
        let store = facts.store;
        if facts.what == CommandKind::Flush {
            return recorder.heard_flush(store);
        }
        if recorder.attached().is_none() {
            return;
        }
        let what = match facts.what {
            CommandKind::Write if hit => "land",
            CommandKind::Marks => "marks",
            CommandKind::Presence if hit => "presence",
            CommandKind::CopyRead if hit => "source",
            CommandKind::CopyWrite if hit => "copied",
            CommandKind::Complete => "complete",
            // Of other blocks, or one step with something else in the model.
            CommandKind::Write
            | CommandKind::Presence
            | CommandKind::CopyRead
            | CommandKind::CopyWrite
            | CommandKind::ReconcileWrite
            | CommandKind::Stable
            | CommandKind::Flush => return,
        };
        recorder.store(what, store);
        if matches!(what, "land" | "copied") {
            recorder.answered(store, next_op);
            if facts.durable {
                let client = recorder.client.as_mut().expect("attached");
                client.touched.remove(&store);
                let name = recorder.name(store);
                recorder.log("flush", &format!("s |-> {name}, c |-> TRUE"));
            }
        }
    }

    fn record_open(&mut self, host: usize, store: StoreId) {
        let status = self.hosts[host].app.as_ref();
        let status = status.and_then(|app| app.borrow().volumes.status(VOLUME));
        let suspect = status.is_some_and(|s| s.stores[&store].state == StoreState::Suspect);
        let suspect = if suspect { "TRUE" } else { "FALSE" };
        if let Some(recorder) = self.recorder() {
            let name = recorder.name(store);
            recorder.log("open", &format!("s |-> {name}, sus |-> {suspect}"));
        }
    }

    /// The block's region is equal on all members: with which, and what they hold.
    fn record_attached(&mut self, host: usize) {
        let next_op = self.next_op;
        let Some(recorder) = self.followed(host) else {
            return;
        };
        let client = recorder.client.as_mut().expect("just seen");
        if std::mem::replace(&mut client.attached, true) {
            return;
        }
        client.quiet_from = next_op;
        let (isr, open, asked) = (
            client.isr.clone(),
            client.open.clone(),
            client.asked.clone(),
        );
        let first = isr.first().copied();
        let value = self.value_on(first);
        let Some(recorder) = self.recorder() else {
            return;
        };
        let Some(value) = value else {
            return recorder.end(HIDDEN);
        };
        let fields = format!("{}, v |-> {value}", recorder.set(&isr));
        recorder.log("attach", &fields);
        // Who is asked to be removed had no session at that moment, and may have one by now.
        let smaller = asked.filter(|to| to.is_subset(&isr));
        let stay = smaller.clone().unwrap_or_else(|| isr.clone());
        for store in isr
            .iter()
            .filter(|s| !open.contains(s) || !stay.contains(s))
        {
            recorder.store("break", *store);
        }
        if let Some(smaller) = smaller {
            let set = recorder.set(&smaller);
            recorder.log("propose", &set);
        }
        for store in open.difference(&stay) {
            self.record_open(host, *store);
        }
    }
}

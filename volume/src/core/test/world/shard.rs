//! What a world with one block did, at its stores and at clients that may have been superseded,
//! event by event, for `tla/TraceShard.tla`.

use super::record::set;
use super::{Parcel, World};
use crate::core::leg::Session;
use crate::core::{Command, CommandId, HostWhat, Payload, Position, TraceEvent};
use shardmap::units::{BlockRange, Lba, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// With more clients a run is not followed: each costs the checker a part of its state.
const CLIENTS_MAX: u64 = 6;

/// Off unless a test asks for it.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    on: bool,
    lines: Vec<Line>,
    /// What stores have done and nobody has heard of yet, by client and command.
    unheard: BTreeMap<(u64, CommandId), usize>,
    /// Values in the order in which they were first sent: what was never sent is in no trace.
    sent: Vec<u64>,
    /// Clients that serve the block.
    serve: BTreeSet<u64>,
    /// Clients that wait for metad.
    asked: BTreeSet<u64>,
    /// The client that attached last.
    newest: u64,
    /// How many events are of clients that had been superseded, and how many commands of theirs were
    /// refused by stores.
    of_superseded: usize,
    refused: usize,
    /// Nothing more is written down.
    ended: bool,
}

#[derive(Debug)]
struct Line {
    text: String,
    /// Of a command: whether its client has heard the answer, and nothing of the block was unflushed
    /// there then.
    answer: Option<(bool, bool)>,
}

impl Recorder {
    pub(super) const fn is_on(&self) -> bool {
        self.on
    }

    /// The number of a value's write; zero was never written.
    fn number(&self, value: u64) -> usize {
        let at = self.sent.iter().position(|v| *v == value);
        at.map_or(0, |n| n + 1)
    }

    fn log(&mut self, action: &str, client: u64, fields: &str) {
        if !self.on || self.ended {
            return;
        }
        self.newest = self.newest.max(client);
        self.of_superseded += usize::from(client > 0 && client < self.newest);
        let mut text = format!("[a |-> \"{action}\", e |-> {client}");
        if !fields.is_empty() {
            write!(text, ", {fields}").expect("a string takes all");
        }
        self.lines.push(Line { text, answer: None });
    }

    /// A command was done whose answer may be lost.
    fn log_command(&mut self, action: &str, parcel: &Parcel, fields: &str) {
        let before = self.lines.len();
        let store = format!("s |-> \"s{}\"{fields}", parcel.at);
        self.log(action, parcel.client, &store);
        if let Some(line) = self.lines.get_mut(before) {
            line.answer = Some((false, false));
            self.unheard.insert((parcel.client, parcel.id), before);
        }
    }
}

impl World {
    /// One block, one operation of each client at a time, and everything is written down.
    pub(in crate::core::test) fn record_shard(&mut self) {
        self.shard.on = true;
    }

    /// The run, up to the first thing that the model does not have; how many of its events are of clients
    /// that had been superseded, and how many commands of theirs were refused.
    pub(in crate::core::test) fn recorded_shard(self) -> (Vec<String>, usize, usize) {
        let truth = |is: bool| if is { "TRUE" } else { "FALSE" };
        let line = |line: Line| match line.answer {
            None => line.text + "]",
            Some((heard, covers)) => {
                let (heard, covers) = (truth(heard), truth(covers));
                line.text + &format!(", h |-> {heard}, c |-> {covers}]")
            }
        };
        let lines = self.shard.lines.into_iter().map(line).collect();
        (lines, self.shard.of_superseded, self.shard.refused)
    }

    /// The client that acts.
    fn life(&self) -> Option<u64> {
        self.client.as_ref().map(|c| c.life)
    }

    pub(super) fn shard_attach(&mut self) {
        self.shard.ended |= self.clients > CLIENTS_MAX;
        self.shard.log("attach", self.clients, "");
    }

    pub(super) fn shard_gone(&mut self) {
        let Some(life) = self.life() else { return };
        self.shard.serve.remove(&life);
        self.shard.asked.remove(&life);
        self.shard.log("gone", life, "");
    }

    pub(super) fn shard_crash(&mut self, at: Position) {
        let value = self.shard.number(self.stores[at.index()].value(0));
        let fields = format!("s |-> \"s{at}\", v |-> {value}");
        self.shard.log("crash", 0, &fields);
    }

    pub(super) fn shard_loss(&mut self, at: Position) {
        self.shard.log("loss", 0, &format!("s |-> \"s{at}\""));
    }

    /// metad has recorded another membership.
    pub(super) fn shard_commit(&mut self, client: u64) {
        let members = set(self.metad.isr);
        self.shard.log("commit", client, &members);
    }

    /// A command of a host's write leaves; the first one begins the write.
    pub(super) fn shard_sent(&mut self, value: u64) {
        if self.shard.on && self.shard.number(value) == 0 {
            self.shard.sent.push(value);
            let life = self.life().expect("it sends");
            let value = self.shard.number(value);
            self.shard.log("write", life, &format!("v |-> {value}"));
        }
    }

    pub(super) fn shard_refused(&mut self, client: u64) {
        let counts = self.shard.on && !self.shard.ended && client < self.clients;
        self.shard.refused += usize::from(counts);
    }

    /// A store has done a command. `marked`: the region was marked before.
    pub(super) fn shard_performed(&mut self, parcel: &Parcel, marked: bool) {
        if !self.shard.on {
            return;
        }
        let message = &parcel.message;
        let first = |range: &BlockRange| range.start() == Lba(0);
        let value = self
            .shard
            .number(message.data.first().copied().unwrap_or(0));
        let value = format!(", v |-> {value}");
        let (what, fields) = match &message.what {
            Command::OpenSlice { .. } => ("opens", String::new()),
            Command::Write {
                from: Payload::Host { .. },
                ..
            } => ("W", value),
            Command::Write { range, fua, .. } | Command::Zero { range, fua, .. }
                if first(range) =>
            {
                (if *fua { "C" } else { "copy" }, value)
            }
            Command::Flush => ("F", String::new()),
            Command::Stamp(stamp) => ("stamp", format!(", q |-> {}", stamp.seq.0)),
            Command::CompleteSlice(_) => ("complete", String::new()),
            Command::Stable { .. } => {
                let store = &self.stores[parcel.at.index()];
                if !marked || store.marks.contains_key(&0) {
                    return;
                }
                ("M", String::new())
            }
            Command::Read { .. }
            | Command::Write { .. }
            | Command::Zero { .. }
            | Command::CloseSlice
            | Command::SliceState
            | Command::Tick
            | Command::ReadMarks { .. }
            | Command::AddMarks(_)
            | Command::ReadPresence { .. }
            | Command::ReadGenerations
            | Command::BeginGeneration(_)
            | Command::CompleteGeneration(_)
            | Command::Hash(..) => return,
        };
        self.shard.log_command(what, parcel, &fields);
    }

    /// An answer is about to reach its client.
    pub(super) fn shard_heard(&mut self, at: Position, id: CommandId, fine: bool) {
        let client = self.client.as_ref().expect("it hears");
        let Some(line) = self.shard.unheard.remove(&(client.life, id)) else {
            return;
        };
        let machine = &client.machine;
        let leg = machine.leg(at);
        let sent = machine.commands[&id].session_no;
        if fine && leg.session != Session::Closed && leg.session_no == sent {
            let covers = !leg.unflushed.wants_flush();
            self.shard.lines[line].answer = Some((true, covers));
        }
    }

    pub(super) fn shard_done(&mut self, what: HostWhat, value: Option<u64>, fine: bool) {
        self.shard.ended |= !fine;
        let life = self.life().expect("it completes");
        let value = || format!("v |-> {}", self.shard.number(value.expect("it has data")));
        let (what, fields) = match what {
            HostWhat::Write { .. } => ("ack", value()),
            HostWhat::Flush => ("flushed", String::new()),
            HostWhat::Read(_) => ("read", value()),
            HostWhat::Zero { .. } | HostWhat::Changes { .. } => return,
        };
        self.shard.log(what, life, &fields);
    }

    pub(super) fn shard_trace(&mut self, event: TraceEvent) {
        let Some(life) = self.life().filter(|_| self.shard.on) else {
            return;
        };
        self.shard.ended |= self.quiet;
        let position = |id: StoreId| {
            let at = self.map.stores.iter().position(|s| *s == id);
            Position::new(at.expect("of the map"))
        };
        let store = |id| format!("s |-> \"s{}\"", position(id));
        match event {
            TraceEvent::Open { store: id, .. } => {
                let client = self.client.as_ref().expect("it opens");
                let suspect = client.machine.leg(position(id)).suspect;
                let suspect = if suspect { "TRUE" } else { "FALSE" };
                let fields = format!("{}, sus |-> {suspect}", store(id));
                self.shard.log("open", life, &fields);
            }
            TraceEvent::ConnBreak { store: id } => self.shard.log("break", life, &store(id)),
            TraceEvent::StartRs { store: id } => self.shard.log("resilver", life, &store(id)),
            TraceEvent::DropRs { store: id } => self.shard.log("drop", life, &store(id)),
            TraceEvent::Propose { isr } => {
                // The model has no request that replaces another one.
                self.shard.ended |= !self.shard.asked.insert(life);
                self.shard.log("propose", life, &set(isr));
            }
            TraceEvent::Join { store: id, .. } => {
                self.shard.asked.insert(life);
                self.shard.log("join", life, &store(id));
            }
            TraceEvent::Learn { isr, .. } => {
                self.shard.asked.remove(&life);
                self.shard.log("learn", life, &set(isr));
            }
            TraceEvent::Establish { regions: 0 } | TraceEvent::Reconciled => {
                self.shard_serves(life);
            }
            TraceEvent::Establish { .. }
            | TraceEvent::Sent(_)
            | TraceEvent::Heard(_)
            | TraceEvent::Suspect { .. }
            | TraceEvent::Planned { .. }
            | TraceEvent::Stable
            | TraceEvent::Stamp { .. }
            | TraceEvent::RsFlush { .. }
            | TraceEvent::Verify { .. }
            | TraceEvent::Slow { .. }
            | TraceEvent::Repaired { .. }
            | TraceEvent::Begun { .. }
            | TraceEvent::Sealed { .. }
            | TraceEvent::CatchUp { .. }
            | TraceEvent::CaughtUp { .. }
            | TraceEvent::Shows { .. }
            | TraceEvent::Resilvered(_) => {}
        }
    }

    /// The block is equal on all members: what they hold.
    fn shard_serves(&mut self, life: u64) {
        if !self.shard.serve.insert(life) {
            return;
        }
        let machine = &self.client.as_ref().expect("it serves").machine;
        // A member may have lost its disk a moment ago.
        let usable = machine.usable(machine.isr);
        let first = usable.iter().chain(machine.isr.iter()).next();
        let first = first.expect("never empty");
        let value = self.shard.number(self.stores[first.index()].value(0));
        self.shard.log("serve", life, &format!("v |-> {value}"));
    }
}

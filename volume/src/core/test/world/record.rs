//! What a world with one block did, event by event, for `tla/TraceResilver.tla`.

use super::{Client, World};
use crate::core::copy::CopyFor;
use crate::core::leg::Session;
use crate::core::state::{Outstanding, Purpose};
use crate::core::{Answer, CommandId, Fault, HostWhat, Members, Position, TraceEvent};
use shardmap::units::{Lba, RegionIndex};
use std::fmt::Write as _;

/// Off unless a test asks for it.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    on: bool,
    lines: Vec<String>,
    /// The in-sync set as the client knows it.
    isr: Members,
    open: Members,
    /// The client serves, its marked regions are equal.
    attached: bool,
    writing: bool,
    /// Values in the order in which they were first sent: what was never sent is in no trace.
    sent: Vec<u64>,
    /// Something happened that the model does not have.
    spoiled: bool,
}

impl Recorder {
    /// The number of a value's write; zero was never written.
    fn number(&self, value: u64) -> usize {
        self.sent
            .iter()
            .position(|v| *v == value)
            .map_or(0, |n| n + 1)
    }

    fn log(&mut self, action: &str, fields: &str) {
        if !self.on {
            return;
        }
        let mut line = format!("[a |-> \"{action}\"");
        if !fields.is_empty() {
            write!(line, ", {fields}").expect("a string takes all");
        }
        self.lines.push(line + "]");
    }

    fn store(&mut self, action: &str, at: Position) {
        self.log(action, &format!("s |-> \"s{at}\""));
    }

    /// What became of the membership.
    fn members(&mut self, isr: Members) {
        if self.attached {
            if !self.isr.minus(isr).is_empty() {
                self.log("exclude", &set(isr));
            }
            let come = isr.minus(self.isr);
            come.iter().for_each(|at| self.store("join", at));
        }
        self.isr = isr;
    }
}

pub(super) fn set(members: Members) -> String {
    let names: Vec<_> = members.iter().map(|at| format!("\"s{at}\"")).collect();
    format!("m |-> {{{}}}", names.join(", "))
}

impl World {
    /// One block, one operation at a time, and everything is written down.
    pub(in crate::core::test) fn record(&mut self) {
        self.recorder.on = true;
    }

    /// The run, unless something happened that the model does not have.
    pub(in crate::core::test) fn recorded(self) -> Option<Vec<String>> {
        (!self.recorder.spoiled).then_some(self.recorder.lines)
    }

    pub(super) fn is_recording(&self) -> bool {
        self.recorder.on || self.shard.is_on()
    }

    pub(super) fn record_start(&mut self) {
        self.recorder.isr = self.metad.isr;
        self.recorder.open = Members::EMPTY;
        self.recorder.attached = false;
        self.recorder.writing = false;
    }

    pub(super) fn record_crash(&mut self, at: Position) {
        let value = self.recorder.number(self.stores[at.index()].value(0));
        self.recorder
            .log("crash", &format!("s |-> \"s{at}\", v |-> {value}"));
    }

    pub(super) fn record_loss(&mut self, at: Position) {
        self.recorder.store("loss", at);
    }

    /// What metad knows and the client does not is settled now.
    pub(super) fn record_gone(&mut self) {
        if self.recorder.attached {
            self.recorder.members(self.metad.isr);
            self.recorder.log("gone", "");
        }
        self.recorder.attached = false;
    }

    /// The write's first command leaves: it has its lock.
    pub(super) fn record_sent(&mut self, value: u64) {
        if self.recorder.on && !std::mem::replace(&mut self.recorder.writing, true) {
            if self.recorder.number(value) == 0 {
                self.recorder.sent.push(value);
            }
            let value = self.recorder.number(value);
            self.recorder.log("write", &format!("v |-> {value}"));
        }
    }

    /// An answer is about to reach the client.
    pub(super) fn record_answer(&mut self, id: CommandId, result: &Result<Answer, Fault>) {
        if !self.recorder.attached || self.quiet {
            return;
        }
        let Some(client) = self.client.as_ref().filter(|_| self.recorder.on) else {
            return;
        };
        let machine = &client.machine;
        let Outstanding {
            to,
            session_no,
            purpose,
            ..
        } = machine.commands[&id];
        let leg = machine.leg(to);
        let current = leg.session != Session::Closed && leg.session_no == session_no;
        let Some(answer) = result.as_ref().ok().filter(|_| current) else {
            return;
        };
        let resilvers = |copy| {
            let copy = machine.copies.get(&copy);
            copy.is_some_and(|c| c.purpose == CopyFor::Resilver && c.range.start() == Lba(0))
        };
        let what = match purpose {
            Purpose::HostWrite { .. } => "land",
            Purpose::Flush => "flush",
            Purpose::ResilverMarks if matches!(answer, Answer::Marks(_, None)) => "marks",
            Purpose::ResilverPresence(RegionIndex(0)) => "presence",
            Purpose::CopyRead(copy) if resilvers(copy) => "source",
            Purpose::CopyWrite(copy) if resilvers(copy) => "copied",
            Purpose::ResilverComplete => "complete",
            Purpose::Open
            | Purpose::State
            | Purpose::Hear
            | Purpose::AttachMarks
            | Purpose::Close
            | Purpose::Stamp(_)
            | Purpose::HostRead { .. }
            | Purpose::CopyRead(_)
            | Purpose::CopyWrite(_)
            | Purpose::Hash(..)
            | Purpose::Generations
            | Purpose::Begin(_)
            | Purpose::Seal(_)
            | Purpose::CatchUpMarks
            | Purpose::CatchUpBegin(_)
            | Purpose::CatchUpPresence(_)
            | Purpose::CatchUpSeal(_)
            | Purpose::ResilverSeal(_)
            | Purpose::ResilverMarks
            | Purpose::ResilverPresence(_)
            | Purpose::ResilverAddMarks
            | Purpose::Tick(_)
            | Purpose::Stable(_) => return,
        };
        if what == "flush" {
            // One operation at a time: nothing is answered while a flush is on its way.
            let fields = format!("s |-> \"s{to}\", c |-> TRUE");
            return self.recorder.log(what, &fields);
        }
        self.recorder.store(what, to);
    }

    pub(super) fn record_done(&mut self, what: HostWhat, value: Option<u64>, fine: bool) {
        self.recorder.spoiled |= !fine && self.client.is_some();
        match what {
            HostWhat::Write { .. } => {
                self.recorder.writing = false;
                let value = self.recorder.number(value.expect("a write has data"));
                self.recorder.log("ack", &format!("v |-> {value}"));
            }
            HostWhat::Flush => self.recorder.log("flushed", ""),
            HostWhat::Read(_) => {
                let value = self.recorder.number(value.expect("a read has data"));
                self.recorder.log("read", &format!("v |-> {value}"));
            }
            HostWhat::Zero { .. } => self.recorder.spoiled = true,
            HostWhat::Changes { .. } => unreachable!("asked of views only"),
        }
    }

    pub(super) fn record_trace(&mut self, event: TraceEvent) {
        if !self.recorder.on || self.quiet {
            return;
        }
        let stores = &self.map.stores;
        let position =
            |id| Position::new(stores.iter().position(|s| *s == id).expect("of the map"));
        match event {
            TraceEvent::Open { store, .. } => {
                let at = position(store);
                self.recorder.open.insert(at);
                if self.recorder.attached {
                    self.record_open(at);
                }
            }
            TraceEvent::ConnBreak { store } => {
                let at = position(store);
                self.recorder.open.remove(at);
                if self.recorder.attached {
                    self.recorder.store("break", at);
                }
            }
            TraceEvent::Learn { isr, .. } => self.recorder.members(isr),
            TraceEvent::Establish { regions: 0 } | TraceEvent::Reconciled => self.record_attached(),
            TraceEvent::Propose { isr } if self.recorder.attached => {
                self.recorder.log("propose", &set(isr));
            }
            TraceEvent::StartRs { store } => self.recorder.store("resilver", position(store)),
            TraceEvent::Planned { store, .. } => self.recorder.store("planned", position(store)),
            TraceEvent::DropRs { store } => self.recorder.store("drop", position(store)),
            TraceEvent::Stable => self.recorder.log("stable", ""),
            TraceEvent::Establish { .. }
            | TraceEvent::Sent(_)
            | TraceEvent::Heard(_)
            | TraceEvent::Propose { .. }
            | TraceEvent::Suspect { .. }
            | TraceEvent::Join { .. }
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

    fn record_open(&mut self, at: Position) {
        let suspect = |c: &Client| c.machine.leg(at).suspect;
        let suspect = self.client.as_ref().is_some_and(suspect);
        let suspect = if suspect { "TRUE" } else { "FALSE" };
        self.recorder
            .log("open", &format!("s |-> \"s{at}\", sus |-> {suspect}"));
    }

    /// All that had to be made equal is: with which members, and what they hold.
    fn record_attached(&mut self) {
        if std::mem::replace(&mut self.recorder.attached, true) {
            return; // another reconcile of a client that serves
        }
        let (isr, open) = (self.recorder.isr, self.recorder.open);
        let first = isr.iter().next().expect("never empty");
        let value = self.recorder.number(self.stores[first.index()].value(0));
        let fields = format!("{}, v |-> {value}", set(isr));
        self.recorder.log("attach", &fields);
        // Who is asked to be removed had no session at that moment, and may have one by now.
        let pending = self.client.as_ref().and_then(|c| c.machine.pending);
        let smaller = pending.map(|p| p.isr).filter(|to| isr.covers(*to));
        let leaving = smaller.map_or(Members::EMPTY, |to| isr.minus(to));
        let closed = isr.minus(open).or(leaving);
        closed
            .iter()
            .for_each(|at| self.recorder.store("break", at));
        if let Some(smaller) = smaller {
            self.recorder.log("propose", &set(smaller));
        }
        let opened = open.minus(isr.minus(leaving));
        opened.iter().for_each(|at| self.record_open(at));
    }
}

//! The fold over everything that was told: who wrote what when, and what that allows.

use super::block::{Block, Held, HitKind, Time};
use super::record::{
    Action, Ending, Handover, Initial, OpId, Record, SerialAction, Sight, Subject, WriterId,
};
use super::stamp::{Content, Stamp};
use super::verdict::{Verdict, VerdictKind};
use shardmap::units::{Generation, Lba};
use std::collections::BTreeMap;

/// What no history can contain, or what no correct volume answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// A writer that had been fenced was told that its write or flush succeeded.
    #[error("{0} was issued after its writer had been fenced, and succeeded")]
    FencedButObeyed(OpId),
    /// The records contradict each other.
    #[error("{op}: {why}")]
    Malformed {
        /// About which.
        op: OpId,
        /// What is wrong.
        why: &'static str,
    },
    /// The first record and only the first says what the history is about.
    #[error("the history begins twice")]
    BegunTwice,
}

#[derive(Clone, Copy, Debug, Default)]
struct Writer {
    /// Of its newest action.
    seq: u64,
    /// The first sequence number that it used after the next writer had the device.
    fenced_from: Option<u64>,
    /// When its newest write completed that needs a flush.
    completed: Time,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    action: Action,
    issued: Time,
}

/// Everything that is known of a volume's contents.
#[derive(Clone, Debug)]
pub struct History {
    subject: Subject,
    now: Time,
    writers: Vec<Writer>,
    open: BTreeMap<OpId, Open>,
    blocks: BTreeMap<u64, Block>,
    /// Writes that completed before are durable.
    durable_before: Time,
}

impl History {
    /// Nothing was written yet and nobody has the device.
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            now: 0,
            writers: Vec::new(),
            open: BTreeMap::new(),
            blocks: BTreeMap::new(),
            durable_before: 0,
        }
    }

    /// What it is about.
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Who has the device.
    pub fn writer(&self) -> Option<WriterId> {
        let count = u32::try_from(self.writers.len()).expect("attaches fit 32 bits");
        (count > 0).then_some(WriterId(count))
    }

    /// Blocks that an action ever named by a write, in order.
    pub fn touched(&self) -> impl Iterator<Item = Lba> + '_ {
        self.blocks.keys().map(|lba| Lba(*lba))
    }

    /// Actions without an end, with what they are.
    pub fn open_actions(&self) -> impl Iterator<Item = (OpId, Action)> + '_ {
        self.open.iter().map(|(op, open)| (*op, open.action))
    }

    /// Whether `op` is a read without an end.
    pub(super) fn is_open_read(&self, op: OpId) -> bool {
        let open = self.open.get(&op);
        open.is_some_and(|o| matches!(o.action, Action::Read { .. }))
    }

    /// The next writer has the device; all earlier ones are fenced.
    pub fn hand_over(&mut self, how: Handover) -> WriterId {
        self.now += 1;
        if how == Handover::Clean {
            self.durable_before = self.now;
        }
        self.open.clear();
        for writer in &mut self.writers {
            writer.fenced_from.get_or_insert(writer.seq + 1);
        }
        for block in self.blocks.values_mut() {
            block.on_handed_over(how, self.now, self.durable_before);
        }
        self.writers.push(Writer::default());
        self.writer().expect("one was added")
    }

    /// `writer` asks for `action`. Tell it before the device is told. Panics on an unknown writer or
    /// a range outside the volume.
    pub fn issue(&mut self, writer: WriterId, action: Action) -> OpId {
        let seq = self.state(writer).expect("a known writer").seq + 1;
        let op = OpId { writer, seq };
        let issued = self.on_issued(op, action);
        assert_eq!(issued, Ok(()), "the caller's own action");
        op
    }

    /// `op` was answered. Tell it before anything is issued that relies on the answer.
    ///
    /// # Errors
    /// A fenced writer was obeyed, or there is no such action. The history goes on either way.
    pub fn end(&mut self, op: OpId, how: Ending) -> Result<(), Breach> {
        self.now += 1;
        let writer = *self.known(op)?;
        if let Some(fenced_from) = writer.fenced_from {
            // What it did before it was fenced is part of what an unclean detach leaves open.
            return self.end_fenced(op, how, fenced_from);
        }
        let open = self.open.remove(&op).ok_or(Breach::Malformed {
            op,
            why: "an end without a beginning",
        })?;
        let (fua, how_ended) = match open.action {
            Action::Write { fua, .. } | Action::Zero { fua, .. } => (fua, how),
            Action::Flush => {
                if how == Ending::Ok {
                    self.durable_before = self.durable_before.max(open.issued);
                }
                return Ok(());
            }
            Action::Read { .. } => return Ok(()),
        };
        if how_ended == Ending::Ok && !fua {
            self.writers[index(op.writer)].completed = self.now;
        }
        let range = open.action.range().expect("a write has one");
        let (now, oldest_read) = (self.now, self.oldest_read());
        for lba in range.start().0..range.end().0 {
            let block = self.blocks.get_mut(&lba).expect("noted when issued");
            block.on_ended(op, how_ended, fua, now);
            block.prune(oldest_read, self.durable_before);
        }
        Ok(())
    }

    fn end_fenced(&mut self, op: OpId, how: Ending, fenced_from: u64) -> Result<(), Breach> {
        let Some(open) = self.open.remove(&op) else {
            return Ok(()); // issued before the fence; too late to mean anything
        };
        assert!(op.seq >= fenced_from, "a fence closes what was open");
        let unflushed = self.writers[index(op.writer)].completed >= self.durable_before;
        let obeyed = match open.action {
            Action::Write { .. } | Action::Zero { .. } => true,
            // A flush of nothing needs no store's consent, nor does a read of a store that only
            // the fenced writer can reach.
            Action::Flush => unflushed,
            Action::Read { .. } => false,
        };
        if how == Ending::Ok && obeyed {
            return Err(Breach::FencedButObeyed(op));
        }
        Ok(())
    }

    /// What the write `op` puts into block `lba`.
    pub const fn stamp_of(&self, op: OpId, lba: Lba, generation: Generation) -> Stamp {
        Stamp {
            volume: self.subject.volume,
            lba,
            seq: op.seq,
            generation,
            writer: op.writer,
        }
    }

    /// Whether every read of the range issued now could return one content only. Such reads tell
    /// nothing about later ones.
    pub fn is_settled(&self, range: shardmap::units::BlockRange) -> bool {
        let mut blocks = self.blocks.range(range.start().0..range.end().0);
        blocks.all(|(_, b)| b.is_settled())
    }

    /// What it means that `read` found `content` in block `lba`. A legal answer is remembered: what
    /// was once read stays. Panics unless `read` is an open read of the writer that has the device.
    pub fn judge(&mut self, read: OpId, lba: Lba, content: &Content) -> Verdict {
        self.judge_and_note(read, lba, content).0
    }

    /// The verdict, and what to write down if it bears on later reads.
    pub(super) fn judge_and_note(
        &mut self,
        read: OpId,
        lba: Lba,
        content: &Content,
    ) -> (Verdict, Option<Sight>) {
        let since = self.open.get(&read).expect("an open read").issued;
        let held = self.initially();
        let now = self.now;
        let sight = self.sight_of(lba, content);
        let block = self
            .blocks
            .entry(lba.0)
            .or_insert_with(|| Block::start(held));
        let hit = sight.and_then(|s| block.on_read(s, since, now).map(|hit| (s, hit)));
        if let Some((sight, hit)) = hit {
            let kind = match hit.kind {
                HitKind::Newest => VerdictKind::Current,
                HitKind::OneOfSeveral => VerdictKind::Concurrent,
                HitKind::OlderAfterCrash => VerdictKind::OldButLegal,
            };
            let verdict = Verdict {
                kind,
                found: content.clone(),
                legal: Vec::new(),
            };
            return (verdict, hit.decides.then_some(sight));
        }
        let mut legal: Vec<Option<OpId>> = block.legal(since).map(|e| e.op).collect();
        legal.reverse();
        let last_seen = block.last_seen;
        let verdict = Verdict {
            kind: self.why_illegal(lba, content, last_seen),
            found: content.clone(),
            legal,
        };
        (verdict, None)
    }

    /// A journal's `Saw`.
    fn on_saw(&mut self, read: OpId, lba: u64, sight: Sight) -> Result<(), Breach> {
        let malformed = |why| Breach::Malformed { op: read, why };
        if self.known(read)?.fenced_from.is_some() {
            return Ok(());
        }
        let open = self
            .open
            .get(&read)
            .ok_or(malformed("saw without a read"))?;
        let (since, now) = (open.issued, self.now);
        let block = self
            .blocks
            .get_mut(&lba)
            .ok_or(malformed("saw something where nothing was written"))?;
        block
            .on_read(sight, since, now)
            .map(|_| ())
            .ok_or(malformed("saw what could not be seen"))
    }

    /// `None`: no entry of the block can show this.
    fn sight_of(&self, lba: Lba, content: &Content) -> Option<Sight> {
        let ours = |s: &Stamp| s.volume == self.subject.volume;
        match content {
            Content::Zero => Some(Sight::Zero),
            Content::Stamped(stamp) if ours(stamp) => {
                let op = op_of(stamp);
                let generation = self.blocks.get(&lba.0).and_then(|b| b.generation_of(op));
                (stamp.lba == lba && generation == Some(stamp.generation))
                    .then_some(Sight::Written(op))
            }
            Content::Torn(stamps) if stamps.iter().any(ours) => None,
            Content::Stamped(_) | Content::Torn(_) | Content::Foreign => Some(Sight::Initial),
        }
    }

    fn why_illegal(&self, lba: Lba, content: &Content, last_seen: Option<OpId>) -> VerdictKind {
        let stamp = match content {
            Content::Torn(_) => return VerdictKind::Torn,
            Content::Foreign => return VerdictKind::Foreign,
            Content::Zero if last_seen.is_some() => return VerdictKind::RolledBack,
            Content::Zero => return VerdictKind::Lost,
            Content::Stamped(stamp) => stamp,
        };
        if stamp.lba != lba || stamp.volume != self.subject.volume {
            return VerdictKind::Misdirected;
        }
        let op = op_of(stamp);
        match self.state(op.writer) {
            Some(writer) if op.seq <= writer.seq && op.seq > 0 => {
                if writer.fenced_from.is_some_and(|from| op.seq >= from) {
                    VerdictKind::Fenced
                } else if last_seen.is_some_and(|seen| op < seen) {
                    VerdictKind::RolledBack
                } else {
                    VerdictKind::Lost
                }
            }
            Some(_) | None => VerdictKind::Foreign,
        }
    }

    /// Takes the next record of a journal.
    ///
    /// # Errors
    /// As [`History::end`], or the record contradicts those before it.
    pub fn replay(&mut self, record: &Record) -> Result<(), Breach> {
        match *record {
            Record::Begun(_) => Err(Breach::BegunTwice),
            Record::HandedOver(how) => {
                self.hand_over(how);
                Ok(())
            }
            Record::Issued { op, action } => {
                let action = SerialAction::parse(action).ok_or(Breach::Malformed {
                    op,
                    why: "a range that cannot be",
                })?;
                self.on_issued(op, action)
            }
            Record::Ended { op, how } => self.end(op, how),
            Record::Saw { op, lba, sight } => self.on_saw(op, lba, sight),
        }
    }

    fn on_issued(&mut self, op: OpId, action: Action) -> Result<(), Breach> {
        let malformed = |why| Breach::Malformed { op, why };
        let known = self.known(op)?;
        if op.seq <= known.seq {
            return Err(malformed("a sequence number used before"));
        }
        let fenced = known.fenced_from.is_some();
        let range = action.range();
        if range.is_some_and(|r| r.end().0 > self.subject.size_blocks) {
            return Err(malformed("a range that passes the volume's end"));
        }
        self.now += 1;
        self.writers[index(op.writer)].seq = op.seq;
        let issued = self.now;
        self.open.insert(op, Open { action, issued });
        let held = match action {
            Action::Write { generation, .. } => Held::Stamped(generation),
            Action::Zero { .. } => Held::Zero,
            Action::Flush | Action::Read { .. } => return Ok(()),
        };
        if fenced {
            return Ok(()); // it must have no effect
        }
        let (initially, oldest_read) = (self.initially(), self.oldest_read());
        let range = range.expect("a write has one");
        for lba in range.start().0..range.end().0 {
            let block = self.blocks.entry(lba);
            let block = block.or_insert_with(|| Block::start(initially));
            block.prune(oldest_read, self.durable_before);
            block.on_issued(op, held, issued);
        }
        Ok(())
    }

    const fn initially(&self) -> Held {
        match self.subject.initial {
            Initial::Zero => Held::Zero,
            Initial::Unknown => Held::Initial,
        }
    }

    fn oldest_read(&self) -> Time {
        let reads = self.open.values();
        let reads = reads.filter(|o| matches!(o.action, Action::Read { .. }));
        reads.map(|o| o.issued).min().unwrap_or(self.now + 1)
    }

    fn state(&self, writer: WriterId) -> Option<&Writer> {
        self.writers
            .get(usize::try_from(writer.0.checked_sub(1)?).ok()?)
    }

    fn known(&self, op: OpId) -> Result<&Writer, Breach> {
        self.state(op.writer).ok_or(Breach::Malformed {
            op,
            why: "nobody attached as this writer",
        })
    }
}

fn index(writer: WriterId) -> usize {
    usize::try_from(writer.0).expect("32 bits") - 1
}

const fn op_of(stamp: &Stamp) -> OpId {
    OpId {
        writer: stamp.writer,
        seq: stamp.seq,
    }
}

//! Random histories of one block, against the dull model.

use super::dull::{Dull, Write};
use crate::{Action, Content, Ending, Handover, Initial, Journal, OpId, Subject, WriterId};
use proptest::prelude::*;
use shardmap::units::{BlockRange, Blocks, Generation, Lba, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

const LBA: Lba = Lba(3);

fn range() -> BlockRange {
    BlockRange::new(LBA, Blocks(1)).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write { zero: bool, fua: bool },
    EndWrite { pick: u8, ok: bool },
    Flush,
    EndFlush { ok: bool },
    Read,
    EndRead { pick: u8 },
    HandOver(Handover),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let handover = prop_oneof![
        1 => Just(Handover::Clean),
        1 => Just(Handover::Continued),
        2 => Just(Handover::Unclean)
    ];
    let step = prop_oneof![
        6 => (prop::bool::weighted(0.2), prop::bool::weighted(0.2))
            .prop_map(|(zero, fua)| Step::Write { zero, fua }),
        6 => (any::<u8>(), prop::bool::weighted(0.85))
            .prop_map(|(pick, ok)| Step::EndWrite { pick, ok }),
        2 => Just(Step::Flush),
        2 => prop::bool::weighted(0.9).prop_map(|ok| Step::EndFlush { ok }),
        5 => Just(Step::Read),
        5 => any::<u8>().prop_map(|pick| Step::EndRead { pick }),
        2 => handover.prop_map(Step::HandOver),
    ];
    prop::collection::vec(step, 1..24)
}

/// Both models, fed the same.
struct Pair {
    journal: Journal,
    saved: Vec<u8>,
    dull: Dull,
    writer: WriterId,
    /// Content of each write.
    contents: Vec<Content>,
    writes: Vec<(OpId, Write, bool)>,
    flush: Option<(OpId, BTreeSet<Write>)>,
    reads: Vec<(OpId, usize)>,
    reads_issued: usize,
    /// Writes that may be in flight together.
    depth: usize,
    /// A write began under a read that seemed to be able to tell nothing and was not written down.
    untold: bool,
}

impl Pair {
    fn new(depth: usize) -> Self {
        let mut journal = Journal::new(Subject {
            volume: VolumeId([9; 16]),
            size_blocks: 8,
            initial: Initial::Zero,
        });
        let writer = journal.hand_over(Handover::Clean);
        Self {
            journal,
            saved: Vec::new(),
            dull: Dull::new(),
            writer,
            contents: vec![Content::Zero],
            writes: Vec::new(),
            flush: None,
            reads: Vec::new(),
            reads_issued: 0,
            depth,
            untold: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write { zero, fua } if self.writes.len() < self.depth => self.write(zero, fua),
            Step::EndWrite { pick, ok } if !self.writes.is_empty() => {
                let at = usize::from(pick) % self.writes.len();
                let (op, write, fua) = self.writes.remove(at);
                if ok {
                    self.dull.write_completed(write, fua);
                    self.journal.end(op, Ending::Ok).unwrap();
                } else {
                    self.dull.write_failed(write);
                    self.journal.end(op, Ending::Failed).unwrap();
                }
            }
            Step::Flush if self.flush.is_none() => {
                let op = self.journal.issue(self.writer, Action::Flush);
                self.flush = Some((op, self.dull.completed()));
            }
            Step::EndFlush { ok } => {
                if let Some((op, writes)) = self.flush.take() {
                    if ok {
                        self.dull.flushed(&writes);
                    }
                    let how = if ok { Ending::Ok } else { Ending::Failed };
                    self.journal.end(op, how).unwrap();
                }
            }
            Step::Read if self.reads.len() < 2 => {
                let op = self
                    .journal
                    .issue(self.writer, Action::Read { range: range() });
                self.reads_issued += 1;
                self.dull.read_issued(self.reads_issued);
                self.reads.push((op, self.reads_issued));
            }
            Step::EndRead { pick } if !self.reads.is_empty() => self.end_read(usize::from(pick)),
            Step::HandOver(how) => {
                match how {
                    Handover::Clean => self.dull.detached(),
                    Handover::Continued => self.dull.continued(),
                    Handover::Unclean => self.dull.crashed(),
                }
                self.writer = self.journal.hand_over(how);
                (self.writes, self.flush, self.reads) = (Vec::new(), None, Vec::new());
            }
            Step::Write { .. } | Step::EndWrite { .. } | Step::Flush => {}
            Step::Read | Step::EndRead { .. } => {}
        }
        self.saved.append(&mut self.journal.take_unsaved());
    }

    fn write(&mut self, zero: bool, fua: bool) {
        let generation = Generation(1);
        let range = range();
        let action = if zero {
            Action::Zero { range, fua }
        } else {
            Action::Write {
                range,
                generation,
                fua,
            }
        };
        self.untold |= !self.reads.is_empty();
        let op = self.journal.issue(self.writer, action);
        let write = self.contents.len();
        let stamp = self.journal.history().stamp_of(op, LBA, generation);
        let content = if zero {
            Content::Zero
        } else {
            Content::Stamped(stamp)
        };
        self.contents.push(content);
        self.dull.write_issued(write);
        self.writes.push((op, write, fua));
    }

    /// Distinct contents and the writes that leave them.
    fn looks(&self) -> Vec<(Content, BTreeSet<Write>)> {
        let mut looks: Vec<(Content, BTreeSet<Write>)> = Vec::new();
        for (write, content) in self.contents.iter().enumerate() {
            match looks.iter_mut().find(|(c, _)| c == content) {
                Some((_, writes)) => drop(writes.insert(write)),
                None => looks.push((content.clone(), BTreeSet::from([write]))),
            }
        }
        looks
    }

    fn end_read(&mut self, pick: usize) {
        let (op, read) = self.reads.remove(pick % self.reads.len());
        let may = self.dull.may_return(read);
        let looks = self.looks();
        let mut legal = Vec::new();
        for (content, writes) in &looks {
            let dull = !may.is_disjoint(writes);
            let verdict = self.journal.clone().judge(op, LBA, content);
            // Never a false alarm; and nothing is missed where writes do not overlap.
            assert!(verdict.is_legal() || !dull, "{verdict}, but it may be");
            let strict = self.depth == 1;
            assert!(
                !strict || dull || !verdict.is_legal(),
                "{verdict}, but cannot be"
            );
            if dull {
                legal.push((content, writes));
            }
        }
        let (content, writes) = legal[(pick / 7) % legal.len()];
        self.dull.returned(read, &(&may & writes));
        assert!(self.journal.judge(op, LBA, content).is_legal());
        self.journal.end(op, Ending::Ok).unwrap();
    }

    /// What was saved knows as much.
    fn compare_with_saved(&mut self) {
        self.saved.append(&mut self.journal.take_unsaved());
        let mut loaded = Journal::load(&self.saved).unwrap();
        assert_eq!(
            (loaded.whole_bytes, loaded.obeyed.len()),
            (self.saved.len(), 0)
        );
        let mut legal = BTreeMap::new();
        for how in [Handover::Continued, Handover::Unclean] {
            for (name, journal) in [("live", &mut self.journal), ("saved", &mut loaded.journal)] {
                let writer = journal.hand_over(how);
                let op = journal.issue(writer, Action::Read { range: range() });
                let judge = |c: &Content| journal.clone().judge(op, LBA, c).is_legal();
                legal.insert(name, self.contents.iter().map(judge).collect::<Vec<_>>());
            }
            let mut both = legal["live"].iter().zip(&legal["saved"]);
            assert!(
                both.all(|(live, saved)| *saved || !live),
                "{how:?}: false alarm"
            );
            assert!(
                self.untold || legal["live"] == legal["saved"],
                "{how:?}: {legal:?}"
            );
        }
    }
}

fn run(depth: usize, steps: &[Step]) {
    let mut pair = Pair::new(depth);
    for step in steps {
        pair.step(*step);
    }
    pair.compare_with_saved();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 5 } else { 1000 }))]

    #[test]
    fn verdicts_are_exact_where_writes_do_not_overlap(steps in steps()) {
        run(1, &steps);
    }

    #[test]
    fn nothing_possible_is_called_illegal(steps in steps()) {
        run(3, &steps);
    }
}

//! Each verdict can be had, and from what it should.

use crate::{
    Action, Breach, Content, Ending, Handover, History, Initial, OpId, Stamp, Subject, Verdict,
    VerdictKind, WriterId,
};
use shardmap::units::{BlockRange, Blocks, Generation, Lba, VolumeId};

const AT: Lba = Lba(5);

struct Desk {
    history: History,
    writer: WriterId,
}

impl Desk {
    fn new(initial: Initial) -> Self {
        let mut history = History::new(Subject {
            volume: VolumeId([1; 16]),
            size_blocks: 16,
            initial,
        });
        let writer = history.hand_over(Handover::Clean);
        Self { history, writer }
    }

    fn range() -> BlockRange {
        BlockRange::new(AT, Blocks(1)).unwrap()
    }

    fn issue(&mut self, fua: bool) -> OpId {
        let action = Action::Write {
            range: Self::range(),
            generation: Generation(0),
            fua,
        };
        self.history.issue(self.writer, action)
    }

    fn write(&mut self) -> OpId {
        let op = self.issue(false);
        self.end(op);
        op
    }

    fn end(&mut self, op: OpId) {
        assert_eq!(self.history.end(op, Ending::Ok), Ok(()));
    }

    fn flush(&mut self) {
        let op = self.history.issue(self.writer, Action::Flush);
        self.end(op);
    }

    fn hand_over(&mut self, how: Handover) {
        self.writer = self.history.hand_over(how);
    }

    fn stamp(&self, op: OpId) -> Stamp {
        self.history.stamp_of(op, AT, Generation(0))
    }

    fn read(&mut self, content: &Content) -> Verdict {
        let range = Self::range();
        let op = self.history.issue(self.writer, Action::Read { range });
        let verdict = self.history.judge(op, AT, content);
        self.end(op);
        verdict
    }

    fn finds(&mut self, op: OpId) -> VerdictKind {
        let stamp = self.stamp(op);
        self.read(&Content::Stamped(stamp)).kind
    }
}

#[test]
fn the_last_completed_write_is_current_and_what_it_replaced_is_lost() {
    let mut desk = Desk::new(Initial::Zero);
    assert_eq!(desk.read(&Content::Zero).kind, VerdictKind::Current);
    let (first, second) = (desk.write(), desk.write());
    assert_eq!(desk.finds(first), VerdictKind::Lost);
    assert_eq!(desk.read(&Content::Zero).kind, VerdictKind::Lost);
    assert_eq!(desk.finds(second), VerdictKind::Current);
    let lost = desk.read(&Content::Zero);
    assert_eq!(
        (lost.kind, lost.legal),
        (VerdictKind::RolledBack, vec![Some(second)])
    );
}

#[test]
fn a_write_in_flight_may_be_seen_and_once_seen_stays() {
    let mut desk = Desk::new(Initial::Zero);
    let first = desk.write();
    let second = desk.issue(false);
    assert_eq!(desk.finds(first), VerdictKind::Concurrent);
    assert_eq!(desk.finds(second), VerdictKind::Concurrent);
    assert_eq!(desk.finds(first), VerdictKind::RolledBack);
    desk.end(second);
    assert_eq!(desk.finds(second), VerdictKind::Current);
}

#[test]
fn a_failed_write_may_be_seen_or_not_but_not_first_and_then_no_more() {
    for seen in [true, false] {
        let mut desk = Desk::new(Initial::Zero);
        let first = desk.write();
        let failed = desk.issue(false);
        desk.history.end(failed, Ending::Failed).unwrap();
        let (shown, other) = if seen {
            (failed, first)
        } else {
            (first, failed)
        };
        assert_eq!(desk.finds(shown), VerdictKind::Concurrent);
        assert!(!desk.finds(other).is_legal());
        assert_eq!(desk.finds(shown), VerdictKind::Current);
    }
}

#[test]
fn a_crash_may_take_what_was_not_flushed_and_nothing_else() {
    let mut desk = Desk::new(Initial::Zero);
    let old = desk.write();
    let flushed = desk.write();
    desk.flush();
    let unflushed = desk.write();
    let in_flight = desk.issue(false);
    desk.hand_over(Handover::Unclean);
    assert_eq!(desk.finds(old), VerdictKind::Lost);
    assert_eq!(desk.read(&Content::Zero).kind, VerdictKind::Lost);
    for survivor in [flushed, unflushed, in_flight] {
        let mut fork = Desk {
            history: desk.history.clone(),
            writer: desk.writer,
        };
        let newest = survivor == in_flight;
        let kind = if newest {
            VerdictKind::Current
        } else {
            VerdictKind::OldButLegal
        };
        assert_eq!(fork.finds(survivor), kind);
        // What was once read stays, even after another crash.
        fork.hand_over(Handover::Unclean);
        for other in [flushed, unflushed, in_flight] {
            assert_eq!(fork.finds(other).is_legal(), other == survivor);
        }
    }
}

#[test]
fn fua_and_a_clean_detach_are_flushes_and_an_earlier_flush_is_none() {
    let mut desk = Desk::new(Initial::Zero);
    let op = desk.issue(true);
    desk.end(op);
    desk.hand_over(Handover::Unclean);
    assert_eq!(desk.read(&Content::Zero).kind, VerdictKind::Lost);

    let mut desk = Desk::new(Initial::Zero);
    desk.write();
    desk.hand_over(Handover::Clean);
    desk.hand_over(Handover::Unclean);
    assert_eq!(desk.read(&Content::Zero).kind, VerdictKind::Lost);

    let mut desk = Desk::new(Initial::Zero);
    let write = desk.issue(false);
    let flush = desk.history.issue(desk.writer, Action::Flush);
    desk.end(write);
    desk.end(flush);
    desk.hand_over(Handover::Unclean);
    assert_eq!(desk.read(&Content::Zero).kind, VerdictKind::OldButLegal);
}

#[test]
fn a_program_that_restarts_on_a_living_device_must_find_everything() {
    let mut desk = Desk::new(Initial::Zero);
    let first = desk.write();
    let second = desk.write();
    let open = desk.issue(false);
    desk.hand_over(Handover::Continued);
    assert_eq!(desk.finds(first), VerdictKind::Lost);
    let mut fork = Desk {
        history: desk.history.clone(),
        writer: desk.writer,
    };
    assert_eq!(fork.finds(open), VerdictKind::Concurrent);
    assert_eq!(fork.finds(second), VerdictKind::RolledBack);
    assert_eq!(desk.finds(second), VerdictKind::Concurrent);
    assert_eq!(desk.finds(open), VerdictKind::Lost);
}

#[test]
fn writes_of_a_fenced_writer_must_not_appear_nor_succeed() {
    let mut desk = Desk::new(Initial::Zero);
    let flushed = desk.write();
    desk.flush();
    let in_flight = desk.issue(false);
    let zombie = desk.writer;
    desk.hand_over(Handover::Unclean);
    let action = Action::Write {
        range: Desk::range(),
        generation: Generation(0),
        fua: false,
    };
    let late = desk.history.issue(zombie, action);
    assert_eq!(desk.finds(late), VerdictKind::Fenced);
    assert_eq!(desk.finds(in_flight), VerdictKind::Current);
    assert_eq!(desk.finds(flushed), VerdictKind::RolledBack);
    // Its answer may have been on the way; the later one's cannot have been.
    assert_eq!(desk.history.end(in_flight, Ending::Ok), Ok(()));
    let obeyed = desk.history.end(late, Ending::Ok);
    assert_eq!(obeyed, Err(Breach::FencedButObeyed(late)));
    let refused = desk.history.issue(zombie, action);
    assert_eq!(desk.history.end(refused, Ending::Failed), Ok(()));
    // The new holder's word stands.
    let new = desk.write();
    assert_eq!(desk.finds(in_flight), VerdictKind::Lost);
    assert_eq!(desk.finds(new), VerdictKind::Current);
}

#[test]
fn a_fenced_writer_completes_no_flush_that_means_anything() {
    for unflushed in [true, false] {
        let mut desk = Desk::new(Initial::Zero);
        desk.write();
        if !unflushed {
            desk.flush();
        }
        let zombie = desk.writer;
        desk.hand_over(Handover::Unclean);
        let flush = desk.history.issue(zombie, Action::Flush);
        assert_eq!(desk.history.end(flush, Ending::Ok).is_err(), unflushed);
    }
}

#[test]
fn misplaced_foreign_and_torn_blocks_are_told_apart() {
    let mut desk = Desk::new(Initial::Zero);
    let op = desk.write();
    let good = desk.stamp(op);
    let elsewhere = Stamp {
        lba: Lba(6),
        ..good
    };
    let other_volume = Stamp {
        volume: VolumeId([2; 16]),
        ..good
    };
    let never = Stamp { seq: 999, ..good };
    let nobody = Stamp {
        writer: WriterId(7),
        ..good
    };
    let other_generation = Stamp {
        generation: Generation(8),
        ..good
    };
    for (content, kind) in [
        (Content::Stamped(good), VerdictKind::Current),
        (Content::Stamped(elsewhere), VerdictKind::Misdirected),
        (Content::Stamped(other_volume), VerdictKind::Misdirected),
        (Content::Stamped(never), VerdictKind::Foreign),
        (Content::Stamped(nobody), VerdictKind::Foreign),
        (Content::Foreign, VerdictKind::Foreign),
        (Content::Torn(vec![good]), VerdictKind::Torn),
    ] {
        assert_eq!(desk.read(&content).kind, kind, "{content}");
    }
    assert!(!desk.read(&Content::Stamped(other_generation)).is_legal());
}

#[test]
fn a_used_volume_may_hold_anything_until_it_is_written() {
    let mut desk = Desk::new(Initial::Unknown);
    assert!(desk.read(&Content::Foreign).is_legal());
    assert!(desk.read(&Content::Zero).is_legal());
    let op = desk.write();
    assert_eq!(desk.read(&Content::Foreign).kind, VerdictKind::Foreign);
    assert_eq!(desk.finds(op), VerdictKind::Current);
}

#[test]
fn a_discarded_block_is_zero_and_nothing_else() {
    let mut desk = Desk::new(Initial::Zero);
    let op = desk.write();
    let range = Desk::range();
    let zero = desk
        .history
        .issue(desk.writer, Action::Zero { range, fua: false });
    assert!(desk.finds(op).is_legal());
    desk.end(zero);
    assert!(!desk.finds(op).is_legal());
    assert_eq!(desk.read(&Content::Zero).kind, VerdictKind::Current);
}

#[test]
fn a_read_that_began_before_a_write_ended_may_return_either() {
    let mut desk = Desk::new(Initial::Zero);
    let range = Desk::range();
    let early = desk.history.issue(desk.writer, Action::Read { range });
    let first = desk.write();
    let late = desk.history.issue(desk.writer, Action::Read { range });
    let first = Content::Stamped(desk.stamp(first));
    assert!(desk.history.judge(late, AT, &first).is_legal());
    assert!(!desk.history.judge(late, AT, &Content::Zero).is_legal());
    assert!(desk.history.judge(early, AT, &Content::Zero).is_legal());
}

//! The serial form.

use crate::core::journal::{decode, encode};
use crate::{
    Action, Ending, Handover, Initial, Journal, JournalFault, OpId, Record, Subject, WriterId,
};
use shardmap::units::{BlockRange, Blocks, Generation, Lba, VolumeId};

const SUBJECT: Subject = Subject {
    volume: VolumeId([4; 16]),
    size_blocks: 100,
    initial: Initial::Zero,
};

fn saved() -> Vec<u8> {
    let mut journal = Journal::new(SUBJECT);
    let writer = journal.hand_over(Handover::Clean);
    for lba in [1, 50, 99] {
        let action = Action::Write {
            range: BlockRange::new(Lba(lba), Blocks(1)).unwrap(),
            generation: Generation(2),
            fua: false,
        };
        let op = journal.issue(writer, action);
        journal.end(op, Ending::Ok).unwrap();
    }
    journal.take_unsaved()
}

#[test]
fn every_torn_tail_is_an_end_and_every_byte_counts() {
    let saved = saved();
    let (records, _) = decode(&saved).unwrap();
    assert_eq!(records.len(), 2 + 2 * 3);
    let mut ends = vec![0];
    let mut bytes = Vec::new();
    for record in &records {
        encode(record, &mut bytes);
        ends.push(bytes.len());
    }
    assert_eq!(bytes, saved);
    for cut in 0..=saved.len() {
        let (some, whole_bytes) = decode(&saved[..cut]).unwrap();
        let count = ends.iter().filter(|e| **e <= cut).count() - 1;
        assert_eq!(
            (some.as_slice(), whole_bytes),
            (&records[..count], ends[count])
        );
    }
    for at in 0..*ends.iter().rev().nth(1).unwrap() {
        let mut bad = saved.clone();
        bad[at] ^= 0x10;
        let damage = decode(&bad);
        assert!(
            matches!(damage, Err(JournalFault::Damaged { .. })),
            "byte {at}: {damage:?}"
        );
    }
}

#[test]
fn a_journal_that_contradicts_itself_is_refused() {
    assert_eq!(Journal::load(&[]).unwrap_err(), JournalFault::NoBeginning);
    let op = OpId {
        writer: WriterId(1),
        seq: 9,
    };
    let how = Ending::Ok;
    for (bad, text) in [
        (Record::Begun(SUBJECT), "begins twice"),
        (Record::Ended { op, how }, "an end without a beginning"),
    ] {
        let mut bytes = saved();
        encode(&bad, &mut bytes);
        let error = Journal::load(&bytes).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_zombie_that_was_obeyed_is_found_in_the_journal() {
    let mut bytes = saved();
    let mut zombie = Journal::load(&bytes).unwrap().journal;
    let mut holder = zombie.clone();
    holder.hand_over(Handover::Unclean);
    bytes.append(&mut holder.take_unsaved());
    let action = Action::Write {
        range: BlockRange::new(Lba(1), Blocks(1)).unwrap(),
        generation: Generation(0),
        fua: true,
    };
    let op = zombie.issue(WriterId(1), action);
    assert_eq!(zombie.end(op, Ending::Ok), Ok(()), "it does not know");
    bytes.append(&mut zombie.take_unsaved());
    assert_eq!(Journal::load(&bytes).unwrap().obeyed, [op]);
}

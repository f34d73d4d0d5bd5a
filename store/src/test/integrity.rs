//! Spoiled content on a real file, and stores of earlier formats.

use super::*;
use std::os::unix::fs::FileExt;

fn opened(path: &Path, epoch: u64) -> Rig {
    let mut rig = Rig::open(path).unwrap();
    let create = StoreOp::CreateSlice {
        spec: spec(4),
        incomplete: false,
    };
    rig.run(4, create).unwrap();
    rig.open_session(4, epoch);
    rig
}

/// Flips a bit of a block behind the store's back.
fn spoil(path: &Path, rig: &Rig, lba: u64) {
    let place = rig.store.place_of(Nsid(4), Lba(lba), Generation(0));
    let at = place.unwrap().expect("present") + 1234;
    let mut how = std::fs::OpenOptions::new();
    let file = how.read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_flipped_bit_is_a_fault_also_after_a_restart_and_writing_heals_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = opened(&path, 1);
    let write = rig.write_op(0, 32, 5, true);
    rig.run(4, write).unwrap();
    spoil(&path, &rig, 9);
    let rotten = |rig: &mut Rig| {
        let fault = rig.read(4, 0, 32).unwrap_err();
        assert!(matches!(fault, StoreFault::Rotten { lba: Lba(9), .. }));
    };
    rotten(&mut rig);
    let hash = StoreOp::Hash {
        range: range(0, 32),
        generation: Generation(0),
    };
    assert!(matches!(rig.run(4, hash), Err(StoreFault::Rotten { .. })));
    rig.stop();
    let mut rig = opened(&path, 2);
    rotten(&mut rig);
    rig.read(4, 10, 22).unwrap();
    let write = rig.write_op(9, 1, 5, false);
    rig.run(4, write).unwrap();
    let content = rig.read(4, 0, 32).unwrap();
    let wanted: Vec<u8> = (0..32).flat_map(|lba| pattern(lba, 5)).collect();
    assert!(content == wanted);
    let counters = rig.store.counters();
    assert_eq!(counters.core.blocks_rotten, 1);
    rig.stop();
}

#[test]
fn a_store_without_checksums_serves_and_notices_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared_with(dir.path(), false);
    assert!(!Store::inspect(&path).unwrap().checksums);
    let mut rig = opened(&path, 1);
    let write = rig.write_op(0, 32, 5, true);
    rig.run(4, write).unwrap();
    spoil(&path, &rig, 9);
    assert!(rig.read(4, 9, 1).unwrap() != pattern(9, 5));
    rig.stop();
}

/// Writes version 1 into everything that has a version, and seals it again.
fn make_version_1(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let mut at = 0;
    while at < bytes.len() {
        let head = &bytes[at..at + 16];
        let (version_at, len) = if head[8..16] == *b"UBSSTORE" {
            (4, 4096)
        } else if head[4..8] == *b"UBSD" {
            (8, 4096)
        } else if head[4..8] == *b"UBSJ" {
            let len = u32::from_le_bytes(head[8..12].try_into().unwrap());
            (16, len as usize)
        } else {
            at += 4096;
            continue;
        };
        let block = &mut bytes[at..at + len];
        let newest = crate::core::format::VERSION.to_le_bytes();
        assert_eq!(block[version_at..version_at + 2], newest);
        block[version_at] = 1;
        let sum = crc_fast::crc32_iscsi(&block[4..]).to_le_bytes();
        block[..4].copy_from_slice(&sum);
        at += len;
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_store_of_format_1_opens_keeps_its_data_and_becomes_one_of_the_newest_format() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared_with(dir.path(), false);
    let mut model = BTreeMap::new();
    let mut rig = opened(&path, 1);
    churn(&mut rig, 4, &mut model, 10);
    rig.stop();
    make_version_1(&path);
    assert!(Store::check(&path).unwrap().clean);
    let mut rig = opened(&path, 2);
    rig.check(4, &model);
    let begin = StoreOp::BeginGeneration(Generation(2));
    rig.run(4, begin).unwrap();
    churn(&mut rig, 4, &mut model, 10);
    rig.stop();
    let bytes = std::fs::read(&path).unwrap();
    let versions = [0, 64 * 1024].map(|at| u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
    let newest = crate::core::format::VERSION;
    assert!(versions.contains(&newest), "{versions:?}");
    let mut rig = opened(&path, 3);
    rig.check(4, &model);
    rig.stop();
}

#[test]
fn a_check_of_all_data_finds_each_spoiled_block_of_each_generation() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = opened(&path, 1);
    let write = rig.write_op(0, 32, 5, true);
    rig.run(4, write).unwrap();
    for op in [
        StoreOp::BeginGeneration(Generation(2)),
        StoreOp::CompleteGeneration(Generation(1)),
    ] {
        rig.run(4, op).unwrap();
    }
    let write = rig.write_op(3, 2, 6, true);
    rig.run(4, write).unwrap();
    let verify = |path: &Path| {
        let examined = crate::Examined::open(path).unwrap();
        let mut told = 0;
        let verified = examined.verify(&mut |blocks| told = blocks);
        assert_eq!(told, verified.blocks);
        verified
    };
    rig.stop();
    let sound = verify(&path);
    assert_eq!((sound.blocks, sound.unknown), (34, 0));
    assert!(sound.found.is_empty());
    let rig = opened(&path, 2);
    spoil(&path, &rig, 3);
    spoil(&path, &rig, 20);
    rig.stop();
    let spoiled = verify(&path);
    assert_eq!((spoiled.rotten, spoiled.unreadable), (2, 0));
    let found = spoiled.found.iter();
    let found: Vec<_> = found.map(|r| (r.nsid.0, r.generation.0, r.lba.0)).collect();
    assert_eq!(found, [(4, 2, 3), (4, 1, 20)]);
    // Killed: nothing is known of marked regions.
    drop(opened(&path, 3));
    let after = verify(&path);
    assert_eq!((after.blocks, after.unknown, after.rotten), (34, 34, 0));
}

#[test]
fn a_scrub_finds_rot_that_nobody_reads_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = opened(&path, 1);
    let write = rig.write_op(0, 32, 5, true);
    rig.run(4, write).unwrap();
    spoil(&path, &rig, 20);
    let pace = crate::ScrubPace {
        period: std::time::Duration::from_millis(1),
        bytes_per_s_max: 64 << 20,
    };
    rig.store.scrub(&mut rig.io, pace);
    let event = rig.until(|e| matches!(e, StoreEvent::Rotten { .. }));
    let StoreEvent::Rotten { blocks } = event else {
        panic!("just asked for")
    };
    let places: Vec<_> = blocks.iter().map(|rot| (rot.nsid, rot.lba)).collect();
    assert_eq!(places, [(Nsid(4), Lba(20))]);
    let counters = rig.store.counters().scrub;
    assert!(
        counters.blocks >= 32 && counters.rotten >= 1,
        "{counters:?}"
    );
    rig.stop();
}

#[test]
fn what_another_replica_has_heals_a_block_if_it_is_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = prepared(dir.path());
    let mut rig = opened(&path, 1);
    let write = rig.write_op(0, 32, 5, true);
    rig.run(4, write).unwrap();
    spoil(&path, &rig, 20);
    let (lba, generation) = (Lba(20), Generation(0));
    let read = |rig: &mut Rig| {
        let into = rig.io.arena().take(4096).unwrap();
        rig.run(
            4,
            StoreOp::ReadReplica {
                lba,
                generation,
                into,
            },
        )
    };
    assert!(matches!(read(&mut rig), Err(StoreFault::Rotten { .. })));
    for (version, healed) in [(6, crate::Healed::Other), (5, crate::Healed::Written)] {
        let mut data = rig.io.arena().take(4096).unwrap();
        data.bytes_mut().copy_from_slice(&pattern(20, version));
        let data = data.freeze();
        let heal = StoreOp::Heal {
            lba,
            generation,
            data,
        };
        let reply = rig.run(4, heal).unwrap();
        assert!(matches!(reply, StoreReply::Healed(h) if h == healed));
    }
    assert!(read(&mut rig).is_ok());
    assert!(rig.read(4, 20, 1).unwrap() == pattern(20, 5));
    rig.stop();
}

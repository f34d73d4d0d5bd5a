//! Blocks that the disk spoils are found by the scrub and healed from other servers (ADR 0011).

use super::client::{CHUNK_BLOCKS, Client, content};
use super::lab::{PATIENCE, run};
use super::maintenance::{Cluster, VOLUME, store};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// As fast as it can.
const SCRUB: &str = "scrub_days = 0.00001\nscrub_bytes_per_s_max = 268435456";

/// Puts other bytes over the place where a store has a block, behind its back.
fn spoil(dir: &Path, number: usize, (lba, version): (u64, u64), bytes: &[u8; 4096]) {
    let mut how = OpenOptions::new();
    let file = how.read(true).write(true).open(store(dir, number)).unwrap();
    let (wanted, len) = (content(lba, version), file.metadata().unwrap().len());
    let mut many = vec![0; 1 << 20];
    let found = (0..len).step_by(many.len()).find_map(|at| {
        file.read_exact_at(&mut many, at).unwrap();
        let mut blocks = many.chunks(4096).zip((at..).step_by(4096));
        blocks.find_map(|(block, at)| (*block == wanted).then_some(at))
    });
    let at = found.unwrap_or_else(|| panic!("store {number} has no block {lba} of {version}"));
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

fn healed(it: &Cluster, number: usize) -> usize {
    let log = it.log(number);
    log.matches("healed a block with what another replica has")
        .count()
}

/// An empty store is looked at once a minute; the first blocks are found after that.
async fn until(what: &str, it: &Cluster, done: impl Fn(&Cluster) -> bool) {
    let begun = Instant::now();
    while !done(it) {
        assert!(
            begun.elapsed() < PATIENCE * 3,
            "{what}: not in time\n{}",
            it.log(3)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn flipped(lba: u64, version: u64) -> [u8; 4096] {
    let mut block = content(lba, version);
    block[1000] ^= 0x20;
    block
}

#[test]
fn what_the_scrub_finds_is_healed_from_other_servers_attached_or_not_in_snapshots_too() {
    run(async |dir| {
        let mut it = Cluster::begin(dir, SCRUB).await;
        let mut client = Client::attach(&it.metad, VOLUME, "h1").await;
        it.write(&mut client, 0..12, 1).await;
        client.snapshot(1).await;
        let snapshot = it.written.clone();
        it.write(&mut client, 0..4, 2).await;
        client.flush().await;
        let of = |chunk: u64| chunk * u64::from(CHUNK_BLOCKS);
        // While a host has it. The head's; the snapshot's; one that got another block's content, which
        // another store has there as well: no copy of it is good but one.
        spoil(dir, 3, (of(0) + 5, 2), &flipped(of(0) + 5, 2));
        spoil(dir, 3, (of(1), 1), &[0; 4096]);
        for number in [2, 3] {
            spoil(dir, number, (of(6) + 1, 1), &content(of(6) + 2, 1));
        }
        until("healed while attached", &it, |it| {
            (healed(it, 2), healed(it, 3)) == (1, 3)
        })
        .await;
        it.write(&mut client, 2..3, 3).await;
        client.detach().await;
        // While nobody has it, and the disk was elsewhere meanwhile.
        it.stop_one(3);
        for lba in of(2)..of(2) + 20 {
            spoil(dir, 3, (lba, 3), &flipped(lba, 3));
        }
        spoil(dir, 3, (of(7), 1), &flipped(of(8), 1));
        it.start(3);
        until("healed while detached", &it, |it| healed(it, 3) == 3 + 21).await;
        assert!(!it.log(3).contains("stays as it is"), "{}", it.log(3));
        assert_eq!(healed(&it, 1), 0);
        let head = it.written.clone();
        it.check_generations(&[(1, snapshot), (0, head)]);
    });
}

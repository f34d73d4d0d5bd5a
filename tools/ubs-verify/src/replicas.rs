//! Replicas compared with each other: the stores themselves, with nobody between.

use crate::options::{Compare, Output};
use anyhow::{Context, Result, bail};
use serde_json::json;
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, EXTENT_BLOCKS, Lba, ShardIndex, VolumeId};
use std::process::ExitCode;
use store::{Examined, SliceState};
use ubs_verify::Comparison;

/// One store's slice of the volume.
struct Replica {
    name: String,
    store: Examined,
    slice: SliceState,
}

pub(crate) fn compare(options: &Compare, output: Output) -> Result<ExitCode> {
    let volume = VolumeId(options.volume.into_bytes());
    let mut replicas = Vec::new();
    for path in &options.stores {
        let name = path.display().to_string();
        let store = Examined::open(path)?;
        let slice = store.slices().find(|s| s.spec.volume == volume);
        let Some(slice) = slice else {
            eprintln!("{name}: holds nothing of volume {volume}");
            continue;
        };
        replicas.push(Replica { name, store, slice });
    }
    let (trusted, stale) = sort_out(replicas);
    for replica in &stale {
        eprintln!("{}: not in sync, not compared", replica.name);
    }
    if trusted.len() < 2 {
        bail!("fewer than two in-sync slices of volume {volume} in these stores");
    }
    let comparison = compare_slices(&trusted)?;
    show(&comparison, &trusted, output);
    Ok(if comparison.is_identical() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Those that the newest stamp calls in sync, and the others.
fn sort_out(replicas: Vec<Replica>) -> (Vec<Replica>, Vec<Replica>) {
    let newest = replicas.iter().map(|r| r.slice.stamp).max_by_key(|s| s.seq);
    let Some(newest) = newest else {
        return (replicas, Vec::new());
    };
    replicas.into_iter().partition(|r| {
        let bit = 1_u64.checked_shl(r.slice.spec.position.into()).unwrap_or(0);
        // Before the first attach nobody has stamped anything.
        let in_sync = newest.members == 0 || newest.in_sync & bit != 0;
        in_sync && !r.slice.incomplete
    })
}

fn compare_slices(replicas: &[Replica]) -> Result<Comparison<String>> {
    let spec = replicas[0].slice.spec;
    let mut comparison = Comparison::default();
    let mut buffers = vec![vec![0; (EXTENT_BLOCKS * BLOCK_BYTES) as usize]; replicas.len()];
    for start in (0..spec.size_blocks).step_by(EXTENT_BLOCKS as usize) {
        let left = spec.size_blocks - start;
        let blocks = Blocks(u32::try_from(left).unwrap_or(u32::MAX).min(EXTENT_BLOCKS));
        let range = BlockRange::new(Lba(start), blocks).context("a volume of at most 16 PiB")?;
        let shard: ShardIndex = spec.shape.shard_of(Lba(start));
        let mut held = Vec::new();
        for (replica, buffer) in replicas.iter().zip(&mut buffers) {
            let own = replica.slice.spec;
            if !own.shape.holds(own.position, shard) {
                continue;
            }
            let bytes = &mut buffer[..usize::try_from(range.len_bytes())?];
            let read = replica.store.read(own.nsid, range, bytes);
            read.with_context(|| format!("{}: cannot read {range}", replica.name))?;
            held.push((replica.name.clone(), &*bytes));
        }
        if held.len() > 1 {
            comparison.add(range.start(), &held);
        }
    }
    Ok(comparison)
}

fn show(comparison: &Comparison<String>, replicas: &[Replica], output: Output) {
    let names: Vec<&str> = replicas.iter().map(|r| r.name.as_str()).collect();
    let (compared, differing) = (comparison.blocks_compared, comparison.blocks_differing);
    let rows = comparison.first.iter().flat_map(|d| {
        let lba = d.lba.0;
        d.held
            .iter()
            .map(move |(name, content)| (lba, name, content.to_string()))
    });
    match output {
        Output::Json => {
            let first: Vec<_> = rows
                .map(|(lba, store, holds)| json!({ "lba": lba, "store": store, "holds": holds }))
                .collect();
            let body = json!({ "stores": names, "blocksCompared": compared,
                "blocksDiffering": differing, "first": first });
            println!("{body:#}");
        }
        Output::Table => {
            for (lba, store, holds) in rows {
                println!("lba {lba}: {store}: {holds}");
            }
            let stores = names.join(", ");
            println!("{compared} blocks compared, {differing} differ, in {stores}");
        }
    }
}

//! `ubsctl store fsck`: a store that nobody uses is read and checked with the code that opens it, and
//! optionally all its data is compared with its checksums. Nothing is changed.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, document, one, say, size};
use ::store::{Examined, OpenFacts, Rot, Verified};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A line about the progress so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
const BLOCK: u64 = 4096;

pub(crate) fn run(context: &Context, path: &Path, data: bool) -> Result<(), Failure> {
    let examined = Examined::open(path).map_err(|fault| {
        let text = fault.to_string();
        if context.format == Format::Json {
            document("StoreCheck", json!({ "sound": false, "fault": text }));
        }
        Failure::Error(text)
    })?;
    let facts = examined.facts();
    let used_blocks = facts.slices.iter().map(|s| s.used_blocks).sum();
    let verified = data.then(|| {
        let mut progress = Progress::new(used_blocks);
        let verified = examined.verify(&mut |blocks| progress.tell(blocks));
        progress.end();
        verified
    });
    tell(context, path, facts, verified.as_ref());
    match verified {
        Some(v) if !v.found.is_empty() => Err(Failure::Error(format!(
            "{}: {} blocks are not what was written, {} cannot be read; what reads them from a replica writes them again",
            path.display(),
            v.rotten,
            v.unreadable
        ))),
        Some(_) | None => Ok(()),
    }
}

fn tell(context: &Context, path: &Path, facts: &OpenFacts, verified: Option<&Verified>) {
    let used_bytes = facts.capacity_bytes - facts.free_bytes;
    let store = Uuid::from_bytes(facts.store).to_string();
    let mut pairs = vec![
        ("path", path.display().to_string()),
        ("uuid", store.clone()),
        ("cluster", Uuid::from_bytes(facts.cluster).to_string()),
        ("stopped cleanly", facts.clean.to_string()),
        ("slices", facts.slices.len().to_string()),
        ("used", size(used_bytes)),
        ("capacity", size(facts.capacity_bytes)),
        ("metadata pages", facts.pages.to_string()),
        ("journal records", facts.replayed.to_string()),
    ];
    if let Some(v) = verified {
        pairs.push(("data read", size(v.blocks * BLOCK)));
        pairs.push(("no checksum known", size(v.unknown * BLOCK)));
        pairs.push(("unreadable blocks", v.unreadable.to_string()));
        pairs.push(("rotten blocks", v.rotten.to_string()));
    }
    let json = json!({
        "sound": verified.is_none_or(|v| v.found.is_empty()),
        "path": path.display().to_string(),
        "uuid": store,
        "cluster": Uuid::from_bytes(facts.cluster),
        "clean": facts.clean,
        "slices": facts.slices.len(),
        "usedBytes": used_bytes,
        "capacityBytes": facts.capacity_bytes,
        "metadataPages": facts.pages,
        "journalRecords": facts.replayed,
        "data": verified.map(|v| json!({
            "blocks": v.blocks,
            "unknown": v.unknown,
            "unreadable": v.unreadable,
            "rotten": v.rotten,
            "found": v.found.iter().map(rot_json).collect::<Vec<Value>>(),
        })),
    });
    one(context.format, "StoreCheck", &store, &pairs, json);
    if context.format == Format::Table {
        for rot in verified.into_iter().flat_map(|v| &v.found) {
            say(&format!("bad: {rot}"));
        }
    }
}

fn rot_json(rot: &Rot) -> Value {
    json!({
        "volume": rot.volume.to_string(),
        "nsid": rot.nsid.0,
        "generation": rot.generation.0,
        "lba": rot.lba.0,
    })
}

/// On a terminal, how far it is.
struct Progress {
    total_blocks: u64,
    began: Instant,
    told: Instant,
    terminal: bool,
}

impl Progress {
    fn new(total_blocks: u64) -> Self {
        let began = Instant::now();
        Self {
            total_blocks,
            began,
            told: began,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn tell(&mut self, blocks: u64) {
        if !self.terminal || self.told.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.told = Instant::now();
        let per_s = blocks * BLOCK / self.began.elapsed().as_secs().max(1);
        let (done, all) = (size(blocks * BLOCK), size(self.total_blocks * BLOCK));
        // Whoever closed it does not want to know.
        let _gone = write!(
            std::io::stderr(),
            "\r{done} of at most {all}, {}/s   ",
            size(per_s)
        )
        .is_err();
    }

    fn end(&self) {
        if self.terminal && self.told > self.began {
            let _gone = writeln!(std::io::stderr()).is_err();
        }
    }
}

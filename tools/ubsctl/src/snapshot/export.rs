//! `ubsctl snapshot diff` and `export`: what a snapshot holds otherwise than an earlier one.

use super::delta::{Begin, Sink, Totals, pieces};
use super::reader::Reader;
use super::{Which, full_name, snapshot};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, document, one, say, size, table};
use control::api::{SnapshotView, VolumeView};
use futures::stream::{StreamExt as _, TryStreamExt as _, iter};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use shardmap::dirty::BlockSet;
use shardmap::units::{BLOCK_BYTES, Generation, Lba, REGION_BLOCKS, RegionIndex};
use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;
use volume::limits::PRESENCE_REGIONS;

/// Requests for changes, and reads, under way at a time.
const CHANGES_MAX: usize = 8;
const READS_MAX: usize = 16;
const _: () = assert!(CHANGES_MAX + READS_MAX <= super::reader::REQUESTS_MAX);
/// Blocks that one request for changes covers.
const WINDOW_BLOCKS: u64 = PRESENCE_REGIONS as u64 * REGION_BLOCKS as u64;

const BAR: &str = "{prefix}  [{bar:30}] {percent:>3} %  {msg}";

/// What is compared with what.
struct Pair {
    volume: VolumeView,
    of: SnapshotView,
    since: Option<SnapshotView>,
    reader: Reader,
}

impl Pair {
    async fn open(context: &Context, of: &Which, since: Option<&str>) -> Result<Self, Failure> {
        let of = complete(snapshot(context, of).await?)?;
        let volume = context.volume(&of.volume.to_string()).await?;
        let since = match since {
            None => None,
            Some(name) => {
                let which = Which {
                    volume: of.volume.to_string(),
                    name: name.to_owned(),
                };
                let since = complete(snapshot(context, &which).await?)?;
                if since.generation >= of.generation {
                    return Err(Failure::usage(format!(
                        "{} is not earlier than {}; exchange them",
                        full_name(&since),
                        full_name(&of)
                    )));
                }
                Some(since)
            }
        };
        let reader = Reader::open(context, &volume, &of).await?;
        Ok(Self {
            volume,
            of,
            since,
            reader,
        })
    }

    fn after(&self) -> Generation {
        self.since.as_ref().map_or(Generation(0), |s| s.generation)
    }

    /// Changed blocks, window by window in order.
    fn changes(&self) -> impl futures::Stream<Item = Result<BlockSet, Failure>> {
        let windows = self.volume.map.size_blocks.div_ceil(WINDOW_BLOCKS);
        let ask = move |window: u64| {
            let region = u32::try_from(window * u64::from(PRESENCE_REGIONS));
            let region = RegionIndex(region.expect("volume of at most 16 PiB"));
            self.reader.changes(region, self.after())
        };
        iter(0..windows).map(ask).buffered(CHANGES_MAX)
    }

    fn bar(&self) -> ProgressBar {
        let style = ProgressStyle::with_template(BAR);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(self.volume.map.size_blocks);
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(full_name(&self.of));
        bar
    }
}

fn complete(snapshot: SnapshotView) -> Result<SnapshotView, Failure> {
    if snapshot.pending {
        return Err(Failure::error(format!(
            "{} is pending and may still change; wait until `ubsctl snapshot show` says complete",
            full_name(&snapshot)
        )));
    }
    Ok(snapshot)
}

/// Contiguous runs of a set, with their first block and length.
fn runs(blocks: &BlockSet) -> Vec<(Lba, u32)> {
    let mut runs = Vec::new();
    let mut from = Lba(0);
    while let Some(run) = blocks.first_run(from, u32::MAX) {
        runs.push((run.start(), run.blocks().0));
        from = run.end();
    }
    runs
}

pub(super) async fn diff(
    context: &Context,
    of: &Which,
    since: Option<&str>,
) -> Result<(), Failure> {
    let pair = Pair::open(context, of, since).await?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut changes = std::pin::pin!(pair.changes());
    while let Some(blocks) = changes.try_next().await? {
        for (start, count) in runs(&blocks) {
            let unit = u64::from(BLOCK_BYTES);
            let (offset, len) = (start.0 * unit, u64::from(count) * unit);
            match ranges.last_mut() {
                Some((last, so_far)) if *last + *so_far == offset => *so_far += len,
                _ => ranges.push((offset, len)),
            }
        }
    }
    let bytes: u64 = ranges.iter().map(|(_, len)| len).sum();
    match context.format {
        Format::Json => document(
            "SnapshotDiff",
            json!({
                "snapshot": full_name(&pair.of),
                "since": pair.since.as_ref().map(full_name),
                "changedBytes": bytes,
                "ranges": ranges.iter().map(|(offset, len)| json!({
                    "offsetBytes": offset, "lengthBytes": len
                })).collect::<Vec<_>>(),
            }),
        ),
        Format::Table => {
            let rows = ranges.iter();
            let rows: Vec<Vec<String>> = rows
                .map(|(offset, len)| vec![offset.to_string(), len.to_string()])
                .collect();
            say(&table(&["OFFSET", "LENGTH"], rows.iter()));
            eprintln!("{} changed in {} ranges", size(bytes), ranges.len());
        }
        Format::Name => ranges
            .iter()
            .for_each(|(offset, len)| say(&format!("{offset} {len}"))),
    }
    Ok(())
}

/// Where a stream goes: standard output, or a file that appears when it is whole.
enum Out {
    Stdout(std::io::Stdout),
    File(File, PathBuf),
}

impl Out {
    fn open(to: &Path) -> Result<Self, Failure> {
        if to == Path::new("-") {
            let stdout = std::io::stdout();
            if stdout.is_terminal() {
                return Err(Failure::usage(
                    "the stream would go to the terminal; name a file with --to, or use a pipe",
                ));
            }
            return Ok(Self::Stdout(stdout));
        }
        if to.exists() {
            return Err(Failure::usage(format!(
                "{} exists; name a new file, or remove it",
                to.display()
            )));
        }
        let mut part = to.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(|e| cannot("create", &part, &e))?;
        Ok(Self::File(file, part))
    }

    fn finish(self, to: &Path) -> Result<(), Failure> {
        match self {
            Self::Stdout(_) => Ok(()),
            Self::File(file, part) => {
                file.sync_all().map_err(|e| cannot("write", &part, &e))?;
                std::fs::rename(&part, to).map_err(|e| cannot("rename", &part, &e))
            }
        }
    }
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::error(format!("cannot {what} {}: {error}", path.display()))
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File(out, _) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File(out, _) => out.flush(),
        }
    }
}

pub(super) async fn export(
    context: &Context,
    of: &Which,
    since: Option<&str>,
    to: &Path,
) -> Result<(), Failure> {
    let out = Out::open(to)?;
    let part = match &out {
        Out::Stdout(_) => None,
        Out::File(_, part) => Some(part.clone()),
    };
    let result = export_to(context, of, since, out, to).await;
    if let (Err(_), Some(part)) = (&result, part) {
        // Half a stream is of no use to anybody; that it cannot be removed changes nothing.
        drop(std::fs::remove_file(part));
    }
    result
}

async fn export_to(
    context: &Context,
    of: &Which,
    since: Option<&str>,
    out: Out,
    to: &Path,
) -> Result<(), Failure> {
    let pair = Pair::open(context, of, since).await?;
    let begin = Begin {
        volume: Uuid::from_bytes(pair.volume.id.0),
        size_blocks: pair.volume.map.size_blocks,
        since: pair.after().0,
        generation: pair.of.generation.0,
        created_unix_ms: pair.of.created_unix_ms,
        volume_name: pair.volume.name.clone(),
        name: pair.of.name.clone(),
        since_name: pair
            .since
            .as_ref()
            .map_or(String::new(), |s| s.name.clone()),
    };
    let broken = |e: std::io::Error| cannot("write", to, &e);
    let mut sink = Sink::new(BufWriter::new(out), &begin).map_err(broken)?;
    let bar = pair.bar();
    let pieces_of = |blocks: BlockSet| {
        let all = runs(&blocks).into_iter();
        iter(
            all.flat_map(|(start, count)| pieces(start, count))
                .map(Ok::<_, Failure>),
        )
    };
    let reader = &pair.reader;
    let read = |range| async move { Ok((range, reader.read(range).await?)) };
    let blocks = pair.changes().map_ok(pieces_of).try_flatten();
    let mut blocks = std::pin::pin!(blocks.map_ok(read).try_buffered(READS_MAX));
    let mut moved = 0;
    while let Some((range, bytes)) = blocks.try_next().await? {
        sink.blocks(range, &bytes).map_err(broken)?;
        moved += bytes.len() as u64;
        bar.set_position(range.end().0);
        bar.set_message(size(moved));
    }
    bar.finish_and_clear();
    let (out, totals) = sink.end().map_err(broken)?;
    let out = out.into_inner().map_err(|e| broken(e.into_error()))?;
    let streamed = matches!(out, Out::Stdout(_));
    out.finish(to)?;
    tell(context, &begin, totals, streamed, to);
    Ok(())
}

fn tell(context: &Context, begin: &Begin, totals: Totals, streamed: bool, to: &Path) {
    let unit = u64::from(BLOCK_BYTES);
    let (data, zeroes) = (totals.data_blocks * unit, totals.zero_blocks * unit);
    let name = format!("{}@{}", begin.volume_name, begin.name);
    if streamed {
        return eprintln!("{name}: {} of data, {} of zeroes", size(data), size(zeroes));
    }
    let pairs = [
        ("snapshot", name.clone()),
        ("since", crate::output::or_dash(&begin.since_name)),
        ("data", size(data)),
        ("zeroes", size(zeroes)),
        ("file", to.display().to_string()),
    ];
    let json = json!({
        "snapshot": name,
        "since": Some(&begin.since_name).filter(|s| !s.is_empty()),
        "dataBytes": data,
        "zeroBytes": zeroes,
        "file": to.display().to_string(),
    });
    one(
        context.format,
        "SnapshotExport",
        &to.display().to_string(),
        &pairs,
        json,
    );
}

//! `ubsctl snapshot import`: writes a stream to a block device or a file.

use super::delta::{Begin, Frame, Source};
use crate::failure::Failure;
use crate::output::{Format, one, or_dash, size};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::json;
use shardmap::units::BLOCK_BYTES;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What is looked at to tell whether a target holds something.
const LOOK_BYTES: usize = 1 << 20;
/// Zeroes written at a time where the kernel cannot make them.
const ZERO_BYTES: usize = 1 << 20;

pub(super) fn run(from: &Path, to: &Path, overwrite: bool, format: Format) -> Result<(), Failure> {
    let input: Box<dyn Read> = if from == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let file = File::open(from).map_err(|e| cannot("open", from, &e))?;
        Box::new(BufReader::with_capacity(1 << 20, file))
    };
    let (mut source, begin) = Source::new(input)?;
    let target = Target::open(to, &begin, overwrite)?;
    let bar = ProgressBar::new(begin.size_blocks);
    let style = ProgressStyle::with_template("{prefix}  [{bar:30}] {percent:>3} %");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(to.display().to_string());
    let totals = loop {
        match source.next()? {
            Frame::Begin(_) => unreachable!("only the first frame is one"),
            Frame::Data(lba, bytes) => {
                target.write(&bytes, lba.0 * u64::from(BLOCK_BYTES))?;
                bar.set_position(lba.0);
            }
            Frame::Zeroes(lba, blocks) => {
                let unit = u64::from(BLOCK_BYTES);
                target.zero(lba.0 * unit, blocks * unit)?;
            }
            Frame::End(totals) => break totals,
        }
    };
    bar.finish_and_clear();
    target.sync()?;
    let unit = u64::from(BLOCK_BYTES);
    let data = totals.data_blocks * unit;
    let name = format!("{}@{}", begin.volume_name, begin.name);
    let pairs = [
        ("snapshot", name.clone()),
        ("since", or_dash(&begin.since_name)),
        ("data", size(data)),
        ("zeroes", size(totals.zero_blocks * unit)),
        ("target", to.display().to_string()),
    ];
    let json = json!({
        "snapshot": name,
        "since": Some(&begin.since_name).filter(|s| !s.is_empty()),
        "dataBytes": data,
        "zeroBytes": totals.zero_blocks * unit,
        "target": to.display().to_string(),
    });
    one(format, "SnapshotImport", &name, &pairs, json);
    Ok(())
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::error(format!("cannot {what} {}: {error}", path.display()))
}

/// What is written to.
struct Target<'a> {
    file: File,
    path: &'a Path,
}

impl<'a> Target<'a> {
    /// A whole stream makes the target anew: what it holds must be given up in words. One of changes
    /// goes on top of what the earlier one has left.
    fn open(path: &'a Path, begin: &Begin, overwrite: bool) -> Result<Self, Failure> {
        let whole = begin.since == 0;
        let needed = begin.size_blocks * u64::from(BLOCK_BYTES);
        let exists = path.exists();
        if !exists && !whole {
            return Err(Failure::usage(format!(
                "{} does not exist, and the stream has only what changed since {}; import that first",
                path.display(),
                begin.since_name
            )));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let device = exists && is_device(path)?;
        if device {
            // Refused while it is mounted or part of something.
            let excl = rustix::fs::OFlags::EXCL.bits();
            options.custom_flags(i32::try_from(excl).expect("a flag"));
        }
        let file = options.open(path).map_err(|e| cannot("open", path, &e))?;
        let target = Self { file, path };
        let have = target.len_bytes()?;
        if device && have < needed {
            return Err(Failure::usage(format!(
                "{} has {have} bytes and the volume {needed}; give it a larger one",
                path.display()
            )));
        }
        if whole {
            if !overwrite && !target.looks_blank()? {
                return Err(Failure::Unsafe(format!(
                    "{} holds something; --overwrite gives it up",
                    path.display()
                )));
            }
            target.zero(0, have.min(needed))?;
        } else if have < needed {
            return Err(Failure::usage(format!(
                "{} has {have} bytes and the volume {needed}; it does not hold {}@{}",
                path.display(),
                begin.volume_name,
                begin.since_name
            )));
        }
        if !device && have < needed {
            let grown = target.file.set_len(needed);
            grown.map_err(|e| cannot("extend", path, &e))?;
        }
        Ok(target)
    }

    fn len_bytes(&self) -> Result<u64, Failure> {
        let end = (&self.file).seek(SeekFrom::End(0));
        end.map_err(|e| cannot("look at", self.path, &e))
    }

    fn looks_blank(&self) -> Result<bool, Failure> {
        let mut head = vec![0; LOOK_BYTES];
        let mut at = 0;
        while at < head.len() {
            let read = self.file.read_at(&mut head[at..], at as u64);
            match read.map_err(|e| cannot("read", self.path, &e))? {
                0 => break,
                some => at += some,
            }
        }
        Ok(head[..at].iter().all(|b| *b == 0))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Failure> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|e| cannot("write", self.path, &e))
    }

    /// Makes a hole, where the file system or device can; otherwise writes zeroes.
    fn zero(&self, offset: u64, len: u64) -> Result<(), Failure> {
        if len == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, hole, offset, len).is_ok() {
            return Ok(());
        }
        let zeroes = vec![0; ZERO_BYTES];
        let mut at = offset;
        while at < offset + len {
            let now = (offset + len - at).min(ZERO_BYTES as u64);
            self.write(&zeroes[..usize::try_from(now).expect("at most 1 MiB")], at)?;
            at += now;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Failure> {
        self.file
            .sync_all()
            .map_err(|e| cannot("write", self.path, &e))
    }
}

fn is_device(path: &Path) -> Result<bool, Failure> {
    let meta = std::fs::metadata(path).map_err(|e| cannot("look at", path, &e))?;
    let kind = meta.file_type();
    if kind.is_block_device() || kind.is_file() {
        Ok(kind.is_block_device())
    } else {
        Err(Failure::usage(format!(
            "{} is neither a block device nor a file",
            path.display()
        )))
    }
}

#[cfg(test)]
mod test {
    use super::super::delta::Sink;
    use super::*;
    use shardmap::units::{BlockRange, Blocks, Lba};
    use uuid::Uuid;

    fn stream(dir: &Path, name: &str, since: u32, blocks: &[(u64, u8)]) -> std::path::PathBuf {
        let begin = Begin {
            volume: Uuid::from_u128(7),
            size_blocks: 600,
            since,
            generation: since + 1,
            created_unix_ms: 5,
            volume_name: "data".into(),
            name: name.into(),
            since_name: if since == 0 { "" } else { "a" }.into(),
        };
        let mut sink = Sink::new(Vec::new(), &begin).unwrap();
        for (lba, fill) in blocks {
            let range = BlockRange::new(Lba(*lba), Blocks(1)).unwrap();
            sink.blocks(range, &[*fill; 4096]).unwrap();
        }
        let path = dir.join(name);
        std::fs::write(&path, sink.end().unwrap().0).unwrap();
        path
    }

    fn import(from: &Path, to: &Path, overwrite: bool) -> Result<(), Failure> {
        run(from, to, overwrite, Format::Name)
    }

    #[test]
    fn a_whole_stream_and_changes_on_top_of_it_give_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("disk");
        let whole = stream(dir.path(), "a", 0, &[(0, 1), (7, 2), (599, 3)]);
        let changes = stream(dir.path(), "b", 1, &[(7, 0), (8, 5)]);
        assert!(
            import(&changes, &to, false).is_err(),
            "there is nothing to change"
        );
        import(&whole, &to, false).unwrap();
        import(&changes, &to, false).unwrap();
        let mut expected = vec![0; 600 * 4096];
        for (lba, fill) in [(0, 1), (8, 5), (599, 3)] {
            expected[lba * 4096..][..4096].fill(fill);
        }
        assert!(std::fs::read(&to).unwrap() == expected);
        let refused = import(&whole, &to, false);
        assert!(
            matches!(refused, Err(Failure::Unsafe(_))),
            "it holds something"
        );
        import(&whole, &to, true).unwrap();
        expected[8 * 4096..][..4096].fill(0);
        expected[7 * 4096..][..4096].fill(2);
        assert!(
            std::fs::read(&to).unwrap() == expected,
            "what was there is gone"
        );
    }

    #[test]
    fn a_stream_that_is_cut_off_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let whole = stream(dir.path(), "a", 0, &[(0, 1), (7, 2)]);
        let bytes = std::fs::read(&whole).unwrap();
        std::fs::write(&whole, &bytes[..bytes.len() - 1]).unwrap();
        let error = import(&whole, &dir.path().join("disk"), false).unwrap_err();
        assert!(error.to_string().contains("ends too early"), "{error}");
        std::fs::write(&whole, b"not a stream of anything, but long enough").unwrap();
        let error = import(&whole, &dir.path().join("disk"), false).unwrap_err();
        assert!(error.to_string().contains("not a stream"), "{error}");
    }
}

//! Where a journal lives: a file that can be continued, or a stream that somebody else keeps.

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use shardmap::units::VolumeId;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use ubs_verify::{Handover, Initial, Journal, OpId, Subject, WriterId};

/// The journal with the place where it is saved.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) journal: Journal,
    pub(crate) writer: WriterId,
    /// Requests of fenced writers that were obeyed, as an existing journal tells.
    pub(crate) obeyed: Vec<OpId>,
    sink: File,
}

/// How to begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning {
    pub(crate) size_blocks: u64,
    /// A new journal: the device holds zeroes.
    pub(crate) fresh: bool,
    /// An existing one: how the device came to us.
    pub(crate) handover: Handover,
}

impl Saved {
    /// Continues the journal at `path`, or begins one there. `must_exist`: only the former.
    pub(crate) fn open(path: &Path, how: Beginning, must_exist: bool) -> Result<Self> {
        let at = || format!("journal {}", path.display());
        let kind = path.metadata().ok().map(|m| m.file_type());
        let stream = kind.is_some_and(|k| k.is_char_device() || k.is_fifo() || k.is_socket());
        let mut bytes = Vec::new();
        if !stream && kind.is_some() {
            let mut file = File::open(path).with_context(at)?;
            file.read_to_end(&mut bytes).with_context(at)?;
        }
        if bytes.is_empty() {
            if must_exist {
                bail!("{}: there is none, or it cannot be read back", at());
            }
            return Self::begin(path, how, stream).with_context(at);
        }
        let loaded = Journal::load(&bytes).with_context(at)?;
        let known_blocks = loaded.journal.history().subject().size_blocks;
        if known_blocks > how.size_blocks {
            bail!(
                "{}: is about {known_blocks} blocks, the device has {} only",
                at(),
                how.size_blocks
            );
        }
        let sink = open_sink(path, false).with_context(at)?;
        if loaded.whole_bytes < bytes.len() {
            let whole_bytes = u64::try_from(loaded.whole_bytes).expect("a file's size");
            sink.set_len(whole_bytes).with_context(at)?;
        }
        let mut journal = loaded.journal;
        let writer = journal.hand_over(how.handover);
        let mut saved = Self {
            journal,
            writer,
            obeyed: loaded.obeyed,
            sink,
        };
        saved.save().with_context(at)?;
        Ok(saved)
    }

    fn begin(path: &Path, how: Beginning, stream: bool) -> Result<Self> {
        let subject = Subject {
            volume: VolumeId(uuid::Uuid::new_v4().into_bytes()),
            size_blocks: how.size_blocks,
            initial: if how.fresh {
                Initial::Zero
            } else {
                Initial::Unknown
            },
        };
        let sink = open_sink(path, stream)?;
        let mut journal = Journal::new(subject);
        let writer = journal.hand_over(Handover::Clean);
        let mut saved = Self {
            journal,
            writer,
            obeyed: Vec::new(),
            sink,
        };
        saved.save()?;
        Ok(saved)
    }

    /// Hands over what is not saved yet. Before a request goes to the device.
    pub(crate) fn save(&mut self) -> Result<()> {
        let bytes = self.journal.take_unsaved();
        self.sink
            .write_all(&bytes)
            .context("cannot save the journal")
    }
}

/// Another process may append as well: a fenced writer that does not know.
fn open_sink(path: &Path, stream: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    if stream {
        options.write(true);
        options.custom_flags(i32::try_from(OFlags::NOCTTY.bits())?);
    } else {
        options.append(true).create(true);
    }
    Ok(options.open(path)?)
}

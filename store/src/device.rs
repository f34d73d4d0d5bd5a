//! Device operations of the shell: a bounded number at the device, metadata through its own buffers.

use crate::core::io::{CommandId, IoId};
use crate::limits::DEVICE_OPS_MAX;
use crate::store::Store;
use reactor::{Buf, BufMut, Done, Driver, Op, Token};

const EIO: i32 = 5;

/// What an outstanding device operation carries besides its op.
#[derive(Debug)]
pub(crate) enum Note {
    ReadPart {
        command: CommandId,
        part: usize,
    },
    /// Data of a command, written.
    Data,
    /// The rest of the metadata buffer, if it was not all of it.
    MetaRead {
        rest: Option<BufMut>,
    },
    /// The whole metadata buffer.
    MetaWrite {
        whole: Buf,
    },
    /// The rest of the copy buffer, and where the data goes.
    CopyRead {
        to_bytes: u64,
        rest: BufMut,
    },
    /// The whole copy buffer.
    CopyWrite {
        whole: Buf,
    },
    Plain,
}

/// Metadata that waits for a buffer.
#[derive(Debug)]
pub(crate) enum MetaJob {
    Read {
        id: IoId,
        offset_bytes: u64,
        len_bytes: u32,
    },
    Write {
        id: IoId,
        offset_bytes: u64,
        bytes: Vec<u8>,
        durable: bool,
    },
}

/// Data that is copied from one place to another when the copy buffer is free.
#[derive(Debug)]
pub(crate) struct CopyJob {
    pub(crate) id: IoId,
    pub(crate) from_bytes: u64,
    pub(crate) to_bytes: u64,
    pub(crate) len_bytes: u32,
}

impl MetaJob {
    fn len_bytes(&self) -> usize {
        match self {
            Self::Read { len_bytes, .. } => *len_bytes as usize,
            Self::Write { bytes, .. } => bytes.len(),
        }
    }
}

impl Store {
    pub(crate) fn start(&mut self, io: &mut dyn Driver, id: IoId, note: Note, op: Op) {
        let index = id.0 as usize;
        if self.notes.len() <= index {
            self.notes.resize_with(index + 1, || None);
        }
        assert!(
            self.notes[index].replace(note).is_none(),
            "io {index} is outstanding"
        );
        let token = Token {
            room: self.room,
            index: self.index,
            value: id.0.into(),
        };
        if self.in_flight < DEVICE_OPS_MAX {
            self.in_flight += 1;
            io.submit(token, op);
        } else {
            self.counters.device_ops_queued += 1;
            self.queue.push_back((token, op));
        }
    }

    pub(crate) fn start_queued(&mut self, io: &mut dyn Driver) {
        while self.in_flight < DEVICE_OPS_MAX {
            let Some((token, op)) = self.queue.pop_front() else {
                return;
            };
            self.in_flight += 1;
            io.submit(token, op);
        }
    }

    pub(crate) fn queue_meta(&mut self, io: &mut dyn Driver, job: MetaJob) {
        self.meta.push_back(job);
        self.start_meta(io);
    }

    pub(crate) fn start_copies(&mut self, io: &mut dyn Driver) {
        let Some(buffer) = &mut self.buffers.copy else {
            return;
        };
        let Some(job) = self.copies.pop_front() else {
            return;
        };
        let into = buffer.split_to(job.len_bytes);
        let rest = self.buffers.copy.take().expect("just seen");
        let to_bytes = job.to_bytes;
        let op = Op::Read {
            file: self.file,
            offset_bytes: job.from_bytes,
            into,
        };
        self.start(io, job.id, Note::CopyRead { to_bytes, rest }, op);
    }

    /// The data of a copy was read: it is written to where it goes.
    pub(crate) fn write_copy(
        &mut self,
        io: &mut dyn Driver,
        id: IoId,
        to_bytes: u64,
        (mut whole, rest): (BufMut, BufMut),
    ) {
        let len_bytes = whole.len_bytes();
        whole.join(rest);
        let whole = whole.freeze();
        let op = Op::Write {
            file: self.file,
            offset_bytes: to_bytes,
            from: whole.slice(0, len_bytes),
            durable: false,
        };
        self.start(io, id, Note::CopyWrite { whole }, op);
    }

    /// Checksum blocks have buffers of their own: metadata never waits for them.
    pub(crate) fn read_checksums(&mut self, io: &mut dyn Driver, id: IoId, offset_bytes: u64) {
        let op = Op::Read {
            file: self.file,
            offset_bytes,
            into: self.buffers.take_checksums(),
        };
        self.start(io, id, Note::MetaRead { rest: None }, op);
    }

    pub(crate) fn write_checksums(
        &mut self,
        io: &mut dyn Driver,
        id: IoId,
        (offset_bytes, bytes): (u64, &[u8]),
    ) {
        let mut buffer = self.buffers.take_checksums();
        buffer.bytes_mut().copy_from_slice(bytes);
        let whole = buffer.freeze();
        let op = Op::Write {
            file: self.file,
            offset_bytes,
            from: whole.slice(0, whole.len_bytes()),
            durable: false,
        };
        self.start(io, id, Note::MetaWrite { whole }, op);
    }

    /// Metadata goes as far as there are buffers.
    pub(crate) fn start_meta(&mut self, io: &mut dyn Driver) {
        let file = self.file;
        while let Some(job) = self.meta.pop_front() {
            let Some(mut buffer) = self.buffers.take(job.len_bytes()) else {
                self.meta.push_front(job);
                return;
            };
            match job {
                MetaJob::Read {
                    id,
                    offset_bytes,
                    len_bytes,
                } => {
                    let into = buffer.split_to(len_bytes);
                    let op = Op::Read {
                        file,
                        offset_bytes,
                        into,
                    };
                    let rest = Some(buffer);
                    self.start(io, id, Note::MetaRead { rest }, op);
                }
                MetaJob::Write {
                    id,
                    offset_bytes,
                    bytes,
                    durable,
                } => {
                    buffer.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
                    let whole = buffer.freeze();
                    let from =
                        whole.slice(0, u32::try_from(bytes.len()).expect("at most a buffer"));
                    let op = Op::Write {
                        file,
                        offset_bytes,
                        from,
                        durable,
                    };
                    self.start(io, id, Note::MetaWrite { whole }, op);
                }
            }
        }
    }
}

/// A read or write that ended short has failed: devices and preallocated files have no end in the middle.
pub(crate) fn full_length(op: &Op, result: Result<Done, reactor::Errno>) -> Result<(), i32> {
    let wanted = match op {
        Op::Read { into, .. } => Some(into.len_bytes()),
        Op::Write { from, .. } => Some(from.len_bytes()),
        Op::Accept { .. }
        | Op::Connect { .. }
        | Op::Recv { .. }
        | Op::Send { .. }
        | Op::Flush { .. }
        | Op::Discard { .. }
        | Op::Command { .. }
        | Op::Close { .. } => None,
    };
    match (result, wanted) {
        (Err(errno), _) => Err(errno.0),
        (Ok(Done::Bytes(n)), Some(wanted)) if n != wanted => Err(EIO),
        (Ok(_), _) => Ok(()),
    }
}

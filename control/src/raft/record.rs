//! Frames of what lies in LMDB and in snapshots, which has no checksums of its own.
//!
//! ```text
//! record   crc32c u32 of all that follows | format u16 | kind u16 | body
//! entry    body = crc of the entry before u32 | term u64 | index u64 | postcard(Entry)
//! others   body = postcard
//! ```
//! All numbers are little-endian. A log entry carries the checksum of the one before, so that an
//! entry that was lost or put back from an older time is found, not only one that is damaged.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;

/// Version of this framing and of the postcard bodies in it.
const FORMAT: u16 = 10;
const HEADER_BYTES: usize = 8;
const ENTRY_HEADER_BYTES: usize = 20;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Entry = 1,
    Vote = 2,
    Committed = 3,
    Purged = 4,
    Snapshot = 5,
    SnapshotMeta = 6,
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_BYTES + body.len());
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(&FORMAT.to_le_bytes());
    record.extend_from_slice(&(kind as u16).to_le_bytes());
    record.extend_from_slice(body);
    let crc = crc32c::crc32c(&record[4..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
    record
}

fn unframe(kind: Kind, record: &[u8]) -> io::Result<(u32, &[u8])> {
    let Some((header, body)) = record.split_first_chunk::<HEADER_BYTES>() else {
        return Err(damaged(format!("a record of {} bytes", record.len())));
    };
    let crc = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    if crc != crc32c::crc32c(&record[4..]) {
        return Err(damaged(format!("a {kind:?} record with a wrong checksum")));
    }
    let format = u16::from_le_bytes([header[4], header[5]]);
    if format != FORMAT {
        let remedy = if format < FORMAT {
            "an earlier build wrote it, whose files are not upgraded; begin with an empty directory"
        } else {
            "upgrade this program"
        };
        return Err(damaged(format!(
            "a record of format {format}, this program knows {FORMAT}: {remedy}"
        )));
    }
    let found = u16::from_le_bytes([header[6], header[7]]);
    if found != kind as u16 {
        return Err(damaged(format!(
            "a record of kind {found} where a {kind:?} should be"
        )));
    }
    Ok((crc, body))
}

/// Encodes a value.
pub(crate) fn seal<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    frame(kind, &postcard::to_stdvec(value).expect("our types encode"))
}

/// Decodes and checks a value.
///
/// # Errors
/// Wrong checksum, format, kind or body.
pub(crate) fn open<T: DeserializeOwned>(kind: Kind, record: &[u8]) -> io::Result<T> {
    let (_, body) = unframe(kind, record)?;
    postcard::from_bytes(body).map_err(|e| damaged(format!("a {kind:?} record: {e}")))
}

/// Encodes a log entry; gives its checksum for the next one.
pub(crate) fn seal_entry<T: Serialize>(
    before: u32,
    term: u64,
    index: u64,
    entry: &T,
) -> (u32, Vec<u8>) {
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(&before.to_le_bytes());
    body.extend_from_slice(&term.to_le_bytes());
    body.extend_from_slice(&index.to_le_bytes());
    let body = postcard::to_extend(entry, body).expect("our types encode");
    let record = frame(Kind::Entry, &body);
    let crc = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
    (crc, record)
}

/// A log entry as read back.
pub(crate) struct OpenedEntry<T> {
    pub(crate) crc: u32,
    pub(crate) before: u32,
    pub(crate) index: u64,
    pub(crate) entry: T,
}

/// Decodes and checks a log entry (not its place in the chain).
///
/// # Errors
/// As [`open`].
pub(crate) fn open_entry<T: DeserializeOwned>(record: &[u8]) -> io::Result<OpenedEntry<T>> {
    let (crc, body) = unframe(Kind::Entry, record)?;
    let Some((header, rest)) = body.split_first_chunk::<ENTRY_HEADER_BYTES>() else {
        return Err(damaged("a log entry without a header"));
    };
    let before = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let index = u64::from_le_bytes(header[12..20].try_into().expect("eight bytes"));
    let entry = postcard::from_bytes(rest)
        .map_err(|e| damaged(format!("log entry {index} cannot be decoded: {e}")))?;
    Ok(OpenedEntry {
        crc,
        before,
        index,
        entry,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn any_flipped_bit_is_found() {
        let (_, record) = seal_entry(7, 2, 3, &"hello".to_owned());
        assert_eq!(open_entry::<String>(&record).unwrap().entry, "hello");
        for bit in 0..record.len() * 8 {
            let mut harmed = record.clone();
            harmed[bit / 8] ^= 1 << (bit % 8);
            assert!(open_entry::<String>(&harmed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_kind_is_refused() {
        let record = seal(Kind::Vote, &5u32);
        assert!(open::<u32>(Kind::Committed, &record).is_err());
        assert_eq!(open::<u32>(Kind::Vote, &record).unwrap(), 5);
    }

    #[test]
    fn a_record_of_an_earlier_or_later_format_is_refused_with_what_helps() {
        let of = |format: u16| {
            let mut record = seal(Kind::Vote, &5u32);
            record[4..6].copy_from_slice(&format.to_le_bytes());
            let crc = crc32c::crc32c(&record[4..]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
            open::<u32>(Kind::Vote, &record).unwrap_err().to_string()
        };
        assert!(of(FORMAT - 1).contains("begin with an empty directory"));
        assert!(of(FORMAT + 1).contains("upgrade this program"));
    }
}

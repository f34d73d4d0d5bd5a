//! The stream of `snapshot export`: what a snapshot holds, or what it holds otherwise than an earlier
//! one. Byte by byte in `docs/formats.md`.
//!
//! ```text
//! begin, (data | zeroes)…, end          each a frame with a number and a checksum
//! ```

use crate::failure::Failure;
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, Lba};
use std::io::{Read, Write};
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"UBSDELTA";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
/// Blocks of one data frame.
pub(super) const DATA_BLOCKS_MAX: u32 = 32;
/// A frame is at most this long without its header: a data frame.
const BODY_BYTES_MAX: usize = 8 + DATA_BLOCKS_MAX as usize * BLOCK_BYTES as usize;
const FIXED_BYTES: usize = 56;

const BEGIN: u16 = 1;
const DATA: u16 = 2;
const ZEROES: u16 = 3;
const END: u16 = 4;

/// What the stream is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    pub(super) volume: Uuid,
    pub(super) size_blocks: u64,
    /// Generation of the snapshot it is the difference to; zero: none, it is the whole.
    pub(super) since: u32,
    pub(super) generation: u32,
    pub(super) created_unix_ms: u64,
    pub(super) volume_name: String,
    pub(super) name: String,
    /// Empty if it is the whole.
    pub(super) since_name: String,
}

/// How much there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) data_blocks: u64,
    pub(super) zero_blocks: u64,
}

/// A part of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Begin(Begin),
    Data(Lba, Vec<u8>),
    Zeroes(Lba, u64),
    End(Totals),
}

/// Writes a stream.
pub(super) struct Sink<W> {
    out: W,
    number: u32,
    totals: Totals,
    /// Zeroes not written yet: they may go on.
    zeroes: Option<(Lba, u64)>,
}

impl<W: Write> Sink<W> {
    pub(super) fn new(out: W, begin: &Begin) -> std::io::Result<Self> {
        let mut sink = Self {
            out,
            number: 0,
            totals: Totals::default(),
            zeroes: None,
        };
        let mut body = Vec::with_capacity(FIXED_BYTES + 64);
        body.extend(MAGIC);
        body.extend(begin.volume.as_bytes());
        body.extend(begin.size_blocks.to_le_bytes());
        body.extend(begin.since.to_le_bytes());
        body.extend(begin.generation.to_le_bytes());
        body.extend(begin.created_unix_ms.to_le_bytes());
        body.extend([0; 8]);
        for text in [&begin.volume_name, &begin.name, &begin.since_name] {
            let len = u16::try_from(text.len()).expect("names are short");
            body.extend(len.to_le_bytes());
            body.extend(text.as_bytes());
        }
        sink.frame(BEGIN, &[&body])?;
        Ok(sink)
    }

    /// Whole blocks in ascending order; those that are zero are told apart.
    pub(super) fn blocks(&mut self, range: BlockRange, bytes: &[u8]) -> std::io::Result<()> {
        let block_bytes = BLOCK_BYTES as usize;
        assert_eq!(bytes.len(), range.blocks().0 as usize * block_bytes);
        let is_zero = |block: &[u8]| block.iter().all(|b| *b == 0);
        let mut rest = bytes;
        let mut lba = range.start().0;
        while !rest.is_empty() {
            let zero = is_zero(&rest[..block_bytes]);
            let alike = rest.chunks(block_bytes).take_while(|b| is_zero(b) == zero);
            let count = alike.count();
            let (part, after) = rest.split_at(count * block_bytes);
            if zero {
                self.zero(Lba(lba), count as u64)?;
            } else {
                self.end_zeroes()?;
                self.totals.data_blocks += count as u64;
                self.frame(DATA, &[&lba.to_le_bytes(), part])?;
            }
            (rest, lba) = (after, lba + count as u64);
        }
        Ok(())
    }

    fn zero(&mut self, lba: Lba, blocks: u64) -> std::io::Result<()> {
        match &mut self.zeroes {
            Some((start, count)) if start.0 + *count == lba.0 => {
                *count += blocks;
                Ok(())
            }
            _ => {
                self.end_zeroes()?;
                self.zeroes = Some((lba, blocks));
                Ok(())
            }
        }
    }

    fn end_zeroes(&mut self) -> std::io::Result<()> {
        let Some((lba, blocks)) = self.zeroes.take() else {
            return Ok(());
        };
        self.totals.zero_blocks += blocks;
        self.frame(ZEROES, &[&lba.0.to_le_bytes(), &blocks.to_le_bytes()])
    }

    /// Ends the stream; without it a reader takes it for cut off.
    pub(super) fn end(mut self) -> std::io::Result<(W, Totals)> {
        self.end_zeroes()?;
        let totals = self.totals;
        let counts = [totals.data_blocks, totals.zero_blocks].map(u64::to_le_bytes);
        self.frame(END, &[&counts[0], &counts[1]])?;
        self.out.flush()?;
        Ok((self.out, totals))
    }

    fn frame(&mut self, kind: u16, body: &[&[u8]]) -> std::io::Result<()> {
        let len: usize = body.iter().map(|part| part.len()).sum();
        assert!(len <= BODY_BYTES_MAX, "a frame of {len} bytes");
        let mut header = [0; HEADER_BYTES];
        header[4..6].copy_from_slice(&kind.to_le_bytes());
        header[6..8].copy_from_slice(&VERSION.to_le_bytes());
        header[8..12].copy_from_slice(&self.number.to_le_bytes());
        let len = u32::try_from(len).expect("bounded");
        header[12..16].copy_from_slice(&len.to_le_bytes());
        let checksum = body.iter().fold(crc32c::crc32c(&header[4..]), |sum, part| {
            crc32c::crc32c_append(sum, part)
        });
        header[..4].copy_from_slice(&checksum.to_le_bytes());
        self.number = self.number.wrapping_add(1);
        self.out.write_all(&header)?;
        body.iter().try_for_each(|part| self.out.write_all(part))
    }
}

/// Reads a stream and believes nothing.
pub(super) struct Source<R> {
    input: R,
    number: u32,
    totals: Totals,
    /// First block after the last frame: what follows is never before it.
    next: Lba,
    size_blocks: u64,
}

fn damaged(what: impl std::fmt::Display) -> Failure {
    Failure::error(format!(
        "the stream is damaged: {what}; nothing after that was written, export it again"
    ))
}

impl<R: Read> Source<R> {
    /// Reads how it begins.
    pub(super) fn new(input: R) -> Result<(Self, Begin), Failure> {
        let mut source = Self {
            input,
            number: 0,
            totals: Totals::default(),
            next: Lba(0),
            size_blocks: 0,
        };
        let Frame::Begin(begin) = source.next()? else {
            return Err(Failure::error(
                "this is not a stream of `ubsctl snapshot export`",
            ));
        };
        source.size_blocks = begin.size_blocks;
        Ok((source, begin))
    }

    /// The next part; after [`Frame::End`] there is none.
    pub(super) fn next(&mut self) -> Result<Frame, Failure> {
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four"));
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let (kind, version, number, len) = (half(4), half(6), word(8), word(12) as usize);
        if self.number == 0 && (kind != BEGIN || number != 0 || len > BODY_BYTES_MAX) {
            return Err(Failure::error(
                "this is not a stream of `ubsctl snapshot export`",
            ));
        }
        if len > BODY_BYTES_MAX {
            return Err(damaged(format!(
                "frame {} is {len} bytes long",
                self.number
            )));
        }
        let mut body = vec![0; len];
        self.fill(&mut body)?;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[4..]), &body);
        if checksum != word(0) {
            return Err(damaged(format!(
                "frame {} has a wrong checksum",
                self.number
            )));
        }
        if number != self.number {
            return Err(damaged(format!(
                "frame {number} comes instead of {}",
                self.number
            )));
        }
        if version != VERSION {
            return Err(Failure::error(format!(
                "the stream has version {version}, this program knows {VERSION}; use a newer ubsctl"
            )));
        }
        let frame = self.parse(kind, &body);
        self.number = self.number.wrapping_add(1);
        frame.ok_or_else(|| damaged(format!("frame {number} makes no sense")))
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        self.input.read_exact(into).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                damaged("it ends too early")
            } else {
                Failure::error(format!("cannot read the stream: {error}"))
            }
        })
    }

    fn parse(&mut self, kind: u16, body: &[u8]) -> Option<Frame> {
        match kind {
            BEGIN if self.number == 0 => parse_begin(body).map(Frame::Begin),
            DATA => {
                let (lba, data) = body.split_first_chunk::<8>()?;
                let lba = Lba(u64::from_le_bytes(*lba));
                let whole = !data.is_empty() && data.len().is_multiple_of(BLOCK_BYTES as usize);
                let blocks = (data.len() / BLOCK_BYTES as usize) as u64;
                let fits = whole && self.advance(lba, blocks);
                self.totals.data_blocks += blocks;
                fits.then(|| Frame::Data(lba, data.to_vec()))
            }
            ZEROES => {
                let [lba, blocks] = words(body)?;
                let fits = blocks > 0 && self.advance(Lba(lba), blocks);
                self.totals.zero_blocks = self.totals.zero_blocks.checked_add(blocks)?;
                fits.then_some(Frame::Zeroes(Lba(lba), blocks))
            }
            END => {
                let [data_blocks, zero_blocks] = words(body)?;
                let totals = Totals {
                    data_blocks,
                    zero_blocks,
                };
                (totals == self.totals).then_some(Frame::End(totals))
            }
            _ => None,
        }
    }

    /// Parts come in order and lie in the volume.
    fn advance(&mut self, lba: Lba, blocks: u64) -> bool {
        let end = lba
            .0
            .checked_add(blocks)
            .filter(|end| *end <= self.size_blocks);
        let fits = lba >= self.next && end.is_some();
        self.next = Lba(end.unwrap_or(self.size_blocks));
        fits
    }
}

fn words(body: &[u8]) -> Option<[u64; 2]> {
    let (words, []) = body.as_chunks::<8>() else {
        return None;
    };
    let [one, two] = words else { return None };
    Some([*one, *two].map(u64::from_le_bytes))
}

fn parse_begin(body: &[u8]) -> Option<Begin> {
    let (fixed, mut texts) = body.split_at_checked(FIXED_BYTES)?;
    if fixed[..8] != MAGIC {
        return None;
    }
    let long = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight"));
    let word = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("four"));
    let mut text = || {
        let (len, rest) = texts.split_first_chunk::<2>()?;
        let (text, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        texts = rest;
        String::from_utf8(text.to_vec()).ok()
    };
    let (volume_name, name, since_name) = (text()?, text()?, text()?);
    let size_blocks = long(24);
    // What BlockRange and file offsets can say.
    if size_blocks == 0 || size_blocks > i64::MAX as u64 / u64::from(BLOCK_BYTES) {
        return None;
    }
    Some(Begin {
        volume: Uuid::from_slice(&fixed[8..24]).ok()?,
        size_blocks,
        since: word(32),
        generation: word(36),
        created_unix_ms: long(40),
        volume_name,
        name,
        since_name,
    })
}

/// A range that is cut into pieces of one data frame each.
pub(super) fn pieces(start: Lba, blocks: u32) -> impl Iterator<Item = BlockRange> {
    let range = BlockRange::new(start, Blocks(blocks));
    range
        .into_iter()
        .flat_map(|r| r.split_at_multiples(DATA_BLOCKS_MAX))
}

#[cfg(test)]
mod test {
    use super::*;

    fn begin() -> Begin {
        Begin {
            volume: Uuid::from_u128(7),
            size_blocks: 100,
            since: 1,
            generation: 3,
            created_unix_ms: 5,
            volume_name: "data".into(),
            name: "b".into(),
            since_name: "a".into(),
        }
    }

    fn block(fill: u8) -> Vec<u8> {
        vec![fill; BLOCK_BYTES as usize]
    }

    fn stream() -> Vec<u8> {
        let mut sink = Sink::new(Vec::new(), &begin()).unwrap();
        let range = |start, blocks| BlockRange::new(Lba(start), Blocks(blocks)).unwrap();
        let bytes = [block(1), block(0), block(0)].concat();
        sink.blocks(range(4, 3), &bytes).unwrap();
        sink.blocks(range(7, 2), &[block(0), block(2)].concat())
            .unwrap();
        sink.blocks(range(99, 1), &block(0)).unwrap();
        let (bytes, totals) = sink.end().unwrap();
        assert_eq!((totals.data_blocks, totals.zero_blocks), (2, 4));
        bytes
    }

    fn frames(bytes: &[u8]) -> Result<Vec<Frame>, Failure> {
        let (mut source, begun) = Source::new(bytes)?;
        let mut frames = vec![Frame::Begin(begun)];
        while !matches!(frames.last(), Some(Frame::End(_))) {
            frames.push(source.next()?);
        }
        Ok(frames)
    }

    #[test]
    fn a_stream_reads_as_it_was_written_with_zeroes_joined() {
        let totals = Totals {
            data_blocks: 2,
            zero_blocks: 4,
        };
        let expected = [
            Frame::Begin(begin()),
            Frame::Data(Lba(4), block(1)),
            Frame::Zeroes(Lba(5), 3),
            Frame::Data(Lba(8), block(2)),
            Frame::Zeroes(Lba(99), 1),
            Frame::End(totals),
        ];
        assert_eq!(frames(&stream()).unwrap(), expected);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let whole = stream();
        for at in 0..whole.len() {
            assert!(frames(&whole[..at]).is_err(), "cut at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(frames(&flipped).is_err(), "bit in byte {at}");
        }
    }

    #[test]
    fn a_frame_that_is_missing_doubled_or_out_of_the_volume_is_noticed() {
        let whole = stream();
        let mut starts = vec![0];
        while let Some(header) = whole
            .get(starts[starts.len() - 1]..)
            .filter(|b| !b.is_empty())
        {
            let len = u32::from_le_bytes(header[12..16].try_into().unwrap()) as usize;
            starts.push(starts[starts.len() - 1] + HEADER_BYTES + len);
        }
        for pair in starts.windows(2).skip(1) {
            let (before, rest) = whole.split_at(pair[0]);
            let (frame, after) = rest.split_at(pair[1] - pair[0]);
            assert!(frames(&[before, after].concat()).is_err(), "missing");
            if !after.is_empty() {
                assert!(
                    frames(&[before, frame, frame, after].concat()).is_err(),
                    "twice"
                );
            }
        }
        let small = Begin {
            size_blocks: 8,
            ..begin()
        };
        let mut sink = Sink::new(Vec::new(), &small).unwrap();
        let past = BlockRange::new(Lba(8), Blocks(1)).unwrap();
        sink.blocks(past, &block(1)).unwrap();
        assert!(frames(&sink.end().unwrap().0).is_err());
    }
}

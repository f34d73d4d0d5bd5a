//! What a connection has to say, gathered into one send per turn.
//!
//! Headers and digests are written into a page of the connection; payload is sent from the
//! caller's own windows. One send is in flight at a time, so the page is free again when it ends.

use super::limits::HEADER_PAGE_BYTES;
use crate::proto::fabrics::{CONNECT_DATA_BYTES, ConnectData};
use crate::proto::pdu::{DIGEST_BYTES, Framing, HEADER_BYTES_MAX, Header, digest};
use reactor::driver::SEND_PARTS_MAX;
use reactor::{Arena, Buf, BufMut};
use std::collections::VecDeque;
use zerocopy::IntoBytes;

/// What follows a header.
#[derive(Debug)]
pub(super) enum Body {
    None,
    Window(Buf),
    Connect(Box<ConnectData>),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Window(window) => window.bytes(),
            Self::Connect(data) => data.as_bytes(),
        }
    }
}

/// Part of a send under construction.
#[derive(Debug)]
enum Piece {
    /// `[start, end)` of the page.
    Page(u32, u32),
    Window(Buf),
}

/// Parts one PDU may add: header (with the digest of the one before), payload, digest.
const PARTS_PER_PDU: usize = 3;
/// Page bytes one PDU may need.
const PAGE_PER_PDU: u32 = 132 + CONNECT_DATA_BYTES + DIGEST_BYTES;
const _: () = assert!(HEADER_BYTES_MAX == 132 && PAGE_PER_PDU <= HEADER_PAGE_BYTES);

/// The sending half of a connection.
#[derive(Debug)]
pub(super) struct Sender {
    waiting: VecDeque<(Header, Body)>,
    page: Option<BufMut>,
    sent_page: Option<Buf>,
    pieces: Vec<Piece>,
    parts: Vec<Buf>,
}

impl Sender {
    /// `None` if the arena is exhausted.
    pub(super) fn new(arena: &Arena) -> Option<Self> {
        Some(Self {
            waiting: VecDeque::new(),
            page: Some(arena.take(HEADER_PAGE_BYTES)?),
            sent_page: None,
            pieces: Vec::with_capacity(SEND_PARTS_MAX),
            parts: Vec::with_capacity(SEND_PARTS_MAX),
        })
    }

    pub(super) fn push(&mut self, header: Header, body: Body) {
        self.waiting.push_back((header, body));
    }

    /// The next send, if there is something to say and none in flight.
    pub(super) fn next(&mut self, framing: Framing) -> Option<Vec<Buf>> {
        if self.waiting.is_empty() {
            return None;
        }
        let mut page = self.page.take()?;
        let mut used = 0u32;
        while self.pieces.len() + PARTS_PER_PDU <= SEND_PARTS_MAX
            && used + PAGE_PER_PDU <= HEADER_PAGE_BYTES
        {
            let Some((header, body)) = self.waiting.pop_front() else {
                break;
            };
            used = self.place(framing, &mut page, used, &header, body);
        }
        Some(self.seal(page))
    }

    /// A send of exactly these bytes, instead of all that waits. `None` while a send is in flight.
    pub(super) fn only(&mut self, bytes: &[u8]) -> Option<Vec<Buf>> {
        let mut page = self.page.take()?;
        self.waiting.clear();
        page.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let len_bytes = u32::try_from(bytes.len()).expect("fits the page");
        self.pieces.push(Piece::Page(0, len_bytes));
        Some(self.seal(page))
    }

    /// The send is over; its vector and the page are used again.
    pub(super) fn ended(&mut self, mut parts: Vec<Buf>) {
        parts.clear();
        self.parts = parts;
        let page = self
            .sent_page
            .take()
            .expect("initiator: no send was in flight");
        self.page = Some(
            page.try_unfreeze()
                .expect("initiator: header page is still shared"),
        );
    }

    fn place(
        &mut self,
        framing: Framing,
        page: &mut BufMut,
        at: u32,
        header: &Header,
        body: Body,
    ) -> u32 {
        let data = body.bytes();
        let data_bytes = u32::try_from(data.len()).expect("at most 128 KiB");
        let room = &mut page.bytes_mut()[at as usize..];
        let mut written = framing.encode(header, data_bytes, room);
        let with_digest = framing.digests.data && data_bytes > 0 && header.kind().has_digests();
        let trailer = with_digest.then(|| digest(data).to_le_bytes());
        let mut from = at;
        match body {
            Body::None => {}
            Body::Connect(data) => {
                room[written..written + data.as_bytes().len()].copy_from_slice(data.as_bytes());
                written += data.as_bytes().len();
            }
            Body::Window(window) => {
                let end = at + u32::try_from(written).expect("within the page");
                self.add_page(from, end);
                self.pieces.push(Piece::Window(window));
                from = end;
            }
        }
        if let Some(trailer) = trailer {
            room[written..written + 4].copy_from_slice(&trailer);
            written += 4;
        }
        let end = at + u32::try_from(written).expect("within the page");
        self.add_page(from, end);
        end
    }

    /// Adds page bytes; those that follow each other are one part.
    fn add_page(&mut self, start: u32, end: u32) {
        match self.pieces.last_mut() {
            _ if start == end => {}
            Some(Piece::Page(_, last)) if *last == start => *last = end,
            _ => self.pieces.push(Piece::Page(start, end)),
        }
    }

    fn seal(&mut self, page: BufMut) -> Vec<Buf> {
        let page = page.freeze();
        let mut parts = std::mem::take(&mut self.parts);
        assert!(parts.is_empty() && self.pieces.len() <= SEND_PARTS_MAX);
        parts.extend(self.pieces.drain(..).map(|piece| match piece {
            Piece::Page(start, end) => page.slice(start, end - start),
            Piece::Window(window) => window,
        }));
        self.sent_page = Some(page);
        parts
    }
}

//! The send side of one connection: PDUs gather until the turn ends and leave in one op.

use super::limits::{
    COPIED_BYTES_MAX, HEADER_PAGE_BYTES, ITEM_BYTES_MAX, PARTS_FULL, QUEUED_BYTES_MAX,
};
use crate::proto::pdu::{Framing, HEADER_BYTES_MAX, Header, digest};
use reactor::{Arena, Buf, BufMut};
use std::collections::VecDeque;

/// Data behind a header.
#[derive(Debug)]
pub(super) enum Payload {
    None,
    Buf(Buf),
    Bytes(Vec<u8>),
}

impl Payload {
    fn len_bytes(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Buf(buf) => buf.len_bytes(),
            Self::Bytes(bytes) => u32::try_from(bytes.len()).expect("at most a transfer"),
        }
    }
}

#[derive(Debug)]
enum Item {
    Pdu {
        header: Header,
        framing: Framing,
        payload: Payload,
    },
    Raw(Vec<u8>),
}

impl Item {
    fn len_bytes(&self) -> u64 {
        match self {
            Self::Pdu { payload, .. } => 24 + u64::from(payload.len_bytes()),
            Self::Raw(bytes) => bytes.len() as u64,
        }
    }
}

#[derive(Debug)]
pub(super) struct Sender {
    queue: VecDeque<Item>,
    queued_bytes: u64,
    in_flight_bytes: u64,
    in_flight: bool,
    /// The slot that headers are written to; away while a send is in flight.
    page: Option<BufMut>,
    /// What is left of it meanwhile.
    page_rest: Option<BufMut>,
    /// The vector of the last send, to be used again.
    parts: Vec<Buf>,
}

impl Sender {
    pub(super) fn new(page: BufMut) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight_bytes: 0,
            in_flight: false,
            page: Some(page),
            page_rest: None,
            parts: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, header: Header, framing: Framing, payload: Payload) {
        self.push_item(Item::Pdu {
            header,
            framing,
            payload,
        });
    }

    pub(super) fn push_raw(&mut self, bytes: Vec<u8>) {
        self.push_item(Item::Raw(bytes));
    }

    fn push_item(&mut self, item: Item) {
        self.queued_bytes += item.len_bytes();
        self.queue.push_back(item);
    }

    /// The host reads too slowly: hear nothing more from it for now.
    pub(super) fn is_full(&self) -> bool {
        self.queued_bytes + self.in_flight_bytes > QUEUED_BYTES_MAX
    }

    /// Whether no send is in flight.
    pub(super) fn is_idle(&self) -> bool {
        !self.in_flight
    }

    /// Whether something waits that [`Sender::gather`] has not taken.
    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The parts of the next send; `None` if one is in flight, nothing is queued, or the arena has
    /// no slot for data that must be copied (then it is tried again later).
    pub(super) fn gather(&mut self, arena: &Arena) -> Option<Vec<Buf>> {
        if self.in_flight || self.queue.is_empty() {
            return None;
        }
        let page = self
            .page
            .take()
            .expect("at home while nothing is in flight");
        let mut run = Run {
            rest: page,
            fill_bytes: 0,
            parts: std::mem::take(&mut self.parts),
        };
        while let Some(item) = self.queue.front_mut() {
            if run.parts.len() >= PARTS_FULL || run.room_bytes() < ITEM_BYTES_MAX {
                break;
            }
            if !make_sendable(item, arena) {
                break;
            }
            let item = self.queue.pop_front().expect("looked at");
            let len_bytes = item.len_bytes();
            self.queued_bytes -= len_bytes;
            self.in_flight_bytes += len_bytes;
            run.append(item);
        }
        run.end();
        if run.parts.is_empty() {
            self.page = Some(run.rest);
            self.parts = run.parts;
            return None;
        }
        self.page_rest = Some(run.rest);
        self.in_flight = true;
        Some(run.parts)
    }

    /// The send completed; its parts come home.
    pub(super) fn on_sent(&mut self, mut parts: Vec<Buf>) {
        assert!(self.in_flight);
        self.in_flight = false;
        self.in_flight_bytes = 0;
        self.page_rest = None;
        // The first part is a header, so it is a window of the page.
        parts.truncate(1);
        let header = parts.pop().expect("no send is empty");
        self.page = Some(
            header
                .try_reclaim()
                .expect("the page has no other windows left"),
        );
        self.parts = parts;
    }
}

/// Moves payload bytes that are neither in the arena nor small into a slot. False: no slot.
fn make_sendable(item: &mut Item, arena: &Arena) -> bool {
    let Item::Pdu { payload, .. } = item else {
        return true;
    };
    let len_bytes = payload.len_bytes();
    let Payload::Bytes(bytes) = payload else {
        return true;
    };
    if len_bytes <= COPIED_BYTES_MAX {
        return true;
    }
    let Some(mut slot) = arena.take(len_bytes) else {
        return false;
    };
    slot.bytes_mut().copy_from_slice(bytes);
    *payload = Payload::Buf(slot.freeze());
    true
}

/// Header bytes that follow each other go out as one part.
struct Run {
    rest: BufMut,
    fill_bytes: u32,
    parts: Vec<Buf>,
}

impl Run {
    fn room_bytes(&self) -> u32 {
        self.rest.len_bytes() - self.fill_bytes
    }

    fn append(&mut self, item: Item) {
        let (header, framing, payload) = match item {
            Item::Raw(bytes) => return self.copy(&bytes),
            Item::Pdu {
                header,
                framing,
                payload,
            } => (header, framing, payload),
        };
        let mut bytes = [0; HEADER_BYTES_MAX];
        let written = framing.encode(&header, payload.len_bytes(), &mut bytes);
        self.copy(&bytes[..written]);
        let digested = framing.digests.data;
        match payload {
            Payload::None => {}
            Payload::Bytes(bytes) => {
                self.copy(&bytes);
                if digested {
                    self.copy(&digest(&bytes).to_le_bytes());
                }
            }
            Payload::Buf(buf) => {
                let data_digest = digested.then(|| digest(buf.bytes()));
                self.end();
                self.parts.push(buf);
                if let Some(data_digest) = data_digest {
                    self.copy(&data_digest.to_le_bytes());
                }
            }
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        let start = self.fill_bytes as usize;
        self.rest.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        self.fill_bytes += u32::try_from(bytes.len()).expect("a header");
    }

    fn end(&mut self) {
        if self.fill_bytes > 0 {
            self.parts
                .push(self.rest.split_to(self.fill_bytes).freeze());
            self.fill_bytes = 0;
        }
    }
}

/// The slot that a [`Sender`] needs.
pub(super) fn page(arena: &Arena) -> Option<BufMut> {
    arena.take(HEADER_PAGE_BYTES)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::proto::cqe::Cqe;
    use crate::proto::pdu::{C2hData, Digests};
    use crate::proto::status::Status;
    use reactor::ArenaConfig;
    use zerocopy::FromZeros;

    fn completion(cid: u16) -> Header {
        Header::CapsuleResp(Cqe::new(cid, 0, Status::SUCCESS, 0))
    }

    fn flat(parts: &[Buf]) -> Vec<u8> {
        parts
            .iter()
            .flat_map(|part| part.bytes().to_vec())
            .collect()
    }

    #[test]
    fn many_completions_are_one_part_and_none_is_lost() {
        let config = ArenaConfig {
            slot_counts: [1, 1, 1],
            huge_pages: false,
        };
        let arena = Arena::new(&config).unwrap();
        let mut sender = Sender::new(page(&arena).unwrap());
        for cid in 0..400 {
            sender.push(completion(cid), Framing::default(), Payload::None);
        }
        let mut all = Vec::new();
        while let Some(parts) = sender.gather(&arena) {
            assert_eq!(parts.len(), 1);
            assert!(sender.gather(&arena).is_none(), "one send at a time");
            all.extend(flat(&parts));
            sender.on_sent(parts);
        }
        assert_eq!(all.len(), 400 * 24);
        for (cid, pdu) in all.chunks(24).enumerate() {
            assert_eq!(usize::from(pdu[20]) | usize::from(pdu[21]) << 8, cid);
        }
        assert_eq!(arena.in_use_bytes(), 4096, "only the page");
    }

    #[test]
    fn data_stands_between_its_header_and_its_digest() {
        let config = ArenaConfig {
            slot_counts: [4, 1, 1],
            huge_pages: false,
        };
        let arena = Arena::new(&config).unwrap();
        let mut sender = Sender::new(page(&arena).unwrap());
        let mut slot = arena.take(4096).unwrap();
        slot.bytes_mut().fill(7);
        let framing = Framing {
            digests: Digests {
                header: true,
                data: true,
            },
            pda: 0,
        };
        let data = C2hData {
            datal: 4096.into(),
            ..C2hData::new_zeroed()
        };
        let header = Header::C2hData {
            data,
            last: true,
            success: false,
        };
        sender.push(header, framing, Payload::Buf(slot.freeze()));
        sender.push(completion(9), framing, Payload::None);
        let parts = sender.gather(&arena).unwrap();
        assert_eq!(
            parts.iter().map(Buf::len_bytes).collect::<Vec<_>>(),
            [28, 4096, 4 + 28]
        );
        assert_eq!(parts[2].bytes()[..4], digest(&[7; 4096]).to_le_bytes());
        sender.on_sent(parts);
        assert_eq!(arena.in_use_bytes(), 4096);
    }

    #[test]
    fn bytes_wait_for_a_slot() {
        let config = ArenaConfig {
            slot_counts: [2, 0, 0],
            huge_pages: false,
        };
        let arena = Arena::new(&config).unwrap();
        let mut sender = Sender::new(page(&arena).unwrap());
        let taken = arena.take(4096).unwrap();
        sender.push(
            completion(1),
            Framing::default(),
            Payload::Bytes(vec![5; 1000]),
        );
        assert!(sender.gather(&arena).is_none() && sender.has_queued());
        drop(taken);
        let parts = sender.gather(&arena).unwrap();
        assert_eq!(flat(&parts).len(), 1024);
    }
}

//! A shell in memory: byte streams in, PDUs out, a small namespace behind it.

use crate::proto::controller::*;
use crate::proto::cqe::Cqe;
use crate::proto::fabrics::*;
use crate::proto::identify::{self, IdentifyNamespace, NamespaceFacts};
use crate::proto::pdu::*;
use crate::proto::sqe::Sqe;
use crate::proto::sqe::{self, DsmRange, Sgl};
use crate::proto::status::Status;
use crate::proto::vendor;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use zerocopy::{FromBytes, IntoBytes};

pub(super) const SUBNQN: &str = "nqn.2026-01.io.ublkstor:storaged:test";
pub(super) const HOSTNQN: &str = "nqn.2026-01.io.ublkstor:clientd:test";
pub(super) const HOSTID: [u8; 16] = [3; 16];
pub(super) const NSID: u32 = 7;
pub(super) const SIZE_BLOCKS: u64 = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) pdu: Header,
    pub(super) data: Vec<u8>,
}

pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) now_ns: u64,
    pub(super) sent: BTreeMap<u32, VecDeque<Sent>>,
    pub(super) terminated: BTreeMap<u32, Fatal>,
    pub(super) closed: BTreeMap<u32, CloseReason>,
    pub(super) gone: Vec<(AssociationId, CloseReason)>,
    pub(super) admitted: Vec<(Work, u32)>,
    /// While set, buffers are not to be had.
    pub(super) starve: bool,
    pub(super) starved: Vec<(u32, u16, u32)>,
    pub(super) flow_control: bool,
    buffers: BTreeMap<(u32, u16), Vec<u8>>,
    inbox: BTreeMap<u32, VecDeque<u8>>,
    open: BTreeSet<u32>,
    memory: Vec<u8>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let identity = Identity {
            subnqn: SUBNQN.into(),
            serial: "1".into(),
            firmware: "0".into(),
        };
        Self {
            core: Core::new(identity),
            now_ns: 0,
            sent: BTreeMap::new(),
            terminated: BTreeMap::new(),
            closed: BTreeMap::new(),
            gone: Vec::new(),
            admitted: Vec::new(),
            starve: false,
            starved: Vec::new(),
            flow_control: true,
            buffers: BTreeMap::new(),
            inbox: BTreeMap::new(),
            open: BTreeSet::new(),
            memory: vec![0; usize::try_from(SIZE_BLOCKS).unwrap() * 4096],
        }
    }

    pub(super) fn open(&mut self, connection: u32) {
        let local = "127.0.0.1:4420".parse().unwrap();
        assert!(self.open.insert(connection));
        self.step(connection, Event::Opened { local });
    }

    pub(super) fn step(&mut self, connection: u32, event: Event<'_>) {
        let mut out = Vec::new();
        self.core.step(self.now_ns, connection, event, &mut out);
        self.carry_out(out);
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now_ns += ms * 1_000_000;
        let mut out = Vec::new();
        self.core.on_time(self.now_ns, &mut out);
        self.carry_out(out);
    }

    pub(super) fn namespaces_changed(&mut self) {
        let mut out = Vec::new();
        self.core.on_namespaces_changed(&mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut closing = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send {
                    connection,
                    pdu,
                    data,
                } => self.send(connection, pdu, data),
                Effect::Terminate {
                    connection,
                    bytes,
                    fatal,
                } => {
                    assert!((24..=152).contains(&bytes.len()));
                    assert!(self.terminated.insert(connection, fatal).is_none());
                }
                Effect::TakeBuffer {
                    connection,
                    slot,
                    len_bytes,
                    ..
                } if self.starve => {
                    self.starved.push((connection, slot, len_bytes));
                }
                Effect::TakeBuffer {
                    connection,
                    slot,
                    len_bytes,
                    ..
                } => {
                    self.give(connection, slot, len_bytes);
                }
                Effect::Inspect { connection, slot } => {
                    let data = self.buffers.remove(&(connection, slot)).unwrap();
                    self.step(
                        connection,
                        Event::ConnectData {
                            slot,
                            data: &data,
                            host_allowed: true,
                        },
                    );
                }
                Effect::Inquire {
                    connection,
                    slot,
                    inquiry,
                    nsid,
                    len_bytes_max,
                } => {
                    let answer = inquire(inquiry, nsid, len_bytes_max);
                    self.step(connection, Event::Replied { slot, answer });
                }
                Effect::Admit {
                    connection,
                    slot,
                    work,
                    sqe,
                    len_bytes,
                    ..
                } => {
                    let answer = self.execute(connection, slot, work, &sqe, len_bytes);
                    self.step(connection, Event::Replied { slot, answer });
                }
                Effect::Close {
                    connection, why, ..
                } => {
                    self.closed.entry(connection).or_insert(why);
                    closing.push(connection);
                }
                Effect::ReleaseBuffer { connection, slot } => {
                    assert!(self.buffers.remove(&(connection, slot)).is_some());
                }
                Effect::Began { .. } => {}
                Effect::Gone {
                    association, why, ..
                } => self.gone.push((association, why)),
            }
        }
        for connection in closing {
            if self.open.remove(&connection) {
                self.step(connection, Event::Closed);
            }
        }
    }

    pub(super) fn give(&mut self, connection: u32, slot: u16, len_bytes: u32) {
        self.buffers
            .insert((connection, slot), vec![0xee; len_bytes as usize]);
        self.step(connection, Event::BufferReady { slot });
    }

    fn send(&mut self, connection: u32, pdu: Header, data: Outgoing) {
        let data = match data {
            Outgoing::None => Vec::new(),
            Outgoing::Bytes(bytes) => bytes,
            Outgoing::Slot { slot, len_bytes } => {
                let mut all = self.buffers.remove(&(connection, slot)).unwrap();
                all.truncate(len_bytes as usize);
                all
            }
        };
        self.sent
            .entry(connection)
            .or_default()
            .push_back(Sent { pdu, data });
    }

    fn execute(&mut self, on: u32, slot: u16, work: Work, sqe: &Sqe, len: u32) -> Answer {
        self.admitted.push((work, sqe.nsid.get()));
        let buffer = self.buffers.remove(&(on, slot));
        let at = |lba: u64| usize::try_from(lba).unwrap() * 4096;
        let fits = |slba: u64, blocks: u32| slba + u64::from(blocks) <= SIZE_BLOCKS;
        if work != Work::Vendor && sqe.nsid.get() != NSID && work != Work::Flush {
            return Status::INVALID_NAMESPACE.into();
        }
        let ranged = matches!(work, Work::Read | Work::Write | Work::WriteZeroes);
        if ranged && !fits(sqe.slba(), sqe.blocks()) {
            return Status::LBA_OUT_OF_RANGE.into();
        }
        match work {
            Work::Read => {
                let start = at(sqe.slba());
                let data = self.memory[start..start + len as usize].to_vec();
                self.buffers.insert((on, slot), data);
                Answer::data(Outgoing::Slot {
                    slot,
                    len_bytes: len,
                })
            }
            Work::Write => {
                let start = at(sqe.slba());
                self.memory[start..start + len as usize].copy_from_slice(&buffer.unwrap());
                Answer::result(0)
            }
            Work::Flush => Answer::result(0),
            Work::WriteZeroes => {
                self.memory[at(sqe.slba())..at(sqe.slba() + u64::from(sqe.blocks()))].fill(0);
                Answer::result(0)
            }
            Work::Deallocate => {
                let count = (sqe.cdw(10) & 0xff) as usize + 1;
                for range in buffer.unwrap().chunks_exact(16).take(count) {
                    let range = DsmRange::read_from_bytes(range).unwrap();
                    let end = range.slba.get() + u64::from(range.blocks.get());
                    self.memory[at(range.slba.get())..at(end)].fill(0);
                }
                Answer::result(0)
            }
            Work::Vendor if vendor::direction(sqe.opcode) == Some(sqe::Direction::ToHost) => {
                Answer::data(Outgoing::Bytes(vec![0x5a; len as usize]))
            }
            Work::Vendor => Answer::result(0x1_0000_0001),
        }
    }

    /// Bytes arrive, in one piece.
    pub(super) fn feed(&mut self, connection: u32, bytes: &[u8]) {
        self.inbox.entry(connection).or_default().extend(bytes);
        self.pump(connection);
    }

    pub(super) fn pump(&mut self, connection: u32) {
        while self.open.contains(&connection) && self.pump_once(connection) {}
    }

    fn pump_once(&mut self, connection: u32) -> bool {
        let inbox = self.inbox.entry(connection).or_default();
        let have = u32::try_from(inbox.len()).unwrap();
        match self.core.need(connection) {
            Need::Header { len_bytes } if have >= len_bytes => {
                let bytes: Vec<u8> = inbox.drain(..len_bytes as usize).collect();
                self.step(connection, Event::Header(&bytes));
            }
            Need::Payload {
                slot,
                offset_bytes,
                len_bytes,
            } if have > 0 => {
                let len_bytes = len_bytes.min(have);
                let bytes: Vec<u8> = inbox.drain(..len_bytes as usize).collect();
                if let Some(slot) = slot {
                    let buffer = self.buffers.get_mut(&(connection, slot)).unwrap();
                    let start = offset_bytes as usize;
                    buffer[start..start + bytes.len()].copy_from_slice(&bytes);
                }
                self.step(connection, Event::Payload { len_bytes });
            }
            Need::Digest {
                slot,
                offset_bytes,
                len_bytes,
            } if have >= 4 => {
                let bytes: Vec<u8> = inbox.drain(..4).collect();
                let received = u32::from_le_bytes(bytes.try_into().unwrap());
                let matches = slot.is_none_or(|slot| {
                    let start = offset_bytes as usize;
                    let data = &self.buffers[&(connection, slot)];
                    digest(&data[start..start + len_bytes as usize]) == received
                });
                self.step(connection, Event::Digest { matches });
            }
            Need::Nothing => {
                inbox.clear();
                return false;
            }
            _ => return false,
        }
        true
    }

    pub(super) fn take(&mut self, connection: u32) -> Option<Sent> {
        self.sent.get_mut(&connection)?.pop_front()
    }

    /// The next PDU must be a completion; its entry.
    pub(super) fn completion(&mut self, connection: u32) -> Cqe {
        match self.take(connection) {
            Some(Sent {
                pdu: Header::CapsuleResp(cqe),
                ..
            }) => cqe,
            other => panic!("no completion but {other:?}"),
        }
    }

    /// Sends a command and returns the status of the completion that comes next.
    pub(super) fn command(&mut self, connection: u32, sqe: Sqe) -> Status {
        self.feed(connection, &encode(plain(), &Header::CapsuleCmd(sqe), &[]));
        loop {
            match self.take(connection).expect("an answer").pdu {
                Header::CapsuleResp(cqe) => return cqe.status(),
                Header::C2hData { success: true, .. } => return Status::SUCCESS,
                _ => {}
            }
        }
    }

    /// Sends an admin command and returns its data.
    pub(super) fn data_of(&mut self, connection: u32, sqe: Sqe) -> Vec<u8> {
        self.feed(connection, &encode(plain(), &Header::CapsuleCmd(sqe), &[]));
        let data = self.take(connection).expect("data");
        assert!(matches!(data.pdu, Header::C2hData { .. }), "{data:?}");
        assert_eq!(self.completion(connection).status(), Status::SUCCESS);
        data.data
    }

    pub(super) fn greet(&mut self, connection: u32) {
        self.open(connection);
        self.feed(
            connection,
            &encode(plain(), &Header::IcReq(IcReq::new(Digests::default())), &[]),
        );
        assert!(matches!(
            self.take(connection).unwrap().pdu,
            Header::IcResp(_)
        ));
    }

    pub(super) fn connect(&mut self, on: u32, qid: u16, cntlid: u16, subnqn: &str) -> Cqe {
        let cattr = if self.flow_control {
            0
        } else {
            CATTR_NO_FLOW_CONTROL
        };
        let command = ConnectCommand::new(1, qid, 31, cattr, 5000);
        let data = ConnectData::new(HOSTID, cntlid, subnqn, HOSTNQN);
        self.feed(on, &capsule(command.to_sqe(), data.as_bytes()));
        self.completion(on)
    }

    /// Admin queue on connection 0, connected and enabled; returns CNTLID.
    pub(super) fn admin(&mut self, connection: u32, subnqn: &str) -> u16 {
        self.greet(connection);
        let cqe = self.connect(connection, 0, CNTLID_DYNAMIC, subnqn);
        assert_eq!(cqe.status(), Status::SUCCESS);
        let set = PropertyCommand::set(2, property::CC, CC_ENABLE).to_sqe();
        assert_eq!(self.command(connection, set), Status::SUCCESS);
        u16::try_from(cqe.result.get()).unwrap()
    }

    /// Admin queue on connection `first`, one IO queue on the next.
    pub(super) fn association(&mut self, first: u32) {
        let cntlid = self.admin(first, SUBNQN);
        self.greet(first + 1);
        assert_eq!(
            self.connect(first + 1, 1, cntlid, SUBNQN).status(),
            Status::SUCCESS
        );
    }
}

fn inquire(inquiry: Inquiry, nsid: u32, len_bytes_max: u32) -> Answer {
    let facts = NamespaceFacts {
        size_blocks: SIZE_BLOCKS,
        used_blocks: 0,
        nguid: [1; 16],
        uuid: [2; 16],
        thin: true,
        deallocate_blocks: 16,
    };
    let mut data = match inquiry {
        Inquiry::List { above } => identify::active_list(&[NSID], above),
        Inquiry::Namespace if nsid == NSID => IdentifyNamespace::new(&facts).as_bytes().to_vec(),
        Inquiry::Namespace => vec![0; 4096],
        Inquiry::Descriptors if nsid == NSID => identify::descriptors(&facts),
        Inquiry::Descriptors => return Status::INVALID_NAMESPACE.into(),
    };
    data.truncate(len_bytes_max as usize);
    Answer::data(Outgoing::Bytes(data))
}

pub(super) fn plain() -> Framing {
    Framing::default()
}

/// A whole PDU as its sender frames it.
pub(super) fn encode(framing: Framing, header: &Header, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES_MAX];
    let len = framing.encode(header, u32::try_from(data.len()).unwrap(), &mut out);
    out.truncate(len);
    out.extend_from_slice(data);
    if !data.is_empty() && framing.digests.data && header.kind().has_digests() {
        out.extend_from_slice(&digest(data).to_le_bytes());
    }
    out
}

/// A command with its data in the capsule, without digests.
pub(super) fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    encode(plain(), &Header::CapsuleCmd(sqe), data)
}

pub(super) fn write(cid: u16, slba: u64, blocks: u32) -> Sqe {
    let sqe = Sqe::new(sqe::io::WRITE, cid, NSID).with_range(slba, blocks, 0);
    sqe.with_sgl(Sgl::in_capsule(blocks * 4096))
}

pub(super) fn read(cid: u16, slba: u64, blocks: u32) -> Sqe {
    let sqe = Sqe::new(sqe::io::READ, cid, NSID).with_range(slba, blocks, 0);
    sqe.with_sgl(Sgl::transport(blocks * 4096))
}

/// An identify command for 4 KiB.
pub(super) fn identify(cns: u8, nsid: u32) -> Sqe {
    Sqe::new(sqe::admin::IDENTIFY, 9, nsid)
        .with_cdws([u32::from(cns), 0, 0, 0, 0, 0])
        .with_sgl(Sgl::transport(4096))
}

//! A small blocking target in threads: one namespace in memory, and knobs for what may vary
//! between targets and for what no target should do.

use crate::proto::cqe::Cqe;
use crate::proto::fabrics::{self, CSTS_READY, ConnectCommand, PropertyCommand, property};
use crate::proto::identify::{ControllerFacts, IdentifyController};
use crate::proto::pdu::{
    C2hData, CommonHeader, Digests, Framing, Header, IcResp, PduKind, R2t, Role, TermReq, digest,
};
use crate::proto::sqe::{Sqe, Transfer, admin, io};
use crate::proto::status::Status;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What differs between targets.
#[derive(Clone, Debug)]
pub(super) struct Knobs {
    pub(super) in_capsule_bytes: u32,
    /// CPDA in dwords, zero-based.
    pub(super) cpda: u8,
    pub(super) maxh2cdata: u32,
    /// Most bytes of one R2T.
    pub(super) r2t_bytes: u32,
    /// Most bytes of one C2HData.
    pub(super) c2h_bytes: u32,
    /// End reads with the SUCCESS flag.
    pub(super) success_flag: bool,
    /// Answer no IO after this many.
    pub(super) mute_after: u32,
    /// Close both connections instead of answering this IO.
    pub(super) close_at: u32,
    /// Spoil the data digest of this read.
    pub(super) spoil_at: u32,
    /// Send these bytes instead of the answer to the first IO.
    pub(super) instead: Option<Vec<u8>>,
    /// Send at most this many bytes at a time.
    pub(super) piece_bytes: usize,
    /// Close in answer to the command with this opcode on the admin queue.
    pub(super) hang_up_on: Option<u8>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            in_capsule_bytes: 16384,
            cpda: 0,
            maxh2cdata: 131_072,
            r2t_bytes: 131_072,
            c2h_bytes: 131_072,
            success_flag: true,
            mute_after: u32::MAX,
            close_at: u32::MAX,
            spoil_at: u32::MAX,
            instead: None,
            piece_bytes: usize::MAX,
            hang_up_on: None,
        }
    }
}

#[derive(Default)]
struct Shared {
    blocks: Mutex<BTreeMap<u64, Vec<u8>>>,
    vendor: Mutex<Vec<u8>>,
    opcodes: Mutex<Vec<(u8, [u32; 6])>>,
    terminated: Mutex<Vec<(u16, u32)>>,
    sockets: Mutex<Vec<TcpStream>>,
    ios: AtomicU32,
    events: Mutex<Option<(TcpStream, Framing, u16)>>,
}

/// A running target.
pub(super) struct Model {
    pub(super) at: SocketAddr,
    shared: Arc<Shared>,
}

impl Model {
    pub(super) fn start(knobs: Knobs) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let model = Self {
            at,
            shared: shared.clone(),
        };
        // Ends with the test's process; it holds nothing that needs an end.
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                socket.set_nodelay(true).unwrap();
                shared
                    .sockets
                    .lock()
                    .unwrap()
                    .push(socket.try_clone().unwrap());
                let peer = Peer::new(socket, knobs.clone(), shared.clone());
                std::thread::spawn(move || peer.run());
            }
        });
        model
    }

    /// Closes all connections.
    pub(super) fn kill(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            // Fails where the host closed first.
            socket.shutdown(Shutdown::Both).ok();
        }
    }

    /// Commands seen, with their dwords, but for reads and writes.
    pub(super) fn opcodes(&self) -> Vec<(u8, [u32; 6])> {
        self.shared.opcodes.lock().unwrap().clone()
    }

    /// Terminate requests received: FES and FEI.
    pub(super) fn terminated(&self) -> Vec<(u16, u32)> {
        self.shared.terminated.lock().unwrap().clone()
    }

    /// Completes the event request: namespaces changed.
    pub(super) fn announce_change(&self) {
        let (mut socket, framing, cid) = self
            .shared
            .events
            .lock()
            .unwrap()
            .take()
            .expect("no event request");
        let cqe = Cqe::new(cid, 0, Status::SUCCESS, 2 | 4 << 16);
        let mut bytes = [0; 132];
        let written = framing.encode(&Header::CapsuleResp(cqe), 0, &mut bytes);
        socket.write_all(&bytes[..written]).unwrap();
    }
}

/// A write whose data comes by R2T.
struct Wanted {
    sqe: Sqe,
    data: Vec<u8>,
    got: usize,
}

struct Peer {
    socket: TcpStream,
    knobs: Knobs,
    shared: Arc<Shared>,
    receive: Framing,
    transmit: Framing,
    io_queue: bool,
    wanted: BTreeMap<u16, Wanted>,
}

/// The connection is over.
struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl Peer {
    fn new(socket: TcpStream, knobs: Knobs, shared: Arc<Shared>) -> Self {
        Self {
            socket,
            knobs,
            shared,
            receive: Framing::default(),
            transmit: Framing::default(),
            io_queue: false,
            wanted: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        while self.turn().is_ok() {}
        self.socket.shutdown(Shutdown::Both).ok();
    }

    fn turn(&mut self) -> Result<(), Over> {
        let mut bytes = vec![0; 8];
        self.socket.read_exact(&mut bytes)?;
        let common = CommonHeader::read_from_bytes(&bytes).unwrap();
        let extent = self
            .receive
            .check(&common, Role::Host, 1 << 20)
            .expect("host's header");
        bytes.resize(extent.header_bytes as usize, 0);
        self.socket.read_exact(&mut bytes[8..])?;
        let header = Header::decode(self.receive, &extent, &bytes).expect("host's digest");
        let mut data = vec![0; extent.data_bytes as usize];
        self.socket.read_exact(&mut data)?;
        if extent.data_digest {
            let mut trailer = [0; 4];
            self.socket.read_exact(&mut trailer)?;
            assert_eq!(
                u32::from_le_bytes(trailer),
                digest(&data),
                "host's data digest"
            );
        }
        match header {
            Header::IcReq(req) => {
                let digests = Digests::from_wire(req.dgst);
                let mut resp = IcResp::new(digests, self.knobs.maxh2cdata);
                resp.cpda = self.knobs.cpda;
                self.send(&Header::IcResp(resp), &[])?;
                self.receive = Framing {
                    digests,
                    pda: self.knobs.cpda,
                };
                self.transmit = Framing { digests, pda: 0 };
                Ok(())
            }
            Header::CapsuleCmd(sqe) => self.on_command(&sqe, data),
            Header::H2cData { data: header, last } => self.on_data(&header, last, &data),
            Header::H2cTermReq(TermReq { fes, fei, .. }) => {
                self.shared
                    .terminated
                    .lock()
                    .unwrap()
                    .push((fes.get(), fei.get()));
                Err(Over)
            }
            other => panic!("a host sent {:?}", other.kind()),
        }
    }

    fn send(&mut self, header: &Header, data: &[u8]) -> Result<(), Over> {
        self.send_with(header, data, 0)
    }

    fn send_with(&mut self, header: &Header, data: &[u8], spoil: u32) -> Result<(), Over> {
        let mut bytes = vec![0; 132];
        let data_bytes = u32::try_from(data.len()).unwrap();
        let written = self.transmit.encode(header, data_bytes, &mut bytes);
        bytes.truncate(written);
        bytes.extend_from_slice(data);
        let digested = header.kind() == PduKind::C2hData;
        if self.transmit.digests.data && digested && !data.is_empty() {
            bytes.extend_from_slice(&(digest(data) ^ spoil).to_le_bytes());
        }
        for piece in bytes.chunks(self.knobs.piece_bytes) {
            self.socket.write_all(piece)?;
        }
        Ok(())
    }

    fn respond(&mut self, sqe: &Sqe, status: Status, result: u64) -> Result<(), Over> {
        let cqe = Cqe::new(sqe.cid.get(), 0, status, result);
        self.send(&Header::CapsuleResp(cqe), &[])
    }

    fn reply(&mut self, sqe: &Sqe, data: &[u8], spoil: u32) -> Result<(), Over> {
        let chunks = data.len().div_ceil(self.knobs.c2h_bytes as usize);
        for (i, chunk) in data.chunks(self.knobs.c2h_bytes as usize).enumerate() {
            let last = i + 1 == chunks;
            let header = C2hData {
                cccid: sqe.cid,
                datao: u32::try_from(i)
                    .unwrap()
                    .wrapping_mul(self.knobs.c2h_bytes)
                    .into(),
                datal: u32::try_from(chunk.len()).unwrap().into(),
                ..C2hData::new_zeroed()
            };
            let success = last && self.knobs.success_flag;
            self.send_with(
                &Header::C2hData {
                    data: header,
                    last,
                    success,
                },
                chunk,
                spoil,
            )?;
        }
        if self.knobs.success_flag {
            return Ok(());
        }
        self.respond(sqe, Status::SUCCESS, 0)
    }

    fn on_command(&mut self, sqe: &Sqe, data: Vec<u8>) -> Result<(), Over> {
        if self.io_queue && sqe.opcode != admin::FABRICS {
            let nth = self.shared.ios.fetch_add(1, SeqCst) + 1;
            if nth > self.knobs.mute_after {
                return Ok(());
            }
            if nth == self.knobs.close_at {
                for socket in self.shared.sockets.lock().unwrap().iter() {
                    socket.shutdown(Shutdown::Both).ok();
                }
                return Err(Over);
            }
            if let Some(bytes) = &self.knobs.instead {
                return Ok(self.socket.write_all(bytes)?);
            }
        }
        let transfer = sqe.sgl.transfer().expect("host's descriptor");
        let to_us = sqe.opcode & 3 == 1 || sqe.opcode == admin::FABRICS;
        match transfer {
            Transfer::Transport { len_bytes } if to_us && len_bytes > 0 => {
                let data = vec![0; len_bytes as usize];
                let ttag = sqe.cid.get() ^ 0x5a5a;
                self.wanted.insert(
                    ttag,
                    Wanted {
                        sqe: *sqe,
                        data,
                        got: 0,
                    },
                );
                self.ask(ttag)
            }
            _ => self.execute(sqe, data),
        }
    }

    fn ask(&mut self, ttag: u16) -> Result<(), Over> {
        let wanted = &self.wanted[&ttag];
        let left = u32::try_from(wanted.data.len() - wanted.got).unwrap();
        let r2t = R2t {
            cccid: wanted.sqe.cid,
            ttag: ttag.into(),
            r2to: u32::try_from(wanted.got).unwrap().into(),
            r2tl: left.min(self.knobs.r2t_bytes).into(),
            ..R2t::new_zeroed()
        };
        self.send(&Header::R2t(r2t), &[])
    }

    fn on_data(
        &mut self,
        header: &crate::proto::pdu::H2cData,
        last: bool,
        data: &[u8],
    ) -> Result<(), Over> {
        let ttag = header.ttag.get();
        let wanted = self.wanted.get_mut(&ttag).expect("host's TTAG");
        assert_eq!(header.cccid, wanted.sqe.cid);
        assert_eq!(header.datao.get() as usize, wanted.got);
        assert_eq!(header.datal.get() as usize, data.len());
        assert!(header.datal.get() <= self.knobs.maxh2cdata);
        wanted.data[wanted.got..wanted.got + data.len()].copy_from_slice(data);
        wanted.got += data.len();
        let whole = wanted.got == wanted.data.len();
        let r2t_done = whole || wanted.got.is_multiple_of(self.knobs.r2t_bytes as usize);
        assert_eq!(last, r2t_done, "LAST on the last PDU of an R2T");
        if whole {
            let Wanted { sqe, data, .. } = self.wanted.remove(&ttag).unwrap();
            self.execute(&sqe, data)
        } else if r2t_done {
            self.ask(ttag)
        } else {
            Ok(())
        }
    }

    fn execute(&mut self, sqe: &Sqe, data: Vec<u8>) -> Result<(), Over> {
        if sqe.opcode == admin::FABRICS {
            return self.on_fabrics(sqe, &data);
        }
        if self.io_queue {
            self.on_io(sqe, &data)
        } else {
            self.on_admin(sqe, data)
        }
    }

    fn on_fabrics(&mut self, sqe: &Sqe, data: &[u8]) -> Result<(), Over> {
        let result = match fabrics::fctype(sqe) {
            fabrics::FCTYPE_CONNECT => {
                assert_eq!(data.len(), 1024);
                let connect = ConnectCommand::of(sqe);
                assert_eq!(connect.cattr, fabrics::CATTR_NO_FLOW_CONTROL);
                self.io_queue = connect.qid.get() == 1;
                3
            }
            fabrics::FCTYPE_PROPERTY_GET => match PropertyCommand::of(sqe).offset.get() {
                property::CAP => fabrics::capabilities(128, 15),
                property::CSTS => u64::from(CSTS_READY),
                other => panic!("property {other:#x}"),
            },
            _ => 0,
        };
        self.respond(sqe, Status::SUCCESS, result)
    }

    fn on_admin(&mut self, sqe: &Sqe, data: Vec<u8>) -> Result<(), Over> {
        if self.knobs.hang_up_on == Some(sqe.opcode) {
            return Err(Over);
        }
        self.shared
            .opcodes
            .lock()
            .unwrap()
            .push((sqe.opcode, sqe.cdws()));
        match sqe.opcode {
            admin::IDENTIFY => {
                let identify = IdentifyController::new(&ControllerFacts {
                    cntlid: 3,
                    discovery: false,
                    subnqn: super::NQN,
                    serial: "model",
                    firmware: "0",
                    mdts: 5,
                    in_capsule_bytes: self.knobs.in_capsule_bytes,
                    queue_depth: 128,
                    namespaces_max: 4,
                });
                self.reply(sqe, identify.as_bytes(), 0)
            }
            admin::GET_LOG_PAGE => self.reply(sqe, &[0; 4096], 0),
            admin::ASYNC_EVENT => {
                let socket = self.socket.try_clone()?;
                let waiting = (socket, self.transmit, sqe.cid.get());
                *self.shared.events.lock().unwrap() = Some(waiting);
                Ok(())
            }
            0xc1 => {
                *self.shared.vendor.lock().unwrap() = data;
                self.respond(sqe, Status::SUCCESS, 0x1122_3344_5566_7788)
            }
            0xc2 => {
                let data = self.shared.vendor.lock().unwrap().clone();
                self.reply(sqe, &data, 0)
            }
            0xc4 => self.respond(sqe, Status::NOT_OPEN, 0),
            _ => self.respond(sqe, Status::SUCCESS, 0),
        }
    }

    fn on_io(&mut self, sqe: &Sqe, data: &[u8]) -> Result<(), Over> {
        let range = sqe.slba()..sqe.slba() + u64::from(sqe.blocks());
        match sqe.opcode {
            io::READ => {
                let mut out = Vec::new();
                for lba in range {
                    let blocks = self.shared.blocks.lock().unwrap();
                    out.extend(blocks.get(&lba).cloned().unwrap_or_else(|| vec![0; 4096]));
                }
                let nth = self.shared.ios.load(SeqCst);
                self.reply(sqe, &out, u32::from(nth == self.knobs.spoil_at))
            }
            io::WRITE => {
                for (lba, block) in range.zip(data.chunks(4096)) {
                    self.shared
                        .blocks
                        .lock()
                        .unwrap()
                        .insert(lba, block.to_vec());
                }
                self.respond(sqe, Status::SUCCESS, 0)
            }
            io::WRITE_ZEROES => {
                self.shared
                    .opcodes
                    .lock()
                    .unwrap()
                    .push((sqe.opcode, sqe.cdws()));
                for lba in range {
                    self.shared.blocks.lock().unwrap().remove(&lba);
                }
                self.respond(sqe, Status::SUCCESS, 0)
            }
            io::DATASET_MANAGEMENT => {
                self.shared
                    .opcodes
                    .lock()
                    .unwrap()
                    .push((sqe.opcode, sqe.cdws()));
                for range in data.chunks(16) {
                    let blocks = u32::from_le_bytes(range[4..8].try_into().unwrap());
                    let slba = u64::from_le_bytes(range[8..].try_into().unwrap());
                    for lba in slba..slba + u64::from(blocks) {
                        self.shared.blocks.lock().unwrap().remove(&lba);
                    }
                }
                self.respond(sqe, Status::SUCCESS, 0)
            }
            opcode => {
                self.shared
                    .opcodes
                    .lock()
                    .unwrap()
                    .push((opcode, sqe.cdws()));
                self.respond(sqe, Status::SUCCESS, 0)
            }
        }
    }
}

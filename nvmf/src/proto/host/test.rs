use super::*;
use crate::proto::cqe::Cqe;
use crate::proto::fabrics::{self, ConnectCommand};
use crate::proto::identify::{ControllerFacts, IdentifyController};
use crate::proto::pdu::{C2hData, Fes, IcResp, R2t, TermReq};
use crate::proto::sqe::{Sgl, admin, io};
use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

mod breaches;
mod life;
mod setup;

const SECOND_NS: u64 = 1_000_000_000;

fn config() -> HostConfig {
    HostConfig {
        host_nqn: "nqn.2026-01.io.ublkstor:clientd:h".into(),
        host_id: [7; 16],
        subsystem_nqn: "nqn.2026-01.io.ublkstor:storaged:s".into(),
        kato_ms: 15_000,
        queue_depth: 128,
        digests: Digests::default(),
        io_deadline_ns: 5 * SECOND_NS,
        admin_deadline_ns: 6 * SECOND_NS,
        connect_timeout_ns: 10 * SECOND_NS,
    }
}

/// A host, and the controller's half of its wire.
struct Rig {
    host: Host,
    now_ns: u64,
    /// MAXH2CDATA of its controller.
    maxh2cdata: u32,
    identify: IdentifyController,
}

impl Rig {
    fn new(config: HostConfig) -> Self {
        let identify = IdentifyController::new(&ControllerFacts {
            cntlid: 3,
            discovery: false,
            subnqn: &config.subsystem_nqn,
            serial: "s",
            firmware: "0",
            mdts: 5,
            in_capsule_bytes: 16384,
            queue_depth: 127,
            namespaces_max: 16,
        });
        Self {
            host: Host::new(config),
            now_ns: 1,
            maxh2cdata: 32768,
            identify,
        }
    }

    fn ready() -> Self {
        Self::ready_with(config())
    }

    fn ready_with(config: HostConfig) -> Self {
        let mut rig = Self::new(config);
        let effects = rig.run_setup();
        assert!(
            effects
                .iter()
                .any(|effect| matches!(effect, Effect::Ready(_))),
            "{effects:?}"
        );
        rig
    }

    fn step(&mut self, event: Event<'_>) -> Vec<Effect> {
        let mut out = Vec::new();
        self.host.step(self.now_ns, event, &mut out);
        out
    }

    /// The controller sends a header, announcing this much data.
    fn pdu(&mut self, queue: QueueId, header: &Header, data_bytes: u32) -> Vec<Effect> {
        let framing = self.host.queues[queue.index()].receive;
        let mut bytes = [0; 132];
        let written = framing.encode(header, data_bytes, &mut bytes);
        self.bytes(queue, &bytes[..written])
    }

    fn bytes(&mut self, queue: QueueId, bytes: &[u8]) -> Vec<Effect> {
        let (common, _) = CommonHeader::ref_from_prefix(bytes).unwrap();
        match self.host.measure(queue, common) {
            Err(fatal) => self.step(Event::Breach { queue, fatal }),
            Ok(extent) => {
                let bytes = &bytes[..extent.header_bytes as usize];
                self.step(Event::Header {
                    queue,
                    extent,
                    bytes,
                })
            }
        }
    }

    fn respond(&mut self, queue: QueueId, cid: u16, status: Status, result: u64) -> Vec<Effect> {
        self.pdu(
            queue,
            &Header::CapsuleResp(Cqe::new(cid, 0, status, result)),
            0,
        )
    }

    /// Admits an IO; returns slot index, cid and the effects.
    fn io(&mut self, opcode: u8, transfer: Transfer) -> (u16, u16, Vec<Effect>) {
        let mut out = Vec::new();
        let command = Command {
            queue: QueueId::Io,
            sqe: Sqe::new(opcode, 0, 1),
            transfer,
        };
        let index = self.host.admit(self.now_ns, command, &mut out).unwrap();
        (index, capsule(&out).1.cid.get(), out)
    }

    fn read(&mut self, len_bytes: u32) -> (u16, u16) {
        let (index, cid, _) = self.io(
            io::READ,
            Transfer::ToHost {
                len_bytes,
                exact: true,
            },
        );
        (index, cid)
    }

    fn write(&mut self, len_bytes: u32) -> (u16, u16) {
        let (index, cid, _) = self.io(io::WRITE, Transfer::ToController { len_bytes });
        (index, cid)
    }

    fn data(
        &mut self,
        cid: u16,
        (datao, datal): (u32, u32),
        (last, success): (bool, bool),
    ) -> Vec<Effect> {
        let data = C2hData {
            cccid: cid.into(),
            datao: datao.into(),
            datal: datal.into(),
            ..C2hData::new_zeroed()
        };
        self.pdu(
            QueueId::Io,
            &Header::C2hData {
                data,
                last,
                success,
            },
            datal,
        )
    }

    fn arrived(&mut self) -> Vec<Effect> {
        self.step(Event::DataReceived {
            queue: QueueId::Io,
            intact: true,
            data: &[],
        })
    }

    fn r2t(&mut self, cid: u16, r2to: u32, r2tl: u32) -> Vec<Effect> {
        let r2t = R2t {
            cccid: cid.into(),
            ttag: 77.into(),
            r2to: r2to.into(),
            r2tl: r2tl.into(),
            ..R2t::new_zeroed()
        };
        self.pdu(QueueId::Io, &Header::R2t(r2t), 0)
    }

    /// Answers every step of the set-up as a controller does. Returns the last effects.
    fn run_setup(&mut self) -> Vec<Effect> {
        let mut effects = self.step(Event::Start);
        for _ in 0..16 {
            let Some(next) = self.answer(&effects) else {
                return effects;
            };
            effects = next;
        }
        panic!("set-up does not end: {effects:?}");
    }

    /// Answers one step; `None` if there is nothing to answer.
    fn answer(&mut self, effects: &[Effect]) -> Option<Vec<Effect>> {
        let phase = self.host.phase();
        for effect in effects {
            match effect {
                Effect::Open { queue } => return Some(self.step(Event::Opened { queue: *queue })),
                Effect::Send {
                    queue,
                    header: Header::IcReq(req),
                    ..
                } => {
                    let digests = Digests::from_wire(req.dgst);
                    let resp = Header::IcResp(IcResp::new(digests, self.maxh2cdata));
                    return Some(self.pdu(*queue, &resp, 0));
                }
                Effect::Send {
                    queue,
                    header: Header::CapsuleCmd(sqe),
                    ..
                } if phase != Phase::Ready && phase != Phase::Lost => {
                    return Some(self.answer_setup(*queue, sqe));
                }
                _ => {}
            }
        }
        None
    }

    fn answer_setup(&mut self, queue: QueueId, sqe: &Sqe) -> Vec<Effect> {
        let cid = sqe.cid.get();
        let result = match self.host.phase() {
            Phase::Connecting(_) => 3,
            Phase::ReadingCapabilities => fabrics::capabilities(128, 15),
            Phase::AwaitingReady => u64::from(fabrics::CSTS_READY),
            Phase::Identifying => {
                let data = C2hData {
                    cccid: cid.into(),
                    datal: 4096.into(),
                    ..C2hData::new_zeroed()
                };
                let header = Header::C2hData {
                    data,
                    last: true,
                    success: false,
                };
                self.pdu(queue, &header, 4096);
                let identify = self.identify;
                let data = identify.as_bytes();
                let lost = self.step(Event::DataReceived {
                    queue,
                    intact: true,
                    data,
                });
                if !lost.is_empty() {
                    return lost;
                }
                0
            }
            _ => 0,
        };
        self.respond(queue, cid, Status::SUCCESS, result)
    }
}

/// The one capsule among these effects.
fn capsule(effects: &[Effect]) -> (QueueId, Sqe, Payload) {
    let mut found = effects.iter().filter_map(|effect| match effect {
        Effect::Send {
            queue,
            header: Header::CapsuleCmd(sqe),
            payload,
        } => Some((*queue, *sqe, payload.clone())),
        _ => None,
    });
    let capsule = found.next().expect("no capsule");
    assert!(found.next().is_none(), "more than one capsule");
    capsule
}

/// The reason, if these effects end the association.
fn lost(effects: &[Effect]) -> Option<LostReason> {
    match effects.last() {
        Some(Effect::Lose { reason, .. }) => Some(*reason),
        _ => None,
    }
}

/// What a breach on the IO queue must lead to.
#[track_caller]
fn assert_breach(effects: &[Effect], fatal: Fatal) {
    let reason = LostReason::Breach {
        queue: QueueId::Io,
        fatal,
    };
    let terminate = Some((QueueId::Io, fatal));
    assert_eq!(effects, [Effect::Lose { reason, terminate }]);
}

/// How the one completed command ended.
#[track_caller]
fn outcome(effects: &[Effect]) -> (u16, Outcome) {
    match effects {
        [Effect::Complete { slot, outcome }] => (slot.index, *outcome),
        other => panic!("not one completion: {other:?}"),
    }
}

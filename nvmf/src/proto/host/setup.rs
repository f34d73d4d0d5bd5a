//! From a fresh socket to a ready association, one command at a time.

use super::slots::Purpose;
use super::{
    ADMIN_SQSIZE, Command, Effect, Facts, Fatal, Host, IO_BYTES_MAX, MAXH2CDATA_MIN, Outbox,
    Payload, Phase, Queue, QueueId, READY_POLL_NS, Transfer, Unsuitable,
};
use crate::proto::fabrics::{
    CATTR_NO_FLOW_CONTROL, CC_ENABLE, CNTLID_DYNAMIC, CONNECT_DATA_BYTES, CSTS_FATAL, CSTS_READY,
    ConnectCommand, ConnectData, PropertyCommand, property,
};
use crate::proto::identify::{
    EVENT_NAMESPACE_CHANGED, IDENTIFY_BYTES, IdentifyController, ONCS_DATASET_MANAGEMENT,
    ONCS_WRITE_ZEROES, cns,
};
use crate::proto::pdu::{Digests, Framing, Header, IcReq, IcResp, PDA_MAX};
use crate::proto::sqe::{Sqe, admin};
use zerocopy::FromBytes;

/// Set Features: number of queues.
const FEATURE_QUEUES: u32 = 0x07;
/// Set Features: asynchronous event configuration.
const FEATURE_EVENTS: u32 = 0x0b;
/// CAP: NVM command set.
const CAP_NVM: u64 = 1 << 37;
/// CAP: MPSMIN, log2 of the smallest page in 4 KiB.
const CAP_MPSMIN: u64 = 0xf << 48;
/// CTRATT: any command counts as a keep-alive.
const CTRATT_TRAFFIC_KEEPS_ALIVE: u32 = 1 << 6;
/// Identify: VWC present.
const VWC_PRESENT: u8 = 1;
/// SGLS: byte or dword alignment.
const SGLS_SUPPORTED: u32 = 3;

impl Host {
    pub(super) fn start(&mut self, now_ns: u64, out: &mut Outbox) {
        assert_eq!(self.phase, Phase::Idle, "host: started twice");
        self.started_ns = now_ns;
        self.last_alive_ns = now_ns;
        self.open(QueueId::Admin, out);
        self.arm_before(self.connect_due_ns(), out);
    }

    fn open(&mut self, queue: QueueId, out: &mut Outbox) {
        if queue == QueueId::Io {
            self.prepare_io_queue();
        }
        self.phase = Phase::Opening(queue);
        out.push(Effect::Open { queue });
    }

    pub(super) fn greet(&mut self, queue: QueueId, out: &mut Outbox) {
        assert_eq!(
            self.phase,
            Phase::Opening(queue),
            "host: a socket nobody asked for"
        );
        self.phase = Phase::Greeting(queue);
        let header = Header::IcReq(IcReq::new(self.config.digests));
        out.push(Effect::Send {
            queue,
            header,
            payload: Payload::None,
        });
    }

    pub(super) fn on_icresp(
        &mut self,
        now_ns: u64,
        queue_id: QueueId,
        resp: &IcResp,
        out: &mut Outbox,
    ) {
        let maxh2cdata = resp.maxh2cdata.get();
        if resp.pfv.get() != 0 {
            return self.breach(queue_id, Fatal::field(8), out);
        }
        if resp.cpda > PDA_MAX {
            return self.breach(queue_id, Fatal::field(10), out);
        }
        if maxh2cdata < MAXH2CDATA_MIN || !maxh2cdata.is_multiple_of(4) {
            return self.breach(queue_id, Fatal::field(12), out);
        }
        let digests = Digests::from_wire(resp.dgst);
        if digests != self.config.digests {
            return self.lose(Unsuitable::Digests(digests).into(), None, out);
        }
        let queue = self.queue(queue_id);
        queue.greeted = true;
        queue.maxh2cdata_bytes = maxh2cdata;
        queue.transmit = Framing {
            digests,
            pda: resp.cpda,
        };
        queue.receive = Framing { digests, pda: 0 };
        self.connect(now_ns, queue_id, out);
    }

    fn connect(&mut self, now_ns: u64, queue: QueueId, out: &mut Outbox) {
        self.phase = Phase::Connecting(queue);
        let (sqsize, kato_ms, cntlid) = match queue {
            QueueId::Admin => (ADMIN_SQSIZE, self.config.kato_ms, CNTLID_DYNAMIC),
            QueueId::Io => (self.facts.queue_depth, 0, self.facts.cntlid),
        };
        let config = &self.config;
        let data = ConnectData::new(
            config.host_id,
            cntlid,
            &config.subsystem_nqn,
            &config.host_nqn,
        );
        let sqe = ConnectCommand::new(0, queue.qid(), sqsize, CATTR_NO_FLOW_CONTROL, kato_ms);
        let deadline_ns = now_ns.saturating_add(config.admin_deadline_ns);
        // Fabrics commands may carry 8 KiB on any queue, before IOCCSZ is known or whatever it is.
        let half = self.queue(queue);
        let inline_bytes = std::mem::replace(&mut half.inline_bytes, CONNECT_DATA_BYTES);
        let transfer = Transfer::ToController {
            len_bytes: CONNECT_DATA_BYTES,
        };
        let command = Command {
            queue,
            sqe: sqe.to_sqe(),
            transfer,
        };
        let before = out.len();
        self.issue(now_ns, Purpose::Setup, command, deadline_ns, out);
        self.queue(queue).inline_bytes = inline_bytes;
        let Effect::Send { payload, .. } = &mut out[before] else {
            unreachable!("a command begins with its capsule");
        };
        *payload = Payload::Connect(Box::new(data));
    }

    pub(super) fn on_setup_done(&mut self, now_ns: u64, result: u64, out: &mut Outbox) {
        let [r0, r1, r2, r3, ..] = result.to_le_bytes();
        let low = u32::from_le_bytes([r0, r1, r2, r3]);
        match self.phase {
            Phase::Connecting(QueueId::Admin) => {
                self.facts.cntlid = u16::from_le_bytes([r0, r1]);
                self.phase = Phase::ReadingCapabilities;
                let sqe = PropertyCommand::get(0, property::CAP, true).to_sqe();
                self.issue_own(now_ns, Purpose::Setup, sqe, 0, out);
            }
            Phase::Connecting(QueueId::Io) => self.on_ready(now_ns, out),
            Phase::ReadingCapabilities => self.on_capabilities(now_ns, result, out),
            Phase::Enabling => {
                self.phase = Phase::AwaitingReady;
                self.ask_status(now_ns, out);
            }
            Phase::AwaitingReady => self.on_status(now_ns, low, out),
            Phase::Identifying => {
                self.phase = Phase::SettingQueues;
                // NSQR and NCQR are zero-based: one of each.
                self.set_feature(now_ns, FEATURE_QUEUES, 0, out);
            }
            Phase::SettingQueues if self.facts.announces_changes => {
                self.phase = Phase::SettingEvents;
                self.set_feature(now_ns, FEATURE_EVENTS, EVENT_NAMESPACE_CHANGED, out);
            }
            Phase::SettingQueues | Phase::SettingEvents => self.open(QueueId::Io, out),
            Phase::Idle | Phase::Opening(_) | Phase::Greeting(_) | Phase::Ready | Phase::Lost => {
                unreachable!(
                    "host: no set-up command is in flight while {:?}",
                    self.phase
                )
            }
        }
    }

    fn set_feature(&mut self, now_ns: u64, feature: u32, value: u32, out: &mut Outbox) {
        let sqe = Sqe::new(admin::SET_FEATURES, 0, 0).with_cdws([feature, value, 0, 0, 0, 0]);
        self.issue_own(now_ns, Purpose::Setup, sqe, 0, out);
    }

    fn on_capabilities(&mut self, now_ns: u64, cap: u64, out: &mut Outbox) {
        if cap & CAP_NVM == 0 || cap & CAP_MPSMIN != 0 {
            return self.lose(Unsuitable::Capabilities(cap).into(), None, out);
        }
        let [mqes_low, mqes_high, ..] = cap.to_le_bytes();
        let mqes = u16::from_le_bytes([mqes_low, mqes_high]);
        if mqes == 0 {
            return self.lose(Unsuitable::QueueDepth(1).into(), None, out);
        }
        // A queue of SQSIZE + 1 entries holds SQSIZE commands.
        self.facts.queue_depth = self.facts.queue_depth.min(mqes);
        self.phase = Phase::Enabling;
        let sqe = PropertyCommand::set(0, property::CC, CC_ENABLE).to_sqe();
        self.issue_own(now_ns, Purpose::Setup, sqe, 0, out);
    }

    pub(super) fn ask_status(&mut self, now_ns: u64, out: &mut Outbox) {
        self.poll_at_ns = u64::MAX;
        let sqe = PropertyCommand::get(0, property::CSTS, false).to_sqe();
        self.issue_own(now_ns, Purpose::Setup, sqe, 0, out);
    }

    fn on_status(&mut self, now_ns: u64, csts: u32, out: &mut Outbox) {
        if csts & CSTS_FATAL != 0 {
            return self.lose(Unsuitable::Fatal(csts).into(), None, out);
        }
        if csts & CSTS_READY == 0 {
            self.poll_at_ns = now_ns.saturating_add(READY_POLL_NS);
            return self.arm_before(self.poll_at_ns, out);
        }
        self.phase = Phase::Identifying;
        let cdw10 = u32::from(cns::CONTROLLER);
        let sqe = Sqe::new(admin::IDENTIFY, 0, 0).with_cdws([cdw10, 0, 0, 0, 0, 0]);
        self.issue_own(now_ns, Purpose::Setup, sqe, IDENTIFY_BYTES, out);
    }

    /// Looks at Identify Controller once it is all there.
    pub(super) fn on_identify(&mut self, data: &[u8]) -> Result<(), Unsuitable> {
        if data.len() < IDENTIFY_BYTES as usize {
            return Ok(()); // more C2HData follows, or the completion is refused as too short
        }
        let identify = IdentifyController::ref_from_bytes(data)
            .map_err(|_| Unsuitable::Identify(data.len()))?;
        self.check_identify(identify)?;
        let mdts_bytes = transfer_bytes_max(identify.mdts);
        if mdts_bytes < IO_BYTES_MAX {
            return Err(Unsuitable::TransferSize(mdts_bytes));
        }
        let maxcmd = match identify.maxcmd.get() {
            0 => self.facts.queue_depth,
            maxcmd => maxcmd,
        };
        let ioccsz_bytes = identify.ioccsz.get().saturating_mul(16);
        let oncs = identify.oncs.get();
        let offers_events = identify.oaes.get() & EVENT_NAMESPACE_CHANGED != 0;
        self.traffic_keeps_alive = identify.ctratt.get() & CTRATT_TRAFFIC_KEEPS_ALIVE != 0;
        self.facts = Facts {
            queue_depth: self.facts.queue_depth.min(maxcmd),
            inline_bytes: (ioccsz_bytes - 64).min(IO_BYTES_MAX),
            transfer_bytes_max: mdts_bytes,
            write_cache: identify.vwc & VWC_PRESENT != 0,
            write_zeroes: oncs & ONCS_WRITE_ZEROES != 0,
            dataset_management: oncs & ONCS_DATASET_MANAGEMENT != 0,
            announces_changes: offers_events,
            ..self.facts
        };
        Ok(())
    }

    fn check_identify(&self, identify: &IdentifyController) -> Result<(), Unsuitable> {
        let (connect, theirs) = (self.facts.cntlid, identify.cntlid.get());
        if connect != theirs {
            return Err(Unsuitable::ControllerId {
                connect,
                identify: theirs,
            });
        }
        if identify.cntrltype > 1 {
            return Err(Unsuitable::ControllerType(identify.cntrltype));
        }
        if identify.kas.get() == 0 && self.config.kato_ms != 0 {
            return Err(Unsuitable::KeepAlive);
        }
        let (command, response) = (identify.ioccsz.get(), identify.iorcsz.get());
        if command < 4 || response < 1 {
            return Err(Unsuitable::Capsules { command, response });
        }
        if identify.icdoff.get() != 0 {
            return Err(Unsuitable::DataOffset(identify.icdoff.get()));
        }
        if identify.sgls.get() & SGLS_SUPPORTED == 0 {
            return Err(Unsuitable::Sgls(identify.sgls.get()));
        }
        if identify.maxcmd.get() == 1 {
            return Err(Unsuitable::QueueDepth(1));
        }
        Ok(())
    }

    fn on_ready(&mut self, now_ns: u64, out: &mut Outbox) {
        assert_eq!(self.in_flight(QueueId::Io), 0);
        self.phase = Phase::Ready;
        self.last_alive_ns = now_ns;
        out.push(Effect::Ready(self.facts));
        if self.facts.announces_changes {
            self.ask_for_events(now_ns, out);
        }
        self.arm_anew(out);
    }

    /// Sizes the IO queue, before its Connect.
    fn prepare_io_queue(&mut self) {
        let facts = &self.facts;
        self.queues[1] = Queue::new(facts.queue_depth, facts.inline_bytes);
    }
}

/// Largest transfer for an MDTS of 2^mdts pages of 4 KiB; zero is no limit.
fn transfer_bytes_max(mdts: u8) -> u32 {
    match mdts {
        0 => u32::MAX,
        mdts => 1u32.checked_shl(u32::from(mdts) + 12).unwrap_or(u32::MAX),
    }
}

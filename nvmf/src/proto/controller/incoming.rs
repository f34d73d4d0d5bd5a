//! From PDUs to commands: framing order, capsules, write data, answers.

use super::super::cqe::Cqe;
use super::super::pdu::{C2hData, Extent, Fatal, Fes, Framing, H2cData, Header, IcReq, IcResp};
use super::super::pdu::{Digests, PDA_MAX, R2t};
use super::super::receive::Progress;
use super::super::sqe::{SglFault, Sqe, Transfer};
use super::super::status::Status;
use super::slots::{Plan, Slot, Waiting};
use super::{
    Answer, BufferUse, CloseReason, Core, Effect, Landing, Outgoing, SEQUENCE, Stage, limits,
};
use zerocopy::FromZeros;

/// What a command does with data, as its opcode and fields demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// None.
    None,
    /// From the host.
    In,
    /// To the host.
    Out,
}

impl Core {
    pub(super) fn on_header(&mut self, connection: u32, bytes: &[u8], out: &mut Vec<Effect>) {
        let this = self.connection_mut(connection);
        let handled = match this.receiver.header(bytes) {
            Ok(None) => Ok(()),
            Ok(Some((header, extent))) => {
                this.landing = Landing::Nowhere;
                self.on_pdu(connection, &header, &extent, out)
            }
            Err(fatal) => Err(fatal),
        };
        if let Err(fatal) = handled {
            self.fail(connection, fatal, out);
        }
    }

    fn on_pdu(
        &mut self,
        connection: u32,
        header: &Header,
        extent: &Extent,
        out: &mut Vec<Effect>,
    ) -> Result<(), Fatal> {
        let stage = self.connection(connection).stage;
        match (header, stage) {
            (Header::H2cTermReq(_), _) => {
                // Never answered in kind; its quotation is not worth reading.
                let why = CloseReason::PeerTerminated;
                self.retire(connection, why, out);
                out.push(Effect::Close {
                    connection,
                    reset: false,
                    why,
                });
                Ok(())
            }
            (Header::IcReq(request), Stage::AwaitingIcReq) => {
                self.on_icreq(connection, request, out)
            }
            (_, Stage::AwaitingIcReq) | (Header::IcReq(_), _) => Err(SEQUENCE),
            (Header::CapsuleCmd(sqe), _) => self.on_capsule(connection, sqe, extent, out),
            (Header::H2cData { data, last }, _) => self.on_data(connection, data, *last, extent),
            (
                Header::IcResp(_)
                | Header::C2hTermReq(_)
                | Header::CapsuleResp(_)
                | Header::C2hData { .. }
                | Header::R2t(_),
                _,
            ) => unreachable!("the receiver takes a host's PDUs only"),
        }
    }

    fn on_icreq(
        &mut self,
        connection: u32,
        request: &IcReq,
        out: &mut Vec<Effect>,
    ) -> Result<(), Fatal> {
        if request.pfv.get() != 0 {
            return Err(Fatal::field(8));
        }
        if request.hpda > PDA_MAX {
            return Err(Fatal::field(10));
        }
        let digests = Digests::from_wire(request.dgst);
        let this = self.connection_mut(connection);
        this.stage = Stage::AwaitingConnect;
        this.receiver.set_framing(Framing { digests, pda: 0 });
        this.framing = Framing {
            digests,
            pda: request.hpda,
        };
        let pdu = Header::IcResp(IcResp::new(digests, limits::TRANSFER_BYTES_MAX));
        out.push(Effect::Send {
            connection,
            pdu,
            data: Outgoing::None,
        });
        Ok(())
    }

    fn on_capsule(
        &mut self,
        connection: u32,
        sqe: &Sqe,
        extent: &Extent,
        out: &mut Vec<Effect>,
    ) -> Result<(), Fatal> {
        let this = self.connection_mut(connection);
        if extent.data_bytes > this.in_capsule_bytes_max {
            return Err(Fatal::plain(Fes::LimitExceeded));
        }
        let stage = this.stage;
        this.sqhd = (this.sqhd + 1) % this.queue_depth;
        let slot = this
            .slots
            .insert(Slot {
                waiting: Waiting::Reply,
                plan: Plan::Here,
                sqe: *sqe,
                len_bytes: sqe.sgl.length.get(),
                received_bytes: 0,
                damaged: false,
            })
            .ok_or(SEQUENCE)?;
        if let Stage::Live { association, .. } = stage {
            let now_ns = self.now_ns;
            self.association_mut(association).seen_ns = now_ns;
        }
        let judged = self.judge(connection, sqe).and_then(|(plan, data)| {
            check_transfer(sqe, data, extent.data_bytes)?;
            Ok((plan, data))
        });
        match judged {
            Ok((plan, data)) => {
                let this = self.connection_mut(connection);
                this.slots.get_mut(slot).expect("just inserted").plan = plan;
                self.begin(connection, slot, data, extent.data_bytes, out);
            }
            Err(status) => self.answer(connection, slot, status.into(), out),
        }
        Ok(())
    }

    /// What the command needs, or why it fails before anything is moved.
    fn judge(&self, connection: u32, sqe: &Sqe) -> Result<(Plan, Data), Status> {
        if sqe.fuse() != 0 || !sqe.uses_sgl() {
            return Err(Status::INVALID_FIELD);
        }
        match self.connection(connection).stage {
            Stage::Live {
                association,
                qid: 0,
            } => self.judge_admin(association, sqe),
            Stage::Live { association, .. } => self.judge_io(association, sqe),
            Stage::AwaitingConnect => Self::judge_unconnected(sqe),
            Stage::AwaitingIcReq | Stage::Closing => unreachable!("no capsules in {connection}"),
        }
    }

    /// Starts the command's first wait, or carries it out.
    fn begin(
        &mut self,
        connection: u32,
        slot: u16,
        data: Data,
        capsule_bytes: u32,
        out: &mut Vec<Effect>,
    ) {
        let this = self.connection_mut(connection);
        let entry = this.slots.get(slot).expect("a slot in use");
        let (plan, len_bytes) = (entry.plan, entry.len_bytes);
        let purpose = match (data, plan) {
            (Data::In, _) if capsule_bytes > 0 => BufferUse::InCapsule,
            (Data::In, _) => BufferUse::R2t,
            (_, Plan::Work(super::Work::Read)) => BufferUse::Read,
            (Data::Out | Data::None, _) => return self.carry_out(connection, slot, out),
        };
        this.slots.set_waiting(slot, Waiting::Buffer);
        if purpose == BufferUse::InCapsule {
            this.landing = Landing::Slot {
                slot,
                start_bytes: 0,
                len_bytes,
                ready: false,
            };
        }
        out.push(Effect::TakeBuffer {
            connection,
            slot,
            len_bytes,
            purpose,
        });
    }

    pub(super) fn on_buffer_ready(&mut self, connection: u32, slot: u16, out: &mut Vec<Effect>) {
        let this = self.connection_mut(connection);
        let entry = *this
            .slots
            .get(slot)
            .expect("buffers are taken for slots in use");
        assert_eq!(entry.waiting, Waiting::Buffer);
        if let Landing::Slot {
            slot: landing,
            ready,
            ..
        } = &mut this.landing
            && *landing == slot
            && !*ready
        {
            *ready = true;
            this.slots.set_waiting(slot, Waiting::Capsule);
            return;
        }
        if entry.plan == Plan::Work(super::Work::Read) {
            return self.carry_out(connection, slot, out);
        }
        this.slots.set_waiting(slot, Waiting::Data);
        let pdu = Header::R2t(R2t {
            cccid: entry.sqe.cid,
            ttag: slot.into(),
            r2tl: entry.len_bytes.into(),
            ..R2t::new_zeroed()
        });
        out.push(Effect::Send {
            connection,
            pdu,
            data: Outgoing::None,
        });
    }

    /// H2CData: it must continue exactly what an R2T asked for.
    fn on_data(
        &mut self,
        connection: u32,
        data: &H2cData,
        last: bool,
        extent: &Extent,
    ) -> Result<(), Fatal> {
        let this = self.connection_mut(connection);
        let slot = data.ttag.get();
        let entry = this
            .slots
            .get(slot)
            .filter(|s| s.waiting == Waiting::Data)
            .ok_or(SEQUENCE)?;
        if data.cccid != entry.sqe.cid {
            return Err(Fatal::field(8));
        }
        let (start_bytes, len_bytes) = (data.datao.get(), data.datal.get());
        if len_bytes == 0 || len_bytes != extent.data_bytes {
            return Err(Fatal::field(16));
        }
        let left_bytes = entry.len_bytes - entry.received_bytes;
        if start_bytes != entry.received_bytes || len_bytes > left_bytes {
            return Err(Fatal::plain(Fes::DataOutOfRange));
        }
        if last != (len_bytes == left_bytes) {
            return Err(Fatal::field(1));
        }
        this.landing = Landing::Slot {
            slot,
            start_bytes,
            len_bytes,
            ready: true,
        };
        Ok(())
    }

    pub(super) fn on_payload(&mut self, connection: u32, len_bytes: u32, out: &mut Vec<Effect>) {
        let this = self.connection_mut(connection);
        match this.receiver.payload(len_bytes) {
            Progress::More | Progress::DigestFollows => {}
            Progress::Complete => self.on_landed(connection, true, out),
        }
    }

    pub(super) fn on_digest(&mut self, connection: u32, matches: bool, out: &mut Vec<Effect>) {
        self.connection_mut(connection).receiver.digest_done();
        self.on_landed(connection, matches, out);
    }

    /// All data of a PDU is in its place.
    fn on_landed(&mut self, connection: u32, intact: bool, out: &mut Vec<Effect>) {
        let this = self.connection_mut(connection);
        let landing = std::mem::replace(&mut this.landing, Landing::Nowhere);
        let Landing::Slot {
            slot, len_bytes, ..
        } = landing
        else {
            return;
        };
        let entry = this
            .slots
            .get_mut(slot)
            .expect("data lands in slots in use");
        entry.received_bytes += len_bytes;
        entry.damaged |= !intact;
        assert!(entry.received_bytes <= entry.len_bytes);
        if entry.received_bytes < entry.len_bytes {
            return;
        }
        if entry.damaged {
            out.push(Effect::ReleaseBuffer { connection, slot });
            let status = Status::TRANSIENT_TRANSPORT;
            return self.answer(connection, slot, status.into(), out);
        }
        self.carry_out(connection, slot, out);
    }

    /// Everything the command needs is there.
    fn carry_out(&mut self, connection: u32, slot: u16, out: &mut Vec<Effect>) {
        let this = self.connection_mut(connection);
        this.slots.set_waiting(slot, Waiting::Reply);
        let stage = this.stage;
        let entry = *this.slots.get(slot).expect("a slot in use");
        let association = match stage {
            Stage::Live { association, .. } => Some(self.association(association).id),
            Stage::AwaitingIcReq | Stage::AwaitingConnect | Stage::Closing => None,
        };
        match entry.plan {
            Plan::Connect => out.push(Effect::Inspect { connection, slot }),
            Plan::Work(work) => out.push(Effect::Admit {
                connection,
                slot,
                association: association.expect("backend commands need an association"),
                work,
                sqe: entry.sqe,
                len_bytes: entry.len_bytes,
            }),
            Plan::Inquire(inquiry) => out.push(Effect::Inquire {
                connection,
                slot,
                inquiry,
                nsid: entry.sqe.nsid.get(),
                len_bytes_max: entry.len_bytes,
            }),
            Plan::Here => {
                if entry.received_bytes > 0 {
                    out.push(Effect::ReleaseBuffer { connection, slot });
                }
                self.carry_out_here(connection, slot, &entry.sqe, out);
            }
        }
    }

    pub(super) fn on_replied(
        &mut self,
        connection: u32,
        slot: u16,
        answer: Answer,
        out: &mut Vec<Effect>,
    ) {
        let entry = self
            .connection(connection)
            .slots
            .get(slot)
            .expect("replies to slots in use");
        assert_eq!(entry.waiting, Waiting::Reply, "a command is answered once");
        assert!(
            answer.data.len_bytes() <= entry.len_bytes,
            "more data than the host takes"
        );
        let short = entry.plan == Plan::Work(super::Work::Read)
            && answer.status.is_success()
            && answer.data.len_bytes() != entry.len_bytes;
        if short {
            out.push(Effect::ReleaseBuffer { connection, slot });
            // A backend that reads less than a block range is broken; the host must not guess.
            let status = Status::INTERNAL_ERROR;
            return self.answer(connection, slot, status.into(), out);
        }
        self.answer(connection, slot, answer, out);
    }

    /// Sends data and completion, and frees the slot.
    pub(super) fn answer(
        &mut self,
        connection: u32,
        slot: u16,
        answer: Answer,
        out: &mut Vec<Effect>,
    ) {
        let Answer {
            status,
            result,
            data,
        } = answer;
        let this = self.connection_mut(connection);
        let entry = this.slots.remove(slot);
        let len_bytes = data.len_bytes();
        if status.is_success() && len_bytes > 0 {
            let success = !this.flow_control && result == 0;
            let fields = C2hData {
                cccid: entry.sqe.cid,
                datal: len_bytes.into(),
                ..C2hData::new_zeroed()
            };
            let pdu = Header::C2hData {
                data: fields,
                last: true,
                success,
            };
            out.push(Effect::Send {
                connection,
                pdu,
                data,
            });
            if success {
                return;
            }
        }
        let sqhd = if this.flow_control { this.sqhd } else { 0 };
        let cqe = Cqe::new(entry.sqe.cid.get(), sqhd, status, result);
        self.send_completion(connection, cqe, out);
    }

    pub(super) fn send_completion(&self, connection: u32, cqe: Cqe, out: &mut Vec<Effect>) {
        let pdu = Header::CapsuleResp(cqe);
        out.push(Effect::Send {
            connection,
            pdu,
            data: Outgoing::None,
        });
    }
}

/// Checks the data descriptor against the command's direction and what came in the capsule.
fn check_transfer(sqe: &Sqe, data: Data, capsule_bytes: u32) -> Result<(), Status> {
    if data == Data::None && sqe.sgl.length.get() == 0 {
        return if capsule_bytes == 0 {
            Ok(())
        } else {
            Err(Status::SGL_LENGTH_INVALID)
        };
    }
    let transfer = sqe.sgl.transfer().map_err(|fault| match fault {
        SglFault::Type => Status::SGL_TYPE_INVALID,
        SglFault::Offset => Status::SGL_OFFSET_INVALID,
    })?;
    match (data, transfer) {
        (Data::None, _) => Err(Status::SGL_LENGTH_INVALID),
        (Data::Out, Transfer::InCapsule { .. }) => Err(Status::INVALID_FIELD),
        (_, Transfer::InCapsule { len_bytes }) if len_bytes != capsule_bytes => {
            Err(Status::SGL_LENGTH_INVALID)
        }
        (_, Transfer::InCapsule { len_bytes: 0 } | Transfer::Transport { len_bytes: 0 }) => {
            Err(Status::SGL_LENGTH_INVALID)
        }
        (_, Transfer::Transport { .. }) if capsule_bytes > 0 => Err(Status::SGL_LENGTH_INVALID),
        (_, Transfer::InCapsule { len_bytes } | Transfer::Transport { len_bytes })
            if len_bytes > limits::TRANSFER_BYTES_MAX =>
        {
            Err(Status::INVALID_FIELD)
        }
        (Data::In | Data::Out, _) => Ok(()),
    }
}

//! What the controller sends: every header is checked against what it may say now.

use super::slots::{InFlight, Purpose};
use super::{
    Effect, Fatal, Host, LostReason, Outbox, Outcome, Phase, QueueId, Receiving, SlotId, Transfer,
};
use crate::proto::cqe::Cqe;
use crate::proto::log::{LogRequest, lid};
use crate::proto::pdu::{C2hData, Extent, Fes, Header};
use crate::proto::sqe::{NSID_ALL, Sqe, admin};
use crate::proto::status::Status;

/// Length of the log page that lists changed namespaces; reading it re-arms its event.
const CHANGED_LOG_BYTES: u32 = 4096;
/// Event type (result 2:0) and information (15:8) of "namespace attribute changed".
const EVENT_NAMESPACE_CHANGED: (u8, u8) = (2, 0);

impl Host {
    pub(super) fn on_header(
        &mut self,
        now_ns: u64,
        queue: QueueId,
        extent: &Extent,
        bytes: &[u8],
        out: &mut Outbox,
    ) {
        let half = self.queue(queue);
        assert!(
            half.receiving.is_none(),
            "host: header while data is awaited"
        );
        let header = match Header::decode(half.receive, extent, bytes) {
            Ok(header) => header,
            Err(fatal) => return self.breach(queue, fatal, out),
        };
        let sequence = Fatal::plain(Fes::SequenceError);
        let greeted = half.greeted;
        match header {
            Header::C2hTermReq(term) => {
                let (fes, fei) = (term.fes.get(), term.fei.get());
                self.lose(LostReason::PeerTerminated { fes, fei }, None, out);
            }
            Header::IcResp(resp) if !greeted && self.phase == Phase::Greeting(queue) => {
                self.on_icresp(now_ns, queue, &resp, out);
            }
            _ if !greeted => self.breach(queue, sequence, out),
            Header::CapsuleResp(cqe) => self.on_response(now_ns, queue, &cqe, out),
            Header::C2hData {
                data,
                last,
                success,
            } => {
                self.on_c2h_data(queue, extent, &data, (last, success), out);
            }
            Header::R2t(r2t) => self.on_r2t(queue, &r2t, out),
            Header::IcResp(_) => self.breach(queue, sequence, out),
            Header::IcReq(_)
            | Header::H2cTermReq(_)
            | Header::CapsuleCmd(_)
            | Header::H2cData { .. } => self.breach(queue, Fatal::field(0), out),
        }
    }

    fn on_c2h_data(
        &mut self,
        queue_id: QueueId,
        extent: &Extent,
        data: &C2hData,
        (last, success): (bool, bool),
        out: &mut Outbox,
    ) {
        let queue = self.queue(queue_id);
        let Some(index) = queue.slots.find(data.cccid.get()) else {
            return self.breach(queue_id, Fatal::field(8), out);
        };
        let command = queue.slots.get(index);
        let Transfer::ToHost { len_bytes, exact } = command.transfer else {
            return self.breach(queue_id, Fatal::plain(Fes::SequenceError), out);
        };
        if command.last_seen {
            return self.breach(queue_id, Fatal::plain(Fes::SequenceError), out);
        }
        if success && !last {
            return self.breach(queue_id, Fatal::field(1), out);
        }
        let (start, datal) = (data.datao.get(), data.datal.get());
        if datal == 0 || datal != extent.data_bytes {
            return self.breach(queue_id, Fatal::field(16), out);
        }
        // In order, without gaps, inside what was asked for.
        if start != command.moved_bytes || datal > len_bytes - start {
            return self.breach(queue_id, Fatal::plain(Fes::DataOutOfRange), out);
        }
        if success && exact && start + datal != len_bytes {
            return self.breach(queue_id, Fatal::plain(Fes::DataOutOfRange), out);
        }
        command.last_seen = last;
        queue.receiving = Some(Receiving {
            index,
            len_bytes: datal,
            success,
        });
        out.push(Effect::Receive {
            slot: SlotId {
                queue: queue_id,
                index,
            },
            start_bytes: start,
            len_bytes: datal,
            digest: extent.data_digest,
        });
    }

    pub(super) fn on_data(
        &mut self,
        now_ns: u64,
        queue_id: QueueId,
        intact: bool,
        data: &[u8],
        out: &mut Outbox,
    ) {
        let queue = self.queue(queue_id);
        let Receiving {
            index,
            len_bytes,
            success,
        } = queue
            .receiving
            .take()
            .expect("host: data that was not asked for");
        if !intact && !queue.receive.digests.header {
            // The length came from an unchecked header: we may be anywhere in the stream.
            return self.lose(LostReason::DataDigest { queue: queue_id }, None, out);
        }
        let command = queue.slots.get(index);
        command.moved_bytes += len_bytes;
        command.corrupt |= !intact;
        let purpose = command.purpose;
        if intact && purpose == Purpose::Setup && self.phase == Phase::Identifying {
            match self.on_identify(data) {
                Ok(()) => {}
                Err(unsuitable) => return self.lose(unsuitable.into(), None, out),
            }
        }
        if success {
            self.finish(
                now_ns,
                SlotId {
                    queue: queue_id,
                    index,
                },
                (Status::SUCCESS, 0),
                out,
            );
        }
    }

    fn on_response(&mut self, now_ns: u64, queue_id: QueueId, cqe: &Cqe, out: &mut Outbox) {
        let queue = self.queue(queue_id);
        // Byte 20 of the PDU is the completion's cid.
        let Some(index) = queue.slots.find(cqe.cid.get()) else {
            return self.breach(queue_id, Fatal::field(20), out);
        };
        let command = *queue.slots.get(index);
        let status = cqe.status();
        if status.is_success() && !is_whole(&command) {
            return self.breach(queue_id, Fatal::plain(Fes::DataOutOfRange), out);
        }
        let slot = SlotId {
            queue: queue_id,
            index,
        };
        self.finish(now_ns, slot, (status, cqe.result.get()), out);
    }

    fn finish(
        &mut self,
        now_ns: u64,
        slot: SlotId,
        (status, result): (Status, u64),
        out: &mut Outbox,
    ) {
        let command = self.queue(slot.queue).slots.remove(slot.index);
        let spoilt = command.corrupt && status.is_success();
        let status = if spoilt {
            Status::TRANSIENT_TRANSPORT
        } else {
            status
        };
        match command.purpose {
            Purpose::User => {
                if slot.queue == QueueId::Admin {
                    self.admin_commands -= 1;
                }
                let received_bytes = match command.transfer {
                    Transfer::ToHost { .. } => command.moved_bytes,
                    Transfer::Nothing | Transfer::ToController { .. } => 0,
                };
                let outcome = Outcome {
                    status,
                    result,
                    received_bytes,
                };
                out.push(Effect::Complete { slot, outcome });
            }
            Purpose::Setup if status.is_success() => self.on_setup_done(now_ns, result, out),
            Purpose::Setup => {
                self.lose(
                    LostReason::Refused {
                        phase: self.phase,
                        status,
                    },
                    None,
                    out,
                );
            }
            // Any answer is a sign of life. The timer goes straight to the next one.
            Purpose::KeepAlive => self.arm_anew(out),
            Purpose::AsyncEvent => self.on_async_event(now_ns, status, result, out),
            Purpose::ChangedLog => {
                out.push(Effect::NamespacesChanged);
                self.ask_for_events(now_ns, out);
            }
        }
    }

    pub(super) fn ask_for_events(&mut self, now_ns: u64, out: &mut Outbox) {
        let sqe = Sqe::new(admin::ASYNC_EVENT, 0, 0);
        self.issue_own(now_ns, Purpose::AsyncEvent, sqe, 0, out);
    }

    fn on_async_event(&mut self, now_ns: u64, status: Status, result: u64, out: &mut Outbox) {
        if !status.is_success() {
            // Refused or aborted: asking again at once would be a loop.
            return;
        }
        let [kind, information, ..] = result.to_le_bytes();
        if (kind & 7, information) == EVENT_NAMESPACE_CHANGED {
            let request = LogRequest {
                lid: lid::CHANGED_NAMESPACES,
                retain_event: false,
                offset_bytes: 0,
                len_bytes: CHANGED_LOG_BYTES.into(),
            };
            let sqe = request.to_sqe(0, NSID_ALL);
            self.issue_own(now_ns, Purpose::ChangedLog, sqe, CHANGED_LOG_BYTES, out);
        } else {
            self.ask_for_events(now_ns, out);
        }
    }
}

/// Whether all data moved that a successful command moves.
fn is_whole(command: &InFlight) -> bool {
    match command.transfer {
        Transfer::Nothing => true,
        Transfer::ToHost { len_bytes, exact } => !exact || command.moved_bytes == len_bytes,
        Transfer::ToController { len_bytes } => command.inline || command.moved_bytes == len_bytes,
    }
}

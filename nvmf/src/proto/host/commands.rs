//! Commands out: admission, descriptors, and the data that R2Ts ask for.

use super::slots::Purpose;
use super::{
    Command, Effect, Fatal, Host, IO_BYTES_MAX, InFlight, Outbox, Payload, Phase, QueueId, Transfer,
};
use crate::proto::pdu::{Fes, H2cData, Header, R2t};
use crate::proto::sqe::{Sgl, Sqe};
use zerocopy::FromZeros;

impl Host {
    /// Starts a command of the caller's. `None` means backpressure, or not ready.
    ///
    /// Panics if the data is longer than [`IO_BYTES_MAX`].
    pub fn admit(&mut self, now_ns: u64, command: Command, out: &mut Outbox) -> Option<u16> {
        if !self.has_room(command.queue) {
            return None;
        }
        if command.queue == QueueId::Admin {
            self.admin_commands += 1;
        }
        let deadline_ns = now_ns.saturating_add(match command.queue {
            QueueId::Admin => self.config.admin_deadline_ns,
            QueueId::Io => self.config.io_deadline_ns,
        });
        Some(self.issue(now_ns, Purpose::User, command, deadline_ns, out))
    }

    /// Puts a command on the wire.
    pub(super) fn issue(
        &mut self,
        now_ns: u64,
        purpose: Purpose,
        command: Command,
        deadline_ns: u64,
        out: &mut Outbox,
    ) -> u16 {
        let Command {
            queue: queue_id,
            mut sqe,
            transfer,
        } = command;
        let queue = &mut self.queues[queue_id.index()];
        let (sgl, inline_bytes) = descriptor(transfer, queue.inline_bytes);
        let (index, cid) = queue.slots.insert(InFlight {
            purpose,
            opcode: sqe.opcode,
            transfer,
            inline: inline_bytes > 0,
            moved_bytes: 0,
            last_seen: false,
            corrupt: false,
            deadline_ns,
        });
        sqe.cid = cid.into();
        sqe.sgl = sgl;
        let payload = match inline_bytes {
            0 => Payload::None,
            len_bytes => Payload::Command {
                index,
                start_bytes: 0,
                len_bytes,
            },
        };
        out.push(Effect::Send {
            queue: queue_id,
            header: Header::CapsuleCmd(sqe),
            payload,
        });
        if self.traffic_keeps_alive || self.phase != Phase::Ready {
            self.last_alive_ns = now_ns;
        }
        self.arm_before(deadline_ns, out);
        index
    }

    /// The same for commands without data or with data to us, on the admin queue.
    pub(super) fn issue_own(
        &mut self,
        now_ns: u64,
        purpose: Purpose,
        sqe: Sqe,
        reply_bytes: u32,
        out: &mut Outbox,
    ) {
        let transfer = match reply_bytes {
            0 => Transfer::Nothing,
            len_bytes => Transfer::ToHost {
                len_bytes,
                exact: true,
            },
        };
        let deadline_ns = match purpose {
            // Answered when there is something to say.
            Purpose::AsyncEvent => u64::MAX,
            Purpose::User | Purpose::Setup | Purpose::KeepAlive | Purpose::ChangedLog => {
                now_ns.saturating_add(self.config.admin_deadline_ns)
            }
        };
        let command = Command {
            queue: QueueId::Admin,
            sqe,
            transfer,
        };
        self.issue(now_ns, purpose, command, deadline_ns, out);
    }

    /// The controller wants data: all of it goes out at once, cut to MAXH2CDATA.
    pub(super) fn on_r2t(&mut self, queue_id: QueueId, r2t: &R2t, out: &mut Outbox) {
        let queue = &mut self.queues[queue_id.index()];
        let Some(index) = queue.slots.find(r2t.cccid.get()) else {
            return self.breach(queue_id, Fatal::field(8), out);
        };
        let command = queue.slots.get(index);
        let Transfer::ToController { len_bytes } = command.transfer else {
            return self.breach(queue_id, Fatal::plain(Fes::SequenceError), out);
        };
        let (start, wanted) = (r2t.r2to.get(), r2t.r2tl.get());
        if command.inline {
            return self.breach(queue_id, Fatal::plain(Fes::SequenceError), out);
        }
        // Strictly in order, never twice, never past the end.
        let fits = start == command.moved_bytes && wanted > 0 && wanted <= len_bytes - start;
        if !fits {
            return self.breach(queue_id, Fatal::plain(Fes::DataOutOfRange), out);
        }
        command.moved_bytes += wanted;
        let (mut at, end) = (start, start + wanted);
        while at < end {
            let datal = queue.maxh2cdata_bytes.min(end - at);
            let data = H2cData {
                cccid: r2t.cccid,
                ttag: r2t.ttag,
                datao: at.into(),
                datal: datal.into(),
                ..H2cData::new_zeroed()
            };
            let header = Header::H2cData {
                data,
                last: at + datal == end,
            };
            let payload = Payload::Command {
                index,
                start_bytes: at,
                len_bytes: datal,
            };
            out.push(Effect::Send {
                queue: queue_id,
                header,
                payload,
            });
            at += datal;
        }
    }
}

/// The descriptor of a command's data, and how much of it goes in the capsule.
fn descriptor(transfer: Transfer, inline_bytes_max: u32) -> (Sgl, u32) {
    match transfer {
        Transfer::Nothing => (Sgl::transport(0), 0),
        Transfer::ToHost { len_bytes, .. } => {
            assert!(len_bytes <= IO_BYTES_MAX);
            (Sgl::transport(len_bytes), 0)
        }
        Transfer::ToController { len_bytes } => {
            assert!(len_bytes > 0 && len_bytes <= IO_BYTES_MAX);
            if len_bytes <= inline_bytes_max {
                (Sgl::in_capsule(len_bytes), len_bytes)
            } else {
                (Sgl::transport(len_bytes), 0)
            }
        }
    }
}

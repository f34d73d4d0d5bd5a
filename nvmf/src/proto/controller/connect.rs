//! Connect: who may join which controller, and with which queue.

use super::super::cqe::{Cqe, SQHD_NO_FLOW_CONTROL};
use super::super::fabrics::{
    CATTR_NO_FLOW_CONTROL, CNTLID_DYNAMIC, CONNECT_DATA_BYTES, ConnectCommand, ConnectData,
    FCTYPE_CONNECT, fctype, invalid_parameter, nqn,
};
use super::super::sqe::{Sqe, admin};
use super::super::status::Status;
use super::association::Association;
use super::incoming::Data;
use super::slots::Plan;
use super::{Answer, AssociationId, Core, Effect, Stage, limits};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

/// A refusal: status and result dwords.
type Refusal = (Status, u64);

/// A parameter at this offset of the command is wrong.
fn in_command(offset: u16) -> Refusal {
    (
        Status::CONNECT_INVALID_PARAMETERS,
        invalid_parameter(offset, false),
    )
}

/// A parameter at this offset of the data is wrong. May be tried again: names become known while
/// we run, and a host gives up for good on a refusal that says otherwise.
fn in_data(offset: u16) -> Refusal {
    (
        Status::CONNECT_INVALID_PARAMETERS.retryable(),
        invalid_parameter(offset, true),
    )
}

/// What a checked Connect leads to.
enum Joining {
    Admin { discovery: bool },
    Io { association: usize },
}

impl Core {
    /// Before Connect, Connect is all there is.
    pub(super) fn judge_unconnected(sqe: &Sqe) -> Result<(Plan, Data), Status> {
        if sqe.opcode != admin::FABRICS || fctype(sqe) != FCTYPE_CONNECT {
            return Err(Status::INVALID_OPCODE);
        }
        if sqe.sgl.length.get() != CONNECT_DATA_BYTES {
            return Err(Status::SGL_LENGTH_INVALID);
        }
        Ok((Plan::Connect, Data::In))
    }

    pub(super) fn on_connect_data(
        &mut self,
        connection: u32,
        slot: u16,
        data: &[u8],
        host_allowed: bool,
        out: &mut Vec<Effect>,
    ) {
        let this = self.connection(connection);
        if this.stage != Stage::AwaitingConnect {
            // Two Connects were on their way; the other was first.
            let status = Status::COMMAND_SEQUENCE;
            return self.answer(connection, slot, status.into(), out);
        }
        let sqe = this.slots.get(slot).expect("a slot in use").sqe;
        let command = ConnectCommand::of(&sqe);
        let data = ConnectData::read_from_bytes(data).expect("the length was checked");
        match self.check_connect(&command, &data, host_allowed) {
            Ok(joining) => {
                let association = match joining {
                    Joining::Admin { discovery } => {
                        self.begin_association(connection, &command, &data, discovery, out)
                    }
                    Joining::Io { association } => {
                        let queues = &mut self.association_mut(association).queues;
                        assert!(queues.insert(command.qid.get(), connection).is_none());
                        association
                    }
                };
                self.go_live(connection, slot, &command, association, out);
            }
            Err((status, result)) => {
                let answer = Answer {
                    result,
                    ..status.into()
                };
                self.answer(connection, slot, answer, out);
            }
        }
    }

    fn check_connect(
        &self,
        command: &ConnectCommand,
        data: &ConnectData,
        host_allowed: bool,
    ) -> Result<Joining, Refusal> {
        if command.recfmt.get() != 0 {
            return Err((Status::CONNECT_INCOMPATIBLE_FORMAT, 0));
        }
        if !(1..limits::QUEUE_DEPTH_MAX).contains(&command.sqsize.get()) {
            return Err(in_command(44));
        }
        let subnqn = nqn(&data.subnqn).ok_or(in_data(256))?;
        let hostnqn = nqn(&data.hostnqn).ok_or(in_data(512))?;
        let discovery = self.is_discovery_name(subnqn);
        if !discovery && subnqn != self.identity.subnqn {
            return Err(in_data(256));
        }
        if !discovery && !host_allowed {
            return Err((Status::CONNECT_INVALID_HOST.retryable(), 0));
        }
        if command.qid.get() != 0 {
            return self.check_io_queue(command, data, hostnqn, discovery);
        }
        if data.cntlid.get() != CNTLID_DYNAMIC {
            return Err(in_data(16));
        }
        if command.kato_ms.get() > limits::KATO_MS_MAX {
            return Err(in_command(48));
        }
        if self.association_count() >= limits::ASSOCIATIONS_MAX {
            return Err((Status::CONNECT_CONTROLLER_BUSY, 0));
        }
        Ok(Joining::Admin { discovery })
    }

    fn check_io_queue(
        &self,
        command: &ConnectCommand,
        data: &ConnectData,
        hostnqn: &str,
        discovery: bool,
    ) -> Result<Joining, Refusal> {
        let known = |a: &Option<Association>| {
            a.as_ref()
                .is_some_and(|a| a.cntlid == data.cntlid.get() && a.discovery == discovery)
        };
        let index = self
            .associations
            .iter()
            .position(known)
            .ok_or(in_data(16))?;
        let association = self.association(index);
        if association.host_nqn != hostnqn {
            return Err(in_data(512));
        }
        if association.host_id != data.hostid {
            return Err(in_data(0));
        }
        if discovery || command.qid.get() > association.queues_granted {
            return Err(in_command(42));
        }
        if !association.is_ready() || association.queues.contains_key(&command.qid.get()) {
            return Err((Status::COMMAND_SEQUENCE, 0));
        }
        Ok(Joining::Io { association: index })
    }

    fn begin_association(
        &mut self,
        connection: u32,
        command: &ConnectCommand,
        data: &ConnectData,
        discovery: bool,
        out: &mut Vec<Effect>,
    ) -> usize {
        let cntlid = self.mint_cntlid();
        self.associations_begun += 1;
        let id = AssociationId(self.associations_begun << 16 | u64::from(cntlid));
        let association = Association {
            id,
            cntlid,
            discovery,
            host_nqn: nqn(&data.hostnqn).expect("checked").to_owned(),
            host_id: data.hostid,
            admin: connection,
            queues: BTreeMap::new(),
            queues_granted: limits::IO_QUEUES_MAX,
            cc: 0,
            csts: 0,
            kato_ms: command.kato_ms.get(),
            seen_ns: self.now_ns,
            events_wanted: 0,
            event_requests: Vec::new(),
            namespaces_changed: false,
            event_told: false,
        };
        out.push(Effect::Began { association: id });
        if let Some(index) = self.associations.iter().position(Option::is_none) {
            self.associations[index] = Some(association);
            return index;
        }
        self.associations.push(Some(association));
        self.associations.len() - 1
    }

    /// Ids go round, so that the id of one just torn down is not given to the next.
    fn mint_cntlid(&mut self) -> u16 {
        loop {
            let cntlid = self.cntlid_next;
            self.cntlid_next = if cntlid >= 0xffef { 1 } else { cntlid + 1 };
            if self
                .associations
                .iter()
                .flatten()
                .all(|a| a.cntlid != cntlid)
            {
                return cntlid;
            }
        }
    }

    fn go_live(
        &mut self,
        connection: u32,
        slot: u16,
        command: &ConnectCommand,
        association: usize,
        out: &mut Vec<Effect>,
    ) {
        let cntlid = self.association(association).cntlid;
        self.deadlines_changed = true;
        let this = self.connection_mut(connection);
        let qid = command.qid.get();
        this.stage = Stage::Live { association, qid };
        this.queue_depth = command.sqsize.get() + 1;
        this.slots.grow(this.queue_depth * limits::SLOTS_PER_ENTRY);
        this.flow_control = command.cattr & CATTR_NO_FLOW_CONTROL == 0;
        this.sqhd = 1;
        this.deadline_ns = None;
        if qid != 0 {
            this.in_capsule_bytes_max = limits::IN_CAPSULE_BYTES_MAX;
        }
        let sqhd = if this.flow_control {
            this.sqhd
        } else {
            SQHD_NO_FLOW_CONTROL
        };
        this.slots.remove(slot);
        let cqe = Cqe::new(command.cid.get(), sqhd, Status::SUCCESS, u64::from(cntlid));
        self.send_completion(connection, cqe, out);
    }
}

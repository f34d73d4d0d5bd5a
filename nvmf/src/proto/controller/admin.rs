//! Admin commands: identify, logs, events, and the dispatch of everything answered here.

use super::super::fabrics::{
    DISCOVERY_NQN, FCTYPE_CONNECT, FCTYPE_PROPERTY_GET, FCTYPE_PROPERTY_SET, fctype,
};
use super::super::identify::{
    ControllerFacts, EVENT_NAMESPACE_CHANGED, IDENTIFY_BYTES, IdentifyController, cns,
};
use super::super::log::{self, LogRequest, lid};
use super::super::sqe::{Direction, NSID_ALL, Sqe, admin};
use super::super::status::Status;
use super::super::vendor;
use super::incoming::Data;
use super::slots::{Plan, Waiting};
use super::{Answer, Core, Effect, Inquiry, Outgoing, Stage, Work, limits};
use zerocopy::IntoBytes;

/// Event result: notice (2), namespace attribute changed (00h), log page 04h.
const NAMESPACE_NOTICE: u64 = 0x02 | (lid::CHANGED_NAMESPACES as u64) << 16;
/// Abort's result: the command was not aborted.
const NOT_ABORTED: u64 = 1;
/// GENCTR of the discovery page: records do not change while we run.
const DISCOVERY_GENERATION: u64 = 1;

impl Core {
    /// Namespaces appeared, went or changed size: tell every host that wants to know.
    pub fn on_namespaces_changed(&mut self, out: &mut Vec<Effect>) {
        for index in 0..self.associations.len() {
            let Some(this) = self.associations[index].as_mut() else {
                continue;
            };
            if !this.discovery {
                this.namespaces_changed = true;
                this.event_told = false;
                self.tell_events(index, out);
            }
        }
    }

    fn tell_events(&mut self, association: usize, out: &mut Vec<Effect>) {
        let this = self.association_mut(association);
        let wanted = this.events_wanted & EVENT_NAMESPACE_CHANGED != 0;
        if !this.namespaces_changed || this.event_told || !wanted || this.event_requests.is_empty()
        {
            return;
        }
        this.event_told = true;
        let slot = this.event_requests.remove(0);
        let admin = this.admin;
        self.answer(admin, slot, Answer::result(NAMESPACE_NOTICE), out);
    }

    pub(super) fn judge_admin(
        &self,
        association: usize,
        sqe: &Sqe,
    ) -> Result<(Plan, Data), Status> {
        let this = self.association(association);
        if sqe.opcode == admin::FABRICS {
            return match fctype(sqe) {
                FCTYPE_PROPERTY_GET | FCTYPE_PROPERTY_SET => Ok((Plan::Here, Data::None)),
                FCTYPE_CONNECT => Err(Status::COMMAND_SEQUENCE),
                _ => Err(Status::INVALID_OPCODE),
            };
        }
        if !this.is_ready() && sqe.opcode != admin::KEEP_ALIVE {
            return Err(Status::COMMAND_SEQUENCE);
        }
        match sqe.opcode {
            admin::IDENTIFY => Ok((judge_identify(sqe, this.discovery)?, Data::Out)),
            admin::GET_LOG_PAGE => Ok((Plan::Here, Data::Out)),
            admin::GET_FEATURES if sqe.sgl.length.get() > 0 => Ok((Plan::Here, Data::Out)),
            admin::SET_FEATURES if sqe.sgl.length.get() > 0 => Ok((Plan::Here, Data::In)),
            admin::GET_FEATURES
            | admin::SET_FEATURES
            | admin::ASYNC_EVENT
            | admin::KEEP_ALIVE
            | admin::ABORT => Ok((Plan::Here, Data::None)),
            admin::VENDOR_FIRST.. if !this.discovery => judge_vendor(sqe),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    pub(super) fn carry_out_here(
        &mut self,
        connection: u32,
        slot: u16,
        sqe: &Sqe,
        out: &mut Vec<Effect>,
    ) {
        let Stage::Live { association, qid } = self.connection(connection).stage else {
            unreachable!("only Connect before Connect");
        };
        if qid != 0 {
            // A dataset management hint.
            return self.answer(connection, slot, Answer::result(0), out);
        }
        if sqe.opcode == admin::ASYNC_EVENT {
            return self.on_event_request(association, connection, slot, out);
        }
        let answered = self.answer_admin(association, connection, sqe, out);
        let (status, result, data) = match answered {
            Ok((result, data)) => (Status::SUCCESS, result, data),
            Err(status) => (status, 0, None),
        };
        let data = data.map_or(Outgoing::None, |mut bytes| {
            bytes.truncate(sqe.sgl.length.get() as usize);
            Outgoing::Bytes(bytes)
        });
        self.answer(
            connection,
            slot,
            Answer {
                status,
                result,
                data,
            },
            out,
        );
    }

    fn answer_admin(
        &mut self,
        association: usize,
        connection: u32,
        sqe: &Sqe,
        out: &mut Vec<Effect>,
    ) -> Result<(u64, Option<Vec<u8>>), Status> {
        match sqe.opcode {
            admin::FABRICS if fctype(sqe) == FCTYPE_PROPERTY_GET => self
                .property_get(association, sqe)
                .map(|value| (value, None)),
            admin::FABRICS => self
                .property_set(association, sqe, out)
                .map(|value| (value, None)),
            admin::IDENTIFY => Ok((0, Some(self.identify(association, sqe)))),
            admin::GET_LOG_PAGE => self
                .log_page(association, connection, sqe)
                .map(|page| (0, Some(page))),
            admin::SET_FEATURES => {
                let result = self.set_feature(association, sqe)?;
                self.tell_events(association, out);
                Ok((result, None))
            }
            admin::GET_FEATURES => self.get_feature(association, sqe),
            admin::ABORT => Ok((NOT_ABORTED, None)),
            admin::KEEP_ALIVE => Ok((0, None)),
            _ => unreachable!("judged before"),
        }
    }

    fn on_event_request(
        &mut self,
        association: usize,
        connection: u32,
        slot: u16,
        out: &mut Vec<Effect>,
    ) {
        let requests = &mut self.association_mut(association).event_requests;
        if requests.len() >= limits::EVENT_REQUESTS_MAX {
            let status = Status::AER_LIMIT_EXCEEDED;
            return self.answer(connection, slot, status.into(), out);
        }
        requests.push(slot);
        self.connection_mut(connection)
            .slots
            .set_waiting(slot, Waiting::Event);
        self.tell_events(association, out);
    }

    /// The identify data that needs no backend.
    fn identify(&self, association: usize, sqe: &Sqe) -> Vec<u8> {
        let this = self.association(association);
        if sqe.cdw(10).to_le_bytes()[0] != cns::CONTROLLER {
            // Command set specific data: nothing of it is limited or offered.
            return vec![0; IDENTIFY_BYTES as usize];
        }
        let subnqn = if this.discovery {
            DISCOVERY_NQN
        } else {
            &self.identity.subnqn
        };
        let facts = ControllerFacts {
            cntlid: this.cntlid,
            discovery: this.discovery,
            subnqn,
            serial: &self.identity.serial,
            firmware: &self.identity.firmware,
            mdts: limits::MDTS,
            in_capsule_bytes: limits::IN_CAPSULE_BYTES_MAX,
            queue_depth: limits::QUEUE_DEPTH_MAX,
            namespaces_max: limits::NAMESPACES_MAX,
        };
        IdentifyController::new(&facts).as_bytes().to_vec()
    }

    fn log_page(
        &mut self,
        association: usize,
        connection: u32,
        sqe: &Sqe,
    ) -> Result<Vec<u8>, Status> {
        let request = LogRequest::of(sqe);
        let local = self.connection(connection).local;
        let discovery = self.association(association).discovery;
        let page = match request.lid {
            lid::ERROR => log::errors(),
            lid::HEALTH => log::health(),
            lid::FIRMWARE => log::firmware(&self.identity.firmware),
            lid::CHANGED_NAMESPACES if !discovery => {
                let this = self.association_mut(association);
                let changed = this.namespaces_changed;
                if !request.retain_event {
                    (this.namespaces_changed, this.event_told) = (false, false);
                }
                // Which ones is for the host to find out: its list may be older than any of ours.
                let all = if changed { vec![NSID_ALL] } else { Vec::new() };
                log::changed_namespaces(all.into_iter())
            }
            lid::EFFECTS if !discovery => log::effects(),
            lid::DISCOVERY if discovery => {
                log::discovery(DISCOVERY_GENERATION, &self.identity.subnqn, local)
            }
            _ => return Err(Status::INVALID_LOG_PAGE),
        };
        request
            .cut(&page, sqe.sgl.length.get())
            .ok_or(Status::INVALID_FIELD)
    }
}

fn judge_identify(sqe: &Sqe, discovery: bool) -> Result<Plan, Status> {
    let nsid = sqe.nsid.get();
    let command_set = sqe.cdw(11) >> 24;
    let namespace = |inquiry| match nsid {
        0 | NSID_ALL => Err(Status::INVALID_NAMESPACE),
        _ => Ok(Plan::Inquire(inquiry)),
    };
    match sqe.cdw(10).to_le_bytes()[0] {
        cns::CONTROLLER => Ok(Plan::Here),
        _ if discovery => Err(Status::INVALID_FIELD),
        cns::CONTROLLER_OF_SET | cns::NAMESPACE_OF_SET if command_set == 0 => Ok(Plan::Here),
        cns::ACTIVE_LIST if nsid >= NSID_ALL - 1 => Err(Status::INVALID_NAMESPACE),
        cns::ACTIVE_LIST => Ok(Plan::Inquire(Inquiry::List { above: nsid })),
        cns::NAMESPACE => namespace(Inquiry::Namespace),
        cns::DESCRIPTORS => namespace(Inquiry::Descriptors),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn judge_vendor(sqe: &Sqe) -> Result<(Plan, Data), Status> {
    let data = match vendor::direction(sqe.opcode).ok_or(Status::INVALID_OPCODE)? {
        Direction::None => Data::None,
        Direction::ToController => Data::In,
        Direction::ToHost => Data::Out,
        Direction::Both => return Err(Status::INVALID_OPCODE),
    };
    if sqe.cdw(10) & 0xffff != u32::from(vendor::PROTOCOL_VERSION) {
        return Err(Status::PROTOCOL_VERSION);
    }
    if sqe.sgl.length.get() > vendor::VENDOR_DATA_BYTES_MAX {
        return Err(Status::INVALID_FIELD);
    }
    Ok((Plan::Work(Work::Vendor), data))
}

//! Straight to a namespace of an NVMe/TCP target, with our initiator.

use super::{Ask, Body, Engine, EngineEvent, ROOM_INITIATOR};
use clap::Args;
use nvmf::initiator::{AssociationId, Config, Failure, Initiator, InitiatorEvent, Reply, Request};
use nvmf::proto::identify::{IdentifyNamespace, cns};
use reactor::{Completion, Driver};
use std::net::SocketAddr;
use zerocopy::FromBytes;

/// `user` of the Identify that comes first.
const IDENTIFY: u64 = u64::MAX;

/// Where the namespace is.
#[derive(Clone, Debug, Args)]
pub(crate) struct TargetOptions {
    /// Where the target listens
    #[arg(value_name = "ADDRESS:PORT")]
    pub(crate) address: SocketAddr,
    /// Name of the subsystem
    #[arg(long)]
    pub(crate) nqn: String,
    /// Namespace
    #[arg(long, default_value_t = 1)]
    pub(crate) nsid: u32,
    /// Our name
    #[arg(long, default_value = "nqn.2026-01.io.ublkstor:clientd:ubs-bench")]
    pub(crate) host_nqn: String,
    /// Associations, each with one IO queue
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) connections: u32,
    /// Header digests
    #[arg(long)]
    pub(crate) hdgst: bool,
    /// Data digests
    #[arg(long)]
    pub(crate) ddgst: bool,
}

/// The engine.
#[derive(Debug)]
pub(crate) struct TargetEngine {
    options: TargetOptions,
    initiator: Initiator,
    associations: Vec<AssociationId>,
    ready: u32,
    lost: u32,
    stopping: bool,
    events: Vec<InitiatorEvent>,
}

impl TargetEngine {
    /// An engine for so many requests at a time.
    pub(crate) fn new(options: TargetOptions, iodepth: u32) -> Self {
        let mut config = Config::new(ROOM_INITIATOR, options.host_nqn.clone(), [0xbe; 16]);
        let depth = iodepth.div_ceil(options.connections).clamp(2, 256);
        config.queue_depth = u16::try_from(depth).expect("clamped");
        config.header_digest = options.hdgst;
        config.data_digest = options.ddgst;
        Self {
            initiator: Initiator::new(config),
            options,
            associations: Vec::new(),
            ready: 0,
            lost: 0,
            stopping: false,
            events: Vec::new(),
        }
    }

    fn on_event(&mut self, io: &mut dyn Driver, event: InitiatorEvent, out: &mut Vec<EngineEvent>) {
        match event {
            InitiatorEvent::Ready { association, .. } => {
                self.ready += 1;
                if self.ready == self.options.connections {
                    let (nsid, cns) = (self.options.nsid, cns::NAMESPACE);
                    let ask = Request::Identify { nsid, cns };
                    let taken = self.initiator.submit(io, association, IDENTIFY, ask);
                    taken.expect("nothing is in flight");
                }
            }
            InitiatorEvent::Done {
                user: IDENTIFY,
                result,
                ..
            } => out.push(self.size(result)),
            InitiatorEvent::Done {
                user,
                request,
                result,
                ..
            } => {
                out.push(done(user, request, result));
            }
            InitiatorEvent::Lost { reason, .. } => {
                self.lost += 1;
                if !self.stopping {
                    let address = self.options.address;
                    out.push(EngineEvent::Broken(format!("{address}: {reason}")));
                } else if self.lost == self.options.connections {
                    out.push(EngineEvent::Gone);
                }
            }
            InitiatorEvent::NamespacesChanged { .. } => {}
        }
    }

    fn size(&self, result: Result<Reply, Failure>) -> EngineEvent {
        let nsid = self.options.nsid;
        let reply = match result {
            Ok(reply) => reply,
            Err(failure) => {
                return EngineEvent::Broken(format!("cannot identify namespace {nsid}: {failure}"));
            }
        };
        let found = IdentifyNamespace::ref_from_bytes(&reply.data).expect("4096 bytes");
        let (size_blocks, shift) = (found.nsze.get(), found.lbaf0_lbads);
        match (size_blocks, shift) {
            // What the specification wants to be said of a namespace that is not there.
            (0, _) => EngineEvent::Broken(format!("there is no namespace {nsid}")),
            (size_blocks, 12) => EngineEvent::Ready { size_blocks },
            (_, shift) => EngineEvent::Broken(format!(
                "namespace {nsid} has blocks of 2^{shift} bytes; blocks of 4096 are needed"
            )),
        }
    }
}

fn done(user: u64, request: Request, result: Result<Reply, Failure>) -> EngineEvent {
    let body = match request {
        Request::Read { into, .. } => Body::Read(into),
        Request::Write { data, .. } => Body::Write(data),
        Request::Flush { .. }
        | Request::WriteZeroes { .. }
        | Request::Deallocate { .. }
        | Request::Vendor { .. }
        | Request::Identify { .. } => unreachable!("never sent"),
    };
    EngineEvent::Done {
        slot: u32::try_from(user).expect("a slot"),
        body,
        fault: result.err().map(|failure| failure.to_string()),
    }
}

impl Engine for TargetEngine {
    const NAME: &'static str = "target";

    fn connections(&self) -> u32 {
        self.options.connections
    }

    fn start(&mut self, io: &mut dyn Driver, _out: &mut Vec<EngineEvent>) {
        for _ in 0..self.options.connections {
            let to = self.options.address;
            let association = self.initiator.connect(io, to, &self.options.nqn);
            self.associations.push(association);
        }
    }

    fn submit(&mut self, io: &mut dyn Driver, ask: Ask) -> Result<(), Ask> {
        let Ask {
            slot,
            lba,
            blocks,
            body,
        } = ask;
        let association = self.associations[(slot % self.options.connections) as usize];
        let (nsid, slba) = (self.options.nsid, lba);
        let request = match body {
            Body::Read(into) => Request::Read {
                nsid,
                slba,
                blocks,
                into,
                tag: 0,
            },
            Body::Write(data) => {
                let (fua, tag) = (false, 0);
                Request::Write {
                    nsid,
                    slba,
                    blocks,
                    fua,
                    data,
                    tag,
                }
            }
        };
        let taken = self
            .initiator
            .submit(io, association, u64::from(slot), request);
        taken.map_err(|request| {
            let EngineEvent::Done { body, .. } =
                done(u64::from(slot), request, Ok(Reply::default()))
            else {
                unreachable!("a request with a body")
            };
            Ask {
                slot,
                lba,
                blocks,
                body,
            }
        })
    }

    fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        completion: Completion,
        out: &mut Vec<EngineEvent>,
    ) {
        let mut events = std::mem::take(&mut self.events);
        self.initiator.on_completion(io, completion, &mut events);
        for event in events.drain(..) {
            self.on_event(io, event, out);
        }
        self.events = events;
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver, _out: &mut Vec<EngineEvent>) {
        self.initiator.on_turn_end(io);
    }

    fn stop(&mut self, io: &mut dyn Driver, out: &mut Vec<EngineEvent>) {
        self.stopping = true;
        for association in &self.associations {
            self.initiator.abort(io, *association);
        }
        if self.initiator.is_idle() {
            out.push(EngineEvent::Gone);
        }
    }
}

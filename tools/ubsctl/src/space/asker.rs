//! Asks storageds what the space of slices is for: an association per server, one question at a time on each,
//! on a reactor in a thread of its own.

use super::Space;
use crate::ring;
use nvmf::initiator::{self, AssociationId, Failure, Initiator, InitiatorEvent, Reply, Request};
use nvmf::proto::vendor::{
    PROTOCOL_VERSION, SliceSpace, SpaceExclusive, VENDOR_DATA_BYTES_MAX, opcode,
};
use reactor::{App, Completion, Driver, Token};
use shardmap::units::{Generation, Nsid};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::oneshot;
use uuid::Uuid;
use zerocopy::FromBytes as _;

const ROOM_INITIATOR: u8 = 1;
const PATIENCE_OVER: Token = Token {
    room: 2,
    index: 0,
    value: 0,
};
/// Servers asked at once.
const SERVERS_MAX: usize = 32;

/// A slice, and where it is.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) nsid: Nsid,
    pub(super) address: SocketAddr,
    pub(super) subsystem_nqn: String,
}

/// What a slice's store says, or one sentence.
pub(super) type Answer = Result<Space, String>;

/// The answers, in the order of the questions.
///
/// # Errors
/// One sentence, if nobody could be asked.
pub(super) async fn ask(
    host_nqn: String,
    questions: Vec<Question>,
    patience: Duration,
) -> Result<Vec<Answer>, String> {
    let (tell, told) = oneshot::channel();
    let thread = std::thread::spawn(move || {
        // Who does not listen any more has given up.
        drop(tell.send(run(host_nqn, &questions, patience)));
    });
    let answers = told
        .await
        .map_err(|_| "the thread that asks storageds ended; see above".into());
    drop(thread.join());
    answers.and_then(|answers| answers)
}

fn run(
    host_nqn: String,
    questions: &[Question],
    patience: Duration,
) -> Result<Vec<Answer>, String> {
    let mut driver = ring::driver([64, 32, 48])?;
    let host_id = *Uuid::new_v4().as_bytes();
    let config = initiator::Config::new(ROOM_INITIATOR, host_nqn, host_id);
    let mut shell = Shell::new(Initiator::new(config), questions);
    let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
    let until = driver.now_ns().saturating_add(patience_ns);
    driver.arm(PATIENCE_OVER, until);
    shell.connect_more(&mut driver);
    driver.run(&mut shell);
    Ok(shell.answers())
}

/// A server and what is left to be asked of it.
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    subsystem_nqn: String,
    /// Slices and the places of their answers. The first is being asked.
    slices: VecDeque<(usize, Nsid)>,
    /// First extent of the question under way.
    from: u64,
}

#[derive(Debug)]
struct Shell {
    initiator: Initiator,
    waiting: VecDeque<Server>,
    asked: BTreeMap<AssociationId, Server>,
    sums: Vec<Space>,
    refusals: BTreeMap<usize, String>,
    events: Vec<InitiatorEvent>,
}

impl Shell {
    fn new(initiator: Initiator, questions: &[Question]) -> Self {
        let mut servers: BTreeMap<(SocketAddr, &str), VecDeque<(usize, Nsid)>> = BTreeMap::new();
        for (place, question) in questions.iter().enumerate() {
            let at = (question.address, question.subsystem_nqn.as_str());
            servers
                .entry(at)
                .or_default()
                .push_back((place, question.nsid));
        }
        let server = |((address, nqn), slices): ((SocketAddr, &str), _)| Server {
            address,
            subsystem_nqn: nqn.to_owned(),
            slices,
            from: 0,
        };
        Self {
            initiator,
            waiting: servers.into_iter().map(server).collect(),
            asked: BTreeMap::new(),
            sums: vec![Space::default(); questions.len()],
            refusals: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    fn answers(mut self) -> Vec<Answer> {
        let sums = std::mem::take(&mut self.sums).into_iter().enumerate();
        sums.map(|(place, sum)| self.refusals.remove(&place).map_or(Ok(sum), Err))
            .collect()
    }

    fn connect_more(&mut self, io: &mut dyn Driver) {
        while self.asked.len() < SERVERS_MAX
            && let Some(server) = self.waiting.pop_front()
        {
            let id = self
                .initiator
                .connect(io, server.address, &server.subsystem_nqn);
            self.asked.insert(id, server);
        }
    }

    /// Asks the next question of a server, or lets it go.
    fn ask_next(&mut self, io: &mut dyn Driver, id: AssociationId) {
        let server = &self.asked[&id];
        let Some((_, nsid)) = server.slices.front() else {
            self.asked.remove(&id);
            self.initiator.abort(io, id);
            return self.connect_more(io);
        };
        let dword = |half: u64| u32::try_from(half & u64::from(u32::MAX)).expect("half of it");
        let (low, high) = (dword(server.from), dword(server.from >> 32));
        let request = Request::Vendor {
            nsid: nsid.0,
            opcode: opcode::READ_SPACE,
            cdw10_15: [PROTOCOL_VERSION.into(), low, high, 0, 0, 0],
            data: None,
            reply_len_bytes: VENDOR_DATA_BYTES_MAX,
        };
        if self.initiator.submit(io, id, 0, request).is_err() {
            self.give_up(io, id, "takes no question");
        }
    }

    fn on_event(&mut self, io: &mut dyn Driver, event: InitiatorEvent) {
        match event {
            InitiatorEvent::Ready { association, .. } if self.asked.contains_key(&association) => {
                self.ask_next(io, association);
            }
            InitiatorEvent::Done {
                association,
                result,
                ..
            } if self.asked.contains_key(&association) => self.on_answer(io, association, result),
            InitiatorEvent::Lost {
                association,
                reason,
            } if self.asked.contains_key(&association) => {
                self.give_up(io, association, &format!("does not answer ({reason:?})"));
            }
            // Of one that was let go, or nothing that is asked for here.
            InitiatorEvent::Ready { .. }
            | InitiatorEvent::Done { .. }
            | InitiatorEvent::Lost { .. }
            | InitiatorEvent::NamespacesChanged { .. } => {}
        }
    }

    fn on_answer(
        &mut self,
        io: &mut dyn Driver,
        id: AssociationId,
        result: Result<Reply, Failure>,
    ) {
        let server = self.asked.get_mut(&id).expect("just compared");
        let (place, nsid) = *server.slices.front().expect("it was asked");
        let more = match result {
            Ok(reply) => match read(&reply.data) {
                Some(part) if reply.result == 0 || reply.result > server.from => {
                    self.sums[place].add(&part);
                    Ok(reply.result)
                }
                Some(_) | None => Err("an answer that makes no sense; see its version".to_owned()),
            },
            // It is lost, and that is told next.
            Err(Failure::ConnectionLost) => return,
            Err(Failure::Status(status)) => Err(format!("{nsid}: status {status}")),
        };
        server.from = *more.as_ref().unwrap_or(&0);
        if server.from == 0 {
            server.slices.pop_front();
        }
        if let Err(why) = more {
            self.refusals.insert(place, why);
        }
        self.ask_next(io, id);
    }

    /// Nothing more is learned from a server.
    fn give_up(&mut self, io: &mut dyn Driver, id: AssociationId, why: &str) {
        let server = self.asked.remove(&id).expect("it is being asked");
        self.refuse(&server, why);
        self.initiator.abort(io, id);
        self.connect_more(io);
    }

    fn refuse(&mut self, server: &Server, why: &str) {
        let sentence = format!("{} {why}", server.address);
        let places = server.slices.iter().map(|(place, _)| *place);
        self.refusals
            .extend(places.map(|place| (place, sentence.clone())));
    }

    fn end(&mut self, io: &mut dyn Driver) {
        let asked = std::mem::take(&mut self.asked);
        let waiting = std::mem::take(&mut self.waiting);
        asked.keys().for_each(|id| self.initiator.abort(io, *id));
        for server in asked.values().chain(&waiting) {
            self.refuse(server, "has not answered in time");
        }
    }
}

/// An answer's data; what is behind it, up to the length asked for, is zero.
fn read(data: &[u8]) -> Option<Space> {
    let (head, rest) = SliceSpace::read_from_prefix(data).ok()?;
    let count = usize::try_from(head.exclusive_count.get()).ok()?;
    let size = size_of::<SpaceExclusive>();
    if head.version.get() != PROTOCOL_VERSION {
        return None;
    }
    let entries = rest.get(..count.checked_mul(size)?)?;
    let entries = entries
        .chunks_exact(size)
        .map(SpaceExclusive::read_from_bytes);
    let exclusive = entries.map(|entry| {
        let entry = entry.ok()?;
        Some((Generation(entry.generation.get()), entry.bytes.get()))
    });
    Some(Space {
        live_bytes: head.live_bytes.get(),
        snapshots_bytes: head.snapshots_bytes.get(),
        reclaimable_bytes: head.reclaimable_bytes.get(),
        exclusive: exclusive.collect::<Option<_>>()?,
    })
}

impl App for Shell {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        if completion.token.room == PATIENCE_OVER.room {
            return self.end(io);
        }
        let mut events = std::mem::take(&mut self.events);
        self.initiator.on_completion(io, completion, &mut events);
        for event in events.drain(..) {
            self.on_event(io, event);
        }
        self.events = events;
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.initiator.on_turn_end(io);
    }

    fn is_finished(&self) -> bool {
        self.asked.is_empty() && self.waiting.is_empty() && self.initiator.is_idle()
    }
}

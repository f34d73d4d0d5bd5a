//! What daemons and `ubsctl` use to talk to metad.
//!
//! A [`MetadClient`] keeps one connection, to the leader once it knows it; it follows
//! redirections, tries the other members when one is gone, and repeats a command under its number
//! so that it is carried out once. Everything is `Rc` and runs on a tokio `LocalSet`.

mod error;
mod report;
mod resilvers;
mod typed;

pub use error::MetadError;
pub use report::ReportHandle;
pub use resilvers::ResilverLog;
pub use shardmap::grant::{IsrAnswer, MembershipRequest};

use crate::api::{Answer, MemberStatus, Question};
use crate::core::{ClientId, Command, Reply, limits};
use crate::link::Link;
use crate::wire::question::{get_answer, put_question};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, Semaphore};
use uuid::Uuid;

/// How a client behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// `host:port` of the members, in any order; one that is up is enough.
    pub members: Vec<String>,
    /// Name and version of the program, for metad's log.
    pub program: String,
    /// Longest wait for a connection.
    pub connect_timeout_ms: u64,
    /// Longest wait for one answer of a connected member (watches have none).
    pub answer_timeout_ms: u64,
    /// Longest wait for an answer over all attempts; after it the error is
    /// [`MetadError::Unreachable`].
    pub deadline_ms: u64,
    /// Between two heartbeats of a reporter.
    pub heartbeat_ms: u64,
}

impl ClientConfig {
    /// The usual times.
    pub fn new(members: Vec<String>, program: impl Into<String>) -> Self {
        Self {
            members,
            program: program.into(),
            connect_timeout_ms: 2_000,
            answer_timeout_ms: 5_000,
            deadline_ms: 30_000,
            heartbeat_ms: 5_000,
        }
    }
}

/// First pause after a failed attempt, milliseconds; doubles up to [`BACKOFF_MS_MAX`].
const BACKOFF_MS_MIN: u64 = 50;
const BACKOFF_MS_MAX: u64 = 2_000;

/// A client of metad. Clones share the connection.
#[derive(Clone, Debug)]
pub struct MetadClient(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    config: ClientConfig,
    id: ClientId,
    sequence: Cell<u64>,
    /// Bounds commands in flight, so that a repeat is always remembered.
    slots: Semaphore,
    connecting: Mutex<()>,
    link: RefCell<Option<Rc<Link>>>,
    /// Where the leader was said to be.
    leader: RefCell<Option<String>>,
    next_member: Cell<usize>,
    /// Rung after each new connection, so that reports are repeated to a new leader at once.
    relinked: Notify,
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    attempt: Option<Duration>,
    total: Option<Duration>,
}

/// Why one attempt brought no answer.
enum Attempt {
    /// Ask again; with the leader's address if it is known.
    Redirected(Option<String>),
    /// The link is of no more use.
    Broken(String),
}

impl MetadClient {
    /// A client; connects when first asked.
    pub fn new(config: ClientConfig) -> Self {
        assert!(
            !config.members.is_empty(),
            "a client needs the address of a member"
        );
        Self(Rc::new(Shared {
            config,
            id: ClientId(Uuid::new_v4()),
            sequence: Cell::new(0),
            slots: Semaphore::new(limits::CLIENT_IN_FLIGHT_MAX),
            connecting: Mutex::new(()),
            link: RefCell::new(None),
            leader: RefCell::new(None),
            next_member: Cell::new(0),
            relinked: Notify::new(),
        }))
    }

    /// Carries out a command once, whatever happens to connections and leaders meanwhile.
    ///
    /// # Errors
    /// [`MetadError::Refused`] for a refusal; [`MetadError::Unreachable`] after the deadline: it
    /// is then unknown whether the command was carried out.
    pub async fn command(&self, command: Command) -> Result<Reply, MetadError> {
        let _slot = self.0.slots.acquire().await.expect("never closed");
        let sequence = self.0.sequence.get() + 1;
        self.0.sequence.set(sequence);
        let question = Question::Command {
            client: self.0.id,
            sequence,
            command,
        };
        let answer = self.ask(&question).await?;
        let Answer::Command { reply, .. } = answer else {
            return Err(MetadError::unexpected(&question, &answer));
        };
        if let Reply::Refused(refusal) = reply {
            Err(MetadError::Refused(refusal))
        } else {
            Ok(reply)
        }
    }

    /// Asks the leader, with the usual patience.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub async fn ask(&self, question: &Question) -> Result<Answer, MetadError> {
        let config = &self.0.config;
        let patience = Patience {
            attempt: Some(Duration::from_millis(config.answer_timeout_ms)),
            total: Some(Duration::from_millis(config.deadline_ms)),
        };
        self.ask_patiently(question, patience).await
    }

    /// Asks something that is answered when something changes: waits as long as it takes, also
    /// while no member can be reached.
    ///
    /// # Errors
    /// [`MetadError::Refused`].
    pub async fn watch(&self, question: &Question) -> Result<Answer, MetadError> {
        self.ask_patiently(
            question,
            Patience {
                attempt: None,
                total: None,
            },
        )
        .await
    }

    async fn ask_patiently(
        &self,
        question: &Question,
        patience: Patience,
    ) -> Result<Answer, MetadError> {
        let began = Instant::now();
        let mut failures = 0u32;
        let mut redirections = 0u32;
        loop {
            let why = match self.attempt(question, patience.attempt).await {
                Ok(Answer::Refused(refusal)) => return Err(MetadError::Refused(refusal)),
                Ok(answer) => return Ok(answer),
                Err(Attempt::Redirected(Some(leader))) if redirections < 2 => {
                    redirections += 1;
                    *self.0.leader.borrow_mut() = Some(leader);
                    continue;
                }
                Err(Attempt::Redirected(_)) => "the members have no leader".to_owned(),
                Err(Attempt::Broken(why)) => why,
            };
            redirections = 0;
            let mut pause = self.backoff(failures);
            failures += 1;
            let left = patience
                .total
                .map(|total| total.saturating_sub(began.elapsed()));
            if let Some(left) = left {
                // The last attempts come closer together, so that the time is used up.
                pause = pause.min(left / 2);
            }
            if left.is_some_and(|left| left < Duration::from_millis(BACKOFF_MS_MIN)) {
                return Err(MetadError::Unreachable {
                    members: self.0.config.members.join(", "),
                    waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    last: why,
                });
            }
            tracing::debug!(%why, ?pause, "metad did not answer");
            tokio::time::sleep(pause).await;
        }
    }

    /// Doubling, spread by a quarter so that clients of a dead leader do not come together.
    fn backoff(&self, failures: u32) -> Duration {
        let base = BACKOFF_MS_MIN
            .saturating_mul(1 << failures.min(10))
            .min(BACKOFF_MS_MAX);
        let spread = u64::from(Uuid::new_v4().as_bytes()[0]) * (base / 4 + 1) / 256;
        Duration::from_millis(base + spread)
    }

    async fn attempt(
        &self,
        question: &Question,
        within: Option<Duration>,
    ) -> Result<Answer, Attempt> {
        let link = self.link().await?;
        let asked = ask_over(&link, question, &self.0.config.program);
        let answer = match within {
            Some(within) => tokio::time::timeout(within, asked)
                .await
                .unwrap_or_else(|_| {
                    Err(capnp::Error::overloaded(format!("no answer in {within:?}")))
                }),
            None => asked.await,
        };
        match answer {
            Ok(Answer::NotLeader(leader)) => {
                self.discard(&link);
                let elsewhere = leader.map(|l| l.address).filter(|a| *a != link.address);
                Err(Attempt::Redirected(elsewhere))
            }
            Ok(Answer::Unavailable(why)) => {
                self.discard(&link);
                Err(Attempt::Broken(format!("{}: {why}", link.address)))
            }
            Ok(answer) => Ok(answer),
            Err(e) => {
                self.discard(&link);
                Err(Attempt::Broken(format!("{}: {}", link.address, e.extra)))
            }
        }
    }

    /// The connection in use, or a new one: to the leader if it is known, else to the next member.
    async fn link(&self) -> Result<Rc<Link>, Attempt> {
        let _one_at_a_time = self.0.connecting.lock().await;
        if let Some(link) = self.0.link.borrow().as_ref().filter(|l| l.is_open()) {
            return Ok(Rc::clone(link));
        }
        let members = &self.0.config.members;
        let said = self.0.leader.borrow_mut().take();
        let address = said.unwrap_or_else(|| {
            let next = self.0.next_member.get();
            self.0.next_member.set(next.wrapping_add(1));
            members[next % members.len()].clone()
        });
        let within = Duration::from_millis(self.0.config.connect_timeout_ms);
        match Link::connect(&address, within).await {
            Ok(link) => {
                let link = Rc::new(link);
                *self.0.link.borrow_mut() = Some(Rc::clone(&link));
                self.0.relinked.notify_waiters();
                Ok(link)
            }
            Err(e) => Err(Attempt::Broken(format!("{address}: {e}"))),
        }
    }

    fn discard(&self, link: &Rc<Link>) {
        let mut current = self.0.link.borrow_mut();
        if current.as_ref().is_some_and(|c| Rc::ptr_eq(c, link)) {
            *current = None;
        }
    }

    /// Asks each member about itself, at the same time: those that are configured, then those that
    /// they know besides.
    pub async fn member_statuses(&self) -> Vec<(String, Result<MemberStatus, MetadError>)> {
        let mut asked = self.ask_members(&self.0.config.members).await;
        let known: BTreeSet<u64> = asked
            .iter()
            .flat_map(|(_, s)| s)
            .map(|s| s.facts.id)
            .collect();
        let told = asked.iter().flat_map(|(_, s)| s).flat_map(|s| &s.members);
        let others: BTreeMap<u64, String> = told
            .filter(|m| !known.contains(&m.id) && !self.0.config.members.contains(&m.address))
            .map(|m| (m.id, m.address.clone()))
            .collect();
        let others: Vec<String> = others.into_values().collect();
        asked.extend(self.ask_members(&others).await);
        asked
    }

    async fn ask_members(
        &self,
        addresses: &[String],
    ) -> Vec<(String, Result<MemberStatus, MetadError>)> {
        let asked = addresses
            .iter()
            .map(|address| async move { (address.clone(), self.member_status(address).await) });
        futures::future::join_all(asked).await
    }

    async fn member_status(&self, address: &str) -> Result<MemberStatus, MetadError> {
        let config = &self.0.config;
        let unreachable = |last: String| MetadError::Unreachable {
            members: address.to_owned(),
            waited_ms: config.connect_timeout_ms,
            last,
        };
        let within = Duration::from_millis(config.connect_timeout_ms);
        let link = Link::connect(address, within)
            .await
            .map_err(|e| unreachable(e.to_string()))?;
        let asked = ask_over(&link, &Question::MemberStatus, &config.program);
        match tokio::time::timeout(within, asked).await {
            Ok(Ok(Answer::MemberStatus(status))) => Ok(status),
            Ok(Ok(other)) => Err(MetadError::unexpected(&Question::MemberStatus, &other)),
            Ok(Err(e)) => Err(unreachable(e.extra)),
            Err(_) => Err(unreachable(format!("no answer in {within:?}"))),
        }
    }
}

async fn ask_over(link: &Link, question: &Question, program: &str) -> Result<Answer, capnp::Error> {
    let mut enter = link.entrance().metad_request();
    enter.get().set_protocol(ubs_capnp::PROTOCOL);
    enter.get().set_program(program);
    // Pipelined: both calls travel together.
    let metad = enter.send().pipeline.get_metad();
    let mut request = metad.ask_request();
    put_question(question, request.get().init_question());
    let response = request.send().promise.await?;
    get_answer(response.get()?.get_answer()?)
}

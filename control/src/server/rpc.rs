//! The RPC listener. A connection that sends nonsense ends; the others do not notice.

use super::node::Node;
use super::{CONNECTIONS_MAX, QUESTIONS_PER_CONNECTION_MAX};
use crate::api::Answer;
use crate::link::{halves, server_reader_options, tune};
use crate::raft::Raft;
use crate::raft::network::{take_append, take_snapshot, take_vote};
use crate::wire::question::{get_question, put_answer};
use crate::wire::words::{get_members, get_uuid, put_facts};
use capnp::Error;
use capnp::capability::Rc as CapRc;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use ubs_capnp::control_capnp::{entrance, member, metad};
use uuid::Uuid;

/// After a failed accept (out of descriptors): let some connections end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for as long as the member runs.
pub(super) async fn serve(node: Rc<Node>, listener: TcpListener) {
    let open = Rc::new(Cell::new(0usize));
    let mut next_id = 0;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if open.get() >= CONNECTIONS_MAX {
            tracing::warn!(%peer, "closed: {CONNECTIONS_MAX} connections are open");
            continue;
        }
        next_id += 1;
        open.set(open.get() + 1);
        let (served, open, id) = (Rc::clone(&node), Rc::clone(&open), next_id);
        node.spawn(async move {
            if let Err(e) = connection(&served, stream, id).await {
                tracing::info!(%peer, error = %e, "connection closed");
            }
            open.set(open.get() - 1);
            let lost = served.health.borrow_mut().on_connection_lost(id);
            if served.is_leader() {
                served.tell(lost);
                served.deadline_moved.notify_one();
            }
        });
    }
}

async fn connection(node: &Rc<Node>, stream: TcpStream, id: u64) -> Result<(), Error> {
    tune(&stream).map_err(|e| Error::failed(e.to_string()))?;
    let (reader, writer) = halves(stream);
    let network = twoparty::VatNetwork::new(reader, writer, Side::Server, server_reader_options());
    let questions = Semaphore::new(QUESTIONS_PER_CONNECTION_MAX);
    let shared = Rc::new(Connection {
        node: Rc::clone(node),
        id,
        questions,
    });
    let door: entrance::Client = capnp_rpc::new_client(Door(shared));
    RpcSystem::new(Box::new(network), Some(door.client)).await
}

struct Connection {
    node: Rc<Node>,
    id: u64,
    questions: Semaphore,
}

struct Door(Rc<Connection>);

fn check_protocol(theirs: u16) -> Result<(), Error> {
    if theirs == ubs_capnp::PROTOCOL {
        return Ok(());
    }
    let ours = ubs_capnp::PROTOCOL;
    Err(Error::failed(format!(
        "this metad speaks protocol {ours}, the other program {theirs}: upgrade the older one"
    )))
}

impl entrance::Server for Door {
    async fn metad(
        self: CapRc<Self>,
        params: entrance::MetadParams,
        mut results: entrance::MetadResults,
    ) -> Result<(), Error> {
        check_protocol(params.get()?.get_protocol())?;
        results
            .get()
            .set_metad(capnp_rpc::new_client(Asked(Rc::clone(&self.0))));
        Ok(())
    }

    async fn member(
        self: CapRc<Self>,
        params: entrance::MemberParams,
        mut results: entrance::MemberResults,
    ) -> Result<(), Error> {
        check_protocol(params.get()?.get_protocol())?;
        results
            .get()
            .set_member(capnp_rpc::new_client(Peer(Rc::clone(&self.0))));
        Ok(())
    }
}

struct Asked(Rc<Connection>);

impl metad::Server for Asked {
    async fn ask(
        self: CapRc<Self>,
        params: metad::AskParams,
        mut results: metad::AskResults,
    ) -> Result<(), Error> {
        let question = get_question(params.get()?.get_question()?)?;
        drop(params);
        let answer = match self.0.questions.try_acquire() {
            Ok(_open) => self.0.node.answer(self.0.id, question).await,
            Err(_) => Answer::Unavailable(format!(
                "{QUESTIONS_PER_CONNECTION_MAX} questions are open on this connection"
            )),
        };
        put_answer(&answer, results.get().init_answer());
        Ok(())
    }
}

struct Peer(Rc<Connection>);

impl Peer {
    /// Consensus, for a message of the same cluster.
    fn raft_of(&self, cluster: Uuid) -> Result<Raft, Error> {
        let node = &self.0.node;
        let facts = node.facts();
        if let Some(raft) = node.raft().filter(|_| facts.cluster == cluster) {
            return Ok(raft);
        }
        if facts.cluster == Uuid::nil() {
            let note = format!(
                "cluster {cluster} counts on this member, whose data directory is empty: a member \
                 that lost its data must not vote; put its own directory back if it still exists, \
                 or wait until it is taken in again"
            );
            if *node.note.borrow() != note {
                tracing::warn!("{note}");
                *node.note.borrow_mut() = note;
            }
        }
        Err(Error::failed(format!(
            "member {} belongs to cluster {}, the message to cluster {cluster}",
            facts.id, facts.cluster
        )))
    }
}

fn malformed(e: &postcard::Error) -> Error {
    Error::failed(format!("malformed Raft message: {e}"))
}

impl member::Server for Peer {
    async fn facts(
        self: CapRc<Self>,
        _: member::FactsParams,
        mut results: member::FactsResults,
    ) -> Result<(), Error> {
        put_facts(&self.0.node.facts(), results.get().init_facts());
        Ok(())
    }

    async fn adopt(
        self: CapRc<Self>,
        params: member::AdoptParams,
        _: member::AdoptResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let cluster = get_uuid(params.get_cluster()?);
        let members = get_members(params.get_members()?)?;
        let node = &self.0.node;
        if !members.iter().any(|m| m.id == node.config.id) || cluster == Uuid::nil() {
            return Err(Error::failed(format!(
                "member {} is not among the members of the cluster it is asked to join",
                node.config.id
            )));
        }
        node.adopt(cluster, &members)
            .await
            .map_err(|e| Error::failed(e.to_string()))
    }

    async fn append(
        self: CapRc<Self>,
        params: member::AppendParams,
        mut results: member::AppendResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let raft = self.raft_of(get_uuid(params.get_cluster()?))?;
        let answer = take_append(&raft, params.get_message()?)
            .await
            .map_err(|e| malformed(&e))?;
        results.get().set_message(&answer);
        Ok(())
    }

    async fn vote(
        self: CapRc<Self>,
        params: member::VoteParams,
        mut results: member::VoteResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let raft = self.raft_of(get_uuid(params.get_cluster()?))?;
        let answer = take_vote(&raft, params.get_message()?)
            .await
            .map_err(|e| malformed(&e))?;
        results.get().set_message(&answer);
        Ok(())
    }

    async fn install_snapshot(
        self: CapRc<Self>,
        params: member::InstallSnapshotParams,
        mut results: member::InstallSnapshotResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let raft = self.raft_of(get_uuid(params.get_cluster()?))?;
        let answer = take_snapshot(&raft, params.get_message()?)
            .await
            .map_err(|e| malformed(&e))?;
        results.get().set_message(&answer);
        Ok(())
    }
}

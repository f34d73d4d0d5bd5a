//! Raft messages to other members, over Cap'n Proto.

use super::{Raft, TypeConfig};
use crate::link::Link;
use crate::wire::words::put_uuid;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::fmt::Display;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use ubs_capnp::control_capnp::member;
use uuid::Uuid;

/// Makes connections of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// Members of another cluster refuse our messages. Settled once the cluster has begun.
    pub(crate) cluster: Rc<Cell<Uuid>>,
}

/// The way to one member.
#[derive(Debug)]
pub(crate) struct Peer {
    cluster: Rc<Cell<Uuid>>,
    id: u64,
    address: String,
    link: Option<Link>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer {
            cluster: Rc::clone(&self.cluster),
            id: target,
            address: node.addr.clone(),
            link: None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Append,
    Vote,
    InstallSnapshot,
}

type Failed<E> = RPCError<u64, BasicNode, RaftError<u64, E>>;

impl Peer {
    async fn call<Q, A, E>(&mut self, kind: Kind, ask: &Q, within: Duration) -> Result<A, Failed<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: DeserializeOwned + std::error::Error,
    {
        let message = postcard::to_stdvec(ask).map_err(|e| network(&e))?;
        let answer = match tokio::time::timeout(within, self.exchange(kind, &message, within)).await
        {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => {
                self.link = None;
                return Err(failure);
            }
            Err(_) => {
                self.link = None;
                let late = io::Error::new(io::ErrorKind::TimedOut, format!("after {within:?}"));
                return Err(network(&late));
            }
        };
        let answer: Result<A, RaftError<u64, E>> =
            postcard::from_bytes(&answer).map_err(|e| network(&e))?;
        answer.map_err(|e| RPCError::RemoteError(RemoteError::new(self.id, e)))
    }

    async fn exchange<E: std::error::Error>(
        &mut self,
        kind: Kind,
        message: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, Failed<E>> {
        let link = match self.link.take().filter(Link::is_open) {
            Some(link) => link,
            None => Link::connect(&self.address, within)
                .await
                .map_err(|e| RPCError::Unreachable(Unreachable::new(&e)))?,
        };
        let link = self.link.insert(link);
        let member = enter(link);
        let answer = match kind {
            Kind::Append => {
                let mut request = member.append_request();
                put_uuid(self.cluster.get(), request.get().init_cluster());
                request.get().set_message(message);
                let response = request.send().promise.await.map_err(|e| network(&e))?;
                let results = response.get().map_err(|e| network(&e))?;
                results.get_message().map_err(|e| network(&e))?.to_vec()
            }
            Kind::Vote => {
                let mut request = member.vote_request();
                put_uuid(self.cluster.get(), request.get().init_cluster());
                request.get().set_message(message);
                let response = request.send().promise.await.map_err(|e| network(&e))?;
                let results = response.get().map_err(|e| network(&e))?;
                results.get_message().map_err(|e| network(&e))?.to_vec()
            }
            Kind::InstallSnapshot => {
                let mut request = member.install_snapshot_request();
                put_uuid(self.cluster.get(), request.get().init_cluster());
                request.get().set_message(message);
                let response = request.send().promise.await.map_err(|e| network(&e))?;
                let results = response.get().map_err(|e| network(&e))?;
                results.get_message().map_err(|e| network(&e))?.to_vec()
            }
        };
        Ok(answer)
    }
}

/// The member interface at the other end, pipelined.
pub(crate) fn enter(link: &Link) -> member::Client {
    let mut enter = link.entrance().member_request();
    enter.get().set_protocol(ubs_capnp::PROTOCOL);
    enter.send().pipeline.get_member()
}

fn network<E: std::error::Error>(e: &(impl Display + ?Sized)) -> Failed<E> {
    RPCError::Network(NetworkError::new(&AnyError::error(e)))
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        self.call(Kind::Append, &rpc, option.hard_ttl()).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, BasicNode, RaftError<u64, InstallSnapshotError>>,
    > {
        self.call(Kind::InstallSnapshot, &rpc, option.hard_ttl())
            .await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        self.call(Kind::Vote, &rpc, option.hard_ttl()).await
    }
}

/// The receiving end: carries out one Raft message and encodes the outcome.
///
/// # Errors
/// The message cannot be decoded.
pub(crate) async fn take_append(raft: &Raft, message: &[u8]) -> Result<Vec<u8>, postcard::Error> {
    let rpc: AppendEntriesRequest<TypeConfig> = postcard::from_bytes(message)?;
    postcard::to_stdvec(&raft.append_entries(rpc).await)
}

/// As [`take_append`].
///
/// # Errors
/// The message cannot be decoded.
pub(crate) async fn take_vote(raft: &Raft, message: &[u8]) -> Result<Vec<u8>, postcard::Error> {
    let rpc: VoteRequest<u64> = postcard::from_bytes(message)?;
    postcard::to_stdvec(&raft.vote(rpc).await)
}

/// As [`take_append`].
///
/// # Errors
/// The message cannot be decoded.
pub(crate) async fn take_snapshot(raft: &Raft, message: &[u8]) -> Result<Vec<u8>, postcard::Error> {
    let rpc: InstallSnapshotRequest<TypeConfig> = postcard::from_bytes(message)?;
    postcard::to_stdvec(&raft.install_snapshot(rpc).await)
}

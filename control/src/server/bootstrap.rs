//! Beginning a cluster.
//!
//! The member with the lowest id begins it, once, and only when *every* configured member answers
//! and none of them takes part in a cluster. A member whose directory was lost later finds the
//! others running: it waits, and neither votes nor begins anything. Each step can be repeated after
//! a crash: the marker is written first, members that have neither voted nor logged can be adopted
//! again, and openraft initialises an empty log only.

use super::node::Node;
use crate::api::{MemberAddress, MemberFacts, Stage};
use crate::link::Link;
use crate::raft::network::enter;
use crate::wire::words::{get_facts, put_members, put_uuid};
use openraft::BasicNode;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Between two looks at the other members while a cluster is being begun, and only then.
const RETRY: Duration = Duration::from_millis(500);
/// For one exchange with another member.
const EXCHANGE: Duration = Duration::from_secs(3);

/// Runs until the member takes part in a cluster.
pub(super) async fn run(node: Rc<Node>) {
    let lowest = node.config.members.iter().map(|m| m.id).min();
    loop {
        let facts = node.facts();
        if facts.stage == Stage::Running {
            say(&node, String::new());
            return;
        }
        if lowest != Some(node.config.id) {
            say(
                &node,
                format!(
                    "waits for member {} to begin the cluster",
                    lowest.unwrap_or(0)
                ),
            );
            // Adopted or not, there is nothing to do here; the note goes with the first entry.
            let mut applied = node.machine.applied();
            drop(applied.changed().await);
            continue;
        }
        match begin(&node, &facts).await {
            Ok(()) => {}
            Err(why) => say(&node, why),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What the member waits for: in its status, and once in its log.
fn say(node: &Node, what: String) {
    if *node.note.borrow() == what {
        return;
    }
    if !what.is_empty() {
        tracing::info!("member {}: {what}", node.config.id);
    }
    *node.note.borrow_mut() = what;
}

async fn begin(node: &Node, own: &MemberFacts) -> Result<(), String> {
    let members = &node.config.members;
    let mut others = Vec::new();
    for peer in members.iter().filter(|m| m.id != node.config.id) {
        let link = connect(peer).await?;
        let facts = ask_facts(&link, peer).await?;
        check_peer(peer, &facts)?;
        others.push((peer, link));
    }
    let cluster = if own.cluster == Uuid::nil() {
        Uuid::new_v4()
    } else {
        own.cluster
    };
    node.adopt(cluster, members)
        .await
        .map_err(|e| e.to_string())?;
    for (peer, link) in &others {
        ask_adopt(link, peer, cluster, members).await?;
    }
    let raft = node.raft().ok_or("consensus has not started")?;
    let nodes: BTreeMap<u64, BasicNode> = members
        .iter()
        .map(|m| (m.id, BasicNode::new(&m.address)))
        .collect();
    raft.initialize(nodes)
        .await
        .map_err(|e| format!("cannot begin the cluster: {e}"))?;
    tracing::info!(%cluster, members = members.len(), "the cluster begins");
    Ok(())
}

fn check_peer(peer: &MemberAddress, facts: &MemberFacts) -> Result<(), String> {
    if facts.id != peer.id {
        return Err(format!(
            "{} should be member {} and says that it is member {}; correct [[member]] in its \
             configuration or ours",
            peer.address, peer.id, facts.id
        ));
    }
    if facts.stage == Stage::Running {
        return Err(format!(
            "the data directory here is empty while member {} takes part in cluster {}: a member \
             that lost its data must not vote; put its own directory back if it still exists, or wait \
             until it is taken in again",
            peer.id, facts.cluster
        ));
    }
    Ok(())
}

async fn connect(peer: &MemberAddress) -> Result<Link, String> {
    Link::connect(&peer.address, EXCHANGE)
        .await
        .map_err(|e| format!("waits for member {} at {}: {e}", peer.id, peer.address))
}

async fn ask_facts(link: &Link, peer: &MemberAddress) -> Result<MemberFacts, String> {
    let asked = async {
        let response = enter(link).facts_request().send().promise.await?;
        get_facts(response.get()?.get_facts()?)
    };
    within(peer, asked).await
}

async fn ask_adopt(
    link: &Link,
    peer: &MemberAddress,
    cluster: Uuid,
    members: &[MemberAddress],
) -> Result<(), String> {
    let mut request = enter(link).adopt_request();
    put_uuid(cluster, request.get().init_cluster());
    let count = u32::try_from(members.len()).map_err(|e| e.to_string())?;
    put_members(members, request.get().init_members(count));
    within(peer, async { request.send().promise.await.map(drop) }).await
}

async fn within<T>(
    peer: &MemberAddress,
    asked: impl Future<Output = Result<T, capnp::Error>>,
) -> Result<T, String> {
    match tokio::time::timeout(EXCHANGE, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(format!(
            "member {} at {}: {}",
            peer.id, peer.address, e.extra
        )),
        Err(_) => Err(format!(
            "member {} at {} does not answer",
            peer.id, peer.address
        )),
    }
}

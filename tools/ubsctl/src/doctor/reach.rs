//! Whether this host reaches the servers' targets.

use super::finding::{Finding, Level};
use control::api::{Liveness, ServerView};
use std::time::Duration;
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(2);
/// A host of a larger cluster is judged by the first ones.
const SERVERS_MAX: usize = 64;

/// Servers that are alive for metad and not for us.
pub(super) async fn servers(all: &[ServerView]) -> Vec<Finding> {
    let alive = all.iter().filter(|s| s.liveness == Liveness::Online);
    let asked = alive.take(SERVERS_MAX).map(|server| async move {
        let tried = tokio::time::timeout(PATIENCE, TcpStream::connect(server.address)).await;
        let why = match tried {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {} s", PATIENCE.as_secs()),
        };
        Some(Finding::new(
            Level::Warning,
            "reachability",
            format!(
                "server {} at {} cannot be reached from here: {why}",
                server.name, server.address
            ),
            "hosts that use volumes must reach it: check routes, firewalls, and `listen` and \
             `advertise` in its storaged.toml",
        ))
    });
    futures::future::join_all(asked)
        .await
        .into_iter()
        .flatten()
        .collect()
}

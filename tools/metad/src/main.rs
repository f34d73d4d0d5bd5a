//! A member of the control plane.
//!
//! The first start of a cluster needs no command: when every `[[member]]` has started once with an
//! empty directory, the one with the lowest id begins the cluster. A member that finds its
//! directory empty later does not begin another and does not vote; it says so and waits.
#![forbid(unsafe_code)]

mod config;
mod metrics;

use config::MetadConfig;
use control::server::{Node, StartError};
use daemon::config::Cli;
use daemon::service;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use tokio::net::TcpListener;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot listen on {at}: {source}; is another metad running, or is the address wrong?")]
    Listen {
        at: SocketAddr,
        source: std::io::Error,
    },
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("cannot serve metrics on {at}: {source}; change metrics_listen")]
    Metrics {
        at: SocketAddr,
        source: std::io::Error,
    },
    #[error("{what}: {source}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
    #[error("consensus stopped: {0}; the log may be incomplete, see the lines above")]
    Consensus(String),
}

fn main() -> ExitCode {
    service::abort_on_panic();
    let cli = Cli::of(
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        "A member of ublkstor's control plane",
    );
    let config: MetadConfig = match daemon::config::load_or_exit(&cli) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if let Err(error) = service::init_logging(&cli.log) {
        eprintln!("error: {error}");
        return ExitCode::from(daemon::config::EXIT_USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("metad: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match tokio::task::LocalSet::new().block_on(&runtime, run(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            eprintln!("metad: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: &MetadConfig) -> Result<(), Failure> {
    if !config.listen.ip().is_loopback() {
        tracing::warn!(at = %config.listen, "the RPC is not encrypted (allow_plaintext_network)");
    }
    let at = config.listen;
    let listener = TcpListener::bind(at)
        .await
        .map_err(|source| Failure::Listen { at, source })?;
    let node = Node::start(config.node(), listener).await?;
    tracing::info!(%at, id = config.node_id, data_dir = %config.data_dir.display(), "serving");
    service::notify_ready(&describe(&node));
    let outcome = tokio::select! {
        signal = service::stop_requested() => match signal {
            Ok(signal) => {
                tracing::info!(signal, "stopping");
                Ok(())
            }
            Err(source) => Err(Failure::System { what: "cannot wait for signals", source }),
        },
        why = node.failed() => Err(Failure::Consensus(why)),
        failure = serve_metrics(config.metrics_listen, &node) => Err(failure),
        () = follow_status(&node) => Ok(()),
    };
    service::notify_stopping();
    node.stop().await;
    outcome
}

/// Ends only if the metrics cannot be served.
async fn serve_metrics(at: SocketAddr, node: &Rc<Node>) -> Failure {
    let gather = || {
        let registry = metrics::gather(node);
        async { registry }
    };
    match daemon::metrics::serve(at, gather).await {
        Ok(()) => std::future::pending().await,
        Err(source) => Failure::Metrics { at, source },
    }
}

/// Keeps the service manager's status line true. Never ends.
async fn follow_status(node: &Node) {
    let mut said = describe(node);
    loop {
        node.status_changed().await;
        let now = describe(node);
        if now != said {
            tracing::info!("{now}");
            service::notify_status(&now);
            said = now;
        }
    }
}

fn describe(node: &Node) -> String {
    let status = node.status();
    let id = status.facts.id;
    let what = match (status.role.as_str(), status.leader, status.note.as_str()) {
        (_, _, note) if !note.is_empty() => note.to_owned(),
        ("leader", ..) => format!(
            "leads {} members, term {}",
            status.members.len(),
            status.term
        ),
        (role, 0, _) => format!("{role} without a leader, term {}", status.term),
        (role, leader, _) => format!("{role} of member {leader}, term {}", status.term),
    };
    format!("member {id}: {what}")
}

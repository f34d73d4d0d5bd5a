//! Load on metad: clients that commit one command after another.

use crate::outcome::float;
use anyhow::{Context, Result, bail};
use clap::Args;
use control::client::{ClientConfig, MetadClient};
use control::core::NewHost;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Options of the load.
#[derive(Clone, Debug, Args)]
pub(crate) struct CommitOptions {
    /// Members of metad; one that is up is enough
    #[arg(
        long,
        required = true,
        value_name = "ADDRESS:PORT",
        value_delimiter = ','
    )]
    metad: Vec<String>,
    /// Clients at a time, each with a connection of its own and one command under way
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// Seconds measured
    #[arg(long, default_value_t = 2.0)]
    runtime: f64,
    /// One JSON document instead of a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Commits {
    pub(crate) clients: u32,
    pub(crate) seconds: f64,
    pub(crate) commits: u64,
    pub(crate) commits_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Runs the load. Each client announces a host of its own again and again: a command like any other,
/// that leaves nothing behind but the host.
///
/// # Errors
/// The first command that metad refused or did not answer.
pub(crate) fn run(options: &CommitOptions) -> Result<Commits> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let set = tokio::task::LocalSet::new();
    set.block_on(&runtime, measure(options))
}

async fn measure(options: &CommitOptions) -> Result<Commits> {
    let mut clients = Vec::new();
    for number in 0..options.clients {
        let program = concat!("ubs-bench/", env!("CARGO_PKG_VERSION"));
        let client = MetadClient::new(ClientConfig::new(options.metad.clone(), program));
        // The first command also connects: not measured.
        commit(&client, number).await?;
        clients.push((number, client));
    }
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(options.runtime);
    let loads = clients.into_iter().map(|(number, client)| async move {
        let mut latencies_ns = Vec::new();
        while Instant::now() < end {
            let since = Instant::now();
            commit(&client, number).await?;
            latencies_ns.push(u64::try_from(since.elapsed().as_nanos())?);
        }
        anyhow::Ok(latencies_ns)
    });
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 100_000_000_000, 3)?;
    for found in futures::future::join_all(loads).await {
        for latency_ns in found? {
            histogram.saturating_record(latency_ns.max(1));
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    if histogram.is_empty() {
        bail!("nothing was committed in {seconds:.1} s: ask for a longer --runtime");
    }
    let us = |percentile| float(histogram.value_at_percentile(percentile)) / 1e3;
    Ok(Commits {
        clients: options.clients,
        seconds,
        commits: histogram.len(),
        commits_per_s: float(histogram.len()) / seconds,
        p50_us: us(50.0),
        p99_us: us(99.0),
    })
}

async fn commit(client: &MetadClient, number: u32) -> Result<()> {
    // The same number is the same host, so that runs do not leave hosts behind.
    let uuid = Uuid::from_u128(0x0062_656e_6368 << 64 | u128::from(number));
    let host = NewHost {
        uuid,
        name: format!("ubs-bench-{number}"),
        host_nqn: format!("nqn.2026-01.io.ublkstor:clientd:{uuid}"),
    };
    client
        .register_host(host)
        .await
        .map(|_| ())
        .context("metad did not commit")
}

/// The line for people.
pub(crate) fn line(found: &Commits) -> String {
    format!(
        "{} clients: {} commits in {:.2} s, {:.0}/s, p50 {:.0} µs, p99 {:.0} µs",
        found.clients,
        found.commits,
        found.seconds,
        found.commits_per_s,
        found.p50_us,
        found.p99_us
    )
}

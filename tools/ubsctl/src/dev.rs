//! A whole cluster of child processes in one directory, for trying out: `ubsctl dev`.

use crate::failure::Failure;
use crate::output::{Format, Listing, Row, parse_size};
use ::store::core::format::geometry::DEVICE_BYTES_MIN;
use control::api::Filter;
use control::client::{ClientConfig, MetadClient};
use devcluster::{Cluster, Kind, Plan};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What to do with it.
#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Create the cluster if the directory holds none, start what does not run, wait until it serves
    #[command(after_help = "Examples:\n  ubsctl dev up --dir /tmp/ubs\n  \
        ubsctl dev up --dir /tmp/ubs --no-clientd   # on a machine without ublk")]
    Up(Up),
    /// Stop every daemon in order; attached devices are detached by you, before
    Down(Down),
    /// Which daemons run, and where
    Status(Dir),
    /// Start one daemon
    Start(Named),
    /// Stop one daemon in order (SIGTERM)
    Stop(Named),
    /// Kill one daemon (SIGKILL)
    Kill(Named),
}

/// Where the cluster is.
#[derive(clap::Args)]
pub(crate) struct Dir {
    /// Directory of the cluster
    #[arg(long, default_value = "ublkstor-dev", value_name = "DIR")]
    dir: PathBuf,
}

/// How a new cluster looks.
#[derive(clap::Args)]
pub(crate) struct Up {
    #[command(flatten)]
    at: Dir,
    /// Members of metad: 1 or 3
    #[arg(long, default_value_t = 3)]
    metads: u8,
    /// Storage servers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    storageds: u8,
    /// Size of each server's store, as 4GiB
    #[arg(long, value_parser = parse_size, default_value = "4GiB", value_name = "SIZE")]
    store_bytes: u64,
    /// Without clientd, for machines that have no ublk
    #[arg(long)]
    no_clientd: bool,
    /// Where the daemons' programs are [default: beside ubsctl]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// How to end it.
#[derive(clap::Args)]
pub(crate) struct Down {
    #[command(flatten)]
    at: Dir,
    /// Remove the directory with all data afterwards
    #[arg(long)]
    wipe: bool,
}

/// One daemon.
#[derive(clap::Args)]
pub(crate) struct Named {
    #[command(flatten)]
    at: Dir,
    /// Its name, as `dev status` shows it
    name: String,
}

pub(crate) async fn run(verb: Verb, format: Format, patience: Duration) -> Result<(), Failure> {
    match verb {
        Verb::Up(up) => bring_up(&up, format, patience).await,
        Verb::Down(down) => take_down(&down),
        Verb::Status(at) => {
            show(&open(&at)?, format);
            Ok(())
        }
        Verb::Start(one) => {
            let pid = open(&one.at)?.start(&one.name).map_err(failure)?;
            println!("{} runs as process {pid}", one.name);
            Ok(())
        }
        Verb::Stop(one) => {
            let ran = open(&one.at)?.stop(&one.name).map_err(failure)?;
            report_end(&one.name, ran, "stopped")
        }
        Verb::Kill(one) => {
            let ran = open(&one.at)?.kill(&one.name).map_err(failure)?;
            report_end(&one.name, ran, "killed")
        }
    }
}

fn report_end(name: &str, ran: bool, how: &str) -> Result<(), Failure> {
    if !ran {
        return Err(Failure::error(format!(
            "{name} does not run; nothing was done"
        )));
    }
    println!("{name} {how}");
    Ok(())
}

fn failure(fault: devcluster::Fault) -> Failure {
    match fault {
        devcluster::Fault::None { .. } | devcluster::Fault::NoSuchDaemon { .. } => {
            Failure::NotFound(fault.to_string())
        }
        devcluster::Fault::Exists { .. } => Failure::Unsafe(fault.to_string()),
        devcluster::Fault::NoProgram { .. }
        | devcluster::Fault::NoRoom { .. }
        | devcluster::Fault::Running { .. }
        | devcluster::Fault::Stuck { .. }
        | devcluster::Fault::System { .. }
        | devcluster::Fault::Damaged { .. } => Failure::error(fault.to_string()),
    }
}

fn open(at: &Dir) -> Result<Cluster, Failure> {
    Cluster::open(&at.dir).map_err(failure)
}

async fn bring_up(up: &Up, format: Format, patience: Duration) -> Result<(), Failure> {
    if ![1, 3].contains(&up.metads) {
        return Err(Failure::usage(format!(
            "--metads {}: use 1 or 3",
            up.metads
        )));
    }
    if up.store_bytes < DEVICE_BYTES_MIN || !up.store_bytes.is_multiple_of(4096) {
        return Err(Failure::usage(format!(
            "--store-bytes {}: use a multiple of 4096, at least {DEVICE_BYTES_MIN}",
            up.store_bytes
        )));
    }
    let mut cluster = match Cluster::open(&up.at.dir) {
        Ok(cluster) => cluster,
        Err(devcluster::Fault::None { .. }) => create(up)?,
        Err(fault) => return Err(failure(fault)),
    };
    let sleeping: Vec<String> = cluster
        .daemons()
        .iter()
        .filter(|d| d.alive().is_none())
        .map(|d| d.name.clone())
        .collect();
    for name in &sleeping {
        cluster.start(name).map_err(failure)?;
    }
    wait_until_serving(&cluster, patience).await?;
    show(&cluster, format);
    if format == Format::Table {
        let members: Vec<String> = cluster
            .metad_addresses()
            .iter()
            .map(ToString::to_string)
            .collect();
        println!("\nexport UBS_METAD={}", members.join(","));
    }
    Ok(())
}

fn create(up: &Up) -> Result<Cluster, Failure> {
    let programs = match &up.programs {
        Some(programs) => programs.clone(),
        None => std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.to_owned()))
            .ok_or_else(|| Failure::error("cannot find the daemons; use --programs"))?,
    };
    let plan = Plan {
        dir: up.at.dir.clone(),
        programs,
        metads: up.metads,
        storageds: up.storageds,
        store_bytes: up.store_bytes,
        clientd: !up.no_clientd,
    };
    Cluster::create(&plan).map_err(failure)
}

/// Waits until metad has a leader and every storaged and clientd has registered.
async fn wait_until_serving(cluster: &Cluster, patience: Duration) -> Result<(), Failure> {
    tokio::select! {
        ended = everybody_registered(cluster, patience) => ended,
        death = first_death(cluster) => Err(death),
    }
}

async fn everybody_registered(cluster: &Cluster, patience: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    let members = cluster.metad_addresses();
    let members = members.iter().map(ToString::to_string).collect();
    let mut config = ClientConfig::new(members, concat!("ubsctl/", env!("CARGO_PKG_VERSION")));
    config.deadline_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    let client = MetadClient::new(config);
    let count = |kind| cluster.daemons().iter().filter(|d| d.kind == kind).count();
    for (what, wanted) in [
        ("store", count(Kind::Storaged)),
        ("host", count(Kind::Clientd)),
    ] {
        let (mut seen, mut version) = (0, 0);
        while seen < wanted {
            let filter = Filter {
                name: String::new(),
                version,
            };
            let listed = async {
                Ok::<_, Failure>(if what == "store" {
                    let stores = client.stores(filter).await?;
                    (stores.list.len(), stores.version)
                } else {
                    let hosts = client.hosts(filter).await?;
                    (hosts.list.len(), hosts.version)
                })
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(listed) = tokio::time::timeout(left, listed).await else {
                return Err(Failure::StillGoing(format!(
                    "{seen} of {wanted} {what}s have registered after {} s; the logs that `ubsctl \
                     dev status` names say why",
                    patience.as_secs()
                )));
            };
            (seen, version) = listed?;
        }
    }
    Ok(())
}

/// Ends when a daemon does.
async fn first_death(cluster: &Cluster) -> Failure {
    loop {
        if let Some(dead) = cluster.daemons().iter().find(|d| d.alive().is_none()) {
            let (name, log) = (&dead.name, dead.log.display());
            let words = dead.last_words().unwrap_or_default();
            return Failure::error(format!("{name} has ended ({log}); it said: {words}"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn take_down(down: &Down) -> Result<(), Failure> {
    let mut cluster = open(&down.at)?;
    let names: Vec<String> = cluster
        .daemons()
        .iter()
        .rev()
        .map(|d| d.name.clone())
        .collect();
    for name in names {
        if cluster.stop(&name).map_err(failure)? {
            println!("{name} stopped");
        }
    }
    if down.wipe {
        let dir = cluster.dir().to_owned();
        std::fs::remove_dir_all(&dir)
            .map_err(|error| Failure::error(format!("cannot remove {}: {error}", dir.display())))?;
        println!("{} removed", dir.display());
    }
    Ok(())
}

fn show(cluster: &Cluster, format: Format) {
    let rows = cluster.daemons().iter().map(|d| {
        let pid = d.alive().map(|a| a.pid);
        Row {
            name: d.name.clone(),
            cells: vec![
                d.name.clone(),
                d.kind.program().to_owned(),
                pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                d.address.to_string(),
                d.metrics.to_string(),
                d.log.display().to_string(),
            ],
            json: json!({
                "name": d.name, "program": d.kind.program(), "pid": pid,
                "address": d.address, "metrics": d.metrics, "log": d.log, "config": d.config,
            }),
        }
    });
    let columns = &["NAME", "PROGRAM", "PID", "ADDRESS", "METRICS", "LOG"];
    Listing {
        kind: "DaemonList",
        columns,
        rows: rows.collect(),
    }
    .print(format);
}

//! A whole cluster of child processes in one directory, for trying out: `ubsctl dev`.

use crate::failure::Failure;
use crate::output::{Format, Listing, Row};
use control::client::{ClientConfig, MetadClient};
use devcluster::{Cluster, Kind, Plan};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What to do with it.
#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Create the cluster if the directory holds none, start what does not run, wait until it serves
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
    /// Size of each server's store, in bytes
    #[arg(long, default_value_t = 4 << 30, value_name = "BYTES")]
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
        devcluster::Fault::Running { .. }
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
    let deadline = Instant::now() + patience;
    let members = cluster
        .metad_addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut config = ClientConfig::new(members, concat!("ubsctl/", env!("CARGO_PKG_VERSION")));
    config.deadline_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    let client = MetadClient::new(config);
    let count = |kind| cluster.daemons().iter().filter(|d| d.kind == kind).count();
    let (servers, hosts) = (count(Kind::Storaged), count(Kind::Clientd));
    let mut version = 0;
    loop {
        let filter = control::api::Filter {
            name: String::new(),
            version,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let stores = tokio::time::timeout(left, client.stores(filter)).await;
        let seen = match stores {
            Ok(Ok(stores)) => {
                version = stores.version;
                stores.list.len()
            }
            Ok(Err(error)) => return Err(dead_or(cluster, error.into())),
            Err(_) => {
                let late = format!("the cluster does not serve after {} s", patience.as_secs());
                return Err(dead_or(cluster, Failure::StillGoing(late)));
            }
        };
        if seen >= servers {
            break;
        }
    }
    if hosts == 0 {
        return Ok(());
    }
    version = 0;
    loop {
        let filter = control::api::Filter {
            name: String::new(),
            version,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(list) = tokio::time::timeout(left, client.hosts(filter)).await else {
            let late = format!("clientd has not registered after {} s", patience.as_secs());
            return Err(dead_or(cluster, Failure::StillGoing(late)));
        };
        let list = list?;
        version = list.version;
        if list.list.len() >= hosts {
            return Ok(());
        }
    }
}

/// If a daemon has died, that is the better answer.
fn dead_or(cluster: &Cluster, otherwise: Failure) -> Failure {
    match cluster.daemons().iter().find(|d| d.alive().is_none()) {
        Some(dead) => {
            let log = dead.log.display();
            Failure::error(format!("{} has ended; the reason is in {log}", dead.name))
        }
        None => otherwise,
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

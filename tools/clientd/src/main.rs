//! clientd: volumes as `/dev/ublkbN`. One reactor thread for data, one thread for control.
#![forbid(unsafe_code)]

mod app;
mod bridge;
mod config;
mod control;
mod disks;
mod left_behind;
mod metrics;
mod refusal;
mod survival;

use crate::app::{CONTROL_TOKEN, Clientd, ROOM_DISKS, ROOM_INITIATOR, ROOM_VOLUMES};
use crate::bridge::{NEWS_MAX, ORDERS_MAX, Order};
use crate::config::ClientdConfig;
use crate::control::Control;
use crate::disks::Disks;
use crate::survival::Survival;
use anyhow::{Context, Result};
use daemon::identity::Identity;
use daemon::own::OwnDir;
use daemon::{Cli, service};
use nvmf::initiator::Config as InitiatorConfig;
use reactor::{Driver, Mailbox, UringConfig, UringDriver};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;
use volume::{Volumes, VolumesConfig};

/// NQN of a host's initiator.
pub(crate) fn host_nqn(host: Uuid) -> String {
    format!("{}{host}", ::control::core::CLIENTD_NQN_PREFIX)
}

fn main() -> ExitCode {
    service::abort_on_panic();
    let cli = Cli::of(
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        "Makes volumes of ublkstor block devices of this host",
    );
    let config: ClientdConfig = match daemon::config::load_or_exit(&cli) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match service::init_logging(&cli.log)
        .map_err(anyhow::Error::msg)
        .and_then(|()| serve(config))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clientd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts both threads. The devices outlive the process: the next clientd takes them over.
fn serve(config: ClientdConfig) -> Result<()> {
    let runtime_dir = &config.runtime_dir;
    let _own = [
        OwnDir::take(&config.data_dir)?,
        OwnDir::take(runtime_dir).context("runtime_dir")?,
    ];
    // Before the first thread: what is set here is inherited.
    ublk::protect_process(&[&config.data_dir, runtime_dir])?;
    let identity = Identity::load_or_create(&config.data_dir)?;
    let ring = UringConfig {
        arena: config.arena.to_reactor(),
        ..UringConfig::default()
    };
    let mut driver = UringDriver::new(ring)?;
    tracing::info!("{}", driver.features());
    let bell = driver.doorbell(CONTROL_TOKEN)?;
    let orders = Arc::new(Mailbox::new(ORDERS_MAX, bell));
    let (news, news_receiver) = mpsc::channel(NEWS_MAX);

    let (seed, _) = identity.uuid.as_u64_pair();
    let initiator = initiator(&config, identity.uuid);
    let volumes = Volumes::new(VolumesConfig {
        room: ROOM_VOLUMES,
        initiator,
        seed,
    });
    let disks = Disks::new(ROOM_DISKS, identity.uuid, config.ublk.clone());
    let survival = Survival::new(&config.runtime_dir);
    let mut app = Clientd::new(Arc::clone(&orders), news, volumes, disks, survival);
    let control = thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            let ended = run_control(config, identity, Arc::clone(&orders), news_receiver);
            // Sessions and devices end with the process, without being drained: that is what leaves
            // the devices to the next clientd.
            match ended {
                Ok(()) => std::process::exit(0),
                Err(error) => {
                    eprintln!("clientd: {error:#}");
                    std::process::exit(1)
                }
            }
        })?;
    driver.run(&mut app);
    drop(app);
    control
        .join()
        .map_err(|_| anyhow::anyhow!("the control thread panicked"))
}

fn initiator(config: &ClientdConfig, host: Uuid) -> InitiatorConfig {
    let mut initiator = InitiatorConfig::new(ROOM_INITIATOR, host_nqn(host), *host.as_bytes());
    initiator.kato_ms = config.paths.keep_alive_ms;
    initiator.header_digest = config.paths.header_digest;
    initiator.data_digest = config.paths.data_digest;
    initiator.command_deadline_ms = config.paths.command_deadline_ms;
    initiator
}

/// The control thread: metad, metrics, signals.
fn run_control(
    config: ClientdConfig,
    identity: Identity,
    orders: Arc<Mailbox<Order>>,
    news: bridge::NewsReceiver,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let metrics_listen = config.metrics_listen;
        let control = Control::new(config, identity, Arc::clone(&orders), news);
        let scraped = async {
            match metrics_listen {
                Some(listen) => daemon::metrics::serve(listen, || scrape(&orders))
                    .await
                    .with_context(|| format!("cannot serve /metrics on {listen}")),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = control.run() => ended,
            ended = scraped => ended,
            signal = service::stop_requested() => {
                tracing::info!(signal = signal?, "leaving the devices to the next clientd");
                service::notify_stopping();
                Ok(())
            }
        }
    })
}

async fn scrape(orders: &Mailbox<Order>) -> prometheus_client::registry::Registry {
    let (answer, answered) = oneshot::channel();
    if orders.send(Order::Metrics(answer)).is_err() {
        return prometheus_client::registry::Registry::default();
    }
    answered.await.unwrap_or_default()
}

//! storaged: serves stores over NVMe/TCP. One reactor thread for data, one thread for control.
#![forbid(unsafe_code)]

mod bridge;
mod config;
mod control;
mod hosts;
mod metrics;
mod remembered;
mod upkeep;

use crate::bridge::{MAINTENANCE_NEWS_MAX, NEWS_MAX, ORDERS_MAX};
use crate::config::{StoragedConfig, StoreConfig};
use crate::control::Control;
use anyhow::{Context, Result};
use daemon::identity::Identity;
use daemon::own::OwnDir;
use daemon::{Cli, service};
use nvmf::target::{Target, TargetConfig};
use reactor::{Driver, Mailbox, UringConfig, UringDriver};
use std::io::ErrorKind::AddrInUse;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use storaged::app::{CONTROL_TOKEN, ROOM_TARGET};
use storaged::{Fill, Hosting, Look, Order, Storaged, hosting};
use store::{PrepareError, Store};
use tokio::sync::{mpsc, oneshot};

/// How long what a predecessor has is waited for, and how often it is tried. The kernel takes the ring of a
/// storaged that was killed apart in its own time, and until then that ring has its port and its stores.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(10);
const PREDECESSOR_STEP: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    service::abort_on_panic();
    let cli = Cli::of(
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        "Serves the stores of a storage server over NVMe/TCP",
    );
    let config: StoragedConfig = match daemon::config::load_or_exit(&cli) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match service::init_logging(&cli.log)
        .map_err(anyhow::Error::msg)
        .and_then(|()| serve(config))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storaged: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts both threads and waits for both.
fn serve(config: StoragedConfig) -> Result<()> {
    let _own = OwnDir::take(&config.data_dir)?;
    wait_for_port(config.listen)?;
    wait_for_stores(&config.stores);
    let identity = Identity::load_or_create(&config.data_dir)?;
    let mut arena = config.arena.to_reactor();
    let [_, _, large] = &mut arena.slot_counts;
    *large += u32::try_from(hosting::COPY_SLOTS)?;
    let ring = UringConfig {
        arena,
        ..UringConfig::default()
    };
    let mut driver = UringDriver::new(ring)?;
    tracing::info!("{}", driver.features());
    let bell = driver.doorbell(CONTROL_TOKEN)?;
    let orders = Arc::new(Mailbox::new(ORDERS_MAX, bell));
    let (news, news_receiver) = mpsc::channel(NEWS_MAX);
    let (maintenance, maintenance_receiver) = mpsc::channel(MAINTENANCE_NEWS_MAX);
    let fills: Arc<[Fill]> = config.stores.iter().map(|_| Fill::default()).collect();

    let control = thread::Builder::new().name("control".to_owned()).spawn({
        let (config, orders, fills) = (config.clone(), Arc::clone(&orders), Arc::clone(&fills));
        let identity = identity.clone();
        let receivers = (news_receiver, maintenance_receiver);
        move || run_control(config, identity, orders, receivers, fills)
    })?;
    let subsystem = storaged::subsystem(identity.uuid);
    let target = Target::new(TargetConfig::new(ROOM_TARGET, subsystem));
    let scrub = config.scrub();
    let paths = config.stores.into_iter().map(|s| s.path).collect();
    let hosting = Hosting::new(identity.uuid);
    let tell = bridge::teller(news, maintenance);
    let listen = (config.listen, target);
    let app = Storaged::new((paths, fills), listen, hosting, orders, tell);
    let mut app = app.scrubbed(scrub).healed(identity.uuid);
    driver.run(&mut app);
    drop(app);
    control
        .join()
        .map_err(|_| anyhow::anyhow!("the control thread panicked"))?
}

/// Waits until the port is free, for a while.
fn wait_for_port(listen: SocketAddr) -> Result<()> {
    let since = Instant::now();
    loop {
        match TcpListener::bind(listen) {
            Ok(_) => return Ok(()),
            Err(why) if why.kind() == AddrInUse && since.elapsed() < PREDECESSOR_WAIT => {
                thread::sleep(PREDECESSOR_STEP);
            }
            Err(why) => {
                let what = format!("cannot listen on {listen} (`listen` in the configuration)");
                return Err(why).context(what);
            }
        }
    }
}

/// Waits until nobody else has the stores, for a while. One that somebody keeps does not open, and that says why.
fn wait_for_stores(stores: &[StoreConfig]) {
    let since = Instant::now();
    for store in stores {
        let in_use = || {
            let vacancy = Store::vacancy(&store.path);
            matches!(vacancy, Err(PrepareError::InUse { .. }))
        };
        let mut told = false;
        while since.elapsed() < PREDECESSOR_WAIT && in_use() {
            if !told {
                let path = store.path.display();
                tracing::info!(%path, "store in use by somebody else; waiting");
                told = true;
            }
            thread::sleep(PREDECESSOR_STEP);
        }
    }
}

/// The control thread: metad, metrics, signals.
fn run_control(
    config: StoragedConfig,
    identity: Identity,
    orders: Arc<Mailbox<Order>>,
    (news, maintenance): (bridge::NewsReceiver, bridge::MaintenanceReceiver),
    fills: Arc<[Fill]>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, async {
        let metrics_listen = config.metrics_listen;
        let names: Arc<[String]> = config
            .stores
            .iter()
            .map(|s| s.path.display().to_string())
            .collect();
        let control = Control::new(config, identity, Arc::clone(&orders), news, fills);
        let scraped = async {
            match metrics_listen {
                Some(listen) => daemon::metrics::serve(listen, || scrape(&orders, &names))
                    .await
                    .with_context(|| format!("cannot serve /metrics on {listen}")),
                None => std::future::pending().await,
            }
        };
        let run = control.run(maintenance);
        tokio::pin!(run);
        tokio::select! {
            ended = &mut run => return ended,
            ended = scraped => return ended,
            signal = service::stop_requested() => tracing::info!(signal = signal?, "asked to stop"),
        }
        service::notify_stopping();
        anyhow::ensure!(
            orders.send(Order::Stop).is_ok(),
            "the reactor does not take orders"
        );
        // The reactor ends when its stores are closed; its end of the news closes with it.
        run.await
    });
    if ended.is_err() {
        // The reactor must not go on alone; a full mailbox means that it is beyond orders anyway.
        drop(orders.send(Order::Stop));
    }
    ended
}

async fn scrape(
    orders: &Mailbox<Order>,
    names: &Arc<[String]>,
) -> prometheus_client::registry::Registry {
    let (answer, answered) = oneshot::channel();
    let names = Arc::clone(names);
    let look = Look(Box::new(move |figures| {
        // A scraper that has gone away needs no answer.
        drop(answer.send(metrics::registry(&names, figures)));
    }));
    if orders.send(Order::Look(look)).is_err() {
        return prometheus_client::registry::Registry::default();
    }
    answered.await.unwrap_or_default()
}

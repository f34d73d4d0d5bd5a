//! `ubsctl host …`: client hosts, those with a clientd and standard NVMe hosts.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Format, Listing, Row, document, say};
use clap::Subcommand;
use control::api::{HostView, Liveness};
use control::core::NewHost;
use serde_json::{Value, json};
use uuid::Uuid;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// All client hosts.
    Ls,
    /// Let a standard NVMe/TCP host connect to open-access volumes. (A clientd registers itself.)
    #[command(
        after_help = "Example: ubsctl host add web1 --nqn \"$(ssh web1 cat /etc/nvme/hostnqn)\""
    )]
    Add {
        /// A name for it.
        name: String,
        /// Its host NQN, as /etc/nvme/hostnqn there says.
        #[arg(long)]
        nqn: String,
    },
    /// Forget a host that has no volume: a standard host, or one whose clientd is gone for good.
    Rm {
        /// Name, id or uuid.
        host: String,
    },
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Ls => ls(context).await,
        Verb::Add { name, nqn } => add(context, name, nqn).await,
        Verb::Rm { host } => rm(context, &host).await,
    }
}

async fn ls(context: &Context) -> Result<(), Failure> {
    let hosts = context.client.hosts(named("")).await?.list;
    let rows = hosts.iter().map(|h| Row {
        name: h.name.clone(),
        cells: vec![
            h.name.clone(),
            h.id.to_string(),
            state(h),
            h.volumes.to_string(),
            h.host_nqn.clone(),
        ],
        json: to_json(h),
    });
    let columns = &["NAME", "ID", "STATE", "VOLUMES", "NQN"];
    Listing {
        kind: "HostList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
    Ok(())
}

/// `online` …, or `standard` for a host that reports to nobody.
fn state(h: &HostView) -> String {
    if h.standard {
        return "standard".into();
    }
    format!("{:?}", h.liveness).to_lowercase()
}

fn to_json(h: &HostView) -> Value {
    json!({
        "id": h.id.0,
        "uuid": h.uuid,
        "name": h.name,
        "hostNqn": h.host_nqn,
        "standard": h.standard,
        "liveness": format!("{:?}", h.liveness).to_lowercase(),
        "volumes": h.volumes,
    })
}

async fn add(context: &Context, name: String, nqn: String) -> Result<(), Failure> {
    let new = NewHost {
        uuid: Uuid::new_v4(),
        name: name.clone(),
        host_nqn: nqn.trim().to_owned(),
    };
    context.client.add_host(new).await?;
    let host = context.host(&name).await?;
    match context.format {
        Format::Table => say(&format!(
            "host {name} may connect to every open-access volume as {}",
            host.host_nqn
        )),
        Format::Json => document("Host", to_json(&host)),
        Format::Name => say(&name),
    }
    Ok(())
}

async fn rm(context: &Context, name: &str) -> Result<(), Failure> {
    let host = context.host(name).await?;
    if !host.standard && host.liveness == Liveness::Online {
        return Err(Failure::Unsafe(format!(
            "clientd runs on {name} and would register again; stop it first (`systemctl disable \
             --now clientd` there)"
        )));
    }
    context.client.remove_host(host.id).await?;
    say(&format!("host {name} is forgotten"));
    Ok(())
}

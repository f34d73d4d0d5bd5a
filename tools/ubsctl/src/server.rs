//! `ubsctl server …`: storage servers.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Listing, Row, one, say};
use clap::Subcommand;
use control::api::{Liveness, ServerView};
use control::core::Standing;
use serde_json::{Value, json};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// All servers.
    Ls,
    /// One server.
    Show {
        /// Name, id or uuid.
        server: String,
    },
    /// Let it keep what it has and take nothing new.
    Cordon {
        /// Name, id or uuid.
        server: String,
    },
    /// Let it take new slices again.
    Uncordon {
        /// Name, id or uuid.
        server: String,
    },
    /// Forget a server that has no stores and is gone for good.
    Rm {
        /// Name, id or uuid.
        server: String,
    },
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Ls => ls(context).await,
        Verb::Show { server } => show(context, &server).await,
        Verb::Cordon { server } => stand(context, &server, Standing::Cordoned).await,
        Verb::Uncordon { server } => stand(context, &server, Standing::Active).await,
        Verb::Rm { server } => rm(context, &server).await,
    }
}

async fn ls(context: &Context) -> Result<(), Failure> {
    let servers = context.client.servers(named("")).await?.list;
    let rows = servers.iter().map(|s| Row {
        name: s.name.clone(),
        cells: vec![
            s.name.clone(),
            s.id.to_string(),
            state(s),
            s.address.to_string(),
            labels(s),
        ],
        json: to_json(s),
    });
    let columns = &["NAME", "ID", "STATE", "ADDRESS", "LABELS"];
    Listing {
        kind: "ServerList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
    Ok(())
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let s = context.server(name).await?;
    let pairs = [
        ("name", s.name.clone()),
        ("id", s.id.to_string()),
        ("uuid", s.uuid.to_string()),
        ("state", state(&s)),
        ("address", s.address.to_string()),
        ("subsystem NQN", s.subsystem_nqn.clone()),
        ("labels", labels(&s)),
        ("stores", s.stores.to_string()),
    ];
    one(context.format, "Server", &s.name, &pairs, to_json(&s));
    Ok(())
}

async fn stand(context: &Context, name: &str, standing: Standing) -> Result<(), Failure> {
    let server = context.server(name).await?;
    context.client.set_standing(server.id, standing).await?;
    Ok(())
}

async fn rm(context: &Context, name: &str) -> Result<(), Failure> {
    let server = context.server(name).await?;
    if server.liveness == Liveness::Online {
        return Err(Failure::Unsafe(format!(
            "storaged runs on {name} and would register again; stop it first (`systemctl disable \
             --now storaged` there)"
        )));
    }
    context.client.remove_server(server.id).await?;
    say(&format!("server {name} is forgotten"));
    Ok(())
}

fn labels(s: &ServerView) -> String {
    if s.labels.is_empty() {
        return "-".into();
    }
    s.labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// `online`, `suspect,cordoned` …
pub(crate) fn state(s: &ServerView) -> String {
    let live = format!("{:?}", s.liveness).to_lowercase();
    match s.standing {
        Standing::Active => live,
        Standing::Cordoned => format!("{live},cordoned"),
    }
}

fn to_json(s: &ServerView) -> Value {
    json!({
        "id": s.id.0,
        "uuid": s.uuid,
        "name": s.name,
        "address": s.address.to_string(),
        "subsystemNqn": s.subsystem_nqn,
        "labels": s.labels,
        "cordoned": s.standing == Standing::Cordoned,
        "liveness": format!("{:?}", s.liveness).to_lowercase(),
        "stores": s.stores,
    })
}

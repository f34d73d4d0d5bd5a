//! `ubsctl host …`: client hosts.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Listing, Row};
use clap::Subcommand;
use serde_json::json;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// All client hosts.
    Ls,
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Ls => ls(context).await,
    }
}

async fn ls(context: &Context) -> Result<(), Failure> {
    let hosts = context.client.hosts(named("")).await?.list;
    let rows = hosts.iter().map(|h| {
        let live = format!("{:?}", h.liveness).to_lowercase();
        Row {
            name: h.name.clone(),
            cells: vec![
                h.name.clone(),
                h.id.to_string(),
                live.clone(),
                h.volumes.to_string(),
                h.host_nqn.clone(),
            ],
            json: json!({
                "id": h.id.0,
                "uuid": h.uuid,
                "name": h.name,
                "hostNqn": h.host_nqn,
                "liveness": live,
                "volumes": h.volumes,
            }),
        }
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

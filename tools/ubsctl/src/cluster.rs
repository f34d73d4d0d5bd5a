//! `ubsctl cluster …`: the members of metad.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Listing, Row, or_dash};
use clap::Subcommand;
use control::api::MemberStatus;
use control::client::MetadError;
use serde_json::{Value, json};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Each member as it sees itself; members that do not answer, too.
    Status,
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Status => status(context).await,
    }
}

/// What the answering members know, with a verdict: an error if there is no leader.
async fn status(context: &Context) -> Result<(), Failure> {
    let members = context.client.member_statuses().await;
    let led = members.iter().flat_map(|(_, s)| s).any(|s| s.leader != 0);
    let rows = members
        .iter()
        .map(|(address, status)| row(address, status))
        .collect();
    let columns = &[
        "MEMBER", "ADDRESS", "ROLE", "TERM", "LEADER", "APPLIED", "VERSION", "NOTE",
    ];
    Listing {
        kind: "MemberList",
        columns,
        rows,
    }
    .print(context.format);
    if led {
        return Ok(());
    }
    Err(Failure::error(
        "no member knows a leader; a majority of the members must run and reach each other",
    ))
}

fn row(address: &str, status: &Result<MemberStatus, MetadError>) -> Row {
    let s = match status {
        Ok(s) => s,
        Err(e) => {
            let mut cells = vec!["-".to_owned(), address.to_owned(), "unreachable".into()];
            cells.extend(["-", "-", "-", "-"].map(str::to_owned));
            cells.push(e.to_string());
            let json = json!({ "address": address, "role": "unreachable", "note": e.to_string() });
            return Row {
                name: address.to_owned(),
                cells,
                json,
            };
        }
    };
    Row {
        name: s.facts.id.to_string(),
        cells: vec![
            s.facts.id.to_string(),
            address.to_owned(),
            s.role.clone(),
            s.term.to_string(),
            if s.leader == 0 {
                "-".into()
            } else {
                s.leader.to_string()
            },
            s.applied_index.to_string(),
            s.version.clone(),
            or_dash(&s.note),
        ],
        json: member_json(address, s),
    }
}

fn member_json(address: &str, s: &MemberStatus) -> Value {
    json!({
        "id": s.facts.id,
        "address": address,
        "stage": format!("{:?}", s.facts.stage),
        "cluster": s.facts.cluster,
        "role": s.role,
        "term": s.term,
        "leader": s.leader,
        "appliedIndex": s.applied_index,
        "committedIndex": s.committed_index,
        "voters": s.voters,
        "members": s.members.iter().map(|m| json!({ "id": m.id, "address": m.address }))
            .collect::<Vec<_>>(),
        "version": s.version,
        "note": s.note,
    })
}

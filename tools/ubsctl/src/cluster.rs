//! `ubsctl cluster …`: the members of metad, and what holds for all stores.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Listing, Row, one, or_dash};
use crate::survey::Asked;
use clap::Subcommand;
use control::api::MemberStatus;
use control::client::MetadError;
use control::core::NewSpaceLimits;
use serde_json::{Value, json};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Each member as it sees itself; members that do not answer, too.
    Status,
    /// How far stores may be filled: shows the limits, or changes those that are given.
    #[command(
        after_help = "Example: ubsctl cluster limits --overcommit-percent 400 --high-water-percent 80\n\
        What is promised or in use already stays."
    )]
    Limits {
        /// What a store may promise to volumes, in percent of its size: 10 to 10000
        #[arg(long, value_name = "PERCENT")]
        overcommit_percent: Option<u32>,
        /// From so much use on a store is given no new volumes: 1 to 100
        #[arg(long, value_name = "PERCENT")]
        high_water_percent: Option<u32>,
    },
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Status => status(context).await,
        Verb::Limits {
            overcommit_percent,
            high_water_percent,
        } => limits(context, overcommit_percent, high_water_percent).await,
    }
}

async fn limits(
    context: &Context,
    overcommit_percent: Option<u32>,
    high_water_percent: Option<u32>,
) -> Result<(), Failure> {
    let client = &context.client;
    if overcommit_percent.is_some() || high_water_percent.is_some() {
        let new = NewSpaceLimits {
            overcommit_percent,
            high_water_percent,
        };
        client.set_space_limits(new).await?;
    }
    let cluster = client.cluster().await?;
    let space = cluster.space;
    let pairs = [
        ("overcommit", format!("{} %", space.overcommit_percent)),
        ("high water", format!("{} %", space.high_water_percent)),
    ];
    let json = json!({
        "overcommitPercent": space.overcommit_percent,
        "highWaterPercent": space.high_water_percent,
    });
    one(context.format, "ClusterLimits", &cluster.name, &pairs, json);
    Ok(())
}

/// What the answering members know, with a verdict: an error if there is no leader.
async fn status(context: &Context) -> Result<(), Failure> {
    let members = context.client.member_statuses().await;
    let standing = Standing::of(&members);
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
    match standing {
        Standing::Led => Ok(()),
        Standing::Leaderless => Err(Failure::error(
            "no member knows a leader; a majority of the members must run and reach each other",
        )),
        Standing::Minority { answering, voters } => Err(Failure::error(format!(
            "{answering} of {voters} members answer; a majority must run and reach each other"
        ))),
    }
}

/// Whether the members can decide anything. A leader that is cut off may still call itself one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is a leader with a majority.
    Led,
    /// Enough answer, and none knows a leader.
    Leaderless,
    /// Too few answer.
    Minority {
        /// So many.
        answering: usize,
        /// Of so many.
        voters: usize,
    },
}

impl Standing {
    pub(crate) fn of(asked: &[Asked]) -> Self {
        let answers: Vec<&MemberStatus> = asked.iter().flat_map(|(_, s)| s).collect();
        let answering = answers.len();
        let voters = answers.iter().map(|s| s.voters.len().max(s.members.len()));
        let voters = voters.max().unwrap_or(asked.len());
        if answering < voters / 2 + 1 {
            Self::Minority { answering, voters }
        } else if answers.iter().any(|s| s.leader != 0) {
            Self::Led
        } else {
            Self::Leaderless
        }
    }
}

fn row(address: &str, status: &Result<MemberStatus, MetadError>) -> Row {
    let s = match status {
        Ok(s) => s,
        Err(e) => {
            let mut cells = vec!["-".to_owned(), address.to_owned(), "unreachable".into()];
            cells.extend(["-", "-", "-", "-"].map(str::to_owned));
            cells.push(e.last());
            let json = json!({ "address": address, "role": "unreachable", "note": e.last() });
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

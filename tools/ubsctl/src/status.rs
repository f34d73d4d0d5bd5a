//! `ubsctl status`: the whole cluster on one screen.

use crate::context::Context;
use crate::doctor::{self, Level};
use crate::explain;
use crate::failure::Failure;
use crate::output::{Format, document, say, size};
use crate::survey::{Asked, Survey};
use control::api::Liveness;
use serde_json::{Value, json};
use std::collections::BTreeMap;

struct Seen {
    members: Vec<Asked>,
    survey: Survey,
}

pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    let survey = Survey::take(context).await?;
    let members = context.client.member_statuses().await;
    let seen = Seen { members, survey };
    match context.format {
        Format::Json => document("Status", to_json(&seen)),
        Format::Table => print(&seen),
        Format::Name => say(health(&seen)),
    }
    Ok(())
}

/// What needs attention, worst first: what the doctor would say of the cluster.
fn attention(seen: &Seen) -> Vec<String> {
    let mut found = doctor::members(&seen.members);
    found.extend(doctor::survey(&seen.survey));
    found.sort_by_key(|f| std::cmp::Reverse(f.level));
    let needing = found.into_iter().filter(|f| f.level >= Level::Warning);
    needing.map(|f| f.found).collect()
}

fn silent_members(seen: &Seen) -> Vec<&str> {
    let silent = seen.members.iter().filter(|(_, status)| status.is_err());
    silent.map(|(address, _)| address.as_str()).collect()
}

fn health(seen: &Seen) -> &'static str {
    if attention(seen).is_empty() {
        "ok"
    } else {
        "attention"
    }
}

fn states(seen: &Seen) -> BTreeMap<String, usize> {
    let mut states = BTreeMap::new();
    for v in &seen.survey.volumes {
        *states.entry(explain::state(v)).or_insert(0) += 1;
    }
    states
}

fn print(seen: &Seen) {
    let s = &seen.survey;
    let c = &s.cluster;
    let members = c.members.len();
    say(&format!("cluster   {} ({})", c.name, c.uuid));
    say(&format!("health    {}", health(seen)));
    say(&format!(
        "metad     {} of {members} members answer, member {} leads",
        members.saturating_sub(silent_members(seen).len()),
        c.leader.id
    ));
    let online = s.servers.iter().filter(|s| s.liveness == Liveness::Online);
    say(&format!(
        "servers   {} of {} online",
        online.count(),
        s.servers.len()
    ));
    let total: u64 = s.stores.iter().map(|s| s.size_bytes).sum();
    let reports = s.stores.iter().flat_map(|s| &s.report);
    let used: u64 = reports.map(|r| r.used_bytes).sum();
    let promised: u64 = s.stores.iter().map(|s| s.promised_bytes).sum();
    say(&format!(
        "stores    {}: {} used of {}, {} promised",
        s.stores.len(),
        size(used),
        size(total),
        size(promised)
    ));
    let states: Vec<String> = states(seen)
        .into_iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let count = s.volumes.len();
    let colon = if count == 0 { "" } else { ": " };
    say(&format!("volumes   {count}{colon}{}", states.join(", ")));
    for r in &s.resilvers.running {
        let percent = r.report.done_bytes * 100 / r.report.total_bytes.max(1);
        let rate = size(r.report.bytes_per_s);
        let (volume, store) = (&r.volume_name, &r.store_name);
        say(&format!(
            "resilver  {volume} to {store}: {percent} %, {rate}/s"
        ));
    }
    for line in attention(seen) {
        say(&format!("attention {line}"));
    }
}

fn to_json(seen: &Seen) -> Value {
    let s = &seen.survey;
    json!({
        "cluster": { "name": s.cluster.name, "uuid": s.cluster.uuid },
        "health": health(seen),
        "attention": attention(seen),
        "leader": { "id": s.cluster.leader.id, "address": s.cluster.leader.address },
        "members": s.cluster.members.len(),
        "silentMembers": silent_members(seen),
        "servers": s.servers.len(),
        "serversOnline": s.servers.iter().filter(|s| s.liveness == Liveness::Online).count(),
        "stores": s.stores.len(),
        "sizeBytes": s.stores.iter().map(|s| s.size_bytes).sum::<u64>(),
        "usedBytes": s.stores.iter().flat_map(|s| &s.report).map(|r| r.used_bytes).sum::<u64>(),
        "promisedBytes": s.stores.iter().map(|s| s.promised_bytes).sum::<u64>(),
        "volumes": states(seen),
        "resilversRunning": s.resilvers.running.len(),
    })
}

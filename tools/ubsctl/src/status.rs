//! `ubsctl status`: the whole cluster on one screen.

use crate::context::{Context, named};
use crate::explain;
use crate::failure::Failure;
use crate::output::{Format, document, say, size};
use control::api::{ClusterView, Liveness, Resilvers, ServerView, StoreView, VolumeView};
use control::client::MetadError;
use serde_json::{Value, json};
use std::collections::BTreeMap;

struct Seen {
    cluster: ClusterView,
    silent_members: Vec<String>,
    servers: Vec<ServerView>,
    stores: Vec<StoreView>,
    volumes: Vec<VolumeView>,
    resilvers: Resilvers,
}

pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    let client = &context.client;
    let cluster = client.cluster().await?;
    let silent = |(address, status): (String, Result<_, MetadError>)| status.err().map(|_| address);
    let seen = Seen {
        silent_members: client
            .member_statuses()
            .await
            .into_iter()
            .filter_map(silent)
            .collect(),
        servers: client.servers(named("")).await?.list,
        stores: client.stores(named("")).await?.list,
        volumes: client.volumes(named("")).await?.list,
        resilvers: client.resilvers(named("")).await?,
        cluster,
    };
    match context.format {
        Format::Json => document("Status", to_json(&seen)),
        Format::Table => print(&seen),
        Format::Name => say(health(&seen)),
    }
    Ok(())
}

/// What needs attention, most important first.
fn attention(seen: &Seen) -> Vec<String> {
    let mut lines = Vec::new();
    for v in &seen.volumes {
        let state = explain::state(v);
        if !matches!(state.as_str(), "online" | "detached" | "open") {
            lines.push(format!(
                "volume {} is {state}, {} in sync",
                v.name,
                explain::replicas(v)
            ));
        }
    }
    for s in seen
        .servers
        .iter()
        .filter(|s| s.liveness >= Liveness::Suspect)
    {
        lines.push(format!(
            "server {} is {}",
            s.name,
            format!("{:?}", s.liveness).to_lowercase()
        ));
    }
    for address in &seen.silent_members {
        lines.push(format!("metad at {address} does not answer"));
    }
    lines
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
    for v in &seen.volumes {
        *states.entry(explain::state(v)).or_insert(0) += 1;
    }
    states
}

fn print(seen: &Seen) {
    let c = &seen.cluster;
    let members = c.members.len();
    say(&format!("cluster   {} ({})", c.name, c.uuid));
    say(&format!("health    {}", health(seen)));
    say(&format!(
        "metad     {} of {members} members answer, member {} leads",
        members.saturating_sub(seen.silent_members.len()),
        c.leader.id
    ));
    let online = seen
        .servers
        .iter()
        .filter(|s| s.liveness == Liveness::Online)
        .count();
    say(&format!(
        "servers   {online} of {} online",
        seen.servers.len()
    ));
    let total: u64 = seen.stores.iter().map(|s| s.size_bytes).sum();
    let used: u64 = seen
        .stores
        .iter()
        .flat_map(|s| &s.report)
        .map(|r| r.used_bytes)
        .sum();
    let promised: u64 = seen.stores.iter().map(|s| s.promised_bytes).sum();
    say(&format!(
        "stores    {}: {} used of {}, {} promised",
        seen.stores.len(),
        size(used),
        size(total),
        size(promised)
    ));
    let states: Vec<String> = states(seen)
        .into_iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    say(&format!(
        "volumes   {}: {}",
        seen.volumes.len(),
        states.join(", ")
    ));
    for r in &seen.resilvers.running {
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
    json!({
        "cluster": { "name": seen.cluster.name, "uuid": seen.cluster.uuid },
        "health": health(seen),
        "attention": attention(seen),
        "leader": { "id": seen.cluster.leader.id, "address": seen.cluster.leader.address },
        "members": seen.cluster.members.len(),
        "silentMembers": seen.silent_members,
        "servers": seen.servers.len(),
        "serversOnline":
            seen.servers.iter().filter(|s| s.liveness == Liveness::Online).count(),
        "stores": seen.stores.len(),
        "sizeBytes": seen.stores.iter().map(|s| s.size_bytes).sum::<u64>(),
        "usedBytes":
            seen.stores.iter().flat_map(|s| &s.report).map(|r| r.used_bytes).sum::<u64>(),
        "promisedBytes": seen.stores.iter().map(|s| s.promised_bytes).sum::<u64>(),
        "volumes": states(seen),
        "resilversRunning": seen.resilvers.running.len(),
    })
}

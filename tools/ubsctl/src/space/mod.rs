//! `ubsctl volume space`, `ubsctl store space`: what the space of stores is for, as the stores themselves say.

mod asker;
#[cfg(test)]
mod test;

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Format, Listing, Row, one, say, size, table};
use asker::{Answer, Question};
use control::api::{SliceView, StoreView, VolumeView};
use control::core::{Phase, reader_host_nqn};
use serde_json::{Value, json};
use shardmap::units::{Generation, StoreId};
use std::collections::BTreeMap;

/// What space is for, in bytes. The first three sum up to what is allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Space {
    live_bytes: u64,
    snapshots_bytes: u64,
    reclaimable_bytes: u64,
    /// By snapshot: what only it keeps.
    exclusive: BTreeMap<Generation, u64>,
}

impl Space {
    fn add(&mut self, other: &Self) {
        self.live_bytes += other.live_bytes;
        self.snapshots_bytes += other.snapshots_bytes;
        self.reclaimable_bytes += other.reclaimable_bytes;
        for (generation, bytes) in &other.exclusive {
            *self.exclusive.entry(*generation).or_default() += bytes;
        }
    }

    const fn allocated_bytes(&self) -> u64 {
        self.live_bytes + self.snapshots_bytes + self.reclaimable_bytes
    }

    fn json(&self) -> Value {
        json!({
            "allocatedBytes": self.allocated_bytes(),
            "liveBytes": self.live_bytes,
            "snapshotsBytes": self.snapshots_bytes,
            "reclaimableBytes": self.reclaimable_bytes,
        })
    }

    fn cells(&self) -> [String; 4] {
        [
            size(self.live_bytes),
            size(self.snapshots_bytes),
            size(self.reclaimable_bytes),
            size(self.allocated_bytes()),
        ]
    }
}

/// What the slices of volumes say.
struct Asked<'a> {
    slices: Vec<(&'a VolumeView, &'a SliceView)>,
    answers: Vec<Answer>,
}

impl<'a> Asked<'a> {
    /// Asks the storageds of all slices that are there and for which `wanted`.
    async fn ask(
        context: &Context,
        volumes: &'a [VolumeView],
        wanted: impl Fn(&SliceView) -> bool,
    ) -> Result<Self, Failure> {
        let servers = context.client.servers(named("")).await?.list;
        let nqns: BTreeMap<_, _> = servers.iter().map(|s| (s.id, &s.subsystem_nqn)).collect();
        // A view has the slices of another volume.
        let real = volumes
            .iter()
            .filter(|v| v.shows.is_empty() && v.phase != Phase::Deleting);
        let slices = real.flat_map(|v| v.slices.iter().map(move |s| (v, s)));
        let slices: Vec<_> = slices.filter(|(_, s)| s.confirmed && wanted(s)).collect();
        let mut questions = Vec::new();
        for (_, slice) in &slices {
            let nqn = nqns.get(&slice.server);
            let nqn = nqn.ok_or_else(|| Failure::not_found("server", &slice.server_name))?;
            questions.push(Question {
                nsid: slice.nsid,
                address: slice.address,
                subsystem_nqn: (*nqn).clone(),
            });
        }
        let nqn = reader_host_nqn(context.client.cluster().await?.uuid);
        let answers = asker::ask(nqn, questions, context.timeout).await;
        Ok(Self {
            slices,
            answers: answers.map_err(Failure::Error)?,
        })
    }

    /// The sum of those who answered and for which `of` holds, and how many of them did not.
    fn sum(&self, of: impl Fn(&VolumeView, &SliceView) -> bool) -> (Space, usize) {
        let (mut sum, mut missing) = (Space::default(), 0);
        for ((volume, slice), answer) in self.slices.iter().zip(&self.answers) {
            match answer {
                Ok(space) if of(volume, slice) => sum.add(space),
                Err(_) if of(volume, slice) => missing += 1,
                Ok(_) | Err(_) => {}
            }
        }
        (sum, missing)
    }

    /// That some have not answered is the command's end, after what is known was printed.
    fn complete(&self) -> Result<(), Failure> {
        let slices = self.slices.iter().zip(&self.answers);
        let why = slices.filter_map(|((volume, slice), answer)| {
            let why = answer.as_ref().err()?;
            Some(format!("{} on {}: {why}", volume.name, slice.server_name))
        });
        let why: Vec<String> = why.collect();
        let Some(first) = why.first() else {
            return Ok(());
        };
        Err(Failure::Error(format!(
            "{} of {} slices are not counted, see MISSING; the first is {first}; see `ubsctl doctor`",
            why.len(),
            self.slices.len()
        )))
    }
}

/// One volume, or all.
pub(crate) async fn volumes(context: &Context, name: Option<&str>) -> Result<(), Failure> {
    if let Some(name) = name {
        return volume(context, name).await;
    }
    let mut volumes = context.client.volumes(named("")).await?.list;
    volumes.retain(|v| v.shows.is_empty());
    let asked = Asked::ask(context, &volumes, |_| true).await?;
    let rows = volumes.iter().map(|v| {
        let (sum, missing) = asked.sum(|of, _| of.id == v.id);
        let mut cells = vec![v.name.clone(), size(provisioned(v))];
        cells.extend(sum.cells());
        cells.push(v.map.shape.replicas.to_string());
        cells.push(missing.to_string());
        Row {
            name: v.name.clone(),
            cells,
            json: volume_json(v, &sum, missing),
        }
    });
    let columns = &[
        "VOLUME",
        "PROVISIONED",
        "LIVE",
        "SNAPSHOTS",
        "RECLAIMABLE",
        "ALLOCATED",
        "REPLICAS",
        "MISSING",
    ];
    Listing {
        kind: "VolumeSpaceList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
    asked.complete()
}

fn provisioned(v: &VolumeView) -> u64 {
    v.map.size_bytes()
}

/// Sums over the replicas, and what that is of the volume itself.
fn volume_json(v: &VolumeView, sum: &Space, missing: usize) -> Value {
    let mut body = sum.json();
    let replicas = u64::from(v.map.shape.replicas);
    let more = json!({
        "volume": v.name,
        "provisionedBytes": provisioned(v),
        "replicas": replicas,
        "logicalLiveBytes": sum.live_bytes / replicas,
        "logicalSnapshotsBytes": sum.snapshots_bytes / replicas,
        "missingSlices": missing,
    });
    if let (Some(into), Value::Object(more)) = (body.as_object_mut(), more) {
        into.extend(more);
    }
    body
}

async fn volume(context: &Context, name: &str) -> Result<(), Failure> {
    let volume = context.volume(name).await?;
    if !volume.shows.is_empty() {
        let shown = volume.shows.split('@').next().unwrap_or_default();
        return Err(Failure::error(format!(
            "{name} shows snapshot {} and has no space of its own; see `ubsctl volume space {shown}`",
            volume.shows
        )));
    }
    let names = context
        .client
        .snapshots(named(&volume.id.to_string()))
        .await?
        .list;
    let volumes = [volume];
    let [volume] = &volumes;
    let asked = Asked::ask(context, &volumes, |_| true).await?;
    let (sum, missing) = asked.sum(|_, _| true);
    let replicas = u64::from(volume.map.shape.replicas);
    let both = |bytes: u64| {
        format!(
            "{} × {replicas} replicas = {}",
            size(bytes / replicas),
            size(bytes)
        )
    };
    let pairs = [
        ("volume", volume.name.clone()),
        ("provisioned", both(provisioned(volume) * replicas)),
        ("live", both(sum.live_bytes)),
        ("snapshots", both(sum.snapshots_bytes)),
        ("reclaimable", both(sum.reclaimable_bytes)),
        ("allocated", both(sum.allocated_bytes())),
        ("missing slices", missing.to_string()),
    ];
    let mut snapshots: BTreeMap<Generation, String> = BTreeMap::new();
    snapshots.extend(names.into_iter().map(|s| (s.generation, s.name)));
    for generation in sum.exclusive.keys() {
        // Kept for its clones, or not dropped by its stores yet.
        snapshots
            .entry(*generation)
            .or_insert_with(|| "(deleted)".into());
    }
    let frees = |generation| sum.exclusive.get(generation).copied().unwrap_or(0);
    let rows: Vec<Vec<String>> = snapshots
        .iter()
        .map(|(g, name)| vec![name.clone(), size(frees(g) / replicas), size(frees(g))])
        .collect();
    let mut body = volume_json(volume, &sum, missing);
    body["snapshots"] = snapshots
        .iter()
        .map(|(g, name)| json!({ "name": name, "generation": g.0, "freesBytes": frees(g) }))
        .collect();
    one(context.format, "VolumeSpace", &volume.name, &pairs, body);
    if context.format == Format::Table && !rows.is_empty() {
        let columns = ["SNAPSHOT", "FREES", "ON ALL REPLICAS"];
        say(&format!("\n{}", table(&columns, rows.iter())));
    }
    asked.complete()
}

/// One store, or all.
pub(crate) async fn stores(context: &Context, name: Option<&str>) -> Result<(), Failure> {
    let stores = context.client.stores(named(name.unwrap_or(""))).await?.list;
    if let (Some(name), true) = (name, stores.is_empty()) {
        return Err(Failure::not_found("store", name));
    }
    let volumes = context.client.volumes(named("")).await?.list;
    let wanted: Vec<StoreId> = stores.iter().map(|s| s.id).collect();
    let asked = Asked::ask(context, &volumes, |s| wanted.contains(&s.store)).await?;
    let rows = stores.iter().map(|s: &StoreView| {
        let (sum, missing) = asked.sum(|_, slice| slice.store == s.id);
        let id = s.id.to_string();
        let mut cells = vec![id.clone(), s.server_name.clone(), size(s.size_bytes)];
        cells.extend(sum.cells());
        cells.push(size(s.promised_bytes));
        cells.push(missing.to_string());
        let mut json = sum.json();
        json["id"] = s.id.0.into();
        json["server"] = s.server_name.clone().into();
        json["sizeBytes"] = s.size_bytes.into();
        json["promisedBytes"] = s.promised_bytes.into();
        json["missingSlices"] = missing.into();
        Row {
            name: id,
            cells,
            json,
        }
    });
    let columns = &[
        "STORE",
        "SERVER",
        "SIZE",
        "LIVE",
        "SNAPSHOTS",
        "RECLAIMABLE",
        "ALLOCATED",
        "PROMISED",
        "MISSING",
    ];
    Listing {
        kind: "StoreSpaceList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
    asked.complete()
}

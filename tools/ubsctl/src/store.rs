//! `ubsctl store …`: the disks and files of the servers.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::fsck;
use crate::grow;
use crate::output::Format;
use crate::output::{Listing, Row, document, one, or_dash, parse_size, say, size};
use crate::space;
use ::store::{PrepareError, PrepareOptions, Store, StoreInfo};
use clap::Subcommand;
use control::api::{Liveness, StoreHealth, StoreView};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use uuid::Uuid;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// All stores.
    Ls,
    /// One store: by id or uuid as metad knows it, or by path as its superblock says.
    Show {
        /// Id, uuid, or a path on this machine.
        store: String,
    },
    /// What the space of stores is for, as they say: see `ubsctl volume space`.
    Space {
        /// Id or uuid [default: all stores]
        store: Option<String>,
    },
    /// Let a store take in what its device has become larger by, while it serves.
    #[command(
        after_help = "Enlarge the device first, on its server: `lvextend`, a larger partition, \
        `fallocate -l` for a file. A store does not shrink."
    )]
    Grow {
        /// Id or uuid.
        store: String,
    },
    /// Forget a store that is gone for good and that no volume needs.
    Rm {
        /// Id or uuid.
        store: String,
    },
    /// Check a store of this machine that no storaged has open; changes nothing.
    #[command(
        after_help = "Ends with 0 if it is sound. What is damaged is listed; reads through clientd \
        and a resilver write such blocks again."
    )]
    Fsck {
        /// Block device or file.
        path: PathBuf,
        /// Read all data, too, and compare it with its checksums.
        #[arg(long)]
        data: bool,
    },
    /// Make a device or file of this machine a store. What is on it is lost.
    #[command(
        after_help = "Examples:\n  ubsctl store prepare /dev/disk/by-id/nvme-X\n  \
        ubsctl store prepare /srv/store.img --size 100GiB"
    )]
    Prepare {
        /// Block device or file.
        path: PathBuf,
        /// Size of a file that does not exist yet, as 10GiB.
        #[arg(long, value_parser = parse_size, value_name = "SIZE")]
        size: Option<u64>,
        /// Overwrite a file system, partition table or store that is there.
        #[arg(long)]
        wipe: bool,
        /// The cluster it shall belong to [default: the one that metad answers for]
        #[arg(long, value_name = "UUID")]
        cluster: Option<Uuid>,
        /// Keep no checksums of blocks: rot is not noticed; cannot be changed later
        #[arg(long)]
        no_checksums: bool,
    },
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Ls => ls(context).await,
        Verb::Show { store } if store.contains('/') => inspect(context, Path::new(&store)),
        Verb::Show { store } => show(context, &store).await,
        Verb::Space { store } => space::stores(context, store.as_deref()).await,
        Verb::Grow { store } => grow::run(context, &find(context, &store).await?).await,
        Verb::Rm { store } => rm(context, &store).await,
        Verb::Fsck { path, data } => fsck::run(context, &path, data),
        Verb::Prepare {
            path,
            size,
            wipe,
            cluster,
            no_checksums,
        } => {
            // What only metad knows is filled in later.
            let options = PrepareOptions {
                cluster: cluster.unwrap_or_default(),
                store: Uuid::new_v4(),
                size_bytes: size,
                wipe,
                journal_bytes: None,
                checksums: !no_checksums,
            };
            prepare(context, &path, options).await
        }
    }
}

async fn ls(context: &Context) -> Result<(), Failure> {
    let stores = context.client.stores(named("")).await?.list;
    let rows = stores.iter().map(|s| Row {
        name: s.id.to_string(),
        cells: vec![
            s.id.to_string(),
            s.server_name.clone(),
            state(s),
            size(s.size_bytes),
            s.report
                .as_ref()
                .map_or_else(|| "-".into(), |r| size(r.used_bytes)),
            size(s.promised_bytes),
            s.slices.to_string(),
        ],
        json: to_json(s),
    });
    let columns = &[
        "STORE", "SERVER", "STATE", "SIZE", "USED", "PROMISED", "SLICES",
    ];
    Listing {
        kind: "StoreList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
    Ok(())
}

async fn find(context: &Context, name: &str) -> Result<StoreView, Failure> {
    let found = context.client.stores(named(name)).await?.list;
    let first = found.into_iter().next();
    first.ok_or_else(|| Failure::not_found("store", name))
}

async fn rm(context: &Context, name: &str) -> Result<(), Failure> {
    let s = find(context, name).await?;
    let serves = s
        .report
        .as_ref()
        .is_some_and(|r| r.health != StoreHealth::Faulted);
    if s.liveness == Liveness::Online && serves {
        return Err(Failure::Unsafe(format!(
            "{} is served by {} and would register again; take it out of storaged.toml there and \
             restart storaged first",
            s.id, s.server_name
        )));
    }
    context.client.remove_store(s.id).await?;
    say(&format!("{} on {} is forgotten", s.id, s.server_name));
    Ok(())
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let s = &find(context, name).await?;
    let used = s
        .report
        .as_ref()
        .map_or_else(|| "-".into(), |r| size(r.used_bytes));
    let pairs = [
        ("store", s.id.to_string()),
        ("uuid", s.uuid.to_string()),
        ("server", s.server_name.clone()),
        ("state", state(s)),
        ("size", size(s.size_bytes)),
        ("used", used),
        ("promised", size(s.promised_bytes)),
        ("slices", s.slices.to_string()),
        ("note", or_dash(s.report.as_ref().map_or("", |r| &r.note))),
    ];
    one(
        context.format,
        "Store",
        &s.id.to_string(),
        &pairs,
        to_json(s),
    );
    Ok(())
}

/// `online`, `faulted`, or how its server is if that does not report.
fn state(s: &StoreView) -> String {
    match (&s.report, s.liveness) {
        (Some(report), Liveness::Online) => format!("{:?}", report.health).to_lowercase(),
        (_, liveness) => format!("{liveness:?}").to_lowercase(),
    }
}

fn to_json(s: &StoreView) -> Value {
    json!({
        "id": s.id.0,
        "uuid": s.uuid,
        "server": s.server_name,
        "state": state(s),
        "sizeBytes": s.size_bytes,
        "usedBytes": s.report.as_ref().map(|r| r.used_bytes),
        "promisedBytes": s.promised_bytes,
        "slices": s.slices,
        "note": s.report.as_ref().map(|r| r.note.clone()),
    })
}

fn inspect(context: &Context, path: &Path) -> Result<(), Failure> {
    let info = Store::inspect(path).map_err(|e| refusal(&e))?;
    let pairs = [
        ("path", path.display().to_string()),
        ("uuid", info.store.to_string()),
        ("cluster", info.cluster.to_string()),
        ("format", info.version.to_string()),
        ("device", device(&info)),
        ("capacity", size(info.capacity_bytes)),
        ("checksums", info.checksums.to_string()),
    ];
    let name = info.store.to_string();
    one(
        context.format,
        "PreparedStore",
        &name,
        &pairs,
        info_json(path, &info),
    );
    Ok(())
}

/// `100 GiB`, and what of it is not used.
fn device(info: &StoreInfo) -> String {
    match info.unused_bytes() {
        0 => size(info.device_bytes_now),
        unused => format!(
            "{}, {} of it not used: see `ubsctl store grow`",
            size(info.device_bytes_now),
            size(unused)
        ),
    }
}

fn info_json(path: &Path, info: &StoreInfo) -> Value {
    json!({
        "path": path.display().to_string(),
        "uuid": info.store,
        "cluster": info.cluster,
        "formatVersion": info.version,
        "deviceBytes": info.device_bytes,
        "deviceBytesNow": info.device_bytes_now,
        "growths": info.growths,
        "capacityBytes": info.capacity_bytes,
        "checksums": info.checksums,
    })
}

async fn prepare(
    context: &Context,
    path: &Path,
    mut options: PrepareOptions,
) -> Result<(), Failure> {
    if options.cluster.is_nil() {
        options.cluster = context.client.cluster().await?.uuid;
    }
    let info = Store::prepare(path, &options).map_err(|e| refusal(&e))?;
    match context.format {
        Format::Table => say(&format!(
            "{}: store {} of cluster {}, {} for data{}",
            path.display(),
            info.store,
            info.cluster,
            size(info.capacity_bytes),
            if info.checksums { "" } else { ", no checksums" }
        )),
        Format::Json => document("PreparedStore", info_json(path, &info)),
        Format::Name => say(&info.store.to_string()),
    }
    Ok(())
}

/// What would lose somebody's data is refused for safety; the rest is an error.
fn refusal(error: &PrepareError) -> Failure {
    let text = error.to_string();
    if matches!(
        error,
        PrepareError::InUse { .. } | PrepareError::Occupied { .. }
    ) {
        Failure::Unsafe(text)
    } else if matches!(
        error,
        PrepareError::Missing { .. } | PrepareError::Absent { .. }
    ) {
        Failure::NotFound(text)
    } else {
        Failure::Error(text)
    }
}

//! `ubsctl volume …`.

use crate::context::{Context, named};
use crate::explain;
use crate::failure::Failure;
use crate::output::{Format, Listing, Row, document, one, or_dash, parse_size, say, size, table};
use crate::space;
use clap::{Subcommand, ValueEnum};
use control::api::{PlanView, VolumeHealth, VolumeView};
use control::core::{Domain, NewVolume, Phase};
use serde_json::{Value, json};
use shardmap::map::Layout;
use shardmap::units::{BLOCK_BYTES, VolumeId};
use std::collections::BTreeSet;
use uuid::Uuid;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Make a volume.
    #[command(
        after_help = "Examples:\n  ubsctl volume create data --size 100GiB --wait\n  \
        ubsctl volume create data --size 100GiB --dry-run   # where it would go\n  \
        ubsctl volume create plain --size 10GiB --replicas 1 --stride 1 --open-access"
    )]
    Create(Create),
    /// All volumes.
    Ls,
    /// One volume.
    Show {
        /// Name or uuid.
        volume: String,
    },
    /// What the space of a volume is for, as its stores say: what it shows, what only its snapshots keep,
    /// what is on its way back.
    #[command(
        after_help = "LIVE would be left if all snapshots were deleted, SNAPSHOTS would be freed \
        by that, RECLAIMABLE comes back by itself; they sum up to ALLOCATED, on all replicas. With \
        a name: what the deletion of each snapshot alone would free, too."
    )]
    Space {
        /// Name or uuid [default: all volumes]
        volume: Option<String>,
    },
    /// Why a volume is as it is, what would mend it, what is safe to stop.
    Explain {
        /// Name or uuid.
        volume: String,
    },
    /// Delete a volume and everything on it.
    Delete {
        /// Name or uuid.
        volume: String,
        /// Really delete it.
        #[arg(long)]
        yes: bool,
        /// And its snapshots; otherwise a volume that has some is kept.
        #[arg(long)]
        with_snapshots: bool,
        /// Wait until every server has let it go.
        #[arg(long)]
        wait: bool,
    },
    /// Make a volume larger, while it is used. The file system on it is grown afterwards.
    #[command(
        after_help = "Examples:\n  ubsctl volume grow data --size 200GiB --wait\n  \
        resize2fs /dev/ublkb0      # ext4, mounted or not\n  xfs_growfs /mnt/data       # xfs, \
        mounted\nIt has the new size when all its stores have grown. A device that is live grows \
        with it from Linux 6.16 on; on earlier kernels detach and attach it."
    )]
    Grow {
        /// Name or uuid.
        volume: String,
        /// Its new size, as 200GiB.
        #[arg(long, value_parser = parse_size, allow_hyphen_values = true)]
        size: u64,
        /// Wait until it has the size.
        #[arg(long)]
        wait: bool,
    },
    /// Attach a volume to a host as a block device.
    #[command(after_help = "Example: mkfs.ext4 \"$(ubsctl volume attach data --on web1 --wait)\"")]
    Attach {
        /// Name or uuid.
        volume: String,
        /// The host.
        #[arg(long, value_name = "HOST")]
        on: String,
        /// Wait for the device and print its path.
        #[arg(long)]
        wait: bool,
    },
    /// Detach a volume from its host: unmount it there first.
    Detach {
        /// Name or uuid.
        volume: String,
        /// Wait until the device is gone.
        #[arg(long)]
        wait: bool,
    },
    /// Take a volume from a host that is gone for good. What it had not flushed is lost.
    ForceDetach {
        /// Name or uuid.
        volume: String,
        /// Really take it.
        #[arg(long)]
        yes: bool,
    },
}

/// `volume create`.
#[derive(clap::Args)]
pub(crate) struct Create {
    /// Its name.
    name: String,
    /// Its size, as 10GiB.
    #[arg(long, value_parser = parse_size, allow_hyphen_values = true)]
    size: u64,
    /// Replicas of each shard.
    #[arg(long, default_value_t = 3)]
    replicas: u8,
    /// In-sync replicas below which IO is held.
    #[arg(long, default_value_t = 1)]
    min_in_sync: u8,
    /// Shard size.
    #[arg(long, value_parser = parse_size, default_value = "64MiB")]
    shard: u64,
    /// How shards are dealt over the stores.
    #[arg(long, value_enum, default_value_t = LayoutArg::Ring)]
    layout: LayoutArg,
    /// Stores in its set [default: up to twice the replicas]
    #[arg(long)]
    stride: Option<u16>,
    /// What must differ between its stores: store, server, or the key of a server label.
    #[arg(long, default_value = "server")]
    domain: String,
    /// Open its single slice to standard NVMe/TCP hosts instead of attaching it.
    #[arg(long)]
    open_access: bool,
    /// Only say where it would go.
    #[arg(long)]
    dry_run: bool,
    /// Wait until it is ready.
    #[arg(long)]
    wait: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LayoutArg {
    /// Every neighbour helps a resilver.
    Ring,
    /// Fixed groups: fewest combinations of servers whose loss loses data.
    Block,
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Create(create) => self::create(context, create).await,
        Verb::Ls => ls(context).await,
        Verb::Show { volume } => show(context, &volume).await,
        Verb::Space { volume } => space::volumes(context, volume.as_deref()).await,
        Verb::Explain { volume } => explain::volume(context, &volume).await,
        Verb::Delete {
            volume,
            yes,
            with_snapshots,
            wait,
        } => {
            confirm_delete(context, &volume, yes).await?;
            delete(context, &volume, with_snapshots, wait).await
        }
        Verb::Grow { volume, size, wait } => grow(context, &volume, size, wait).await,
        Verb::Attach { volume, on, wait } => attach(context, &volume, &on, wait).await,
        Verb::Detach { volume, wait } => detach(context, &volume, wait).await,
        Verb::ForceDetach { volume, yes } => force_detach(context, &volume, yes).await,
    }
}

async fn create(context: &Context, create: Create) -> Result<(), Failure> {
    let id = VolumeId(Uuid::new_v4().into_bytes());
    let (name, dry_run, wait) = (create.name.clone(), create.dry_run, create.wait);
    let new = NewVolume {
        id,
        name: create.name,
        size_bytes: create.size,
        replicas: create.replicas,
        shard_bytes: create.shard,
        layout: match create.layout {
            LayoutArg::Ring => Layout::Ring,
            LayoutArg::Block => Layout::Block,
        },
        stride: create.stride,
        min_in_sync: create.min_in_sync,
        domain: match create.domain.as_str() {
            "store" => Domain::Store,
            "server" => Domain::Server,
            label => Domain::Label(label.to_owned()),
        },
        open_access: create.open_access,
        avoid: BTreeSet::new(),
    };
    if dry_run {
        let plan = context.client.plan_volume(new).await?;
        print_plan(context, &name, &plan);
        return Ok(());
    }
    context.client.create_volume(new).await?;
    if wait {
        until_ready(context, &name).await?;
    }
    show_made(context, &name, id);
    Ok(())
}

/// Waits for the slices of a volume that was just made.
pub(crate) async fn until_ready(context: &Context, name: &str) -> Result<(), Failure> {
    let ready = |v: Option<&VolumeView>| Ok(v.filter(|v| v.phase == Phase::Ready).map(drop));
    still_going(context.follow_volume(name, ready).await?, || {
        format!(
            "volume {name} is not ready yet; its servers are still making it, see `ubsctl \
             volume explain {name}`"
        )
    })
}

fn show_made(context: &Context, name: &str, id: VolumeId) {
    match context.format {
        Format::Table => say(&format!("volume {name} made ({id})")),
        Format::Json => document("Volume", json!({ "name": name, "id": id.to_string() })),
        Format::Name => say(name),
    }
}

fn still_going<T>(end: Option<T>, sentence: impl FnOnce() -> String) -> Result<T, Failure> {
    end.ok_or_else(|| Failure::StillGoing(sentence()))
}

fn print_plan(context: &Context, name: &str, plan: &PlanView) {
    let places = || {
        plan.stores
            .iter()
            .zip(&plan.server_names)
            .zip(&plan.slice_bytes)
    };
    if context.format == Format::Json {
        let places: Vec<Value> = places()
            .map(|((store, server), bytes)| {
                json!({ "store": store.0, "server": server, "sliceBytes": bytes })
            })
            .collect();
        let body = json!({
            "name": name,
            "reusedSet": plan.reused_set,
            "stride": plan.shape.stride,
            "replicas": plan.shape.replicas,
            "places": places,
            "copysets": plan.copysets,
            "lossProbability": plan.loss_probability,
            "resilverSeconds": plan.resilver_seconds,
        });
        return document("VolumePlan", body);
    }
    let rows: Vec<Vec<String>> = places()
        .map(|((store, server), bytes)| vec![store.to_string(), server.clone(), size(*bytes)])
        .collect();
    say(&table(&["STORE", "SERVER", "SLICE"], rows.iter()));
    let set = match plan.reused_set {
        0 => "a new stride set".to_owned(),
        set => format!("set-{set} of the catalogue"),
    };
    say(&format!(
        "volume {name} would take {set}, {} copysets",
        plan.copysets
    ));
    for (lost, p) in (1..).zip(&plan.loss_probability) {
        say(&format!(
            "{lost} lost servers at once: data lost with probability {p:.4}"
        ));
    }
    say(&format!(
        "a full replacement store is resilvered in about {} s",
        plan.resilver_seconds
    ));
}

async fn ls(context: &Context) -> Result<(), Failure> {
    let volumes = context.client.volumes(named("")).await?.list;
    let rows = volumes.iter().map(|v| Row {
        name: v.name.clone(),
        cells: vec![
            v.name.clone(),
            size(v.map.size_bytes()),
            explain::state(v),
            explain::replicas(v),
            or_dash(if v.held_by.is_empty() {
                &v.desired_on
            } else {
                &v.held_by
            }),
            or_dash(v.report.as_ref().map_or("", |r| &r.device)),
        ],
        json: to_json(v),
    });
    let columns = &["NAME", "SIZE", "STATE", "IN SYNC", "HOST", "DEVICE"];
    Listing {
        kind: "VolumeList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
    Ok(())
}

async fn grow(context: &Context, name: &str, to: u64, wait: bool) -> Result<(), Failure> {
    let volume = context.volume(name).await?;
    context.client.grow_volume(volume.id, to).await?;
    if !wait {
        return Ok(());
    }
    let grown = |v: Option<&VolumeView>| match v {
        None => Err(Failure::not_found("volume", name)),
        Some(v) => Ok((v.map.size_bytes() >= to).then_some(())),
    };
    let id = volume.id.to_string();
    let ended = context.follow_volume(&id, grown).await?;
    ended.ok_or_else(|| {
        Failure::StillGoing(format!(
            "volume {name} is still growing; see `ubsctl volume explain {name}`"
        ))
    })
}

/// `100 GiB`, and what it grows to.
fn size_of(v: &VolumeView) -> String {
    let now = size(v.map.size_bytes());
    match v.growing_to {
        0 => now,
        to => format!("{now}, growing to {}", size(to * u64::from(BLOCK_BYTES))),
    }
}

/// `3, NAME pending`.
fn snapshots(v: &VolumeView) -> String {
    match v.pending_snapshot.as_str() {
        "" => v.snapshots.to_string(),
        pending => format!("{}, {pending} pending", v.snapshots),
    }
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let v = context.volume(name).await?;
    let shape = v.map.shape;
    let pairs = [
        ("name", v.name.clone()),
        ("id", v.id.to_string()),
        ("size", size_of(&v)),
        ("state", explain::state(&v)),
        ("in sync", explain::replicas(&v)),
        (
            "replicas",
            format!("{} (IO held below {})", shape.replicas, v.min_in_sync),
        ),
        (
            "layout",
            format!(
                "{:?} over {} stores (set-{})",
                shape.layout, shape.stride, v.set
            ),
        ),
        ("wanted on", or_dash(&v.desired_on)),
        ("attached on", or_dash(&v.held_by)),
        ("brought up to date by", or_dash(&v.maintained_by)),
        (
            "device",
            or_dash(v.report.as_ref().map_or("", |r| &r.device)),
        ),
        ("snapshots", snapshots(&v)),
        ("rolls back to", or_dash(&v.rolls_back_to)),
        ("shows", or_dash(&v.shows)),
        ("clone of", or_dash(&v.clone_of)),
        ("membership", format!("{}, {}", v.epoch, v.seq)),
    ];
    one(context.format, "Volume", &v.name, &pairs, to_json(&v));
    if context.format == Format::Table {
        let rows: Vec<Vec<String>> = v
            .slices
            .iter()
            .map(|s| {
                let live = format!("{:?}", s.liveness).to_lowercase();
                let sync = if s.in_sync { "in sync" } else { "out of sync" };
                let made = if s.confirmed { sync } else { "not made yet" };
                let (server, nsid) = (s.server_name.clone(), s.nsid.0.to_string());
                vec![s.store.to_string(), server, live, nsid, made.into()]
            })
            .collect();
        say(&format!(
            "\n{}",
            table(
                &["STORE", "SERVER", "SERVER IS", "NSID", "SLICE"],
                rows.iter()
            )
        ));
        if let Some(slice) = v.slices.first().filter(|_| v.open_access) {
            let server = context.server(&slice.server.to_string()).await?;
            let (ip, port) = (slice.address.ip(), slice.address.port());
            let nqn = server.subsystem_nqn;
            say("\non a host that was added (`ubsctl host add`), as root:");
            say(&format!("nvme connect -t tcp -a {ip} -s {port} -n {nqn}"));
        }
    }
    Ok(())
}

/// Refuses what was not meant, with what it would have cost.
async fn confirm_delete(context: &Context, name: &str, yes: bool) -> Result<(), Failure> {
    let volume = context.volume(name).await?;
    if !yes {
        return Err(Failure::Unsafe(format!(
            "deleting volume {} loses its {}; say --yes",
            volume.name,
            size(volume.map.size_bytes())
        )));
    }
    Ok(())
}

async fn delete(
    context: &Context,
    name: &str,
    with_snapshots: bool,
    wait: bool,
) -> Result<(), Failure> {
    let volume = context.volume(name).await?;
    let client = &context.client;
    client.delete_volume(volume.id, with_snapshots).await?;
    if !wait {
        return Ok(());
    }
    let id = volume.id.to_string();
    let gone = |v: Option<&VolumeView>| Ok(v.is_none().then_some(()));
    still_going(context.follow_volume(&id, gone).await?, || {
        format!("volume {name} is being deleted; a server that is away lets it go when it is back")
    })
}

async fn attach(context: &Context, name: &str, on: &str, wait: bool) -> Result<(), Failure> {
    let volume = context.volume(name).await?;
    let host = context.host(on).await?;
    context.client.want_attached(volume.id, host.id).await?;
    if !wait {
        return Ok(());
    }
    let id = volume.id.to_string();
    let device = context.follow_volume(&id, |v| device(name, on, v)).await?;
    let device = still_going(device, || {
        format!("volume {name} is not attached on {on} yet; see `ubsctl volume explain {name}`")
    })?;
    match context.format {
        Format::Json => {
            document(
                "Attachment",
                json!({ "volume": name, "host": on, "device": device }),
            );
        }
        Format::Table | Format::Name => say(&device),
    }
    Ok(())
}

/// The path of the device once it serves.
fn device(name: &str, on: &str, v: Option<&VolumeView>) -> Result<Option<String>, Failure> {
    let Some(v) = v else {
        return Err(Failure::not_found("volume", name));
    };
    let Some(report) = v.report.as_ref().filter(|_| v.held_by == on) else {
        return Ok(None);
    };
    match report.health {
        VolumeHealth::Failed => Err(Failure::error(format!(
            "volume {name} failed on {on}: {}",
            or_dash(&report.note)
        ))),
        VolumeHealth::Online | VolumeHealth::Degraded | VolumeHealth::Stalled => {
            Ok(Some(report.device.clone()).filter(|d| !d.is_empty()))
        }
        VolumeHealth::Attaching | VolumeHealth::Detaching => Ok(None),
    }
}

async fn detach(context: &Context, name: &str, wait: bool) -> Result<(), Failure> {
    let volume = context.volume(name).await?;
    context.client.want_detached(volume.id).await?;
    if !wait {
        return Ok(());
    }
    let id = volume.id.to_string();
    let free = |v: Option<&VolumeView>| Ok(v.is_none_or(|v| v.held_by.is_empty()).then_some(()));
    let ended = context.follow_volume(&id, free).await?;
    if ended.is_some() {
        return Ok(());
    }
    let why = context.volume(name).await?.report.map(|r| r.note);
    let why = why.filter(|note| !note.is_empty()).unwrap_or_else(|| {
        "something may have its device open (`fuser -vm`), or its host is away".into()
    });
    Err(Failure::StillGoing(format!(
        "volume {name} is still attached and goes when it can: {why}"
    )))
}

async fn force_detach(context: &Context, name: &str, yes: bool) -> Result<(), Failure> {
    let volume = context.volume(name).await?;
    if !yes && !volume.held_by.is_empty() {
        return Err(Failure::Unsafe(format!(
            "taking volume {name} from {} loses what it has not flushed; say --yes if that host \
             is gone for good",
            volume.held_by
        )));
    }
    context.client.force_detach(volume.id).await?;
    Ok(())
}

pub(crate) fn to_json(v: &VolumeView) -> Value {
    let slices: Vec<Value> = v
        .slices
        .iter()
        .map(|s| {
            json!({
                "nsid": s.nsid.0,
                "store": s.store.0,
                "server": s.server_name,
                "address": s.address.to_string(),
                "position": s.position,
                "confirmed": s.confirmed,
                "inSync": s.in_sync,
                "serverLiveness": format!("{:?}", s.liveness).to_lowercase(),
            })
        })
        .collect();
    json!({
        "id": v.id.to_string(),
        "name": v.name,
        "sizeBytes": v.map.size_bytes(),
        "shardBytes": u64::from(v.map.shape.shard_blocks) * 4096,
        "replicas": v.map.shape.replicas,
        "minInSync": v.min_in_sync,
        "stride": v.map.shape.stride,
        "layout": format!("{:?}", v.map.shape.layout).to_lowercase(),
        "openAccess": v.open_access,
        "phase": format!("{:?}", v.phase).to_lowercase(),
        "state": explain::state(v),
        "desiredOn": v.desired_on,
        "attachedOn": v.held_by,
        "maintainedBy": v.maintained_by,
        "device": v.report.as_ref().map(|r| r.device.clone()),
        "health": v.report.as_ref().map(|r| format!("{:?}", r.health).to_lowercase()),
        "note": v.report.as_ref().map(|r| r.note.clone()),
        "epoch": v.epoch.0,
        "seq": v.seq.0,
        "headGeneration": v.head.0,
        "snapshots": v.snapshots,
        "pendingSnapshot": v.pending_snapshot,
        "pendingFor": v.pending_for,
        "rollsBackTo": v.rolls_back_to,
        "growingToBytes": Some(v.growing_to * u64::from(BLOCK_BYTES)).filter(|b| *b > 0),
        "shows": Some(&v.shows).filter(|s| !s.is_empty()),
        "cloneOf": Some(&v.clone_of).filter(|s| !s.is_empty()),
        "slices": slices,
    })
}

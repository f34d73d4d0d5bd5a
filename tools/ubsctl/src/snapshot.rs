//! `ubsctl snapshot …`.

mod delta;
mod export;
mod import;
mod reader;
mod rollback;

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Listing, Row, one, time};
use clap::Subcommand;
use control::api::{SnapshotView, VolumeView};
use control::core::Origin;
use serde_json::{Value, json};
use shardmap::units::VolumeId;
use std::collections::BTreeSet;
use std::path::PathBuf;
use uuid::Uuid;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Keep what a volume holds now under a name. Nothing is copied, and IO goes on.
    #[command(
        after_help = "Examples:\n  ubsctl snapshot create data before-upgrade\n  \
        ubsctl snapshot create data@nightly log@nightly    # of one moment, both or none\n  \
        ubsctl snapshot create data,log nightly            # the same\nOf several volumes: what was \
        acknowledged on one of them before something began on another is there if that is. Writes to \
        all of them wait for it, at most 3 s; if that is not enough there is no snapshot at all."
    )]
    Create {
        /// VOLUME@NAME..., or volumes, separated by commas, and the name.
        #[arg(required = true, value_name = "VOLUME@NAME")]
        snapshots: Vec<String>,
        /// Do not wait until it is complete.
        #[arg(long)]
        no_wait: bool,
    },
    /// The snapshots of a volume, or all.
    Ls {
        /// Name or uuid.
        volume: Option<String>,
    },
    /// One snapshot.
    Show {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Which,
    },
    /// Make a read-only volume that shows a complete snapshot; attach and delete it as any volume.
    #[command(after_help = "Examples:\n  ubsctl snapshot view data@mon data-mon\n  \
        ubsctl volume attach data-mon --on HOST --wait    # then mount it read-only\n  \
        ubsctl volume delete data-mon\nNothing is copied. The snapshot cannot be deleted while a \
        view shows it. A file system that was in use when the snapshot was made wants its journal \
        replayed: mount ext4 with -o ro,noload, xfs with -o ro,norecovery.")]
    View {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Which,
        /// Name of the new volume.
        #[arg(value_name = "VIEW")]
        name: String,
    },
    /// Make a volume that begins with what a complete snapshot shows, and is a volume like any other.
    #[command(
        after_help = "Examples:\n  ubsctl snapshot clone data@mon data2 --wait\n  \
        ubsctl volume attach data2 --on HOST --wait\nNothing is copied: data2 takes space for what is \
        written to it, and lies on the stores of data. Volume data cannot be deleted while it has \
        clones; snapshot data@mon can, and its space comes back with the last clone of it. A clone \
        has the UUIDs of the file system that was copied: mount xfs with -o nouuid."
    )]
    Clone {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Which,
        /// Name of the new volume.
        #[arg(value_name = "CLONE")]
        name: String,
        /// Wait until it is ready.
        #[arg(long)]
        wait: bool,
    },
    /// Let a detached volume show again what a complete snapshot of it shows. What it shows now is kept.
    #[command(after_help = "Examples:\n  ubsctl volume detach data --wait\n  \
        ubsctl snapshot rollback data@mon --yes --wait --timeout 3600\n  \
        ubsctl snapshot rollback data@mon --keep-as bad --yes\n  \
        ubsctl snapshot rollback data@bad --yes            # undo that, also half way\nA storaged \
        writes what differs, which takes space in the stores, and nothing else; newer snapshots stay. \
        Nobody can attach the volume until that is done. To look before, use `snapshot view`; to \
        have both, `snapshot clone`.")]
    Rollback {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Which,
        /// Name of the snapshot of what the volume shows now [default: before-rollback- and the time, UTC]
        #[arg(long, value_name = "NAME")]
        keep_as: Option<String>,
        /// Really roll it back.
        #[arg(long)]
        yes: bool,
        /// Wait until it is done.
        #[arg(long)]
        wait: bool,
    },
    /// What a snapshot holds otherwise than an earlier one: ranges of the volume, from the maps.
    #[command(
        after_help = "Examples:\n  ubsctl snapshot diff data@tue --since mon\n  \
        ubsctl snapshot diff data@mon -o json     # all that it holds\nWhat was written again with \
        the same bytes counts as changed. OFFSET and LENGTH are bytes."
    )]
    Diff {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Which,
        /// Name of the earlier snapshot of the volume; without it, one in which all is zero.
        #[arg(long, value_name = "NAME")]
        since: Option<String>,
    },
    /// Write a snapshot, or what changed since an earlier one, to a file or a pipe.
    #[command(
        after_help = "Examples:\n  ubsctl snapshot export data@mon --to mon.ubs\n  \
        ubsctl snapshot export data@tue --since mon --to tue.ubs\n  \
        ubsctl snapshot export data@tue | ssh vault ubsctl snapshot import --to data.img\nThe \
        stream carries checksums and is refused if it was cut off. Whoever has the volume is not \
        disturbed; this machine must reach the storage servers."
    )]
    Export {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Which,
        /// Name of the earlier snapshot of the volume; without it all of this one.
        #[arg(long, value_name = "NAME")]
        since: Option<String>,
        /// A new file; `-` is standard output.
        #[arg(long, value_name = "FILE", default_value = "-")]
        to: PathBuf,
    },
    /// Write an exported snapshot to a block device or a file.
    #[command(
        after_help = "Examples:\n  ubsctl snapshot import --from mon.ubs --to data.img\n  \
        ubsctl snapshot import --from tue.ubs --to data.img     # on top of that\n  \
        ubsctl snapshot import --from mon.ubs --to /dev/ublkb3  # into an attached volume\nStreams \
        of changes are imported in the order of their snapshots onto what the earlier ones left, \
        which must not have been written since."
    )]
    Import {
        /// An exported file; `-` is standard input.
        #[arg(long, value_name = "FILE", default_value = "-")]
        from: PathBuf,
        /// A block device that nobody uses, at least as large as the volume was, or a file.
        #[arg(long, value_name = "PATH")]
        to: PathBuf,
        /// Give up what the target holds.
        #[arg(long)]
        overwrite: bool,
    },
    /// Give up a snapshot. What only it has comes back in the background; the others stay.
    Rm {
        /// Which.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Which,
    },
}

/// A snapshot as people name it.
#[derive(Clone)]
pub(crate) struct Which {
    volume: String,
    name: String,
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('@') {
            Some((volume, name)) if !volume.is_empty() && !name.is_empty() => Ok(Self {
                volume: volume.into(),
                name: name.into(),
            }),
            _ => Err(format!(
                "{text:?} does not name a snapshot; use VOLUME@NAME"
            )),
        }
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.name)
    }
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Create { snapshots, no_wait } => {
            let (volumes, name) = volumes_and_name(&snapshots)?;
            create(context, &volumes, name, !no_wait).await
        }
        Verb::Ls { volume } => ls(context, volume.as_deref()).await,
        Verb::Show { snapshot } => show(context, &snapshot).await,
        Verb::View { snapshot, name } => view(context, &snapshot, name).await,
        Verb::Clone {
            snapshot,
            name,
            wait,
        } => clone(context, &snapshot, name, wait).await,
        Verb::Rollback {
            snapshot,
            keep_as,
            yes,
            wait,
        } => rollback::run(context, &snapshot, keep_as, yes, wait).await,
        Verb::Diff { snapshot, since } => export::diff(context, &snapshot, since.as_deref()).await,
        Verb::Export {
            snapshot,
            since,
            to,
        } => export::export(context, &snapshot, since.as_deref(), &to).await,
        Verb::Import {
            from,
            to,
            overwrite,
        } => import::run(&from, &to, overwrite, context.format),
        Verb::Rm { snapshot } => rm(context, &snapshot).await,
    }
}

/// Which volumes are to have a snapshot, and its name: `a@s b@s`, or `a,b s`.
fn volumes_and_name(words: &[String]) -> Result<(Vec<&str>, &str), Failure> {
    if let [volumes, name] = words
        && !volumes.contains('@')
        && !name.contains('@')
    {
        return Ok((volumes.split(',').collect(), name));
    }
    let named = words.iter().map(|word| match word.split_once('@') {
        Some((volume, name)) if !volume.is_empty() && !name.is_empty() => Ok((volume, name)),
        _ => Err(Failure::usage(format!(
            "{word:?} does not name a snapshot; use VOLUME@NAME, for each volume"
        ))),
    });
    let named: Vec<_> = named.collect::<Result<_, _>>()?;
    let name = named.first().map_or("", |(_, name)| name);
    match named.iter().find(|(_, other)| *other != name) {
        None => Ok((named.iter().map(|(volume, _)| *volume).collect(), name)),
        Some((_, other)) => Err(Failure::usage(format!(
            "snapshots of one moment have one name, these are called {name} and {other}; use one name, \
             or make them one after the other"
        ))),
    }
}

async fn create(
    context: &Context,
    volumes: &[&str],
    name: &str,
    wait: bool,
) -> Result<(), Failure> {
    let mut found: Vec<VolumeView> = Vec::new();
    for volume in volumes {
        found.push(context.volume(volume).await?);
    }
    let ids: BTreeSet<VolumeId> = found.iter().map(|v| v.id).collect();
    if ids.len() < found.len() {
        return Err(Failure::usage("a volume is named twice; name it once"));
    }
    context.client.create_snapshot(ids, name.to_owned()).await?;
    let alone = found.len() == 1;
    let mut made = Vec::new();
    for volume in &found {
        let which = Which {
            volume: volume.id.to_string(),
            name: name.to_owned(),
        };
        let shown = format!("{}@{name}", volume.name);
        made.push(if wait {
            until_complete(context, &which, &shown, alone).await?
        } else {
            snapshot(context, &which).await?
        });
    }
    print(context, &made);
    Ok(())
}

/// `shown`: how it is called in sentences. `alone`: it is not one of several.
async fn until_complete(
    context: &Context,
    which: &Which,
    shown: &str,
    alone: bool,
) -> Result<SnapshotView, Failure> {
    let complete = |s: Option<&SnapshotView>| match s {
        None if alone => Err(Failure::not_found("snapshot", shown)),
        None => Err(Failure::error(format!(
            "snapshot {shown} and those with it were given up: not all volumes could be cut at one moment; \
             try again, `ubsctl events` says which volume changed hands or was late"
        ))),
        Some(s) => Ok(Some(s.clone()).filter(|s| !s.pending)),
    };
    let ended = context
        .follow_snapshot(&which.to_string(), complete)
        .await?;
    ended.ok_or_else(|| {
        let (volume, _) = shown.split_once('@').unwrap_or((shown, ""));
        Failure::StillGoing(format!(
            "snapshot {shown} is still pending and completes when it can; see `ubsctl volume \
             explain {volume}`"
        ))
    })
}

async fn snapshot(context: &Context, which: &Which) -> Result<SnapshotView, Failure> {
    let found = context.client.snapshots(named(&which.to_string())).await?;
    let found = found.list.into_iter().next();
    found.ok_or_else(|| Failure::not_found("snapshot", &which.to_string()))
}

async fn ls(context: &Context, volume: Option<&str>) -> Result<(), Failure> {
    let of = match volume {
        // So that a name that is mistyped is not an empty list.
        Some(volume) => context.volume(volume).await?.id.to_string(),
        None => String::new(),
    };
    let mut all = context.client.snapshots(named(&of)).await?.list;
    all.sort_by(|a, b| (&a.volume_name, a.generation).cmp(&(&b.volume_name, b.generation)));
    print(context, &all);
    Ok(())
}

fn print(context: &Context, all: &[SnapshotView]) {
    let rows = all.iter().map(|s| Row {
        name: full_name(s),
        cells: vec![
            s.volume_name.clone(),
            s.name.clone(),
            state(s).into(),
            s.generation.0.to_string(),
            time(s.created_unix_ms),
        ],
        json: to_json(s),
    });
    let columns = &["VOLUME", "NAME", "STATE", "GENERATION", "CREATED"];
    Listing {
        kind: "SnapshotList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
}

async fn show(context: &Context, which: &Which) -> Result<(), Failure> {
    let s = snapshot(context, which).await?;
    let pairs = [
        ("volume", s.volume_name.clone()),
        ("name", s.name.clone()),
        ("state", state(&s).into()),
        ("generation", s.generation.0.to_string()),
        ("created", time(s.created_unix_ms)),
    ];
    let name = full_name(&s);
    one(context.format, "Snapshot", &name, &pairs, to_json(&s));
    Ok(())
}

async fn view(context: &Context, which: &Which, name: String) -> Result<(), Failure> {
    let s = snapshot(context, which).await?;
    let id = VolumeId(*Uuid::new_v4().as_bytes());
    let origin = Origin {
        volume: s.volume,
        generation: s.generation,
    };
    context.client.create_view(id, name.clone(), origin).await?;
    let pairs = [("view", name.clone()), ("shows", full_name(&s))];
    let json = json!({ "name": name, "id": id.to_string(), "shows": full_name(&s) });
    one(context.format, "View", &name, &pairs, json);
    Ok(())
}

async fn clone(context: &Context, which: &Which, name: String, wait: bool) -> Result<(), Failure> {
    let s = snapshot(context, which).await?;
    let id = VolumeId(*Uuid::new_v4().as_bytes());
    let origin = Origin {
        volume: s.volume,
        generation: s.generation,
    };
    context
        .client
        .create_clone(id, name.clone(), origin)
        .await?;
    if wait {
        crate::volume::until_ready(context, &name).await?;
    }
    let pairs = [("clone", name.clone()), ("clone of", full_name(&s))];
    let json = json!({ "name": name, "id": id.to_string(), "cloneOf": full_name(&s) });
    one(context.format, "Clone", &name, &pairs, json);
    Ok(())
}

async fn rm(context: &Context, which: &Which) -> Result<(), Failure> {
    let s = snapshot(context, which).await?;
    context
        .client
        .delete_snapshot(s.volume, s.generation)
        .await?;
    Ok(())
}

fn full_name(s: &SnapshotView) -> String {
    format!("{}@{}", s.volume_name, s.name)
}

const fn state(s: &SnapshotView) -> &'static str {
    if s.pending { "pending" } else { "complete" }
}

fn to_json(s: &SnapshotView) -> Value {
    json!({
        "volume": s.volume_name,
        "volumeId": s.volume.to_string(),
        "name": s.name,
        "state": state(s),
        "generation": s.generation.0,
        "createdUnixMs": s.created_unix_ms,
    })
}

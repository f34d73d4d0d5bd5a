//! `ubsctl snapshot rollback`.

use super::{Which, full_name, snapshot};
use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Format, one, say, time};
use control::api::{SnapshotView, VolumeView};
use control::core::{EventRecord, Phase, Subject};
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde_json::json;

/// `keep_as`: name of the snapshot of what the volume shows now; without it one by the time.
pub(super) async fn run(
    context: &Context,
    which: &Which,
    keep_as: Option<String>,
    yes: bool,
    wait: bool,
) -> Result<(), Failure> {
    let to = snapshot(context, which).await?;
    confirm(&to, yes)?;
    let keep_as = match keep_as {
        Some(name) => name,
        None => {
            let of = named(&to.volume.to_string());
            free_name(&context.client.snapshots(of).await?.list, Timestamp::now())
        }
    };
    let client = &context.client;
    // Its own events come after these.
    let newest = if wait {
        client.events(0, false).await?.last().map_or(0, |e| e.index)
    } else {
        0
    };
    client
        .roll_back(to.volume, to.generation, keep_as.clone())
        .await?;
    let kept = format!("{}@{keep_as}", to.volume_name);
    // Before the wait, so that whoever ends that knows how to undo what goes on.
    tell(context, &to, &kept);
    if wait {
        until_done(context, (&to, newest), &kept).await?;
        if context.format == Format::Table {
            let (volume, to) = (&to.volume_name, full_name(&to));
            say(&format!("volume {volume} shows again what {to} shows"));
        }
    }
    Ok(())
}

/// Refuses what was not meant, with what it would change.
fn confirm(to: &SnapshotView, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let (volume, made) = (&to.volume_name, time(to.created_unix_ms));
    Err(Failure::Unsafe(format!(
        "rolling volume {volume} back to {} takes from it what was written since {made}, which a \
         snapshot keeps, and nobody can attach it until that is done; say --yes",
        full_name(to)
    )))
}

/// A name by this machine's clock, which may stand still or be set back.
fn free_name(taken: &[SnapshotView], now: Timestamp) -> String {
    let name = now.strftime("before-rollback-%Y%m%d-%H%M%S").to_string();
    let is_free = |name: &String| taken.iter().all(|s| s.name != *name);
    let numbered = (2_u32..).map(|n| format!("{name}-{n}"));
    let mut names = std::iter::once(name.clone()).chain(numbered);
    names.find(is_free).unwrap_or(name)
}

fn tell(context: &Context, to: &SnapshotView, kept: &str) {
    let (volume, back_to) = (&to.volume_name, full_name(to));
    let pairs = [
        ("volume", volume.clone()),
        ("rolls back to", back_to.clone()),
        ("kept as", kept.to_owned()),
        ("how far it is", format!("ubsctl volume explain {volume}")),
        ("undo", format!("ubsctl snapshot rollback {kept} --yes")),
    ];
    let json = json!({
        "volume": volume,
        "volumeId": to.volume.to_string(),
        "rollsBackTo": back_to,
        "keptAs": kept,
    });
    one(context.format, "Rollback", kept, &pairs, json);
}

/// `kept`: how the snapshot of what the volume showed before is called in sentences; `newest`: the last event
/// before it began.
async fn until_done(
    context: &Context,
    (to, newest): (&SnapshotView, u64),
    kept: &str,
) -> Result<(), Failure> {
    let (volume, back_to) = (&to.volume_name, full_name(to));
    // It draws on standard error, and nothing where that is no terminal.
    let progress = ProgressBar::new_spinner();
    let id = to.volume.to_string();
    let look = |v: Option<&VolumeView>| {
        if let Some(report) = v.and_then(|v| v.report.as_ref()) {
            progress.set_message(report.note.clone());
            progress.tick();
        }
        has_ended(to, v)
    };
    let ended = context.follow_volume(&id, look).await;
    progress.finish_and_clear();
    if ended?.is_none() {
        return Err(Failure::StillGoing(format!(
            "volume {volume} is still being rolled back to {back_to}, what it showed before is kept as \
             {kept}; see `ubsctl volume explain {volume}`"
        )));
    }
    match fate(to, &context.client.events(newest, false).await?) {
        Fate::Completed => Ok(()),
        Fate::Replaced => Err(Failure::error(format!(
            "somebody asked meanwhile for another rollback of volume {volume}, which took the place of the one \
             to {back_to}; see `ubsctl events`"
        ))),
        Fate::Abandoned => Err(Failure::error(format!(
            "the rollback of volume {volume} to {back_to} was abandoned, and may be half done: metad was \
             restored from a backup; roll it back again before it is used"
        ))),
    }
}

/// Whether the volume is not being rolled back any more.
fn has_ended(to: &SnapshotView, v: Option<&VolumeView>) -> Result<Option<()>, Failure> {
    let volume = &to.volume_name;
    let Some(v) = v else {
        return Err(Failure::not_found("volume", volume));
    };
    match v.phase {
        Phase::RollingBack if v.rolls_back_to == to.name => Ok(None),
        // To something else: ours may have come to its end before.
        Phase::Ready | Phase::RollingBack => Ok(Some(())),
        Phase::Creating | Phase::Deleting => Err(Failure::error(format!(
            "volume {volume} is being deleted; see `ubsctl events`"
        ))),
    }
}

/// What became of a rollback.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Completed,
    /// Another one took its place.
    Replaced,
    /// A restored metad does not go on with it, and may not even know of it.
    Abandoned,
}

/// `events`: those since it was asked for. The first rollback that began is ours.
fn fate(to: &SnapshotView, events: &[EventRecord]) -> Fate {
    let of_volume = |e: &&EventRecord| e.subject == Subject::Volume(to.volume);
    let kinds = events.iter().filter(of_volume).map(|e| e.kind.as_str());
    let mut ours = kinds
        .filter(|kind| kind.starts_with("Rollback"))
        .skip_while(|kind| *kind != "RollbackBegun");
    match (ours.next(), ours.next()) {
        (Some(_), Some("RollbackCompleted")) => Fate::Completed,
        (Some(_), Some("RollbackBegun")) => Fate::Replaced,
        (_, _) => Fate::Abandoned,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::explain::test::rolling_back;
    use shardmap::units::{Generation, VolumeId};

    fn snapshot_named(name: &str) -> SnapshotView {
        SnapshotView {
            volume: VolumeId([1; 16]),
            volume_name: "v".into(),
            generation: Generation(1),
            name: name.into(),
            created_unix_ms: 0,
            pending: false,
        }
    }

    #[test]
    fn what_is_kept_is_named_by_the_time_or_numbered_where_that_is_taken() {
        let now: Timestamp = "2026-11-30T17:35:01.9Z".parse().unwrap();
        let mut taken = Vec::new();
        for name in ["", "-2", "-3"] {
            let name = format!("before-rollback-20261130-173501{name}");
            assert_eq!(free_name(&taken, now), name);
            taken.push(snapshot_named(&name));
        }
    }

    #[test]
    fn a_rollback_that_another_one_or_a_deletion_has_replaced_is_not_waited_for() {
        let to = snapshot_named("good");
        let mut v = rolling_back([true; 3]);
        assert_eq!(has_ended(&to, Some(&v)), Ok(None));
        v.rolls_back_to = "bad".into();
        assert_eq!(has_ended(&to, Some(&v)), Ok(Some(())));
        v.phase = Phase::Deleting;
        assert!(has_ended(&to, Some(&v)).is_err());
        v.phase = Phase::Ready;
        assert_eq!(has_ended(&to, Some(&v)), Ok(Some(())));
        assert!(has_ended(&to, None).is_err());
    }

    #[test]
    fn only_the_end_of_this_rollback_is_its_end() {
        let to = snapshot_named("good");
        let event = |subject: VolumeId, kind: &str| EventRecord {
            index: 1,
            at_unix_ms: 0,
            subject: Subject::Volume(subject),
            kind: kind.into(),
            text: String::new(),
        };
        let (ours, other) = (to.volume, VolumeId([2; 16]));
        // As a restored metad has it, which knows of neither.
        assert_eq!(fate(&to, &[]), Fate::Abandoned);
        assert_eq!(
            fate(&to, &[event(ours, "RollbackCompleted")]),
            Fate::Abandoned
        );
        let begun = [
            event(other, "RollbackCompleted"),
            event(ours, "RollbackBegun"),
            event(ours, "Granted"),
            event(other, "RollbackBegun"),
        ];
        for (then, expected) in [
            ("RollbackCompleted", Fate::Completed),
            ("RollbackBegun", Fate::Replaced),
            ("RollbackAbandoned", Fate::Abandoned),
        ] {
            let mut events = begun.to_vec();
            events.push(event(ours, then));
            events.push(event(ours, "RollbackCompleted"));
            assert_eq!(fate(&to, &events), expected);
        }
    }
}

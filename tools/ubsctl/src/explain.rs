//! What is the matter with a volume, what would mend it, what may be stopped.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Format, document, say, size};
use control::api::{Liveness, ResilverView, SliceView, VolumeHealth, VolumeView};
use control::core::Phase;
use serde_json::json;
use shardmap::units::{BLOCK_BYTES, ServerId, ShardIndex};
use std::collections::BTreeMap;

/// One word: `creating`, `deleting`, `rolling-back`, `detached`, `attaching`, `online`, `degraded`, `stalled`,
/// `failed`, `open`, `unknown` (attached, and its host does not report).
pub(crate) fn state(v: &VolumeView) -> String {
    let degraded = v.slices.iter().any(|s| !s.in_sync);
    let word = match v.phase {
        Phase::Creating => "creating",
        Phase::Deleting => "deleting",
        Phase::RollingBack => "rolling-back",
        Phase::Ready if v.open_access => "open",
        Phase::Ready if v.held_by.is_empty() && v.desired_on.is_empty() => {
            if degraded {
                "detached,degraded"
            } else {
                "detached"
            }
        }
        Phase::Ready if v.held_by.is_empty() => "attaching",
        Phase::Ready => match v
            .report
            .as_ref()
            .filter(|_| v.holder_liveness == Liveness::Online)
        {
            None => "unknown",
            Some(report) => match report.health {
                VolumeHealth::Attaching => "attaching",
                VolumeHealth::Online if degraded => "degraded",
                VolumeHealth::Online => "online",
                VolumeHealth::Degraded => "degraded",
                VolumeHealth::Stalled => "stalled",
                VolumeHealth::Failed => "failed",
                VolumeHealth::Detaching => "detaching",
            },
        },
    };
    word.into()
}

/// `2/3`: stores in sync of the stride set.
pub(crate) fn replicas(v: &VolumeView) -> String {
    let in_sync = v.slices.iter().filter(|s| s.in_sync).count();
    format!("{in_sync}/{}", v.slices.len())
}

/// Prints the explanation.
pub(crate) async fn volume(context: &Context, name: &str) -> Result<(), Failure> {
    let v = context.volume(name).await?;
    let resilvers = context.client.resilvers(named("")).await?.running;
    let lines = lines(&v, &resilvers);
    if context.format == Format::Json {
        let body = json!({ "name": v.name, "state": state(&v), "explanation": lines });
        document("VolumeExplanation", body);
        return Ok(());
    }
    for line in lines {
        say(&line);
    }
    Ok(())
}

/// Something about a volume that is not as it should be, and what would mend it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Matter {
    pub(crate) what: String,
    pub(crate) cure: String,
}

impl Matter {
    fn new(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            cure: cure.into(),
        }
    }
}

fn lines(v: &VolumeView, resilvers: &[ResilverView]) -> Vec<String> {
    let mut lines = vec![format!(
        "volume {} is {}, {} in sync",
        v.name,
        state(v),
        replicas(v)
    )];
    if !v.shows.is_empty() {
        lines.push(format!("it shows snapshot {}, for reading only", v.shows));
    }
    if v.growing_to > 0 {
        lines.push(growth(v));
    }
    if !v.clone_of.is_empty() {
        lines.push(format!("it is a clone of snapshot {}", v.clone_of));
    }
    if is_idle(v) {
        lines.push("nobody has it attached, and nobody is asked to".into());
    }
    if v.phase == Phase::RollingBack {
        lines.push(rollback(v));
    } else if !v.maintained_by.is_empty() {
        let by = &v.maintained_by;
        lines.push(format!("storaged on {by} brings it up to date meanwhile"));
    }
    if !v.pending_snapshot.is_empty() {
        lines.push(pending_snapshot(v));
    }
    let matters = matters(v, resilvers).into_iter();
    lines.extend(matters.map(|m| format!("{}; {}", m.what, m.cure)));
    if let Some(note) = v.report.as_ref().map(|r| &r.note).filter(|n| !n.is_empty()) {
        let who = if v.maintained_by.is_empty() {
            "its host"
        } else {
            &v.maintained_by
        };
        lines.push(format!("{who} says: {note}"));
    }
    if v.phase == Phase::Ready && v.shows.is_empty() {
        lines.extend(safe_to_stop(v));
    }
    lines
}

fn growth(v: &VolumeView) -> String {
    let to = size(v.growing_to * u64::from(BLOCK_BYTES));
    let smaller = v.slices.iter().filter(|s| s.size_blocks < v.growing_to);
    let waits: Vec<String> = smaller
        .map(|s| format!("{} on {}", s.store, s.server_name))
        .collect();
    if waits.is_empty() {
        return format!("it grows to {to} when each of its new shards has an in-sync replica");
    }
    format!(
        "it grows to {to} when all its stores have; missing: {}",
        waits.join(", ")
    )
}

/// What a volume that is being rolled back waits for, and who waits for it.
pub(crate) fn rollback(v: &VolumeView) -> String {
    let (to, by) = (&v.rolls_back_to, &v.maintained_by);
    let what = format!("it is being rolled back to {to}; storaged on {by} does it");
    match v.desired_on.as_str() {
        "" => format!("{what}; until then nobody can attach it"),
        host => format!("{what}; until then nobody can attach it, and {host} waits for it"),
    }
}

fn pending_snapshot(v: &VolumeView) -> String {
    let who = match (v.held_by.as_str(), v.maintained_by.as_str()) {
        ("", "") => format!("{} does it when it has attached the volume", v.desired_on),
        ("", by) if v.phase == Phase::RollingBack => {
            format!("storaged on {by} does it before it rolls back")
        }
        ("", by) => format!("storaged on {by} does it, with every in-sync store there"),
        (host, _) => format!("clientd on {host} does it"),
    };
    let name = &v.pending_snapshot;
    if v.pending_for.is_empty() {
        return format!("snapshot {name} is not complete yet; {who}");
    }
    let others = &v.pending_for;
    format!("snapshot {name} is to be of one moment with others and waits for {others}; {who} here")
}

fn is_idle(v: &VolumeView) -> bool {
    v.phase == Phase::Ready && !v.open_access && v.desired_on.is_empty() && v.held_by.is_empty()
}

/// Everything that is not as it should be.
pub(crate) fn matters(v: &VolumeView, resilvers: &[ResilverView]) -> Vec<Matter> {
    let waits = |s: &SliceView, what: &str| {
        let who = format!("waits for {} on {} to {what}", s.store, s.server_name);
        Matter::new(who, cure(s))
    };
    match v.phase {
        Phase::Creating => {
            let missing = v.slices.iter().filter(|s| !s.confirmed);
            missing.map(|s| waits(s, "make its slice")).collect()
        }
        Phase::Deleting => {
            let left = v.slices.iter().map(|s| {
                let mut matter = waits(s, "let its slice go");
                if s.liveness >= Liveness::Suspect {
                    matter.cure += &format!(
                        ", or, if that store is gone for good, `ubsctl store rm {}`",
                        s.store
                    );
                }
                matter
            });
            left.collect()
        }
        Phase::Ready if v.open_access => {
            let away = v.slices.iter().filter(|s| s.liveness >= Liveness::Suspect);
            away.map(|s| Matter::new(format!("{} is not served", s.store), cure(s)))
                .collect()
        }
        Phase::Ready => {
            let out = all_out_of_sync(v, resilvers);
            attachment(v).into_iter().chain(out).collect()
        }
        // A host that is to attach it waits as it should.
        Phase::RollingBack => all_out_of_sync(v, resilvers).collect(),
    }
}

fn attachment(v: &VolumeView) -> Option<Matter> {
    match (v.desired_on.as_str(), v.held_by.as_str()) {
        ("", "") => None,
        (wanted, "") => Some(Matter::new(
            format!("{wanted} is asked to attach it and has not"),
            format!("see that clientd runs on {wanted}, and its log"),
        )),
        ("", held) => Some(Matter::new(
            format!("{held} is asked to detach it and has not yet"),
            format!(
                "close what has the device open on {held} (`fuser -vm`): clientd tries again every \
                 2 to 30 s"
            ),
        )),
        (_, held) if v.holder_liveness != Liveness::Online => Some(Matter::new(
            format!("{held} has it and does not report; IO there goes on without metad"),
            format!(
                "see that clientd runs on {held}; if {held} is gone for good, `ubsctl volume \
                 force-detach {}`",
                v.name
            ),
        )),
        _ => None,
    }
}

fn cure(s: &SliceView) -> String {
    let server = &s.server_name;
    match s.liveness {
        Liveness::Online => format!("{server} is online, so it should come soon"),
        Liveness::Unknown => format!("{server} has not reported yet"),
        Liveness::Suspect | Liveness::Offline => {
            format!("{server} does not report: start storaged there")
        }
    }
}

fn all_out_of_sync(v: &VolumeView, resilvers: &[ResilverView]) -> impl Iterator<Item = Matter> {
    let out = v.slices.iter().filter(|s| !s.in_sync);
    out.map(|s| out_of_sync(v, s, resilvers))
}

fn out_of_sync(v: &VolumeView, s: &SliceView, resilvers: &[ResilverView]) -> Matter {
    let who = format!("{} on {} is out of sync", s.store, s.server_name);
    let running = resilvers
        .iter()
        .find(|r| r.report.volume == v.id && r.report.store == s.store);
    if let Some(r) = running {
        let percent = r.report.done_bytes * 100 / r.report.total_bytes.max(1);
        return Matter::new(who, format!("its resilver is at {percent} %"));
    }
    match s.liveness {
        Liveness::Online if v.held_by.is_empty() && v.maintained_by.is_empty() => {
            Matter::new(who, "it is resilvered when the volume is attached")
        }
        Liveness::Online if v.held_by.is_empty() => {
            let by = &v.maintained_by;
            Matter::new(
                who,
                format!("{by} should resilver it soon, without an attach"),
            )
        }
        Liveness::Online => Matter::new(who, format!("{} should resilver it soon", v.held_by)),
        Liveness::Unknown => Matter::new(who, "its server has not reported yet"),
        Liveness::Suspect | Liveness::Offline => Matter::new(
            format!("{who} because {} does not report", s.server_name),
            "start storaged there, it is then resilvered by itself",
        ),
    }
}

/// Servers whose stop leaves every shard enough in-sync replicas.
fn safe_to_stop(v: &VolumeView) -> Vec<String> {
    let mut servers: BTreeMap<ServerId, &str> = BTreeMap::new();
    for s in &v.slices {
        servers.insert(s.server, &s.server_name);
    }
    let (mut safe, mut unsafe_): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (id, name) in servers {
        if can_stop(v, id) {
            safe.push(name)
        } else {
            unsafe_.push(name)
        }
    }
    let mut lines = Vec::new();
    if !safe.is_empty() {
        lines.push(format!("safe to stop, one at a time: {}", safe.join(", ")));
    }
    if !unsafe_.is_empty() {
        lines.push(format!(
            "not safe to stop: {} (some shard would have less than {} in-sync replicas)",
            unsafe_.join(", "),
            v.min_in_sync
        ));
    }
    lines
}

fn can_stop(v: &VolumeView, server: ServerId) -> bool {
    least_in_sync(v, Some(server)) >= usize::from(v.min_in_sync)
}

/// In-sync replicas of the shard that has fewest; with a server that is to be stopped, those that
/// then answer.
pub(crate) fn least_in_sync(v: &VolumeView, without: Option<ServerId>) -> usize {
    // Somebody is to be stopped: what is away already cannot take over.
    let is_there = |s: &SliceView| {
        without.is_none_or(|server| s.server != server && s.liveness < Liveness::Suspect)
    };
    let stays = |position: u16| {
        v.slices
            .iter()
            .any(|s| s.position == position && s.in_sync && is_there(s))
    };
    let of_shard = |shard| {
        let positions = v.map.shape.positions_of(ShardIndex(shard));
        positions.filter(|p| stays(*p)).count()
    };
    (0..u32::from(v.map.shape.stride).min(v.map.shard_count()))
        .map(of_shard)
        .min()
        .unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;
    use control::api::VolumeReport;
    use shardmap::map::{Layout, Shape, VolumeMap};
    use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, StoreId, VolumeId};

    pub(crate) fn volume(in_sync: [bool; 3]) -> VolumeView {
        let slices = (0u16..).zip(in_sync).map(|(i, in_sync)| SliceView {
            nsid: Nsid(u32::from(i) + 1),
            store: StoreId(u32::from(i) + 1),
            server: ServerId(u32::from(i) + 1),
            server_name: format!("s{}", i + 1),
            address: ([127, 0, 0, 1], 4420).into(),
            position: i,
            confirmed: true,
            size_blocks: 1 << 20,
            in_sync,
            liveness: if in_sync {
                Liveness::Online
            } else {
                Liveness::Offline
            },
        });
        let shape = Shape {
            shard_blocks: 16_384,
            stride: 3,
            replicas: 3,
            layout: Layout::Ring,
        };
        VolumeView {
            id: VolumeId([1; 16]),
            name: "v".into(),
            map: VolumeMap {
                size_blocks: 1 << 20,
                shape,
                stores: (1..=3).map(StoreId).collect(),
            },
            set: 1,
            min_in_sync: 1,
            open_access: false,
            growing_to: 0,
            phase: Phase::Ready,
            desired_on: "h".into(),
            held_by: "h".into(),
            epoch: Epoch(1),
            seq: MembershipSeq(1),
            slices: slices.collect(),
            report: Some(VolumeReport {
                volume: VolumeId([1; 16]),
                health: VolumeHealth::Online,
                device: String::new(),
                note: String::new(),
            }),
            holder_liveness: Liveness::Online,
            maintained_by: String::new(),
            head: Generation(1),
            snapshots: 0,
            pending_snapshot: String::new(),
            pending_for: String::new(),
            rolls_back_to: String::new(),
            shows: String::new(),
            clone_of: String::new(),
        }
    }

    #[test]
    fn a_lost_server_is_named_with_its_cure_and_the_last_replica_is_not_safe_to_stop() {
        let text = lines(&volume([true, false, false]), &[]).join("\n");
        assert!(
            text.contains("store-2 on s2 is out of sync because s2 does not report"),
            "{text}"
        );
        assert!(
            text.contains("safe to stop, one at a time: s2, s3"),
            "{text}"
        );
        assert!(text.contains("not safe to stop: s1 "), "{text}");
    }

    #[test]
    fn a_pending_snapshot_is_said_with_who_completes_it() {
        let mut v = volume([true; 3]);
        v.pending_snapshot = "nightly".into();
        let said = |v: &VolumeView| lines(v, &[]).join("\n");
        let by_host = "snapshot nightly is not complete yet; clientd on h does it";
        assert!(said(&v).contains(by_host), "{}", said(&v));
        v.pending_for = "w, x".into();
        let of_group = "snapshot nightly is to be of one moment with others and waits for w, x; \
                        clientd on h does it here";
        assert!(said(&v).contains(of_group), "{}", said(&v));
        v.pending_for.clear();
        (v.held_by, v.desired_on, v.maintained_by) = (String::new(), String::new(), "s1".into());
        assert!(said(&v).contains("storaged on s1 does it"), "{}", said(&v));
    }

    /// `v`, which nobody has and which a storaged rolls back.
    pub(crate) fn rolling_back(in_sync: [bool; 3]) -> VolumeView {
        let mut v = volume(in_sync);
        v.phase = Phase::RollingBack;
        (v.held_by, v.desired_on) = (String::new(), String::new());
        (v.rolls_back_to, v.maintained_by) = ("good".into(), "s1".into());
        v.report.as_mut().unwrap().health = VolumeHealth::Degraded;
        v
    }

    #[test]
    fn a_rollback_names_who_does_it_how_far_it_is_and_who_waits_for_it() {
        let mut v = rolling_back([true; 3]);
        v.report.as_mut().unwrap().note = "rolling back, 40 %".into();
        let first = [
            "volume v is rolling-back, 3/3 in sync",
            "it is being rolled back to good; storaged on s1 does it; until then nobody can attach it",
            "s1 says: rolling back, 40 %",
        ];
        assert_eq!(lines(&v, &[]), first);
        v.desired_on = "h".into();
        assert_eq!(matters(&v, &[]), []);
        let second = format!("{}, and h waits for it", first[1]);
        assert_eq!(lines(&v, &[]), [first[0], &second, first[2]]);
    }

    #[test]
    fn a_rollback_first_completes_what_is_kept_and_goes_on_without_a_store_that_is_away() {
        let mut v = rolling_back([true, true, false]);
        v.slices[1].liveness = Liveness::Offline;
        v.pending_snapshot = "bad".into();
        let text = lines(&v, &[]).join("\n");
        let first = "snapshot bad is not complete yet; storaged on s1 does it before it rolls back";
        assert!(text.contains(first), "{text}");
        let found: Vec<String> = matters(&v, &[]).into_iter().map(|m| m.what).collect();
        let out = "store-3 on s3 is out of sync because s3 does not report";
        assert_eq!(found, [out]);
    }

    #[test]
    fn a_healthy_volume_can_spare_any_server() {
        let v = volume([true; 3]);
        assert!((1..=3).all(|s| can_stop(&v, ServerId(s))));
        assert_eq!(replicas(&v), "3/3");
    }

    #[test]
    fn a_volume_that_nobody_has_names_who_brings_it_up_to_date_and_what_that_waits_for() {
        let mut v = volume([true, true, false]);
        v.slices[2].liveness = Liveness::Online;
        (v.held_by, v.desired_on) = (String::new(), String::new());
        let text = lines(&v, &[]).join("\n");
        assert!(
            text.contains("it is resilvered when the volume is attached"),
            "{text}"
        );
        v.maintained_by = "s1".into();
        v.report.as_mut().unwrap().note = "in-sync store-2 does not report".into();
        let text = lines(&v, &[]).join("\n");
        for part in [
            "storaged on s1 brings it up to date meanwhile",
            "s1 should resilver it soon, without an attach",
            "s1 says: in-sync store-2 does not report",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    /// Nobody has witnessed the loss of a server while a volume is detached.
    #[test]
    fn a_server_that_is_away_does_not_stand_in_for_one_that_is_stopped() {
        let mut v = volume([true; 3]);
        v.slices[1].liveness = Liveness::Offline;
        v.slices[2].liveness = Liveness::Suspect;
        let safe = [1, 2, 3].map(|s| can_stop(&v, ServerId(s)));
        assert_eq!(safe, [false, true, true]);
        assert_eq!(least_in_sync(&v, None), 3);
    }
}

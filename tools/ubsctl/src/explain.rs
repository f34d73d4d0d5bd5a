//! What is the matter with a volume, what would mend it, what may be stopped.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Format, document, say};
use control::api::{Liveness, ResilverView, SliceView, VolumeHealth, VolumeView};
use control::core::Phase;
use serde_json::json;
use shardmap::units::{ServerId, ShardIndex};
use std::collections::BTreeMap;

/// One word: `creating`, `deleting`, `detached`, `attaching`, `online`, `degraded`, `stalled`,
/// `failed`, `open`, `unknown` (attached, and its host does not report).
pub(crate) fn state(v: &VolumeView) -> String {
    let degraded = v.slices.iter().any(|s| !s.in_sync);
    let word = match v.phase {
        Phase::Creating => "creating",
        Phase::Deleting => "deleting",
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

fn lines(v: &VolumeView, resilvers: &[ResilverView]) -> Vec<String> {
    let mut lines = vec![format!(
        "volume {} is {}, {} in sync",
        v.name,
        state(v),
        replicas(v)
    )];
    match v.phase {
        Phase::Creating => {
            for s in v.slices.iter().filter(|s| !s.confirmed) {
                lines.push(format!(
                    "waits for {} on {} to make its slice; {}",
                    s.store,
                    s.server_name,
                    cure(s)
                ));
            }
            return lines;
        }
        Phase::Deleting => {
            for s in &v.slices {
                lines.push(format!(
                    "waits for {} on {} to let its slice go; {}",
                    s.store,
                    s.server_name,
                    cure(s)
                ));
            }
            return lines;
        }
        Phase::Ready => {}
    }
    lines.extend(attachment(v));
    for s in v.slices.iter().filter(|s| !s.in_sync) {
        lines.push(out_of_sync(v, s, resilvers));
    }
    if let Some(note) = v.report.as_ref().map(|r| &r.note).filter(|n| !n.is_empty()) {
        lines.push(format!("its host says: {note}"));
    }
    lines.extend(safe_to_stop(v));
    lines
}

fn attachment(v: &VolumeView) -> Option<String> {
    match (v.desired_on.as_str(), v.held_by.as_str()) {
        ("", "") => Some("nobody has it attached, and nobody is asked to".into()),
        (wanted, "") => Some(format!(
            "{wanted} is asked to attach it and has not; is clientd running there?"
        )),
        ("", held) => Some(format!("{held} is asked to detach it and has not yet")),
        (_, held) if v.holder_liveness != Liveness::Online => Some(format!(
            "{held} has it and does not report; IO there goes on without metad. If {held} is gone \
             for good: `ubsctl volume force-detach {}`",
            v.name
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

fn out_of_sync(v: &VolumeView, s: &SliceView, resilvers: &[ResilverView]) -> String {
    let who = format!("{} on {} is out of sync", s.store, s.server_name);
    let running = resilvers
        .iter()
        .find(|r| r.report.volume == v.id && r.report.store == s.store);
    if let Some(r) = running {
        let percent = r.report.done_bytes * 100 / r.report.total_bytes.max(1);
        return format!("{who}; its resilver is at {percent} %");
    }
    match s.liveness {
        Liveness::Online if v.held_by.is_empty() => {
            format!("{who}; it is resilvered when the volume is attached")
        }
        Liveness::Online => format!("{who}; {} should resilver it soon", v.held_by),
        Liveness::Unknown => format!("{who}; its server has not reported yet"),
        Liveness::Suspect | Liveness::Offline => format!(
            "{who} because {} does not report; start storaged there, it is then resilvered by \
             itself",
            s.server_name
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
    let stays = |position: u16| {
        v.slices
            .iter()
            .any(|s| s.position == position && s.in_sync && s.server != server)
    };
    (0..u32::from(v.map.shape.stride).min(v.map.shard_count())).all(|shard| {
        let left = v
            .map
            .shape
            .positions_of(ShardIndex(shard))
            .filter(|p| stays(*p))
            .count();
        left >= usize::from(v.min_in_sync)
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use shardmap::map::{Layout, Shape, VolumeMap};
    use shardmap::units::{Epoch, MembershipSeq, Nsid, StoreId, VolumeId};

    fn volume(in_sync: [bool; 3]) -> VolumeView {
        let slices = (0u16..).zip(in_sync).map(|(i, in_sync)| SliceView {
            nsid: Nsid(u32::from(i) + 1),
            store: StoreId(u32::from(i) + 1),
            server: ServerId(u32::from(i) + 1),
            server_name: format!("s{}", i + 1),
            address: ([127, 0, 0, 1], 4420).into(),
            position: i,
            confirmed: true,
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
            phase: Phase::Ready,
            desired_on: "h".into(),
            held_by: "h".into(),
            epoch: Epoch(1),
            seq: MembershipSeq(1),
            slices: slices.collect(),
            report: None,
            holder_liveness: Liveness::Online,
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
    fn a_healthy_volume_can_spare_any_server() {
        let v = volume([true; 3]);
        assert!((1..=3).all(|s| can_stop(&v, ServerId(s))));
        assert_eq!(replicas(&v), "3/3");
    }
}

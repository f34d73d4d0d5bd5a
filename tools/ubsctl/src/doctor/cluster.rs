//! What metad tells, judged. Nothing here asks or waits.

use super::finding::{Finding, Level};
use crate::cluster::Standing;
use crate::explain;
use crate::output::size;
use crate::survey::{Asked, Survey};
use control::api::{
    Liveness, MemberStatus, ResilverView, ServerView, StoreHealth, StoreView, VolumeView,
};
use control::core::{Phase, Standing as Wanted};

/// Above this a store is close to full, in percent.
/// Fill of metad's log from which it needs attention, and from which it takes no commands.
const LOG_PERCENT_WARN: u8 = 50;
const LOG_PERCENT_MAX: u8 = 75;

/// The members, as each one sees itself.
pub(crate) fn members(asked: &[Asked]) -> Vec<Finding> {
    const CHECK: &str = "metad";
    let answers: Vec<&MemberStatus> = asked.iter().flat_map(|(_, s)| s).collect();
    let mut found: Vec<Finding> = asked.iter().filter_map(silent).collect();
    found.extend(answers.iter().flat_map(|s| member(s)));
    let Some(newest) = answers.iter().max_by_key(|s| s.term) else {
        let addresses: Vec<&str> = asked.iter().map(|(a, _)| a.as_str()).collect();
        found.push(Finding::new(
            Level::Problem,
            CHECK,
            format!("no member answers ({})", addresses.join(", ")),
            "start them (`systemctl start metad` on each) and check the addresses; attached \
             volumes go on meanwhile",
        ));
        return found;
    };
    let majority = |voters: usize| format!("{} members that reach each other", voters / 2 + 1);
    let meanwhile = "start the others and see that they reach each other; attached volumes go on \
                     meanwhile, and nothing can be attached, made or degraded";
    match Standing::of(asked) {
        Standing::Led => found.push(agreement(&answers, newest)),
        Standing::Leaderless => {
            let text = format!("{} members answer and none knows a leader", answers.len());
            found.push(Finding::new(Level::Problem, CHECK, text, meanwhile));
        }
        Standing::Minority { answering, voters } => {
            let text = format!("only {answering} of {voters} members answers");
            let problem = Finding::new(Level::Problem, CHECK, text, meanwhile);
            found.push(problem.needs(majority(voters)));
        }
    }
    found
}

/// Whether all know the same leader.
fn agreement(answers: &[&MemberStatus], newest: &MemberStatus) -> Finding {
    const CHECK: &str = "metad";
    let agree = answers
        .iter()
        .all(|s| (s.term, s.leader) == (newest.term, newest.leader));
    if agree {
        Finding::ok(
            CHECK,
            format!(
                "{} of {} members answer; member {} leads in term {}",
                answers.len(),
                newest.voters.len().max(newest.members.len()),
                newest.leader,
                newest.term
            ),
        )
    } else {
        let views: Vec<String> = answers
            .iter()
            .map(|s| {
                format!(
                    "member {} knows leader {} of term {}",
                    s.facts.id, s.leader, s.term
                )
            })
            .collect();
        Finding::new(
            Level::Warning,
            CHECK,
            views.join(", "),
            "look again in some seconds; if it stays, a member is cut off: check the network \
             between the members",
        )
        .needs("all to know the same leader")
    }
}

fn silent((address, status): &Asked) -> Option<Finding> {
    let error = status.as_ref().err()?;
    Some(Finding::new(
        Level::Warning,
        "metad",
        format!("metad at {address} does not answer: {}", error.last()),
        "start it there (`systemctl start metad`), or mend the address",
    ))
}

fn member(s: &MemberStatus) -> Vec<Finding> {
    let id = s.facts.id;
    let mut found = Vec::new();
    if !s.note.is_empty() {
        let text = format!("member {id}: {}", s.note);
        found.push(Finding::of_error(Level::Warning, "metad", &text));
    }
    let fill = s.log_fill_percent;
    if fill > LOG_PERCENT_WARN {
        let level = if fill >= LOG_PERCENT_MAX {
            Level::Problem
        } else {
            Level::Warning
        };
        found.push(
            Finding::new(
                level,
                "metad log",
                format!("the log of member {id} is {fill} % full"),
                "raise log_map_mib in metad.toml on every member and restart them one by one",
            )
            .needs(format!(
                "less than {LOG_PERCENT_MAX} %; commands are refused from there"
            )),
        );
    }
    let ours = env!("CARGO_PKG_VERSION");
    if s.version != ours {
        found.push(
            Finding::new(
                Level::Warning,
                "version",
                format!(
                    "member {id} is of version {}, this ubsctl of {ours}",
                    s.version
                ),
                "upgrade the older one",
            )
            .needs("one release everywhere, but for the time of an upgrade"),
        );
    }
    found
}

/// Servers, stores, hosts and volumes.
pub(crate) fn survey(seen: &Survey) -> Vec<Finding> {
    let mut found: Vec<Finding> = seen.servers.iter().filter_map(server).collect();
    found.push(servers_at_all(&seen.servers));
    let mark = seen.cluster.space.high_water_percent;
    found.extend(seen.stores.iter().filter_map(|s| store(s, mark)));
    for h in seen
        .hosts
        .iter()
        .filter(|h| !h.standard && h.liveness >= Liveness::Suspect)
    {
        // A volume that it has is told by the volume.
        found.push(Finding::new(
            Level::Hint,
            "host",
            format!("host {} is {}", h.name, liveness(h.liveness)),
            format!(
                "start clientd there; if it is gone for good, `ubsctl host rm {}`",
                h.name
            ),
        ));
    }
    let running = &seen.resilvers.running;
    let volumes: Vec<Finding> = seen
        .volumes
        .iter()
        .filter_map(|v| volume(v, running))
        .collect();
    if volumes.is_empty() {
        let text = match seen.volumes.len() {
            0 => "there are no volumes".to_owned(),
            count => format!("no volume of {count} needs attention"),
        };
        found.push(Finding::ok("volume", text));
    }
    found.extend(volumes);
    found
}

fn liveness(of: Liveness) -> String {
    format!("{of:?}").to_lowercase()
}

fn servers_at_all(servers: &[ServerView]) -> Finding {
    let online = servers
        .iter()
        .filter(|s| s.liveness == Liveness::Online)
        .count();
    let text = format!("{online} of {} servers are online", servers.len());
    if servers.is_empty() {
        return Finding::new(
            Level::Warning,
            "server",
            "no server has registered",
            "prepare stores (`ubsctl store prepare`) and start storaged on the storage machines",
        );
    }
    Finding::ok("server", text)
}

fn server(s: &ServerView) -> Option<Finding> {
    let name = &s.name;
    match (s.liveness, s.standing) {
        (Liveness::Suspect | Liveness::Offline, _) => Some(Finding::new(
            Level::Warning,
            "server",
            format!("server {name} is {}", liveness(s.liveness)),
            format!(
                "start storaged on {name} and see its log; if it is gone for good, delete what is \
                 only there, then `ubsctl store rm` and `ubsctl server rm {name}`"
            ),
        )),
        (Liveness::Online | Liveness::Unknown, Wanted::Cordoned) => Some(Finding::new(
            Level::Hint,
            "server",
            format!("server {name} is cordoned: it takes nothing new"),
            format!("`ubsctl server uncordon {name}`"),
        )),
        (Liveness::Unknown, Wanted::Active) => Some(Finding::new(
            Level::Hint,
            "server",
            format!("server {name} has not reported to this leader yet"),
            "look again in half a minute",
        )),
        (Liveness::Online, Wanted::Active) => None,
    }
}

/// `mark`: the high-water mark in percent.
fn store(s: &StoreView, mark: u32) -> Option<Finding> {
    const CHECK: &str = "store";
    let report = s.report.as_ref()?;
    let who = format!("{} on {}", s.id, s.server_name);
    let room = "make room (discard, delete snapshots and volumes) before writes fail there";
    match report.health {
        StoreHealth::Faulted => Some(Finding::new(
            Level::Problem,
            CHECK,
            format!("{who} is faulted: {}", report.note),
            format!(
                "put the right device there and restart storaged on {}",
                s.server_name
            ),
        )),
        StoreHealth::Opening => Some(Finding::new(
            Level::Hint,
            CHECK,
            format!("{who} is being opened"),
            "look again in some seconds",
        )),
        StoreHealth::Online => {
            let percent = report.used_percent();
            let text = format!(
                "{who} is {percent} % full ({} of {}) and is given nothing new from {mark} % on",
                size(report.used_bytes),
                size(report.size_bytes)
            );
            let above = percent >= u64::from(mark);
            above.then(|| Finding::new(Level::Warning, CHECK, text, room))
        }
    }
}

fn volume(v: &VolumeView, resilvers: &[ResilverView]) -> Option<Finding> {
    let state = explain::state(v);
    let matters = explain::matters(v, resilvers);
    let least = explain::least_in_sync(v, None);
    let alone = least == 1 && v.map.shape.replicas > 1;
    let held = least < usize::from(v.min_in_sync);
    let level = match state.as_str() {
        "failed" | "stalled" => Level::Problem,
        _ if held => Level::Problem,
        "open" if !matters.is_empty() => Level::Problem,
        "online" | "detached" | "open" => return None,
        "rolling-back" if matters.is_empty() => Level::Hint,
        _ => Level::Warning,
    };
    let mut found = format!(
        "volume {} is {state}, {} in sync",
        v.name,
        explain::replicas(v)
    );
    if held {
        let min = v.min_in_sync;
        found += &format!("; IO is held: some shard has {least} in-sync replicas and needs {min}");
    } else if alone {
        found += "; some shard has one in-sync replica left";
    }
    let mut cures = Vec::new();
    if v.phase == Phase::RollingBack {
        found += &format!("; {}", explain::rollback(v));
        cures.push(format!(
            "`ubsctl volume explain {}` says how far it is",
            v.name
        ));
    }
    for matter in matters {
        found += &format!("; {}", matter.what);
        if !cures.contains(&matter.cure) {
            cures.push(matter.cure);
        }
    }
    Some(Finding::new(level, "volume", found, cures.join("; ")))
}

/// Resilvers that did not get on while they were watched.
pub(super) fn stuck(resilvers: &[ResilverView]) -> Vec<Finding> {
    let one = |r: &ResilverView| {
        Finding::new(
            Level::Warning,
            "resilver",
            format!(
                "the resilver of volume {} to {} does not get on: {} of {}",
                r.volume_name,
                r.store_name,
                size(r.report.done_bytes),
                size(r.report.total_bytes)
            ),
            "see the log of the volume's clientd and of the store's server",
        )
    };
    resilvers.iter().map(one).collect()
}

/// Contradictions of the replicated state.
pub(super) fn fsck(wrong: &[String]) -> Vec<Finding> {
    if wrong.is_empty() {
        return vec![Finding::ok("fsck", "the replicated state is sound")];
    }
    let remedy = "keep the data directories of metad and report it";
    wrong
        .iter()
        .map(|text| Finding::new(Level::Problem, "fsck", text.clone(), remedy))
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::explain::test::{rolling_back, volume as volume_with};
    use control::client::MetadError;

    fn status(id: u64, term: u64, leader: u64) -> Asked {
        let mut status = MemberStatus {
            term,
            leader,
            voters: vec![1, 2, 3],
            version: env!("CARGO_PKG_VERSION").into(),
            ..MemberStatus::default()
        };
        status.facts.id = id;
        (format!("h{id}:7700"), Ok(status))
    }

    fn away(id: u64) -> Asked {
        let error = MetadError::Unreachable {
            members: format!("h{id}:7700"),
            waited_ms: 1,
            last: "refused".into(),
        };
        (format!("h{id}:7700"), Err(error))
    }

    fn worst(found: &[Finding]) -> Level {
        found.iter().map(|f| f.level).max().unwrap()
    }

    #[test]
    fn a_lost_minority_is_a_warning_and_a_lost_majority_a_problem() {
        let all = [status(1, 4, 2), status(2, 4, 2), status(3, 4, 2)];
        assert_eq!(worst(&members(&all)), Level::Ok);
        let two = [status(1, 4, 2), status(2, 4, 2), away(3)];
        let found = members(&two);
        assert_eq!(worst(&found), Level::Warning);
        assert!(
            found[0]
                .found
                .contains("metad at h3:7700 does not answer: refused")
        );
        // A leader that is cut off goes on calling itself one.
        let one = [status(1, 4, 1), away(2), away(3)];
        let found = members(&one);
        assert_eq!(worst(&found), Level::Problem);
        assert!(
            found.iter().any(|f| f.needed.starts_with("2 members")),
            "{found:?}"
        );
        assert_eq!(worst(&members(&[away(1)])), Level::Problem);
    }

    #[test]
    fn members_that_disagree_a_full_log_and_another_version_are_told() {
        let split = [status(1, 4, 2), status(2, 5, 3), status(3, 5, 3)];
        let none = [status(1, 4, 0), status(2, 4, 0)];
        assert!(
            members(&none)
                .iter()
                .any(|f| f.found.contains("none knows a leader"))
        );
        assert!(
            members(&split)
                .iter()
                .any(|f| f.found.contains("leader 3 of term 5"))
        );
        let mut full = status(1, 1, 1);
        let inside = full.1.as_mut().unwrap();
        inside.voters = vec![1];
        inside.log_fill_percent = 80;
        inside.version = "0.0.9".into();
        let found = members(&[full]);
        let of = |check| found.iter().find(|f| f.check == check).unwrap();
        assert_eq!(of("metad log").level, Level::Problem);
        assert_eq!(of("version").level, Level::Warning);
    }

    #[test]
    fn a_volume_below_its_minimum_is_a_problem_and_a_degraded_one_a_warning() {
        let healthy = volume_with([true; 3]);
        assert_eq!(volume(&healthy, &[]), None);
        let mut degraded = volume_with([true, false, false]);
        let found = volume(&degraded, &[]).unwrap();
        assert_eq!(found.level, Level::Warning);
        assert!(
            found.found.contains("one in-sync replica left"),
            "{found:?}"
        );
        assert!(found.remedy.contains("start storaged"), "{found:?}");
        degraded.min_in_sync = 2;
        let found = volume(&degraded, &[]).unwrap();
        assert_eq!(found.level, Level::Problem);
        assert!(
            found.found.contains("has 1 in-sync replicas and needs 2"),
            "{found:?}"
        );
    }
    #[test]
    fn a_rollback_needs_attention_only_if_a_store_is_out_of_sync() {
        let mut v = rolling_back([true; 3]);
        let found = volume(&v, &[]).unwrap();
        assert_eq!(found.level, Level::Hint, "{found:?}");
        assert!(
            found.found.contains("being rolled back to good"),
            "{found:?}"
        );
        (v.slices[1].liveness, v.slices[1].in_sync) = (Liveness::Offline, false);
        let found = volume(&v, &[]).unwrap();
        assert_eq!(found.level, Level::Warning, "{found:?}");
        assert!(found.remedy.contains("start storaged"), "{found:?}");
    }
}

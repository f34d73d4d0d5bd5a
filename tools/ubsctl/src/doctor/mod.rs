//! `ubsctl doctor`: is this host fit, is the cluster well; for each finding what was found, what is
//! needed, what to do.
//!
//! [`host`] looks at this machine, as far as its rights reach; [`cluster`] judges what metad tells,
//! without asking anybody, so that it can be tested.

mod cluster;
mod configs;
mod finding;
mod host;
mod reach;
mod stores;
mod ublk_driver;

pub(crate) use cluster::{members, survey};
pub(crate) use finding::{Finding, Level};

use crate::cluster::Standing;
use crate::context::{Context, Globals};
use crate::failure::Failure;
use crate::output::{Format, document, say};
use crate::survey::Survey;
use configs::Configs;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// Longest wait for a resilver to get on: longer than any daemon is silent.
const RESILVER_PATIENCE: Duration = Duration::from_secs(11);

/// `doctor`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Look at this host only; no metad is asked
    #[arg(long, conflicts_with = "cluster_only")]
    host_only: bool,
    /// Look at the cluster only
    #[arg(long)]
    cluster_only: bool,
    /// Where the configurations of this host's daemons are: files whose names begin with metad,
    /// storaged or clientd and end with .toml
    #[arg(long, default_value = "/etc/ublkstor", value_name = "DIR")]
    config_dir: PathBuf,
}

/// What was found, with the part of the world it is about.
type Diagnosis = Vec<(&'static str, Finding)>;

pub(crate) async fn run(args: &Args, globals: &Globals) -> Result<(), Failure> {
    let configs = if args.cluster_only {
        Configs::default()
    } else {
        Configs::read(&args.config_dir)
    };
    let mut diagnosis = Diagnosis::new();
    let mut cluster = None;
    if !args.host_only {
        let (found, uuid) = examine_cluster(globals, &configs, args.cluster_only).await;
        diagnosis.extend(found.into_iter().map(|f| ("cluster", f)));
        cluster = uuid;
    }
    if !args.cluster_only {
        let found = host::findings(&configs, cluster);
        diagnosis.splice(0..0, found.into_iter().map(|f| ("host", f)));
    }
    report(&diagnosis, globals.output)
}

/// Findings about the cluster, and which cluster it is.
async fn examine_cluster(
    globals: &Globals,
    configs: &Configs,
    insist: bool,
) -> (Vec<Finding>, Option<Uuid>) {
    let members = match Context::members(globals) {
        Ok(members) => members,
        Err(failure) => {
            return (
                vec![Finding::of_error(Level::Problem, "ubsctl.toml", &failure)],
                None,
            );
        }
    };
    // Nobody has said where metad is, but this host's daemons may know.
    let members = members.or_else(|| configs.metad_addresses());
    let expected = insist || members.is_some();
    let context = match Context::asking(globals, members) {
        Ok(context) => context,
        Err(failure) => {
            return (
                vec![Finding::of_error(Level::Problem, "metad", &failure)],
                None,
            );
        }
    };
    let asked = context.client.member_statuses().await;
    let nobody = asked.iter().all(|(_, status)| status.is_err());
    if nobody && !expected {
        let hint = Finding::new(
            Level::Hint,
            "metad",
            "no metad is named and none answers on this host, so no cluster was looked at",
            "name its members with --metad, UBS_METAD or /etc/ublkstor/ubsctl.toml",
        );
        return (vec![hint], None);
    }
    let mut found = members_and_more(&context, &asked).await;
    let uuid = asked.iter().flat_map(|(_, s)| s).map(|s| s.facts.cluster);
    let uuid = uuid.into_iter().find(|uuid| !uuid.is_nil());
    found.sort_by_key(|f| std::cmp::Reverse(f.level));
    (found, uuid)
}

async fn members_and_more(context: &Context, asked: &[crate::survey::Asked]) -> Vec<Finding> {
    let mut found = members(asked);
    if Standing::of(asked) != Standing::Led {
        return found;
    }
    match look_closer(context).await {
        Ok(more) => found.extend(more),
        Err(failure) => found.push(Finding::of_error(Level::Problem, "metad", &failure)),
    }
    found
}

/// What only a leader can tell.
async fn look_closer(context: &Context) -> Result<Vec<Finding>, Failure> {
    let seen = Survey::take(context).await?;
    let mut found = survey(&seen);
    found.extend(reach::servers(&seen.servers).await);
    found.extend(cluster::fsck(&context.client.fsck().await?));
    let stuck = seen.stuck_resilvers(context, RESILVER_PATIENCE).await?;
    found.extend(cluster::stuck(&stuck));
    Ok(found)
}

fn report(diagnosis: &Diagnosis, format: Format) -> Result<(), Failure> {
    let count = |level| diagnosis.iter().filter(|(_, f)| f.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    match format {
        Format::Table => {
            for (scope, finding) in diagnosis {
                print(scope, finding);
            }
            say(&format!(
                "{}, {}",
                count_of(problems, "problem"),
                count_of(warnings, "warning")
            ));
        }
        Format::Json => {
            let items: Vec<Value> = diagnosis.iter().map(|(s, f)| f.to_json(s)).collect();
            let body = json!({ "problems": problems, "warnings": warnings, "items": items });
            document("Diagnosis", body);
        }
        Format::Name => {
            for (scope, f) in diagnosis.iter().filter(|(_, f)| f.level >= Level::Warning) {
                say(&format!("{scope}/{}", f.check));
            }
        }
    }
    if problems == 0 {
        return Ok(());
    }
    let problems = count_of(problems, "problem");
    Err(Failure::error(format!(
        "{problems} found; what to do is said above"
    )))
}

/// `1 problem`, `2 problems`.
fn count_of(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn print(scope: &str, f: &Finding) {
    let level = f.level.name();
    say(&format!(
        "{level:8} {scope:7} {:14} {}",
        f.check,
        f.found.trim_end()
    ));
    for (label, text) in [("needed", &f.needed), ("do", &f.remedy)] {
        if !text.is_empty() {
            say(&format!("{:32}{label}: {text}", ""));
        }
    }
}

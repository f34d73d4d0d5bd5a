//! `ubsctl resilver …`: replicas being brought up to date.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Format, Listing, Row, say, size, time};
use clap::Subcommand;
use control::api::{Filter, ResilverOutcome, ResilverReport, ResilverView, Resilvers, VolumeView};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use shardmap::units::{StoreId, VolumeId};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Running resilvers, and the ended ones the leader remembers.
    Ls {
        /// Follow them: bars on a terminal, lines elsewhere. Ends when none runs any more.
        #[arg(long)]
        watch: bool,
    },
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Ls { watch: true } => watch(context).await,
        Verb::Ls { watch: false } => ls(context).await,
    }
}

async fn ls(context: &Context) -> Result<(), Failure> {
    let all = context.client.resilvers(Filter::default()).await?;
    let rows = all.running.iter().chain(all.history.iter().rev()).map(row);
    let columns = &[
        "VOLUME", "TO", "STATE", "DONE", "TOTAL", "RATE", "ETA", "STARTED",
    ];
    Listing {
        kind: "ResilverList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
    Ok(())
}

fn row(r: &ResilverView) -> Row {
    let report = r.report;
    let state = format!("{:?}", report.outcome).to_lowercase();
    Row {
        name: format!("{}/{}", r.volume_name, report.store),
        cells: vec![
            r.volume_name.clone(),
            r.store_name.clone(),
            state.clone(),
            size(report.done_bytes),
            size(report.total_bytes),
            format!("{}/s", size(report.bytes_per_s)),
            eta_s(&report).map_or_else(|| "-".to_owned(), eta),
            time(report.started_unix_ms),
        ],
        json: json!({
            "volume": r.volume_name,
            "volumeId": report.volume.to_string(),
            "store": report.store.0,
            "storeName": r.store_name,
            "state": state,
            "doneBytes": report.done_bytes,
            "totalBytes": report.total_bytes,
            "bytesPerSecond": report.bytes_per_s,
            "etaSeconds": eta_s(&report),
            "startedUnixMs": report.started_unix_ms,
            "endedUnixMs": report.ended_unix_ms,
        }),
    }
}

/// Seconds that are left at the rate so far; `None` if it does not run or has not moved yet.
fn eta_s(report: &ResilverReport) -> Option<u64> {
    let left = report.total_bytes.saturating_sub(report.done_bytes);
    let running = report.outcome == ResilverOutcome::Running;
    left.checked_div(report.bytes_per_s).filter(|_| running)
}

/// `45 s`, `3 min 5 s`, `2 h 7 min`.
fn eta(s: u64) -> String {
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s} s"),
        (h, min, _) => format!("{h} h {min} min"),
    }
}

/// What tells one resilver from another.
type Key = (VolumeId, StoreId, u64);

fn key(r: &ResilverView) -> Key {
    (r.report.volume, r.report.store, r.report.started_unix_ms)
}

/// Shows resilvers until none runs. With none running, waits for the first one, if one is to come.
async fn watch(context: &Context) -> Result<(), Failure> {
    let mut shown: BTreeMap<Key, Shown> = BTreeMap::new();
    let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
    let bars = context.format == Format::Table && std::io::stdout().is_terminal();
    let mut version = 0;
    loop {
        let filter = Filter {
            name: String::new(),
            version,
        };
        let all = context.client.resilvers(filter).await?;
        version = all.version;
        for r in &all.running {
            let shown = shown
                .entry(key(r))
                .or_insert_with(|| Shown::new(r, bars, &screen));
            shown.update(r);
        }
        if shown.is_empty() && !is_awaited(context).await? {
            say("every volume is in sync: there is nothing to resilver");
            return Ok(());
        }
        end_finished(&mut shown, &all);
        if !shown.is_empty() && all.running.is_empty() {
            return Ok(());
        }
    }
}

/// Whether some volume has a replica to bring up to date, and somebody who does it.
async fn is_awaited(context: &Context) -> Result<bool, Failure> {
    let volumes = context.client.volumes(named("")).await?.list;
    let cared_for = |v: &VolumeView| !v.held_by.is_empty() || !v.maintained_by.is_empty();
    let behind = |v: &VolumeView| cared_for(v) && v.slices.iter().any(|s| !s.in_sync);
    Ok(volumes.iter().any(behind))
}

fn end_finished(shown: &mut BTreeMap<Key, Shown>, all: &Resilvers) {
    for (key_shown, shown) in shown {
        if shown.ended || all.running.iter().any(|r| key(r) == *key_shown) {
            continue;
        }
        match all.history.iter().find(|r| key(r) == *key_shown) {
            Some(r) => {
                shown.update(r);
                shown.end(&verdict(r));
            }
            None => shown.end("ended; who did it does not report"),
        }
    }
}

fn verdict(r: &ResilverView) -> String {
    let took_ms = r
        .report
        .ended_unix_ms
        .saturating_sub(r.report.started_unix_ms);
    match r.report.outcome {
        ResilverOutcome::Complete => {
            format!("complete: {} in {} ms", size(r.report.done_bytes), took_ms)
        }
        ResilverOutcome::Failed | ResilverOutcome::Running => "given up for now".into(),
    }
}

/// One resilver on the screen: a bar, or lines that are not repeated.
struct Shown {
    bar: Option<ProgressBar>,
    title: String,
    last_percent: Option<u64>,
    ended: bool,
}

const BAR: &str = "{prefix}  [{bar:30}] {percent:>3} %  {bytes}/{total_bytes}  {msg}";

impl Shown {
    fn new(r: &ResilverView, bars: bool, screen: &MultiProgress) -> Self {
        let title = format!("{} to {}", r.volume_name, r.store_name);
        let bar = bars.then(|| {
            let style =
                ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = screen.add(ProgressBar::new(r.report.total_bytes));
            bar.set_style(style.progress_chars("=> "));
            bar.set_prefix(title.clone());
            bar
        });
        Self {
            bar,
            title,
            last_percent: None,
            ended: false,
        }
    }

    fn update(&mut self, r: &ResilverView) {
        let report = r.report;
        let mut rate = format!("{}/s", size(report.bytes_per_s));
        if let Some(left) = eta_s(&report) {
            rate += &format!(", {} left", eta(left));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(report.total_bytes);
            bar.set_position(report.done_bytes);
            bar.set_message(rate);
            return;
        }
        let percent = report.done_bytes * 100 / report.total_bytes.max(1);
        if self.last_percent == Some(percent) {
            return;
        }
        self.last_percent = Some(percent);
        let (done, total) = (size(report.done_bytes), size(report.total_bytes));
        let filled = usize::try_from(percent.min(100) * 30 / 100).unwrap_or(30);
        say(&format!(
            "{}  [{:30}] {percent:>3} %  {done} of {total}, {rate}",
            self.title,
            "=".repeat(filled)
        ));
    }

    fn end(&mut self, how: &str) {
        self.ended = true;
        match &self.bar {
            Some(bar) => bar.abandon_with_message(how.to_owned()),
            None => say(&format!("{}: {how}", self.title)),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_two_units() {
        assert_eq!(
            [0, 45, 185, 7_625].map(eta),
            ["0 s", "45 s", "3 min 5 s", "2 h 7 min"]
        );
    }
}

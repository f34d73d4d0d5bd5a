//! `cargo xtask trace`: runs of the real machines are behaviours of the models, and runs that were
//! tampered with are not.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::checker::{Checker, Done, Job};
use super::maker::Maker;
use super::{JOBS_MAX, at_once, fresh_dir, jobs_in_memory};

const HEAP_MB: u64 = 1_500;
const LIMIT_S: u64 = 600;

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Only modules or sources of runs whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Where traces of a model come from, and what must not be accepted.
struct Source {
    /// `tla/MODULE.tla` follows them.
    module: &'static str,
    /// Which runs, if a module has several sources.
    runs: &'static str,
    /// Prints one record a line and an empty line after each run.
    maker: Maker,
    /// Blocks that are not followed are written, too.
    others: bool,
    /// Ways to break a run.
    tampers: &'static [&'static [Tamper]],
}

/// One way to make an untrue run of a true one. Each is tried on the first run that has what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tamper {
    /// An event of this kind never happened.
    Drop(&'static str),
    /// The last event of the first kind before one of the second kind about the same store, if both
    /// name one, never happened.
    DropNeeded(&'static str, &'static str),
    /// An event of the first kind happened before the one of the second kind about the same tag or store.
    Early(&'static str, &'static str),
    /// The last event of the first kind before one of the second kind, about the same store and of a
    /// later client, happened right after that; nobody was told of it in between.
    Late(&'static str, &'static str),
    /// After an event of the first kind of a superseded client there was one of the second kind.
    Invent(&'static str, &'static str),
    /// An event of this kind said something else.
    Alter(&'static str, &'static str, &'static str),
}

/// Those that TLC needs longest for come first: one of them at the end would be waited for alone.
const SOURCES: &[Source] = &[
    Source {
        module: "TraceMerge",
        runs: "one-extent",
        maker: Maker::test("store", "runs_of_one_extent_are_recorded"),
        others: false,
        tampers: &[MERGE_TAMPERS],
    },
    Source {
        module: "TraceShard",
        runs: "superseded-clients",
        maker: Maker::test("volume", "runs_with_superseded_clients_are_recorded"),
        others: false,
        tampers: &[SHARD_TAMPERS],
    },
    Source {
        module: "TraceUblkDrv",
        runs: "devices",
        maker: Maker::example("tag_trace", &["1", "24"]),
        others: false,
        tampers: &[DEVICE_TAMPERS],
    },
    Source {
        module: "TraceResilver",
        runs: "two-stores",
        maker: Maker::test("volume", "runs_with_two_stores_are_recorded"),
        others: false,
        tampers: &[RESILVER_TAMPERS, WORLD_TAMPERS],
    },
    Source {
        module: "TraceResilver",
        runs: "three-stores",
        maker: Maker::test("volume", "runs_with_three_stores_are_recorded"),
        others: false,
        tampers: &[RESILVER_TAMPERS, WORLD_TAMPERS],
    },
    Source {
        module: "TraceResilver",
        runs: "clusters-of-two",
        maker: Maker::clusters(&["record", "3", "2", "11", "12", "57", "62"]),
        others: true,
        tampers: &[RESILVER_TAMPERS, CLUSTER_TAMPERS],
    },
    Source {
        module: "TraceResilver",
        runs: "clusters-of-three",
        maker: Maker::clusters(&["record", "46", "1", "15", "16", "18", "42", "65"]),
        others: true,
        tampers: &[RESILVER_TAMPERS, CLUSTER_TAMPERS],
    },
];

const DEVICE_TAMPERS: &[Tamper] = &[
    Tamper::Drop("does"),
    Tamper::Drop("attach"),
    Tamper::Drop("offer"),
    Tamper::Drop("kill"),
    Tamper::Early("answered", "does"),
    Tamper::Early("see", "offer"),
    Tamper::Early("take", "see"),
    Tamper::Alter("answered", "Committing", "Serving"),
    Tamper::Alter("see", "Wanting", "Serving"),
    Tamper::Alter("life", "ph |-> \"Live\"", "ph |-> \"Closing\""),
];

const RESILVER_TAMPERS: &[Tamper] = &[
    Tamper::Drop("write"),
    Tamper::Drop("ack"),
    Tamper::Drop("attach"),
    Tamper::DropNeeded("propose", "exclude"),
    Tamper::Drop("exclude"),
    Tamper::DropNeeded("open", "resilver"),
    Tamper::DropNeeded("land", "ack"),
    Tamper::DropNeeded("flush", "complete"),
    Tamper::DropNeeded("copied", "complete"),
    Tamper::DropNeeded("marks", "planned"),
    Tamper::DropNeeded("complete", "join"),
    Tamper::Drop("resilver"),
    Tamper::DropNeeded("planned", "join"),
    Tamper::Drop("gone"),
    Tamper::Early("ack", "write"),
    Tamper::Early("exclude", "propose"),
    Tamper::Early("planned", "resilver"),
    Tamper::Early("join", "resilver"),
    Tamper::Alter("write", "v |-> ", "v |-> 9"),
    Tamper::Alter("ack", "v |-> ", "v |-> 9"),
    Tamper::Alter("read", "v |-> ", "v |-> 9"),
    Tamper::Alter("attach", "v |-> ", "v |-> 9"),
    Tamper::Alter("open", "FALSE", "TRUE"),
    Tamper::Alter("copied", "s1", "s0"),
    Tamper::Alter("join", "s0", "s1"),
];

/// In a world with nothing but the block.
const WORLD_TAMPERS: &[Tamper] = &[
    Tamper::Alter("crash", "v |-> 2", "v |-> 999"),
    Tamper::Alter("open", "TRUE", "FALSE"),
];

/// A store of a cluster may be suspect, and need not be, on account of blocks that are not followed.
const CLUSTER_TAMPERS: &[Tamper] = &[Tamper::Alter("crash", "v |-> ", "v |-> 99")];

const SHARD_TAMPERS: &[Tamper] = &[
    // A store that the next client has opened takes a superseded client's write.
    Tamper::Late("W", "opens"),
    // A superseded client completes a flush that no store was asked for.
    Tamper::Invent("ack", "flushed"),
    Tamper::Drop("attach"),
    Tamper::Drop("write"),
    Tamper::Drop("serve"),
    Tamper::Drop("commit"),
    Tamper::DropNeeded("opens", "W"),
    Tamper::DropNeeded("W", "ack"),
    Tamper::DropNeeded("F", "M"),
    Tamper::DropNeeded("C", "serve"),
    Tamper::DropNeeded("stamp", "ack"),
    Tamper::DropNeeded("propose", "commit"),
    Tamper::DropNeeded("commit", "learn"),
    Tamper::DropNeeded("copy", "complete"),
    Tamper::DropNeeded("F", "complete"),
    Tamper::DropNeeded("complete", "join"),
    Tamper::DropNeeded("resilver", "join"),
    Tamper::Early("learn", "commit"),
    Tamper::Early("join", "complete"),
    Tamper::Early("ack", "write"),
    Tamper::Alter("write", "v |-> ", "v |-> 9"),
    Tamper::Alter("ack", "v |-> ", "v |-> 9"),
    Tamper::Alter("read", "v |-> ", "v |-> 9"),
    Tamper::Alter("serve", "v |-> ", "v |-> 9"),
    Tamper::Alter("W", "v |-> ", "v |-> 9"),
    Tamper::Alter("C", "v |-> ", "v |-> 9"),
    Tamper::Alter("copy", "v |-> ", "v |-> 9"),
    Tamper::Alter("crash", "v |-> ", "v |-> 99"),
    Tamper::Alter("open", "FALSE", "TRUE"),
    Tamper::Alter("open", "TRUE", "FALSE"),
    Tamper::Alter("commit", "{\"s0\"}", "{\"s1\"}"),
];

const MERGE_TAMPERS: &[Tamper] = &[
    Tamper::Drop("write"),
    Tamper::Drop("land"),
    Tamper::Drop("zero"),
    Tamper::Drop("begin"),
    Tamper::Drop("drop"),
    Tamper::Drop("crash"),
    Tamper::DropNeeded("record", "crash"),
    Tamper::DropNeeded("durable", "flushed"),
    Tamper::DropNeeded("flush", "flushed"),
    Tamper::Early("land", "write"),
    Tamper::Early("durable", "flush"),
    Tamper::Early("switch", "checkpoint"),
    Tamper::Alter("seen", "\"p\"", "\"z\""),
    Tamper::Alter("seen", "<<1, ", "<<2, "),
    Tamper::Alter("seen", "m |-> {1}", "m |-> {}"),
    Tamper::Alter("read", "v |-> ", "v |-> 9"),
    Tamper::Alter("crash", "<<1, 1, ", "<<1, 1, 9"),
    Tamper::Alter("write", "x |-> ", "x |-> 9"),
];

/// Follows all traces; true if every true one was accepted and every broken one refused.
pub(crate) fn run(root: &Path, args: &TraceArgs) -> Result<bool> {
    let checker = Checker::find(root, HEAP_MB, Duration::from_secs(LIMIT_S))?;
    let only = args.only.as_deref().unwrap_or("");
    let chosen = |s: &&Source| [s.module, s.runs].iter().any(|name| name.contains(only));
    let sources: Vec<_> = SOURCES.iter().filter(chosen).collect();
    ensure!(!sources.is_empty(), "no source of runs is called {only}");
    let traces = sources.iter().map(|source| record(root, source));
    let traces: Vec<_> = traces.collect::<Result<_>>()?;
    let recorded = || sources.iter().copied().zip(&traces);
    let jobs: Vec<_> = recorded()
        .flat_map(|(source, traces)| [(source, traces, true), (source, traces, false)])
        .collect();
    let at_a_time = jobs_in_memory(JOBS_MAX, HEAP_MB)?;
    let tallies = at_once(at_a_time, &jobs, |(source, traces, true_ones)| {
        let tally = match true_ones {
            true => accept(root, &checker, source, traces)?,
            false => refuse(root, &checker, source, traces)?,
        };
        tally.said.iter().for_each(|line| println!("{line}"));
        Ok(tally)
    })?;
    let passed: usize = tallies.iter().map(|t| t.passed).sum();
    let failed: usize = tallies.iter().map(|t| t.failed).sum();
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// What came of a source's runs; its lines are shown together.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    said: Vec<String>,
}

/// Lines shown of a run that is not explained, up to the event that is not.
const SHOWN: usize = 10;

fn accept(
    root: &Path,
    checker: &Checker,
    source: &Source,
    traces: &[Vec<String>],
) -> Result<Tally> {
    let mut tally = Tally::default();
    let (name, runs) = (source.module, source.runs);
    let (followed, seconds) = follow(root, checker, source, "true", traces)?;
    for (index, (trace, at)) in traces.iter().zip(followed).enumerate() {
        if at == trace.len() {
            tally.passed += 1;
            continue;
        }
        tally.failed += 1;
        let (run, event) = (index + 1, at + 1);
        tally.said.push(format!(
            "FAILED {name}, {runs}: run {run} is not explained from event {event}:"
        ));
        let shown = &trace[event.saturating_sub(SHOWN)..event];
        tally.said.extend(shown.iter().map(|l| format!("    {l}")));
    }
    let events: usize = traces.iter().map(Vec::len).sum();
    tally.said.push(format!(
        "{name}, {runs}: {} runs, {events} events, {seconds:.1} s",
        traces.len()
    ));
    Ok(tally)
}

fn refuse(
    root: &Path,
    checker: &Checker,
    source: &Source,
    traces: &[Vec<String>],
) -> Result<Tally> {
    let mut tally = Tally::default();
    let (name, runs) = (source.module, source.runs);
    let mut untrue = Vec::new();
    let mut how = Vec::new();
    for tampering in source.tampers.iter().copied().flatten() {
        match tamper(*tampering, traces) {
            Some(trace) => {
                untrue.push(trace);
                how.push(tampering);
            }
            None => {
                tally.failed += 1;
                tally.said.push(format!(
                    "FAILED {name}, {runs}: no run to try {tampering:?} on"
                ));
            }
        }
    }
    let (followed, seconds) = follow(root, checker, source, "broken", &untrue)?;
    for ((trace, how), followed) in untrue.iter().zip(how).zip(followed) {
        if followed < trace.len() {
            tally.passed += 1;
        } else {
            tally.failed += 1;
            tally
                .said
                .push(format!("FAILED {name}, {runs}: accepted after {how:?}"));
        }
    }
    tally.said.push(format!(
        "{name}, {runs}: {} runs that were tampered with, {seconds:.1} s",
        untrue.len()
    ));
    Ok(tally)
}

fn record(root: &Path, source: &Source) -> Result<Vec<Vec<String>>> {
    let text = source
        .maker
        .run(root)
        .with_context(|| format!("{}, {}", source.module, source.runs))?;
    let runs = text.split("\n\n").map(|run| {
        let lines = run.lines().filter(|line| line.starts_with("[a |-> "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    });
    let runs: Vec<_> = runs.filter(|run| !run.is_empty()).collect();
    ensure!(!runs.is_empty(), "{}: no run was printed", source.module);
    Ok(runs)
}

/// How many events of each trace the model could follow, and how long TLC took.
fn follow(
    root: &Path,
    checker: &Checker,
    source: &Source,
    kind: &str,
    traces: &[Vec<String>],
) -> Result<(Vec<usize>, f64)> {
    let module = source.module;
    let dir = fresh_dir(root, &format!("{module}-{}-{kind}", source.runs))?;
    std::fs::write(dir.join("TraceData.tla"), data(traces, source.others))?;
    let config = root.join("tla").join(format!("{module}.cfg"));
    std::fs::copy(&config, dir.join(format!("{module}.cfg")))
        .with_context(|| config.display().to_string())?;
    let done = checker.run(&Job {
        dir: dir.clone(),
        module: module.to_owned(),
        keep_going: true,
        short: false,
    })?;
    let out = dir.join("tlc.out");
    ensure!(
        !done.timed_out,
        "{module}: stopped by time; see {}",
        out.display()
    );
    let ended = done.output.contains("states left on queue");
    let wrong = done
        .output
        .lines()
        .find(|l| l.starts_with("Error: ") && !l.contains("nvariant") && !l.contains("behavior"));
    ensure!(
        ended && wrong.is_none(),
        "{module}: TLC says {wrong:?}; see {}",
        out.display()
    );
    Ok((progress(&done, traces.len()), done.seconds))
}

/// Reads `<<"followed", trace, events, of>>`. A broken invariant ends the trace before its last event.
fn progress(done: &Done, traces: usize) -> Vec<usize> {
    let mut followed = vec![0; traces];
    let broken = done.output.contains("Error: Invariant ");
    for line in done.output.lines() {
        let Some(rest) = line.strip_prefix("<<\"followed\", ") else {
            continue;
        };
        let numbers: Vec<usize> = rest
            .trim_end_matches(">>")
            .split(", ")
            .filter_map(|n| n.parse().ok())
            .collect();
        if let [trace, events, _] = numbers[..] {
            followed[trace - 1] = followed[trace - 1].max(events);
        }
    }
    if broken {
        println!("an invariant of the model broke on the way; see tlc.out");
    }
    followed
}

/// The generated module.
fn data(traces: &[Vec<String>], others: bool) -> String {
    let stores: BTreeSet<&str> = traces
        .iter()
        .flatten()
        .flat_map(|line| stores_of(line))
        .collect();
    let stores: Vec<_> = stores.into_iter().collect();
    let epochs = traces
        .iter()
        .flatten()
        .filter_map(|line| epoch_of(line))
        .max();
    let mut text = format!(
        "------------------------------ MODULE TraceData ------------------------------\n\
         TraceStores == {{{}}}\n\nTraceEpochs == {}\n\nOthers == {}\n\nTraces == <<\n",
        stores.join(", "),
        epochs.unwrap_or(0),
        if others { "TRUE" } else { "FALSE" },
    );
    let sequences: Vec<_> = traces
        .iter()
        .map(|t| format!("<<{}>>", t.join(",\n")))
        .collect();
    text.push_str(&sequences.join(",\n\n"));
    text.push_str(
        "\n>>\n=============================================================================\n",
    );
    text
}

/// The names of stores in a record, with their quotes.
fn stores_of(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '"');
    words.filter(|w| {
        let number = w.strip_prefix("\"s").and_then(|w| w.strip_suffix('"'));
        number.is_some_and(|n| n.parse::<u16>().is_ok())
    })
}

/// The client's epoch, if a record is about a client.
fn epoch_of(line: &str) -> Option<u64> {
    let rest = line.split(", e |-> ").nth(1)?;
    rest.split([',', ']']).next()?.parse().ok()
}

fn kind(line: &str) -> &str {
    line.split('"').nth(1).unwrap_or("")
}

/// The tag or store that an event is about.
fn subject(line: &str) -> Option<&str> {
    let field = |name: &str| line.split(name).nth(1)?.split([',', ']']).next();
    field("t |-> ").or_else(|| field("s |-> "))
}

/// Breaks the first run that can be broken this way.
fn tamper(how: Tamper, traces: &[Vec<String>]) -> Option<Vec<String>> {
    traces.iter().find_map(|trace| {
        let mut trace = trace.clone();
        match how {
            Tamper::Drop(what) => {
                let at = trace.iter().position(|l| kind(l) == what)?;
                trace.remove(at);
                // Something must follow that needs it.
                (at + 20 < trace.len()).then_some(())?;
            }
            Tamper::DropNeeded(what, by) => {
                let at = trace.iter().enumerate().find_map(|(n, line)| {
                    let about = subject(line);
                    let needed =
                        |l: &String| kind(l) == what && (about.is_none() || subject(l) == about);
                    let before = trace[..n].iter().rposition(needed);
                    before.filter(|_| kind(line) == by)
                })?;
                trace.remove(at);
            }
            Tamper::Early(what, before) => {
                let at = trace.iter().position(|l| kind(l) == what)?;
                let about = subject(&trace[at]);
                let same = |l: &String| kind(l) == before && subject(l) == about;
                let earlier = trace[..at].iter().rposition(same)?;
                let line = trace.remove(at);
                trace.insert(earlier, line);
            }
            Tamper::Late(what, after) => {
                let (from, to) = (0..trace.len()).find_map(|to| {
                    let line = &trace[to];
                    let of_later = |l: &String| {
                        let unheard = l.contains("h |-> FALSE");
                        let same = kind(l) == what && subject(l) == subject(line);
                        same && unheard && epoch_of(l) < epoch_of(line)
                    };
                    let from = trace[..to].iter().rposition(of_later)?;
                    (kind(line) == after).then_some((from, to))
                })?;
                let line = trace.remove(from);
                trace.insert(to, line);
            }
            Tamper::Invent(after, what) => {
                let at = (0..trace.len()).find(|&at| {
                    let newest = trace[..at].iter().filter_map(|l| epoch_of(l)).max();
                    kind(&trace[at]) == after && epoch_of(&trace[at]) < newest
                })?;
                let epoch = epoch_of(&trace[at])?;
                trace.insert(at + 1, format!("[a |-> \"{what}\", e |-> {epoch}]"));
            }
            Tamper::Alter(what, from, to) => {
                let altered = |l: &String| kind(l) == what && l.contains(from);
                let at = trace.iter().position(altered)?;
                trace[at] = trace[at].replace(from, to);
            }
        }
        Some(trace)
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn runs() -> Vec<Vec<String>> {
        let line = |a: &str| format!("[a |-> \"{a}\", v |-> 1]");
        vec![vec![line("x")], ["a", "b", "c"].map(line).to_vec()]
    }

    #[test]
    fn a_run_is_broken_where_it_was_asked() {
        let order = |how| -> Option<String> {
            Some(tamper(how, &runs())?.iter().map(|l| kind(l)).collect())
        };
        assert_eq!(order(Tamper::Early("c", "b")).as_deref(), Some("acb"));
        assert_eq!(order(Tamper::Drop("z")), None);
        assert_eq!(order(Tamper::DropNeeded("a", "c")).as_deref(), Some("bc"));
        let commands = [
            "[a |-> \"W\", e |-> 1, s |-> \"s0\", h |-> FALSE]",
            "[a |-> \"x\"]",
        ];
        let mut late = commands.map(str::to_owned).to_vec();
        late.push("[a |-> \"opens\", e |-> 2, s |-> \"s0\", h |-> TRUE]".to_owned());
        let late = tamper(Tamper::Late("W", "opens"), &[late]).unwrap();
        let late: String = late.iter().map(|l| kind(l)).collect();
        assert_eq!(late, "xopensW");
        let acks = ["[a |-> \"x\", e |-> 2]", "[a |-> \"b\", e |-> 1]"];
        let acks = acks.map(str::to_owned).to_vec();
        let invented = tamper(Tamper::Invent("b", "z"), &[acks]).unwrap();
        assert_eq!(invented[2], "[a |-> \"z\", e |-> 1]");
        let altered = tamper(Tamper::Alter("b", "v |-> 1", "v |-> 2"), &runs()).unwrap();
        assert_eq!(altered[1], "[a |-> \"b\", v |-> 2]");
    }

    #[test]
    fn a_model_that_followed_halfway_says_so() {
        let done = Done {
            output: "<<\"followed\", 2, 1, 3>>\n<<\"followed\", 2, 2, 3>>\n".to_owned(),
            seconds: 0.0,
            timed_out: false,
        };
        assert_eq!(progress(&done, 2), [0, 2]);
    }
}

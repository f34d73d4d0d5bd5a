//! `cargo xtask trace`: runs of the real machines are behaviours of the models, and runs that were
//! tampered with are not.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::checker::{Checker, Done, Job};
use super::fresh_dir;

const HEAP_MB: u64 = 1_500;
const LIMIT_S: u64 = 600;

/// Where traces of a model come from, and what must not be accepted.
struct Source {
    /// `tla/MODULE.tla` follows them.
    module: &'static str,
    /// Arguments of cargo; the program prints one record a line and an empty line after each run.
    cargo: &'static [&'static str],
    /// Ways to break a run.
    tampers: &'static [Tamper],
}

/// One way to make an untrue run of a true one. Each is tried on the first run that has what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tamper {
    /// An event of this kind never happened.
    Drop(&'static str),
    /// An event of the first kind happened before the one of the second kind about the same tag or store.
    Early(&'static str, &'static str),
    /// An event of this kind said something else.
    Alter(&'static str, &'static str, &'static str),
}

const SOURCES: &[Source] = &[Source {
    module: "TraceUblkDrv",
    cargo: &[
        "run",
        "-q",
        "-p",
        "ublk",
        "--example",
        "tag_trace",
        "--",
        "1",
        "24",
    ],
    tampers: &[
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
    ],
}];

/// Follows all traces; true if every true one was accepted and every broken one refused.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let checker = Checker::find(root, HEAP_MB, Duration::from_secs(LIMIT_S))?;
    let (mut passed, mut failed) = (0, 0);
    for source in SOURCES {
        let traces = record(root, source)?;
        let events: usize = traces.iter().map(Vec::len).sum();
        let (followed, seconds) = follow(root, &checker, source.module, "true", &traces)?;
        for (index, trace) in traces.iter().enumerate() {
            if followed[index] == trace.len() {
                passed += 1;
            } else {
                failed += 1;
                let at = followed[index];
                println!(
                    "FAILED {}: run {} is not explained from event {}:",
                    source.module,
                    index + 1,
                    at + 1
                );
                trace[at.saturating_sub(5)..(at + 1).min(trace.len())]
                    .iter()
                    .for_each(|line| println!("    {line}"));
            }
        }
        println!(
            "{}: {} runs, {events} events, {seconds:.1} s",
            source.module,
            traces.len()
        );
        let broken: Vec<_> = source
            .tampers
            .iter()
            .map(|t| (t, tamper(*t, &traces)))
            .collect();
        let untrue: Vec<_> = broken.iter().filter_map(|(_, b)| b.clone()).collect();
        let (followed, _) = follow(root, &checker, source.module, "broken", &untrue)?;
        let mut followed = followed.into_iter().zip(&untrue);
        for (how, trace) in &broken {
            let refused = trace.is_some() && followed.next().is_some_and(|(f, t)| f < t.len());
            match (trace, refused) {
                (Some(_), true) => passed += 1,
                (Some(_), false) => println!("FAILED {}: accepted after {how:?}", source.module),
                (None, _) => println!("FAILED {}: no run to try {how:?} on", source.module),
            }
            failed += usize::from(!refused);
        }
        println!(
            "{}: {} runs that were tampered with",
            source.module,
            untrue.len()
        );
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn record(root: &Path, source: &Source) -> Result<Vec<Vec<String>>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let got = Command::new(cargo)
        .current_dir(root)
        .args(source.cargo)
        .output()
        .context("cannot run cargo")?;
    ensure!(
        got.status.success(),
        "{}: the program that makes runs failed: {}",
        source.module,
        String::from_utf8_lossy(&got.stderr)
    );
    let text = String::from_utf8(got.stdout).context("a trace is text")?;
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
    module: &str,
    name: &str,
    traces: &[Vec<String>],
) -> Result<(Vec<usize>, f64)> {
    let dir = fresh_dir(root, &format!("{module}-{name}"))?;
    std::fs::write(dir.join("TraceData.tla"), data(traces))?;
    let config = root.join("tla").join(format!("{module}.cfg"));
    std::fs::copy(&config, dir.join(format!("{module}.cfg")))
        .with_context(|| config.display().to_string())?;
    let done = checker.run(&Job {
        dir: dir.clone(),
        module: module.to_owned(),
        keep_going: true,
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
fn data(traces: &[Vec<String>]) -> String {
    let mut text =
        "------------------------------ MODULE TraceData ------------------------------\n\
                    Traces == <<\n"
            .to_owned();
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

fn kind(line: &str) -> &str {
    line.split('"').nth(1).unwrap_or("")
}

/// The tag or store that an event is about.
fn subject(line: &str) -> Option<&str> {
    let field = |name: &str| line.split(name).nth(1)?.split([',', ']']).next();
    field("t |-> ").or_else(|| field("s |-> "))
}

/// Breaks the first run that can be broken this way, in its middle rather than at its start.
fn tamper(how: Tamper, traces: &[Vec<String>]) -> Option<Vec<String>> {
    traces.iter().find_map(|trace| {
        let mut trace = trace.clone();
        let wanted = |line: &String| match how {
            Tamper::Drop(a) | Tamper::Early(a, _) => kind(line) == a,
            Tamper::Alter(a, from, _) => kind(line) == a && line.contains(from),
        };
        let at = trace.iter().position(wanted)?;
        match how {
            // Something must follow that needs it.
            Tamper::Drop(_) => {
                trace.remove(at);
                (at + 20 < trace.len()).then_some(())?;
            }
            Tamper::Early(_, before) => {
                let about = subject(&trace[at]).map(str::to_owned);
                let same = |l: &String| kind(l) == before && subject(l) == about.as_deref();
                let earlier = trace[..at].iter().rposition(same)?;
                let line = trace.remove(at);
                trace.insert(earlier, line);
            }
            Tamper::Alter(_, from, to) => trace[at] = trace[at].replace(from, to),
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

//! What TLC said.

use std::fmt;
use std::path::{Path, PathBuf};

use super::checker::Done;
use super::checks::{Check, Expected};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// The invariant of that name; `Temporal` for a property.
    Broken(String),
    /// Nothing found in the time it had.
    TimedOut,
    /// TLC did not understand something, or ran out of memory.
    Error,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.pad("pass"),
            Self::Broken(what) => f.pad(what),
            Self::TimedOut => f.pad("stopped by time"),
            Self::Error => f.pad("error"),
        }
    }
}

/// Reads TLC's output.
pub(super) fn outcome_of(done: &Done) -> Outcome {
    for line in done.output.lines() {
        if let Some(rest) = line.strip_prefix("Error: Invariant ") {
            let name = rest.split_whitespace().next().unwrap_or("?");
            return Outcome::Broken(name.to_owned());
        }
        if line.starts_with("Error: Temporal properties were violated") {
            return Outcome::Broken("Temporal".to_owned());
        }
        if line.starts_with("Error: Action property ") || line.starts_with("Error: ") {
            return Outcome::Error;
        }
        if line.starts_with("Model checking completed. No error has been found.") {
            return Outcome::Passed;
        }
    }
    if done.timed_out {
        Outcome::TimedOut
    } else {
        Outcome::Error
    }
}

/// A line of the table.
#[derive(Debug)]
pub(super) struct Report {
    module: String,
    name: String,
    expected: Expected,
    outcome: Outcome,
    states: String,
    distinct: String,
    depth: String,
    seconds: f64,
    dir: PathBuf,
    tail: Vec<String>,
}

impl Report {
    pub(super) const HEADING: &str = "model            configuration        expected  result         \
          states   distinct  depth seconds";

    pub(super) fn new(check: &Check, dir: &Path, done: &Done) -> Self {
        let (states, distinct) = counts(&done.output);
        let lines: Vec<_> = done.output.lines().map(str::to_owned).collect();
        Self {
            module: check.module.clone(),
            name: check.name.clone(),
            expected: check.expected.clone(),
            outcome: outcome_of(done),
            states,
            distinct,
            depth: depth(&done.output),
            seconds: done.seconds,
            dir: dir.to_owned(),
            tail: lines[lines.len().saturating_sub(30)..].to_vec(),
        }
    }

    pub(super) fn as_expected(&self) -> bool {
        match (&self.expected, &self.outcome) {
            (Expected::Pass, Outcome::Passed) => true,
            (Expected::Broken(want), Outcome::Broken(got)) => want == got,
            (Expected::Pass | Expected::Broken(_), _) => false,
        }
    }

    /// Says what went wrong and where to read on.
    pub(super) fn explain(&self) {
        println!(
            "FAILED {} {}: expected {}, got {}; all of it in {}",
            self.module,
            self.name,
            self.expected,
            self.outcome,
            self.dir.join("tlc.out").display()
        );
        self.tail.iter().for_each(|line| println!("    {line}"));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<16} {:<20} {:<9} {:<12} {:>10} {:>10} {:>6} {:>7.1}{}",
            self.module,
            self.name,
            self.expected,
            self.outcome,
            self.states,
            self.distinct,
            self.depth,
            self.seconds,
            if self.as_expected() { "" } else { "  FAILED" }
        )
    }
}

/// The last "N states generated, M distinct states found".
fn counts(output: &str) -> (String, String) {
    let last = output
        .lines()
        .rfind(|l| l.contains("states generated") && l.contains("distinct states found"));
    let Some(line) = last else {
        return ("-".to_owned(), "-".to_owned());
    };
    let number_before = |word: &str| {
        let before = line
            .split(word)
            .next()
            .expect("even without it there is a first part");
        let number = before.split_whitespace().next_back().unwrap_or("-");
        number.replace(',', "")
    };
    (
        number_before(" states generated"),
        number_before(" distinct states found"),
    )
}

fn depth(output: &str) -> String {
    let mut lines = output.lines();
    let line = lines.rfind(|l| l.starts_with("The depth of the complete state graph search is"));
    if let Some(line) = line {
        let number = line.trim_end_matches('.').split_whitespace().next_back();
        return number.unwrap_or("-").to_owned();
    }
    // A run that found something says in which state of the behaviour it did.
    let states = output.lines().filter(|l| l.starts_with("State "));
    states
        .filter_map(|l| l.split([' ', ':']).nth(1)?.parse::<u32>().ok())
        .max()
        .map_or_else(|| "-".to_owned(), |n| n.to_string())
}

#[cfg(test)]
mod test {
    use super::*;

    fn done(output: &str, timed_out: bool) -> Done {
        Done {
            output: output.to_owned(),
            seconds: 0.0,
            timed_out,
        }
    }

    #[test]
    fn every_end_is_told_apart() {
        let table = [
            (
                "Error: Invariant ReadOK is violated.",
                Outcome::Broken("ReadOK".into()),
            ),
            (
                "Error: Temporal properties were violated.",
                Outcome::Broken("Temporal".into()),
            ),
            (
                "Model checking completed. No error has been found.",
                Outcome::Passed,
            ),
            (
                "Error: The configuration file did not parse",
                Outcome::Error,
            ),
            ("nothing of the kind", Outcome::Error),
        ];
        for (text, want) in table {
            assert_eq!(outcome_of(&done(text, false)), want, "{text}");
        }
        assert_eq!(outcome_of(&done("Progress(9)", true)), Outcome::TimedOut);
    }

    #[test]
    fn figures_are_found() {
        let text = "Progress(3): 9 states generated\n\
                    1,047,937 states generated, 229917 distinct states found, 0 states left on queue.\n\
                    The depth of the complete state graph search is 52.\n";
        assert_eq!(counts(text), ("1047937".into(), "229917".into()));
        assert_eq!(depth(text), "52");
        assert_eq!(
            depth("State 1: <Initial predicate>\nState 12: <Open>\n"),
            "12"
        );
    }
}

//! What came of it: a table, JSON, an exit code.

use crate::options::Output;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;
use tabled::builder::Builder;
use tabled::settings::Style;
use ubs_verify::{OpId, Verdict, VerdictKind};

/// Sentences kept of each kind of trouble; the rest is only counted.
const SENTENCES_MAX: usize = 16;

/// Counts of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) seconds: f64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) zeroes: u64,
    pub(crate) flushes: u64,
    pub(crate) io_errors: u64,
    pub(crate) longest_io: Duration,
    /// Longest time in which nothing completed.
    pub(crate) longest_gap: Duration,
    pub(crate) obeyed: Vec<OpId>,
    verdicts: [u64; VerdictKind::ALL.len()],
    wrong: Vec<String>,
    errors: Vec<String>,
}

impl Report {
    pub(crate) fn judged(&mut self, lba: u64, verdict: &Verdict) {
        let at = VerdictKind::ALL.iter().position(|k| *k == verdict.kind);
        self.verdicts[at.expect("all kinds")] += 1;
        if !verdict.is_legal() && self.wrong.len() < SENTENCES_MAX {
            self.wrong.push(format!("lba {lba}: {verdict}"));
        }
    }

    pub(crate) fn failed(&mut self, what: String) {
        self.io_errors += 1;
        if self.errors.len() < SENTENCES_MAX {
            self.errors.push(what);
        }
    }

    pub(crate) fn wrong_blocks(&self) -> u64 {
        let counts = VerdictKind::ALL.iter().zip(self.verdicts);
        counts.filter(|(k, _)| !k.is_legal()).map(|(_, n)| n).sum()
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.wrong_blocks() > 0 || !self.obeyed.is_empty() {
            ExitCode::from(1)
        } else if self.io_errors > 0 {
            ExitCode::from(3)
        } else {
            ExitCode::SUCCESS
        }
    }

    pub(crate) fn show(&self, output: Output) {
        match output {
            Output::Json => println!("{:#}", self.json()),
            Output::Table => print!("{}", self.table()),
        }
    }

    fn counts(&self) -> [(&'static str, u64); 7] {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        [
            ("reads", self.reads),
            ("writes", self.writes),
            ("zeroes", self.zeroes),
            ("flushes", self.flushes),
            ("ioErrors", self.io_errors),
            ("longestIoMs", ms(self.longest_io)),
            ("longestGapMs", ms(self.longest_gap)),
        ]
    }

    fn json(&self) -> Value {
        let mut counts: serde_json::Map<String, Value> = self
            .counts()
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count.into()))
            .collect();
        let verdicts: serde_json::Map<String, Value> = VerdictKind::ALL
            .iter()
            .zip(self.verdicts)
            .map(|(kind, count)| (kind.name().to_owned(), count.into()))
            .collect();
        counts.insert("seconds".to_owned(), self.seconds.into());
        counts.insert("verdicts".to_owned(), verdicts.into());
        counts.insert("wrongBlocks".to_owned(), self.wrong_blocks().into());
        counts.insert("wrong".to_owned(), json!(self.wrong));
        counts.insert("errors".to_owned(), json!(self.errors));
        let obeyed: Vec<String> = self.obeyed.iter().map(OpId::to_string).collect();
        counts.insert("fencedButObeyed".to_owned(), json!(obeyed));
        counts.into()
    }

    fn table(&self) -> String {
        let mut table = Builder::new();
        table.push_record(["what", "count"]);
        for (name, count) in self.counts() {
            table.push_record([name, &count.to_string()]);
        }
        for (kind, count) in VerdictKind::ALL.iter().zip(self.verdicts) {
            let legal = if kind.is_legal() {
                "blocks"
            } else {
                "blocks WRONG:"
            };
            if count > 0 || kind.is_legal() {
                table.push_record([format!("{legal} {kind}"), count.to_string()]);
            }
        }
        let mut text = table.build().with(Style::markdown()).to_string();
        text.push('\n');
        for line in self.wrong.iter().chain(&self.errors) {
            text.push_str(line);
            text.push('\n');
        }
        for op in &self.obeyed {
            text.push_str(&format!(
                "{op} was issued after its writer was fenced, and succeeded\n"
            ));
        }
        text
    }
}

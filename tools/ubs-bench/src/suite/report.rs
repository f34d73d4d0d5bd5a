//! The report: one budget per key of the architecture's table, with what was found.

use super::paired::{Ratio, median};
use crate::outcome::Outcome;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tabled::builder::Builder;
use tabled::settings::Style;

/// Part of the machine that others may use without making a sample worthless.
pub(crate) const FOREIGN_SHARE_MAX: f64 = 0.15;

/// Named numbers.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// Which way a bound binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    AtLeast,
    AtMost,
}

/// One line of a budget.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) ours: Option<Figures>,
    pub(crate) peer: Option<Figures>,
    pub(crate) ratio: Option<Ratio>,
    /// What aim and floor are about, if it is not the ratio.
    pub(crate) judged: Option<f64>,
    pub(crate) bound: Bound,
    pub(crate) aim: Option<f64>,
    pub(crate) floor: Option<f64>,
}

impl Row {
    /// A row of which nothing is known yet.
    pub(crate) fn new(name: impl Into<String>, aim: Option<f64>, floor: Option<f64>) -> Self {
        Self {
            name: name.into(),
            ours: None,
            peer: None,
            ratio: None,
            judged: None,
            bound: Bound::AtLeast,
            aim,
            floor,
        }
    }

    /// Whether others used so much of the machine that the figures say little.
    fn is_noisy(&self) -> bool {
        let share = |of: &Option<Figures>| of.as_ref()?.get("foreign_share").copied();
        let shares = [share(&self.ours), share(&self.peer)];
        shares
            .into_iter()
            .flatten()
            .any(|share| share > FOREIGN_SHARE_MAX)
    }

    /// How it went, in a word or two.
    fn verdict(&self) -> &'static str {
        let Some(found) = self.judged.or(self.ratio.map(|ratio| ratio.median)) else {
            return if self.aim.is_some() { "not judged" } else { "" };
        };
        let misses = |wanted: Option<f64>| {
            wanted.is_some_and(|wanted| match self.bound {
                Bound::AtLeast => found < wanted,
                Bound::AtMost => found > wanted,
            })
        };
        match (misses(self.floor), misses(self.aim), self.aim) {
            (true, ..) => "past the floor",
            (false, true, _) => "short of the aim",
            (false, false, Some(_)) => "met",
            (false, false, None) => "",
        }
    }
}

/// A budget.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// T1, T2 …
    pub(crate) key: &'static str,
    pub(crate) what: &'static str,
    pub(crate) against: &'static str,
    pub(crate) rows: Vec<Row>,
    /// Why something is not there.
    pub(crate) absent: Option<String>,
}

impl Budget {
    /// A budget that was not measured.
    pub(crate) fn absent(
        key: &'static str,
        what: &'static str,
        against: &'static str,
        why: &str,
    ) -> Self {
        let absent = Some(why.to_owned());
        Self {
            key,
            what,
            against,
            rows: Vec::new(),
            absent,
        }
    }

    fn json(&self) -> Value {
        let column = |of: &dyn Fn(&Row) -> Option<Value>| {
            let found: Map<String, Value> = self
                .rows
                .iter()
                .filter_map(|row| Some((row.name.clone(), of(row)?)))
                .collect();
            if found.is_empty() {
                Value::Null
            } else {
                Value::Object(found)
            }
        };
        json!({
            "what": self.what,
            "against": self.against,
            "ours": column(&|row| row.ours.as_ref().map(|figures| json!(figures))),
            "peer": column(&|row| row.peer.as_ref().map(|figures| json!(figures))),
            "ratio": column(&|row| row.ratio.map(|ratio| json!(ratio))),
            "aim": column(&|row| row.aim.map(|aim| json!(aim))),
            "floor": column(&|row| row.floor.map(|floor| json!(floor))),
            "noisy": column(&|row| row.is_noisy().then_some(json!(true))),
            "absent": self.absent,
        })
    }
}

/// The whole report as one document.
pub(crate) fn document(budgets: &[Budget], about: Value) -> Value {
    let mut document = Map::new();
    document.insert("apiVersion".into(), json!("ublkstor/v1"));
    document.insert("kind".into(), json!("BenchReport"));
    document.insert("about".into(), about);
    for budget in budgets {
        document.insert(budget.key.into(), budget.json());
    }
    Value::Object(document)
}

/// The report for people, as Markdown.
pub(crate) fn markdown(budgets: &[Budget]) -> String {
    let mut table = Builder::default();
    table.push_record([
        "budget",
        "case",
        "ours",
        "peer",
        "ratio",
        "aim [floor]",
        "verdict",
    ]);
    let mut notes = Vec::new();
    for budget in budgets {
        for row in &budget.rows {
            table.push_record([
                format!("{} {}", budget.key, budget.what),
                row.name.clone(),
                row.ours.as_ref().map_or_else(String::new, brief),
                row.peer.as_ref().map_or_else(String::new, brief),
                row.ratio.map_or_else(String::new, |r| {
                    format!("{:.2} ({:.2}–{:.2})", r.median, r.min, r.max)
                }),
                bounds(row),
                match (row.verdict(), row.is_noisy()) {
                    ("", _) => String::new(),
                    (verdict, true) => format!("{verdict} (noisy)"),
                    (verdict, false) => verdict.to_owned(),
                },
            ]);
        }
        if let Some(why) = &budget.absent {
            notes.push(format!(
                "- {} {} (against {}): {why}",
                budget.key, budget.what, budget.against
            ));
        }
    }
    let table = table.build().with(Style::markdown()).to_string();
    format!(
        "{table}\n\nNot measured, or without a peer:\n{}\n",
        notes.join("\n")
    )
}

fn bounds(row: &Row) -> String {
    let sign = match row.bound {
        Bound::AtLeast => '≥',
        Bound::AtMost => '≤',
    };
    match (row.aim, row.floor) {
        (Some(aim), Some(floor)) => format!("{sign} {aim} [{floor}]"),
        (Some(aim), None) => format!("{sign} {aim}"),
        (None, _) => String::new(),
    }
}

/// The figures that matter, in one cell.
fn brief(figures: &Figures) -> String {
    let mut parts = Vec::new();
    let mut add = |name: &str, show: &dyn Fn(f64) -> String| {
        if let Some(value) = figures.get(name) {
            parts.push(show(*value));
        }
    };
    if figures.get("bs").is_some_and(|bs| *bs > 65_536.0) {
        add("mb_per_s", &|v| format!("{v:.0} MB/s"));
    } else {
        add("iops", &thousands);
    }
    add("p50_us", &|v| format!("p50 {v:.0} µs"));
    add("p99_us", &|v| format!("p99 {v:.0} µs"));
    add("value", &|v| format!("{v:.3}"));
    parts.join(", ")
}

fn thousands(iops: f64) -> String {
    if iops >= 100_000.0 {
        format!("{:.0} k IOPS", iops / 1e3)
    } else {
        format!("{:.1} k IOPS", iops / 1e3)
    }
}

/// Medians over samples of one thing.
pub(crate) fn figures(samples: &[Outcome]) -> Option<Figures> {
    let first = samples.first()?;
    let middle = |of: &dyn Fn(&Outcome) -> f64| {
        median(&samples.iter().map(of).collect::<Vec<_>>()).unwrap_or_default()
    };
    let mut figures = Figures::from([
        ("bs", f64::from(first.bs)),
        ("iops", middle(&|o| o.iops)),
        ("mb_per_s", middle(&|o| o.mb_per_s)),
        ("p50_us", middle(&Outcome::p50_us)),
        ("p99_us", middle(&Outcome::p99_us)),
        ("load_cpu_s_per_mio", middle(&|o| o.cpu_s_per_mio)),
        ("load_enters_per_io", middle(&|o| o.enters_per_io)),
        ("foreign_share", middle(&|o| o.foreign_share)),
    ]);
    if first.peer_cpu_s_per_mio.is_some() {
        let target = middle(&|o| o.peer_cpu_s_per_mio.unwrap_or_default());
        figures.insert("target_cpu_s_per_mio", target);
    }
    Some(figures)
}

#[cfg(test)]
mod test {
    use super::*;

    fn row(found: f64, bound: Bound) -> Row {
        let ratio = Ratio {
            median: found,
            min: found,
            max: found,
            pairs: 1,
        };
        Row {
            ratio: Some(ratio),
            bound,
            ours: Some(Figures::from([("iops", 1234.0), ("p50_us", 7.0)])),
            ..Row::new("randread 4k QD1", Some(1.0), Some(0.9))
        }
    }

    #[test]
    fn verdicts_tell_aim_and_floor_apart() {
        for (found, verdict) in [
            (1.0, "met"),
            (0.95, "short of the aim"),
            (0.8, "past the floor"),
        ] {
            assert_eq!(row(found, Bound::AtLeast).verdict(), verdict, "{found}");
        }
        let at_most = Row {
            floor: Some(1.2),
            ..row(1.1, Bound::AtMost)
        };
        assert_eq!(at_most.verdict(), "short of the aim");
        assert_eq!(
            Row {
                ratio: None,
                ..at_most
            }
            .verdict(),
            "not judged"
        );
    }

    #[test]
    fn figures_taken_on_a_busy_machine_are_marked() {
        let busy = |share| {
            let ours = Figures::from([("iops", 1.0), ("foreign_share", share)]);
            let rows = vec![Row {
                ours: Some(ours),
                ..row(1.0, Bound::AtLeast)
            }];
            Budget {
                rows,
                ..Budget::absent("T1", "w", "p", "no peer")
            }
        };
        assert!(markdown(&[busy(0.2)]).contains("met (noisy)"));
        assert!(!markdown(&[busy(0.1)]).contains("noisy"));
        assert_eq!(busy(0.1).json()["noisy"], Value::Null);
    }

    #[test]
    fn what_was_not_measured_is_null_and_says_why() {
        let budgets = [
            Budget {
                rows: vec![row(1.0, Bound::AtLeast)],
                ..Budget::absent("T1", "w", "p", "no peer")
            },
            Budget::absent("T9", "w", "p", "later"),
        ];
        let document = document(&budgets, json!({}));
        assert_eq!(
            document["T1"]["ours"]["randread 4k QD1"]["iops"],
            json!(1234.0)
        );
        assert_eq!(
            document["T1"]["ratio"]["randread 4k QD1"]["median"],
            json!(1.0)
        );
        assert_eq!(document["T1"]["peer"], Value::Null);
        for column in ["ours", "peer", "ratio", "aim", "floor"] {
            assert_eq!(document["T9"][column], Value::Null);
        }
        assert_eq!(document["T9"]["absent"], json!("later"));
    }

    #[test]
    fn the_table_is_markdown_with_a_line_per_case() {
        let budget = Budget {
            rows: vec![row(1.0, Bound::AtLeast)],
            ..Budget::absent("T1", "w", "p", "no peer")
        };
        let text = markdown(&[budget]);
        let line = text
            .lines()
            .find(|line| line.contains("randread"))
            .expect("a line");
        assert!(
            line.starts_with('|') && line.contains("1.2 k IOPS") && line.contains("≥ 1 [0.9]"),
            "{line}"
        );
        assert!(text.contains("- T1 w (against p): no peer"));
    }
}

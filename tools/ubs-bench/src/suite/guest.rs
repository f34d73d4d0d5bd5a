//! What needs a kernel of our own: block devices beside each other in the VM. Only ratios mean
//! anything there.

use super::paired::{self, Ratio};
use super::report::{Budget, Figures, Row};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// One sample of a device: a line `bench DEVICE RW QD IOPS P50_US P99_US` of the script.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) device: String,
    pub(crate) load: String,
    pub(crate) iops: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Cases of T7, in the words of the script, with aim and floor against md-raid1.
const CASES: [(&str, &str, f64, f64); 4] = [
    ("randwrite 1", "randwrite 4k QD1", 1.0, 0.8),
    ("randwrite 32", "randwrite 4k QD32", 1.5, 1.2),
    ("randread 1", "randread 4k QD1", 1.0, 0.8),
    ("randread 32", "randread 4k QD32", 1.0, 0.8),
];

/// The samples among what a guest has printed.
pub(crate) fn parse(output: &str) -> Vec<Sample> {
    output.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Sample> {
    // The harness may put something before what the guest said.
    let (_, rest) = line.split_once("bench ")?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [device, rw, iodepth, iops, p50, p99] = words[..] else {
        return None;
    };
    Some(Sample {
        device: device.to_owned(),
        load: format!("{rw} {}", iodepth.parse::<u32>().ok()?),
        iops: iops.parse().ok()?,
        p50_us: p50.parse().ok()?,
        p99_us: p99.parse().ok()?,
    })
}

/// Samples by device and load, in the order of the rounds.
type Table<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a Sample>>;

fn by_case(samples: &[Sample]) -> Table<'_> {
    let mut table = Table::new();
    for sample in samples {
        let case = (sample.device.as_str(), sample.load.as_str());
        table.entry(case).or_default().push(sample);
    }
    table
}

fn iops(samples: &[&Sample]) -> Vec<f64> {
    samples.iter().map(|s| s.iops).collect()
}

fn figures(samples: Option<&Vec<&Sample>>) -> Option<Figures> {
    let samples = samples?;
    let middle = |of: &dyn Fn(&Sample) -> f64| {
        paired::median(&samples.iter().map(|s| of(s)).collect::<Vec<_>>())
    };
    Some(Figures::from([
        ("iops", middle(&|s| s.iops)?),
        ("p50_us", middle(&|s| s.p50_us)?),
        ("p99_us", middle(&|s| s.p99_us)?),
    ]))
}

fn ratio(table: &Table<'_>, a: &str, b: &str, load: &str) -> Option<Ratio> {
    paired::ratio(&iops(table.get(&(a, load))?), &iops(table.get(&(b, load))?))
}

/// T7 (our device, or one leg without any replication, beside md-raid1) and the peer's half of T8.
pub(crate) fn budgets(samples: &[Sample], why_not_ours: Option<&str>) -> Vec<Budget> {
    let table = by_case(samples);
    let (mut t7, mut t8) = (Vec::new(), Vec::new());
    for (load, name, aim, floor) in CASES {
        let peer = figures(table.get(&("md", load)));
        t7.push(Row {
            ours: figures(table.get(&("ours", load))),
            peer: peer.clone(),
            ratio: ratio(&table, "ours", "md", load),
            ..Row::new(name, Some(aim), Some(floor))
        });
        t7.push(Row {
            ours: figures(table.get(&("leg", load))),
            peer,
            ratio: ratio(&table, "leg", "md", load),
            ..Row::new(format!("{name}: one kernel nvme-tcp leg vs md"), None, None)
        });
        if let Some(found) = ratio(&table, "mdbitmap", "md", load) {
            let peer = Some(Figures::from([("value", found.median)]));
            t8.push(Row {
                peer,
                ..Row::new(name, Some(0.97), None)
            });
        }
    }
    vec![
        Budget {
            rows: t7,
            absent: why_not_ours.map(str::to_owned),
            ..Budget::absent(
                "T7",
                "/dev/ublkb0, 3 replicas, in the VM",
                "md-raid1 over 3 nvme-tcp legs",
                "",
            )
        },
        Budget {
            rows: t8,
            ..Budget::absent(
                "T8",
                "dirty tracking",
                "itself without; md with a bitmap is the peer's figure",
                "our tracking cannot be switched off, so there is nothing of ours to compare yet",
            )
        },
    ]
}

/// Runs a script in the VM; returns what the guest printed.
///
/// # Errors
/// The machine cannot run VMs, or the script failed: with what it said.
pub(crate) fn run(script: &Path, into: &Path, header: &str) -> Result<String> {
    let text = std::fs::read_to_string(script).with_context(|| script.display().to_string())?;
    let (first, rest) = text.split_once('\n').context("an empty script")?;
    // The guest gets no arguments; they are written into its script.
    let ready = into.join(script.file_name().context("a script has a name")?);
    std::fs::write(&ready, format!("{first}\n{header}\n{rest}"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["run", "-q", "-p", "vmtest", "--", "run", "--script"])
        .arg(&ready);
    command
        .env("UBS_VM_PROFILE", "release")
        .stdin(Stdio::null());
    let done = command.output().context("cannot start cargo")?;
    let mut output = String::from_utf8_lossy(&done.stdout).into_owned();
    output.push_str(&String::from_utf8_lossy(&done.stderr));
    let log = ready.with_extension("log");
    std::fs::write(&log, &output).with_context(|| log.display().to_string())?;
    if !done.status.success() {
        let said = output
            .lines()
            .find(|line| line.contains("FAILED:"))
            .or(output.lines().last());
        let said = said.unwrap_or("nothing was said");
        bail!("{}: {said}; see {}", script.display(), log.display());
    }
    Ok(output)
}

#[cfg(test)]
mod test {
    use super::*;

    const OUTPUT: &str = "== bench leg is nothing\n\
        bench md randwrite 1 1000 900.5 2000\n\
        guest: bench leg randwrite 1 2000 400 900\n\
        bench md randwrite 1 1100 900 2000\n\
        bench leg randwrite 1 1100 400 900\n\
        bench mdbitmap randwrite 1 500 1 1\n\
        bench mdbitmap randwrite 1 660 1 1\n\
        bench md randwrite x 1 1 1\n";

    #[test]
    fn samples_are_found_among_other_lines() {
        let seen = parse(OUTPUT);
        assert_eq!(seen.len(), 6);
        assert_eq!(
            (seen[0].device.as_str(), seen[0].load.as_str()),
            ("md", "randwrite 1")
        );
        assert!((seen[0].p50_us - 900.5).abs() < 1e-9);
    }

    #[test]
    fn rounds_are_paired_by_their_order() {
        let found = budgets(&parse(OUTPUT), Some("not here"));
        let leg = &found[0].rows[1];
        let seen = leg.ratio.expect("two pairs");
        assert_eq!((seen.max, seen.min, seen.pairs), (2.0, 1.0, 2));
        assert!(found[0].rows[0].ours.is_none() && found[0].rows[0].peer.is_some());
        assert_eq!(found[0].absent.as_deref(), Some("not here"));
        let bitmap = found[1].rows[0].peer.as_ref().expect("a figure");
        assert!((bitmap["value"] - 0.55).abs() < 1e-9);
    }
}

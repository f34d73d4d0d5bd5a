//! The table of mechanisms in `docs/replication.md` speaks of things that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const HEADING: &str = "## Each mechanism, and what shows that it is needed";
const COLUMNS: usize = 5;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The cells of each row of the first table after the heading.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let (_, rest) = text.split_once(HEADING).expect("the heading is there");
    let lines = rest.lines().skip_while(|l| !l.starts_with('|'));
    let table = lines.take_while(|l| l.starts_with('|'));
    table
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// Names of all Rust tests in the tree.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut names = BTreeSet::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("source is text");
                names.extend(tests_of(&text));
            }
        }
    }
    names
}

/// A test is a function after `#[test]` and other attributes, or in `proptest!`, which has both too.
fn tests_of(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| marked) {
            names.push(rest.split(['(', '<']).next().unwrap_or("").to_owned());
            marked = false;
        }
    }
    names
}

/// Names of configurations that must fail, and of those that are said to pass without.
fn configurations() -> BTreeSet<String> {
    let text = read("tla/checks.txt");
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|l| l.split_whitespace().nth(3).map(str::to_owned))
        .collect()
}

fn is_constant(name: &str) -> bool {
    name.strip_prefix('F')
        .is_some_and(|n| n.starts_with(|c: char| c.is_ascii_uppercase()))
}

fn constants() -> String {
    ["ReplicatedShard", "ResilverRecovery"]
        .map(|m| read(&format!("tla/{m}.cfg")))
        .concat()
}

#[test]
fn every_row_of_the_table_of_mechanisms_names_what_exists() {
    let text = read("docs/replication.md");
    let canaries = read("shardmap/src/canary.rs");
    let (tests, configurations, constants) = (tests(), configurations(), constants());
    let models = ["ReplicatedShard", "ResilverRecovery"].map(|m| read(&format!("tla/{m}.tla")));
    let rows = rows(&text);
    assert!(rows.len() > 20, "{} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let [what, _, model, canary, test] = row[..] else {
            panic!("{} columns instead of {COLUMNS}: {row:?}", row.len());
        };
        for name in quoted(model) {
            let exists = if is_constant(name) {
                constants.contains(&format!(" {name} = "))
            } else {
                let part = name.split('.').next().unwrap_or(name);
                configurations.contains(name) || models.iter().any(|m| m.contains(part))
            };
            if !exists {
                wrong.push(format!("{what}: no configuration or constant {name}"));
            }
        }
        for name in quoted(canary) {
            if !canaries.contains(&format!("= \"{name}\";")) {
                wrong.push(format!("{what}: no canary {name}"));
            }
        }
        for name in quoted(test) {
            if !tests.contains(name) {
                wrong.push(format!("{what}: no test {name}"));
            }
        }
        let nothing = quoted(test).next().is_none() && !test.contains("worlds");
        if nothing {
            wrong.push(format!(
                "{what}: no test named; write `worlds` if there is none"
            ));
        }
    }
    assert!(wrong.is_empty(), "docs/replication.md: {wrong:#?}");
}

#[test]
fn names_are_told_from_words() {
    let text =
        format!("{HEADING}\n\ntext\n\n| a | b |\n|---|---|\n| `x` and `y` | z |\n\n| no |\n");
    let rows = rows(&text);
    assert_eq!(rows, [["`x` and `y`", "z"]]);
    assert_eq!(quoted(rows[0][0]).collect::<Vec<_>>(), ["x", "y"]);
    assert!(is_constant("FMark") && !is_constant("Fair") && !is_constant("no_mark"));
    assert_eq!(
        tests_of("#[test]\n#[ignore]\nfn a() {}\nfn b() {}\n"),
        ["a"]
    );
}

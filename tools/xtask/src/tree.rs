//! The tree as a whole: files stay short and name no machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Finding;

/// Think at 600 lines, refuse at this many.
const LINES_MAX: usize = 1000;
/// First folders of absolute paths that exist on somebody's machine only.
const PRIVATE_FOLDERS: &[&str] = &["work", "farm", "root", "home", "Users"];
/// Where a URL may lead from a build file: the machine itself and names reserved for examples.
const HOSTS: &[&str] = &["localhost", "127.0.0.1", "[::1]"];
const EXAMPLE_ENDINGS: &[&str] = &[
    ".example",
    ".invalid",
    ".test",
    "example.com",
    "example.org",
];
/// The registry as every lock file names it.
const LOCK_SOURCE: &str = concat!("registry+https:", "//github.com/rust-lang/crates.io-index");

/// Files under version control or about to be, relative to the root.
pub(crate) fn files(root: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let got = git.output().context("cannot run git")?;
    ensure!(
        got.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&got.stderr)
    );
    let names = String::from_utf8_lossy(&got.stdout);
    let mut files: Vec<String> = names
        .split('\0')
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect();
    files.retain(|f| root.join(f).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// The text of a file, unless it is binary.
pub(crate) fn read_text(root: &Path, file: &str) -> Result<Option<String>> {
    let bytes = std::fs::read(root.join(file)).with_context(|| format!("cannot read {file}"))?;
    Ok(String::from_utf8(bytes).ok())
}

/// What is wrong with one file.
pub(crate) fn check(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: u32, text: String| {
        findings.push(Finding {
            file: file.to_owned(),
            line,
            text,
        })
    };
    let lines = text.lines().count();
    if is_code(file) && lines > LINES_MAX {
        find(
            0,
            format!("{lines} lines; {LINES_MAX} are the limit, think at 600"),
        );
    }
    for (line, number) in text.lines().zip(1..) {
        if let Some(folder) = private_folder(line) {
            find(number, format!("names /{folder}/, a path of one machine"));
        }
        if let Some(source) = foreign_source(file, line) {
            find(
                number,
                format!("names {source}: registries are configured on the machine, not here"),
            );
        }
    }
    findings
}

fn is_code(file: &str) -> bool {
    [".rs", ".sh", ".capnp"]
        .iter()
        .any(|ending| file.ends_with(ending))
}

fn private_folder(line: &str) -> Option<&'static str> {
    PRIVATE_FOLDERS.iter().copied().find(|folder| {
        let path = format!("/{folder}/");
        line.match_indices(&path).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || "._-}{)*/$>".contains(c))
        })
    })
}

/// A registry, mirror or other host that a build would talk to.
fn foreign_source(file: &str, line: &str) -> Option<String> {
    let name = file.rsplit('/').next().unwrap_or(file);
    if name == "Cargo.lock" {
        let source = line.strip_prefix("source = ")?.trim_matches('"');
        return (source != LOCK_SOURCE).then(|| source.to_owned());
    }
    let build_file = name == "Makefile"
        || file.starts_with(".ci/")
        || file.starts_with(".cargo/")
        || [".sh", ".toml", ".rs", ".mk"]
            .iter()
            .any(|ending| name.ends_with(ending));
    if !build_file || line.trim_start().starts_with("//") || line.contains("Documentation=") {
        return None;
    }
    hosts(line).into_iter().find(|host| !is_harmless(host))
}

/// The hosts of the URLs in a line.
fn hosts(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for scheme in ["http://", "https://"] {
        for (at, _) in line.match_indices(scheme) {
            let rest = &line[at + scheme.len()..];
            let bracketed = rest.starts_with('[');
            let end = rest.find(|c: char| match c {
                ']' | ':' => !bracketed,
                _ => !(c.is_alphanumeric() || "-.[".contains(c)),
            });
            found.push(rest[..end.unwrap_or(rest.len())].to_owned());
        }
    }
    found
}

/// The machine itself, an example, or no literal host at all (`http://{addr}`).
fn is_harmless(host: &str) -> bool {
    host.is_empty()
        || host.starts_with("[::1]")
        || HOSTS.contains(&host)
        || EXAMPLE_ENDINGS.iter().any(|ending| host.ends_with(ending))
        || host.starts_with("127.")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn long_code_is_found_and_long_data_is_not() {
        let text = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(check("store/src/lib.rs", &text).len(), 1);
        assert_eq!(check("fuzz/corpus.txt", &text), []);
        assert_eq!(check("store/src/lib.rs", &"x\n".repeat(LINES_MAX)), []);
    }

    #[test]
    fn paths_of_a_developers_machine_are_found() {
        for folder in PRIVATE_FOLDERS {
            let line = format!("see /{folder}/me/x");
            assert_eq!(check("README.md", &line).len(), 1, "{line}");
        }
        for good in [
            "target/work/x",
            "$HOME/work/",
            "a.work/b",
            "{dir}/root/x",
            "/var/lib/ublkstor",
        ] {
            assert_eq!(check("README.md", good), [], "{good}");
        }
    }

    #[test]
    fn hosts_in_build_files_are_found() {
        let url = |host: &str| format!("index = \"https:{}{host}/simple\"", "//");
        for (file, line) in [
            ("Makefile", url("pypi.mirror.net")),
            (".cargo/config.toml", url("crates.corp")),
        ] {
            assert_eq!(check(file, &line).len(), 1, "{line}");
        }
        for host in [
            "localhost",
            "127.0.0.1:9000",
            "[::1]:9",
            "one.example",
            "{addr}",
        ] {
            assert_eq!(check("tests/x.sh", &url(host)), [], "{host}");
        }
        assert_eq!(check("README.md", &url("nvmexpress.org")), []);
    }

    #[test]
    fn a_lock_file_names_the_one_registry() {
        assert_eq!(
            check("Cargo.lock", &format!("source = \"{LOCK_SOURCE}\"")),
            []
        );
        let mirror = format!("source = \"registry+https:{}crates.corp/index\"", "//");
        assert_eq!(check("Cargo.lock", &mirror).len(), 1);
    }
}

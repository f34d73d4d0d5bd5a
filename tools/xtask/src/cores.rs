//! Cores do no IO, know no clock and no thread, and hold tokens instead of buffers.

use crate::Finding;
use crate::lexer::{Mention, Token, mentions, without_tests};

/// A core's folder and what of its own crate it may import (`None`: everything).
const CORES: &[(&str, Option<&[&str]>)] = &[
    ("nvmf/src/proto", Some(&["proto", "limits"])),
    ("store/src/core", Some(&["core", "limits"])),
    ("volume/src/core", Some(&["core", "limits"])),
    ("control/src/core", Some(&["core", "limits"])),
    ("tools/ubs-verify/src/core", Some(&["core", "limits"])),
    ("shardmap/src", None),
];

/// Beginnings of paths a core may not mention, and why.
const FORBIDDEN_PATHS: &[(&[&str], &str)] = &[
    (&["std", "fs"], "does file IO"),
    (&["std", "io", "stdin"], "does IO"),
    (&["std", "io", "stdout"], "does IO"),
    (&["std", "io", "stderr"], "does IO"),
    (&["std", "net"], "does network IO"),
    (&["std", "os"], "talks to the operating system"),
    (&["std", "env"], "reads the environment"),
    (&["std", "process"], "deals with processes"),
    (&["std", "thread"], "has threads"),
    (&["std", "sync", "mpsc"], "has threads"),
    (&["std", "sync", "Mutex"], "has threads"),
    (
        &["std", "time", "Instant"],
        "reads a clock; time is an argument",
    ),
    (
        &["std", "time", "SystemTime"],
        "reads a clock; time is an argument",
    ),
    (&["tokio"], "has a runtime"),
    (&["futures"], "has a runtime"),
    (&["reactor"], "does IO; a core holds tokens"),
    (&["tracing"], "logs; a core has trace events"),
    (&["libc"], "talks to the operating system"),
    (&["rustix"], "talks to the operating system"),
    (&["crossbeam"], "has threads"),
];

/// Plain values that live in a forbidden module.
const VALUES: &[&[&str]] = &[
    &["std", "net", "SocketAddr"],
    &["std", "net", "SocketAddrV4"],
    &["std", "net", "SocketAddrV6"],
    &["std", "net", "IpAddr"],
    &["std", "net", "Ipv4Addr"],
    &["std", "net", "Ipv6Addr"],
];

/// Words a core may not mention anywhere in a path.
const FORBIDDEN_WORDS: &[(&str, &str)] = &[
    ("HashMap", "has no order; use BTreeMap or a table"),
    ("HashSet", "has no order; use BTreeSet or a bitmap"),
    ("Instant", "reads a clock; time is an argument"),
    ("SystemTime", "reads a clock; time is an argument"),
    ("async", "waits; a core is `step`"),
    ("await", "waits; a core is `step`"),
    ("println", "prints"),
    ("eprintln", "prints"),
];

/// What a source file of a core mentions and may not; nothing for other files and for tests.
pub(crate) fn check(file: &str, tokens: &[Token]) -> Vec<Finding> {
    let Some((core, own)) = core_of(file) else {
        return Vec::new();
    };
    if is_test_file(file) {
        return Vec::new();
    }
    let module = module_of(file);
    let mut findings = Vec::new();
    for mention in mentions(&without_tests(tokens)) {
        let why =
            forbidden(&mention).or_else(|| own.and_then(|own| outside(&mention, &module, own)));
        if let Some(why) = why {
            let path = mention.segments.join("::");
            let text = format!("core {core} mentions {path}, which {why}");
            findings.push(Finding {
                file: file.to_owned(),
                line: mention.line,
                text,
            });
        }
    }
    findings
}

type Core = (&'static str, Option<&'static [&'static str]>);

fn core_of(file: &str) -> Option<Core> {
    let inside = |core: &str| {
        file.strip_prefix(core)
            .is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    };
    CORES.iter().copied().find(|(core, _)| inside(core))
}

fn is_test_file(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    name == "test.rs" || name.ends_with("_test.rs") || file.contains("/test/")
}

/// `store/src/core/extent/map.rs` is `[core, extent, map]`; `mod.rs` and `lib.rs` name no module.
fn module_of(file: &str) -> Vec<String> {
    let inside = file.split_once("/src/").map_or(file, |(_, inside)| inside);
    let parts = inside.trim_end_matches(".rs").split('/');
    parts
        .filter(|p| !matches!(*p, "mod" | "lib"))
        .map(str::to_owned)
        .collect()
}

fn forbidden(mention: &Mention) -> Option<String> {
    let starts = |path: &[&str]| {
        mention.segments.len() >= path.len()
            && path.iter().zip(&mention.segments).all(|(a, b)| a == b)
    };
    if VALUES.iter().any(|value| starts(value)) {
        return None;
    }
    let by_path = FORBIDDEN_PATHS
        .iter()
        .find(|(path, _)| starts(path))
        .map(|(_, why)| *why);
    let by_word = || {
        let found = FORBIDDEN_WORDS
            .iter()
            .find(|(w, _)| mention.segments.iter().any(|s| s == w));
        found.map(|(_, why)| *why)
    };
    // `reactor` alone may be a field or a module of ours; as the first of a path it is the crate.
    let single = mention.segments.len() == 1;
    by_path
        .filter(|_| !single)
        .or_else(by_word)
        .map(str::to_owned)
}

/// Whether a path leads into a part of the own crate that is not a core's.
fn outside(mention: &Mention, module: &[String], own: &[&str]) -> Option<String> {
    let place = resolve(&mention.segments, module)?;
    let first = place.first()?;
    let is_module = first.chars().next().is_some_and(char::is_lowercase);
    (is_module && !own.contains(&first.as_str())).then(|| {
        format!(
            "is a shell of its crate (a core imports {} only)",
            own.join(", ")
        )
    })
}

/// The absolute path inside the crate of one that begins with `crate` or `super`.
fn resolve(segments: &[String], module: &[String]) -> Option<Vec<String>> {
    match segments.first().map(String::as_str) {
        Some("crate") => Some(segments[1..].to_vec()),
        Some("super") => {
            let ups = segments.iter().take_while(|s| *s == "super").count();
            let base = &module[..module.len().saturating_sub(ups)];
            Some(base.iter().chain(&segments[ups..]).cloned().collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::lexer::tokens;

    fn found(file: &str, text: &str) -> usize {
        check(file, &tokens(text)).len()
    }

    #[test]
    fn io_clocks_threads_and_hashing_are_found_however_they_are_written() {
        for text in [
            "use std::fs;",
            "use std::net;",
            "use std::{collections::BTreeMap, net::TcpStream};",
            "use std::time::{Duration, Instant};",
            "let now = std::time::SystemTime::now();",
            "use std::collections::HashMap as Map;",
            "fn f(x: std::collections::HashSet<u8>) {}",
            "use tokio::sync::mpsc;",
            "tracing::info!(\"x\");",
            "use reactor::Buf;",
            "async fn f() {}",
            "std::thread::spawn(f);",
        ] {
            assert_eq!(found("store/src/core/map.rs", text), 1, "{text}");
            assert_eq!(found("shardmap/src/map.rs", text), 1, "{text}");
            assert_eq!(found("store/src/shell.rs", text), 0, "{text}");
        }
    }

    #[test]
    fn pure_words_pass() {
        for text in [
            "use std::collections::{BTreeMap, VecDeque};",
            "use std::time::Duration;",
            "use std::net::{IpAddr, SocketAddr};",
            "impl From<std::io::Error> for Corrupt {}",
            "// std::fs in a comment\nlet x = \"std::fs\";",
            "struct Facts { reactor: u32 }",
        ] {
            assert_eq!(found("nvmf/src/proto/pdu.rs", text), 0, "{text}");
        }
    }

    #[test]
    fn tests_of_a_core_may_do_what_they_like() {
        let text = "#[cfg(test)] mod test { use std::collections::HashMap; use std::fs; }";
        assert_eq!(found("volume/src/core/write.rs", text), 0);
        assert_eq!(found("volume/src/core/write/test.rs", "use std::fs;"), 0);
    }

    #[test]
    fn a_shell_is_found_by_crate_and_by_super() {
        let core = "nvmf/src/proto/host/machine.rs";
        assert_eq!(found(core, "use crate::target::Target;"), 1);
        assert_eq!(found(core, "use crate::{limits, initiator::Pool};"), 1);
        assert_eq!(found(core, "use super::super::super::target::Target;"), 1);
        assert_eq!(
            found(
                core,
                "use super::super::pdu::Pdu; use crate::proto::pdu::Pdu;"
            ),
            0
        );
        assert_eq!(
            found("nvmf/src/proto/mod.rs", "use super::target::Target;"),
            1
        );
        assert_eq!(found("nvmf/src/proto.rs", "use crate::target::Target;"), 1);
    }
}

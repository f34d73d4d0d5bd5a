//! Unsafe code stays in the rooms that own kernel-visible memory.

use crate::Finding;
use crate::lexer::Token;

/// Crates whose roots need not forbid unsafe code: the ring, and generated code.
const MAY: &[&str] = &["reactor", "ubs-capnp"];
/// Crates that deny it but for one module: ublk maps device memory and fills control commands,
/// control opens LMDB's map.
const BUT_FOR_ONE_MODULE: &[(&str, &str)] = &[
    ("ublk", "ublk/src/sys"),
    ("control", "control/src/raft/env"),
];

/// A crate root must forbid unsafe code, or deny it where one module may have it.
pub(crate) fn check_root(package: &str, file: &str, tokens: &[Token]) -> Option<Finding> {
    if MAY.contains(&package) || file.ends_with("build.rs") {
        return None;
    }
    let by_module = BUT_FOR_ONE_MODULE.iter().any(|(p, _)| *p == package);
    let says = |level: &str| {
        tokens
            .windows(3)
            .any(|w| w[0].is_word(level) && w[2].is_word("unsafe_code"))
    };
    if says("forbid") || (by_module && says("deny")) {
        return None;
    }
    let text = "begin this crate root with #![forbid(unsafe_code)]".to_owned();
    Some(Finding {
        file: file.to_owned(),
        line: 0,
        text,
    })
}

/// No file outside of those rooms has the word.
pub(crate) fn check_file(file: &str, tokens: &[Token]) -> Vec<Finding> {
    let folder = file.split('/').next().unwrap_or(file);
    let room = folder == "reactor"
        || folder == "capnp"
        || BUT_FOR_ONE_MODULE
            .iter()
            .any(|(_, module)| file.starts_with(module));
    if room {
        return Vec::new();
    }
    let found = tokens.iter().filter(|t| t.is_word("unsafe"));
    let text = "unsafe code belongs into reactor or ublk's sys module";
    found
        .map(|t| Finding {
            file: file.to_owned(),
            line: t.line,
            text: text.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::lexer::tokens;

    #[test]
    fn a_root_that_does_not_forbid_is_found() {
        let root = |package, text| check_root(package, "x/src/lib.rs", &tokens(text)).is_some();
        assert!(root("store", "//! Words.\nmod core;"));
        assert!(root("store", "#![deny(unsafe_code)]"));
        assert!(root("store", "// #![forbid(unsafe_code)]"));
        assert!(!root("store", "#![forbid(unsafe_code)]"));
        assert!(!root("ublk", "#![deny(unsafe_code)]"));
        assert!(!root("reactor", ""));
    }

    #[test]
    fn unsafe_blocks_outside_their_rooms_are_found() {
        let text = "fn f() { unsafe { g() } } // unsafe\n";
        assert_eq!(check_file("store/src/lib.rs", &tokens(text)).len(), 1);
        assert_eq!(check_file("ublk/src/queue.rs", &tokens(text)).len(), 1);
        assert_eq!(check_file("ublk/src/sys.rs", &tokens(text)), []);
        assert_eq!(check_file("reactor/src/uring/ring.rs", &tokens(text)), []);
    }
}

//! The program on a file: what it says, and its exit code.
#![forbid(unsafe_code)]
#![allow(
    clippy::tests_outside_test_module,
    reason = "the whole file is one: cargo builds it for tests only"
)]

use std::path::Path;
use std::process::{Command, Output};

fn verify(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ubs-verify"));
    command
        .current_dir(dir)
        .args(["-o", "json"])
        .args(arguments);
    command.output().expect("the program starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

/// The last document that it printed.
fn report(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let documents = serde_json::Deserializer::from_str(&text).into_iter();
    let last = documents.last().expect("a report");
    last.unwrap_or_else(|why| panic!("{why}: {text}"))
}

fn device() -> tempfile::TempDir {
    // Direct IO: not every temporary folder can do that, the build folder can.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = std::fs::File::create(dir.path().join("dev")).unwrap();
    file.set_len(4 << 20).unwrap();
    dir
}

#[test]
fn what_was_written_is_found_and_what_is_gone_is_missed() {
    let dir = device();
    let run = verify(
        dir.path(),
        &["run", "dev", "--journal", "j", "--fresh", "--ops", "600"],
    );
    assert_eq!(code(&run), 0, "{run:?}");
    assert_eq!(report(&run)["verdicts"]["current"], 1024);
    let old = std::fs::read(dir.path().join("dev")).unwrap();
    let load = [
        "write",
        "dev",
        "--journal",
        "j",
        "--ops",
        "300",
        "--seed",
        "2",
    ];
    assert_eq!(code(&verify(dir.path(), &load)), 0);
    let check = ["check", "dev", "--journal", "j", "--since", "unclean"];
    assert_eq!(code(&verify(dir.path(), &check)), 0);
    std::fs::write(dir.path().join("dev"), &old).unwrap();
    let check = verify(dir.path(), &check);
    assert_eq!(code(&check), 1);
    assert!(
        report(&check)["wrongBlocks"].as_u64() > Some(50),
        "{check:?}"
    );
}

#[test]
fn a_swapped_and_a_damaged_block_are_named() {
    let dir = device();
    let load = [
        "run",
        "dev",
        "--journal",
        "j",
        "--fresh",
        "--pattern",
        "sequential",
    ];
    let load = [&load[..], &["--zero-percent", "0", "--ops", "800"]].concat();
    assert_eq!(code(&verify(dir.path(), &load)), 0);
    let mut bytes = std::fs::read(dir.path().join("dev")).unwrap();
    let (front, back) = bytes.split_at_mut(20 * 4096);
    front[..4096].swap_with_slice(&mut back[..4096]);
    bytes[33 * 4096 + 5] ^= 1;
    std::fs::write(dir.path().join("dev"), &bytes).unwrap();
    let check = verify(dir.path(), &["check", "dev", "--journal", "j"]);
    assert_eq!(code(&check), 1);
    let report = report(&check);
    assert_eq!(report["verdicts"]["misdirected"], 2, "{report}");
    assert_eq!(report["wrongBlocks"], 3, "{report}");
}

#[test]
fn a_command_that_cannot_be_carried_out_says_why() {
    let dir = device();
    for (arguments, why) in [
        (
            &["check", "dev", "--journal", "none"][..],
            "cannot be read back",
        ),
        (&["write", "absent", "--journal", "j"], "absent"),
        (
            &["write", "dev", "--journal", "j", "--blocks", "9999"],
            "has 1024 blocks only",
        ),
    ] {
        let seen = verify(dir.path(), arguments);
        let text = String::from_utf8_lossy(&seen.stderr).into_owned();
        assert!(
            code(&seen) == 2 && text.contains(why),
            "{arguments:?}: {text}"
        );
    }
}

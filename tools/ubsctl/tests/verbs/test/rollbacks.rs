//! Rolling back by name. Nothing is written to the volumes.

use super::lab::Lab;
use control::core::Rollback;
use shardmap::units::Generation;

/// A lab with the detached volume `v` and its complete snapshot `good`, generation 1.
fn with_snapshot() -> Lab {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    lab.ok(&["snapshot", "create", "v@good"]);
    lab
}

/// A storaged has the volume, and what it showed is kept.
fn until_under_way(lab: &Lab) {
    lab.until(|| {
        let shown = lab.json(&["volume", "show", "v"]);
        shown["state"] == "rolling-back" && shown["pendingSnapshot"] == ""
    });
}

const GOOD: &[&str] = &["snapshot", "rollback", "v@good", "--yes"];

#[test]
fn a_rollback_says_what_is_kept_how_far_it_is_and_how_it_is_undone() {
    let lab = with_snapshot();
    let told = lab.ok(&[GOOD, &["--keep-as", "bad"]].concat());
    for part in [
        "rolls back to  v@good",
        "kept as        v@bad",
        "ubsctl volume explain v",
        "ubsctl snapshot rollback v@bad --yes",
    ] {
        assert!(told.contains(part), "{told}");
    }
    lab.ok(&["volume", "attach", "v", "--on", "h1"]);
    until_under_way(&lab);
    lab.until(|| {
        let why = lab.ok(&["volume", "explain", "v"]);
        why.contains("says: rolling back, 40 %")
    });
    let why = lab.ok(&["volume", "explain", "v"]);
    assert!(
        why.contains("volume v is rolling-back, 3/3 in sync"),
        "{why}"
    );
    assert!(
        why.contains("it is being rolled back to good; storaged on s"),
        "{why}"
    );
    assert!(
        why.contains("nobody can attach it, and h1 waits for it"),
        "{why}"
    );
    assert!(!why.contains("has not"), "{why}");
    let shown = lab.json(&["volume", "show", "v"]);
    assert_eq!(shown["rollsBackTo"], "good");
    assert!(lab.ok(&["volume", "ls"]).contains("rolling-back"));
    let status = lab.json(&["status"]);
    let none: [&str; 0] = [];
    let of_v = status["attention"].as_array().unwrap().iter();
    let of_v: Vec<_> = of_v
        .filter(|a| a.as_str().unwrap().contains("volume v"))
        .collect();
    assert_eq!(of_v, none);
    assert_eq!(status["volumes"]["rolling-back"], 1);
    let events = lab.ok(&["events"]);
    assert!(
        events.contains("is to show what its snapshot good shows"),
        "{events}"
    );
    lab.ok(&["meta", "fsck"]);
}

#[test]
fn what_is_not_meant_or_in_use_is_not_rolled_back() {
    let lab = with_snapshot();
    let before = lab.state();
    let refused = |args: &[&str], code, parts: [&str; 2]| {
        let (found, said) = lab.fails(args);
        assert_eq!(found, code, "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: {said} lacks {part:?}");
        }
    };
    refused(
        &["snapshot", "rollback", "v@good"],
        3,
        ["volume v back to v@good", "--yes"],
    );
    refused(
        &["snapshot", "rollback", "v@gone", "--yes"],
        5,
        ["no snapshot v@gone", "ubsctl snapshot ls"],
    );
    refused(
        &[GOOD, &["--keep-as", "good"]].concat(),
        1,
        ["v@good already", "another name"],
    );
    refused(
        &[GOOD, &["--keep-as", "a/b"]].concat(),
        2,
        ["\"a/b\"", "letters, digits"],
    );
    assert_eq!(lab.state(), before);
    lab.ok(&["volume", "attach", "v", "--on", "h1", "--wait"]);
    refused(GOOD, 3, ["attached on h1", "ubsctl volume detach v"]);
    assert_eq!(lab.json(&["snapshot", "ls"]), before[1]);
}

#[test]
fn a_rollback_in_scripts_names_what_is_kept_and_another_takes_its_place() {
    let lab = with_snapshot();
    let told = lab.json(GOOD);
    assert_eq!(
        (&told["kind"], &told["volume"], &told["rollsBackTo"]),
        (&"Rollback".into(), &"v".into(), &"v@good".into())
    );
    let kept = told["keptAs"].as_str().unwrap();
    assert!(kept.starts_with("v@before-rollback-2"), "{kept}");
    until_under_way(&lab);
    assert!(
        lab.ok(&["snapshot", "ls", "v", "-o", "name"])
            .contains(kept)
    );
    let (code, said) = lab.fails(&["snapshot", "rm", kept]);
    assert_eq!(code, 3, "{said}");
    let undone = lab.ok(&["snapshot", "rollback", kept, "--yes", "-o", "name"]);
    assert!(undone.starts_with("v@before-rollback-2") && undone.trim() != kept);
    let shown = lab.json(&["volume", "show", "v"]);
    assert_eq!(
        format!("v@{}", shown["rollsBackTo"].as_str().unwrap()),
        kept
    );
}

#[test]
fn a_rollback_is_waited_for() {
    let lab = with_snapshot();
    let bad: &[&str] = &["--keep-as", "bad", "--wait", "--timeout", "1"];
    let (code, said) = lab.fails(&[GOOD, bad].concat());
    assert_eq!(code, 4, "{said}");
    assert!(
        said.contains("kept as v@bad") && said.contains("explain v"),
        "{said}"
    );
    until_under_way(&lab);
    let worse: &[&str] = &["--keep-as", "worse", "--wait"];
    let told = std::thread::scope(|scope| {
        let told = scope.spawn(|| lab.ok(&[GOOD, worse].concat()));
        lab.until(|| lab.json(&["volume", "show", "v"])["headGeneration"] == 4);
        until_under_way(&lab);
        let rollback = Rollback {
            to: Generation(1),
            before: Generation(3),
        };
        lab.end_rollback("v", rollback);
        told.join().unwrap()
    });
    assert!(
        told.contains("volume v shows again what v@good shows"),
        "{told}"
    );
    lab.until(|| lab.json(&["volume", "show", "v"])["state"] == "detached");
    lab.ok(&["snapshot", "rm", "v@worse"]);
    lab.ok(&["meta", "fsck"]);
}

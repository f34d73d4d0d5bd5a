//! Snapshots by name.

use super::lab::Lab;

/// `STATE` of a snapshot.
fn state(lab: &Lab, name: &str) -> String {
    let shown = lab.json(&["snapshot", "show", name]);
    shown["state"].as_str().unwrap().to_owned()
}

fn names(lab: &Lab, args: &[&str]) -> Vec<String> {
    let mut all = vec!["snapshot", "ls", "-o", "name"];
    all.extend(args);
    lab.ok(&all).lines().map(str::to_owned).collect()
}

#[test]
fn a_snapshot_from_create_to_rm() {
    let lab = Lab::begin();
    for volume in ["v", "w"] {
        lab.ok(&["volume", "create", volume, "--size", "1GiB", "--wait"]);
    }
    lab.ok(&["volume", "attach", "v", "--on", "h1", "--wait"]);
    let made = lab.json(&["snapshot", "create", "v", "a"]);
    assert_eq!(made["kind"], "SnapshotList");
    assert_eq!(made["items"][0]["state"], "complete");
    assert_eq!(made["items"][0]["generation"], 1);
    assert!(made["items"][0]["createdUnixMs"].as_u64().unwrap() > 1 << 40);
    // One that a host has, and one that nobody has.
    let table = lab.ok(&["snapshot", "create", "v,w", "b"]);
    assert_eq!(table.matches("complete").count(), 2, "{table}");
    assert_eq!(names(&lab, &[]), ["v@a", "v@b", "w@b"]);
    let events = lab.ok(&["events"]);
    assert!(!events.contains("is given up"), "{events}");
    assert_eq!(names(&lab, &["w"]), ["w@b"]);
    let shown = lab.json(&["volume", "show", "v"]);
    assert_eq!(
        (&shown["snapshots"], &shown["headGeneration"]),
        (&2.into(), &3.into())
    );
    assert!(
        lab.ok(&["volume", "show", "w"])
            .contains("snapshots              1")
    );
    lab.ok(&["snapshot", "rm", "v@a"]);
    assert_eq!(names(&lab, &[]), ["v@b", "w@b"]);
    let (code, said) = lab.fails(&["snapshot", "rm", "v@a"]);
    assert_eq!(code, 5, "{said}");
    assert!(
        said.contains("no snapshot v@a") && said.contains("ubsctl snapshot ls"),
        "{said}"
    );
    let events = lab.ok(&["events"]);
    for event in [
        "snapshot v@a is pending",
        "snapshot w@b is complete",
        "snapshot v@a is deleted",
    ] {
        assert!(events.contains(event), "{events}");
    }

    let (code, said) = lab.fails(&["volume", "delete", "w", "--yes"]);
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("has 1 snapshots") && said.contains("--with-snapshots"),
        "{said}"
    );
    lab.ok(&[
        "volume",
        "delete",
        "w",
        "--yes",
        "--with-snapshots",
        "--wait",
    ]);
    lab.ok(&["meta", "fsck"]);
}

#[test]
fn a_clone_from_its_snapshot_to_the_end() {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    lab.ok(&["snapshot", "create", "v", "a"]);
    let made = lab.json(&["snapshot", "clone", "v@a", "w", "--wait"]);
    assert_eq!(
        (&made["kind"], &made["cloneOf"]),
        (&"Clone".into(), &"v@a".into())
    );
    let shown = lab.ok(&["volume", "show", "w"]);
    assert!(shown.contains("clone of               v@a"), "{shown}");
    let why = lab.ok(&["volume", "explain", "w"]);
    assert!(why.contains("it is a clone of snapshot v@a"), "{why}");
    let (code, said) = lab.fails(&["snapshot", "clone", "v@b", "x"]);
    assert_eq!(code, 5, "{said}");
    let (code, said) = lab.fails(&["volume", "delete", "v", "--yes", "--with-snapshots"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("has clones") && said.contains("w"), "{said}");
    lab.ok(&["snapshot", "rm", "v@a"]);
    assert_eq!(names(&lab, &[]), [""; 0]);
    let shown = lab.json(&["volume", "show", "w"]);
    assert_eq!(shown["cloneOf"], "v@a (deleted)");
    lab.ok(&["volume", "delete", "w", "--yes", "--wait"]);
    let events = lab.ok(&["events"]);
    assert!(
        events.contains("snapshot v@a was kept for clones, which are gone"),
        "{events}"
    );
    lab.ok(&["volume", "delete", "v", "--yes", "--wait"]);
    lab.ok(&["meta", "fsck"]);
}

#[test]
fn a_snapshot_of_several_volumes_is_there_of_all_or_of_none() {
    let lab = Lab::begin();
    for volume in ["v", "w"] {
        lab.ok(&["volume", "create", volume, "--size", "1GiB", "--wait"]);
    }
    // Nobody plays a clientd on this host: w is never held, and v waits for it.
    lab.ok(&["volume", "attach", "w", "--on", "absent"]);
    let args = ["snapshot", "create", "v@a", "w@a", "--timeout", "1"];
    let (code, said) = lab.fails(&args);
    assert_eq!(code, 4, "{said}");
    assert_eq!([state(&lab, "v@a"), state(&lab, "w@a")], ["pending"; 2]);
    let why = lab.ok(&["volume", "explain", "v"]);
    assert!(
        why.contains("of one moment with others and waits for w"),
        "{why}"
    );
    // Of one who gives it up all are gone, and their names are free.
    lab.ok(&["snapshot", "rm", "w@a"]);
    assert_eq!(names(&lab, &[]), [""; 0]);
    let events = lab.ok(&["events"]);
    assert!(events.contains("snapshot v@a is given up"), "{events}");
    lab.until(|| lab.json(&["volume", "show", "v"])["pendingSnapshot"] == "");
    lab.ok(&["snapshot", "create", "v@a"]);
    lab.ok(&["meta", "fsck"]);
}

#[test]
fn a_snapshot_that_nobody_can_complete_is_waited_for_and_said_to_be_pending() {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    // Nobody plays a clientd on this host.
    lab.ok(&["volume", "attach", "v", "--on", "absent"]);
    let (code, said) = lab.fails(&["snapshot", "create", "v", "a", "--timeout", "1"]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("snapshot v@a is still pending"), "{said}");
    assert_eq!(state(&lab, "v@a"), "pending");
    let why = lab.ok(&["volume", "explain", "v"]);
    assert!(
        why.contains("snapshot a is not complete yet; absent does it"),
        "{why}"
    );
    let (code, said) = lab.fails(&["snapshot", "create", "v", "b", "--no-wait"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("snapshot v@a is still pending"), "{said}");
    let (code, said) = lab.fails(&["snapshot", "rm", "v@a"]);
    assert_eq!(code, 1, "{said}");
    // Now that nobody shall have it, a storaged does it.
    lab.ok(&["volume", "detach", "v"]);
    lab.ok(&["volume", "force-detach", "v"]);
    lab.until(|| state(&lab, "v@a") == "complete");
}

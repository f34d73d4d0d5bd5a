//! `ubsctl doctor`. What it finds on this machine depends on the machine; that it speaks, does not.

use super::lab::Lab;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn doctor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ubsctl"))
        .env_remove("UBS_METAD")
        .arg("doctor")
        .args(args)
        .output()
        .unwrap()
}

fn items(output: &Output) -> Vec<Value> {
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["kind"], "Diagnosis");
    document["items"].as_array().unwrap().clone()
}

fn find<'a>(items: &'a [Value], check: &str) -> Vec<&'a Value> {
    items.iter().filter(|i| i["check"] == check).collect()
}

#[test]
fn a_host_is_looked_at_without_a_cluster_and_without_configurations() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let output = doctor(&["--host-only", "--config-dir", path, "-o", "json"]);
    let items = items(&output);
    for check in [
        "kernel",
        "io_uring",
        "ublk driver",
        "huge pages",
        "nvme_tcp",
        "configuration",
    ] {
        assert!(!find(&items, check).is_empty(), "{check} was not looked at");
    }
    assert!(items.iter().all(|i| i["scope"] == "host"));
    let bad = |i: &&Value| i["level"] == "warning" || i["level"] == "problem";
    for item in items.iter().filter(bad) {
        assert!(!item["found"].as_str().unwrap().is_empty(), "{item}");
        assert!(!item["remedy"].as_str().unwrap().is_empty(), "{item}");
    }
    let problems = items.iter().any(|i| i["level"] == "problem");
    assert_eq!(output.status.code(), Some(i32::from(problems)));
}

/// ubsctl in a directory of its own, with scripts beside it that play the daemons' programs.
fn beside(dir: &Path, scripts: [(&str, &str); 2]) -> PathBuf {
    std::fs::create_dir(dir).unwrap();
    let ubsctl = dir.join("ubsctl");
    std::fs::copy(env!("CARGO_BIN_EXE_ubsctl"), &ubsctl).unwrap();
    for (name, body) in scripts {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    ubsctl
}

/// The daemon's own program judges a configuration, a superblock tells of which cluster a store is.
#[test]
fn configurations_and_stores_are_judged() {
    let lab = Lab::begin();
    let (etc, store) = (lab.dir.path().join("etc"), lab.dir.path().join("disk"));
    std::fs::create_dir(&etc).unwrap();
    let foreign = "11111111-1111-1111-1111-111111111111";
    let path = store.to_str().unwrap();
    lab.ok(&[
        "store",
        "prepare",
        path,
        "--size",
        "64MiB",
        "--cluster",
        foreign,
    ]);
    for name in ["storaged-1.toml", "clientd.toml", "unrelated.toml"] {
        std::fs::write(etc.join(name), "").unwrap();
    }
    let good = format!("printf 'data_dir = \"/none\"\\n[[store]]\\npath = \"{path}\"\\n'");
    let bad = "echo 'error: clientd.toml: ublk.queue_count = 99: use 1 to 16' >&2; exit 2";
    let scripts = [("storaged", good.as_str()), ("clientd", bad)];
    let ubsctl = beside(&lab.dir.path().join("bin"), scripts);
    let output = Command::new(ubsctl)
        .env("UBS_METAD", &lab.address)
        .args([
            "doctor",
            "-o",
            "json",
            "--config-dir",
            etc.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let items = items(&output);
    let text = |item: &Value, field: &str| item[field].as_str().unwrap().to_owned();
    let configurations = find(&items, "configuration");
    assert_eq!(configurations.len(), 2, "{configurations:?}");
    let level = |wanted: &str| {
        configurations
            .iter()
            .find(|i| i["level"] == wanted)
            .unwrap()
    };
    assert!(text(level("ok"), "found").contains("storaged-1.toml is good"));
    assert!(text(level("problem"), "found").contains("queue_count = 99: use 1 to 16"));
    assert!(text(level("problem"), "remedy").contains("--check-config"));
    let stores = find(&items, "store");
    let on_host = stores.iter().find(|i| i["scope"] == "host").unwrap();
    assert_eq!(on_host["level"], "problem");
    assert!(text(on_host, "found").contains(foreign), "{on_host}");
    let ours = lab.json(&["status"])["cluster"]["uuid"].clone();
    assert!(
        text(on_host, "needed").contains(ours.as_str().unwrap()),
        "{on_host}"
    );
}

#[test]
fn a_cluster_is_judged_and_one_that_does_not_answer_is_a_problem() {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    let output = doctor(&["--cluster-only", "--metad", &lab.address, "-o", "json"]);
    let found = items(&output);
    assert!(found.iter().all(|i| i["scope"] == "cluster"));
    assert!(
        find(&found, "metad")[0]["found"]
            .as_str()
            .unwrap()
            .contains("1 of 1 members answer")
    );
    assert_eq!(find(&found, "fsck")[0]["level"], "ok");
    // Played servers report and serve nothing.
    assert_eq!(find(&found, "reachability").len(), 3);
    assert_eq!(output.status.code(), Some(0), "warnings do not fail");
    drop(lab);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let output = doctor(&["--cluster-only", "--metad", &address, "-o", "json"]);
    let found = items(&output);
    assert!(found.iter().any(|i| i["level"] == "problem"), "{found:?}");
    assert_eq!(output.status.code(), Some(1));
}

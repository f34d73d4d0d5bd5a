//! The life of a volume, and what every verb has.

use super::lab::Lab;

#[test]
fn a_volume_from_create_to_delete() {
    let lab = Lab::begin();
    let plan = lab.json(&["volume", "create", "v", "--size", "1GiB", "--dry-run"]);
    assert_eq!(plan["places"].as_array().unwrap().len(), 3);
    assert_eq!(
        lab.json(&["volume", "ls"])["items"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    assert_eq!(lab.json(&["volume", "show", "v"])["phase"], "ready");
    let device = lab.ok(&["volume", "attach", "v", "--on", "h1", "--wait"]);
    assert_eq!(device, "/dev/ublkb0\n");
    assert_eq!(lab.ok(&["volume", "ls", "-o", "name"]), "v\n");
    let table = lab.ok(&["volume", "ls"]);
    assert!(
        table.contains("online") && table.contains("/dev/ublkb0"),
        "{table}"
    );
    let why = lab.ok(&["volume", "explain", "v"]);
    assert!(why.contains("volume v is online, 3/3 in sync"), "{why}");
    assert!(
        why.contains("safe to stop, one at a time: s1, s2, s3"),
        "{why}"
    );
    let resilvers = lab.json(&["resilver", "ls"]);
    assert_eq!(resilvers["items"][0]["doneBytes"], 4096);

    let (code, said) = lab.fails(&["volume", "delete", "v", "--yes"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("attached on h1") && said.contains("ubsctl volume detach v"));
    lab.ok(&["volume", "detach", "v", "--wait"]);
    let (code, said) = lab.fails(&["volume", "delete", "v"]);
    assert_eq!(code, 3);
    assert!(said.contains("1.0 GiB") && said.contains("--yes"), "{said}");
    lab.ok(&["volume", "delete", "v", "--yes", "--wait"]);
    assert_eq!(lab.fails(&["volume", "show", "v"]).0, 5);
    let events = lab.ok(&["events"]);
    assert!(events.contains("volume v is gone"), "{events}");
    lab.ok(&["meta", "fsck"]);
}

#[test]
fn waiting_that_times_out_says_that_the_work_goes_on() {
    let lab = Lab::begin();
    lab.ok(&["server", "cordon", "s3"]);
    let (code, _) = lab.fails(&["volume", "create", "v", "--size", "1G"]);
    assert_eq!(code, 1, "too few servers");
    lab.ok(&["server", "uncordon", "s3"]);
    lab.ok(&["volume", "create", "v", "--size", "1G", "--wait"]);
    // Nobody plays a clientd on this host.
    let attach = [
        "volume",
        "attach",
        "v",
        "--on",
        "absent",
        "--wait",
        "--timeout",
        "1",
    ];
    let (code, said) = lab.fails(&attach);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("ubsctl volume explain v"), "{said}");
    let why = lab.ok(&["volume", "explain", "v"]);
    assert!(
        why.contains("absent is asked to attach it and has not"),
        "{why}"
    );
    let (code, said) = lab.fails(&["volume", "attach", "v", "--on", "h1"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("attached on absent"), "{said}");
}

#[test]
fn stores_are_filled_as_far_as_the_limits_say() {
    let lab = Lab::begin();
    let limits = lab.json(&["cluster", "limits"]);
    assert_eq!(
        (&limits["overcommitPercent"], &limits["highWaterPercent"]),
        (&250.into(), &85.into())
    );
    let (code, said) = lab.fails(&["cluster", "limits", "--high-water-percent", "101"]);
    assert!(code == 2 && said.contains("1 to 100"), "{said}");

    // The third store is 80 % full.
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    lab.ok(&["cluster", "limits", "--high-water-percent", "79"]);
    let (code, said) = lab.fails(&["volume", "create", "w", "--size", "1GiB"]);
    assert!(code == 1 && said.contains("3 distinct failure"), "{said}");
    let found = lab.ctl(&["doctor", "--cluster-only"]);
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.contains("is 79 % full"), "{found}");
    lab.ok(&[
        "volume",
        "create",
        "two",
        "--size",
        "1GiB",
        "--replicas",
        "2",
    ]);

    let large = [
        "volume",
        "create",
        "x",
        "--size",
        "200GiB",
        "--replicas",
        "2",
    ];
    assert_eq!(lab.fails(&large).0, 1, "64 GiB, and 250 % of them");
    lab.ok(&["cluster", "limits", "--overcommit-percent", "400"]);
    lab.ok(&large);
    let events = lab.ok(&["events"]);
    assert!(events.contains("may promise 400 %"), "{events}");
}

#[test]
fn stores_are_prepared_for_the_cluster_and_not_twice() {
    let lab = Lab::begin();
    let path = lab.dir.path().join("disk").display().to_string();
    let made = lab.json(&["store", "prepare", &path, "--size", "1GiB"]);
    let cluster = lab.json(&["status"])["cluster"]["uuid"].clone();
    assert_eq!(made["cluster"], cluster);
    assert_eq!(lab.json(&["store", "show", &path])["uuid"], made["uuid"]);
    let (code, said) = lab.fails(&["store", "prepare", &path]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains(&path) && said.contains("--wipe"), "{said}");
}

#[test]
fn status_and_listings_come_in_every_format() {
    let lab = Lab::begin();
    for noun in ["server", "store", "host", "volume", "snapshot", "resilver"] {
        lab.ok(&[noun, "ls"]);
        lab.json(&[noun, "ls"]);
        lab.ok(&[noun, "ls", "-o", "name"]);
    }
    let status = lab.ok(&["status"]);
    assert!(
        status.contains("1 of 1 members answer, member 1 leads"),
        "{status}"
    );
    assert!(lab.ok(&["cluster", "status"]).contains("leader"));
    let man = lab.dir.path().join("man");
    std::fs::create_dir(&man).unwrap();
    lab.ok(&["man", man.to_str().unwrap()]);
    let page = std::fs::read_to_string(man.join("ubsctl-volume-create.1")).unwrap();
    assert!(
        page.contains("in\\-sync") || page.contains("in-sync"),
        "{page}"
    );
    let (code, said) = lab.fails(&["man", "/nonexistent"]);
    assert!(code == 1 && said.contains("/nonexistent"), "{said}");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(lab.ok(&["version"]), format!("ubsctl {version}\n"));
    assert_eq!(lab.json(&["version"])["version"], version);
    for shell in ["bash", "zsh", "fish"] {
        assert!(lab.ok(&["completions", shell]).contains("ubsctl"));
    }
}

#[test]
fn nobody_answering_is_an_error_that_names_the_address() {
    let lab = Lab::begin();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let (code, said) = lab.fails(&["--metad", &address, "--timeout", "1", "volume", "ls"]);
    assert_eq!(code, 1);
    assert!(
        said.contains(&address) && said.contains("systemctl status metad"),
        "{said}"
    );
    let (code, said) = lab.fails(&["--metad", &address, "cluster", "status"]);
    assert_eq!(code, 1, "{said}");
}

#[test]
fn space_of_stores_that_do_not_answer_is_missing_and_said_to_be() {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    lab.ok(&["snapshot", "create", "v", "a"]);
    // The servers are played, and nobody listens at their addresses.
    for args in [
        &["volume", "space"][..],
        &["volume", "space", "v"],
        &["store", "space"],
    ] {
        let (code, said) = lab.fails(args);
        assert_eq!(code, 1, "{args:?}: {said}");
        assert!(
            said.contains("3 of 3 slices are not counted"),
            "{args:?}: {said}"
        );
    }
    let told = lab.ctl(&["volume", "space", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    let [volume] = &told["items"].as_array().unwrap()[..] else {
        panic!("{told}")
    };
    assert_eq!(
        (&volume["provisionedBytes"], &volume["missingSlices"]),
        (&(1u64 << 30).into(), &3.into())
    );
    let (code, said) = lab.fails(&["volume", "space", "w"]);
    assert_eq!(code, 5, "{said}");
    let (code, said) = lab.fails(&["store", "space", "77"]);
    assert_eq!(code, 5, "{said}");
    lab.ok(&["snapshot", "view", "v@a", "shown"]);
    let (code, said) = lab.fails(&["volume", "space", "shown"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("ubsctl volume space v`"), "{said}");
}

#[test]
fn a_store_that_does_not_answer_or_is_not_there_does_not_grow() {
    let lab = Lab::begin();
    // The servers are played, and nobody listens at their addresses.
    let (code, said) = lab.fails(&["store", "grow", "store-1"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("does not answer"), "{said}");
    assert!(said.contains("on s1"), "{said}");
    let (code, said) = lab.fails(&["store", "grow", "store-77"]);
    assert_eq!(code, 5, "{said}");
}

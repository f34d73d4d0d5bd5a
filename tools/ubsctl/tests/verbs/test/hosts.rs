//! Hosts, servers and stores that come and go.

use super::lab::Lab;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:2cd2c43b-a90a-45c1-a8cd-86b33ab273b5";

#[test]
fn a_standard_host_is_added_listed_and_forgotten() {
    let lab = Lab::begin();
    let said = lab.ok(&["host", "add", "web1", "--nqn", NQN]);
    assert!(
        said.contains("host web1 may connect") && said.contains(NQN),
        "{said}"
    );
    lab.ok(&["host", "add", "web1", "--nqn", NQN]);
    let hosts = lab.json(&["host", "ls"]);
    let web1 = hosts["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|h| h["name"] == "web1");
    assert_eq!(web1.unwrap()["standard"], true);
    assert!(lab.ok(&["host", "ls"]).contains("standard"));
    for (args, code, part) in [
        (
            ["host", "add", "web2", "--nqn", NQN],
            1,
            "host web1 has the NQN",
        ),
        (
            ["host", "add", "web1", "--nqn", "nqn.other"],
            1,
            "another host is called web1",
        ),
        (
            ["host", "add", "web2", "--nqn", "iqn.x"],
            2,
            "begins with \"nqn.\"",
        ),
    ] {
        let (found, said) = lab.fails(&args);
        assert_eq!(found, code, "{said}");
        assert!(said.contains(part), "{said}");
    }
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    let (code, said) = lab.fails(&["volume", "attach", "v", "--on", "web1"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("nvme connect"), "{said}");
    lab.ok(&["host", "rm", "web1"]);
    assert_eq!(lab.fails(&["host", "rm", "web1"]).0, 5);
    let events = lab.ok(&["events"]);
    assert!(events.contains("host web1 joined") && events.contains("host web1 is forgotten"));
}

#[test]
fn a_host_with_a_volume_is_kept() {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    lab.ok(&["volume", "attach", "v", "--on", "absent"]);
    let (code, said) = lab.fails(&["host", "rm", "absent"]);
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("has volume v") && said.contains("force-detach v"),
        "{said}"
    );
    lab.ok(&["volume", "detach", "v"]);
    lab.ok(&["host", "rm", "absent"]);
}

#[test]
fn servers_and_stores_that_serve_are_kept() {
    let lab = Lab::begin();
    let (code, said) = lab.fails(&["server", "rm", "s1"]);
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("storaged runs on s1") && said.contains("stop it first"),
        "{said}"
    );
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    let (code, said) = lab.fails(&["store", "rm", "store-1"]);
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("store-1 on s1 holds a part of volume v"),
        "{said}"
    );
}

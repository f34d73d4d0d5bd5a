//! Bad input as a user would type it: a sentence, an exit code, and nothing changed.

use super::lab::Lab;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command line, exit code, a part of the sentence that names the thing and one that says what
/// helps.
type Case<'a> = (&'a str, i32, &'a str, &'a str);

fn refuse_all(lab: &Lab, cases: &[Case<'_>]) {
    let before = lab.state();
    for (line, code, thing, remedy) in cases {
        let args: Vec<&str> = line.split(' ').collect();
        let (found, said) = lab.fails(&args);
        assert_eq!(found, *code, "{line}: {said}");
        assert!(said.contains(thing), "{line}: {said} lacks {thing:?}");
        assert!(said.contains(remedy), "{line}: {said} lacks {remedy:?}");
        assert_eq!(lab.state(), before, "{line} changed something");
    }
    lab.ok(&["meta", "fsck"]);
}

/// Options of `volume create w`.
#[rustfmt::skip]
const VOLUMES: [Case<'_>; 14] = [
    ("--size 1000000000", 2, "1000000000 bytes", "use 1000001536"),
    ("--size 1X", 2, "\"1X\"", "use bytes, or K M G T"),
    ("--size 1.5G", 2, "\"1.5G\"", "use a whole number"),
    ("--size -5", 2, "\"-5\"", "use a whole number"),
    ("--size 99999999P", 2, "\"99999999P\"", "too large"),
    ("--size 4096", 2, "4096 bytes", "use 4194304 to"),
    ("--size 1G --replicas 0", 2, "0 replicas", "use 1 to 5"),
    ("--size 1G --replicas 4", 1, "4 distinct", "add servers"),
    ("--size 1G --domain rack", 1, "label:rack", "`labels.rack`"),
    ("--size 1G --min-in-sync 4", 2, "4 in-sync", "use 1 to 3"),
    ("--size 1G --shard 5M", 2, "5242880 bytes", "a power of two"),
    ("--size 1G --stride 99", 2, "stride of 99", "use a stride from"),
    ("--size 1000T", 1, "volume w", "make the volume smaller"),
    ("--size 1G --open-access", 2, "with 3 replicas", "--replicas 1 --stride 1"),
];

#[test]
fn volumes_that_cannot_be() {
    let lab = Lab::begin();
    let lines = VOLUMES.map(|(options, ..)| format!("volume create w {options}"));
    let cases = lines.iter().zip(VOLUMES);
    let cases: Vec<Case<'_>> = cases
        .map(|(line, (_, code, thing, remedy))| (line.as_str(), code, thing, remedy))
        .collect();
    refuse_all(&lab, &cases);
}

#[rustfmt::skip]
const NAMES: [Case<'_>; 20] = [
    ("volume create a/b --size 1G", 2, "\"a/b\"", "letters, digits"),
    ("volume create v --size 1G", 1, "a volume v already", "another name"),
    ("volume attach v --on nobody", 5, "no host nobody", "ubsctl host ls"),
    ("volume attach x --on h1", 5, "no volume x", "ubsctl volume ls"),
    ("server show s9", 5, "no server s9", "ubsctl server ls"),
    ("store show store-9", 5, "no store store-9", "ubsctl store ls"),
    ("--metad here volume ls", 2, "\"here\"", "host:port"),
    ("volum ls", 2, "'volum'", "'volume'"),
    ("volume lss", 2, "'lss'", "'ls'"),
    ("snapshot create v a/b", 2, "\"a/b\"", "letters, digits"),
    ("snapshot create v,v a", 2, "named twice", "name it once"),
    ("snapshot create v,x a", 5, "no volume x", "ubsctl volume ls"),
    ("snapshot create v@a v@a", 2, "named twice", "name it once"),
    ("snapshot create v@a x@b", 2, "called a and b", "one name"),
    ("snapshot create v@a x b", 2, "\"x\"", "VOLUME@NAME"),
    ("snapshot ls x", 5, "no volume x", "ubsctl volume ls"),
    ("snapshot show v", 2, "\"v\"", "VOLUME@NAME"),
    ("snapshot show v@a", 5, "no snapshot v@a", "ubsctl snapshot ls"),
    ("snapshot rm x@a", 5, "no snapshot x@a", "ubsctl snapshot ls"),
    ("volume ls -o xml", 2, "'xml'", "table, json, name"),
];

#[test]
fn names_that_are_taken_unknown_or_mistyped() {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    refuse_all(&lab, &NAMES);
}

#[test]
fn a_second_attach_is_refused_and_the_first_goes_on() {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    lab.ok(&["volume", "attach", "v", "--on", "h1", "--wait"]);
    refuse_all(
        &lab,
        &[
            (
                "volume attach v --on absent",
                3,
                "attached on h1",
                "ubsctl volume detach v",
            ),
            (
                "volume delete v --yes",
                3,
                "attached on h1",
                "ubsctl volume detach v",
            ),
            ("host rm h1", 3, "clientd runs on h1", "stop it first"),
        ],
    );
    // The same once more is no second attach.
    lab.ok(&["volume", "attach", "v", "--on", "h1", "--wait"]);
}

#[test]
fn an_unknown_key_of_the_configuration_is_named_with_its_line() {
    let lab = Lab::begin();
    let path = lab.dir.path().join("ubsctl.toml");
    std::fs::write(&path, "metad = []\nmetadd = [\"h:1\"]\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ubsctl"))
        .env_remove("UBS_METAD")
        .args(["--config", path.to_str().unwrap(), "status"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["ubsctl.toml", "line 2", "metadd", "expected `metad`"] {
        assert!(said.contains(part), "{said} lacks {part}");
    }
}

fn image(lab: &Lab, name: &str, mark: Option<(u64, &[u8])>) -> PathBuf {
    let path = lab.dir.path().join(name);
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    if let Some((at, bytes)) = mark {
        file.write_all_at(bytes, at).unwrap();
    }
    path
}

#[test]
fn a_device_that_holds_something_is_not_overwritten() {
    let lab = Lab::begin();
    let held: [(&str, u64, &[u8], &str); 4] = [
        ("ext4", 0x438, &[0x53, 0xef], "an ext2/3/4 file system"),
        ("xfs", 0, b"XFSB", "an xfs file system"),
        ("lvm", 0x218, b"LVM2 001", "an LVM physical volume"),
        ("gpt", 512, b"EFI PART", "a GPT partition table"),
    ];
    for (name, at, bytes, what) in held {
        let path = image(&lab, name, Some((at, bytes)));
        let before = std::fs::read(&path).unwrap();
        let text = path.to_str().unwrap();
        refuse_all(
            &lab,
            &[(&format!("store prepare {text}"), 3, what, "--wipe")],
        );
        assert!(
            std::fs::read(&path).unwrap() == before,
            "{name} was written"
        );
    }
    let small = image(&lab, "small", None);
    File::options()
        .write(true)
        .open(&small)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let small = small.to_str().unwrap();
    let absent = "/nonexistent/disk";
    refuse_all(
        &lab,
        &[
            (
                &format!("store prepare {small}"),
                1,
                "1048576 bytes is too small",
                "33554432",
            ),
            (&format!("store prepare {absent}"), 5, absent, "--size"),
            (
                &format!("store show {absent}"),
                5,
                absent,
                "name a block device",
            ),
            ("store prepare /dev/null", 1, "/dev/null", "name a disk"),
            (
                &format!("store show {small}"),
                1,
                "not a ublkstor store",
                "ubsctl store prepare",
            ),
        ],
    );
}

/// A loop device, for as long as it is held.
struct Loop(String);

impl Loop {
    /// `None` where that needs rights that we do not have.
    fn over(path: &Path) -> Option<Self> {
        let made = Command::new("losetup")
            .arg("-f")
            .arg("--show")
            .arg(path)
            .output()
            .ok()?;
        let device = String::from_utf8(made.stdout).ok()?.trim().to_owned();
        made.status.success().then_some(Self(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(Command::new("losetup").args(["-d", &self.0]).status());
    }
}

#[test]
fn a_device_that_is_in_use_is_not_taken_even_with_wipe() {
    let lab = Lab::begin();
    let path = image(&lab, "disk", None);
    let file = path.to_str().unwrap();
    let prepare = |what: &str| {
        let plain = format!("store prepare {what}");
        let wipe = format!("{plain} --wipe");
        refuse_all(
            &lab,
            &[
                (&plain, 3, "in use", "release it first"),
                (&wipe, 3, "in use", "release it first"),
            ],
        );
    };
    let holder = File::open(&path).unwrap();
    holder.lock().unwrap();
    prepare(file);
    drop(holder);
    let Some(device) = Loop::over(&path) else {
        println!("skipped: loop devices need root and losetup");
        return;
    };
    // A mount opens its device like this.
    let exclusive = 0o200;
    let holder = OpenOptions::new()
        .read(true)
        .custom_flags(exclusive)
        .open(&device.0)
        .unwrap();
    prepare(&device.0);
    drop(holder);
    lab.ok(&["store", "prepare", &device.0]);
}

/// What is cut off in the middle, or is no message at all, costs that connection.
#[test]
fn truncated_and_senseless_messages_harm_nobody_else() {
    let lab = Lab::begin();
    lab.ok(&["volume", "create", "v", "--size", "1GiB", "--wait"]);
    let before = lab.state();
    let messages: [&[u8]; 5] = [
        // One segment of two words is announced, and one word and a half come.
        &[
            0, 0, 0, 0, 2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
        ],
        // Half a header.
        &[0, 0, 0],
        // More segments than there can be.
        &[0xff; 64],
        // A segment of many gigabytes.
        &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0],
        b"GET / HTTP/1.1\r\nHost: metad\r\n\r\n",
    ];
    for message in messages {
        let mut stream = TcpStream::connect(&lab.address).unwrap();
        stream.write_all(message).unwrap();
        drop(stream);
        assert_eq!(lab.state(), before, "after {message:?}");
    }
    lab.ok(&["meta", "fsck"]);
    lab.ok(&["volume", "attach", "v", "--on", "h1", "--wait"]);
}

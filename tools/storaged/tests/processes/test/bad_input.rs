//! storaged as a process, given what it cannot use: it says so, serves the rest and touches nothing.

use super::lab::{Metad, PATIENCE, Storaged, command, run};
use control::api::{Filter, StoreHealth, StoreView};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use store::{PrepareOptions, Store};
use tempfile::TempDir;
use uuid::Uuid;

fn prepared(path: &Path, cluster: Uuid) -> Uuid {
    let options = PrepareOptions {
        cluster,
        store: Uuid::new_v4(),
        size_bytes: Some(64 << 20),
        wipe: false,
        journal_bytes: None,
        checksums: true,
    };
    Store::prepare(path, &options).unwrap().store
}

fn report(s: &StoreView) -> Option<(StoreHealth, String)> {
    s.report.as_ref().map(|r| (r.health, r.note.clone()))
}

#[test]
fn stores_that_cannot_be_opened_are_named_and_left_alone_and_the_rest_serves() {
    run(async |dir| {
        let metad = Metad::begin(dir).await;
        let cluster = metad.client.cluster().await.unwrap().uuid;
        let other = Uuid::from_u128(0xbad);
        let path = |name: &str| dir.join(name);
        prepared(&path("good"), cluster);
        prepared(&path("foreign"), other);
        prepared(&path("held"), cluster);
        let ext4 = File::create(path("ext4")).unwrap();
        ext4.set_len(64 << 20).unwrap();
        ext4.write_all_at(&[0x53, 0xef], 0x438).unwrap();
        let holder = File::open(path("held")).unwrap();
        holder.lock().unwrap();
        let untouched = ["foreign", "ext4", "held"];
        let before = untouched.map(|name| std::fs::read(path(name)).unwrap());

        let all = ["good", "foreign", "ext4", "held", "absent"].map(path);
        let all: Vec<&Path> = all.iter().map(PathBuf::as_path).collect();
        let storaged = Storaged::start(dir, &metad.address, &all);
        let online = |stores: &[StoreView]| {
            stores
                .iter()
                .any(|s| report(s).is_some_and(|r| r.0 == StoreHealth::Online))
        };
        let stores = metad.stores_until(online).await;
        assert_eq!(stores.len(), 1, "only what is ours and opens is registered");
        let log = storaged.log();
        for (name, part) in [
            (
                "foreign",
                format!("belongs to cluster {other}, not to {cluster}"),
            ),
            ("foreign", "put it into a server of its own cluster".into()),
            ("ext4", "not a ublkstor store".into()),
            ("held", "another process has it open".into()),
            ("absent", "No such file".into()),
            ("absent", "see that the device is there".into()),
        ] {
            let shown = path(name).display().to_string();
            let said = log.lines().any(|l| l.contains(&shown) && l.contains(&part));
            assert!(said, "no line says {part:?} of {name}:\n{log}");
        }
        drop(storaged);
        for (name, before) in untouched.iter().zip(before) {
            assert!(
                std::fs::read(path(name)).unwrap() == before,
                "{name} was written"
            );
        }
    });
}

#[test]
fn a_store_that_does_not_open_after_a_restart_is_faulted_at_metad() {
    run(async |dir| {
        let metad = Metad::begin(dir).await;
        let cluster = metad.client.cluster().await.unwrap().uuid;
        let (first, second) = (dir.join("first"), dir.join("second"));
        prepared(&first, cluster);
        prepared(&second, cluster);
        let both = [first.as_path(), second.as_path()];
        let health = |wanted: usize, kind: StoreHealth| {
            move |stores: &[StoreView]| {
                let of_kind = |s: &&StoreView| report(s).is_some_and(|r| r.0 == kind);
                stores.iter().filter(of_kind).count() == wanted
            }
        };
        let storaged = Storaged::start(dir, &metad.address, &both);
        metad.stores_until(health(2, StoreHealth::Online)).await;
        storaged.kill_9();

        // The first is gone, the second is not readable as a store any more.
        std::fs::rename(&first, dir.join("elsewhere")).unwrap();
        let healthy = std::fs::read(&second).unwrap();
        std::fs::write(&second, vec![0; 64 << 20]).unwrap();
        let storaged = Storaged::start(dir, &metad.address, &both);
        let stores = metad.stores_until(health(2, StoreHealth::Faulted)).await;
        let notes: Vec<String> = stores.iter().map(|s| report(s).unwrap().1).collect();
        assert!(
            notes.iter().any(|n| n.contains("No such file")),
            "{notes:?}"
        );
        assert!(
            notes.iter().any(|n| n.contains("not a ublkstor store")),
            "{notes:?}"
        );
        storaged.kill_9();

        std::fs::rename(dir.join("elsewhere"), &first).unwrap();
        std::fs::write(&second, healthy).unwrap();
        let _storaged = Storaged::start(dir, &metad.address, &both);
        let again = metad.stores_until(health(2, StoreHealth::Online)).await;
        let ids = |stores: &[StoreView]| stores.iter().map(|s| s.id).collect::<Vec<_>>();
        assert_eq!(ids(&again), ids(&stores), "the same stores");
    });
}

/// Malformed PDUs cost their own connection; whoever else is connected notices nothing.
#[test]
fn malformed_pdus_harm_nobody_else() {
    run(async |dir| {
        let metad = Metad::begin(dir).await;
        let cluster = metad.client.cluster().await.unwrap().uuid;
        let path = dir.join("good");
        prepared(&path, cluster);
        let storaged = Storaged::start(dir, &metad.address, &[&path]);
        metad
            .stores_until(|stores| stores.iter().any(|s| report(s).is_some()))
            .await;
        let servers = metad.client.servers(Filter::default()).await.unwrap().list;
        let at = servers[0].address;

        let mut icreq = [0; 128];
        icreq[..8].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0]);
        let mut bystander = TcpStream::connect(at).unwrap();
        bystander.set_read_timeout(Some(PATIENCE)).unwrap();
        bystander.write_all(&icreq[..64]).unwrap();

        let mut wrong_length = icreq;
        wrong_length[2] = 64;
        let mut early = [0; 72];
        early[..8].copy_from_slice(&[4, 0, 72, 0, 72, 0, 0, 0]);
        let messages: [&[u8]; 4] = [
            &[0xff; 128],
            &wrong_length,
            // A command before the connection is initialised.
            &early,
            b"GET / HTTP/1.1\r\nHost: storaged\r\n\r\n",
        ];
        for message in messages {
            let mut stream = TcpStream::connect(at).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(message).unwrap();
            // A terminate request, or the end.
            let mut head = [0; 8];
            let count = stream.read(&mut head).unwrap_or(0);
            assert!(count == 0 || head[0] == 3, "{message:?} got {head:?}");
        }
        // Cut off in the middle.
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(&icreq[..10]).unwrap();
        drop(stream);

        bystander.write_all(&icreq[64..]).unwrap();
        let mut icresp = [0; 128];
        bystander.read_exact(&mut icresp).unwrap();
        assert_eq!(icresp[0], 1, "ICResp");
        let log = storaged.log();
        assert!(log.contains("connection terminated"), "{log}");
    });
}

#[test]
fn configurations_that_cannot_be_are_refused_before_anything_starts() {
    let dir = TempDir::new().unwrap();
    let good = "name = \"s1\"\ndata_dir = \"d\"\nlisten = \"127.0.0.1:0\"\n\
                metad = [\"127.0.0.1:1\"]\n[[store]]\npath = \"x\"\n";
    for (text, parts) in [
        (format!("frob = 1\n{good}"), ["line 1", "`frob`"]),
        (format!("{good}size = 5\n"), ["`size`", "`create_bytes`"]),
        (
            format!("{good}[arena]\nslots_4k = 1\n"),
            ["1 x 4k", "use at least 64"],
        ),
        (
            good.replace("127.0.0.1:1", "here"),
            ["\"here\"", "socket address"],
        ),
        (
            good.replace("path = \"x\"", ""),
            ["missing field", "`path`"],
        ),
    ] {
        let path = dir.path().join("storaged.toml");
        std::fs::write(&path, &text).unwrap();
        let config = command()
            .arg("--config")
            .arg(&path)
            .current_dir(dir.path())
            .output();
        let ended = config.unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{text}: {said}");
        assert!(said.contains("storaged.toml"), "{said}");
        for part in parts {
            assert!(said.contains(part), "{said} lacks {part}");
        }
        assert!(!dir.path().join("d").exists(), "nothing was begun");
    }
    let version = command().arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    assert_eq!(
        version,
        concat!("storaged ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

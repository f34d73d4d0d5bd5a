//! Stores that storaged is told of, and the cluster that a data directory has joined.

use super::configs::{Configured, StorePath};
use super::finding::{Finding, Level};
use super::host::is_root;
use crate::output::size;
use ::store::{PrepareError, Store};
use uuid::Uuid;

const CHECK: &str = "store";

/// A data directory of another cluster than the one that answers.
pub(super) fn identity(configured: &Configured, cluster: Option<Uuid>) -> Option<Finding> {
    let (ours, theirs) = (configured.cluster()?, cluster?);
    if ours == theirs {
        return None;
    }
    let dir = configured.settings.as_ref()?.data_dir.display();
    Some(Finding::new(
        Level::Problem,
        "identity",
        format!(
            "{} ({dir}) has joined cluster {ours}, and metad answers for {theirs}",
            configured.program.name()
        ),
        "name the members of its own cluster in `metad`, or give it an empty data_dir and other \
         stores to join this one",
    ))
}

/// One `[[store]]`. `cluster`: the one it should belong to, if that is known.
pub(super) fn store(configured: &StorePath, cluster: Option<Uuid>) -> Finding {
    let path = configured.path.display();
    if !configured.path.exists() && is_visible(configured) {
        return match configured.create_bytes {
            Some(bytes) => Finding::ok(
                CHECK,
                format!("{path} is created with {} at the first start", size(bytes)),
            ),
            None => Finding::new(
                Level::Problem,
                CHECK,
                format!("{path} does not exist"),
                "put the device back or mend the path in storaged.toml; a new one is made with \
                 `ubsctl store prepare`",
            ),
        };
    }
    let info = match Store::inspect(&configured.path) {
        Ok(info) => info,
        Err(error) => return why_not(configured, &error),
    };
    if let Some(cluster) = cluster.filter(|c| *c != info.cluster) {
        return Finding::new(
            Level::Problem,
            CHECK,
            format!("{path} is a store of cluster {}", info.cluster),
            "put it into a server of its own cluster; if its data may be lost, `ubsctl store \
             prepare --wipe` makes it a store of this one",
        )
        .needs(format!("a store of cluster {cluster}"));
    }
    let in_use = match Store::vacancy(&configured.path) {
        Err(PrepareError::InUse { .. }) => ", in use",
        Ok(()) | Err(_) => "",
    };
    let found = format!(
        "{path}: store {}, {} for data{in_use}",
        info.store,
        size(info.capacity_bytes)
    );
    match info.unused_bytes() {
        0 => Finding::ok(CHECK, found),
        unused => Finding::new(
            Level::Hint,
            CHECK,
            format!("{found}; its device has {} more than it uses", size(unused)),
            format!("`ubsctl store grow {}` takes them in", info.store),
        ),
    }
}

/// Whether the absence of the path is an absence, and not a lack of rights.
fn is_visible(configured: &StorePath) -> bool {
    matches!(std::fs::symlink_metadata(&configured.path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound)
}

fn why_not(configured: &StorePath, error: &PrepareError) -> Finding {
    let denied = matches!(error, PrepareError::Io { source, .. }
        if source.kind() == std::io::ErrorKind::PermissionDenied);
    if denied && !is_root() {
        let text = format!("{} may not be read by this user", configured.path.display());
        return Finding::new(Level::Hint, CHECK, text, "run the doctor as root");
    }
    let not_a_store = matches!(error, PrepareError::NotAStore { .. });
    // What it is instead says more than what it is not.
    match Store::vacancy(&configured.path) {
        Err(other) if not_a_store => Finding::of_error(
            Level::Problem,
            CHECK,
            &format!(
                "{}; name another device in storaged.toml, or prepare this one if nothing on it is \
                 needed",
                other.to_string().split(';').next().unwrap_or_default()
            ),
        ),
        Ok(()) | Err(_) => Finding::of_error(Level::Problem, CHECK, error),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use ::store::PrepareOptions;

    fn prepared(dir: &std::path::Path, cluster: Uuid) -> StorePath {
        let path = dir.join("disk");
        let options = PrepareOptions {
            cluster,
            store: Uuid::from_u128(7),
            size_bytes: Some(64 << 20),
            wipe: false,
            journal_bytes: None,
            checksums: true,
        };
        Store::prepare(&path, &options).unwrap();
        StorePath {
            path,
            create_bytes: None,
        }
    }

    #[test]
    fn a_store_of_another_cluster_is_a_problem_that_names_both() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let disk = prepared(dir.path(), theirs);
        assert_eq!(store(&disk, Some(theirs)).level, Level::Ok);
        let found = store(&disk, Some(ours));
        assert_eq!(found.level, Level::Problem);
        assert!(found.found.contains(&theirs.to_string()), "{found:?}");
        assert!(found.needed.contains(&ours.to_string()), "{found:?}");
    }

    #[test]
    fn a_running_store_is_said_to_be_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let disk = prepared(dir.path(), Uuid::from_u128(1));
        let running = std::fs::File::open(&disk.path).unwrap();
        running.lock().unwrap();
        let found = store(&disk, None);
        assert!(
            found.level == Level::Ok && found.found.ends_with("in use"),
            "{found:?}"
        );
    }

    #[test]
    fn a_device_that_is_larger_than_its_store_is_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let disk = prepared(dir.path(), Uuid::from_u128(1));
        let file = std::fs::OpenOptions::new().write(true).open(&disk.path);
        let file = file.unwrap();
        file.set_len((80 << 20) - 1).unwrap();
        assert_eq!(store(&disk, None).level, Level::Ok);
        file.set_len(80 << 20).unwrap();
        let found = store(&disk, None);
        assert_eq!(found.level, Level::Hint);
        assert!(found.found.contains("16.0 MiB more"), "{found:?}");
        assert!(found.remedy.contains("store grow"), "{found:?}");
    }

    #[test]
    fn what_is_not_a_store_is_told_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mut bytes = vec![0; 64 << 20];
        bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        std::fs::write(&path, bytes).unwrap();
        let disk = StorePath {
            path,
            create_bytes: None,
        };
        let found = store(&disk, None);
        assert_eq!(found.level, Level::Problem);
        assert!(found.found.contains("ext2/3/4"), "{found:?}");
        let absent = StorePath {
            path: dir.path().join("none"),
            create_bytes: None,
        };
        assert!(store(&absent, None).found.contains("does not exist"));
    }
}

//! Which store was behind each path when it opened last. A store that does not open can then still be
//! named to metad, also when there is nothing left to read.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// One store per line: UUID, a space, the path.
const FILE: &str = "stores";

/// Stores by path; none before the first start.
pub(crate) fn load(data_dir: &Path) -> Result<BTreeMap<PathBuf, Uuid>> {
    let path = data_dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let line = |line: &str| {
        let (uuid, path) = line.split_once(' ')?;
        Some((PathBuf::from(path), uuid.parse().ok()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// Keeps them. Losing this file costs a name in a report, nothing else, so it is renamed into place
/// and not synced.
pub(crate) fn save(data_dir: &Path, stores: &BTreeMap<PathBuf, Uuid>) -> Result<()> {
    let (path, draft) = (data_dir.join(FILE), data_dir.join("stores.new"));
    let lines = stores
        .iter()
        .map(|(path, uuid)| format!("{uuid} {}\n", path.display()));
    std::fs::write(&draft, lines.collect::<String>())
        .and_then(|()| std::fs::rename(&draft, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn stores_come_back_as_they_were_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_empty());
        let stores = BTreeMap::from([
            (PathBuf::from("/dev/sdb"), Uuid::from_u128(1)),
            (PathBuf::from("/srv/with space.img"), Uuid::from_u128(2)),
        ]);
        save(dir.path(), &stores).unwrap();
        assert_eq!(load(dir.path()).unwrap(), stores);
    }
}

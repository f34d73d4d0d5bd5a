//! The hosts that may connect, kept so that a restart does not need metad to admit them.

use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::path::Path;

/// One NQN per line.
const FILE: &str = "hosts";

/// The hosts known at the last stop; none before the first.
pub(crate) fn load(data_dir: &Path) -> Result<Vec<String>> {
    let path = data_dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Keeps the hosts. Losing this file costs a restart that waits for metad, nothing else, so it is
/// renamed into place and not synced.
pub(crate) fn save(data_dir: &Path, nqns: &[String]) -> Result<()> {
    let (path, draft) = (data_dir.join(FILE), data_dir.join("hosts.new"));
    std::fs::write(&draft, nqns.join("\n"))
        .and_then(|()| std::fs::rename(&draft, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn hosts_come_back_as_they_were_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_empty());
        let nqns = vec!["nqn.a".to_owned(), "nqn.b".to_owned()];
        save(dir.path(), &nqns).unwrap();
        assert_eq!(load(dir.path()).unwrap(), nqns);
    }
}

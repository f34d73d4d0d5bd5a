//! Who a daemon is, kept in its data directory: chosen once, at its first start.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The file in the data directory.
const FILE: &str = "identity.toml";

/// A daemon's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Of this server or host.
    pub uuid: Uuid,
    /// The cluster it joined; absent before it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Uuid>,
}

/// The identity cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system said no.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// "read", "write" …
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what we wrote.
    #[error("{path} is damaged ({source}); restore it, or move it away to start as a new server")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
}

impl Identity {
    /// Reads the identity of a data directory, or makes one.
    ///
    /// # Errors
    /// [`IdentityError`] names the file.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|source| IdentityError::Damaged {
                path,
                source: Box::new(source),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self {
                    uuid: Uuid::new_v4(),
                    cluster: None,
                };
                identity.save(data_dir)?;
                Ok(identity)
            }
            Err(source) => Err(IdentityError::System {
                what: "read",
                path,
                source,
            }),
        }
    }

    /// Makes the identity durable before it returns.
    ///
    /// # Errors
    /// [`IdentityError::System`].
    pub fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE);
        let text = toml::to_string(self).expect("two UUIDs always serialise");
        let keep = || -> io::Result<()> {
            std::fs::create_dir_all(data_dir)?;
            let draft = data_dir.join("identity.toml.new");
            let mut file = File::create(&draft)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)?;
            File::open(data_dir)?.sync_all()
        };
        keep().map_err(|source| IdentityError::System {
            what: "write",
            path: path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_identity_is_chosen_once_and_remembers_its_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.cluster, None);
        first.cluster = Some(Uuid::new_v4());
        first.save(dir.path()).unwrap();
        assert_eq!(Identity::load_or_create(dir.path()).unwrap(), first);
    }

    #[test]
    fn a_damaged_identity_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "uuid = 5").unwrap();
        let error = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(
            error.to_string().contains("identity.toml is damaged"),
            "{error}"
        );
        assert_eq!(
            std::fs::read_to_string(dir.path().join(FILE)).unwrap(),
            "uuid = 5"
        );
    }
}

//! The provenance marker: what a member's directory belongs to, beside its LMDB.
//!
//! A directory without a marker is blank: its member never votes until the cluster is begun with it
//! or it is taken in again. That keeps a member that lost its disk from voting a committed entry
//! away.

use crate::api::MemberAddress;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use uuid::Uuid;

const FILE: &str = "member.toml";
const FORMAT: u16 = 1;

/// Contents of `member.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    /// Version of this file.
    pub(super) format: u16,
    /// The cluster.
    pub(super) cluster: Uuid,
    /// Which history of the cluster.
    pub(super) lineage: u16,
    /// Who this member is.
    pub(super) node_id: u64,
    /// `voter` or `learner`.
    pub(super) role: String,
    /// The membership it was stamped in.
    pub(super) members: Vec<Peer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    id: u64,
    address: String,
}

impl Marker {
    pub(super) fn new(cluster: Uuid, node_id: u64, members: &[MemberAddress]) -> Self {
        let members = members
            .iter()
            .map(|m| Peer {
                id: m.id,
                address: m.address.clone(),
            })
            .collect();
        Self {
            format: FORMAT,
            cluster,
            lineage: 1,
            node_id,
            role: "voter".into(),
            members,
        }
    }

    /// Reads the marker of a directory; `None`: blank.
    pub(super) fn read(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let wrong = |why: String| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {why}", path.display()),
            )
        };
        let marker: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if marker.format != FORMAT {
            return Err(wrong(format!(
                "format {}; this program knows {FORMAT}: upgrade it",
                marker.format
            )));
        }
        Ok(Some(marker))
    }

    /// Writes it so that a crash leaves the old one or the new one, and returns when the new one
    /// is durable.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        let fresh = dir.join("member.toml.new");
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_marker_comes_back_and_nonsense_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        assert_eq!(Marker::read(dir.path()).unwrap(), None);
        let members = [MemberAddress {
            id: 1,
            address: "a:1".into(),
        }];
        let marker = Marker::new(Uuid::from_u128(5), 1, &members);
        marker.write(dir.path()).unwrap();
        assert_eq!(Marker::read(dir.path()).unwrap(), Some(marker));
        fs::write(dir.path().join(FILE), "format = 1\nsurprise = 2\n").unwrap();
        assert!(Marker::read(dir.path()).is_err());
    }
}

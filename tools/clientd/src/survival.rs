//! What outlives this process and not the machine: of which volumes there may be a block device, and
//! under which incarnations their stores were trusted, for the clientd that takes the device over, or
//! removes it.
//!
//! The directory must be emptied by a reboot (tmpfs), not because an old file would be believed (it
//! is believed only where an old device is found) but so that writing it never waits for a disk.

use serde::{Deserialize, Serialize};
use shardmap::units::{Epoch, Incarnation, StoreId, VolumeId};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The files of all volumes.
#[derive(Debug)]
pub(crate) struct Survival {
    dir: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    epoch: u64,
    /// Incarnation by store id; TOML wants keys to be text.
    stores: BTreeMap<String, u64>,
}

impl Survival {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.dir.join(format!("{volume}.toml"))
    }

    /// Keeps what is trusted. A file that could not be written leaves an older one, which trusts fewer
    /// stores.
    pub(crate) fn remember(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        stores: &BTreeMap<StoreId, Incarnation>,
    ) -> io::Result<()> {
        let stores = stores.iter().map(|(s, i)| (s.0.to_string(), i.0)).collect();
        let record = Record {
            epoch: epoch.0,
            stores,
        };
        let text = toml::to_string(&record).map_err(io::Error::other)?;
        let path = self.path(volume);
        let new = path.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, path)
    }

    /// What is trusted of a volume that this host has held, without a break, since an epoch. Nothing if
    /// that is not known: then the device that was left behind has to fail.
    pub(crate) fn recall(
        &self,
        volume: VolumeId,
        held_since: Epoch,
    ) -> BTreeMap<StoreId, Incarnation> {
        match self.read(volume) {
            Ok(record) if record.epoch >= held_since.0 => {
                let entry = |(store, incarnation): (String, u64)| {
                    Some((StoreId(store.parse().ok()?), Incarnation(incarnation)))
                };
                record.stores.into_iter().filter_map(entry).collect()
            }
            Ok(record) => {
                let (epoch, since) = (record.epoch, held_since.0);
                tracing::error!(%volume, epoch, since, "the device is of an earlier attachment");
                BTreeMap::new()
            }
            Err(error) => {
                tracing::error!(%volume, %error, "not known which stores can be trusted");
                BTreeMap::new()
            }
        }
    }

    fn read(&self, volume: VolumeId) -> io::Result<Record> {
        let text = std::fs::read_to_string(self.path(volume))?;
        toml::from_str(&text).map_err(io::Error::other)
    }

    /// The device must not be taken over any more, and is still there.
    pub(crate) fn distrust(&self, volume: VolumeId) -> io::Result<()> {
        self.remember(volume, Epoch(0), &BTreeMap::new()) // 0: no attachment ever had it
    }

    /// The volumes that may have a device on this machine. A directory that is not there holds none.
    pub(crate) fn volumes(&self) -> io::Result<Vec<VolumeId>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| entry.map(|e| PathBuf::from(e.file_name())));
        let names: Vec<PathBuf> = names.collect::<io::Result<_>>()?;
        let volume = |name: &PathBuf| {
            let stem = name.to_str()?.strip_suffix(".toml")?;
            Some(VolumeId(Uuid::parse_str(stem).ok()?.into_bytes()))
        };
        Ok(names.iter().filter_map(volume).collect())
    }

    /// The device is gone.
    pub(crate) fn forget(&self, volume: VolumeId) {
        match std::fs::remove_file(self.path(volume)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(%volume, %error, "an old file stays"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const VOLUME: VolumeId = VolumeId([9; 16]);

    fn stores() -> BTreeMap<StoreId, Incarnation> {
        [(StoreId(1), Incarnation(4)), (StoreId(12), Incarnation(7))].into()
    }

    #[test]
    fn the_last_record_of_the_same_holding_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let survival = Survival::new(dir.path());
        survival
            .remember(VOLUME, Epoch(5), &BTreeMap::new())
            .unwrap();
        survival.remember(VOLUME, Epoch(5), &stores()).unwrap();
        assert_eq!(survival.recall(VOLUME, Epoch(5)), stores());
        assert_eq!(survival.recall(VOLUME, Epoch(3)), stores());
    }

    #[test]
    fn one_from_before_somebody_else_held_the_volume_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let survival = Survival::new(dir.path());
        survival.remember(VOLUME, Epoch(5), &stores()).unwrap();
        assert_eq!(survival.recall(VOLUME, Epoch(6)), BTreeMap::new());
    }

    #[test]
    fn volumes_are_listed_while_their_device_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let survival = Survival::new(dir.path());
        assert_eq!(survival.volumes().unwrap(), []);
        survival.remember(VOLUME, Epoch(5), &stores()).unwrap();
        std::fs::write(dir.path().join("else.toml"), "").unwrap();
        assert_eq!(survival.volumes().unwrap(), [VOLUME]);
        survival.distrust(VOLUME).unwrap();
        assert_eq!(survival.volumes().unwrap(), [VOLUME]);
        assert_eq!(survival.recall(VOLUME, Epoch(5)), BTreeMap::new());
        survival.forget(VOLUME);
        assert_eq!(survival.volumes().unwrap(), []);
        assert_eq!(Survival::new(Path::new("/nowhere")).volumes().unwrap(), []);
    }

    #[test]
    fn nothing_is_trusted_without_a_record_or_with_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let survival = Survival::new(dir.path());
        assert_eq!(survival.recall(VOLUME, Epoch(1)), BTreeMap::new());
        survival.remember(VOLUME, Epoch(5), &stores()).unwrap();
        std::fs::write(survival.path(VOLUME), "epoch = 5").unwrap();
        assert_eq!(survival.recall(VOLUME, Epoch(1)), BTreeMap::new());
        survival.forget(VOLUME);
        survival.forget(VOLUME);
        assert!(!survival.path(VOLUME).exists());
    }
}

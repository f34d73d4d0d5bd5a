//! Block devices that outlive the clientd that served them. The kernel keeps what was not answered and
//! issues it again to the next clientd, and who uses the device has not noticed anything: what was
//! acknowledged to it must still be there, flushed or not.

use crate::rare::Rare;
use crate::sim::{Party, Sim, Task};
use shardmap::units::{Epoch, Incarnation, StoreId};
use std::collections::BTreeMap;

/// How long until a request is tried again that was not taken.
const AGAIN_NS: u64 = 10_000_000;

/// A device in the kernel of a host.
#[derive(Debug)]
pub(crate) struct Device {
    /// In which era of the oracle it was made.
    era: u32,
    /// A clientd was told to trust it.
    trusted: bool,
    /// Requests that the new clientd has not been given.
    to_reissue: Vec<u64>,
}

impl Sim {
    /// The volume serves: the era of its device, which is made if there is none.
    pub(crate) fn device_serves(&mut self, index: usize) -> u32 {
        let current = self.oracle.era();
        let host = &mut self.hosts[index];
        if let Some(device) = &mut host.device {
            let era = device.era;
            device.to_reissue = host.ops.keys().copied().collect();
            self.rare.note(Rare::DeviceTakenOver);
            if era != current || self.upkept.superseded.contains_key(&era) {
                self.find(format!(
                    "host {index}: took over a device, and the volume was elsewhere meanwhile"
                ));
            }
            let life = self.hosts[index].life;
            self.schedule(0, Task::Reissue(Party::Host(index), life));
            return era;
        }
        // Who else serves is superseded from now on.
        let era = self.oracle.begin_era();
        let began = self.oracle.stamp();
        self.eras.insert(era, began);
        let host = &mut self.hosts[index];
        host.device = Some(Device {
            era,
            trusted: true,
            to_reissue: Vec::new(),
        });
        era
    }

    /// It is removed: whoever waits for an answer gets an error.
    pub(crate) fn remove_device(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.ops.clear();
        host.remembered = None;
        if host.device.take().is_some() {
            self.say(format_args!("host {index}: its device is removed"));
        }
    }

    /// What the new clientd may trust, of a volume that its host has held since an epoch; `None`: there
    /// is no device.
    pub(crate) fn recall(
        &mut self,
        index: usize,
        held_since: Epoch,
    ) -> Option<BTreeMap<StoreId, Incarnation>> {
        let host = &mut self.hosts[index];
        let device = host.device.as_mut()?;
        let kept = host.remembered.as_ref();
        let kept = kept.filter(|(epoch, _)| *epoch >= held_since);
        device.trusted = kept.is_some();
        Some(kept.map_or_else(BTreeMap::new, |(_, stores)| stores.clone()))
    }

    /// The new clientd found that what was acknowledged may be gone. If the volume was here all the
    /// time, that must be so.
    pub(crate) fn device_is_lost(&mut self, index: usize) {
        self.rare.note(Rare::DeviceLost);
        let host = &self.hosts[index];
        let trusted = host.device.as_ref().is_some_and(|d| d.trusted);
        if trusted {
            self.judge_data_lost(index);
        }
    }

    /// The kernel issues again what was not answered, in any order, beside new requests.
    pub(crate) fn reissue(&mut self, index: usize) {
        loop {
            let host = &mut self.hosts[index];
            let Some(device) = &mut host.device else {
                return;
            };
            let count = device.to_reissue.len() as u64;
            if count == 0 {
                return;
            }
            let nth = usize::try_from(self.load.below(count)).expect("small");
            let id = device.to_reissue[nth];
            let op = host.ops[&id];
            if !self.submit(index, id, &op) {
                let life = self.hosts[index].life;
                return self.schedule(AGAIN_NS, Task::Reissue(Party::Host(index), life));
            }
            self.say(format_args!("host {index}: #{id} again"));
            self.log.issued_again(id);
            self.rare.note(Rare::Reissued);
            let device = self.hosts[index].device.as_mut().expect("just seen");
            device.to_reissue.swap_remove(nth);
        }
    }
}

//! Views: snapshots that are read beside whoever has their volume.

use super::hosted::{Hosted, Machine};
use super::{GrantFault, Volumes};
use crate::api::ViewGrant;
use crate::core::{Event, View, ViewConfig};
use reactor::Driver;
use shardmap::units::{StoreId, VolumeId};
use std::collections::BTreeSet;

impl Volumes {
    /// Begins to open a view; ends in [`VolumeEvent::Attached`](crate::VolumeEvent::Attached) or
    /// [`VolumeEvent::AttachFailed`](crate::VolumeEvent::AttachFailed) under the view's own id, as do
    /// its requests. It is let go by [`Volumes::detach`].
    ///
    /// # Errors
    /// [`GrantFault`] if the grant contradicts itself; nothing was begun then.
    pub fn open_view(&mut self, io: &mut dyn Driver, grant: &ViewGrant) -> Result<(), GrantFault> {
        let (id, map) = (grant.id, &grant.map);
        self.check_map(id, map, &grant.slices)?;
        let slices = map.stores.iter();
        let slices: Vec<_> = slices.map(|s| self.server_of(&grant.slices[s])).collect();
        let config = ViewConfig {
            attach_wait_ms: grant.attach_wait_ms,
            io_wait_ms: grant.io_wait_ms,
        };
        let core = View::new(config, map.clone(), grant.generation);
        let slot = self.free_slot();
        let hosted = Hosted::of_view(grant, Machine::View(core), slices);
        self.slots[slot as usize].hosted = Some(Box::new(hosted));
        self.by_id.insert(id, slot);
        tracing::info!(view = %id, generation = grant.generation.0, "opening a view");
        self.step(io, slot, Event::Start);
        Ok(())
    }

    /// Stores that a view reads from now; `None` if there is no such view.
    pub fn view_stores(&self, view: VolumeId) -> Option<BTreeSet<StoreId>> {
        let slot = self.by_id.get(&view)?;
        let hosted = self.slots[*slot as usize].hosted.as_ref()?;
        match &hosted.core {
            Machine::View(core) => Some(hosted.stores(core.ready())),
            Machine::Volume(_) => None,
        }
    }
}

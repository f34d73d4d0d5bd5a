//! Views: snapshots that are read beside whoever has their volume.

use super::hosted::{Hosted, Machine};
use super::{GrantFault, Volumes};
use crate::api::{StoreStatus, ViewGrant, VolumeStatus};
use crate::core::{Event, Position, View};
use reactor::Driver;
use shardmap::generations::VolumeGenerations;
use shardmap::units::MembershipSeq;

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
        let core = View::new(map.clone(), grant.generation, grant.attach_wait_ms);
        let slot = self.free_slot();
        let hosted = Hosted::of_view(grant, Machine::View(core), slices);
        self.slots[slot as usize].hosted = Some(Box::new(hosted));
        self.by_id.insert(id, slot);
        tracing::info!(view = %id, generation = grant.generation.0, "opening a view");
        self.step(io, slot, Event::Start);
        Ok(())
    }

    pub(super) fn view_status(hosted: &Hosted, core: &View) -> VolumeStatus {
        let stores = (0..hosted.slices.len()).map(Position::new).map(|at| {
            let (state, outstanding) = core.store_state(at);
            let status = StoreStatus {
                state,
                incarnation: None,
                dirty_blocks: 0,
                outstanding,
            };
            (hosted.store(at), status)
        });
        VolumeStatus {
            epoch: hosted.epoch,
            seq: MembershipSeq(0),
            isr: hosted.stores(core.ready()),
            generations: VolumeGenerations::default(),
            serving: core.is_serving(),
            regions_to_reconcile: 0,
            moves: 0,
            stores: stores.collect(),
            counters: hosted.counters,
        }
    }
}

//! Growth of stores: a vendor command that is of a store and of no slice.

use super::{Head, Notable, Pending, Slices};
use crate::vendor;
use control::core::READER_HOST_NQN_PREFIX;
use nvmf::proto::status::Status;
use nvmf::proto::vendor::opcode::GROW_STORE;
use nvmf::target::{AssociationId, CommandId};
use reactor::Driver;
use store::{Growth, StoreFault, StoreOp, StoreReply};

impl Slices {
    /// Begins a growth, for a store that is open.
    pub(super) fn begin_growth(
        &mut self,
        io: &mut dyn Driver,
        (id, association): (CommandId, AssociationId),
        (cdws, reply_bytes_max): ([u32; 6], u32),
    ) -> Result<(), Status> {
        let uuid = vendor::store(cdws)?;
        let guest = self.guests.get(&association);
        if !guest.is_some_and(|nqn| nqn.starts_with(READER_HOST_NQN_PREFIX)) {
            return Err(Status::NOT_OPEN);
        }
        let home = self.stores().find(|(_, store)| store.uuid() == uuid);
        let (home, _) = home.ok_or(Status::STORE_FAULTED)?;
        let head = Head {
            id,
            association,
            nsid: 0,
            home,
        };
        let pending = Pending {
            id,
            vendor: Some((GROW_STORE, reply_bytes_max)),
            group: None,
            completes: None,
            reads: None,
        };
        self.begin(io, &head, StoreOp::Grow, pending);
        Ok(())
    }

    /// The app hears of a growth, and reports tell of the new size.
    pub(super) fn on_grown(&self, store_index: usize, growth: Growth) -> Notable {
        self.publish(store_index);
        Notable::Grown(store_index, growth)
    }
}

/// The growth that an answer tells of.
pub(super) fn growth_of(result: &Result<StoreReply, StoreFault>) -> Option<Growth> {
    if let Ok(StoreReply::Grown(growth)) = result {
        return Some(*growth);
    }
    None
}

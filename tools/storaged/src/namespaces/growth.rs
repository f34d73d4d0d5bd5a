//! Growth of stores: a vendor command that is of a store and of no slice.

use super::{Head, Notable, Pending, Slices, refusal};
use crate::faults::status_of;
use crate::vendor;
use control::core::READER_HOST_NQN_PREFIX;
use nvmf::proto::status::Status;
use nvmf::proto::vendor::opcode::GROW_STORE;
use nvmf::target::{AssociationId, CommandId, Reply, ReplyData};
use reactor::Driver;
use store::{StoreFault, StoreOp, StoreReply};

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
            grows: Some(home),
        };
        self.begin(io, &head, StoreOp::Grow, pending);
        Ok(())
    }

    /// A growth is told in full, also if it was refused.
    pub(super) fn on_grown(
        &mut self,
        store_index: usize,
        pending: &Pending,
        result: Result<StoreReply, StoreFault>,
    ) -> Option<Notable> {
        let (told, grown) = match result {
            Ok(StoreReply::Grown(growth)) => (Ok(growth), Some(growth)),
            Err(StoreFault::Growth(fault)) => (Err(fault), None),
            Ok(_) => unreachable!("a growth is answered by what it was"),
            Err(other) => {
                self.replies.push(refusal(pending.id, status_of(&other)));
                return None;
            }
        };
        let data = vendor::growth(told);
        let room = pending.vendor.map_or(0, |(_, max)| max as usize);
        self.replies.push(if data.len() > room {
            refusal(pending.id, Status::SGL_LENGTH_INVALID)
        } else {
            Reply {
                id: pending.id,
                status: Status::SUCCESS,
                result: 0,
                data: ReplyData::Bytes(data),
            }
        });
        self.publish(store_index);
        grown.map(|growth| Notable::Grown(store_index, growth))
    }
}

//! Properties: the registers of a controller that has no PCI.

use super::super::fabrics::{
    CC_AMS, CC_CSS, CC_EN, CC_MPS, CC_QUEUE_ENTRY_MASK, CC_QUEUE_ENTRY_SIZES, CC_SHN, CSTS_FATAL,
    CSTS_READY, CSTS_SHUTDOWN_COMPLETE, PropertyCommand, VERSION_1_4, capabilities, property,
};
use super::super::sqe::Sqe;
use super::super::status::Status;
use super::{CloseReason, Core, Effect, limits};

/// CAP.TO: a host waits this long for us, in units of 500 ms. We are ready at once.
const READY_TIMEOUT_500MS: u8 = 15;

impl Core {
    pub(super) fn property_get(&self, association: usize, sqe: &Sqe) -> Result<u64, Status> {
        let command = PropertyCommand::of(sqe);
        let this = self.association(association);
        let (value, eight_bytes) = match command.offset.get() {
            property::CAP => (
                capabilities(limits::QUEUE_DEPTH_MAX, READY_TIMEOUT_500MS),
                true,
            ),
            property::VS => (u64::from(VERSION_1_4), false),
            property::CC => (u64::from(this.cc), false),
            property::CSTS => (u64::from(this.csts), false),
            _ => return Err(Status::INVALID_FIELD),
        };
        if command.attrib & 7 == u8::from(eight_bytes) {
            Ok(value)
        } else {
            Err(Status::INVALID_FIELD)
        }
    }

    pub(super) fn property_set(
        &mut self,
        association: usize,
        sqe: &Sqe,
        out: &mut Vec<Effect>,
    ) -> Result<u64, Status> {
        let command = PropertyCommand::of(sqe);
        if command.offset.get() != property::CC || command.attrib & 7 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let value = u32::try_from(command.value.get()).map_err(|_| Status::INVALID_FIELD)?;
        let now_ns = self.now_ns;
        let this = self.association_mut(association);
        let before = std::mem::replace(&mut this.cc, value);
        let (was_on, is_on) = (before & CC_EN != 0, value & CC_EN != 0);
        if !was_on && is_on {
            let sizes = value & CC_QUEUE_ENTRY_MASK == CC_QUEUE_ENTRY_SIZES || this.discovery;
            let plain = value & (CC_CSS | CC_MPS | CC_AMS) == 0;
            this.csts = if plain && sizes {
                CSTS_READY
            } else {
                CSTS_FATAL
            };
            this.seen_ns = now_ns;
        }
        if value & CC_SHN != 0 && before & CC_SHN == 0 {
            this.csts |= CSTS_SHUTDOWN_COMPLETE;
        }
        if was_on && !is_on {
            this.csts &= CSTS_SHUTDOWN_COMPLETE;
            this.events_wanted = 0;
            // Reset deletes the IO queues, which on fabrics are their connections.
            for connection in std::mem::take(&mut this.queues).into_values() {
                self.shut(connection, CloseReason::Disabled, out);
            }
        }
        Ok(0)
    }
}

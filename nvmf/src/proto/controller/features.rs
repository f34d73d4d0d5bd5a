//! Features: queue counts, event configuration, keep-alive timer, host id, write cache.

use super::super::sqe::Sqe;
use super::super::status::Status;
use super::{Core, limits};

/// Feature identifiers.
mod fid {
    pub(super) const WRITE_CACHE: u32 = 0x06;
    pub(super) const QUEUES: u32 = 0x07;
    pub(super) const EVENTS: u32 = 0x0b;
    pub(super) const KEEP_ALIVE: u32 = 0x0f;
    pub(super) const HOST_ID: u32 = 0x81;
}

/// CDW10 of Set Features, bit 31: save.
const SAVE: u32 = 1 << 31;

impl Core {
    /// Result dwords.
    pub(super) fn set_feature(&mut self, association: usize, sqe: &Sqe) -> Result<u64, Status> {
        if sqe.cdw(10) & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        let value = sqe.cdw(11);
        let now_ns = self.now_ns;
        let this = self.association_mut(association);
        match sqe.cdw(10) & 0xff {
            fid::QUEUES if !this.discovery => {
                let (submission, completion) = (value & 0xffff, value >> 16);
                if submission == 0xffff || completion == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                if !this.queues.is_empty() {
                    return Err(Status::COMMAND_SEQUENCE);
                }
                let granted = (submission.min(completion) + 1).min(limits::IO_QUEUES_MAX.into());
                this.queues_granted = u16::try_from(granted).expect("at most IO_QUEUES_MAX");
                Ok(queue_counts(this.queues_granted))
            }
            fid::EVENTS => {
                this.events_wanted = value;
                Ok(0)
            }
            fid::KEEP_ALIVE => {
                this.kato_ms = value.min(limits::KATO_MS_MAX);
                this.seen_ns = now_ns;
                self.deadlines_changed = true;
                Ok(0)
            }
            fid::WRITE_CACHE if !this.discovery && value & 1 != 0 => Ok(0),
            fid::WRITE_CACHE | fid::HOST_ID => Err(Status::FEATURE_NOT_CHANGEABLE),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Result dwords, and data where the feature has some.
    pub(super) fn get_feature(
        &self,
        association: usize,
        sqe: &Sqe,
    ) -> Result<(u64, Option<Vec<u8>>), Status> {
        let this = self.association(association);
        match sqe.cdw(10) & 0xff {
            fid::QUEUES if !this.discovery => Ok((queue_counts(this.queues_granted), None)),
            fid::EVENTS => Ok((this.events_wanted.into(), None)),
            fid::KEEP_ALIVE => Ok((this.kato_ms.into(), None)),
            fid::WRITE_CACHE if !this.discovery => Ok((1, None)),
            // CDW11 bit 0: the 128-bit form, the only one there is on fabrics.
            fid::HOST_ID if sqe.cdw(11) & 1 != 0 && sqe.sgl.length.get() >= 16 => {
                Ok((0, Some(this.host_id.to_vec())))
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }
}

/// Both counts, zero-based.
fn queue_counts(granted: u16) -> u64 {
    let zero_based = u64::from(granted - 1);
    zero_based | zero_based << 16
}

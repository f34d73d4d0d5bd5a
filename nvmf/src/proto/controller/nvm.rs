//! IO commands: what each must look like before it costs a buffer.

use super::super::identify::BLOCK_BYTES;
use super::super::sqe::{CDW11_DEALLOCATE, DSM_RANGES_MAX, NSID_ALL, Sqe, admin, io};
use super::super::status::Status;
use super::incoming::Data;
use super::slots::Plan;
use super::{Core, Work, limits};

impl Core {
    pub(super) fn judge_io(&self, association: usize, sqe: &Sqe) -> Result<(Plan, Data), Status> {
        if sqe.opcode == admin::FABRICS || !self.association(association).is_ready() {
            return Err(Status::COMMAND_SEQUENCE);
        }
        let nsid = sqe.nsid.get();
        if nsid == 0 || nsid == NSID_ALL {
            return Err(Status::INVALID_NAMESPACE);
        }
        match sqe.opcode {
            io::READ => {
                check_range(sqe, true)?;
                Ok((Plan::Work(Work::Read), Data::Out))
            }
            io::WRITE => {
                check_range(sqe, true)?;
                Ok((Plan::Work(Work::Write), Data::In))
            }
            io::FLUSH => Ok((Plan::Work(Work::Flush), Data::None)),
            io::WRITE_ZEROES => {
                check_range(sqe, false)?;
                Ok((Plan::Work(Work::WriteZeroes), Data::None))
            }
            io::DATASET_MANAGEMENT => {
                let ranges = sqe.cdw(10) & 0xff;
                let len_bytes = sqe.sgl.length.get();
                // Linux always transfers a page, however few ranges there are.
                let most = u32::try_from(DSM_RANGES_MAX * 16).expect("4096");
                if !((ranges + 1) * 16..=most).contains(&len_bytes) {
                    return Err(Status::SGL_LENGTH_INVALID);
                }
                // Without the deallocate bit it is a hint, and taken as such.
                let deallocate = sqe.cdw(11) & CDW11_DEALLOCATE != 0;
                let plan = if deallocate {
                    Plan::Work(Work::Deallocate)
                } else {
                    Plan::Here
                };
                Ok((plan, Data::In))
            }
            _ => Err(Status::INVALID_OPCODE),
        }
    }
}

/// Checks a block range and, where data moves, that its length is the range's.
fn check_range(sqe: &Sqe, moves_data: bool) -> Result<(), Status> {
    if sqe.slba().checked_add(u64::from(sqe.blocks())).is_none() {
        return Err(Status::LBA_OUT_OF_RANGE);
    }
    if !moves_data {
        return Ok(());
    }
    if sqe.blocks() > limits::TRANSFER_BYTES_MAX / BLOCK_BYTES {
        return Err(Status::INVALID_FIELD);
    }
    if sqe.sgl.length.get() != sqe.blocks() * BLOCK_BYTES {
        return Err(Status::SGL_LENGTH_INVALID);
    }
    Ok(())
}

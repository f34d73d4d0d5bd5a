//! What a store's fault is called on the wire. One table; a new fault does not compile until it is here.

use nvmf::proto::status::Status;
use store::StoreFault;

/// The NVMe status for a fault.
pub(crate) fn status_of(fault: &StoreFault) -> Status {
    match fault {
        StoreFault::UnknownSlice { .. } => Status::INVALID_NAMESPACE,
        StoreFault::WrongVolume { .. } => Status::UNKNOWN_VOLUME,
        StoreFault::SliceExists { .. }
        | StoreFault::HasClones { .. }
        | StoreFault::ParentNotComplete { .. }
        | StoreFault::BadSpec { .. }
        | StoreFault::TooLong { .. }
        | StoreFault::WrongGeneration { .. }
        | StoreFault::UnknownGeneration { .. }
        | StoreFault::UnknownTick { .. } => Status::INVALID_FIELD,
        StoreFault::Fenced { .. } | StoreFault::SessionRevoked { .. } => Status::SESSION_REVOKED,
        StoreFault::NotOpen { .. } => Status::NOT_OPEN,
        StoreFault::OutOfRange { .. } => Status::LBA_OUT_OF_RANGE,
        StoreFault::ShardNotHere { .. } => Status::SHARD_NOT_HERE,
        StoreFault::Incomplete { .. } => Status::SLICE_INCOMPLETE,
        StoreFault::NoSpace { .. }
        | StoreFault::NoPages { .. }
        | StoreFault::TooManySnapshots { .. } => Status::CAPACITY_EXCEEDED,
        // The client reads another replica and writes this one again: so for rotten blocks, too.
        StoreFault::Medium { what: "read", .. } | StoreFault::Rotten { .. } => {
            Status::UNRECOVERED_READ
        }
        StoreFault::Medium { .. } => Status::WRITE_FAULT,
        // Answered with what it says: see `vendor::refused_growth`.
        StoreFault::Growth(_) => Status::INVALID_FIELD,
        StoreFault::Busy { .. } => Status::COMMAND_INTERRUPTED,
        StoreFault::Stopping | StoreFault::Poisoned { .. } | StoreFault::Open(_) => {
            Status::STORE_FAULTED
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use shardmap::units::{Epoch, Lba, Nsid};

    #[test]
    fn a_fenced_client_learns_that_it_is_fenced_and_not_that_the_path_is_bad() {
        let fault = StoreFault::Fenced {
            nsid: Nsid(1),
            ours: Epoch(2),
            theirs: Epoch(1),
        };
        assert_eq!(status_of(&fault), Status::SESSION_REVOKED);
        assert_eq!(
            status_of(&StoreFault::NotOpen { nsid: Nsid(1) }),
            Status::NOT_OPEN
        );
    }

    #[test]
    fn media_faults_tell_reads_from_writes() {
        let medium = |what| StoreFault::Medium {
            what,
            nsid: Nsid(1),
            lba: Lba(0),
            errno: libc_eio(),
        };
        assert_eq!(status_of(&medium("read")), Status::UNRECOVERED_READ);
        assert_eq!(status_of(&medium("write")), Status::WRITE_FAULT);
        let rotten = StoreFault::Rotten {
            nsid: Nsid(1),
            lba: Lba(7),
            written: 1,
            read: 2,
        };
        assert_eq!(status_of(&rotten), Status::UNRECOVERED_READ);
    }

    const fn libc_eio() -> i32 {
        5
    }

    #[test]
    fn only_what_may_pass_is_retryable() {
        assert!(!status_of(&StoreFault::Busy { max: 1 }).dnr);
        assert!(status_of(&StoreFault::NoSpace { needed: 1, free: 0 }).dnr);
    }
}

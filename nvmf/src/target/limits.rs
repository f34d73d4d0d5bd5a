//! Every bound of the target's shell; the protocol's are in `proto::controller::limits`.

use crate::proto::controller::limits;
use crate::proto::pdu::{HEADER_BYTES_MAX, TERM_REQ_BYTES_MAX};
use reactor::SEND_PARTS_MAX;
use reactor::arena::SLOT_BYTES;

/// Bytes a connection receives ahead of what it knows to be payload.
pub const STAGING_BYTES: u32 = 16 * 1024;
/// The same while large payloads are on their way, so that little of them is swallowed.
pub const STAGING_BYTES_BUSY: u32 = 4 * 1024;
/// Room for headers, digests and small data of one send.
pub const HEADER_PAGE_BYTES: u32 = 4 * 1024;
/// Data up to this is copied behind its header instead of being sent from a slot of its own.
pub const COPIED_BYTES_MAX: u32 = 64;
/// Answers queued on one socket before we stop listening to a host that does not read them.
pub const QUEUED_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Parts after which a send is full: the last item may still add a run, its data and a run.
pub const PARTS_FULL: usize = SEND_PARTS_MAX - 3;
/// Bytes granted by R2T at a time, unless configured: a quarter of the default arena, so that hosts
/// slow to send cannot take the buffers of those who already did.
pub const GRANTED_BYTES_MAX_DEFAULT: u64 = 16 * 1024 * 1024;
/// Pause after an accept that failed (no descriptors left, say).
pub const ACCEPT_RETRY_NS: u64 = 100_000_000;

/// Header, digest of the header, digest of the data, and small data.
pub(super) const ITEM_BYTES_MAX: u32 = 256;

const _: () = assert!(HEADER_BYTES_MAX + 4 + COPIED_BYTES_MAX as usize <= ITEM_BYTES_MAX as usize);
const _: () = assert!(TERM_REQ_BYTES_MAX <= ITEM_BYTES_MAX);
const _: () = assert!(ITEM_BYTES_MAX <= HEADER_PAGE_BYTES && HEADER_PAGE_BYTES == SLOT_BYTES[0]);
const _: () = assert!(limits::TRANSFER_BYTES_MAX == SLOT_BYTES[SLOT_BYTES.len() - 1]);
const _: () = assert!(QUEUED_BYTES_MAX >= limits::TRANSFER_BYTES_MAX as u64);
const _: () = assert!(GRANTED_BYTES_MAX_DEFAULT >= limits::TRANSFER_BYTES_MAX as u64);

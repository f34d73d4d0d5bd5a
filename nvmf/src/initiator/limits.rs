//! Every bound of the initiator.

use crate::proto::host::{ADMIN_BYTES_MAX, IO_BYTES_MAX};
use crate::proto::pdu::HEADER_BYTES_MAX;
use crate::proto::vendor::VENDOR_DATA_BYTES_MAX;
use reactor::arena::SLOT_BYTES;

/// Associations at a time: one per storaged that this client's volumes use.
pub const ASSOCIATIONS_MAX: usize = 1024;
/// Bytes a connection receives ahead of what it knows to be payload: headers, small payloads, and
/// what follows a payload in the same receive.
pub const STAGING_BYTES: u32 = 16 * 1024;
/// Room for headers and digests of one send.
pub const HEADER_PAGE_BYTES: u32 = 16 * 1024;
/// How long a terminate request may take to leave before the connection is reset.
pub const TERMINATE_NS: u64 = 1_000_000_000;
/// Most ranges of one deallocation (NR has eight bits).
pub const RANGES_MAX: usize = 256;

const _: () = assert!(IO_BYTES_MAX == SLOT_BYTES[SLOT_BYTES.len() - 1]);
const _: () = assert!(ADMIN_BYTES_MAX >= VENDOR_DATA_BYTES_MAX);
// A send makes progress: the largest item (Connect) fits an empty page.
const _: () = assert!(HEADER_PAGE_BYTES as usize >= HEADER_BYTES_MAX + 1024 + 4);
const _: () = assert!(RANGES_MAX * 16 <= SLOT_BYTES[0] as usize);

//! Every bound of the verifier.

/// Longest serialised record, framing included (bytes): a range, three numbers and a tag.
pub const RECORD_BYTES_MAX: usize = 96;
/// Differences a comparison remembers; further ones are only counted.
pub const DIFFERENCES_MAX: usize = 64;
/// Most blocks of one action: what a block device may ask for in one request.
pub const ACTION_BLOCKS_MAX: u32 = 1 << 24;

//! Command status: status code type, status code, and whether a retry can help.

use std::fmt;

/// The status of a completed command (NVMe Base, completion queue entry DW3 31:17).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status {
    /// Status code type: 0 generic, 1 command specific, 2 media, 3 path, 7 vendor.
    pub sct: u8,
    /// Status code.
    pub sc: u8,
    /// Do not retry: the same command would fail again.
    pub dnr: bool,
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = ($sct:literal, $sc:literal, $dnr:literal), $text:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self { sct: $sct, sc: $sc, dnr: $dnr };)*

            /// What the status means, in words; empty for codes that we neither send nor expect.
            pub const fn text(self) -> &'static str {
                match (self.sct, self.sc) {
                    $(($sct, $sc) => $text,)*
                    _ => "",
                }
            }

            #[cfg(test)]
            const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

statuses! {
    /// It worked.
    SUCCESS = (0x0, 0x00, false), "success";
    /// Opcode not known on this queue.
    INVALID_OPCODE = (0x0, 0x01, true), "invalid opcode";
    /// A field of the command is wrong.
    INVALID_FIELD = (0x0, 0x02, true), "invalid field";
    /// Data transfer error.
    DATA_TRANSFER_ERROR = (0x0, 0x04, false), "data transfer error";
    /// Something broke on our side.
    INTERNAL_ERROR = (0x0, 0x06, false), "internal error";
    /// Aborted at the host's request.
    ABORTED_BY_REQUEST = (0x0, 0x07, true), "aborted by request";
    /// The queue went away.
    ABORTED_SQ_DELETION = (0x0, 0x08, false), "aborted, queue deleted";
    /// First half of a fused pair without its second.
    ABORTED_MISSING_FUSED = (0x0, 0x0a, true), "aborted, missing fused command";
    /// NSID not valid or not attached.
    INVALID_NAMESPACE = (0x0, 0x0b, true), "invalid namespace or format";
    /// Command out of order (before enable, second Connect).
    COMMAND_SEQUENCE = (0x0, 0x0c, true), "command sequence error";
    /// SGL descriptor count is not one.
    SGL_COUNT_INVALID = (0x0, 0x0e, true), "invalid number of SGL descriptors";
    /// Transfer length and command disagree.
    SGL_LENGTH_INVALID = (0x0, 0x0f, true), "SGL data length invalid";
    /// SGL descriptor type not supported.
    SGL_TYPE_INVALID = (0x0, 0x11, true), "SGL descriptor type invalid";
    /// In-capsule offset not zero.
    SGL_OFFSET_INVALID = (0x0, 0x16, true), "SGL offset invalid";
    /// Keep-alive timer is mandatory and was zero.
    KEEP_ALIVE_INVALID = (0x0, 0x1a, true), "keep alive timeout invalid";
    /// The payload's digest did not match; a retry sends it again.
    TRANSIENT_TRANSPORT = (0x0, 0x22, false), "transient transport error";
    /// Log page or feature sequence.
    COMMAND_INTERRUPTED = (0x0, 0x21, false), "command interrupted";
    /// Range passes the end of the namespace.
    LBA_OUT_OF_RANGE = (0x0, 0x80, true), "LBA out of range";
    /// The store has no room.
    CAPACITY_EXCEEDED = (0x0, 0x81, true), "capacity exceeded";
    /// The namespace is not ready yet.
    NAMESPACE_NOT_READY = (0x0, 0x82, false), "namespace not ready";
    /// Log page identifier not known.
    INVALID_LOG_PAGE = (0x1, 0x09, true), "invalid log page";
    /// More asynchronous event requests than AERL allows.
    AER_LIMIT_EXCEEDED = (0x1, 0x05, true), "asynchronous event request limit exceeded";
    /// Feature can't be saved.
    FEATURE_NOT_SAVEABLE = (0x1, 0x0d, true), "feature identifier not saveable";
    /// Feature can't be changed.
    FEATURE_NOT_CHANGEABLE = (0x1, 0x0e, true), "feature not changeable";
    /// Connect: record format not known.
    CONNECT_INCOMPATIBLE_FORMAT = (0x1, 0x80, true), "connect: incompatible format";
    /// Connect: try again later.
    CONNECT_CONTROLLER_BUSY = (0x1, 0x81, false), "connect: controller busy";
    /// Connect: a parameter is wrong; the result says which.
    CONNECT_INVALID_PARAMETERS = (0x1, 0x82, true), "connect: invalid parameters";
    /// Connect: this host may not.
    CONNECT_INVALID_HOST = (0x1, 0x84, true), "connect: invalid host";
    /// The medium did not take the write.
    WRITE_FAULT = (0x2, 0x80, false), "write fault";
    /// The medium or a checksum lost the data.
    UNRECOVERED_READ = (0x2, 0x81, true), "unrecovered read error";
    /// Path: gone for good.
    PATH_PERSISTENT_LOSS = (0x3, 0x01, false), "asymmetric access persistent loss";
    /// Path: not here now.
    PATH_INACCESSIBLE = (0x3, 0x02, false), "asymmetric access inaccessible";
    /// A newer epoch opened the slice; this session is over.
    SESSION_REVOKED = (0x7, 0x01, true), "session revoked by a newer epoch";
    /// This association has no session on the slice.
    NOT_OPEN = (0x7, 0x02, true), "slice not open on this association";
    /// The slice does not hold this shard.
    SHARD_NOT_HERE = (0x7, 0x03, true), "shard not here";
    /// The store has failed.
    STORE_FAULTED = (0x7, 0x04, false), "store faulted";
    /// The slice must be resilvered first.
    SLICE_INCOMPLETE = (0x7, 0x05, false), "slice incomplete";
    /// The slice belongs to another volume.
    UNKNOWN_VOLUME = (0x7, 0x06, true), "unknown volume";
    /// Vendor protocol version not spoken here.
    PROTOCOL_VERSION = (0x7, 0x07, true), "vendor protocol version not supported";
}

impl Status {
    /// True for success.
    pub const fn is_success(self) -> bool {
        self.sct == 0 && self.sc == 0
    }

    /// The same status with the do-not-retry bit cleared.
    pub const fn retryable(self) -> Self {
        Self { dnr: false, ..self }
    }

    /// As it stands in bits 15:0 of the completion's last word (bit 0 is the phase, always 0 on
    /// fabrics).
    pub const fn to_wire(self) -> u16 {
        (self.sc as u16) << 1 | ((self.sct & 7) as u16) << 9 | (self.dnr as u16) << 15
    }

    /// Reads the status field; retry delay and "more" bits are dropped.
    pub const fn from_wire(word: u16) -> Self {
        let [low, _] = (word >> 1).to_le_bytes();
        let [sct, _] = ((word >> 9) & 7).to_le_bytes();
        Self {
            sct,
            sc: low,
            dnr: word >> 15 != 0,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}{:02x}h", self.sct, self.sc)?;
        if self.dnr {
            f.write_str(" DNR")?;
        }
        if self.text().is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.text())
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_status_survives_the_wire() {
        for status in Status::ALL {
            assert_eq!(Status::from_wire(status.to_wire()), *status);
            assert!(!status.text().is_empty());
        }
    }

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        let status = Status {
            sct: 0x1,
            sc: 0x82,
            dnr: true,
        };
        assert_eq!(status.to_wire(), 0x8000 | 0x1 << 9 | 0x82 << 1);
        // More (bit 14), retry delay (13:12) and phase (0) are ignored when reading.
        assert_eq!(Status::from_wire(status.to_wire() | 0x7001), status);
    }
}

//! Fabrics commands: Connect, Property Get and Set, and the properties themselves.

use super::sqe::{FLAGS_SGL, Sgl, Sqe, admin};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

/// FCTYPE of Property Set.
pub const FCTYPE_PROPERTY_SET: u8 = 0x00;
/// FCTYPE of Connect.
pub const FCTYPE_CONNECT: u8 = 0x01;
/// FCTYPE of Property Get.
pub const FCTYPE_PROPERTY_GET: u8 = 0x04;

/// CATTR bit 2: the host disables SQ flow control.
pub const CATTR_NO_FLOW_CONTROL: u8 = 1 << 2;
/// CNTLID of an admin Connect: give me any controller.
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// The well-known name of a discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Longest NQN, without its terminator.
pub const NQN_BYTES_MAX: usize = 223;

/// Connect, as it stands in the 64 bytes of a command.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ConnectCommand {
    /// 7Fh.
    pub opcode: u8,
    /// PSDT.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// 01h.
    pub fctype: u8,
    /// Reserved.
    pub reserved0: [u8; 19],
    /// The data: one [`ConnectData`].
    pub sgl: Sgl,
    /// Record format, 0.
    pub recfmt: U16,
    /// Queue to create; 0 is the admin queue.
    pub qid: U16,
    /// Queue size, zero-based.
    pub sqsize: U16,
    /// Attributes, `CATTR_*`.
    pub cattr: u8,
    /// Reserved.
    pub reserved1: u8,
    /// Keep-alive timeout in milliseconds; 0 is none.
    pub kato_ms: U32,
    /// Reserved.
    pub reserved2: [u8; 12],
}
const _: () = assert!(size_of::<ConnectCommand>() == 64);
const _: () = assert!(std::mem::offset_of!(ConnectCommand, recfmt) == 40);
const _: () = assert!(std::mem::offset_of!(ConnectCommand, kato_ms) == 48);

/// The data of Connect.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Controller wanted; FFFFh for any.
    pub cntlid: U16,
    /// Reserved.
    pub reserved0: [u8; 238],
    /// Subsystem name, zero-terminated.
    pub subnqn: [u8; 256],
    /// Host name, zero-terminated.
    pub hostnqn: [u8; 256],
    /// Reserved.
    pub reserved1: [u8; 256],
}
const _: () = assert!(size_of::<ConnectData>() == 1024);
const _: () = assert!(std::mem::offset_of!(ConnectData, subnqn) == 256);
const _: () = assert!(std::mem::offset_of!(ConnectData, hostnqn) == 512);

/// Length of the data of Connect, in bytes.
pub const CONNECT_DATA_BYTES: u32 = 1024;

/// Property Get and Set, as they stand in the 64 bytes of a command.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PropertyCommand {
    /// 7Fh.
    pub opcode: u8,
    /// PSDT.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// 00h set, 04h get.
    pub fctype: u8,
    /// Reserved.
    pub reserved0: [u8; 35],
    /// Size: 0 four bytes, 1 eight bytes.
    pub attrib: u8,
    /// Reserved.
    pub reserved1: [u8; 3],
    /// Offset of the property, see [`property`].
    pub offset: U32,
    /// Value to set.
    pub value: U64,
    /// Reserved.
    pub reserved2: [u8; 8],
}
const _: () = assert!(size_of::<PropertyCommand>() == 64);
const _: () = assert!(std::mem::offset_of!(PropertyCommand, attrib) == 40);
const _: () = assert!(std::mem::offset_of!(PropertyCommand, value) == 48);

impl ConnectCommand {
    /// A Connect for one queue. `sqsize` is zero-based; its data goes in the capsule.
    pub fn new(cid: u16, qid: u16, sqsize: u16, cattr: u8, kato_ms: u32) -> Self {
        Self {
            opcode: admin::FABRICS,
            flags: FLAGS_SGL,
            cid: cid.into(),
            fctype: FCTYPE_CONNECT,
            sgl: Sgl::in_capsule(CONNECT_DATA_BYTES),
            qid: qid.into(),
            sqsize: sqsize.into(),
            cattr,
            kato_ms: kato_ms.into(),
            ..Self::new_zeroed()
        }
    }

    /// As a command.
    pub fn to_sqe(self) -> Sqe {
        transmute!(self)
    }

    /// A command seen as Connect; the caller looked at opcode and FCTYPE.
    pub fn of(sqe: &Sqe) -> Self {
        transmute!(*sqe)
    }
}

impl PropertyCommand {
    /// Property Get of four or eight bytes.
    pub fn get(cid: u16, offset: u32, eight_bytes: bool) -> Self {
        Self {
            opcode: admin::FABRICS,
            flags: FLAGS_SGL,
            cid: cid.into(),
            fctype: FCTYPE_PROPERTY_GET,
            attrib: u8::from(eight_bytes),
            offset: offset.into(),
            ..Self::new_zeroed()
        }
    }

    /// Property Set of four bytes.
    pub fn set(cid: u16, offset: u32, value: u32) -> Self {
        Self {
            fctype: FCTYPE_PROPERTY_SET,
            value: u64::from(value).into(),
            ..Self::get(cid, offset, false)
        }
    }

    /// As a command.
    pub fn to_sqe(self) -> Sqe {
        let mut sqe: Sqe = transmute!(self);
        sqe.sgl = Sgl::transport(0);
        sqe
    }

    /// A command seen as Property Get or Set; the caller looked at opcode and FCTYPE.
    pub fn of(sqe: &Sqe) -> Self {
        transmute!(*sqe)
    }
}

/// FCTYPE of a fabrics command.
pub fn fctype(sqe: &Sqe) -> u8 {
    sqe.nsid.get().to_le_bytes()[0]
}

impl ConnectData {
    /// Data for a Connect. Panics if a name is longer than [`NQN_BYTES_MAX`].
    pub fn new(hostid: [u8; 16], cntlid: u16, subnqn: &str, hostnqn: &str) -> Self {
        let mut data = Self {
            hostid,
            cntlid: cntlid.into(),
            ..Self::new_zeroed()
        };
        for (field, name) in [(&mut data.subnqn, subnqn), (&mut data.hostnqn, hostnqn)] {
            assert!(name.len() <= NQN_BYTES_MAX, "NQN of {} bytes", name.len());
            field[..name.len()].copy_from_slice(name.as_bytes());
        }
        data
    }
}

/// Reads a zero-terminated NQN. `None` if it is unterminated within [`NQN_BYTES_MAX`], empty, or
/// not printable ASCII (we neither log nor compare anything else).
pub fn nqn(field: &[u8; 256]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0)?;
    let name = &field[..end];
    let fits = (1..=NQN_BYTES_MAX).contains(&end) && name.iter().all(u8::is_ascii_graphic);
    if fits {
        std::str::from_utf8(name).ok()
    } else {
        None
    }
}

/// Result dwords of a refused Connect: which byte is wrong, and whether of the data (else of the
/// command).
pub fn invalid_parameter(offset: u16, in_data: bool) -> u64 {
    u64::from(offset) | u64::from(in_data) << 16
}

/// Property offsets.
pub mod property {
    /// Controller capabilities, eight bytes.
    pub const CAP: u32 = 0x00;
    /// Version.
    pub const VS: u32 = 0x08;
    /// Controller configuration.
    pub const CC: u32 = 0x14;
    /// Controller status.
    pub const CSTS: u32 = 0x1c;
}

/// VS of NVMe 1.4.0.
pub const VERSION_1_4: u32 = 0x0001_0400;

/// CC: enable.
pub const CC_EN: u32 = 1 << 0;
/// CC: IO command set selected, bits 6:4; 0 is NVM.
pub const CC_CSS: u32 = 7 << 4;
/// CC: memory page size, bits 10:7; 0 is 4 KiB.
pub const CC_MPS: u32 = 0xf << 7;
/// CC: arbitration, bits 13:11; 0 is round robin.
pub const CC_AMS: u32 = 7 << 11;
/// CC: shutdown notification, bits 15:14.
pub const CC_SHN: u32 = 3 << 14;
/// CC: IOSQES 6 and IOCQES 4 in place.
pub const CC_QUEUE_ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
/// CC: mask of IOSQES and IOCQES.
pub const CC_QUEUE_ENTRY_MASK: u32 = 0xff << 16;
/// The CC that enables a controller of ours.
pub const CC_ENABLE: u32 = CC_EN | CC_QUEUE_ENTRY_SIZES;

/// CSTS: ready.
pub const CSTS_READY: u32 = 1 << 0;
/// CSTS: fatal.
pub const CSTS_FATAL: u32 = 1 << 1;
/// CSTS: shutdown complete.
pub const CSTS_SHUTDOWN_COMPLETE: u32 = 2 << 2;

/// CAP of our controllers: queue depth (zero-based MQES), contiguous queues, the time to get ready
/// in units of 500 ms, NVM command set, 4 KiB pages.
pub const fn capabilities(queue_depth_max: u16, ready_timeout_500ms: u8) -> u64 {
    (queue_depth_max - 1) as u64 | 1 << 16 | (ready_timeout_500ms as u64) << 24 | 1 << 37
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn connect_and_property_stand_where_specified() {
        let connect = ConnectCommand::new(0x1122, 3, 127, CATTR_NO_FLOW_CONTROL, 15_000).to_sqe();
        let bytes = connect.as_bytes();
        assert_eq!(bytes[..5], [0x7f, 0x40, 0x22, 0x11, 0x01]);
        assert_eq!(bytes[32..40], [0, 4, 0, 0, 0, 0, 0, 1]);
        assert_eq!(bytes[40..52], [0, 0, 3, 0, 127, 0, 4, 0, 0x98, 0x3a, 0, 0]);
        assert_eq!(fctype(&connect), FCTYPE_CONNECT);
        assert_eq!(ConnectCommand::of(&connect).sqsize.get(), 127);

        let set = PropertyCommand::set(1, property::CC, CC_ENABLE).to_sqe();
        let bytes = set.as_bytes();
        assert_eq!((bytes[4], bytes[39]), (0, 0x5a));
        assert_eq!(
            bytes[40..56],
            [0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0, 0, 0, 0, 0]
        );
        assert_eq!(PropertyCommand::of(&set).value.get(), u64::from(CC_ENABLE));
    }

    #[test]
    fn names_must_end_and_be_printable() {
        let data = ConnectData::new([1; 16], 7, DISCOVERY_NQN, "nqn.2026-01.io.ublkstor:h");
        assert_eq!(nqn(&data.subnqn), Some(DISCOVERY_NQN));
        assert_eq!(nqn(&data.hostnqn), Some("nqn.2026-01.io.ublkstor:h"));
        assert_eq!(nqn(&[b'a'; 256]), None);
        assert_eq!(nqn(&[0; 256]), None);
        let mut long = [0; 256];
        long[..NQN_BYTES_MAX].fill(b'a');
        assert!(nqn(&long).is_some());
        long[NQN_BYTES_MAX] = b'a';
        assert_eq!(nqn(&long), None);
        let mut control = [0; 256];
        control[0] = 0x1b;
        assert_eq!(nqn(&control), None);
    }

    #[test]
    fn capabilities_are_what_hosts_look_for() {
        let cap = capabilities(128, 15);
        assert_eq!(cap & 0xffff, 127);
        assert_eq!(cap >> 24 & 0xff, 15);
        assert_eq!(cap >> 37 & 0xff, 1);
        assert_eq!(cap >> 48 & 0xff, 0); // MPSMIN, MPSMAX
    }
}

//! Identify data: controller, namespace, namespace lists and descriptors.

use super::fabrics::VERSION_1_4;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Every identify structure is this long, in bytes.
pub const IDENTIFY_BYTES: u32 = 4096;

/// CNS values.
pub mod cns {
    /// Namespace, NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespaces above the given NSID.
    pub const ACTIVE_LIST: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const DESCRIPTORS: u8 = 0x03;
    /// What the command set adds to a namespace; all zero for the NVM command set as we offer it.
    pub const NAMESPACE_OF_SET: u8 = 0x05;
    /// Controller, by command set identifier.
    pub const CONTROLLER_OF_SET: u8 = 0x06;
}

/// CNTRLTYPE of an IO controller.
pub const CNTRLTYPE_IO: u8 = 1;
/// CNTRLTYPE of a discovery controller.
pub const CNTRLTYPE_DISCOVERY: u8 = 2;
/// OAES and async event configuration: namespace attribute changed.
pub const EVENT_NAMESPACE_CHANGED: u32 = 1 << 8;
/// OAES and async event configuration: discovery log changed.
pub const EVENT_DISCOVERY_CHANGED: u32 = 1 << 31;
/// ONCS: dataset management.
pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS: write zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;

/// Identify Controller (CNS 01h). Reserved stretches are named after their first byte.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor and subsystem vendor: zero, we are no PCI device.
    pub vid_ssvid: U32,
    /// Serial number, padded with spaces.
    pub sn: [u8; 20],
    /// Model number, padded with spaces.
    pub mn: [u8; 40],
    /// Firmware revision, padded with spaces.
    pub fr: [u8; 8],
    /// Recommended arbitration burst, IEEE OUI.
    pub rab_ieee: [u8; 4],
    /// Multi-path: bit 1 more than one controller, bit 3 ANA.
    pub cmic: u8,
    /// Largest transfer: 2^mdts pages of 4 KiB.
    pub mdts: u8,
    /// This controller.
    pub cntlid: U16,
    /// Version.
    pub ver: U32,
    /// RTD3R, RTD3E.
    pub r84: [u8; 8],
    /// Asynchronous events offered, `EVENT_*`.
    pub oaes: U32,
    /// Controller attributes: bit 0 128-bit host id, bit 6 traffic based keep alive.
    pub ctratt: U32,
    /// Read recovery levels to reserved.
    pub r100: [u8; 11],
    /// `CNTRLTYPE_*`.
    pub cntrltype: u8,
    /// FRU GUID, retry delays, reserved.
    pub r112: [u8; 144],
    /// Optional admin commands.
    pub oacs: U16,
    /// Abort limit, zero-based.
    pub acl: u8,
    /// Asynchronous event request limit, zero-based.
    pub aerl: u8,
    /// Firmware updates: one slot, read-only.
    pub frmw: u8,
    /// Log page attributes: bit 1 effects log, bit 2 extended offsets.
    pub lpa: u8,
    /// Error log entries, zero-based.
    pub elpe: u8,
    /// Power states to temperatures.
    pub r263: [u8; 57],
    /// Keep-alive granularity in units of 100 ms.
    pub kas: U16,
    /// Thermal management to reserved.
    pub r322: [u8; 190],
    /// Submission entry sizes: 66h.
    pub sqes: u8,
    /// Completion entry sizes: 44h.
    pub cqes: u8,
    /// Most commands outstanding on one queue.
    pub maxcmd: U16,
    /// Highest NSID.
    pub nn: U32,
    /// Optional IO commands, `ONCS_*`.
    pub oncs: U16,
    /// Fused operations.
    pub fuses: U16,
    /// Format attributes.
    pub fna: u8,
    /// Volatile write cache: bit 0 present, 2:1 = 10b flush does not take NSID FFFFFFFFh.
    pub vwc: u8,
    /// Atomic write units, zero-based blocks.
    pub awun: U16,
    /// Atomic write unit at power fail, zero-based blocks.
    pub awupf: U16,
    /// Command set details.
    pub r530: [u8; 6],
    /// SGL support: bit 0 any alignment, bit 20 offsets in capsules.
    pub sgls: U32,
    /// Most namespaces at a time.
    pub mnan: U32,
    /// Reserved.
    pub r544: [u8; 224],
    /// The subsystem's name, zero-terminated.
    pub subnqn: [u8; 256],
    /// Reserved.
    pub r1024: [u8; 768],
    /// IO command capsule size in 16 bytes.
    pub ioccsz: U32,
    /// IO response capsule size in 16 bytes.
    pub iorcsz: U32,
    /// In-capsule data offset.
    pub icdoff: U16,
    /// Fabrics controller attributes.
    pub fcatt: u8,
    /// SGL descriptors per command.
    pub msdbd: u8,
    /// Optional fabrics commands.
    pub ofcs: U16,
    /// Discovery controller type, reserved, power states, vendor.
    pub r1806: [u8; 2290],
}
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<IdentifyController>() == 4096);
    assert!(offset_of!(IdentifyController, cmic) == 76);
    assert!(offset_of!(IdentifyController, ver) == 80);
    assert!(offset_of!(IdentifyController, oaes) == 92);
    assert!(offset_of!(IdentifyController, cntrltype) == 111);
    assert!(offset_of!(IdentifyController, oacs) == 256);
    assert!(offset_of!(IdentifyController, lpa) == 261);
    assert!(offset_of!(IdentifyController, kas) == 320);
    assert!(offset_of!(IdentifyController, sqes) == 512);
    assert!(offset_of!(IdentifyController, nn) == 516);
    assert!(offset_of!(IdentifyController, oncs) == 520);
    assert!(offset_of!(IdentifyController, vwc) == 525);
    assert!(offset_of!(IdentifyController, sgls) == 536);
    assert!(offset_of!(IdentifyController, subnqn) == 768);
    assert!(offset_of!(IdentifyController, ioccsz) == 1792);
    assert!(offset_of!(IdentifyController, msdbd) == 1803);
};

/// Fills a text field, padded with spaces and cut to fit.
pub fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let len = text.len().min(N);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}

/// What of a controller's identity differs between controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerFacts<'a> {
    /// Its id.
    pub cntlid: u16,
    /// A discovery controller has no IO queues and no namespaces.
    pub discovery: bool,
    /// The subsystem's name.
    pub subnqn: &'a str,
    /// Serial number.
    pub serial: &'a str,
    /// Firmware revision.
    pub firmware: &'a str,
    /// log2 of the largest transfer in 4 KiB pages.
    pub mdts: u8,
    /// In-capsule data of IO queues, in bytes.
    pub in_capsule_bytes: u32,
    /// Most commands outstanding on a queue.
    pub queue_depth: u16,
    /// Most namespaces.
    pub namespaces_max: u32,
}

impl IdentifyController {
    /// The data of a controller of ours.
    pub fn new(facts: &ControllerFacts<'_>) -> Self {
        let mut data = Self {
            sn: padded(facts.serial),
            mn: padded("ublkstor"),
            fr: padded(facts.firmware),
            mdts: facts.mdts,
            cntlid: facts.cntlid.into(),
            ver: VERSION_1_4.into(),
            ctratt: U32::new(1 | 1 << 6),
            acl: 3,
            aerl: 3,
            frmw: 1 << 1 | 1,
            lpa: 1 << 2,
            kas: U16::new(10),
            maxcmd: facts.queue_depth.into(),
            sgls: U32::new(1 | 1 << 20),
            iorcsz: U32::new(1),
            msdbd: 1,
            ..Self::new_zeroed()
        };
        data.subnqn[..facts.subnqn.len()].copy_from_slice(facts.subnqn.as_bytes());
        if facts.discovery {
            data.cntrltype = CNTRLTYPE_DISCOVERY;
            data.oaes = EVENT_DISCOVERY_CHANGED.into();
            data.ioccsz = U32::new(4);
            return data;
        }
        data.cntrltype = CNTRLTYPE_IO;
        data.cmic = 1 << 1;
        data.oaes = EVENT_NAMESPACE_CHANGED.into();
        data.lpa |= 1 << 1;
        data.sqes = 0x66;
        data.cqes = 0x44;
        data.nn = u32::MAX.wrapping_sub(1).into();
        data.mnan = facts.namespaces_max.into();
        data.oncs = (ONCS_DATASET_MANAGEMENT | ONCS_WRITE_ZEROES).into();
        data.vwc = 0b101;
        data.ioccsz = (4 + facts.in_capsule_bytes / 16).into();
        data
    }
}

/// Identify Namespace (CNS 00h, 05h) up to the first LBA format.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size in blocks.
    pub nsze: U64,
    /// Capacity in blocks.
    pub ncap: U64,
    /// Blocks in use.
    pub nuse: U64,
    /// Features: bit 0 thin, bit 4 the preferred-granularity group is valid.
    pub nsfeat: u8,
    /// Number of LBA formats, zero-based.
    pub nlbaf: u8,
    /// Format in use.
    pub flbas: u8,
    /// Metadata and protection.
    pub r27: [u8; 3],
    /// Bit 0: may be attached to more than one controller.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress.
    pub fpi: u8,
    /// Deallocate: 2:0 = 001b reads as zeroes, bit 3 write zeroes may deallocate.
    pub dlfeat: u8,
    /// Atomic units.
    pub r34: [u8; 14],
    /// NVM capacity.
    pub nvmcap: [u8; 16],
    /// Preferred write granularity, zero-based blocks.
    pub npwg: U16,
    /// Preferred write alignment, zero-based blocks.
    pub npwa: U16,
    /// Preferred deallocate granularity, zero-based blocks.
    pub npdg: U16,
    /// Preferred deallocate alignment, zero-based blocks.
    pub npda: U16,
    /// Optimal write size, zero-based blocks.
    pub nows: U16,
    /// Reserved, ANA group, attributes, sets.
    pub r74: [u8; 30],
    /// Namespace GUID.
    pub nguid: [u8; 16],
    /// IEEE EUI64.
    pub eui64: [u8; 8],
    /// Format 0: metadata size.
    pub lbaf0_ms: U16,
    /// Format 0: log2 of the block size in bytes.
    pub lbaf0_lbads: u8,
    /// Format 0: relative performance.
    pub lbaf0_rp: u8,
    /// More formats, vendor.
    pub r132: [u8; 3964],
}
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<IdentifyNamespace>() == 4096);
    assert!(offset_of!(IdentifyNamespace, nmic) == 30);
    assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
    assert!(offset_of!(IdentifyNamespace, npwg) == 64);
    assert!(offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(offset_of!(IdentifyNamespace, lbaf0_ms) == 128);
};

/// LBADS of every namespace of ours: 4 KiB blocks.
pub const LBADS: u8 = 12;
/// A block of every namespace of ours, in bytes.
pub const BLOCK_BYTES: u32 = 1 << LBADS;

/// What a backend knows of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Size in blocks of 4 KiB.
    pub size_blocks: u64,
    /// Blocks in use.
    pub used_blocks: u64,
    /// Namespace GUID.
    pub nguid: [u8; 16],
    /// Namespace UUID.
    pub uuid: [u8; 16],
    /// Whether space is given on write.
    pub thin: bool,
    /// Preferred granularity of deallocation, in blocks; at least 1.
    pub deallocate_blocks: u16,
}

impl IdentifyNamespace {
    /// The data of a namespace of ours.
    pub fn new(facts: &NamespaceFacts) -> Self {
        Self {
            nsze: facts.size_blocks.into(),
            ncap: facts.size_blocks.into(),
            nuse: facts.used_blocks.into(),
            nsfeat: u8::from(facts.thin) | 1 << 4,
            nmic: 1,
            dlfeat: 0b1001,
            npdg: (facts.deallocate_blocks.max(1) - 1).into(),
            nguid: facts.nguid,
            lbaf0_lbads: LBADS,
            ..Self::new_zeroed()
        }
    }
}

/// Namespace identification descriptors (CNS 03h): NGUID, UUID, command set NVM.
pub fn descriptors(facts: &NamespaceFacts) -> Vec<u8> {
    let mut out = Vec::with_capacity(IDENTIFY_BYTES as usize);
    for (kind, id) in [(2, &facts.nguid[..]), (3, &facts.uuid[..]), (4, &[0][..])] {
        if kind != 4 && id.iter().all(|byte| *byte == 0) {
            continue;
        }
        let len = u8::try_from(id.len()).expect("at most 16");
        out.extend_from_slice(&[kind, len, 0, 0]);
        out.extend_from_slice(id);
    }
    out.resize(IDENTIFY_BYTES as usize, 0);
    out
}

/// NSIDs that fit one list.
pub const LIST_ENTRIES_MAX: usize = 1024;

/// A list of active namespaces (CNS 02h): those above `above`, of an ascending `all`.
pub fn active_list(all: &[u32], above: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(IDENTIFY_BYTES as usize);
    for nsid in all
        .iter()
        .filter(|nsid| **nsid > above)
        .take(LIST_ENTRIES_MAX)
    {
        out.extend_from_slice(&nsid.to_le_bytes());
    }
    out.resize(IDENTIFY_BYTES as usize, 0);
    out
}

/// Reads a list of active namespaces; it ends at zero.
pub fn read_list(data: &[u8]) -> impl Iterator<Item = u32> {
    data.chunks_exact(4)
        .map(|entry| u32::from_le_bytes(entry.try_into().expect("four bytes")))
        .take_while(|nsid| *nsid != 0)
}

#[cfg(test)]
mod test {
    use super::*;

    const FACTS: NamespaceFacts = NamespaceFacts {
        size_blocks: 1000,
        used_blocks: 10,
        nguid: [7; 16],
        uuid: [9; 16],
        thin: true,
        deallocate_blocks: 16,
    };

    #[test]
    fn a_controller_has_what_the_linux_host_refuses_to_live_without() {
        let facts = ControllerFacts {
            cntlid: 5,
            discovery: false,
            subnqn: "nqn.2026-01.io.ublkstor:storaged:x",
            serial: "abc",
            firmware: "0.1",
            mdts: 5,
            in_capsule_bytes: 16384,
            queue_depth: 128,
            namespaces_max: 1024,
        };
        let data = IdentifyController::new(&facts);
        let bytes = data.as_bytes();
        assert_eq!(bytes[4..9], *b"abc  ");
        assert_eq!(bytes[320..322], [10, 0]); // KAS
        assert_eq!(data.ioccsz.get(), (16384 + 64) / 16);
        assert_eq!((bytes[1796], bytes[1800], bytes[1803]), (1, 0, 1));
        assert_eq!(bytes[536] & 3, 1);
        assert_eq!((bytes[512], bytes[513]), (0x66, 0x44));
        assert_eq!(bytes[525], 0b101); // a cache; a flush takes one namespace
        let discovery = IdentifyController::new(&ControllerFacts {
            discovery: true,
            ..facts
        });
        assert_eq!(
            (discovery.cntrltype, discovery.sqes, discovery.nn.get()),
            (2, 0, 0)
        );
    }

    #[test]
    fn descriptors_end_with_a_zero_length() {
        let data = descriptors(&FACTS);
        assert_eq!(data.len(), 4096);
        assert_eq!(data[..4], [2, 16, 0, 0]);
        assert_eq!(data[20..24], [3, 16, 0, 0]);
        assert_eq!(data[40..47], [4, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_list_starts_above_the_given_nsid_and_ends_at_zero() {
        let all: Vec<u32> = (1..=2000).collect();
        let page = active_list(&all, 990);
        let listed: Vec<u32> = read_list(&page).collect();
        assert_eq!((listed.len(), listed[0], listed[1009]), (1010, 991, 2000));
        assert_eq!(read_list(&active_list(&all, 0)).count(), LIST_ENTRIES_MAX);
        assert_eq!(read_list(&active_list(&all, 2000)).count(), 0);
    }

    #[test]
    fn a_namespace_tells_size_and_block() {
        let data = IdentifyNamespace::new(&FACTS);
        let bytes = data.as_bytes();
        assert_eq!(bytes[..2], [0xe8, 3]);
        assert_eq!(bytes[130], 12);
        assert_eq!(bytes[104..120], [7; 16]);
        assert_eq!((bytes[33], bytes[68]), (9, 15));
    }
}

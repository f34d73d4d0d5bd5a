//! Log pages: error, health, firmware slot, changed namespaces, commands, discovery.

use super::fabrics::DISCOVERY_NQN;
use super::sqe::{Sqe, admin, io};
use super::vendor;
use std::net::SocketAddr;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Log page identifiers.
pub mod lid {
    /// Error information.
    pub const ERROR: u8 = 0x01;
    /// SMART / health.
    pub const HEALTH: u8 = 0x02;
    /// Firmware slots.
    pub const FIRMWARE: u8 = 0x03;
    /// Changed namespaces.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands supported and effects.
    pub const EFFECTS: u8 = 0x05;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
}

/// What a Get Log Page asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRequest {
    /// Which page, see [`lid`].
    pub lid: u8,
    /// Keep the event that announced the page outstanding.
    pub retain_event: bool,
    /// First byte wanted.
    pub offset_bytes: u64,
    /// Bytes wanted; may be larger than any page.
    pub len_bytes: u64,
}

impl LogRequest {
    /// Reads CDW10-13. NUMD is zero-based dwords; nothing else knows.
    pub fn of(sqe: &Sqe) -> Self {
        let numd = u64::from(sqe.cdw(11) & 0xffff) << 16 | u64::from(sqe.cdw(10) >> 16);
        let [lid, ..] = sqe.cdw(10).to_le_bytes();
        Self {
            lid,
            retain_event: sqe.cdw(10) & 1 << 15 != 0,
            offset_bytes: u64::from(sqe.cdw(13)) << 32 | u64::from(sqe.cdw(12)),
            len_bytes: (numd + 1) * 4,
        }
    }

    /// A Get Log Page command for this, without its data descriptor. Panics if offset and length
    /// are not multiples of four, or the length is zero.
    pub fn to_sqe(&self, cid: u16, nsid: u32) -> Sqe {
        assert!(self.offset_bytes.is_multiple_of(4) && self.len_bytes.is_multiple_of(4));
        let numd = u32::try_from(self.len_bytes / 4 - 1).expect("NUMD has 32 bits");
        let (low, high) = (self.offset_bytes & 0xffff_ffff, self.offset_bytes >> 32);
        let half = |value: u64| u32::try_from(value).expect("a half");
        let cdw10 =
            u32::from(self.lid) | u32::from(self.retain_event) << 15 | (numd & 0xffff) << 16;
        Sqe::new(admin::GET_LOG_PAGE, cid, nsid).with_cdws([
            cdw10,
            numd >> 16,
            half(low),
            half(high),
            0,
            0,
        ])
    }

    /// The wanted stretch of `page`, padded with zeroes to the length wanted (cut to
    /// `len_bytes_max`). `None` if the offset is unaligned or passes the page.
    pub fn cut(&self, page: &[u8], len_bytes_max: u32) -> Option<Vec<u8>> {
        let start = usize::try_from(self.offset_bytes)
            .ok()
            .filter(|at| *at <= page.len())?;
        if !self.offset_bytes.is_multiple_of(4) {
            return None;
        }
        let wanted = self.len_bytes.min(u64::from(len_bytes_max));
        let wanted = usize::try_from(wanted).expect("bounded by 32 bits");
        let end = start.saturating_add(wanted).min(page.len());
        let mut out = page[start..end].to_vec();
        out.resize(wanted, 0);
        Some(out)
    }
}

/// Length of the changed-namespaces page, in bytes.
pub const CHANGED_BYTES: usize = 4096;
/// NSIDs the changed-namespaces page holds.
pub const CHANGED_ENTRIES_MAX: usize = 1024;

/// The changed-namespaces page; more than fit are told as one FFFFFFFFh ("look at all").
pub fn changed_namespaces(nsids: impl ExactSizeIterator<Item = u32>) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHANGED_BYTES);
    if nsids.len() > CHANGED_ENTRIES_MAX {
        out.extend_from_slice(&u32::MAX.to_le_bytes());
    } else {
        nsids.for_each(|nsid| out.extend_from_slice(&nsid.to_le_bytes()));
    }
    out.resize(CHANGED_BYTES, 0);
    out
}

/// The error page: one entry, empty. We log errors on our side, by name.
pub fn errors() -> Vec<u8> {
    vec![0; 64]
}

/// The health page: everything well, 300 K, no wear. The medium's own health is told by metad.
pub fn health() -> Vec<u8> {
    let mut out = vec![0; 512];
    out[1..3].copy_from_slice(&300u16.to_le_bytes());
    out[3] = 100; // available spare, percent
    out[4] = 10; // its threshold
    out
}

/// The firmware page: slot 1 active, with this revision.
pub fn firmware(revision: &str) -> Vec<u8> {
    let mut out = vec![0; 512];
    out[0] = 1;
    out[8..16].copy_from_slice(&super::identify::padded::<8>(revision));
    out
}

const EFFECT_SUPPORTED: u32 = 1 << 0;
const EFFECT_CHANGES_BLOCKS: u32 = 1 << 1;

/// The commands-supported-and-effects page.
pub fn effects() -> Vec<u8> {
    let mut entries = [U32::ZERO; 1024];
    let admin_commands = [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT,
        admin::KEEP_ALIVE,
    ];
    for opcode in admin_commands.into_iter().chain(vendor::opcode::ALL) {
        entries[usize::from(opcode)] = EFFECT_SUPPORTED.into();
    }
    for opcode in [io::READ, io::FLUSH] {
        entries[256 + usize::from(opcode)] = EFFECT_SUPPORTED.into();
    }
    for opcode in [io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT] {
        entries[256 + usize::from(opcode)] = (EFFECT_SUPPORTED | EFFECT_CHANGES_BLOCKS).into();
    }
    entries.as_bytes().to_vec()
}

/// Header of the discovery page.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// Changes whenever the records do.
    pub genctr: U64,
    /// Number of records.
    pub numrec: U64,
    /// Record format, 0.
    pub recfmt: U16,
    /// Reserved.
    pub reserved: [u8; 1006],
}
const _: () = assert!(size_of::<DiscoveryHeader>() == 1024);

/// SUBTYPE: an NVM subsystem.
pub const SUBTYPE_NVM: u8 = 2;
/// SUBTYPE: the discovery subsystem that is answering.
pub const SUBTYPE_CURRENT_DISCOVERY: u8 = 3;

/// One record of the discovery page.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DiscoveryRecord {
    /// Transport type: 3 is TCP.
    pub trtype: u8,
    /// Address family: 1 IPv4, 2 IPv6.
    pub adrfam: u8,
    /// `SUBTYPE_*`.
    pub subtype: u8,
    /// Transport requirements.
    pub treq: u8,
    /// Port.
    pub portid: U16,
    /// FFFFh: dynamic controllers.
    pub cntlid: U16,
    /// Admin queue size.
    pub asqsz: U16,
    /// Entry flags.
    pub eflags: U16,
    /// Reserved.
    pub reserved0: [u8; 20],
    /// Port number as text.
    pub trsvcid: [u8; 32],
    /// Reserved.
    pub reserved1: [u8; 192],
    /// Subsystem name.
    pub subnqn: [u8; 256],
    /// Address as text.
    pub traddr: [u8; 256],
    /// Transport specific: byte 0 is SECTYPE, 0 is none.
    pub tsas: [u8; 256],
}
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<DiscoveryRecord>() == 1024);
    assert!(offset_of!(DiscoveryRecord, trsvcid) == 32);
    assert!(offset_of!(DiscoveryRecord, subnqn) == 256);
    assert!(offset_of!(DiscoveryRecord, traddr) == 512);
    assert!(offset_of!(DiscoveryRecord, tsas) == 768);
};

impl DiscoveryRecord {
    /// A subsystem at an address of ours.
    pub fn new(subtype: u8, subnqn: &str, at: SocketAddr) -> Self {
        let mut record = Self {
            trtype: 3,
            adrfam: if at.is_ipv4() { 1 } else { 2 },
            subtype,
            portid: U16::new(1),
            cntlid: U16::new(0xffff),
            asqsz: U16::new(32),
            ..Self::new_zeroed()
        };
        record.trsvcid = padded_zero(&at.port().to_string());
        record.subnqn = padded_zero(subnqn);
        record.traddr = padded_zero(&at.ip().to_string());
        record
    }
}

fn padded_zero<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let len = text.len().min(N);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}

/// The discovery page: the IO subsystem and the discovery subsystem itself, both at `at`.
pub fn discovery(genctr: u64, subnqn: &str, at: SocketAddr) -> Vec<u8> {
    let records = [
        DiscoveryRecord::new(SUBTYPE_CURRENT_DISCOVERY, DISCOVERY_NQN, at),
        DiscoveryRecord::new(SUBTYPE_NVM, subnqn, at),
    ];
    let header = DiscoveryHeader {
        genctr: genctr.into(),
        numrec: U64::new(records.len() as u64),
        ..DiscoveryHeader::new_zeroed()
    };
    [header.as_bytes(), records.as_bytes()].concat()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_request_survives_the_wire() {
        let request = LogRequest {
            lid: lid::DISCOVERY,
            retain_event: true,
            offset_bytes: 0x1_0000_0400,
            len_bytes: 0x4_0004,
        };
        assert_eq!(LogRequest::of(&request.to_sqe(1, 0)), request);
    }

    #[test]
    fn a_cut_never_reads_past_the_page() {
        let page: Vec<u8> = (0..64).collect();
        let cut = |offset_bytes, len_bytes| {
            LogRequest {
                lid: 1,
                retain_event: false,
                offset_bytes,
                len_bytes,
            }
            .cut(&page, 128)
        };
        assert_eq!(cut(60, 8).unwrap(), [60, 61, 62, 63, 0, 0, 0, 0]);
        assert_eq!(cut(64, 4).unwrap(), [0; 4]);
        assert_eq!(cut(68, 4), None);
        assert_eq!(cut(2, 4), None);
        assert_eq!(cut(u64::MAX - 3, 4), None);
        assert_eq!(cut(0, 1 << 34).unwrap().len(), 128);
    }

    #[test]
    fn the_discovery_page_names_both_subsystems() {
        let page = discovery(7, "nqn.x", "127.0.0.1:4420".parse().unwrap());
        assert_eq!(page.len(), 3072);
        assert_eq!((page[0], page[8]), (7, 2));
        assert_eq!(
            (page[1024], page[1025], page[1026]),
            (3, 1, SUBTYPE_CURRENT_DISCOVERY)
        );
        assert_eq!(page[2048 + 32..2048 + 37], *b"4420\0");
        assert_eq!(page[2048 + 256..2048 + 262], *b"nqn.x\0");
        assert_eq!(page[2048 + 512..2048 + 522], *b"127.0.0.1\0");
    }

    #[test]
    fn more_changes_than_fit_mean_all() {
        let page = changed_namespaces((1..=1025).collect::<Vec<u32>>().into_iter());
        assert_eq!(page[..8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(
            changed_namespaces((1..=1024).collect::<Vec<u32>>().into_iter())[4092..],
            [0, 4, 0, 0]
        );
    }
}

//! Signatures of what may already be on a device, so that nothing is overwritten by mistake.

/// How much of a device's beginning [`find`] looks at, in bytes.
pub(crate) const HEAD_BYTES: usize = 128 * 1024;
/// How much of its end, in bytes (backup GPT, md 0.90 and 1.0).
pub(crate) const TAIL_BYTES: usize = 128 * 1024;

struct Signature {
    name: &'static str,
    offset: usize,
    magic: &'static [u8],
}

const fn at(name: &'static str, offset: usize, magic: &'static [u8]) -> Signature {
    Signature {
        name,
        offset,
        magic,
    }
}

const PAGE: usize = 4096;

/// In the order in which they are looked for; the MBR's two bytes come last because others carry them.
const SIGNATURES: &[Signature] = &[
    at("a ublkstor store", 8, b"UBSSTORE"),
    at("a ublkstor store", 64 * 1024 + 8, b"UBSSTORE"),
    at("an xfs file system", 0, b"XFSB"),
    at("a btrfs file system", 0x1_0040, b"_BHRfS_M"),
    at("an ext2/3/4 file system", 0x438, &[0x53, 0xef]),
    at("an f2fs file system", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    at(
        "a bcachefs file system or a bcache device",
        0x1018,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a],
    ),
    at("an LVM physical volume", 0x218, b"LVM2 001"),
    at("an LVM physical volume", 0x18, b"LVM2 001"),
    at("a LUKS container", 0, b"LUKS\xba\xbe"),
    at("an md RAID member", PAGE, &[0xfc, 0x4e, 0x2b, 0xa9]),
    at("an md RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    at("a swap area", PAGE - 10, b"SWAPSPACE2"),
    at("a swap area", PAGE - 10, b"SWAP-SPACE"),
    at("a suspended system", PAGE - 10, b"S1SUSPEND"),
    at("a Ceph BlueStore device", 0, b"bluestore block device"),
    at("a DRBD device", PAGE - 4, &[0x83, 0x74, 0x02, 0x6d]),
    at("a GPT partition table", 512, b"EFI PART"),
    at("a GPT partition table", PAGE, b"EFI PART"),
    at("an NTFS file system", 3, b"NTFS    "),
    at("an exFAT file system", 3, b"EXFAT   "),
    at("a FAT file system", 0x36, b"FAT1"),
    at("a FAT file system", 0x52, b"FAT32   "),
    at("an ISO 9660 file system", 0x8001, b"CD001"),
    at("a squashfs image", 0, b"hsqs"),
    at("a qcow2 image", 0, b"QFI\xfb"),
    at("an MBR partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// What lies on the device, judged by its first and last bytes.
pub(crate) fn find(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let known = SIGNATURES.iter().find(|s| {
        head.get(s.offset..s.offset + s.magic.len())
            .is_some_and(|found| found == s.magic)
    });
    if let Some(signature) = known {
        return Some(signature.name);
    }
    if zfs_label(head) {
        return Some("a ZFS pool member");
    }
    at_end(tail)
}

/// The uberblock array of the first label: magic 0x00bab10c at the start of a 1 KiB slot.
fn zfs_label(head: &[u8]) -> bool {
    const MAGIC: u64 = 0x00ba_b10c;
    let array = head.get(128 * 1024 - 64 * 1024..).unwrap_or(&[]);
    let slot = |s: &[u8]| s.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    array
        .chunks(1024)
        .filter_map(slot)
        .any(|m| m == MAGIC || m.swap_bytes() == MAGIC)
}

fn at_end(tail: &[u8]) -> Option<&'static str> {
    let from_end = |distance: usize, magic: &[u8]| {
        let start = tail.len().checked_sub(distance)?;
        tail.get(start..start + magic.len())
            .filter(|found| *found == magic)
    };
    let md = [0xfc, 0x4e, 0x2b, 0xa9];
    // 0.90: at the last multiple of 64 KiB that leaves 64 KiB; 1.0: 8 KiB before the end.
    let old_md = (64 * 1024..128 * 1024)
        .step_by(4096)
        .any(|d| from_end(d, &md).is_some());
    if old_md || from_end(8 * 1024, &md).is_some() {
        Some("an md RAID member")
    } else if from_end(512, b"EFI PART")
        .or(from_end(4096, b"EFI PART"))
        .is_some()
    {
        Some("a GPT partition table (its backup at the end)")
    } else {
        None
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_signature_is_found_and_blank_is_blank() {
        assert_eq!(find(&[0; HEAD_BYTES], &[0; TAIL_BYTES]), None);
        for signature in SIGNATURES {
            let mut head = vec![0; HEAD_BYTES];
            let end = signature.offset + signature.magic.len();
            head[signature.offset..end].copy_from_slice(signature.magic);
            assert!(find(&head, &[]).is_some(), "{}", signature.name);
        }
        let mut tail = vec![0; TAIL_BYTES];
        tail[TAIL_BYTES - 512..TAIL_BYTES - 504].copy_from_slice(b"EFI PART");
        assert!(find(&[0; HEAD_BYTES], &tail).is_some());
    }
}

//! The growth of a volume.

use crate::core::desire::{attachments_of_host, slices_of_server};
use crate::core::test::{Cluster0, VOL};
use crate::core::{Command, HostId, NewSpaceLimits, RefusalCode, Reply};
use shardmap::units::{Nsid, ServerId};

const MIB: u64 = 1 << 20;

const fn grow(size_bytes: u64) -> Command {
    Command::GrowVolume {
        volume: VOL,
        size_bytes,
    }
}

fn has(it: &mut Cluster0, nsid: Nsid, size_blocks: u64) {
    let store = it.state.slices[&nsid].store;
    let confirm = Command::ConfirmSlice {
        store,
        nsid,
        size_blocks,
    };
    assert_eq!(it.run(confirm), Reply::Done);
}

#[test]
fn it_has_the_new_size_when_every_slice_has() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    it.attach(1);
    let before = it.state.volumes[&VOL].map.size_blocks;
    let to = before + 256;
    let size = |it: &Cluster0| {
        let offered = attachments_of_host(&it.state, HostId(1))[0].size_blocks;
        assert_eq!(offered, it.state.volumes[&VOL].map.size_blocks);
        offered
    };
    assert_eq!(it.run(grow(to * 4096)), Reply::Done);
    assert_eq!(it.run(grow(to * 4096)), Reply::Done, "again");
    let asked = &slices_of_server(&it.state, ServerId(1))[0];
    assert_eq!((asked.size_blocks, asked.has_blocks), (to, before));
    let slices = it.state.volumes[&VOL].slices.clone();
    for nsid in &slices[1..] {
        has(&mut it, *nsid, to);
        assert_eq!(size(&it), before);
    }
    has(&mut it, slices[0], before);
    assert_eq!(size(&it), before, "that is the old size");
    has(&mut it, slices[0], to);
    assert_eq!(size(&it), to);
    assert_eq!(it.state.volumes[&VOL].growing_to, None);
}

#[test]
fn it_does_not_shrink_nor_outgrow_its_stores() {
    let mut it = Cluster0::with_servers(3);
    it.ready_volume();
    let now = it.state.volumes[&VOL].map.size_bytes();
    assert_eq!(it.run(grow(now)), Reply::Done);
    assert_eq!(it.refused(grow(now - MIB)), RefusalCode::Invalid);
    assert_eq!(it.refused(grow(now + 1)), RefusalCode::Invalid);
    assert_eq!(it.refused(grow(1 << 50)), RefusalCode::NoRoom);
    let limits = |overcommit_percent, high_water_percent| {
        Command::SetSpaceLimits(NewSpaceLimits {
            overcommit_percent,
            high_water_percent,
        })
    };
    for senseless in [limits(Some(9), None), limits(None, Some(101))] {
        assert_eq!(it.refused(senseless), RefusalCode::Invalid);
    }
    it.run(limits(None, Some(70)));
    assert_eq!(it.state.space_limits().overcommit_percent, 250);
    it.run(grow(now + 2 * MIB));
    assert_eq!(
        it.refused(grow(now + MIB)),
        RefusalCode::Invalid,
        "it is growing"
    );
    assert_eq!(it.run(grow(now + 3 * MIB)), Reply::Done, "further");
}

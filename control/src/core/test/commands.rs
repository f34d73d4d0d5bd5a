//! Any command over a small world.

use super::{host, server, standard_host, store, volume};
use crate::core::*;
use proptest::prelude::*;
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;

fn any_epoch() -> impl Strategy<Value = Epoch> {
    (1u16..3, 0u64..6).prop_map(|(lineage, counter)| Epoch::new(lineage, counter).unwrap())
}

fn any_isr() -> impl Strategy<Value = BTreeSet<StoreId>> {
    proptest::collection::btree_set((0u32..7).prop_map(StoreId), 0..5)
}

/// What follows a restore of metad.
fn any_restore() -> impl Strategy<Value = Command> {
    let vol = (0u8..4).prop_map(|i| VolumeId([i; 16]));
    let verify = (vol, any_epoch(), 0u64..6, 0u64..9, any_isr());
    let verify = verify.prop_map(
        |(volume, epoch, seq, found, isr)| Command::VerifyMembership {
            volume,
            epoch,
            seq: MembershipSeq(seq),
            found_seq: MembershipSeq(found),
            isr,
        },
    );
    let begin = (0u16..4).prop_map(|lineage| Command::BeginLineage { lineage });
    prop_oneof![verify, begin]
}

fn any_maintenance() -> impl Strategy<Value = Command> {
    let vol = (0u8..4).prop_map(|i| VolumeId([i; 16]));
    (vol, (0u32..6).prop_map(ServerId), any::<bool>()).prop_map(|(volume, server, begin)| {
        if begin {
            Command::Maintain { volume, server }
        } else {
            Command::AssignMaintenance { volume, server }
        }
    })
}

fn any_rollback() -> impl Strategy<Value = Command> {
    let vol = || (0u8..4).prop_map(|i| VolumeId([i; 16]));
    let generation = || (0u32..6).prop_map(Generation);
    let begin = (vol(), generation(), 0u8..6).prop_map(|(volume, to, name)| Command::RollBack {
        volume,
        to,
        keep_as: format!("s{name}"),
    });
    let end = (vol(), any_epoch(), generation(), generation());
    let end = end.prop_map(|(volume, epoch, to, before)| Command::CompleteRollback {
        volume,
        epoch,
        rollback: Rollback { to, before },
    });
    prop_oneof![begin, end]
}

fn any_snapshot() -> impl Strategy<Value = Command> {
    let vol = || (0u8..4).prop_map(|i| VolumeId([i; 16]));
    let generation = || (0u32..6).prop_map(Generation);
    let group = proptest::collection::btree_set(vol(), 0..3);
    prop_oneof![
        3 => (group, 0u8..6).prop_map(|(volumes, name)| Command::CreateSnapshot {
            volumes,
            name: format!("s{name}"),
        }),
        3 => (vol(), any_epoch(), generation(), any::<bool>()).prop_map(
            |(volume, epoch, generation, held)| {
                Command::CompleteSnapshot { volume, epoch, generation, held }
            }
        ),
        2 => (vol(), any_epoch(), generation()).prop_map(|(volume, epoch, generation)| {
            Command::HoldSnapshot { volume, epoch, generation }
        }),
        1 => (vol(), generation())
            .prop_map(|(volume, generation)| Command::DeleteSnapshot { volume, generation }),
        2 => (vol(), vol(), generation()).prop_map(|(id, volume, generation)| {
            Command::CreateClone {
                id,
                name: format!("clone-{}", id.0[0]),
                origin: Origin { volume, generation },
            }
        }),
        2 => (vol(), vol(), generation()).prop_map(|(id, volume, generation)| {
            Command::CreateView {
                id,
                name: format!("view-{}", id.0[0]),
                origin: Origin { volume, generation },
            }
        }),
    ]
}

/// Slices that are made, and that grow with their volume, and how much may be promised.
fn any_size() -> impl Strategy<Value = Command> {
    let confirm = (1u32..7, 1u32..30, 0u64..5).prop_map(|(s, n, size)| Command::ConfirmSlice {
        store: StoreId(s),
        nsid: Nsid(n),
        size_blocks: size << 14,
    });
    let grow = (0u8..4, 0u64..5).prop_map(|(i, size)| Command::GrowVolume {
        volume: VolumeId([i; 16]),
        size_bytes: size << 26,
    });
    let limits = (
        proptest::option::of(1u32..400),
        proptest::option::of(1u32..120),
    );
    let limits = limits.prop_map(|(overcommit_percent, high_water_percent)| {
        Command::SetSpaceLimits(NewSpaceLimits {
            overcommit_percent,
            high_water_percent,
        })
    });
    prop_oneof![confirm, grow, limits]
}

fn any_removal() -> impl Strategy<Value = Command> {
    prop_oneof![
        (0u32..6).prop_map(|h| Command::RemoveHost { host: HostId(h) }),
        (0u32..7).prop_map(|s| Command::RemoveStore { store: StoreId(s) }),
        (0u32..6).prop_map(|s| Command::RemoveServer {
            server: ServerId(s)
        }),
    ]
}

/// Commands over a small world, so that they collide often.
pub(crate) fn any_command() -> impl Strategy<Value = Command> {
    let vol = || (0u8..4).prop_map(|i| VolumeId([i; 16]));
    prop_oneof![
        (1u32..6).prop_map(server),
        ((1u32..7), (1u32..6)).prop_map(|(i, s)| store(i, s)),
        (1u32..4).prop_map(host),
        (
            0u8..4,
            0u8..6,
            1u8..4,
            proptest::option::of(1u16..6),
            any::<bool>()
        )
            .prop_map(|(id, name, replicas, stride, open_access)| {
                let mut v = volume(&format!("v{name}"));
                v.id = VolumeId([id; 16]);
                v.replicas = replicas;
                v.stride = stride;
                v.open_access = open_access && replicas == 1;
                Command::CreateVolume(v)
            }),
        (vol(), any::<bool>()).prop_map(|(volume, with_snapshots)| Command::DeleteVolume {
            volume,
            with_snapshots,
        }),
        (vol(), 0u32..4).prop_map(|(volume, h)| Command::SetDesiredAttachment {
            volume,
            host: HostId(h)
        }),
        vol().prop_map(|volume| Command::ClearDesiredAttachment { volume }),
        (vol(), 0u32..4).prop_map(|(volume, h)| Command::Attach {
            volume,
            host: HostId(h)
        }),
        (vol(), any_epoch()).prop_map(|(volume, epoch)| Command::Detach { volume, epoch }),
        vol().prop_map(|volume| Command::ForceDetach { volume }),
        (vol(), any_epoch(), 0u64..6, any_isr()).prop_map(|(volume, epoch, seq, new_isr)| {
            Command::SetIsr {
                volume,
                epoch,
                seq: MembershipSeq(seq),
                new_isr,
            }
        }),
        any_restore(),
        any_snapshot(),
        any_rollback(),
        any_maintenance(),
        any_size(),
        (1u32..7, 1u32..30).prop_map(|(s, n)| Command::ConfirmSliceGone {
            store: StoreId(s),
            nsid: Nsid(n)
        }),
        (1u32..7, 1u32..30).prop_map(|(s, n)| Command::ReportBlankSlice {
            store: StoreId(s),
            nsid: Nsid(n)
        }),
        (0u32..6, any::<bool>()).prop_map(|(s, cordon)| Command::SetServerStanding {
            server: ServerId(s),
            standing: if cordon {
                Standing::Cordoned
            } else {
                Standing::Active
            },
        }),
        (1u32..4).prop_map(standard_host),
        any_removal(),
    ]
}

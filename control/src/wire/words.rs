//! Small words that many messages share.

use super::{Decoded, malformed};
use crate::api::{Liveness, MemberAddress, MemberFacts, Stage};
use crate::core::{Domain, HostId, Phase, Rollback, SliceAddress, Standing, Subject};
use capnp::{primitive_list, struct_list};
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::map::{Layout, Shape, VolumeMap};
use shardmap::units::{Generation, Nsid, ServerId, StoreId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use ubs_capnp::control_capnp as wire;
use uuid::Uuid;

pub(crate) fn put_uuid(uuid: Uuid, mut to: wire::uuid::Builder<'_>) {
    let (high, low) = uuid.as_u64_pair();
    to.set_high(high);
    to.set_low(low);
}

pub(crate) fn get_uuid(from: wire::uuid::Reader<'_>) -> Uuid {
    Uuid::from_u64_pair(from.get_high(), from.get_low())
}

pub(crate) fn put_volume_id(id: VolumeId, to: wire::uuid::Builder<'_>) {
    put_uuid(Uuid::from_bytes(id.0), to);
}

pub(crate) fn get_volume_id(from: wire::uuid::Reader<'_>) -> VolumeId {
    VolumeId(get_uuid(from).into_bytes())
}

pub(crate) fn get_text(from: capnp::Result<capnp::text::Reader<'_>>) -> Decoded<String> {
    Ok(from?
        .to_str()
        .map_err(|_| malformed("a text", "not UTF-8"))?
        .to_owned())
}

pub(crate) fn get_texts(from: capnp::text_list::Reader<'_>) -> Decoded<Vec<String>> {
    from.iter().map(get_text).collect()
}

pub(crate) fn put_texts(texts: &[String], mut to: capnp::text_list::Builder<'_>) {
    for (i, text) in (0..).zip(texts) {
        to.set(i, text);
    }
}

pub(crate) fn get_address(from: capnp::Result<capnp::text::Reader<'_>>) -> Decoded<SocketAddr> {
    let text = get_text(from)?;
    text.parse().map_err(|_| malformed("an address", text))
}

pub(crate) fn len(items: usize) -> u32 {
    u32::try_from(items).expect("bounded lists")
}

pub(crate) fn put_stores<'s, 'b>(
    stores: impl ExactSizeIterator<Item = &'s StoreId>,
    to: impl FnOnce(u32) -> primitive_list::Builder<'b, u32>,
) {
    let mut to = to(len(stores.len()));
    for (i, store) in (0..).zip(stores) {
        to.set(i, store.0);
    }
}

pub(crate) fn get_stores(from: primitive_list::Reader<'_, u32>) -> Vec<StoreId> {
    from.iter().map(StoreId).collect()
}

pub(crate) fn get_store_set(from: primitive_list::Reader<'_, u32>) -> BTreeSet<StoreId> {
    from.iter().map(StoreId).collect()
}

pub(crate) fn put_labels(
    labels: &BTreeMap<String, String>,
    mut to: struct_list::Builder<'_, wire::label::Owned>,
) {
    for (i, (key, value)) in (0..).zip(labels) {
        let mut label = to.reborrow().get(i);
        label.set_key(key);
        label.set_value(value);
    }
}

pub(crate) fn get_labels(
    from: struct_list::Reader<'_, wire::label::Owned>,
) -> Decoded<BTreeMap<String, String>> {
    from.iter()
        .map(|l| Ok((get_text(l.get_key())?, get_text(l.get_value())?)))
        .collect()
}

pub(crate) const fn put_layout(layout: Layout) -> wire::Layout {
    match layout {
        Layout::Ring => wire::Layout::Ring,
        Layout::Block => wire::Layout::Block,
    }
}

pub(crate) const fn get_layout(layout: wire::Layout) -> Layout {
    match layout {
        wire::Layout::Ring => Layout::Ring,
        wire::Layout::Block => Layout::Block,
    }
}

pub(crate) const fn put_standing(standing: Standing) -> wire::Standing {
    match standing {
        Standing::Active => wire::Standing::Active,
        Standing::Cordoned => wire::Standing::Cordoned,
    }
}

pub(crate) const fn get_standing(standing: wire::Standing) -> Standing {
    match standing {
        wire::Standing::Active => Standing::Active,
        wire::Standing::Cordoned => Standing::Cordoned,
    }
}

/// Two generations; without the first there is none.
pub(crate) fn get_rollback(to: u32, before: u32) -> Option<Rollback> {
    let rollback = Rollback {
        to: Generation(to),
        before: Generation(before),
    };
    (to != 0).then_some(rollback)
}

pub(crate) const fn put_phase(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Creating => wire::Phase::Creating,
        Phase::Ready => wire::Phase::Ready,
        Phase::Deleting => wire::Phase::Deleting,
        Phase::RollingBack => wire::Phase::RollingBack,
    }
}

pub(crate) const fn get_phase(phase: wire::Phase) -> Phase {
    match phase {
        wire::Phase::Creating => Phase::Creating,
        wire::Phase::Ready => Phase::Ready,
        wire::Phase::Deleting => Phase::Deleting,
        wire::Phase::RollingBack => Phase::RollingBack,
    }
}

pub(crate) const fn put_liveness(liveness: Liveness) -> wire::Liveness {
    match liveness {
        Liveness::Unknown => wire::Liveness::Unknown,
        Liveness::Online => wire::Liveness::Online,
        Liveness::Suspect => wire::Liveness::Suspect,
        Liveness::Offline => wire::Liveness::Offline,
    }
}

pub(crate) const fn get_liveness(liveness: wire::Liveness) -> Liveness {
    match liveness {
        wire::Liveness::Unknown => Liveness::Unknown,
        wire::Liveness::Online => Liveness::Online,
        wire::Liveness::Suspect => Liveness::Suspect,
        wire::Liveness::Offline => Liveness::Offline,
    }
}

pub(crate) fn put_shape(shape: Shape, mut to: wire::shape::Builder<'_>) {
    to.set_shard_blocks(shape.shard_blocks);
    to.set_stride(shape.stride);
    to.set_replicas(shape.replicas);
    to.set_layout(put_layout(shape.layout));
}

pub(crate) fn get_shape(from: wire::shape::Reader<'_>) -> Decoded<Shape> {
    Ok(Shape {
        shard_blocks: from.get_shard_blocks(),
        stride: from.get_stride(),
        replicas: from.get_replicas(),
        layout: get_layout(from.get_layout()?),
    })
}

pub(crate) fn put_map(map: &VolumeMap, mut to: wire::volume_map::Builder<'_>) {
    to.set_size_blocks(map.size_blocks);
    put_shape(map.shape, to.reborrow().init_shape());
    put_stores(map.stores.iter(), |n| to.init_stores(n));
}

pub(crate) fn get_map(from: wire::volume_map::Reader<'_>) -> Decoded<VolumeMap> {
    let map = VolumeMap {
        size_blocks: from.get_size_blocks(),
        shape: get_shape(from.get_shape()?)?,
        stores: get_stores(from.get_stores()?),
    };
    if map.stores.len() != usize::from(map.shape.stride) || map.shape.shard_blocks == 0 {
        return Err(malformed("a volume map", format!("{map:?}")));
    }
    Ok(map)
}

pub(crate) fn put_domain(domain: &Domain, mut to: wire::domain::Builder<'_>) {
    match domain {
        Domain::Store => to.set_store(()),
        Domain::Server => to.set_server(()),
        Domain::Label(key) => to.set_label(key),
    }
}

pub(crate) fn get_domain(from: wire::domain::Reader<'_>) -> Decoded<Domain> {
    Ok(match from.which()? {
        wire::domain::Store(()) => Domain::Store,
        wire::domain::Server(()) => Domain::Server,
        wire::domain::Label(key) => Domain::Label(get_text(key)?),
    })
}

pub(crate) fn put_slice_addresses(
    slices: &[SliceAddress],
    mut to: struct_list::Builder<'_, wire::slice_address::Owned>,
) {
    for (i, slice) in (0..).zip(slices) {
        let mut to = to.reborrow().get(i);
        to.set_store(slice.store.0);
        to.set_position(slice.position);
        to.set_nsid(slice.nsid.0);
        to.set_server(slice.server.0);
        to.set_address(slice.address.to_string());
        to.set_subsystem_nqn(&slice.subsystem_nqn);
    }
}

pub(crate) fn get_slice_addresses(
    from: struct_list::Reader<'_, wire::slice_address::Owned>,
) -> Decoded<Vec<SliceAddress>> {
    from.iter()
        .map(|slice| {
            Ok(SliceAddress {
                store: StoreId(slice.get_store()),
                position: slice.get_position(),
                nsid: Nsid(slice.get_nsid()),
                server: ServerId(slice.get_server()),
                address: get_address(slice.get_address())?,
                subsystem_nqn: get_text(slice.get_subsystem_nqn())?,
            })
        })
        .collect()
}

pub(crate) fn put_generations(
    generations: &VolumeGenerations,
    mut to: wire::volume_generations::Builder<'_>,
) {
    to.set_head(generations.head.0);
    to.set_pending(generations.pending().is_some());
    to.set_hold(generations.hold);
    let mut to = to.init_snapshots(len(generations.snapshots.len()));
    for (i, generation) in (0..).zip(generations.snapshots.keys()) {
        to.set(i, generation.0);
    }
}

pub(crate) fn get_generations(
    from: wire::volume_generations::Reader<'_>,
) -> Decoded<VolumeGenerations> {
    let complete = |g| (Generation(g), SnapshotState::Complete);
    let mut snapshots: BTreeMap<_, _> = from.get_snapshots()?.iter().map(complete).collect();
    if from.get_pending()
        && let Some(mut newest) = snapshots.last_entry()
    {
        newest.insert(SnapshotState::Pending);
    }
    let generations = VolumeGenerations {
        head: Generation(from.get_head()),
        snapshots,
        hold: from.get_hold(),
    };
    if !generations.is_sound() {
        return Err(malformed(
            "a set of generations",
            format!("{generations:?}"),
        ));
    }
    Ok(generations)
}

pub(crate) fn put_subject(subject: Subject, mut to: wire::subject::Builder<'_>) {
    match subject {
        Subject::Cluster => to.set_cluster(()),
        Subject::Server(id) => to.set_server(id.0),
        Subject::Store(id) => to.set_store(id.0),
        Subject::Host(id) => to.set_host(id.0),
        Subject::Volume(id) => put_volume_id(id, to.init_volume()),
    }
}

pub(crate) fn get_subject(from: wire::subject::Reader<'_>) -> Decoded<Subject> {
    Ok(match from.which()? {
        wire::subject::Cluster(()) => Subject::Cluster,
        wire::subject::Server(id) => Subject::Server(ServerId(id)),
        wire::subject::Store(id) => Subject::Store(StoreId(id)),
        wire::subject::Host(id) => Subject::Host(HostId(id)),
        wire::subject::Volume(id) => Subject::Volume(get_volume_id(id?)),
    })
}

pub(crate) fn put_member(member: &MemberAddress, mut to: wire::member_address::Builder<'_>) {
    to.set_id(member.id);
    to.set_address(&member.address);
}

pub(crate) fn get_member(from: wire::member_address::Reader<'_>) -> Decoded<MemberAddress> {
    Ok(MemberAddress {
        id: from.get_id(),
        address: get_text(from.get_address())?,
    })
}

pub(crate) fn put_members(
    members: &[MemberAddress],
    mut to: struct_list::Builder<'_, wire::member_address::Owned>,
) {
    for (i, member) in (0..).zip(members) {
        put_member(member, to.reborrow().get(i));
    }
}

pub(crate) fn get_members(
    from: struct_list::Reader<'_, wire::member_address::Owned>,
) -> Decoded<Vec<MemberAddress>> {
    from.iter().map(get_member).collect()
}

pub(crate) const fn put_stage(stage: Stage) -> wire::member_facts::Stage {
    match stage {
        Stage::Blank => wire::member_facts::Stage::Blank,
        Stage::Fresh => wire::member_facts::Stage::Fresh,
        Stage::Running => wire::member_facts::Stage::Running,
    }
}

pub(crate) const fn get_stage(stage: wire::member_facts::Stage) -> Stage {
    match stage {
        wire::member_facts::Stage::Blank => Stage::Blank,
        wire::member_facts::Stage::Fresh => Stage::Fresh,
        wire::member_facts::Stage::Running => Stage::Running,
    }
}

pub(crate) fn put_facts(facts: &MemberFacts, mut to: wire::member_facts::Builder<'_>) {
    to.set_id(facts.id);
    to.set_stage(put_stage(facts.stage));
    put_uuid(facts.cluster, to.init_cluster());
}

pub(crate) fn get_facts(from: wire::member_facts::Reader<'_>) -> Decoded<MemberFacts> {
    Ok(MemberFacts {
        id: from.get_id(),
        stage: get_stage(from.get_stage()?),
        cluster: get_uuid(from.get_cluster()?),
    })
}

//! What queries answer with.

use super::Decoded;
use super::report::{get_resilver, get_store, get_volume, put_resilver, put_store, put_volume};
use super::words::{
    get_address, get_generations, get_labels, get_liveness, get_map, get_member, get_members,
    get_phase, get_rollback, get_shape, get_stage, get_standing, get_stores, get_subject, get_text,
    get_texts, get_uuid, get_volume_id, len, put_generations, put_labels, put_liveness, put_map,
    put_member, put_members, put_phase, put_shape, put_stage, put_standing, put_stores,
    put_subject, put_texts, put_uuid, put_volume_id,
};
use crate::api::{
    ClusterView, HostView, MemberFacts, MemberStatus, PlanView, ResilverView, ServerView,
    SliceView, SnapshotView, StoreView, VolumeView,
};
use crate::core::{
    DesiredAttachment, DesiredMaintenance, DesiredSlice, EventRecord, HostId, SliceParent,
    SpaceLimits,
};
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId};
use ubs_capnp::control_capnp as wire;

pub(crate) fn put_member_status(s: &MemberStatus, mut to: wire::member_status::Builder<'_>) {
    to.set_id(s.facts.id);
    to.set_stage(put_stage(s.facts.stage));
    put_uuid(s.facts.cluster, to.reborrow().init_cluster());
    to.set_role(&s.role);
    to.set_term(s.term);
    to.set_leader(s.leader);
    to.set_applied_index(s.applied_index);
    to.set_committed_index(s.committed_index);
    put_members(&s.members, to.reborrow().init_members(len(s.members.len())));
    let mut voters = to.reborrow().init_voters(len(s.voters.len()));
    for (i, voter) in (0..).zip(&s.voters) {
        voters.set(i, *voter);
    }
    to.set_version(&s.version);
    to.set_note(&s.note);
    to.set_log_fill_percent(s.log_fill_percent);
}

pub(crate) fn get_member_status(from: wire::member_status::Reader<'_>) -> Decoded<MemberStatus> {
    Ok(MemberStatus {
        facts: MemberFacts {
            id: from.get_id(),
            stage: get_stage(from.get_stage()?),
            cluster: get_uuid(from.get_cluster()?),
        },
        role: get_text(from.get_role())?,
        term: from.get_term(),
        leader: from.get_leader(),
        applied_index: from.get_applied_index(),
        committed_index: from.get_committed_index(),
        members: get_members(from.get_members()?)?,
        voters: from.get_voters()?.iter().collect(),
        version: get_text(from.get_version())?,
        note: get_text(from.get_note())?,
        log_fill_percent: from.get_log_fill_percent(),
    })
}

pub(crate) fn put_cluster(c: &ClusterView, mut to: wire::cluster_view::Builder<'_>) {
    put_uuid(c.uuid, to.reborrow().init_uuid());
    to.set_name(&c.name);
    to.set_lineage(c.lineage);
    to.set_schema(c.schema);
    put_member(&c.leader, to.reborrow().init_leader());
    to.set_applied_index(c.applied_index);
    to.set_overcommit_percent(c.space.overcommit_percent);
    to.set_high_water_percent(c.space.high_water_percent);
    put_members(&c.members, to.init_members(len(c.members.len())));
}

pub(crate) fn get_cluster(from: wire::cluster_view::Reader<'_>) -> Decoded<ClusterView> {
    Ok(ClusterView {
        uuid: get_uuid(from.get_uuid()?),
        name: get_text(from.get_name())?,
        lineage: from.get_lineage(),
        schema: from.get_schema(),
        leader: get_member(from.get_leader()?)?,
        applied_index: from.get_applied_index(),
        members: get_members(from.get_members()?)?,
        space: SpaceLimits {
            overcommit_percent: from.get_overcommit_percent(),
            high_water_percent: from.get_high_water_percent(),
        },
    })
}

pub(crate) fn put_server_view(s: &ServerView, mut to: wire::server_view::Builder<'_>) {
    to.set_id(s.id.0);
    put_uuid(s.uuid, to.reborrow().init_uuid());
    to.set_name(&s.name);
    to.set_address(s.address.to_string());
    to.set_subsystem_nqn(&s.subsystem_nqn);
    to.set_standing(put_standing(s.standing));
    to.set_liveness(put_liveness(s.liveness));
    to.set_stores(s.stores);
    put_labels(&s.labels, to.init_labels(len(s.labels.len())));
}

pub(crate) fn get_server_view(from: wire::server_view::Reader<'_>) -> Decoded<ServerView> {
    Ok(ServerView {
        id: ServerId(from.get_id()),
        uuid: get_uuid(from.get_uuid()?),
        name: get_text(from.get_name())?,
        address: get_address(from.get_address())?,
        subsystem_nqn: get_text(from.get_subsystem_nqn())?,
        labels: get_labels(from.get_labels()?)?,
        standing: get_standing(from.get_standing()?),
        liveness: get_liveness(from.get_liveness()?),
        stores: from.get_stores(),
    })
}

pub(crate) fn put_store_view(s: &StoreView, mut to: wire::store_view::Builder<'_>) {
    to.set_id(s.id.0);
    put_uuid(s.uuid, to.reborrow().init_uuid());
    to.set_server(s.server.0);
    to.set_server_name(&s.server_name);
    to.set_size_bytes(s.size_bytes);
    to.set_promised_bytes(s.promised_bytes);
    to.set_slices(s.slices);
    to.set_liveness(put_liveness(s.liveness));
    if let Some(report) = &s.report {
        to.set_reported(true);
        put_store(report, to.init_report());
    }
}

pub(crate) fn get_store_view(from: wire::store_view::Reader<'_>) -> Decoded<StoreView> {
    let report = if from.get_reported() {
        Some(get_store(from.get_report()?)?)
    } else {
        None
    };
    Ok(StoreView {
        id: StoreId(from.get_id()),
        uuid: get_uuid(from.get_uuid()?),
        server: ServerId(from.get_server()),
        server_name: get_text(from.get_server_name())?,
        size_bytes: from.get_size_bytes(),
        promised_bytes: from.get_promised_bytes(),
        slices: from.get_slices(),
        liveness: get_liveness(from.get_liveness()?),
        report,
    })
}

pub(crate) fn put_host_view(h: &HostView, mut to: wire::host_view::Builder<'_>) {
    to.set_id(h.id.0);
    put_uuid(h.uuid, to.reborrow().init_uuid());
    to.set_name(&h.name);
    to.set_host_nqn(&h.host_nqn);
    to.set_liveness(put_liveness(h.liveness));
    to.set_volumes(h.volumes);
    to.set_standard(h.standard);
}

pub(crate) fn get_host_view(from: wire::host_view::Reader<'_>) -> Decoded<HostView> {
    Ok(HostView {
        id: HostId(from.get_id()),
        uuid: get_uuid(from.get_uuid()?),
        name: get_text(from.get_name())?,
        host_nqn: get_text(from.get_host_nqn())?,
        liveness: get_liveness(from.get_liveness()?),
        volumes: from.get_volumes(),
        standard: from.get_standard(),
    })
}

fn put_slice_view(s: &SliceView, mut to: wire::slice_view::Builder<'_>) {
    to.set_nsid(s.nsid.0);
    to.set_store(s.store.0);
    to.set_server(s.server.0);
    to.set_server_name(&s.server_name);
    to.set_address(s.address.to_string());
    to.set_position(s.position);
    to.set_confirmed(s.confirmed);
    to.set_size_blocks(s.size_blocks);
    to.set_in_sync(s.in_sync);
    to.set_liveness(put_liveness(s.liveness));
}

fn get_slice_view(from: wire::slice_view::Reader<'_>) -> Decoded<SliceView> {
    Ok(SliceView {
        nsid: Nsid(from.get_nsid()),
        store: StoreId(from.get_store()),
        server: ServerId(from.get_server()),
        server_name: get_text(from.get_server_name())?,
        address: get_address(from.get_address())?,
        position: from.get_position(),
        confirmed: from.get_confirmed(),
        size_blocks: from.get_size_blocks(),
        in_sync: from.get_in_sync(),
        liveness: get_liveness(from.get_liveness()?),
    })
}

pub(crate) fn put_volume_view(v: &VolumeView, mut to: wire::volume_view::Builder<'_>) {
    put_volume_id(v.id, to.reborrow().init_id());
    to.set_name(&v.name);
    put_map(&v.map, to.reborrow().init_map());
    to.set_set(v.set);
    to.set_min_in_sync(v.min_in_sync);
    to.set_open_access(v.open_access);
    to.set_growing_to(v.growing_to);
    to.set_phase(put_phase(v.phase));
    to.set_desired_on(&v.desired_on);
    to.set_held_by(&v.held_by);
    to.set_epoch(v.epoch.0);
    to.set_seq(v.seq.0);
    to.set_holder_liveness(put_liveness(v.holder_liveness));
    to.set_maintained_by(&v.maintained_by);
    to.set_head(v.head.0);
    to.set_snapshots(v.snapshots);
    to.set_pending_snapshot(&v.pending_snapshot);
    to.set_pending_for(&v.pending_for);
    to.set_rolls_back_to(&v.rolls_back_to);
    to.set_shows(&v.shows);
    to.set_clone_of(&v.clone_of);
    let mut slices = to.reborrow().init_slices(len(v.slices.len()));
    for (i, slice) in (0..).zip(&v.slices) {
        put_slice_view(slice, slices.reborrow().get(i));
    }
    if let Some(report) = &v.report {
        to.set_reported(true);
        put_volume(report, to.init_report());
    }
}

pub(crate) fn get_volume_view(from: wire::volume_view::Reader<'_>) -> Decoded<VolumeView> {
    let report = if from.get_reported() {
        Some(get_volume(from.get_report()?)?)
    } else {
        None
    };
    Ok(VolumeView {
        id: get_volume_id(from.get_id()?),
        name: get_text(from.get_name())?,
        map: get_map(from.get_map()?)?,
        set: from.get_set(),
        min_in_sync: from.get_min_in_sync(),
        open_access: from.get_open_access(),
        growing_to: from.get_growing_to(),
        phase: get_phase(from.get_phase()?),
        desired_on: get_text(from.get_desired_on())?,
        held_by: get_text(from.get_held_by())?,
        epoch: Epoch(from.get_epoch()),
        seq: MembershipSeq(from.get_seq()),
        slices: from
            .get_slices()?
            .iter()
            .map(get_slice_view)
            .collect::<Decoded<_>>()?,
        report,
        holder_liveness: get_liveness(from.get_holder_liveness()?),
        maintained_by: get_text(from.get_maintained_by())?,
        head: Generation(from.get_head()),
        snapshots: from.get_snapshots(),
        pending_snapshot: get_text(from.get_pending_snapshot())?,
        pending_for: get_text(from.get_pending_for())?,
        rolls_back_to: get_text(from.get_rolls_back_to())?,
        shows: get_text(from.get_shows())?,
        clone_of: get_text(from.get_clone_of())?,
    })
}

pub(crate) fn put_snapshot_view(s: &SnapshotView, mut to: wire::snapshot_view::Builder<'_>) {
    put_volume_id(s.volume, to.reborrow().init_volume());
    to.set_volume_name(&s.volume_name);
    to.set_name(&s.name);
    to.set_generation(s.generation.0);
    to.set_created_unix_ms(s.created_unix_ms);
    to.set_pending(s.pending);
}

pub(crate) fn get_snapshot_view(from: wire::snapshot_view::Reader<'_>) -> Decoded<SnapshotView> {
    Ok(SnapshotView {
        volume: get_volume_id(from.get_volume()?),
        volume_name: get_text(from.get_volume_name())?,
        name: get_text(from.get_name())?,
        generation: Generation(from.get_generation()),
        created_unix_ms: from.get_created_unix_ms(),
        pending: from.get_pending(),
    })
}

pub(crate) fn put_resilver_view(r: &ResilverView, mut to: wire::resilver_view::Builder<'_>) {
    to.set_volume_name(&r.volume_name);
    to.set_store_name(&r.store_name);
    put_resilver(r.report, to.init_report());
}

pub(crate) fn get_resilver_view(from: wire::resilver_view::Reader<'_>) -> Decoded<ResilverView> {
    Ok(ResilverView {
        volume_name: get_text(from.get_volume_name())?,
        store_name: get_text(from.get_store_name())?,
        report: get_resilver(from.get_report()?)?,
    })
}

pub(crate) fn put_event(e: &EventRecord, mut to: wire::event::Builder<'_>) {
    to.set_index(e.index);
    to.set_at_unix_ms(e.at_unix_ms);
    put_subject(e.subject, to.reborrow().init_subject());
    to.set_kind(&e.kind);
    to.set_text(&e.text);
}

pub(crate) fn get_event(from: wire::event::Reader<'_>) -> Decoded<EventRecord> {
    Ok(EventRecord {
        index: from.get_index(),
        at_unix_ms: from.get_at_unix_ms(),
        subject: get_subject(from.get_subject()?)?,
        kind: get_text(from.get_kind())?,
        text: get_text(from.get_text())?,
    })
}

pub(crate) fn put_plan(p: &PlanView, mut to: wire::plan::Builder<'_>) {
    to.set_reused_set(p.reused_set);
    put_shape(p.shape, to.reborrow().init_shape());
    put_stores(p.stores.iter(), |n| to.reborrow().init_stores(n));
    put_texts(
        &p.server_names,
        to.reborrow().init_server_names(len(p.server_names.len())),
    );
    let mut bytes = to.reborrow().init_slice_bytes(len(p.slice_bytes.len()));
    for (i, b) in (0..).zip(&p.slice_bytes) {
        bytes.set(i, *b);
    }
    to.set_copysets(p.copysets);
    to.set_resilver_seconds(p.resilver_seconds);
    let mut odds = to.init_loss_probability(len(p.loss_probability.len()));
    for (i, p) in (0..).zip(&p.loss_probability) {
        odds.set(i, *p);
    }
}

pub(crate) fn get_plan(from: wire::plan::Reader<'_>) -> Decoded<PlanView> {
    Ok(PlanView {
        reused_set: from.get_reused_set(),
        shape: get_shape(from.get_shape()?)?,
        stores: get_stores(from.get_stores()?),
        server_names: get_texts(from.get_server_names()?)?,
        slice_bytes: from.get_slice_bytes()?.iter().collect(),
        copysets: from.get_copysets(),
        loss_probability: from.get_loss_probability()?.iter().collect(),
        resilver_seconds: from.get_resilver_seconds(),
    })
}

pub(crate) fn put_desired_slice(s: &DesiredSlice, mut to: wire::desired_slice::Builder<'_>) {
    to.set_store(s.store.0);
    put_uuid(s.store_uuid, to.reborrow().init_store_uuid());
    to.set_nsid(s.nsid.0);
    put_volume_id(s.volume, to.reborrow().init_volume());
    to.set_size_blocks(s.size_blocks);
    put_shape(s.shape, to.reborrow().init_shape());
    to.set_position(s.position);
    to.set_open_access(s.open_access);
    to.set_confirmed(s.confirmed);
    to.set_has_blocks(s.has_blocks);
    to.set_remove(s.remove);
    if let Some(parent) = s.parent {
        to.set_parent_nsid(parent.nsid.0);
        to.set_parent_generation(parent.generation.0);
    }
    if let Some(generations) = &s.generations {
        put_generations(generations, to.init_generations());
    }
}

pub(crate) fn get_desired_slice(from: wire::desired_slice::Reader<'_>) -> Decoded<DesiredSlice> {
    let generations = if from.has_generations() {
        Some(get_generations(from.get_generations()?)?)
    } else {
        None
    };
    let parent = SliceParent {
        nsid: Nsid(from.get_parent_nsid()),
        generation: Generation(from.get_parent_generation()),
    };
    Ok(DesiredSlice {
        store: StoreId(from.get_store()),
        store_uuid: get_uuid(from.get_store_uuid()?),
        nsid: Nsid(from.get_nsid()),
        volume: get_volume_id(from.get_volume()?),
        size_blocks: from.get_size_blocks(),
        shape: get_shape(from.get_shape()?)?,
        position: from.get_position(),
        open_access: from.get_open_access(),
        confirmed: from.get_confirmed(),
        has_blocks: from.get_has_blocks(),
        remove: from.get_remove(),
        parent: Some(parent).filter(|p| p.nsid.0 != 0),
        generations,
    })
}

pub(crate) fn put_maintenance(
    m: &DesiredMaintenance,
    mut to: wire::desired_maintenance::Builder<'_>,
) {
    put_volume_id(m.volume, to.reborrow().init_volume());
    to.set_name(&m.name);
    to.set_due_index(m.due_index);
    if let Some(rollback) = m.rollback {
        to.set_rollback_to(rollback.to.0);
        to.set_rollback_before(rollback.before.0);
    }
    put_generations(&m.generations, to.init_generations());
}

pub(crate) fn get_maintenance(
    from: wire::desired_maintenance::Reader<'_>,
) -> Decoded<DesiredMaintenance> {
    Ok(DesiredMaintenance {
        volume: get_volume_id(from.get_volume()?),
        name: get_text(from.get_name())?,
        due_index: from.get_due_index(),
        generations: get_generations(from.get_generations()?)?,
        rollback: get_rollback(from.get_rollback_to(), from.get_rollback_before()),
    })
}

pub(crate) fn put_desired_attachment(
    a: &DesiredAttachment,
    mut to: wire::desired_attachment::Builder<'_>,
) {
    put_volume_id(a.volume, to.reborrow().init_volume());
    to.set_name(&a.name);
    to.set_size_blocks(a.size_blocks);
    to.set_wanted(a.wanted);
    to.set_ready(a.ready);
    to.set_epoch(a.epoch.map_or(0, |e| e.0));
    to.set_newest(a.newest.0);
    put_generations(&a.generations, to.reborrow().init_generations());
    super::words::put_slice_addresses(&a.slices, to.init_slices(len(a.slices.len())));
}

pub(crate) fn get_desired_attachment(
    from: wire::desired_attachment::Reader<'_>,
) -> Decoded<DesiredAttachment> {
    Ok(DesiredAttachment {
        volume: get_volume_id(from.get_volume()?),
        name: get_text(from.get_name())?,
        size_blocks: from.get_size_blocks(),
        wanted: from.get_wanted(),
        ready: from.get_ready(),
        epoch: Some(Epoch(from.get_epoch())).filter(|e| e.0 != 0),
        newest: Epoch(from.get_newest()),
        slices: super::words::get_slice_addresses(from.get_slices()?)?,
        generations: get_generations(from.get_generations()?)?,
    })
}

//! Commands.

use super::words::{
    get_address, get_domain, get_labels, get_layout, get_standing, get_store_set, get_subject,
    get_text, get_uuid, get_volume_id, len, put_domain, put_labels, put_layout, put_standing,
    put_stores, put_subject, put_uuid, put_volume_id,
};
use super::{Decoded, malformed};
use crate::core::{
    ClientId, Command, HostId, NewHost, NewServer, NewSpaceLimits, NewStore, NewVolume, Origin,
    Rollback,
};
use shardmap::units::{Epoch, Generation, MembershipSeq, Nsid, ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;
use ubs_capnp::control_capnp as wire;
use uuid::Uuid;

/// Commands about one volume and little else.
macro_rules! put_of_volume {
    ($to:expr, $volume:expr, $($set:ident = $value:expr),*) => {{
        let mut to = $to;
        $(to.$set($value);)*
        put_volume_id(*$volume, to.init_volume());
    }};
}

pub(crate) fn put_command(
    client: ClientId,
    sequence: u64,
    command: &Command,
    mut to: wire::command::Builder<'_>,
) {
    put_uuid(client.0, to.reborrow().init_client());
    to.set_sequence(sequence);
    match command {
        Command::InitCluster { uuid, name } => {
            let mut to = to.init_init_cluster();
            put_uuid(*uuid, to.reborrow().init_uuid());
            to.set_name(name);
        }
        Command::RegisterServer(new) => put_server(new, to.init_register_server()),
        Command::RegisterStore(new) => put_store(*new, to.init_register_store()),
        Command::RegisterHost(new) => put_host(new, to.init_register_host()),
        Command::SetServerStanding { server, standing } => {
            let mut to = to.init_set_server_standing();
            to.set_server(server.0);
            to.set_standing(put_standing(*standing));
        }
        Command::Note { subject, text } => {
            let mut to = to.init_note();
            to.set_text(text);
            put_subject(*subject, to.init_subject());
        }
        Command::AddHost(new) => put_host(new, to.init_add_host()),
        Command::RemoveHost { host } => to.set_remove_host(host.0),
        Command::RemoveStore { store } => to.set_remove_store(store.0),
        Command::RemoveServer { server } => to.set_remove_server(server.0),
        Command::BeginLineage { lineage } => to.set_begin_lineage(*lineage),
        Command::SetSpaceLimits(new) => {
            let mut to = to.init_set_space_limits();
            to.set_overcommit_percent(new.overcommit_percent.unwrap_or(0));
            to.set_high_water_percent(new.high_water_percent.unwrap_or(0));
        }
        Command::ConfirmSlice { .. }
        | Command::ConfirmSliceGone { .. }
        | Command::ReportBlankSlice { .. } => put_of_slice(command, to),
        Command::CreateVolume(_)
        | Command::DeleteVolume { .. }
        | Command::SetDesiredAttachment { .. }
        | Command::ClearDesiredAttachment { .. }
        | Command::ForceDetach { .. }
        | Command::Attach { .. }
        | Command::Detach { .. }
        | Command::SetIsr { .. }
        | Command::VerifyMembership { .. }
        | Command::Maintain { .. }
        | Command::AssignMaintenance { .. }
        | Command::CreateSnapshot { .. }
        | Command::CompleteSnapshot { .. }
        | Command::HoldSnapshot { .. }
        | Command::DeleteSnapshot { .. }
        | Command::CreateView { .. }
        | Command::CreateClone { .. }
        | Command::RollBack { .. }
        | Command::CompleteRollback { .. }
        | Command::GrowVolume { .. } => put_volume_command(command, to),
    }
}

/// `command`: what a storaged says of a slice.
fn put_of_slice(command: &Command, to: wire::command::Builder<'_>) {
    if let Command::ConfirmSlice {
        store,
        nsid,
        size_blocks,
    } = command
    {
        let mut to = to.init_confirm_slice();
        to.set_store(store.0);
        to.set_nsid(nsid.0);
        to.set_size_blocks(*size_blocks);
    } else if let Command::ConfirmSliceGone { store, nsid } = command {
        let mut to = to.init_confirm_slice_gone();
        to.set_store(store.0);
        to.set_nsid(nsid.0);
    } else if let Command::ReportBlankSlice { store, nsid } = command {
        let mut to = to.init_report_blank_slice();
        to.set_store(store.0);
        to.set_nsid(nsid.0);
    } else {
        unreachable!("{command:?} is not about a slice")
    }
}

fn put_volume_command(command: &Command, to: wire::command::Builder<'_>) {
    match command {
        Command::CreateVolume(new) => put_new_volume(new, to.init_create_volume()),
        Command::DeleteVolume {
            volume,
            with_snapshots,
        } => put_delete_volume(*volume, *with_snapshots, to),
        Command::SetDesiredAttachment { volume, host } => {
            put_of_volume!(to.init_set_desired_attachment(), volume, set_host = host.0);
        }
        Command::ClearDesiredAttachment { volume } => {
            put_volume_id(*volume, to.init_clear_desired_attachment());
        }
        Command::ForceDetach { volume } => put_volume_id(*volume, to.init_force_detach()),
        Command::Attach { volume, host } => {
            put_of_volume!(to.init_attach(), volume, set_host = host.0);
        }
        Command::Detach { volume, epoch } => {
            put_of_volume!(to.init_detach(), volume, set_epoch = epoch.0);
        }
        Command::Maintain { volume, server } => {
            put_of_volume!(to.init_maintain(), volume, set_server = server.0);
        }
        Command::AssignMaintenance { volume, server } => {
            put_of_volume!(to.init_assign_maintenance(), volume, set_server = server.0);
        }
        Command::CreateSnapshot { .. }
        | Command::HoldSnapshot { .. }
        | Command::CompleteSnapshot { .. }
        | Command::DeleteSnapshot { .. } => put_snapshot_command(command, to),
        Command::GrowVolume { volume, size_bytes } => {
            put_of_volume!(to.init_grow_volume(), volume, set_size_bytes = *size_bytes);
        }
        Command::CreateView { .. } | Command::CreateClone { .. } => put_of_snapshot(command, to),
        Command::RollBack { .. } | Command::CompleteRollback { .. } => put_rollback(command, to),
        Command::SetIsr { .. } | Command::VerifyMembership { .. } => put_membership(command, to),
        Command::InitCluster { .. }
        | Command::RegisterServer(_)
        | Command::RegisterStore(_)
        | Command::RegisterHost(_)
        | Command::SetServerStanding { .. }
        | Command::Note { .. }
        | Command::AddHost(_)
        | Command::RemoveHost { .. }
        | Command::RemoveStore { .. }
        | Command::RemoveServer { .. }
        | Command::BeginLineage { .. }
        | Command::SetSpaceLimits(_)
        | Command::ConfirmSlice { .. }
        | Command::ReportBlankSlice { .. }
        | Command::ConfirmSliceGone { .. } => unreachable!("put by the caller"),
    }
}

/// `command`: one of the life of a snapshot.
fn put_snapshot_command(command: &Command, to: wire::command::Builder<'_>) {
    if let Command::CreateSnapshot { volumes, name } = command {
        put_create_snapshot(volumes, name, to.init_create_snapshot());
    } else if let Command::HoldSnapshot {
        volume,
        epoch,
        generation,
    } = command
    {
        let mut to = to.init_hold_snapshot();
        to.set_epoch(epoch.0);
        put_of_volume!(to, volume, set_generation = generation.0);
    } else if let Command::CompleteSnapshot {
        volume,
        epoch,
        generation,
        held,
    } = command
    {
        let mut to = to.init_complete_snapshot();
        to.set_epoch(epoch.0);
        to.set_held(*held);
        put_of_volume!(to, volume, set_generation = generation.0);
    } else if let Command::DeleteSnapshot { volume, generation } = command {
        let to = to.init_delete_snapshot();
        put_of_volume!(to, volume, set_generation = generation.0);
    } else {
        unreachable!("{command:?} is not about snapshots")
    }
}

/// `command`: one of the life of a rollback.
fn put_rollback(command: &Command, to: wire::command::Builder<'_>) {
    if let Command::RollBack {
        volume,
        to: generation,
        keep_as,
    } = command
    {
        let mut to = to.init_roll_back();
        to.set_keep_as(keep_as);
        put_of_volume!(to, volume, set_to = generation.0);
    } else if let Command::CompleteRollback {
        volume,
        epoch,
        rollback,
    } = command
    {
        let mut to = to.init_complete_rollback();
        to.set_to(rollback.to.0);
        to.set_before(rollback.before.0);
        put_of_volume!(to, volume, set_epoch = epoch.0);
    } else {
        unreachable!("{command:?} rolls nothing back");
    }
}

/// `command`: one that changes a membership.
fn put_membership(command: &Command, to: wire::command::Builder<'_>) {
    if let Command::SetIsr {
        volume,
        epoch,
        seq,
        new_isr,
    } = command
    {
        let mut to = to.init_set_isr();
        to.set_seq(seq.0);
        put_stores(new_isr.iter(), |n| to.reborrow().init_new_isr(n));
        put_of_volume!(to, volume, set_epoch = epoch.0);
    } else if let Command::VerifyMembership {
        volume,
        epoch,
        seq,
        found_seq,
        isr,
    } = command
    {
        let mut to = to.init_verify_membership();
        to.set_seq(seq.0);
        to.set_found_seq(found_seq.0);
        put_stores(isr.iter(), |n| to.reborrow().init_isr(n));
        put_of_volume!(to, volume, set_epoch = epoch.0);
    } else {
        unreachable!("{command:?} changes no membership");
    }
}

fn put_delete_volume(volume: VolumeId, with_snapshots: bool, to: wire::command::Builder<'_>) {
    let to = if with_snapshots {
        to.init_delete_volume_with_snapshots()
    } else {
        to.init_delete_volume()
    };
    put_volume_id(volume, to);
}

fn put_create_snapshot(
    volumes: &BTreeSet<VolumeId>,
    name: &str,
    mut to: wire::command::create_snapshot::Builder<'_>,
) {
    to.set_name(name);
    let mut to = to.init_volumes(len(volumes.len()));
    for (i, volume) in (0..).zip(volumes) {
        put_volume_id(*volume, to.reborrow().get(i));
    }
}

/// `command`: one that makes a volume of a snapshot.
fn put_of_snapshot(command: &Command, to: wire::command::Builder<'_>) {
    if let Command::CreateView { id, name, origin } = command {
        let mut to = to.init_create_view();
        put_volume_id(*id, to.reborrow().init_id());
        to.set_name(name);
        put_of_volume!(to, &origin.volume, set_generation = origin.generation.0);
    } else if let Command::CreateClone { id, name, origin } = command {
        let mut to = to.init_create_clone();
        put_volume_id(*id, to.reborrow().init_id());
        to.set_name(name);
        put_of_volume!(to, &origin.volume, set_generation = origin.generation.0);
    } else {
        unreachable!("{command:?} makes nothing of a snapshot");
    }
}

fn put_server(new: &NewServer, mut to: wire::new_server::Builder<'_>) {
    put_uuid(
        new.cluster.unwrap_or_default(),
        to.reborrow().init_cluster(),
    );
    put_uuid(new.uuid, to.reborrow().init_uuid());
    to.set_name(&new.name);
    to.set_address(new.address.to_string());
    to.set_subsystem_nqn(&new.subsystem_nqn);
    put_labels(&new.labels, to.init_labels(len(new.labels.len())));
}

fn put_store(new: NewStore, mut to: wire::new_store::Builder<'_>) {
    put_uuid(new.cluster, to.reborrow().init_cluster());
    to.set_server(new.server.0);
    to.set_size_bytes(new.size_bytes);
    put_uuid(new.uuid, to.init_uuid());
}

fn put_host(new: &NewHost, mut to: wire::new_host::Builder<'_>) {
    put_uuid(new.uuid, to.reborrow().init_uuid());
    to.set_name(&new.name);
    to.set_host_nqn(&new.host_nqn);
}

pub(crate) fn put_new_volume(new: &NewVolume, mut to: wire::new_volume::Builder<'_>) {
    put_volume_id(new.id, to.reborrow().init_id());
    to.set_name(&new.name);
    to.set_size_bytes(new.size_bytes);
    to.set_replicas(new.replicas);
    to.set_shard_bytes(new.shard_bytes);
    to.set_layout(put_layout(new.layout));
    to.set_stride(new.stride.unwrap_or(0));
    to.set_min_in_sync(new.min_in_sync);
    put_domain(&new.domain, to.reborrow().init_domain());
    to.set_open_access(new.open_access);
    put_stores(new.avoid.iter(), |n| to.init_avoid(n));
}

pub(crate) fn get_new_volume(from: wire::new_volume::Reader<'_>) -> Decoded<NewVolume> {
    Ok(NewVolume {
        id: get_volume_id(from.get_id()?),
        name: get_text(from.get_name())?,
        size_bytes: from.get_size_bytes(),
        replicas: from.get_replicas(),
        shard_bytes: from.get_shard_bytes(),
        layout: get_layout(from.get_layout()?),
        stride: Some(from.get_stride()).filter(|s| *s != 0),
        min_in_sync: from.get_min_in_sync(),
        domain: get_domain(from.get_domain()?)?,
        open_access: from.get_open_access(),
        avoid: get_store_set(from.get_avoid()?),
    })
}

pub(crate) fn get_command(from: wire::command::Reader<'_>) -> Decoded<(ClientId, u64, Command)> {
    let client = get_uuid(from.get_client()?);
    if client == Uuid::nil() {
        return Err(malformed("the client id", client));
    }
    Ok((ClientId(client), from.get_sequence(), get_kind(from)?))
}

fn get_kind(from: wire::command::Reader<'_>) -> Decoded<Command> {
    use wire::command::Which;
    Ok(match from.which()? {
        Which::InitCluster(c) => Command::InitCluster {
            uuid: get_uuid(c.get_uuid()?),
            name: get_text(c.get_name())?,
        },
        Which::RegisterServer(new) => Command::RegisterServer(get_server(new?)?),
        Which::RegisterStore(new) => Command::RegisterStore(get_store(new?)?),
        Which::RegisterHost(new) => Command::RegisterHost(get_host(new?)?),
        Which::CreateVolume(new) => Command::CreateVolume(get_new_volume(new?)?),
        Which::DeleteVolume(v) => get_delete_volume(v?, false),
        Which::DeleteVolumeWithSnapshots(v) => get_delete_volume(v?, true),
        Which::CreateSnapshot(c) => get_create_snapshot(c)?,
        Which::CompleteSnapshot(c) => get_complete_snapshot(c)?,
        Which::HoldSnapshot(c) => get_hold_snapshot(c)?,
        Which::DeleteSnapshot(c) => get_delete_snapshot(c)?,
        Which::CreateView(c) => get_create_view(c)?,
        Which::CreateClone(c) => get_create_clone(c)?,
        Which::RollBack(c) => get_roll_back(c)?,
        Which::CompleteRollback(c) => get_complete_rollback(c)?,
        Which::GrowVolume(c) => get_grow_volume(c)?,
        Which::SetDesiredAttachment(c) => get_set_desired(c)?,
        Which::ClearDesiredAttachment(v) => Command::ClearDesiredAttachment {
            volume: get_volume_id(v?),
        },
        Which::Attach(c) => get_attach(c)?,
        Which::Maintain(c) => Command::Maintain {
            volume: get_volume_id(c.get_volume()?),
            server: ServerId(c.get_server()),
        },
        Which::AssignMaintenance(c) => Command::AssignMaintenance {
            volume: get_volume_id(c.get_volume()?),
            server: ServerId(c.get_server()),
        },
        Which::Detach(c) => Command::Detach {
            volume: get_volume_id(c.get_volume()?),
            epoch: Epoch(c.get_epoch()),
        },
        Which::ForceDetach(v) => Command::ForceDetach {
            volume: get_volume_id(v?),
        },
        Which::SetIsr(c) => get_set_isr(c)?,
        Which::ConfirmSlice(c) => get_confirm_slice(c),
        Which::ReportBlankSlice(c) => get_report_blank_slice(c),
        Which::ConfirmSliceGone(c) => Command::ConfirmSliceGone {
            store: StoreId(c.get_store()),
            nsid: Nsid(c.get_nsid()),
        },
        Which::SetServerStanding(c) => Command::SetServerStanding {
            server: ServerId(c.get_server()),
            standing: get_standing(c.get_standing()?),
        },
        Which::SetSpaceLimits(c) => Command::SetSpaceLimits(get_space_limits(c)),
        Which::BeginLineage(lineage) => Command::BeginLineage { lineage },
        Which::VerifyMembership(c) => get_verify_membership(c)?,
        Which::Note(c) => Command::Note {
            subject: get_subject(c.get_subject()?)?,
            text: get_text(c.get_text())?,
        },
        Which::AddHost(new) => Command::AddHost(get_host(new?)?),
        Which::RemoveHost(host) => Command::RemoveHost { host: HostId(host) },
        Which::RemoveStore(store) => Command::RemoveStore {
            store: StoreId(store),
        },
        Which::RemoveServer(server) => Command::RemoveServer {
            server: ServerId(server),
        },
    })
}

fn get_confirm_slice(from: wire::command::confirm_slice::Reader<'_>) -> Command {
    Command::ConfirmSlice {
        store: StoreId(from.get_store()),
        nsid: Nsid(from.get_nsid()),
        size_blocks: from.get_size_blocks(),
    }
}

fn get_report_blank_slice(from: wire::command::report_blank_slice::Reader<'_>) -> Command {
    Command::ReportBlankSlice {
        store: StoreId(from.get_store()),
        nsid: Nsid(from.get_nsid()),
    }
}

fn get_space_limits(from: wire::command::set_space_limits::Reader<'_>) -> NewSpaceLimits {
    let given = |percent| Some(percent).filter(|p| *p != 0);
    NewSpaceLimits {
        overcommit_percent: given(from.get_overcommit_percent()),
        high_water_percent: given(from.get_high_water_percent()),
    }
}

fn get_set_desired(from: wire::command::set_desired_attachment::Reader<'_>) -> Decoded<Command> {
    Ok(Command::SetDesiredAttachment {
        volume: get_volume_id(from.get_volume()?),
        host: HostId(from.get_host()),
    })
}

fn get_attach(from: wire::command::attach::Reader<'_>) -> Decoded<Command> {
    Ok(Command::Attach {
        volume: get_volume_id(from.get_volume()?),
        host: HostId(from.get_host()),
    })
}

fn get_delete_volume(volume: wire::uuid::Reader<'_>, with_snapshots: bool) -> Command {
    Command::DeleteVolume {
        volume: get_volume_id(volume),
        with_snapshots,
    }
}

fn get_create_snapshot(from: wire::command::create_snapshot::Reader<'_>) -> Decoded<Command> {
    Ok(Command::CreateSnapshot {
        volumes: from.get_volumes()?.iter().map(get_volume_id).collect(),
        name: get_text(from.get_name())?,
    })
}

fn get_hold_snapshot(from: wire::command::hold_snapshot::Reader<'_>) -> Decoded<Command> {
    Ok(Command::HoldSnapshot {
        volume: get_volume_id(from.get_volume()?),
        epoch: Epoch(from.get_epoch()),
        generation: Generation(from.get_generation()),
    })
}

fn get_complete_snapshot(from: wire::command::complete_snapshot::Reader<'_>) -> Decoded<Command> {
    Ok(Command::CompleteSnapshot {
        volume: get_volume_id(from.get_volume()?),
        epoch: Epoch(from.get_epoch()),
        generation: Generation(from.get_generation()),
        held: from.get_held(),
    })
}

fn get_delete_snapshot(from: wire::command::delete_snapshot::Reader<'_>) -> Decoded<Command> {
    Ok(Command::DeleteSnapshot {
        volume: get_volume_id(from.get_volume()?),
        generation: Generation(from.get_generation()),
    })
}

fn get_grow_volume(from: wire::command::grow_volume::Reader<'_>) -> Decoded<Command> {
    Ok(Command::GrowVolume {
        volume: get_volume_id(from.get_volume()?),
        size_bytes: from.get_size_bytes(),
    })
}

fn get_roll_back(from: wire::command::roll_back::Reader<'_>) -> Decoded<Command> {
    Ok(Command::RollBack {
        volume: get_volume_id(from.get_volume()?),
        to: Generation(from.get_to()),
        keep_as: get_text(from.get_keep_as())?,
    })
}

fn get_complete_rollback(from: wire::command::complete_rollback::Reader<'_>) -> Decoded<Command> {
    Ok(Command::CompleteRollback {
        volume: get_volume_id(from.get_volume()?),
        epoch: Epoch(from.get_epoch()),
        rollback: Rollback {
            to: Generation(from.get_to()),
            before: Generation(from.get_before()),
        },
    })
}

fn get_create_view(from: wire::command::create_view::Reader<'_>) -> Decoded<Command> {
    Ok(Command::CreateView {
        id: get_volume_id(from.get_id()?),
        name: get_text(from.get_name())?,
        origin: Origin {
            volume: get_volume_id(from.get_volume()?),
            generation: Generation(from.get_generation()),
        },
    })
}

fn get_create_clone(from: wire::command::create_clone::Reader<'_>) -> Decoded<Command> {
    Ok(Command::CreateClone {
        id: get_volume_id(from.get_id()?),
        name: get_text(from.get_name())?,
        origin: Origin {
            volume: get_volume_id(from.get_volume()?),
            generation: Generation(from.get_generation()),
        },
    })
}

fn get_set_isr(from: wire::command::set_isr::Reader<'_>) -> Decoded<Command> {
    Ok(Command::SetIsr {
        volume: get_volume_id(from.get_volume()?),
        epoch: Epoch(from.get_epoch()),
        seq: MembershipSeq(from.get_seq()),
        new_isr: get_store_set(from.get_new_isr()?),
    })
}

fn get_verify_membership(from: wire::command::verify_membership::Reader<'_>) -> Decoded<Command> {
    Ok(Command::VerifyMembership {
        volume: get_volume_id(from.get_volume()?),
        epoch: Epoch(from.get_epoch()),
        seq: MembershipSeq(from.get_seq()),
        found_seq: MembershipSeq(from.get_found_seq()),
        isr: get_store_set(from.get_isr()?),
    })
}

fn get_server(from: wire::new_server::Reader<'_>) -> Decoded<NewServer> {
    Ok(NewServer {
        cluster: Some(get_uuid(from.get_cluster()?)).filter(|c| *c != Uuid::nil()),
        uuid: get_uuid(from.get_uuid()?),
        name: get_text(from.get_name())?,
        address: get_address(from.get_address())?,
        subsystem_nqn: get_text(from.get_subsystem_nqn())?,
        labels: get_labels(from.get_labels()?)?,
    })
}

fn get_store(from: wire::new_store::Reader<'_>) -> Decoded<NewStore> {
    Ok(NewStore {
        cluster: get_uuid(from.get_cluster()?),
        server: ServerId(from.get_server()),
        uuid: get_uuid(from.get_uuid()?),
        size_bytes: from.get_size_bytes(),
    })
}

fn get_host(from: wire::new_host::Reader<'_>) -> Decoded<NewHost> {
    Ok(NewHost {
        uuid: get_uuid(from.get_uuid()?),
        name: get_text(from.get_name())?,
        host_nqn: get_text(from.get_host_nqn())?,
    })
}

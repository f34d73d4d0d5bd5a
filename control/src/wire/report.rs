//! Volatile reports.

use super::Decoded;
use super::words::{get_text, get_uuid, get_volume_id, len, put_uuid, put_volume_id};
use crate::api::{
    Report, ReportContents, Reporter, ResilverOutcome, ResilverReport, StoreHealth, StoreReport,
    VolumeHealth, VolumeReport,
};
use crate::core::HostId;
use shardmap::units::{ServerId, StoreId};
use ubs_capnp::control_capnp as wire;

pub(crate) fn put_report(report: &Report, mut to: wire::report::Builder<'_>) {
    let mut from = to.reborrow().init_from();
    match report.from {
        Reporter::Server(id) => from.set_server(id.0),
        Reporter::Host(id) => from.set_host(id.0),
    }
    put_uuid(report.run, to.reborrow().init_run());
    to.set_turn(report.turn);
    let Some(contents) = &report.contents else {
        return;
    };
    to.set_contents(true);
    let mut stores = to.reborrow().init_stores(len(contents.stores.len()));
    for (i, store) in (0..).zip(&contents.stores) {
        put_store(store, stores.reborrow().get(i));
    }
    let mut volumes = to.reborrow().init_volumes(len(contents.volumes.len()));
    for (i, volume) in (0..).zip(&contents.volumes) {
        put_volume(volume, volumes.reborrow().get(i));
    }
    let mut resilvers = to.init_resilvers(len(contents.resilvers.len()));
    for (i, resilver) in (0..).zip(&contents.resilvers) {
        put_resilver(*resilver, resilvers.reborrow().get(i));
    }
}

pub(crate) fn get_report(from: wire::report::Reader<'_>) -> Decoded<Report> {
    let who = match from.get_from()?.which()? {
        wire::reporter::Server(id) => Reporter::Server(ServerId(id)),
        wire::reporter::Host(id) => Reporter::Host(HostId(id)),
    };
    let contents = if from.get_contents() {
        Some(ReportContents {
            stores: from
                .get_stores()?
                .iter()
                .map(get_store)
                .collect::<Decoded<_>>()?,
            volumes: from
                .get_volumes()?
                .iter()
                .map(get_volume)
                .collect::<Decoded<_>>()?,
            resilvers: from
                .get_resilvers()?
                .iter()
                .map(get_resilver)
                .collect::<Decoded<_>>()?,
        })
    } else {
        None
    };
    Ok(Report {
        from: who,
        run: get_uuid(from.get_run()?),
        turn: from.get_turn(),
        contents,
    })
}

pub(crate) fn put_store(store: &StoreReport, mut to: wire::store_report::Builder<'_>) {
    to.set_store(store.store.0);
    to.set_health(match store.health {
        StoreHealth::Online => wire::StoreHealth::Online,
        StoreHealth::Opening => wire::StoreHealth::Opening,
        StoreHealth::Faulted => wire::StoreHealth::Faulted,
    });
    to.set_used_bytes(store.used_bytes);
    to.set_size_bytes(store.size_bytes);
    to.set_note(&store.note);
}

pub(crate) fn get_store(from: wire::store_report::Reader<'_>) -> Decoded<StoreReport> {
    Ok(StoreReport {
        store: StoreId(from.get_store()),
        health: match from.get_health()? {
            wire::StoreHealth::Online => StoreHealth::Online,
            wire::StoreHealth::Opening => StoreHealth::Opening,
            wire::StoreHealth::Faulted => StoreHealth::Faulted,
        },
        used_bytes: from.get_used_bytes(),
        size_bytes: from.get_size_bytes(),
        note: get_text(from.get_note())?,
    })
}

pub(crate) fn put_volume(volume: &VolumeReport, mut to: wire::volume_report::Builder<'_>) {
    put_volume_id(volume.volume, to.reborrow().init_volume());
    to.set_health(match volume.health {
        VolumeHealth::Attaching => wire::VolumeHealth::Attaching,
        VolumeHealth::Online => wire::VolumeHealth::Online,
        VolumeHealth::Degraded => wire::VolumeHealth::Degraded,
        VolumeHealth::Stalled => wire::VolumeHealth::Stalled,
        VolumeHealth::Failed => wire::VolumeHealth::Failed,
        VolumeHealth::Detaching => wire::VolumeHealth::Detaching,
    });
    to.set_device(&volume.device);
    to.set_note(&volume.note);
}

pub(crate) fn get_volume(from: wire::volume_report::Reader<'_>) -> Decoded<VolumeReport> {
    Ok(VolumeReport {
        volume: get_volume_id(from.get_volume()?),
        health: match from.get_health()? {
            wire::VolumeHealth::Attaching => VolumeHealth::Attaching,
            wire::VolumeHealth::Online => VolumeHealth::Online,
            wire::VolumeHealth::Degraded => VolumeHealth::Degraded,
            wire::VolumeHealth::Stalled => VolumeHealth::Stalled,
            wire::VolumeHealth::Failed => VolumeHealth::Failed,
            wire::VolumeHealth::Detaching => VolumeHealth::Detaching,
        },
        device: get_text(from.get_device())?,
        note: get_text(from.get_note())?,
    })
}

pub(crate) fn put_resilver(r: ResilverReport, mut to: wire::resilver_report::Builder<'_>) {
    put_volume_id(r.volume, to.reborrow().init_volume());
    to.set_store(r.store.0);
    to.set_started_unix_ms(r.started_unix_ms);
    to.set_done_bytes(r.done_bytes);
    to.set_total_bytes(r.total_bytes);
    to.set_bytes_per_s(r.bytes_per_s);
    to.set_ended_unix_ms(r.ended_unix_ms);
    to.set_outcome(match r.outcome {
        ResilverOutcome::Running => wire::ResilverOutcome::Running,
        ResilverOutcome::Complete => wire::ResilverOutcome::Complete,
        ResilverOutcome::Failed => wire::ResilverOutcome::Failed,
    });
}

pub(crate) fn get_resilver(from: wire::resilver_report::Reader<'_>) -> Decoded<ResilverReport> {
    Ok(ResilverReport {
        volume: get_volume_id(from.get_volume()?),
        store: StoreId(from.get_store()),
        started_unix_ms: from.get_started_unix_ms(),
        done_bytes: from.get_done_bytes(),
        total_bytes: from.get_total_bytes(),
        bytes_per_s: from.get_bytes_per_s(),
        outcome: match from.get_outcome()? {
            wire::ResilverOutcome::Running => ResilverOutcome::Running,
            wire::ResilverOutcome::Complete => ResilverOutcome::Complete,
            wire::ResilverOutcome::Failed => ResilverOutcome::Failed,
        },
        ended_unix_ms: from.get_ended_unix_ms(),
    })
}

//! Replies of the state machine.

use super::words::{
    get_generations, get_map, get_rollback, get_slice_addresses, get_store_set, get_text,
    get_volume_id, len, put_generations, put_map, put_slice_addresses, put_stores, put_volume_id,
};
use super::{Decoded, malformed};
use crate::core::{AttachGrant, HostId, Refusal, RefusalCode, Reply};
use shardmap::units::{Epoch, Generation, MembershipSeq, ServerId, StoreId};
use ubs_capnp::control_capnp as wire;

pub(crate) fn put_reply(reply: &Reply, mut to: wire::reply::Builder<'_>) {
    match reply {
        Reply::Done => to.set_done(()),
        Reply::Server(id) => to.set_server(id.0),
        Reply::Store(id) => to.set_store(id.0),
        Reply::Host(id) => to.set_host(id.0),
        Reply::Volume(id) => put_volume_id(*id, to.init_volume()),
        Reply::Granted(grant) => put_grant(grant, to.init_granted()),
        Reply::IsrSet(seq) => to.set_isr_set(seq.0),
        Reply::Fenced { epoch } => to.set_fenced(epoch.0),
        Reply::Stale { seq, isr } => {
            let mut to = to.init_stale();
            to.set_seq(seq.0);
            put_stores(isr.iter(), |n| to.init_isr(n));
        }
        Reply::Refused(refusal) => put_refusal(refusal, to.init_refused()),
    }
}

pub(crate) fn get_reply(from: wire::reply::Reader<'_>) -> Decoded<Reply> {
    use wire::reply::Which;
    Ok(match from.which()? {
        Which::Done(()) => Reply::Done,
        Which::Server(id) => Reply::Server(ServerId(id)),
        Which::Store(id) => Reply::Store(StoreId(id)),
        Which::Host(id) => Reply::Host(HostId(id)),
        Which::Volume(id) => Reply::Volume(get_volume_id(id?)),
        Which::Granted(grant) => Reply::Granted(Box::new(get_grant(grant?)?)),
        Which::IsrSet(seq) => Reply::IsrSet(MembershipSeq(seq)),
        Which::Fenced(epoch) => Reply::Fenced {
            epoch: Epoch(epoch),
        },
        Which::Stale(s) => Reply::Stale {
            seq: MembershipSeq(s.get_seq()),
            isr: get_store_set(s.get_isr()?),
        },
        Which::Refused(refusal) => Reply::Refused(get_refusal(refusal?)?),
    })
}

fn put_grant(grant: &AttachGrant, mut to: wire::attach_grant::Builder<'_>) {
    put_volume_id(grant.volume, to.reborrow().init_volume());
    to.set_name(&grant.name);
    put_map(&grant.map, to.reborrow().init_map());
    to.set_epoch(grant.epoch.0);
    to.set_seq(grant.seq.0);
    to.set_min_in_sync(grant.min_in_sync);
    to.set_unverified(!grant.verified);
    to.set_held_since(grant.held_since.0);
    to.set_view(grant.view.map_or(0, |generation| generation.0));
    if let Some(rollback) = grant.rollback {
        to.set_rollback_to(rollback.to.0);
        to.set_rollback_before(rollback.before.0);
    }
    put_generations(&grant.generations, to.reborrow().init_generations());
    put_slice_addresses(
        &grant.slices,
        to.reborrow().init_slices(len(grant.slices.len())),
    );
    put_stores(grant.isr.iter(), |n| to.init_isr(n));
}

fn get_grant(from: wire::attach_grant::Reader<'_>) -> Decoded<AttachGrant> {
    Ok(AttachGrant {
        volume: get_volume_id(from.get_volume()?),
        name: get_text(from.get_name())?,
        map: get_map(from.get_map()?)?,
        epoch: Epoch(from.get_epoch()),
        seq: MembershipSeq(from.get_seq()),
        isr: get_store_set(from.get_isr()?),
        verified: !from.get_unverified(),
        held_since: Epoch(from.get_held_since()),
        generations: get_generations(from.get_generations()?)?,
        min_in_sync: from.get_min_in_sync(),
        slices: get_slice_addresses(from.get_slices()?)?,
        view: Some(Generation(from.get_view())).filter(|g| g.0 != 0),
        rollback: get_rollback(from.get_rollback_to(), from.get_rollback_before()),
    })
}

pub(crate) fn put_refusal(refusal: &Refusal, mut to: wire::refusal::Builder<'_>) {
    to.set_code(refusal.code.name());
    to.set_sentence(&refusal.sentence);
    to.set_remedy(&refusal.remedy);
}

pub(crate) fn get_refusal(from: wire::refusal::Reader<'_>) -> Decoded<Refusal> {
    let name = get_text(from.get_code())?;
    let code = RefusalCode::ALL.into_iter().find(|c| c.name() == name);
    Ok(Refusal {
        code: code.ok_or_else(|| malformed("a refusal's code", name))?,
        sentence: get_text(from.get_sentence())?,
        remedy: get_text(from.get_remedy())?,
    })
}

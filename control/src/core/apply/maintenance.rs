//! Volumes that nobody uses and that are not whole, or whose snapshot is pending: a storaged brings
//! them up to date (ADR 0006). So it does with a volume of which a store has lost its slice: that this store
//! is not in sync is for whoever opens the stores to find.
//!
//! Whether that is wanted, and by which server, follows from the volume: [`Step::review`] derives it
//! after every command that may have changed it. A server is tied to no epoch before it asks; a
//! host that wants the volume ends it without being asked.

use super::super::command::{Change, Reply};
use super::super::model::{Maintenance, Phase, State, Volume};
use super::super::refusal::{Refusal, RefusalCode};
use super::Step;
use shardmap::canary::{Mechanism, stands};
use shardmap::units::{Nsid, ServerId, StoreId, VolumeId};
use std::collections::BTreeSet;

/// Whether a storaged may have the volume: nobody else does, or can, and its membership is sure.
fn is_eligible(volume: &Volume) -> bool {
    let idle = match volume.phase {
        Phase::Ready => volume.desired.is_none() && volume.attachment.is_none(),
        Phase::RollingBack => true,
        Phase::Creating | Phase::Deleting => false,
    };
    idle && volume.verified && !volume.open_access
}

/// Servers with an in-sync store of the volume: one of them reads at least that part without the
/// network.
fn candidates(state: &State, volume: &Volume) -> BTreeSet<ServerId> {
    let server_of = |store: &StoreId| state.stores.get(store).map(|s| s.server);
    volume.isr.iter().filter_map(server_of).collect()
}

/// What is wanted of the storageds for a volume, given what was. One that is at work stays until it
/// lets go.
pub(in crate::core) fn maintenance_of(
    state: &State,
    index: u64,
    (id, volume): (VolumeId, &Volume),
) -> Option<Maintenance> {
    let blank = volume.maintenance.is_some_and(|m| m.blank);
    wanted_of(state, index, (id, volume), blank)
}

/// The same, if a slice is known to be `blank`, or not.
fn wanted_of(
    state: &State,
    index: u64,
    (id, volume): (VolumeId, &Volume),
    blank: bool,
) -> Option<Maintenance> {
    let before = volume.maintenance;
    let known = |server| state.servers.contains_key(&server);
    let at_work = before.is_some_and(|m| m.epoch.is_some() && known(m.server));
    let whole = volume.out_of_sync().next().is_none()
        && !volume.has_unfinished_snapshot()
        && volume.rollback.is_none();
    if !is_eligible(volume) || (whole && !at_work && !blank) {
        return None;
    }
    let candidates = candidates(state, volume);
    if let Some(before) = before.filter(|m| at_work || candidates.contains(&m.server)) {
        return Some(Maintenance { blank, ..before });
    }
    // By volume, so that the work spreads.
    let spread = u128::from_le_bytes(id.0) % u128::try_from(candidates.len().max(1)).ok()?;
    let chosen = candidates.into_iter().nth(usize::try_from(spread).ok()?)?;
    Some(Maintenance {
        server: chosen,
        epoch: None,
        due_index: index,
        blank,
    })
}

impl Step<'_> {
    /// The volume was changed: [`Self::review_touched`] looks at it.
    pub(super) fn touch(&mut self, id: VolumeId) {
        self.touched.insert(id);
    }

    /// Volumes with a slice on the store, and views of them.
    pub(super) fn volumes_on(&self, store: StoreId) -> BTreeSet<VolumeId> {
        let slices = self.state.slices.values();
        let on_store = slices.filter(|s| s.store == store).map(|s| s.volume);
        let mut volumes: BTreeSet<VolumeId> = on_store.collect();
        let all = self.state.volumes.iter();
        let shows = |v: &Volume| v.origin.is_some_and(|o| volumes.contains(&o.volume));
        let views: Vec<VolumeId> = all.filter(|(_, v)| shows(v)).map(|(id, _)| *id).collect();
        volumes.extend(views);
        volumes
    }

    pub(super) fn review_touched(&mut self) {
        while let Some(id) = self.touched.pop_first() {
            self.review(id);
        }
    }

    fn review(&mut self, id: VolumeId) {
        let Some(volume) = self.state.volumes.get(&id) else {
            return;
        };
        let before = volume.maintenance;
        let now = maintenance_of(self.state, self.turn(), (id, volume));
        if before != now {
            self.set_maintenance(id, now);
        }
    }

    fn set_maintenance(&mut self, id: VolumeId, to: Option<Maintenance>) {
        let volume = self.state.volumes.get_mut(&id).expect("just read");
        let before = std::mem::replace(&mut volume.maintenance, to);
        let at_work = before.and_then(|m| m.epoch);
        if at_work.is_some() && to.and_then(|m| m.epoch) != at_work {
            self.holder_went(id);
        }
        for concerned in [before, to].into_iter().flatten() {
            self.wake_server(concerned.server);
        }
    }

    /// A store has come back: what it was missing for may succeed now.
    pub(super) fn retry_maintenance(&mut self, store: StoreId) {
        for id in self.volumes_on(store) {
            self.hurry_maintenance(id);
        }
    }

    /// Whoever brings the volume up to date, or should, has a reason to try at once.
    pub(super) fn hurry_maintenance(&mut self, id: VolumeId) {
        let waiting = self.state.volumes.get(&id).and_then(|v| v.maintenance);
        if let Some(waiting) = waiting {
            let due_index = self.turn();
            let again = Maintenance {
                due_index,
                ..waiting
            };
            self.set_maintenance(id, Some(again));
        }
        self.touch(id);
    }

    /// A storaged had to make anew what its store had of a volume. A host that has the volume sees that by
    /// itself; so does one that attaches it.
    pub(super) fn report_blank_slice(
        &mut self,
        store: StoreId,
        nsid: Nsid,
    ) -> Result<Reply, Refusal> {
        let slice = self.state.slices.get(&nsid).filter(|s| s.store == store);
        let Some(slice) = slice else {
            return Err(Refusal::not_found("slice", format!("{nsid} on {store}")));
        };
        let (id, due_index) = (slice.volume, self.turn());
        let volume = &self.state.volumes[&id];
        let seen = |m: Maintenance| m.epoch.is_some() || m.blank;
        let counts = slice.confirmed && volume.isr.contains(&store);
        let news = counts && !volume.maintenance.is_some_and(seen);
        let wanted = wanted_of(self.state, due_index, (id, volume), true);
        if let Some(wanted) = wanted.filter(|_| news && stands(Mechanism::BlankReport)) {
            self.say(Change::SliceBlank(id, store));
            self.set_maintenance(
                id,
                Some(Maintenance {
                    due_index,
                    ..wanted
                }),
            );
        }
        Ok(Reply::Done)
    }

    /// A storaged takes the volume to bring it up to date.
    pub(super) fn maintain(&mut self, id: VolumeId, server: ServerId) -> Result<Reply, Refusal> {
        let lineage = self.state.cluster.as_ref().map_or(0, |c| c.lineage);
        let volume = self.volume(id)?;
        let asked = volume.maintenance.filter(|m| m.server == server);
        let Some(maintenance) = asked else {
            let name = volume.name.clone();
            return Err(Refusal::new(
                RefusalCode::NotDesired,
                format!(
                    "volume {name} is not to be resilvered by {}",
                    self.state.server_name(server)
                ),
                "wait for the next change of what this server should do",
            ));
        };
        let epoch = volume.next_epoch(lineage);
        volume.epoch = epoch;
        volume.maintenance = Some(Maintenance {
            epoch: Some(epoch),
            ..maintenance
        });
        self.say(Change::MaintenanceBegan(id, server, epoch));
        self.holder_came(id, epoch);
        Ok(Reply::Granted(Box::new(self.grant(id))))
    }

    /// Lets another server bring the volume up to date; the one before is fenced by the epoch that
    /// the other will ask for.
    pub(super) fn assign_maintenance(
        &mut self,
        id: VolumeId,
        server: ServerId,
    ) -> Result<Reply, Refusal> {
        let due_index = self.turn();
        let Some(volume) = self.state.volumes.get(&id) else {
            return Err(Refusal::not_found("volume", id));
        };
        let Some(before) = volume.maintenance.filter(|m| m.server != server) else {
            return Ok(Reply::Done);
        };
        if !candidates(self.state, volume).contains(&server) {
            return Err(Refusal::invalid(
                format!(
                    "{} has no in-sync store of volume {}",
                    self.state.server_name(server),
                    volume.name
                ),
                "name a server of one of its in-sync stores",
            ));
        }
        let to = Maintenance {
            server,
            epoch: None,
            due_index,
            blank: before.blank,
        };
        self.set_maintenance(id, Some(to));
        if before.epoch.is_some() {
            self.say(Change::MaintenanceEnded(id, before.server));
        }
        self.touch(id);
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod test;

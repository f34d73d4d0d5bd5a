//! What the leader's memory adds to maintenance (ADR 0006): who can do it now. The state knows who
//! should; only liveness tells whether it makes sense to begin, and whether another one should.

use super::node::Node;
use super::views::Scene;
use crate::api::{Liveness, StoreHealth};
use crate::core::{Command, Refusal, RefusalCode, Volume};
use shardmap::units::{ServerId, StoreId, VolumeId};
use std::rc::Rc;
use std::time::Duration;

/// How often volumes are looked for whose storaged is gone: short beside the time until a silent
/// server counts as offline.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// Most volumes that are given to other servers in one look.
const ASSIGNED_PER_LOOK: usize = 64;

impl Scene<'_> {
    /// Refuses a storaged that could only wait: an in-sync store does not report, or nothing that
    /// is out of sync does and no snapshot is pending. An epoch and two events per attempt would be for nothing.
    pub(super) fn may_maintain(&self, id: VolumeId) -> Result<(), Refusal> {
        let Some(volume) = self.state.volumes.get(&id) else {
            return Ok(()); // refused by the state machine
        };
        if volume.rollback.is_some() {
            return Ok(()); // somebody waits for it: it goes on without members that are away
        }
        let not_now = |why: String| {
            let sentence = format!("volume {}: {why}", volume.name);
            let remedy = "start the storaged that is missing; it is tried again by itself";
            Err(Refusal::new(RefusalCode::NotReady, sentence, remedy))
        };
        let away = volume.isr.iter().find(|store| !self.is_there(**store));
        if let Some(away) = away {
            let name = self.state.store_name(*away);
            return not_now(format!("in-sync {name} does not report"));
        }
        let mut out = volume.out_of_sync().peekable();
        let only_resilver = !volume.has_unfinished_snapshot();
        if only_resilver && out.peek().is_some() && !out.any(|store| self.is_there(store)) {
            return not_now("no store that is out of sync reports".into());
        }
        Ok(())
    }

    /// Not known to be silent or faulted.
    fn is_there(&self, store: StoreId) -> bool {
        let server = self.state.stores.get(&store).map(|s| s.server);
        let silent = server.is_none_or(|s| self.server_liveness(s) >= Liveness::Suspect);
        let report = self.health.stores().get(&store).map(|r| r.health);
        !silent && report != Some(StoreHealth::Faulted)
    }

    /// Volumes whose storaged is offline while another could do it, with that other.
    fn forsaken(&self) -> Vec<(VolumeId, ServerId)> {
        let given = self.state.volumes.iter().filter_map(|(id, volume)| {
            let server = volume.maintenance?.server;
            if self.server_liveness(server) != Liveness::Offline {
                return None;
            }
            Some((*id, self.stand_in(volume)?))
        });
        given.take(ASSIGNED_PER_LOOK).collect()
    }

    /// The first server that reports and has an in-sync store.
    fn stand_in(&self, volume: &Volume) -> Option<ServerId> {
        let stores = volume.isr.iter();
        let mut servers = stores.filter_map(|s| Some(self.state.stores.get(s)?.server));
        servers.find(|s| self.server_liveness(*s) == Liveness::Online)
    }
}

/// Gives volumes whose storaged is gone to others.
pub(super) async fn reassign(node: &Rc<Node>) {
    let given = node.scene(|scene| scene.forsaken());
    for (volume, server) in given {
        let assign = Command::AssignMaintenance { volume, server };
        if !node.propose(assign).await {
            return; // no majority: looked for again
        }
    }
}

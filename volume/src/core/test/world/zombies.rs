//! Clients that were superseded and do not know it yet: what is above them lives on, too.

use super::{Client, Happening, MS, World};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Zombies {
    /// By life.
    living: BTreeMap<u64, Client>,
    /// The client that steps is one of them.
    stepping: bool,
}

impl Zombies {
    pub(super) const fn steps(&self) -> bool {
        self.stepping
    }
}

impl Happening {
    /// Whose affair it is.
    const fn client(&self) -> Option<u64> {
        match self {
            Self::ToClient { client, .. }
            | Self::PathUp { client, .. }
            | Self::Alarm { client, .. }
            | Self::AskMetad { client, .. }
            | Self::MetadSays { client, .. }
            | Self::Generations { client, .. }
            | Self::Snapshot { client, .. }
            | Self::Reissue(client) => Some(*client),
            Self::ToStore(_)
            | Self::StoreStarts(_)
            | Self::DropDeleted(_)
            | Self::OthersHold(_)
            | Self::Attach
            | Self::HostTurn
            | Self::Fault => None,
        }
    }
}

impl World {
    pub(super) fn happen_to_whom_it_concerns(&mut self, what: Happening) -> Result<(), String> {
        match what.client() {
            Some(life) => self.as_client(life, |world| world.happen(what)),
            None => self.happen(what),
        }
    }

    /// Does something as a client that may have been superseded.
    fn as_client(
        &mut self,
        life: u64,
        act: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(zombie) = self.zombies.living.remove(&life) else {
            return act(self);
        };
        let present = self.client.replace(zombie);
        self.zombies.stepping = true;
        let result = act(self);
        self.zombies.stepping = false;
        if let Some(zombie) = std::mem::replace(&mut self.client, present) {
            self.zombies.living.insert(life, zombie);
        }
        result
    }

    pub(super) fn each_zombie(
        &mut self,
        mut act: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let lives: Vec<_> = self.zombies.living.keys().copied().collect();
        lives
            .into_iter()
            .try_for_each(|life| self.as_client(life, &mut act))
    }

    pub(super) fn may_be_superseded(&self) -> bool {
        self.plan.zombies && self.client.as_ref().is_some_and(|c| c.attached)
    }

    /// So that the one before goes on for a while, on some stores longer than on others.
    pub(super) fn connect_pause(&mut self) -> u64 {
        if self.plan.zombies {
            self.rng.below(20 * MS)
        } else {
            0
        }
    }

    /// The volume is forced away: the next client attaches while this one goes on.
    pub(super) fn supersede(&mut self) -> Result<(), String> {
        let client = self.client.take().expect("it serves");
        note!(self, "fault: client {} is superseded", client.life);
        self.zombies.living.insert(client.life, client);
        self.host_is_gone();
        self.after(0, Happening::Attach);
        self.check_survivors("when the client was superseded")
    }

    /// The host of one of them asks for something, if it waits for nothing.
    pub(super) fn zombie_turn(&mut self) -> Result<(), String> {
        let idle = |(life, c): (&u64, &Client)| c.calls.is_empty().then_some(*life);
        let idle: Vec<_> = self.zombies.living.iter().filter_map(idle).collect();
        let Some(life) = idle.last() else {
            return Ok(());
        };
        self.as_client(*life, Self::host_call)
    }
}

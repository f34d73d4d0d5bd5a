//! What goes wrong, and when.

use super::{HOT, Happening, MS, SHARD_BLOCKS, World};
use crate::core::{Members, Position};
use std::collections::BTreeSet;

impl World {
    pub(super) fn fault(&mut self) -> Result<(), String> {
        // A storm in which nothing can ever finish ends too.
        self.calm |= self.now > 60_000 * MS;
        if self.calm {
            return Ok(());
        }
        let pause = 1 + self.rng.below(self.plan.fault_ms * 2 * MS);
        self.after(pause, Happening::Fault);
        let at = Position::new(usize::try_from(self.rng.below(self.stores.len() as u64)).unwrap());
        match self.rng.below(20) {
            0..=5 => {
                let pause = self.rng.below(if self.rng.0.is_multiple_of(2) {
                    30
                } else {
                    450
                }) * MS;
                note!(self, "fault: path to {at} breaks for {} ms", pause / MS);
                self.break_path(at, pause)
            }
            8..=10 if self.may_be_superseded() => self.supersede(),
            6..=10 => self.stop_store(at, false),
            11 | 12 => self.stop_store(at, true),
            13 => {
                let down = self.rng.below(500) * MS;
                note!(self, "fault: metad away for {} ms", down / MS);
                self.metad.down_until = self.now + down;
                Ok(())
            }
            14 if self.plan.restarts && self.client.is_some() => {
                note!(self, "fault: client is killed and started again");
                self.client_restarts()
            }
            18 if self.plan.restores && self.metad.verified => {
                self.metad.backup = (self.metad.seq, self.metad.isr);
                Ok(())
            }
            19 if self.plan.restores && self.rng.one_in(3) => {
                self.restore_metad();
                Ok(())
            }
            15 if self.plan.client_crashes && self.client.is_some() => {
                note!(self, "fault: client dies");
                self.client_dies()
            }
            16 if self.plan.client_crashes => {
                note!(self, "fault: power cut of all stores and the client");
                (0..self.stores.len())
                    .try_for_each(|s| self.stop_store(Position::new(s), false))?;
                if self.client.is_some() {
                    self.client_dies()
                } else {
                    Ok(())
                }
            }
            17 if self.plan.disk_swaps => self.swap_disk(at),
            _ => Ok(()),
        }
    }

    fn stop_store(&mut self, at: Position, clean: bool) -> Result<(), String> {
        let store = &mut self.stores[at.index()];
        if !store.up {
            return Ok(());
        }
        if clean {
            store.clean_stop();
        } else {
            store.crash(&mut self.rng);
            self.record_crash(at);
            self.shard_crash(at);
        }
        note!(self, "fault: store {at} stops, clean {clean}");
        self.schedule_start(at)
    }

    fn schedule_start(&mut self, at: Position) -> Result<(), String> {
        let down = self.rng.below(if self.rng.0.is_multiple_of(3) {
            40
        } else {
            700
        }) * MS;
        self.after(down, Happening::StoreStarts(at));
        self.break_path(at, 5 * MS)?;
        self.each_zombie(|world| world.break_path(at, 5 * MS))
    }

    /// Only where another recorded member is whole: the fault model ends with the last medium.
    fn swap_disk(&mut self, at: Position) -> Result<(), String> {
        let safe = self.metad.isr.count() == 0 || {
            let others = self.metad.isr.without(at);
            let pending = self
                .client
                .as_ref()
                .map_or(others, |c| c.machine.read_set());
            let whole: Members = others
                .and(pending)
                .iter()
                .filter(|p| !self.stores[p.index()].incomplete)
                .collect();
            let shards: BTreeSet<u64> = HOT.iter().map(|b| b / u64::from(SHARD_BLOCKS)).collect();
            shards.iter().all(|s| {
                !self
                    .holders(s * u64::from(SHARD_BLOCKS))
                    .and(whole)
                    .is_empty()
            })
        };
        if !safe || !self.stores[at.index()].up {
            return Ok(());
        }
        note!(self, "fault: the disk of store {at} is swapped");
        self.stores[at.index()].swap_disk();
        self.record_loss(at);
        self.shard_loss(at);
        self.schedule_start(at)
    }
}

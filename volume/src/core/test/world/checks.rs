//! What must be true of the world: of the stores that are left, and when all is over.

use super::World;
use crate::core::Members;
use crate::core::state::homes_of;
use shardmap::units::Lba;
use std::collections::BTreeSet;

impl World {
    pub(super) fn holders(&self, block: u64) -> Members {
        let shard = self.map.shape.shard_of(Lba(block));
        homes_of(&self.map, shard)
    }

    /// Whatever a power cut leaves on a recorded member must be legal. Model: `DurOK`.
    pub(super) fn check_survivors(&self, when: &str) -> Result<(), String> {
        if !self.metad.verified {
            return Ok(());
        }
        for block in self.oracle.touched() {
            for at in self.holders(block).and(self.metad.isr).iter() {
                let store = &self.stores[at.index()];
                if store.incomplete {
                    continue;
                }
                for value in store.survivors(block, store.generations.head) {
                    let legal = self.oracle.may_survive(block, value);
                    legal.map_err(|e| format!("{when}, store {at}: {e}"))?;
                }
            }
        }
        self.check_snapshots(when)
    }

    pub(super) fn final_check(&mut self) -> Result<(), String> {
        if self.lost_volume {
            return Ok(());
        }
        let issued = self.oracle.stamp();
        for block in self.oracle.touched() {
            let homes = self.holders(block);
            let values: BTreeSet<u64> = homes
                .iter()
                .map(|at| self.stores[at.index()].value(block))
                .collect();
            if values.len() != 1 {
                return Err(format!(
                    "block {block} differs between replicas: {values:?}"
                ));
            }
            self.oracle.read(block, *values.first().unwrap(), issued)?;
        }
        self.check_survivors("at the end")?;
        self.check_generations_at_end()?;
        for (at, store) in self.stores.iter().enumerate() {
            if !store.marks.is_empty() {
                return Err(format!("store {at} keeps marks after a clean detach"));
            }
        }
        Ok(())
    }
}

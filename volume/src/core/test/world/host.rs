//! What the host asks, and what it hears.

use super::{HOT, Happening, HostCall, MS, World};
use crate::core::test::store::blocks;
use crate::core::{Event, HostFault, HostWhat, OpId};
use shardmap::units::{BlockRange, Blocks, Lba};

impl World {
    pub(super) fn host_turn(&mut self) -> Result<(), String> {
        let pause = 50_000 + self.rng.below(4_000_000);
        let one = self.is_recording();
        let ready = self
            .client
            .as_ref()
            .is_some_and(|c| c.attached && c.calls.len() < if one { 1 } else { 8 });
        if self.ops_left == 0 {
            self.calm = true;
            return Ok(());
        }
        self.after(pause, Happening::HostTurn);
        if self.plan.zombies && self.rng.one_in(2) {
            return self.zombie_turn();
        }
        if self.plan.snapshots && !self.calm {
            self.snapshot_turn();
        }
        if ready && !self.quiet {
            self.ops_left -= 1;
            return self.host_call();
        }
        Ok(())
    }

    pub(super) fn host_call(&mut self) -> Result<(), String> {
        let hot = HOT[usize::try_from(self.rng.below(HOT.len() as u64)).unwrap()];
        let start = hot + self.rng.below(6);
        let count = 1 + u32::try_from(self.rng.below(6)).unwrap();
        let (mut range, mut fua) = (
            BlockRange::new(Lba(start), Blocks(count)).unwrap(),
            self.rng.one_in(4),
        );
        let mut draw = self.rng.below(20);
        if self.is_recording() {
            range = BlockRange::new(Lba(0), Blocks(1)).unwrap();
            (draw, fua) = (draw.min(17), false);
        }
        let what = match draw {
            0..=7 => HostWhat::Write { range, fua },
            8..=14 => HostWhat::Read(range),
            15..=17 => HostWhat::Flush,
            _ => HostWhat::Zero {
                range,
                deallocate: fua,
                fua,
            },
        };
        let issued = self.oracle.stamp();
        let data: Vec<u64> = match what {
            HostWhat::Write { .. } => blocks(range).map(|_| self.mint()).collect(),
            HostWhat::Read(_) => vec![u64::MAX; range.blocks().0 as usize],
            HostWhat::Zero { .. } | HostWhat::Flush | HostWhat::Changes { .. } => {
                vec![0; count as usize]
            }
        };
        if matches!(what, HostWhat::Write { .. } | HostWhat::Zero { .. }) {
            for (block, value) in blocks(range).zip(&data) {
                self.oracle.write_issued(block, *value, issued);
            }
        }
        self.next_op += 1;
        let op = OpId(self.next_op);
        note!(self, "host {op:?} {what:?} {data:?}");
        let client = self.client.as_mut().expect("ready");
        client.calls.insert(op, HostCall { what, issued, data });
        self.step(Event::Host { op, what })
    }

    pub(super) fn mint(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    pub(super) fn complete(
        &mut self,
        op: OpId,
        result: Result<(), HostFault>,
    ) -> Result<(), String> {
        let client = self.client.as_mut().expect("it completes");
        let call = client.calls.remove(&op).expect("completed once");
        note!(self, "done {op:?} {result:?}");
        self.record_done(call.what, call.data.first().copied(), result.is_ok());
        self.shard_done(call.what, call.data.first().copied(), result.is_ok());
        if self.zombies.steps() {
            return Ok(()); // the model judges it
        }
        let now = self.oracle.stamp();
        if result.is_err() {
            self.seen.host_faults += 1;
        }
        match (call.what, result) {
            (HostWhat::Read(range), Ok(())) => {
                self.seen.reads += 1;
                for (block, value) in blocks(range).zip(call.data) {
                    self.oracle.read(block, value, call.issued)?;
                }
            }
            (HostWhat::Write { range, fua } | HostWhat::Zero { range, fua, .. }, Ok(())) => {
                for block in blocks(range) {
                    self.oracle.write_completed(block, call.issued, now, fua);
                }
                if fua {
                    return self.check_survivors("after a durable write");
                }
            }
            (HostWhat::Write { range, .. } | HostWhat::Zero { range, .. }, Err(_)) => {
                for block in blocks(range) {
                    self.oracle.write_failed(block, call.issued, now);
                }
            }
            (HostWhat::Flush, Ok(())) => {
                self.oracle.flush_completed(call.issued);
                return self.check_survivors("after a flush");
            }
            (HostWhat::Read(_) | HostWhat::Flush, Err(_)) => {}
            (HostWhat::Changes { .. }, _) => unreachable!("asked of views only"),
        }
        Ok(())
    }
}

//! A command arrives: who may, where, and how much.

use super::facts::StoreFault;
use super::generations::Change;
use super::io::{Command, CommandId, Effect, Outbox};
use super::{Core, Kind, Phase};
use crate::limits::{COMMANDS_MAX, IO_BLOCKS_MAX, ZERO_BLOCKS_MAX};
use shardmap::units::{BlockRange, Generation, Nsid};
use smallvec::SmallVec;

impl Core {
    pub(super) fn on_submitted(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        association: u64,
        command: Command,
        out: &mut Outbox,
    ) {
        let refused = match &self.phase {
            Phase::Serving if self.active_count >= COMMANDS_MAX => {
                Some(StoreFault::Busy { max: COMMANDS_MAX })
            }
            Phase::Serving => None,
            Phase::Poisoned(fault) => Some(fault.clone()),
            Phase::Opening(_) | Phase::Stopping(_) | Phase::Over => Some(StoreFault::Stopping),
        };
        let result = match refused {
            Some(fault) => Err(fault),
            None => self.admit(id, nsid, association, command, out),
        };
        if let Err(fault) = result {
            out.push(Effect::Answer {
                command: id,
                result: Err(fault),
            });
        }
    }

    fn admit(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        association: u64,
        command: Command,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        match command {
            Command::Create { spec, incomplete } => self.create_slice(id, spec, incomplete, out),
            Command::Remove => self.remove_slice(id, nsid, out),
            Command::AssociationGone => self.association_gone(id, association, out),
            Command::Open { epoch, volume } => {
                self.open_session(id, nsid, association, (epoch, volume), out)
            }
            Command::Close => self.close_session(id, nsid, association, out),
            Command::State => self.read_state(id, nsid, out),
            Command::DropGeneration(generation) => {
                self.change_generations(id, nsid, Change::Drop(generation.0), out)
            }
            Command::ReadGenerations => self.read_generations(id, nsid, out),
            Command::ReadSpace { from } => self.read_space(id, nsid, from, out),
            Command::Grow { device_bytes } => self.grow(id, device_bytes),
            Command::Scrub => {
                self.scrub(id, out);
                Ok(())
            }
            Command::ReadReplica { lba, generation } => {
                self.read_replica(id, nsid, (lba, generation), out)
            }
            Command::Heal {
                lba,
                generation,
                sum,
            } => self.heal(id, nsid, (lba, generation, sum), out),
            Command::Diff {
                after,
                upto,
                from,
                regions,
            } => self.diff(id, nsid, (after, upto, false), (from, regions), out),
            Command::Read { .. }
            | Command::Compare { .. }
            | Command::Write { .. }
            | Command::Zero { .. }
            | Command::Flush
            | Command::Stamp(_)
            | Command::Complete(_)
            | Command::SetIncomplete
            | Command::Tick
            | Command::Stable { .. }
            | Command::AddMarks(_)
            | Command::ReadMarks { .. }
            | Command::ReadPresence { .. }
            | Command::BeginGeneration(_)
            | Command::CompleteGeneration(_) => {
                let slice = self
                    .slices
                    .get(&nsid.0)
                    .ok_or(StoreFault::UnknownSlice { nsid })?;
                if !slice.is_of_a_snapshot(&command) {
                    slice.admit(association)?;
                }
                self.admit_with_session(id, nsid, command, out)
            }
        }
    }

    fn admit_with_session(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        command: Command,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        match command {
            Command::Read { range, generation } => {
                self.admit_read(id, nsid, (range, generation), false, out)
            }
            Command::Compare { range, generation } => {
                self.admit_read(id, nsid, (range, generation), true, out)
            }
            Command::Write {
                range,
                fua,
                generation,
            } => self.admit_write(id, nsid, range, (fua, generation), out),
            Command::Zero {
                range,
                deallocate,
                fua,
                generation,
            } => {
                let slice = &self.slices[&nsid.0];
                slice.check_range(range, ZERO_BLOCKS_MAX)?;
                let generation = slice.check_writable(generation)?;
                self.admit_zero(id, nsid, (range, generation), (deallocate, fua), out)
            }
            Command::Flush => {
                self.activate(id, nsid.0, Kind::Flush);
                self.join_flush(id, out);
                Ok(())
            }
            Command::Stamp(stamp) => self.stamp(id, nsid, stamp, false),
            Command::Complete(stamp) => self.stamp(id, nsid, stamp, true),
            Command::SetIncomplete => self.set_incomplete(id, nsid),
            Command::Tick => self.tick(id, nsid, out),
            Command::Stable {
                tick,
                idle_ticks,
                keep_max,
            } => self.stable(id, nsid, (tick, idle_ticks, keep_max), out),
            Command::AddMarks(regions) => self.add_marks(id, nsid, &regions, out),
            Command::ReadMarks { from } => self.read_marks(id, nsid, from, out),
            Command::ReadPresence {
                from,
                regions,
                after,
                upto,
                shown,
            } => self.diff(id, nsid, (after, upto, shown), (from, regions), out),
            Command::BeginGeneration(generation) => {
                self.change_generations(id, nsid, Change::Begin(generation.0), out)
            }
            Command::CompleteGeneration(generation) => {
                self.change_generations(id, nsid, Change::Complete(generation.0), out)
            }
            Command::Create { .. }
            | Command::Remove
            | Command::AssociationGone
            | Command::Open { .. }
            | Command::Close
            | Command::State
            | Command::DropGeneration(_)
            | Command::ReadGenerations
            | Command::ReadSpace { .. }
            | Command::Scrub
            | Command::Grow { .. }
            | Command::ReadReplica { .. }
            | Command::Heal { .. }
            | Command::Diff { .. } => unreachable!("needs no session"),
        }
    }

    fn admit_read(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        (range, generation): (BlockRange, Generation),
        compare: bool,
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = &self.slices[&nsid.0];
        slice.check_range(range, IO_BLOCKS_MAX)?;
        if slice.incomplete && !compare {
            return Err(StoreFault::Incomplete { nsid });
        }
        let generation = slice.check_readable(generation)?;
        self.activate(id, nsid.0, Kind::Read { compare });
        self.start_read(id, nsid.0, (range, generation), out);
        Ok(())
    }

    fn admit_write(
        &mut self,
        id: CommandId,
        nsid: Nsid,
        range: BlockRange,
        (fua, generation): (bool, Generation),
        out: &mut Outbox,
    ) -> Result<(), StoreFault> {
        let slice = &self.slices[&nsid.0];
        slice.check_range(range, IO_BLOCKS_MAX)?;
        let generation = slice.check_writable(generation)?;
        let regions: SmallVec<[u32; 2]> = range.regions().map(|r| r.0).collect();
        let wait = self.require_marks(nsid.0, &regions)?;
        let first = SmallVec::new();
        self.activate(
            id,
            nsid.0,
            Kind::Write {
                range,
                generation,
                fua,
                durable: false,
                first,
            },
        );
        self.begin_after(id, wait, out);
        Ok(())
    }
}

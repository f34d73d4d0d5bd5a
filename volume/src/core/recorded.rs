//! Single commands as trace events, for runs that are followed in the models.

use super::copy::CopyFor;
use super::event::{Answer, Command, CommandFacts, CommandKind, HostWhat, TraceEvent};
use super::state::{Outbox, Outstanding, Purpose, Replicator};
use crate::limits::PRESENCE_REGIONS;
use shardmap::units::{BlockRange, Blocks, Lba, REGION_BLOCKS, RegionIndex};

impl Replicator {
    /// The operation that a write belongs to may be in its handler's hands: the command says it all.
    pub(super) fn record_sent(&self, sent: &Outstanding, command: &Command, out: &mut Outbox) {
        if !self.config.record_commands {
            return;
        }
        let facts = if let (
            Purpose::HostWrite { op, .. },
            Command::Write { range, fua, .. } | Command::Zero { range, fua, .. },
        ) = (sent.purpose, command)
        {
            Some(CommandFacts {
                store: self.leg(sent.to).store,
                what: CommandKind::Write,
                range: Some(*range),
                durable: *fua,
                request: Some(op.0),
            })
        } else {
            self.facts_of(sent)
        };
        if let Some(facts) = facts {
            self.trace(TraceEvent::Sent(facts), out);
        }
    }

    /// Marks come in parts; the last one counts.
    pub(super) fn record_heard(&self, command: &Outstanding, answer: &Answer, out: &mut Outbox) {
        if let Some(facts) = self.facts_of(command)
            && !matches!(answer, Answer::Marks(_, Some(_)))
        {
            self.trace(TraceEvent::Heard(facts), out);
        }
    }

    fn facts_of(&self, command: &Outstanding) -> Option<CommandFacts> {
        if !self.config.record_commands {
            return None;
        }
        let (mut range, mut durable, mut request) = (None, false, None);
        let what = match command.purpose {
            Purpose::HostWrite { op, piece } => {
                let host = self.ops.get(&op)?;
                range = Some(host.pieces.get(piece)?.range);
                durable = match host.what {
                    HostWhat::Write { fua, .. } | HostWhat::Zero { fua, .. } => fua,
                    HostWhat::Read(_) | HostWhat::Flush | HostWhat::Changes { .. } => false,
                };
                request = Some(op.0);
                CommandKind::Write
            }
            Purpose::Flush => CommandKind::Flush,
            Purpose::ResilverMarks => CommandKind::Marks,
            Purpose::ResilverPresence(from) => {
                range = self.presence_range(from);
                CommandKind::Presence
            }
            Purpose::CopyRead(id) | Purpose::CopyWrite(id) => {
                let copy = self.copies.get(&id)?;
                range = Some(copy.range);
                match (command.purpose, copy.purpose) {
                    (Purpose::CopyRead(_), CopyFor::Resilver) => CommandKind::CopyRead,
                    (Purpose::CopyWrite(_), CopyFor::Resilver) => CommandKind::CopyWrite,
                    (Purpose::CopyWrite(_), CopyFor::Reconcile) => {
                        durable = true;
                        CommandKind::ReconcileWrite
                    }
                    (_, CopyFor::Reconcile | CopyFor::Repair | CopyFor::CatchUp) => return None,
                    (_, CopyFor::Resilver) => unreachable!("a copy reads or writes"),
                }
            }
            Purpose::ResilverComplete => CommandKind::Complete,
            Purpose::Stable(_) => CommandKind::Stable,
            Purpose::Open
            | Purpose::State
            | Purpose::Generations
            | Purpose::Hear
            | Purpose::AttachMarks
            | Purpose::Close
            | Purpose::Stamp(_)
            | Purpose::HostRead { .. }
            | Purpose::Hash(..)
            | Purpose::ResilverAddMarks
            | Purpose::ResilverSeal(_)
            | Purpose::Begin(_)
            | Purpose::Seal(_)
            | Purpose::CatchUpMarks
            | Purpose::CatchUpBegin(_)
            | Purpose::CatchUpPresence(_)
            | Purpose::CatchUpSeal(_)
            | Purpose::Tick(_) => return None,
        };
        Some(CommandFacts {
            store: self.leg(command.to).store,
            what,
            range,
            durable,
            request,
        })
    }

    /// Blocks that an answer about presence may speak of.
    fn presence_range(&self, from: RegionIndex) -> Option<BlockRange> {
        let start = u64::from(from.0) * u64::from(REGION_BLOCKS);
        let most = u64::from(PRESENCE_REGIONS) * u64::from(REGION_BLOCKS);
        let per_shard = u64::from(self.map.shape.shard_blocks);
        let shard_end = (start / per_shard + 1) * per_shard;
        let blocks = u32::try_from((shard_end - start).min(most)).expect("regions of one command");
        BlockRange::new(Lba(start), Blocks(blocks))
    }
}

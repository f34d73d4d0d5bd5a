//! Writes that fail in a world, and what may be read afterwards; which crash states there are.

use super::model::written;
use super::world::{Outstanding, Pending, World};
use crate::core::io::{Command, Event, IoId};
use std::collections::BTreeMap;

impl World {
    /// Blocks that would be asked about if power were lost now.
    pub(super) fn unsure(&self) -> usize {
        let in_flight = self.pending.values().map(|pending| match pending {
            Pending::Write { blocks, .. } => blocks.len(),
            Pending::Read { .. }
            | Pending::MetaRead { .. }
            | Pending::Copy { .. }
            | Pending::Flush { .. }
            | Pending::Discard { .. } => 0,
        });
        self.device.completed() + in_flight.sum::<usize>()
    }

    /// Changes when there are other crash states, or when other ones are legal.
    pub(super) fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let writes = self
            .pending
            .iter()
            .filter(|(_, p)| matches!(p, Pending::Write { .. }));
        let mut hasher = DefaultHasher::new();
        writes.for_each(|(io, _)| io.hash(&mut hasher));
        (self.device.completed(), self.version, self.answers.len()).hash(&mut hasher);
        hasher.finish()
    }

    /// A write of data that is under way fails; of each block the device has what was there, what was
    /// to be, or something else. Goes on until that is answered: a crash before is one in the middle of
    /// a write, which the medium takes whole or not at all.
    pub(super) fn tear(&mut self, nth: usize, mut coin: impl FnMut() -> bool) -> bool {
        let writes = self.order.iter().filter(|io| {
            let pending = &self.pending[io];
            matches!(pending, Pending::Write { data: true, .. })
        });
        let writes: Vec<u32> = writes.copied().collect();
        if writes.is_empty() {
            return false;
        }
        let io = writes[nth % writes.len()];
        let Some(Pending::Write { blocks, .. }) = self.pending.get(&io).cloned() else {
            unreachable!("just seen")
        };
        let mut failed = 0;
        for (block, content) in blocks {
            failed = written(&content).2;
            if coin() {
                let torn = b"torn".to_vec();
                self.device
                    .write(block, if coin() { content } else { torn }, false);
            }
        }
        self.order.retain(|other| *other != io);
        self.pending.remove(&io);
        let of_command = |out: &Outstanding| matches!(out.command, Command::Write { .. });
        let commands = self.outstanding.iter().filter(|(_, out)| of_command(out));
        // Other parts of it may have been written.
        for (_, out) in commands.clone().filter(|(_, out)| out.version == failed) {
            if let Command::Write { range, .. } = &out.command {
                let blocks = range.start().0..range.end().0;
                self.torn
                    .extend(blocks.map(|lba| ((out.nsid, lba), failed)));
            }
        }
        let versions: BTreeMap<u64, u32> = commands.map(|(id, out)| (out.version, *id)).collect();
        let (io, result) = (IoId(io), Err(5));
        self.step(Event::IoDone { io, result });
        while self.outstanding.contains_key(&versions[&failed]) {
            assert!(
                self.complete(usize::from(coin())),
                "the failure is answered"
            );
        }
        true
    }

    /// What was written and made durable since a write failed is there for good.
    pub(super) fn mend(&mut self, nsid: u32, covers: &BTreeMap<(u32, u64), u64>) {
        let durable = |lba: &u64| {
            let of_block = covers.iter().filter(|((_, l), _)| l == lba);
            of_block.map(|(_, version)| *version).max().unwrap_or(0)
        };
        self.torn
            .retain(|(n, lba), failed| *n != nsid || durable(lba) < *failed);
    }

    /// Whether a read of a block may fail, perhaps after a crash.
    pub(super) fn may_be_torn(
        &self,
        (nsid, generation): (u32, u32),
        lba: u64,
        crashed: bool,
    ) -> bool {
        let failed = self.torn.get(&(nsid, lba));
        failed.is_some_and(|f| crashed || self.model.newest((nsid, generation), lba) < *f)
    }
}

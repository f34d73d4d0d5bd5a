//! Checksums in the course of things: reads are compared with them before they are answered, writes
//! change them, and they are on the medium before a mark goes or a merge names what it copied.

use super::checksums::{Asker, Check, Checksums, Span, Then, Verdict};
use super::facts::StoreFault;
use super::failed::ERRNO;
use super::format::checksums::{UNKNOWN, decode};
use super::format::{Corrupt, geometry::Geometry};
use super::io::{CommandId, Effect, IoKind, Outbox};
use super::{Core, Kind, Phase};
use crate::limits::{CHECKSUM_BLOCKS_RANGE, CHECKSUM_EXTENTS_PER_BLOCK_IN_MEMORY};
use shardmap::units::{Lba, Nsid, REGION_BLOCKS};

/// Most checksum blocks in memory.
pub(super) fn checksums_limit(geometry: &Geometry) -> usize {
    let wanted = geometry.extents() / CHECKSUM_EXTENTS_PER_BLOCK_IN_MEMORY;
    let (least, most) = CHECKSUM_BLOCKS_RANGE.into_inner();
    (wanted as usize).clamp(least, most)
}

/// The checksums of a store whose superblock was read; `None` if it keeps none.
pub(super) fn checksums_of(geometry: &Geometry) -> Option<Checksums> {
    let limit = checksums_limit(geometry);
    geometry.has_checksums().then(|| Checksums::new(limit))
}

impl Core {
    /// Whether the shell has to hand in the checksums of what is read and written.
    pub const fn has_checksums(&self) -> bool {
        self.checksums.is_some()
    }

    pub(super) fn span(&self, offset_bytes: u64, blocks: u32) -> Span {
        let first = self.sb.geometry.data_block(offset_bytes);
        Span { first, blocks }
    }

    pub(super) fn begin_io(&mut self, span: Span, writes: bool) -> u64 {
        let checksums = self.checksums.as_mut();
        checksums.map_or(0, |c| c.begin(span, writes))
    }

    /// A read or write of a command ended at the device.
    pub(super) fn on_data_io(
        &mut self,
        (id, lba): (CommandId, Lba),
        (span, since): (Span, u64),
        result: Result<&[u32], i32>,
        out: &mut Outbox,
    ) {
        let poisoned = matches!(self.phase, Phase::Poisoned(_));
        let active = self.active_mut(id);
        let nsid = Nsid(active.nsid);
        let heals = matches!(active.kind, Kind::Heal(_));
        let (what, learn) = match active.kind {
            Kind::Read { compare } => ("read", compare),
            Kind::Scrub(scrubbing) => ("read", scrubbing.learn),
            Kind::Write { .. }
            | Kind::Heal(_)
            | Kind::Zero { .. }
            | Kind::Flush
            | Kind::Entry(_) => ("write", false),
            Kind::Stable { .. } => unreachable!("moves no data"),
        };
        let scrubs = matches!(active.kind, Kind::Scrub(_));
        // Without checksums there is nothing to tell that such a block is whole.
        let failed = what == "read" && self.checksums.is_none() && self.failed.mask(span) != 0;
        let result = result.and_then(|sums| if failed { Err(ERRNO) } else { Ok(sums) });
        if scrubs && (result.is_err() || self.checksums.is_none()) {
            let read = result.is_ok().then_some(Verdict {
                unknown: span.blocks,
                ..Verdict::default()
            });
            self.on_scrubbed(id, (lba, span.blocks), read.as_ref());
        }
        let outcome = result.map(|_| ()).map_err(|errno| StoreFault::Medium {
            what,
            nsid,
            lba,
            errno,
        });
        let Some(checksums) = &mut self.checksums else {
            return self.on_data_done(id, outcome, out);
        };
        match result {
            // What must be there is the same as before, whatever became of it.
            _ if heals => checksums.end(span),
            _ if what == "write" => checksums.end_write(span, result.ok()),
            Ok(sums) if !poisoned => {
                assert_eq!(sums.len(), span.blocks as usize);
                let asker = Asker::Command { id, lba, learn };
                return self.check(Check { asker, span, since }, sums, out);
            }
            Ok(_) | Err(_) => checksums.end(span),
        }
        self.on_data_done(id, outcome, out);
    }

    /// Compares what was read, now or when the checksums have been read.
    pub(super) fn check(&mut self, check: Check, sums: &[u32], out: &mut Outbox) {
        let checksums = self.checksums.as_mut().expect("something is to be checked");
        if !checksums.is_resident(check.span) {
            return checksums.wait(check, sums);
        }
        let learn = matches!(check.asker, Asker::Command { learn: true, .. });
        let failed = match check.asker {
            // The bytes of a heal were not read here.
            Asker::Command { id, .. } if self.is_heal(id) => 0,
            Asker::Command { .. } | Asker::Copy => self.failed.mask(check.span),
        };
        let checksums = self.checksums.as_mut().expect("something is to be checked");
        let verdict = checksums.judge(check, sums, (learn, failed));
        checksums.end(check.span);
        if let Asker::Command { id, .. } = check.asker
            && let Kind::Heal(healing) = self.active_mut(id).kind
        {
            return self.on_heal_checked(id, healing, &verdict, out);
        }
        self.note(&verdict);
        match check.asker {
            Asker::Command { id, lba, .. }
                if matches!(self.active_mut(id).kind, Kind::Scrub(_)) =>
            {
                self.on_scrubbed(id, (lba, check.span.blocks), Some(&verdict));
                self.on_data_done(id, Ok(()), out);
            }
            Asker::Command { id, lba, .. } => {
                let nsid = Nsid(self.active_mut(id).nsid);
                let outcome = match verdict.first_bad {
                    None => Ok(()),
                    Some((nth, [written, _])) if written == UNKNOWN => Err(StoreFault::Medium {
                        what: "read",
                        nsid,
                        lba: Lba(lba.0 + u64::from(nth)),
                        errno: ERRNO,
                    }),
                    Some((nth, [written, read])) => Err(StoreFault::Rotten {
                        nsid,
                        lba: Lba(lba.0 + u64::from(nth)),
                        written,
                        read,
                    }),
                };
                self.on_data_done(id, outcome, out);
            }
            Asker::Copy => self.on_copied(verdict.bad == 0, out),
        }
    }

    fn is_heal(&self, id: CommandId) -> bool {
        let active = self.active[id.0 as usize].as_ref();
        active.is_some_and(|a| matches!(a.kind, Kind::Heal(_)))
    }

    fn note(&mut self, verdict: &Verdict) {
        self.counts.blocks_verified += u64::from(verdict.good);
        self.counts.blocks_unverified += u64::from(verdict.unknown);
        self.counts.blocks_rotten += u64::from(verdict.bad - verdict.failed);
    }

    /// Starts what the checksums need, and what has waited for them.
    pub(super) fn pump_checksums(&mut self, out: &mut Outbox) {
        let Some(checksums) = &mut self.checksums else {
            return;
        };
        while let Some(home) = checksums.next_read() {
            self.counts.checksum_blocks_read += 1;
            let io = self.ios.start(IoKind::ChecksumsRead(home));
            let offset_bytes = self.sb.geometry.checksums_block_offset(home);
            out.push(Effect::ReadChecksums { io, offset_bytes });
        }
        while let Some((home, bytes)) = checksums.next_write(self.sb.store) {
            self.counts.checksum_blocks_written += 1;
            let io = self.ios.start(IoKind::ChecksumsWrite(home));
            let offset_bytes = self.sb.geometry.checksums_block_offset(home);
            out.push(Effect::WriteChecksums {
                io,
                offset_bytes,
                bytes,
            });
        }
        while let Some(then) = self.next_done(out) {
            match then {
                Then::Unmark(id) => self.finish_stable(id, out),
                Then::Copied => self.settle_copy(out),
                Then::Stop => self.checksums_stopped = true,
                Then::List(id) => self.list_for(id),
            }
        }
    }

    fn next_done(&mut self, out: &mut Outbox) -> Option<Then> {
        let checksums = self.checksums.as_mut().expect("pumped");
        let done = checksums.next_done();
        if done.is_some() || !checksums.start_flush() {
            return done;
        }
        if self.config.volatile_cache {
            let io = self.ios.start(IoKind::ChecksumsFlush);
            out.push(Effect::Flush { io });
            return None;
        }
        checksums.on_flushed();
        checksums.next_done()
    }

    /// A checksum block was read. One that is damaged, cannot be read at several tries or was never
    /// written says nothing.
    pub(super) fn on_checksums_read(
        &mut self,
        home: u32,
        read: Result<&[u8], i32>,
        out: &mut Outbox,
    ) {
        let poisoned = matches!(self.phase, Phase::Poisoned(_));
        if let (Err(_), false, Some(checksums)) = (read, poisoned, &mut self.checksums)
            && checksums.read_again(home)
        {
            return;
        }
        let decoded = read.map(|bytes| decode(bytes, self.sb.store, home));
        let damaged = match &decoded {
            Err(_) | Ok(Err(Corrupt::Checksum | Corrupt::Misplaced | Corrupt::Unknown)) => true,
            Ok(Ok(_)) => false,
            Ok(Err(Corrupt::Magic | Corrupt::OtherStore | Corrupt::Value | Corrupt::Length)) => {
                false
            }
        };
        self.counts.checksum_blocks_damaged += u64::from(damaged);
        let checksums = self.checksums.as_mut().expect("it asked for the block");
        let values = decoded.ok().and_then(Result::ok);
        for (check, sums) in checksums.on_read(home, values) {
            self.check(check, &sums, out);
        }
    }

    pub(super) fn on_checksums_io(
        &mut self,
        home: Option<u32>,
        result: Result<(), i32>,
        out: &mut Outbox,
    ) {
        let checksums = self.checksums.as_mut().expect("it asked for it");
        match (result, home) {
            (Ok(()), Some(home)) => checksums.on_written(home),
            (Ok(()), None) => checksums.on_flushed(),
            (Err(errno), _) => self.poison("checksum write", errno, out),
        }
    }

    /// The store is poisoned: reads that wait for checksums end.
    pub(super) fn give_up_checks(&mut self) {
        let checks = self.checksums.as_mut().map(Checksums::give_up);
        for check in checks.into_iter().flatten() {
            if let Asker::Command { id, .. } = check.asker {
                self.active_mut(id).ios -= 1;
            }
        }
    }

    /// After an unclean stop, what the medium says of marked regions may be of another content than
    /// what it holds: the mark was durable before, the checksums are only when it goes.
    pub(super) fn doubt_marked(&mut self) {
        if self.was_clean && !self.sb.doubt {
            return;
        }
        let Some(checksums) = &mut self.checksums else {
            return;
        };
        checksums.spare(self.failed.list());
        for slice in self.slices.values() {
            for region in &slice.marks {
                slice
                    .physical_of(region)
                    .for_each(|extent| checksums.doubt(extent));
            }
        }
    }
}

impl super::slice::Slice {
    /// Physical extents that any generation has of a region.
    pub(super) fn physical_of(&self, region: u32) -> impl Iterator<Item = u32> + '_ {
        let first = u64::from(region) * u64::from(REGION_BLOCKS);
        let end = (first + u64::from(REGION_BLOCKS)).min(self.spec.size_blocks);
        let extents = (first..end).step_by(shardmap::units::EXTENT_BLOCKS as usize);
        extents.flat_map(|lba| {
            let (leaf, index) = self.locate(Lba(lba));
            let cells = self.leaves.get(&leaf).map(|l| l.cells(index, u32::MAX));
            cells
                .into_iter()
                .flatten()
                .filter_map(|(_, cell)| cell.physical)
        })
    }
}

//! What the world's metad records: one membership, witnessed.

use crate::core::{Members, Verdict};
use shardmap::generations::VolumeGenerations;
use shardmap::units::{Epoch, MembershipSeq};

#[derive(Debug)]
pub(super) struct Metad {
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) isr: Members,
    pub(super) verified: bool,
    pub(super) down_until: u64,
    pub(super) backup: (u64, Members),
    pub(super) generations: VolumeGenerations,
}

impl Metad {
    /// Only high bits: past every epoch and version of earlier lineages.
    pub(super) const fn lineage(&self) -> u64 {
        self.epoch >> 48
    }

    pub(super) fn set_isr(&mut self, epoch: Epoch, seq: MembershipSeq, isr: Members) -> Verdict {
        let answer = |m: &Self| (MembershipSeq(m.seq), m.isr);
        if epoch.0 != self.epoch {
            return Verdict::Fenced;
        }
        if !self.verified {
            return Verdict::Unknown;
        }
        if seq.0 == self.seq {
            self.isr = isr;
            self.seq += 1;
        }
        let (seq, now) = answer(self);
        if now == isr {
            Verdict::Committed { seq, isr }
        } else {
            Verdict::Stale { seq, isr: now }
        }
    }

    pub(super) fn verify(
        &mut self,
        epoch: Epoch,
        found_seq: MembershipSeq,
        isr: Members,
    ) -> Verdict {
        if epoch.0 != self.epoch {
            return Verdict::Fenced;
        }
        let new = (found_seq.0 + 1).max(self.lineage() << 48);
        if !self.verified {
            (self.seq, self.isr, self.verified) = (new, isr, true);
        }
        let seq = MembershipSeq(self.seq);
        if (self.seq, self.isr) == (new, isr) {
            Verdict::Committed { seq, isr }
        } else {
            let isr = self.isr;
            Verdict::Stale { seq, isr }
        }
    }
}

//! Comparison of replicas with each other, without any history.

use super::stamp::Content;
use crate::limits::DIFFERENCES_MAX;
use shardmap::units::{BLOCK_BYTES, Lba};

/// A block that is not the same on all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<R> {
    /// Where.
    pub lba: Lba,
    /// What each replica holds.
    pub held: Vec<(R, Content)>,
}

/// Collects differences between the replicas `R` of a volume.
#[derive(Clone, Debug)]
pub struct Comparison<R> {
    /// Blocks compared so far.
    pub blocks_compared: u64,
    /// Blocks that differ, remembered or not.
    pub blocks_differing: u64,
    /// The first of them.
    pub first: Vec<Difference<R>>,
}

impl<R> Default for Comparison<R> {
    fn default() -> Self {
        Self {
            blocks_compared: 0,
            blocks_differing: 0,
            first: Vec::new(),
        }
    }
}

impl<R: Clone> Comparison<R> {
    /// Whether all replicas were the same wherever they were compared.
    pub const fn is_identical(&self) -> bool {
        self.blocks_differing == 0
    }

    /// The blocks from `start` on, as each replica holds them: whole blocks, equally many.
    pub fn add(&mut self, start: Lba, replicas: &[(R, &[u8])]) {
        let block_bytes = BLOCK_BYTES as usize;
        let len_bytes = replicas.first().map_or(0, |(_, bytes)| bytes.len());
        assert!(
            len_bytes.is_multiple_of(block_bytes),
            "whole blocks are compared"
        );
        assert!(
            replicas.iter().all(|(_, bytes)| bytes.len() == len_bytes),
            "equally many blocks of each replica"
        );
        for (lba, at) in (start.0..).zip((0..len_bytes).step_by(block_bytes)) {
            self.blocks_compared += 1;
            let block = |bytes: &&[u8]| -> Vec<u8> { bytes[at..at + block_bytes].to_vec() };
            let same = replicas
                .windows(2)
                .all(|w| w[0].1[at..at + block_bytes] == w[1].1[at..at + block_bytes]);
            if same {
                continue;
            }
            self.blocks_differing += 1;
            if self.first.len() < DIFFERENCES_MAX {
                let held = replicas.iter();
                self.first.push(Difference {
                    lba: Lba(lba),
                    held: held
                        .map(|(r, b)| (r.clone(), Content::of(&block(b))))
                        .collect(),
                });
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::core::record::WriterId;
    use crate::core::stamp::Stamp;
    use shardmap::units::{Generation, VolumeId};

    #[test]
    fn the_differing_blocks_and_their_holders_are_named() {
        let mut old = vec![0; 3 * 4096];
        let mut new = old.clone();
        let stamp = Stamp {
            volume: VolumeId([1; 16]),
            lba: Lba(11),
            seq: 4,
            generation: Generation(0),
            writer: WriterId(1),
        };
        stamp.fill(&mut new[4096..8192]);
        old[8192] = 1;
        new[8192] = 1;
        let mut comparison = Comparison::default();
        comparison.add(Lba(10), &[("a", &old), ("b", &new), ("c", &old)]);
        assert_eq!(
            (comparison.blocks_compared, comparison.blocks_differing),
            (3, 1)
        );
        let held = vec![
            ("a", Content::Zero),
            ("b", Content::Stamped(stamp)),
            ("c", Content::Zero),
        ];
        assert_eq!(comparison.first, [Difference { lba: Lba(11), held }]);
    }
}

//! A device in memory: durable and volatile bytes apart, writes that tear by 4 KiB block.

use std::collections::BTreeMap;

pub(super) const BLOCK: u64 = 4096;

/// Content of one block: short for data (`[nsid, lba, version]`), 4 096 bytes for metadata.
pub(super) type Content = Vec<u8>;

#[derive(Clone, Debug, Default)]
pub(super) struct Device {
    durable: BTreeMap<u64, Content>,
    /// Completed and not flushed, in order of completion.
    volatile: Vec<(u64, Content)>,
    /// How often it was told that it may forget a range.
    pub(super) trims: u32,
}

/// Chooses what survives.
pub(super) struct Coin(pub(super) u64);

impl Coin {
    /// xorshift64*; the low bit of the high half.
    pub(super) fn flip(&mut self) -> bool {
        self.next() >> 32 & 1 == 1
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Flips of a coin.
pub(super) fn coin_of(seed: u64) -> impl FnMut() -> bool {
    let mut coin = Coin(seed | 1);
    move || coin.flip()
}

impl Device {
    /// What was never written holds what a previous owner left: it must never be seen.
    pub(super) fn read(&self, block: u64) -> Content {
        let newest = self
            .volatile
            .iter()
            .rev()
            .find(|(b, _)| *b == block)
            .map(|(_, c)| c);
        newest
            .or_else(|| self.durable.get(&block))
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn write(&mut self, block: u64, content: Content, durable: bool) {
        if durable {
            self.volatile.retain(|(b, _)| *b != block);
            self.durable.insert(block, content);
        } else {
            self.volatile.push((block, content));
        }
    }

    /// How many writes have completed: what a flush submitted now must cover.
    pub(super) fn completed(&self) -> usize {
        self.volatile.len()
    }

    /// The first `count` completed writes are durable.
    pub(super) fn flush(&mut self, count: usize) {
        for (block, content) in self.volatile.drain(..count.min(self.volatile.len())) {
            self.durable.insert(block, content);
        }
    }

    /// Power is lost: any subset of what was not flushed survives.
    pub(super) fn lose_power(
        &mut self,
        in_flight: Vec<(u64, Content)>,
        mut survives: impl FnMut() -> bool,
    ) {
        let unsure: Vec<_> = self.volatile.drain(..).chain(in_flight).collect();
        for (block, content) in unsure {
            if survives() {
                self.durable.insert(block, content);
            }
        }
    }

    /// The range now holds anything.
    pub(super) fn discard(&mut self, first: u64, blocks: u64) {
        self.trims += 1;
        for block in first..first + blocks {
            self.write(block, b"trimmed".to_vec(), false);
        }
    }

    pub(super) fn corrupt(&mut self, block: u64) {
        let content = self.durable.get_mut(&block).expect("something is there");
        content[100] ^= 0x40;
    }
}

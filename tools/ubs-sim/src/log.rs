//! Every write that the hosts have issued, in order, and by block.

use std::collections::BTreeMap;

/// When a write that is under way, or failed and may be there in part, ended.
const NEVER: u64 = u64::MAX;

/// A write, or zeroes, of blocks `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// What it put there; zero for zeroes.
    pub(crate) value: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The oracle's moments.
    pub(crate) issued: u64,
    pub(crate) completed: u64,
    /// It was issued again after part of it may have been done: not in one piece.
    pub(crate) in_pieces: bool,
}

impl Written {
    /// It has taken effect.
    pub(crate) const fn is_sure(&self) -> bool {
        self.completed != NEVER
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// By the request's number.
    all: BTreeMap<u64, Written>,
    by_block: BTreeMap<u64, Vec<u64>>,
}

impl Log {
    /// A request to write a value (`None`: zeroes) begins.
    pub(crate) fn issued(
        &mut self,
        request: u64,
        value: Option<u64>,
        (start, end): (u64, u64),
        issued: u64,
    ) {
        let written = Written {
            value: value.unwrap_or(0),
            start,
            end,
            issued,
            completed: NEVER,
            in_pieces: false,
        };
        self.all.insert(request, written);
        for block in start..end {
            self.by_block.entry(block).or_default().push(request);
        }
    }

    /// It was issued again, to another clientd.
    pub(crate) fn issued_again(&mut self, request: u64) {
        if let Some(written) = self.all.get_mut(&request) {
            written.in_pieces = true;
        }
    }

    /// It ended well. What is not told here needs no history.
    pub(crate) fn completed(&mut self, request: u64, at: u64) {
        if let Some(written) = self.all.get_mut(&request) {
            written.completed = at;
        }
    }

    /// Blocks that were ever written, ascending.
    pub(crate) fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.by_block.keys().copied()
    }

    pub(crate) fn was_written(&self, block: u64) -> bool {
        self.by_block.contains_key(&block)
    }

    /// The writes of a block, in order.
    pub(crate) fn of_block(&self, block: u64) -> impl Iterator<Item = &Written> + '_ {
        let requests = self.by_block.get(&block).into_iter().flatten();
        requests.map(|request| &self.all[request])
    }

    /// The write that put a value there; `None` for zero.
    pub(crate) fn by_value(&self, value: u64) -> Option<&Written> {
        self.all.get(&value).filter(|w| w.value == value)
    }
}

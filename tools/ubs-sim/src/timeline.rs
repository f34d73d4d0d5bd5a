//! What happened, in virtual time: shown line by line if wanted, and always condensed into a digest
//! that tells two runs apart.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use xxhash_rust::xxh3::Xxh3;

/// Lines kept for the report of a failed seed.
const TAIL_LINES: usize = 60;

/// The timeline of one run.
pub(crate) struct Timeline {
    digest: Xxh3,
    show: bool,
    line: String,
    tail: VecDeque<String>,
}

impl Timeline {
    /// An empty one; `show` prints each line as it comes.
    pub(crate) fn new(show: bool) -> Self {
        Self {
            digest: Xxh3::new(),
            show,
            line: String::new(),
            tail: VecDeque::new(),
        }
    }

    /// Adds a line.
    pub(crate) fn say(&mut self, now_ns: u64, what: fmt::Arguments<'_>) {
        self.line.clear();
        let (s, us) = (now_ns / 1_000_000_000, now_ns / 1_000 % 1_000_000);
        write!(self.line, "{s:4}.{us:06} {what}").expect("a String takes everything");
        self.digest.update(self.line.as_bytes());
        if self.show {
            println!("{}", self.line);
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(self.line.clone());
    }

    /// The digest of all lines so far.
    pub(crate) fn digest(&self) -> u64 {
        self.digest.digest()
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}

//! What a block that was read means.

use super::record::OpId;
use super::stamp::Content;
use std::fmt;

/// The kinds of verdict; the first three are legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerdictKind {
    /// The last write that took effect.
    Current,
    /// One of several that a write or zeroing still in flight, or one that failed, leaves open.
    Concurrent,
    /// Not the newest, but nothing newer was flushed before an unclean detach.
    OldButLegal,
    /// A newer write had completed (after an unclean detach: had been flushed) and is not there.
    Lost,
    /// Older than what was read here before.
    RolledBack,
    /// Of a writer that had been fenced before it issued this.
    Fenced,
    /// Written by us, for another block or volume.
    Misdirected,
    /// Not written by anybody in this history.
    Foreign,
    /// Parts of several blocks, or a damaged one.
    Torn,
}

impl VerdictKind {
    /// All kinds, in order.
    pub const ALL: [Self; 9] = [
        Self::Current,
        Self::Concurrent,
        Self::OldButLegal,
        Self::Lost,
        Self::RolledBack,
        Self::Fenced,
        Self::Misdirected,
        Self::Foreign,
        Self::Torn,
    ];

    /// Whether a correct volume may answer so.
    pub const fn is_legal(self) -> bool {
        matches!(self, Self::Current | Self::Concurrent | Self::OldButLegal)
    }

    /// As tables and JSON name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Concurrent => "concurrent",
            Self::OldButLegal => "old-but-legal",
            Self::Lost => "lost",
            Self::RolledBack => "rolled-back",
            Self::Fenced => "fenced",
            Self::Misdirected => "misdirected",
            Self::Foreign => "foreign",
            Self::Torn => "torn",
        }
    }
}

impl fmt::Display for VerdictKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A verdict with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub kind: VerdictKind,
    /// What was found.
    pub found: Content,
    /// What would have been legal, newest first: writes, or `None` for what no write of ours left.
    /// Empty for legal verdicts.
    pub legal: Vec<Option<OpId>>,
}

impl Verdict {
    /// Whether a correct volume may answer so.
    pub const fn is_legal(&self) -> bool {
        self.kind.is_legal()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}", self.kind, self.found)?;
        let name = |o: &Option<OpId>| o.map_or_else(|| "nothing of ours".into(), |o| o.to_string());
        match self.legal.as_slice() {
            [] => Ok(()),
            legal => {
                let names: Vec<String> = legal.iter().map(name).collect();
                write!(f, "; legal: {}", names.join(", "))
            }
        }
    }
}

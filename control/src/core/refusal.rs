//! Typed refusals: what was wrong, as a sentence, and what helps.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What kind of refusal; stable names, part of the RPC and of `ubsctl`'s JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The cluster has no identity yet.
    NotInitialised,
    /// The thing belongs to, or names, another cluster.
    WrongCluster,
    /// Another volume, server or host has the name.
    NameTaken,
    /// No such thing.
    NotFound,
    /// An argument is not acceptable.
    Invalid,
    /// Too few servers (failure domains) for the replicas.
    TooFewServers,
    /// Stores have no room for more promises.
    NoRoom,
    /// Another host has it, or shall have it.
    AttachedElsewhere,
    /// It is attached, so it cannot go away.
    StillAttached,
    /// Its slices are not all there yet, or it is being deleted.
    NotReady,
    /// The host was not asked to attach it.
    NotDesired,
    /// Some shard would be left without an in-sync replica.
    LastReplica,
    /// A bound was reached.
    Limit,
    /// The client's sequence number is older than what is remembered.
    TooOld,
    /// The state knows a newer or older schema than the command.
    Schema,
    /// Something wanted is still on it.
    StillUsed,
}

impl RefusalCode {
    /// All codes, for tables and tests.
    pub const ALL: [Self; 16] = [
        Self::NotInitialised,
        Self::WrongCluster,
        Self::NameTaken,
        Self::NotFound,
        Self::Invalid,
        Self::TooFewServers,
        Self::NoRoom,
        Self::AttachedElsewhere,
        Self::StillAttached,
        Self::NotReady,
        Self::NotDesired,
        Self::LastReplica,
        Self::Limit,
        Self::TooOld,
        Self::Schema,
        Self::StillUsed,
    ];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotInitialised => "NotInitialised",
            Self::WrongCluster => "WrongCluster",
            Self::NameTaken => "NameTaken",
            Self::NotFound => "NotFound",
            Self::Invalid => "Invalid",
            Self::TooFewServers => "TooFewServers",
            Self::NoRoom => "NoRoom",
            Self::AttachedElsewhere => "AttachedElsewhere",
            Self::StillAttached => "StillAttached",
            Self::NotReady => "NotReady",
            Self::NotDesired => "NotDesired",
            Self::LastReplica => "LastReplica",
            Self::Limit => "Limit",
            Self::TooOld => "TooOld",
            Self::Schema => "Schema",
            Self::StillUsed => "StillUsed",
        }
    }
}

/// A command was understood and not carried out; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Refusal {
    /// What kind.
    pub code: RefusalCode,
    /// One sentence that names the thing and the value.
    pub sentence: String,
    /// What the operator can do; may be empty.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        if self.remedy.is_empty() {
            Ok(())
        } else {
            write!(f, "; {}", self.remedy)
        }
    }
}

impl Refusal {
    /// Builds a refusal.
    pub fn new(code: RefusalCode, sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code,
            sentence: sentence.into(),
            remedy: remedy.into(),
        }
    }

    /// `no <kind> <name>`, with where to look.
    pub fn not_found(kind: &str, name: impl fmt::Display) -> Self {
        Self::new(
            RefusalCode::NotFound,
            format!("there is no {kind} {name}"),
            format!("see `ubsctl {kind} ls`"),
        )
    }

    /// An argument that cannot be accepted.
    pub fn invalid(sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(RefusalCode::Invalid, sentence, remedy)
    }
}

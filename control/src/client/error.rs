//! Why an answer did not come.

use crate::api::{Answer, Question};
use crate::core::{Refusal, RefusalCode};

/// What went wrong, in a sentence, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadError {
    /// Understood and not carried out.
    #[error("{0}")]
    Refused(Refusal),
    /// No member that could answer was reached in time.
    #[error("no answer from metad ({members}) in {waited_ms} ms: {last}; {}", self.remedy())]
    Unreachable {
        /// Who was tried.
        members: String,
        /// For how long.
        waited_ms: u64,
        /// What the last attempt ended with.
        last: String,
    },
    /// A member answered something else than what was asked.
    #[error("metad answered {got} to {asked}; {}", self.remedy())]
    Unexpected {
        /// The question.
        asked: String,
        /// The answer.
        got: String,
    },
}

impl MetadError {
    pub(crate) fn unexpected(asked: &Question, got: &Answer) -> Self {
        let brief = |text: String| text.chars().take(120).collect();
        Self::Unexpected {
            asked: brief(format!("{asked:?}")),
            got: brief(format!("{got:?}")),
        }
    }

    /// What the last attempt ended with, without who was asked and what helps.
    pub fn last(&self) -> String {
        match self {
            Self::Unreachable { last, .. } => last.clone(),
            Self::Refused(_) | Self::Unexpected { .. } => self.to_string(),
        }
    }

    /// A stable name of the kind.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code.name(),
            Self::Unreachable { .. } => "Unreachable",
            Self::Unexpected { .. } => "Unexpected",
        }
    }

    /// The refusal's code, if it is one.
    pub const fn refusal(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Unreachable { .. } | Self::Unexpected { .. } => None,
        }
    }

    /// What the operator can do; may be empty.
    pub fn remedy(&self) -> &str {
        match self {
            Self::Refused(refusal) => &refusal.remedy,
            Self::Unreachable { .. } => {
                "check that a majority of the members runs (`systemctl status metad`) and that \
                 the addresses are right"
            }
            Self::Unexpected { .. } => "upgrade the older of the two programs",
        }
    }
}

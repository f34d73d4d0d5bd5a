//! How a run can end, and the exit code of each end.

use control::client::MetadError;
use control::core::RefusalCode;

/// For `--help`.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done; 1 error; 2 wrong usage; 3 refused for \
    safety; 4 timed out, the work goes on; 5 not found.";

/// An end that is not success: one sentence, with what helps.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// Anything else.
    #[error("{0}")]
    Error(String),
    /// The command line or a value in it.
    #[error("{0}")]
    Usage(String),
    /// It could have lost data or taken a volume from somebody.
    #[error("{0}")]
    Unsafe(String),
    /// `--wait` gave up; what was asked for goes on.
    #[error("{0}")]
    StillGoing(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
}

impl Failure {
    pub(crate) fn error(sentence: impl Into<String>) -> Self {
        Self::Error(sentence.into())
    }

    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self::Usage(sentence.into())
    }

    pub(crate) fn not_found(kind: &str, name: &str) -> Self {
        Self::NotFound(format!("there is no {kind} {name}; see `ubsctl {kind} ls`"))
    }

    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Error(_) => 1,
            Self::Usage(_) => 2,
            Self::Unsafe(_) => 3,
            Self::StillGoing(_) => 4,
            Self::NotFound(_) => 5,
        }
    }
}

impl From<MetadError> for Failure {
    fn from(error: MetadError) -> Self {
        let text = error.to_string();
        let Some(code) = error.refusal() else {
            return Self::Error(text);
        };
        match code {
            RefusalCode::NotFound => Self::NotFound(text),
            RefusalCode::Invalid => Self::Usage(text),
            RefusalCode::AttachedElsewhere
            | RefusalCode::StillAttached
            | RefusalCode::LastReplica
            | RefusalCode::StillUsed
            | RefusalCode::WrongCluster => Self::Unsafe(text),
            RefusalCode::NotInitialised
            | RefusalCode::NameTaken
            | RefusalCode::TooFewServers
            | RefusalCode::NoRoom
            | RefusalCode::NotReady
            | RefusalCode::NotDesired
            | RefusalCode::Limit
            | RefusalCode::TooOld
            | RefusalCode::Schema => Self::Error(text),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use control::core::Refusal;

    #[test]
    fn refusals_have_their_exit_codes() {
        let code =
            |code| Failure::from(MetadError::Refused(Refusal::new(code, "a", "b"))).exit_code();
        assert_eq!(code(RefusalCode::NameTaken), 1);
        assert_eq!(code(RefusalCode::Invalid), 2);
        assert_eq!(code(RefusalCode::StillAttached), 3);
        assert_eq!(code(RefusalCode::NotFound), 5);
    }
}

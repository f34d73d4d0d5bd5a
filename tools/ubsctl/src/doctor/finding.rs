//! What the doctor found.

use serde_json::{Value, json};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works; could be better, or could not be looked at.
    Hint,
    /// Works; something needs attention.
    Warning,
    /// Something does not work.
    Problem,
}

impl Level {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Hint => "hint",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// What was looked at; stable, for scripts.
    pub(crate) check: &'static str,
    /// What was found: a clause that names the thing and the value.
    pub(crate) found: String,
    /// What is needed; may be empty.
    pub(crate) needed: String,
    /// What to do; may be empty.
    pub(crate) remedy: String,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            check,
            found: found.into(),
            needed: String::new(),
            remedy: String::new(),
        }
    }

    pub(crate) fn new(
        level: Level,
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            level,
            remedy: remedy.into(),
            ..Self::ok(check, found)
        }
    }

    /// Our errors are sentences of the form "what; what to do".
    pub(crate) fn of_error(
        level: Level,
        check: &'static str,
        error: &dyn std::fmt::Display,
    ) -> Self {
        let text = error.to_string();
        let (found, remedy) = text.split_once("; ").unwrap_or((&text, ""));
        Self::new(level, check, found, remedy)
    }

    pub(crate) fn needs(self, needed: impl Into<String>) -> Self {
        Self {
            needed: needed.into(),
            ..self
        }
    }

    pub(crate) fn to_json(&self, scope: &str) -> Value {
        json!({
            "scope": scope,
            "level": self.level.name(),
            "check": self.check,
            "found": self.found,
            "needed": self.needed,
            "remedy": self.remedy,
        })
    }
}

//! The result of one check, and its severity.

use serde::Serialize;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    Ok,
    /// It works, but not as well as possible, or not for everybody.
    Warn,
    /// It does not work until this is fixed.
    Fail,
}

impl Level {
    /// The level's name in the output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject: "host", an interface's name, or a service.
    pub subject: String,
    /// What was checked.
    pub check: &'static str,
    /// How severe it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it, unless all is well.
    pub remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(subject: &str, check: &'static str, message: impl Into<String>) -> Self {
        Self { subject: subject.to_owned(), check, level: Level::Ok, message: message.into(), remedy: None }
    }

    pub(super) fn warn(
        subject: &str,
        check: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warn, remedy: Some(remedy.into()), ..Self::ok(subject, check, message) }
    }

    pub(super) fn fail(
        subject: &str,
        check: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Fail, ..Self::warn(subject, check, message, remedy) }
    }
}

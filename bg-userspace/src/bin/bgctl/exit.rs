//! Exit codes, which are part of the public interface.

use std::process::ExitCode;

use bg_userspace::{Error, ErrorClass, InterfaceListError, config::ConfigError};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done.
    Done = 0,
    /// Something failed, or `doctor` found something that must be mended.
    Failed = 1,
    /// Usage or configuration.
    Usage = 2,
    /// A precondition does not hold; nothing has been changed.
    Refused = 3,
    /// A wait ended before what was waited for had come.
    TimedOut = 4,
    /// `plan` found that `apply` would change something.
    Changes = 5,
}

impl Outcome {
    /// The outcome that an error stands for.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        if error.is::<ConfigError>() || error.is::<InterfaceListError>() {
            return Self::Usage;
        }
        match error.downcast_ref::<Error>().map(Error::class) {
            Some(ErrorClass::Usage) => Self::Usage,
            Some(ErrorClass::Refused) => Self::Refused,
            Some(ErrorClass::TimedOut) => Self::TimedOut,
            Some(ErrorClass::Failed) | None => Self::Failed,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome as u8)
    }
}

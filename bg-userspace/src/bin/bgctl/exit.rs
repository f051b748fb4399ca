//! Exit codes, which are part of the public interface.

use std::process::ExitCode;

use bg_userspace::{Error, ErrorClass, InterfaceListError, config::ConfigError};

/// The outcome of a command, by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done.
    Done = 0,
    /// Something failed, or `doctor` found something that must be fixed.
    Failed = 1,
    /// A usage or configuration error.
    Usage = 2,
    /// A precondition does not hold. Nothing was changed.
    Refused = 3,
    /// A wait timed out.
    TimedOut = 4,
    /// `plan` found that `apply` would change something.
    Changes = 5,
}

impl Outcome {
    /// The outcome of an error.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        if error.is::<ConfigError>() || error.is::<InterfaceListError>() {
            return Self::Usage;
        }
        #[cfg(feature = "serve")]
        if let Some(ended) = error.downcast_ref::<bg_userspace::serve::ServeError>() {
            use bg_userspace::serve::ServeError;
            return match ended {
                ServeError::Config(_) => Self::Usage,
                ServeError::Instance(error) => Self::of_class(Some(error.class())),
                _ => Self::Failed,
            };
        }
        Self::of_class(error.downcast_ref::<Error>().map(Error::class))
    }

    fn of_class(class: Option<ErrorClass>) -> Self {
        match class {
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

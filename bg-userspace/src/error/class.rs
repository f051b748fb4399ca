//! Classes of errors, which decide the exit code.

use super::Error;
use crate::{history::HistoryError, net::NetError};

/// The classes of failure that the exit codes of `bgctl` distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Something failed: exit code 1.
    Failed,
    /// A usage or configuration error: exit code 2.
    Usage,
    /// A precondition does not hold: exit code 3.
    Refused,
    /// A wait timed out: exit code 4.
    TimedOut,
}

impl Error {
    /// Whether the change is made, although something has failed after it.
    pub fn is_made(&self) -> bool {
        matches!(self, Self::NotRecorded { .. } | Self::NotFenced { .. } | Self::DoneNotRecorded { .. })
    }

    /// The class of the error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownDeployment { .. }
            | Self::UnknownService { .. }
            | Self::UnknownBackend { .. }
            | Self::Unrepresentable { .. }
            | Self::Next { .. }
            | Self::Net(NetError::NoSuchInterface { .. })
            | Self::NotAttached { .. } => ErrorClass::Usage,
            Self::Refused(_) | Self::OtherNamespace { .. } | Self::History(HistoryError::Shared { .. }) => {
                ErrorClass::Refused
            }
            Self::Busy { .. } | Self::WindowOver { .. } => ErrorClass::TimedOut,
            Self::Undone { source, .. } => source.class(),
            _ => ErrorClass::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_after_a_change_does_not_say_that_it_was_not_made() {
        let source = || Box::new(Error::GatesUnknown { why: String::new() });
        let (deployment, live, generation) = ("shop".to_owned(), "green", 2);
        assert!(Error::NotRecorded { deployment: deployment.clone(), live, generation, source: source() }.is_made());
        assert!(Error::NotFenced { deployment, live, generation, source: source() }.is_made());
        assert!(Error::DoneNotRecorded { done: "it is done".to_owned(), source: source() }.is_made());
        assert!(!source().is_made());
    }
}

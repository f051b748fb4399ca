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

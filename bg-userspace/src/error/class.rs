//! Errors by what a script does about them.

use super::Error;
use crate::{history::HistoryError, net::NetError};

/// The classes of failure that the exit codes of `bgctl` tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Something failed: 1.
    Failed,
    /// Usage or configuration: 2.
    Usage,
    /// A precondition refused it: 3.
    Refused,
    /// What was waited for did not come: 4.
    TimedOut,
}

impl Error {
    /// Which class it belongs to.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownDeployment { .. }
            | Self::UnknownService { .. }
            | Self::Unrepresentable { .. }
            | Self::Next { .. }
            | Self::Net(NetError::NoSuchInterface { .. })
            | Self::NotAttached { .. } => ErrorClass::Usage,
            Self::Refused(_) | Self::OtherNamespace { .. } | Self::History(HistoryError::Shared { .. }) => {
                ErrorClass::Refused
            }
            Self::Busy { .. } => ErrorClass::TimedOut,
            Self::Undone { source, .. } => source.class(),
            _ => ErrorClass::Failed,
        }
    }
}

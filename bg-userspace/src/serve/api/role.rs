//! Who asks, and what they may do.

use crate::history::Who;

/// What somebody may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Look.
    Viewer,
    /// Change what is live.
    Operator,
    /// Change the configuration.
    Admin,
}

impl Role {
    pub(super) const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Its name in the file of tokens.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// The sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// For the history.
    pub(super) who: Who,
    pub(super) role: Role,
    /// Whether it is root of this host, who may run commands here anyway.
    pub(super) is_root_here: bool,
}

impl Identity {
    /// Somebody who is no user of this host, as far as is known.
    pub(super) fn named(name: &str, role: Role) -> Self {
        Self { who: Who::elsewhere(name), role, is_root_here: false }
    }
}

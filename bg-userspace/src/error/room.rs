//! The resources for which an instance has limited room.

use std::fmt;

/// A resource that a configuration uses up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Rows of deployments.
    Deployments,
    /// Rows of services.
    Services,
    /// Rows of backends.
    Backends,
    /// Tester prefixes.
    Testers,
    /// Entries of the backends' hash tables.
    TableEntries,
    /// Consecutive entries of the backends' hash tables.
    TableEntriesInOnePiece,
}

impl Room {
    /// What to do if there is too little of it.
    pub(super) fn remedy(self) -> String {
        let larger = |options: &str| {
            format!("run `bgctl detach --all`, then attach with a larger {options} (open flows are lost)")
        };
        match self {
            Self::Deployments | Self::Testers => {
                "split the configuration over several instances (--pin-root)".to_owned()
            }
            Self::Services => larger("--services"),
            Self::Backends => larger("--backends"),
            Self::TableEntries | Self::TableEntriesInOnePiece => {
                larger("--backends") + ", or use weights that differ less"
            }
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deployments => "deployments",
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Testers => "testers",
            Self::TableEntries => "table entries",
            Self::TableEntriesInOnePiece => "table entries in one piece",
        })
    }
}

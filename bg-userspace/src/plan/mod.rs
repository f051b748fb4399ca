//! The difference between a configuration and the running state.
//!
//! It is computed once, as a pure function of both, and is a tree: deployments, their services, and for each the list of its typed
//! [actions](Action). `apply` executes this tree, and `plan` prints the same actions as a flat list. If there are none, there is
//! nothing to do.

mod begin;
mod beginning;
mod change;
mod compare;
mod diff;
mod listeners;
mod service;
mod settings;

use std::fmt;

use serde::Serialize;

pub(crate) use self::{
    begin::interrupted,
    diff::{DeploymentDiff, Diff, ServiceDiff},
    listeners::{chosen_listeners, wait_for_ports, with_listeners},
    settings::deployment_row,
};
pub use self::{
    beginning::{Because, Beginning, ColourChange},
    change::{Action, Change, Slot},
};

/// The changes that an apply would make, in the order of the configuration. Removals are last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// All changes.
    pub changes: Vec<Change>,
    /// Virtual addresses that would change their live colour because they move to another deployment. An apply with such changes is refused
    /// unless it is forced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub colour_changes: Vec<ColourChange>,
    /// What whoever applies ought to know, one sentence each. They are among [`Instance::warnings`](crate::Instance::warnings), too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Plan {
    /// Whether the running state matches the configuration.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes.iter().try_for_each(|change| writeln!(f, "{change}"))?;
        self.colour_changes
            .iter()
            .try_for_each(|change| writeln!(f, "! {}: {change}; refused without --force", change.deployment))
    }
}

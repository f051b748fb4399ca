//! A change, for the journal.

use crate::history::{Action, Moment};

/// One change, for the journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    /// Name of the deployment; empty if the whole instance was changed.
    pub(crate) deployment: String,
    /// The interfaces that were attached or detached.
    pub(crate) interfaces: Vec<String>,
    /// The kind of change.
    pub(crate) action: Action,
    /// The state before; `None` if the deployment did not exist.
    pub(crate) from: Option<Moment>,
    /// The state after; `None` if the deployment was removed.
    pub(crate) to: Option<Moment>,
    /// The reason.
    pub(crate) reason: Option<String>,
}

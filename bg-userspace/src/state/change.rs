//! A change, for the journal.

use crate::history::{Action, Moment, Receipt, Record};

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
    /// What a switch has done.
    pub(crate) receipt: Option<Receipt>,
}

impl Change {
    /// The record of the change, made by the process and at the time of `template`.
    pub(super) fn record(&self, template: &Record) -> Record {
        let Self { deployment, interfaces, action, from, to, reason, receipt } = self.clone();
        Record { deployment, interfaces, action, from, to, reason, receipt, ..template.clone() }
    }
}

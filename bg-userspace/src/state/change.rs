//! A change, for the journal, and what the data path has done before it.

use jiff::Timestamp;

use crate::history::{Action, Moment, Receipt, Record, Who};

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
    /// Whether a reboot takes it back, as long as it is not confirmed.
    pub(crate) unconfirmed: bool,
    /// What a switch has done.
    pub(crate) receipt: Option<Receipt>,
    /// When it took effect; `None` is now.
    pub(crate) at: Option<Timestamp>,
    /// Whether the data path has made it, and no process.
    pub(crate) by_kernel: bool,
    /// Whether its generation is in force already, so that it does not take effect later.
    pub(crate) is_in_force: bool,
    /// If it has changed the live word: what the data path had done until then. The change may have overwritten the traces.
    pub(crate) past: Option<Past>,
}

impl Change {
    /// Whether it has created its deployment.
    pub(super) fn begins(&self) -> bool {
        self.from.is_none()
    }

    /// The record of the change, made by the process and at the time of `template`.
    pub(super) fn record(&self, template: &Record) -> Record {
        let Self { deployment, interfaces, action, from, to, reason, unconfirmed, receipt, at, by_kernel, .. } =
            self.clone();
        let Record { time, who, command, .. } = template.clone();
        let (who, command) = if by_kernel { (Who::kernel(), String::new()) } else { (who, command) };
        Record {
            time: at.unwrap_or(time),
            deployment,
            interfaces,
            action,
            from,
            to,
            who,
            reason,
            command,
            unconfirmed,
            receipt,
            link: None,
        }
    }
}

/// What the maps tell of the last two generations of a deployment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    /// When they were made, as far as that is known.
    pub(super) made: Vec<(u32, Timestamp)>,
    /// What the data path has done, in the order of time.
    pub(super) changes: Vec<Change>,
}

impl Past {
    /// Adds what is known since.
    pub(crate) fn extend(&mut self, later: Self) {
        self.made.extend(later.made);
        for change in later.changes {
            if !self.changes.iter().any(|there| (there.action, there.to) == (change.action, change.to)) {
                self.changes.push(change);
            }
        }
    }

    /// When a generation was made.
    pub(super) fn made(&self, generation: u32) -> Option<Timestamp> {
        self.made.iter().find(|(made, _)| *made == generation).map(|(_, at)| *at)
    }

    /// Whether a generation took effect some time after it was made.
    pub(super) fn is_activated(&self, generation: u32) -> bool {
        self.changes
            .iter()
            .any(|change| change.action == Action::Activated && change.to.is_some_and(|to| to.generation == generation))
    }
}

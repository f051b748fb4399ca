//! What the controller tells: to browsers, to webhooks, to its log.

use std::{net::SocketAddr, sync::Arc};

use serde::Serialize;

use super::view::View;
use crate::{
    gates::GateReport,
    history::{Action, Moment, Record, Who},
};

/// Something that has happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Event {
    /// The state has changed. It is told as the whole status.
    #[serde(serialize_with = "state")]
    State(Arc<View>),
    /// A deployment has been changed by somebody.
    Switch(Changed),
    /// A switch was taken back: by somebody, or by the data path itself.
    Revert(Changed),
    /// The controller has switched by itself, because the live colour had too few healthy backends.
    Failover(FailedOver),
    /// A backend is down.
    Unhealthy(Judged),
    /// A backend is up again, or for the first time.
    Healthy(Judged),
    /// A gate has passed or failed, of a switch that somebody has asked the controller for.
    Gate(Asked),
    /// Something else was recorded: an apply, a freeze, an attach.
    Recorded(Changed),
    /// Somebody has asked the API for what their role does not allow. Nothing was done.
    Forbidden(Forbidden),
}

/// A request that was refused because of the role of its sender.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Forbidden {
    pub(crate) time: jiff::Timestamp,
    pub(crate) who: String,
    pub(crate) role: &'static str,
    /// The role that the request needs.
    pub(crate) needs: &'static str,
    pub(crate) request: String,
}

/// A change as the history has it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Changed {
    pub(crate) time: jiff::Timestamp,
    /// Empty if the change concerns the whole instance.
    pub(crate) deployment: String,
    pub(crate) action: Action,
    pub(crate) from: Option<Moment>,
    pub(crate) to: Option<Moment>,
    pub(crate) who: Who,
    pub(crate) reason: Option<String>,
}

/// A failover.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FailedOver {
    pub(crate) time: jiff::Timestamp,
    pub(crate) deployment: String,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) generation: u32,
    pub(crate) why: String,
}

/// A backend that has gone up or down.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Judged {
    pub(crate) time: jiff::Timestamp,
    pub(crate) deployment: String,
    pub(crate) service: String,
    pub(crate) colour: &'static str,
    pub(crate) backend: SocketAddr,
    /// Why the last check failed.
    pub(crate) why: Option<String>,
}

/// What a gate has said.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) time: jiff::Timestamp,
    pub(crate) deployment: String,
    #[serde(flatten)]
    pub(crate) report: GateReport,
}

impl Event {
    /// Its name, which is the one in the configuration of webhooks.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::State(_) => "state",
            Self::Switch(_) => "switch",
            Self::Revert(_) => "revert",
            Self::Failover(_) => "failover",
            Self::Unhealthy(_) => "unhealthy",
            Self::Healthy(_) => "healthy",
            Self::Gate(_) => "gate",
            Self::Recorded(_) => "recorded",
            Self::Forbidden(_) => "forbidden",
        }
    }

    /// What a record of the history tells.
    pub(crate) fn of(record: Record) -> Self {
        let Record { time, deployment, action, from, to, who, reason, .. } = record;
        let changed = Changed { time, deployment, action, from, to, who, reason };
        match action {
            Action::Switch | Action::Split | Action::Activated | Action::Recovered => Self::Switch(changed),
            Action::Rollback | Action::Expired | Action::Tripped => Self::Revert(changed),
            Action::Apply | Action::Confirm | Action::Freeze | Action::Thaw | Action::Attach | Action::Detach => {
                Self::Recorded(changed)
            }
        }
    }
}

fn state<S: serde::Serializer>(view: &Arc<View>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct State<'a> {
        time: jiff::Timestamp,
        status: &'a crate::Status,
    }
    State { time: view.at, status: &view.status }.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_name_in_its_json() {
        let record = Record { action: Action::Tripped, ..Record::of_this_process() };
        let event = Event::of(record);
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!((json["event"].as_str(), event.name()), (Some("revert"), "revert"));
        assert_eq!(json["action"], "tripped");
    }
}

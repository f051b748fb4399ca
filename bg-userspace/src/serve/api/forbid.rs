//! Requests that the role of their sender does not allow. Nothing is done, and whoever watches over the controller is told.

use axum::http::StatusCode;

use super::{problem::Problem, role::Identity, shared::Api};
use crate::serve::event::{Event, Forbidden};

/// Who has asked, as far as that is known.
#[derive(Debug)]
pub(super) struct Sender {
    who: String,
    role: &'static str,
}

impl Sender {
    /// A user who has no role here.
    pub(super) fn without_role(who: String) -> Self {
        Self { who, role: "none" }
    }
}

impl From<&Identity> for Sender {
    fn from(identity: &Identity) -> Self {
        Self { who: identity.who.to_string(), role: identity.role.name() }
    }
}

/// Refuses what needs another role, with a message that says why.
pub(super) fn forbid(
    api: &Api,
    sender: impl Into<Sender>,
    needs: &'static str,
    request: &str,
    why: impl Into<String>,
) -> Problem {
    tell(api, sender, needs, request);
    Problem::new(StatusCode::FORBIDDEN, why)
}

/// Tells the log and those who listen to events, but not each time if there are many.
pub(super) fn tell(api: &Api, sender: impl Into<Sender>, needs: &'static str, request: &str) {
    let Sender { who, role } = sender.into();
    if let Some(left_out) = api.denials.tell() {
        tracing::warn!(left_out, who, role, needs, "refused {request:?}: the role is not enough");
        let (time, request) = (jiff::Timestamp::now(), request.to_owned());
        api.controller.publish(Event::Forbidden(Forbidden { time, who, role, needs, request }));
    }
}

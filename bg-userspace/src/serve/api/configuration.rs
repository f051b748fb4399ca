//! `POST /v1/apply`, `/v1/check` and `/v1/plan`: the configuration, as TOML.

use std::{path::Path, sync::Arc};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{change::caller, forbid, problem::Problem, repeats::Repeat, role::Identity, shared::Api, strict::Query};
use crate::{
    ApplyRequest, Error, Refusal,
    config::{self, Config, shared_backends},
};

/// Where it stands, for messages.
const NAME: &str = "<request>";

/// The options of an apply.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Apply {
    reason: Option<String>,
    force: bool,
}

/// Says what an apply would change.
pub(super) async fn plan(State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let config = read(&headers, &body)?;
    let plan = api.controller.look_for_long(move |instance| instance.plan(&config)).await;
    Ok(Json(plan.ok_or_else(busy)??).into_response())
}

/// Makes the running state match.
pub(super) async fn apply(
    State(api): State<Arc<Api>>,
    Extension(identity): Extension<Identity>,
    Query(Apply { reason, force }): Query<Apply>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    if headers.contains_key(header::IF_MATCH) {
        let why = "the header If-Match has no meaning here: an apply is of all deployments, and each has a generation of its own";
        return Err(Problem::usage(why));
    }
    let config = read(&headers, &body)?;
    // The next switch runs them as whoever makes it, which is often root.
    let keep_commands = !identity.is_root_here;
    let options = format!("{reason:?} {force}");
    let ticket = match api.repeats.begin(&identity, &headers, &[b"POST /v1/apply", options.as_bytes(), &body])? {
        Repeat::Again(answer) => return Ok(answer.into_response()),
        Repeat::First(ticket) => ticket,
    };
    let caller = caller(&identity, "POST /v1/apply", b"");
    // It is completed, and its answer is kept, also if the client does not wait for it.
    let answered = tokio::spawn(async move {
        let request = ApplyRequest { reason, force, keep_commands };
        let applied = api.controller.on_instance_for_long(caller, move |it| it.apply_as(&config, &request)).await;
        api.controller.look();
        let done = match applied {
            Some(Ok(plan)) => Ok(json!(plan)),
            Some(Err(error)) => {
                if matches!(error, Error::Refused(Refusal::CommandsChange { .. })) {
                    forbid::tell(&api, &identity, "root of this host", "POST /v1/apply with other commands");
                }
                Err(Problem::from(error))
            }
            None => Err(busy()),
        };
        ticket.answer(&done)
    });
    let answer = answered.await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the controller has failed: {error}"))
    })?;
    Ok(answer.into_response())
}

/// Says whether it is valid.
pub(super) async fn check(headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let config = read(&headers, &body)?;
    let services = || config.deployments.iter().flat_map(|deployment| &deployment.services);
    let notes: Vec<_> = shared_backends(&config).iter().take(20).map(ToString::to_string).collect();
    let summary = json!({
        "valid": true,
        "deployments": config.deployments.len(),
        "services": services().count(),
        "backends": services().flat_map(|service| &service.backends).map(Vec::len).sum::<usize>(),
        "notes": notes,
    });
    Ok(Json(summary).into_response())
}

fn read(headers: &HeaderMap, body: &Bytes) -> Result<Config, Problem> {
    super::strict::content_is(headers, &["application/toml", "text/toml", "text/x-toml"])?;
    Ok(config::load_from(Path::new(NAME), &body[..])?)
}

fn busy() -> Problem {
    Problem::busy("too many changes that may last are being made: try again")
}

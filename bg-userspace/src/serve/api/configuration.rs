//! `POST /v1/apply`, `/v1/check` and `/v1/plan`: the configuration, as TOML.

use std::{path::Path, sync::Arc};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{change::caller, problem::Problem, role::Identity, shared::Api, strict::Query};
use crate::{
    ApplyRequest,
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
    let config = read(&headers, &body)?;
    // The next switch runs them as whoever makes it, which is often root.
    let keep_commands = !identity.is_root_here;
    let caller = caller(&identity, "POST /v1/apply", b"");
    // It is completed also if the client does not wait for it.
    let applied = tokio::spawn(async move {
        let request = ApplyRequest { reason, force, keep_commands };
        let applied = api.controller.on_instance_for_long(caller, move |it| it.apply_as(&config, &request)).await;
        api.controller.look();
        applied
    });
    let applied = applied.await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the controller has failed: {error}"))
    })?;
    Ok(Json(applied.ok_or_else(busy)??).into_response())
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

//! The requests that only look.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{problem::Problem, shared::Api, strict::Query};
use crate::{
    Colour, Error, FlowFilter,
    history::{History, PATIENCE},
    serve::{metrics, page},
};

/// The most flows of an answer.
const MOST_FLOWS: usize = 100_000;

/// Says that the controller works.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// What `bgctl status --json` prints.
pub(super) async fn status(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let look = api.looks.fresh(&api.controller).await?;
    Ok(json_of(look.json.clone()))
}

/// What `bgctl status NAME --json` prints.
pub(super) async fn deployment(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Result<Response, Problem> {
    let look = api.looks.fresh(&api.controller).await?;
    let status = &look.status;
    let Some(found) = status.deployments.iter().find(|deployment| deployment.name == name) else {
        let existing = status.deployments.iter().map(|deployment| deployment.name.clone()).collect();
        return Err(Error::UnknownDeployment { name, existing }.into());
    };
    let etag = HeaderValue::from_str(&format!("\"{}\"", found.generation)).expect("a number can be a header");
    let body = json!({
        "deployments": [found],
        "interfaces": status.interfaces,
        "drops": status.drops,
        "events": status.events,
    });
    Ok(([(header::ETAG, etag)], Json(body)).into_response())
}

/// Which records.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Records {
    deployment: Option<String>,
    last: Option<usize>,
    since: Option<String>,
}

/// What `bgctl history --json` prints.
pub(super) async fn history(State(api): State<Arc<Api>>, Query(asked): Query<Records>) -> Result<Response, Problem> {
    let since = asked.since.as_deref().map(moment).transpose()?;
    // The journal may be long, and its disk slow.
    let _place = api.readers.acquire().await.expect("the semaphore is never closed");
    let (state_dir, only) = (api.controller.paths().state_dir.clone(), asked.deployment.clone());
    let read = move || History::new(&state_dir).read_within(only.as_deref(), PATIENCE);
    let journal = tokio::task::spawn_blocking(read).await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the controller has failed: {error}"))
    })?;
    let mut records = journal?.records;
    if let Some(name) = asked.deployment.filter(|_| records.is_empty()) {
        let look = api.looks.fresh(&api.controller).await?;
        if !look.status.deployments.iter().any(|deployment| deployment.name == name) {
            let existing = look.status.deployments.iter().map(|deployment| deployment.name.clone()).collect();
            return Err(Error::UnknownDeployment { name, existing }.into());
        }
    }
    records.retain(|record| since.is_none_or(|since| record.time >= since));
    let older = asked.last.map_or(0, |last| records.len().saturating_sub(last));
    records.drain(..older);
    Ok(Json(json!({ "records": records })).into_response())
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<jiff::Timestamp, Problem> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let why = "since takes an RFC 3339 time such as 2025-03-01T12:00:00Z, or a duration such as 2h or 7days";
    let ago = humantime::parse_duration(text).map_err(|_| Problem::usage(why))?;
    Ok(jiff::Timestamp::now().checked_sub(ago).unwrap_or(jiff::Timestamp::MIN))
}

/// Which flows.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Flows {
    deployment: Option<String>,
    service: Option<String>,
    colour: Option<String>,
    backend: Option<SocketAddr>,
    count: bool,
}

impl Flows {
    fn filter(self) -> Result<FlowFilter, Problem> {
        let colour = self.colour.map(|name| {
            let found = Colour::ALL.into_iter().find(|colour| colour.name() == name);
            found.ok_or_else(|| Problem::usage(format!("colour is blue or green, not \"{}\"", name.escape_default())))
        });
        let colour = colour.transpose()?;
        Ok(FlowFilter { deployment: self.deployment, service: self.service, colour, backend: self.backend })
    }
}

/// What `bgctl flows --json` prints; not more than [`MOST_FLOWS`] of them.
pub(super) async fn flows(State(api): State<Arc<Api>>, Query(asked): Query<Flows>) -> Result<Response, Problem> {
    // A million flows are some hundred megabytes.
    let _place = api.readers.acquire().await.expect("the semaphore is never closed");
    let is_count = asked.count;
    let filter = asked.filter()?;
    let body = api.controller.on_instance(None, move |instance| {
        if is_count {
            return Ok(json!({ "count": instance.count_flows(&filter)? }).to_string());
        }
        let mut flows = instance.flows(&filter)?;
        let left_out = flows.len().saturating_sub(MOST_FLOWS);
        flows.truncate(MOST_FLOWS);
        Ok(match left_out {
            0 => json!({ "flows": flows }).to_string(),
            more => json!({ "flows": flows, "left_out": more }).to_string(),
        })
    });
    Ok(json_of(body.await?.into()))
}

/// The numbers, for Prometheus.
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let text = api.metrics.text(&api.controller).await;
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

/// The description of this interface.
pub(super) async fn openapi() -> Response {
    json_of(Bytes::from_static(include_bytes!("openapi.json")))
}

/// The files of the web page.
pub(super) async fn page_file(uri: Uri) -> Result<Response, Problem> {
    let Some(file) = page::file(uri.path()) else {
        let why = format!("there is nothing at {}: see /openapi.json", uri.path().escape_default());
        return Err(Problem::new(StatusCode::NOT_FOUND, why));
    };
    Ok(([(header::CONTENT_TYPE, file.content_type)], file.content).into_response())
}

fn json_of(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

//! `GET /v1/events`: server-sent events.
//!
//! A client gets the whole status first (`state`), then each event as it happens, and the counters once a second. Each is formatted once for all
//! clients. One that is too slow for them loses the connection, or gets the whole status again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use http_body_util::channel::{Channel, Sender};
use serde_json::json;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{interval, timeout},
};

use super::{
    hub::{Frame, absent},
    pool::Place,
    problem::Problem,
    shared::Api,
};

/// How long a client may take to read.
const PATIENCE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Sends events until the client is gone.
pub(super) async fn events(
    State(api): State<Arc<Api>>,
    Extension(place): Extension<Place>,
) -> Result<Response, Problem> {
    let Ok(stream) = api.streams.clone().try_acquire_owned() else {
        return Err(Problem::busy("too many clients listen to events: close some, or try again"));
    };
    let (sender, body) = Channel::<Bytes, Infallible>::new(16);
    // From here on, nothing is missed.
    let frames = api.hub.subscribe();
    tokio::spawn(async move {
        let (_stream, _busy) = (stream, place.busy());
        feed(&api, sender, frames).await;
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // A proxy must not wait for more.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::new(body)).into_response())
}

/// Returns when the client is gone, too slow, or has to say again who it is.
async fn feed(api: &Api, mut sender: Sender<Bytes, Infallible>, mut frames: broadcast::Receiver<Frame>) -> Option<()> {
    let controller = &api.controller;
    let _watch = controller.watch();
    let mut access = api.access.subscribe();
    let mut keep_alive = interval(KEEP_ALIVE);
    let mut seen = send_state(api, &mut sender).await?;
    loop {
        let frame = tokio::select! {
            frame = frames.recv() => frame,
            _ = keep_alive.tick() => {
                send(&mut sender, Bytes::from_static(b": still here\n\n")).await?;
                continue;
            }
            // Its role may be another one now.
            _ = access.changed() => return None,
            () = controller.stopped() => return None,
        };
        match frame {
            // It was seen before what the client has.
            Ok(Frame { state: Some(at), .. }) if at <= seen => {}
            Ok(Frame { state, bytes }) => {
                seen = state.unwrap_or(seen);
                send(&mut sender, bytes).await?;
            }
            Err(RecvError::Lagged(_)) => seen = send_state(api, &mut sender).await?,
            Err(RecvError::Closed) => return None,
        }
    }
}

/// Sends the whole status. Returns of when it is.
async fn send_state(api: &Api, sender: &mut Sender<Bytes, Infallible>) -> Option<jiff::Timestamp> {
    let (at, frame) = match api.looks.fresh(&api.controller).await {
        Ok(look) => {
            let state = json!({ "event": "state", "time": look.at, "status": look.status });
            (look.at, api.hub.frame("state", None, &state))
        }
        Err(_) => (jiff::Timestamp::MIN, api.hub.frame("state", None, &absent())),
    };
    send(sender, frame.bytes).await.map(|()| at)
}

async fn send(sender: &mut Sender<Bytes, Infallible>, bytes: Bytes) -> Option<()> {
    timeout(PATIENCE, sender.send_data(bytes)).await.ok()?.ok()
}

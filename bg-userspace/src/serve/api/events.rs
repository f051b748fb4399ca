//! `GET /v1/events`: server-sent events.
//!
//! A client gets the whole status first (`state`), then each event as it happens, and the counters once a second. Each is formatted once for all
//! clients, and so is the status. A client that takes nothing for a while loses the connection. One that is too slow gets the whole status again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use http_body_util::channel::{Channel, Sender};
use tokio::time::{interval, timeout};

use super::{
    frames::{Frame, Next, Reader},
    hub::absent,
    pool::Place,
    problem::Problem,
    shared::Api,
};

/// How long a client may take to read.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many frames wait for a client beside those that wait for all.
const UNDER_WAY: usize = 2;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Sends events until the client is gone.
pub(super) async fn events(
    State(api): State<Arc<Api>>,
    Extension(place): Extension<Place>,
) -> Result<Response, Problem> {
    let Ok(stream) = api.streams.clone().try_acquire_owned() else {
        return Err(Problem::busy("too many clients listen to events: close some, or try again"));
    };
    let (sender, body) = Channel::<Bytes, Infallible>::new(UNDER_WAY);
    // From here on, nothing is missed.
    let frames = api.hub.frames.subscribe();
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
async fn feed(api: &Api, mut sender: Sender<Bytes, Infallible>, mut reader: Reader) -> Option<()> {
    let controller = &api.controller;
    let _watch = controller.watch();
    let mut access = api.access.subscribe();
    let mut keep_alive = interval(KEEP_ALIVE);
    let mut seen = send_state(api, &mut sender).await?;
    loop {
        let next = tokio::select! {
            next = reader.next(&api.hub.frames) => next,
            _ = keep_alive.tick() => {
                send(&mut sender, Bytes::from_static(b": still here\n\n")).await?;
                continue;
            }
            // Its role may be another one now.
            _ = access.changed() => return None,
            () = controller.stopped() => return None,
        };
        match next {
            // It was seen before what the client has.
            Next::Take(Frame { state: Some(at), .. }) if at <= seen => {}
            Next::Take(Frame { state, bytes }) => {
                seen = state.unwrap_or(seen);
                send(&mut sender, bytes).await?;
            }
            Next::Missed => seen = send_state(api, &mut sender).await?,
        }
    }
}

/// Sends the whole status. Returns of when it is.
async fn send_state(api: &Api, sender: &mut Sender<Bytes, Infallible>) -> Option<jiff::Timestamp> {
    let Ok(look) = api.looks.fresh(&api.controller).await else {
        send(sender, api.hub.frame("state", None, &absent()).bytes).await?;
        return Some(jiff::Timestamp::MIN);
    };
    // The status may be large, and each client that asks at this moment gets the same bytes.
    let head = format!("{}{{\"event\":\"state\",\"time\":\"{}\",\"status\":", api.hub.head("state"), look.at);
    for part in [Bytes::from(head), look.json.clone(), Bytes::from_static(b"}\n\n")] {
        send(sender, part).await?;
    }
    Some(look.at)
}

async fn send(sender: &mut Sender<Bytes, Infallible>, bytes: Bytes) -> Option<()> {
    timeout(PATIENCE, sender.send_data(bytes)).await.ok()?.ok()
}

//! `GET /v1/events`: server-sent events.
//!
//! A client gets the whole status first (`state`), then each event as it happens, and the counters once a second. Each is formatted once for all
//! clients. One that is too slow for them loses the connection, or gets the whole status again.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use http_body_util::channel::{Channel, Sender};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{pool::Place, problem::Problem, shared::Api};
use crate::{
    ByColour, ServiceStatus,
    serve::{controller::Controller, event::Event, view::View},
};

/// How many frames a client may be behind.
const BEHIND: usize = 256;
/// How long a client may take to read.
const PATIENCE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Tells all clients of events.
#[derive(Debug)]
pub(super) struct Hub {
    frames: broadcast::Sender<Frame>,
    next: AtomicU64,
}

/// An event as it is sent.
#[derive(Clone, Debug)]
struct Frame {
    /// If it is the whole status: of when.
    state: Option<jiff::Timestamp>,
    bytes: Bytes,
}

impl Default for Hub {
    fn default() -> Self {
        Self { frames: broadcast::Sender::new(BEHIND), next: AtomicU64::new(1) }
    }
}

impl Hub {
    fn frame(&self, name: &str, state: Option<jiff::Timestamp>, data: &impl Serialize) -> Frame {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        // JSON has no line breaks of its own.
        let data = serde_json::to_string(data).expect("an event can be JSON");
        Frame { state, bytes: format!("event: {name}\nid: {id}\ndata: {data}\n\n").into() }
    }

    fn send(&self, name: &str, state: Option<jiff::Timestamp>, data: &impl Serialize) {
        if self.frames.receiver_count() > 0 {
            let _ = self.frames.send(self.frame(name, state, data));
        }
    }

    /// Sends what happens, until the controller ends.
    pub(super) async fn run(&self, controller: &Arc<Controller>) {
        let mut events = controller.events();
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_there = true;
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => {
                        let state = match &*event {
                            Event::State(view) => Some(view.at),
                            _ => None,
                        };
                        self.send(event.name(), state, &*event);
                    }
                    Err(RecvError::Lagged(_)) => {
                        if let Some(view) = controller.view() {
                            self.send("state", Some(view.at), &Event::State(view));
                        }
                    }
                    Err(RecvError::Closed) => return,
                },
                _ = ticks.tick() => match controller.view() {
                    Some(view) => {
                        was_there = true;
                        if self.frames.receiver_count() > 0 {
                            self.send("counters", None, &Counters::of(&view));
                        }
                    }
                    None if was_there => {
                        was_there = false;
                        self.send("state", None, &absent());
                    }
                    None => {}
                },
                () = controller.stopped() => return,
            }
        }
    }
}

/// The state while there is no instance.
fn absent() -> serde_json::Value {
    json!({ "event": "state", "time": jiff::Timestamp::now(), "status": null })
}

/// The numbers that grow.
#[derive(Serialize)]
struct Counters<'a> {
    event: &'static str,
    time: jiff::Timestamp,
    deployments: Vec<Deployment<'a>>,
    drops: &'a std::collections::BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Deployment<'a> {
    name: &'a str,
    live: &'static str,
    generation: u32,
    phase: &'static str,
    green_share: f64,
    flows: ByColour<u64>,
    services: Vec<Service<'a>>,
}

#[derive(Serialize)]
struct Service<'a> {
    name: &'a str,
    blue: Traffic,
    green: Traffic,
}

#[derive(Serialize)]
struct Traffic {
    packets: u64,
    bytes: u64,
    flows_opened: u64,
}

impl<'a> Counters<'a> {
    fn of(view: &'a View) -> Self {
        let service = |service: &'a ServiceStatus| {
            let [blue, green] = [&service.colours.blue, &service.colours.green].map(|colour| Traffic {
                packets: colour.packets,
                bytes: colour.bytes,
                flows_opened: colour.flows_opened,
            });
            Service { name: &service.name, blue, green }
        };
        let deployments = view.status.deployments.iter().map(|deployment| Deployment {
            name: &deployment.name,
            live: deployment.live,
            generation: deployment.generation,
            phase: deployment.phase,
            green_share: deployment.green_share,
            flows: deployment.flows,
            services: deployment.services.iter().map(service).collect(),
        });
        Self { event: "counters", time: view.at, deployments: deployments.collect(), drops: &view.status.drops }
    }
}

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

//! Formats each event once for all clients that listen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Bytes;
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{MissedTickBehavior, interval},
};

use crate::{
    ByColour, ServiceStatus,
    serve::{controller::Controller, event::Event, view::View},
};

/// How many frames a client may be behind.
const BEHIND: usize = 256;

/// Tells all clients of events.
#[derive(Debug)]
pub(super) struct Hub {
    frames: broadcast::Sender<Frame>,
    next: AtomicU64,
}

/// An event as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// If it is the whole status: of when.
    pub(super) state: Option<jiff::Timestamp>,
    pub(super) bytes: Bytes,
}

impl Default for Hub {
    fn default() -> Self {
        Self { frames: broadcast::Sender::new(BEHIND), next: AtomicU64::new(1) }
    }
}

impl Hub {
    /// All events from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Frame> {
        self.frames.subscribe()
    }

    pub(super) fn frame(&self, name: &str, state: Option<jiff::Timestamp>, data: &impl Serialize) -> Frame {
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
pub(super) fn absent() -> serde_json::Value {
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

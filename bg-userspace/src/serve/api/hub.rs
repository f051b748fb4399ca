//! Formats each event once for all clients that listen.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval},
};

use super::frames::{Frame, Frames};
use crate::{
    ByColour, ServiceStatus, Status,
    serve::{controller::Controller, event::Event, view::View},
};

/// Tells all clients of events.
#[derive(Debug, Default)]
pub(super) struct Hub {
    pub(super) frames: Frames,
    last: AtomicU64,
}

impl Hub {
    /// The lines of an event before its data.
    pub(super) fn head(&self, name: &str) -> String {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        format!("event: {name}\nid: {id}\ndata: ")
    }

    pub(super) fn frame(&self, name: &str, state: Option<jiff::Timestamp>, data: &impl Serialize) -> Frame {
        // JSON has no line breaks of its own.
        let data = serde_json::to_string(data).expect("an event can be JSON");
        Frame { state, bytes: format!("{}{data}\n\n", self.head(name)).into() }
    }

    fn send(&self, name: &str, state: Option<jiff::Timestamp>, data: &impl Serialize) {
        match self.frames.is_listened_to() {
            true => self.frames.push(self.frame(name, state, data)),
            false => self.frames.clear(),
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
                        self.send("counters", None, &Counters::of(&view));
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

/// What packets and time change in a status: the numbers, and what they are numbers of.
#[derive(Serialize)]
struct Counters<'a> {
    event: &'static str,
    time: jiff::Timestamp,
    deployments: Vec<Deployment<'a>>,
    drops: &'a BTreeMap<&'static str, u64>,
    events: &'a BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Deployment<'a> {
    name: &'a str,
    live: &'static str,
    generation: u32,
    phase: &'static str,
    green_share: f64,
    green_share_measured: Option<f64>,
    flows: ByColour<u64>,
    held: u64,
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
    mirrored: u64,
}

impl<'a> Counters<'a> {
    fn of(view: &'a View) -> Self {
        let service = |service: &'a ServiceStatus| {
            let [blue, green] = [&service.colours.blue, &service.colours.green].map(|colour| Traffic {
                packets: colour.packets,
                bytes: colour.bytes,
                flows_opened: colour.flows_opened,
                mirrored: colour.mirrored,
            });
            Service { name: &service.name, blue, green }
        };
        let deployments = view.status.deployments.iter().map(|deployment| Deployment {
            name: &deployment.name,
            live: deployment.live,
            generation: deployment.generation,
            phase: deployment.phase,
            green_share: deployment.green_share,
            green_share_measured: deployment.green_share_measured,
            flows: deployment.flows,
            held: deployment.held,
            services: deployment.services.iter().map(service).collect(),
        });
        let Status { drops, events, .. } = &view.status;
        Self { event: "counters", time: view.at, deployments: deployments.collect(), drops, events }
    }
}

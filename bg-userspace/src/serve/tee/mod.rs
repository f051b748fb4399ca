//! The proxy of services in mode `tee`: it feeds both colours.
//!
//! Each colour of such a service has a [`listener`], and the data path decides which of them a connection reaches, as it decides between backends in the other modes. So
//! a switch needs nothing of this process. What a client sends goes to a backend of that colour ([`relay`]), and a copy to one of the other colour ([`copy`]), whose
//! answers are dropped.
//!
//! Two things are absent by design. Nothing that a client waits for waits for the copy. And no byte of a connection that is confined to the idle colour, a tester's or
//! one to the preview address, is written to a backend of a colour that is live: the [flow table](crate::teed) tells which those are, and a connection that it does not know
//! is refused.

mod copy;
pub(super) mod counts;
mod header;
mod listener;
mod open;
mod pool;
mod relay;
mod room;
mod service;
mod stream;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bg_common::Colour;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    task::AbortHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use self::{
    counts::{Count, Counts},
    service::{Flows, Limits, Service},
};
use super::{controller::Controller, error::ServeError};
use crate::teed::{Brought, FlowFinder, Listener, Teed};

/// How often weights and health are read again, while there is a service in this mode.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is said that copies were ended.
const SAY: Duration = Duration::from_secs(10);

/// Runs the proxy until the controller ends.
pub(super) async fn run(controller: Arc<Controller>) -> Result<(), ServeError> {
    let mut views = controller.views();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut proxy = Proxy::default();
    loop {
        let is_new = tokio::select! {
            changed = views.changed() => changed.is_ok(),
            _ = ticks.tick() => false,
            () = controller.stopped() => break,
        };
        let view = views.borrow_and_update().clone();
        let services =
            view.iter().flat_map(|view| &view.status.deployments).flat_map(|deployment| &deployment.services);
        let is_there = services.into_iter().any(|service| service.mode == "tee");
        if view.is_none() {
            proxy.has_no_instance(Instant::now());
            continue;
        }
        proxy.has_instance();
        if !is_there && proxy.running.is_empty() {
            proxy.finder = None;
            continue;
        }
        if is_new {
            proxy.running.values().for_each(|running| running.service.end_confined());
        }
        let finder = proxy.finder.clone();
        // A file system that does not respond must not hold up the end.
        let read = tokio::select! {
            read = controller.on_instance(None, move |instance| {
                let finder = match finder.filter(|finder| finder.is_current()) {
                    Some(finder) => finder,
                    None => Arc::new(FlowFinder::open(instance.paths())?),
                };
                Ok((instance.teed()?, finder))
            }) => read,
            () = controller.stopped() => break,
        };
        match read {
            Ok((teed, finder)) => proxy.update(&controller, teed, &finder),
            Err(error) => tracing::debug!("cannot read the services: {:#}", anyhow::Error::from(error)),
        }
        proxy.say();
    }
    for status in controller.tees().now() {
        let counts = serde_json::to_string(&status.counts).unwrap_or_default();
        tracing::info!(deployment = status.deployment, service = status.service, counts, "fed both colours");
    }
    Ok(())
}

/// All services that are served.
#[derive(Default)]
struct Proxy {
    finder: Option<Arc<FlowFinder>>,
    /// By the index of the service, so that a new name disturbs no connection.
    running: HashMap<u16, Running>,
    limits: Option<Limits>,
    /// Since when there has been no instance.
    alone_since: Option<Instant>,
}

/// A service that is served. Dropping it ends its listeners and connections.
struct Running {
    teed: Teed,
    service: Arc<Service>,
    listeners: [AbortHandle; 2],
    said: (Instant, u64),
}

impl Drop for Running {
    fn drop(&mut self) {
        self.listeners.iter().for_each(AbortHandle::abort);
        self.service.open.end(|_| true);
    }
}

impl Proxy {
    /// Ends everything once the instance has been gone for a while: a short trouble with reading it is none of the clients' business.
    fn has_no_instance(&mut self, now: Instant) {
        const PATIENCE: Duration = Duration::from_secs(5);
        if now - *self.alone_since.get_or_insert(now) >= PATIENCE {
            self.running.clear();
            self.finder = None;
        }
    }

    fn has_instance(&mut self) {
        self.alone_since = None;
    }

    fn update(&mut self, controller: &Controller, teed: Vec<Teed>, finder: &Arc<FlowFinder>) {
        if self.finder.as_ref().is_none_or(|before| !Arc::ptr_eq(before, finder)) {
            // Another instance: its numbers mean other things.
            self.running.clear();
            self.finder = Some(finder.clone());
        }
        let limits = self.limits.get_or_insert_with(|| Limits::new(most())).clone();
        let mut before = std::mem::take(&mut self.running);
        // Before any of the names is taken by another service.
        for teed in &teed {
            if let Some(running) = before.get(&teed.service).filter(|running| running.has_place_of(teed)) {
                controller.tees().name(&running.service.counts, &teed.deployment_name, &teed.name);
            }
        }
        for teed in teed {
            let index = teed.service;
            let running = before.remove(&index).filter(|running| running.has_place_of(&teed));
            let running = match running {
                Some(running) => running.updated(teed),
                None => Running::begin(teed, controller, finder, &limits),
            };
            self.running.insert(index, running);
        }
    }

    /// Says that copies were ended, and connections refused, but not too often.
    fn say(&mut self) {
        for running in self.running.values_mut() {
            let failed = failures(&running.service.counts);
            let (last, before) = running.said;
            if failed > before && (before == 0 || last.elapsed() >= SAY) {
                let of = |count| running.service.counts.of(count);
                tracing::warn!(
                    deployment = running.teed.deployment_name,
                    service = running.teed.name,
                    no_backend = of(Count::CopyNoBackend),
                    slow = of(Count::CopySlow),
                    reset = of(Count::CopyReset),
                    too_many = of(Count::CopyTooMany),
                    "the idle colour has missed something: copies of connections were ended"
                );
                running.said = (Instant::now(), failed);
            }
        }
    }
}

fn failures(counts: &Counts) -> u64 {
    [Count::CopyNoBackend, Count::CopySlow, Count::CopyReset, Count::CopyTooMany]
        .map(|count| counts.of(count))
        .iter()
        .sum()
}

impl Running {
    fn begin(teed: Teed, controller: &Controller, finder: &Arc<FlowFinder>, limits: &Limits) -> Self {
        let counts = controller.tees().of(&teed.deployment_name, &teed.name);
        let said = (Instant::now(), failures(&counts));
        let flows = Found { finder: finder.clone(), teed: (teed.service, teed.deployment), listeners: teed.listeners };
        let service = Service::new(&teed, Box::new(flows), counts, limits);
        let listeners = Colour::ALL.map(|colour| {
            let address = teed.listeners[colour as usize].address;
            tokio::spawn(listener::listen(service.clone(), colour, address)).abort_handle()
        });
        Self { teed, service, listeners, said }
    }

    /// Whether this is the same service in the maps, with the same listeners.
    fn has_place_of(&self, teed: &Teed) -> bool {
        let place = |teed: &Teed| (teed.service, teed.deployment, teed.listeners);
        place(&self.teed) == place(teed)
    }

    fn updated(mut self, teed: Teed) -> Self {
        if self.teed != teed {
            self.service.update(&teed);
            self.teed = teed;
        }
        self
    }
}

/// The flows of a service.
struct Found {
    finder: Arc<FlowFinder>,
    /// The indexes of the service and of its deployment.
    teed: (u16, u16),
    listeners: [Listener; 2],
}

impl Flows for Found {
    fn find(&self, colour: Colour, client: SocketAddr) -> Option<Brought> {
        self.finder.find(self.teed.0, &self.listeners[colour as usize], client)
    }

    fn is_live(&self, colour: Colour) -> bool {
        self.finder.is_live(self.teed.1, colour)
    }
}

/// The most connections, and the most copies: as many as there can be descriptors for. A connection takes two, a copy one.
fn most() -> usize {
    const OTHERS: u64 = 512;
    const MOST: u64 = 100_000;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // If it cannot be raised, the limit is the present one.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let Rlimit { current, .. } = getrlimit(Resource::Nofile);
    current.unwrap_or(u64::MAX).saturating_sub(OTHERS).div_euclid(3).clamp(64, MOST) as usize
}
